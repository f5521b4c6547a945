//! `GPU-8d1e1c0b-...` and `MIG-8d1e1c0b-...`, as NVML and CUDA name devices.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UuidKind {
    Gpu,
    Mig,
}

/// A UUID, or the beginning of a GPU's: CUDA takes as many digits as distinguish a GPU from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuUuid {
    pub kind: UuidKind,
    /// The given digits, from the left; the rest is 0.
    number: u128,
    /// How many digits are given.
    digits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a UUID such as GPU-8d1e1c0b-0123-4567-89ab-0123456789ab, as `nvidia-smi -L` prints it; that of a GPU may be cut \
     short where no other begins so"
)]
pub struct UuidError;

const DIGITS: u32 = 32;
/// Digits before each hyphen.
const HYPHENS: [u32; 4] = [8, 12, 16, 20];

impl FromStr for GpuUuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        let (kind, rest) = match text.split_at_checked(4).ok_or(UuidError)? {
            ("GPU-", rest) => (UuidKind::Gpu, rest),
            ("MIG-", rest) => (UuidKind::Mig, rest),
            _ => return Err(UuidError),
        };

        let mut number = 0_u128;
        let mut digits = 0;
        let mut hyphens = HYPHENS.iter().copied().peekable();
        for character in rest.chars() {
            if hyphens.next_if_eq(&digits).is_some() {
                if character != '-' {
                    return Err(UuidError);
                }
                continue;
            }

            let digit = character.to_digit(16).filter(|_| digits < DIGITS).ok_or(UuidError)?;
            digits += 1;
            number |= u128::from(digit) << (4 * (DIGITS - digits));
        }

        let is_long_enough = match kind {
            UuidKind::Gpu => digits > 0,
            UuidKind::Mig => digits == DIGITS,
        };
        if is_long_enough { Ok(Self { kind, number, digits }) } else { Err(UuidError) }
    }
}

impl GpuUuid {
    /// Whether the UUID that NVML gives is this one, or begins with it.
    pub fn is_of(self, uuid: &str) -> bool {
        let own = self.to_string();

        uuid.get(..own.len()).is_some_and(|start| start.eq_ignore_ascii_case(&own))
    }
}

impl fmt::Display for GpuUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            UuidKind::Gpu => "GPU-",
            UuidKind::Mig => "MIG-",
        })?;

        for digit in 0..self.digits {
            if HYPHENS.contains(&digit) {
                f.write_str("-")?;
            }
            write!(f, "{:x}", self.number >> (4 * (DIGITS - 1 - digit)) & 0xf)?;
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
            "GPU-8d1e1c0b0",
            "GPU-8d1e1c0b--0123",
            "8d1e1c0b-0123-4567-89ab-0123456789ab",
            "GPU-8d1e1c0b-0123-4567-89ab-0123456789ag",
            "GPU-8d1e1c0b-0123-4567-89ab-0123456789abc",
            "GPU-8d1e1c0b01234-567-89ab-0123456789ab",
            "TPU-8d1e1c0b-0123-4567-89ab-0123456789ab",
            "MIG-8d1e1c0b",
            "MIG-",
            "GPÜ",
        ] {
            assert_eq!(wrong.parse::<GpuUuid>(), Err(UuidError), "{wrong}");
        }
    }

    #[test]
    fn a_gpu_may_be_named_by_the_beginning_of_its_uuid() {
        let whole = "GPU-8d1e1c0b-0123-4567-89ab-0123456789ab";
        for short in ["GPU-8", "GPU-8d1e1c0b", "GPU-8d1e1c0b-0", "GPU-8D1E1c0b-0123-4567-89ab-0123456789ab"] {
            let uuid = short.parse::<GpuUuid>().unwrap();
            assert_eq!(uuid.to_string(), short.to_lowercase().replacen("gpu", "GPU", 1));
            assert!(uuid.is_of(whole), "{short}");
        }
        assert!("GPU-8d1e1c0b-".parse::<GpuUuid>().unwrap().is_of(whole));
        assert!(!"GPU-8d1e1c0c".parse::<GpuUuid>().unwrap().is_of(whole));
        assert!(!"GPU-8d".parse::<GpuUuid>().unwrap().is_of("MIG-8d1e1c0b-0123-4567-89ab-0123456789ab"));
        assert!(!whole.parse::<GpuUuid>().unwrap().is_of("GPU-8d1e"));
    }
}
