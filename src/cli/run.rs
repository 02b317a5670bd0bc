//! `kiln run`: boots a throw-away clone of an image, with its console on this terminal.

use std::path::PathBuf;

use clap::Args;

use crate::error::Failure;
use crate::event::NoticeLevel;
use crate::guest::run;
use crate::guest::shell::ShellError;
use crate::plan::machine::PrivateNetworkAccess;
use crate::size::ByteSize;
use crate::store::manifest::ManifestOs;

use super::CommandContext;
use super::terminal_modes::{CursorMargins, TerminalLease};

/// Arguments of `kiln run`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln run hello --ssh 2222\n\n\
        Press Ctrl-A X to end the machine, and Ctrl-A H to list the other keys.")]
pub struct RunArgs {
    /// Image: `name`, `name@version` or `name@tag`
    pub image: String,
    /// Guest memory
    #[arg(long, default_value = "1GiB")]
    pub memory: ByteSize,
    /// Forward this port of the host to the guest's SSH server
    #[arg(long, value_name = "PORT")]
    pub ssh: Option<u16>,
    /// Allow the guest to reach this host and private networks, in addition to public addresses
    #[arg(long)]
    pub allow_private_network: bool,
}

/// Boots the clone and waits until QEMU has exited.
pub(super) async fn run(args: RunArgs, context: CommandContext<'_>) -> Result<(), Failure> {
    let events = context.events();
    let artifact = context.folders.store()?.artifact(&args.image.parse()?)?;
    let private_network =
        if args.allow_private_network { PrivateNetworkAccess::All } else { PrivateNetworkAccess::Listed(Vec::new()) };
    let keys = public_keys();
    let login = describe_login(args.ssh, !keys.is_empty(), artifact.manifest().os.as_ref());
    let wanted = run::CloneOptions { memory: args.memory, ssh: args.ssh, ssh_keys: keys, private_network };
    let (clone, accel_reason) = run::prepare(&artifact, &wanted, &context.folders.cache()?).await?;
    if let Some(reason) = accel_reason {
        events.notice(NoticeLevel::Info, format!("software emulation (tcg): {reason}"));
    }
    events.notice(NoticeLevel::Info, "Ctrl-A X ends the machine, Ctrl-A H lists the other keys; nothing is kept");
    for (level, sentence) in login {
        events.notice(level, sentence);
    }
    // QEMU has the terminal until it exits, and what it writes there is not visible to kiln.
    let lease = TerminalLease::take(CursorMargins::MayBeSet).map_err(ShellError::Terminal)?;
    clone.run(&events, context.cancel, lease).await
}

/// Returns notices about how to log in. Cloud images have no password, so that a key is needed.
fn describe_login(ssh: Option<u16>, has_keys: bool, os: Option<&ManifestOs>) -> Vec<(NoticeLevel, String)> {
    let no_password = "the console asks for a password, which only an image has that sets one itself";
    let user = os.and_then(default_user);
    match ssh {
        _ if !has_keys => {
            let text = "no public key in ~/.ssh: nobody can log in, unless the image has users of its own";
            let help = "`ssh-keygen -t ed25519` makes a key; then `kiln run IMAGE --ssh 2222`".to_owned();
            vec![(NoticeLevel::Warning, text.to_owned()), (NoticeLevel::Info, help)]
        }
        Some(port) => {
            let name = user.unwrap_or("USER");
            let unknown = if user.is_none() { "; USER is the default user of the image's cloud-init" } else { "" };
            vec![(NoticeLevel::Info, format!("ssh -p {port} {name}@localhost, with the keys of ~/.ssh{unknown}"))]
        }
        None => vec![(NoticeLevel::Info, format!("{no_password}; `--ssh 2222` lets the keys of ~/.ssh in"))],
    }
}

/// Returns the user that the keys are installed for, in the distribution's cloud images (cloud.cfg, `default_user`).
fn default_user(os: &ManifestOs) -> Option<&'static str> {
    Some(match os.id.as_str() {
        "debian" => "debian",
        "ubuntu" => "ubuntu",
        "fedora" => "fedora",
        "centos" | "rhel" | "ol" => "cloud-user",
        "rocky" => "rocky",
        "almalinux" => "almalinux",
        "amzn" => "ec2-user",
        "alpine" => "alpine",
        "arch" => "arch",
        "opensuse-leap" | "opensuse-tumbleweed" => "opensuse",
        "sles" => "sles",
        _ => return None,
    })
}

/// Returns the user's own public keys, for cloud-init to install. Certificates are left out.
fn public_keys() -> Vec<String> {
    let folder = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".ssh"));
    let Some(entries) = folder.and_then(|folder| std::fs::read_dir(folder).ok()) else { return Vec::new() };
    let paths =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "pub"));
    let keys = paths.filter_map(|path| std::fs::read_to_string(path).ok()).map(|key| key.trim().to_owned());
    keys.filter(|key| !key.is_empty() && !key.contains("-cert-v01@")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(ssh: Option<u16>, has_keys: bool, id: &str) -> String {
        let os = ManifestOs { id: id.into(), version: "12".into(), name: String::new() };
        let all: Vec<_> = describe_login(ssh, has_keys, Some(&os)).into_iter().map(|(_, text)| text).collect();
        all.join("\n")
    }

    #[test]
    fn whoever_can_log_in_is_named_with_the_user() {
        assert!(sentences(Some(2222), false, "debian").contains("nobody can log in"));
        assert!(sentences(None, false, "debian").contains("ssh-keygen"));
        assert_eq!(sentences(Some(2222), true, "debian"), "ssh -p 2222 debian@localhost, with the keys of ~/.ssh");
        assert!(sentences(Some(22), true, "frob").contains("USER is the default user"));
        assert!(sentences(None, true, "debian").contains("--ssh 2222"));
    }
}
