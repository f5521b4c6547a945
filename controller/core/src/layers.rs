//! The layers that the comment of the crate lists, compared with what the modules use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules of each layer, the lowest layer first.
fn layers() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(sources().join("lib.rs")).unwrap();
    let list = text.lines().skip_while(|line| *line != "//! # Layers").skip_while(|line| *line != "//! ```text");
    let rows = list.skip(1).take_while(|line| *line != "//! ```");
    rows.map(|row| row.split_once(": ").unwrap().1.split_whitespace().map(str::to_owned).collect()).collect()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file with its path in the crate, such as `adaptive::learner`; a `mod.rs` is its folder.
fn files(folder: &Path, path: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let name = match (path, stem) {
            (_, "mod") => path.to_owned(),
            ("", _) => stem.to_owned(),
            _ => format!("{path}::{stem}"),
        };

        if file.is_dir() {
            files(&file, &name, found);
        } else if !["lib", "layers"].contains(&stem) {
            found.insert(name, std::fs::read_to_string(&file).unwrap());
        }
    }
}

/// The modules that each module uses: the files that its `use` declarations and its paths from the root name. What a
/// module of tests imports from the file around it does not count.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let mut sources_of = BTreeMap::new();
    files(&sources(), "", &mut sources_of);
    let known: BTreeSet<String> = sources_of.keys().cloned().collect();

    let used_by = |(module, text): (&String, &String)| {
        let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
        let code: String =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        let from_root = code.split("crate::").skip(1).flat_map(|rest| named(rest, ""));
        let from_parent = code.split("super::").skip(1).filter(|rest| !rest.starts_with('*'));
        let from_parent = from_parent.flat_map(|rest| named(rest, parent));
        let from_children = code.split("\nmod ").skip(1).flat_map(|rest| named(rest, module));
        let from_public_children = code.split("\npub mod ").skip(1).flat_map(|rest| named(rest, module));

        let all = from_root.chain(from_parent).chain(from_children).chain(from_public_children);
        let existing = all.filter_map(|path| longest_known(&known, &path)).filter(|used| used != module);
        (module.clone(), existing.collect())
    };

    sources_of.iter().map(used_by).collect()
}

/// The paths that follow `crate::` or `super::`: one, or several in braces.
fn named(rest: &str, parent: &str) -> Vec<String> {
    let absolute = |path: &str| {
        let path: String = path.trim().chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect();
        if parent.is_empty() { path } else { format!("{parent}::{path}") }
    };

    match rest.strip_prefix('{') {
        Some(list) => list.split('}').next().unwrap_or_default().split(',').map(absolute).collect(),
        None if rest.contains("::{") && rest.find("::{") < rest.find(';') => {
            let (path, list) = rest.split_once("::{").unwrap();
            let items = list.split('}').next().unwrap_or_default().split(',');
            items.map(|item| absolute(&format!("{path}::{}", item.trim()))).collect()
        }
        None => vec![absolute(rest)],
    }
}

/// The file in which a path ends: `rules::idle::idle_timeout` is in `rules::idle`.
fn longest_known(known: &BTreeSet<String>, path: &str) -> Option<String> {
    let mut path = path.trim_end_matches(':');
    loop {
        if known.contains(path) {
            return Some(path.to_owned());
        }
        path = path.rsplit_once("::")?.0;
    }
}

fn top(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

#[test]
fn a_module_uses_only_layers_above_its_own() {
    let layers = layers();
    let layer_of = |module: &str| layers.iter().position(|layer| layer.iter().any(|name| name == top(module)));
    let uses = uses();
    let mut wrong = Vec::new();
    for (module, used) in &uses {
        let Some(own) = layer_of(module) else {
            wrong.push(format!("{module} is in no layer"));
            continue;
        };

        let apart = used.iter().filter(|used| top(used) != top(module));
        wrong.extend(apart.filter(|used| layer_of(used) >= Some(own)).map(|used| format!("{module} uses {used}")));
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let modules: BTreeSet<&str> = uses.keys().map(|module| top(module)).collect();
    let listed: Vec<&str> = layers.iter().flatten().map(String::as_str).collect();
    assert_eq!(listed.len(), modules.len(), "each module is listed once: {listed:?}");
}

#[test]
fn no_files_use_each_other_in_a_cycle() {
    let mut left = uses();
    assert!(left.values().map(BTreeSet::len).sum::<usize>() > 50, "the uses are not found: {left:?}");
    loop {
        let free: Vec<String> = left
            .iter()
            .filter(|(_, used)| used.iter().all(|used| !left.contains_key(used)))
            .map(|(m, _)| m.clone())
            .collect();
        if free.is_empty() {
            break;
        }

        left.retain(|module, _| !free.contains(module));
    }

    assert!(left.is_empty(), "these files use each other: {:?}", left.keys());
}
