//! Writes the messages of ONNX files: nodes, attributes, weights and the descriptions of values.

use super::onnx_field as field;
use super::protobuf::{Message, Value};

/// The number of the element type float32.
pub const FLOAT32: u64 = 1;

/// The version of the file format, which every release of ONNX Runtime that has the operator sets reads.
const IR_VERSION: u64 = 8;
/// Types of attributes.
const INTEGER: u64 = 2;
const INTEGERS: u64 = 7;

/// A node with one output.
pub fn node(operator: &str, inputs: &[&str], output: &str, attributes: &[Message]) -> Message {
    let mut node = Message::default();
    for input in inputs {
        node.push_bytes(field::node::INPUT, (*input).to_owned());
    }
    node.push_bytes(field::node::OUTPUT, output.to_owned());
    node.push_bytes(field::node::OP_TYPE, operator.to_owned());
    for attribute in attributes {
        node.push_message(field::node::ATTRIBUTE, attribute);
    }
    node
}

/// An attribute that is a whole number.
pub fn integer(name: &str, value: u64) -> Message {
    let mut attribute = Message::default();
    attribute.push_bytes(field::attribute::NAME, name.to_owned());
    attribute.push(field::attribute::INTEGER, Value::Varint(value));
    attribute.push(field::attribute::TYPE, Value::Varint(INTEGER));
    attribute
}

/// An attribute that is a list of whole numbers.
pub fn integers(name: &str, values: &[u64]) -> Message {
    let mut attribute = Message::default();
    attribute.push_bytes(field::attribute::NAME, name.to_owned());
    for value in values {
        attribute.push(field::attribute::INTEGERS, Value::Varint(*value));
    }
    attribute.push(field::attribute::TYPE, Value::Varint(INTEGERS));
    attribute
}

/// Weights in the file itself: `data` has the elements in little-endian order.
pub fn tensor(name: &str, element: u64, axes: &[u64], data: Vec<u8>) -> Message {
    let mut tensor = described(name, element, axes);
    tensor.push_bytes(field::tensor::RAW_DATA, data);
    tensor
}

/// Weights in another file, whose path is relative to the folder of the model.
pub fn external_tensor(name: &str, element: u64, axes: &[u64], location: &str) -> Message {
    let mut tensor = described(name, element, axes);
    tensor.push_message(field::tensor::EXTERNAL_DATA, &entry("location", location));
    tensor.push(field::tensor::DATA_LOCATION, Value::Varint(1));
    tensor
}

fn described(name: &str, element: u64, axes: &[u64]) -> Message {
    let mut tensor = Message::default();
    for axis in axes {
        tensor.push(field::tensor::DIMENSIONS, Value::Varint(*axis));
    }
    tensor.push(field::tensor::DATA_TYPE, Value::Varint(element));
    tensor.push_bytes(field::tensor::NAME, name.to_owned());
    tensor
}

/// A name and a text, such as the metadata of a model has.
pub fn entry(key: &str, value: &str) -> Message {
    let mut entry = Message::default();
    entry.push_bytes(1, key.to_owned());
    entry.push_bytes(2, value.to_owned());
    entry
}

/// An input or an output of a graph. An axis of `None` may have any size.
pub fn value(name: &str, element: u64, axes: &[Option<u64>]) -> Message {
    let mut shape = Message::default();
    for axis in axes {
        let mut dimension = Message::default();
        if let Some(size) = axis {
            dimension.push(1, Value::Varint(*size));
        }
        shape.push_message(1, &dimension);
    }
    let mut tensor = Message::default();
    tensor.push(1, Value::Varint(element));
    tensor.push_message(2, &shape);
    let mut kind = Message::default();
    kind.push_message(1, &tensor);
    let mut value = Message::default();
    value.push_bytes(1, name.to_owned());
    value.push_message(2, &kind);
    value
}

/// A model with a graph whose operators are those of ONNX itself in the version `opset`.
pub fn model(graph: &Message, opset: u64) -> Message {
    let mut operators = Message::default();
    operators.push(2, Value::Varint(opset));
    let mut model = Message::default();
    model.push(field::model::IR_VERSION, Value::Varint(IR_VERSION));
    model.push_message(field::model::GRAPH, graph);
    model.push_message(field::model::OPSET, &operators);
    model
}
