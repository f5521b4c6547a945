//! Files of a revision into a folder. What is there already is not fetched again; a broken download goes on where it
//! stopped; a file has its name only once its digest is right.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::client::{Answer, Client, transport, without_query};
use super::config::{HubConfig, Patience};
use super::digest::{Digest, Hasher};
use super::listing::{INDEX, Listing, Wanted};
use super::{HubError, Repo};

/// What happens, for a progress bar or a log.
#[derive(Debug)]
pub enum Event<'a> {
    /// Another process downloads the same model; this one waits for it.
    Waiting,
    /// The files are known. Sums grow when an index names its shards.
    Planned { files: usize, total_bytes: u64 },
    /// Bytes that are here and need no fetching again, or that have just come.
    Bytes(u64),
    /// A file is complete and right.
    Done { file: &'a str },
    /// It broke, and is tried again.
    Retry { cause: &'a HubError, pause: Duration },
    /// A file starts from its beginning again: take so many bytes back.
    Restart { bytes: u64 },
}

/// A downloaded checkpoint folder. While it is held, no other process touches the folder.
#[derive(Debug)]
pub struct Checkpoint {
    pub dir: PathBuf,
    pub repo: String,
    /// The commit, whatever name the revision was asked for by.
    pub commit: String,
    _lock: File,
}

/// Fetches what a checkpoint needs into `<into>/<repository>/<commit>`.
pub fn download(
    config: &HubConfig,
    repo: &Repo,
    revision: &str,
    into: &Path,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Checkpoint, HubError> {
    if config.offline {
        return Err(HubError::Offline { repo: repo.to_string() });
    }
    let home = into.join(repo.as_str().replace('/', "--"));
    fs::create_dir_all(&home).map_err(HubError::disk(&home))?;
    // Held to the end: two processes that want one model do the work once.
    let lock = lock(&home, watch)?;

    let client = Client::new(config);
    let patience = &config.patience;
    let json = Tries::new(patience).run(watch, |_, _| client.listing(repo, revision))?;
    let listing = Listing::parse(repo, &json)?;
    let dir = home.join(&listing.sha);
    fs::create_dir_all(&dir).map_err(HubError::disk(&dir))?;

    let job = Job { client: &client, patience, repo, commit: &listing.sha, dir: &dir };
    let wanted = listing.wanted(repo)?;
    job.fetch_all(&wanted, watch)?;
    if wanted.iter().any(|file| file.name == INDEX) {
        let path = dir.join(INDEX);
        let index = fs::read(&path).map_err(HubError::disk(&path))?;
        job.fetch_all(&listing.shards(repo, &index)?, watch)?;
    }
    Ok(Checkpoint { dir: dir.clone(), repo: repo.to_string(), commit: listing.sha.clone(), _lock: lock })
}

fn lock(home: &Path, watch: &mut dyn FnMut(Event<'_>)) -> Result<File, HubError> {
    let path = home.join(".lock");
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(HubError::disk(&path))?;
    if let Err(error) = file.try_lock() {
        match error {
            fs::TryLockError::WouldBlock => watch(Event::Waiting),
            fs::TryLockError::Error(cause) => return Err(HubError::Disk { path, cause }),
        }
        file.lock().map_err(HubError::disk(&path))?;
    }
    Ok(file)
}

/// Tries with growing pauses, until nothing has come for too long.
struct Tries<'a> {
    patience: &'a Patience,
    last_byte: Instant,
    pause: Duration,
}

impl<'a> Tries<'a> {
    fn new(patience: &'a Patience) -> Self {
        Self { patience, last_byte: Instant::now(), pause: patience.pause }
    }

    fn progress(&mut self) {
        self.last_byte = Instant::now();
        self.pause = self.patience.pause;
    }

    fn run<T>(
        mut self,
        watch: &mut dyn FnMut(Event<'_>),
        mut attempt: impl FnMut(&mut Self, &mut dyn FnMut(Event<'_>)) -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        loop {
            let cause = match attempt(&mut self, watch) {
                Ok(done) => return Ok(done),
                Err(error) if error.passes() => error,
                Err(error) => return Err(error),
            };
            let tried = self.last_byte.elapsed();
            if tried + self.pause > self.patience.give_up_after {
                return Err(HubError::GaveUp { tried, cause: Box::new(cause) });
            }
            watch(Event::Retry { cause: &cause, pause: self.pause });
            std::thread::sleep(self.pause);
            self.pause = (self.pause * 2).min(self.patience.longest_pause);
        }
    }
}

struct Job<'a> {
    client: &'a Client,
    patience: &'a Patience,
    repo: &'a Repo,
    commit: &'a str,
    dir: &'a Path,
}

impl Job<'_> {
    fn fetch_all(&self, files: &[Wanted], watch: &mut dyn FnMut(Event<'_>)) -> Result<(), HubError> {
        for file in files {
            self.check_listed(file)?;
        }
        let total_bytes = files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add);
        watch(Event::Planned { files: files.len(), total_bytes });
        self.check_room(files)?;
        for file in files {
            self.fetch(file, watch)?;
            watch(Event::Done { file: &file.name });
        }
        Ok(())
    }

    /// What the listing says of a length, before anything is planned with it.
    fn check_listed(&self, file: &Wanted) -> Result<(), HubError> {
        let longest = longest(&file.name);
        match file.size.filter(|&size| size > longest) {
            None => Ok(()),
            Some(size) => {
                let problem = format!("`size` of {} is {size} bytes; {longest} are the most", file.name);
                Err(HubError::Nonsense { what: format!("`{}`", self.repo), problem })
            }
        }
    }

    /// Before gigabytes are fetched, not after.
    fn check_room(&self, files: &[Wanted]) -> Result<(), HubError> {
        let here = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let missing = files.iter().map(|file| {
            let have = here(&self.dir.join(&file.name)).max(here(&self.part(file)));
            file.size.unwrap_or(0).saturating_sub(have)
        });
        let needed = missing.fold(0, u64::saturating_add);
        // A file system that does not say how full it is will say so while writing.
        let Ok(stat) = rustix::fs::statvfs(self.dir) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if needed > free {
            return Err(HubError::DiskFull { dir: self.dir.to_owned(), needed, free });
        }
        Ok(())
    }

    fn part(&self, file: &Wanted) -> PathBuf {
        self.dir.join(format!("{}.part", file.name))
    }

    fn fetch(&self, file: &Wanted, watch: &mut dyn FnMut(Event<'_>)) -> Result<(), HubError> {
        let path = self.dir.join(&file.name);
        // The folder is that of a commit and a name is given only to what was checked, so a present file is right.
        if let Ok(metadata) = fs::metadata(&path) {
            if file.size.is_none_or(|size| size == metadata.len()) {
                watch(Event::Bytes(metadata.len()));
                return Ok(());
            }
            fs::remove_file(&path).map_err(HubError::disk(&path))?;
        }
        let part = self.part(file);
        let resumed = fs::metadata(&part).is_ok_and(|metadata| metadata.len() > 0);
        let mut reported = 0;
        match self.fetch_part(file, &part, watch, &mut reported) {
            // The beginning was of an earlier run, which may have been of something else: once more, from nothing.
            Err(HubError::WrongDigest { .. } | HubError::WrongSize { .. } | HubError::TooLong { .. }) if resumed => {
                watch(Event::Restart { bytes: reported });
                self.fetch_part(file, &part, watch, &mut 0)?;
            }
            done => done?,
        }
        fs::rename(&part, &path).map_err(HubError::disk(&path))
    }

    fn fetch_part(
        &self,
        file: &Wanted,
        part: &Path,
        watch: &mut dyn FnMut(Event<'_>),
        reported: &mut u64,
    ) -> Result<(), HubError> {
        let mut options = OpenOptions::new();
        let mut out =
            options.create(true).truncate(false).read(true).write(true).open(part).map_err(HubError::disk(part))?;
        let mut have = out.metadata().map_err(HubError::disk(part))?.len();
        if file.size.is_some_and(|size| have > size) {
            out.set_len(0).map_err(HubError::disk(part))?;
            have = 0;
        }
        watch(Event::Bytes(have));
        *reported += have;

        let url = format!("{} of `{}`", file.name, self.repo);
        let (mut size, mut digest) = (file.size, file.digest.clone());
        // The most that was here at any time: bytes that only come again are no progress.
        let mut best = have;
        if size != Some(have) || have == 0 {
            Tries::new(self.patience).run(watch, |tries, watch| {
                let answer = self.client.open(self.repo, self.commit, &file.name, have)?;
                digest = digest.take().or(answer.digest.clone());
                size = size.or(answer.size);
                if answer.status == 416 {
                    return Ok(());
                }
                if let (Some(expected), Some(found)) = (size, answer.size)
                    && expected != found
                {
                    return Err(self.wrong_size(file, part, expected, found));
                }
                if answer.offset != have {
                    // The store ignores ranges: what is here comes again.
                    watch(Event::Restart { bytes: have });
                    *reported -= have;
                    have = 0;
                    if answer.offset != 0 {
                        let problem = format!("a part from byte {} that was not asked for", answer.offset);
                        return Err(HubError::Nonsense { what: answer.url, problem });
                    }
                }
                out.set_len(have).and_then(|()| out.seek(SeekFrom::Start(have))).map_err(HubError::disk(part))?;
                let limit = size.unwrap_or_else(|| longest(&file.name));
                let result = copy(answer, &mut out, part, &mut have, limit, |bytes, have| {
                    if have > best {
                        best = have;
                        tries.progress();
                    }
                    *reported += bytes;
                    watch(Event::Bytes(bytes));
                });
                result.and_then(|is_whole| match size {
                    _ if !is_whole => Err(self.too_long(file, part, limit)),
                    Some(size) if have < size => {
                        Err(HubError::Truncated { url: url.clone(), expected: size, found: have })
                    }
                    _ => Ok(()),
                })
            })?;
        }
        out.sync_all().map_err(HubError::disk(part))?;
        drop(out);
        self.verify(file, part, size, digest.as_ref())
    }

    /// What came is no good for a later run.
    fn too_long(&self, file: &Wanted, part: &Path, expected: u64) -> HubError {
        let (repo, name) = (self.repo.to_string(), file.name.clone());
        match fs::remove_file(part) {
            Ok(()) => HubError::TooLong { repo, file: name, expected },
            Err(cause) => HubError::disk(part)(cause),
        }
    }

    fn wrong_size(&self, file: &Wanted, part: &Path, expected: u64, found: u64) -> HubError {
        let (repo, name) = (self.repo.to_string(), file.name.clone());
        match fs::remove_file(part) {
            Ok(()) => HubError::WrongSize { repo, file: name, expected, found },
            Err(cause) => HubError::disk(part)(cause),
        }
    }

    fn verify(&self, file: &Wanted, part: &Path, size: Option<u64>, digest: Option<&Digest>) -> Result<(), HubError> {
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

/// The most that a file can have, whatever is listed. The weights of the largest Whisper have six gigabytes; the others are
/// read into memory as a whole.
fn longest(name: &str) -> u64 {
    if name.ends_with(".safetensors") { 64 << 30 } else { 256 << 20 }
}

/// Writes the body; what was written counts even when the connection breaks. `false`: there is more than `limit` bytes of the
/// file, of which no more are written. `arrived` is told what came and what there is.
fn copy(
    answer: Answer,
    out: &mut File,
    part: &Path,
    have: &mut u64,
    limit: u64,
    mut arrived: impl FnMut(u64, u64),
) -> Result<bool, HubError> {
    let url = without_query(&answer.url);
    let mut body = answer.body.into_reader();
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
        arrived(count as u64, *have);
    }
}

fn hash(content: &mut File, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(()),
            count => hasher.update(&buffer[..count]),
        }
    }
}
