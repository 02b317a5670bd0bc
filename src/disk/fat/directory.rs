//! Directories ("FAT Directory Structure", "Long File Name Implementation").

use super::boot::trimmed;
use super::name::{LongName, short_name};
use super::{Fat, FatError, FatNode, FileKind, MAX_DIRECTORY, ROOT, Time};
use crate::disk::bytes::{le16, le32};

const ENTRY: usize = 32;
const READ_ONLY: u8 = 0x01;
const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
const DELETED: u8 = 0xe5;

impl Fat<'_> {
    /// Reads the file or directory whose entry is at this offset.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn node(&self, number: u64) -> Result<FatNode, FatError> {
        if number == ROOT {
            let time = Time { seconds: 0, nanoseconds: 0 };
            let first = self.boot.root_cluster;
            let kind = FileKind::Directory;
            return Ok(FatNode { number, kind, mode: 0o755, size: 0, modified: time, changed: time, first });
        }
        let mut entry = [0; ENTRY];
        self.read_at(number, &mut entry)?;
        node(number, &entry).ok_or(FatError::Damaged("a directory entry is cut"))
    }

    /// Reads the names in a directory without `.` and `..`, sorted by their bytes, each with the offset of its entry.
    ///
    /// # Errors
    /// When it is damaged, has the same name twice, or cannot be read.
    pub fn read_directory(&self, directory: &FatNode) -> Result<Vec<(Vec<u8>, u64)>, FatError> {
        if directory.kind != FileKind::Directory {
            return Err(FatError::Damaged("it is no directory"));
        }
        let mut names = Vec::new();
        let mut long = LongName::default();
        self.each_entry(directory, &mut |place, entry| {
            let attributes = entry[11];
            if entry[0] == DELETED {
                long.clear();
            } else if attributes & 0x3f == LONG_NAME {
                long.add(entry);
            } else if attributes & LABEL != 0 || entry.starts_with(b".          ") || entry.starts_with(b"..         ")
            {
                long.clear();
            } else {
                let name = long.take(&entry[..11]).unwrap_or_else(|| short_name(entry));
                names.push((name, place));
            }
        })?;
        names.sort_unstable();
        let bad = |name: &[u8]| matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0);
        if names.windows(2).any(|pair| pair[0].0 == pair[1].0) || names.iter().any(|(name, _)| bad(name)) {
            return Err(FatError::Damaged("a directory has a name twice, or one that cannot be"));
        }
        Ok(names)
    }

    /// Reads the label in the root directory.
    pub(super) fn root_label(&self) -> Result<Option<Vec<u8>>, FatError> {
        let mut label = None;
        self.each_entry(&self.node(ROOT)?, &mut |_, entry| {
            if entry[0] != DELETED && entry[11] & (LABEL | DIRECTORY) == LABEL && entry[11] & 0x3f != LONG_NAME {
                label.get_or_insert_with(|| trimmed(&entry[..11]));
            }
        })?;
        Ok(label)
    }

    /// Calls `visit` with the offset and the bytes of every entry up to the last.
    fn each_entry(&self, directory: &FatNode, visit: &mut dyn FnMut(u64, &[u8])) -> Result<(), FatError> {
        let boot = &self.boot;
        let parts = if directory.number == ROOT && boot.root_bytes > 0 {
            vec![(boot.root, boot.root_bytes)]
        } else {
            let places = self.whole_chain(directory.first, MAX_DIRECTORY)?;
            places.into_iter().map(|place| (place, boot.cluster)).collect()
        };
        let mut bytes = Vec::new();
        for (place, length) in parts {
            bytes.resize(usize::try_from(length).unwrap_or(0), 0);
            self.read_at(place, &mut bytes)?;
            for (at, entry) in (place..).step_by(ENTRY).zip(bytes.chunks_exact(ENTRY)) {
                if entry[0] == 0 {
                    return Ok(());
                }
                visit(at, entry);
            }
        }
        Ok(())
    }
}

fn node(number: u64, entry: &[u8]) -> Option<FatNode> {
    let attributes = *entry.get(11)?;
    let is_directory = attributes & DIRECTORY != 0;
    let modified = time(le16(entry, 24)?, le16(entry, 22)?, 0);
    let made = time(le16(entry, 16)?, le16(entry, 14)?, *entry.get(13)?);
    Some(FatNode {
        number,
        kind: if is_directory { FileKind::Directory } else { FileKind::File },
        // Linux ignores the attribute on directories (fat_make_mode).
        mode: if attributes & READ_ONLY != 0 && !is_directory { 0o555 } else { 0o755 },
        size: if is_directory { 0 } else { le32(entry, 28)?.into() },
        modified,
        changed: modified.max(made),
        first: u32::from(le16(entry, 20)?) << 16 | u32::from(le16(entry, 26)?),
    })
}

/// Converts a date and time ("Date and Time Formats"), in UTC. Days and months of 0 count as the first, as in Linux.
fn time(date: u16, time: u16, hundredths: u8) -> Time {
    let (year, month, day) =
        (i64::from(date >> 9) + 1980, i64::from(date >> 5 & 15).max(1), i64::from(date & 31).max(1));
    let seconds = i64::from(time >> 11) * 3600 + i64::from(time >> 5 & 63) * 60 + i64::from(time & 31) * 2;
    // Days since 1970 in the calendar whose years begin in March, so that the leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    let hundredths = u32::from(hundredths.min(199));
    Time { seconds: days * 86_400 + seconds + i64::from(hundredths / 100), nanoseconds: hundredths % 100 * 10_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_utc() {
        let at = |year: u16, month: u16, day: u16| (year - 1980) << 9 | month << 5 | day;
        let clock = |hour: u16, minute: u16, second: u16| hour << 11 | minute << 5 | (second / 2);
        for (date, of_day, expected) in [
            (at(1980, 1, 1), 0, 315_532_800),
            (at(2000, 2, 29), clock(23, 59, 58), 951_868_798),
            (at(2026, 11, 25), clock(16, 2, 45), 1_795_622_564),
            (at(2107, 12, 31), clock(0, 0, 0), 4_354_732_800),
            (0, 0, 315_532_800),
        ] {
            assert_eq!(time(date, of_day, 0).seconds, expected, "{date:#x}");
        }
        assert_eq!(time(at(1980, 1, 1), 0, 199), Time { seconds: 315_532_801, nanoseconds: 990_000_000 });
    }
}
