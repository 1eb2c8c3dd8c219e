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
from d3d.study.experiments import EXPERIMENTS, PROFILE_KEYS, defaults, known_parameters
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


def _extended(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ParameterError(f"{path} extends itself, through {above[-1]}")
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict):
        raise ParameterError(f"{path} must map parameters to values")
    base = content.pop("extends", None)
    if base is None:
        return content
    found = path.with_name(f"{base}.yaml")
    if not found.is_file():
        raise ParameterError(f"{path} extends {base!r}, but there is no {found}")
    return _extended(found, (*above, path)) | content


def _check(profile: dict[str, Any]) -> None:
    refuse_unknown(profile, known_parameters() | set(PROFILE_KEYS), "parameter of any experiment nor key of a profile")
    everywhere = {name: default for experiment in EXPERIMENTS for name, default in defaults(experiment).items()}
    for name, value in profile.items():
        if name in everywhere:
            profile[name] = same_kind(everywhere[name], name, value)
    seeds = profile.get("seeds")
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int for s in seeds):
        raise ParameterError(f"seeds must list whole numbers, not {seeds!r}")
    for name in ("examined_seeds", "ablation_seeds"):
        if not isinstance(profile.setdefault(name, seeds), list) or not set(profile[name]) <= set(seeds):
            raise ParameterError(f"{name} must be some of the seeds, not {profile[name]}")
    trained = [name for name, arm in ARMS.items() if arm.experiment in TRAINED]
    for name in ("arms", "ablations"):
        listed = profile.setdefault(name, [])
        if not isinstance(listed, list) or len(set(listed)) < len(listed) or (name == "arms" and not listed):
            raise ParameterError(f"{name} must list arms, each once, not {listed!r}")
        for arm in listed:
            _known(name, arm, trained)
    if both := sorted(set(profile["arms"]) & set(profile["ablations"])):
        raise ParameterError(f"{both[0]!r} stands among arms and ablations: leave it in one of them")
    taken = defaults("distill")
    for arm, own in {"students": profile.setdefault("students", {}), **(profile.setdefault("overrides", {}))}.items():
        if arm != "students":
            _known("overrides", arm, trained)
        if not isinstance(own, dict):
            raise ParameterError(f"{arm} must map parameters to values, not {own!r}")
        refuse_unknown(own, taken, f"parameter of {arm}")
        for name, value in own.items():
            own[name] = same_kind(taken[name], f"{name} of {arm}", value)


def _known(key: str, arm: str, trained: list[str]) -> None:
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
