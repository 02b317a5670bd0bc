//! Platforms that images are for: which format each accepts, and what it requires of the guest.
//!
//! The requirements are taken from each platform's documentation, whose pages are named below; none was tried on the
//! platform itself.

use super::OutputFormat;

/// A platform that an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Platform {
    /// Microsoft Azure ("Create and upload a Linux VHD", "Generic steps").
    Azure,
    /// Google Compute Engine ("Manually import boot disks", "Image configuration").
    Gce,
    /// Amazon EC2 ("Requirements for resources that you import into VM Import/Export").
    Aws,
    /// Proxmox VE (`qm(1)`, "Cloud-Init Support").
    Proxmox,
    /// `VMware` vSphere and its desktop products.
    Vmware,
    /// Oracle `VirtualBox`.
    Virtualbox,
    /// `OpenStack` ("Image requirements" of the Virtual Machine Image Guide).
    Openstack,
    /// libvirt with QEMU.
    Libvirt,
}

/// A driver of the kernel, by the names that it has had.
pub type Driver = &'static [&'static str];

/// The requirements of a platform on a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlatformNeeds {
    /// The required drivers, each with what does not work without it.
    pub drivers: &'static [(Driver, &'static str)],
    /// Whether a console on the first serial port is required.
    pub serial_console: bool,
    /// Packages of which one is required, and what it is for.
    pub agents: &'static [(&'static [&'static str], &'static str)],
}

const VIRTIO: &[(Driver, &str)] =
    &[(&["virtio_blk", "virtio_scsi"], "its disk"), (&["virtio_net"], "its network card"), (&["virtio_pci"], "either")];
const CLOUD_INIT: (&[&str], &str) = (&["cloud-init", "ignition", "afterburn"], "keys and user data");
const GUEST_AGENT: (&[&str], &str) = (&["qemu-guest-agent"], "clean shutdowns, addresses and consistent backups");

/// Drivers of the machine that an OVA describes: the controller and the network card that its importers give it.
pub const OVA_DRIVERS: &[(Driver, &str)] = &[(&["mptspi"], "its disk"), (&["e1000"], "its network card")];

impl Platform {
    /// All platforms, with their names in specs.
    pub const ALL: [(&str, Self); 8] = [
        ("azure", Self::Azure),
        ("gce", Self::Gce),
        ("aws", Self::Aws),
        ("proxmox", Self::Proxmox),
        ("vmware", Self::Vmware),
        ("virtualbox", Self::Virtualbox),
        ("openstack", Self::Openstack),
        ("libvirt", Self::Libvirt),
    ];

    /// Returns the name in specs.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// Returns the formats that the platform accepts, the best first; never empty.
    #[must_use]
    pub fn formats(self) -> &'static [OutputFormat] {
        use OutputFormat::{Gcp, Ova, Proxmox, Qcow2, Raw, Vagrant, VagrantV2, Vdi, Vhd, Vhdx, Vmdk};
        match self {
            Self::Azure => &[Vhd],
            Self::Gce => &[Gcp],
            Self::Aws => &[Vmdk, Raw, Ova, Vhd, Vhdx],
            Self::Proxmox => &[Proxmox, Qcow2, Raw],
            Self::Vmware => &[Ova, Vmdk],
            Self::Virtualbox => &[Ova, Vdi, Vmdk],
            Self::Openstack => &[Qcow2, Raw, Vmdk, Vdi, Vhdx],
            Self::Libvirt => &[Qcow2, Raw, Vagrant, VagrantV2],
        }
    }

    /// Returns the platform's requirements on a guest.
    #[must_use]
    pub fn needs(self) -> PlatformNeeds {
        match self {
            Self::Azure => PlatformNeeds {
                drivers: &[
                    (&["hv_vmbus"], "all of its devices"),
                    (&["hv_storvsc"], "its disk"),
                    (&["hv_netvsc"], "its network card"),
                ],
                serial_console: true,
                agents: &[(&["walinuxagent", "WALinuxAgent", "cloud-init"], "telling Azure that it has started")],
            },
            Self::Gce => PlatformNeeds {
                drivers: &[
                    (&["virtio_scsi", "nvme"], "its disk"),
                    (&["virtio_net", "gve"], "its network card"),
                    (&["virtio_pci"], "either"),
                ],
                serial_console: true,
                agents: &[(&["google-guest-agent", "cloud-init"], "keys and start-up scripts")],
            },
            Self::Aws => PlatformNeeds {
                drivers: &[
                    (&["nvme"], "its disk on Nitro"),
                    (&["ena"], "its network card on Nitro"),
                    (&["xen_blkfront"], "its disk on Xen"),
                ],
                serial_console: true,
                agents: &[CLOUD_INIT],
            },
            Self::Proxmox | Self::Openstack => {
                PlatformNeeds { drivers: VIRTIO, serial_console: true, agents: &[CLOUD_INIT, GUEST_AGENT] }
            }
            Self::Libvirt => PlatformNeeds { drivers: VIRTIO, serial_console: true, agents: &[GUEST_AGENT] },
            Self::Vmware => PlatformNeeds {
                drivers: &[
                    (&["vmw_pvscsi", "mptspi", "ahci"], "its disk"),
                    (&["vmxnet3", "e1000", "e1000e"], "its network card"),
                ],
                serial_console: false,
                agents: &[(&["open-vm-tools"], "clean shutdowns and addresses")],
            },
            Self::Virtualbox => PlatformNeeds {
                drivers: &[(&["ahci", "ata_piix"], "its disk"), (&["e1000", "virtio_net"], "its network card")],
                serial_console: false,
                agents: &[],
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_platform_has_its_own_name_and_a_format() {
        for (name, platform) in Platform::ALL {
            assert_eq!(platform.name(), name);
            assert!(!platform.formats().is_empty(), "{name}");
        }
    }
}
