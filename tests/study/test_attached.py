"""Commands that end with another process."""

import os
import signal
import subprocess
import sys

from tests.conftest import ROOT

SLEEP = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(600)"]


def attached(pid, command, **kwargs):
    command = [sys.executable, "-m", "d3d.study.attached", str(pid), *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **kwargs)


def test_the_exit_status_is_that_of_the_command():
    for code in (0, 3):
        job = attached(os.getpid(), [sys.executable, "-c", f"raise SystemExit({code})"])
        assert job.communicate() == ("", None)
        assert job.returncode == code


def test_a_command_ends_with_the_process_that_it_is_attached_to():
    graph = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL)
    job = attached(graph.pid, SLEEP)
    assert job.stdout.readline() == "started\n"
    graph.kill()
    graph.wait()
    assert job.stdout.read() == ""  # ends with the last process
    assert job.wait() == 128 + signal.SIGTERM
    job.stdout.close()


def test_it_passes_sigterm_on():
    job = attached(os.getpid(), SLEEP)
    assert job.stdout.readline() == "started\n"
    job.terminate()
    assert job.stdout.read() == ""
    assert job.wait() == 128 + signal.SIGTERM
    job.stdout.close()


def test_it_waits_for_what_a_killed_command_has_started(tmp_path):
    """As training that saves its state when SLURM ends all processes of a job: the notebook's ends first."""
    saved = tmp_path / "saved"
    job = attached(os.getpid(), ["bash", "-c", f"(trap '' TERM; sleep 1; touch {saved}) & kill $$"])
    assert job.wait() == 128 + signal.SIGTERM
    assert saved.exists()
    job.stdout.close()


def test_it_does_not_wait_after_an_end_of_its_own(tmp_path):
    job = attached(os.getpid(), ["bash", "-c", "sleep 600 > /dev/null & echo $!; exit 3"])
    left = int(job.stdout.readline())
    assert job.wait() == 3
    os.kill(left, signal.SIGKILL)
    job.stdout.close()
