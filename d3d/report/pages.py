"""Text made from records: verdicts, the README's table, the book's generated pages.

d3d report claims [--results FOLDER]              prints the verdicts on your own records, or on the book's
d3d report compare FOLDER [--published STUDY]     prints the top-1 of the networks trained there side by side
d3d report readme                                 writes the verdicts into README.md
d3d report pages                                  writes book/generated/*.md, which the book includes
d3d report scale [--gpus N …] [--set NAME=VALUE]  prints what a reproduction on Kinetics or another set costs
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from dataclasses import Field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from d3d.documents import read_json
from d3d.files import write_atomic
from d3d.messages import one_line, printable, shown
from d3d.report import api, cost, evidence, front, jhmdb, ledger_page, plots, scale_page, side_by_side
from d3d.report.claims import read_claims
from d3d.report.labels import label
from d3d.report.ledger import verdicts
from d3d.report.markdown import code, text
from d3d.study import records, staleness
from d3d.study.experiments import EXPERIMENTS, field_of
from d3d.study.plan import BENCH, JHMDB, PUBLISHED, REGIME, SMOKE, TRAINED, TUNING, book_results, main_student

GENERATED = Path("book/generated")
MAX_NOTEBOOK_BYTES = 256 * 2**20
PAPERMILL_KEYS = ("input_path", "parameters", "duration", "start_time", "exception")
PARAMETERS = """# Parameters

Every parameter of every experiment, from the schema that notebooks, profiles and `d3d train` share. The meaning
says if a parameter applies only to sprites or only to video files.
"""
STATUS = """# Status

Every notebook behind these pages, from papermill's own metadata, and the environment that ran it.
"""
LISTED_PARAMETERS = ("stream", "seed", "lambda_", "epochs", "width", "train_clips", "rho")
REGIME_PARAMETERS = {
    name: name.replace("_", " ")
    for name in ("extent", "rho", "amplitude", "contrast", "camera", "noise", "bound", "train_clips", "epochs")
} | {"flow": "flow from"}
REGIME_COLUMNS = [("", "flow"), ("", "rgb"), ("", "two_stream"), ("motion/", "flow"), ("motion/", "rgb")]
BEGIN, END = "<!-- findings: written by `make readme` from book/index.md -->", "<!-- end of findings -->"


def regime_table(study: Path) -> pd.DataFrame:
    """Tabulates the search for the clips' parameters: one row per cell, by start, with iid top-1 by arm and group.

    `in the regime` means flow < RGB < two-stream in top-1, with two-stream between .80 and .92. Missing values are
    empty.

    Raises:
        ValueError: a cell holds several seeds of an arm.
    """
    rows = []
    for cell, cell_records in records.read_cells(study).items():
        by_arm = {record.arm: record for record in cell_records}
        if len(cell_records) != len(by_arm):
            raise ValueError(f"cell {cell} of {study} holds several seeds of an arm: a cell of the search has one")
        example = by_arm.get("rgb") or next(iter(by_arm.values()))
        top1 = {
            (group, arm): by_arm[arm].metrics[f"iid/{group}top1"] if arm in by_arm else float("nan")
            for group, arm in REGIME_COLUMNS
        }
        flow, rgb, both = (top1["", arm] for arm in ("flow", "rgb", "two_stream"))
        row = {"started": example.provenance["started"], "cell": cell}
        row |= {f"{label(arm)}{', ' + group[:-1] if group else ''}": value for (group, arm), value in top1.items()}
        row["in the regime"] = "yes" if flow < rgb < both and 0.80 <= both <= 0.92 else "no"
        rows.append(row | {name: example.params.get(key) for key, name in REGIME_PARAMETERS.items()})
    return pd.DataFrame(rows).sort_values(["started", "cell"]).drop(columns="started") if rows else pd.DataFrame()


def tuning_table(study: Path) -> pd.DataFrame:
    """Tabulates the search for the students' learning rate and lambda: one row per student and pair of values.

    `val top-1` is the mean over the seeds of the search; `best` marks the highest of a student.
    """
    trials: dict[tuple[str, float, float], list[float]] = {}
    for record in records.read_all(study, ["distill"]):
        key = main_student(record.params), record.params["learning_rate"], record.params["lambda_"]
        trials.setdefault(key, []).append(record.metrics["val/top1"])
    rows = [(*key, sum(values) / len(values), len(values)) for key, values in sorted(trials.items())]
    table = pd.DataFrame(rows, columns=["student", "learning rate", "lambda", "val top-1", "seeds"])
    highest = table.groupby("student")["val top-1"].transform("max")
    table["best"] = (table["val top-1"] == highest).map({True: "best", False: ""})
    return table.assign(student=table["student"].map(label))


def banner(results: Path) -> str:
    """Says in a sentence which runs the numbers come from."""
    seeds = sorted({r.seed for r in records.read_all(results, TRAINED)})
    if results == PUBLISHED:
        needed = read_claims().seeds
        count = f"{len(seeds)} seeds" if len(seeds) >= needed else f"{len(seeds)} of {needed} seeds so far"
        return f"The numbers come from this project's own study: {count} on one H200."
    if not seeds:
        return "No run is recorded yet: `make book` makes the smoke study, and the published study is still to come."
    return (
        f"The numbers come from the machine that built these pages: tiny networks, {len(seeds)} seeds. They show that "
        "every step works and decide no claim; this part of the published study is still to come."
    )


def admonition(results: Path) -> str:
    """Formats the banner as the box at the top of a page."""
    title, kind = ("This study", "note") if results == PUBLISHED else ("Smoke study", "warning")
    return f":::{{admonition}} {title}\n:class: {kind}\n{banner(results)}\n:::\n"


def readme_text() -> str:
    """Returns README.md with the current findings and verdicts between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    text = Path("README.md").read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md must hold the markers {BEGIN!r} and {END!r}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{front.readme_findings()}\n{END}{after}"


def write_pages() -> None:
    """Writes everything that the book includes into book/generated, and hides papermill's cells in the chapters.

    Raises:
        ValueError: records, claims or notebooks are not those that the pages quote; then nothing is written.
        FileNotFoundError: there are none.
    """
    results = book_results()
    judged = verdicts(results)
    for path in (chapters := sorted(Path("book/chapters").glob("*.ipynb"))):
        _read_notebook(path)
    pages = {
        "banner.md": admonition(results),
        "attention_banner.md": admonition(book_results("attribution")),
        "detection_banner.md": admonition(book_results("detect")),
        "verdicts.md": front.claims_text(judged) + "\n",
        "evidence.md": evidence.page(judged, results),
        "parameters.md": f"{PARAMETERS}\n{parameter_tables()}",
        "status.md": f"{STATUS}\n{status_text()}",
        "cost.md": _quoting(cost.page, BENCH),
        "ledger.md": _quoting(lambda bench: ledger_page.page(judged, bench), BENCH),
        "scale.md": scale_page.page(BENCH),
        "jhmdb.md": _quoting(jhmdb.text, JHMDB),
        "api.md": api.page(Path("d3d")),
    }
    contents = {name: page.encode() for name, page in pages.items()}
    contents["cost.svg"] = _svg(plots.cost(cost.kernel_times(BENCH)))
    contents["scale.svg"] = _svg(plots.scaling(scale_page.scaling_curves(BENCH)))
    write_atomic({GENERATED / name: content for name, content in contents.items()})
    for path in chapters:
        hide_injected(path)


def _svg(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def _quoting(page: Callable[[Path], str], study: Path) -> str:
    """Makes a page from a study; raises ValueError naming the study where it lacks what the page quotes."""
    try:
        return page(study)
    except LookupError as error:
        raise ValueError(f"{study} lacks {shown(error.args[0])}, which its page of the book quotes") from None


def rerun_text(results: str | Path, published: str | Path) -> str:
    """Says in a sentence how many networks were trained here and how many are published."""
    counts = [len(records.read_all(path, TRAINED)) for path in (results, published)]
    return f"Networks trained here: {counts[0]}; published: {counts[1]}."


def hide_injected(path: Path) -> None:
    """Tags papermill's injected cell, which repeats the parameters, so that the book leaves it out."""
    content = _read_notebook(path)
    for cell in content["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags and "remove-cell" not in tags:
            tags.append("remove-cell")
    write_atomic({path: (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()})


def _read_notebook(path: Path) -> dict[str, Any]:
    """Reads a notebook; raises ValueError for a file that is none, naming it."""
    where = printable(path)
    content = read_json(path, max_bytes=MAX_NOTEBOOK_BYTES, finite=False)
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not all(
        isinstance(c, dict) and isinstance(c.get("metadata"), dict) for c in cells
    ):
        raise ValueError(f"{where} is not a notebook: it has no cells with metadata")
    return content


def _papermill_metadata(path: Path) -> dict[str, Any]:
    """What papermill says of a run in the notebook that it wrote; raises ValueError where that is missing."""
    meta = _read_notebook(path).get("metadata", {}).get("papermill", {})
    if missing := [name for name in PAPERMILL_KEYS if name not in meta]:
        raise ValueError(f"{printable(path)} was not run by papermill: its metadata has no {missing[0]}")
    return meta


def status_text() -> str:
    """Tabulates in Markdown every executed notebook (start, duration, failures) and the environment of the records."""
    rows = []
    folders = [*sorted(SMOKE.glob("*")), Path("book/executed"), Path("book/chapters")]
    executed = [path for folder in folders for path in sorted(folder.glob("*.ipynb"))]
    for path in executed:
        meta = _papermill_metadata(path)
        name = Path(meta["input_path"]).stem
        declared = EXPERIMENTS[name].names if name in EXPERIMENTS else ()
        listed = {k: v for k, v in meta["parameters"].items() if k in declared and k in LISTED_PARAMETERS}
        rows.append(
            {
                "notebook": name,
                "run": path.stem if name in ("train", "distill") else path.stem.split("-")[-1],
                "seconds": "—" if meta["duration"] is None else f"{meta['duration']:.0f}",
                "started (UTC)": (meta["start_time"] or "—")[:16].replace("T", " "),
                "outcome": "failed" if meta["exception"] else "done",
                "parameters": " ".join(code(f"{k}={v}") for k, v in listed.items()),
            }
        )
    total = sum(float(row["seconds"]) for row in rows if row["seconds"] != "—")
    blocks = [f"{len(rows)} notebooks, {total:.0f} s in total.", ""]
    if rows:
        blocks.append(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    sections = {
        "Records of this machine": records.read_all(SMOKE),
        "Records published": records.read_all(PUBLISHED),
        "Records of the calibration, published": [*records.read_all(REGIME), *records.read_all(TUNING)],
    }
    for title, section in sections.items():
        blocks += ["", f"## {title}", "", _provenance_table(section, archived="published" in title)]
    return "\n".join(blocks) + "\n"


def _provenance_table(section: list[records.Record], *, archived: bool) -> str:
    """What records were made with. An archive names its commit, and is neither stale nor current."""
    if not section:
        return "None."
    stale = sum(not staleness.matches_code(r) for r in section) if not archived else 0
    last = max(section, key=lambda r: r.provenance["started"]).provenance
    facts = {
        "records": str(len(section)),
        **({} if archived else {"made by other code than today's": str(stale)}),
        "commits": text(", ".join(sorted({r.provenance["commit"][:10] for r in section}))),
        "made with uncommitted changes": str(sum(r.provenance["dirty"] for r in section)),
        "devices": text(", ".join(sorted({r.provenance["device"] for r in section}))),
        **{text(name): text(version) for name, version in last["packages"].items()},
    }
    return pd.DataFrame(facts.items(), columns=["", "value"]).to_markdown(index=False, disable_numparse=True)


def parameter_tables() -> str:
    """Tabulates in Markdown every parameter with type, default and meaning, and the parameters of each experiment."""
    sections: dict[str, dict[str, Field]] = {}
    for experiment, entry in EXPERIMENTS.items():
        for heading, names in entry.sections.items():
            listed = {name for section in sections.values() for name in section}
            unlisted = {name: field_of(experiment, name) for name in names if name not in listed}
            sections[heading] = sections.get(heading, {}) | unlisted
    lines = []
    for heading, declared in sections.items():
        lines += [f"## {heading.capitalize()}", "", "| parameter | type, default | meaning |", "|---|---|---|"]
        for name, f in declared.items():
            default = f'"{f.default}"' if isinstance(f.default, str) else f.default
            meaning = f.metadata["help"].replace("|", "\\|")
            lines.append(f"| `{name}` | {f.type.__name__}, `{default}` | {meaning} |")
        lines.append("")
    lines += ["## The parameters of each experiment", ""]
    for experiment, entry in EXPERIMENTS.items():
        lines += [experiment, f": {', '.join(f'`{name}`' for name in entry.names)}", ""]
    return "\n".join(lines)


def claims_text(results: Path | None) -> str:
    """Lists the verdicts, one line per claim.

    Args:
        results: working folder or published study; None for the records of the book.

    Raises:
        FileNotFoundError: there is no record in `results`.
    """
    lines = [f"  {v.claim.id:<4} {v.word:<26} {v.reason}" for v in verdicts(results or book_results())]
    if results is None:
        return "\n".join([banner(book_results()), *lines])
    recorded = records.read_all(results)
    if not recorded:
        raise FileNotFoundError(
            f"no records at {printable(results)}: give a folder that runs wrote, or a published .jsonl file"
        )
    seeds = len({r.seed for r in recorded})
    return "\n".join(
        [f"From {len(recorded)} records of {seeds} seed{'s' * (seeds > 1)} in {printable(results)}.", *lines]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="d3d report", description="Prints or writes text made from records.")
    commands = parser.add_subparsers(dest="command", required=True)
    claims = commands.add_parser("claims", help="print the verdict on every claim, from your own records or the book's")
    claims.add_argument(
        "--results", type=Path, help="folder of records or published .jsonl file (default: the records of the book)"
    )
    comparison = commands.add_parser("compare", help="print the top-1 accuracy of a folder's networks side by side")
    comparison.add_argument("results", type=Path, help="folder of records and their .npz files")
    comparison.add_argument("--published", type=Path, help="study to compare with: .jsonl file or folder")
    commands.add_parser("readme", help="write the verdicts into README.md, in the current folder")
    commands.add_parser("pages", help="write book/generated/*.md, which the book includes")
    scale_page.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        if args.command == "scale":
            print(scale_page.command_text(args))
        elif args.command == "claims":
            print(claims_text(args.results))
        elif args.command == "compare":
            print(side_by_side.compare(args.results, args.published))
        elif args.command == "pages":
            write_pages()
        else:
            write_atomic({Path("README.md"): readme_text().encode()})
    except (ValueError, OSError) as error:
        sys.exit(one_line(error))
