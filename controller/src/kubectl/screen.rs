//! The terminal, for as long as it is drawn on: the other screen, no cursor, keys without a line.

use std::io::{IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const END_OF_LINE: &str = "\x1b[K\r\n";
const END_OF_SCREEN: &str = "\x1b[J";

pub struct Screen {
    /// As it was before; `None`: keys come from elsewhere.
    before: Option<Termios>,
    pub keys: mpsc::Receiver<u8>,
}

/// Whether there is a terminal to draw on.
pub fn is_there() -> bool {
    std::io::stdout().is_terminal()
}

impl Screen {
    pub fn open() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut modes = before.clone();
            // Ctrl-C stays a signal.
            modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            tcsetattr(std::io::stdin(), OptionalActions::Now, &modes)?;
        }
        let (pressed, keys) = mpsc::channel(8);
        if before.is_some() {
            // It waits for a key when the program ends, and ends with it.
            std::thread::spawn(move || {
                let mut key = [0];
                while matches!(std::io::stdin().read(&mut key), Ok(1)) && pressed.blocking_send(key[0]).is_ok() {}
            });
        }
        let screen = Self { before, keys };
        write(OPEN)?;
        Ok(screen)
    }

    /// As many of the lines as there is room for, and of each as much.
    pub fn draw(&self, lines: &[String]) -> std::io::Result<()> {
        let size = tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        let (rows, columns) = size.map_or((24, 80), |size| (usize::from(size.ws_row), usize::from(size.ws_col)));
        write(&frame(lines, rows, columns))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing is left to be done about a terminal that is gone.
        let _ = write(CLOSE);
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Written over the last one, so that nothing flickers.
fn frame(lines: &[String], rows: usize, columns: usize) -> String {
    let fits = lines.len() <= rows;
    let shown = if fits { lines.len() } else { rows.saturating_sub(1) };
    let mut frame = HOME.to_owned();
    for (place, line) in lines[..shown].iter().enumerate() {
        frame.extend(line.chars().take(columns));
        frame.push_str(if place + 1 == rows { "\x1b[K" } else { END_OF_LINE });
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
