//! The `[[network]]` entries of `kiln.lock`: what the requests of a spec's steps were answered with.
//!
//! An entry has one download a line, sorted by request, so that a change is a change of few lines and git merges them. Whoever
//! can change a repository can write an entry, so everything is checked that ends up in an answer to a guest.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use toml::ser::ValueSerializer;

use crate::network_record::{NetworkRecord, RecordedAnswer};
use crate::rfc3339;
use crate::specfile::HostPattern;

/// An entry of the lock file: the downloads of one spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetworkEntry {
    /// File name of the spec.
    pub(super) spec: String,
    /// The spec's variant, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
    /// The time of the first recording.
    #[serde(with = "rfc3339")]
    recorded: Timestamp,
    /// The steps that were recorded at another time.
    #[serde(default, skip_serializing)]
    steps: Vec<StepTime>,
    /// The recorded answers.
    #[serde(default, skip_serializing)]
    downloads: Vec<RecordedAnswer>,
}

/// The time at which a step was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StepTime {
    /// The name of the step.
    name: String,
    /// The time of its recording; absent if it sees the present.
    #[serde(default, with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    recorded: Option<Timestamp>,
}

impl NetworkEntry {
    /// Creates the entry of a spec, with the answers in their order.
    pub(super) fn new(spec: String, variant: Option<String>, record: &NetworkRecord) -> Self {
        let mut downloads = record.answers.clone();
        downloads.sort_by(|one, other| one.request.cmp(&other.request));
        let steps = record.step_times.iter();
        let steps = steps.map(|(name, recorded)| StepTime { name: name.clone(), recorded: *recorded }).collect();
        Self { spec, variant, recorded: record.recorded, steps, downloads }
    }

    /// Returns the record that the entry holds.
    pub(super) fn record(&self) -> NetworkRecord {
        let step_times = self.steps.iter().map(|step| (step.name.clone(), step.recorded)).collect();
        NetworkRecord { recorded: self.recorded, step_times, answers: self.downloads.clone() }
    }

    /// Checks that no answer is one that kiln does not write, and sorts them: a merge may have changed their order.
    ///
    /// # Errors
    /// The first problem.
    pub(super) fn check(&mut self) -> Result<(), String> {
        for answer in &self.downloads {
            answer.check().map_err(|why| format!("the answer to {:?} {why}", answer.request.url))?;
        }
        let mut names = BTreeSet::new();
        for StepTime { name, .. } in &self.steps {
            if name.contains(char::is_control) || !names.insert(name) {
                return Err(format!("the time of the step {name:?} is none that kiln writes"));
            }
        }
        self.downloads.sort_by(|one, other| one.request.cmp(&other.request));
        match self.downloads.windows(2).find(|pair| pair[0].request == pair[1].request) {
            Some(pair) => Err(format!("it has two answers to {:?}", pair[0].request.url)),
            None => Ok(()),
        }
    }

    /// Drops the downloads of a host, or all of them, and returns their number. The steps that had them see the present in the
    /// next build, for the indices that they will get are newer than the earlier recording.
    pub(super) fn forget(&mut self, host: Option<&HostPattern>) -> usize {
        let is_dropped = |answer: &RecordedAnswer| host.is_none_or(|host| host.matches(&answer.request.host()));
        let downloads = std::mem::take(&mut self.downloads);
        let (dropped, kept): (Vec<_>, Vec<_>) = downloads.into_iter().partition(is_dropped);
        let mut times = self.record().step_times;
        times.extend(dropped.iter().flat_map(|answer| &answer.steps).map(|step| (step.clone(), None)));
        times.retain(|step, _| kept.iter().any(|answer| answer.steps.contains(step)));
        self.steps = times.into_iter().map(|(name, recorded)| StepTime { name, recorded }).collect();
        self.downloads = kept;
        dropped.len()
    }

    /// Returns whether no download is left.
    pub(super) fn is_empty(&self) -> bool {
        self.downloads.is_empty()
    }

    /// Returns the entry as TOML.
    ///
    /// # Errors
    /// When a value cannot be written as TOML.
    pub(super) fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut text = format!("\n[[network]]\n{}", toml::to_string(self)?);
        if !self.steps.is_empty() {
            list_to_toml("steps", &self.steps, &mut text)?;
        }
        list_to_toml("downloads", &self.downloads, &mut text)?;
        Ok(text)
    }
}

/// Appends a list of tables, one a line.
fn list_to_toml(key: &str, tables: &[impl Serialize], text: &mut String) -> Result<(), toml::ser::Error> {
    text.push_str(key);
    text.push_str(" = [\n");
    for table in tables {
        let mut line = String::new();
        table.serialize(ValueSerializer::new(&mut line))?;
        text.push_str("    ");
        text.push_str(&line);
        text.push_str(",\n");
    }
    text.push_str("]\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::Sha256Digest;
    use crate::network_record::{RecordedRequest, RequestKind};

    fn answer(url: &str) -> RecordedAnswer {
        crate::network_record::tests::answer(url, &["install"])
    }

    fn entry(answers: Vec<RecordedAnswer>) -> NetworkEntry {
        NetworkEntry::new("kiln.toml".into(), None, &NetworkRecord { answers, ..NetworkRecord::default() })
    }

    fn damage(change: impl FnOnce(&mut RecordedAnswer)) -> String {
        let mut damaged = answer("http://a.example/1");
        change(&mut damaged);
        entry(vec![damaged]).check().unwrap_err()
    }

    #[test]
    fn a_download_is_a_line_sorted_by_its_request() {
        let mut other = answer("http://a.example/1");
        other.request =
            RecordedRequest { kind: RequestKind::Head, accept: Some("text/\"html\"".into()), ..other.request };
        other.status = 404;
        other.headers = [("etag".to_owned(), "W/'\u{e4}'\t".to_owned())].into();
        let written = entry(vec![answer("http://b.example/"), other]);
        let text = written.to_toml().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let sha256 = Sha256Digest::of("http://b.example/");
        let last =
            format!("    {{ url = \"http://b.example/\", sha256 = \"{sha256}\", bytes = 1, steps = [\"install\"] }},");
        assert_eq!(
            lines[1..5],
            ["[[network]]", "spec = \"kiln.toml\"", "recorded = \"1970-01-01T00:00:00Z\"", "downloads = ["]
        );
        assert!(lines[5].starts_with("    { url = \"http://a.example/1\", kind = \"head\", accept = "), "{text}");
        assert_eq!(lines[6..], [last.as_str(), "]"]);
        let mut read: BTreeMap<String, Vec<NetworkEntry>> = toml::from_str(&text).unwrap();
        read.get_mut("network").unwrap()[0].check().unwrap();
        assert_eq!(read["network"], [written]);
    }

    #[test]
    fn hostile_answers_are_refused() {
        let urls = [
            "",
            "http://",
            "a.example/1",
            "ftp://a.example/1",
            "file:///etc/passwd",
            "http://u:p@a.example/",
            "http://a.example/\n",
            "http://a.example/#a",
            "http://a.example/ a",
            "http://a.example/\u{e4}",
        ];
        for url in urls {
            damage(|answer| answer.request.url = url.into());
        }
        for (name, value) in
            [("a", "b\r\nc: d"), ("a", "b\nc"), ("a", "\0"), ("A", "b"), ("a b", "c"), ("a:", ""), ("", "a")]
        {
            damage(|answer| answer.headers = [(name.to_owned(), value.to_owned())].into());
        }
        damage(|answer| answer.request.accept = Some("a\r\nb: c".into()));
        damage(|answer| answer.status = 100);
        damage(|answer| answer.bytes = u64::MAX);
        damage(|answer| answer.steps = ["a\u{1b}[2J".to_owned()].into());
        let twice = vec![answer("http://a.example/1"), answer("http://a.example/1")];
        assert!(entry(twice).check().unwrap_err().contains("two answers"));
    }

    #[test]
    fn the_downloads_of_a_host_are_forgotten_alone() {
        let urls = ["http://a.example:80/1", "https://A.example/2", "http://b.example/a.example"];
        let mut entry = entry(urls.map(answer).into());
        let shared = entry.downloads.iter_mut().find(|answer| answer.request.host() == "b.example");
        shared.unwrap().steps.insert("other".to_owned());
        entry.downloads.push(crate::network_record::tests::answer("http://c.example/", &["third"]));
        assert_eq!(entry.forget(Some(&"d.example".parse().unwrap())), 0);
        assert!(entry.steps.is_empty());
        assert_eq!(entry.forget(Some(&"a.example".parse().unwrap())), 2);
        let times = ["install", "other", "third"].map(|step| entry.record().time_of_step(step));
        assert_eq!(times, [None, Some(Timestamp::UNIX_EPOCH), Some(Timestamp::UNIX_EPOCH)]);
        assert_eq!(entry.forget(None), 2);
        assert!(entry.is_empty() && entry.steps.is_empty());
    }

    #[test]
    fn n31_the_times_of_steps_are_in_the_lock_where_they_differ() {
        let time = Timestamp::from_second(7).unwrap();
        let record = NetworkRecord {
            recorded: Timestamp::UNIX_EPOCH,
            step_times: [("late".to_owned(), Some(time)), ("anew".to_owned(), None)].into(),
            answers: vec![answer("http://a.example/1")],
        };
        let written = NetworkEntry::new("kiln.toml".into(), None, &record);
        let text = written.to_toml().unwrap();
        let lines =
            "steps = [\n    { name = \"anew\" },\n    { name = \"late\", recorded = \"1970-01-01T00:00:07Z\" },\n]\n";
        assert!(text.contains(lines), "{text}");
        let mut read: BTreeMap<String, Vec<NetworkEntry>> = toml::from_str(&text).unwrap();
        let entry = &mut read.get_mut("network").unwrap()[0];
        entry.check().unwrap();
        assert_eq!(entry.record(), record);
        entry.steps.push(entry.steps[0].clone());
        assert!(entry.check().unwrap_err().contains("\"anew\""));
    }
}
