//! `hush-sidecar check FILE` and `hush-sidecar describe APP`.

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

/// Prints the description of a known app.
///
/// # Errors
/// If the app is not known.
pub fn describe(name: &str) -> anyhow::Result<()> {
    let Some(text) = App::source(name) else {
        let known: Vec<&str> = App::known().collect();
        bail!("`{name}` is no known app: {}", known.join(", "));
    };

    hush_log::out!("{text}");
    Ok(())
}
