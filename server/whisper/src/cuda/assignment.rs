//! Where ONNX Runtime runs the nodes of a session.
//!
//! A node for which CUDA has no kernel runs on the CPU, without an error and without a word: its data is copied back and forth
//! at each step, and a cache that is bound once is read as it was at first. `session.disable_cpu_ep_fallback` is no help: it
//! also refuses the nodes that reckon with shapes, which ONNX Runtime keeps on the CPU of its own accord.

use std::ffi::{CStr, c_char};
use std::{ptr, slice};

use ort::session::Session;
use ort::{AsPointer, sys};

use super::error::CudaError;

/// Has to be `1` in the options of a session before [`assignment`] can be asked of it.
pub const RECORD_ASSIGNMENT: &str = "session.record_ep_graph_assignment_info";

const CPU: &str = "CPUExecutionProvider";
/// Operators that carry shapes in the graphs of a model, and no weights or activations: those have kernels on a GPU.
const OF_SHAPES: [&str; 1] = ["Concat"];

/// A node and the part of ONNX Runtime that runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedNode {
    /// `CUDAExecutionProvider` or `CPUExecutionProvider`.
    pub provider: String,
    pub operator: String,
    pub name: String,
}

/// The nodes of a session that was opened with [`RECORD_ASSIGNMENT`].
#[allow(unsafe_code, reason = "ort has no safe interface for this")]
pub fn assignment(session: &Session) -> Result<Vec<AssignedNode>, ort::Error> {
    let api = ort::api();
    let mut nodes = Vec::new();
    let (mut graphs, mut count) = (ptr::null(), 0);
    // SAFETY: the session lives, the pointers are good for the call.
    unsafe {
        let status = (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut graphs, &mut count);
        ort::Error::result_from_status(status)?;
    }
    // SAFETY: arrays and texts belong to the session, which outlives this function.
    for &graph in unsafe { array(graphs, count) } {
        let (mut members, mut count) = (ptr::null(), 0);
        // SAFETY: `graph` came from the session.
        let provider = unsafe {
            ort::Error::result_from_status((api.EpAssignedSubgraph_GetNodes)(graph, &mut members, &mut count))?;
            text(|out| (api.EpAssignedSubgraph_GetEpName)(graph, out))?
        };
        // SAFETY: as above.
        for &node in unsafe { array(members, count) } {
            // SAFETY: `node` came from the session.
            let (operator, name) = unsafe {
                let operator = text(|out| (api.EpAssignedNode_GetOperatorType)(node, out))?;
                (operator, text(|out| (api.EpAssignedNode_GetName)(node, out))?)
            };
            nodes.push(AssignedNode { provider: provider.clone(), operator, name });
        }
    }
    Ok(nodes)
}

/// # Safety
/// `first` points to `count` values, or is null where there are none.
#[allow(unsafe_code, reason = "arrays of ONNX Runtime")]
unsafe fn array<'a, T>(first: *const T, count: usize) -> &'a [T] {
    // SAFETY: the caller's.
    if first.is_null() { &[] } else { unsafe { slice::from_raw_parts(first, count) } }
}

/// # Safety
/// `ask` writes a text that ends with 0, or nothing.
#[allow(unsafe_code, reason = "texts of ONNX Runtime")]
unsafe fn text(ask: impl FnOnce(*mut *const c_char) -> sys::OrtStatusPtr) -> Result<String, ort::Error> {
    let mut text: *const c_char = ptr::null();
    // SAFETY: the caller's.
    unsafe {
        ort::Error::result_from_status(ask(&mut text))?;
        Ok(if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() })
    }
}

/// Refuses a session of which more than the reckoning with shapes runs on the CPU. The session was opened with
/// [`RECORD_ASSIGNMENT`].
pub fn check_assignment(session: &Session) -> Result<(), CudaError> {
    let nodes = assignment(session).map_err(|error| CudaError::Assignment(error.to_string()))?;
    let strays = strays(&nodes);
    if strays.is_empty() { Ok(()) } else { Err(CudaError::OnCpu(strays)) }
}

fn strays(nodes: &[AssignedNode]) -> Vec<String> {
    let is_stray = |node: &&AssignedNode| node.provider == CPU && !OF_SHAPES.contains(&node.operator.as_str());
    nodes.iter().filter(is_stray).map(|node| node.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shapes_may_be_reckoned_with_on_the_cpu() {
        let node = |provider: &str, operator: &str| AssignedNode {
            provider: provider.to_owned(),
            operator: operator.to_owned(),
            name: format!("{operator}_x"),
        };
        let gpu = "CUDAExecutionProvider";
        let fine = [node(gpu, "GroupQueryAttention"), node(gpu, "MatMul"), node(CPU, "Concat")];
        assert_eq!(strays(&fine), Vec::<String>::new());
        let wrong = [&fine[..], &[node(CPU, "GroupQueryAttention"), node(CPU, "Mul")]].concat();
        assert_eq!(strays(&wrong), ["GroupQueryAttention_x", "Mul_x"]);
        let error = CudaError::OnCpu(strays(&wrong)).to_string();
        assert!(error.contains("GroupQueryAttention_x, Mul_x"), "{error}");
    }
}
