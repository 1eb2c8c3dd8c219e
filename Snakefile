"""The dependency graph: the experiments of every arm and seed of a profile, then the chapters, then the book.

    snakemake --cores all --config profile=smoke -- book
    snakemake --cores all --config profile=h200 seeds='0 1' -- study       # all experiments of some seeds only

A run is stale if its record was made with other parameters than today's, or by code with another meaning
(d3d/study/staleness.py). Each run has a stamp file under .snakemake/plan, whose age passes this on to Snakemake.
Published studies are archives: they are no targets here and never stale.

`d3d.study.graph`, through which make calls Snakemake, gives each job its GPUs; on a cluster the scheduler does, which
reads the resource `gpu`.
"""

import os
import shlex
from pathlib import Path

from d3d.files import check_folder, write_atomic
from d3d.messages import one_line, shown
from d3d.study import plan, profiles, staleness
from d3d.study.experiments import EXPERIMENTS, make_config, with_defaults
from d3d.study.parameters import FILE_DATASETS

try:
    PROFILE, PROFILE_PATH = profiles.locate(config.get("profile", "smoke"))
    STUDY = profiles.read_profile(PROFILE_PATH)
except (ValueError, OSError) as error:
    raise WorkflowError(one_line(error)) from None
RESULTS = f"results/{PROFILE}"
STAMP_FOLDER = Path(".snakemake/plan")
# The profile merged with those that it extends, which papermill cannot do itself.
MERGED_PROFILE = f"{RESULTS}/profile.yaml"
# Of a study of video files: the folder of their flow, and what `d3d flow` says of it at the end.
FLOW_CACHE = plan.flow_cache(STUDY, RESULTS)
FLOW_SUMMARY = f"{RESULTS}/flow/summary.txt"
REQUESTED_SEEDS = str(config.get("seeds", "")).split()
if unknown := set(REQUESTED_SEEDS) - {str(seed) for seed in STUDY["seeds"]}:
    raise WorkflowError(f"seeds must be some of {STUDY['seeds']} of {PROFILE_PATH}, not {shown(min(unknown))}")
SEEDS = [int(seed) for seed in REQUESTED_SEEDS] or STUDY["seeds"]
# TV-L1 has no seeds, so a request for some seeds leaves it out.
STUDY_EXPERIMENTS = [name for name in EXPERIMENTS if not (REQUESTED_SEEDS and name == "tvl1")]
CHAPTERS = ["data", "streams", "missing_motion", "distillation", "attention", "detection", "verdict"]
CHAPTERS += ["network", "first_study", "selection", "rerun"]
# The records that each chapter reads: the published study, or this machine's for what was not published.
CHAPTER_RESULTS = dict.fromkeys(CHAPTERS, str(plan.book_results()))
CHAPTER_RESULTS |= {"rerun": RESULTS, "attention": str(plan.book_results("attribution"))}
CHAPTER_RESULTS["detection"] = str(plan.book_results("detect"))
CHAPTER_RESULTS |= {"selection": str(plan.SEARCHES), "first_study": str(plan.PUBLISHED)}
# Of d3d.study.graph, if this machine has GPUs.
GPUS = [gpu for gpu in os.environ.get("D3D_GPUS", "").split(",") if gpu]
CORES_PER_RUN = int(os.environ.get("D3D_CORES_PER_RUN", "1"))
# A job on a cluster reads this file as well, while other jobs write records: it checks no records and writes no stamps.
IS_GRAPH = workflow.is_main_process
TRAINED_ARMS = [name for experiment in plan.TRAINED for name in plan.arms_of(experiment, STUDY)]


def overrides(experiment, arm, seed):
    """The parameters in which a run differs from the profile."""
    return plan.overrides(experiment, arm or "", seed or 0, profile=STUDY, results=RESULTS)


def runs_of(experiment):
    """Arms and seeds of an experiment's records."""
    arms = plan.arms_of(experiment, STUDY)
    return [(arm, seed) for arm in arms for seed in plan.seeds_of(experiment, STUDY, name=arm)]


def records_of(experiment, arm=None, seed=None, seeds=None):
    """Paths of an experiment's records: all, or those of one arm, of one seed, or that need no seeds but `seeds`."""
    return [
        f"{RESULTS}/{experiment}/{a}-seed{s}.json"
        for a, s in runs_of(experiment)
        if arm in (None, a) and seed in (None, s)
        if seeds is None or plan.seeds_used(a, s) <= set(seeds)
    ]


def weights_of(experiment, seed):
    """Paths of the trained networks of a seed that an experiment examines."""
    return [plan.weights_path(RESULTS, arm, seed) for arm in plan.arms_of(experiment, STUDY) if arm in TRAINED_ARMS]


def flow_of(arm):
    """The flow that the training of an arm needs before it starts."""
    return FLOW_SUMMARY if FLOW_CACHE and plan.needs_flow(arm) else []


def check_params():
    """Checks the parameters of every run, before anything is written."""
    for experiment in EXPERIMENTS:
        for arm, seed in runs_of(experiment):
            params = STUDY | overrides(experiment, arm if experiment in plan.TRAINED else None, seed)
            try:
                make_config(experiment, params)
                for name in ("student", "teacher", "second_teacher"):
                    if set("{}") & set(params.get(name, "")):  # Snakemake would take the braces for a wildcard
                        raise ValueError(f"{name} must be a path without {{ and }}, not {shown(params[name])}")
            except ValueError as error:
                raise WorkflowError(f"{PROFILE_PATH}: {error} ({experiment} {arm})") from None


def write_stamp(path, content, *, current=None):
    """Writes a stamp (see `staleness.write_stamp`), if this is no job on a cluster; returns its path."""
    return staleness.write_stamp(path, content, current=current) if IS_GRAPH else str(path)


def stamp(experiment, arm=None, seed=None, seeds=None):
    """Writes the stamp of a run, which is newer than the run's records if one of them is stale; returns its path."""
    path = STAMP_FOLDER / PROFILE / f"{experiment}-{arm}-{seed}"
    if not IS_GRAPH:
        return str(path)
    params = STUDY | overrides(experiment, arm, seed)
    paths = records_of(experiment, arm, seed, seeds)
    current = all(staleness.is_current(path, experiment, params) for path in paths)
    content = f"{with_defaults(experiment, params)} {staleness.source_hash(experiment)}"
    return write_stamp(path, content, current=current)


def flow_arguments():
    """The arguments of `d3d flow` for the profile's video files."""
    params = with_defaults("train", STUDY)
    flags = {name: params[name] for name in ("dataset", "root", "annotations", "fps", "bound", "damaged") if params[name]}
    flags |= {"short-side": params["short_side"] or params["size"], "out": FLOW_CACHE}
    return [f"--{name}={value}" for name, value in flags.items()]


if IS_GRAPH:
    planned = {record for name in EXPERIMENTS for record in records_of(name)}
    unplanned = {str(p) for p in Path(RESULTS).glob("*/*.json")} - planned
    if unplanned:
        raise WorkflowError(
            f"{min(unplanned)} is not a run of the profile {PROFILE!r} and would be averaged with those that are: "
            f"move it elsewhere (records like this: {len(unplanned)})"
        )

    check_params()
    try:
        for experiment in EXPERIMENTS:
            check_folder(f"{RESULTS}/{experiment}")
        if not Path(MERGED_PROFILE).is_file() or Path(MERGED_PROFILE).read_text() != profiles.dump(STUDY):
            write_atomic({Path(MERGED_PROFILE): profiles.dump(STUDY).encode()})
    except OSError as error:
        raise WorkflowError(one_line(error)) from None

# These must be written before Snakemake reads the age of any file.
STAMPS = {(n, arm, seed): stamp(n, arm, seed) for n in plan.TRAINED for arm, seed in runs_of(n)}
STAMPS |= {(n, None, s): stamp(n, None, s) for n in plan.EXAMINING for s in plan.seeds_of(n, STUDY)}
STAMPS |= {(name, None, None): stamp(name, seeds=SEEDS) for name in ("fuse", "compare")}
STAMPS |= {("tvl1", None, None): stamp("tvl1")}
FLOW_STAMP = write_stamp(STAMP_FOLDER / PROFILE / "flow", str(flow_arguments()))
CHAPTER_STAMPS = {
    name: write_stamp(
        STAMP_FOLDER / f"chapter-{name}",
        f"{CHAPTER_RESULTS[name]} {staleness.notebook_hash(f'notebooks/chapters/{name}.ipynb')}",
    )
    for name in CHAPTERS
}


def gpus_of(experiment):
    """The resource `gpu` of a rule that trains: the number of processes, each on a GPU of its own."""
    return lambda w: (STUDY | overrides(experiment, w.arm, int(w.seed))).get("processes", 1) or max(1, len(GPUS))


def papermill(notebook, out, params, threads=1, profile="", gpus=0):
    """The command that runs a notebook, on one thread and with `threads` worker processes, since runs share the cores."""
    flags = [part for k, v in params.items() for part in ("-r" if isinstance(v, str) else "-p", k, str(v))]
    log = str(Path(out).with_suffix(".log"))
    profile_flags = ["-f", profile] if profile else []
    # Without saving the notebook during a cell: papermill would end a run when the disk is full.
    options = ["--no-progress-bar", "--log-output", "--autosave-cell-every", "0"]
    command = ["papermill", *options, notebook, out, *profile_flags, *flags]
    if GPUS and gpus:
        command = ["python3", "-m", "d3d.study.gpus", str(gpus), *command]
    quoted = shlex.quote(log)
    run = (
        f"OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT={threads} PYDEVD_DISABLE_FILE_VALIDATION=1 "
        # $PPID is Snakemake, in the shell that it starts.
        f"python3 -m d3d.study.attached $PPID {shlex.join(command)} > {quoted} 2>&1"
    )
    # Jupyter chooses a kernel's ports before the kernel takes them, and a run that starts at the same time may be faster.
    again = f"{{ grep -q 'Address already in use' {quoted} && {run}; }}"
    failed = f"{{ grep . {quoted} | tail -n 1; echo {shlex.quote(f'failed: see {out} and {log}')}; exit 1; }}"
    # When SLURM ends a job, all of its processes get SIGTERM; the shell waits for training to save its state.
    return f"trap : TERM; mkdir -p {shlex.quote(str(Path(log).parent))} && {run} || {again} || {failed}"


def flow_command():
    """The command that computes the flow of the profile's video files; it resumes, and is done at once if it is there."""
    log = shlex.quote(str(Path(FLOW_SUMMARY).with_suffix(".log")))
    command = ["python3", "-m", "d3d", "flow", *flow_arguments()]
    if GPUS:
        command = ["python3", "-m", "d3d.study.gpus", str(len(GPUS)), *command]
    run = f"python3 -m d3d.study.attached $PPID {shlex.join(command)} > {log} 2>&1"
    failed = f"{{ tail -n 1 {log}; echo {shlex.quote(f'failed: see {log}')}; exit 1; }}"
    done = f"tail -n 1 {log} > {shlex.quote(FLOW_SUMMARY)} && echo finished {shlex.quote(FLOW_SUMMARY)} $SECONDS"
    return f"trap : TERM; SECONDS=0; {{ {run} || {failed}; }} && {done}"


def job(experiment):
    """The command of a rule's job: the experiment's notebook with the profile and the run's own parameters."""

    def command(wildcards, output, threads, resources):
        params = overrides(experiment, wildcards.get("arm"), int(wildcards.get("seed", 0)))
        out = str(Path(output[0]).with_suffix(".ipynb"))
        notebook, gpus = f"notebooks/experiments/{experiment}.ipynb", resources.get("gpu", 0)
        run = papermill(notebook, out, params, threads, MERGED_PROFILE, gpus)
        return f"SECONDS=0; {run} && echo finished {shlex.quote(output[0])} $SECONDS"

    return command


rule study:
    input:
        [records_of(experiment, seeds=SEEDS) for experiment in STUDY_EXPERIMENTS],
        # Of rendered clips the book has the comparisons.
        f"{RESULTS}/comparison.md" if with_defaults("train", STUDY)["dataset"] in FILE_DATASETS else [],


rule flow:
    input:
        FLOW_STAMP,
    output:
        FLOW_SUMMARY,
    # TV-L1 on a CPU takes one process per core; Snakemake gives as many as there are.
    threads: max(8, CORES_PER_RUN)
    resources:
        gpu=max(1, len(GPUS)),
    params:
        command=flow_command(),
    shell:
        "{params.command}"


rule train:
    input:
        lambda w: STAMPS["train", w.arm, int(w.seed)],
        lambda w: flow_of(w.arm),
    output:
        RESULTS + "/train/{arm}-seed{seed,[0-9]+}.json",
        RESULTS + "/train/{arm}-seed{seed,[0-9]+}.safetensors",
    threads: CORES_PER_RUN
    resources:
        gpu=gpus_of("train"),
    params:
        command=job("train"),
    shell:
        "{params.command}"


rule distill:
    input:
        lambda w: STAMPS["distill", w.arm, int(w.seed)],
        lambda w: flow_of(w.arm),
        lambda w: overrides("distill", w.arm, int(w.seed))["student"] or [],
        lambda w: overrides("distill", w.arm, int(w.seed)).get("teacher", []),
        lambda w: overrides("distill", w.arm, int(w.seed)).get("second_teacher", []),
    output:
        RESULTS + "/distill/{arm}-seed{seed,[0-9]+}.json",
        RESULTS + "/distill/{arm}-seed{seed,[0-9]+}.safetensors",
    threads: CORES_PER_RUN
    resources:
        gpu=gpus_of("distill"),
    params:
        command=job("distill"),
    shell:
        "{params.command}"


rule fuse:
    input:
        STAMPS["fuse", None, None],
        [records_of(experiment, arm, seeds=SEEDS) for experiment in plan.TRAINED for arm in STUDY["arms"]],
    output:
        records_of("fuse", seeds=SEEDS),
    params:
        command=job("fuse"),
    shell:
        "{params.command}"


rule compare:
    input:
        STAMPS["compare", None, None],
        [records_of(experiment, seeds=SEEDS) for experiment in plan.TRAINED],
    output:
        records_of("compare", seeds=SEEDS),
    params:
        command=job("compare"),
    shell:
        "{params.command}"


rule comparison:
    input:
        [records_of(experiment, seeds=SEEDS) for experiment in (*plan.TRAINED, "fuse")],
    output:
        RESULTS + "/comparison.md",
    shell:
        f"SECONDS=0; python3 -m d3d report compare {RESULTS} > {{output}} && echo finished {{output}} $SECONDS"


rule leak:
    input:
        lambda w: STAMPS["leak", None, int(w.seed)],
    output:
        [f"{RESULTS}/leak/{arm}-seed{{seed}}.json" for arm in plan.LEAKS],
    threads: CORES_PER_RUN
    resources:
        gpu=1,
    params:
        command=job("leak"),
    shell:
        "{params.command}"


rule tvl1:
    input:
        STAMPS["tvl1", None, None],
    output:
        records_of("tvl1"),
    threads: CORES_PER_RUN
    resources:
        gpu=1,
    params:
        command=job("tvl1"),
    shell:
        "{params.command}"


rule probe:
    input:
        lambda w: STAMPS["probe", None, int(w.seed)],
        FLOW_SUMMARY if FLOW_CACHE else [],
        lambda w: weights_of("probe", w.seed),
    output:
        [f"{RESULTS}/probe/{arm}-seed{{seed}}.json" for arm in plan.arms_of("probe", STUDY)],
    # Linear probes are many small fits on the CPU, in parallel.
    threads: max(4, CORES_PER_RUN)
    resources:
        gpu=1,
    params:
        command=job("probe"),
    shell:
        "{params.command}"


rule attribution:
    input:
        lambda w: STAMPS["attribution", None, int(w.seed)],
        FLOW_SUMMARY if FLOW_CACHE else [],
        lambda w: weights_of("attribution", w.seed),
    output:
        [f"{RESULTS}/attribution/{arm}-seed{{seed}}.json" for arm in plan.arms_of("attribution", STUDY)],
    threads: CORES_PER_RUN
    resources:
        gpu=1,
    params:
        command=job("attribution"),
    shell:
        "{params.command}"


rule detect:
    input:
        lambda w: STAMPS["detect", None, int(w.seed)],
        lambda w: weights_of("detect", w.seed),
    output:
        [f"{RESULTS}/detect/{arm}-seed{{seed}}.json" for arm in plan.arms_of("detect", STUDY)],
    threads: CORES_PER_RUN
    resources:
        gpu=1,
    params:
        command=job("detect"),
    shell:
        "{params.command}"


rule chapter:
    input:
        lambda w: CHAPTER_STAMPS[w.name],
        "book/claims.yaml",
        [records_of(experiment) for experiment in EXPERIMENTS],
        # Chapters read the records of an experiment from here if it was published.
        [str(path) for path in (*plan.ARCHIVES, plan.JHMDB_SEARCHES) if path.is_file()],
    output:
        "book/chapters/{name}.ipynb",
    params:
        command=lambda w, output: papermill(
            f"notebooks/chapters/{w.name}.ipynb", output[0], {"results": CHAPTER_RESULTS[w.name]}
        ),
    shell:
        "SECONDS=0; {params.command} && echo finished {output} $SECONDS"


rule book:
    input:
        [f"book/chapters/{name}.ipynb" for name in CHAPTERS],
        "_config.yml",
        [str(p) for p in sorted(Path("book").glob("*")) if p.is_file()],
        [str(p) for folder in ("_static", "_ext", "_extra") for p in sorted(Path("book", folder).rglob("*.*"))],
        sorted(map(str, Path("results/executed").glob("*.ipynb"))),
        "d3d/report/pages.py",
        "d3d/report/jhmdb.py",
    output:
        "book/_build/html/index.html",
    shell:
        # Sphinx's cache would hide the warnings that caused a failure, and pages that are no more would stay.
        "SECONDS=0; python3 -m d3d report pages && rm -rf book/_build && "
        "{{ jupyter-book build book --path-output book --config _config.yml -W -n --keep-going --all "
        "> .snakemake/book.log 2>&1 || {{ cat .snakemake/book.log; rm -rf book/_build; exit 1; }}; }} "
        "&& echo finished {output} $SECONDS"
