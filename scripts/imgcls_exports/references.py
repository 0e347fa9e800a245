"""What each framework computes from an upright RGB image before the network, as its documentation describes it.

Each function returns a function from an image to float32 values, channels last, in the range and channel order that the
exported network takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageOps

Reference = Callable[[Image.Image], np.ndarray]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NEAREST = Image.Resampling.NEAREST
BILINEAR = Image.Resampling.BILINEAR
BICUBIC = Image.Resampling.BICUBIC
LANCZOS = Image.Resampling.LANCZOS


def hugging_face_squash(height: int, width: int, filter_: Image.Resampling, mean: float, std: float) -> Reference:
    """`ViTImageProcessor`: `size` of height and width, whatever the shape of the image."""

    def reference(image: Image.Image) -> np.ndarray:
        return _normalised(image.resize((width, height), filter_), (mean,) * 3, (std,) * 3)

    return reference


def hugging_face_shortest_edge(edge: int, crop: int, filter_: Image.Resampling) -> Reference:
    """`MobileNetV2ImageProcessor`: `size` of a shortest edge, then `crop_size`."""
    return torchvision(edge, crop, filter_, (0.5,) * 3, (0.5,) * 3)


def hugging_face_convnext(edge: int, crop_pct: float, filter_: Image.Resampling) -> Reference:
    """`ConvNextImageProcessor`: below 384 the shortest edge becomes edge / crop_pct, and the edge is cropped."""
    if edge >= 384:
        return hugging_face_squash(edge, edge, filter_, 0.5, 0.5)
    return torchvision(int(edge / crop_pct), edge, filter_)


def timm(size: int, crop_pct: float, crop_mode: str, filter_: Image.Resampling) -> Reference:
    """`create_transform` for evaluation: resize to size / crop_pct, then crop the centre."""
    scaled = math.floor(size / crop_pct)
    if crop_mode == "center":
        return torchvision(scaled, size, filter_)
    if crop_mode == "squash":

        def reference(image: Image.Image) -> np.ndarray:
            return _normalised(_centre_crop(image.resize((scaled, scaled), filter_), size), IMAGENET_MEAN, IMAGENET_STD)

        return reference
    raise ValueError(f"crop_mode {crop_mode!r}")


def torchvision(
    resize: int,
    crop: int,
    filter_: Image.Resampling,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Reference:
    """`ImageClassification` of the weights: Resize (of the shorter edge), CenterCrop, scale to 0..1, normalise."""

    def reference(image: Image.Image) -> np.ndarray:
        return _normalised(_centre_crop(_resize_short_edge(image, resize, filter_), crop), mean, std)

    return reference


def ultralytics(size: int) -> Reference:
    """`classify_transforms`: the shorter edge to the size, bilinear; the centre; values from 0 to 1."""
    return torchvision(size, size, BILINEAR, (0.0,) * 3, (1.0,) * 3)


def teachable_machine(size: int) -> Reference:
    """The script that Teachable Machine exports with a Keras model: `ImageOps.fit` with Lanczos, then x / 127.5 - 1."""

    def reference(image: Image.Image) -> np.ndarray:
        fitted = ImageOps.fit(image, (size, size), LANCZOS)
        return np.asarray(fitted, np.float32) / np.float32(127.5) - np.float32(1)

    return reference


def keras_caffe(size: int) -> Reference:
    """`load_img(target_size=…)`, which squashes to the nearest pixel, and `preprocess_input` in the mode `caffe`."""

    def reference(image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image.resize((size, size), NEAREST), np.float32)[..., ::-1]
        return pixels - np.asarray((103.939, 116.779, 123.68), np.float32)

    return reference


def open_nsfw(image: Image.Image) -> np.ndarray:
    """256 × 256, bilinear; the centre of 224 × 224; BGR minus the mean of Caffe's ImageNet.

    This is `preprocess(jpeg_reencode=False)` of the wheel. Its default compresses the pixels as JPEG and decodes them
    again, to repeat an accident of the first implementation.
    """
    pixels = np.asarray(_centre_crop(image.resize((256, 256), BILINEAR), 224), np.float32)[..., ::-1]
    return pixels - np.asarray((104, 117, 123), np.float32)


def rapidocr_direction(image: Image.Image) -> np.ndarray:
    """`TextClassifier.resize_norm_img`: 48 high, as wide as that makes it but at most 192, grey to the right of it.

    OpenCV resizes it without antialiasing, in BGR.
    """
    height, width = 48, 192
    wide = min(math.ceil(height * image.width / image.height), width)
    pixels = _opencv_bilinear(np.asarray(image)[..., ::-1], height, wide)
    values = np.zeros((height, width, 3), np.float32)
    values[:, :wide] = (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    return values


def _opencv_bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`cv2.resize` with INTER_LINEAR: two pixels in each direction, whatever the scale; rounded to 8 bits."""
    rows, columns = (_neighbours(*extents) for extents in ((pixels.shape[0], height), (pixels.shape[1], width)))
    values = pixels.astype(np.float64)
    above, below, down = rows
    values = values[above] * (1 - down)[:, None, None] + values[below] * down[:, None, None]
    left, right, across = columns
    values = values[:, left] * (1 - across)[:, None] + values[:, right] * across[:, None]
    return np.rint(values).astype(np.uint8)


def _neighbours(extent: int, resized: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two source pixels of each resized pixel, and the weight of the second one."""
    centres = np.clip((np.arange(resized) + 0.5) * extent / resized - 0.5, 0, extent - 1)
    first = np.floor(centres).astype(np.int64)
    return first, np.minimum(first + 1, extent - 1), centres - first


def _resize_short_edge(image: Image.Image, edge: int, filter_: Image.Resampling) -> Image.Image:
    width, height = image.size
    short, long = sorted(image.size)
    other = int(edge * long / short)
    return image.resize((edge, other) if width <= height else (other, edge), filter_)


def _centre_crop(image: Image.Image, size: int) -> Image.Image:
    """As `center_crop` of torchvision: an image smaller than the crop is padded with zeros first."""
    wider, taller = max(size - image.width, 0), max(size - image.height, 0)
    if wider or taller:
        padded = Image.new("RGB", (image.width + wider, image.height + taller))
        padded.paste(image, (wider // 2, taller // 2))
        image = padded
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    scaled = np.asarray(image, np.float32) / np.float32(255)
    return (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
