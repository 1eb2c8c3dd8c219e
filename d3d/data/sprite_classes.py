"""Defines the classes of the sprite clips by their motion program and appearance family."""

from typing import NamedTuple

import numpy as np

PROGRAMS = (
    "right",
    "left",
    "drift",
    "dash",
    "clockwise",
    "counterclockwise",
    "orbit",
    "counterorbit",
    "expand",
    "contract",
    "sway",
    "bob",
    "rock",
    "pulse",
)
SHAPES = {"disc": 0, "peanut": 2, "trefoil": 3, "quatrefoil": 4, "star": 5, "gear": 7}  # lobes of the outline
# Directions of a texture's waves in degrees, and their number across half the sprite.
TEXTURES = {"stripes": ((0,), 2.0), "checks": ((0, 90), 1.5), "cells": ((0, 60, 120), 1.75)}
FAMILIES = (
    "disc-stripes",
    "disc-cells",
    "peanut-checks",
    "peanut-stripes",
    "trefoil-cells",
    "trefoil-checks",
    "quatrefoil-stripes",
    "quatrefoil-cells",
    "star-checks",
    "star-stripes",
    "gear-cells",
    "gear-checks",
)
# Shape and texture of each family.
FAMILY_SHAPES, FAMILY_TEXTURES = (
    tuple(names) for names in zip(*(family.split("-") for family in FAMILIES), strict=True)
)


class SpriteClass(NamedTuple):
    """A class of the sprite clips.

    Attributes:
        name: unique name.
        group: what distinguishes the class from its sibling, "motion" or "appearance"; "both": it has no sibling.
        program: the target's motion.
        family: the target's appearance; clips of motion classes keep it with probability `rho`, else it is random.
    """

    name: str
    group: str
    program: str
    family: str


# Motion pairs share a family. Appearance pairs share a shape, which flow can see, and a program of their own.
CLASSES = (
    SpriteClass("right", "motion", "right", "disc-stripes"),
    SpriteClass("left", "motion", "left", "disc-stripes"),
    SpriteClass("drift", "motion", "drift", "disc-cells"),
    SpriteClass("dash", "motion", "dash", "disc-cells"),
    SpriteClass("clockwise", "motion", "clockwise", "peanut-checks"),
    SpriteClass("counterclockwise", "motion", "counterclockwise", "peanut-checks"),
    SpriteClass("orbit", "motion", "orbit", "peanut-stripes"),
    SpriteClass("counterorbit", "motion", "counterorbit", "peanut-stripes"),
    SpriteClass("expand-cells", "appearance", "expand", "trefoil-cells"),
    SpriteClass("expand-checks", "appearance", "expand", "trefoil-checks"),
    SpriteClass("contract-checks", "appearance", "contract", "star-checks"),
    SpriteClass("contract-stripes", "appearance", "contract", "star-stripes"),
    SpriteClass("sway", "both", "sway", "quatrefoil-stripes"),
    SpriteClass("bob", "both", "bob", "quatrefoil-cells"),
    SpriteClass("rock", "both", "rock", "gear-cells"),
    SpriteClass("pulse", "both", "pulse", "gear-checks"),
)

_LABELS = {(c.group, c.program, c.family): label for label, c in enumerate(CLASSES)}
_REVERSED_PROGRAMS = {"right": "left", "clockwise": "counterclockwise", "orbit": "counterorbit", "expand": "contract"}
_REVERSED_PROGRAMS |= {backward: forward for forward, backward in _REVERSED_PROGRAMS.items()}
# For each label that of the same clip played backwards; None where no class has the reversed motion.
REVERSED_LABELS = tuple(_LABELS.get((c.group, _REVERSED_PROGRAMS.get(c.program, c.program), c.family)) for c in CLASSES)


def siblings() -> np.ndarray:
    """Returns the label of each class's sibling (K,), -1 for none.

    Siblings share the family in the group "motion" and the program in the group "appearance".
    """
    shared = {"motion": lambda c: c.family, "appearance": lambda c: c.program}
    labels = np.full(len(CLASSES), -1)
    for i, a in enumerate(CLASSES):
        for j, b in enumerate(CLASSES):
            if i != j and a.group == b.group and a.group in shared and shared[a.group](a) == shared[a.group](b):
                labels[i] = j
    return labels
