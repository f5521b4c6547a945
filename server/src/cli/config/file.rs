//! What a configuration file holds.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::Arg;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::checked::{Checked, ScalarVisitor};
use super::models::ModelConfig;
use super::options::{KEYS, file_options};
use crate::cli::settings::{OptionSource, SettingError, check_value, is_list, is_path};
use crate::cli::values::WholeNumber;

/// The key of the list of models, the only one that is no option.
pub const MODELS: &str = "models";

/// Settings of `hush-server serve`. Each is written as its option is; an option or a variable beats it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigFile {
    /// The values of options, by their names without dashes. All of them have been checked.
    options: BTreeMap<&'static str, Vec<OsString>>,
    /// The models that are served; the first is the default.
    pub models: Option<Vec<ModelConfig>>,
}

impl ConfigFile {
    /// The values of the option `--name`, if the file has it.
    pub fn option(&self, name: &str) -> Option<&[OsString]> {
        self.options.get(name).map(Vec::as_slice)
    }

    /// Refuses what one value alone cannot show.
    pub(super) fn checked(self) -> Result<Self, String> {
        if self.option("max-queue").is_some_and(|values| values == ["0"]) {
            return Err("maxQueue must be at least 1".to_owned());
        }

        let models = self.models.as_deref().unwrap_or_default();
        if self.models.is_some() && models.is_empty() {
            return Err("models is empty; name one, or leave it out".to_owned());
        }

        let mut names: Vec<&str> = Vec::new();
        for (index, model) in models.iter().enumerate() {
            let at = format!("models[{index}]");
            if model.max_queue == Some(Checked(WholeNumber(0))) {
                return Err(format!("{at}: maxQueue must be at least 1"));
            }
            if model.source().is_none() {
                return Err(format!("{at} has neither a name nor a path"));
            }
            for name in model.name.iter().chain(&model.aliases) {
                if names.contains(&name.as_str()) {
                    return Err(format!("{at}: the name `{name}` is given twice"));
                }
                names.push(name);
            }
        }
        Ok(self)
    }
}

impl OptionSource for &ConfigFile {
    fn values(&mut self, option: &Arg) -> Result<Option<Vec<OsString>>, SettingError> {
        Ok(option.get_long().and_then(|long| self.option(long)).map(<[_]>::to_vec))
    }
}

impl<'de> Deserialize<'de> for ConfigFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_struct("ConfigFile", KEYS.as_slice(), FileVisitor)
    }
}

struct FileVisitor;

impl<'de> Visitor<'de> for FileVisitor {
    type Value = ConfigFile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ConfigFile, A::Error> {
        let mut file = ConfigFile::default();

        while let Some(key) = map.next_key::<String>()? {
            if key == MODELS {
                file.models = map.next_value()?;
                continue;
            }
            let Some(known) = file_options().iter().find(|known| known.key == key) else {
                return Err(A::Error::unknown_field(&key, KEYS.as_slice()));
            };
            if let Some(values) = map.next_value_seed(OptionValues(&known.option))? {
                file.options.insert(known.option.get_long().unwrap_or_default(), values);
            }
        }
        Ok(file)
    }
}

/// Reads the values of an option, or null for none.
struct OptionValues<'a>(&'a Arg);

impl OptionValues<'_> {
    fn read_scalar<'de, D: Deserializer<'de>>(&self, deserializer: D) -> Result<OsString, D::Error> {
        if is_path(self.0) {
            let path = PathBuf::deserialize(deserializer)?;
            if path.as_os_str().is_empty() {
                return Err(D::Error::custom("an empty path cannot be used; leave the key out"));
            }
            return Ok(path.into());
        }
        let read = |text: &str| check_value(self.0, text.as_ref()).map(|()| OsString::from(text));
        deserializer.deserialize_any(ScalarVisitor(read))
    }
}

impl<'de> DeserializeSeed<'de> for OptionValues<'_> {
    type Value = Option<Vec<OsString>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for OptionValues<'_> {
    type Value = Option<Vec<OsString>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if is_list(self.0) { "a list" } else { "a text, a number or a switch" })
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if is_list(self.0) {
            return deserializer.deserialize_seq(self);
        }
        self.read_scalar(deserializer).map(|value| Some(vec![value]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(ListItem(&self))? {
            values.push(value);
        }
        Ok(Some(values))
    }
}

struct ListItem<'a>(&'a OptionValues<'a>);

impl<'de> DeserializeSeed<'de> for ListItem<'_> {
    type Value = OsString;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<OsString, D::Error> {
        self.0.read_scalar(deserializer)
    }
}
