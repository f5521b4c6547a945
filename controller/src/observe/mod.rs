//! What the servers report: their metrics are scraped, parsed, and assembled into one world.

mod app_sample;
mod exposition;
mod reports;
mod sample;
mod scrape;
mod store;
mod target;
#[cfg(test)]
pub(crate) mod test_model;
mod world;

pub use app_sample::{AppProblem, AppProblemKind, AppSample};
pub use reports::{DisagreeingReport, DisputeTracker, TRUSTED_LABEL};
pub use sample::{GpuSample, SampleError, ServerSample, residency_state};
pub use scrape::{ScrapeSettings, Scraper, scrape_all_once, scrape_continuously};
pub use store::{Observation, ObservationStore};
pub use target::{BaseUrl, InvalidUrl, SERVER_LABEL, ScrapeTarget, Targets};
pub use world::{AssembledWorld, AssemblyContext, ReportTrust, ServerAppProblem, assemble};
