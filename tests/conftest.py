import os
import sys
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _at_the_root():
    """Paths in notebooks, profiles and claims are relative to the repository."""
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
