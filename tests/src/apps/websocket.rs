//! The client's side of a websocket (RFC 6455): text frames of less than 126 bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::http;

const MASK: [u8; 4] = [7, 11, 13, 17];

pub struct ClientSocket(TcpStream);

impl ClientSocket {
    /// Makes the handshake; an error if the answer is not 101.
    pub fn open(address: SocketAddr, path: &str) -> Result<Self> {
        let mut stream = http::connect(address)?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://{address}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;

        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 101"), "no websocket at {path}: {head}");
        // The key of RFC 6455, section 1.3, and its answer.
        ensure!(head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "the handshake came from another server: {head}");
        Ok(Self(stream))
    }

    pub fn send(&mut self, text: &str) -> Result<()> {
        ensure!(text.len() < 126, "a frame of a test has less than 126 bytes");
        let mut frame = vec![0x81, 0x80 | text.len() as u8];
        frame.extend_from_slice(&MASK);
        frame.extend(text.bytes().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        Ok(self.0.write_all(&frame)?)
    }

    /// The next text frame; `None`: the server has closed, with this code where it gave one.
    pub fn receive(&mut self, deadline: Duration) -> Result<Option<String>> {
        self.0.set_read_timeout(Some(deadline))?;
        let mut head = [0; 2];
        match self.0.read(&mut head[..1])? {
            0 => return Ok(None),
            _ => self.0.read_exact(&mut head[1..])?,
        }
        let mut length = usize::from(head[1] & 0x7f);
        if length == 126 {
            let mut long = [0; 2];
            self.0.read_exact(&mut long)?;
            length = usize::from(u16::from_be_bytes(long));
        }
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload)?;
        Ok((head[0] & 0x0f == 1).then(|| String::from_utf8_lossy(&payload).into_owned()))
    }
}
