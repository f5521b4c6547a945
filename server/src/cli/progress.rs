//! How far a long job has come: a bar on a terminal, log lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::hub::Event;

/// Between two log lines about the same job.
const LINE_EVERY: Duration = Duration::from_secs(10);

pub struct Meter {
    bar: ProgressBar,
    on_terminal: bool,
    job: String,
    done: u64,
    total: u64,
    last_line: Instant,
}

impl Meter {
    /// On standard error, so that standard output stays clean.
    pub fn new(job: impl Into<String>) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        if on_terminal {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        }
        let job = job.into();
        bar.set_message(job.clone());
        Self { bar, on_terminal, job, done: 0, total: 0, last_line: Instant::now() }
    }

    pub fn set(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
        self.bar.set_length(total);
        self.bar.set_position(done);
        if !self.on_terminal && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            tracing::info!("{}: {done} of {total} bytes", self.job);
        }
    }

    /// A line beside the bar.
    pub fn say(&self, text: &str) {
        if self.on_terminal {
            self.bar.println(text);
        } else {
            tracing::info!("{text}");
        }
    }

    /// Takes what a download reports.
    pub fn hub(&mut self, event: Event<'_>) {
        match event {
            Event::Waiting => self.say(&format!("{}: another process is downloading it; waiting", self.job)),
            Event::Planned { total_bytes, .. } => self.set(self.done, self.total.saturating_add(total_bytes)),
            Event::Bytes(bytes) => {
                let done = self.done + bytes;
                self.set(done, self.total.max(done));
            }
            Event::Restart { bytes } => self.set(self.done.saturating_sub(bytes), self.total),
            Event::Retry { cause, pause } => self.say(&format!("{cause}; next try in {pause:?}")),
            Event::Done { file } => tracing::debug!("{}: {file} is complete", self.job),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
