"""The plan of a profile: the arms and seeds of each experiment, and the parameters in which each run differs from the
profile."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from d3d.study.arms import ARMS, TVL1_SIZES, TVL1_VARIANTS, Arm, arms_examined_by, get_arm
from d3d.study.experiments import EXPERIMENTS, with_defaults
from d3d.study.parameters import RENDERED_DATASETS

# Experiments that examine clips or networks: one run writes the records of all arms of a seed.
EXAMINING = ("leak", "probe", "attribution", "detect")
# Experiments that need the ground truth of rendered clips, which video files lack.
ON_RENDERED = ("leak", "tvl1", "detect")
# Experiments that train networks: one record per network.
TRAINED = ("train", "distill")
# Experiments that test networks: one record per network, with its logits for every test clip beside it.
TESTED = (*TRAINED, "evaluate")
LEAKS = ("pose", "one_frame")
TVL1 = (*TVL1_VARIANTS, *TVL1_SIZES, "opencv")
PUBLISHED, SMOKE = Path("results/h200.jsonl"), Path("results/smoke")
BENCH = Path("results/bench.jsonl")  # speed on one H200, written by `make bench`
REGIME = Path("results/regime.jsonl")  # the search for the study's parameters: one folder of records per cell
TUNING = Path("results/lambda.jsonl")  # the search for the students' learning rate and lambda: one folder per round
# An exploration beside the study (book/plan.md): streams trained until the accuracy of RGB has settled.
SETTLED = Path("results/settled.jsonl")
JHMDB = Path("results/jhmdb.jsonl")  # a pilot on real video: a folder per official split, with and without repeats
SEARCHES = Path("results/sprites-searches.jsonl")  # what the second study's training was chosen by: a cell per search
JHMDB_SEARCHES = Path("results/jhmdb-searches.jsonl")  # the same on real video
ARCHIVES = (PUBLISHED, BENCH, REGIME, TUNING, SETTLED, JHMDB, SEARCHES)


def arms_of(experiment: str, profile: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the arms of which an experiment writes records; none if it cannot run on the data set."""
    if experiment in ON_RENDERED and with_defaults("train", profile)["dataset"] not in RENDERED_DATASETS:
        return ()
    if experiment in ("leak", "tvl1"):
        return LEAKS if experiment == "leak" else TVL1
    listed = [*profile["arms"], *profile["ablations"]]
    if experiment in TRAINED:
        return tuple(name for name in listed if get_arm(name).experiment == experiment)
    if experiment == "fuse":
        return tuple(arm.name for arm in ARMS.values() if arm.members and set(arm.members) <= set(profile["arms"]))
    if experiment == "compare":
        needed = {"flow", "rgb_longer"} <= set(listed)
        return tuple(name for name in compared_arms() if needed and {name, flow_teacher(name)} <= set(listed))
    examined = map(get_arm, arms_examined_by(experiment))
    return tuple(a.name for a in examined if a.experiment == "probe" or {*(a.members or (a.name,))} <= set(listed))


def compared_arms() -> tuple[str, ...]:
    """Returns the names of the arms that are compared with the flow stream: the RGB networks."""
    return tuple(arm.name for arm in ARMS.values() if arm.experiment in TRAINED and arm.stream == "rgb")


def flow_teacher(name: str) -> str:
    """Returns the flow stream that an RGB network is compared with: its teacher if that is one, of all clips."""
    teacher = ARMS[name].teacher
    return teacher if teacher and ARMS[teacher].stream == "flow" and not ARMS[name].second_teacher else "flow"


def seeds_of(experiment: str, profile: Mapping[str, Any], *, name: str = "") -> list[int]:
    """Returns the seeds of the records that an experiment writes.

    TV-L1 has one seed, 0, and none in a profile that examines nothing. Ablations and experiments that examine have the
    seeds that the profile lists for them. An ensemble of two seeds of one arm is named by the even one.

    Args:
        experiment: name of the experiment.
        profile: a complete profile.
        name: the arm; empty: an arm that is neither an ablation nor an ensemble.
    """
    if experiment == "tvl1":
        return [0] if profile["examined_seeds"] else []
    if name in profile["ablations"]:
        return profile["ablation_seeds"]
    seeds = profile["examined_seeds"] if experiment in EXAMINING else profile["seeds"]
    if name in ARMS and ARMS[name].fuses_two_seeds:
        return [seed for seed in seeds if seed % 2 == 0 and seed + 1 in seeds]
    return seeds


def seeds_used(name: str, seed: int) -> set[int]:
    """Returns the seeds of the networks behind a record: `seed`, and `seed + 1` for an ensemble of two seeds."""
    return {seed, seed + 1} if name in ARMS and ARMS[name].fuses_two_seeds else {seed}


def made_from(experiment: str, name: str) -> dict[str, Any]:
    """Returns the inputs of a record besides its parameters and the code, as stored in its provenance.

    These are the members of an ensemble, the network that another is compared with, the initial weights of a network
    that probes train, and the parameters or the size that a variant of TV-L1 changes.
    """
    if experiment == "tvl1":
        return {"size": TVL1_SIZES[name]} if name in TVL1_SIZES else dict(TVL1_VARIANTS.get(name, {}))
    arm = ARMS.get(name)
    if arm and experiment == "fuse":
        return {"members": list(arm.members), "fused_by": arm.fused_by}
    if arm and experiment == "detect":
        return {"members": list(arm.members)} if arm.members else {}
    if arm and experiment == "compare":
        return {"teacher": flow_teacher(name)}
    return {"start": arm.start} if arm and experiment == arm.experiment == "probe" else {}


def weights_path(results: str | Path, name: str, seed: int) -> str:
    """Returns the path of the checkpoint of an arm's network.

    Raises:
        ValueError: for an unknown arm.
    """
    return str(Path(results) / get_arm(name).experiment / f"{name}-seed{seed}.safetensors")


def arm_name(experiment: str, params: Mapping[str, Any]) -> str:
    """Returns the arm under which a run of `train`, `distill` or `evaluate` is recorded.

    It is the parameter `arm`, or if that is empty the stream, or for a student `rgb_longer` without a lesson, the arm
    that decodes the flow field if it does, else the arm of D3D's teacher with these outputs: `d3d`, `class_mean` or
    `flow_shuffled`.
    """
    if params["arm"]:
        return params["arm"]
    if experiment != "distill":
        return params["stream"]
    if params["lambda_"] and params["distance"] == "flow_field":
        return "flow_head" if params["outputs"] == "clip" else "flow_head_shuffled"
    return _student("flow", params["outputs"]) if params["lambda_"] else "rgb_longer"


def main_student(params: Mapping[str, Any]) -> str:
    """Returns the student of the study that learns the same outputs of the same teacher; empty: there is none."""
    teacher = Path(params["teacher"]).stem.split("-seed")[0] if params["lambda_"] else ""
    # Records made before there was a choice of outputs have none.
    return _student(teacher, params.get("outputs", "clip") if teacher else "clip")


def _student(teacher: str, outputs: str) -> str:
    """Returns the first student that learns these outputs of this teacher and overrides no parameter, or ''."""
    students = (arm for arm in ARMS.values() if arm.experiment == "distill" and not arm.overrides)
    return next((arm.name for arm in students if (arm.teacher, arm.outputs) == (teacher, outputs)), "")


def run_path(experiment: str, params: Mapping[str, Any]) -> Path:
    """Returns the path of the files of a run of `train`, `distill` or `evaluate`, without their suffixes."""
    return Path(params["results"]) / experiment / f"{arm_name(experiment, params)}-seed{params['seed']}"


def overrides(
    experiment: str, name: str, seed: int, *, profile: Mapping[str, Any], results: str | Path
) -> dict[str, Any]:
    """Returns the parameters in which a run differs from its profile.

    Args:
        experiment: name of the experiment.
        name: the arm whose network is trained; empty for experiments other than `train` and `distill`.
        seed: the seed of the run.
        profile: a complete profile.
        results: folder of the records.
    """
    params: dict[str, Any] = {"results": str(results), "seed": seed}
    if experiment in ("probe", "attribution"):
        if cache := flow_cache(profile, results):
            params |= {"flow_cache": cache}
        if seed != profile["examined_seeds"][0]:  # the book shows the pictures of one seed only
            params |= {"pictures": 0, "films": 0}
    if experiment in TRAINED:
        arm = get_arm(name)
        params |= {"arm": name, "stream": arm.stream}
        if needs_flow(name) and (cache := flow_cache(profile, results)):
            params |= {"flow_cache": cache}
        if experiment == "distill":
            params |= {"student": _start_path(arm, seed, profile, results)} | profile["students"]
            params |= {"outputs": arm.outputs}
            if arm.teacher:
                params |= {"teacher": weights_path(results, arm.teacher, seed)}
                if arm.second_teacher:
                    params |= {"second_teacher": weights_path(results, arm.second_teacher, seed)}
            else:
                params |= {"lambda_": 0.0}
            if not arm.start:
                # As many epochs, in total, as a stream and the student that starts from it.
                params |= {"epochs": profile["epochs"] + params.pop("epochs", profile["epochs"])}
                params.pop("learning_rate", None)
        params |= arm.overrides | profile["overrides"].get(name, {})
    return {key: value for key, value in params.items() if key in EXPERIMENTS[experiment].names}


def _start_path(arm: Arm, seed: int, profile: Mapping[str, Any], results: str | Path) -> str:
    """The checkpoint that a student starts from, of this study or of a source; empty: random weights."""
    if not arm.start:
        return ""
    source = profile["sources"][arm.source] if arm.source else str(results)
    # Released weights are one network, the same for every seed.
    return source if source.endswith(".safetensors") else weights_path(source, arm.start, seed)


def flow_cache(profile: Mapping[str, Any], results: str | Path) -> str:
    """Returns the folder in which a study of video files keeps their flow; empty: it needs none, or shards have it.

    Args:
        profile: a complete profile.
        results: folder of the records.
    """
    params = with_defaults("train", profile)
    if params["dataset"] in RENDERED_DATASETS or params["repeated_frames"] == "drop":
        return ""
    return params["flow_cache"] or ("" if params["dataset"] == "shards" else str(Path(results, "flow", "videos")))


def needs_flow(name: str) -> bool:
    """Whether the training of an arm sees optical flow, as the network's input, as its teacher's or as its lesson."""
    arm = get_arm(name)
    streams = arm.stream, get_arm(arm.teacher).stream if arm.teacher else ""
    return "flow" in streams or arm.overrides.get("distance") == "flow_field"


def book_results(experiment: str = "train") -> Path:
    """Returns where the book reads records of an experiment: the published study if it has any, or the smoke study."""
    from d3d.study.records import read_all

    return PUBLISHED if PUBLISHED.is_file() and read_all(PUBLISHED, [experiment]) else SMOKE


def main_split(splits: Iterable[str]) -> str:
    """The test split that a run is judged on: `iid` of sprites, else one called test, else val, else the first."""
    splits = list(splits)
    for ending in ("iid", "test", "val"):
        for split in splits:
            if split.split("/")[-1] == ending:
                return split
    return splits[0]
