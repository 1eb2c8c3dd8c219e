"""A run: from a notebook's parameters to its record."""

import pytest

from d3d.study import archive, launch, records, staleness
from d3d.study.experiments import defaults
from d3d.study.run import start
from d3d.train import fuse


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


@pytest.mark.slow
def test_results_lie_in_a_folder_of_any_name(tmp_path, monkeypatch):
    """From training in a process of its own to ensembles, and the archive of them all."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link to it").symlink_to("elsewhere")
    folder = 'link to it/it\'s [a-z] *? {x} $(touch ran) `touch ran` \\ "q" #;&é'
    tiny = {"frames": 4, "size": 16, "train_clips": 32, "test_clips": 16, "epochs": 1, "batch_size": 8, "width": 0.1}
    tiny |= {"results": folder, "flow": "exact"}
    monkeypatch.setenv("PYTHONPATH", str(records.ROOT))
    for stream in ("rgb", "flow"):
        record = launch.train("train", defaults("train") | tiny | {"stream": stream})
        assert record.params["results"] == folder
    fuse.run(start("fuse", defaults("fuse") | {"results": folder}))
    written = {record.name for record in records.read_all(folder)}
    assert written == {"rgb-seed0", "flow-seed0", "two_stream-seed0", "two_stream_logits-seed0"}
    assert archive.pack(folder) == (tmp_path / f"{folder}.jsonl").resolve()
    assert not list(tmp_path.rglob("ran"))
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("elsewhere", "link to it")] == []
