"""The command of training, on a CPU, a GPU, or many.

    d3d train --stream flow --epochs 12                                       # a flag per parameter, d3d train --help
    d3d train --config FILE --seed 3                                          # flags override the file
    torchrun --standalone --nproc-per-node 4 -m d3d.train --config FILE       # four GPUs of one host
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m d3d.train --config FILE

FILE is YAML: `experiment: train` or `distill`, and parameters of that notebook (or a whole profile). What comes of it
lies in <results>/<experiment>/: <arm>-seed<seed>.json the record, .npz predictions and curves, .safetensors the
weights, .jsonl the metrics as they came. A run that was killed resumes from its last state, .state/, when it is started
again.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from d3d.study import plan
from d3d.study.experiments import defaults, field_of, from_namespace, make_config
from d3d.study.parameters import TrainConfig
from d3d.study.profiles import read_profile, read_yaml
from d3d.train.loop import Stopped
from d3d.train.run import run
from d3d.train.team import joined


def read_config(
    path: str | Path | None, experiment: str | None = None, flags: Mapping[str, Any] | None = None
) -> tuple[str, TrainConfig]:
    """The experiment and its parameters: of a YAML file where there is one, and of flags, which override it.

    Raises ValueError or OSError naming what is wrong.
    """
    content = _content(Path(path)) if path else {}
    named = content.pop("experiment", None)
    experiment = experiment or named or "train"
    if experiment not in plan.TRAINED:
        raise ValueError(f"experiment in {path} must be one of {', '.join(plan.TRAINED)}, not {experiment!r}")
    return experiment, make_config(experiment, from_namespace(experiment, content | dict(flags or {})))


def _content(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if "extends" in content:
        return read_profile(path)
    for name, value in content.items():
        plain = isinstance(value, str | bool | int | float | list | dict)
        if not isinstance(name, str) or name.startswith("_") or not plain:
            raise ValueError(f"{path} sets {name!r} to {value!r}: it must map parameters to values")
    return content


def _end_with(pid: int) -> None:
    """Asks this process to stop once the process that follows it is gone."""
    while True:
        time.sleep(1)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _parser() -> argparse.ArgumentParser:
    """A flag for every parameter of either experiment, as the schema declares it."""
    parser = argparse.ArgumentParser(prog="d3d train", description="Trains or distils one network.")
    parser.add_argument("--config", help="YAML: experiment (train or distill) and its parameters, or a whole profile")
    parser.add_argument("--experiment", choices=plan.TRAINED, help="default: what --config says, or else train")
    for name, default in defaults("distill").items():
        declared = field_of("distill", name)
        flag, help = f"--{name.strip('_').replace('_', '-')}", declared.metadata["help"].replace("%", "%%")
        parser.add_argument(
            flag, dest=name, metavar=declared.type.__name__, type=partial(_value, declared.type),
            help=f"{help} (default {default!r})",
        )  # fmt: skip
    return parser


def _value(kind: type, text: str) -> Any:
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"it must be of type {kind.__name__}, not {text!r}") from None


def main(argv: list[str] | None = None) -> None:
    parser = _parser()
    given = vars(parser.parse_args(argv))
    path, experiment = given.pop("config"), given.pop("experiment")
    if follower := os.environ.get("D3D_FOLLOWER"):
        threading.Thread(target=_end_with, args=(int(follower),), daemon=True).start()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    try:
        flags = {name: value for name, value in given.items() if value is not None}
        experiment, config = read_config(path, experiment, flags)
        if not torch.cuda.is_available():
            # Other threads, other last digits.
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        with joined() as team:
            run(experiment, config, team=team)
    except Stopped as stopped:
        _leave(128 + stopped.signum, f"{parser.prog}: {stopped}")
    except torch.OutOfMemoryError:
        _leave(
            1,
            f"{parser.prog}: the GPU's memory does not hold a step of batch_size {config.optimiser.batch_size} in "
            f"{config.optimiser.accumulate} parts: raise accumulate",
        )
    except (ValueError, OSError, FloatingPointError) as error:
        _leave(1, f"{parser.prog}: {error}")


def _stop(signum: int, _: object) -> None:
    """Outside of training, where there is nothing to save."""
    raise Stopped(signum, f"stopped by {signal.Signals(signum).name}; start it again to go on")


def _leave(code: int, sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
    if "WORLD_SIZE" in os.environ:
        # To take leave of the others can block where one of them is gone; torchrun ends them.
        os._exit(code)
    sys.exit(code)
