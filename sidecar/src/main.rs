//! `hush-sidecar`: reads the command line and runs the sidecar.

use std::process::ExitCode;

use hush_sidecar::process;

fn main() -> ExitCode {
    hush_log::install_panic_hook();
    if let Some(code) = process::run_hidden_role() {
        return code;
    }
    ExitCode::SUCCESS
}
