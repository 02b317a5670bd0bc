//! The fixed VHD: the bytes of the disk, then a footer.
//!
//! Source: Microsoft's "Virtual Hard Disk Image Format Specification", 1.0: "Hard Disk Footer Format" and, for the geometry,
//! its appendix. Azure takes only this format, requires whole MiB, and uses the current size.

use std::fs::File;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::bytes::read_struct;
use super::source::LayerError;

pub(super) mod writer;

const COOKIE: &[u8; 8] = b"conectix";
const FIXED: U32 = U32::new(2);
/// QEMU's name for files whose size is the current size, whatever the geometry is. Hyper-V and Azure always use the current
/// size.
const CREATOR: &[u8; 4] = b"qem2";

/// The hard disk footer.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct VhdFooter {
    cookie: [u8; 8],
    features: U32,
    file_format_version: U32,
    data_offset: U64,
    time_stamp: U32,
    creator_application: [u8; 4],
    creator_version: U32,
    creator_host_os: [u8; 4],
    original_size: U64,
    current_size: U64,
    disk_geometry: [u8; 4],
    disk_type: U32,
    checksum: U32,
    unique_id: [u8; 16],
    _54: [u8; 428],
}

impl VhdFooter {
    fn new(size: u64, uuid: [u8; 16]) -> Self {
        let mut footer = Self {
            cookie: *COOKIE,
            features: U32::new(2), // the reserved bit, which is always set
            file_format_version: U32::new(0x0001_0000),
            data_offset: U64::MAX_VALUE, // no header follows
            creator_application: *CREATOR,
            creator_version: U32::new(0x0005_0003), // as QEMU writes it
            creator_host_os: *b"Wi2k",
            original_size: size.into(),
            current_size: size.into(),
            disk_geometry: geometry(size / 512),
            disk_type: FIXED,
            unique_id: uuid,
            ..Self::new_zeroed()
        };
        footer.checksum = footer.sum();
        footer
    }

    /// Returns the ones' complement of the sum of all bytes but those of the checksum.
    fn sum(&self) -> U32 {
        let counted = Self { checksum: U32::ZERO, ..*self };
        U32::new(!counted.as_bytes().iter().map(|byte| u32::from(*byte)).sum::<u32>())
    }
}

/// Returns cylinders, heads and sectors of a track, as the specification's appendix computes them.
fn geometry(sectors: u64) -> [u8; 4] {
    const LARGE: u32 = 65535 * 16 * 63;
    let sectors = u32::try_from(sectors).unwrap_or(u32::MAX).min(65535 * 16 * 255);
    let few_heads = (sectors / 17).div_ceil(1024).max(4);
    let (heads, track) = match sectors {
        LARGE.. => (16, 255),
        _ if few_heads <= 16 && sectors / 17 < few_heads * 1024 => (few_heads, 17),
        _ if sectors / 31 < 16 * 1024 => (16, 31),
        _ => (16, 63),
    };
    let [.., high, low] = (sectors / track / heads).to_be_bytes();
    [high, low, heads.to_be_bytes()[3], track.to_be_bytes()[3]]
}

/// Returns the size of the disk in a finished file, after checking that it is a fixed VHD.
pub(super) fn disk_size(file: &File) -> Result<u64, LayerError> {
    let at = file.metadata()?.len().checked_sub(size_of::<VhdFooter>() as u64);
    let size = at.ok_or_else(|| unknown("it is too short"))?;
    let footer: VhdFooter = read_struct(file, size, "vhd")?;
    if footer.cookie != *COOKIE || footer.checksum != footer.sum() {
        return Err(unknown("it has no footer, or a damaged one"));
    }
    if footer.disk_type != FIXED {
        return Err(unknown("it is not of fixed size"));
    }
    if footer.current_size.get() != size {
        return Err(unknown("its footer gives another size"));
    }
    Ok(size)
}

fn unknown(why: &str) -> LayerError {
    LayerError::Unknown { format: "vhd", why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

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
        let footer = VhdFooter::new(1 << 20, [7; 16]);
        let whole = footer.as_bytes();
        file.write_all_at(whole, 1 << 20).unwrap();
        assert_eq!(disk_size(&file).unwrap(), 1 << 20);
        for at in 0..whole.len() {
            let mut broken = whole.to_vec();
            broken[at] ^= 1;
            file.write_all_at(&broken, 1 << 20).unwrap();
            assert!(disk_size(&file).is_err(), "byte {at}");
        }
        file.write_all_at(whole, 1 << 20).unwrap();
        file.write_all_at(whole, (1 << 20) + 512).unwrap();
        assert!(disk_size(&file).unwrap_err().to_string().contains("another size"));
    }
}
