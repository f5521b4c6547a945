//! Finds the GPU architectures for which a library contains code, by reading the library itself.
//!
//! The CUDA compiler puts the code of each source file into one *fat binary*, an entry for each architecture, and all fat
//! binaries into the section `.nv_fatbin`. An entry contains machine code, which runs only on GPUs of its own major compute
//! capability, or PTX, which the driver translates for any later GPU. The layout is that of `fatbinary.h` in the CUDA
//! toolkit; the bits of variants were determined from the output of CUDA 13's `fatbinary` for each of them, and the list
//! for ONNX Runtime 1.31.1 equals that of `cuobjdump --list-elf`.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use super::elf::ElfLibrary;

const SECTION: &str = ".nv_fatbin";
const MAGIC: u32 = 0xBA55_ED50;
const PTX: u16 = 1;
const MACHINE_CODE: u16 = 2;
/// GpuCode that uses features of exactly this architecture: `sm_90a`.
const EXACT_VARIANT: u64 = 1 << 20;
/// GpuCode for this architecture and later ones of its family, which have the same major number: `sm_100f`.
const FAMILY_VARIANT: u64 = 1 << 21;
/// The shortest header of a fat binary.
const FAT_HEADER_BYTES: u64 = 16;
/// The shortest header of an entry, up to the flags.
const ENTRY_HEADER_BYTES: u64 = 48;
/// More bytes between two fat binaries mean that the layout is an unknown one.
const PADDING_MAX_BYTES: u64 = 64 << 10;

/// A compute capability: `(8, 6)`.
pub type Capability = (u32, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum CodeVariant {
    Plain,
    Family,
    Exact,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GpuCode {
    capability: Capability,
    variant: CodeVariant,
    is_ptx: bool,
}

impl GpuCode {
    /// Machine code runs on its own major capability from its minor one on, and PTX on every later capability.
    const fn runs_on(self, (major, minor): Capability) -> bool {
        let (own_major, own_minor) = self.capability;
        let is_later_minor = major == own_major && minor >= own_minor;
        match self.variant {
            CodeVariant::Exact => major == own_major && minor == own_minor,
            CodeVariant::Family => is_later_minor,
            CodeVariant::Plain => is_later_minor || (self.is_ptx && major > own_major),
        }
    }
}

impl fmt::Display for GpuCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        let variant = match self.variant {
            CodeVariant::Plain => "",
            CodeVariant::Family => "f",
            CodeVariant::Exact => "a",
        };
        write!(f, "{major}.{minor}{variant}{}", if self.is_ptx { " (PTX)" } else { "" })
    }
}

/// The architectures for which a library contains code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Architectures(BTreeSet<GpuCode>);

impl fmt::Display for Architectures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, code) in self.0.iter().enumerate() {
            write!(f, "{}{code}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Whether a library's code runs on a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ArchitectureSupport {
    Runs,
    /// It does not run. These are the architectures for which the library contains code.
    Lacks(Architectures),
    /// The library contains no code for GPUs, or its layout is unknown.
    Unknown,
}

/// Whether the code of `library` runs on a GPU of this compute capability. Reads headers up to the first that matches; for
/// the usual GPUs that is in the first fat binary.
pub(super) fn support(library: &ElfLibrary, capability: Capability) -> io::Result<ArchitectureSupport> {
    let Some(section) = library.section(SECTION)? else { return Ok(ArchitectureSupport::Unknown) };
    let end = section.offset.saturating_add(section.length);
    let mut found = BTreeSet::new();
    let (mut at, mut padding_bytes) = (section.offset, 0);

    while at.saturating_add(FAT_HEADER_BYTES) <= end {
        let header: [u8; 16] = library.bytes(at)?;
        let magic = u32::from_le_bytes(part(&header, 0));
        let header_bytes = u64::from(u16::from_le_bytes(part(&header, 6)));
        let body_bytes = u64::from_le_bytes(part(&header, 8));

        if magic != MAGIC || header_bytes < FAT_HEADER_BYTES {
            // Fat binaries are aligned to 8 bytes, with padding between them.
            at += 8;
            padding_bytes += 8;
            if padding_bytes > PADDING_MAX_BYTES {
                return Ok(ArchitectureSupport::Unknown);
            }
            continue;
        }

        padding_bytes = 0;
        let body = at.saturating_add(header_bytes);
        let body_end = body.saturating_add(body_bytes).min(end);
        let Some(codes) = entries(library, body, body_end)? else { return Ok(ArchitectureSupport::Unknown) };

        if codes.iter().any(|code| code.runs_on(capability)) {
            return Ok(ArchitectureSupport::Runs);
        }

        found.extend(codes);
        at = body_end.max(at + 8);
    }

    Ok(if found.is_empty() { ArchitectureSupport::Unknown } else { ArchitectureSupport::Lacks(Architectures(found)) })
}

/// The entries of one fat binary; `None` if their layout is unknown.
fn entries(library: &ElfLibrary, start: u64, end: u64) -> io::Result<Option<Vec<GpuCode>>> {
    let mut codes = Vec::new();
    let mut at = start;

    while at.saturating_add(ENTRY_HEADER_BYTES) <= end {
        let header: [u8; 48] = library.bytes(at)?;
        let kind = u16::from_le_bytes(part(&header, 0));
        let header_bytes = u64::from(u32::from_le_bytes(part(&header, 4)));
        let code_bytes = u64::from_le_bytes(part(&header, 8));
        let architecture = u32::from_le_bytes(part(&header, 28));
        let flags = u64::from_le_bytes(part(&header, 40));

        if header_bytes < ENTRY_HEADER_BYTES {
            return Ok(None);
        }

        if matches!(kind, PTX | MACHINE_CODE) {
            let variant = if flags & EXACT_VARIANT != 0 {
                CodeVariant::Exact
            } else if flags & FAMILY_VARIANT != 0 {
                CodeVariant::Family
            } else {
                CodeVariant::Plain
            };

            let capability = (architecture / 10, architecture % 10);
            codes.push(GpuCode { capability, variant, is_ptx: kind == PTX });
        }

        at = at.saturating_add(header_bytes).saturating_add(code_bytes);
    }

    Ok(Some(codes))
}

/// `N` bytes of a header from `at` on; all callers use offsets inside the header.
fn part<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(header.iter().skip(at)).for_each(|(into, byte)| *into = *byte);
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One entry as `fatbinary` writes it.
    fn entry(kind: u16, architecture: u32, flags: u64, code_bytes: u64) -> Vec<u8> {
        let header_bytes: u32 = if architecture >= 100 { 112 } else { 64 };
        let mut entry = Vec::new();
        entry.extend(kind.to_le_bytes());
        entry.extend(0x101_u16.to_le_bytes());
        entry.extend(header_bytes.to_le_bytes());
        entry.extend(code_bytes.to_le_bytes());
        entry.resize(28, 0);
        entry.extend(architecture.to_le_bytes());
        entry.resize(40, 0);
        entry.extend(flags.to_le_bytes());
        entry.resize(header_bytes as usize, 0);

        // GpuCode that looks like the start of a fat binary must not be taken for one.
        entry.extend(MAGIC.to_le_bytes().iter().cycle().take(code_bytes as usize));

        entry
    }

    fn fat_binary(entries: &[Vec<u8>]) -> Vec<u8> {
        let body = entries.concat();
        let mut fat = Vec::new();
        fat.extend(MAGIC.to_le_bytes());
        fat.extend(1_u16.to_le_bytes());
        fat.extend(16_u16.to_le_bytes());
        fat.extend((body.len() as u64).to_le_bytes());
        fat.extend(body);

        fat
    }

    /// A 64-bit library with only the sections that are needed here.
    fn library_with(fat_binaries: &[u8]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.nv_fatbin\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names_at = file.len() as u64;
        file.extend(names);
        file.resize(file.len().next_multiple_of(8), 0);
        let fat_at = file.len() as u64;
        file.extend(fat_binaries);
        let table = file.len() as u64;
        let header = |name: u32, offset: u64, length: u64| {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&offset.to_le_bytes());
            header[32..40].copy_from_slice(&length.to_le_bytes());
            header
        };

        file.extend(header(0, 0, 0));
        file.extend(header(11, fat_at, fat_binaries.len() as u64));
        file.extend(header(1, names_at, names.len() as u64));
        file[40..48].copy_from_slice(&table.to_le_bytes());
        for (at, number) in [(58, 64_u16), (60, 3), (62, 2)] {
            file[at..at + 2].copy_from_slice(&number.to_le_bytes());
        }

        file
    }

    /// The architectures of ONNX Runtime 1.31.1: machine code for 7.5, 8.0, 8.6, 8.9, 9.0a and 12.0a, and no PTX.
    pub(crate) fn provider() -> Vec<u8> {
        let all = [(75, 0x8011), (80, 0x8011), (86, 0x8011), (89, 0x8011), (90, 0x10_8011), (120, 0x110_8011)];
        let all: Vec<_> = all.iter().map(|(sm, flags)| entry(MACHINE_CODE, *sm, *flags, 64)).collect();
        let hopper = [entry(MACHINE_CODE, 90, 0x10_8011, 128)];
        let mut fat = fat_binary(&all);
        fat.extend([0; 24]);
        fat.extend(fat_binary(&hopper));
        library_with(&fat)
    }

    fn support_of(bytes: &[u8], capability: Capability) -> ArchitectureSupport {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        support(&ElfLibrary::open(file.path()).unwrap(), capability).unwrap()
    }

    fn runs(bytes: &[u8], capability: Capability) -> bool {
        support_of(bytes, capability) == ArchitectureSupport::Runs
    }

    fn listed(bytes: &[u8]) -> String {
        match support_of(bytes, (1, 0)) {
            ArchitectureSupport::Lacks(architectures) => architectures.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_list_comes_from_the_library() {
        let provider = provider();
        assert_eq!(listed(&provider), "7.5, 8.0, 8.6, 8.9, 9.0a, 12.0a");

        for capability in [(7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (12, 0)] {
            assert!(runs(&provider, capability), "{capability:?}");
        }

        for refused in [(6, 1), (7, 0), (7, 2), (10, 0), (10, 3), (11, 0), (12, 1), (13, 0)] {
            assert!(matches!(support_of(&provider, refused), ArchitectureSupport::Lacks(_)), "{refused:?}");
        }
    }

    #[test]
    fn variants_and_ptx_reach_as_far_as_nvidia_says() {
        let with_entry = |entry: Vec<u8>| library_with(&fat_binary(&[entry]));
        let plain = with_entry(entry(MACHINE_CODE, 100, 0x100_0011, 8));
        assert!(runs(&plain, (10, 0)) && runs(&plain, (10, 3)) && !runs(&plain, (11, 0)) && !runs(&plain, (12, 0)));

        let family = with_entry(entry(MACHINE_CODE, 120, 0x120_0011, 8));
        assert_eq!(listed(&family), "12.0f");
        assert!(runs(&family, (12, 0)) && runs(&family, (12, 1)) && !runs(&family, (13, 0)));

        let ptx = with_entry(entry(PTX, 90, 0x8011, 8));
        assert_eq!(listed(&ptx), "9.0 (PTX)");
        assert!(runs(&ptx, (9, 0)) && runs(&ptx, (10, 0)) && runs(&ptx, (12, 1)) && !runs(&ptx, (8, 9)));

        let exact_ptx = with_entry(entry(PTX, 90, 0x10_8011, 8));
        assert!(runs(&exact_ptx, (9, 0)) && !runs(&exact_ptx, (10, 0)));
    }

    #[test]
    fn an_unreadable_layout_is_unknown() {
        let fat = || fat_binary(&[entry(MACHINE_CODE, 90, 0x11, 8)]);

        assert_eq!(support_of(&library_with(&[]), (9, 0)), ArchitectureSupport::Unknown);
        assert_eq!(support_of(&library_with(&[0; 4096]), (9, 0)), ArchitectureSupport::Unknown);

        let far = [vec![0; PADDING_MAX_BYTES as usize + 8], fat()].concat();
        assert_eq!(support_of(&library_with(&far), (9, 0)), ArchitectureSupport::Unknown, "another layout");

        let mut strange = fat();
        strange[20..24].copy_from_slice(&8_u32.to_le_bytes());
        assert_eq!(
            support_of(&library_with(&strange), (9, 0)),
            ArchitectureSupport::Unknown,
            "an entry whose header is too short"
        );

        let mut endless = fat();
        endless[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(listed(&library_with(&endless)), "9.0");

        let program = std::env::current_exe().unwrap();
        assert_eq!(support(&ElfLibrary::open(&program).unwrap(), (9, 0)).unwrap(), ArchitectureSupport::Unknown);
    }
}
