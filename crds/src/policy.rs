//! The two kinds of policies. The cluster kind sets the operator's bounds; it has the same fields as the other kind, and a
//! selector for namespaces.
//!
//! Only the field `mode` of the spec has a default in the schema: a default would take part in merges as if the policy had
//! written it. The description of each field says which value applies where no policy sets it.
//!
//! The comments of the types and of their fields are the descriptions in the schema: a change there changes the YAML.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::amount::AmountText;
use crate::cron;
use crate::duration::{self, DurationText};
use crate::selector::LabelSelector;
use crate::status::PolicyStatus;

macro_rules! policy {
    ($(#[$meta:meta])* $name:ident, $selector:literal { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        #[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        $(#[$meta])*
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name {
            #[doc = $selector]
            pub selector: LabelSelector,
            $($(#[$field_meta])* pub $field: $type,)*
            /// The models of those servers that it governs, by name; `*` stands for any text and `?` for one character.
            /// Left out: all of them.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
            #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
            pub models: Option<Vec<String>>,
            /// When an idle model stays loaded. Where several policies set a field, the strictest value holds.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub residency: Option<ResidencySpec>,
            /// What happens when the memory of a GPU runs short, whichever program holds it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub pressure: Option<PressureSpec>,
            /// Models of lower priority leave first, and leave for waiting models of higher priority. Where several
            /// policies set it, the least holds. 0 where no policy sets it, and in each ClusterGpuModelPolicy that does not set it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(range(min = -1_000_000, max = 1_000_000))]
            pub priority: Option<i32>,
            /// The most memory that the models of this policy may hold on one GPU together, as a quantity or a share of
            /// the card. Idle ones above it leave, also without pressure. Every policy's budget holds.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub budget: Option<AmountText>,
            /// How many of the models that this policy selects stay loaded in any case. Where several policies set it,
            /// the least holds. 0 where no policy sets it, and in each ClusterGpuModelPolicy that does not set it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schemars(range(min = 0, max = 100_000))]
            pub min_loaded: Option<i32>,
            /// How long requests in flight may go on when hard pressure unloads a busy model. Where several policies
            /// set it, the least holds. `30s` where no policy sets it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub drain_timeout: Option<DurationText>,
            /// How long a model stays unloaded after it left for others. Where several policies set it, the greatest
            /// holds. `2m` where no policy sets it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub hold_after_eviction: Option<DurationText>,
            /// `Enforce` carries out what the policy says. `DryRun` only shows what it would change.
            #[serde(default)]
            pub mode: PolicyMode,
        }

        impl $name {
            /// The fields that both kinds have.
            pub fn common(&self) -> CommonSpec<'_> {
                CommonSpec {
                    selector: &self.selector,
                    models: self.models.as_deref().unwrap_or_default(),
                    residency: self.residency.as_ref(),
                    pressure: self.pressure.as_ref(),
                    priority: self.priority,
                    budget: self.budget.as_ref(),
                    min_loaded: self.min_loaded,
                    drain_timeout: self.drain_timeout.as_ref(),
                    hold_after_eviction: self.hold_after_eviction.as_ref(),
                    mode: self.mode,
                }
            }
        }
    };
}

policy! {
    /// When the models of some servers in this namespace leave the GPU, and when they may come back.
    #[kube(
        group = "gpu.hush.dev",
        version = "v1beta1",
        kind = "GpuModelPolicy",
        plural = "gpumodelpolicies",
        shortname = "gmp",
        category = "hush",
        namespaced,
        status = "PolicyStatus",
        derive = "PartialEq",
        doc = "When the models of some servers in this namespace leave the GPU, and when they may come back.",
        printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
        printcolumn(name = "Selecting", type_ = "string", json_path = ".status.conditions[?(@.type==\"Selecting\")].status"),
        printcolumn(name = "Matched", type_ = "integer", json_path = ".status.matched"),
        printcolumn(name = "Loaded", type_ = "integer", json_path = ".status.loaded"),
        printcolumn(name = "Pressure", type_ = "string", json_path = ".status.conditions[?(@.type==\"Pressure\")].status"),
        printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
    )]
    GpuModelPolicySpec, "The servers that it governs, by the labels of their pods. It must not be empty." {}
}

policy! {
    /// A policy for servers in many namespaces: the operator's floor. A namespace's own policies can only be stricter.
    #[kube(
        group = "gpu.hush.dev",
        version = "v1beta1",
        kind = "ClusterGpuModelPolicy",
        plural = "clustergpumodelpolicies",
        shortname = "cgmp",
        category = "hush",
        status = "PolicyStatus",
        derive = "PartialEq",
        doc = "A policy for servers in many namespaces: the operator's floor. A namespace's own policies can only be stricter.",
        printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
        printcolumn(name = "Selecting", type_ = "string", json_path = ".status.conditions[?(@.type==\"Selecting\")].status"),
        printcolumn(name = "Matched", type_ = "integer", json_path = ".status.matched"),
        printcolumn(name = "Loaded", type_ = "integer", json_path = ".status.loaded"),
        printcolumn(name = "Pressure", type_ = "string", json_path = ".status.conditions[?(@.type==\"Pressure\")].status"),
        printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
    )]
    ClusterGpuModelPolicySpec, "The servers that it governs, by the labels of their pods. It must not be empty." {
        /// The namespaces whose servers it governs, by their labels. Left out: all of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace_selector: Option<LabelSelector>,
    }
}

/// The fields that both kinds have.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommonSpec<'a> {
    pub selector: &'a LabelSelector,
    pub models: &'a [String],
    pub residency: Option<&'a ResidencySpec>,
    pub pressure: Option<&'a PressureSpec>,
    pub priority: Option<i32>,
    pub budget: Option<&'a AmountText>,
    pub min_loaded: Option<i32>,
    pub drain_timeout: Option<&'a DurationText>,
    pub hold_after_eviction: Option<&'a DurationText>,
    pub mode: PolicyMode,
}

pub const IDLE_TIMEOUT_MESSAGE: &str = "must be more than `0s`: with `mode: OnDemand` a model leaves as soon as it is idle, \
     with `mode: Resident` it never leaves for idleness";
pub const CRON_MESSAGE: &str =
    "must be a cron expression of five fields (minute hour day month weekday), such as `0 8 * * 1-5`";

/// When an idle model stays loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResidencySpec {
    /// `Resident` never leaves for idleness. `Idle` leaves after `idleTimeout`. `OnDemand` leaves as soon as it is idle.
    /// `Adaptive` learns the timeout from the gaps between requests. Where several policies set it, the strictest holds: `OnDemand`,
    /// then `Adaptive`, `Idle`, `Resident`. `Idle` where no policy sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ResidencyModeSpec>,
    /// How long a model may be idle with the mode `Idle`; with `Adaptive` the most that may be learned. Where several
    /// policies set it, the least holds. `5m` where no policy sets it. More than `0s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [
        {
            "rule": "self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') && duration(self) <= duration('168h')",
            "message": duration::MESSAGE,
        },
        {
            "rule": "!self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') || duration(self) > duration('0s')",
            "message": IDLE_TIMEOUT_MESSAGE,
        },
    ]))]
    pub idle_timeout: Option<DurationText>,
    /// How long a model stays after its load, unless pressure is hard. Where several policies set it, the least holds. `0s`
    /// where no policy sets it, and in each ClusterGpuModelPolicy that does not set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_resident: Option<DurationText>,
    /// What an unload ends. `App`: the model, by the unload of its app; the process of the app may keep memory of its own,
    /// such as a CUDA context. `Process`: the process of the app too, once no other model is in it, so that nothing stays on the
    /// card; the next load takes longer. Where the process cannot be ended the unload is that of the app, and the policy
    /// says so. `hush-server` always ends its process. Where several policies set it, `Process` holds. `App` where no policy
    /// sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unload: Option<UnloadSpec>,
    /// Windows of time in which another mode holds, such as office hours in which models are kept warm. Where several
    /// are open the strictest mode holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub schedule: Option<Vec<WarmWindowSpec>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ResidencyModeSpec {
    Resident,
    Idle,
    OnDemand,
    Adaptive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnloadSpec {
    App,
    Process,
}

/// A window that opens at each time of a cron expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WarmWindowSpec {
    /// When it opens: minute, hour, day of the month, month, day of the week. `0 8 * * 1-5` is eight in the morning
    /// from Monday to Friday.
    #[schemars(length(max = 128))]
    #[schemars(extend("x-kubernetes-validations" = [
        {
            "rule": "self.matches('^[0-9A-Za-z*/,#?-]+( +[0-9A-Za-z*/,#?-]+){4}$')",
            "message": CRON_MESSAGE,
        },
        {
            "rule": cron::RULE,
            "message": cron::RANGES_MESSAGE,
        },
    ]))]
    pub cron: String,
    /// How long it is open, in true hours, also where the clocks change in it. At least `1m`.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') && duration(self) >= duration('1m') \
            && duration(self) <= duration('168h')",
        "message": "must be a duration of at least `1m` and at most `168h`",
    }]))]
    pub duration: DurationText,
    /// The time zone of the cron expression, by its name in the IANA database, such as `Europe/Berlin`. `UTC` when left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "self.matches('^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}$')",
        "message": "must name a time zone of the IANA database, such as `Europe/Berlin`",
    }]))]
    pub time_zone: Option<String>,
    /// The mode inside the window. `Resident` also loads the model when the window is open and there is room.
    pub mode: ResidencyModeSpec,
}

/// What happens when the memory of a GPU runs short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    // Which of a share and a quantity is more depends on the GPU, so they are not compared.
    "rule": "!has(self.hard) || !has(self.soft) || (\
        self.hard.availableBelow.matches('^[0-9]{1,3}%$') && self.soft.availableBelow.matches('^[0-9]{1,3}%$') \
            ? int(self.hard.availableBelow.replace('%', '')) <= int(self.soft.availableBelow.replace('%', '')) \
            : !isQuantity(self.hard.availableBelow) || !isQuantity(self.soft.availableBelow) \
                || quantity(self.hard.availableBelow).compareTo(quantity(self.soft.availableBelow)) <= 0)",
    "message": "`soft.availableBelow` must be at least `hard.availableBelow`: soft pressure comes first",
}]))]
pub struct PressureSpec {
    /// Models leave at once, also busy ones when the idle ones are not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<HardPressureSpec>,
    /// Idle models leave when the pressure has lasted for a grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<SoftPressureSpec>,
    /// Once models leave, they leave until this much more than the threshold is available. Where several policies set it,
    /// the greatest holds. Nothing more where no policy sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_reclaim: Option<AmountText>,
    /// Pressure ends when its threshold has not been crossed for this long. Where several policies set it, the greatest holds.
    /// `5m` where no policy sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition_period: Option<DurationText>,
}

/// The threshold at which models leave at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HardPressureSpec {
    /// There is pressure while less than this is available on the GPU. Where several policies set it, the greatest holds.
    pub available_below: AmountText,
}

/// The threshold at which idle models leave after a grace period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SoftPressureSpec {
    /// There is pressure while less than this is available on the GPU. Where several policies set it, the greatest holds.
    pub available_below: AmountText,
    /// How long the threshold must have been crossed without a break. Where several policies set it, the least holds. `1m`
    /// where no policy sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<DurationText>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyMode {
    #[default]
    Enforce,
    DryRun,
}
