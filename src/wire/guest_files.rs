//! Reads the files of a guest, whether it is running or only its disk is available.

/// The longest file that is read, in bytes; anything beyond is ignored.
pub const LONGEST_FILE: u64 = 16 << 20;

const BOOT_FILES: [&str; 5] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/extlinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/etc/kernel/cmdline",
];
const BOOT_ENTRIES: &str = "/boot/loader/entries";

/// The files of a guest, with symbolic links followed. A file that cannot be read counts as missing.
pub trait GuestFiles {
    /// Returns the content of a regular file.
    fn read(&self, path: &str) -> Option<Vec<u8>>;

    /// Returns the names in a folder, in any order.
    fn names(&self, folder: &str) -> Vec<String>;

    /// Returns whether a folder contains this name, even if it is a link that leads nowhere.
    fn has_name(&self, folder: &str, name: &str) -> bool {
        self.names(folder).iter().any(|found| found == name)
    }

    /// Returns the content of a regular file as a string; an empty string if there is none.
    fn text(&self, path: &str) -> String {
        String::from_utf8_lossy(&self.read(path).unwrap_or_default()).into_owned()
    }

    /// Returns the names in a folder that end with one of these suffixes, in any order.
    fn names_ending(&self, folder: &str, suffixes: &[&str]) -> impl Iterator<Item = String> {
        self.names(folder).into_iter().filter(|name| has_suffix(name, suffixes))
    }
}

/// Returns whether a name ends with one of these suffixes; case matters.
pub(super) fn has_suffix(name: &str, suffixes: &[&str]) -> bool {
    suffixes.iter().any(|suffix| name.strip_suffix(suffix).is_some())
}

/// Returns the folders, within a folder of units, whose links start units.
pub(super) fn find_linking_folders(files: &impl GuestFiles, units: &str) -> impl Iterator<Item = String> {
    files.names_ending(units, &[".wants", ".requires"]).map(move |name| format!("{units}/{name}"))
}

/// A file with kernel command lines.
pub(super) struct BootFile {
    pub(super) path: String,
    pub(super) text: String,
}

impl BootFile {
    /// Returns whether a command line has this option, or one with this prefix if it ends with `=`.
    pub(super) fn has_option(&self, option: &str) -> bool {
        self.words().any(|word| word == option || (option.ends_with('=') && word.starts_with(option)))
    }

    /// Returns the values of an option of all command lines, whose name ends with `=` and which lists them between commas.
    pub(super) fn values(&self, option: &str) -> impl Iterator<Item = &str> {
        self.words().filter_map(move |word| word.strip_prefix(option)).flat_map(|list| list.split(','))
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        lines_without_comments(&self.text).flat_map(str::split_whitespace)
    }
}

/// Returns the lines of a boot loader's file that are no comments.
pub(super) fn lines_without_comments(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with('#'))
}

/// Reads the boot loader's files that have command lines.
pub(super) fn read_boot_files(files: &impl GuestFiles) -> Vec<BootFile> {
    let entries = files.names_ending(BOOT_ENTRIES, &[".conf"]).map(|name| format!("{BOOT_ENTRIES}/{name}"));
    let paths = BOOT_FILES.map(str::to_owned).into_iter().chain(entries);
    paths.map(|path| BootFile { text: files.text(&path), path }).collect()
}

/// The files of an imaginary guest, by their paths.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(super) struct FileMap(pub(super) std::collections::BTreeMap<String, String>);

#[cfg(test)]
impl FileMap {
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
    }
}

#[cfg(test)]
impl GuestFiles for FileMap {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.0.get(path).map(|text| text.clone().into_bytes())
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names = self.0.keys().filter_map(|path| path.strip_prefix(folder)?.strip_prefix('/')?.split('/').next());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.dedup();
        names
    }
}
