"""The colours of networks: readable on white, and different for readers who see fewer colours."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from d3d.study.arms import ARMS

# The networks that figures of the book compare with one another.
MAIN = ("random", "rgb", "rgb_longer", "rgb_teacher", "class_mean", "flow_shuffled", "d3d", "tuned")
MAIN += ("flow", "two_stream", "rgb_rgb")
# Most contrasts are between these.
CENTRAL = ("rgb", "flow", "rgb_longer", "flow_shuffled", "d3d", "two_stream")
# Linear sRGB to CIE XYZ, white at D65.
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# How linear sRGB looks without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "usual": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def linear(colour) -> np.ndarray:
    """A colour of matplotlib as linear sRGB."""
    rgb = np.asarray(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast_on_white(colour) -> float:
    """The ratio that WCAG 2 defines: 1 for white, 21 for black."""
    return 1.05 / (linear(colour) @ TO_XYZ[1] + 0.05)


def lab(colour, vision: str = "usual") -> np.ndarray:
    """CIE L*a*b* of a colour as a reader sees it."""
    seen = np.clip(np.asarray(VISION[vision]) @ linear(colour), 0, 1)
    x, y, z = TO_XYZ @ seen / TO_XYZ.sum(1)
    fx, fy, fz = (np.cbrt(v) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def ciede2000(first, second) -> float:
    """The colour difference CIEDE2000 of two colours in L*a*b* (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean_c7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    g = 0.5 * (1 - np.sqrt(mean_c7 / (mean_c7 + 25**7)))
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    grey = c1 * c2 == 0
    turn = 0 if grey else (h2 - h1 + 180) % 360 - 180
    if grey or abs(h1 - h2) <= 180:
        h = (h1 + h2) / (1 if grey else 2)
    else:
        h = (h1 + h2 + (360 if h1 + h2 < 360 else -360)) / 2
    light, c = (l1 + l2) / 2, (c1 + c2) / 2
    cosines = {1: (-0.17, -30), 2: (0.24, 0), 3: (0.32, 6), 4: (-0.20, -63)}
    t = 1 + sum(weight * np.cos(np.radians(k * h + shift)) for k, (weight, shift) in cosines.items())
    dl = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * c)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * c * t)
    theta = 30 * np.exp(-(((h - 275) / 25) ** 2))
    rotation = -np.sin(np.radians(2 * theta)) * 2 * np.sqrt(c**7 / (c**7 + 25**7))
    return float(np.sqrt(dl**2 + dc**2 + dh**2 + rotation * dc * dh))


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_difference_of_colours_is_that_of_the_standards_test_data(first, second, difference):
    assert ciede2000(first, second) == pytest.approx(difference, abs=1e-4)


def test_every_arm_stands_out_from_white():
    pale = {arm.name: contrast for arm in ARMS.values() if (contrast := contrast_on_white(arm.colour)) < 3}
    assert not pale


@pytest.mark.parametrize(
    ("vision", "main", "central"), [("usual", 20, 28), ("deuteranopia", 12.5, 18), ("protanopia", 12.5, 18)]
)
def test_main_arms_differ_in_colour_also_without_one_kind_of_cone(vision, main, central):
    for arms, least in ((MAIN, main), (CENTRAL, central)):
        colours = {name: lab(ARMS[name].colour, vision) for name in arms}
        distances = {pair: ciede2000(*(colours[name] for name in pair)) for pair in combinations(arms, 2)}
        closest = min(distances, key=distances.get)
        assert distances[closest] >= least, f"{closest}: {distances[closest]:.1f}"


def test_main_arms_and_ensembles_have_colours_and_markers_of_their_own():
    compared = [*MAIN, "rgb_twin", "longer_flow", "d3d_rgb", "d3d_d3d"]
    for looks in ([ARMS[name].marker for name in compared], [ARMS[name].colour for name in compared]):
        assert len(set(looks)) == len(compared)
