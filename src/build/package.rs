//! The packages around a disk file, as soon as it is written.

use std::ops::ControlFlow;
use std::path::Path;

use tokio::task::spawn_blocking;

use crate::error::Failure;
use crate::package::{Disk, Facts, Package};
use crate::plan::output::DiskFile;

use super::Build;

/// What packages say of the image. Their time is the one that the guest is told, or else that of the build.
fn facts(build: &Build<'_>, disk: &DiskFile) -> Facts {
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

/// Makes every package around the `index`th disk file, which is at `path`.
pub(crate) async fn package(build: &Build<'_>, index: usize, path: &Path, staging: &Path) -> Result<(), Failure> {
    let outputs = &build.plan.outputs;
    let disk = &outputs.disks[index];
    for output in outputs.all.iter().filter(|output| output.disk == index) {
        let Some(package) = Package::of(output.format) else { continue };
        for file in &output.besides {
            let (facts, path, target) = (facts(build, disk), path.to_owned(), staging.join(file));
            let (limits, compression) = (build.limits.clone(), disk.compression);
            let work = spawn_blocking(move || {
                let mut watch =
                    |_| if limits.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
                package.write(&facts, Disk { path: &path, compression }, &target, &mut watch)
            });
            work.await.expect("packaging does not panic")?;
        }
    }
    Ok(())
}
