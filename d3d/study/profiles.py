"""Profiles: YAML files that list the runs of a study and the parameters that they share.

extends: h200            # takes the keys that this file does not set from h200.yaml, beside it or in notebooks/params
seeds: [0, 1, 2]         # examined_seeds and ablation_seeds are subsets of these; default: all
arms: [rgb, flow, d3d]   # trained with every seed; ablations: trained with ablation_seeds
students: {epochs: 12}   # parameters of every student
overrides: {d3d: {lambda_: 0.3}}     # parameters of one arm
sources: {k400: results/other}       # of networks of other data sets that arms start from: results, or weights
rho: 0.8                 # any parameter of any experiment
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from d3d import documents
from d3d.messages import one_line, printable, shown
from d3d.study.arms import ARMS, similar
from d3d.study.experiments import EXPERIMENTS, defaults, refuse_unknown_keys
from d3d.study.parameters import MAX_SEED
from d3d.study.plan import TRAINED
from d3d.study.schema import ParameterError, check_type, refuse_unknown

FOLDER = Path("notebooks/params")  # the profiles of the repository, in its root
NAME = re.compile(r"[A-Za-z0-9_][\w.+-]{,99}", re.ASCII)  # names folders and files, and stands in commands
MOST_EXTENDED = 20  # profiles in a chain
LONGEST_NAME = 100  # characters of the name of a profile


def locate(profile: Any) -> tuple[str, Path]:
    """Finds a profile, and the name under which its results are kept.

    Args:
        profile: the name of a profile of the repository, such as smoke, or the path of another, such as mine.yaml.

    Returns:
        Its name and its path.

    Raises:
        ParameterError: if it is neither, or if a profile of the repository has the name of another file.
    """
    is_path = isinstance(profile, str) and profile.endswith(".yaml")
    name = Path(profile).stem if is_path else profile
    if not isinstance(name, str) or not NAME.fullmatch(name) or "\0" in profile:
        raise ParameterError(
            f"profile must be the name of a file in {FOLDER} without its ending .yaml, or the path of another .yaml "
            f"file, of letters, digits and any of _ . + -, such as smoke, not {shown(profile)}"
        )
    own = FOLDER / f"{name}.yaml"
    path = Path(profile) if is_path else own
    if path != own and own.is_file() and not (path.exists() and path.samefile(own)):
        raise ParameterError(f"{printable(path)} has the name of {own}, and so of its results: give it another name")
    return name, path


def read_profile(path: str | Path) -> dict[str, Any]:
    """Reads and checks a profile, including the profiles that it extends, and sets all of its keys.

    Raises:
        ParameterError: for an invalid file, key, arm or value, naming it.
        OSError: for a file that cannot be read.
    """
    profile = _read_extended(Path(path), ())
    try:
        _check(profile)
    except ParameterError as error:
        raise ParameterError(f"{printable(path)}: {error}") from None
    return profile


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that maps parameters to values, without checking either.

    Raises:
        ParameterError: for another file, naming it.
        OSError: for a file that cannot be read.
    """
    try:
        content = documents.read_yaml(path)
    except documents.DocumentError as error:
        raise ParameterError(str(error)) from None
    if not isinstance(content, dict):
        raise ParameterError(f"{printable(path)} must map parameters to values, such as `epochs: 8`")
    return content


def _read_extended(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """Reads a profile and those that it extends; `extending` are the profiles that extend it."""
    where = printable(path)
    if path in extending:
        raise ParameterError(f"{where} extends itself, through {printable(extending[-1])}")
    if len(extending) == MOST_EXTENDED:
        raise ParameterError(f"{where} ends a chain of {len(extending)} profiles that extend each other: the limit")
    content = read_yaml(path)
    if "extends" not in content:
        return content
    base = content.pop("extends")
    if not isinstance(base, str) or Path(base).name != base or "\0" in base or len(base) > LONGEST_NAME:
        raise ParameterError(
            f"{where}: extends must name a profile in the same folder or in {FOLDER}, such as h200, not {shown(base)}"
        )
    beside = path.with_name(f"{base}.yaml")
    base_path = beside if beside.is_file() else FOLDER / beside.name
    if not base_path.is_file():
        raise ParameterError(f"{where} extends {shown(base)}, but there is no {printable(beside)}")
    return _read_extended(base_path, (*extending, path)) | content


def _check(profile: dict[str, Any]) -> None:
    refuse_unknown_keys(profile)
    all_defaults = {name: default for experiment in EXPERIMENTS for name, default in defaults(experiment).items()}
    for name, value in profile.items():
        if name in all_defaults:
            profile[name] = check_type(name, value, all_defaults[name])
    _check_seeds(profile)
    _check_arms(profile)
    students, overrides = profile.setdefault("students", {}), profile.setdefault("overrides", {})
    if not isinstance(overrides, dict):
        raise ParameterError(f"overrides must map arms to their parameters, not {shown(overrides)}")
    for arm in overrides:
        _check_arm(arm, "overrides")
    for arm, arm_overrides in {"students": students, **overrides}.items():
        if not isinstance(arm_overrides, dict):
            raise ParameterError(f"{arm} must map parameters to values, not {shown(arm_overrides)}")
        arm_defaults = defaults("distill" if arm == "students" else ARMS[arm].experiment)
        refuse_unknown(arm_overrides, set(arm_defaults) - {"seed", "results", "arm"}, f"parameter of {arm}")
        for name, value in arm_overrides.items():
            arm_overrides[name] = check_type(f"{name} of {arm}", value, arm_defaults[name])


def _check_seeds(profile: dict[str, Any]) -> None:
    seeds = profile.get("seeds")
    if not _is_distinct_list(seeds, int) or not seeds or not all(0 <= s < MAX_SEED for s in seeds):
        raise ParameterError(f"seeds must list whole numbers from 0 to {MAX_SEED - 1}, each once, not {shown(seeds)}")
    for name in ("examined_seeds", "ablation_seeds"):
        subset = profile.setdefault(name, seeds)
        if not _is_distinct_list(subset, int) or not set(subset) <= set(seeds):
            raise ParameterError(f"{name} must be some of the seeds, not {shown(subset)}")


def _check_arms(profile: dict[str, Any]) -> None:
    for key in ("arms", "ablations"):
        arms = profile.setdefault(key, [])
        if not _is_distinct_list(arms, str) or (key == "arms" and not arms):
            raise ParameterError(f"{key} must list arms, each once, not {shown(arms)}")
        for arm in arms:
            _check_arm(arm, key)
    if duplicates := sorted(set(profile["arms"]) & set(profile["ablations"])):
        raise ParameterError(f"{duplicates[0]!r} is listed under both arms and ablations: list it under one of them")
    listed = {*profile["arms"], *profile["ablations"]}
    sources = profile.setdefault("sources", {})
    if not isinstance(sources, dict) or not all(isinstance(x, str) and x for pair in sources.items() for x in pair):
        raise ParameterError(f"sources must map names to folders of results or to weights, not {shown(sources)}")
    for arm in sorted(listed):
        source = ARMS[arm].source
        if source and source not in sources:
            raise ParameterError(f"{arm!r} starts from a network of {source!r}: name its folder or weights in sources")
        for needed in ("" if source else ARMS[arm].start, ARMS[arm].teacher, ARMS[arm].second_teacher):
            if needed and needed not in listed:
                raise ParameterError(f"{arm!r} starts from or learns from {needed!r}: list that arm too")


def _is_distinct_list(value: Any, item_type: type) -> bool:
    """Whether a value is a list of items of a type, each once."""
    return isinstance(value, list) and all(type(x) is item_type for x in value) and len(set(value)) == len(value)


def _check_arm(arm: Any, key: str) -> None:
    """Refuses an arm, listed under `key`, that is unknown or not trained."""
    trained = [name for name, entry in ARMS.items() if entry.experiment in TRAINED]
    if arm not in trained:
        raise ParameterError(f"{key} names {shown(arm)}, which is not one of the trained arms: {similar(arm, trained)}")


class _Dumper(yaml.SafeDumper):
    """Writes a list that occurs twice in full instead of as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(profile: dict[str, Any]) -> str:
    """Returns a complete profile as YAML."""
    return yaml.dump(profile, Dumper=_Dumper, sort_keys=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="d3d profile", description="Prints a profile, merged with the profiles that it extends, as YAML."
    )
    parser.add_argument("profile", type=Path, help="YAML file, such as notebooks/params/portable.yaml")
    args = parser.parse_args(argv)
    try:
        print(dump(read_profile(args.profile)), end="")
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))
