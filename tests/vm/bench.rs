//! The binary with a store and a cache of its own, and what the tests look at it with.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use nix::unistd::Pid;
use serde_json::Value;

/// Marks the kiln of one test, and by its parents all that it starts.
const MARK: &str = "KILN_TEST_PLACE";

/// A kiln with a store, a cache and a home of its own.
pub struct Bench {
    began: Instant,
    pub folder: tempfile::TempDir,
    pub cache: PathBuf,
    /// Another QEMU than the one of the PATH.
    pub qemu: Option<PathBuf>,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn debian() -> PathBuf {
    let image = root().join("fixtures/cache/debian-12.qcow2");
    assert!(image.exists(), "{} is not there: run fixtures/debian/build", image.display());
    image
}

impl Bench {
    /// A store of its own, and one cache for all tests, also for those that run beside it: what boots alike boots once.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("kiln-vm-").tempdir_in("/var/tmp").unwrap();
        let configuration = folder.path().join(".config/kiln");
        fs::create_dir_all(&configuration).unwrap();
        fs::write(configuration.join("config.toml"), "secret-env = [\"TOKEN\"]\n").unwrap();
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm-cache");
        Self { began: Instant::now(), folder, cache, qemu: None }
    }

    /// A cache of its own as well.
    pub fn cold() -> Self {
        let mut bench = Self::new();
        bench.cache = bench.path("cache");
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(args).env("KILN_STORE", self.path("store")).env("KILN_CACHE", &self.cache);
        command.env_remove("XDG_CONFIG_HOME");
        command.env("HOME", self.folder.path()).env("TOKEN", "correct-horse-battery").env(MARK, self.folder.path());
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
        self.spec_over(&debian(), name, text)
    }

    /// The same over another base.
    pub fn spec_over(&self, base: &Path, name: &str, text: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        let head = format!("[image]\nname = \"{name}\"\nversion = \"1\"\n[base]\nfile = \"{}\"\n", base.display());
        fs::write(&path, head + text).unwrap();
        path
    }

    /// The path of the first image file.
    pub fn builds(&self, spec: &Path) -> PathBuf {
        let output = self.kiln(&["build", spec.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.nothing_left();
        PathBuf::from(String::from_utf8(output.stdout).unwrap().lines().next().unwrap())
    }

    pub fn fails(&self, spec: &Path, code: i32) -> String {
        let output = self.kiln(&["build", spec.to_str().unwrap()]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        self.nothing_left();
        stderr
    }

    /// Folders of the layers in the step cache, sorted.
    pub fn layers(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache.join("layers")).into_iter().flatten();
        let mut layers: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
        layers.sort();
        layers
    }

    /// Processes that run for this bench.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let mark = [MARK.as_bytes(), b"=", self.folder.path().as_os_str().as_encoded_bytes()].concat();
        let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
        let ids = names.filter_map(|name| name.to_str()?.parse::<i32>().ok());
        // A process that ends meanwhile has neither file; a zombie's are empty.
        let read = |id: i32, file: &str| fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
        let has_mark = |id: i32| read(id, "environ").split(|byte| *byte == 0).any(|pair| pair == mark);
        let works_here = |id: i32| {
            fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|folder| folder.starts_with(self.folder.path()))
        };
        let parent = |id: &i32| {
            let stat = String::from_utf8_lossy(&read(*id, "stat")).into_owned();
            stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok().filter(|parent| *parent > 1)
        };
        let ours = ids.filter(|id| works_here(*id) || std::iter::successors(Some(*id), parent).any(has_mark));
        let line = |id: i32| String::from_utf8_lossy(&read(id, "cmdline")).replace('\0', " ");
        ours.map(|id| (Pid::from_raw(id), line(id))).filter(|(_, line)| !line.is_empty()).collect()
    }

    /// No scratch folder but those of builds that run, and nothing half-made in the store.
    pub fn nothing_left(&self) {
        let work = self.cache.join("work");
        let folders = fs::read_dir(&work).into_iter().flatten().map(|entry| entry.unwrap().path());
        let is_dead = |folder: &PathBuf| File::open(folder).is_ok_and(|folder| folder.try_lock().is_ok());
        let dead: Vec<_> = folders.filter(is_dead).collect();
        assert!(dead.is_empty(), "scratch folders are left: {dead:?}");
        let staged = fs::read_dir(self.path("store/.kiln/tmp")).map_or(0, Iterator::count);
        assert_eq!(staged, 0, "a staging folder is left");
    }
}

/// Prints the time of the test, which the test's thread is named after.
impl Drop for Bench {
    fn drop(&mut self) {
        let thread = std::thread::current();
        println!("test {} took {:.1} s", thread.name().unwrap_or("?"), self.began.elapsed().as_secs_f64());
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
