//! The fields of a policy that several policies merge, each declared once in [`policy_fields!`] at the end of this file:
//! its accessor and type, its path in the API object, which of several values holds, and its default.
//!
//! [`PolicySpec`], [`MergedSpec`], [`ModelRules`] and [`POLICY_FIELDS`] follow from that table; so do the merge, the
//! explanation of the rules, the conflicts between policies, and the values that are written back as YAML.

use std::time::Duration;

use serde::Serialize;

use crate::amount::MemoryAmount;
use crate::residency::{PolicyResidency, PolicyUnload};
use crate::time::whole_milliseconds;
use crate::warm_window::WarmWindow;

/// A value and the index of the policy it comes from, in the list of policies sorted by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PickedValue<T> {
    pub value: T,
    pub policy: usize,
}

/// The value of a field as it takes part in decisions: amounts are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FieldValue {
    Mode(PolicyResidency),
    Unload(PolicyUnload),
    Milliseconds(u64),
    Bytes(u64),
    Number(i64),
}

/// The value of a field as a policy writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenValue {
    Mode(PolicyResidency),
    Unload(PolicyUnload),
    Duration(Duration),
    Amount(MemoryAmount),
    Number(i64),
}

/// How a field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenKind {
    Mode,
    Unload,
    Duration,
    Amount,
    Number,
}

/// A type in which a policy writes a field.
pub trait SpecValue: Copy {
    /// The type in which values are compared and merged.
    type Resolved: Copy + Ord;

    const KIND: WrittenKind;

    /// `total_bytes`: the size of the GPU. `None`: the value is a share of a GPU whose size is not known.
    fn resolve(self, total_bytes: Option<u64>) -> Option<Self::Resolved>;

    fn field_value(value: Self::Resolved) -> FieldValue;

    fn written(self) -> WrittenValue;

    /// `None`: the value is of another kind, or out of range.
    fn from_written(value: WrittenValue) -> Option<Self>;
}

impl SpecValue for PolicyResidency {
    type Resolved = Self;

    const KIND: WrittenKind = WrittenKind::Mode;

    fn resolve(self, _: Option<u64>) -> Option<Self> {
        Some(self)
    }

    fn field_value(value: Self) -> FieldValue {
        FieldValue::Mode(value)
    }

    fn written(self) -> WrittenValue {
        WrittenValue::Mode(self)
    }

    fn from_written(value: WrittenValue) -> Option<Self> {
        if let WrittenValue::Mode(mode) = value { Some(mode) } else { None }
    }
}

impl SpecValue for PolicyUnload {
    type Resolved = Self;

    const KIND: WrittenKind = WrittenKind::Unload;

    fn resolve(self, _: Option<u64>) -> Option<Self> {
        Some(self)
    }

    fn field_value(value: Self) -> FieldValue {
        FieldValue::Unload(value)
    }

    fn written(self) -> WrittenValue {
        WrittenValue::Unload(self)
    }

    fn from_written(value: WrittenValue) -> Option<Self> {
        if let WrittenValue::Unload(unload) = value { Some(unload) } else { None }
    }
}

impl SpecValue for Duration {
    type Resolved = Self;

    const KIND: WrittenKind = WrittenKind::Duration;

    fn resolve(self, _: Option<u64>) -> Option<Self> {
        Some(self)
    }

    fn field_value(value: Self) -> FieldValue {
        FieldValue::Milliseconds(whole_milliseconds(value))
    }

    fn written(self) -> WrittenValue {
        WrittenValue::Duration(self)
    }

    fn from_written(value: WrittenValue) -> Option<Self> {
        if let WrittenValue::Duration(duration) = value { Some(duration) } else { None }
    }
}

impl SpecValue for MemoryAmount {
    /// Bytes.
    type Resolved = u64;

    const KIND: WrittenKind = WrittenKind::Amount;

    fn resolve(self, total_bytes: Option<u64>) -> Option<u64> {
        self.bytes(total_bytes)
    }

    fn field_value(value: u64) -> FieldValue {
        FieldValue::Bytes(value)
    }

    fn written(self) -> WrittenValue {
        WrittenValue::Amount(self)
    }

    fn from_written(value: WrittenValue) -> Option<Self> {
        if let WrittenValue::Amount(amount) = value { Some(amount) } else { None }
    }
}

macro_rules! number_field {
    ($type:ty) => {
        impl SpecValue for $type {
            type Resolved = Self;

            const KIND: WrittenKind = WrittenKind::Number;

            fn resolve(self, _: Option<u64>) -> Option<Self> {
                Some(self)
            }

            fn field_value(value: Self) -> FieldValue {
                FieldValue::Number(value.into())
            }

            fn written(self) -> WrittenValue {
                WrittenValue::Number(self.into())
            }

            fn from_written(value: WrittenValue) -> Option<Self> {
                if let WrittenValue::Number(number) = value { number.try_into().ok() } else { None }
            }
        }
    };
}

number_field!(i32);
number_field!(u32);

/// One row of the table of fields.
#[derive(Debug)]
pub struct PolicyField {
    /// The path in the spec of the API object, such as `pressure.minReclaim`.
    pub path: &'static str,
    /// The value that holds, and its policy.
    pub picked: fn(&MergedSpec) -> Option<PickedValue<FieldValue>>,
    /// The value where no policy sets the field, for a model with this residency.
    pub default: fn(PolicyResidency) -> Option<FieldValue>,
    /// The policy whose value replaces that of `own` in `merged`; `None`: the value of `own` holds, or there is none.
    pub overruled_by: fn(own: &MergedSpec, merged: &MergedSpec) -> Option<usize>,
    /// The value as one policy writes it.
    pub written: fn(&PolicySpec) -> Option<WrittenValue>,
}

/// The least value holds; among equals that of the first policy.
fn least<T: Ord + Copy>(a: Option<PickedValue<T>>, b: Option<PickedValue<T>>) -> Option<PickedValue<T>> {
    [a, b].into_iter().flatten().min()
}

/// The greatest value holds; among equals that of the first policy.
fn greatest<T: Ord + Copy>(a: Option<PickedValue<T>>, b: Option<PickedValue<T>>) -> Option<PickedValue<T>> {
    [a, b].into_iter().flatten().reduce(|a, b| match a.value.cmp(&b.value) {
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Equal => a.min(b),
    })
}

/// The accessor of [`ModelRules`] for one field: optional only where no default applies.
macro_rules! rule_accessor {
    ($(#[$doc:meta])* $field:ident: $type:ty, always, $default:expr) => {
        $(#[$doc])*
        pub fn $field(&self) -> PickedValue<<$type as SpecValue>::Resolved> {
            self.merged.$field.unwrap_or(PickedValue { value: $default, policy: self.first_policy })
        }
    };
    ($(#[$doc:meta])* $field:ident: $type:ty, with_idle_mode, $default:expr) => {
        $(#[$doc])*
        pub fn $field(&self) -> Option<PickedValue<<$type as SpecValue>::Resolved>> {
            let residency = self.residency();
            let default = PickedValue { value: $default, policy: residency.policy };
            self.merged.$field.or_else(|| (residency.value == PolicyResidency::Idle).then_some(default))
        }
    };
    ($(#[$doc:meta])* $field:ident: $type:ty, never) => {
        $(#[$doc])*
        pub const fn $field(&self) -> Option<PickedValue<<$type as SpecValue>::Resolved>> {
            self.merged.$field
        }
    };
}

macro_rules! default_value {
    ($residency:ident, $type:ty, always, $default:expr) => {
        Some(<$type as SpecValue>::field_value($default))
    };
    ($residency:ident, $type:ty, with_idle_mode, $default:expr) => {
        ($residency == PolicyResidency::Idle).then(|| <$type as SpecValue>::field_value($default))
    };
    ($residency:ident, $type:ty, never) => {
        None
    };
}

/// Fills the field of a cluster policy that does not write it, where its default bounds what other policies ask for.
macro_rules! bound_by_default {
    ($merged:ident, $policy:ident, $field:ident, default_bounds, $default:expr) => {
        $merged.$field.get_or_insert(PickedValue { value: $default, policy: $policy });
    };
    ($merged:ident, $policy:ident, $field:ident, only_written $(, $default:expr)?) => {};
}

macro_rules! policy_fields {
    ($(
        $(#[$doc:meta])*
        $field:ident: $type:ty {
            path: $path:literal,
            merge: $merge:ident,
            default: $when:ident $(($default:expr))?,
            cluster_policy: $bounds:ident,
        }
    )+) => {
        /// What one policy asks for. A field that the policy leaves out takes part in no merge.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct PolicySpec {
            $($(#[$doc])* pub $field: Option<$type>,)+
            /// Windows in which another residency mode holds.
            pub schedule: Vec<WarmWindow>,
            /// The most memory that the models of this policy may hold on one GPU together. Budgets are not merged: each
            /// policy's own budget holds.
            pub budget: Option<MemoryAmount>,
        }

        impl PolicySpec {
            /// A spec without windows: `read` gives the value of the field at this path, in the form that is named.
            pub fn from_written(read: impl Fn(&'static str, WrittenKind) -> Option<WrittenValue>) -> Self {
                Self {
                    $($field: read($path, <$type as SpecValue>::KIND).and_then(<$type as SpecValue>::from_written),)+
                    schedule: Vec::new(),
                    budget: read(BUDGET_PATH, MemoryAmount::KIND).and_then(MemoryAmount::from_written),
                }
            }
        }

        /// What several policies ask for together: amounts in bytes on one GPU, the residency as of one point in time.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct MergedSpec {
            /// The first policy whose open window asks for exactly the residency that holds.
            pub window: Option<usize>,
            $($(#[$doc])* pub $field: Option<PickedValue<<$type as SpecValue>::Resolved>>,)+
        }

        impl MergedSpec {
            /// What one policy writes. `policy` is its index; its residency and windows are taken as they are written,
            /// see [`crate::merge`] for the residency at a point in time.
            pub(crate) fn written(policy: usize, spec: &PolicySpec, total_bytes: Option<u64>) -> Self {
                Self {
                    window: None,
                    $($field: spec
                        .$field
                        .and_then(|value| SpecValue::resolve(value, total_bytes))
                        .map(|value| PickedValue { value, policy }),)+
                }
            }

            /// Adds the defaults by which a cluster policy bounds what other policies ask for.
            pub(crate) fn add_cluster_defaults(&mut self, policy: usize) {
                let merged = self;
                $(bound_by_default!(merged, policy, $field, $bounds $(, $default)?);)+
            }

            /// Field by field the value that holds; `window` is left out.
            pub(crate) fn merge_fields(&self, other: &Self) -> Self {
                Self { window: None, $($field: $merge(self.$field, other.$field),)+ }
            }
        }

        /// The rules of a model: what its policies ask for together, with the defaults where they ask for nothing.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct ModelRules {
            pub(crate) merged: MergedSpec,
            /// Stands for the policy wherever a default decides.
            pub(crate) first_policy: usize,
        }

        impl ModelRules {
            $(rule_accessor! { $(#[$doc])* $field: $type, $when $(, $default)? })+
        }

        /// Every merged field, in the order of the spec.
        pub const POLICY_FIELDS: &[PolicyField] = &[
            $(PolicyField {
                path: $path,
                picked: |merged| {
                    let picked = merged.$field?;
                    let value = <$type as SpecValue>::field_value(picked.value);
                    Some(PickedValue { value, policy: picked.policy })
                },
                default: |_residency| default_value!(_residency, $type, $when $(, $default)?),
                overruled_by: |own, merged| {
                    let (own, merged) = (own.$field?, merged.$field?);
                    (own.value != merged.value).then_some(merged.policy)
                },
                written: |spec| spec.$field.map(SpecValue::written),
            },)+
        ];
    };
}

const BUDGET_PATH: &str = "budget";

impl PolicySpec {
    /// Every field that this policy writes, by its path in the spec of the API object; without its windows.
    pub fn written(&self) -> impl Iterator<Item = (&'static str, WrittenValue)> {
        let fields = POLICY_FIELDS.iter().filter_map(|field| Some((field.path, (field.written)(self)?)));
        fields.chain(self.budget.map(|budget| (BUDGET_PATH, SpecValue::written(budget))))
    }
}

impl ModelRules {
    /// The policy whose open window set the residency.
    pub const fn window(&self) -> Option<usize> {
        self.merged.window
    }
}

// `default`: `always(value)`; `with_idle_mode(value)`, for models whose residency is `Idle`; or `never`.
// `cluster_policy`: `only_written`, or `default_bounds` for fields that protect a model or give it the memory of others.
// A cluster policy takes part with the default of such a field where it writes none, so that its value, written or
// default, bounds what the policies of a namespace ask for.
policy_fields! {
    /// When the model leaves because it is idle.
    residency: PolicyResidency {
        path: "residency.mode",
        merge: greatest,
        default: always(DEFAULT_RESIDENCY),
        cluster_policy: only_written,
    }
    /// How long the model may be idle; with adaptive residency the most that may be learned.
    idle_timeout: Duration {
        path: "residency.idleTimeout",
        merge: least,
        default: with_idle_mode(Duration::from_secs(300)),
        cluster_policy: only_written,
    }
    /// How long the model stays after its load, unless pressure is hard.
    min_resident: Duration {
        path: "residency.minResident",
        merge: least,
        default: always(Duration::ZERO),
        cluster_policy: default_bounds,
    }
    /// What an unload ends.
    unload: PolicyUnload {
        path: "residency.unload",
        merge: greatest,
        default: always(PolicyUnload::App),
        cluster_policy: only_written,
    }
    /// There is hard pressure while less than this is available.
    hard_below: MemoryAmount {
        path: "pressure.hard.availableBelow",
        merge: greatest,
        default: never,
        cluster_policy: only_written,
    }
    /// There is soft pressure while less than this is available.
    soft_below: MemoryAmount {
        path: "pressure.soft.availableBelow",
        merge: greatest,
        default: never,
        cluster_policy: only_written,
    }
    /// How long the soft threshold must have been crossed before models leave.
    grace_period: Duration {
        path: "pressure.soft.gracePeriod",
        merge: least,
        default: always(Duration::from_secs(60)),
        cluster_policy: only_written,
    }
    /// Once models leave, they leave until this much more than the threshold is available.
    min_reclaim: MemoryAmount {
        path: "pressure.minReclaim",
        merge: greatest,
        default: always(0),
        cluster_policy: only_written,
    }
    /// Pressure ends when its threshold has not been crossed for this long.
    transition_period: Duration {
        path: "pressure.transitionPeriod",
        merge: greatest,
        default: always(Duration::from_secs(300)),
        cluster_policy: only_written,
    }
    /// Models of lower priority leave first, and leave for waiting models of higher priority.
    priority: i32 {
        path: "priority",
        merge: least,
        default: always(0),
        cluster_policy: default_bounds,
    }
    /// How many of the models that a policy selects stay loaded.
    min_loaded: u32 {
        path: "minLoaded",
        merge: least,
        default: always(0),
        cluster_policy: default_bounds,
    }
    /// How long requests in flight may go on when hard pressure unloads a busy model.
    drain_timeout: Duration {
        path: "drainTimeout",
        merge: least,
        default: always(Duration::from_secs(30)),
        cluster_policy: only_written,
    }
    /// How long the model stays unloaded after it left for others.
    hold_after_eviction: Duration {
        path: "holdAfterEviction",
        merge: greatest,
        default: always(Duration::from_secs(120)),
        cluster_policy: only_written,
    }
}

/// The residency of a model where no policy sets it.
pub const DEFAULT_RESIDENCY: PolicyResidency = PolicyResidency::Idle;
