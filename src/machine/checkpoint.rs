//! Saves a machine's memory to a file while the machine is stopped, and loads it into another QEMU later.
//!
//! ```text
//! stop -> blockdev-snapshot (the disk is frozen, a new overlay takes the writes) -> migrate to the file -> cont
//! a new QEMU with -incoming defer, an overlay on the frozen disk -> migrate-incoming from the file -> cont
//! ```
//!
//! Where QEMU supports it (9.0 and later) the file is a mapped-ram one: each page has its place, so several threads write
//! and read it, and empty pages are holes (QEMU's docs/devel/migration/mapped-ram.rst). Otherwise it is the plain stream,
//! through a descriptor that is passed to QEMU. QEMU is asked for its capabilities; they are never guessed from its version.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use qapi::qmp as schema;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};

use super::argv::{BackingFiles, Start, argv, overlay_node};
use super::{MachineError, MachineExit, MachineState, RunningMachine, typed};
use crate::digest::Sha256Digest;
use crate::plan::machine::PlannedMachine;

/// Time limit of a transfer. A gigabyte takes seconds; a full host disk shows as an error, not as silence.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(120);
/// Interval of queries for the state of a migration.
const POLL: Duration = Duration::from_millis(2);
/// Number of threads, that of the processors of a small host.
const CHANNELS: u8 = 2;
/// Bandwidth in bytes a second, more than any disk has: by default QEMU limits itself to 128 MiB a second for a network's
/// sake.
const MAX_BANDWIDTH: u64 = 1 << 40;
/// Name of the descriptor of a plain stream in the monitor.
const DESCRIPTOR: &str = "memory";

/// Layout of memory in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamFormat {
    /// Each page at its own offset.
    Mapped,
    /// One stream of pages.
    Stream,
}

impl RamFormat {
    /// Returns the name that is stored with a checkpoint.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RamFormat::Mapped => "mapped",
            RamFormat::Stream => "stream",
        }
    }

    /// Returns the format with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [RamFormat::Mapped, RamFormat::Stream].into_iter().find(|format| format.name() == name)
    }
}

/// Returns a digest of everything that must be the same for a machine to continue from another's memory. The
/// command line covers the devices; the rest is QEMU itself, the firmware, and the processors below.
#[must_use]
pub fn fingerprint(machine: &PlannedMachine) -> Sha256Digest {
    let mut hash = Sha256::new();
    for arg in argv(machine, &BackingFiles(Vec::new()), Start::Restore) {
        add(&mut hash, arg.as_bytes());
    }
    add(&mut hash, machine.qemu_version.as_bytes());
    let firmware = machine.started_uefi().map(|uefi| [uefi.code.as_path(), uefi.vars_template.as_path()]);
    for file in std::iter::once(machine.qemu.as_path()).chain(firmware.into_iter().flatten()) {
        // A package's upgrade changes size or time; an unreadable file gives another digest than a readable one.
        if let Ok(metadata) = std::fs::metadata(file) {
            add(&mut hash, &metadata.size().to_le_bytes());
            add(&mut hash, &metadata.mtime().to_le_bytes());
        }
    }
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut model = processors.lines().take_while(|line| !line.is_empty());
    for line in model.by_ref().filter(|line| line.starts_with("model name") || line.starts_with("flags")) {
        add(&mut hash, line.as_bytes());
    }
    hash.into()
}

/// Adds a field to a digest, behind its length: no two lists of fields have the same bytes.
fn add(hash: &mut Sha256, field: &[u8]) {
    hash.update((field.len() as u64).to_le_bytes());
    hash.update(field);
}

impl RunningMachine {
    /// Returns the number of frozen overlays.
    #[must_use]
    pub fn frozen(&self) -> u32 {
        self.frozen
    }

    /// Freezes the disk as it is now: the overlay that has taken the writes so far is never written again, and `overlay`, an
    /// empty one in the scratch folder, takes its place.
    ///
    /// # Errors
    /// When QEMU refuses; the old overlay keeps taking writes then.
    pub async fn freeze_disk(&mut self, overlay: &str) -> Result<(), MachineError> {
        let name = format!("overlay{}", self.frozen + 1);
        let mut node = overlay_node(&name, overlay);
        // The snapshot sets its backing, so it must have none before.
        node["backing"] = json!(null);
        let node: schema::blockdev_add = typed(node)?;
        self.qmp.execute(node).await?;
        let snapshot = schema::BlockdevSnapshot { node: self.top.clone(), overlay: name.clone() };
        self.qmp.execute(schema::blockdev_snapshot(snapshot)).await?;
        self.top = name;
        self.frozen += 1;
        Ok(())
    }

    /// Writes out buffered data of every disk and of the UEFI variables, as QEMU does whenever it stops.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub async fn flush(&self) -> Result<(), MachineError> {
        self.life.send_modify(|life| life.held = true);
        self.qmp.execute(schema::stop {}).await?;
        self.go_on().await
    }

    /// Returns how much of the guest's memory is in use on this host, bytes; never less than what a checkpoint writes.
    #[must_use]
    pub fn resident_memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.group)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Freezes the disk, and writes the matching memory into `ram`, a new file. The guest is stopped meanwhile, and
    /// continues afterwards, whatever happened. An incomplete file is removed before that: the guest may need the space.
    ///
    /// # Errors
    /// When QEMU refuses or the memory cannot be written.
    pub async fn checkpoint(&mut self, overlay: &str, ram: &Path) -> Result<RamFormat, MachineError> {
        self.life.send_modify(|life| life.held = true);
        self.qmp.execute(schema::stop {}).await?;
        let written = match self.freeze_disk(overlay).await {
            Ok(()) => self.write_memory(ram).await.inspect_err(|_| drop(std::fs::remove_file(ram))),
            Err(error) => Err(error),
        };
        self.go_on().await?;
        written
    }

    /// Lets the virtual CPUs run. From here on a STOP event is unexpected, and may come before the answer does.
    pub(super) async fn go_on(&self) -> Result<(), MachineError> {
        self.life.send_modify(|life| life.held = false);
        self.qmp.execute(schema::cont {}).await?;
        Ok(())
    }

    async fn write_memory(&self, ram: &Path) -> Result<RamFormat, MachineError> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(ram);
        let file = file.map_err(MachineError::prepare("the memory's file"))?;
        let format = self.choose_format(None).await?;
        self.set_parameter("max-bandwidth", MAX_BANDWIDTH).await?;
        let uri = self.uri(format, ram, &file).await?;
        let written =
            self.transfer(schema::migrate { channels: None, detach: None, resume: None, uri: Some(uri) }).await;
        self.migration_settled().await?;
        written.map(|()| format)
    }

    /// Waits until QEMU has set the state of the machine after a migration, which it does after reporting its end. A `cont`
    /// between the two is answered and undone: the guest would stay stopped for ever, and no event would report it.
    async fn migration_settled(&self) -> Result<(), MachineError> {
        let settled = async {
            while self.qmp.execute(schema::query_status {}).await?.status == schema::RunState::finish_migrate {
                sleep(POLL).await;
            }
            Ok(())
        };
        timeout(TRANSFER_TIMEOUT, settled).await.unwrap_or(Err(MachineError::Silent(TRANSFER_TIMEOUT)))
    }

    /// Loads the memory into a machine that was launched for it, and lets the guest continue.
    ///
    /// # Errors
    /// When it does not fit this machine, or QEMU refuses.
    pub async fn restore(&self, ram: &Path, format: RamFormat) -> Result<(), MachineError> {
        let file = File::open(ram).map_err(MachineError::prepare("the memory's file"))?;
        self.choose_format(Some(format)).await?;
        let uri = self.uri(format, ram, &file).await?;
        self.transfer(schema::migrate_incoming { channels: None, exit_on_error: None, uri: Some(uri) }).await?;
        self.go_on().await
    }

    /// Sets the capabilities of a format; of the best that QEMU supports, if none is given.
    async fn choose_format(&self, wanted: Option<RamFormat>) -> Result<RamFormat, MachineError> {
        if wanted != Some(RamFormat::Stream) {
            match self.set_capabilities(&["events", "mapped-ram", "multifd"]).await {
                Ok(()) => {
                    self.set_parameter("multifd-channels", CHANNELS.into()).await?;
                    return Ok(RamFormat::Mapped);
                }
                Err(error) if wanted.is_some() => return Err(error),
                Err(_) => {}
            }
        }
        self.set_capabilities(&["events"]).await?;
        Ok(RamFormat::Stream)
    }

    async fn set_parameter(&self, name: &str, value: u64) -> Result<(), MachineError> {
        let parameters: schema::migrate_set_parameters = typed(json!({ name: value }))?;
        self.qmp.execute(parameters).await?;
        Ok(())
    }

    async fn set_capabilities(&self, names: &[&str]) -> Result<(), MachineError> {
        let states: Vec<_> = names.iter().map(|name| json!({ "capability": name, "state": true })).collect();
        let capabilities: schema::migrate_set_capabilities = typed(json!({ "capabilities": states }))?;
        self.qmp.execute(capabilities).await?;
        Ok(())
    }

    async fn uri(&self, format: RamFormat, ram: &Path, file: &File) -> Result<String, MachineError> {
        if format == RamFormat::Mapped {
            // Each of the threads opens the file itself.
            return Ok(format!("file:{}", ram.display()));
        }
        self.qmp.hand_over(schema::getfd { fdname: DESCRIPTOR.into() }, file).await?;
        Ok(format!("fd:{DESCRIPTOR}"))
    }

    /// Starts a migration and waits for its end.
    async fn transfer<C: qapi::Command>(&self, command: C) -> Result<(), MachineError> {
        self.life.send_modify(|life| life.migration = None);
        let mut life = self.life.subscribe();
        self.qmp.execute(command).await?;
        let Ok(waited) = timeout(TRANSFER_TIMEOUT, life.wait_for(has_ended)).await else {
            return Err(MachineError::Silent(TRANSFER_TIMEOUT));
        };
        let life = waited.map_err(|_| MachineError::Ended(MachineExit::Stopped))?.clone();
        if let Some(fate) = life.fate() {
            return Err(MachineError::Ended(fate));
        }
        if life.migration == Some(schema::MigrationStatus::completed) {
            return Ok(());
        }
        let reason = self.qmp.execute(schema::query_migrate {}).await.ok().and_then(|info| info.error_desc);
        Err(MachineError::Memory(reason.unwrap_or_else(|| "QEMU does not say why".into())))
    }
}

/// Returns whether a migration is over, or the machine.
fn has_ended(life: &MachineState) -> bool {
    use schema::MigrationStatus::{cancelled, completed, failed};
    life.exited.is_some() || life.disk.is_some() || matches!(life.migration, Some(completed | failed | cancelled))
}
