//! Random histories of one cache, compared with what each spec describes: builds of changing specs, killed ones, other
//! machines, evictions and damage, in any order. The guest is two strings to which each step appends, one on its disk and
//! one in its memory alone, which a boot empties. A layer's disk holds what its step appended, its memory both strings.
//! Everything between the plan and the files is the real implementation.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use crate::digest::{FileStamp, Sha256Digest};
use crate::digest_cache::DigestCache;
use crate::layer::evict::evict;
use crate::machine::checkpoint::RamFormat;
use crate::plan::host::{Host, KvmVerdict, Qemu, QemuVersion};
use crate::plan::{BaseFacts, Facts};
use crate::session::Hello;
use crate::specfile::{Overrides, Spec};

use super::*;

const HISTORIES: u64 = 500;
const EVENTS: u64 = 8;

/// An xorshift generator: a history is identified by its number.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Creates a folder, in memory where that is possible: a layer is synced to its disk, thousands of times.
pub(super) fn scratch_folder() -> tempfile::TempDir {
    ["/dev/shm", "/tmp"].into_iter().find_map(|place| tempfile::tempdir_in(place).ok()).unwrap()
}

/// The state of a guest.
#[derive(Clone, Default)]
struct GuestState {
    disk: String,
    /// The string since the last boot.
    memory: String,
}

impl GuestState {
    fn add(&mut self, change: &str, boots: bool) {
        self.disk.push_str(change);
        self.memory.push_str(change);
        if boots {
            self.memory.clear();
        }
    }

    fn restored(text: &str) -> Self {
        let (disk, memory) = text.split_once('\n').unwrap();
        Self { disk: disk.into(), memory: memory.into() }
    }
}

/// Returns the steps of a trail, without the numbers that tell their runs apart.
fn does(trail: &str) -> Vec<&str> {
    trail.split(' ').filter_map(|word| Some(word.split_once('#')?.0)).collect()
}

struct World {
    folder: tempfile::TempDir,
    dice: Dice,
    /// Another number, another QEMU.
    micro: u32,
    made: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self { folder: scratch_folder(), dice: Dice::new(seed), micro: 0, made: 0 }
    }

    fn cache(&self) -> LayerCache {
        LayerCache::open(self.folder.path(), Arc::new(DigestCache::load(self.folder.path()))).unwrap()
    }

    fn plan(&mut self) -> Plan {
        let variable = self.dice.roll(3);
        let mut text = format!("[image]\nname = 'a'\nversion = '1'\n[base]\nfile = 'b'\n[vars]\nv = '{variable}'\n");
        for _ in 0..=self.dice.roll(4) {
            let (command, cache) = (self.dice.roll(3), self.dice.roll(8) > 0);
            let action = if self.dice.roll(5) == 0 { "reboot = true".into() } else { format!("run = 'do {command}'") };
            let step = format!("[[step]]\n{action}\ncache = {cache}\n");
            text.push_str(&step);
        }
        let spec = Spec::parse(Path::new("/spec"), &text, &Overrides::default()).unwrap();
        Plan::new(spec, &facts(self.micro)).unwrap()
    }

    /// Runs a build to its end, or to a random step, and compares the guest with what it should be.
    fn build(&mut self, killed: bool) {
        let plan = self.plan();
        let steps = if killed { self.index(plan.steps.len() + 1) } else { plan.steps.len() };
        let cache = self.cache();
        let mut layers = StepCache::new(&plan, Events::new(Vec::new()), None, self.folder.path());
        let (begin, done) = layers.look(&cache);
        let mut guest = match &begin {
            ResumePoint::Base => GuestState::default(),
            ResumePoint::Disk(stack) => GuestState { disk: disks(stack), memory: String::new() },
            ResumePoint::Memory(stack, ..) => {
                let state = GuestState::restored(&fs::read_to_string(stack.top().ram()).unwrap());
                assert_eq!(state.disk, disks(stack), "memory and disks are of different makings");
                state
            }
        };
        let booted = matches!(begin, ResumePoint::Base);
        layers.began(begin);
        if booted {
            self.keep(&cache, &mut layers, plan.base_key, "boot", &mut guest);
        }
        let keys = StepCache::keys(&plan);
        for index in done.len()..steps {
            let does = what(&plan, index);
            match keys.get(index + 1) {
                Some(key) => self.keep(&cache, &mut layers, *key, &does, &mut guest),
                None => guest.add(&format!("{does}#0 "), does == "reboot"),
            }
        }
        let wanted = (0..steps.max(done.len())).map(|index| what(&plan, index));
        let wanted: Vec<String> = std::iter::once("boot".to_owned()).chain(wanted).collect();
        assert_eq!(does(&guest.disk), wanted);
        let booted = wanted.iter().rposition(|does| *does == "boot" || *does == "reboot").unwrap();
        assert_eq!(does(&guest.memory), wanted[booted + 1..], "what lives in memory alone");
        if killed {
            // A draft of a killed build.
            let draft = self.folder.path().join("layers/draft-dead");
            let _ = fs::create_dir(&draft);
            let _ = fs::write(draft.join("disk.qcow2"), "half");
        }
    }

    /// Makes a layer with the trail of steps on the disk, and with all of it in memory. No two layers are the same.
    fn keep(
        &mut self,
        cache: &LayerCache,
        layers: &mut StepCache<'_>,
        key: CacheKey,
        does: &str,
        guest: &mut GuestState,
    ) {
        self.made += 1;
        let change = format!("{does}#{} ", self.made);
        guest.add(&change, does == "boot" || does == "reboot");
        let disk = self.folder.path().join(format!("overlay-{}", self.made));
        fs::write(&disk, &change).unwrap();
        let draft = cache.draft().unwrap();
        draft.take_disk(&disk).unwrap();
        fs::remove_file(disk).unwrap();
        let memory = (self.dice.roll(2) == 0).then(|| {
            fs::write(draft.ram(), format!("{}\n{}", guest.disk, guest.memory)).unwrap();
            let hello = serde_json::to_value(hello()).unwrap();
            RecordedMemory { format: RamFormat::Stream.name().to_owned(), machine: layers.machine, hello }
        });
        let name = Name::new(key);
        let parent = layers.parent.replace(name.clone());
        let seconds = f64::from(u32::try_from(self.dice.roll(60)).unwrap());
        draft
            .commit(LayerMetadata {
                name,
                parent,
                seconds,
                during: None,
                memory,
                fetched: Vec::new(),
                covers: Vec::new(),
            })
            .unwrap();
    }

    /// Damages a file of some layer.
    fn damage(&mut self) {
        let Ok(entries) = fs::read_dir(self.folder.path().join("layers")) else { return };
        let mut folders: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        if folders.is_empty() {
            return;
        }
        let folder = folders.swap_remove(self.index(folders.len()));
        let file = folder.join(["disk.qcow2", "ram", "layer.json"][self.index(3)]);
        let Ok(mut content) = fs::read(&file) else { return };
        match self.dice.roll(4) {
            0 => fs::remove_file(file).unwrap(),
            1 => fs::remove_dir_all(folder).unwrap(),
            2 => fs::write(file, &content[..content.len() / 2]).unwrap(),
            _ => {
                let at = self.index(content.len());
                content[at] ^= 1;
                fs::write(file, content).unwrap();
            }
        }
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.dice.roll(length as u64)).unwrap()
    }
}

/// Returns what a step does, as it sees itself.
fn what(plan: &Plan, index: usize) -> String {
    if matches!(plan.steps[index].step.action, Action::Reboot) {
        return "reboot".into();
    }
    let Action::Run { command: crate::specfile::Command::Shell(text), .. } = &plan.steps[index].step.action else {
        panic!("all steps are commands")
    };
    format!("{}/{}", text.replace(' ', "-"), plan.spec.vars["v"])
}

fn disks(stack: &Stack) -> String {
    stack.layers().map(|layer| fs::read_to_string(layer.disk()).unwrap()).collect()
}

pub(super) fn hello() -> Hello {
    Hello {
        boot_id: "b".into(),
        instance_id: None,
        os: "o".into(),
        os_id: "o".into(),
        kernel: "k".into(),
        arch: "a".into(),
        clock: SystemTime::UNIX_EPOCH,
        systemd: true,
    }
}

pub(super) fn facts(micro: u32) -> Facts {
    let qemu = Qemu {
        system: "/qemu".into(),
        version: QemuVersion { major: 10, minor: 0, micro },
        machine_type: "pc-q35-10.0".into(),
    };
    let host = Host {
        cpus: 2,
        cpu_model: "unknown".into(),
        processor: Sha256Digest::of("p"),
        memory: crate::size::ByteSize(4 << 30),
        qemu,
        kvm: KvmVerdict::NoDevice,
        firmware: Vec::new(),
    };
    Facts {
        host,
        base: BaseFacts {
            file: "/base.qcow2".into(),
            format: crate::specfile::BaseFormat::Qcow2,
            sha256: Sha256Digest::new([0; 32]),
            virtual_size: 2 << 30,
            source: "base.qcow2".into(),
            pinned: false,
            image: None,
            agent_obstacle: None,
            stamp: FileStamp::from(&fs::metadata("/").unwrap()),
            kernel: None,
        },
        firmware: None,
        inputs: std::collections::BTreeMap::new(),
        agent_build: "a".into(),
        seal_build: "s".into(),
        source_date_epoch: None,
    }
}

#[test]
fn random_histories_of_a_cache_never_lie() {
    let (mut builds, mut hits) = (0, 0);
    for seed in 1..=HISTORIES {
        let mut world = World::new(seed);
        for _ in 0..EVENTS {
            match world.dice.roll(8) {
                0 => world.damage(),
                1 => drop(evict(&world.cache(), world.dice.roll(60_000)).unwrap()),
                2 => world.micro = 1 - world.micro,
                3 => world.build(true),
                _ => {
                    let before = world.made;
                    world.build(false);
                    builds += 1;
                    hits += u64::from(world.made == before);
                }
            }
        }
    }
    assert!(
        builds > 3 * HISTORIES && hits > HISTORIES / 20,
        "{hits} of {builds} builds made nothing: tries too little"
    );
}

#[test]
fn another_machine_has_other_layers_and_the_same_version() {
    let text = "[image]\nname = 'a'\nversion = '1'\n[base]\nfile = 'b'\n[machine]\ncpus = 4\n[[step]]\nrun = 'true'\n";
    let plan = |facts: &Facts| {
        let spec = Spec::parse(Path::new("/spec"), text, &Overrides::default()).unwrap();
        Plan::new(spec, facts).unwrap()
    };
    let here = plan(&facts(0));
    let mut changed = [facts(0), facts(0), facts(0)];
    changed[0].host.qemu.machine_type = "pc-q35-9.0".into();
    changed[1].host.cpus = 4;
    changed[2].host.kvm = KvmVerdict::Usable;
    for facts in &changed {
        let there = plan(facts);
        assert_ne!(there.base_key, here.base_key);
        assert_ne!(there.steps[0].key, here.steps[0].key);
        assert_eq!(there.build_key, here.build_key);
    }
}
