"""The only place that defines the runs of the study: arms, parameters, profiles, records, and which runs are stale.
Nothing here trains or evaluates, and no module imports torch when it is loaded."""

from d3d.public import lazy_getattr

PUBLIC = {
    "ARMS": "arms",
    "Arm": "arms",
    "read_profile": "profiles",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
