//! ONNX models as files: the published protobuf messages, and the little that is needed to write a graph with them.

mod external;
mod graph;
mod read;

pub use external::{Fill, Placed, WeightsFile};
pub use graph::{Element, Graph};
pub use read::{GraphFile, external_tensors};

pub(crate) use external::hex;

/// Messages of `proto/onnx.proto`.
#[allow(clippy::all, reason = "generated")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
