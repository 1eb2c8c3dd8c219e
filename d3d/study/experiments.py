"""The experiments: their parameters, in the order of their notebooks, and the module that computes each.

config = make_config("train", {"stream": "flow", "epochs": 12})      # the other parameters keep their defaults
config.optimiser.epochs, config.data.clip.rho
"""

import json
from collections.abc import Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from d3d.messages import shown
from d3d.study.detection import DetectConfig, DetectionConfig
from d3d.study.evaluation import EvaluateConfig, WeightsConfig
from d3d.study.parameters import (
    AttributionConfig,
    ClipConfig,
    CompareConfig,
    DistillationConfig,
    FilesConfig,
    FlowConfig,
    FuseConfig,
    LeakConfig,
    NetworkConfig,
    OptimiserConfig,
    ProbeConfig,
    TrainConfig,
    Tvl1Config,
)
from d3d.study.schema import ParameterError, check_type, flatten, make, parameters_of, refuse_unknown

# Keys of a profile that are not parameters: they say which runs the study has.
PROFILE_KEYS = (
    "extends", "seeds", "examined_seeds", "ablation_seeds", "arms", "ablations", "students", "overrides", "sources",
)  # fmt: skip


def _names(*groups: type) -> tuple[str, ...]:
    return tuple(name for group in groups for name, _ in parameters_of(group))


_CLIP, _FLOW, _FILES = _names(ClipConfig), _names(FlowConfig), _names(FilesConfig)
_TRAINING = {
    "run": ("arm", "seed", "twin", "results", "processes", "save_every"),
    "network": _names(NetworkConfig),
    "clips": (*_CLIP, "train_clips", "test_clips", "half", "augment"),
    "flow": _FLOW,
    "video files": _FILES,
    "training": _names(OptimiserConfig),
}
_EXAMINING = {
    "run": ("seed", "results"),
    "clips": (*_CLIP, "train_clips", "test_clips"),
    "flow": _FLOW,
}


@dataclass(frozen=True)
class Experiment:
    """One kind of run.

    Attributes:
        config: the class of its configuration.
        sections: the parameters that its notebook can set, in order, by heading; the others keep their defaults.
        module: name of the module that computes it.
    """

    config: type
    sections: Mapping[str, tuple[str, ...]]
    module: str

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that its notebook can set, in order."""
        return tuple(name for section in self.sections.values() for name in section)


EXPERIMENTS = {
    "leak": Experiment(
        LeakConfig,
        {
            "run": ("seed", "results"),
            "clips": (*_CLIP, "train_clips", "leak_clips"),
            "training": ("width", "epochs", "batch_size", "learning_rate"),
        },
        "d3d.probing.leaks",
    ),
    "tvl1": Experiment(Tvl1Config, {"run": ("results",), "clips": (*_CLIP, "pairs")}, "d3d.probing.tvl1"),
    "train": Experiment(TrainConfig, _TRAINING, "d3d.train.run"),
    "distill": Experiment(
        TrainConfig, {"distillation": (*_names(DistillationConfig), "unlabelled_clips")} | _TRAINING, "d3d.train.run"
    ),
    "evaluate": Experiment(
        EvaluateConfig,
        {
            "weights": (*_names(WeightsConfig), "stream"),
            "run": ("arm", "seed", "results", "processes", "save_every"),
            "clips": ("frames", "size"),
            "flow": _FLOW,
            "video files": _FILES,
        },
        "d3d.train.validate",
    ),
    "fuse": Experiment(FuseConfig, {"run": ("results",)}, "d3d.train.fuse"),
    "compare": Experiment(CompareConfig, {"run": ("results",)}, "d3d.train.compare"),
    "probe": Experiment(
        ProbeConfig,
        _EXAMINING
        | {"video files": _FILES, "probes": ("width", "endpoint", "decoder_epochs", "batch_size", "pictures")},
        "d3d.probing.probe",
    ),
    "attribution": Experiment(
        AttributionConfig,
        _EXAMINING | {"video files": _FILES, "attribution": ("width", "endpoint", "clips", "steps", "films")},
        "d3d.probing.attribution",
    ),
    "detect": Experiment(
        DetectConfig,
        {
            "run": ("arm", "seed", "results", "save_every"),
            "clips": _CLIP,
            "flow": _FLOW,
            "video files": ("dataset", "root", "annotations", "fps", "damaged", "workers"),
            "detection": ("width", *_names(DetectionConfig)),
        },
        "d3d.detection.experiment",
    ),
}


def field_of(experiment: str, name: str) -> Field:
    """Returns the declaration of a parameter."""
    return dict(parameters_of(EXPERIMENTS[experiment].config))[name]


def defaults(experiment: str) -> dict[str, Any]:
    """Returns the default of every parameter of an experiment, in the order of its notebook."""
    return {name: field_of(experiment, name).default for name in EXPERIMENTS[experiment].names}


def parameter_names() -> set[str]:
    """Returns the parameters of all experiments, all of which a profile may set."""
    return {name for experiment in EXPERIMENTS.values() for name in experiment.names}


def with_defaults(experiment: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all parameters of an experiment, with some of its defaults overridden.

    Args:
        experiment: name of the experiment.
        overrides: values by name; parameters of other experiments are ignored.

    Raises:
        ParameterError: for a value of the wrong type.
    """
    return {
        name: check_type(name, overrides[name], default) if name in overrides else default
        for name, default in defaults(experiment).items()
    }


def make_config(experiment: str, overrides: Mapping[str, Any]) -> Any:
    """Makes the configuration of an experiment, with some of its defaults overridden.

    Args:
        experiment: name of the experiment.
        overrides: values by name; parameters of other experiments are ignored.

    Raises:
        ParameterError: for a value of the wrong type.
        ValueError: for a value out of range, naming the parameter.
    """
    return make(EXPERIMENTS[experiment].config, with_defaults(experiment, overrides))


def params_of(experiment: str, config: Any) -> dict[str, Any]:
    """Returns the `params` of a record: those parameters of a configuration that the experiment's notebook can set."""
    params = flatten(config)
    return {name: params[name] for name in EXPERIMENTS[experiment].names}


def _plain_values(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The globals of a notebook that may be parameters: no modules, functions, or variables of IPython."""
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, str | bool | int | float | list | dict | NoneType)
        and not name.startswith("_")
        and name not in ("In", "Out")
    }


def take_only(namespace: Mapping[str, Any], *names: str) -> None:
    """Checks that a chapter was given no parameters but these.

    Args:
        namespace: the globals of the chapter.
        names: its parameters.

    Raises:
        ParameterError: for another parameter, naming it.
    """
    refuse_unknown(_plain_values(namespace), names, "parameter of this chapter")


def refuse_unknown_keys(profile: Mapping[str, Any]) -> None:
    """Raises ParameterError for a key that is neither a parameter of any experiment nor a key of profiles."""
    refuse_unknown(profile, parameter_names() | set(PROFILE_KEYS), "parameter of any experiment nor key of a profile")


def from_namespace(experiment: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all parameters of an experiment, read from the globals of its notebook.

    Every plain value among the globals counts as a parameter. Parameters of other experiments are allowed only if a
    complete profile was passed (papermill's `-f`), which is recognised by its key `seeds`.

    Args:
        experiment: name of the experiment.
        namespace: the globals after papermill has set parameters.

    Raises:
        ParameterError: for an unknown parameter, a value of the wrong type, or a profile that extends another.
    """
    overrides = _plain_values(namespace)
    if "extends" in overrides:
        raise ParameterError(
            f"the profile extends {shown(overrides['extends'])}, which papermill does not follow: pass it the output "
            "of `d3d profile FILE` instead"
        )
    if "seeds" in overrides:
        refuse_unknown_keys(overrides)
    else:
        refuse_unknown(overrides, EXPERIMENTS[experiment].names, f"parameter of {experiment!r}")
    # A parameter of any other type is refused too, such as a date of a YAML file.
    overrides |= {name: namespace[name] for name in EXPERIMENTS[experiment].names if name in namespace}
    for name, default in defaults(experiment).items():
        value = overrides.get(name, default)
        if isinstance(default, str) and isinstance(value, bool | int | float | NoneType):
            raise ParameterError(
                f"{name} must be of type str, but arrived as {shown(value)} ({type(value).__name__}): papermill may "
                f"have guessed this type, so pass it with `-r {name} VALUE` instead of `-p`, or quote it in a YAML file"
            )
    return with_defaults(experiment, overrides)


def parameter_cell(experiment: str) -> str:
    """Returns the code of a notebook's cell tagged `parameters`: one line per parameter, under headings."""
    sections = []
    for heading, names in EXPERIMENTS[experiment].sections.items():
        lines = [f"# ---- {heading} ----"]
        for name in names:
            f = field_of(experiment, name)
            value = f'"{f.default}"' if isinstance(f.default, str) else repr(f.default)
            lines.append(f"{name} = {value}  # {f.metadata['help']}")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def write_cells(folder: Path) -> None:
    """Writes the parameter cell of every experiment's notebook in `folder`."""
    for experiment in EXPERIMENTS:
        path = folder / f"{experiment}.ipynb"
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                cell["source"] = parameter_cell(experiment).splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_cells(Path("notebooks/experiments"))
