"""The reference pipeline from an encoded image to the model's input. The Rust code must agree with it.

Decoding (`decode`):
    1. the first frame of an animation; EXIF orientation applied;
    2. 16-bit samples keep their high byte;
    3. CMYK becomes RGB as (255 - C) * (255 - K) / 255. JPEGs store CMYK inverted, so there it is c * k / 255 of
       the stored values, as in Pillow, with and without the Adobe marker. No colour profile is applied; grey is copied
       to all three channels;
    4. transparency is blended over white.

Sizes, for `resize = "short-side"` (`resized_size`, `crop_offset`; the same as torchvision's):
    short side := short_side, long side := floor(short_side * long / short);
    offset of the crop := (extent - crop) / 2, a half rounded to the even neighbour.

Resampling is Pillow's: cubic convolution with a = -0.5, widened by the scale when shrinking (antialiased), rounded
and clipped to 8 bits after each of its two passes. Only the pixels of the crop are computed, so an image of
1 x 3000 costs no more than another. Compared with resizing the whole image and then cropping, hardly any pixel differs
by more than one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Preprocess:
    """The `[input]` table of `model.toml`. Without a `crop` an image keeps its size."""

    mean: float
    std: float
    short_side: int | None = None
    crop: int | None = None

    @classmethod
    def efficientnet_lite(cls, size: int) -> Preprocess:
        """Short side to size + 32, centre crop, values from -1 to 1."""
        return cls(mean=127.0, std=128.0, short_side=size + 32, crop=size)

    @classmethod
    def native(cls) -> Preprocess:
        """The image at its own size, values from 0 to 1."""
        return cls(mean=0.0, std=255.0)

    def tensor(self, image: Image.Image) -> np.ndarray:
        """The model's input for one image: float32, channels first, without the batch axis."""
        if self.short_side and self.crop:
            image = resize_and_crop(image, self.short_side, self.crop)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
        return np.ascontiguousarray((pixels - np.float32(self.mean)) / np.float32(self.std))


def decode(path: Path) -> Image.Image:
    """Decodes an image to upright 8-bit RGB."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, WHITE), over)
    return image.convert("RGB")


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height after the short side is resized to `short_side`."""
    if width <= height:
        return short_side, short_side * height // width
    return short_side * width // height, short_side


def crop_offset(extent: int, crop: int) -> int:
    """The offset of the centre crop. Python rounds halves to even."""
    return round((extent - crop) / 2)


def resize_and_crop(image: Image.Image, short_side: int, crop: int) -> Image.Image:
    """Resizes the short side and crops the centre, without computing pixels outside it."""
    width, height = resized_size(*image.size, short_side)
    left, top = crop_offset(width, crop), crop_offset(height, crop)
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + crop) * across, (top + crop) * down)
    return image.resize((crop, crop), Image.Resampling.BICUBIC, box=box)
