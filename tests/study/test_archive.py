"""Published studies: the records as they were, and per clip what they follow from."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from d3d.study import archive, records
from d3d.study.plan import ARCHIVES
from d3d.study.records import ROOT, RecordError
from tests.study.test_records import record

LOGITS = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0], [1.0, 4.0, 1.5]], np.float32)
LABELS = np.array([0, 1, 2])
SIBLINGS = np.array([1, 0, -1])
ARRAYS = {"logits/iid": LOGITS, "labels/iid": LABELS, "groups/iid": np.array(["a", "b", "b"]), "siblings": SIBLINGS}


def trained(folder, **changes):
    path = records.write(folder, record(**changes), ARRAYS)
    rows = [{"event": "start"}, {"epoch": 0.5, "loss": 9.0}, {"step": 4, "epoch": 1, "loss": 3.0, "time": 7.5}]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_packed_study_reads_as_the_folder_did(tmp_path):
    study = tmp_path / "study"
    trained(study)
    trained(study, seed=1, metrics={"iid/top1": 0.25})
    records.write(study, record(experiment="probe", arm="rgb"), {"dense": np.ones((2, 3), np.float16)})
    path = archive.pack(study)
    assert path == tmp_path / "study.jsonl"
    assert len(path.read_text().splitlines()) == 3
    assert records.load(path).equals(records.load(study))
    packed, own = records.read_all(path, ["probe"]), records.read_all(study, ["probe"])
    assert records.read_arrays(path, packed[0])["dense"].dtype == np.float16
    assert packed[0].metrics == own[0].metrics
    assert archive.read_curves(path, records.read_all(path, ["train"])[0]) == [{"epoch": 1.0, "loss": 3.0}]
    assert archive.read_curves(study, records.read_all(study, ["train"])[0]) == [{"epoch": 1.0, "loss": 3.0}]


def test_anyone_can_recompute_from_it(tmp_path):
    """Of three clips by hand: right, wrong by 3, wrong by 2.5; beside the sibling ahead by 2, ahead by 2, none."""
    trained(tmp_path / "study")
    path = archive.pack(tmp_path / "study")
    found = records.read_arrays(path, records.read_all(path)[0])
    assert found["prediction/iid"].tolist() == [0, 2, 1]
    assert found["prediction/iid"].dtype == np.uint8
    assert found["margin/iid"].tolist() == [2.0, -3.0, -2.5]
    assert found["margin/iid"].dtype == np.float16
    assert found["sibling/iid"].tolist()[:2] == [2.0, 2.0]
    assert np.isnan(found["sibling/iid"][2])
    with np.load(path.with_suffix(".npz")) as file:
        assert [name for name in file.files if name.startswith("labels/")]
    assert (found["prediction/iid"] == found["labels/iid"]).mean() == pytest.approx(1 / 3)


def test_a_study_of_several_folders_keeps_them_apart(tmp_path):
    records.write(tmp_path / "search/a", record(params={"rho": 0.5}))
    records.write(tmp_path / "search/b", record(params={"rho": 0.9}))
    path = archive.pack(tmp_path / "search")
    cells = records.read_cells(path)
    assert {name: [r.params["rho"] for r in found] for name, found in cells.items()} == {"a": [0.5], "b": [0.9]}
    assert len(records.read_all(path)) == 2


def test_networks_of_other_clips_keep_their_own_labels(tmp_path):
    """As the official splits of a data set do."""
    trained(tmp_path / "study")
    trained(tmp_path / "study", seed=1)
    other = {"logits/iid": LOGITS[:2], "labels/iid": LABELS[:2], "groups/iid": np.array(["a", "b"])}
    records.write(tmp_path / "study", record(arm="flow"), other)
    path = archive.pack(tmp_path / "study")
    found = {r.name: records.read_arrays(path, r)["labels/iid"].tolist() for r in records.read_all(path)}
    assert found == {"flow-seed0": [0, 1], "rgb-seed0": [0, 1, 2], "rgb-seed1": [0, 1, 2]}
    with np.load(path.with_suffix(".npz")) as file:
        assert len([name for name in file.files if name.startswith("labels/")]) == 2


def test_a_study_of_several_folders_keeps_their_arrays(tmp_path):
    for cell in ("rho0.5", "rho0.8"):
        trained(tmp_path / "search" / cell)
    path = archive.pack(tmp_path / "search")
    for cell, (one,) in records.read_cells(path).items():
        assert records.read_arrays(path, one, cell=cell)["prediction/iid"].tolist() == [0, 2, 1]


def test_a_name_with_a_point_is_kept(tmp_path):
    records.write(tmp_path / "rho0.5", record())
    assert archive.pack(tmp_path / "rho0.5") == tmp_path / "rho0.5.jsonl"
    assert archive.pack(tmp_path / "rho0.5", tmp_path / "other.jsonl") == tmp_path / "other.jsonl"


def test_too_much_to_publish_is_refused(tmp_path, monkeypatch):
    trained(tmp_path / "study")
    monkeypatch.setattr(archive, "LARGEST", 1000)
    with pytest.raises(RecordError, match=r"all that is published in .* would take 0.0 MiB, over 0"):
        archive.pack(tmp_path / "study")
    assert not (tmp_path / "study.jsonl").exists()


def test_curves_come_from_either_file(tmp_path):
    path = trained(tmp_path / "study")
    path.with_suffix(".jsonl").unlink()
    records.write(tmp_path / "study", record(), ARRAYS | {"curve/loss": np.array([3.0, 2.0])})
    packed = archive.pack(tmp_path / "study")
    assert archive.read_curves(packed, records.read_all(packed)[0]) == [{"loss": 3.0}, {"loss": 2.0}]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(RecordError, match="holds no records"):
        archive.pack(tmp_path)


def test_a_damaged_one_is_refused_by_name(tmp_path):
    trained(tmp_path / "study")
    trained(tmp_path / "study", seed=1)
    path = archive.pack(tmp_path / "study")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(RecordError, match=r"line 2 of .*study.jsonl is no whole JSON"):
        records.load(path)
    path.write_bytes(whole)
    with np.load(path.with_suffix(".npz")) as file:
        arrays = dict(file)
    arrays["train/rgb-seed1/margin/iid"] = np.zeros(3, np.float16)
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    first, second = records.read_all(path)
    records.read_arrays(path, first)
    with pytest.raises(RecordError, match="holds other arrays of train/rgb-seed1 than its record says"):
        records.read_arrays(path, second)


def test_what_was_not_published_is_named(tmp_path):
    records.write(tmp_path / "study", record())
    path = archive.pack(tmp_path / "study")
    assert not path.with_suffix(".npz").exists()
    with pytest.raises(
        FileNotFoundError, match=r"no arrays of train/rgb-seed0 in .*study.npz: they were not published"
    ):
        records.read_arrays(path, records.read_all(path)[0])
    assert archive.read_curves(path, records.read_all(path)[0]) == []


@pytest.mark.parametrize("path", [*ARCHIVES, Path("results/portable.jsonl")], ids=lambda p: p.stem)
def test_what_is_published_here_is_whole(path):
    found = records.read_all(path)
    assert found
    for one in found:
        if one.arrays:
            assert records.read_arrays(path, one)


def test_all_that_is_published_is_small():
    published = [*(ROOT / "results").glob("*.jsonl"), *(ROOT / "results").glob("*.npz")]
    assert {p.relative_to(ROOT) for p in published} >= set(ARCHIVES)
    assert sum(p.stat().st_size for p in published) < archive.LARGEST


def test_the_command_packs_and_shows(tmp_path):
    path = trained(tmp_path / "study")
    command = [sys.executable, "-m", "d3d", "records"]
    shown = subprocess.run([*command, "show", str(path)], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[:4] == ["train", "rgb-seed0", "iid/top1", "0.500"]
    packed = subprocess.run([*command, "pack", str(tmp_path / "study")], capture_output=True, text=True, check=True)
    assert packed.stdout.startswith("1 records -> ")
    assert "study.npz, 0.00 MiB" in packed.stdout
    records.write(tmp_path / "bare", record())
    bare = subprocess.run([*command, "pack", str(tmp_path / "bare")], capture_output=True, text=True, check=True)
    assert "1 networks have no predictions beside their records" in bare.stdout
    failed = subprocess.run([*command, "pack", str(tmp_path / "no")], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
