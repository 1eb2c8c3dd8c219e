"""The likeliest classes of one video file.

    d3d predict VIDEO --weights FILE [--labels FILE]     # prints five, the likeliest first

The network sees what it saw in the example of the paper's first author (github.com/princeton-vl/d3dhelper): the first
64 frames, short side 224, centre crop 224, values in [0, 1]. Resizing alone is this package's own, antialiased.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from d3d.s3dg.checkpoints import load_checkpoint
from d3d.s3dg.network import fold
from d3d.video.decode import read_frames, to_clip

FRAMES, SIZE = 64, 224
CONVERT = "`d3d convert CKPT OUT.safetensors` makes such a file of a TensorFlow checkpoint"


def predict(
    path: str | Path,
    weights: str | Path,
    *,
    labels: str | Path | None = None,
    top: int = 5,
    report: Callable[[str], None] = print,
) -> list[tuple[str, float]]:
    """The `top` likeliest classes of a video file with their probabilities in [0, 1], the likeliest first.

    `weights` is a checkpoint of an RGB network. `labels` is a text file of one label a line, in the order of its
    classes; without it they keep the names they have in the checkpoint. A file of fewer than 64 frames is looped, which
    `report` is told in a sentence. Computes in float32, on the GPU where there is one.
    Raises VideoError as `read_frames` does, FileNotFoundError for weights or labels that are not there, and ValueError
    for weights of another kind or another number of labels than of classes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, about = load_checkpoint(weights, device=device)
    except FileNotFoundError:
        raise FileNotFoundError(f"no weights at {weights}: give a checkpoint of this package; {CONVERT}") from None
    except ValueError as error:
        raise ValueError(f"{error}; {CONVERT}") from None
    if about.in_channels != 3:
        raise ValueError(f"{weights} is a {about.stream} stream, this reads RGB: give the weights of an RGB stream")
    names = about.classes if labels is None else _read_labels(Path(labels), len(about.classes))
    shown = read_frames(path, frames=FRAMES)
    if len(shown) < FRAMES:
        report(f"{path} has {len(shown)} of {FRAMES} frames and is looped")
    clip = to_clip(shown, frames=FRAMES, short_side=SIZE, crop=SIZE)
    # Unasked, cuDNN rounds what float32 convolutions read to TF32's ten bits.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        probabilities = fold(model)(clip[None].to(device))[0].softmax(0).tolist()
    return sorted(zip(names, probabilities, strict=True), key=lambda pair: -pair[1])[:top]


def _read_labels(path: Path, classes: int) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no labels at {path}: give a text file of one label a line")
    try:
        labels = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text: give one label a line, in the order of the classes") from None
    if len(labels) != classes:
        raise ValueError(
            f"{path} has {len(labels)} labels, the network {classes} classes: "
            "give one label a line, in the order of the classes"
        )
    return labels


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d predict", description="The five likeliest classes of a video.")
    parser.add_argument("video", type=Path, help="a video file; its first 64 frames are classified")
    parser.add_argument("--weights", type=Path, required=True, help=f"a checkpoint of an RGB network; {CONVERT}")
    parser.add_argument("--labels", type=Path, help="one label a line in the order of the classes, for other names")
    given = parser.parse_args(argv)
    try:
        found = predict(given.video, given.weights, labels=given.labels, report=partial(print, file=sys.stderr))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    for label, probability in found:
        print(f"{probability:.4f}  {label}")
