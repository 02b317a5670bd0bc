//! Reads the disk in a VMDK, as QEMU and kiln write them. Numbers in the file are checked when they are used.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};
use zerocopy::little_endian::U32;
use zerocopy::{FromZeros, IntoBytes};

use crate::disk::bytes::{check_within, read_struct};
use crate::disk::slot_cache::SlotCache;
use crate::disk::source::{DataLocation, DataRun, DiskSource, LayerError};

use super::{
    AT_END, DEFLATE, FLAGS, FOOTER, GRAIN_MARKER, GRAIN_SECTORS, MAGIC, SECTOR, SparseExtentHeader, SparseMarker,
    TABLE_GRAINS, TABLE_SECTORS,
};

const GRAIN: usize = 64 << 10;
const TABLE_BYTES: usize = TABLE_GRAINS as usize * 4;
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
    directory: Vec<U32>,
    tables: SlotCache<Vec<U32>>,
    unpacked: SlotCache<Vec<u8>>,
}

impl SparseExtentHeader {
    fn is_known(&self) -> bool {
        self.magic_number == *MAGIC
            && (1..=3).contains(&self.version.get())
            && self.flags.get() & (FLAGS & !1) == FLAGS & !1
            && self.grain_size.get() == GRAIN_SECTORS
            && self.num_gtes_per_gt.get() == TABLE_GRAINS
            && self.compress_algorithm == DEFLATE
    }
}

impl VmdkReader {
    /// Reads header, footer and directory; the tables take at most `memory` bytes at a time.
    pub fn open(file: File, memory: u64) -> Result<Self, LayerError> {
        let file_size = file.metadata()?.len();
        let header = read_header(&file, file_size)?;
        let capacity = header.capacity.get();
        let entries = capacity.div_ceil(TABLE_SECTORS);
        if entries * 4 > LARGEST_DIRECTORY {
            return Err(unknown("its disk is too large"));
        }
        let at = header.gd_offset.get().checked_mul(SECTOR as u64);
        let at = at.ok_or_else(|| unknown("its grain directory is outside the file"))?;
        let mut directory = vec![U32::ZERO; usize::try_from(entries).unwrap_or(0)];
        let mut reader = Self {
            file,
            file_size,
            size: capacity * SECTOR as u64,
            directory: Vec::new(),
            tables: SlotCache::new(memory / TABLE_BYTES as u64),
            unpacked: SlotCache::new(UNPACKED),
        };
        reader.read_part("the grain directory", at, directory.as_mut_bytes())?;
        reader.directory = directory;
        Ok(reader)
    }

    /// Fills `bytes` from a place in the file.
    fn read_part(&self, what: &'static str, at: u64, bytes: &mut [u8]) -> Result<(), LayerError> {
        check_within(what, at, bytes.len() as u64, self.file_size)?;
        Ok(self.file.read_exact_at(bytes, at)?)
    }

    /// Returns the table that contains this grain; `None` if none of its grains is in the file.
    fn table(&self, grain: u64) -> Result<Option<Arc<Vec<U32>>>, LayerError> {
        let number = grain / u64::from(TABLE_GRAINS);
        let sector = usize::try_from(number).ok().and_then(|number| self.directory.get(number));
        match sector.map_or(0, |sector| sector.get()) {
            0 => Ok(None),
            sector => self.tables.get(number, || self.read_table(sector)).map(Some),
        }
    }

    fn read_table(&self, sector: u32) -> Result<Vec<U32>, LayerError> {
        let mut table = vec![U32::ZERO; TABLE_GRAINS as usize];
        self.read_part("a grain table", u64::from(sector) * SECTOR as u64, table.as_mut_bytes())?;
        Ok(table)
    }

    /// Returns the sector of a grain; 0 if it is not in the file.
    fn sector(&self, grain: u64) -> Result<u32, LayerError> {
        let slot = usize::try_from(grain % u64::from(TABLE_GRAINS)).unwrap_or(0);
        Ok(self.table(grain)?.map_or(0, |table| table[slot].get()))
    }

    fn unpack(&self, grain: u64) -> Result<Vec<u8>, LayerError> {
        let at = u64::from(self.sector(grain)?) * SECTOR as u64;
        let mut marker = SparseMarker::new_zeroed();
        self.read_part("a grain", at, &mut marker.as_mut_bytes()[..GRAIN_MARKER])?;
        if marker.val.get() != grain * GRAIN_SECTORS {
            return Err(broken(at, "it belongs to another place of the disk"));
        }
        let length = marker.size.get() as usize;
        if length > 2 * GRAIN {
            return Err(broken(at, "it is too long"));
        }
        let mut packed = vec![0; length];
        self.read_part("a grain", at + GRAIN_MARKER as u64, &mut packed)?;
        let mut bytes = vec![0; GRAIN];
        let mut inflater = Decompress::new(true);
        match inflater.decompress(&packed, &mut bytes, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) if inflater.total_out() == GRAIN as u64 => Ok(bytes),
            Ok(_) => Err(broken(at, "it does not unpack to a grain")),
            Err(error) => Err(broken(at, error)),
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
        let zero = rest.iter().take_while(|sector| sector.get() == 0).count() as u64;
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

fn broken(at: u64, why: impl Into<Box<dyn Error + Send + Sync>>) -> LayerError {
    LayerError::Unpack { at, source: io::Error::other(why) }
}

/// Reads the header, or the footer if the header refers to it.
fn read_header(file: &File, file_size: u64) -> Result<SparseExtentHeader, LayerError> {
    let header: SparseExtentHeader = read_struct(file, 0, "vmdk")?;
    if !header.is_known() {
        return Err(unknown("it is not stream-optimised"));
    }
    if header.gd_offset != AT_END {
        return Ok(header);
    }
    // Footer and end are the last sectors, each preceded by its marker.
    let at = file_size.checked_sub(3 * SECTOR as u64).ok_or_else(|| unknown("it is too short"))?;
    let marker: SparseMarker = read_struct(file, at, "vmdk")?;
    if marker.size != U32::ZERO || marker.kind != FOOTER {
        return Err(unknown("it has no footer"));
    }
    let footer: SparseExtentHeader = read_struct(file, at + SECTOR as u64, "vmdk")?;
    if !footer.is_known() || footer.capacity != header.capacity {
        return Err(unknown("its footer is not that of its header"));
    }
    Ok(footer)
}
