"""What a run takes of its machine, compared with what the machine has before the run takes it or writes anything.

check_run("train", config, device="cuda")
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from d3d.files import check_file, check_folder
from d3d.messages import shown
from d3d.study import plan
from d3d.study.parameters import RENDERED_DATASETS
from d3d.study.schema import flatten

# Bytes per pixel of a clip: uint8 RGB, float16 flow, and a mask; of a rendered frame in float32, with its exact flow.
RGB, FLOW, MASK, RENDERED = 3, 4, 1, 20
SCENE_CLIPS = 4  # a scene has the pixels of so many clips
# Test splits of sprites that have all of `test_clips`; the split `reversed` has fewer.
TEST_SPLITS = 5
# Parameters of S3D-G at width 1; they grow with the square of the width.
NETWORK_PARAMETERS = 9.1e6
# Training needs at least these bytes per pixel of a batch, the second times the width; measured: 140 and 600.
ACTIVATIONS, ACTIVATIONS_PER_WIDTH = 40, 160
# What a process takes at least: one that decodes, one that trains.
DECODER, TRAINER = 20e6, 250e6


class Need(NamedTuple):
    """Memory that a run cannot do without.

    Attributes:
        bytes: at least so many.
        what: what takes them, such as "the clips".
        parameters: the parameters that decide how many.
        on_host: whether it is memory of the machine even if the run uses a GPU.
    """

    bytes: float
    what: str
    parameters: tuple[str, ...]
    on_host: bool = False


def needs(experiment: str, config: Any, *, processes: int = 1, train_clips: int | None = None) -> list[Need]:
    """Returns what a run needs, each a lower bound.

    Args:
        experiment: name of the experiment.
        config: its configuration.
        processes: number of processes that train together.
        train_clips: number of training clips, known of video files once they are listed; None: that of the parameters.
    """
    p = flatten(config)
    if "frames" not in p:
        return []
    pixels = p["frames"] * p["size"] ** 2
    if experiment == "tvl1":
        return [Need(4 * RENDERED * p["pairs"] * pixels, "the rendered clips", ("pairs", "frames", "size"))]
    of_pixels: tuple[str, ...] = ("frames", "size")
    if experiment == "detect":
        return _needs_of_detection(p, pixels)
    listed: list[Need] = []
    if p["dataset"] in RENDERED_DATASETS:
        train_clips = p["train_clips"]
        num_clips, of_clips = _num_rendered(experiment, p)
        per_pixel = RGB + (MASK if p["dataset"] == "sprites" else 0) + (FLOW if p["stream"] == "flow" else 0)
        listed.append(Need(per_pixel * num_clips * pixels, "the clips", (*of_clips, *of_pixels)))
    else:
        views = p["view_clips"] * p["view_crops"]
        of_views = ("view_clips", "view_crops", *of_pixels)
        listed.append(Need(4 * RGB * views * pixels, "the views of a test video", of_views))
        listed.append(Need(DECODER * p["workers"], "the decoding processes", ("workers",), on_host=True))
    trains = experiment in ("train", "distill", "leak")
    copies = 3 if trains else 1  # weights; in training also gradients and momenta
    listed.append(Need(4 * copies * NETWORK_PARAMETERS * p["width"] ** 2, "the network", ("width",)))
    if trains and train_clips is not None:
        batch = min(p["batch_size"], train_clips) / (p["accumulate"] * processes)
        frames = 1 if experiment == "leak" else p["frames"]
        per_pixel = ACTIVATIONS + ACTIVATIONS_PER_WIDTH * p["width"]
        of_batch = ("batch_size", "accumulate", "width", *of_pixels)
        listed.append(Need(per_pixel * batch * frames * p["size"] ** 2, "the activations of a batch", of_batch))
        # The order of the clips of all epochs is drawn at the start.
        order = 8 * p["epochs"] * train_clips
        of_order = ("epochs", "train_clips") if p["dataset"] in RENDERED_DATASETS else ("epochs",)
        listed.append(Need(order, "the order of the training clips", of_order, on_host=True))
    return listed


def _needs_of_detection(p: dict[str, Any], pixels: int) -> list[Need]:
    """What the training of an action detector needs: of sprites all scenes, of video files the frames of a step."""
    network = Need(3 * 4 * NETWORK_PARAMETERS * p["width"] ** 2, "the network", ("width",))
    if p["dataset"] not in RENDERED_DATASETS:
        decoders = Need(DECODER * p["workers"], "the decoding processes", ("workers",), on_host=True)
        step = p["scenes_per_step"] * pixels * (RGB + 4 * RGB)
        return [decoders, Need(step, "the frames of a step", ("scenes_per_step", "frames", "size"))]
    scenes = SCENE_CLIPS * (p["train_scenes"] + p["test_scenes"]) * pixels * (RGB + FLOW)
    step = SCENE_CLIPS * p["scenes_per_step"] * pixels * (ACTIVATIONS + ACTIVATIONS_PER_WIDTH * p["width"])
    return [
        network,
        Need(scenes, "the scenes", ("train_scenes", "test_scenes", "frames", "size")),
        Need(step, "the activations of a step", ("scenes_per_step", "width", "frames", "size")),
    ]


def _num_rendered(experiment: str, p: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """How many clips an experiment renders and keeps, and the parameters that say so."""
    test = "leak_clips" if experiment == "leak" else "test_clips"
    splits = TEST_SPLITS if experiment in ("train", "distill", "attribution") and p["dataset"] == "sprites" else 1
    names = ("train_clips", test, *(("unlabelled_clips",) if p["unlabelled_clips"] else ()))
    return p["train_clips"] + p["unlabelled_clips"] + splits * p[test], names


def check_run(experiment: str, config: Any, *, device: str = "cpu", processes: int = 1) -> None:
    """Checks that a run has room for its files and in memory.

    Args:
        experiment: name of the experiment.
        config: its configuration.
        device: PyTorch's name of the device.
        processes: number of processes that train together.

    Raises:
        OSError: for a folder of the run in whose place a file is, or for a file in whose place a folder is.
        ValueError: from `check_memory`.
    """
    p = flatten(config)
    check_folder(Path(p["results"], experiment))
    if experiment in plan.TESTED:
        path = plan.run_path(experiment, p)
        check_folder(f"{path}.state")
        for ending in ("json", "npz", "safetensors", "jsonl"):
            check_file(f"{path}.{ending}")
    if p.get("flow_cache") and p.get("dataset") in RENDERED_DATASETS:
        check_folder(p["flow_cache"])
    check_memory(experiment, config, device=device, processes=processes)


def check_memory(
    experiment: str, config: Any, *, device: str = "cpu", processes: int = 1, train_clips: int | None = None
) -> None:
    """Checks that a run can fit into the free memory of its device and of the machine.

    Args:
        experiment: name of the experiment.
        config: its configuration.
        device: PyTorch's name of the device.
        processes: number of processes that train together.
        train_clips: as for `needs`.

    Raises:
        ValueError: otherwise, naming what takes most of it and the parameters to lower.
    """
    listed = needs(experiment, config, processes=processes, train_clips=train_clips)
    on_host = [need for need in listed if need.on_host]
    for place, part in ((device, listed), *((("cpu", on_host),) if device != "cpu" else ())):
        _check_fits([need for need in part if place == "cpu" or not need.on_host], place, flatten(config))


def _check_fits(listed: list[Need], device: str, params: dict[str, Any]) -> None:
    total = sum(need.bytes for need in listed)
    # Most runs are so small that the memory need not be asked for.
    if total < 1e8 or total <= (free := free_bytes(device)):
        return
    most = max(listed)
    *others, last = (f"{name} ({shown(params[name])})" for name in most.parameters)
    values = f"{', '.join(others)} or {last}" if others else last
    raise ValueError(
        f"this run takes at least {_gigabytes(total)} of memory, {_gigabytes(most.bytes)} of it for {most.what}, but "
        f"{device} has {_gigabytes(free)} free: make it smaller by {values}"
    )


def check_processes(processes: int) -> None:
    """Checks that processes which train together can fit into the free memory.

    Raises:
        ValueError: otherwise.
    """
    if processes > 1 and TRAINER * processes > (free := free_bytes("cpu")):
        raise ValueError(
            f"processes {processes} take at least {_gigabytes(TRAINER * processes)} of memory, but the machine has "
            f"{_gigabytes(free)} free: use one per GPU"
        )


def free_bytes(device: Any) -> int:
    """Returns the free memory of a device, in bytes; for a CPU that of the machine or of its container."""
    if str(device) != "cpu":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if not Path("/proc/meminfo").is_file():  # not Linux: half of the machine's memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
