"""The end of a training notebook: accuracy, confusions and example clips of one run, by hand from few clips."""

import numpy as np
import pytest

from d3d.report import run_figures
from d3d.study import records
from d3d.study.records import Record
from tests.study.test_records import PROVENANCE

CLASSES = np.array(["swim", "wave", "jump"])
# Classes 0, 0, 1, 1, 2 are predicted as 0, 1, 1, 1, 0.
LABELS, PREDICTIONS = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])


@pytest.fixture
def record(tmp_path):
    logits = np.log(np.where(np.arange(3) == PREDICTIONS[:, None], 0.8, 0.1)).astype(np.float32)
    arrays = {"classes": CLASSES}
    for split, keep in {"folder/val": slice(0, 2), "folder/test": slice(None)}.items():
        arrays |= {f"logits/{split}": logits[keep], f"labels/{split}": LABELS[keep]}
    arrays |= {"examples/frames": np.zeros((2, 3, 8, 9, 3), np.uint8), "examples/index": np.array([1, 3])}
    made = Record("train", "rgb", 0, {"results": str(tmp_path)}, {"folder/test/top1": 0.6}, False, PROVENANCE)
    records.write(tmp_path, made, arrays)
    return records.read(tmp_path / "train/rgb-seed0.json")


def test_top1_of_every_split_with_wilsons_interval(record):
    table = run_figures.top1(record)
    assert table.index.tolist() == ["folder/val", "folder/test"]
    # Wilson's interval of 3 of 5 is [0.231, 0.882].
    assert table.loc["folder/test"].tolist() == [5, 0.6, 0.231, 0.882]
    assert table.loc["folder/val", "top-1"] == 0.5


def test_rows_of_the_matrix_are_true_classes():
    matrix = run_figures.confusion_matrix(PREDICTIONS, LABELS, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_confusions_are_of_the_main_split_and_dots_are_top1_per_class(record):
    matrix, per_class = run_figures.confusions(record).axes
    assert matrix.get_title() == "confusions on folder/test"
    assert matrix.images[0].get_array().tolist() == [[0.5, 0.5, 0], [0, 1, 0], [1, 0, 0]]
    assert [tick.get_text() for tick in matrix.get_yticklabels()] == CLASSES.tolist()
    dots = [line for line in per_class.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [0.5, 1.0, 0.0]


def test_of_many_classes_the_least_accurate_are_shown(record, monkeypatch):
    monkeypatch.setattr(run_figures, "MOST_CLASSES", 2)
    matrix, _ = run_figures.confusions(record).axes
    assert [tick.get_text() for tick in matrix.get_yticklabels()] == ["swim", "jump"]


def test_examples_name_the_prediction_and_where_it_is_wrong_the_class(record):
    figure = run_figures.examples(record)
    texts = [axis.texts[0].get_text() for axis in figure.axes if axis.texts]
    assert texts == ["predicted: wave (80%)\ntrue: swim", "predicted: wave (80%)"]
    assert len(figure.axes) == 2 * 3


def test_a_run_without_examples_shows_none(tmp_path, record):
    arrays = records.read_arrays(tmp_path, record)
    kept = {name: x for name, x in arrays.items() if not name.startswith("examples/")}
    records.write(tmp_path, record, kept)
    assert run_figures.examples(records.read(tmp_path / "train/rgb-seed0.json")) is None


def test_classes_whose_names_look_like_formulas_are_drawn(tmp_path):
    labels = np.arange(2)
    arrays = {"logits/folder/test": np.eye(2, dtype=np.float32), "labels/folder/test": labels}
    arrays["classes"] = np.array(["$\\frac{$", "b\n$x$"])
    made = Record("train", "rgb", 0, {"results": str(tmp_path)}, {"folder/test/top1": 1.0}, False, PROVENANCE)
    records.write(tmp_path, made, arrays)
    figure = run_figures.confusions(records.read(tmp_path / "train/rgb-seed0.json"))
    figure.canvas.draw()
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["\\$\\frac{\\$", "b\\n\\$x\\$"]
