"""What a parameter is: a field of a dataclass with a default, a range and one sentence; groups of them are composed.

class Optimiser(Group):
    epochs: int = parameter(8, "passes over the training clips", low=1)
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any


class ParameterError(ValueError):
    """A parameter that does not exist, or a value of the wrong kind; the message lists what is right."""


def parameter(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of a group: its default, one sentence, and what it may be.

    low, high: the least and the largest value. above, below: bounds that themselves are not allowed.
    """
    return field(default=default, metadata={"help": help, "range": (low, high, above, below), "choices": choices})


class Group:
    """Checks every parameter against its range when a group is made; raises ValueError naming it."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.metadata:
                _check(f, getattr(self, f.name))
        self.check()

    def check(self) -> None:
        """What must hold between several parameters."""


def _check(f: Field, value: Any) -> None:
    (low, high, above, below), choices = f.metadata["range"], f.metadata["choices"]
    if choices and value not in choices:
        raise ValueError(f"{f.name} must be one of {', '.join(choices)}, not {value!r}")
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{f.name} must be finite, not {value}")
    if not isinstance(value, int | float) or (low <= value <= high and above < value < below):
        return
    if math.isfinite(high) or math.isfinite(below):
        least, most = (f"({above:g}" if above > low else f"[{low:g}"), (f"{below:g})" if below < high else f"{high:g}]")
        raise ValueError(f"{f.name} must lie in {least}, {most}, not {value}")
    if low == 0 or above == 0:
        raise ValueError(f"{f.name} must {'be positive' if above == 0 else 'not be negative'}, it is {value}")
    raise ValueError(f"{f.name} must be at least {low:g}, not {value}")


def parameters_of(config: type) -> Iterator[tuple[str, Field]]:
    """Names and fields of all parameters of a configuration, through its groups."""
    for f in fields(config):
        if is_dataclass(f.type):
            yield from parameters_of(f.type)
        else:
            yield f.name, f


def make(config: type, flat: Mapping[str, Any]) -> Any:
    """A configuration from its parameters by name; those not given keep their neutral values."""
    made = {}
    for f in fields(config):
        if is_dataclass(f.type):
            # A group of which nothing is given stays as it is where it is composed.
            own = {name: flat[name] for name, _ in parameters_of(f.type) if name in flat}
            made[f.name] = make(f.type, own) if own else f.default
        elif f.name in flat:
            made[f.name] = flat[f.name]
    return config(**made)


def flat(config: Any) -> dict[str, Any]:
    """All parameters of a configuration by name."""
    found: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        found |= flat(value) if is_dataclass(f.type) else {f.name: value}
    return found


def changed(config: Any, **changes: Any) -> Any:
    """The configuration with some parameters changed, whatever group they stand in.

    Raises ParameterError for a name that is no parameter of it.
    """
    refuse_unknown(changes, flat(config), "parameter of this configuration")
    return make(type(config), flat(config) | changes)


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Raises ParameterError for the first name that is not known."""
    if unknown := sorted(set(given) - set(known)):
        raise ParameterError(f"{unknown[0]!r} is no {what}, which takes {', '.join(sorted(known))}")


def same_kind(like: Any, name: str, value: Any) -> Any:
    """`value` as the kind of `like`: whole numbers pass as floats, nothing else is converted."""
    if type(like) is float and type(value) is int:
        return float(value)
    if type(value) is not type(like):
        raise ParameterError(f"{name} must be of type {type(like).__name__} like {like!r}, not {value!r}")
    return value
