//! Programs that stand in for ffmpeg: scripts in Python, since the sandbox lets a program of the system's folders run and
//! lets no script start others.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hush_server::audio::{AudioError, DecodeOptions, Ffmpeg};

use super::{Matroska, decode_with};

/// Where the sandbox lets programs run.
const PYTHON: &str = "/usr/bin/python3";

/// Whether the checks that need a stand-in can run here; says so when not.
pub fn has_python() -> bool {
    let found = Path::new(PYTHON).exists();
    if !found {
        println!("skipped: {PYTHON} is not installed");
    }
    found
}

pub struct FfmpegStandIn {
    pub dir: tempfile::TempDir,
}

impl FfmpegStandIn {
    /// `say(text)` puts a line where the error of the decoding shows it; `out` takes bytes of audio.
    pub fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let head = "import os, sys, time\nout = sys.stdout.buffer\ndef say(*words): print(*words, file=sys.stderr)\n";
        let path = dir.path().join("ffmpeg");
        std::fs::write(&path, format!("#!{PYTHON} -IS\n{head}{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// Knows `film`, what ffmpeg would write for these samples, and `more`, more of the same.
    pub fn with_samples(script: &str, samples: &[f32]) -> Self {
        let bytes = samples.iter().flat_map(|sample| ((sample * 32_768.0) as i16).to_le_bytes()).collect();
        let film = hex(&Matroska::BUILT_IN.film(0, &[(0.0, samples)]));
        let more = hex(&Matroska::cluster(&(1, 0, bytes)));
        Self::new(&format!("film = bytes.fromhex('{film}')\nmore = bytes.fromhex('{more}')\n{script}"))
    }

    pub fn options(&self) -> DecodeOptions {
        DecodeOptions { ffmpeg: Ffmpeg::At(self.path()), ..DecodeOptions::default() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("ffmpeg")
    }

    /// What it says before it ends with an error.
    pub fn last_words(&self, upload: Vec<u8>) -> String {
        match decode_with(upload, &self.options()) {
            Err(AudioError::Ffmpeg { stderr, .. }) => stderr,
            other => panic!("{other:?}"),
        }
    }

    /// Whether a process runs it.
    pub fn is_running(&self) -> bool {
        runs(&self.path())
    }
}

/// Whether a process has `program` on its command line.
pub fn runs(program: &Path) -> bool {
    let program = program.as_os_str().as_encoded_bytes();
    std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let command_line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        command_line.split(|byte| *byte == 0).skip(1).any(|argument| argument == program)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
