"""One run of an experiment, from its parameters to its records.

The notebook of an experiment has these cells:

    seed = 0                                 # tagged "parameters": papermill's -p and -f override it
    run = start("leak", globals())
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d3d.files import check_writable, write_patiently
from d3d.progress import print_line
from d3d.study import records
from d3d.study.experiments import from_namespace, make_config, params_of
from d3d.study.machine import check_run
from d3d.study.plan import made_from
from d3d.study.records import Record
from d3d.study.staleness import source_hash


@dataclass
class Run:
    """A run in progress.

    Attributes:
        experiment: name of the experiment.
        config: its configuration, such as a `TrainConfig`.
        device: PyTorch's name of the device.
        provenance: origin of the run, taken at its start, so that later edits of the code do not count.
        seconds: duration of each phase that no record holds yet.
    """

    experiment: str
    config: Any
    device: str
    provenance: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """All parameters that the experiment's notebook can set."""
        return params_of(self.experiment, self.config)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a part of the run; the next record stores the duration as metric `seconds/<name>`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

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
        """Writes a record of the run and prints its headline.

        Args:
            arm: the arm of the record.
            metrics: values by name.
            arrays: arrays by name, written next to the record.
            files: which video files were read.
            seed: seed of the record; None: that of the run.
            stand_in: whether rendered sprites stand in for the paper's videos.
        """
        params = self.params
        record = Record(
            experiment=self.experiment,
            arm=arm,
            seed=params["seed"] if seed is None else seed,
            params=params,
            metrics={name: float(value) for name, value in metrics.items()}
            | {f"seconds/{name}": round(value, 2) for name, value in self.seconds.items()},
            stand_in=stand_in,
            files=dict(files or {}),
            provenance=self.provenance
            | {"seconds": records.seconds_since(self.provenance["started"])}
            | {"made_from": made_from(self.experiment, arm)},
        )
        self.seconds.clear()
        path = write_patiently(lambda: records.write(params["results"], record, arrays), print_line)
        print_line(f"{records.headline(record)} -> {path}")
        return record


def new_run(experiment: str, config: Any, device: str, device_name: str) -> Run:
    """Starts a run with a configuration on a device.

    Args:
        experiment: name of the experiment.
        config: its configuration.
        device: PyTorch's name of the device.
        device_name: name of the hardware, for the provenance.
    """
    provenance = records.provenance(
        source=source_hash(experiment), notebook=f"notebooks/experiments/{experiment}.ipynb", device=device_name
    )
    return Run(experiment, config, device, provenance)


def start(experiment: str, namespace: Mapping[str, Any]) -> Run:
    """Starts a run with a notebook's parameters, on a GPU if there is one.

    On a CPU it computes with one thread unless OMP_NUM_THREADS is set, since results depend on the number of threads
    in their last digits.

    Args:
        experiment: name of the experiment.
        namespace: the globals of the notebook.

    Raises:
        ParameterError: for an unknown parameter or a value of the wrong type.
        ValueError: for a value out of range, naming the parameter, or a run that does not fit into memory.
        OSError: if the results cannot be written.
    """
    config = make_config(experiment, from_namespace(experiment, namespace))
    # Snakemake loads this package at every start, and importing torch takes seconds.
    import torch

    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    device = "cuda" if cuda else "cpu"
    check_run(experiment, config, device=device)
    check_writable(Path(params_of(experiment, config)["results"]) / experiment)
    return new_run(experiment, config, device, torch.cuda.get_device_name() if cuda else "cpu")
