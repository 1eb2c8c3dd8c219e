"""Every figure of the book, each a function of a table or of arrays; every figure over seeds shows every seed."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import wraps

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from d3d.flow import colours, endpoint_error
from d3d.probes import ENDPOINTS, TARGETS
from d3d.sprites import CLASSES, FAMILIES, Rendered
from d3d.stats import interval

LABELS = {
    "random": "random weights",
    "rgb": "RGB",
    "rgb_twin": "RGB, twin",
    "flow": "flow",
    "rgb_longer": "RGB, longer",
    "rgb_teacher": "RGB teacher",
    "d3d": "D3D",
    "two_stream": "two-stream",
    "rgb_rgb": "RGB + RGB",
    "d3d_rgb": "D3D + RGB",
    "d3d_d3d": "D3D + D3D",
}
_COLOURS = sns.color_palette("colorblind")
COLOURS = {
    "random": (0.6, 0.6, 0.6),
    "rgb": _COLOURS[0],
    "rgb_twin": _COLOURS[7],
    "flow": _COLOURS[1],
    "rgb_longer": _COLOURS[9],
    "rgb_teacher": _COLOURS[4],
    "d3d": _COLOURS[3],
    "two_stream": _COLOURS[2],
    "rgb_rgb": _COLOURS[8],
    "d3d_rgb": _COLOURS[6],
    "d3d_d3d": _COLOURS[5],
}
GROUP_LABELS = {
    "": "all classes",
    "motion/": "motion pairs",
    "appearance/": "appearance pairs",
    "both/": "differ in both",
}
STYLE = {
    "figure.dpi": 120,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "d3d",
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the book's style, and leaves showing to the caller: pyplot keeps no figure open."""

    @wraps(draw)
    def figure(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            drawn = draw(*args, **kwargs)
        plt.close(drawn)
        return drawn

    return figure


@_styled
def clips(rendered: Rendered, *, columns: int = 6) -> Figure:
    """One row a clip: frames over time, then the exact flow as colours (Middlebury wheel) and the target's mask."""
    rows, frames = rendered.rgb.shape[0], rendered.rgb.shape[2]
    shown = np.linspace(0, frames - 1, columns).round().astype(int)
    middle = frames // 2
    figure, axes = plt.subplots(rows, columns + 2, figsize=(columns + 3, rows * 1.05), squeeze=False)
    for row in range(rows):
        images = [rendered.rgb[row, :, t].permute(1, 2, 0).cpu().numpy() for t in shown]
        images.append(colours(rendered.flow[row, None, :, middle].cpu(), bound=3.0)[0].permute(1, 2, 0).numpy())
        images.append(rendered.mask[row, middle].cpu().numpy())
        for axis, image in zip(axes[row], images, strict=True):
            axis.imshow(image, interpolation="nearest", cmap="gray")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        name = rendered.table["class"].iloc[row]
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], [*(f"frame {t}" for t in shown), "flow", "mask"], strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def film(rendered: Rendered, row: int, *, zoom: int = 4, bound: float = 3.0) -> str:
    """HTML of a video that loops: one clip's frames, exact flow as colours (full at `bound` px) and target, abreast.

    The video travels inside the page, so that nothing is fetched; it has controls, and its label is the class.
    """
    # PyAV is needed for films only: a machine that renders sprites does without it.
    from d3d.videos import encode

    rgb = (rendered.rgb[row].permute(1, 2, 3, 0) * 255).round().byte()
    flow = colours(rendered.flow[row].transpose(0, 1), bound=bound).permute(0, 2, 3, 1)
    mask = rendered.mask[row][..., None].expand_as(rgb).byte() * 255
    frames = torch.cat([part.cpu() for part in (rgb, flow, mask)], 2)
    frames = frames.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).numpy()
    name = rendered.table["class"].iloc[row]
    video = b64encode(encode(frames, fps=8)).decode()
    return (
        f'<figure class="film"><video controls loop muted autoplay playsinline width="{frames.shape[2]}" '
        f'height="{frames.shape[1]}" aria-label="A clip of the class {name}: frames, exact flow, target" '
        f'src="data:video/mp4;base64,{video}"></video><figcaption>{name}</figcaption></figure>'
    )


@_styled
def flows(pictures: Mapping[str, torch.Tensor], truth: torch.Tensor, *, bound: float = 3.0) -> Figure:
    """Columns of flow fields as colours, a row a pair, under each the end-point error (px) of the row.

    pictures: title to frames (B, 3, H, W) in [0, 1] or flow (B, 2, H, W); truth (B, 2, H, W).
    """
    rows = len(truth)
    figure, axes = plt.subplots(rows, len(pictures), figsize=(1.5 * len(pictures), 1.7 * rows), squeeze=False)
    for column, (title, given) in enumerate(pictures.items()):
        is_flow = given.shape[1] == 2
        images = colours(given, bound=bound) if is_flow else given
        for row, axis in enumerate(axes[:, column]):
            axis.imshow(images[row].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if is_flow and given is not truth:
                axis.set_xlabel(f"{endpoint_error(given[row, None], truth[row, None]).mean():.2f} px", fontsize=8)
        axes[0, column].set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


@_styled
def parts(table: pd.DataFrame, *, arms: Mapping[str, str], groups: Mapping[str, Mapping[str, str]]) -> Figure:
    """End-point error by parts of the frame: a panel a group of metrics, a bar an arm (`arms` maps it to its label).

    groups: panel to metric to label.
    """
    widths = [len(metrics) for metrics in groups.values()]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(1.1 * sum(widths) + 1, 3), sharey=True, squeeze=False, width_ratios=widths
    )
    for axis, (title, metrics) in zip(axes[0], groups.items(), strict=True):
        for k, arm in enumerate(arms):
            rows = table[table["arm"] == arm].groupby("metric")["value"].mean().reindex(list(metrics))
            x = np.arange(len(metrics)) + (k - (len(arms) - 1) / 2) * 0.8 / len(arms)
            axis.bar(x, rows, 0.8 / len(arms), color=_COLOURS[k], label=arms[arm])
        axis.set_xticks(range(len(metrics)), list(metrics.values()))
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", color="0.92")
        axis.set_axisbelow(True)
    axes[0, 0].set_ylabel("end-point error (px)")
    axes[0, -1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


@_styled
def chance(table: pd.DataFrame, *, rows: Mapping[tuple[str, str], str], band: float = 0.02) -> Figure:
    """Two-way choices against chance, one half: a row an (arm, metric) with its label, a dot a seed.

    The band is what still counts as chance.
    """
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(rows) + 1))
    axis.axvspan(0.5 - band, 0.5 + band, color="0.9", zorder=0)
    axis.axvline(0.5, color="0.5", ls="--", lw=1, zorder=0)
    for y, (arm, metric) in zip(range(len(rows))[::-1], rows, strict=True):
        values = table.loc[(table["arm"] == arm) & (table["metric"] == metric), "value"].to_numpy()
        axis.scatter(values, np.full(len(values), y), color=_COLOURS[0], s=22, zorder=3, edgecolor="white", lw=0.5)
        axis.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color=_COLOURS[0], lw=2)
    axis.set_yticks(range(len(rows)), list(rows.values())[::-1])
    axis.set(xlabel="right choices between the two classes of a pair", xlim=(0.38, 1.02))
    axis.grid(axis="x", color="0.94")
    axis.set_axisbelow(True)
    return figure


@_styled
def accuracy(table: pd.DataFrame, *, arms: Sequence[str], splits: Sequence[str] = ("iid", "decorrelated")) -> Figure:
    """Top-1 of each arm: a dot a seed, mean and 95 % interval; one panel a split and class group, chance dashed."""
    groups = list(GROUP_LABELS)
    figure, axes = plt.subplots(
        len(splits),
        len(groups),
        figsize=(10.5, 0.34 * len(arms) * len(splits) + 1.3),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for i, split in enumerate(splits):
        for j, group in enumerate(groups):
            metric = f"{split}/{group}top1"
            _dots(axes[i, j], table[table["metric"] == metric], arms)
            axes[i, j].axvline(1 / len(CLASSES), color="0.5", ls="--", lw=1, zorder=0)
            if i == 0:
                axes[i, j].set_title(GROUP_LABELS[group], fontsize=10)
        axes[i, 0].set_ylabel(split)
    for axis in axes[-1]:
        axis.set_xlabel("top-1")
        axis.set_xlim(-0.02, 1.02)
    figure.tight_layout()
    return figure


def _dots(axis: plt.Axes, rows: pd.DataFrame, arms: Sequence[str]) -> None:
    """A row an arm, from the top: every seed as a dot, the mean and its interval behind them."""
    for position, arm in enumerate(arms):
        values = rows.loc[rows["arm"] == arm, "value"].to_numpy()
        y = len(arms) - 1 - position
        if len(values):
            found = interval(values)
            axis.plot([found.low, found.high], [y, y], color=COLOURS[arm], lw=5, alpha=0.3, solid_capstyle="butt")
            axis.plot([found.mean] * 2, [y - 0.3, y + 0.3], color=COLOURS[arm], lw=2)
            axis.scatter(values, np.full(len(values), y), color=COLOURS[arm], s=16, zorder=3, edgecolor="white", lw=0.5)
    axis.set_yticks(range(len(arms)), [LABELS[arm] for arm in reversed(arms)])
    axis.set_ylim(-0.6, len(arms) - 0.4)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)


@_styled
def curves(histories: Mapping[tuple[str, int], Mapping[str, np.ndarray]]) -> Figure:
    """Training loss and accuracy over epochs, a line a (arm, seed), from the arrays beside the records."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3))
    for (arm, seed), arrays in histories.items():
        for axis, name in zip(axes, ("cross_entropy", "top1"), strict=True):
            label = LABELS[arm] if seed == min(s for a, s in histories if a == arm) else None
            epochs = np.arange(1, len(arrays[f"curve/{name}"]) + 1)
            axis.plot(epochs, arrays[f"curve/{name}"], color=COLOURS[arm], alpha=0.8, label=label)
    axes[0].set(xlabel="epoch", ylabel="cross-entropy (nats)", title="training clips")
    axes[1].set(xlabel="epoch", ylabel="top-1", title="training clips", ylim=(0, 1))
    axes[1].legend(frameon=False)
    figure.tight_layout()
    return figure


@_styled
def probes(table: pd.DataFrame, *, arms: Sequence[str], score: str = "r2_within") -> Figure:
    """A probe score over endpoints, one panel a target: thin lines are seeds, thick ones their mean."""
    rows = table[table["metric"].str.endswith(f"/{score}") & table["arm"].isin(arms)].copy()
    rows[["endpoint", "target", "score"]] = rows["metric"].str.split("/", expand=True)
    names, endpoints = (
        [t for t in TARGETS if t in set(rows["target"])],
        [e for e in ENDPOINTS if e in set(rows["endpoint"])],
    )
    figure, axes = plt.subplots(1, len(names), figsize=(2.2 * len(names) + 1.5, 3.1), sharey=True, squeeze=False)
    for axis, target in zip(axes[0], names, strict=True):
        for arm in arms:
            wide = rows[(rows["target"] == target) & (rows["arm"] == arm)].pivot(
                index="endpoint", columns="seed", values="value"
            )
            wide = wide.reindex(endpoints)
            axis.plot(range(len(endpoints)), wide, color=COLOURS[arm], lw=0.7, alpha=0.5)
            axis.plot(range(len(endpoints)), wide.mean(axis=1), color=COLOURS[arm], lw=2.2, label=LABELS[arm])
        axis.axhline(0, color="0.7", lw=0.8, zorder=0)
        axis.set_xticks(range(len(endpoints)), endpoints, rotation=45, ha="right", fontsize=8)
        axis.set_title(target, fontsize=10)
    axes[0, 0].set_ylim(bottom=max(-1, axes[0, 0].get_ylim()[0]), top=1)
    axes[0, 0].set_ylabel({"r2": "R²", "r2_within": "R² within class", "selectivity": "selectivity"}[score])
    axes[0, -1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


@_styled
def differences(table: pd.DataFrame) -> Figure:
    """A forest of contrasts; columns `label`, `mean`, `low`, `high`, `bound`, and `values`, one a seed."""
    figure, axis = plt.subplots(figsize=(8, 0.52 * len(table) + 1.1))
    for y, row in zip(range(len(table))[::-1], table.itertuples(), strict=True):
        axis.plot([row.low, row.high], [y, y], color=_COLOURS[0], lw=5, alpha=0.3, solid_capstyle="butt")
        axis.plot([row.mean] * 2, [y - 0.3, y + 0.3], color=_COLOURS[0], lw=2)
        axis.scatter(
            row.values, np.full(len(row.values), y), color=_COLOURS[0], s=16, zorder=3, edgecolor="white", lw=0.5
        )
        axis.plot([row.bound] * 2, [y - 0.4, y + 0.4], color="0.2", lw=1, ls=":")
    axis.axvline(0, color="0.6", lw=0.8, zorder=0)
    axis.set_yticks(range(len(table)), list(table["label"])[::-1])
    axis.set_xlabel("difference, a dot a seed; dotted: the bound")
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    return figure


@_styled
def attributions(rgb: torch.Tensor, mask: torch.Tensor, maps: Mapping[str, np.ndarray], *, title: str) -> Figure:
    """One row a clip at its middle frame: the frame with the target's outline, then each network's map over it.

    rgb (N, 3, T, H, W) in [0, 1], mask (N, T, H, W), maps (N, T, H, W), each clip scaled to a maximum of 1.
    """
    rows, middle = len(rgb), rgb.shape[2] // 2
    figure, axes = plt.subplots(rows, len(maps) + 1, figsize=(1.6 * (len(maps) + 1), 1.65 * rows), squeeze=False)
    for row in range(rows):
        frame = rgb[row, :, middle].permute(1, 2, 0).cpu().numpy()
        grey = frame.mean(-1)
        axes[row, 0].imshow(frame, interpolation="nearest")
        for axis, values in zip(axes[row, 1:], maps.values(), strict=True):
            axis.imshow(grey, cmap="gray", interpolation="nearest", alpha=0.5)
            heat = np.asarray(values[row, middle], dtype=np.float32)
            axis.imshow(heat, cmap="magma", alpha=0.75, interpolation="nearest", vmin=0)
        for axis in axes[row]:
            axis.contour(mask[row, middle].cpu().numpy(), levels=[0.5], colors="cyan", linewidths=0.8)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, name in zip(axes[0], ["clip", *maps], strict=True):
        axis.set_title(LABELS.get(name, name), fontsize=9)
    figure.suptitle(title)
    figure.tight_layout()
    return figure


@_styled
def metrics(
    table: pd.DataFrame, *, arms: Sequence[str], titles: Mapping[str, str], reference: str | None = None
) -> Figure:
    """Any metrics of any arms side by side: a panel a metric (`titles` maps metric to title), a dot a seed.

    `reference` names a metric whose mean over everything is drawn as a dashed line in each panel.
    """
    figure, axes = plt.subplots(
        1, len(titles), figsize=(3.2 * len(titles) + 1, 0.38 * len(arms) + 1.1), sharey=True, squeeze=False
    )
    for axis, (metric, title) in zip(axes[0], titles.items(), strict=True):
        _dots(axis, table[table["metric"] == metric], arms)
        axis.set_xlabel(title)
        if reference:
            axis.axvline(table.loc[table["metric"] == reference, "value"].mean(), color="0.4", ls="--", lw=1, zorder=0)
    figure.tight_layout()
    return figure


@_styled
def families(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of each appearance family within each class, a panel a setting (`tables` maps its title to clips)."""
    figure, axes = plt.subplots(1, len(tables), figsize=(3.1 * len(tables) + 1.6, 4.4), sharey=True, squeeze=False)
    classes = [c.name for c in CLASSES]
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        share = pd.crosstab(table["class"], table["family"], normalize="index").reindex(classes, columns=list(FAMILIES))
        sns.heatmap(share.fillna(0), ax=axis, vmin=0, vmax=1, cmap="mako_r", cbar=axis is axes[0, -1], linewidths=0.5)
        axis.set(title=title, xlabel="family of the target", ylabel="")
        axis.tick_params(axis="x", labelsize=8, rotation=60)
        axis.tick_params(length=0)
    figure.tight_layout()
    return figure


@_styled
def cost(table: pd.DataFrame) -> Figure:
    """Milliseconds a clip by part of a step; columns step, part, ms. A bar a step, the largest part first."""
    wide = table[table["ms"] > 0].pivot(index="step", columns="part", values="ms").fillna(0.0)
    wide = wide[wide.sum().sort_values(ascending=False).index].iloc[::-1]
    figure, axis = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
    wide.plot.barh(stacked=True, ax=axis, width=0.6, color=sns.color_palette("colorblind", wide.shape[1]))
    for row, total in enumerate(wide.sum(axis=1)):
        axis.text(total, row, f" {total:.2f} ms", va="center")
    axis.set(xlabel="milliseconds a clip", ylabel="", xlim=(0, 1.15 * wide.sum(axis=1).max()))
    axis.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
