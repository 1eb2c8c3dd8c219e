"""Boxes of actors, found in key frames by Faster R-CNN with a ResNet region proposal network, trained from scratch.

    detector = train_person_detector(train_scenes, epochs=10)
    people = person_boxes(detector, test_scenes)
    score_people(test_scenes, people)                                # {"ap": …, "recall": …}
    detect(action_detector, test_scenes, "rgb", people)

As AVA's boxes of people, they do not depend on the action detector, and all action detectors are given the same.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, box_iou

from d3d.detection.loop import Step, run_epochs
from d3d.detection.scene_sets import SceneSet, key_frame_columns
from d3d.detection.scoring import frame_map
from d3d.study.parameters import OptimiserConfig
from d3d.train.sgd import Sgd
from d3d.video.ava import CORNERS

# Key frames are enlarged to this side, in pixels, if they are smaller. An actor's side is at least a sixteenth of it.
SIDE = 128
# Actors are neither tiny nor as large as the frame: two stages of the backbone make the levels of the pyramid.
STAGES = [2, 3]
ANCHORS = (16, 32, 64)  # sides in pixels, one per level of the feature pyramid
# A key frame has few actors, and torchvision's numbers, 2000 proposals, 512 samples and 1024 features, are for
# photographs.
PROPOSALS, SAMPLES, FEATURES = 128, 32, 256
# Gradients are scaled down to this norm: without, noisy scenes made training diverge.
MAX_NORM = 2.0
MAX_BOXES, MIN_SCORE = 8, 0.05  # boxes kept per key frame
IOU = 0.5
KEY_FRAMES_PER_PASS = 32


def build_person_detector(*, seed: int = 0) -> FasterRCNN:
    """Builds Faster R-CNN (Ren et al. 2015) on a ResNet-18 with a feature pyramid (Lin et al. 2017).

    Group norm instead of batch norm, as detectors trained from scratch need it (He, Girshick and Dollár 2019).

    Args:
        seed: of the weights; the global random state is not changed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = partial(nn.GroupNorm, 32)
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=norm, trainable_layers=5, returned_layers=STAGES
        )
        pool = MultiScaleRoIAlign([str(i) for i in range(len(STAGES))], output_size=7, sampling_ratio=2)
        return FasterRCNN(
            backbone,
            box_roi_pool=pool,
            box_head=TwoMLPHead(backbone.out_channels * 7**2, FEATURES),
            box_predictor=FastRCNNPredictor(FEATURES, num_classes=2),
            rpn_anchor_generator=AnchorGenerator(tuple((n,) for n in ANCHORS), ((0.5, 1.0, 2.0),) * len(ANCHORS)),
            min_size=SIDE,
            max_size=SIDE,
            rpn_post_nms_top_n_train=PROPOSALS,
            rpn_post_nms_top_n_test=PROPOSALS,
            rpn_batch_size_per_image=SAMPLES,
            box_batch_size_per_image=SAMPLES,
            box_score_thresh=MIN_SCORE,
            box_detections_per_img=MAX_BOXES,
        )


def train_person_detector(
    scenes: SceneSet, *, epochs: int, batch_size: int = 16, learning_rate: float = 0.02, seed: int = 0
) -> FasterRCNN:
    """Trains a detector of actors, whatever they do, on the key frames of scenes.

    SGD with momentum 0.9, weight decay 0.0001, clipped gradients, linear warm-up over a tenth of the steps and cosine
    decay.

    Args:
        scenes: the training scenes.
        epochs: passes over the scenes; the last, incomplete batch of each is dropped.
        batch_size: key frames per step, at least 2; at most all scenes are used.
        learning_rate: after the warm-up.
        seed: of the weights, the order of the scenes and the sampled proposals; on a GPU sums may differ in their last
            digits.

    Returns:
        The detector, on the device of the scenes and in inference mode.

    Raises:
        FloatingPointError: the loss is not finite; the message names the epoch.
        ValueError: a number is out of range, naming it.
    """
    config = OptimiserConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    detector = build_person_detector(seed=seed).to(scenes.device).train()
    sgd = Sgd(detector, config, scenes.device)

    def take_steps(steps: list[Step]) -> Iterator[Tensor]:
        for step in steps:
            loss = _loss(detector, scenes, torch.from_numpy(step.rows).to(scenes.device))
            sgd.learning_rate.fill_(step.learning_rate)
            gradients = list(torch.autograd.grad(loss, sgd.params))
            norm = nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, (MAX_NORM / norm).clamp(max=1))
            sgd.update(gradients)
            yield loss.detach()

    with torch.random.fork_rng(devices=[scenes.device] if scenes.device.type == "cuda" else []):
        torch.manual_seed(seed)
        run_epochs(len(scenes), config, take_steps, sgd, seed=seed, name="person detector")
    return detector.eval()


def _loss(detector: FasterRCNN, scenes: SceneSet, rows: Tensor) -> Tensor:
    """The sum of Faster R-CNN's losses of proposals and boxes, on key frames `rows` (B,)."""
    frames = scenes.key_frames(rows)
    targets = []
    for row in rows:
        boxes = scenes.boxes[scenes.scene_of_box == row] * _frame_sides(frames)
        targets.append({"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64, device=boxes.device)})
    return torch.stack(list(detector(list(frames), targets).values())).sum()


def _frame_sides(frames: Tensor) -> Tensor:
    """Width, height, width and height of frames (B, 3, H, W) in pixels, (4,)."""
    height, width = frames.shape[2:]
    return torch.tensor([width, height, width, height], device=frames.device)


@torch.no_grad()
def person_boxes(detector: FasterRCNN, scenes: SceneSet) -> pd.DataFrame:
    """Finds actors in the key frames of scenes.

    Args:
        detector: in inference mode, on the device of the scenes.
        scenes: the scenes.

    Returns:
        Columns scene, x1, y1, x2, y2 as fractions of the frame, and score: at most 8 boxes per scene, with scores above
        0.05, by scene and then by descending score.
    """
    rows, corners, scores = [], [], []
    for start in range(0, len(scenes), KEY_FRAMES_PER_PASS):
        frames = scenes.key_frames(slice(start, start + KEY_FRAMES_PER_PASS))
        for scene, output in enumerate(detector(list(frames)), start):
            # A box without area has no actor in it and cannot be cut out.
            boxes = (output["boxes"] / _frame_sides(frames)).clamp(0, 1)
            has_area = (boxes[:, :2] < boxes[:, 2:]).all(1)
            corners.append(boxes[has_area].cpu().numpy())
            scores.append(output["scores"][has_area].cpu().numpy())
            rows.append(np.full(len(scores[-1]), scene))
    table = pd.DataFrame(np.concatenate(corners), columns=list(CORNERS))
    return table.assign(scene=np.concatenate(rows), score=np.concatenate(scores))[["scene", *CORNERS, "score"]]


def score_people(scenes: SceneSet, people: pd.DataFrame) -> dict[str, float]:
    """Scores boxes of actors at an IoU of 0.5.

    Args:
        scenes: the scenes, whose true boxes count.
        people: as `person_boxes` returns it.

    Returns:
        `ap`: average precision as `frame_map` computes it for one class.
        `recall`: fraction of the true boxes that a box of any score overlaps enough.
    """
    truth = scenes.ground_truth().assign(action=1)
    detections = pd.DataFrame(key_frame_columns(people) | {"action": 1, "score": people["score"].to_numpy()})
    covered = 0
    scene_of_box = people["scene"].to_numpy()
    for scene in range(len(scenes)):
        true_boxes = scenes.boxes[scenes.scene_of_box == scene].cpu()
        boxes = torch.tensor(people.loc[scene_of_box == scene, [*CORNERS]].to_numpy(), dtype=torch.float32)
        if len(boxes):
            covered += int((box_iou(true_boxes, boxes).amax(1) >= IOU).sum())
    return {"ap": frame_map(truth, detections, iou=IOU).mean, "recall": covered / len(scenes.boxes)}
