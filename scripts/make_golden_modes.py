"""Writes tests/golden/modes: what Pillow, torchvision's arithmetic and OpenCV make of an image, for each way to resize.

    scripts/in-export-env scripts/make_golden_modes.py

`modes.json` has a line for each case: the image, the keys of `[input]` in `model.toml`, and the expected pixels, a PNG.
`tensors.json` has the values after normalisation of one small case, in each layout, channel order and type.

- Pillow's filters: `Image.resize` of the whole image, then the crop.
- Sizes and crops: the documented arithmetic of `torchvision.transforms.functional`, `resize` and `center_crop`.
- Cover: `ImageOps.fit` of Pillow.
- OpenCV's bilinear: `cv2.resize` with INTER_LINEAR.
- Letterbox: the arithmetic of ultralytics, and of text recognition networks, which round up.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from imgcls_models.preprocess import decode

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "modes"
IMAGES = ROOT / "tests" / "pictures"
OPENCV = "opencv-bilinear"
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    OPENCV: None,
}
SMALL = "small.png"
Keys = dict[str, Any]


def main() -> None:
    """Writes all cases."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    # A small image for the enlarging cases: the eye of the cat, in a size that divides nothing.
    decode(IMAGES / "cat.jpg").crop((100, 40, 137, 63)).save(GOLDEN / SMALL, optimize=True)
    lines = [json.dumps(write(number, *case), separators=(",", ":")) for number, case in enumerate(cases(), 1)]
    (GOLDEN / "modes.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    (GOLDEN / "tensors.json").write_text(json.dumps(tensors(), separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"make_golden_modes: wrote {len(lines)} cases to {GOLDEN.relative_to(ROOT)}")


def cases() -> list[tuple[str, Keys]]:
    """Pairs of an image and the keys of `[input]`."""
    found: list[tuple[str, Keys]] = []
    for name in FILTERS:
        found += [
            ("rgb.png", {"resize": "shortest-edge", "size": 64, "filter": name, "crop": 56}),
            ("rgb.png", {"resize": "squash", "size": [48, 40], "filter": name}),
            ("rgb.png", {"resize": "letterbox", "size": 55, "filter": name, "fill": [114, 114, 114]}),
            (SMALL, {"resize": "squash", "size": [50, 61], "filter": name}),
            ("grey-alpha.png", {"resize": "shortest-edge", "size": 45, "filter": name, "crop": [40, 51]}),
            ("orientation-6.jpg", {"resize": "squash", "size": [60, 40], "filter": name}),
            ("orientation-7.jpg", {"resize": "shortest-edge", "size": 43, "filter": name, "crop": 40}),
        ]
    fill = {"fill": [10, 200, 60]}
    return [
        *found,
        ("rgb.png", {"resize": "shortest-edge", "size": 33, "filter": "bilinear"}),
        ("rgb.png", {"resize": "shortest-edge", "size": 30, "filter": "bilinear", "crop": [41, 36]}),
        ("rgb.png", {"resize": "squash", "size": 48, "filter": "bicubic", "crop": [40, 33]}),
        ("rgb.png", {"resize": "letterbox", "size": [20, 60], "filter": OPENCV, "position": "top-left", **fill}),
        ("rgb.png", {"resize": "letterbox", "size": [61, 40], "filter": OPENCV, "rounding": "up", **fill}),
        ("rgb.png", {"resize": "letterbox", "size": [61, 40], "filter": "bilinear", "rounding": "down", **fill}),
        ("grey.jpg", {"resize": "letterbox", "size": 40, "filter": "bilinear", **fill}),
        ("orientation-8.jpg", {"resize": "letterbox", "size": 40, "filter": "bicubic", **fill}),
        ("one-by-3000.png", {"resize": "shortest-edge", "size": 40, "filter": "bilinear", "crop": 32}),
        ("one-by-3000.png", {"resize": "letterbox", "size": 40, "filter": OPENCV, **fill}),
        (SMALL, {"resize": "none", "crop": [20, 30]}),
        (SMALL, {"resize": "none", "crop": [40, 30]}),
        (SMALL, {"resize": "none"}),
        ("rgb.png", {"resize": "cover", "size": [40, 60], "filter": "lanczos"}),
        ("rgb.png", {"resize": "cover", "size": 45, "filter": "nearest"}),
        (SMALL, {"resize": "cover", "size": [50, 20], "filter": "bicubic"}),
        ("one-by-3000.png", {"resize": "cover", "size": [20, 30], "filter": "bilinear"}),
        ("orientation-6.jpg", {"resize": "cover", "size": [30, 50], "filter": "lanczos"}),
    ]


def write(number: int, source: str, keys: Keys) -> Keys:
    """Writes the expected pixels of a case. Returns its line."""
    path = (GOLDEN if source == SMALL else IMAGES) / source
    pixels = prepared(np.asarray(decode(path)), keys)
    expected = f"{number:02}-{keys['resize']}-{keys.get('filter', 'none')}.png"
    Image.fromarray(pixels).save(GOLDEN / expected, optimize=True)
    return {"image": str(path.relative_to(ROOT)), "input": keys, "expected": expected}


def prepared(image: np.ndarray, keys: Keys) -> np.ndarray:
    """The pixels of the model's input, before normalisation."""
    height, width = image.shape[:2]
    match keys["resize"]:
        case "none":
            resized = image
        case "shortest-edge":
            resized = resize(image, shortest_edge(width, height, keys["size"]), keys["filter"])
        case "squash":
            target_height, target_width = both(keys["size"])
            resized = resize(image, (target_width, target_height), keys["filter"])
        case "cover":
            target_height, target_width = both(keys["size"])
            fitted = ImageOps.fit(Image.fromarray(image), (target_width, target_height), FILTERS[keys["filter"]])
            resized = np.asarray(fitted)
        case _:
            resized = letterbox(image, keys)
    return center_crop(resized, both(keys["crop"])) if "crop" in keys else resized


def both(size: int | list[int]) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def resize(image: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """Resizes to width and height."""
    if name == OPENCV:
        return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return np.asarray(Image.fromarray(image).resize(size, FILTERS[name]))


def shortest_edge(width: int, height: int, size: int) -> tuple[int, int]:
    """`_compute_resized_output_size` of torchvision."""
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(size * long / short)
    return (size, new_long) if width <= height else (new_long, size)


def center_crop(image: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """`center_crop` of torchvision, with its padding by zeros."""
    crop_height, crop_width = crop
    height, width = image.shape[:2]
    if crop_width > width or crop_height > height:
        across, down = max(crop_width - width, 0), max(crop_height - height, 0)
        padding = ((down // 2, (down + 1) // 2), (across // 2, (across + 1) // 2), (0, 0))
        image = np.pad(image, padding)
        height, width = image.shape[:2]
    top = round((height - crop_height) / 2.0)
    left = round((width - crop_width) / 2.0)
    return image[top : top + crop_height, left : left + crop_width]


def letterbox(image: np.ndarray, keys: Keys) -> np.ndarray:
    """The letterbox of ultralytics, and its variants."""
    target_height, target_width = both(keys["size"])
    height, width = image.shape[:2]
    scale = min(target_height / height, target_width / width)
    whole = {"half-even": round, "up": math.ceil, "down": math.floor}[keys.get("rounding", "half-even")]
    new_width, new_height = max(whole(width * scale), 1), max(whole(height * scale), 1)
    resized = resize(image, (new_width, new_height), keys["filter"])
    across, down = (target_width - new_width) / 2, (target_height - new_height) / 2
    top, left = round(down - 0.1), round(across - 0.1)
    if keys.get("position") == "top-left":
        top, left = 0, 0
    canvas = np.empty((target_height, target_width, 3), np.uint8)
    canvas[:] = keys["fill"]
    canvas[top : top + new_height, left : left + new_width] = resized
    return canvas


def tensors() -> Keys:
    """One small image, resized and normalised in all forms."""
    keys: Keys = {"resize": "squash", "size": [5, 4], "filter": "bilinear"}
    pixels = prepared(np.asarray(decode(GOLDEN / SMALL)), keys)
    rescale, mean, std = 1 / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    found = []
    for channels in ("RGB", "BGR"):
        ordered = pixels if channels == "RGB" else pixels[..., ::-1]
        # As ToTensor and Normalize of torchvision, in float32.
        normalised = (ordered.astype(np.float32) * np.float32(rescale) - np.float32(mean)) / np.float32(std)
        for layout in ("NCHW", "NHWC"):
            for kind in ("float32", "float16", "uint8"):
                values = ordered if kind == "uint8" else normalised.astype(kind)
                values = values.transpose(2, 0, 1) if layout == "NCHW" else values
                flat = [round(float(value), 5) for value in values.ravel()]
                found.append({"type": kind, "layout": layout, "channels": channels, "values": flat})
    image = str((GOLDEN / SMALL).relative_to(ROOT))
    return {"image": image, "input": {**keys, "rescale": rescale, "mean": mean, "std": std}, "tensors": found}


if __name__ == "__main__":
    main()
