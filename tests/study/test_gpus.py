"""GPUs that runs share, listed by a program that stands in for nvidia-smi."""

import os
import select
import signal
import subprocess
import sys

import pytest

from d3d.study import gpus
from tests.conftest import ROOT

TWO = """
echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)'
echo 'GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)'
"""
DIVIDED = """
echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)'
echo '  MIG 3g.20gb     Device  0: (UUID: MIG-cccc-1)'
echo '  MIG 4g.20gb     Device  1: (UUID: MIG-dddd-2)'
echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb-2)'
"""


def install(folder, name: str, code: str) -> None:
    """Writes a shell script that stands in for a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{code}")
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose nvidia-smi runs the given shell code, with a value of CUDA_VISIBLE_DEVICES or none."""

    def build(code: str, visible: str | None = None) -> None:
        install(tmp_path / "bin", "nvidia-smi", code)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return build


@pytest.mark.parametrize(
    ("code", "visible", "devices"),
    [
        (TWO, None, ["GPU-aaaa-1", "GPU-bbbb-2"]),
        (TWO, "1", ["1"]),
        (TWO, "1, 0", ["1", "0"]),
        (TWO, "GPU-bbbb-2,GPU-aaaa-1", ["GPU-bbbb-2", "GPU-aaaa-1"]),
        (TWO, "GPU-b", ["GPU-b"]),
        (TWO, "GPU-", []),  # which of the two?
        (TWO, "0,2,1", ["0"]),
        (TWO, "0,-1,1", ["0"]),
        (TWO, "", []),
        (TWO, "none", []),
        (DIVIDED, None, ["MIG-cccc-1", "MIG-dddd-2", "GPU-bbbb-2"]),
        (DIVIDED, "MIG-dddd-2", ["MIG-dddd-2"]),
        (DIVIDED, "MIG-GPU-aaaa-1/1/0", ["MIG-GPU-aaaa-1/1/0"]),
        ("echo 'No devices were found'", None, []),
        ("echo 'No devices were found'", "0", []),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "0,1", []),
    ],
)
def test_the_gpus_that_cuda_would_see_are_listed(machine, code, visible, devices):
    machine(code, visible)
    assert [gpu.device for gpu in gpus.find_gpus()] == devices


def test_their_names_are_those_of_the_hardware(machine):
    machine(TWO, "GPU-b")
    assert gpus.find_gpus() == [gpus.Gpu("GPU-b", "NVIDIA H100 80GB HBM3")]
    machine(DIVIDED)
    assert gpus.find_gpus()[0] == gpus.Gpu("MIG-cccc-1", "NVIDIA A100-SXM4-40GB 3g.20gb")


def test_a_driver_that_is_absent_or_hangs_has_no_gpus(machine, tmp_path, monkeypatch):
    machine("exec sleep 600")
    monkeypatch.setattr(gpus, "SECONDS_TO_LIST", 0.2)
    assert gpus.find_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.find_gpus() == []


class Jobs:
    """Jobs that print their GPUs and run until they are killed, each in a session of its own."""

    def __init__(self, folder, devices: str, runs_per_gpu: int) -> None:
        self.folder, self.started = folder, []
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.environment |= {"D3D_GPUS": devices, "D3D_RUNS_PER_GPU": str(runs_per_gpu)}

    def start(self, count: int = 1, code: str = "sleep 600") -> subprocess.Popen:
        job = subprocess.Popen(
            [sys.executable, "-m", "d3d.study.gpus", str(count), "sh", "-c", f"echo $CUDA_VISIBLE_DEVICES; {code}"],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.started.append(job)
        return job

    def gpu_of_new(self, count: int = 1, code: str = "sleep 600") -> str:
        """Starts a job and returns its GPUs."""
        return self.start(count, code).stdout.readline().strip()

    def end(self) -> None:
        for job in self.started:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            job.stdout.close()


@pytest.fixture
def jobs(tmp_path):
    """Builds the jobs of a machine from its GPUs and the number of runs per GPU."""
    built = []

    def build(devices: str, runs_per_gpu: int) -> Jobs:
        built.append(Jobs(tmp_path, devices, runs_per_gpu))
        return built[-1]

    yield build
    for each in built:
        each.end()


def waits(job) -> bool:
    """Whether a job has not got its GPUs within a second, in which it has long started."""
    printed, *_ = select.select([job.stdout], [], [], 1.0)
    return not printed and job.poll() is None


def test_runs_are_spread_evenly_and_no_gpu_has_more_than_its_share(jobs):
    machine = jobs("GPU-a,GPU-b", 2)
    assert [machine.gpu_of_new() for _ in range(4)] == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]
    late = machine.start()
    assert waits(late)
    on_b = machine.started[1]
    os.killpg(on_b.pid, signal.SIGKILL)
    assert late.stdout.readline() == "GPU-b\n"


def test_a_killed_job_frees_its_gpu_when_its_programs_have_ended(jobs):
    """Not before: a program that survives its shell may still use the GPU."""
    machine = jobs("GPU-a", 1)
    job = machine.start(code="sleep 600 & echo $!; wait")
    assert job.stdout.readline() == "GPU-a\n"
    program = int(job.stdout.readline())
    late = machine.start()
    job.kill()
    job.wait()
    assert waits(late)
    os.kill(program, signal.SIGKILL)
    assert late.stdout.readline() == "GPU-a\n"


def test_a_run_of_several_processes_gets_as_many_gpus(jobs):
    machine = jobs("GPU-a,GPU-b,GPU-c", 1)
    assert machine.gpu_of_new() == "GPU-a"
    assert machine.gpu_of_new(2) == "GPU-b,GPU-c"
    late = machine.start(2)
    assert waits(late)
    later = machine.start()
    os.killpg(machine.started[0].pid, signal.SIGKILL)
    # The one free GPU is kept for the run that came first.
    assert waits(later)
    os.killpg(machine.started[1].pid, signal.SIGKILL)
    assert late.stdout.readline() == "GPU-a,GPU-b\n"
    assert later.stdout.readline() == "GPU-c\n"


def test_a_run_of_more_processes_than_gpus_gets_all(jobs):
    """Training then says that it needs more."""
    assert jobs("GPU-a,GPU-b", 2).gpu_of_new(5) == "GPU-a,GPU-b"


def test_the_exit_status_is_that_of_the_command(jobs):
    job = jobs("GPU-a", 1).start(code="exit 3")
    assert job.communicate()[0] == "GPU-a\n"
    assert job.returncode == 3
