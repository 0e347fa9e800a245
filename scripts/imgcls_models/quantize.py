"""Static quantization of a float32 graph to 8-bit arithmetic.

Signed weights with a scale per output channel; unsigned activations whose range is the smallest and largest value met
in calibration; QuantizeLinear and DequantizeLinear nodes around float operators.

CPUs with 8-bit dot products (VNNI on x86-64, the dot product instructions on aarch64) sum the products of activations
and weights in 32 bits. Other x86-64 CPUs first sum two products in 16 bits, and larger sums saturate: 255 * 127 * 2
does not fit. With `narrow` weights no such sum is possible: the scale of a channel is as large as is needed for the sum
of any two of its weights to be at most 128, and 255 * 128 fits. It does not matter which two the library takes
together. Such weights have between 7 and 8 bits; 7 bits for all (`reduce_range`) have a larger error (decision 34).
Depthwise convolutions keep 8 bits, because ONNX Runtime computes them without sums of pairs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

LARGEST = 127
LARGEST_PAIR = 128
"""The largest sum of two weights: 255 * 128 fits into 16 bits with a sign, 255 * 129 does not."""


def static(
    model: onnx.ModelProto, samples: Iterable[np.ndarray], *, narrow: bool, float_scores: bool = True
) -> onnx.ModelProto:
    """Returns the quantized graph of a model with one input. The samples are inputs with their batch axis.

    With `float_scores` the outputs of linear layers are not quantized: the 256 steps of scores cost answers, and a
    linear layer can return floats at no cost.
    """
    options: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": ["Gemm"]} if float_scores else {}
    if narrow:
        options["TensorQuantOverrides"] = narrow_weights(model)
    with tempfile.TemporaryDirectory() as folder:
        # The model is passed as a file, because the quantizer changes a model in memory.
        float_path, path = Path(folder, "float.onnx"), Path(folder, "quantized.onnx")
        onnx.save(model, float_path)
        quantize_static(
            float_path,
            path,
            _Samples(model.graph.input[0].name, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=options,
        )
        return onnx.load(path)


def narrow_weights(model: onnx.ModelProto) -> dict[str, list[dict[str, Any]]]:
    """The quantizer's settings for the weights of all matrix products, by the weight's name: a scale per channel."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[1]: _channels(weights[node.input[1]], _output_axis(node))
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in weights and not _is_grouped(node)
    }


def _channels(weight: np.ndarray, axis: int) -> list[dict[str, Any]]:
    return [
        {"quant_type": QuantType.QInt8, "axis": axis, "scale": np.float32(scale), "zero_point": np.int8(0)}
        for scale in safe_scales(np.moveaxis(weight, axis, 0))
    ]


def safe_scales(weight: np.ndarray) -> np.ndarray:
    """The smallest scale of each channel (the first axis) with which no sum of two products saturates 16 bits.

    Only weights of one sign add up. Rounding adds at most one half to each of the two.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    positive, negative = (np.sort(np.maximum(flat * sign, 0), axis=1)[:, -2:].sum(axis=1) for sign in (1, -1))
    scales = np.maximum(np.abs(flat).max(axis=1) / LARGEST, np.maximum(positive, negative) / (LARGEST_PAIR - 0.5))
    # A channel of zeros needs some scale.
    return np.where(scales > 0, scales, 1.0)


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of a weight that counts output channels."""
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or is_transposed else 1


def _is_grouped(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)


class _Samples(CalibrationDataReader):
    """Passes samples to the quantizer one by one."""

    def __init__(self, name: str, samples: Iterable[np.ndarray]) -> None:
        self._feeds = iter({name: sample} for sample in samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
