//! The metrics of every program: its build and its process.

use std::sync::{Mutex, PoisonError};

use hush_contract::metrics as names;
use procfs::WithCurrentSystemInfo;
use procfs::process::{LimitValue, Process};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntGauge, IntGaugeVec, Opts, Registry};

/// The source revision, which the build sets (such as the build of an image).
const REVISION: &str = match option_env!("HUSH_REVISION") {
    Some(revision) if !revision.is_empty() => revision,
    _ => "unknown",
};

/// Registers all families of [`names::PROGRAM_FAMILIES`]. `version` is that of the program.
pub fn register_program_metrics(registry: &Registry, version: &str) -> prometheus::Result<()> {
    let labels = [names::LABEL_VERSION, names::LABEL_REVISION];
    let build_info = IntGaugeVec::new(Opts::new(names::BUILD_INFO, names::help(names::BUILD_INFO)), &labels)?;
    build_info.with_label_values(&[version, REVISION]).set(1);
    registry.register(Box::new(build_info))?;
    registry.register(Box::new(ProcessCollector::new()?))
}

/// Reads `/proc/self` when it is scraped. A value that cannot be read stays as it was.
struct ProcessCollector {
    cpu_seconds_total: Counter,
    open_fds: IntGauge,
    max_fds: IntGauge,
    virtual_memory_bytes: IntGauge,
    resident_memory_bytes: IntGauge,
    start_time_seconds: Gauge,
    threads: IntGauge,
    /// Ensures that one scrape at a time reads the processor time and adds the difference.
    scrape: Mutex<()>,
}

impl ProcessCollector {
    fn new() -> prometheus::Result<Self> {
        let gauge = |name: &str| IntGauge::new(name, names::help(name));
        let start_time_seconds =
            Gauge::new(names::PROCESS_START_TIME_SECONDS, names::help(names::PROCESS_START_TIME_SECONDS))?;
        if let Some(time) = start_time() {
            start_time_seconds.set(time);
        }

        Ok(Self {
            cpu_seconds_total: Counter::new(
                names::PROCESS_CPU_SECONDS_TOTAL,
                names::help(names::PROCESS_CPU_SECONDS_TOTAL),
            )?,
            open_fds: gauge(names::PROCESS_OPEN_FDS)?,
            max_fds: gauge(names::PROCESS_MAX_FDS)?,
            virtual_memory_bytes: gauge(names::PROCESS_VIRTUAL_MEMORY_BYTES)?,
            resident_memory_bytes: gauge(names::PROCESS_RESIDENT_MEMORY_BYTES)?,
            start_time_seconds,
            threads: gauge(names::PROCESS_THREADS)?,
            scrape: Mutex::new(()),
        })
    }

    fn read(&self, process: &Process) {
        if let Ok(count) = process.fd_count() {
            self.open_fds.set(signed(count as u64));
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(most) = limits.max_open_files.soft_limit
        {
            self.max_fds.set(signed(most));
        }
        if let Ok(stat) = process.stat() {
            let cpu_seconds = ticks_as_seconds(stat.utime.saturating_add(stat.stime));
            self.cpu_seconds_total.inc_by((cpu_seconds - self.cpu_seconds_total.get()).max(0.0));
            self.virtual_memory_bytes.set(signed(stat.vsize));
            self.resident_memory_bytes.set(signed(stat.rss_bytes().get()));
            self.threads.set(stat.num_threads);
        }
    }

    fn collectors(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds_total,
            &self.open_fds,
            &self.max_fds,
            &self.virtual_memory_bytes,
            &self.resident_memory_bytes,
            &self.start_time_seconds,
            &self.threads,
        ]
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.collectors().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let _scrape = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(process) = Process::myself() {
            self.read(&process);
        }
        self.collectors().into_iter().flat_map(Collector::collect).collect()
    }
}

/// The start of the process in Unix time.
fn start_time() -> Option<f64> {
    let after_boot = ticks_as_seconds(Process::myself().ok()?.stat().ok()?.starttime);
    Some(procfs::boot_time_secs().ok()? as f64 + after_boot)
}

fn ticks_as_seconds(ticks: u64) -> f64 {
    ticks as f64 / procfs::ticks_per_second() as f64
}

fn signed(figure: u64) -> i64 {
    i64::try_from(figure).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    fn value(registry: &Registry, name: &str) -> f64 {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap_or_else(|| panic!("no {name}"));
        let metric = &family.get_metric()[0];
        metric.get_counter().get_value() + metric.get_gauge().get_value()
    }

    #[test]
    fn the_process_is_measured_while_it_works() {
        let registry = Registry::new();
        register_program_metrics(&registry, "1.2.3").unwrap();
        let before = value(&registry, names::PROCESS_CPU_SECONDS_TOTAL);
        let files_before = value(&registry, names::PROCESS_OPEN_FDS);
        let begun = std::time::Instant::now();

        let mut work = 0_u64;
        // The work takes at least two ticks of the kernel.
        while begun.elapsed().as_millis() < 200 {
            work = std::hint::black_box(work.wrapping_mul(31).wrapping_add(7));
        }

        let files: Vec<_> = (0..20).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();

        assert!(value(&registry, names::PROCESS_CPU_SECONDS_TOTAL) > before);
        assert!(value(&registry, names::PROCESS_OPEN_FDS) >= files_before + 10.0);
        drop(files);
        assert!(value(&registry, names::PROCESS_MAX_FDS) > 0.0);
        assert!(value(&registry, names::PROCESS_THREADS) >= 1.0);
        let resident = value(&registry, names::PROCESS_RESIDENT_MEMORY_BYTES);
        assert!(resident > 100e3 && value(&registry, names::PROCESS_VIRTUAL_MEMORY_BYTES) > resident);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();

        let age = now - value(&registry, names::PROCESS_START_TIME_SECONDS);
        assert!((-5.0..3600.0).contains(&age), "{age}");
    }

    #[test]
    fn every_family_of_a_program_has_its_labels() {
        let registry = Registry::new();
        register_program_metrics(&registry, "1.2.3").unwrap();
        let families = registry.gather();
        let mut found: Vec<&str> = families.iter().map(|family| family.name()).collect();
        let mut expected: Vec<&str> = names::PROGRAM_FAMILIES.iter().map(|family| family.name).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        let build = families.iter().find(|family| family.name() == names::BUILD_INFO).unwrap();
        let labels: Vec<(&str, &str)> =
            build.get_metric()[0].get_label().iter().map(|label| (label.name(), label.value())).collect();
        assert_eq!(labels, [("revision", REVISION), ("version", "1.2.3")]);
    }
}
