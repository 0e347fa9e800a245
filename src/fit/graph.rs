//! The graph of a base network, cut before its last linear layer, and with another head.
//!
//! The file is edited as lists of fields, so that nothing of it is lost, whatever exporter wrote it: only nodes and
//! weights that nothing needs any more are left out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;

use super::head::Head;
use crate::model::onnx_field::{attribute, graph, model, node, tensor};
use crate::model::onnx_writer::{self, FLOAT32};
use crate::model::{FieldValue, Message, OnnxFile, TensorInfo};

/// The output that a base network may have for this purpose.
const FEATURES: &str = "features";
/// The output of a head.
const SCORES: &str = "logits";
/// The beginning of the names of what is added.
const PREFIX: &str = "imgcls";
/// Nodes between the scores and the linear layer.
const MAX_FINAL_NODES: usize = 16;

/// Field numbers of ONNX that the editing needs besides.
const VALUE_INFO: u32 = 13;
const QUANTIZATION: u32 = 14;

/// A graph that ends in the features of an image.
pub(super) struct Trunk {
    /// The model without its graph.
    model: Message,
    /// The graph with the nodes and weights that the features need, and without outputs.
    graph: Message,
    /// The value that the head reads: float32, images × `width`.
    pub features: String,
    pub width: usize,
    /// The output of the base for features, kept as it is.
    features_output: Option<Bytes>,
    names: BTreeSet<String>,
}

impl Trunk {
    /// Cuts a model before its output `features`, or else before the last `Gemm` or `MatMul` of its scores. `scores` is
    /// the output with the scores, if it is not the first.
    ///
    /// # Errors
    /// One line that says why the model has no features that a head could read.
    pub(super) fn cut(bytes: &Bytes, scores: Option<&str>) -> anyhow::Result<Trunk> {
        let facts = OnnxFile::parse(bytes)?;
        let mut model = Message::parse(bytes)?;
        let graph = model.message(model::GRAPH)?.context("it has no graph")?;
        let parts = Parts::of(&graph)?;
        let output = facts.outputs.iter().find(|output| output.name == FEATURES);
        let (source, width) = match output {
            Some(output) => (FEATURES.to_owned(), parts.width_of_output(output, &facts, scores)?),
            None => parts.last_linear_layer(score_output(&facts, scores)?)?,
        };
        let features_output =
            output.and_then(|_| graph.bytes(graph::OUTPUT).find(|value| name_of(value, 1) == FEATURES));
        let features_output = features_output.cloned();
        let (mut pruned, mut names) = parts.pruned(&graph, &source)?;
        model.fields.retain(|field| field.number != model::GRAPH);
        let float = free_name(&mut names, &format!("{PREFIX}.features.float"));
        let flat = free_name(&mut names, FEATURES);
        pruned.push_message(graph::NODE, &new_node("Cast", &[&source], &float, &[("to", FLOAT32)]));
        pruned.push_message(graph::NODE, &new_node("Flatten", &[&float], &flat, &[("axis", 1)]));
        Ok(Trunk { model, graph: pruned, features: flat, width, features_output, names })
    }

    /// The file whose only output is the features.
    pub(super) fn feature_model(&self) -> Vec<u8> {
        let mut graph = self.graph.clone();
        graph.push_message(graph::OUTPUT, &new_value(&self.features, self.width));
        self.finish(&graph)
    }

    /// The file whose first output is the scores of a head, and whose second is the features.
    pub(super) fn with_head(&self, head: &Head) -> Vec<u8> {
        let mut graph = self.graph.clone();
        let mut names = self.names.clone();
        let weights = free_name(&mut names, &format!("{PREFIX}.head.weight"));
        let biases = free_name(&mut names, &format!("{PREFIX}.head.bias"));
        let scores = free_name(&mut names, SCORES);
        let classes = head.biases.len();
        graph.push_message(graph::INITIALIZER, &new_tensor(&weights, &[classes, self.width], &head.weights));
        graph.push_message(graph::INITIALIZER, &new_tensor(&biases, &[classes], &head.biases));
        let inputs = [self.features.as_str(), &weights, &biases];
        graph.push_message(graph::NODE, &new_node("Gemm", &inputs, &scores, &[("transB", 1)]));
        graph.push_message(graph::OUTPUT, &new_value(&scores, classes));
        match &self.features_output {
            Some(output) => graph.push_bytes(graph::OUTPUT, output.clone()),
            None => graph.push_message(graph::OUTPUT, &new_value(&self.features, self.width)),
        }
        self.finish(&graph)
    }

    fn finish(&self, graph: &Message) -> Vec<u8> {
        let mut model = self.model.clone();
        // Texts about the old classes would be wrong now.
        let is_about_classes = |value: &FieldValue| matches!(value, FieldValue::Bytes(b) if name_of(b, 1) == "names");
        model.fields.retain(|field| field.number != model::METADATA || !is_about_classes(&field.value));
        model.push_message(model::GRAPH, graph);
        model.encode()
    }
}

/// The wanted name, with a number if the graph has it already.
fn free_name(names: &mut BTreeSet<String>, wanted: &str) -> String {
    let mut name = wanted.to_owned();
    let mut number = 1;
    while !names.insert(name.clone()) {
        number += 1;
        name = format!("{wanted}.{number}");
    }
    name
}

fn score_output<'a>(facts: &'a OnnxFile, scores: Option<&str>) -> anyhow::Result<&'a str> {
    let found = match scores {
        Some(name) => facts.outputs.iter().find(|output| output.name == name),
        None => facts.outputs.iter().find(|output| output.name != FEATURES),
    };
    Ok(&found.context("it has no output with scores")?.name)
}

/// The nodes and weights of a graph by name.
struct Parts {
    nodes: Vec<Node>,
    /// The index of the node that makes each value.
    producers: HashMap<String, usize>,
    /// The axes of each weight.
    weights: BTreeMap<String, Vec<u64>>,
}

struct Node {
    operator: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    message: Message,
}

impl Parts {
    fn of(graph: &Message) -> anyhow::Result<Parts> {
        let texts = |message: &Message, number| -> Vec<String> {
            message.bytes(number).map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        };
        let mut parts = Parts { nodes: Vec::new(), producers: HashMap::new(), weights: BTreeMap::new() };
        for message in graph.messages(graph::NODE)? {
            let node = Node {
                operator: message.text(node::OP_TYPE).unwrap_or_default(),
                inputs: texts(&message, node::INPUT),
                outputs: texts(&message, node::OUTPUT),
                message,
            };
            let index = parts.nodes.len();
            parts.producers.extend(node.outputs.iter().map(|output| (output.clone(), index)));
            parts.nodes.push(node);
        }
        for weight in graph.messages(graph::INITIALIZER)? {
            let name = weight.text(tensor::NAME).unwrap_or_default();
            parts.weights.insert(name, weight.varints(tensor::DIMENSIONS)?);
        }
        Ok(parts)
    }

    fn producer(&self, value: &str) -> Option<&Node> {
        self.producers.get(value).map(|index| &self.nodes[*index])
    }

    /// The width of the output `features`: its declared size, or else that of the linear layer that reads it.
    fn width_of_output(&self, output: &TensorInfo, facts: &OnnxFile, scores: Option<&str>) -> anyhow::Result<usize> {
        let declared = output.shape.get(1..).filter(|axes| !axes.is_empty());
        let declared = declared.and_then(|axes| axes.iter().try_fold(1_u64, |width, axis| width.checked_mul((*axis)?)));
        if let Some(width) = declared.and_then(|width| usize::try_from(width).ok()) {
            return Ok(width);
        }
        let layer = score_output(facts, scores).and_then(|scores| self.last_linear_layer(scores));
        layer.map(|(_, width)| width).context("its output `features` has no fixed size; export it with one")
    }

    /// The input of the last linear layer before the scores, and its width.
    fn last_linear_layer(&self, scores: &str) -> anyhow::Result<(String, usize)> {
        const PASSED: [&str; 11] = [
            "Identity",
            "Cast",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Reshape",
            "QuantizeLinear",
            "DequantizeLinear",
            "Softmax",
            "LogSoftmax",
            "Sigmoid",
        ];
        const WAY_OUT: &str = "export the base with a second output named `features`, images × features";
        let mut value = scores;
        for _ in 0..MAX_FINAL_NODES {
            let Some(node) = self.producer(value) else { break };
            let input = |index: usize| node.inputs.get(index).map_or("", String::as_str);
            match node.operator.as_str() {
                "Gemm" | "MatMul" => {
                    let axes = self.constant_axes(input(1), 0);
                    let is_transposed = node.operator == "Gemm" && int_attribute(&node.message, "transB")? == 1;
                    let is_plain = node.operator == "MatMul" || int_attribute(&node.message, "transA")? == 0;
                    let Some(&[rows, columns]) = axes.as_deref().filter(|_| is_plain) else {
                        bail!("the weights of its last {} are not fixed; {WAY_OUT}", node.operator)
                    };
                    let width = usize::try_from(if is_transposed { columns } else { rows })?;
                    return Ok((input(0).to_owned(), width));
                }
                "Add" if self.constant_axes(input(1), 0).is_some() => value = input(0),
                "Add" if self.constant_axes(input(0), 0).is_some() => value = input(1),
                operator if PASSED.contains(&operator) => value = input(0),
                operator => bail!("its last layer is {operator}, not a Gemm or MatMul to cut before; {WAY_OUT}"),
            }
        }
        bail!("it has no Gemm or MatMul to cut before; {WAY_OUT}")
    }

    /// The axes of a value that does not depend on the image.
    fn constant_axes(&self, value: &str, depth: usize) -> Option<Vec<u64>> {
        if let Some(axes) = self.weights.get(value) {
            return Some(axes.clone());
        }
        let node = self.producer(value).filter(|_| depth < MAX_FINAL_NODES)?;
        let axes = || self.constant_axes(node.inputs.first()?, depth + 1);
        match node.operator.as_str() {
            "Constant" => {
                let attribute = attribute_of(&node.message, "value").ok().flatten()?;
                attribute.message(attribute::TENSOR).ok().flatten()?.varints(tensor::DIMENSIONS).ok()
            }
            "DequantizeLinear" | "QuantizeLinear" | "Cast" | "Identity" => axes(),
            "Transpose" => axes().map(|mut axes| {
                axes.reverse();
                axes
            }),
            _ => None,
        }
    }

    /// The graph with what `source` needs, without outputs, and the names in it.
    fn pruned(&self, graph: &Message, source: &str) -> anyhow::Result<(Message, BTreeSet<String>)> {
        let mut needed: BTreeSet<String> = BTreeSet::from([source.to_owned()]);
        let mut kept = vec![false; self.nodes.len()];
        let mut waiting = vec![source.to_owned()];
        while let Some(value) = waiting.pop() {
            let Some(&index) = self.producers.get(&value) else { continue };
            if std::mem::replace(&mut kept[index], true) {
                continue;
            }
            let node = &self.nodes[index];
            needed.extend(node.outputs.iter().cloned());
            for input in node.inputs.iter().cloned().chain(subgraph_inputs(&node.message, 0)?) {
                if needed.insert(input.clone()) {
                    waiting.push(input);
                }
            }
        }
        let mut position = 0;
        let mut pruned = Message::default();
        for field in &graph.fields {
            let name = |number| match &field.value {
                FieldValue::Bytes(bytes) => name_of(bytes, number),
                _ => String::new(),
            };
            let is_kept = match field.number {
                graph::NODE => {
                    position += 1;
                    kept[position - 1]
                }
                graph::OUTPUT => false,
                graph::INITIALIZER => needed.contains(&name(tensor::NAME)),
                // An input that is a weight, as old files list them.
                graph::INPUT => !self.weights.contains_key(&name(1)) || needed.contains(&name(1)),
                VALUE_INFO | QUANTIZATION => needed.contains(&name(1)),
                _ => true,
            };
            if is_kept {
                pruned.fields.push(field.clone());
            }
        }
        ensure!(position == self.nodes.len(), "its nodes are not messages");
        needed.extend(graph.bytes(graph::INPUT).map(|input| name_of(input, 1)));
        Ok((pruned, needed))
    }
}

/// The names that the subgraphs of a node read, which may be values of the graph around them.
fn subgraph_inputs(node: &Message, depth: usize) -> anyhow::Result<Vec<String>> {
    const MAX_DEPTH: usize = 8;
    ensure!(depth < MAX_DEPTH, "its graphs are nested more than {MAX_DEPTH} times");
    let mut names = Vec::new();
    for attribute in node.messages(node::ATTRIBUTE)? {
        for number in [attribute::GRAPH, attribute::GRAPHS] {
            for graph in attribute.messages(number)? {
                names.extend(graph.bytes(graph::OUTPUT).map(|output| name_of(output, 1)));
                for inner in graph.messages(graph::NODE)? {
                    names.extend(inner.bytes(node::INPUT).map(|name| String::from_utf8_lossy(name).into_owned()));
                    names.extend(subgraph_inputs(&inner, depth + 1)?);
                }
            }
        }
    }
    Ok(names)
}

fn attribute_of(node: &Message, name: &str) -> anyhow::Result<Option<Message>> {
    let attributes = node.messages(node::ATTRIBUTE)?;
    Ok(attributes.into_iter().find(|attribute| attribute.text(attribute::NAME).as_deref() == Some(name)))
}

/// The value of a number attribute, 0 if it is missing.
fn int_attribute(node: &Message, name: &str) -> anyhow::Result<u64> {
    Ok(attribute_of(node, name)?.and_then(|attribute| attribute.varint(attribute::INTEGER)).unwrap_or(0))
}

/// A text in a nested message. Empty if there is none.
fn name_of(message: &Bytes, number: u32) -> String {
    Message::parse(message).ok().and_then(|message| message.text(number)).unwrap_or_default()
}

/// A node with the name that says who added it.
fn new_node(operator: &str, inputs: &[&str], output: &str, attributes: &[(&str, u64)]) -> Message {
    let attributes: Vec<Message> = attributes.iter().map(|(name, value)| onnx_writer::integer(name, *value)).collect();
    let mut node = onnx_writer::node(operator, inputs, output, &attributes);
    node.push_bytes(node::NAME, format!("{PREFIX}.{operator}.{output}"));
    node
}

fn new_tensor(name: &str, axes: &[usize], values: &[f32]) -> Message {
    let axes: Vec<u64> = axes.iter().map(|axis| *axis as u64).collect();
    onnx_writer::tensor(name, FLOAT32, &axes, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// An output of float32, any number of images × `width`.
fn new_value(name: &str, width: usize) -> Message {
    onnx_writer::value(name, FLOAT32, &[None, Some(width as u64)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(name: &str, axes: &[usize]) -> Message {
        new_tensor(name, axes, &vec![0.5; axes.iter().product()])
    }

    /// A graph with the given nodes, weights and outputs, and a field that no schema knows.
    fn file(nodes: &[Message], weights: &[Message], outputs: &[(&str, usize)]) -> Bytes {
        let mut graph = Message::default();
        for node in nodes {
            graph.push_message(graph::NODE, node);
        }
        for weight in weights {
            graph.push_message(graph::INITIALIZER, weight);
        }
        graph.push_message(graph::INPUT, &new_value("x", 4));
        for (name, width) in outputs {
            graph.push_message(graph::OUTPUT, &new_value(name, *width));
        }
        graph.push_bytes(999, "kept");
        let mut model = onnx_writer::model(&graph, 13);
        model.push_bytes(998, "kept too");
        model.encode().into()
    }

    fn operators(bytes: Vec<u8>) -> (Vec<String>, OnnxFile) {
        let bytes = Bytes::from(bytes);
        let model = Message::parse(&bytes).unwrap();
        let graph = model.message(model::GRAPH).unwrap().unwrap();
        assert_eq!((graph.text(999).unwrap().as_str(), model.text(998).unwrap().as_str()), ("kept", "kept too"));
        let nodes = graph.messages(graph::NODE).unwrap();
        (nodes.iter().map(|node| node.text(node::OP_TYPE).unwrap()).collect(), OnnxFile::parse(&bytes).unwrap())
    }

    fn head() -> Head {
        Head { weights: vec![0.0; 12], biases: vec![0.0; 2], iterations: 1, has_converged: true }
    }

    fn outputs(facts: &OnnxFile) -> Vec<(&str, String)> {
        facts.outputs.iter().map(|output| (output.name.as_str(), output.shape_text())).collect()
    }

    #[test]
    fn graph_is_cut_before_its_last_linear_layer() {
        let linear = [
            new_node("Relu", &["x"], "r", &[]),
            new_node("MatMul", &["r", "w"], "m", &[]),
            new_node("Add", &["b", "m"], "s", &[]),
            new_node("Softmax", &["s"], "y", &[]),
        ];
        let gemm = [
            new_node("Relu", &["x"], "r", &[]),
            new_node("DequantizeLinear", &["q"], "w", &[]),
            new_node("Gemm", &["r", "w", "b"], "y", &[("transB", 1)]),
        ];
        let linear = file(&linear, &[weight("w", &[6, 3]), weight("b", &[3])], &[("y", 3)]);
        let gemm = file(&gemm, &[weight("q", &[3, 6]), weight("b", &[3])], &[("y", 3)]);
        for file in [linear, gemm] {
            let trunk = Trunk::cut(&file, None).unwrap();
            assert_eq!(trunk.width, 6);
            let (nodes, facts) = operators(trunk.feature_model());
            assert_eq!(nodes, ["Relu", "Cast", "Flatten"]);
            assert_eq!(outputs(&facts), [("features", "[?, 6]".to_owned())]);
            let (nodes, facts) = operators(trunk.with_head(&head()));
            assert_eq!(nodes, ["Relu", "Cast", "Flatten", "Gemm"]);
            assert_eq!(outputs(&facts), [("logits", "[?, 2]".to_owned()), ("features", "[?, 6]".to_owned())]);
            assert_eq!(facts.outputs[0].operator, "Gemm");
        }
    }

    #[test]
    fn output_for_features_is_preferred_and_kept() {
        let nodes = [
            new_node("Relu", &["x"], "features", &[]),
            new_node("Conv", &["features", "w"], "logits", &[]),
            new_node("Identity", &["features"], "unused", &[]),
        ];
        let file = file(&nodes, &[weight("w", &[3, 6])], &[("logits", 3), ("features", 6)]);
        let trunk = Trunk::cut(&file, None).unwrap();
        let (nodes, facts) = operators(trunk.with_head(&head()));
        assert_eq!(nodes, ["Relu", "Cast", "Flatten", "Gemm"]);
        let names: Vec<&str> = facts.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names[1], "features");
        assert_eq!(facts.outputs[1].shape_text(), "[?, 6]");
        // A fitted model can be a base again.
        let again = Trunk::cut(&trunk.with_head(&head()).into(), Some(names[0])).unwrap();
        assert_eq!(operators(again.with_head(&head())).0, ["Relu", "Cast", "Flatten", "Gemm"]);
    }

    #[test]
    fn graph_without_a_linear_layer_is_refused_with_the_way_out() {
        let refused = |nodes: &[Message]| Trunk::cut(&file(nodes, &[], &[("y", 3)]), None).err().unwrap().to_string();
        let conv = [new_node("Conv", &["x"], "c", &[]), new_node("Flatten", &["c"], "y", &[])];
        assert!(refused(&conv).starts_with("its last layer is Conv"), "{}", refused(&conv));
        let variable = [new_node("MatMul", &["x", "x"], "y", &[])];
        assert!(refused(&variable).contains("not fixed") && refused(&variable).contains("`features`"));
        assert!(Trunk::cut(&Bytes::from_static(b"not a model"), None).is_err());
    }

    #[test]
    fn values_that_a_subgraph_reads_are_kept() {
        let mut inner = Message::default();
        inner.push_message(graph::NODE, &new_node("Add", &["outer", "outer"], "i", &[]));
        let mut attribute = Message::default();
        attribute.push_bytes(attribute::NAME, "then_branch");
        attribute.push_message(attribute::GRAPH, &inner);
        let mut condition = new_node("If", &["x"], "r", &[]);
        condition.push_message(node::ATTRIBUTE, &attribute);
        let nodes = [new_node("Neg", &["x"], "outer", &[]), condition, new_node("Gemm", &["r", "w"], "y", &[])];
        let file = file(&nodes, &[weight("w", &[6, 3])], &[("y", 3)]);
        let trunk = Trunk::cut(&file, None).unwrap();
        assert_eq!(operators(trunk.feature_model()).0, ["Neg", "If", "Cast", "Flatten"]);
    }
}
