"""The only place where records become verdicts, tables, figures and pages. Nothing here imports torch."""

from d3d.public import lazy_getattr

PUBLIC = {
    "verdicts": "ledger",
    "measure": "ledger",
    "Condition": "claims",
    "label": "labels",
    "colour": "labels",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
