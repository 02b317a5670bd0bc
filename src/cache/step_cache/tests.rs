//! Random histories of one cache, compared with what each spec describes: builds of changing specs, killed ones, other
//! machines, downloads that change, evictions and damage, in any order. The guest is two strings to which each step appends,
//! one on its disk and one in its memory alone, which a boot empties. A layer's disk holds what its step appended, its memory
//! both strings. Everything between the plan and the files is the real implementation.

use std::fs;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::SystemTime;

use crate::digest::{FileStamp, Sha256Digest};
use crate::digest_cache::DigestCache;
use crate::layer::evict::evict;
use crate::machine::checkpoint::RamFormat;
use crate::network_record::{NetworkRecord, RecordedAnswer, StepAnswers, digest_of};
use crate::plan::host::{Host, KvmVerdict, Qemu, QemuVersion};
use crate::plan::{BaseFacts, Facts};
use crate::session::Hello;
use crate::specfile::{NetworkBackend, Overrides, Spec};

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
    /// What `kiln.lock` records.
    lock: Option<NetworkRecord>,
    /// The state of the servers: with another number, every URL has another content.
    upstream: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self { folder: scratch_folder(), dice: Dice::new(seed), micro: 0, made: 0, lock: None, upstream: 0 }
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
        if self.dice.roll(2) == 0 {
            text.push_str("[machine]\nnetwork = 'locked'\n");
        }
        let spec = Spec::parse(Path::new("/spec"), &text, &Overrides::default()).unwrap();
        let network = self.lock.clone().filter(|_| spec.machine.network == NetworkBackend::Locked);
        Plan::new(spec, &Facts { network, ..facts(self.micro) }).unwrap()
    }

    /// Returns what a step that runs gets: `do 0` and steps without a network get nothing, others what is recorded for their
    /// URL, or else what is there now.
    fn download(&self, plan: &Plan, index: usize) -> Vec<RecordedAnswer> {
        let step = &plan.steps[index];
        let command = what(plan, index);
        if step.downloads.is_none() || command.starts_with("do-0") {
            return Vec::new();
        }
        let url = format!("http://a/{}", &command[..4]);
        let mut recorded = plan.network.iter().flat_map(|record| &record.answers);
        let known = recorded.find(|answer| answer.request.url == url).cloned();
        vec![known.unwrap_or_else(|| answer(&url, &self.upstream.to_string(), &step.step.name))]
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
        let mut wanted = vec!["boot".to_owned()];
        for (index, planned) in plan.steps.iter().enumerate().take(done.len()) {
            let recorded = plan.network.iter().flat_map(|record| record.of_step(&planned.step.name));
            wanted.push(what_with(&plan, index, recorded));
        }
        let mut ran = StepAnswers::new();
        for index in done.len()..steps {
            let answers = self.download(&plan, index);
            let does = what_with(&plan, index, &answers);
            layers.rekey(index, digest_of(&answers));
            match layers.keys().get(index + 1) {
                Some(key) => self.keep(&cache, &mut layers, *key, &does, &mut guest),
                None => guest.add(&format!("{does}#0 "), does == "reboot"),
            }
            wanted.push(does);
            ran.insert(plan.steps[index].step.name.clone(), answers);
        }
        // A killed build records nothing.
        if !killed && !ran.is_empty() && plan.spec.machine.network == NetworkBackend::Locked {
            let names = plan.steps.iter().map(|planned| planned.step.name.clone()).collect();
            let now = jiff::Timestamp::UNIX_EPOCH;
            let record = NetworkRecord::after_build(plan.network.as_ref(), &names, &ran, now);
            let replanned = plan.with_network(record.clone());
            let next = StepCache::new(&replanned, Events::new(Vec::new()), None, self.folder.path());
            assert_eq!(layers.keys(), next.keys());
            self.lock = Some(record);
        }
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

/// Returns what a step does with what it downloads.
fn what_with<'a>(plan: &Plan, index: usize, answers: impl IntoIterator<Item = &'a RecordedAnswer>) -> String {
    let contents = answers.into_iter().map(|answer| format!("@{:.8}", answer.sha256));
    what(plan, index) + &contents.collect::<String>()
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
        network: None,
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
            match world.dice.roll(9) {
                4 if world.dice.roll(2) == 0 => world.lock = None,
                4 => world.upstream += 1,
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

fn locked_plan(network: Option<NetworkRecord>) -> Plan {
    let text = "[image]\nname = 'a'\nversion = '1'\n[base]\nfile = 'b'\n[vars]\nv = '0'\n\
                [machine]\nnetwork = 'locked'\n\
                [[step]]\nname = 'one'\nrun = 'one'\n[[step]]\nname = 'two'\nrun = 'two'\n[[step]]\nreboot = true\n";
    let spec = Spec::parse(Path::new("/spec"), text, &Overrides::default()).unwrap();
    Plan::new(spec, &Facts { network, ..facts(0) }).unwrap()
}

fn answer(url: &str, content: &str, step: &str) -> RecordedAnswer {
    let answer = crate::network_record::tests::answer(url, &[step]);
    RecordedAnswer { sha256: Sha256Digest::of(content), ..answer }
}

fn record(answers: &[RecordedAnswer]) -> NetworkRecord {
    NetworkRecord { answers: answers.to_vec(), ..NetworkRecord::default() }
}

/// Runs all steps with these downloads of the two commands, and returns the number of steps that came from the cache.
fn run_locked(world: &mut World, plan: &Plan, downloads: [&[RecordedAnswer]; 2]) -> usize {
    let cache = world.cache();
    let mut layers = StepCache::new(plan, Events::new(Vec::new()), None, world.folder.path());
    let (begin, done) = layers.look(&cache);
    let is_cold = matches!(begin, ResumePoint::Base);
    layers.began(begin);
    let mut guest = GuestState::default();
    if is_cold {
        world.keep(&cache, &mut layers, plan.base_key, "boot", &mut guest);
    }
    for index in done.len()..plan.steps.len() {
        if let Some(answers) = downloads.get(index) {
            layers.rekey(index, digest_of(*answers));
        }
        let key = layers.keys()[index + 1];
        world.keep(&cache, &mut layers, key, &what(plan, index), &mut guest);
    }
    done.len()
}

fn view(world: &World, plan: &Plan) -> CacheView {
    view_cache(plan, &world.cache(), &Events::new(Vec::new()))
}

#[test]
fn a_build_that_records_makes_the_layers_of_the_next_plan() {
    let mut world = World::new(1);
    let (one, two) = (answer("http://a/1", "1", "one"), answer("http://a/2", "2", "two"));
    let first = locked_plan(None);
    assert_eq!(run_locked(&mut world, &first, [from_ref(&one), from_ref(&two)]), 0);
    let recorded = locked_plan(Some(record(&[one.clone(), two.clone()])));
    assert_eq!(first.with_network(record(&[one.clone(), two.clone()])).build_key, recorded.build_key);
    // Whether the last layer has memory is random; without that, repeating the reboot is faster than its boot.
    let with_record = view(&world, &recorded);
    assert!(with_record.cached >= 2, "{with_record:?}");
    assert_eq!(with_record.unused.into_keys().collect::<Vec<_>>(), [0, 1, 2, 3], "every step has a layer");
    assert_eq!(run_locked(&mut world, &recorded, [from_ref(&one), from_ref(&two)]), with_record.cached);
    // Without the record nothing says that the layers are those of this spec, and other bytes make another layer.
    assert_eq!(view(&world, &first).unused.into_keys().collect::<Vec<_>>(), [0]);
    let changed = locked_plan(Some(record(&[one, answer("http://a/2", "changed", "two")])));
    let keys = |plan: &Plan| plan.steps.iter().map(|planned| planned.key).collect::<Vec<_>>();
    assert_eq!(keys(&changed)[0], keys(&recorded)[0]);
    assert_ne!(keys(&changed)[1], keys(&recorded)[1]);
    assert_ne!(keys(&changed)[2], keys(&recorded)[2]);
    assert_ne!(changed.build_key, recorded.build_key);
}

#[test]
fn a_step_that_downloads_nothing_keeps_its_key() {
    let mut world = World::new(1);
    let two = answer("http://a/2", "2", "two");
    let first = locked_plan(None);
    run_locked(&mut world, &first, [&[], from_ref(&two)]);
    let recorded = locked_plan(Some(record(&[two])));
    assert_eq!(recorded.steps[0].key, first.steps[0].key);
    assert_ne!(recorded.steps[1].key, first.steps[1].key);
    assert_eq!(
        recorded.steps.iter().map(|planned| planned.downloads.is_some()).collect::<Vec<_>>(),
        [true, true, false]
    );
}

#[test]
fn specs_without_a_locked_network_keep_their_keys() {
    let text = "[image]\nname = 'a'\nversion = '1'\n[base]\nfile = 'b'\n[[step]]\nrun = 'true'\n";
    let spec = Spec::parse(Path::new("/spec"), text, &Overrides::default()).unwrap();
    let plan = Plan::new(spec, &facts(0)).unwrap();
    assert_eq!(plan.steps[0].downloads, None);
    assert_eq!(plan.steps[0].key.to_string(), "d9ba48555b3176a5010f2dd2546fb72bb2137958c3f6dde13a2fef25609e249f");
    assert_eq!(plan.build_key.to_string(), "7021af1b8cced133a8f89478ab1110a465dd0af36738b4836fdec47511dfb204");
    let mut layers = StepCache::new(&plan, Events::new(Vec::new()), None, Path::new(""));
    layers.rekey(0, Sha256Digest::of("anything"));
    assert_eq!(layers.keys()[1], plan.steps[0].key);
}
