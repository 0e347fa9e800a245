//! A model of a few kilobytes for tests: it classifies an image by its mean colour. The seed of its weights makes one
//! version differ from another.

use std::fs;
use std::path::{Path, PathBuf};

use imgcls::model::onnx_writer::{FLOAT32, model, node, tensor, value};
use imgcls::model::{Message, onnx_field as field};
use sha2::{Digest as _, Sha256};

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
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    for (operator, inputs, output) in [
        ("GlobalAveragePool", &["input"][..], "pooled"),
        ("Flatten", &["pooled"], "flat"),
        ("Gemm", &["flat", "weights", "bias"], "logits"),
    ] {
        graph.push_message(field::graph::NODE, &node(operator, inputs, output, &[]));
    }
    graph.push_bytes(field::graph::NAME, "tiny");
    let classes = CLASSES as u64;
    graph.push_message(field::graph::INITIALIZER, &tensor("weights", FLOAT32, &[3, classes], floats(&weights)));
    graph.push_message(field::graph::INITIALIZER, &tensor("bias", FLOAT32, &[classes], floats(&bias)));
    let pixels = [None, Some(3), Some(SIDE), Some(SIDE)];
    graph.push_message(field::graph::INPUT, &value("input", FLOAT32, &pixels));
    graph.push_message(field::graph::OUTPUT, &value("logits", FLOAT32, &[None, Some(classes)]));
    model(&graph, 13).encode()
}

/// A number between -3 and 3, by the finalizer of MurmurHash3.
fn weight(seed: u32, index: u32) -> f32 {
    let mut hash = seed.wrapping_mul(0x9e37_79b9) ^ index.wrapping_mul(0x85eb_ca6b).wrapping_add(1);
    for factor in [0x85eb_ca6b_u32, 0xc2b2_ae35] {
        hash = (hash ^ (hash >> 15)).wrapping_mul(factor);
    }
    ((hash ^ (hash >> 16)) as f32 / u32::MAX as f32 - 0.5) * 6.0
}
