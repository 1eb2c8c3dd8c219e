"""The parameters of the experiment `evaluate`, declared as those in d3d/study/parameters.py."""

from dataclasses import dataclass

from d3d.study.parameters import DataConfig, NetworkConfig, RunConfig, refuse_boxes
from d3d.study.schema import Group, parameter

RUN, NETWORK, DATA = RunConfig(), NetworkConfig(), DataConfig()


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(Group):
    """The network that is evaluated."""

    weights: str = parameter(
        "", "network to evaluate: a .safetensors file, or a TensorFlow checkpoint's prefix or .npz of its variables"
    )
    labels: str = parameter(
        "",
        "text file of the weights' classes, a line per logit; empty: as in weights, or if imported alphabetical",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Group):
    """Evaluation of given weights on the test clips of a set of video files, without training."""

    run: RunConfig = RUN
    network: NetworkConfig = NETWORK
    data: DataConfig = DATA
    evaluated: WeightsConfig = WeightsConfig()

    def check(self) -> None:
        refuse_boxes(self.data)
