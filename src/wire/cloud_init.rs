//! Finds obstacles that will keep cloud-init from using kiln's seed at a guest's next boot. Both ends use this code: the
//! agent examines the running guest, and the host disks of guests that are not running.
//!
//! Sources: cloud-init's documentation ("How to disable cloud-init", "Datasources"), its `ds-identify` and its systemd
//! generator; systemd.unit(5) for masked units; modprobe.d(5).

use std::collections::BTreeMap;

use super::UNIT_FOLDERS;
use super::code::coded_struct;
use super::guest_files::{BootFile, GuestFiles, find_linking_folders, read_boot_files};

/// The folders of programs.
const PROGRAMS: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin"];
/// More folders in which env(1) looks a program up.
const SYSTEM_PROGRAMS: [&str; 2] = ["/usr/local/sbin", "/sbin"];
/// The units without which the agent is not started. Only newer versions of cloud-init have the last one.
const NEEDED_UNITS: [&str; 3] = ["cloud-init.target", "cloud-init-local.service", "cloud-init-main.service"];
/// The units of which one has to be enabled: each of them starts the agent's unit.
const ENABLED_UNITS: [&str; 4] =
    ["cloud-init-local.service", "cloud-init.service", "cloud-init-network.service", "cloud-init-main.service"];
/// The folders of modprobe's configuration; files in earlier ones replace those of the same name in later ones.
const MODPROBE: [&str; 4] = ["/etc/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d"];
/// Programs that only succeed or fail, and load nothing.
const IDLE_PROGRAMS: [&str; 4] = ["false", "true", ":", "exit"];
const MODULES: [&str; 2] = ["/usr/lib/modules", "/lib/modules"];
const CONFIGURATION: &str = "/etc/cloud/cloud.cfg";
const CONFIGURATIONS: &str = "/etc/cloud/cloud.cfg.d";
const DISABLED: &str = "/etc/cloud/cloud-init.disabled";
const ENABLED: &str = "/etc/cloud/cloud-init.enabled";
const IDENTIFY: &str = "/etc/cloud/ds-identify.cfg";

coded_struct! {
    /// A reason why kiln's agent will not be started at the next boot.
    SeedObstacle {
        /// The reason: a sentence without its full stop.
        reason: String,
        /// The obstacle also exists at a first boot, as in a test. At a first boot systemd resets units to what the
        /// distribution enables.
        is_lasting: bool,
    }
}

impl SeedObstacle {
    fn lasting(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_lasting: true }
    }
}

/// Returns everything that keeps cloud-init from starting the agent at the next boot. Only certain obstacles count: a file
/// that fails to parse is none.
pub fn find_obstacles(files: &impl GuestFiles) -> Vec<SeedObstacle> {
    if !is_installed(files) {
        return vec![SeedObstacle::lasting("cloud-init is not installed")];
    }
    let lines = read_boot_files(files);
    let found = [
        missing_interpreter(files),
        disabled(files, &lines),
        missing_datasource(files, &lines),
        unit(files, &lines),
        unreadable_seed(files, &lines),
    ];
    found.into_iter().flatten().collect()
}

fn is_installed(files: &impl GuestFiles) -> bool {
    unit_folder(files, NEEDED_UNITS[1]).is_some() || PROGRAMS.iter().any(|folder| files.has_name(folder, "cloud-init"))
}

/// Checks that the interpreter of cloud-init's program exists, which is a script.
fn missing_interpreter(files: &impl GuestFiles) -> Option<SeedObstacle> {
    let folder = PROGRAMS.iter().find(|folder| files.has_name(folder, "cloud-init"))?;
    let script = files.text(&format!("{folder}/cloud-init"));
    let interpreter = interpreter(script.lines().next()?)?;
    let is_there = match interpreter.rsplit_once('/') {
        Some((folder, name)) => files.has_name(folder, name),
        None => PROGRAMS.iter().chain(&SYSTEM_PROGRAMS).any(|folder| files.has_name(folder, interpreter)),
    };
    let reason = format!("{folder}/cloud-init needs {interpreter}, which is not installed");
    (!is_there).then(|| SeedObstacle::lasting(reason))
}

/// Parses the first line of a script: the path of its interpreter, or a name that env(1) looks up.
fn interpreter(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("#!")?.split_whitespace();
    let program = words.next().filter(|program| program.starts_with('/'))?;
    if program.ends_with("/env") { words.find(|word| !word.starts_with('-')) } else { Some(program) }
}

/// Returns the first folder that has a unit.
fn unit_folder(files: &impl GuestFiles, unit: &str) -> Option<&'static str> {
    UNIT_FOLDERS.into_iter().find(|folder| files.has_name(folder, unit))
}

fn has_file(files: &impl GuestFiles, path: &str) -> bool {
    files.read(path).is_some()
}

fn disabled(files: &impl GuestFiles, lines: &[BootFile]) -> Option<SeedObstacle> {
    if has_file(files, DISABLED) && !has_file(files, ENABLED) {
        return Some(SeedObstacle::lasting(format!("{DISABLED} disables cloud-init")));
    }
    if files.text(IDENTIFY).lines().any(is_disabling_policy) {
        return Some(SeedObstacle::lasting(format!("the policy in {IDENTIFY} disables cloud-init")));
    }
    let file = lines.iter().find(|file| file.has_option("cloud-init=disabled"))?;
    Some(SeedObstacle::lasting(format!("the kernel command line in {} disables cloud-init", file.path)))
}

/// Returns whether a line of ds-identify's configuration disables cloud-init.
fn is_disabling_policy(line: &str) -> bool {
    line.split_once(':').is_some_and(|(key, value)| {
        key.trim() == "policy" && value.split('#').next().unwrap_or_default().trim() == "disabled"
    })
}

/// Checks that the effective list of datasources contains `NoCloud`, as cloud-init's default list does.
fn missing_datasource(files: &impl GuestFiles, lines: &[BootFile]) -> Option<SeedObstacle> {
    // The kernel command line may name a datasource, in any of several ways.
    if lines.iter().any(|file| ["ds=", "ci.ds=", "ci.datasource="].iter().any(|option| file.has_option(option))) {
        return None;
    }
    let mut names: Vec<String> = files.names_ending(CONFIGURATIONS, &[".cfg"]).collect();
    // The last one counts.
    names.sort_unstable_by(|a, b| b.cmp(a));
    let later = names.into_iter().map(|name| format!("{CONFIGURATIONS}/{name}"));
    let mut all = later.chain([CONFIGURATION.to_owned()]);
    let (file, list) = all.find_map(|file| datasources(&files.text(&file)).map(|list| (file, list)))?;
    let has_it = list.iter().any(|name| name.eq_ignore_ascii_case("NoCloud"));
    (!has_it).then(|| SeedObstacle::lasting(format!("the datasource_list in {file} lacks NoCloud")))
}

/// Parses the value of a `datasource_list` at the top of a YAML file: in brackets, on any number of lines, or one name per
/// line.
fn datasources(yaml: &str) -> Option<Vec<String>> {
    let mut lines = yaml.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_end());
    let first = lines.find_map(|line| line.strip_prefix("datasource_list:"))?.trim().to_owned();
    let items: Vec<String> = if first.is_empty() {
        let items = lines.take_while(|line| line.is_empty() || line.trim_start().starts_with(['-', '#']));
        items.filter_map(|line| line.trim_start().strip_prefix('-')).map(str::to_owned).collect()
    } else {
        let mut value = first.strip_prefix('[')?.to_owned();
        while !value.contains(']') {
            value.push_str(lines.next()?);
        }
        let inner = value.split(']').next().unwrap_or_default();
        inner.split(',').map(str::to_owned).collect()
    };
    let names = items.iter().map(|item| item.trim().trim_matches(['"', '\'']).to_owned());
    Some(names.filter(|name| !name.is_empty()).collect())
}

fn unit(files: &impl GuestFiles, lines: &[BootFile]) -> Option<SeedObstacle> {
    // Other init systems have no such units.
    unit_folder(files, NEEDED_UNITS[1])?;
    for unit in NEEDED_UNITS {
        let Some(folder) = unit_folder(files, unit) else { continue };
        // The unit is a link to /dev/null, or an empty file.
        if files.read(&format!("{folder}/{unit}")).is_none_or(|text| text.is_empty()) {
            return Some(SeedObstacle::lasting(format!("the unit {unit} is masked")));
        }
        if let Some(file) = lines.iter().find(|file| file.values("systemd.mask=").any(|name| names_unit(name, unit))) {
            let reason = format!("the kernel command line in {} masks the unit {unit}", file.path);
            return Some(SeedObstacle::lasting(reason));
        }
    }
    let is_enabled = UNIT_FOLDERS.iter().any(|folder| wants(files, folder));
    let reason = "the units of cloud-init are disabled".to_owned();
    (!is_enabled).then_some(SeedObstacle { reason, is_lasting: false })
}

/// Returns whether a name on the kernel command line, which may lack `.service`, is that of a unit.
fn names_unit(name: &str, unit: &str) -> bool {
    name == unit || unit.strip_suffix(".service") == Some(name)
}

fn wants(files: &impl GuestFiles, folder: &str) -> bool {
    find_linking_folders(files, folder).any(|links| ENABLED_UNITS.iter().any(|unit| files.has_name(&links, unit)))
}

/// The support of a kernel for vfat, by its own lists.
#[derive(PartialEq, Eq)]
enum FatSupport {
    BuiltIn,
    Module,
    Missing,
}

/// Checks that a kernel of the guest can load the module vfat, since the seed is a FAT volume.
fn unreadable_seed(files: &impl GuestFiles, lines: &[BootFile]) -> Option<SeedObstacle> {
    let kernels = fat_of_kernels(files);
    if kernels.is_empty() || kernels.contains(&FatSupport::BuiltIn) {
        return None;
    }
    if !kernels.contains(&FatSupport::Module) {
        return Some(SeedObstacle::lasting("no kernel of the guest has the module vfat, which the seed needs"));
    }
    if let Some(file) = lines.iter().find(|file| refuses_fat(file)) {
        let reason = format!("the kernel command line in {} keeps the module vfat from being loaded", file.path);
        return Some(SeedObstacle::lasting(format!("{reason}, which the seed needs")));
    }
    let file = modprobe_files(files).into_values().find(|file| files.text(file).lines().any(blocks_fat))?;
    Some(SeedObstacle::lasting(format!("{file} keeps the module vfat from being loaded, which the seed needs")))
}

/// Returns whether the kernel command line blocks vfat. The kernel itself refuses the modules of `module_blacklist`, and so fat
/// as well; modprobe refuses only what is requested by an alias.
fn refuses_fat(file: &BootFile) -> bool {
    file.values("module_blacklist=").any(|module| matches!(module, "vfat" | "fat"))
        || file.values("modprobe.blacklist=").any(|module| module == "vfat")
}

fn fat_of_kernels(files: &impl GuestFiles) -> Vec<FatSupport> {
    let Some(folder) = MODULES.iter().find(|folder| !files.names(folder).is_empty()) else { return Vec::new() };
    let kernels = files.names(folder).into_iter();
    kernels.filter_map(|kernel| fat_of_kernel(files, &format!("{folder}/{kernel}"))).collect()
}

/// Returns the support of the kernel whose modules are in this folder.
fn fat_of_kernel(files: &impl GuestFiles, folder: &str) -> Option<FatSupport> {
    // A kernel without this list was removed, and only its folder is left.
    let built_in = files.read(&format!("{folder}/modules.builtin"))?;
    let is_built_in = String::from_utf8_lossy(&built_in).lines().any(|path| path.ends_with("/vfat.ko"));
    // Compressed modules have an additional suffix.
    let modules = files.names(&format!("{folder}/kernel/fs/fat"));
    let is_module = modules.iter().any(|name| name.starts_with("vfat.ko"));
    Some(match (is_built_in, is_module) {
        (true, _) => FatSupport::BuiltIn,
        (false, true) => FatSupport::Module,
        (false, false) => FatSupport::Missing,
    })
}

/// Returns the paths of modprobe's files, by their names.
fn modprobe_files(files: &impl GuestFiles) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in MODPROBE {
        for name in files.names_ending(folder, &[".conf"]) {
            found.entry(name.clone()).or_insert_with(|| format!("{folder}/{name}"));
        }
    }
    found
}

/// Returns whether a line of modprobe's configuration blocks vfat. A mount requests the alias `fs-vfat`, so that `blacklist`
/// counts; vfat depends on the module fat.
fn blocks_fat(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["blacklist", "vfat"] => true,
        ["install", "vfat" | "fat", program, ..] => {
            IDLE_PROGRAMS.contains(&program.rsplit('/').next().unwrap_or_default())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::guest_files::FileMap;
    use super::*;

    /// The files of a guest whose cloud-init starts the agent.
    #[derive(Clone)]
    struct Guest(FileMap);

    impl Guest {
        fn new() -> Self {
            let unit = "/lib/systemd/system/cloud-init-local.service";
            Self(FileMap::default())
                .with("/usr/bin/cloud-init", "#!/usr/bin/python3\n")
                .with("/usr/bin/python3", "")
                .with(unit, "[Unit]\n")
                .with("/lib/systemd/system/cloud-init.target", "[Unit]\n")
                .with("/etc/systemd/system/cloud-init.target.wants/cloud-init-local.service", "[Unit]\n")
                .with("/etc/cloud/cloud.cfg", "users:\n - default\ncloud_init_modules:\n - bootcmd\n")
                .with("/lib/modules/6.1/kernel/fs/fat/vfat.ko.zst", "")
                .with("/lib/modules/6.1/modules.builtin", "kernel/fs/ext4/ext4.ko\n")
                .with("/boot/grub/grub.cfg", "linux /vmlinuz root=/dev/vda1 ro quiet\n")
        }

        fn with(mut self, path: &str, text: &str) -> Self {
            self.0.0.insert(path.to_owned(), text.to_owned());
            self
        }

        fn without(mut self, path: &str) -> Self {
            self.0.0.retain(|found, _| !found.starts_with(path));
            self
        }

        fn reasons(&self) -> Vec<String> {
            find_obstacles(&self.0).into_iter().map(|obstacle| obstacle.reason).collect()
        }
    }

    #[test]
    fn a_guest_as_it_comes_has_no_obstacles() {
        assert_eq!(Guest::new().reasons(), [""; 0]);
        let old = Guest::new().without("/lib/systemd").without("/etc/systemd").without("/lib/modules");
        assert_eq!(old.reasons(), [""; 0], "sysvinit, and a kernel in one piece");
    }

    #[test]
    fn i1_a_cloud_init_that_is_gone_is_one_obstacle() {
        let purged = Guest::new().without("/usr/bin").without("/lib/systemd").without("/etc/cloud");
        assert_eq!(purged.reasons(), ["cloud-init is not installed"]);
    }

    #[test]
    fn i1_a_script_without_its_interpreter_is_found() {
        let gone = Guest::new().without("/usr/bin/python3");
        assert_eq!(gone.reasons(), ["/usr/bin/cloud-init needs /usr/bin/python3, which is not installed"]);
        let with = |line: &str| gone.clone().with("/usr/bin/cloud-init", line).reasons();
        for line in ["#!/usr/bin/env -S python3\n", "#! /usr/bin/env python3\nimport sys\n"] {
            assert_eq!(with(line), ["/usr/bin/cloud-init needs python3, which is not installed"], "{line}");
        }
        for line in ["", "\x7fELF", "#!\n", "#!python3\n", "#!/usr/bin/cloud-init\n", "#!/usr/bin/env\n"] {
            assert_eq!(with(line), [""; 0], "{line}");
        }
        let env = gone.with("/usr/bin/cloud-init", "#!/usr/bin/env python3\n");
        assert_eq!(env.with("/usr/local/bin/python3", "").reasons(), [""; 0]);
    }

    #[test]
    fn i1_the_kernel_command_line_counts_in_the_files_of_each_boot_loader() {
        let with = |file: &str, line: &str| Guest::new().with(file, line).reasons();
        for (file, before) in [
            ("/boot/grub2/grub.cfg", "\tlinux /vmlinuz root=/dev/vda1 "),
            ("/boot/loader/entries/a.conf", "options ro "),
            ("/boot/extlinux/extlinux.conf", "  APPEND ro "),
            ("/etc/kernel/cmdline", ""),
        ] {
            let line = |option: &str| with(file, &format!("{before}{option} quiet\n"));
            let disabled = format!("the kernel command line in {file} disables cloud-init");
            assert_eq!(line("cloud-init=disabled"), [disabled]);
            let masked = format!("the kernel command line in {file} masks the unit cloud-init-local.service");
            assert_eq!(line("systemd.mask=cloud-init-local.service"), [masked.as_str()]);
            assert_eq!(line("systemd.mask=cloud-init-local"), [masked.as_str()]);
            let blocked = format!(
                "the kernel command line in {file} keeps the module vfat from being loaded, which the seed needs"
            );
            for option in ["module_blacklist=floppy,vfat", "module_blacklist=fat", "modprobe.blacklist=vfat"] {
                assert_eq!(line(option), [blocked.as_str()], "{option}");
            }
            for option in ["systemd.mask=cloud-final.service", "module_blacklist=isofs,exfat", "modprobe.blacklist=fat"]
            {
                assert_eq!(line(option), [""; 0], "{option}");
            }
        }
        let newer = Guest::new().with("/etc/kernel/cmdline", "systemd.mask=cloud-init-main.service\n");
        assert_eq!(newer.reasons(), [""; 0], "this cloud-init has no such unit");
    }

    #[test]
    fn i1_each_way_to_disable_cloud_init_is_found() {
        let off = Guest::new().with(DISABLED, "");
        assert_eq!(off.reasons(), ["/etc/cloud/cloud-init.disabled disables cloud-init"]);
        assert_eq!(off.with(ENABLED, "").reasons(), [""; 0]);
        let policy = Guest::new().with(IDENTIFY, "# policy: none\npolicy: disabled # for now\n");
        assert_eq!(policy.reasons(), ["the policy in /etc/cloud/ds-identify.cfg disables cloud-init"]);
        let boot = Guest::new().with("/boot/grub/grub.cfg", "  linux /vmlinuz ro cloud-init=disabled\n");
        assert_eq!(boot.reasons(), ["the kernel command line in /boot/grub/grub.cfg disables cloud-init"]);
        let comment = Guest::new().with("/boot/grub/grub.cfg", "# linux cloud-init=disabled\n");
        assert_eq!(comment.reasons(), [""; 0]);
    }

    #[test]
    fn i1_the_last_list_of_datasources_counts() {
        let with = |file: &str, text: &str| Guest::new().with(&format!("/etc/cloud/{file}"), text).reasons();
        let lacks = |file: &str| vec![format!("the datasource_list in /etc/cloud/{file} lacks NoCloud")];
        for text in [
            "datasource_list: [Ec2]\n",
            "datasource_list: [ \"Ec2\", 'None' ] # NoCloud\n",
            "a: 1\ndatasource_list:\n  - Ec2\n  # not - NoCloud\n - None\nb: [NoCloud]\n",
            "datasource_list: [Ec2,\n  None]\n",
            "datasource_list: []\n",
        ] {
            assert_eq!(with("cloud.cfg.d/90_dpkg.cfg", text), lacks("cloud.cfg.d/90_dpkg.cfg"), "{text}");
        }
        for text in [
            "datasource_list: [ NoCloud, None ]\n",
            "datasource_list: [Ec2,\n  'NoCloud']\n",
            "datasource_list:\n- Ec2\n- NoCloud\n",
            "# datasource_list: [Ec2]\n",
            "datasource_list: *other\n",
            "datasource:\n  datasource_list: [Ec2]\n",
        ] {
            assert_eq!(with("cloud.cfg.d/90_dpkg.cfg", text), [""; 0], "{text}");
        }
        assert_eq!(with("cloud.cfg", "datasource_list: [Ec2]\n"), lacks("cloud.cfg"));
        assert_eq!(with("cloud.cfg.d/README", "datasource_list: [Ec2]\n"), [""; 0]);
        let early = Guest::new().with("/etc/cloud/cloud.cfg.d/10.cfg", "datasource_list: [Ec2]\n");
        assert_eq!(
            early.clone().with("/etc/cloud/cloud.cfg.d/90.cfg", "datasource_list: [NoCloud]\n").reasons(),
            [""; 0]
        );
        assert_eq!(early.with("/boot/grub/grub.cfg", "linux /vmlinuz ds=nocloud\n").reasons(), [""; 0]);
    }

    #[test]
    fn i1_units_that_are_masked_or_disabled_are_found() {
        for unit in ["cloud-init-local.service", "cloud-init.target"] {
            let masked = Guest::new().with(&format!("/etc/systemd/system/{unit}"), "");
            assert_eq!(masked.reasons(), [format!("the unit {unit} is masked")]);
        }
        let later = Guest::new().with("/etc/systemd/system/cloud-final.service", "");
        assert_eq!(later.reasons(), [""; 0], "the agent is started before");
        let disabled = Guest::new().without("/etc/systemd/system/cloud-init.target.wants");
        let found = find_obstacles(&disabled.0);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].reason.contains("are disabled") && !found[0].is_lasting);
    }

    #[test]
    fn i2_a_kernel_that_may_not_load_vfat_is_found() {
        let with = |text: &str| Guest::new().with("/etc/modprobe.d/cis.conf", text).reasons();
        for text in [
            "install vfat /bin/false\n",
            "install\tvfat  /usr/bin/true\n",
            "options a b=1\nblacklist vfat\n",
            "install fat /bin/false\n",
        ] {
            let expected = "/etc/modprobe.d/cis.conf keeps the module vfat from being loaded, which the seed needs";
            assert_eq!(with(text), [expected], "{text}");
        }
        for text in [
            "# install vfat /bin/false\n",
            "blacklist fat\n",
            "install cramfs /bin/false\n",
            "blacklist exfat\n",
            "install vfat /sbin/modprobe --ignore-install vfat\n",
        ] {
            assert_eq!(with(text), [""; 0], "{text}");
        }
        let replaced =
            Guest::new().with("/lib/modprobe.d/a.conf", "blacklist vfat\n").with("/etc/modprobe.d/a.conf", "");
        assert_eq!(replaced.reasons(), [""; 0]);
        let built_in = Guest::new().with("/lib/modules/6.1/modules.builtin", "kernel/fs/fat/vfat.ko\n");
        assert_eq!(built_in.with("/etc/modprobe.d/a.conf", "blacklist vfat\n").reasons(), [""; 0]);
        let none = Guest::new().without("/lib/modules/6.1/kernel/fs/fat");
        assert_eq!(none.reasons(), ["no kernel of the guest has the module vfat, which the seed needs"]);
    }
}
