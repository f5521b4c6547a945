//! Compiles the vendored `proto/onnx.proto` (Apache-2.0, from the `onnx` 1.23.2 wheel) without a `protoc` binary.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto/onnx.proto");
    let descriptors = protox::compile(["onnx.proto"], ["proto"])?;

    // The comments of the .proto file are not Rust documentation: rustdoc would run their examples.
    prost_build::Config::new().disable_comments(["."]).compile_fds(descriptors)?;
    Ok(())
}
