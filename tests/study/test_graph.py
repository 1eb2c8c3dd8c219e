"""The graph on a machine with GPUs: how many runs at once, and MPS, for which programs and a driver stand in."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from d3d.study.graph import prepare_cluster
from tests.conftest import ROOT
from tests.study.test_gpus import TWO, install

# Keeps a file where the real one has its socket, and writes what it does to `log`.
CONTROL = """
pipe=${CUDA_MPS_PIPE_DIRECTORY:-$HOME/own}
if [ "$1" = -d ]; then
  mkdir "$pipe/control" && echo "start $CUDA_VISIBLE_DEVICES" >> "$HOME/log"
else
  [ -d "$pipe/control" ] || exit 1
  read command
  case $command in
    get_server_list) echo 4711;;
    quit*) rmdir "$pipe/control"; echo quit >> "$HOME/log";;
  esac
fi
"""
DRIVER = """
int cuInit(unsigned flags) {{ return {code}; }}
int cuDeviceGet(int *device, int ordinal) {{ return 0; }}
int cuDevicePrimaryCtxRetain(void **context, int device) {{ return 0; }}
"""
# In place of Snakemake: prints its options and what its jobs would see.
SNAKEMAKE = """
echo "$@"
echo "$D3D_GPUS/$D3D_RUNS_PER_GPU/$D3D_CORES_PER_RUN/${CUDA_MPS_PIPE_DIRECTORY:+mps}"
if [ -e "$HOME/hang" ]; then touch "$HOME/hangs"; exec sleep 600; fi
exit 3
"""


@pytest.fixture
def home(tmp_path):
    """A machine with two GPUs; its programs write to this folder."""
    install(tmp_path / "bin", "nvidia-smi", TWO)
    install(tmp_path / "bin", "snakemake", SNAKEMAKE)
    return tmp_path


def add_mps(home, *, code: int = 0) -> None:
    """Installs MPS, and a driver that answers its first call with a code."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc to build a driver")
    install(home / "bin", "nvidia-cuda-mps-control", CONTROL)
    source = DRIVER.format(code=code)
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(home / "bin/libcuda.so.1")]
    subprocess.run(command, input=source, text=True, check=True)


def start(home, *options: str, **environment: str) -> subprocess.Popen:
    """Starts the graph, on one core unless the options have more."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "D3D_"))}
    kept |= {"PATH": f"{home}/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(home), "TMPDIR": str(home)}
    kept |= {"LD_LIBRARY_PATH": f"{home}/bin", "LOKY_MAX_CPU_COUNT": "1"}
    command = [sys.executable, "-m", "d3d.study.graph", *options, "--", "snakemake", "--quiet", "--", "study"]
    return subprocess.Popen(
        command, cwd=home, env=kept | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def graph(home, *options: str, **environment: str) -> list[str]:
    """Runs the graph; returns the lines that it prints."""
    run = start(home, *options, **environment)
    lines = run.communicate()[0].splitlines()
    if "\n".join(lines).endswith(("mps", "/")):
        assert run.returncode == 3  # Snakemake's
    return lines


def log_of(home, last: str = "quit") -> list[str]:
    """What the stand-in for MPS did, once its last line is as expected."""
    log = home / "log"
    while not (log.exists() and log.read_text().splitlines()[-1] == last):
        time.sleep(0.05)
    return log.read_text().splitlines()


WITHOUT = "without MPS (there is no nvidia-cuda-mps-control)"


def test_without_a_gpu_there_is_one_run_per_core(home):
    install(home / "bin", "nvidia-smi", "exit 9")
    assert graph(home) == ["--cores all --quiet -- study", "///"]
    assert graph(home, "--cores=3", "--runs-per-gpu=2") == ["--cores 3 --quiet -- study", "///"]


def test_variables_of_another_graph_are_not_passed_on(home):
    install(home / "bin", "nvidia-smi", "exit 9")
    assert graph(home, D3D_GPUS="GPU-x", D3D_RUNS_PER_GPU="5", D3D_CORES_PER_RUN="7")[1] == "///"


@pytest.mark.parametrize(
    ("options", "sentence", "resources", "variables"),
    [
        # With more places than cores there is a core per place, and one for what needs no GPU.
        ([], f"4 runs at once, 2 per GPU {WITHOUT}, each with 1 of 1 core", "5 --resources gpu=4", "2/1/"),
        (["--cores=9"], f"4 runs at once, 2 per GPU {WITHOUT}, each with 2 of 9 cores", "9 --resources gpu=4", "2/2/"),
        (["--cores=3"], f"3 runs at once, 2 per GPU {WITHOUT}, each with 1 of 3 cores", "3 --resources gpu=4", "2/1/"),
        (["--runs-per-gpu=1"], "2 runs at once, 1 per GPU, each with 1 of 1 core", "3 --resources gpu=2", "1/1/"),
        (
            ["--runs-per-gpu=8", "--cores=64"],
            f"16 runs at once, 8 per GPU {WITHOUT}, each with 4 of 64 cores",
            "64 --resources gpu=16",
            "8/4/",
        ),
    ],
)
def test_the_cores_are_divided_among_the_runs_of_all_gpus(home, options, sentence, resources, variables):
    assert graph(home, *options) == [
        f"2 GPUs (NVIDIA H100 80GB HBM3): {sentence}",
        f"--cores {resources} --quiet -- study",
        f"GPU-aaaa-1,GPU-bbbb-2/{variables}",
    ]


def test_gpus_that_the_user_hides_are_not_used(home):
    sentence, _, variables = graph(home, CUDA_VISIBLE_DEVICES="1")
    assert sentence.startswith("1 GPU (NVIDIA H100 80GB HBM3): 2 runs at once")
    assert variables == "1/2/1/"
    assert graph(home, CUDA_VISIBLE_DEVICES="") == ["--cores all --quiet -- study", "///"]


@pytest.mark.parametrize("value", ["0", "-1", "49", "2.5", "many", "1e1", "²", " 2", "9" * 50])
def test_a_number_of_runs_out_of_range_is_one_sentence(home, value):
    (sentence,) = graph(home, f"--runs-per-gpu={value}")
    assert sentence.startswith("RUNS_PER_GPU must be a number from 1 to 48, not ")


@pytest.mark.parametrize("value", ["0", "-1", "", "some", "1.5"])
def test_a_number_of_cores_out_of_range_is_one_sentence(home, value):
    (sentence,) = graph(home, f"--cores={value}")
    assert sentence.startswith("CORES must be all or a number from 1 to 9999, not ")


def test_mps_runs_while_the_graph_does(home):
    add_mps(home)
    assert graph(home) == [
        "2 GPUs (NVIDIA H100 80GB HBM3): 6 runs at once, 3 per GPU through MPS, each with 1 of 1 core",
        "--cores 7 --resources gpu=6 --quiet -- study",
        "GPU-aaaa-1,GPU-bbbb-2/3/1/mps",
    ]
    assert log_of(home) == ["start GPU-aaaa-1,GPU-bbbb-2", "quit"]
    while list(home.glob("d3d-mps-*")):  # its folder goes last
        time.sleep(0.05)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_mps_ends_with_a_graph_that_is_stopped(home, signum):
    """As Ctrl-C stops it: the signal reaches all processes of the terminal."""
    add_mps(home)
    (home / "hang").touch()
    run = start(home)
    while not (home / "hangs").exists():
        time.sleep(0.05)
    os.killpg(run.pid, signum)
    run.communicate()
    assert run.returncode == -signum
    assert log_of(home) == ["start GPU-aaaa-1,GPU-bbbb-2", "quit"]


def test_numbers_of_gpus_mean_the_same_through_mps(home):
    """They would not, if its daemon saw some GPUs only."""
    add_mps(home)
    assert graph(home, CUDA_VISIBLE_DEVICES="1")[-1] == "1/3/1/mps"
    assert log_of(home) == ["start ", "quit"]


def test_one_run_per_gpu_needs_no_mps(home):
    add_mps(home)
    assert "MPS" not in graph(home, "--runs-per-gpu=1")[0]
    assert not (home / "log").exists()


def test_the_user_s_own_mps_is_used_and_left_alone(home):
    add_mps(home)
    (home / "own/control").mkdir(parents=True)
    assert graph(home)[::2] == [
        "2 GPUs (NVIDIA H100 80GB HBM3): 6 runs at once, 3 per GPU through MPS, each with 1 of 1 core",
        "GPU-aaaa-1,GPU-bbbb-2/3/1/",
    ]
    assert not (home / "log").exists()


def test_mps_that_does_not_work_is_stopped_and_named(home):
    """As in a container whose driver does not reach the daemon."""
    add_mps(home, code=805)
    sentence, _, variables = graph(home)
    assert sentence.endswith("4 runs at once, 2 per GPU without MPS (CUDA error 805), each with 1 of 1 core")
    assert variables == "GPU-aaaa-1,GPU-bbbb-2/2/1/"
    assert log_of(home) == ["start GPU-aaaa-1,GPU-bbbb-2", "quit"]


def test_mps_that_does_not_start_is_named(home):
    add_mps(home)
    install(home / "bin", "nvidia-cuda-mps-control", "exit 1")
    assert "2 per GPU without MPS (nvidia-cuda-mps-control -d fails: " in graph(home)[0]


def test_mps_that_ends_at_once_is_named(home):
    """Programs would run without it, and nothing would say so."""
    add_mps(home)
    install(home / "bin", "nvidia-cuda-mps-control", '[ "$1" = -d ]')
    assert "2 per GPU without MPS (nvidia-cuda-mps-control has started no server)" in graph(home)[0]


def test_parts_of_gpus_have_no_mps(home):
    add_mps(home)
    sentence = graph(home, CUDA_VISIBLE_DEVICES="MIG-1,MIG-2")[0]
    assert "2 per GPU without MPS (a part of a GPU needs a daemon of its own)" in sentence
    assert not (home / "log").exists()


def add_cluster(home, settings: str = "executor: slurm\n") -> None:
    """Writes the settings of a cluster, and stand-ins for what submits jobs to it."""
    (home / "profiles/mine").mkdir(parents=True)
    (home / "profiles/mine/config.yaml").write_text(settings)
    (home / "snakemake_executor_plugin_slurm.py").touch()
    install(home / "bin", "sbatch", "exit 0")


def test_jobs_go_to_a_cluster_with_its_settings(home):
    """The GPUs and cores of this machine do not matter."""
    add_cluster(home)
    assert graph(home, "--cluster=mine", D3D_GPUS="GPU-x", D3D_RUNS_PER_GPU="5", D3D_CORES_PER_RUN="7") == [
        "every run is a job of the cluster, with the settings of profiles/mine/config.yaml",
        "--workflow-profile profiles/mine --quiet -- study",
        "///",
    ]


@pytest.fixture
def settings(home, monkeypatch):
    """Writes the settings of a cluster in the working folder."""
    monkeypatch.chdir(home)
    return lambda text: add_cluster(home, text)


@pytest.mark.parametrize("name", ["other", "..", ".", "mine/../mine", "-p", "$(x)", " "])
def test_an_unknown_cluster_is_one_sentence(settings, name):
    settings("executor: slurm")
    with pytest.raises(ValueError, match=r"^CLUSTER must be the name of a folder of profiles/ \(mine\), not "):
        prepare_cluster(name)


@pytest.mark.parametrize("text", ["", "jobs: 1", "executor: other", "executor: [", "- executor", "executor: [1]"])
def test_settings_without_an_executor_are_one_sentence(settings, text):
    settings(text)
    with pytest.raises(
        ValueError, match=r"^profiles/mine/config.yaml must name the executor, such as `executor: slurm`"
    ):
        prepare_cluster("mine")


def test_what_a_cluster_needs_is_named(settings, monkeypatch):
    settings("executor: slurm")
    monkeypatch.setattr("d3d.study.graph.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs Snakemake's plugin: .venv/bin/pip install -e '.\[slurm\]'$"):
        prepare_cluster("mine")
    monkeypatch.setattr("d3d.study.graph.find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ValueError, match=r"^CLUSTER=mine needs sbatch: use a machine from which jobs can be submitted$"
    ):
        prepare_cluster("mine")


def test_a_cluster_divides_its_own_cores_and_gpus(home):
    add_cluster(home)
    for option in ("--cores=4", "--runs-per-gpu=2"):
        (sentence,) = graph(home, "--cluster=mine", option)
        assert sentence.startswith("CORES and RUNS_PER_GPU are for this machine: on a cluster, profiles/mine/config")
