//! The thread that reads the GPUs, and its last reading for everything else.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio::sync::watch;
use tokio::time::timeout;

use super::nvml::{NvmlDriver, NvmlFault, SilentDevice};
use super::reading::{GpuDevice, GpuReading};

/// Figures that are older decide nothing, unless the interval between two readings is longer.
const AGE_MAX: Duration = Duration::from_secs(10);

/// The pause between two attempts to open NVML: opening a library that is not there costs little, but need not be done
/// for each reading.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Figures that are younger need no refresh.
const FRESH_AGE: Duration = Duration::from_millis(50);
/// How long a refresh waits. A reading takes about a millisecond.
const REFRESH_TIMEOUT: Duration = Duration::from_millis(250);

#[derive(Clone, Debug)]
pub struct SamplerSettings {
    /// The file of NVML's library; `None`: the usual names.
    pub library: Option<PathBuf>,
    pub interval: Duration,
    /// Whether a GPU was asked for. Then a missing one is worth a warning, and a gauge at 0.
    pub expected: bool,
}

/// Cheap to clone. The thread ends with the last clone, once the driver lets it.
#[derive(Clone)]
pub struct GpuSampler {
    requests: mpsc::Sender<()>,
    reading: watch::Receiver<Arc<GpuReading>>,
    is_expected: bool,
    age_max: Duration,
}

impl GpuSampler {
    pub fn start(settings: SamplerSettings) -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel();
        let (publish, reading) = watch::channel(Arc::new(GpuReading::empty()));
        let is_expected = settings.expected;
        let age_max = AGE_MAX.max(settings.interval * 3);

        let mut reader = GpuReader::new(settings);
        thread::Builder::new().name("nvml".to_owned()).spawn(move || {
            loop {
                publish.send_replace(Arc::new(reader.read()));
                match inbox.recv_timeout(reader.settings.interval) {
                    // Requests that came during the last reading are answered by one more.
                    Ok(()) => while inbox.try_recv().is_ok() {},
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;

        Ok(Self { requests, reading, is_expected, age_max })
    }

    /// The last reading.
    pub fn reading(&self) -> Arc<GpuReading> {
        self.reading.borrow().clone()
    }

    /// Whether a GPU was asked for.
    pub const fn is_expected(&self) -> bool {
        self.is_expected
    }

    /// Figures that are older mean that the driver does not answer.
    pub const fn age_max(&self) -> Duration {
        self.age_max
    }

    /// Every reading from now on.
    pub fn follow(&self) -> watch::Receiver<Arc<GpuReading>> {
        let mut reading = self.reading.clone();
        reading.mark_unchanged();
        reading
    }

    /// Has the figures read again before they are used, unless they are new or the driver does not answer any more.
    pub async fn refresh(&self) {
        let age = self.reading().begun.elapsed();

        if age > FRESH_AGE && age <= self.age_max {
            self.fresh(REFRESH_TIMEOUT).await;
        }
    }

    /// A reading that begins now or later; `None` when the driver does not answer within `max_wait`.
    pub async fn fresh(&self, max_wait: Duration) -> Option<Arc<GpuReading>> {
        let asked = Instant::now();
        let mut reading = self.reading.clone();
        self.requests.send(()).ok()?;

        let is_fresh = |reading: &Arc<GpuReading>| reading.sequence > 0 && reading.begun >= asked;
        let fresh = timeout(max_wait, reading.wait_for(is_fresh)).await.ok()?;
        fresh.ok().map(|reading| reading.clone())
    }
}

/// What the thread keeps between two readings.
struct GpuReader {
    settings: SamplerSettings,
    driver: Option<NvmlDriver>,
    /// NVML is not opened again before this.
    open_after: Option<Instant>,
    /// The fault that was logged last.
    logged_fault: Option<String>,
    last: GpuReading,
}

/// Locked while NVML is initialised: two servers in one process must not initialise the library at the same time.
static OPENING: Mutex<()> = Mutex::new(());

impl GpuReader {
    fn new(settings: SamplerSettings) -> Self {
        Self { settings, driver: None, open_after: None, logged_fault: None, last: GpuReading::empty() }
    }

    fn read(&mut self) -> GpuReading {
        let begun = Instant::now();
        let before = self.last.devices.clone();

        let (devices, fault) = match self.read_devices(begun) {
            Ok(read) => (self.accept(read, &before, begun), None),
            Err(fault) => {
                let fault = fault.to_string();
                self.log_fault(&fault);
                self.close(begun);
                (with_fault(before, &fault), Some(fault))
            }
        };

        let driver = self.driver.as_ref().map(|driver| driver.version().to_owned()).or(self.last.driver.take());
        self.last = GpuReading { sequence: self.last.sequence + 1, begun, fault, driver, devices };
        self.last.clone()
    }

    fn read_devices(&mut self, now: Instant) -> Result<Vec<Result<GpuDevice, SilentDevice>>, NvmlFault> {
        self.open(now)?;

        self.driver.as_ref().ok_or(NvmlFault::NotOpen)?.read()
    }

    /// The devices that answered, and what was known of the others.
    fn accept(
        &mut self,
        read: Vec<Result<GpuDevice, SilentDevice>>,
        before: &[GpuDevice],
        now: Instant,
    ) -> Vec<GpuDevice> {
        let mut is_silent = false;
        let mut devices = Vec::new();
        for device in read {
            match device {
                Ok(device) => devices.push(device),
                Err(silent) => {
                    is_silent = true;
                    self.log_fault(&format!("GPU {}: {}", silent.index, silent.cause));
                    devices.extend(last_known(before, &silent));
                }
            }
        }

        // NVML sees a card that comes back only after it is initialised again.
        if is_silent {
            self.close(now);
        } else {
            self.log_recovery(devices.len());
        }
        devices
    }

    fn open(&mut self, now: Instant) -> Result<(), NvmlFault> {
        if self.driver.is_some() {
            return Ok(());
        }
        if let (Some(after), Some(fault)) = (self.open_after, &self.last.fault)
            && now < after
        {
            return Err(NvmlFault::NotRetriedYet(fault.clone()));
        }

        let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        let driver = NvmlDriver::open(self.settings.library.as_deref())?;
        tracing::info!(driver = driver.version(), "NVML is open");
        self.driver = Some(driver);
        Ok(())
    }

    fn close(&mut self, now: Instant) {
        self.driver = None;

        // A reading that did not even try to open NVML must not put off the next attempt.
        if self.open_after.is_none_or(|after| now >= after) {
            self.open_after = Some(now + REOPEN_PAUSE);
        }
    }

    /// Logs a fault unless it is the one that was logged last.
    fn log_fault(&mut self, fault: &str) {
        if self.logged_fault.as_deref() == Some(fault) {
            return;
        }

        if self.settings.expected || self.last.sequence > 0 && !self.last.devices.is_empty() {
            tracing::warn!("the GPUs cannot be measured: {fault}");
        } else {
            tracing::debug!("no GPU is measured: {fault}");
        }
        self.logged_fault = Some(fault.to_owned());
    }

    fn log_recovery(&mut self, devices: usize) {
        if self.logged_fault.take().is_some() {
            tracing::info!(devices, "the GPUs are measured again");
        }
    }
}

fn with_fault(devices: Vec<GpuDevice>, fault: &str) -> Vec<GpuDevice> {
    devices.into_iter().map(|device| GpuDevice { fault: Some(fault.to_owned()), ..device }).collect()
}

/// The last figures of a device that does not answer.
fn last_known(before: &[GpuDevice], silent: &SilentDevice) -> Vec<GpuDevice> {
    let known = before.iter().filter(|device| device.index == silent.index).cloned();

    known.map(|device| GpuDevice { fault: Some(silent.cause.clone()), ..device }).collect()
}
