//! Random histories of specs, host files and one step cache: a build with the cache produces the same image as a build
//! without, or it is refused. Host files change before a build, between its plan and its reads, and at the start, in the
//! middle and at the end of a read; some changes are reverted at once. Layers are evicted, and memory cannot always be
//! kept.
//!
//! The guest is two folders, one for its disk and one for its memory, which a reboot empties. It handles a tree with the
//! agent's own code; the result of a command depends on all that the command could see. Everything on the host's side
//! except QEMU is the real implementation. `KILN_INPUT_HISTORIES` sets their number.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::SystemTime;

use crate::copy_filter::CopyFilter;
use crate::digest::{Sha256Digest, hex};
use crate::digest_cache::DigestCache;
use crate::layer::evict::evict;
use crate::machine::checkpoint::RamFormat;
use crate::plan::{Facts, InputDigest, PlannedStep, input_path};
use crate::resolve::facts::examine_inputs;
use crate::resolve::inputs::{InputError, check_sent, read_script};
use crate::session::receive::receive;
use crate::session::{FetchLimits, FetchRequest, PackError, StageContent, StageSource, testing};
use crate::specfile::{Command, FileOwner, Overrides, Spec};
use crate::wire::tree::Layout;

use super::tests::{Dice, facts, hello, scratch_folder};
use super::*;

/// The default number of histories: it finds every bug that there ever was, and takes a few seconds.
const USUAL: u64 = 30;
const BUILDS: u64 = 5;

/// The result of a build: a line for each entry of the guest and of what was fetched, without times.
type Image = BTreeMap<String, String>;

/// A change of host files.
type Change = Box<dyn FnOnce()>;

/// Changes, each with the bytes of a stream that pass before it; the last comes first.
type Timed = Vec<(usize, Change)>;

/// The reason why a build has no result.
#[derive(Debug, PartialEq, Eq)]
enum BuildRefusal {
    /// A host file differs from the planned one.
    Changed,
    /// The guest refused the step of this number.
    Guest(usize),
}

/// The moment at which host files change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Never,
    BeforeRead,
    AtStart,
    InTheMiddle,
    AtEnd,
    /// While the file is read; the change is reverted before the read is over.
    ThereAndBack,
}

const MOMENTS: [Moment; 6] =
    [Moment::Never, Moment::BeforeRead, Moment::AtStart, Moment::InTheMiddle, Moment::AtEnd, Moment::ThereAndBack];

#[derive(Debug, Default)]
struct Counts {
    builds: u64,
    cached_steps: u64,
    cached_fetches: u64,
    /// Builds that continued from a disk without memory.
    booted_layers: u64,
    layers: u64,
    /// Steps without a layer of their own.
    covered_steps: u64,
    changed: BTreeMap<Moment, u64>,
    equal: BTreeMap<Moment, u64>,
    by_guest: u64,
    not_planned: u64,
}

struct SimulatedHost {
    folder: tempfile::TempDir,
    dice: Dice,
    /// The images of all keys so far.
    images: BTreeMap<String, Image>,
    made: u64,
}

/// The writer of a tree stream, which changes host files after a number of bytes.
struct DisturbedWriter {
    out: Vec<u8>,
    changes: Timed,
}

impl Write for DisturbedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while self.changes.last().is_some_and(|(at, _)| self.out.len() >= *at) {
            if let Some((_, change)) = self.changes.pop() {
                change();
            }
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A build in progress.
struct SimulatedBuild<'a> {
    plan: &'a Plan,
    machine: PathBuf,
    fetched: PathBuf,
    limits: FetchLimits,
    /// Whether host files differ from those of the plan.
    is_disturbed: bool,
}

impl SimulatedHost {
    fn new(seed: u64) -> Self {
        let folder = scratch_folder();
        let dice = Dice::new(seed);
        let mut world = Self { folder, dice, images: BTreeMap::new(), made: 0 };
        let project = world.place("project");
        fs::create_dir_all(project.join("site/sub")).unwrap();
        for file in ["a.conf", "b.conf", "s.sh", "site/index", "site/sub/page"] {
            fs::write(project.join(file), "#!/bin/sh\none").unwrap();
        }
        fs::write(project.join("site/large"), vec![1; 40_000]).unwrap();
        symlink("site", project.join("linked")).unwrap();
        if world.dice.roll(2) == 0 {
            fs::create_dir(project.join(".git")).unwrap();
        }
        world
    }

    fn layers(&self) -> LayerCache {
        LayerCache::open(&self.place("cache"), Arc::new(DigestCache::load(self.folder.path()))).unwrap()
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.dice.roll(length as u64)).unwrap()
    }

    fn step(&mut self, number: usize) -> String {
        let guest = self.place("machine/disk").display().to_string();
        let to = self.pick(&["/srv", "/srv/", "/srv/www", "/srv/www/", "/etc/a.conf"]);
        let owner = me();
        let owner = format!("owner = '{}:{}'\n", owner.user, owner.group.unwrap());
        let mode = self.pick(&["", "", "mode = '0640'\n"]);
        let cache = self.pick(&["", "", "", "", "", "cache = false\n"]);
        let step = match self.dice.roll(12) {
            0..=4 => {
                let from =
                    self.pick(&["a.conf", "b.conf", "site", "site/", "site/sub", "site/index", "linked", "linked/sub"]);
                format!("copy = '{from}'\nto = '{guest}{to}'\n{owner}{mode}")
            }
            5 => {
                format!("script = 's.sh'\nargs = ['{}']\nenv = {{ A = '{}' }}\n", self.dice.roll(2), self.dice.roll(2))
            }
            6 => {
                format!("write = 'w{}'\nto = '{guest}/{}'\n{owner}", self.dice.roll(3), self.pick(&["w", "srv/www/w"]))
            }
            7 => format!("fetch = '{guest}/srv'\nto = 'fetched-{number}'\n"),
            8 => "reboot = true\n".to_owned(),
            9 => format!("run = 'do {}'\nsecrets = ['token']\n", self.dice.roll(3)),
            _ => format!("run = 'do {}'\n", self.dice.roll(3)),
        };
        format!("[[step]]\n{step}{cache}")
    }

    fn spec(&mut self) -> Spec {
        let guest = self.place("machine/disk");
        let mut text = format!(
            "[image]\nname = 'a'\nversion = '1'\n[base]\nfile = 'b'\n[vars]\nv = '{}'\n\
             [secrets]\ntoken = {{ env = 'T' }}\n[[step]]\nrun = 'folder {}/srv'\n",
            self.dice.roll(2),
            guest.display()
        );
        for number in 0..=self.index(6) {
            text.push_str(&self.step(number));
        }
        Spec::parse(&self.place("project/kiln.toml"), &text, &Overrides::default()).unwrap()
    }

    /// Picks a file at or below a path, or any file where there is none.
    fn pick_below(&mut self, path: &Path) -> PathBuf {
        let project = self.place("project");
        let all =
            ["a.conf", "b.conf", "s.sh", "site/index", "site/sub/page", "site/large"].map(|file| project.join(file));
        let below: Vec<&PathBuf> = all.iter().filter(|file| file.starts_with(path)).collect();
        if below.is_empty() { all[0].clone() } else { self.pick(&below).clone() }
    }

    /// Returns a change of something in the project.
    fn change(&mut self) -> Change {
        let project = self.place("project");
        let file = self.pick_below(&project);
        self.change_file(file)
    }

    /// Returns a change of a step's input.
    fn change_input(&mut self, planned: &PlannedStep) -> Change {
        let file = self.pick_below(input_path(&planned.step.action).unwrap());
        self.change_file(file)
    }

    fn change_file(&mut self, file: PathBuf) -> Change {
        let project = self.place("project");
        let number = self.dice.roll(3);
        let mode = self.pick(&[0o600, 0o644, 0o640, 0o755]);
        let kind = self.dice.roll(18);
        // A file that is no longer there cannot be changed.
        Box::new(move || {
            let _ = change(kind, &project, &file, number, mode);
        })
    }

    /// Runs a build twice: undisturbed, and with the cache and changes of host files.
    fn build(&mut self, spec: Spec, counts: &mut Counts) {
        let memo = DigestCache::load(self.folder.path());
        let examined = examine_inputs(&spec, &[], &memo);
        if !examined.errors.is_empty() {
            counts.not_planned += 1;
            return;
        }
        let plan = Plan::new(spec, &Facts { inputs: examined.facts, ..facts(0) }).unwrap();
        let expected = self.run(&plan, None, Moment::Never, counts);
        assert_ne!(expected, Err(BuildRefusal::Changed), "nothing has changed");
        if let Ok(image) = &expected {
            let known = self.images.entry(plan.build_key.to_string()).or_insert_with(|| image.clone());
            assert_eq!(known, image, "one key stands for two images");
        }
        let moment = self.pick(&MOMENTS);
        let cache = self.layers();
        let found = self.run(&plan, Some(&cache), moment, counts);
        counts.builds += 1;
        // The guest may refuse a changed input before the host notices the change.
        let is_refused = found == Err(BuildRefusal::Changed) || (found.is_err() && found != expected);
        if is_refused && moment != Moment::Never {
            *counts.changed.entry(moment).or_default() += 1;
            return;
        }
        assert_eq!(found, expected, "with the cache, {moment:?}");
        *counts.equal.entry(moment).or_default() += 1;
        counts.by_guest += u64::from(found.is_err());
    }

    fn run(
        &mut self,
        plan: &Plan,
        cache: Option<&LayerCache>,
        moment: Moment,
        counts: &mut Counts,
    ) -> Result<Image, BuildRefusal> {
        let machine = self.place("machine");
        let fetched = self.place("fetched");
        clear_machine(&machine);
        clear(&fetched);
        let mut layers = StepCache::new(plan, Events::new(Vec::new()), cache.cloned(), self.folder.path());
        let (begin, done) = cache.map_or((ResumePoint::Base, Vec::new()), |cache| layers.look(cache));
        restore_machine(&begin, &machine);
        let is_booted = !matches!(begin, ResumePoint::Memory(..));
        counts.booted_layers += u64::from(matches!(begin, ResumePoint::Disk(_)));
        counts.cached_steps += done.len() as u64;
        layers.began(begin);
        if let Some(boot) = layers.note_boot(self.some_time()).filter(|_| is_booted) {
            self.keep(&mut layers, LayerKind::Memory, boot, counts);
        }
        let limits = FetchLimits::new(1 << 30);
        let mut running = SimulatedBuild { plan, machine, fetched, limits, is_disturbed: false };
        for index in (0..done.len()).filter(|index| fetches(&plan.steps[*index].step.action)) {
            let stream = layers.fetched(index).expect("a layer holds what its steps fetched");
            running.take(index, &fs::read(stream).unwrap());
            counts.cached_fetches += 1;
        }
        let reads = (done.len()..plan.steps.len()).filter(|index| plan.steps[*index].input.is_some());
        let reads: Vec<usize> = reads.collect();
        let disturbed = (!reads.is_empty()).then(|| self.pick(&reads));
        for index in done.len()..plan.steps.len() {
            let moment = if Some(index) == disturbed { moment } else { Moment::Never };
            running.is_disturbed |= moment != Moment::Never;
            let stream = self.do_step(&mut running, index, moment)?;
            let done =
                StepRecord { took: self.some_time(), cached: false, during: None, fetched: FetchedTree::default() };
            if let Some((kind, step)) = layers.note_step(index, &done, stream) {
                self.keep(&mut layers, kind, step, counts);
            }
        }
        let mut image = listing(&running.machine.join("disk"));
        image.extend(listing(&running.fetched).into_iter().map(|(path, what)| (format!("fetched {path}"), what)));
        Ok(image)
    }

    fn some_time(&mut self) -> Duration {
        Duration::from_secs(self.pick(&[0, 1, 5, 60]))
    }

    /// Runs a step; returns the file with the stream of a fetched tree.
    fn do_step(
        &mut self,
        running: &mut SimulatedBuild<'_>,
        index: usize,
        moment: Moment,
    ) -> Result<Option<PathBuf>, BuildRefusal> {
        let plan = running.plan;
        let planned = &plan.steps[index];
        if moment == Moment::BeforeRead {
            self.change_input(planned)();
        }
        let refused = |_| BuildRefusal::Guest(index);
        match &planned.step.action {
            Action::Copy(copy) => {
                let (sent, stream) = self
                    .pack(&StageSource::of_copy(copy, CopyFilter::default()), planned, moment)
                    .map_err(|error| {
                        assert!(running.is_disturbed, "nothing has changed: {error}");
                        BuildRefusal::Changed
                    })?;
                testing::unpack_stream(&stream[..]).map_err(refused)?;
                check_sent(planned, &InputDigest::Tree(sent), &copy.from).map_err(|_| BuildRefusal::Changed)?;
            }
            Action::Script { file, args, context } => {
                let undo = (moment == Moment::ThereAndBack).then(|| fs::read(file));
                let _ = undo.as_ref().map(|_| fs::write(file, "another"));
                let read = read_script(planned, file);
                if let Some(Ok(content)) = undo {
                    fs::write(file, content).unwrap();
                }
                let content = match read {
                    Err(InputError::Changed { .. } | InputError::Lost { .. }) => return Err(BuildRefusal::Changed),
                    other => other.unwrap(),
                };
                running.note(&format!("{} {args:?} {:?}", Sha256Digest::of(content), context.env));
            }
            Action::Write { content, to, owner, mode } => {
                let what = StageContent::Text { content: content.clone().into(), mtime: SystemTime::UNIX_EPOCH };
                let source = StageSource { what, to: to.clone(), into: false, owner: owner.clone(), mode: Some(*mode) };
                let mut stream = Vec::new();
                source.write_to(&mut stream, Layout::Packed).unwrap();
                testing::unpack_stream(&stream[..]).map_err(refused)?;
            }
            Action::Fetch { from, .. } => {
                let stream = testing::pack_stream(Path::new(from)).map_err(|_| BuildRefusal::Guest(index))?;
                running.take(index, &stream);
                self.made += 1;
                let file = self.place(&format!("tree-{}", self.made));
                fs::write(&file, stream).unwrap();
                return Ok(Some(file));
            }
            Action::Reboot => clear(&running.machine.join("run")),
            Action::Run { command: Command::Shell(text), .. } => match text.strip_prefix("folder ") {
                Some(folder) => fs::create_dir_all(folder).map_err(|_| BuildRefusal::Guest(index))?,
                None => running.note(text),
            },
            other @ Action::Run { .. } => panic!("{other:?}"),
        }
        Ok(None)
    }

    /// Reads what a step copies, and changes host files meanwhile.
    fn pack(
        &mut self,
        source: &StageSource,
        planned: &PlannedStep,
        moment: Moment,
    ) -> Result<(Sha256Digest, Vec<u8>), PackError> {
        let length =
            planned.input.as_ref().map_or(0, |input| usize::try_from(input.bytes + 100 * input.entries).unwrap());
        let middle = 1 + self.index(length.max(1));
        let changes: Timed = match moment {
            Moment::AtStart => vec![(0, self.change_input(planned))],
            Moment::InTheMiddle => vec![(middle, self.change_input(planned))],
            Moment::ThereAndBack => self.there_and_back(planned, middle),
            _ => Vec::new(),
        };
        let layout = self.pick(&[Layout::Packed, Layout::Aligned]);
        let mut out = DisturbedWriter { out: Vec::new(), changes };
        let packed = source.write_to(&mut out, layout);
        if moment == Moment::AtEnd {
            self.change_input(planned)();
        }
        Ok((packed?.sha256, out.out))
    }

    /// Returns a change of content at the start, and its reversal later, latest change first.
    fn there_and_back(&mut self, planned: &PlannedStep, later: usize) -> Timed {
        let file = self.pick_below(input_path(&planned.step.action).unwrap());
        let Ok(content) = fs::read(&file) else { return Vec::new() };
        let other = vec![b'?'; content.len()];
        let first = file.clone();
        let second = file;
        // In place: the same inode, size and mode throughout.
        let write = |path: &Path, content: &[u8]| {
            let _ = fs::File::options().write(true).open(path).and_then(|file| file.write_all_at(content, 0));
        };
        vec![(later, Box::new(move || write(&second, &content))), (0, Box::new(move || write(&first, &other)))]
    }

    /// Makes a layer, as after a freeze of the guest's disk. Memory sometimes cannot be kept.
    fn keep(&mut self, layers: &mut StepCache<'_>, kind: LayerKind, step: FinishedStep, counts: &mut Counts) {
        let Some(cache) = layers.cache() else { return };
        self.made += 1;
        let machine = self.place("machine");
        let draft = cache.draft().unwrap();
        let disk = self.place(&format!("disk-{}", self.made));
        fs::write(&disk, snapshot(&machine.join("disk"))).unwrap();
        draft.take_disk(&disk).unwrap();
        fs::remove_file(disk).unwrap();
        let memory = (kind == LayerKind::Memory && self.dice.roll(4) > 0).then(|| {
            fs::write(draft.ram(), snapshot(&machine)).unwrap();
            let hello = serde_json::to_value(hello()).unwrap();
            RecordedMemory { format: RamFormat::Stream.name().to_owned(), machine: layers.machine, hello }
        });
        let made = layers.describe(step, memory);
        counts.layers += 1;
        counts.covered_steps += made.covers.len() as u64;
        draft.commit(made).unwrap();
    }
}

impl SimulatedBuild<'_> {
    fn take(&mut self, index: usize, stream: &[u8]) {
        let Action::Fetch { from, to } = &self.plan.steps[index].step.action else { panic!("no fetch") };
        let root = self.fetched.clone();
        let request = FetchRequest { from: from.clone(), root, to: to.clone(), limits: self.limits };
        let (tree, _) = receive(stream, &request).unwrap();
        self.limits = self.limits.besides(&tree);
    }

    /// Runs a command whose result depends on all that it can see, and which leaves traces on the disk and in memory.
    fn note(&self, text: &str) {
        let seen = Sha256Digest::of(format!("{text} {:?} {:?}", self.plan.spec.vars, listing(&self.machine)));
        for log in ["disk/log", "run/log"].map(|log| self.machine.join(log)) {
            let before = fs::read_to_string(&log).unwrap_or_default();
            fs::write(&log, format!("{before}{seen}\n")).unwrap();
            fs::set_permissions(log, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}

fn me() -> FileOwner {
    FileOwner { user: nix::unistd::getuid().to_string(), group: Some(nix::unistd::getgid().to_string()) }
}

/// Changes something in the project.
fn change(kind: u64, project: &Path, file: &Path, number: u64, mode: u32) -> io::Result<()> {
    // Scripts have to begin with this line.
    let text = format!("#!/bin/sh\ntext {number}");
    match kind {
        0 | 1 => fs::write(file, text),
        2 => fs::set_permissions(file, fs::Permissions::from_mode(mode)),
        3 => fs::rename(project.join("a.conf"), project.join("b.conf")),
        4 => fs::rename(project.join("b.conf"), project.join("a.conf")),
        5 => fs::File::options().append(true).open(file)?.write_all(b"more"),
        6 => fs::File::options().write(true).open(file)?.set_len(10 + number),
        7 => {
            let _ = fs::remove_file(project.join("site/link"));
            symlink(["index", "sub", "../b.conf"][usize::try_from(number).unwrap_or(0)], project.join("site/link"))
        }
        8 => {
            let new = project.join("site/.new");
            fs::write(&new, text)?;
            fs::rename(new, file)
        }
        9 => {
            let _ = fs::remove_file(project.join("site/same"));
            fs::hard_link(file, project.join("site/same"))
        }
        10 => fs::create_dir(project.join(format!("site/new-{number}"))),
        11 => fs::File::options().write(true).open(file)?.set_modified(SystemTime::UNIX_EPOCH),
        12 => nix::unistd::mkfifo(&project.join("site/pipe"), nix::sys::stat::Mode::S_IRWXU).map_err(io::Error::from),
        13 => UnixListener::bind(project.join("site/socket")).map(drop),
        14 => fs::File::create(file)?.write_all_at(b"end of a hole", 100_000 * (number + 1)),
        15 => {
            fs::remove_file(project.join("linked"))?;
            symlink(if number == 0 { "site" } else { "site/sub" }, project.join("linked"))
        }
        16 => {
            // A folder is replaced by a link to the same folder.
            fs::rename(project.join("site/sub"), project.join("sub"))?;
            symlink("../sub", project.join("site/sub"))
        }
        _ => testing::set_xattr(file, b"user.kiln", text.as_bytes()),
    }
}

fn clear(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

fn clear_machine(machine: &Path) {
    clear(machine);
    clear(&machine.join("disk"));
    clear(&machine.join("run"));
}

/// Packs a folder as a stream that restores it.
fn snapshot(folder: &Path) -> Vec<u8> {
    let what = StageContent::Path { from: folder.to_owned(), contents: true, filter: CopyFilter::default() };
    let source = StageSource { what, to: folder.to_str().unwrap().into(), into: false, owner: me(), mode: None };
    let mut stream = Vec::new();
    source.write_to(&mut stream, Layout::Packed).unwrap();
    stream
}

/// Restores the state that a build begins with. A boot of a layer's disk leaves nothing in memory.
fn restore_machine(begin: &ResumePoint, machine: &Path) {
    let snapshot = match begin {
        ResumePoint::Base => return,
        ResumePoint::Disk(stack) => stack.top().disk(),
        ResumePoint::Memory(stack, ..) => stack.top().ram(),
    };
    testing::unpack_stream(&fs::read(snapshot).unwrap()[..]).unwrap();
    for folder in ["disk", "run"] {
        fs::set_permissions(machine.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Lists everything below a folder, without times.
fn listing(folder: &Path) -> Image {
    let mut found = Image::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(path) = waiting.pop() {
        let about = fs::symlink_metadata(&path).unwrap();
        let what = if about.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "folder".to_owned()
        } else if about.file_type().is_fifo() {
            "pipe".to_owned()
        } else if about.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            let xattr = testing::xattr(&path, b"user.kiln").unwrap_or_default();
            format!("{} {} {}", about.nlink(), Sha256Digest::of(fs::read(&path).unwrap()), hex(&xattr))
        };
        let name = path.strip_prefix(folder).unwrap().display().to_string();
        found.insert(name, format!("{:o} {what}", about.mode()));
    }
    found
}

#[test]
fn histories_of_changing_inputs_give_the_planned_image_or_none() {
    let wanted = std::env::var("KILN_INPUT_HISTORIES").map_or(USUAL, |text| text.parse().unwrap());
    let mut counts = Counts::default();
    for seed in 1..=wanted {
        let mut world = SimulatedHost::new(seed);
        for _ in 0..BUILDS {
            let spec = world.spec();
            // The same spec again, with or without changes of the host.
            for _ in 0..2 {
                (0..world.dice.roll(3)).for_each(|_| world.change()());
                world.build(spec.clone(), &mut counts);
            }
            if world.dice.roll(4) == 0 {
                evict(&world.layers(), world.dice.roll(200_000)).unwrap();
            }
        }
    }
    println!("{wanted} histories, 0 differences: {counts:?}");
    let refused: u64 = counts.changed.values().sum();
    let tried =
        [counts.cached_steps, counts.cached_fetches * 10, counts.booted_layers * 20, counts.covered_steps, refused];
    assert!(tried.iter().all(|count| *count > wanted) && counts.by_guest > wanted / 10, "tries too little: {counts:?}");
    let refusing = [Moment::BeforeRead, Moment::AtStart, Moment::InTheMiddle, Moment::ThereAndBack];
    assert!(refusing.iter().all(|moment| counts.changed.contains_key(moment)), "some are never refused: {counts:?}");
}
