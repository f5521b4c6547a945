//! A file that may change at any time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::metrics::Metrics;

/// Often enough for a person who has just saved the file.
const LOOK: Duration = Duration::from_secs(1);

/// Something that is read from files.
pub trait Source: Send + Sync + 'static {
    type Value: PartialEq + Send + Sync + 'static;
    /// As metrics and logs call it.
    const NAME: &'static str;

    /// The value that the files have now. Blocking; the error is for people.
    fn read(&self) -> Result<Self::Value, String>;
}

/// Reads the source again and again and tells of each new value. A value that is no good is told of once and changes
/// nothing: the last good one stays in force. Content is compared, not time stamps: mounted files change by links.
pub async fn follow<S: Source>(source: Arc<S>, told: watch::Sender<Arc<S::Value>>, metrics: Arc<Metrics>) {
    let mut complaint: Option<String> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let reader = Arc::clone(&source);
        let Ok(read) = tokio::task::spawn_blocking(move || reader.read()).await else { continue };
        metrics.source_valid.with_label_values(&[S::NAME]).set(i64::from(read.is_ok()));
        match read {
            Ok(value) => {
                if complaint.take().is_some() || **told.borrow() != value {
                    tracing::info!(source = S::NAME, "a new version is in force");
                    told.send_replace(Arc::new(value));
                }
            }
            Err(problem) => {
                if complaint.as_deref() != Some(&problem) {
                    tracing::error!(
                        source = S::NAME,
                        "the new version is refused, the old one stays in force:\n{problem}"
                    );
                }
                complaint = Some(problem);
            }
        }
        if told.is_closed() {
            return;
        }
    }
}
