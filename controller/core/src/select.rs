//! Which models a policy means: label selectors and globs.

use crate::world::Labels;

/// A Kubernetes label selector: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    pub labels: Labels,
    pub expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|expression| expression.holds(labels))
    }
}

impl Expression {
    /// As in Kubernetes: `NotIn` also holds where the label is missing.
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
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
        // Where the last star stood, and how much of the name it had swallowed: the only place to go back to.
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
                    Some((at, swallowed)) => {
                        star = Some((at, swallowed + 1));
                        p = at + 1;
                        n = swallowed + 1;
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
            expressions: vec![Expression {
                key: "tier".to_owned(),
                operator,
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            }],
        };
        let gold = labels(&[("tier", "gold")]);
        let none = Labels::new();
        assert!(expression(Operator::In, &["gold", "silver"]).matches(&gold));
        assert!(!expression(Operator::In, &["silver"]).matches(&gold));
        assert!(!expression(Operator::In, &["gold"]).matches(&none));
        assert!(!expression(Operator::NotIn, &["gold"]).matches(&gold));
        assert!(expression(Operator::NotIn, &["gold"]).matches(&none));
        assert!(expression(Operator::Exists, &[]).matches(&gold));
        assert!(expression(Operator::DoesNotExist, &[]).matches(&none));
        let both = Selector { labels: gold.clone(), ..expression(Operator::DoesNotExist, &[]) };
        assert!(!both.matches(&gold));
    }
}
