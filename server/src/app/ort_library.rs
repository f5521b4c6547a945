//! Where ONNX Runtime's library is.

use std::path::{Path, PathBuf};

use crate::cli::env::Env;

pub const FILE_NAME: &str = "libonnxruntime.so";

const USUAL_FOLDERS: &[&str] = &[
    "/usr/local/lib",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/opt/onnxruntime/lib",
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OrtLibraryError {
    #[error("{origin} names {}, where there is no file", .path.display())]
    NoFile { origin: &'static str, path: PathBuf },
    #[error(
        "ONNX Runtime's library ({FILE_NAME}) was not found in {folders}; give its path with --ort-lib or HUSH_ORT_LIB \
         (`make ort` fetches it into .hush/lib)"
    )]
    NotFound { folders: String },
}

/// Looks at the option, then at `ORT_DYLIB_PATH`, then beside the program, in `../lib` of it, and in the usual folders.
///
/// # Errors
/// If the option or the variable names no file, or the library is in none of the folders.
pub fn find(option: Option<&Path>, env: &Env, program: &Path) -> Result<PathBuf, OrtLibraryError> {
    find_in(option, env, program, USUAL_FOLDERS)
}

fn find_in(
    option: Option<&Path>,
    env: &Env,
    program: &Path,
    usual_folders: &[&str],
) -> Result<PathBuf, OrtLibraryError> {
    let from_option = option.map(|path| ("--ort-lib (or HUSH_ORT_LIB)", path.to_owned()));
    let given = from_option.or_else(|| Some(("ORT_DYLIB_PATH", env.path("ORT_DYLIB_PATH")?)));
    if let Some((origin, path)) = given {
        return if path.is_file() { Ok(path) } else { Err(OrtLibraryError::NoFile { origin, path }) };
    }

    let beside_program = program.parent().into_iter().flat_map(|folder| [folder.to_owned(), folder.join("../lib")]);
    let folders: Vec<PathBuf> = beside_program.chain(usual_folders.iter().map(PathBuf::from)).collect();

    let found = folders.iter().map(|folder| folder.join(FILE_NAME)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let names: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        OrtLibraryError::NotFound { folders: names.join(", ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_paths_are_taken_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (library, other) = (folder.path().join("a.so"), folder.path().join("b.so"));
        std::fs::write(&library, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let env: Env = [("ORT_DYLIB_PATH", other.as_os_str())].into_iter().collect();
        let program = Path::new("/nowhere/bin/hush-server");

        assert_eq!(find(Some(&library), &env, program), Ok(library));
        assert_eq!(find(None, &env, program), Ok(other));

        let gone = Path::new("/nowhere/x.so");
        let error = find(Some(gone), &env, program).unwrap_err().to_string();
        assert!(error.contains("--ort-lib") && error.contains("/nowhere/x.so"), "{error}");
    }

    #[test]
    fn found_beside_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("bin/hush-server");
        std::fs::create_dir_all(folder.path().join("bin")).unwrap();
        std::fs::create_dir_all(folder.path().join("lib")).unwrap();
        let find = || find_in(None, &Env::default(), &program, &["/nowhere"]);

        assert!(find().unwrap_err().to_string().contains("HUSH_ORT_LIB"));
        std::fs::write(folder.path().join("lib").join(FILE_NAME), "").unwrap();
        assert!(find().unwrap().ends_with("bin/../lib/libonnxruntime.so"));
        std::fs::write(folder.path().join("bin").join(FILE_NAME), "").unwrap();
        assert!(find().unwrap().ends_with("bin/libonnxruntime.so"));
    }
}
