//! A bill of materials in `CycloneDX` 1.6 (ECMA-424).

use serde_json::{Value, json};

use crate::store::Manifest;
use crate::store::manifest::{ManifestDownload, ManifestPackage};

use super::{created, downloaded_files, purl, uuid};

pub(super) fn document(manifest: &Manifest) -> Value {
    let image = &manifest.image;
    let reference = format!("{}@{}", image.name, image.version);
    let packages = manifest.packages.iter().map(|package| component(manifest, package));
    let files = downloaded_files(manifest).into_iter().zip(1..).map(|(file, number)| downloaded_file(file, number));
    let components: Vec<Value> = packages.chain(files).collect();
    let mut document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid(manifest)),
        "version": 1,
        "metadata": {
            "timestamp": created(manifest),
            "tools": { "components": [{ "type": "application", "name": "kiln", "version": manifest.kiln }] },
            "component": {
                "type": "operating-system", "bom-ref": reference, "name": image.name, "version": image.version,
                "description": image.description,
                "properties": properties(manifest),
            },
        },
        "components": components,
        "dependencies": [{ "ref": reference, "dependsOn": manifest.packages.iter().map(|package| purl(manifest, package)).collect::<Vec<_>>() }],
    });
    if manifest.missing().next().is_some() {
        document["compositions"] =
            json!([{ "aggregate": "incomplete", "assemblies": [reference], "dependencies": [reference] }]);
    }
    document
}

/// Returns the digests of the disk, and what the lists of files and packages lack, as properties.
fn properties(manifest: &Manifest) -> Vec<Value> {
    let digests = manifest.disk_digests().map(|(name, digest)| (format!("kiln:{name}"), digest.to_string()));
    let missing = manifest.missing().map(|missing| ("kiln:missing".to_owned(), missing.to_owned()));
    digests.chain(missing).map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

/// Describes a file that steps downloaded over a locked network.
fn downloaded_file(file: &ManifestDownload, number: usize) -> Value {
    let steps = file.steps.iter().map(|step| json!({ "name": "kiln:step", "value": step }));
    json!({
        "type": "file", "bom-ref": format!("download-{number}"), "name": file.url,
        "hashes": [{ "alg": "SHA-256", "content": file.sha256 }],
        "externalReferences": [{ "type": "distribution", "url": file.url }],
        "properties": steps.collect::<Vec<_>>(),
    })
}

fn component(manifest: &Manifest, package: &ManifestPackage) -> Value {
    let purl = purl(manifest, package);
    json!({ "type": "library", "bom-ref": purl, "name": package.name, "version": package.version, "purl": purl })
}
