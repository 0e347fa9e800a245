"""Adds an 8-bit file to a model that `imgcls model add` installed, if it is faster on this machine and agrees.

    scripts/quantize-model NAME
    scripts/quantize-model NAME --images DIR

The file is the one for this CPU: int8 where it has 8-bit dot products (VNNI on x86-64), else int7, whose weights have
7 bits so that sums do not saturate. It is quantized statically, per output channel, and calibrated on images: take
100 to 400 of your own kind of images. Then `imgcls tune` measures the model with the new file beside the old ones. Only
if the new file classifies more images per second and its best class agrees in 98.5 % is the result installed as a new
version of the model; `imgcls model rollback NAME` returns to the version before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

from imgcls_exports import images
from imgcls_models import calibration, installed, quantize
from imgcls_models.described import DescribedInput, DescriptionError
from imgcls_models.package import REQUIRES
from imgcls_models.preprocess import decode
from imgcls_models.registry import RegistryError

ROOT = Path(__file__).resolve().parents[1]
MIN_AGREEMENT = 0.985
DOT_PRODUCT_FLAGS = {"avx512_vnni", "avx_vnni", "asimddp"}
MIN_OPSET = 13
LARGEST_FREE_SIDE = 320
FREE_IMAGES = 100
MIN_IMAGES = 40
PREFERRED = ("fp32", "fp16", "float32", "model")


class QuantizeError(Exception):
    """The model cannot be quantized, or the result is not worth installing."""


def main() -> int:
    """Returns 0 if the result was installed, 1 otherwise. argparse exits with 2 on wrong usage."""
    arguments = parse_arguments()
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            name = arguments.name.partition("@")[0]
            candidate = Path(folder, name)
            calibrated, judged = choose_images(arguments.images, Path(folder, "judged"))
            variant = write_candidate(arguments, candidate, calibrated)
            judge(arguments, candidate, variant, judged)
            place = ["--models-dir", str(arguments.models_dir)]
            imgcls(arguments, "model", "add", str(candidate), "--name", name, "--use", *place)
    except (QuantizeError, DescriptionError, RegistryError, OSError) as error:
        print(f"quantize-model: {error}", file=sys.stderr)
        return 1
    print(f"quantize-model: {arguments.name} has a new version with the file {variant}, which is in use")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="scripts/quantize-model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="a model of the models directory, or NAME@VERSION")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images: every second one for calibration, the others to compare the answers (default: free ones)",
    )
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=installed.default_directory(),
        metavar="DIR",
        help="as `imgcls model` takes it",
    )
    parser.add_argument("--busy-ok", action="store_true", help="measure although other processes use the machine")
    parser.add_argument("--imgcls", type=Path, default=ROOT / "target" / "release" / "imgcls", metavar="FILE")
    return parser.parse_args()


def choose_images(folder: Path | None, judged: Path) -> tuple[list[Image.Image], Path]:
    """The images for calibration, and a folder with other ones to compare the answers on."""
    if folder is None:
        images.free(judged, FREE_IMAGES)
        return calibration.images(), judged
    found = images.in_folder(folder)
    if len(found) < MIN_IMAGES:
        raise QuantizeError(
            f"{folder} has {len(found)} images; {MIN_IMAGES} are needed, of which half are for calibration"
        )
    judged.mkdir()
    for path in found[1::2]:
        (judged / path.name).symlink_to(path.resolve())
    return [decode(path) for path in found[::2]], judged


def write_candidate(arguments: argparse.Namespace, candidate: Path, images: list[Image.Image]) -> str:
    """Writes the package with the new file, and returns the name of the new variant."""
    shutil.copytree(installed.folder(arguments.models_dir, arguments.name), candidate)
    description_file = candidate / "model.toml"
    text = description_file.read_text(encoding="utf-8")
    description = tomllib.loads(text)
    variant = "int8" if cpu_has_dot_products() else "int7"
    if variant in description["files"]:
        raise QuantizeError(f"{arguments.name} already has a file {variant}")
    source = candidate / float_file(description)
    model = prepared(source)
    quantized = quantize.static(model, tensors(DescribedInput(description["input"]), images), narrow=variant == "int7")
    path = candidate / f"{source.stem}-{variant}.onnx"
    onnx.save(quantized, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lines = ["", f"[files.{variant}]", f'path = "{path.name}"', f'sha256 = "{digest}"']
    lines += [f'requires = "{REQUIRES[variant][0]}"   # {REQUIRES[variant][1]}']
    description_file.write_text(text.rstrip("\n") + "\n" + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return variant


def float_file(description: Mapping[str, Any]) -> str:
    """The file to quantize: one in floats that runs on every CPU."""
    files = description["files"]
    element = description["input"].get("type", "float32")
    usable = {name: file for name, file in files.items() if "requires" not in file and "input" not in file}
    if element != "float32" or not usable:
        raise QuantizeError("the model has no file that takes float32, which is what can be quantized")
    chosen = next((name for name in PREFERRED if name in usable), next(iter(usable)))
    return str(usable[chosen]["path"])


def prepared(path: Path) -> onnx.ModelProto:
    """The graph with shapes, with BatchNorm folded into the convolutions, and in an opset with per-channel scales."""
    try:
        model = onnx.load(path)
        opset = next(one.version for one in model.opset_import if one.domain in {"", "ai.onnx"})
        if opset < MIN_OPSET:
            model = onnx.version_converter.convert_version(model, MIN_OPSET)
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
            onnx.save(model, before)
            quant_pre_process(before, after, skip_symbolic_shape=True)
            return onnx.load(after)
    except Exception as error:  # The libraries raise many types, and all mean the same here.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise QuantizeError(f"{path.name} cannot be prepared for quantization: {reason}") from error


def tensors(described: DescribedInput, images: list[Image.Image]) -> Iterator[np.ndarray]:
    """The inputs for calibration, each a batch of one."""
    for image in images:
        if described.table["resize"] == "none":
            image.thumbnail((LARGEST_FREE_SIDE, LARGEST_FREE_SIDE), Image.Resampling.BICUBIC)
        yield described.tensor(image)[None]


def judge(arguments: argparse.Namespace, candidate: Path, variant: str, judged: Path) -> None:
    """Measures the candidate with `imgcls tune`. Raises if the new file is slower or disagrees."""
    options = ["--busy-ok"] if arguments.busy_ok else []
    output = imgcls(arguments, "tune", "--model", str(candidate), "--images", str(judged), "--json", *options)
    report = json.loads(output)
    rates: dict[str, float] = {}
    for trial in report["trials"]:
        if trial["batch_size"] == 1:
            rates[trial["variant"]] = max(rates.get(trial["variant"], 0.0), trial["images_per_second"])
    agreement = agreement_of(report["agreement"], variant)
    others = {name: rate for name, rate in rates.items() if name != variant}
    fastest = max(others, key=lambda name: others[name])
    print(
        f"quantize-model: {variant} classifies {rates[variant]:.1f} images/s and agrees in {agreement:.1%} of "
        f"{report['agreement']['images']} images; {fastest} classifies {others[fastest]:.1f} images/s"
    )
    if agreement < MIN_AGREEMENT:
        raise QuantizeError(f"not installed: {variant} agrees in {agreement:.1%}, less than {MIN_AGREEMENT:.1%}")
    if rates[variant] <= others[fastest]:
        raise QuantizeError(f"not installed: {variant} is not faster than {fastest} on this machine")


def agreement_of(report: Mapping[str, Any], variant: str) -> float:
    """The share of images for which `tune` found the same best class as that of the reference file."""
    found = [compared["agreement"] for compared in report["variants"] if compared["variant"] == variant]
    if not found:
        raise QuantizeError("`imgcls tune` reports no agreement of the new file")
    return float(found[0])


def cpu_has_dot_products() -> bool:
    """Reports whether this CPU has 8-bit dot products."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return not DOT_PRODUCT_FLAGS.isdisjoint(flags)


def imgcls(arguments: argparse.Namespace, *command: str) -> str:
    """Runs the program and returns what it prints. Its log stays visible."""
    finished = subprocess.run([arguments.imgcls, *command], stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise QuantizeError(f"`imgcls {command[0]}` failed with status {finished.returncode}")
    return finished.stdout


if __name__ == "__main__":
    sys.exit(main())
