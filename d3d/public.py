"""Imports a package's public names from its modules on first use, so that importing the package alone is cheap."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_getattr(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns a package's `__getattr__`; `modules` maps each public name to the module that defines it."""

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}: its public names are {', '.join(modules)}"
            )
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get
