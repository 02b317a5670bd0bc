//! `kiln export`: converts an image to another format, or describes it for the programs that run it elsewhere.

use std::io::Write;
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::error::{Failure, Fault, Kind};
use crate::fs::{create_beside, publish};
use crate::output::export::{ExportOptions, add_to_tree, copy, export};
use crate::package::handover::{DescribedImage, libvirt, terraform};
use crate::specfile::OutputSpec;
use crate::store::{Artifact, OnConflict, Store, StoreError, manifest};

use super::args::{self, GlobalArgs};
use super::folders::Folders;
use super::{path_line, print, print_json};

/// An error of an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportRequestError {
    /// The format does not support this compression.
    #[error("a {format} file cannot be compressed with {compression}")]
    Compression {
        /// Name of the format.
        format: &'static str,
        /// Name of the compression.
        compression: &'static str,
    },
    /// The image has no file that libvirt can run.
    #[error("{0} has no qcow2 or raw file, which libvirt needs")]
    NoDisk(String),
    /// The description cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Path of the description.
        path: PathBuf,
        /// The underlying error.
        #[source]
        source: std::io::Error,
    },
}

impl Fault for ExportRequestError {
    fn kind(&self) -> Kind {
        match self {
            ExportRequestError::Compression { .. } => Kind::Usage,
            ExportRequestError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Kind::Host,
            ExportRequestError::NoDisk(_) | ExportRequestError::Write { .. } => Kind::Output,
        }
    }
}

/// Exports an image in the requested form, and prints the paths of the files.
///
/// # Errors
/// When there is no such image, it cannot be made, or a file is there that differs.
pub async fn run(
    args: args::ExportArgs,
    global: &GlobalArgs,
    folders: &Folders,
    cancel: CancellationToken,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let store = folders.store()?;
    let conflict = if args.replace { OnConflict::Replace } else { OnConflict::Refuse };
    let events = super::events(global);
    if args.form.simplestreams {
        let artifact = store.artifact(&args.image.parse()?)?;
        let added = add_to_tree(&artifact, &args.output, conflict, &events, cancel).await?;
        return print(out, &lines(added.iter().map(PathBuf::as_path)));
    }
    let Some(format) = args.form.format else { return describe(&store, &args, conflict, cancel, out).await };
    let compression = args.compression.unwrap_or(format.compressions()[0]);
    if !format.compressions().contains(&compression) {
        return Err(ExportRequestError::Compression { format: format.name(), compression: compression.name() }.into());
    }
    let artifact = store.artifact(&args.image.parse()?)?;
    let output = OutputSpec { format, compression, platforms: Vec::new() };
    let made = export(&artifact, &ExportOptions { output, target: &args.output, conflict }, &events, cancel).await?;
    if args.json {
        return print_json(out, &format!("{:#}\n", json!(made)));
    }
    print(out, &lines(made.iter().map(|output| Path::new(&output.file))))
}

fn lines<'a>(paths: impl Iterator<Item = &'a Path>) -> String {
    paths.map(path_line).collect()
}

/// Writes a description into the folder, and prints its path and that of a disk copied for it; for `--external`, prints the
/// description itself.
async fn describe(
    store: &Store,
    args: &args::ExportArgs,
    conflict: OnConflict,
    cancel: CancellationToken,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let artifact = Arc::new(store.artifact(&args.image.parse()?)?);
    let output = disk(&artifact)?;
    let stored = artifact.folder().join(&output.file);
    if args.form.external {
        let image = DescribedImage { manifest: artifact.manifest(), output, path: &stored };
        return print_json(out, &format!("{:#}\n", terraform::external(&image)));
    }
    if args.form.libvirt {
        // The domain contains the path of the disk, and writes to it.
        let copies = copy(&artifact, Some(output.file.clone()), &args.output, conflict, cancel).await?;
        let image = DescribedImage { manifest: artifact.manifest(), output, path: &copies[0] };
        let path = write(&args.output, &format!("{}.xml", image.stem()), &libvirt::domain(&image), conflict)?;
        return print(out, &lines([path.as_path(), copies[0].as_path()].into_iter()));
    }
    let image = DescribedImage { manifest: artifact.manifest(), output, path: &stored };
    let text = format!("{:#}\n", terraform::configuration(&image));
    let path = write(&args.output, &format!("{}.tf.json", artifact.id().name()), &text, conflict)?;
    print(out, &path_line(&path))
}

/// Returns the output that libvirt can run.
fn disk(artifact: &Artifact) -> Result<&manifest::ManifestOutput, ExportRequestError> {
    let runs = |output: &&manifest::ManifestOutput| matches!(&*output.format, "qcow2" | "raw");
    let found = artifact.manifest().outputs.iter().find(runs);
    found.ok_or_else(|| ExportRequestError::NoDisk(artifact.id().to_string()))
}

/// Writes a file atomically. A file with the same content is left alone.
fn write(folder: &Path, name: &str, text: &str, conflict: OnConflict) -> Result<PathBuf, Failure> {
    let folder = absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let path = folder.join(name);
    let failed = |source| ExportRequestError::Write { path: path.clone(), source };
    match std::fs::read(&path) {
        Ok(there) if there == text.as_bytes() => return Ok(path),
        Ok(_) if conflict == OnConflict::Refuse => return Err(StoreError::Conflict(path).into()),
        _ => {}
    }
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let mut file = create_beside(&path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    publish(file, &path, 0o644, OnConflict::Replace).map_err(failed)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{TestStore, written};

    fn described(
        shelf: &TestStore,
        folder: &Path,
        form: args::ExportForm,
        conflict: OnConflict,
    ) -> Result<String, Failure> {
        let (compression, json, replace) = (None, false, false);
        let args =
            args::ExportArgs { image: "web".into(), form, compression, output: folder.to_owned(), replace, json };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        written(|out| runtime.block_on(describe(&shelf.store, &args, conflict, CancellationToken::new(), out)))
    }

    #[test]
    fn a_domain_has_a_disk_of_its_own() {
        let (shelf, folder) = (TestStore::with(&["web@1"]), tempfile::tempdir().unwrap());
        let form = args::ExportForm { libvirt: true, ..args::ExportForm::default() };
        let run = |conflict| described(&shelf, folder.path(), form, conflict);
        let path = folder.path().join("web-1.xml");
        let disk = folder.path().join("web-1.qcow2");
        assert_eq!(run(OnConflict::Refuse).unwrap(), format!("{}\n{}\n", path.display(), disk.display()));
        assert!(std::fs::read_to_string(&path).unwrap().contains(&disk.display().to_string()));
        assert_eq!(std::fs::read_to_string(&disk).unwrap(), "disk");
        run(OnConflict::Refuse).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(run(OnConflict::Refuse).unwrap_err().kind().exit_code(), 8);
        run(OnConflict::Replace).unwrap();
    }

    #[test]
    fn terraform_takes_the_file_from_the_store() {
        let (shelf, folder) = (TestStore::with(&["web@1"]), tempfile::tempdir().unwrap());
        let form = args::ExportForm { terraform: true, ..args::ExportForm::default() };
        let text = described(&shelf, folder.path(), form, OnConflict::Refuse).unwrap();
        let made: serde_json::Value = serde_json::from_slice(&std::fs::read(text.trim()).unwrap()).unwrap();
        let stored = shelf.store.path().join("web/1/web-1.qcow2");
        assert_eq!(made["resource"]["libvirt_volume"]["web"]["create"]["content"]["url"], stored.display().to_string());
        let form = args::ExportForm { external: true, ..args::ExportForm::default() };
        let flat = described(&shelf, folder.path(), form, OnConflict::Refuse).unwrap();
        assert!(flat.contains("\"version\": \"1\""), "{flat}");
    }
}
