"""The variants of a float32 graph: unchanged, with weights in half precision, and with 8-bit arithmetic."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from .pixels import take_pixels
from .preprocess import Preprocess

PRODUCER = "imgcls"

Samples = Callable[[], Iterable[np.ndarray]]


def fp32(model: onnx.ModelProto, _samples: Samples, _preprocess: Preprocess) -> onnx.ModelProto:
    """The unchanged graph."""
    return model


def fp16(model: onnx.ModelProto, _samples: Samples, _preprocess: Preprocess) -> onnx.ModelProto:
    """The same arithmetic with half the size on disk.

    The weights of convolutions and of the linear layer are stored as float16 and cast to float32. ONNX Runtime folds
    the casts when it loads the file, so inference is not slower. Biases and bounds are unchanged.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    casts = []
    for tensor in half.graph.initializer:
        if len(tensor.dims) < 2:
            continue
        name = tensor.name
        stored = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.fp16")
        tensor.CopyFrom(stored)
        casts.append(helper.make_node("Cast", [stored.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    onnx.checker.check_model(half, full_check=True)
    return half


def int8(model: onnx.ModelProto, samples: Samples, preprocess: Preprocess) -> onnx.ModelProto:
    """8-bit arithmetic, quantized statically.

    Signed weights with a scale per output channel; unsigned activations whose range is the smallest and largest value
    met in calibration; QuantizeLinear and DequantizeLinear nodes around float operators. Takes pixels if possible.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The model is passed as a file, because the quantizer changes a model in memory.
        float_path, path = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, float_path)
        quantize_static(
            float_path,
            path,
            _Samples(model.graph.input[0].name, samples()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        quantized = onnx.load(path)
    quantized.producer_name = PRODUCER
    quantized.producer_version = ""
    take_pixels(quantized, preprocess)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


ALL = {"int8": int8, "fp16": fp16, "fp32": fp32}
"""The variants by name, in the order of `model.toml`."""


class _Samples(CalibrationDataReader):
    """Passes samples to the quantizer one by one."""

    def __init__(self, name: str, samples: Iterable[np.ndarray]) -> None:
        self._feeds = iter([{name: sample} for sample in samples])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
