"""The only place where clips become network inputs: rendered sprites, video files, and data sets of either."""

from d3d.public import lazy_getattr

PUBLIC = {
    "CLASSES": "sprite_classes",
    "render": "sprites",
    "render_scenes": "scenes",
    "Clips": "clips",
    "Batch": "clips",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
