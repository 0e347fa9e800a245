//! Small ONNX files as frameworks export them. The network computes the mean of each colour channel, so that class 0 is
//! red, class 1 green, class 2 blue and class 3 red again.

use imgcls::model::{FieldValue, Message, onnx_field as field};

const FLOAT: u64 = 1;

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
            element: FLOAT,
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
        let mut then = |operator: &str, further: Option<&str>, attribute: Option<Message>| {
            count += 1;
            let output = format!("value{count}");
            let mut node = Message::default();
            node.push_bytes(field::node::INPUT, last.clone());
            if let Some(input) = further {
                node.push_bytes(field::node::INPUT, input.to_owned());
            }
            node.push_bytes(field::node::OUTPUT, output.clone());
            node.push_bytes(field::node::OP_TYPE, operator.to_owned());
            if let Some(attribute) = attribute {
                node.push_message(field::node::ATTRIBUTE, &attribute);
            }
            graph.push_message(field::graph::NODE, &node);
            last = output;
        };
        if self.element != FLOAT {
            then("Cast", None, Some(numbers("to", 3, 2, &[FLOAT])));
        }
        if self.is_nhwc {
            then("Transpose", None, Some(numbers("perm", 8, 7, &[0, 3, 1, 2])));
        }
        then("GlobalAveragePool", None, None);
        then("Flatten", None, None);
        then("MatMul", Some("weights"), None);
        for operator in &self.head {
            then(operator, None, None);
        }
        graph.push_bytes(field::graph::NAME, "export");
        graph.push_message(field::graph::INITIALIZER, &self.weights_tensor());
        graph.push_message(field::graph::INPUT, &value("pixels", self.element, &self.shape));
        if self.has_second_input {
            graph.push_message(field::graph::INPUT, &value("mask", FLOAT, &[None, Some(3)]));
        }
        graph.push_message(field::graph::OUTPUT, &value(&last, FLOAT, &[None, Some(self.classes)]));
        let mut opset = Message::default();
        opset.push(2, FieldValue::Varint(self.opset));
        let mut model = Message::default();
        model.push(field::model::IR_VERSION, FieldValue::Varint(8));
        model.push_bytes(field::model::PRODUCER, "a test");
        model.push_message(field::model::GRAPH, &graph);
        model.push_message(field::model::OPSET, &opset);
        for (key, value) in &self.metadata {
            model.push_message(field::model::METADATA, &entry(key, value));
        }
        model.encode()
    }

    fn weights_tensor(&self) -> Message {
        let mut tensor = Message::default();
        tensor.push(field::tensor::DIMENSIONS, FieldValue::Varint(3));
        tensor.push(field::tensor::DIMENSIONS, FieldValue::Varint(self.classes));
        tensor.push(field::tensor::DATA_TYPE, FieldValue::Varint(FLOAT));
        tensor.push_bytes(field::tensor::NAME, "weights");
        match self.external {
            None => tensor.push_bytes(field::tensor::RAW_DATA, self.weights()),
            Some(location) => {
                tensor.push_message(field::tensor::EXTERNAL_DATA, &entry("location", location));
                tensor.push(field::tensor::DATA_LOCATION, FieldValue::Varint(1));
            }
        }
        tensor
    }
}

fn entry(key: &str, value: &str) -> Message {
    let mut entry = Message::default();
    entry.push_bytes(1, key.to_owned());
    entry.push_bytes(2, value.to_owned());
    entry
}

/// An attribute of whole numbers: `number` is its field, `kind` its type.
fn numbers(name: &str, number: u32, kind: u64, values: &[u64]) -> Message {
    let mut attribute = Message::default();
    attribute.push_bytes(field::attribute::NAME, name.to_owned());
    for value in values {
        attribute.push(number, FieldValue::Varint(*value));
    }
    attribute.push(20, FieldValue::Varint(kind));
    attribute
}

fn value(name: &str, element: u64, axes: &[Option<u64>]) -> Message {
    let mut shape = Message::default();
    for axis in axes {
        let mut dimension = Message::default();
        match axis {
            Some(size) => dimension.push(1, FieldValue::Varint(*size)),
            None => dimension.push_bytes(2, "batch"),
        }
        shape.push_message(1, &dimension);
    }
    let mut tensor = Message::default();
    tensor.push(1, FieldValue::Varint(element));
    tensor.push_message(2, &shape);
    let mut kind = Message::default();
    kind.push_message(1, &tensor);
    let mut value = Message::default();
    value.push_bytes(1, name.to_owned());
    value.push_message(2, &kind);
    value
}
