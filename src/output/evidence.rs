//! Documents about a version, beside its manifest: the SBOM (`CycloneDX` and SPDX), and the provenance (SLSA).
//!
//! They are generated from the manifest and the plan alone, so that the same build gives the same bytes except for times.

use serde_json::Value;

use crate::disk::packages::PackageType;
use crate::network_record::RequestKind;
use crate::plan::{InputDigest, Plan, PlannedStep};
use crate::store::Manifest;
use crate::store::manifest::{ManifestDownload, ManifestPackage};

mod cyclonedx;
mod provenance;
mod spdx;

/// The input that a step brought from the host.
#[derive(Debug, Clone)]
struct StepInput {
    step: String,
    digest: InputDigest,
}

impl StepInput {
    fn of(planned: &PlannedStep) -> Option<Self> {
        Some(Self { step: planned.step.name.clone(), digest: planned.input.as_ref()?.digest })
    }
}

/// Returns a function that generates the documents of a manifest: their names, and their text.
pub(crate) fn documents(plan: &Plan) -> impl Fn(&Manifest) -> Vec<(&'static str, String)> + Send + 'static {
    let inputs: Vec<StepInput> = plan.steps.iter().filter_map(StepInput::of).collect();
    move |manifest| {
        vec![
            ("sbom.cdx.json", text(&cyclonedx::document(manifest))),
            ("sbom.spdx.json", text(&spdx::document(manifest))),
            ("provenance.json", text(&provenance::document(manifest, &inputs))),
        ]
    }
}

fn text(document: &Value) -> String {
    format!("{document:#}\n")
}

/// Formats a time as RFC 3339, in whole seconds.
fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Returns the creation time of the documents: `SOURCE_DATE_EPOCH` where that was set, or else the end of the build.
fn created(manifest: &Manifest) -> String {
    let epoch = manifest.source_date_epoch.and_then(|epoch| jiff::Timestamp::from_second(epoch).ok());
    time(epoch.unwrap_or(manifest.finished))
}

/// Returns the files that steps downloaded over a locked network. Errors, redirections and requests for headers alone
/// brought nothing into the image.
fn downloaded_files(manifest: &Manifest) -> Vec<&ManifestDownload> {
    let downloads = manifest.downloads.iter();
    let mut files: Vec<_> =
        downloads.filter(|download| download.status == 200 && download.kind != RequestKind::Head).collect();
    // A resource may have been asked for in several forms, and be the same in each.
    files.dedup_by_key(|file| (&file.url, file.sha256));
    files
}

/// Returns a package URL (purl-spec, PURL-TYPES `deb`, `apk` and `rpm`): the namespace is the distribution, and `distro`
/// gives its version. An epoch of rpm is a qualifier there.
fn purl(manifest: &Manifest, package: &ManifestPackage) -> String {
    let kind = manifest.type_of(package).unwrap_or("generic");
    let os = manifest.os.as_ref();
    let namespace = os.map(|os| format!("/{}", encoded(&os.id))).unwrap_or_default();
    let (epoch, version) = match package.version.split_once(':') {
        Some((epoch, version)) if PackageType::named(kind) == Some(PackageType::Rpm) => (Some(epoch), version),
        _ => (None, package.version.as_str()),
    };
    let distro =
        os.filter(|os| !os.version.is_empty()).map(|os| format!("{}-{}", encoded(&os.id), encoded(&os.version)));
    let arch = Some(encoded(&package.arch)).filter(|arch| !arch.is_empty());
    let qualifiers = [("arch", arch), ("distro", distro), ("epoch", epoch.map(encoded))];
    let qualifiers: Vec<String> =
        qualifiers.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?))).collect();
    let mut purl = format!("pkg:{kind}{namespace}/{}", encoded(&package.name));
    for (mark, part) in [("@", encoded(version)), ("?", qualifiers.join("&"))] {
        if !part.is_empty() {
            purl = purl + mark + &part;
        }
    }
    purl
}

/// Encodes a string as purl-spec requires: everything is percent-encoded except letters, digits, `.-_~` and the colon.
fn encoded(text: &str) -> String {
    let encoded = text.bytes().map(|byte| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    encoded.collect()
}

/// Returns a version 8 UUID (RFC 9562, section 5.8) that depends on the image's disk alone.
fn uuid(manifest: &Manifest) -> String {
    let digest = manifest.disk_chunks_sha256.or(manifest.disk_sha256);
    uuid_of(&digest.map(|digest| digest.to_string()).unwrap_or_default())
}

fn uuid_of(sha256: &str) -> String {
    let digits: String = sha256.chars().chain(std::iter::repeat('0')).take(32).collect();
    format!("{}-{}-8{}-8{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256Digest;
    use crate::store::manifest::{ListedContents, ManifestKernel, ManifestOs, StoredFile, tests::sample};

    fn package(name: &str, version: &str, arch: &str) -> ManifestPackage {
        ManifestPackage { name: name.into(), version: version.into(), arch: arch.into(), kind: None }
    }

    #[test]
    fn package_urls_name_the_distribution() {
        let url = |kind: &str, (id, os_version): (&str, &str), (name, version, arch): (&str, &str, &str)| {
            let os = ManifestOs { id: id.into(), version: os_version.into(), name: String::new() };
            let (os, package_type) = (Some(os), Some(kind.to_owned()));
            let manifest = Manifest { os, package_type, ..sample("web", "1", "k") };
            purl(&manifest, &package(name, version, arch))
        };
        assert_eq!(
            url("deb", ("debian", "12"), ("libstdc++6", "1:12.2~a b", "amd64")),
            "pkg:deb/debian/libstdc%2B%2B6@1:12.2~a%20b?arch=amd64&distro=debian-12"
        );
        assert_eq!(url("deb", ("ubuntu", ""), ("zsh", "5", "all")), "pkg:deb/ubuntu/zsh@5?arch=all");
        assert_eq!(
            url("apk", ("alpine", "3.20.1"), ("musl", "1.2-r0", "x86_64")),
            "pkg:apk/alpine/musl@1.2-r0?arch=x86_64&distro=alpine-3.20.1"
        );
        assert_eq!(
            url("rpm", ("fedora", "40"), ("shadow-utils", "2:4.15-4.fc40", "x86_64")),
            "pkg:rpm/fedora/shadow-utils@4.15-4.fc40?arch=x86_64&distro=fedora-40&epoch=2"
        );
        assert_eq!(url("deb", ("debian", ""), ("half", "", "")), "pkg:deb/debian/half");
        let unknown = purl(&sample("web", "1", "k"), &package("a", "1", "x"));
        assert_eq!(unknown, "pkg:generic/a@1?arch=x");
    }

    #[test]
    fn a_package_of_another_database_has_its_own_type() {
        let manifest = Manifest { package_type: Some("deb".into()), ..sample("web", "1", "k") };
        let apk = ManifestPackage { kind: Some("apk".into()), ..package("musl", "1", "x86_64") };
        assert_eq!(purl(&manifest, &apk), "pkg:apk/musl@1?arch=x86_64");
        assert_eq!(purl(&manifest, &package("a", "1", "all")), "pkg:deb/a@1?arch=all");
    }

    #[test]
    fn the_sha256_of_an_input_is_that_of_a_file() {
        let input = |digest| StepInput { step: "a".into(), digest };
        let (file, tree) = (Sha256Digest::of("file"), Sha256Digest::of("tree"));
        let inputs = [input(InputDigest::File(file)), input(InputDigest::Tree(tree))];
        let document = provenance::document(&sample("web", "1", "k"), &inputs);
        let dependencies = &document["predicate"]["buildDefinition"]["resolvedDependencies"];
        assert_eq!(dependencies[1]["digest"], serde_json::json!({ "sha256": file }));
        assert_eq!(dependencies[2]["digest"], serde_json::json!({ "kilnTree": tree }));
    }

    #[test]
    fn the_kernel_beside_a_base_image_is_a_dependency() {
        let [image, initrd] = ["web-1.kernel", "web-1.initrd"].map(StoredFile::staged);
        let (kernel_digest, initrd_digest) = (image.sha256, initrd.sha256);
        let kernel = ManifestKernel { image, initrd: Some(initrd), cmdline: "quiet".into() };
        let document = provenance::document(&Manifest { kernel: Some(kernel), ..sample("web", "1", "k") }, &[]);
        let dependencies = &document["predicate"]["buildDefinition"]["resolvedDependencies"];
        let expected = serde_json::json!([
            { "name": "kernel", "digest": { "sha256": kernel_digest }, "annotations": { "cmdline": "quiet" } },
            { "name": "initrd", "digest": { "sha256": initrd_digest } },
        ]);
        assert_eq!(dependencies.as_array().unwrap()[1..], expected.as_array().unwrap()[..]);
    }

    #[test]
    fn the_files_that_steps_downloaded_are_dependencies() {
        let download = |url: &str, status, kind| ManifestDownload {
            url: url.into(),
            kind,
            sha256: Sha256Digest::of("file"),
            bytes: 4,
            status,
            steps: ["install".to_owned()].into(),
        };
        let downloads = vec![
            download("http://a.example/1", 200, RequestKind::Get),
            download("http://a.example/1", 200, RequestKind::Get),
            download("http://a.example/1", 200, RequestKind::Head),
            download("http://a.example/2", 404, RequestKind::Get),
            download("http://a.example/3/git-upload-pack", 200, RequestKind::UploadPack(Sha256Digest::of("want"))),
        ];
        let manifest = Manifest { downloads, ..sample("web", "1", "k") };
        let document = provenance::document(&manifest, &[]);
        let dependencies = document["predicate"]["buildDefinition"]["resolvedDependencies"].as_array().unwrap();
        let expected = serde_json::json!({
            "uri": "http://a.example/1", "digest": { "sha256": Sha256Digest::of("file") },
            "annotations": { "steps": ["install"] },
        });
        let fetched = serde_json::json!({
            "uri": "http://a.example/3/git-upload-pack", "digest": { "sha256": Sha256Digest::of("file") },
            "annotations": { "steps": ["install"], "request_sha256": Sha256Digest::of("want") },
        });
        assert_eq!(dependencies[1..], [expected, fetched]);
        let sha256 = Sha256Digest::of("file").to_string();
        let components = cyclonedx::document(&manifest)["components"].as_array().unwrap().clone();
        let file = &components[components.len() - 2];
        assert_eq!(file["externalReferences"][0]["url"], "http://a.example/1");
        assert_eq!(file["hashes"][0]["content"], sha256);
        assert_eq!(file["properties"], serde_json::json!([{ "name": "kiln:step", "value": "install" }]));
        let packages = spdx::document(&manifest)["packages"].as_array().unwrap().clone();
        let file = &packages[packages.len() - 2];
        assert_eq!(file["downloadLocation"], "http://a.example/1");
        assert_eq!(file["checksums"][0]["checksumValue"], sha256);
        assert_eq!(file["comment"], "Downloaded by the step \"install\"");
    }

    #[test]
    fn an_image_is_identified_by_the_digests_that_are_known() {
        let both = sample("web", "1", "k");
        let chunks = Manifest { disk_sha256: None, ..both.clone() };
        let byproducts = |manifest| {
            let document = provenance::document(manifest, &[]);
            let byproducts = document["predicate"]["runDetails"]["byproducts"].as_array().unwrap().clone();
            byproducts.iter().map(|byproduct| byproduct["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(byproducts(&both), ["disk", "disk.chunks"]);
        assert_eq!(byproducts(&chunks), ["disk.chunks"]);
        let image = |manifest| spdx::document(manifest)["packages"][0].clone();
        assert_eq!(image(&both)["checksums"][0]["checksumValue"], both.disk_sha256.unwrap().to_string());
        assert!(image(&both)["packageFileName"].is_null());
        assert_eq!(image(&chunks)["checksums"][0]["checksumValue"], chunks.outputs[0].sha256.to_string());
        assert_eq!(image(&chunks)["packageFileName"], "web-1.qcow2");
        let properties = cyclonedx::document(&chunks)["metadata"]["component"]["properties"].clone();
        assert_eq!(
            properties,
            serde_json::json!([{ "name": "kiln:disk_chunks_sha256", "value": chunks.disk_chunks_sha256 }])
        );
    }

    #[test]
    fn the_documents_say_what_they_lack() {
        let whole = Manifest {
            contents: Some(ListedContents { complete: true, ..Default::default() }),
            ..sample("web", "1", "k")
        };
        assert!(cyclonedx::document(&whole)["compositions"].is_null());
        assert!(spdx::document(&whole)["packages"][0]["annotations"].is_null());
        let missing = vec!["/srv is xfs".to_owned()];
        for contents in [
            ListedContents { missing: missing.clone(), ..Default::default() },
            ListedContents { complete: true, packages_missing: missing, ..Default::default() },
        ] {
            let part = Manifest { contents: Some(contents), ..whole.clone() };
            let document = cyclonedx::document(&part);
            assert_eq!(document["compositions"][0]["aggregate"], "incomplete");
            assert_eq!(document["compositions"][0]["assemblies"][0], document["metadata"]["component"]["bom-ref"]);
            let properties = document["metadata"]["component"]["properties"].as_array().unwrap().clone();
            assert!(properties.iter().any(|property| property["value"] == "/srv is xfs"));
            let document = spdx::document(&part);
            assert!(
                document["packages"][0]["annotations"][0]["comment"]
                    .as_str()
                    .unwrap()
                    .ends_with("incomplete: /srv is xfs")
            );
        }
    }

    #[test]
    fn a_uuid_is_made_of_a_digest() {
        assert_eq!(uuid_of(&"0123456789abcdef".repeat(4)), "01234567-89ab-8def-8123-456789abcdef");
        assert_eq!(uuid_of("").len(), 36);
        let manifest = sample("web", "1", "k");
        let chunks = manifest.disk_chunks_sha256.unwrap();
        assert_eq!(uuid(&manifest), uuid_of(&chunks.to_string()));
        let older = Manifest { disk_chunks_sha256: None, ..manifest };
        assert_eq!(uuid(&older), uuid_of(&older.disk_sha256.unwrap().to_string()));
    }
}
