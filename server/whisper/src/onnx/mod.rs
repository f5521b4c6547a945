//! ONNX models as files: the published protobuf messages, and the little that is needed to write a graph with them.

mod external;
mod graph;

pub use external::{Fill, Placed, WeightsFile};
pub use graph::{Element, Graph};

pub(crate) use external::hex;

/// Messages of `proto/onnx.proto`.
#[allow(clippy::all, reason = "generated")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
