//! Size limits of formats, checked before anything boots.

use crate::error::{Fault, Kind};
use crate::specfile::OutputFormat;

const GIB: u64 = 1 << 30;

/// The size of the disk is not a multiple of what the platform accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {} output holds disks of whole GiB, and this one has {disk} bytes", format.name())]
pub struct DiskSizeError {
    /// Format of the output.
    format: OutputFormat,
    /// Size of the disk, bytes.
    disk: u64,
}

impl Fault for DiskSizeError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        vec![format!("build it with `machine.disk = \"{}GiB\"`", self.disk.div_ceil(GIB))]
    }
}

/// Checks whether an output of this format can hold a disk of so many bytes. Google's page on importing images asks for
/// whole GiB.
///
/// # Errors
/// When the output cannot hold the disk.
pub fn check(format: OutputFormat, disk: u64) -> Result<(), DiskSizeError> {
    if format == OutputFormat::Gcp && !disk.is_multiple_of(GIB) {
        return Err(DiskSizeError { format, disk });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks fault row O2.
    #[test]
    fn o2_a_size_that_google_does_not_take_is_refused_with_one_that_it_does() {
        assert_eq!(check(OutputFormat::Gcp, 3 * GIB), Ok(()));
        let refused = check(OutputFormat::Gcp, 2 * GIB + (1 << 20)).unwrap_err();
        assert_eq!(refused.hints(), ["build it with `machine.disk = \"3GiB\"`"]);
        assert_eq!(check(OutputFormat::Qcow2, 2 * GIB + 512), Ok(()));
    }
}
