//! The record of a locked network: what each request of the steps was answered with, so that later builds get the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use ureq::http::Uri;

use crate::digest::Sha256Digest;

/// Length limit of a recorded URL, and of the value of a header, bytes.
const LONGEST: usize = 8 << 10;
/// The statuses that end a request.
const STATUSES: std::ops::RangeInclusive<u16> = 200..=599;

/// A request of the guest, as far as its answer depends on it. Credentials are not part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordedRequest {
    /// The URL, without credentials and fragment.
    pub url: String,
    /// The kind of request.
    #[serde(default, skip_serializing_if = "RequestKind::is_get")]
    pub kind: RequestKind,
    /// The value of `Accept`, if it is not `*/*`: servers choose between forms of a resource by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<String>,
    /// The value of `Git-Protocol`, by which git servers choose the version of the answer.
    #[serde(default, rename = "git-protocol", skip_serializing_if = "Option::is_none")]
    pub git_protocol: Option<String>,
}

/// The kinds of requests whose answers can be given again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestKind {
    /// A `GET`.
    #[default]
    Get,
    /// A `HEAD`, whose answer has no body.
    Head,
    /// A `POST` by which git fetches objects, with the SHA-256 digest of its body as it was sent.
    UploadPack(Sha256Digest),
}

impl RequestKind {
    /// Returns whether this is a `GET`.
    #[must_use]
    pub fn is_get(&self) -> bool {
        *self == Self::Get
    }
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkRecord {
    /// The time of the first recording. Steps of later builds see it as the time of their guest, in which signed indices have
    /// not expired.
    pub recorded: Timestamp,
    /// The times of the steps that were recorded at another time, by their names; `None` for one that sees the present,
    /// because answers of it were dropped.
    pub step_times: BTreeMap<String, Option<Timestamp>>,
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

/// The answers that the steps of a build got over the network: only those of steps that ran.
pub type StepAnswers = BTreeMap<String, Vec<RecordedAnswer>>;

impl NetworkRecord {
    /// Returns the record after a build of these steps. Answers stay attributed to the steps that did not run; the ones that
    /// ran have exactly the answers that they got. Answers of no step are dropped.
    ///
    /// A step keeps its time while it has answers, also if it asks for more, since it saw that time when it did. A step without
    /// answers saw the present.
    #[must_use]
    pub fn after_build(before: Option<&Self>, steps: &BTreeSet<String>, ran: &StepAnswers, now: Timestamp) -> Self {
        let before = before.filter(|record| !record.answers.is_empty());
        let recorded = before.map_or(now, |record| record.recorded);
        let mut answers: BTreeMap<RecordedRequest, RecordedAnswer> = BTreeMap::new();
        for answer in before.iter().flat_map(|record| &record.answers) {
            let attributed = answer.steps.iter().filter(|step| steps.contains(*step) && !ran.contains_key(*step));
            let kept = RecordedAnswer { steps: attributed.cloned().collect(), ..answer.clone() };
            answers.insert(kept.request.clone(), kept);
        }
        for (step, got) in ran {
            for answer in got {
                attribute(&mut answers, answer, step);
            }
        }
        answers.retain(|_, answer| !answer.steps.is_empty());
        let attributed: BTreeSet<&String> = answers.values().flat_map(|answer| &answer.steps).collect();
        let time_of = |step: &String| {
            let seen = before.and_then(|record| record.time_of_step(step));
            seen.or(ran.contains_key(step).then_some(now))
        };
        let step_times = attributed.into_iter().map(|step| (step.clone(), time_of(step)));
        let step_times = step_times.filter(|(_, time)| *time != Some(recorded)).collect();
        Self { recorded, step_times, answers: answers.into_values().collect() }
    }

    /// Returns the time that a step saw when it was recorded; `None` if it sees the present.
    #[must_use]
    pub fn time_of_step(&self, step: &str) -> Option<Timestamp> {
        self.of_step(step).next()?;
        self.step_times.get(step).copied().unwrap_or(Some(self.recorded))
    }

    /// Returns the answers that this record lacks: other requests, or other answers to them.
    #[must_use]
    pub fn lacks<'a>(&self, other: &'a Self) -> Vec<&'a RecordedAnswer> {
        let known: HashMap<_, _> = self.answers.iter().map(|answer| (&answer.request, answer)).collect();
        let answers = other.answers.iter();
        answers.filter(|answer| known.get(&answer.request).is_none_or(|known| !known.is_same(answer))).collect()
    }

    /// Returns the answers that a step got.
    pub fn of_step(&self, step: &str) -> impl Iterator<Item = &RecordedAnswer> {
        self.answers.iter().filter(move |answer| answer.steps.contains(step))
    }

    /// Returns a digest of everything that the step with this name was answered with.
    #[must_use]
    pub fn digest_of_step(&self, step: &str) -> Sha256Digest {
        digest_of(self.of_step(step))
    }
}

impl RecordedRequest {
    /// Checks that the request can be recorded: that it is one that a guest can make, and has no user name in its URL.
    ///
    /// # Errors
    /// The first reason, as the rest of a sentence about the request.
    pub fn check(&self) -> Result<(), &'static str> {
        let Self { url, kind: _, accept, git_protocol } = self;
        check_url(url)?;
        if !accept.iter().all(|accept| is_header_value(accept)) {
            return Err("has an `accept` that is no value of a header");
        }
        if !git_protocol.iter().all(|protocol| is_header_value(protocol)) {
            return Err("has a `git-protocol` that is no value of a header");
        }
        Ok(())
    }

    /// Returns the headers by which servers choose the answer, by their names in lower case.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let Self { url: _, kind: _, accept, git_protocol } = self;
        let headers = [("accept", accept), ("git-protocol", git_protocol)];
        headers.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    /// Returns the host of the URL, without a port.
    #[must_use]
    pub fn host(&self) -> String {
        let uri: Option<Uri> = self.url.parse().ok();
        uri.as_ref().and_then(Uri::host).unwrap_or_default().to_owned()
    }
}

impl RecordedAnswer {
    /// Checks that the answer can be recorded: that it is safe to send to a guest, and has no credentials in its URL.
    ///
    /// # Errors
    /// The first reason, as the rest of a sentence about the answer.
    pub fn check(&self) -> Result<(), String> {
        let Self { request, status, sha256: _, bytes, headers, steps } = self;
        request.check()?;
        if !STATUSES.contains(status) {
            return Err(format!("has the status {status}"));
        }
        if i64::try_from(*bytes).is_err() {
            return Err(format!("has {bytes} bytes"));
        }
        if steps.iter().any(|step| step.contains(char::is_control)) {
            return Err("has control characters in the name of a step".into());
        }
        check_headers(headers)
    }

    /// Returns whether another answer has the same request and content, whichever steps got it.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let steps = self.steps.clone();
        *self == Self { steps, ..other.clone() }
    }
}

/// Attributes an answer to a step. It takes the place of another answer to the same request, which no longer is what a later
/// step would get.
fn attribute(answers: &mut BTreeMap<RecordedRequest, RecordedAnswer>, answer: &RecordedAnswer, step: &str) {
    let known = answers.get(&answer.request).filter(|known| known.is_same(answer));
    let mut steps = known.map(|known| known.steps.clone()).unwrap_or_default();
    steps.insert(step.to_owned());
    answers.insert(answer.request.clone(), RecordedAnswer { steps, ..answer.clone() });
}

/// Returns a digest of answers, which does not depend on their order, nor on which steps got them.
pub fn digest_of<'a>(answers: impl IntoIterator<Item = &'a RecordedAnswer>) -> Sha256Digest {
    let lines: BTreeSet<String> = answers
        .into_iter()
        .map(|RecordedAnswer { request, status, sha256, bytes, headers, steps: _ }| {
            json!([request, status, sha256, bytes, headers]).to_string()
        })
        .collect();
    Sha256Digest::of(json!(lines).to_string())
}

fn check_headers(headers: &BTreeMap<String, String>) -> Result<(), String> {
    match headers.iter().find(|(name, value)| !is_header_name(name) || !is_header_value(value)) {
        Some((name, _)) => Err(format!("has the header {name:?}, which is not valid in HTTP")),
        None => Ok(()),
    }
}

/// Checks that a URL is one that a guest can ask for, and holds no credentials.
fn check_url(url: &str) -> Result<(), &'static str> {
    let is_visible = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
    let uri: Uri = url.parse().map_err(|_| "has no valid URL")?;
    if url.len() > LONGEST || !url.bytes().all(is_visible) || uri.host().is_none_or(str::is_empty) {
        return Err("has no valid URL");
    }
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("has a URL that is neither http nor https");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("has a user name or password in its URL");
    }
    Ok(())
}

/// Returns whether this is the name of a header (RFC 9110, section 5.6.2) in lower case.
fn is_header_name(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.len() <= LONGEST && name.bytes().all(is_token)
}

/// Returns whether this can be the value of a header: a line break would begin another header.
fn is_header_value(value: &str) -> bool {
    value.len() <= LONGEST && value.chars().all(|c| c == '\t' || !c.is_control())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the answer to a URL that these steps got.
    pub(crate) fn answer(url: &str, steps: &[&str]) -> RecordedAnswer {
        RecordedAnswer {
            request: RecordedRequest { url: url.into(), ..RecordedRequest::default() },
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
        let record = NetworkRecord { answers: vec![a.clone(), b.clone()], ..NetworkRecord::default() };
        assert_eq!(record.digest_of_step("one"), digest_of([&b, &a]));
        assert_eq!(record.digest_of_step("two"), digest_of([&b]));
        assert_eq!(record.digest_of_step("three"), digest_of([]));
        let changed = RecordedAnswer { status: 404, ..b.clone() };
        assert_ne!(digest_of([&changed]), digest_of([&b]));
    }

    fn names(steps: &[&str]) -> BTreeSet<String> {
        steps.iter().map(|step| (*step).to_owned()).collect()
    }

    /// Returns the URLs of a record with their steps.
    fn attributions(record: &NetworkRecord) -> Vec<(String, Vec<String>)> {
        let answers = record.answers.iter();
        answers.map(|answer| (answer.request.url.clone(), answer.steps.iter().cloned().collect())).collect()
    }

    fn attributed(url: &str, steps: &[&str]) -> (String, Vec<String>) {
        (url.to_owned(), steps.iter().map(|step| (*step).to_owned()).collect())
    }

    #[test]
    fn a_step_that_ran_has_the_answers_that_it_got_and_others_keep_theirs() {
        let before = NetworkRecord {
            recorded: Timestamp::UNIX_EPOCH,
            step_times: BTreeMap::new(),
            answers: vec![
                answer("http://a/1", &["one"]),
                answer("http://a/2", &["one", "two"]),
                answer("http://a/3", &["two"]),
                answer("http://a/4", &["gone"]),
                answer("http://a/5", &["gone", "one"]),
            ],
        };
        let ran = StepAnswers::from([("two".to_owned(), vec![answer("http://b/", &[]), answer("http://a/1", &[])])]);
        let now = Timestamp::from_second(7).unwrap();
        let after = NetworkRecord::after_build(Some(&before), &names(&["one", "two"]), &ran, now);
        assert_eq!(
            attributions(&after),
            [
                attributed("http://a/1", &["one", "two"]),
                attributed("http://a/2", &["one"]),
                attributed("http://a/5", &["one"]),
                attributed("http://b/", &["two"]),
            ]
        );
        assert_eq!(after.recorded, before.recorded);
        let missing: Vec<_> = before.lacks(&after).into_iter().map(|answer| answer.request.url.as_str()).collect();
        assert_eq!(missing, ["http://b/"]);
        let same = NetworkRecord::after_build(Some(&after), &names(&["one", "two"]), &StepAnswers::new(), now);
        assert_eq!(same, after);
    }

    #[test]
    fn another_answer_to_a_request_is_that_of_the_steps_that_got_it() {
        let answers = vec![answer("http://a/1", &["one", "two"])];
        let before = NetworkRecord { answers, ..NetworkRecord::default() };
        let changed = RecordedAnswer { status: 404, ..answer("http://a/1", &[]) };
        let ran = StepAnswers::from([("two".to_owned(), vec![changed.clone()])]);
        let after = NetworkRecord::after_build(Some(&before), &names(&["one", "two"]), &ran, Timestamp::UNIX_EPOCH);
        assert_eq!(after.answers, [RecordedAnswer { steps: names(&["two"]), ..changed }]);
        assert_eq!(before.lacks(&after).len(), 1);
    }

    #[test]
    fn the_first_record_has_the_time_of_its_build() {
        let now = Timestamp::from_second(7).unwrap();
        let ran = StepAnswers::from([("one".to_owned(), vec![answer("http://a/1", &[])])]);
        for before in [None, Some(&NetworkRecord::default())] {
            let record = NetworkRecord::after_build(before, &names(&["one"]), &ran, now);
            assert_eq!((record.recorded, record.step_times.len()), (now, 0));
            assert_eq!((record.time_of_step("one"), record.time_of_step("two")), (Some(now), None));
        }
    }

    #[test]
    fn n31_a_step_keeps_the_time_that_it_saw_and_a_new_one_has_its_own() {
        let steps = names(&["old", "edited", "new", "idle"]);
        let first = StepAnswers::from([
            ("old".to_owned(), vec![answer("http://a/index", &[])]),
            ("edited".to_owned(), vec![answer("http://a/1", &[])]),
        ]);
        let [early, late, last] = [1, 2, 3].map(|second| Timestamp::from_second(second).unwrap());
        let before = NetworkRecord::after_build(None, &steps, &first, early);
        let second = StepAnswers::from([
            ("edited".to_owned(), vec![answer("http://a/1", &[]), answer("http://a/2", &[])]),
            ("new".to_owned(), vec![answer("http://a/index", &[]), answer("http://b/index", &[])]),
            ("idle".to_owned(), Vec::new()),
        ]);
        let after = NetworkRecord::after_build(Some(&before), &steps, &second, late);
        assert_eq!((after.recorded, &after.step_times), (early, &[("new".to_owned(), Some(late))].into()));
        let times = ["old", "edited", "new", "idle"].map(|step| after.time_of_step(step));
        assert_eq!(times, [Some(early), Some(early), Some(late), None]);
        assert_eq!(NetworkRecord::after_build(Some(&after), &steps, &second, last), after);
        let without = NetworkRecord::after_build(Some(&after), &names(&["old", "new"]), &StepAnswers::new(), last);
        assert_eq!(without.time_of_step("new"), Some(late));
        let gone = NetworkRecord::after_build(Some(&after), &names(&["old"]), &StepAnswers::new(), last);
        assert!(gone.step_times.is_empty());
    }

    #[test]
    fn n31_a_step_whose_answers_were_dropped_sees_the_present_until_it_has_run() {
        let before = NetworkRecord {
            recorded: Timestamp::UNIX_EPOCH,
            step_times: [("one".to_owned(), None)].into(),
            answers: vec![answer("http://a/1", &["one", "two"])],
        };
        assert_eq!((before.time_of_step("one"), before.time_of_step("two")), (None, Some(Timestamp::UNIX_EPOCH)));
        let now = Timestamp::from_second(7).unwrap();
        let failed = NetworkRecord::after_build(Some(&before), &names(&["one", "two"]), &StepAnswers::new(), now);
        assert_eq!(failed, before);
        let ran = StepAnswers::from([("one".to_owned(), vec![answer("http://a/1", &[])])]);
        let after = NetworkRecord::after_build(Some(&before), &names(&["one", "two"]), &ran, now);
        assert_eq!((after.time_of_step("one"), after.time_of_step("two")), (Some(now), before.time_of_step("two")));
    }
}
