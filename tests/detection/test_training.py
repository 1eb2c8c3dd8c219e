"""Training of detectors: what the loss counts, that it is learnt and repeatable; and the tables of detections."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d3d.data.sprite_classes import CLASSES
from d3d.detection.key_frames import Actors
from d3d.detection.loop import Saving, Step
from d3d.detection.network import ActionDetector
from d3d.detection.scene_sets import scene_set
from d3d.detection.scoring import frame_map
from d3d.detection.training import KEY_FRAMES_PER_PASS, _DetectorTrainer, detect, fuse_detections, train_detector
from d3d.s3dg.network import s3dg
from d3d.study.parameters import OptimiserConfig
from d3d.train.lease import Lease
from d3d.train.states import States
from tests import configs

EASY = {"extent": 0.28, "amplitude": 2.0, "noise": 0.0, "camera": 0.0, "flow": "exact", "bound": 2.0}
CORNERS = ["x1", "y1", "x2", "y2"]


@pytest.fixture(scope="module")
def tiny():
    return scene_set(configs.data(size=16, frames=2, **EASY), "train/0", 8)


def new_detector(stream="rgb"):
    return ActionDetector(s3dg(16, width=0.1, in_channels=3 if stream == "rgb" else 2), len(CLASSES))


def trainer(scenes):
    model = new_detector().eval()
    nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    return _DetectorTrainer(model, scenes, "rgb", OptimiserConfig(batch_size=4), 4, 0)


def batch_of(scenes, rows):
    (batch,) = scenes.clips("rgb", [rows])
    return batch


def gradients(model, loss):
    params = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, params)


def keep_all(trained, rows):
    return torch.ones(4 * len(rows), trained.model.classifier.in_features)


def test_the_loss_is_that_of_the_actors_alone(tiny):
    trained, rows = trainer(tiny), np.array([5, 0, 3])
    batch = batch_of(tiny, rows)
    padded = trained.loss(batch.clips, *trained.actors.of(batch, np.random.default_rng(0)), keep_all(trained, rows))
    own = [torch.nonzero(tiny.scene_of_box == row).flatten() for row in rows]
    assert {len(boxes) for boxes in own} != {4}
    scenes = torch.cat([torch.full_like(boxes, i) for i, boxes in enumerate(own)])
    logits = trained.model(tiny.inputs("rgb", torch.from_numpy(rows)), tiny.boxes[torch.cat(own)], scenes)
    errors = F.binary_cross_entropy(logits.sigmoid(), tiny.labels[torch.cat(own)], reduction="none")
    plain = errors.sum() / len(scenes)
    assert padded.item() == pytest.approx(plain.item(), rel=1e-5)
    for a, b in zip(gradients(trained.model, padded), gradients(trained.model, plain), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_boxes_that_fill_up_are_actors_and_have_no_part_in_the_loss(tiny):
    trained, rows = trainer(tiny), np.arange(8)
    batch = batch_of(tiny, rows)
    boxes, labels, counts = trained.actors.of(batch, np.random.default_rng(0))
    for scene in range(8):
        true = {tuple(box) for box in tiny.boxes[tiny.scene_of_box == scene].tolist()}
        assert {tuple(box) for box in boxes[scene].tolist()} == true
        assert counts[scene].sum() == len(true)
    keep = keep_all(trained, rows)
    before = trained.loss(batch.clips, boxes, labels, counts, keep)
    expected = gradients(trained.model, before)
    keep[counts.flatten() == 0] = 7.0
    labels = torch.where(counts[..., None] == 0, 1 - labels, labels)
    loss = trained.loss(batch.clips, boxes, labels, counts, keep)
    assert torch.equal(loss, before)
    assert all(map(torch.equal, gradients(trained.model, loss), expected))


def test_of_many_actors_each_step_draws_some_with_their_labels(tiny):
    actors, batch = Actors(tiny, 2), batch_of(tiny, np.arange(8))
    drawn = set()
    for seed in range(20):
        boxes, labels, counts = actors.of(batch, np.random.default_rng(seed))
        assert boxes.shape == (8, 2, 4)
        assert counts.eq(1).all()
        for scene, own_boxes, own_labels in zip(range(8), boxes, labels, strict=True):
            pairs = zip(own_boxes.tolist(), own_labels.argmax(1).tolist(), strict=True)
            drawn |= {(scene, *box, label) for box, label in pairs}
            assert not torch.equal(*own_boxes)
    rows = zip(tiny.scene_of_box.tolist(), tiny.boxes.tolist(), tiny.labels.argmax(1).tolist(), strict=True)
    assert drawn == {(scene, *box, label) for scene, box, label in rows}


def test_boxes_of_mirrored_clips_are_mirrored(tiny):
    batch = batch_of(tiny, np.array([2, 3]))
    plain, *_ = Actors(tiny, 4).of(batch, np.random.default_rng(0))
    mirrored, *_ = Actors(tiny, 4).of(batch._replace(mirrored=torch.tensor([True, False])), np.random.default_rng(0))
    assert torch.equal(mirrored[1], plain[1])
    x1, y1, x2, y2 = plain[0].unbind(1)
    assert torch.equal(mirrored[0], torch.stack([1 - x2, y1, 1 - x1, y2], 1))


def test_a_step_changes_every_part_by_gradient_momentum_and_decay(tiny):
    trained, rows = trainer(tiny), np.arange(4)
    trained.model.dropout.p = 0.0
    before = [p.detach().clone() for p in trained.sgd.params]
    batch = batch_of(tiny, rows)
    loss = trained.loss(batch.clips, *trained.actors.of(batch, np.random.default_rng(0)), keep_all(trained, rows))
    expected = gradients(trained.model, loss)
    (reported,) = trained.take_steps([Step(0, rows, 0.1)])
    assert reported.item() == loss.item()
    for p, old, gradient in zip(trained.sgd.params, before, expected, strict=True):
        assert torch.allclose(p, old - 0.1 * (gradient + 1e-4 * old), atol=1e-6)
        assert not torch.equal(p, old)


class Unreadable:
    """The scenes of a set, of which some cannot be read."""

    def __init__(self, scenes, readable):
        self.scenes, self.readable = scenes, readable

    def __getattr__(self, name):
        return getattr(self.scenes, name)

    def __len__(self):
        return len(self.scenes)

    def clips(self, stream, batches, draws=()):
        yield from self.scenes.clips(stream, [rows[np.isin(rows, self.readable)] for rows in batches])


def test_key_frames_that_cannot_be_read_are_replaced_in_training_and_left_out_in_detection(tiny):
    rows, losses = np.array([0, 1, 2, 3]), []
    for scenes, own in ((Unreadable(tiny, [1, 2]), rows), (tiny, np.array([1, 2, 1, 2])), (tiny, rows)):
        trained = trainer(scenes)
        trained.model.train().dropout.p = 0.0
        losses += [loss.item() for loss in trained.take_steps([Step(0, own, 0.1)])]
    assert losses[0] == losses[1] != losses[2]
    (nothing,) = trainer(Unreadable(tiny, [])).take_steps([Step(0, rows, 0.1)])
    assert nothing == 0
    detections = detect(new_detector(), Unreadable(tiny, [1, 2]), "rgb", tiny.table)
    assert set(detections["video"]) == {"scene 1", "scene 2"}


class Killed(Exception):
    pass


def test_a_killed_training_resumes_to_the_same_weights(tiny, tmp_path):
    options = {"epochs": 3, "batch_size": 3, "learning_rate": 0.05, "seed": 5}
    whole, killed = new_detector(), new_detector()
    losses = train_detector(whole, tiny, "rgb", **options)
    steps = 0

    class Dies(Unreadable):
        def clips(self, stream, batches, draws=()):
            nonlocal steps
            for batch in self.scenes.clips(stream, batches):
                steps += 1
                if steps == 4:
                    raise Killed
                yield batch

    with Lease(tmp_path / "run.state") as lease:
        saving = Saving(States(lease, {"seed": 5}, lambda line: None), 0.0)
        with pytest.raises(Killed):
            train_detector(killed, Dies(tiny, None), "rgb", saving=saving, **options)
        lines, resumed = [], new_detector()
        nn.init.normal_(resumed.classifier.weight)
        again = train_detector(resumed, tiny, "rgb", saving=saving, report=lines.append, **options)
    assert lines[0] == "resuming after step 3 of 6"
    assert again == losses
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_detector_learns_the_actions_of_a_few_scenes():
    scenes = scene_set(configs.data(size=32, frames=4, **EASY), "train/0", 8)
    model, truth = new_detector("flow"), scenes.ground_truth()
    losses = train_detector(model, scenes, "flow", epochs=70, batch_size=8, learning_rate=0.05)
    assert len(losses) == 70
    assert losses[-1] < 0.4 * losses[0]
    detections = detect(model, scenes, "flow", scenes.table)
    chance = [
        frame_map(truth, detections.assign(score=np.random.default_rng(i).random(len(detections)))).mean
        for i in range(20)
    ]
    assert frame_map(truth, detections).mean > 0.7 > 2 * np.mean(chance)


def test_results_depend_on_the_seed_alone(tiny):
    options = {"epochs": 2, "batch_size": 3, "learning_rate": 0.05}
    models = [new_detector() for _ in range(3)]
    first, same, other = (
        train_detector(model, tiny, "rgb", seed=seed, **options) for model, seed in zip(models, (0, 0, 1), strict=True)
    )
    states = [m.state_dict() for m in models]
    assert first == same != other
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(m.training for m in models[0].modules())


def test_a_detector_that_diverges_is_no_result(tiny):
    with pytest.raises(
        FloatingPointError, match=r"the detector's loss was (nan|inf) in epoch \d: give a learning rate b"
    ):
        train_detector(new_detector(), tiny, "rgb", epochs=4, batch_size=4, learning_rate=1e20)


class Oracle(nn.Module):
    """Knows the true actions of the boxes of scenes, and no other boxes."""

    num_actions = len(CLASSES)

    def __init__(self, scenes):
        super().__init__()
        keys = zip(scenes.rgb[scenes.scene_of_box, 0, 0, 0, 0].tolist(), scenes.boxes.tolist(), strict=True)
        self.actions = {(pixel, *box): row for (pixel, box), row in zip(keys, scenes.labels, strict=True)}

    def forward(self, clips, boxes, scene_of_box):
        pixels = (clips[scene_of_box, 0, 0, 0, 0] * 255).round().int().tolist()
        return torch.stack([200 * self.actions[p, *box] - 100 for p, box in zip(pixels, boxes.tolist(), strict=True)])


def test_the_truth_has_a_frame_map_of_one_in_whatever_order():
    scenes = scene_set(configs.data(size=16, frames=2, **EASY), "iid", KEY_FRAMES_PER_PASS + 3)
    boxes = scenes.table.sample(frac=1, random_state=0)
    detections = detect(Oracle(scenes), scenes, "rgb", boxes)
    assert list(detections) == ["video", "timestamp", *CORNERS, "action", "score"]
    assert len(detections) == 16 * len(boxes)
    result = frame_map(scenes.ground_truth(), detections)
    assert result.mean == 1
    assert result.key_frames == len(scenes)
    chosen = detections[detections["score"] > 0.5]
    assert np.allclose(chosen[CORNERS], boxes[CORNERS])
    assert chosen["action"].tolist() == (boxes["label"] + 1).tolist()
    wrong = detections.assign(action=detections["action"] % 16 + 1)
    assert frame_map(scenes.ground_truth(), wrong).mean < 0.5


def test_scores_are_multiplied_by_those_of_the_boxes(tiny):
    boxes = tiny.table.assign(score=np.linspace(0, 1, len(tiny.table)))
    plain, weighted = (detect(Oracle(tiny), tiny, "rgb", table) for table in (tiny.table, boxes))
    assert np.allclose(weighted["score"], plain["score"] * np.repeat(boxes["score"].to_numpy(), 16))


def test_the_highest_scores_of_a_key_frame_can_be_kept_alone(tiny):
    boxes = tiny.table.assign(score=np.linspace(0.5, 1, len(tiny.table)))
    model = new_detector()
    nn.init.normal_(model.classifier.bias)
    everything, most = (detect(model, tiny, "rgb", boxes, most=n) for n in (None, 5))
    expected = everything.sort_values("score", ascending=False).groupby("video").head(5).sort_index()
    assert most.equals(expected.reset_index(drop=True))
    assert most.groupby("video").size().eq(5).all()


def test_no_boxes_are_no_detections(tiny):
    assert detect(new_detector(), tiny, "rgb", tiny.table[:0]).empty


def test_boxes_of_other_scenes_are_refused(tiny):
    with pytest.raises(ValueError, match="boxes must lie in scenes 0 to 7, not in scene 8"):
        detect(new_detector(), tiny, "rgb", tiny.table.assign(scene=tiny.table["scene"] + 1))


def test_two_streams_are_fused_by_their_mean_score(tiny):
    rgb = detect(new_detector(), tiny, "rgb", tiny.table)
    flow = rgb.assign(score=np.linspace(0, 1, len(rgb)))
    fused = fuse_detections([rgb, flow])
    assert np.allclose(fused["score"], (rgb["score"] + flow["score"]) / 2)
    assert fused.drop(columns="score").equals(rgb.drop(columns="score"))
    with pytest.raises(ValueError, match="table 2 of detections must have the boxes and actions of the first"):
        fuse_detections([rgb, flow[::-1].reset_index(drop=True)])
    with pytest.raises(ValueError, match="at least one table"):
        fuse_detections([])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures steps on a GPU")
def test_captured_steps_learn_what_eager_steps_learn():
    losses = {}
    for device in ("cpu", "cuda"):
        scenes = scene_set(configs.data(size=32, frames=8, **EASY), "train/0", 32, device=device)
        model = new_detector("flow").to(device)
        losses[device] = train_detector(model, scenes, "flow", epochs=10, batch_size=8, learning_rate=0.03)
        assert np.isfinite(detect(model, scenes, "flow", scenes.table)["score"]).all()
    assert np.allclose(losses["cuda"], losses["cpu"], rtol=0.1)
