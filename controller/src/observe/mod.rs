//! What the servers say of themselves: found, asked in turn, and put together into one world.

mod exposition;
mod reports;
mod sample;
mod scrape;
mod store;
mod target;
mod world;

pub use reports::{Disputes, OddReport, TRUSTED_LABEL};
pub use sample::{GpuSample, ModelSample, Sample, SampleError};
pub use scrape::{ScrapeSettings, Scraper, follow, once};
pub use store::{Observation, Store};
pub use target::{BaseUrl, InvalidUrl, SERVER_LABEL, Target, Targets};
pub use world::{Assembled, Frame, Trust, assemble};
