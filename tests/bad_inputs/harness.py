"""Runs the command `d3d` on a bad input, in a process of its own with little memory, and checks how it refuses it.

CASES = [BadInput("no file", ["records", "a.json"], None, r"a\\.json .*")]

@pytest.mark.parametrize("case", CASES, ids=str)
def test_refused(case, tmp_path):
    assert_refused(case, tmp_path)
"""

import ctypes
import hashlib
import multiprocessing
import os
import re
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# What a command may take beyond what its imports took: a small network and a few clips need far less.
MEMORY = 512 * 2**20
# Only tells a process that hangs from one that works.
HANGS_AFTER = 120.0  # seconds
LONGEST_SENTENCE = 700
# Imported once, before the processes of the cases are forked.
IMPORTED = ("d3d.train.command", "d3d.data.command", "d3d.flow.extract", "d3d.s3dg.weights", "d3d.s3dg.predict",
            "d3d.detection.command", "d3d.study.archive", "d3d.study.profiles", "d3d.report.pages")  # fmt: skip


@dataclass(frozen=True)
class BadInput:
    """A command that must be refused.

    Attributes:
        name: what is wrong with the input; the id of the test.
        command: arguments of `d3d`; paths are relative to the folder of the case.
        write: makes the input files in that folder, given its path; None: there are none.
        message: regular expression that the whole sentence matches. Commands of argparse exit with 2, others with 1.
        code: the exit status.
    """

    name: str
    command: Sequence[str]
    write: Callable[[Path], None] | None
    message: str
    code: int = 1

    def __str__(self) -> str:
        return self.name


def assert_refused(case: BadInput, folder: Path) -> None:
    """Writes the files of a case, runs it, and checks exit status, its one sentence, and that it wrote nothing."""
    if case.write:
        case.write(folder)
    before = _contents(folder)
    outputs = folder.with_name(f"{folder.name}-output")
    outputs.mkdir()
    code = _run(case.command, folder, outputs)
    out, err = ((outputs / name).read_text(errors="backslashreplace") for name in ("out", "err"))
    assert code is not None, f"still running after {HANGS_AFTER:g} s: {out}{err}"
    assert "Traceback" not in out + err, out + err
    *usage, sentence = err.splitlines() or [""]
    assert code == case.code, f"exit {code}: {out}{err}"
    assert not usage or case.code == 2, f"{len(usage) + 1} lines instead of one: {err}"
    assert sentence.isprintable(), f"control characters reach the terminal: {sentence!r}"
    assert len(sentence) <= LONGEST_SENTENCE, sentence
    assert re.fullmatch(case.message, sentence), sentence
    assert _contents(folder) == before, "files were written or changed"


def _run(command: Sequence[str], folder: Path, outputs: Path) -> int | None:
    """Runs a command in a process; returns its exit status, or None if it had to be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *IMPORTED])
    process = context.Process(target=_child, args=(list(command), folder, outputs))
    process.start()
    process.join(HANGS_AFTER)
    if process.exitcode is None:
        os.killpg(process.pid, 9)
        process.join()
        return None
    return process.exitcode


def _child(command: list[str], folder: Path, outputs: Path) -> None:
    """Runs a command as the console script does, then ends the process without the handlers of the test's."""
    from d3d.__main__ import main

    os.setsid()
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT), descriptor)
    limit = _data_size() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    code = 1
    try:
        main(command)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(code or 0)


def _data_size() -> int:
    """Bytes of private memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def _contents(folder: Path) -> dict[str, str]:
    """The files and folders of a tree, with a checksum of every file and the target of every link."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in sorted(folder.rglob("*"))
    }
