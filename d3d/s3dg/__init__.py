"""The only place where S3D-G is defined: the network, its operations and GPU kernels, and its weights on disk."""

from d3d.public import lazy_getattr

PUBLIC = {
    "S3DG": "network",
    "s3dg": "network",
    "fold": "folding",
    "capture": "graphs",
    "capture_gradients": "graphs",
    "load_checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
    "load_tf": "weights",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
