"""Changes an 8-bit graph to take the 8-bit pixels of an image directly.

A quantized graph begins by quantizing normalised floats to 8 bits. If scale and zero point exactly invert the
normalisation, the quantized values equal the pixels, so the graph can take the pixels without the detour over floats.

The input becomes uint8, batch x height x width x 4: red, green, blue and an unused byte, for which the first
convolution has zeros. There are four channels because ONNX Runtime multiplies 8-bit numbers in groups of four: rows of
3 x 3 x 3 take twice as long as rows of 3 x 3 x 4.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .preprocess import Preprocess

CHANNELS = 4
NHWC_TO_NCHW = (0, 3, 1, 2)


def take_pixels(model: onnx.ModelProto, preprocess: Preprocess) -> bool:
    """Changes the input of the graph to pixels. Returns False and changes nothing if that would not be exact."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    first = _reader(graph, graph.input[0].name)
    if first.op_type != "QuantizeLinear" or not _undoes(first, weights, preprocess):
        return False
    stem = _reader(graph, _reader(graph, first.output[0]).output[0])
    kernel = _writer(graph, stem.input[1])
    if stem.op_type != "Conv" or kernel.op_type != "DequantizeLinear":
        return False
    _widen(weights[kernel.input[0]])
    transpose = helper.make_node(
        "Transpose", [graph.input[0].name], [first.output[0]], name=f"{graph.input[0].name}.nchw", perm=NHWC_TO_NCHW
    )
    first.CopyFrom(transpose)
    _declare(graph.input[0])
    # The recorded shapes have three channels; they are inferred again.
    del graph.value_info[:]
    return True


def takes_pixels(model: onnx.ModelProto) -> bool:
    """Reports whether the input is pixels."""
    return bool(model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8)


def as_input(tensor: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Converts the result of `Preprocess.tensor` to the pixel input of such a graph, without the batch axis."""
    values = np.rint(tensor * np.float32(preprocess.std) + np.float32(preprocess.mean)).astype(np.uint8)
    return np.concatenate([values, np.zeros_like(values[:1])]).transpose(1, 2, 0).copy()


def _reader(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if name in node.input)


def _writer(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if name in node.output)


def _undoes(quantize: onnx.NodeProto, weights: dict[str, onnx.TensorProto], preprocess: Preprocess) -> bool:
    """Reports whether quantization exactly inverts the normalisation for every pixel value."""
    scale, zero = (numpy_helper.to_array(weights[name]) for name in quantize.input[1:3])
    pixels = np.arange(256)
    normalised = (pixels.astype(np.float32) - np.float32(preprocess.mean)) / np.float32(preprocess.std)
    quantized = np.clip(np.rint(normalised / scale) + zero.astype(np.float32), 0, 255)
    return zero.dtype == np.uint8 and np.array_equal(quantized, pixels)


def _widen(kernel: onnx.TensorProto) -> None:
    """Adds a fourth channel of zeros to a kernel."""
    values = numpy_helper.to_array(kernel)
    wider = np.zeros((values.shape[0], CHANNELS, *values.shape[2:]), values.dtype)
    wider[:, : values.shape[1]] = values
    kernel.CopyFrom(numpy_helper.from_array(wider, kernel.name))


def _declare(value: onnx.ValueInfoProto) -> None:
    tensor = value.type.tensor_type
    batch, _, height, width = (axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.UINT8, [batch, height, width, CHANNELS]))
