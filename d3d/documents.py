"""Reads YAML and JSON: plain values only, bounded in size and depth, without duplicate keys and aliases.

    params = read_yaml("run.yaml")
    fields = read_json("results/smoke/train/rgb-seed0.json")
    fields = parse_json(line, "line 3 of results/h200.jsonl")

A document holds mappings from text to values, lists, text, finite numbers, true, false and null. Whole numbers have at
most 64 bits. A file that is anything else is refused in one sentence, which names it.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from d3d.messages import printable, shown

MAX_BYTES = 32 * 2**20
MAX_YAML_BYTES = 2**20  # YAML is written by hand, and read hundreds of times slower than JSON
MAX_DEPTH = 50
MAX_INTEGER = 2**63 - 1


class DocumentError(ValueError):
    """A file or line that is no document of plain values; the message names it and what is wrong."""


@dataclass(frozen=True)
class Entry:
    """What a key of a mapping may hold.

    Attributes:
        words: the words for it, after "must be".
        passes: whether a value is allowed.
        optional: whether the key may be missing.
    """

    words: str
    passes: Callable[[Any], bool]
    optional: bool = True


def check_entries(
    values: Mapping[str, Any], entries: Mapping[str, Entry], where: str, error: type[Exception], *, within: str = ""
) -> None:
    """Checks the values of a mapping; keys that `entries` does not name may hold anything.

    Args:
        values: the mapping.
        entries: what each key may hold.
        where: what the mapping is, printable, for errors.
        error: the exception to raise, with one sentence.
        within: the field of `where` that holds the mapping; empty: it is all of it.
    """
    for name, entry in entries.items():
        if name in values and not entry.passes(values[name]):
            place = f"{name} in {within}" if within else name
            raise error(f"{where}: {place} must be {entry.words}, not {shown(values[name])}")
        if name not in values and not entry.optional:
            holder = f"{where}: {within}" if within else where
            raise error(f"{holder} has no {name}, which must be {entry.words}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; truth values are none."""
    if type(value) is float:  # nearly always: the fast way first
        return math.isfinite(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_bytes(path: str | Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads a whole file, if it is a file and not too large.

    Args:
        path: the file.
        max_bytes: its largest size, in bytes.

    Raises:
        DocumentError: for a folder, a pipe or device, or a larger file, naming it.
        OSError: for a file that cannot be read.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise DocumentError(f"{printable(path)} is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or device'}, no file")
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DocumentError(f"{printable(path)} is larger than {max_bytes / 2**20:g} MiB, the most that is read")
    return content


def read_json(path: str | Path, *, max_bytes: int = MAX_BYTES, finite: bool = True) -> Any:
    """Reads a JSON file; raises as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path, max_bytes=max_bytes), printable(path), finite=finite)


def parse_json(content: bytes | str, where: str, *, finite: bool = True) -> Any:
    """Reads JSON.

    Args:
        content: the JSON, as text or in UTF-8.
        where: what it is, printable, for errors: `a.json`, `line 3 of a.jsonl`.
        finite: whether NaN and infinite numbers are refused, which JSON does not have, but Python's writer writes.

    Raises:
        DocumentError: for anything else than one document of plain values, naming `where`.
    """
    text = content if isinstance(content, str) else _decode(content, where)
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _mapping(pairs, where))
        return _checked(value, where, finite=finite)
    except DocumentError:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DocumentError(f"{where} is not complete JSON: {error.msg}, {place}") from None
    except ValueError:
        raise DocumentError(f"{where} holds a number of thousands of digits: at most 64 bits are read") from None
    except RecursionError:
        raise _too_deep(where) from None
    except MemoryError:
        raise DocumentError(f"{where} needs more memory than there is") from None


def _mapping(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        # set.add returns None, so this is the first name that was seen before.
        raise _duplicate(where, next(name for name, _ in pairs if name in seen or seen.add(name)))
    return mapping


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file; raises as `read_bytes` and `parse_yaml` do."""
    return parse_yaml(read_bytes(path, max_bytes=MAX_YAML_BYTES), printable(path))


def parse_yaml(content: bytes | str, where: str) -> Any:
    """Reads YAML. Dates are read as text, and so are `<<` and `=`.

    Args:
        content: the YAML, as text or in UTF-8.
        where: what it is, printable, for errors.

    Raises:
        DocumentError: for anything else than one document of plain values, naming `where`: anchors, aliases, tags and
            keys that are not text are refused.
    """
    text = content if isinstance(content, str) else _decode(content, where)
    try:
        loader = _PlainLoader(text)
        loader.where = where
        return _checked(loader.get_single_data(), where, finite=True)
    except DocumentError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, MemoryError) as error:
        raise DocumentError(f"{where} is no YAML file: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What PyYAML found wrong, and in which line, without the text of the file."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        return printable(problem)[:120] + (f", line {mark.line + 1}" if mark else "")
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} is no printable text"
    return "a number does not parse" if isinstance(error, ValueError) else "it is too large or nested too deeply"


class _PlainLoader(yaml.SafeLoader):
    """Makes plain values only, and refuses what makes a small file large or says something twice."""

    where = ""
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise DocumentError(f"{self.where} has an anchor or alias in line {line}: write the value out")
        if getattr(event, "tag", None):
            tag = shown(event.tag.replace("tag:yaml.org,2002:", "!!"))
            raise DocumentError(f"{self.where} has the tag {tag} in line {line}: only plain values are read")
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise _too_deep(self.where)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise DocumentError(f"{self.where} has the key {shown(key)} in line {line}: a key is text, so quote it")
            if key in mapping:
                raise _duplicate(self.where, key)
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


_NOT_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"{where} is no text in UTF-8, from byte {error.start + 1} on") from None


def _checked(value: Any, where: str, *, finite: bool) -> Any:
    """Refuses values that are nested too deeply, and numbers that are not finite or too large."""
    level, depth = [value], 0
    while level:
        if depth == MAX_DEPTH and any(type(item) in (dict, list) for item in level):
            raise _too_deep(where)
        deeper: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is dict:
                deeper.extend(item.values())
            elif kind is list:
                deeper.extend(item)
            elif (kind is float and finite and not math.isfinite(item)) or (kind is int and abs(item) > MAX_INTEGER):
                name = _key_of(value, item)
                number = "a whole number has at most 64 bits" if kind is int else "a number must be finite"
                raise DocumentError(f"{where} holds {shown(item)}{name and f' in {name}'}: {number}")
        level, depth = deeper, depth + 1
    return value


def _key_of(value: Any, number: float, key: str = "") -> str:
    """The key under which a number stands, as a message shows it; empty without one."""
    if value is number:
        return key
    children: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        children = ((shown(name), item) for name, item in value.items())
    elif isinstance(value, list):
        children = ((key, item) for item in value)
    return next(filter(None, (_key_of(item, number, name) for name, item in children)), "")


def _too_deep(where: str) -> DocumentError:
    return DocumentError(f"{where} nests lists and mappings more than {MAX_DEPTH} deep")


def _duplicate(where: str, key: str) -> DocumentError:
    return DocumentError(f"{where} has the key {shown(key)} twice: keep one of them")
