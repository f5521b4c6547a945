//! Which options of `serve` the configuration file may have, and what their keys are.

use std::sync::LazyLock;

use clap::{Arg, Args};

use crate::cli::settings::{ServeSettings, is_list};

/// Options of `serve` that are no keys of the file: the file lists models in its own way, and what concerns Kubernetes or
/// a single start of the program comes from whatever starts it.
const NOT_IN_THE_FILE: [&str; 12] = [
    "model",
    "config",
    "check-config",
    "account-gpu",
    "admin-token-review",
    "admin-account",
    "admin-audience",
    "pod-namespace",
    "pod-uid",
    "kubernetes-api",
    "kubernetes-ca",
    "kubernetes-token",
];

/// An option that may stand in the file.
pub struct FileOption {
    /// The option in camel case; in the plural where it may be given several times.
    pub key: &'static str,
    pub option: Arg,
}

impl FileOption {
    /// The option without its dashes.
    pub fn long(&self) -> &str {
        self.option.get_long().unwrap_or_default()
    }

    /// The name of the field that declares the option.
    pub fn field(&self) -> &str {
        self.option.get_id().as_str()
    }
}

/// Made once, since serde wants the names of keys for as long as the process lives.
static FILE_OPTIONS: LazyLock<Vec<FileOption>> = LazyLock::new(|| {
    let command = ServeSettings::augment_args(clap::Command::new("serve"));

    let is_in_the_file = |option: &&Arg| option.get_long().is_some_and(|long| !NOT_IN_THE_FILE.contains(&long));
    let options = command.get_opts().filter(is_in_the_file);
    options.map(|option| FileOption { key: key(option).leak(), option: option.clone() }).collect()
});

/// All keys of the file, for the error about one that is unknown.
pub static KEYS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| FILE_OPTIONS.iter().map(|known| known.key).chain([super::MODELS]).collect());

pub fn file_options() -> &'static [FileOption] {
    &FILE_OPTIONS
}

fn key(option: &Arg) -> String {
    let mut key = String::new();
    for (index, word) in option.get_long().unwrap_or_default().split('-').enumerate() {
        let (first, rest) = word.split_at(word.len().min(1));
        match index {
            0 => key.push_str(word),
            _ => key.extend([&first.to_ascii_uppercase(), rest]),
        }
    }

    if is_list(option) {
        key.push_str(if key.ends_with('s') { "es" } else { "s" });
    }
    key
}
