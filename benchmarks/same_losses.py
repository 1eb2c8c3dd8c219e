"""Tests whether a refactoring keeps the numbers: runs the smoke study at two commits on this CPU and compares results.

    python benchmarks/same_losses.py OLD NEW          # two commits; NEW may be `.`, the working tree as it is

Runs every notebook of the smoke profile at toy size through each commit's own Snakefile, in a temporary worktree.
Compares weights, arrays and metrics bit by bit, except timings. Arrays that only the newer commit writes are listed but
do not count. Exits with 1 if anything differs or is missing. Results of a commit stay under --cache, so that each
commit of a series of refactorings runs once.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]
PROFILE = "same"
TOY = {
    "train_clips": 128, "test_clips": 64, "leak_clips": 64, "epochs": 2, "batch_size": 16, "width": 0.25,
    "students": {"epochs": 2}, "decoder_epochs": 1, "pictures": 2, "pairs": 4, "clips": 4, "steps": 2,
}  # fmt: skip
TIMING_PREFIX, TIMING_NAMES = "seconds/", ("ms", "ratio")  # of metrics that are not compared


def run(commit: str, cache: Path) -> Path:
    """Runs the toy study at a commit, or in a copy of the working tree for `.`; returns the folder of its results."""
    if commit == ".":
        return _run_study(_copy_working_tree(Path(tempfile.mkdtemp()) / "tree"))
    sha = _git("rev-parse", f"{commit}^{{commit}}")
    results = cache / sha
    if not (results / "done").is_file():
        tree = Path(tempfile.mkdtemp()) / "tree"
        _git("worktree", "add", "--detach", str(tree), sha)
        try:
            shutil.copytree(_run_study(tree), results, dirs_exist_ok=True)
        finally:
            _git("worktree", "remove", "--force", str(tree))
        (results / "done").touch()
    return results


def _copy_working_tree(tree: Path) -> Path:
    for name in _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


def _run_study(tree: Path) -> Path:
    smoke = yaml.safe_load((tree / "notebooks/params/smoke.yaml").read_text())
    (tree / f"notebooks/params/{PROFILE}.yaml").write_text(yaml.safe_dump(smoke | TOY))
    programs = Path(sys.executable).parent
    environment = os.environ | {"PYTHONPATH": str(tree), "PATH": f"{programs}:{os.environ['PATH']}"}
    command = [str(programs / "snakemake"), "--cores", "all", "--quiet", "all", "--config", f"profile={PROFILE}"]
    command += ["--", "study"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the study failed in {tree}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return tree / "results" / PROFILE


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def compare(old: Path, new: Path) -> Iterator[tuple[str, str]]:
    """Compares two folders of results file by file.

    Yields:
        Pairs of `<experiment>/<arm>-seed<seed> <suffix>` and how the files differ, empty if they are equal.
    """
    for path in sorted(old.glob("*/*.json")):
        name = str(path.relative_to(old).with_suffix(""))
        for suffix, read in {".json": _metrics, ".npz": _arrays, ".safetensors": load_file}.items():
            old_file, new_file = path.with_suffix(suffix), (new / name).with_name(f"{path.stem}{suffix}")
            if not old_file.is_file():
                continue
            if not new_file.is_file():
                yield f"{name} {suffix}", "is missing"
                continue
            before, after = read(old_file), read(new_file)
            added = sorted(set(after) - set(before))
            differing = [key for key in before if key not in after or not _equal(before[key], after[key])]
            difference = f"differs in {', '.join(differing[:5])} ({len(differing)} of {len(before)})"
            label = f"{name} {suffix}" + (f" (new: {', '.join(added)})" if added else "")
            yield label, difference if differing else ""
    for path in sorted(new.glob("*/*.json")):
        if not (old / path.relative_to(new)).is_file():
            yield f"{path.relative_to(new)}", "is new"


def _metrics(path: Path) -> dict[str, np.ndarray]:
    metrics = json.loads(path.read_text())["metrics"]
    return {k: np.array(v) for k, v in metrics.items() if not k.startswith(TIMING_PREFIX) and k not in TIMING_NAMES}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="commit")
    parser.add_argument("new", help="commit, or . for the working tree")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "same_losses")
    args = parser.parse_args()
    compared = list(compare(run(args.old, args.cache), run(args.new, args.cache)))
    unequal = [(file, difference) for file, difference in compared if difference]
    for file, difference in unequal or compared:
        print(f"{file}: {difference or 'equal'}")
    print(f"{len(compared) - len(unequal)} of {len(compared)} files equal to the bit")
    sys.exit(bool(unequal) or not compared)


if __name__ == "__main__":
    main()
