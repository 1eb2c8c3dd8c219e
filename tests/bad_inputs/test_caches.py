"""Caches of flow that are not what was written, and absurd parameters of `d3d flow`."""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from d3d.flow.cache import FieldsWriter, FlowSpec, read_fields
from d3d.flow.extract import extract
from d3d.video.decode import encode
from tests.bad_inputs.harness import BadInput, assert_refused

SPEC = FlowSpec(fps=25, short_side=16, bound=5)
VIDEOS = ("swim/a.mp4", "swim/b.mp4", "wave/a.mp4", "wave/b.mp4")
FLOW = ["flow", "--dataset", "folder", "--root", "videos", "--out", "flow", "--devices", "cpu", "--workers", "1",
        "--fps", "25", "--short-side", "16", "--bound", "5"]  # fmt: skip
# The command makes the folder of its results before it reads anything.
TRAIN = ["train", "--dataset", "folder", "--root", "videos", "--flow-cache", "flow", "--stream", "flow", "--results",
         "../results", "--frames", "4", "--size", "16", "--bound", "5", "--epochs", "1", "--width", "0.1",
         "--workers", "1"]  # fmt: skip
FIRST, SECOND = (f"flow/{name}.mkv" for name in VIDEOS[:2])
LOG, PART = "flow/videos-1-of-1.jsonl", "flow/swim/.a.mp4.mkv.part"


def video(seed):
    frames = np.random.default_rng(seed).integers(0, 255, (6, 24, 32, 3), dtype=np.uint8)
    return encode(frames, fps=25)


@pytest.fixture(scope="module")
def template():
    """Four videos and their flow cache, made once; each case changes a copy."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for seed, video_name in enumerate(VIDEOS):
            (folder / "videos" / video_name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "videos" / video_name).write_bytes(video(seed))
        videos = [folder / "videos" / video_name for video_name in VIDEOS]
        extract(videos, folder / "videos", folder / "flow", SPEC, report=lambda line: None)
        yield folder


def trained(name, change, message):
    """Training on a cache that `change`, given the folder of videos and flow, spoils."""
    return BadInput(f"train: {name}", TRAIN, change, rf"d3d train: {message}")


def computed(name, change, message):
    """`d3d flow` on a cache that `change` spoils."""
    return BadInput(f"flow: {name}", FLOW, change, message)


def flag(name, value, message, code=1):
    return BadInput(f"flow: {name} {value[:20]}", [*FLOW, f"--{name}={value}"], None, message, code)


def rewrite(path, first, count):
    """Writes some of a file's fields to the same file, as a valid file of its own."""

    def change(folder):
        fields = read_fields(folder / path, first=first, count=count, spec=SPEC)
        (folder / path).unlink()
        with FieldsWriter(folder / path, SPEC.fps) as writer:
            writer.add(fields.reshape(len(fields), -1, fields.shape[-1]))

    return change


def swap(folder):
    first, second = (folder / FIRST).read_bytes(), (folder / SECOND).read_bytes()
    (folder / FIRST).write_bytes(second), (folder / SECOND).write_bytes(first)


def put(path, content):
    return lambda folder: (folder / path).write_bytes(content)


def instead(path, make):
    """Replaces a file or folder by what `make` makes."""

    def change(folder):
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink(missing_ok=True)
        make(folder / path)

    return change


def log_line(content):
    def change(folder):
        with open(folder / LOG, "ab") as file:
            file.write(content + b"\n")

    return change


def manifest(**values):
    def change(folder):
        path = folder / "flow" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def link(target):
    return lambda path: path.symlink_to(target)


def without(path, then):
    """Deletes a video's flow, so that it must be computed, then spoils something else."""

    def change(folder):
        (folder / path).unlink()
        then(folder)

    return change


FOREIGN = r"flow/manifest\.json is not the manifest of a flow cache: delete the cache and make it again"
NOT_WRITTEN = rf"{FIRST} is not the file that `d3d flow` wrote: run `d3d flow` again to replace it"
UNLOGGED = rf"{FIRST} is in no log of its flow cache: delete it and run `d3d flow` again"
CHANGED = r"videos/swim/a\.mp4 changed after its flow was computed: run `d3d flow` again to compute it anew"
ENTRY = rf"{LOG}, line \d+: .*, expected an entry of `d3d flow`: delete the cache and run it again"
CANNOT = r"flow is (a file|a link to nothing), but it must be a folder"
NOT_OURS = r".*{} is a link or not a regular file: delete it, or use another folder"
CASES = [
    trained("swapped with another video's", swap, NOT_WRITTEN + r" \(1 more files are wrong\)"),
    trained("cut at a frame", rewrite(FIRST, 0, 3), NOT_WRITTEN),
    trained("without its first frame", rewrite(FIRST, 1, 9), NOT_WRITTEN),
    trained("cut within a frame", lambda folder: os.truncate(folder / FIRST, 1000), NOT_WRITTEN),
    trained("empty", put(FIRST, b""), NOT_WRITTEN),
    trained("a video", put(FIRST, video(9)), NOT_WRITTEN),
    trained("of a video that was replaced", put("videos/swim/a.mp4", video(9)), CHANGED),
    trained("in no log", lambda folder: (folder / LOG).unlink(), UNLOGGED),
    trained("a log of zeros", put(LOG, b"\0" * 1000), UNLOGGED),
    trained("a log that is a FIFO", instead(LOG, os.mkfifo), rf"{LOG} is not a regular file: .*"),
    computed("a log that is a folder", instead(LOG, os.mkdir), rf"{LOG} is not a regular file: .*"),
    *(computed(f"a log with {content[:30]}", log_line(content), ENTRY)
      for content in (b"[]", b"1", b"null", b'{"video": 1}', b'{"video": "a"}', b'{"video": "a", "refused": 1}',
                      b'{"video": "a", "fields": NaN}', b'{"video": "' + b"x" * 10_000 + b'"}')),
    computed("of numbers that are infinite", log_line(b'{"video": "a", "rms_px": 1e999, "max_px": 0, "clipped": 0, '
            b'"fields": 1, "bytes": 1, "time": 0, "flow": "", "source": ""}'), ENTRY),
    trained("of an earlier version", manifest(schema=1),
            "the flow cache flow was made by an earlier version, without checksums: delete it and run .* again"),
    trained("of a later version", manifest(schema=10**9), "the flow cache flow was made with schema 1000000000 .*"),
    computed("of a rate of nan", manifest(fps=float("nan")), "the flow cache flow was made with fps nan instead of .*"),
    computed("of a long method", manifest(method="x" * 10_000), "the flow cache flow was made with method 'x+.*"),
    computed("an empty manifest", put("flow/manifest.json", b""), FOREIGN),
    computed("a deep manifest", put("flow/manifest.json", b"[" * 10**6), FOREIGN),
    computed("a manifest that is a list", put("flow/manifest.json", b"[]"), FOREIGN),
    computed("a manifest that is not UTF-8", put("flow/manifest.json", b'{"schema": "\xff"}'), FOREIGN),
    computed("a manifest that is a FIFO", instead("flow/manifest.json", os.mkfifo), FOREIGN),
    computed("a manifest that is a folder", instead("flow/manifest.json", os.mkdir), FOREIGN),
    computed("a manifest that links to a device", instead("flow/manifest.json", link("/dev/zero")), FOREIGN),
    trained("no manifest", lambda folder: (folder / "flow" / "manifest.json").unlink(), "no flow cache at flow: .*"),
    trained("a file", instead("flow", Path.touch), "no flow cache at flow: .*"),
    trained("a link to itself", instead("flow", link("flow")), "no flow cache at flow: .*"),
    computed("in no log", lambda folder: (folder / LOG).unlink(), UNLOGGED),
    trained("a log with []", log_line(b"[]"), ENTRY),
    computed("of an earlier version", manifest(schema=1), "the flow cache flow was made by an earlier version.*"),
    computed("of other parameters", manifest(bound=7), "the flow cache flow was made with bound 7 instead of 5.0: .*"),
    computed("a file", instead("flow", Path.touch), CANNOT),
    computed("a link to nothing", instead("flow", link("nowhere")), CANNOT),
    computed("a link to itself", instead("flow", link("flow")), CANNOT),
    computed("a FIFO", instead("flow", os.mkfifo), CANNOT),
    computed("a class that is a file", instead("flow/swim", Path.touch), "flow/swim must be a folder of the .*"),
    computed("a class that links out of it", instead("flow/swim", link("../videos")),
             "flow/swim leads out of the flow cache flow: delete this link"),
    computed("a half-written file that is a link",
             without(FIRST, lambda folder: (folder / PART).symlink_to("../../videos/swim/b.mp4")),
             NOT_OURS.format(r"\.part")),
    computed("a half-written file that is a FIFO",
             without(FIRST, lambda folder: os.mkfifo(folder / PART)), NOT_OURS.format(r"\.part")),
    computed("a log that links to a video", instead(LOG, link("../videos/swim/a.mp4")), UNLOGGED),
    BadInput("flow: the root itself", [*FLOW, "--out", "videos"], None,
             "the flow cache videos must be another folder than the root of the videos"),
    BadInput("flow: a name of 5,000 characters", [*FLOW, "--out", "x" * 5000], None,
             r"the flow cache x+….*x+ cannot be made: File name too long"),
    *(flag("fps", value, r"fps must lie in \[0\.001, 1000\], not .*")
      for value in ("nan", "inf", "-inf", "0", "-1", "1e308", "1e-300", "1001")),
    *(flag("bound", value, r"bound must lie in \[0\.01, 8192\], not .*")
      for value in ("nan", "inf", "0", "-1", "1e308", "1e-300")),
    *(flag("short-side", value, r"short_side must lie in \[16, 8192\], not .*")
      for value in ("0", "-1", "15", "1" + "0" * 12, "9" * 4000)),
    *(flag("shard", value, "shard must be i/n with i from 1 to n, such as 2/4, not '.*'")
      for value in ("0/0", "2/1", "0/1", "-1/1", "1/inf", "1/1/1", "", "1_0/2_0", "1/1" + "0" * 12, "1/" + "1" * 5000,
                    "\x1b[2J")),
    *(flag("workers", value, r"workers must lie in \[1, 1000\], not .*") for value in ("0", "-1", "1" + "0" * 12)),
    *(flag("devices", value, r"devices must be cpu or cuda:0, cuda:1 …, not '.*': this machine has \d+ GPUs")
      for value in ("gpu", "cuda:99", "cpu,,cpu", "\x1b[2J")),
    flag("fps", "fast", ".*--fps: invalid float value: 'fast'", 2),
    flag("short-side", "16.5", ".*--short-side: invalid int value: '16.5'", 2),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cache_is_refused_in_one_sentence(case, tmp_path, template):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    assert_refused(case, tmp_path)
