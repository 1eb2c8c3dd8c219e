"""The only place that probes trained networks, and that checks what the data reveal without motion."""

from d3d.public import lazy_getattr

PUBLIC = {
    "linear_probes": "linear",
    "train_flow_decoders": "decoders",
    "integrated_gradients": "maps",
    "grad_cam": "maps",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
