//! `hush-server models`: what is installed.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use hush_whisper::{ModelDir, ModelDirError};
use serde::Serialize;

use super::resolve::Store;
use super::settings::ModelsSettings;

/// A row of the table, and an object of the JSON.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub precision: &'static str,
    /// Length of all files together; absent when the directory is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Where the checkpoint came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub dir: PathBuf,
    /// Why the directory cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Every installed model, also the damaged ones, which say what is wrong with them.
pub fn rows(store: &Store) -> Vec<Row> {
    let installed = store.installed();
    let dirs =
        installed.iter().flat_map(|(name, precisions)| precisions.iter().map(move |precision| (name, precision)));
    dirs.map(|(name, precision)| {
        let dir = store.models_dir.join(name).join(precision.as_str());
        let (bytes, source, problem) = match ModelDir::open(&dir) {
            Ok(model) => (Some(model.bytes()), Some(model.manifest().source.clone()), None),
            Err(error) => (None, None, Some(problem(&error))),
        };
        Row { name: name.clone(), precision: precision.as_str(), bytes, source, dir, problem }
    })
    .collect()
}

fn problem(error: &ModelDirError) -> String {
    error.to_string()
}

/// Prints the table, or JSON for programs.
pub fn run(settings: &ModelsSettings) -> io::Result<()> {
    let rows = rows(&Store::new(&settings.store.models_dir));
    let mut out = io::stdout().lock();
    if settings.json {
        serde_json::to_writer_pretty(&mut out, &rows)?;
        return writeln!(out);
    }
    if rows.is_empty() {
        return writeln!(out, "nothing is installed in {}", settings.store.models_dir.display());
    }
    out.write_all(table(&rows).as_bytes())
}

/// The table as it is printed.
pub fn table(rows: &[Row]) -> String {
    let cells: Vec<[String; 4]> = rows
        .iter()
        .map(|row| {
            let size = row.bytes.map_or_else(|| "-".to_owned(), human);
            let last = row.problem.as_ref().map(|problem| format!("damaged: {problem}"));
            [row.name.clone(), row.precision.to_owned(), size, last.or_else(|| row.source.clone()).unwrap_or_default()]
        })
        .collect();
    let titles = ["NAME", "PRECISION", "SIZE", "SOURCE"].map(str::to_owned);
    let width = |column: usize| {
        std::iter::once(&titles).chain(&cells).map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths = [width(0), width(1), width(2)];
    std::iter::once(&titles).chain(&cells).fold(String::new(), |mut text, [name, precision, size, source]| {
        let [first, second, third] = widths;
        let line = format!("{name:first$}  {precision:second$}  {size:>third$}  {source}");
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

/// Bytes with a unit that leaves three digits.
pub fn human(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 10.0 { 1 } else { 0 };
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(80 << 20), "80 MiB");
        assert_eq!(human(3 << 30), "3.0 GiB");
        assert_eq!(human(1023 << 20), "1.0 GiB");
    }

    #[test]
    fn a_table_has_straight_columns() {
        let row = |name: &str, precision, bytes, problem: Option<&str>| Row {
            name: name.into(),
            precision,
            bytes,
            source: bytes.map(|_| "openai/whisper-base@abc".into()),
            dir: "/m".into(),
            problem: problem.map(Into::into),
        };
        let text = table(&[row("base", "int8", Some(80 << 20), None), row("large-v3", "fp16", None, Some("cut off"))]);
        let expected = "\
NAME      PRECISION    SIZE  SOURCE
base      int8       80 MiB  openai/whisper-base@abc
large-v3  fp16            -  damaged: cut off
";
        assert_eq!(text, expected);
        assert_eq!(table(&[]), "NAME  PRECISION  SIZE  SOURCE\n");
    }

    #[test]
    fn a_damaged_model_is_listed_with_its_problem() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("base/int8")).unwrap();
        std::fs::write(folder.path().join("base/int8/model.json"), "{").unwrap();
        let rows = rows(&Store::new(folder.path()));
        assert_eq!((rows.len(), rows[0].bytes), (1, None));
        assert!(rows[0].problem.as_ref().unwrap().contains("model.json"));
    }
}
