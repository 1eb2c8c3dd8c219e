"""Configurations from flat parameters, with larger clips and a higher learning rate than the notebooks' defaults."""

from collections.abc import Mapping
from typing import Any

from d3d.study.detection import DetectConfig
from d3d.study.experiments import EXPERIMENTS, make_config
from d3d.study.parameters import (
    AttributionConfig,
    ClipConfig,
    DataConfig,
    LeakConfig,
    ProbeConfig,
    TrainConfig,
    Tvl1Config,
)
from d3d.study.schema import make, parameters_of, refuse_unknown

DEFAULTS = {"frames": 16, "size": 64, "camera": 0.5, "learning_rate": 0.1}


def clip(**flat: Any) -> ClipConfig:
    return _group(ClipConfig, flat)


def data(**flat: Any) -> DataConfig:
    return _group(DataConfig, flat)


def training(**flat: Any) -> TrainConfig:
    return _experiment("train", flat)


def distilling(**flat: Any) -> TrainConfig:
    return _experiment("distill", flat)


def probing(**flat: Any) -> ProbeConfig:
    return _experiment("probe", flat)


def attributing(**flat: Any) -> AttributionConfig:
    return _experiment("attribution", flat)


def leaking(**flat: Any) -> LeakConfig:
    return _experiment("leak", flat)


def detecting(**flat: Any) -> DetectConfig:
    return _experiment("detect", flat)


def estimating(**flat: Any) -> Tvl1Config:
    return _experiment("tvl1", flat)


def _group(group: type, flat: Mapping[str, Any]) -> Any:
    refuse_unknown(flat, [name for name, _ in parameters_of(group)], f"parameter of {group.__name__}")
    return make(group, DEFAULTS | flat)


def _experiment(name: str, flat: Mapping[str, Any]) -> Any:
    refuse_unknown(flat, EXPERIMENTS[name].names, f"parameter of {name!r}")
    return make_config(name, DEFAULTS | flat)
