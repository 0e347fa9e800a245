//! A model of a few kilobytes for tests: it classifies an image by its mean colour. The seed of its weights makes one
//! version differ from another.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::onnx_graph::Message;

pub const CLASSES: usize = 5;
const SIDE: u64 = 8;

/// Writes the package `name` of a version into `folder`, and returns the folder.
pub fn write_package(folder: &Path, name: &str, version: &str, seed: u32) -> PathBuf {
    write_package_with(folder, name, version, seed, "output = \"logits\"\n")
}

/// The same with the lines of `model.toml` that describe the output.
pub fn write_package_with(folder: &Path, name: &str, version: &str, seed: u32, output: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let model = onnx(seed);
    let labels: String = (0..CLASSES).map(|class| format!("n0000000{class} colour {class}\n")).collect();
    let description = format!(
        "name = \"{name}\"\nversion = \"{version}\"\nlabels = \"labels.txt\"\n{output}\
         [files.fp32]\npath = \"model.onnx\"\nsha256 = \"{}\"\n[labels_file]\nsha256 = \"{}\"\n\
         [input]\nname = \"input\"\nlayout = \"NCHW\"\nchannels = \"RGB\"\nresize = \"short-side\"\nshort_side = {SIDE}\n\
         filter = \"bicubic\"\ncrop = {SIDE}\nmean = [127.0, 127.0, 127.0]\nstd = [64.0, 64.0, 64.0]\n",
        digest(&model),
        digest(labels.as_bytes())
    );
    fs::write(folder.join("model.onnx"), model).unwrap();
    fs::write(folder.join("labels.txt"), labels).unwrap();
    // This file comes last, since a folder is a package once it has it.
    fs::write(folder.join("model.toml"), description).unwrap();
    folder.to_owned()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// GlobalAveragePool → Flatten → Gemm.
fn onnx(seed: u32) -> Vec<u8> {
    let weights: Vec<f32> = (0..3 * CLASSES as u32).map(|index| weight(seed, index)).collect();
    let bias: Vec<f32> = (0..CLASSES as u32).map(|index| weight(seed, 100 + index)).collect();
    let mut graph = Message::default();
    graph.message(1, &node("GlobalAveragePool", &["input"], "pooled"));
    graph.message(1, &node("Flatten", &["pooled"], "flat"));
    graph.message(1, &node("Gemm", &["flat", "weights", "bias"], "logits"));
    graph.text(2, "tiny");
    graph.message(5, &tensor("weights", &[3, CLASSES as u64], &weights));
    graph.message(5, &tensor("bias", &[CLASSES as u64], &bias));
    graph.message(11, &value("input", &[None, Some(3), Some(SIDE), Some(SIDE)]));
    graph.message(12, &value("logits", &[None, Some(CLASSES as u64)]));
    let mut opset = Message::default();
    opset.number(2, 13);
    let mut model = Message::default();
    model.number(1, 8);
    model.message(7, &graph);
    model.message(8, &opset);
    model.0
}

/// A number between -3 and 3, by the finalizer of MurmurHash3.
fn weight(seed: u32, index: u32) -> f32 {
    let mut hash = seed.wrapping_mul(0x9e37_79b9) ^ index.wrapping_mul(0x85eb_ca6b).wrapping_add(1);
    for factor in [0x85eb_ca6b_u32, 0xc2b2_ae35] {
        hash = (hash ^ (hash >> 15)).wrapping_mul(factor);
    }
    ((hash ^ (hash >> 16)) as f32 / u32::MAX as f32 - 0.5) * 6.0
}

fn node(operator: &str, inputs: &[&str], output: &str) -> Message {
    let mut node = Message::default();
    for input in inputs {
        node.text(1, input);
    }
    node.text(2, output);
    node.text(4, operator);
    node
}

fn tensor(name: &str, shape: &[u64], values: &[f32]) -> Message {
    let mut tensor = Message::default();
    for axis in shape {
        tensor.number(1, *axis);
    }
    tensor.number(2, 1);
    tensor.text(8, name);
    tensor.bytes(9, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    tensor
}

/// A float tensor of the graph; an axis of `None` takes any size.
fn value(name: &str, shape: &[Option<u64>]) -> Message {
    let mut axes = Message::default();
    for axis in shape {
        let mut dimension = Message::default();
        match axis {
            Some(size) => dimension.number(1, *size),
            None => dimension.text(2, "batch"),
        }
        axes.message(1, &dimension);
    }
    let mut tensor = Message::default();
    tensor.number(1, 1);
    tensor.message(2, &axes);
    let mut kind = Message::default();
    kind.message(1, &tensor);
    let mut value = Message::default();
    value.text(1, name);
    value.message(2, &kind);
    value
}
