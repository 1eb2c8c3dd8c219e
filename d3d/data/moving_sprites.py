"""Random sprites and the paths on which they move; their parameters are drawn on the CPU.

The frame is a torus, so that a sprite's position and angle are uniform in every frame, whatever its motion.
"""

import numpy as np

from d3d.data.draws import CounterRng
from d3d.data.sprite_classes import CLASSES, FAMILIES, FAMILY_SHAPES, FAMILY_TEXTURES, PROGRAMS
from d3d.study.parameters import ClipConfig

PERIOD = 8  # frames per oscillation; an orbit takes 1.5 times as long
MAX_HEADING = np.radians(30)  # largest deviation of a translation from its axis
RELATIVE_SPEEDS = {"drift": 0.6, "dash": 1.6}  # times the target's speed; drift and dash differ in nothing else
MIN_RADIUS, MAX_RADIUS = 0.78, 1.22  # over the mean
# Radius over the target's. Flow has no colour: there only the size distinguishes distractor and target.
DISTRACTOR_SCALE = 0.6


class World:
    """What the sprites of a batch of clips have in common; positions are complex numbers x + iy.

    Args:
        config: how clips look and move.
        rng: draws all parameters of a clip.
        times: the times that the frames show, in frames from the middle of the clip, (B, T) or (1, T).
        size: height and width of a frame, pixels.
    """

    def __init__(self, config: ClipConfig, rng: CounterRng, times: np.ndarray, size: int) -> None:
        self.config, self.rng, self.times, self.size = config, rng, times, size
        velocity = config.camera * rng("camera speed") * np.exp(1j * rng("camera angle", 0, 2 * np.pi))
        self.camera_offset = velocity[:, None] * times  # (B, T), pixels


class Sprite:
    """One random sprite per clip and its motion.

    Args:
        world: the clips.
        name: begins the names of the sprite's draws.
        program: its motion, index into PROGRAMS, (B,).
        family: its appearance, index into FAMILIES, (B,).
        scale: its mean radius over that of a target.
        coloured: whether it has a hue; otherwise it is grey.
    """

    def __init__(
        self,
        world: World,
        name: str,
        program: np.ndarray,
        family: np.ndarray,
        *,
        scale: float = 1.0,
        coloured: bool = True,
    ) -> None:
        config, rng = world.config, world.rng
        self.name, self.size, self.program, self.family = name, world.size, program, family
        self.radius = config.size * (config.extent * scale) * rng(f"{name} radius", MIN_RADIUS, MAX_RADIUS)
        self.hue = rng(f"{name} hue") if coloured else None
        self.phase = np.stack([rng(f"{name} phase {k}", 0, 2 * np.pi) for k in range(3)], 1)
        self.centre = world.size * (rng(f"{name} x") + 1j * rng(f"{name} y"))
        self.angle = rng(f"{name} angle", 0, 2 * np.pi)
        speed = config.amplitude * rng(f"{name} speed", 0.75, 1.25)
        self.offset, self.turn, self.log_scale = self._motion(world.times, rng, speed[:, None])
        # Sprite to frame coordinates: z -> rotation_scale * z + position, which wraps around.
        self.rotation_scale = self.radius[:, None] * np.exp(self.log_scale + 1j * (self.angle[:, None] + self.turn))
        self.position = self.centre[:, None] + self.offset + world.camera_offset

    def _motion(self, t: np.ndarray, rng: CounterRng, speed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns offset (complex, px), turn (rad) and log scale, each (B, T), relative to the background."""
        name = self.name
        sign = np.where(rng(f"{name} sign") < 0.5, -1.0, 1.0)[:, None]
        heading = np.exp(1j * rng(f"{name} heading", -MAX_HEADING, MAX_HEADING))[:, None]
        start_phase = rng(f"{name} beat", 0, 2 * np.pi)[:, None]
        distance = speed * t
        # √2 gives an oscillation the mean square speed of a uniform motion.
        oscillation = np.sqrt(2) * speed * PERIOD / (2 * np.pi) * np.sin(2 * np.pi * t / PERIOD + start_phase)
        frames_per_radian = 1.5 * PERIOD / (2 * np.pi)
        orbit = speed * frames_per_radian * np.exp(1j * (t / frames_per_radian + start_phase))
        # The outline moves at `speed` when turning, at speed / 2 when growing, by at most a factor of 2 over a clip.
        turn = distance / self.radius[:, None]
        growth = t * np.minimum(speed / (2 * self.radius[:, None]), np.log(2) / (t.shape[1] - 1))

        def has(program: str) -> np.ndarray:
            return (self.program == PROGRAMS.index(program))[:, None]

        drift, dash = (RELATIVE_SPEEDS[program] * has(program) for program in ("drift", "dash"))
        offset = distance * heading * (has("right") * 1.0 - has("left"))
        offset = offset + 1j * sign * distance * heading * (drift + dash)
        offset = offset + orbit * has("orbit") + orbit.conj() * has("counterorbit")
        offset = offset + oscillation * has("sway") + 1j * oscillation * has("bob")
        # y points down, so that a growing angle turns clockwise on the screen.
        oscillation = oscillation / self.radius[:, None]
        turn = turn * (has("clockwise") * 1.0 - has("counterclockwise")) + oscillation * has("rock")
        # The amplitude is scaled, not clipped, to keep a pulse within a factor of √2 and sinusoidal.
        max_log_scale = np.sqrt(2) * speed * PERIOD / (2 * np.pi) / (2 * self.radius[:, None])
        pulse = oscillation / 2 * np.minimum(1, np.log(2) / 2 / np.maximum(max_log_scale, 1e-9))
        return offset, turn, growth * (has("expand") * 1.0 - has("contract")) + pulse * has("pulse")

    def pose(self) -> np.ndarray:
        """Returns x, y, radius (px) and angle (rad) in each frame, (B, T, 4)."""
        x, y = self.position.real % self.size, self.position.imag % self.size
        return np.stack([x, y, np.abs(self.rotation_scale), np.angle(self.rotation_scale)], -1)

    def move_to(self, position: np.ndarray, frame: int) -> None:
        """Shifts the sprite's path so that it is at `position`, complex (B,), in a frame."""
        self.position = self.position + (position - self.position[:, frame])[:, None]


def draw_target(
    world: World, label: np.ndarray, rho: float, name: str = "target", *, family_prefix: str = ""
) -> Sprite:
    """Draws a coloured sprite of the class of each clip.

    Args:
        world: the clips.
        label: int64 (B,).
        rho: probability that a sprite of a motion class has the family of its class; otherwise it is random.
        name: begins the names of the sprite's draws.
        family_prefix: begins the names of the draws of its family.
    """
    rng = world.rng
    program = np.array([PROGRAMS.index(c.program) for c in CLASSES])[label]
    class_family = np.array([FAMILIES.index(c.family) for c in CLASSES])[label]
    is_appearance = np.array([c.group == "appearance" for c in CLASSES])[label]
    keeps_family = is_appearance | (rng(f"{family_prefix}keeps its own family") < rho)
    family = np.where(keeps_family, class_family, rng.integer(f"{family_prefix}family", len(FAMILIES)))
    return Sprite(world, name, program, family)


def draw_distractor(world: World) -> Sprite:
    """Draws a small grey sprite with a random motion and appearance for each clip."""
    program = world.rng.integer("distractor program", len(PROGRAMS))
    family = world.rng.integer("distractor family", len(FAMILIES))
    return Sprite(world, "distractor", program, family, scale=DISTRACTOR_SCALE, coloured=False)


def describe(label: np.ndarray, sprite: Sprite) -> dict[str, np.ndarray]:
    """Returns columns of a table: label, class and group of each clip, and motion and appearance of its sprite."""
    return {
        "label": label,
        "class": np.array([c.name for c in CLASSES])[label],
        "group": np.array([c.group for c in CLASSES])[label],
        "program": np.array(PROGRAMS)[sprite.program],
        "family": np.array(FAMILIES)[sprite.family],
        "shape": np.array(FAMILY_SHAPES)[sprite.family],
        "texture": np.array(FAMILY_TEXTURES)[sprite.family],
        "hue": sprite.hue,
        "radius": sprite.radius,
    }
