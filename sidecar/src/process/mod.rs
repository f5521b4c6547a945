//! An app that the sidecar starts itself: its process group, its readiness, its end, and children that left the group.
//!
//! ```text
//! sidecar            AppProcess -> driver (task) -> machine (pure): what happened -> what to do
//!   |  socket, pipes of the output
//! keeper             a process of this program: starts the app, reaps all of its descendants, kills them on command and
//!   |                when the sidecar ends, however it ends
//! app                in a session and, where allowed, a control group of its own
//! ```
//!
//! The keeper is the subreaper of the app alone, so that orphans of two apps, or of the sidecar's container, are never
//! mixed up, and the sidecar waits for no process but the keepers. What the kernel does not allow: if sidecar and keeper
//! are both killed by SIGKILL at the same moment, the kernel kills the app's main process, and children of it that are in
//! other processes only end if they have a control group that something else kills (a container, a unit of systemd).
//! A program with set-user-id or file capabilities loses its parent-death signal at its start; it is then ended by the
//! keeper alone.

mod app_processes;
mod cgroup;
mod driver;
mod exec;
mod init;
mod keeper;
mod machine;
mod messages;
mod output;
mod port;
mod probe;
mod process_table;
mod settings;
mod supervise;

use std::sync::{Arc, Mutex, PoisonError};

use hush_residency::{ModelRunner, OnRunnerEvent};
use tokio::sync::mpsc;

pub use app_processes::app_processes;
use driver::AppCommand;
pub use exec::run_hidden_role;
pub use messages::ProcessName;
pub use port::listening_sockets;
pub use settings::{AppActivity, ProcessSettings, ReadinessProbe, WarmRequest};
pub use supervise::{AppControl, AppProcessStatus, SupervisedApp};

/// A process of the app. Clones are handles to the same one; when the last is dropped, it is ended.
#[derive(Clone)]
pub struct AppProcess {
    commands: mpsc::UnboundedSender<AppCommand>,
    survivors: AppSurvivors,
}

/// The processes of an app that are left although they were killed. Clones are the same list, whichever start of the app
/// they belong to.
#[derive(Clone, Debug, Default)]
pub struct AppSurvivors(Arc<Mutex<Vec<ProcessName>>>);

impl AppSurvivors {
    pub fn names(&self) -> Vec<ProcessName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn replace(&self, processes: Vec<ProcessName>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = processes;
    }
}

impl AppProcess {
    /// Starts the app without waiting for it. What becomes of it is reported to `notify`: `Started`, again whenever its
    /// processes change, `Loaded` when the probe succeeds, `LoadFailed` with the last lines of its output, `Lost`, and
    /// `Exited` when no process of it is left. Must be called inside a tokio runtime.
    pub fn start(settings: ProcessSettings, notify: OnRunnerEvent) -> Self {
        Self::start_with(settings, AppActivity::new(), notify)
    }

    /// As [`Self::start`]; an app that sends answers, as `activity` records them, is not hung.
    pub fn start_with(settings: ProcessSettings, activity: AppActivity, notify: OnRunnerEvent) -> Self {
        Self::start_reporting(settings, activity, AppSurvivors::default(), notify)
    }

    /// As [`Self::start_with`]; processes that cannot be killed are listed in `survivors`.
    pub fn start_reporting(
        settings: ProcessSettings,
        activity: AppActivity,
        survivors: AppSurvivors,
        notify: OnRunnerEvent,
    ) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        tokio::spawn(driver::run(settings, activity, survivors.clone(), inbox, notify));
        Self { commands, survivors }
    }

    /// The processes that were killed some seconds ago and are still there.
    pub fn survivors(&self) -> Vec<ProcessName> {
        self.survivors.names()
    }

    fn send(&self, command: AppCommand) {
        // An app that has ended needs no command.
        let _ = self.commands.send(command);
    }
}

impl ModelRunner for AppProcess {
    fn stop(&self) {
        self.send(AppCommand::Stop);
    }

    fn kill(&self) {
        self.send(AppCommand::Kill);
    }
}
