"""Runs the graph on all GPUs of this machine, several runs per GPU, and says how; without a GPU one run per core.

    python -m d3d.study.graph [--cores N] [--runs-per-gpu N] -- snakemake … -- study
    python -m d3d.study.graph --cluster slurm -- snakemake … -- study     # as jobs of a cluster

The process becomes Snakemake.
"""

import argparse
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import yaml
from joblib import cpu_count

from d3d.messages import one_line, shown
from d3d.study import mps
from d3d.study.gpus import find_gpus

# By default one run trains while others start, load and test; without MPS, those that train at once take turns.
RUNS_PER_GPU, RUNS_PER_GPU_IN_TURNS = 3, 2
MAX_RUNS_PER_GPU = 48  # clients that MPS admits
# Folders of Snakemake's settings, one per cluster.
CLUSTERS = Path("profiles")
# Snakemake's plugin for a cluster, and the program of the cluster that it calls.
PLUGINS = {"slurm": ("snakemake_executor_plugin_slurm", "sbatch")}
VARIABLES = ("D3D_GPUS", "D3D_RUNS_PER_GPU", "D3D_CORES_PER_RUN")


def prepare(cores: str, runs_per_gpu: str) -> tuple[list[str], dict[str, str], str]:
    """Divides this machine among runs; starts MPS if it can.

    Args:
        cores: number of cores, or all.
        runs_per_gpu: number of runs per GPU; empty: the default.

    Returns:
        Options of Snakemake, environment variables of its jobs, and the sentence that says what it does, if it has a
        GPU.

    Raises:
        ValueError: for a value out of range.
    """
    if runs_per_gpu and not (re.fullmatch("[0-9]{1,3}", runs_per_gpu) and 1 <= int(runs_per_gpu) <= MAX_RUNS_PER_GPU):
        raise ValueError(f"RUNS_PER_GPU must be a number from 1 to {MAX_RUNS_PER_GPU}, not {shown(runs_per_gpu)}")
    if cores != "all" and not re.fullmatch("[1-9][0-9]{0,3}", cores):
        raise ValueError(f"CORES must be all or a number from 1 to 9999, not {shown(cores)}")
    gpus = find_gpus()
    if not gpus:
        return ["--cores", cores], {}, ""
    devices = [gpu.device for gpu in gpus]
    environment, how = {}, ""
    count = int(runs_per_gpu or RUNS_PER_GPU)
    if count > 1:
        try:
            environment, how = mps.start(devices), " through MPS"
        except mps.MpsError as error:
            how = f" without MPS ({error})"
            count = int(runs_per_gpu or RUNS_PER_GPU_IN_TURNS)
    places = len(gpus) * count
    num_cores = cpu_count() if cores == "all" else int(cores)
    cores_per_run = max(1, num_cores // places)
    environment |= dict(zip(VARIABLES, (",".join(devices), str(count), str(cores_per_run)), strict=True))
    # Every place can be taken, and what needs no GPU has a core besides.
    offered = max(num_cores, places) + 1 if cores == "all" else num_cores
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    at_once = min(places, offered)
    sentence = (
        f"{len(gpus)} GPU{'s' * (len(gpus) > 1)} ({names}): {at_once} run{'s' * (at_once > 1)} at once, {count} per GPU"
        f"{how}, each with {cores_per_run} of {num_cores} core{'s' * (num_cores > 1)}"
    )
    return ["--cores", str(offered), "--resources", f"gpu={places}"], environment, sentence


def prepare_cluster(name: str) -> tuple[list[str], str]:
    """Checks that this machine can send the jobs of the graph to a cluster.

    Args:
        name: of the folder in `profiles` that has the settings.

    Returns:
        Options of Snakemake, and the sentence that says what it does.

    Raises:
        ValueError: if there are no such settings, or Snakemake's plugin or the cluster's programs are missing.
    """
    path = CLUSTERS / name / "config.yaml"
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII) or not path.is_file():
        names = ", ".join(sorted(file.parent.name for file in CLUSTERS.glob("*/config.yaml")))
        raise ValueError(f"CLUSTER must be the name of a folder of {CLUSTERS}/ ({names}), not {shown(name)}")
    try:
        executor = yaml.safe_load(path.read_text())["executor"]
        module, program = PLUGINS[executor]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must name the executor, such as `executor: slurm` ({one_line(error)})") from None
    if not find_spec(module):
        raise ValueError(f"CLUSTER={name} needs Snakemake's plugin: .venv/bin/pip install -e '.[{executor}]'")
    if not shutil.which(program):
        raise ValueError(f"CLUSTER={name} needs {program}: use a machine from which jobs can be submitted")
    return ["--workflow-profile", str(path.parent)], f"every run is a job of the cluster, with the settings of {path}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m d3d.study.graph",
        usage="%(prog)s [--cores N] [--runs-per-gpu N] [--cluster NAME] -- snakemake …",
    )
    parser.add_argument("--cores", default="all", help="cores to use (default all)")
    parser.add_argument("--runs-per-gpu", default="", help="runs that share a GPU (default: it depends on MPS)")
    parser.add_argument(
        "--cluster", default="", help="folder of profiles with the settings of a cluster (default: none)"
    )
    # By hand, because Snakemake's options have a second --.
    before = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:before])
    program, *rest = sys.argv[before + 1 :] or parser.error("it needs a command")
    try:
        if args.cluster:
            if args.runs_per_gpu or args.cores != "all":
                path = CLUSTERS / args.cluster / "config.yaml"
                raise ValueError(
                    f"CORES and RUNS_PER_GPU are for this machine: on a cluster, {path} divides cores and GPUs"
                )
            environment: dict[str, str] = {}
            options, sentence = prepare_cluster(args.cluster)
        else:
            options, environment, sentence = prepare(args.cores, args.runs_per_gpu)
    except ValueError as error:
        sys.exit(str(error))
    if sentence:
        print(sentence, flush=True)
    inherited = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    os.execvpe(program, [program, *options, *rest], inherited | environment)


if __name__ == "__main__":
    main()
