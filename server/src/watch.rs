//! Small files that are read again when their content changes: certificates, keys, tokens. The content is compared and
//! not a time stamp, so that a swapped symbolic link (as Kubernetes mounts secrets) and a quick second write are seen
//! alike.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

/// Kubernetes itself takes a minute to bring a new secret to a pod.
const PERIOD: Duration = Duration::from_secs(2);
/// A chain of certificates has some kB.
const LIMIT_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("{} cannot be read", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be used: {problem}", list(.paths))]
    Content { paths: Vec<PathBuf>, problem: String },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" with ")
}

/// What files hold, parsed. A new content that cannot be used is refused with a line in the log, and the old one stays.
/// Cheap to clone; the last clone ends the watching.
pub struct Watched<T> {
    current: Arc<RwLock<Arc<T>>>,
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self { current: Arc::clone(&self.current) }
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the files now and every two seconds; `parse` takes one content for each path, in their order. Must be
    /// called inside a tokio runtime.
    pub fn start<P>(paths: Vec<PathBuf>, parse: P) -> Result<Self, WatchError>
    where
        P: Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    {
        let contents = read(&paths)?;
        let value = parse(&contents).map_err(|problem| WatchError::Content { paths: paths.clone(), problem })?;
        let current = Arc::new(RwLock::new(Arc::new(value)));
        let watcher = Watcher { paths, parse, seen: Some(contents), complaint: None };
        tokio::spawn(watch(Arc::downgrade(&current), watcher));
        Ok(Self { current })
    }

    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Watcher<P> {
    paths: Vec<PathBuf>,
    parse: P,
    /// The last content that was tried, good or bad.
    seen: Option<Vec<Vec<u8>>>,
    /// Said already.
    complaint: Option<String>,
}

async fn watch<T, P>(current: Weak<RwLock<Arc<T>>>, mut watcher: Watcher<P>)
where
    T: Send + Sync + 'static,
    P: Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
{
    loop {
        tokio::time::sleep(PERIOD).await;
        // A file system may hang: not on a thread that serves connections.
        let looked = tokio::task::spawn_blocking(move || {
            let value = watcher.look();
            (watcher, value)
        });
        let Ok((back, value)) = looked.await else { return };
        watcher = back;
        let Some(current) = current.upgrade() else { return };
        if let Some(value) = value {
            *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
            tracing::info!(files = list(&watcher.paths), "read again");
        }
    }
}

impl<P> Watcher<P> {
    /// A new content that can be used.
    fn look<T>(&mut self) -> Option<T>
    where
        P: Fn(&[Vec<u8>]) -> Result<T, String>,
    {
        let looked = match read(&self.paths) {
            Ok(contents) if self.seen.as_ref() == Some(&contents) => return None,
            Ok(contents) => {
                let parsed = (self.parse)(&contents);
                self.seen = Some(contents);
                parsed.map_err(|problem| WatchError::Content { paths: self.paths.clone(), problem }.to_string())
            }
            Err(error) => Err(format!(
                "{error}: {}",
                std::error::Error::source(&error).map_or_else(String::new, ToString::to_string)
            )),
        };
        match looked {
            Ok(value) => {
                self.complaint = None;
                Some(value)
            }
            Err(complaint) => {
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::error!("what was read before stays in use: {complaint}");
                    self.complaint = Some(complaint);
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

    type Parse = fn(&[Vec<u8>]) -> Result<String, String>;

    /// Two files that must be equal.
    fn pair(contents: &[Vec<u8>]) -> Result<String, String> {
        match contents {
            [one, other] if one == other => Ok(String::from_utf8_lossy(one).into_owned()),
            _ => Err("they differ".to_owned()),
        }
    }

    fn watcher(dir: &Path) -> Watcher<Parse> {
        Watcher { paths: vec![dir.join("a"), dir.join("b")], parse: pair, seen: None, complaint: None }
    }

    #[test]
    fn a_half_written_pair_is_refused_until_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();
        let mut watcher = watcher(dir.path());
        assert_eq!(watcher.look(), None);
        assert!(watcher.complaint.as_ref().is_some_and(|complaint| complaint.contains("cannot be read")));
        write("a", "1");
        write("b", "1");
        assert_eq!(watcher.look(), Some("1".to_owned()));
        assert_eq!(watcher.look(), None, "nothing new");
        write("a", "2");
        assert_eq!(watcher.look(), None);
        assert!(watcher.complaint.as_ref().is_some_and(|complaint| complaint.contains("they differ")));
        write("b", "2");
        assert_eq!(watcher.look(), Some("2".to_owned()));
        assert_eq!(watcher.complaint, None);
    }

    #[test]
    fn a_swapped_link_is_seen_as_kubernetes_swaps_it() {
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
        assert_eq!(watcher.look(), Some("1".to_owned()));
        symlink("2", dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        assert_eq!(watcher.look(), Some("2".to_owned()));
    }

    #[test]
    fn a_file_that_is_no_small_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![0; LIMIT_BYTES as usize + 1]).unwrap();
        let error = read(&[dir.path().join("a")]).unwrap_err();
        assert!(std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("larger")));
    }
}
