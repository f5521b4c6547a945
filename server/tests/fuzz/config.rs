//! Configuration files.

use std::time::Duration;

use hush_server::cli::config::{ConfigFile, parse};
use proptest::prelude::*;

use crate::damage::damages;
use crate::harness::{FuzzLimits, fuzz};

const LIMITS: FuzzLimits = FuzzLimits { bytes: 64 << 20, time: Duration::from_secs(30) };

const GOOD: &str = "\
# comment
listen: ':9000'
idleTimeout: 5m
maxLoaded: 2
spareRunner: true
defaultAliases: [whisper-1]
models:
  - name: base
    aliases: [fast, 'small one']
    residency: resident
    idleTimeout: 0
    defaults: {language: German, vadFilter: true, beamSize: 5}
  - path: /m/x
    precision: fp16
";

/// Parses a configuration. An error must have a text.
fn read(text: &str) -> Option<ConfigFile> {
    match parse(text) {
        Ok(file) => Some(file),
        Err(problem) => {
            assert!(!problem.trim().is_empty());
            None
        }
    }
}

#[test]
fn damaged_configurations() {
    fuzz("damaged_configurations", 1000, LIMITS, damages(), |damages| {
        let mut bytes = GOOD.as_bytes().to_vec();
        damages.apply(&mut bytes);
        read(&String::from_utf8_lossy(&bytes));
    });
}

#[test]
fn yaml_of_every_kind() {
    let token = prop_oneof![
        prop::sample::select(vec![
            "models:\n",
            "  - ",
            "name: ",
            "&a ",
            "*a",
            "[*a, *a]",
            "!!binary ",
            "!!map ",
            "|\n",
            ">-\n",
            "\"",
            "'",
            "{",
            "}",
            "[",
            "]",
            ": ",
            "? ",
            "- ",
            "\n",
            "  ",
            "\t",
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "<<: *a\n",
            "#",
            "listen: ",
            "idleTimeout: ",
            "0x10",
            ".nan",
            "~",
            "null",
            "true",
            "9999999999999999999999",
            "1e400",
            "\u{feff}",
            "\u{0}",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,10}",
    ];

    fuzz("yaml_of_every_kind", 1000, LIMITS, prop::collection::vec(token, 0..60), |tokens| {
        read(&tokens.concat());
    });
}

/// Lists of lists of lists, each twice as long as the one before: a kilobyte that expands to terabytes.
#[test]
fn anchors_that_multiply() {
    let strategy = (1_usize..40, 1_usize..10, prop::sample::select(vec!["models", "defaultAliases", "listen"]));
    fuzz("anchors_that_multiply", 100, LIMITS, strategy, |(levels, fan, key)| {
        let mut text = "a0: &a0 [x, x]\n".to_owned();
        for level in 1..levels {
            let aliases = vec![format!("*a{}", level - 1); fan].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }

        text.push_str(&format!("{key}: *a{}\n", levels - 1));

        assert_eq!(read(&text), None, "there are no such keys");

        // The same where a list is allowed.
        let nested =
            (1..levels).fold("&a0 [x]".to_owned(), |inner, level| format!("&a{level} [{inner}, *a{}]", level - 1));
        read(&format!("{key}: {nested}\n"));
    });
}

#[test]
fn deep_and_wide() {
    let piece = prop::sample::select(vec!["[", "{a: ", "- ", "? ", "a:\n ", "x, ", "#\n", "\"\\x", "&", "*", "! "]);
    fuzz("deep_and_wide", 100, LIMITS, (piece, 1_usize..20_000), |(piece, times)| {
        read(&format!("models: {}", piece.repeat(times)));
    });
}
