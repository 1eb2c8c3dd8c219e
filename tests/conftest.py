import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def _at_the_root():
    """Paths in notebooks, profiles and claims are relative to the repository."""
    os.chdir(ROOT)


@pytest.fixture(scope="session")
def golden():
    """Reference activations of TF-slim's S3D-G; not part of the repository."""
    folder = SHARED / "golden"
    if not folder.is_dir():
        pytest.skip("no reference activations beside this checkout")
    return folder


@pytest.fixture(scope="session")
def real_clips():
    """Eight real clips in six classes' worth of codecs; not part of the repository."""
    folder = SHARED / "videos"
    if not folder.is_dir():
        pytest.skip("no real clips beside this checkout")
    return folder
