//! Where the model for voice activity detection is.

use std::path::{Path, PathBuf};

use hush_whisper::vad::{FILE, SOURCE};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--vad-model (or HUSH_VAD_MODEL) names {}, where there is no file; it must be {SOURCE}", .0.display())]
pub struct NoVadModelFile(PathBuf);

/// Looks at the option, then beside ONNX Runtime's library, beside the program and in `../lib` of it. `None`: the model is
/// not there, and requests that need it are refused.
///
/// # Errors
/// If the option names no file.
pub fn find(option: Option<&Path>, ort_library: &Path, program: &Path) -> Result<Option<PathBuf>, NoVadModelFile> {
    if let Some(path) = option {
        return if path.is_file() { Ok(Some(path.to_owned())) } else { Err(NoVadModelFile(path.to_owned())) };
    }

    let beside_program = program.parent().into_iter().flat_map(|folder| [folder.to_owned(), folder.join("../lib")]);
    let folders = ort_library.parent().map(Path::to_owned).into_iter().chain(beside_program);
    Ok(folders.map(|folder| folder.join(FILE)).find(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_where_the_libraries_are_or_where_it_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let (lib, bin) = (folder.path().join("lib"), folder.path().join("bin"));
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::create_dir_all(&bin).unwrap();
        let (program, elsewhere) = (bin.join("hush-server"), Path::new("/nowhere/libonnxruntime.so"));
        assert_eq!(find(None, elsewhere, &program), Ok(None));
        std::fs::write(lib.join(FILE), "").unwrap();
        assert!(find(None, elsewhere, &program).unwrap().unwrap().ends_with("bin/../lib/silero_vad.onnx"));
        assert_eq!(find(None, &lib.join("libonnxruntime.so"), Path::new("/nowhere/x")), Ok(Some(lib.join(FILE))));
        let own = folder.path().join("own.onnx");
        let error = find(Some(&own), elsewhere, &program).unwrap_err().to_string();
        assert!(error.contains("own.onnx") && error.contains("silero-vad"), "{error}");
        std::fs::write(&own, "").unwrap();
        assert_eq!(find(Some(&own), elsewhere, &program), Ok(Some(own)));
    }
}
