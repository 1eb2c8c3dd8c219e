"""Speed as ratios, in one process on one machine: `make bench`, or `python benchmarks/bench.py NAME …` for some.

`make bench` leaves out ON_REQUEST, so that it takes less than ten minutes on one GPU: the networks at more batch sizes,
with TF32 and at the study's scale, several runs on one GPU, what a run's start costs, and thousands of small videos as
loose files and as shards.

The contestants of a comparison run alternately, and their median times are compared. Writes a record per bench to
results/local/bench, prints its numbers, and at the end one table per question: which network is fastest, how it scales,
what a video costs, and how fast video files are read.
"""

import sys
import time
from functools import partial

import torch
from clips import bench_sprites, bench_tvl1
from end_to_end import bench_end_to_end
from memory import bench_memory
from networks import bench_networks, compile_beforehand
from scaling import bench_scaling
from shards import bench_shards
from timing import card, host
from training import bench_sharing, bench_start, bench_training
from videos import bench_decode, bench_flow_set

from d3d.report import cost_tables
from d3d.study import records
from d3d.study.records import Record

RESULTS = "results/local"
ON_REQUEST = ("batches", "s3dg_tf32", "study_step", "sharing", "start", "shards")


def main() -> None:
    benches = {
        "sprites": bench_sprites,
        "tvl1": bench_tvl1,
        "decode": bench_decode,
        "flow_set": bench_flow_set,
        "shards": bench_shards,
        "end_to_end": bench_end_to_end,
        "memory": bench_memory,
        **{name: partial(bench_networks, name) for name in ("s3dg", "batches", "s3dg_tf32", "study_step")},
        "training": bench_training,
        "sharing": bench_sharing,
        "start": bench_start,
        "scaling": bench_scaling,
    }
    if unknown := [name for name in sys.argv[1:] if name not in benches]:
        sys.exit(f"no bench {unknown[0]!r}: there are {', '.join(benches)}")
    names = sys.argv[1:] or [name for name in benches if name not in ON_REQUEST]
    torch.backends.cudnn.benchmark = True
    began = time.perf_counter()
    compile_beforehand(names)
    print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
    written = [record for name in names if (record := run(name, benches[name]))]
    for question, make_table in cost_tables.QUESTIONS.items():
        if len(table := make_table(written)):
            print(f"\n{question}\n\n{cost_tables.markdown(table)}")
    print(f"\n{len(written)} benches in {time.perf_counter() - began:.0f} s")


def run(name: str, bench) -> Record | None:
    """Runs one bench, prints its numbers and writes its record; None if this machine has nothing to compare."""
    provenance = records.provenance(source="benchmarks/bench.py", notebook="", device=card())
    work, metrics = bench()
    if not metrics:
        print(f"\n{name}: nothing to compare on this machine", flush=True)
        return None
    provenance |= {"host": host(), "seconds": records.seconds_since(provenance["started"])}
    print(f"\n{name}, {provenance['seconds']:.0f} s: {', '.join(f'{k} {v}' for k, v in work.items())}")
    for metric, value in metrics.items():
        print(f"  {metric:<58}{value:>14,.3f}")
    record = Record("bench", name, 0, work, metrics, False, provenance)
    print("->", records.write(RESULTS, record), flush=True)
    return record


if __name__ == "__main__":
    main()
