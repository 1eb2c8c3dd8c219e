"""A run: from a notebook's parameters to its record."""

from d3d.study import records, staleness
from d3d.study.experiments import defaults
from d3d.study.run import start


def test_a_notebook_starts_with_what_it_was_given():
    run = start("train", defaults("train") | {"seed": 7, "rho": 1})
    assert (run.config.run.seed, run.config.data.clip.rho, run.device) == (7, 1.0, "cpu")


def test_a_record_holds_what_the_run_was(tmp_path):
    run = start("train", defaults("train") | {"results": str(tmp_path)})
    with run.phase("data"):
        pass
    run.write("rgb", {"iid/top1": 0.5}, files={"found": 3}, stand_in=False)
    found = records.read(tmp_path / "train" / "rgb-seed0.json")
    assert found.params == defaults("train") | {"results": str(tmp_path)}
    assert found.metrics["iid/top1"] == 0.5
    assert found.metrics["seconds/data"] >= 0
    assert found.files == {"found": 3}
    assert not found.stand_in
    assert found.provenance["source"] == staleness.source_hash("train")
    assert found.provenance["notebook"] == "notebooks/experiments/train.ipynb"
