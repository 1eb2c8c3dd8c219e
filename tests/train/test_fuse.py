"""Which networks are fused: two arms of the same seed, or one arm of two seeds."""

import numpy as np
import pytest

from d3d.study import records
from d3d.study.records import RecordError
from d3d.train import fuse
from tests.study.test_records import record

LOGITS = {"logits/iid": np.zeros((2, 3))}


def test_records_match_by_seed(tmp_path):
    for seed in (0, 1, 5, 6, 9):
        records.write(tmp_path, record(seed=seed), LOGITS)
    records.write(tmp_path, record(arm="flow", seed=5), LOGITS)
    records.write(tmp_path, record(arm="flow", seed=6))  # without logits, as from another machine
    records.write(tmp_path, record(experiment="probe", arm="flow", seed=0))

    def seeds(*arms):
        matching = fuse.matching_records(tmp_path, arms, must_match=("rho", "frames"))
        return [tuple(record.seed for record in of_seed) for of_seed in matching]

    assert seeds("rgb", "flow") == [(5, 5)]
    # Seeds 2k and 2k + 1 make a pair: 5, 6 and 9 lack their partner.
    assert seeds("rgb", "rgb") == [(0, 1)]
    assert seeds("flow", "flow") == []
    assert seeds("rgb", "flow", "rgb_longer") == []
    records.write(tmp_path, record(experiment="distill", arm="rgb_longer", seed=5), LOGITS)
    assert seeds("rgb", "flow", "rgb_longer") == [(5, 5, 5)]


def test_networks_of_different_clips_are_not_fused(tmp_path):
    records.write(tmp_path, record(), LOGITS)
    records.write(tmp_path, record(arm="flow", params={"rho": 0.9, "frames": 8}), LOGITS)
    with pytest.raises(RecordError, match=r"rgb-seed0 and flow-seed0 saw different clips: rho differ"):
        fuse.matching_records(tmp_path, ("rgb", "flow"), must_match=("rho", "frames"))
