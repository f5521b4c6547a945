//! What an app writes: split into lines of bounded length, logged under its name, and remembered for the cause of a
//! failed load.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longer lines are cut in the log.
const LONGEST_LINE_BYTES: usize = 4096;
/// Room for what is said about the rest of a line that was cut.
const LONGEST_SHOWN_CHARS: usize = LONGEST_LINE_BYTES + 64;
const READ_BYTES: usize = 16 << 10;

/// How many lines the cause of a failed load has, and how long they may be.
const TAIL_LINES: usize = 20;
const TAIL_LINE_CHARS: usize = 300;

/// The last lines of an app's output. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct OutputTail {
    shared: Arc<Mutex<TailLines>>,
}

#[derive(Debug, Default)]
struct TailLines {
    lines: VecDeque<String>,
    out_of_memory: Option<String>,
}

impl OutputTail {
    fn push(&self, line: &str) {
        if line.trim().is_empty() {
            return;
        }

        let line = hush_log::printable(line, TAIL_LINE_CHARS);
        let mut tail = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if is_out_of_memory(&line) {
            tail.out_of_memory = Some(line.clone());
        }
        if tail.lines.len() == TAIL_LINES {
            tail.lines.pop_front();
        }
        tail.lines.push_back(line);
    }

    /// The last lines, oldest first.
    pub(super) fn lines(&self) -> Vec<String> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).lines.iter().cloned().collect()
    }

    /// The last line that says that the device has too little memory. It may be older than [`Self::lines`], because some
    /// apps explain themselves at length afterwards.
    pub(super) fn out_of_memory(&self) -> Option<String> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).out_of_memory.clone()
    }
}

/// Whether a line of an app says that the device has too little memory. The texts are those of PyTorch, of the CUDA and HIP
/// runtimes, of ggml (llama.cpp, Ollama, KoboldCpp), TensorRT and vLLM.
fn is_out_of_memory(line: &str) -> bool {
    const TEXTS: &[&str] = &[
        "cuda out of memory",
        "hip out of memory",
        "xpu out of memory",
        "torch.outofmemoryerror",
        "torch.cuda.outofmemoryerror",
        "cudaerrormemoryallocation",
        "cuda_error_out_of_memory",
        "hiperroroutofmemory",
        "cublas_status_alloc_failed",
        "erroroutofdevicememory",
        "cuda runtime (out of memory)",
        "no available memory for the cache blocks",
        "is less than desired gpu memory utilization",
    ];
    const DEVICES: &[&str] = &["cuda", "ggml", "hip", "gpu", "vram", "vulkan", "rocm"];

    let line = line.to_ascii_lowercase();
    // The Java machine's error is about the host's memory.
    let is_error = line.contains("outofmemoryerror") && !line.contains("java.lang");
    let is_device = line.contains("out of memory") && DEVICES.iter().any(|device| line.contains(device));
    is_error || is_device || TEXTS.iter().any(|text| line.contains(text))
}

/// Splits bytes into lines. What follows a carriage return replaces what stood before it, as on a terminal: of a progress
/// bar the last state remains.
#[derive(Debug, Default)]
struct LineSplitter {
    line: Vec<u8>,
    cut_bytes: usize,
    has_returned: bool,
}

impl LineSplitter {
    fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (text, end) = match part.split_last() {
                Some((end @ (b'\n' | b'\r'), text)) => (text, Some(*end)),
                _ => (part, None),
            };

            if !text.is_empty() {
                if self.has_returned {
                    self.clear();
                }
                let room = LONGEST_LINE_BYTES - self.line.len();
                let (kept, cut) = text.split_at(room.min(text.len()));
                self.line.extend_from_slice(kept);
                self.cut_bytes += cut.len();
            }
            match end {
                Some(b'\n') => self.emit_line(&mut emit),
                Some(_) => self.has_returned = true,
                None => {}
            }
        }
    }

    /// The last line may have no end.
    fn finish(&mut self, mut emit: impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.emit_line(&mut emit);
        }
    }

    fn emit_line(&mut self, emit: &mut impl FnMut(&str)) {
        let text = without_escapes(&String::from_utf8_lossy(&self.line));
        match self.cut_bytes {
            0 => emit(&text),
            cut => emit(&format!("{text} [{cut} more bytes]")),
        }
        self.clear();
    }

    fn clear(&mut self) {
        self.line.clear();
        self.cut_bytes = 0;
        self.has_returned = false;
    }
}

/// The text without the sequences that colour it on a terminal, and with spaces for tabs.
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' if letters.next_if_eq(&'[').is_some() => {
                // Parameters, then one letter that ends the sequence.
                while letters.next_if(|next| matches!(next, '\u{20}'..='\u{3f}')).is_some() {}
                letters.next_if(|next| matches!(next, '\u{40}'..='\u{7e}'));
            }
            '\t' => plain.push(' '),
            other => plain.push(other),
        }
    }
    plain
}

/// Logs the lines of `output` until it ends, and passes each to `on_line`.
pub(super) async fn log_output(
    app: Arc<str>,
    mut output: impl AsyncRead + Unpin,
    tail: OutputTail,
    on_line: impl Fn(&str),
) {
    let handle = |line: &str| {
        let shown = hush_log::printable(line, LONGEST_SHOWN_CHARS);
        tracing::info!(target: "hush_sidecar::app_output", app = &*app, "{shown}");
        tail.push(line);
        on_line(line);
    };

    let mut splitter = LineSplitter::default();
    let mut buffer = vec![0; READ_BYTES];
    // A pipe that cannot be read ends like one that has ended.
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        splitter.push(&buffer[..count], handle);
    }
    splitter.finish(handle);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(parts: &[&[u8]]) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for part in parts {
            splitter.push(part, |line| lines.push(line.to_owned()));
        }
        splitter.finish(|line| lines.push(line.to_owned()));
        lines
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        assert_eq!(split(&[b"one\ntw", b"o\n\nthr", b"ee"]), ["one", "two", "", "three"]);
        assert_eq!(split(&[b"one\r", b"\ntwo\r\n"]), ["one", "two"]);
    }

    #[test]
    fn a_progress_bar_leaves_its_last_state() {
        assert_eq!(split(&[b"\r  0%\r 50", b"%\r100%\ndone\n"]), ["100%", "done"]);
        assert_eq!(split(&[b"10%\r20%\r"]), ["20%"]);
    }

    #[test]
    fn ten_megabytes_of_one_line_are_cut_and_counted() {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for _ in 0..160 {
            splitter.push(&[b'x'; 64 << 10], |line| lines.push(line.to_owned()));
            assert!(splitter.line.capacity() <= 2 * LONGEST_LINE_BYTES);
        }
        splitter.push(b"\nnext\n", |line| lines.push(line.to_owned()));

        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], format!("{} [{} more bytes]", "x".repeat(4096), (10 << 20) - 4096));
        assert_eq!(lines[1], "next");
    }

    #[test]
    fn bytes_that_are_no_text_and_colours_become_readable() {
        assert_eq!(split(&[b"a\xff\xfeb\n"]), ["a\u{fffd}\u{fffd}b"]);
        assert_eq!(split(&[b"\x1b[32mINFO\x1b[0m:\tready\x1b[2K\n"]), ["INFO: ready"]);
    }

    #[test]
    fn the_tail_has_the_last_lines_and_remembers_a_full_device() {
        let tail = OutputTail::default();
        tail.push("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB");
        for number in 0..30 {
            tail.push(&format!("line {number}"));
            tail.push("  ");
        }

        let lines = tail.lines();
        assert_eq!(lines.len(), 20);
        assert_eq!((lines[0].as_str(), lines[19].as_str()), ("line 10", "line 29"));
        assert!(tail.out_of_memory().unwrap().contains("Tried to allocate"));
    }

    #[test]
    fn texts_of_real_apps_about_device_memory_are_recognised() {
        for line in [
            "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 4.00 GiB total capacity)",
            "torch.OutOfMemoryError: Allocation on device 0 would exceed allowed memory.",
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 5036.00 MiB on device 0: cudaMalloc failed: out of memory",
            "CUDA error: out of memory",
            "what(): cudaErrorMemoryAllocation",
            "[TRT] Cuda Runtime (out of memory)",
            "ValueError: Free memory on device cuda:0 (3.1/23.6 GiB) on startup is less than desired GPU memory utilization",
        ] {
            assert!(is_out_of_memory(line), "{line}");
        }
        for line in [
            "java.lang.OutOfMemoryError: Java heap space",
            "out of memory: Killed process 12",
            "CUDA error: invalid device ordinal",
            "MemoryError",
        ] {
            assert!(!is_out_of_memory(line), "{line}");
        }
    }
}
