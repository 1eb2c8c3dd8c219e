"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _run_in_repository_root():
    """Notebooks, profiles and claims name paths relative to it."""
    os.chdir(ROOT)


def shared_folder(name: str) -> Path:
    """Returns the folder `shared/<name>` beside this checkout, or skips the test."""
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"no shared/{name} beside this checkout")
    return folder


@pytest.fixture(scope="session")
def golden():
    """Folder of reference activations of TF-slim's S3D-G; not part of the repository."""
    return shared_folder("golden")


@pytest.fixture(scope="session")
def real_clips():
    """Folder of eight real clips of UCF101, HMDB51 and Kinetics, in three codecs; not part of the repository."""
    return shared_folder("videos")
