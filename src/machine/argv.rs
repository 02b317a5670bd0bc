//! Generates QEMU's command line. It is pure, the same for the same plan, and printed by `kiln plan` exactly as it is run.
//!
//! QEMU runs in the build's scratch folder and finds its files there by fixed relative names; its QMP, agent and console
//! channels are connected socketpairs under fixed descriptor numbers. So the command line contains nothing random. Rules:
//! every block node is explicit (no probing, JSON, so commas in paths are harmless); no default devices, no configuration
//! files; one root port is there from the start, since q35 can hot-plug only below one (QEMU's docs/pcie.txt).

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::plan::agent::AgentStart;
use crate::plan::machine::{Accelerator, ExtraDisk, PlannedMachine, PrivateNetworkAccess};
use crate::specfile::{DiskFormat, NetworkBackend};
use crate::wire::{DISK_SERIAL, PORT, network};

use super::agent_port::DEVICE;

/// Descriptor of the QMP channel.
pub const QMP_FD: RawFd = 3;
/// Descriptor of the agent's channel.
pub const AGENT_FD: RawFd = 4;
/// Descriptor of the serial console.
pub const CONSOLE_FD: RawFd = 5;
/// Descriptor of the guest's frames for the user-mode network, for the network filter.
pub const OUTBOUND_FD: RawFd = 6;
/// Descriptor of the frames that the network filter lets through.
pub const ALLOWED_FD: RawFd = 7;
/// Descriptor of the network filter's answers to the guest.
pub const ANSWERS_FD: RawFd = 8;

/// Descriptor of the channel of the locked network.
pub const NETWORK_FD: RawFd = 9;

/// Name of the overlay in the scratch folder.
pub const OVERLAY: &str = "overlay.qcow2";
/// Name of the seed in the scratch folder.
pub const SEED: &str = "seed.img";
/// Name of the kernel of a direct boot in the scratch folder.
pub const KERNEL: &str = "kernel";
/// Name of the initramfs of a direct boot in the scratch folder.
pub const INITRAMFS: &str = "initramfs";
/// Name of the link to a kernel that is not on the disk.
pub const BASE_KERNEL: &str = "base-kernel";
/// Name of the link to the initrd of that kernel.
pub const BASE_INITRD: &str = "base-initrd";
/// Name of this machine's copy of the UEFI variable store in the scratch folder.
pub const UEFI_VARS: &str = "uefi-vars.fd";

/// Serial number of the seed's disk, by which the start script finds it.
pub const SEED_SERIAL: &str = "kiln-seed";
/// Id of the root port for hot-plugged disks.
pub const HOTPLUG_BUS: &str = "hotplug0";

/// UUID of every build's machine. Every build sees the same machine: identifiers are constants, and cloned images generate
/// their own at first boot.
pub(crate) const SYSTEM_UUID: &str = "6b696c6e-0000-4000-8000-000000000001";
/// MAC address of the network card, from the range that QEMU uses for its own cards; locally administered.
pub(crate) const MAC: &str = "52:54:00:6b:69:6c";

/// Parameters of the kernel of a direct boot: its messages go where those of a boot loader's kernel would, and a panic is final.
const COMMAND_LINE: &str = "console=ttyS0 panic=0";

/// Name of the node that takes the guest's writes at first.
pub const TOP: &str = "disk";

/// The backing files of the overlay, which are never opened for writing, with their formats, top first. Absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingFiles(pub Vec<(PathBuf, DiskFormat)>);

/// How a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It boots its firmware.
    Boot,
    /// It loads the memory of a checkpoint.
    Restore,
}

/// Returns the command line after the program's name.
#[must_use]
pub fn argv(machine: &PlannedMachine, backing: &BackingFiles, start: Start) -> Vec<String> {
    let mut args = QemuArgs::default();
    basics(&mut args, machine, start);
    if start == Start::Boot {
        // QEMU reports nothing that happens before its monitor is used, such as a KVM that fails on the first instruction.
        args.flag("-S");
    }
    kernel_or_firmware(&mut args, machine);
    channels(&mut args);
    if machine.network == NetworkBackend::Locked {
        locked_network(&mut args);
    }
    disks(&mut args, backing, machine);
    if machine.agent == AgentStart::CloudInit {
        seed(&mut args);
    }
    if machine.network.has_card() {
        user_network(&mut args, machine);
    }
    args.0
}

/// Returns the command line of an interactive machine: its console and QEMU's monitor share this terminal.
#[must_use]
pub fn interactive(machine: &PlannedMachine, backing: &BackingFiles) -> Vec<String> {
    let mut args = QemuArgs::default();
    basics(&mut args, machine, Start::Boot);
    kernel_or_firmware(&mut args, machine);
    args.option("-serial", "mon:stdio");
    disks(&mut args, backing, machine);
    seed(&mut args);
    user_network(&mut args, machine);
    args.0
}

#[derive(Default)]
struct QemuArgs(Vec<String>);

impl QemuArgs {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn option(&mut self, option: &str, value: impl std::fmt::Display) {
        self.flag(option);
        self.0.push(value.to_string());
    }

    fn blockdev(&mut self, node: &Value) {
        self.option("-blockdev", node);
    }
}

fn basics(args: &mut QemuArgs, machine: &PlannedMachine, start: Start) {
    let uuid = machine.extras.uuid.as_deref().unwrap_or(SYSTEM_UUID);
    args.option("-name", "kiln,process=kiln-guest,debug-threads=on");
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.option("-display", "none");
    args.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    // Secrets are in the guest's memory, which would be in a core dump of QEMU as well. Without graphics the BIOS writes to
    // the serial console, and so does a boot loader that knows no other output: the errors of an image that does not boot
    // are in no other place.
    args.option("-machine", format!("{},vmport=off,hpet=off,graphics=off,dump-guest-core=off", machine.machine_type));
    match machine.accelerator {
        Accelerator::Kvm => args.option("-accel", "kvm"),
        Accelerator::Tcg => args.option("-accel", "tcg,thread=multi,tb-size=512"),
    }
    args.option("-cpu", machine.accelerator.cpu_model());
    args.option("-smp", machine.cpus);
    args.option("-m", format!("size={}k", machine.memory.bytes() >> 10));
    args.option("-uuid", uuid);
    let clock = machine.clock.map_or_else(|| "utc".to_owned(), |clock| clock.strftime("%Y-%m-%dT%H:%M:%S").to_string());
    args.option("-rtc", format!("base={clock},clock=host"));
    // A panicked guest is stopped, so that the console can be read; GUEST_PANICKED ends the build.
    args.option("-action", "panic=pause,reboot=reset,shutdown=poweroff");
    args.option("-device", "pvpanic");
    match start {
        Start::Boot => args.option("-device", format!("vmgenid,guid={uuid}")),
        Start::Restore => {
            args.option("-incoming", "defer");
            // Two machines that start with the same memory must not draw the same random numbers: the guest's kernel sees
            // another generation, and draws anew.
            args.option("-device", "vmgenid,guid=auto");
        }
    }
    args.option("-object", "rng-random,id=entropy,filename=/dev/urandom");
    args.option("-device", "virtio-rng-pci,rng=entropy");
    args.option("-device", format!("pcie-root-port,id={HOTPLUG_BUS},chassis=1,slot=1"));
}

/// Adds what starts first: a kernel, with the initramfs of a direct boot or its own, or else the firmware.
fn kernel_or_firmware(args: &mut QemuArgs, machine: &PlannedMachine) {
    match &machine.kernel {
        None if machine.boots_directly() => kernel(args, KERNEL, Some(INITRAMFS), COMMAND_LINE),
        None => firmware(args, machine),
        Some(own) if machine.boots_directly() => {
            kernel(args, BASE_KERNEL, Some(INITRAMFS), &format!("{COMMAND_LINE} {}", own.cmdline));
        }
        Some(own) => kernel(args, BASE_KERNEL, own.initrd.is_some().then_some(BASE_INITRD), &own.cmdline),
    }
}

/// Adds a kernel that QEMU starts by itself.
fn kernel(args: &mut QemuArgs, image: &str, initrd: Option<&str>, cmdline: &str) {
    args.option("-kernel", image);
    if let Some(initrd) = initrd {
        args.option("-initrd", initrd);
    }
    args.option("-append", cmdline);
}

fn firmware(args: &mut QemuArgs, machine: &PlannedMachine) {
    let Some(uefi) = machine.started_uefi() else { return };
    args.blockdev(&json!({
        "node-name": "uefi-code", "driver": uefi.code_format, "read-only": true,
        "file": file_node(&uefi.code, true),
    }));
    args.blockdev(&json!({
        "node-name": "uefi-vars", "driver": uefi.vars_format,
        "file": file_node(Path::new(UEFI_VARS), false),
    }));
    args.option("-machine", "pflash0=uefi-code,pflash1=uefi-vars");
}

fn channels(args: &mut QemuArgs) {
    args.option("-chardev", format!("socket,id=qmp,fd={QMP_FD}"));
    args.option("-mon", "chardev=qmp,mode=control");
    args.option("-chardev", format!("socket,id=console,fd={CONSOLE_FD}"));
    args.option("-serial", "chardev:console");
    args.option("-chardev", format!("socket,id=agent,fd={AGENT_FD}"));
    args.option("-device", "virtio-serial-pci,id=ports");
    args.option("-device", format!("virtserialport,id={DEVICE},bus=ports.0,chardev=agent,name={PORT}"));
}

/// Adds the port that carries the connections of programs to kiln's proxy.
fn locked_network(args: &mut QemuArgs) {
    args.option("-chardev", format!("socket,id=network,fd={NETWORK_FD}"));
    args.option("-device", format!("virtserialport,bus=ports.0,chardev=network,name={}", network::PORT));
}

fn disks(args: &mut QemuArgs, backing: &BackingFiles, machine: &PlannedMachine) {
    // no-flush: the overlay is scratch until the guest has powered off, and is worthless if the host dies before that.
    let mut node = overlay_node(TOP, OVERLAY);
    node["backing"] = backing_nodes(args, backing);
    args.blockdev(&node);
    // QEMU gives the first place to a kernel that it starts itself.
    let place = if machine.starts_kernel() { "" } else { ",bootindex=0" };
    args.option("-device", format!("virtio-blk-pci,drive=disk,serial={DISK_SERIAL}{place},werror=stop,rerror=stop"));
    for (disk, number) in machine.extras.disks.iter().zip(1..) {
        extra_disk(args, disk, number);
    }
}

/// Adds a disk that the user keeps: what the guest has flushed is on this host's disk. While QEMU runs, it holds the locks
/// of the file by which other QEMUs see that it is in use.
fn extra_disk(args: &mut QemuArgs, disk: &ExtraDisk, number: usize) {
    let name = format!("extra{number}");
    let mut node = json!({
        "node-name": name, "driver": disk.format.driver(), "discard": "unmap",
        "file": { "driver": "file", "filename": disk.path, "discard": "unmap", "locking": "on" },
    });
    if disk.format == DiskFormat::Qcow2 {
        // Inspection has refused a file with a backing file.
        node["backing"] = Value::Null;
    }
    args.blockdev(&node);
    args.option("-device", format!("virtio-blk-pci,drive={name},serial=kiln-{name},werror=report,rerror=report"));
}

/// Adds the seed. It comes last: cloud-init tries labelled devices in reverse order, so that it takes precedence over one that
/// the base image may contain.
fn seed(args: &mut QemuArgs) {
    args.blockdev(&json!({
        "node-name": "seed", "driver": "raw", "read-only": true, "file": file_node(Path::new(SEED), true),
    }));
    args.option("-device", format!("virtio-blk-pci,drive=seed,serial={SEED_SERIAL}"));
}

/// Returns a node for an overlay in the scratch folder, without its backing.
#[must_use]
pub fn overlay_node(name: &str, file: &str) -> Value {
    json!({
        "node-name": name, "driver": "qcow2", "discard": "unmap", "detect-zeroes": "unmap",
        "cache": { "no-flush": true },
        "file": { "driver": "file", "filename": file, "discard": "unmap", "cache": { "no-flush": true } },
    })
}

/// Adds a node for each backing file, the lowest first, and returns the reference to the topmost. One argument holds at
/// most 128 KiB (execve(2)), so the chain is not written as one nested node.
fn backing_nodes(args: &mut QemuArgs, backing: &BackingFiles) -> Value {
    let mut below = Value::Null;
    for (number, (file, format)) in backing.0.iter().rev().enumerate() {
        let name = format!("backing{number}");
        args.blockdev(&backing_node(&name, file, *format, below));
        below = name.into();
    }
    below
}

fn backing_node(name: &str, file: &Path, format: DiskFormat, below: Value) -> Value {
    let mut node = json!({
        "node-name": name, "driver": format.driver(), "read-only": true, "file": file_node(file, true),
    });
    if format == DiskFormat::Qcow2 {
        // Inspection has refused a base with a backing file; null makes sure that QEMU uses none for the last one either.
        node["backing"] = below;
    }
    node
}

fn file_node(path: &Path, read_only: bool) -> Value {
    json!({ "driver": "file", "filename": path, "read-only": read_only })
}

fn user_network(args: &mut QemuArgs, machine: &PlannedMachine) {
    let forwards = machine.extras.forwards.iter().map(|forward| format!(",hostfwd={}", forward.host_forward()));
    args.option("-netdev", format!("user,id=net0{}", forwards.collect::<String>()));
    args.option("-device", format!("virtio-net-pci,netdev=net0,mac={MAC},romfile="));
    if machine.private_network != PrivateNetworkAccess::All {
        network_filter(args);
    }
}

/// Adds the filters of the network. The guest's frames pass the filters in reverse order: the last one sends them to kiln,
/// the first one takes them back. The one between drops any frames that would bypass kiln.
fn network_filter(args: &mut QemuArgs) {
    for (name, descriptor) in [("outbound", OUTBOUND_FD), ("allowed", ALLOWED_FD), ("answers", ANSWERS_FD)] {
        args.option("-chardev", format!("socket,id=net-{name},fd={descriptor}"));
    }
    args.option("-chardev", "null,id=net-nowhere");
    let filters = ["rx,indev=net-allowed", "rx,outdev=net-nowhere", "rx,outdev=net-outbound", "tx,indev=net-answers"];
    for (filter, number) in filters.iter().zip(0..) {
        args.option("-object", format!("filter-redirector,id=filter{number},netdev=net0,queue={filter}"));
    }
}

/// Returns the filter's part of the command line, for a network without a machine.
#[cfg(test)]
pub(crate) fn network_filter_args() -> Vec<String> {
    let mut args = QemuArgs::default();
    network_filter(&mut args);
    args.0
}
