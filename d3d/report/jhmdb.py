"""The book's text on JHMDB: what networks with random initial weights reach on its three official splits."""

from pathlib import Path

import pandas as pd

from d3d.messages import printable
from d3d.report import markdown
from d3d.report.labels import label, number_text
from d3d.report.stats import Interval, interval
from d3d.study import records
from d3d.study.arms import ARMS
from d3d.study.records import Record

TOP1, CAMERA_TOP1 = "jhmdb/test/top1", "jhmdb/test/{}/top1"
SPLITS = ("1", "2", "3")
REPEATED = {"keep": "kept", "drop": "dropped"}
TEXT = """**From random weights, over the three official splits: flow {flow} top-1, RGB {rgb}; chance is {chance:.3f}.**
These are {networks} networks of a pilot, trained through papermill on {device}; several runs shared a GPU. Its seeds
are from 100 up, and no claim rests on it.

{table}

*Top-1 on the official test clips: for each split the mean over seeds; over three splits the mean over the seeds that
have all of them, with its 95 % interval (Student's t). Camera: the same, for clips whose name says that the camera
stands still or moves. The networks see {frames} frames, every second of the file, at {size} × {size} pixels. They train
for {epochs} epochs of about {train_clips} clips, as `val` is held out, in {seconds:.0f} s; students train for
{more_epochs} epochs more with λ = {lambda_:g}. Made at commit {commit} with `-f notebooks/params/jhmdb.yaml`.*

With all frames, flow − RGB is {lead}. Many frames of JHMDB repeat the one before, since slower videos were converted:
flow is nearly zero there, and how often that happens differs between sources, and so between classes. With the repeats
dropped (`-p repeated_frames drop`), for both streams alike, flow − RGB is {lead_dropped}. Clips are
then shorter too, so this is not the effect of the repeats alone.
"""


Cells = dict[str, list[Record]]


def text(archive: Path) -> str:
    """Returns the section as Markdown.

    Args:
        archive: records in cells called `<keep or drop>-split<1 to 3>`.

    Raises:
        FileNotFoundError: there is no stream or no student.
        LookupError: the records lack a cell, a metric or a parameter.
    """
    cells = records.read_cells(archive)
    everything = [record for cell in cells.values() for record in cell]
    streams = [record for record in everything if record.experiment == "train"]
    students = [record for record in everything if record.params.get("lambda_")]
    if not students or not streams:
        raise FileNotFoundError(f"{printable(archive)} lacks a stream or a student, which the text on JHMDB quotes")
    labels = records.read_arrays(archive, cells["keep-split1"][0], cell="keep-split1")
    test_labels, val_labels = (labels[f"labels/jhmdb/{split}"] for split in ("test", "val"))
    return TEXT.format(
        flow=number_text(_over_splits(cells, "keep", "flow")),
        rgb=number_text(_over_splits(cells, "keep", "rgb")),
        chance=1 / len(set(test_labels.tolist())),
        networks=len(everything),
        table=_table(cells),
        train_clips=streams[0].files["decoded"] - len(test_labels) - len(val_labels),
        **{name: streams[0].params[name] for name in ("frames", "size", "epochs")},
        more_epochs=students[0].params["epochs"],
        lambda_=students[0].params["lambda_"],
        seconds=sum(record.metrics["seconds/train"] for record in streams) / len(streams),
        device=markdown.text(streams[0].provenance["device"]),
        commit=markdown.text(streams[0].provenance["commit"][:10]),
        lead=number_text(_lead(cells, "keep"), signed=True),
        lead_dropped=number_text(_lead(cells, "drop"), signed=True),
    )


def _values(cells: Cells, repeats: str, arm: str, metric: str) -> pd.DataFrame:
    """Tabulates a metric of an arm: a row per seed, a column per split; nan where a run is missing."""
    return pd.DataFrame(
        {
            split: {r.seed: r.metrics[metric] for r in cells.get(f"{repeats}-split{split}", ()) if r.arm == arm}
            for split in SPLITS
        }
    )


def _over_splits(cells: Cells, repeats: str, arm: str, metric: str = TOP1) -> Interval:
    """Returns the mean over splits, with its interval over the seeds that have all of them."""
    return interval(_values(cells, repeats, arm, metric).dropna().mean(axis=1).to_list())


def _lead(cells: Cells, repeats: str) -> Interval:
    flow, rgb = (_values(cells, repeats, arm, TOP1).dropna().mean(axis=1) for arm in ("flow", "rgb"))
    return interval((flow - rgb).dropna().to_list())


def _table(cells: Cells) -> str:
    rows = []
    for repeats, words in REPEATED.items():
        names = {record.arm for name, cell in cells.items() if name.startswith(repeats) for record in cell}
        for arm in (name for name in ARMS if name in names):
            values = _values(cells, repeats, arm, TOP1)
            row = {"network": label(arm), "repeated frames": words, "seeds": len(values.dropna())}
            row |= {f"split {split}": f"{values[split].mean():.3f}" for split in SPLITS}
            row["three splits"] = number_text(_over_splits(cells, repeats, arm))
            for camera in ("still", "moving"):
                row[f"camera {camera}"] = f"{_over_splits(cells, repeats, arm, CAMERA_TOP1.format(camera)).mean:.3f}"
            rows.append(row)
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
