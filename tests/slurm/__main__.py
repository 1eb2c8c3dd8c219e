"""Runs a small study as jobs of a real SLURM, which it starts on this machine and stops at the end.

    python -m tests.slurm [--profile smoke]      # make test-slurm

The study is interrupted on the login node, one of its jobs is killed, another one is preempted; its records must equal
those of a run without SLURM, bit by bit. All of this happens in copies of the repository in a temporary folder.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.slurm import cluster, page
from tests.slurm.cluster import Cluster
from tests.slurm.steps import Failure, Study, output, say, wait_for

CPUS = 4
RESUMED = re.compile(r"resuming after step (\d+) of (\d+)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm")
    parser.add_argument(
        "--profile", default="", help="of notebooks/params (default: a study of one seed, for this test)"
    )
    args = parser.parse_args()
    if lacks := cluster.missing():
        sys.exit(f"make test-slurm needs {lacks}.")
    if reason := cluster.occupied():
        sys.exit(f"make test-slurm starts a SLURM of its own, but {reason}.")
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="d3d-slurm-"))
    folder.chmod(0o755)  # munged runs as a user of its own
    try:
        check(folder, args.profile)
    except Failure as error:
        say(f"FAILED: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        say(f"removed {folder}")
    say("passed")


def check(folder: Path, profile: str) -> None:
    """Runs the study with and without SLURM and compares both; raises Failure."""
    resources = page.shared_resources()
    with Study(folder / "local", profile, resources) as local, Study(folder / "study", profile, resources) as study:
        say("the study without SLURM")
        local.finish(local.make())
        with Cluster(folder, cpus=CPUS):
            say(f"SLURM runs: {output('sinfo', '-h', '-o', '%P %T, %c CPUs, %G').splitlines()[0]}")
            run_interrupted(study)
            page.check(study)
            wait_for("the processes of all jobs end", lambda: not study.processes())
        say("SLURM is stopped")
        compare(local, study)


def run_interrupted(study: Study) -> None:
    """Runs the study as jobs, of which three are stopped half-way, each in another way."""
    rgb, flow, d3d = (study.results / run for run in ("train/rgb-seed0", "train/flow-seed0", "distill/d3d-seed0"))

    say("the study as jobs of SLURM")
    run = study.make("CLUSTER=test")
    wait_for("training of rgb and flow", lambda: study.is_half_way(rgb) and study.is_half_way(flow), run)
    devices = {study.environment_of(path)["CUDA_VISIBLE_DEVICES"] for path in (rgb, flow)}
    if devices != {"0"}:
        raise Failure(f"rgb and flow do not share the GPU, although each asks for a shard: {devices}")
    say("rgb and flow train at the same time on one GPU")

    say("Ctrl-C on the login node")
    os.killpg(run.pid, signal.SIGINT)
    run.wait()
    wait_for("SLURM ends the jobs", lambda: not output("squeue", "-h"))
    # The last of them end a moment after their jobs.
    wait_for("the processes of the jobs end", lambda: not study.processes())
    say("its jobs are cancelled, and no process of theirs is left")

    run = study.make("CLUSTER=test")
    wait_for("rgb resumes", lambda: study.is_resumed(rgb) and study.is_half_way(flow), run)
    job = study.job_of(flow)
    say(f"job {job} (flow) is killed")
    output("scancel", "--signal=KILL", job)
    wait_for("the job has ended", lambda: job not in output("squeue", "-h", "-o", "%i").split())
    again = wait_for("the job is submitted again", lambda: study.job_of(flow), run)
    say(f"it is submitted again, as job {again}")

    wait_for("training of d3d", lambda: study.is_half_way(d3d), run)
    job = study.job_of(d3d)
    say(f"job {job} (d3d) is preempted by a job of a partition with priority")
    urgent = output("sbatch", "--parsable", "-p", "urgent", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for("the urgent job has run", lambda: urgent not in output("squeue", "-h", "-o", "%i").split(), run)
    # SLURM waits two minutes before it starts a requeued job.
    for line in output("squeue", "-h", "-t", "PENDING", "-o", "%i %r").splitlines():
        if line.endswith("BeginTime"):
            output("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")
    study.finish(run)
    for path in (rgb, flow, d3d):
        resumed = RESUMED.search(path.with_suffix(".log").read_text())
        if not resumed or not 0 < int(resumed[1]) < int(resumed[2]):
            raise Failure(f"{path.name} did not resume: {path.with_suffix('.log').read_text()[-500:]}")
        say(f"{path.name} resumed after step {resumed[1]} of {resumed[2]}")


def compare(local: Study, study: Study) -> None:
    """Raises Failure unless both studies have the same records and weights."""
    expected, actual = local.contents(), study.contents()
    if expected.keys() != actual.keys():
        raise Failure(f"only one of the studies has {sorted(expected.keys() ^ actual.keys())}")
    if different := sorted(name for name in expected if expected[name] != actual[name]):
        raise Failure(f"differs from a run without SLURM: {', '.join(different)}")
    say(f"all {len(expected)} records and weights equal those of the run without SLURM, bit by bit")


if __name__ == "__main__":
    main()
