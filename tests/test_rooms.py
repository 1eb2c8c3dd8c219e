"""The house: what may be in which room, and which way imports go."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from d3d.study.records import ROOT

PACKAGE = ROOT / "d3d"
TOOLS = {"files", "progress"}
# What each room may import beside itself.
MAY_IMPORT = {
    "files": set(),
    "progress": {"files"},
    "video": TOOLS,
    "s3dg": TOOLS | {"video"},
    "flow": TOOLS | {"video"},
    "study": TOOLS,
    "data": TOOLS | {"video", "flow", "study", "s3dg"},
    "train": TOOLS | {"data", "s3dg", "study"},
    "probing": TOOLS | {"train", "data", "s3dg", "flow", "study"},
    "report": TOOLS | {"study", "data", "pictures"},
    "pictures": TOOLS | {"data", "flow", "video", "report", "study"},
}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem not in ("__init__", "__main__"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Rooms that a module imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "d3d":
            names = [f"d3d.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("d3d."))


def test_every_room_is_known():
    assert {room_of(path) for path in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    assert set(imported(path)) <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400
