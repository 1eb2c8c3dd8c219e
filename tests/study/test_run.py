"""A run: from a notebook's parameters to its record."""

from d3d.study import records, staleness
from d3d.study.experiments import defaults
from d3d.study.run import start


def test_a_run_starts_with_the_parameters_of_its_notebook():
    run = start("train", defaults("train") | {"seed": 7, "rho": 1})
    assert (run.config.run.seed, run.config.data.clip.rho, run.device) == (7, 1.0, "cpu")


def test_a_record_describes_its_run(tmp_path):
    run = start("train", defaults("train") | {"results": str(tmp_path)})
    with run.phase("data"):
        pass
    run.write("rgb", {"iid/top1": 0.5}, files={"listed": 3}, stand_in=False)
    record = records.read(tmp_path / "train" / "rgb-seed0.json")
    assert record.params == defaults("train") | {"results": str(tmp_path)}
    assert record.metrics["iid/top1"] == 0.5
    assert record.metrics["seconds/data"] >= 0
    assert record.files == {"listed": 3}
    assert not record.stand_in
    assert record.provenance["source"] == staleness.source_hash("train")
    assert record.provenance["notebook"] == "notebooks/experiments/train.ipynb"
