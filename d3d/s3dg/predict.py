"""Classifies one video file.

    d3d predict VIDEO --weights FILE [--labels FILE]     # prints the five most probable classes

Preprocessing follows the example of the paper's first author (github.com/princeton-vl/d3dhelper): the first 64 frames,
short side 224, centre crop 224, values in [0, 1]. Only the resizing differs: here it is antialiased.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from d3d.messages import one_line
from d3d.s3dg.checkpoints import load_checkpoint
from d3d.s3dg.folding import fold
from d3d.video.decode import read_frames, to_clip

FRAMES, CROP = 64, 224
MAX_LABELS = 8 * 2**20  # bytes of a file of labels
LONGEST_LABEL = 200  # characters that are printed
CONVERT_HINT = "`d3d convert CKPT OUT.safetensors` makes one from a TensorFlow checkpoint"


def predict(
    path: str | Path,
    weights: str | Path,
    *,
    labels: str | Path | None = None,
    top: int = 5,
    report: Callable[[str], None] = print,
) -> list[tuple[str, float]]:
    """Classifies a video file in float32, on the GPU if there is one.

    Args:
        path: Video file; if it has fewer than 64 frames it is looped.
        weights: Checkpoint of an RGB network.
        labels: Text file with one label per line, in the order of the classes; None: the checkpoint's class names.
        top: Number of classes to return.
        report: Receives a sentence if the video is looped.

    Returns:
        The `top` most probable classes as (label, probability), most probable first.

    Raises:
        VideoError: The video cannot be read.
        FileNotFoundError: There is no file at `weights` or `labels`.
        ValueError: `weights` is not a checkpoint of an RGB network or gives no finite probabilities, or `labels` is no
            text of one label per class.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, info = load_checkpoint(weights, device=device)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no weights at {one_line(weights)}: give a checkpoint of this package; {CONVERT_HINT}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{error}; {CONVERT_HINT}") from None
    if info.in_channels != 3:
        raise ValueError(f"{weights} is a {info.stream} stream: give the weights of an RGB stream")
    names = info.classes if labels is None else read_labels(Path(labels), len(info.classes))
    frames = read_frames(path, frames=FRAMES)
    if len(frames) < FRAMES:
        report(f"{one_line(path)} has {len(frames)} of {FRAMES} frames and is looped")
    clip = to_clip(frames, frames=FRAMES, short_side=CROP, crop=CROP)
    # By default cuDNN rounds the operands of float32 convolutions to TF32.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        probabilities = fold(model)(clip[None].to(device))[0].softmax(0)
    if not probabilities.isfinite().all():
        raise ValueError(
            f"the weights {weights} are too large: the probabilities of {path} are not finite; give the weights of a "
            "trained network"
        )
    probabilities = probabilities.tolist()
    return sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])[:top]


def read_labels(path: Path, num_classes: int) -> list[str]:
    """Reads the names of a network's classes, in the order of its logits.

    Args:
        path: Text file with one name per line.
        num_classes: Number of classes of the network.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text, or has another number of lines, or an empty one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no labels at {path}: give a text file with one label per line")
    advice = "give one label per line, in the order of the classes"
    if path.stat().st_size > MAX_LABELS:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, too many for labels: {advice}")
    try:
        labels = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text: {advice}") from None
    if len(labels) != num_classes:
        raise ValueError(f"{path} has {len(labels)} labels, the network {num_classes} classes: {advice}")
    if "" in labels:
        raise ValueError(f"line {labels.index('') + 1} of {path} is empty: {advice}")
    return labels


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d predict", description="Prints a video's five most probable classes.")
    parser.add_argument("video", type=Path, help=f"video file; its first {FRAMES} frames are classified")
    parser.add_argument("--weights", type=Path, required=True, help=f"checkpoint of an RGB network; {CONVERT_HINT}")
    parser.add_argument(
        "--labels", type=Path,
        help="text file with one class name per line, in the order of the classes (default: the checkpoint's)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    try:
        predictions = predict(args.video, args.weights, labels=args.labels, report=partial(print, file=sys.stderr))
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))
    for label, probability in predictions:
        print(f"{probability:.4f}  {one_line(label, LONGEST_LABEL)}")
