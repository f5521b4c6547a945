//! An amount of GPU memory, absolute or as a share of the card.

use serde::{Deserialize, Serialize};

/// Bytes, or a percentage of the card's total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Amount {
    Bytes(u64),
    /// 0 to 100.
    Percent(u8),
}

impl Amount {
    /// Bytes on a card of `total` bytes, a share rounded down. `None` for a share of a card whose size nobody knows.
    pub fn bytes(self, total: Option<u64>) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            // Hundredths and the rest apart, so that nothing overflows.
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
        assert_eq!(Amount::Percent(33).bytes(Some(100)), Some(33));
        assert_eq!(Amount::Percent(33).bytes(Some(101)), Some(33));
        assert_eq!(Amount::Percent(99).bytes(Some(199)), Some(197));
        assert_eq!(Amount::Percent(100).bytes(Some(u64::MAX)), Some(u64::MAX));
        assert_eq!(Amount::Percent(20).bytes(None), None);
        assert_eq!(Amount::Bytes(7).bytes(None), Some(7));
    }
}
