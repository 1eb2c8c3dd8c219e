"""Notebooks as functions of parameters: named once, refused when unknown, stale when something they use changed."""

import ast
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
import yaml

from d3d.probing.attribution import AttributionConfig
from d3d.probing.leaks import LeakConfig
from d3d.probing.linear import ProbeConfig
from d3d.probing.tvl1 import FlowConfig
from d3d.study import arms as study
from d3d.study import notebooks, records
from d3d.study.notebooks import ParameterError
from d3d.study.records import ROOT
from d3d.train.evaluate import FuseConfig
from d3d.train.run import DistillConfig, TrainConfig

CONFIGS = {
    "train": TrainConfig,
    "distill": DistillConfig,
    "fuse": FuseConfig,
    "probe": ProbeConfig,
    "attribution": AttributionConfig,
    "leak": LeakConfig,
    "tvl1": FlowConfig,
}
ALL = sorted((ROOT / "notebooks").glob("*/*.ipynb"))


def test_every_experiment_is_listed():
    assert {p.stem for p in ALL if p.parent.name == "experiments"} == set(CONFIGS) == set(study.WRITES)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_parameter_is_named_once(name):
    """Notebook parameter = dataclass field, with a value of its kind."""
    given = notebooks.defaults(name)
    if name == "distill":
        given["lambda_"] = 0.0
    config = CONFIGS[name](**given)
    assert asdict(config) == given


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_notebooks_are_thin_stripped_and_explained(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    code = [c for c in cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all("  # " in line for line in tagged[0].source.splitlines())
    for cell in code:
        assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.walk(ast.parse(cell.source)))
        # A line a parameter is a list, not code.
        assert len(cell.source.splitlines()) <= 32 or cell in tagged


@pytest.mark.parametrize("profile", ["smoke", "h200", "portable", "settled"])
def test_profiles_hold_known_parameters_in_range(profile):
    content = notebooks.read_profile(f"notebooks/params/{profile}.yaml")
    for name, config in CONFIGS.items():
        values = notebooks.expected(name, content)
        config(**values | ({"lambda_": 0.0} if name == "distill" else {}))


def test_the_reported_seeds_are_the_plans():
    assert notebooks.read_profile("notebooks/params/h200.yaml")["seeds"] == list(range(10))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"seeds": [0, 1], "learning_rat": 0.1},
            r"sets 'learning_rat', which no notebook takes: .*learning_rate",
        ),
        ({"seeds": ["a"]}, "must list whole numbers as seeds"),
        ({"epochs": 3}, "must list whole numbers as seeds, not None"),
        ({"seeds": [0, 1], "examined_seeds": [2]}, "examined_seeds must be some of the seeds"),
        ({"seeds": [0, 1], "ablation_seeds": [5]}, "ablation_seeds must be some of the seeds"),
        ({"seeds": [0], "ablation_seeds": 0}, "ablation_seeds must be some of the seeds, not 0"),
        (
            {"seeds": [0], "students": {"epoch": 3}},
            "gives students 'epoch', which the notebook 'distill' does not take",
        ),
        ({"seeds": [0], "students": {"epochs": "x"}}, "epochs of students must be of type int"),
        ({"seeds": [0], "arms": {"d3d_kl": {"lambda": 3}}}, "gives d3d_kl 'lambda', which the notebook 'distill'"),
        ({"seeds": [0], "arms": {"rgb_techer": {"lambda_": 3.0}}}, "arms has no arm 'rgb_techer': they are rgb,"),
        ({"seeds": [0], "arms": {"rgb_teacher": 0.3}}, "must map parameters of rgb_teacher to values, not give it 0.3"),
        ({"seeds": [0], "lambdas": 0.1}, "must list the other values of lambda_ as lambdas, not 0.1"),
        ({"seeds": [0], "lambdas": ["x"]}, "lambdas must be of type float"),
        ({"seeds": [0], "lambda_": 0.3, "lambdas": [0.3, 1.0]}, "other than its own, each once"),
        ([1], "must map parameters to values"),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ParameterError, match=message) as error:
        notebooks.read_profile(path)
    assert "mine.yaml" in str(error.value)


def namespace(name, **given):
    """What a notebook's globals hold after its parameters were injected."""
    ipython = {"In": ["…"], "Out": {}, "_i": "x", "notebooks": notebooks, "Path": Path}
    return notebooks.defaults(name) | ipython | given


def test_a_notebook_starts_with_what_it_was_given():
    run = notebooks.start("train", TrainConfig, namespace("train", seed=7, rho=1))
    assert (run.config.seed, run.config.rho, run.device) == (7, 1.0, "cpu")
    assert isinstance(run.config.rho, float)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": 0.1}, "'learning_rat' is no parameter of the notebook 'train', which takes .*learning_rate"),
        ({"lambda_": 0.3}, "'lambda_' is no parameter of the notebook 'train'"),
        ({"seeds": [0, 1], "lamda": 0.3}, "'lamda' is no parameter"),
        ({"seed": "three"}, "seed must be of type int like 0, not 'three'"),
        ({"epochs": 2.5}, "epochs must be of type int"),
        ({"stream": 3}, "stream must be of type str"),
    ],
)
def test_a_wrong_parameter_is_refused(given, message):
    with pytest.raises(ParameterError, match=message):
        notebooks.start("train", TrainConfig, namespace("train", **given))


def test_a_whole_profile_may_hold_what_others_take():
    profile = notebooks.read_profile("notebooks/params/smoke.yaml")
    run = notebooks.start("train", TrainConfig, namespace("train", **profile))
    assert run.config.train_clips == profile["train_clips"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of package and notebooks that a test may change."""
    for folder in ("d3d", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("data/sprites", set(CONFIGS)),
        ("train/losses", {"train", "distill", "leak"}),
        ("flow/kernels", {"train", "distill", "probe", "attribution", "fuse", "leak", "tvl1"}),
        ("probing/linear", {"probe"}),
        ("probing/attribution", {"attribution"}),
        ("report/plots", set()),
        ("report/ledger", set()),
    ],
)
def test_a_module_makes_stale_what_uses_it(tree, module, changed):
    before = {name: notebooks.source_hash(name) for name in CONFIGS}
    with open(tree / "d3d" / f"{module}.py", "a") as file:
        file.write("\nCHANGED = True\n")
    after = {name: notebooks.source_hash(name) for name in CONFIGS}
    assert {name for name in CONFIGS if before[name] != after[name]} == changed


def test_a_notebook_makes_itself_stale_and_its_prose_does_not(tree):
    path = tree / "notebooks" / "experiments" / "probe.ipynb"
    before = {name: notebooks.source_hash(name) for name in CONFIGS}
    content = json.loads(path.read_text())
    content["cells"][0]["source"].append("\nmore prose")
    path.write_text(json.dumps(content))
    assert notebooks.source_hash("probe") == before["probe"]
    content["cells"][-1]["source"].append("\nprint('more')")
    path.write_text(json.dumps(content))
    assert {n for n in CONFIGS if notebooks.source_hash(n) != before[n]} == {"probe"}


def test_a_record_is_current_until_parameters_or_source_change(tmp_path, tree):
    given = {"results": str(tmp_path), "seed": 1, "rho": 0.7}
    run = notebooks.start("train", TrainConfig, namespace("train", **given))
    run.write("rgb", {"iid/top1": 0.5})
    path = tmp_path / "train" / "rgb-seed1.json"
    assert notebooks.is_current(path, "train", given)
    assert notebooks.is_current(path, "train", given | {"steps": 99})
    assert not notebooks.is_current(path, "train", given | {"rho": 0.8})
    assert not notebooks.is_current(path, "train", {"results": str(tmp_path), "seed": 1})
    assert not notebooks.is_current(path.with_name("flow-seed1.json"), "train", given)
    (tree / "d3d" / "train" / "losses.py").write_text("")
    assert not notebooks.is_current(path, "train", given)


def test_a_record_holds_what_the_run_was(tmp_path):
    run = notebooks.start("train", TrainConfig, namespace("train", results=str(tmp_path)))
    with run.phase("data"):
        pass
    run.write("rgb", {"iid/top1": 0.5}, files={"found": 3}, stand_in=False)
    found = records.read(tmp_path / "train" / "rgb-seed0.json")
    assert found.params == notebooks.defaults("train") | {"results": str(tmp_path)}
    assert found.metrics["iid/top1"] == 0.5
    assert found.metrics["seconds/data"] >= 0
    assert found.files == {"found": 3}
    assert not found.stand_in
    assert found.provenance["source"] == notebooks.source_hash("train")
    assert found.provenance["notebook"] == "notebooks/experiments/train.ipynb"


def test_an_edit_during_a_run_is_not_its_source(tmp_path, tree):
    run = notebooks.start("train", TrainConfig, namespace("train", results=str(tmp_path)))
    before = notebooks.source_hash("train")
    (tree / "d3d" / "train" / "losses.py").write_text("")
    run.write("rgb", {"iid/top1": 0.5})
    assert records.read(tmp_path / "train" / "rgb-seed0.json").provenance["source"] == before


def test_age_tells_what_is_stale(tmp_path):
    result = tmp_path / "result"
    result.write_text("done")
    stamp = notebooks.follows(tmp_path / "plan" / "stamp", "a", current=True)
    assert Path(stamp).stat().st_mtime < result.stat().st_mtime
    for content, current, younger in [("a", None, False), ("b", None, True), ("b", True, False), ("b", False, True)]:
        notebooks.follows(stamp, content, current=current)
        assert (Path(stamp).stat().st_mtime >= result.stat().st_mtime) == younger


PROFILE = {
    "seeds": [0, 1, 2, 3, 4],
    "examined_seeds": [1, 3],
    "ablation_seeds": [0, 1],
    "lambdas": [0.1, 3.0],
    "epochs": 24,
    "learning_rate": 0.1,
    "students": {"epochs": 12, "learning_rate": 0.05},
    "arms": {"rgb_teacher": {"lambda_": 0.2}, "d3d_kl": {"distance": "kl"}},
}


class TestStudy:
    def given(self, arm, seed=0, experiment="distill"):
        return study.given(experiment, arm, seed, profile=PROFILE, results="r")

    def test_every_student_is_given_its_teacher(self):
        assert self.given("d3d", 1)["teacher"] == "r/train/flow-seed1.safetensors"
        assert self.given("d3d", 1)["student"] == "r/train/rgb-seed1.safetensors"
        assert self.given("rgb_teacher", 2)["teacher"] == "r/train/rgb_twin-seed2.safetensors"
        assert self.given("rgb_teacher", 2)["lambda_"] == 0.2
        assert self.given("rgb_longer") == {
            "results": "r",
            "seed": 0,
            "arm": "rgb_longer",
            "student": "r/train/rgb-seed0.safetensors",
            "lambda_": 0.0,
            "epochs": 12,
            "learning_rate": 0.05,
        }

    def test_an_ablation_changes_one_thing_of_d3d(self):
        d3d = self.given("d3d")

        def changed(arm):
            found = self.given(arm)
            return {k: found.get(k) for k in {*d3d, *found} - {"arm"} if found.get(k) != d3d.get(k)}

        assert changed("d3d_kl") == {"distance": "kl"}
        assert changed("d3d_features") == {}  # this profile does not say how
        assert changed("d3d_exact") == {"flow": "exact", "teacher": "r/train/flow_exact-seed0.safetensors"}
        assert changed("d3d_lambda_0.1") == {"lambda_": 0.1}
        # As many steps as the stream and its student, with the schedule of a stream.
        assert changed("d3d_scratch") == {"student": "", "epochs": 36, "learning_rate": None}
        flow = self.given("flow", experiment="train")
        assert self.given("flow_exact", experiment="train") == flow | {"arm": "flow_exact", "flow": "exact"}

    def test_a_profile_says_which_lambdas_there_are(self):
        assert study.writes("distill", PROFILE)[-2:] == ("d3d_lambda_0.1", "d3d_lambda_3")
        assert study.weights("r", "d3d_lambda_3", 1) == "r/distill/d3d_lambda_3-seed1.safetensors"
        assert study.seeds_of("distill", PROFILE, arm="d3d_lambda_3") == [0, 1]
        assert study.seeds_of("distill", PROFILE, arm="d3d") == [0, 1, 2, 3, 4]
        assert study.seeds_of("train", PROFILE, arm="flow_exact") == [0, 1]

    def test_a_twin_differs_in_chance_alone(self):
        rgb, twin = (self.given(arm, 4, "train") for arm in ("rgb", "rgb_twin"))
        assert twin == rgb | {"arm": "rgb_twin", "twin": 1}

    def test_pairs_share_no_network(self):
        assert study.seeds_of("fuse", PROFILE, arm="d3d_d3d") == [0, 2]
        assert study.seeds_of("fuse", PROFILE, arm="two_stream") == [0, 1, 2, 3, 4]
        assert study.needs("d3d_d3d", 2) == {2, 3}
        assert study.needs("d3d_rgb", 2) == {2}
        assert study.seeds_of("attribution", PROFILE) == [1, 3]
        assert study.seeds_of("leak", PROFILE) == [1, 3]
        assert study.seeds_of("tvl1", PROFILE) == [0]

    def test_pictures_are_kept_of_one_seed(self):
        assert "pictures" not in self.given(None, 1, "probe")
        assert self.given(None, 3, "probe")["pictures"] == 0

    def test_an_unknown_arm_is_named(self):
        with pytest.raises(ValueError, match="no arm 'd4d': the arms are rgb, rgb_twin, flow"):
            study.weights("r", "d4d", 0)
