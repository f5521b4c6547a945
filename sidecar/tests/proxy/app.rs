//! An app that is nothing but a TCP listener: each test says byte for byte what it does.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as the app got it.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    /// With the empty line.
    pub head: String,
    pub body: Vec<u8>,
}

impl SeenRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }
}

pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

pub struct RawUpstreamApp {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<SeenRequest>>>,
}

impl RawUpstreamApp {
    /// Calls `serve` for each connection.
    pub async fn start<S, F>(serve: S) -> Self
    where
        S: Fn(AppConnection) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<SeenRequest>>> = Arc::default();

        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (buffer, seen) = (Vec::new(), Arc::clone(&log));
                tokio::spawn(serve(AppConnection { stream, buffer, seen, number }));
            }
        });
        Self { address, seen }
    }

    /// Answers every request with these bytes, on connections that stay open.
    pub async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |mut connection| {
            let answer = answer.clone();
            async move {
                while connection.request().await.is_some() {
                    connection.send(&answer).await;
                }
            }
        })
        .await
    }

    /// The requests that came, in their order.
    pub fn seen(&self) -> Vec<SeenRequest> {
        self.seen.lock().unwrap().clone()
    }

    pub fn only(&self) -> SeenRequest {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }
}

/// The app's end of a connection.
pub struct AppConnection {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    seen: Arc<Mutex<Vec<SeenRequest>>>,
    /// Connections before it.
    pub number: usize,
}

impl AppConnection {
    /// Reads the next request and notes it; `None`: the connection ended before one, or within it.
    pub async fn request(&mut self) -> Option<SeenRequest> {
        let head = self.head().await?;
        let body = self.body(&head).await?;

        let request = SeenRequest { head, body };
        self.seen.lock().unwrap().push(request.clone());
        Some(request)
    }

    pub async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap());
            }
            self.fill().await?;
        }
    }

    pub async fn body(&mut self, head: &str) -> Option<Vec<u8>> {
        if let Some(length) = header(head, "content-length") {
            return self.take(length.parse().unwrap()).await;
        }
        if header(head, "transfer-encoding").is_none() {
            return Some(Vec::new());
        }

        let mut body = Vec::new();
        loop {
            while find(&self.buffer, b"\r\n").is_none() {
                self.fill().await?;
            }
            let end = find(&self.buffer, b"\r\n").unwrap();
            let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let size = usize::from_str_radix(std::str::from_utf8(&line[..end]).unwrap(), 16).unwrap();

            let chunk = self.take(size + 2).await?;
            if size == 0 {
                return Some(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    pub async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Some(self.buffer.drain(..length).collect())
    }

    async fn fill(&mut self) -> Option<()> {
        let read = self.stream.read_buf(&mut self.buffer).await.ok()?;
        (read > 0).then_some(())
    }

    /// Sends what it can; a closed connection is the test's affair.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Returns when the other side has closed the connection.
    pub async fn closed(&mut self) {
        while self.fill().await.is_some() {}
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
