"""The only place that looks into trained networks, and into what the data give away."""

from d3d.public import lazy_getattr

PUBLIC = {
    "linear_probes": "linear",
    "decode": "decoders",
    "integrated_gradients": "attribution",
    "grad_cam": "attribution",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
