"""Speed as ratios, in one process on one machine: `make bench`.

Ours against torchvision's s3d on identical clips, runs interleaved, medians. Prints a table and writes a record to
results/local/bench. On a GPU both run under bfloat16 autocast at 64 x 224 x 224, on a CPU in float32 at 16 x 224 x 224.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.video import s3d

from d3d import records
from d3d.records import Record
from d3d.s3dg import s3dg

CLASSES = 400


@dataclass(frozen=True)
class Workload:
    """What is timed: clips (B, 3, T, H, W) on a device, so many counted runs of each after two that are not."""

    device: str
    batch: int
    frames: int
    size: int
    runs: int


def main() -> None:
    cuda = torch.cuda.is_available()
    work = Workload("cuda", 16, 64, 224, 15) if cuda else Workload("cpu", 1, 16, 224, 5)
    made = records.provenance(
        source="tests/bench.py", notebook="", device=torch.cuda.get_device_name() if cuda else "cpu"
    )
    torch.manual_seed(0)
    clips = torch.rand(work.batch, 3, work.frames, work.size, work.size, device=work.device)
    labels = torch.randint(CLASSES, (work.batch,), device=work.device)
    networks = {"s3dg": s3dg(CLASSES), "torchvision_s3d": s3d(num_classes=CLASSES)}
    networks = {name: network.to(work.device) for name, network in networks.items()}

    def inference(network: nn.Module) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            with torch.autocast(work.device, torch.bfloat16, enabled=cuda):
                network.eval()(clips)

        return run

    def step(network: nn.Module) -> Callable[[], None]:
        optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-4)

        def run() -> None:
            with torch.autocast(work.device, torch.bfloat16, enabled=cuda):
                loss = F.cross_entropy(network.train()(clips).float(), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

        return run

    metrics: dict[str, float] = {}
    print(f"{'':<12}{'s3dg':>16}{'torchvision s3d':>18}{'ratio':>8}   clips/s, {work}")
    for kind, make in {"inference": inference, "training": step}.items():
        seconds = interleaved({name: make(network) for name, network in networks.items()}, work)
        rates = {name: work.batch / value for name, value in seconds.items()}
        ratio = rates["s3dg"] / rates["torchvision_s3d"]
        print(f"{kind:<12}{rates['s3dg']:>16.2f}{rates['torchvision_s3d']:>18.2f}{ratio:>8.2f}")
        metrics |= {f"{kind}/{name}/clips_per_second": rate for name, rate in rates.items()} | {f"{kind}/ratio": ratio}
    made["seconds"] = records.seconds_since(made["started"])
    record = Record("bench", "s3dg", 0, vars(work), metrics, False, made)
    print("->", records.write("results/local", record))


def interleaved(runs: dict[str, Callable[[], None]], work: Workload) -> dict[str, float]:
    """Median seconds of each, the runs taken in turn so that a drift of the machine meets all alike."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(work.runs + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if work.device == "cuda":
                torch.cuda.synchronize()
            if i >= 2:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


if __name__ == "__main__":
    main()
