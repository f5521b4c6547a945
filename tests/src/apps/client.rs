//! A client that sees an answer while it comes, and tells a complete one from one that broke off.

use std::io::{self, Cursor, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::tested_app::AppCall;
use crate::http::{self, Response};
use crate::wait::wait_for;

/// The bytes of a `POST`, with further header lines, each without its end.
pub fn post_bytes(address: SocketAddr, call: &AppCall, headers: &[&str]) -> Vec<u8> {
    let mut head = format!(
        "{} {} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
        call.method,
        call.path,
        call.content_type,
        call.body.len()
    );
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    [head.as_bytes(), &call.body].concat()
}

/// Sends a request and reads its whole answer.
pub fn post(address: SocketAddr, call: &AppCall, headers: &[&str]) -> Result<Response> {
    http::exchange(address, &post_bytes(address, call, headers))
}

/// An answer that is being read.
pub struct LiveAnswer {
    stream: TcpStream,
    received: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<io::Result<()>>,
}

impl LiveAnswer {
    /// Sends a request whose connection the server closes after the answer.
    pub fn open(address: SocketAddr, request: &[u8]) -> Result<Self> {
        let mut stream = http::connect(address)?;
        stream.write_all(request)?;
        let received = Arc::new(Mutex::new(Vec::new()));
        let mut source = stream.try_clone()?;
        let sink = Arc::clone(&received);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            loop {
                let count = source.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { stream, received, reader })
    }

    /// What has come so far, head and chunk sizes included.
    pub fn received(&self) -> Vec<u8> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn has_ended(&self) -> bool {
        self.reader.is_finished()
    }

    /// Waits until bytes of the body have come.
    pub fn wait_for_body(&self, deadline: Duration) -> Result<()> {
        wait_for("the first bytes of an answer", deadline, || {
            let received = self.received();
            let head = received.windows(4).position(|window| window == b"\r\n\r\n");
            Ok(head.filter(|head| received.len() > head + 4).map(|_| ()))
        })
    }

    /// Waits for the end of the answer; an error if it broke off.
    pub fn finish(self) -> Result<Response> {
        let ended = self.reader.join().map_err(|_| anyhow!("the reader panicked"))?;
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ended?;
        http::read_response(Cursor::new(received))
    }

    /// The client leaves in the middle.
    pub fn leave(self) -> Result<()> {
        self.stream.shutdown(Shutdown::Both)?;
        self.reader.join().map_err(|_| anyhow!("the reader panicked"))?.or(Ok(()))
    }
}
