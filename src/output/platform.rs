//! Checks whether a sealed guest has what its platforms require. What is missing is only a warning: kiln cannot try, and a
//! guest may provide it in another way.

use std::collections::BTreeSet;

use crate::disk::packages::InstalledPackage;
use crate::disk::tree::{Tree, TreeError};
use crate::specfile::platform::{Driver, OVA_DRIVERS, Platform};

/// The size of the largest list of modules that is read. A kernel of a distribution has some 5000 modules, and a line of
/// `modules.dep` a hundred bytes or more.
const MAX_LIST: u64 = 32 << 20;
/// The size of the largest configuration that is read.
const MAX_CONFIGURATION: u64 = 4 << 20;
/// The folders of kernel modules in distributions.
const MODULES: [&str; 2] = ["/usr/lib/modules", "/lib/modules"];
/// Configurations of programs that make an initramfs, and folders with more of them.
const INITRAMFS: [&str; 2] = ["/etc/initramfs-tools/initramfs.conf", "/etc/dracut.conf"];
const INITRAMFS_FOLDERS: [&str; 2] = ["/etc/initramfs-tools/conf.d", "/etc/dracut.conf.d"];
/// Configurations of boot loaders, which contain the kernel's command line.
const BOOT_LOADERS: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/extlinux/extlinux.conf", "/etc/kernel/cmdline"];
/// Folders with entries of the Boot Loader Specification, a file each.
const ENTRIES: [&str; 2] = ["/boot/loader/entries", "/boot/efi/loader/entries"];

/// The properties of a guest that matter to platforms.
#[derive(Debug, Default)]
pub struct GuestCapabilities {
    /// The drivers of its newest kernel, with `_` for `-`; `None` where no kernel was found.
    drivers: Option<BTreeSet<String>>,
    /// The configuration that limits its initramfs to the drivers of the machine it was made in.
    narrow_initramfs: Option<String>,
    /// Whether an entry of its boot loader puts the console on a serial port.
    serial_console: bool,
    /// Names of its packages.
    packages: BTreeSet<String>,
}

impl GuestCapabilities {
    /// Examines the tree of a sealed guest.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    pub fn of(tree: &Tree<'_>, packages: &[InstalledPackage]) -> Result<Self, TreeError> {
        Ok(Self {
            drivers: drivers(tree)?,
            narrow_initramfs: narrow_initramfs(tree)?,
            serial_console: has_serial_console(tree)?,
            packages: packages.iter().map(|package| package.name.clone()).collect(),
        })
    }

    /// Returns what a platform requires and the guest lacks, a sentence each.
    pub fn misses(&self, platform: Platform) -> Vec<String> {
        let name = platform.name();
        let needs = platform.needs();
        let mut missing = self.missing_drivers(name, needs.drivers);
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

    /// Returns what the guest lacks in a machine that is imported from an OVA, a sentence each.
    pub fn misses_in_ova(&self) -> Vec<String> {
        self.missing_drivers("the machine of an OVA", OVA_DRIVERS)
    }

    fn missing_drivers(&self, name: &str, needed: &[(Driver, &str)]) -> Vec<String> {
        let Some(drivers) = &self.drivers else {
            return vec![format!("no kernel was found, so whether it has the drivers for {name} is not known")];
        };
        let lacking = needed.iter().filter(|(names, _)| !names.iter().any(|name| drivers.contains(*name)));
        let mut missing: Vec<String> = lacking
            .map(|(names, what)| {
                format!("{name} needs the driver {} for {what}, and the guest's kernel lacks it", either(names))
            })
            .collect();
        if let Some(file) = &self.narrow_initramfs {
            missing.push(format!(
                "{file} limits the initramfs to the drivers of the build's machine, so that the guest may not find its disk \
                 on {name}"
            ));
        }
        missing
    }
}

fn either(names: &[&str]) -> String {
    names.join(" or ")
}

/// Returns the modules of the newest kernel, including those that are built into it (`modules.dep(5)`, kbuild's
/// `modules.builtin`).
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

/// Converts lines such as `kernel/drivers/net/virtio-net.ko.xz: ...` to names such as `virtio_net`.
fn names(list: &[u8]) -> Vec<String> {
    let list = String::from_utf8_lossy(list);
    let names = list.lines().filter_map(|line| {
        let path = line.split(':').next()?;
        let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
        Some(name.replace('-', "_"))
    });
    names.collect()
}

/// Finds the setting that makes initramfs-tools (`MODULES=dep`) or dracut (`hostonly=yes`) leave drivers out.
fn narrow_initramfs(tree: &Tree<'_>) -> Result<Option<String>, TreeError> {
    let mut narrow = None;
    for file in list_files(tree, &INITRAMFS, &INITRAMFS_FOLDERS)? {
        match initramfs_setting(&read_configuration(tree, &file)?) {
            Some(true) => narrow = Some(file),
            Some(false) => narrow = None,
            None => {}
        }
    }
    Ok(narrow)
}

/// Returns whether a configuration limits the drivers; `None` where it has no such setting.
fn initramfs_setting(text: &str) -> Option<bool> {
    let settings = text.lines().filter_map(|line| line.trim().split_once('='));
    let mut decides =
        settings.filter_map(|(name, value)| match (name.trim(), value.trim().trim_matches(['"', '\''])) {
            ("MODULES", value) => Some(value == "dep"),
            ("hostonly", value) => Some(value == "yes"),
            _ => None,
        });
    decides.next_back()
}

fn has_serial_console(tree: &Tree<'_>) -> Result<bool, TreeError> {
    for file in list_files(tree, &BOOT_LOADERS, &ENTRIES)? {
        if read_configuration(tree, &file)?.contains("console=ttyS") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Lists these files, and those in these folders.
fn list_files(tree: &Tree<'_>, files: &[&str], folders: &[&str]) -> Result<Vec<String>, TreeError> {
    let mut files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
    for folder in folders {
        let names = tree.names(folder)?.unwrap_or_default().into_iter();
        files.extend(names.filter_map(|name| Some(format!("{folder}/{}", String::from_utf8(name).ok()?))));
    }
    Ok(files)
}

fn read_configuration(tree: &Tree<'_>, file: &str) -> Result<String, TreeError> {
    let bytes = tree.read(file, MAX_CONFIGURATION)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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
    fn an_ova_asks_for_the_drivers_of_the_machine_that_it_describes() {
        let cloud = GuestCapabilities {
            drivers: Some(["virtio_blk".to_owned(), "e1000".to_owned()].into()),
            ..GuestCapabilities::default()
        };
        assert_eq!(cloud.misses_in_ova().len(), 1);
        assert!(cloud.misses_in_ova()[0].contains("mptspi"));
        let drivers = Some(["mptspi".to_owned(), "e1000".to_owned()].into());
        let narrow = GuestCapabilities {
            drivers,
            narrow_initramfs: Some("/etc/dracut.conf".into()),
            ..GuestCapabilities::default()
        };
        assert!(narrow.misses_in_ova()[0].contains("/etc/dracut.conf limits the initramfs"));
    }

    #[test]
    fn a_narrow_initramfs_is_seen_in_its_configuration() {
        assert_eq!(initramfs_setting("# MODULES=dep\nMODULES=most\n"), Some(false));
        assert_eq!(initramfs_setting("MODULES=most\nMODULES=dep\n"), Some(true));
        assert_eq!(initramfs_setting(" hostonly=\"yes\"\n"), Some(true));
        assert_eq!(initramfs_setting("BUSYBOX=auto\n"), None);
    }

    #[test]
    fn what_is_missing_is_said_with_its_reason() {
        let guest = GuestCapabilities {
            drivers: Some(["hv_vmbus", "hv_storvsc"].map(str::to_owned).into()),
            packages: ["cloud-init".to_owned()].into(),
            ..GuestCapabilities::default()
        };
        let missing = guest.misses(Platform::Azure);
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].contains("hv_netvsc") && missing[0].contains("network card"), "{missing:?}");
        assert!(missing[1].contains("console=ttyS0"), "{missing:?}");
        assert_eq!(GuestCapabilities::default().misses(Platform::Vmware).len(), 2);
        for (_, platform) in Platform::ALL {
            let needs = platform.needs();
            let drivers = needs.drivers.iter().map(|(names, _)| names[0].to_owned()).collect();
            let packages = needs.agents.iter().map(|(names, _)| names[0].to_owned()).collect();
            let perfect = GuestCapabilities {
                drivers: Some(drivers),
                serial_console: true,
                packages,
                ..GuestCapabilities::default()
            };
            assert_eq!(perfect.misses(platform), Vec::<String>::new());
        }
    }
}
