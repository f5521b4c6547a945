//! The number of dropped log lines as a metric.

use std::sync::{Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Opts};

use crate::dropped_lines;

/// A counter with the value of [`dropped_lines`].
#[derive(Debug)]
pub struct DroppedLines {
    counter: IntCounter,
    /// Ensures that one scrape at a time reads the number and adds the difference.
    scrape: Mutex<()>,
}

impl DroppedLines {
    pub fn new(name: &str, help: &str) -> prometheus::Result<Self> {
        Ok(Self { counter: IntCounter::with_opts(Opts::new(name, help))?, scrape: Mutex::new(()) })
    }
}

impl Collector for DroppedLines {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _scrape = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.counter.inc_by(dropped_lines().saturating_sub(self.counter.get()));
        self.counter.collect()
    }
}
