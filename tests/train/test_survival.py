"""Real training processes that are killed, stopped, out of disk space or lose one of their team, and then resumed."""

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
from tests.flow.test_extract import moving_video

TINY = {"frames": 4, "size": 16, "train_clips": 64, "test_clips": 32, "epochs": 4, "batch_size": 8, "width": 0.1}
TINY |= {"flow": "exact", "save_every": 1e-6}  # a state after every step
STEPS = 32
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
# Runs d3d.train after code that patches it.
PATCHED = """import os, runpy, signal, sys
{}
sys.argv = ['train', '--config', {!r}]
runpy.run_module('d3d.train', run_name='__main__')
"""


def write_config(tmp_path, name="run", **parameters):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(TINY | {"results": str(tmp_path / name)} | parameters))
    return str(path)


def start(path, *, patch="", processes=1, **kwargs):
    command = [sys.executable, "-c", PATCHED.format(patch, path)] if patch else [sys.executable, "-m", "d3d.train"]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *torchrun, "-m", "d3d.train"]
    command += [] if patch else ["--config", path]
    return subprocess.Popen(
        command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


def finish(path, **kwargs):
    run = start(path, **kwargs)
    out, err = run.communicate()
    assert run.returncode == 0, err[-3000:]
    return out


def outcome(tmp_path, name="run", arm="rgb"):
    """Everything that a run writes, except times and paths."""
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


def without_params(outcome):
    return {k: v for k, v in outcome.items() if k != "params"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    finish(write_config(folder))
    assert not (folder / "run/train/rgb-seed0.state").exists()
    return outcome(folder)


@pytest.fixture
def _restored_signals():
    """Restores the handlers of SIGTERM and SIGINT, which the command replaces."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def processes():
    """Yields the id, the parent and the session of every process that has not ended."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since
            state, parent, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if state != "Z":
                yield int(folder.name), int(parent), int(session)


def children(pid):
    """Ids of the processes that a process started."""
    return [child for child, parent, _ in processes() if parent == pid]


def resumed_at(out):
    """The steps after which a run resumed, from its log."""
    return [int(line.split()[3]) for line in out.splitlines() if line.startswith("resuming after step")]


# Patches that kill the process while it writes its third state, by the moment at which they do.
KILLED_WHILE_WRITING = {
    "half written": """
from d3d.study import records
fsync, calls = os.fsync, []
def write_half(fd):
    calls.append(fd)
    if len(calls) == 3:
        os.ftruncate(fd, os.fstat(fd).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(fd)
os.fsync = write_half
""",
    "written but not renamed": """
replace, calls = os.replace, []
def kill_at_third(a, b):
    calls.append(b)
    if len([c for c in calls if '.state' in str(c)]) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(a, b)
os.replace = kill_at_third
""",
    "renamed but the oldest not deleted": """
import pathlib
def kill_at_state(self, **kwargs):
    if self.name.startswith('step'):
        os.kill(os.getpid(), signal.SIGKILL)
    os.unlink(self)
pathlib.Path.unlink = kill_at_state
""",
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in KILLED_WHILE_WRITING]


@pytest.mark.parametrize("moment", [None, *SLOW])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, uninterrupted, moment):
    path = write_config(tmp_path)
    run = start(path, patch=KILLED_WHILE_WRITING.get(moment, ""))
    if moment is None:
        for line in run.stdout:
            if line.startswith("epoch   2/4"):
                break
        run.kill()
    run.communicate()
    assert run.returncode == -signal.SIGKILL
    assert not list((tmp_path / "run").rglob("*.json"))
    (step,) = resumed_at(finish(path))
    assert 0 < step <= STEPS
    assert outcome(tmp_path) == uninterrupted


KILLED_IN_EVALUATION = """
from d3d.train import evaluate
def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
evaluate.predict = kill
"""
KILLED_AFTER_RECORD = """
from d3d.train import states
def kill(self):
    os.kill(os.getpid(), signal.SIGKILL)
states.States.delete_folder = kill
"""


@pytest.mark.slow
@pytest.mark.parametrize("patch", [KILLED_IN_EVALUATION, KILLED_AFTER_RECORD])
def test_a_run_killed_after_its_last_step_is_not_trained_again(tmp_path, uninterrupted, patch):
    """Killed during evaluation, or after its record was written, with a state at the end of training only."""
    path = write_config(tmp_path, save_every=1e6)
    start(path, patch=patch).communicate()
    assert (tmp_path / "run/train/rgb-seed0.json").exists() == (patch is KILLED_AFTER_RECORD)
    out = finish(path)
    assert resumed_at(out) == [STEPS]
    assert without_params(outcome(tmp_path)) == without_params(uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_on_videos_saves_when_its_process_group_is_stopped(tmp_path, signum):
    """Ctrl-C in a terminal and the end of a job also reach the processes that decode."""
    for label in range(2):
        for i in range(6):
            moving_video(tmp_path / f"videos/{label}/{i}.avi", label + 1, frames=8)
    files = {"dataset": "folder", "root": str(tmp_path / "videos"), "workers": 1, "batch_size": 4, "epochs": 3}
    finish(write_config(tmp_path, "uninterrupted", **files, flow="tvl1"))
    path = write_config(tmp_path, **files, flow="tvl1", save_every=1e6)
    run = start(path, start_new_session=True)
    for line in run.stdout:
        if line.startswith("epoch   1/"):
            break
    os.killpg(run.pid, signum)
    _, err = run.communicate(timeout=60)
    assert f"stopped by {signum.name} after step" in err
    assert resumed_at(finish(path))
    assert without_params(outcome(tmp_path)) == without_params(outcome(tmp_path, "uninterrupted"))


@pytest.mark.slow
def test_a_run_killed_repeatedly_ends_with_the_same_bits(tmp_path, uninterrupted):
    """Up to eight kills at arbitrary moments, until one comes after the record."""
    path, steps = write_config(tmp_path), []
    record = tmp_path / "run/train/rgb-seed0.json"
    for i in range(8):
        run = start(path)
        first_line = run.stdout.readline()
        time.sleep(0.05 * (1 + i))
        run.kill()
        steps += resumed_at(first_line + run.communicate()[0])
        if record.exists():
            break
    else:
        steps += resumed_at(finish(path))
    assert steps
    assert steps == sorted(steps)
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_saves_first(tmp_path, uninterrupted, signum):
    path = write_config(tmp_path, save_every=1e6)
    run = start(path)
    for line in run.stdout:
        if line.startswith("epoch   1/4"):
            break
    run.send_signal(signum)
    _, err = run.communicate()
    assert run.returncode == 128 + signum
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith(f"d3d train: stopped by {signum.name} after step ")
    step = int(sentence.split("after step ")[1].split()[0])
    assert f" of 32; the last saved state is {tmp_path}/run/train/rgb-seed0.state/step{step:09d}.safe" in sentence
    assert sentence.endswith("; run the same command again to resume")
    assert resumed_at(finish(path)) == [step]
    resumed = outcome(tmp_path)
    assert resumed["params"]["save_every"] == 1e6
    assert without_params(resumed) == without_params(uninterrupted)


def stop_in_second_epoch(tmp_path, **parameters):
    """Starts a run and stops it; returns the folder of its states."""
    run = start(write_config(tmp_path, **parameters))
    for line in run.stdout:
        if line.startswith("epoch   1/"):
            break
    run.terminate()
    run.communicate()
    return tmp_path / "run/train/rgb-seed0.state"


def failure(path, **kwargs):
    """The last line of the errors of a run that fails."""
    run = start(path, **kwargs)
    _, err = run.communicate()
    assert run.returncode not in (0, None)
    return err.strip().splitlines()[-1]


@pytest.mark.slow
def test_another_config_is_refused_and_states_are_kept(tmp_path):
    folder = stop_in_second_epoch(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    sentence = failure(write_config(tmp_path, learning_rate=0.07, epochs=5))
    assert "was saved with epochs 4, learning_rate 0.03; this run has epochs 5, learning_rate 0.07: " in sentence
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    # Parameters that do not affect the result may change.
    assert resumed_at(finish(write_config(tmp_path, save_every=50.0)))


@pytest.mark.slow
def test_a_damaged_state_is_skipped(tmp_path, uninterrupted):
    newest, *_ = sorted(stop_in_second_epoch(tmp_path).iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0")
    out = finish(write_config(tmp_path))
    assert f"{newest.name} is damaged: its content does not match its checksum; resuming from the previous state" in out
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("then", ["freed", "stopped"])
def test_a_full_disk_loses_nothing(tmp_path, uninterrupted, then):
    """A run whose states cannot be written trains to the end and waits until the disk has space or it is stopped."""
    folder = stop_in_second_epoch(tmp_path)
    newest = sorted(folder.iterdir())[-1].name
    max_bytes = 100_000  # a third of a state

    def limit_file_size():
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, resource.RLIM_INFINITY))

    run = start(write_config(tmp_path), preexec_fn=limit_file_size)
    out = ""
    for line in run.stdout:
        out += line
        if "the results are kept in memory" in line:
            assert not list((tmp_path / "run").rglob("*.json"))
            if then == "stopped":
                run.terminate()
            else:
                resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    _, err = run.communicate()
    assert run.returncode == (0 if then == "freed" else 128 + signal.SIGTERM), err
    assert "could not be written and any previous file is untouched: File too large; " in out
    assert "File too large; training continues, the last saved state is " in out
    assert newest in out
    assert "rgb-seed0.safetensors could not be written and any previous file is untouched: File too large; " in out
    if then == "freed":
        assert "the results are written, after 10 s of waiting" in out
    else:
        assert err.splitlines()[-1] == "d3d train: stopped by SIGTERM; run the same command again to resume"
        assert newest in {p.name for p in folder.iterdir()}
        assert resumed_at(finish(write_config(tmp_path)))
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.slow
def test_a_run_prints_into_a_full_disk(tmp_path, uninterrupted):
    with open("/dev/full", "w") as full:
        command_line = [sys.executable, "-m", "d3d.train", "--config", write_config(tmp_path)]
        run = subprocess.run(command_line, env=os.environ | ONE_THREAD, stdout=full, stderr=full, check=False)
    assert run.returncode == 0
    assert outcome(tmp_path) == uninterrupted


def test_a_results_folder_that_cannot_be_written_is_named_before_training(tmp_path):
    (tmp_path / "run").write_text("a file")
    sentence = failure(write_config(tmp_path))
    assert sentence.startswith("d3d train: ")
    assert f"{tmp_path}/run" in sentence


def test_a_loss_that_is_not_finite_names_the_last_good_state(tmp_path):
    sentence = failure(write_config(tmp_path, learning_rate=1e12, warmup=0.9))
    assert "is not finite " in sentence
    assert "lower learning_rate" in sentence
    saved = sorted((tmp_path / "run/train/rgb-seed0.state").glob("step*"))
    assert (f"the last saved state is {saved[-1]}" if saved else "no state was saved") in sentence


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("learning_rat: 0.1", "'learning_rat' is no parameter of 'train', which takes "),
        ("experiment: fuse", "must be one of train, distill, evaluate, not 'fuse'"),
        ("- 1", "must map parameters to values"),
        ("a: [", "is no YAML file: "),
        ("epochs: 0", "epochs must be at least 1, not 0"),
        ("results: null", "sets 'results' to None: it must map parameters to values"),
        ("1: 2", "wrong.yaml has the key 1 in line 1: a key is text, so quote it"),
        ("_epochs: 5", "sets '_epochs' to 5: it must map"),
        ("experiment: [train]", "experiment in "),
        (None, "No such file"),
    ],
)
@pytest.mark.usefixtures("_restored_signals")
def test_an_error_in_a_config_is_one_sentence(tmp_path, capsys, content, expected):
    path = tmp_path / "wrong.yaml"
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit, match="1"):
        command.main(["--config", str(path)])
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("d3d train: ")
    assert expected in sentence


@pytest.mark.slow
def test_a_run_stops_with_its_kernel(tmp_path):
    """If the kernel of the notebook that started it is killed, a run saves its state and stops."""
    kernel = subprocess.Popen(["sleep", "60"])
    path = write_config(tmp_path, epochs=4000)
    run = subprocess.Popen(
        [sys.executable, "-m", "d3d.train", "--config", path],
        env=os.environ | ONE_THREAD | {"D3D_FOLLOWER": str(kernel.pid)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run.stdout.readline()
    run.stdout.readline()
    kernel.kill()
    kernel.wait()
    _, err = run.communicate()
    assert "stopped by SIGTERM after step" in err


UNEXPECTED = """
from d3d.train import step
call = step.TrainStep.__call__
def fail(self, position, *args, **kwargs):
    if position == 5:
        raise RuntimeError('CUDA error: unspecified launch failure')
    return call(self, position, *args, **kwargs)
step.TrainStep.__call__ = fail
"""


@pytest.mark.parametrize("dataset", ["sprites", pytest.param("folder", marks=pytest.mark.slow)])
def test_an_unexpected_error_ends_the_run_with_a_sentence(tmp_path, dataset):
    """The output ends too: it would not while a worker process lives."""
    parameters = {}
    if dataset == "folder":
        for label in range(2):
            for i in range(6):
                moving_video(tmp_path / f"videos/{label}/{i}.avi", label + 1, frames=8)
        parameters = {"dataset": "folder", "root": str(tmp_path / "videos"), "workers": 2, "batch_size": 4}
        parameters |= {"flow": "tvl1", "memory": "no"}
    run = start(write_config(tmp_path, **parameters), patch=UNEXPECTED)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "Traceback" in err
    sentence = err.strip().splitlines()[-1]
    assert sentence == (
        "d3d train: unexpected RuntimeError: CUDA error: unspecified launch failure; run the same command again to "
        "resume"
    )
    assert list((tmp_path / "run/train/rgb-seed0.state").glob("step*"))


HANGING_STEP = """
import time
from d3d.train import loop, step
loop.PATIENCE = 1.0
call = step.TrainStep.__call__
def hang(self, position, *args, **kwargs):
    while position == 5:
        print('hangs', flush=True)
        time.sleep(0.1)
    return call(self, position, *args, **kwargs)
step.TrainStep.__call__ = hang
"""


@pytest.mark.slow
def test_a_second_signal_ends_a_step_that_hangs(tmp_path):
    run = start(write_config(tmp_path), patch=HANGING_STEP)
    hangs = (line for line in run.stdout if line == "hangs\n")
    next(hangs)
    run.terminate()
    next(hangs)  # the first signal waits for the end of the step
    run.terminate()  # and so does the same signal sent twice
    next(hangs)
    time.sleep(1.1)
    run.terminate()
    _, err = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM
    assert err.strip().endswith(
        "stopped by a second SIGTERM before the step ended, without a new state; run the same command again to resume"
    )


class TestTeam:
    def differences(self, a, b):
        """The largest difference of two runs' logits and losses by name; not of top-1, since where classes are about
        equally likely, rounding decides."""
        a, b = (records.read_arrays(path, records.read(path / "train/rgb-seed0.json")) for path in (a, b))
        names = [name for name in a if name.startswith("logits/") or name == "curve/loss"]
        return {name: float(np.abs(a[name] - b[name]).max()) for name in names}

    @pytest.mark.slow
    def test_two_processes_equal_one(self, tmp_path):
        """With synchronised batch norm, clips, dropout masks, statistics and gradients are those of one process."""
        sizes = {"batch_size": 16, "epochs": 2, "learning_rate": 0.01, "dropout": 0.5}
        finish(write_config(tmp_path, "one", **sizes))
        out = finish(write_config(tmp_path, "two", **sizes, sync_norm=True), processes=2)
        assert "on 2 x cpu" in out
        assert max(self.differences(tmp_path / "one", tmp_path / "two").values()) < 1e-4
        record = records.read(tmp_path / "two/train/rgb-seed0.json")
        assert record.params["sync_norm"] is True
        assert record.provenance["processes"] == 2

    @pytest.mark.slow
    def test_two_processes_divide_the_check_of_videos_and_refuse_the_same_files(self, tmp_path):
        """One file is damaged."""
        for label in range(2):
            for i in range(6):
                moving_video(tmp_path / f"videos/{label}/{i}.avi", label + 1, frames=8)
        damaged = tmp_path / "videos/1/5.avi"
        damaged.write_bytes(damaged.read_bytes()[:2000])
        files = {"dataset": "folder", "root": str(tmp_path / "videos"), "batch_size": 4, "epochs": 1, "flow": "tvl1"}
        finish(write_config(tmp_path, "one", **files))
        finish(write_config(tmp_path, "two", **files), processes=2)
        one, two = (records.read(tmp_path / name / "train/rgb-seed0.json").files for name in ("one", "two"))
        assert one == two
        assert list(two["refused"]) == [str(damaged)]

    @pytest.mark.slow
    def test_two_processes_without_sync_norm_equal_one_that_accumulates(self, tmp_path):
        """In the training loss; running statistics differ: two processes average them, one updates them twice."""
        sizes = {"batch_size": 16, "epochs": 2, "learning_rate": 0.01}
        finish(write_config(tmp_path, "one", **sizes, accumulate=2))
        finish(write_config(tmp_path, "two", **sizes), processes=2)
        assert self.differences(tmp_path / "one", tmp_path / "two")["curve/loss"] < 1e-4

    @pytest.mark.slow
    def test_a_stopped_team_saves_and_resumes_to_the_same_bits(self, tmp_path):
        sizes = {"batch_size": 16, "save_every": 1e6}
        finish(write_config(tmp_path, "uninterrupted", **sizes), processes=2)
        path = write_config(tmp_path, "run", **sizes)
        run = start(path, processes=2)
        for line in run.stdout:
            if line.startswith("epoch   1/4"):
                break
        run.terminate()
        _, err = run.communicate()
        assert "stopped by SIGTERM after step" in err
        assert resumed_at(finish(path, processes=2))
        assert outcome(tmp_path) == outcome(tmp_path, "uninterrupted")

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["killed", "failed"])
    def test_a_dead_process_ends_the_others_with_its_error(self, tmp_path, how):
        began = time.monotonic()
        run = start(write_config(tmp_path, epochs=4000, learning_rate=1e30 if how == "failed" else 0.03), processes=2)
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
    def test_processes_end_with_torchrun(self, tmp_path):
        run = start(write_config(tmp_path, epochs=4000, save_every=1e6), processes=2)
        for line in run.stdout:
            if line.startswith("epoch   2/"):
                break
        run.kill()
        out, _ = run.communicate(timeout=120)  # the output ends with the last process
        assert "epoch 4000/" not in out
        assert list((tmp_path / "run/train/rgb-seed0.state").glob("step*"))

    @pytest.mark.slow
    def test_a_dead_process_ends_the_other_host(self, tmp_path):
        """Two torchrun launchers of one process each, as on two hosts, with a common rendezvous."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free.getsockname()[1]}"]
        path = write_config(tmp_path, epochs=4000, save_every=1e6)
        sizes = ["--nnodes", "2", "--nproc-per-node", "1"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *sizes, *rendezvous]
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
        outputs = [host.communicate(timeout=120)[0] for host in hosts]
        assert time.monotonic() - began < 60
        assert all(host.returncode for host in hosts)
        assert "exitcode  : -9" in outputs[1]
