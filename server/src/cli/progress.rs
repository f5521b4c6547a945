//! How far an installation has come: a bar on a terminal, log lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::app::model_install::{ProgressDisplay, TaskMeter};
use crate::hub::DownloadEvent;

/// Between two log lines about the same task.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows progress on standard error, so that standard output holds only results.
pub struct TerminalProgress;

impl ProgressDisplay for TerminalProgress {
    fn begin(&self, task: String) -> Box<dyn TaskMeter> {
        Box::new(BarOrLines::new(task))
    }
}

struct BarOrLines {
    bar: ProgressBar,
    is_on_terminal: bool,
    task: String,
    done_bytes: u64,
    total_bytes: u64,
    last_line: Instant,
}

impl BarOrLines {
    fn new(task: String) -> Self {
        let is_on_terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        if is_on_terminal {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        bar.set_message(task.clone());

        Self { bar, is_on_terminal, task, done_bytes: 0, total_bytes: 0, last_line: Instant::now() }
    }

    /// Prints a line above the bar.
    fn print_line(&self, text: &str) {
        if self.is_on_terminal {
            self.bar.println(text);
        } else {
            tracing::info!("{text}");
        }
    }
}

impl TaskMeter for BarOrLines {
    fn set_bytes(&mut self, done: u64, total: u64) {
        self.done_bytes = done;
        self.total_bytes = total;
        self.bar.set_length(total);
        self.bar.set_position(done);

        if !self.is_on_terminal && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            tracing::info!("{}: {done} of {total} bytes", self.task);
        }
    }

    fn show_download(&mut self, event: DownloadEvent<'_>) {
        match event {
            DownloadEvent::Waiting => {
                self.print_line(&format!("{}: another process is downloading it; waiting", self.task))
            }
            DownloadEvent::Planned { total_bytes, .. } => {
                self.set_bytes(self.done_bytes, self.total_bytes.saturating_add(total_bytes));
            }
            DownloadEvent::Bytes(bytes) => {
                let done = self.done_bytes + bytes;
                self.set_bytes(done, self.total_bytes.max(done));
            }
            DownloadEvent::Restart { bytes } => self.set_bytes(self.done_bytes.saturating_sub(bytes), self.total_bytes),
            DownloadEvent::Retry { cause, pause } => self.print_line(&format!("{cause}; next try in {pause:?}")),
            DownloadEvent::Done { file } => tracing::debug!("{}: {file} is complete", self.task),
        }
    }
}

impl Drop for BarOrLines {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
