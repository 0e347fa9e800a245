//! Writes small ONNX files for tests. The network computes the mean of each colour channel, so that its scores are
//! known: class 0 is red, 1 green, 2 blue.

use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Weights with which the logits are 8 times the mean of a channel whose values are from 0 to 1.
const GAIN: f32 = 8.0;

/// The type of a tensor, as ONNX numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Float32 = 1,
    Uint8 = 2,
    Float16 = 10,
}

/// A network that tests can vary.
#[derive(Debug, Clone)]
pub struct Network {
    pub input: Kind,
    /// Float32 or float16.
    pub output: Kind,
    pub is_nhwc: bool,
    /// The operator after the logits: `Softmax`, `Sigmoid`, `Log` (which makes NaN of negative numbers), `Identity`.
    pub head: &'static str,
    /// Two axes of one pixel after the classes.
    pub has_pixel_axes: bool,
    pub batch: Option<u64>,
    /// True if the weights are in `model.onnx.data`.
    pub has_external_data: bool,
    pub input_name: &'static str,
}

impl Default for Network {
    fn default() -> Network {
        Network {
            input: Kind::Float32,
            output: Kind::Float32,
            is_nhwc: false,
            head: "Identity",
            has_pixel_axes: false,
            batch: None,
            has_external_data: false,
            input_name: "input",
        }
    }
}

/// Width and height of the input.
pub const SIDE: u64 = 8;

impl Network {
    /// Writes the files of the network into a folder. Returns the table `[files.fp32]` of its model.toml.
    pub fn write(&self, folder: &Path) -> String {
        let weights: Vec<f32> = (0..9).map(|index| if index % 4 == 0 { GAIN } else { 0.0 }).collect();
        let weights = bytes_of(&weights, self.float());
        let model = self.model(&weights);
        std::fs::write(folder.join("model.onnx"), &model).unwrap();
        let mut table = format!("[files.fp32]\npath = \"model.onnx\"\nsha256 = \"{}\"\n", sha256(&model));
        if self.has_external_data {
            std::fs::write(folder.join("model.onnx.data"), &weights).unwrap();
            let external = sha256(&weights);
            table.push_str("external = [{ path = \"model.onnx.data\", sha256 = \"");
            table.push_str(&external);
            table.push_str("\" }]\n");
        }
        table
    }

    /// The type of the values inside the network.
    fn float(&self) -> Kind {
        if self.input == Kind::Uint8 { self.output } else { self.input }
    }

    fn model(&self, weights: &[u8]) -> Vec<u8> {
        let mut graph = Message::default();
        let mut last = self.input_name;
        let mut then = |operator: &str, further: &[&str], output: &'static str, attributes: &[Message]| {
            let inputs = [&[last][..], further].concat();
            graph.message(1, &node(operator, &inputs, output, attributes));
            last = output;
        };
        if self.input == Kind::Uint8 {
            then("Cast", &[], "cast", &[number("to", self.float() as u64)]);
        }
        if self.is_nhwc {
            then("Transpose", &[], "planes", &[numbers("perm", &[0, 3, 1, 2])]);
        }
        then("GlobalAveragePool", &[], "pooled", &[]);
        then("Flatten", &[], "features", &[]);
        then("MatMul", &["weights"], "logits", &[]);
        then(self.head, &[], "normalised", &[]);
        if self.float() != self.output {
            then("Cast", &[], "converted", &[number("to", self.output as u64)]);
        }
        if self.has_pixel_axes {
            then("Reshape", &["shape"], "scores", &[]);
            graph.message(5, &tensor("shape", 7, &[4], &[-1_i64, 3, 1, 1].map(i64::to_le_bytes).concat()));
        } else {
            then("Identity", &[], "scores", &[]);
        }
        graph.text(2, "tests");
        graph.message(5, &self.weights(weights));
        let pixels = if self.is_nhwc { [SIDE, SIDE, 3] } else { [3, SIDE, SIDE] };
        graph.message(11, &value(self.input_name, self.input, self.batch, &pixels));
        // The features come first, as a network may declare them.
        graph.message(12, &value("features", self.float(), self.batch, &[3]));
        let axes: &[u64] = if self.has_pixel_axes { &[3, 1, 1] } else { &[3] };
        graph.message(12, &value("scores", self.output, self.batch, axes));
        let mut opset = Message::default();
        opset.number(2, 13);
        let mut model = Message::default();
        model.number(1, 8);
        model.message(7, &graph);
        model.message(8, &opset);
        model.0
    }

    fn weights(&self, weights: &[u8]) -> Message {
        if !self.has_external_data {
            return tensor("weights", self.float() as u64, &[3, 3], weights);
        }
        let mut external = tensor("weights", self.float() as u64, &[3, 3], &[]);
        let mut entry = Message::default();
        entry.text(1, "location");
        entry.text(2, "model.onnx.data");
        external.message(13, &entry);
        external.number(14, 1);
        external
    }
}

/// The digest that model.toml states.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(values: &[f32], kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Float16 => values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

fn node(operator: &str, inputs: &[&str], output: &str, attributes: &[Message]) -> Message {
    let mut node = Message::default();
    for input in inputs {
        node.text(1, input);
    }
    node.text(2, output);
    node.text(4, operator);
    for attribute in attributes {
        node.message(5, attribute);
    }
    node
}

fn number(name: &str, value: u64) -> Message {
    let mut attribute = Message::default();
    attribute.text(1, name);
    attribute.number(3, value);
    attribute.number(20, 2);
    attribute
}

fn numbers(name: &str, values: &[u64]) -> Message {
    let mut attribute = Message::default();
    attribute.text(1, name);
    for value in values {
        attribute.number(8, *value);
    }
    attribute.number(20, 7);
    attribute
}

/// Without bytes the tensor has no data of its own.
fn tensor(name: &str, kind: u64, shape: &[u64], bytes: &[u8]) -> Message {
    let mut tensor = Message::default();
    for axis in shape {
        tensor.number(1, *axis);
    }
    tensor.number(2, kind);
    tensor.text(8, name);
    if !bytes.is_empty() {
        tensor.bytes(9, bytes);
    }
    tensor
}

fn value(name: &str, kind: Kind, batch: Option<u64>, axes: &[u64]) -> Message {
    let mut shape = Message::default();
    let mut first = Message::default();
    match batch {
        Some(size) => first.number(1, size),
        None => first.text(2, "batch"),
    }
    shape.message(1, &first);
    for axis in axes {
        let mut dimension = Message::default();
        dimension.number(1, *axis);
        shape.message(1, &dimension);
    }
    let mut tensor = Message::default();
    tensor.number(1, kind as u64);
    tensor.message(2, &shape);
    let mut of_tensor = Message::default();
    of_tensor.message(1, &tensor);
    let mut value = Message::default();
    value.text(1, name);
    value.message(2, &of_tensor);
    value
}

/// A message in the format of Protocol Buffers.
#[derive(Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    pub fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    pub fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    pub fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }

    pub fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
