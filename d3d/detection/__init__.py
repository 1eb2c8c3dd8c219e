"""The only place that reads, writes and scores boxes of actions: AVA's detection files and frame mAP."""

from d3d.public import lazy_getattr

PUBLIC = {
    "read_ground_truth": "boxes",
    "read_detections": "boxes",
    "read_excluded": "boxes",
    "read_label_map": "boxes",
    "write_boxes": "boxes",
    "frame_map": "scoring",
    "FrameMap": "scoring",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
