"""The only place that looks into trained networks, and into what the data give away."""

from d3d.public import public

PUBLIC = {
    "linear_probes": "linear",
    "decode": "decoders",
    "integrated_gradients": "attribution",
    "grad_cam": "attribution",
}
__all__ = list(PUBLIC)
__getattr__ = public(__name__, PUBLIC)
