//! `hush-server models`: lists the installed models.

use std::io::{self, Write};
use std::path::PathBuf;

use hush_whisper::ModelDir;
use serde::Serialize;

use super::settings::ModelsSettings;
use crate::app::model_store::ModelStore;

/// One installed model in one precision: a row of the table, and an object of the JSON.
#[derive(Debug, Serialize)]
pub struct ModelRow {
    pub name: String,
    pub precision: &'static str,
    /// Length of all files together; absent if the directory is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The origin of the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub dir: PathBuf,
    /// Why the directory cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// All installed models. The row of a damaged one says what is wrong with it.
pub fn rows(store: &ModelStore) -> Vec<ModelRow> {
    let mut rows = Vec::new();
    for (name, precisions) in store.installed() {
        for precision in precisions {
            let dir = store.models_dir.join(&name).join(precision.as_str());
            let (bytes, source, problem) = match ModelDir::open(&dir) {
                Ok(model) => (Some(model.bytes()), Some(model.manifest().source.clone()), None),
                Err(error) => (None, None, Some(error.to_string())),
            };
            rows.push(ModelRow { name: name.clone(), precision: precision.as_str(), bytes, source, dir, problem });
        }
    }
    rows
}

/// Prints the table, or JSON for programs.
pub fn run(settings: &ModelsSettings) -> io::Result<()> {
    let rows = rows(&ModelStore::new(&settings.store.models_dir));
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

/// The table as it is printed, with straight columns.
fn table(rows: &[ModelRow]) -> String {
    let titles = ["NAME", "PRECISION", "SIZE", "SOURCE"].map(str::to_owned);
    let mut lines = vec![titles];
    lines.extend(rows.iter().map(cells));

    let width = |column: usize| lines.iter().map(|cells| cells[column].chars().count()).max().unwrap_or_default();
    let name_width = width(0);
    let precision_width = width(1);
    let size_width = width(2);

    let mut text = String::new();
    for [name, precision, size, source] in &lines {
        let line = format!("{name:name_width$}  {precision:precision_width$}  {size:>size_width$}  {source}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn cells(row: &ModelRow) -> [String; 4] {
    let size = row.bytes.map_or_else(|| "-".to_owned(), format_bytes);
    let source = match &row.problem {
        Some(problem) => format!("damaged: {problem}"),
        None => row.source.clone().unwrap_or_default(),
    };
    [row.name.clone(), row.precision.to_owned(), size, source]
}

/// Bytes in a unit that leaves at most three digits before the point.
fn format_bytes(bytes: u64) -> String {
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
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(1536), "1.5 KiB");
        assert_eq!(format_bytes(80 << 20), "80 MiB");
        assert_eq!(format_bytes(3 << 30), "3.0 GiB");
        assert_eq!(format_bytes(1023 << 20), "1.0 GiB");
    }

    #[test]
    fn a_table_has_straight_columns() {
        let row = |name: &str, precision, bytes, problem: Option<&str>| ModelRow {
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
        let rows = rows(&ModelStore::new(folder.path()));
        assert_eq!((rows.len(), rows[0].bytes), (1, None));
        assert!(rows[0].problem.as_ref().unwrap().contains("model.json"));
    }
}
