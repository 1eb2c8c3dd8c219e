"""Records are complete or absent; invalid ones are refused by name."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3d.study import records
from d3d.study.parameters import RunConfig
from d3d.study.records import Record, RecordError

# What every record says of its origin.
PROVENANCE = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "source": "x",
    "notebook": "train.ipynb",
    "packages": {"torch": "2.11.0"},
    "device": "cpu",
    "started": "2026-01-01T00:00:00+00:00",
    "seconds": 1.0,
}


@pytest.mark.parametrize("name", ["a" * 100, "a" * 90 + ".123456789"])
def test_a_name_that_a_run_may_have_a_record_may_have_too(tmp_path, name):
    """The name is refused before training, not when the record is written."""
    RunConfig(arm=name)
    assert records.read(records.write(tmp_path, record(arm=name))).arm == name
    longer = f"a{name}"
    with pytest.raises(ValueError, match="arm must be a name"):
        RunConfig(arm=longer)
    with pytest.raises(RecordError, match="arm must be a name"):
        records.write(tmp_path, record(arm=longer))


def record(**changes) -> Record:
    fields = {
        "experiment": "train",
        "arm": "rgb",
        "seed": 0,
        "params": {"rho": 0.5, "frames": 8},
        "metrics": {"iid/top1": 0.5},
        "stand_in": True,
        "provenance": PROVENANCE,
    }
    return Record(**fields | changes)


VALID = (
    '{"schema": 1, "experiment": "train", "arm": "rgb", "seed": 0, "params": {"rho": 0.5}, "metrics": {"top1": 0.5}, '
    f'"stand_in": true, "provenance": {json.dumps(PROVENANCE)}}}'
)


def test_a_record_reads_as_written(tmp_path):
    arrays = {"logits/iid": np.arange(6, dtype=np.float32).reshape(2, 3), "labels/iid": np.array([0, 2])}
    arrays["groups/iid"] = np.array(["a", "b"])
    path = records.write(tmp_path, record(), arrays)
    assert path == tmp_path / "train" / "rgb-seed0.json"
    assert replace(records.read(path), arrays="") == record()
    read_back = records.read_arrays(tmp_path, records.read(path))
    assert np.array_equal(read_back["logits/iid"], arrays["logits/iid"])
    assert read_back["groups/iid"].tolist() == ["a", "b"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["rgb-seed0.json", "rgb-seed0.npz"]


def test_all_records_make_one_tidy_table(tmp_path):
    records.write(tmp_path, record(metrics={"iid/top1": 0.5, "val/top1": 0.25}))
    records.write(tmp_path, record(experiment="distill", arm="d3d", seed=3, stand_in=False))
    table = records.load(tmp_path)
    assert list(table.columns) == ["experiment", "arm", "seed", "metric", "value", "stand_in"]
    assert len(table) == 3
    row = table[table["arm"] == "d3d"].iloc[0]
    assert (row["experiment"], row["seed"], row["metric"], row["value"], row["stand_in"]) == (
        "distill",
        3,
        "iid/top1",
        0.5,
        False,
    )
    assert len(records.load(tmp_path / "absent")) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "experiment": "tr', "is not complete JSON"),
        ("", "is not complete JSON"),
        ('{"rows": []}', "has no field 'schema'"),
        ("[1, 2]", "has no field 'schema'"),
        ('{"schema": 99}', "has schema 99, this version reads 1"),
        ('{"schema": 1, "extra": 2}', "is not a run record"),
        ('{"schema": 1, "arm": "rgb"}', "is not a run record"),
        (VALID.replace('"seed": 0', '"seed": "0"'), "seed must be of type int, not '0'"),
        (VALID.replace('{"rho": 0.5}', "null"), "params must be of type dict, not None"),
        (VALID.replace('{"top1": 0.5}', "[]"), r"metrics must be of type dict, not \[\]"),
        (VALID.replace('"top1": 0.5', '"top1": "x"'), "metric 'top1' must be a finite number, not 'x'"),
    ],
)
def test_an_invalid_record_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "train" / "rgb-seed0.json"
    path.parent.mkdir()
    path.write_text(content)
    for read in (lambda: records.read(path), lambda: records.load(tmp_path)):
        with pytest.raises(RecordError, match=message) as error:
            read()
        assert "rgb-seed0.json" in str(error.value)


NAMES = st.text(min_size=1, max_size=20)
NUMBERS = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
OTHERS = st.none() | st.booleans() | st.text() | NUMBERS | st.lists(st.integers()) | st.dictionaries(st.text(), NUMBERS)


@given(
    st.dictionaries(NAMES, NUMBERS), st.dictionaries(NAMES, NUMBERS | st.booleans() | st.text()), st.integers(0, 999)
)
def test_whatever_can_be_written_reads_as_written(metrics, params, seed):
    made = record(metrics=metrics, params=params, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        assert records.read(records.write(folder, made)) == made


@given(st.sampled_from([f.name for f in dataclasses.fields(Record)]), OTHERS)
def test_a_field_of_any_value_is_read_or_refused(name, value):
    fields = dataclasses.asdict(record()) | {name: value}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(json.dumps(fields))
        try:
            (read,) = records.read_all(path)
        except RecordError as error:
            assert str(error).startswith("line 1 of ")  # noqa: PT017
            assert str(error).isprintable()  # noqa: PT017
        else:
            assert getattr(read, name) == value


def test_a_truncated_record_is_refused(tmp_path):
    path = records.write(tmp_path, record())
    content = path.read_text().rstrip()
    for end in range(0, len(content) - 1, 7):
        path.write_text(content[:end])
        with pytest.raises(RecordError):
            records.read(path)


def test_a_renamed_record_is_refused(tmp_path):
    path = records.write(tmp_path, record())
    moved = path.rename(path.with_name("flow-seed0.json"))
    with pytest.raises(RecordError, match="holds the record of train/rgb-seed0: it was moved or renamed"):
        records.read(moved)


def test_a_metric_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train/rgb-seed0: metric 'iid/top1' must be a finite number, not nan"):
        records.write(tmp_path, record(metrics={"iid/top1": float("nan")}))
    assert not list(tmp_path.rglob("*.json"))


def test_a_full_disk_leaves_the_old_record_untouched(tmp_path):
    path = records.write(tmp_path, record(), {"x": np.zeros(2)})
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    # The temporary file of the new record is a device that is always full.
    path.with_name(f".{path.name}.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"rgb-seed0.json could not be written .* untouched: No space left") as error:
        records.write(tmp_path, record(metrics={"iid/top1": 0.9}), {"x": np.ones(2)})
    assert error.value.errno == 28
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.mark.slow
def test_a_killed_writer_leaves_a_complete_record(tmp_path):
    code = (
        "import sys; from tests.study.test_records import record, records\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    records.write(sys.argv[1], record(metrics={f'm{i}': float(n) for i in range(3000)}))\n"
        "    print(n, flush=True)\n"
    )
    for attempt in range(6):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        metrics = records.read(tmp_path / "train" / "rgb-seed0.json").metrics
        assert len(metrics) == 3000
        assert len(set(metrics.values())) == 1


def test_provenance_has_code_packages_device_and_time(monkeypatch):
    provenance = records.provenance(source="abc", notebook="train.ipynb", device="cpu")
    assert set(provenance) == {"commit", "dirty", "source", "notebook", "packages", "device", "started"}
    assert provenance["packages"]["torch"].startswith("2.")
    assert 0 <= records.seconds_since(provenance["started"]) < 60
    json.dumps(provenance)
    monkeypatch.setenv("D3D_COMMIT", "f00")
    for text, dirty in [("0", False), ("1", True), ("", False)]:
        monkeypatch.setenv("D3D_DIRTY", text)
        provenance = records.provenance(source="abc", notebook="n", device="cpu")
        assert (provenance["commit"], provenance["dirty"]) == ("f00", dirty)


def test_seeds_with_different_parameters_are_refused(tmp_path):
    records.write(tmp_path, record(params={"rho": 0.5, "seed": 0, "teacher": "a"}))
    records.write(tmp_path, record(seed=1, params={"rho": 0.5, "seed": 1, "teacher": "b"}))
    assert len(records.load(tmp_path)) == 2
    records.write(tmp_path, record(seed=2, params={"rho": 0.6, "seed": 2}))
    with pytest.raises(RecordError, match=r"train/rgb-seed2 and rgb-seed0 under .* were made with different rho"):
        records.load(tmp_path)


def test_missing_experiments_are_named(tmp_path):
    records.write(tmp_path, record())
    assert len(records.load(tmp_path, needs=["train"])) == 1
    for read_missing in (
        lambda: records.load(tmp_path, needs=["probe"]),
        lambda: records.of_first_seed(tmp_path, "probe", ["rgb"]),
    ):
        with pytest.raises(FileNotFoundError, match="no records of 'probe' under"):
            read_missing()


def test_arrays_of_another_run_are_refused(tmp_path):
    path = records.write(tmp_path, record(), {"x": np.zeros(2)})
    content = path.read_text()
    records.write(tmp_path, record(), {"x": np.ones(2)})
    # The state after a kill between the renames of the two files.
    path.write_text(content)
    with pytest.raises(RecordError, match=r"rgb-seed0.npz does not match the checksum in its record"):
        records.read_arrays(tmp_path, records.read(path))


def test_missing_arrays_are_named(tmp_path):
    records.write(tmp_path, record())
    with pytest.raises(FileNotFoundError, match=r"rgb-seed0.npz is missing, although its record exists"):
        records.read_arrays(tmp_path, record())


def test_the_headline_is_one_line():
    assert records.headline(record()).split() == ["train", "rgb-seed0", "iid/top1", "0.500", "1.0", "s"]
