"""Compares the scores of the program with those of the framework's preprocessing and ONNX Runtime in Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from .exports import Export

MAX_SCORE_DIFFERENCE = 0.02
MIN_SAME_TOP1 = 0.98
FILES_PER_CALL = 50
LONGEST_REASON = 300

Scores = Mapping[int, float]


class CheckError(Exception):
    """The program refused an export or did not classify an image."""


@dataclass(frozen=True)
class Comparison:
    """The differences over all images."""

    images: int
    largest: float
    """The largest difference of any score."""
    mean: float
    """The mean of each image's largest difference."""
    same_top1: int
    worst: str
    """The image with the largest difference, for the log."""
    is_8_bit: bool = False
    """Scores change in steps, so only the best class is required to be the same."""

    @property
    def passed(self) -> bool:
        """Reports whether the scores are equal within the tolerance."""
        if self.is_8_bit:
            return self.same_top1 >= MIN_SAME_TOP1 * self.images
        return self.largest <= MAX_SCORE_DIFFERENCE


@dataclass(frozen=True)
class Program:
    """The program that is checked, with the directory of its models."""

    path: Path
    models_dir: Path

    def add(self, export: Export) -> list[str]:
        """Adds an export by one command, and returns that command."""
        command = ["model", "add", str(export.source), "--name", export.name, *export.options]
        self._run([*command, "--models-dir", str(self.models_dir)])
        return command

    def classify(self, model: str, images: Sequence[Path], options: Sequence[str] = ()) -> Iterator[Scores]:
        """The scores of each image by class index."""
        common = ["classify", "--json", "--top-k", "1000", "--model", model, "--models-dir", str(self.models_dir)]
        for first in range(0, len(images), FILES_PER_CALL):
            files = [str(path) for path in images[first : first + FILES_PER_CALL]]
            for line in self._run([*common, *options, "--", *files]).splitlines():
                report: dict[str, Any] = json.loads(line)
                if "error" in report:
                    raise CheckError(f"{model}, {report['file']}: {report['error']['message']}")
                yield {one["class_index"]: one["score"] for one in report["predictions"]}

    def _run(self, arguments: Sequence[str]) -> str:
        finished = subprocess.run([self.path, *arguments], capture_output=True, text=True, check=False)
        # `classify` fails if one image fails. The line of that image says why.
        if finished.returncode != 0 and '"error"' not in finished.stdout:
            shown = " ".join(arguments[:3])
            reason = (finished.stderr.strip() or finished.stdout.strip() or "no message").splitlines()[-1]
            raise CheckError(f"`imgcls {shown} …` failed: {reason[:LONGEST_REASON]}")
        return finished.stdout


def reference_scores(export: Export, images: Sequence[Path]) -> Iterator[np.ndarray]:
    """The scores of all classes of each image, computed without the program."""
    session = python_session(export.onnx)
    for path in images:
        values = export.reference(upright(path))
        if export.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        element = np.float16 if export.half else np.float32
        yield activated(run(session, np.ascontiguousarray(values, element)), export.activation)


def compare(
    images: Sequence[Path], scores: Iterator[Scores], references: Iterator[np.ndarray], *, is_8_bit: bool = False
) -> Comparison:
    """Compares image by image. Classes that the program does not report are not compared."""
    differences: list[float] = []
    same = 0
    for found, reference in zip(scores, references, strict=True):
        differences.append(max(abs(score - float(reference[index])) for index, score in found.items()))
        same += max(found, key=lambda index: found[index]) == int(reference.argmax())
    largest = max(differences)
    worst = images[differences.index(largest)].name
    return Comparison(len(differences), largest, float(np.mean(differences)), same, worst, is_8_bit)


def upright(path: Path) -> Image.Image:
    """The image in RGB. Frameworks read files like this; the default images have no orientation to apply."""
    with Image.open(path) as image:
        return image.convert("RGB")


def python_session(path: Path) -> onnxruntime.InferenceSession:
    """A session of one thread, as in the program."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, values: np.ndarray) -> np.ndarray:
    """The first output for one image, as float64."""
    output = session.get_outputs()[0].name
    (found,) = session.run([output], {session.get_inputs()[0].name: values[None]})
    return np.asarray(found[0], np.float64)


def activated(outputs: np.ndarray, activation: str) -> np.ndarray:
    """Scores from the outputs of a graph."""
    if activation == "softmax":
        exponentials = np.exp(outputs - outputs.max())
        return exponentials / exponentials.sum()
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-outputs))
    return outputs
