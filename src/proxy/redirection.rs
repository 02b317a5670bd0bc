//! Follows recorded redirections again: the URL to which one led may have had a signature, which was left out of the record.

use ureq::http::Uri;

use crate::download::{DownloadWatch, GuestRequest};
use crate::network_record::RecordedAnswer;
use crate::url::Url;

use super::recorder::{Recorder, request_of};
use super::redaction::is_redacted;

/// The most redirections that are requested again for one URL.
const MOST_REDIRECTIONS: usize = 10;

impl Recorder {
    /// Returns a request for a URL with new credentials in place of those that were left out, from a server that redirected
    /// to it when it was recorded. `None` if no credentials were left out, no recorded redirection leads to the URL, or all of
    /// them lead to other places now.
    pub(super) fn renew(&self, sent: &GuestRequest, watch: &mut DownloadWatch<'_>) -> Option<GuestRequest> {
        let mut left = MOST_REDIRECTIONS;
        let url = self.renew_url(&sent.url, &mut left, watch)?;
        Some(GuestRequest { url, ..sent.clone() })
    }

    fn renew_url(&self, url: &Url, left: &mut usize, watch: &mut DownloadWatch<'_>) -> Option<Url> {
        if !is_redacted(url.as_str()) {
            return None;
        }
        for answer in self.known.values().filter(|answer| recorded_location(answer).as_ref() == Some(url)) {
            *left = left.checked_sub(1)?;
            let Some(mut redirecting) = request_of(&answer.request) else { continue };
            if !self.policy.allows(&redirecting.url.host()) {
                continue;
            }
            // Its own URL may have had credentials as well.
            if let Some(renewed) = self.renew_url(&redirecting.url, left, watch) {
                redirecting.url = renewed;
            }
            let Ok(head) = self.cache.ask((&self.client, &redirecting), watch) else { continue };
            let location =
                head.headers.get("location").and_then(|location| resolve(redirecting.url.as_str(), location));
            if let Some(now) = location.filter(|now| place(now) == place(url)) {
                return Some(now);
            }
        }
        None
    }
}

/// Returns the URL to which a recorded answer redirects.
fn recorded_location(answer: &RecordedAnswer) -> Option<Url> {
    let location = answer.headers.get("location").filter(|_| (300..400).contains(&answer.status))?;
    resolve(&answer.request.url, location)
}

/// Returns a URL without its parameters.
fn place(url: &Url) -> &str {
    url.as_str().split('?').next().unwrap_or_default()
}

/// Returns the URL that a `Location` names in the answer to a request for `base` (RFC 3986, section 5.2); `None` if it cannot
/// be requested.
fn resolve(base: &str, location: &str) -> Option<Url> {
    Url::of_resource(&join(base, location)?).ok()
}

/// Joins a URL with a relative one, as far as servers use it; `None` for a URL of another scheme than HTTP.
fn join(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default();
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    let is_absolute = location.split(['/', '?']).next().is_some_and(|first| first.contains(':'));
    if is_absolute {
        return None;
    }
    let uri: Uri = base.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    let folder = uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    let path = match location.chars().next() {
        Some('/') => remove_dots(location),
        Some('?') => format!("{}{location}", uri.path()),
        Some(_) => remove_dots(&format!("{folder}/{location}")),
        None => return Some(base.to_owned()),
    };
    Some(format!("{scheme}://{authority}{path}"))
}

/// Removes the segments `.` and `..` of a path, which a query may follow (RFC 3986, section 5.2.4).
fn remove_dots(path: &str) -> String {
    let (path, query) = path.find('?').map_or((path, ""), |at| path.split_at(at));
    let mut segments = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    if matches!(path.rsplit('/').next(), Some("." | "..")) {
        segments.push("");
    }
    format!("/{}{query}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_relative_to_the_request() {
        for (location, expected) in [
            ("https://b/c?d", Some("https://b/c?d")),
            ("//b/c", Some("http://b/c")),
            ("/c?d=/../e#f", Some("http://a:8/c?d=/../e")),
            ("c", Some("http://a:8/x/c")),
            ("../c/./d/..", Some("http://a:8/c/")),
            ("../../../c", Some("http://a:8/c")),
            ("?d", Some("http://a:8/x/y?d")),
            ("", Some("http://a:8/x/y?z")),
            ("ftp://b/c", None),
            ("mailto:b", None),
        ] {
            assert_eq!(resolve("http://a:8/x/y?z", location).as_ref().map(Url::as_str), expected, "{location}");
        }
    }
}
