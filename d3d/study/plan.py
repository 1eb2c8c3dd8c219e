"""What a profile runs: the arms and seeds of each experiment, and what each run is given beyond the profile."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d3d.study.arms import ARMS, TVL1_SIZES, TVL1_VARIANTS, arm, examined_by
from d3d.study.experiments import EXPERIMENTS

# Experiments that look into clips or networks, all arms of a seed in one run.
EXAMINE = ("leak", "probe", "attribution")
# Experiments whose records are those of networks.
TRAINED = ("train", "distill")
LEAKS = ("pose", "one_frame")
TVL1 = (*TVL1_VARIANTS, *TVL1_SIZES, "opencv")
PUBLISHED, SMOKE = Path("results/h200.jsonl"), Path("results/smoke")
BENCH = Path("results/bench.jsonl")  # speed on one H200: what `make bench` wrote there
REGIME = Path("results/regime.jsonl")  # the search for the knobs of the study: a folder of records per cell
TUNING = Path("results/lambda.jsonl")  # the search for the students' learning rate and lambda: a folder per round
# An exploration beside the study (book/plan.md): streams trained until RGB has settled.
SETTLED = Path("results/settled.jsonl")
ARCHIVES = (PUBLISHED, BENCH, REGIME, TUNING, SETTLED)


def arms_of(experiment: str, profile: Mapping[str, Any]) -> tuple[str, ...]:
    """The arms that an experiment writes records of."""
    if experiment in ("leak", "tvl1"):
        return LEAKS if experiment == "leak" else TVL1
    asked = [*profile["arms"], *profile["ablations"]]
    if experiment in TRAINED:
        return tuple(name for name in asked if arm(name).experiment == experiment)
    if experiment == "fuse":
        return tuple(a.name for a in ARMS.values() if a.members and set(a.members) <= set(profile["arms"]))
    return tuple(name for name in examined_by(experiment) if name in asked or arm(name).experiment == "probe")


def seeds_of(experiment: str, profile: Mapping[str, Any], *, name: str = "") -> list[int]:
    """The seeds that an experiment writes records of: one for TV-L1, those to examine for what looks into networks and
    clips, those of ablations for these, the even one of each pair for an ensemble of one arm."""
    if experiment == "tvl1":
        return [0]
    if name in profile["ablations"]:
        return profile["ablation_seeds"]
    seeds = profile["examined_seeds"] if experiment in EXAMINE else profile["seeds"]
    pairs = name in ARMS and ARMS[name].pairs_seeds
    return [seed for seed in seeds if seed % 2 == 0 and seed + 1 in seeds] if pairs else seeds


def seeds_used(name: str, seed: int) -> set[int]:
    """The seeds of the networks that a record combines: 2k and 2k + 1 where an arm is fused with itself."""
    return {seed, seed + 1} if name in ARMS and ARMS[name].pairs_seeds else {seed}


def made_from(experiment: str, name: str) -> dict[str, Any]:
    """What decides a record beside its parameters and the code: the members of an ensemble, the weights that a probed
    network starts from, the change that a variant of TV-L1 is."""
    if experiment == "tvl1":
        return {"size": TVL1_SIZES[name]} if name in TVL1_SIZES else dict(TVL1_VARIANTS.get(name, {}))
    entry = ARMS.get(name)
    if entry and experiment == "fuse":
        return {"members": list(entry.members), "fused_by": entry.fused_by}
    return {"start": entry.start} if entry and experiment == entry.experiment == "probe" else {}


def weights(results: str | Path, name: str, seed: int) -> str:
    """Where the checkpoint of an arm's network is. Raises ValueError for a name that is no arm's."""
    return str(Path(results) / arm(name).experiment / f"{name}-seed{seed}.safetensors")


def arm_of(experiment: str, params: Mapping[str, Any]) -> str:
    """The name under which a run is filed: its parameter `arm`, or what it trains."""
    if params["arm"]:
        return params["arm"]
    return params["stream"] if experiment == "train" else "d3d" if params["lambda_"] else "rgb_longer"


def student_of(params: Mapping[str, Any]) -> str:
    """The main student (d3d, rgb_teacher, rgb_longer) that a run is a variant of, told by its teacher."""
    taught_by = Path(params["teacher"]).stem.split("-seed")[0] if params["lambda_"] else ""
    main = (a for a in ARMS.values() if a.experiment == "distill" and not a.overrides)
    return next((a.name for a in main if a.teacher == taught_by), "")


def run_path(experiment: str, params: Mapping[str, Any]) -> Path:
    """Where the files of a network's run lie, but for their suffixes."""
    return Path(params["results"]) / experiment / f"{arm_of(experiment, params)}-seed{params['seed']}"


def overrides(
    experiment: str, name: str, seed: int, *, profile: Mapping[str, Any], results: str | Path
) -> dict[str, Any]:
    """The parameters of a run beyond its profile's: of an arm's network, or of all that an experiment makes of a seed
    (name empty)."""
    own: dict[str, Any] = {"results": str(results), "seed": seed}
    if experiment == "probe" and seed != profile["examined_seeds"][0]:
        own |= {"pictures": 0}  # one seed's are enough to look at
    if experiment in TRAINED:
        entry = arm(name)
        own |= {"arm": name, "stream": entry.stream}
        if experiment == "distill":
            own |= {"student": weights(results, entry.start, seed) if entry.start else ""} | profile["students"]
            own |= {"teacher": weights(results, entry.teacher, seed)} if entry.teacher else {"lambda_": 0.0}
            if not entry.start:
                # As many steps as the stream it would have started from and its students took together.
                own |= {"epochs": profile["epochs"] + own.pop("epochs", profile["epochs"])}
                own.pop("learning_rate", None)
        own |= entry.overrides | profile["overrides"].get(name, {})
    return {key: value for key, value in own.items() if key in EXPERIMENTS[experiment].names}


def shown(experiment: str = "train") -> Path:
    """Where the book's numbers of an experiment come from: the published records, or what this machine made."""
    from d3d.study.records import read_all

    return PUBLISHED if PUBLISHED.is_file() and read_all(PUBLISHED, [experiment]) else SMOKE
