//! kubectl against the control plane, as a person types it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use super::credentials::ADMIN_TOKEN;
use super::plane::ControlPlane;

impl ControlPlane {
    /// For a test that sets it up itself.
    pub fn kubectl_program(&self) -> &Path {
        &self.programs.kubectl
    }

    /// As a user who may do everything; `input` is what `-f -` reads.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<Output> {
        let mut child = Command::new(&self.programs.kubectl)
            .args(["--server", &self.url(), "--token", ADMIN_TOKEN])
            .arg("--certificate-authority")
            .arg(self.ca_file())
            .arg("--cache-dir")
            .arg(self.folder().join("kubectl"))
            .args(args)
            // Nothing of the person who runs the tests.
            .env("KUBECONFIG", self.folder().join("no-kubeconfig"))
            .env("HOME", self.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// What it prints; its complaint when it fails.
    pub fn kubectl_text(&self, args: &[&str], input: &str) -> Result<String> {
        let output = self.kubectl(args, input)?;
        ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs lines of the documentation as the same user; `before` is put before them. Gives what they print.
    pub fn shell(&self, before: &str, script: &str) -> Result<String> {
        let (kubectl, ca) = (self.programs.kubectl.display(), self.ca_file().display().to_string());
        let (url, folder) = (self.url(), self.folder());
        let kubectl = format!(
            "kubectl() {{ '{kubectl}' --server '{url}' --token '{ADMIN_TOKEN}' --certificate-authority '{ca}' \
             --cache-dir '{}' \"$@\"; }}",
            folder.join("kubectl").display()
        );
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &format!("{kubectl}\n{before}\n{script}")])
            .current_dir(crate::fixtures::workspace())
            .env("KUBECONFIG", folder.join("no-kubeconfig"))
            .env("HOME", &folder)
            .stdin(Stdio::null())
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{script}: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    }
}
