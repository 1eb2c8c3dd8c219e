"""What the rows of the paper's tables cost, by `d3d.report.scale`, and what differences their clips could show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d3d.report.scale import DATASETS, EVALUATION, EXTRACTION, Quantity, disk_bytes, stage_cost
from d3d.study import records

# Seeds of training, and official splits of UCF101 and HMDB-51.
SEEDS, SPLITS = 3, 3
NETWORKS = ("rgb", "flow", "d3d")


@dataclass(frozen=True)
class Work:
    """A stage of work, once or several times.

    Attributes:
        stage: a stage of `d3d.report.scale`.
        times: how often it is done, such as once per seed and split.
        evaluated: the arms of stage `evaluation`.
    """

    stage: str
    times: int = 1
    evaluated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Route:
    """One way to answer a row.

    Attributes:
        dataset: a data set of `d3d.report.scale`.
        work: the stages.
        training_videos: whether videos of training clips are needed.
    """

    dataset: str
    work: tuple[Work, ...]
    training_videos: bool = True


@dataclass(frozen=True)
class RouteCost:
    """What a route costs.

    Attributes:
        hours: wall-clock hours by number of GPUs.
        disk: bytes of the videos and of what the route writes.
    """

    hours: Mapping[int, float]
    disk: float


def _fine_tuning(dataset: str, networks: int = 1) -> Route:
    runs = SEEDS * SPLITS * networks
    return Route(dataset, (Work(EXTRACTION), Work("flow", runs), Work("d3d", runs)))


def _kinetics(classes: int) -> dict[str, Route]:
    dataset = f"kinetics{classes}"
    trained = (Work(EXTRACTION), *(Work(stage, SEEDS) for stage in NETWORKS), Work(EVALUATION, SEEDS, NETWORKS))
    return {
        "released": Route(dataset, (Work(EVALUATION, 1, ("d3d",)),), training_videos=False),
        "both released": Route(dataset, (Work(EVALUATION, 1, ("d3d", "rgb")),), training_videos=False),
        "trained": Route(dataset, trained),
    }


_K400, _K600 = _kinetics(400), _kinetics(600)
# By row: all that it needs, by its command and by its command for training. An ensemble needs the networks of the rows
# before it, and little else.
COMMAND = {
    "B1": _fine_tuning("ucf101"), "B2": _fine_tuning("ucf101"), "B3": _fine_tuning("ucf101", 2),
    "B4": _fine_tuning("hmdb51"), "B5": _fine_tuning("hmdb51"), "B6": _fine_tuning("hmdb51", 2),
    "B7": Route("ava", (Work(EXTRACTION), Work("d3d"))),
    "B8": _K400["released"], "B9": _K400["both released"], "B10": _K600["released"], "B11": _K600["both released"],
}  # fmt: skip
TRAINING = {"B8": _K400["trained"], "B9": _K400["trained"], "B10": _K600["trained"], "B11": _K600["trained"]}


def route_cost(route: Route, values: Mapping[str, Quantity], *, gpus: Sequence[int] = (1, 8)) -> RouteCost:
    """Computes what a route costs on each number of GPUs.

    Args:
        route: the route.
        values: inputs of the model, from `scale.quantities`.
        gpus: numbers of GPUs.
    """
    hours = dict.fromkeys(gpus, 0.0)
    written = 0.0
    for work in route.work:
        for count in gpus:
            evaluated = {"evaluated": work.evaluated} if work.evaluated else {}
            cost = stage_cost(work.stage, route.dataset, count, values, **evaluated)
            hours[count] += work.times * cost.hours
        written += work.times * cost.disk_bytes
    dataset = DATASETS[route.dataset]
    share = 1.0 if route.training_videos else dataset.validation / dataset.videos
    return RouteCost(hours, written + share * disk_bytes(route.dataset, values)["videos"])


def control_cost(arm: str, dataset: str, values: Mapping[str, Quantity]) -> RouteCost:
    """Computes what all seeds of a student cost whose streams and flow exist already, with its test views."""
    route = Route(dataset, (Work(arm, SEEDS), Work(EVALUATION, SEEDS, (arm,))))
    cost = route_cost(route, values)
    return RouteCost(cost.hours, cost.disk - disk_bytes(dataset, values)["videos"])


def disagreement(study: Path, first: str, second: str, split: str) -> list[float]:
    """Returns on which share of test clips exactly one of two networks is right, for each seed and cell of a study.

    Args:
        study: a published study whose arrays have the predicted class of each clip.
        first, second: arms, compared seed by seed.
        split: the test split.

    Raises:
        ValueError: there is no seed of both arms; it names the study.
    """
    shares = []
    for cell, of_cell in records.read_cells(study).items():
        by_network = {(r.arm, r.seed): r for r in of_cell if r.arm in (first, second)}
        for seed in sorted({seed for arm, seed in by_network if arm == first}):
            if (second, seed) in by_network:
                right = []
                for arm in (first, second):
                    arrays = records.read_arrays(study, by_network[arm, seed], cell=cell)
                    right.append(arrays[f"prediction/{split}"] == arrays[f"labels/{split}"])
                shares.append(float(np.mean(right[0] != right[1])))
    if not shares:
        raise ValueError(f"{study} has no {first} and {second} of the same seed")
    return shares


def detectable_over_clips(clips: int, disagreement: float, *, power: float = 0.8) -> float:
    """Returns the difference in top-1 of two networks on the same clips that a paired test at 5 % finds.

    Per clip the difference is 1, 0 or -1, so that its variance is at most the share of clips on which one is right.

    Args:
        clips: number of test clips.
        disagreement: the share of clips on which exactly one network is right.
        power: the probability.
    """
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=clips, alpha=0.05, power=power)) * math.sqrt(disagreement)


def detectable_over_seeds(seeds: int, deviation: float, *, power: float = 0.8) -> float:
    """Returns the mean difference that a t test at 5 % over seeds finds with this power.

    Args:
        seeds: number of paired seeds.
        deviation: standard deviation of the difference between seeds.
        power: the probability.
    """
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=seeds, alpha=0.05, power=power)) * deviation
