"""Miniatures of the field's data sets, from official files to D3D: table, flow, both streams, distillation, fusion."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from d3d.data import command
from d3d.data import load as datasets
from d3d.flow import extract as flow_extract
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.study import records
from d3d.study.records import ROOT
from d3d.study.schema import changed
from d3d.train import fuse
from d3d.train import run as train
from d3d.video.tables import read_table
from tests import configs
from tests.flow.test_extract import moving_video
from tests.test_graph import environment, snakemake
from tests.test_rehearsal import papermill
from tests.video import official

pytestmark = pytest.mark.slow
TINY = {"frames": 6, "size": 24, "short_side": 32, "bound": 4.0, "epochs": 2, "batch_size": 4, "width": 0.1}
SIZES = ["--fps", "25", "--short-side", "32", "--bound", "4"]


def film(path, label, index):
    """Writes a video of a texture that moves to the right, faster in later classes."""
    moving_video(path, label + 1, frames=8 + index % 3)


def to_flags(parameters):
    return [word for name, value in parameters.items() for word in (f"--{name}", str(value))]


def train_network(config, data, *, distil=False):
    model = train.build_network(config, data)
    teacher = train.load_teacher(config, data) if distil else None
    history = train.fit(model, config, data, teacher=teacher, report=lambda line: None)
    return model, history, *train.evaluate_splits(model, data, config.network.stream)


@pytest.mark.parametrize("name", official.SETS)
def test_from_official_files_to_d3d(tmp_path, name, capsys):
    files = official.SETS[name](tmp_path / "set", film)
    paths = sorted(p for p in Path(files["root"]).rglob("*") if p.suffix in (".avi", ".mp4"))
    paths[0].write_bytes(paths[0].read_bytes()[:700])
    if name != "folder":
        paths[-2].unlink()
    missing = name != "folder"

    command.main([*to_flags(files), "--out", str(tmp_path / "table.csv")])
    out = capsys.readouterr().out
    assert f"{int(missing)} missing, 1 unreadable" in out
    assert f"{paths[0].name} cannot be opened as a video" in out or f"{paths[0].name} is truncated" in out
    flow_extract.main([*to_flags(files), "--out", str(tmp_path / "flow"), *SIZES, "--devices", "cpu"])
    assert "px root mean square" in capsys.readouterr().out

    # The table has only videos that decode completely, so that they need not be checked again.
    table = read_table(tmp_path / "table.csv")
    assert table.counts["missing"] == 0
    assert table.table["seconds"].between(0.3, 0.41).all()
    config = configs.training(**TINY, **{k: str(v) for k, v in files.items()}, flow_cache=str(tmp_path / "flow"))
    data = datasets.load(config.data, seed=0, streams=("rgb", "flow"), workers=1)
    assert data.files["missing"] == int(missing)
    assert data.files["found"] == data.files["listed"] - missing
    assert (
        data.files["found"] == len(paths) - missing or name == "hmdb51"
    )  # which lists some for neither training nor testing
    assert list(data.files["refused"]) == [str(paths[0])]
    assert data.files["flow"]["videos"] == data.files["found"] - 1
    assert data.files["flow"]["max_px"] <= 4 / 127 / 2 + 1e-5

    rgb, _, rgb_metrics, rgb_arrays = train_network(config, data)
    flow, _, _, flow_arrays = train_network(changed(config, stream="flow"), data)
    parts = {"kinetics400": ("val",), "jhmdb": ("test", "val")}.get(name, ("test",))
    assert sorted(data.test_splits) == [f"{name}/{part}" for part in parts]
    split = f"{name}/{parts[0]}"
    assert len(rgb_arrays[f"logits/{split}"]) == len(data.splits[split])
    assert 0 <= rgb_metrics[f"{split}/top1"] <= 1
    for stream, model in (("rgb", rgb), ("flow", flow)):
        save_checkpoint(tmp_path / f"{stream}.safetensors", model, stream=stream, classes=data.classes)
    distill = configs.distilling(
        **TINY,
        **{k: str(v) for k, v in files.items()},
        flow_cache=str(tmp_path / "flow"),
        teacher=str(tmp_path / "flow.safetensors"),
        student=str(tmp_path / "rgb.safetensors"),
    )
    distill_data = datasets.load(distill.data, seed=0, teacher=train.teacher_streams(distill), workers=1)
    _, history, _, arrays = train_network(distill, distill_data, distil=True)
    assert all(row["distance"] > 0 for row in history)
    assert history[-1]["loss"] == pytest.approx(history[-1]["cross_entropy"] + history[-1]["distance"], rel=1e-5)
    assert not np.array_equal(arrays[f"logits/{split}"], rgb_arrays[f"logits/{split}"])
    ensemble_metrics, _ = fuse.evaluate_ensemble([rgb_arrays, flow_arrays])
    assert 0 <= ensemble_metrics[f"{split}/top1"] <= 1


def test_the_commands_of_the_book_one_by_one(tmp_path):
    """From class folders to D3D through papermill, as on the book's page on your own videos."""
    root, results, flow = tmp_path / "videos", tmp_path / "results", tmp_path / "flow"
    official.folder(root, film)
    module = [sys.executable, "-m"]
    flags = ["--dataset", "folder", "--root", str(root)]
    for command_line in (["d3d", "data", *flags], ["d3d", "flow", *flags, "--out", str(flow), *SIZES]):
        done = subprocess.run([*module, *command_line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    common = TINY | {"dataset": "folder", "root": root, "results": results, "epochs": 1}
    runs = [("train", {"stream": "rgb"}), ("train", {"stream": "flow", "flow_cache": flow})]
    runs += [("distill", {"flow_cache": flow, "teacher": results / "train" / "flow-seed0.safetensors",
                          "student": results / "train" / "rgb-seed0.safetensors"})]  # fmt: skip
    for name, parameters in runs:
        done = papermill(name, tmp_path / "out.ipynb", **common | parameters)
        assert done.returncode == 0, done.stderr[-3000:]
    done = papermill("fuse", tmp_path / "out.ipynb", results=results)
    assert done.returncode == 0, done.stderr[-3000:]
    table = records.load(results)
    top1 = table[table["metric"] == "folder/test/top1"].set_index("arm")["value"]
    assert set(top1.index) == {"rgb", "flow", "d3d", "two_stream", "two_stream_logits", "d3d_rgb"}
    assert not table["stand_in"].any()
    record = json.loads((results / "distill" / "d3d-seed0.json").read_text())
    assert record["files"]["flow"]["videos"] == 12
    done = subprocess.run(
        [*module, "d3d", "report", "compare", str(results)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(f"| {label} " in done.stdout for label in ("RGB", "flow", "D3D", "two-stream", "D3D + RGB"))


def test_one_command_runs_a_whole_study_on_class_folders(tmp_path):
    """As on the book's page on your own videos, without ensembles of more arms and with tiny networks."""
    official.folder(tmp_path / "videos", film)
    for name in ("d3d", "notebooks", "Snakefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    profile = {"extends": "video", "root": "videos", "seeds": [0], "students": {"epochs": 1}, "fps": 25.0}
    profile |= TINY | {"arms": ["rgb", "flow", "rgb_longer", "class_mean", "flow_shuffled", "d3d"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    command = [*snakemake("profile=mine.yaml"), "--", "study"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(ROOT), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "results/mine/flow/summary.txt").read_text().startswith("12 videos, ")
    streams = {r.arm: r.params["flow_cache"] for r in records.read_all(tmp_path / "results/mine", ["train"])}
    assert streams == {"rgb": "", "flow": "results/mine/flow/videos"}
    comparison = (tmp_path / "results/mine/comparison.md").read_text()
    assert "| motion      | D3D − flow shuffled" in comparison
    assert "Not shown to be better than always naming it: " in comparison
    assert "With 2 clips a true difference of " in comparison
    # A second call has nothing to do.
    again = subprocess.run(command, cwd=tmp_path, env=environment(ROOT), capture_output=True, text=True, check=False)
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"memory": "no"}, "the temporal stream needs flow_cache: the folder that `d3d flow --dataset folder"),
        ({"flow_cache": "FLOW", "bound": 20.0}, "was made with bound 4 instead of 20.0"),
        ({"flow_cache": "FLOW", "fps": 12.5}, "was made with fps 25 instead of 12.5"),
        ({"flow_cache": "absent"}, "no flow cache at absent"),
    ],
)
def test_missing_or_different_flow_is_refused(tmp_path, changes, sentence):
    files = official.folder(tmp_path / "videos", film, each=2)
    spec = flow_extract.FlowSpec(fps=25, short_side=32, bound=4)
    flow_extract.open_cache(tmp_path / "flow", spec, create=True)
    changes = {k: str(tmp_path / "flow") if v == "FLOW" else v for k, v in changes.items()}
    config = configs.training(**TINY | {k: str(v) for k, v in files.items()} | changes)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        datasets.load(config.data, seed=0, streams=("flow",))


def test_videos_without_flow_are_named(tmp_path):
    files = official.folder(tmp_path / "videos", film)
    spec = flow_extract.FlowSpec(fps=25, short_side=32, bound=4)
    flow_extract.open_cache(tmp_path / "flow", spec, create=True)
    config = configs.training(**TINY | {k: str(v) for k, v in files.items()}, flow_cache=str(tmp_path / "flow"))
    with pytest.raises(ValueError, match=r"class 'swim' .* has no flow in .*flow: run `d3d flow` again"):
        datasets.load(config.data, seed=0, streams=("flow",))
