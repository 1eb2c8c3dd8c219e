"""Links the first use of each term of the glossary on a page to its entry."""

import re

from docutils import nodes
from sphinx import addnodes

GLOSSARY = "glossary"
# Words that are also used in their everyday sense, which only a written link {term}`…` can tell apart.
EVERYDAY = {"m", "cell", "arm", "record", "archive", "seed", "regime", "margin", "interval", "profile", "smoke"}
EVERYDAY |= {"tuned", "twin", "settled", "frozen", "supported", "refuted", "undecided", "RGB", "D3D", "lambda", "λ"}
# In these, a link would be in the way.
UNTOUCHED = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.raw, addnodes.desc, nodes.term)


def link_terms(app, doctree, docname):
    """Changes the text of a page whose references are resolved."""
    if app.builder.format != "html" or docname == GLOSSARY or docname.startswith(("executed", "generated/api")):
        return
    objects = app.env.get_domain("std").get_objects()
    anchors = {name: anchor for name, _, kind, _, anchor, _ in objects if kind == "term" and name not in EVERYDAY}
    if not anchors:
        return
    # Longer terms first: "flow stream" before "stream". At the start of a sentence a term has a capital letter.
    names = sorted(anchors, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(_either_case, names))})(?:e?s)?(?![\w-])")
    by_text = {name: name for name in names} | {name[0].upper() + name[1:]: name for name in names}
    linked = {
        node.astext() for node in doctree.findall(nodes.reference) if f"{GLOSSARY}.html" in node.get("refuri", "")
    }
    linked = {by_text.get(text, text) for text in linked}
    for node in list(doctree.findall(nodes.Text)):
        if not _is_prose(node):
            continue
        parts, end, text = [], 0, node.astext()
        for match in pattern.finditer(text):
            name = by_text[match[1]]
            if name not in linked:
                linked.add(name)
                uri = f"{app.builder.get_relative_uri(docname, GLOSSARY)}#{anchors[name]}"
                link = nodes.reference("", match[0], refuri=uri, internal=True, classes=["glossary-term"])
                parts += [nodes.Text(text[end : match.start()]), link]
                end = match.end()
        if parts:
            node.parent.replace(node, [*parts, nodes.Text(text[end:])])


def _either_case(name: str) -> str:
    first = re.escape(name[0])
    return (f"[{first}{name[0].upper()}]" if name[0].islower() else first) + re.escape(name[1:])


def _is_prose(node: nodes.Text) -> bool:
    """Whether a text stands in a paragraph and in nothing that stays as it is."""
    parent, in_paragraph = node.parent, False
    while parent is not None:
        if isinstance(parent, UNTOUCHED) or "cell_output" in parent.get("classes", ()):
            return False
        in_paragraph |= isinstance(parent, nodes.paragraph)
        parent = parent.parent
    return in_paragraph


def setup(app):
    # Before captions move into their figures.
    app.connect("doctree-resolved", link_terms, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
