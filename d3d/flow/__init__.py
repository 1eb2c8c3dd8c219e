"""The only place where optical flow is computed, compared, coloured and kept on disk."""

from d3d.public import lazy_getattr

PUBLIC = {
    "tvl1": "estimate",
    "tvl1_clip": "estimate",
    "warp": "fields",
    "endpoint_error": "fields",
    "score": "fields",
    "occluded": "fields",
    "colours": "fields",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
