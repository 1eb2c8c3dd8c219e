"""The only place that detects actions of actors, and that reads, writes and scores their boxes as AVA does."""

from d3d.public import lazy_getattr

PUBLIC = {
    "read_ground_truth": "boxes",
    "read_detections": "boxes",
    "read_people": "boxes",
    "read_excluded": "boxes",
    "read_label_map": "boxes",
    "write_boxes": "boxes",
    "frame_map": "scoring",
    "FrameMap": "scoring",
    "ActionDetector": "network",
    "KeyFrames": "key_frames",
    "scene_set": "scene_sets",
    "ava_split": "ava_frames",
    "train_detector": "training",
    "detect": "training",
    "fuse_detections": "training",
    "train_person_detector": "people",
    "person_boxes": "people",
    "score_people": "people",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
