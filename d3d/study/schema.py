"""The schema of parameters: dataclass fields with a default, a range and a one-sentence help, composed from groups.

class Optimiser(Group):
    epochs: int = parameter(8, "passes over the training clips", low=1)
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from d3d.messages import shown

LONGEST_LIST = 500  # characters of the names that a message lists
# No path of a file is longer on Linux.
LONGEST_TEXT = 4096


class ParameterError(ValueError):
    """An unknown parameter or a value of the wrong type; the message says what would be right."""


def parameter(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    least: float = -math.inf,
    limit: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declares a field of a group.

    Args:
        default: the default value, whose type is the parameter's type.
        help: one sentence, printed in notebooks, by `d3d train --help` and in the book.
        low: smallest allowed value.
        high: largest allowed value.
        above: exclusive lower bound.
        below: exclusive upper bound.
        least: a smaller value is refused as a mistake; unlike `low`, no use needs it, and the help does not say it.
        limit: a larger value is refused as a mistake, likewise.
        choices: the allowed values of a string; empty: any.
    """
    bounds = (low, high, above, below)
    return field(
        default=default, metadata={"help": help, "range": bounds, "limits": (least, limit), "choices": choices}
    )


class Group:
    """Base class of groups: checks every parameter when an instance is made.

    Raises:
        ValueError: for a value out of range, naming the parameter.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.metadata:
                _check(f, getattr(self, f.name))
        self.check()

    def check(self) -> None:
        """Checks conditions between several parameters; subclasses override it."""


def _check(f: Field, value: Any) -> None:
    (low, high, above, below), choices = f.metadata["range"], f.metadata["choices"]
    if choices and value not in choices:
        raise ValueError(f"{f.name} must be one of {', '.join(choices)}, not {shown(value)}")
    if isinstance(value, str):
        _check_text(f.name, value)
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{f.name} must be finite, not {value}")
    if not isinstance(value, int | float):
        return
    if low <= value <= high and above < value < below:
        least, limit = f.metadata["limits"]
        if not least <= value <= limit:
            bound = f"at least {least}" if value < least else f"at most {limit}"
            raise ValueError(f"{f.name} must be {bound}, not {shown(value)}")
        return
    if math.isfinite(high) or math.isfinite(below):
        lower = f"({above:g}" if above > low else f"[{low:g}"
        upper = f"{below:g})" if below < high else f"{high:g}]"
        raise ValueError(f"{f.name} must lie in {lower}, {upper}, not {shown(value)}")
    if low == 0 or above == 0:
        raise ValueError(f"{f.name} must {'be positive' if above == 0 else 'not be negative'}, it is {shown(value)}")
    raise ValueError(f"{f.name} must be at least {low:g}, not {shown(value)}")


def _check_text(name: str, value: str) -> None:
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"{name} must have at most {LONGEST_TEXT} characters, not {len(value)}: {shown(value)}")
    if "\0" in value:
        raise ValueError(f"{name} must be a text without NUL characters, which no path has, not {shown(value)}")


def parameters_of(config: type) -> Iterator[tuple[str, Field]]:
    """Yields the name and field of every parameter of a configuration class, including those of its groups."""
    for f in fields(config):
        if is_dataclass(f.type):
            yield from parameters_of(f.type)
        else:
            yield f.name, f


def make(config: type, params: Mapping[str, Any]) -> Any:
    """Makes a configuration from a flat mapping of parameters.

    Args:
        config: the configuration class.
        params: values by parameter name; missing ones keep their defaults, names that `config` lacks are ignored.
    """
    arguments = {}
    for f in fields(config):
        if is_dataclass(f.type):
            # Without any of its parameters a group keeps the default that the outer class declares for it.
            group_params = {name: params[name] for name, _ in parameters_of(f.type) if name in params}
            arguments[f.name] = make(f.type, group_params) if group_params else f.default
        elif f.name in params:
            arguments[f.name] = params[f.name]
    return config(**arguments)


def flatten(config: Any) -> dict[str, Any]:
    """Returns all parameters of a configuration by name, the inverse of `make`."""
    params: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        params |= flatten(value) if is_dataclass(f.type) else {f.name: value}
    return params


def changed(config: Any, **changes: Any) -> Any:
    """Returns a copy of a configuration with some parameters changed, whichever group they belong to.

    Raises:
        ParameterError: for a name that is not a parameter of the configuration.
    """
    refuse_unknown(changes, flatten(config), "parameter of this configuration")
    return make(type(config), flatten(config) | changes)


def refuse_unknown(names: Iterable[str], allowed: Iterable[str], description: str) -> None:
    """Raises ParameterError for the first of `names`, in alphabetical order, that is not allowed.

    Args:
        names: the names to check.
        allowed: the names that exist.
        description: the kind of the allowed names, for the message, such as "parameter of 'train'".
    """
    if unknown := sorted(set(names) - set(allowed)):
        raise ParameterError(f"{shown(unknown[0])} is no {description}, which takes {_listed(unknown[0], allowed)}")


def _listed(name: str, allowed: Iterable[str]) -> str:
    """The allowed names, or those closest to `name` where all would make a message too long to read."""
    names = sorted(allowed)
    if len(", ".join(names)) <= LONGEST_LIST:
        return ", ".join(names)
    closest = get_close_matches(name[:LONGEST_LIST], names, n=5) or names[:5]
    return f"{', '.join(closest)} and {len(names) - len(closest)} others"


def check_type(name: str, value: Any, default: Any) -> Any:
    """Returns `value` if it has the type of `default`, an int as a float where `default` is one.

    Raises:
        ParameterError: for a value of another type, naming the parameter.
    """
    if type(default) is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ParameterError(f"{name} must be finite, not {shown(value)}") from None
    if type(value) is not type(default):
        raise ParameterError(f"{name} must be of type {type(default).__name__} like {default!r}, not {shown(value)}")
    return value
