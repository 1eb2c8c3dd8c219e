"""The text on JHMDB quotes the records: means over splits and seeds, and the lead of flow with and without repeats."""

import numpy as np
import pytest

from d3d.report import jhmdb
from d3d.study import archive, records
from d3d.study.plan import JHMDB
from d3d.study.records import Record
from tests.study.test_records import PROVENANCE

PARAMS = {"frames": 16, "size": 112, "epochs": 60}


def write(folder, cell, arm, seed, top1, lambda_=0.0):
    metrics = {"jhmdb/test/top1": top1, "jhmdb/test/still/top1": top1 + 0.1, "jhmdb/test/moving/top1": top1 - 0.1}
    provenance = PROVENANCE | {"seconds": 60.0, "device": "a GPU"}
    experiment = "distill" if lambda_ else "train"
    params, metrics = PARAMS | {"lambda_": lambda_}, metrics | {"seconds/train": 20.0 + seed}
    record = Record(experiment, arm, seed, params, metrics, False, provenance, files={"decoded": 30})
    labels = np.arange(10) % 5
    logits = np.eye(5)[labels]
    arrays = {
        f"{kind}/jhmdb/{split}": x for split in ("test", "val") for kind, x in [("labels", labels), ("logits", logits)]
    }
    records.write(folder / cell, record, arrays)


@pytest.fixture
def pilot(tmp_path):
    for split in (1, 2, 3):
        for seed in (0, 1):
            write(tmp_path / "r", f"keep-split{split}", "rgb", seed, 0.1 * split)
            write(tmp_path / "r", f"keep-split{split}", "flow", seed, 0.1 * split + 0.2 + 0.1 * seed)
        write(tmp_path / "r", f"keep-split{split}", "d3d", 0, 0.25, lambda_=0.3)
        write(tmp_path / "r", f"drop-split{split}", "rgb", 0, 0.2)
        write(tmp_path / "r", f"drop-split{split}", "flow", 0, 0.3)
    write(tmp_path / "r", "drop-split1", "rgb", 1, 0.9)  # a seed without all splits
    return archive.pack(tmp_path / "r")


def test_the_text_quotes_the_records(pilot):
    text = " ".join(jhmdb.text(pilot).split())
    assert "flow 0.450 [-0.185, 1.085] top-1, RGB 0.200 [0.200, 0.200]; chance is 0.200" in text.replace("−", "-")
    assert "These are 22 networks of a pilot" in text
    assert "With all frames, flow − RGB is +0.250 [" in text
    assert "flow − RGB is +0.100 (one value)" in text
    assert "for 60 epochs of about 10 clips" in text
    assert "λ = 0.3. Made at commit 0123456789" in text
    rows = {
        tuple(cell.strip() for cell in line.split("|")[1:4]): line
        for line in jhmdb.text(pilot).splitlines()
        if "|" in line
    }
    assert set(rows) >= {("flow", "kept", "2"), ("D3D", "kept", "1"), ("RGB", "dropped", "1")}
    flow = [cell.strip() for cell in rows["flow", "kept", "2"].split("|")]
    assert flow[4:7] == ["0.350", "0.450", "0.550"]
    assert flow[8:10] == ["0.550", "0.350"]


def test_the_published_pilot_is_complete():
    cells = records.read_cells(JHMDB)
    assert set(cells) == {f"{repeats}-split{split}" for repeats in ("keep", "drop") for split in (1, 2, 3)}
    for name, cell in cells.items():
        for record in cell:
            assert not record.stand_in
            assert name == f"{record.params['repeated_frames']}-split{record.params['split']}"
            arrays = records.read_arrays(JHMDB, record, cell=name)
            correct = arrays["prediction/jhmdb/test"] == arrays["labels/jhmdb/test"]
            assert record.metrics["jhmdb/test/top1"] == pytest.approx(correct.mean())


def test_packing_several_folders_counts_their_predictions(tmp_path, pilot, capsys):
    archive.main(["pack", str(pilot.with_suffix("")), "--out", str(tmp_path / "again")])
    assert capsys.readouterr().out.startswith("22 records -> ")
