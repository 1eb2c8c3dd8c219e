"""Does a refactor keep the numbers? Runs the smoke chain at two commits on this CPU and compares what they wrote.

    python benchmarks/same_losses.py OLD NEW          # two commits; NEW may be `.`, the working tree as it is

Every notebook of the smoke profile runs at toy size through each commit's own Snakefile, in a worktree of its own.
Weights and arrays are compared bit by bit, metrics as numbers; what tells time is left out. An array that only the
newer commit writes is listed and does not count. Exits with 1 where anything differs or is missing. A commit's results
stay under --cache, so that a chain of refactors pays once for each.
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
TIMES = ("seconds/", "ms", "ratio")  # metrics that start so, or are called so, tell time


def run(commit: str, cache: Path) -> Path:
    """The folder of results of the toy chain at a commit, or of the working tree for `.`."""
    if commit == ".":
        return _chain(_copied_tree(Path(tempfile.mkdtemp()) / "tree"))
    full = _git("rev-parse", f"{commit}^{{commit}}")
    kept = cache / full
    if not (kept / "done").is_file():
        tree = Path(tempfile.mkdtemp()) / "tree"
        _git("worktree", "add", "--detach", str(tree), full)
        try:
            shutil.copytree(_chain(tree), kept, dirs_exist_ok=True)
        finally:
            _git("worktree", "remove", "--force", str(tree))
        (kept / "done").touch()
    return kept


def _copied_tree(tree: Path) -> Path:
    for name in _git("ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


def _chain(tree: Path) -> Path:
    smoke = yaml.safe_load((tree / "notebooks/params/smoke.yaml").read_text())
    (tree / f"notebooks/params/{PROFILE}.yaml").write_text(yaml.safe_dump(smoke | TOY))
    programs = Path(sys.executable).parent
    environment = os.environ | {"PYTHONPATH": str(tree), "PATH": f"{programs}:{os.environ['PATH']}"}
    command = [str(programs / "snakemake"), "--cores", "all", "--quiet", "all", "--config", f"profile={PROFILE}"]
    command += ["--", "study"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the chain failed in {tree}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return tree / "results" / PROFILE


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def compare(old: Path, new: Path) -> Iterator[tuple[str, str]]:
    """What was compared, `<experiment>/<arm>-seed<seed> <part>`, and how it differs; empty where it does not."""
    for path in sorted(old.glob("*/*.json")):
        name = str(path.relative_to(old).with_suffix(""))
        for suffix, read in {".json": _metrics, ".npz": _arrays, ".safetensors": load_file}.items():
            mine, theirs = path.with_suffix(suffix), (new / name).with_name(f"{path.stem}{suffix}")
            if not mine.is_file():
                continue
            if not theirs.is_file():
                yield f"{name} {suffix}", "is missing"
                continue
            before, after = read(mine), read(theirs)
            added = sorted(set(after) - set(before))
            differing = [key for key in before if key not in after or not _equal(before[key], after[key])]
            told = f"differs in {', '.join(differing[:5])} ({len(differing)} of {len(before)})" if differing else ""
            yield f"{name} {suffix}" + (f" (new: {', '.join(added)})" if added else ""), told
    for path in sorted(new.glob("*/*.json")):
        if not (old / path.relative_to(new)).is_file():
            yield f"{path.relative_to(new)}", "is new"


def _metrics(path: Path) -> dict[str, np.ndarray]:
    metrics = json.loads(path.read_text())["metrics"]
    return {k: np.array(v) for k, v in metrics.items() if not k.startswith(TIMES[0]) and k not in TIMES}


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
    given = parser.parse_args()
    compared = list(compare(run(given.old, given.cache), run(given.new, given.cache)))
    wrong = [(what, how) for what, how in compared if how]
    for what, how in wrong or compared:
        print(f"{what}: {how or 'equal'}")
    print(f"{len(compared) - len(wrong)} of {len(compared)} files equal to the bit")
    sys.exit(bool(wrong) or not compared)


if __name__ == "__main__":
    main()
