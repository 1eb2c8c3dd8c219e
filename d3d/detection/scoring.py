"""Frame mAP as the official evaluator of AVA computes it: average precision per action of the boxes of key frames.

    result = frame_map("ava_val_v2.1.csv", "detections.csv", classes="ava_action_list_v2.1.pbtxt")
    result.mean, result.per_class[80]

The protocol is that of get_ava_performance.py (ActivityNet, 2019) with the PascalDetectionEvaluator of the TensorFlow
Object Detection API:

1. Rows of other classes and excluded key frames are dropped; of the detections of a key frame, the 50 with the highest
   scores of all classes count. Key frames that the ground truth does not name are dropped, and boxes without area.
2. In a key frame, detections of a class choose, in the order of their scores, the box of the class with the highest
   IoU. The first to choose a box with an IoU of at least `iou` is a true positive; all others are false positives.
3. Over all key frames, detections of a class are sorted by score. Average precision is the area below the envelope of
   precision over recall. Classes without a box in the ground truth do not count in the mean.

The evaluator's order of equal scores within a key frame is kept. Over key frames its order depends on the processor,
since numpy's default sort is not stable; here detections of equal scores are sorted from the last row to the first.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from d3d.detection.boxes import Last, check_table, read_detections, read_excluded, read_ground_truth, read_label_map
from d3d.messages import shown
from d3d.video.ava import CORNERS, NO_ACTION

# Detections of a key frame that count.
CAPACITY = 50
# Decimals of a second to which timestamps are equal.
DECIMALS = 6


@dataclass(frozen=True)
class FrameMap:
    """The scores of a set of detections.

    Attributes:
        mean: Mean of the average precisions of the classes that have boxes, in [0, 1]; nan if none has.
        per_class: Average precision by class, nan for a class without boxes.
        boxes: Number of ground-truth boxes by class.
        detections: Number of detections by class that count.
        key_frames: Number of key frames scored, also those without boxes.
        iou: Smallest IoU of a true positive.
    """

    mean: float
    per_class: dict[int, float]
    boxes: dict[int, int]
    detections: dict[int, int]
    key_frames: int
    iou: float


class _Boxes(NamedTuple):
    """Boxes in the order in which they are scored.

    Attributes:
        frame: (N,), int, the key frame.
        action: (N,), int, the index of the class.
        score: (N,).
        corners: (4, N): x1, y1, x2, y2.
    """

    frame: np.ndarray
    action: np.ndarray
    score: np.ndarray
    corners: np.ndarray

    def at(self, rows: np.ndarray) -> "_Boxes":
        return _Boxes(self.frame[rows], self.action[rows], self.score[rows], self.corners[:, rows])


def frame_map(
    ground_truth: str | Path | pd.DataFrame,
    detections: str | Path | pd.DataFrame,
    *,
    iou: float = 0.5,
    classes: str | Path | Iterable[int] | None = None,
    excluded: str | Path | pd.DataFrame | None = None,
) -> FrameMap:
    """Scores detections as the official evaluator of AVA does.

    Args:
        ground_truth: CSV file, or table as `read_ground_truth` returns it.
        detections: CSV file, or table as `read_detections` returns it.
        iou: smallest IoU of a true positive, in (0, 1].
        classes: label map, or numbers of the classes that are scored; None: those of the ground truth.
        excluded: file of key frames that are not scored, or table with the columns video and timestamp.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file or table is malformed, naming the row, or iou is out of range.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be above 0 and at most 1, not {iou!r}")
    truth = _table(ground_truth, "ground_truth", "person", read_ground_truth)
    detected = _table(detections, "detections", "score", read_detections)
    left_out = truth[:0] if excluded is None else _table(excluded, "excluded", None, read_excluded)
    numbers = _class_numbers(classes, truth)
    truth_frames, detected_frames, excluded_frames = _frame_numbers(truth, detected, left_out)
    scored_frames = np.setdiff1d(truth_frames, excluded_frames)
    # The evaluator reads the person, where there is one, as the score of a box of the ground truth.
    person = truth["person"].fillna(1) if "person" in truth else pd.Series(1, truth.index)
    truth = truth.assign(score=person.astype(float), frame=truth_frames)
    true_boxes = _boxes(truth, scored_frames, numbers, inf)
    boxes = _boxes(detected.assign(frame=detected_frames), scored_frames, numbers, CAPACITY)
    x1, y1, x2, y2 = boxes.corners
    boxes = boxes.at((x1 < x2) & (y1 < y2))
    correct = _true_positives(true_boxes, boxes, iou, len(numbers))
    per_class, true_counts, counts = {}, {}, {}
    for k, number in enumerate(numbers.tolist()):
        rows = boxes.action == k
        true_counts[number], counts[number] = int(np.sum(true_boxes.action == k)), int(rows.sum())
        per_class[number] = _average_precision(boxes.score[rows], correct[rows], true_counts[number])
    precisions = [per_class[number] for number, count in true_counts.items() if count]
    mean = float(np.mean(precisions)) if precisions else nan
    return FrameMap(mean, per_class, true_counts, counts, len(scored_frames), iou)


def _table(
    source: str | Path | pd.DataFrame, name: str, last: Last | None, read: Callable[[str | Path], pd.DataFrame]
) -> pd.DataFrame:
    return check_table(source, name, last) if isinstance(source, pd.DataFrame) else read(source)


def _class_numbers(classes: str | Path | Iterable[int] | None, truth: pd.DataFrame) -> np.ndarray:
    """The numbers of the classes that are scored, (K,), in ascending order."""
    if classes is None:
        return np.setdiff1d(truth["action"].to_numpy(), [NO_ACTION])
    numbers = list(read_label_map(classes) if isinstance(classes, str | Path) else classes)
    if wrong := [n for n in numbers if not (isinstance(n, int | np.integer) and n >= 0)]:
        raise ValueError(f"classes holds {shown(wrong[0])}: the number of a class is a whole number from 0 on")
    return np.unique(np.array(numbers, int))


def _frame_numbers(*tables: pd.DataFrame) -> list[np.ndarray]:
    """Numbers the key frames of all tables: rows of the same video and timestamp get the same number."""
    videos, _ = pd.factorize(pd.concat([table["video"] for table in tables]))
    seconds, values = pd.factorize(pd.concat([table["timestamp"] for table in tables]))
    instants, _ = pd.factorize(np.array([round(value, DECIMALS) for value in values]))
    frames = videos * (len(instants) + 1) + instants[seconds] if len(seconds) else np.empty(0, int)
    return np.split(frames, np.cumsum([len(table) for table in tables])[:-1])


def _boxes(table: pd.DataFrame, frames: np.ndarray, numbers: np.ndarray, capacity: float) -> _Boxes:
    """The boxes of some key frames and classes, as `_ranked` orders them."""
    table = table[table["frame"].isin(frames) & table["action"].isin(numbers)]
    action = np.searchsorted(numbers, table["action"])
    boxes = _Boxes(table["frame"].to_numpy(), action, table["score"].to_numpy(), table[[*CORNERS]].to_numpy().T)
    return boxes.at(_ranked(boxes, capacity))


def _ranked(boxes: _Boxes, capacity: float) -> np.ndarray:
    """The rows that count: key frames in the order of their first rows, each by descending score up to its capacity."""
    frame, _ = pd.factorize(boxes.frame)
    order = np.lexsort((-boxes.score, frame))
    ordered, score = frame[order], boxes.score[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    ties = ordered[1:][(ordered[1:] == ordered[:-1]) & (score[1:] == score[:-1])]
    has_ties = np.isin(ordered, ties)
    rows = order[(rank < capacity) & ~has_ties]
    # Without ties, the order is that of the scores; with them, it is that of the evaluator's heap.
    tied = np.sort(order[has_ties])
    tied = tied[np.argsort(frame[tied], kind="stable")]
    heaps = [_heap_order(boxes, group, capacity) for group in np.split(tied, np.flatnonzero(np.diff(frame[tied])) + 1)]
    rows = np.concatenate([rows, *heaps])
    return rows[np.argsort(frame[rows], kind="stable")]


def _heap_order(boxes: _Boxes, rows: np.ndarray, capacity: float) -> np.ndarray:
    """The rows of one key frame as the evaluator keeps them, in a heap whose smallest row a higher score replaces."""
    x1, y1, x2, y2 = boxes.corners[:, rows]
    columns = (boxes.score[rows], boxes.action[rows], y1, x1, y2, x2)
    entries = list(zip(*(column.tolist() for column in columns), strict=True))
    heap: list[tuple] = []
    for entry in entries:
        if len(heap) < capacity:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    # Equal entries are interchangeable, so that each may stand for the last of them.
    row_of = dict(zip(entries, rows.tolist(), strict=True))
    return np.array([row_of[entry] for entry in sorted(heap, key=lambda entry: -entry[0])], int)


def _true_positives(truth: _Boxes, boxes: _Boxes, iou: float, classes: int) -> np.ndarray:
    """Whether each detection is a true positive, (N,): the first to choose a box that it overlaps enough."""
    correct = np.zeros(len(boxes.frame), bool)
    groups, box_groups = truth.frame * classes + truth.action, boxes.frame * classes + boxes.action
    order = np.argsort(groups, kind="stable")
    first, end = (np.searchsorted(groups[order], box_groups, side) for side in ("left", "right"))
    rivals = np.flatnonzero(end > first)
    if not len(rivals):
        return correct
    # Pairs of a detection and a box of its class and key frame; those of one detection are neighbours.
    sizes = (end - first)[rivals]
    starts = np.cumsum(sizes) - sizes
    within = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    true_rows = order[np.repeat(first[rivals], sizes) + within]
    overlaps = _iou(boxes.corners[:, np.repeat(rivals, sizes)], truth.corners[:, true_rows])
    best = np.maximum.reduceat(overlaps, starts)
    highest = np.flatnonzero(overlaps == np.repeat(best, sizes))
    choices = true_rows[highest[np.searchsorted(highest, starts)]]
    matched = best >= iou
    _, firsts = np.unique(choices[matched], return_index=True)
    correct[rivals[matched][firsts]] = True
    return correct


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs of boxes, (N,), from corners (4, N); 0 where both have no area."""
    width = np.maximum(0, np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]))
    height = np.maximum(0, np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]))
    intersection = width * height
    area_a, area_b = ((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    union = area_a + area_b - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _average_precision(scores: np.ndarray, correct: np.ndarray, count: int) -> float:
    """Area below the envelope of precision over recall.

    Args:
        scores: (N,), of the detections of a class.
        correct: (N,), bool, whether each is a true positive.
        count: number of boxes of the class in the ground truth.

    Returns:
        The area in [0, 1]; nan without boxes.
    """
    if count == 0:
        return nan
    # Sorted as the evaluator sorts, up to the order of equal scores.
    correct = correct[np.argsort(scores, kind="stable")[::-1]]
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[correct].sum() / count)
