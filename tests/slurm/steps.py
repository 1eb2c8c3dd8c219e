"""What the steps of the test are made of: a study in a copy of the repository, and its jobs."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("d3d", "notebooks", "book", "profiles", "Makefile", "Snakefile", "pyproject.toml", "requirements.lock")
# Every rule has jobs, and training lasts long enough to be stopped half-way.
TOY = {"extends": "smoke", "seeds": [0], "arms": ["rgb", "flow", "rgb_longer", "d3d"], "ablations": []}
TOY |= {"frames": 4, "size": 16, "width": 0.1, "train_clips": 64, "test_clips": 64, "batch_size": 16, "epochs": 60}
TOY |= {"students": {"epochs": 60}, "steps": 2, "clips": 4, "leak_clips": 16}
HALF_WAY = 15  # rows of metrics, one per epoch
# profiles/slurm as this cluster needs it: it has no accounting, and its GPUs are divided into shards.
SETTINGS = {
    "slurm-status-command": "squeue",
    "slurm-init-seconds-before-status-checks": 1,
    "seconds-between-status-checks": 1,
}
RESOURCES = {"slurm_partition": "main", "mem_mb": 4000}
PATIENCE = 600.0
TIMINGS = re.compile(r"seconds/.*|ms|ratio")  # metrics that are no results
OF_JOBS = re.compile(r"--mode remote|papermill|ipykernel|d3d\.")  # commands of the processes of jobs
BEGAN = time.monotonic()


class Failure(Exception):
    """A step did not end as it should; the message says how."""


def say(text: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:4.0f} s] {text}", flush=True)


def output(*command: str, **kwargs: Any) -> str:
    """Runs a command and returns what it prints; raises Failure with its errors if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    if done.returncode:
        raise Failure(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def wait_for(what: str, value: Callable[[], Any], alive: subprocess.Popen | None = None) -> Any:
    """Waits until a function returns something, and returns it; raises Failure if a process ends before."""
    until = time.monotonic() + PATIENCE
    while not (result := value()):
        if time.monotonic() > until:
            raise Failure(f"{what}: not within {PATIENCE:.0f} s")
        if alive is not None and alive.poll() is not None and not value():
            raise Failure(f"{what}: make ended before, with {alive.returncode}")
        time.sleep(0.1)
    return result


class Study:
    """A copy of the repository in which make runs a study; ends what it started when the context does.

    Args:
        folder: of the copy.
        profile: of the study; empty: a small one, for this test.
        resources: of rules, beside those of profiles/slurm.
    """

    def __init__(self, folder: Path, profile: str, resources: dict[str, dict[str, Any]]) -> None:
        self.folder, self.profile, self.resources = folder, profile or "toy", resources
        self.results = folder / "results" / self.profile
        self.started: list[subprocess.Popen] = []

    def __enter__(self):
        self.folder.mkdir()
        for name in COPIED:
            if (ROOT / name).is_dir():
                skipped = shutil.ignore_patterns(
                    "__pycache__", *(["_build", "chapters", "generated"] * (name == "book"))
                )
                shutil.copytree(ROOT / name, self.folder / name, ignore=skipped)
            else:
                shutil.copy(ROOT / name, self.folder)
        # The environment of this process, with a lock of its own.
        (self.folder / ".venv").mkdir()
        for path in Path(sys.prefix).iterdir():
            if path.name != "lock":
                (self.folder / ".venv" / path.name).symlink_to(path)
        (self.folder / ".venv/lock").touch()
        (self.folder / "notebooks/params/toy.yaml").write_text(yaml.safe_dump(TOY | {"save_every": 1.0}))
        settings = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text()) | SETTINGS
        settings["default-resources"] |= RESOURCES
        settings["set-resources"] = self.resources
        settings["set-threads"] = dict.fromkeys(self.resources, 1)
        (self.folder / "profiles/test").mkdir()
        (self.folder / "profiles/test/config.yaml").write_text(yaml.safe_dump(settings))
        return self

    def __exit__(self, *_) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for run in self.started:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands, without what `make test-slurm` would hand on to another make."""
        return {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}

    def make(self, *arguments: str) -> subprocess.Popen:
        """Starts `make study` in a session of its own, and prints what it prints."""
        run = subprocess.Popen(
            ["make", "study", f"PROFILE={self.profile}", *arguments], cwd=self.folder, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.started.append(run)
        threading.Thread(target=_print_lines, args=(run,), daemon=True).start()
        return run

    def finish(self, run: subprocess.Popen) -> None:
        """Waits for `make study`; raises Failure if it fails."""
        if run.wait():
            raise Failure(f"make study ended with {run.returncode}")

    def job_of(self, path: Path) -> str:
        """The number of the job of a run that SLURM knows, waiting or running; empty if there is none."""
        wanted = f"rule_{path.parent.name}_wildcards_{path.name.replace('-seed', '_')}"
        lines = [line.split() for line in output("squeue", "-h", "-o", "%i %k").splitlines()]
        return next((number for number, comment in lines if comment == wanted), "")

    def is_half_way(self, path: Path) -> bool:
        """Whether a run trains, and has saved a state from which it can resume."""
        rows = Path(f"{path}.jsonl")
        states = list(Path(f"{path}.state").glob("*.safetensors"))
        return bool(states and rows.exists() and len(rows.read_text().splitlines()) >= HALF_WAY and self.training(path))

    def is_resumed(self, path: Path) -> bool:
        log = path.with_suffix(".log")
        return log.exists() and "resuming after step" in log.read_text()

    def training(self, path: Path) -> int | None:
        """The process that trains a run."""
        config = str(path.relative_to(self.folder)) + ".yaml"
        return next(
            (pid for pid, command in self.processes().items() if f"-m d3d.train --config {config}" in command), None
        )

    def environment_of(self, path: Path) -> dict[str, str]:
        """The environment of the process that trains a run."""
        content = Path(f"/proc/{self.training(path)}/environ").read_text()
        return dict(entry.split("=", 1) for entry in content.split("\0") if "=" in entry)

    def processes(self) -> dict[int, str]:
        """The processes of the study's jobs that run in its folder, and their commands."""
        running = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_text().replace("\0", " ")
                is_of_study = os.readlink(folder / "cwd") == str(self.folder)
                if is_of_study and OF_JOBS.search(command):
                    running[int(folder.name)] = command
            except OSError:  # it has ended
                continue
        return running

    def contents(self) -> dict[str, Any]:
        """The metrics of every record, without timings, and the bytes of all weights, by path."""
        contents: dict[str, Any] = {}
        for path in self.results.rglob("*.json"):
            metrics = json.loads(path.read_text())["metrics"]
            contents[str(path.relative_to(self.results))] = {
                k: v for k, v in metrics.items() if not TIMINGS.fullmatch(k)
            }
        for path in self.results.glob("*/*.safetensors"):
            contents[str(path.relative_to(self.results))] = path.read_bytes()
        return contents


def _print_lines(run: subprocess.Popen) -> None:
    for line in run.stdout:
        print(f"         | {line}", end="", flush=True)
