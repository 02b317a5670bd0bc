//! The formats of outputs: what is known of each stands in one row here, and nowhere else.
//!
//! ```text
//! OutputFormat (what a spec asks for) --disk--> DiskFormat (one file that holds the disk)
//!                                     \-besides--> files that are made of it, or go with it
//! ```
//! A new output format is one row of `formats!`: a package around a disk says which disk file it wraps, whether that file
//! is published as well, and what other files it consists of. The plan gives each file its name, and sees to it that two
//! outputs that need the same disk file share it; the conversion writes disk files and knows of nothing else.

use super::BaseFormat;

/// What one output format is.
struct Row {
    /// In specs and manifests.
    name: &'static str,
    /// The file that holds the disk: the output itself, or what it is made of.
    disk: DiskFormat,
    /// Whether the disk file is among the output's files. One that is not is needed only while the others are made.
    keeps_disk: bool,
    /// Its other files, by their file name extensions.
    besides: &'static [&'static str],
    /// What `compression` may say, of the disk inside; the default comes first.
    compressions: &'static [Compression],
}

impl Row {
    /// An output that is a disk file and nothing else.
    const fn of_disk(disk: DiskFormat, compressions: &'static [Compression]) -> Self {
        Self { name: disk.name(), disk, keeps_disk: true, besides: &[], compressions }
    }

    /// A package: other files, and the disk file among them if it is kept.
    const fn package(
        name: &'static str,
        (disk, keeps_disk): (DiskFormat, bool),
        besides: &'static [&'static str],
        compressions: &'static [Compression],
    ) -> Self {
        Self { name, disk, keeps_disk, besides, compressions }
    }
}

/// Of a qcow2 file that goes to other people: zlib, which every QEMU and every inspector reads.
const PORTABLE: &[Compression] = &[Compression::Zlib, Compression::Zstd, Compression::None];

/// Declares the formats: a variant and its row.
macro_rules! formats {
    ($($(#[doc = $about:literal])+ $format:ident = $row:expr,)+) => {
        /// Format of an output.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum OutputFormat {
            $($(#[doc = $about])+ $format,)+
        }

        impl OutputFormat {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$format),+];

            const fn row(self) -> Row {
                match self { $(Self::$format => $row,)+ }
            }
        }
    };
}

formats! {
    /// QEMU's own.
    Qcow2 = Row::of_disk(DiskFormat::Qcow2, &[Compression::Zstd, Compression::Zlib, Compression::None]),
    /// The bytes of the disk, sparse.
    Raw = Row::of_disk(DiskFormat::Raw, &[Compression::None]),
    /// `VMware`'s, stream-optimised.
    Vmdk = Row::of_disk(DiskFormat::Vmdk, &[Compression::Zlib]),
    /// `VirtualBox`'s.
    Vdi = Row::of_disk(DiskFormat::Vdi, &[Compression::None]),
    /// Hyper-V's, dynamic.
    Vhdx = Row::of_disk(DiskFormat::Vhdx, &[Compression::None]),
    /// Azure's: a fixed VHD.
    Vhd = Row::of_disk(DiskFormat::Vhd, &[Compression::None]),
    /// Google's: the raw disk in a compressed archive.
    Gcp = Row::package("gcp", (DiskFormat::Raw, false), &["gcp.tar.gz"], &[Compression::None]),
    /// A machine with its disk, for `VMware`, `VirtualBox` and AWS.
    Ova = Row::package("ova", (DiskFormat::Vmdk, false), &["ova"], &[Compression::Zlib]),
    /// A box for Vagrant's libvirt provider, of its first version.
    Vagrant = Row::package("vagrant", (DiskFormat::Qcow2, false), &["box"], PORTABLE),
    /// The same, of its second version.
    VagrantV2 = Row::package("vagrant-v2", (DiskFormat::Qcow2, false), &["v2.box"], PORTABLE),
    /// What Incus and LXD import: metadata beside a qcow2 file.
    Incus = Row::package("incus", (DiskFormat::Qcow2, true), &["incus.tar.xz"], PORTABLE),
    /// An OCI image for `KubeVirt`.
    Containerdisk = Row::package("containerdisk", (DiskFormat::Qcow2, false), &["oci.tar"], PORTABLE),
    /// A qcow2 file with a script for Proxmox VE.
    Proxmox = Row::package("proxmox", (DiskFormat::Qcow2, true), &["proxmox.sh"], PORTABLE),
}

impl OutputFormat {
    /// The name in specs and manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The file that holds the disk: the output itself, or what it is made of.
    #[must_use]
    pub const fn disk(self) -> DiskFormat {
        self.row().disk
    }

    /// Whether the disk file is among the output's files.
    #[must_use]
    pub const fn keeps_disk(self) -> bool {
        self.row().keeps_disk
    }

    /// The file name extensions of its other files.
    #[must_use]
    pub const fn besides(self) -> &'static [&'static str] {
        self.row().besides
    }

    /// What may be asked of the compression inside; the default comes first, and there always is one.
    #[must_use]
    pub const fn compressions(self) -> &'static [Compression] {
        self.row().compressions
    }
}

/// Format of one file that holds the whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// QEMU's own.
    Qcow2,
    /// The bytes of the disk, sparse.
    Raw,
    /// `VMware`'s, stream-optimised: compressed grains, one after the other.
    Vmdk,
    /// `VirtualBox`'s.
    Vdi,
    /// Hyper-V's, dynamic.
    Vhdx,
    /// The fixed form of Hyper-V's older format, which Azure takes: the bytes of the disk, and a footer.
    Vhd,
}

impl DiskFormat {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Qcow2, Self::Raw, Self::Vmdk, Self::Vdi, Self::Vhdx, Self::Vhd];

    /// The name in manifests, which is also the file name extension.
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

    /// QEMU's driver.
    #[must_use]
    pub const fn driver(self) -> &'static str {
        match self {
            DiskFormat::Vhd => "vpc",
            other => other.name(),
        }
    }

    /// The format with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// The size of the disk in a file of this format, bytes: those of other virtual machines hold whole MiB. Azure asks for
    /// that, `VirtualBox` and Hyper-V count in it, and a VMDK has whole grains. Zeroes make up for what is missing.
    #[must_use]
    pub const fn virtual_size(self, disk: u64) -> u64 {
        match self {
            DiskFormat::Qcow2 | DiskFormat::Raw => disk,
            DiskFormat::Vmdk | DiskFormat::Vdi | DiskFormat::Vhdx | DiskFormat::Vhd => disk.next_multiple_of(1 << 20),
        }
    }
}

impl DiskFormat {
    /// The largest disk that others read in this format, bytes, where that is less than any disk kiln makes: what Azure and
    /// Hyper-V say of a VHD, the 32 bits of a VMDK's sectors, \[MS-VHDX\].
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
    /// Fast and small; QEMU 5.1 and newer read it.
    Zstd,
    /// For older readers.
    Zlib,
    /// None.
    None,
}

impl Compression {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Zlib, Self::None];

    /// The name in specs and manifests.
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
