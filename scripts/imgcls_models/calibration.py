"""The images on which the ranges of 8-bit activations are measured.

The choice of images hardly matters, as long as they reach the usual range of each activation. A few free photographs
are enough, whole and in seeded crops and reflections.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from . import photographs
from .preprocess import Preprocess

SEED = 20120930
PHOTOGRAPHS = (
    *[photographs.ASTRONAUT, photographs.CHELSEA, photographs.COFFEE, photographs.ROCKET] * 3,
    *photographs.ALL[4:],
)
CROPS_EACH = 3
LARGEST_NATIVE = 320


def tensors(preprocess: Preprocess) -> list[np.ndarray]:
    """The inputs for calibration, each a batch of one. They are the same in every run."""
    found = images()
    if preprocess.crop is None:
        for image in found:
            image.thumbnail((LARGEST_NATIVE, LARGEST_NATIVE), Image.Resampling.BICUBIC)
    return [preprocess.tensor(image)[None] for image in found]


def images() -> list[Image.Image]:
    """The photographs, whole and in crops. They are the same in every run."""
    random = np.random.default_rng(SEED)
    whole = [photograph.open() for photograph in photographs.ALL]
    return whole + [_random_crop(photograph.open(), random) for photograph in PHOTOGRAPHS for _ in range(CROPS_EACH)]


def _random_crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A random rectangle of 35 to 100 % of each side, mirrored with a probability of one half."""
    width, height = (round(extent * random.uniform(0.35, 1.0)) for extent in image.size)
    left = int(random.integers(image.width - width + 1))
    top = int(random.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if random.random() < 0.5 else crop
