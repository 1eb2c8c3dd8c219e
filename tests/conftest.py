"""Fixtures for all tests."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
# Hypothesis's limit of 200 ms per example fails on a machine that is busy.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _run_in_repository_root():
    """Notebooks, profiles and claims name paths relative to it."""
    os.chdir(ROOT)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Limits torch, OpenMP and BLAS to one thread, as runs on a CPU do, unless OMP_NUM_THREADS is set.

    Threads wait for one another by spinning: on two cores, two test processes of two threads each take three to ten
    times as long as two of one thread, while a single process gains little by its second thread.
    """
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    # Test modules that need torch have imported it by now; the others are spared its seconds.
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


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
