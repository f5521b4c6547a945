//! Reading files of a model folder. The folder may be hostile: instead of a file it may have a device or a pipe without end.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Far above the largest file that is read at once: a tokenizer has some megabytes.
const LONGEST_BYTES: u64 = 256 << 20;

/// Opens a regular file; anything else is an error.
pub fn open(path: &Path) -> io::Result<File> {
    // Without NONBLOCK, opening a pipe waits for its other end.
    let file = File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// The content of a regular file of up to [`LONGEST_BYTES`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let length = file.metadata()?.len().min(LONGEST_BYTES);
    let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(LONGEST_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LONGEST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is longer than {LONGEST_BYTES} bytes")));
    }

    Ok(content)
}
