"""The only place where networks are trained, evaluated and fused into ensembles."""

from d3d.public import lazy_getattr

PUBLIC = {
    "Objective": "objective",
    "fit": "loop",
    "accuracy": "scores",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
