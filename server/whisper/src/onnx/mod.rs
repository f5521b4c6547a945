//! ONNX models as files: the published protobuf messages, and functions that write and read graphs.

mod external;
mod graph;
mod read;

pub use external::{PlacedTensor, TensorWriter, WeightsFile};
pub use graph::{ElementType, GraphWriter};
pub use read::{GraphFile, external_tensors};

pub(crate) use external::hex;

/// The messages of `proto/onnx.proto`.
#[allow(clippy::all, reason = "generated")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
