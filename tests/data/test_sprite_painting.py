"""Sprites painted one above the other: which of them a pixel shows, and in which colour."""

import numpy as np
import torch

from d3d.data.draws import CounterRng
from d3d.data.moving_sprites import Sprite, World
from d3d.data.sprite_classes import FAMILIES, PROGRAMS
from d3d.data.sprite_painting import paint
from tests import configs

PROGRAM, FAMILY = (np.array([names.index(name)]) for names, name in ((PROGRAMS, "rock"), (FAMILIES, "disc-cells")))


def stack(*kinds: tuple[float, bool]):
    """Paints discs above each other in the middle of a frame: relative radius, and whether it has a hue, of each."""
    config = configs.clip(size=64, frames=2, noise=0.0, amplitude=0.0, camera=0.0, extent=0.2)
    world = World(config, CounterRng("test", np.array([4])), np.array([[-0.5, 0.5]]), 64)
    sprites = {}
    for number, (scale, coloured) in enumerate(kinds, 3):
        sprites[number] = Sprite(world, f"disc {number}", PROGRAM, FAMILY, scale=scale, coloured=coloured)
        sprites[number].move_to(np.array([32 + 32j]), 0)
    return paint(world, sprites, torch.device("cpu")), sprites


def hue_of(painting, distance):
    """Hue and saturation of the pixel that lies so far to the right of the middle."""
    rgb = painting.rgb[0, :, 0, 32, 32 + distance]
    wave = (rgb * torch.exp(2j * torch.pi * torch.arange(3) / 3)).sum()
    return wave.angle().item() / (2 * np.pi) % 1, wave.abs().item()


def test_a_later_sprite_hides_the_colour_of_an_earlier_one():
    painting, sprites = stack((2.0, True), (0.5, True))
    below, above = sprites[3], sprites[4]
    inside, beside = int(above.radius[0]) - 2, int(above.radius[0]) + 3
    assert abs(below.hue[0] - above.hue[0]) > 0.05
    assert np.isclose(hue_of(painting, inside)[0], above.hue[0], atol=1e-3)
    assert np.isclose(hue_of(painting, beside)[0], below.hue[0], atol=1e-3)
    assert painting.layer[0, 0, 32, 32 + inside] == 4
    assert painting.layer[0, 0, 32, 32 + beside] == 3


def test_a_grey_sprite_hides_the_colour_below_it():
    painting, sprites = stack((2.0, True), (0.5, False))
    assert hue_of(painting, int(sprites[4].radius[0]) - 2)[1] < 1e-5
    assert hue_of(painting, int(sprites[4].radius[0]) + 3)[1] > 0.1


def test_a_sprite_covers_pixels_that_its_layer_does_not_show():
    painting, sprites = stack((1.0, False), (2.0, True), (0.5, True))
    alone, _ = stack((1.0, False), (0.1, True))
    assert torch.equal(painting.covered[3], alone.covered[3])
    assert not (painting.layer == 3).any()
    for number, sprite in sprites.items():
        assert np.isclose(painting.covered[number][0, 0].sum(), np.pi * sprite.radius[0] ** 2, rtol=0.06)
    ring = painting.covered[4] & ~painting.covered[5]
    assert torch.equal(painting.layer == 4, ring)
