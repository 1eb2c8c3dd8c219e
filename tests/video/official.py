"""Tiny copies of the field's data sets: official layouts, names and annotation formats, files made by the caller.

Each writer calls make(path, label, index) for every video and returns what `annotations.read` takes.
"""

from collections.abc import Callable
from pathlib import Path

CLASSES = ("Basketball", "HandstandPushups", "YoYo")
Make = Callable[[Path, int, int], None]


def touch(path: Path, label: int, index: int) -> None:
    """A file that is there, for what only looks at names."""
    path.touch()


def written(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def made(make: Make, path: Path, label: int, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path, label, index)


def folder(root: Path, make: Make = touch, classes: int = 2, each: int = 6) -> dict:
    for label, name in enumerate(("swim", "wave", "jump")[:classes]):
        for index in range(each):
            made(make, root / name / f"{name}{index}.mp4", label, label * each + index)
    return {"dataset": "folder", "root": root}


def ucf101(root: Path, make: Make = touch, classes: int = 2) -> dict:
    """Per class three groups of two clips; in split N group N is for testing."""
    lists = root / "ucfTrainTestlist"
    written(lists / "classInd.txt", [f"{i + 1} {name}" for i, name in enumerate(CLASSES[:classes])])
    for split in (1, 2, 3):
        train, test = [], []
        for label, name in enumerate(CLASSES[:classes]):
            for group in (1, 2, 3):
                for clip in (1, 2):
                    # The original's quirk: the files of HandstandPushups are called v_HandStandPushups.
                    file = f"v_{name.replace('stand', 'Stand')}_g{group:02d}_c{clip:02d}.avi"
                    if split == 1:
                        index = (label * 3 + group - 1) * 2 + clip - 1
                        made(make, root / "UCF-101" / name / file, label, index)
                    line = f"{name}/{file}"
                    if group == split:
                        test.append(line)
                    else:
                        train.append(f"{line} {label + 1}")
        written(lists / f"trainlist{split:02d}.txt", train)
        written(lists / f"testlist{split:02d}.txt", test)
    return {"dataset": "ucf101", "root": root / "UCF-101", "annotations": lists}


def hmdb51(root: Path, make: Make = touch, classes: int = 2) -> dict:
    """Per class eight clips; in every split five are for training, two for testing and one for neither."""
    lists = root / "testTrainMulti_7030_splits"
    for split in (1, 2, 3):
        for label, name in enumerate(("cartwheel", "wave", "draw_sword")[:classes]):
            lines = []
            for clip in range(8):
                file = f"Movie{clip // 2}_{name}_f_cm_np1_le_med_{clip}.avi"
                if split == 1:
                    made(make, root / "hmdb51" / name / file, label, label * 8 + clip)
                code = 0 if clip == 7 else 2 if clip // 2 == split - 1 else 1
                lines.append(f"{file} {code} ")
            written(lists / f"{name}_test_split{split}.txt", lines)
    return {"dataset": "hmdb51", "root": root / "hmdb51", "annotations": lists}


def kinetics(root: Path, make: Make = touch, classes: int = 2, layout: str = "split/class") -> dict:
    """Per class four training and two validation clips, as the crawler names and places them."""
    lists, index = root / "annotations", 0
    for split, official, count in (("train", "train", 4), ("val", "validate", 2)):
        lines = ["label,youtube_id,time_start,time_end,split"]
        for label, name in enumerate(("air drumming", "playing guitar", "tai chi")[:classes]):
            for clip in range(count):
                video, start = f"-{split[:2]}_{label}{clip}AbcD_"[:11].ljust(11, "x"), 7 * clip
                lines.append(f"{name},{video},{start},{start + 10},{official}")
                where = {"split/class": f"{split}/{name}", "class": name.replace(" ", "_"), "flat": "."}[layout]
                made(make, root / "videos" / where / f"{video}_{start:06d}_{start + 10:06d}.mp4", label, index)
                index += 1
        written(lists / ("train.csv" if split == "train" else "validate.csv"), lines)
    written(lists / "test.csv", ["youtube_id,time_start,time_end,split", "abcdefghijk,1,11,test"])
    return {"dataset": "kinetics400", "root": root / "videos", "annotations": lists}


def ava(root: Path, make: Make = touch) -> dict:
    """A training and a validation film, each with boxes at two seconds, of which one is excluded."""
    lists = root / "ava_v2.1"
    entries = [("bend/bow (at the waist)", 1), ("crouch/kneel", 3), ("watch (a person)", 80)]
    written(
        lists / "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt",
        [f'item {{\n  name: "{name}"\n  id: {number}\n}}' for name, number in entries],
    )
    for index, (split, video) in enumerate((("train", "-5KQ66BBWC4"), ("val", "1j20qq1JyX4"))):
        made(make, root / "videos" / "trainval" / f"{video}.mkv", 0, index)
        rows = [f"{video},0902,0.077,0.151,0.283,0.811,80,1", f"{video},0902,0.077,0.151,0.283,0.811,1,1"]
        rows += [f"{video},0903,0.332,0.194,0.481,0.891,2,0", f"{video},0904,0.332,0.194,0.481,0.891,3,0"]
        rows += [f"{video},0905,0.1,0.1,0.5,0.5,1,2"]
        written(lists / f"ava_{split}_v2.1.csv", rows)
        written(lists / f"ava_{split}_excluded_timestamps_v2.1.csv", [f"{video},0905"])
    return {"dataset": "ava", "root": root / "videos", "annotations": lists}


SETS = {"folder": folder, "ucf101": ucf101, "hmdb51": hmdb51, "kinetics400": kinetics}
