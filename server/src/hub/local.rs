//! Finds copies of published models that other programs left on this machine: in the caches of huggingface_hub and
//! openai/whisper, and in the models folder. No network is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Repo;
use super::config::{HubEnvironment, path_variable};
use super::names::short_names_of;

/// Existing folders and files that may hold a copy of the model, the best first: full precision before quantised
/// copies. Whether a copy is complete is only known when it is opened.
pub fn local_copies(repo: &Repo, models_dir: &Path, env: &dyn HubEnvironment) -> Vec<PathBuf> {
    let hub_cache = hub_cache(env);
    let whisper_cache = user_cache(env).map(|cache| cache.join("whisper"));
    let hub_dirs: Vec<&Path> = std::iter::once(models_dir).chain(hub_cache.as_deref()).collect();
    let file_dirs: Vec<&Path> = std::iter::once(models_dir).chain(whisper_cache.as_deref()).collect();
    let names: Vec<&str> = short_names_of(repo).collect();

    let mut found = Vec::new();
    found.extend(hub_dirs.iter().filter_map(|dir| snapshot(dir, repo.as_str())));
    for (dir, name) in pairs(&file_dirs, &names) {
        found.extend(existing_file(dir.join(format!("{name}.pt"))));
        found.extend(existing_file(dir.join(format!("ggml-{name}.bin"))));
    }

    let conversions = repo.conversions();
    found.extend(hub_dirs.iter().flat_map(|dir| conversions.iter().filter_map(|repo| snapshot(dir, repo.as_str()))));

    for name in &names {
        for folder in [format!("whisper-{name}"), format!("faster-whisper-{name}"), (*name).to_owned()] {
            let folder = models_dir.join(folder);
            let checkpoint = ["config.json", "model.bin"].iter().any(|file| folder.join(file).is_file());
            found.extend(checkpoint.then_some(folder));
        }
    }

    found
}

fn pairs<'a>(dirs: &'a [&'a Path], names: &'a [&'a str]) -> impl Iterator<Item = (&'a Path, &'a str)> {
    dirs.iter().flat_map(|dir| names.iter().map(|name| (*dir, *name)))
}

fn existing_file(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

fn user_cache(env: &dyn HubEnvironment) -> Option<PathBuf> {
    path_variable(env, "XDG_CACHE_HOME").or_else(|| Some(path_variable(env, "HOME")?.join(".cache")))
}

/// The cache folder of huggingface_hub.
fn hub_cache(env: &dyn HubEnvironment) -> Option<PathBuf> {
    path_variable(env, "HF_HUB_CACHE")
        .or_else(|| path_variable(env, "HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(path_variable(env, "HF_HOME")?.join("hub")))
        .or_else(|| Some(user_cache(env)?.join("huggingface").join("hub")))
}

/// The snapshot of a repository in a cache of huggingface_hub: the one that `main` refers to, otherwise the newest.
fn snapshot(cache: &Path, repo: &str) -> Option<PathBuf> {
    let folder = cache.join(format!("models--{}", repo.replace('/', "--")));
    let snapshots = folder.join("snapshots");

    let main = fs::read_to_string(folder.join("refs").join("main")).ok();
    // The reference must be a commit and not a path, so that it cannot lead out of the cache.
    let commit = main.as_deref().map(str::trim).filter(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_hexdigit()));
    if let Some(snapshot) = commit.map(|commit| snapshots.join(commit)).filter(|path| path.is_dir()) {
        return Some(snapshot);
    }

    let entries = fs::read_dir(snapshots).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    entries.max_by_key(|path| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
        (modified.unwrap_or(SystemTime::UNIX_EPOCH), path.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::super::config::test_environment::TestEnvironment;
    use super::*;

    fn create_file(root: &Path, path: &str) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    }

    #[test]
    fn copies_of_every_program_are_found_best_first() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path();
        let env = TestEnvironment::from([("HOME", home)]);
        let models = home.join("models");
        let base = Repo::of("base").unwrap();
        assert!(local_copies(&base, &models, &env).is_empty());

        let hub = ".cache/huggingface/hub";
        create_file(home, &format!("{hub}/models--openai--whisper-base/snapshots/aa11/config.json"));
        create_file(home, &format!("{hub}/models--openai--whisper-base/snapshots/bb22/config.json"));
        fs::create_dir_all(home.join(format!("{hub}/models--openai--whisper-base/refs"))).unwrap();
        fs::write(home.join(format!("{hub}/models--openai--whisper-base/refs/main")), "bb22\n").unwrap();
        create_file(home, &format!("{hub}/models--Systran--faster-whisper-base/snapshots/cc33/model.bin"));
        let pt = create_file(home, ".cache/whisper/base.pt");
        let ggml = create_file(home, "models/ggml-base.bin");
        create_file(home, "models/faster-whisper-base/model.bin");

        let found = local_copies(&base, &models, &env);
        let expected = [
            home.join(format!("{hub}/models--openai--whisper-base/snapshots/bb22")),
            ggml,
            pt,
            home.join(format!("{hub}/models--Systran--faster-whisper-base/snapshots/cc33")),
            models.join("faster-whisper-base"),
        ];
        assert_eq!(found, expected);
        assert!(local_copies(&Repo::of("tiny").unwrap(), &models, &env).is_empty());
    }

    #[test]
    fn distilled_and_turbo_conversions_have_names_of_their_own() {
        let root = tempfile::tempdir().unwrap();
        let env = TestEnvironment::from([("HF_HUB_CACHE", root.path())]);
        for (repo, model) in [
            ("mobiuslabsgmbh--faster-whisper-large-v3-turbo", "turbo"),
            ("Systran--faster-distil-whisper-large-v3", "distil-large-v3"),
            ("Systran--faster-whisper-large-v3", "large"),
        ] {
            create_file(root.path(), &format!("models--{repo}/snapshots/1a/model.bin"));
            let found = local_copies(&Repo::of(model).unwrap(), Path::new("/no/models"), &env);
            assert_eq!(found, [root.path().join(format!("models--{repo}/snapshots/1a"))], "{model}");
        }
    }

    #[test]
    fn a_reference_does_not_lead_out_of_the_cache() {
        let root = tempfile::tempdir().unwrap();
        let env = TestEnvironment::from([("HF_HUB_CACHE", root.path())]);
        fs::create_dir_all(root.path().join("models--openai--whisper-base/refs")).unwrap();
        fs::create_dir_all(root.path().join("models--openai--whisper-base/snapshots")).unwrap();
        fs::write(root.path().join("models--openai--whisper-base/refs/main"), "../../..").unwrap();
        assert!(local_copies(&Repo::of("base").unwrap(), Path::new("/no/models"), &env).is_empty());
    }
}
