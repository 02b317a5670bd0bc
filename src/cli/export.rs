//! `kiln export`: converts an image to another format, or describes it for the programs that run it elsewhere.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::error::{Failure, Fault, FileError, Kind};
use crate::fs::{create_beside, publish};
use crate::output::export::{ExportOptions, add_to_tree, copy, export};
use crate::package::handover::{DescribedImage, libvirt, terraform};
use crate::specfile::{Compression, DiskFormat, OutputFormat, OutputSpec};
use crate::store::manifest::ManifestKernel;
use crate::store::{Artifact, OnConflict, Store, StoreError, manifest};

use super::args::named;
use super::{CommandContext, path_line, print, print_json};

/// Arguments of `kiln export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kiln export web@1.4.0 --format vmdk -o out/\n  kiln export web@stable --simplestreams -o \
        /srv/www/incus\n  kiln export web@stable --libvirt -o /var/lib/libvirt/images && virsh define \
        /var/lib/libvirt/images/web-1.4.0.xml\n  kiln export web@stable --terraform -o infra\n\n\
        In Terraform, `program = [\"kiln\", \"export\", \"web@stable\", \"--external\"]` makes an external data \
        source."
)]
pub struct ExportArgs {
    /// Image: `name`, `name@version` or `name@tag`
    pub image: String,
    /// The requested form of the image.
    #[command(flatten)]
    pub form: ExportForm,
    /// Compression inside the format, where it supports several
    #[arg(long, value_name = "C", requires = "format", value_parser = named(&Compression::ALL, Compression::name))]
    pub compression: Option<Compression>,
    /// Folder to write to; with a --format of one file, also the path of the file
    #[arg(short, long, value_name = "PATH", default_value = ".")]
    pub output: PathBuf,
    /// Overwrite files that differ
    #[arg(long)]
    pub replace: bool,
    /// With --format: print the manifest entries of the files instead of their paths
    #[arg(long, requires = "format")]
    pub json: bool,
}

/// The form to export an image in.
#[derive(Debug, Clone, Copy, Default, Args)]
#[group(required = true, multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is typed")]
pub struct ExportForm {
    /// Convert to this output format, and verify the files as in a build
    #[arg(long, value_name = "F", value_parser = named(OutputFormat::ALL, OutputFormat::name))]
    pub format: Option<OutputFormat>,
    /// Add to a simplestreams tree, which Incus and LXD read from an HTTPS server
    #[arg(long)]
    pub simplestreams: bool,
    /// Write a libvirt domain, and a copy of the disk for it
    #[arg(long)]
    pub libvirt: bool,
    /// Write a Terraform configuration that uploads the image with the libvirt provider
    #[arg(long)]
    pub terraform: bool,
    /// Print the result of an `external` data source of Terraform
    #[arg(long, conflicts_with = "output")]
    pub external: bool,
}

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
}

impl Fault for ExportRequestError {
    fn kind(&self) -> Kind {
        match self {
            ExportRequestError::Compression { .. } => Kind::Usage,
            ExportRequestError::NoDisk(_) => Kind::Output,
        }
    }
}

/// Exports an image in the requested form, and prints the paths of the files.
pub(super) async fn run(args: ExportArgs, context: CommandContext<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let store = context.folders.store()?;
    let conflict = if args.replace { OnConflict::Replace } else { OnConflict::Refuse };
    let events = context.events();
    let cancel = context.cancel;
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
    args: &ExportArgs,
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
        for file in artifact.manifest().kernel.iter().flat_map(ManifestKernel::files) {
            copy(&artifact, Some(file.file.clone()), &args.output, conflict, cancel.clone()).await?;
        }
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
    let mut outputs = artifact.manifest().outputs.iter();
    let disk =
        outputs.find(|output| matches!(DiskFormat::named(&output.format), Some(DiskFormat::Qcow2 | DiskFormat::Raw)));
    disk.ok_or_else(|| ExportRequestError::NoDisk(artifact.id().to_string()))
}

/// Writes a description into a folder. A file with the same content is left alone.
fn write(folder: &Path, name: &str, text: &str, conflict: OnConflict) -> Result<PathBuf, Failure> {
    let folder = absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let path = folder.join(name);
    match fs::read(&path) {
        Ok(there) if there == text.as_bytes() => Ok(path),
        Ok(_) if conflict == OnConflict::Refuse => Err(StoreError::Conflict(path).into()),
        _ => {
            replace(&folder, &path, text).map_err(FileError::of(Kind::Output, "write", &path))?;
            Ok(path)
        }
    }
}

/// Writes a file atomically, into a folder that is created if missing.
fn replace(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = create_beside(path)?;
    file.write_all(text.as_bytes())?;
    publish(file, path, 0o644, OnConflict::Replace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{TestStore, written};

    fn described(shelf: &TestStore, folder: &Path, form: ExportForm, conflict: OnConflict) -> Result<String, Failure> {
        let (compression, json, replace) = (None, false, false);
        let args = ExportArgs { image: "web".into(), form, compression, output: folder.to_owned(), replace, json };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        written(|out| runtime.block_on(describe(&shelf.store, &args, conflict, CancellationToken::new(), out)))
    }

    #[test]
    fn a_domain_has_a_disk_of_its_own() {
        let (shelf, folder) = (TestStore::with(&["web@1"]), tempfile::tempdir().unwrap());
        let form = ExportForm { libvirt: true, ..ExportForm::default() };
        let run = |conflict| described(&shelf, folder.path(), form, conflict);
        let path = folder.path().join("web-1.xml");
        let disk = folder.path().join("web-1.qcow2");
        assert_eq!(run(OnConflict::Refuse).unwrap(), format!("{}\n{}\n", path.display(), disk.display()));
        assert!(fs::read_to_string(&path).unwrap().contains(&disk.display().to_string()));
        assert_eq!(fs::read_to_string(&disk).unwrap(), "disk");
        run(OnConflict::Refuse).unwrap();
        fs::write(&path, "mine").unwrap();
        assert_eq!(run(OnConflict::Refuse).unwrap_err().kind().exit_code(), 8);
        run(OnConflict::Replace).unwrap();
    }

    #[test]
    fn terraform_takes_the_file_from_the_store() {
        let (shelf, folder) = (TestStore::with(&["web@1"]), tempfile::tempdir().unwrap());
        let form = ExportForm { terraform: true, ..ExportForm::default() };
        let text = described(&shelf, folder.path(), form, OnConflict::Refuse).unwrap();
        let made: serde_json::Value = serde_json::from_slice(&fs::read(text.trim()).unwrap()).unwrap();
        let stored = shelf.store.path().join("web/1/web-1.qcow2");
        assert_eq!(made["resource"]["libvirt_volume"]["web"]["create"]["content"]["url"], stored.display().to_string());
        let form = ExportForm { external: true, ..ExportForm::default() };
        let flat = described(&shelf, folder.path(), form, OnConflict::Refuse).unwrap();
        assert!(flat.contains("\"version\": \"1\""), "{flat}");
    }
}
