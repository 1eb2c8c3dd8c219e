"""Staleness: whether a record was made by today's code, decided by a hash of the meaning of the code.

Comments, docstrings, formatting, and names and locations of modules do not change the hash. Neither do the lists of
arms, records, figures and pages, because no run computes with them; the definition of an arm is stored in its records,
in the parameters or in `made_from` (d3d/study/plan.py).
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
from d3d.study.experiments import EXPERIMENTS, defaults, with_defaults
from d3d.study.parameters import MAX_SEED
from d3d.study.plan import made_from
from d3d.study.records import ROOT, Record
from d3d.study.schema import parameters_of

PACKAGE = "d3d"
# Rooms whose code does not change the result of a run.
NOT_HASHED = ("study", "report", "files", "messages", "documents", "npz", "progress", "pictures", "films")
_files_in_progress: list[Path] = []  # files that are being hashed, to stop at circular references
# Fields of a syntax tree that carry no meaning or differ between versions of Python.
IGNORED_FIELDS = ("ctx", "kind", "type_comment", "type_ignores", "type_params")


def source_hash(experiment: str) -> str:
    """Returns a shortened SHA-256 of the code of an experiment.

    It includes the defaults of the parameters that the notebook cannot set, since records do not hold them.
    """
    entry = EXPERIMENTS[experiment]
    fixed_params = {name: f.default for name, f in parameters_of(entry.config) if name not in entry.names}
    return _short_sha256(f"{code_hash(entry.module)} {fixed_params}")


def code_hash(*modules: str) -> str:
    """Returns a shortened SHA-256 of modules of this package, such as `d3d.train.run`, and all that they import."""
    code = _Code(ROOT, NOT_HASHED, _state(ROOT))
    return _short_sha256("".join([str(MAX_SEED), *(_module_hash(code, module) for module in modules)]))


def notebook_hash(path: str | Path) -> str:
    """Returns a shortened SHA-256 of the code of a notebook and all modules of this package that it imports."""
    cells = json.loads((ROOT / path).read_text())["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return _short_sha256(_normalised(_Code(ROOT, (), _state(ROOT)), source))


def is_current(path: str | Path, experiment: str, overrides: Mapping[str, Any]) -> bool:
    """Whether a record exists that was made with these parameters and by today's code.

    Args:
        path: the JSON file of the record.
        experiment: name of the experiment.
        overrides: parameters by name; the others have their defaults.
    """
    try:
        record = records.read(path)
    except (OSError, records.RecordError):
        return False
    # Parameters that were added after the record was made count with their defaults.
    recorded = defaults(experiment) | record.params
    return recorded == with_defaults(experiment, overrides) and matches_code(record)


def matches_code(record: Record) -> bool:
    """Whether a record was made by today's code, with today's definition of its arm."""
    provenance = record.provenance
    same_arm = provenance.get("made_from", {}) == made_from(record.experiment, record.arm)
    return same_arm and provenance.get("source") == source_hash(record.experiment)


def write_stamp(path: str | Path, content: str, *, current: bool | None = None) -> str:
    """Writes a stamp file, whose age tells Snakemake whether the results that depend on it are stale.

    The file becomes newer than all results if its content changes or `current` is False, and older than all results if
    `current` is True.

    Args:
        path: the stamp file.
        content: all that the results depend on, as text.
        current: whether the results are known to be up to date; None: only a change of `content` counts.

    Returns:
        `path` as a string.
    """
    path = Path(path)
    if current is False or not path.is_file() or path.read_text() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    if current:
        os.utime(path, (1, 1))
    return str(path)


def _short_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Code(NamedTuple):
    """A version of the package, as a key of the cache of hashes.

    Attributes:
        root: folder that contains the package.
        not_hashed: rooms that are left out.
        state: a number that changes with any file of the package.
    """

    root: Path
    not_hashed: tuple[str, ...]
    state: int


def _state(root: Path) -> int:
    return hash(tuple((str(path), path.stat().st_mtime_ns) for path in sorted((root / PACKAGE).rglob("*.py"))))


def _path(root: Path, module: str) -> Path | None:
    """The file of a module; None if there is no such module."""
    path = root.joinpath(*module.split("."))
    if path.is_dir():
        return path / "__main__.py" if (path / "__main__.py").is_file() else None
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def _module_hash(code: _Code, module: str) -> str:
    if module.split(".")[1] in code.not_hashed:
        return "not hashed"
    path = _path(code.root, module)
    if code.not_hashed and path in _files_in_progress[:-1]:
        raise ValueError(f"{path} is named by a module that it imports: the hash would depend on which comes first")
    # A module may name itself, to run in another process; those of chapters name each other.
    return "itself" if path in _files_in_progress else _file_hash(code, path)


@cache
def _file_hash(code: _Code, path: Path) -> str:
    _files_in_progress.append(path)
    try:
        return _short_sha256(_normalised(code, path.read_text()))
    finally:
        _files_in_progress.remove(path)


def _normalised(code: _Code, source: str) -> str:
    """Source code as text that changes only with its meaning; hashes replace the modules of the package it imports."""
    tree = ast.parse(source)
    module_hashes: dict[str, str] = {}  # by local name
    imported_names: set[str] = set()
    for node in ast.walk(tree):
        for local, module, name in _imports(code, node):
            digest = _module_hash(code, module)
            if name is None:
                module_hashes[local] = digest
            else:
                imported_names.add(f"{local} = {digest}.{name}")
    return "\n".join([*sorted(imported_names), *sorted(module_hashes.values()), _dump(code, tree, module_hashes)])


def _imports(code: _Code, node: ast.AST) -> list[tuple[str, str, str | None]]:
    """The imports of this package's modules in a statement.

    Returns:
        Local name, module, and name in the module, which is None if the module itself is imported.

    Raises:
        ValueError: for an import of this package that cannot be traced to a module, whose code the hash would miss.
    """
    if isinstance(node, ast.Import):
        if any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(f"write `from d3d.room import module`, not `{ast.unparse(node)}`, which is not followed")
        return []
    if not isinstance(node, ast.ImportFrom) or (not node.level and (node.module or "").split(".")[0] != PACKAGE):
        return []
    if node.level:
        raise ValueError(f"write `from d3d.room.module import name`, not `{ast.unparse(node)}`, which is not followed")
    imports = []
    source = code.root.joinpath(*node.module.split("."))
    for alias in node.names:
        module, local = f"{node.module}.{alias.name}", alias.asname or alias.name
        if (source / f"{alias.name}.py").is_file():
            imports.append((local, module, None))
        elif source.with_suffix(".py").is_file():
            imports.append((local, node.module, alias.name))
        else:
            raise ValueError(f"{module} is not a module, so `{ast.unparse(node)}` is not followed: name the module")
    return imports


def _dump(code: _Code, node: Any, module_hashes: Mapping[str, str]) -> str:
    """A syntax tree as text, without docstrings and imports of this package."""
    if isinstance(node, list):
        return "[" + ",".join(_dump(code, item, module_hashes) for item in node if not _is_skipped(item)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Name) and node.id in module_hashes:
        return f"<{module_hashes[node.id]}>"
    if isinstance(node, ast.Constant):
        value = node.value
        names_module = isinstance(value, str) and value.startswith(f"{PACKAGE}.") and _path(code.root, value)
        return f"<{_module_hash(code, value)}>" if names_module else repr(value)
    node_fields = [
        f"{name}={_dump(code, value, module_hashes)}"
        for name, value in ast.iter_fields(node)
        if name not in IGNORED_FIELDS and value not in (None, [])
    ]
    return f"{type(node).__name__}({','.join(node_fields)})"


def _is_skipped(node: Any) -> bool:
    """Whether a statement is a docstring, or an import from this package, which its hash replaces."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE
