"""An action detector: S3D-G on the whole clip, RoIAlign of each actor's box, and K independent actions per box.

detector = ActionDetector(model, num_actions=80)          # model: an S3D-G, trained on clips
logits = detector(clips, boxes, scene_of_box)             # (B, C, T, H, W), (N, 4), (N,) -> (N, 80)
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from d3d.s3dg.network import POOLS, S3DG
from d3d.s3dg.ops import same_pad

SHARED, HEAD = "Mixed_4f", ("Mixed_5b", "Mixed_5c")
CROP = 7  # cells per side of a crop
# Probability of every action before training, as in RetinaNet (Lin et al. 2017): most actions of a box are absent.
PRIOR = 0.01
# Kernel and stride along height and width of the stages up to Mixed_4f that have a stride.
STRIDED = ((7, 2), *((kernel[2], stride[2]) for name, (kernel, stride) in POOLS.items() if name != "MaxPool_5a_2x2"))


class ActionDetector(nn.Module):
    """Scores the actions of actors whose boxes are given, as the baseline of AVA does (Gu et al. 2018, section 5).

    S3D-G up to Mixed_4f sees the whole clip. RoIAlign cuts the same box out of each of its temporal slices. Mixed_5b
    and Mixed_5c see these crops, (N, C, T', 7, 7), whose average over time and space is classified. The max pool
    between Mixed_4f and Mixed_5b is left out: a crop is already as small as what Mixed_5b sees of a clip of 224 pixels.

    Args:
        network: gives the stages, which are copied.
        num_actions: K, number of actions.
        seed: seed of the classifier's weights; the global random state is not changed.

    Attributes:
        trunk: the stages up to Mixed_4f, by name.
        head: Mixed_5b and Mixed_5c.
        classifier: the only part that is new.
    """

    def __init__(self, network: S3DG, num_actions: int, *, seed: int = 0) -> None:
        super().__init__()
        if num_actions < 1:
            raise ValueError(f"num_actions must be at least 1, not {num_actions}")
        self.in_channels, self.num_actions = network.in_channels, num_actions
        names = list(network.features)
        shared = names[: names.index(SHARED) + 1]
        self.trunk = nn.ModuleDict({name: copy.deepcopy(network.features[name]) for name in shared})
        self.head = nn.ModuleDict({name: copy.deepcopy(network.features[name]) for name in HEAD})
        self.dropout = nn.Dropout(network.dropout.p)
        weight = network.Conv2d_0c_1x1.weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifier = nn.Linear(weight.shape[1], num_actions)
            nn.init.trunc_normal_(self.classifier.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.constant_(self.classifier.bias, -math.log((1 - PRIOR) / PRIOR))
        self.classifier.to(weight.device)

    def forward(self, clips: Tensor, boxes: Tensor, scene_of_box: Tensor) -> Tensor:
        """Computes one logit per box and action.

        Args:
            clips: (B, C, T, H, W), floating point.
            boxes: (N, 4), floating point: x1, y1, x2, y2 as fractions of the frame.
            scene_of_box: int64 (N,), which of the clips each box belongs to.

        Returns:
            Logits, (N, K).

        Raises:
            ValueError: as `pooled`.
        """
        return self.classify(self.dropout(self.pooled(clips, boxes, scene_of_box)))

    def classify(self, pooled: Tensor) -> Tensor:
        """Computes logits (N, K) from features (N, C'), without autocast: scores in bfloat16 would often be equal."""
        with torch.autocast(pooled.device.type, enabled=False):
            return self.classifier(pooled.to(self.classifier.weight.dtype))

    def pooled(self, clips: Tensor, boxes: Tensor, scene_of_box: Tensor) -> Tensor:
        """Computes the features of each box, (N, C'), the input of dropout and classifier; arguments as of `forward`.

        Raises:
            ValueError: The clips, the boxes or the scenes of the boxes have the wrong type, shape or values; values are
                not checked while a CUDA graph is captured.
        """
        self._check(clips, boxes, scene_of_box)
        x = clips
        for stage in self.trunk.values():
            x = stage(x)
        x = crop_boxes(x, _to_cells(boxes, clips.shape[3:]), scene_of_box)
        for stage in self.head.values():
            x = stage(x)
        return x.mean((2, 3, 4))

    def _check(self, clips: Tensor, boxes: Tensor, scene_of_box: Tensor) -> None:
        if clips.ndim != 5 or clips.shape[1] != self.in_channels or 0 in clips.shape or not clips.is_floating_point():
            raise ValueError(
                f"clips must be floating point (B, {self.in_channels}, T, H, W), not {clips.dtype} {tuple(clips.shape)}"
            )
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
            raise ValueError(f"boxes must be floating point (N, 4), not {boxes.dtype} {tuple(boxes.shape)}")
        if scene_of_box.shape != boxes.shape[:1] or scene_of_box.dtype != torch.int64:
            raise ValueError(
                f"scene_of_box must be int64 ({len(boxes)},), one scene per box, not {scene_of_box.dtype} "
                f"{tuple(scene_of_box.shape)}"
            )
        if not (boxes.is_cuda and torch.cuda.is_current_stream_capturing()):
            _check_values(boxes, scene_of_box, len(clips))


def _check_values(boxes: Tensor, scene_of_box: Tensor, num_clips: int) -> None:
    x1, y1, x2, y2 = boxes.unbind(1)
    right = (x1 >= 0) & (x1 < x2) & (x2 <= 1) & (y1 >= 0) & (y1 < y2) & (y2 <= 1)
    if not right.all():
        box = ", ".join(f"{value:g}" for value in boxes[~right][0].tolist())
        raise ValueError(f"boxes must be fractions with 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1, not ({box})")
    wrong = scene_of_box[(scene_of_box < 0) | (scene_of_box >= num_clips)]
    if len(wrong):
        raise ValueError(f"scene_of_box must be from 0 to {num_clips - 1}, the clips given, not {wrong[0].item()}")


def crop_boxes(x: Tensor, cells: Tensor, scene_of_box: Tensor) -> Tensor:
    """Cuts each box out of all temporal slices of its scene, by RoIAlign (He et al. 2017) in at least float32.

    Args:
        x: activations (B, C, T, H, W).
        cells: (N, 4), x1, y1, x2, y2 in cells of x; cell i reaches from i to i + 1.
        scene_of_box: (N,).

    Returns:
        (N, C, T, 7, 7), in the type of x.
    """
    # All slices of a scene are cut at the same place, so they may stand as channels of one image.
    images = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(1, 2)
    rois = torch.cat([scene_of_box[:, None].to(images), cells.to(images)], 1)
    crops = roi_align(images, rois, CROP, aligned=True)
    return crops.unflatten(1, x.shape[1:3]).to(x.dtype)


def _to_cells(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Converts boxes (N, 4), fractions of frames of size (H, W), to cells of Mixed_4f."""
    (height, width), (x1, y1, x2, y2) = size, boxes.unbind(1)
    return torch.stack([_along(x1, width), _along(y1, height), _along(x2, width), _along(y2, height)], 1)


def _along(position: Tensor, side: int) -> Tensor:
    centre, stride = _first_centre(side)
    return (position * side - centre) / stride + 0.5


def _first_centre(side: int) -> tuple[float, int]:
    """Computes where Mixed_4f's first cell looks along an axis of `side` pixels, and its stride, in pixels.

    SAME padding shifts this centre from 8 to 15.5 pixels: without this, a box would be cut out half a cell too far down
    and to the right, which matters because actors are few cells large.
    """
    centre, total_stride = 0.5, 1
    for kernel, stride in STRIDED:
        centre += total_stride * ((kernel - 1) / 2 - same_pad(side, kernel, stride)[0])
        total_stride *= stride
        side = -(-side // stride)
    return centre, total_stride
