//! The namespaces whose pods may be servers, which the operator selects. In other namespaces a pod with a server's label is
//! neither observed nor commanded, and never gets a credential.

use std::str::FromStr;

use hush_core::{Labels, Selector, SelectorExpression, SelectorOperator};

/// The default selector: namespaces with this label may contain servers.
pub const SERVERS_LABEL_SELECTOR: &str = "gpu.hush.dev/servers=true";

/// A label selector of namespaces, as kubectl writes it: `a=b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`, joined by
/// commas. An empty one selects every namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceSelector {
    text: String,
    selector: Selector,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a label selector such as gpu.hush.dev/servers=true or `team in (a,b),!frozen`: `{0}` is not a requirement"
)]
pub struct InvalidSelector(String);

impl NamespaceSelector {
    /// Selects every namespace.
    pub fn all() -> Self {
        Self { text: String::new(), selector: Selector::default() }
    }
}

impl FromStr for NamespaceSelector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::all());
        }

        let requirements = split_requirements(text);
        let expressions: Result<_, _> =
            requirements.iter().map(|requirement| parse_requirement(requirement.trim())).collect();
        Ok(Self { text: text.to_owned(), selector: Selector { labels: Labels::new(), expressions: expressions? } })
    }
}

/// Splits a selector at the commas outside of lists of values.
fn split_requirements(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut is_in_list) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            '(' => is_in_list = true,
            ')' => is_in_list = false,
            ',' if !is_in_list => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }

    parts.push(&text[begin..]);
    parts
}

fn parse_requirement(text: &str) -> Result<SelectorExpression, InvalidSelector> {
    let invalid = || InvalidSelector(text.to_owned());

    let (key, operator, values) = if let Some(key) = text.strip_prefix('!') {
        (key, SelectorOperator::DoesNotExist, Vec::new())
    } else if let Some((key, values)) = text.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(invalid)?;
        let (key, operator) = match key.trim_end().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => (key, SelectorOperator::In),
            Some((key, "notin")) => (key, SelectorOperator::NotIn),
            _ => return Err(invalid()),
        };
        (key, operator, values.split(',').map(|value| value.trim().to_owned()).collect())
    } else if let Some((key, value)) = text.split_once("!=") {
        (key, SelectorOperator::NotIn, vec![value.trim().to_owned()])
    } else if let Some((key, value)) = text.split_once('=') {
        (key, SelectorOperator::In, vec![value.strip_prefix('=').unwrap_or(value).trim().to_owned()])
    } else {
        (text, SelectorOperator::Exists, Vec::new())
    };

    let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let is_key = |key: &str| !key.is_empty() && key.len() <= 317 && key.bytes().all(|c| is_plain(c) || c == b'/');
    let is_value = |value: &String| value.len() <= 63 && value.bytes().all(is_plain);
    let key = key.trim();
    if !is_key(key) || !values.iter().all(is_value) {
        return Err(invalid());
    }
    Ok(SelectorExpression { key: key.to_owned(), operator, values })
}

/// Why the pods of a namespace may not be servers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceRefusal {
    #[error("its namespace `{namespace}` is not known")]
    Unknown { namespace: String },
    #[error(
        "its namespace `{namespace}` may hold no servers: --server-namespaces selects `{selectors}`, and the namespace has no \
         such labels"
    )]
    NotSelected { namespace: String, selectors: String },
}

/// A namespace may contain servers if one of the selectors selects it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNamespaces(pub Vec<NamespaceSelector>);

impl ServerNamespaces {
    /// Whether the pods of a namespace may be servers. `labels` are those of the namespace; `None`: there is no such
    /// namespace.
    pub fn check(&self, namespace: &str, labels: Option<&Labels>) -> Result<(), NamespaceRefusal> {
        let Some(labels) = labels else {
            return Err(NamespaceRefusal::Unknown { namespace: namespace.to_owned() });
        };
        if self.0.iter().any(|selector| selector.selector.matches(labels)) {
            return Ok(());
        }

        let selectors: Vec<&str> = self.0.iter().map(|selector| selector.text.as_str()).collect();
        Err(NamespaceRefusal::NotSelected { namespace: namespace.to_owned(), selectors: selectors.join("` or `") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn selectors_are_written_as_for_kubectl() {
        let media = labels(&[("gpu.hush.dev/servers", "true"), ("team", "media")]);
        for (text, selects) in [
            ("", true),
            (" ", true),
            (SERVERS_LABEL_SELECTOR, true),
            ("gpu.hush.dev/servers==true", true),
            ("gpu.hush.dev/servers=false", false),
            ("team", true),
            ("!team", false),
            ("!frozen", true),
            ("team!=media", false),
            ("frozen!=true", true),
            ("team in (speech, media)", true),
            ("team notin (speech,media)", false),
            ("team in (speech,media),gpu.hush.dev/servers=true", true),
            ("team in (speech,media), frozen", false),
        ] {
            let selector: NamespaceSelector = text.parse().unwrap();
            assert_eq!(selector.selector.matches(&media), selects, "{text}");
        }

        for wrong in [
            ",",
            "team=media,",
            "=true",
            "team in media",
            "team on (media)",
            "team in (media",
            "a b",
            "a=b=c",
            "!",
            "a=(b)",
        ] {
            let error = wrong.parse::<NamespaceSelector>().unwrap_err().to_string();
            assert!(error.contains("label selector"), "{wrong}");
        }
    }

    #[test]
    fn any_of_the_selectors_opens_a_namespace_and_none_opens_nothing() {
        let selectors = ["kubernetes.io/metadata.name=hush", SERVERS_LABEL_SELECTOR].map(|text| text.parse().unwrap());
        let namespaces = ServerNamespaces(selectors.to_vec());
        let check = |pairs: &[(&str, &str)]| namespaces.check("a", Some(&labels(pairs)));
        assert_eq!(check(&[("kubernetes.io/metadata.name", "hush")]), Ok(()));
        assert_eq!(check(&[("gpu.hush.dev/servers", "true")]), Ok(()));
        let why = check(&[("kubernetes.io/metadata.name", "a")]).unwrap_err().to_string();
        assert!(why.contains("`a` may hold no servers") && why.contains(SERVERS_LABEL_SELECTOR), "{why}");
        assert!(namespaces.check("a", None).is_err());
        assert!(ServerNamespaces(Vec::new()).check("a", Some(&Labels::new())).is_err());
    }
}
