//! The lines of the keys and items of a YAML document.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::Spanned;

/// The shape of a document with the line of each key and item.
#[derive(Debug)]
pub enum LineTree {
    Map(Vec<(String, Spanned<LineTree>)>),
    List(Vec<Spanned<LineTree>>),
    Leaf,
}

impl LineTree {
    /// The line of a path such as `spec.models[0]`, or of the longest part of it that exists.
    pub fn line_of(&self, path: &str) -> Option<u64> {
        let mut node = self;
        let mut line = None;

        for part in path_parts(path) {
            let child = match (node, part) {
                (Self::Map(entries), PathPart::Key(key)) => {
                    entries.iter().find(|(name, _)| name == key).map(|(_, child)| child)
                }
                (Self::List(items), PathPart::Index(index)) => items.get(index),
                _ => None,
            };

            let Some(child) = child else { break };
            line = Some(child.referenced.line()).filter(|line| *line > 0).or(line);
            node = &child.value;
        }
        line
    }
}

enum PathPart<'a> {
    Key(&'a str),
    Index(usize),
}

fn path_parts(path: &str) -> impl Iterator<Item = PathPart<'_>> {
    path.split(['.', '[']).filter(|part| !part.is_empty()).map(|part| {
        let index = part.strip_suffix(']').and_then(|digits| digits.parse().ok());
        index.map_or(PathPart::Key(part), PathPart::Index)
    })
}

impl<'de> Deserialize<'de> for LineTree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LineTreeVisitor)
    }
}

struct LineTreeVisitor;

macro_rules! leaves {
    ($($method:ident: $type:ty),+) => {
        $(fn $method<E>(self, _: $type) -> Result<LineTree, E> {
            Ok(LineTree::Leaf)
        })+
    };
}

impl<'de> Visitor<'de> for LineTreeVisitor {
    type Value = LineTree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    leaves!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128, visit_f64: f64, visit_str: &str, visit_bytes: &[u8]);

    fn visit_unit<E>(self) -> Result<LineTree, E> {
        Ok(LineTree::Leaf)
    }

    fn visit_none<E>(self) -> Result<LineTree, E> {
        Ok(LineTree::Leaf)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<LineTree, D::Error> {
        LineTree::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<LineTree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(LineTree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<LineTree, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(LineTree::Map(map))
    }
}
