//! Detects secret files that every user of the machine can read.

use std::fs::metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const READABLE_BY_OTHERS: u32 = 0o004;
const PERMISSIONS: u32 = 0o7777;

/// The warning for a file that `option` names and that every user can read, with the fix. `None` where the file is protected, or
/// where it cannot be examined, which its reader reports.
pub fn exposed_secret(option: &str, path: &Path) -> Option<String> {
    let mode = metadata(path).ok()?.mode() & PERMISSIONS;
    let path = path.display();
    (mode & READABLE_BY_OTHERS != 0).then(|| {
        format!(
            "{option}: every user of this machine can read the secret in {path} (mode {mode:04o}): `chmod o-rwx {path}`, or \
             `defaultMode: 0440` where it is the volume of a Kubernetes secret"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_secret_that_all_users_can_read_is_reported_with_the_fix() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("token"), folder.path().join("link"));
        write(&file, "secret").unwrap();
        symlink(&file, &link).unwrap();
        for (mode, is_exposed) in [(0o644, true), (0o604, true), (0o640, false), (0o440, false), (0o600, false)] {
            set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            // Kubernetes mounts secrets as symbolic links.
            for path in [&file, &link] {
                let warning = exposed_secret("--page-token-file", path);
                assert_eq!(warning.is_some(), is_exposed, "{mode:o}");
                let Some(warning) = warning else { continue };
                let shown = path.display().to_string();
                assert!(warning.starts_with("--page-token-file: ") && warning.contains(&shown), "{warning}");
                assert!(warning.contains("chmod o-rwx") && warning.contains(&format!("{mode:04o}")), "{warning}");
                assert!(!warning.contains("secret\n"));
            }
        }
        assert_eq!(exposed_secret("--page-token-file", Path::new("/nonexistent")), None);
    }
}
