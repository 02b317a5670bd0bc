//! Boots a guest: from an overlay to an agent that listens.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::net::UnixStream;

use crate::context::BuildContext;
use crate::deadline::Deadline;
use crate::error::{Failure, Fault, Kind};
use crate::event::{Events, NoticeLevel};
use crate::machine::argv::{BackingFiles, SEED, Start};
use crate::machine::checkpoint::RamFormat;
use crate::machine::{self, MachineExit, RunningMachine};
use crate::masking::SecretMask;
use crate::plan::machine::PlannedMachine;
use crate::plan::with_grace;
use crate::proxy::Proxy;
use crate::seed;
use crate::session::{AGENT, Exec, Exit, GuestError, Hello, Session};
use crate::size::format_duration;
use crate::wire::direct_boot::{REBOOT_REQUEST, REPORT_PREFIX};

use super::agent_obstacles::KnownObstacles;
use super::dead_ends::hopeless;
use super::pending_units::{UnfinishedUnits, console_start_job};
use super::power_requests::PowerSuspects;

/// The number of resets that are tolerated before the agent connects: firmware and boot loaders may need one or two, a boot
/// loop needs more.
const RESETS_AT_BOOT: u32 = 3;
/// The number of resets that are tolerated during a reboot: firmware may reset once more by itself.
const RESETS_AT_REBOOT: u32 = 3;
/// How long a guest may take to answer after its memory was restored; it answers at once, but a host may be busy.
const WAKING: Duration = Duration::from_secs(60);
/// The greatest difference of the guest's clock that is not reported. Certificates and packages are judged by the clock,
/// but not to the minute.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// The number of console lines that are shown with an error.
const CONSOLE_LINES: usize = 20;

const OTHER_FIRMWARE: &str =
    "the base image may need the other `machine.firmware` (bios or uefi), or may not be bootable";
const NO_CLOUD_INIT: &str = "the guest booted, but kiln's agent did not start: check that cloud-init and its NoCloud \
                             datasource are enabled, and that the kernel can mount vfat, or set `agent = \"planted\"` \
                             under [machine]";
const LARGER_TIMEOUT: &str = "a slow host may need a larger `machine.boot-timeout`";
const FULL_BOOT: &str = "build it with `boot = \"full\"` under [machine]";
const SEPARATE_DRIVERS: &str = "the kernel needs the drivers virtio_pci, virtio_blk and virtio_console and that of the root: built \
                                in, in `base.initrd`, or as modules in the image's /lib/modules";
const SEPARATE_ROOT: &str = "check the `root=` of `base.cmdline`";
const STUCK_UNIT: &str = "a unit that never comes up keeps the boot from ending: give it `TimeoutStartSec=`, let it not be \
                          waited for (`Type=simple`), or disable it";

/// The context of a machine: where it runs, and the limits of waits for it.
#[derive(Clone, Copy)]
pub(crate) struct MachineSite<'a> {
    pub(crate) machine: &'a PlannedMachine,
    /// The scratch folder, with the overlay and the seed.
    pub(crate) folder: &'a Path,
    pub(crate) limits: &'a Deadline,
    pub(crate) events: &'a Events,
    /// Masks secrets on the console.
    pub(crate) mask: &'a SecretMask,
    /// The proxy of the locked network.
    pub(crate) proxy: Option<&'a Proxy>,
}

impl MachineSite<'_> {
    /// Connects a machine that has the locked network to its proxy.
    fn connect(self, running: &mut RunningMachine) -> Result<(), Failure> {
        if let (Some(proxy), Some(port)) = (self.proxy, running.take_network()) {
            proxy.serve(port)?;
        }
        Ok(())
    }
}

impl BuildContext<'_> {
    pub(crate) fn site(&self) -> MachineSite<'_> {
        MachineSite {
            machine: &self.plan.machine,
            folder: self.work.path(),
            limits: &self.limits,
            events: &self.events,
            mask: self.secrets.mask(),
            proxy: self.proxy.as_ref(),
        }
    }
}

/// A guest whose agent is connected.
pub(crate) struct Guest {
    pub(crate) machine: RunningMachine,
    pub(crate) session: Session,
    pub(crate) hello: Hello,
    /// Steps that may have asked for a reboot that is still to come.
    pub(crate) suspects: PowerSuspects,
    /// Whether one of those steps left a process that may turn the guest off.
    pub(crate) is_doomed: bool,
    /// Known obstacles to the agent's start at the next boot.
    pub(crate) obstacles: KnownObstacles,
}

impl Guest {
    fn new(machine: RunningMachine, session: Session, hello: Hello) -> Self {
        let suspects = PowerSuspects::default();
        let obstacles = KnownObstacles::default();
        Self { machine, session, hello, suspects, is_doomed: false, obstacles }
    }
}

/// The reason why a guest did not boot as far as the agent.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The agent did not connect in time.
    #[error("the agent did not answer within {} of boot", format_duration(*after))]
    NoAgent {
        /// How long the guest had.
        after: Duration,
        /// The furthest stage of the boot that the console showed.
        seen: ConsoleEvidence,
        /// The last lines of the console.
        console: Vec<String>,
    },
    /// The console shows that waiting is pointless.
    #[error("the guest did not boot: {what}")]
    Hopeless {
        /// An explanation of what the console shows.
        what: &'static str,
        /// The last lines of the console.
        console: Vec<String>,
    },
    /// The machine ended before the agent connected.
    #[error("the guest did not boot: {fate}")]
    Ended {
        /// The way in which the machine ended.
        fate: MachineExit,
        /// The last lines of the console.
        console: Vec<String>,
    },
    /// The first process of a direct boot gave up, or the kernel did before it.
    #[error("the direct boot failed: {what}")]
    Direct {
        /// The reason, as the first process wrote it on the console.
        what: String,
        /// Whether the kernel is not on the disk.
        is_separate: bool,
        /// The last lines of the console.
        console: Vec<String>,
    },
    /// A kernel that is not on the disk did not boot it.
    #[error("the guest did not boot with the kernel beside its disk and `{cmdline}`: {what}")]
    SeparateKernel {
        /// The reason.
        what: String,
        /// The command line of the kernel.
        cmdline: String,
        /// The last lines of the console.
        console: Vec<String>,
    },
    /// cloud-init used another seed than kiln's.
    #[error("the guest runs as the cloud-init instance `{0}`, so it took its seed from somewhere else")]
    OtherSeed(String),
    /// The rest of the boot did not end in time.
    #[error("the guest did not finish booting within {}{units}", format_duration(*after))]
    NotSettled {
        /// How long the guest had.
        after: Duration,
        /// The units that the boot waits for.
        units: UnfinishedUnits,
    },
    /// systemd gave the boot up, as when a mount of `/etc/fstab` fails. A planted agent runs even then.
    #[error("the guest booted into emergency mode")]
    Emergency {
        /// The last lines of the console.
        console: Vec<String>,
    },
    /// The scratch files could not be written.
    #[error("cannot write the seed")]
    Seed(#[source] std::io::Error),
}

/// The furthest stage of a boot that the console showed, where the agent never connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleEvidence {
    /// Nothing at all, or the firmware alone.
    Nothing,
    /// A boot, but no login prompt.
    Boot,
    /// A login prompt: the guest is up, and cloud-init did not start the agent.
    LoginPrompt,
}

impl Fault for BootError {
    fn kind(&self) -> Kind {
        match self {
            BootError::Ended { fate, .. } => fate.kind(),
            BootError::Seed(_) => Kind::Host,
            _ => Kind::Boot,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            BootError::NoAgent { seen: ConsoleEvidence::Nothing, .. } => vec![OTHER_FIRMWARE.into()],
            BootError::NoAgent { seen: ConsoleEvidence::LoginPrompt, .. } => vec![NO_CLOUD_INIT.into()],
            BootError::NoAgent { console, .. } => {
                let job = console_start_job(console)
                    .map(|job| format!("the console shows that the boot waits for a unit: {job}"));
                job.into_iter().chain([LARGER_TIMEOUT.to_owned()]).collect()
            }
            BootError::NotSettled { units, .. } => {
                let stuck = units.is_known().then(|| STUCK_UNIT.to_owned());
                stuck.into_iter().chain([LARGER_TIMEOUT.to_owned()]).collect()
            }
            BootError::Ended { fate, .. } => fate.hints(),
            BootError::Emergency { .. } | BootError::Hopeless { .. } => {
                vec!["the last lines of the console are above; console.log has them all".into()]
            }
            BootError::Direct { is_separate: true, .. } => vec![SEPARATE_DRIVERS.into()],
            BootError::Direct { .. } => vec![FULL_BOOT.into()],
            BootError::SeparateKernel { .. } => vec![SEPARATE_ROOT.into(), SEPARATE_DRIVERS.into()],
            BootError::OtherSeed(_) => vec!["the base image carries a cloud-init volume of its own; remove it".into()],
            BootError::Seed(_) => vec!["free some space where the cache folder is, or set KILN_CACHE".into()],
        }
    }

    fn evidence(&self) -> Vec<String> {
        match self {
            BootError::NoAgent { console, .. }
            | BootError::Ended { console, .. }
            | BootError::Direct { console, .. }
            | BootError::SeparateKernel { console, .. }
            | BootError::Hopeless { console, .. }
            | BootError::Emergency { console } => console.clone(),
            _ => Vec::new(),
        }
    }
}

/// Writes the seed into the scratch folder.
pub(crate) fn write_seed(site: MachineSite<'_>, boot: seed::BootPurpose) -> Result<(), Failure> {
    let options = seed::SeedOptions { boot, network: site.machine.network.has_card() };
    let volume = seed::volume(AGENT, options).map_err(BootError::Seed)?;
    std::fs::write(site.folder.join(SEED), volume).map_err(BootError::Seed)?;
    Ok(())
}

/// Resumes a guest from the memory of a checkpoint, on an overlay over its disk.
pub(crate) async fn resume(
    site: MachineSite<'_>,
    backing: &BackingFiles,
    memory: (&Path, RamFormat),
    hello: Hello,
) -> Result<Guest, Failure> {
    let (ram, format) = memory;
    let launched = machine::launch(site.machine, backing, Start::Restore, site.folder, site.events, site.mask);
    let (mut running, stream) = site.limits.hold(launched).await?;
    site.connect(&mut running)?;
    let awake = async {
        site.limits.hold(running.restore(ram, format)).await?;
        site.limits.call(&running, WAKING, wake(stream, &hello.boot_id)).await
    };
    match awake.await {
        Ok(session) => {
            site.events.notice(NoticeLevel::Debug, "the guest goes on from a checkpoint");
            Ok(Guest::new(running, session, hello))
        }
        Err(failure) => {
            running.abort().await;
            Err(failure)
        }
    }
}

/// Wakes the agent of a machine that was restored, and sends it the time and new entropy.
async fn wake(stream: UnixStream, boot_id: &str) -> Result<Session, GuestError> {
    let mut session = Session::resumed(stream, boot_id).await?;
    session.wake(SystemTime::now(), &draw_entropy()?).await?;
    Ok(session)
}

fn draw_entropy() -> Result<[u8; 64], GuestError> {
    let mut entropy = [0; 64];
    let drawn = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut entropy));
    drawn.map_err(GuestError::Port)?;
    Ok(entropy)
}

/// Boots, and boots once more if QEMU crashes before the guest is up. `attempt` creates the overlay anew, so nothing of the
/// first attempt is left.
///
/// With several virtual CPUs, QEMU's software emulation has a race while a guest maps its devices: it ends in the assertion
/// `section_index < d->map.sections_nb` of `iotlb_to_section`. Rare, and seen with QEMU 10.0.
pub(crate) async fn boot_despite_crash<T>(
    events: &Events,
    attempt: impl AsyncFn() -> Result<T, Failure>,
) -> Result<T, Failure> {
    match attempt().await {
        Err(failure) if is_crash(&failure) => {
            events.notice(NoticeLevel::Warning, format!("{failure}; the guest is booted once more"));
            attempt().await
        }
        other => other,
    }
}

fn is_crash(failure: &Failure) -> bool {
    let fate = match failure.fault() {
        Some(BootError::Ended { fate, .. }) => Some(fate),
        _ => failure.fault(),
    };
    fate.is_some_and(MachineExit::is_crash)
}

/// Starts a machine, and waits until its agent connects and the boot is over.
pub(crate) async fn start(site: MachineSite<'_>, backing: &BackingFiles) -> Result<Guest, Failure> {
    let launched = machine::launch(site.machine, backing, Start::Boot, site.folder, site.events, site.mask);
    let (mut running, stream) = site.limits.hold(launched).await?;
    site.connect(&mut running)?;
    let patience = site.machine.boot_timeout;
    let accepted = async {
        site.limits.hold(running.boot(RESETS_AT_BOOT)).await?;
        let spoken = async {
            tokio::select! {
                accepted = Session::accept(stream) => accepted.map_err(Failure::from),
                what = hopeless(running.console()) => {
                    Err(BootError::Hopeless { what, console: running.console().tail(CONSOLE_LINES) }.into())
                }
            }
        };
        site.limits.hold_guest(&running, patience, || no_agent(&running, patience), spoken).await
    };
    let (session, hello) = match accepted.await {
        Ok(accepted) => accepted,
        Err(failure) => {
            let failure = explain(failure, &running).await;
            let failure = explain_kernel(failure, site.machine, &running);
            running.abort().await;
            return Err(failure);
        }
    };
    let guest = Guest::new(running, session, hello);
    guest.settle(site).await
}

impl Guest {
    /// Ends the machine after a failure, and returns the failure.
    pub(crate) async fn abandon(self, failure: Failure) -> Failure {
        self.machine.abort().await;
        failure
    }

    /// Checks that the guest uses kiln's seed, and waits for the rest of its boot: a step may start services, and expects
    /// that those of the image are up.
    async fn settle(mut self, site: MachineSite<'_>) -> Result<Self, Failure> {
        // Compared right after the guest has sent its time: the rest of a boot takes minutes.
        let skew = skew(self.hello.clock, SystemTime::now());
        if let Err(failure) = self.finish_boot(site).await {
            return Err(self.abandon(failure).await);
        }
        self.machine.tolerate_resets(0);
        if let Some(skew) = skew {
            site.events.notice(NoticeLevel::Warning, format!("the guest's clock is {skew} this host's"));
        }
        Ok(self)
    }

    /// Reports what runs in the guest.
    pub(crate) fn announce(&self, events: &Events) {
        let Hello { os, kernel, .. } = &self.hello;
        events.notice(NoticeLevel::Info, format!("{os}, kernel {kernel}"));
    }

    async fn finish_boot(&mut self, site: MachineSite<'_>) -> Result<(), Failure> {
        if site.machine.boots_directly() {
            return Ok(());
        }
        let patience = site.machine.boot_timeout;
        if let Some(other) = self.hello.instance_id.as_ref().filter(|id| *id != seed::INSTANCE_ID) {
            return Err(BootError::OtherSeed(other.clone()).into());
        }
        let script = if self.hello.systemd { SETTLED_SYSTEMD } else { SETTLED_SYSVINIT };
        let network = if site.machine.network.has_card() { "user" } else { "none" };
        let script = format!("{script}\n{}", seed::SETTLED);
        let exec = Exec { timeout: Some(patience), ..Exec::new(["sh", "-c", &script, "settled", network]) };
        let request = async { self.session.exec(&exec, &mut |_, _| {}).await };
        let late = BootError::NotSettled { after: patience, units: UnfinishedUnits::default() };
        match site.limits.hold_guest(&self.machine, with_grace(patience), || late.into(), request).await? {
            Exit::TimedOut => {
                let units = UnfinishedUnits::ask(&mut self.session, &self.machine, site.limits).await;
                Err(BootError::NotSettled { after: patience, units }.into())
            }
            Exit::Code(EMERGENCY) => {
                Err(BootError::Emergency { console: self.machine.console().tail(CONSOLE_LINES) }.into())
            }
            _ => Ok(()),
        }
    }

    /// Returns the guest's time, in seconds since 1970, or `None` for a guest that no longer answers; the next request to
    /// it reports that.
    pub(crate) async fn clock(&mut self, site: MachineSite<'_>) -> Option<f64> {
        let asked = site.limits.call(&self.machine, PATIENCE, self.session.clock()).await;
        #[expect(clippy::cast_precision_loss, reason = "microseconds of this century fit")]
        asked.ok().map(|nanoseconds| nanoseconds as f64 / 1e9)
    }

    /// Sets the guest's clock.
    pub(crate) async fn set_clock(&mut self, site: MachineSite<'_>, now: SystemTime) -> Result<(), Failure> {
        site.limits.call(&self.machine, WAKING, self.session.wake(now, &[])).await
    }

    /// Reboots the guest from inside. The agent is started again as at the boot before, on the same port.
    pub(crate) async fn reboot(&mut self, site: MachineSite<'_>) -> Result<(), Failure> {
        let patience = site.machine.boot_timeout;
        self.machine.tolerate_resets(RESETS_AT_REBOOT);
        let exec = Exec { timeout: Some(patience), ..Exec::new(["sh", "-c", &reboot_command(site.machine)]) };
        let rebooted = async {
            // The command may be cut off by the very reboot that it asked for.
            match self.session.exec(&exec, &mut |_, _| {}).await {
                Ok(_) | Err(GuestError::Restarted | GuestError::Silent(_)) => self.session.reconnect().await,
                Err(error) => Err(error),
            }
        };
        self.hello = site.limits.call(&self.machine, patience, rebooted).await?;
        let settled = self.finish_boot(site).await;
        self.machine.tolerate_resets(0);
        settled
    }
}

/// Returns the command that reboots a guest. In a direct boot the first process reboots when the agent, which is the parent of
/// the command, has ended.
fn reboot_command(machine: &PlannedMachine) -> String {
    if machine.boots_directly() {
        format!("sync; touch {REBOOT_REQUEST}; exec kill -KILL $PPID")
    } else {
        "sync; exec reboot".into()
    }
}

/// Describes how far the guest's clock is from this host's, where the difference is too large: `2h ahead of`, in whole
/// hours or minutes.
fn skew(guest: SystemTime, host: SystemTime) -> Option<String> {
    let (by, direction) = match guest.duration_since(host) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    let unit = if by < Duration::from_secs(3600) { 60 } else { 3600 };
    let rounded = Duration::from_secs(by.as_secs() / unit * unit);
    (by > CLOCK_TOLERANCE).then(|| format!("{} {direction}", format_duration(rounded)))
}

/// The deadline for small requests to the guest.
const PATIENCE: Duration = Duration::from_secs(60);
/// Waits for a boot with systemd. The stage of cloud-init that would wait for the network does not run. A degraded system
/// has failed units, as one without ssh host keys has; it is as ready as it will be.
const SETTLED_SYSTEMD: &str = "[ \"$1\" = none ] || systemctl start network-online.target
    [ \"$(systemctl is-system-running --wait)\" != maintenance ] || exit 90";
/// The exit code of the script above for a guest in emergency mode.
const EMERGENCY: u8 = 90;
/// Waits for a boot with sysvinit, which has nothing to wait for but the run level: it changes when rcS is done.
const SETTLED_SYSVINIT: &str = "until runlevel | grep -q ' [2-5]$'; do sleep 0.2; done";

async fn explain(failure: Failure, machine: &RunningMachine) -> Failure {
    let Some(fate) = machine.fate_within(Duration::ZERO).await else { return failure };
    machine.console().settle().await;
    BootError::Ended { fate, console: machine.console().tail(CONSOLE_LINES) }.into()
}

/// Returns the error of a kernel that QEMU started by itself: what the first process of a direct boot, else the kernel, came to.
/// Ctrl-C, deadlines of the build and the end of QEMU itself stay what they are.
fn explain_kernel(failure: Failure, machine: &PlannedMachine, running: &RunningMachine) -> Failure {
    let console = running.console().tail(CONSOLE_LINES);
    let is_direct = machine.boots_directly();
    let what = match failure.fault::<BootError>() {
        Some(BootError::Ended { fate: MachineExit::PoweredOff, .. }) if is_direct => last_report(&console),
        Some(BootError::Ended { fate, .. }) if fate.kind() == Kind::Boot => fate.to_string(),
        Some(BootError::Hopeless { what, .. }) => (*what).to_owned(),
        Some(BootError::NoAgent { seen, .. }) if is_direct || *seen == ConsoleEvidence::Nothing => failure.to_string(),
        _ => return failure,
    };
    match &machine.kernel {
        _ if is_direct => BootError::Direct { what, is_separate: machine.kernel.is_some(), console }.into(),
        Some(kernel) => BootError::SeparateKernel { what, cmdline: kernel.cmdline.clone(), console }.into(),
        None => failure,
    }
}

/// Returns what the first process of a direct boot reported last on the console.
fn last_report(console: &[String]) -> String {
    let report = console.iter().rev().find_map(|line| line.trim().strip_prefix(REPORT_PREFIX));
    report.unwrap_or("the guest powered itself off").to_owned()
}

fn no_agent(machine: &RunningMachine, after: Duration) -> Failure {
    let console = machine.console();
    let seen = if console.shows("login:") {
        ConsoleEvidence::LoginPrompt
    } else if console.shows("Linux version") || console.tail(usize::MAX).len() > CONSOLE_LINES {
        ConsoleEvidence::Boot
    } else {
        ConsoleEvidence::Nothing
    };
    BootError::NoAgent { after, seen, console: console.tail(CONSOLE_LINES) }.into()
}
