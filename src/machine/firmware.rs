//! Finds the UEFI firmware of this host through the descriptors that QEMU's packages install.
//!
//! The format and the order of precedence are those of QEMU's `docs/interop/firmware.json`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::plan::host::{FirmwareFormat, UefiFirmware};

/// Name of the emulation target in the descriptors.
const ARCHITECTURE: &str = "x86_64";
/// Size limit of a descriptor, bytes. Real ones have about 1 KiB.
const LARGEST_DESCRIPTOR: u64 = 64 << 10;
/// Limit of descriptors in a folder. Real folders have about 20.
const MOST_DESCRIPTORS: usize = 1000;

/// Returns all UEFI firmware for `machine_type` (a concrete one, such as `pc-q35-10.0`) whose files exist, best first:
/// firmware without Secure Boot comes before firmware with it, then the descriptors' own order applies.
///
/// Descriptors that cannot be read or parsed are skipped, as QEMU's document requires for unknown ones.
#[must_use]
pub fn find(machine_type: &str) -> Vec<UefiFirmware> {
    let described = find_in(&folders(), machine_type);
    if described.is_empty() { find_undescribed(Path::new("/")) } else { described }
}

/// Paths of code and variables of firmware without Secure Boot in distributions. They are tried if no descriptor names files
/// that exist: some packages have none, and files move with a new release before their descriptors do.
const USUAL_FILES: [(&str, &str); 9] = [
    // Debian and Ubuntu, then before 2023.
    ("usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("usr/share/OVMF/OVMF_CODE.fd", "usr/share/OVMF/OVMF_VARS.fd"),
    // Fedora and its family; Arch, now and before; Gentoo.
    ("usr/share/edk2/ovmf/OVMF_CODE.fd", "usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("usr/share/edk2/x64/OVMF_CODE.4m.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "usr/share/edk2-ovmf/x64/OVMF_VARS.fd"),
    ("usr/share/edk2-ovmf/OVMF_CODE.fd", "usr/share/edk2-ovmf/OVMF_VARS.fd"),
    // openSUSE.
    ("usr/share/qemu/ovmf-x86_64-code.bin", "usr/share/qemu/ovmf-x86_64-vars.bin"),
    // QEMU's own build, which shares the variables with 32 bits.
    ("usr/share/qemu/edk2-x86_64-code.fd", "usr/share/qemu/edk2-i386-vars.fd"),
    ("usr/local/share/qemu/edk2-x86_64-code.fd", "usr/local/share/qemu/edk2-i386-vars.fd"),
];

fn find_undescribed(root: &Path) -> Vec<UefiFirmware> {
    let pairs = USUAL_FILES.iter().map(|(code, vars)| (root.join(code), root.join(vars)));
    let existing = pairs.filter(|(code, vars)| code.is_file() && vars.is_file());
    existing
        .map(|(code, vars_template)| UefiFirmware {
            descriptor: code.clone(),
            code,
            code_format: FirmwareFormat::Raw,
            vars_template,
            vars_format: FirmwareFormat::Raw,
            secure_boot: false,
            requires_smm: false,
        })
        .collect()
}

/// Returns the folders of descriptors, from the general to the specific: packages, the host's administrator, the user.
fn folders() -> Vec<PathBuf> {
    let user = path_variable("XDG_CONFIG_HOME").or_else(|| path_variable("HOME").map(|home| home.join(".config")));
    let system =
        ["/usr/share/qemu/firmware", "/usr/local/share/qemu/firmware", "/etc/qemu/firmware"].map(PathBuf::from);
    system.into_iter().chain(user.map(|folder| folder.join("qemu/firmware"))).collect()
}

/// Returns the absolute path in an environment variable.
fn path_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn find_in(folders: &[PathBuf], machine_type: &str) -> Vec<UefiFirmware> {
    let descriptors = descriptors(folders);
    let mut found: Vec<_> = descriptors.values().filter_map(|path| read(path)?.firmware(path, machine_type)).collect();
    found.retain(|firmware| firmware.code.is_file() && firmware.vars_template.is_file());
    found.sort_by_key(|firmware| (firmware.secure_boot, firmware.requires_smm));
    found
}

/// Returns the paths of the descriptors by file name, and so in their order. A name in a more specific folder hides the same
/// name in the others.
fn descriptors(folders: &[PathBuf]) -> BTreeMap<OsString, PathBuf> {
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries
        .take(MOST_DESCRIPTORS)
        .map(|entry| (entry.file_name(), entry.path()))
        .filter(|(_, path)| path.extension().is_some_and(|extension| extension == "json"))
        .collect()
}

/// Reads a descriptor. An empty file is not JSON, and that is how the administrator hides one of a package's.
fn read(path: &Path) -> Option<Descriptor> {
    // Not a pipe or a device, which could block; packages and administrators do use symlinks.
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let mut text = Vec::new();
    File::open(path).ok()?.take(LARGEST_DESCRIPTOR).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The fields of a descriptor that kiln uses.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<FirmwareTarget>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(tag = "device", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
enum Mapping {
    Flash {
        #[serde(default)]
        mode: FlashMode,
        executable: FlashFile,
        nvram_template: Option<FlashFile>,
    },
    #[serde(other)]
    Other,
}

/// Sharing of the flash between code and variables.
#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum FlashMode {
    #[default]
    Split,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct FlashFile {
    filename: PathBuf,
    format: FirmwareFormat,
}

#[derive(Deserialize)]
struct FirmwareTarget {
    architecture: String,
    machines: Vec<String>,
}

impl Descriptor {
    fn firmware(self, descriptor: &Path, machine_type: &str) -> Option<UefiFirmware> {
        let secure_boot = self.has("secure-boot") || self.has("enrolled-keys");
        let requires_smm = self.has("requires-smm");
        if !self.interface_types.iter().any(|name| name == "uefi") || !self.runs_on(machine_type) {
            return None;
        }
        let Mapping::Flash { mode: FlashMode::Split, executable, nvram_template: Some(vars) } = self.mapping else {
            return None;
        };
        Some(UefiFirmware {
            code: executable.filename,
            code_format: executable.format,
            vars_template: vars.filename,
            vars_format: vars.format,
            secure_boot,
            requires_smm,
            descriptor: descriptor.to_owned(),
        })
    }

    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }

    fn runs_on(&self, machine_type: &str) -> bool {
        let targets = self.targets.iter().filter(|target| target.architecture == ARCHITECTURE);
        targets.flat_map(|target| &target.machines).any(|pattern| matches(pattern, machine_type))
    }
}

/// Returns whether `name` matches a pattern whose only special character is `*`; descriptors use no other.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(start) else {
        return false;
    };
    name.char_indices().map(|(at, _)| &name[at..]).chain([""]).any(|tail| matches(rest, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn firmware_without_a_descriptor_is_found_where_distributions_keep_it() {
        for (code, vars) in USUAL_FILES {
            let root = tempfile::tempdir().unwrap();
            assert_eq!(find_undescribed(root.path()), []);
            for file in [code, vars] {
                fs::create_dir_all(root.path().join(file).parent().unwrap()).unwrap();
                fs::write(root.path().join(file), file).unwrap();
            }
            let found = find_undescribed(root.path());
            assert_eq!(found.len(), 1, "{code}");
            assert_eq!((&found[0].code, &found[0].vars_template), (&root.path().join(code), &root.path().join(vars)));
        }
    }

    /// A folder for each level and one with the firmware itself.
    struct Fixture {
        root: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a temporary folder");
            for folder in ["share", "etc", "user", "images"] {
                fs::create_dir(root.path().join(folder)).expect("made");
            }
            for image in ["code.fd", "vars.fd", "code.qcow2", "vars.qcow2"] {
                fs::write(root.path().join("images").join(image), image).expect("written");
            }
            Self { root }
        }

        fn put(self, place: &str, text: &impl ToString) -> Self {
            fs::write(self.root.path().join(place), text.to_string()).expect("written");
            self
        }

        fn image(&self, name: &str) -> PathBuf {
            self.root.path().join("images").join(name)
        }

        /// Returns a descriptor as distributions ship it, with these features.
        fn plain(&self, features: &[&str]) -> Value {
            json!({
                "description": "UEFI",
                "interface-types": ["uefi"],
                "mapping": {
                    "device": "flash",
                    "mode": "split",
                    "executable": { "filename": self.image("code.fd"), "format": "raw" },
                    "nvram-template": { "filename": self.image("vars.fd"), "format": "raw" },
                },
                "targets": [{ "architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"] }],
                "features": features,
                "tags": [],
            })
        }

        /// Returns the file names of the descriptors that are found, in order.
        fn found(&self) -> Vec<String> {
            let folders = ["share", "etc", "user"].map(|name| self.root.path().join(name));
            find_in(&folders, "pc-q35-10.0")
                .iter()
                .map(|firmware| {
                    let path = firmware.descriptor.strip_prefix(self.root.path()).expect("below the root");
                    path.display().to_string()
                })
                .collect()
        }
    }

    #[test]
    fn secure_boot_comes_last_whatever_its_name() {
        let fixture = Fixture::new();
        let (plain, secure) = (fixture.plain(&["acpi-s3"]), fixture.plain(&["secure-boot", "requires-smm"]));
        let fixture = fixture.put("share/40-secure.json", &secure).put("share/60-plain.json", &plain);
        assert_eq!(fixture.found(), ["share/60-plain.json", "share/40-secure.json"]);
    }

    #[test]
    fn a_more_specific_folder_overrides_hides_and_adds() {
        let fixture = Fixture::new();
        let plain = fixture.plain(&[]);
        let fixture = fixture
            .put("share/50-a.json", &plain)
            .put("share/60-b.json", &plain)
            .put("share/70-c.json", &plain)
            .put("etc/50-a.json", &plain)
            .put("etc/60-b.json", &"")
            .put("user/10-d.json", &plain);
        assert_eq!(fixture.found(), ["user/10-d.json", "etc/50-a.json", "share/70-c.json"]);
    }

    #[test]
    fn what_does_not_fit_is_passed_over() {
        let fixture = Fixture::new();
        let changed = |pointer: &str, value: Value| {
            let mut descriptor = fixture.plain(&[]);
            *descriptor.pointer_mut(pointer).expect("a place in the descriptor") = value;
            descriptor
        };
        let unfit = [
            changed("/interface-types", json!(["bios"])),
            changed("/targets/0/architecture", json!("aarch64")),
            changed("/targets/0/machines", json!(["pc-q35-9.*", "microvm"])),
            changed("/mapping", json!({ "device": "memory", "filename": "/x" })),
            changed("/mapping/mode", json!("stateless")),
            changed("/mapping/executable/format", json!("vmdk")),
            changed("/mapping/nvram-template/filename", json!("/nowhere/vars.fd")),
            json!("not an object"),
        ];
        let mut fixture = fixture;
        for (number, descriptor) in unfit.iter().enumerate() {
            fixture = fixture.put(&format!("share/{number}.json"), descriptor);
        }
        let plain = fixture.plain(&[]);
        let fixture = fixture.put("share/broken.json", &"{").put("share/z.json.rpmsave", &plain);
        assert_eq!(fixture.found(), Vec::<String>::new());
    }

    #[test]
    fn images_and_formats_are_taken_as_they_are_named() {
        let fixture = Fixture::new();
        let mut descriptor = fixture.plain(&[]);
        // As descriptors were before QEMU 7.0.
        descriptor["mapping"].as_object_mut().expect("an object").remove("mode");
        descriptor["mapping"]["executable"] = json!({ "filename": fixture.image("code.qcow2"), "format": "qcow2" });
        let fixture = fixture.put("etc/edk2.json", &descriptor);
        let expected = UefiFirmware {
            code: fixture.image("code.qcow2"),
            code_format: FirmwareFormat::Qcow2,
            vars_template: fixture.image("vars.fd"),
            vars_format: FirmwareFormat::Raw,
            secure_boot: false,
            requires_smm: false,
            descriptor: fixture.root.path().join("etc/edk2.json"),
        };
        assert_eq!(find_in(&[fixture.root.path().join("etc")], "pc-q35-10.0"), [expected]);
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name) in [("pc-q35-*", "pc-q35-10.0"), ("*", ""), ("a*c*", "abcd"), ("virt", "virt")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("pc-q35-*", "pc-i440fx-10.0"), ("", "a"), ("*b", "abc"), ("virt", "virt-10.0")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
