"""What the endpoints of every network of a seed know: linear probes and flow decoders on frozen weights."""

from d3d.probing.decoders import decode
from d3d.probing.linear import ENDPOINTS, linear_probes, probed_sets
from d3d.probing.networks import arm_network
from d3d.study.arms import ARMS, arms_examined_by
from d3d.study.run import Run


def run(this: Run) -> None:
    """Writes a record of every examined arm whose weights are below the run's results.

    Raises ValueError for an endpoint that is not probed.
    """
    config, seed = this.config, this.config.run.seed
    if config.examined.endpoint not in ENDPOINTS:
        raise ValueError(f"endpoint must be one of {', '.join(ENDPOINTS)}, not {config.examined.endpoint!r}")
    with this.phase("data"):
        sets = probed_sets(config.data, device=this.device)
    for arm in arms_examined_by("probe"):
        found = arm_network(config.run.results, arm, seed, width=config.network.width, fit=sets.fit)
        if found is None:
            continue
        model, stream = found
        # The network that starts from another here is trained on, end to end with its decoders.
        tuned = ARMS[arm].experiment == "probe" and bool(ARMS[arm].start)
        metrics = {}
        if not tuned:
            with this.phase("probes"):
                metrics |= linear_probes(model, sets, stream, seed=seed)
        with this.phase("decoders"):
            errors, pictures = decode(
                model,
                sets.fit,
                sets.test,
                stream,
                dense=config.examined.endpoint,
                epochs=config.decoder_epochs,
                batch_size=config.optimiser.batch_size,
                tune=tuned,
                pictures=config.pictures,
                seed=seed,
            )
        this.write(arm, metrics | errors, arrays=pictures)
