//! Directories ("FAT Directory Structure", "Long File Name Implementation").

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, transmute_ref};

use super::boot::trimmed;
use super::name::{LongName, short_name};
use super::{ClusterRun, Fat, FatError, FatNode, FileKind, MAX_DIRECTORY, ROOT, Time};

const ENTRY: usize = size_of::<ShortNameEntry>();
const READ_ONLY: u8 = 0x01;
const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
const DELETED: u8 = 0xe5;

/// An entry, unless it is a part of a long name.
#[derive(Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ShortNameEntry {
    dir_name: [u8; 11],
    dir_attr: u8,
    dir_nt_res: u8,
    dir_crt_time_tenth: u8,
    dir_crt_time: U16,
    dir_crt_date: U16,
    _12: U16,
    dir_fst_clus_hi: U16,
    dir_wrt_time: U16,
    dir_wrt_date: U16,
    dir_fst_clus_lo: U16,
    dir_file_size: U32,
}

impl ShortNameEntry {
    fn is_deleted(&self) -> bool {
        self.dir_name[0] == DELETED
    }

    fn is_long_name(&self) -> bool {
        self.dir_attr & 0x3f == LONG_NAME
    }
}

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
        let mut entry = ShortNameEntry::new_zeroed();
        self.read_at(number, entry.as_mut_bytes())?;
        Ok(node(number, &entry))
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
            let is_link = matches!(&entry.dir_name, b".          " | b"..         ");
            if entry.is_long_name() && !entry.is_deleted() {
                long.add(transmute_ref!(entry));
            } else if entry.is_deleted() || entry.dir_attr & LABEL != 0 || is_link {
                long.clear();
            } else {
                let name = long.take(&entry.dir_name);
                names.push((name.unwrap_or_else(|| short_name(entry.dir_name, entry.dir_nt_res)), place));
            }
        })?;
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0].0 == pair[1].0) || names.iter().any(|(name, _)| is_invalid(name)) {
            return Err(FatError::Damaged("a directory has a name twice, or one that cannot be"));
        }
        Ok(names)
    }

    /// Reads the label in the root directory.
    pub(super) fn root_label(&self) -> Result<Option<Vec<u8>>, FatError> {
        let mut label = None;
        self.each_entry(&self.node(ROOT)?, &mut |_, entry| {
            let is_label = entry.dir_attr & (LABEL | DIRECTORY) == LABEL && !entry.is_long_name();
            if is_label && !entry.is_deleted() {
                label.get_or_insert_with(|| trimmed(&entry.dir_name));
            }
        })?;
        Ok(label)
    }

    /// Calls `visit` with the offset of every entry up to the last.
    fn each_entry(&self, directory: &FatNode, visit: &mut dyn FnMut(u64, &ShortNameEntry)) -> Result<(), FatError> {
        let boot = &self.boot;
        let runs = if directory.number == ROOT && boot.root_bytes > 0 {
            vec![ClusterRun { start: boot.root, length: boot.root_bytes }]
        } else {
            let (runs, next) = self.follow(directory.first, (MAX_DIRECTORY / boot.cluster).max(1))?;
            if next.is_some() {
                return Err(FatError::Damaged("a directory is longer than any may be"));
            }
            runs
        };
        let mut entries = Vec::new();
        for run in runs {
            entries.resize(usize::try_from(run.length).unwrap_or(0) / ENTRY, ShortNameEntry::new_zeroed());
            self.read_at(run.start, entries.as_mut_bytes())?;
            for (at, entry) in (run.start..).step_by(ENTRY).zip(&entries) {
                if entry.dir_name[0] == 0 {
                    return Ok(());
                }
                visit(at, entry);
            }
        }
        Ok(())
    }
}

fn node(number: u64, entry: &ShortNameEntry) -> FatNode {
    let is_directory = entry.dir_attr & DIRECTORY != 0;
    let modified = time(entry.dir_wrt_date.get(), entry.dir_wrt_time.get(), 0);
    let created = time(entry.dir_crt_date.get(), entry.dir_crt_time.get(), entry.dir_crt_time_tenth);
    FatNode {
        number,
        kind: if is_directory { FileKind::Directory } else { FileKind::File },
        // Linux ignores the attribute on directories (fat_make_mode).
        mode: if entry.dir_attr & READ_ONLY != 0 && !is_directory { 0o555 } else { 0o755 },
        size: if is_directory { 0 } else { entry.dir_file_size.into() },
        modified,
        changed: modified.max(created),
        first: u32::from(entry.dir_fst_clus_hi) << 16 | u32::from(entry.dir_fst_clus_lo),
    }
}

fn is_invalid(name: &[u8]) -> bool {
    matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0)
}

/// Converts a date and time ("Date and Time Formats"), in UTC. Days and months of 0 count as the first, as in Linux.
fn time(date: u16, time: u16, hundredths: u8) -> Time {
    let year = i64::from(date >> 9) + 1980;
    let month = i64::from(date >> 5 & 15).max(1);
    let day = i64::from(date & 31).max(1);
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
