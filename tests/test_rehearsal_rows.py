"""The commands of the paper's rows B1 to B6 and B8 to B11, run on tiny copies of the data sets in official layouts.

A shell expands each command as the ledger has it; clips, networks and epochs are made small. The records are marked as
stand-ins, and no such record changes the verdict on a row, whatever it says.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from d3d.flow import extract as flow_extract
from d3d.report.claims import read_claims
from d3d.report.ledger import judge, measure
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import s3dg
from d3d.study import plan, records
from d3d.study.experiments import make_config
from d3d.study.run import start
from d3d.train import fuse, run, validate
from tests.report.test_claims import CLAIMS, calls, parsed
from tests.test_rehearsal import papermill
from tests.test_rehearsal_videos import SIZES, film, to_flags
from tests.video import official

pytestmark = pytest.mark.slow
# Rows in the order in which a reader runs them: an ensemble after its members.
ROWS = {
    "ucf101": ("B1", "B2", "B3"),
    "hmdb51": ("B4", "B5", "B6"),
    "kinetics400": ("B8", "B9"),
    "kinetics600": ("B10", "B11"),
}
TINY = {
    "frames": 6,
    "size": 24,
    "short_side": 32,
    "bound": 4.0,
    "batch_size": 4,
    "width": 0.1,
    "epochs": 1,
    "workers": 1,
}
VIEWS = {"view_clips": 2, "view_crops": 2, "processes": 1}


@pytest.fixture(params=ROWS)
def data_set(request, tmp_path):
    """A data set with its flow, the weights that commands name, and the parameters that differ from the commands'."""
    name = request.param
    layout = official.SETS["kinetics400" if name.startswith("kinetics") else name](tmp_path / "set", film)
    layout = {key: str(value) for key, value in layout.items()} | {"dataset": name}
    flow_extract.main([*to_flags(layout), "--out", str(tmp_path / "flow"), *SIZES, "--devices", "cpu"])
    weights = {}
    for classes in (400, 600):
        for k, file in enumerate((f"RGB_K{classes}.safetensors", f"D3D_K{classes}", f"S3DG_K{classes}")):
            path = weights[file] = str(tmp_path / f"{Path(file).stem}.safetensors")
            # Rows of fine-tuning start from other classes.
            count = 2 if name.startswith("kinetics") else 3
            network = s3dg(count, width=0.1, seed=classes + k)
            save_checkpoint(path, network, stream="rgb", classes=tuple(map(str, range(count))))
    return name, layout, {"flow_cache": str(tmp_path / "flow")}, weights, tmp_path


def run_call(call, layout, flow, weights, folder):
    """Runs one call of a command on the tiny data set, through the function that its notebook calls."""
    experiment, params = parsed(call)
    results = str(folder / params["results"])
    if experiment == "fuse":
        fuse.run(start("fuse", {"results": results}))
        return
    changes = {k: v for k, v in (TINY | layout | VIEWS).items() if k in params}
    changes |= {"results": results} | (flow if params["flow_cache"] else {})
    for name in ("weights", "student", "teacher"):
        if path := params.get(name):
            changes[name] = weights.get(path.removesuffix("/model.ckpt"), str(folder / path))
    config = make_config(experiment, params | changes)
    if experiment == "evaluate":
        validate.run(config, report=lambda line: None)
    else:
        run.run(experiment, config, report=lambda line: None)


def test_the_commands_of_the_rows_make_stand_in_records(data_set):
    name, layout, flow, weights, folder = data_set
    results = folder / "results" / name
    for row in ROWS[name]:
        for kind in ("command", "training"):
            for call in calls(getattr(CLAIMS[row], kind)):
                if "/fuse.ipynb" not in call[0] and parsed(call)[1].get("seed", 0) > 0 and not name.startswith("kin"):
                    continue  # other seeds only repeat what the first shows
                run_call(call, layout, flow, weights, folder)
    table = records.load(results)
    assert table["stand_in"].all()
    for row in ROWS[name]:
        for condition in CLAIMS[row].conditions:
            assert not measure(table, condition).missing, (row, condition)
    if name.startswith("kinetics"):
        seeds = table[(table["arm"] == "d3d_rgb") & (table["metric"] == f"{name}/val/top1")]["seed"]
        assert sorted(seeds) == [0, 1, 2]
    assert_no_verdict(table, ROWS[name])
    # Nor do they if they are perfect, on as many clips as a verdict needs.
    for path in results.rglob("*.json"):
        content = json.loads(path.read_text())
        for metric in content["metrics"]:
            if metric.endswith(("/top1", "/clips")):
                content["metrics"][metric] = 0.999 if metric.endswith("/top1") else 1e6
        path.write_text(json.dumps(content))
    assert_no_verdict(records.load(results), ROWS[name])
    # The same records of the whole data set decide the rows: what is missing is data.
    decided = judge(read_claims(), records.load(results).assign(stand_in=False))
    words = {v.claim.id: v.word for v in decided if v.claim.id in ROWS[name]}
    enough = "supported" if name.startswith("kinetics") else "undecided"
    assert words == dict.fromkeys(ROWS[name], enough)


def assert_no_verdict(table, rows):
    for verdict in judge(read_claims(), table):
        if verdict.claim.id in rows:
            assert verdict.word == "needs data"
            assert verdict.reason == f"needs {verdict.claim.data}; the records here are of a stand-in for it"


def test_released_weights_through_papermill_on_validation_videos_alone(tmp_path):
    """A TensorFlow checkpoint's variables, two networks in two processes, their fusion, and the verdict printed."""
    layout = official.kinetics(tmp_path / "set", film, classes=3)
    shutil.rmtree(Path(layout["root"]) / "train")
    clips = {"frames": 6, "size": 24, "view_clips": 2, "view_crops": 3, "workers": 1}
    files = {name: str(value) for name, value in layout.items()}
    weights = tmp_path / "network.safetensors"
    for arm, processes in (("d3d_released", 1), ("s3dg_released", 2)):
        save_checkpoint(weights, s3dg(3, width=0.1, seed=processes), stream="rgb", classes=("0", "1", "2"))
        parameters = clips | files | {"arm": arm, "weights": weights, "processes": processes}
        done = papermill("evaluate", tmp_path / "out.ipynb", results=tmp_path / "results", **parameters)
        assert done.returncode == 0, done.stderr[-3000:]
    done = papermill("fuse", tmp_path / "out.ipynb", results=tmp_path / "results")
    assert done.returncode == 0, done.stderr[-3000:]
    fused = records.read(tmp_path / "results/fuse/d3d_s3dg_released-seed0.json")
    members = [records.read(tmp_path / f"results/evaluate/{arm}_released-seed0.json") for arm in ("d3d", "s3dg")]
    assert fused.metrics["kinetics400/val/clips"] == 6
    assert fused.stand_in
    assert [member.provenance["processes"] for member in members] == [1, 2]
    arrays = [records.read_arrays(tmp_path / "results", record) for record in members]
    assert arrays[0]["videos/kinetics400/val"].tolist() == arrays[1]["videos/kinetics400/val"].tolist()
    command = ["d3d", "report", "claims", "--results", str(tmp_path / "results")]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "needs Kinetics-400; the records here are of a stand-in for it" in done.stdout


def test_the_rehearsed_rows_are_all_rows_of_video_files():
    rehearsed = {row for rows in ROWS.values() for row in rows}
    with_files = {name for name, claim in CLAIMS.items() if claim.data and not claim.data.endswith("AVA v2.1")}
    assert rehearsed == with_files
    assert {experiment for row in rehearsed for experiment, _ in map(parsed, calls(CLAIMS[row].command))} <= {
        *plan.TESTED, "fuse"
    }  # fmt: skip
