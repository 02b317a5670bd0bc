//! Searches for secrets where none may be: on the sealed disk, free blocks included, on a disk that is to be kept in the
//! cache, in everything that a version holds besides its disk, and in what a failed build leaves. A step that writes a
//! secret into a file and removes it again leaves it in a free block, for whoever gets the image.
//!
//! The parts of a secret that are masked in output ([`crate::masking`]) are searched for in the same forms, if they are long
//! enough. Forms that programs wrap are found by a part of them that no line end can be in.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aho_corasick::AhoCorasick;

use crate::error::{Fault, Kind};
use crate::masking::{SecretParts, WrittenForm, pieces_of_unit};

/// Anything shorter is found in every disk by chance, bytes.
pub(crate) const SHORTEST: usize = 8;
/// Longer values that look random are searched for in pieces of this length, bytes.
const LONGEST: usize = 64;
/// The shortest line at which programs wrap base64 and hex, characters: `xxd -p` does it at 60.
const SHORTEST_LINE: usize = 60;
const SECTOR: u64 = 512;
/// How much of a compressed file is unpacked to be searched, bytes.
const UNPACKED_LIMIT: u64 = 1 << 30;

/// A secret is where none may be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secret `{name}` is in {}", place.describe(form))]
pub struct SecretLeak {
    /// The secret's name.
    pub name: String,
    /// How it is written there.
    pub form: &'static str,
    /// Where.
    pub place: LeakPlace,
}

/// Where a secret was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeakPlace {
    /// On the disk of the image, at this byte.
    Disk(u64),
    /// In a file, at this byte.
    File(PathBuf, u64),
    /// In a compressed file, at this byte of what it unpacks to.
    Unpacked(PathBuf, u64),
    /// In the name of a file or folder in this folder, or in the target of a link in it.
    Name(PathBuf),
}

impl LeakPlace {
    fn describe(&self, form: &str) -> String {
        match self {
            LeakPlace::Disk(at) => format!("the image, {form}, at byte {at} of its disk (sector {})", at / SECTOR),
            LeakPlace::File(path, at) => format!("the file {}, {form}, at byte {at}", path.display()),
            LeakPlace::Unpacked(path, at) => {
                format!("the file {}, {form}, at byte {at} of what it unpacks to", path.display())
            }
            LeakPlace::Name(folder) if folder.as_os_str().is_empty() => format!("the name of a file, {form}"),
            LeakPlace::Name(folder) => format!("the name of a file in {}, {form}", folder.display()),
        }
    }
}

impl SecretLeak {
    /// Returns the file whose content it is in.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.place {
            LeakPlace::File(path, _) | LeakPlace::Unpacked(path, _) => Some(path),
            LeakPlace::Disk(_) | LeakPlace::Name(_) => None,
        }
    }
}

impl Fault for SecretLeak {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        let cause = match self.place {
            LeakPlace::Disk(_) => "a step has written it to the disk; what is removed later stays in free blocks",
            _ => "a step has put it into a file that would be published",
        };
        vec![
            cause.into(),
            "read it from the file under $KILN_SECRETS, which is gone after the step, and let no program keep it"
                .into(),
        ]
    }
}

/// The parts of secrets that are searched for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SearchedSecrets(Arc<Needles>);

#[derive(Debug)]
struct Needles {
    searcher: AhoCorasick,
    /// Which secret each needle is, and how written.
    meaning: Vec<(String, &'static str)>,
    longest: usize,
}

impl SearchedSecrets {
    /// Takes every secret that is long enough; `None` if there is none.
    ///
    /// # Panics
    /// Never: a few short needles always make a searcher.
    #[must_use]
    pub fn new<'a>(secrets: impl Iterator<Item = (&'a str, &'a [u8])>) -> Option<Self> {
        let (mut needles, mut meaning) = (Vec::new(), Vec::new());
        for (name, value) in secrets {
            let parts = SecretParts::new(value);
            let units = parts.units().filter(|unit| unit.len() >= SHORTEST);
            for form in units.flat_map(|unit| pieces_of_unit(unit, LONGEST)).flat_map(|piece| parts.forms_of(piece)) {
                for needle in searched_parts(&form) {
                    meaning.push((name.to_owned(), form.how));
                    needles.push(needle);
                }
            }
        }
        let longest = needles.iter().map(Vec::len).max()?;
        let searcher = AhoCorasick::new(needles).expect("a few short needles");
        Some(Self(Arc::new(Needles { searcher, meaning, longest })))
    }

    /// Begins to search something that is read piece by piece.
    #[must_use]
    pub fn scan(&self) -> SecretScan {
        SecretScan { needles: Arc::clone(&self.0), before: Vec::new(), end: 0 }
    }

    /// Searches a whole file, as it lies there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn scan_file(&self, path: &Path) -> io::Result<Option<SecretLeak>> {
        let found = self.scan_reader(File::open(path)?)?;
        Ok(found.map(|found| found.at(|at| LeakPlace::File(path.to_owned(), at))))
    }

    /// Searches the files below a folder, what their compressed ones unpack to, and all names. Paths in the answer are
    /// relative to the folder. Files for which `is_passed_over` holds are not searched.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn scan_folder(&self, folder: &Path, is_passed_over: &dyn Fn(&Path) -> bool) -> io::Result<Vec<SecretLeak>> {
        let (mut leaks, mut folders) = (Vec::new(), vec![PathBuf::new()]);
        while let Some(below) = folders.pop() {
            for entry in fs::read_dir(folder.join(&below))? {
                let entry = entry?;
                let (path, kind) = (below.join(entry.file_name()), entry.file_type()?);
                leaks.extend(self.scan_text(entry.file_name().as_bytes(), |_| LeakPlace::Name(below.clone())));
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_symlink() {
                    let target = fs::read_link(entry.path())?;
                    leaks.extend(self.scan_text(target.as_os_str().as_bytes(), |_| LeakPlace::Name(below.clone())));
                } else if kind.is_file() && !is_passed_over(&path) {
                    leaks.extend(self.scan_published(&entry.path(), &path)?);
                }
            }
        }
        Ok(leaks)
    }

    /// Searches a text that is at hand as a whole.
    pub fn scan_text(&self, text: &[u8], place: impl FnOnce(u64) -> LeakPlace) -> Option<SecretLeak> {
        self.0.find(0, text).map(|found| found.at(place))
    }

    fn scan_published(&self, path: &Path, name: &Path) -> io::Result<Option<SecretLeak>> {
        let in_file = |at| LeakPlace::File(name.to_owned(), at);
        if let Some(found) = self.scan_reader(File::open(path)?)? {
            return Ok(Some(found.at(in_file)));
        }
        let Some(unpacked) = unpacking(File::open(path)?)? else { return Ok(None) };
        // What is damaged is searched as far as it can be unpacked.
        let found = self.scan_reader(unpacked.take(UNPACKED_LIMIT)).unwrap_or(None);
        Ok(found.map(|found| found.at(|at| LeakPlace::Unpacked(name.to_owned(), at))))
    }

    fn scan_reader(&self, mut reader: impl Read) -> io::Result<Option<FoundNeedle>> {
        let (mut scan, mut at) = (self.scan(), 0);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                return Ok(None);
            }
            if let Some(found) = scan.find(at, &buffer[..count]) {
                return Ok(Some(found));
            }
            at += count as u64;
        }
    }
}

/// What a compressed file unpacks to; `None` if it does not begin as gzip, xz or zstd do.
fn unpacking(mut file: File) -> io::Result<Option<Box<dyn Read>>> {
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(6).read_to_end(&mut magic)?;
    io::Seek::rewind(&mut file)?;
    Ok(match &magic[..] {
        [0x1f, 0x8b, ..] => Some(Box::new(flate2::read::MultiGzDecoder::new(file))),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Some(Box::new(liblzma::read::XzDecoder::new_multi_decoder(file))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Box::new(zstd::stream::read::Decoder::new(file)?)),
        _ => None,
    })
}

/// A needle that was found, and where it begins.
struct FoundNeedle {
    name: String,
    form: &'static str,
    start: u64,
}

impl FoundNeedle {
    fn at(self, place: impl FnOnce(u64) -> LeakPlace) -> SecretLeak {
        SecretLeak { name: self.name, form: self.form, place: place(self.start) }
    }
}

impl Needles {
    fn find(&self, start: u64, bytes: &[u8]) -> Option<FoundNeedle> {
        let found = self.searcher.find(bytes)?;
        let (name, form) = &self.meaning[found.pattern().as_usize()];
        Some(FoundNeedle { name: name.clone(), form, start: start + found.start() as u64 })
    }
}

/// Searches a disk, or anything else that is read piece by piece.
pub struct SecretScan {
    needles: Arc<Needles>,
    /// The end of what was seen last, and where that ended: a secret may lie across.
    before: Vec<u8>,
    end: u64,
}

impl SecretScan {
    /// Searches the bytes of this place of the disk.
    pub fn look(&mut self, at: u64, bytes: &[u8]) -> Option<SecretLeak> {
        self.find(at, bytes).map(|found| found.at(LeakPlace::Disk))
    }

    fn find(&mut self, at: u64, bytes: &[u8]) -> Option<FoundNeedle> {
        if at != self.end {
            self.before.clear();
        }
        let kept = self.needles.longest - 1;
        let head = &bytes[..bytes.len().min(kept)];
        let across = [&self.before, head].concat();
        let start = at - self.before.len() as u64;
        let found = self.needles.find(start, &across).or_else(|| self.needles.find(at, bytes));
        // A short piece may lie within a secret that begins before it.
        let tail = if bytes.len() < kept { &across } else { bytes };
        self.before = tail[tail.len().saturating_sub(kept)..].to_vec();
        self.end = at + bytes.len() as u64;
        found
    }
}

/// Returns a form or, where it may be wrapped, so many parts of it that line ends leave one of them whole.
fn searched_parts(form: &WrittenForm) -> Vec<Vec<u8>> {
    let line_ends = form.bytes.len().div_ceil(SHORTEST_LINE);
    let length = form.bytes.len() / (line_ends + 1);
    if form.is_wrapped() && length >= SHORTEST {
        return form.bytes.chunks_exact(length).map(<[u8]>::to_vec).collect();
    }
    vec![form.bytes.clone()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::masking::written_forms;

    const VALUE: &[u8] = b"p@ss word+/?~and more";

    fn search() -> SecretScan {
        searched(&[("token", VALUE)]).scan()
    }

    fn searched(secrets: &[(&str, &[u8])]) -> SearchedSecrets {
        SearchedSecrets::new(secrets.iter().copied()).unwrap()
    }

    fn shell(script: &str) -> Vec<u8> {
        let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}");
        output.stdout
    }

    #[test]
    fn o3_every_form_is_found_wherever_the_pieces_are_cut() {
        let text = String::from_utf8(VALUE.to_vec()).unwrap();
        let forms = [
            ("as it is", VALUE.to_vec()),
            ("in hex", shell(&format!("printf '%s' '{text}' | od -An -v -tx1 | tr -d ' \\n'"))),
            ("in base64", shell(&format!("printf '%s' '{text}' | base64"))),
            ("in base64", shell(&format!("printf 'x%s' '{text}' | base64"))),
            ("in base64", shell(&format!("printf 'user:%s more' '{text}' | base64"))),
            ("percent-encoded", b"p%40ss%20word%2B%2F%3F~and%20more".to_vec()),
        ];
        for (form, written) in forms {
            let disk = [vec![b'.'; 1000], written, vec![b'.'; 1000]].concat();
            for size in [1, 7, 64, 999, 1001, 4096] {
                let mut search = search();
                let pieces =
                    disk.chunks(size).scan(0, |at, piece| Some((std::mem::replace(at, *at + piece.len()), piece)));
                let found: Vec<_> = pieces.filter_map(|(at, piece)| search.look(at as u64, piece)).collect();
                let leak = found.first().unwrap_or_else(|| panic!("{form} in pieces of {size}"));
                assert_eq!((leak.name.as_str(), leak.form), ("token", form));
                let LeakPlace::Disk(at) = leak.place else { panic!("{leak}") };
                assert!((1000..1010).contains(&at), "{leak}");
            }
        }
    }

    #[test]
    fn o3_what_is_apart_is_no_secret() {
        let mut search = search();
        assert_eq!(search.look(0, &VALUE[..10]), None);
        assert_eq!(search.look(4096, &VALUE[10..]), None);
    }

    #[test]
    fn o3_every_line_of_a_key_is_searched_for_and_a_pin_is_too_short() {
        let key = b"-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ7kQz4rO0Yp3v\nq8Xz71Pk\n-----END KEY-----\n";
        assert!(SearchedSecrets::new([("pin", &b"1234"[..])].into_iter()).is_none());
        let mut search = searched(&[("key", key), ("pin", b"1234")]).scan();
        assert_eq!(search.look(0, b"-----BEGIN KEY-----\n"), None);
        assert_eq!(search.look(512, b"MC4CAQAwBQYDK2VwBCIEIJ7kQz4rO0Yp3v").unwrap().name, "key");
        assert_eq!(search.look(4096, b"q8Xz71Pk").unwrap().name, "key");
    }

    #[test]
    fn o3_the_end_of_a_long_token_is_found_without_its_beginning() {
        let token: String =
            (0..300_u32).map(|n| char::from(b"aB3-x9Zq"[n as usize * 5 % 8 ^ n as usize / 50])).collect();
        let mut search = searched(&[("token", token.as_bytes())]).scan();
        assert_eq!(search.look(0, &token.as_bytes()[230..]).unwrap().name, "token");
    }

    #[test]
    fn o3_values_of_structured_secrets_are_searched_for_and_public_ones_are_not() {
        let value =
            b"# a comment that is longer than everything else here\nDB_USER=application\nDB_PASSWORD=Horse77Battery\n";
        let searched = searched(&[("env", value)]);
        assert_eq!(searched.scan_text(b"# a comment that is longer than everything else here", LeakPlace::Disk), None);
        assert_eq!(searched.scan_text(b"user: application", LeakPlace::Disk), None);
        assert_eq!(searched.scan_text(b"password: Horse77Battery", LeakPlace::Disk).unwrap().name, "env");
    }

    #[test]
    fn o3_every_form_that_is_searched_for_is_masked() {
        let json = br#"{"type": "x", "private_key": "-----BEGIN PRIVATE KEY-----\nXWSrEPevGIUGwK8j3DZ8EmqwLMTkPLGvs+L2z3tAbte6NZus0DMwntFlboI6s7zG\nbzo4KZ396eo0tkAS/aF\n-----END PRIVATE KEY-----\n"}"#;
        for value in [
            &b"S3cr/t+P@ss\"w'o<r>d&x=y\\z $Q%1"[..],
            b"AlnumSecretZq7193xKLm4",
            json,
            b"A=b\nTOKEN='it is \xc3\xa9'\n",
        ] {
            let (parts, mask) = (SecretParts::new(value), crate::masking::SecretMask::new([value]));
            for form in parts.units().filter(|unit| unit.len() >= SHORTEST).flat_map(|unit| parts.forms_of(unit)) {
                let wraps = if form.is_wrapped() { &["", "\n", "\r\n", "\\n", "\\r\\n", "\\\\n"][..] } else { &[""] };
                for wrap in wraps {
                    let lines: Vec<&[u8]> = form.bytes.chunks(19).collect();
                    let text = [b"\x1f", &lines.join(wrap.as_bytes())[..], b"\x1f"].concat();
                    let shown = String::from_utf8_lossy(&mask.mask_bytes(&text)).into_owned();
                    let left = shown
                        .replace("[secret]", "")
                        .replace(['\x1f', '\n', '\r'], "")
                        .replace("\\n", "")
                        .replace("\\r", "");
                    assert!(left.len() < 2, "{} {wrap:?}: {shown}", form.how);
                }
            }
        }
    }

    #[test]
    fn o3_wrapped_forms_are_found_wherever_the_line_ends() {
        let searched = searched(&[("token", VALUE)]);
        for form in written_forms(VALUE).iter().filter(|form| form.is_wrapped()) {
            for at in 1..form.bytes.len() {
                let wrapped = [&form.bytes[..at], b"\n", &form.bytes[at..]].concat();
                let leak = searched.scan_text(&wrapped, LeakPlace::Disk);
                assert_eq!(leak.map(|leak| leak.form), Some(form.how), "{at}");
            }
        }
    }

    #[test]
    fn o3_a_folder_is_searched_with_its_names_links_and_compressed_files() {
        let folder = tempfile::tempdir().unwrap();
        let searched = searched(&[("token", b"hunter2-hunter2")]);
        let scan = || searched.scan_folder(folder.path(), &|path| path.ends_with("disk.raw")).unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("logs")).unwrap();
        fs::write(at("disk.raw"), "hunter2-hunter2").unwrap();
        fs::write(at("clean"), "hunter2").unwrap();
        assert_eq!(scan(), []);
        fs::write(at("logs/a"), "so: hunter2-hunter2").unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        io::Write::write_all(&mut packed, b"so: hunter2-hunter2").unwrap();
        fs::write(at("logs/b.gz"), packed.finish().unwrap()).unwrap();
        fs::write(at("logs/hunter2-hunter2.log"), "").unwrap();
        std::os::unix::fs::symlink("/srv/hunter2-hunter2", at("link")).unwrap();
        let mut places: Vec<_> = scan().into_iter().map(|leak| leak.to_string()).collect();
        places.sort();
        let expected = [
            "the secret `token` is in the file logs/a, as it is, at byte 4",
            "the secret `token` is in the file logs/b.gz, as it is, at byte 4 of what it unpacks to",
            "the secret `token` is in the name of a file in logs, as it is",
            "the secret `token` is in the name of a file, as it is",
        ];
        assert_eq!(places, expected);
    }
}
