//! Validation of steps: one action each, unique names, and references that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::arguments;
use super::complaint::SpecError;
use super::document::{SpannedValue, values};
use super::keys::{self, Verb};
use super::names::{explicit_names, run_name, shorten, unique};
use super::paths::host_file;
use super::reader::SpecReader;
use super::suggest::suggest;
use super::table::ChosenVariant;
use super::{Action, Context, Copy, ImageSpec, SecretDeclaration, StepSpec};

/// The files of a version that kiln itself writes, besides `NAME-VERSION.*`.
const OWN_FILES: [&str; 12] = [
    "manifest.json",
    "files.zst",
    "disk.chunks",
    "sbom.cdx.json",
    "sbom.spdx.json",
    "provenance.json",
    "SHA256SUMS",
    "SHA256SUMS.sig",
    "SHA256SUMS.minisig",
    "build.log",
    "console.log",
    "tags.json",
];

/// The parts of a spec that steps may refer to.
pub(super) struct StepScope<'s, 'd> {
    /// Path of the spec file.
    pub spec: &'s Path,
    /// The image, if its name and version are valid.
    pub image: Option<&'s ImageSpec>,
    pub secrets: &'s BTreeMap<String, Option<SecretDeclaration>>,
    pub reader: &'s mut SpecReader<'d>,
}

pub(super) fn steps(raw: Vec<SpannedValue<ChosenVariant<keys::Step, Verb>>>, around: &mut StepScope) -> Vec<StepSpec> {
    let mut taken = explicit_names(raw.iter().filter_map(|step| step.value.common.name.as_ref()), around.reader);
    let mut fetched = Vec::new();
    let mut steps = Vec::new();
    for SpannedValue { value: ChosenVariant { common, variant }, span } in raw {
        let Some(verb) = variant else { continue };
        let retries = retries(&verb);
        let Some((action, default_name)) = action(verb, &mut fetched, around) else { continue };
        let name = common.name.map_or_else(|| unique(&default_name, &mut taken), |name| name.value);
        let line = around.reader.document.line(span.start);
        let when = common.when.map(|when| when.value);
        steps.push(StepSpec { name, action, timeout: common.timeout, retries, when, cache: common.cache, line });
    }
    steps
}

/// Returns how often an action is tried again; only commands can be.
fn retries(verb: &Verb) -> u8 {
    match verb {
        Verb::RunCommand(raw) => raw.retry,
        Verb::RunScript(raw) => raw.retry,
        Verb::CopyIn(_) | Verb::WriteFile(_) | Verb::FetchOut(_) | Verb::Reboot(_) => 0,
    }
}

/// Converts a step's keys to its action, and returns it with the step's default name.
fn action(verb: Verb, fetched: &mut Vec<SpannedValue<PathBuf>>, around: &mut StepScope) -> Option<(Action, String)> {
    match verb {
        Verb::RunCommand(raw) => {
            let SpannedValue { value: command, span } = raw.run?;
            let name = run_name(&command);
            check_start(&arguments::words(&command), &raw.env, &span, around.reader);
            let secrets = known_secrets(raw.secrets, around);
            let env_from_host = host_variables(raw.env_from_host, &raw.env, around.reader);
            let context = Context { env: values(raw.env), env_from_host, user: raw.user, dir: raw.dir, secrets };
            Some((Action::Run { command, context }, name))
        }
        Verb::RunScript(raw) => {
            let script = raw.script?;
            let name = shorten(&format!("script {}", script.value.path.display()));
            let secrets = known_secrets(raw.secrets, around);
            let env = raw.env;
            let args: Vec<String> = raw.args.into_iter().map(|argument| argument.value).collect();
            check_start(&args, &env, &script.span, around.reader);
            let env_from_host = host_variables(raw.env_from_host, &env, around.reader);
            let context = Context { env: values(env), env_from_host, user: raw.user, dir: raw.dir, secrets };
            Some((Action::Script { file: host_file(&script, around.spec), args, context }, name))
        }
        Verb::CopyIn(raw) => copy(raw, around),
        Verb::WriteFile(raw) => {
            let content = raw.write?.value;
            let to = raw.to?.value;
            let name = shorten(&format!("write {to}"));
            Some((Action::Write { content, to, owner: raw.owner, mode: raw.mode }, name))
        }
        Verb::FetchOut(raw) => fetch(raw, fetched, around),
        Verb::Reboot(raw) => reboot(&raw.reboot?, around.reader),
    }
}

/// Reports arguments and variables that Linux does not start a program with.
fn check_start<S: AsRef<str>>(
    words: &[S],
    environment: &BTreeMap<String, SpannedValue<String>>,
    span: &Range<usize>,
    reader: &mut SpecReader,
) {
    arguments::check_environment(environment, reader);
    let variables = environment.iter().flat_map(|(name, value)| [name, &value.value]);
    let variables = variables.chain(reader.vars.iter().flat_map(|(name, value)| [name, value]));
    let strings = words.iter().map(AsRef::as_ref).chain(variables.map(String::as_str));
    let sum = arguments::weigh(strings);
    arguments::check_sum(sum, span, reader);
}

/// Returns the variables that a step takes from the host, and reports those that it also sets.
fn host_variables(
    names: Vec<SpannedValue<String>>,
    environment: &BTreeMap<String, SpannedValue<String>>,
    reader: &mut SpecReader,
) -> BTreeSet<String> {
    for name in &names {
        if let Some(set) = environment.get(&name.value) {
            let message = format!("`{}` is taken from the host and set by `env`", name.value);
            reader.report(SpecError::new(name.span.clone(), message).related(set.span.clone(), "set here"));
        }
    }
    names.into_iter().map(|name| name.value).collect()
}

fn copy(raw: keys::CopyIn, around: &mut StepScope) -> Option<(Action, String)> {
    let source = raw.copy?;
    let to = raw.to?.value;
    if !source.value.slash && source.value.path.ends_with("..") {
        let error = SpecError::new(source.span.clone(), "the name of the folder that `..` leads to is not known here");
        around.reader.report(error.help("end it with `/` to copy what is in the folder"));
    }
    let shown = with_slash(&source.value.path.display().to_string(), source.value.slash);
    let shown_to = with_slash(if to.path == "/" { "" } else { &to.path }, to.slash);
    let name = shorten(&format!("copy {shown} to {shown_to}"));
    let copy = Copy {
        from: host_file(&source, around.spec),
        contents: source.value.slash,
        to: to.path,
        into: to.slash,
        owner: raw.owner,
        mode: raw.mode.map(|mode| mode.value),
        exclude: raw.exclude.into_iter().map(|pattern| pattern.value).collect(),
    };
    Some((Action::Copy(copy), name))
}

fn with_slash(path: &str, slash: bool) -> String {
    format!("{path}{}", if slash { "/" } else { "" })
}

fn reboot(wanted: &SpannedValue<bool>, reader: &mut SpecReader) -> Option<(Action, String)> {
    if !wanted.value {
        let error = SpecError::new(wanted.span.clone(), "`reboot = false` does nothing");
        reader.report(error.help("remove the step, or write `reboot = true`"));
        return None;
    }
    Some((Action::Reboot, "reboot".to_owned()))
}

fn fetch(
    raw: keys::FetchOut,
    fetched: &mut Vec<SpannedValue<PathBuf>>,
    around: &mut StepScope,
) -> Option<(Action, String)> {
    let from = raw.fetch?.value;
    let to = raw.to?;
    if is_own_file(&to.value, around.image) {
        let message = format!("`{}` is the name of a file that kiln itself writes", to.value.display());
        around.reader.report(SpecError::new(to.span.clone(), message));
    }
    let path = &to.value;
    let taken = fetched.iter().find(|other| other.value.starts_with(path) || path.starts_with(&other.value));
    if let Some(first) = taken {
        let message = format!("`{}` is taken by another `fetch`", to.value.display());
        around.reader.report(SpecError::new(to.span.clone(), message).related(first.span.clone(), "taken here"));
    }
    let name = shorten(&format!("fetch {from}"));
    fetched.push(to.clone());
    Some((Action::Fetch { from, to: to.value }, name))
}

/// Returns whether a path would replace a file of the version's folder, or lie below one.
fn is_own_file(path: &Path, image: Option<&ImageSpec>) -> bool {
    let Some(first) = path.iter().next().and_then(|name| name.to_str()) else { return false };
    let prefix = image.map(|image| format!("{}-{}.", image.name, image.version));
    OWN_FILES.contains(&first) || prefix.is_some_and(|prefix| first.starts_with(&prefix))
}

fn known_secrets(names: Vec<SpannedValue<String>>, around: &mut StepScope) -> BTreeSet<String> {
    for name in &names {
        if !around.secrets.contains_key(&name.value) {
            let help = suggest(&name.value, around.secrets.keys().map(String::as_str));
            let message = format!("the secret `{}` is not declared in `[secrets]`", name.value);
            around.reader.report_missing(SpecError::new(name.span.clone(), message).maybe_help(help));
        }
    }
    names.into_iter().map(|name| name.value).collect()
}
