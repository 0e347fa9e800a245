"""Writes a model package whose network is as slow as wanted, to measure a service with other people's networks.

    scripts/in-export-env scripts/make_slow_network.py --layers 6 .cache/bench/slow-6
    scripts/bench --package .cache/bench/slow-6 --variant fp32 --only up,fastapi,flask

The network is a stack of convolutions with random weights; its answers mean nothing. A layer takes 2 to 4 ms on one
core, and a batch saves nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from imgcls_models.network import INPUT, Network, same_padding
from imgcls_models.package import Package, Provenance
from imgcls_models.preprocess import Preprocess

SIZE = 224
STRIDE = 4
CHANNELS = 64
KERNEL = 3
CLASSES = 10


def main() -> None:
    """Writes the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, required=True, metavar="N", help="number of convolutions")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to write")
    options = parser.parse_args()
    package = Package(
        name=options.folder.name,
        version="1",
        graph=network(options.layers),
        labels=[f"c{number} class {number}" for number in range(CLASSES)],
        preprocess=Preprocess.efficientnet_lite(SIZE),
        provenance=Provenance(licence="CC0-1.0", source="random weights", labels_source="numbers", notices=()),
    )
    package.write(options.folder, ["fp32"])


def network(layers: int) -> object:
    """A stack of convolutions with as many outputs as inputs."""
    random = np.random.default_rng(1)
    net = Network()

    def convolution(number: int, x: str, inputs: int, stride: int, size: int) -> str:
        # He's initialisation, so that the values neither vanish nor explode.
        scale = np.sqrt(2 / (inputs * KERNEL**2))
        weight = (random.standard_normal((CHANNELS, inputs, KERNEL, KERNEL)) * scale).astype(np.float32)
        padding = same_padding(size, KERNEL, stride)
        bias = np.zeros(CHANNELS, np.float32)
        x = net.convolution(f"conv{number}", x, weight, bias, stride=stride, padding=padding)
        return net.relu(f"relu{number}", x)

    x = convolution(0, INPUT, 3, STRIDE, SIZE)
    for number in range(1, layers + 1):
        x = convolution(number, x, CHANNELS, 1, SIZE // STRIDE)
    weight = random.standard_normal((CLASSES, CHANNELS)).astype(np.float32)
    net.classifier(x, weight, np.zeros(CLASSES, np.float32))
    return net.model("slow", classes=CLASSES, features=CHANNELS, size=SIZE)


if __name__ == "__main__":
    main()
