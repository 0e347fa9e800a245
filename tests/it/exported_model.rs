//! Small ONNX files as frameworks export them. The network computes the mean of each colour channel, so that class 0 is
//! red, class 1 green, class 2 blue and class 3 red again.

use imgcls::model::onnx_writer::{self, FLOAT32, entry, external_tensor, integer, integers, node, tensor, value};
use imgcls::model::{Message, onnx_field as field};

/// The parts of an export that tests vary.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The input: 1 for float32, 2 for uint8, 10 for float16.
    pub element: u64,
    pub shape: Vec<Option<u64>>,
    pub is_nhwc: bool,
    pub classes: u64,
    /// Operators after the logits.
    pub head: Vec<&'static str>,
    /// The logits are this many times the mean of a channel.
    pub gain: f32,
    pub opset: u64,
    pub metadata: Vec<(&'static str, String)>,
    /// The file of the weights, if they are not in the model.
    pub external: Option<&'static str>,
    pub has_second_input: bool,
}

impl Default for Exported {
    fn default() -> Exported {
        Exported {
            element: FLOAT32,
            shape: vec![None, Some(3), Some(8), Some(8)],
            is_nhwc: false,
            classes: 3,
            head: Vec::new(),
            gain: 8.0,
            opset: 13,
            metadata: Vec::new(),
            external: None,
            has_second_input: false,
        }
    }
}

impl Exported {
    /// The bytes of the external weights.
    pub fn weights(&self) -> Vec<u8> {
        let weight = |channel: u64, class: u64| if class % 3 == channel { self.gain } else { 0.0 };
        (0..3)
            .flat_map(|channel| (0..self.classes).flat_map(move |class| weight(channel, class).to_le_bytes()))
            .collect()
    }

    /// The bytes of the file.
    pub fn onnx(&self) -> Vec<u8> {
        let mut graph = Message::default();
        let mut last = "pixels".to_owned();
        let mut count = 0;
        let mut then = |operator: &str, further: &[&str], attributes: &[Message]| {
            count += 1;
            let output = format!("value{count}");
            let inputs = [&[last.as_str()][..], further].concat();
            graph.push_message(field::graph::NODE, &node(operator, &inputs, &output, attributes));
            last = output;
        };
        if self.element != FLOAT32 {
            then("Cast", &[], &[integer("to", FLOAT32)]);
        }
        if self.is_nhwc {
            then("Transpose", &[], &[integers("perm", &[0, 3, 1, 2])]);
        }
        then("GlobalAveragePool", &[], &[]);
        then("Flatten", &[], &[]);
        then("MatMul", &["weights"], &[]);
        for operator in &self.head {
            then(operator, &[], &[]);
        }
        graph.push_bytes(field::graph::NAME, "export");
        graph.push_message(field::graph::INITIALIZER, &self.weights_tensor());
        graph.push_message(field::graph::INPUT, &value("pixels", self.element, &self.shape));
        if self.has_second_input {
            graph.push_message(field::graph::INPUT, &value("mask", FLOAT32, &[None, Some(3)]));
        }
        graph.push_message(field::graph::OUTPUT, &value(&last, FLOAT32, &[None, Some(self.classes)]));
        let mut model = onnx_writer::model(&graph, self.opset);
        model.push_bytes(field::model::PRODUCER, "a test");
        for (key, value) in &self.metadata {
            model.push_message(field::model::METADATA, &entry(key, value));
        }
        model.encode()
    }

    fn weights_tensor(&self) -> Message {
        let axes = [3, self.classes];
        match self.external {
            None => tensor("weights", FLOAT32, &axes, self.weights()),
            Some(location) => external_tensor("weights", FLOAT32, &axes, location),
        }
    }
}
