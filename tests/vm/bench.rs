//! The binary with a store and a cache of its own, and what the tests look at it with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use nix::unistd::Pid;
use serde_json::Value;

/// A kiln with a store, a cache and a home of its own.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub cache: PathBuf,
    /// Another QEMU than the one of the PATH.
    pub qemu: Option<PathBuf>,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn debian() -> PathBuf {
    let image = root().join("fixtures/cache/debian-12.qcow2");
    assert!(image.exists(), "{} is not there: run fixtures/debian/build", image.display());
    image
}

impl Bench {
    /// A store of its own, and one cache for all tests: what boots alike boots once.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("kiln-vm-").tempdir_in("/var/tmp").unwrap();
        Self { folder, cache: Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm-cache"), qemu: None }
    }

    /// A cache of its own as well.
    pub fn cold() -> Self {
        let bench = Self::new();
        let cache = bench.path("cache");
        Self { cache, ..bench }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(args).env("KILN_STORE", self.path("store")).env("KILN_CACHE", &self.cache);
        command.env("HOME", self.folder.path()).env("TOKEN", "correct-horse-battery");
        if let Some(qemu) = &self.qemu {
            command.env("KILN_QEMU", qemu);
        }
        command
    }

    pub fn kiln(&self, args: &[&str]) -> Output {
        let began = Instant::now();
        let output = self.command(args).output().unwrap();
        println!("kiln {} took {:.1} s", args.join(" "), began.elapsed().as_secs_f64());
        output
    }

    /// A spec over Debian with this text, and whatever files it copies beside it.
    pub fn spec(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        let head = format!("[image]\nname = \"{name}\"\nversion = \"1\"\n[base]\nfile = \"{}\"\n", debian().display());
        fs::write(&path, head + text).unwrap();
        path
    }

    pub fn builds(&self, spec: &Path) -> PathBuf {
        let output = self.kiln(&["build", spec.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.nothing_left();
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    }

    pub fn fails(&self, spec: &Path, code: i32) -> String {
        let output = self.kiln(&["build", spec.to_str().unwrap()]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        self.nothing_left();
        stderr
    }

    /// Processes whose command line names a folder of this bench.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let folders = [self.folder.path(), &self.cache];
        let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
        let ids = names.filter_map(|name| name.to_str()?.parse::<i32>().ok());
        let lines = ids.filter_map(|id| {
            let line = String::from_utf8_lossy(&fs::read(format!("/proc/{id}/cmdline")).ok()?).replace('\0', " ");
            Some((Pid::from_raw(id), line))
        });
        lines.filter(|(_, line)| folders.iter().any(|folder| line.contains(folder.to_str().unwrap()))).collect()
    }

    pub fn nothing_left(&self) {
        let scratch = fs::read_dir(self.cache.join("work")).map_or(0, Iterator::count);
        assert_eq!(scratch, 0, "a scratch folder is left");
        let staged = fs::read_dir(self.path("store/.kiln/tmp")).map_or(0, Iterator::count);
        assert_eq!(staged, 0, "a staging folder is left");
    }
}

pub fn manifest(image: &Path) -> Value {
    serde_json::from_slice(&fs::read(image.with_file_name("manifest.json")).unwrap()).unwrap()
}

pub fn run(program: &str, args: &[&str], folder: &Path) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).current_dir(folder).env("PATH", path).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Xorshift: the same fates in each run, known by their seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(number: u64) -> Self {
        Self(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(number) | 1)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    pub fn of<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[usize::try_from(self.roll(among.len() as u64)).unwrap()]
    }
}
