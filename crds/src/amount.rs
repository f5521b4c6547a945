//! An amount of GPU memory: a Kubernetes quantity (`8Gi`), or a share of the GPU's total (`20%`).

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

const MAX_LENGTH: usize = 18;
const MAX_BYTES: u64 = 1 << 50;
pub const MESSAGE: &str =
    "must be a quantity such as `8Gi` or a share of the card such as `20%`, more than zero and at most `1Pi`";

/// An amount as it is written in a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AmountText(pub String);

/// An amount that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParsedAmount {
    Bytes(u64),
    /// 1 to 100.
    Percent(u8),
}

impl AmountText {
    /// `None`: the text is not an amount, or is out of range (more than zero and at most `1Pi`, 1 to 100 %).
    pub fn get(&self) -> Option<ParsedAmount> {
        if let Some(share) = self.0.strip_suffix('%') {
            let is_plain = share.bytes().all(|b| b.is_ascii_digit()) && !share.starts_with('0');
            return share.parse().ok().filter(|share| is_plain && (1..=100).contains(share)).map(ParsedAmount::Percent);
        }

        quantity(&self.0).filter(|bytes| (1..=MAX_BYTES).contains(bytes)).map(ParsedAmount::Bytes)
    }
}

/// The bytes of a Kubernetes quantity; a fraction of a byte is rounded up, as Kubernetes does. `None`: the text is not a
/// quantity.
pub fn quantity(text: &str) -> Option<u64> {
    let number_length = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = text.split_at(number_length);
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(whole, fraction)| (whole, Some(fraction)));
    let has_digits =
        |digits: &str, most: usize| (1..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if !has_digits(whole, 12) || fraction.is_some_and(|fraction| !has_digits(fraction, 3)) {
        return None;
    }

    let unit: u128 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };

    let fraction: u128 = format!("{:0<3}", fraction.unwrap_or("")).parse().ok()?;
    let thousandths = whole.parse::<u128>().ok()? * 1000 + fraction;
    u64::try_from((thousandths * unit).div_ceil(1000)).ok()
}

impl JsonSchema for AmountText {
    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A rule instead of a `pattern`, because the error message of a pattern shows the regular expression.
        let rule = "self.matches('^([1-9][0-9]?|100)%$') || \
                    (self.matches('^[0-9]{1,12}([.][0-9]{1,3})?(Ki|Mi|Gi|Ti|k|M|G|T)?$') && \
                    quantity(self).isGreaterThan(quantity('0')) && quantity(self).compareTo(quantity('1Pi')) <= 0)";
        json_schema!({
            "type": "string",
            "maxLength": MAX_LENGTH,
            "x-kubernetes-validations": [{"rule": rule, "message": MESSAGE}],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(text: &str) -> Option<ParsedAmount> {
        AmountText(text.to_owned()).get()
    }

    #[test]
    fn amounts() {
        assert_eq!(get("8Gi"), Some(ParsedAmount::Bytes(8 << 30)));
        assert_eq!(get("1.5Gi"), Some(ParsedAmount::Bytes(3 << 29)));
        assert_eq!(get("500M"), Some(ParsedAmount::Bytes(500_000_000)));
        assert_eq!(get("0.001k"), Some(ParsedAmount::Bytes(1)));
        assert_eq!(get("1.5"), Some(ParsedAmount::Bytes(2)));
        assert_eq!(get("20%"), Some(ParsedAmount::Percent(20)));
        assert_eq!(get("100%"), Some(ParsedAmount::Percent(100)));
        assert_eq!(get("1024Ti"), Some(ParsedAmount::Bytes(MAX_BYTES)));
        for text in [
            "", "0", "0Gi", "0%", "101%", "05%", "+5%", "8GB", "8gi", "-1Gi", "1.Gi", ".5Gi", "1.2345Gi", "1025Ti",
            "8 Gi",
        ] {
            assert_eq!(get(text), None, "{text}");
        }
    }
}
