"""Which networks are fused: two arms of one seed, or one arm of two."""

import numpy as np
import pytest

from d3d.study import records
from d3d.study.records import RecordError
from d3d.train import fuse
from tests.study.test_records import record

LOGITS = {"logits/iid": np.zeros((2, 3))}


def test_pairs_for_fusion(tmp_path):
    for seed in (0, 1, 5, 6, 9):
        records.write(tmp_path, record(seed=seed), LOGITS)
    records.write(tmp_path, record(arm="flow", seed=5), LOGITS)
    records.write(tmp_path, record(arm="flow", seed=6))  # made elsewhere: its logits are not here
    records.write(tmp_path, record(experiment="probe", arm="flow", seed=0))

    def seeds(first, second):
        return [(a.seed, b.seed) for a, b in fuse.pairs(tmp_path, first, second, same=("rho", "frames"))]

    assert seeds("rgb", "flow") == [(5, 5)]
    # Of the seeds 2k and 2k + 1, whichever are there: 5 and 6 belong to two pairs.
    assert seeds("rgb", "rgb") == [(0, 1)]
    assert seeds("flow", "flow") == []


def test_networks_of_other_clips_are_not_fused(tmp_path):
    records.write(tmp_path, record(), LOGITS)
    records.write(tmp_path, record(arm="flow", params={"rho": 0.9, "frames": 8}), LOGITS)
    with pytest.raises(RecordError, match=r"rgb-seed0 and flow-seed0 saw other clips: they differ in rho"):
        fuse.pairs(tmp_path, "rgb", "flow", same=("rho", "frames"))
