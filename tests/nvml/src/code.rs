//! NVML's return codes by their names, as nvml.h writes them in small letters.

use std::ffi::CStr;
use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `nvmlReturn_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct NvmlCode(pub u32);

macro_rules! codes {
    ($($constant:ident = $number:literal, $name:literal, $text:literal;)+) => {
        impl NvmlCode {
            $(pub const $constant: Self = Self($number);)+

            fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some($name),)+ _ => None }
            }

            fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self($number)),)+ _ => None }
            }

            /// What `nvmlErrorString` says.
            pub(crate) const fn text(self) -> &'static CStr {
                match self.0 { $($number => $text,)+ _ => c"Unknown Error" }
            }
        }
    };
}

codes! {
    SUCCESS = 0, "success", c"The operation was successful";
    UNINITIALIZED = 1, "uninitialized", c"Uninitialized";
    INVALID_ARGUMENT = 2, "invalid_argument", c"Invalid Argument";
    NOT_SUPPORTED = 3, "not_supported", c"Not Supported";
    NO_PERMISSION = 4, "no_permission", c"Insufficient Permissions";
    NOT_FOUND = 6, "not_found", c"Not Found";
    INSUFFICIENT_SIZE = 7, "insufficient_size", c"Insufficient Size";
    DRIVER_NOT_LOADED = 9, "driver_not_loaded", c"Driver Not Loaded";
    TIMEOUT = 10, "timeout", c"Timeout";
    FUNCTION_NOT_FOUND = 13, "function_not_found", c"Function Not Found";
    GPU_IS_LOST = 15, "gpu_is_lost", c"GPU is lost";
    RESET_REQUIRED = 16, "reset_required", c"GPU requires reset";
    OPERATING_SYSTEM = 17, "operating_system", c"Operating System Error";
    LIB_RM_VERSION_MISMATCH = 18, "lib_rm_version_mismatch", c"Driver/library version mismatch";
    ARGUMENT_VERSION_MISMATCH = 25, "argument_version_mismatch", c"Argument version mismatch";
    UNKNOWN = 999, "unknown", c"Unknown Error";
}

impl Serialize for NvmlCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.name() {
            Some(name) => serializer.serialize_str(name),
            None => serializer.serialize_u32(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for NvmlCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;

        impl Visitor<'_> for NameOrNumber {
            type Value = NvmlCode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a return code of NVML, such as \"gpu_is_lost\" or 15")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<NvmlCode, E> {
                u32::try_from(number).map(NvmlCode).map_err(E::custom)
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<NvmlCode, E> {
                NvmlCode::named(name).ok_or_else(|| E::custom(format!("`{name}` is no return code of NVML")))
            }
        }

        deserializer.deserialize_any(NameOrNumber)
    }
}
