//! An OVA: descriptor, manifest and `streamOptimized` disk in one archive, in that order (DMTF DSP0243, 5.3 and 6).

use crate::progress::Progress;

use super::content::PackageContent;
use super::ovf::descriptor;
use super::tar::{Archive, Format, TarOwner};
use super::{PackageError, PackageFacts};

/// Creates the archive of a vmdk file. The manifest stands before the disk, so the disk is read once for its digest first;
/// `progress` counts these bytes.
///
/// # Errors
/// When the disk's file cannot be read or has 8 GiB or more, which the archive's format cannot represent, or the work is
/// cancelled.
pub fn archive(
    facts: &PackageFacts,
    disk: PackageContent,
    progress: &Progress<'_>,
) -> Result<PackageContent, PackageError> {
    // An image's name is short enough for an archive; together with its version it may not be.
    let [ovf, manifest, vmdk] = ["ovf", "mf", "vmdk"].map(|extension| format!("{}.{extension}", facts.name));
    let text = PackageContent::from(descriptor(facts, &vmdk, disk.len()).into_bytes());
    let sums = sum_line(&ovf, &text, progress)? + &sum_line(&vmdk, &disk, progress)?;
    let mut archive = Archive::new(Format::Ustar, facts.time);
    archive.file(&ovf, TarOwner::default(), text)?;
    archive.file(&manifest, TarOwner::default(), sums.into_bytes())?;
    archive.file(&vmdk, TarOwner::default(), disk)?;
    Ok(archive.finish())
}

/// Returns the line of a file in the manifest.
fn sum_line(name: &str, content: &PackageContent, progress: &Progress<'_>) -> Result<String, PackageError> {
    Ok(format!("SHA256({name})= {}\n", content.sha256(progress)?))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{facts, members_of, names, sha256};
    use super::*;

    #[test]
    fn the_descriptor_is_first_and_the_sums_are_right() {
        let archive = archive(&facts(), b"vmdk".to_vec().into(), &Progress::unwatched()).unwrap();
        let members = members_of(&archive);
        assert_eq!(names(&members), ["web.ovf", "web.mf", "web.vmdk"]);
        let sums = format!("SHA256(web.ovf)= {}\nSHA256(web.vmdk)= {}\n", sha256(&members[0].data), sha256(b"vmdk"));
        assert_eq!(String::from_utf8_lossy(&members[1].data), sums);
        assert_eq!(members[2].data, b"vmdk");
    }

    /// Covers fault row O2.
    #[test]
    fn o2_a_disk_that_ustar_cannot_hold_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 30).unwrap();
        let mut archive = Archive::new(Format::Ustar, 0);
        let refused = archive.file("web.vmdk", TarOwner::default(), PackageContent::file(file).unwrap());
        assert!(matches!(refused, Err(PackageError::MemberTooLarge { bytes, .. }) if bytes == 8 << 30));
    }
}
