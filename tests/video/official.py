"""Tiny copies of data sets in their official layouts, names and annotation formats.

Each function calls make(path, label, index) for every video and returns the arguments of `annotations.read`.
"""

from collections.abc import Callable
from pathlib import Path

CLASSES = ("Basketball", "HandstandPushups", "YoYo")
Make = Callable[[Path, int, int], None]


def touch(path: Path, label: int, index: int) -> None:
    """Makes an empty file, for tests that need only names."""
    path.touch()


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def make_file(make: Make, path: Path, label: int, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path, label, index)


def folder(root: Path, make: Make = touch, classes: int = 2, each: int = 6) -> dict:
    for label, name in enumerate(("swim", "wave", "jump")[:classes]):
        for index in range(each):
            make_file(make, root / name / f"{name}{index}.mp4", label, label * each + index)
    return {"dataset": "folder", "root": root}


def ucf101(root: Path, make: Make = touch, classes: int = 2) -> dict:
    """Three groups of two clips per class; group N is the test set of split N."""
    lists = root / "ucfTrainTestlist"
    write_lines(lists / "classInd.txt", [f"{i + 1} {name}" for i, name in enumerate(CLASSES[:classes])])
    for split in (1, 2, 3):
        train, test = [], []
        for label, name in enumerate(CLASSES[:classes]):
            for group in (1, 2, 3):
                for clip in (1, 2):
                    # As in the original, the files of HandstandPushups are called v_HandStandPushups.
                    file = f"v_{name.replace('stand', 'Stand')}_g{group:02d}_c{clip:02d}.avi"
                    if split == 1:
                        index = (label * 3 + group - 1) * 2 + clip - 1
                        make_file(make, root / "UCF-101" / name / file, label, index)
                    line = f"{name}/{file}"
                    if group == split:
                        test.append(line)
                    else:
                        train.append(f"{line} {label + 1}")
        write_lines(lists / f"trainlist{split:02d}.txt", train)
        write_lines(lists / f"testlist{split:02d}.txt", test)
    return {"dataset": "ucf101", "root": root / "UCF-101", "annotations": lists}


def hmdb51(root: Path, make: Make = touch, classes: int = 2) -> dict:
    """Eight clips per class; every split has five for training, two for testing and one for neither."""
    lists = root / "testTrainMulti_7030_splits"
    for split in (1, 2, 3):
        for label, name in enumerate(("cartwheel", "wave", "draw_sword")[:classes]):
            lines = []
            for clip in range(8):
                file = f"Movie{clip // 2}_{name}_f_cm_np1_le_med_{clip}.avi"
                if split == 1:
                    make_file(make, root / "hmdb51" / name / file, label, label * 8 + clip)
                code = 0 if clip == 7 else 2 if clip // 2 == split - 1 else 1
                lines.append(f"{file} {code} ")
            write_lines(lists / f"{name}_test_split{split}.txt", lines)
    return {"dataset": "hmdb51", "root": root / "hmdb51", "annotations": lists}


def jhmdb(root: Path, make: Make = touch, classes: int = 2) -> dict:
    """Eight clips per class, of four titles; the first title is the test set of split 1, and so on.

    The lists name .avi files, and the videos are .mp4, as in a set that was encoded again.
    """
    titles = ("[HD]_Part_#1", "Rock_&_Roll;_live!", "A_wave_(2)_clap", "Two words_@home_300+_*?")
    for split in (1, 2, 3):
        for label, name in enumerate(("brush_hair", "wave", "clap")[:classes]):
            lines = []
            for clip in range(8):
                stem = f"{titles[clip // 2]}_{name}_f_{'cm' if clip % 2 else 'nm'}_np1_le_med_{clip}"
                if split == 1:
                    make_file(make, root / "ReCompress_Videos" / name / f"{stem}.mp4", label, label * 8 + clip)
                lines.append(f"{stem}.avi {2 if clip // 2 == split - 1 else 1}")
            write_lines(root / "splits" / f"{name}_test_split{split}.txt", lines)
    return {"dataset": "jhmdb", "root": root / "ReCompress_Videos", "annotations": root / "splits"}


def kinetics(root: Path, make: Make = touch, classes: int = 2, layout: str = "split/class") -> dict:
    """Four training and two validation clips per class, named and placed as by the usual download scripts."""
    lists, index = root / "annotations", 0
    for split, official, count in (("train", "train", 4), ("val", "validate", 2)):
        lines = ["label,youtube_id,time_start,time_end,split"]
        for label, name in enumerate(("air drumming", "playing guitar", "tai chi")[:classes]):
            for clip in range(count):
                video, start = f"-{split[:2]}_{label}{clip}AbcD_"[:11].ljust(11, "x"), 7 * clip
                lines.append(f"{name},{video},{start},{start + 10},{official}")
                folder = {"split/class": f"{split}/{name}", "class": name.replace(" ", "_"), "flat": "."}[layout]
                make_file(make, root / "videos" / folder / f"{video}_{start:06d}_{start + 10:06d}.mp4", label, index)
                index += 1
        write_lines(lists / ("train.csv" if split == "train" else "validate.csv"), lines)
    write_lines(lists / "test.csv", ["youtube_id,time_start,time_end,split", "abcdefghijk,1,11,test"])
    return {"dataset": "kinetics400", "root": root / "videos", "annotations": lists}


def ava(root: Path, make: Make = touch) -> dict:
    """A training and a validation video, each with boxes at four timestamps, one of them excluded."""
    lists = root / "ava_v2.1"
    entries = [("bend/bow (at the waist)", 1), ("crouch/kneel", 3), ("watch (a person)", 80)]
    write_lines(
        lists / "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt",
        [f'item {{\n  name: "{name}"\n  id: {number}\n}}' for name, number in entries],
    )
    for index, (split, video) in enumerate((("train", "-5KQ66BBWC4"), ("val", "1j20qq1JyX4"))):
        make_file(make, root / "videos" / "trainval" / f"{video}.mkv", 0, index)
        rows = [f"{video},0902,0.077,0.151,0.283,0.811,80,1", f"{video},0902,0.077,0.151,0.283,0.811,1,1"]
        rows += [f"{video},0903,0.332,0.194,0.481,0.891,2,0", f"{video},0904,0.332,0.194,0.481,0.891,3,0"]
        rows += [f"{video},0905,0.1,0.1,0.5,0.5,1,2"]
        write_lines(lists / f"ava_{split}_v2.1.csv", rows)
        write_lines(lists / f"ava_{split}_excluded_timestamps_v2.1.csv", [f"{video},0905"])
    return {"dataset": "ava", "root": root / "videos", "annotations": lists}


SETS = {"folder": folder, "ucf101": ucf101, "hmdb51": hmdb51, "jhmdb": jhmdb, "kinetics400": kinetics}
