"""Text made from records: the verdicts, the README's table, the book's generated pages.

d3d report claims [--results FOLDER]     the ledger judged on a reader's own records, or the book's
d3d report compare FOLDER                the networks trained there side by side
d3d report readme                        writes the verdicts into README.md
d3d report pages                         writes book/generated/*.md, which the book includes
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import Field
from pathlib import Path

import pandas as pd

from d3d.report import cost, plots
from d3d.report.labels import label, number_text
from d3d.report.ledger import Finding, Verdict, judge, read_claims, verdicts
from d3d.report.prose import exploration, without_looks
from d3d.report.stats import share
from d3d.study import records, staleness
from d3d.study.experiments import EXPERIMENTS, field_of
from d3d.study.plan import BENCH, PUBLISHED, REGIME, SETTLED, SMOKE, TRAINED, TUNING, book_results, main_student

GENERATED = Path("book/generated")
EVIDENCE = """# The evidence

Every claim, its conditions as the ledger computes them, and the command that measures them. An interval is the mean
over seeds with its 95 % Student's t interval. The commands of the rows B1 to B11 need the data sets, prepared as
[Bring your own video](../videos.md) says; what starts on one set from weights of another gets a new classifier for its
classes.
"""
PARAMETERS = """# Parameters

Every parameter of every experiment, from the one schema that notebooks, profiles and `d3d train` share. Where a
parameter belongs to sprites or to video files alone, its meaning says so.
"""
STATUS = """# Status

Every notebook behind these pages, from papermill's own metadata, and the environment that ran them.
"""
SHOWN_PARAMETERS = ("stream", "seed", "lambda_", "epochs", "width", "train_clips", "rho")
REGIME_KNOBS = {
    name: name.replace("_", " ")
    for name in ("extent", "rho", "amplitude", "contrast", "camera", "noise", "bound", "train_clips", "epochs")
} | {"flow": "flow from"}
REGIME_SCORES = [("", "flow"), ("", "rgb"), ("", "two_stream"), ("motion/", "flow"), ("motion/", "rgb")]
BEGIN, END = "<!-- verdicts: written by `make readme` -->", "<!-- end of verdicts -->"


def regime(study: Path) -> pd.DataFrame:
    """The search for the study's knobs: a row a cell, in the order made, with iid top-1 by arm and group.

    `in the regime`: flow < RGB < two-stream, and two-stream between .80 and .92. What a cell lacks stays empty.
    """
    rows = []
    for cell, read in records.read_cells(study).items():
        found = {record.arm: record for record in read}
        if len(read) != len(found):
            raise ValueError(f"cell {cell} of {study} holds several seeds of an arm: a cell of the search has one")
        any_one = found.get("rgb") or next(iter(found.values()))
        top1 = {
            (group, arm): found[arm].metrics[f"iid/{group}top1"] if arm in found else float("nan")
            for group, arm in REGIME_SCORES
        }
        flow, rgb, both = (top1["", arm] for arm in ("flow", "rgb", "two_stream"))
        row = {"started": any_one.provenance["started"], "cell": cell}
        row |= {f"{label(arm)}{', ' + group[:-1] if group else ''}": value for (group, arm), value in top1.items()}
        row["in the regime"] = "yes" if flow < rgb < both and 0.80 <= both <= 0.92 else "no"
        rows.append(row | {name: any_one.params.get(knob) for knob, name in REGIME_KNOBS.items()})
    return pd.DataFrame(rows).sort_values(["started", "cell"]).drop(columns="started") if rows else pd.DataFrame()


def tuning(study: Path) -> pd.DataFrame:
    """How the students' learning rate and lambda were chosen: a row a try, in the order of arms and values.

    `val top-1` is the mean over the seeds that calibrate; `best` marks the highest of an arm's tries.
    """
    tries: dict[tuple[str, float, float], list[float]] = {}
    for record in records.read_all(study, ["distill"]):
        key = main_student(record.params), record.params["learning_rate"], record.params["lambda_"]
        tries.setdefault(key, []).append(record.metrics["val/top1"])
    rows = [(*key, sum(values) / len(values), len(values)) for key, values in sorted(tries.items())]
    found = pd.DataFrame(rows, columns=["student", "learning rate", "lambda", "val top-1", "seeds"])
    highest = found.groupby("student")["val top-1"].transform("max")
    found["best"] = (found["val top-1"] == highest).map({True: "best", False: ""})
    return found.assign(student=found["student"].map(label))


def table(found: Iterable[Verdict]) -> str:
    """The verdict table as Markdown: id, claim, what was claimed, verdict, why."""
    lines = ["| | claim | claimed | verdict | why |", "|---|---|---|---|---|"]
    for verdict in found:
        claim = verdict.claim
        claimed = "" if claim.claimed is None else f"{claim.claimed:.1f}"
        lines.append(f"| **{claim.id}** | {claim.statement} | {claimed} | **{verdict.word}** | {verdict.reason} |")
    return "\n".join(lines)


def banner(results: Path) -> str:
    """What the numbers come from, in a sentence."""
    seeds = sorted({r.seed for r in records.read_all(results, TRAINED)})
    if results == PUBLISHED:
        asked = read_claims().seeds
        whole = f"{len(seeds)} seeds" if len(seeds) >= asked else f"{len(seeds)} of {asked} seeds so far"
        return f"From the published study on one H200, {whole}."
    if not seeds:
        return "No run is recorded yet: `make book` makes the smoke study, and the published study is still to come."
    return (
        f"What follows was made by the machine that built these pages: tiny networks, {len(seeds)} seeds. It shows "
        "that every path works; the published runs on a GPU are still to come, and until then they judge no claim."
    )


def admonition(results: Path) -> str:
    """The banner as the box above a page."""
    title, kind = ("The published study", "note") if results == PUBLISHED else ("Smoke study", "warning")
    return f":::{{admonition}} {title}\n:class: {kind}\n{banner(results)}\n:::\n"


def readme() -> str:
    """README.md with today's verdicts between its markers. Raises ValueError where a marker is missing."""
    text = Path("README.md").read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md must hold the markers {BEGIN!r} and {END!r}")
    head, rest = text.split(BEGIN)
    # Of the smoke study nothing is quoted: its numbers differ from machine to machine and prove nothing.
    table = records.load(PUBLISHED)
    beside = f"{without_looks(table)}\n\n{exploration(records.load(SETTLED))}"
    return f"{head}{BEGIN}\n{_short_table(judge(read_claims(), table))}\n\n{beside}\n{END}{rest.split(END)[1]}"


def _short_table(found: list[Verdict]) -> str:
    source = banner(PUBLISHED) if book_results() == PUBLISHED else "The published study on a GPU is still to come."
    lines = [source, "", "| claims | verdict |", "|---|---|"]
    by_word: dict[str, list[str]] = {}
    for verdict in found:
        by_word.setdefault(verdict.word, []).append(verdict.claim.id)
    lines += [f"| {', '.join(ids)} | **{word}** |" for word, ids in by_word.items()]
    return "\n".join(lines)


def pages() -> None:
    """Writes what the book includes: the verdict table, the evidence behind it, the table of runs."""
    results = book_results()
    found = verdicts(results)
    GENERATED.mkdir(parents=True, exist_ok=True)
    (GENERATED / "banner.md").write_text(admonition(results))
    (GENERATED / "attention_banner.md").write_text(admonition(book_results("attribution")))
    (GENERATED / "verdicts.md").write_text(table(found) + "\n")
    (GENERATED / "evidence.md").write_text(f"{EVIDENCE}\n{evidence(found)}")
    (GENERATED / "parameters.md").write_text(f"{PARAMETERS}\n{parameters()}")
    for path in sorted(Path("book/chapters").glob("*.ipynb")):
        hide_injected(path)
    (GENERATED / "status.md").write_text(f"{STATUS}\n{runs()}")
    (GENERATED / "cost.md").write_text(cost.page(BENCH))
    plots.cost(cost.parts(BENCH)).savefig(GENERATED / "cost.svg", metadata={"Date": None})


def rerun_text(mine: str | Path, published: str | Path) -> str:
    """A sentence on what there is to compare: records of networks."""
    counts = [len(records.read_all(path, TRAINED)) for path in (mine, published)]
    return f"{counts[0]} networks trained here, {counts[1]} published."


def compare(results: str | Path) -> str:
    """Top-1 of every network and ensemble below `results` on every test split, with Wilson's 95 % interval over its
    clips, as a Markdown table. Raises FileNotFoundError where there is none."""
    if records.is_archive(results):
        raise ValueError(f"{results} is published without logits: give the folder of a study that ran here")
    rows = []
    for record in records.read_all(results, (*TRAINED, "fuse")):
        arrays = records.read_arrays(results, record)
        for split in (name.removeprefix("labels/") for name in arrays if name.startswith("labels/")):
            right = arrays[f"logits/{split}"].argmax(1) == arrays[f"labels/{split}"]
            found = share(int(right.sum()), len(right))
            top1 = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
            name = label(record.arm)
            rows.append({"network": name, "seed": record.seed, "split": split, "clips": found.n, "top-1": top1})
    if not rows:
        raise FileNotFoundError(f"no networks under {results}: train some with `-p results {results}`")
    return (
        pd.DataFrame(rows).sort_values(["split", "seed"], kind="stable").to_markdown(index=False, disable_numparse=True)
    )


def hide_injected(path: Path) -> None:
    """Papermill's injected cell repeats the parameters; the book's pages do without it."""
    content = json.loads(path.read_text())
    for cell in content["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags and "remove-cell" not in tags:
            tags.append("remove-cell")
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def evidence(found: Iterable[Verdict]) -> str:
    """For every claim with a rule of its own: the conditions, what was measured, and the command that measures it."""
    parts = []
    for verdict in found:
        claim = verdict.claim
        parts.append(f"## {claim.id} · {verdict.word}\n\n{claim.statement} *({claim.source})*\n")
        parts.append(f"{verdict.reason[:1].upper()}{verdict.reason[1:]}.\n")
        parts += ["- `{}`: {}".format(*finding_text(f).split(": ")) for f in verdict.findings]
        parts.append(f"\n```sh\n{claim.command}\n```\n")
    return "\n".join(parts)


def finding_text(finding: Finding) -> str:
    """One condition as the ledger has it, and what was measured on it."""
    condition, (bound, side) = finding.condition, finding.condition.asked
    asks = f" {'>' if side > 0 else '<'} {bound:g}" if side else ""
    return f"{condition.contrast}{asks} on {condition.metric}: {number_text(finding.interval, signed=True)}"


def runs() -> str:
    """Every executed notebook: when, how long, what failed; from papermill's own metadata, and the environment."""
    rows = []
    folders = [*sorted(SMOKE.glob("*")), Path("book/executed"), Path("book/chapters")]
    executed = [path for folder in folders for path in sorted(folder.glob("*.ipynb"))]
    for path in executed:
        meta = json.loads(path.read_text())["metadata"]["papermill"]
        name = Path(meta["input_path"]).stem
        own = EXPERIMENTS[name].names if name in EXPERIMENTS else ()
        given = {k: v for k, v in meta["parameters"].items() if k in own and k in SHOWN_PARAMETERS}
        rows.append(
            {
                "notebook": name,
                "run": path.stem if name in ("train", "distill") else path.stem.split("-")[-1],
                "seconds": "—" if meta["duration"] is None else f"{meta['duration']:.0f}",
                "started (UTC)": (meta["start_time"] or "—")[:16].replace("T", " "),
                "outcome": "failed" if meta["exception"] else "done",
                "parameters": " ".join(f"`{k}={v}`" for k, v in given.items()),
            }
        )
    total = sum(float(row["seconds"]) for row in rows if row["seconds"] != "—")
    parts = [f"{len(rows)} notebooks, {total:.0f} s in total.", ""]
    if rows:
        parts.append(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    sections = {
        "Records of this machine": records.read_all(SMOKE),
        "Records published": records.read_all(PUBLISHED),
        "Records of the calibration, published": [*records.read_all(REGIME), *records.read_all(TUNING)],
    }
    for title, found in sections.items():
        parts += ["", f"## {title}", "", _records(found, archived="published" in title)]
    return "\n".join(parts) + "\n"


def _records(found: list[records.Record], *, archived: bool) -> str:
    """What a set of records comes from. An archive names its commit, and is neither stale nor current."""
    if not found:
        return "None."
    stale = {} if archived else {"made by other code than today's": sum(not staleness.matches_code(r) for r in found)}
    last = max(found, key=lambda r: r.provenance["started"]).provenance
    facts = {
        "records": str(len(found)),
        **{name: str(count) for name, count in stale.items()},
        "commits": ", ".join(sorted({r.provenance["commit"][:10] for r in found})),
        "made with uncommitted changes": str(sum(r.provenance["dirty"] for r in found)),
        "devices": ", ".join(sorted({r.provenance["device"] for r in found})),
        **last["packages"],
    }
    return pd.DataFrame(facts.items(), columns=["", "value"]).to_markdown(index=False, disable_numparse=True)


def parameters() -> str:
    """Every parameter with its type, default and meaning, under the headings of the notebooks, as Markdown; and which
    experiment takes which."""
    sections: dict[str, dict[str, Field]] = {}
    for experiment, entry in EXPERIMENTS.items():
        for heading, names in entry.sections.items():
            listed = {name for section in sections.values() for name in section}
            own = {name: field_of(experiment, name) for name in names if name not in listed}
            sections[heading] = sections.get(heading, {}) | own
    parts = []
    for heading, declared in sections.items():
        parts += [f"## {heading.capitalize()}", "", "| parameter | type, default | meaning |", "|---|---|---|"]
        for name, f in declared.items():
            default = f'"{f.default}"' if isinstance(f.default, str) else f.default
            meaning = f.metadata["help"].replace("|", "\\|")
            parts.append(f"| `{name}` | {f.type.__name__}, `{default}` | {meaning} |")
        parts.append("")
    parts += ["## Which experiment takes which", ""]
    for experiment, entry in EXPERIMENTS.items():
        parts += [experiment, f": {', '.join(f'`{name}`' for name in entry.names)}", ""]
    return "\n".join(parts)


def claims_text(results: Path | None) -> str:
    """The verdict on every claim, a line each, by the records of a working folder or a published study; by the book's
    where none is named.

    Raises FileNotFoundError where there is no record.
    """
    lines = [f"  {v.claim.id:<4} {v.word:<26} {v.reason}" for v in verdicts(results or book_results())]
    if results is None:
        return "\n".join([banner(book_results()), *lines])
    found = records.read_all(results)
    if not found:
        raise FileNotFoundError(f"no records at {results}: give a folder that runs wrote, or a published .jsonl file")
    seeds = len({r.seed for r in found})
    return "\n".join([f"From {len(found)} records of {seeds} seed{'s' * (seeds > 1)} in {results}.", *lines])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d report", description="Text made from records.")
    commands = parser.add_subparsers(dest="command", required=True)
    claims = commands.add_parser("claims", help="the verdict on every claim, by your own records or the book's")
    claims.add_argument("--results", type=Path, help="folder of records, or a published .jsonl (default: the book's)")
    side_by_side = commands.add_parser("compare", help="the networks of a folder side by side")
    side_by_side.add_argument("results", type=Path, help="folder of records with their arrays")
    commands.add_parser("readme", help="write the verdicts into README.md")
    commands.add_parser("pages", help="write book/generated")
    given = parser.parse_args(argv)
    try:
        if given.command == "claims":
            print(claims_text(given.results))
        elif given.command == "compare":
            print(compare(given.results))
        elif given.command == "pages":
            pages()
        else:
            Path("README.md").write_text(readme())
    except (ValueError, OSError) as error:
        sys.exit(str(error))
