"""Tables of the records of `make bench`, one per question; `make bench` prints them and the page on cost shows them."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from d3d.report.markdown import text
from d3d.study.records import Record

NETWORKS = {
    "s3dg": "S3D-G",
    "s3dg_captured": "S3D-G, captured",
    "s3dg_compiled_graphs": "S3D-G, compiled with CUDA graphs",
    "d3d_train": "S3D-G, captured by d3d.train",
    "s3dg_folded": "S3D-G, folded",
    "s3dg_folded_captured": "S3D-G, folded and captured",
    "torchvision_s3d": "torchvision s3d",
    "torchvision_s3d_compiled": "torchvision s3d, compiled",
    "torchvision_s3d_compiled_graphs": "torchvision s3d, compiled with CUDA graphs",
}
NETWORK_BENCHES = ("s3dg", "batches", "s3dg_tf32")
RATE = re.compile(r"(?P<step>\w+)/(?P<precision>\w+)/batch(?P<batch>\d+)/(?P<network>\w+)/clips_per_second")
# The benches on video files, each with the contestant that the others are compared with.
VIDEO_PEERS = {"decode": "pyav", "flow_set": "tvl1_alone", "memory": "decoded", "shards": "files"}
END_TO_END = {
    "one_network": "one network (RGB or D3D)",
    "two_streams": "two streams, our TV-L1",
    "two_streams_opencv": "two streams, OpenCV's TV-L1",
}
# Columns that a table need not repeat in every row.
COMMON = ("peer", "card", "host")
STAGES = ("decode", "preprocess", "flow", "network")
PER_SECOND = re.compile(r"(?P<group>.+/)?(?P<contestant>\w+)/(?P<unit>\w+)_per_second")
MS_PER_FRAME = re.compile(r"decoding/(\w+)/ms_per_frame")

Row = dict[str, Any]


def fastest(records: Sequence[Record]) -> pd.DataFrame:
    """Which network is fastest? A row per network and case, beside torchvision's best of that case."""
    rows = [row for record in records if record.arm in NETWORK_BENCHES for row in _network_rows(record)]
    return pd.DataFrame(sorted(rows, key=_case_order))


def _case_order(row: Row) -> tuple[str, str, int]:
    step, precision, batch = row["step, precision, batch"].split(", ")
    return step, precision, int(batch)


def _network_rows(record: Record) -> Iterator[Row]:
    rates = {match: rate for name, rate in record.metrics.items() if (match := RATE.fullmatch(name))}
    order = {name: i for i, name in enumerate(NETWORKS)}
    for match in sorted(
        (m for m in rates if m["network"] in NETWORKS),
        key=lambda m: (m["step"], m["precision"], int(m["batch"]), order[m["network"]]),
    ):
        step, precision, batch, network = match.groups()
        case = f"{step}/{precision}/batch{batch}"
        peers = {m["network"]: r for m, r in rates.items() if m[0].startswith(f"{case}/torchvision_s3d")}
        peer = max(peers, key=peers.get) if peers else None
        yield {
            "step, precision, batch": f"{step}, {precision}, {batch}",
            "network": NETWORKS[network],
            "clips per second": rates[match],
            "ms per step": 1e3 * int(batch) / rates[match],
            "working memory (GB)": record.metrics.get(f"{case}/{network}/working_gb"),
            "peer": NETWORKS.get(peer),
            "× peer": rates[match] / peers[peer] if peer else None,
            **_machine(record),
        }


def scaling(records: Sequence[Record]) -> pd.DataFrame:
    """How does it scale? The study's small step, several runs on one GPU, and one run on several GPUs."""
    return pd.DataFrame(row for record in records for row in _SCALING.get(record.arm, lambda _: ())(record))


def _study_rows(record: Record) -> Iterator[Row]:
    frames, size = record.params["frames"], record.params["size"]
    for row in _network_rows(record):
        batch = row.pop("step, precision, batch").rsplit(" ", 1)[1]
        yield {"case": f"step of {batch} clips of {frames} × {size} × {size}", "contestant": row.pop("network"), **row}


def _sharing_rows(record: Record) -> Iterator[Row]:
    for name, rate in record.metrics.items():
        if match := re.fullmatch(r"(runs|mps)(\d+)/clips_per_second", name):
            way = " through MPS" if match[1] == "mps" else ""
            yield {
                "case": "runs at once on one device",
                "contestant": "1 run" if match[2] == "1" else f"{match[2]} runs{way}",
                "clips per second": rate,
                "peer": "1 run",
                "× peer": rate / record.metrics["runs1/clips_per_second"],
                **_machine(record),
            }


def _scaling_rows(record: Record) -> Iterator[Row]:
    for name, rate in record.metrics.items():
        if match := re.fullmatch(r"(\w+)/processes(\d+)/clips_per_second", name):
            prefix = name.removesuffix("/clips_per_second")
            yield {
                "case": record.params[match[1]],
                "contestant": "1 process" if match[2] == "1" else f"{match[2]} processes",
                "clips per second": rate,
                "ms per step": record.metrics[f"{prefix}/ms_per_step"],
                "peer": "1 process",
                "× peer": record.metrics[f"{prefix}/ratio"],
                **_machine(record),
            }


_SCALING: dict[str, Callable[[Record], Iterable[Row]]] = {
    "study_step": _study_rows,
    "sharing": _sharing_rows,
    "scaling": _scaling_rows,
}


def end_to_end(records: Sequence[Record]) -> pd.DataFrame:
    """What does a video cost? From files to decisions, one network and two streams."""
    return pd.DataFrame(row for record in records if record.arm == "end_to_end" for row in _end_to_end_rows(record))


def _end_to_end_rows(record: Record) -> Iterator[Row]:
    metrics, peer = record.metrics, END_TO_END["two_streams_opencv"]
    for arm, label in END_TO_END.items():
        if rate := metrics.get(f"{arm}/clips_per_second"):
            shares = {f"{stage} (%)": metrics.get(f"{arm}/one_video/share/{stage}") for stage in STAGES}
            yield {
                "contestant": label,
                "clips per second": rate,
                "peer": peer,
                "× peer": rate / metrics["two_streams_opencv/clips_per_second"],
                "joules per clip": metrics.get(f"{arm}/joules_per_clip"),
                "GPU memory (GB)": metrics.get(f"{arm}/peak_gb"),
                "one video (ms)": metrics.get(f"{arm}/one_video/ms"),
                **{stage: share and 100 * share for stage, share in shares.items()},
                **_machine(record),
            }


def videos(records: Sequence[Record]) -> pd.DataFrame:
    """How fast are video files read? Every rate of the benches on video files, beside that of its peer."""
    return pd.DataFrame(row for record in records if record.arm in VIDEO_PEERS for row in _video_rows(record))


def _video_rows(record: Record) -> Iterator[Row]:
    metrics, peer = record.metrics, VIDEO_PEERS[record.arm]
    for name, milliseconds in metrics.items():
        if match := MS_PER_FRAME.fullmatch(name):
            yield {
                "bench": record.arm,
                "contestant": f"{match[1]}, one thread",
                "per second": 1e3 / milliseconds,
                "unit": "frames",
                "peer": peer,
                "× peer": metrics[f"decoding/{peer}/ms_per_frame"] / milliseconds,
                **_machine(record),
            }
    for name, rate in metrics.items():
        if match := PER_SECOND.fullmatch(name):
            group, contestant, unit = match.groups(default="")
            peer_rate = metrics.get(f"{group}{peer}/{unit}_per_second")
            yield {
                "bench": record.arm,
                "contestant": f"{group}{contestant}".replace("/", ", ").replace("_", " "),
                "per second": rate,
                "unit": unit,
                "peer": peer.replace("_", " ") if peer_rate else None,
                # Where the bench compared run by run, its own ratio is the more exact one.
                "× peer": metrics.get(f"{group}{contestant}/ratio", rate / peer_rate if peer_rate else None),
                **_machine(record),
            }


QUESTIONS: dict[str, Callable[[Sequence[Record]], pd.DataFrame]] = {
    "Which network is fastest?": fastest,
    "How does it scale?": scaling,
    "What does a video cost, from its file to a decision?": end_to_end,
    "How fast are video files read?": videos,
}


def _machine(record: Record) -> dict[str, str | None]:
    """The card and, if the record says it, the host."""
    return {"card": record.provenance["device"], "host": record.provenance.get("host")}


def markdown(table: pd.DataFrame) -> str:
    """Formats a table as Markdown; leaves out columns without a value.

    A peer, card or host that is the same in all rows is named once, below the table.
    """
    shown = table.dropna(axis="columns", how="all")
    common = {name: shown[name].iloc[0] for name in COMMON if name in shown and shown[name].nunique(dropna=False) == 1}
    shown = shown.drop(columns=list(common))
    formats = {"× peer": "{:.2f}", "ms per step": "{:,.1f}", "working memory (GB)": "{:.1f}"}
    formats |= {f"{stage} (%)": "{:.0f}" for stage in STAGES}
    cells = {name: [_cell(value, formats.get(name)) for value in column] for name, column in shown.items()}
    lines = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
    named = "; ".join(f"{name}: {_cell(value, None)}" for name, value in common.items())
    return f"{lines}\n\n{named[0].upper()}{named[1:]}." if named else lines


def _cell(value: object, number_format: str | None) -> str:
    if isinstance(value, str):
        return text(value)
    if pd.isna(value):
        return ""
    return (number_format or ("{:,.0f}" if value >= 100 else "{:.3g}")).format(value)
