//! A bill of materials in SPDX 2.3. Licences are not examined, which SPDX expresses as `NOASSERTION`.

use serde_json::{Value, json};

use crate::store::Manifest;
use crate::store::manifest::ManifestDownload;

use super::{created, downloaded_files, purl, uuid};

const IMAGE: &str = "SPDXRef-image";

pub(super) fn document(manifest: &Manifest) -> Value {
    let image = &manifest.image;
    let name = format!("{}-{}", image.name, image.version);
    let mut packages = vec![package(IMAGE, &image.name, &image.version)];
    packages[0]["primaryPackagePurpose"] = "OPERATING-SYSTEM".into();
    // Where the SHA-256 of the disk is not known, the image is identified by its first file.
    let sha256 = match (&manifest.disk_sha256, manifest.outputs.first()) {
        (None, Some(output)) => {
            packages[0]["packageFileName"] = output.file.clone().into();
            Some(&output.sha256)
        }
        (known, _) => known.as_ref(),
    };
    if let Some(sha256) = sha256 {
        packages[0]["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]);
    }
    let missing: Vec<&str> = manifest.missing().collect();
    if !missing.is_empty() {
        let comment = format!("This list of packages may be incomplete: {}", missing.join("; "));
        packages[0]["comment"] = comment.clone().into();
        packages[0]["annotations"] = json!([{
            "annotationDate": created(manifest), "annotationType": "OTHER",
            "annotator": format!("Tool: kiln-{}", manifest.kiln), "comment": comment,
        }]);
    }
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE)];
    for (found, number) in manifest.packages.iter().zip(1..) {
        let id = format!("SPDXRef-package-{number}");
        let mut described = package(&id, &found.name, &found.version);
        described["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl(manifest, found),
        }]);
        relationships.push(relationship(IMAGE, "CONTAINS", &id));
        packages.push(described);
    }
    for (file, number) in downloaded_files(manifest).into_iter().zip(1..) {
        let id = format!("SPDXRef-download-{number}");
        relationships.push(relationship(&id, "BUILD_DEPENDENCY_OF", IMAGE));
        packages.push(downloaded_file(&id, file));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("urn:uuid:{}", uuid(manifest)),
        "creationInfo": { "created": created(manifest), "creators": [format!("Tool: kiln-{}", manifest.kiln)] },
        "packages": packages,
        "relationships": relationships,
    })
}

/// Describes a file that steps downloaded over a locked network.
fn downloaded_file(id: &str, file: &ManifestDownload) -> Value {
    let steps: Vec<String> = file.steps.iter().map(|step| format!("{step:?}")).collect();
    let noun = if steps.len() == 1 { "step" } else { "steps" };
    json!({
        "SPDXID": id, "name": file.url, "downloadLocation": file.url, "filesAnalyzed": false,
        "checksums": [{ "algorithm": "SHA256", "checksumValue": file.sha256 }],
        "comment": format!("Downloaded by the {noun} {}", steps.join(", ")),
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
    })
}

fn package(id: &str, name: &str, version: &str) -> Value {
    json!({
        "SPDXID": id, "name": name, "versionInfo": version, "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false, "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    })
}

fn relationship(from: &str, how: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": how, "relatedSpdxElement": to })
}
