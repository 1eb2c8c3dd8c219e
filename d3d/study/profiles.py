"""Profiles: YAML files that say which runs there are, and the parameters that they share.

extends: h200            # the keys of notebooks/params/h200.yaml, where this file does not set them itself
seeds: [0, 1, 2]         # examined_seeds, ablation_seeds: some of them; all where not set
arms: [rgb, flow, d3d]   # trained for every seed; ablations: for ablation_seeds
students: {epochs: 12}   # parameters of every student
overrides: {d3d: {lambda_: 0.3}}     # parameters of an arm
rho: 0.8                 # any parameter of any experiment
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from d3d.study.arms import ARMS
from d3d.study.experiments import EXPERIMENTS, defaults, refuse_strangers
from d3d.study.parameters import MAX_SEED
from d3d.study.plan import TRAINED
from d3d.study.schema import ParameterError, refuse_unknown, same_kind


def read_profile(path: str | Path) -> dict[str, Any]:
    """A profile with what it extends, all of its keys set.

    Raises ParameterError naming the file and a key, arm or value that is not right, FileNotFoundError.
    """
    profile = _extended(Path(path), ())
    try:
        _check(profile)
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from None
    return profile


def read_yaml(path: Path) -> dict[str, Any]:
    """What a file maps parameters to, before anything is checked. Raises ParameterError naming the file, or OSError."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ParameterError(f"{path} must map parameters to values, such as `epochs: 8`")
    return content


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ParameterError(f"{path} extends itself, through {above[-1]}")
    content = read_yaml(path)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str) or Path(base).name != base:
        raise ParameterError(f"{path}: extends must name a profile beside it, such as h200, not {base!r}")
    found = path.with_name(f"{base}.yaml")
    if not found.is_file():
        raise ParameterError(f"{path} extends {base!r}, but there is no {found}")
    return _extended(found, (*above, path)) | content


def _check(profile: dict[str, Any]) -> None:
    refuse_strangers(profile)
    everywhere = {name: default for experiment in EXPERIMENTS for name, default in defaults(experiment).items()}
    for name, value in profile.items():
        if name in everywhere:
            profile[name] = same_kind(everywhere[name], name, value)
    _check_seeds(profile)
    _check_arms(profile)
    students, overrides = profile.setdefault("students", {}), profile.setdefault("overrides", {})
    if not isinstance(overrides, dict):
        raise ParameterError(f"overrides must map arms to their parameters, not {overrides!r}")
    for arm in overrides:
        _known("overrides", arm)
    for arm, own in {"students": students, **overrides}.items():
        if not isinstance(own, dict):
            raise ParameterError(f"{arm} must map parameters to values, not {own!r}")
        taken = defaults("distill" if arm == "students" else ARMS[arm].experiment)
        refuse_unknown(own, set(taken) - {"seed", "results", "arm"}, f"parameter of {arm}")
        for name, value in own.items():
            own[name] = same_kind(taken[name], f"{name} of {arm}", value)


def _check_seeds(profile: dict[str, Any]) -> None:
    seeds = profile.get("seeds")
    if not _distinct(seeds, int) or not seeds or not all(0 <= s < MAX_SEED for s in seeds):
        raise ParameterError(f"seeds must list whole numbers from 0 to {MAX_SEED - 1}, each once, not {seeds!r}")
    for name in ("examined_seeds", "ablation_seeds"):
        some = profile.setdefault(name, seeds)
        if not _distinct(some, int) or not set(some) <= set(seeds):
            raise ParameterError(f"{name} must be some of the seeds, not {some!r}")


def _check_arms(profile: dict[str, Any]) -> None:
    for name in ("arms", "ablations"):
        listed = profile.setdefault(name, [])
        if not _distinct(listed, str) or (name == "arms" and not listed):
            raise ParameterError(f"{name} must list arms, each once, not {listed!r}")
        for arm in listed:
            _known(name, arm)
    if both := sorted(set(profile["arms"]) & set(profile["ablations"])):
        raise ParameterError(f"{both[0]!r} stands among arms and ablations: leave it in one of them")
    listed = {*profile["arms"], *profile["ablations"]}
    for arm in sorted(listed):
        for needed in (ARMS[arm].start, ARMS[arm].teacher):
            if needed and needed not in listed:
                raise ParameterError(f"{arm!r} starts from or learns from {needed!r}: list that arm too")


def _distinct(listed: Any, kind: type) -> bool:
    """Whether something is a list of values of a kind, each once."""
    return isinstance(listed, list) and all(type(x) is kind for x in listed) and len(set(listed)) == len(listed)


def _known(key: str, arm: Any) -> None:
    trained = [name for name, entry in ARMS.items() if entry.experiment in TRAINED]
    if arm not in trained:
        raise ParameterError(f"{key} has no arm {arm!r}: they are {', '.join(trained)}")


class _Plain(yaml.SafeDumper):
    """Lists that stand twice are written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(profile: dict[str, Any]) -> str:
    """A whole profile as YAML."""
    return yaml.dump(profile, Dumper=_Plain, sort_keys=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d profile", description="Prints a profile with all that it extends.")
    parser.add_argument("profile", type=Path, help="such as notebooks/params/portable.yaml")
    given = parser.parse_args(argv)
    try:
        print(dump(read_profile(given.profile)), end="")
    except (ValueError, OSError) as error:
        sys.exit(str(error))
