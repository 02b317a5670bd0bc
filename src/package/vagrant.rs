//! A box for Vagrant's libvirt provider: a tar.gz with the disk as qcow2, and metadata for the provider.
//!
//! The provider supports two versions of `metadata.json` ("Boxes" in vagrant-libvirt's documentation): with one disk, whose
//! size is stated in whole GiB, and with a list of disks, whose sizes it finds out itself.

use serde_json::json;

use crate::specfile::FirmwareKind;

use super::content::PackageContent;
use super::tar::{Archive, Format, TarOwner};
use super::{PackageError, PackageFacts};

/// Path of the firmware for UEFI guests in Debian, and most other distributions.
const UEFI: &str = "/usr/share/OVMF/OVMF_CODE.fd";

/// Version of `metadata.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoxVersion {
    /// The version with one disk.
    One,
    /// The version with a list of disks.
    Two,
}

/// Creates the archive of a qcow2 file, not compressed yet.
///
/// # Errors
/// Only by a bug: no name in it is long.
pub fn archive(
    facts: &PackageFacts,
    version: BoxVersion,
    disk: PackageContent,
) -> Result<PackageContent, PackageError> {
    let (name, metadata) = match version {
        // Rounded up: a volume smaller than its disk would truncate it.
        BoxVersion::One => {
            let size = facts.disk_size.div_ceil(1 << 30);
            ("box.img", json!({ "provider": "libvirt", "format": "qcow2", "virtual_size": size }))
        }
        BoxVersion::Two => {
            ("box_0.img", json!({ "provider": "libvirt", "disks": [{ "format": "qcow2", "path": "box_0.img" }] }))
        }
    };
    let mut archive = Archive::new(Format::OldGnu, facts.time);
    archive.file("metadata.json", TarOwner::default(), format!("{metadata}\n").into_bytes())?;
    archive.file("Vagrantfile", TarOwner::default(), vagrantfile(facts).into_bytes())?;
    archive.file(name, TarOwner::default(), disk)?;
    Ok(archive.finish())
}

/// Returns a Vagrantfile with the machine that the image was tested in. A user's own Vagrantfile takes precedence.
fn vagrantfile(facts: &PackageFacts) -> String {
    let memory = facts.memory.bytes() >> 20;
    let loader =
        if facts.firmware == FirmwareKind::Uefi { format!("    libvirt.loader = \"{UEFI}\"\n") } else { String::new() };
    format!(
        "Vagrant.configure(\"2\") do |config|\n  config.vm.provider :libvirt do |libvirt|\n    libvirt.cpus = {}\n    \
         libvirt.memory = {memory}\n{loader}  end\nend\n",
        facts.cpus
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::testing::{facts, members_of, names};
    use super::*;

    fn box_of(facts: &PackageFacts, version: BoxVersion) -> (Value, String, Vec<u8>) {
        let archive = archive(facts, version, b"qcow2".to_vec().into()).unwrap();
        let members = members_of(&archive);
        let disk = if version == BoxVersion::One { "box.img" } else { "box_0.img" };
        assert_eq!(names(&members), ["metadata.json", "Vagrantfile", disk]);
        assert!(members.iter().all(|member| member.owner == (0, 0) && member.modified == facts.time));
        let [metadata, vagrantfile, disk] = members.try_into().unwrap();
        (serde_json::from_slice(&metadata.data).unwrap(), String::from_utf8(vagrantfile.data).unwrap(), disk.data)
    }

    #[test]
    fn a_disk_is_never_cut_to_whole_gib() {
        for (bytes, gib) in [(1, 1), (1 << 30, 1), ((1 << 30) + 1, 2), (3 << 30, 3)] {
            let (metadata, _, disk) = box_of(&PackageFacts { disk_size: bytes, ..facts() }, BoxVersion::One);
            assert_eq!(metadata, json!({ "provider": "libvirt", "format": "qcow2", "virtual_size": gib }));
            assert_eq!(disk, b"qcow2");
        }
    }

    #[test]
    fn the_second_version_lists_its_disk() {
        let (metadata, vagrantfile, _) = box_of(&facts(), BoxVersion::Two);
        assert_eq!(metadata["disks"], json!([{ "format": "qcow2", "path": "box_0.img" }]));
        assert!(vagrantfile.contains("libvirt.memory = 1536\n") && !vagrantfile.contains("loader"));
    }

    #[test]
    fn a_guest_with_uefi_gets_it() {
        let (_, vagrantfile, _) = box_of(&PackageFacts { firmware: FirmwareKind::Uefi, ..facts() }, BoxVersion::One);
        assert!(
            vagrantfile.contains("libvirt.loader = \"/usr/share/OVMF/OVMF_CODE.fd\"\n  end\nend\n"),
            "{vagrantfile}"
        );
    }
}
