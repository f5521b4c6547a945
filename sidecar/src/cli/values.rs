//! Values of options: times, sizes and devices.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hush_contract::{bytes, duration};
use hush_residency::gpu::{CudaDevice, GpuUuid};

/// `90s`, `1h30m`, `500ms`; a plain number is seconds.
pub fn read_duration(text: &str) -> Result<Duration, String> {
    let read = match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map(Duration::from_secs).ok(),
        // Four parts of five digits are what GEP-2257 allows.
        false => duration::parse(text, 5, 4),
    };

    read.ok_or_else(|| "expected a duration such as 90s, 5m, 1h30m or 500ms, or whole seconds".to_owned())
}

/// As [`read_duration`]; zero is `None`, no limit.
pub fn read_limit(text: &str) -> Result<DurationLimit, String> {
    let duration = read_duration(text)?;

    Ok(DurationLimit((!duration.is_zero()).then_some(duration)))
}

/// A duration that may be without a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationLimit(pub Option<Duration>);

/// `4GiB`, `512MiB`, `100MB`, Kubernetes' `4Gi`, or a plain number of bytes.
pub fn read_bytes(text: &str) -> Result<u64, String> {
    bytes::parse(text).ok_or_else(|| "expected a size such as 4GiB, 512MiB or 100MB, or whole bytes".to_owned())
}

/// A plain number.
pub fn read_count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number".to_owned())
}

/// Where the app is known to run its models: its memory is counted there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppDevice {
    /// The first GPU, where there is one.
    #[default]
    Auto,
    Cpu,
    Cuda(CudaDevice),
}

impl FromStr for AppDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = |gpu: &str| {
            let index = gpu.parse().ok().map(CudaDevice::Index);
            index.or_else(|| gpu.parse::<GpuUuid>().ok().map(CudaDevice::Uuid)).map(Self::Cuda)
        };

        let device = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(CudaDevice::Index(0))),
            _ => text.strip_prefix("cuda:").and_then(cuda),
        };
        device.ok_or_else(|| "expected auto, cpu, cuda, cuda:N (the number of the GPU, from 0) or cuda:UUID".to_owned())
    }
}

impl fmt::Display for AppDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(CudaDevice::Index(index)) => write!(f, "cuda:{index}"),
            Self::Cuda(CudaDevice::Uuid(uuid)) => write!(f, "cuda:{uuid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7", "cuda:GPU-01234567-89ab-cdef-0123-456789abcdef"] {
            assert_eq!(text.parse::<AppDevice>().map(|device| device.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA:0"] {
            assert!(text.parse::<AppDevice>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_and_sizes_name_what_is_expected() {
        assert_eq!(read_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(read_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(read_limit("0"), Ok(DurationLimit(None)));
        assert_eq!(read_bytes("4Gi"), Ok(4 << 30));
        assert!(read_duration("").unwrap_err().contains("expected a duration"));
        assert!(read_bytes("4 apples").unwrap_err().contains("expected a size"));
    }
}
