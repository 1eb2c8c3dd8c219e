"""Makes an output of a chapter and the italic paragraph below it one figure, with a number, an anchor and a caption."""

from docutils import nodes

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
            _make_figure(outputs[0], caption, WORDS[kind], counts[kind])


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


def _make_figure(output: nodes.Element, caption: nodes.Element, word: str, number: int) -> None:
    name = f"{word.lower()}-{number}"
    box = output_box("", *output.children)
    anchor = f'<a class="headerlink" href="#{name}" title="Link to this {word.lower()}">#</a>'
    title = nodes.strong("", f"{word} {number}.")
    children = [title, nodes.Text(" "), *caption[0].children, nodes.raw("", anchor, format="html")]
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
