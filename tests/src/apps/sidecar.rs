//! One `hush-sidecar` process in front of an app; killed when the test lets go of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_nvml::SCRIPT_VARIABLE;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::client::post;
use super::tested_app::{AppCall, TestedApp};
use crate::child::ChildProgram;
use crate::http::{self, Response};
use crate::wait::wait_for;
use crate::{fixtures, gpus, process};

const START_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Default)]
pub struct SidecarOptions {
    /// Further arguments.
    pub args: Vec<String>,
    /// The script of GPUs: models count against its first one.
    pub gpus: Option<PathBuf>,
}

/// Sends the commands to unload one model.
#[derive(Clone, Debug)]
pub struct ModelUnloader {
    ops: SocketAddr,
    path: String,
}

impl ModelUnloader {
    pub fn unload(&self, body: &Value) -> Result<Response> {
        post(self.ops, &AppCall::json(&self.path, body), &[])
    }
}

pub struct RunningSidecar {
    program: ChildProgram,
    pub api: SocketAddr,
    pub ops: SocketAddr,
    model: String,
}

impl RunningSidecar {
    /// Starts it and waits until its operations listener answers; the app may be away.
    pub fn start(app: &dyn TestedApp, options: &SidecarOptions) -> Result<Self> {
        Self::start_with(&app.model(), &app.sidecar_args(), options)
    }

    /// With these arguments at the end of its command line; `model` is the one that its methods mean.
    pub fn start_with(model: &str, app_args: &[String], options: &SidecarOptions) -> Result<Self> {
        let (api, ops) = (http::free_address()?, http::free_address()?);
        let mut command = Command::new(fixtures::sidecar()?);
        command.args(["--listen", &api.to_string(), "--ops-listen", &ops.to_string()]);
        command
            .args(["--log-format", "json", "--poll-interval", "200ms"])
            .args(["--log-level", "info,hush_sidecar=debug"])
            .args(&options.args);
        // Beside the folder of the user's own sidecars. A sidecar that is started again finds what the one before has left.
        command.env("XDG_STATE_HOME", std::env::temp_dir().join("hush-tests-state"));
        if let Some(script) = &options.gpus {
            command.arg("--nvml-lib").arg(hush_nvml::library()?);
            command.args(["--device", &format!("cuda:{}", gpus::UUID), "--sample-interval", "100ms"]);
            command.env(SCRIPT_VARIABLE, script);
        }
        // The command of process mode ends the list.
        command.args(app_args);

        let mut program = ChildProgram::start("hush-sidecar", command, &["HUSH_"])?;
        program.wait_while_running("listens", START_DEADLINE, || {
            Ok(http::get(ops, "/healthz").ok().filter(|answer| answer.status == 200).map(|_| ()))
        })?;
        Ok(Self { program, api, ops, model: model.to_owned() })
    }

    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    pub fn log(&self) -> Vec<String> {
        self.program.log()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        process::send(self.pid(), Signal::KILL)?;
        self.program.wait_for_exit(START_DEADLINE)
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        process::send(self.pid(), Signal::TERM)?;
        self.program.wait_for_exit(START_DEADLINE)
    }

    /// Whether it can serve, and the reason if it cannot.
    pub fn readiness(&self) -> Result<Response> {
        http::get(self.api, "/readyz")
    }

    pub fn wait_until_ready(&self) -> Result<()> {
        let waited =
            wait_for("the sidecar is ready", START_DEADLINE, || Ok((self.readiness()?.status == 200).then_some(())));
        waited.with_context(|| format!("{:?}\n{}", self.readiness(), self.log().join("\n")))
    }

    /// The model as `GET /admin/v1/models` describes it.
    pub fn status(&self) -> Result<Value> {
        let list = http::get(self.ops, "/admin/v1/models")?.json()?;
        let models = list["models"].as_array().context("no models in the list")?;
        let found = models.iter().find(|entry| entry["model"] == self.model.as_str());
        found.cloned().with_context(|| format!("{} is not listed: {list}", self.model))
    }

    pub fn state(&self) -> Result<String> {
        Ok(self.status()?["state"].as_str().unwrap_or_default().to_owned())
    }

    pub fn generation(&self) -> Result<u64> {
        self.status()?["generation"].as_u64().context("no generation")
    }

    pub fn wait_for_status(&self, what: &str, deadline: Duration, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let waited = wait_for(what, deadline, || Ok(Some(self.status()?).filter(|status| holds(status))));
        waited.with_context(|| format!("{:?}\nlog of the sidecar:\n{}", self.status(), self.log().join("\n")))
    }

    pub fn wait_for_state(&self, state: &str, deadline: Duration) -> Result<Value> {
        self.wait_for_status(state, deadline, |status| status["state"] == state)
    }

    /// An unload command with this body.
    pub fn unload(&self, body: &Value) -> Result<Response> {
        self.unload_model(&self.model, body)
    }

    /// The same for another model than the one that the methods mean.
    pub fn unload_model(&self, model: &str, body: &Value) -> Result<Response> {
        ModelUnloader { ops: self.ops, path: hush_contract::admin::unload_path(model) }.unload(body)
    }

    /// For another thread.
    pub fn unloader(&self) -> ModelUnloader {
        ModelUnloader { ops: self.ops, path: hush_contract::admin::unload_path(&self.model) }
    }

    /// Unloads the model, waits for requests in flight and says so if that is refused.
    pub fn unload_after_drain(&self, drain_seconds: f64) -> Result<Value> {
        let answer = self.unload(&json!({"drain_seconds": drain_seconds}))?;
        ensure!(answer.status == 200, "the unload is refused: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// The value of the first series of this family whose labels include these, each as `name="value"`.
    pub fn metric(&self, family: &str, labels: &[&str]) -> Result<Option<f64>> {
        let text = http::get(self.ops, "/metrics")?.text();
        let series = text.lines().find(|line| {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            name == family && labels.iter().all(|label| line.contains(label))
        });
        series.and_then(|line| line.rsplit(' ').next()).map(|value| value.parse().context("no number")).transpose()
    }
}
