//! What can go wrong in the store.

use std::io;
use std::path::PathBuf;

use crate::error::{Fault, Kind};
use crate::ownership::Distrust;
use crate::process::quote_path;
use crate::sign::SignError;
use crate::specfile::suggest::closest;

use super::reference::{ImageId, ReferenceError};

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file-system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as in "cannot ...".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Signing, or a signature.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store, or a part of it, is not a folder.
    #[error("{} is not a folder, as the store needs it", .0.display())]
    NotAFolder(PathBuf),
    /// The store, or a part of it, belongs to somebody else.
    #[error("the store's folder {} belongs to user {owner}, and kiln runs as user {user}", path.display())]
    NotOwned {
        /// Which folder.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
        /// The effective user's number.
        user: u32,
    },
    /// Anybody could swap an image, in the store or in a part of it.
    #[error("everybody may write to the store's folder {}", .0.display())]
    WorldWritable(PathBuf),
    /// A lock there may block for ever.
    #[error("the store {} is on a network file system, where locks cannot be trusted", .0.display())]
    Network(PathBuf),
    /// No such image.
    #[error("there is no image `{name}` in the store {}", store.display())]
    NoImage {
        /// What was asked for.
        name: String,
        /// Where.
        store: PathBuf,
        /// What there is, sorted.
        known: Vec<String>,
    },
    /// No such version or tag.
    #[error("`{name}` has no version or tag `{selector}`")]
    NoVersion {
        /// The image.
        name: String,
        /// What was asked for.
        selector: String,
        /// The versions there are, newest first, and then the tags.
        known: Vec<String>,
    },
    /// A tag that names what somebody has deleted without kiln.
    #[error("{tag} is {version}, which is not in the store any more")]
    Dangling {
        /// `name@tag`
        tag: String,
        /// What it names.
        version: ImageId,
    },
    /// No such tag.
    #[error("`{name}` has no tag `{tag}`")]
    NoTag {
        /// The image.
        name: String,
        /// What was asked for.
        tag: String,
        /// The tags there are, sorted.
        known: Vec<String>,
    },
    /// A tag of a version's name would be ambiguous.
    #[error("{0} is a version, so `{tag}` cannot be a tag of that image", tag = .0.version())]
    TagIsVersion(ImageId),
    /// A version of a tag's name would be ambiguous.
    #[error("{0} is a tag, so `{version}` cannot be a version of that image", version = .0.version())]
    VersionIsTag(ImageId),
    /// A tag that has named nothing else.
    #[error("{name}@{tag} has named no other version before")]
    NothingBefore {
        /// The image.
        name: String,
        /// The tag.
        tag: String,
    },
    /// A tag that has named a version which was removed.
    #[error("{name}@{tag} named {gone} before, which is not in the store any more")]
    NoWayBack {
        /// The image.
        name: String,
        /// The tag.
        tag: String,
        /// The version.
        gone: String,
        /// The one it named last of those that are there.
        earlier: Option<String>,
    },
    /// A tag names the version that is to go.
    #[error("{id} is {}", tagged(id.name(), tags))]
    Tagged {
        /// Which version.
        id: ImageId,
        /// The tags; never empty.
        tags: Vec<String>,
    },
    /// Others were made from the version that is to go.
    #[error("{id} is the base of {}", some(others))]
    BaseOf {
        /// Which version.
        id: ImageId,
        /// The others; never empty.
        others: Vec<ImageId>,
    },
    /// A name or version the store cannot take.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The version is there, from other inputs.
    #[error("{0} exists already and was built from other inputs")]
    Taken(ImageId),
    /// A build of this very version is running.
    #[error("{0} is being built by another kiln")]
    Busy(ImageId),
    /// Another process reads the version.
    #[error("{0} is in use by another kiln")]
    InUse(ImageId),
    /// A version is not what was published.
    #[error("{id} is damaged: {}", damage.join("; "))]
    Damaged {
        /// Which version.
        id: ImageId,
        /// What is wrong, a fragment for each file.
        damage: Vec<String>,
    },
    /// Written by a newer kiln.
    #[error("{} has schema {found}, and this kiln reads {known}", path.display())]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// The newest one this kiln reads.
        known: u32,
    },
    /// Not JSON of the expected shape.
    #[error("{} cannot be understood", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Larger than anything kiln writes.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A staged file that must not be published.
    #[error("{} cannot be published: {why}", path.display())]
    Unpublishable {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// The manifest lists a file that was not staged.
    #[error("the manifest lists `{0}`, which was never written")]
    NotStaged(String),
    /// An export would overwrite something.
    #[error("{} exists and differs", .0.display())]
    Conflict(PathBuf),
    /// The caller's watch said stop.
    #[error("interrupted")]
    Interrupted,
}

impl From<Distrust> for StoreError {
    fn from(distrust: Distrust) -> Self {
        match distrust {
            Distrust::NotAFolder(path) => StoreError::NotAFolder(path),
            Distrust::NotOwned { path, owner, user } => StoreError::NotOwned { path, owner, user },
            Distrust::Writable(path) => StoreError::WorldWritable(path),
            Distrust::Network(path) => StoreError::Network(path),
            Distrust::Unreadable { path, source } => StoreError::Io { action: "read", path, source },
        }
    }
}

impl StoreError {
    /// The result adapter for a failed call: `.map_err(StoreError::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| StoreError::Io { action, path, source }
    }

    /// Whether it says that a file or folder is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Errors that are the host's shortage rather than the store's: full disk, quota, file size limit, open files.
fn is_shortage(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, OutOfMemory, QuotaExceeded, StorageFull};
    let too_many_files = [nix::libc::EMFILE, nix::libc::ENFILE].map(Some).contains(&error.raw_os_error());
    too_many_files || matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | OutOfMemory)
}

impl Fault for StoreError {
    fn kind(&self) -> Kind {
        match self {
            StoreError::Io { source, .. } if is_shortage(source) => Kind::Host,
            StoreError::Sign(error) => error.kind(),
            StoreError::NotStaged(_) => Kind::Bug,
            StoreError::Reference(_) => Kind::Usage,
            StoreError::Interrupted => Kind::Interrupted,
            _ => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            StoreError::Io { source, .. } => io_hints(source),
            StoreError::Sign(error) => error.hints(),
            StoreError::NotAFolder(_) | StoreError::Network(_) => {
                vec!["name a folder on a local disk with --store or KILN_STORE".to_owned()]
            }
            StoreError::NotOwned { path, .. } => vec![
                "run kiln as the store's owner, or name another store with --store or KILN_STORE".to_owned(),
                format!("to take it over: chown -R \"$(id -u)\" {}", quote_path(path)),
            ],
            StoreError::WorldWritable(path) => vec![format!("chmod o-w {}", quote_path(path))],
            StoreError::NoImage { name, known, .. } => image_hints(name, known),
            StoreError::NoVersion { name, selector, .. } if selector == "latest" => {
                vec![format!("`{name}` alone means its newest version")]
            }
            StoreError::NoVersion { selector, known, .. } => known_hints("versions and tags", selector, known),
            StoreError::NoTag { tag, known, .. } => known_hints("tags", tag, known),
            StoreError::Dangling { version, .. } => {
                vec![format!("`kiln list` shows what there is of {}", version.name())]
            }
            StoreError::TagIsVersion(_) => vec!["choose another name for the tag".to_owned()],
            StoreError::VersionIsTag(id) => vec![
                "give it another version".to_owned(),
                format!("or take the tag off with `kiln tag {} --delete {}`", id.name(), id.version()),
            ],
            StoreError::NothingBefore { name, tag } => {
                vec![format!("`kiln tag {name} {tag} --history` shows what it has named")]
            }
            StoreError::NoWayBack { name, tag, earlier, .. } => match earlier {
                Some(earlier) => {
                    vec![format!("`kiln tag {name}@{earlier} {tag}` sets it to the one it named before that")]
                }
                None => vec![format!("`kiln tag {name}@VERSION {tag}` sets it to another version")],
            },
            StoreError::Tagged { id, tags } => vec![
                format!("move the tag with `kiln tag {}@VERSION {}`", id.name(), tags[0]),
                format!("or take it off with `kiln tag {} --delete {}`", id.name(), tags[0]),
            ],
            StoreError::BaseOf { .. } => vec![
                "remove those first".to_owned(),
                "or remove it with --force: they work without it, but cannot be built again from it".to_owned(),
            ],
            StoreError::Taken(_) => vec!["give it a new version, or replace the old image with --replace".to_owned()],
            StoreError::Busy(_) => vec!["try again when that build is over".to_owned()],
            StoreError::InUse(_) => vec!["try again when nothing reads it any more".to_owned()],
            StoreError::Damaged { id, .. } => vec![format!("remove it with `kiln remove {id}` and build it again")],
            StoreError::NewerSchema { .. } => vec!["use the kiln that wrote it, or a newer one".to_owned()],
            StoreError::Conflict(_) => vec!["name another folder, or overwrite it with --replace".to_owned()],
            _ => Vec::new(),
        }
    }
}

fn io_hints(error: &io::Error) -> Vec<String> {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            vec!["name a folder you may write to with --store or KILN_STORE".to_owned()]
        }
        _ if is_shortage(error) => vec!["make room with `kiln remove` or `kiln gc`, or raise the limit".to_owned()],
        _ => Vec::new(),
    }
}

/// What was probably meant, or how the image comes into the store.
fn image_hints(name: &str, known: &[String]) -> Vec<String> {
    let build = "build it first: `kiln build SPEC` puts the image of a spec into the store".to_owned();
    if known.is_empty() {
        return vec![build];
    }
    let is_near = closest(name, known.iter().map(String::as_str)).is_some();
    known_hints("images", name, known).into_iter().chain((!is_near).then_some(build)).collect()
}

/// What was probably meant, and what there is.
fn known_hints(what: &str, word: &str, known: &[String]) -> Vec<String> {
    const SHOWN: usize = 10;
    let shown = known.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let list = match known.len() {
        0 => "`kiln list` shows what there is".to_owned(),
        n if n > SHOWN => format!("{what} there are: {shown} and {} more", n - SHOWN),
        _ => format!("{what} there are: {shown}"),
    };
    let near = closest(word, known.iter().map(String::as_str));
    near.map(|near| format!("did you mean `{near}`?")).into_iter().chain([list]).collect()
}

/// `web@stable and web@candidate`
fn tagged(name: &str, tags: &[String]) -> String {
    tags.iter().map(|tag| format!("{name}@{tag}")).collect::<Vec<_>>().join(" and ")
}

fn some(others: &[ImageId]) -> String {
    const SHOWN: usize = 3;
    let shown = others.iter().take(SHOWN).map(ImageId::to_string).collect::<Vec<_>>().join(", ");
    let more = others.len().saturating_sub(SHOWN);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
