"""The only place where networks are trained, evaluated and fused into ensembles."""

from d3d.public import public

PUBLIC = {
    "Objective": "objective",
    "fit": "loop",
    "accuracy": "evaluate",
}
__all__ = list(PUBLIC)
__getattr__ = public(__name__, PUBLIC)
