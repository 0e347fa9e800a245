"""The second output `features`: what the final linear layer multiplies, [batch, features] in float32.

`imgcls model fit` trains new classes on it. ONNX Runtime returns only the outputs that are asked for, and the score is
the first one, so it costs nothing where images are classified. The nodes of the score are the same with and without it.
"""

from __future__ import annotations

import onnx
from onnx import helper

from .network import FEATURES


def without_features(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a float graph whose only outputs are the scores."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [output for output in copy.graph.output if output.name != FEATURES]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return copy


def expose_features(quantized: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Adds the output to the quantized graph of `model`: the 8-bit features, dequantized by a node of their own.

    ONNX Runtime replaces a linear layer between DequantizeLinear and QuantizeLinear by 8-bit arithmetic only if nothing
    else reads the dequantized values. Therefore the output does not share the node of the linear layer.
    """
    graph = quantized.graph
    flatten = next(node for node in graph.node if FEATURES in node.output)
    quantize = next(node for node in graph.node if FEATURES in node.input and node.op_type == "QuantizeLinear")
    dequantize = next(node for node in graph.node if quantize.output[0] in node.input)
    # The name now belongs to the output.
    flatten.output[0] = quantize.input[0] = f"{FEATURES}.float"
    inputs = [quantize.output[0], *dequantize.input[1:]]
    graph.node.append(helper.make_node("DequantizeLinear", inputs, [FEATURES], name=f"{FEATURES}.dequantized"))
    graph.output.extend(output for output in model.graph.output if output.name == FEATURES)
    # The recorded shapes name the old tensors; they are inferred again.
    del graph.value_info[:]
