"""Tests of decoding, on files that the tests encode, and on real clips if there are any."""

import os
import struct
from fractions import Fraction

import av
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from av.stream import Disposition
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from d3d.video import decode as videos
from d3d.video.container import VideoFile
from d3d.video.decode import VideoError, check, read_clip, read_frames
from d3d.video.times import in_seconds


def write_video(path, levels, *, codec="ffv1", fps=10, size=(48, 32), pixels="yuv420p"):
    """Writes a video whose frame i is uniformly grey at levels[i]."""
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


def test_a_clip_starts_at_start(ramp):
    assert np.allclose(levels(read_clip(ramp, frames=3, start=0.5, short_side=32, crop=32)), RAMP[5:8], atol=2)


def test_frames_are_taken_at_the_requested_rate(ramp):
    half = read_clip(ramp, frames=5, fps=5, short_side=32, crop=32)
    assert np.allclose(levels(half), RAMP[:10:2], atol=2)
    twice = read_clip(ramp, frames=6, fps=20, short_side=32, crop=32)
    assert np.allclose(levels(twice), np.repeat(RAMP[:3], 2), atol=2)


def test_a_short_video_is_looped(tmp_path):
    path = write_video(tmp_path / "short.mkv", [50, 100, 150])
    assert np.allclose(
        levels(read_clip(path, frames=7, short_side=32, crop=32)), [50, 100, 150, 50, 100, 150, 50], atol=2
    )


def test_the_crop_is_at_the_centre(tmp_path):
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
def test_common_codecs(tmp_path, codec, suffix):
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / f"clip.{suffix}", RAMP, codec=codec, pixels=pixels, size=(64, 64))
    assert np.allclose(levels(read_clip(path, frames=20, short_side=32, crop=32)), RAMP, atol=8)


def noise_video(path, codec, **options):
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(40):
            picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_files_that_are_no_video_are_named(tmp_path):
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
    with pytest.raises(VideoError, match=r"no frames at or after 60 s: it ends after 2.00 s"):
        read_clip(ramp, start=60)


def test_text_and_stills_are_no_videos(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("a line of text\n" * 200)
    still = tmp_path / "still.png"
    plt.imsave(still, np.zeros((40, 40, 3)))
    for path in (listing, still):
        with pytest.raises(VideoError, match=rf"{path.name} (holds no video|cannot be opened)"):
            read_clip(path)


def test_invalid_metadata_and_longer_audio_are_ignored(tmp_path):
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


def numbered(path, times, *, codec="libx264", pixels="yuv420p", size=(64, 48), tick=Fraction(1, 1000), **options):
    """Writes a video whose frame i, of grey level 4 * i, is on screen from times[i] seconds on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={str(k): str(v) for k, v in options.items()})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.time_base = stream.codec_context.time_base = tick
        for i, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 4 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(seconds / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames) -> list[int]:
    """Numbers of frames of a video by `numbered`."""
    return [round(float(frame.mean()) / 4) for frame in frames]


def decode_all(path):
    """All frames, decoded from the first on with PyAV alone."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """60 frames of H.264 with B frames as references and a key frame every 12 frames."""
    path = tmp_path_factory.mktemp("pyramid") / "pyramid.mp4"
    return numbered(path, np.arange(60) / 25, g=12, bf=3, **{"x264-params": "b-pyramid=normal:open-gop=0"})


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open.mkv", "libx264", {"g": 12, "bf": 3, "x264-params": "open-gop=1:b-adapt=0"}),
        ("closed.mp4", "libx264", {"g": 12, "bf": 3}),
        ("b.avi", "mpeg4", {"g": 12, "bf": 2}),
        ("b.ts", "libx264", {"g": 12, "bf": 3}),
        ("b.mpg", "mpeg2video", {"g": 12, "bf": 2}),
        ("vp9.webm", "libvpx-vp9", {"g": 12}),
        ("hevc.mp4", "libx265", {"x265-params": "keyint=12:bframes=3:log-level=none"}),
    ],
)
def test_every_start_gives_the_same_frames_as_decoding_from_the_first(tmp_path, name, codec, options):
    tick = Fraction(1, 25)
    path = numbered(tmp_path / name, np.arange(60) / 25, codec=codec, tick=tick, **options)
    expected = decode_all(path)
    assert len(expected) == 60
    for first in range(0, 58):
        frames = read_frames(path, frames=3, start=first / 25)
        assert len(frames) == min(3, 60 - first)
        assert all(np.array_equal(a, b) for a, b in zip(frames, expected[first:], strict=False)), first


def test_a_clip_starts_with_the_frame_on_screen(pyramid):
    assert numbers(read_frames(pyramid, frames=2, start=1.01)) == [25, 26]
    assert numbers(read_frames(pyramid, frames=2, start=1.0)) == [25, 26]
    assert numbers(read_frames(pyramid, frames=2, start=0.99)) == [24, 25]


def test_only_necessary_frames_are_decoded_and_converted(pyramid, monkeypatch):
    decoded, converted = [], []
    decode, convert = VideoFile._decode, VideoFile.to_image
    monkeypatch.setattr(VideoFile, "_decode", lambda video: (decoded.append(pair[0]) or pair for pair in decode(video)))
    monkeypatch.setattr(VideoFile, "to_image", lambda *args: converted.append(args) or convert(*args))
    assert numbers(read_frames(pyramid, frames=4, start=52 / 25)) == [52, 53, 54, 55]
    # From key frame 48 on, one more for the end of the last frame, and the file's first for its time.
    assert len(decoded) <= 1 + (55 - 48 + 1) + 1
    assert len(converted) == 4
    converted.clear()
    assert numbers(read_frames(pyramid, frames=5, fps=5)) == [0, 5, 10, 15, 20]
    assert len(converted) == 5


@given(
    gaps=st.lists(st.integers(10, 200), min_size=3, max_size=24),
    origin=st.integers(0, 3000),
    fps=st.sampled_from([5.0, 12.5, 25.0, 29.97, 60.0]),
    start=st.floats(0, 1),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_frames_of_variable_rate_are_taken_by_their_times(tmp_path, gaps, origin, fps, start):
    """At each requested time the last frame that has begun; `gaps` and `origin`, the first time, in milliseconds."""
    begins = np.concatenate([[0], np.cumsum(gaps)])[:-1] / 1000
    path = numbered(tmp_path / "vfr.mkv", begins + origin / 1000, codec="ffv1")
    assume(start < begins[-1])
    frames = numbers(read_frames(path, frames=40, fps=fps, start=start))
    times = start + np.arange(len(frames)) / fps
    # The file rounds to milliseconds, so a time at the beginning of a frame may show this frame or the one before.
    early, late = (np.searchsorted(begins, times + d, side="right") - 1 for d in (-2e-3, 2e-3))
    assert all(low <= number <= high for low, number, high in zip(np.maximum(early, 0), frames, late, strict=True))
    assert times[-1] + 1 / fps > begins[-1] or len(frames) == 40


@pytest.mark.parametrize(("rate", "fps"), [(Fraction(30), 25.0), (Fraction(30000, 1001), 25.0), (Fraction(24), 30.0)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_constant_rates_are_resampled_by_time(tmp_path, rate, fps, name):
    path = numbered(tmp_path / name, [i / rate for i in range(60)], codec="libx264", tick=Fraction(1, 90000))
    begins = [round(i / rate, 3) if name == "a.mkv" else i / rate for i in range(60)]
    rounding = Fraction(3, 4000) if name == "a.mkv" else 0
    expected = [max(k for k, t in enumerate(begins) if t <= i / Fraction(fps) + rounding) for i in range(40)]
    assert numbers(read_frames(path, frames=40, fps=fps)) == expected
    # A start on the grid of resampled frames gives the same frames.
    assert numbers(read_frames(path, frames=20, fps=fps, start=17 / fps)) == expected[17:37]


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_frames_are_rotated_as_the_metadata_says(tmp_path, turn):
    """As telephones write it: the stored image is rotated, and the matrix of the track says by how much."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:16, :24] = 255
    path = tmp_path / "phone.mp4"
    path.write_bytes(videos.encode(np.stack([picture] * 5), fps=25))
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    rows = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", *rows)
    path.write_bytes(content)
    frame = read_frames(path, frames=1)[0]
    # The matrix rotates clockwise.
    upright = np.rot90(picture, -turn // 90)
    assert frame.shape == upright.shape
    assert np.abs(frame.astype(int) - upright).mean() < 6
    assert check(path) == videos.VideoInfo(0.2, 25.0, *upright.shape[:2])


@pytest.mark.parametrize(
    ("codec", "pixels", "size", "name"),
    [
        ("libx264", "yuv422p10le", (64, 48), "ten.mp4"),
        ("libx264", "yuv444p", (67, 45), "odd.mp4"),
        ("mpeg4", "yuv420p", (67, 45), "odd.avi"),
        ("ffv1", "yuv420p16le", (66, 46), "deep.mkv"),
        ("prores_ks", "yuv422p10le", (64, 48), "prores.mov"),
        ("ffv1", "gray", (31, 47), "grey.mkv"),
        ("libx264", "yuvj420p", (64, 48), "full.mp4"),
        ("rawvideo", "rgb24", (67, 45), "raw.nut"),
        ("rawvideo", "bgr24", (66, 45), "bottom_up.avi"),
    ],
)
def test_pixel_formats_and_odd_sizes(tmp_path, codec, pixels, size, name):
    path = numbered(tmp_path / name, np.arange(10) / 25, codec=codec, pixels=pixels, size=size, tick=Fraction(1, 25))
    frames = read_frames(path, frames=10)
    assert [frame.shape for frame in frames] == [(size[1], size[0], 3)] * 10
    assert all(np.array_equal(a, b) for a, b in zip(frames, decode_all(path), strict=True))
    assert np.allclose([frame.mean() for frame in frames], 4 * np.arange(10), atol=3)
    assert read_clip(path, frames=4, short_side=32, crop=32).shape == (3, 4, 32, 32)


def test_real_clips_are_read_as_pyav_decodes_them(real_clips):
    for path in sorted(p for p in real_clips.iterdir() if p.suffix in (".avi", ".mp4")):
        expected, rate = decode_all(path), check(path).fps
        assert all(np.array_equal(a, b) for a, b in zip(videos.iter_frames(path), expected, strict=True))
        for first in range(0, len(expected), 17):
            frames, part = read_frames(path, frames=4, start=first / rate), expected[first : first + 4]
            assert all(np.array_equal(a, b) for a, b in zip(frames, part, strict=True)), path.name
        frames = read_frames(path, frames=64, fps=10, start=0.5)
        index = [int((0.5 + i / 10) * rate + 0.002) for i in range(len(frames))]
        assert all(np.array_equal(a, expected[i]) for a, i in zip(frames, index, strict=True)), path.name


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list threads")
def test_a_file_is_read_by_one_thread(pyramid):
    def threads() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    before = threads()
    frames = videos.iter_frames(pyramid)
    assert numbers([next(frames), next(frames)]) == [0, 1]
    assert threads() <= before


@given(st.integers(-(2**63), 2**63), st.fractions(0, 10, max_denominator=2**31))
def test_seconds_are_rounded_once(ticks, tick):
    assert in_seconds(ticks, tick) == float(ticks * tick)


def test_values_out_of_range_are_named(ramp):
    for arguments, message in [
        ({"fps": 0.0}, "fps must be positive, not 0.0"),
        ({"start": -1.0}, "start must not be negative, it is -1.0"),
        ({"frames": 0}, "frames must be at least 1, not 0"),
        ({"crop": 64, "short_side": 32}, r"crop \(64\) must not be larger than short_side \(32\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_clip(ramp, **arguments)


class TestDamage:
    @pytest.mark.parametrize(
        ("codec", "name"), [("mpeg4", "a.avi"), ("libx264", "a.mp4"), ("libvpx-vp9", "a.webm"), ("ffv1", "a.mkv")]
    )
    def test_a_file_that_is_cut_short_raises_an_error_at_its_end(self, tmp_path, codec, name):
        path = noise_video(tmp_path / name, codec)
        assert len(read_frames(path, frames=64)) == 40
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(VideoError, match=name):
            check(path)
        # Looping the remaining frames to 64 would be wrong.
        with pytest.raises(VideoError, match=name):
            read_clip(path, frames=64, short_side=32, crop=32)
        if name != "a.mp4":  # its index was at its end
            assert len(read_frames(path, frames=4)) == 4

    def test_a_fast_start_file_that_is_cut_short_raises_an_error(self, tmp_path):
        complete, path = noise_video(tmp_path / "complete.mp4", "libx264"), tmp_path / "a.mp4"
        with av.open(str(complete)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        assert check(path).seconds == pytest.approx(1.6)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(VideoError, match=r"a.mp4 is (truncated|damaged)"):
            check(path)
        assert len(read_frames(path, frames=4)) == 4

    @pytest.mark.parametrize(("codec", "name"), [("mpeg4", "a.avi"), ("libx264", "a.mp4"), ("ffv1", "a.mkv")])
    def test_overwritten_bytes_are_detected(self, tmp_path, codec, name):
        # FFV1 needs check sums to detect damage; the files of a flow cache have them.
        path = noise_video(tmp_path / name, codec, **{"slicecrc": "1", "g": "1"} if codec == "ffv1" else {})
        expected, content = decode_all(path), bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 2000] = bytes(2000)
        path.write_bytes(content)
        for start in (0.0, 0.4, 0.8, 1.2):
            try:
                frames = read_frames(path, frames=8, start=start)
            except VideoError as error:
                assert name in str(error)  # noqa: PT017
                continue
            first = round(start * 25)
            assert all(np.array_equal(a, b) for a, b in zip(frames, expected[first : first + 8], strict=True))
        with pytest.raises(VideoError, match=rf"{name} is damaged"):
            list(videos.iter_frames(path))

    def test_audio_alone_is_no_video_even_with_a_cover_picture(self, tmp_path):
        path = tmp_path / "song.m4a"
        with av.open(str(path), "w", format="mp4") as container:
            audio = container.add_stream("aac", rate=44100, layout="mono")
            for i in range(20):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                sound.rate, sound.pts = 44100, 1024 * i
                container.mux(audio.encode(sound))
            container.mux(audio.encode())
        with pytest.raises(VideoError, match=r"song.m4a holds no video"):
            read_clip(path)
        cover = tmp_path / "cover.mp4"
        with av.open(str(path)) as source, av.open(str(cover), "w") as target:
            sound = target.add_stream_from_template(source.streams.audio[0])
            picture = target.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            target.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            target.mux(picture.encode())
            for packet in source.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = sound
                    target.mux(packet)
        with pytest.raises(VideoError, match=r"cover.mp4 holds no video"):
            read_clip(cover)

    def test_a_video_without_a_frame_is_named(self, tmp_path):
        path = tmp_path / "none.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            container.start_encoding()
        for read in (read_clip, check):
            with pytest.raises(VideoError, match=r"none.mkv (has no frame that|cannot be opened|holds a video)"):
                read(path)

    def test_folders_pipes_and_loops_of_links_raise_an_error(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.mp4")
        (tmp_path / "folder.mp4").mkdir()
        (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
        (tmp_path / "file").touch()
        for name in ("pipe.mp4", "folder.mp4", "loop.mp4", "file/below.mp4"):
            with pytest.raises(VideoError, match=f"{name} (is not a regular file|cannot be opened)"):
                check(tmp_path / name)

    def test_a_playlist_opens_no_other_address(self, tmp_path):
        path = tmp_path / "list.mp4"
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
        with pytest.raises(VideoError, match=r"list.mp4"):
            check(path)
