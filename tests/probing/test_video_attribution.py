"""What of the decisions on video files is motion."""

import pytest

from d3d.probing import attribution
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import s3dg
from d3d.study import plan, records
from d3d.study.run import new_run
from tests import configs
from tests.data.test_fixed_views import TINY, videos  # noqa: F401


@pytest.mark.slow
def test_the_motion_part_is_measured_by_camera_on_test_clips(videos, tmp_path):  # noqa: F811
    rows = [(p, p.parent.name, "test" if p.stem in "34" else "train") for p in sorted(videos.glob("*/*.avi"))]
    lines = [f"{p},{name},{name},{split},{'still' if name == '0' else 'moving'}" for p, name, split in rows]
    (tmp_path / "set.csv").write_text("\n".join(["path,class,label,split,camera", *lines]))
    parameters = TINY | {"dataset": "table", "root": str(tmp_path / "set.csv"), "results": str(tmp_path)}
    for arm, channels, stream in (("rgb", 3, "rgb"), ("flow", 2, "flow")):
        model = s3dg(2, width=0.1, in_channels=channels, seed=1)
        save_checkpoint(plan.weights_path(tmp_path, arm, 0), model, stream=stream, classes=("0", "1"))
    attribution.run(new_run("attribution", configs.attributing(**parameters, width=0.1), "cpu", "cpu"))
    by_arm = {record.arm: record for record in records.read_all(tmp_path, ["attribution"])}
    assert set(by_arm) == {"random", "rgb", "flow"}
    for record in by_arm.values():
        assert not record.stand_in
        assert not record.arrays
        for removal in ("frozen", "shuffled"):
            whole, still, moving = (record.metrics[f"motion_part/{removal}{g}"] for g in ("", "/still", "/moving"))
            assert whole == pytest.approx((still + moving) / 2, abs=1e-6)  # two test clips of each camera
    assert by_arm["random"].metrics["motion_part/frozen"] != 0


def test_sets_whose_clips_have_several_labels_are_refused():
    with pytest.raises(ValueError, match="dataset 'ava' has several labels per clip"):
        configs.attributing(dataset="ava", root="x", annotations="y")
