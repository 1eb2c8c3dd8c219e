"""The metrics of the training loop, with a step that takes a known time on a device that works ahead of its metrics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from d3d.data.load import load
from d3d.progress import read_metrics
from d3d.train import loop
from d3d.train.step import MAX_IN_FLIGHT, StepMetrics
from d3d.train.team import SINGLE_PROCESS
from tests import configs

BATCH = 16  # clips per step


class Clock:
    """Stands in for the module `time`: only steps take time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Device:
    """A training step as on a GPU: queueing takes `host` seconds, the work `gpu` seconds, one step after another."""

    lag, device = MAX_IN_FLIGHT, torch.device("cpu")
    objective = SimpleNamespace(streams=("rgb",), loss_names=("loss",))

    def __init__(self, clock: Clock, host: float, gpu: float) -> None:
        self.clock, self.host, self.gpu = clock, host, gpu
        self.in_flight: list[tuple[int, float]] = []
        self.free_at = clock.now

    def local_part(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def __call__(self, step: int, rows: np.ndarray, **_: object) -> list[StepMetrics]:
        self.clock.now += self.host
        finished = [self._wait()] if len(self.in_flight) == self.lag else []
        self.free_at = max(self.free_at, self.clock.now) + self.gpu
        self.in_flight.append((step, self.free_at))
        return finished

    def drain(self) -> list[StepMetrics]:
        return [self._wait() for _ in range(len(self.in_flight))]

    def _wait(self) -> StepMetrics:
        step, finished_at = self.in_flight.pop(0)
        self.clock.now = max(self.clock.now, finished_at)
        values = {"loss": 1.0, "cross_entropy": 1.0, "distance": 0.0, "top1": 0.5, "clips": float(BATCH), "stop": 0.0}
        return StepMetrics(step, values)


def rates(tmp_path, monkeypatch, host: float, gpu: float, steps_per_epoch: int, epochs: int) -> np.ndarray:
    """The clips per second that each epoch of a run records."""
    flat = {"frames": 4, "size": 16, "train_clips": BATCH * steps_per_epoch, "test_clips": 16, "width": 0.1}
    config = configs.training(**flat, epochs=epochs, batch_size=BATCH)
    data = load(config.data, seed=0, streams=("rgb",))
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "TrainStep", lambda *_, **__: Device(clock, host, gpu))
    loop.fit(None, config, data, team=SINGLE_PROCESS, metrics_path=tmp_path / "run.jsonl", report=lambda line: None)
    return np.array([row["clips_per_second"] for row in read_metrics(tmp_path / "run.jsonl") if "loss" in row])


@pytest.mark.parametrize(("steps_per_epoch", "epochs"), [(20, 3), (9, 3), (3, 8), (1, 30), (3, 2), (1, 4)])
def test_a_rate_counts_the_work_that_is_done(tmp_path, monkeypatch, steps_per_epoch, epochs):
    """Also of epochs that end while later ones are queued, and of runs that are queued as a whole at once."""
    measured = rates(tmp_path, monkeypatch, 0.001, 0.1, steps_per_epoch, epochs)
    assert len(measured) == epochs
    np.testing.assert_allclose(measured, BATCH / 0.1, rtol=0.02)


@pytest.mark.parametrize(("steps_per_epoch", "epochs"), [(20, 3), (9, 3), (3, 8), (1, 30), (1, 4)])
def test_a_rate_does_not_exceed_that_of_the_clips_that_arrive(tmp_path, monkeypatch, steps_per_epoch, epochs):
    """A device that waits for its clips has finished its steps long before that is known."""
    measured = rates(tmp_path, monkeypatch, 0.1, 0.01, steps_per_epoch, epochs)
    assert (measured <= 1.001 * BATCH / 0.1).all()
    # The first epoch also waits for the steps that are queued after it.
    assert (measured[1:] >= 0.97 * BATCH / 0.1).all()
    assert measured[0] >= 0.97 * BATCH / 0.1 * steps_per_epoch / (steps_per_epoch + MAX_IN_FLIGHT)
