"""Official annotation files with absurd lines, and folders of videos that are not what they should be."""

import os

import pytest

from tests.bad_inputs.harness import BadInput, assert_refused
from tests.video import official

# Where the tiny copies of the official sets have their videos and annotation files.
FOLDERS = {
    "folder": (".", "."),
    "ucf101": ("UCF-101", "ucfTrainTestlist"),
    "hmdb51": ("hmdb51", "testTrainMulti_7030_splits"),
    "jhmdb": ("ReCompress_Videos", "splits"),
    "kinetics400": ("videos", "annotations"),
    "ava": ("videos", "ava_v2.1"),
}
UCF_TRAIN, UCF_TEST, UCF_CLASSES = (
    f"ucfTrainTestlist/{name}" for name in ("trainlist01.txt", "testlist01.txt", "classInd.txt")
)
HMDB, JHMDB = "testTrainMulti_7030_splits/wave_test_split1.txt", "splits/wave_test_split1.txt"
KINETICS = "annotations/train.csv"
AVA, AVA_EXCLUDED, AVA_ACTIONS = (
    f"ava_v2.1/{name}"
    for name in (
        "ava_train_v2.1.csv",
        "ava_train_excluded_timestamps_v2.1.csv",
        "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt",
    )
)
BOX = "-5KQ66BBWC4,{},0.1,0.1,0.5,0.5,{},{}"
LONG = "x" * 10_000


def case(name, dataset, change, message):
    """An official set of which `change`, given its folder, spoils something."""

    def write(folder):
        getattr(official, dataset.removesuffix("400"))(folder)
        change(folder)

    root, annotations = FOLDERS[dataset]
    command = ["data", "--dataset", dataset, "--root", root, "--annotations", annotations, "--out", "out.csv"]
    return BadInput(f"{dataset}: {name}", command, write, message)


def line(name, dataset, path, text, expected, number=1):
    """An official set with an annotation file whose first line is `text`; the sentence names file and line."""

    def change(folder):
        lines = (folder / path).read_bytes().split(b"\n")
        lines.insert(number - 1, text.encode(errors="surrogateescape"))
        (folder / path).write_bytes(b"\n".join(lines))

    return case(name, dataset, change, rf"{path}, line {number}: ['\"].*['\"], expected {expected}")


def replaced(name, dataset, path, message, content=None, make=None):
    """An official set with an annotation file of other content, or made by `make`."""

    def change(folder):
        (folder / path).unlink()
        if make:
            make(folder / path)
        else:
            (folder / path).write_bytes(content)

    return case(name, dataset, change, message)


def appended(path, text):
    def change(folder):
        (folder / path).write_text((folder / path).read_text() + text)

    return change


def boxes(name, second="0902", action="80", person="1", video="-5KQ66BBWC4"):
    text = BOX.format(second, action, person).replace("-5KQ66BBWC4", video)
    expected = "(a video, a timestamp from 0.5 s on, and .* small numbers|video, timestamp, .* person may be left out)"
    return line(name, "ava", AVA, text, expected)


CODE = r"'name\.avi CODE', the code 1 for train, 2 for test.*"
NAME = "the name of a file, not a path"
SEGMENT = "a label, an id of 11 characters, a start and a later end in whole seconds, and the split"
CASES = [
    line("a path that leads out of root", "ucf101", UCF_TRAIN, "../../secret.avi 1", "'Class/v_Class_.* train list"),
    line("a path from the root of all", "ucf101", UCF_TEST, "/etc/passwd", "'Class/v_Class_.* in a test list"),
    line("a label of 5000 digits", "ucf101", UCF_TRAIN, f"Basketball/v_Basketball_g02_c01.avi {'9' * 5000}",
         "the label 1 that .*"),
    line("a line of 10,000 characters", "ucf101", UCF_TRAIN, LONG, "'Class/v_Class_.*"),
    line("a class number of 5000 digits", "ucf101", UCF_CLASSES, f"{'9' * 5000} Basketball", "'1 Class', .*"),
    line("a terminal escape", "ucf101", UCF_CLASSES, "1 \x1b[2J", "'1 Class', .*"),
    replaced("an empty list", "ucf101", UCF_TRAIN, rf"{UCF_TRAIN} lists no clip", b""),
    replaced("an empty list of classes", "ucf101", UCF_CLASSES, rf"{UCF_TRAIN}, line 1: .* a class of .*", b""),
    replaced("a list that is not UTF-8", "ucf101", UCF_TRAIN, rf"{UCF_TRAIN}, line 2 is no text in UTF-8: .*",
             b"\n\xff\xfe\n"),
    replaced("a list in UTF-16", "ucf101", UCF_TRAIN, rf"{UCF_TRAIN} is no text in UTF-8: .*", "a b".encode("utf-16")),
    replaced("a FIFO as a list", "ucf101", UCF_TRAIN, rf"{UCF_TRAIN} is not a regular file: .*", make=os.mkfifo),
    replaced("a folder as a list", "ucf101", UCF_TEST, rf"{UCF_TEST} is not a regular file: .*", make=os.mkdir),
    replaced("a list that links to a device", "ucf101", UCF_TEST, rf"{UCF_TEST} is not a regular file: .*",
             make=lambda path: path.symlink_to("/dev/zero")),
    line("a path that leads out of root", "hmdb51", HMDB, "../../secret.avi 1 ", NAME),
    line("a path from the root of all", "hmdb51", HMDB, "/etc/passwd 1", NAME),
    line("a code of 5000 digits", "hmdb51", HMDB, f"a_wave_f.avi {'1' * 5000}", CODE),
    line("a code of nan", "hmdb51", HMDB, "a_wave_f.avi nan", CODE),
    line("no name", "hmdb51", HMDB, " 1", CODE),
    replaced("an empty list", "hmdb51", HMDB, rf"{HMDB} has no clip of code 1 \(train\)", b""),
    replaced("a FIFO as a list", "hmdb51", HMDB, rf"{HMDB} is not a regular file: .*", make=os.mkfifo),
    replaced("a list that is not UTF-8", "hmdb51", HMDB, rf"{HMDB}, line 1 is no text in UTF-8: .*", b"\xff 1"),
    line("a path that leads out of root", "jhmdb", JHMDB, "../../secret_wave_f_cm_np1_ba_med_0.avi 1", NAME),
    line("a name of 10,000 characters", "jhmdb", JHMDB, f"{LONG}.avi 1", "a name such as .*"),
    line("a terminal escape", "jhmdb", JHMDB, "\x1b[2J.avi 1", "a name such as .*"),
    replaced("a list with NUL bytes", "jhmdb", JHMDB, rf"{JHMDB} is no text in UTF-8: .*", b"a\0b 1"),
    *(line(f"a start of {value}", "kinetics400", KINETICS, f"tai chi,abcdefghijk,{value},20,train", SEGMENT, 2)
      for value in ("nan", "inf", "-1", "1e3", "", "0.5")),
    line("an end of 5000 digits", "kinetics400", KINETICS, f"tai chi,abcdefghijk,1,{'9' * 5000},train", SEGMENT, 2),
    line("an end before its start", "kinetics400", KINETICS, "tai chi,abcdefghijk,9,8,train", SEGMENT, 2),
    line("an id that is a path", "kinetics400", KINETICS, "tai chi,../../../ab,1,2,train", SEGMENT, 2),
    line("no label", "kinetics400", KINETICS, ",abcdefghijk,1,2,train", SEGMENT, 2),
    line("an unknown split", "kinetics400", KINETICS, "tai chi,abcdefghijk,1,2,dev", "clips of the train .*", 2),
    line("a cell too many", "kinetics400", KINETICS, "tai chi,abcdefghijk,1,2,train,x", SEGMENT, 2),
    case("a quote never closed", "kinetics400",
         appended(KINETICS, '"tai chi,abcdefghijk,1,2\n'),
         rf"{KINETICS}, line 10 is no row of CSV .*"),
    case("a class of a terminal escape", "kinetics400",
         appended(KINETICS, "\x1b[2J,abcdefghijk,1,2,train\n"),
         r"root 'videos' has a class '\\x1b\[2J': its name must be one line of at most 255 characters"),
    replaced("an empty list", "kinetics400", KINETICS, rf"{KINETICS}, line 1: '', expected 'label,youtube_id.*'", b""),
    replaced("a FIFO as a list", "kinetics400", KINETICS, rf"{KINETICS} is not a regular file: .*", make=os.mkfifo),
    replaced("a link to nothing as a list", "kinetics400", KINETICS, rf"{KINETICS} is not a regular file: .*",
             make=lambda path: path.symlink_to("nowhere.csv")),
    *(boxes(f"a timestamp of {value}", second=value) for value in ("nan", "inf", "1e308", "-1", "0", "soon")),
    *(boxes(f"an action of {value}", action=value) for value in ("-1", "1e3", "nan", "True", "9" * 20)),
    boxes("an action of 5000 digits", action="9" * 5000),
    boxes("a person of 20 digits", person="9" * 20),
    boxes("no video", video=""),
    line("a box of nan", "ava", AVA, BOX.format("0902", "80", "1").replace("0.5,0.5", "nan,0.5"), "x1 < x2 .*"),
    line("a box of inf", "ava", AVA, BOX.format("0902", "80", "1").replace("0.5,0.5", "inf,0.5"), "x1 < x2 .*"),
    line("an excluded timestamp of 5000 digits", "ava", AVA_EXCLUDED, f"x,{'9' * 5000}", "'video,timestamp'"),
    replaced("actions that are not UTF-8", "ava", AVA_ACTIONS, rf"{AVA_ACTIONS}, line 1 is no text.*", b"\xff"),
    replaced("an empty list of actions", "ava", AVA_ACTIONS, rf"{AVA_ACTIONS} names no action, .*", b""),
    replaced("an action twice", "ava", AVA_ACTIONS, rf"{AVA_ACTIONS} has the action 'run' 2 times, expected each once",
             b'name: "run" id: 1 name: "run" id: 2'),
    replaced("a number twice", "ava", AVA_ACTIONS, rf"{AVA_ACTIONS} has the number 1 2 times, expected each once",
             b'name: "run" id: 1 name: "sit" id: 1'),
    replaced("a FIFO as a list of actions", "ava", AVA_ACTIONS, rf"{AVA_ACTIONS} is not a regular file: .*",
             make=os.mkfifo),
]  # fmt: skip


def folders(name, make, message, root="root"):
    command = ["data", "--dataset", "folder", "--root", root, "--out", "out.csv"]
    return BadInput(f"folder: {name}", command, make, message)


def classes(*names):
    """Makes folders below root, each with a file."""

    def make(folder):
        for name in names:
            (folder / "root" / name).mkdir(parents=True)
            (folder / "root" / name / "a.mp4").touch()
        return folder / "root"

    return make


NO_FOLDER = "root 'root' does not exist or is no folder: .*"
FOLDER_CASES = [
    folders("root is a file", lambda folder: (folder / "root").touch(), NO_FOLDER),
    folders("root is a link to itself", lambda folder: (folder / "root").symlink_to("root"),
            NO_FOLDER),
    folders("root is a FIFO", lambda folder: os.mkfifo(folder / "root"), NO_FOLDER),
    folders("root has 5,000 characters", None, "root 'r+….*r+' does not exist or is no folder: .*", "r" * 5000),
    folders("root has a terminal escape", None, r"root '\\x1b\[2J' does not exist or is no folder: .*", "\x1b[2J"),
    folders("a class that links to nothing", lambda f: (classes("a", "b")(f) / "c").symlink_to("nowhere"),
            "root/c is a link that leads nowhere: it must lead to the folder of a class"),
    folders("a class that links to itself", lambda f: (classes("a", "b")(f) / "c").symlink_to("c"),
            "root/c is a link that leads nowhere: it must lead to the folder of a class"),
    folders("a class that links to its root", lambda f: (classes("a", "b")(f) / "c").symlink_to("."),
            "'root/c/a' is a folder: a class folder holds its video files directly"),
    folders("a class with a terminal escape", classes("a", "\x1b[2J"),
            r"root 'root' has a class '\\x1b\[2J': its name must be one line of at most 255 characters"),
    folders("a class on two lines", classes("a", "b\nc"),
            r"root 'root' has a class 'b\\nc': its name must be one line of at most 255 characters"),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *FOLDER_CASES], ids=str)
def test_annotations_are_refused_in_one_sentence(case, tmp_path):
    assert_refused(case, tmp_path)
