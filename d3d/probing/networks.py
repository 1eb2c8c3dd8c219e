"""The trained networks that probes look into, and the untrained one that they are held against."""

from pathlib import Path

from d3d.data.clips import Clips
from d3d.data.sprite_classes import CLASSES
from d3d.s3dg.checkpoints import load_checkpoint
from d3d.s3dg.network import S3DG, s3dg
from d3d.study import plan
from d3d.study.arms import get_arm
from d3d.train.evaluate import calibrate


def arm_network(results: str | Path, arm: str, seed: int, *, width: float, fit: Clips) -> tuple[S3DG, str] | None:
    """The network of an arm to look into, on the device of the clips `fit`, and its stream; None where its weights are
    not below `results`.

    An arm that a probe makes has the weights of the arm that it starts from, or random ones of this width, its batch
    norms calibrated on `fit`.
    """
    classes, device = tuple(c.name for c in CLASSES), fit.labels.device
    entry = get_arm(arm)
    made_here = entry.experiment == "probe"
    if made_here and not entry.start:
        return calibrate(s3dg(len(classes), width=width, seed=seed).to(device), fit, "rgb"), "rgb"
    path = plan.weights_path(results, entry.start if made_here else arm, seed)
    if not Path(path).is_file():
        print(f"{arm}: no weights at {path}, left out")
        return None
    model, about = load_checkpoint(path, classes=classes, device=device)
    return model, about.stream
