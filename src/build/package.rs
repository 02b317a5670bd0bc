//! The packages around a disk file, as soon as it is written.

use std::ops::ControlFlow;
use std::path::Path;

use tokio::task::spawn_blocking;

use crate::error::Failure;
use crate::package::{Disk, Facts, Package};
use crate::plan::output::{DiskFile, Outputs};

use super::Build;
use super::lanes::all;
use super::limits::Limits;

/// What packages say of the image. Their time is the one that the guest is told, or else that of the build.
pub(crate) fn facts(build: &Build<'_>, disk: &DiskFile) -> Facts {
    let plan = build.plan;
    let (image, machine) = (&plan.spec.image, &plan.machine);
    Facts {
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

/// Makes every package around the `index`th disk file, which is at `path`, in a folder, all at once.
pub(crate) async fn package(
    outputs: &Outputs,
    index: usize,
    path: &Path,
    facts: &Facts,
    folder: &Path,
    limits: &Limits,
) -> Result<(), Failure> {
    let compression = outputs.disks[index].compression;
    let made = |(package, file): (Package, &String)| {
        let (facts, path, target, limits) = (facts.clone(), path.to_owned(), folder.join(file), limits.clone());
        let work = spawn_blocking(move || {
            let mut watch =
                |_| if limits.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            package.write(&facts, Disk { path: &path, compression }, &target, &mut watch)
        });
        async { Ok(work.await.expect("packaging does not panic")?) }
    };
    let of_disk = outputs.all.iter().filter(|output| output.disk == index);
    let files = of_disk.filter_map(|output| Some((Package::of(output.format)?, &output.besides)));
    all(files.flat_map(|(package, files)| files.iter().map(move |file| (package, file))).map(made).collect()).await
}
