//! The corpus of hostile images against kiln, with QEMU's own tools as the witness that they are hostile.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::corpus::{Harm, Hostile, corpus};
use crate::support::{Kiln, fake_qemu, qemu_img};
use kiln::disk::inspect::BaseImage;
use kiln::error::{Fault, Kind};
use kiln::specfile::BaseFormat;

const CANARY: &[u8] = b"the canary of this host sings here;";

/// The corpus in a folder, beside a canary, and a socket that counts who connects.
struct Aviary {
    folder: PathBuf,
    images: Vec<(Hostile, PathBuf)>,
    connects: Arc<AtomicUsize>,
    _scratch: tempfile::TempDir,
}

impl Aviary {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        // Kept where somebody else is to look at it: see fixtures/hostile/compare.
        let kept = std::env::var_os("KILN_HOSTILE").map(PathBuf::from);
        let place = kept.unwrap_or_else(|| scratch.path().to_owned());
        let (folder, canary) = (place.join("images"), place.join("canary"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(&canary, CANARY.repeat(4000)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connects = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connects);
        std::thread::spawn(move || {
            for _ in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let images = corpus(&canary, port).into_iter().map(|image| (image.make(&folder), image));
        let images = images.map(|(path, image)| (image, path)).collect();
        Self { folder, images, connects, _scratch: scratch }
    }

    /// Connections since the last look.
    fn connects(&self) -> usize {
        self.connects.swap(0, Ordering::SeqCst)
    }
}

fn sings(bytes: &[u8]) -> bool {
    bytes.windows(CANARY.len()).any(|window| window == CANARY)
}

/// Files below the folder that hold the canary's bytes.
fn singing(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let count = |entry: fs::DirEntry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => singing(&entry.path()),
        kind => usize::from(kind.is_file() && sings(&fs::read(entry.path()).unwrap())),
    };
    entries.map(count).sum()
}

fn name(format: BaseFormat) -> &'static str {
    match format {
        BaseFormat::Qcow2 => "qcow2",
        BaseFormat::Raw => "raw",
    }
}

/// Builds on the image, which ends with this exit code. Gives whether a QEMU tool was handed it.
fn build_on(path: &Path, declared: BaseFormat, code: i32) -> bool {
    let (shown, format) = (path.display(), name(declared));
    let spec = format!(
        "[image]\nname = 'web'\nversion = '1'\n[base]\nfile = '{shown}'\nformat = '{format}'\n[machine]\naccel = 'tcg'\n"
    );
    let kiln = Kiln::new().file("kiln.toml", spec);
    let place = Arc::clone(kiln.place());
    let touched = place.join("touched");
    let real = std::env::var("PATH").unwrap();
    let trap = |program: &str| {
        let noted = touched.display();
        format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >>'{noted}'\nPATH='{real}' exec '{program}' \"$@\"\n")
    };
    let kiln = kiln.file("bin/qemu-img", trap("qemu-img")).file("bin/qemu", trap(fake_qemu().to_str().unwrap()));
    for tool in ["bin/qemu-img", "bin/qemu"] {
        fs::set_permissions(place.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let tools = format!("{}:{real}", place.join("bin").display());
    let ended = kiln.env("PATH", tools).env("KILN_QEMU", place.join("bin/qemu")).build().ends_with(&[code]).run();
    let told = [ended.stdout, ended.stderr].concat();
    assert!(!sings(told.as_bytes()) && singing(place.path()) == 0, "{shown}: the canary is out: {told}");
    fs::read_to_string(touched).unwrap_or_default().contains(path.to_str().unwrap())
}

#[test]
fn b2_b3_b4_b5_b6_b8_b9_b10_b11_b12_every_hostile_image_is_refused_before_qemu_sees_it() {
    let aviary = Aviary::new();
    let (mut slowest, mut verdicts) = (Duration::ZERO, Vec::new());
    for (image, path) in &aviary.images {
        let began = Instant::now();
        let error = BaseImage::open(path, image.declared).expect_err(&image.name);
        slowest = slowest.max(began.elapsed());
        assert_eq!(error.kind(), Kind::Base);
        verdicts.push(format!("{}\t{}\t{}\n", image.name, name(image.declared), error.why()));
    }
    // A guard against whoever reads or waits without end; what it takes is printed.
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let touched = std::thread::scope(|scope| {
        let quarters = aviary.images.chunks(aviary.images.len().div_ceil(4));
        let builds = quarters
            .map(|some| scope.spawn(|| some.iter().filter(|(image, path)| build_on(path, image.declared, 5)).count()));
        builds.collect::<Vec<_>>().into_iter().map(|builds| builds.join().unwrap()).sum::<usize>()
    });
    let sound = aviary.folder.with_file_name("sound.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", sound.to_str().unwrap(), "16M"]);
    assert!(build_on(&sound, BaseFormat::Qcow2, 0), "the traps see nothing");
    let (count, connects) = (aviary.images.len(), aviary.connects());
    assert_eq!((touched, connects), (0, 0));
    println!(
        "hostile images: refused {count}/{count}, canary bytes out 0, connects 0, seen by a QEMU tool {touched}; the slowest refusal took {:.1} ms",
        slowest.as_secs_f64() * 1e3
    );
    if std::env::var_os("KILN_HOSTILE").is_some() {
        fs::write(aviary.folder.with_file_name("verdicts"), verdicts.concat()).unwrap();
    }
}

/// Without this the corpus would prove nothing: whoever hands such an image to QEMU's tools gives the canary away.
#[test]
fn the_hostile_images_are_hostile() {
    let aviary = Aviary::new();
    let out = aviary.folder.with_file_name("out");
    let (mut leaks, mut connections) = (0, 0);
    for (image, path) in &aviary.images {
        let Some(harm) = image.harm else { continue };
        let convert = [OsStr::new("convert"), OsStr::new("-O"), OsStr::new("raw"), path.as_ref(), out.as_ref()];
        let told = Command::new("qemu-img").args(convert).output().expect("qemu-img must be installed");
        let told = String::from_utf8_lossy(&told.stderr);
        match harm {
            Harm::Leaks => assert!(sings(&head(&out)), "{}: {told}", image.name),
            Harm::Connects => assert!(aviary.connects() > 0, "{}: {told}", image.name),
        }
        leaks += usize::from(harm == Harm::Leaks);
        connections += usize::from(harm == Harm::Connects);
        let _ = fs::remove_file(&out);
    }
    println!("without inspection: qemu-img leaks the canary of {leaks} of them, and connects for {connections}");
}

/// Where the canary would be.
fn head(path: &Path) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let _ = fs::File::open(path).map(|file| file.take(1 << 20).read_to_end(&mut bytes));
    bytes
}
