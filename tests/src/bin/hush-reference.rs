//! Writes the pages of `docs/reference`; `make reference` calls it.

use anyhow::{Context, Result};
use hush_tests::reference::{PAGES, folder};

fn main() -> Result<()> {
    std::fs::create_dir_all(folder())?;
    for (name, content) in PAGES {
        let path = folder().join(name);
        std::fs::write(&path, content()?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
