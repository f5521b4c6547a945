//! The form in which the app lists the name of a model.

use super::description::CanonicalNameDescription;

/// The rules for names of models.
#[derive(Clone, Debug, Default)]
pub(super) struct CanonicalName {
    rules: CanonicalNameDescription,
    /// Patterns with `*`, in lower case.
    not_governed: Vec<String>,
}

impl CanonicalName {
    pub(super) fn new(mut rules: CanonicalNameDescription, not_governed: &[String]) -> Self {
        if rules.ignore_case {
            let additions = rules.drop_prefixes.iter_mut().chain(&mut rules.drop_suffixes);
            additions.for_each(|addition| *addition = addition.to_lowercase());
        }
        rules.drop_prefixes.retain(|prefix| !prefix.is_empty());
        rules.drop_suffixes.retain(|suffix| !suffix.is_empty());
        Self { rules, not_governed: not_governed.iter().map(|pattern| pattern.to_lowercase()).collect() }
    }

    pub(super) fn apply(&self, model: &str) -> String {
        let written = if self.rules.ignore_case { model.to_lowercase() } else { model.to_owned() };
        let name = self.without_additions(&written);

        let last_part = name.rsplit('/').next().unwrap_or_default();
        match &self.rules.default_tag {
            Some(tag) if !name.is_empty() && !last_part.contains(':') => format!("{name}:{tag}"),
            _ => name.to_owned(),
        }
    }

    /// Cuts beginnings and ends off until none is left, so that a canonical name stays as it is.
    fn without_additions<'a>(&self, written: &'a str) -> &'a str {
        let mut name = written.trim();
        loop {
            let without_prefix = self.rules.drop_prefixes.iter().find_map(|prefix| name.strip_prefix(prefix.as_str()));
            let without_suffix = self.rules.drop_suffixes.iter().find_map(|suffix| name.strip_suffix(suffix.as_str()));
            match without_prefix.or(without_suffix).map(str::trim).filter(|shorter| !shorter.is_empty()) {
                Some(shorter) => name = shorter,
                None => return name,
            }
        }
    }

    /// Whether the sidecar governs a model of this name.
    pub(super) fn is_governed(&self, model: &str) -> bool {
        let written = model.trim().to_lowercase();
        let canonical = self.apply(model).to_lowercase();
        let matches = |pattern: &String| is_match(pattern, &written) || is_match(pattern, &canonical);
        !self.not_governed.iter().any(matches)
    }
}

/// Whether `text` has the form of `pattern`, in which `*` is any text.
fn is_match(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };

    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text() {
        assert!(is_match("*:cloud", "x:cloud") && is_match("*:cloud", ":cloud") && !is_match("*:cloud", "x:clouds"));
        assert!(is_match("*:*-cloud", "a:b-cloud") && !is_match("*:*-cloud", "a-cloud"));
        assert!(is_match("a*b*c", "aXbYc") && !is_match("a*b*c", "ac") && !is_match("ab*ba", "aba"));
        assert!(is_match("exact", "exact") && !is_match("exact", "exactly") && is_match("*", ""));
    }
}
