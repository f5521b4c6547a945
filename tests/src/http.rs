//! HTTP/1.1 as bytes on a socket. Tests write the exact request a client of the wild sends and read the exact answer,
//! so nothing here normalises anything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hush_listener::free_port;

/// Long enough for a cold load and a transcription on a busy machine; a hang still ends the test.
pub const READ_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// In the order and with the case they came; names are compared without case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }
}

/// An address of the loopback on which nothing listens, for a program that cannot tell where it listens.
pub fn free_address() -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, free_port()?).into())
}

pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends raw bytes and reads one answer.
pub fn exchange(address: SocketAddr, request: &[u8]) -> Result<Response> {
    let mut stream = connect(address)?;
    stream.write_all(request)?;
    read_response(stream)
}

pub fn get(address: SocketAddr, path: &str) -> Result<Response> {
    exchange(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())
}

/// Uploads `content` as the file field `audio_file`, as curl does.
pub fn upload(address: SocketAddr, path_and_query: &str, file_name: &str, content: &[u8]) -> Result<Response> {
    exchange(address, &upload_bytes(address, path_and_query, file_name, content))
}

pub fn upload_bytes(address: SocketAddr, path_and_query: &str, file_name: &str, content: &[u8]) -> Vec<u8> {
    const BOUNDARY: &str = "------------------------d74496d66958873e";
    let mut body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"audio_file\"; filename=\"{file_name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(content);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    let mut request = format!(
        "POST {path_and_query} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\n\
         Connection: close\r\nContent-Length: {}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.append(&mut body);
    request
}

pub fn read_response(stream: impl Read) -> Result<Response> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).with_context(|| format!("no status line: {line:?}"))?.parse()?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end_matches("\r\n");
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut response = Response { status, headers, body: Vec::new() };
    if response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        response.body = read_chunks(&mut reader)?;
    } else if let Some(length) = response.header("content-length") {
        response.body = vec![0; length.parse()?];
        reader.read_exact(&mut response.body)?;
    } else {
        reader.read_to_end(&mut response.body)?;
    }
    Ok(response)
}

fn read_chunks(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        if reader.read_line(&mut size)? == 0 {
            bail!("the answer ended before its last chunk");
        }
        let length = usize::from_str_radix(size.trim(), 16).with_context(|| format!("chunk size {size:?}"))?;
        let start = body.len();
        body.resize(start + length + 2, 0);
        reader.read_exact(&mut body[start..])?;
        ensure!(body.ends_with(b"\r\n"), "a chunk without its end");
        body.truncate(start + length);
        if length == 0 {
            return Ok(body);
        }
    }
}

/// The value of one series in the text of `/metrics`, as it is printed there; `None` when absent.
pub fn series(text: &str, series: &str) -> Result<Option<f64>> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().with_context(|| format!("{series} {value}"))).transpose()
}
