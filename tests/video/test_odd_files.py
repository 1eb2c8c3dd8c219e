"""Files of many containers, codecs and oddities: the same frames at the same times as PyAV and the ffmpeg command."""

import os
import shutil
import struct
import subprocess
from fractions import Fraction
from math import cos, radians, sin

import av
import numpy as np
import pytest
from av.stream import Disposition

from d3d.flow.cache import FlowSpec
from d3d.flow.extract import _iter_chunks
from d3d.video.container import VideoFile
from d3d.video.decode import VideoError, check, iter_frames, read_frames

RATE, COUNT, SIZE = 10, 20, (64, 48)
needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
QUIET = {"x265-params": "log-level=none"}
AUDIO = {"asf": "wmav2", "avi": "mp2", "mpegts": "mp2", "mpeg": "mp2", "webm": "libopus"}


def picture(i, size=SIZE):
    """A grey image whose level and the place of whose bar tell its number; no two of its eight orientations agree."""
    width, height = size
    image = np.full((height, width, 3), 10 + 3 * (i % 80), np.uint8)
    image[: height // 3, : width // 4] = 200
    image[height // 2, i % width :] = 0
    return image


def encode(path, times, codec, *, pixels="yuv420p", size=SIZE, rate=RATE, tick=None, sound=0.0, start=0, **options):
    """Writes a video whose frame i shows number `start` + i from times[i] seconds on; `sound` seconds of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = tick = tick or Fraction(1, rate)
        audio = None
        if sound:
            audio = container.add_stream(AUDIO.get(container.format.name, "aac"), rate=48000, layout="mono")
            audio.bit_rate = 64000
        for i, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(start + i, size), format="rgb24")
            frame.pts, frame.time_base = round(seconds / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            samples = audio.codec_context.frame_size
            kind = np.float32 if "flt" in audio.format.name else np.int16
            for i in range(int(sound * 48000 / samples)):
                silence = np.zeros((1, samples), kind)
                frame = av.AudioFrame.from_ndarray(silence, format=audio.format.name, layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, samples * i, Fraction(1, 48000)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def numbers(frames):
    """Numbers of pictures, from their level in a corner without bar."""
    return [round((float(frame[-6:, -6:].mean()) - 10) / 3) for frame in frames]


def decode_all(path, stream=0):
    with av.open(f"file:{path}") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=stream)]


def ffmpeg_times(path):
    """Seconds at which the ffmpeg command shows each frame, from the first on."""
    command = ["ffmpeg", "-v", "error", "-i", f"file:{path}", "-an", "-vsync", "passthrough", "-f", "framemd5", "-"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    tick = next(Fraction(line.split()[-1]) for line in lines if line.startswith("#tb 0"))
    ticks = [int(line.split(",")[2]) for line in lines if not line.startswith("#")]
    return [float((t - ticks[0]) * tick) for t in ticks]


def ffmpeg_frames(path, height, width):
    """Frames that the ffmpeg command shows, converted to RGB with exact rounding as our own are not."""
    command = ["ffmpeg", "-v", "error", "-i", f"file:{path}", "-an", "-vsync", "passthrough", "-pix_fmt", "rgb24"]
    raw = subprocess.run([*command, "-f", "rawvideo", "-"], check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def assert_right(path, *, times=None, stream=0, turn=lambda image: image):
    """All frames, their times, what `check` says and windows agree with PyAV, with ffmpeg and with one another.

    Args:
        path: A file.
        times: Seconds at which its frames are known to begin.
        stream: The video stream that is expected to be taken.
        turn: Lays out an image of the file as it is to be shown.
    """
    with VideoFile(path) as video:
        ends, tolerance = [end for _, end in video.frames_from(0.0)], video.tolerance
    begins = [0.0, *ends[:-1]]
    images, info = list(iter_frames(path)), check(path)
    expected = [turn(image) for image in decode_all(path, stream)]
    assert len(images) == len(ends) == len(expected)
    assert {image.shape for image in images} == {(info.height, info.width, 3)}
    same_size = [(a, b) for a, b in zip(images, expected, strict=True) if b.shape == images[0].shape]
    assert same_size
    assert all(np.array_equal(a, b) for a, b in same_size)
    assert info.seconds == pytest.approx(ends[-1], abs=1e-6)
    if times is not None:
        assert begins == pytest.approx([t - times[0] for t in times], abs=2 * tolerance + 1e-6)
    if shutil.which("ffmpeg"):
        assert begins == pytest.approx(ffmpeg_times(path), abs=2 * tolerance + 1e-6)
    for i in {0, 1, len(images) // 2, len(images) - 1} & set(range(len(images))):
        if ends[i] - begins[i] > 4 * tolerance:
            window = read_frames(path, frames=2, start=(begins[i] + ends[i]) / 2)
            assert len(window) == min(2, len(images) - i)
            assert all(np.array_equal(a, b) for a, b in zip(window, images[i : i + 2], strict=True)), i
    # What check calls the duration is filled with frames, at any rate.
    count = len(list(iter_frames(path, fps=7.0)))
    assert count == pytest.approx(info.seconds * 7, abs=1.01)
    return images


EVEN = [i / RATE for i in range(COUNT)]
ODDITIES = {
    "plain": (EVEN, {}),
    "b_frames": (EVEN, {"bf": 2, "g": 12}),
    "late": ([3 + t for t in EVEN], {}),
    "longer_audio": (EVEN, {"sound": 4.0}),
    "variable_rate": ([0.0, *(np.cumsum(np.tile([1, 2, 1, 4], 5)) / RATE)[: COUNT - 1]], {}),
    "one_frame": ([0.0], {}),
    "two_frames": (EVEN[:2], {}),
    "slow": ([0.0, 10.0, 20.0, 30.0], {}),
}
# Container, codec, options; whether the container stores when a frame is shown; oddities that it cannot have.
FILES = [
    ("mp4", "libx264", {}, True, ""),
    ("mp4", "mpeg4", {}, True, ""),
    ("mov", "mjpeg", {"pixels": "yuvj420p"}, True, "b_frames"),
    ("mkv", "libx264", {}, True, ""),
    ("webm", "libvpx", {}, True, "b_frames"),
    ("avi", "mpeg4", {}, False, ""),
    ("flv", "flv", {}, True, "b_frames"),
    ("wmv", "wmv2", {}, True, "b_frames"),
    ("ts", "libx264", {}, True, ""),
    ("mpg", "mpeg2video", {"rate": 25}, False, "slow"),
]
MORE_FILES = [
    ("mp4", "libx265", QUIET, True, "b_frames one_frame two_frames"),
    ("mp4", "libvpx-vp9", {}, True, "b_frames"),
    ("mov", "libx264", {}, True, ""),
    ("mov", "prores_ks", {"pixels": "yuv422p10le"}, True, "b_frames"),
    ("mkv", "ffv1", {}, True, "b_frames"),
    ("mkv", "mpeg2video", {"rate": 25}, False, ""),
    ("webm", "libvpx-vp9", {}, True, "b_frames"),
    ("avi", "mjpeg", {"pixels": "yuvj420p"}, False, "b_frames"),
    ("avi", "wmv2", {}, False, "b_frames"),
    ("avi", "libx264", {}, False, "slow"),
    ("flv", "libx264", {}, True, ""),
    ("wmv", "msmpeg4", {}, True, "b_frames"),
    ("asf", "libx264", {}, False, "two_frames slow"),
    ("ts", "libx265", QUIET, True, "b_frames"),
    ("ts", "mpeg2video", {"rate": 25}, False, "one_frame two_frames slow"),
    ("mpg", "mpeg1video", {"rate": 25}, False, "slow"),
    ("vob", "mpeg2video", {"rate": 25}, False, "longer_audio slow"),
    ("3gp", "h263", {"size": (176, 144)}, True, "b_frames"),
    ("3gp", "libx264", {}, True, ""),
    ("nut", "mpeg4", {}, True, ""),
    ("ogg", "libvpx", {}, False, "b_frames longer_audio"),
    ("rm", "rv10", {"size": (176, 144)}, False, "b_frames"),
    ("wtv", "mpeg2video", {"rate": 25}, False, "longer_audio"),
]
# Files without sound and times of their own.
RAW_FILES = [
    ("h264", "libx264", {}),
    ("hevc", "libx265", QUIET),
    ("m4v", "mpeg4", {}),
    ("m1v", "mpeg1video", {"rate": 25}),
    ("m2v", "mpeg2video", {"rate": 25}),
    ("mjpeg", "mjpeg", {"pixels": "yuvj420p"}),
    ("ivf", "libvpx", {}),
    ("gif", "gif", {"pixels": "rgb8"}),
    ("swf", "flv", {}),
    ("y4m", "wrapped_avframe", {}),
    ("dv", "dvvideo", {"size": (720, 576), "rate": 25}),
]


def cases():
    for files, marks in ((FILES, ()), (MORE_FILES, pytest.mark.slow)):
        for suffix, codec, options, stored, impossible in files:
            for oddity in set(ODDITIES) - set(impossible.split()):
                label = f"{oddity}-{codec}.{suffix}"
                yield pytest.param(suffix, codec, options, stored, oddity, id=label, marks=marks)


@pytest.mark.parametrize(("suffix", "codec", "options", "stored", "oddity"), sorted(cases(), key=lambda case: case.id))
def test_frames_and_times_are_those_of_pyav_and_ffmpeg(tmp_path, suffix, codec, options, stored, oddity):
    times, more = ODDITIES[oddity]
    path = encode(tmp_path / f"a.{suffix}", times, codec, **options, **more)
    if "rate" in options:
        times = None
    assert_right(path, times=times if stored else None)


@pytest.mark.parametrize(("suffix", "codec", "options"), RAW_FILES, ids=[f"{c}.{s}" for s, c, _ in RAW_FILES])
def test_raw_streams_are_read(tmp_path, suffix, codec, options):
    images = assert_right(encode(tmp_path / f"a.{suffix}", EVEN, codec, **options))
    assert len(images) == COUNT


@pytest.mark.parametrize(("suffix", "codec"), [("m1v", "mpeg1video"), ("h264", "libx264"), ("asf", "libx264")])
def test_times_that_ffmpeg_guesses_are_in_order(tmp_path, suffix, codec):
    path = encode(tmp_path / f"a.{suffix}", EVEN, codec, rate=25, bf=2, g=12)
    assert_right(path)


@pytest.mark.parametrize(("suffix", "codec"), [("flv", "flv"), ("mp4", "libx264"), ("mkv", "libx264")])
def test_a_truncated_file_with_sound_is_refused(tmp_path, suffix, codec):
    """The sound is longer, but ends too early as well."""
    path = encode(tmp_path / f"a.{suffix}", [i / RATE for i in range(100)], codec, sound=12.0)
    assert check(path).seconds == pytest.approx(10, abs=0.11)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    for read in (check, lambda path: list(iter_frames(path))):
        with pytest.raises(VideoError, match=rf"a.{suffix} (is truncated|is damaged|cannot be opened)"):
            read(path)


def boxes(content, start=0, end=None, parents=()):
    """Yields place, size, kind and the places of the parents of the boxes of an MP4 file, down to the edit list."""
    end = len(content) if end is None else end
    while start < end:
        size, kind = struct.unpack_from(">I4s", content, start)
        yield start, size, kind, parents
        if kind in (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl"):
            yield from boxes(content, start + 8, start + size, (*parents, start))
        start += size


def with_edits(path, edits):
    """Replaces the edit list of an MP4 file whose index comes first by others, each of milliseconds and first tick."""
    content = path.read_bytes()
    place, size, _, parents = next(box for box in boxes(content) if box[2] == b"elst")
    (first,) = struct.unpack_from(">i", content, place + 20)  # of the edit that shows all
    edits = [(duration, media if media < 0 else first + media) for duration, media in edits]
    entries = b"".join(struct.pack(">IiI", duration, media, 1 << 16) for duration, media in edits)
    edited = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    growth = len(edited) - size
    changed = bytearray(content[:place] + edited + content[place + size :])
    for parent in parents:
        struct.pack_into(">I", changed, parent, struct.unpack_from(">I", changed, parent)[0] + growth)
    offsets = next(box[0] for box in boxes(changed) if box[2] == b"stco")
    for i in range(struct.unpack_from(">I", changed, offsets + 12)[0]):
        struct.pack_into(
            ">I", changed, offsets + 16 + 4 * i, struct.unpack_from(">I", changed, offsets + 16 + 4 * i)[0] + growth
        )
    path.write_bytes(changed)


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([(2000, 15_000)], [*range(15, 65)]),  # not from a key frame
        ([(1000, 0), (1000, 50_000)], [*range(25), *range(50, 75)]),
        ([(1500, -1), (3000, 0)], [*range(75)]),  # 1.5 s of nothing first
        ([(0, 0), (2000, 25_000)], [*range(25, 75)]),
        ([(1000, 25_000)] * 2, [*range(25, 50)] * 2),
        ([(800, 0), (800, 40_000), (800, 20_000)], None),  # FFmpeg leaves gaps
        ([(1160, 0)], [*range(29)]),  # ends on a B frame
    ],
    ids=["middle", "two", "empty", "zero", "repeated", "three", "b_frame"],
)
def test_only_what_an_edit_list_shows_is_counted(tmp_path, edits, expected):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart", "video_track_timescale": "25000"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "25", "bf": "3", "qp": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for i in range(80):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode())
    with_edits(path, edits)
    images = assert_right(path)
    if expected:
        assert numbers(images) == expected
        assert check(path).seconds == pytest.approx(len(expected) / 25, abs=1e-3)


def copy_from(source, path, seconds):
    """Copies packets from the key frame before `seconds` on, without encoding, as `ffmpeg -ss … -c copy` does."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        target = new.add_stream_from_template(stream)
        old.seek(int(seconds / stream.time_base), stream=stream)
        for packet in old.demux(stream):
            if packet.dts is not None:
                shift = int(seconds / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
                new.mux(packet)
    return path


def test_a_clip_cut_by_stream_copy_has_the_seconds_that_it_shows(tmp_path):
    source = encode(
        tmp_path / "film.mp4", [i / RATE for i in range(80)], "libx264", g=60, **{"x264-params": "scenecut=0"}
    )
    path = copy_from(source, tmp_path / "clip.mp4", 5.0)
    with av.open(str(path)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) >= 45
    images = assert_right(path)
    assert numbers(images)[-30:] == list(range(50, 80))
    assert check(path).seconds == pytest.approx(len(images) / RATE) == pytest.approx(3, abs=0.21)


def join(path, parts):
    """Muxes the packets of several files into one stream, one file after the other."""
    with av.open(str(path), "w") as new:
        target, end = None, Fraction(0)
        for part in parts:
            with av.open(str(part)) as old:
                stream = old.streams.video[0]
                target = target or new.add_stream_from_template(stream)
                for packet in old.demux(stream):
                    if packet.dts is not None:
                        shift = round(end / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                        last = (packet.pts + packet.duration) * packet.time_base
                        new.mux(packet)
                end = last
    return path


@pytest.mark.parametrize(("suffix", "codec"), [("webm", "libvpx"), ("webm", "libvpx-vp9")])
@pytest.mark.parametrize("sizes", [((64, 48), (32, 24), (96, 64)), ((48, 64), (64, 48))])
def test_frames_of_another_size_are_scaled_to_the_first(tmp_path, suffix, codec, sizes):
    parts = [
        encode(tmp_path / f"{i}.{suffix}", EVEN[:10], codec, size=size, start=10 * i) for i, size in enumerate(sizes)
    ]
    path = join(tmp_path / f"joined.{suffix}", parts)
    assert len({image.shape for image in decode_all(path)}) == len(sizes)
    images = assert_right(path)
    info = check(path)
    assert (info.width, info.height) == sizes[0]
    assert [image.shape for image in images] == [(info.height, info.width, 3)] * 10 * len(sizes)
    assert numbers(images) == pytest.approx(list(range(len(images))), abs=1)
    (after,) = read_frames(path, frames=1, start=1.45)
    assert np.array_equal(after, images[14])
    assert {image.shape for image in iter_frames(path, pixel_format="gray")} == {(info.height, info.width)}
    for chunk in _iter_chunks(path, FlowSpec(fps=RATE, short_side=16)):
        assert len(chunk) > 20 or len(sizes) == 2
    if shutil.which("ffmpeg"):
        theirs = ffmpeg_frames(path, info.height, info.width)
        assert np.abs(np.stack(images).astype(int) - theirs).mean((1, 2, 3)).max() < 1.5


def turned(path, matrix):
    """Writes the display matrix (a, b, c, d) of an MP4 file: x maps to (a, b), y to (c, d)."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (round(value * 65536) for value in matrix)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def rotation(degrees):
    angle = radians(degrees)
    return cos(angle), sin(angle), -sin(angle), cos(angle)


ORIENTATIONS = {
    "upright": ((1, 0, 0, 1), lambda x: x),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "inverted": ((1, 0, 0, -1), lambda x: x[::-1]),
    "half_turn": ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "clockwise": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "counterclockwise": ((0, -1, 1, 0), np.rot90),
    "transverse": ((0, -1, -1, 0), lambda x: np.rot90(x.swapaxes(0, 1), 2)),
    "almost_clockwise": (rotation(89.8), lambda x: np.rot90(x, -1)),
    "more_than_counterclockwise": (rotation(269.8), np.rot90),
    "almost_upright": (rotation(-0.2), lambda x: x),
    "scaled": ((-2, 0, 0, 2), lambda x: x[:, ::-1]),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_frames_are_shown_as_the_display_matrix_says(tmp_path, name):
    path = encode(tmp_path / "a.mp4", EVEN[:3], "libx264", qp=0, pixels="yuv444p")
    matrix, turn = ORIENTATIONS[name]
    turned(path, matrix)
    images = assert_right(path, turn=turn)
    if shutil.which("ffmpeg"):
        theirs = ffmpeg_frames(path, *images[0].shape[:2])
        assert np.abs(np.stack(images).astype(int) - theirs).max() <= 3


@pytest.mark.parametrize("matrix", [rotation(5), rotation(-45), rotation(130), (0, 0, 0, 0), (1, 0, 0, 0)])
def test_other_angles_are_left_as_they_are(tmp_path, matrix):
    path = encode(tmp_path / "a.mp4", EVEN[:3], "libx264", qp=0)
    turned(path, matrix)
    assert_right(path)


def encode_streams(path, streams):
    """Writes several video streams: codec, size, pixel format, number of frames and disposition of each."""
    with av.open(str(path), "w") as container:
        opened = []
        for codec, size, pixels, count, disposition in streams:
            stream = container.add_stream(codec, rate=RATE)
            stream.width, stream.height, stream.pix_fmt, stream.disposition = *size, pixels, disposition
            opened.append((stream, size, count))
        for i in range(COUNT):
            for stream, size, count in opened:
                if i < count:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, size), format="rgb24")))
        for stream, _, _ in opened:
            container.mux(stream.encode())
    return path


FILM, SMALL = ("libx264", SIZE, "yuv420p", COUNT), ("libx264", (32, 32), "yuv420p", COUNT)
LARGE = ("libx264", (96, 80), "yuv420p", COUNT)
COVER = ("mjpeg", (96, 96), "yuvj420p", 1)
NO_FLAG, DEFAULT = Disposition(0), Disposition.default


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize(
    ("streams", "taken"),
    [
        ([(*LARGE, NO_FLAG), (*FILM, DEFAULT)], 1),
        ([(*FILM, DEFAULT), (*LARGE, NO_FLAG)], 0),
        ([(*SMALL, DEFAULT), (*FILM, DEFAULT)], 1),
        ([(*FILM, DEFAULT), (*FILM, DEFAULT)], 0),
    ],
)
def test_the_default_stream_is_taken_and_of_several_the_largest(tmp_path, suffix, streams, taken):
    path = encode_streams(tmp_path / f"a.{suffix}", streams)
    assert_right(path, stream=taken)
    width, height = streams[taken][1]
    assert (check(path).width, check(path).height) == (width, height)
    if shutil.which("ffmpeg"):
        assert len(ffmpeg_frames(path, height, width)) == COUNT


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov", "avi"])
@pytest.mark.parametrize("codec", ["mjpeg", "png"])
@pytest.mark.parametrize("disposition", [NO_FLAG, DEFAULT, Disposition.attached_pic])
@pytest.mark.parametrize("first", [True, False])
def test_a_cover_picture_is_never_taken(tmp_path, suffix, codec, disposition, first):
    if (codec, suffix) == ("png", "mkv"):
        pytest.skip("Matroska has no PNG stream")
    film = ("mpeg4", *FILM[1:], DEFAULT)
    cover = (codec, (96, 96), "rgb24" if codec == "png" else "yuvj420p", 1, disposition)
    path = encode_streams(tmp_path / f"a.{suffix}", [cover, film] if first else [film, cover])
    assert len(read_frames(path, frames=100)) == COUNT
    assert (check(path).width, check(path).height) == SIZE


def test_a_film_of_pictures_is_no_cover(tmp_path):
    film = ("mjpeg", (96, 96), "yuvj420p", COUNT, DEFAULT)
    assert_right(encode_streams(tmp_path / "a.mkv", [(*SMALL, NO_FLAG), film]), stream=1)


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "libx264"), ("ts", "mpeg2video"), ("mpg", "mpeg2video")])
def test_times_that_restart_continue(tmp_path, suffix, codec):
    """Recordings that were joined byte by byte."""
    times = [i / 25 for i in range(COUNT)]
    parts = [encode(tmp_path / f"{i}.{suffix}", times, codec, rate=25, start=20 * i) for i in range(3)]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    images = assert_right(path)
    assert len(images) >= 3 * COUNT - 2
    assert check(path).seconds == pytest.approx(len(images) / 25, abs=0.2)


def test_matroska_files_joined_byte_by_byte_are_one_film(tmp_path):
    """Unlike the ffmpeg command, which leaves the second at the times of the first."""
    parts = [encode(tmp_path / f"{i}.mkv", EVEN, "libx264", start=20 * i, bf=0) for i in range(2)]
    path = tmp_path / "joined.mkv"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    images = list(iter_frames(path))
    assert numbers(images) == list(range(40))
    assert check(path).seconds == pytest.approx(4)
    assert numbers(iter_frames(path, fps=5)) == list(range(0, 40, 2))
    for first in (15, 25, 35):
        assert numbers(read_frames(path, frames=2, start=first / RATE)) == [first, first + 1]


@pytest.mark.parametrize(
    ("suffix", "codec"), [("wmv", "wmv2"), ("mkv", "libx264"), ("mp4", "mpeg4"), ("webm", "libvpx")]
)
def test_films_of_few_slow_frames_are_complete(tmp_path, suffix, codec):
    for rate, times in ((Fraction(1, 10), [0.0, 10.0, 20.0, 30.0]), (RATE, [0.0, 10.0]), (RATE, [0.0, 0.1, 0.2, 60.0])):
        assert_right(encode(tmp_path / f"a.{suffix}", times, codec, rate=rate, tick=Fraction(1, 10)), times=times)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_broadcast_that_starts_in_the_middle_is_read_from_its_first_whole_frame(tmp_path, codec):
    path = encode(tmp_path / "a.ts", [i / 25 for i in range(60)], codec, rate=25, g=12, bf=2)
    content = path.read_bytes()
    path.write_bytes(content[188 * (len(content) // 188 // 4) :])
    assert 30 < len(assert_right(path)) < 60


def write_packets(path, codec, ticks, *, empty_after=()):
    """Writes one frame per entry of `ticks`, tenths of seconds; after some of them a packet without data."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for i, tick in enumerate(ticks):
            packets = stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24"))
            if i in empty_after:
                packets.append(av.Packet(b""))
            for k, packet in enumerate(packets):
                packet.stream, packet.time_base = stream, Fraction(1, RATE)
                packet.pts = packet.dts = tick + k
                container.mux(packet)
    return path


def test_frames_at_the_same_time_are_all_read(tmp_path):
    path = write_packets(tmp_path / "a.mkv", "ffv1", [0, 0, 1, 2, 2, 3])
    assert numbers(assert_right(path)) == list(range(6))


def test_packets_without_data_do_not_end_a_film(tmp_path):
    path = write_packets(tmp_path / "a.nut", "mpeg4", [0, 2, 4, 6, 8], empty_after=(1, 2))
    with av.open(str(path)) as container:
        assert sum(packet.size == 0 and packet.pts is not None for packet in container.demux()) == 2
    images = list(iter_frames(path))
    assert len(images) == 5
    assert check(path).seconds == pytest.approx(0.9)


def test_a_duration_that_ffmpeg_estimates_from_the_bit_rate_is_not_believed(tmp_path):
    path = encode(tmp_path / "a.m1v", EVEN, "mpeg1video", rate=25, b=4000, maxrate=4000, bufsize=4000)
    with av.open(str(path)) as container:
        assert container.duration > 3 * av.time_base
    assert_right(path)


def test_a_duration_tag_without_a_duration_is_ignored(tmp_path):
    path = encode(tmp_path / "a.mkv", EVEN, "ffv1")
    content = path.read_bytes()
    assert content.count(b"00:00:02.000000000") == 1
    path.write_bytes(content.replace(b"00:00:02.000000000", b"two seconds or so "))
    assert_right(path)


def test_a_rate_that_is_a_time_base_is_none(tmp_path):
    path = encode(tmp_path / "a.dv", EVEN, "dvvideo", size=(720, 576), rate=25)
    assert check(path).fps == 25


@pytest.mark.parametrize(("suffix", "jumps"), [("ts", True), ("mkv", False), ("mp4", False)])
def test_a_long_gap_is_a_jump_in_a_broadcast_and_a_still_image_elsewhere(tmp_path, suffix, jumps):
    times = [*EVEN, *(500 + t for t in EVEN)]
    path = encode(tmp_path / f"a.{suffix}", times, "libx264", bf=0)
    images = assert_right(path, times=None if jumps else times)
    assert len(images) == 2 * COUNT
    assert check(path).seconds == pytest.approx(4 if jumps else 502, abs=0.11)


NAMES = [
    b"a:b.mkv",
    b"file:c.mkv",
    b"http:d.mkv",
    b"-e.mkv",
    b"p%03d.mkv",
    b"new\nline.mkv",
    b"\xff\xfe.mkv",
    b" blank .mkv",
    b"concat:a|b.mkv",
    b"..f.mkv",
    b"\xe2\x98\x83 ?#&.mkv",
    b'"quoted",.mkv',
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_may_be_any_bytes(tmp_path, monkeypatch, name):
    encode(tmp_path / "plain.mkv", EVEN, "ffv1")
    path = os.fsdecode(name)
    (tmp_path / path).write_bytes((tmp_path / "plain.mkv").read_bytes())
    monkeypatch.chdir(tmp_path)
    for address in (path, tmp_path / path):
        assert check(address).seconds == pytest.approx(2)
        assert len(read_frames(address, frames=100)) == COUNT
    (tmp_path / path).write_bytes(b"no video")
    with pytest.raises(VideoError) as caught:
        check(path)
    assert str(caught.value).isprintable()
    assert str(caught.value).encode()
