"""The probe experiment: linear probes and flow decoders on every examined network of a seed.

Linear probes need the parameters that sprites are rendered from; on video files there are flow decoders only, whose
truth is TV-L1 flow, as the paper is believed to have done it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from d3d.data.clips import Clips
from d3d.data.load import load
from d3d.probing.decoders import train_flow_decoders
from d3d.probing.linear import ENDPOINTS, linear_probes, render_probe_clips
from d3d.probing.networks import load_arm_network
from d3d.study.arms import ARMS, arms_examined_by
from d3d.study.parameters import RENDERED_DATASETS
from d3d.study.plan import main_split
from d3d.study.run import Run


def run(active_run: Run) -> None:
    """Writes one record per examined arm; arms without weights in the run's results folder are skipped.

    Raises:
        ValueError: the run's endpoint is not one of `ENDPOINTS`; or as `load` and `fixed_views` do.
    """
    config = active_run.config
    if config.examined.endpoint not in ENDPOINTS:
        raise ValueError(f"endpoint must be one of {', '.join(ENDPOINTS)}, not {config.examined.endpoint!r}")
    if config.data.files.dataset in RENDERED_DATASETS:
        _probe_sprites(active_run)
    else:
        _probe_videos(active_run)


def _probe_sprites(active_run: Run) -> None:
    config, seed = active_run.config, active_run.config.run.seed
    with active_run.phase("data"):
        probe_clips = render_probe_clips(config.data, device=active_run.device)
    for arm in arms_examined_by("probe"):
        network = load_arm_network(
            config.run.results, arm, seed, width=config.network.width, calibration_clips=probe_clips.train
        )
        if network is None:
            continue
        metrics = {}
        if not _fine_tunes(arm):
            with active_run.phase("probes"):
                metrics |= linear_probes(network[0], probe_clips, network[1], seed=seed)
        flow_errors, arrays = _decode(active_run, arm, network, probe_clips.train, probe_clips.test)
        active_run.write(arm, metrics | flow_errors, arrays=arrays)


def _probe_videos(active_run: Run) -> None:
    """Decodes TV-L1 from the training clips of the networks, and is scored on their test clips."""
    # Imported here, so that sprites do not need PyAV.
    from d3d.data.fixed_views import fixed_views

    config, seed = active_run.config, active_run.config.run.seed
    with active_run.phase("data"):
        data = load(config.data, seed=seed, streams=("rgb", "flow"), device=active_run.device, workers=0)
        train, test = (fixed_views(data.splits[name]) for name in ("train", main_split(data.test_splits)))
    for arm in arms_examined_by("probe"):
        network = load_arm_network(
            config.run.results,
            arm,
            seed,
            width=config.network.width,
            calibration_clips=train,
            classes=data.classes,
        )
        if network is not None:
            errors, arrays = _decode(active_run, arm, network, train, test, by_group=len(set(test.groups)) > 1)
            # What `mask` holds is no target here, but the fields that count.
            metrics = {name.replace("target_epe", "epe"): x for name, x in errors.items() if "/target_" in name}
            active_run.write(arm, metrics, arrays=arrays, files=data.files, stand_in=data.stand_in)


def _fine_tunes(arm: str) -> bool:
    """Whether an arm starts from a trained network and is fine-tuned here, together with its decoders: `tuned`."""
    return ARMS[arm].experiment == "probe" and bool(ARMS[arm].start)


def _decode(
    active_run: Run, arm: str, network: Any, train: Clips, test: Clips, *, by_group: bool = False
) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
    config, (model, stream) = active_run.config, network
    with active_run.phase("decoders"):
        return train_flow_decoders(
            model,
            train,
            test,
            stream,
            dense_endpoint=config.examined.endpoint,
            epochs=config.decoder_epochs,
            batch_size=config.optimiser.batch_size,
            fine_tune=_fine_tunes(arm),
            num_returned_clips=config.pictures,
            by_group=by_group,
            seed=config.run.seed,
        )
