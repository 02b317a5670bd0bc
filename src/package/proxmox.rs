//! A script for Proxmox VE, beside the qcow2 file, that creates a virtual machine from it.
//!
//! Its options are those that the Proxmox documentation gives for cloud images ("Cloud-Init Support"): the disk on
//! virtio-scsi, a serial console, the guest agent, and a drive for cloud-init's data.

use crate::digest::Sha256Digest;
use crate::specfile::FirmwareKind;

use super::PackageFacts;

const TEMPLATE: &str = include_str!("proxmox.sh");
/// Options for UEFI, without the keys that make Secure Boot the default.
const UEFI: &str = " \\\n\t--bios ovmf --efidisk0 \"$storage:0,efitype=4m,pre-enrolled-keys=0\"";

/// Returns the content of the script. `disk` is the name of the qcow2 file beside it, `sha256` its digest, which is
/// checked first.
#[must_use]
pub fn script(facts: &PackageFacts, disk: &str, sha256: Sha256Digest) -> String {
    TEMPLATE
        .replace("@IMAGE@", &format!("{} {}", facts.name, facts.version))
        .replace("@NAME@", &host_name(&facts.name))
        .replace("@DISK@", disk)
        .replace("@SHA256@", &sha256.to_string())
        .replace("@CPUS@", &facts.cpus.to_string())
        .replace("@MEMORY@", &(facts.memory.bytes() >> 20).to_string())
        .replace("@FIRMWARE@", if facts.firmware == FirmwareKind::Uefi { UEFI } else { "" })
}

/// Returns a name that Proxmox accepts, which is a DNS name: letters, digits, `-` and `.`, at most 63 characters, and
/// neither of the last two at the end.
fn host_name(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c == '_' { '-' } else { c }).take(63).collect();
    plain
        .split('.')
        .map(|label| label.trim_matches('-'))
        .filter(|label| !label.is_empty())
        .collect::<Vec<_>>()
        .join(".")
}

#[cfg(test)]
mod tests {
    use super::super::testing::facts;
    use super::*;

    #[test]
    fn the_script_knows_its_disk_and_has_no_gap() {
        let sha256 = Sha256Digest::of("disk");
        let check = format!("echo '{sha256}' \"*$disk\"");
        for firmware in [FirmwareKind::Bios, FirmwareKind::Uefi] {
            let script = script(&PackageFacts { firmware, ..facts() }, "web-1.4.0+b1.qcow2", sha256);
            assert!(!script.contains('@') || script.matches('@').count() == 1, "{script}");
            assert!(script.contains("disk=$folder/web-1.4.0+b1.qcow2\n") && script.contains(&check));
            assert_eq!(script.contains("efidisk0"), firmware == FirmwareKind::Uefi);
            assert!(script.contains("--cores 2 --memory 1536 \\\n"));
        }
    }

    #[test]
    fn a_name_is_made_one_of_the_dns() {
        for (name, host) in [("web", "web"), ("my_app.v2", "my-app.v2"), ("a-", "a"), ("a_.-b", "a.b")] {
            assert_eq!(host_name(name), host);
        }
    }
}
