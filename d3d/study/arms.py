"""The arms: one entry for every network and ensemble of the study.

To add an arm, write its entry here and name it in a profile. No other code changes, and no record becomes stale.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The names of arms, of at most 100 characters, begin the names of files and stand in contrasts.
NAME = re.compile(r"(?!.{101})[a-z]\w*(\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A network, or an ensemble of two networks.

    Attributes:
        name: its key in `ARMS`, in profiles and in the file names of its records.
        experiment: the experiment that makes it: train, distill, fuse or probe.
        label: its name in figures and prose.
        colour: its colour in all figures, as matplotlib takes it.
        marker: its marker in all figures, as matplotlib takes it.
        short: its name in contrasts; empty: the label.
        stream: its input, rgb or flow.
        start: the arm whose weights initialise it; empty: random weights. A student with random weights trains for as
            many epochs as a stream and a student together.
        teacher: the arm that it is distilled from; empty: none.
        outputs: the teacher's outputs that it learns, as the parameter `outputs`.
        overrides: parameters in which it differs from the profile.
        members: the two arms of an ensemble, of the same seed; if one arm is named twice, its networks of seeds 2k and
            2k + 1.
        fused_by: the outputs that an ensemble averages: softmax or logits.
        examined_by: the experiments that examine it: probe, attribution.
    """

    name: str
    experiment: str
    label: str
    colour: str | tuple[float, float, float]
    marker: str = "o"
    short: str = ""
    stream: str = "rgb"
    start: str = ""
    teacher: str = ""
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


# Seaborn's palette "colorblind": RGB is blue, D3D is red.
BLUE, ORANGE, GREEN, RED, PINK, BROWN, GREY, YELLOW, SKY = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#949494", "#ece133", "#56b4e9",
)  # fmt: skip
# Fields that several arms share.
STUDENT = {"experiment": "distill", "start": "rgb"}
D3D = STUDENT | {"teacher": "flow", "colour": RED}
BOTH_EXAMINATIONS = ("probe", "attribution")


def _lambda_arm(value: float) -> Arm:
    return Arm(name=f"d3d_lambda_{value:g}", label=f"D3D, λ = {value:g}", overrides={"lambda_": value}, **D3D)


def _official_split_arms(split: int) -> list[Arm]:
    """The arms for the paper's results on one of the three official splits of a data set."""
    suffix, overrides = f"split {split}", {"split": split}
    # Each split has its own teacher: one trained on another split would have seen test clips of this one.
    teacher = Arm(
        name=f"flow_s{split}",
        experiment="train",
        label=f"flow, {suffix}",
        colour=ORANGE,
        stream="flow",
        overrides=overrides,
    )
    students = [
        Arm(
            name=f"d3d_k{n}_s{split}",
            label=f"D3D from Kinetics-{n}, {suffix}",
            **D3D | {"teacher": teacher.name, "overrides": overrides},
        )
        for n in (400, 600)
    ]
    ensemble = Arm(
        name=f"d3d_d3d_s{split}",
        experiment="fuse",
        label=f"D3D + D3D, {suffix}",
        colour=(0.53, 0.13, 0.33),
        members=tuple(arm.name for arm in students),
    )
    return [teacher, *students, ensemble]


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            name="random", experiment="probe", label="random weights", short="random", colour=(0.6, 0.6, 0.6),
            marker="X", examined_by=BOTH_EXAMINATIONS,
        ),
        Arm(name="rgb", experiment="train", label="RGB", colour=BLUE, examined_by=BOTH_EXAMINATIONS),
        # The same clips as rgb, but other initial weights and another batch order.
        Arm(name="rgb_twin", experiment="train", label="RGB, twin", colour=GREY, overrides={"twin": 1}),
        Arm(
            name="flow", experiment="train", label="flow", colour=ORANGE, marker="^", stream="flow",
            examined_by=("probe",),
        ),
        Arm(name="rgb_longer", label="RGB-longer", colour=SKY, marker="s", examined_by=BOTH_EXAMINATIONS, **STUDENT),
        Arm(
            name="rgb_teacher", label="RGB-teacher", colour=PINK, marker="D", teacher="rgb_twin",
            examined_by=BOTH_EXAMINATIONS, **STUDENT,
        ),
        # D3D's teacher without this clip's motion: by how much D3D exceeds these is what its motion gives.
        Arm(
            name="class_mean", label="class mean", marker="h", teacher="flow", outputs="class_mean",
            colour=(0.45, 0.45, 0.2), examined_by=BOTH_EXAMINATIONS, **STUDENT,
        ),
        Arm(
            name="flow_shuffled", label="flow shuffled", marker="d", teacher="flow", outputs="shuffled",
            colour=(0.35, 0.2, 0.45), examined_by=BOTH_EXAMINATIONS, **STUDENT,
        ),
        Arm(name="d3d", label="D3D", marker="P", examined_by=BOTH_EXAMINATIONS, **D3D),
        Arm(
            name="tuned", experiment="probe", label="tuned for flow", short="tuned", colour=(0.0, 0.0, 0.0), marker="v",
            start="rgb", examined_by=("probe",),
        ),
        # Ablations: each changes one thing of D3D.
        Arm(
            name="flow_exact", experiment="train", label="flow, exact", colour=YELLOW, stream="flow",
            overrides={"flow": "exact"},
        ),
        Arm(
            name="d3d_exact", label="D3D of exact flow", overrides={"flow": "exact"},
            **D3D | {"teacher": "flow_exact"},
        ),
        Arm(name="d3d_scratch", label="D3D from scratch", **D3D | {"start": ""}),
        Arm(name="d3d_kl", label="D3D by KL", overrides={"distance": "kl", "lambda_": 1.0}, **D3D),
        # The weight of MARS.
        Arm(name="d3d_features", label="D3D by features", overrides={"distance": "features", "lambda_": 50.0}, **D3D),
        *map(_lambda_arm, (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
        # Ensembles.
        Arm(name="two_stream", experiment="fuse", label="two-stream", colour=GREEN, members=("rgb", "flow")),
        Arm(
            name="two_stream_logits", experiment="fuse", label="two-stream, logits", colour=(0.5, 0.76, 0.6),
            members=("rgb", "flow"), fused_by="logits",
        ),
        Arm(
            name="rgb_rgb", experiment="fuse", label="RGB + RGB", colour=(0.2, 0.13, 0.53), members=("rgb", "rgb_twin")
        ),
        Arm(name="d3d_rgb", experiment="fuse", label="D3D + RGB", colour=BROWN, members=("d3d", "rgb")),
        Arm(name="d3d_d3d", experiment="fuse", label="D3D + D3D", colour=(0.53, 0.13, 0.33), members=("d3d", "d3d")),
        *(arm for split in (1, 2, 3) for arm in _official_split_arms(split)),
    )
}  # fmt: skip
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


def get_arm(name: str) -> Arm:
    """Returns the entry of an arm.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ARMS:
        raise ValueError(f"no arm {name!r}: the arms are {', '.join(ARMS)}")
    return ARMS[name]
