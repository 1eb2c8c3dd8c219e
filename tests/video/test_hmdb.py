"""Tests of JHMDB: its splits, source groups, validation clips and camera flags, in a tiny copy and in the real set."""

import random
from collections import Counter
from pathlib import Path
from zlib import crc32

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3d.video.annotations import read
from d3d.video.hmdb import hold_out
from d3d.video.tables import COLUMNS, read_table, write_table
from tests.conftest import shared_folder
from tests.video import official


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_split_has_test_clips_of_the_list_and_whole_groups_for_validation(tmp_path, split):
    listing = read(**official.jhmdb(tmp_path, classes=3), split=split)
    assert listing.classes == ("brush_hair", "clap", "wave")
    assert tuple(listing.table.columns) == (*COLUMNS, "camera")
    assert listing.counts == {"listed": 24, "found": 24, "missing": 0}
    # Six training clips of three groups: none fits into 15 %, one clip, so that one group is held out.
    assert listing.table.groupby("class")["split"].value_counts().to_dict() == {
        (name, part): count for name in listing.classes for part, count in (("train", 4), ("test", 2), ("val", 2))
    }
    assert (listing.table.groupby("group")["split"].nunique() == 1).all()
    tested = listing.table[listing.table["split"] == "test"]
    assert {Path(path).stem[-1] for path in tested["path"]} == {str(2 * split - 2), str(2 * split - 1)}


def test_group_and_camera_are_read_from_odd_names(tmp_path):
    table = read(**official.jhmdb(tmp_path)).table.set_index("path")
    row = table.loc[str(tmp_path / "ReCompress_Videos" / "wave" / "A_wave_(2)_clap_wave_f_cm_np1_le_med_5.mp4")]
    assert row[["class", "label", "group", "camera"]].tolist() == ["wave", 1, "wave|A_wave_(2)_clap", "moving"]
    row = table.loc[str(tmp_path / "ReCompress_Videos" / "wave" / "[HD]_Part_#1_wave_f_nm_np1_le_med_0.mp4")]
    assert row[["split", "group", "camera"]].tolist() == ["test", "wave|[HD]_Part_#1", "still"]
    assert set(table["group"]) >= {"wave|Rock_&_Roll;_live!", "wave|Two words_@home_300+_*?"}


def test_a_title_is_another_group_in_another_class(tmp_path):
    table = read(**official.jhmdb(tmp_path)).table
    assert table.groupby("group")["class"].nunique().eq(1).all()
    assert table["group"].nunique() == 8


def test_a_clip_may_be_in_any_container_and_in_one_folder(tmp_path):
    arguments = official.jhmdb(tmp_path)
    expected = read(**arguments).table
    root = arguments["root"]
    suffixes = [".mp4", ".mkv", ".AVI", ".webm"]
    for index, path in enumerate(sorted(root.glob("*/*.mp4"))):
        path.rename((root if index % 3 else path.parent) / f"{path.stem}{suffixes[index % 4]}")
    (root / "wave" / "notes.txt").touch()
    listing = read(**arguments)
    assert listing.counts == {"listed": 16, "found": 16, "missing": 0}
    assert {Path(path).suffix for path in listing.table["path"]} == set(suffixes)
    assert listing.table["path"].map(lambda path: Path(path).is_file()).all()
    assert [Path(p).stem for p in listing.table["path"]] == [Path(p).stem for p in expected["path"]]
    pd.testing.assert_frame_equal(listing.table.drop(columns="path"), expected.drop(columns="path"))


@pytest.mark.parametrize("folder", ["wave", "."])
def test_two_files_of_one_clip_are_named(tmp_path, folder):
    arguments = official.jhmdb(tmp_path)
    stem = "[HD]_Part_#1_wave_f_nm_np1_le_med_0"
    (arguments["root"] / folder / f"{stem}.mkv").touch()
    with pytest.raises(
        ValueError, match=r"^wave/\[HD\].*_0\.avi has two files, .*\.m[pk][4v] and .*_0\.m[pk][4v]: del"
    ):
        read(**arguments)
    # The same name in the folder of another class is another file.
    (arguments["root"] / folder / f"{stem}.mkv").rename(arguments["root"] / "brush_hair" / f"{stem}.mkv")
    assert read(**arguments).counts["found"] == 16


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("avi 2", "avi 0", r"line 1: .*, expected 'name.avi CODE', the code 1 for train, 2 for test$"),
        ("avi 2", "avi", r"line 1: .*, expected 'name.avi CODE', the code 1 for train, 2 for test$"),
        ("_nm_", "_xm_", r"line 1: .*, expected a name such as 'Title_wave_f_cm_np1_ba_med_0.avi'"),
        ("_wave_f", "_walk_f", r"line 1: .*, expected a name such as 'Title_wave_f_cm_np1_ba_med_0.avi'"),
        ("[HD]_Part_#1_w", "w", r"line 1: .*, expected a name such as 'Title_wave_f_cm_np1_ba_med_0.avi'"),
        ("avi 2", "avi 1", r"line 2: .*, expected all clips of '\[HD\]_Part_#1' for train, as in earlier lines"),
    ],
)
def test_a_wrong_line_of_a_list_is_named(tmp_path, old, new, message):
    arguments = official.jhmdb(tmp_path)
    path = tmp_path / "splits" / "wave_test_split1.txt"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=f"wave_test_split1.txt, {message}"):
        read(**arguments)


def test_a_list_needs_clips_of_both_codes_and_each_clip_once(tmp_path):
    arguments = official.jhmdb(tmp_path)
    path = tmp_path / "splits" / "wave_test_split1.txt"
    text = path.read_text()
    path.write_text(text + text.splitlines()[2] + "\n")
    with pytest.raises(ValueError, match=r"wave_test_split1.txt, line 9: .*, expected each clip once"):
        read(**arguments)
    path.write_text(text.replace("avi 2", "avi 1"))
    with pytest.raises(ValueError, match=r"wave_test_split1.txt has no clip of code 2 \(test\)"):
        read(**arguments)
    official.write_lines(tmp_path / "splits" / "wave_test_split1.txt", text.splitlines())
    for index in range(20):
        official.write_lines(tmp_path / "splits" / f"class{index}_test_split1.txt", text.splitlines())
    with pytest.raises(ValueError, match=r"has 22 files \*_test_split1.txt: JHMDB has 21 classes"):
        read(**arguments)


def test_splits_do_not_depend_on_the_order_of_files_and_lines_or_on_missing_videos(tmp_path):
    arguments = official.jhmdb(tmp_path)
    before = read(**arguments).table.set_index("path").sort_index()
    for path in sorted(arguments["annotations"].glob("*.txt"), reverse=True):
        lines = path.read_text().splitlines()
        random.Random(path.name).shuffle(lines)
        path.unlink()
        official.write_lines(path, lines)
    pd.testing.assert_frame_equal(read(**arguments).table.set_index("path").sort_index(), before)
    trained = before.index[before["split"] == "train"]
    for path in trained[:3]:
        Path(path).unlink()
    after = read(**arguments).table.set_index("path").sort_index()
    pd.testing.assert_frame_equal(after, before.drop(index=trained[:3]))


def test_a_table_of_odd_names_is_read_as_written(tmp_path):
    listing = read(**official.jhmdb(tmp_path / "set"))
    write_table(tmp_path / "tables" / "jhmdb.csv", listing)
    read_back = read_table(tmp_path / "tables" / "jhmdb.csv")
    assert (read_back.classes, read_back.missing) == (listing.classes, ())
    pd.testing.assert_frame_equal(read_back.table, listing.table)


GROUPS = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 20), max_size=25)


@given(GROUPS, st.randoms(use_true_random=False))
def test_held_out_groups_leave_most_clips_in_training(clips, rng):
    chosen = hold_out(clips)
    shuffled = list(clips.items())
    rng.shuffle(shuffled)
    assert hold_out(dict(shuffled)) == chosen
    if len(clips) < 2:
        assert not chosen
        return
    count, total = sum(clips[group] for group in chosen), sum(clips.values())
    assert 0 < count < total
    # At most one clip above 15 %, unless the smallest group has more.
    assert count < 0.15 * total + 1 or (len(chosen) == 1 and count == min(clips.values()))
    left = set(clips) - chosen
    assert left
    assert all(count + clips[group] >= 0.15 * total for group in left)


def test_groups_are_held_out_in_the_order_of_their_checksums():
    assert crc32(b"b") < crc32(b"a")
    # Three of twenty clips: b, then a no longer fits, but c does.
    assert hold_out({"a": 2, "b": 2, "c": 1, "d": 15}) == {"b", "c"}
    assert hold_out({"a": 9, "b": 4, "c": 5}) == {"b"}
    assert hold_out({"only": 12}) == set()


@pytest.fixture(scope="module")
def real():
    """The whole set, its listings by split, and its manifest, indexed by path."""
    folder = shared_folder("jhmdb")
    listings = {n: read("jhmdb", folder / "videos", annotations=folder / "splits", split=n) for n in (1, 2, 3)}
    tables = {n: listing.table.set_index("path") for n, listing in listings.items()}
    manifest = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    manifest.index = [str(folder / "videos" / path) for path in manifest["path"]]
    return listings, tables, manifest


@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_real_set_agrees_with_its_manifest(real, split):
    listings, tables, manifest = real
    table = tables[split]
    assert listings[split].counts == {"listed": 928, "found": 928, "missing": 0}
    assert len(listings[split].classes) == 21
    manifest = manifest.loc[table.index]
    assert table["class"].tolist() == manifest["class"].tolist()
    assert table["group"].tolist() == manifest["source_group"].tolist()
    assert table["camera"].tolist() == manifest["camera_motion"].map({"nm": "still", "cm": "moving"}).tolist()
    assert table["split"].replace("val", "train").tolist() == manifest[f"split{split}"].tolist()


@pytest.mark.parametrize(("split", "counts"), [(1, (555, 105, 268)), (2, (556, 102, 270)), (3, (558, 105, 265))])
def test_the_real_set_has_validation_clips_of_every_class(real, split, counts):
    table = real[1][split]
    assert tuple(Counter(table["split"])[part] for part in ("train", "val", "test")) == counts
    assert (table.groupby("group")["split"].nunique() == 1).all()
    clips = table.groupby(["class", "split"]).size().unstack()
    assert len(clips) == 21
    assert (clips[["train", "val", "test"]] > 0).all(axis=None)
    assert (clips["val"] / (clips["train"] + clips["val"])).between(0.05, 0.19).all()
