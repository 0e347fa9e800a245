//! Facts of an ONNX file that are read without ONNX Runtime: inputs, outputs, operator sets, metadata and the files that
//! contain its weights. No code of a model is run, and no tensor is copied.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use anyhow::{Context as _, ensure};
use bytes::Bytes;

use super::file::read_large;
use super::onnx_field as field;
use super::protobuf::Message;

/// Protobuf cannot hold more.
const MAX_BYTES: u64 = 2 << 30;
/// Subgraphs of subgraphs. ONNX Runtime refuses deeper ones too.
const MAX_DEPTH: usize = 8;
/// Nodes between the output and the operator that makes it, such as casts.
const MAX_FINAL_NODES: usize = 8;

/// The number of the element type float16.
const FLOAT16: u64 = 10;
/// Operators of networks with 8-bit weights.
const QUANTISED: [&str; 5] = ["DequantizeLinear", "QuantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"];

/// The facts of an ONNX file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnnxFile {
    /// The inputs that a caller has to give.
    pub inputs: Vec<TensorInfo>,
    /// The outputs.
    pub outputs: Vec<TensorInfo>,
    /// The version of each operator set, by its domain. The domain of ONNX itself is empty.
    pub opsets: BTreeMap<String, u64>,
    /// The program that wrote the file.
    pub producer: String,
    /// Texts that the exporter added, by their names.
    pub metadata: BTreeMap<String, String>,
    /// Paths, relative to the folder of the file, of the files that contain weights.
    pub external: Vec<String>,
    /// How the weights are stored: `fp32`, `fp16` or `int8`.
    pub precision: &'static str,
}

/// An input or an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the graph.
    pub name: String,
    /// The element type as ONNX numbers it.
    pub element: u64,
    /// The axes. `None` means any size.
    pub shape: Vec<Option<u64>>,
    /// The operator that makes this output, behind casts and the like. Empty for an input.
    pub operator: String,
}

impl OnnxFile {
    /// Reads a file. Its size is checked first, so that at most 2 GiB are read.
    ///
    /// # Errors
    /// A message of one line that says what is wrong and what to do.
    pub fn read(path: &Path) -> anyhow::Result<OnnxFile> {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let size = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
        ensure!(
            size <= MAX_BYTES,
            "{} has {size} bytes, and an ONNX file has at most {MAX_BYTES}; export it with external data, which keeps \
             the weights in a file beside it",
            path.display()
        );
        let mut bytes = Vec::new();
        read_large(file, &mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        OnnxFile::parse(&bytes.into()).with_context(|| {
            format!("{} is not an ONNX file, or is damaged; export or download it again", path.display())
        })
    }

    /// Parses the bytes of a file.
    ///
    /// # Errors
    /// If they are not an ONNX model.
    pub fn parse(bytes: &Bytes) -> anyhow::Result<OnnxFile> {
        let model = Message::parse(bytes)?;
        let graph = model.message(field::model::GRAPH)?.context("it has no graph")?;
        let nodes = graph.messages(field::graph::NODE)?;
        ensure!(!nodes.is_empty(), "its graph is empty");
        let mut weights = Weights::default();
        let initializers = weights.collect(&graph, &nodes, 0)?;
        let mut inputs =
            graph.messages(field::graph::INPUT)?.iter().map(tensor_info).collect::<anyhow::Result<Vec<_>>>()?;
        inputs.retain(|input| !initializers.contains(&input.name));
        let mut outputs =
            graph.messages(field::graph::OUTPUT)?.iter().map(tensor_info).collect::<anyhow::Result<Vec<_>>>()?;
        let producers = producers(&nodes);
        for output in &mut outputs {
            output.operator = final_operator(&producers, &output.name);
        }
        let mut opsets = BTreeMap::new();
        for opset in model.messages(field::model::OPSET)? {
            opsets.insert(opset.text(1).unwrap_or_default(), opset.varint(2).unwrap_or_default());
        }
        let mut metadata = BTreeMap::new();
        for entry in model.messages(field::model::METADATA)? {
            metadata.insert(entry.text(1).unwrap_or_default(), entry.text(2).unwrap_or_default());
        }
        let producer = model.text(field::model::PRODUCER).unwrap_or_default();
        let precision = weights.precision();
        let external = weights.external.into_iter().collect();
        Ok(OnnxFile { inputs, outputs, opsets, producer, metadata, external, precision })
    }
}

impl TensorInfo {
    /// The name of the element type, as `model.toml` writes it.
    pub fn element_name(&self) -> &'static str {
        match self.element {
            1 => "float32",
            2 => "uint8",
            3 => "int8",
            6 => "int32",
            7 => "int64",
            8 => "string",
            9 => "bool",
            10 => "float16",
            11 => "float64",
            16 => "bfloat16",
            _ => "another type",
        }
    }

    /// The axes for a person, such as `[?, 3, 224, 224]`.
    pub fn shape_text(&self) -> String {
        let axes: Vec<String> =
            self.shape.iter().map(|axis| axis.map_or_else(|| "?".to_owned(), |axis| axis.to_string())).collect();
        format!("[{}]", axes.join(", "))
    }
}

/// The facts about the weights in the graphs of a file.
#[derive(Default)]
struct Weights {
    external: BTreeSet<String>,
    tensors: usize,
    half_precision_tensors: usize,
    is_quantised: bool,
}

impl Weights {
    /// Adds the weights of a graph and its subgraphs. Returns the names of its initializers.
    fn collect(&mut self, graph: &Message, nodes: &[Message], depth: usize) -> anyhow::Result<BTreeSet<String>> {
        ensure!(depth <= MAX_DEPTH, "its graphs are nested more than {MAX_DEPTH} times");
        let mut names = BTreeSet::new();
        for tensor in graph.messages(field::graph::INITIALIZER)? {
            self.external.extend(external_file(&tensor)?);
            self.tensors += 1;
            self.half_precision_tensors += usize::from(tensor.varint(field::tensor::DATA_TYPE) == Some(FLOAT16));
            names.extend(tensor.text(field::tensor::NAME));
        }
        for node in nodes {
            let operator = node.bytes(field::node::OP_TYPE).next();
            self.is_quantised |=
                operator.is_some_and(|name| QUANTISED.iter().any(|known| known.as_bytes() == &name[..]));
            for attribute in node.messages(field::node::ATTRIBUTE)? {
                if let Some(tensor) = attribute.message(field::attribute::TENSOR)? {
                    self.external.extend(external_file(&tensor)?);
                }
                if let Some(graph) = attribute.message(field::attribute::GRAPH)? {
                    self.collect(&graph, &graph.messages(field::graph::NODE)?, depth + 1)?;
                }
            }
        }
        Ok(names)
    }

    fn precision(&self) -> &'static str {
        match (self.is_quantised, self.half_precision_tensors * 2 > self.tensors) {
            (true, _) => "int8",
            (false, true) => "fp16",
            (false, false) => "fp32",
        }
    }
}

/// The file of a tensor whose data is external.
fn external_file(tensor: &Message) -> anyhow::Result<Option<String>> {
    if tensor.varint(field::tensor::DATA_LOCATION) != Some(1) {
        return Ok(None);
    }
    let entries = tensor.messages(field::tensor::EXTERNAL_DATA)?;
    let location = entries.iter().find(|entry| entry.text(1).as_deref() == Some("location"));
    let location = location.and_then(|entry| entry.text(2)).context("a tensor with external data names no file")?;
    let is_inside = Path::new(&location).components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(is_inside && !location.is_empty(), "its external data {location:?} is not inside its folder");
    Ok(Some(location))
}

fn tensor_info(value: &Message) -> anyhow::Result<TensorInfo> {
    let name = value.text(1).unwrap_or_default();
    let tensor = value.message(2)?.map(|kind| kind.message(1)).transpose()?.flatten().unwrap_or_default();
    let shape = tensor.message(2)?.unwrap_or_default();
    // Some exporters write -1 for any size.
    let is_fixed = |size: &u64| (1..=i64::MAX as u64).contains(size);
    let axes = shape.messages(1)?.iter().map(|axis| axis.varint(1).filter(is_fixed)).collect();
    Ok(TensorInfo { name, element: tensor.varint(1).unwrap_or_default(), shape: axes, operator: String::new() })
}

/// The operator and the first input of the node that makes each value.
fn producers(nodes: &[Message]) -> BTreeMap<String, (String, String)> {
    let mut producers = BTreeMap::new();
    for node in nodes {
        let operator = node.text(field::node::OP_TYPE).unwrap_or_default();
        let input = node.bytes(field::node::INPUT).next();
        let input = input.map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
        for output in node.bytes(field::node::OUTPUT) {
            producers.insert(String::from_utf8_lossy(output).into_owned(), (operator.clone(), input.clone()));
        }
    }
    producers
}

/// The operator that makes a value, behind those that only change its form.
fn final_operator(producers: &BTreeMap<String, (String, String)>, name: &str) -> String {
    const FORM_ONLY: [&str; 8] =
        ["Identity", "Cast", "Squeeze", "Flatten", "Reshape", "QuantizeLinear", "DequantizeLinear", "Unsqueeze"];
    let mut name = name;
    for _ in 0..MAX_FINAL_NODES {
        let Some((operator, input)) = producers.get(name) else { return String::new() };
        if !FORM_ONLY.contains(&operator.as_str()) {
            return operator.clone();
        }
        name = input;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::super::onnx_writer::{self, entry, external_tensor, node, value};
    use super::*;

    fn model(location: &str) -> Vec<u8> {
        let weights = external_tensor("weights", 1, &[3], location);
        let mut graph = Message::default();
        graph.push_message(field::graph::NODE, &node("Softmax", &["x"], "y", &[]));
        graph.push_message(field::graph::NODE, &node("Cast", &["y"], "scores", &[]));
        graph.push_message(field::graph::INITIALIZER, &weights);
        graph.push_message(field::graph::INPUT, &value("x", 1, &[None, Some(3), Some(8), Some(8)]));
        graph.push_message(field::graph::INPUT, &value("weights", 1, &[Some(3)]));
        graph.push_message(field::graph::OUTPUT, &value("scores", 10, &[Some(u64::MAX), Some(3)]));
        let mut model = onnx_writer::model(&graph, 17);
        model.push_bytes(field::model::PRODUCER, "a test");
        model.push_message(field::model::METADATA, &entry("task", "classify"));
        model.encode()
    }

    #[test]
    fn facts_of_a_file_are_read() {
        let facts = OnnxFile::parse(&model("weights.bin").into()).unwrap();
        let [input] = facts.inputs.as_slice() else { panic!("{facts:?}") };
        assert_eq!((input.name.as_str(), input.element_name()), ("x", "float32"));
        assert_eq!(input.shape_text(), "[?, 3, 8, 8]");
        assert_eq!((facts.outputs[0].operator.as_str(), facts.outputs[0].element_name()), ("Softmax", "float16"));
        assert_eq!(facts.outputs[0].shape, [None, Some(3)], "-1 means any size");
        assert_eq!(facts.external, ["weights.bin"]);
        assert_eq!((facts.opsets[""], facts.metadata["task"].as_str()), (17, "classify"));
    }

    #[test]
    fn external_data_outside_of_the_folder_is_refused() {
        for location in ["../weights.bin", "/etc/passwd", "a/../../b", ""] {
            let error = format!("{:#}", OnnxFile::parse(&model(location).into()).unwrap_err());
            assert!(error.contains("is not inside its folder"), "{location}: {error}");
        }
    }

    #[test]
    fn damaged_file_is_an_error_of_one_line() {
        let bytes = model("weights.bin");
        for at in 0..bytes.len() {
            let _ = OnnxFile::parse(&bytes[..at].to_vec().into());
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, b"not a model at all").unwrap();
        let error = format!("{:#}", OnnxFile::read(&path).unwrap_err());
        assert!(error.contains("is not an ONNX file") && !error.contains('\n'), "{error}");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(MAX_BYTES + 1).unwrap();
        let error = format!("{:#}", OnnxFile::read(&path).unwrap_err());
        assert!(error.contains("external data") && !error.contains('\n'), "{error}");
    }
}
