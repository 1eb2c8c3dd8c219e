"""The only place where the network is defined: its operations and kernels, its weights on disk."""

from d3d.public import public

PUBLIC = {
    "S3DG": "network",
    "s3dg": "network",
    "fold": "network",
    "load_checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
    "load_tf": "weights",
}
__all__ = list(PUBLIC)
__getattr__ = public(__name__, PUBLIC)
