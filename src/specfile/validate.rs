//! Checks between keys: from tables whose types are valid to a validated [`Spec`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::complaint::SpecError;
use super::compound_kinds::DeclaredVariables;
use super::document::{SpannedValue, values};
use super::keys::{self, IMAGE_NAME, IMAGE_VERSION, Secret};
use super::paths::{SlashedPath, host_file};
use super::reader::SpecReader;
use super::steps::{self, StepScope};
use super::suggest::list;
use super::table::ChosenVariant;
use super::value_kinds::Word;
use super::{
    BaseImageSpec, BaseSource, BuildSpec, Compression, ImageSpec, KernelSpec, MachineSpec, NetworkAccess,
    NetworkBackend, OutputFormat, OutputSpec, RemoteBase, SealSpec, SecretDeclaration, SecretSource, Spec,
    SpecDocument, SumsSpec, SumsVerification, validate_tests,
};

/// Returns the spec, if nothing that it requires is missing. The reader knows whether there are errors.
pub(super) fn spec(raw: keys::Document, reader: &mut SpecReader) -> Option<Spec> {
    let given = reader.document.path();
    let path = std::path::absolute(given).unwrap_or_else(|_| given.to_owned());
    let image = image(raw.image?.value, reader);
    let secrets = secrets(raw.secrets, &path, reader.document);
    let mut around = StepScope { spec: &path, image: image.as_ref(), secrets: &secrets, reader };
    let steps = steps::steps(raw.step, &mut around);
    let tests = validate_tests::tests(raw.test, reader);
    let outputs = outputs(raw.output, reader);
    let base = base(raw.base?.value, &path, reader);
    for (name, variant) in raw.variants {
        if name == super::EVERY_VARIANT {
            reader.report(SpecError::new(
                variant.span.clone(),
                "a variant cannot be called `all`, which means each of them",
            ));
        }
        check_variant(variant.value, &path, reader);
    }
    let complete = Spec {
        variant: reader.overrides.variant.clone(),
        image: image?,
        base: base?,
        network: network_access(raw.network, raw.machine.network, reader),
        machine: machine(raw.machine),
        vars: raw.vars,
        secrets: secrets.into_iter().filter_map(|(name, source)| Some((name, source?))).collect(),
        steps,
        tests,
        seal: SealSpec { skip: raw.seal.skip.into_iter().map(|name| name.value.to_owned()).collect() },
        outputs,
        build: BuildSpec { timeout: raw.build.timeout },
        path,
    };
    Some(complete)
}

fn image(raw: keys::Image, reader: &mut SpecReader) -> Option<ImageSpec> {
    let version = match &reader.overrides.version {
        Some(version) => overridden_version(version, &IMAGE_VERSION, reader),
        None => raw.version.map(|version| version.value),
    };
    let name = raw.name.and_then(|name| variant_name(name, reader));
    Some(ImageSpec { name: name?, version: version?, description: raw.description, labels: values(raw.labels) })
}

/// Returns the image's name, which ends with the variant: each variant is an image of its own.
fn variant_name(name: SpannedValue<String>, reader: &mut SpecReader) -> Option<String> {
    let Some(variant) = &reader.overrides.variant else { return Some(name.value) };
    let whole = format!("{}-{variant}", name.value);
    match IMAGE_NAME.check(&whole) {
        Ok(()) => Some(whole),
        Err(refusal) => {
            reader.report(SpecError::new(name.span, format!("the variant's name {}", refusal.message)));
            None
        }
    }
}

fn overridden_version(version: &str, allowed: &Word, reader: &mut SpecReader) -> Option<String> {
    match allowed.check(version) {
        Ok(()) => Some(version.to_owned()),
        Err(refusal) => {
            reader.report(SpecError::of_option(format!("`--version`: {}", refusal.message)));
            None
        }
    }
}

fn base(raw: ChosenVariant<keys::Base, keys::Source>, spec: &Path, reader: &mut SpecReader) -> Option<BaseImageSpec> {
    let keys::Base { sha256, format, kernel, initrd, cmdline } = raw.common;
    let kernel = base_kernel(kernel, (initrd, cmdline), spec, reader);
    let source = match raw.variant? {
        keys::Source::LocalFile(source) => BaseSource::File(host_file(&source.file?, spec)),
        keys::Source::RemoteFile(source) => BaseSource::Url(remote(source, sha256.is_some(), spec, reader)?),
        keys::Source::StoredImage(source) => BaseSource::Image(source.image?.value),
        keys::Source::OtherSpec(source) => BaseSource::Spec {
            file: host_file(&source.spec?, spec),
            variant: source.variant.map(|variant| variant.value),
        },
    };
    Some(BaseImageSpec { source, sha256: sha256.map(|digest| digest.value), format, kernel })
}

/// Returns the kernel beside a base image, and reports keys that need one.
fn base_kernel(
    kernel: Option<SpannedValue<SlashedPath<PathBuf>>>,
    (initrd, cmdline): (Option<SpannedValue<SlashedPath<PathBuf>>>, Option<SpannedValue<String>>),
    spec: &Path,
    reader: &mut SpecReader,
) -> Option<KernelSpec> {
    let Some(kernel) = kernel else {
        let spans = [("initrd", initrd.map(|initrd| initrd.span)), ("cmdline", cmdline.map(|cmdline| cmdline.span))];
        for (key, span) in spans.into_iter().filter_map(|(key, span)| Some((key, span?))) {
            let error = SpecError::new(span, format!("`{key}` is for a `kernel`, which is not there"));
            reader.report(error.help("add the kernel that it belongs to, or leave it out"));
        }
        return None;
    };
    Some(KernelSpec {
        file: host_file(&kernel, spec),
        initrd: initrd.map(|initrd| host_file(&initrd, spec)),
        cmdline: cmdline.map_or_else(String::new, |cmdline| cmdline.value),
    })
}

/// Validates a download: it must be verified by a digest or by a list of digests.
fn remote(raw: keys::RemoteFile, has_digest: bool, spec: &Path, reader: &mut SpecReader) -> Option<RemoteBase> {
    let url = raw.url?;
    let digest = raw.sums_sha256.as_ref().map(|at| &at.span);
    let signature = raw.sums_signature.as_ref().map(|at| &at.span);
    let extra = digest.or(signature).or(raw.sums_key.as_ref().map(|at| &at.span));
    let trust = match (&raw.sums_sha256, &raw.sums_signature, &raw.sums_key) {
        (Some(digest), None, None) => Some(SumsVerification::Sha256(digest.value)),
        (None, Some(signature), Some(key)) => {
            Some(SumsVerification::Signature { url: signature.value.clone(), key: host_file(key, spec) })
        }
        _ => None,
    };
    let sums = match (&raw.sums, has_digest, extra, trust) {
        (None, true, None, _) => None,
        (Some(sums), false, _, Some(trust)) => Some(SumsSpec { url: sums.value.clone(), trust }),
        (None, false, _, _) => {
            let help = "add `sha256`, or `sums` with `sums-sha256` or a signature";
            return refuse(reader, &url.span, "a download needs its digest", help);
        }
        (Some(sums), true, _, _) => {
            return refuse(reader, &sums.span, "`sums` beside `sha256`", "one of them says which file it is");
        }
        (Some(sums), false, _, None) => {
            let help = "add `sums-sha256`, or both `sums-signature` and `sums-key`";
            return refuse(reader, &sums.span, "this list of digests is not verified", help);
        }
        (None, true, Some(extra), _) => {
            let message = "this is about `sums`, which is not there";
            return refuse(reader, extra, message, "leave it out: `sha256` is enough");
        }
    };
    let urls = std::iter::once(url).chain(raw.mirrors).map(|url| url.value).collect();
    Some(RemoteBase { urls, sums })
}

/// Reports what is wrong with the verification of a download.
fn refuse(reader: &mut SpecReader, span: &Range<usize>, message: &str, help: &str) -> Option<RemoteBase> {
    reader.report_missing(SpecError::new(span.clone(), message).help(help));
    None
}

/// Checks the keys of a variant, also while another one is built.
fn check_variant(raw: keys::Overlay, spec: &Path, reader: &mut SpecReader) {
    let keys::Overlay { vars: DeclaredVariables(_), base: other, machine: changed, output } = raw;
    let _ = (machine(changed), outputs(output, reader), other.map(|other| base(other.value, spec, reader)));
}

/// Returns the `[network]` table, and reports keys that are for another network than that of the guest.
fn network_access(raw: keys::NetworkAccess, network: NetworkBackend, reader: &mut SpecReader) -> NetworkAccess {
    if let Some(first) = raw.private.first().filter(|_| network != NetworkBackend::User) {
        let error = SpecError::new(first.span.clone(), "`private` is for guests that have a network card");
        reader.report(error.help("add `network = \"user\"` to `[machine]`, or leave `private` out"));
    }
    if let Some(first) = raw.allow.first().filter(|_| network != NetworkBackend::Locked) {
        let error = SpecError::new(first.span.clone(), "`allow` is for guests whose network is locked");
        reader.report(error.help("add `network = \"locked\"` to `[machine]`, or leave `allow` out"));
    }
    NetworkAccess { private: sorted(raw.private), allow: sorted(raw.allow) }
}

/// Returns the values of a list in a stable order, without duplicates.
fn sorted<T: Ord>(list: Vec<SpannedValue<T>>) -> Vec<T> {
    let values: BTreeSet<T> = list.into_iter().map(|item| item.value).collect();
    values.into_iter().collect()
}

fn machine(raw: keys::Machine) -> MachineSpec {
    MachineSpec {
        cpus: raw.cpus,
        memory: raw.memory,
        disk: raw.disk.map(|disk| disk.value),
        firmware: raw.firmware,
        boot: raw.boot,
        agent: raw.agent,
        accel: raw.accel,
        network: raw.network,
        boot_timeout: raw.boot_timeout,
    }
}

fn secrets(
    raw: BTreeMap<String, SpannedValue<ChosenVariant<keys::Nothing, Secret>>>,
    spec: &Path,
    document: &SpecDocument,
) -> BTreeMap<String, Option<SecretDeclaration>> {
    let declared = raw.into_iter().map(|(name, SpannedValue { value, span })| {
        let source = value.variant.and_then(|secret| secret_source(secret, spec));
        (name, source.map(|source| SecretDeclaration { source, line: document.line(span.start) }))
    });
    declared.collect()
}

fn secret_source(secret: Secret, spec: &Path) -> Option<SecretSource> {
    Some(match secret {
        Secret::SecretEnv(env) => SecretSource::Env(env.env?.value),
        Secret::SecretFile(file) => SecretSource::File(host_file(&file.file?, spec)),
    })
}

fn outputs(raw: Vec<SpannedValue<keys::Output>>, reader: &mut SpecReader) -> Vec<OutputSpec> {
    let mut outputs: Vec<(OutputSpec, Range<usize>)> = Vec::new();
    for SpannedValue { value, span } in raw {
        // A format that was wrong stands here as the default; it must not be reported as a duplicate.
        let clean = reader.is_clean();
        let format = format(&value, reader);
        if let Some((_, first)) = outputs.iter().find(|(other, _)| clean && other.format == format) {
            let error = SpecError::new(span, "a second output of the same format");
            reader.report(error.related(first.clone(), "the first one").help("one output may name several platforms"));
            continue;
        }
        let compression = compression(format, value.compression.as_ref(), reader);
        let platforms = value.platform.into_iter().map(|platform| platform.value).collect();
        outputs.push((OutputSpec { format, compression, platforms }, span));
    }
    if outputs.is_empty() {
        vec![OutputSpec { format: OutputFormat::Qcow2, compression: Compression::Zstd, platforms: Vec::new() }]
    } else {
        outputs.into_iter().map(|(output, _)| output).collect()
    }
}

/// Returns the format of an output: the one of the spec, or else the first one that its first platform accepts. Reports a
/// format that one of the platforms does not accept.
fn format(raw: &keys::Output, reader: &mut SpecReader) -> OutputFormat {
    let best = raw.platform.first().and_then(|first| first.value.formats().first().copied());
    let format = raw.format.as_ref().map(|asked| asked.value).or(best).unwrap_or(OutputFormat::Qcow2);
    for platform in &raw.platform {
        let takes = platform.value.formats();
        if !takes.contains(&format) {
            let message = format!("{} does not take the format {}", platform.value.name(), format.name());
            let takes: Vec<_> = takes.iter().map(|format| format.name()).collect();
            let help = format!("it takes {}; several formats are several outputs", list(&takes));
            reader.report(SpecError::new(platform.span.clone(), message).help(help));
        }
    }
    format
}

fn compression(
    format: OutputFormat,
    asked: Option<&SpannedValue<Compression>>,
    reader: &mut SpecReader,
) -> Compression {
    let known = format.compressions();
    let Some(asked) = asked else { return known[0] };
    if !known.contains(&asked.value) {
        let names: Vec<_> = known.iter().map(|known| known.name()).collect();
        let message = match known {
            [Compression::None] => format!("a {} file has no compression inside", format.name()),
            _ => format!("the compression of a {} file is {}", format.name(), list(&names)),
        };
        reader.report(SpecError::new(asked.span.clone(), message).help("leave it out, or write a qcow2 file"));
    }
    asked.value
}
