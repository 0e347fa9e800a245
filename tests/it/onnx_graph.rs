//! Writes small ONNX files for tests. The network computes the mean of each colour channel, so that its scores are
//! known: class 0 is red, 1 green, 2 blue.

use std::path::Path;

use imgcls::model::onnx_writer::{self, external_tensor, integer, integers, node, tensor, value};
use imgcls::model::{Message, onnx_field as field};
use sha2::{Digest as _, Sha256};

/// Weights with which the logits are 8 times the mean of a channel whose values are from 0 to 1.
const GAIN: f32 = 8.0;

/// The type of the numbers of a shape.
const INT64: u64 = 7;

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
            graph.push_message(field::graph::NODE, &node(operator, &inputs, output, attributes));
            last = output;
        };
        if self.input == Kind::Uint8 {
            then("Cast", &[], "cast", &[integer("to", self.float() as u64)]);
        }
        if self.is_nhwc {
            then("Transpose", &[], "planes", &[integers("perm", &[0, 3, 1, 2])]);
        }
        then("GlobalAveragePool", &[], "pooled", &[]);
        then("Flatten", &[], "features", &[]);
        then("MatMul", &["weights"], "logits", &[]);
        then(self.head, &[], "normalised", &[]);
        if self.float() != self.output {
            then("Cast", &[], "converted", &[integer("to", self.output as u64)]);
        }
        if self.has_pixel_axes {
            then("Reshape", &["shape"], "scores", &[]);
            let shape = tensor("shape", INT64, &[4], [-1_i64, 3, 1, 1].map(i64::to_le_bytes).concat());
            graph.push_message(field::graph::INITIALIZER, &shape);
        } else {
            then("Identity", &[], "scores", &[]);
        }
        graph.push_bytes(field::graph::NAME, "tests");
        graph.push_message(field::graph::INITIALIZER, &self.weights(weights));
        let of_batch = |axes: &[u64]| [&[self.batch][..], &axes.iter().copied().map(Some).collect::<Vec<_>>()].concat();
        let pixels = of_batch(if self.is_nhwc { &[SIDE, SIDE, 3] } else { &[3, SIDE, SIDE] });
        graph.push_message(field::graph::INPUT, &value(self.input_name, self.input as u64, &pixels));
        // The features come first, as a network may declare them.
        graph.push_message(field::graph::OUTPUT, &value("features", self.float() as u64, &of_batch(&[3])));
        let axes: &[u64] = if self.has_pixel_axes { &[3, 1, 1] } else { &[3] };
        graph.push_message(field::graph::OUTPUT, &value("scores", self.output as u64, &of_batch(axes)));
        onnx_writer::model(&graph, 13).encode()
    }

    fn weights(&self, weights: &[u8]) -> Message {
        let element = self.float() as u64;
        if self.has_external_data {
            external_tensor("weights", element, &[3, 3], "model.onnx.data")
        } else {
            tensor("weights", element, &[3, 3], weights.to_vec())
        }
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
