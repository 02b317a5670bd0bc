//! Tar archives, the same bytes for the same content: no clock, no names of users, owners as given by the caller.
//!
//! Two of the formats of GNU tar's manual ("Basic Tar Format"): `ustar`, which POSIX defines and OVA requires, and the old
//! GNU one, which supports sparse files and sizes beyond 8 GiB, and which Google requires. Both are as GNU tar writes them,
//! to the byte.

use std::ops::Range;
use std::sync::Arc;

use super::PackageError;
use super::content::PackageContent;
use crate::disk::chain::Chain;

/// Size of a block, bytes.
const BLOCK: usize = 512;
/// Size of a record of 20 blocks; GNU tar writes whole records.
const RECORD: u64 = 20 * BLOCK as u64;
/// Length limit of a member's name, bytes, with room for a NUL. Longer ones would need another header, which kiln does not
/// need.
const LONGEST_NAME: usize = 99;
/// Number of extents in the header of a sparse file, and in each of its further blocks.
const EXTENTS: usize = 4;
const MORE_EXTENTS: usize = 21;

/// Header format of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// POSIX.1-1988. A member is smaller than 8 GiB.
    Ustar,
    /// GNU's own before POSIX.1-2001.
    OldGnu,
}

/// User and group id of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TarOwner(pub u32, pub u32);

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive {
    content: PackageContent,
    format: Format,
    /// Time of every member, seconds since 1970.
    modified: u64,
}

impl Archive {
    /// Creates an archive without members.
    #[must_use]
    pub fn new(format: Format, modified: u64) -> Self {
        Self { content: PackageContent::default(), format, modified }
    }

    /// Adds a regular file that everybody may read.
    ///
    /// # Errors
    /// When its name is too long, or it is larger than the format can say.
    pub fn file(
        &mut self,
        name: &str,
        owner: TarOwner,
        content: impl Into<PackageContent>,
    ) -> Result<(), PackageError> {
        let content = content.into();
        let mut header = self.header(name, owner, b'0', 0o644)?;
        header
            .number(SIZE, content.len(), self.format)
            .ok_or(PackageError::MemberTooLarge { name: name.to_owned(), bytes: content.len() })?;
        let padding = content.len().next_multiple_of(BLOCK as u64) - content.len();
        self.content.push(header.finish());
        self.content.push(content);
        self.content.push(PackageContent::zeroes(padding));
        Ok(())
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// When its name is too long.
    pub fn folder(&mut self, name: &str, owner: TarOwner) -> Result<(), PackageError> {
        let mut header = self.header(&format!("{name}/"), owner, b'5', 0o755)?;
        header.number(SIZE, 0, self.format);
        self.content.push(header.finish());
        Ok(())
    }

    /// Adds a whole disk as a sparse file with only the extents of `data`, in order, all multiples of the block size. The
    /// member always has the old GNU format.
    ///
    /// # Errors
    /// When its name is too long.
    pub fn disk(&mut self, name: &str, chain: &Arc<Chain>, data: &[Range<u64>]) -> Result<(), PackageError> {
        let size = chain.virtual_size();
        let mut map: Vec<_> = data.iter().map(|extent| (extent.start, extent.end - extent.start)).collect();
        // An empty extent at the end gives the size of the file, for a file that does not end with data.
        map.push((size, 0));
        let stored = map.iter().map(|(_, length)| length).sum();
        let mut header = self.header(name, TarOwner::default(), b'S', 0o644)?;
        header.number(SIZE, stored, Format::OldGnu);
        header.number(REAL_SIZE, size, Format::OldGnu);
        let (first, more) = map.split_at(map.len().min(EXTENTS));
        header.extents(SPARSE, first);
        header.0[IS_EXTENDED] = u8::from(!more.is_empty());
        self.content.push(header.finish());
        let blocks = more.chunks(MORE_EXTENTS);
        let last = blocks.len();
        self.content.push(
            blocks
                .zip(1..)
                .flat_map(|(extents, number)| {
                    let mut block = TarHeader([0; BLOCK]);
                    block.extents(0, extents);
                    block.0[MORE_IS_EXTENDED] = u8::from(number < last);
                    block.0
                })
                .collect::<Vec<u8>>(),
        );
        for extent in data {
            self.content.push(PackageContent::disk(Arc::clone(chain), extent.clone()));
        }
        Ok(())
    }

    /// Ends the archive with two blocks of zeroes, and fills the last record with more of them.
    #[must_use]
    pub fn finish(mut self) -> PackageContent {
        let length = self.content.len() + 2 * BLOCK as u64;
        self.content.push(PackageContent::zeroes(length.next_multiple_of(RECORD) - self.content.len()));
        self.content
    }

    fn header(&self, name: &str, owner: TarOwner, kind: u8, mode: u64) -> Result<TarHeader, PackageError> {
        if name.len() > LONGEST_NAME {
            return Err(PackageError::LongName(name.to_owned()));
        }
        let mut header = TarHeader([0; BLOCK]);
        header.0[..name.len()].copy_from_slice(name.as_bytes());
        header.number(MODE, mode, self.format);
        header.number(USER, owner.0.into(), self.format);
        header.number(GROUP, owner.1.into(), self.format);
        header.number(MODIFIED, self.modified, self.format);
        header.0[KIND] = kind;
        match self.format {
            Format::Ustar => {
                header.0[MAGIC..MAGIC + 8].copy_from_slice(b"ustar\x0000");
                header.number(DEVICE_MAJOR, 0, self.format);
                header.number(DEVICE_MINOR, 0, self.format);
            }
            Format::OldGnu => header.0[MAGIC..MAGIC + 8].copy_from_slice(b"ustar  \0"),
        }
        Ok(header)
    }
}

// Fields of a header by their bytes: tar(5), and `oldgnu_header` and `sparse_header` in GNU tar's tar.h.
const MODE: Range<usize> = 100..108;
const USER: Range<usize> = 108..116;
const GROUP: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MODIFIED: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const KIND: usize = 156;
const MAGIC: usize = 257;
const DEVICE_MAJOR: Range<usize> = 329..337;
const DEVICE_MINOR: Range<usize> = 337..345;
const SPARSE: usize = 386;
const IS_EXTENDED: usize = 482;
const REAL_SIZE: Range<usize> = 483..495;
const MORE_IS_EXTENDED: usize = 504;

struct TarHeader([u8; BLOCK]);

impl TarHeader {
    /// Writes a number as octal digits and a NUL. The old GNU format writes larger numbers in big-endian binary, marked by
    /// the first bit.
    fn number(&mut self, field: Range<usize>, value: u64, format: Format) -> Option<()> {
        let digits = field.len() - 1;
        let octal = format!("{value:0digits$o}");
        let field = &mut self.0[field];
        if octal.len() == digits {
            field[..digits].copy_from_slice(octal.as_bytes());
            return Some(());
        }
        let start = field.len().checked_sub(8).filter(|start| *start > 0 && format == Format::OldGnu)?;
        field.fill(0);
        field[0] = 0x80;
        field[start..].copy_from_slice(&value.to_be_bytes());
        Some(())
    }

    fn extents(&mut self, start: usize, extents: &[(u64, u64)]) {
        for ((offset, length), at) in extents.iter().zip((start..).step_by(24)) {
            self.number(at..at + 12, *offset, Format::OldGnu);
            self.number(at + 12..at + 24, *length, Format::OldGnu);
        }
    }

    /// Fills in the sum of all bytes, where its own field counts as blanks: six digits, a NUL and a blank.
    fn finish(mut self) -> Vec<u8> {
        self.0[CHECKSUM].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.0[CHECKSUM][..7].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    const TIME: u64 = 1_767_323_045;

    #[test]
    fn both_formats_are_what_gnu_tar_writes() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("sub/{}", "n".repeat(95));
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::fs::set_permissions(folder.path().join("sub"), Permissions::from_mode(0o755)).unwrap();
        for (format, option) in [(Format::Ustar, "--format=ustar"), (Format::OldGnu, "--format=oldgnu")] {
            let mut archive = Archive::new(format, TIME);
            let mut command = Command::new("tar");
            command.args([option, "-c", "--mtime=@1767323045", "--mode=u=rwX,go=rX", "--owner=0", "--group=107"]);
            command.args(["--numeric-owner", "--no-recursion", "-C"]).arg(folder.path()).arg("sub");
            archive.folder("sub", TarOwner(0, 107)).unwrap();
            for (name, length) in [("empty", 0), ("one", 1), ("block", 512), (&*long, 10_000)] {
                std::fs::write(folder.path().join(name), vec![b'x'; length]).unwrap();
                archive.file(name, TarOwner(0, 107), vec![b'x'; length]).unwrap();
                command.arg(name);
            }
            let theirs = command.output().unwrap();
            assert!(theirs.status.success(), "{}", String::from_utf8_lossy(&theirs.stderr));
            assert!(archive.finish().to_vec().unwrap() == theirs.stdout, "{option}");
        }
    }

    /// Returns the size of a member, as `tar -tv` prints it, for an archive without the member's data.
    fn listed(format: Format, bytes: u64) -> Result<String, PackageError> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let mut archive = Archive::new(format, TIME);
        archive.file("large", TarOwner::default(), PackageContent::file(file)?)?;
        let whole = archive.finish();
        let mut header = [0; BLOCK];
        whole.read_at(0, &mut header)?;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive");
        std::fs::write(&path, header).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(whole.len()).unwrap();
        let seen = Command::new("tar").arg("-tvf").arg(path).env("TZ", "UTC").output().unwrap();
        assert!(seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));
        Ok(String::from_utf8(seen.stdout).unwrap().split_whitespace().nth(2).unwrap().to_owned())
    }

    #[test]
    fn sizes_beyond_octal_digits_are_gnus_alone() {
        let most = (8 << 30) - 1;
        for (format, bytes) in
            [(Format::Ustar, most), (Format::OldGnu, most), (Format::OldGnu, most + 1), (Format::OldGnu, 1 << 42)]
        {
            assert_eq!(listed(format, bytes).unwrap(), bytes.to_string());
        }
        let refused = listed(Format::Ustar, most + 1).unwrap_err();
        assert!(matches!(refused, PackageError::MemberTooLarge { bytes, .. } if bytes == most + 1));
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let mut archive = Archive::new(Format::Ustar, TIME);
        assert!(matches!(archive.file(&"n".repeat(100), TarOwner::default(), vec![]), Err(PackageError::LongName(_))));
        assert!(matches!(archive.folder(&"n".repeat(99), TarOwner::default()), Err(PackageError::LongName(_))));
    }
}
