//! `kiln init`: writes a commented spec to start from.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::{Failure, Fault, Kind};

/// Arguments of `kiln init`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  kiln init web && $EDITOR web/kiln.toml")]
pub struct InitArgs {
    /// Folder to write kiln.toml to
    #[arg(default_value = ".", value_name = "DIR")]
    pub folder: PathBuf,
}

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
pub fn run(folder: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let path = folder.join("kiln.toml");
    let line = format!("{}\n", path.display());
    create(folder, &path).map_err(|source| InitError { path, source })?;
    super::print(out, &line)
}

fn create(folder: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let whole = folder.canonicalize()?;
    let name = image_name(&whole.file_name().unwrap_or_default().to_string_lossy());
    File::create_new(path)?.write_all(template(&name).as_bytes())
}

/// Returns the image name that is derived from a folder's name.
fn image_name(folder: &str) -> String {
    let allowed = folder.chars().map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => c.to_ascii_lowercase(),
        _ => '-',
    });
    let name: String = allowed.skip_while(|c| !c.is_ascii_alphanumeric()).take(64).collect();
    if name.is_empty() { "image".to_owned() } else { name }
}

/// Returns the content of a new `kiln.toml` for an image of this name.
///
/// The name must be one that `[image]` accepts; it is not escaped.
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
