//! The provenance of a version: an in-toto Statement v1 with the predicate SLSA Provenance v1.
//!
//! It claims SLSA Build Level 1 and no more: it documents how the image was built, and kiln ran as the user who called it,
//! so only a signature verifies it.

use serde_json::{Value, json};

use crate::disk::chunk_index;
use crate::network_record::RequestKind;
use crate::store::Manifest;
use crate::store::manifest::{ManifestDownload, ManifestKernel, ManifestMachine};

use super::{StepInput, downloaded_files, time};

pub(super) fn document(manifest: &Manifest, inputs: &[StepInput]) -> Value {
    let subject =
        manifest.outputs.iter().map(|output| json!({ "name": output.file, "digest": { "sha256": output.sha256 } }));
    let base = json!({
        "name": "base image", "uri": manifest.base.source, "digest": { "sha256": manifest.base.sha256 },
        "annotations": { "format": manifest.base.format },
    });
    let kernel = manifest.kernel.as_ref().map(describe_kernel).unwrap_or_default();
    let brought = inputs
        .iter()
        .map(|input| json!({ "name": input.step, "digest": { input.digest.algorithm(): input.digest.sha256() } }));
    let downloaded = downloads(manifest);
    let steps: Vec<Value> = manifest
        .steps
        .iter()
        .map(|step| json!({ "name": step.name, "verb": step.verb, "key": step.key, "cached": step.cached }))
        .collect();
    let disk = [("disk", &manifest.disk_sha256), (chunk_index::FILE, &manifest.disk_chunks_sha256)].into_iter();
    let byproducts =
        disk.filter_map(|(name, sha256)| Some(json!({ "name": name, "digest": { "sha256": sha256.as_ref()? } })));
    let machine = &manifest.machine;
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject.collect::<Vec<_>>(),
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:kiln:build:v1",
                "externalParameters": {
                    "name": manifest.image.name, "version": manifest.image.version, "labels": manifest.image.labels,
                    "buildKey": manifest.build_key, "sourceDateEpoch": manifest.source_date_epoch,
                },
                "internalParameters": {
                    "machine": describe_machine(machine),
                    "steps": steps,
                },
                "resolvedDependencies": std::iter::once(base).chain(kernel).chain(brought).chain(downloaded).collect::<Vec<_>>(),
            },
            "runDetails": {
                "builder": { "id": "urn:kiln:local", "version": { "kiln": manifest.kiln } },
                "metadata": {
                    "invocationId": format!("{}:{}", manifest.build_key, manifest.sequence),
                    "startedOn": time(manifest.started), "finishedOn": time(manifest.finished),
                },
                "byproducts": byproducts.collect::<Vec<_>>(),
            },
        },
    })
}

/// Describes the files of the kernel beside the base image.
fn describe_kernel(kernel: &ManifestKernel) -> Vec<Value> {
    let image = json!({
        "name": "kernel", "digest": { "sha256": kernel.image.sha256 }, "annotations": { "cmdline": kernel.cmdline },
    });
    let initrd = kernel.initrd.iter();
    let initrd = initrd.map(|initrd| json!({ "name": "initrd", "digest": { "sha256": initrd.sha256 } }));
    std::iter::once(image).chain(initrd).collect()
}

/// Describes the files that steps downloaded over a locked network.
fn downloads(manifest: &Manifest) -> Vec<Value> {
    let describe = |file: &ManifestDownload| {
        let mut annotations = json!({ "steps": file.steps });
        if let RequestKind::UploadPack(request) = file.kind {
            annotations["request_sha256"] = json!(request);
        }
        json!({ "uri": file.url, "digest": { "sha256": file.sha256 }, "annotations": annotations })
    };
    downloaded_files(manifest).into_iter().map(describe).collect()
}

/// Describes the machine of the build. A full boot is not named, so that documents of before say the same.
fn describe_machine(machine: &ManifestMachine) -> Value {
    let mut about = json!({
        "accelerator": machine.accel, "qemu": machine.qemu, "cpus": machine.cpus,
        "memory": machine.memory, "firmware": machine.firmware, "network": machine.network,
    });
    if let Some(boot) = &machine.boot {
        about["boot"] = json!(boot);
    }
    if let Some(agent) = &machine.agent {
        about["agent"] = json!(agent);
    }
    about
}
