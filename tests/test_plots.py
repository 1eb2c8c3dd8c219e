"""Every figure of the book against its baseline in tests/figures. To renew them:

pytest -o addopts= tests/test_plots.py --mpl-generate-path=tests/figures
"""

import base64
import io
import re

import av
import numpy as np
import pandas as pd
import pytest
import torch

from d3d import plots
from d3d.sprites import SpriteConfig, render

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
def test_clips():
    return plots.clips(render(SpriteConfig(noise=0.0), "iid", range(3)), columns=4)


@figure
def test_flows():
    clip = render(SpriteConfig(noise=0.0, frames=2, size=32), "iid", range(2))
    truth = clip.flow[:, :, 0]
    pictures = {"frame": clip.rgb[:, :, 0], "exact": truth, "half of it": truth / 2}
    return plots.flows(pictures, truth)


@figure
def test_parts():
    groups = {"all": {"epe": "all"}, "speed": {"epe/slow": "slow", "epe/fast": "fast"}}
    rows = table(["epe", "epe/slow", "epe/fast"], arms=["default", "opencv"], seeds=1)
    return plots.parts(rows, arms={"default": "ours", "opencv": "OpenCV"}, groups=groups)


@figure
def test_chance():
    rows = {("pose", "first/motion_pairs"): "position, first frame", ("one_frame", "last/motion_pairs"): "last frame"}
    values = table(["first/motion_pairs", "last/motion_pairs"], arms=["pose", "one_frame"])
    return plots.chance(values.assign(value=values["value"] + 0.28), rows=rows)


def test_a_film_plays_what_was_rendered():
    clip = render(SpriteConfig(noise=0.0, frames=5, size=32), "iid", range(2))
    html = plots.film(clip, 1, zoom=2)
    assert clip.table["class"][1] in html
    video = base64.b64decode(re.search(r'src="data:video/mp4;base64,([^"]+)"', html)[1])
    with av.open(io.BytesIO(video)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(frames) == 5
    assert frames[0].shape == (64, 192, 3)
    # Lossy, and half of the colours' resolution: the frame's brightness is what was rendered.
    shown = frames[2][::2, :64:2].mean(-1) / 255
    assert abs(shown - clip.rgb[1, :, 2].mean(0).numpy()).mean() < 0.03
    mask = frames[2][::2, 128::2].mean(-1) > 127
    assert (mask == clip.mask[1, 2].numpy()).mean() > 0.98


@figure
def test_accuracy():
    groups = ["", "motion/", "appearance/", "both/"]
    return plots.accuracy(table([f"{s}/{g}top1" for s in ("iid", "decorrelated") for g in groups]), arms=ARMS)


@figure
def test_curves():
    x = np.linspace(2, 0.5, 6)
    histories = {
        (arm, seed): {"curve/cross_entropy": x + 0.1 * seed + (arm == "flow"), "curve/top1": 1 - x / 2}
        for arm in ("rgb", "flow")
        for seed in (0, 1)
    }
    return plots.curves(histories)


@figure
def test_probes():
    metrics = [f"{e}/{t}/r2_within" for e in ("Mixed_3c", "Mixed_4f") for t in ("hue", "velocity", "rotation")]
    return plots.probes(table([*metrics, "Mixed_4f/velocity/r2"]), arms=ARMS)


@figure
def test_differences():
    rows = [
        ("H1: d3d - rgb", 0.1, 0.05, 0.15, 0.0, (0.08, 0.12)),
        ("H2: d3d - two_stream", -0.1, -0.3, 0.1, -0.01, (-0.2, 0.0)),
    ]
    return plots.differences(pd.DataFrame(rows, columns=["label", "mean", "low", "high", "bound", "values"]))


@figure
def test_attributions():
    clip = render(SpriteConfig(noise=0.0, size=32, frames=4), "iid", range(2))
    maps = {"rgb": clip.mask.float().numpy(), "d3d": clip.rgb.mean(1).numpy()}
    return plots.attributions(clip.rgb, clip.mask, maps, title="maps")


@figure
def test_metrics():
    return plots.metrics(table(["a", "b", "c"]), arms=ARMS, titles={"a": "first", "b": "second"}, reference="c")


@figure
def test_families():
    tables = {
        f"ρ = {rho:g}": render(SpriteConfig(rho=rho, size=16, frames=2), "iid", range(160)).table for rho in (0.0, 1.0)
    }
    return plots.families(tables)


@figure
def test_cost():
    ms = {
        "inference": {"convolutions": 0.3, "pooling": 0.1, "norm": 0.0},
        "training": {"convolutions": 0.9, "norm": 0.6},
    }
    rows = [{"step": step, "part": part, "ms": v} for step, parts in ms.items() for part, v in parts.items()]
    return plots.cost(pd.DataFrame(rows))


def test_every_seed_is_a_dot():
    drawn = plots.metrics(table(["a"], seeds=7), arms=ARMS, titles={"a": "first"})
    dots = [len(c.get_offsets()) for c in drawn.axes[0].collections]
    assert dots == [7] * len(ARMS)


def test_an_arm_without_records_leaves_its_row_empty():
    drawn = plots.metrics(table(["a"], arms=["rgb"]), arms=["rgb", "d3d"], titles={"a": "first"})
    assert len(drawn.axes[0].collections) == 1
    assert [t.get_text() for t in drawn.axes[0].get_yticklabels()] == ["D3D", "RGB"]


def test_no_figure_stays_open():
    import matplotlib.pyplot as plt

    plots.metrics(table(["a"]), arms=ARMS, titles={"a": "first"})
    assert not plt.get_fignums()


def test_every_arm_has_a_label_and_a_colour():
    from d3d.study import ARMS as NETWORKS
    from d3d.study import FUSIONS

    assert set(plots.LABELS) == set(plots.COLOURS) == {"random", *NETWORKS, *FUSIONS}
    colours = torch.tensor([c[:3] for c in plots.COLOURS.values()])
    assert len(torch.unique(colours, dim=0)) == len(colours)
