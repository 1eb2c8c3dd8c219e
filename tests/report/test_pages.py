"""Text from records."""

import numpy as np
import pytest

from d3d.report import pages
from d3d.study import archive
from d3d.study.experiments import parameter_names
from d3d.study.records import Record, write


def cell(folder, name, flow, rgb, both, started):
    for experiment, arm, top1 in (("train", "flow", flow), ("train", "rgb", rgb), ("fuse", "two_stream", both)):
        if top1 is not None:
            metrics = {f"iid/{group}top1": top1 for group in ("", "motion/", "appearance/")}
            params = {"rho": 0.6, "amplitude": 1.0} if experiment == "train" else {}
            write(folder / name, Record(experiment, arm, 100, params, metrics, True, {"started": started}))


def test_the_search_names_the_cells_in_the_regime(tmp_path):
    cell(tmp_path / "search", "later", 0.5, 0.7, 0.85, "2026-01-02")
    cell(tmp_path / "search", "earlier", 0.5, 0.9, 0.95, "2026-01-01")
    cell(tmp_path / "search", "order", 0.75, 0.7, 0.85, "2026-01-03")
    cell(tmp_path / "search", "half", 0.6, None, None, "2026-01-04")
    table = pages.regime(archive.pack(tmp_path / "search")).set_index("cell")
    assert list(table.index) == ["earlier", "later", "order", "half"]
    assert table["in the regime"].to_list() == ["no", "yes", "no", "no"]
    assert table.loc["later", ["flow", "RGB", "two-stream"]].to_list() == [0.5, 0.7, 0.85]
    assert table.loc["later", "amplitude"] == 1.0
    assert table.loc["half", ["RGB", "two-stream"]].isna().all()


def test_no_search_gives_no_rows(tmp_path):
    assert pages.regime(tmp_path / "nowhere.jsonl").empty


def test_only_networks_count_as_published(tmp_path):
    metrics, made = {"iid/top1": 0.5}, {"started": "2026-01-01"}
    write(tmp_path / "mine", Record("train", "rgb", 0, {}, metrics, True, made))
    write(tmp_path / "theirs", Record("leak", "pose", 0, {}, metrics, True, made))
    assert pages.rerun_text(tmp_path / "mine", tmp_path / "theirs") == "1 networks trained here, 0 published."


def test_networks_side_by_side(tmp_path):
    labels = np.array([0, 1, 1, 0])
    for experiment, arm, logits in [
        ("train", "rgb", [[1, 0]] * 4),
        ("fuse", "two_stream", [[1, 0], [0, 1], [0, 1], [1, 0]]),
    ]:
        arrays = {"logits/folder/test": np.array(logits, np.float32), "labels/folder/test": labels}
        write(tmp_path, Record(experiment, arm, 3, {}, {"folder/test/top1": 0.5}, False, {}), arrays)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in pages.compare(tmp_path).splitlines()]
    assert lines[0] == ["network", "seed", "split", "clips", "top-1"]
    # Wilson by hand for 2 of 4: the centre stays 1/2, half the width is z sqrt(1/16 + z²/64) / (1 + z²/4).
    z = 1.959964
    half = z * (1 / 16 + z**2 / 64) ** 0.5 / (1 + z**2 / 4)
    assert lines[2] == ["RGB", "3", "folder/test", "4", f"0.500 [{0.5 - half:.3f}, {0.5 + half:.3f}]"]
    assert lines[3][:4] == ["two-stream", "3", "folder/test", "4"]
    assert lines[3][4].startswith("1.000 [0.510, 1.000]")
    with pytest.raises(FileNotFoundError, match="no networks under"):
        pages.compare(tmp_path / "none")


def test_every_parameter_stands_once_in_its_table():
    lines = pages.parameters().splitlines()
    rows = [line.split("|")[1].strip(" `") for line in lines if line.startswith("| `")]
    assert len(rows) == len(set(rows))
    assert set(rows) == parameter_names()
    meaning = "sprites: probability that a clip of a motion class has its typical appearance, in [0, 1]"
    assert f"| `rho` | float, `0.5` | {meaning} |" in lines
    assert ": `results`" in lines  # all that fuse takes


def test_an_archive_is_neither_stale_nor_current(tmp_path):
    made = {"source": "other", "started": "2026-01-01", "commit": "0123456789ab", "dirty": False, "device": "gpu"}
    record = Record("train", "rgb", 0, {}, {"iid/top1": 0.5}, True, made | {"packages": {"torch": "2"}})
    assert "| made by other code than today's | 1" in pages._records([record], archived=False)
    archived = pages._records([record], archived=True)
    assert "other code" not in archived
    assert "0123456789" in archived
