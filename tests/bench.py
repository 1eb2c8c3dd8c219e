"""Speed as ratios, in one process on one machine: `make bench`.

What is compared runs in turn, and medians count; networks see identical clips, and what one core does is part of
what the device does in a batch. Prints tables and writes records to
results/local/bench. On a GPU networks run under bfloat16 autocast at 64 x 224 x 224, on a CPU in float32 at
16 x 224 x 224; sprites at 16 x 64 x 64; TV-L1 on 256 x 256 pixels against OpenCV on one core.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.video import s3d

from d3d import records, sprites
from d3d.flow import endpoint_error, tvl1
from d3d.records import Record
from d3d.s3dg import s3dg

CLASSES = 400
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def main() -> None:
    for name, bench in {"sprites": bench_sprites, "tvl1": bench_tvl1, "s3dg": bench_network}.items():
        made = records.provenance(
            source="tests/bench.py", notebook="", device=torch.cuda.get_device_name() if CUDA else "cpu"
        )
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        work, metrics = bench()
        if CUDA:
            metrics["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        print(f"\n{name}: {', '.join(f'{k} {v}' for k, v in work.items())}")
        for metric, value in metrics.items():
            print(f"  {metric:<48}{value:>14,.3f}")
        made["seconds"] = records.seconds_since(made["started"])
        print("->", records.write("results/local", Record("bench", name, 0, work, metrics, False, made)))


def bench_sprites() -> tuple[dict, dict[str, float]]:
    """Rendering on this device against one core."""
    batch = 1024 if CUDA else 64
    work = {"device": DEVICE, "batch": batch, "frames": 16, "size": 64, "runs": 5}
    config = sprites.SpriteConfig(frames=16, size=64)
    threads = torch.get_num_threads()

    def here() -> None:
        sprites.render(config, "iid", range(batch), device=DEVICE)

    def core() -> None:
        torch.set_num_threads(1)
        sprites.render(config, "iid", range(16))
        torch.set_num_threads(threads)

    seconds = interleaved({"here": here, "one_core": core}, runs=work["runs"])
    rates = {"here": batch / seconds["here"], "one_core": 16 / seconds["one_core"]}
    return work, {f"{name}/clips_per_second": rate for name, rate in rates.items()} | {
        "ratio": rates["here"] / rates["one_core"]
    }


def bench_tvl1() -> tuple[dict, dict[str, float]]:
    """TV-L1 on this device against OpenCV on one core, the same parameters, on frames of the sprites."""
    pairs, size, few = (216 if CUDA else 4), 256, 4
    work = {"device": DEVICE, "pairs": pairs, "size": size, "opencv_pairs": few, "runs": 3}
    clip = sprites.render(sprites.SpriteConfig(frames=2, size=size), "iid", range(pairs))
    a, b = (clip.rgb[:, :, t] for t in (0, 1))
    there = a.to(DEVICE), b.to(DEVICE)

    def here() -> None:
        tvl1(*there)

    def opencv() -> None:
        tvl1(a[:few], b[:few], workers=1)

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    seconds = interleaved({"here": here, "opencv": opencv}, runs=work["runs"])
    rates = {"here": pairs / seconds["here"], "opencv_one_core": few / seconds["opencv"]}
    metrics = {f"{name}/pairs_per_second": rate for name, rate in rates.items()}
    metrics["ratio"] = rates["here"] / rates["opencv_one_core"]
    if CUDA:
        metrics["tvl1_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    difference = endpoint_error(tvl1(a[:few].to(DEVICE), b[:few].to(DEVICE)).cpu(), tvl1(a[:few], b[:few]))
    metrics["difference_px"] = difference.mean().item()
    return work, metrics | (kernel_traffic() if CUDA else {})


def kernel_traffic() -> dict[str, float]:
    """The iteration's kernel on its own: how much memory it moves, and what fusing ten steps a launch saves.

    A launch must read nine planes of float32 and write six. A kernel of one step a launch could not take less than
    that at the speed of a copy.
    """
    from d3d import tvl1_kernels as kernels

    buffer = torch.empty(2**28, device=DEVICE)
    target = torch.empty_like(buffer)
    found = {}
    for size, images in ((256, 64), (64, 1024)):
        state, fixed = (
            torch.randn(6, images, size, size, device=DEVICE),
            torch.randn(3, images, size, size, device=DEVICE),
        )
        new, change = torch.empty_like(state), torch.full((images,), torch.inf, device=DEVICE)
        after = torch.zeros_like(change)

        def launch(state=state, fixed=fixed, new=new, change=change, after=after) -> None:
            kernels.iterate(
                fixed, state, new, change, after, steps=kernels.HALO, limit=0.0, l_t=0.045, theta=0.3, taut=5 / 6
            )

        seconds = interleaved({"launch": launch, "copy": lambda: target.copy_(buffer)}, runs=20)
        copied = 2 * 4 * buffer.numel() / seconds["copy"]
        moved = 15 * 4 * images * size**2
        step = seconds["launch"] / kernels.HALO
        found |= {
            f"iterate_{size}/ps_per_pixel_step": 1e12 * step / (images * size**2),
            f"iterate_{size}/share_of_copy_bandwidth": moved / seconds["launch"] / copied,
            f"iterate_{size}/times_one_step_a_launch_at_copy_speed": moved / copied / step,
        }
    return found | {"copy_tb_per_second": copied / 1e12}


def bench_network() -> tuple[dict, dict[str, float]]:
    """Ours against torchvision's s3d, inference and training."""
    batch, frames, size, runs = (16, 64, 224, 15) if CUDA else (1, 16, 224, 5)
    work = {"device": DEVICE, "batch": batch, "frames": frames, "size": size, "runs": runs}
    torch.manual_seed(0)
    clips = torch.rand(batch, 3, frames, size, size, device=DEVICE)
    labels = torch.randint(CLASSES, (batch,), device=DEVICE)
    networks = {"s3dg": s3dg(CLASSES), "torchvision_s3d": s3d(num_classes=CLASSES)}
    networks = {name: network.to(DEVICE) for name, network in networks.items()}

    def inference(network: nn.Module) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
                network.eval()(clips)

        return run

    def step(network: nn.Module) -> Callable[[], None]:
        optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-4)

        def run() -> None:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
                loss = F.cross_entropy(network.train()(clips).float(), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

        return run

    metrics: dict[str, float] = {}
    for kind, make in {"inference": inference, "training": step}.items():
        seconds = interleaved({name: make(network) for name, network in networks.items()}, runs=runs)
        rates = {name: batch / value for name, value in seconds.items()}
        metrics |= {f"{kind}/{name}/clips_per_second": rate for name, rate in rates.items()}
        metrics[f"{kind}/ratio"] = rates["s3dg"] / rates["torchvision_s3d"]
    return work, metrics


def interleaved(contestants: Mapping[str, Callable[[], None]], *, runs: int) -> dict[str, float]:
    """Median seconds of each, the runs taken in turn so that a drift of the machine meets all alike.

    Two runs before them do not count.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(runs + 2):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            if CUDA:
                torch.cuda.synchronize()
            if i >= 2:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


if __name__ == "__main__":
    main()
