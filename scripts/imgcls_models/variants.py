"""The variants of a float32 graph: unchanged, with weights in half precision, and with 8-bit arithmetic (two files)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from . import quantize
from .features import expose_features, without_features
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
    """8-bit arithmetic, quantized statically. Takes pixels if possible. Needs a CPU with 8-bit dot products."""
    quantized = quantize.static(without_features(model), samples(), narrow=False, float_scores=False)
    return _finished(quantized, model, preprocess)


def int7(model: onnx.ModelProto, samples: Samples, preprocess: Preprocess) -> onnx.ModelProto:
    """8-bit arithmetic with weights of 7 to 8 bits, whose sums do not saturate on a CPU without 8-bit dot products.

    The scores are floats. Those of `int8` have 256 steps, and stay as they are since people rely on its answers.
    """
    quantized = quantize.static(without_features(model), samples(), narrow=True)
    return _finished(quantized, model, preprocess)


def _finished(quantized: onnx.ModelProto, model: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    quantized.producer_name = PRODUCER
    quantized.producer_version = ""
    take_pixels(quantized, preprocess)
    expose_features(quantized, model)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


ALL = {"int8": int8, "int7": int7, "fp16": fp16, "fp32": fp32}
"""The variants by name, in the order of `model.toml`."""
