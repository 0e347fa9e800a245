"""Creates the image sets of scripts/bench from the samples in the imgcls binary.

    scripts/in-export-env scripts/make_bench_pictures.py FOLDER

It writes FOLDER/64x64, 500x375, 1080p and 12mp. The samples are small, so a large image is a mosaic of crops of them,
each enlarged at most twice. Noise like that of a camera gives a file about as many bytes per pixel as a photograph has,
which determines the cost of decoding. The generator is seeded: with the pinned Pillow and numpy two runs write the same
bytes.
"""

from __future__ import annotations

import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SAMPLES = Path(__file__).resolve().parents[1] / "src" / "loadgen" / "samples"
SEED = 5
NOISE = 5.0
# Grey samples and those with few details are left out.
NAMES = ("astronaut", "chelsea", "coffee", "rocket")


@dataclass(frozen=True)
class ImageSet:
    """A number of images of one size, each a mosaic of tiles."""

    name: str
    width: int
    height: int
    count: int
    tiles: int
    quality: int


SETS = (
    ImageSet("64x64", 64, 64, count=12, tiles=1, quality=85),
    ImageSet("500x375", 500, 375, count=12, tiles=1, quality=94),
    ImageSet("1080p", 1920, 1080, count=6, tiles=3, quality=88),
    ImageSet("12mp", 4000, 3000, count=4, tiles=5, quality=88),
)


def main() -> None:
    """Writes every set and replaces an earlier one."""
    folder = Path(sys.argv[1])
    sources = [Image.open(SAMPLES / f"{name}.jpg").convert("RGB") for name in NAMES]
    for number, image_set in enumerate(SETS):
        target = folder / image_set.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        sizes = []
        for index in range(image_set.count):
            content = mosaic(image_set, sources, np.random.default_rng([SEED, number, index]), index)
            (target / f"{index:02}.jpg").write_bytes(content)
            sizes.append(len(content))
        kilobytes = sum(sizes) / len(sizes) / 1000
        print(f"{image_set.name}: {image_set.count} images, {kilobytes:.0f} KB each", file=sys.stderr)


def mosaic(image_set: ImageSet, sources: list[Image.Image], random: np.random.Generator, index: int) -> bytes:
    """Encodes one image of a set as a JPEG."""
    sheet = Image.new("RGB", (image_set.width, image_set.height))
    extents = (image_set.width, image_set.height)
    edges = [np.linspace(0, extent, image_set.tiles + 1).astype(int) for extent in extents]
    for row in range(image_set.tiles):
        for column in range(image_set.tiles):
            source = sources[(index + row * image_set.tiles + column) % len(sources)]
            left, right = edges[0][column : column + 2]
            top, bottom = edges[1][row : row + 2]
            sheet.paste(crop(source, (int(right - left), int(bottom - top)), random), (int(left), int(top)))
    pixels = np.asarray(sheet, np.float32)
    noisy = pixels + random.normal(0, NOISE, (*pixels.shape[:2], 1)).astype(np.float32)
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=image_set.quality, subsampling="4:2:0")
    return buffer.getvalue()


def crop(source: Image.Image, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Crops most of a sample to another aspect ratio, and mirrors it at random."""
    cut = random.uniform(0.0, 0.08, 4) * [source.width, source.height, source.width, source.height]
    box = (cut[0], cut[1], source.width - cut[2], source.height - cut[3])
    shaped = ImageOps.fit(source.crop(tuple(map(int, box))), size, Image.Resampling.BICUBIC)
    return ImageOps.mirror(shaped) if random.integers(2) else shaped


if __name__ == "__main__":
    main()
