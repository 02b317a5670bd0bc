//! The facts about this host that a plan depends on, as plain data. `machine::host` gathers them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::digest::Sha256Digest;
use crate::size::ByteSize;

/// The facts of one host at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Number of CPUs that this process may use, after affinity and cgroup quota.
    pub cpus: usize,
    /// The processor's model name; `unknown` where the kernel does not report one.
    pub cpu_model: String,
    /// Digest of what programs can use of this processor: its vendor, family, model and instruction sets. It stays the same
    /// across reboots and updates of the kernel and the microcode.
    pub processor: Sha256Digest,
    /// All memory of the host, or the limit of its cgroup where that is less.
    pub memory: ByteSize,
    /// The QEMU to use.
    pub qemu: Qemu,
    /// Whether KVM works on this host.
    pub kvm: KvmVerdict,
    /// UEFI firmware for the machine type, best first; empty where none is installed.
    pub firmware: Vec<UefiFirmware>,
}

/// An installed QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Qemu {
    /// Path of `qemu-system-x86_64`.
    pub system: PathBuf,
    /// Version of QEMU.
    pub version: QemuVersion,
    /// The newest versioned Q35 machine type it has, such as `pc-q35-10.0`: the guest sees the same hardware after an
    /// upgrade of QEMU.
    pub machine_type: String,
}

impl Qemu {
    /// Returns a placeholder for a QEMU that is missing or does not work: a plan can be made without one.
    pub fn unusable() -> Self {
        Self {
            system: "qemu-system-x86_64".into(),
            version: QemuVersion { major: 0, minor: 0, micro: 0 },
            machine_type: "q35".into(),
        }
    }

    /// Returns whether machines can be started with this QEMU.
    pub fn is_usable(&self) -> bool {
        self.version >= QemuVersion::OLDEST
    }
}

/// A version of QEMU. Ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QemuVersion {
    /// The first number of the version.
    pub major: u32,
    /// The second number of the version.
    pub minor: u32,
    /// The third number of the version; 50 and more is a development version.
    pub micro: u32,
}

impl QemuVersion {
    /// The oldest version that kiln supports.
    pub const OLDEST: Self = Self { major: 7, minor: 2, micro: 0 };
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Serialize for QemuVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// UEFI firmware as a pair of flash images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UefiFirmware {
    /// The executable image, shared and read-only.
    pub code: PathBuf,
    /// Format of the code image.
    pub code_format: FirmwareFormat,
    /// The template of the variable store, of which each machine gets a copy.
    pub vars_template: PathBuf,
    /// Format of the variable store.
    pub vars_format: FirmwareFormat,
    /// Whether it enforces Secure Boot, or can once keys are enrolled.
    pub secure_boot: bool,
    /// Whether it starts only on a machine with `smm=on`.
    pub requires_smm: bool,
    /// Path of the descriptor that names it, or of the code image where there is no descriptor.
    pub descriptor: PathBuf,
}

impl UefiFirmware {
    /// Returns a placeholder for the firmware of a host that has no QEMU.
    pub(crate) fn unknown() -> Self {
        Self {
            code: PathBuf::new(),
            code_format: FirmwareFormat::Raw,
            vars_template: PathBuf::new(),
            vars_format: FirmwareFormat::Raw,
            secure_boot: false,
            requires_smm: false,
            descriptor: PathBuf::new(),
        }
    }
}

/// The format of a flash image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareFormat {
    /// The bytes of the flash memory.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// Whether KVM works on this host, as a test run of a guest showed. `Display` gives the reason in one clause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum KvmVerdict {
    /// KVM works: a guest ran as expected.
    Usable,
    /// There is no KVM device, or nothing behind it.
    NoDevice,
    /// This user is not permitted to open the device.
    Denied,
    /// Another hypervisor uses the processor.
    Busy,
    /// The kernel's KVM is older than QEMU needs.
    OldApi {
        /// Names of the missing capabilities.
        lacks: Vec<&'static str>,
    },
    /// KVM's CPUs lack features that a stock x86-64 kernel or its programs use.
    MissingCpuFeatures {
        /// Names as in `/proc/cpuinfo`, except `sse3`, which is `pni` there.
        lacks: Vec<&'static str>,
    },
    /// A guest was stopped at an instruction that every processor since 2011 has.
    InternalError {
        /// Name of the instruction.
        at: &'static str,
        /// The result that was seen instead of the expected one.
        saw: String,
    },
    /// Instructions are emulated, or the guest did not end in time.
    TooSlow {
        /// Name of the instruction.
        at: &'static str,
        /// How long the guest ran.
        took: Duration,
    },
    /// The kernel refused for another reason.
    Error {
        /// The operation that failed.
        doing: &'static str,
        /// The kernel's error message.
        reason: String,
    },
}

impl KvmVerdict {
    /// Returns whether machines may use KVM.
    pub fn is_usable(&self) -> bool {
        *self == Self::Usable
    }

    /// Returns how to make KVM usable, or `None` where nothing can be done.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Usable => None,
            Self::NoDevice => Some(
                "turn on virtualisation in the host's firmware (in a VM: nested virtualisation) and run \
                 `modprobe kvm_intel` or `modprobe kvm_amd`; in a container add `--device /dev/kvm`",
            ),
            Self::Denied => Some("run `sudo usermod -aG kvm $USER` and log in again"),
            Self::Busy => Some("stop the other hypervisor (VirtualBox, VMware) and try again"),
            Self::OldApi { .. } => Some("install a newer kernel"),
            Self::MissingCpuFeatures { .. } | Self::InternalError { .. } | Self::TooSlow { .. } => {
                Some("use a host with hardware virtualisation, or `accel = \"tcg\"` (slower) on this one")
            }
            Self::Error { .. } => Some("look at `dmesg` for what KVM says, or use `accel = \"tcg\"` (slower)"),
        }
    }
}

impl fmt::Display for KvmVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable => f.write_str("KVM works here"),
            Self::NoDevice => f.write_str("this host has no KVM: there is no /dev/kvm, or nothing behind it"),
            Self::Denied => f.write_str("this user may not open /dev/kvm"),
            Self::Busy => f.write_str("KVM is busy: another hypervisor uses the processor"),
            Self::OldApi { lacks } => write!(f, "KVM here is too old for QEMU: it lacks {}", lacks.join(", ")),
            Self::MissingCpuFeatures { lacks } => {
                write!(f, "KVM here does not run a stock kernel: its CPUs lack {}", lacks.join(", "))
            }
            Self::InternalError { at, saw } => {
                write!(f, "KVM here does not run a stock kernel: its probe guest stopped at `{at}` with {saw}")
            }
            Self::TooSlow { at, took } => write!(
                f,
                "KVM here emulates instructions: its probe guest needed {} ms of a processor at `{at}`",
                took.as_millis()
            ),
            Self::Error { doing, reason } => write!(f, "KVM here fails at {doing}: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_says_why_and_what_to_do() {
        let verdict = KvmVerdict::MissingCpuFeatures { lacks: vec!["sse3", "cx16", "popcnt", "xsave"] };
        assert_eq!(
            verdict.to_string(),
            "KVM here does not run a stock kernel: its CPUs lack sse3, cx16, popcnt, xsave"
        );
        assert!(verdict.remedy().is_some_and(|text| text.contains("tcg")));
        assert!(!verdict.is_usable());
        assert_eq!(KvmVerdict::Usable.remedy(), None);
    }

    #[test]
    fn versions_are_ordered_as_numbers() {
        let ten = QemuVersion { major: 10, minor: 0, micro: 2 };
        assert!(ten > QemuVersion { major: 9, minor: 2, micro: 4 });
        assert!(ten > QemuVersion::OLDEST);
        assert_eq!(ten.to_string(), "10.0.2");
    }

    #[test]
    fn json_names_the_verdict() {
        let json = serde_json::to_value(KvmVerdict::Denied).expect("plain data");
        assert_eq!(json, serde_json::json!({ "verdict": "denied" }));
    }
}
