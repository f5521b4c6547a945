//! Hush on the double of the CUDA runtime: ONNX Runtime's own CUDA provider, on GPUs that tests script. `make test-cuda`
//! builds the double; where it is not built each test says so.

mod life;
mod parity;
mod refusals;
