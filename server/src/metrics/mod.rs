//! Metrics of the server. Events are counted as they happen; state is computed at scrape time by collectors that
//! the owners of the state register ([`ServerMetrics::register`]). Labels and help texts are those of the contract.

use hush_contract::metrics as names;
use hush_log::{DroppedLines, register_program_metrics};
use hush_residency::ResidencyMetrics;
use hush_whisper::{Transcript, WindowCounts};
use prometheus::core::Collector;
use prometheus::{CounterVec, Gauge, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry};

/// All counters and histograms of the server, and the registry that holds them.
pub struct ServerMetrics {
    registry: Registry,
    /// `{route, code}`
    pub request_duration_seconds: HistogramVec,
    /// `{model}`
    pub audio_seconds_total: CounterVec,
    /// `{model, context}`
    pub encoder_windows_total: CounterVec,
    /// `{model, asked, device, reason}`, always 1.
    pub device_info: GaugeVec,
    /// `{mechanism}`
    pub ffmpeg_confined: GaugeVec,
    pub config_last_reload_successful: Gauge,
    pub config_last_reload_success_timestamp_seconds: Gauge,
    /// What happens to models.
    pub residency: ResidencyMetrics,
}

impl ServerMetrics {
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        register_program_metrics(&registry, env!("CARGO_PKG_VERSION"))?;
        let help = names::help(names::LOG_LINES_DROPPED_TOTAL);
        registry.register(Box::new(DroppedLines::new(names::LOG_LINES_DROPPED_TOTAL, help)?))?;

        let histogram = |name: &str, buckets: &[f64]| {
            let options = HistogramOpts::from(options(name)).buckets(buckets.to_vec());
            register(&registry, HistogramVec::new(options, names::labels(name))?)
        };
        let gauge = |name: &str| register(&registry, Gauge::with_opts(options(name))?);
        let gauge_vec = |name: &str| register(&registry, GaugeVec::new(options(name), names::labels(name))?);
        let float_counter = |name: &str| register(&registry, CounterVec::new(options(name), names::labels(name))?);

        Ok(Self {
            request_duration_seconds: histogram(names::REQUEST_DURATION_SECONDS, names::REQUEST_DURATION_BUCKETS)?,
            audio_seconds_total: float_counter(names::AUDIO_SECONDS_TOTAL)?,
            encoder_windows_total: float_counter(names::ENCODER_WINDOWS_TOTAL)?,
            device_info: gauge_vec(names::DEVICE_INFO)?,
            ffmpeg_confined: gauge_vec(names::FFMPEG_CONFINED)?,
            config_last_reload_successful: gauge(names::CONFIG_LAST_RELOAD_SUCCESSFUL)?,
            config_last_reload_success_timestamp_seconds: gauge(names::CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS)?,
            residency: ResidencyMetrics::new(&registry)?,
            registry,
        })
    }

    /// Counts what was transcribed.
    pub fn record_transcript(&self, model: &str, transcript: &Transcript) {
        self.audio_seconds_total.with_label_values(&[model]).inc_by(transcript.duration_seconds.max(0.0));

        let WindowCounts { short, repeated, full } = transcript.windows;
        for (context, count) in [("short", short), ("repeated", repeated), ("full", full)] {
            self.encoder_windows_total.with_label_values(&[model, context]).inc_by(count as f64);
        }
    }

    /// Registers a collector that computes its families when it is scraped.
    pub fn register(&self, collector: Box<dyn Collector>) -> prometheus::Result<()> {
        self.registry.register(collector)
    }

    /// All families.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Encodes all families in the text exposition format, version 0.0.4.
    pub fn encode(&self) -> prometheus::Result<Vec<u8>> {
        hush_residency::encode_metrics(&self.registry)
    }
}

fn options(name: &str) -> Opts {
    Opts::new(name, names::help(name))
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use prometheus::core::Desc;
    use prometheus::proto::MetricFamily;

    use super::*;

    /// A collector that computes its value at scrape time, as that of the residency does.
    struct ScrapeCounter {
        gauge: Gauge,
    }

    impl Collector for ScrapeCounter {
        fn desc(&self) -> Vec<&Desc> {
            self.gauge.desc()
        }

        fn collect(&self) -> Vec<MetricFamily> {
            self.gauge.inc();
            self.gauge.collect()
        }
    }

    #[test]
    fn events_and_computed_state_are_encoded_as_text() {
        let metrics = ServerMetrics::new().unwrap();
        let gauge = Gauge::with_opts(Opts::new("hush_test", "Scrapes.")).unwrap();
        metrics.register(Box::new(ScrapeCounter { gauge })).unwrap();
        metrics.residency.loads_total.with_label_values(&["tiny", "success"]).inc();
        metrics.record_transcript(
            "tiny",
            &Transcript {
                duration_seconds: 2.5,
                windows: WindowCounts { short: 3, repeated: 1, full: 0 },
                ..Transcript::default()
            },
        );
        metrics.request_duration_seconds.with_label_values(&["/asr", "200"]).observe(0.3);

        metrics.encode().unwrap();

        let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
        assert!(text.contains("\nhush_test 2\n"), "{text}");
        assert!(text.contains("hush_model_loads_total{model=\"tiny\",result=\"success\"} 1\n"), "{text}");
        assert!(text.contains("hush_audio_seconds_total{model=\"tiny\"} 2.5\n"), "{text}");
        for line in ["short\",model=\"tiny\"} 3", "repeated\",model=\"tiny\"} 1", "full\",model=\"tiny\"} 0"] {
            assert!(text.contains(&format!("hush_encoder_windows_total{{context=\"{line}\n")), "{text}");
        }
        assert!(
            text.contains("hush_request_duration_seconds_bucket{code=\"200\",route=\"/asr\",le=\"0.5\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE hush_request_duration_seconds histogram\n"), "{text}");
    }
}
