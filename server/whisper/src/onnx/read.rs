//! Reads from a graph file how it refers to the weights file.

use std::{io, path::Path};

use prost::Message;

use super::{
    ElementType, PlacedTensor,
    proto::{
        GraphProto, ModelProto, TensorProto, ValueInfoProto, tensor_proto::DataLocation, tensor_shape_proto::dimension,
        type_proto,
    },
};
use crate::small_file;

/// A graph file, whose description can be read without running it.
pub struct GraphFile(GraphProto);

impl GraphFile {
    pub fn read(path: &Path) -> io::Result<Self> {
        let model = ModelProto::decode(small_file::read(path)?.as_slice());
        let model = model.map_err(|error| invalid(path, &error.to_string()))?;
        model.graph.map(Self).ok_or_else(|| invalid(path, "it holds no graph"))
    }

    /// The dimensions of an input or output; `None` for those that are not fixed.
    pub fn dimensions(&self, name: &str) -> Vec<Option<i64>> {
        let mut all = self.0.input.iter().chain(&self.0.output);
        all.find(|value| value.name.as_deref() == Some(name)).map(dimensions).unwrap_or_default()
    }

    /// The number of inputs whose names begin with `prefix`.
    pub fn count_inputs(&self, prefix: &str) -> usize {
        let names = self.0.input.iter().filter_map(|input| input.name.as_deref());
        names.filter(|name| name.starts_with(prefix)).count()
    }

    /// The first dimension of an initialiser.
    pub fn rows(&self, tensor: &str) -> Option<i64> {
        let tensor = self.0.initializer.iter().find(|found| found.name.as_deref() == Some(tensor))?;
        tensor.dims.first().copied()
    }
}

fn dimensions(value: &ValueInfoProto) -> Vec<Option<i64>> {
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|kind| kind.value.as_ref()) else {
        return Vec::new();
    };

    let fixed = |dimension: &Option<dimension::Value>| match dimension {
        Some(dimension::Value::DimValue(size)) => Some(*size),
        _ => None,
    };
    tensor.shape.iter().flat_map(|shape| &shape.dim).map(|dimension| fixed(&dimension.value)).collect()
}

/// The initialisers of the graph at `path` that are in the weights file.
pub fn external_tensors(path: &Path) -> io::Result<Vec<(String, PlacedTensor)>> {
    let GraphFile(graph) = GraphFile::read(path)?;
    let external =
        graph.initializer.iter().filter(|tensor| tensor.data_location == Some(DataLocation::External as i32));
    external.map(|tensor| placed(path, tensor)).collect()
}

fn placed(path: &Path, tensor: &TensorProto) -> io::Result<(String, PlacedTensor)> {
    let name = tensor.name.clone().unwrap_or_default();
    let number = |key: &str| {
        let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key));
        let value = entry.and_then(|entry| entry.value.as_deref()?.parse().ok());
        value.ok_or_else(|| invalid(path, &format!("tensor `{name}` has no `{key}`")))
    };

    let shape = tensor.dims.iter().map(|side| usize::try_from(*side));
    let shape =
        shape.collect::<Result<Vec<_>, _>>().map_err(|_| invalid(path, &format!("shape of tensor `{name}`")))?;
    let element = tensor.data_type.and_then(ElementType::from_data_type);
    let element = element.ok_or_else(|| invalid(path, &format!("element type of tensor `{name}`")))?;

    Ok((name.clone(), PlacedTensor { element, shape, offset: number("offset")?, length: number("length")? }))
}

fn invalid(path: &Path, problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {problem}", path.display()))
}
