//! Small files that are read again when their content changes: certificates, keys, tokens. The content is compared and
//! not the modification time, so that a swapped symbolic link (as Kubernetes mounts secrets) and a quick second write
//! are noticed, too.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

/// Kubernetes itself needs a minute to update a secret in a pod.
const PERIOD: Duration = Duration::from_secs(2);
/// Limit for the size; a chain of certificates has some kB.
const LIMIT_BYTES: u64 = 1 << 20;

/// Why watched files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("{} cannot be read", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be used: {problem}", list(.paths))]
    Content { paths: Vec<PathBuf>, problem: ContentError },
}

/// Why a parser refuses the content of files.
pub type ContentError = Box<dyn std::error::Error + Send + Sync>;

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" with ")
}

/// The parsed content of files. New content that cannot be used is logged and refused, and the old content stays. Cheap
/// to clone; dropping the last clone ends the watching.
pub struct WatchedFiles<T> {
    current: Arc<RwLock<Arc<T>>>,
}

impl<T> Clone for WatchedFiles<T> {
    fn clone(&self) -> Self {
        Self { current: Arc::clone(&self.current) }
    }
}

impl<T: Send + Sync + 'static> WatchedFiles<T> {
    /// Reads the files now and every two seconds. `parse` gets the contents in the order of the paths. Must be called
    /// inside a tokio runtime.
    pub fn start<P, E>(paths: Vec<PathBuf>, parse: P) -> Result<Self, WatchError>
    where
        P: Fn(&[Vec<u8>]) -> Result<T, E> + Send + Sync + 'static,
        E: Into<ContentError>,
    {
        let parse = move |contents: &[Vec<u8>]| parse(contents).map_err(Into::into);
        let contents = read(&paths)?;
        let value = parse(&contents).map_err(|problem| WatchError::Content { paths: paths.clone(), problem })?;
        let current = Arc::new(RwLock::new(Arc::new(value)));
        let watcher = FileWatcher { paths, parse, seen: Some(contents), problem: None };
        tokio::spawn(watch(Arc::downgrade(&current), watcher));
        Ok(Self { current })
    }

    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

struct FileWatcher<P> {
    paths: Vec<PathBuf>,
    parse: P,
    /// The last content that was parsed, whether it was good or bad.
    seen: Option<Vec<Vec<u8>>>,
    /// The last problem that was logged.
    problem: Option<String>,
}

async fn watch<T, P>(current: Weak<RwLock<Arc<T>>>, mut watcher: FileWatcher<P>)
where
    T: Send + Sync + 'static,
    P: Fn(&[Vec<u8>]) -> Result<T, ContentError> + Send + Sync + 'static,
{
    loop {
        tokio::time::sleep(PERIOD).await;
        // A file system may hang, so the files are not read on a thread that serves connections.
        let polled = tokio::task::spawn_blocking(move || {
            let value = watcher.poll();
            (watcher, value)
        });

        let Ok((returned, value)) = polled.await else { return };
        watcher = returned;

        let Some(current) = current.upgrade() else { return };
        if let Some(value) = value {
            *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
            tracing::info!(files = list(&watcher.paths), "read again");
        }
    }
}

impl<P> FileWatcher<P> {
    /// Reads the files; returns new content that can be used. A problem is logged once.
    fn poll<T>(&mut self) -> Option<T>
    where
        P: Fn(&[Vec<u8>]) -> Result<T, ContentError>,
    {
        let result = match read(&self.paths) {
            Ok(contents) if self.seen.as_ref() == Some(&contents) => return None,
            Ok(contents) => {
                let parsed = (self.parse)(&contents);
                self.seen = Some(contents);
                parsed.map_err(|problem| WatchError::Content { paths: self.paths.clone(), problem }.to_string())
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
                Err(format!("{error}: {cause}"))
            }
        };

        match result {
            Ok(value) => {
                self.problem = None;
                Some(value)
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    tracing::error!("what was read before stays in use: {problem}");
                    self.problem = Some(problem);
                }

                None
            }
        }
    }
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, WatchError> {
    paths.iter().map(|path| read_one(path).map_err(|source| WatchError::Read { path: path.clone(), source })).collect()
}

fn read_one(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(LIMIT_BYTES + 1).read_to_end(&mut content)?;

    if content.len() as u64 > LIMIT_BYTES {
        return Err(io::Error::other(format!("larger than {LIMIT_BYTES} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    type Parse = fn(&[Vec<u8>]) -> Result<String, ContentError>;

    /// Parses two files that must be equal.
    fn pair(contents: &[Vec<u8>]) -> Result<String, ContentError> {
        match contents {
            [one, other] if one == other => Ok(String::from_utf8_lossy(one).into_owned()),
            _ => Err("they differ".into()),
        }
    }

    fn watcher(dir: &Path) -> FileWatcher<Parse> {
        FileWatcher { paths: vec![dir.join("a"), dir.join("b")], parse: pair, seen: None, problem: None }
    }

    #[test]
    fn a_half_written_pair_is_refused_until_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();

        let mut watcher = watcher(dir.path());
        assert_eq!(watcher.poll(), None);
        assert!(watcher.problem.as_ref().is_some_and(|problem| problem.contains("cannot be read")));

        write("a", "1");
        write("b", "1");
        assert_eq!(watcher.poll(), Some("1".to_owned()));
        assert_eq!(watcher.poll(), None, "nothing new");

        write("a", "2");
        assert_eq!(watcher.poll(), None);
        assert!(watcher.problem.as_ref().is_some_and(|problem| problem.contains("they differ")));

        write("b", "2");
        assert_eq!(watcher.poll(), Some("2".to_owned()));
        assert_eq!(watcher.problem, None);
    }

    #[test]
    fn a_link_that_is_swapped_as_kubernetes_does_it_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["1", "2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            for name in ["a", "b"] {
                fs::write(dir.path().join(version).join(name), version).unwrap();
            }
        }

        symlink("1", dir.path().join("..data")).unwrap();
        for name in ["a", "b"] {
            symlink(Path::new("..data").join(name), dir.path().join(name)).unwrap();
        }

        let mut watcher = watcher(dir.path());
        assert_eq!(watcher.poll(), Some("1".to_owned()));

        symlink("2", dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        assert_eq!(watcher.poll(), Some("2".to_owned()));
    }

    #[test]
    fn a_file_that_is_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![0; LIMIT_BYTES as usize + 1]).unwrap();
        let error = read(&[dir.path().join("a")]).unwrap_err();
        assert!(std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("larger")));
    }
}
