//! Validation of tests: one check each, and unique names.

use super::arguments;
use super::complaint::SpecError;
use super::document::SpannedValue;
use super::keys::{self, Assertion};
use super::names::{explicit_names, run_name, shorten, unique};
use super::reader::SpecReader;
use super::table::ChosenVariant;
use super::{Check, Command, FileCheck, Test};
use crate::size::format_duration;

pub(super) fn tests(
    raw: Vec<SpannedValue<ChosenVariant<keys::Test, Assertion>>>,
    reader: &mut SpecReader,
) -> Vec<Test> {
    let mut taken = explicit_names(raw.iter().filter_map(|test| test.value.common.name.as_ref()), reader);
    let mut tests = Vec::new();
    for SpannedValue { value: ChosenVariant { common, variant }, span } in raw {
        let Some(check) = variant.and_then(|assertion| check(assertion, reader)) else { continue };
        let name = common.name.map_or_else(|| unique(&default_name(&check), &mut taken), |name| name.value);
        let keys::Test { reboot, needs_fresh_boot, retry_for, timeout, .. } = common;
        let line = reader.document.line(span.start);
        tests.push(Test { name, check, reboot, needs_fresh_boot, retry_for, timeout, line });
    }
    tests
}

fn check(assertion: Assertion, reader: &mut SpecReader) -> Option<Check> {
    Some(match assertion {
        Assertion::CommandSucceeds(raw) => Check::Run(check_command(raw.run?, reader)),
        Assertion::CommandEnds(raw) => Check::Command {
            run: check_command(raw.command?, reader),
            exit: raw.exit,
            stdout_matches: raw.stdout_matches.map(|regex| regex.value),
        },
        Assertion::UnitRuns(raw) => Check::Unit(raw.unit?.value),
        Assertion::PortListens(raw) => Check::Port(raw.port?.value),
        Assertion::FileThere(raw) => Check::File(file(raw, reader)?),
        Assertion::PackageInstalled(raw) => {
            Check::Package { name: raw.package?.value, version: raw.version.map(|version| version.value) }
        }
        Assertion::BootsWithin(raw) => Check::BootsWithin(raw.boots_within?.value),
        Assertion::NoUnitFailed(raw) => {
            says_something(&raw.no_failed_units?, "no-failed-units", reader).then_some(Check::NoFailedUnits)?
        }
    })
}

/// Reports a command of a test that Linux would not start.
fn check_command(SpannedValue { value, span }: SpannedValue<Command>, reader: &mut SpecReader) -> Command {
    let sum = arguments::weigh(arguments::words(&value).into_iter());
    arguments::check_sum(sum, &span, reader);
    value
}

fn file(raw: keys::FileThere, reader: &mut SpecReader) -> Option<FileCheck> {
    if let Some(absent) = &raw.absent
        && says_something(absent, "absent", reader)
    {
        let spans = [
            ("mode", raw.mode.as_ref().map(|mode| &mode.span)),
            ("owner", raw.owner.as_ref().map(|owner| &owner.span)),
            ("contains", raw.contains.as_ref().map(|text| &text.span)),
            ("sha256", raw.sha256.as_ref().map(|digest| &digest.span)),
        ];
        for (key, span) in spans.into_iter().filter_map(|(key, span)| Some((key, span?))) {
            let error = SpecError::new(span.clone(), format!("`{key}` of a file that must not be there"));
            reader.report(error.related(absent.span.clone(), "so it says here"));
        }
    }
    Some(FileCheck {
        path: raw.file?.value,
        absent: raw.absent.is_some(),
        mode: raw.mode.map(|mode| mode.value),
        owner: raw.owner.map(|owner| owner.value),
        contains: raw.contains.map(|text| text.value),
        sha256: raw.sha256.map(|digest| digest.value),
    })
}

/// Reports a key that may only be `true`, and is `false`.
fn says_something(wanted: &SpannedValue<bool>, key: &str, reader: &mut SpecReader) -> bool {
    if !wanted.value {
        let error = SpecError::new(wanted.span.clone(), format!("`{key} = false` does nothing"));
        reader.report(error.help(format!("remove it, or write `{key} = true`")));
    }
    wanted.value
}

fn default_name(check: &Check) -> String {
    shorten(&match check {
        Check::Run(command) | Check::Command { run: command, .. } => return run_name(command),
        Check::Unit(unit) => format!("unit {unit}"),
        Check::Port(port) => format!("port {port}"),
        Check::File(file) => format!("{}file {}", if file.absent { "no " } else { "" }, file.path),
        Check::Package { name, .. } => format!("package {name}"),
        Check::BootsWithin(limit) => format!("boots within {}", format_duration(*limit)),
        Check::NoFailedUnits => "no failed units".to_owned(),
    })
}
