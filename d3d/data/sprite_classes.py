"""What the classes of the controlled clips are: motion programs, appearance families, and which class has which."""

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
# Directions of a texture's waves in degrees, and waves across half the sprite.
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
# What a family's name says: its outline and its texture.
OUTLINE_OF, TEXTURE_OF = (tuple(part) for part in zip(*(family.split("-") for family in FAMILIES), strict=True))


class SpriteClass(NamedTuple):
    """What a label means: the program of the target, its own family, and what tells the class from others."""

    name: str
    group: str
    program: str
    family: str


# Motion pairs share a family. Appearance pairs share an outline, which flow can see, and a program no other class has.
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

_BY_MEANING = {(c.group, c.program, c.family): label for label, c in enumerate(CLASSES)}
_BACKWARDS = {"right": "left", "clockwise": "counterclockwise", "orbit": "counterorbit", "expand": "contract"}
_BACKWARDS |= {there: back for back, there in _BACKWARDS.items()}
# The label of a class's clips played backwards; none where no class means that.
REVERSED = tuple(_BY_MEANING.get((c.group, _BACKWARDS.get(c.program, c.program), c.family)) for c in CLASSES)


def siblings() -> np.ndarray:
    """For each class the other one of its pair (K,): same family for motion, same program for appearance; else −1."""
    shared = {"motion": lambda c: c.family, "appearance": lambda c: c.program}
    found = np.full(len(CLASSES), -1)
    for i, a in enumerate(CLASSES):
        for j, b in enumerate(CLASSES):
            if i != j and a.group == b.group and a.group in shared and shared[a.group](a) == shared[a.group](b):
                found[i] = j
    return found
