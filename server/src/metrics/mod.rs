//! What the server counts. Events are counted here as they happen; state is mirrored at scrape time by collectors
//! that its owners register ([`Metrics::register`]).

mod handler;

use std::ops::Deref;

use hush_contract::metrics as names;
use hush_log::{DroppedLines, register_program_metrics};
use hush_residency::ResidencyMetrics;
use prometheus::core::Collector;
use prometheus::{CounterVec, Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

pub use handler::router;

/// Answers take milliseconds (`/healthz`) or most of an hour (a film on a small CPU).
const REQUEST_BUCKETS: &[f64] =
    &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
/// Every counter and histogram of the server, and the registry that holds them.
pub struct Metrics {
    registry: Registry,
    /// `{route, code}`
    pub request_duration_seconds: HistogramVec,
    /// `{model}`
    pub audio_seconds_total: CounterVec,
    /// `{model, asked, device, reason}`, always 1.
    pub device_info: GaugeVec,
    /// `{mechanism}`
    pub ffmpeg_confined: GaugeVec,
    pub config_last_reload_successful: Gauge,
    pub config_last_reload_success_timestamp_seconds: Gauge,
    /// What happens to models.
    pub residency: ResidencyMetrics,
}

/// The metrics of the server are those of its models, and more.
impl Deref for Metrics {
    type Target = ResidencyMetrics;

    fn deref(&self) -> &ResidencyMetrics {
        &self.residency
    }
}

impl Metrics {
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let model = names::LABEL_MODEL;
        let histogram = |name: &str, help: &str, buckets: &[f64], labels: &[&str]| {
            let vec = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?;
            registry.register(Box::new(vec.clone()))?;
            prometheus::Result::Ok(vec)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::with_opts(Opts::new(name, help))?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let audio_seconds_total =
            CounterVec::new(Opts::new(names::AUDIO_SECONDS_TOTAL, "Seconds of audio transcribed."), &[model])?;
        registry.register(Box::new(audio_seconds_total.clone()))?;
        let device_info = GaugeVec::new(
            Opts::new(names::DEVICE_INFO, "Where a model runs, and why elsewhere than on a GPU."),
            &[model, names::LABEL_ASKED, names::LABEL_DEVICE, names::LABEL_REASON],
        )?;
        registry.register(Box::new(device_info.clone()))?;
        register_program_metrics(&registry, env!("CARGO_PKG_VERSION"))?;
        let ffmpeg_confined = GaugeVec::new(
            Opts::new(names::FFMPEG_CONFINED, "Whether the kernel confines ffmpeg by this mechanism."),
            &[names::LABEL_MECHANISM],
        )?;
        registry.register(Box::new(ffmpeg_confined.clone()))?;
        registry.register(Box::new(DroppedLines::new(
            names::LOG_LINES_DROPPED_TOTAL,
            "Log lines that could not be written, of the server and its runners.",
        )?))?;
        Ok(Self {
            request_duration_seconds: histogram(
                names::REQUEST_DURATION_SECONDS,
                "Seconds from the head of a request to the end of its answer.",
                REQUEST_BUCKETS,
                &[names::LABEL_ROUTE, names::LABEL_CODE],
            )?,
            audio_seconds_total,
            device_info,
            ffmpeg_confined,
            config_last_reload_successful: gauge(
                names::CONFIG_LAST_RELOAD_SUCCESSFUL,
                "1 when the configuration was good the last time it was read, 0 when it was refused.",
            )?,
            config_last_reload_success_timestamp_seconds: gauge(
                names::CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS,
                "Unix time of the last time that the configuration was taken over.",
            )?,
            residency: ResidencyMetrics::new(&registry)?,
            registry,
        })
    }

    /// Adds a collector that computes its families when it is scraped.
    pub fn register(&self, collector: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(collector)
    }

    /// The text exposition format, version 0.0.4.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::core::Desc;
    use prometheus::proto::MetricFamily;

    use super::*;

    /// A collector whose value is computed at scrape time, as residency's is.
    struct Clock {
        gauge: Gauge,
    }

    impl Collector for Clock {
        fn desc(&self) -> Vec<&Desc> {
            self.gauge.desc()
        }

        fn collect(&self) -> Vec<MetricFamily> {
            self.gauge.inc();
            self.gauge.collect()
        }
    }

    #[test]
    fn events_and_scrape_time_state_come_out_as_text() {
        let metrics = Metrics::new().unwrap();
        let gauge = Gauge::with_opts(Opts::new("hush_test", "Scrapes.")).unwrap();
        metrics.register(Box::new(Clock { gauge })).unwrap();
        metrics.loads_total.with_label_values(&["tiny", "success"]).inc();
        metrics.audio_seconds_total.with_label_values(&["tiny"]).inc_by(2.5);
        metrics.request_duration_seconds.with_label_values(&["/asr", "200"]).observe(0.3);
        metrics.encode().unwrap();
        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        assert!(text.contains("\nhush_test 2\n"), "{text}");
        assert!(text.contains("hush_model_loads_total{model=\"tiny\",result=\"success\"} 1\n"), "{text}");
        assert!(text.contains("hush_audio_seconds_total{model=\"tiny\"} 2.5\n"), "{text}");
        assert!(
            text.contains("hush_request_duration_seconds_bucket{code=\"200\",route=\"/asr\",le=\"0.5\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE hush_request_duration_seconds histogram\n"), "{text}");
    }
}
