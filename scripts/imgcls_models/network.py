"""A small writer of ONNX graphs for convolutional classifiers, with BatchNorm folded into the convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Old enough for every ONNX Runtime in use, new enough for per-channel 8-bit weights.
OPSET = 17
IR_VERSION = 8

INPUT = "input"
OUTPUT = "logits"
FEATURES = "features"
"""A second output: what the final linear layer multiplies. New classes can be trained on it."""

Padding = tuple[int, int, int, int]
"""Pixels to add at the top, left, bottom and right."""


def same_padding(size: int, kernel: int, stride: int) -> Padding:
    """TensorFlow's SAME padding of a square image. The remainder of an uneven division goes to the bottom and right."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    before = total // 2
    return before, before, total - before, total - before


def fold_batch_norm(
    weight: np.ndarray, state: Mapping[str, np.ndarray], norm: str, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight and bias of the one convolution that equals a convolution followed by the BatchNorm `norm`."""
    gamma, beta, mean, variance = (
        state[f"{norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + epsilon)
    folded = weight.astype(np.float64) * scale[:, None, None, None]
    return folded.astype(np.float32), (beta - mean * scale).astype(np.float32)


@dataclass
class Network:
    """Collects nodes and weights; every method that adds a node returns the name of its output."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def convolution(
        self, name: str, x: str, weight: np.ndarray, bias: np.ndarray, *, stride: int, padding: Padding, groups: int = 1
    ) -> str:
        """A square convolution."""
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self._node(
            "Conv", name, inputs, kernel_shape=weight.shape[2:], strides=[stride] * 2, pads=padding, group=groups
        )

    def relu(self, name: str, x: str) -> str:
        """max(x, 0)."""
        return self._node("Relu", name, [x])

    def relu6(self, name: str, x: str) -> str:
        """min(max(x, 0), 6)."""
        bounds = [self.constant("relu6.min", np.float32(0)), self.constant("relu6.max", np.float32(6))]
        return self._node("Clip", name, [x, *bounds])

    def add(self, name: str, a: str, b: str) -> str:
        """The sum of two tensors of one shape."""
        return self._node("Add", name, [a, b])

    def max_pool(self, name: str, x: str, *, kernel: int, stride: int, padding: Padding) -> str:
        """The largest value under a square window."""
        return self._node("MaxPool", name, [x], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=padding)

    def classifier(self, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """The mean over the image (the features), then a linear layer. The output is the logits."""
        pooled = self._node("GlobalAveragePool", "pool", [x])
        flat = self._node("Flatten", FEATURES, [pooled], axis=1)
        inputs = [flat, self.constant("classifier.weight", weight), self.constant("classifier.bias", bias)]
        return self._node("Gemm", OUTPUT, inputs, transB=1)

    def constant(self, name: str, value: np.ndarray | np.float32) -> str:
        """Adds a named float32 constant, or reuses an existing one of that name."""
        if all(tensor.name != name for tensor in self.weights):
            self.weights.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def model(self, name: str, *, classes: int, features: int, size: int | None) -> onnx.ModelProto:
        """The finished model. Without a `size`, height and width are free. The first output is the logits."""
        height, width = (size, size) if size else ("height", "width")
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, height, width])],
            [
                helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes]),
                helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", features]),
            ],
            self.weights,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="imgcls"
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _node(self, kind: str, output: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output
