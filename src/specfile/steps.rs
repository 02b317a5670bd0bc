//! Steps: one action each, names that tell them apart, and references that lead somewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::arguments;
use super::complaint::SpecError;
use super::document::At;
use super::keys::{self, Verb};
use super::reader::Reader;
use super::shape::is_forgery;
use super::suggest::suggest;
use super::table::Chosen;
use super::validate::{host, values};
use super::{Action, Command, Context, Copy, Image, SecretDeclaration, Step};

/// The files of a version that kiln itself writes; besides them `NAME-VERSION.*`.
const OWN_FILES: [&str; 11] = [
    "manifest.json",
    "files.zst",
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

/// The longest default name, in characters.
const MAX_DEFAULT_NAME: usize = 60;

/// What steps refer to.
pub(super) struct Surroundings<'s, 'd> {
    /// The spec file.
    pub spec: &'s Path,
    /// The image, if its name and version are known.
    pub image: Option<&'s Image>,
    pub secrets: &'s BTreeMap<String, Option<SecretDeclaration>>,
    pub reader: &'s mut Reader<'d>,
}

pub(super) fn steps(raw: Vec<At<Chosen<keys::Step, Verb>>>, around: &mut Surroundings) -> Vec<Step> {
    let mut taken = explicit_names(raw.iter().filter_map(|step| step.value.common.name.as_ref()), around.reader);
    let mut fetched = Vec::new();
    let mut steps = Vec::new();
    for At { value: Chosen { common, variant }, span } in raw {
        let Some((action, default_name)) = variant.and_then(|verb| action(verb, &mut fetched, around)) else {
            continue;
        };
        let name = common.name.map_or_else(|| unique(&default_name, &mut taken), |name| name.value);
        let line = around.reader.document.line(span.start);
        steps.push(Step { name, action, timeout: common.timeout, cache: common.cache, line });
    }
    steps
}

/// The names that the spec gives, each of which must be given once.
pub(super) fn explicit_names<'n>(names: impl Iterator<Item = &'n At<String>>, reader: &mut Reader) -> HashSet<String> {
    let mut first: HashMap<&str, &Range<usize>> = HashMap::new();
    for name in names {
        if let Some(first) = first.get(name.value.as_str()) {
            let error = SpecError::new(name.span.clone(), format!("the name `{}` is taken", name.value));
            reader.report(error.related((*first).clone(), "taken here"));
        } else {
            first.insert(&name.value, &name.span);
        }
    }
    first.into_keys().map(str::to_owned).collect()
}

/// The default name, with a number if there is another of that name.
pub(super) fn unique(name: &str, taken: &mut HashSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{name} ({number})"));
    let mut candidates = std::iter::once(name.to_owned()).chain(numbered);
    candidates.find(|name| taken.insert(name.clone())).expect("there is always another number")
}

/// A line that is fit for a name: the first that says something, without control characters, and not too long.
pub(super) fn shorten(text: &str) -> String {
    let printable = |c: char| if is_forgery(c) { ' ' } else { c };
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let words: String = line.chars().map(printable).collect();
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(MAX_DEFAULT_NAME) {
        Some((end, _)) => format!("{}...", words[..end].trim_end()),
        None => words,
    }
}

pub(super) fn run_name(command: &Command) -> String {
    match command {
        Command::Shell(text) => shorten(&format!("run {}", text.trim_start())),
        Command::Argv(words) => shorten(&format!("run {}", words.join(" "))),
    }
}

/// What a step does, and the name that it has by default.
fn action(verb: Verb, fetched: &mut Vec<At<PathBuf>>, around: &mut Surroundings) -> Option<(Action, String)> {
    match verb {
        Verb::RunCommand(raw) => {
            let At { value: command, span } = raw.run?;
            let name = run_name(&command);
            check_start(&arguments::words(&command), &raw.env, &span, around.reader);
            let secrets = known_secrets(raw.secrets, around);
            let context = Context { env: values(raw.env), user: raw.user, dir: raw.dir, secrets };
            Some((Action::Run { command, context }, name))
        }
        Verb::RunScript(raw) => {
            let script = raw.script?;
            let name = shorten(&format!("script {}", script.value.path.display()));
            let secrets = known_secrets(raw.secrets, around);
            let env = raw.env;
            let args: Vec<String> = raw.args.into_iter().map(|argument| argument.value).collect();
            check_start(&args, &env, &script.span, around.reader);
            let context = Context { env: values(env), user: raw.user, dir: raw.dir, secrets };
            Some((Action::Script { file: host(&script, around.spec), args, context }, name))
        }
        Verb::CopyIn(raw) => copy(raw, around),
        Verb::WriteFile(raw) => {
            let (content, to) = (raw.write?.value, raw.to?.value);
            let name = shorten(&format!("write {to}"));
            Some((Action::Write { content, to, owner: raw.owner, mode: raw.mode }, name))
        }
        Verb::FetchOut(raw) => fetch(raw, fetched, around),
        Verb::Reboot(raw) => reboot(&raw.reboot?, around.reader),
    }
}

/// Reports what Linux does not start a program with.
fn check_start<S: AsRef<str>>(
    words: &[S],
    environment: &BTreeMap<String, At<String>>,
    span: &Range<usize>,
    reader: &mut Reader,
) {
    arguments::check_environment(environment, reader);
    let variables = environment.iter().flat_map(|(name, value)| [name, &value.value]);
    let variables = variables.chain(reader.vars.iter().flat_map(|(name, value)| [name, value]));
    let strings = words.iter().map(AsRef::as_ref).chain(variables.map(String::as_str));
    let sum = arguments::weigh(strings);
    arguments::check_sum(sum, span, reader);
}

fn copy(raw: keys::CopyIn, around: &mut Surroundings) -> Option<(Action, String)> {
    let (source, to) = (raw.copy?, raw.to?.value);
    if !source.value.slash && source.value.path.ends_with("..") {
        let error = SpecError::new(source.span.clone(), "the name of the folder that `..` leads to is not known here");
        around.reader.report(error.help("end it with `/` to copy what is in the folder"));
    }
    let slash = |slash| if slash { "/" } else { "" };
    let shown = source.value.path.display();
    let shown_to = if to.path == "/" { "" } else { &to.path };
    let name = shorten(&format!("copy {shown}{} to {shown_to}{}", slash(source.value.slash), slash(to.slash)));
    let copy = Copy {
        from: host(&source, around.spec),
        contents: source.value.slash,
        to: to.path,
        into: to.slash,
        owner: raw.owner,
        mode: raw.mode.map(|mode| mode.value),
    };
    Some((Action::Copy(copy), name))
}

fn reboot(wanted: &At<bool>, reader: &mut Reader) -> Option<(Action, String)> {
    if !wanted.value {
        let error = SpecError::new(wanted.span.clone(), "`reboot = false` does nothing");
        reader.report(error.help("remove the step, or write `reboot = true`"));
        return None;
    }
    Some((Action::Reboot, "reboot".to_owned()))
}

fn fetch(raw: keys::FetchOut, fetched: &mut Vec<At<PathBuf>>, around: &mut Surroundings) -> Option<(Action, String)> {
    let (from, to) = (raw.fetch?.value, raw.to?);
    if is_own_file(&to.value, around.image) {
        let message = format!("`{}` is the name of a file that kiln itself writes", to.value.display());
        around.reader.report(SpecError::new(to.span.clone(), message));
    }
    let in_each_other = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
    if let Some(first) = fetched.iter().find(|first| in_each_other(&first.value, &to.value)) {
        let message = format!("`{}` is taken by another `fetch`", to.value.display());
        around.reader.report(SpecError::new(to.span.clone(), message).related(first.span.clone(), "taken here"));
    }
    let name = shorten(&format!("fetch {from}"));
    fetched.push(to.clone());
    Some((Action::Fetch { from, to: to.value }, name))
}

/// Whether a path would stand in for, or below, a file of the version's folder.
fn is_own_file(path: &Path, image: Option<&Image>) -> bool {
    let Some(first) = path.iter().next().and_then(|name| name.to_str()) else { return false };
    let is_output = |image: &Image| first.starts_with(&format!("{}-{}.", image.name, image.version));
    OWN_FILES.contains(&first) || image.is_some_and(is_output)
}

fn known_secrets(names: Vec<At<String>>, around: &mut Surroundings) -> BTreeSet<String> {
    for name in &names {
        if !around.secrets.contains_key(&name.value) {
            let help = suggest(&name.value, around.secrets.keys().map(String::as_str));
            let message = format!("the secret `{}` is not declared in `[secrets]`", name.value);
            around.reader.report_missing(SpecError::new(name.span.clone(), message).maybe_help(help));
        }
    }
    names.into_iter().map(|name| name.value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_names_are_short_lines() {
        let name = |text: &str| run_name(&Command::Shell(text.into()));
        assert_eq!(name("apt-get install -y nginx"), "run apt-get install -y nginx");
        assert_eq!(name("\n  a\tb\u{202e}\u{1b}[1m\n c"), "run a b [1m");
        let long = name(&"ü".repeat(100));
        assert!(long.chars().count() == MAX_DEFAULT_NAME + 3 && long.ends_with("ü..."), "{long}");
    }

    #[test]
    fn default_names_avoid_what_is_taken() {
        let mut taken = HashSet::from(["reboot (2)".to_owned()]);
        let names: Vec<String> = (0..3).map(|_| unique("reboot", &mut taken)).collect();
        assert_eq!(names, ["reboot", "reboot (3)", "reboot (4)"]);
    }
}
