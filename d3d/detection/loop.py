"""The training loop that detectors of actions and of persons share: epochs of steps on key frames, in a new order each.

losses = run_epochs(len(scenes), options, steps, name="detector")
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d3d.progress import Progress
from d3d.study.parameters import OptimiserConfig
from d3d.train.loop import warmup_cosine
from d3d.train.sgd import Sgd
from d3d.train.states import States


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes:
        number: counted from 0 over all epochs.
        rows: int64 (B,), which key frames.
        learning_rate: of this step.
    """

    number: int
    rows: np.ndarray
    learning_rate: float


@dataclass(frozen=True)
class Saving:
    """Where a run saves its states, from which it resumes after it was killed.

    Attributes:
        states: of this run.
        every: seconds between states.
    """

    states: States
    every: float


# Takes the steps of the rest of an epoch, and yields the loss before each.
TakeSteps = Callable[[list[Step]], Iterable[Tensor]]


def run_epochs(
    count: int,
    config: OptimiserConfig,
    take_steps: TakeSteps,
    sgd: Sgd,
    *,
    seed: int,
    name: str,
    report: Callable[[str], None] | None = None,
    saving: Saving | None = None,
) -> list[float]:
    """Trains for some epochs, each in an order that depends on the seed and the epoch alone.

    The learning rate warms up linearly over a tenth of the steps and then follows half a cosine.

    Args:
        count: number of key frames; the last, incomplete batch of each epoch is dropped.
        config: epochs, batch size and learning rate; at most all key frames make a batch.
        take_steps: takes the steps.
        sgd: the optimiser, whose learning rate is set before each step, and whose state is saved.
        seed: of the orders.
        name: what is trained, for the message of an error.
        report: receives lines about the progress; None: none.
        saving: where states are saved and read from; None: nowhere.

    Returns:
        The mean loss of each epoch.

    Raises:
        FloatingPointError: a loss is not finite; the message names the epoch.
    """
    size = min(config.batch_size, count)
    per_epoch = count // size
    schedule = warmup_cosine(config.warmup, config.epochs * per_epoch)
    saved = saving.states.latest() if saving else None
    first, losses, total = 0, [], torch.zeros((), device=sgd.learning_rate.device)
    if saved:
        sgd.load_state_dict({key: x.to(total.device) for key, x in saved.tensors.items()})
        first, losses, total = saved.step, saved.metadata["losses"], total + saved.metadata["total"]
        (report or print)(f"resuming after step {first} of {config.epochs * per_epoch}")
    last_saved = time.monotonic()
    with Progress(config.epochs * per_epoch - first, "steps", report or (lambda line: None)) as progress:
        for epoch in range(first // per_epoch, config.epochs):
            order = np.random.default_rng((seed, epoch)).permutation(count)
            steps = [
                Step(n, order[n % per_epoch * size :][:size], config.learning_rate * schedule(n))
                for n in range(max(first, epoch * per_epoch), (epoch + 1) * per_epoch)
            ]
            for step, loss in zip(steps, take_steps(steps), strict=True):
                total += loss
                progress.update()
                if saving and time.monotonic() - last_saved >= saving.every and step is not steps[-1]:
                    about = {"losses": losses, "total": total.item()}
                    _check_finite(about["total"], name, epoch, config.learning_rate)
                    saving.states.save(step.number + 1, sgd.state_dict(), about)
                    last_saved = time.monotonic()
            losses.append(total.item() / per_epoch)
            _check_finite(losses[-1], name, epoch, config.learning_rate)
            total.zero_()
    return losses


def _check_finite(loss: float, name: str, epoch: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the {name}'s loss was {loss} in epoch {epoch + 1}: give a learning rate below {learning_rate}"
        )
