"""A tiny copy of AVA v2.1 in its official layout: films of a few seconds, whose frames say which they are."""

from pathlib import Path

import numpy as np

from d3d.video.decode import encode
from tests.video.official import write_lines

FPS, SECONDS, HEIGHT, WIDTH = 25, 5, 32, 48
TRAIN, VAL = ("-5KQ66BBWC4", "_mAfwH6i90E"), ("1j20qq1JyX4", "2FIHI1xjl9k")
ACTIONS = {1: "bend/bow (at the waist)", 3: "crouch/kneel", 80: "watch (a person)"}
LEFT, RIGHT = "0.1,0.2,0.4,0.9", "0.6,0.1,0.9,0.8"


def film(path: Path) -> None:
    """Writes a film whose frame t has the grey level 2 t, and a white upper left corner."""
    levels = 2 * np.arange(FPS * SECONDS, dtype=np.uint8)
    frames = np.repeat(levels, HEIGHT * WIDTH * 3).reshape(-1, HEIGHT, WIDTH, 3).copy()
    frames[:, : HEIGHT // 4, : WIDTH // 4] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(frames, fps=FPS))


def rows(video: str) -> list[str]:
    """Boxes of a film: two persons at second 2, one with two actions; one at 3; none at 4, and an excluded second."""
    return [
        f"{video},0002,{LEFT},80,1",
        f"{video},0002,{LEFT},1,1",
        f"{video},0002,{RIGHT},3,2",
        f"{video},0003,{RIGHT},80,2",
        f"{video},0003,{RIGHT},12,2",  # an action that is not scored
        f"{video},0004",
        f"{video},0001,{LEFT},1,3",
    ]


def write_ava(root: Path) -> dict[str, str]:
    """Writes the films below root/AVA, AVA's files to root/AVA_v2.1, and boxes of persons on val to root/BOXES.csv."""
    lists = root / "AVA_v2.1"
    write_lines(
        lists / "ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt",
        [f'item {{\n  name: "{name}"\n  id: {number}\n}}' for number, name in ACTIONS.items()],
    )
    for split, videos in (("train", TRAIN), ("val", VAL)):
        for video in videos:
            film(root / "AVA" / split / f"{video}.mp4")
        write_lines(lists / f"ava_{split}_v2.1.csv", [row for video in videos for row in rows(video)])
        excluded = [f"{video},0001" for video in videos]
        write_lines(lists / f"ava_{split}_excluded_timestamps_v2.1.csv", excluded)
    shifted = "0.5,-0.01,0.9,0.8"
    detected = {
        "0001": [(LEFT, 0.9)],
        "0002": [(LEFT, 0.9), (shifted, 0.7)],
        "0004": [(LEFT, 0.2)],
        "0777": [(LEFT, 1)],
    }
    boxes = [f"{v},{t},{box},,{score}" for v in VAL for t, of_frame in detected.items() for box, score in of_frame]
    write_lines(root / "BOXES.csv", boxes)
    return {"root": str(root / "AVA"), "annotations": str(lists), "boxes": str(root / "BOXES.csv")}
