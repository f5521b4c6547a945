//! `hush-controller check`.

use std::process::ExitCode;

use super::CheckArgs;
use crate::policies;

/// Status 1 when a file has something wrong; every file is looked at.
pub fn run(args: &CheckArgs) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for path in &args.files {
        match policies::read(path) {
            Ok(found) => {
                for policy in found {
                    println!("{}: {} is valid", path.display(), policy.name);
                }
            }
            Err(error) => {
                eprintln!("{error}");
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}
