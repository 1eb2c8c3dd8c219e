"""The public names of a room, imported from its modules when first asked for, so that a room costs nothing to enter."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def public(room: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A room's `__getattr__`: `names` maps a public name to the module of the room that defines it."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {room!r} has no attribute {name!r}: its public names are {', '.join(names)}")
        return getattr(import_module(f"{room}.{names[name]}"), name)

    return get
