"""The book's page for whoever has the paper's data sets: each row of its tables with the command that answers it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from d3d.report.claims import Claim, Condition
from d3d.report.labels import NEEDS_DATA
from d3d.report.ledger import Finding, Verdict, measure
from d3d.report.row_costs import (
    COMMAND,
    SEEDS,
    TRAINING,
    RouteCost,
    control_cost,
    detectable_over_clips,
    detectable_over_seeds,
    disagreement,
    route_cost,
)
from d3d.report.scale import DATASETS, Quantity, quantities
from d3d.report.stats import proportion_interval
from d3d.study import records
from d3d.study.plan import BENCH, JHMDB, PUBLISHED

WIDTH = 100  # characters of a line of a command
CONTROLS = {"flow_shuffled": "shuffled", "class_mean": "class_mean"}
PAGE = """# Verify the paper's tables

**Of the {rows} rows of the paper's tables, {count} need data that this project does not have.** If you have Kinetics,
UCF101, HMDB-51 or AVA, this page leads you to the first verdicts. The shortest way takes released weights, the
validation videos of Kinetics-400 and one command: about {shortest} on one GPU, and nothing is trained.

| row | what | claimed | verdict | hours on 1 GPU | on 8 GPUs | disk |
|---|---|---|---|---|---|---|
{table}

*Hours and disk are computed from measured rates and public numbers of the data sets, not measured as a whole: the
[inputs](inputs-of-the-hours) are at the end of the page. They assume {cores:.0f} cores per GPU to decode videos, and
that eight GPUs work on one network together (`-p processes 0`). Disk is what the row's videos take and what its runs
write. The numbers of an ensemble include those of its members. Where a row has two lines, the second trains every
network anew.*

## Start with B8

1. **Install** the package and its notebooks as on [the page on reproducing](../howto.md). The released weights are a
   TensorFlow checkpoint; `pip install -e '.[tensorflow]'` lets this package read it.
2. **Put the data on disk**: the validation videos, named `<id>_<start>_<end>.mp4`, anywhere below a folder
   `KINETICS400`, and the official `val.csv` or `validate.csv` in it. Then see what is missing or damaged:

   ```sh
   d3d data --dataset kinetics400 --root KINETICS400
   ```

3. **Check the weights.** The example code that comes with the released weights has two videos, *abseiling* and *air
   drumming*. Their most probable classes must be 0 and 1, in the alphabetical order of Kinetics-400:

   ```sh
   d3d convert D3D_K400/model.ckpt d3d_k400.safetensors
   d3d predict abseiling.mp4 --weights d3d_k400.safetensors
   ```

4. **Evaluate.** A run that is killed resumes with the same command; `-p processes 0` uses every GPU.

   ```sh
{first}
   ```

   The notebook `out.ipynb` shows top-1, the classes that are recognised worst and best, and some clips. In
   `results/kinetics400/evaluate` lie the record (`.json`, with top-1, top-5, mean accuracy over classes, and how many
   videos are listed, used, missing and refused, with their first names), the logits of every clip (`.npz`), and two
   tables: `.classes.csv` and `.clips.csv`.
5. **Read the verdict:**

   ```sh
   d3d report claims --results results/kinetics400
   ```

If top-1 is near chance, the classes of the weights are in another order than the data set's: give `-p labels FILE` with
a class per line, in the order of the logits.

## What decides a row

Every row has a rule in `book/claims.yaml`: the whole 95 % interval must lie above a bound, one point below the claimed
number. **Supported**: it does. **Refuted**: it lies wholly below. **Undecided**: it contains the bound, or there are
too few clips or seeds.

Released weights are one network, and there are no other seeds of it. Their interval is therefore Wilson's over the
validation clips. It says what that network would reach on other clips of the same kind, not what training it again
would give. With {clips400:,} clips and a top-1 of {claimed400:.3f} it is ± {half400:.3f}. At least {min400:,} clips of
Kinetics-400 and {min600:,} of Kinetics-600 must be scored, nine tenths of the official lists. Videos disappear from the
web, and those that remain may be easier or harder than those that are gone: the record says how many are missing.

Networks that you train are judged over seeds, at least {seeds}, by Student's t. This is a statement about the method.
Where the records hold both, both must lie above the bound.

A copy of a data set that lacks classes makes records that are marked `stand_in`, and so does training that starts from
a network of sprites. They go through the same steps and decide nothing: with such records the rows still say
*{needs_data}*.

## The rows

{sections}

## Two controls that the tables lack

No row compares D3D with a student whose teacher knows only the class of a clip. Such a student gains too, from soft
labels. Two controls tell how much of the gain comes from the motion of the clip itself. They differ from the
training command of {control_row} in one parameter, `outputs`, and write their own records beside D3D's:

| `-p outputs` | the student learns | seeds | hours on 1 GPU | on 8 GPUs |
|---|---|---|---|---|
{controls}

After the streams of {control_row} are trained, this is the control `flow_shuffled`:

```sh
{control}
```

D3D − flow shuffled is what the motion of this clip gives; flow shuffled − class mean, what the spread of the teacher's
outputs within a class gives. On JHMDB, in this project's pilot, exactly one of D3D and flow shuffled was right on
{disagreement} of the test clips ({low} to {high} over {pairs} pairs of networks). If that is so on Kinetics, a
paired test of two networks over the clips finds, with a probability of 80 %, {detectable}.

A statement about the method needs seeds. In the study on sprites, D3D − RGB-longer had a standard deviation of
{deviation:.3f} between seeds. With as much, {seeds} seeds would show a difference of {over_seeds:.3f}, and {more_seeds}
seeds one of {over_more_seeds:.3f}. Networks trained on Kinetics, which has far more clips, may differ less.

## Tell us what you found

A verdict is worth most with its records. `d3d records pack results/kinetics400` puts them into one `.jsonl` and one
`.npz` file, without weights or videos; anyone can recompute top-1 from them. [Send them](../cite.md), whatever they
say: a refuted row is as welcome as a supported one. If you know the paper's full text, correct the table below.

## What is assumed

Nobody here has read the paper's full text, and the result tables do not say how it was tested. For these rows this is
assumed, beside what the [plan](../plan.md) lists:

{assumptions}

(inputs-of-the-hours)=
## What the hours are computed from

| value | of what | where it comes from |
|---|---|---|
{inputs}
"""
ASSUMPTIONS = (
    ("views of a test video", "{views} clips of 64 frames, evenly spaced, × {crops} crops along the long side; mean of "
     "softmax", "`view_clips`, `view_crops`"),
    ("frames for released weights", "short side 224 and values in [0, 1], as in the released example; 25 frames per "
     "second", "`short_side`, `fps`"),
    ("frames in training", "short side 256, crops of 224 × 224, mirrored in half of the cases", "`short_side`, `size`"),
    ("flow", "TV-L1 at short side 256 and 25 frames per second, clipped to ± 20 px", "`d3d flow`, `bound`"),
    ("classes of released weights", "Kinetics' names in alphabetical order", "`labels`"),
    ("S3D-G beside D3D", "an RGB stream; whether its weights were released is not known here, and any checkpoint of "
     "TF-slim's S3D-G is read", "`weights`"),
    ("D3D + D3D", "two networks, one from each Kinetics", "`d3d/study/arms.py`"),
    ("training", "{stream_epochs} epochs of a stream, {student_epochs} of a student, λ = 1, rate and schedule as this "
     "package has them by default: nothing was searched for on these data", "every parameter"),
    ("batches on Kinetics", "256 clips, 32 on each of eight GPUs; one GPU needs `-p accumulate 8`", "`batch_size`"),
)  # fmt: skip
# What must lie where, by data set; root and annotations as in the commands.
ON_DISK = {
    "kinetics400": "`KINETICS400`: validation videos `<id>_<start>_<end>.mp4` anywhere below it, and `val.csv` in it",
    "kinetics600": "`KINETICS600`: validation videos `<id>_<start>_<end>.mp4` anywhere below it, and `val.csv` in it",
    "ucf101": "`UCF-101`: a folder of videos per class; `ucfTrainTestlist`: the official lists",
    "hmdb51": "`HMDB51`: a folder of videos per class; `testTrainMulti_7030_splits`: the official lists",
    "ava": "the videos of AVA v2.1 and its annotation files",
}
PLACES = {"ucf101": ("UCF-101", "ucfTrainTestlist"), "hmdb51": ("HMDB51", "testTrainMulti_7030_splits")}


def page(verdicts: Sequence[Verdict], bench: Path = BENCH) -> str:
    """Returns the page as Markdown.

    Args:
        verdicts: on all claims; the page is about those of the paper's tables, whose ids begin with B.
        bench: records of `make bench`.

    Raises:
        LookupError: the records of the bench lack what the page quotes.
        ValueError: those of JHMDB or of the published study do.
    """
    values = quantities(bench)
    rows = [verdict for verdict in verdicts if verdict.claim.id.startswith("B")]
    claims = {verdict.claim.id: verdict.claim for verdict in rows}
    costs = {name: (route_cost(COMMAND[name], values), _training_cost(name, values)) for name in claims}
    first = claims["B8"]
    half = proportion_interval(round(first.claimed / 100 * DATASETS["kinetics400"].validation),
                               DATASETS["kinetics400"].validation)  # fmt: skip
    shares = disagreement(JHMDB, "d3d", "flow_shuffled", "jhmdb/test")
    spread = measure(records.load(PUBLISHED), Condition("d3d - rgb_longer", "iid/top1")).values
    deviation, more_seeds = float(np.std(spread, ddof=1)), 4 * SEEDS
    return PAGE.format(
        count=sum(verdict.word == NEEDS_DATA for verdict in rows),
        rows=len(rows),
        shortest=_hours(costs["B8"][0].hours[1]),
        table="\n".join(line for verdict in rows for line in _table_lines(verdict, *costs[verdict.claim.id])),
        first="\n".join(f"   {line}" for line in shell_lines(first.command).splitlines()),
        clips400=DATASETS["kinetics400"].validation,
        claimed400=first.claimed / 100,
        half400=(half.high - half.low) / 2,
        min400=first.clips,
        min600=claims["B10"].clips,
        seeds=SEEDS,
        needs_data=NEEDS_DATA,
        sections="\n\n".join(_section(verdict, *costs[verdict.claim.id]) for verdict in rows),
        control_row="B8",
        controls="\n".join(_control_line(arm, outputs, values) for arm, outputs in CONTROLS.items()),
        control=shell_lines(control_command(first, "shuffled")),
        disagreement=_percent(float(np.mean(shares))),
        low=_percent(min(shares)),
        high=_percent(max(shares)),
        pairs=len(shares),
        detectable=" and ".join(_detectable_line(dataset, float(np.mean(shares))) for dataset in _KINETICS),
        deviation=deviation,
        over_seeds=detectable_over_seeds(SEEDS, deviation),
        more_seeds=more_seeds,
        over_more_seeds=detectable_over_seeds(more_seeds, deviation),
        cores=values["cores_per_gpu"].value,
        assumptions=_assumptions(values),
        inputs="\n".join(_input_line(quantity) for quantity in values.values()),
    )


_KINETICS = ("kinetics400", "kinetics600")


def shell_lines(command: str) -> str:
    """Breaks a command of the ledger into lines that a shell reads as the same command."""
    lines: list[str] = []
    for line in re.sub(r"; (?=papermill|for |done)", "\n", command).replace("; do ", "; do\n").splitlines():
        pieces = [line.split(" -p ")[0], *(f"-p {piece}" for piece in line.split(" -p ")[1:])]
        current = ""
        for piece in pieces:
            if current and len(current) + 1 + len(piece) > WIDTH - 2:
                lines.append(f"{current} \\")
                current = "  "
            current += piece if current in ("", "  ") else f" {piece}"
        lines.append(current)
    return "\n".join(lines)


def control_command(claim: Claim, outputs: str) -> str:
    """Returns the part of a row's training command that distils, for other outputs of the teacher."""
    loop, _, body = claim.training.partition("; do ")
    call = next(part for part in body.removesuffix("; done").split("; ") if "/distill.ipynb" in part)
    return f"{loop}; do {call.replace('-p outputs clip', f'-p outputs {outputs}')}; done"


def _training_cost(name: str, values: Mapping[str, Quantity]) -> RouteCost | None:
    return route_cost(TRAINING[name], values) if name in TRAINING else None


def _table_lines(verdict: Verdict, cost: RouteCost, training: RouteCost | None) -> list[str]:
    claim = verdict.claim
    anchor = f"[{claim.id}](row-{claim.id.lower()})"
    what = claim.statement.rstrip(".")
    lines = [f"| {anchor} | {what} | {claim.claimed:.1f} | **{verdict.word}** | {_cost_cells(cost)} |"]
    if training:
        lines.append(f"| | the same, trained here | | | {_cost_cells(training)} |")
    return lines


def _cost_cells(cost: RouteCost) -> str:
    return " | ".join([*(_number(hours) for hours in cost.hours.values()), _bytes(cost.disk)])


def _section(verdict: Verdict, cost: RouteCost, training: RouteCost | None) -> str:
    claim = verdict.claim
    dataset = COMMAND[claim.id].dataset
    weights = _weights(claim.command)
    blocks = [
        f"(row-{claim.id.lower()})=\n### {claim.id} · {verdict.word}",
        f"{claim.statement} Claimed: {claim.claimed:.1f}. {verdict.reason[:1].upper()}{verdict.reason[1:]}.",
        f"*Rule:* {'; '.join(map(_rule_text, verdict.findings))}.",
        f"*On disk:* {ON_DISK[dataset]}"
        + (f"; weights {', '.join(f'`{name}`' for name in weights)}." if weights else "."),
    ]
    if claim.command.startswith("#"):
        return "\n\n".join([*blocks, f"{claim.command.removeprefix('# ').capitalize()}."])
    with_others = ", with the networks of the rows before" if "/fuse.ipynb" in claim.command else ""
    blocks.append(f"*Time and disk{with_others}:* {_cost_text(cost)}")
    blocks.append(f"```sh\n{_flow_line(claim.command, dataset)}{shell_lines(claim.command)}\n```")
    if training:
        after = ", after the networks of the row before" if "/train.ipynb" not in claim.training else ""
        blocks.append(
            f"*By training instead{after}*, with training videos and `train.csv` on disk too: {_cost_text(training)}"
        )
        blocks.append(f"```sh\n{_flow_line(claim.training, dataset)}{shell_lines(claim.training)}\n```")
    return "\n\n".join(blocks)


def _cost_text(cost: RouteCost) -> str:
    one, eight = (_hours(hours) for hours in cost.hours.values())
    return f"about {one} on one GPU, {eight} on eight; {_bytes(cost.disk)}."


def _rule_text(finding: Finding) -> str:
    condition = finding.condition
    over = "clips of one network" if condition.over == "clips" else "seeds"
    return f"`{condition.contrast}` > {condition.bound:g} in `{condition.metric}`, over {over}"


def _weights(command: str) -> list[str]:
    """The files of weights that a command reads and no run of it writes."""
    named = re.findall(r"-p (?:weights|student|teacher) ([^\s;]+)", command)
    return list(dict.fromkeys(name for name in named if not name.startswith("results/")))


def _flow_line(command: str, dataset: str) -> str:
    """The command that fills the flow cache, for a command that reads it."""
    if "-p flow_cache FLOW" not in command:
        return ""
    root, annotations = PLACES.get(dataset, (dataset.upper(), ""))
    flags = f" --annotations {annotations}" if annotations else ""
    return f"d3d flow --dataset {dataset} --root {root}{flags} --out FLOW\n"


def _control_line(arm: str, outputs: str, values: Mapping[str, Quantity]) -> str:
    learns = {
        "shuffled": "the outputs for another clip of the same class",
        "class_mean": "the mean outputs of the class",
    }
    cost = control_cost(arm, "kinetics400", values)
    return f"| `{outputs}` | {learns[outputs]} | {SEEDS} | {' | '.join(map(_number, cost.hours.values()))} |"


def _detectable_line(dataset: str, share: float) -> str:
    clips = DATASETS[dataset].validation
    least = detectable_over_clips(clips, share)
    return f"a difference of {least:.4f} with the {clips:,} validation clips of {DATASETS[dataset].label}"


def _assumptions(values: Mapping[str, Quantity]) -> str:
    numbers = {"views": "view_clips", "crops": "view_crops"} | {n: n for n in ("stream_epochs", "student_epochs")}
    numbers = {name: f"{values[key].value:.0f}" for name, key in numbers.items()}
    table = pd.DataFrame(ASSUMPTIONS, columns=["", "assumption", "to change it"])
    table["assumption"] = [text.format(**numbers) for text in table["assumption"]]
    return table.to_markdown(index=False)


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _input_line(quantity: Quantity) -> str:
    kind = "measured" if quantity.measured else "assumed"
    value = f"{quantity.value:,.4g}" if quantity.value < 1e4 else f"{quantity.value:,.0f}"
    return f"| {value} {quantity.unit} | {quantity.meaning} | {kind}: {quantity.source} |"


def _number(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


def _hours(hours: float) -> str:
    return (
        f"{round(60 * hours, -1) if hours > 1 / 6 else 60 * hours:.0f} minutes"
        if hours < 1
        else f"{_number(hours)} hours"
    )


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.0f} GB"
