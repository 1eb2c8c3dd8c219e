"""One execution of an experiment, from its parameters to its records.

The cells of every experiment's notebook:

    seed = 0                                 # tagged "parameters"; papermill's -p and -f replace it
    run = start("leak", globals())
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d3d.study import records
from d3d.study.experiments import from_namespace, params_of, read
from d3d.study.plan import made_from
from d3d.study.records import Record
from d3d.study.staleness import source_hash


@dataclass
class Run:
    """A run under way. `provenance` is taken when it starts: an edit during a long run is not its source."""

    experiment: str
    config: Any
    device: str
    provenance: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        return params_of(self.experiment, self.config)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a part of the run; the next record holds it as `seconds/<name>`."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def write(
        self,
        arm: str,
        metrics: Mapping[str, float],
        *,
        arrays: Mapping[str, np.ndarray] | None = None,
        files: Mapping[str, Any] | None = None,
        seed: int | None = None,
        stand_in: bool = True,
    ) -> Record:
        """Writes the run's record and prints its headline. `seed` defaults to the run's parameter."""
        params = self.params
        record = Record(
            experiment=self.experiment,
            arm=arm,
            seed=params["seed"] if seed is None else seed,
            params=params,
            metrics={k: float(v) for k, v in metrics.items()}
            | {f"seconds/{name}": round(value, 2) for name, value in self.seconds.items()},
            stand_in=stand_in,
            files=dict(files or {}),
            provenance=self.provenance
            | {"seconds": records.seconds_since(self.provenance["started"])}
            | {"made_from": made_from(self.experiment, arm)},
        )
        self.seconds.clear()
        path = records.write(params["results"], record, arrays)
        print(records.headline(record), f"-> {path}")
        return record


def begin(experiment: str, config: Any, device: str, device_name: str) -> Run:
    """A run that starts now, on this device."""
    made = records.provenance(
        source=source_hash(experiment), notebook=f"notebooks/experiments/{experiment}.ipynb", device=device_name
    )
    return Run(experiment, config, device, made)


def start(experiment: str, namespace: Mapping[str, Any]) -> Run:
    """A run with a notebook's parameters, on the GPU where there is one.

    On a CPU it computes on one thread, unless OMP_NUM_THREADS asks for more: other threads, other last digits.
    Raises ParameterError as `from_namespace` does, and ValueError naming a parameter that is out of its range.
    """
    config = read(experiment, from_namespace(experiment, namespace))
    # The graph reads this room at every start, and torch takes seconds to import.
    import torch

    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return begin(experiment, config, "cuda" if cuda else "cpu", torch.cuda.get_device_name() if cuda else "cpu")
