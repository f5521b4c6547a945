//! What a written graph says of the weights file.

use std::{fs, io, path::Path};

use prost::Message;

use super::{
    Element, Placed,
    proto::{ModelProto, TensorProto, tensor_proto::DataLocation},
};

/// The initialisers of the graph at `path` that lie in the weights file.
pub fn external_tensors(path: &Path) -> io::Result<Vec<(String, Placed)>> {
    let model = ModelProto::decode(fs::read(path)?.as_slice()).map_err(|error| invalid(path, &error.to_string()))?;
    let graph = model.graph.ok_or_else(|| invalid(path, "it holds no graph"))?;
    let external =
        graph.initializer.iter().filter(|tensor| tensor.data_location == Some(DataLocation::External as i32));
    external.map(|tensor| placed(path, tensor)).collect()
}

fn placed(path: &Path, tensor: &TensorProto) -> io::Result<(String, Placed)> {
    let name = tensor.name.clone().unwrap_or_default();
    let number = |key: &str| {
        let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key));
        let value = entry.and_then(|entry| entry.value.as_deref()?.parse().ok());
        value.ok_or_else(|| invalid(path, &format!("tensor `{name}` has no `{key}`")))
    };
    let shape = tensor.dims.iter().map(|side| usize::try_from(*side));
    let shape =
        shape.collect::<Result<Vec<_>, _>>().map_err(|_| invalid(path, &format!("shape of tensor `{name}`")))?;
    let element = tensor.data_type.and_then(Element::from_data_type);
    let element = element.ok_or_else(|| invalid(path, &format!("element type of tensor `{name}`")))?;
    Ok((name.clone(), Placed { element, shape, offset: number("offset")?, length: number("length")? }))
}

fn invalid(path: &Path, problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {problem}", path.display()))
}
