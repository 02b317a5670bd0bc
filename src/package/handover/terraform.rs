//! Terraform: a configuration in its JSON syntax that uploads the image as a volume of the libvirt provider
//! (dmacvicar/libvirt, `libvirt_volume`), and a flat map for its `external` data source.

use serde_json::{Value, json};

use super::DescribedImage;
use crate::digest::Sha256Digest;

/// Required version of the provider: the format of `libvirt_volume` is a nested object since 0.9.
const PROVIDER: &str = ">= 0.9";

/// Returns the content of `NAME.tf.json`: the volume, and outputs that identify the image.
#[must_use]
pub fn configuration(image: &DescribedImage<'_>) -> Value {
    let label = label(&image.manifest.image.name);
    let volume = json!({
        "name": format!("{}.{}", image.stem(), image.output.format),
        "pool": "default",
        // Otherwise the provider would take the length of the file for the size of the disk.
        "capacity": image.output.virtual_bytes,
        "target": { "format": { "type": image.output.format } },
        "create": { "content": { "url": image.path.to_string_lossy() } },
    });
    let outputs: serde_json::Map<String, Value> = facts(image)
        .into_iter()
        .map(|(name, value)| (format!("{label}_{name}"), json!({ "value": value })))
        .chain([(format!("{label}_volume_id"), json!({ "value": format!("${{libvirt_volume.{label}.id}}") }))])
        .collect();
    json!({
        "terraform": { "required_providers": { "libvirt": { "source": "dmacvicar/libvirt", "version": PROVIDER } } },
        "resource": { "libvirt_volume": { label: volume } },
        "output": outputs,
    })
}

/// Returns the input of the `external` data source: an object whose values are all strings.
#[must_use]
pub fn external(image: &DescribedImage<'_>) -> Value {
    facts(image)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Value::String(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn facts(image: &DescribedImage<'_>) -> [(&'static str, String); 9] {
    let manifest = image.manifest;
    let output = image.output;
    [
        ("name", manifest.image.name.clone()),
        ("version", manifest.image.version.clone()),
        ("path", image.path.display().to_string()),
        ("format", output.format.clone()),
        ("sha256", output.sha256.to_string()),
        ("disk_sha256", digest_or_empty(manifest.disk_sha256)),
        ("disk_chunks_sha256", digest_or_empty(manifest.disk_chunks_sha256)),
        ("virtual_bytes", output.virtual_bytes.to_string()),
        ("firmware", manifest.machine.firmware.clone()),
    ]
}

/// Returns a digest, or the empty string for one that is not known: all values are strings.
fn digest_or_empty(digest: Option<Sha256Digest>) -> String {
    digest.map(|digest| digest.to_string()).unwrap_or_default()
}

/// Returns a name in Terraform's language: letters, digits, `_` and `-`, not beginning with a digit.
fn label(name: &str) -> String {
    let label: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    if label.starts_with(|c: char| c.is_ascii_alphabetic()) { label } else { format!("image_{label}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_volume_has_the_size_of_the_disk() {
        let (manifest, path) = crate::package::handover::tests::sample();
        let image = DescribedImage { manifest: &manifest, output: &manifest.outputs[0], path: &path };
        let made = configuration(&image);
        let volume = &made["resource"]["libvirt_volume"]["web"];
        assert_eq!((&volume["capacity"], &volume["target"]["format"]["type"]), (&json!(8_u64 << 30), &json!("qcow2")));
        assert_eq!(made["output"]["web_version"]["value"], "1.4.0");
        assert_eq!(made["output"]["web_volume_id"]["value"], "${libvirt_volume.web.id}");
    }

    #[test]
    fn an_external_data_source_gets_strings_alone() {
        let (manifest, path) = crate::package::handover::tests::sample();
        let image = DescribedImage { manifest: &manifest, output: &manifest.outputs[0], path: &path };
        let made = external(&image);
        assert!(made.as_object().unwrap().values().all(Value::is_string), "{made}");
        assert_eq!(made["virtual_bytes"], "8589934592");
    }

    #[test]
    fn labels_are_names_of_terraform() {
        assert_eq!(label("web.app-1"), "web_app-1");
        assert_eq!(label("9front"), "image_9front");
    }
}
