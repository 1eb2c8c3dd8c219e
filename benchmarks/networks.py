"""Which network is fastest? Ours against torchvision's s3d, for benchmarks/bench.py: rates, latency and memory.

Every contestant of a case gets the same clips and takes turns with the others in one process. On a GPU clips are 64 x
224 x 224 under bfloat16 autocast or in float32 with TF32, on a CPU 16 x 112 x 112 in float32. Compiling takes minutes,
so that only the cases that a claim is about have compiled contestants; all of them are compiled beforehand, each in a
process of its own, into Inductor's cache. The plan `batches` has the other batch sizes.
"""

import gc
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch._dynamo
import torch._inductor.config
from scaling import make_step
from timing import CUDA, DEVICE, interleaved, peak_gb, reserved_gb
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torchvision.models.video import s3d

import d3d.s3dg
from d3d.s3dg import fold, s3dg
from d3d.train.team import Team

CLASSES = 400
CLIP = (64, 224) if CUDA else (16, 112)  # frames and size
STUDY_CLIP = (16, 64) if CUDA else (8, 32)

# Parts of a step by patterns of kernel names; the first that matches counts.
KERNEL_PATTERNS = {
    "taps of the stem": r"_stem_taps",
    "pooling": r"pool",
    "gates": r"_scale|_branch_sums|_gate|_weight_gradients",
    "norm and ReLU": r"_norm_relu|_relu_sums|_relu_backward|_moments|_add_splits",
    "convolutions": r"xmma|cudnn|cutlass|nvjet|gemm|splitK",
    "sums of gradients": r"CUDAFunctor_add",
}


class Contestant(NamedTuple):
    """How a network runs.

    Attributes:
        ours: whether it is S3D-G of this package, or else torchvision's s3d.
        captured: whether this package captures its step in a CUDA graph.
        mode: mode of torch.compile; empty: not compiled.
    """

    ours: bool
    captured: bool = False
    mode: str = ""


# In inference ours is folded.
CONTESTANTS = {
    "s3dg": Contestant(True),
    "s3dg_captured": Contestant(True, captured=True),
    "s3dg_compiled_graphs": Contestant(True, mode="reduce-overhead"),
    "d3d_train": Contestant(True, captured=True),  # the whole step of d3d.train, from clips in memory on
    "s3dg_folded": Contestant(True),
    "s3dg_folded_captured": Contestant(True, captured=True),
    "torchvision_s3d": Contestant(False),
    "torchvision_s3d_compiled": Contestant(False, mode="default"),
    "torchvision_s3d_compiled_graphs": Contestant(False, mode="reduce-overhead"),
}
INFERENCE = ("s3dg_folded", "s3dg_folded_captured", "torchvision_s3d")
TRAINING = ("s3dg", "s3dg_captured", "torchvision_s3d")


class Case(NamedTuple):
    """One comparison: a step, its precision (bf16, tf32 or float32) and its clips."""

    step: str
    precision: str
    batch: int
    contestants: tuple[str, ...]
    clip: tuple[int, int] = CLIP


def plans() -> dict[str, list[Case]]:
    """Returns the cases of each bench of this module."""
    compiled, graphs = ("torchvision_s3d_compiled",), ("torchvision_s3d_compiled_graphs",)
    if not CUDA:
        inference, training = (INFERENCE[0], INFERENCE[2]), (TRAINING[0], TRAINING[2])
        return {
            "s3dg": [
                Case("inference", "float32", 1, (*inference, *compiled)),
                Case("training", "float32", 4, training),
            ],
            "batches": [Case("inference", "float32", 4, inference)],
            "study_step": [Case("training", "float32", 16, (*training, "d3d_train"), STUDY_CLIP)],
        }
    study = ("s3dg", "s3dg_captured", "d3d_train", "s3dg_compiled_graphs", *graphs)
    return {
        "s3dg": [
            Case("inference", "bf16", 1, INFERENCE + graphs),
            Case("inference", "bf16", 32, INFERENCE + compiled),
            Case("training", "bf16", 16, TRAINING + compiled),
        ],
        "batches": [
            *(Case("inference", "bf16", n, INFERENCE) for n in (8, 16, 64)),
            *(Case("training", "bf16", n, TRAINING) for n in (8, 32, 64)),
        ],
        "s3dg_tf32": [
            Case("inference", "tf32", 32, INFERENCE + compiled),
            Case("training", "tf32", 16, TRAINING),
        ],
        "study_step": [Case("training", "bf16", 128, study, STUDY_CLIP)],
    }


def bench_networks(name: str) -> tuple[dict, dict[str, float]]:
    """Runs the cases of one plan; on a GPU also says how much of the device each step uses, and for what."""
    cases, runs = plans()[name], 5 if CUDA else 2
    frames, size = cases[0].clip
    work = {"device": DEVICE, "frames": frames, "size": size, "runs": runs}
    metrics: dict[str, float] = {}
    for case in cases:
        began = time.perf_counter()
        metrics |= compare(case, runs)
        print(f"  {prefix_of(case)}: {time.perf_counter() - began:.0f} s", flush=True)
    by_case, by_step = ratios(cases, metrics)
    metrics |= by_case
    metrics["gflop_per_clip"] = 2e-9 * multiply_adds(frames, size)
    if name != "batches":  # none of its cases speaks for a step
        metrics |= by_step | (use_of_device(cases, metrics) if CUDA else {})
    return work, metrics


def prefix_of(case: Case) -> str:
    return f"{case.step}/{case.precision}/batch{case.batch}"


def compare(case: Case, runs: int) -> dict[str, float]:
    """Times the contestants of a case in turn; one that fails is left out, with the reason printed.

    Returns:
        Clips per second and, on a GPU, working memory.
    """
    frames, size = case.clip
    clips = torch.rand(case.batch, 3, frames, size, size, device=DEVICE)
    steps: dict[str, Callable[[], None]] = {}
    metrics, crowded_out = {}, []
    with precision_of(case.precision):
        for name in case.contestants:
            try:
                steps[name], entries = prepare(name, case, clips)
                metrics |= entries
            except torch.OutOfMemoryError:
                crowded_out.append(name)
            except Exception as error:
                report_absence(name, case, error)
            release()
        try:
            seconds = interleaved(steps, runs=runs, warm_up=1)
        except torch.OutOfMemoryError:
            seconds, crowded_out = {}, list(case.contestants)
        steps.clear()
        for name in crowded_out:  # which runs alone instead
            release()
            try:
                step, entries = prepare(name, case, clips)
                metrics |= entries
                seconds |= interleaved({name: step}, runs=runs, warm_up=1)
            except Exception as error:
                report_absence(name, case, error)
            step = None
    torch._dynamo.reset()
    release()
    rates = {f"{prefix_of(case)}/{name}/clips_per_second": case.batch / value for name, value in seconds.items()}
    return metrics | rates


def report_absence(name: str, case: Case, error: Exception) -> None:
    """Prints why a contestant has no row, in one line."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(f"  no row of {name} for {prefix_of(case)}: {reason}", flush=True)


def release() -> None:
    """Frees networks that nothing refers to."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def prepare(name: str, case: Case, clips: Tensor) -> tuple[Callable[[], None], dict[str, float]]:
    """Builds a contestant and warms it up; returns its step and its working memory, beyond weights and clips."""
    reserved = reserved_gb()
    step = build_step(name, case, clips)
    for _ in range(3):  # CUDA graphs are recorded in the second step, or in the third
        step()
    # torch.compile's own graphs share memory with those of other contestants.
    if not CUDA or CONTESTANTS[name].mode == "reduce-overhead":
        return step, {}
    # A graph keeps the memory of its step.
    return step, {f"{prefix_of(case)}/{name}/working_gb": reserved_gb() - reserved + peak_gb(step)}


def build_step(name: str, case: Case, clips: Tensor) -> Callable[[], None]:
    """Returns a function that runs one step of a contestant."""
    if name == "d3d_train":
        train_step, rows = make_step(case.batch, *case.clip, Team(device=DEVICE)), np.arange(case.batch)
        return lambda: train_step(0, rows, view_seeds=(), learning_rate=1e-4)
    contestant = CONTESTANTS[name]
    network = s3dg(CLASSES).to(DEVICE) if contestant.ours else torchvision_network(case.clip).to(DEVICE)
    if case.step == "inference":
        network.eval()
        if contestant.ours:
            network = fold(network, capture=True) if contestant.captured else fold(network)
    if contestant.mode:
        if not contestant.ours:
            network = network.to(memory_format=torch.channels_last_3d)
            clips = clips.contiguous(memory_format=torch.channels_last_3d)
        network = torch.compile(network, mode=contestant.mode, dynamic=False)
    make = inference_step if case.step == "inference" else training_step
    return make(network, clips, autocast=case.precision == "bf16", captured=contestant.captured)


def torchvision_network(clip: tuple[int, int]) -> nn.Module:
    """Returns torchvision's s3d, with a smaller window of its last pool where the clips are smaller than the window."""
    network, (frames, size) = s3d(num_classes=CLASSES), clip
    window = [min(k, n) for k, n in zip((2, 7, 7), (frames // 8, size // 32, size // 32), strict=True)]
    network.avgpool = nn.AvgPool3d([max(1, k) for k in window], stride=1)
    return network


def inference_step(network: nn.Module, clips: Tensor, *, autocast: bool, captured: bool) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            network(clips)

    return run


def training_step(network: nn.Module, clips: Tensor, *, autocast: bool, captured: bool) -> Callable[[], None]:
    labels = torch.arange(len(clips), device=DEVICE)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-4)

    def loss_of(clips: Tensor, labels: Tensor) -> Tensor:
        # A CUDA graph must cast the weights again at every replay, so the casts are not cached.
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast, cache_enabled=False):
            logits = network(clips)
        return F.cross_entropy(logits.float(), labels)

    def gradients(clips: Tensor, labels: Tensor) -> None:
        torch.compiler.cudagraph_mark_step_begin()
        optimiser.zero_grad(set_to_none=True)
        loss_of(clips, labels).backward()

    if captured:
        gradients = d3d.s3dg.capture_gradients(network, loss_of)

    def run() -> None:
        gradients(clips, labels)
        optimiser.step()

    return run


@contextmanager
def precision_of(name: str):
    """Allows TF32 for tf32, and not for bf16 and float32; the steps use autocast themselves."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def ratios(cases: Iterable[Case], metrics: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns our best rate over torchvision's best, by case, and by step and precision that of the strongest peers.

    Those are the compiled ones: the case with most clips that has them speaks for its step and precision.
    """
    by_case, by_step = {}, {}
    for case in sorted(cases, key=lambda case: case.batch):
        rates = {name: metrics.get(f"{prefix_of(case)}/{name}/clips_per_second") for name in case.contestants}
        ours = [rate for name, rate in rates.items() if rate and CONTESTANTS[name].ours]
        peers = {name: rate for name, rate in rates.items() if rate and not CONTESTANTS[name].ours}
        if ours and peers:
            ratio = by_case[f"{prefix_of(case)}/ratio"] = max(ours) / max(peers.values())
            is_compiled = any(CONTESTANTS[name].mode for name in peers)
            step = f"{case.step}/{case.precision}/ratio"
            by_step[step] = max(by_step.get(step, (False, 0, 0.0)), (is_compiled, case.batch, ratio))
    return by_case, {name: ratio for name, (_, _, ratio) in by_step.items()}


def use_of_device(cases: Iterable[Case], metrics: dict[str, float]) -> dict[str, float]:
    """Returns how much of the device's matrix rate our fastest steps reach, and what the GPU spends its time on."""
    use: dict[str, float] = {}
    largest = {(case.step, case.precision): case for case in cases}
    for case in largest.values():
        with precision_of(case.precision):
            use["matrix_product_tflops"] = matrix_rate(case.precision)
            times = kernel_times(case)
        ours = [name for name in case.contestants if CONTESTANTS[name].ours]
        rates = [metrics.get(f"{prefix_of(case)}/{name}/clips_per_second", 0.0) for name in ours]
        # The backward pass convolves twice, for the gradients of inputs and weights.
        gflop = metrics["gflop_per_clip"] * (1 if case.step == "inference" else 3)
        use[f"{case.step}/batch"] = case.batch
        use[f"{case.step}/share_of_matrix_rate"] = gflop * max(rates) / use["matrix_product_tflops"] / 1e3
        use[f"{case.step}/share_of_time_in_kernels"] = sum(times.values()) * max(rates) / 1e3
        use |= {f"{case.step}/ms_per_clip/{part}": ms for part, ms in times.items()}
        release()
    return use


def multiply_adds(frames: int, size: int) -> int:
    """Returns the multiply-adds of the network's convolutions for one clip."""
    counts = []
    with torch.device("meta"):
        network = s3dg(CLASSES).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(lambda m, _, y: counts.append(y.numel() * math.prod(m.weight.shape[1:])))
        network(torch.empty(1, 3, frames, size, size))
    return sum(counts)


def matrix_rate(precision: str) -> float:
    """Returns the TFLOP/s of one large matrix product on random data."""
    a, b = torch.randn(2, 8192, 8192, device=DEVICE, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * 8192**3 / interleaved({"product": lambda: a @ b}, runs=20)["product"] / 1e12


def kernel_times(case: Case) -> dict[str, float]:
    """Returns the GPU's milliseconds per clip in each part of our eager step, by KERNEL_PATTERNS."""
    frames, size = case.clip
    clips = torch.rand(case.batch, 3, frames, size, size, device=DEVICE)
    step = build_step(case.contestants[0], case, clips)
    step()
    step()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    times = dict.fromkeys((*KERNEL_PATTERNS, "other"), 0.0)
    for event in trace.events():
        part = next((part for part, pattern in KERNEL_PATTERNS.items() if re.search(pattern, event.name)), "other")
        times[part] += event.device_time_total / 1e3 / case.batch
    return times


def compile_beforehand(names: Iterable[str]) -> None:
    """Compiles every compiled contestant of some plans, all at once, so that the comparisons read Inductor's cache."""
    jobs = [
        (str(name), str(i), contestant)
        for name in set(names) & set(plans())
        for i, case in enumerate(plans()[name])
        for contestant in case.contestants
        if CONTESTANTS[contestant].mode
    ]
    processes = [subprocess.Popen([sys.executable, __file__, *job]) for job in jobs]
    for process in processes:
        process.wait()


def main() -> None:
    """Compiles one contestant: the arguments are a plan, the index of a case and the contestant."""
    plan, index, name = sys.argv[1:]
    case = plans()[plan][int(index)]
    # The times by which Triton's kernels are chosen are not kept, since the GPU is busy with the other processes.
    torch._inductor.config.autotune_local_cache = False
    frames, size = case.clip
    with precision_of(case.precision):
        began = time.perf_counter()
        build_step(name, case, torch.rand(case.batch, 3, frames, size, size, device=DEVICE))()
    print(f"compiled {name} for {prefix_of(case)} in {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
