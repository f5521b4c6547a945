//! Creates the controller's metrics, registers them, and keeps a list of their families.

use std::cell::RefCell;

use hush_contract::metrics::{FamilySpec, MetricKind};
use hush_log::{DroppedLines, register_program_metrics};
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

#[derive(Default)]
pub(super) struct MetricRegistrar {
    registry: Registry,
    families: RefCell<Vec<FamilySpec>>,
}

impl MetricRegistrar {
    /// Adds the metrics of the program itself, and returns the registry and the families in the order of their creation.
    pub(super) fn finish(self) -> prometheus::Result<(Registry, Vec<FamilySpec>)> {
        register_program_metrics(&self.registry, env!("CARGO_PKG_VERSION"))?;
        self.dropped_lines(
            "hush_controller_log_lines_dropped_total",
            "Log lines that could not be written: standard error was closed, full or stuck.",
        )?;

        Ok((self.registry, self.families.into_inner()))
    }

    pub(super) fn counter(&self, name: &'static str, help: &'static str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::new(name, help)?, FamilySpec { name, kind: MetricKind::Counter, labels: &[], help })
    }

    pub(super) fn counters(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> prometheus::Result<IntCounterVec> {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.register(counters, FamilySpec { name, kind: MetricKind::Counter, labels, help })
    }

    pub(super) fn gauge(&self, name: &'static str, help: &'static str) -> prometheus::Result<IntGauge> {
        self.register(IntGauge::new(name, help)?, FamilySpec { name, kind: MetricKind::Gauge, labels: &[], help })
    }

    pub(super) fn gauges(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> prometheus::Result<IntGaugeVec> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.register(gauges, FamilySpec { name, kind: MetricKind::Gauge, labels, help })
    }

    /// Gauges whose values need not be whole numbers.
    pub(super) fn float_gauges(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> prometheus::Result<GaugeVec> {
        let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
        self.register(gauges, FamilySpec { name, kind: MetricKind::Gauge, labels, help })
    }

    pub(super) fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        buckets: &[f64],
    ) -> prometheus::Result<Histogram> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histogram = Histogram::with_opts(options)?;
        self.register(histogram, FamilySpec { name, kind: MetricKind::Histogram, labels: &[], help })
    }

    pub(super) fn histograms(
        &self,
        name: &'static str,
        help: &'static str,
        buckets: &[f64],
        labels: &'static [&'static str],
    ) -> prometheus::Result<HistogramVec> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let histograms = HistogramVec::new(options, labels)?;
        self.register(histograms, FamilySpec { name, kind: MetricKind::Histogram, labels, help })
    }

    /// A counter whose value is read from the log at each scrape.
    fn dropped_lines(&self, name: &'static str, help: &'static str) -> prometheus::Result<()> {
        self.registry.register(Box::new(DroppedLines::new(name, help)?))?;
        self.families.borrow_mut().push(FamilySpec { name, kind: MetricKind::Counter, labels: &[], help });
        Ok(())
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: M, family: FamilySpec) -> prometheus::Result<M> {
        self.registry.register(Box::new(metric.clone()))?;
        self.families.borrow_mut().push(family);
        Ok(metric)
    }
}
