//! Which models a policy selects: label selectors and globs.

use crate::world::Labels;

/// A Kubernetes label selector: all labels and all expressions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub labels: Labels,
    pub expressions: Vec<SelectorExpression>,
}

/// A requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorExpression {
    pub key: String,
    pub operator: SelectorOperator,
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectorOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|expression| expression.is_met(labels))
    }
}

impl SelectorExpression {
    /// As in Kubernetes, `NotIn` also holds where the label is missing.
    fn is_met(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            SelectorOperator::In => value.is_some_and(|value| self.values.contains(value)),
            SelectorOperator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
        }
    }
}

/// A model name in which `*` stands for any text and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn matches(&self, name: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let name: Vec<char> = name.chars().collect();
        let (mut p, mut n) = (0, 0);

        // The position of the last star in the pattern, and the position in the name up to which that star matches: the
        // only point to go back to.
        let mut star: Option<(usize, usize)> = None;

        while n < name.len() {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(&c) if c == '?' || c == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match star {
                    Some((star_at, matched)) => {
                        star = Some((star_at, matched + 1));
                        p = star_at + 1;
                        n = matched + 1;
                    }
                    None => return false,
                },
            }
        }

        pattern[p..].iter().all(|&c| c == '*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("large-*", "large-v3", true),
            ("large-*", "large", false),
            ("*-v?", "large-v3", true),
            ("*-v?", "large-v3-turbo", false),
            ("*a*b", "aaab", true),
            ("*a*b", "aaba", false),
            ("turbo", "turbo", true),
            ("turbo", "turbo2", false),
            ("?", "ü", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn expressions() {
        let expression = |operator, values: &[&str]| Selector {
            labels: Labels::new(),
            expressions: vec![SelectorExpression {
                key: "tier".to_owned(),
                operator,
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            }],
        };

        let gold = labels(&[("tier", "gold")]);
        let none = Labels::new();
        assert!(expression(SelectorOperator::In, &["gold", "silver"]).matches(&gold));
        assert!(!expression(SelectorOperator::In, &["silver"]).matches(&gold));
        assert!(!expression(SelectorOperator::In, &["gold"]).matches(&none));
        assert!(!expression(SelectorOperator::NotIn, &["gold"]).matches(&gold));
        assert!(expression(SelectorOperator::NotIn, &["gold"]).matches(&none));
        assert!(expression(SelectorOperator::Exists, &[]).matches(&gold));
        assert!(expression(SelectorOperator::DoesNotExist, &[]).matches(&none));

        let both = Selector { labels: gold.clone(), ..expression(SelectorOperator::DoesNotExist, &[]) };
        assert!(!both.matches(&gold));
    }
}
