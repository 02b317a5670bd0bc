//! Errors of the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Fault, Kind};
use crate::ownership::OwnershipError;
use crate::process::quote_path;
use crate::progress::CancelledError;
use crate::sign::SignError;
use crate::specfile::suggest::closest;

use super::reference::{ImageId, ReferenceError};

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file-system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The action that failed, as in "cannot ...".
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// The underlying error.
        source: io::Error,
    },
    /// Signing or checking a signature failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store, or a part of it, is not a folder.
    #[error("{} is not a folder, as the store needs it", .0.display())]
    NotAFolder(PathBuf),
    /// The store, or a part of it, belongs to somebody else.
    #[error("the store's folder {} belongs to user {owner}, and kiln runs as user {user}", path.display())]
    NotOwned {
        /// Path of the folder.
        path: PathBuf,
        /// User id of the owner.
        owner: u32,
        /// Effective user id of this process.
        user: u32,
    },
    /// The store, or a part of it, is writable for everybody, who could replace an image.
    #[error("everybody may write to the store's folder {}", .0.display())]
    WorldWritable(PathBuf),
    /// The store is on a network file system, where a lock may block for ever.
    #[error("the store {} is on a network file system, where locks cannot be trusted", .0.display())]
    Network(PathBuf),
    /// The image does not exist.
    #[error("there is no image `{name}` in the store {}", store.display())]
    NoImage {
        /// The requested name.
        name: String,
        /// Path of the store.
        store: PathBuf,
        /// The existing images, sorted.
        known: Vec<String>,
    },
    /// The version or tag does not exist.
    #[error("`{name}` has no version or tag `{selector}`")]
    NoVersion {
        /// Name of the image.
        name: String,
        /// The requested version or tag.
        selector: String,
        /// The existing versions, newest first, and then the tags.
        known: Vec<String>,
    },
    /// A tag of a version that was deleted without kiln.
    #[error("{tag} is {version}, which is no longer in the store")]
    Dangling {
        /// The tag, as `name@tag`.
        tag: String,
        /// The version that it names.
        version: ImageId,
    },
    /// The tag does not exist.
    #[error("`{name}` has no tag `{tag}`")]
    NoTag {
        /// Name of the image.
        name: String,
        /// The requested tag.
        tag: String,
        /// The existing tags, sorted.
        known: Vec<String>,
    },
    /// A tag with the name of a version, which would be ambiguous.
    #[error("{0} is a version, so `{tag}` cannot be a tag of that image", tag = .0.version())]
    TagIsVersion(ImageId),
    /// A version with the name of a tag, which would be ambiguous.
    #[error("{0} is a tag, so `{version}` cannot be a version of that image", version = .0.version())]
    VersionIsTag(ImageId),
    /// A rollback of a tag that has no previous target.
    #[error("{name}@{tag} has named no other version before")]
    NothingBefore {
        /// Name of the image.
        name: String,
        /// Name of the tag.
        tag: String,
    },
    /// A rollback of a tag whose previous target was removed.
    #[error("{name}@{tag} named {gone} before, which is no longer in the store")]
    NoWayBack {
        /// Name of the image.
        name: String,
        /// Name of the tag.
        tag: String,
        /// The removed version.
        gone: String,
        /// The latest of its earlier targets that still exists.
        earlier: Option<String>,
    },
    /// A version that cannot be removed because tags name it.
    #[error("{id} is {}", tagged(id.name(), tags))]
    Tagged {
        /// The version.
        id: ImageId,
        /// The tags; never empty.
        tags: Vec<String>,
    },
    /// A version that cannot be removed because other images were built from it.
    #[error("{id} is the base of {}", some(others))]
    BaseOf {
        /// The version.
        id: ImageId,
        /// The other versions; never empty.
        others: Vec<ImageId>,
    },
    /// An invalid name or version.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The version exists, and was built from other inputs.
    #[error("{0} exists already and was built from other inputs")]
    Taken(ImageId),
    /// Another process builds this version.
    #[error("{0} is being built by another kiln")]
    Busy(ImageId),
    /// Another process reads the version.
    #[error("{0} is in use by another kiln")]
    InUse(ImageId),
    /// A version differs from what was published.
    #[error("{id} is damaged: {}", damage.join("; "))]
    Damaged {
        /// The version.
        id: ImageId,
        /// The damage, a fragment for each file.
        damage: Vec<String>,
    },
    /// A file that a newer kiln has written.
    #[error("{} has schema {found}, and this kiln reads {known}", path.display())]
    NewerSchema {
        /// Path of the file.
        path: PathBuf,
        /// Its schema version.
        found: u64,
        /// The newest schema version that this kiln reads.
        known: u32,
    },
    /// A file that is not JSON of the expected shape.
    #[error("failed to parse {}", path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A file that is larger than anything kiln writes.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// The limit, bytes.
        limit: u64,
    },
    /// A staged file cannot be published.
    #[error("{} cannot be published: {why}", path.display())]
    Unpublishable {
        /// Path of the file.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// The manifest lists a file that was not staged.
    #[error("the manifest lists `{0}`, which was never written")]
    NotStaged(String),
    /// An export would overwrite a file.
    #[error("{} exists and differs", .0.display())]
    Conflict(PathBuf),
    /// The work was cancelled.
    #[error(transparent)]
    Cancelled(#[from] CancelledError),
}

impl From<OwnershipError> for StoreError {
    fn from(distrust: OwnershipError) -> Self {
        match distrust {
            OwnershipError::NotAFolder(path) => StoreError::NotAFolder(path),
            OwnershipError::NotOwned { path, owner, user } => StoreError::NotOwned { path, owner, user },
            OwnershipError::Writable(path) => StoreError::WorldWritable(path),
            OwnershipError::Network(path) => StoreError::Network(path),
            OwnershipError::Unreadable { path, source } => StoreError::Io { action: "read", path, source },
        }
    }
}

impl StoreError {
    /// Returns an adapter for the error of a failed call: `.map_err(StoreError::io("read", path))`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| StoreError::Io { action, path, source }
    }

    /// Returns an adapter for the error of a JSON parser.
    pub(super) fn malformed(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| StoreError::Malformed { path: path.to_owned(), source }
    }

    /// Returns whether the error means that a file or folder does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Returns whether an error is a shortage of the host rather than a failure of the store: full disk, quota, file size limit,
/// open files.
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
            StoreError::Cancelled(_) => Kind::Interrupted,
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

/// Returns hints: similar names, or how to get the image into the store.
fn image_hints(name: &str, known: &[String]) -> Vec<String> {
    let build = "build it first: `kiln build SPEC` puts the image of a spec into the store".to_owned();
    if known.is_empty() {
        return vec![build];
    }
    let is_near = closest(name, known.iter().map(String::as_str)).is_some();
    known_hints("images", name, known).into_iter().chain((!is_near).then_some(build)).collect()
}

/// Returns hints: similar names, and the existing ones.
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

/// Joins tags as in `web@stable and web@candidate`.
fn tagged(name: &str, tags: &[String]) -> String {
    tags.iter().map(|tag| format!("{name}@{tag}")).collect::<Vec<_>>().join(" and ")
}

fn some(others: &[ImageId]) -> String {
    const SHOWN: usize = 3;
    let shown = others.iter().take(SHOWN).map(ImageId::to_string).collect::<Vec<_>>().join(", ");
    let more = others.len().saturating_sub(SHOWN);
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
