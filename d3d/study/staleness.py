"""Staleness by meaning: a hash of the code that a run computes with, and whether a record was made by it.

Comments, docstrings and formatting do not count, nor does what a module is called or where it lies. The list of arms,
records, figures and pages do not count either: they say what is run and shown, not how it is computed. What an arm is
stands in its record: in its parameters, or in `made_from` (d3d/study/plan.py).
"""

import ast
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from d3d.study import records
from d3d.study.experiments import EXPERIMENTS, defaults, values
from d3d.study.parameters import MAX_SEED
from d3d.study.plan import made_from
from d3d.study.records import ROOT, Record
from d3d.study.schema import parameters_of

PACKAGE = "d3d"
# Rooms whose code changes no number of a run.
NOT_HASHED = ("study", "report", "files", "progress", "pictures")
_under_way: list[Path] = []  # files whose hash is being made
# Fields of a syntax tree without meaning, or that differ between versions of Python.
SILENT = ("ctx", "kind", "type_comment", "type_ignores", "type_params")


def source_hash(experiment: str) -> str:
    """SHA-256, shortened, of the code that computes an experiment, and of the parameters that its notebook cannot set,
    which no record holds."""
    entry = EXPERIMENTS[experiment]
    neutral = {name: f.default for name, f in parameters_of(entry.config) if name not in entry.names}
    return _short(f"{code_hash(entry.module)} {neutral}")


def code_hash(*modules: str) -> str:
    """SHA-256, shortened, of modules of this package (`d3d.train.run`) and of all that they compute with."""
    code = _Code(ROOT, NOT_HASHED, _state(ROOT))
    return _short("".join([str(MAX_SEED), *(_module_hash(code, module) for module in modules)]))


def notebook_hash(path: str | Path) -> str:
    """SHA-256, shortened, of a notebook's code and of every module of this package that it uses."""
    cells = json.loads((ROOT / path).read_text())["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return _short(_meaning(_Code(ROOT, (), _state(ROOT)), source))


def is_current(path: str | Path, experiment: str, given: Mapping[str, Any]) -> bool:
    """Whether the record at `path` came from these parameters and from today's code."""
    try:
        record = records.read(path)
    except (OSError, records.RecordError):
        return False
    # A parameter that the record does not know had the value that is now its default.
    known = defaults(experiment) | record.params
    return known == values(experiment, given) and by_todays_code(record)


def by_todays_code(record: Record) -> bool:
    """Whether a record was made by the code that is here, and its arm is what it was."""
    made = record.provenance
    same_arm = made.get("made_from", {}) == made_from(record.experiment, record.arm)
    return same_arm and made.get("source") == source_hash(record.experiment)


def write_stamp(path: str | Path, content: str, *, current: bool | None = None) -> str:
    """Writes `content` to a file whose age tells make-like tools what is stale, and returns its path.

    It becomes younger than everything when its content changes or the result is known not to be `current`, and older
    than everything when the result is known to be `current`.
    """
    path = Path(path)
    if current is False or not path.is_file() or path.read_text() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    if current:
        os.utime(path, (1, 1))
    return str(path)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Code(NamedTuple):
    """The package below `root`, without the rooms that stand apart, in the state that its files are in."""

    root: Path
    apart: tuple[str, ...]
    state: int


def _state(root: Path) -> int:
    """A number that changes where any file of the package does."""
    return hash(tuple((str(path), path.stat().st_mtime_ns) for path in sorted((root / PACKAGE).rglob("*.py"))))


def _path(root: Path, module: str) -> Path | None:
    """The file of a module, None for what is none."""
    path = root.joinpath(*module.split("."))
    if path.is_dir():
        return path / "__main__.py" if (path / "__main__.py").is_file() else None
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def _module_hash(code: _Code, module: str) -> str:
    if module.split(".")[1] in code.apart:
        return "apart"
    path = _path(code.root, module)
    # A module may run itself by name in another process.
    return "itself" if path in _under_way else _file_hash(code, path)


@cache
def _file_hash(code: _Code, path: Path) -> str:
    _under_way.append(path)
    try:
        return _short(_meaning(code, path.read_text()))
    finally:
        _under_way.remove(path)


def _meaning(code: _Code, source: str) -> str:
    """Code as text that changes where its meaning does: other modules of the package stand in it by their hashes."""
    tree = ast.parse(source)
    names: dict[str, str] = {}  # of modules in this code, and what stands for them
    used: set[str] = set()
    for node in ast.walk(tree):
        for local, module, name in _imports(code, node):
            digest = _module_hash(code, module)
            if name is None:
                names[local] = digest
            else:
                used.add(f"{local} = {digest}.{name}")
    return "\n".join([*sorted(used), *sorted(names.values()), _text(code, tree, names)])


def _imports(code: _Code, node: ast.AST) -> list[tuple[str, str, str | None]]:
    """Local name, module and, where not the module itself is imported, the name in it, for this package's modules.

    Raises ValueError for an import that cannot be followed to a module: what it computes would be missed.
    """
    if isinstance(node, ast.Import):
        if any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"write `from d3d.room import module`, not `{ast.unparse(node)}`, which is not followed")
        return []
    if not isinstance(node, ast.ImportFrom) or (not node.level and (node.module or "").split(".")[0] != PACKAGE):
        return []
    if node.level:
        raise ValueError(f"write `from d3d.room.module import name`, not `{ast.unparse(node)}`, which is not followed")
    found = []
    holder = code.root.joinpath(*node.module.split("."))
    for alias in node.names:
        module, local = f"{node.module}.{alias.name}", alias.asname or alias.name
        if (holder / f"{alias.name}.py").is_file():
            found.append((local, module, None))
        elif holder.with_suffix(".py").is_file():
            found.append((local, node.module, alias.name))
        else:
            raise ValueError(f"{module} is no module, so `{ast.unparse(node)}` is not followed: name the module")
    return found


def _text(code: _Code, node: Any, names: Mapping[str, str]) -> str:
    """A syntax tree as text, without docstrings and imports of this package."""
    if isinstance(node, list):
        return "[" + ",".join(_text(code, item, names) for item in node if not _skipped(item)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Name) and node.id in names:
        return f"<{names[node.id]}>"
    if isinstance(node, ast.Constant):
        value = node.value
        run_by_name = isinstance(value, str) and value.startswith(f"{PACKAGE}.") and _path(code.root, value)
        return f"<{_module_hash(code, value)}>" if run_by_name else repr(value)
    parts = [
        f"{name}={_text(code, value, names)}"
        for name, value in ast.iter_fields(node)
        if name not in SILENT and value not in (None, [])
    ]
    return f"{type(node).__name__}({','.join(parts)})"


def _skipped(node: Any) -> bool:
    """Whether a statement is a docstring, or imports from this package, whose hash stands in its place."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE
