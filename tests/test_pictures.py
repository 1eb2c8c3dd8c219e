"""Figures and videos of clips, flow and maps; tests/report/test_plots.py says how to renew the baselines."""

import base64
import io
import re

import av
import numpy as np
import pandas as pd
import pytest
import torch

from d3d import films, pictures
from d3d.data.scenes import render_scenes
from d3d.data.sprites import render
from d3d.study import records
from d3d.study.records import Record
from d3d.study.schema import flatten
from tests import configs
from tests.study.test_records import PROVENANCE

figure = pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 60}, tolerance=4)
SMALL = configs.clip(noise=0.0, frames=4, size=32)


def decoded_frames(html):
    """The frames of the video in an HTML figure."""
    video = base64.b64decode(re.search(r'src="data:video/mp4;base64,([^"]+)"', html)[1])
    with av.open(io.BytesIO(video)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


@figure
def test_clips():
    return pictures.clips(render(configs.clip(noise=0.0), "iid", range(3)), columns=4)


@figure
def test_flows():
    clip = render(configs.clip(noise=0.0, frames=2, size=32), "iid", range(2))
    truth = clip.flow[:, :, 0]
    columns = {"frame": clip.rgb[:, :, 0], "exact": truth, "half of it": truth / 2}
    return pictures.flows(columns, truth)


def test_a_video_shows_the_rendered_frames_and_mask():
    clip = render(configs.clip(noise=0.0, frames=5, size=32), "iid", range(2))
    html = films.clip_html(clip, 1, zoom=2)
    assert clip.table["class"][1] in html
    frames = decoded_frames(html)
    assert len(frames) == 5
    assert frames[0].shape == (64, 192, 3)
    # H.264 is lossy and halves the resolution of colour, so that only brightness is compared.
    brightness = frames[2][::2, :64:2].mean(-1) / 255
    assert abs(brightness - clip.rgb[1, :, 2].mean(0).numpy()).mean() < 0.03
    mask = frames[2][::2, 128::2].mean(-1) > 127
    assert (mask == clip.mask[1, 2].numpy()).mean() > 0.98


def test_films_of_attribution_show_the_maps_of_the_chosen_clips(tmp_path):
    """Of a network whose map is the left half of the first clip, and nothing of the second one."""
    config = SMALL
    heat = np.zeros((2, 4, 32, 32), np.uint8)
    heat[0, :, :, :16] = 255
    arrays = {
        "shown/rows": np.array([5, 0]),
        "shown/right": np.array([True, False]),
        "shown/motion_gradients": heat,
        "shown/grad_cam": heat,
    }
    for arm, of_arm in {"d3d": arrays, "rgb": {"occlusion": np.zeros(4)}}.items():
        run = Record("attribution", arm, 0, dict(flatten(config)), {"target_share": 0.5}, True, PROVENANCE)
        records.write(tmp_path, run, of_arm)
    first, second = films.attribution_films(tmp_path, ["rgb", "d3d"])
    clip = render(config, "iid", [5, 0])
    assert first.endswith(f"{clip.table['class'][0]}. From the left: the clip, D3D ✓</figcaption></figure>")
    assert second.endswith(f"{clip.table['class'][1]}. From the left: the clip, D3D ✗</figcaption></figure>")
    frame = decoded_frames(first)[1] / 255
    zoom = 4
    assert frame.shape == (zoom * 66, zoom * 66, 3)  # two panels beside each other, and two rows, with gaps of two
    panel = frame[: 32 * zoom, : 32 * zoom].mean(-1)
    assert (
        abs(panel - clip.rgb[0, :, 1].mean(0).repeat_interleave(zoom, 0).repeat_interleave(zoom, 1).numpy()).mean()
        < 0.06
    )
    for rows in (slice(0, 32), slice(34, 66)):
        heated, plain = (
            frame[rows.start * zoom : rows.stop * zoom, 34 * zoom :].mean(-1).reshape(128, 2, 64).mean((0, 2))
        )
        assert heated > plain + 0.2
    assert films.attribution_films(tmp_path, ["rgb"]) == []


def scaled_flow(clips, factor):
    return (factor * clips.flow).numpy()


@figure
def test_filmstrips():
    clips = render(SMALL, "iid", [0, 4])
    flows = {"rgb": scaled_flow(clips, 0.5), "tuned": scaled_flow(clips, 1.0)}
    return pictures.filmstrips(
        clips.rgb, clips.flow, clips.mask, flows, titles=["right", "clockwise"], frame_numbers=[0, 1, 2, 3], bound=3.0
    )


def test_a_filmstrip_shows_the_error_on_the_target():
    clips = render(SMALL, "iid", [0])
    drawn = pictures.filmstrips(
        clips.rgb,
        clips.flow,
        clips.mask,
        {"rgb": scaled_flow(clips, 0.5)},
        titles=["right"],
        frame_numbers=[0, 1, 2, 3],
        bound=3.0,
    )
    # Half of the true flow is wrong by half of the speed.
    speed = torch.linalg.vector_norm(clips.flow, dim=1)[clips.mask].mean().item()
    texts = [text.get_text() for axis in drawn.axes for text in axis.texts]
    assert f"{speed / 2:.2f}" in texts
    assert len([axis for axis in drawn.axes if axis.images]) == 3 * 4


def test_the_colour_wheel_is_white_in_the_middle_and_outside_and_has_the_colours_of_flow():
    wheel = pictures.colour_wheel(bound=2.0, pixels=101)
    assert (wheel[50, 50] >= 250).all()
    assert (wheel[0, 0] == 255).all()
    right = pictures.colours(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), bound=2.0)[0, :, 0, 0].numpy()
    down = pictures.colours(torch.tensor([0.0, 2.0]).view(1, 2, 1, 1), bound=2.0)[0, :, 0, 0].numpy()
    assert abs(wheel[50, 100].astype(int) - right).max() <= 1
    assert abs(wheel[100, 50].astype(int) - down).max() <= 1
    assert abs(right.astype(int) - down).max() > 100


def test_example_rows_are_the_first_clips_of_their_programs():
    table = pd.DataFrame({"program": ["left", "right", "expand", "right"]})
    assert pictures.example_rows(table) == [1, 2]
    assert pictures.example_rows(table[:1]) == [0]


def test_decoded_flow_is_that_of_the_first_seed_in_the_order_of_the_arms(tmp_path):
    params = {**flatten(SMALL), "endpoint": "Mixed_3c"}
    truth = render(SMALL, "iid", range(6)).flow.numpy()[:, :, [0, 2]]
    frames = np.array([0, 2])
    for seed, arm, factor in ((1, "rgb", 0.0), (0, "tuned", 1.0), (0, "rgb", 0.5)):
        arrays = {"dense": (factor * truth).astype(np.float16), "frames": frames}
        records.write(tmp_path, Record("probe", arm, seed, params, {}, True, PROVENANCE), arrays)
    records.write(tmp_path, Record("probe", "d3d", 0, params, {}, True, PROVENANCE))
    decoded = pictures.decoded_flow(tmp_path, ["tuned", "d3d", "rgb"])
    assert decoded["endpoint"] == "Mixed_3c"
    panels = decoded["panels"]
    assert list(panels["decoded"]) == ["tuned", "rgb"]
    assert panels["titles"] == ["right", "clockwise"]
    assert panels["frame_numbers"] == [0, 2]
    np.testing.assert_allclose(panels["decoded"]["tuned"], panels["truth"], atol=5e-3)
    np.testing.assert_allclose(panels["decoded"]["rgb"], panels["truth"] / 2, atol=5e-3)
    assert panels["rgb"].shape == (2, 3, 2, 32, 32)
    pictures.filmstrips(**panels)


@pytest.fixture(scope="module")
def detections(tmp_path_factory):
    """Records of two arms in four scenes: D3D is right in all but the first two, RGB-longer nowhere."""
    results, config = tmp_path_factory.mktemp("detections"), configs.clip(noise=0.0, frames=4, size=16, extent=0.28)
    boxes = render_scenes(config, "iid", range(4)).boxes
    truth, corners = boxes["label"].to_numpy(), boxes[["x1", "y1", "x2", "y2"]].to_numpy(np.float32)
    params = {**flatten(config), "drawn_scenes": 4}
    for seed, arm in ((1, "d3d"), (0, "d3d"), (0, "rgb_longer"), (0, "rgb")):
        right = (boxes["scene"] > 1) & (arm == "d3d")
        scores = np.eye(16, dtype=np.float16)[np.where(right, truth, (truth + 1) % 16)] / 2
        arrays = {"scene": boxes["scene"].to_numpy(np.uint16), "corners": corners, "scores": scores}
        # A second box at the same place, which nobody would count as right: its score is lower.
        arrays = {
            f"detected/{name}": np.concatenate([x, x / 2 if name == "scores" else x]) for name, x in arrays.items()
        }
        records.write(results, Record("detect", arm, seed, params, {}, True, PROVENANCE), arrays)
    return results, boxes


def test_scenes_are_the_first_in_which_all_is_right_and_the_first_in_which_something_is_wrong(detections):
    results, boxes = detections
    drawn = films.detected_scenes(results, ["rgb_longer", "d3d"], count=3)
    assert list(drawn["panels"]) == [2, 0, 1]
    for scene, panels in drawn["panels"].items():
        own = boxes[boxes["scene"] == scene]
        assert list(panels) == ["truth", "rgb_longer", "d3d"]
        assert [box.action for box in panels["truth"]] == own["class"].tolist()
        # As many boxes as actors, although there are twice as many.
        assert [box.is_right for box in panels["d3d"]] == [scene == 2] * len(own)
        assert not any(box.is_right for box in panels["rgb_longer"])
    assert films.detected_scenes(results, ["flow"]) is None


def test_a_film_of_a_scene_stops_where_boxes_are_drawn(detections):
    drawn = films.detected_scenes(detections[0], ["rgb_longer", "d3d"])
    html = films.scene_html(drawn["scenes"], 2, drawn["panels"][2])
    actors = len(drawn["panels"][2]["truth"])
    assert f"Right: RGB-longer 0 of {actors}, D3D {actors} of {actors}" in html
    video = base64.b64decode(re.search(r'src="data:video/mp4;base64,([^"]+)"', html)[1])
    with av.open(io.BytesIO(video)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)]).astype(int)
    still = films.FILM_FPS * films.SECONDS_STILL
    assert len(frames) == 4 + still
    side = frames.shape[1]
    panels = frames[3, :, :side], frames[3, :, -side:]
    x1, y1, _, y2 = (int(edge * side) for edge in drawn["panels"][2]["truth"][0].corners)
    # White at the left edge of the true box, blue at that of D3D's.
    for panel, ink in zip(panels, ((255, 255, 255), (0x56, 0xB4, 0xE9)), strict=True):
        edge = panel[(y1 + y2) // 2 + 20 : y2 - 6, x1 : x1 + 2].mean((0, 1))
        assert np.allclose(edge, ink, atol=60), edge
    assert abs(frames[3] - frames[2 + still]).mean() < 2
    assert abs(frames[0] - frames[3]).mean() > 2


def test_there_is_none_without_records_of_decoded_flow(tmp_path):
    assert pictures.decoded_flow(tmp_path, ["rgb"]) is None
