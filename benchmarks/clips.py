"""Speed of rendering and of TV-L1, for benchmarks/bench.py: on this device against one core.

Sprites are rendered at 16 x 64 x 64; TV-L1 runs on 256 x 256 pixels against OpenCV.
"""

import torch
from timing import CUDA, DEVICE, interleaved

from d3d.data import sprites
from d3d.flow.estimate import tvl1
from d3d.flow.fields import endpoint_error
from d3d.study.parameters import ClipConfig


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
    pairs, size, opencv_pairs = (216 if CUDA else 4), 256, 2
    work = {"device": DEVICE, "pairs": pairs, "size": size, "opencv_pairs": opencv_pairs, "runs": 2}
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
    seconds = interleaved({"here": on_device, "opencv": opencv}, runs=work["runs"], warm_up=1)
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
