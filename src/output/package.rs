//! The packages around a disk file, which are made as soon as it is written.

use std::path::Path;

use crate::context::BuildContext;
use crate::error::Failure;
use crate::package::{PackageDisk, PackageFacts, PackageFormat};
use crate::plan::output::{DiskFile, Outputs};
use crate::progress::run_blocking;
use crate::try_join::all;

/// Returns the image's description for packages. Its time is `SOURCE_DATE_EPOCH` where that is set, or else the start of
/// the build.
pub(crate) fn facts(build: &BuildContext<'_>, disk: &DiskFile) -> PackageFacts {
    let plan = build.plan;
    let image = &plan.spec.image;
    let machine = &plan.machine;
    PackageFacts {
        name: image.name.clone(),
        version: image.version.clone(),
        description: image.description.clone(),
        disk_size: disk.format.virtual_size(plan.disk_size()),
        cpus: machine.cpus,
        memory: machine.memory,
        firmware: plan.spec.machine.firmware,
        time: u64::try_from(plan.source_date_epoch.unwrap_or(build.started.as_second())).unwrap_or(0),
    }
}

/// Writes every package around the `index`th disk file, which is at `path`, into a folder, all at once.
pub(crate) async fn package(
    outputs: &Outputs,
    index: usize,
    path: &Path,
    facts: &PackageFacts,
    folder: &Path,
) -> Result<(), Failure> {
    let compression = outputs.disks[index].compression;
    let mut packages = Vec::new();
    for output in outputs.all.iter().filter(|output| output.disk == index) {
        let Some(package) = PackageFormat::of(output.format) else { continue };
        for file in &output.besides {
            let facts = facts.clone();
            let path = path.to_owned();
            let target = folder.join(file);
            packages.push(run_blocking(move |progress| {
                let disk = PackageDisk { path: &path, compression };
                Ok(package.write(&facts, disk, &target, progress)?)
            }));
        }
    }
    all(packages).await
}
