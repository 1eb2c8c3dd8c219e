"""Videos inside of shards: read as loose ones are, found by any name, and damage that is named and never shown."""

import io
import json
import os
import tarfile
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3d.files import fingerprint as fingerprint_of_loose
from d3d.video import shards
from d3d.video.annotations import read
from d3d.video.decode import VideoError, check, encode, iter_frames, read_frames
from d3d.video.shard_sets import damaged_videos, read_shards
from d3d.video.shards import Entry, ShardError, StoredFile, find, fingerprint, index_content, read_index
from tests.video.test_odd_files import EVEN, FILES, MORE_FILES, ODDITIES, RAW_FILES
from tests.video.test_odd_files import encode as encode_odd

SHARD = "train-000000.tar"
FACTS = {"seconds": 0.24, "fps": 25.0, "height": 32, "width": 48}


def pack(folder, videos, flows=(), *, block=shards.BLOCK):
    """Writes files as a shard by Python's tarfile, with its index and manifest; returns the path of the tar."""
    folder.mkdir(parents=True, exist_ok=True)
    flows, entries, places = dict(flows), [], {}
    with tarfile.open(folder / SHARD, "w") as tar:
        for number, (name, content) in enumerate(videos.items()):
            for kind, data in {"mp4": content, "flow.mkv": flows.get(name)}.items():
                if data is not None:
                    member = tarfile.TarInfo(f"{number:09d}.{kind}")
                    member.size = len(data)
                    sums = "".join(f"{crc32(data[i : i + block]):08x}" for i in range(0, len(data), block))
                    places[name, kind] = StoredFile("", tar.offset + tarfile.BLOCKSIZE, len(data), sums)
                    tar.addfile(member, io.BytesIO(data))
            label = number % 2
            clip = {"row": number, "class": f"class{label}", "label": label, "split": "train", "group": name}
            clip |= {"start": 0.0, "end": None}
            entries.append(Entry(name, [clip], FACTS, places[name, "mp4"], places.get((name, "flow.mkv"))))
    content = index_content(SHARD, os.path.getsize(folder / SHARD), entries)
    (folder / SHARD).with_suffix(".jsonl").write_bytes(content)
    manifest = {"schema": 1, "shards": [SHARD], "classes": ["class0", "class1"], "listed": len(videos), "missing": []}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"flow": None, "source": ""}))
    return folder / SHARD


def film(seed, *, frames=6):
    return encode(np.random.default_rng(seed).integers(0, 255, (frames, 32, 48, 3), dtype=np.uint8), fps=25)


FILMS = {f"wave/{i}.mp4": film(i) for i in range(3)}


def assert_read_alike(path, folder):
    """A file gives the same frames, facts, fingerprint and windows loose and inside of a shard between two others."""
    name = f"of any/{path.name}"
    shard = pack(folder, {"a": FILMS["wave/0.mp4"], name: path.read_bytes(), "z": FILMS["wave/1.mp4"]})
    inside = f"{shard}/{name}"
    info = check(path)
    assert check(inside) == info
    assert fingerprint(inside) == fingerprint(path) == fingerprint_of_loose(path)
    for options in ({}, {"fps": 7.0}, {"start": info.seconds / 2}, {"start": info.seconds * 0.9, "fps": 50.0}):
        loose, stored = list(iter_frames(path, **options)), list(iter_frames(inside, **options))
        assert len(loose) == len(stored)
        assert all(np.array_equal(a, b) for a, b in zip(loose, stored, strict=True))


def odd_files():
    for files, marks in ((FILES[::3], ()), ((*FILES, *MORE_FILES), pytest.mark.slow)):
        for suffix, codec, options, _, impossible in files:
            for oddity in ["plain"] if not marks else sorted(set(ODDITIES) - set(impossible.split())):
                times, more = ODDITIES[oddity]
                label = f"{oddity}-{codec}.{suffix}{'-more' if marks else ''}"
                yield pytest.param(suffix, codec, options | more, times, id=label, marks=marks)
    for suffix, codec, options in RAW_FILES:
        yield pytest.param(suffix, codec, options, EVEN, id=f"raw-{codec}.{suffix}", marks=pytest.mark.slow)


@pytest.mark.parametrize(("suffix", "codec", "options", "times"), list(odd_files()))
def test_a_video_is_read_alike_loose_and_inside_of_a_shard(tmp_path, suffix, codec, options, times):
    assert_read_alike(encode_odd(tmp_path / f"a.{suffix}", times, codec, **options), tmp_path / "shards")


def test_a_video_of_many_blocks_is_read_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 700)
    path = tmp_path / "a.mp4"
    path.write_bytes(film(9, frames=30))
    shard = pack(tmp_path / "shards", {"a.mp4": path.read_bytes()}, block=700)
    assert len(read_index(shard)[1][0].video.checksums) > 8 * shards.KEPT_BLOCKS
    assert check(f"{shard}/a.mp4") == check(path)
    for start in (0.0, 0.5, 1.1):
        pairs = zip(iter_frames(path, start=start), iter_frames(f"{shard}/a.mp4", start=start), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    content, stored = path.read_bytes(), find(f"{shard}/a.mp4")
    for first, length in ((0, 10), (699, 2), (650, 1500), (len(content) - 3, 99), (len(content), 5), (0, len(content))):
        assert stored.read(first, length) == content[first : first + length]


NAME = st.lists(
    st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=30)
    | st.sampled_from(["a.tar", "b.tar.gz", "\udcff\udcfe.mp4", '", "video": [0, 1, "', "flow.mkv", "-", "C:\\x"]),
    min_size=1,
    max_size=4,
).map("/".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(NAME.filter(lambda name: not {".", ".."} & set(name.split("/"))), min_size=1, max_size=5, unique=True))
def test_a_file_is_found_by_exactly_its_name_whatever_that_is(tmp_path_factory, names):
    # On a disk a file is no folder as well.
    names = [name for name in names if not any(name.startswith(f"{other}/") for other in names)]
    videos = {name: f"video {i}".encode() for i, name in enumerate(names)}
    flows = {name: f"flow {i}".encode() for i, name in enumerate(names[::2])}
    shard = pack(tmp_path_factory.mktemp("in a.tar") / "names", videos, flows)
    for name in names:
        assert find(f"{shard}/{name}").read(0, 99) == videos[name]
        if name in flows:
            assert find(shards.flow_path(f"{shard}/{name}")).read(0, 99) == flows[name]
        with pytest.raises(OSError, match="does not exist in its shard"):
            find(f"{shard}/{name}x")
    listing = read_shards(shard.parent)
    assert listing.table["path"].to_list() == [f"{shard}/{name}" for name in names]
    with tarfile.open(shard) as tar:
        assert [tar.extractfile(member).read() for member in tar if ".flow" not in member.name] == list(videos.values())


def test_a_folder_named_like_a_shard_holds_loose_files(tmp_path):
    (tmp_path / "b.tar").mkdir()
    (tmp_path / "b.tar" / "a.mp4").write_bytes(FILMS["wave/0.mp4"])
    assert find(tmp_path / "b.tar" / "a.mp4") is None
    assert len(read_frames(tmp_path / "b.tar" / "a.mp4")) == 6


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_costs_the_damaged_videos_and_shows_none_of_them(tmp_path_factory, data):
    """A changed bit, or an end that is cut off, anywhere in the tar: a video is right or refused by its name."""
    shard = pack(tmp_path_factory.mktemp("damage"), FILMS)
    content, (_, entries) = shard.read_bytes(), read_index(shard)
    at = data.draw(st.integers(0, len(content) - 1))
    cut = data.draw(st.booleans())
    shard.write_bytes(content[:at] if cut else content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    reasons = dict(damaged_videos(shard.parent))
    facts_of = read_shards(shard.parent).table.set_index("path")["seconds"]
    for name, entry in zip(FILMS, entries, strict=True):
        first, end = entry.video.offset, entry.video.offset + entry.video.size
        damaged = at < end if cut else first <= at < end
        path = f"{shard}/{name}"
        assert bool(reasons[path]) == damaged
        assert np.isnan(facts_of[path]) == (cut and damaged)
        if not damaged:
            assert len(read_frames(path)) == 6
            continue
        with pytest.raises(VideoError) as caught:
            read_frames(path)
        assert str(caught.value).startswith(f"{path} is damaged: ")
        assert ("is cut off after" if cut else "are not what was written") in reasons[path]
        with pytest.raises(VideoError, match="is damaged"):
            check(path)


@pytest.mark.parametrize("kind", ["libx264.mp4", "ffv1.mkv", "mpeg4.avi", "libx264.ts"])
def test_frames_before_a_damaged_block_are_right_and_none_is_shown_after_it(tmp_path, monkeypatch, kind):
    """FFmpeg takes some errors for the end of a file, which a container without duration cannot tell."""
    monkeypatch.setattr(shards, "BLOCK", 512)
    path = encode_odd(tmp_path / kind, EVEN, kind.split(".")[0])
    content, expected = path.read_bytes(), list(iter_frames(path))
    shard = pack(tmp_path / "shards", {kind: content}, block=512)
    whole, stored, shown = shard.read_bytes(), find(f"{shard}/{kind}"), []
    for at in np.linspace(0, len(content) - 1, 25).astype(int) + stored.offset:
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        frames = []
        with pytest.raises(VideoError, match=rf"/{kind} is damaged: bytes \d+ to \d+ of .* are not what was written"):
            frames.extend(iter_frames(f"{shard}/{kind}"))
        assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=False))
        shown.append(len(frames))
    if kind == "ffv1.mkv":
        # A window of a flow file before the damage is read, although its index, behind the damage, is lost.
        assert 5 < max(shown) < len(expected)
        assert len(read_frames(f"{shard}/{kind}", frames=2)) == 2


@pytest.mark.parametrize("change", ["bit", "cut", "empty", "gone", "swapped", "folder", "huge", "outside"])
def test_an_index_that_is_not_what_was_written_is_refused(tmp_path, change):
    shard = pack(tmp_path / "shards", FILMS)
    other = pack(tmp_path / "other", dict(list(FILMS.items())[:2]))
    index = shard.with_suffix(".jsonl")
    content = index.read_bytes()
    _, (entry, *_) = read_index(shard)
    message = "is not the index that was written with its shard: delete it"
    if change == "bit":
        at = content.index(b'"label": 1') + 9
        index.write_bytes(content[:at] + b"0" + content[at + 1 :])
    elif change in ("cut", "empty"):
        index.write_bytes(content[:-1] if change == "cut" else b"")
    elif change == "gone":
        index.unlink()
        message = r"train-000000.jsonl is missing: copy what is missing, or run `d3d data … --shards` again"
    elif change == "swapped":
        # A folder whose files come from two sets.
        other.replace(shard)
        assert all(reason for _, reason in list(damaged_videos(tmp_path / "shards"))[2:])
        other.with_suffix(".jsonl").write_bytes(content.replace(SHARD.encode(), b"train-000001.tar"))
        other.with_suffix(".jsonl").replace(index)
    elif change == "folder":
        index.unlink()
        index.mkdir()
    elif change == "huge":
        wrong = entry._replace(video=entry.video._replace(size=2**70))
        index.write_bytes(index_content(SHARD, 1, [wrong]))
    elif change == "outside":
        index.write_bytes(index_content(SHARD, 1, [entry._replace(name="../../etc/passwd")]))
    with pytest.raises((ShardError, FileNotFoundError), match=message):
        read_shards(tmp_path / "shards")
    if change not in ("bit", "cut", "swapped"):
        with pytest.raises(VideoError, match=r"is not the index|does not exist in its shard"):
            read_frames(f"{shard}/wave/0.mp4")


def test_folders_that_are_no_shards_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root '.*absent' does not exist or is no folder: it must hold what"):
        read("shards", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no shards at .*: `d3d data … --shards FOLDER` writes them"):
        read("shards", tmp_path)
    shard = pack(tmp_path / "shards", FILMS)
    (tmp_path / "shards" / "of another.tar").write_bytes(shard.read_bytes())
    with pytest.raises(ShardError, match=r"of another.tar is no shard of this set: move it elsewhere"):
        read("shards", tmp_path / "shards")
    (tmp_path / "shards" / "of another.tar").unlink()
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000.tar is missing: copy what is missing"):
        read("shards", tmp_path / "shards")
    with pytest.raises(VideoError, match="cannot be opened as a video"):
        read_frames(f"{shard}/wave/0.mp4")


@pytest.mark.parametrize(
    "values",
    [
        {"schema": 2}, {"shards": []}, {"shards": ["../a.tar"]}, {"shards": "train-000000.tar"}, {"classes": [1]},
        {"listed": "3"}, {"flow": []}, {"flow": {"manifest": {}}}, {"missing": None},
    ],
)  # fmt: skip
def test_a_foreign_manifest_is_refused(tmp_path, values):
    folder = pack(tmp_path / "shards", FILMS).parent
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))
    with pytest.raises(ShardError, match=r"manifest.json is not the manifest of a folder of shards"):
        read_shards(folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ShardError, match=r"manifest.json is not the manifest of a folder of shards"):
        read_shards(folder)


def test_a_manifest_of_other_classes_is_refused(tmp_path):
    folder = pack(tmp_path / "shards", FILMS).parent
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"classes": ["class1", "class0"]}))
    with pytest.raises(ShardError, match="has a manifest of other shards: copy the folder as a whole"):
        read_shards(folder)
