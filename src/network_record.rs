//! The record of a locked network: what each request of the steps was answered with, so that later builds get the same.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::digest::Sha256Digest;

/// A request of the guest, as far as its answer depends on it. Credentials are not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordedRequest {
    /// The URL, without credentials and fragment.
    pub url: String,
    /// The request is a `HEAD`, and its answer has no body.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub head: bool,
    /// The value of `Accept`, if it is not `*/*`: servers choose between forms of a resource by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<String>,
}

/// The recorded answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedAnswer {
    /// The request.
    #[serde(flatten)]
    pub request: RecordedRequest,
    /// The HTTP status.
    #[serde(default = "ok", skip_serializing_if = "is_ok")]
    pub status: u16,
    /// The SHA-256 digest of the body, as it was sent.
    pub sha256: Sha256Digest,
    /// The size of the body, bytes.
    pub bytes: u64,
    /// The headers that clients act on, by their names in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The names of the steps that made the request.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub steps: BTreeSet<String>,
}

/// Everything that the steps of one spec were answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRecord {
    /// The time of the recording. Steps of later builds see it as the time of their guest, in which signed indices have not
    /// expired.
    pub recorded: Timestamp,
    /// The answers, sorted by their requests.
    pub answers: Vec<RecordedAnswer>,
}

fn ok() -> u16 {
    200
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_ok(status: &u16) -> bool {
    *status == ok()
}

impl NetworkRecord {
    /// Returns a digest of everything that the step with this name was answered with.
    #[must_use]
    pub fn digest_of_step(&self, step: &str) -> Sha256Digest {
        let answers = self.answers.iter().filter(|answer| answer.steps.contains(step));
        digest_of(answers)
    }
}

/// Returns a digest of answers, which does not depend on their order, nor on which steps got them.
pub fn digest_of<'a>(answers: impl IntoIterator<Item = &'a RecordedAnswer>) -> Sha256Digest {
    let lines: BTreeSet<String> = answers
        .into_iter()
        .map(|RecordedAnswer { request, status, sha256, bytes, headers, steps: _ }| {
            json!([request.url, request.head, request.accept, status, sha256, bytes, headers]).to_string()
        })
        .collect();
    Sha256Digest::of(json!(lines).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(url: &str, steps: &[&str]) -> RecordedAnswer {
        RecordedAnswer {
            request: RecordedRequest { url: url.into(), head: false, accept: None },
            status: 200,
            sha256: Sha256Digest::of(url),
            bytes: 1,
            headers: BTreeMap::new(),
            steps: steps.iter().map(|step| (*step).to_owned()).collect(),
        }
    }

    #[test]
    fn the_digest_of_a_step_is_that_of_its_answers_in_any_order() {
        let (a, b) = (answer("http://a/1", &["one"]), answer("http://b/1", &["one", "two"]));
        let record = NetworkRecord { recorded: Timestamp::UNIX_EPOCH, answers: vec![a.clone(), b.clone()] };
        assert_eq!(record.digest_of_step("one"), digest_of([&b, &a]));
        assert_eq!(record.digest_of_step("two"), digest_of([&b]));
        assert_eq!(record.digest_of_step("three"), digest_of([]));
        let changed = RecordedAnswer { status: 404, ..b.clone() };
        assert_ne!(digest_of([&changed]), digest_of([&b]));
    }
}
