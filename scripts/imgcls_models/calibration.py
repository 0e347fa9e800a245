"""The pictures on which the ranges of 8-bit activations are measured.

Which pictures these are hardly matters: they only have to reach the usual range of each activation. A few free
photographs, whole and in seeded crops and reflections, do.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from . import pictures
from .preprocess import Preprocess

SEED = 20120930
PHOTOGRAPHS = (*[pictures.ASTRONAUT, pictures.CHELSEA, pictures.COFFEE, pictures.ROCKET] * 3, *pictures.ALL[4:])
CROPS_EACH = 3
LARGEST_NATIVE = 320


def tensors(preprocess: Preprocess) -> list[np.ndarray]:
    """Inputs for calibration, each a batch of one, the same ones in every run."""
    random = np.random.default_rng(SEED)
    whole = [photograph.open() for photograph in pictures.ALL]
    crops = [_random_crop(photograph.open(), random) for photograph in PHOTOGRAPHS for _ in range(CROPS_EACH)]
    images = whole + crops
    if preprocess.crop is None:
        for image in images:
            image.thumbnail((LARGEST_NATIVE, LARGEST_NATIVE), Image.Resampling.BICUBIC)
    return [preprocess.tensor(image)[None] for image in images]


def _random_crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A rectangle of 35 to 100 % of each side, mirrored half of the time."""
    width, height = (round(extent * random.uniform(0.35, 1.0)) for extent in image.size)
    left = int(random.integers(image.width - width + 1))
    top = int(random.integers(image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if random.random() < 0.5 else crop
