//! `kiln init`: writes a commented spec to start from.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Failure, Fault, Kind};

/// The spec could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct InitError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Fault for InitError {
    fn kind(&self) -> Kind {
        Kind::Output
    }

    fn hints(&self) -> Vec<String> {
        match self.source.kind() {
            io::ErrorKind::AlreadyExists => vec!["there is a spec already; `kiln init` never overwrites one".into()],
            _ => Vec::new(),
        }
    }
}

/// Writes `kiln.toml` into the folder, which is created if missing; the image takes the folder's name. Prints the path.
///
/// # Errors
/// When the file exists already, or it cannot be written.
pub fn run(folder: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let path = folder.join("kiln.toml");
    let failed = |source| InitError { path: path.clone(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let whole = folder.canonicalize().map_err(failed)?;
    let name = image_name(&whole.file_name().unwrap_or_default().to_string_lossy());
    File::create_new(&path).and_then(|mut file| file.write_all(template(&name).as_bytes())).map_err(failed)?;
    super::print(out, &format!("{}\n", path.display()))
}

/// Returns the image name that is derived from a folder's name.
fn image_name(folder: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c.to_ascii_lowercase() } else { '-' };
    let name: String = folder.chars().map(allowed).skip_while(|c| !c.is_ascii_alphanumeric()).take(64).collect();
    if name.is_empty() { "image".to_owned() } else { name }
}

/// Returns the content of a new `kiln.toml` for an image of this name.
///
/// The name must be one that `[image]` accepts; it is not escaped.
#[must_use]
pub fn template(name: &str) -> String {
    include_str!("init.toml").replace("@NAME@", name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::specfile::{Overrides, Spec};

    #[test]
    fn any_folder_gives_a_name_that_a_spec_accepts() {
        for folder in ["web", "My Server", "__x", "", "größe", &"n".repeat(100)] {
            let name = image_name(folder);
            assert!(Spec::parse(Path::new("kiln.toml"), &template(&name), &Overrides::default()).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_template_is_a_spec() {
        let spec = Spec::parse(Path::new("kiln.toml"), &template("web"), &Overrides::default()).unwrap();
        assert_eq!(spec.image.name, "web");
    }
}
