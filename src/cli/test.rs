//! `kiln test SPEC|IMAGE`: runs the tests of an image in the store, without building it again.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use regex_lite::Regex;
use serde_json::json;

use crate::error::{Failure, Fault, FileError, Kind};
use crate::report::{github, junit};
use crate::specfile::{Spec, Test};
use crate::store::{Artifact, ImageId, Reference, Store, StoreError};
use crate::test::retest::{recorded, retest};
use crate::test::{Coverage, Outcome};

use super::CommandContext;
use super::args::SpecArgs;
use super::list::align;
use super::{print, print_json, specs, target};

/// Arguments of `kiln test`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  kiln test images/nginx --filter 'port|unit'\n  kiln test web@1.4.0 --junit report.xml\n\n\
        For a spec, its current tests are run on its image in the store, without a rebuild. For an image, the \
        tests of the spec that it was built from are run."
)]
pub struct TestArgs {
    /// Spec file, folder with a kiln.toml, or image: `name`, `name@version` or `name@tag` [default: the current folder, if it
    /// has a kiln.toml]
    #[arg(value_name = "SPEC|IMAGE")]
    pub target: Option<String>,
    /// Version of the spec's image [default: the spec's]
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Options for reading specs.
    #[command(flatten)]
    pub reading: SpecArgs,
    /// Run all tests on every image file, instead of testing the first one and only booting the others
    #[arg(long)]
    pub all_formats: bool,
    /// Run only the tests whose name matches this regular expression
    #[arg(long, value_name = "RE")]
    pub filter: Option<Regex>,
    /// Also write a `JUnit` XML report to this file
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// An error of `kiln test`.
#[derive(Debug, thiserror::Error)]
pub enum TestCommandError {
    /// No test matches the filter.
    #[error("no test has a name that matches `{filter}`")]
    NothingLeft {
        /// The regular expression.
        filter: String,
        /// Names of the image's tests.
        names: Vec<String>,
    },
    /// The image of the spec is not in the store.
    #[error("{id}, the image of {spec}, is not in the store")]
    NotBuilt {
        /// The image, as `name@version`.
        id: String,
        /// The spec, as it was named.
        spec: String,
    },
}

impl Fault for TestCommandError {
    fn kind(&self) -> Kind {
        match self {
            TestCommandError::NothingLeft { .. } => Kind::Usage,
            TestCommandError::NotBuilt { .. } => Kind::Output,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            TestCommandError::NothingLeft { names, .. } => vec![format!("the tests are `{}`", names.join("`, `"))],
            TestCommandError::NotBuilt { spec, .. } => vec![format!("build it first: `kiln build {spec}`")],
        }
    }
}

/// Runs the tests, writes the table or the JSON, and the requested report.
///
/// # Errors
/// When a test fails, after all that; when the image cannot be tested.
pub(super) async fn run(args: TestArgs, context: CommandContext<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    let store = context.folders.store()?;
    let cache = context.folders.cache()?;
    let events = context.events();
    let target = match &args.target {
        Some(target) => target.clone(),
        None => specs::here()?.display().to_string(),
    };
    target::tell_which_is_meant(&target, &store, &events);
    let (artifact, tests, source) = find(&target, &args, &store)?;
    let tests = filtered(tests, args.filter.as_ref())?;
    let reach = args.reading.reach().network;
    let coverage = if args.all_formats { Coverage::All } else { Coverage::First };
    let tested = retest(&artifact, (&tests, coverage), &source, &cache, reach, &events, context.cancel).await?;
    let id = artifact.id().to_string();
    let outcomes = &tested.outcomes;
    if let Some(path) = &args.junit {
        let digests: Vec<_> = artifact.manifest().disk_digests().collect();
        let written = std::fs::write(path, junit::report(&id, &digests, outcomes));
        written.map_err(FileError::of(Kind::Host, "write the report", path))?;
    }
    if let Some(actions) = github::GithubSink::here() {
        actions.tell(&id, outcomes);
    }
    if args.json {
        print_json(out, &as_json(&id, outcomes))?;
    } else {
        print(out, &table(outcomes))?;
    }
    tested.failed.map_or(Ok(()), Err)
}

/// Finds the image, its tests, and the file that defines them.
fn find(target: &str, args: &TestArgs, store: &Store) -> Result<(Artifact, Vec<Test>, PathBuf), Failure> {
    if target::is_spec(target) {
        let overrides = args.reading.overrides(args.version.as_ref());
        let spec = Spec::load(Path::new(target), args.reading.reach().files, &overrides)?;
        let id = ImageId::new(&*spec.image.name, &*spec.image.version)?;
        let artifact = store.artifact(&Reference::from(&id)).map_err(|error| match error {
            StoreError::NoImage { .. } | StoreError::NoVersion { .. } => not_built(&id, target),
            other => other.into(),
        })?;
        return Ok((artifact, spec.tests, spec.path));
    }
    let artifact = store.artifact(&target.parse()?)?;
    let tests = recorded(&artifact)?;
    let source = artifact.folder().join("manifest.json");
    Ok((artifact, tests, source))
}

fn not_built(id: &ImageId, spec: &str) -> Failure {
    TestCommandError::NotBuilt { id: id.to_string(), spec: spec.to_owned() }.into()
}

fn filtered(tests: Vec<Test>, filter: Option<&Regex>) -> Result<Vec<Test>, TestCommandError> {
    let Some(filter) = filter else { return Ok(tests) };
    let names = tests.iter().map(|test| test.name.clone()).collect();
    let left: Vec<Test> = tests.into_iter().filter(|test| filter.is_match(&test.name)).collect();
    if left.is_empty() { Err(TestCommandError::NothingLeft { filter: filter.to_string(), names }) } else { Ok(left) }
}

fn table(outcomes: &[Outcome]) -> String {
    let rows = outcomes.iter().map(|outcome| {
        let Outcome { test, format, ok, found, seconds, .. } = outcome;
        let verdict = if *ok { "ok" } else { "FAILED" };
        [verdict.to_owned(), test.name.clone(), (*format).to_owned(), format!("{seconds:.1}s"), found.clone()]
    });
    let rows: Vec<_> = rows.collect();
    let passed = outcomes.iter().filter(|outcome| outcome.ok).count();
    format!("{}{passed} of {} tests passed\n", align(&rows), outcomes.len())
}

fn as_json(image: &str, outcomes: &[Outcome]) -> String {
    let tests = outcomes.iter().map(|outcome| {
        let Outcome { test, format, ok, found, tail, seconds, kept, .. } = outcome;
        json!({
            "name": test.name, "format": format, "ok": ok, "found": found, "seconds": seconds, "output": tail,
            "definition": test, "kept": kept.is_some(),
        })
    });
    format!("{:#}\n", json!({ "image": image, "tests": tests.collect::<Vec<_>>() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::outcome;

    #[test]
    fn a_table_has_a_row_for_each_test_and_a_sum() {
        let outcomes = [outcome("port 80", true, "is listened on"), outcome("a\rb", false, "is\x1b[2J (dead)")];
        let expected = "ok      port 80  qcow2  1.5s  is listened on\n\
                        FAILED  a\\rb     qcow2  1.5s  is\\x1b[2J (dead)\n1 of 2 tests passed\n";
        assert_eq!(table(&outcomes), expected);
    }

    #[test]
    fn a_filter_that_leaves_nothing_names_what_there_is() {
        let tests = || vec![outcome("one", true, "").test, outcome("two", true, "").test];
        let filter = |text| Regex::new(text).unwrap();
        assert_eq!(filtered(tests(), Some(&filter("^t"))).unwrap().len(), 1);
        let error = filtered(tests(), Some(&filter("x"))).unwrap_err();
        assert_eq!((error.kind().exit_code(), error.hints()), (2, vec!["the tests are `one`, `two`".to_owned()]));
    }
}
