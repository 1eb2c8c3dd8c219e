"""Published studies keep the records unchanged, and per clip the predictions and margins behind their metrics."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3d.study import archive, records
from d3d.study.plan import ARCHIVES
from d3d.study.records import ROOT, RecordError
from tests.study.test_records import record

LOGITS = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0], [1.0, 4.0, 1.5]], np.float32)
LABELS = np.array([0, 1, 2])
SIBLINGS = np.array([1, 0, -1])
ARRAYS = {"logits/iid": LOGITS, "labels/iid": LABELS, "groups/iid": np.array(["a", "b", "b"]), "siblings": SIBLINGS}


def write_network(folder, **changes):
    """Writes the record, arrays and metrics file of a trained network."""
    path = records.write(folder, record(**changes), ARRAYS)
    rows = [{"event": "start"}, {"epoch": 0.5, "loss": 9.0}, {"step": 4, "epoch": 1, "loss": 3.0, "time": 7.5}]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_packed_study_reads_like_its_folder(tmp_path):
    study = tmp_path / "study"
    write_network(study)
    write_network(study, seed=1, metrics={"iid/top1": 0.25})
    records.write(study, record(experiment="probe", arm="rgb"), {"dense": np.ones((2, 3), np.float16)})
    path = archive.pack(study)
    assert path == tmp_path / "study.jsonl"
    assert len(path.read_text().splitlines()) == 3
    assert records.load(path).equals(records.load(study))
    (packed,), (original,) = records.read_all(path, ["probe"]), records.read_all(study, ["probe"])
    assert records.read_arrays(path, packed)["dense"].dtype == np.float16
    assert packed.metrics == original.metrics
    assert archive.read_curves(path, records.read_all(path, ["train"])[0]) == [{"epoch": 1.0, "loss": 3.0}]
    assert archive.read_curves(study, records.read_all(study, ["train"])[0]) == [{"epoch": 1.0, "loss": 3.0}]


def test_predictions_and_margins_are_published(tmp_path):
    """Three clips computed by hand: margins 2, -3 and -2.5; margins over the sibling 2, 2 and none."""
    frozen = {f"{name}/frozen": ARRAYS[f"{name}/iid"] for name in ("logits", "labels")}
    records.write(tmp_path / "study", record(), ARRAYS | frozen)
    records.write(tmp_path / "study", record(experiment="fuse", arm="rgb_rgb"), ARRAYS)
    path = archive.pack(tmp_path / "study")
    ensemble, network = (records.read_arrays(path, r) for r in records.read_all(path))
    for arrays, split in ((network, "iid"), (network, "frozen"), (ensemble, "iid")):
        assert arrays[f"prediction/{split}"].tolist() == [0, 2, 1]
        assert arrays[f"choice/{split}"].tolist() == [1, 1, -128]
        assert (arrays[f"prediction/{split}"] == arrays[f"labels/{split}"]).mean() == pytest.approx(1 / 3)
    assert network["margin/iid"].tolist() == [8, -12, -10]
    assert network["sibling/iid"].tolist() == [8, 8, -128]
    # Of a split that no one judges by, and of an ensemble, the margins are left out.
    assert {name.split("/")[0] for name in ensemble} == {"prediction", "choice", "labels", "groups"}
    assert "margin/frozen" not in network
    assert {x.dtype.name for name, x in network.items() if not name.startswith(records.SHARED)} == {"int8", "uint8"}
    with np.load(path.with_suffix(".npz")) as file:
        assert [name for name in file.files if name.startswith("labels/")]


@given(st.floats(-50, 50))
def test_a_margin_keeps_its_sign_and_is_close(margin):
    (quarter,) = archive.quarters(np.array([margin]))
    assert np.sign(quarter) == np.sign(margin)
    assert 0 <= abs(quarter) / 4 - min(abs(margin), 8) <= 0.25


def packed_part(folder, name, **changes):
    """The archive of a folder with one network of one seed."""
    write_network(folder / name, **changes)
    return archive.pack(folder / name)


def test_archives_of_some_seeds_each_join_into_the_study_that_one_folder_would_give(tmp_path):
    parts = [packed_part(tmp_path, f"part{seed}", seed=seed) for seed in (0, 1)]
    for seed in (0, 1):
        write_network(tmp_path / "whole", seed=seed)
    merged, whole = archive.merge(parts, tmp_path / "merged"), archive.pack(tmp_path / "whole")
    assert merged.read_text() == whole.read_text()
    with np.load(merged.with_suffix(".npz")) as a, np.load(whole.with_suffix(".npz")) as b:
        assert set(a.files) == set(b.files)
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_archives_join_as_cells_named_after_their_files(tmp_path):
    parts = [packed_part(tmp_path, f"rho{rho}", params={"rho": rho}) for rho in (0.5, 0.9)]
    cells = records.read_cells(archive.merge(parts, tmp_path / "cells", as_cells=True))
    assert {cell: [r.params["rho"] for r in rs] for cell, rs in cells.items()} == {"rho0.5": [0.5], "rho0.9": [0.9]}
    for cell, (cell_record,) in cells.items():
        assert records.read_arrays(tmp_path / "cells.jsonl", cell_record, cell=cell)["prediction/iid"].tolist() == [
            0,
            2,
            1,
        ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: [packed_part(f, "a"), packed_part(f, "b")], r"holds train/rgb-seed0 more than once"),
        (
            lambda f: [packed_part(f, "a", params={"rho": 0.5}), packed_part(f, "b", seed=1, params={"rho": 0.9})],
            "were made with different rho",
        ),
        (lambda f: [f / "none.jsonl"], r"none.jsonl holds no records: give archives of single folders"),
        (
            lambda f: [archive.merge([packed_part(f, "a")], f / "cells", as_cells=True)],
            r"cells.jsonl has cells of its own: give archives of single folders",
        ),
    ],
)
def test_archives_that_do_not_belong_together_are_not_joined(tmp_path, make, message):
    with pytest.raises(RecordError, match=message):
        archive.merge(make(tmp_path), tmp_path / "merged")
    assert not (tmp_path / "merged.jsonl").exists()


def test_a_search_is_published_without_arrays(tmp_path):
    write_network(tmp_path / "search" / "rates")
    path = archive.pack(tmp_path / "search", only_metrics=True)
    assert [r.arrays for r in records.read_all(path)] == [""]
    assert records.load(path)["value"].tolist() == [0.5]
    assert not path.with_suffix(".npz").exists()


def test_a_study_of_several_folders_keeps_their_records_separate(tmp_path):
    records.write(tmp_path / "search/a", record(params={"rho": 0.5}))
    records.write(tmp_path / "search/b", record(params={"rho": 0.9}))
    path = archive.pack(tmp_path / "search")
    cells = records.read_cells(path)
    assert {name: [r.params["rho"] for r in cell] for name, cell in cells.items()} == {"a": [0.5], "b": [0.9]}
    assert len(records.read_all(path)) == 2


def test_networks_tested_on_different_clips_keep_their_own_labels(tmp_path):
    """Official splits of a data set have different test clips."""
    write_network(tmp_path / "study")
    write_network(tmp_path / "study", seed=1)
    other = {"logits/iid": LOGITS[:2], "labels/iid": LABELS[:2], "groups/iid": np.array(["a", "b"])}
    records.write(tmp_path / "study", record(arm="flow"), other)
    path = archive.pack(tmp_path / "study")
    labels = {r.name: records.read_arrays(path, r)["labels/iid"].tolist() for r in records.read_all(path)}
    assert labels == {"flow-seed0": [0, 1], "rgb-seed0": [0, 1, 2], "rgb-seed1": [0, 1, 2]}
    with np.load(path.with_suffix(".npz")) as file:
        assert len([name for name in file.files if name.startswith("labels/")]) == 2


def test_a_study_of_several_folders_keeps_their_arrays(tmp_path):
    for cell in ("rho0.5", "rho0.8"):
        write_network(tmp_path / "search" / cell)
    path = archive.pack(tmp_path / "search")
    for cell, (cell_record,) in records.read_cells(path).items():
        assert records.read_arrays(path, cell_record, cell=cell)["prediction/iid"].tolist() == [0, 2, 1]


def test_a_folder_name_with_a_dot_is_not_cut(tmp_path):
    records.write(tmp_path / "rho0.5", record())
    assert archive.pack(tmp_path / "rho0.5") == tmp_path / "rho0.5.jsonl"
    assert archive.pack(tmp_path / "rho0.5", tmp_path / "other.jsonl") == tmp_path / "other.jsonl"


def test_a_study_that_exceeds_the_size_limit_is_refused(tmp_path, monkeypatch):
    write_network(tmp_path / "study")
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    with pytest.raises(RecordError, match=r"all published studies in .* would take 0.0 MiB, more than 0"):
        archive.pack(tmp_path / "study")
    assert not (tmp_path / "study.jsonl").exists()


def test_curves_are_read_from_arrays_without_a_metrics_file(tmp_path):
    path = write_network(tmp_path / "study")
    path.with_suffix(".jsonl").unlink()
    records.write(tmp_path / "study", record(), ARRAYS | {"curve/loss": np.array([3.0, 2.0])})
    packed = archive.pack(tmp_path / "study")
    assert archive.read_curves(packed, records.read_all(packed)[0]) == [{"loss": 3.0}, {"loss": 2.0}]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RecordError, match="holds no records"):
        archive.pack(tmp_path)


def test_a_damaged_study_is_refused_by_name(tmp_path):
    write_network(tmp_path / "study")
    write_network(tmp_path / "study", seed=1)
    path = archive.pack(tmp_path / "study")
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(RecordError, match=r"line 2 of .*study.jsonl is not complete JSON"):
        records.load(path)
    path.write_bytes(content)
    with np.load(path.with_suffix(".npz")) as file:
        arrays = dict(file)
    arrays["train/rgb-seed1/margin/iid"] = np.zeros(3, np.int8)
    np.savez_compressed(path.with_suffix(".npz"), **arrays)
    first, second = records.read_all(path)
    records.read_arrays(path, first)
    with pytest.raises(RecordError, match=r"arrays of train/rgb-seed1 in .* do not match the checksum"):
        records.read_arrays(path, second)


def test_reading_arrays_that_were_not_published_fails_by_name(tmp_path):
    records.write(tmp_path / "study", record())
    path = archive.pack(tmp_path / "study")
    assert not path.with_suffix(".npz").exists()
    with pytest.raises(
        FileNotFoundError, match=r"no arrays of train/rgb-seed0 in .*study.npz: they were not published"
    ):
        records.read_arrays(path, records.read_all(path)[0])
    assert archive.read_curves(path, records.read_all(path)[0]) == []


@pytest.mark.parametrize("path", [*ARCHIVES, Path("results/portable.jsonl")], ids=lambda p: p.stem)
def test_the_published_studies_of_this_repository_are_valid(path):
    cells = records.read_cells(path)
    assert any(cells.values())
    for cell, published in cells.items():
        for published_record in published:
            if published_record.arrays:
                assert records.read_arrays(path, published_record, cell=cell)


def test_the_published_studies_of_this_repository_are_small():
    published = [*(ROOT / "results").glob("*.jsonl"), *(ROOT / "results").glob("*.npz")]
    assert {p.relative_to(ROOT) for p in published} >= set(ARCHIVES)
    assert sum(p.stat().st_size for p in published) < archive.MAX_BYTES


def test_the_command_shows_and_packs_records(tmp_path):
    path = write_network(tmp_path / "study")
    command = [sys.executable, "-m", "d3d", "records"]
    headline = subprocess.run([*command, "show", str(path)], capture_output=True, text=True, check=True)
    assert headline.stdout.split()[:4] == ["train", "rgb-seed0", "iid/top1", "0.500"]
    packed = subprocess.run([*command, "pack", str(tmp_path / "study")], capture_output=True, text=True, check=True)
    assert packed.stdout.startswith("1 records -> ")
    assert "study.npz, 0.00 MiB" in packed.stdout
    merged = subprocess.run(
        [*command, "merge", str(tmp_path / "study.jsonl"), "--out", str(tmp_path / "merged"), "--cells"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert merged.stdout.startswith("1 records -> ")
    assert list(records.read_cells(tmp_path / "merged.jsonl")) == ["study"]
    records.write(tmp_path / "bare", record())
    bare = subprocess.run([*command, "pack", str(tmp_path / "bare")], capture_output=True, text=True, check=True)
    assert "1 networks have no predictions next to their records" in bare.stdout
    failed = subprocess.run([*command, "pack", str(tmp_path / "no")], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
