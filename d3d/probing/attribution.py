"""The attribution experiment: what in a clip the decisions of the examined networks depend on.

On sprites: how much of the margin is motion, where the attribution lies, when in the clip, and whether the maps can be
trusted. On video files, whose targets have no masks: how much of the margin is motion, by group of the clips.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from d3d.data.clips import Clips
from d3d.data.load import load
from d3d.data.sprites import render
from d3d.probing import map_checks, maps
from d3d.probing.margins import logit_spread, motion_part, still
from d3d.probing.networks import load_arm_network
from d3d.s3dg.network import S3DG
from d3d.study.arms import arms_examined_by
from d3d.study.parameters import RENDERED_DATASETS, AttributionConfig
from d3d.study.plan import main_split
from d3d.study.run import Run
from d3d.train.evaluate import predict

# The methods whose maps are published, the students whose outcomes choose the clips, and the clips of the checks.
METHODS, COMPARED, CHECKED_CLIPS = ("motion_gradients", "grad_cam"), ("rgb_longer", "d3d"), 16


def run(active_run: Run) -> None:
    """Writes one record per examined arm; arms without weights in the run's results folder are skipped.

    Raises:
        ValueError: as `load` and `fixed_views` do.
    """
    if active_run.config.data.files.dataset in RENDERED_DATASETS:
        _attribute_sprites(active_run)
    else:
        _attribute_videos(active_run)


def _attribute_sprites(active_run: Run) -> None:
    config = active_run.config
    with active_run.phase("data"):
        data = load(config.data, seed=config.run.seed, streams=("rgb", "flow"), device=active_run.device)
        clips = data.splits["iid"]
        layers = render(config.data.clip, "iid", range(config.clips), device=active_run.device).layer
    networks = dict(_networks(config, data.splits["train"], data.classes))
    logits = {arm: predict(model, clips, stream) for arm, (model, stream) in networks.items()}
    right = {arm: x.argmax(1) == clips.labels.cpu().numpy() for arm, x in logits.items()}
    shown = choose_shown(right, count=config.films)
    for arm, (model, stream) in networks.items():
        with active_run.phase("motion"):
            falls = motion_part(model, clips, stream, logits=logits[arm])
        with active_run.phase("maps"):
            metrics, arrays = examine_maps(
                model, clips, stream, layers, spread=logit_spread(logits[arm]), config=config
            )
            if len(shown):
                arrays |= published_maps(model, clips, stream, shown, config=config)
                arrays["shown/right"] = right[arm][shown]
        active_run.write(arm, {f"motion_part/{name}": x for name, x in falls.items()} | metrics, arrays=arrays)


def _attribute_videos(active_run: Run) -> None:
    # Imported here, so that sprites do not need PyAV.
    from d3d.data.fixed_views import fixed_views

    config = active_run.config
    with active_run.phase("data"):
        data = load(config.data, seed=config.run.seed, streams=("rgb", "flow"), device=active_run.device, workers=0)
        train, test = (fixed_views(data.splits[name]) for name in ("train", main_split(data.test_splits)))
    for arm, (model, stream) in _networks(config, train, data.classes):
        with active_run.phase("motion"):
            falls = motion_part(model, test, stream, logits=predict(model, test, stream))
        metrics = {f"motion_part/{name}": x for name, x in falls.items()}
        active_run.write(arm, metrics, files=data.files, stand_in=data.stand_in)


def _networks(
    config: AttributionConfig, train: Clips, classes: tuple[str, ...]
) -> Iterator[tuple[str, tuple[S3DG, str]]]:
    """The networks of the examined arms that have weights, with their streams."""
    for arm in arms_examined_by("attribution"):
        network = load_arm_network(
            config.run.results,
            arm,
            config.run.seed,
            width=config.network.width,
            calibration_clips=train,
            classes=classes,
        )
        if network is not None:
            yield arm, network


def choose_shown(right: Mapping[str, np.ndarray], *, count: int) -> np.ndarray:
    """Chooses the clips whose maps are published, by a rule and not by eye.

    They are the first clip that both students of COMPARED get right, the first that only the second gets right, the
    first that only the first one does, the first that neither does, then the second of each, and so on; of one student
    the first clips it gets right and wrong in turn.

    Args:
        right: by arm, whether it gets each clip right, bool (N,).
        count: number of clips.

    Returns:
        (count,) rows, or fewer if there are no more; empty if neither student was examined.
    """
    own = [right[arm] for arm in COMPARED if arm in right]
    if not own:
        return np.zeros(0, np.int64)
    first, last = own[0], own[-1]
    outcomes = [first & last, ~first & last, first & ~last, ~first & ~last]
    rows = [np.flatnonzero(outcome) for outcome in outcomes]
    in_turn = [of_outcome[k] for k in range(max(map(len, rows))) for of_outcome in rows if k < len(of_outcome)]
    return np.array(in_turn[:count], np.int64)


def examine_maps(
    model: S3DG, clips: Clips, stream: str, layers: Tensor, *, spread: float, config: AttributionConfig
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Computes and checks the attribution maps of the first clips of a split.

    Args:
        model: the network.
        clips: the split.
        stream: what the network sees, rgb or flow.
        layers: uint8 (M, T, H, W), what each pixel of the first M clips shows: 1 distractor, 2 target.
        spread: `logit_spread` of the network, the unit of falls of the margin.
        config: the number of steps, and the endpoint of Grad-CAM.

    Returns:
        Metrics and arrays. Metrics:
            `target_share`, `motion_target_share`, `cam_target_share`: fraction of the attribution on the target, by
                integrated gradients from the mean colour and from the clip without motion, and by Grad-CAM; likewise
                `distractor_share` and so on.
            `target_area`, `distractor_area`: fraction of the pixels that each covers.
            `delta`, `motion_delta`: mean absolute convergence delta of integrated gradients, relative to the mean
                absolute change of the margin.
            `agreement/<a>/<b>`: mean rank correlation of the maps of two methods, at the resolution of Grad-CAM.
            `found/<method>`: `found_by` of the deletion curves, in units of `spread`.
            `randomised/<stage>/<method>`: `kept_after_randomising`.
        Arrays: `occlusion` (T,), the mean fall of the margin when each frame is hidden, and `deletion/<method>` and
            `deletion/random` (F,), the curves, all in units of `spread`.
    """
    number = len(layers)
    x, labels = clips.inputs(stream, slice(0, number)), clips.labels[:number]

    def make_maps(network: S3DG, inputs: Tensor, of: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        return all_maps(network, inputs, of, stream, steps=config.steps, endpoint=config.examined.endpoint)

    own, deltas = make_maps(model, x, labels)
    metrics = dict(deltas)
    prefixes = dict(zip(own, ("", "motion_", "cam_"), strict=True))
    for name, layer in (("target", layers == 2), ("distractor", layers == 1)):
        metrics[f"{name}_area"] = layer.float().mean().item()
        for method, values in own.items():
            metrics[f"{prefixes[method]}{name}_share"] = maps.fraction_in_mask(values, layer).mean().item()
    stride = model.endpoint_info[config.examined.endpoint].stride

    def similarity(a: Tensor, b: Tensor) -> np.ndarray:
        return maps.rank_correlation(maps.averaged(a, stride), maps.averaged(b, stride))

    for a, b in (("integrated_gradients", "motion_gradients"), ("motion_gradients", "grad_cam")):
        metrics[f"agreement/{a}/{b}"] = float(similarity(own[a], own[b]).mean())
    checked, of = x[:CHECKED_CLIPS], labels[:CHECKED_CLIPS]
    own_checked = {method: values[:CHECKED_CLIPS] for method, values in own.items()}
    kept = map_checks.kept_after_randomising(
        model, checked, own_checked, lambda m: make_maps(m, checked, of)[0], similarity
    )
    metrics |= {f"randomised/{name}": value for name, value in kept.items()}
    curves = {
        name: map_checks.deletion_curve(model, x, labels, values) / spread
        for name, values in (own | {"random": map_checks.random_map(x)}).items()
    }
    metrics |= {f"found/{name}": map_checks.found_by(curves[name], curves["random"]) for name in own}
    occlusion = maps.occlusion_in_time(model, x, labels).mean(0).cpu().numpy() / spread
    arrays = {f"deletion/{name}": curve.astype(np.float32) for name, curve in curves.items()}
    return metrics, arrays | {"occlusion": occlusion.astype(np.float32)}


def all_maps(
    model: S3DG, x: Tensor, labels: Tensor, stream: str, *, steps: int, endpoint: str
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Computes the maps of all methods.

    Args:
        model: the network.
        x: (B, C, T, H, W), inputs.
        labels: (B,).
        stream: what the network sees, rgb or flow.
        steps: as in `integrated_gradients`.
        endpoint: as in `grad_cam`.

    Returns:
        Maps (B, T, H, W), not negative, by method: `integrated_gradients` from the mean colour, `motion_gradients` from
        the clip without motion, and `grad_cam`; and `delta` and `motion_delta` of `examine_maps`.
    """
    by_method, deltas = {}, {}
    starts = {"integrated_gradients": ("delta", None), "motion_gradients": ("motion_delta", still(x, stream))}
    for method, (delta, baseline) in starts.items():
        result = maps.integrated_gradients(model, x, labels, baseline=baseline, steps=steps)
        change = result.values.sum((1, 2, 3, 4)).abs().mean()
        by_method[method] = maps.magnitude(result.values)
        deltas[delta] = (result.delta.abs().mean() / (change + 1e-12)).item()
    return by_method | {"grad_cam": maps.grad_cam(model, x, labels, endpoint=endpoint)}, deltas


def published_maps(
    model: S3DG, clips: Clips, stream: str, rows: np.ndarray, *, config: AttributionConfig
) -> dict[str, np.ndarray]:
    """Returns the maps of some clips of a split for films.

    Returns:
        `shown/rows` (S,), the rows of the clips, and `shown/<method>` for METHODS, uint8 (S, T, H, W), each clip's map
        scaled to a maximum of 255.
    """
    index = torch.from_numpy(rows).to(clips.labels.device)
    by_method, _ = all_maps(
        model,
        clips.inputs(stream, index),
        clips.labels[index],
        stream,
        steps=config.steps,
        endpoint=config.examined.endpoint,
    )
    scaled = {
        name: by_method[name] / by_method[name].amax((1, 2, 3), keepdim=True).clamp_min(1e-12) for name in METHODS
    }
    arrays = {f"shown/{name}": (255 * x).round().byte().cpu().numpy() for name, x in scaled.items()}
    return arrays | {"shown/rows": rows}
