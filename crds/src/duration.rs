//! Durations as the Gateway API writes them (GEP-2257): `5m`, `1h30m`, `500ms`. Never negative, at most a week.

use std::borrow::Cow;
use std::time::Duration;

use hush_contract::duration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub const MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const MAX_LENGTH: usize = 28;
pub const MESSAGE: &str = "must be a duration such as `90s`, `5m` or `1h30m`, at most `168h`";

/// A duration as it is written in a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// `None`: the text is not a duration, or is longer than [`MAX`].
    pub fn get(&self) -> Option<Duration> {
        duration::parse(&self.0, 5, 4).filter(|duration| *duration <= MAX)
    }
}

/// The same form with more digits and parts and without [`MAX`], for durations that programs write.
pub fn parse(text: &str) -> Option<Duration> {
    duration::parse(text, 15, 8)
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A rule instead of a `pattern`, because the error message of a pattern shows the regular expression.
        let rule = "self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$') && duration(self) <= duration('168h')";
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

    #[test]
    fn durations_of_the_gateway_api() {
        let get = |text: &str| DurationText(text.to_owned()).get();
        for (text, seconds) in
            [("0s", 0), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1h0m30s", 3630), ("99999s", 99_999)]
        {
            assert_eq!(get(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(get("1s500ms"), Some(Duration::from_millis(1500)));
        for text in
            ["", "5", "-5m", "5 m", "1d", "1.5h", "123456s", "1s1s1s1s1s", "m", "5mm", "+1s", "1S", "1µs", "169h"]
        {
            assert_eq!(get(text), None, "{text}");
        }
        assert_eq!(get("168h"), Some(MAX));
        assert_eq!(parse("1000000ms"), Some(Duration::from_secs(1000)));
        assert_eq!(parse("999999999999999h"), None);
    }
}
