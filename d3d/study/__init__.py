"""The only place that says what is run: arms, parameters, profiles, records, and what is stale. Nothing here computes,
and nothing imports torch."""

from d3d.public import public

PUBLIC = {
    "ARMS": "arms",
    "Arm": "arms",
    "read_profile": "profiles",
}
__all__ = list(PUBLIC)
__getattr__ = public(__name__, PUBLIC)
