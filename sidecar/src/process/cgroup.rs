//! A control group (v2) of the app's own, where the kernel, the mount and the rights allow one. It is not needed to find
//! the app's processes: the keeper finds them as its descendants. But the kernel kills a control group at once, so that
//! not even processes that fork without a pause get away, and it still names them when the keeper was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use procfs::process::Process;

/// A folder below the control group of this process.
#[derive(Debug)]
pub(super) struct AppCgroup {
    folder: PathBuf,
}

impl AppCgroup {
    /// Makes a control group; `None`: it is not allowed here, or the kernel cannot kill a whole group (before Linux 5.14).
    pub(super) fn create() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let parent = own_folder()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("hush-app-{}-{count}", std::process::id()));
        let group = Self { folder };
        if fs::create_dir(&group.folder).is_err() {
            // The process id was that of a keeper which could not remove its group.
            group.remove();
            fs::create_dir(&group.folder).ok()?;
        }
        if group.folder.join("cgroup.kill").exists() {
            Some(group)
        } else {
            group.remove();
            None
        }
    }

    pub(super) fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn contains(&self, pid: i32) -> bool {
        let pids = fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        pids.lines().any(|line| line.parse() == Ok(pid))
    }

    /// Moves this process into the group.
    pub(super) fn join(&self) -> io::Result<()> {
        fs::write(self.folder.join("cgroup.procs"), "0")
    }

    /// Kills every process of the group and of the groups below it.
    pub(super) fn kill(&self) -> io::Result<()> {
        fs::write(self.folder.join("cgroup.kill"), "1")
    }

    /// Whether the group, or one below it, has a process. A group that is gone has none.
    pub(super) fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.folder.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Removes the group and those that the app made below it. One that still has a process stays.
    pub(super) fn remove(&self) {
        remove_folder(&self.folder);
    }
}

fn remove_folder(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folder(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// Where the control group of this process is in the file system.
fn own_folder() -> Option<PathBuf> {
    let process = Process::myself().ok()?;
    let groups = process.cgroups().ok()?;
    let own = groups.into_iter().find(|group| group.hierarchy == 0)?;

    let mounts = process.mountinfo().ok()?;
    mounts.into_iter().filter(|mount| mount.fs_type == "cgroup2").find_map(|mount| {
        let folder = folder_in_mount(&mount.root, &mount.mount_point, &own.pathname)?;
        folder.is_dir().then_some(folder)
    })
}

/// The folder of the group `path` if the part of the hierarchy below `root` is mounted at `mount_point`.
fn folder_in_mount(root: &str, mount_point: &Path, path: &str) -> Option<PathBuf> {
    let below = Path::new(path).strip_prefix(root).ok()?;
    // A group outside of the namespace of this process is named with `/..`.
    let is_inside = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    is_inside.then(|| mount_point.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_group_is_below_its_mount() {
        let mount = Path::new("/sys/fs/cgroup");
        assert_eq!(folder_in_mount("/", mount, "/"), Some("/sys/fs/cgroup".into()));
        assert_eq!(folder_in_mount("/", mount, "/a/b.scope"), Some("/sys/fs/cgroup/a/b.scope".into()));
        assert_eq!(folder_in_mount("/a", mount, "/a/b.scope"), Some("/sys/fs/cgroup/b.scope".into()));
        assert_eq!(folder_in_mount("/c", mount, "/a/b.scope"), None);
        assert_eq!(folder_in_mount("/", mount, "/../sibling"), None);
    }
}
