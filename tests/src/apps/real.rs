//! Where real apps are: wheels in `.hush/apps` (`make apps`), programs in `.hush/peers` (`make peers`). A test of one that was
//! never fetched says that it is skipped. Where the fetch or the build was complete, a missing app is a failure.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::fixtures;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RealApp {
    /// The folder of Python packages that has llama.cpp's server in it.
    Xllamacpp,
    /// The folder of tritonserver.
    Triton,
    /// llama-server, with its router.
    LlamaServer,
    Ollama,
}

impl RealApp {
    fn name(self) -> &'static str {
        match self {
            Self::Xllamacpp => "llama.cpp's server as a wheel",
            Self::Triton => "tritonserver",
            Self::LlamaServer => "llama-server",
            Self::Ollama => "Ollama",
        }
    }

    /// The folder, the file that says that it is complete, and what must be there.
    fn place(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Xllamacpp => ("apps", ".complete", "xllamacpp/__init__.py"),
            Self::Triton => ("apps", ".complete", "pytriton/tritonserver/bin/tritonserver"),
            Self::LlamaServer => ("peers", ".llama-server", "llama-server"),
            Self::Ollama => ("peers", ".ollama", "ollama"),
        }
    }
}

/// The file that [`RealApp`] is found by; `None`, after saying so: it is not here, and its test is skipped.
pub fn find_real_app(app: RealApp) -> Result<Option<PathBuf>> {
    let (folder, marker, file) = app.place();
    let folder = fixtures::workspace().join(".hush").join(folder);
    if !folder.join(marker).is_file() {
        let target = if folder.ends_with("apps") { "apps" } else { "peers" };
        // Past the test harness, which shows what a test prints only when it fails.
        let _ = writeln!(std::io::stderr(), "skipped: {} is not here; run `make {target}` first", app.name());
        return Ok(None);
    }

    let found = folder.join(file);
    ensure!(found.is_file(), "{} is missing, though it was built or fetched: {}", app.name(), found.display());
    Ok(Some(found.canonicalize()?))
}
