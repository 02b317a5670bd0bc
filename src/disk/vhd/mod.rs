//! The fixed VHD: the bytes of the disk, then a footer.
//!
//! Source: Microsoft's "Virtual Hard Disk Image Format Specification", 1.0: "Hard Disk Footer Format" and, for the geometry,
//! its appendix. Azure takes only this format, requires whole MiB, and uses the current size.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::bytes::{be32, be64};
use super::source::LayerError;

pub(super) mod writer;

const FOOTER: usize = 512;
const COOKIE: &[u8] = b"conectix";
const FIXED: u32 = 2;
/// The offset of the checksum, which counts as zero in itself.
const CHECKSUM: usize = 64;
/// QEMU's name for files whose size is the current size, whatever the geometry is. Hyper-V and Azure always use the current
/// size.
const CREATOR: &[u8] = b"qem2";

fn footer(size: u64, uuid: &[u8; 16]) -> [u8; FOOTER] {
    let mut footer = [0; FOOTER];
    let mut put = |at: usize, bytes: &[u8]| footer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, COOKIE);
    put(8, &2_u32.to_be_bytes()); // features: the reserved bit, which is always set
    put(12, &0x0001_0000_u32.to_be_bytes()); // version of the format
    put(16, &u64::MAX.to_be_bytes()); // no header follows
    put(28, CREATOR); // after a time stamp, which is left zero
    put(32, &0x0005_0003_u32.to_be_bytes()); // the creator's version, as QEMU writes it
    put(36, b"Wi2k");
    put(40, &size.to_be_bytes()); // original size
    put(48, &size.to_be_bytes()); // current size
    put(56, &geometry(size / 512));
    put(60, &FIXED.to_be_bytes());
    put(68, uuid);
    let sum = checksum(&footer);
    footer[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
    footer
}

/// Returns cylinders, heads and sectors of a track, as the specification's appendix computes them.
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = u32::try_from(sectors).unwrap_or(u32::MAX).min(65535 * 16 * 255);
    let (track, mut heads, mut rest);
    if sectors >= 65535 * 16 * 63 {
        (track, heads, rest) = (255, 16, sectors / 255);
    } else {
        (heads, rest) = ((sectors / 17).div_ceil(1024).max(4), sectors / 17);
        if rest >= heads * 1024 || heads > 16 {
            (heads, rest) = (16, sectors / 31);
            track = if rest >= heads * 1024 { 63 } else { 31 };
            rest = if track == 63 { sectors / 63 } else { rest };
        } else {
            track = 17;
        }
    }
    let [.., high, low] = (rest / heads).to_be_bytes();
    [high, low, heads.to_be_bytes()[3], u32::to_be_bytes(track)[3]]
}

/// Returns the ones' complement of the sum of all other bytes.
fn checksum(footer: &[u8]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    !(sum(&footer[..CHECKSUM]) + sum(&footer[CHECKSUM + 4..]))
}

/// Returns the size of the disk in a finished file, after checking that it is a fixed VHD.
pub(super) fn disk_size(file: &File) -> Result<u64, LayerError> {
    let unknown = |why: &str| LayerError::Unknown { format: "vhd", why: why.to_owned() };
    let size = file.metadata()?.len().checked_sub(FOOTER as u64).ok_or_else(|| unknown("it is too short"))?;
    let mut footer = [0; FOOTER];
    file.read_exact_at(&mut footer, size)?;
    if !footer.starts_with(COOKIE) || be32(&footer, CHECKSUM) != Some(checksum(&footer)) {
        return Err(unknown("it has no footer, or a damaged one"));
    }
    if be32(&footer, 60) != Some(FIXED) {
        return Err(unknown("it is not of fixed size"));
    }
    if be64(&footer, 48) != Some(size) {
        return Err(unknown("its footer gives another size"));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_geometry_never_holds_more_than_the_disk_and_follows_the_specification() {
        let parts = |mib: u64| {
            let [high, low, heads, track] = geometry(mib << 11);
            (u32::from(high) << 8 | u32::from(low), u32::from(heads), u32::from(track))
        };
        for (mib, expected) in
            [(1, (30, 4, 17)), (512, (1040, 16, 63)), (2048, (4161, 16, 63)), (8192, (16644, 16, 63))]
        {
            assert_eq!(parts(mib), expected, "{mib} MiB");
            let (cylinders, heads, track) = expected;
            assert!(u64::from(cylinders * heads * track) <= mib << 11);
        }
        assert_eq!(parts(2040 << 10), (65535, 16, 255));
    }

    #[test]
    fn a_footer_that_is_damaged_anywhere_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let whole = footer(1 << 20, &[7; 16]);
        file.write_all_at(&whole, 1 << 20).unwrap();
        assert_eq!(disk_size(&file).unwrap(), 1 << 20);
        for at in 0..FOOTER {
            let mut broken = whole;
            broken[at] ^= 1;
            file.write_all_at(&broken, 1 << 20).unwrap();
            assert!(disk_size(&file).is_err(), "byte {at}");
        }
        file.write_all_at(&whole, 1 << 20).unwrap();
        file.write_all_at(&whole, (1 << 20) + 512).unwrap();
        assert!(disk_size(&file).unwrap_err().to_string().contains("another size"));
    }
}
