"""Frame mAP from its protocol, with loops over rows of text: slow, and written apart from the package.

reference(["v,902,0,0,1,1,1"], ["v,902,0,0,1,1,1,0.9"], classes={1}) == {1: 1.0}
"""

import heapq
import math
from collections.abc import Collection, Iterable

Row = tuple[float, int, float, float, float, float]  # score, class, y1, x1, y2, x2
Key = tuple[str, str]


def key_of(video: str, timestamp: str) -> Key:
    return video, f"{float(timestamp):.6f}"


def rows_of(lines: Iterable[str], classes: Collection[int], capacity: float) -> tuple[dict[Key, list[Row]], set[Key]]:
    """The rows of each key frame that count, by descending score, and all key frames that the lines name."""
    kept: dict[Key, list[Row]] = {}
    named = set()
    for line in lines:
        cells = line.split(",")
        key = key_of(*cells[:2])
        named.add(key)
        if len(cells) == 2 or int(cells[6]) not in classes:
            continue
        x1, y1, x2, y2 = map(float, cells[2:6])
        row = (float(cells[7]) if len(cells) == 8 else 1.0, int(cells[6]), y1, x1, y2, x2)
        heap = kept.setdefault(key, [])
        if len(heap) < capacity:
            heapq.heappush(heap, row)
        elif row[0] > min(heap)[0]:
            heapq.heapreplace(heap, row)
    return {key: sorted(heap, key=lambda row: row[0], reverse=True) for key, heap in kept.items()}, named


def overlap(a: Row, b: Row) -> float:
    height = min(a[4], b[4]) - max(a[2], b[2])
    width = min(a[5], b[5]) - max(a[3], b[3])
    if height <= 0 or width <= 0:
        return 0.0
    common = height * width
    return common / ((a[4] - a[2]) * (a[5] - a[3]) + (b[4] - b[2]) * (b[5] - b[3]) - common)


def reference(
    truth_lines: Iterable[str],
    detection_lines: Iterable[str],
    *,
    classes: Collection[int],
    excluded: Iterable[tuple[str, str]] = (),
    iou: float = 0.5,
    capacity: int = 50,
) -> dict[int, float]:
    """Average precision by class; nan for classes without boxes."""
    left_out = {key_of(*each) for each in excluded}
    truth, named = rows_of(truth_lines, classes, math.inf)
    detections, _ = rows_of(detection_lines, classes, capacity)
    precisions = {}
    for number in classes:
        count, marks = 0, []
        for key, boxes in truth.items():
            count += sum(box[1] == number for box in boxes) if key not in left_out else 0
        for key, rows in detections.items():
            if key in left_out or key not in named:
                continue
            boxes = [box for box in truth.get(key, []) if box[1] == number]
            taken = set()
            for row in rows:
                if row[1] != number or row[2] >= row[4] or row[3] >= row[5]:
                    continue
                overlaps = [overlap(row, box) for box in boxes]
                best = overlaps.index(max(overlaps)) if boxes else -1
                hit = best >= 0 and overlaps[best] >= iou and best not in taken
                if hit:
                    taken.add(best)
                marks.append((row[0], hit))
        precisions[number] = area(marks, count) if count else math.nan
    return precisions


def area(marks: list[tuple[float, bool]], count: int) -> float:
    """The mean over the boxes of the best precision at which as many of them are detected."""
    hits = [hit for _, hit in sorted(marks, key=lambda mark: mark[0])][::-1]
    points = [(sum(hits[:n]), sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    return sum(max((p for detected, p in points if detected >= k), default=0.0) for k in range(1, count + 1)) / count
