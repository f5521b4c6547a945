//! The server's side of websockets (RFC 6455), as far as stand-ins need it: text frames of less than 64 KiB.

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::incoming::Incoming;
use super::openai::text_answer;
use super::work::Work;

const OPCODE_TEXT: u8 = 1;
const OPCODE_CLOSE: u8 = 8;

pub struct ServerSocket(TokioIo<Upgraded>);

/// Answers the handshake; the session begins when the connection has changed its protocol.
pub fn accept<S>(request: &mut Incoming, session: impl FnOnce(ServerSocket) -> S + Send + 'static) -> Response
where
    S: Future<Output = ()> + Send,
{
    let key = request.headers.get("sec-websocket-key").cloned();
    let (Some(upgrade), Some(key)) = (request.upgrade.take(), key) else {
        return text_answer(400, "this is no handshake of a websocket");
    };
    tokio::spawn(async move {
        // Fails only when the client leaves in the handshake.
        if let Ok(upgraded) = upgrade.await {
            session(ServerSocket(TokioIo::new(upgraded))).await;
        }
    });

    let mut response = text_answer(200, "");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept_key(key.as_bytes())) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

pub fn accept_key(key: &[u8]) -> String {
    let joined = [key, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &joined))
}

/// A text frame without a mask.
pub fn text_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x80 | OPCODE_TEXT];
    match u8::try_from(text.len()) {
        Ok(short) if short < 126 => frame.push(short),
        _ => {
            frame.push(126);
            frame.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    frame.extend_from_slice(text.as_bytes());
    frame
}

impl ServerSocket {
    pub async fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.0.write_all(&text_frame(text)).await?;
        self.0.flush().await
    }

    /// The next text; `None`: the client has left.
    pub async fn receive(&mut self) -> Option<String> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).await.ok()?;
        if head[0] & 0x0f == OPCODE_CLOSE {
            return None;
        }
        let length = match head[1] & 0x7f {
            126 => usize::from(self.0.read_u16().await.ok()?),
            short => usize::from(short),
        };
        let mut mask = [0; 4];
        if head[1] & 0x80 != 0 {
            self.0.read_exact(&mut mask).await.ok()?;
        }

        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        String::from_utf8(payload).ok()
    }
}

/// Sends back what comes, as work on a model, until the client leaves or the model is taken away.
pub async fn echo(mut socket: ServerSocket, mut work: Work) {
    let cut = work.cut.clone();
    loop {
        tokio::select! {
            text = socket.receive() => match text {
                Some(text) if socket.send(&text).await.is_ok() => {}
                _ => return work.finish(),
            },
            () = cut.cancelled() => return work.mark_cut(),
        }
    }
}
