//! A hub on the loopback: two listeners, the hub itself and the store that it redirects large files to.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Files from this size on are redirected to the store.
const LARGE: u64 = 1 << 20;

#[derive(Clone, Copy, Default)]
pub struct HubOptions {
    pub token: Option<&'static str>,
    /// The only repository; [`super::REPO`] unless it is set.
    pub repo: Option<&'static str>,
    /// As a plain mirror: names only, no sizes and no digests.
    pub bare_listing: bool,
    pub no_ranges: bool,
    /// What the listing says of the length of every file.
    pub listed_size: Option<u64>,
    /// Where large files are, in the place of the store.
    pub store: Option<&'static str>,
}

#[derive(Clone, Copy)]
pub enum HubFault {
    /// Sends so many bytes of the body, then closes.
    CutAfter(u64),
    /// Sends so many bytes, then nothing more.
    HangAfter(u64),
    Status(u16),
    /// One wrong byte in the body.
    Flip,
    /// So many bytes behind the content, in a body of unknown length.
    More(u64),
    /// The last bytes are missing, from the stated length too.
    Less(u64),
}

#[derive(Clone, Debug)]
pub struct HubRequest {
    pub store: bool,
    pub path: String,
    headers: HashMap<String, String>,
}

impl HubRequest {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn range_start(&self) -> Option<u64> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Default)]
struct HubFaults {
    once: HashMap<String, Vec<HubFault>>,
    forever: HashMap<String, HubFault>,
}

struct HubState {
    folder: PathBuf,
    options: HubOptions,
    hub: SocketAddr,
    store: SocketAddr,
    log: Mutex<Vec<HubRequest>>,
    faults: Mutex<HubFaults>,
    stop: AtomicBool,
    /// Bytes that went out behind the content of a file.
    surplus: AtomicU64,
}

pub struct Hub(Arc<HubState>);

impl Hub {
    pub fn start(folder: &Path, options: HubOptions) -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, store) = (bind(), bind());
        let shared = Arc::new(HubState {
            folder: folder.to_owned(),
            options,
            hub: hub.local_addr().unwrap(),
            store: store.local_addr().unwrap(),
            log: Mutex::default(),
            faults: Mutex::default(),
            stop: AtomicBool::new(false),
            surplus: AtomicU64::new(0),
        });
        for (listener, is_store) in [(hub, false), (store, true)] {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    // A client that leaves in the middle is part of the tests.
                    std::thread::spawn(move || drop(serve(&shared, is_store, stream.unwrap())));
                }
            });
        }
        Self(shared)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.0.hub)
    }

    pub fn surplus(&self) -> u64 {
        self.0.surplus.load(Ordering::SeqCst)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.hub
    }

    pub fn requests(&self) -> Vec<HubRequest> {
        self.0.log.lock().unwrap().clone()
    }

    /// For one answer about the file, in the order they are given.
    pub fn fault(&self, file: &str, fault: HubFault) {
        self.0.faults.lock().unwrap().once.entry(file.to_owned()).or_default().push(fault);
    }

    /// For every answer after those.
    pub fn fault_forever(&self, file: &str, fault: HubFault) {
        self.0.faults.lock().unwrap().forever.insert(file.to_owned(), fault);
    }

    pub fn clear_faults(&self) {
        *self.0.faults.lock().unwrap() = HubFaults::default();
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
        for address in [self.0.hub, self.0.store] {
            let _ = TcpStream::connect(address);
        }
    }
}

fn serve(shared: &HubState, store: bool, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(()) };
    let target = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let path = target.split('?').next().unwrap().to_owned();
    let request = HubRequest { store, path, headers };
    shared.log.lock().unwrap().push(request.clone());

    if !store && let Some(token) = shared.options.token {
        let expected = format!("Bearer {token}");
        let (status, code) = match request.header("authorization") {
            None => (401, "RepoNotFound"),
            Some(given) if given != expected => (403, "GatedRepo"),
            Some(_) => (200, ""),
        };
        if status != 200 {
            return plain(&mut stream, status, &[("X-Error-Code", code)], b"no");
        }
    }
    if let Some(rest) = request.path.strip_prefix("/api/models/") {
        return serve_listing(shared, &mut stream, rest);
    }

    let name = request.path.rsplit('/').next().unwrap().to_owned();
    let Ok(content) = fs::read(shared.folder.join(&name)) else {
        return plain(&mut stream, 404, &[("X-Error-Code", "EntryNotFound")], b"no");
    };
    if !store && content.len() as u64 >= LARGE {
        let location = match shared.options.store {
            Some(store) => store.to_owned(),
            None => format!("http://{}/blobs/{name}?signature=abc", shared.store),
        };
        let (tag, size) = (format!("\"{}\"", sha256(&content)), content.len().to_string());
        let headers =
            [("Location", &*location), ("X-Linked-Etag", &*tag), ("X-Linked-Size", &*size), ("X-Repo-Commit", COMMIT)];
        return plain(&mut stream, 302, &headers, b"");
    }
    let fault = {
        let mut faults = shared.faults.lock().unwrap();
        let once = faults.once.get_mut(&name).filter(|list| !list.is_empty()).map(|list| list.remove(0));
        once.or_else(|| faults.forever.get(&name).copied())
    };
    if let Some(HubFault::Status(status)) = fault {
        return plain(&mut stream, status, &[], b"no");
    }
    // The store's own tag is that of its upload, and means nothing.
    let tag =
        if store { "\"d41d8cd98f00b204e9800998ecf8427e-3\"".to_owned() } else { format!("\"{}\"", git(&content)) };
    body(&mut stream, shared, &request, content, &tag, fault)
}

fn serve_listing(shared: &HubState, stream: &mut TcpStream, repo_and_revision: &str) -> std::io::Result<()> {
    let repo = shared.options.repo.unwrap_or(super::REPO);

    match repo_and_revision.split_once("/revision/") {
        Some((found, "main" | COMMIT)) if found == repo => plain(stream, 200, &[], listing(shared).as_bytes()),
        Some((found, _)) if found == repo => plain(stream, 404, &[("X-Error-Code", "RevisionNotFound")], b"no"),
        _ => plain(stream, 404, &[("X-Error-Code", "RepoNotFound")], b"no"),
    }
}

fn body(
    stream: &mut TcpStream,
    shared: &HubState,
    request: &HubRequest,
    mut content: Vec<u8>,
    tag: &str,
    fault: Option<HubFault>,
) -> std::io::Result<()> {
    if matches!(fault, Some(HubFault::Flip)) {
        let last = content.len() - 1;
        content[last] ^= 1;
    }
    if let Some(HubFault::Less(bytes)) = fault {
        content.truncate(content.len() - bytes as usize);
    }
    let total = content.len();
    let start = request.range_start().filter(|_| !shared.options.no_ranges).map(|start| start as usize);
    if start.is_some_and(|start| start >= total) {
        return plain(stream, 416, &[("Content-Range", &format!("bytes */{total}"))], b"");
    }
    let rest = &content[start.unwrap_or(0)..];
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", if start.is_some() { 206 } else { 200 });
    if let Some(start) = start {
        let _ = write!(head, "Content-Range: bytes {start}-{}/{total}\r\n", total - 1);
    }
    if let Some(HubFault::More(bytes)) = fault {
        let _ = write!(head, "ETag: {tag}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(rest)?;
        // The client may leave at any time.
        let piece = vec![0; 1 << 20];
        for _ in 0..bytes / piece.len() as u64 {
            stream.write_all(&piece)?;
            shared.surplus.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        return Ok(());
    }
    let _ = write!(head, "ETag: {tag}\r\nContent-Length: {}\r\n\r\n", rest.len());
    stream.write_all(head.as_bytes())?;
    match fault {
        Some(HubFault::CutAfter(bytes)) => stream.write_all(&rest[..bytes as usize]),
        Some(HubFault::HangAfter(bytes)) => {
            stream.write_all(&rest[..bytes as usize])?;
            stream.flush()?;
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        }
        _ => stream.write_all(rest),
    }
}

fn plain(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)
}

fn listing(shared: &HubState) -> String {
    let mut siblings = Vec::new();
    for entry in fs::read_dir(&shared.folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if shared.options.bare_listing {
            siblings.push(serde_json::json!({ "rfilename": name }));
            continue;
        }
        let content = fs::read(&path).unwrap();
        if let Some(size) = shared.options.listed_size {
            siblings.push(serde_json::json!({ "rfilename": name, "size": size }));
            continue;
        }
        siblings.push(if content.len() as u64 >= LARGE {
            let lfs = serde_json::json!({ "sha256": sha256(&content), "size": content.len(), "pointerSize": 134 });
            serde_json::json!({ "rfilename": name, "size": content.len(), "blobId": "0".repeat(40), "lfs": lfs })
        } else {
            serde_json::json!({ "rfilename": name, "size": content.len(), "blobId": git(&content) })
        });
    }
    serde_json::json!({ "id": shared.options.repo.unwrap_or(super::REPO), "sha": COMMIT, "siblings": siblings })
        .to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn git(content: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", content.len()));
    hasher.update(content);
    hex(&hasher.finalize())
}
