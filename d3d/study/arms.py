"""The study's networks and runs: which arms there are, what each is given, where its weights lie.

Light on imports: the graph reads it at every start.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Seeds of training stay below; from here on they are twins' and the probes' own.
MAX_SEED = 1000
# The networks, and the experiment that trains each. rgb_twin sees the clips of rgb with weights and order of its own:
# a control that differs from RGB in nothing but chance.
ARMS = {
    "rgb": "train",
    "rgb_twin": "train",
    "flow": "train",
    "rgb_longer": "distill",
    "rgb_teacher": "distill",
    "d3d": "distill",
}
# What is changed of D3D, one thing at a time; beside these stand other values of lambda, named by `lambda_arm`.
ABLATIONS = {
    "flow_exact": "train",
    "d3d_exact": "distill",
    "d3d_scratch": "distill",
    "d3d_kl": "distill",
    "d3d_features": "distill",
}
LAMBDA_ARM = "d3d_lambda_"
TEACHERS = {"rgb_teacher": "rgb_twin", "d3d_exact": "flow_exact"}  # of the others: flow
# Ensembles: two arms of one seed, or one arm of the seeds 2k and 2k + 1, by the mean of softmax or of logits.
FUSIONS = {
    "two_stream": ("rgb", "flow"),
    "two_stream_logits": ("rgb", "flow"),
    "rgb_rgb": ("rgb", "rgb_twin"),
    "d3d_rgb": ("d3d", "rgb"),
    "d3d_d3d": ("d3d", "d3d"),
}
PROBED = ("random", "rgb", "flow", "rgb_longer", "rgb_teacher", "d3d", "tuned")
# Whose weights a probed network starts from, where they are not its own.
STARTS_FROM = {"tuned": "rgb"}
# TV-L1: changes of its parameters, the size it is computed at from a video of twice the network's, and OpenCV's.
TVL1_VARIANTS: dict[str, dict[str, float]] = {
    "default": {},
    "lambda_0.05": {"lambda_": 0.05},
    "lambda_0.5": {"lambda_": 0.5},
    "warps_2": {"warps": 2},
    "warps_10": {"warps": 10},
    "scales_1": {"scales": 1},
    "no_median": {"median": 1},
    "outer_2": {"outer": 2},
    "epsilon_0.1": {"epsilon": 0.1},
}
TVL1_SIZES = {"size_2": 2.0, "size_1": 1.0, "size_0.5": 0.5}
# The records that each experiment writes for a seed.
WRITES = {
    "leak": ("pose", "one_frame"),
    "tvl1": (*TVL1_VARIANTS, *TVL1_SIZES, "opencv"),
    "train": tuple(arm for arm, experiment in (ARMS | ABLATIONS).items() if experiment == "train"),
    "distill": tuple(arm for arm, experiment in (ARMS | ABLATIONS).items() if experiment == "distill"),
    "fuse": tuple(FUSIONS),
    "probe": PROBED,
    "attribution": tuple(arm for arm in PROBED if arm not in ("flow", "tuned")),
}
EXAMINE = ("leak", "probe", "attribution")
PUBLISHED, SMOKE = Path("results/h200"), Path("results/smoke")
BENCH = Path("results/bench")  # speed on one H200: what `make bench` wrote there
REGIME = Path("results/regime")  # the search for the knobs of the study: a folder of records a cell
TUNING = Path("results/lambda")  # the search for the students' learning rate and lambda: a folder of records a round
COMMITTED = (PUBLISHED, BENCH, REGIME, TUNING)


def shown(experiment: str = "train") -> Path:
    """Where the book's numbers of an experiment come from: the published records, or what this machine made."""
    return PUBLISHED if any(PUBLISHED.glob(f"{experiment}/*.json")) else SMOKE


def lambda_arm(value: float) -> str:
    """The arm that is D3D but for its lambda."""
    return f"{LAMBDA_ARM}{value:g}"


def writes(experiment: str, profile: Mapping[str, Any]) -> tuple[str, ...]:
    """The arms of an experiment in a profile, which names the values of lambda beside D3D's own."""
    return WRITES[experiment] + (tuple(map(lambda_arm, profile["lambdas"])) if experiment == "distill" else ())


def weights(results: str | Path, arm: str, seed: int) -> str:
    """Where the checkpoint of a network is. Raises ValueError for an arm that is none."""
    known = ARMS | ABLATIONS
    if arm not in known and not arm.startswith(LAMBDA_ARM):
        raise ValueError(f"no arm {arm!r}: the arms are {', '.join(known)} and {LAMBDA_ARM}…")
    return str(Path(results) / known.get(arm, "distill") / f"{arm}-seed{seed}.safetensors")


def arm_of(experiment: str, params: dict[str, Any]) -> str:
    """The name under which a run is filed: its parameter `arm`, or what it trains."""
    if params["arm"]:
        return params["arm"]
    return params["stream"] if experiment == "train" else "d3d" if params["lambda_"] else "rgb_longer"


def run_path(experiment: str, params: dict[str, Any]) -> Path:
    """Where the files of a network's run lie, but for their suffixes."""
    return Path(params["results"]) / experiment / f"{arm_of(experiment, params)}-seed{params['seed']}"


def seeds_of(experiment: str, profile: Mapping[str, Any], *, arm: str = "") -> list[int]:
    """The seeds that an experiment writes records of: one for TV-L1, those to examine for what looks into networks and
    clips, those of ablations for these, the even one of each pair for D3D + D3D."""
    if experiment == "tvl1":
        return [0]
    if arm in ABLATIONS or arm.startswith(LAMBDA_ARM):
        return profile["ablation_seeds"]
    seeds = profile["examined_seeds"] if experiment in EXAMINE else profile["seeds"]
    return [seed for seed in seeds if seed % 2 == 0 and seed + 1 in seeds] if _of_itself(arm) else seeds


def needs(arm: str, seed: int) -> set[int]:
    """The seeds whose networks a record is of: 2k and 2k + 1 where an arm is fused with itself."""
    return {seed, seed + 1} if _of_itself(arm) else {seed}


def _of_itself(arm: str) -> bool:
    return arm in FUSIONS and len(set(FUSIONS[arm])) == 1


def given(
    experiment: str, arm: str | None, seed: int | None, *, profile: Mapping[str, Any], results: str
) -> dict[str, Any]:
    """What a run is given beyond its profile."""
    if experiment in ("fuse", "tvl1"):
        return {"results": results}
    arm = arm or ""
    own: dict[str, Any] = {"results": results, "seed": seed}
    if experiment == "train":
        own |= {"arm": arm, "stream": arm.split("_")[0], "twin": int(arm.endswith("_twin"))}
    if experiment == "distill":
        own |= {"arm": arm, "student": weights(results, "rgb", seed)} | profile["students"]
        taught = arm != "rgb_longer"
        own |= {"teacher": weights(results, TEACHERS.get(arm, "flow"), seed)} if taught else {"lambda_": 0.0}
    if arm == "d3d_scratch":
        # As many steps as the stream it would have started from and its students took together.
        own |= {"student": "", "epochs": profile["epochs"] + own.pop("epochs", profile["epochs"])}
        own.pop("learning_rate", None)
    if experiment == "probe" and seed != profile["examined_seeds"][0]:
        own |= {"pictures": 0}  # one seed's are enough to look at
    if arm.endswith("_exact"):
        own |= {"flow": "exact"}
    if arm.startswith(LAMBDA_ARM):
        own |= {"lambda_": float(arm.removeprefix(LAMBDA_ARM))}
    return own | profile["arms"].get(arm, {})
