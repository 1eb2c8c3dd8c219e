"""Clips from files the tests encode themselves, and from real ones where they are present."""

from fractions import Fraction

import av
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from d3d.videos import VideoError, read_clip


def write_video(path, levels, *, codec="ffv1", fps=10, size=(48, 32), pixels="yuv420p"):
    """A video whose frame i is uniformly grey at levels[i]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(clip: torch.Tensor) -> list[int]:
    return (clip.mean((0, 2, 3)) * 255).round().int().tolist()


RAMP = list(range(20, 220, 10))


@pytest.fixture
def ramp(tmp_path):
    return write_video(tmp_path / "ramp.mkv", RAMP)


def test_frames_come_in_order_and_unchanged(ramp):
    clip = read_clip(ramp, frames=6, short_side=32, crop=32)
    assert clip.shape == (3, 6, 32, 32)
    assert clip.dtype == torch.float32
    assert np.allclose(levels(clip), RAMP[:6], atol=2)


def test_a_clip_starts_where_asked(ramp):
    assert np.allclose(levels(read_clip(ramp, frames=3, start=0.5, short_side=32, crop=32)), RAMP[5:8], atol=2)


def test_frames_are_those_shown_at_the_asked_rate(ramp):
    half = read_clip(ramp, frames=5, fps=5, short_side=32, crop=32)
    assert np.allclose(levels(half), RAMP[:10:2], atol=2)
    twice = read_clip(ramp, frames=6, fps=20, short_side=32, crop=32)
    assert np.allclose(levels(twice), np.repeat(RAMP[:3], 2), atol=2)


def test_a_short_video_is_looped(tmp_path):
    path = write_video(tmp_path / "short.mkv", [50, 100, 150])
    assert np.allclose(
        levels(read_clip(path, frames=7, short_side=32, crop=32)), [50, 100, 150, 50, 100, 150, 50], atol=2
    )


def test_the_centre_is_kept(tmp_path):
    path = tmp_path / "sides.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "bgr0"
        picture = np.zeros((32, 96, 3), np.uint8)
        picture[:, 32:64] = 200
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    clip = read_clip(path, frames=1, short_side=32, crop=32)
    assert levels(clip) == [200]


@pytest.mark.parametrize(
    ("codec", "suffix"), [("mpeg4", "avi"), ("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mjpeg", "avi")]
)
def test_codecs_of_the_field(tmp_path, codec, suffix):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / f"clip.{suffix}", RAMP, codec=codec, pixels=pixels, size=(64, 64))
    assert np.allclose(levels(read_clip(path, frames=20, short_side=32, crop=32)), RAMP, atol=8)


def noise_video(path, codec):
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(40):
            picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("codec", "name"), [("mpeg4", "a.avi"), ("libx264", "a.mp4"), ("libvpx-vp9", "a.webm"), ("ffv1", "a.mkv")]
)
def test_a_cut_file_is_refused(tmp_path, codec, name):
    path = noise_video(tmp_path / name, codec)
    read_clip(path, frames=4, short_side=32, crop=32)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=name):
        read_clip(path, frames=4, short_side=32, crop=32)


def test_what_is_no_video_is_named(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a video")
    with pytest.raises(VideoError, match=r"notes.txt cannot be opened as a video"):
        read_clip(text)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    with pytest.raises(VideoError, match=r"empty.mp4"):
        read_clip(empty)
    with pytest.raises(VideoError, match=r"absent.mp4 cannot be opened"):
        read_clip(tmp_path / "absent.mp4")


def test_a_start_past_the_end_is_named(ramp):
    with pytest.raises(VideoError, match=r"no frame to decode from 60 s on"):
        read_clip(ramp, start=60)


def test_real_clips(real_clips):
    for path in sorted(p for p in real_clips.iterdir() if p.suffix in (".avi", ".mp4")):
        clip = read_clip(path, frames=16, short_side=64, crop=64)
        assert clip.shape == (3, 16, 64, 64)
        with av.open(str(path)) as container:
            frames = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(16), strict=False)]
        means = [f[:, (f.shape[1] - f.shape[0]) // 2 :][:, : f.shape[0]].mean() / 255 for f in frames]
        assert np.allclose(clip.mean((0, 2, 3)), means, atol=0.01)


def test_text_and_stills_are_no_videos(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("a line of text\n" * 200)
    still = tmp_path / "still.png"
    plt.imsave(still, np.zeros((40, 40, 3)))
    for path in (listing, still):
        with pytest.raises(VideoError, match=rf"{path.name} (holds no video|cannot be opened)"):
            read_clip(path)


def test_odd_metadata_and_longer_audio_do_no_harm(tmp_path):
    path = tmp_path / "talk.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for level in RAMP:
            picture = np.full((32, 48, 3), level, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        for i in range(40):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
            sound.rate, sound.pts = 8000, 1000 * i
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    with av.open(str(path)) as container:
        assert container.duration / av.time_base > 4.5
    assert np.allclose(levels(read_clip(path, frames=20, short_side=32, crop=32)), RAMP, atol=6)
    titled = tmp_path / "title.avi"
    with av.open(str(titled), "w") as container:
        container.metadata["title"] = "XXXX"
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        for level in RAMP:
            picture = np.full((32, 48, 3), level, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    titled.write_bytes(titled.read_bytes().replace(b"XXXX", b"\xe9t\xe9\xff"))
    assert read_clip(titled, frames=2, short_side=32, crop=32).shape == (3, 2, 32, 32)
