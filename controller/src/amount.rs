//! Amounts of memory as text.

/// GiB with two decimals, rounded down.
pub fn gib(bytes: u64) -> String {
    let hundredths = (u128::from(bytes) * 100) >> 30;
    format!("{}.{:02}Gi", hundredths / 100, hundredths % 100)
}
