//! Documents about a version, beside its manifest: what is in it (`CycloneDX` and SPDX), and where it came from (SLSA).
//!
//! They are made of the manifest and the plan alone, so that the same build gives the same bytes but for its times.

use serde_json::Value;

use crate::plan::Plan;
use crate::store::Manifest;

mod cyclonedx;
mod provenance;
mod spdx;

/// Where a step's input came from: the step's name, and the digest of what it brought from the host.
#[derive(Debug, Clone)]
struct Input {
    step: String,
    sha256: String,
}

/// Makes the documents of a manifest: their names, and their text.
pub(crate) fn documents(plan: &Plan) -> impl Fn(&Manifest) -> Vec<(&'static str, String)> + Send + 'static {
    let input = |planned: &crate::plan::PlannedStep| {
        Some(Input { step: planned.step.name.clone(), sha256: planned.input.as_ref()?.sha256.clone() })
    };
    let inputs: Vec<Input> = plan.steps.iter().filter_map(input).collect();
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

/// RFC 3339, whole seconds.
fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// When the documents say they were made: at the time that the build was told to be of.
fn created(manifest: &Manifest) -> String {
    let epoch = manifest.source_date_epoch.and_then(|epoch| jiff::Timestamp::from_second(epoch).ok());
    time(epoch.unwrap_or(manifest.finished))
}

/// A package URL (purl-spec, PURL-TYPES `deb` and `apk`). Which kind a package is, its version's form does not say; the
/// names of architectures do: Debian says `amd64` and `all`, Alpine `x86_64` and `noarch`.
fn purl(package: &crate::store::manifest::Package) -> String {
    let kind = if matches!(&*package.arch, "x86_64" | "noarch" | "aarch64") { "apk/alpine" } else { "deb/debian" };
    let (name, version, arch) = (encoded(&package.name), encoded(&package.version), encoded(&package.arch));
    format!("pkg:{kind}/{name}@{version}?arch={arch}")
}

/// Percent-encoding as purl-spec has it: all but letters, digits and `.-_~`, and the colon, which stays.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A version 8 UUID (RFC 9562, section 5.8) of a digest: the same for the same.
fn uuid(sha256: &str) -> String {
    let digits: String =
        sha256.chars().filter(char::is_ascii_hexdigit).chain(std::iter::repeat('0')).take(32).collect();
    format!("{}-{}-8{}-8{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::Package;

    #[test]
    fn package_urls_are_encoded() {
        let package = |name: &str, version: &str, arch: &str| {
            purl(&Package { name: name.into(), version: version.into(), arch: arch.into() })
        };
        assert_eq!(
            package("libstdc++6", "1:12.2~a b", "amd64"),
            "pkg:deb/debian/libstdc%2B%2B6@1:12.2~a%20b?arch=amd64"
        );
        assert_eq!(package("musl", "1.2-r0", "x86_64"), "pkg:apk/alpine/musl@1.2-r0?arch=x86_64");
    }

    #[test]
    fn a_uuid_is_made_of_a_digest() {
        assert_eq!(uuid(&"0123456789abcdef".repeat(4)), "01234567-89ab-8def-8123-456789abcdef");
        assert_eq!(uuid("").len(), 36);
    }
}
