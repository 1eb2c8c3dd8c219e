"""Frame mAP: values computed by hand, a slow reference, what must not change it, and what is refused."""

import math
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import d3d.detection
from d3d.detection import scoring
from d3d.detection.boxes import read_detections, read_excluded, read_ground_truth
from d3d.detection.scoring import frame_map
from tests.detection.reference import reference
from tests.video.official import write_lines

CLASSES = (1, 2, 3)
# Two boxes of one class apart from each other, and a third of another.
TRUTH = ["v,0902,0.0,0.0,0.4,0.4,1,0", "v,0902,0.5,0.5,0.9,0.9,1,1", "w,0902,0.0,0.0,0.5,0.5,2,0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("boxes")


def score(folder: Path, truth: list[str], detections: list[str], **options) -> scoring.FrameMap:
    for name, lines in (("truth.csv", truth), ("detections.csv", detections)):
        write_lines(folder / name, lines)
    if "excluded" in options:
        write_lines(folder / "excluded.csv", options["excluded"])
        options["excluded"] = folder / "excluded.csv"
    return frame_map(folder / "truth.csv", folder / "detections.csv", **options)


def test_the_public_name_is_the_function():
    assert d3d.detection.frame_map is frame_map


def test_by_hand(folder):
    """Class 1: a hit, a false positive and a hit in the order of their scores; class 2: a miss; class 3: no box."""
    detections = [
        "v,902,0.5,0.5,0.9,0.8,1,0.3",  # IoU 0.75
        "v,902,0.0,0.0,0.4,0.4,1,0.9",
        "v,902,0.0,0.5,0.4,0.9,1,0.5",  # no box there
        "w,902,0.0,0.0,0.5,0.2,2,0.8",  # IoU 0.4
        "w,902,0.0,0.0,0.5,0.5,3,0.8",
    ]
    result = score(folder, TRUTH, detections, classes=CLASSES)
    assert result.per_class[1] == pytest.approx((1 + 2 / 3) / 2)
    assert result.per_class[2] == 0
    assert math.isnan(result.per_class[3])
    assert result.mean == pytest.approx(5 / 12)
    assert result.boxes == {1: 2, 2: 1, 3: 0}
    assert result.detections == {1: 3, 2: 1, 3: 1}
    assert result.key_frames == 2


def test_precision_is_that_of_the_envelope(folder):
    """A false positive before two hits: precision 0, 1/2 and 2/3, so that both hits count with 2/3."""
    detections = [
        f"v,902,{box},1,{s}" for box, s in (("0.5,0,0.9,0.4", 0.9), ("0,0,0.4,0.4", 0.8), (".5,.5,.9,.9", 0.7))
    ]
    assert score(folder, TRUTH[:2], detections).mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(("right", "hit"), [("0.5", 1), ("0.499", 0)])
def test_an_iou_of_exactly_one_half_is_enough(folder, right, hit):
    assert score(folder, ["v,1,0,0,1,1,1"], [f"v,1,0,0,{right},1,1,0.5"]).mean == hit


def test_the_smallest_iou_is_a_parameter(folder):
    detection = ["v,1,0,0,0.8,1,1,0.5"]
    assert score(folder, ["v,1,0,0,1,1,1"], detection, iou=0.75).mean == 1
    assert score(folder, ["v,1,0,0,1,1,1"], detection, iou=0.85).mean == 0


def test_a_duplicate_is_a_false_positive(folder):
    """Two detections of one box, the second better placed: the first in the order of scores takes it."""
    detections = ["v,1,0,0,0.8,1,1,0.9", "v,1,0,0,1,1,1,0.8", "w,1,0,0,1,1,1,0.7"]
    result = score(folder, ["v,1,0,0,1,1,1", "w,1,0,0,1,1,1"], detections)
    assert result.mean == pytest.approx((1 + 2 / 3) / 2)


def test_a_detection_whose_best_box_is_taken_gets_no_other(folder):
    """It overlaps the second box with an IoU of 0.6 too, but the first with more."""
    truth = ["v,1,0,0,1,1,1,5", "v,1,0,0,0.6,1,1,4"]
    detections = ["v,1,0,0,1,1,1,0.9", "v,1,0,0,0.9,1,1,0.8"]
    assert score(folder, truth, detections).mean == pytest.approx(1 / 2)


def test_only_the_50_highest_scores_of_a_key_frame_count(folder):
    """Over all classes together: 50 rows of class 2 displace the hit of class 1, 49 do not."""
    hit = "v,902,0,0,0.4,0.4,1,0.1"
    others = [f"v,902,0,0,0.{k:02d}1,1,2,0.5" for k in range(50)]
    elsewhere = [row.replace("v,", "w,") for row in others]
    assert score(folder, TRUTH, [hit, *others], classes=CLASSES).per_class[1] == 0
    assert score(folder, TRUTH, [hit, *others[1:], *elsewhere], classes=CLASSES).per_class[1] == 0.5
    # Rows of classes that are not in the label map are dropped before.
    assert score(folder, TRUTH, [hit, *others], classes=[1]).per_class[1] == 0.5


def test_of_equal_scores_at_the_limit_the_first_rows_count(folder):
    hit = "v,902,0,0,0.4,0.4,1,0.5"
    others = [f"v,902,0,0,0.{k:02d}1,1,2,0.5" for k in range(50)]
    assert score(folder, TRUTH, [hit, *others], classes=CLASSES).per_class[1] == 0.5
    assert score(folder, TRUTH, [*others, hit], classes=CLASSES).per_class[1] == 0
    # A higher score displaces the smallest class of the lowest score.
    higher = "v,902,0,0,0.5,0.9,3,0.6"
    assert score(folder, TRUTH, [hit, *others, higher], classes=CLASSES).per_class[1] == 0


def test_detections_without_area_do_not_count(folder):
    """The evaluator drops them: they are no false positives. A box without area counts, and cannot be detected."""
    thin = "v,902,0.2,0,0.2,0.4,1,0.95"
    result = score(folder, TRUTH[:1], [thin, "v,902,0,0,0.4,0.4,1,0.9"])
    assert (result.mean, result.detections) == (1, {1: 1})
    assert score(folder, [TRUTH[0], "v,902,0.2,0,0.2,0.4,1,2"], [thin, "v,902,0,0,0.4,0.4,1,0.9"]).mean == 0.5


def test_key_frames_without_boxes_are_scored(folder):
    """Detections there are false positives; on key frames that the ground truth does not name they are ignored."""
    detections = ["v,902,0,0,0.4,0.4,1,0.8", "u,905,0,0,0.4,0.4,1,0.9"]
    assert score(folder, TRUTH[:1], detections).mean == 1
    assert score(folder, [*TRUTH[:1], "u,0905"], detections).mean == 0.5
    # A row of a class that is not scored names its key frame too.
    assert score(folder, [*TRUTH[:1], "u,0905,0,0,1,1,7,0"], detections, classes=[1]).mean == 0.5
    assert score(folder, [*TRUTH[:1], "u,0905"], [*detections, "u,0905"]).mean == 0.5


def test_excluded_key_frames_are_dropped_from_both(folder):
    truth = ["v,902,0,0,1,1,1", "v,903,0,0,1,1,1"]
    detections = ["v,902,0,0,1,1,1,0.5", "v,903,0,0,0.1,0.1,1,0.9"]
    assert score(folder, truth, detections).mean == 0.25
    result = score(folder, truth, detections, excluded=["v,0903"])
    assert (result.mean, result.boxes, result.key_frames) == (1, {1: 1}, 1)


@pytest.mark.parametrize("timestamp", ["902", "0902", "902.0", "902.0000001", " 902"])
def test_timestamps_are_compared_as_numbers(folder, timestamp):
    detections = ["v,902.000,0,0,0.4,0.4,1,0.8"]
    assert score(folder, [TRUTH[0].replace("0902", timestamp)], detections).mean == 1


@pytest.mark.parametrize("timestamp", ["903", "902.00001"])
def test_other_timestamps_differ(folder, timestamp):
    assert score(folder, TRUTH[:1], [f"v,{timestamp},0,0,0.4,0.4,1,0.8"]).mean == 0


def test_no_detections(folder):
    assert score(folder, TRUTH, ["v,902"]).mean == 0
    assert score(folder, TRUTH, []).per_class == {1: 0, 2: 0}


def test_without_boxes_there_is_no_mean(folder):
    result = score(folder, ["v,902"], ["v,902,0,0,0.4,0.4,1,0.8"], classes=[1])
    assert math.isnan(result.mean)
    assert result.detections == {1: 1}
    assert math.isnan(score(folder, [], []).mean)


def test_detections_without_a_score_have_the_highest(folder):
    detections = ["v,902,0.5,0,0.9,0.4,1,0.99", "v,902,0,0,0.4,0.4,1"]
    assert score(folder, TRUTH[:1], detections).mean == 1


def test_tables_are_scored_like_files(folder):
    detections = ["v,902,0,0,0.4,0.4,1,0.8", "w,902,0,0,0.5,0.4,2,0.8", "v,902,0.5,0,0.9,0.4,1,0.9", "w,902"]
    result = score(folder, [*TRUTH, "x,1"], detections, excluded=["w,902"], classes=CLASSES)
    tables = [read(folder / f"{name}.csv") for name, read in
              (("truth", read_ground_truth), ("detections", read_detections), ("excluded", read_excluded))]  # fmt: skip
    same = frame_map(tables[0].drop(columns="person"), tables[1], excluded=tables[2], classes=CLASSES)
    np.testing.assert_equal(vars(same), vars(result))
    assert result.boxes == {1: 2, 2: 0, 3: 0}


keys = st.sampled_from(["v,0902", "v,902.0", "w,902", "w,0903.5"])
# Few edges and scores, so that boxes and scores are often equal.
spans = st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 0.6, 1.0])] * 2).map(sorted)
boxes = st.tuples(spans, spans).map(lambda pair: f"{pair[0][0]},{pair[1][0]},{pair[0][1]},{pair[1][1]}")
actions = st.integers(1, 4).map(str)


def rows(last):
    full = st.tuples(keys, boxes, actions, last).map(",".join)
    return st.one_of(full, full, full, st.tuples(keys, boxes, actions).map(",".join), keys)


truths = st.lists(rows(st.integers(0, 3).map(str)), max_size=12)
tied_detections = st.lists(rows(st.sampled_from(["0.1", "0.5", "0.9", "1"])), max_size=24)
excluded_keys = st.lists(st.sampled_from(["v,902", "w,0903.5"]), max_size=1)


@given(truths, tied_detections, excluded_keys, st.sampled_from([0.25, 0.5, 0.6, 1.0]), st.sampled_from([1, 3, 5, 50]))
@settings(max_examples=300)
def test_the_slow_reference_agrees(folder, truth, detections, excluded, iou, capacity):
    with patch.object(scoring, "CAPACITY", capacity):
        result = score(folder, truth, detections, excluded=excluded, classes=CLASSES, iou=iou)
    keys = [line.split(",") for line in excluded]
    expected = reference(truth, detections, classes=CLASSES, excluded=keys, iou=iou, capacity=capacity)
    np.testing.assert_allclose(list(result.per_class.values()), list(expected.values()), rtol=0, atol=1e-12)
    scored = [p for p in expected.values() if not math.isnan(p)]
    np.testing.assert_allclose(result.mean, np.mean(scored) if scored else math.nan, atol=1e-12)


@st.composite
def distinct_detections(draw):
    """Detections whose scores differ, in hundredths."""
    unscored = draw(st.lists(st.tuples(keys, boxes, actions).map(",".join), max_size=16))
    scores = draw(st.permutations(range(1, 100)))
    return [f"{row},{s / 100}" for row, s in zip(unscored, scores, strict=False)]


@given(truths, distinct_detections(), st.randoms())
@settings(max_examples=60)
def test_the_order_of_rows_and_the_scale_of_scores_do_not_matter(folder, truth, detections, random):
    expected = score(folder, truth, detections, classes=CLASSES).per_class
    shuffled = random.sample(detections, len(detections))
    np.testing.assert_equal(score(folder, truth, shuffled, classes=CLASSES).per_class, expected)
    squared = [f"{row},{float(s) ** 2}" for row, _, s in (line.rpartition(",") for line in detections)]
    np.testing.assert_equal(score(folder, truth, squared, classes=CLASSES).per_class, expected)


@given(truths, tied_detections, st.lists(st.sampled_from(["x,902,0,0,1,1,1,0.7", "v,902,0,0,1,1,9,1"]), min_size=60))
@settings(max_examples=30)
def test_rows_of_other_key_frames_and_classes_change_nothing(folder, truth, detections, others):
    expected = score(folder, truth, detections, classes=CLASSES)
    np.testing.assert_equal(vars(score(folder, truth, others + detections, classes=CLASSES)), vars(expected))


@given(truths)
@settings(max_examples=60)
def test_a_perfect_detector_scores_1(folder, truth):
    """Of boxes with area that differ; the order of equal scores cannot matter."""
    cells = {",".join(row.split(",")[:7]): row.split(",") for row in truth}
    rows = {(float(c[1]), c[0], *c[2:]): key for key, c in cells.items() if len(c) > 2 and c[2] < c[4] and c[3] < c[5]}
    distinct = {(*place[:6], place[6]): key for place, key in rows.items()}
    assume(distinct)
    assert score(folder, list(distinct.values()), [f"{row},0.7" for row in distinct.values()]).mean == 1


@given(truths, distinct_detections(), st.integers(0, 15))
@settings(max_examples=60)
def test_duplicates_never_raise_the_score(folder, truth, detections, k):
    assume(detections)
    row, _, s = detections[k % len(detections)].rpartition(",")
    lower = f"{row},{float(s) - 0.005:.3f}"
    before = score(folder, truth, detections, classes=CLASSES).per_class
    after = score(folder, truth, [*detections, lower], classes=CLASSES).per_class
    assert not any(after[c] > before[c] + 1e-12 for c in CLASSES)


@pytest.mark.parametrize("iou", [0, -0.5, 1.01, math.nan])
def test_an_iou_out_of_range_is_refused(folder, iou):
    with pytest.raises(ValueError, match=r"^iou must be above 0 and at most 1, not "):
        frame_map(folder / "none.csv", folder / "none.csv", iou=iou)


@pytest.mark.parametrize("classes", [[-1], [1.5], ["1"]])
def test_classes_that_are_no_numbers_are_refused(folder, classes):
    write_lines(folder / "truth.csv", TRUTH)
    table = read_ground_truth(folder / "truth.csv")
    with pytest.raises(ValueError, match=r"^classes holds .*: the number of a class is a whole number from 0 on$"):
        frame_map(table, table.assign(score=1.0), classes=classes)


def test_a_label_map_names_the_classes(folder):
    label_map = folder / "actions.pbtxt"
    label_map.write_text('label {\n  name: "sit"\n  label_id: 11\n  label_type: PERSON_MOVEMENT\n}\n')
    result = score(folder, ["v,1,0,0,1,1,11", "v,1,0,0,1,1,1"], ["v,1,0,0,1,1,11,0.5"], classes=label_map)
    assert result.per_class == {11: 1}


def test_a_table_is_not_changed(folder):
    write_lines(folder / "truth.csv", TRUTH)
    table = read_ground_truth(folder / "truth.csv")
    before = table.copy()
    frame_map(table, table.assign(score=1.0))
    pd.testing.assert_frame_equal(table, before)
