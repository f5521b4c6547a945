//! `hush-sidecar check FILE`.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::app::App;

/// Checks the description of an app, and prints what it is.
///
/// # Errors
/// If the file cannot be read, or describes no app; the error names the field.
pub fn check_description(path: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;

    match App::from_yaml(&text) {
        Ok(app) => {
            hush_log::outln!("{}: the app `{}` can be governed", path.display(), app.name());
            Ok(())
        }
        Err(error) => bail!("{}: {error}", path.display()),
    }
}
