"""The networks that are probed: trained ones from their checkpoints, and a random one for comparison."""

from pathlib import Path

from d3d.data.clips import Clips
from d3d.data.sprite_classes import CLASSES
from d3d.s3dg.checkpoints import load_checkpoint
from d3d.s3dg.network import S3DG, s3dg
from d3d.study import plan
from d3d.study.arms import get_arm
from d3d.train.evaluate import calibrate

SPRITE_CLASSES = tuple(c.name for c in CLASSES)


def load_arm_network(
    results: str | Path,
    arm: str,
    seed: int,
    *,
    width: float,
    calibration_clips: Clips,
    classes: tuple[str, ...] = SPRITE_CLASSES,
) -> tuple[S3DG, str] | None:
    """Loads the network of an arm, on the device of `calibration_clips`.

    An arm of the experiment `probe` has no checkpoint of its own: it gets the weights of the arm that it starts from
    (`tuned`), or random ones (`random`).

    Args:
        results: folder with the checkpoints.
        width: channel multiplier of a random network.
        calibration_clips: clips from which the batch norm statistics of a random network are computed.
        classes: of the data set.

    Returns:
        The network and its stream, or None, with a printed line, if the checkpoint does not exist.
    """
    device = calibration_clips.labels.device
    entry = get_arm(arm)
    is_probe_arm = entry.experiment == "probe"
    if is_probe_arm and not entry.start:
        model = s3dg(len(classes), width=width, seed=seed).to(device)
        return calibrate(model, calibration_clips, "rgb"), "rgb"
    path = plan.weights_path(results, entry.start if is_probe_arm else arm, seed)
    if not Path(path).is_file():
        print(f"{arm}: no weights at {path}, skipped")
        return None
    model, info = load_checkpoint(path, classes=classes, device=device)
    return model, info.stream
