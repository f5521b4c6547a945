//! Writes the YAML of the definitions beside the crate, or into a folder that is named.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    for (name, yaml) in hush_crds::FILES {
        let written = yaml().map_err(|error| error.to_string());
        let written =
            written.and_then(|text| std::fs::write(folder.join(name), text).map_err(|error| error.to_string()));
        if let Err(error) = written {
            eprintln!("{}: {error}", folder.join(name).display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
