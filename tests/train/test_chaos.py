"""Runs on video files, killed at random moments, and with full disks: nothing is left behind and nothing is lost.

A run that is killed, stopped, or loses a worker or the workers' server ends at once with all its processes; the same
command then resumes it, and it ends with the bits of a run that was never interrupted.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.flow.test_extract import moving_video
from tests.train.test_survival import ONE_THREAD, children, outcome, processes, resumed_at, write_config

pytestmark = pytest.mark.slow

# Only tells what hangs from what works.
HANGS_AFTER = 120.0  # seconds
KILLS_PER_RUN = 6


class Running:
    """A run in a session of its own, whose output goes to a file.

    Args:
        config: path of its configuration.
        log: file of its output.
        within: command that starts the run's command.
    """

    def __init__(self, config: str, log: Path, within: tuple[str, ...] = ()) -> None:
        self.log = log
        command = [*within, sys.executable, "-m", "d3d.train", "--config", config]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=os.environ | ONE_THREAD, start_new_session=True
            )

    def wait_for(self, text: str, count: int = 1) -> bool:
        """Waits until the output has a text so often; False if the run ends before."""
        deadline = time.monotonic() + HANGS_AFTER
        while self.log.read_text().count(text) < count:
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"no {text!r}: {self.log.read_text()}"
            time.sleep(0.02)
        return True

    def end(self) -> int:
        """Waits for the end of the run and of all processes of its session, and returns its exit status."""
        try:
            code = self.process.wait(HANGS_AFTER)
            deadline = time.monotonic() + 20
            while (left := of_session(self.process.pid)) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        assert not left, f"exit {code}, but {left} are left: {self.log.read_text()}"
        return code


def of_session(session: int) -> dict[int, str]:
    """The processes of a session, by id."""
    commands = {}
    for pid, _, its_session in processes():
        if its_session == session:
            with suppress(OSError):  # it has ended since
                commands[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return commands


def workers_of(run: Running) -> list[int]:
    """The processes that decode, and maybe others that the workers' server has started."""
    return [pid for child in children(run.process.pid) for pid in children(child)]


def kill_run(run: Running) -> set[int]:
    run.process.kill()
    return {-signal.SIGKILL}


def kill_group(run: Running) -> set[int]:
    os.killpg(run.process.pid, signal.SIGKILL)
    return {-signal.SIGKILL}


def stop_run(run: Running) -> set[int]:
    run.process.terminate()
    return {128 + signal.SIGTERM}


def stop_group(run: Running) -> set[int]:
    os.killpg(run.process.pid, signal.SIGINT)
    return {128 + signal.SIGINT}


def kill_worker(run: Running) -> set[int]:
    if not (workers := workers_of(run)):
        return kill_run(run)
    os.kill(random.choice(workers), signal.SIGKILL)
    return {1, 0}  # 0: no clip was left to decode


def kill_server(run: Running) -> set[int]:
    """Kills the process that starts workers; those at work may still finish."""
    os.kill(max(children(run.process.pid), default=run.process.pid), signal.SIGKILL)
    return {1, 0, -signal.SIGKILL}


def fill_disk(run: Running) -> set[int]:
    """Lets no file grow, as on a full disk, nor shared memory, then kills the run."""
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (0, 0))
    time.sleep(random.uniform(0.1, 1.0))
    return kill_run(run) | {1}  # 1: its workers were just starting, which takes shared memory


ACTIONS = [kill_run, kill_group, stop_run, stop_group, kill_worker, kill_server, fill_disk]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for label in range(2):
        for i in range(8):
            moving_video(folder / f"{label}/{i}.avi", label + 1, frames=8)
    return folder


def config(folder, videos, **parameters):
    files = {"dataset": "folder", "root": str(videos), "workers": 2, "batch_size": 4, "epochs": 12, "flow": "tvl1"}
    return write_config(folder, **files | {"memory": "no"} | parameters)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, videos):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = Running(config(folder, videos), folder / "log")
    assert run.end() == 0, run.log.read_text()
    return comparable(folder)


def comparable(folder):
    return {k: v for k, v in outcome(folder).items() if k != "params"}


@pytest.mark.parametrize("memory", ["no", "yes"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_at_random_moments_leaves_nothing_and_loses_nothing(tmp_path, videos, uninterrupted, memory, seed):
    random.seed(f"{memory} {seed}")
    # Every action comes once or twice in the four runs, in random order.
    actions = random.sample(ACTIONS, KILLS_PER_RUN)
    steps = []
    for number, action in enumerate(actions):
        run = Running(config(tmp_path, videos, memory=memory), tmp_path / f"log{number}")
        # Sometimes before the first step, during the start of the workers.
        moment = random.choice(["", "clips;", "epoch", "epoch"])
        time.sleep(random.uniform(0, 4)) if not moment else run.wait_for(moment, random.randint(1, 2))
        time.sleep(random.uniform(0, 0.2))
        expected = {0} if run.process.poll() is not None else action(run)
        code = run.end()
        log = run.log.read_text()
        assert code in expected | {0, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGINT}, log
        assert "Traceback" not in log or moment == "", log
        steps += resumed_at(log)
    last = Running(config(tmp_path, videos, memory=memory), tmp_path / "log")
    assert last.end() == 0, last.log.read_text()
    steps += resumed_at(last.log.read_text())
    assert steps == sorted(steps)
    assert comparable(tmp_path) == uninterrupted
    assert [path.name for path in sorted((tmp_path / "run/train").iterdir())] == [
        f"rgb-seed0.{kind}" for kind in ("json", "jsonl", "npz", "safetensors")
    ]


def test_a_full_file_system_loses_nothing(tmp_path, videos, uninterrupted):
    """A file system of eight megabytes, filled by another program, holds the results and the log."""
    small = tmp_path / "small"
    small.mkdir()
    keep = 'code=$?; cp -r "$0/." "$0-copy"; exit $code'
    script = f'mount -t tmpfs -o size=8m tmpfs "$0" && {{ "$@" > "$0/log" 2>&1; {keep}; }}'
    within = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, str(small))
    if subprocess.run([*within, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system mounts no file system for a test")
    shutil.rmtree(small.with_name("small-copy"))
    run = Running(config(tmp_path, videos, results=str(small / "run"), save_every=1.0), tmp_path / "unused", within)
    inside = Path(f"/proc/{run.process.pid}/root{small}")  # the file system as the run sees it
    run.log = inside / "log"
    while not run.log.exists():
        time.sleep(0.02)
    assert run.wait_for("epoch")
    filler = inside / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    time.sleep(20)  # it is trained by then, unless this machine is slow, which makes the test easier
    assert run.process.poll() is None
    assert not (inside / "run/train/rgb-seed0.json").exists()
    filler.unlink()
    assert run.end() == 0
    copy = small.with_name("small-copy")
    assert {**comparable(copy), "rows": None} == {**uninterrupted, "rows": None}
    assert "the results are written, after " in (copy / "log").read_text()
