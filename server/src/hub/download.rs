//! Downloads the files of a revision into a folder. A file that is present is not fetched again; a broken download
//! continues where it stopped; a file gets its name only when its digest is correct.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::client::{FileResponse, HubClient, transport, without_query};
use super::config::{HubConfig, RetryPolicy};
use super::digest::{ContentDigest, ContentHasher};
use super::listing::{CTRANSLATE2_WEIGHTS, INDEX, RemoteFile, RepositoryListing};
use super::{HubError, Repo};

/// Progress of a download, for a progress bar or a log.
#[derive(Debug)]
pub enum DownloadEvent<'a> {
    /// Another process downloads the same model, and this one waits for it.
    Waiting,
    /// The files are known. There is one more such event when an index names its shards; the totals add up.
    Planned { files: usize, total_bytes: u64 },
    /// Bytes that were present already or have just arrived.
    Bytes(u64),
    /// A file is complete and verified.
    Done { file: &'a str },
    /// The download was interrupted and is tried again.
    Retry { cause: &'a HubError, pause: Duration },
    /// A file starts again from its beginning: the reported bytes decrease by this number.
    Restart { bytes: u64 },
}

/// The folder of a downloaded checkpoint. No other process changes the folder while this value exists.
#[derive(Debug)]
pub struct DownloadedCheckpoint {
    pub dir: PathBuf,
    pub repo: String,
    /// The commit that the revision refers to.
    pub commit: String,
    _lock: File,
}

/// Downloads the files of a checkpoint into `<into>/<repository>/<commit>`, and reports the progress to `on_event`.
pub fn download(
    config: &HubConfig,
    repo: &Repo,
    revision: &str,
    into: &Path,
    on_event: &mut dyn FnMut(DownloadEvent<'_>),
) -> Result<DownloadedCheckpoint, HubError> {
    if config.offline {
        return Err(HubError::Offline { repo: repo.to_string() });
    }

    let home = into.join(repo.as_str().replace('/', "--"));
    fs::create_dir_all(&home).map_err(HubError::disk(&home))?;
    // The lock is held to the end, so that two processes do not download the same model.
    let lock = lock(&home, on_event)?;

    let client = HubClient::new(config);
    let retry = &config.retry;
    let json = Retries::new(retry).run(on_event, |_, _| client.listing(repo, revision))?;
    let listing = RepositoryListing::parse(repo, &json)?;
    let dir = home.join(&listing.sha);
    fs::create_dir_all(&dir).map_err(HubError::disk(&dir))?;

    let job = DownloadJob { client: &client, retry, repo, commit: &listing.sha, dir: &dir };
    let files = listing.checkpoint_files(repo)?;
    job.fetch_all(&files, on_event)?;
    if files.iter().any(|file| file.name == INDEX) {
        let path = dir.join(INDEX);
        let index = fs::read(&path).map_err(HubError::disk(&path))?;
        job.fetch_all(&listing.shards(repo, &index)?, on_event)?;
    }

    Ok(DownloadedCheckpoint { dir: dir.clone(), repo: repo.to_string(), commit: listing.sha.clone(), _lock: lock })
}

fn lock(home: &Path, on_event: &mut dyn FnMut(DownloadEvent<'_>)) -> Result<File, HubError> {
    let path = home.join(".lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(HubError::disk(&path))?;
    if let Err(error) = file.try_lock() {
        match error {
            fs::TryLockError::WouldBlock => on_event(DownloadEvent::Waiting),
            fs::TryLockError::Error(cause) => return Err(HubError::Disk { path, cause }),
        }

        file.lock().map_err(HubError::disk(&path))?;
    }
    Ok(file)
}

/// Retries with growing pauses, until no byte has arrived for too long.
struct Retries<'a> {
    retry: &'a RetryPolicy,
    last_byte: Instant,
    pause: Duration,
}

impl<'a> Retries<'a> {
    fn new(retry: &'a RetryPolicy) -> Self {
        Self { retry, last_byte: Instant::now(), pause: retry.pause }
    }

    fn note_progress(&mut self) {
        self.last_byte = Instant::now();
        self.pause = self.retry.pause;
    }

    fn run<T>(
        mut self,
        on_event: &mut dyn FnMut(DownloadEvent<'_>),
        mut attempt: impl FnMut(&mut Self, &mut dyn FnMut(DownloadEvent<'_>)) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        loop {
            let cause = match attempt(&mut self, on_event) {
                Ok(done) => return Ok(done),
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };

            let tried = self.last_byte.elapsed();
            if tried + self.pause > self.retry.give_up_after {
                return Err(HubError::GaveUp { tried, cause: Box::new(cause) });
            }

            on_event(DownloadEvent::Retry { cause: &cause, pause: self.pause });
            std::thread::sleep(self.pause);
            self.pause = (self.pause * 2).min(self.retry.longest_pause);
        }
    }
}

struct DownloadJob<'a> {
    client: &'a HubClient,
    retry: &'a RetryPolicy,
    repo: &'a Repo,
    commit: &'a str,
    dir: &'a Path,
}

impl DownloadJob<'_> {
    fn fetch_all(&self, files: &[RemoteFile], on_event: &mut dyn FnMut(DownloadEvent<'_>)) -> Result<(), HubError> {
        for file in files {
            self.check_listed(file)?;
        }

        let total_bytes = files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add);
        on_event(DownloadEvent::Planned { files: files.len(), total_bytes });

        self.check_room(files)?;
        for file in files {
            self.fetch(file, on_event)?;
            on_event(DownloadEvent::Done { file: &file.name });
        }
        Ok(())
    }

    /// Checks the listed length before the download is planned with it.
    fn check_listed(&self, file: &RemoteFile) -> Result<(), HubError> {
        let longest = longest_file_bytes(&file.name);
        match file.size.filter(|&size| size > longest) {
            None => Ok(()),
            Some(size) => {
                let problem = format!("`size` of {} is {size} bytes; {longest} are the most", file.name);
                Err(HubError::InvalidAnswer { what: format!("`{}`", self.repo), problem })
            }
        }
    }

    /// Checks the free room of the disk before the download starts.
    fn check_room(&self, files: &[RemoteFile]) -> Result<(), HubError> {
        let len_bytes = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let missing = files.iter().map(|file| {
            let have = len_bytes(&self.dir.join(&file.name)).max(len_bytes(&self.part(file)));
            file.size.unwrap_or(0).saturating_sub(have)
        });

        let needed = missing.fold(0, u64::saturating_add);
        // Where the file system does not tell its free room, a full disk is reported while writing.
        let Ok(stat) = rustix::fs::statvfs(self.dir) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed > free {
            return Err(HubError::DiskFull { dir: self.dir.to_owned(), needed, free });
        }
        Ok(())
    }

    fn part(&self, file: &RemoteFile) -> PathBuf {
        self.dir.join(format!("{}.part", file.name))
    }

    fn fetch(&self, file: &RemoteFile, on_event: &mut dyn FnMut(DownloadEvent<'_>)) -> Result<(), HubError> {
        let path = self.dir.join(&file.name);
        // The folder belongs to one commit and only verified files get their names, so a file that is present is
        // correct.
        if let Ok(metadata) = fs::metadata(&path) {
            if file.size.is_none_or(|size| size == metadata.len()) {
                on_event(DownloadEvent::Bytes(metadata.len()));
                return Ok(());
            }

            fs::remove_file(&path).map_err(HubError::disk(&path))?;
        }

        let part = self.part(file);
        let resumed = fs::metadata(&part).is_ok_and(|metadata| metadata.len() > 0);
        let mut reported = 0;
        match self.fetch_part(file, &part, on_event, &mut reported) {
            // The beginning is of an earlier run and may belong to another file, so the file is fetched again from its
            // start.
            Err(HubError::WrongDigest { .. } | HubError::WrongSize { .. } | HubError::TooLong { .. }) if resumed => {
                on_event(DownloadEvent::Restart { bytes: reported });
                self.fetch_part(file, &part, on_event, &mut 0)?;
            }
            done => done?,
        }

        fs::rename(&part, &path).map_err(HubError::disk(&path))
    }

    fn fetch_part(
        &self,
        file: &RemoteFile,
        part: &Path,
        on_event: &mut dyn FnMut(DownloadEvent<'_>),
        reported: &mut u64,
    ) -> Result<(), HubError> {
        let mut download = PartDownload::open(self, file, part)?;
        on_event(DownloadEvent::Bytes(download.have));
        *reported += download.have;
        if !download.is_complete() {
            let retries = Retries::new(self.retry);
            retries.run(on_event, |retries, on_event| download.attempt(retries, on_event, reported))?;
        }

        let (size, digest) = download.close()?;
        self.verify(file, part, size, digest.as_ref())
    }

    /// The error for a file that is too long. Removes the part, which a later run cannot use.
    fn too_long(&self, file: &RemoteFile, part: &Path, expected: u64) -> HubError {
        let (repo, name) = (self.repo.to_string(), file.name.clone());
        match fs::remove_file(part) {
            Ok(()) => HubError::TooLong { repo, file: name, expected },
            Err(cause) => HubError::disk(part)(cause),
        }
    }

    fn wrong_size(&self, file: &RemoteFile, part: &Path, expected: u64, found: u64) -> HubError {
        let (repo, name) = (self.repo.to_string(), file.name.clone());
        match fs::remove_file(part) {
            Ok(()) => HubError::WrongSize { repo, file: name, expected, found },
            Err(cause) => HubError::disk(part)(cause),
        }
    }

    fn verify(
        &self,
        file: &RemoteFile,
        part: &Path,
        size: Option<u64>,
        digest: Option<&ContentDigest>,
    ) -> Result<(), HubError> {
        let mut content = File::open(part).map_err(HubError::disk(part))?;
        let found = content.metadata().map_err(HubError::disk(part))?.len();
        let (repo, name) = (self.repo.to_string(), file.name.clone());
        if let Some(expected) = size.filter(|&size| size != found) {
            return Err(self.wrong_size(file, part, expected, found));
        }

        let Some(digest) = digest else {
            tracing::warn!(repo, file = name, "the hub gives no digest for this file; only its length was checked");
            return Ok(());
        };

        let mut hasher = digest.hasher(found);
        hash(&mut content, &mut hasher).map_err(HubError::disk(part))?;
        let hex = hasher.hex();
        if hex != digest.hex() {
            fs::remove_file(part).map_err(HubError::disk(part))?;
            let (algorithm, expected) = (digest.algorithm(), digest.hex().to_owned());
            return Err(HubError::WrongDigest { repo, file: name, algorithm, expected, found: hex });
        }
        Ok(())
    }
}

/// The download of one file into its part.
struct PartDownload<'a> {
    job: &'a DownloadJob<'a>,
    file: &'a RemoteFile,
    part: &'a Path,
    out: File,
    size: Option<u64>,
    digest: Option<ContentDigest>,
    /// Bytes that the part has.
    have: u64,
    /// The most bytes that the part has had: bytes that are fetched again are no progress.
    most: u64,
}

impl<'a> PartDownload<'a> {
    fn open(job: &'a DownloadJob<'a>, file: &'a RemoteFile, part: &'a Path) -> Result<Self, HubError> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).write(true);

        let out = options.open(part).map_err(HubError::disk(part))?;
        let mut have = out.metadata().map_err(HubError::disk(part))?.len();
        if file.size.is_some_and(|size| have > size) {
            out.set_len(0).map_err(HubError::disk(part))?;
            have = 0;
        }

        let (size, digest) = (file.size, file.digest.clone());
        Ok(Self { job, file, part, out, size, digest, have, most: have })
    }

    fn is_complete(&self) -> bool {
        self.have > 0 && self.size == Some(self.have)
    }

    fn attempt(
        &mut self,
        retries: &mut Retries<'_>,
        on_event: &mut dyn FnMut(DownloadEvent<'_>),
        reported: &mut u64,
    ) -> Result<(), HubError> {
        let (job, part) = (self.job, self.part);
        let response = job.client.open(job.repo, job.commit, &self.file.name, self.have)?;
        self.digest = self.digest.take().or(response.digest.clone());
        self.size = self.size.or(response.size);
        if response.status == 416 {
            return Ok(());
        }

        if let (Some(expected), Some(found)) = (self.size, response.size)
            && expected != found
        {
            return Err(job.wrong_size(self.file, part, expected, found));
        }

        if response.offset != self.have {
            self.restart(&response, on_event, reported)?;
        }

        self.out
            .set_len(self.have)
            .and_then(|()| self.out.seek(SeekFrom::Start(self.have)))
            .map_err(HubError::disk(part))?;

        let limit = self.size.unwrap_or_else(|| longest_file_bytes(&self.file.name));
        let is_whole = copy(response, &mut self.out, part, &mut self.have, limit, |bytes, have| {
            if have > self.most {
                self.most = have;
                retries.note_progress();
            }

            *reported += bytes;
            on_event(DownloadEvent::Bytes(bytes));
        })?;

        match self.size {
            _ if !is_whole => Err(job.too_long(self.file, part, limit)),
            Some(expected) if self.have < expected => {
                let url = format!("{} of `{}`", self.file.name, job.repo);
                Err(HubError::Truncated { url, expected, found: self.have })
            }
            _ => Ok(()),
        }
    }

    /// The store ignores ranges, so the bytes of the part come again.
    fn restart(
        &mut self,
        response: &FileResponse,
        on_event: &mut dyn FnMut(DownloadEvent<'_>),
        reported: &mut u64,
    ) -> Result<(), HubError> {
        on_event(DownloadEvent::Restart { bytes: self.have });
        *reported -= self.have;
        self.have = 0;
        if response.offset != 0 {
            let problem = format!("a part from byte {} that was not asked for", response.offset);
            return Err(HubError::InvalidAnswer { what: response.url.clone(), problem });
        }

        Ok(())
    }

    /// Writes the part to the disk. Returns the length and the digest that the file must have.
    fn close(self) -> Result<(Option<u64>, Option<ContentDigest>), HubError> {
        self.out.sync_all().map_err(HubError::disk(self.part))?;
        Ok((self.size, self.digest))
    }
}

/// The most bytes that a file may have, whatever the listing says. The weights of the largest Whisper have six
/// gigabytes; other files are read into memory as a whole.
fn longest_file_bytes(name: &str) -> u64 {
    if name.ends_with(".safetensors") || name == CTRANSLATE2_WEIGHTS { 64 << 30 } else { 256 << 20 }
}

/// Writes the body to `out` and counts the bytes in `have`, also when the connection breaks. Returns `false` where the
/// file has more than `limit` bytes, of which no more are written. `on_bytes` gets the number of new bytes and of all
/// bytes.
fn copy(
    response: FileResponse,
    out: &mut File,
    part: &Path,
    have: &mut u64,
    limit: u64,
    mut on_bytes: impl FnMut(u64, u64),
) -> Result<bool, HubError> {
    let url = without_query(&response.url);
    let mut body = response.body.into_reader();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = match body.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(transport(&url, ureq::Error::from(error))),
        };

        if count as u64 > limit.saturating_sub(*have) {
            return Ok(false);
        }

        out.write_all(&buffer[..count]).map_err(HubError::disk(part))?;
        *have += count as u64;
        on_bytes(count as u64, *have);
    }
}

fn hash(content: &mut File, hasher: &mut ContentHasher) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(()),
            count => hasher.update(&buffer[..count]),
        }
    }
}
