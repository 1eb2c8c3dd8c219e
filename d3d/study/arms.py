"""The arms: every network and ensemble of the study, one entry each.

To add one, write its entry and name it in a profile; nothing else has to know it, and no record becomes stale.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A network, or an ensemble of networks.

    experiment: what makes it: train, distill, fuse or probe.
    label: its name in figures and prose.
    short: its name in contrasts, where the label is too long for them.
    colour, marker: how every figure draws it, as matplotlib takes them.
    stream: its input.
    start: the arm whose weights it starts from; a student without one takes as many steps as a stream and a student
        together.
    teacher: the arm that it learns from.
    overrides: parameters of its own.
    members: of an ensemble, two arms of one seed, or one arm twice: its networks of the seeds 2k and 2k + 1.
    fused_by: the mean of their softmax or of their logits.
    examined: the experiments that look into it.
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
    overrides: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    fused_by: str = "softmax"
    examined: tuple[str, ...] = ()

    @property
    def pairs_seeds(self) -> bool:
        """Whether it is an ensemble of one arm's networks of two seeds."""
        return bool(self.members) and len(set(self.members)) == 1


# Of seaborn's palette "colorblind": blues are RGB's, reds D3D's.
BLUE, ORANGE, GREEN, RED, PINK, BROWN, GREY, YELLOW, SKY = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#949494", "#ece133", "#56b4e9",
)  # fmt: skip
STUDENT = {"experiment": "distill", "start": "rgb"}
D3D = STUDENT | {"teacher": "flow", "colour": RED}
BOTH = ("probe", "attribution")


def _lambda_arm(value: float) -> Arm:
    return Arm(name=f"d3d_lambda_{value:g}", label=f"D3D, λ = {value:g}", overrides={"lambda_": value}, **D3D)


def _official(split: int) -> list[Arm]:
    """The arms of the paper's rows on one of a data set's three official splits."""
    where = f"split {split}"
    own = {"overrides": {"split": split}}
    # A teacher of another split has seen this one's test clips.
    teacher = Arm(
        name=f"flow_s{split}", experiment="train", label=f"flow, {where}", colour=ORANGE, stream="flow", **own
    )
    taught = D3D | own | {"teacher": teacher.name}
    students = [Arm(name=f"d3d_k{n}_s{split}", label=f"D3D from Kinetics-{n}, {where}", **taught) for n in (400, 600)]
    both = tuple(arm.name for arm in students)
    fused = Arm(
        name=f"d3d_d3d_s{split}",
        experiment="fuse",
        label=f"D3D + D3D, {where}",
        colour=(0.53, 0.13, 0.33),
        members=both,
    )
    return [teacher, *students, fused]


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            name="random", experiment="probe", label="random weights", short="random", colour=(0.6, 0.6, 0.6),
            marker="X", examined=BOTH,
        ),
        Arm(name="rgb", experiment="train", label="RGB", colour=BLUE, examined=BOTH),
        # The clips of rgb with weights and order of its own: it differs from RGB in nothing but chance.
        Arm(name="rgb_twin", experiment="train", label="RGB, twin", colour=GREY, overrides={"twin": 1}),
        Arm(
            name="flow", experiment="train", label="flow", colour=ORANGE, marker="^", stream="flow", examined=("probe",)
        ),
        Arm(name="rgb_longer", label="RGB-longer", colour=SKY, marker="s", examined=BOTH, **STUDENT),
        Arm(
            name="rgb_teacher", label="RGB-teacher", colour=PINK, marker="D", teacher="rgb_twin", examined=BOTH,
            **STUDENT,
        ),
        Arm(name="d3d", label="D3D", marker="P", examined=BOTH, **D3D),
        Arm(
            name="tuned", experiment="probe", label="tuned for flow", short="tuned", colour=(0.0, 0.0, 0.0), marker="v",
            start="rgb", examined=("probe",),
        ),
        # What is changed of D3D, one thing at a time.
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
        # MARS's own weight.
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
        *(arm for split in (1, 2, 3) for arm in _official(split)),
    )
}  # fmt: skip
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


def examined_by(experiment: str) -> tuple[str, ...]:
    """The arms that an experiment looks into."""
    return tuple(arm.name for arm in ARMS.values() if experiment in arm.examined)


def arm(name: str) -> Arm:
    """The entry of an arm. Raises ValueError for a name that has none."""
    if name not in ARMS:
        raise ValueError(f"no arm {name!r}: the arms are {', '.join(ARMS)}")
    return ARMS[name]
