"""What depends on what: experiments of every arm and seed of a profile, then the chapters, then the book.

    snakemake --cores all --config profile=smoke -- book
    snakemake --cores all --config profile=h200 seeds='0 1' -- study       # the whole chain of some seeds only

A run is stale when its record was made with other parameters, or by code of another meaning, than today's; the record
knows (d3d/study/staleness.py). Each run has a file under .snakemake/plan whose age tells Snakemake. What is published
is an archive: it is no target here and never stale.
"""

import shlex
from pathlib import Path

from d3d.files import write_atomic
from d3d.study import plan, profiles, staleness
from d3d.study.experiments import EXPERIMENTS, values

PROFILE = config.get("profile", "smoke")
PARAMS = f"notebooks/params/{PROFILE}.yaml"
try:
    STUDY = profiles.read_profile(PARAMS)
except (ValueError, OSError) as error:
    raise WorkflowError(str(error)) from None
RESULTS = f"results/{PROFILE}"
STAMPED = Path(".snakemake/plan")
# The profile with what it extends, as papermill takes it.
WHOLE = f"{RESULTS}/profile.yaml"
if not Path(WHOLE).is_file() or Path(WHOLE).read_text() != profiles.dump(STUDY):
    write_atomic({Path(WHOLE): profiles.dump(STUDY).encode()})
ASKED = str(config.get("seeds", "")).split()
if strange := set(ASKED) - {str(seed) for seed in STUDY["seeds"]}:
    raise WorkflowError(f"seeds must be some of {STUDY['seeds']} of {PARAMS}, not {min(strange)!r}")
ONLY = [int(seed) for seed in ASKED] or STUDY["seeds"]
# What is of no seed is left out where some seeds are asked for.
WANTED = [name for name in EXPERIMENTS if not (ASKED and name == "tvl1")]
CHAPTERS = ["data", "streams", "missing_motion", "distillation", "attention", "rerun", "verdict"]
# What a chapter shows; an experiment that is not published is shown as this machine made it.
SHOWN = dict.fromkeys(CHAPTERS, str(plan.shown())) | {"rerun": RESULTS, "attention": str(plan.shown("attribution"))}
TRAINED = [name for experiment in plan.TRAINED for name in plan.arms_of(experiment, STUDY)]


def overrides(experiment, arm, seed):
    return plan.overrides(experiment, arm or "", seed or 0, profile=STUDY, results=RESULTS)


def runs_of(experiment):
    """Arms and seeds of an experiment's records."""
    arms = plan.arms_of(experiment, STUDY)
    return [(arm, seed) for arm in arms for seed in plan.seeds_of(experiment, STUDY, name=arm)]


def records_of(experiment, arm=None, seed=None, only=None):
    """The records of an experiment: of one arm, of one seed, or of networks of the seeds `only`."""
    return [
        f"{RESULTS}/{experiment}/{a}-seed{s}.json"
        for a, s in runs_of(experiment)
        if arm in (None, a) and seed in (None, s)
        if only is None or plan.seeds_used(a, s) <= set(only)
    ]


def weights_of(experiment, seed):
    """The trained networks of a seed that an experiment looks into."""
    return [plan.weights(RESULTS, a, seed) for a in plan.arms_of(experiment, STUDY) if a in TRAINED]


def stamp(experiment, arm=None, seed=None, only=None):
    """A file younger than the records of a run exactly where one of them is stale."""
    own = STUDY | overrides(experiment, arm, seed)
    current = all(staleness.is_current(path, experiment, own) for path in records_of(experiment, arm, seed, only))
    content = f"{values(experiment, own)} {staleness.source_hash(experiment)}"
    return staleness.write_stamp(STAMPED / PROFILE / f"{experiment}-{arm}-{seed}", content, current=current)


planned = {record for name in EXPERIMENTS for record in records_of(name)}
strangers = {str(p) for p in Path(RESULTS).glob("*/*.json")} - planned
if strangers:
    raise WorkflowError(
        f"{min(strangers)} is no run of the profile {PROFILE!r} and would be averaged with those that are: "
        f"move it elsewhere ({len(strangers)} such in all)"
    )

# Written before Snakemake looks at any file.
STAMPS = {(n, arm, seed): stamp(n, arm, seed) for n in plan.TRAINED for arm, seed in runs_of(n)}
STAMPS |= {(n, None, s): stamp(n, None, s) for n in plan.EXAMINE for s in plan.seeds_of(n, STUDY)}
STAMPS |= {("fuse", None, None): stamp("fuse", only=ONLY), ("tvl1", None, None): stamp("tvl1")}
CHAPTER_STAMPS = {
    name: staleness.write_stamp(
        STAMPED / f"chapter-{name}",
        f"{SHOWN[name]} {staleness.notebook_hash(f'notebooks/chapters/{name}.ipynb')}",
    )
    for name in CHAPTERS
}


def papermill(notebook, out, options, threads=1, profile=""):
    """One notebook through papermill, on one thread and as many workers: runs fill the cores side by side."""
    given = [part for k, v in options.items() for part in ("-r" if isinstance(v, str) else "-p", k, str(v))]
    log = Path(out).with_suffix(".log")
    command = ["papermill", "--no-progress-bar", "--log-output", notebook, out, *(["-f", profile] if profile else []), *given]
    return (
        f"mkdir -p {log.parent} && OMP_NUM_THREADS=1 LOKY_MAX_CPU_COUNT={threads} PYDEVD_DISABLE_FILE_VALIDATION=1 "
        f"{shlex.join(command)} > {log} 2>&1 "
        f"|| {{ grep . {log} | tail -n 1; echo 'failed: {out} and {log} show where'; exit 1; }}"
    )


def job(experiment):
    """The command of a rule's job, with the whole profile and what this run is given beyond it."""

    def command(wildcards, output, threads):
        options = overrides(experiment, wildcards.get("arm"), int(wildcards.get("seed", 0)))
        out = str(Path(output[0]).with_suffix(".ipynb"))
        run = papermill(f"notebooks/experiments/{experiment}.ipynb", out, options, threads, WHOLE)
        return f"SECONDS=0; {run} && echo finished {output[0]} $SECONDS"

    return command


rule study:
    input:
        [records_of(experiment, only=ONLY) for experiment in WANTED],


rule train:
    input:
        lambda w: STAMPS["train", w.arm, int(w.seed)],
    output:
        RESULTS + "/train/{arm}-seed{seed,[0-9]+}.json",
        RESULTS + "/train/{arm}-seed{seed,[0-9]+}.safetensors",
    resources:
        gpu=1,
    params:
        command=job("train"),
    shell:
        "{params.command}"


rule distill:
    input:
        lambda w: STAMPS["distill", w.arm, int(w.seed)],
        lambda w: overrides("distill", w.arm, int(w.seed))["student"] or [],
        lambda w: overrides("distill", w.arm, int(w.seed)).get("teacher", []),
    output:
        RESULTS + "/distill/{arm}-seed{seed,[0-9]+}.json",
        RESULTS + "/distill/{arm}-seed{seed,[0-9]+}.safetensors",
    resources:
        gpu=1,
    params:
        command=job("distill"),
    shell:
        "{params.command}"


rule fuse:
    input:
        STAMPS["fuse", None, None],
        [records_of(experiment, arm, only=ONLY) for experiment in plan.TRAINED for arm in STUDY["arms"]],
    output:
        records_of("fuse", only=ONLY),
    params:
        command=job("fuse"),
    shell:
        "{params.command}"


rule leak:
    input:
        lambda w: STAMPS["leak", None, int(w.seed)],
    output:
        [f"{RESULTS}/leak/{arm}-seed{{seed}}.json" for arm in plan.LEAKS],
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
    resources:
        gpu=1,
    params:
        command=job("tvl1"),
    shell:
        "{params.command}"


rule probe:
    input:
        lambda w: STAMPS["probe", None, int(w.seed)],
        lambda w: weights_of("probe", w.seed),
    output:
        [f"{RESULTS}/probe/{arm}-seed{{seed}}.json" for arm in plan.arms_of("probe", STUDY)],
    # Linear probes are many small fits on the CPU.
    threads: 4
    resources:
        gpu=1,
    params:
        command=job("probe"),
    shell:
        "{params.command}"


rule attribution:
    input:
        lambda w: STAMPS["attribution", None, int(w.seed)],
        lambda w: weights_of("attribution", w.seed),
    output:
        [f"{RESULTS}/attribution/{arm}-seed{{seed}}.json" for arm in plan.arms_of("attribution", STUDY)],
    resources:
        gpu=1,
    params:
        command=job("attribution"),
    shell:
        "{params.command}"


rule chapter:
    input:
        lambda w: CHAPTER_STAMPS[w.name],
        "book/claims.yaml",
        [records_of(experiment) for experiment in EXPERIMENTS],
        # What is published; the chapters take an experiment's numbers from there where there are any.
        [str(path) for path in plan.ARCHIVES if path.is_file()],
    output:
        "book/chapters/{name}.ipynb",
    params:
        command=lambda w, output: papermill(
            f"notebooks/chapters/{w.name}.ipynb", output[0], {"results": SHOWN[w.name]}
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
    output:
        "book/_build/html/index.html",
    shell:
        # After a failure Sphinx's cache would hide the warnings that caused it.
        "SECONDS=0; python3 -m d3d report pages && "
        "{{ jupyter-book build book --path-output book --config _config.yml -W -n --keep-going --all "
        "> .snakemake/book.log 2>&1 || {{ cat .snakemake/book.log; rm -rf book/_build; exit 1; }}; }} "
        "&& echo finished {output} $SECONDS"
