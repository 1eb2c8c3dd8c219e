"""Probes of networks that were trained on video files."""

import pytest

from d3d.probing import decoders, probe
from d3d.s3dg.checkpoints import save_checkpoint
from d3d.s3dg.network import s3dg
from d3d.study import plan, records
from d3d.study.run import new_run
from tests import configs
from tests.data.test_fixed_views import TINY, videos  # noqa: F401


@pytest.mark.slow
def test_networks_trained_on_videos_are_probed_on_their_test_clips(videos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(decoders, "ENDPOINTS", ("Conv2d_1a_7x7", "Mixed_3c"))
    monkeypatch.setattr(probe, "ENDPOINTS", ("Conv2d_1a_7x7", "Mixed_3c"))
    config = configs.probing(
        **TINY, root=str(videos), results=str(tmp_path), endpoint="Mixed_3c", width=0.1, decoder_epochs=40, batch_size=4
    )
    classes = ("0", "1")
    for arm, channels, stream in (("rgb", 3, "rgb"), ("flow", 2, "flow")):
        model = s3dg(2, width=0.1, in_channels=channels)
        save_checkpoint(plan.weights_path(tmp_path, arm, 0), model, stream=stream, classes=classes)
    probe.run(new_run("probe", config, "cpu", "cpu"))
    by_arm = {record.arm: record for record in records.read_all(tmp_path, ["probe"])}
    assert set(by_arm) == {"rgb", "flow", "random", "tuned"}
    for record in by_arm.values():
        assert not record.stand_in
        assert record.files["decoded"] == 10
        assert {name for name in record.metrics if not name.startswith("seconds/")} == {
            f"{endpoint}/epe{still}" for endpoint in ("Conv2d_1a_7x7", "Mixed_3c", "dense") for still in ("", "_still")
        }
    # The flow stream sees what is to be decoded.
    errors = {arm: record.metrics["Conv2d_1a_7x7/epe"] for arm, record in by_arm.items()}
    assert errors["flow"] < errors["rgb"]
    assert len({record.metrics["Mixed_3c/epe_still"] for record in by_arm.values()}) == 1


@pytest.mark.slow
def test_errors_are_measured_by_camera_where_the_data_set_tells(videos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(decoders, "ENDPOINTS", ("Conv2d_1a_7x7", "Mixed_3c"))
    monkeypatch.setattr(probe, "arms_examined_by", lambda _: ("random",))
    rows = [(p, p.parent.name, "test" if p.stem in "34" else "train") for p in sorted(videos.glob("*/*.avi"))]
    lines = [f"{p},{name},{name},{split},{'still' if name == '0' else 'moving'}" for p, name, split in rows]
    (tmp_path / "set.csv").write_text("\n".join(["path,class,label,split,camera", *lines]))
    parameters = TINY | {"dataset": "table", "root": str(tmp_path / "set.csv"), "results": str(tmp_path)}
    config = configs.probing(**parameters, endpoint="Mixed_3c", width=0.1, decoder_epochs=1, batch_size=4)
    probe.run(new_run("probe", config, "cpu", "cpu"))
    (record,) = records.read_all(tmp_path, ["probe"])
    whole, still, moving = (record.metrics[f"Conv2d_1a_7x7/{group}epe"] for group in ("", "still/", "moving/"))
    # Two test clips of each camera.
    assert whole == pytest.approx((still + moving) / 2, rel=0.05)
    assert still != moving


def test_pictures_of_video_files_are_refused():
    with pytest.raises(ValueError, match="pictures are kept of sprites only: set it to 0 for video files"):
        configs.probing(**TINY, root="videos", pictures=3)
