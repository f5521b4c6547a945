//! The double of the CUDA runtime itself, and Hush on it: ONNX Runtime's own CUDA provider, on GPUs that tests script. Without
//! the double (`make cuda-double`) the tests say that they are skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod api;
mod copies;
mod devices;
mod faults;
mod graphs;
mod life;
mod memory;
mod parity;
mod refusals;
mod speech;
