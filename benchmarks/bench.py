"""Speed as ratios, in one process on one machine: `make bench`, or `python benchmarks/bench.py NAME …` for some.

The contestants of a comparison run alternately, and their median times are compared. Networks get identical clips; a
single core gets a part of the device's batch. Prints tables and writes records to results/local/bench. On a GPU
networks run at 64 x 224 x 224 under bfloat16 autocast and in float32 with TF32, on a CPU in float32 at 16 x 224 x 224;
sprites are rendered at 16 x 64 x 64; TV-L1 runs on 256 x 256 pixels against OpenCV on one core.
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
from end_to_end import bench_end_to_end
from memory import bench_memory
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

# Parts of a step by patterns of kernel names; the first that matches counts.
KERNEL_PATTERNS = {
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
        "end_to_end": bench_end_to_end,
        "memory": bench_memory,
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
        provenance = records.provenance(
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
        provenance["seconds"] = records.seconds_since(provenance["started"])
        print("->", records.write("results/local", Record("bench", name, 0, work, metrics, False, provenance)))


def bench_sprites() -> tuple[dict, dict[str, float]]:
    """Rendering on this device against one core."""
    batch = 1024 if CUDA else 64
    work = {"device": DEVICE, "batch": batch, "frames": 16, "size": 64, "runs": 5}
    config = ClipConfig(frames=16, size=64, camera=0.5)
    threads = torch.get_num_threads()

    def on_device() -> None:
        sprites.render(config, "iid", range(batch), device=DEVICE)

    def on_one_core() -> None:
        torch.set_num_threads(1)
        sprites.render(config, "iid", range(16))
        torch.set_num_threads(threads)

    seconds = interleaved({"here": on_device, "one_core": on_one_core}, runs=work["runs"])
    rates = {"here": batch / seconds["here"], "one_core": 16 / seconds["one_core"]}
    return work, {f"{name}/clips_per_second": rate for name, rate in rates.items()} | {
        "ratio": rates["here"] / rates["one_core"]
    }


def bench_tvl1() -> tuple[dict, dict[str, float]]:
    """TV-L1 on this device against OpenCV on one core, with the same parameters, on frames of sprites."""
    pairs, size, opencv_pairs = (216 if CUDA else 4), 256, 4
    work = {"device": DEVICE, "pairs": pairs, "size": size, "opencv_pairs": opencv_pairs, "runs": 3}
    clip = sprites.render(ClipConfig(frames=2, size=size, camera=0.5), "iid", range(pairs))
    a, b = (clip.rgb[:, :, t] for t in (0, 1))
    a_device, b_device = a.to(DEVICE), b.to(DEVICE)
    a_few, b_few = a[:opencv_pairs], b[:opencv_pairs]

    def on_device() -> None:
        tvl1(a_device, b_device)

    def opencv() -> None:
        tvl1(a_few, b_few, workers=1)

    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    seconds = interleaved({"here": on_device, "opencv": opencv}, runs=work["runs"])
    rates = {"here": pairs / seconds["here"], "opencv_one_core": opencv_pairs / seconds["opencv"]}
    metrics = {f"{name}/pairs_per_second": rate for name, rate in rates.items()}
    metrics["ratio"] = rates["here"] / rates["opencv_one_core"]
    if CUDA:
        metrics["tvl1_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    difference = endpoint_error(tvl1(a_few.to(DEVICE), b_few.to(DEVICE)).cpu(), tvl1(a_few, b_few))
    metrics["difference_px"] = difference.mean().item()
    return work, metrics | (kernel_traffic() if CUDA else {})


def kernel_traffic() -> dict[str, float]:
    """Memory traffic of TV-L1's iteration kernel, and what it gains by ten steps per launch.

    A launch must read nine planes of float32 and write six. A kernel with one step per launch would need at least the
    time to copy as much.
    """
    from d3d.flow import kernels

    buffer = torch.empty(2**28, device=DEVICE)
    target = torch.empty_like(buffer)
    metrics = {}
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
        copy_bandwidth = 2 * 4 * buffer.numel() / seconds["copy"]
        bytes_moved = 15 * 4 * images * size**2
        step = seconds["launch"] / kernels.HALO
        metrics |= {
            f"iterate_{size}/ps_per_pixel_step": 1e12 * step / (images * size**2),
            f"iterate_{size}/share_of_copy_bandwidth": bytes_moved / seconds["launch"] / copy_bandwidth,
            f"iterate_{size}/times_one_step_a_launch_at_copy_speed": bytes_moved / copy_bandwidth / step,
        }
    return metrics | {"copy_tb_per_second": copy_bandwidth / 1e12}


def bench_network() -> tuple[dict, dict[str, float]]:
    """Ours against torchvision's s3d; on a GPU also the time per clip of each part."""
    plan = {"inference": (32, 64), "training": (32,)} if CUDA else {"inference": (1,), "training": (1,)}
    work, metrics = against_torchvision("bf16" if CUDA else "float32", plan, runs=5)
    metrics["gflop_per_clip"] = 2e-9 * multiply_adds(work["frames"], work["size"])
    if CUDA:
        metrics["matrix_product_tflops"] = matrix_rate()
        rate = max(v for k, v in metrics.items() if re.fullmatch("inference/.*/s3dg_folded/clips_per_second", k))
        ratio = metrics["gflop_per_clip"] * rate / metrics["matrix_product_tflops"] / 1e3
        metrics["inference/share_of_matrix_rate"] = ratio
        for kind in plan:
            times = kernel_times(kind, work["frames"], batch=32)
            metrics |= {f"{kind}/ms_per_clip/{part}": ms for part, ms in times.items()}
    return work, metrics


def bench_tf32() -> tuple[dict, dict[str, float]]:
    """The same in float32, with TF32 on a GPU."""
    plan = {"inference": (32,), "training": (16,)} if CUDA else {"inference": (1,)}
    return against_torchvision("tf32" if CUDA else "float32", plan, runs=3)


def against_torchvision(
    precision: str, plan: Mapping[str, tuple[int, ...]], *, runs: int
) -> tuple[dict, dict[str, float]]:
    """Clips per second and working memory by batch size, and the ratio of our best rate to torchvision's."""
    work = {"device": DEVICE, "frames": 64 if CUDA else 16, "size": 224, "runs": runs}
    metrics: dict[str, float] = {}
    for kind, batches in plan.items():
        best: dict[str, float] = {}
        for batch in batches:
            for name, (seconds, working) in compare(kind, precision, batch, work["frames"], runs).items():
                best[name] = max(batch / seconds, best.get(name, 0.0))
                prefix = f"{kind}/{precision}/batch{batch}/{name}"
                metrics |= {f"{prefix}/clips_per_second": batch / seconds}
                metrics |= {f"{prefix}/working_gb": working} if CUDA else {}
        ours = "s3dg_folded" if kind == "inference" else "s3dg"
        metrics[f"{kind}/{precision}/ratio"] = best[ours] / best["torchvision_s3d"]
    return work, metrics


@contextmanager
def precision_of(name: str):
    """Sets the precision: bf16 (autocast), tf32 or float32."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    with torch.autocast(DEVICE, torch.bfloat16, enabled=name == "bf16"):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def contestants(kind: str) -> dict[str, nn.Module]:
    ours, torchvision = s3dg(CLASSES).to(DEVICE), s3d(num_classes=CLASSES).to(DEVICE)
    if kind == "training":
        return {"s3dg": ours.train(), "torchvision_s3d": torchvision.train()}
    return {"s3dg_folded": fold(ours), "s3dg": ours.eval(), "torchvision_s3d": torchvision.eval()}


def inference_step(network: nn.Module, clips: Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        network(clips)

    return run


def training_step(network: nn.Module, clips: Tensor) -> Callable[[], None]:
    labels = torch.arange(len(clips), device=DEVICE)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        loss = F.cross_entropy(network(clips).float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return run


STEPS = {"inference": inference_step, "training": training_step}


def compare(kind: str, precision: str, batch: int, frames: int, runs: int) -> dict[str, tuple[float, float]]:
    """Median seconds per step of each network, and the GB that it needs beyond weights and clips."""
    clips = torch.rand(batch, 3, frames, 224, 224, device=DEVICE)
    with precision_of(precision):
        steps = {name: STEPS[kind](network, clips) for name, network in contestants(kind).items()}
        seconds = interleaved(steps, runs=runs)
        results = {}
        for name, step in steps.items():
            if CUDA:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            allocated = torch.cuda.memory_allocated() if CUDA else 0
            step()
            results[name] = seconds[name], (torch.cuda.max_memory_allocated() - allocated) / 1e9 if CUDA else 0.0
    return results


def multiply_adds(frames: int, size: int) -> int:
    """The multiply-adds of the network's convolutions for one clip."""
    counts = []
    with torch.device("meta"):
        network = s3dg(CLASSES).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(lambda m, _, y: counts.append(y.numel() * math.prod(m.weight.shape[1:])))
        network(torch.empty(1, 3, frames, size, size))
    return sum(counts)


def matrix_rate() -> float:
    """The TFLOP/s of one large bf16 matrix product on random data."""
    a, b = torch.randn(2, 8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    return 2 * 8192**3 / interleaved({"product": lambda: a @ b}, runs=20)["product"] / 1e12


def kernel_times(kind: str, frames: int, *, batch: int) -> dict[str, float]:
    """The GPU's milliseconds per clip in each part of our step, by KERNEL_PATTERNS."""
    clips = torch.rand(batch, 3, frames, 224, 224, device=DEVICE)
    network = next(iter(contestants(kind).values()))
    with precision_of("bf16"):
        step = STEPS[kind](network, clips)
        step()
        step()
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
    times = dict.fromkeys((*KERNEL_PATTERNS, "other"), 0.0)
    for event in trace.events():
        part = next((part for part, pattern in KERNEL_PATTERNS.items() if re.search(pattern, event.name)), "other")
        times[part] += event.device_time_total / 1e3 / batch
    return times


def interleaved(contestants: Mapping[str, Callable[[], None]], *, runs: int) -> dict[str, float]:
    """The median seconds of each contestant, in alternating runs, so that drifts of the machine affect all alike.

    Two warm-up runs do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(runs + 2):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            if CUDA:
                torch.cuda.synchronize()
            if i >= 2:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


if __name__ == "__main__":
    main()
