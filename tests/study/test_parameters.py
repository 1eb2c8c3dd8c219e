"""The schema declares each parameter once, checks its range, and is the source of the notebooks' parameter cells."""

import dataclasses
import datetime
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3d.data.load import RENDERERS
from d3d.data.sprite_classes import CLASSES
from d3d.s3dg.checkpoints import CHANNELS
from d3d.study import experiments, parameters, plan
from d3d.study.experiments import EXPERIMENTS, from_namespace, make_config, params_of, take_only
from d3d.study.records import ROOT
from d3d.study.schema import ParameterError, changed, flatten, make, parameters_of
from d3d.train.losses import DISTANCES
from d3d.video import annotations

GROUPS = [c for c in vars(parameters).values() if dataclasses.is_dataclass(c) and isinstance(c, type)]


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_the_parameter_cell_of_a_notebook_is_up_to_date(name):
    """`make cells` writes it."""
    cells = json.loads((ROOT / f"notebooks/experiments/{name}.ipynb").read_text())["cells"]
    (cell,) = ("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    assert cell == experiments.parameter_cell(name)
    namespace: dict[str, object] = {}
    exec(cell, {}, namespace)
    assert namespace == experiments.defaults(name)


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.__name__)
def test_a_parameter_is_declared_once(group):
    """Names are unique within a configuration, and configurations share declarations instead of repeating them."""
    names = Counter(name for name, _ in parameters_of(group))
    assert not [name for name, count in names.items() if count > 1]
    declared = [f.name for g in GROUPS for f in dataclasses.fields(g) if f.metadata]
    assert len(declared) == len(set(declared))


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_an_experiment_only_has_parameters_of_its_configuration(name):
    entry = EXPERIMENTS[name]
    assert len(set(entry.names)) == len(entry.names)
    assert set(entry.names) <= {n for n, _ in parameters_of(entry.config)}
    overrides = {"lambda_": 0.0} if name == "distill" else {}
    config = make_config(name, overrides)
    assert params_of(name, config) == experiments.defaults(name) | overrides


def test_the_schema_agrees_with_other_rooms():
    """It repeats their names instead of importing them, so that notebook kernels and Snakemake start without torch."""
    assert len(CLASSES) == parameters.SPRITE_CLASSES
    assert set(parameters.STREAMS) == set(CHANNELS)
    assert set(parameters.FILE_DATASETS) == set(annotations.DATASETS)
    assert set(parameters.RENDERED_DATASETS) == set(RENDERERS)
    assert set(experiments.field_of("distill", "distance").metadata["choices"]) == set(DISTANCES)


def test_a_stream_has_no_teacher_and_a_student_needs_one():
    assert make_config("train", {}).distillation == parameters.NO_TEACHER
    with pytest.raises(ValueError, match="a student with lambda_ above 0 needs teacher"):
        make_config("distill", {})
    assert make_config("distill", {"lambda_": 0.0}).distillation.lambda_ == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rho": 1.5}, r"rho must lie in \[0, 1\], not 1.5"),
        ({"contrast": 0.0}, r"contrast must lie in \(0, 1\], not 0.0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, it is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, it is -1.0"),
        ({"workers": -1}, "workers must not be negative, it is -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, it is nan"),
        ({"arm": "../x"}, "arm must be a name of lower-case letters, digits and _, such as d3d_mine, not '../x'"),
        ({"arm": "a/b"}, "arm must be a name"),
        ({"arm": "*"}, "arm must be a name"),
        ({"camera": float("inf")}, "camera must be finite, not inf"),
        ({"seed": 1000}, r"seed must lie in \[0, 999\], not 1000"),
        ({"stream": "sound"}, "stream must be one of rgb, flow, not 'sound'"),
        ({"dataset": "mnist"}, "dataset must be one of sprites, folder, .*, not 'mnist'"),
        ({"dataset": "ava", "root": "x"}, "dataset 'ava' has several labels per clip"),
        ({"dataset": "folder"}, "dataset 'folder' needs root"),
        ({"root": "x"}, "root is only for video files"),
        ({"dataset": "folder", "root": "x", "flow": "exact"}, "flow 'exact' exists for sprites only"),
        ({"short_side": 8, "dataset": "folder", "root": "x"}, r"short_side must be 0 \(size\) or at least size \(32\)"),
        ({"accumulate": 17}, r"accumulate must lie between 1 and half of batch_size \(16\)"),
        ({"train_clips": 15}, "train_clips must be at least 16, not 15"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(overrides, message):
    with pytest.raises(ValueError, match=message):
        make_config("train", overrides)


@given(st.dictionaries(st.sampled_from(["seed", "epochs", "frames"]), st.integers(2, 99)))
def test_flatten_inverts_make(overrides):
    config = make_config("train", overrides)
    assert make(type(config), flatten(config)) == config
    assert {name: flatten(config)[name] for name in overrides} == overrides
    assert changed(config, rho=0.25).data.clip.rho == 0.25
    with pytest.raises(ParameterError, match="'epoch' is no parameter of this configuration"):
        changed(config, epoch=3)
    assert changed(changed(config, rho=0.25), rho=config.data.clip.rho) == config


class TestNamespace:
    """The globals of a notebook after papermill has set parameters."""

    def namespace(self, name, **overrides):
        ipython = {"In": ["…"], "Out": {}, "_i": "x", "plan": plan, "start": make_config}
        return experiments.defaults(name) | ipython | overrides

    def test_it_holds_the_parameters(self):
        params = from_namespace("train", self.namespace("train", seed=7, rho=1))
        assert params == experiments.defaults("train") | {"seed": 7, "rho": 1.0}
        assert isinstance(params["rho"], float)

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            ({"learning_rat": 0.1}, "'learning_rat' is no parameter of 'train', which takes .*learning_rate"),
            ({"lambda_": 0.3}, "'lambda_' is no parameter of 'train'"),
            ({"seeds": [0, 1], "lamda": 0.3}, "'lamda' is no parameter of any experiment"),
            ({"seed": "three"}, "seed must be of type int like 0, not 'three'"),
            ({"epochs": 2.5}, "epochs must be of type int"),
            ({"stream": 3}, "stream must be of type str"),
            (
                {"annotations": datetime.date(2026, 1, 2)},
                r"annotations must be of type str .* not datetime.date\(2026",
            ),
            ({"epochs": (1,)}, r"epochs must be of type int like 8, not \(1,\)"),
            ({"stream": ["rgb"]}, r"stream must be of type str like 'rgb', not \['rgb'\]"),
            ({"extends": "h200", "seeds": [0]}, "the profile extends 'h200', which papermill does not follow"),
        ],
    )
    def test_a_wrong_parameter_is_refused(self, overrides, message):
        with pytest.raises(ParameterError, match=message):
            from_namespace("train", self.namespace("train", **overrides))

    @pytest.mark.parametrize(
        ("name", "value", "arrived"),
        [
            ("root", 202401, r"202401 \(int\)"),  # typed as 2024_01
            ("root", 7, r"7 \(int\)"),  # typed as 007
            ("arm", 1000.0, r"1000.0 \(float\)"),  # typed as 1e3
            ("results", True, r"True \(bool\)"),
            ("arm", None, r"None \(NoneType\)"),
        ],
    )
    @pytest.mark.parametrize("profile", [{}, {"seeds": [0]}], ids=["alone", "with a profile"])
    def test_a_string_whose_type_papermill_guessed_is_explained(self, name, value, arrived, profile):
        message = (
            rf"^{name} must be of type str, but arrived as {arrived}: papermill .* `-r {name} VALUE` instead of `-p`"
        )
        with pytest.raises(ParameterError, match=message):
            from_namespace("train", self.namespace("train", **{name: value}, **profile))

    def test_a_profile_may_hold_parameters_of_other_experiments(self):
        params = from_namespace("train", self.namespace("train", seeds=[0], arms=["rgb"], leak_clips=16, rho=0.25))
        assert params["rho"] == 0.25

    def test_a_chapter_only_takes_its_own_parameters(self):
        take_only({"results": "x", "_i": "y", "plan": plan}, "results")
        with pytest.raises(ParameterError, match="'resul' is no parameter of this chapter, which takes results"):
            take_only({"resul": "x"}, "results")
