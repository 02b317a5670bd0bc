//! Every spec under `fixtures/specs`: what the valid ones mean, and what is said about the invalid ones.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::cli::diagnostics::render;
use kiln::error::{Fault, Kind};
use kiln::project::FileReach;
use kiln::size::ByteSize;
use kiln::specfile::seal::OPERATIONS;
use kiln::specfile::{Action, BaseSource, LoadError, MAX_BYTES, NetworkBackend, Overrides, Spec, SpecErrors, schema};
use kiln::wire::sealing::{IdentityForm, IdentityMaker, IdentityRenewal, MachineIdentity};
use proptest::prelude::*;
use serde_json::Value as Json;

/// The fixtures of a folder with their names, in order. Paths are relative, as tests run in the project's folder.
fn fixtures(folder: &str) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(Path::new("fixtures/specs").join(folder)).unwrap();
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    found.sort();
    found
}

fn load(path: &Path) -> Result<Spec, LoadError> {
    Spec::load(path, FileReach::Project, &Overrides::default())
}

fn parse(text: &str) -> Result<Spec, SpecErrors> {
    Spec::parse(Path::new("kiln.toml"), text, &Overrides::default())
}

/// A spec with more text after what every spec needs.
fn spec(more: &str) -> String {
    format!("[image]\nname = 'web'\nversion = '1'\n[base]\nfile = 'base.qcow2'\n{more}")
}

fn messages(text: &str) -> String {
    let errors = parse(text).unwrap_err().errors;
    errors.into_iter().map(|error| error.message).collect::<Vec<_>>().join("\n")
}

#[test]
fn invalid_specs_are_explained() {
    for (name, path) in fixtures("invalid") {
        let Err(LoadError::Invalid(errors)) = load(&path) else { panic!("{name} should be read and refused") };
        insta::assert_snapshot!(format!("invalid-{name}"), render(&errors, false));
    }
}

#[test]
fn valid_specs_mean_what_they_say() {
    let root = std::env::current_dir().unwrap();
    for (name, path) in fixtures("valid") {
        let spec = load(&path).unwrap_or_else(|error| panic!("{name}: {error} {:#?}", error.evidence()));
        let shown = format!("{spec:#?}").replace(root.to_str().unwrap(), "[ROOT]");
        insta::assert_snapshot!(format!("valid-{name}"), shown);
    }
}

/// A fixture without a snapshot is one that nobody has looked at; a snapshot without a fixture is never compared.
#[test]
fn fixtures_and_snapshots_are_the_same_set() {
    let of = |folder: &'static str| {
        fixtures(folder).into_iter().map(move |(name, _)| format!("specs__{folder}-{name}.snap"))
    };
    let expected: BTreeSet<String> = of("invalid").chain(of("valid")).collect();
    let names = fs::read_dir("tests/snapshots").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ours = |name: &String| name.starts_with("specs__invalid-") || name.starts_with("specs__valid-");
    let found: BTreeSet<String> = names.filter(ours).collect();
    assert_eq!(expected, found);
    assert!(expected.len() >= 60, "the fixtures are not all there");
}

/// The images of this repository are there to be copied.
#[test]
fn images_of_this_repository_are_valid_tested_and_record_their_downloads() {
    let folders = fs::read_dir("images").unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let specs: Vec<_> = folders.map(|folder| load(&folder).unwrap_or_else(|error| panic!("{error}"))).collect();
    assert!(specs.len() >= 10, "{} images", specs.len());
    for spec in specs {
        assert!(!spec.tests.is_empty(), "{} has no tests", spec.image.name);
        assert_ne!(spec.machine.network, NetworkBackend::User, "{}", spec.image.name);
    }
}

#[test]
fn the_lock_file_of_the_python_application_has_its_requirements() {
    let read = |name: &str| fs::read_to_string(Path::new("images/python-app").join(name)).unwrap();
    let (requirements, lock) = (read("app/requirements.txt"), read("kiln.lock"));
    let lines: Vec<_> = requirements.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(!lines.is_empty());
    for line in lines {
        let (_, file) = line.split_once(" @ ").unwrap();
        let (url, sha256) = file.split_once(" --hash=sha256:").unwrap();
        assert!(lock.contains(&format!("url = \"{url}\", sha256 = \"{sha256}\"")), "kiln.lock lacks {line}");
    }
}

#[test]
fn the_command_line_overrides() {
    let text = spec("[vars]\nsite = 'a'\n[[step]]\nrun = 'echo {{ site }}'\n");
    let parse = |version: &str, vars: &[(&str, &str)]| {
        let vars = vars.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Spec::parse(Path::new("kiln.toml"), &text, &Overrides { version: Some(version.into()), vars, variant: None })
    };
    let spec = parse("2.0", &[("site", "b"), ("site", "{{ c }}")]).unwrap();
    assert_eq!((spec.image.version.as_str(), spec.steps[0].name.as_str()), ("2.0", "run echo {{ c }}"));
    assert_eq!(spec.vars["site"], "{{ c }}");
    let errors = parse("-2", &[("sight", "b"), ("siet", "b")]).unwrap_err();
    insta::assert_snapshot!("overrides", render(&errors, false));
}

#[test]
fn a_variant_is_laid_over_the_rest() {
    let text = spec(
        "[vars]\na = '1'\nb = '1'\n[machine]\ncpus = 1\nmemory = '256MiB'\n[[output]]\nformat = 'raw'\n\
         [[step]]\nrun = 'echo {{ a }} {{ b }}'\n\
         [variants.one]\nvars = { a = '2' }\nmachine = { memory = '512MiB' }\n\
         [variants.two]\nbase = { image = 'debian@stable', format = 'raw' }\noutput = [{ format = 'qcow2' }]\n",
    );
    let parse = |variant: Option<&str>, vars: &[(&str, &str)]| {
        let vars = vars.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let overrides = Overrides { version: None, vars, variant: variant.map(str::to_owned) };
        Spec::parse(Path::new("kiln.toml"), &text, &overrides)
    };
    let one = parse(Some("one"), &[("b", "3")]).unwrap();
    assert_eq!((&*one.image.name, &*one.steps[0].name), ("web-one", "run echo 2 3"));
    assert_eq!((one.machine.cpus, one.machine.memory), (1, ByteSize::mib(512)));
    let two = parse(Some("two"), &[]).unwrap();
    assert_eq!((&two.base.source, two.outputs.len()), (&BaseSource::Image("debian@stable".into()), 1));
    assert_eq!(two.machine, parse(None, &[]).unwrap().machine);
    assert_eq!(parse(None, &[]).unwrap().image.name, "web");
    let errors = parse(Some("tow"), &[]).unwrap_err().errors;
    let told = "`--variant tow` is no variant of the spec, which has `one`, `two`";
    assert_eq!((errors.len(), errors[0].message.as_str()), (1, told));
    assert!(messages(&spec("[variants]\na = 1\n")).contains("expected a table"));
    assert!(messages(&spec("[variants.all]\nvars = {}\n")).contains("means each of them"));
}

#[test]
fn what_is_wrong_in_a_variant_is_told_once_and_where_it_stands() {
    let text = spec("[machine]\ncpus = 1\n[variants.one]\nmachine = { cpus = 0 }\nimage = 'x'\n");
    let overrides = Overrides { variant: Some("one".into()), ..Overrides::default() };
    let errors = Spec::parse(Path::new("kiln.toml"), &text, &overrides).unwrap_err();
    let lines: Vec<_> =
        errors.errors.iter().map(|error| errors.document.line(error.span.clone().unwrap().start)).collect();
    assert_eq!(lines, [9, 10], "{:?}", errors.errors);
}

#[test]
fn paths_start_at_the_specs_folder() {
    let folder = tempfile::tempdir().unwrap();
    let text = spec("[[step]]\nscript = './a/../b.sh'\n[[step]]\ncopy = '/abs/'\nto = '/'\n");
    fs::write(folder.path().join("kiln.toml"), text).unwrap();
    let spec = load(folder.path()).unwrap();
    assert_eq!(spec.path, folder.path().join("kiln.toml"));
    assert_eq!(spec.base.source, BaseSource::File(folder.path().join("base.qcow2")));
    let [Action::Script { file, .. }, Action::Copy(copy)] = [&spec.steps[0].action, &spec.steps[1].action] else {
        panic!("{:?}", spec.steps)
    };
    assert_eq!(*file, folder.path().join("a/../b.sh"));
    assert_eq!((copy.from.to_str(), copy.contents, copy.to.as_str(), copy.into), (Some("/abs"), true, "/", true));
}

#[test]
fn what_is_no_spec_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let too_large = vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1];
    let cases = [
        (folder.path().join("none.toml"), "cannot read the spec", "`kiln init`"),
        (folder.path().to_owned(), "holds no kiln.toml", "`kiln init`"),
        (pipe, "is not a regular file", ""),
        (file("latin1.toml", b"a = \"\xe4\""), "is not UTF-8: byte 5", "UTF-8"),
        (file("large.toml", &too_large), "is larger than 1 MiB", "`copy`"),
    ];
    for (path, message, hint) in cases {
        let error = load(&path).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(error.hints().concat().contains(hint), "{:?}", error.hints());
        assert_eq!(error.kind(), Kind::Spec);
    }
}

/// Nested keys exhausted the stack, and the others took far more time or memory than their text.
#[test]
fn s7_hostile_specs_end_soon() {
    let size = usize::try_from(MAX_BYTES).unwrap();
    let (value, uses) = ("x".repeat(size / 2), "{{a}}".repeat(size / 10));
    let specs = [
        format!("a = {}", "[".repeat(size)),
        format!("a = {}", "{a=".repeat(size / 3)),
        format!("a{} = 1", ".a".repeat(size / 2)),
        format!("[[x]]\na{} = 1\n[x]", ".a".repeat(size / 2)),
        format!("[a{}]", ".a".repeat(size / 2)),
        format!("{} = 1", "k".repeat(size)),
        format!("[[x]]\n{}b=1{}\n[x]", "a.a.a.a.a.a.a.a={".repeat(70), "}".repeat(70)),
        "[[step]]\n".repeat(100_000),
        spec(&format!("[vars]\na = '{value}'\n[[step]]\nrun = '{uses}'")),
        spec(&format!("[[step]]\nrun = [{}]", "1,".repeat(size / 3))),
        "= = =\n".repeat(size / 10),
        (0..60_000).fold(String::new(), |text, key| text + &format!("key{key}=1\n")),
        (0..40_000).fold(String::new(), |text, key| text + &format!("[table{key}]\na=1\n")),
    ];
    for text in specs {
        let errors = parse(&text).unwrap_err();
        let shown = render(&errors, true);
        assert!(errors.errors.len() <= 100 && shown.len() < 200_000, "{}", shown.len());
    }
}

/// execve(2) fails with E2BIG, minutes after the build has begun.
#[test]
fn s3_arguments_that_linux_does_not_take_are_told_with_their_place() {
    let long = "x".repeat(128 << 10);
    let many = "'{{ v }}', ".repeat(25);
    let with_variable = |text: &str| format!("[vars]\nv = '{}'\n{text}", "x".repeat(100_000));
    for (text, line, column) in [
        (format!("[[step]]\nrun = ['echo', '{long}']"), 7, 16),
        (format!("[[step]]\nscript = 's'\nargs = ['{long}']"), 8, 9),
        (format!("[[step]]\nrun = 'true'\nenv = {{ A = '{long}' }}"), 8, 9),
        (format!("[[step]]\nscript = 's'\nenv = {{ A = '{long}' }}"), 8, 9),
        (format!("[vars]\nv = '{long}'"), 7, 1),
        (format!("[[test]]\nrun = ['echo', '{long}']"), 7, 16),
        (format!("[[test]]\ncommand = ['echo', '{long}']"), 7, 20),
        (with_variable(&format!("[[step]]\nrun = [{many}]")), 9, 7),
        (with_variable(&format!("[[step]]\nscript = 's'\nargs = [{many}]")), 9, 10),
        (with_variable(&format!("[[test]]\nrun = [{many}]")), 9, 7),
    ] {
        let found = parse(&spec(&text)).unwrap_err();
        let error = &found.errors[0];
        let at = found.document.position(error.span.clone().unwrap().start);
        assert!(error.message.contains("Linux takes at most"), "{}", error.message);
        assert_eq!((found.errors.len(), at.line, at.column), (1, line, column), "{}", &text[..40]);
    }
    let fits = "x".repeat((128 << 10) - 1);
    parse(&spec(&format!("[[step]]\nrun = ['echo', '{fits}']\nenv = {{ A = '{}' }}", &fits[2..]))).unwrap();
    // Content is no argument, and neither is the text of a shell.
    parse(&spec(&format!("[[step]]\nwrite = '{long}'\nto = '/a'\n[[step]]\nrun = 'echo {long}'"))).unwrap();
    let found = parse(&spec(&with_variable(&format!("[[step]]\nrun = '{}'", "{{ v }}".repeat(6))))).unwrap_err();
    assert!(found.errors[0].message.contains("at most 524288 are allowed"), "{}", found.errors[0].message);
    let overrides = Overrides { vars: vec![("v".into(), long)], ..Overrides::default() };
    let found = Spec::parse(Path::new("kiln.toml"), &spec("[vars]\nv = ''"), &overrides).unwrap_err();
    assert!(found.errors[0].message.starts_with("`--var`: `v` with its value has"), "{}", found.errors[0].message);
}

#[test]
fn errors_read_well_without_carets() {
    let errors = load(Path::new("fixtures/specs/invalid/crlf.toml")).unwrap_err();
    assert_eq!(errors.to_string(), "fixtures/specs/invalid/crlf.toml has 2 errors");
    assert_eq!(errors.evidence()[1], "fixtures/specs/invalid/crlf.toml:10:1: unknown key `memroy`");
}

#[test]
fn the_committed_schema_is_up_to_date() {
    let committed = fs::read_to_string("docs/kiln.schema.json").unwrap();
    let current = format!("{:#}\n", schema());
    assert!(committed == current, "write the output of `kiln schema` to docs/kiln.schema.json:\n{current}");
}

#[test]
fn the_reference_has_every_key() {
    let reference = fs::read_to_string("docs/spec.md").unwrap();
    let missing: Vec<String> = rows(&schema()).into_iter().filter(|row| !reference.contains(row)).collect();
    assert!(missing.is_empty(), "docs/spec.md lacks these rows:\n{}", missing.join("\n"));
}

#[test]
fn the_page_on_sealing_has_every_operation_and_identity() {
    let page = fs::read_to_string("docs/sealing.md").unwrap();
    let operations = OPERATIONS.iter().map(|operation| format!("| `{}` | {} |", operation.name, operation.description));
    let identities = OPERATIONS
        .iter()
        .flat_map(|operation| operation.identities.iter().map(|identity| identity_row(operation.name, identity)));
    let missing: Vec<String> = operations.chain(identities).filter(|row| !page.contains(row)).collect();
    assert!(missing.is_empty(), "docs/sealing.md lacks these rows:\n{}", missing.join("\n"));
}

fn identity_row(operation: &str, identity: &MachineIdentity) -> String {
    let paths: Vec<String> = identity.paths.iter().map(|path| format!("`{path}`")).collect();
    let form = match identity.form {
        IdentityForm::File | IdentityForm::FileWith(_) => String::new(),
        IdentityForm::Lines(beginning) => format!(", lines that begin with `{beginning}`"),
    };
    let names = |makers: &[IdentityMaker]| makers.iter().map(|maker| maker.name).collect::<Vec<_>>().join(", ");
    let renewal = match identity.renewal {
        IdentityRenewal::WhenMissing(program) => program.to_owned(),
        IdentityRenewal::By(makers) => format!("{}; else it stays, with a warning", names(makers)),
        IdentityRenewal::Always { makers, .. } => format!("{}; else it is missing, with a warning", names(makers)),
        IdentityRenewal::Never(_) => "nothing: it stays, with a warning".to_owned(),
    };
    format!("| {} | {}{form} | `{operation}` | {renewal} |", identity.name, paths.join(", "))
}

/// What the reference says of each key: a row of a Markdown table, made from the schema.
fn rows(schema: &Json) -> BTreeSet<String> {
    let variants: Vec<&Json> = schema["allOf"].as_array().into_iter().flatten().map(|one| &one["then"]).collect();
    // What the variants share is `true` in each of them, and told once for all.
    let is_own = |key: &String| variants.first().is_some_and(|one| one["properties"][key] != true);
    let inner = variants.iter().copied().chain([&schema["items"], &schema["additionalProperties"]]);
    let mut rows: BTreeSet<String> = inner.filter(|table| table.is_object()).flat_map(rows).collect();
    let keys = schema["properties"].as_object().into_iter().flatten();
    for (key, value) in keys.filter(|(key, value)| value.is_object() && !is_own(key)) {
        let required = schema["required"].as_array().is_some_and(|keys| keys.iter().any(|name| name == key));
        let default = match &value["default"] {
            _ if required => "required".to_owned(),
            Json::Null => "-".to_owned(),
            default => format!("`{default}`"),
        };
        let about = value["description"].as_str().unwrap().replace('|', "\\|");
        rows.insert(format!("| `{key}` | {about} | {default} |"));
        rows.extend(self::rows(value));
    }
    rows
}

#[test]
fn the_schema_accepts_valid_specs_and_sees_most_mistakes() {
    let schema = schema();
    for (name, path) in fixtures("valid") {
        let text = fs::read_to_string(path).unwrap();
        let document: Json = toml::from_str(text.trim_start_matches('\u{feff}')).unwrap();
        assert_eq!(fault(&schema, &document), None, "{name}");
    }
    let mut verdicts = Vec::new();
    for (name, path) in fixtures("invalid") {
        let Ok(document) = toml::from_str::<Json>(&fs::read_to_string(path).unwrap()) else { continue };
        let verdict = fault(&schema, &document).unwrap_or_else(|| "not seen".into());
        verdicts.push(format!("{name}: {verdict}"));
    }
    insta::assert_snapshot!("schema", verdicts.join("\n"));
}

/// What a JSON Schema has against a value. Patterns are left to real validators.
fn fault(schema: &Json, value: &Json) -> Option<String> {
    let kind = match value {
        Json::Object(_) => "object",
        Json::Array(_) => "array",
        Json::String(_) => "string",
        Json::Bool(_) => "boolean",
        Json::Number(number) if number.is_i64() => "integer",
        _ => "number",
    };
    if schema["type"].as_str().is_some_and(|wanted| wanted != kind) {
        return Some(format!("{kind} instead of {}", schema["type"]));
    }
    let length = value.as_array().map(Vec::len).or_else(|| value.as_str().map(str::len)).unwrap_or_default();
    let number = value.as_i64().unwrap_or_else(|| i64::try_from(length).unwrap());
    let bound = |keys: [&str; 3]| keys.iter().find_map(|key| schema[*key].as_i64());
    if bound(["minimum", "minItems", "minLength"]).is_some_and(|least| number < least) {
        return Some("too small".into());
    }
    if bound(["maximum", "maxItems", "maxLength"]).is_some_and(|most| number > most) {
        return Some("too large".into());
    }
    // The one pattern that is looked at here lets variables stand where names are expected.
    let is_variable = schema["pattern"] != r"\{\{" || value.as_str().is_some_and(|text| text.contains("{{"));
    if schema["enum"].as_array().is_some_and(|names| !names.contains(value)) || !is_variable {
        return Some("not one of the names".into());
    }
    let fitting = |key| Some(schema[key].as_array()?.iter().filter(|one| fault(one, value).is_none()).count());
    if fitting("anyOf") == Some(0) || fitting("oneOf").is_some_and(|fitting| fitting != 1) {
        return Some("none or several of the alternatives".into());
    }
    let mut required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
    if let Some(key) = required.find(|key| value.get(key).is_none()) {
        return Some(format!("no {key}"));
    }
    let inside = |key: &String, item| match schema["properties"].get(key) {
        Some(known) => fault(known, item),
        None if schema["additionalProperties"] == false => Some("unknown".into()),
        None => fault(&schema["additionalProperties"], item),
    };
    let item = value.as_array().into_iter().flatten().find_map(|item| fault(&schema["items"], item));
    let entry = |(key, item)| Some(format!("{key}: {}", inside(key, item)?));
    let inner = item.or_else(|| value.as_object()?.iter().find_map(entry));
    inner.or_else(|| schema["allOf"].as_array()?.iter().find_map(|one| conditional_fault(one, value)))
}

/// What a condition has against a value that it is about.
fn conditional_fault(condition: &Json, value: &Json) -> Option<String> {
    if fault(&condition["if"], value).is_some() { None } else { fault(&condition["then"], value) }
}

/// Texts that are nearly specs: a fixture with a piece cut out and something else put in.
fn near_specs() -> impl Strategy<Value = String> {
    let paths = ["valid", "invalid"].into_iter().flat_map(fixtures).map(|(_, path)| path);
    let texts: Vec<String> = paths.map(|path| fs::read_to_string(path).unwrap()).collect();
    let edit = (any::<prop::sample::Index>(), 0..40_usize, r#"(\PC|[\[\]{}"'.=\n\r\x00])*"#);
    (prop::sample::select(texts), edit).prop_map(|(text, (at, length, with))| {
        let mut chars: Vec<char> = text.chars().collect();
        let start = at.index(chars.len() + 1);
        let end = (start + length).min(chars.len());
        chars.splice(start..end, with.chars());
        chars.into_iter().collect()
    })
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in prop_oneof![".*".boxed(), near_specs().boxed()]) {
        if let Err(errors) = parse(&text) {
            prop_assert!(!errors.errors.is_empty());
            for error in &errors.errors {
                let span = error.span.clone().unwrap();
                prop_assert!(errors.document.text().get(span).is_some());
                prop_assert!(!error.message.chars().any(char::is_control));
            }
            let escape = char::from(0x1b);
            prop_assert!(!render(&errors, false).contains(escape));
        }
    }

    #[test]
    fn s3_sizes_are_kept_or_named_with_their_range(mib in prop_oneof![0..(1_u64 << 43), 0..(1_u64 << 21)]) {
        let size = ByteSize::mib(mib);
        let text = spec(&format!("[machine]\nmemory = '{mib}MiB'"));
        if (ByteSize::mib(128)..=ByteSize::gib(1024)).contains(&size) {
            prop_assert_eq!(parse(&text).unwrap().machine.memory, size);
        } else {
            prop_assert!(messages(&text).contains("from 128MiB to 1TiB is allowed"));
        }
    }

    #[test]
    fn s3_durations_are_kept_or_named_with_their_range(seconds in prop_oneof![0..(1_u64 << 63), 0..(1_u64 << 21)]) {
        let text = spec(&format!("[build]\ntimeout = '{seconds}s'"));
        if (1..=7 * 24 * 3600).contains(&seconds) {
            prop_assert_eq!(parse(&text).unwrap().build.timeout.as_secs(), seconds);
        } else {
            prop_assert!(messages(&text).contains("from 1s to 168h is allowed"));
        }
    }

    #[test]
    fn s3_processors_are_kept_or_named_with_their_range(cpus in prop_oneof![any::<i64>(), -10..300_i64]) {
        let text = spec(&format!("[machine]\ncpus = {cpus}"));
        if (1..=255).contains(&cpus) {
            prop_assert_eq!(i64::from(parse(&text).unwrap().machine.cpus), cpus);
        } else {
            prop_assert_eq!(messages(&text), format!("{cpus} is out of range: from 1 to 255 is allowed"));
        }
    }

    #[test]
    fn s9_names_that_are_paths_or_options_are_refused(name in r"[-./][a-z0-9./-]{0,20}|[a-z]{65,300}|[a-z]+/[a-z.]*") {
        let text = spec("").replace("'web'", &format!("'{name}'"));
        prop_assert!(messages(&text).contains("does not match [a-z0-9]"));
    }
}
