"""Tables of clips that are handled rightly: formulas, odd paths and cells, a million rows; and what they refuse."""

import csv
import os
import socket

import numpy as np
import pandas as pd
import pytest

from d3d.data.command import main
from d3d.data.load import load
from d3d.data.video_sets import check_videos
from d3d.video.annotations import read
from d3d.video.tables import MAX_BYTES, Listing, read_table, write_table
from tests import configs
from tests.video.official import make_file, touch
from tests.video.test_decode import noise_video

NAMES = ("=1+1.mp4", "+a.mp4", "-a.mp4", "@a.mp4", "\ta.mp4", "\r=a.mp4", "'=a.mp4", "''a.mp4", "a.mp4", "=dir/=a.mp4")
FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(A1)", "'=quoted", "''-twice", "'plain", "plain", "a;=b", "x/../y")


def listing_of(folder, names, classes, **columns):
    """A listing of files of these names, each of a class of its own."""
    for name in names:
        make_file(touch, folder / name, 0, 0)
    rows = {"path": [str(folder / name) for name in names], "class": classes, "label": range(len(names))}
    table = pd.DataFrame(rows | {"split": "train", "start": 0.0, "end": np.nan, "group": classes} | columns)
    return Listing(table, tuple(classes), (), len(table))


@pytest.mark.parametrize("folder", ["lists", "videos"])
def test_no_cell_of_a_table_is_a_formula_and_it_is_read_as_written(tmp_path, folder):
    listing = listing_of(
        tmp_path / "videos", NAMES, FORMULAS, camera=list(FORMULAS), **{"=column": ["-x"] * 10, "offset": [-1.5] * 10}
    )
    write_table(tmp_path / folder / "table.csv", listing)
    with open(tmp_path / folder / "table.csv", newline="") as file:
        header, *rows = csv.reader(file)
    texts = [cell for row in [header, *rows] for name, cell in zip(header, row, strict=True) if name != "offset"]
    assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]
    read_back = read_table(tmp_path / folder / "table.csv")
    assert read_back.classes == listing.classes
    assert not read_back.missing
    pd.testing.assert_frame_equal(read_back.table, listing.table)
    # Once more: nothing is escaped twice.
    write_table(tmp_path / folder / "again.csv", read_back)
    assert (tmp_path / folder / "again.csv").read_bytes() == (tmp_path / folder / "table.csv").read_bytes()


def test_a_class_that_a_table_would_change_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="class ' a' begins or ends with a blank, which a table does not keep: rename it"
    ):
        write_table(tmp_path / "a.csv", listing_of(tmp_path, ["x.mp4", "y.mp4"], [" a", "a"]))
    assert not (tmp_path / "a.csv").exists()


def test_cells_of_hand_made_tables_are_read_as_they_are(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "set.csv").write_bytes(
        "\ufeffpath,class,label,split,start,end,group,note,take,seconds\r\n"
        f"{tmp_path}/a.mp4,=SUM(A1),0,train,,,-5KQ66BBWC4,inf,1_0,\r\n"
        f"../{tmp_path.name}/b.mp4,'=SUM(A2),1,test,.5,1e3,,0,99999999999999999999,1e2\r\n".encode()
    )
    table = read_table(tmp_path / "set.csv").table
    assert table["path"].tolist() == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    assert table["class"].tolist() == ["=SUM(A1)", "=SUM(A2)"]
    assert table["group"].tolist() == ["-5KQ66BBWC4", f"../{tmp_path.name}/b.mp4"]
    assert table["start"].tolist() == [0, 0.5]
    assert table["end"].fillna(-1).tolist() == [-1, 1000]
    # Numbers that are no plain finite ones are text.
    assert table["note"].tolist() == ["inf", "0"]
    assert table["take"].tolist() == ["1_0", "99999999999999999999"]
    assert table["seconds"].fillna(-1).tolist() == [-1, 100]


def test_paths_that_are_no_files_are_named_and_not_opened(tmp_path, capsys):
    for name in ("a.mp4", "b.mp4"):
        noise_video(tmp_path / name, "libx264")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "broken.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
    odd = ["folder.mp4", "loop.mp4", "broken.mp4", "zero.mp4", "fifo.mp4", "socket.mp4", "/dev/zero"]
    lines = ["a.mp4,a,0,", "b.mp4,b,1,", *(f"{name},a,0," for name in odd), f"{'x' * 5000}.mp4,a,0,"]
    (tmp_path / "set.csv").write_text("\n".join(["path,class,label,split", *lines]))
    main(["--dataset", "table", "--root", str(tmp_path / "set.csv"), "--out", str(tmp_path / "out.csv")])
    out = capsys.readouterr().out.splitlines()
    assert "10 listed, 9 found, 1 missing, 7 unreadable" in out
    assert sum(line.endswith("is not a regular file") for line in out) == 5
    assert all(any(line.startswith("unreadable: ") and name in line for line in out) for name in odd)
    assert all(len(line) < 400 for line in out)
    assert len(read_table(tmp_path / "out.csv").table) == 2


def test_files_among_the_videos_of_a_folder_that_are_no_files_are_named(tmp_path):
    for name in ("swim", "wave"):
        (tmp_path / name).mkdir()
        noise_video(tmp_path / name / "a.mp4", "libx264")
    os.mkfifo(tmp_path / "wave" / "fifo.mp4")
    (tmp_path / "wave" / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(tmp_path / "fifo")
    table, refused = check_videos(read("folder", tmp_path).table, report=lambda line: None)
    assert len(table) == 2
    assert sorted(os.path.basename(path) for path in refused) == ["fifo.mp4", "loop.mp4"]


def test_the_check_of_videos_can_be_divided(tmp_path):
    """Every file is opened in one part, and the table is that of one process."""
    for name in ("swim", "wave"):
        (tmp_path / name).mkdir()
        noise_video(tmp_path / name / "a.mp4", "libx264")
    broken = tmp_path / "wave" / "b.mp4"
    broken.touch()
    listed, opened = read("folder", tmp_path).table, []

    def in_two_parts(find, names):
        opened.extend(names)
        return find(names[::2]) | find(names[1::2])

    divided, refused = check_videos(listed, report=lambda line: None, share=in_two_parts)
    whole, refused_whole = check_videos(listed, report=lambda line: None)
    pd.testing.assert_frame_equal(divided, whole)
    assert list(refused) == list(refused_whole) == [str(broken)]
    assert sorted(opened) == sorted(listed["path"])


def test_a_set_that_links_to_its_parents_is_listed_once(tmp_path):
    for name in ("swim", "wave"):
        make_file(touch, tmp_path / "videos" / name / f"{name[0]}23456789-__000001_000002.mp4", 0, 0)
        (tmp_path / "videos" / name / "up").symlink_to("..")
    lines = [
        "label,youtube_id,time_start,time_end,split",
        *(f"{n},{n[0]}23456789-_,1,2,train" for n in ("swim", "wave")),
    ]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    assert read("kinetics400", tmp_path / "videos", annotations=tmp_path).counts["found"] == 2


def test_a_list_that_names_files_outside_of_root_reads_none(tmp_path):
    """The file exists: only the name of the class's folder keeps it out."""
    (tmp_path / "secret_wave_f_nm_np1_le_med_0.avi").touch()
    for number, name in enumerate(("clap", "wave")):
        make_file(touch, tmp_path / "root" / name / f"x_{name}_f_nm_np1_le_med_{number}.avi", 0, 0)
        lines = [f"x_{name}_f_nm_np1_le_med_{number}.avi 1", "../../secret_wave_f_nm_np1_le_med_0.avi 2"]
        (tmp_path / f"{name}_test_split1.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"clap_test_split1.txt, line 2: .*, expected the name of a file, not a path"):
        read("hmdb51", tmp_path / "root", annotations=tmp_path)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    with open(tmp_path / "a.csv", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=f"a.csv has 1099511627776 bytes: it must be .*, of at most {MAX_BYTES}"):
        read_table(tmp_path / "a.csv")


@pytest.mark.slow
def test_a_million_rows_are_read(tmp_path):
    (tmp_path / "a.mp4").touch()
    with open(tmp_path / "set.csv", "w") as file:
        file.write("path,class,label,split,start,end\n")
        for i in range(10**6):
            file.write(f"a.mp4,class {i % 7},{i % 7},train,{i},{i + 1}\n")
    listing = read_table(tmp_path / "set.csv")
    assert listing.counts == {"listed": 10**6, "found": 10**6, "missing": 0}
    assert listing.table["start"].iloc[-1] == 999_999
    assert listing.classes == tuple(f"class {i}" for i in range(7))


def test_a_column_named_flow_is_not_the_flow_of_a_cache(tmp_path):
    """A table could name any file as the flow of a clip."""
    lines = ["path,class,label,split,flow"]
    for label, name in enumerate(("swim", "wave")):
        for i in range(3):
            noise_video(tmp_path / f"{name}{i}.mp4", "libx264")
            lines.append(f"{name}{i}.mp4,{name},{label},{'train' if i else 'test'},{tmp_path}/swim0.mp4")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    config = configs.data(dataset="table", root=str(tmp_path / "set.csv"), frames=4, size=16, fps=10.0, memory="no")
    data = load(config, seed=0, report=lambda line: None)
    assert "flow" not in data.splits["train"].table
    assert not data.flow
