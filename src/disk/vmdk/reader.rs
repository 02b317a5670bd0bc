//! Reads the disk in a VMDK, as QEMU and kiln write them. Numbers in the file are checked when they are used.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};

use crate::disk::bytes::{le16, le32, le64};
use crate::disk::slot_cache::SlotCache;
use crate::disk::source::{DataLocation, DataRun, DiskSource, LayerError};

use super::{AT_END, DEFLATE, FLAGS, FOOTER, GRAIN_SECTORS, MAGIC, SECTOR, TABLE_GRAINS, TABLE_SECTORS};

const GRAIN: usize = 64 << 10;
const TABLE_BYTES: usize = TABLE_GRAINS as usize * 4;
/// The length of a grain's marker: its place on the disk and the length of the grain.
const GRAIN_MARKER: usize = 12;
/// How many grains are kept unpacked.
const UNPACKED: u64 = 64;
/// The largest directory in bytes, for 256 TiB.
const LARGEST_DIRECTORY: u64 = 32 << 20;

/// An opened VMDK file.
#[derive(Debug)]
pub(in crate::disk) struct VmdkReader {
    file: File,
    file_size: u64,
    size: u64,
    directory: Vec<u32>,
    tables: SlotCache<Vec<u32>>,
    unpacked: SlotCache<Vec<u8>>,
}

/// The fields of a header that are used.
struct VmdkHeader {
    capacity: u64,
    directory: u64,
}

impl VmdkHeader {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let known = bytes.starts_with(MAGIC)
            && (1..=3).contains(&le32(bytes, 4)?)
            && le32(bytes, 8)? & (FLAGS & !1) == FLAGS & !1
            && le64(bytes, 20)? == GRAIN_SECTORS
            && le32(bytes, 44)? == TABLE_GRAINS
            && le16(bytes, 77)? == DEFLATE;
        Some(Self { capacity: le64(bytes, 12)?, directory: le64(bytes, 56)? }).filter(|_| known)
    }
}

impl VmdkReader {
    /// Reads header, footer and directory; the tables take at most `memory` bytes at a time.
    pub fn open(file: File, memory: u64) -> Result<Self, LayerError> {
        let file_size = file.metadata()?.len();
        let header = header(&file, file_size)?;
        let (at, entries) = (header.directory.saturating_mul(SECTOR as u64), header.capacity.div_ceil(TABLE_SECTORS));
        let mut reader = Self {
            file,
            file_size,
            size: header.capacity.saturating_mul(SECTOR as u64),
            directory: Vec::new(),
            tables: SlotCache::new(memory / TABLE_BYTES as u64),
            unpacked: SlotCache::new(UNPACKED),
        };
        if entries * 4 > LARGEST_DIRECTORY {
            return Err(unknown("its disk is too large"));
        }
        let bytes = reader.read_file("the grain directory", at, usize::try_from(entries * 4).unwrap_or(0))?;
        reader.directory = le32_table(&bytes);
        Ok(reader)
    }

    fn read_file(&self, what: &'static str, at: u64, length: usize) -> Result<Vec<u8>, LayerError> {
        if at.saturating_add(length as u64) > self.file_size {
            return Err(LayerError::Entry { what, at, file_size: self.file_size });
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Returns the table that contains this grain; `None` if none of its grains is in the file.
    fn table(&self, grain: u64) -> Result<Option<Arc<Vec<u32>>>, LayerError> {
        let number = grain / u64::from(TABLE_GRAINS);
        let sector = self.directory.get(usize::try_from(number).unwrap_or(usize::MAX)).copied().unwrap_or(0);
        if sector == 0 {
            return Ok(None);
        }
        let read = || {
            let bytes = self.read_file("a grain table", u64::from(sector) * SECTOR as u64, TABLE_BYTES)?;
            Ok::<_, LayerError>(le32_table(&bytes))
        };
        self.tables.get(number, read).map(Some)
    }

    /// Returns the sector of a grain; 0 if it is not in the file.
    fn sector(&self, grain: u64) -> Result<u32, LayerError> {
        let slot = usize::try_from(grain % u64::from(TABLE_GRAINS)).unwrap_or(0);
        Ok(self.table(grain)?.map_or(0, |table| table[slot]))
    }

    fn unpack(&self, grain: u64) -> Result<Vec<u8>, LayerError> {
        let at = u64::from(self.sector(grain)?) * SECTOR as u64;
        let broken = |why: &str| LayerError::Unpack { at, source: std::io::Error::other(why.to_owned()) };
        let marker = self.read_file("a grain", at, GRAIN_MARKER)?;
        if le64(&marker, 0) != Some(grain * GRAIN_SECTORS) {
            return Err(broken("it belongs to another place of the disk"));
        }
        let length = le32(&marker, 8).map(|length| length as usize).filter(|length| *length <= 2 * GRAIN);
        let length = length.ok_or_else(|| broken("it is too long"))?;
        let packed = self.read_file("a grain", at + GRAIN_MARKER as u64, length)?;
        let mut bytes = vec![0; GRAIN];
        let mut inflater = Decompress::new(true);
        match inflater.decompress(&packed, &mut bytes, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) if inflater.total_out() == GRAIN as u64 => Ok(bytes),
            Ok(_) => Err(broken("it does not unpack to a grain")),
            Err(error) => Err(broken(&error.to_string())),
        }
    }
}

impl DiskSource for VmdkReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64, _: u64) -> Result<DataRun, LayerError> {
        let grain = offset / GRAIN as u64;
        let Some(table) = self.table(grain)? else {
            let end = (grain / u64::from(TABLE_GRAINS) + 1) * TABLE_SECTORS * SECTOR as u64;
            return Ok(DataRun { place: DataLocation::Zero, length: end.min(self.size) - offset });
        };
        let rest = &table[usize::try_from(grain % u64::from(TABLE_GRAINS)).unwrap_or(0)..];
        let zero = rest.iter().take_while(|sector| **sector == 0).count() as u64;
        let place = if zero == 0 { DataLocation::Packed(grain) } else { DataLocation::Zero };
        Ok(DataRun { place, length: ((grain + zero.max(1)) * GRAIN as u64).min(self.size) - offset })
    }

    fn read(&self, place: DataLocation, offset: u64, bytes: &mut [u8]) -> Result<(), LayerError> {
        let DataLocation::Packed(grain) = place else {
            bytes.fill(0);
            return Ok(());
        };
        let unpacked = self.unpacked.get(grain, || self.unpack(grain))?;
        let inside = usize::try_from(offset % GRAIN as u64).unwrap_or(0);
        bytes.copy_from_slice(&unpacked[inside..inside + bytes.len()]);
        Ok(())
    }
}

fn unknown(why: &str) -> LayerError {
    LayerError::Unknown { format: "vmdk", why: why.to_owned() }
}

/// Reads the header, or the footer if the header refers to it.
fn header(file: &File, file_size: u64) -> Result<VmdkHeader, LayerError> {
    let mut sector = [0; SECTOR];
    let read = |sector: &mut [u8], at| match file.read_exact_at(sector, at) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(unknown("it is too short")),
        other => other.map_err(LayerError::from),
    };
    read(&mut sector, 0)?;
    let not_streamed = || unknown("it is not stream-optimised");
    let header = VmdkHeader::parse(&sector).ok_or_else(not_streamed)?;
    if header.directory != AT_END {
        return Ok(header);
    }
    // Footer and end are the last sectors, each preceded by its marker.
    let marker = file_size.checked_sub(3 * SECTOR as u64).ok_or_else(|| unknown("it is too short"))?;
    read(&mut sector, marker)?;
    if (le32(&sector, 8), le32(&sector, 12)) != (Some(0), Some(FOOTER)) {
        return Err(unknown("it has no footer"));
    }
    read(&mut sector, marker + SECTOR as u64)?;
    let footer = VmdkHeader::parse(&sector).filter(|footer| footer.capacity == header.capacity);
    footer.ok_or_else(|| unknown("its footer is not that of its header"))
}

fn le32_table(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}
