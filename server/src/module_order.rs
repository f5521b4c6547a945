//! The table of modules at the top of `lib.rs`, compared with what the sources import.

use std::fs;
use std::path::{Path, PathBuf};

const HEADING: &str = "# The order of the modules";

/// The lines of the table, from the top.
fn read_order(lib: &str) -> Vec<Vec<String>> {
    let section = lib.lines().map(|line| line.trim_start_matches("//!")).skip_while(|line| line.trim() != HEADING);
    let table = section.skip_while(|line| line.trim() != "```text").skip(1).take_while(|line| line.trim() != "```");
    table
        .map(|line| {
            let (modules, _) = line.trim().split_once("  ").expect("a line of the table explains its modules");
            modules.split(' ').map(str::to_owned).collect()
        })
        .collect()
}

/// The module of the table to which a path such as `cli::settings::limits` belongs, and its line.
fn find_module<'a>(order: &'a [Vec<String>], path: &str) -> Option<(&'a str, usize)> {
    let is_inside =
        |module: &str| path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let modules =
        order.iter().enumerate().flat_map(|(line, modules)| modules.iter().map(move |module| (&**module, line)));
    modules.filter(|(module, _)| is_inside(module)).max_by_key(|(module, _)| module.len())
}

/// The paths behind each `crate::` of a source, without those in comments.
fn crate_paths(source: &str) -> Vec<String> {
    let code: Vec<&str> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");

    let mut paths = Vec::new();
    for (position, _) in code.match_indices("crate::") {
        let is_whole_word = !code[..position].ends_with(|before: char| before.is_alphanumeric() || before == '_');
        let is_visibility = code[..position].ends_with("(in ");
        if is_whole_word && !is_visibility {
            expand(&code[position + "crate::".len()..], "", &mut paths);
        }
    }
    paths
}

/// Adds the paths at the beginning of `text`, `a::b` or `a::{b, c::d}`, and returns the rest of the text.
fn expand<'a>(text: &'a str, prefix: &str, paths: &mut Vec<String>) -> &'a str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|separator: char| separator == ',' || separator.is_whitespace());
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let after = expand(rest, prefix, paths);
            assert!(after.len() < rest.len(), "an import that this test cannot read: {rest:.80}");
            rest = after;
        }
    }

    let end = text.find(|next: char| !next.is_alphanumeric() && next != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    match rest.strip_prefix("::") {
        Some(inner) if !inner.starts_with(['<', '*']) => expand(inner, &path, paths),
        _ => {
            paths.push(path);
            // Behind the name may be `as other` or a glob.
            let end = rest.find([',', '}', ';', '\n']).unwrap_or(rest.len());
            &rest[end..]
        }
    }
}

/// `src/cli/settings/mod.rs` -> `cli::settings`.
fn module_path(file: &Path, folder: &Path) -> String {
    let relative = file.strip_prefix(folder).unwrap().with_extension("");
    let names: Vec<_> = relative.iter().map(|name| name.to_str().unwrap()).filter(|name| *name != "mod").collect();
    names.join("::")
}

fn source_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(source_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn no_module_imports_against_the_order() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let order = read_order(&fs::read_to_string(folder.join("lib.rs")).unwrap());
    assert!(order.len() > 10, "{order:?}");

    let mut problems = Vec::new();
    for file in source_files(&folder) {
        let path = module_path(&file, &folder);
        if ["lib", "main", "module_order"].contains(&&*path) {
            continue;
        }
        let Some((importing, importing_line)) = find_module(&order, &path) else {
            problems.push(format!("`{path}` is not in the table at the top of src/lib.rs"));
            continue;
        };

        for imported_path in crate_paths(&fs::read_to_string(&file).unwrap()) {
            let Some((imported, imported_line)) = find_module(&order, &imported_path) else {
                problems.push(format!("`{path}` imports `{imported_path}`, which is not in the table"));
                continue;
            };
            if imported_line < importing_line {
                problems.push(format!("`{path}` imports `{imported_path}`: `{imported}` is above `{importing}`"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn imports_are_read_however_they_are_written() {
    let source = "
        use crate::spool::Spool;
        use crate::{budget, cli::settings::{self, Limits as L}, web::*};
        pub(in crate::api) fn f() -> my_crate::X { crate::gpu::find::<crate::job::Work>() }
        // use crate::comment;
    ";
    let expected =
        ["spool::Spool", "budget", "cli::settings::self", "cli::settings::Limits", "web", "gpu::find", "job::Work"];
    assert_eq!(crate_paths(source), expected);
}
