//! Where the programs of the control plane are.

use std::path::PathBuf;
use std::sync::Once;

use anyhow::{Result, ensure};

use crate::fixtures::workspace;

pub const VARIABLE: &str = "KUBEBUILDER_ASSETS";

#[derive(Clone, Debug)]
pub struct Programs {
    pub etcd: PathBuf,
    pub api_server: PathBuf,
    pub kubectl: PathBuf,
}

impl Programs {
    /// `None` when there are no programs and the variable does not name a folder.
    pub fn find() -> Result<Option<Self>> {
        let promised = std::env::var_os(VARIABLE).map(PathBuf::from);
        let folder = promised.clone().unwrap_or_else(|| workspace().join(".hush/control-plane"));
        let programs = Self {
            etcd: folder.join("etcd"),
            api_server: folder.join("kube-apiserver"),
            kubectl: folder.join("kubectl"),
        };
        let missing =
            [&programs.etcd, &programs.api_server, &programs.kubectl].into_iter().find(|path| !path.is_file());
        let Some(missing) = missing else { return Ok(Some(programs)) };
        ensure!(promised.is_none(), "{VARIABLE} is set, but {} is missing", missing.display());
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            // Written past the capture of the test's output, so that a person sees it.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                b"skipped: nothing is tested in a cluster; run `make control-plane` first\n",
            );
        });
        Ok(None)
    }
}
