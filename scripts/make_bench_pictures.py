"""Makes the picture sets of scripts/bench out of the samples that imgcls carries.

    scripts/in-export-env scripts/make_bench_pictures.py FOLDER

FOLDER/64x64, 500x375, 1080p and 12mp. The samples are small: a large picture is a sheet of crops of them, each at most
twice enlarged. Noise as a camera's gives a file about the bytes a pixel of a photograph, which is what decoding costs.
Seeded: with the pinned Pillow and numpy two runs write the same bytes.
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
# Samples of one colour channel and few details are left out: photographs are wanted.
NAMES = ("astronaut", "chelsea", "coffee", "rocket")


@dataclass(frozen=True)
class PictureSet:
    """So many pictures of one size, each a sheet of tiles."""

    name: str
    width: int
    height: int
    count: int
    tiles: int
    quality: int


SETS = (
    PictureSet("64x64", 64, 64, count=12, tiles=1, quality=85),
    PictureSet("500x375", 500, 375, count=12, tiles=1, quality=94),
    PictureSet("1080p", 1920, 1080, count=6, tiles=3, quality=88),
    PictureSet("12mp", 4000, 3000, count=4, tiles=5, quality=88),
)


def main() -> None:
    """Writes every set anew."""
    folder = Path(sys.argv[1])
    sources = [Image.open(SAMPLES / f"{name}.jpg").convert("RGB") for name in NAMES]
    for number, of in enumerate(SETS):
        place = folder / of.name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        sizes = []
        for index in range(of.count):
            content = picture(of, sources, np.random.default_rng([SEED, number, index]), index)
            (place / f"{index:02}.jpg").write_bytes(content)
            sizes.append(len(content))
        print(f"{of.name}: {of.count} pictures, {sum(sizes) / len(sizes) / 1000:.0f} KB each", file=sys.stderr)


def picture(of: PictureSet, sources: list[Image.Image], random: np.random.Generator, index: int) -> bytes:
    """A JPEG."""
    sheet = Image.new("RGB", (of.width, of.height))
    edges = [(np.linspace(0, extent, of.tiles + 1)).astype(int) for extent in (of.width, of.height)]
    for row in range(of.tiles):
        for column in range(of.tiles):
            source = sources[(index + row * of.tiles + column) % len(sources)]
            left, right = edges[0][column : column + 2]
            top, bottom = edges[1][row : row + 2]
            sheet.paste(crop(source, (int(right - left), int(bottom - top)), random), (int(left), int(top)))
    pixels = np.asarray(sheet, np.float32)
    noisy = pixels + random.normal(0, NOISE, (*pixels.shape[:2], 1)).astype(np.float32)
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=of.quality, subsampling="4:2:0")
    return buffer.getvalue()


def crop(source: Image.Image, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Nearly the whole of a sample in another shape, mirrored or not."""
    cut = random.uniform(0.0, 0.08, 4) * [source.width, source.height, source.width, source.height]
    box = (cut[0], cut[1], source.width - cut[2], source.height - cut[3])
    shaped = ImageOps.fit(source.crop(tuple(map(int, box))), size, Image.Resampling.BICUBIC)
    return ImageOps.mirror(shaped) if random.integers(2) else shaped


if __name__ == "__main__":
    main()
