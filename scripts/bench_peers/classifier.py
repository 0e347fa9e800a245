"""The classifier of every peer: the same ONNX file and preprocessing, as a careful Python engineer writes it.

Pillow decodes; large JPEGs are scaled inside the decoder (`draft`), never below what the resize needs, and only the
pixels of the crop are computed. Each process has one session with one thread. The answer has those members of imgcls's
result objects that the load generator reads.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

# As in models/efficientnet-lite0/model.toml. The crop is the size of the model's input.
MARGIN = 32
MEAN = 127.0
STD = 128.0
TOP_K = 5


class Classifier:
    """A session and its labels; one in each process."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        model = os.environ["IMGCLS_BENCH_MODEL"]
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        takes_pixels = self.session.get_inputs()[0].type == "tensor(uint8)"
        self.prepare = pixels if takes_pixels else tensor
        self.crop = self.session.get_inputs()[0].shape[1 if takes_pixels else 2]
        lines = Path(os.environ["IMGCLS_BENCH_LABELS"]).read_text(encoding="utf-8").splitlines()
        self.labels = [line.split(maxsplit=1)[1] for line in lines]
        blank = Image.new("RGB", (self.crop, self.crop))
        content = io.BytesIO()
        blank.save(content, "PNG")
        self(content.getvalue())

    def __call__(self, content: bytes) -> dict:
        """Returns the best classes of an image file."""
        scores = softmax(self.session.run(None, {self.input: self.prepare(content, self.crop)})[0][0])
        best = np.argpartition(scores, -TOP_K)[-TOP_K:]
        best = best[np.argsort(-scores[best])]
        predictions = [
            {"class_index": int(index), "label": self.labels[index], "score": float(scores[index])} for index in best
        ]
        return {"status": "succeeded", "predictions": predictions}


def tensor(content: bytes, crop: int) -> np.ndarray:
    """The input of a model that takes floats, with its batch axis."""
    values = np.asarray(cropped(content, crop), np.float32)
    return np.ascontiguousarray(((values - MEAN) / STD).transpose(2, 0, 1)[None])


def pixels(content: bytes, crop: int) -> np.ndarray:
    """The input of a model that takes pixels (red, green, blue and an unused byte), with its batch axis."""
    return np.asarray(cropped(content, crop).convert("RGBX"))[None]


def cropped(content: bytes, crop: int) -> Image.Image:
    """The part of an image that the model sees."""
    image = Image.open(io.BytesIO(content))
    # Decodes a JPEG at 1/2, 1/4 or 1/8 of its size, but never smaller than requested. Other formats ignore this.
    image.draft("RGB", resized_size(*image.size, crop + MARGIN))
    image = ImageOps.exif_transpose(image).convert("RGB")
    width, height = resized_size(*image.size, crop + MARGIN)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + crop) * across, (top + crop) * down)
    return image.resize((crop, crop), Image.Resampling.BICUBIC, box=box)


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height after the short side is resized."""
    if width <= height:
        return short_side, short_side * height // width
    return short_side * width // height, short_side


def softmax(logits: np.ndarray) -> np.ndarray:
    """The probabilities for logits."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
