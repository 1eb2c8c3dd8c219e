"""The probe experiment: linear probes and flow decoders on every examined network of a seed."""

from d3d.probing.decoders import train_flow_decoders
from d3d.probing.linear import ENDPOINTS, linear_probes, render_probe_clips
from d3d.probing.networks import load_arm_network
from d3d.study.arms import ARMS, arms_examined_by
from d3d.study.run import Run


def run(active_run: Run) -> None:
    """Writes one record per examined arm; arms without weights in the run's results folder are skipped.

    Raises:
        ValueError: the run's endpoint is not one of `ENDPOINTS`.
    """
    config, seed = active_run.config, active_run.config.run.seed
    if config.examined.endpoint not in ENDPOINTS:
        raise ValueError(f"endpoint must be one of {', '.join(ENDPOINTS)}, not {config.examined.endpoint!r}")
    with active_run.phase("data"):
        probe_clips = render_probe_clips(config.data, device=active_run.device)
    for arm in arms_examined_by("probe"):
        network = load_arm_network(
            config.run.results, arm, seed, width=config.network.width, calibration_clips=probe_clips.train
        )
        if network is None:
            continue
        model, stream = network
        # The arm `tuned` starts from a trained network and is fine-tuned here, together with its decoders.
        fine_tune = ARMS[arm].experiment == "probe" and bool(ARMS[arm].start)
        metrics = {}
        if not fine_tune:
            with active_run.phase("probes"):
                metrics |= linear_probes(model, probe_clips, stream, seed=seed)
        with active_run.phase("decoders"):
            flow_errors, arrays = train_flow_decoders(
                model,
                probe_clips.train,
                probe_clips.test,
                stream,
                dense_endpoint=config.examined.endpoint,
                epochs=config.decoder_epochs,
                batch_size=config.optimiser.batch_size,
                fine_tune=fine_tune,
                num_returned_clips=config.pictures,
                seed=seed,
            )
        active_run.write(arm, metrics | flow_errors, arrays=arrays)
