"""The only place where video files are opened and where annotation files and tables of clips are read."""

from d3d.public import lazy_getattr

PUBLIC = {
    "read_clip": "decode",
    "read_frames": "decode",
    "check": "decode",
    "VideoError": "decode",
    "read_table": "tables",
    "write_table": "tables",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
