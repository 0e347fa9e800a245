"""The images that are classified: free photographs from a registry package, whole and in seeded crops.

They are stored as PNG. A large JPEG is decoded at a fraction of its size by the program, which is a documented
difference from every framework, and would hide or cause differences that have nothing to do with the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from imgcls_models import photographs

SEED = 19
LARGEST_SIDE = 700
SMALLEST_SHARE = 0.5
SMALLEST_SIDE = 300
"""No crop is enlarged: an enlarged one has so little detail that a step of one in some pixels changes its scores."""
EXTENSIONS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def in_folder(folder: Path) -> list[Path]:
    """The images of a folder of the user, in the order of their names."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise FileNotFoundError(f"{folder} contains no images ({', '.join(sorted(EXTENSIONS))})")
    return found


def free(folder: Path, count: int) -> list[Path]:
    """Writes the default images into the folder, the same ones in every run."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(SEED)
    originals = [(photograph.stem, photograph.open()) for photograph in photographs.ALL]
    paths = []
    for index in range(count):
        stem, image = originals[index % len(originals)]
        if index >= len(originals):
            image = _crop(image, random)
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BICUBIC)
        path = folder / f"{index:03}-{stem}.png"
        image.save(path)
        paths.append(path)
    return paths


def _crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    shares = [min(max(SMALLEST_SHARE, SMALLEST_SIDE / extent), 1.0) for extent in image.size]
    width, height = (
        round(extent * random.uniform(share, 1.0)) for extent, share in zip(image.size, shares, strict=True)
    )
    left = int(random.integers(image.width - width + 1))
    top = int(random.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))
