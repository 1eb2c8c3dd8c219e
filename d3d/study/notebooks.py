"""Notebooks as functions of parameters: what they take, whether they were given it, what they were made from.

The first cells of every experiment:

    seed = 0                                              # tagged "parameters"; papermill's -p and -f replace it
    run = notebooks.start("train", TrainConfig, globals())
"""

import ast
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import yaml

from d3d.study import arms as study
from d3d.study import records
from d3d.study.records import ROOT, Record

FOLDER = Path("notebooks")
# Keys of a profile that say which runs there are, not how one is made.
STUDY_KEYS = ("seeds", "examined_seeds", "ablation_seeds", "lambdas", "students", "arms")


class ParameterError(ValueError):
    """A parameter that no notebook knows, or a value of the wrong kind; the message lists what is right."""


def notebook(name: str) -> Path:
    """The notebook `name`, of experiments or of chapters, relative to the repository."""
    for kind in ("experiments", "chapters"):
        path = FOLDER / kind / f"{name}.ipynb"
        if (ROOT / path).is_file():
            return path
    raise FileNotFoundError(f"no notebook {name!r} under {FOLDER}/experiments or {FOLDER}/chapters")


def defaults(name: str) -> dict[str, Any]:
    """The parameters of a notebook and their values, read from the cell tagged `parameters`."""
    return dict(_assignments(_parameters_cell(name)))


def known_parameters() -> set[str]:
    """Every parameter of any experiment; a profile may set them all, each notebook takes its own."""
    experiments = sorted((ROOT / FOLDER / "experiments").glob("*.ipynb"))
    return {parameter for path in experiments for parameter in defaults(path.stem)}


def read_profile(path: str | Path) -> dict[str, Any]:
    """A profile's YAML. Raises ParameterError for a key that neither the study nor a notebook knows."""
    with open(path) as file:
        profile = yaml.safe_load(file)
    if not isinstance(profile, dict):
        raise ParameterError(f"{path} must map parameters to values")
    known = known_parameters() | set(STUDY_KEYS)
    if unknown := sorted(set(profile) - known):
        raise ParameterError(
            f"{path} sets {unknown[0]!r}, which no notebook takes: known are {', '.join(sorted(known))}"
        )
    seeds = profile.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise ParameterError(f"{path} must list whole numbers as seeds, not {seeds!r}")
    for name in ("examined_seeds", "ablation_seeds"):
        if not isinstance(profile.setdefault(name, seeds), list) or not set(profile[name]) <= set(seeds):
            raise ParameterError(f"{path}: {name} must be some of the seeds, not {profile[name]}")
    if not isinstance(profile.setdefault("lambdas", []), list):
        raise ParameterError(f"{path} must list the other values of lambda_ as lambdas, not {profile['lambdas']!r}")
    lambdas = [_as(1.0, f"{path}: lambdas", value) for value in profile["lambdas"]]
    if len({*lambdas, profile.get("lambda_")}) <= len(lambdas):
        raise ParameterError(f"{path}: lambdas must be values of lambda_ other than its own, each once, not {lambdas}")
    own = defaults("distill")
    for arm, given in {
        "students": profile.setdefault("students", {}),
        **(profile.setdefault("arms", {}) or {}),
    }.items():
        if arm not in ("students", *study.ARMS, *study.ABLATIONS):
            raise ParameterError(f"{path}: arms has no arm {arm!r}: they are {', '.join(study.ARMS | study.ABLATIONS)}")
        if not isinstance(given, dict):
            raise ParameterError(f"{path} must map parameters of {arm} to values, not give it {given!r}")
        if unknown := sorted(set(given) - set(own)):
            raise ParameterError(f"{path} gives {arm} {unknown[0]!r}, which the notebook 'distill' does not take")
        for name, value in given.items():
            _as(own[name], f"{path}: {name} of {arm}", value)
    return profile


def source_hash(name: str) -> str:
    """SHA-256, shortened, of a notebook and of every module of this package that it uses, directly or not."""
    path = notebook(name)
    cells = json.loads((ROOT / path).read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    found: set[str] = set()
    pending = [module for cell in code for module in _imports(cell)]
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += _imports(_path(module).read_text())
    digest = hashlib.sha256("\n".join(code).encode())
    for module in sorted(found):
        digest.update(module.encode() + _path(module).read_bytes())
    return digest.hexdigest()[:16]


def _path(module: str) -> Path:
    path = ROOT / "d3d" / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def expected(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The full parameters of a notebook given those of `given` that it takes. Raises ParameterError as `start` does."""
    own = defaults(name)
    return own | {key: _as(own[key], key, value) for key, value in given.items() if key in own}


def is_current(path: str | Path, name: str, given: Mapping[str, Any]) -> bool:
    """Whether the record at `path` came from these parameters and from today's notebook and modules."""
    try:
        record = records.read(path)
    except (OSError, records.RecordError):
        return False
    return record.params == expected(name, given) and record.provenance["source"] == source_hash(name)


def follows(path: str | Path, content: str, *, current: bool | None = None) -> str:
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


@dataclass
class Run:
    """One execution of an experiment's notebook, from its parameters to its records.

    `provenance` is what the run was made from, taken when it started: an edit during a long run is not its source.
    """

    experiment: str
    config: Any
    device: str
    provenance: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a part of the run; the next record tells it as `seconds/<name>`."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def write(
        self,
        arm: str,
        metrics: Mapping[str, float],
        *,
        arrays: Mapping[str, np.ndarray] | None = None,
        files: Mapping[str, Any] | None = None,
        seed: int | None = None,
        stand_in: bool = True,
    ) -> Record:
        """Writes the run's record and prints its headline. `seed` defaults to the run's parameter."""
        record = Record(
            experiment=self.experiment,
            arm=arm,
            seed=self.config.seed if seed is None else seed,
            params=asdict(self.config),
            metrics={k: float(v) for k, v in metrics.items()}
            | {f"seconds/{name}": round(value, 2) for name, value in self.seconds.items()},
            stand_in=stand_in,
            files=dict(files or {}),
            provenance=self.provenance | {"seconds": records.seconds_since(self.provenance["started"])},
        )
        self.seconds.clear()
        path = records.write(self.config.results, record, arrays)
        print(records.headline(record), f"-> {path}")
        return record


def start(experiment: str, config_class: type, namespace: Mapping[str, Any]) -> Run:
    """Reads the notebook's parameters into its dataclass; chooses the GPU where there is one.

    On a CPU the run computes on one thread, unless OMP_NUM_THREADS asks for more: other threads, other last digits.
    Raises ParameterError as `parameters` does, and what the dataclass raises for values out of range.
    """
    config = config_class(**parameters(experiment, namespace))
    # The graph reads this module at every start, and torch takes seconds to import.
    import torch

    cuda = torch.cuda.is_available()
    if not cuda:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    made = records.provenance(
        source=source_hash(experiment),
        notebook=str(notebook(experiment)),
        device=torch.cuda.get_device_name() if cuda else "cpu",
    )
    return Run(experiment, config, "cuda" if cuda else "cpu", made)


def parameters(name: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The notebook's parameters, from its namespace: every plain value there at this point is one.

    One that the notebook does not take is an error, unless it belongs to another notebook and came with a whole
    profile (`-f`), which sets `seeds`. Raises ParameterError naming it and what is known, or a value of another kind.
    """
    given = {
        key: value
        for key, value in namespace.items()
        if isinstance(value, str | bool | int | float | list | dict | NoneType)
        and not key.startswith("_")
        and key not in ("In", "Out")
    }
    own = defaults(name)
    allowed = set(own) | (known_parameters() | set(STUDY_KEYS) if "seeds" in given else set())
    if unknown := sorted(set(given) - allowed):
        raise ParameterError(
            f"{unknown[0]!r} is no parameter of the notebook {name!r}, which takes {', '.join(sorted(own))}"
        )
    return {key: _as(own[key], key, given[key]) for key in own}


def _as(like: Any, name: str, value: Any) -> Any:
    """`value` as the kind of `like`: whole numbers pass as floats, nothing else is converted."""
    if type(like) is float and type(value) is int:
        return float(value)
    if type(value) is not type(like):
        raise ParameterError(f"{name} must be of type {type(like).__name__} like {like!r}, not {value!r}")
    return value


def _parameters_cell(name: str) -> str:
    path = notebook(name)
    cells = json.loads((ROOT / path).read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f"{path} must have one cell tagged 'parameters', it has {len(tagged)}")
    return "".join(tagged[0]["source"])


def _assignments(code: str) -> Iterator[tuple[str, Any]]:
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield statement.targets[0].id, ast.literal_eval(statement.value)


@cache
def _imports(code: str) -> tuple[str, ...]:
    """Modules of this package that a piece of code imports."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "d3d":
            package = (ROOT / node.module.replace(".", "/")).is_dir()
            named |= {f"{node.module}.{alias.name}" for alias in node.names} | (set() if package else {node.module})
        elif isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"d3d(\.\w+)+", str(node.value)):
            named.add(node.value)  # one that is run by name, in another process
    modules = (name.removeprefix("d3d.") for name in named)
    return tuple(sorted(module for module in modules if _path(module).is_file()))
