//! What keys mean together: from tables whose types are right to a [`Spec`] without doubts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::checks;
use super::complaint::SpecError;
use super::document::At;
use super::keys::{self, IMAGE_VERSION, Secret, Source};
use super::load::from_folder_of;
use super::paths::Slashed;
use super::reader::Reader;
use super::shape::Word;
use super::steps::{self, Surroundings};
use super::table::Chosen;
use super::{Base, Build, Compression, Image, Machine, Output, OutputFormat, Seal, SecretSource, Spec};

/// The spec, if nothing that it cannot do without is missing. Whether there are complaints is the reader's to say.
pub(super) fn spec(raw: keys::Document, reader: &mut Reader) -> Option<Spec> {
    let given = reader.document.path();
    let path = std::path::absolute(given).unwrap_or_else(|_| given.to_owned());
    let image = image(raw.image?.value, reader);
    let secrets = secrets(raw.secrets, &path);
    let mut around = Surroundings { spec: &path, image: image.as_ref(), secrets: &secrets, reader };
    let steps = steps::steps(raw.step, &mut around);
    let tests = checks::tests(raw.test, reader);
    let outputs = outputs(raw.output, reader);
    let base = base(raw.base?.value, &path);
    let complete = Spec {
        image: image?,
        base: base?,
        machine: machine(raw.machine),
        vars: raw.vars,
        secrets: secrets.into_iter().filter_map(|(name, source)| Some((name, source?))).collect(),
        steps,
        tests,
        seal: Seal { skip: raw.seal.skip.into_iter().map(|name| name.value.to_owned()).collect() },
        outputs,
        build: Build { timeout: raw.build.timeout },
        path,
    };
    Some(complete)
}

fn image(raw: keys::Image, reader: &mut Reader) -> Option<Image> {
    let version = match &reader.overrides.version {
        Some(version) => overridden_version(version, &IMAGE_VERSION, reader),
        None => raw.version.map(|version| version.value),
    };
    Some(Image { name: raw.name?.value, version: version?, description: raw.description, labels: values(raw.labels) })
}

fn overridden_version(version: &str, allowed: &Word, reader: &mut Reader) -> Option<String> {
    match allowed.check(version) {
        Ok(()) => Some(version.to_owned()),
        Err(refusal) => {
            reader.report(SpecError::of_option(format!("`--version`: {}", refusal.message)));
            None
        }
    }
}

fn base(raw: Chosen<keys::Base, Source>, spec: &Path) -> Option<Base> {
    let Source::BaseFile(source) = raw.variant?;
    Some(Base {
        file: host(&source.file?, spec),
        sha256: raw.common.sha256.map(|digest| digest.value),
        format: raw.common.format,
    })
}

fn machine(raw: keys::Machine) -> Machine {
    Machine {
        cpus: raw.cpus,
        memory: raw.memory,
        disk: raw.disk.map(|disk| disk.value),
        firmware: raw.firmware,
        accel: raw.accel,
        network: raw.network,
        boot_timeout: raw.boot_timeout,
    }
}

fn secrets(
    raw: BTreeMap<String, At<Chosen<keys::Nothing, Secret>>>,
    spec: &Path,
) -> BTreeMap<String, Option<SecretSource>> {
    let source = |raw: Chosen<_, Secret>| match raw.variant? {
        Secret::SecretEnv(env) => Some(SecretSource::Env(env.env?.value)),
        Secret::SecretFile(file) => Some(SecretSource::File(host(&file.file?, spec))),
    };
    raw.into_iter().map(|(name, secret)| (name, source(secret.value))).collect()
}

fn outputs(raw: Vec<At<keys::Output>>, reader: &mut Reader) -> Vec<Output> {
    let mut outputs: Vec<(Output, std::ops::Range<usize>)> = Vec::new();
    for At { value, span } in raw {
        // A format that could not be read stands here as the default, and is no second one.
        let clean = reader.is_clean();
        if let Some((_, first)) = outputs.iter().find(|(other, _)| clean && other.format == value.format) {
            let error = SpecError::new(span, "a second output of the same format");
            reader.report(error.related(first.clone(), "the first one"));
            continue;
        }
        let compression = compression(&value, reader);
        outputs.push((Output { format: value.format, compression }, span));
    }
    if outputs.is_empty() {
        vec![Output { format: OutputFormat::Qcow2, compression: Compression::Zstd }]
    } else {
        outputs.into_iter().map(|(output, _)| output).collect()
    }
}

fn compression(raw: &keys::Output, reader: &mut Reader) -> Compression {
    match (raw.format, &raw.compression) {
        (OutputFormat::Qcow2, asked) => asked.as_ref().map_or(Compression::Zstd, |asked| asked.value),
        (OutputFormat::Raw, Some(asked)) if asked.value != Compression::None => {
            let message = "a raw file has no compression inside";
            reader.report(SpecError::new(asked.span.clone(), message).help("leave it out, or write a qcow2 file"));
            Compression::None
        }
        (OutputFormat::Raw, _) => Compression::None,
    }
}

/// A file or folder on this host, absolute.
pub(super) fn host(written: &At<Slashed<PathBuf>>, spec: &Path) -> PathBuf {
    from_folder_of(spec, &written.value.path)
}

/// The values of a table without their places.
pub(super) fn values<V>(table: BTreeMap<String, At<V>>) -> BTreeMap<String, V> {
    table.into_iter().map(|(name, value)| (name, value.value)).collect()
}
