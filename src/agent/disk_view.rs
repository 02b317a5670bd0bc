//! A mount namespace in which only the file systems of the image's disk are mounted.
//!
//! The thread that enters it, and the threads that it starts, see the tree that the disk holds, nested as the kernel has it
//! mounted: bind mounts and subvolumes are in their places, and `/proc`, `/run` and similar directories show their content
//! on the disk. The guest itself is not affected. Everything is mounted read only, and no access times are updated.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::mount_table::{MountLine, parse, visible};
use super::{RequestFailure, sys};
use crate::wire::Class;

/// The folder in which file systems are mounted while the one below them is unmounted.
const ASIDE: &str = "/run/kiln/aside";
/// The most passes that detach mounts. Each pass detaches the topmost one; no guest stacks this many.
const MAX_PASSES: usize = 1000;

/// Moves the calling thread into a mount namespace with only the image's disk. `is_on_disk` decides about each file system.
///
/// # Errors
/// When the root file system is not on the disk, or a file system of the disk has no place in its tree.
pub fn enter(is_on_disk: &mut dyn FnMut(&MountLine) -> bool) -> Result<(), RequestFailure> {
    fs::create_dir_all(ASIDE).map_err(RequestFailure::at(ASIDE))?;
    sys::unshare_mounts().map_err(RequestFailure::at("a mount namespace"))?;
    let mut table = File::open("/proc/thread-self/mountinfo").map_err(RequestFailure::at("the mount table"))?;
    let mut unmovable = HashSet::new();
    for _ in 0..MAX_PASSES {
        let mounts = Mounts::read(&mut table, is_on_disk)?;
        if visible(&mounts.lines, &mounts.on_disk).is_empty() {
            return Err(RequestFailure::new(Class::System {}, "the root file system is not on the disk of the image"));
        }
        if !mounts.detach_next(&mut unmovable)? {
            return mounts.protect();
        }
    }
    Err(RequestFailure::new(Class::System {}, "too many file systems are mounted over each other"))
}

/// The mount table of the namespace.
struct Mounts {
    lines: Vec<MountLine>,
    on_disk: Vec<bool>,
    by_id: HashMap<u32, usize>,
    /// The indices of lines that are mounted on a line, by the index of that line.
    children: HashMap<usize, Vec<usize>>,
}

impl Mounts {
    fn read(table: &mut File, is_on_disk: &mut dyn FnMut(&MountLine) -> bool) -> Result<Self, RequestFailure> {
        let mut text = Vec::new();
        let read = table.rewind().and_then(|()| table.read_to_end(&mut text)).and_then(|_| parse(&text));
        let lines = read.map_err(RequestFailure::at("the mount table"))?;
        let on_disk = lines.iter().map(is_on_disk).collect();
        let by_id: HashMap<u32, usize> = lines.iter().enumerate().map(|(index, line)| (line.id, index)).collect();
        let mut children: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, line) in lines.iter().enumerate() {
            if let Some(parent) = by_id.get(&line.parent).filter(|parent| **parent != index) {
                children.entry(*parent).or_default().push(index);
            }
        }
        Ok(Self { lines, on_disk, by_id, children })
    }

    /// Detaches mounts that are not on the disk but cover its file systems: every mount that carries nothing of the disk,
    /// else one of the others. Returns whether there was any.
    fn detach_next(&self, unmovable: &mut HashSet<u32>) -> Result<bool, RequestFailure> {
        let candidates = (0..self.lines.len()).filter(|index| self.is_covering(*index, unmovable));
        let (last, first): (Vec<usize>, Vec<usize>) =
            candidates.partition(|index| Path::new(ASIDE).starts_with(self.path(*index)));
        let (bare, carrying): (Vec<usize>, Vec<usize>) =
            first.into_iter().partition(|index| self.carried(*index).is_empty());
        if !bare.is_empty() {
            for index in bare {
                self.detach(index, unmovable);
            }
        } else if let Some(index) = carrying.first() {
            self.replace(*index)?;
        } else if let Some(index) = last.first() {
            if let Some(carried) = self.carried(*index).first() {
                return Err(self.homeless(*carried));
            }
            self.detach(*index, unmovable);
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Returns whether a mount is not on the disk, covers a file system of it, and may still be detached.
    fn is_covering(&self, index: usize, unmovable: &HashSet<u32>) -> bool {
        let line = &self.lines[index];
        let has_disk_below = self.by_id.get(&line.parent).is_some_and(|parent| self.on_disk[*parent]);
        !self.on_disk[index] && has_disk_below && !unmovable.contains(&line.id) && self.is_reachable(index)
    }

    /// Detaches a mount, or notes that it cannot be detached: then another mount covers it, so that it is not visible
    /// either.
    fn detach(&self, index: usize, unmovable: &mut HashSet<u32>) {
        if sys::detach(self.path(index)).is_err() {
            unmovable.insert(self.lines[index].id);
        }
    }

    /// Detaches a mount that carries file systems of the disk, as an automount does, and moves those to where they were.
    fn replace(&self, index: usize) -> Result<(), RequestFailure> {
        let carried = self.carried(index);
        let places: Vec<PathBuf> = (0..carried.len()).map(|number| Path::new(ASIDE).join(number.to_string())).collect();
        for (carried, place) in carried.iter().zip(&places) {
            let moved = fs::create_dir_all(place).and_then(|()| sys::move_mount(self.path(*carried), place));
            moved.map_err(|_| self.homeless(*carried))?;
        }
        sys::detach(self.path(index)).map_err(RequestFailure::at(self.path(index).display()))?;
        for (carried, place) in carried.iter().zip(&places) {
            sys::move_mount(place, self.path(*carried)).map_err(|_| self.homeless(*carried))?;
        }
        Ok(())
    }

    /// Returns the file systems of the disk that are mounted on this one, directly or through others that are not on the
    /// disk.
    fn carried(&self, index: usize) -> Vec<usize> {
        let mut carried = Vec::new();
        let mut open = vec![index];
        while let Some(index) = open.pop() {
            for child in self.children.get(&index).into_iter().flatten() {
                if self.on_disk[*child] { carried.push(*child) } else { open.push(*child) }
            }
        }
        carried
    }

    /// Returns whether the mount can be reached by its path: nothing is mounted over it, or over a folder on the way.
    fn is_reachable(&self, index: usize) -> bool {
        let stacked = self.children.get(&index).into_iter().flatten();
        let is_stacked =
            stacked.into_iter().any(|child| !self.on_disk[*child] && self.path(*child) == self.path(index));
        let siblings = self.by_id.get(&self.lines[index].parent).and_then(|parent| self.children.get(parent));
        let is_covered = siblings.into_iter().flatten().any(|other| {
            *other != index && self.path(*other) != self.path(index) && self.path(index).starts_with(self.path(*other))
        });
        !is_stacked && !is_covered
    }

    /// Makes every file system of the tree read only.
    fn protect(&self) -> Result<(), RequestFailure> {
        for index in visible(&self.lines, &self.on_disk) {
            let path = self.path(index);
            sys::protect_mount(path).map_err(RequestFailure::at(path.display()))?;
        }
        Ok(())
    }

    fn path(&self, index: usize) -> &Path {
        Path::new(OsStr::from_bytes(&self.lines[index].target))
    }

    fn homeless(&self, index: usize) -> RequestFailure {
        let text = format!("{} is mounted on a directory that is not on the disk", self.path(index).display());
        RequestFailure::new(Class::System {}, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::thread;

    /// Enters the namespace in a root of its own, where file systems of type ramfs stand for those of the disk, and returns
    /// the names in it. `mounts` are pairs of type and mount point; each file system gets a file named after its index.
    fn names_in(mounts: &'static [(&str, &str)], folders: &'static [&str]) -> Result<Vec<String>, String> {
        let work = move || {
            let root = tempfile::tempdir().unwrap();
            sys::unshare_mounts().unwrap();
            let run = |program: &str, args: &[&str]| {
                let output = Command::new(program).args(args).output().unwrap();
                assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            };
            let place = |path: &str| format!("{}{path}", root.path().display());
            run("mount", &["-t", "ramfs", "disk", &place("")]);
            for folder in ["/proc", "/run"].iter().chain(folders) {
                fs::create_dir_all(place(folder)).unwrap();
            }
            run("mount", &["-t", "tmpfs", "tmpfs", &place("/run")]);
            for (number, (kind, target)) in mounts.iter().enumerate() {
                fs::create_dir_all(place(target)).unwrap();
                run("mount", &["-t", kind, kind, &place(target)]);
                fs::write(place(&format!("{target}/{number}")), "").unwrap();
            }
            fs::create_dir_all(place("/proc")).unwrap();
            run("mount", &["-t", "proc", "proc", &place("/proc")]);
            std::os::unix::fs::chroot(root.path()).unwrap();
            std::env::set_current_dir("/").unwrap();
            enter(&mut |line| line.kind == "ramfs").map_err(|refusal| refusal.text)?;
            let mut names = Vec::new();
            add_names(Path::new("/"), &mut names);
            assert!(fs::write("/new", "").is_err(), "nothing can be written");
            Ok(names)
        };
        thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    fn add_names(folder: &Path, names: &mut Vec<String>) {
        let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            names.push(path.display().to_string());
            if path.is_dir() {
                add_names(&path, names);
            }
        }
    }

    #[test]
    fn the_tree_of_the_disk_is_what_is_seen() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        let seen = names_in(&[("ramfs", "/a"), ("tmpfs", "/a/tmp"), ("ramfs", "/a/b"), ("tmpfs", "/c")], &["/c/below"]);
        assert_eq!(seen.unwrap(), ["/a", "/a/0", "/a/b", "/a/b/2", "/a/tmp", "/c", "/c/below", "/proc", "/run"]);
    }

    #[test]
    fn what_an_automount_carries_stays_and_what_is_covered_does_not_count() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        // As autofs with the file system that it has mounted; one mount over another; a mount over a file system of the
        // disk.
        let seen = names_in(&[("tmpfs", "/boot"), ("ramfs", "/boot"), ("tmpfs", "/boot")], &[]);
        assert_eq!(seen.unwrap(), ["/boot", "/boot/1", "/proc", "/run"]);
        let seen = names_in(&[("ramfs", "/srv"), ("ramfs", "/srv"), ("tmpfs", "/srv/x")], &[]);
        assert_eq!(seen.unwrap(), ["/proc", "/run", "/srv", "/srv/1", "/srv/x"]);
        let seen = names_in(&[("tmpfs", "/x/y"), ("ramfs", "/x")], &[]);
        assert_eq!(seen.unwrap(), ["/proc", "/run", "/x", "/x/1"]);
    }

    #[test]
    fn what_has_no_place_on_the_disk_is_refused() {
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        for mounts in [&[("ramfs", "/run/media")][..], &[("tmpfs", "/t"), ("ramfs", "/t/x")]] {
            let why = names_in(mounts, &[]).unwrap_err();
            assert!(why.contains("is mounted on a directory that is not on the disk"), "{why}");
        }
        let why = names_in(&[("tmpfs", "")], &[]).unwrap_err();
        assert!(why.contains("root file system"), "{why}");
    }
}
