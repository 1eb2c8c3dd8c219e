"""The arms: one entry for every network and ensemble of the study.

To add an arm, write its entry here and name it in a profile. No other code changes, and no record becomes stale.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# The names of arms, of at most 100 characters, begin the names of files and stand in contrasts.
NAME = re.compile(r"(?!.{101})[a-z]\w*(\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A network, or an ensemble of two networks.

    Attributes:
        name: its key in `ARMS`, in profiles and in the file names of its records.
        experiment: the experiment that makes it: train, distill, evaluate, fuse or probe.
        label: its name in figures and prose.
        colour: its colour in all figures, as matplotlib takes it.
        marker: its marker in all figures, as matplotlib takes it.
        short: its name in contrasts; empty: the label.
        stream: its input, rgb or flow.
        start: the arm whose weights initialise it; empty: random weights. A student with random weights trains for as
            many epochs as a stream and a student together.
        source: the data set on which `start` was trained, a key of the profile's `sources`; empty: that of the study.
        teacher: the arm that it is distilled from; empty: none.
        second_teacher: with `teacher`, a stream of half of the clips, the one of the other half; each teaches the clips
            that it was not trained on.
        outputs: the teacher's outputs that it learns, as the parameter `outputs`.
        overrides: parameters in which it differs from the profile.
        members: the two arms of an ensemble, of the same seed; if one arm is named twice, its networks of seeds 2k and
            2k + 1.
        fused_by: the outputs that an ensemble averages: softmax or logits.
        examined_by: the experiments that examine it: probe, attribution, detect.
    """

    name: str
    experiment: str
    label: str
    colour: str | tuple[float, float, float]
    marker: str = "o"
    short: str = ""
    stream: str = "rgb"
    start: str = ""
    source: str = ""
    teacher: str = ""
    second_teacher: str = ""
    outputs: str = "clip"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    fused_by: str = "softmax"
    examined_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"an arm's name has lower-case letters, digits and _, such as d3d_mine, not {self.name!r}")

    @property
    def fuses_two_seeds(self) -> bool:
        """Whether it is an ensemble of two networks of one arm, of different seeds."""
        return bool(self.members) and len(set(self.members)) == 1


# Each of them stands out from white, and any two main arms differ for colour-blind readers too
# (tests/study/test_colours.py). Cool colours are networks of frames alone, green ones include flow, red ones D3D.
BLUE, CYAN, MAUVE, OLIVE, VIOLET, RED = "#0b5fd9", "#02a0bf", "#9a5784", "#6b7a3d", "#392340", "#990000"
OCHRE, BROWN, GREEN, LIGHT_GREEN = "#af8f15", "#8c5c01", "#1f6251", "#12a56c"
NAVY, SLATE, SALMON, WINE, GREY, BLACK = "#00008c", "#3a4580", "#d2755c", "#6e152c", "#939090", "#000000"
# Fields that several arms share.
STUDENT = {"experiment": "distill", "start": "rgb"}
D3D = STUDENT | {"teacher": "flow", "colour": RED}
BOTH_EXAMINATIONS = ("probe", "attribution")
ALL_EXAMINATIONS = (*BOTH_EXAMINATIONS, "detect")
# The weights among which that of a lesson is chosen, by its distance: five, and one more at either end.
WEIGHTS = {
    "mse": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "features": (1.5, 5.0, 15.0, 50.0, 150.0, 500.0, 1500.0),
    "relations": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
    "activations": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "flow_field": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
}


def _shuffled(arm: Arm) -> Arm:
    """The same student of the teacher's outputs for other clips of the same class."""
    name, label = f"{arm.name}_shuffled", f"{arm.label}, shuffled"
    return replace(arm, name=name, label=label, outputs="shuffled", colour=VIOLET, marker="d", examined_by=())


def _grid(base: Arm, name: str, parameter: str, symbol: str, values: Iterable[float]) -> list[Arm]:
    """An arm with other values of one parameter; `name` and `symbol` stand before the value in its name and label."""
    return [
        replace(
            base,
            name=f"{base.name}_{name}_{value:g}",
            label=f"{base.label}, {symbol} {value:g}",
            overrides={**base.overrides, parameter: value},
            examined_by=(),
        )
        for value in values
    ]


def _official_split_arms(split: int) -> list[Arm]:
    """The arms for the paper's results on one of the three official splits of a data set.

    Networks from Kinetics-400 and -600, or from what stands in for these, are fine-tuned for equally many steps.
    """
    suffix, overrides = f"split {split}", {"split": split}
    # Each split has its own teacher: one trained on another split would have seen test clips of this one.
    teacher = Arm(
        name=f"flow_s{split}", experiment="train", label=f"flow, {suffix}", colour=OCHRE, marker="^", stream="flow",
        overrides=overrides,
    )  # fmt: skip
    # By the first part of their names: labels, colours, the arm of the source that they start from, and the teacher.
    tuned = {
        "rgb": ("RGB", BLUE, "rgb", ""),
        "rgb_longer": ("RGB-longer", CYAN, "rgb_longer", ""),
        "d3d_source": ("source's D3D", SALMON, "d3d", ""),
        "d3d": ("D3D", RED, "rgb", teacher.name),
    }
    students = [
        Arm(
            name=f"{name}_k{n}_s{split}", experiment="distill", label=f"{label} from K{n}, {suffix}", colour=colour,
            start=start, source=f"k{n}", teacher=arm_teacher, overrides=overrides,
        )
        for n in (400, 600)
        for name, (label, colour, start, arm_teacher) in tuned.items()
    ]  # fmt: skip
    ensembles = [
        Arm(
            name=f"{name}_s{split}", experiment="fuse", label=f"{label}, {suffix}", colour=colour, fused_by=fused_by,
            members=tuple(f"{member}_s{split}" for member in members),
        )
        for name, label, colour, fused_by, members in (
            ("d3d_d3d", "D3D + D3D", WINE, "softmax", ("d3d_k400", "d3d_k600")),
            ("d3d_d3d_source", "D3D + D3D of the sources", SALMON, "softmax", ("d3d_source_k400", "d3d_source_k600")),
            ("two_stream_k400", "RGB from K400 + flow by logits", GREEN, "logits", ("rgb_k400", "flow")),
            ("two_stream_k600", "RGB from K600 + flow by logits", GREEN, "logits", ("rgb_k600", "flow")),
        )
    ]  # fmt: skip
    return [teacher, *students, *ensembles]


def _main_arms() -> list[Arm]:
    """The streams, the students that claims are about, and the ends of the probes' scale."""
    # The students differ in their teacher alone. By how much D3D exceeds flow shuffled is what this clip's motion
    # gives; by how much flow shuffled exceeds the class mean, the spread of the teacher's outputs; by how much the
    # class mean exceeds RGB-longer, soft labels.
    return [
        Arm(
            name="random", experiment="probe", label="random weights", short="random", colour=GREY,
            marker="X", examined_by=ALL_EXAMINATIONS,
        ),
        Arm(name="rgb", experiment="train", label="RGB", colour=BLUE, examined_by=ALL_EXAMINATIONS),
        # The same clips as rgb, but other initial weights and another batch order.
        Arm(name="rgb_twin", experiment="train", label="RGB, twin", colour=SLATE, marker="8", overrides={"twin": 1}),
        Arm(
            name="flow", experiment="train", label="flow", colour=OCHRE, marker="^", stream="flow",
            examined_by=ALL_EXAMINATIONS,
        ),
        Arm(name="rgb_longer", label="RGB-longer", colour=CYAN, marker="s", examined_by=ALL_EXAMINATIONS, **STUDENT),
        Arm(
            name="rgb_teacher", label="RGB-teacher", colour=MAUVE, marker="D", teacher="rgb_twin",
            examined_by=BOTH_EXAMINATIONS, **STUDENT,
        ),
        # At D3D's lambda; rgb_teacher has its own.
        Arm(name="rgb_teacher_equal", label="RGB-teacher, D3D's λ", colour=MAUVE, marker="D", teacher="rgb_twin",
            **STUDENT,
        ),
        Arm(
            name="class_mean", label="class mean", marker="h", teacher="flow", outputs="class_mean", colour=OLIVE,
            examined_by=BOTH_EXAMINATIONS, **STUDENT,
        ),
        # At its own lambda; class_mean has D3D's.
        Arm(
            name="class_mean_own", label="class mean, own λ", marker="h", teacher="flow", outputs="class_mean",
            colour=OLIVE, **STUDENT,
        ),
        Arm(
            name="flow_shuffled", label="flow shuffled", marker="d", teacher="flow", outputs="shuffled", colour=VIOLET,
            examined_by=ALL_EXAMINATIONS, **STUDENT,
        ),
        Arm(name="d3d", label="D3D", marker="P", examined_by=ALL_EXAMINATIONS, **D3D),
        Arm(
            name="tuned", experiment="probe", label="tuned for flow", short="tuned", colour=BLACK, marker="v",
            start="rgb", examined_by=("probe",),
        ),
    ]  # fmt: skip


def _ablations() -> list[Arm]:
    """Students that differ from D3D or RGB-longer in one thing; each of D3D's has a partner of shuffled outputs."""
    variants = [
        Arm(
            name="d3d_exact", label="D3D of exact flow", overrides={"flow": "exact"}, **D3D | {"teacher": "flow_exact"}
        ),
        Arm(name="d3d_scratch", label="D3D from scratch", **D3D | {"start": ""}),
        Arm(name="d3d_kl", label="D3D by KL", overrides={"distance": "kl", "lambda_": 1.0}, **D3D),
        # The weight of MARS.
        Arm(name="d3d_features", label="D3D by features", overrides={"distance": "features", "lambda_": 50.0}, **D3D),
    ]
    return [
        Arm(
            name="flow_exact", experiment="train", label="flow, exact", colour=BROWN, marker="^", stream="flow",
            overrides={"flow": "exact"},
        ),
        *variants,
        *(_shuffled(arm) for arm in variants),
        # As many epochs as RGB and RGB-longer together, under one cosine.
        Arm(name="rgb_one_cosine", experiment="distill", label="RGB, one cosine", colour=CYAN, marker="s"),
        Arm(
            name="rgb_smoothed", label="RGB-longer, smoothed labels", colour=CYAN, marker="s",
            overrides={"label_smoothing": 0.1}, **STUDENT,
        ),
    ]  # fmt: skip


def _lessons(by_features: Arm) -> list[Arm]:
    """What else than logits a student could be taught (book/plan_lessons.md): each lesson, its partner, its weights.

    Args:
        by_features: a lesson that is also an ablation; only its weights are added.
    """
    by_activations = [
        Arm(
            name=f"d3d_activations_{layer}", label=f"D3D by activations at {layer}",
            overrides={"distance": "activations", "layer": f"Mixed_{layer}", "lambda_": 1.0}, **D3D,
        )
        for layer in ("3c", "4b", "4f")
    ]  # fmt: skip
    by_relations = Arm(
        name="d3d_relations", label="D3D by relations", overrides={"distance": "relations", "lambda_": 10.0}, **D3D
    )
    flow_head = Arm(
        name="flow_head", label="flow head", colour=BROWN, overrides={"distance": "flow_field", "lambda_": 1.0},
        **STUDENT,
    )  # fmt: skip
    halves = [
        Arm(
            name=f"flow_half_{half}", experiment="train", label=f"flow, half {half}", colour=OCHRE, marker="^",
            stream="flow", overrides={"half": half},
        )
        for half in (1, 2)
    ]  # fmt: skip
    unseen = Arm(
        name="d3d_unseen", label="D3D of an unseen teacher", overrides={"lambda_": 3.0},
        **D3D | {"teacher": halves[0].name, "second_teacher": halves[1].name},
    )  # fmt: skip
    unlabelled = Arm(
        name="d3d_unlabelled", label="D3D with unlabelled clips",
        overrides={"unlabelled_clips": 16_000, "lambda_": 3.0}, **D3D,
    )  # fmt: skip
    lessons = [*by_activations, by_relations, flow_head, unseen, unlabelled]
    return [
        *halves,
        *lessons,
        *(_shuffled(lesson) for lesson in lessons),
        *(arm for lesson in lessons for arm in _weights(lesson, WEIGHTS[lesson.overrides.get("distance", "mse")])),
        *_weights(by_features, WEIGHTS["features"]),
    ]


def _weights(lesson: Arm, values: Iterable[float]) -> list[Arm]:
    """A lesson with other weights, among which one is chosen."""
    return _grid(lesson, "lambda", "lambda_", "λ =", (v for v in values if v != lesson.overrides["lambda_"]))


def _released_arms() -> list[Arm]:
    """Networks that are evaluated as their authors released them, and their ensemble."""
    return [
        Arm(name="d3d_released", experiment="evaluate", label="D3D, as released", colour=RED, marker="P"),
        Arm(name="s3dg_released", experiment="evaluate", label="S3D-G, as released", colour=BLUE),
        Arm(
            name="d3d_s3dg_released", experiment="fuse", label="D3D + S3D-G, as released", colour=SALMON,
            marker="p", members=("d3d_released", "s3dg_released"),
        ),
    ]  # fmt: skip


def _grids(base: Mapping[str, Arm]) -> list[Arm]:
    """Arms with other epochs, learning rates and lambdas, among which studies select, or show how much these matter."""
    streams, students = (40, 60, 80, 120, 160, 240), (12, 20, 24, 40, 48)
    rates = (0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0)
    return [
        *(arm for name in ("rgb", "flow") for arm in _grid(base[name], "epochs", "epochs", "epochs", streams)),
        *_grid(base["d3d"], "epochs", "epochs", "epochs", students),
        *(arm for name in ("rgb_longer", "d3d") for arm in _grid(base[name], "rate", "learning_rate", "rate", rates)),
        *(
            arm
            for name in ("d3d", "flow_shuffled", "rgb_teacher", "class_mean")
            for arm in _grid(base[name], "lambda", "lambda_", "λ =", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0))
        ),
    ]


def _ensembles() -> list[Arm]:
    """Ensembles fused by softmax, and some of them, whose second marker is given, by logits too."""
    members = {
        "two_stream": ("two-stream", GREEN, "*", "D", ("rgb", "flow")),
        "longer_flow": ("RGB-longer + flow", LIGHT_GREEN, ">", "D", ("rgb_longer", "flow")),
        "rgb_rgb": ("RGB + RGB", NAVY, "<", "D", ("rgb", "rgb_twin")),
        "d3d_rgb": ("D3D + RGB", SALMON, "p", "", ("d3d", "rgb")),
        "d3d_d3d": ("D3D + D3D", WINE, "H", "", ("d3d", "d3d")),
    }
    by_softmax = [
        Arm(
            name=name, experiment="fuse", label=label, colour=colour, marker=marker, members=pair,
            examined_by=("detect",) if name == "two_stream" else (),
        )
        for name, (label, colour, marker, _, pair) in members.items()
    ]  # fmt: skip
    by_logits = [
        replace(
            arm,
            name=f"{arm.name}_logits",
            label=f"{arm.label} by logits",
            marker=marker,
            fused_by="logits",
            examined_by=(),
        )
        for arm in by_softmax
        if (marker := members[arm.name][3])
    ]
    return [*by_softmax, *by_logits]


_MAIN = {arm.name: arm for arm in _main_arms()}
_ABLATIONS = {arm.name: arm for arm in _ablations()}
ARMS = _MAIN | {
    arm.name: arm
    for arm in (
        *_ABLATIONS.values(),
        *_lessons(_ABLATIONS["d3d_features"]),
        *_grids(_MAIN),
        *_ensembles(),
        *_released_arms(),
        *(arm for split in (1, 2, 3) for arm in _official_split_arms(split)),
    )
}
# Variants of TV-L1: the parameters that each changes.
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
# Sizes at which TV-L1 is computed from a video of twice the network's size, relative to the network's size.
TVL1_SIZES = {"size_2": 2.0, "size_1": 1.0, "size_0.5": 0.5}


def arms_examined_by(experiment: str) -> tuple[str, ...]:
    """Returns the names of the arms that an experiment examines."""
    return tuple(arm.name for arm in ARMS.values() if experiment in arm.examined_by)


def similar(name: object, names: Iterable[str]) -> str:
    """Returns a hint for a name that is not one of `names`: the most similar of them, or where all are listed."""
    close = difflib.get_close_matches(str(name)[:100], list(names), n=2)
    return f"did you mean {' or '.join(close)}?" if close else "d3d/study/arms.py lists all arms"


def get_arm(name: str) -> Arm:
    """Returns the entry of an arm.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ARMS:
        raise ValueError(f"no arm {name!r}: {similar(name, ARMS)}")
    return ARMS[name]
