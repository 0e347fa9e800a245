"""Writes a model package: the ONNX files, `labels.txt`, and the `model.toml` that names them with their sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from . import calibration, variants
from .pixels import takes_pixels
from .preprocess import Preprocess

REQUIRES = {
    "int8": ("int8-dot-product", "VNNI on x86-64, dot product on aarch64; without it, 8-bit sums can saturate"),
    "int7": ("no-int8-dot-product", "7-bit weights, whose sums do not saturate; int8 is better where it can be used"),
}
"""The value of `requires` of the variants that are not for every CPU, and the comment that explains it."""

RULE = f"\n{'-' * 72}\n\n"


@dataclass(frozen=True)
class Provenance:
    """The sources of weights and names, and the published accuracy."""

    licence: str
    source: str
    labels_source: str
    notices: tuple[str, ...]
    """The licence texts that must accompany the files, written to NOTICE."""
    published_top1: float | None = None
    published_top1_int8: float | None = None


@dataclass(frozen=True)
class File:
    """A model file that was written."""

    path: str
    sha256: str
    takes_pixels: bool


@dataclass(frozen=True)
class Package:
    """A model before it is written."""

    name: str
    version: str
    graph: onnx.ModelProto
    labels: list[str]
    preprocess: Preprocess
    provenance: Provenance

    def write(self, folder: Path, chosen: Iterable[str]) -> None:
        """Writes the folder. `model.toml` is written last, so that it never names a missing file."""
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for variant in chosen:
            model = variants.ALL[variant](self.graph, self._samples, self.preprocess)
            path = f"{self.name}-{variant}.onnx"
            digest = _write(folder / path, model.SerializeToString(deterministic=True))
            files[variant] = File(path, digest, takes_pixels(model))
        labels_digest = _write(folder / "labels.txt", "".join(f"{line}\n" for line in self.labels).encode())
        if self.provenance.notices:
            _write(folder / "NOTICE", RULE.join(self.provenance.notices).encode())
        _write(folder / "model.toml", self._toml(files, labels_digest).encode())

    def _samples(self) -> list[np.ndarray]:
        return calibration.tensors(self.preprocess)

    def _toml(self, files: dict[str, File], labels_digest: str) -> str:
        lines = [
            "# Written by scripts/export_model.py.",
            f"name = {_quoted(self.name)}",
            f"version = {_quoted(self.version)}",
            'task = "image-classification"',
            'labels = "labels.txt"',
            'output = "logits"            # softmax is applied by the program',
        ]
        for variant, file in files.items():
            lines += ["", f"[files.{variant}]", f"path = {_quoted(file.path)}", f"sha256 = {_quoted(file.sha256)}"]
            if file.takes_pixels:
                lines += [
                    'input = { type = "uint8", layout = "NHWC", channels = "RGBX" }   # 0..255; mean and std are in it'
                ]
            if variant in REQUIRES:
                requirement, comment = REQUIRES[variant]
                lines += [f"requires = {_quoted(requirement)}   # {comment}"]
        lines += ["", "[labels_file]", f"sha256 = {_quoted(labels_digest)}"]
        lines += ["", "[input]", *self._input(), "", "[provenance]", *self._provenance()]
        return "".join(f"{line}\n" for line in lines)

    def _input(self) -> list[str]:
        lines = [f"name = {_quoted(self.graph.graph.input[0].name)}", 'layout = "NCHW"', 'channels = "RGB"']
        if self.preprocess.crop is None:
            lines += ['resize = "none"              # native size: height and width are free']
        else:
            lines += [
                'resize = "short-side"        # the long side becomes floor(short_side * long / short)',
                f"short_side = {self.preprocess.short_side}",
                'filter = "bicubic"           # antialiased, as Pillow: a = -0.5, widened by the scale',
                f"crop = {self.preprocess.crop}                   "
                "# centre; offset (extent - crop) / 2, a half to the even neighbour",
            ]
        return [
            *lines,
            f"mean = {[self.preprocess.mean] * 3}",
            f"std = {[self.preprocess.std] * 3}  # on 0..255 values: (x - mean) / std",
        ]

    def _provenance(self) -> list[str]:
        lines = [
            f"licence = {_quoted(self.provenance.licence)}",
            f"source = {_quoted(self.provenance.source)}",
            f"labels_source = {_quoted(self.provenance.labels_source)}",
        ]
        if self.provenance.published_top1 is not None:
            lines += [f"published_top1 = {self.provenance.published_top1}"]
        if self.provenance.published_top1_int8 is not None:
            lines += [f"published_top1_int8 = {self.provenance.published_top1_int8}"]
        return lines


def _write(path: Path, content: bytes) -> str:
    """Writes a file atomically and returns its sha256."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return hashlib.sha256(content).hexdigest()


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's rules for strings are a subset of TOML's."""
    return json.dumps(text, ensure_ascii=False)
