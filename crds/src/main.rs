//! Writes the YAML of the definitions beside the crate, or into the folder that the first argument names.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hush_crds::DefinitionError;

fn main() -> ExitCode {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);

    for (name, yaml) in hush_crds::FILES {
        let path = folder.join(name);
        if let Err(error) = write(&path, yaml) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }

    ExitCode::SUCCESS
}

fn write(path: &Path, yaml: fn() -> Result<String, DefinitionError>) -> Result<(), Box<dyn Error>> {
    std::fs::write(path, yaml()?)?;
    Ok(())
}
