//! What `/metrics` says of the app as a whole.

use std::sync::{Arc, Mutex, PoisonError};

use hush_contract::metrics as names;
use hush_contract::{AppGovernance, AppMode};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, IntCounterVec, Opts, Registry};
use tokio::sync::watch;

use super::ModelMode;
use crate::process::AppSurvivors;
use crate::status::AppStatus;

impl ModelMode {
    const fn word(&self) -> AppMode {
        match self {
            Self::Api => AppMode::Api,
            Self::Process(_) => AppMode::Process,
        }
    }
}

/// What the metrics of the app are read from at each scrape.
pub struct AppMetricSources {
    /// The kind of the app.
    pub app: String,
    pub mode: ModelMode,
    /// An unload can end the process of the app.
    pub ends_process: bool,
    pub survivors: AppSurvivors,
    pub status: watch::Receiver<AppStatus>,
}

/// The counters of an app, and whether its own port can be reached from elsewhere. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct AppMetrics {
    /// `{model}`
    pub(super) unattributed_work_total: IntCounterVec,
    /// `{model}`
    pub(super) loads_behind_hold_total: IntCounterVec,
    /// `{model}`
    pub(super) unloads_unconfirmed_total: IntCounterVec,
    is_port_exposed: Arc<Mutex<Option<bool>>>,
}

impl AppMetrics {
    /// # Errors
    /// If the metrics are registered already.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str| {
            let vec = IntCounterVec::new(Opts::new(name, names::help(name)), names::labels(name))?;
            registry.register(Box::new(vec.clone()))?;
            prometheus::Result::Ok(vec)
        };

        Ok(Self {
            unattributed_work_total: counter(names::APP_UNATTRIBUTED_WORK_TOTAL)?,
            loads_behind_hold_total: counter(names::APP_LOADS_BEHIND_HOLD_TOTAL)?,
            unloads_unconfirmed_total: counter(names::APP_UNLOADS_UNCONFIRMED_TOTAL)?,
            is_port_exposed: Arc::default(),
        })
    }

    /// Registers what is computed when it is scraped.
    ///
    /// # Errors
    /// If it is registered already.
    pub fn register(&self, registry: &Registry, sources: AppMetricSources) -> prometheus::Result<()> {
        registry.register(Box::new(AppCollector::new(sources, self.clone())?))
    }

    /// Notes whether the app's own port accepts connections from elsewhere; returns whether that is news.
    pub(super) fn note_port_exposed(&self, is_exposed: bool) -> bool {
        let mut known = self.is_port_exposed.lock().unwrap_or_else(PoisonError::into_inner);

        known.replace(is_exposed) != Some(is_exposed)
    }

    fn is_port_exposed(&self) -> Option<bool> {
        *self.is_port_exposed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct AppCollector {
    sources: AppMetricSources,
    metrics: AppMetrics,
    descs: Vec<Desc>,
}

impl AppCollector {
    fn new(sources: AppMetricSources, metrics: AppMetrics) -> prometheus::Result<Self> {
        let families = [
            names::APP_INFO,
            names::APP_UP,
            names::APP_GOVERNED,
            names::APP_PROBLEM_INFO,
            names::APP_PORT_EXPOSED,
            names::APP_PROCESS_UNLOAD,
            names::APP_SURVIVING_PROCESSES,
        ];
        let descs: prometheus::Result<Vec<Desc>> = families
            .into_iter()
            .map(|name| gauge(name).map(|gauge| gauge.desc().into_iter().cloned().collect::<Vec<_>>()))
            .try_fold(Vec::new(), |mut all, descs| {
                all.extend(descs?);
                Ok(all)
            });

        Ok(Self { sources, metrics, descs: descs? })
    }

    fn families(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let (version, is_up, governance, problem) = match &*self.sources.status.borrow() {
            AppStatus::Running { version } => (version.clone(), true, AppGovernance::Governed, None),
            AppStatus::Stopped => (None, true, AppGovernance::Governed, None),
            AppStatus::Unreachable { cause } => (None, false, AppGovernance::Unreachable, Some(cause.clone())),
            AppStatus::Unsuitable { cause } => (None, true, AppGovernance::Unsuitable, Some(cause.clone())),
        };
        let app = self.sources.app.as_str();
        let mut families = Vec::new();
        let mut add = |name: &str, labels: &[&str], value: f64| {
            let gauge = gauge(name)?;
            let series: Gauge = gauge.get_metric_with_label_values(labels)?;
            series.set(value);
            families.extend(gauge.collect());
            prometheus::Result::Ok(())
        };

        let governed = f64::from(u8::from(governance == AppGovernance::Governed));
        add(names::APP_INFO, &[app, &version.unwrap_or_default(), self.sources.mode.word().as_str()], 1.0)?;
        add(names::APP_UP, &[app], f64::from(u8::from(is_up)))?;
        add(names::APP_GOVERNED, &[app, governance.as_str()], governed)?;
        if let Some(problem) = problem {
            add(names::APP_PROBLEM_INFO, &[app, &problem], 1.0)?;
        }
        if let Some(is_exposed) = self.metrics.is_port_exposed() {
            add(names::APP_PORT_EXPOSED, &[app], f64::from(u8::from(is_exposed)))?;
        }
        add(names::APP_PROCESS_UNLOAD, &[app], f64::from(u8::from(self.sources.ends_process)))?;
        add(names::APP_SURVIVING_PROCESSES, &[app], self.sources.survivors.names().len() as f64)?;
        Ok(families)
    }
}

fn gauge(name: &str) -> prometheus::Result<GaugeVec> {
    GaugeVec::new(Opts::new(name, names::help(name)), names::labels(name))
}

impl Collector for AppCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.families().unwrap_or_else(|error| {
            tracing::error!(error = hush_log::explain(&error), "the metrics of the app cannot be computed");
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, TextEncoder};

    use super::*;
    use crate::process::ProcessName;

    fn scraped(status: AppStatus, is_exposed: Option<bool>) -> String {
        let registry = Registry::new();
        let metrics = AppMetrics::new(&registry).unwrap();
        if let Some(is_exposed) = is_exposed {
            assert!(metrics.note_port_exposed(is_exposed));
            assert!(!metrics.note_port_exposed(is_exposed), "that is known");
        }
        let (_keep, status) = watch::channel(status);
        let (app, mode, survivors) = ("ollama".to_owned(), ModelMode::Api, AppSurvivors::default());
        metrics.register(&registry, AppMetricSources { app, mode, ends_process: true, survivors, status }).unwrap();

        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_governed_app_has_its_version_and_no_problem() {
        let text = scraped(AppStatus::Running { version: Some("0.17.4".to_owned()) }, Some(false));

        assert!(text.contains("hush_app_info{app=\"ollama\",mode=\"api\",version=\"0.17.4\"} 1"), "{text}");
        assert!(text.contains("hush_app_up{app=\"ollama\"} 1"), "{text}");
        assert!(text.contains("hush_app_governed{app=\"ollama\",reason=\"governed\"} 1"), "{text}");
        assert!(text.contains("hush_app_port_exposed{app=\"ollama\"} 0"), "{text}");
        assert!(text.contains("hush_app_process_unload{app=\"ollama\"} 1"), "{text}");
        assert!(text.contains("hush_app_surviving_processes{app=\"ollama\"} 0"), "{text}");
        assert!(!text.contains("hush_app_problem_info{"), "{text}");
    }

    #[test]
    fn processes_that_cannot_be_killed_are_counted_while_they_are_there() {
        let (registry, survivors) = (Registry::new(), AppSurvivors::default());
        let metrics = AppMetrics::new(&registry).unwrap();
        let (_keep, status) = watch::channel(AppStatus::Stopped);
        let (app, mode) = ("vllm".to_owned(), ModelMode::Api);
        let sources = AppMetricSources { app, mode, ends_process: false, survivors: survivors.clone(), status };
        metrics.register(&registry, sources).unwrap();
        let counts = |number: u64| {
            let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
            text.contains(&format!("hush_app_surviving_processes{{app=\"vllm\"}} {number}\n"))
        };

        assert!(counts(0));
        survivors.replace(vec![ProcessName { pid: 7, name: "VLLM::EngineCor".to_owned() }]);
        assert!(counts(1));
        survivors.replace(Vec::new());
        assert!(counts(0));
    }

    #[test]
    fn an_unsuitable_app_says_which_flag_is_missing() {
        let text = scraped(AppStatus::Unsuitable { cause: "set OLLAMA_X".to_owned() }, None);

        assert!(text.contains("hush_app_problem_info{app=\"ollama\",problem=\"set OLLAMA_X\"} 1"), "{text}");
        assert!(text.contains("hush_app_governed{app=\"ollama\",reason=\"unsuitable\"} 0"), "{text}");
        assert!(!text.contains("hush_app_port_exposed{"), "{text}");
    }
}
