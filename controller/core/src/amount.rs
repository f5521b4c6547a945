//! An amount of GPU memory, absolute or as a share of the GPU's total.

use serde::{Deserialize, Serialize};

/// Bytes, or a percentage of the GPU's total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MemoryAmount {
    Bytes(u64),
    /// 0 to 100.
    Percent(u8),
}

impl MemoryAmount {
    /// The amount in bytes on a GPU of `total` bytes; a share is rounded down. `None` for a share of a GPU whose size is
    /// not known.
    pub fn bytes(self, total: Option<u64>) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            // The hundredths and the remainder are multiplied apart, so that nothing overflows.
            Self::Percent(share) => total.map(|total| {
                let share = u64::from(share.min(100));
                total / 100 * share + total % 100 * share / 100
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_down_to_a_byte() {
        assert_eq!(MemoryAmount::Percent(33).bytes(Some(100)), Some(33));
        assert_eq!(MemoryAmount::Percent(33).bytes(Some(101)), Some(33));
        assert_eq!(MemoryAmount::Percent(99).bytes(Some(199)), Some(197));
        assert_eq!(MemoryAmount::Percent(100).bytes(Some(u64::MAX)), Some(u64::MAX));
        assert_eq!(MemoryAmount::Percent(20).bytes(None), None);
        assert_eq!(MemoryAmount::Bytes(7).bytes(None), Some(7));
    }
}
