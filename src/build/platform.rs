//! Whether a sealed guest has what the platforms need that it goes to. What is missing is a warning: nobody here can try, and
//! a guest may bring it in another way.

use std::collections::BTreeSet;

use crate::disk::packages::Package;
use crate::disk::tree::{Tree, TreeError};
use crate::spec::platform::Platform;

/// A kernel of a distribution has some 5000 modules, and a line of `modules.dep` a hundred bytes or more.
const MAX_LIST: u64 = 32 << 20;
/// The configuration of a boot loader.
const MAX_CONFIGURATION: u64 = 4 << 20;
/// Where distributions put the modules of their kernels.
const MODULES: [&str; 2] = ["/usr/lib/modules", "/lib/modules"];
/// Where the kernel's command line comes from at boot.
const BOOT_LOADERS: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/extlinux/extlinux.conf", "/etc/kernel/cmdline"];
/// Entries of the Boot Loader Specification, a file each.
const ENTRIES: [&str; 2] = ["/boot/loader/entries", "/boot/efi/loader/entries"];

/// What is known of a guest for platforms.
#[derive(Debug, Default)]
pub struct Guest {
    /// The drivers of its newest kernel, with `_` for `-`; `None` where no kernel was found.
    drivers: Option<BTreeSet<String>>,
    /// Whether some entry of its boot loader puts the console on a serial port.
    serial_console: bool,
    /// Names of its packages.
    packages: BTreeSet<String>,
}

impl Guest {
    /// Looks at a sealed tree.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn of(tree: &Tree<'_>, packages: &[Package]) -> Result<Self, TreeError> {
        Ok(Self {
            drivers: drivers(tree)?,
            serial_console: has_serial_console(tree)?,
            packages: packages.iter().map(|package| package.name.clone()).collect(),
        })
    }

    /// What a platform will miss, a sentence each.
    #[must_use]
    pub fn misses(&self, platform: Platform) -> Vec<String> {
        let (name, needs) = (platform.name(), platform.needs());
        let mut missing = Vec::new();
        if let Some(drivers) = &self.drivers {
            for (names, what) in needs.drivers {
                if !names.iter().any(|name| drivers.contains(*name)) {
                    missing.push(format!(
                        "{name} needs the driver {} for {what}, and the guest's kernel lacks it",
                        either(names)
                    ));
                }
            }
        } else {
            missing.push(format!("no kernel was found, so whether it has the drivers for {name} is not known"));
        }
        if needs.serial_console && !self.serial_console {
            missing.push(format!(
                "{name} shows a serial console, and the guest's boot loader names none: add console=ttyS0"
            ));
        }
        for (names, what) in needs.agents {
            if !names.iter().any(|name| self.packages.contains(*name)) {
                missing.push(format!("{name} uses {} for {what}, which is not installed", either(names)));
            }
        }
        missing
    }
}

fn either(names: &[&str]) -> String {
    names.join(" or ")
}

/// The modules of the newest kernel and what is built into it (`modules.dep(5)`, kbuild's `modules.builtin`).
fn drivers(tree: &Tree<'_>) -> Result<Option<BTreeSet<String>>, TreeError> {
    for folder in MODULES {
        let kernels = tree.names(folder)?.unwrap_or_default();
        let mut kernels: Vec<String> = kernels.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect();
        kernels.sort_unstable();
        for kernel in kernels.iter().rev() {
            let Some(modules) = tree.read(&format!("{folder}/{kernel}/modules.dep"), MAX_LIST)? else { continue };
            let built_in = tree.read(&format!("{folder}/{kernel}/modules.builtin"), MAX_LIST)?.unwrap_or_default();
            return Ok(Some([modules, built_in].iter().flat_map(|list| names(list)).collect()));
        }
    }
    Ok(None)
}

/// `kernel/drivers/net/virtio-net.ko.xz: ...`, a line each, becomes `virtio_net`.
fn names(list: &[u8]) -> Vec<String> {
    let name = |line: &str| {
        let path = line.split(':').next()?;
        let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
        Some(name.replace('-', "_"))
    };
    String::from_utf8_lossy(list).lines().filter_map(name).collect()
}

fn has_serial_console(tree: &Tree<'_>) -> Result<bool, TreeError> {
    let mut files: Vec<String> = BOOT_LOADERS.map(str::to_owned).into();
    for folder in ENTRIES {
        let entries = tree.names(folder)?.unwrap_or_default().into_iter();
        files.extend(entries.filter_map(|name| Some(format!("{folder}/{}", String::from_utf8(name).ok()?))));
    }
    for file in files {
        let text = tree.read(&file, MAX_CONFIGURATION)?.unwrap_or_default();
        if String::from_utf8_lossy(&text).contains("console=ttyS") {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_as_the_kernel_names_them() {
        let list = b"kernel/drivers/net/virtio-net.ko.xz: kernel/net/failover.ko.xz\nkernel/fs/ext4/ext4.ko\n\njunk\n";
        assert_eq!(names(list), ["virtio_net", "ext4"]);
    }

    #[test]
    fn what_is_missing_is_said_with_its_reason() {
        let guest = Guest {
            drivers: Some(["hv_vmbus", "hv_storvsc"].map(str::to_owned).into()),
            serial_console: false,
            packages: ["cloud-init".to_owned()].into(),
        };
        let missing = guest.misses(Platform::Azure);
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].contains("hv_netvsc") && missing[0].contains("network card"), "{missing:?}");
        assert!(missing[1].contains("console=ttyS0"), "{missing:?}");
        assert_eq!(Guest::default().misses(Platform::Vmware).len(), 2);
        for (_, platform) in Platform::ALL {
            let needs = platform.needs();
            let drivers = needs.drivers.iter().map(|(names, _)| names[0].to_owned()).collect();
            let packages = needs.agents.iter().map(|(names, _)| names[0].to_owned()).collect();
            let perfect = Guest { drivers: Some(drivers), serial_console: true, packages };
            assert_eq!(perfect.misses(platform), Vec::<String>::new());
        }
    }
}
