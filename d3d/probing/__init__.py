"""The only place that probes trained networks, and that checks what the data reveal without motion."""

from d3d.public import public

PUBLIC = {
    "linear_probes": "linear",
    "train_flow_decoders": "decoders",
    "integrated_gradients": "attribution",
    "grad_cam": "attribution",
}
__all__ = list(PUBLIC)
__getattr__ = public(__name__, PUBLIC)
