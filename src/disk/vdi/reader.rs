//! Reads the disk in a VDI. Numbers in the file are checked when they are used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::disk::bytes::{le32, le64};
use crate::disk::slot_cache::SlotCache;
use crate::disk::source::{DataLocation, DataRun, DiskSource, LayerError};

use super::{BLOCK, DYNAMIC, FREE, SIGNATURE, VERSION};

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
    pages: SlotCache<Vec<u32>>,
}

impl VdiReader {
    /// Reads the header; the map takes at most `memory` bytes at a time.
    pub fn open(file: File, memory: u64) -> Result<Self, LayerError> {
        let file_size = file.metadata()?.len();
        let mut header = [0; 512];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(unknown("it is too short")),
            other => other?,
        }
        let small = |at| le32(&header, at).unwrap_or(0);
        if (small(64), small(68)) != (SIGNATURE, VERSION) {
            return Err(unknown("it has another signature or version"));
        }
        if small(76) != DYNAMIC || u64::from(small(376)) != BLOCK || small(380) != 0 {
            return Err(unknown("it is not a dynamic one with blocks of 1 MiB"));
        }
        let (size, map, data) = (le64(&header, 368).unwrap_or(0), u64::from(small(340)), u64::from(small(344)));
        let blocks = u64::from(small(384));
        if size.div_ceil(BLOCK) > blocks {
            return Err(unknown("its disk is larger than its map"));
        }
        if map + blocks * 4 > file_size {
            return Err(LayerError::Entry { what: "the map", at: map, file_size });
        }
        Ok(Self { file, file_size, size, map, data, pages: SlotCache::new(memory / (PAGE * 4)) })
    }

    /// Reads the entry of a block in the map.
    fn entry(&self, block: u64) -> Result<u32, LayerError> {
        let number = block / PAGE;
        let read = || {
            let (at, left) = (self.map + number * PAGE * 4, self.size.div_ceil(BLOCK) - number * PAGE);
            let mut bytes = vec![0; usize::try_from(left.min(PAGE) * 4).unwrap_or(0)];
            self.file.read_exact_at(&mut bytes, at)?;
            let words = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
            Ok::<_, LayerError>(words.collect())
        };
        Ok(self.pages.get(number, read)?[usize::try_from(block % PAGE).unwrap_or(0)])
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
                if at + length > self.file_size {
                    return Err(LayerError::Entry { what: "a block", at, file_size: self.file_size });
                }
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
