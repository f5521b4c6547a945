//! Writes a graph: nodes, inputs, outputs and initialisers, one call for each.

use std::collections::HashSet;

use prost::Message;

use super::WeightsFile;
use super::external::PlacedTensor;
use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::{DataLocation, DataType};
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::type_proto;
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};
use crate::operators;

/// The domain of ONNX Runtime's own operators.
pub const MICROSOFT: &str = "com.microsoft";
const OPSET: i64 = 18;
/// The first version with `Attention`.
const ATTENTION_OPSET: i64 = 23;
/// The first version in which `Attention` accepts the lengths of keys and values.
const ATTENTION_LENGTHS_OPSET: i64 = 24;
const IR_VERSION: i64 = 10;

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    F32,
    F16,
    I32,
    I64,
    I8,
    U8,
}

impl ElementType {
    pub const fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    fn data_type(self) -> i32 {
        (match self {
            Self::F32 => DataType::Float,
            Self::F16 => DataType::Float16,
            Self::I32 => DataType::Int32,
            Self::I64 => DataType::Int64,
            Self::I8 => DataType::Int8,
            Self::U8 => DataType::Uint8,
        }) as i32
    }

    pub(super) fn from_data_type(data_type: i32) -> Option<Self> {
        [Self::F32, Self::F16, Self::I32, Self::I64, Self::I8, Self::U8]
            .into_iter()
            .find(|element| element.data_type() == data_type)
    }

    pub fn onnx(self) -> i64 {
        i64::from(self.data_type())
    }
}

/// A dimension of an input or output: a size, or a name for an unknown size.
#[derive(Clone, Copy)]
pub enum Dim<'a> {
    Size(usize),
    Any(&'a str),
}

impl From<usize> for Dim<'_> {
    fn from(size: usize) -> Self {
        Self::Size(size)
    }
}

impl<'a> From<&'a str> for Dim<'a> {
    fn from(name: &'a str) -> Self {
        Self::Any(name)
    }
}

/// A graph that is being written.
pub struct GraphWriter {
    graph: GraphProto,
    opset: i64,
    named: HashSet<String>,
}

/// A node that was just added; its methods add attributes.
pub struct AddedNode<'a>(&'a mut NodeProto);

impl GraphWriter {
    pub fn new(name: &str) -> Self {
        let graph = GraphProto { name: Some(name.to_owned()), ..Default::default() };
        Self { graph, opset: OPSET, named: HashSet::new() }
    }

    pub fn input(&mut self, name: &str, element: ElementType, shape: &[Dim]) {
        self.graph.input.push(value_info(name, element, shape));
    }

    pub fn output(&mut self, name: &str, element: ElementType, shape: &[Dim]) {
        self.graph.output.push(value_info(name, element, shape));
    }

    /// Adds an operator of the standard. An empty input name leaves out an optional input.
    pub fn op(&mut self, op: &str, inputs: &[&str], outputs: &[&str]) -> AddedNode<'_> {
        self.add(op, "", inputs, outputs)
    }

    /// Adds the standard's `Attention`, over `[batch, sequence, heads x width]`. It needs a newer version of the standard
    /// than the other operators, so that the graph gets that version.
    pub fn attention(&mut self, inputs: [&str; 3], heads: usize, out: &str) -> AddedNode<'_> {
        self.opset = self.opset.max(ATTENTION_OPSET);
        self.add_attention(&inputs, heads, out)
    }

    /// Like [`Self::attention`], over the first keys and values of each sequence: `lengths` i64 `[batch]`.
    pub fn attention_over(
        &mut self,
        [query, keys, values]: [&str; 3],
        lengths: &str,
        heads: usize,
        out: &str,
    ) -> AddedNode<'_> {
        self.opset = self.opset.max(ATTENTION_LENGTHS_OPSET);
        self.add_attention(&[query, keys, values, "", "", "", lengths], heads, out)
    }

    fn add_attention(&mut self, inputs: &[&str], heads: usize, out: &str) -> AddedNode<'_> {
        let heads = heads as i64;
        self.op("Attention", inputs, &[out]).int("q_num_heads", heads).int("kv_num_heads", heads)
    }

    /// Adds an operator of ONNX Runtime.
    pub fn contrib(&mut self, op: &str, inputs: &[&str], outputs: &[&str]) -> AddedNode<'_> {
        self.add(op, MICROSOFT, inputs, outputs)
    }

    /// Adds an operator of [`crate::operators`].
    pub fn own(&mut self, op: &str, inputs: &[&str], outputs: &[&str]) -> AddedNode<'_> {
        self.add(op, operators::DOMAIN, inputs, outputs)
    }

    fn add(&mut self, op: &str, domain: &str, inputs: &[&str], outputs: &[&str]) -> AddedNode<'_> {
        let first = outputs.first().copied().unwrap_or_default();
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        self.graph.node.push(NodeProto {
            op_type: Some(op.to_owned()),
            domain: (!domain.is_empty()).then(|| domain.to_owned()),
            name: Some(format!("{op}_{first}")),
            input: owned(inputs),
            output: owned(outputs),
            ..Default::default()
        });

        let last = self.graph.node.len() - 1;

        AddedNode(&mut self.graph.node[last])
    }

    /// Adds a small constant inside the graph, unless there is one with this name.
    pub fn constant_i64(&mut self, name: &str, shape: &[usize], values: &[i64]) {
        self.inline(name, ElementType::I64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    pub fn constant_i32(&mut self, name: &str, shape: &[usize], values: &[i32]) {
        self.inline(name, ElementType::I32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    pub fn constant_u8(&mut self, name: &str, shape: &[usize], values: &[u8]) {
        self.inline(name, ElementType::U8, shape, values.to_vec());
    }

    pub fn constant_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.inline(name, ElementType::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    fn inline(&mut self, name: &str, element: ElementType, shape: &[usize], bytes: Vec<u8>) {
        if self.named.insert(name.to_owned()) {
            let mut tensor = tensor(name, element, shape);
            tensor.raw_data = Some(bytes);
            self.graph.initializer.push(tensor);
        }
    }

    /// Adds a tensor of the weights file.
    pub fn external(&mut self, name: &str, placed: &PlacedTensor) {
        if self.named.insert(name.to_owned()) {
            let mut tensor = tensor(name, placed.element, &placed.shape);
            tensor.data_location = Some(DataLocation::External as i32);
            tensor.external_data = [
                ("location", WeightsFile::NAME.to_owned()),
                ("offset", placed.offset.to_string()),
                ("length", placed.length.to_string()),
            ]
            .map(|(key, value)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) })
            .into();
            self.graph.initializer.push(tensor);
        }
    }

    /// The bytes of the `.onnx` file.
    pub fn finish(self) -> Vec<u8> {
        let opset =
            |domain: &str, version| OperatorSetIdProto { domain: Some(domain.to_owned()), version: Some(version) };
        let mut opsets = vec![opset("", self.opset), opset(MICROSOFT, 1)];
        if self.graph.node.iter().any(|node| node.domain.as_deref() == Some(operators::DOMAIN)) {
            opsets.push(opset(operators::DOMAIN, 1));
        }

        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("hush".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            opset_import: opsets,
            graph: Some(self.graph),
            ..Default::default()
        };

        model.encode_to_vec()
    }
}

impl AddedNode<'_> {
    pub fn int(self, name: &str, value: i64) -> Self {
        self.attribute(name, AttributeType::Int, |a| a.i = Some(value))
    }

    pub fn float(self, name: &str, value: f32) -> Self {
        self.attribute(name, AttributeType::Float, |a| a.f = Some(value))
    }

    pub fn text(self, name: &str, value: &str) -> Self {
        self.attribute(name, AttributeType::String, |a| a.s = Some(value.as_bytes().to_vec()))
    }

    pub fn ints(self, name: &str, values: &[i64]) -> Self {
        self.attribute(name, AttributeType::Ints, |a| a.ints = values.to_vec())
    }

    fn attribute(self, name: &str, kind: AttributeType, set: impl FnOnce(&mut AttributeProto)) -> Self {
        let mut attribute =
            AttributeProto { name: Some(name.to_owned()), r#type: Some(kind as i32), ..Default::default() };
        set(&mut attribute);
        self.0.attribute.push(attribute);
        self
    }
}

fn tensor(name: &str, element: ElementType, shape: &[usize]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(element.data_type()),
        dims: shape.iter().map(|d| *d as i64).collect(),
        ..Default::default()
    }
}

fn value_info(name: &str, element: ElementType, shape: &[Dim]) -> ValueInfoProto {
    let dim = |d: &Dim| Dimension {
        value: Some(match d {
            Dim::Size(size) => dimension::Value::DimValue(*size as i64),
            Dim::Any(name) => dimension::Value::DimParam((*name).to_owned()),
        }),
        ..Default::default()
    };

    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(element.data_type()), shape: Some(shape) };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };

    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..Default::default() }
}
