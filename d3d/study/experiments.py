"""The experiments: what each takes, in the order of its notebook, and which module computes it.

config = read("train", {"stream": "flow", "epochs": 12})      # the defaults for the rest
config.optimiser.epochs, config.data.clip.rho
"""

import json
from collections.abc import Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from d3d.study.parameters import (
    AttributionConfig,
    ClipConfig,
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
from d3d.study.schema import ParameterError, flat, make, parameters_of, refuse_unknown, same_kind

# Keys of a profile that say which runs there are, not how one is made.
PROFILE_KEYS = (
    "extends", "seeds", "examined_seeds", "ablation_seeds", "arms", "ablations", "students", "overrides",
)  # fmt: skip


def _names(*groups: type) -> tuple[str, ...]:
    return tuple(name for group in groups for name, _ in parameters_of(group))


_CLIP, _FLOW, _FILES = _names(ClipConfig), _names(FlowConfig), _names(FilesConfig)
_TRAINING = {
    "run": ("arm", "seed", "twin", "results", "processes", "save_every"),
    "network": _names(NetworkConfig),
    "clips": (*_CLIP, "train_clips", "test_clips"),
    "flow": _FLOW,
    "video files": _FILES,
    "training": _names(OptimiserConfig),
}
_LOOKING = {
    "run": ("seed", "results"),
    "clips": (*_CLIP, "train_clips", "test_clips"),
    "flow": _FLOW,
}


@dataclass(frozen=True)
class Experiment:
    """One kind of run: its configuration, what of it a notebook may set, and the module that computes it.

    sections: by heading the parameters of its notebook, in order; what is not among them keeps its neutral value.
    """

    config: type
    sections: Mapping[str, tuple[str, ...]]
    module: str

    @property
    def names(self) -> tuple[str, ...]:
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
    "distill": Experiment(TrainConfig, {"distillation": _names(DistillationConfig)} | _TRAINING, "d3d.train.run"),
    "fuse": Experiment(FuseConfig, {"run": ("results",)}, "d3d.train.fuse"),
    "probe": Experiment(
        ProbeConfig,
        _LOOKING | {"probes": ("width", "endpoint", "decoder_epochs", "batch_size", "pictures")},
        "d3d.probing.probe",
    ),
    "attribution": Experiment(
        AttributionConfig,
        _LOOKING | {"attribution": ("width", "endpoint", "clips", "steps")},
        "d3d.probing.attribution",
    ),
}


def field_of(experiment: str, name: str) -> Field:
    """The declaration of a parameter."""
    return dict(parameters_of(EXPERIMENTS[experiment].config))[name]


def defaults(experiment: str) -> dict[str, Any]:
    """The parameters of an experiment and their defaults, in the order of its notebook."""
    return {name: field_of(experiment, name).default for name in EXPERIMENTS[experiment].names}


def known_parameters() -> set[str]:
    """Every parameter of any experiment; a profile may set them all, each experiment takes its own."""
    return {name for experiment in EXPERIMENTS.values() for name in experiment.names}


def values(experiment: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of an experiment: those given that it takes, the defaults for the rest.

    Raises ParameterError for a value of another kind.
    """
    return {
        name: same_kind(default, name, given[name]) if name in given else default
        for name, default in defaults(experiment).items()
    }


def read(experiment: str, given: Mapping[str, Any]) -> Any:
    """The configuration of an experiment with the parameters given; those of other experiments are passed over.

    Raises ParameterError for a value of another kind, ValueError naming a parameter that is out of its range.
    """
    return make(EXPERIMENTS[experiment].config, values(experiment, given))


def params_of(experiment: str, config: Any) -> dict[str, Any]:
    """The `params` of a record: what the experiment's notebook can set."""
    found = flat(config)
    return {name: found[name] for name in EXPERIMENTS[experiment].names}


def _plain(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a notebook's globals."""
    return {
        name: value
        for name, value in namespace.items()
        if isinstance(value, str | bool | int | float | list | dict | NoneType)
        and not name.startswith("_")
        and name not in ("In", "Out")
    }


def take_only(namespace: Mapping[str, Any], *names: str) -> None:
    """Raises ParameterError for a parameter that a chapter was given and does not take."""
    refuse_unknown(_plain(namespace), names, "parameter of this chapter")


def refuse_strangers(profile: Mapping[str, Any]) -> None:
    """Raises ParameterError for the first name that no experiment takes and no profile has."""
    refuse_unknown(profile, known_parameters() | set(PROFILE_KEYS), "parameter of any experiment nor key of a profile")


def from_namespace(experiment: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a notebook from its globals: every plain value there at this point is one.

    One that the experiment does not take is an error, unless it belongs to another and came with a whole profile
    (papermill's `-f`), which sets `seeds`. Raises ParameterError naming it and what is known, or a value of another
    kind.
    """
    given = _plain(namespace)
    own = EXPERIMENTS[experiment].names
    if "extends" in given:
        raise ParameterError(
            f"the profile extends {given['extends']!r}, which papermill does not follow: give it what "
            "`d3d profile FILE` prints"
        )
    if "seeds" not in given:
        refuse_unknown(given, own, f"parameter of {experiment!r}")
    else:
        refuse_strangers(given)
    return values(experiment, given)


def parameter_cell(experiment: str) -> str:
    """The code of the cell tagged `parameters` in an experiment's notebook: a line per parameter, under headings."""
    lines = []
    for heading, names in EXPERIMENTS[experiment].sections.items():
        lines.append(f"# {heading}")
        for name in names:
            f = field_of(experiment, name)
            value = f'"{f.default}"' if isinstance(f.default, str) else repr(f.default)
            lines.append(f"{name} = {value}  # {f.metadata['help']}")
    return "\n".join(lines)


def write_cells(folder: Path) -> None:
    """Writes the parameter cells of the experiments' notebooks below `folder`."""
    for experiment in EXPERIMENTS:
        path = folder / f"{experiment}.ipynb"
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            if "parameters" in cell["metadata"].get("tags", []):
                cell["source"] = parameter_cell(experiment).splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_cells(Path("notebooks/experiments"))
