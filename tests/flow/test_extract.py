"""Tests of the flow of a whole set of files: stored values, resuming after a kill, and caches of other parameters."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d3d.flow import extract as flow_extract
from d3d.flow.cache import (
    CacheError,
    FlowSpec,
    dequantise,
    fields_path,
    open_cache,
    quantise,
    read_fields,
    refusals,
    summary,
)
from d3d.flow.estimate import tvl1
from d3d.flow.extract import extract
from d3d.video.decode import VideoError, encode, read_frames, resize
from tests.video.test_decode import noise_video

SPEC = FlowSpec(fps=25, short_side=24, bound=3)
NAMES = ("wave/a.mp4", "wave/b.mp4", "swim/a.mp4", "swim/c.mp4")


def moving_video(path, speed, *, frames=9):
    """Writes 48 x 64 pixel frames of a smooth texture that moves to the right by `speed` pixels per frame."""
    rng = np.random.default_rng(len(path.name))
    texture = torch.nn.functional.interpolate(torch.from_numpy(rng.random((1, 3, 8, 24), np.float32)), (48, 144))
    texture = (texture[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(np.stack([texture[:, 60 - speed * i : 124 - speed * i] for i in range(frames)]), fps=25))
    return path


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(NAMES):
        moving_video(tmp_path / "root" / name, i + 1)
    return tmp_path / "root"


def silent(line):
    pass


def run(root, cache, spec=SPEC, **arguments):
    extract([root / name for name in NAMES], root, cache, spec, report=silent, **arguments)


def contents(cache):
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in sorted(cache.rglob("*.mkv"))}


@given(st.floats(-30, 30, width=32), st.sampled_from([1.0, 5.0, 20.0]))
def test_quantisation_error_is_at_most_half_a_step(value, bound):
    flow = torch.tensor([value])
    restored = dequantise(quantise(flow, bound), bound)
    assert (restored - flow.clamp(-bound, bound)).abs().item() <= bound / 127 / 2 + 1e-5
    assert torch.equal(dequantise(quantise(-flow, bound), bound), -restored)


def test_quantised_levels():
    flow = torch.tensor([0.0, 20.0, -20.0, 99.0, -99.0, 0.1575, 0.07, -0.08])
    assert quantise(flow, 20.0).tolist() == [128, 255, 1, 255, 1, 129, 128, 127]


def test_fields_are_those_of_the_resized_frames(root, tmp_path):
    run(root, tmp_path / "cache")
    for name in NAMES:
        frames = resize(read_frames(root / name, frames=99, fps=25), 24).float() / 255
        expected = quantise(tvl1(frames[:-1], frames[1:]), 3).numpy()
        path = fields_path(tmp_path / "cache", root, root / name)
        assert path == tmp_path / "cache" / f"{name}.mkv"
        assert np.array_equal(read_fields(path, first=0, count=99, spec=SPEC), expected)
        assert np.array_equal(read_fields(path, first=3, count=2, spec=SPEC), expected[3:5])
        assert read_fields(path, first=len(expected), count=2, spec=SPEC).shape[0] == 0
    # The texture of the first video moves by one pixel, which is half a pixel after resizing.
    flow = dequantise(
        torch.from_numpy(read_fields(tmp_path / "cache" / "wave/a.mp4.mkv", first=0, count=9, spec=SPEC)), 3
    )
    assert flow[:, 0].median().item() == pytest.approx(0.5, abs=0.1)
    assert flow[:, 1].median().item() == pytest.approx(0, abs=0.1)


def test_the_summary_has_counts_and_quantisation_error(root, tmp_path):
    run(root, tmp_path / "cache")
    total = summary(tmp_path / "cache")
    assert (total["videos"], total["fields"]) == (4, 32)
    assert total["bytes"] == sum(len(content) for content in contents(tmp_path / "cache").values())
    # An error uniform over a step of 3 / 127 px has a root mean square of step / sqrt(12).
    assert 0 < total["rms_px"] < total["max_px"] <= 3 / 127 / 2 + 1e-5
    assert total["rms_px"] == pytest.approx(3 / 127 / 12**0.5, rel=0.3)
    assert 0 <= total["clipped"] < 1


def test_a_long_video_is_computed_in_chunks(root, tmp_path, monkeypatch):
    run(root, tmp_path / "complete")
    monkeypatch.setattr(flow_extract, "CHUNK_PIXELS", 3 * 24 * 32)
    run(root, tmp_path / "chunks")
    assert contents(tmp_path / "complete") == contents(tmp_path / "chunks")


def test_existing_files_are_not_computed_again(root, tmp_path):
    run(root, tmp_path / "cache", shard=(1, 2))
    assert list(contents(tmp_path / "cache")) == ["swim/a.mp4.mkv", "wave/a.mp4.mkv"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.mkv")}
    run(root, tmp_path / "cache", shard=(2, 2))
    assert len(contents(tmp_path / "cache")) == 4
    assert all(p.stat().st_mtime_ns == mtime for p, mtime in before.items())
    assert summary(tmp_path / "cache")["videos"] == 4


def test_a_cache_of_other_parameters_raises_an_error(root, tmp_path):
    run(root, tmp_path / "cache")
    with pytest.raises(CacheError, match=r"made with fps 25 instead of 12.5, bound 3 instead of 20.0: use its"):
        run(root, tmp_path / "cache", FlowSpec(fps=12.5, short_side=24))
    (tmp_path / "cache" / "manifest.json").write_text("[]")
    with pytest.raises(CacheError, match=r"manifest.json is not the manifest of a flow cache"):
        open_cache(tmp_path / "cache", SPEC)
    with pytest.raises(FileNotFoundError, match=r"no flow cache at .*absent: `d3d flow --out"):
        open_cache(tmp_path / "absent", SPEC)


def test_damaged_videos_are_skipped_and_recorded_or_raise_an_error(root, tmp_path):
    path = noise_video(root / "wave" / "b.mp4", "libx264")
    path.write_bytes(path.read_bytes()[:1000])
    moving_video(root / "swim" / "c.mp4", 1, frames=1)
    with pytest.raises(VideoError, match=r"(b.mp4 cannot be opened|c.mp4 has one frame only)"):
        run(root, tmp_path / "strict", damaged="raise")
    run(root, tmp_path / "cache")
    assert list(contents(tmp_path / "cache")) == ["swim/a.mp4.mkv", "wave/a.mp4.mkv"]
    reasons = refusals(tmp_path / "cache")
    assert set(reasons) == {"wave/b.mp4", "swim/c.mp4"}
    assert "b.mp4 cannot be opened as a video" in reasons["wave/b.mp4"]
    assert "c.mp4 has one frame only, at 25 frames per second" in reasons["swim/c.mp4"]
    # A repaired video is computed, and an incomplete line, as a kill leaves it, is ignored.
    moving_video(root / "wave" / "b.mp4", 1)
    with open(tmp_path / "cache" / "videos-1-of-1.jsonl", "a") as file:
        file.write('{"video": "wave/')
    run(root, tmp_path / "cache")
    assert set(refusals(tmp_path / "cache")) == {"swim/c.mp4"}
    assert summary(tmp_path / "cache")["videos"] == 3


def test_a_video_outside_root_raises_an_error(root, tmp_path):
    with pytest.raises(ValueError, match="does not lie below root"):
        fields_path(tmp_path / "cache", root / "wave", root / "swim" / "a.mp4")


def command(root, cache, *options):
    values = {"--dataset": "folder", "--root": root, "--out": cache, "--fps": 25, "--short-side": 24, "--bound": 3}
    return [sys.executable, "-m", "d3d", "flow", *(str(word) for pair in values.items() for word in pair), *options]


def run_command(root, cache, *options, **kwargs):
    command_line = command(root, cache, *options)
    return subprocess.run(command_line, capture_output=True, text=True, check=False, **kwargs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "3/2"], "shard must be i/n with i from 1 to n, such as 2/4, not '3/2'"),
        (["--bound", "0"], "bound must lie in [0.01, 8192], not 0.0"),
        (["--short-side", "8"], "short_side must lie in [16, 8192], not 8"),
        (["--root", "/no/such"], "root '/no/such' does not exist"),
    ],
)
def test_invalid_options_exit_with_a_message(root, tmp_path, options, message):
    with pytest.raises(SystemExit) as error:
        flow_extract.main(command(root, tmp_path / "cache", *options)[4:])
    assert message in str(error.value)


def test_the_command_reports_progress_and_totals(root, tmp_path, capsys):
    noise_video(root / "wave" / "bad.avi", "mpeg4").write_bytes(b"RIFF")
    flow_extract.main(command(root, tmp_path / "cache", "--devices", "cpu")[4:])
    out = capsys.readouterr().out
    assert "5 listed, 5 found, 0 missing" in out
    assert "5 videos, 0 of them already done; on cpu" in out
    assert "unreadable video skipped: " in out
    assert "bad.avi cannot be opened as a video" in out
    assert "5 of 5 videos" in out
    assert "fields/s, took" in out
    assert "4 videos, 32 fields" in out
    assert "px root mean square" in out


@pytest.mark.slow
def test_two_devices_divide_a_set(root, tmp_path):
    done = run_command(root, tmp_path / "two", "--devices", "cpu,cpu")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "two").glob("videos-*")} == {"videos-1-of-2.jsonl", "videos-2-of-2.jsonl"}
    run(root, tmp_path / "one")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["a file is open", "one is done", "three are done"])
def test_a_killed_run_resumes_and_leaves_no_damaged_file(tmp_path, moment):
    root, cache = tmp_path / "root", tmp_path / "cache"
    for i, name in enumerate(NAMES):
        moving_video(root / name, i % 3 + 1, frames=20)
    killed = subprocess.Popen(command(root, cache, "--workers", "1"), stdout=subprocess.PIPE, start_new_session=True)
    while killed.poll() is None:
        open_files, done = list(cache.rglob(".*.part")), list(cache.rglob("*.mkv"))
        if {"a file is open": open_files, "one is done": done, "three are done": len(done) >= 3}[moment]:
            break
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    before = contents(cache)
    resumed = run_command(root, cache)
    assert resumed.returncode == 0, resumed.stderr
    assert not list(cache.rglob(".*.part"))
    run(root, tmp_path / "complete")
    assert contents(cache) == contents(tmp_path / "complete")
    assert all(content == contents(cache)[name] for name, content in before.items())
    assert summary(cache)["videos"] == 4


@pytest.mark.slow
def test_a_full_disk_leaves_only_complete_files(root, tmp_path):
    """Simulated by a limit on the size of files, which some files exceed."""
    run(root, tmp_path / "complete")
    sizes = sorted(len(content) for content in contents(tmp_path / "complete").values())

    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0] + 200, sizes[0] + 200))

    done = run_command(root, tmp_path / "cache", preexec_fn=limit_file_size)
    assert done.returncode == 1
    assert "could not be written: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "cache").rglob(".*.part"))
    assert set(contents(tmp_path / "cache").items()) <= set(contents(tmp_path / "complete").items())
    assert run_command(root, tmp_path / "cache").returncode == 0
    assert contents(tmp_path / "cache") == contents(tmp_path / "complete")


def test_a_video_that_another_process_computes_is_skipped(root, tmp_path):
    import fcntl

    partial_path = Path(tmp_path, "cache", "wave", ".a.mp4.mkv.part")
    partial_path.parent.mkdir(parents=True)
    lines = []
    with open(partial_path, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        extract([root / NAMES[0]], root, tmp_path / "cache", SPEC, report=lines.append)
    assert "skipped, another process is computing it: wave/a.mp4" in lines
    assert partial_path.is_file()
    run(root, tmp_path / "cache")
    assert len(contents(tmp_path / "cache")) == 4
