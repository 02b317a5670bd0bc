//! The formats of outputs: the properties of each are in one row here, and nowhere else.
//!
//! ```text
//! OutputFormat (what a spec asks for) --disk--> DiskFormat (one file that holds the disk)
//!                                     \-besides--> files that are produced from it, or belong to it
//! ```
//! A new output format is one row of `formats!`: a package around a disk names the disk file that it wraps, whether that
//! file is published as well, and the other files that it consists of. The plan names each file, and lets two outputs that
//! need the same disk file share it; the conversion writes disk files alone.

use super::BaseFormat;

/// The properties of one output format.
struct FormatRow {
    /// The name in specs and manifests.
    name: &'static str,
    /// The format of the disk file: the output itself, or the file that a package is produced from.
    disk: DiskFormat,
    /// Whether the disk file is among the output's files. One that is not is needed only while the package is written.
    keeps_disk: bool,
    /// The file name extensions of the output's other files.
    besides: &'static [&'static str],
    /// The values that `compression` accepts, for the disk inside; the default comes first.
    compressions: &'static [Compression],
}

impl FormatRow {
    /// Describes an output that is a disk file alone.
    const fn of_disk(disk: DiskFormat, compressions: &'static [Compression]) -> Self {
        Self { name: disk.name(), disk, keeps_disk: true, besides: &[], compressions }
    }

    /// Describes a package: other files, with the disk file among them if it is kept.
    const fn package(
        name: &'static str,
        (disk, keeps_disk): (DiskFormat, bool),
        besides: &'static [&'static str],
        compressions: &'static [Compression],
    ) -> Self {
        Self { name, disk, keeps_disk, besides, compressions }
    }
}

/// Compressions of a qcow2 file that goes to other people: zlib first, which every QEMU and every inspector reads.
const PORTABLE: &[Compression] = &[Compression::Zlib, Compression::Zstd, Compression::None];

/// Declares the formats: a variant and its row each.
macro_rules! formats {
    ($($(#[doc = $about:literal])+ $format:ident = $row:expr,)+) => {
        /// Format of an output.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum OutputFormat {
            $($(#[doc = $about])+ $format,)+
        }

        impl OutputFormat {
            /// All output formats.
            pub const ALL: &[Self] = &[$(Self::$format),+];

            const fn row(self) -> FormatRow {
                match self { $(Self::$format => $row,)+ }
            }
        }
    };
}

formats! {
    /// QEMU's qcow2 format.
    Qcow2 = FormatRow::of_disk(DiskFormat::Qcow2, &[Compression::Zstd, Compression::Zlib, Compression::None]),
    /// The bytes of the disk, as a sparse file.
    Raw = FormatRow::of_disk(DiskFormat::Raw, &[Compression::None]),
    /// The stream-optimised VMDK format of `VMware`.
    Vmdk = FormatRow::of_disk(DiskFormat::Vmdk, &[Compression::Zlib]),
    /// The VDI format of `VirtualBox`.
    Vdi = FormatRow::of_disk(DiskFormat::Vdi, &[Compression::None]),
    /// The dynamic VHDX format of Hyper-V.
    Vhdx = FormatRow::of_disk(DiskFormat::Vhdx, &[Compression::None]),
    /// A fixed VHD, as Azure takes it.
    Vhd = FormatRow::of_disk(DiskFormat::Vhd, &[Compression::None]),
    /// The raw disk in a compressed archive, as Google takes it.
    Gcp = FormatRow::package("gcp", (DiskFormat::Raw, false), &["gcp.tar.gz"], &[Compression::None]),
    /// A machine with its disk, for `VMware`, `VirtualBox` and AWS.
    Ova = FormatRow::package("ova", (DiskFormat::Vmdk, false), &["ova"], &[Compression::Zlib]),
    /// A box for Vagrant's libvirt provider, of its first version.
    Vagrant = FormatRow::package("vagrant", (DiskFormat::Qcow2, false), &["box"], PORTABLE),
    /// A box for Vagrant's libvirt provider, of its second version.
    VagrantV2 = FormatRow::package("vagrant-v2", (DiskFormat::Qcow2, false), &["v2.box"], PORTABLE),
    /// Metadata beside a qcow2 file, as Incus and LXD import it.
    Incus = FormatRow::package("incus", (DiskFormat::Qcow2, true), &["incus.tar.xz"], PORTABLE),
    /// An OCI image for `KubeVirt`.
    Containerdisk = FormatRow::package("containerdisk", (DiskFormat::Qcow2, false), &["oci.tar"], PORTABLE),
    /// A qcow2 file with a script for Proxmox VE.
    Proxmox = FormatRow::package("proxmox", (DiskFormat::Qcow2, true), &["proxmox.sh"], PORTABLE),
}

impl OutputFormat {
    /// Returns the name in specs and manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Returns the format of the disk file: the output itself, or the file that a package is produced from.
    #[must_use]
    pub const fn disk(self) -> DiskFormat {
        self.row().disk
    }

    /// Returns whether the disk file is among the output's files.
    #[must_use]
    pub const fn keeps_disk(self) -> bool {
        self.row().keeps_disk
    }

    /// Returns the file name extensions of the output's other files.
    #[must_use]
    pub const fn besides(self) -> &'static [&'static str] {
        self.row().besides
    }

    /// Returns the values that `compression` accepts; never empty, the default comes first.
    #[must_use]
    pub const fn compressions(self) -> &'static [Compression] {
        self.row().compressions
    }
}

/// The format of a file that holds the whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// QEMU's qcow2 format.
    Qcow2,
    /// The bytes of the disk, as a sparse file.
    Raw,
    /// The stream-optimised VMDK format of `VMware`: compressed grains, one after the other.
    Vmdk,
    /// The VDI format of `VirtualBox`.
    Vdi,
    /// The dynamic VHDX format of Hyper-V.
    Vhdx,
    /// The fixed form of Hyper-V's older format, which Azure takes: the bytes of the disk, and a footer.
    Vhd,
}

impl DiskFormat {
    /// All disk formats.
    pub const ALL: [Self; 6] = [Self::Qcow2, Self::Raw, Self::Vmdk, Self::Vdi, Self::Vhdx, Self::Vhd];

    /// Returns the name in manifests, which is also the file name extension.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
            DiskFormat::Vmdk => "vmdk",
            DiskFormat::Vdi => "vdi",
            DiskFormat::Vhdx => "vhdx",
            DiskFormat::Vhd => "vhd",
        }
    }

    /// Returns the name of QEMU's block driver for the format.
    #[must_use]
    pub const fn driver(self) -> &'static str {
        match self {
            DiskFormat::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// Returns the format with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Returns the virtual size of a disk in a file of this format, bytes: the formats of other hypervisors hold whole MiB.
    /// Azure requires that, `VirtualBox` and Hyper-V count in MiB, and a VMDK has whole grains. The disk is padded with
    /// zeros.
    #[must_use]
    pub const fn virtual_size(self, disk: u64) -> u64 {
        match self {
            DiskFormat::Qcow2 | DiskFormat::Raw => disk,
            DiskFormat::Vmdk | DiskFormat::Vdi | DiskFormat::Vhdx | DiskFormat::Vhd => disk.next_multiple_of(1 << 20),
        }
    }
}

impl DiskFormat {
    /// Returns the largest disk that others read in this format, bytes, where that is less than any disk kiln makes.
    /// Sources: the documentation of Azure and Hyper-V for VHD, the 32 bits of a VMDK's sectors, \[MS-VHDX\].
    #[must_use]
    pub const fn largest(self) -> Option<u64> {
        match self {
            DiskFormat::Vhd => Some(2040 << 30),
            DiskFormat::Vmdk => Some(2 << 40),
            DiskFormat::Vhdx => Some(64 << 40),
            DiskFormat::Qcow2 | DiskFormat::Raw | DiskFormat::Vdi => None,
        }
    }
}

impl From<BaseFormat> for DiskFormat {
    fn from(format: BaseFormat) -> Self {
        match format {
            BaseFormat::Qcow2 => DiskFormat::Qcow2,
            BaseFormat::Raw => DiskFormat::Raw,
        }
    }
}

/// Compression of the disk inside an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Zstandard, fast and small; QEMU 5.1 and newer read it.
    Zstd,
    /// Deflate, for older readers.
    Zlib,
    /// No compression.
    None,
}

impl Compression {
    /// All compressions.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Zlib, Self::None];

    /// Returns the name in specs and manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Compression::Zstd => "zstd",
            Compression::Zlib => "zlib",
            Compression::None => "none",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_format_has_files_and_a_default() {
        let mut names: Vec<_> = OutputFormat::ALL.iter().map(|format| format.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OutputFormat::ALL.len());
        for format in OutputFormat::ALL {
            assert!(format.keeps_disk() || !format.besides().is_empty(), "{format:?}");
            assert!(!format.compressions().is_empty(), "{format:?}");
        }
    }

    #[test]
    fn foreign_disks_are_whole_mib() {
        for format in DiskFormat::ALL {
            let whole = if matches!(format, DiskFormat::Qcow2 | DiskFormat::Raw) { (1 << 20) + 512 } else { 2 << 20 };
            assert_eq!(format.virtual_size((1 << 20) + 512), whole, "{format:?}");
            assert_eq!(format.virtual_size(3 << 20), 3 << 20);
        }
    }
}
