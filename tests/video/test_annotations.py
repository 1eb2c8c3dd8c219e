"""Tests of data sets read as tables: their contents, missing files, and errors for wrong annotation files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from d3d.video.annotations import DATASETS, read
from d3d.video.tables import COLUMNS, Listing, read_table, write_table
from tests.video import official


def test_ucf101(tmp_path):
    listing = read(**official.ucf101(tmp_path, classes=3), split=2)
    assert listing.classes == official.CLASSES
    assert tuple(listing.table.columns) == COLUMNS
    assert listing.counts == {"listed": 18, "found": 18, "missing": 0}
    row = listing.table[listing.table["path"].str.endswith("v_HandStandPushups_g02_c01.avi")].iloc[0]
    assert (row["class"], row["label"], row["split"], row["group"]) == (
        "HandstandPushups",
        1,
        "test",
        "HandstandPushups_g02",
    )
    assert row["path"] == str(tmp_path / "UCF-101" / "HandstandPushups" / "v_HandStandPushups_g02_c01.avi")
    assert row["start"] == 0
    assert np.isnan(row["end"])
    assert listing.table["split"].value_counts().to_dict() == {"train": 12, "test": 6}
    groups = listing.table.groupby("split")["group"].agg(set)
    assert not groups["train"] & groups["test"]


def test_hmdb51(tmp_path):
    listing = read(**official.hmdb51(tmp_path, classes=3), split=3)
    assert listing.classes == ("cartwheel", "draw_sword", "wave")
    assert listing.table["split"].value_counts().to_dict() == {"train": 15, "test": 6}
    row = listing.table[listing.table["path"].str.contains("Movie2_draw_sword.*_4")].iloc[0]
    assert (row["class"], row["label"], row["split"], row["group"]) == ("draw_sword", 1, "test", "Movie2")
    assert not listing.table["path"].str.endswith("_7.avi").any()


@pytest.mark.parametrize("layout", ["split/class", "class", "flat"])
def test_kinetics(tmp_path, layout):
    arguments = official.kinetics(tmp_path, classes=3, layout=layout)
    listing = read(**arguments)
    assert listing.classes == ("air drumming", "playing guitar", "tai chi")
    assert listing.table["split"].value_counts().to_dict() == {"train": 12, "val": 6}
    row = listing.table.iloc[5]
    assert (row["class"], row["label"], row["split"]) == ("playing guitar", 1, "train")
    assert Path(row["path"]).name == f"{row['group']}_000007_000017.mp4"
    assert len(row["group"]) == 11


def test_kinetics_files_named_by_id_alone(tmp_path):
    arguments = official.kinetics(tmp_path, layout="class")
    path = next((tmp_path / "videos" / "playing_guitar").iterdir())
    path.rename(path.with_name(path.stem.rsplit("_", 2)[0] + ".webm"))
    assert read(**arguments).counts["missing"] == 0


def test_ava(tmp_path):
    arguments = official.ava(tmp_path)
    listing = read(**arguments)
    assert listing.classes == ("bend/bow (at the waist)", "crouch/kneel", "watch (a person)")
    # Action 2 is not in the label map, and timestamp 905 is excluded.
    assert listing.counts == {"listed": 6, "found": 6, "missing": 0}
    first = listing.table.iloc[0]
    assert first[["label", "split", "start", "end", "group", "person"]].tolist() == [
        2,
        "train",
        901.5,
        902.5,
        "-5KQ66BBWC4",
        1,
    ]
    assert first[["x1", "y1", "x2", "y2"]].tolist() == [0.077, 0.151, 0.283, 0.811]
    (tmp_path / "videos" / "trainval" / "1j20qq1JyX4.mkv").unlink()
    listing = read(**arguments)
    assert (listing.counts, listing.missing) == ({"listed": 6, "found": 3, "missing": 3}, ("1j20qq1JyX4",))
    label_map = tmp_path / "ava_v2.1" / "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt"
    official.write_lines(label_map, ["label {", '  name: "run"', "  label_id: 2", "  label_type: PERSON_MOVEMENT", "}"])
    assert read(**arguments).classes == ("run",)


AVA_ROWS = (
    "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80",
    "-5KQ66BBWC4,0903,0.332,0.194,0.481,0.891,1",
    "-5KQ66BBWC4,0904,0.332,0.194,0.481,0.891,3",
    "-5KQ66BBWC4,0905,0.1,0.1,0.5,0.5,1",
)


def read_ava_rows(tmp_path, rows):
    """Reads an AVA that has `rows` as its training list and no validation list."""
    arguments = official.ava(tmp_path)
    official.write_lines(tmp_path / "ava_v2.1" / "ava_train_v2.1.csv", rows)
    (tmp_path / "ava_v2.1" / "ava_val_v2.1.csv").unlink()
    return read(**arguments)


def test_ava_rows_of_7_columns_are_read_like_those_of_8(tmp_path):
    """Before v2.1 AVA had no person ids; everything else is equal, and a table of these rows is read as written."""
    with_person = read_ava_rows(tmp_path / "8", [f"{row},5" for row in AVA_ROWS])
    without = read_ava_rows(tmp_path / "7", AVA_ROWS)
    # Timestamp 905 is excluded.
    assert without.counts == with_person.counts == {"listed": 3, "found": 3, "missing": 0}
    assert without.classes == with_person.classes
    assert with_person.table["person"].tolist() == [5, 5, 5]
    assert with_person.table["person"].dtype == int
    assert without.table["person"].isna().all()
    first = without.table.iloc[0]
    assert first[["label", "class", "split", "start", "end", "group"]].tolist() == [
        2, "watch (a person)", "train", 901.5, 902.5, "-5KQ66BBWC4",
    ]  # fmt: skip
    assert first[["x1", "y1", "x2", "y2"]].tolist() == [0.077, 0.151, 0.283, 0.811]
    pd.testing.assert_frame_equal(
        without.table.drop(columns=["path", "person"]), with_person.table.drop(columns=["path", "person"])
    )
    write_table(tmp_path / "7" / "set.csv", without)
    pd.testing.assert_frame_equal(read("table", tmp_path / "7" / "set.csv").table, without.table)


def test_a_list_may_have_ava_rows_of_7_and_8_columns(tmp_path):
    listing = read_ava_rows(tmp_path, [AVA_ROWS[0], f"{AVA_ROWS[1]},5"])
    assert listing.table["person"].fillna(-1).tolist() == [-1, 5]


def test_ava_rows_that_only_name_a_key_frame_are_no_clips(tmp_path):
    listing = read_ava_rows(tmp_path, [AVA_ROWS[0] + ",5", "-5KQ66BBWC4,0903", AVA_ROWS[2] + ",6"])
    assert listing.table["person"].tolist() == [5, 6]
    assert listing.table["person"].dtype == int
    assert listing.listed == 2


@pytest.mark.parametrize("excluded", ["902", "0902", "902.0"])
def test_excluded_timestamps_of_ava_are_compared_as_numbers(tmp_path, excluded):
    arguments = official.ava(tmp_path)
    official.write_lines(tmp_path / "ava_v2.1/ava_val_excluded_timestamps_v2.1.csv", [f"1j20qq1JyX4,{excluded}"])
    table = read(**arguments).table
    assert table.loc[table["split"] == "val", "start"].tolist() == [903.5, 904.5]


@pytest.mark.parametrize("row", [AVA_ROWS[1].removesuffix(",1"), f"{AVA_ROWS[1]},5,0.9", f"{AVA_ROWS[1]},"])
def test_ava_rows_of_other_lengths_raise_an_error(tmp_path, row):
    message = r"ava_train_v2.1.csv, line 2: .*, expected video, timestamp, .*, action, person; person may be left out"
    with pytest.raises(ValueError, match=message):
        read_ava_rows(tmp_path, [AVA_ROWS[0], row])


@pytest.mark.parametrize("name", [name for name in official.SETS if name != "folder"])
def test_missing_files_are_counted_and_named(tmp_path, name):
    arguments = official.SETS[name](tmp_path)
    before = read(**arguments)
    deleted = [Path(p) for p in before.table["path"].iloc[[0, 3]]]
    for path in deleted:
        path.unlink()
    after = read(**arguments)
    assert after.counts == {"listed": before.listed, "found": before.listed - 2, "missing": 2}
    assert [Path(m).stem for m in after.missing] == [p.stem for p in deleted]
    for path in after.table["path"]:
        Path(path).unlink()
    with pytest.raises(ValueError, match=rf"holds none of the {before.listed} clips listed, not even "):
        read(**arguments)


@pytest.mark.parametrize("name", official.SETS)
def test_carriage_returns_blank_lines_and_byte_order_marks_are_ignored(tmp_path, name):
    arguments = official.SETS[name](tmp_path)
    expected = read(**arguments)
    for path in [*Path(arguments.get("annotations", tmp_path)).glob("*.txt"), *tmp_path.rglob("*.csv")]:
        text = path.read_text().rstrip("\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    pd.testing.assert_frame_equal(read(**arguments).table, expected.table)


def edited(path, change):
    def edit(root):
        file = root / path
        file.write_text(change(file.read_text()))

    return edit


LISTS, CODES, CSVS = "ucfTrainTestlist", "testTrainMulti_7030_splits", "annotations"
TRAIN, TEST = f"{LISTS}/trainlist01.txt", f"{LISTS}/testlist01.txt"
FIRST = "Basketball/v_Basketball_g02_c01.avi"
CODE = f"{CODES}/wave_test_split1.txt"


def swap_lists(root):
    train, test = root / TRAIN, root / TEST
    train_text, test_text = train.read_text(), test.read_text()
    train.write_text(test_text), test.write_text(train_text)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("ucf101", swap_lists, r"trainlist01.txt, line 1: 'Basketball/v_\S+', expected .* as in a train list"),
        (
            "ucf101",
            edited(TEST, lambda t: t.replace("\n", " 1\n")),
            r"testlist01.txt, line 1: .*and no label as in a test list",
        ),
        (
            "ucf101",
            edited(TRAIN, lambda t: t.replace("avi 1", "avi 2", 1)),
            r"line 1: .*, expected the label 1 that classInd.txt gives Basketball",
        ),
        (
            "ucf101",
            edited(TRAIN, lambda t: t.replace("Basketball/", "Golf/", 1)),
            r"line 1: .*, expected a class of classInd.txt",
        ),
        (
            "ucf101",
            edited(TRAIN, lambda t: t + f"{FIRST} 1\n"),
            r"line 9: .*, expected each clip once, but this one is already in the train list",
        ),
        ("ucf101", edited(TEST, lambda t: t + FIRST + "\n"), r"testlist01.txt, line 5: .*is already in the train list"),
        (
            "ucf101",
            edited(TEST, lambda t: t + FIRST.replace("c01", "c07") + "\n"),
            r"expected clips of group g02 of Basketball in one list only",
        ),
        (
            "ucf101",
            edited(f"{LISTS}/classInd.txt", lambda t: t.replace("2 ", "3 ")),
            r"classInd.txt, line 2: '3 HandstandPushups', expected '2 Class'",
        ),
        (
            "hmdb51",
            edited(CODE, lambda t: t.replace("avi 1", "avi 3", 1)),
            r"wave_test_split1.txt, line 3: .*code 1 for train, 2 for test, 0",
        ),
        ("hmdb51", edited(CODE, lambda t: t + t), r"wave_test_split1.txt, line 9: .*, expected each clip once"),
        (
            "hmdb51",
            edited(CODE, lambda t: t.replace("avi 2", "avi 0")),
            r"wave_test_split1.txt has no clip of code 2 \(test\)",
        ),
        (
            "kinetics400",
            edited(f"{CSVS}/train.csv", lambda t: t.replace("label,", "class,")),
            r"train.csv, line 1: .*expected 'label,youtube_id",
        ),
        (
            "kinetics400",
            edited(f"{CSVS}/train.csv", lambda t: t.replace(",train", ",validate")),
            r"train.csv, line 2: .*expected clips of the train split only",
        ),
        (
            "kinetics400",
            edited(f"{CSVS}/train.csv", lambda t: t + t.splitlines()[1] + "\n"),
            r"train.csv, line 10: .*each clip once, but this one is already in the train list",
        ),
        (
            "kinetics400",
            edited(f"{CSVS}/train.csv", lambda t: t.replace(",7,", ",seven,")),
            r"train.csv, line 3: .*whole seconds",
        ),
        (
            "kinetics400",
            edited(f"{CSVS}/train.csv", lambda t: t + "".join(f"c{i},abcdefgh{i:03d},0,9,train\n" for i in range(400))),
            r"lists 402 classes, Kinetics-400 has 400: is it another Kinetics\?",
        ),
        (
            "ava",
            edited("ava_v2.1/ava_val_v2.1.csv", lambda t: t.replace("0.283", "0.05")),
            r"ava_val_v2.1.csv, line 1: .*x1 < x2",
        ),
        (
            "ava",
            edited("ava_v2.1/ava_val_v2.1.csv", lambda t: t.replace(",80,", ",eighty,")),
            r"ava_val_v2.1.csv, line 1: .*eighty.*, expected video",
        ),
        (
            "ava",
            edited("ava_v2.1/ava_train_excluded_timestamps_v2.1.csv", lambda t: "x y"),
            r"excluded_timestamps_v2.1.csv, line 1: 'x y'",
        ),
    ],
)
def test_malformed_annotations_raise_an_error_that_says_what_was_expected(tmp_path, name, edit, message):
    arguments = getattr(official, name.removesuffix("400"))(tmp_path)
    edit(tmp_path)
    with pytest.raises(ValueError, match=message):
        read(**arguments)


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("ucf101", TEST, r"no testlist01.txt in '.*': it is UCF101's test list of split 1"),
        ("ucf101", f"{LISTS}/classInd.txt", r"no classInd.txt in .*UCF101's list of classes"),
        ("hmdb51", CODE, r"no wave_test_split1.txt in .*, though root has a class 'wave'"),
        ("jhmdb", "splits/wave_test_split1.txt", r"no wave_test_split1.txt in .*, though root has a class 'wave'"),
        ("ava", "ava_v2.1/ava_val_excluded_timestamps_v2.1.csv", r"no ava_val_excluded_timestamps_v2.1.csv in"),
        (
            "ava",
            "ava_v2.1/ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt",
            r"must hold one ava_action_list_v2.1\*.pbtxt, there are 0",
        ),
    ],
)
def test_a_missing_annotation_file_is_named(tmp_path, name, path, message):
    arguments = getattr(official, name)(tmp_path)
    (tmp_path / path).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        read(**arguments)


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"dataset must be one of folder, ucf101, .*, not 'ssv2'"):
        read("ssv2", tmp_path)
    with pytest.raises(ValueError, match="split must be 1, 2 or 3, not 4"):
        read("ucf101", tmp_path, split=4)
    with pytest.raises(
        FileNotFoundError, match=r"root '.*absent' does not exist or is no folder: it must hold the videos of"
    ):
        read("ucf101", tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"annotations '.*absent' does not exist"):
        read("ucf101", tmp_path, annotations=tmp_path / "absent")
    for name, message in [
        ("kinetics400", "no train.csv or val.csv"),
        ("hmdb51", r"no \*_test_split1.txt .*: HMDB51 has one per class"),
        ("jhmdb", r"no \*_test_split1.txt .*: JHMDB has one per class"),
        ("ava", "must hold one"),
    ]:
        with pytest.raises(FileNotFoundError, match=message):
            read(name, tmp_path)
    official_sets = {"ucf101", "hmdb51", "jhmdb", "kinetics400", "kinetics600", "ava"}
    assert set(DATASETS) == official_sets | {"folder", "table", "shards"}


@pytest.mark.parametrize("name", [*official.SETS, "ava"])
def test_a_table_is_read_as_written(tmp_path, name):
    arguments = getattr(official, name.removesuffix("400"))(tmp_path)
    listing = read(**arguments)
    table = listing.table.assign(seconds=np.arange(len(listing.table)) / 7)
    write_table(tmp_path / "tables" / "set.csv", Listing(table, listing.classes, (), listing.listed))
    read_back = read("table", tmp_path / "tables" / "set.csv")
    assert str(tmp_path) not in (tmp_path / "tables" / "set.csv").read_text()
    assert read_back.classes == tuple(c for c in listing.classes if c in set(table["class"]))
    pd.testing.assert_frame_equal(read_back.table, table, check_dtype=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class,label\na.mp4,x,0\n", "set.csv has no column 'split'"),
        (
            "path,class,label,split\na.mp4,x,0,train\nb.mp4,y,2,train\n",
            "line 3: label '2', expected one label per class, from 0 to 1",
        ),
        (
            "path,class,label,split\na.mp4,x,0,train\nb.mp4,x,1,train\n",
            "line 3: label '1', expected one label per class, from 0 to 0",
        ),
        ("path,class,label,split\na.mp4,x,0,dev\n", "line 2: split 'dev', expected train, val, test or nothing"),
    ],
)
def test_a_malformed_table_raises_an_error(tmp_path, text, message):
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "set.csv")


def test_a_table_needs_only_four_columns(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "set.csv").write_text("path,class,label,split\na.mp4,x,0,train\nb.mp4,y,1,test\n")
    listing = read_table(tmp_path / "set.csv")
    assert listing.classes == ("x", "y")
    assert (listing.counts, listing.missing) == ({"listed": 2, "found": 1, "missing": 1}, (str(tmp_path / "b.mp4"),))
    assert np.isnan(listing.table["end"].iloc[0])
    with pytest.raises(FileNotFoundError, match="no table at"):
        read_table(tmp_path / "absent.csv")


def test_extra_columns_and_files_of_the_original_archives_are_ignored(tmp_path):
    arguments = official.kinetics(tmp_path / "k")
    before = read(**arguments)
    for path in (tmp_path / "k" / "annotations").glob("*.csv"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0] + ",is_cc", *(line + ",0" for line in lines[1:])]) + "\n")
    for path in before.table["path"]:
        Path(path).with_suffix(".json").touch()
    pd.testing.assert_frame_equal(read(**arguments).table, before.table)
    Path(before.table["path"].iloc[0]).with_suffix(".webm").touch()
    with pytest.raises(ValueError, match="has two files"):
        read(**arguments)
    arguments = official.hmdb51(tmp_path / "h")
    lists = tmp_path / "h" / "testTrainMulti_7030_splits"
    (lists / "._wave_test_split1.txt").write_bytes(b"\x00\xff")
    for name in ("climb", "climb_stairs"):
        clips = [f"A_solo_climb_(x)_{name}_f_cm_np1_ba_med_{i}.avi" for i in range(2)]
        official.write_lines(lists / f"{name}_test_split1.txt", [f"{clip} {i + 1} " for i, clip in enumerate(clips)])
        for clip in clips:
            official.make_file(official.touch, tmp_path / "h" / "hmdb51" / name / clip, 0, 0)
    listing = read(**arguments)
    assert listing.classes == ("cartwheel", "climb", "climb_stairs", "wave")
    assert set(listing.table.loc[listing.table["class"] == "climb", "group"]) == {"A_solo_climb_(x)"}


def test_a_file_in_two_splits_of_a_table_raises_an_error(tmp_path):
    (tmp_path / "set.csv").write_text("path,class,label,split\na.mp4,x,0,train\na.mp4,x,0,test\n")
    with pytest.raises(ValueError, match=r"set.csv, line 3: .*expected each file in one split only"):
        read_table(tmp_path / "set.csv")
