//! Computes the possible states after a power failure in a series of recorded calls: a model of the file system that
//! distinguishes what happened and what is durable.
//!
//! Each call changes one thing atomically: the names in one or two folders, the content of a file, a mode. An fsync of a
//! file makes its content and mode durable; one of a folder, its names and mode; nothing else does. Of the changes that are
//! not durable, any may be on the disk after a cut and any may be missing, in whatever order they were made, but for three
//! rules that every journal keeps: a name changes in the order in which it was changed, an entry is not moved from a place
//! before it is there, and a folder is not removed before it is empty. Content that is not durable may be missing, torn or
//! zero. That is less than ext4, XFS and Btrfs promise.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::faults::CompletedCall;
use crate::fs::Fs;

/// Limit of states of one cut. More mean that a sync is missing: their number doubles with each change that is not durable.
const MOST_OF_A_CUT: usize = 100_000;
const ROOT: Inode = 0;

/// Number of a file or folder, whatever its name.
type Inode = usize;
/// A name in a folder: the folder, and the number of the name.
type Slot = (Inode, usize);

#[derive(Debug, Clone, PartialEq)]
struct CrashNode {
    is_folder: bool,
    mode: u32,
    content: Vec<u8>,
}

#[derive(Debug)]
enum Effect {
    Names(Vec<(Slot, Option<Inode>)>),
    Content(Inode, Vec<u8>),
    Mode(Inode, u32),
}

#[derive(Debug)]
struct CrashChange {
    effect: Effect,
    /// Changes that are on the disk if this one is.
    needs: Vec<usize>,
    /// The change without which this one is not visible.
    hidden_without: Option<usize>,
}

/// State of a change after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CutState {
    Nothing,
    All,
    /// Only the first half of a file.
    Half,
    /// The first half of a file, and zeros for the rest.
    HalfAndZeros,
    /// Zeros, with the length of the file.
    Zeros,
}

/// Possible states of a change of metadata that is not durable.
const OF_METADATA: &[CutState] = &[CutState::Nothing, CutState::All];
const OF_CONTENT: &[CutState] =
    &[CutState::Nothing, CutState::All, CutState::Half, CutState::HalfAndZeros, CutState::Zeros];

/// Recorded calls on a tree that was durable before.
struct History {
    root: PathBuf,
    nodes: Vec<CrashNode>,
    names: Vec<String>,
    start: BTreeMap<Slot, Inode>,
    /// Number of nodes at the start.
    known: usize,
    /// The names after all calls.
    now: BTreeMap<Slot, Inode>,
    changes: Vec<CrashChange>,
    durable: HashSet<usize>,
    /// Number of changes after each call, and the durable ones. The first entry is before any call.
    cuts: Vec<(usize, HashSet<usize>)>,
}

/// The states seen so far.
#[derive(Debug, Default)]
struct VisitedStates {
    /// Number of states.
    states: usize,
    /// The distinct states, each created and checked: its tree, and whether all calls had been made.
    distinct: HashSet<(u64, bool)>,
}

/// An action whose power is cut. Each function is called with the folder of the action.
pub(crate) struct CrashScenario<'a> {
    /// Name of the action, for the line with the number of states.
    pub(crate) what: &'a str,
    /// Creates the initial state, all of it durable.
    pub(crate) prepare: &'a dyn Fn(&Path),
    /// Does the action, and returns whether it came to its end.
    pub(crate) act: &'a dyn Fn(&Path, &Fs) -> bool,
    /// Does the cleanup with which the next kiln begins.
    pub(crate) clear: &'a dyn Fn(&Path, &Fs),
    /// Checks a state, and returns what is wrong with it. It is passed whether the action had been reported as done.
    pub(crate) check: &'a dyn Fn(&Path, bool) -> Result<(), String>,
}

impl CrashScenario<'_> {
    /// Cuts the power at every point of one run, and of the cleanups after runs that were killed at any point.
    ///
    /// # Panics
    /// When `check` fails for a state.
    pub(crate) fn run(&self) {
        let mut seen = VisitedStates::default();
        assert!(self.cut(None, &mut seen), "it fails where nothing does");
        let mut kills = 0;
        while !self.cut(Some(kills), &mut seen) {
            kills += 1;
        }
        println!(
            "crash states of {}: {} after {kills} kills and none, {} different, 0 inconsistent",
            self.what,
            seen.states,
            seen.distinct.len()
        );
    }

    fn cut(&self, killed_after: Option<usize>, seen: &mut VisitedStates) -> bool {
        let folder = scratch();
        let root = folder.path().canonicalize().unwrap();
        (self.prepare)(&root);
        let fs = Fs::default();
        let history = History::begin(&root);
        fs.faults.record();
        fs.faults.die_after(killed_after.unwrap_or(usize::MAX));
        let is_over = (self.act)(&root, &fs);
        let from = killed_after.map_or(0, |_| fs.faults.recorded().len());
        fs.faults.heal();
        (self.clear)(&root, &fs);
        let history = history.play(&fs.faults.recorded());
        history.cut(from, seen, &|path, is_last| (self.check)(path, is_last && killed_after.is_none()));
        is_over
    }
}

impl History {
    /// Starts with the tree below a folder, all of it durable.
    fn begin(root: &Path) -> Self {
        let folder = CrashNode { is_folder: true, mode: 0o755, content: Vec::new() };
        let mut history = Self {
            root: root.to_owned(),
            nodes: vec![folder],
            names: Vec::new(),
            start: BTreeMap::new(),
            known: 0,
            now: BTreeMap::new(),
            changes: Vec::new(),
            durable: HashSet::new(),
            cuts: vec![(0, HashSet::new())],
        };
        history.scan(root, ROOT);
        history.start = history.now.clone();
        history.known = history.nodes.len();
        history
    }

    fn scan(&mut self, folder: &Path, inode: Inode) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let is_folder = metadata.is_dir();
            let content = if is_folder { Vec::new() } else { fs::read(entry.path()).unwrap() };
            let slot = (inode, self.name(entry.file_name().to_str().unwrap()));
            let below = self.node(CrashNode { is_folder, mode: metadata.permissions().mode() & 0o7777, content });
            self.now.insert(slot, below);
            if is_folder {
                self.scan(&entry.path(), below);
            }
        }
    }

    /// Plays these calls on the tree.
    fn play(mut self, calls: &[CompletedCall]) -> Self {
        for call in calls {
            self.apply(call);
            self.cuts.push((self.changes.len(), self.durable.clone()));
        }
        self
    }

    fn apply(&mut self, call: &CompletedCall) {
        match call {
            CompletedCall::MakeFolder(path, mode) => self.make(path, true, *mode),
            CompletedCall::Create(path) => self.make(path, false, 0o600),
            CompletedCall::Write(path, content) => self.change(Effect::Content(self.inode(path), content.clone())),
            CompletedCall::Mode(path, mode) => self.change(Effect::Mode(self.inode(path), *mode)),
            CompletedCall::Sync(path) => self.sync(self.inode(path)),
            CompletedCall::Link(from, to) => {
                let link = (self.slot(to), Some(self.inode(from)));
                self.change(Effect::Names(vec![link]));
            }
            CompletedCall::Rename(from, to) => {
                let inode = self.inode(from);
                let from = self.slot(from);
                let to = self.slot(to);
                self.change(Effect::Names(vec![(from, None), (to, Some(inode))]));
            }
            CompletedCall::Exchange(a, b) => {
                let inode_a = self.inode(a);
                let inode_b = self.inode(b);
                let edits = vec![(self.slot(a), Some(inode_b)), (self.slot(b), Some(inode_a))];
                self.change(Effect::Names(edits));
            }
            CompletedCall::Remove(path) => {
                let slot = self.slot(path);
                self.change(Effect::Names(vec![(slot, None)]));
            }
        }
    }

    fn make(&mut self, path: &Path, is_folder: bool, mode: u32) {
        let slot = self.slot(path);
        let inode = self.node(CrashNode { is_folder, mode, content: Vec::new() });
        self.change(Effect::Names(vec![(slot, Some(inode))]));
    }

    fn change(&mut self, effect: Effect) {
        let needs = self.needs(&effect);
        let hidden_without = self.hidden_without(&effect);
        if let Effect::Names(edits) = &effect {
            for (slot, inode) in edits {
                match inode {
                    Some(inode) => self.now.insert(*slot, *inode),
                    None => self.now.remove(slot),
                };
            }
        }
        self.changes.push(CrashChange { effect, needs, hidden_without });
    }

    fn needs(&self, effect: &Effect) -> Vec<usize> {
        let Effect::Names(edits) = effect else { return Vec::new() };
        let mut needs = Vec::new();
        for edit in edits {
            let removed = if edit.1.is_none() { self.now.get(&edit.0).copied() } else { None };
            for (at, change) in self.changes.iter().enumerate() {
                let Effect::Names(earlier) = &change.effect else { continue };
                if earlier.iter().any(|earlier| must_precede(*earlier, *edit, removed)) {
                    needs.push(at);
                }
            }
        }
        needs
    }

    /// Returns the change without which this one is not visible: a write to a file, or a creation in a folder, that is not
    /// there. A move into it does not count: the entry is gone from where it was.
    fn hidden_without(&self, effect: &Effect) -> Option<usize> {
        let within = match effect {
            Effect::Content(inode, _) | Effect::Mode(inode, _) => *inode,
            Effect::Names(edits) => match edits[..] {
                [((folder, _), Some(_))] => folder,
                _ => return None,
            },
        };
        let mut changes = self.changes.iter();
        changes.position(|change| change.effect.creates(within)).filter(|_| within >= self.known)
    }

    fn sync(&mut self, inode: Inode) {
        for at in 0..self.changes.len() {
            let is_covered = match &self.changes[at].effect {
                Effect::Names(edits) => edits.iter().any(|((folder, _), _)| *folder == inode),
                Effect::Content(of, _) | Effect::Mode(of, _) => *of == inode,
            };
            if is_covered {
                self.make_durable(at);
            }
        }
    }

    fn make_durable(&mut self, at: usize) {
        if self.durable.insert(at) {
            for need in self.changes[at].needs.clone() {
                self.make_durable(need);
            }
        }
    }

    fn node(&mut self, node: CrashNode) -> Inode {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn name(&mut self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        })
    }

    fn slot(&mut self, path: &Path) -> Slot {
        let folder = self.inode(path.parent().unwrap());
        (folder, self.name(path.file_name().unwrap().to_str().unwrap()))
    }

    fn inode(&self, path: &Path) -> Inode {
        path.strip_prefix(&self.root).unwrap().iter().fold(ROOT, |folder, part| {
            let name = self.names.iter().position(|name| name.as_str() == part).unwrap();
            self.now[&(folder, name)]
        })
    }

    /// Enumerates every state that a cut after call number `from`, or a later one, may leave, and passes each new one to
    /// `check`, in a folder of its own. `check` is passed whether all calls had been made.
    ///
    /// # Panics
    /// When `check` fails for a state.
    fn cut(&self, from: usize, seen: &mut VisitedStates, check: &dyn Fn(&Path, bool) -> Result<(), String>) {
        for at in from..self.cuts.len() {
            let is_last = at + 1 == self.cuts.len();
            let before = seen.states;
            self.choose(at, &mut Vec::new(), &mut |left| {
                seen.states += 1;
                assert!(
                    seen.states - before < MOST_OF_A_CUT,
                    "after call {at} too little is durable to look at it all"
                );
                let disk = self.disk(left);
                if !seen.distinct.insert((disk.fingerprint(), is_last)) {
                    return;
                }
                let folder = scratch();
                disk.build(folder.path());
                if let Err(what) = check(folder.path(), is_last) {
                    panic!("a cut after call {at}, which left {}: {what}", self.describe(left));
                }
            });
        }
    }

    fn describe(&self, left: &[CutState]) -> String {
        let described = self.changes.iter().zip(left).map(|(change, left)| match &change.effect {
            Effect::Names(edits) => format!(
                "{left:?} of the names {}",
                edits.iter().map(|(slot, to)| format!("{}={to:?} ", self.names[slot.1])).collect::<String>()
            ),
            Effect::Content(inode, _) => format!("{left:?} of the content of {inode}"),
            Effect::Mode(inode, _) => format!("{left:?} of the mode of {inode}"),
        });
        described.collect::<Vec<_>>().join(", ")
    }

    fn choices(&self, at: usize, left: &[CutState]) -> &'static [CutState] {
        let change = &self.changes[left.len()];
        if self.cuts[at].1.contains(&left.len()) {
            &[CutState::All]
        } else if change.needs.iter().chain(&change.hidden_without).any(|need| left[*need] == CutState::Nothing) {
            &[CutState::Nothing]
        } else if matches!(change.effect, Effect::Content(..)) {
            OF_CONTENT
        } else {
            OF_METADATA
        }
    }

    /// Visits every state of a cut.
    fn choose(&self, at: usize, left: &mut Vec<CutState>, visit: &mut dyn FnMut(&[CutState])) {
        if left.len() == self.cuts[at].0 {
            return visit(left);
        }
        for &choice in self.choices(at, left) {
            left.push(choice);
            self.choose(at, left, visit);
            left.pop();
        }
    }

    fn disk(&self, left: &[CutState]) -> CrashState<'_> {
        let mut disk = CrashState { history: self, names: self.start.clone(), nodes: self.nodes.clone() };
        for (change, left) in self.changes.iter().zip(left) {
            match &change.effect {
                _ if *left == CutState::Nothing => {}
                Effect::Names(edits) => {
                    for (slot, inode) in edits {
                        match inode {
                            Some(inode) => disk.names.insert(*slot, *inode),
                            None => disk.names.remove(slot),
                        };
                    }
                }
                Effect::Content(inode, content) => disk.nodes[*inode].content = torn(content, *left),
                Effect::Mode(inode, mode) => disk.nodes[*inode].mode = *mode,
            }
        }
        disk
    }
}

impl Effect {
    fn creates(&self, inode: Inode) -> bool {
        matches!(self, Effect::Names(edits) if matches!(edits[..], [(_, Some(made))] if made == inode))
    }
}

/// Returns whether an earlier change of a name is on the disk if a later one is, which removes the folder `removed`, if any.
fn must_precede(earlier: (Slot, Option<Inode>), later: (Slot, Option<Inode>), removed: Option<Inode>) -> bool {
    let is_same_name = earlier.0 == later.0;
    let is_same_thing = later.1.is_some() && earlier.1 == later.1;
    let empties = removed == Some(earlier.0.0) && earlier.1.is_none();
    is_same_name || is_same_thing || empties
}

fn torn(content: &[u8], left: CutState) -> Vec<u8> {
    let half = content[..content.len() / 2].to_vec();
    let mut torn = match left {
        CutState::All => return content.to_vec(),
        CutState::Half => return half,
        CutState::HalfAndZeros => half,
        CutState::Nothing | CutState::Zeros => Vec::new(),
    };
    torn.resize(content.len(), 0);
    torn
}

/// The state after a cut.
struct CrashState<'a> {
    history: &'a History,
    names: BTreeMap<Slot, Inode>,
    nodes: Vec<CrashNode>,
}

impl CrashState<'_> {
    fn below(&self, folder: Inode) -> impl Iterator<Item = (usize, &CrashNode, Inode)> {
        let entries = self.names.range((folder, 0)..(folder + 1, 0));
        entries.map(|((_, name), inode)| (*name, &self.nodes[*inode], *inode))
    }

    /// Returns a hash of the tree, which is the same for the same tree; collisions of 64 bits are ignored.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_below(ROOT, &mut hasher);
        hasher.finish()
    }

    fn hash_below(&self, folder: Inode, hasher: &mut DefaultHasher) {
        for (name, node, inode) in self.below(folder) {
            self.history.names[name].hash(hasher);
            (node.is_folder, node.mode, &node.content).hash(hasher);
            self.hash_below(inode, hasher);
        }
        hasher.write_u8(0xFF);
    }

    fn build(&self, target: &Path) {
        self.build_below(ROOT, target);
    }

    fn build_below(&self, folder: Inode, target: &Path) {
        for (name, node, inode) in self.below(folder) {
            let path = target.join(&self.history.names[name]);
            if node.is_folder {
                fs::create_dir(&path).unwrap();
                self.build_below(inode, &path);
            } else {
                fs::write(&path, &node.content).unwrap();
            }
            fs::set_permissions(&path, Permissions::from_mode(node.mode)).unwrap();
        }
    }
}

/// Creates a temporary folder in memory, if possible.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns every state that cuts of these calls may leave, as names with contents.
    fn states(act: impl FnOnce(&Fs, &Path)) -> Vec<String> {
        let folder = scratch();
        let root = folder.path().canonicalize().unwrap();
        let fs = Fs::default();
        let history = History::begin(&root);
        fs.faults.record();
        act(&fs, &root);
        let history = history.play(&fs.faults.recorded());
        let found = std::cell::RefCell::new(Vec::new());
        history.cut(history.cuts.len() - 1, &mut VisitedStates::default(), &|path, _| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            let show = |path: &PathBuf| {
                let count = |path| fs::read_dir(path).unwrap().count();
                let text = if path.is_dir() { format!("/{}", count(path)) } else { fs::read_to_string(path).unwrap() };
                format!("{}={}", path.file_name().unwrap().display(), text.replace('\0', "0"))
            };
            found.borrow_mut().push(names.iter().map(show).collect::<Vec<_>>().join(" "));
            Ok(())
        });
        let mut found = found.into_inner();
        found.sort();
        found
    }

    #[test]
    fn what_is_not_synced_may_be_missing_or_torn() {
        let expected = ["", "a=", "a=00", "a=x", "a=x0", "a=xy"];
        assert_eq!(states(|fs, root| fs.put(&root.join("a"), "xy").unwrap()), expected);
    }

    #[test]
    fn what_is_synced_is_there() {
        let synced = |fs: &Fs, root: &Path| {
            fs.write_new(&root.join("a"), b"xy", 0o600).unwrap();
            fs.sync_dir(root).unwrap();
        };
        assert_eq!(states(synced), ["a=xy"]);
        let without_its_folder = |fs: &Fs, root: &Path| fs.write_new(&root.join("a"), b"xy", 0o600).unwrap();
        assert_eq!(states(without_its_folder), ["", "a=xy"]);
    }

    #[test]
    fn a_rename_happens_whole_and_never_before_the_name_was_made() {
        let renamed = |fs: &Fs, root: &Path| {
            fs.create_dir(&root.join("a"), 0o755).unwrap();
            fs.rename(&root.join("a"), &root.join("b")).unwrap();
        };
        assert_eq!(states(renamed), ["", "a=/0", "b=/0"]);
    }

    #[test]
    fn removals_overtake_each_other_but_not_that_of_their_folder() {
        let removed = |fs: &Fs, root: &Path| {
            for name in ["a", "b"] {
                fs.write_new(&root.join(name), name.as_bytes(), 0o600).unwrap();
            }
            fs.sync_dir(root).unwrap();
            fs.remove(&root.join("a")).unwrap();
            fs.remove(&root.join("b")).unwrap();
        };
        assert_eq!(states(removed), ["", "a=a", "a=a b=b", "b=b"]);
        let nested = |fs: &Fs, root: &Path| {
            fs.create_dir(&root.join("folder"), 0o755).unwrap();
            fs.write_new(&root.join("folder/a"), b"a", 0o600).unwrap();
            fs.sync_dir(&root.join("folder")).unwrap();
            fs.sync_dir(root).unwrap();
            fs.remove(&root.join("folder")).unwrap();
        };
        assert_eq!(states(nested), ["", "folder=/0", "folder=/1"], "no file outlives its folder");
    }
}
