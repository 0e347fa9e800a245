"""Free photographs for calibration, tests and samples, from the scikit-image wheel.

The docstring of each one in skimage/data/_fetchers.py states that it is CC0 or in the public domain. Images of that
wheel whose docstring states nothing, or only "no known restrictions", are not used.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from .registry import SCIKIT_IMAGE


@dataclass(frozen=True)
class Photograph:
    """An image of the wheel, and the licence that its docstring states."""

    member: str
    shows: str
    licence: str

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return self.member.rsplit("/", 1)[-1].split(".")[0]

    def encoded(self) -> bytes:
        """The encoded file in the wheel."""
        return SCIKIT_IMAGE.read(self.member)

    def open(self) -> Image.Image:
        """The decoded image in RGB."""
        return Image.open(io.BytesIO(self.encoded())).convert("RGB")


ASTRONAUT = Photograph("skimage/data/astronaut.png", "the astronaut Eileen Collins (NASA)", "public domain")
CHELSEA = Photograph("skimage/data/chelsea.png", "Chelsea the cat (Stefan van der Walt)", "CC0")
COFFEE = Photograph("skimage/data/coffee.png", "a cup of coffee (Rachel Michetti)", "CC0")
ROCKET = Photograph("skimage/data/rocket.jpg", "a Falcon 9 at launch (SpaceX)", "public domain")
CAMERA = Photograph("skimage/data/camera.png", "a man at a camera, grey (Lav Varshney)", "CC0")
CLOCK = Photograph("skimage/data/clock_motion.png", "a moving wall clock, grey (Stefan van der Walt)", "public domain")
HUBBLE = Photograph("skimage/data/hubble_deep_field.jpg", "the Hubble eXtreme Deep Field (NASA)", "public domain")
RETINA = Photograph("skimage/data/retina.jpg", "a human retina (Mikael Häggström)", "CC0")
BRICK = Photograph("skimage/data/brick.png", "a brick wall, grey (CC0Textures)", "CC0")
GRASS = Photograph("skimage/data/grass.png", "grass, grey (linolafett)", "CC0")
GRAVEL = Photograph("skimage/data/gravel.png", "gravel, grey (CC0Textures)", "CC0")

ALL = (ASTRONAUT, CHELSEA, COFFEE, ROCKET, CAMERA, CLOCK, HUBBLE, RETINA, BRICK, GRASS, GRAVEL)
