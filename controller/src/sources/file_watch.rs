//! Watches files that may change at any time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::metrics::ControllerMetrics;

/// Short enough that a file takes effect soon after it was saved.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// A value that is read from files.
pub trait FileSource: Send + Sync + 'static {
    type Value: PartialEq + Send + Sync + 'static;
    type Error: std::error::Error + Send + Sync + 'static;

    /// The name of the source in metrics and logs.
    const NAME: &'static str;

    /// Reads the files as they are now. Blocking.
    fn read(&self) -> Result<Self::Value, Self::Error>;
}

/// Reads the source at a fixed interval and publishes each new value. An invalid value is logged once and changes nothing:
/// the last valid one stays in force. Contents are compared, not modification times, because mounted files change by links.
pub async fn follow<S: FileSource>(
    source: Arc<S>,
    values: watch::Sender<Arc<S::Value>>,
    metrics: Arc<ControllerMetrics>,
) {
    let mut last_error: Option<String> = None;

    loop {
        tokio::time::sleep(READ_INTERVAL).await;
        let reader = Arc::clone(&source);
        let Ok(read) = tokio::task::spawn_blocking(move || reader.read()).await else { continue };
        metrics.source_valid.with_label_values(&[S::NAME]).set(i64::from(read.is_ok()));

        match read {
            Ok(value) => {
                if last_error.take().is_some() || **values.borrow() != value {
                    tracing::info!(source = S::NAME, "a new version is in force");
                    values.send_replace(Arc::new(value));
                }
            }
            Err(error) => {
                let error = error.to_string();
                if last_error.as_deref() != Some(&error) {
                    tracing::error!(
                        source = S::NAME,
                        "the new version is refused, the old one stays in force:\n{error}"
                    );
                }
                last_error = Some(error);
            }
        }

        if values.is_closed() {
            return;
        }
    }
}
