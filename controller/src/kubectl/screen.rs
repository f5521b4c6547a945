//! The terminal while `top` draws on it: the alternate screen without a cursor, and keys that are read without waiting for
//! the end of a line.

use std::io::{IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const END_OF_LINE: &str = "\x1b[K\r\n";
const END_OF_SCREEN: &str = "\x1b[J";
/// (rows, columns) where the terminal does not report its size.
const DEFAULT_SIZE: (usize, usize) = (24, 80);

pub struct Screen {
    /// The modes to restore; `None`: standard input is no terminal, and there are no keys.
    modes_before: Option<Termios>,
    pub keys: mpsc::Receiver<u8>,
}

/// Whether standard output is a terminal to draw on.
pub fn is_available() -> bool {
    std::io::stdout().is_terminal()
}

impl Screen {
    pub fn open() -> std::io::Result<Self> {
        let modes_before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &modes_before {
            let mut modes = before.clone();
            // Ctrl-C stays a signal.
            modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            tcsetattr(std::io::stdin(), OptionalActions::Now, &modes)?;
        }

        let (pressed, keys) = mpsc::channel(8);
        if modes_before.is_some() {
            // The thread is blocked in a read when the program ends, and ends with it.
            std::thread::spawn(move || {
                let mut key = [0];
                while matches!(std::io::stdin().read(&mut key), Ok(1)) && pressed.blocking_send(key[0]).is_ok() {}
            });
        }

        let screen = Self { modes_before, keys };
        write(OPEN)?;
        Ok(screen)
    }

    /// Draws as many lines, and of each as many characters, as the terminal has room for.
    pub fn draw(&self, lines: &[String]) -> std::io::Result<()> {
        let size = tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        let (rows, columns) = size.map_or(DEFAULT_SIZE, |size| (usize::from(size.ws_row), usize::from(size.ws_col)));

        write(&frame(lines, rows, columns))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone cannot be restored, so that errors are of no use here.
        let _ = write(CLOSE);
        if let Some(modes) = &self.modes_before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, modes);
        }
    }
}

fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// A frame is drawn over the last one without clearing the screen first, so that nothing flickers.
fn frame(lines: &[String], rows: usize, columns: usize) -> String {
    let fits = lines.len() <= rows;
    let shown = if fits { lines.len() } else { rows.saturating_sub(1) };

    let mut frame = HOME.to_owned();
    for (row, line) in lines[..shown].iter().enumerate() {
        frame.extend(line.chars().take(columns));
        frame.push_str(if row + 1 == rows { "\x1b[K" } else { END_OF_LINE });
    }

    if !fits {
        let more: String = format!("... {} more lines", lines.len() - shown).chars().take(columns).collect();
        frame.push_str(&more);
    }
    frame.push_str(if shown == rows { "" } else { END_OF_SCREEN });
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: usize) -> Vec<String> {
        (0..count).map(|line| format!("line {line}")).collect()
    }

    #[test]
    fn a_frame_is_no_larger_than_the_terminal() {
        assert_eq!(frame(&lines(2), 24, 80), "\x1b[Hline 0\x1b[K\r\nline 1\x1b[K\r\n\x1b[J");
        assert_eq!(frame(&lines(3), 2, 4), "\x1b[Hline\x1b[K\r\n... \x1b[J");
        assert_eq!(frame(&lines(2), 2, 80), "\x1b[Hline 0\x1b[K\r\nline 1\x1b[K", "the last row does not scroll");

        for (count, rows) in [(0, 1), (1, 1), (2, 1), (9, 3)] {
            assert!(frame(&lines(count), rows, 10).matches('\n').count() < rows, "{count} in {rows}");
        }
    }
}
