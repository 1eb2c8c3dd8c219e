"""Notebooks through plain papermill, as a reader runs them: on sprites, on videos, with wrong input, and killed."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from d3d.data.sprite_classes import CLASSES, siblings
from d3d.report.claims import read_claims
from d3d.report.ledger import measure
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import s3dg
from d3d.study import archive, plan, records
from d3d.study.experiments import EXPERIMENTS
from tests.video.test_decode import noise_video

pytestmark = pytest.mark.slow
TINY = {"frames": 4, "size": 16, "train_clips": 64, "test_clips": 64, "epochs": 1, "batch_size": 8, "width": 0.1}
PROFILE = {
    "seeds": [0],
    "examined_seeds": [0],
    "ablation_seeds": [0],
    "arms": ["rgb", "rgb_twin", "flow", "rgb_longer", "rgb_teacher", "class_mean", "flow_shuffled", "d3d"],
    "ablations": [
        *("flow_exact", "d3d_exact", "d3d_scratch", "d3d_kl", "d3d_features", "d3d_features_shuffled"),
        *("rgb_one_cosine", "rgb_smoothed"),
    ],
    "students": {},
    "overrides": {},
    "epochs": TINY["epochs"],
}


def papermill_command(name, out, **parameters) -> list[str]:
    flags = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    executable = str(Path(sys.executable).with_name("papermill"))
    return [executable, "--no-progress-bar", f"notebooks/experiments/{name}.ipynb", str(out), *flags]


def papermill(name, out, **parameters) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = papermill_command(name, out, **parameters)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_experiment_in_turn(tmp_path):
    results, out = tmp_path / "results", tmp_path / "out.ipynb"
    sizes = TINY | {"results": results}
    data = {k: v for k, v in sizes.items() if k not in ("epochs", "batch_size")}
    probing = data | {"batch_size": 8, "decoder_epochs": 1}
    runs = []
    for name in plan.TRAINED:
        for arm in plan.arms_of(name, PROFILE):
            overrides = plan.overrides(name, arm, 0, profile=PROFILE, results=results)
            runs.append((name, sizes | {k: v for k, v in overrides.items() if v != ""}))
    runs += [("fuse", {"results": results}), ("compare", {"results": results})]
    runs += [("probe", probing), ("attribution", data | {"clips": 2, "steps": 2})]
    scenes = {"train_scenes": 4, "test_scenes": 4, "drawn_scenes": 4, "scenes_per_step": 2}
    runs += [("detect", {k: v for k, v in data.items() if "_clips" not in k} | scenes
              | {"detector_epochs": 1, "person_epochs": 1})]  # fmt: skip
    runs += [("leak", {k: v for k, v in sizes.items() if k != "test_clips"} | {"leak_clips": 16})]
    runs += [("tvl1", {"frames": 4, "size": 16, "pairs": 2, "results": results})]
    for name, parameters in runs:
        done = papermill(name, out, **parameters)
        assert done.returncode == 0, done.stderr[-3000:]
    # With one seed there is no ensemble of two D3D networks.
    expected = {
        (name, arm, seed)
        for name in EXPERIMENTS
        for arm in plan.arms_of(name, PROFILE)
        for seed in plan.seeds_of(name, PROFILE, name=arm)
    }
    assert {(r.experiment, r.arm, r.seed) for r in records.read_all(results)} == expected
    networks = records.read_all(results, (*plan.TRAINED, "fuse"))
    for record in networks:
        assert records.read_arrays(results, record)["siblings"].tolist() == siblings().tolist()
    # The published arrays suffice to compute the metrics again.
    path = archive.pack(results)
    assert records.load(path).equals(records.load(results))
    for record in records.read_all(path, (*plan.TRAINED, "fuse")):
        arrays = records.read_arrays(path, record)
        correct = arrays["prediction/iid"] == arrays["labels/iid"]
        assert correct.mean() == pytest.approx(record.metrics["iid/top1"])
        paired = siblings()[arrays["labels/iid"]] >= 0
        assert ((arrays["choice/iid"] != archive.WITHOUT_SIBLING) == paired).all()
        is_motion = np.array([c.group == "motion" for c in CLASSES])[arrays["labels/iid"]]
        wins = (1 + arrays["choice/iid"][is_motion & paired].astype(int)) / 2
        assert wins.mean() == pytest.approx(record.metrics["iid/motion/pair_accuracy"])
        if record.experiment in plan.TRAINED:
            assert ((arrays["margin/iid"] > 0) <= correct).all()
    table = records.load(results)
    h6 = next(claim for claim in read_claims("book/claims.yaml").claims if claim.id == "H6")
    assert not any(measure(table, condition).missing for condition in h6.conditions)
    # Every rule of the second study can be measured. One seed has no ensemble of two seeds, and logits of a flow stream
    # that has learnt nothing are the same for all clips.
    lacking = {"d3d_d3d iid/top1_gain", "decorrelated/residual_correlation"}
    for claim in read_claims("book/claims_second.yaml").claims:
        for condition in claim.conditions:
            assert set(measure(table, condition).missing) <= lacking, condition
    assert table["stand_in"].all()
    assert table[table["metric"].str.endswith("top1")]["value"].between(0, 1).all()


@pytest.fixture
def videos(tmp_path):
    """Two class folders of symbolic links to files in another folder, and one truncated file."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("juggle", "wave"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for codec, suffix in (("mpeg4", "avi"), ("libx264", "mp4"), ("libvpx-vp9", "webm")):
            path = noise_video(elsewhere / f"{name}.{suffix}", codec)
            (tmp_path / "root" / name / path.name).symlink_to(path)
    content = (elsewhere / "wave.avi").read_bytes()
    (tmp_path / "root" / "wave" / "half.avi").write_bytes(content[: len(content) // 2])
    return tmp_path / "root"


def test_a_folder_of_videos(tmp_path, videos):
    results = tmp_path / "results"
    parameters = {"dataset": "folder", "root": videos, "epochs": 1, "batch_size": 4, "results": results}
    done = papermill("train", tmp_path / "out.ipynb", **parameters)
    assert done.returncode == 0, done.stderr[-3000:]
    record = records.read(results / "train" / "rgb-seed0.json")
    assert (record.files["found"], record.files["decoded"]) == (7, 6)
    assert [Path(p).name for p in record.files["refused"]] == ["half.avi"]
    assert "is truncated: " in record.files["refused"][str(videos / "wave" / "half.avi")]
    assert not record.stand_in
    assert 0 <= record.metrics["folder/test/top1"] <= 1
    assert len(records.read_arrays(results, record)["logits/folder/test"]) == 2


def test_real_clips(tmp_path, real_clips):
    root, results = tmp_path / "root", tmp_path / "results"
    for name, pattern in [("wave", "*_wave_*.avi"), ("juggle", "v_Soccer*.avi"), ("other", "*.mp4")]:
        (root / name).mkdir(parents=True)
        for path in real_clips.glob(pattern):
            (root / name / path.name).symlink_to(path)
    content = next(real_clips.glob("*.mp4")).read_bytes()
    (root / "other" / "half.mp4").write_bytes(content[: len(content) // 2])
    done = papermill(
        "train", tmp_path / "out.ipynb", dataset="folder", root=root, epochs=1, batch_size=4, results=results
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = records.read(results / "train" / "rgb-seed0.json")
    assert (record.files["found"], record.files["decoded"]) == (9, 8)
    assert [Path(p).name for p in record.files["refused"]] == ["half.mp4"]


@pytest.mark.parametrize(
    ("name", "parameters", "sentence"),
    [
        (
            "train",
            {"learning_rat": 0.1},
            "'learning_rat' is no parameter of 'train', which takes ac",
        ),
        ("train", {"rho": 1.5}, "rho must lie in [0, 1], not 1.5"),
        ("train", {"dataset": "folder", "root": "/no/such/folder"}, "root '/no/such/folder' does not exist"),
        ("distill", TINY | {"teacher": "TEACHER"}, "was trained on 3 classes (a, b, c), the data set has 16 "),
        ("distill", TINY, "a student with lambda_ above 0 needs teacher"),
        ("train", {"dataset": "folder", "root": "ROOT", "workers": 999}, "workers is 999, this machine has "),
        ("train", TINY | {"batch_size": 66, "accumulate": 33}, "the number of training clips, 64, is too small "),
    ],
)
def test_wrong_input_ends_in_one_sentence_and_no_record(tmp_path, name, parameters, sentence):
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, s3dg(3, width=0.1), stream="rgb", classes=("a", "b", "c"))
    parameters = {k: {"TEACHER": path, "ROOT": tmp_path}.get(v, v) for k, v in parameters.items()}
    done = papermill(name, tmp_path / "out.ipynb", results=tmp_path / "results", **parameters)
    assert done.returncode != 0
    last_line = [line for line in done.stderr.splitlines() if line.strip()][-1]
    assert sentence in last_line
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_killed_run_leaves_no_record_and_resumes(tmp_path):
    """When papermill is killed, its kernel ends, and the training process saves its state and stops."""
    results = tmp_path / "results"
    parameters = TINY | {"results": results, "epochs": 100}
    process = subprocess.Popen(
        [*papermill_command("train", tmp_path / "out.ipynb", **parameters), "--log-output"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "epoch   2/100" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not list(results.rglob("*.json"))
    done = papermill("train", tmp_path / "out.ipynb", **parameters)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming after step" in (tmp_path / "out.ipynb").read_text()
    assert records.read(results / "train" / "rgb-seed0.json").params["epochs"] == 100


def test_a_failed_notebook_is_kept_with_its_traceback(tmp_path):
    parameters = TINY | {"results": tmp_path / "results", "learning_rate": 1e30}
    assert papermill("train", tmp_path / "out.ipynb", **parameters).returncode != 0
    notebook = (tmp_path / "out.ipynb").read_text()
    assert "Traceback" in notebook
    assert "is not finite" in notebook
    assert not list((tmp_path / "results").rglob("*.json"))


def test_a_notebook_shows_curves_accuracy_confusions_and_examples(tmp_path):
    done = papermill("train", tmp_path / "out.ipynb", **TINY | {"results": tmp_path / "results"})
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    images = {
        cell.source.splitlines()[-1].split("(")[0].split(".")[-1]: sum(
            "image/png" in o.get("data", {}) for o in cell.outputs
        )
        for cell in cells
        if cell.cell_type == "code"
    }
    assert {name: count for name, count in images.items() if count} == {"train": 1, "confusions": 1, "examples": 1}
    (table,) = [o for cell in cells for o in cell.get("outputs", []) if "text/html" in o.get("data", {})]
    assert "iid" in table["data"]["text/html"]


def test_two_runs_of_a_seed_give_the_same_record(tmp_path):
    outcomes = []
    for name in ("a", "b"):
        results = tmp_path / name
        done = papermill("train", tmp_path / "out.ipynb", **TINY | {"results": results, "seed": 4})
        assert done.returncode == 0, done.stderr[-3000:]
        record = records.read(results / "train" / "rgb-seed4.json")
        weights = hashlib.sha256((results / "train" / "rgb-seed4.safetensors").read_bytes()).hexdigest()
        outcomes.append(({k: v for k, v in record.metrics.items() if "seconds" not in k}, weights))
    assert outcomes[0] == outcomes[1]
