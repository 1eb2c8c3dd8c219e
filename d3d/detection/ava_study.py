"""The experiment `detect` on AVA v2.1: fine-tunes a detector from a trained RGB network, and scores it on val."""

from pathlib import Path

from joblib import cpu_count

from d3d.detection.ava_frames import AvaSplit, ava_split
from d3d.detection.boxes import write_boxes
from d3d.detection.loop import Saving
from d3d.detection.network import ActionDetector
from d3d.detection.scoring import CAPACITY, frame_map
from d3d.detection.training import detect, train_detector
from d3d.files import sha256
from d3d.progress import print_line
from d3d.s3dg.checkpoints import load_checkpoint
from d3d.study.run import Run
from d3d.study.schema import changed
from d3d.train.lease import Lease
from d3d.train.states import CODE, States

# Films of val in AVA v2.1; a copy with fewer is no test on AVA.
VAL_VIDEOS = 64
# Actors of a key frame that a training step sees.
ACTORS = 8


def run(active_run: Run) -> None:
    """Writes one record, and the detections beside it in AVA's format.

    Its metric is `ava/frame_map`; with the boxes of the ground truth, which is easier, `ava/boxes/frame_map`. Key
    frames of films that are missing or damaged count as key frames without detections.

    Raises:
        FileNotFoundError: the weights, the films, one of AVA's files or the file of boxes is missing.
        ValueError: one of them is malformed.
    """
    config, own = active_run.config, active_run.config.detection
    arm, seed, device = config.run.arm or "d3d", config.run.seed, active_run.device
    model, info = load_checkpoint(own.weights, device=device)
    if info.stream != "rgb":
        raise ValueError(f"weights {own.weights} are of a {info.stream} stream; a detector on AVA needs an RGB network")
    path = Path(config.run.results) / "detect" / f"{arm}-seed{seed}"
    workers = config.data.files.workers or cpu_count()
    if workers > cpu_count():
        raise ValueError(f"workers is {workers}, this machine has {cpu_count()} cores: use at most as many, or 0")
    data = changed(config.data, workers=workers)
    with active_run.phase("data"):
        train = ava_split(data, "train", device=device, report=print_line)
        val = ava_split(data, "val", boxes=own.boxes, device=device, report=print_line)
    settings = {name: value for name, value in active_run.params.items() if name not in UNIMPORTANT}
    settings |= {CODE: active_run.provenance["source"], "weights": sha256(own.weights)[:16]}
    with Lease(f"{path}.state", print_line) as lease:
        states = States(lease, settings, print_line)
        detector = ActionDetector(model, len(train.names), seed=seed)
        with active_run.phase("training"):
            losses = train_detector(
                detector, train.key_frames, "rgb", epochs=own.detector_epochs, batch_size=own.scenes_per_step,
                learning_rate=own.detector_rate, seed=seed, actors=ACTORS, report=print_line,
                saving=Saving(states, config.run.save_every),
            )  # fmt: skip
        with active_run.phase("test"):
            detections = detect(detector, val.key_frames, "rgb", val.people, most=CAPACITY)
            write_boxes(f"{path}.csv", detections)
            result = frame_map(val.ground_truth, f"{path}.csv", classes=val.label_map, excluded=val.excluded)
        name = "ava" if own.boxes else "ava/boxes"
        metrics = {f"{name}/frame_map": result.mean, "loss": losses[-1]}
        metrics |= {f"{name}/frame_map/{k}": value for k, value in result.per_class.items() if value == value}
        is_whole = val.videos >= VAL_VIDEOS
        if not is_whole:
            print_line(
                f"val has {val.videos} of AVA's {VAL_VIDEOS} films: the record is a stand-in and decides no claim"
            )
        active_run.write(arm, metrics, files=_files(train, val), stand_in=not is_whole)
        states.delete_folder()


# Parameters that may differ when a run resumes: they change where files lie or how fast it runs.
UNIMPORTANT = ("results", "workers", "save_every", "weights")


def _files(train: AvaSplit, val: AvaSplit) -> dict[str, object]:
    """The `files` of the record; its numbers are of key frames, its missing names of films."""
    refused = train.key_frames.refused | val.key_frames.refused
    missing = [*train.missing, *val.missing]
    listed, on_disk = train.listed + val.listed, train.on_disk + val.on_disk
    decoded = sum(int((~split.key_frames.table["path"].isin(refused)).sum()) for split in (train, val))
    counts = {"listed": listed, "found": on_disk, "missing": listed - on_disk, "decoded": decoded}
    return counts | {"refused": refused, "missing_first": missing[:20]}
