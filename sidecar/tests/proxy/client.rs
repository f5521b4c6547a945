//! A client that is nothing but a TCP stream.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::app::{find, header};

/// Far longer than anything takes that works.
pub const LONG: Duration = Duration::from_secs(20);

/// An answer as the client got it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    /// Without the chunks.
    pub body: Vec<u8>,
    /// The body has a clean end.
    pub is_whole: bool,
    /// The connection was reset.
    pub is_reset: bool,
    pub trailers: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

pub struct Client {
    pub stream: TcpStream,
    pub buffer: Vec<u8>,
    is_reset: bool,
}

/// A request with a JSON body.
pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: gpu.example\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: gpu.example\r\n\r\n")
}

/// Sends one request on a connection of its own and reads the answer.
pub async fn exchange(address: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    let mut client = Client::connect(address).await;
    client.send(request).await;
    client.answer().await
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new(), is_reset: false }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(LONG, self.stream.write_all(bytes.as_ref())).await.unwrap().unwrap();
    }

    async fn fill(&mut self) -> bool {
        match timeout(LONG, self.stream.read_buf(&mut self.buffer)).await.expect("nothing came") {
            Ok(read) => read > 0,
            Err(_) => {
                self.is_reset = true;
                false
            }
        }
    }

    /// Reads the head of an answer.
    pub async fn head(&mut self) -> String {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                return String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
            }
            assert!(self.fill().await, "the connection ended: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Reads until the text has come, and returns all that came so far.
    pub async fn until(&mut self, text: &str) -> String {
        while find(&self.buffer, text.as_bytes()).is_none() {
            assert!(self.fill().await, "the connection ended: {:?}", String::from_utf8_lossy(&self.buffer));
        }
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    pub async fn answer(&mut self) -> Answer {
        self.answer_to("POST").await
    }

    /// Reads a whole answer, or as much of it as comes.
    pub async fn answer_to(&mut self, method: &str) -> Answer {
        let head = self.head().await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();

        let (mut body, mut trailers) = (Vec::new(), String::new());
        let is_whole = if method == "HEAD" || matches!(status, 204 | 304) {
            true
        } else if let Some(length) = header(&head, "content-length") {
            let length = length.parse().unwrap();
            while self.buffer.len() < length && self.fill().await {}
            let is_whole = self.buffer.len() >= length;
            body.extend(self.buffer.drain(..length.min(self.buffer.len())));
            is_whole
        } else if header(&head, "transfer-encoding").is_some() {
            self.chunks(&mut body, &mut trailers).await
        } else {
            while self.fill().await {}
            body.append(&mut self.buffer);
            !self.is_reset
        };
        Answer { status, head, body, is_whole, is_reset: self.is_reset, trailers }
    }

    async fn chunks(&mut self, body: &mut Vec<u8>, trailers: &mut String) -> bool {
        loop {
            let Some(size) = self.chunk_line().await else { return false };
            let size = usize::from_str_radix(&size, 16).unwrap();
            if size == 0 {
                loop {
                    let Some(line) = self.chunk_line().await else { return false };
                    if line.is_empty() {
                        return true;
                    }
                    trailers.push_str(&line);
                }
            }

            while self.buffer.len() < size + 2 {
                if !self.fill().await {
                    body.append(&mut self.buffer);
                    return false;
                }
            }
            body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
        }
    }

    async fn chunk_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                let line = self.buffer.drain(..end + 2).take(end).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// Whether the connection is closed, without another byte.
    pub async fn is_closed(&mut self) -> bool {
        !self.fill().await && self.buffer.is_empty()
    }
}
