"""Scores a file of detections as the official evaluator of AVA does, also as `python -m d3d.detection`.

d3d detection score ava_val_v2.1.csv detections.csv --label-map ava_action_list_v2.1_for_activitynet_2018.pbtxt.txt
"""

import argparse
import sys
from math import isnan

from d3d.detection.boxes import read_label_map
from d3d.detection.scoring import FrameMap, frame_map
from d3d.messages import one_line, printable


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d detection", description="Scores boxes of actions in AVA's formats.")
    commands = parser.add_subparsers(dest="command", required=True)
    score = commands.add_parser("score", help="print frame mAP, and the average precision of every action")
    score.add_argument("ground_truth", help="CSV file: video,timestamp,x1,y1,x2,y2,action[,person]")
    score.add_argument("detections", help="CSV file: video,timestamp,x1,y1,x2,y2,action,score")
    score.add_argument("--label-map", help="list of the scored actions, .pbtxt (default: those of the ground truth)")
    score.add_argument("--excluded", help="CSV file of key frames that are not scored: video,timestamp")
    score.add_argument("--iou", type=float, default=0.5, help="smallest IoU of a true positive (default 0.5)")
    args = parser.parse_args(argv)
    try:
        names = read_label_map(args.label_map) if args.label_map else {}
        classes = list(names) if args.label_map else None
        result = frame_map(args.ground_truth, args.detections, iou=args.iou, classes=classes, excluded=args.excluded)
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))
    print(report(result, names))


def report(result: FrameMap, names: dict[int, str]) -> str:
    """The scores as text: the mean, and a line per class.

    Args:
        result: the scores.
        names: names of the classes by number; may lack some.
    """
    scored = sum(not isnan(precision) for precision in result.per_class.values())
    lines = [
        f"frame mAP at IoU {result.iou:g}: {result.mean:.4f}, over {scored} of {len(result.per_class)} classes in "
        f"{result.key_frames} key frames",
        "",
        f"{'class':>5}  {'boxes':>8}  {'detections':>10}  {'AP':>6}",
    ]
    for number, precision in result.per_class.items():
        counts = f"{result.boxes[number]:>8}  {result.detections[number]:>10}"
        lines.append(f"{number:>5}  {counts}  {precision:>6.4f}  {printable(names.get(number, ''))}".rstrip())
    return "\n".join(lines)
