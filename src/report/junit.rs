//! Reports in `JUnit` XML, as CI servers read it: a test suite for each format of the image that was booted.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite, XmlString};

use crate::digest::Sha256Digest;
use crate::test::Outcome;

use super::escape::escape;
use super::quote::quote_line;

/// Returns the report of an image's tests. It may be shown by a pipeline, so that foreign text is escaped as on a terminal.
///
/// # Panics
/// Never: writing to memory does not fail.
pub fn report(image: &str, disk_digests: &[(&'static str, Sha256Digest)], outcomes: &[Outcome]) -> String {
    let mut report = Report::new("kiln");
    for outcomes in outcomes.chunk_by(|one, other| one.format == other.format) {
        let format = outcomes[0].format;
        let mut suite = TestSuite::new(format!("{image} ({format})"));
        suite.add_property(Property::new("image", image));
        for (name, digest) in disk_digests {
            suite.add_property(Property::new(*name, digest.to_string().as_str()));
        }
        suite.add_test_cases(outcomes.iter().map(|outcome| case(image, outcome)));
        report.add_test_suite(suite);
    }
    report.to_string().expect("XML in memory")
}

fn case(image: &str, outcome: &Outcome) -> TestCase {
    let status = if outcome.ok {
        TestCaseStatus::success()
    } else {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status.set_message(XmlString::new(escape(&outcome.found)));
        status
    };
    let mut case = TestCase::new(escape(&outcome.test.name).as_ref(), status);
    case.set_classname(image);
    case.set_time(Duration::try_from_secs_f64(outcome.seconds).unwrap_or_default());
    if !outcome.tail.is_empty() {
        let lines: Vec<_> = outcome.tail.iter().map(|line| quote_line(line)).collect();
        case.set_system_out(lines.join("\n"));
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::outcome;

    #[test]
    fn a_report_says_what_failed_and_why() {
        let outcomes = [outcome("port 80", true, "is listened on"), outcome("<a & b>", false, "is \x01 \"dead\"")];
        let text = report("web@1", &[("disk_sha256", Sha256Digest::new([0xf0; 32]))], &outcomes);
        for part in [
            "<testsuites name=\"kiln\" tests=\"2\" skipped=\"0\" failures=\"1\" errors=\"0\">",
            "<testsuite name=\"web@1 (qcow2)\" tests=\"2\"",
            "<property name=\"disk_sha256\" value=\"f0f0f0",
            "<testcase name=\"port 80\" classname=\"web@1\" time=\"1.500\"",
            "<testcase name=\"&lt;a &amp; b&gt;\" classname=\"web@1\"",
            "message=\"is \\x01 &quot;dead&quot;\"",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}
