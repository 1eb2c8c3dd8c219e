"""What depends on what: experiments of every arm and seed of a profile, then the chapters, then the book.

    snakemake --cores all --config profile=smoke -- book

A run is stale when its record was made with other parameters, or by other modules, than today's; the record knows
(d3d/notebooks.py). Each run has a file under .snakemake/plan whose age tells Snakemake.
"""

from pathlib import Path

from d3d import notebooks, study
from d3d.study import ARMS, WRITES

PROFILE = config.get("profile", "smoke")
PARAMS = f"notebooks/params/{PROFILE}.yaml"
STUDY = notebooks.read_profile(PARAMS)
SEEDS = STUDY["seeds"]
RESULTS = f"results/{PROFILE}"
PLAN = Path(".snakemake/plan")
SHOWN = str(study.shown())
CHAPTERS = {
    "data": [],
    "streams": ["train", "fuse"],
    "missing_motion": ["probe"],
    "distillation": ["train", "distill", "fuse"],
    "attention": ["attribution"],
    "rerun": ["train", "distill", "fuse", "probe", "attribution"],
    "verdict": ["train", "distill", "fuse", "probe", "attribution"],
}


def given(experiment, arm, seed):
    return study.given(experiment, arm, seed, seeds=SEEDS, results=RESULTS)


def stamp(experiment, arm=None, seed=None):
    """A file younger than the records of a run exactly where one of them is stale; without arm or seed, of all."""
    own = STUDY | given(experiment, arm, seed)
    arms, seeds = [arm] if arm else WRITES[experiment], SEEDS if seed is None else [seed]
    current = all(
        notebooks.is_current(f"{RESULTS}/{experiment}/{arm}-seed{seed}.json", experiment, own)
        for arm in arms
        for seed in seeds
    )
    content = f"{notebooks.expected(experiment, own)} {notebooks.source_hash(experiment)}"
    return notebooks.follows(PLAN / PROFILE / f"{experiment}-{arm}-{seed}", content, current=current)


# Written before Snakemake looks at any file.
STAMPS = {(name, arm, seed): stamp(name, arm, seed) for arm, name in ARMS.items() for seed in SEEDS}
STAMPS |= {(name, None, seed): stamp(name, None, seed) for name in ("probe", "attribution") for seed in SEEDS}
STAMPS |= {("fuse", None, None): stamp("fuse")}
CHAPTER_STAMPS = {
    name: notebooks.follows(PLAN / f"chapter-{name}", f"{SHOWN} {notebooks.source_hash(name)}") for name in CHAPTERS
}


def records_of(experiment):
    return [f"{RESULTS}/{experiment}/{arm}-seed{seed}.json" for arm in WRITES[experiment] for seed in SEEDS]


def papermill(notebook, out, options):
    """One notebook through papermill, on one thread: runs fill the cores side by side, sums come out in one order."""
    profile = f"-f {options.pop('profile')} " if "profile" in options else ""
    options = profile + " ".join(f"-r {k} {v!r}" if isinstance(v, str) else f"-p {k} {v}" for k, v in options.items())
    log = Path(out).with_suffix(".log")
    return (
        f"mkdir -p {log.parent} && OMP_NUM_THREADS=1 PYDEVD_DISABLE_FILE_VALIDATION=1 "
        f"papermill --no-progress-bar {notebooks.notebook(notebook)} {out} {options} > {log} 2>&1 "
        f"|| {{ tail -n 30 {log}; echo 'failed: {out} shows where'; exit 1; }}"
    )


def job(experiment):
    """The command of a rule's job, with the whole profile and what this run is given beyond it."""

    def command(wildcards, output):
        arm, seed = getattr(wildcards, "arm", None), int(getattr(wildcards, "seed", SEEDS[0]))
        out = Path(output[0]).with_suffix(".ipynb")
        options = {"profile": PARAMS} | given(experiment, arm, seed)
        return f"{papermill(experiment, out, options)} && python3 -m d3d.records {output[0]}"

    return command


rule study:
    input:
        [records_of(experiment) for experiment in WRITES],


rule train:
    input:
        lambda w: STAMPS["train", w.arm, int(w.seed)],
    output:
        RESULTS + "/train/{arm}-seed{seed,[0-9]+}.json",
        RESULTS + "/train/{arm}-seed{seed,[0-9]+}.safetensors",
    params:
        command=job("train"),
    shell:
        "{params.command}"


rule distill:
    input:
        lambda w: STAMPS["distill", w.arm, int(w.seed)],
        lambda w: given("distill", w.arm, int(w.seed))["student"],
        lambda w: given("distill", w.arm, int(w.seed)).get("teacher", []),
    output:
        RESULTS + "/distill/{arm}-seed{seed,[0-9]+}.json",
        RESULTS + "/distill/{arm}-seed{seed,[0-9]+}.safetensors",
    params:
        command=job("distill"),
    shell:
        "{params.command}"


rule fuse:
    input:
        STAMPS["fuse", None, None],
        records_of("train"),
        records_of("distill"),
    output:
        records_of("fuse"),
    params:
        command=job("fuse"),
    shell:
        "{params.command}"


rule probe:
    input:
        lambda w: STAMPS["probe", None, int(w.seed)],
        lambda w: [study.weights(RESULTS, arm, w.seed) for arm in ARMS],
    output:
        [f"{RESULTS}/probe/{arm}-seed{{seed}}.json" for arm in WRITES["probe"]],
    params:
        command=job("probe"),
    shell:
        "{params.command}"


rule attribution:
    input:
        lambda w: STAMPS["attribution", None, int(w.seed)],
        lambda w: [study.weights(RESULTS, arm, w.seed) for arm in ARMS if arm != "flow"],
    output:
        [f"{RESULTS}/attribution/{arm}-seed{{seed}}.json" for arm in WRITES["attribution"]],
    params:
        command=job("attribution"),
    shell:
        "{params.command}"


rule chapter:
    input:
        lambda w: CHAPTER_STAMPS[w.name],
        "book/claims.yaml",
        lambda w: [path for name in CHAPTERS[w.name] for path in records_of(name)],
        sorted(map(str, Path(SHOWN).glob("*/*.json"))) if SHOWN != RESULTS else [],
    output:
        "book/chapters/{name}.ipynb",
    params:
        command=lambda w, output: papermill(w.name, output[0], {"results": RESULTS if w.name == "rerun" else SHOWN}),
    shell:
        "{params.command} && echo 'chapter      {wildcards.name}'"


rule book:
    input:
        [f"book/chapters/{name}.ipynb" for name in CHAPTERS],
        "_config.yml",
        [str(p) for p in sorted(Path("book").glob("*")) if p.is_file()],
        [str(p) for p in sorted(Path("book/_static").glob("*"))],
        "d3d/report.py",
    output:
        "book/_build/html/index.html",
    shell:
        "python3 -m d3d.report pages && "
        "jupyter-book build book --path-output book --config _config.yml -W -n --keep-going --quiet"
