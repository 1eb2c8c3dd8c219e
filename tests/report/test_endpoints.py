"""Figures over endpoints; tests/report/test_plots.py says how to regenerate the baselines."""

import numpy as np
import pandas as pd
import pytest

from d3d.report import endpoints
from d3d.report.labels import endpoints_of

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
NAMES = ["Mixed_4f", "Conv2d_2c_3x3", "Mixed_3c"]
ORDER = ["Conv2d_2c_3x3", "Mixed_3c", "Mixed_4f"]


def table(arms=("random", "rgb", "tuned"), seeds=3):
    rng = np.random.default_rng(0)
    rows = [
        (arm, seed, f"{name}/{score}", 0.3 * i + 0.1 * ORDER.index(name) + 0.03 * rng.normal())
        for i, arm in enumerate(arms)
        for seed in range(seeds)
        for name in NAMES
        for score in ("target_epe", "target_epe_still", "hue/r2")
    ]
    return pd.DataFrame([*rows, ("rgb", 0, "iid/top1", 0.5)], columns=["arm", "seed", "metric", "value"])


def contrast(values):
    """A table of one contrast at three endpoints, from its values by endpoint."""
    rows = [
        {
            "endpoint": name,
            "values": v,
            "mean": np.mean(v),
            "low": np.mean(v) - 0.1,
            "high": np.mean(v) + 0.1,
            "bound": 0.1,
        }
        for name, v in zip(ORDER, values, strict=True)
    ]
    return pd.DataFrame(rows)


@figure
def test_score_lines():
    titles = {"target_epe": "error", "hue/r2": "hue"}
    references = {"target_epe_still": "no motion"}
    return endpoints.score_lines(
        table(), arms=["random", "rgb", "tuned"], titles=titles, columns=2, tested="Mixed_4f", references=references
    )


@figure
def test_contrast_panels():
    panels = {
        "first": contrast([(0.2, 0.3), (3.0, 0.4), (0.5,)]),
        "second": contrast([(0.1,), (-2.0, -2.1), (0.4, 0.5)]),
    }
    return endpoints.contrast_panels(panels, tested="Mixed_4f", limits=(-0.5, 1.5))


def test_endpoints_are_sorted_from_shallow_to_deep():
    assert endpoints_of(table()) == ORDER
    assert endpoints_of(table()[:0]) == []


def test_every_seed_and_the_mean_are_lines():
    rows = pd.DataFrame(
        [("rgb", s, f"{n}/hue/r2", v + s) for n, v in (("Mixed_3c", 0.0), ("Mixed_4f", 4.0)) for s in (0, 2)],
        columns=["arm", "seed", "metric", "value"],
    )
    axis = endpoints.score_lines(rows, arms=["rgb", "d3d"], titles={"hue/r2": "hue"}).axes[0]
    assert [list(line.get_ydata()) for line in axis.lines] == [[0, 4], [2, 6], [1, 5]]


def test_a_seed_beyond_the_axis_is_drawn_at_its_edge():
    axis = endpoints.contrast_panels({"m": contrast([(0.2, 0.3), (3.0, 0.4), (0.5, -9.0)])}, limits=(-0.5, 1.5)).axes[0]
    assert axis.get_ylim() == (-0.5, 1.5)
    dots = np.concatenate([c.get_offsets() for c in axis.collections if len(c.get_offsets())])
    assert len(dots) == 6
    assert sorted(dots[:, 1]) == [-0.5, 0.2, 0.3, 0.4, 0.5, 1.5]


def test_without_records_a_figure_needs_data():
    for drawing in (
        endpoints.score_lines(table()[:0], arms=["rgb"], titles={"hue/r2": "hue"}, references={"still": "no motion"}),
        endpoints.contrast_panels({"m": pd.DataFrame()}, tested="Mixed_4f"),
    ):
        assert [text.get_text() for text in drawing.axes[0].texts] == ["needs data"]
