"""The only place that says what is run: arms, parameters, profiles, records, and what is stale. Nothing here computes,
and nothing imports torch."""

from d3d.public import lazy_getattr

PUBLIC = {
    "ARMS": "arms",
    "Arm": "arms",
    "read_profile": "profiles",
}
__all__ = list(PUBLIC)
__getattr__ = lazy_getattr(__name__, PUBLIC)
