"""The Snakemake graph: which jobs a change makes stale. Most tests run none of them: a fixture writes the records."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from d3d.study import archive, plan, records, staleness
from d3d.study.experiments import EXPERIMENTS, with_defaults
from d3d.study.follow import follow
from d3d.study.profiles import read_profile
from d3d.study.records import ROOT, Record
from tests.recipes import apply, recipes
from tests.study.test_gpus import TWO, install
from tests.study.test_records import PROVENANCE

pytestmark = pytest.mark.slow
ABLATIONS = read_profile(ROOT / "notebooks/params/smoke.yaml")["ablations"]
EXAMINING = ("leak", "probe", "attribution", "detect")
# The jobs of the smoke study by rule, but for TV-L1, which has no seeds and needs no network.
ALL_BUT_TVL1 = {
    "train": 7,  # without the streams of halves, whose epochs are their own
    "distill": 25,
    "fuse": 1,
    "compare": 1,
    "probe": 1,
    "attribution": 1,
    "detect": 1,
    "leak": 1,
}
CHAPTERS = sorted(p.stem for p in (ROOT / "notebooks/chapters").glob("*.ipynb"))


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A copy of the repository with a finished smoke study."""
    root = tmp_path / "copy"
    for folder in ("d3d", "notebooks", "book"):
        skip = shutil.ignore_patterns("__pycache__", "_build", "chapters", "generated", "_extra")
        shutil.copytree(ROOT / folder, root / folder, ignore=skip if folder == "book" else None)
    for name in ("Snakefile", "_config.yml"):
        shutil.copy(ROOT / name, root / name)
    monkeypatch.setattr(staleness, "ROOT", root)
    profile = read_profile(root / "notebooks/params/smoke.yaml")
    results = "results/smoke"
    for experiment in EXPERIMENTS:
        for arm in plan.arms_of(experiment, profile):
            for seed in plan.seeds_of(experiment, profile, name=arm):
                trains = experiment in plan.TRAINED
                overrides = plan.overrides(experiment, arm if trains else "", seed, profile=profile, results=results)
                params = with_defaults(experiment, profile | overrides)
                provenance = PROVENANCE | {"source": staleness.source_hash(experiment)}
                provenance["made_from"] = plan.made_from(experiment, arm)
                record = Record(experiment, arm, seed, params, {"iid/top1": 0.5}, True, provenance)
                records.write(root / results, record)
                if trains:
                    (root / plan.weights_path(results, arm, seed)).touch()
    # The files' ages are those of experiments that ran in order.
    for age, experiment in enumerate(reversed(EXPERIMENTS)):
        for path in (root / results / experiment).glob("*"):
            os.utime(path, (path.stat().st_mtime - 10 * age,) * 2)
    assert planned(root) == {"chapter": len(CHAPTERS)}
    (root / "book/chapters").mkdir()
    for name in CHAPTERS:
        (root / f"book/chapters/{name}.ipynb").touch()
    assert planned(root) == {}
    return root


def snakemake(*arguments: str) -> list[str]:
    """The Snakemake command of the Makefile, with its flags."""
    flags = re.search(r"^FLAGS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    executable = str(Path(sys.executable).with_name("snakemake"))
    return [executable, "--cores", "2", *flags, "--config", "profile=smoke", *arguments]


def environment(root) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def planned(root, *config: str, targets=("study", *(f"book/chapters/{name}.ipynb" for name in CHAPTERS))):
    """The number of jobs of each rule that a dry run would start."""
    command = [
        str(Path(sys.executable).with_name("snakemake")),
        "--cores",
        "2",
        "--dry-run",
        "--rerun-triggers",
        "mtime",
    ]
    command += ["--config", "profile=smoke", *config, "--", *targets]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    output = process.stdout + process.stderr
    assert process.returncode == 0, output
    stats = re.findall(r"^(\w+) +(\d+)$", output, re.M)
    return {rule: int(n) for rule, n in stats if rule not in ("total", "study", "job", "book")}


def edit_profile(path: Path, **changes):
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | changes))


def test_a_changed_parameter_reruns_the_experiments_that_have_it(finished):
    edit_profile(finished / "notebooks/params/smoke.yaml", steps=5)
    assert planned(finished) == {"attribution": 1, "chapter": len(CHAPTERS)}


def test_a_changed_parameter_of_training_reruns_everything_downstream(finished):
    edit_profile(finished / "notebooks/params/smoke.yaml", epochs=2)
    assert planned(finished) == ALL_BUT_TVL1 | {"chapter": len(CHAPTERS)}


def test_a_changed_parameter_of_students_does_not_rerun_streams(finished):
    edit_profile(finished / "notebooks/params/smoke.yaml", lambda_=0.3)
    jobs = planned(finished)
    # RGB-longer and six of the ablations set their own lambda.
    assert "train" not in jobs
    assert jobs["distill"] == 10


def test_a_changed_module_reruns_its_users(finished):
    with open(finished / "d3d/probing/linear.py", "a") as file:
        file.write("\nCHANGED = True\n")
    jobs = planned(finished)
    assert jobs["probe"] == 1
    assert not {"train", "distill", "fuse", "compare", "attribution", "detect", "leak", "tvl1"} & set(jobs)


def test_a_changed_parameter_of_tvl1_reruns_only_tvl1(finished):
    edit_profile(finished / "notebooks/params/smoke.yaml", pairs=8)
    assert planned(finished) == {"tvl1": 1, "chapter": len(CHAPTERS)}


def test_a_newly_published_study_reruns_the_chapters(finished):
    archive.pack(finished / "results/smoke", finished / "results/h200")
    assert planned(finished) == {"chapter": len(CHAPTERS)}


def test_a_comment_reruns_no_experiment(finished):
    with open(finished / "d3d/train/losses.py", "a") as file:
        file.write("# A comment.\n")
    assert set(planned(finished)) <= {"chapter"}


def test_the_recipe_for_an_arm_runs_its_job_only(finished):
    """As CONTRIBUTING.md has it; without its name in a profile, the entry reruns nothing."""
    profile = finished / "notebooks/params/smoke.yaml"
    apply(recipes()["Add an arm"], finished)
    (new,) = set(yaml.safe_load(profile.read_text())["ablations"]) - set(ABLATIONS)
    jobs = planned(finished)
    assert (jobs["distill"], set(jobs) - {"chapter"}) == (1, {"distill", "compare"})
    edit_profile(profile, ablations=[arm for arm in ABLATIONS if arm != new])
    assert set(planned(finished)) <= {"chapter"}


def test_a_changed_figure_reruns_only_chapters(finished):
    with open(finished / "d3d/report/plots.py", "a") as file:
        file.write("\nCHANGED = True\n")
    assert planned(finished) == {"chapter": len(CHAPTERS)}


def test_a_damaged_record_reruns_its_experiment(finished):
    path = finished / "results/smoke/probe/random-seed0.json"
    path.write_text(path.read_text()[:100])
    assert planned(finished)["probe"] == 1


def test_one_damaged_record_of_several_reruns_their_run(finished):
    (finished / "results/smoke/probe/d3d-seed0.json").write_text("{}")
    assert planned(finished)["probe"] == 1


def test_a_changed_chapter_reruns_alone(finished):
    path = finished / "notebooks/chapters/streams.ipynb"
    path.write_text(path.read_text().replace("chance = 1 /", "chance = 1.0 /"))
    assert planned(finished) == {"chapter": 1}


def test_changed_claims_rerun_all_chapters(finished):
    path = finished / "book/claims.yaml"
    path.write_text(path.read_text() + "# changed\n")
    assert planned(finished) == {"chapter": len(CHAPTERS)}


def test_lost_weights_are_trained_again_only_if_needed(finished):
    (finished / "results/smoke/train/flow-seed1.safetensors").unlink()
    assert planned(finished) == {}
    (finished / "results/smoke/distill/d3d-seed1.json").unlink()
    jobs = planned(finished)
    # Every student of the new flow stream is trained again.
    assert (jobs["train"], jobs["distill"]) == (1, 3)


def test_a_killed_run_is_planned_again(finished):
    record = finished / "results/smoke/train/rgb-seed1.json"
    record.unlink()
    command = snakemake("--", "results/smoke/train/rgb-seed1.json")
    running = subprocess.Popen(command, cwd=finished, env=environment(finished), start_new_session=True)
    log = record.with_suffix(".log")
    while "epoch   1/" not in (log.read_text() if log.exists() else ""):
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not record.exists()
    assert planned(finished)["train"] == 1


def test_a_record_that_the_profile_does_not_plan_is_refused(finished):
    edit_profile(finished / "notebooks/params/smoke.yaml", seeds=[0])
    with pytest.raises(AssertionError, match=r"seed1.json is not a run of the profile 'smoke' .* move it elsewhere"):
        planned(finished)


def test_a_request_for_one_seed_plans_no_other(finished):
    """Neither other seeds, nor ensembles of two seeds."""
    for path in (finished / "results/smoke").glob("*/*"):
        path.unlink()
    assert planned(finished, "seeds=1", targets=["study"]) == {"train": 3, "distill": 5, "fuse": 1, "compare": 1}
    assert planned(finished, "seeds=0 1", targets=["study"]) == ALL_BUT_TVL1 | {"train": 9}
    with pytest.raises(AssertionError, match=r"seeds must be some of \[0, 1\] of .*smoke.yaml, not '7'"):
        planned(finished, "seeds=7")


def test_a_wrong_profile_stops_the_graph(finished):
    edit_profile(finished / "notebooks/params/smoke.yaml", learning_rat=0.1)
    with pytest.raises(AssertionError, match="'learning_rat' is no parameter of any experiment"):
        planned(finished)


def test_runs_use_the_gpu_one_at_a_time(finished, monkeypatch):
    """There are cores for more, but the resource allows one run; each run says when it has finished."""
    edit_profile(finished / "notebooks/params/smoke.yaml", epochs=1, train_clips=64, test_clips=64, width=0.1)
    targets = [f"results/smoke/train/{run}.json" for run in ("rgb-seed0", "rgb-seed1", "rgb_twin-seed0")]
    command = [snakemake()[0], "--cores", "4", "--resources", "gpu=1", *snakemake("--", *targets)[3:]]
    process = subprocess.run(
        command, cwd=finished, env=environment(finished), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=True,
    )  # fmt: skip
    monkeypatch.chdir(finished)
    line = re.compile(r" *[123]/3  train +rgb(_twin)?-seed\d +iid/top1 0\.\d{3} +\d+\.\d s(; about .* left)?$")
    assert sum(bool(line.match(text)) for text in follow(process.stdout.splitlines())) == 3
    provenances = [records.read(finished / path).provenance for path in targets]
    spans = sorted((datetime.fromisoformat(p["started"]).timestamp(), p["seconds"]) for p in provenances)
    # Starting times are rounded to seconds.
    assert all(start + seconds <= after + 1 for (start, seconds), (after, _) in pairwise(spans))


def test_training_saves_its_state_when_all_processes_of_a_job_are_ended(finished):
    """As SLURM ends a job: what is left when the first process has ended is killed, so that one must end last."""
    edit_profile(finished / "notebooks/params/smoke.yaml", epochs=2000)
    run = finished / "results/smoke/train/rgb-seed1"
    command = snakemake("--", f"{run.relative_to(finished)}.json")
    job = subprocess.Popen(command, cwd=finished, env=environment(finished), start_new_session=True)
    log = run.with_suffix(".log")
    while "epoch   2/" not in (log.read_text() if log.exists() else ""):
        assert job.poll() is None
        time.sleep(0.1)
    assert not list(Path(f"{run}.state").glob("*.safetensors"))
    processes = descendants(job.pid)
    assert len(processes) >= 5  # Snakemake, a shell, d3d.study.attached, papermill, the kernel, training
    for pid in processes:
        os.kill(pid, signal.SIGTERM)
    job.wait()
    assert list(Path(f"{run}.state").glob("*.safetensors"))
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def descendants(pid: int) -> list[int]:
    """A process and all that it and its descendants have started, parents first."""
    children = [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [pid, *(each for child in children for each in descendants(int(child)))]


def test_a_job_on_a_cluster_writes_no_stamps(finished):
    """Other jobs write records meanwhile, which its stamps would make stale."""
    run = "results/smoke/train/rgb-seed1"
    (finished / f"{run}.json").unlink()
    assert planned(finished)["train"] == 1
    stamps = sorted((finished / ".snakemake/plan").rglob("*"))
    written = [path.stat().st_mtime_ns for path in stamps]
    (finished / "bin").mkdir()
    program = finished / "bin/papermill"
    program.write_text('#!/bin/bash\ntouch "${6%.ipynb}.json" "${6%.ipynb}.safetensors"\n')
    program.chmod(0o755)
    path = f"{finished}/bin:{environment(finished)['PATH']}"
    command = snakemake(
        "--mode", "remote", "--force", "--target-jobs", "train:arm=rgb,seed=1", "--allowed-rules", "train"
    )
    # As the plugin calls it, with a record beside that no profile plans.
    (finished / "results/smoke/train/other-seed7.json").touch()
    process = subprocess.run(
        command, cwd=finished, env=environment(finished) | {"PATH": path}, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout
    assert (finished / f"{run}.json").exists()
    assert [path.stat().st_mtime_ns for path in stamps] == written


def test_every_job_has_the_resources_that_a_cluster_asks_for(finished):
    """With the settings of profiles/slurm, but for the plugin and its own options."""
    settings = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    options = {k: v for k, v in settings.items() if not k.startswith("slurm-") and k != "executor"}
    (finished / "profiles/here").mkdir(parents=True)
    (finished / "profiles/here/config.yaml").write_text(yaml.safe_dump(options))
    edit_profile(finished / "notebooks/params/smoke.yaml", epochs=2, pairs=8)
    command = [snakemake()[0], "--workflow-profile", "profiles/here", "--cores", "8", "--dry-run"]
    process = subprocess.run(
        [*command, "--config", "profile=smoke", "--", "study"], cwd=finished, env=environment(finished), check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout
    jobs = re.findall(r"^rule (\w+):\n((?: .*\n)+)", process.stdout, re.MULTILINE)
    assert {rule for rule, _ in jobs} >= {*EXPERIMENTS} - {"evaluate"}  # of given weights: no part of a study
    for rule, text in jobs:
        resources = dict(item.split("=", 1) for item in re.search("resources: (.*)", text)[1].split(", "))
        assert {"nodes": "1", "runtime": "240", "mem_mb": "16000"}.items() <= resources.items()
        assert resources.get("gpu") == (None if rule in ("fuse", "compare", "study") else "1")
        threads = re.search(r"threads: (\d+)", text)
        assert int(threads[1] if threads else 1) == settings["set-threads"].get(rule, 1)


TOY = {"seeds": [0], "arms": ["rgb", "rgb_longer"], "flow": "exact", "frames": 4, "size": 16, "width": 0.1}
TOY |= {"train_clips": 64, "test_clips": 64, "epochs": 1, "batch_size": 16, "steps": 2, "clips": 4, "leak_clips": 16}
RAN = "ran"  # a file that a text makes if it runs
TEXTS = [
    f"it's $(touch {RAN})", f"`touch {RAN}`", f'"; touch {RAN}; "', f"'; touch {RAN}; '", f"two\nlines; touch {RAN}",
    "{x} {{y}} {params.command} {input}", "back\\slash \\n \\' $HOME ~ *", "-p", "--version", "True", "None", "1e3",
    "007", "[1]", "&|<>#!", "ünï ☃", " ", "a\tb",
]  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    """The files of the graph, with a papermill that writes its arguments and nothing else."""
    root = tmp_path / "checkout"
    (root / "bin").mkdir(parents=True)
    for name in ("d3d", "notebooks", "book", "Snakefile"):
        (root / name).symlink_to(ROOT / name)
    (root / "notebooks").unlink()
    (root / "notebooks/params").mkdir(parents=True)
    for name in ("experiments", "chapters"):
        (root / "notebooks" / name).symlink_to(ROOT / "notebooks" / name)
    program = root / "bin/papermill"
    program.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {root}/arguments\nfor end in json safetensors; do\n'
                       '  touch "${6%.ipynb}.$end"\ndone\n')  # fmt: skip
    program.chmod(0o755)
    return root


def run_graph(root, *arguments: str, config: tuple[str, ...] = ("profile=toy",), target: str = "study"):
    """Runs Snakemake in a checkout and returns its exit status and output."""
    command = [*snakemake()[:-2], *arguments, "--config", *config, "--", target]
    path = f"{root}/bin:{environment(root)['PATH']}"
    process = subprocess.run(
        command, cwd=root, env=environment(root) | {"PATH": path, "PYTHONPATH": str(ROOT)}, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return process.returncode, process.stdout


# Stands in for papermill: writes when it ran and on which GPUs, and takes a second.
ON_GPUS = """
echo "start $CUDA_VISIBLE_DEVICES $LOKY_MAX_CPU_COUNT" >> log
sleep 1
touch "${6%.ipynb}.json" "${6%.ipynb}.safetensors"
echo "end $CUDA_VISIBLE_DEVICES" >> log
"""


@pytest.mark.parametrize("runs_per_gpu", [1, 2])
def test_each_run_has_its_gpus_and_no_gpu_too_many_runs(checkout, runs_per_gpu):
    write_toy(checkout, seeds=[0, 1, 2, 3], arms=["rgb", "flow"], overrides={"flow": {"processes": 2}})
    install(checkout / "bin", "papermill", ON_GPUS)
    install(checkout / "bin", "nvidia-smi", TWO)
    runs = [*(f"rgb-seed{seed}" for seed in range(4)), "flow-seed0"]
    command = [sys.executable, "-m", "d3d.study.graph", "--cores=8", f"--runs-per-gpu={runs_per_gpu}", "--"]
    targets = [f"results/toy/train/{run}.json" for run in runs]
    command += [snakemake()[0], *snakemake()[3:-1], "profile=toy", "--", *targets]
    path = f"{checkout}/bin:{environment(checkout)['PATH']}"
    variables = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_")} | {"PATH": path}
    subprocess.run(command, cwd=checkout, env=variables | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    log = [line.split() for line in (checkout / "log").read_text().splitlines()]
    running, most = Counter(), Counter()
    for event, gpus, *_ in log:
        running.update(dict.fromkeys(gpus.split(","), 1 if event == "start" else -1))
        most |= running
    assert most == {"GPU-aaaa-1": runs_per_gpu, "GPU-bbbb-2": runs_per_gpu}
    starts = [(len(gpus.split(",")), int(*cores)) for event, gpus, *cores in log if event == "start"]
    cores_per_run = 8 // (2 * runs_per_gpu)
    assert sorted(starts) == [*[(1, cores_per_run)] * 4, (2, cores_per_run)]


@pytest.mark.parametrize(("failures", "attempts", "code"), [(1, 2, 0), (2, 2, 1), (0, 1, 0)])
def test_a_run_whose_kernel_lost_its_port_starts_once_more(checkout, failures, attempts, code):
    write_toy(checkout)
    port_taken = f"""
    echo attempt >> attempts
    if [ $(wc -l < attempts) -le {failures} ]; then
      echo "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:43819')" >&2; exit 1
    fi
    touch "${{6%.ipynb}}.json" "${{6%.ipynb}}.safetensors"
    """
    install(checkout / "bin", "papermill", port_taken)
    assert run_graph(checkout, target="results/toy/train/rgb-seed0.json")[0] == code
    assert (checkout / "attempts").read_text().count("attempt") == attempts


def test_a_run_that_fails_otherwise_starts_once(checkout):
    write_toy(checkout)
    install(checkout / "bin", "papermill", "echo attempt >> attempts; echo ValueError: no >&2; exit 1")
    code, output = run_graph(checkout, target="results/toy/train/rgb-seed0.json")
    assert (code, (checkout / "attempts").read_text()) == (1, "attempt\n")
    assert "ValueError: no\nfailed: see results/toy/train/rgb-seed0.ipynb" in output


def write_toy(root, name: str = "toy", **changes) -> None:
    (root / f"notebooks/params/{name}.yaml").write_text(yaml.safe_dump(TOY | changes))


def files_of(root) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if ".snakemake" not in path.parts}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_a_profile_reaches_the_notebook_as_it_is_and_runs_nothing(checkout, text):
    write_toy(checkout, overrides={"rgb": {"flow_cache": text}})
    code, output = run_graph(checkout, target="results/toy/train/rgb-seed0.json")
    assert code == 0, output
    arguments = (checkout / "arguments").read_bytes().decode().split("\0")[:-1]
    place = arguments.index("flow_cache")
    # -r: papermill would take the text of -p for a number, a truth value or None where it can.
    assert arguments[place - 1 : place + 2] == ["-r", "flow_cache", text]
    assert not list(checkout.rglob(RAN))


def test_a_path_of_a_profile_is_a_file_or_missing_and_runs_nothing(checkout):
    name = f"it's $(touch {RAN}) `touch {RAN}` & ; weights"
    write_toy(checkout, students={"student": name})
    target = "results/toy/distill/rgb_longer-seed0.json"
    code, output = run_graph(checkout, target=target)
    assert (code, "MissingInputException" in output) == (1, True), output
    (checkout / name).touch()
    code, output = run_graph(checkout, target=target)
    assert code == 0, output
    arguments = (checkout / "arguments").read_bytes().decode().split("\0")
    assert arguments[arguments.index("student") + 1] == name
    assert not list(checkout.rglob(RAN))
    write_toy(checkout, students={"student": "{arm}"})
    assert "student must be a path without { and }, not '{arm}' (distill rgb_longer)" in run_graph(checkout)[1]


@pytest.mark.parametrize(
    "name",
    [
        f"x;touch {RAN};", f"$(touch {RAN})", f"`touch {RAN}`", "-x", "--version", ".hidden", "..", "../toy", "/tmp/x",
        "a/b", "a b", "*", "t?y", "{toy}", "", "1", "1e3", "[toy]", "a" * 300, "\x1b[31m", "ä", "toy\nx", "'toy'; x",
    ],
)  # fmt: skip
def test_a_profile_that_is_no_name_is_refused_and_writes_nothing(checkout, name):
    write_toy(checkout)
    before = files_of(checkout)
    code, output = run_graph(checkout, config=(f"profile={name}",))
    assert code == 1
    assert re.search(r"^profile must be the name of a file in notebooks/params .*, such as smoke, not ", output, re.M)
    assert "\x1b" not in output
    assert files_of(checkout) == before


@pytest.mark.parametrize("seeds", [f"0; touch {RAN}", f"$(touch {RAN})", "7", "-1", "True", "[0", "0,1", "9" * 40])
def test_seeds_that_the_profile_lacks_are_refused_and_write_nothing(checkout, seeds):
    write_toy(checkout)
    before = files_of(checkout)
    code, output = run_graph(checkout, config=("profile=toy", f"seeds={seeds}"))
    assert (code, "seeds must be some of [0] of notebooks/params/toy.yaml, not " in output) == (1, True), output
    assert files_of(checkout) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 10**12}, "epochs must be at most 1000000, not 1000000000000"),
        ({"overrides": {"rgb": {"fps": 1e-300}}}, "fps must be at least 0.001, not 1e-300 (train rgb)"),
        ({"students": {"batch_size": 10**12}}, "batch_size must be at most 100000000, .* (distill rgb_longer)"),
        ({"pairs": 10**12}, "pairs must be at most 100000000, .* (tvl1 default)"),
        ({"train_clips": 10**400}, "toy.yaml holds an integer of about 401 digits in 'train_clips': .* 64 bits"),
        ({"arms": ["../../up"]}, "arms names '../../up', which is not one of the trained arms"),
        ({"arms": ["*"]}, "arms names '*', which is not one of the trained arms"),
        ({"arms": [f"$(touch {RAN})"]}, f"arms names '$(touch {RAN})', which is not one of the trained arms"),
        ({"overrides": {"*": {}}}, "overrides names '*', which is not one of the trained arms"),
    ],
)
def test_a_profile_is_checked_before_anything_is_written(checkout, changes, message):
    write_toy(checkout, **changes)
    before = files_of(checkout)
    code, output = run_graph(checkout)
    pattern = re.escape(message).replace(r"\.\*", ".*")
    assert (code, bool(re.search(pattern, output))) == (1, True), output
    assert files_of(checkout) == before


@pytest.mark.parametrize("place", ["results", "results/toy", "results/toy/train", "results/toy/probe"])
@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_what_stands_in_place_of_a_folder_of_results_is_named(checkout, place, kind):
    write_toy(checkout)
    path = checkout / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a file":
        path.touch()
    else:
        path.symlink_to("nowhere")
    before = files_of(checkout)
    code, output = run_graph(checkout)
    assert (code, f"{place} is {kind}, but it must be a folder" in output) == (1, True), output
    assert files_of(checkout) == before


def test_a_profile_of_video_files_computes_their_flow_and_compares_the_networks(finished):
    (finished / "mine.yaml").write_text("{extends: video, root: videos, seeds: [1, 2]}")
    (finished / "videos").mkdir()
    jobs = planned(finished, "profile=mine.yaml", targets=["study"])
    # Four of five students and one of three streams see flow; two seeds each.
    assert jobs == {"flow": 1, "train": 6, "distill": 10, "fuse": 1, "compare": 1, "comparison": 1}
    (finished / "mine.yaml").write_text("{extends: video, root: videos, seeds: [1], arms: [rgb, rgb_longer]}")
    jobs = planned(finished, "profile=mine.yaml", targets=["study"])
    assert jobs == {"train": 1, "distill": 1, "comparison": 1}
