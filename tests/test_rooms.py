"""The rooms (folders) of the package: which rooms may import which, and what importing a room costs."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from d3d.study.records import ROOT

PACKAGE = ROOT / "d3d"
TOOLS = {"messages", "files", "documents", "npz", "progress", "public"}
# The rooms that each room may import, besides itself.
MAY_IMPORT = {
    "messages": set(),
    "files": {"messages"},
    "documents": {"messages"},
    "npz": {"messages"},
    "progress": {"files", "documents", "messages"},
    "public": set(),
    "video": TOOLS,
    "s3dg": TOOLS | {"video"},
    "flow": TOOLS | {"video"},
    "study": TOOLS,
    "data": TOOLS | {"video", "flow", "study"},
    "train": TOOLS | {"data", "s3dg", "study"},
    "probing": TOOLS | {"train", "data", "s3dg", "flow", "study"},
    "detection": TOOLS | {"train", "data", "s3dg", "study", "video"},
    "report": TOOLS | {"study"},
    "pictures": TOOLS | {"data", "flow", "video", "report", "study"},
    "films": TOOLS | {"data", "flow", "video", "report", "study"},
}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem not in ("__init__", "__main__"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> Iterator[str]:
    """Yields the rooms that a module imports, including imports within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "d3d":
            names = [f"d3d.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("d3d."))


def test_every_room_is_listed():
    assert {room_of(path) for path in modules()} == set(MAY_IMPORT)


ROOMS = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_states_its_purpose_and_imports_nothing_else(room):
    code = (
        f"import sys, d3d.{room}; print(len([m for m in sys.modules if m.startswith('d3d')]), 'torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["3", "False"]
    package = import_module(f"d3d.{room}")
    assert package.__doc__.startswith("The only place ")
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing': its public names are"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_package_imports_from_modules_not_from_rooms(path):
    """The hash of an experiment's code could not follow an import from a room's list of public names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("d3d."):
            module = ROOT.joinpath(*node.module.split("."))
            for alias in node.names:
                assert module.with_suffix(".py").is_file() or (module / f"{alias.name}.py").is_file(), alias.name


@pytest.mark.parametrize("room", ["study", "report"])
def test_the_room_does_not_import_torch(room):
    names = [f"d3d.{room}.{p.stem}" for p in sorted((PACKAGE / room).glob("*.py")) if p.stem != "__init__"]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"


def test_training_on_sprites_imports_neither_torchvision_nor_pyav():
    """Importing torchvision takes longer than all rooms together, and rendered clips need no decoder."""
    code = "import sys, d3d.train.command; print({'torchvision', 'av'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "set()\n"


def test_the_verdict_chapter_imports_only_records_claims_and_figures(tmp_path):
    """Neither torch nor the rooms that handle videos, flow or networks."""
    cells = json.loads((ROOT / "notebooks/chapters/verdict.ipynb").read_text())["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    code = code.replace('"results/smoke"', '"results/h200.jsonl"').replace(
        "from myst_nb import glue", "glue = lambda *_, **__: None"
    )
    path = tmp_path / "verdict.py"
    path.write_text(
        f"{code}\nimport sys\nprint(sorted(m for m in sys.modules if m == 'torch' or m.startswith('d3d.')))"
    )
    process = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(process.stdout.splitlines()[-1])
    assert "torch" not in loaded
    assert {name.split(".")[1] for name in loaded} <= {"report", "study", *TOOLS}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_it_may(path):
    room = room_of(path)
    assert set(imported_rooms(path)) <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_has_at_most_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
