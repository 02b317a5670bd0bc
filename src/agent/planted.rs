//! The planted agent: an agent on the guest's disk that the guest's init starts, for guests whose cloud-init does not.
//!
//! ```text
//! kiln-agent --plant     writes itself and what starts it to the disk: in a direct boot, or before a reboot
//! kiln-agent --planted   is started by the guest's init, and goes on from memory
//! sealing                removes all of it, and discards the blocks, since nothing runs from the disk
//! ```

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::folder_times::{keep_time, keep_time_of_folder};
use super::sys;
use crate::wire::SCRIPT_FOLDER;
use crate::wire::planted::{
    CARD_CONDITION, INITTAB, OPENRC_LINK, OPENRC_SERVICE, PROGRAM, UNIT, UNIT_FOLDERS, WAITING_UNITS, WANTS,
    is_planted_line, paths, setting_folders,
};

/// The argument with which the agent plants itself.
pub const PLANT: &str = "--plant";
/// The argument with which the guest's init starts a planted agent.
pub const PLANTED: &str = "--planted";

/// The folder in memory that a planted agent runs from. `/run` itself may not allow programs.
const MEMORY: &str = "/run/kiln/bin";
/// The program of the init.
const INIT: &str = "/sbin/init";
/// The name of the program of systemd.
const SYSTEMD: &str = "systemd";
/// The program that runs services of `OpenRC`, and its default run level.
const OPENRC: [&str; 2] = ["/sbin/openrc-run", "/etc/runlevels/default"];
/// A program with the label that `SELinux` gives to programs.
const LABELLED_PROGRAM: &str = "/usr/bin/true";
/// The extended attribute of `SELinux`.
const LABEL: &[u8] = b"security.selinux";

/// The unit is without default dependencies, like the one that a seed makes: it neither waits for the boot, which may wait for
/// something that a step is to mend, nor ends before the other services.
const UNIT_TEXT: &str = "[Unit]
Description=Agent of a kiln build
DefaultDependencies=no
After=local-fs.target
IgnoreOnIsolate=yes

[Service]
ExecStart=/usr/lib/kiln-agent --planted
KillMode=process
Delegate=memory
TasksMax=80%
";
/// Without a network card, units that wait for the network would wait for their whole time-out.
const CARD_CONDITION_TEXT: &str = "[Unit]\nConditionPathExistsGlob=/sys/class/net/e*\n";
const OPENRC_TEXT: &str = "#!/sbin/openrc-run
command=/usr/lib/kiln-agent
command_args=--planted
command_background=yes
pidfile=/run/kiln-agent.pid
depend() { need localmount; }
";
const INITTAB_LINE: &str = "kiln:2345:once:/usr/lib/kiln-agent --planted\n";

/// What starts services in a guest.
#[derive(Debug, PartialEq, Eq)]
enum InitSystem {
    /// systemd, with this folder of units.
    Systemd(&'static str),
    OpenRc,
    Sysvinit,
}

/// Writes the running agent, and what starts it at the next boot, to the guest's disk.
///
/// # Errors
/// When the guest's init is not known, or a file cannot be written.
pub fn plant_self() -> io::Result<()> {
    plant(Path::new("/"), &fs::read("/proc/self/exe")?)?;
    sys::sync_all();
    Ok(())
}

/// Goes on from memory, unless the agent runs there already. Returns only then, or when that fails.
///
/// # Errors
/// When the agent cannot be copied or started.
pub fn move_to_memory() -> io::Result<()> {
    if std::env::current_exe()?.starts_with(MEMORY) {
        return Ok(());
    }
    for folder in [MEMORY, SCRIPT_FOLDER] {
        fs::create_dir_all(folder)?;
        sys::mount_new(c"tmpfs", Path::new(folder), sys::NO_SETUID_OR_DEVICES, c"mode=755")?;
    }
    let program = Path::new(MEMORY).join("kiln-agent");
    fs::copy("/proc/self/exe", &program)?;
    Err(Command::new(program).arg(PLANTED).exec())
}

/// Removes a planted agent below this root, and returns whether there was one.
///
/// # Errors
/// When something cannot be removed.
pub fn remove(root: &Path) -> io::Result<bool> {
    let mut was_there = false;
    for path in paths() {
        was_there |= remove_file(&place(root, &path))?;
    }
    for folder in UNIT_FOLDERS.into_iter().flat_map(setting_folders) {
        remove_empty_folder(&place(root, &folder))?;
    }
    remove_line(&place(root, INITTAB))?;
    Ok(was_there)
}

fn place(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn plant(root: &Path, agent: &[u8]) -> io::Result<()> {
    let init = find_init(root)?;
    // The agent of another kiln, which a base image may still have.
    remove(root)?;
    let planter = Planter { root };
    planter.add_file(PROGRAM, agent, 0o755)?;
    planter.label(PROGRAM, LABELLED_PROGRAM)?;
    match init {
        InitSystem::Systemd(units) => planter.add_units(units),
        InitSystem::OpenRc => {
            planter.add_file(OPENRC_SERVICE, OPENRC_TEXT.as_bytes(), 0o755)?;
            planter.add_link(OPENRC_LINK, OPENRC_SERVICE)
        }
        InitSystem::Sysvinit => append_line(&place(root, INITTAB)),
    }
}

/// Returns the program of the guest's init, which need not run.
fn init_program(root: &Path) -> PathBuf {
    let init = place(root, INIT);
    fs::canonicalize(&init).unwrap_or(init)
}

/// Returns whether the guest's init is systemd, which need not run.
#[must_use]
pub fn is_init_systemd() -> bool {
    init_program(Path::new("/")).ends_with(SYSTEMD)
}

/// Finds out what starts services in the guest, which need not run it now.
fn find_init(root: &Path) -> io::Result<InitSystem> {
    let program = init_program(root);
    let units = UNIT_FOLDERS.into_iter().find(|units| place(root, units).join(WANTS).is_dir());
    if let Some(units) = units.filter(|_| program.ends_with(SYSTEMD)) {
        return Ok(InitSystem::Systemd(units));
    }
    if OPENRC.iter().all(|path| place(root, path).exists()) {
        return Ok(InitSystem::OpenRc);
    }
    if fs::read_to_string(place(root, INITTAB)).is_ok_and(|table| table.contains(":initdefault:")) {
        return Ok(InitSystem::Sysvinit);
    }
    let why = format!("the guest's init ({}) is neither systemd nor OpenRC nor sysvinit", program.display());
    Err(io::Error::new(ErrorKind::Unsupported, why))
}

/// Writes files below a root, so that the times of folders stay as they were.
struct Planter<'a> {
    root: &'a Path,
}

impl Planter<'_> {
    fn add_units(&self, units: &str) -> io::Result<()> {
        let unit = format!("{units}/{UNIT}");
        self.add_file(&unit, UNIT_TEXT.as_bytes(), 0o644)?;
        let link = format!("{units}/{WANTS}/{UNIT}");
        self.add_link(&link, &format!("../{UNIT}"))?;
        self.label(&unit, units)?;
        self.label(&link, units)?;
        for (waiting, folder) in WAITING_UNITS.iter().zip(setting_folders(units)) {
            if place(self.root, units).join(waiting).exists() {
                self.add_condition(&folder, units)?;
            }
        }
        Ok(())
    }

    fn add_condition(&self, folder: &str, units: &str) -> io::Result<()> {
        if !place(self.root, folder).exists() {
            keep_time_of_folder(&place(self.root, folder), |folder| fs::create_dir(folder))?;
            self.label(folder, units)?;
        }
        let condition = format!("{folder}/{CARD_CONDITION}");
        self.add_file(&condition, CARD_CONDITION_TEXT.as_bytes(), 0o644)?;
        self.label(&condition, units)
    }

    fn add_file(&self, path: &str, content: &[u8], mode: u32) -> io::Result<()> {
        keep_time_of_folder(&place(self.root, path), |file| {
            let mut file = File::options().write(true).create_new(true).open(file)?;
            file.write_all(content)?;
            file.set_permissions(Permissions::from_mode(mode))
        })
    }

    fn add_link(&self, path: &str, target: &str) -> io::Result<()> {
        keep_time_of_folder(&place(self.root, path), |link| symlink(target, link))
    }

    /// Gives a file the label of another one, if the guest has labels. In a direct boot the kernel has no policy, and gives none.
    fn label(&self, path: &str, as_path: &str) -> io::Result<()> {
        copy_attribute(LABEL, &place(self.root, as_path), &place(self.root, path))
    }
}

/// Copies an extended attribute, if the first file has it.
fn copy_attribute(name: &[u8], from: &Path, to: &Path) -> io::Result<()> {
    match sys::xattr(from, name) {
        Ok(value) => sys::set_xattr(to, name, &value),
        Err(_) => Ok(()),
    }
}

fn append_line(table: &Path) -> io::Result<()> {
    let text = fs::read(table)?;
    let newline: &[u8] = if text.is_empty() || text.ends_with(b"\n") { b"" } else { b"\n" };
    let text = [&text, newline, INITTAB_LINE.as_bytes()].concat();
    keep_time(table, || fs::write(table, text))
}

fn remove_line(table: &Path) -> io::Result<()> {
    let Some(text) = unless_missing(fs::read(table))? else { return Ok(()) };
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let kept: Vec<u8> = lines.filter(|line| !is_planted_line(line)).flatten().copied().collect();
    if kept == text {
        return Ok(());
    }
    keep_time(table, || fs::write(table, kept))
}

/// Removes a file, and returns whether it was there.
fn remove_file(file: &Path) -> io::Result<bool> {
    if unless_missing(fs::symlink_metadata(file))?.is_none() {
        return Ok(false);
    }
    keep_time_of_folder(file, |file| fs::remove_file(file))?;
    Ok(true)
}

/// Removes a folder if it is empty.
fn remove_empty_folder(folder: &Path) -> io::Result<()> {
    let Some(mut entries) = unless_missing(fs::read_dir(folder))? else { return Ok(()) };
    if entries.next().is_some() {
        return Ok(());
    }
    keep_time_of_folder(folder, |folder| fs::remove_dir(folder))
}

/// Returns `None` if there is no such file.
fn unless_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const AGENT: &[u8] = b"agent";
    const NETWORKD: &str = "usr/lib/systemd/system/systemd-networkd-wait-online.service";

    /// A root with these files. Their names end in `/` for folders.
    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if file.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::write(path, "text").unwrap();
            }
        }
        fs::create_dir_all(root.path().join("sbin")).unwrap();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        root
    }

    fn systemd() -> tempfile::TempDir {
        let root =
            root(&["usr/lib/systemd/systemd", "usr/lib/systemd/system/sysinit.target.wants/x.service", NETWORKD]);
        symlink("../usr/lib/systemd/systemd", root.path().join("sbin/init")).unwrap();
        symlink("usr/lib", root.path().join("lib")).unwrap();
        root
    }

    fn sysvinit(table: &str) -> tempfile::TempDir {
        let root = root(&["sbin/init", "etc/inittab"]);
        fs::write(root.path().join("etc/inittab"), table).unwrap();
        root
    }

    /// Returns every entry with its modification time, and its content if it is a file.
    fn entries(root: &Path) -> BTreeMap<PathBuf, (i64, i64, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let about = fs::symlink_metadata(&path).unwrap();
                let content = if about.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                found.insert(path.clone(), (about.mtime(), about.mtime_nsec(), content));
                if about.is_dir() {
                    folders.push(path);
                }
            }
        }
        found
    }

    fn read(root: &Path, path: &str) -> String {
        fs::read_to_string(place(root, path)).unwrap()
    }

    #[test]
    fn everything_that_was_planted_is_removed_and_times_are_as_before() {
        let openrc = root(&["sbin/init", "sbin/openrc-run", "etc/runlevels/default/", "etc/init.d/cron"]);
        let table = sysvinit("id:2:initdefault:\n1:2:respawn:/sbin/getty\n");
        for root in [systemd(), openrc, table] {
            let before = entries(root.path());
            plant(root.path(), AGENT).unwrap();
            let planted = entries(root.path());
            assert_ne!(planted, before);
            // Once more, as when a base image has an agent.
            plant(root.path(), AGENT).unwrap();
            assert_eq!(entries(root.path()).len(), planted.len());
            assert!(remove(root.path()).unwrap());
            assert_eq!(entries(root.path()), before);
            assert!(!remove(root.path()).unwrap(), "nothing is left");
        }
    }

    #[test]
    fn systemd_gets_a_unit_and_waits_for_no_missing_card() {
        let root = systemd();
        let root = root.path();
        plant(root, AGENT).unwrap();
        let mode = fs::metadata(place(root, PROGRAM)).unwrap().permissions().mode();
        assert_eq!((read(root, PROGRAM).as_bytes(), mode & 0o7777), (AGENT, 0o755));
        let unit = read(root, "/usr/lib/systemd/system/sysinit.target.wants/kiln-agent.service");
        assert!(unit.contains(&format!("ExecStart={PROGRAM} {PLANTED}\n")), "{unit}");
        assert!(read(root, &format!("/{NETWORKD}.d/kiln-agent.conf")).contains("/sys/class/net/"));
        assert!(!place(root, "/usr/lib/systemd/system/NetworkManager-wait-online.service.d").exists());
    }

    #[test]
    fn settings_of_the_image_stay() {
        let root = systemd();
        let own = place(root.path(), &format!("/{NETWORKD}.d/own.conf"));
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::write(&own, "own").unwrap();
        plant(root.path(), AGENT).unwrap();
        remove(root.path()).unwrap();
        assert_eq!(fs::read_dir(own.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn openrc_gets_a_service_and_sysvinit_a_line() {
        let openrc = root(&["sbin/init", "sbin/openrc-run", "etc/runlevels/default/", "etc/init.d/cron"]);
        plant(openrc.path(), AGENT).unwrap();
        let service = read(openrc.path(), OPENRC_SERVICE);
        assert!(service.contains(&format!("command={PROGRAM}\ncommand_args={PLANTED}\n")), "{service}");
        assert_eq!(fs::read_link(place(openrc.path(), OPENRC_LINK)).unwrap(), Path::new(OPENRC_SERVICE));
        let table = sysvinit("id:2:initdefault:");
        plant(table.path(), AGENT).unwrap();
        let expected = format!("id:2:initdefault:\nkiln:2345:once:{PROGRAM} {PLANTED}\n");
        assert_eq!(read(table.path(), INITTAB), expected);
        assert!(is_planted_line(INITTAB_LINE.as_bytes()));
    }

    #[test]
    fn an_init_that_is_not_known_is_named_and_nothing_is_written() {
        let root = root(&["sbin/runit"]);
        symlink("runit", root.path().join("sbin/init")).unwrap();
        let before = entries(root.path());
        let error = plant(root.path(), AGENT).unwrap_err().to_string();
        assert!(error.contains("sbin/runit"), "{error}");
        assert_eq!(entries(root.path()), before);
    }

    #[test]
    fn labels_are_copied_where_there_are_any() {
        let root = root(&["labelled", "plain"]);
        let [labelled, plain] = ["labelled", "plain"].map(|name| root.path().join(name));
        copy_attribute(b"user.label", &labelled, &plain).unwrap();
        assert!(sys::xattr_names(&plain).unwrap().is_empty());
        sys::set_xattr(&labelled, b"user.label", b"u:r:bin_t").unwrap();
        copy_attribute(b"user.label", &labelled, &plain).unwrap();
        assert_eq!(sys::xattr(&plain, b"user.label").unwrap(), b"u:r:bin_t");
    }
}
