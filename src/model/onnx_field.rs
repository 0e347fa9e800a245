//! The numbers of the fields of ONNX messages, by message.

/// `ModelProto`.
pub mod model {
    /// The version of the file format.
    pub const IR_VERSION: u32 = 1;
    /// The program that wrote the file.
    pub const PRODUCER: u32 = 2;
    /// The graph.
    pub const GRAPH: u32 = 7;
    /// The operator sets.
    pub const OPSET: u32 = 8;
    /// Texts of the exporter.
    pub const METADATA: u32 = 14;
}

/// `GraphProto`.
pub mod graph {
    /// The nodes.
    pub const NODE: u32 = 1;
    /// The name.
    pub const NAME: u32 = 2;
    /// The weights.
    pub const INITIALIZER: u32 = 5;
    /// The inputs.
    pub const INPUT: u32 = 11;
    /// The outputs.
    pub const OUTPUT: u32 = 12;
}

/// `NodeProto`.
pub mod node {
    /// The names of the inputs.
    pub const INPUT: u32 = 1;
    /// The names of the outputs.
    pub const OUTPUT: u32 = 2;
    /// The name.
    pub const NAME: u32 = 3;
    /// The operator.
    pub const OP_TYPE: u32 = 4;
    /// The attributes.
    pub const ATTRIBUTE: u32 = 5;
}

/// `AttributeProto`.
pub mod attribute {
    /// The name.
    pub const NAME: u32 = 1;
    /// The value if it is a whole number.
    pub const INTEGER: u32 = 3;
    /// The value if it is a tensor.
    pub const TENSOR: u32 = 5;
    /// The value if it is a graph.
    pub const GRAPH: u32 = 6;
    /// The value if it is a list of whole numbers.
    pub const INTEGERS: u32 = 8;
    /// The value if it is a list of graphs.
    pub const GRAPHS: u32 = 11;
    /// Which of them the value is.
    pub const TYPE: u32 = 20;
}

/// `TensorProto`.
pub mod tensor {
    /// The axes.
    pub const DIMENSIONS: u32 = 1;
    /// The element type.
    pub const DATA_TYPE: u32 = 2;
    /// The name.
    pub const NAME: u32 = 8;
    /// The elements as bytes.
    pub const RAW_DATA: u32 = 9;
    /// The file that contains the elements.
    pub const EXTERNAL_DATA: u32 = 13;
    /// 1 if the data is external.
    pub const DATA_LOCATION: u32 = 14;
}
