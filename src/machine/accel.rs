//! Checks whether KVM works on this host by running a guest: a device that can be opened proves nothing.
//!
//! There are hosts whose KVM emulates the guest's kernel mode at about a microsecond an instruction. The device opens,
//! firmware runs, a guest that merely halts is done in a millisecond, and a distribution kernel hangs for ever. So the probe
//! asks in this order, and the first "no" is the verdict: device and permission, API and capabilities, CPUID bits, then a
//! guest of a few instructions of the kind such hosts cannot do, each with a result that is checked.
//!
//! ```text
//! caller --- spawns --> probe thread: open, ask, KVM_RUN, KVM_RUN ... -> verdict
//!    \---- SIGURG every 10 ms until there is a verdict ---^
//! ```
//!
//! The signal is blocked in the probe thread except inside `KVM_RUN` (`KVM_SET_SIGNAL_MASK`), so it needs no handler,
//! changes nothing for the rest of the process, and cannot fall into the gap before the ioctl.

use std::arch::x86_64::__cpuid;
use std::cell::UnsafeCell;
use std::ffi::{CStr, CString};
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;
use nix::libc;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SigSet, Signal};
use nix::time::{ClockId, clock_gettime};

use self::guest::{MEMORY, PORT, ProbeMemory, TRIALS, Trial, entry_point, long_mode};
use crate::plan::host::KvmVerdict;

mod guest;

const DEVICE: &CStr = c"/dev/kvm";

/// Signal that interrupts the probe thread. It is ignored by default, so one that comes before the probe thread has blocked
/// it does no harm.
const KICK: Signal = Signal::SIGURG;
const KICK_EVERY: Duration = Duration::from_millis(10);

/// Limit of the processor time of the whole guest. Not wall time: on a busy host the probe thread may have to wait.
const GUEST_LIMIT: Duration = Duration::from_millis(40);
/// Limit of the processor time of one trial: hardware needs microseconds, emulation about 20 ms for the loop.
const TRIAL_LIMIT: Duration = Duration::from_millis(5);
/// Wall time after which the probe gives up a guest, or a kernel that does not even return to the probe thread.
const WALL_LIMIT: Duration = Duration::from_millis(400);

/// What QEMU's software emulation calls itself in CPUID, and how much longer than hardware it takes for everything. On a
/// host that it emulates, the limits for hardware would say nothing about KVM.
const TCG_SIGNATURE: &[u8; 12] = b"TCGTCGTCGTCG";
const TCG_SLOWNESS: u32 = 100;
/// CPUID leaf in which a hypervisor names itself (the kernel's `Documentation/virt/kvm/x86/cpuid.rst`).
const HYPERVISOR_LEAF: u32 = 0x4000_0000;

/// Returns a limit as it applies on this host.
fn on_this_host(limit: Duration) -> Duration {
    if is_emulated_by_tcg() { limit * TCG_SLOWNESS } else { limit }
}

fn is_emulated_by_tcg() -> bool {
    let leaf = __cpuid(HYPERVISOR_LEAF);
    [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).as_flattened() == TCG_SIGNATURE
}

/// Runs the probe: under 100 ms on a host that has a processor to spare for it.
///
/// Blocks; call it where blocking is allowed.
#[must_use]
pub fn probe() -> KvmVerdict {
    verdict_of(|| examine(DEVICE, Cpuid::Check))
}

/// Handling of the CPUID bits that KVM supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cpuid {
    /// The verdict is "no" if one is missing.
    Check,
    /// Run the guest even if one is missing.
    #[cfg_attr(not(test), expect(dead_code, reason = "lets a test reach the guest where CPUID already says no"))]
    Ignore,
}

/// Runs `work` on a thread of its own and interrupts its guest every [`KICK_EVERY`] until it has a verdict.
fn verdict_of(work: impl FnOnce() -> Result<(), KvmVerdict> + Send + 'static) -> KvmVerdict {
    let (tell, told) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("kvm-probe".into()).spawn(move || {
        let outcome = block_signals().and_then(|()| work());
        // The receiver is gone only when it has already given this thread up.
        let _ = tell.send(outcome.err().unwrap_or(KvmVerdict::Usable));
    });
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => return KvmVerdict::Error { doing: "starting a thread", reason: error.to_string() },
    };
    let began = Instant::now();
    loop {
        match told.recv_timeout(KICK_EVERY) {
            Ok(verdict) => {
                // The thread has nothing left to do; joining it ensures that it is gone when this function returns.
                let _ = thread.join();
                return verdict;
            }
            Err(RecvTimeoutError::Disconnected) => {
                return KvmVerdict::Error { doing: "the probe", reason: "its thread panicked".into() };
            }
            // A thread to which the kernel never returns cannot be ended; it is left behind with its resources.
            Err(RecvTimeoutError::Timeout) if began.elapsed() > 2 * on_this_host(WALL_LIMIT) => {
                return KvmVerdict::TooSlow { at: "KVM's system calls", took: began.elapsed() };
            }
            Err(RecvTimeoutError::Timeout) => {
                // The thread is not joined yet, so the id is still its own; ESRCH means that it is just about to report.
                let _ = pthread_kill(thread.as_pthread_t(), KICK);
            }
        }
    }
}

fn block_signals() -> Result<(), KvmVerdict> {
    SigSet::all().thread_block().map_err(|errno| refused("blocking signals", errno))
}

/// Runs all stages of the probe; `Err` is the verdict of the first stage that fails.
fn examine(device: &CStr, cpuid: Cpuid) -> Result<(), KvmVerdict> {
    let kvm = Kvm::new_with_path(CString::from(device)).map_err(|error| unopened(errno(error)))?;
    check_api(&kvm)?;
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refusal("KVM_GET_SUPPORTED_CPUID"))?;
    if cpuid == Cpuid::Check {
        check_cpuid(&supported)?;
    }
    // Time stolen from a nested host counts as processor time, so slowness is only believed the second time.
    match run_guest(&kvm, &supported, &TRIALS) {
        Err(KvmVerdict::TooSlow { .. }) => run_guest(&kvm, &supported, &TRIALS),
        outcome => outcome,
    }
}

fn errno(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw(error.errno())
}

fn unopened(errno: Errno) -> KvmVerdict {
    match errno {
        // A device node without its module returns ENODEV or ENXIO.
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => KvmVerdict::NoDevice,
        Errno::EACCES | Errno::EPERM => KvmVerdict::Denied,
        other => refused("opening /dev/kvm", other),
    }
}

fn refused(doing: &'static str, errno: Errno) -> KvmVerdict {
    match errno {
        Errno::EBUSY => KvmVerdict::Busy,
        other => KvmVerdict::Error { doing, reason: other.desc().to_owned() },
    }
}

/// Returns a conversion of KVM's error to the verdict on a call that failed.
fn refusal(doing: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmVerdict {
    move |error| refused(doing, errno(error))
}

/// Capabilities that QEMU requires; accel/kvm and target/i386/kvm in its sources list them.
const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::DestroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
];

fn check_api(kvm: &Kvm) -> Result<(), KvmVerdict> {
    // The kernel's documentation says to refuse any other version: it was never changed after Linux 2.6.22.
    if u32::try_from(kvm.get_api_version()) != Ok(KVM_API_VERSION) {
        return Err(KvmVerdict::OldApi { lacks: vec!["API version 12"] });
    }
    let lacks: Vec<_> =
        CAPABILITIES.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    if lacks.is_empty() { Ok(()) } else { Err(KvmVerdict::OldApi { lacks }) }
}

/// A register of CPUID.
#[derive(Debug, Clone, Copy)]
enum Register {
    Ecx,
    Edx,
}

/// Leaf, register, bit and name (Intel SDM volume 2, CPUID): what x86-64 kernels require, and the four instructions
/// that distributions built for x86-64-v2 use and processors have had since 2011.
const FEATURES: [(u32, Register, u32, &str); 18] = [
    (1, Register::Ecx, 0, "sse3"),
    (1, Register::Ecx, 13, "cx16"),
    (1, Register::Ecx, 23, "popcnt"),
    (1, Register::Ecx, 26, "xsave"),
    (1, Register::Edx, 0, "fpu"),
    (1, Register::Edx, 3, "pse"),
    (1, Register::Edx, 4, "tsc"),
    (1, Register::Edx, 5, "msr"),
    (1, Register::Edx, 6, "pae"),
    (1, Register::Edx, 8, "cx8"),
    (1, Register::Edx, 13, "pge"),
    (1, Register::Edx, 15, "cmov"),
    (1, Register::Edx, 24, "fxsr"),
    (1, Register::Edx, 25, "sse"),
    (1, Register::Edx, 26, "sse2"),
    (0x8000_0001, Register::Edx, 11, "syscall"),
    (0x8000_0001, Register::Edx, 20, "nx"),
    (0x8000_0001, Register::Edx, 29, "lm"),
];

fn check_cpuid(supported: &CpuId) -> Result<(), KvmVerdict> {
    let lacks: Vec<_> = FEATURES
        .iter()
        .filter(|(leaf, register, bit, _)| {
            !supported.as_slice().iter().filter(|entry| entry.function == *leaf).any(|entry| {
                let value = match register {
                    Register::Ecx => entry.ecx,
                    Register::Edx => entry.edx,
                };
                value & (1 << bit) != 0
            })
        })
        .map(|(.., name)| *name)
        .collect();
    if lacks.is_empty() { Ok(()) } else { Err(KvmVerdict::MissingCpuFeatures { lacks }) }
}

/// A virtual machine with one CPU. The fields are in the order in which they must be dropped: memory last.
struct ProbeGuest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: Box<UnsafeCell<ProbeMemory>>,
}

impl ProbeGuest {
    fn new(kvm: &Kvm, cpuid: &CpuId, memory: ProbeMemory) -> Result<Self, KvmVerdict> {
        let vm = kvm.create_vm().map_err(refusal("KVM_CREATE_VM"))?;
        // Older Intel processors need three pages for the TSS, outside of the guest's memory.
        vm.set_tss_address(0xfffb_d000).map_err(refusal("KVM_SET_TSS_ADDR"))?;
        let memory = Box::new(UnsafeCell::new(memory));
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.get() as u64,
            ..kvm_userspace_memory_region::default()
        };
        #[expect(unsafe_code, reason = "the guest writes to memory of this process")]
        // SAFETY: the region is exactly the page-aligned box, which `Guest` keeps until after the VM is closed; nothing
        // in this process reads or writes it from here on, and the UnsafeCell says that somebody else may.
        unsafe { vm.set_user_memory_region(region) }.map_err(refusal("KVM_SET_USER_MEMORY_REGION"))?;
        let vcpu = vm.create_vcpu(0).map_err(refusal("KVM_CREATE_VCPU"))?;
        vcpu.set_cpuid2(cpuid).map_err(refusal("KVM_SET_CPUID2"))?;
        let sregs = vcpu.get_sregs().map_err(refusal("KVM_GET_SREGS"))?;
        vcpu.set_sregs(&long_mode(&sregs)).map_err(refusal("KVM_SET_SREGS"))?;
        vcpu.set_regs(&entry_point()).map_err(refusal("KVM_SET_REGS"))?;
        admit_kicks(&vcpu)?;
        Ok(Self { vcpu, _vm: vm, _memory: memory })
    }
}

/// Lets [`KICK`], which is blocked in this thread, interrupt `KVM_RUN`.
fn admit_kicks(vcpu: &VcpuFd) -> Result<(), KvmVerdict> {
    /// `struct kvm_signal_mask` with the kernel's 8-byte signal set behind it.
    #[repr(C, packed)]
    struct SignalMask {
        len: u32,
        set: u64,
    }
    let mask = SignalMask { len: 8, set: !(1 << (KICK as u32 - 1)) };
    // The number counts the four bytes of `len` alone: the set is a flexible array.
    let request = nix::request_code_write!(0xae, 0x8b, 4);
    #[expect(unsafe_code, reason = "kvm-ioctls has no call for it")]
    // SAFETY: the descriptor is an open vCPU; the kernel reads `len` and then `len` bytes, all inside of `mask`.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), request, &raw const mask) };
    Errno::result(result).map(drop).map_err(|errno| refused("KVM_SET_SIGNAL_MASK", errno))
}

fn run_guest(kvm: &Kvm, cpuid: &CpuId, trials: &[Trial]) -> Result<(), KvmVerdict> {
    let mut guest = ProbeGuest::new(kvm, cpuid, ProbeMemory::with(trials))?;
    let whole = Stopwatch::start()?;
    for trial in trials {
        let watch = Stopwatch::start()?;
        let answer = answer_to(trial.name, &mut guest.vcpu, &whole)?;
        let took = watch.used()?;
        if answer != trial.answer {
            let saw = format!("the answer {answer} where {} is right", trial.answer);
            return Err(KvmVerdict::InternalError { at: trial.name, saw });
        }
        if took > on_this_host(TRIAL_LIMIT) {
            return Err(KvmVerdict::TooSlow { at: trial.name, took });
        }
    }
    Ok(())
}

/// Runs the guest until it reports, and returns the answer.
fn answer_to(at: &'static str, vcpu: &mut VcpuFd, whole: &Stopwatch) -> Result<u8, KvmVerdict> {
    loop {
        let saw = match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, [answer])) => return Ok(*answer),
            Ok(VcpuExit::InternalError) => "KVM_EXIT_INTERNAL_ERROR".into(),
            // An exception without a gate is a triple fault, and that is a shutdown.
            Ok(VcpuExit::Shutdown) => "KVM_EXIT_SHUTDOWN".into(),
            Ok(other) => format!("{other:?}"),
            Err(error) if error.errno() == libc::EINTR => {
                take_kick()?;
                whole.check(at)?;
                continue;
            }
            Err(error) => return Err(refusal("KVM_RUN")(error)),
        };
        return Err(KvmVerdict::InternalError { at, saw });
    }
}

/// Consumes the pending [`KICK`]; while it is pending `KVM_RUN` does not run at all. Where something else interrupted
/// the guest, this waits for the next one.
fn take_kick() -> Result<(), KvmVerdict> {
    let kick = SigSet::from(KICK);
    kick.wait().map(drop).map_err(|errno| refused("waiting for a signal", errno))
}

/// Time since a moment, as wall time and as processor time of this thread.
struct Stopwatch {
    wall: Instant,
    processor: Duration,
}

impl Stopwatch {
    fn start() -> Result<Self, KvmVerdict> {
        Ok(Self { wall: Instant::now(), processor: processor_time()? })
    }

    fn used(&self) -> Result<Duration, KvmVerdict> {
        processor_time().map(|now| now.saturating_sub(self.processor))
    }

    fn check(&self, at: &'static str) -> Result<(), KvmVerdict> {
        let used = self.used()?;
        if used > on_this_host(GUEST_LIMIT) || self.wall.elapsed() > on_this_host(WALL_LIMIT) {
            return Err(KvmVerdict::TooSlow { at, took: used });
        }
        Ok(())
    }
}

fn processor_time() -> Result<Duration, KvmVerdict> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    time.map_err(|errno| refused("reading a clock", errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{Uid, setfsuid};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Takes the lock for one probe at a time: the tests count descriptors and look at the clock.
    fn alone() -> MutexGuard<'static, ()> {
        static ONE: Mutex<()> = Mutex::new(());
        ONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timed(work: impl FnOnce() -> KvmVerdict) -> (KvmVerdict, Duration) {
        let began = Instant::now();
        (work(), began.elapsed())
    }

    /// Returns the verdict for a guest that runs just `trials`, whatever CPUID reports.
    fn guest_alone(trials: &'static [Trial]) -> KvmVerdict {
        verdict_of(move || {
            let kvm = Kvm::new_with_path(DEVICE).map_err(|error| unopened(errno(error)))?;
            let cpuid =
                kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|error| refused("cpuid", errno(error)))?;
            run_guest(&kvm, &cpuid, trials)
        })
    }

    /// Returns whether the device itself is not available, so that no later stage reports anything else.
    fn has_no_device(verdict: &KvmVerdict) -> bool {
        matches!(verdict, KvmVerdict::NoDevice | KvmVerdict::Denied | KvmVerdict::Busy | KvmVerdict::Error { .. })
    }

    #[test]
    fn h2_the_guest_and_cpuid_agree_about_this_host() {
        let _alone = alone();
        let (whole, whole_took) = timed(probe);
        let (guest, guest_took) = timed(|| verdict_of(|| examine(DEVICE, Cpuid::Ignore)));
        eprintln!("probe: {whole} ({whole_took:?}); guest alone: {guest} ({guest_took:?})");
        match whole {
            KvmVerdict::MissingCpuFeatures { .. } => {
                assert!(matches!(guest, KvmVerdict::InternalError { .. } | KvmVerdict::TooSlow { .. }), "{guest:?}");
            }
            other => assert_eq!(std::mem::discriminant(&guest), std::mem::discriminant(&other)),
        }
    }

    #[test]
    fn the_trials_one_by_one_agree_with_the_whole() {
        let _alone = alone();
        let verdicts: Vec<_> = TRIALS.chunks(1).map(|trial| (trial[0].name, guest_alone(trial))).collect();
        for (name, verdict) in &verdicts {
            eprintln!("{name}: {verdict}");
        }
        assert_eq!(probe().is_usable(), verdicts.iter().all(|(_, verdict)| verdict.is_usable()));
    }

    #[test]
    fn a_probe_leaves_nothing_open() {
        let _alone = alone();
        let open = || {
            let descriptors = fs::read_dir("/proc/self/fd").expect("procfs is mounted");
            let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            targets.filter(|target| target.to_string_lossy().contains("kvm")).count()
        };
        for _ in 0..20 {
            let _ = verdict_of(|| examine(DEVICE, Cpuid::Ignore));
        }
        // Not 0: a test of another module may be probing just now.
        assert!(open() < 20, "{}", open());
    }

    #[test]
    fn h2_a_wrong_answer_is_found() {
        static WRONG: [Trial; 1] = [Trial { name: "mov", code: &[0xb0, 1], answer: 2 }];
        let _alone = alone();
        let verdict = guest_alone(&WRONG);
        let saw = "the answer 1 where 2 is right".to_owned();
        assert!(verdict == KvmVerdict::InternalError { at: "mov", saw } || has_no_device(&verdict), "{verdict:?}");
    }

    #[test]
    fn h2_a_guest_that_never_returns_is_given_up() {
        static SPIN: [Trial; 1] = [Trial { name: "jmp", code: &[0xeb, 0xfe], answer: 0 }];
        let _alone = alone();
        let (verdict, took) = timed(|| guest_alone(&SPIN));
        eprintln!("spin: {verdict} ({took:?})");
        assert!(matches!(verdict, KvmVerdict::TooSlow { at: "jmp", .. }) || has_no_device(&verdict), "{verdict:?}");
        assert!(took < 2 * WALL_LIMIT, "{took:?}");
    }

    #[test]
    fn h1_a_device_that_cannot_be_had_says_why() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path =
            |name: &str| CString::new(folder.path().join(name).into_os_string().into_encoded_bytes()).expect("no NUL");
        let (missing, locked, plain) = (path("missing"), path("locked"), path("plain"));
        for (name, mode) in [("locked", 0o000), ("plain", 0o600)] {
            fs::write(folder.path().join(name), "").expect("written");
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).expect("permitted");
        }
        assert_eq!(verdict_of(move || examine(&missing, Cpuid::Check)), KvmVerdict::NoDevice);
        let denied = verdict_of(move || {
            // Of this thread alone; root would otherwise open anything.
            setfsuid(Uid::from_raw(65534));
            examine(&locked, Cpuid::Check)
        });
        assert_eq!(denied, KvmVerdict::Denied);
        let plain = verdict_of(move || examine(&plain, Cpuid::Check));
        assert!(matches!(plain, KvmVerdict::OldApi { .. }), "{plain:?}");
        assert_eq!(refused("KVM_CREATE_VM", Errno::EBUSY), KvmVerdict::Busy);
        assert!(matches!(unopened(Errno::EMFILE), KvmVerdict::Error { .. }));
    }
}
