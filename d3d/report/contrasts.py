"""Contrasts: arithmetic on arms and numbers, such as `d3d - rgb_longer` or `max(d3d, rgb) / 2`.

A contrast has names of arms, numbers, + - * / ( ), and max and min of any values. Nothing else is computed.
"""

import ast
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import NamedTuple

import numpy as np
import pandas as pd

from d3d.messages import shown
from d3d.report.labels import ARM_NAME

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
FUNCTIONS: dict[str, Callable] = {
    "max": lambda *a: reduce(np.maximum, a),
    "min": lambda *a: reduce(np.minimum, a),
}
MOST_CHARACTERS, MOST_TOKENS = 500, 100
NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
TOKEN = re.compile(rf" *(?:(?P<name>{ARM_NAME})|(?P<number>{NUMBER})|(?P<sign>[-+*/(),])) *")
ALLOWED = "a contrast is arithmetic on arms and numbers with max and min, such as d3d - rgb"


class ClaimError(ValueError):
    """A claim, rule or contrast that does not parse; the message names it and what is allowed."""


class Contrast(NamedTuple):
    """A contrast, parsed.

    Attributes:
        tree: its syntax tree, with other names for the arms.
        arms: the arm of each name in the tree.
    """

    tree: ast.expr
    arms: dict[str, str]


def parse(text: str) -> Contrast:
    """Parses a contrast.

    Raises:
        ClaimError: for anything else: another function or operator, a division by the number zero, no arm, or a text
            that is too long.
    """
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
        raise ClaimError(f"{shown(text)} is not a contrast such as d3d - rgb, of at most {MOST_CHARACTERS} characters")
    source, arms = _renamed(text)
    try:
        tree = ast.parse(source, mode="eval").body
        value = evaluate(Contrast(tree, arms), dict.fromkeys(arms.values(), pd.Series([1.0])))
    except ClaimError as error:
        raise ClaimError(f"{shown(text)}: {error}") from None
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ClaimError(f"{shown(text)} is not a contrast such as d3d - rgb") from None
    if not isinstance(value, pd.Series):
        raise ClaimError(f"{shown(text)} names no arm: write a contrast such as d3d - rgb")
    return Contrast(tree, arms)


def _renamed(text: str) -> tuple[str, dict[str, str]]:
    """A contrast with an identifier of Python for each arm, and the arm of each: an arm may have a dot in its name."""
    tokens: list[str] = []
    identifiers: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if not match or len(tokens) == MOST_TOKENS:
            limit = (
                f"more than {MOST_TOKENS} names, numbers and signs" if match else shown(text[position : position + 20])
            )
            raise ClaimError(f"{shown(text)}: {ALLOWED}, without {limit}")
        name = match["name"]
        if name and keyword.iskeyword(name):
            raise ClaimError(f"{shown(text)}: {ALLOWED}; {name!r} is no arm")
        is_arm = name and name not in FUNCTIONS
        tokens.append(identifiers.setdefault(name, f"arm{len(identifiers)}") if is_arm else match[0].strip())
        position = match.end()
    return " ".join(tokens), {identifier: arm for arm, identifier in identifiers.items()}


def evaluate(contrast: Contrast, values: Mapping[str, pd.Series]) -> pd.Series | float:
    """Computes a contrast.

    Args:
        contrast: as `parse` gives it.
        values: the values of each arm, in the same order of seeds.

    Raises:
        ClaimError: for what `parse` refuses.
    """
    return _evaluate(contrast.tree, {name: values[arm] for name, arm in contrast.arms.items()})


def _evaluate(node: ast.expr, values: Mapping[str, pd.Series]) -> pd.Series | float:
    match node:
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.Constant(value=int() | float() as number) if math.isfinite(number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluate(inner, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            operands = _evaluate(left, values), _evaluate(right, values)
            if isinstance(op, ast.Div) and isinstance(operands[1], float) and operands[1] == 0:
                raise ClaimError("it divides by zero")
            value = OPERATORS[type(op)](*operands)
            if isinstance(value, float) and not math.isfinite(value):
                raise ClaimError("it has a number that is not finite")
            return value
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]) if name in FUNCTIONS:
            value = FUNCTIONS[name](*(_evaluate(a, values) for a in args))
            return value if isinstance(value, pd.Series) else float(value)
        case ast.Call(func=ast.Name(id=name), args=[]) if name in FUNCTIONS:
            raise ClaimError(f"{name} needs one value or more, separated by commas")
        case ast.Call(func=ast.Name(id=name)) if name in values:
            raise ClaimError(f"an arm is no function; the functions are {', '.join(FUNCTIONS)}")
    raise ClaimError(ALLOWED)


def arms_of(contrast: str) -> set[str]:
    """Returns the arms that a contrast names; raises as `parse` does."""
    return set(parse(contrast).arms.values())
