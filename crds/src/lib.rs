//! `gpu.hush.dev`: the policies that say when a model leaves the GPU and when it may come back.
//!
//! The program `hush-crds` generates the YAML beside this crate, and a test fails when it differs. The types check the rules
//! of the schema too: [`InvalidField`] names the field and the fix, so that a policy can be checked without a cluster.

mod amount;
mod cron;
mod duration;
mod invalid;
mod policy;
mod schema;
mod selector;
mod status;
mod validate;

pub use amount::{AmountText, ParsedAmount, quantity};
pub use duration::{DurationText, parse as parse_duration};
pub use invalid::InvalidField;
pub use policy::{
    ClusterGpuModelPolicy, ClusterGpuModelPolicySpec, CommonSpec, GpuModelPolicy, GpuModelPolicySpec, HardPressureSpec,
    PolicyMode, PressureSpec, ResidencyModeSpec, ResidencySpec, SoftPressureSpec, UnloadSpec, WarmWindowSpec,
};
pub use schema::{DefinitionError, FILES, STORAGE_VERSION, yaml};
pub use selector::{LabelExpression, LabelOperator, LabelSelector};
pub use status::{LastAction, PolicyStatus};

pub const GROUP: &str = "gpu.hush.dev";
/// The version that Hush reads, writes and recommends.
pub const API_VERSION: &str = "gpu.hush.dev/v1beta1";
/// Every version that is served, the recommended one first. All versions have the same fields.
pub const API_VERSIONS: [&str; 2] = [API_VERSION, "gpu.hush.dev/v1alpha1"];
