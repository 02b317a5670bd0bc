//! Parses the header of a qcow2 file: every field is checked before anything uses it.
//!
//! Source: QEMU's `docs/interop/qcow2.rst`, sections "Header", "Additional fields" and "Header extensions". If QEMU has a
//! tighter limit than the format, kiln has the same, so that a header that passes here does not fail there.

use std::ops::Range;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::disk::bytes::be32;
use crate::disk::header_error::HeaderError;

/// The first four bytes of every qcow2 file.
pub const MAGIC: &[u8; 4] = b"QFI\xfb";

/// How much of the file's beginning [`Qcow2Header::parse`] may examine, in bytes: the largest cluster.
pub const HEAD_LIMIT: usize = 2 << 20;

/// The largest disk in bytes: more than any disk that kiln builds. A larger one is a mistake or an attack on programs that
/// allocate by the size.
const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// The largest L1 table in bytes: 64 TiB in clusters of 32 KiB. QEMU allows 32 MiB; kiln holds the whole table in memory.
const MAX_L1_BYTES: u64 = 8 << 20;
/// The largest refcount table in bytes, as limited by QEMU ("Host cluster management").
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_BACKING_NAME: u64 = 1023;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const LAZY_REFCOUNTS: u64 = 1;
const DATA_FILE_RAW: u64 = 1 << 1;

/// The compression types.
const DEFLATE: u8 = 0;
const ZSTD: u8 = 1;

const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;

/// The compression of compressed clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Raw deflate, which QEMU calls zlib.
    Deflate,
    /// Zstandard frames.
    Zstd,
}

impl Codec {
    /// Returns the incompatible feature bits and the compression type that declare this codec.
    pub(super) fn declaration(self) -> (u64, u8) {
        match self {
            Self::Deflate => (0, DEFLATE),
            Self::Zstd => (COMPRESSION_TYPE, ZSTD),
        }
    }
}

/// The parsed header, after all checks that apply to bases and overlays alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// log2 of the cluster size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// Size of the disk the guest sees, in bytes; whole sectors, at most 64 TiB.
    pub virtual_size: u64,
    /// The range of the L1 table in the file, in bytes.
    pub l1: Range<u64>,
    /// The range of the refcount table in the file, in bytes.
    pub refcounts: Range<u64>,
    /// log2 of the width of a reference count in bits, 0 to 6.
    pub refcount_order: u32,
    /// The name of the backing file, escaped for display. Never opened.
    pub backing: Option<String>,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// The last writer did not close the file.
    pub dirty: bool,
    /// Reference counts are written late.
    pub lazy_refcounts: bool,
    /// The compression of compressed clusters, if there are any.
    pub codec: Codec,
}

/// Checks that a condition holds; otherwise returns an error that names the field.
fn require(ok: bool, field: &'static str, value: u64, rule: &'static str) -> Result<(), HeaderError> {
    if ok { Ok(()) } else { Err(HeaderError::Field { field, value, rule }) }
}

impl Qcow2Header {
    /// Parses the header. `head` is the beginning of the file, at most [`HEAD_LIMIT`] bytes, and `file_size` the size of the
    /// whole file in bytes.
    ///
    /// # Errors
    /// When the format forbids a value, kiln does not support a feature, or a size is invalid.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, HeaderError> {
        if !head.starts_with(MAGIC) {
            return Err(HeaderError::Magic);
        }
        let raw = RawHeader::read(head).ok_or(HeaderError::Truncated)?;
        raw.check_ranges()?;
        raw.check_features()?;
        let codec = raw.codec()?;
        check_extensions(head, &raw)?;
        let (l1, refcounts) = raw.check_tables(file_size)?;
        Ok(Self {
            version: raw.version.get(),
            cluster_bits: raw.cluster_bits.get(),
            virtual_size: raw.size.get(),
            l1,
            refcounts,
            refcount_order: raw.refcount_order.get(),
            backing: (raw.backing_file_offset != U64::ZERO).then(|| raw.backing_name(head)),
            snapshots: raw.nb_snapshots.get(),
            dirty: raw.incompatible_features.get() & DIRTY != 0,
            lazy_refcounts: raw.compatible_features.get() & LAZY_REFCOUNTS != 0,
            codec,
        })
    }

    /// Returns the size of a cluster in bytes.
    #[must_use]
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }
}

/// The header as it is stored: the section "Header" for the first 72 bytes, "Additional fields" for the rest.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
pub(super) struct RawHeader {
    pub magic: [u8; 4],
    pub version: U32,
    pub backing_file_offset: U64,
    pub backing_file_size: U32,
    pub cluster_bits: U32,
    pub size: U64,
    pub crypt_method: U32,
    pub l1_size: U32,
    pub l1_table_offset: U64,
    pub refcount_table_offset: U64,
    pub refcount_table_clusters: U32,
    pub nb_snapshots: U32,
    pub snapshots_offset: U64,
    pub incompatible_features: U64,
    pub compatible_features: U64,
    pub autoclear_features: U64,
    pub refcount_order: U32,
    pub header_length: U32,
    pub compression_type: u8,
    pub padding: [u8; 7],
}

/// The length in bytes of a header with all fields.
pub(super) const HEADER_LENGTH: u32 = 112;
/// The length in bytes of a header of version 2.
const VERSION_2_LENGTH: u32 = 72;
/// The least length in bytes of a header of version 3, which ends before the compression type.
const VERSION_3_LENGTH: u32 = 104;

impl RawHeader {
    /// Reads the fields, unchecked. Fields that the header lacks get their default values. Returns `None` if `head` is too
    /// short.
    fn read(head: &[u8]) -> Option<Self> {
        let mut bytes = [0; HEADER_LENGTH as usize];
        let available = bytes.len().min(head.len());
        bytes[..available].copy_from_slice(&head[..available]);
        let mut header: Self = zerocopy::transmute!(bytes);
        if header.version.get() <= 2 {
            header.incompatible_features = U64::ZERO;
            header.compatible_features = U64::ZERO;
            header.autoclear_features = U64::ZERO;
            header.refcount_order = U32::new(4);
            header.header_length = U32::new(VERSION_2_LENGTH);
        }
        if header.header_length.get() <= VERSION_3_LENGTH {
            header.compression_type = 0;
        }
        let needed = match header.version.get() {
            ..=2 => VERSION_2_LENGTH,
            _ if header.header_length.get() > VERSION_3_LENGTH => VERSION_3_LENGTH + 1,
            _ => VERSION_3_LENGTH,
        };
        (head.len() >= needed as usize).then_some(header)
    }

    fn check_ranges(&self) -> Result<(), HeaderError> {
        let version = self.version.get();
        require(matches!(version, 2 | 3), "version", version.into(), "2 or 3")?;
        let cluster_bits = self.cluster_bits.get();
        require((9..=21).contains(&cluster_bits), "cluster_bits", cluster_bits.into(), "9 to 21")?;
        let size = self.size.get();
        require(size > 0, "size", size, "more than 0")?;
        // The format allows it, but QEMU cuts the rest off and so would read another disk than kiln.
        require(size.is_multiple_of(512), "size", size, "whole sectors of 512 bytes")?;
        require(size <= MAX_VIRTUAL_SIZE, "size", size, "at most 64 TiB")?;
        let refcount_order = self.refcount_order.get();
        require(refcount_order <= 6, "refcount_order", refcount_order.into(), "at most 6")?;
        if version == 3 {
            let length = u64::from(self.header_length.get());
            let minimum = u64::from(VERSION_3_LENGTH);
            let ok = length >= minimum && length.is_multiple_of(8) && length <= 1 << cluster_bits;
            require(ok, "header_length", length, "a multiple of 8, at least 104, at most a cluster")?;
        }
        let name = u64::from(self.backing_file_size.get());
        require(name <= MAX_BACKING_NAME, "backing_file_size", name, "at most 1023")
    }

    fn check_features(&self) -> Result<(), HeaderError> {
        let incompatible = self.incompatible_features.get();
        let unknown = incompatible & !(DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2);
        // QEMU ignores the raw-data-file bit alone today; kiln refuses an image that sets it all the same.
        let data_file = incompatible & DATA_FILE != 0 || self.autoclear_features.get() & DATA_FILE_RAW != 0;
        match () {
            () if data_file => Err(HeaderError::DataFile),
            () if self.crypt_method.get() != 0 => Err(HeaderError::Encrypted),
            () if incompatible & CORRUPT != 0 => Err(HeaderError::Corrupt),
            () if incompatible & EXTENDED_L2 != 0 => Err(HeaderError::ExtendedL2),
            () if unknown != 0 => Err(HeaderError::UnknownFeatures { bits: unknown }),
            () => Ok(()),
        }
    }

    fn codec(&self) -> Result<Codec, HeaderError> {
        match (self.incompatible_features.get() & COMPRESSION_TYPE != 0, self.compression_type) {
            (false, DEFLATE) => Ok(Codec::Deflate),
            (true, ZSTD) => Ok(Codec::Zstd),
            (_, kind) => Err(HeaderError::Compression { kind }),
        }
    }

    /// Returns the ranges of the L1 and the refcount table, after checking that they are aligned, large enough, within the
    /// file and disjoint.
    fn check_tables(&self, file_size: u64) -> Result<(Range<u64>, Range<u64>), HeaderError> {
        let cluster = self.cluster_size();
        let entries = u64::from(self.l1_size.get());
        // An L2 table is one cluster of 8-byte entries, each for one cluster.
        let needed = self.size.get().div_ceil(cluster * (cluster / 8));
        require(entries >= needed, "l1_size", entries, "enough for the virtual size")?;
        require(entries * 8 <= MAX_L1_BYTES, "l1_size", entries, "at most 1048576")?;
        let clusters = u64::from(self.refcount_table_clusters.get());
        require(clusters > 0, "refcount_table_clusters", clusters, "more than 0")?;
        let small = clusters * cluster <= MAX_REFCOUNT_TABLE_BYTES;
        require(small, "refcount_table_clusters", clusters, "at most 8 MiB in all")?;
        // kiln does not read that table, but QEMU refuses the file even if the table is empty.
        let at = self.snapshots_offset.get();
        let ok = at.is_multiple_of(cluster) && i64::try_from(at).is_ok();
        require(ok, "snapshots_offset", at, "at the start of a cluster")?;
        let l1 = self.table("the L1 table", self.l1_table_offset, entries * 8, file_size)?;
        let refcounts = self.table("the refcount table", self.refcount_table_offset, clusters * cluster, file_size)?;
        if l1.start < refcounts.end && refcounts.start < l1.end {
            return Err(HeaderError::Overlap { first: "the L1 table", second: "the refcount table" });
        }
        Ok((l1, refcounts))
    }

    fn table(&self, table: &'static str, start: U64, bytes: u64, file_size: u64) -> Result<Range<u64>, HeaderError> {
        let start = start.get();
        let cluster = self.cluster_size();
        require(start.is_multiple_of(cluster), table, start, "at the start of a cluster")?;
        if start < cluster {
            return Err(HeaderError::Overlap { first: "the header", second: table });
        }
        let at = start..start.saturating_add(bytes);
        if at.end > file_size {
            return Err(HeaderError::Outside { table, at, file_size });
        }
        Ok(at)
    }

    /// Returns the size of a cluster in bytes; the range of `cluster_bits` has been checked.
    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits.get()
    }

    fn backing_name(&self, head: &[u8]) -> String {
        let start = usize::try_from(self.backing_file_offset.get()).unwrap_or(usize::MAX);
        let length = self.backing_file_size.get() as usize;
        let name = start.checked_add(length).and_then(|end| head.get(start..end));
        name.unwrap_or_default().escape_ascii().to_string()
    }
}

/// Walks the header extensions. Those that would make QEMU open or decrypt something are refused even if their feature bit
/// is missing; all others are harmless to a reader.
fn check_extensions(head: &[u8], raw: &RawHeader) -> Result<(), HeaderError> {
    let cluster = 1usize << raw.cluster_bits.get();
    let area = &head[..cluster.min(head.len())];
    let mut at = raw.header_length.get() as usize;
    // The area ends with an extension of type 0, with the first cluster, or with the file.
    while let (Some(kind), Some(length)) = (be32(area, at), be32(area, at + 4)) {
        match kind {
            0 => break,
            EXTENSION_DATA_FILE => return Err(HeaderError::DataFile),
            EXTENSION_ENCRYPTION => return Err(HeaderError::Encrypted),
            _ => {}
        }
        at = at + 8 + (length as usize).next_multiple_of(8);
        if at > cluster {
            return Err(HeaderError::Extension);
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns a header as `qemu-img create` writes it for 1 GiB with clusters of 64 KiB.
    pub(crate) fn valid() -> Vec<u8> {
        let mut head = vec![0; 5 << 16];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        for (at, value) in [(4, 3u32), (20, 16), (36, 2), (56, 1), (96, 4), (100, 112)] {
            put(at, &value.to_be_bytes());
        }
        for (at, value) in [(24, 1u64 << 30), (40, 3 << 16), (48, 1 << 16)] {
            put(at, &value.to_be_bytes());
        }
        head
    }

    fn parse(head: &[u8]) -> Result<Qcow2Header, HeaderError> {
        Qcow2Header::parse(head, head.len() as u64)
    }

    fn with32(at: usize, value: u32) -> Vec<u8> {
        let mut head = valid();
        head[at..at + 4].copy_from_slice(&value.to_be_bytes());
        head
    }

    fn with64(at: usize, value: u64) -> Vec<u8> {
        let mut head = valid();
        head[at..at + 8].copy_from_slice(&value.to_be_bytes());
        head
    }

    #[test]
    fn a_plain_header_is_read() {
        let header = parse(&valid()).unwrap();
        assert_eq!((header.version, header.virtual_size, header.cluster_size()), (3, 1 << 30, 65536));
        assert_eq!((header.codec, header.backing, header.snapshots), (Codec::Deflate, None, 0));
    }

    #[test]
    fn b8_hostile_fields_are_refused_by_name() {
        let cases = [
            (with32(4, 9), "version"),
            (with32(4, 1), "version"),
            (with32(20, 0), "cluster_bits"),
            (with32(20, 40), "cluster_bits"),
            (with64(24, 0), "size"),
            (with64(24, 1 << 60), "size"),
            (with64(24, u64::MAX), "size"),
            (with64(24, (1 << 20) + 1), "size"),
            (with64(24, 2 << 30), "l1_size"),
            (with32(36, u32::MAX), "l1_size"),
            (with32(56, 0), "refcount_table_clusters"),
            (with32(56, u32::MAX), "refcount_table_clusters"),
            (with32(96, 60), "refcount_order"),
            (with32(100, 72), "header_length"),
            (with32(100, 106), "header_length"),
            (with32(100, u32::MAX), "header_length"),
            (with32(16, 5000), "backing_file_size"),
            (with64(40, 3 << 16 | 512), "the L1 table"),
        ];
        for (head, name) in cases {
            let error = parse(&head).unwrap_err();
            assert!(matches!(&error, HeaderError::Field { field, .. } if *field == name), "{name}: {error}");
        }
    }

    #[test]
    fn b8_b11_features_are_refused_by_what_they_mean() {
        let cases = [
            (with64(72, CORRUPT), HeaderError::Corrupt),
            (with64(72, DATA_FILE), HeaderError::DataFile),
            (with64(88, DATA_FILE_RAW), HeaderError::DataFile),
            (with64(72, EXTENDED_L2), HeaderError::ExtendedL2),
            (with64(72, 1 << 40), HeaderError::UnknownFeatures { bits: 1 << 40 }),
            (with64(72, COMPRESSION_TYPE), HeaderError::Compression { kind: 0 }),
            (with32(104, 1 << 24), HeaderError::Compression { kind: 1 }),
            (with32(32, 1), HeaderError::Encrypted),
            (with32(32, 2), HeaderError::Encrypted),
            (with32(112, EXTENSION_DATA_FILE), HeaderError::DataFile),
            (with32(112, EXTENSION_ENCRYPTION), HeaderError::Encrypted),
            (with64(112, 0xffff_ffff_0001_0000), HeaderError::Extension),
        ];
        for (head, expected) in cases {
            assert_eq!(parse(&head).unwrap_err(), expected);
        }
    }

    #[test]
    fn b8_tables_lie_within_the_file_and_apart() {
        assert!(matches!(parse(&with64(40, 5 << 16)), Err(HeaderError::Outside { .. })));
        assert!(matches!(parse(&with64(40, u64::MAX << 16)), Err(HeaderError::Outside { .. })));
        assert!(matches!(parse(&with64(40, 1 << 16)), Err(HeaderError::Overlap { .. })));
        assert!(matches!(parse(&with64(48, 0)), Err(HeaderError::Overlap { .. })));
    }

    #[test]
    fn b9_a_cut_header_is_truncated() {
        for length in 4..104 {
            assert_eq!(parse(&valid()[..length]), Err(HeaderError::Truncated), "{length}");
        }
    }

    #[test]
    fn b11_dirty_is_a_fact_and_a_backing_name_is_escaped() {
        assert!(parse(&with64(72, DIRTY)).unwrap().dirty);
        let mut head = with64(8, 1024);
        head[16..20].copy_from_slice(&3u32.to_be_bytes());
        head[1024..1027].copy_from_slice(b"a\x1bb");
        assert_eq!(parse(&head).unwrap().backing.as_deref(), Some("a\\x1bb"));
    }

    proptest! {
        #[test]
        fn no_mutation_panics(changes in prop::collection::vec((4usize..160, any::<u8>()), 1..12), cut in 0usize..400) {
            let mut head = valid();
            for (at, byte) in changes {
                head[at] = byte;
            }
            let _ = parse(&head);
            let _ = parse(&head[..cut]);
            let _ = Qcow2Header::parse(&head, u64::MAX);
        }
    }
}
