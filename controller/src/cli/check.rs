//! `hush-controller check`.

use std::process::ExitCode;

use hush_log::{errorln, outln};

use super::CheckArgs;
use crate::policies;

/// Status 1 when a file has something wrong; every file is looked at.
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
