"""Training across two hosts: the result of one host, a host that is lost and back, and one run started on both."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.train.hosts import TwoHosts, require_hosts, torchrun
from tests.train.test_survival import children, finish, outcome, resumed_at, without_params, write_config

pytestmark = pytest.mark.slow

SIZES = {"batch_size": 16, "epochs": 12}
# Only tells what hangs from what works: collectives would wait for ten minutes.
HANGS_AFTER = 120.0  # seconds


@pytest.fixture(autouse=True, scope="module")
def _hosts():
    require_hosts()


@pytest.fixture(scope="module")
def one_host(tmp_path_factory):
    """Two processes on one host."""
    folder = tmp_path_factory.mktemp("one_host")
    finish(write_config(folder, **SIZES), processes=2)
    return without_params(outcome(folder))


def alone(config: str) -> str:
    """The command that trains in one process, without the other host."""
    variables = "OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1"
    return f"cd {Path.cwd()} && exec env {variables} {sys.executable} -m d3d.train --config {config}"


def test_two_hosts_train_to_the_bits_of_one(tmp_path, one_host):
    config = write_config(tmp_path, **SIZES)
    with TwoHosts(tmp_path, {name: torchrun(name, config) for name in "ab"}) as hosts:
        assert [hosts.end(name) for name in "ab"] == [0, 0], hosts.log("a") + hosts.log("b")
        assert "on 2 x cpu" in hosts.log("a")
    assert without_params(outcome(tmp_path)) == one_host


@pytest.mark.parametrize(("lost", "cut"), [("a", True), ("b", True), ("b", False)])
def test_a_lost_host_ends_the_other_and_comes_back(tmp_path, one_host, lost, cut):
    """Cut off without a word, or killed with the cable still there; host a has the rendezvous and the lease."""
    config = write_config(tmp_path, **SIZES)
    commands = {name: torchrun(name, config) for name in "ab"}
    left = "b" if lost == "a" else "a"
    with TwoHosts(tmp_path, commands) as hosts:
        hosts.wait_for("a", "epoch   2/")
        if cut:
            hosts.cut_cable()
        hosts.kill(lost)
        began = time.monotonic()
        assert hosts.end(left) != 0
        assert time.monotonic() - began < HANGS_AFTER
        rank, name = (0, "hosta") if lost == "a" else (1, "hostb")
        sentence = next(line for line in hosts.log(left).splitlines() if line.startswith("d3d train: "))
        assert re.fullmatch(
            rf"d3d train: process {rank} on {name} (is lost: it has sent nothing for 30 s|has ended, and its output "
            r"may say why); run the same command again on every host to resume",
            sentence,
        )
    assert not (tmp_path / "run/train/rgb-seed0.json").exists()
    with TwoHosts(tmp_path, commands) as hosts:
        assert [hosts.end(name) for name in "ab"] == [0, 0], hosts.log("a") + hosts.log("b")
        assert resumed_at(hosts.log("a"))
    assert without_params(outcome(tmp_path)) == one_host


def test_a_run_that_was_started_on_both_hosts_is_refused_on_one(tmp_path):
    """The second is told who trains it; the first does not notice."""
    config = write_config(tmp_path, epochs=4000)
    starts_second = f"while ! grep -q 'epoch   2/' {tmp_path}/a.log; do sleep 0.1; done; {alone(config)}"
    with TwoHosts(tmp_path, {"a": alone(config), "b": starts_second}) as hosts:
        hosts.wait_for("a", "epoch   2/")
        before = {path.name for path in (tmp_path / "run/train").iterdir()}
        assert hosts.end("b") == 1
        sentence = hosts.log("b").strip().splitlines()[-1]
        assert re.fullmatch(
            rf"d3d train: {tmp_path}/run/train/rgb-seed0\.state belongs to another run of the same command, process "
            r"\d+ on hosta, since [-\d]+ [:\d]+ UTC: let it finish, or choose another folder by `results`",
            sentence,
        )
        assert hosts.is_up("a")
        assert "taken over" not in hosts.log("a")
        assert {path.name for path in (tmp_path / "run/train").iterdir()} == before


def test_a_host_that_stood_still_finds_its_run_taken_and_writes_nothing(tmp_path):
    finish(write_config(tmp_path, "expected", **SIZES))
    config = write_config(tmp_path, **SIZES)
    starts_second = f"while ! grep -q 'epoch   2/' {tmp_path}/a.log; do sleep 0.1; done; {alone(config)}"
    with TwoHosts(tmp_path, {"a": alone(config), "b": starts_second}) as hosts:
        hosts.wait_for("a", "epoch   2/")
        ((stopped,),) = ([c for shell in children(hosts.pids["a"]) for c in children(shell)],)
        os.kill(stopped, signal.SIGSTOP)
        assert hosts.end("b") == 0, hosts.log("b")
        assert resumed_at(hosts.log("b"))
        assert "is held by process" in hosts.log("b")
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
        os.kill(stopped, signal.SIGCONT)
        assert hosts.end("a") == 1
        assert "was taken over, after this process had stood still for 30 s" in hosts.log("a").splitlines()[-1]
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == written
    assert without_params(outcome(tmp_path)) == without_params(outcome(tmp_path, "expected"))
