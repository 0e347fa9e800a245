"""Writes tests/golden/preprocess.json: the results of the reference pipeline and the default model for the test images.

    scripts/in-export-env scripts/make_golden_tensors.py

For each image it records the upright size; the mean and standard deviation of each channel of the model's input, and
the means of a 14 x 14 grid of squares of each channel; and the five best classes with their probabilities for each
variant. Decoders and resamplers differ by single steps of a pixel value, so tests compare with a tolerance. A wrong
channel order, orientation, crop or filter changes the squares of the grid by far more.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from imgcls_models.pixels import as_input
from imgcls_models.preprocess import Preprocess, decode

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "efficientnet-lite0"
GOLDEN = ROOT / "tests" / "golden" / "preprocess.json"
FOLDERS = (ROOT / "tests" / "pictures", ROOT / "src" / "loadgen" / "samples")
# Extensions of files that are not images.
NOT_IMAGES = {".md", ".json"}
GRID = 14
TOP = 5


def main() -> None:
    """Runs the pipeline over both folders of images."""
    description = tomllib.loads((MODEL / "model.toml").read_text(encoding="utf-8"))
    preprocess = Preprocess.efficientnet_lite(description["input"]["crop"])
    sessions = {name: session(MODEL / file["path"]) for name, file in description["files"].items()}
    paths = [path for folder in FOLDERS for path in sorted(folder.iterdir()) if is_image(path)]
    lines = [json.dumps(describe(path, preprocess, sessions), separators=(",", ":")) for path in paths]
    head = json.dumps({"model": description["name"], "version": description["version"], "grid": GRID})
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    # One image per line, so that a diff shows which images changed.
    GOLDEN.write_text(f'{head[:-1]}, "images": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
    print(f"make_golden_tensors: wrote {len(lines)} images to {GOLDEN.relative_to(ROOT)}")


def is_image(path: Path) -> bool:
    """Reports whether a path is an image. The hostile images, in a subfolder, are not described."""
    return path.is_file() and path.suffix not in NOT_IMAGES


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session of one thread, as in the program."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def describe(path: Path, preprocess: Preprocess, sessions: dict[str, onnxruntime.InferenceSession]) -> dict[str, Any]:
    """The line of one image."""
    image = decode(path)
    tensor = preprocess.tensor(image)
    channels, height, width = tensor.shape
    squares = tensor.reshape(channels, GRID, height // GRID, GRID, width // GRID).mean(axis=(2, 4), dtype=np.float64)
    return {
        "file": str(path.relative_to(ROOT)),
        "width": image.width,
        "height": image.height,
        "shape": list(tensor.shape),
        "mean": rounded(tensor.mean(axis=(1, 2), dtype=np.float64)),
        "std": rounded(tensor.std(axis=(1, 2), dtype=np.float64)),
        "grid": rounded(squares),
        "top5": {name: top5(running, tensor, preprocess) for name, running in sessions.items()},
    }


def top5(running: onnxruntime.InferenceSession, tensor: np.ndarray, preprocess: Preprocess) -> list[list[float]]:
    """Pairs of class index and probability, best first."""
    (taken,) = running.get_inputs()
    values = as_input(tensor, preprocess) if taken.type == "tensor(uint8)" else tensor
    (logits,) = running.run(["logits"], {taken.name: values[None]})
    exponentials = np.exp(logits[0].astype(np.float64) - logits[0].max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    return [[int(index), round(float(probabilities[index]), 4)] for index in best]


def rounded(values: np.ndarray) -> list[Any]:
    """Nested lists of numbers with four decimals; minus zero becomes zero."""
    return (np.round(values, 4) + 0.0).tolist()


if __name__ == "__main__":
    main()
