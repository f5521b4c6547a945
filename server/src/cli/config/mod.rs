//! `--config FILE`: the settings of `serve` as YAML, checked as it is read.
//!
//! A value is written as on the command line (`10m`, `4GiB`, `cuda:0`) and checked by the same code, so a mistake is
//! reported with its line and column and with what was expected there.

mod checked;
mod file;
mod models;
mod options;
mod schema;

use std::path::{Path, PathBuf};
use std::{fs, io};

pub use checked::Checked;
pub use file::{ConfigFile, MODELS};
pub use models::{DecodingDefaults, ModelConfig};
pub use options::{FileOption, file_options};
pub use schema::schema;

/// A longer file is no configuration but a mistake.
const LIMIT_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
}

/// Reads and checks a file.
pub fn read(path: &Path) -> Result<ConfigFile, ConfigError> {
    let unreadable = |source| ConfigError::Read { path: path.to_owned(), source };
    let invalid = |problem| ConfigError::Invalid { path: path.to_owned(), problem };

    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > LIMIT_BYTES {
        return Err(invalid(format!("{length} bytes are too long for a configuration; the limit is {LIMIT_BYTES}")));
    }

    let text = fs::read_to_string(path).map_err(unreadable)?;
    parse(&text).map_err(invalid)
}

/// An error says where and why `text` is no configuration.
pub fn parse(text: &str) -> Result<ConfigFile, String> {
    // A file of comments alone has no settings, which is fine.
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(ConfigFile::default());
    }
    serde_yaml::from_str::<ConfigFile>(text)
        .map_err(|error| with_advice(&error.to_string()))
        .and_then(ConfigFile::checked)
}

/// Adds the key that was probably meant to an error about an unknown key.
fn with_advice(problem: &str) -> String {
    match nearest_key(problem) {
        Some(known) => format!("{problem}\ndid you mean `{known}`?"),
        None => problem.to_owned(),
    }
}

/// The known key that is nearest to the unknown one, of a problem such as "unknown field `a`, expected one of `b`, `c`".
fn nearest_key(problem: &str) -> Option<&str> {
    let (unknown, rest) = problem.split_once("unknown field `")?.1.split_once('`')?;
    let expected = rest.lines().next()?.strip_prefix(", expected ")?;
    let expected = expected.strip_prefix("one of ").unwrap_or(expected);

    let keys = expected.split([',', ' ']).map(|key| key.trim_matches('`')).filter(|key| !key.is_empty());
    let (edits, nearest) = keys.map(|key| (edit_distance(unknown, key), key)).min()?;
    (edits <= 1 + unknown.len() / 4).then_some(nearest)
}

/// Edits between two keys (Levenshtein), without regard to case and dashes.
fn edit_distance(one: &str, other: &str) -> usize {
    let letters =
        |key: &str| key.chars().filter(|c| !"-_".contains(*c)).flat_map(char::to_lowercase).collect::<Vec<_>>();
    let (one, other) = (letters(one), letters(other));

    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;

        for (j, b) in other.iter().enumerate() {
            let change = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::cli::values::DurationArg;

    #[test]
    fn the_committed_schema_is_that_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.schema.json");
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            fs::write(path, schema()).unwrap();
        }

        let committed = fs::read_to_string(path).unwrap_or_default();
        assert!(committed == schema(), "docs/config.schema.json is old; write it anew with `make schema`");
    }

    #[test]
    fn a_file_is_read() {
        let file = parse(
            "# comment\nlisten: ':9000'\nidleTimeout: 10m\nmaxLoaded: 2\nspareRunner: true\nmodels:\n  - name: base\n    \
             aliases: [whisper-1]\n    residency: resident\n    idleTimeout: 0\n    defaults: {language: German}\n  - path: /m/x\n",
        )
        .unwrap();

        assert_eq!(file.option("idle-timeout").unwrap(), ["10m"]);
        assert_eq!(file.option("spare-runner").unwrap(), ["true"]);

        let models = file.models.unwrap();
        assert_eq!((models[0].name.as_deref(), models[1].path.as_deref()), (Some("base"), Some(Path::new("/m/x"))));
        assert_eq!(models[0].idle_timeout, Some(Checked(DurationArg(Duration::ZERO))));

        for empty in ["", "\n", "# nothing\n"] {
            assert_eq!(parse(empty).unwrap(), ConfigFile::default());
        }
    }

    /// An option that reads no key would leave its key without effect.
    #[test]
    fn every_key_is_that_of_an_option() {
        let text = "{listen: ':1', opsListen: ':2', modelsDir: /m, installMissing: false, serveInstalled: true, maxLoaded: 1, \
                    residency: idle, idleTimeout: 1s, spareRunner: true, loadTimeout: 1s, stallTimeout: 1s, busyTimeout: 1s, \
                    drainTimeout: 1s, maxQueue: 1, maxBatch: 1, coldHold: 1s, maxUpload: 1MiB, maxAudioDuration: 1h, \
                    maxDecoded: 1GiB, maxSpool: 1GiB, minUploadRate: 1KiB, maxConnections: 1, spoolMemoryTotal: 1MiB, spoolDir: /s, \
                    spoolMemory: 1MiB, asrEngine: faster_whisper, device: cpu, precision: int8, threads: 1, ortLib: /o, \
                    vadModel: /v, ffmpeg: /f, fallbackTokens: 1, fallbackTime: 1s, encoderContext: full, nvmlLib: /n, gpuSampleInterval: 1s, headroom: 1MiB, reclaimTimeout: 1s, \
                    memoryReclaimer: 95%, tlsCert: /a, tlsKey: /b, opsTlsCert: /c, opsTlsKey: /d, apiKeysFile: /k, \
                    adminTokenFile: /t, webUi: false, logFormat: json, logLevel: debug}";

        let file = parse(text).unwrap();
        let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
        let keys = schema["properties"].as_object().unwrap().keys();

        for key in keys.filter(|key| !["models", "defaultAliases", "corsOrigins"].contains(&key.as_str())) {
            let kebab = |c: char| if c.is_uppercase() { format!("-{}", c.to_lowercase()) } else { c.to_string() };
            let option: String = key.chars().map(kebab).collect();

            assert!(file_options().iter().any(|known| known.long() == option), "{key}");
            assert!(file.option(&option).is_some() || !text.contains(&format!("{key}:")), "{key}");
        }
    }

    #[test]
    fn mistakes_say_where_they_are_and_what_was_expected() {
        for (text, place, words) in [
            ("idleTimeot: 5m\n", "1", vec!["idleTimeot", "did you mean `idleTimeout`?"]),
            ("listen: ':9000'\nmax-queue: 4\n", "2", vec!["max-queue", "did you mean `maxQueue`?"]),
            ("idleTimeout: soon\n", "1", vec!["1h30m"]),
            ("threads: 1\nspoolDir: ''\n", "2", vec!["an empty path"]),
            ("models:\n  - name: base\n    residency: lazy\n", "3", vec!["resident, idle, on-demand"]),
            ("models:\n  - name: base\n    alias: x\n", "3", vec!["did you mean `aliases`?"]),
            ("models: base\n", "1", vec!["sequence"]),
            ("maxQueue: 0\n", "", vec!["maxQueue", "at least 1"]),
            ("models:\n  - aliases: [a]\n", "", vec!["name", "path"]),
            ("models:\n  - name: a\n  - name: a\n", "", vec!["twice", "`a`"]),
            ("models:\n  - name: a\n    defaults: {language: klingon}\n", "3", vec!["klingon"]),
            ("listen: [\n", "", vec![]),
        ] {
            let error = parse(text).expect_err(text);

            assert!(error.contains(place), "{text}: no line {place} in\n{error}");
            for word in words {
                assert!(error.contains(word), "{text}: no {word:?} in\n{error}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-zA-Z:\\-\\[\\]{}&*!|>'\" \n#0-9]{0,120}") {
            let _ = parse(&text);
        }
    }
}
