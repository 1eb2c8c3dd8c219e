"""The only place that defines the runs of the study: arms, parameters, profiles, records, and which runs are stale.
Nothing here trains or evaluates, and no module imports torch when it is loaded."""

from d3d.public import public

PUBLIC = {
    "ARMS": "arms",
    "Arm": "arms",
    "read_profile": "profiles",
}
__all__ = list(PUBLIC)
__getattr__ = public(__name__, PUBLIC)
