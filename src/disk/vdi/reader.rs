//! Reads the disk in a VDI. Numbers in the file are checked when they are used.

use std::fs::File;
use std::os::unix::fs::FileExt;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::disk::bytes::{check_within, read_struct};
use crate::disk::slot_cache::SlotCache;
use crate::disk::source::{DataLocation, DataRun, DiskSource, LayerError};

use super::{BLOCK, DYNAMIC, FREE, SIGNATURE, VERSION, VdiHeader};

/// How many entries of the map are read at a time.
const PAGE: u64 = 4096;
/// The entry of a block that is known to be zero.
const ZERO: u32 = FREE - 1;

/// An opened VDI file.
#[derive(Debug)]
pub(in crate::disk) struct VdiReader {
    file: File,
    file_size: u64,
    size: u64,
    map: u64,
    data: u64,
    pages: SlotCache<Vec<U32>>,
}

impl VdiReader {
    /// Reads the header; the map takes at most `memory` bytes at a time.
    pub fn open(file: File, memory: u64) -> Result<Self, LayerError> {
        let file_size = file.metadata()?.len();
        let header: VdiHeader = read_struct(&file, 0, "vdi")?;
        if header.u32_signature != SIGNATURE || header.u32_version != VERSION {
            return Err(unknown("it has another signature or version"));
        }
        if header.u32_type != DYNAMIC || u64::from(header.cb_block) != BLOCK || header.cb_block_extra != U32::ZERO {
            return Err(unknown("it is not a dynamic one with blocks of 1 MiB"));
        }
        let size = header.cb_disk.get();
        let map = u64::from(header.off_blocks);
        let blocks = u64::from(header.c_blocks);
        if size.div_ceil(BLOCK) > blocks {
            return Err(unknown("its disk is larger than its map"));
        }
        check_within("the map", map, blocks * 4, file_size)?;
        let pages = SlotCache::new(memory / (PAGE * 4));
        Ok(Self { file, file_size, size, map, data: header.off_data.into(), pages })
    }

    /// Reads the entry of a block in the map.
    fn entry(&self, block: u64) -> Result<u32, LayerError> {
        let number = block / PAGE;
        let page = self.pages.get(number, || self.read_page(number))?;
        Ok(page[usize::try_from(block % PAGE).unwrap_or(0)].get())
    }

    fn read_page(&self, number: u64) -> Result<Vec<U32>, LayerError> {
        let left = self.size.div_ceil(BLOCK) - number * PAGE;
        let mut page = vec![U32::ZERO; usize::try_from(left.min(PAGE)).unwrap_or(0)];
        self.file.read_exact_at(page.as_mut_bytes(), self.map + number * PAGE * 4)?;
        Ok(page)
    }
}

impl DiskSource for VdiReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn run_at(&self, offset: u64, _: u64) -> Result<DataRun, LayerError> {
        let block = offset / BLOCK;
        let length = ((block + 1) * BLOCK).min(self.size) - offset;
        let place = match self.entry(block)? {
            FREE | ZERO => DataLocation::Zero,
            number => {
                let at = self.data + u64::from(number) * BLOCK + offset % BLOCK;
                check_within("a block", at, length, self.file_size)?;
                DataLocation::At(at)
            }
        };
        Ok(DataRun { place, length })
    }

    fn read(&self, place: DataLocation, _: u64, bytes: &mut [u8]) -> Result<(), LayerError> {
        match place {
            DataLocation::At(at) => self.file.read_exact_at(bytes, at)?,
            _ => bytes.fill(0),
        }
        Ok(())
    }
}

fn unknown(why: &str) -> LayerError {
    LayerError::Unknown { format: "vdi", why: why.to_owned() }
}
