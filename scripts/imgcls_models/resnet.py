"""ResNet-18 with the structure of torchvision: two basic blocks in each of four stages. Height and width are free."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from .network import INPUT, Network, fold_batch_norm

BATCH_NORM_EPSILON = 1e-5


def build(state: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Writes the float32 graph of a ResNet-18 state dict, for any number of classes."""
    network = Network()

    def convolution(x: str, layer: str, norm: str, *, stride: int = 1) -> str:
        weight, bias = fold_batch_norm(state[f"{layer}.weight"], state, norm, BATCH_NORM_EPSILON)
        margin = weight.shape[2] // 2
        return network.convolution(layer, x, weight, bias, stride=stride, padding=(margin,) * 4)

    x = network.relu("relu", convolution(INPUT, "conv1", "bn1", stride=2))
    x = network.max_pool("maxpool", x, kernel=3, stride=2, padding=(1, 1, 1, 1))
    for stage in range(1, 5):
        for block in range(2):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            entry = x
            x = network.relu(f"{name}.relu1", convolution(x, f"{name}.conv1", f"{name}.bn1", stride=stride))
            x = convolution(x, f"{name}.conv2", f"{name}.bn2")
            if stride != 1:
                entry = convolution(entry, f"{name}.downsample.0", f"{name}.downsample.1", stride=stride)
            x = network.relu(f"{name}.relu2", network.add(f"{name}.add", x, entry))
    network.classifier(x, state["fc.weight"], state["fc.bias"])
    classes, features = state["fc.weight"].shape
    return network.model("resnet18", classes=classes, features=features, size=None)
