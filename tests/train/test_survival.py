"""Real processes that are killed, stopped, starved of disk or torn from their team, and what is left of their runs."""

import hashlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from d3d.progress import read_metrics
from d3d.study import records
from d3d.train import command
from d3d.train.states import States
from tests.flow.test_extract import moving_video

TINY = {"frames": 4, "size": 16, "train_clips": 64, "test_clips": 32, "epochs": 4, "batch_size": 8, "width": 0.1}
TINY |= {"flow": "exact", "save_every": 1e-6}  # a state after every step
STEPS = 32
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
# Runs d3d.train with one function replaced by what the test says.
WITH = """import os, runpy, signal, sys
{}
sys.argv = ['train', '--config', {!r}]
runpy.run_module('d3d.train', run_name='__main__')
"""


def config(tmp_path, name="run", **given):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(TINY | {"results": str(tmp_path / name)} | given))
    return str(path)


def start(path, *, code="", processes=1, **kwargs):
    command = [sys.executable, "-c", WITH.format(code, path)] if code else [sys.executable, "-m", "d3d.train"]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *torchrun, "-m", "d3d.train"]
    command += [] if code else ["--config", path]
    return subprocess.Popen(
        command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def finish(path, **kwargs):
    run = start(path, **kwargs)
    out, err = run.communicate()
    assert run.returncode == 0, err[-3000:]
    return out


def outcome(tmp_path, name="run", arm="rgb"):
    """All that a run leaves, but for times and places."""
    base = tmp_path / name / "train" / f"{arm}-seed0"
    record = records.read(base.with_suffix(".json"))
    rows = [row for row in read_metrics(base.with_suffix(".jsonl")) if "clips_per_second" in row]
    return {
        "metrics": {k: v for k, v in record.metrics.items() if not k.startswith("seconds/")},
        "params": {k: v for k, v in record.params.items() if k != "results"},
        "arrays": record.arrays,
        "weights": hashlib.sha256(base.with_suffix(".safetensors").read_bytes()).hexdigest(),
        "rows": [{k: v for k, v in row.items() if k not in ("time", "clips_per_second")} for row in rows],
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(config(folder))
    assert not (folder / "run/train/rgb-seed0.state").exists()
    return outcome(folder)


@pytest.fixture
def _own_signals():
    """The program takes SIGTERM and Ctrl-C for its own; the tests want them back."""
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def children(pid):
    """Processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def resumed_at(out):
    return [int(line.split()[4]) for line in out.splitlines() if line.startswith("going on after step")]


# Kills as hard as the kernel can, at a moment of the third write of a state.
WRITING = {
    "half of it written": """
from d3d.study import records
fsync, calls = os.fsync, []
def half(fd):
    calls.append(fd)
    if len(calls) == 3:
        os.ftruncate(fd, os.fstat(fd).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(fd)
os.fsync = half
""",
    "written, not in its place": """
replace, calls = os.replace, []
def never(a, b):
    calls.append(b)
    if len([c for c in calls if '.state' in str(c)]) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(a, b)
os.replace = never
""",
    "in its place, the old not yet deleted": """
import pathlib
def never(self, **kwargs):
    if self.name.startswith('step'):
        os.kill(os.getpid(), signal.SIGKILL)
    os.unlink(self)
pathlib.Path.unlink = never
""",
}


SLOW = {name: pytest.param(name, marks=pytest.mark.slow) for name in [*WRITING][1:]}


@pytest.mark.parametrize("moment", [None, *(SLOW.get(name, name) for name in WRITING)])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, undisturbed, moment):
    path = config(tmp_path)
    run = start(path, code=WRITING.get(moment, ""))
    if moment is None:
        for line in run.stdout:
            if line.startswith("epoch   2/4"):
                break
        run.kill()
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not list((tmp_path / "run").rglob("*.json"))
    (after,) = resumed_at(finish(path))
    assert 0 < after <= STEPS
    assert outcome(tmp_path) == undisturbed


EVALUATING = """
from d3d.train import evaluate
def never(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
evaluate.predict = never
"""
RECORDING = """
from d3d.train import states
def never(self):
    os.kill(os.getpid(), signal.SIGKILL)
states.States.clear = never
"""


@pytest.mark.parametrize("code", [EVALUATING, pytest.param(RECORDING, marks=pytest.mark.slow)])
def test_a_run_killed_after_its_last_step_is_only_finished(tmp_path, undisturbed, code):
    """While it is scored, or between its record and the end; training took less than a state's interval."""
    path = config(tmp_path, save_every=1e6)
    start(path, code=code).communicate()
    assert (tmp_path / "run/train/rgb-seed0.json").exists() == (code is RECORDING)
    out = finish(path)
    assert resumed_at(out) == ([] if code is RECORDING else [STEPS])
    found = outcome(tmp_path)
    assert {k: v for k, v in found.items() if k != "params"} == {k: v for k, v in undisturbed.items() if k != "params"}


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_group_that_is_stopped_saves_with_files_too(tmp_path, signum):
    """Ctrl-C and the ends of jobs reach the processes that decode as well."""
    for label in range(2):
        for i in range(6):
            moving_video(tmp_path / f"videos/{label}/{i}.avi", label + 1, frames=8)
    files = {"dataset": "folder", "root": str(tmp_path / "videos"), "workers": 1, "batch_size": 4, "epochs": 3}
    finish(config(tmp_path, "left", **files, flow="tvl1"))
    path = config(tmp_path, **files, flow="tvl1", save_every=1e6)
    run = start(path, start_new_session=True)
    for line in run.stdout:
        if line.startswith("epoch   1/"):
            break
    os.killpg(run.pid, signum)
    _, err = run.communicate(timeout=60)
    assert f"stopped by {signum.name} after step" in err
    assert resumed_at(finish(path))
    ran, left = outcome(tmp_path), outcome(tmp_path, "left")
    assert {k: v for k, v in ran.items() if k != "params"} == {k: v for k, v in left.items() if k != "params"}


@pytest.mark.slow
def test_kills_at_any_step_and_again_and_again(tmp_path, undisturbed):
    """Up to eight kills of one run at moments nobody chose, until one comes after its record."""
    path, seen = config(tmp_path), []
    record = tmp_path / "run/train/rgb-seed0.json"
    for i in range(8):
        run = start(path)
        first = run.stdout.readline()
        time.sleep(0.05 * (1 + i))
        run.kill()
        seen += resumed_at(first + run.communicate()[0])
        if record.exists():
            break
    else:
        seen += resumed_at(finish(path))
    assert seen
    assert seen == sorted(seen)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_saves_first(tmp_path, undisturbed, signum):
    path = config(tmp_path, save_every=1e6)
    run = start(path)
    for line in run.stdout:
        if line.startswith("epoch   1/4"):
            break
    run.send_signal(signum)
    _, err = run.communicate()
    assert run.returncode == 128 + signum
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith(f"d3d train: stopped by {signum.name} after step ")
    after = int(sentence.split("after step ")[1].split()[0])
    assert f" of 32; the last good state is {tmp_path}/run/train/rgb-seed0.state/step{after:09d}.safe" in sentence
    assert sentence.endswith(", start it again to go on")
    assert resumed_at(finish(path)) == [after]
    found = outcome(tmp_path)
    assert found.pop("params")["save_every"] == 1e6
    assert found == {k: v for k, v in undisturbed.items() if k != "params"}


def stopped(tmp_path, **given):
    """A run that was stopped in its second epoch."""
    run = start(config(tmp_path, **given))
    for line in run.stdout:
        if line.startswith("epoch   1/"):
            break
    run.terminate()
    run.communicate()
    return tmp_path / "run/train/rgb-seed0.state"


def failure(path, **kwargs):
    run = start(path, **kwargs)
    _, err = run.communicate()
    assert run.returncode not in (0, None)
    return err.strip().splitlines()[-1]


@pytest.mark.slow
def test_another_config_is_refused_and_nothing_lost(tmp_path):
    folder = stopped(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    sentence = failure(config(tmp_path, learning_rate=0.07, epochs=5))
    assert "was saved with epochs 4, learning_rate 0.03; this run has epochs 5, learning_rate 0.07: " in sentence
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    # What changes nothing may change.
    assert resumed_at(finish(config(tmp_path, save_every=50.0)))


@pytest.mark.slow
def test_a_damaged_state_is_left_out(tmp_path, undisturbed):
    newest, *_ = sorted(stopped(tmp_path).iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0")
    out = finish(config(tmp_path))
    assert f"{newest.name} is damaged: its content does not match its checksum; going on from the state" in out
    assert outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path, undisturbed):
    """States are three times as large as the disk has room for; the run goes on, and so does the next from the last."""
    folder = stopped(tmp_path)
    newest = sorted(folder.iterdir())[-1].name
    small = 100_000

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))

    run = start(config(tmp_path), preexec_fn=limit)
    out, err = run.communicate()
    assert run.returncode == 1
    assert (
        "could not be written and any previous file is untouched: File too large; going on, the last good state is "
        in out
    )
    assert newest in out
    assert "rgb-seed0.safetensors could not be written and any previous file is untouched" in err.splitlines()[-1]
    assert newest in {p.name for p in folder.iterdir()}
    assert not list((tmp_path / "run").rglob("*.json"))
    assert resumed_at(finish(config(tmp_path)))
    assert outcome(tmp_path) == undisturbed


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(tmp_path):
    (tmp_path / "run").write_text("a file")
    sentence = failure(config(tmp_path))
    assert sentence.startswith("d3d train: ")
    assert f"{tmp_path}/run" in sentence


def test_a_loss_that_is_not_finite_names_the_last_good_state(tmp_path):
    sentence = failure(config(tmp_path, learning_rate=1e12, warmup=0.9))
    assert "is not finite " in sentence
    assert "lower learning_rate" in sentence
    states = States(tmp_path / "run/train/rgb-seed0.state", {}, print)
    assert (
        f"the last good state is {states.paths()[0]}" if states.paths() else "no state was saved before"
    ) in sentence


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("learning_rat: 0.1", "'learning_rat' is no parameter of 'train', which takes "),
        ("experiment: fuse", "must be one of train, distill, not 'fuse'"),
        ("- 1", "must map parameters to values"),
        ("a: [", "is no YAML file: "),
        ("epochs: 0", "epochs must be at least 1, not 0"),
        ("results: 2024-05-01", "sets 'results' to datetime.date(2024, 5, 1): it must map parameters to values"),
        ("1: 2", "sets 1 to 2: it must map"),
        ("_epochs: 5", "sets '_epochs' to 5: it must map"),
        ("experiment: [train]", "experiment in "),
        (None, "No such file"),
    ],
)
@pytest.mark.usefixtures("_own_signals")
def test_what_is_wrong_with_a_config_is_one_sentence(tmp_path, capsys, content, expected):
    path = tmp_path / "wrong.yaml"
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit, match="1"):
        command.main(["--config", str(path)])
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("d3d train: ")
    assert expected in sentence


@pytest.mark.slow
def test_a_run_ends_with_who_follows_it(tmp_path):
    """As where the kernel of a notebook is killed."""
    follower = subprocess.Popen(["sleep", "60"])
    path = config(tmp_path, epochs=4000)
    run = subprocess.Popen(
        [sys.executable, "-m", "d3d.train", "--config", path],
        env=os.environ | ONE_THREAD | {"D3D_FOLLOWER": str(follower.pid)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run.stdout.readline()
    run.stdout.readline()
    follower.kill()
    follower.wait()
    _, err = run.communicate()
    assert "stopped by SIGTERM after step" in err


class TestTeam:
    def apart(self, a, b):
        """By name the largest difference of what two runs predict and of their losses; not of top-1: where all classes
        are about as likely, the last digit decides."""
        left, right = (records.read_arrays(p, records.read(p / "train/rgb-seed0.json")) for p in (a, b))
        names = [name for name in left if name.startswith("logits/") or name == "curve/loss"]
        return {name: float(np.abs(left[name] - right[name]).max()) for name in names}

    def test_two_processes_give_what_one_gives(self, tmp_path):
        """At the same batch of all: the clips, the masks, the statistics and the gradients are those of one process."""
        sizes = {"batch_size": 16, "epochs": 2, "learning_rate": 0.01, "dropout": 0.5}
        finish(config(tmp_path, "one", **sizes))
        out = finish(config(tmp_path, "two", **sizes, sync_norm=True), processes=2)
        assert "on 2 x cpu" in out
        apart = self.apart(tmp_path / "one", tmp_path / "two")
        assert max(apart.values()) < 1e-4
        record = records.read(tmp_path / "two/train/rgb-seed0.json")
        assert record.params["sync_norm"] is True
        assert record.provenance["processes"] == 2

    @pytest.mark.slow
    def test_unsynchronised_they_are_one_that_accumulates(self, tmp_path):
        """But for running statistics, which two processes average and one follows in turn: so training curves alone."""
        sizes = {"batch_size": 16, "epochs": 2, "learning_rate": 0.01}
        finish(config(tmp_path, "one", **sizes, accumulate=2))
        finish(config(tmp_path, "two", **sizes), processes=2)
        apart = self.apart(tmp_path / "one", tmp_path / "two")
        assert apart["curve/loss"] < 1e-4

    @pytest.mark.slow
    def test_a_stopped_team_saves_and_goes_on_to_the_same_bits(self, tmp_path):
        sizes = {"batch_size": 16, "save_every": 1e6}
        finish(config(tmp_path, "left", **sizes), processes=2)
        path = config(tmp_path, "run", **sizes)
        run = start(path, processes=2)
        for line in run.stdout:
            if line.startswith("epoch   1/4"):
                break
        run.terminate()
        _, err = run.communicate()
        assert "stopped by SIGTERM after step" in err
        assert resumed_at(finish(path, processes=2))
        assert outcome(tmp_path) == outcome(tmp_path, "left")

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["killed", "failed"])
    def test_a_dead_rank_ends_the_others_with_its_error(self, tmp_path, how):
        began = time.monotonic()
        run = start(config(tmp_path, epochs=4000, learning_rate=1e30 if how == "failed" else 0.03), processes=2)
        if how == "killed":
            for line in run.stdout:
                if line.startswith("epoch   2/"):
                    break
            began = time.monotonic()
            os.kill(max(children(run.pid)), signal.SIGKILL)
        _, err = run.communicate(timeout=120)
        assert run.returncode != 0
        assert time.monotonic() - began < 60
        assert ("exitcode  : -9" if how == "killed" else "is not finite at step") in err

    @pytest.mark.slow
    def test_a_dead_rank_ends_the_other_host(self, tmp_path):
        """Two launchers of one process each, as on two hosts, that meet at an address."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free.getsockname()[1]}"]
        path = config(tmp_path, epochs=4000, save_every=1e6)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting]
        hosts = [
            subprocess.Popen(
                [*torchrun, "-m", "d3d.train", "--config", path],
                env=os.environ | ONE_THREAD,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(2)
        ]
        log = tmp_path / "run/train/rgb-seed0.jsonl"
        while not any("clips_per_second" in row for row in read_metrics(log)):
            time.sleep(0.2)
        (victim,) = children(hosts[1].pid)
        began = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        said = [host.communicate(timeout=120)[0] for host in hosts]
        assert time.monotonic() - began < 60
        assert all(host.returncode for host in hosts)
        assert "exitcode  : -9" in said[1]
