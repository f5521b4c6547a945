//! The thread that looks at the GPUs, and the last look for everybody.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio::sync::watch;
use tokio::time::timeout;

use super::nvml::{Driver, Silent};
use super::view::{Device, View};

/// Figures that are older decide nothing, unless looks are meant to be rarer.
const AGE_MAX: Duration = Duration::from_secs(10);

/// Opening a library that is not there costs little, but it need not be at each look.
const REOPEN: Duration = Duration::from_secs(1);

/// Figures that are younger need no new look.
const NEW: Duration = Duration::from_millis(50);
/// A look takes a millisecond; a reader waits for it no longer than this.
const REFRESH_PATIENCE: Duration = Duration::from_millis(250);

#[derive(Clone, Debug)]
pub struct SamplerSettings {
    /// NVML's library; `None`: the usual names.
    pub library: Option<PathBuf>,
    pub interval: Duration,
    /// A GPU was asked for: that there is none is worth a warning and a gauge at 0.
    pub expected: bool,
}

/// Cheap to clone. The thread ends with the last of them, once the driver lets it.
#[derive(Clone)]
pub struct Sampler {
    orders: mpsc::Sender<()>,
    view: watch::Receiver<Arc<View>>,
    expected: bool,
    age_max: Duration,
}

impl Sampler {
    pub fn start(settings: SamplerSettings) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (publish, view) = watch::channel(Arc::new(View::nothing()));
        let (expected, age_max) = (settings.expected, AGE_MAX.max(settings.interval * 3));
        let mut eye = Eye { settings, driver: None, open_after: None, said: None, last: View::nothing() };
        thread::Builder::new().name("nvml".to_owned()).spawn(move || {
            loop {
                publish.send_replace(Arc::new(eye.look()));
                match inbox.recv_timeout(eye.settings.interval) {
                    // Whoever asked while the last look went on wants another one, once.
                    Ok(()) => while inbox.try_recv().is_ok() {},
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self { orders, view, expected, age_max })
    }

    /// The last look.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Whether somebody asked for a GPU.
    pub fn is_expected(&self) -> bool {
        self.expected
    }

    /// Figures that are older mean that the driver does not answer.
    pub fn age_max(&self) -> Duration {
        self.age_max
    }

    /// Each look from now on.
    pub fn follow(&self) -> watch::Receiver<Arc<View>> {
        let mut view = self.view.clone();
        view.mark_unchanged();
        view
    }

    /// Looks again for somebody who is about to read the figures, unless they are new or the driver has fallen silent.
    pub async fn refresh(&self) {
        let age = self.view().begun.elapsed();
        if age > NEW && age <= self.age_max {
            self.fresh(REFRESH_PATIENCE).await;
        }
    }

    /// A look that begins now or later; `None` when the driver does not answer in time.
    pub async fn fresh(&self, patience: Duration) -> Option<Arc<View>> {
        let asked = Instant::now();
        let mut view = self.view.clone();
        self.orders.send(()).ok()?;
        let newer = timeout(patience, view.wait_for(|view| view.sequence > 0 && view.begun >= asked)).await;
        newer.ok()?.ok().map(|view| view.clone())
    }
}

/// What the thread keeps between two looks.
struct Eye {
    settings: SamplerSettings,
    driver: Option<Driver>,
    open_after: Option<Instant>,
    /// The fault that the log knows of.
    said: Option<String>,
    last: View,
}

/// Two servers in one process would initialise and shut down one library: not at the same time.
static OPENING: Mutex<()> = Mutex::new(());

impl Eye {
    fn look(&mut self) -> View {
        let begun = Instant::now();
        let read = self.open(begun).and_then(|()| match &self.driver {
            Some(driver) => driver.read(),
            None => Err("NVML is not open".to_owned()),
        });
        let mut devices = std::mem::take(&mut self.last.devices);
        let fault = match read {
            Ok(read) => {
                let mut again = false;
                let mut seen = Vec::new();
                for device in read {
                    match device {
                        Ok(device) => seen.push(device),
                        Err(silent) => {
                            again = true;
                            self.say(&format!("GPU {}: {}", silent.index, silent.cause));
                            seen.extend(remembered(&devices, &silent));
                        }
                    }
                }
                // A card that comes back is seen again only by a new start.
                if again {
                    self.close(begun);
                } else {
                    self.all_well(seen.len());
                }
                devices = seen;
                None
            }
            Err(fault) => {
                self.say(&fault);
                self.close(begun);
                for device in &mut devices {
                    device.fault = Some(fault.clone());
                }
                Some(fault)
            }
        };
        let driver = self.driver.as_ref().map(|driver| driver.version().to_owned()).or(self.last.driver.take());
        self.last = View { sequence: self.last.sequence + 1, begun, fault, driver, devices };
        self.last.clone()
    }

    fn open(&mut self, now: Instant) -> Result<(), String> {
        if self.driver.is_some() {
            return Ok(());
        }
        if let (Some(after), Some(fault)) = (self.open_after, &self.last.fault)
            && now < after
        {
            return Err(fault.clone());
        }
        let _one = OPENING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let driver = Driver::open(self.settings.library.as_deref())?;
        tracing::info!(driver = driver.version(), "NVML is open");
        self.driver = Some(driver);
        Ok(())
    }

    fn close(&mut self, now: Instant) {
        self.driver = None;
        // A look that did not even try must not put off the next try.
        if self.open_after.is_none_or(|after| now >= after) {
            self.open_after = Some(now + REOPEN);
        }
    }

    /// Each fault once.
    fn say(&mut self, fault: &str) {
        if self.said.as_deref() == Some(fault) {
            return;
        }
        if self.settings.expected || self.last.sequence > 0 && !self.last.devices.is_empty() {
            tracing::warn!("the GPUs cannot be measured: {fault}");
        } else {
            tracing::debug!("no GPU is measured: {fault}");
        }
        self.said = Some(fault.to_owned());
    }

    fn all_well(&mut self, devices: usize) {
        if self.said.take().is_some() {
            tracing::info!(devices, "the GPUs are measured again");
        }
    }
}

/// What was known of a device that does not answer.
fn remembered(before: &[Device], silent: &Silent) -> Vec<Device> {
    let known = before.iter().filter(|device| device.index == silent.index).cloned();
    known.map(|device| Device { fault: Some(silent.cause.clone()), ..device }).collect()
}
