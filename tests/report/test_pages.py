"""The pages, the README's table and `d3d report compare`."""

import json

import numpy as np
import pytest

from d3d.report import pages
from d3d.study import archive
from d3d.study.experiments import parameter_names
from d3d.study.records import Record, write
from tests.study.test_records import PROVENANCE


def write_cell(folder, name, flow, rgb, both, started):
    for experiment, arm, top1 in (("train", "flow", flow), ("train", "rgb", rgb), ("fuse", "two_stream", both)):
        if top1 is not None:
            metrics = {f"iid/{group}top1": top1 for group in ("", "motion/", "appearance/")}
            params = {"rho": 0.6, "amplitude": 1.0} if experiment == "train" else {}
            write(folder / name, Record(experiment, arm, 100, params, metrics, True, PROVENANCE | {"started": started}))


def test_the_regime_table_marks_the_cells_in_the_regime(tmp_path):
    write_cell(tmp_path / "search", "later", 0.5, 0.7, 0.85, "2026-01-02")
    write_cell(tmp_path / "search", "earlier", 0.5, 0.9, 0.95, "2026-01-01")
    write_cell(tmp_path / "search", "order", 0.75, 0.7, 0.85, "2026-01-03")
    write_cell(tmp_path / "search", "half", 0.6, None, None, "2026-01-04")
    table = pages.regime_table(archive.pack(tmp_path / "search")).set_index("cell")
    assert list(table.index) == ["earlier", "later", "order", "half"]
    assert table["in the regime"].to_list() == ["no", "yes", "no", "no"]
    assert table.loc["later", ["flow", "RGB", "two-stream"]].to_list() == [0.5, 0.7, 0.85]
    assert table.loc["later", "amplitude"] == 1.0
    assert table.loc["half", ["RGB", "two-stream"]].isna().all()


def test_the_regime_table_of_no_records_is_empty(tmp_path):
    assert pages.regime_table(tmp_path / "nowhere.jsonl").empty


def test_only_networks_count_as_published(tmp_path):
    metrics, provenance = {"iid/top1": 0.5}, PROVENANCE
    write(tmp_path / "here", Record("train", "rgb", 0, {}, metrics, True, provenance))
    write(tmp_path / "published", Record("leak", "pose", 0, {}, metrics, True, provenance))
    text = pages.rerun_text(tmp_path / "here", tmp_path / "published")
    assert text == "Networks trained here: 1; published: 0."


def cells(text):
    """The cells of a Markdown table, row by row, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|:-")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def write_network(folder, arm, correct, *, experiment="train", split="folder/test", seed=3):
    """A record of a network of two classes that is right on these clips; the class of every clip is 0."""
    correct = np.asarray(correct, bool)
    logits = np.stack([correct, ~correct], 1).astype(np.float32)
    arrays = {f"logits/{split}": logits, f"labels/{split}": np.zeros(len(correct), int)}
    write(folder, Record(experiment, arm, seed, {}, {f"{split}/top1": correct.mean()}, False, PROVENANCE), arrays)


def first_right(n, total=100):
    return np.arange(total) < n


def test_networks_side_by_side(tmp_path):
    labels = np.array([0, 1, 1, 0])
    for experiment, arm, logits in [
        ("train", "rgb", [[1, 0]] * 4),
        ("fuse", "two_stream", [[1, 0], [0, 1], [0, 1], [1, 0]]),
    ]:
        arrays = {"logits/folder/test": np.array(logits, np.float32), "labels/folder/test": labels}
        write(tmp_path, Record(experiment, arm, 3, {}, {"folder/test/top1": 0.5}, False, PROVENANCE), arrays)
    lines = cells(pages.compare(tmp_path))
    assert lines[0] == ["network", "seed", "split", "clips", "top-1"]
    # Wilson by hand for 2 of 4: the centre stays 1/2, half the width is z sqrt(1/16 + z²/64) / (1 + z²/4).
    z = 1.959964
    half = z * (1 / 16 + z**2 / 64) ** 0.5 / (1 + z**2 / 4)
    assert lines[1] == ["RGB", "3", "folder/test", "4", f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]"]
    assert lines[2][:4] == ["two-stream", "3", "folder/test", "4"]
    assert lines[2][4].startswith("1.000 [0.510, 1.000]")
    with pytest.raises(FileNotFoundError, match="no networks under"):
        pages.compare(tmp_path / "none")


def test_a_difference_that_the_test_set_cannot_show_is_named(tmp_path):
    """Of 100 clips, RGB is wrong on 5 and flow on 6 that D3D gets right: only the second difference can be shown."""
    write_network(tmp_path, "d3d", first_right(80), experiment="distill")
    write_network(tmp_path, "rgb", first_right(75))
    write_network(tmp_path, "flow", first_right(74))
    # With the added clips 1/102 and 6/102: -5/102 ± 1.96 sqrt((7/102 - (5/102)²) / 102).
    half = 1.959964 * ((7 / 102 - (5 / 102) ** 2) / 102) ** 0.5
    interval = f"[{-5 / 102 - half:+.3f}, {-5 / 102 + half:+.3f}]".replace("-", "−")
    assert pages.compare(tmp_path).splitlines()[-2:] == [
        "- folder/test, seed 3: 100 clips (one clip is 0.01) are too few to tell these from the best network, D3D: "
        f"RGB −0.050 {interval}.",
        "- All intervals are 95 % intervals over the test clips; training with another seed changes top-1 as well.",
    ]


def test_networks_on_other_clips_are_not_paired(tmp_path):
    write_network(tmp_path, "rgb", first_right(75))
    write_network(tmp_path, "d3d", first_right(75, 101), experiment="distill")
    write_network(tmp_path, "flow", first_right(75), seed=4)
    assert "too few" not in pages.compare(tmp_path)


def test_a_rerun_beside_the_published_study(tmp_path):
    """Wilson's interval of 75 of 100 is [0.657, 0.825]: 0.66 lies within it, 0.65 does not."""
    for published, arm in ((0.66, "rgb"), (0.65, "flow")):
        write_network(tmp_path / "here", arm, np.roll(first_right(75), 50 if arm == "flow" else 0))
        record = Record("train", arm, 3, {}, {"folder/test/top1": published}, False, PROVENANCE)
        write(tmp_path / "published", record)
    write_network(tmp_path / "here", "d3d", first_right(99), experiment="distill")
    study = archive.pack(tmp_path / "published")
    text = pages.compare(tmp_path / "here", study)
    lines = cells(text)
    assert lines[0][-2:] == ["top-1", "published"]
    assert {line[0]: line[-1] for line in lines[1:]} == {"RGB": "0.660", "flow": "0.650", "D3D": "needs data"}
    assert lines[1][4] == "0.750 [0.657, 0.825]"
    assert [line for line in text.splitlines() if "too few" in line] == [
        "- folder/test, seed 3: 100 clips (one clip is 0.01) are too few to tell these from the published networks: "
        "RGB +0.090."
    ]
    with pytest.raises(FileNotFoundError, match="no records at"):
        pages.compare(tmp_path / "here", tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="published without logits"):
        pages.compare(study)


def test_papermills_cell_is_hidden_once(tmp_path):
    path = tmp_path / "chapter.ipynb"
    tags = [["parameters"], ["injected-parameters"], []]
    path.write_text(json.dumps({"cells": [{"metadata": {"tags": t}} for t in tags] + [{"metadata": {}}]}))
    for _ in range(2):
        pages.hide_injected(path)
    hidden = [cell["metadata"].get("tags") for cell in json.loads(path.read_text())["cells"]]
    assert hidden == [["parameters"], ["injected-parameters", "remove-cell"], [], None]


def test_every_parameter_is_listed_once():
    lines = pages.parameter_tables().splitlines()
    rows = [line.split("|")[1].strip(" `") for line in lines if line.startswith("| `")]
    assert len(rows) == len(set(rows))
    assert set(rows) == parameter_names()
    meaning = "sprites: probability that a clip of a motion class has its typical appearance, in [0, 1]"
    assert f"| `rho` | float, `0.5` | {meaning} |" in lines
    assert ": `results`" in lines  # the only parameter of fuse


def test_an_archive_is_neither_stale_nor_current(tmp_path):
    provenance = {"source": "other", "started": "2026-01-01", "commit": "0123456789ab", "dirty": False, "device": "gpu"}
    record = Record("train", "rgb", 0, {}, {"iid/top1": 0.5}, True, provenance | {"packages": {"torch": "2"}})
    assert "| made by other code than today's | 1" in pages._provenance_table([record], archived=False)
    archived = pages._provenance_table([record], archived=True)
    assert "other code" not in archived
    assert "0123456789" in archived
