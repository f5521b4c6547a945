//! Finds the bounds of websocket frames (RFC 6455, 5.2) in a stream of bytes. Nothing is decoded.

use std::ops::Range;

const OPCODE_CLOSE: u8 = 0x8;

/// Close codes of RFC 6455, 7.4, and of its registry.
pub mod close_code {
    pub const GOING_AWAY: u16 = 1001;
    pub const SERVICE_RESTART: u16 = 1012;
    pub const TRY_AGAIN_LATER: u16 = 1013;
}

/// A frame from a server that closes a socket. A client's would have to be masked.
pub const fn close_frame(code: u16) -> [u8; 4] {
    let [high, low] = code.to_be_bytes();
    [0x80 | OPCODE_CLOSE, 2, high, low]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A part of a message.
    Data,
    /// Ping or pong.
    Control,
    Close,
}

impl FrameKind {
    const fn of(first_byte: u8) -> Self {
        match first_byte & 0x0f {
            OPCODE_CLOSE => Self::Close,
            0x9..=0xf => Self::Control,
            _ => Self::Data,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FramePart {
    /// Between two frames.
    Boundary,
    /// The second byte is next.
    Length {
        kind: FrameKind,
    },
    /// So many bytes of the extended length and of the mask are next.
    Header {
        kind: FrameKind,
        length_bytes: u8,
        mask_bytes: u8,
        length: u64,
    },
    Payload {
        kind: FrameKind,
        left: u64,
    },
}

/// The scanner of one direction.
#[derive(Clone, Debug)]
pub struct FrameScanner {
    part: FramePart,
    has_close: bool,
}

impl Default for FrameScanner {
    fn default() -> Self {
        Self { part: FramePart::Boundary, has_close: false }
    }
}

impl FrameScanner {
    pub fn is_at_boundary(&self) -> bool {
        self.part == FramePart::Boundary
    }

    /// Whether a part of a message has begun and not ended.
    pub const fn is_within_data(&self) -> bool {
        matches!(self.kind(), Some(FrameKind::Data))
    }

    pub const fn is_within_control(&self) -> bool {
        matches!(self.kind(), Some(FrameKind::Control | FrameKind::Close))
    }

    const fn kind(&self) -> Option<FrameKind> {
        match self.part {
            FramePart::Boundary => None,
            FramePart::Length { kind } | FramePart::Header { kind, .. } | FramePart::Payload { kind, .. } => Some(kind),
        }
    }

    /// Whether a closing frame was seen.
    pub const fn has_close(&self) -> bool {
        self.has_close
    }

    /// Splits a piece where frames of another kind begin. Neighbours of the same kind may be one range.
    pub fn split(&mut self, piece: &[u8]) -> Vec<(Range<usize>, FrameKind)> {
        let mut ranges: Vec<(Range<usize>, FrameKind)> = Vec::new();

        let mut at = 0;
        while at < piece.len() {
            let kind = self.kind().unwrap_or_else(|| FrameKind::of(piece[at]));
            let used = self.advance(&piece[at..]);

            match ranges.last_mut() {
                Some((range, last)) if *last == kind => range.end += used,
                _ => ranges.push((at..at + used, kind)),
            }
            at += used;
        }
        ranges
    }

    /// Takes the next byte of a header, or as much as there is of a payload. Returns how many bytes that were.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        match self.part {
            FramePart::Boundary => {
                let kind = FrameKind::of(bytes[0]);
                self.has_close |= kind == FrameKind::Close;
                self.part = FramePart::Length { kind };
                1
            }
            FramePart::Length { kind } => {
                let mask_bytes = if bytes[0] & 0x80 == 0 { 0 } else { 4 };
                let (length_bytes, length) = match bytes[0] & 0x7f {
                    126 => (2, 0),
                    127 => (8, 0),
                    length => (0, u64::from(length)),
                };
                self.enter(FramePart::Header { kind, length_bytes, mask_bytes, length });
                1
            }
            FramePart::Header { kind, length_bytes: 0, mask_bytes, length } => {
                self.enter(FramePart::Header { kind, length_bytes: 0, mask_bytes: mask_bytes - 1, length });
                1
            }
            FramePart::Header { kind, length_bytes, mask_bytes, length } => {
                let length = length << 8 | u64::from(bytes[0]);
                self.enter(FramePart::Header { kind, length_bytes: length_bytes - 1, mask_bytes, length });
                1
            }
            FramePart::Payload { kind, left } => {
                let used = left.min(bytes.len() as u64);
                self.enter(FramePart::Payload { kind, left: left - used });
                used as usize
            }
        }
    }

    /// Enters a part, or the one behind it where nothing of it is left.
    fn enter(&mut self, part: FramePart) {
        self.part = match part {
            FramePart::Header { length_bytes: 0, mask_bytes: 0, length: 0, .. }
            | FramePart::Payload { left: 0, .. } => FramePart::Boundary,
            FramePart::Header { kind, length_bytes: 0, mask_bytes: 0, length } => {
                FramePart::Payload { kind, left: length }
            }
            part => part,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x80 | opcode];
        match payload.len() {
            len @ 0..126 => bytes.push(mask | len as u8),
            len @ 126..65536 => {
                bytes.push(mask | 126);
                bytes.extend((len as u16).to_be_bytes());
            }
            len => {
                bytes.push(mask | 127);
                bytes.extend((len as u64).to_be_bytes());
            }
        }
        if masked {
            bytes.extend([1, 2, 3, 4]);
        }
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn kinds_of_frames() {
        let mut scanner = FrameScanner::default();
        let ping = frame(0x9, true, b"");
        let text = frame(0x1, true, b"hello");

        let both = [ping.clone(), text.clone()].concat();
        let expected = vec![(0..ping.len(), FrameKind::Control), (ping.len()..both.len(), FrameKind::Data)];
        assert_eq!(scanner.split(&both), expected);
        assert!(scanner.is_at_boundary() && !scanner.has_close());

        scanner.split(&text[..3]);
        assert!(scanner.is_within_data());
        scanner.split(&text[3..]);
        assert_eq!(scanner.split(&close_frame(close_code::SERVICE_RESTART)), vec![(0..4, FrameKind::Close)]);
        assert!(scanner.is_at_boundary() && scanner.has_close());
    }

    proptest! {
        /// Pieces of any size find the same frames.
        #[test]
        fn pieces_do_not_matter(
            frames in prop::collection::vec((prop::sample::select(vec![0u8, 1, 2, 8, 9, 10]), any::<bool>(), prop::sample::select(vec![0usize, 1, 125, 126, 300, 70_000])), 1..5),
            piece_bytes in 1usize..2000,
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (opcode, masked, len) in &frames {
                let frame = frame(*opcode, *masked, &vec![7; *len]);
                expected.extend(vec![FrameKind::of(*opcode); frame.len()]);
                bytes.extend(frame);
            }

            let mut scanner = FrameScanner::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(piece_bytes) {
                for (range, kind) in scanner.split(piece) {
                    found.extend(vec![kind; range.len()]);
                }
            }
            prop_assert_eq!(found, expected);
            prop_assert!(scanner.is_at_boundary());
        }
    }
}
