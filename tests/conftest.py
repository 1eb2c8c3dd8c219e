import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _at_the_root():
    """Paths in notebooks, profiles and claims are relative to the repository."""
    os.chdir(ROOT)


def beside_the_checkout(name: str) -> Path:
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"no {name} beside this checkout")
    return folder


@pytest.fixture(scope="session")
def golden():
    """Reference activations of TF-slim's S3D-G; not part of the repository."""
    return beside_the_checkout("golden")


@pytest.fixture(scope="session")
def real_clips():
    """Eight real clips of UCF101, HMDB51 and Kinetics, in three codecs; not part of the repository."""
    return beside_the_checkout("videos")
