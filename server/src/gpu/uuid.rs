//! `GPU-8d1e1c0b-...` and `MIG-8d1e1c0b-...`, as NVML and CUDA name devices.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UuidKind {
    Gpu,
    Mig,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuUuid {
    pub kind: UuidKind,
    number: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a UUID such as GPU-8d1e1c0b-0123-4567-89ab-0123456789ab, as `nvidia-smi -L` prints it")]
pub struct UuidError;

const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl FromStr for GpuUuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let (kind, rest) = match text.split_at_checked(4).ok_or(UuidError)? {
            ("GPU-", rest) => (UuidKind::Gpu, rest),
            ("MIG-", rest) => (UuidKind::Mig, rest),
            _ => return Err(UuidError),
        };
        let is_shaped = rest.split('-').map(str::len).eq(GROUPS);
        let digits: String = rest.chars().filter(|c| *c != '-').collect();
        if !is_shaped || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(UuidError);
        }
        u128::from_str_radix(&digits, 16).map(|number| Self { kind, number }).map_err(|_| UuidError)
    }
}

impl fmt::Display for GpuUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.number);
        f.write_str(match self.kind {
            UuidKind::Gpu => "GPU",
            UuidKind::Mig => "MIG",
        })?;
        let mut rest = digits.as_str();
        for length in GROUPS {
            let (group, tail) = rest.split_at(length);
            write!(f, "-{group}")?;
            rest = tail;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_exactly_and_printed_as_nvidia_prints_them() {
        for text in ["GPU-8d1e1c0b-0123-4567-89ab-0123456789ab", "MIG-00000000-0000-0000-0000-000000000001"] {
            assert_eq!(text.parse::<GpuUuid>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "GPU-",
            "GPU-8d1e1c0b",
            "8d1e1c0b-0123-4567-89ab-0123456789ab",
            "GPU-8d1e1c0b-0123-4567-89ab-0123456789ag",
            "GPU-8d1e1c0b01234-567-89ab-0123456789ab",
            "TPU-8d1e1c0b-0123-4567-89ab-0123456789ab",
            "GPÜ",
        ] {
            assert_eq!(wrong.parse::<GpuUuid>(), Err(UuidError), "{wrong}");
        }
    }
}
