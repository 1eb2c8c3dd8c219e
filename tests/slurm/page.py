"""The commands of book/cluster.md, as a test runs them on a cluster of its own."""

import re

import yaml

from tests.recipes import BLOCK
from tests.slurm.steps import ROOT, Failure, Study, output, say, wait_for

PAGE = ROOT / "book/cluster.md"
# Blocks that are not run: they install, or run this test.
NOT_RUN = ("make .venv/lock\n.venv/bin/pip install -e '.[slurm]'\n", "make test-slurm\n")
NUM_VIDEOS, NUM_SHARDS = 4, 2
# What a small cluster without accounts has instead of what the page names.
REPLACED = {"CLUSTER=slurm": "CLUSTER=test", "profiles/slurm ": "profiles/test "}
REPLACED |= {"--array=1-8": f"--array=1-{NUM_SHARDS}", "TASK_ID/8": f"TASK_ID/{NUM_SHARDS}", "gpu:4": "gpu:1"}
REPLACED |= {"--cpus-per-task=32 --mem=128G": "--mem=8G", "--cpus-per-task=8 --mem=32G": "--mem=8G"}


def blocks(kind: str) -> list[str]:
    """The page's blocks of a language."""
    return [text for language, text in BLOCK.findall(PAGE.read_text()) if language == kind]


def shared_resources() -> dict[str, dict]:
    """The resources of the rules that ask for a share of a GPU."""
    settings = map(yaml.safe_load, blocks("yaml"))
    return next(content["set-resources"] for content in settings if "leak" in content["set-resources"])


def check(study: Study) -> None:
    """Runs the page's commands after a study has ended, in its folder; raises Failure if one fails."""
    from tests.video.test_decode import write_video

    for index in range(NUM_VIDEOS):
        path = study.folder / f"VIDEOS/class{index % 2}/video{index}.mkv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, range(40, 200, 40))
    count, last = 0, ""
    for block in blocks("sh"):
        if block in NOT_RUN:
            continue
        text = block.replace("h200", study.profile)
        for old, new in REPLACED.items():
            text = text.replace(old, new)
        count += 1
        if block.startswith("#!"):
            _submit(study, text)
        else:
            last = output("bash", "-euo", "pipefail", "-c", text, cwd=study.folder, env=study.environment)
            if re.search(r"^ *\d+/\d+ ", last, re.MULTILINE):
                raise Failure(f"a finished study runs again: {text}{last}")
    if f"{NUM_VIDEOS} videos" not in last:
        raise Failure(f"the job array has not computed the flow of {NUM_VIDEOS} videos: {last}")
    say(f"{count} blocks of commands of {PAGE.name} work")


def _submit(study: Study, script: str) -> None:
    """Submits a script and waits until its jobs have ended well."""
    path = study.folder / "script.sh"
    path.write_text(script)
    job = output("sbatch", "--parsable", path.name, cwd=study.folder, env=study.environment)
    wait_for("the script's jobs have ended", lambda: not output("squeue", "-h", "--job", job, "-t", "PD,R,CG,CF"))
    states = set(output("squeue", "-h", "--job", job, "-t", "all", "-o", "%T").split())
    if states != {"COMPLETED"}:
        logs = [log.read_text()[-1000:] for log in study.folder.glob("*.log")]
        raise Failure(f"{script} ended as {states}: {logs}")
