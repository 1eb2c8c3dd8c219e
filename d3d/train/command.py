"""The command that trains a network on a CPU or on one or more GPUs.

    d3d train --stream flow --epochs 12                                       # one flag per parameter, d3d train --help
    d3d train --config FILE --seed 3                                          # flags override the file
    torchrun --standalone --nproc-per-node 4 -m d3d.train --config FILE       # four GPUs of one host
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m d3d.train --config FILE

FILE is YAML: `experiment: train`, `distill` or `evaluate` (which tests given weights and trains nothing), and
parameters of that experiment (or a whole profile). The command writes to <results>/<experiment>/:
<arm>-seed<seed>.json (the record) and .npz (predictions and training curves), and where it trains .safetensors (the
weights) and .jsonl (metrics, appended during training). The same command resumes a killed run from its last state, in
.state/.
"""

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from d3d.messages import one_line, shown
from d3d.progress import close_output
from d3d.study import plan
from d3d.study.attached import has_ended
from d3d.study.evaluation import EvaluateConfig
from d3d.study.experiments import defaults, field_of, from_namespace, make_config
from d3d.study.parameters import TrainConfig
from d3d.study.profiles import read_profile, read_yaml
from d3d.train import run
from d3d.train.lease import LeaseError
from d3d.train.loop import Stopped
from d3d.train.peers import PeerLostError, end_torchrun, watch_peers
from d3d.train.team import join_team

PROG = "d3d train"


def read_config(
    path: str | Path | None, experiment: str | None = None, flags: Mapping[str, Any] | None = None
) -> tuple[str, TrainConfig | EvaluateConfig]:
    """Reads the experiment's name and its configuration from a YAML file, if any, overridden by flags.

    Raises:
        ValueError: for an unknown experiment or parameter, or a value out of range, which the message names.
        OSError: if the file cannot be read.
    """
    parameters = _read_parameters(Path(path)) if path else {}
    experiment_in_file = parameters.pop("experiment", None)
    experiment = experiment or experiment_in_file or "train"
    if experiment not in plan.TESTED:
        raise ValueError(f"experiment in {path} must be one of {', '.join(plan.TESTED)}, not {shown(experiment)}")
    return experiment, make_config(experiment, from_namespace(experiment, parameters | dict(flags or {})))


def _read_parameters(path: Path) -> dict[str, Any]:
    parameters = read_yaml(path)
    if "extends" in parameters:
        return read_profile(path)
    for name, value in parameters.items():
        plain = isinstance(value, str | bool | int | float | list | dict)
        if not isinstance(name, str) or name.startswith("_") or not plain:
            raise ValueError(f"{path} sets {shown(name)} to {shown(value)}: it must map parameters to values")
    return parameters


def _stop_after(pid: int) -> None:
    """Sends this process SIGTERM once process `pid` has ended."""
    time.sleep(1)
    while not has_ended(pid):
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    """The parser, with one flag per parameter of its experiments, generated from the schema."""
    parser = argparse.ArgumentParser(prog=PROG, description="Trains, distils or evaluates one network.")
    parser.add_argument("--config", help="YAML file: one of the experiments and its parameters, or a profile")
    parser.add_argument("--experiment", choices=plan.TESTED, help="default: the one in --config, or else train")
    flags = {name: ("distill", default) for name, default in defaults("distill").items()}
    flags |= {name: ("evaluate", default) for name, default in defaults("evaluate").items() if name not in flags}
    for name, (experiment, default) in flags.items():
        field = field_of(experiment, name)
        flag, help = f"--{name.strip('_').replace('_', '-')}", field.metadata["help"].replace("%", "%%")
        parser.add_argument(
            flag, dest=name, metavar=field.type.__name__, type=partial(_parse_value, field.type),
            help=f"{help} (default {default!r})",
        )  # fmt: skip
    return parser


def _parse_value(kind: type, text: str) -> Any:
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"it must be of type {kind.__name__}, not {shown(text)}") from None


def main(argv: list[str] | None = None) -> None:
    parser = _parser()
    args = vars(parser.parse_args(argv))
    path, experiment = args.pop("config"), args.pop("experiment")
    # A notebook sets D3D_FOLLOWER to the process id of its kernel; torchrun is the parent of its processes.
    followed = os.environ.get("D3D_FOLLOWER"), os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    for pid in filter(None, followed):
        threading.Thread(target=_stop_after, args=(int(pid),), daemon=True).start()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _raise_stopped)
    try:
        flags = {name: value for name, value in args.items() if value is not None}
        experiment, config = read_config(path, experiment, flags)
        if not torch.cuda.is_available():
            # The number of threads changes the last digits of results.
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        with join_team() as team, watch_peers(team):
            if isinstance(config, EvaluateConfig):
                from d3d.train import validate  # which reads video files

                validate.run(config, team=team)
            else:
                run.run(experiment, config, team=team)
    except Stopped as stopped:
        _exit(128 + stopped.signum, str(stopped))
    except torch.OutOfMemoryError:
        if isinstance(config, EvaluateConfig):
            _exit(1, "the GPU's memory is too small for these clips: lower frames, size, view_clips or view_crops")
        optimiser = config.optimiser
        _exit(
            1,
            f"the GPU's memory is too small for batch_size {optimiser.batch_size} with accumulate "
            f"{optimiser.accumulate}: raise accumulate",
        )
    except PeerLostError as error:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_IGN)
        _exit(1, one_line(error), before=end_torchrun)
    except (ValueError, OSError, FloatingPointError, LeaseError) as error:
        _exit(1, one_line(error))
    except SystemExit as ended:
        _exit(ended.code)
    except BaseException as error:
        traceback.print_exc()
        _exit(1, f"unexpected {type(error).__name__}: {one_line(error)}; run the same command again to resume")
    close_output()


def _raise_stopped(signum: int, _: object) -> None:
    """Handles signals outside of the training loop, where there is nothing to save."""
    raise Stopped(signum, f"stopped by {signal.Signals(signum).name}; run the same command again to resume")


def _exit(code: int, message: str = "", *, before: Callable[[], None] = lambda: None) -> None:
    """Ends the process with a sentence for the user, if any, and after it what is to be done `before` the end."""
    if message:
        with suppress(OSError):
            print(f"{PROG}: {message}", file=sys.stderr, flush=True)
    before()
    close_output()
    if "WORLD_SIZE" in os.environ:
        # Leaving the process group can block if another process is gone; torchrun ends the others.
        os._exit(code)
    sys.exit(code)
