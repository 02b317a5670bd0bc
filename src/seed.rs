//! The seed for cloud-init's `NoCloud`: a small FAT volume that makes cloud-init start the agent, and nothing else in a
//! build.
//!
//! Sources: cloud-init's `nocloud.rst` (volume label `cidata`, both `user-data` and `meta-data` are required) and
//! `DataSourceNoCloud.py` (labelled devices are tried in reverse order). It holds no secret: cloud-init keeps user-data in
//! the image. The bytes depend on the machine alone, never on the steps, so that one boot serves all specs.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use crate::wire::planted::WAITING_UNITS;

/// Instance id of a build; the agent reports it, and another one means that another seed took precedence.
pub const INSTANCE_ID: &str = "kiln-build";

/// Volume label in FAT, padded to its eleven bytes.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// Volume id, constant, so that the same plan gives the same bytes.
const VOLUME_ID: u32 = 0x6b69_6c6e;
/// Space for FAT's own tables and folder, bytes.
const OVERHEAD: usize = 256 << 10;
const SECTOR: usize = 512;

/// Options of a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeedOptions {
    /// Purpose of the boot.
    pub boot: BootPurpose,
    /// Whether the guest has a network card.
    pub network: bool,
}

/// The purpose of a boot, which determines how much of cloud-init runs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootPurpose {
    /// A build: only what the steps need.
    Build {
        /// Whether the disk is larger than the base, so that cloud-init must grow the root partition and its file system
        /// first.
        grow: bool,
    },
    /// A test: everything that the image itself requests of cloud-init, as on a new machine, such as host keys.
    First,
}

/// Creates the volume that starts the agent.
///
/// # Errors
/// Only when the agent does not fit, which would be a bug.
pub fn volume(agent: &[u8], options: SeedOptions) -> io::Result<Vec<u8>> {
    fat(&[
        ("user-data", user_data(options).as_bytes()),
        ("meta-data", [&meta_data(INSTANCE_ID), DSMODE].concat().as_bytes()),
        ("network-config", network_config(options.network).as_bytes()),
        ("start", start(options).as_bytes()),
        ("settled", settled(options).as_bytes()),
        ("kiln-agent", agent),
    ])
}

/// Shell commands to run when the guest has finished booting.
pub const SETTLED: &str = "[ ! -r /run/kiln/seed/settled ] || . /run/kiln/seed/settled";

/// Returns the volume for an interactive first boot: a new instance with this user-data.
///
/// # Errors
/// Only when the user-data does not fit.
pub fn first_boot(instance_id: &str, user_data: &str) -> io::Result<Vec<u8>> {
    fat(&[("user-data", user_data.as_bytes()), ("meta-data", meta_data(instance_id).as_bytes())])
}

fn fat(files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let size = files.iter().map(|(_, content)| content.len()).sum::<usize>() + OVERHEAD;
    let sectors = u32::try_from(size.next_multiple_of(1 << 20) / SECTOR).map_err(io::Error::other)?;
    let mut disk = Cursor::new(vec![0; sectors as usize * SECTOR]);
    let format = FormatVolumeOptions::new().total_sectors(sectors).volume_label(LABEL).volume_id(VOLUME_ID);
    fatfs::format_volume(&mut disk, format)?;
    {
        let volume = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, content) in files {
            let mut file = volume.root_dir().create_file(name)?;
            file.write_all(content)?;
            file.flush()?;
        }
        volume.unmount()?;
    }
    Ok(disk.into_inner())
}

/// `NoCloud`'s `dsmode`: cloud-init runs its modules in its first stage, before the network, and so the agent starts one
/// start of Python earlier, and before units that wait for a missing network.
const DSMODE: &str = "dsmode: local\n";

/// Returns the user-data. `bootcmd` runs at every boot, so the agent also starts after a reboot step. In a build only the
/// modules that are needed run, all of them in cloud-init's first Python process.
fn user_data(options: SeedOptions) -> String {
    let agent = format!("#cloud-config\nbootcmd: [[sh, -c, {FIND:?}]]\n");
    let modules = match options.boot {
        BootPurpose::First => return agent,
        BootPurpose::Build { grow: true } => "[growpart, resizefs, bootcmd]",
        BootPurpose::Build { grow: false } => "[bootcmd]",
    };
    format!(
        "{agent}\
         cloud_init_modules: {modules}\n\
         cloud_config_modules: []\n\
         cloud_final_modules: []\n\
         growpart: {{mode: auto, devices: [/], ignore_growroot_disabled: false}}\n"
    )
}

fn meta_data(instance_id: &str) -> String {
    format!("instance-id: {instance_id}\n")
}

/// Returns the network-config. Without a card there is nothing to configure, and rendering nothing would cost a start of
/// netplan; with one, DHCP on whatever it is called.
fn network_config(network: bool) -> &'static str {
    if network {
        "version: 2\nethernets: {build: {match: {name: \"e*\"}, dhcp4: true}}\n"
    } else {
        "config: disabled\n"
    }
}

/// Finds the seed by its serial number, which no other volume has, without waiting for udev's links. `/run` is mounted
/// noexec on Debian, so the agent runs from the volume itself.
const FIND: &str = "for d in /sys/block/*; do \
    if [ \"$(cat $d/serial 2>/dev/null)\" = kiln-seed ]; then \
    mkdir -p /run/kiln/seed; mountpoint -q /run/kiln/seed || mount -t vfat -o ro /dev/${d##*/} /run/kiln/seed; \
    exec sh /run/kiln/seed/start; fi; done; \
    echo 'kiln: no disk with the serial number kiln-seed' >/dev/console";

/// Units of cloud-init's later stages, which have nothing to do, and cost a start of Python each.
const LATER_STAGES: &str = "cloud-init.service cloud-init-network.service cloud-config.service cloud-final.service";

/// Returns the commands that start the agent so that it outlives cloud-init. Scripts of steps need a folder that is neither
/// noexec nor on the disk.
///
/// Under systemd the agent gets a unit of its own. Its cgroup is delegated to it, for those of the steps; systemd then does
/// not stop the unit when the OOM killer ends a process in it (`OOMPolicy=`, systemd.service(5)). Only the controller of
/// memory is delegated, which systemd uses anyway: others would be turned on for every unit of the guest. A service may have
/// 15 % of the system's tasks, which in a small guest are some 600: steps may have most of them. The unit does not have the
/// default dependencies, since those would make it wait for the boot that waits for cloud-init.
///
/// Units with nothing to do are masked; for the starts that are already queued, the mask comes too late and a stop takes
/// their place. Both is cheaper than the reload that would make the mask known, which runs every generator again.
fn start(options: SeedOptions) -> String {
    let idle = idle_units(options);
    format!(
        "\
agent=/run/kiln/seed/kiln-agent
mkdir -p /run/kiln/scripts
mountpoint -q /run/kiln/scripts || mount -t tmpfs -o nosuid,nodev,mode=755 kiln-scripts /run/kiln/scripts
if [ -d /run/systemd/system ]; then
    idle='{idle}'
    for unit in $idle; do ln -sf /dev/null /run/systemd/system/$unit; done
    set -- $idle
    [ $# = 0 ] || systemctl --no-block stop \"$@\"
    systemd-run --quiet --no-block --collect --unit=kiln-agent --property=DefaultDependencies=no \\
        --property=IgnoreOnIsolate=yes --property=KillMode=process --property=Delegate=memory \\
        --property=TasksMax=80% $agent
else
    setsid $agent </dev/null >/dev/console 2>&1 &
fi
"
    )
}

/// Returns the units that are masked in this boot.
fn idle_units(options: SeedOptions) -> String {
    let stages = if options.boot == BootPurpose::First { "" } else { LATER_STAGES };
    let waiting = if options.network { String::new() } else { WAITING_UNITS.join(" ") };
    format!("{stages} {waiting}")
}

/// Returns the commands that remove the masks of the boot, which are for that boot alone: `systemctl enable` fails for a
/// masked unit. Then they create the files of a finished boot, for which `cloud-init status --wait` and scripts look. In a
/// build the later stages do not run, so that the former would wait for ever and the latter would find nothing; a test runs
/// them all.
///
/// cloud-init 23.3 and 23.4 (`_get_systemd_status`) also want the units of the stages to be active, so there they are
/// replaced by units that do nothing. Older and newer versions ask systemd only while the result is not there.
fn settled(options: SeedOptions) -> String {
    let unmask = UNMASK.replace("IDLE_UNITS", &idle_units(options));
    match options.boot {
        BootPurpose::First => unmask,
        BootPurpose::Build { .. } => unmask + &FINISHED.replace("LATER_STAGES", LATER_STAGES),
    }
}

const UNMASK: &str = r#"for unit in IDLE_UNITS; do
    if [ "$(readlink /run/systemd/system/$unit)" = /dev/null ]; then rm /run/systemd/system/$unit; fi
done
"#;

const FINISHED: &str = r#"data=/var/lib/cloud/data
if [ -e /run/cloud-init/status.json ] && [ -d $data ]; then
    stage="{\"errors\": [], \"finished\": $(date +%s).0, \"recoverable_errors\": {}, \"start\": $(date +%s).0}"
    source='"datasource": "DataSourceNoCloud"'
    stages="\"init\": $stage, \"init-local\": $stage, \"modules-config\": $stage, \"modules-final\": $stage"
    echo "{\"v1\": {$source, $stages, \"stage\": null}}" >$data/status.json
    echo "{\"v1\": {$source, \"errors\": [], \"recoverable_errors\": {}}}" >$data/result.json
    ln -sf ../../var/lib/cloud/data/status.json ../../var/lib/cloud/data/result.json /run/cloud-init/
    read -r uptime _ </proc/uptime
    [ ! -d /var/lib/cloud/instance/ ] || echo "$uptime - kiln build" >/var/lib/cloud/instance/boot-finished
    if [ -d /run/systemd/system ] &&
        grep -qs _get_systemd_status /usr/lib/python3*/*-packages/cloudinit/cmd/status.py; then
        for unit in LATER_STAGES; do
            printf '[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n' >/run/systemd/system/$unit
        done
        systemctl daemon-reload && systemctl start LATER_STAGES
    fi
fi
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const PLAIN: SeedOptions = SeedOptions { boot: BootPurpose::Build { grow: false }, network: false };

    /// Checks the effect of the commands in a shell, in a guest whose `cloud-init status` reads two files.
    #[test]
    fn cloud_init_has_finished_when_a_build_has_settled() {
        let root = tempfile::tempdir().unwrap();
        let place = |path: &str| root.path().join(path);
        for folder in ["run/cloud-init", "run/systemd/system", "var/lib/cloud/data", "var/lib/cloud/instance"] {
            std::fs::create_dir_all(place(folder)).unwrap();
        }
        for unit in ["cloud-init.service", "NetworkManager-wait-online.service", "mine.service"] {
            std::os::unix::fs::symlink("/dev/null", place("run/systemd/system").join(unit)).unwrap();
        }
        std::fs::write(place("run/cloud-init/status.json"), r#"{"v1": {"stage": "init-local"}}"#).unwrap();
        let prefix = |path: &str| format!("{}{path}", root.path().display());
        let script = settled(PLAIN).replace("/var/lib", &prefix("/var/lib")).replace("/run/", &prefix("/run/"));
        let script = script.replace(&format!("../..{}", root.path().display()), "../..");
        let status = std::process::Command::new("sh").args(["-eu", "-c", &script]).status().unwrap();
        assert!(status.success());
        let read = |path: &str| std::fs::read_to_string(place(path)).unwrap();
        let status: serde_json::Value = serde_json::from_str(&read("run/cloud-init/status.json")).unwrap();
        let result: serde_json::Value = serde_json::from_str(&read("run/cloud-init/result.json")).unwrap();
        assert!(status["v1"]["stage"].is_null() && status["v1"]["modules-final"]["finished"].as_f64() > Some(1e9));
        assert_eq!(result["v1"]["errors"].as_array().unwrap().len(), 0);
        assert!(read("var/lib/cloud/instance/boot-finished").contains("kiln build"));
        let masked = std::fs::read_dir(place("run/systemd/system")).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(masked.collect::<Vec<_>>(), ["mine.service"], "the masks of the boot are lifted, and no other");
    }

    #[test]
    fn the_same_options_give_the_same_bytes() {
        assert_eq!(volume(b"agent", PLAIN).unwrap(), volume(b"agent", PLAIN).unwrap());
        assert_ne!(
            volume(b"agent", PLAIN).unwrap(),
            volume(b"agent", SeedOptions { boot: BootPurpose::Build { grow: true }, ..PLAIN }).unwrap()
        );
    }

    #[test]
    fn a_first_boot_takes_nothing_from_cloud_init() {
        let seed = |boot| user_data(SeedOptions { boot, ..PLAIN }) + &start(SeedOptions { boot, ..PLAIN });
        let (build, first) = (seed(PLAIN.boot), seed(BootPurpose::First));
        assert!(build.contains("cloud_final_modules: []") && build.contains("cloud-final.service"));
        let settled = |boot| settled(SeedOptions { boot, ..PLAIN });
        assert!(
            settled(PLAIN.boot).contains("boot-finished") && !settled(BootPurpose::First).contains("boot-finished")
        );
        assert!(!first.contains("modules") && !first.contains("cloud-final.service") && first.contains("bootcmd"));
    }

    #[test]
    fn the_volume_holds_label_and_files() {
        let agent = vec![7; 3 << 20];
        let mut bytes = volume(&agent, PLAIN).unwrap();
        let volume = FileSystem::new(Cursor::new(&mut bytes), FsOptions::new()).unwrap();
        assert_eq!(volume.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let mut read = Vec::new();
        volume.root_dir().open_file("kiln-agent").unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, agent);
        let names: Vec<_> = volume.root_dir().iter().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["user-data", "meta-data", "network-config", "start", "settled", "kiln-agent"]);
    }
}
