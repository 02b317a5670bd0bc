//! Gives the files of a direct boot their `SELinux` labels: no policy was loaded while they were written.
//!
//! Sources: `selinux_config(5)`, setfiles(8) and fixfiles(8), which describes `/.autorelabel`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::silent_program;

const CONFIGURATION: &str = "etc/selinux/config";
/// Asks the first boot to label all files.
const AT_FIRST_BOOT: &str = ".autorelabel";
/// File systems that are on no disk.
const EXCLUDED: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// How the files of a guest get their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Labelling {
    /// setfiles(8) gives them, by this file of contexts.
    Now(PathBuf),
    /// The first boot gives them, since the guest has no setfiles(8).
    AtFirstBoot,
}

/// Labels the files of a guest that uses `SELinux`. Returns what was done; `None` for a guest without it.
///
/// # Errors
/// When the first boot cannot be asked for it.
pub fn restore(root: &Path) -> io::Result<Option<Labelling>> {
    let labelling = match find_labelling(root) {
        Some(Labelling::Now(contexts)) if !run_setfiles(&contexts) => Some(Labelling::AtFirstBoot),
        found => found,
    };
    if labelling == Some(Labelling::AtFirstBoot) {
        fs::write(root.join(AT_FIRST_BOOT), "")?;
    }
    Ok(labelling)
}

fn find_labelling(root: &Path) -> Option<Labelling> {
    let text = fs::read_to_string(root.join(CONFIGURATION)).ok()?;
    let is_used = matches!(setting(&text, "SELINUX"), Some("enforcing" | "permissive"));
    let contexts = format!("etc/selinux/{}/contexts/files/file_contexts", setting(&text, "SELINUXTYPE")?);
    if !is_used || !root.join(&contexts).exists() {
        return None;
    }
    let has_program = ["usr/sbin/setfiles", "sbin/setfiles"].iter().any(|program| root.join(program).exists());
    Some(if has_program { Labelling::Now(root.join(contexts)) } else { Labelling::AtFirstBoot })
}

/// Returns the last value of a setting; case counts in values alone.
fn setting<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let mut pairs = text.lines().rev().filter_map(|line| line.split_once('='));
    pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case(key)).map(|(_, value)| value.trim())
}

fn run_setfiles(contexts: &Path) -> bool {
    let contexts = contexts.to_string_lossy();
    let mut arguments = vec!["-q", "-F"];
    arguments.extend(EXCLUDED.iter().flat_map(|folder| ["-e", *folder]));
    arguments.extend([&*contexts, "/"]);
    silent_program::succeeds("setfiles", &arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(configuration: &str, files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [(CONFIGURATION, configuration)].into_iter().chain(files.iter().map(|path| (*path, ""))) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn labels_are_restored_where_selinux_is_used() {
        let contexts = "etc/selinux/targeted/contexts/files/file_contexts";
        let enforcing = "# SELINUX= can be:\nSELINUX=enforcing\nSELINUXTYPE=targeted\n";
        let with_program = guest(enforcing, &[contexts, "usr/sbin/setfiles"]);
        assert_eq!(find_labelling(with_program.path()), Some(Labelling::Now(with_program.path().join(contexts))));
        let without = guest("SELINUX=permissive\nSELINUXTYPE=targeted", &[contexts]);
        assert_eq!(restore(without.path()).unwrap(), Some(Labelling::AtFirstBoot));
        assert!(without.path().join(AT_FIRST_BOOT).exists());
        let disabled = guest("SELINUX=disabled\nSELINUXTYPE=targeted\n", &[contexts, "usr/sbin/setfiles"]);
        let no_policy = guest(enforcing, &[]);
        for root in [disabled.path(), no_policy.path(), tempfile::tempdir().unwrap().path()] {
            assert_eq!(restore(root).unwrap(), None);
            assert!(!root.join(AT_FIRST_BOOT).exists());
        }
    }
}
