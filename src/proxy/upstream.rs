//! Asks servers whether recorded indices have changed since they were recorded.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use crate::download::{
    AnswerHead, DownloadCache, DownloadError, DownloadWatch, GuestClient, GuestMethod, GuestRequest,
};
use crate::error::{Fault, Kind};
use crate::network_record::RecordedAnswer;
use crate::specfile::HostPattern;

use super::ProxyError;
use super::policy::HostPolicy;
use super::recorder::request_of;
use super::redaction::is_redacted;

/// The headers by which a client recognises a file that it has.
const VALIDATORS: [&str; 2] = ["etag", "last-modified"];
/// The ends of content types of indices.
const INDEX_TYPES: [&str; 3] = ["json", "html", "xml"];

/// What a server says about a recorded answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// The index is as it was recorded.
    Unchanged,
    /// The index has changed, or is gone.
    Changed,
    /// The server has an error, or sends nothing to compare.
    Unknown,
    /// The server was not asked: the answer is not that of an index, or its host is not allowed or did not answer before.
    NotAsked,
}

/// Asks the servers of one spec's downloads. A host that does not answer is asked once.
pub struct UpstreamCheck {
    cache: DownloadCache,
    client: GuestClient,
    policy: HostPolicy,
    cancel: CancellationToken,
    silent_hosts: BTreeSet<String>,
}

impl UpstreamCheck {
    /// Creates a check that asks only the hosts that a spec allows, and none if `cache` is offline.
    ///
    /// # Errors
    /// When the host's own proxy has an invalid name.
    pub fn new(cache: DownloadCache, allow: Vec<HostPattern>, cancel: CancellationToken) -> Result<Self, ProxyError> {
        let policy = HostPolicy::new(allow);
        Ok(Self { cache, client: policy.client()?, policy, cancel, silent_hosts: BTreeSet::new() })
    }

    /// Asks the server of an answer whether it has changed, if it is that of an index. Blocks the calling thread.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn ask(&mut self, recorded: &RecordedAnswer) -> Result<IndexState, DownloadError> {
        let Some(request) = request_of(&recorded.request).filter(|_| is_index(recorded)) else {
            return Ok(IndexState::NotAsked);
        };
        let host = request.url.host();
        if !self.policy.allows(&host) || self.silent_hosts.contains(&host) {
            return Ok(IndexState::NotAsked);
        }
        let request = GuestRequest { method: GuestMethod::Head, ..request };
        let (mut progress, mut notice) = (|_| {}, |_| {});
        let mut watch = DownloadWatch::new(&self.cancel, &mut progress, &mut notice);
        match self.cache.ask((&self.client, &request), &mut watch) {
            Ok(head) => Ok(compare(recorded, &head)),
            Err(error) if error.kind() == Kind::Interrupted => Err(error),
            Err(error) => {
                self.silent_hosts.insert(host);
                Err(error)
            }
        }
    }
}

/// Returns whether an answer is an index: a file that can have another content under the same URL. Its name has no digit, as
/// `InRelease`, `Packages.xz` and the pages of package indices, or its type is that of data about others. The names of
/// packages and files with a digest have digits.
fn is_index(answer: &RecordedAnswer) -> bool {
    let RecordedAnswer { request, status, headers, .. } = answer;
    let path = request.url.split('?').next().unwrap_or_default();
    let has_version = path.rsplit('/').next().unwrap_or_default().bytes().any(|byte| byte.is_ascii_digit());
    let content_type = headers.get("content-type").map(String::as_str).unwrap_or_default();
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let is_data = INDEX_TYPES.iter().any(|end| content_type.ends_with(end));
    request.kind.is_get()
        && *status == 200
        && !is_redacted(&request.url)
        && VALIDATORS.iter().any(|name| headers.contains_key(*name))
        && (!has_version || is_data)
}

/// Compares the head of an answer with the recorded one: by the first validator that both have.
fn compare(recorded: &RecordedAnswer, now: &AnswerHead) -> IndexState {
    let both = VALIDATORS.iter().find_map(|name| Some((recorded.headers.get(*name)?, now.headers.get(*name)?)));
    match (now.status, both) {
        (200, Some((before, after))) if before == after => IndexState::Unchanged,
        (200, Some(_)) | (301..=308 | 404 | 410, _) => IndexState::Changed,
        _ => IndexState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network_record::tests::answer;

    fn recorded(url: &str, headers: &[(&str, &str)]) -> RecordedAnswer {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        RecordedAnswer { headers: headers.collect(), ..answer(url, &[]) }
    }

    #[test]
    fn an_index_can_have_another_content_under_its_url() {
        let tag = ("etag", "\"1\"");
        for (path, content_type, expected) in [
            ("dists/bookworm/InRelease", "", true),
            ("dists/bookworm/main/binary-amd64/Packages.xz", "application/x-xz", true),
            ("dists/bookworm/main/binary-amd64/by-hash/SHA256/4bc71b1c", "application/octet-stream", false),
            ("pool/main/n/nginx/nginx_1.22.1-9_amd64.deb", "application/vnd.debian.binary-package", false),
            ("simple/boto3/", "text/html; charset=utf-8", true),
            ("base64-js", "application/vnd.npm.install-v1+json", true),
            ("se/rd/serde?v=2", "text/plain", true),
            ("get?token=-", "", false),
        ] {
            let answer = recorded(&format!("http://a.example/{path}"), &[tag, ("content-type", content_type)]);
            assert_eq!(is_index(&answer), expected, "{path}");
            assert!(!is_index(&RecordedAnswer { status: 404, ..answer }), "{path}");
        }
        assert!(!is_index(&recorded("http://a.example/InRelease", &[])), "there is nothing to compare");
    }

    #[test]
    fn the_first_validator_that_both_answers_have_decides() {
        let both = recorded("http://a/b", &[("etag", "\"1\""), ("last-modified", "Mon")]);
        let now = |status, headers: &[(&str, &str)]| {
            let RecordedAnswer { headers, .. } = recorded("http://a/b", headers);
            compare(&both, &AnswerHead { status, length: None, headers })
        };
        for (status, headers, expected) in [
            (200, &[("etag", "\"1\""), ("last-modified", "Tue")][..], IndexState::Unchanged),
            (200, &[("etag", "\"2\""), ("last-modified", "Mon")], IndexState::Changed),
            (200, &[("last-modified", "Mon")], IndexState::Unchanged),
            (200, &[("last-modified", "Tue")], IndexState::Changed),
            (200, &[], IndexState::Unknown),
            (404, &[], IndexState::Changed),
            (301, &[], IndexState::Changed),
            (403, &[], IndexState::Unknown),
            (405, &[], IndexState::Unknown),
            (503, &[], IndexState::Unknown),
        ] {
            assert_eq!(now(status, headers), expected, "{status} {headers:?}");
        }
    }
}
