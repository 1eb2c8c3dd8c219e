"""Speed as ratios, in one process on one machine: `make bench`, or `python benchmarks/bench.py NAME …` for some.

What is compared runs in turn, and medians count; networks see identical clips, and what one core does is part of
what the device does in a batch. Prints tables and writes records to results/local/bench. On a GPU networks run at
64 x 224 x 224 under bfloat16 autocast and in float32 with TF32, on a CPU in float32 at 16 x 224 x 224; sprites at
16 x 64 x 64; TV-L1 on 256 x 256 pixels against OpenCV on one core.
"""

import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import training as bench_training
import videos as bench_videos
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchvision.models.video import s3d

from d3d.data import sprites
from d3d.flow.estimate import tvl1
from d3d.flow.fields import endpoint_error
from d3d.s3dg.network import fold, s3dg
from d3d.study import records
from d3d.study.parameters import ClipConfig
from d3d.study.records import Record

CLASSES = 400
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


# What holds the time of a step, by the names of its kernels; the first that fits counts.
PARTS = {
    "taps of the stem": r"_stem_taps",
    "pooling": r"pool",
    "gates": r"_scale|_clip_sums",
    "norm and ReLU": r"_norm_relu|_relu_sums|_moments",
    "convolutions": r"xmma|cudnn|cutlass|nvjet|gemm|splitK",
    "sums of gradients": r"CUDAFunctor_add",
}


def main() -> None:
    benches = {
        "sprites": bench_sprites,
        "tvl1": bench_tvl1,
        "decode": bench_videos.bench_decode,
        "flow_set": bench_videos.bench_flow_set,
        "s3dg": bench_network,
        "s3dg_tf32": bench_tf32,
        "training": partial(bench_training.bench_training, interleaved),
        "sharing": bench_training.bench_sharing,
        "start": bench_training.bench_start,
    }
    if unknown := [name for name in sys.argv[1:] if name not in benches]:
        sys.exit(f"no bench {unknown[0]!r}: there are {', '.join(benches)}")
    torch.backends.cudnn.benchmark = True
    for name in sys.argv[1:] or benches:
        made = records.provenance(
            source="benchmarks/bench.py", notebook="", device=torch.cuda.get_device_name() if CUDA else "cpu"
        )
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        work, metrics = benches[name]()
        if CUDA:
            metrics["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        print(f"\n{name}: {', '.join(f'{k} {v}' for k, v in work.items())}")
        for metric, value in metrics.items():
            print(f"  {metric:<58}{value:>14,.3f}")
        made["seconds"] = records.seconds_since(made["started"])
        print("->", records.write("results/local", Record("bench", name, 0, work, metrics, False, made)))


def bench_sprites() -> tuple[dict, dict[str, float]]:
    """Rendering on this device against one core."""
    batch = 1024 if CUDA else 64
    work = {"device": DEVICE, "batch": batch, "frames": 16, "size": 64, "runs": 5}
    config = ClipConfig(frames=16, size=64, camera=0.5)
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
    clip = sprites.render(ClipConfig(frames=2, size=size, camera=0.5), "iid", range(pairs))
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
    from d3d.flow import kernels

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
    """Ours against torchvision's s3d; on a GPU also where the time of a clip goes."""
    plan = {"inference": (32, 64), "training": (32,)} if CUDA else {"inference": (1,), "training": (1,)}
    work, metrics = against_torchvision("bf16" if CUDA else "float32", plan, runs=5)
    metrics["gflop_per_clip"] = 2e-9 * multiply_adds(work["frames"], work["size"])
    if CUDA:
        metrics["matrix_product_tflops"] = matrix_rate()
        rate = max(v for k, v in metrics.items() if re.fullmatch("inference/.*/s3dg_folded/clips_per_second", k))
        share = metrics["gflop_per_clip"] * rate / metrics["matrix_product_tflops"] / 1e3
        metrics["inference/share_of_matrix_rate"] = share
        for kind in plan:
            metrics |= {f"{kind}/ms_per_clip/{part}": ms for part, ms in parts(kind, work["frames"], batch=32).items()}
    return work, metrics


def bench_tf32() -> tuple[dict, dict[str, float]]:
    """The same in float32, with TF32 on a GPU."""
    plan = {"inference": (32,), "training": (16,)} if CUDA else {"inference": (1,)}
    return against_torchvision("tf32" if CUDA else "float32", plan, runs=3)


def against_torchvision(
    precision: str, plan: Mapping[str, tuple[int, ...]], *, runs: int
) -> tuple[dict, dict[str, float]]:
    """Clips a second and working memory by batch size, and the ratio of the best to torchvision's best."""
    work = {"device": DEVICE, "frames": 64 if CUDA else 16, "size": 224, "runs": runs}
    metrics: dict[str, float] = {}
    for kind, batches in plan.items():
        best: dict[str, float] = {}
        for batch in batches:
            for name, (seconds, working) in compare(kind, precision, batch, work["frames"], runs).items():
                best[name] = max(batch / seconds, best.get(name, 0.0))
                where = f"{kind}/{precision}/batch{batch}/{name}"
                metrics |= {f"{where}/clips_per_second": batch / seconds}
                metrics |= {f"{where}/working_gb": working} if CUDA else {}
        ours = "s3dg_folded" if kind == "inference" else "s3dg"
        metrics[f"{kind}/{precision}/ratio"] = best[ours] / best["torchvision_s3d"]
    return work, metrics


@contextmanager
def precision_of(name: str):
    """Computes as named: bf16 under autocast, or float32 with or without TF32."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    with torch.autocast(DEVICE, torch.bfloat16, enabled=name == "bf16"):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def contestants(kind: str) -> dict[str, nn.Module]:
    ours, peer = s3dg(CLASSES).to(DEVICE), s3d(num_classes=CLASSES).to(DEVICE)
    if kind == "training":
        return {"s3dg": ours.train(), "torchvision_s3d": peer.train()}
    return {"s3dg_folded": fold(ours), "s3dg": ours.eval(), "torchvision_s3d": peer.eval()}


def inference(network: nn.Module, clips: Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        network(clips)

    return run


def training(network: nn.Module, clips: Tensor) -> Callable[[], None]:
    labels = torch.arange(len(clips), device=DEVICE)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        loss = F.cross_entropy(network(clips).float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return run


STEPS = {"inference": inference, "training": training}


def compare(kind: str, precision: str, batch: int, frames: int, runs: int) -> dict[str, tuple[float, float]]:
    """Median seconds a step, and GB that it needs beyond weights and clips, of each network."""
    clips = torch.rand(batch, 3, frames, 224, 224, device=DEVICE)
    with precision_of(precision):
        steps = {name: STEPS[kind](network, clips) for name, network in contestants(kind).items()}
        seconds = interleaved(steps, runs=runs)
        found = {}
        for name, step in steps.items():
            if CUDA:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated() if CUDA else 0
            step()
            found[name] = seconds[name], (torch.cuda.max_memory_allocated() - held) / 1e9 if CUDA else 0.0
    return found


def multiply_adds(frames: int, size: int) -> int:
    """Multiplications of the original network's convolutions for one clip."""
    total = []
    with torch.device("meta"):
        network = s3dg(CLASSES).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(lambda m, _, y: total.append(y.numel() * math.prod(m.weight.shape[1:])))
        network(torch.empty(1, 3, frames, size, size))
    return sum(total)


def matrix_rate() -> float:
    """TFLOP/s of one large bf16 matrix product on random data."""
    a, b = torch.randn(2, 8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    return 2 * 8192**3 / interleaved({"product": lambda: a @ b}, runs=20)["product"] / 1e12


def parts(kind: str, frames: int, *, batch: int) -> dict[str, float]:
    """Milliseconds a clip that the GPU spends on each part of our step, by the names of the kernels."""
    clips = torch.rand(batch, 3, frames, 224, 224, device=DEVICE)
    network = next(iter(contestants(kind).values()))
    with precision_of("bf16"):
        step = STEPS[kind](network, clips)
        step()
        step()
        with profile(activities=[ProfilerActivity.CUDA]) as traced:
            step()
            torch.cuda.synchronize()
    found = dict.fromkeys((*PARTS, "other"), 0.0)
    for event in traced.events():
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, event.name)), "other")
        found[part] += event.device_time_total / 1e3 / batch
    return found


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
