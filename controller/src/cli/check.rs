//! `hush-controller check`.

use std::process::ExitCode;

use hush_log::{errorln, outln};

use super::CheckArgs;
use crate::policies;

/// Checks every file; the status is 1 when one of them is invalid.
pub fn run(args: &CheckArgs) -> ExitCode {
    let mut status = ExitCode::SUCCESS;

    for path in &args.files {
        match policies::read_input(path) {
            Ok(found) => {
                for policy in found {
                    outln!("{}: {} is valid", policies::input_name(path).display(), policy.name);
                }
            }
            Err(error) => {
                errorln!("{error}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}
