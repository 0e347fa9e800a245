"""The input of a model as the `[input]` table of its `model.toml` describes it, computed with Pillow and numpy.

It is used to calibrate models that are not ours, so a filter that Pillow does not have is replaced by a similar one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .preprocess import crop_offset, resized_size

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "opencv-bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class DescriptionError(Exception):
    """`model.toml` describes something that this script cannot compute."""


@dataclass(frozen=True)
class DescribedInput:
    """The table, with the defaults of absent keys."""

    table: Mapping[str, Any]

    def tensor(self, image: Image.Image) -> np.ndarray:
        """The input for one upright RGB image, without the batch axis."""
        pixels = np.asarray(self._cropped(self._resized(image)), np.float32)
        if self.table.get("channels", "RGB").upper() == "BGR":
            pixels = pixels[..., ::-1]
        scaled = pixels * np.float32(self.table.get("rescale", 1.0))
        mean, std = (np.asarray(self.table.get(key, default), np.float32) for key, default in (("mean", 0), ("std", 1)))
        values = (scaled - mean) / std
        if self.table.get("layout", "NCHW").upper() == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, np.float32)

    def _resized(self, image: Image.Image) -> Image.Image:
        filter_ = FILTERS.get(self.table.get("filter", "bicubic"))
        if filter_ is None:
            raise DescriptionError(f"filter {self.table['filter']!r} is unknown")
        size = self.table.get("size", self.table.get("short_side"))
        match self.table["resize"]:
            case "none":
                return image
            case "shortest-edge" | "short-side":
                return image.resize(resized_size(*image.size, size), filter_)
            case "squash":
                height, width = _pair(size)
                return image.resize((width, height), filter_)
            case "letterbox":
                height, width = _pair(size)
                centering = (0.0, 0.0) if self.table.get("position") == "top-left" else (0.5, 0.5)
                fill = tuple(round(value) for value in self.table.get("fill", (0, 0, 0)))
                return ImageOps.pad(image, (width, height), filter_, fill, centering)
        raise DescriptionError(f"resize {self.table['resize']!r} is unknown")

    def _cropped(self, image: Image.Image) -> Image.Image:
        if "crop" not in self.table:
            return image
        height, width = _pair(self.table["crop"])
        left, top = crop_offset(image.width, width), crop_offset(image.height, height)
        # Pillow fills the part of the box that lies outside the image with zeros, as torchvision does.
        return image.crop((left, top, left + width, top + height))


def _pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that may be one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
