"""Makes an output of a chapter and the italic paragraph below it one figure, with a number, an anchor and a caption.

The caption ends with a link to the code that drew the figure, and each chapter with where its numbers come from.
"""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
from docutils import nodes

from d3d.study.records import load, load_cells

# A function of the package that draws or tabulates, as chapters call it.
DRAWING = "plots|endpoints|regimes|network|selection|attention|beds|kinds|pictures|films"
DRAWN_BY = re.compile(rf"\b({DRAWING})\.(\w+)\(")
RECORDS = "_downloads/records"
WORDS = {"image": "Figure", "table": "Table", "film": "Films"}


# docutils names the visitors of an element after its class.
class captioned(nodes.General, nodes.Element):
    """A figure: a box that scrolls where it is too wide, then its caption."""


class output_box(nodes.General, nodes.Element):
    """What the figure shows."""


class output_caption(nodes.General, nodes.TextElement):
    """Its caption."""


def make_figures(app, doctree, docname):
    """Changes the outputs of cells in a page whose references are resolved."""
    if app.builder.format != "html":
        return
    counts = dict.fromkeys(WORDS, 0)
    for cell in list(doctree.findall(lambda node: isinstance(node, nodes.container) and "cell" in node["classes"])):
        outputs = [child for child in cell if "cell_output" in child.get("classes", ())]
        kind = _kind(outputs[0]) if outputs else ""
        caption = cell.next_node(descend=False, siblings=True)
        if kind and _is_caption(caption):
            counts[kind] += 1
            _make_figure(outputs[0], caption, WORDS[kind], counts[kind], _code_link(app, docname, cell))
    if docname.startswith("chapters/") and isinstance(doctree.children[0], nodes.section):
        doctree.children[0] += _provenance(app, docname)


def _kind(output: nodes.Element) -> str:
    """What an output shows: image, table or film; empty for text."""
    raw = "".join(node.astext() for node in output.findall(nodes.raw))
    if "<video" in raw:
        return "film"
    if any(output.findall(nodes.image)):
        return "image"
    return "table" if "<table" in raw or any(output.findall(nodes.table)) else ""


def _is_caption(node: nodes.Node | None) -> bool:
    return isinstance(node, nodes.paragraph) and len(node) == 1 and isinstance(node[0], nodes.emphasis)


def _code_link(app, docname: str, cell: nodes.Element) -> list[nodes.Node]:
    """A sentence that links to the function which drew an output, in the API reference; empty if there is none."""
    objects = {name: page for name, _, _, page, _, _ in app.env.get_domain("py").get_objects()}
    for module, function in DRAWN_BY.findall(cell.astext()):
        for name in (f"d3d.report.{module}.{function}", f"d3d.{module}.{function}"):
            if name in objects:
                uri = f"{app.builder.get_relative_uri(docname, objects[name])}#{name}"
                link = nodes.reference("", "", nodes.literal("", f"{module}.{function}"), refuri=uri, internal=True)
                return [nodes.Text(" Code: "), link, nodes.Text(".")]
    return []


def _provenance(app, docname: str) -> nodes.Element:
    """A box at the end of a chapter: its notebook, its records, and the command that executes it again."""
    meta = json.loads((Path(app.srcdir) / f"{docname}.ipynb").read_text())["metadata"]["papermill"]
    results, notebook = meta["parameters"]["results"], meta["input_path"]
    command = f"papermill {notebook} out.ipynb -r results {results}"
    records = nodes.literal("", results)
    base, folder = f"{'../' * docname.count('/')}{RECORDS}", Path(app.outdir) / RECORDS
    folder.mkdir(parents=True, exist_ok=True)
    if Path(results).is_file():
        shutil.copy(results, folder)
        records = nodes.reference("", "", records, refuri=f"{base}/{Path(results).name}", internal=True)
    numbers = folder / f"{Path(results).stem}.csv"
    if not numbers.is_file():
        numbers_of(results).to_csv(numbers, index=False)
    table = nodes.reference("", "all numbers as a table", refuri=f"{base}/{numbers.name}", internal=True)
    parts = [
        nodes.strong("", "Where this page comes from. "),
        nodes.Text("The notebook "), nodes.literal("", notebook), nodes.Text(" reads the records "), records,
        nodes.Text(" ("), table, nodes.Text("). Execute it again with "), nodes.literal("", command),
        nodes.Text(f" ({meta['duration']:.0f} s when this page was made). The button at the top downloads it."),
    ]  # fmt: skip
    return nodes.container("", nodes.paragraph("", "", *parts), classes=["provenance"])


def numbers_of(results: str) -> pd.DataFrame:
    """Every metric of every run of an archive, which may have cells, or of a folder of records; one row each."""
    if not Path(results).is_file():
        return load(results)
    cells = load_cells(results)
    tables = [table.assign(cell=name) if name else table for name, table in cells.items()]
    return pd.concat(tables, ignore_index=True)


def _make_figure(output: nodes.Element, caption: nodes.Element, word: str, number: int, code: list[nodes.Node]) -> None:
    name = f"{word.lower()}-{number}"
    box = output_box("", *output.children)
    anchor = f'<a class="headerlink" href="#{name}" title="Link to this {word.lower()}">#</a>'
    title = nodes.strong("", f"{word} {number}.")
    children = [title, nodes.Text(" "), *caption[0].children, *code, nodes.raw("", anchor, format="html")]
    output.children = []
    output += captioned("", box, output_caption("", "", *children), ids=[name], label=f"{word} {number}")
    caption.parent.remove(caption)


def setup(app):
    def element(name: str, **attributes: str):
        def visit(self, node):
            given = {key: value.format(**node.attributes) for key, value in attributes.items()}
            self.body.append(self.starttag(node, name, **given))

        return visit, lambda self, node: self.body.append(f"</{name}>\n")

    app.add_node(captioned, html=element("figure", CLASS="book-figure"))
    app.add_node(output_box, html=element("div", CLASS="output-box"))
    app.add_node(output_caption, html=element("figcaption"))
    app.connect("doctree-resolved", make_figures, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
