"""Every figure of the book against its baseline in tests/figures. To regenerate the baselines:

pytest -o addopts= tests/report tests/test_pictures.py --mpl-generate-path=tests/figures
"""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from d3d.data.sprite_classes import CLASSES, FAMILIES
from d3d.data.sprites import render
from d3d.report import plots
from tests.configs import clip

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
ARMS = ["rgb", "flow", "rgb_longer", "d3d"]


def table(metrics, arms=ARMS, seeds=3):
    rng = np.random.default_rng(0)
    rows = [
        (arm, seed, metric, 0.2 + 0.15 * i + 0.05 * rng.normal())
        for i, arm in enumerate(arms)
        for seed in range(seeds)
        for metric in metrics
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"])


@figure
def test_region_errors():
    groups = {"all": {"epe": "all"}, "speed": {"epe/slow": "slow", "epe/fast": "fast"}}
    rows = table(["epe", "epe/slow", "epe/fast"], arms=["default", "opencv"], seeds=1)
    return plots.region_errors(rows, arms={"default": "ours", "opencv": "OpenCV"}, groups=groups)


@figure
def test_chance():
    rows = {("pose", "first/motion_pairs"): "position, first frame", ("one_frame", "last/motion_pairs"): "last frame"}
    values = table(["first/motion_pairs", "last/motion_pairs"], arms=["pose", "one_frame"])
    return plots.chance(values.assign(value=values["value"] + 0.28), rows=rows)


@figure
def test_accuracy():
    groups = ["", "motion/", "appearance/", "both/"]
    rows = table([f"{s}/{g}top1" for s in ("iid", "decorrelated") for g in groups])
    return plots.accuracy(rows, arms=ARMS, classes=16)


@figure
def test_metrics():
    return plots.metrics(table(["a", "b", "c"]), arms=ARMS, titles={"a": "first", "b": "second"}, reference="c")


@figure
def test_families():
    tables = {f"ρ = {rho:g}": render(clip(rho=rho, size=16, frames=2), "iid", range(160)).table for rho in (0.0, 1.0)}
    return plots.families(tables, classes=[c.name for c in CLASSES], names=FAMILIES)


@figure
def test_cost():
    ms = {
        "inference": {"convolutions": 0.3, "pooling": 0.1, "norm": 0.0},
        "training": {"convolutions": 0.9, "norm": 0.6},
    }
    rows = [{"step": step, "part": part, "ms": v} for step, by_part in ms.items() for part, v in by_part.items()]
    return plots.cost(pd.DataFrame(rows))


@figure
def test_scaling():
    curves = {"one stage": ("#0173b2", (40.0, 20.0, 12.0)), "all": ("0.2", (100.0, 55.0, 40.0))}
    rows = [
        {"line": name, "colour": shade, "gpus": n, "hours": h}
        for name, (shade, hours) in curves.items()
        for n, h in zip((1, 2, 4), hours, strict=True)
    ]
    return plots.scaling(pd.DataFrame(rows))


def test_every_seed_is_a_dot():
    drawing = plots.metrics(table(["a"], seeds=7), arms=ARMS, titles={"a": "first"})
    dots = [len(c.get_offsets()) for c in drawing.axes[0].collections]
    assert dots == [7] * len(ARMS)


def test_an_arm_without_records_leaves_its_row_empty():
    drawing = plots.metrics(table(["a"], arms=["rgb"]), arms=["rgb", "d3d"], titles={"a": "first"})
    assert len(drawing.axes[0].collections) == 1
    assert [t.get_text() for t in drawing.axes[0].get_yticklabels()] == ["D3D", "RGB"]


def test_no_figure_stays_open():
    import matplotlib.pyplot as plt

    plots.metrics(table(["a"]), arms=ARMS, titles={"a": "first"})
    assert not plt.get_fignums()


@figure
def test_training_curves():
    falling = np.linspace(2, 0.5, 6)
    histories = {
        (arm, seed): pd.DataFrame(
            {"epoch": range(1, 7), "cross_entropy": falling + 0.1 * seed + (arm == "flow"), "top1": 1 - falling / 2}
        )
        for arm in ("rgb", "flow")
        for seed in (0, 1)
    }
    return plots.training_curves(histories)


FOREST = pd.DataFrame(
    [
        ("H1: more is claimed", "d3d", "top-1", (0.08, 0.12), 0.1, -0.15, 0.35, 0.0, 1),
        ("H2: less is claimed", "flow", "px", (-0.2, 0.0), -0.1, -1.4, 1.2, 0.0, -1),
        ("nothing is claimed", "rgb_longer", "top-1", (0.05,), 0.05, np.nan, np.nan, np.nan, 0),
    ],
    columns=["label", "arm", "unit", "values", "mean", "low", "high", "bound", "side"],
)


@figure
def test_differences():
    return plots.differences(FOREST)


def test_the_required_side_is_shaded():
    first, second = plots.differences(FOREST).axes
    (above,), (below,) = ([c for c in a.collections if isinstance(c, PolyCollection)] for a in (first, second))
    edges = [shade.get_paths()[0].get_extents() for shade in (above, below)]
    assert (edges[0].x0, edges[0].x1) == (0.0, first.get_xlim()[1])
    assert (edges[1].x0, edges[1].x1) == (second.get_xlim()[0], 0.0)
    assert [t.get_text() for t in first.get_yticklabels()] == ["nothing is claimed", "H1: more is claimed"]


LAMBDAS = pd.DataFrame(
    [(lam, seed, "iid/top1", 0.7 + 0.1 * lam + 0.1 * seed) for lam in (0.1, 1.0) for seed in (0, 1)]
    + [(1.0, 2, "iid/top1", 0.95)],
    columns=["lambda_", "seed", "metric", "value"],
)


@figure
def test_lambdas():
    return plots.lambdas(
        LAMBDAS, titles={"iid/top1": "iid"}, chosen=1.0, references={"iid/top1 two_stream": 0.9, "val/top1 rgb": 0.2}
    )


def test_the_mean_over_lambda_uses_the_seeds_of_every_lambda():
    axis = plots.lambdas(LAMBDAS, titles={"iid/top1": "iid"}, chosen=1.0, references={}).axes[0]
    thick = next(line for line in axis.lines if line.get_linewidth() == 2.2)
    np.testing.assert_allclose(thick.get_ydata(), [0.76, 0.85])
    # Every run is a dot, including the seed that only one lambda has.
    assert sum(len(line.get_xdata()) for line in axis.lines if line.get_marker() == "o") == 5


@pytest.mark.parametrize(
    "draw",
    [
        lambda empty: plots.accuracy(empty, arms=ARMS, classes=16),
        lambda empty: plots.metrics(empty, arms=ARMS, titles={"a": "first"}, classes=16),
        lambda empty: plots.training_curves({}),
        lambda empty: plots.differences(pd.DataFrame()),
        lambda empty: plots.lambdas(
            empty.assign(lambda_=[]), titles={"iid/top1": "iid"}, chosen=float("nan"), references={}
        ),
    ],
)
def test_without_records_a_figure_needs_data(draw):
    drawing = draw(table([]))
    assert all("needs data" in [text.get_text() for text in axis.texts] for axis in drawing.axes)


def test_the_mean_is_printed_beside_its_row():
    rows = pd.DataFrame({"arm": ["rgb"] * 2, "seed": [0, 1], "metric": ["a"] * 2, "value": [0.2, 0.5]})
    drawing = plots.metrics(rows, arms=["rgb"], titles={"a": "first"})
    assert [text.get_text() for text in drawing.axes[0].texts] == ["0.350"]
