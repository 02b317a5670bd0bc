//! A base image of any bytes: what passes the inspection depends on no other file, and can be read to its end or fails.

use std::fs::File;
use std::io::Write;

use kiln::disk::chain::{Chain, ChainFile};
use kiln::disk::inspect::inspect;
use kiln::disk::qcow2::header::Qcow2Header;
use kiln::specfile::BaseFormat;

/// How much of the disk is read: every table that a small file can hold, without a minute for each terabyte of zeroes.
const EXTENTS: usize = 256;
const BYTES: usize = 1 << 16;

pub fn check(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    let header = Qcow2Header::parse(bytes, bytes.len() as u64);
    for format in [BaseFormat::Qcow2, BaseFormat::Raw] {
        if let Ok(facts) = inspect(&file, format)
            && format == BaseFormat::Qcow2
        {
            let header = header.as_ref().expect("inspected without a header");
            assert!(header.backing.is_none() && header.snapshots == 0, "{header:?}");
            assert_eq!(facts.virtual_size, header.virtual_size);
        }
        // Overlays are not inspected: reading must hold on its own.
        read(file.try_clone().expect("a descriptor"), format);
    }
}

fn read(file: File, format: BaseFormat) {
    let Ok(chain) = Chain::open(vec![ChainFile { file, format: format.into() }]) else { return };
    let mut end = 0;
    for extent in chain.extents().take(EXTENTS) {
        let Ok(extent) = extent else { return };
        assert!(extent.range.start == end && extent.range.end > end, "{extent:?} begins not at {end}");
        end = extent.range.end;
        if extent.data {
            let length = usize::try_from(end - extent.range.start).map_or(BYTES, |length| length.min(BYTES));
            let _ = chain.read_at(extent.range.start, &mut vec![0; length]);
        }
    }
}
