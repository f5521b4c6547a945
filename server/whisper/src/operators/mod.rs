//! Operators of Hush's own in the graphs of int8 encoders: [`crate::kernels`] for the tensors of ONNX Runtime. One operator
//! reads and writes what would be three to twelve of ONNX Runtime's, each of which reads and writes the whole activation and
//! waits for the slowest of its threads.
//!
//! | operator | inputs | outputs |
//! |---|---|---|
//! | `Attention` | `qkv` f32 `[W, E, 3 D]`, `row_scale` f32 `[W, E, 1]`, `bias` f32 `[3 D]`; attribute `heads` | bytes u8 `[W, E, D]`, scale f32 `[W, E, 1]` |
//! | `NormRows` | `x` f32 `[W, E, D]`, `gain` f32 `[D]`, `bias` f32 `[D]` | bytes, scale |
//! | `AddNormRows` | `x`, `product` f32 `[W, E, D]`, `row_scale`, `bias` of the product, `gain`, `bias` of the norm | sum f32 `[W, E, D]`, bytes, scale |
//! | `GeluRows` | `product` f32 `[W, F, N]`, `bias` f32 `[N]`, `row_scale` f32 `[W, F, 1]` or none; attributes `taps`, `stride` | bytes u8 `[W, F / stride, taps N]`, range f32 `[W, F / stride, 1]` |
//! | `CrossBytes` | `kv` f32 `[W, E, 2 D]`, `row_scale`, `bias` f32 `[2 D]`; attribute `heads` | keys i8 `[W, H, E, d]`, their scale f32 `[W, 1, D]`, values, their scale |
//!
//! Bytes are multiplied by the scale of their row; they are [`crate::kernels::ROW_ZERO`] for zero. Those of `GeluRows` are
//! multiplied by [`crate::kernels::rows::GELU_STEP`] and the range.

mod attention;
mod cross;
mod rows;
mod tensors;

use std::sync::Arc;

use ort::{
    Error,
    environment::Environment,
    operator::{KernelContext, OperatorDomain},
    session::{Session, builder::GraphOptimizationLevel},
};

use crate::{
    kernels::InstructionSet,
    onnx::{ElementType, GraphWriter},
};

/// The domain of these operators in a graph.
pub const DOMAIN: &str = "hush";

/// Parts of a task for each thread: where other programs use the processor too, a thread that got less of it does fewer.
const PARTS_PER_THREAD: usize = 4;

/// The operators, for a session with so many threads.
pub fn domain(threads: usize) -> Result<OperatorDomain, Error> {
    domain_with(threads, InstructionSet::detect())
}

/// Like [`domain`], with other instructions than the fastest of this processor, for comparisons.
pub fn domain_with(threads: usize, instructions: InstructionSet) -> Result<OperatorDomain, Error> {
    let work = OperatorWork { instructions, parts: PARTS_PER_THREAD * threads.max(1) };

    OperatorDomain::new(DOMAIN)?
        .add(attention::AttentionOperator { work, packed: Arc::default() })?
        .add(rows::NormRowsOperator { work })?
        .add(rows::AddNormRowsOperator { work })?
        .add(rows::GeluRowsOperator { work })?
        .add(cross::CrossBytesOperator { work })
}

/// Opens a session of nothing with the operators. ONNX Runtime has one list of domains for the process, which the first
/// session with a domain extends without regard to other threads: later sessions may be opened at the same time.
pub(crate) fn register(environment: &Environment) -> Result<(), Error> {
    let mut graph = GraphWriter::new("nothing");
    graph.input("in", ElementType::F32, &[1.into()]);
    graph.output("out", ElementType::F32, &[1.into()]);
    graph.op("Identity", &["in"], &["out"]);

    let builder = Session::builder(environment)?.with_intra_threads(1)?.with_operators(domain(1)?)?;
    builder.with_optimization_level(GraphOptimizationLevel::Disable)?.commit_from_memory(&graph.finish())?;

    Ok(())
}

/// How an operator does its work.
#[derive(Clone, Copy, Debug)]
struct OperatorWork {
    instructions: InstructionSet,
    /// Parts into which the rows of an activation are cut.
    parts: usize,
}

impl OperatorWork {
    /// The rows of a part, a multiple of `block`.
    fn part_rows(&self, rows: usize, block: usize) -> usize {
        rows.div_ceil(block).div_ceil(self.parts).max(1) * block
    }
}

/// The attribute `heads`.
fn heads_of(context: &KernelContext<'_>) -> Result<usize, Error> {
    let heads = context.get::<i64>("heads").and_then(|heads| usize::try_from(heads).ok());
    heads.filter(|heads| *heads > 0).ok_or_else(|| Error::new("an operator of Hush's has no `heads` above 0"))
}
