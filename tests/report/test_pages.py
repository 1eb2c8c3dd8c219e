"""The pages and the README's table."""

import json

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
