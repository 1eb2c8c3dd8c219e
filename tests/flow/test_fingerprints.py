"""Flow caches whose files are not what was written: named before training, computed anew by `d3d flow`."""

import json
import os

import numpy as np
import pytest

from d3d.data.load import load
from d3d.files import SPAN, append_to, fingerprint, sha256
from d3d.flow.cache import CacheError, FieldsWriter, FlowSpec, fields_path, mismatches, read_fields, refusals, summary
from d3d.flow.extract import extract
from d3d.video.decode import encode
from tests import configs
from tests.flow.test_extract import NAMES, SPEC, contents, moving_video, run, silent

CONFIG = {"dataset": "folder", "frames": 4, "size": 16, "short_side": 24, "bound": 3.0, "memory": "no"}


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(NAMES):
        moving_video(tmp_path / "root" / name, i + 1)
    run(tmp_path / "root", tmp_path / "cache")
    return tmp_path / "root"


def swap(root, cache):
    a, b = (fields_path(cache, root, root / name) for name in NAMES[:2])
    contents_of_b = b.read_bytes()
    b.write_bytes(a.read_bytes())
    a.write_bytes(contents_of_b)


def cut(root, cache):
    """A complete file that ends four fields early, as one of an interrupted copy by frames."""
    path = fields_path(cache, root, root / NAMES[0])
    fields = read_fields(path, first=0, count=4, spec=SPEC)
    with FieldsWriter(path, SPEC.fps) as writer:
        writer.add(fields.reshape(len(fields), -1, fields.shape[-1]))


def replace_video(root, cache):
    moving_video(root / NAMES[0], 7)


@pytest.mark.parametrize(("change", "count"), [(swap, 2), (cut, 1), (replace_video, 1)])
def test_flow_that_is_not_of_its_video_is_named_and_computed_anew(root, tmp_path, change, count):
    cache = tmp_path / "cache"
    change(root, cache)
    config = configs.data(**CONFIG, root=str(root), flow_cache=str(cache))
    with pytest.raises(CacheError, match=r"a\.mp4.* run `d3d flow` again to (replace it|compute it anew)"):
        load(config, seed=0, streams=("rgb", "flow"), report=silent)
    lines = []
    extract([root / name for name in NAMES], root, cache, SPEC, report=lines.append)
    assert sum(line.startswith("computed again: ") for line in lines) == count
    assert f"4 videos, {4 - count} of them already done; on cpu" in lines
    extract([root / name for name in NAMES], root, tmp_path / "new", SPEC, report=silent)
    assert contents(cache) == contents(tmp_path / "new")
    assert mismatches(cache, root, [root / name for name in NAMES]) == {}
    assert summary(cache) == summary(tmp_path / "new")
    assert load(config, seed=0, streams=("rgb", "flow"), report=silent).flow["videos"] == 4


def test_clips_whose_flow_is_not_needed_are_not_checked(root, tmp_path):
    cache = tmp_path / "cache"
    config = configs.data(**CONFIG, root=str(root), flow_cache=str(cache))
    lines = [f"root/{name},{name[:4]},{int(name[0] == 'w')},{'test' if 'a.' in name else 'train'}" for name in NAMES]
    (tmp_path / "set.csv").write_text("\n".join(["path,class,label,split", *lines]))
    config = configs.data(
        **CONFIG | {"dataset": "table"}, root=str(tmp_path / "set.csv"), flow_cache=str(tmp_path / "c")
    )
    videos = [root / name for name in NAMES]
    extract(videos, tmp_path, tmp_path / "c", SPEC, report=silent)
    fields_path(tmp_path / "c", tmp_path, root / NAMES[0]).write_bytes(b"")
    assert load(config, seed=0, teacher=("flow",), report=silent).splits["train"]
    with pytest.raises(CacheError, match="not the file that `d3d flow` wrote"):
        load(config, seed=0, streams=("flow",), report=silent)


def test_an_entry_counts_the_latest_line_of_all_logs(root, tmp_path):
    """A video computed again as a part of another shard has lines in two logs."""
    cache, videos = tmp_path / "cache", [root / name for name in NAMES]
    (cache / "videos-1-of-1.jsonl").rename(cache / "videos-9-of-9.jsonl")
    moving_video(videos[0], 7, frames=5)
    extract(videos, root, cache, SPEC, report=silent)
    assert mismatches(cache, root, videos) == {}
    assert summary(cache)["fields"] == 4 + 3 * 8


def test_half_a_line_of_a_log_swallows_no_later_line(root, tmp_path):
    cache = tmp_path / "cache"
    with open(cache / "videos-1-of-1.jsonl", "a") as file:
        file.write('{"video": "wave/')
    fields_path(cache, root, root / NAMES[0]).unlink()
    run(root, cache)
    assert mismatches(cache, root, [root / name for name in NAMES]) == {}
    assert len((cache / "videos-1-of-1.jsonl").read_text().split()) > 4


def test_a_cache_behind_links_is_filled(tmp_path):
    """The folder of the cache, and a video's flow, may be links; a link's target is never written."""
    for i, name in enumerate(NAMES):
        moving_video(tmp_path / "root" / name, i + 1)
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to("disk")
    (tmp_path / "mine.mkv").write_text("mine")
    (tmp_path / "disk" / "wave").mkdir()
    (tmp_path / "disk" / "wave" / "b.mp4.mkv").symlink_to(tmp_path / "nowhere.mkv")
    run(tmp_path / "root", tmp_path / "cache")
    assert len(contents(tmp_path / "disk")) == 4
    assert not (tmp_path / "nowhere.mkv").exists()
    assert not (tmp_path / "disk" / "wave" / "b.mp4.mkv").is_symlink()
    log = tmp_path / "disk" / "videos-1-of-1.jsonl"
    log.rename(tmp_path / "log")
    log.symlink_to(tmp_path / "log")
    before = (tmp_path / "log").read_bytes()
    (tmp_path / "disk" / "wave" / "a.mp4.mkv").unlink()
    with pytest.raises(OSError, match=r"videos-1-of-1.jsonl could not be written: .* is a link or not a regular file"):
        run(tmp_path / "root", tmp_path / "cache")
    assert (tmp_path / "log").read_bytes() == before
    assert not (tmp_path / "disk" / "wave" / "a.mp4.mkv").exists()
    assert (tmp_path / "mine.mkv").read_text() == "mine"


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
def test_a_full_disk_leaves_nothing_that_counts_as_done(root, tmp_path, monkeypatch, step):
    def fail(*_):
        raise OSError(28, os.strerror(28))

    cache = tmp_path / "cache"
    path = fields_path(cache, root, root / NAMES[0])
    before = path.read_bytes()
    path.unlink()
    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(FieldsWriter, "add", fail)
        else:
            patch.setattr(f"d3d.flow.extract.os.{step}", fail)
        with pytest.raises(OSError, match=r"could not be written( to .*cache)?: No space left on device"):
            run(root, cache)
    assert not path.exists()
    assert not list(cache.rglob(".*.part"))
    run(root, cache)
    assert path.read_bytes() == before
    assert mismatches(cache, root, [root / name for name in NAMES]) == {}


def test_an_unreadable_video_that_is_repaired_is_checked_too(root, tmp_path):
    cache, path = tmp_path / "cache", root / NAMES[0]
    content = path.read_bytes()
    path.write_bytes(content[:500])
    run(root, cache)
    assert set(mismatches(cache, root, [path])) == {path}  # its flow is that of the complete file
    path.write_bytes(content)
    assert mismatches(cache, root, [path]) == {}
    assert refusals(cache) == {}


@pytest.mark.slow
def test_a_flipped_bit_anywhere_in_a_flow_file_is_named(tmp_path):
    """FFmpeg decodes such a file without an error, to other values."""
    frames = np.random.default_rng(0).integers(0, 255, (30, 96, 128, 3), dtype=np.uint8)
    (tmp_path / "root").mkdir()
    video = tmp_path / "root" / "noise.mp4"
    video.write_bytes(encode(frames, fps=25))
    spec = FlowSpec(fps=25, short_side=96, bound=3)
    extract([video], tmp_path / "root", tmp_path / "cache", spec, report=silent)
    path = fields_path(tmp_path / "cache", tmp_path / "root", video)
    content = path.read_bytes()
    assert len(content) > 4 * SPAN
    for position in np.linspace(0, len(content) - 1, 30).astype(int):
        path.write_bytes(content[:position] + bytes([content[position] ^ 64]) + content[position + 1 :])
        assert set(mismatches(tmp_path / "cache", tmp_path / "root", [video])) == {video}
    path.write_bytes(content)
    assert mismatches(tmp_path / "cache", tmp_path / "root", [video]) == {}


def test_every_log_line_has_both_checksums(root, tmp_path):
    lines = (tmp_path / "cache" / "videos-1-of-1.jsonl").read_text().split("\n")
    entries = {entry["video"]: entry for entry in map(json.loads, filter(None, lines))}
    for name in NAMES:
        assert entries[name]["source"] == fingerprint(root / name)
        assert entries[name]["flow"] == sha256(fields_path(tmp_path / "cache", root, root / name))


@pytest.mark.parametrize("size", [0, 1, SPAN, SPAN + 1, 3 * SPAN])
def test_a_fingerprint_covers_every_byte_of_a_small_file(tmp_path, size):
    path = tmp_path / "file"
    content = bytes(i % 251 for i in range(size))
    path.write_bytes(content)
    prints = {fingerprint(path)}
    positions = {0, size // 3, size // 2, SPAN - 1, SPAN, size - SPAN, size - 1} & set(range(size))
    for position in positions:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        prints.add(fingerprint(path))
    path.write_bytes(content + b"\0")
    prints.add(fingerprint(path))
    assert len(prints) == len(positions) + 2


def test_a_fingerprint_of_a_large_file_covers_its_ends_its_middle_and_its_size(tmp_path):
    path = tmp_path / "file"
    prints = set()
    for size, changed in [(10 * SPAN, None), (10 * SPAN, 0), (10 * SPAN, 5 * SPAN), (10 * SPAN, -1), (11 * SPAN, None)]:
        content = bytearray(size)
        if changed is not None:
            content[changed] = 1
        path.write_bytes(content)
        prints.add(fingerprint(path))
    assert len(prints) == 5


def test_links_fifos_and_folders_are_neither_waited_for_nor_written(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "folder", "fifo"):
        with pytest.raises(OSError, match=f"{name} is a link or not a regular file"):
            append_to(tmp_path / name)
    with pytest.raises(OSError, match="fifo is a link or not a regular file"):
        fingerprint(tmp_path / "fifo")
    assert fingerprint(tmp_path / "link") == fingerprint(tmp_path / "target")
    assert (tmp_path / "target").read_text() == "mine"
