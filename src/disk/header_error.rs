//! Errors of qcow2 headers.

use std::ops::Range;

/// The reason why a header is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file ends within its header.
    #[error("the file ends within its qcow2 header: it is truncated")]
    Truncated,
    /// The file is not qcow2.
    #[error("the file does not begin as a qcow2 file does")]
    Magic,
    /// A field is out of its range.
    #[error("qcow2 header: {field} is {value}; it must be {rule}")]
    Field {
        /// The field's name in the format's specification.
        field: &'static str,
        /// The value in the file.
        value: u64,
        /// The allowed values.
        rule: &'static str,
    },
    /// The guest's data is in another file.
    #[error("the image keeps its data in an external data file, which could be any file of this host")]
    DataFile,
    /// The image is encrypted with AES or LUKS.
    #[error("the image is encrypted")]
    Encrypted,
    /// The image uses subclusters.
    #[error("the image has extended L2 entries (subclusters), which kiln does not read yet")]
    ExtendedL2,
    /// QEMU has marked the image as damaged.
    #[error("the image is marked corrupt")]
    Corrupt,
    /// The image uses features that kiln does not know.
    #[error("the image needs features kiln does not know (incompatible bits {bits:#x})")]
    UnknownFeatures {
        /// The bits of the unknown features.
        bits: u64,
    },
    /// The compression is neither deflate nor zstd, or the field contradicts its feature bit.
    #[error("the image's compression type {kind} is unknown or contradicts its feature bits")]
    Compression {
        /// The value of the field.
        kind: u8,
    },
    /// A table is outside the file.
    #[error("{table} should be at bytes {}..{} of a file of {file_size} bytes: it is truncated or damaged", .at.start, .at.end)]
    Outside {
        /// The name of the table.
        table: &'static str,
        /// The range that the table should have.
        at: Range<u64>,
        /// The size of the file.
        file_size: u64,
    },
    /// Two tables share bytes.
    #[error("{first} and {second} overlap in the file")]
    Overlap {
        /// The name of one table.
        first: &'static str,
        /// The name of the other table.
        second: &'static str,
    },
    /// A header extension is longer than the space for it.
    #[error("a header extension does not fit into the first cluster")]
    Extension,
}
