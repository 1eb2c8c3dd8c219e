"""The study's networks and runs: which arms there are, what each is given, where its weights lie.

Light on imports: the graph reads it at every start.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The networks, and the experiment that trains each.
ARMS = {"rgb": "train", "flow": "train", "rgb_longer": "distill", "rgb_teacher": "distill", "d3d": "distill"}
# Ensembles by the mean of softmax: two arms of one seed, or one arm of a seed and of the next.
FUSIONS = {
    "two_stream": ("rgb", "flow"),
    "rgb_rgb": ("rgb", "rgb"),
    "d3d_rgb": ("d3d", "rgb"),
    "d3d_d3d": ("d3d", "d3d"),
}
# The records that each experiment writes for a seed.
WRITES = {
    "train": tuple(arm for arm, experiment in ARMS.items() if experiment == "train"),
    "distill": tuple(arm for arm, experiment in ARMS.items() if experiment == "distill"),
    "fuse": tuple(FUSIONS),
    "probe": ("random", *ARMS),
    "attribution": ("random", *(arm for arm in ARMS if arm != "flow")),
}
PUBLISHED, SMOKE = Path("results/h200"), Path("results/smoke")


def shown() -> Path:
    """Where the numbers of the book come from: the published study, or what this machine made."""
    return PUBLISHED if any(PUBLISHED.glob("train/*.json")) else SMOKE


def weights(results: str | Path, arm: str, seed: int) -> str:
    """Where the checkpoint of a network is. Raises ValueError for an arm that is none."""
    if arm not in ARMS:
        raise ValueError(f"no arm {arm!r}: the arms are {', '.join(ARMS)}")
    return str(Path(results) / ARMS[arm] / f"{arm}-seed{seed}.safetensors")


def following(seeds: Sequence[int], seed: int) -> int:
    """The next seed, in a ring: whose RGB network teaches RGB-teacher."""
    return seeds[(seeds.index(seed) + 1) % len(seeds)]


def given(experiment: str, arm: str, seed: int, *, seeds: Sequence[int], results: str) -> dict[str, Any]:
    """What a run is given beyond its profile."""
    if experiment == "fuse":
        return {"results": results}
    own: dict[str, Any] = {"results": results, "seed": seed}
    if experiment == "train":
        own |= {"arm": arm, "stream": arm}
    if experiment == "distill":
        own |= {"arm": arm, "student": weights(results, "rgb", seed)}
        if arm == "d3d":
            own["teacher"] = weights(results, "flow", seed)
        if arm == "rgb_teacher":
            own["teacher"] = weights(results, "rgb", following(seeds, seed))
        if arm == "rgb_longer":
            own["lambda_"] = 0.0
    return own
