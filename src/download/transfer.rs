//! One attempt to transfer the bytes of one place into a target, or the rest of them if some are there already.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::DownloadLimits;
use super::error::{AttemptError, DownloadError, TransferError};
use super::http::{Exchange, HttpMessage, ResponseHead, ResumeRange};
use super::watch::DownloadWatch;
use crate::size::ByteSize;
use crate::url::Url;

/// Size of reads, bytes.
const PIECE: usize = 256 << 10;

/// The source of some bytes, and its validators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TransferOrigin {
    pub(super) url: Url,
    /// The strong entity tag, if there is one.
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    /// Length of the whole file, if it is announced.
    pub(super) total: Option<u64>,
}

/// A receiver of downloaded bytes.
pub(super) trait TransferTarget {
    /// Result for a complete file.
    type Whole;

    /// Returns the number of bytes that are there.
    fn length(&self) -> u64;

    /// Returns the origin of these bytes; `None` if they cannot be continued.
    fn origin(&self) -> Option<&TransferOrigin>;

    /// Starts an exchange for the file, or for its rest.
    fn request(
        &self,
        url: &Url,
        rest: Option<ResumeRange>,
        limits: &DownloadLimits,
    ) -> Result<Exchange, TransferError> {
        Exchange::start(url, rest, limits)
    }

    /// Shows the head of each answer, before anything is decided about it.
    fn answered(&mut self, _head: &ResponseHead) {}

    /// Announces the origin of the next bytes, which follow the existing ones or replace them.
    fn begin(&mut self, origin: TransferOrigin, how: TransferStart) -> Result<(), DownloadError>;

    /// Takes the next bytes.
    fn accept(&mut self, bytes: &[u8]) -> Result<(), DownloadError>;

    /// Ends the transfer. Discards all bytes if they are not the right ones.
    fn finish(&mut self) -> Result<Self::Whole, AttemptError>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferStart {
    Anew,
    Continue,
}

/// Transfers the missing bytes of the file.
pub(super) fn transfer<T: TransferTarget>(
    url: &Url,
    target: &mut T,
    limits: &DownloadLimits,
    watch: &mut DownloadWatch<'_>,
) -> Result<T::Whole, AttemptError> {
    match url.to_path() {
        Some(path) => copy(url, &path, target, limits, watch)?,
        None => download(url, target, limits, watch)?,
    }
    target.finish()
}

fn copy<T: TransferTarget>(
    url: &Url,
    path: &Path,
    target: &mut T,
    limits: &DownloadLimits,
    watch: &mut DownloadWatch<'_>,
) -> Result<(), AttemptError> {
    // Opening a FIFO would wait for ever.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(TransferError::File)?;
    let facts = file.metadata().map_err(TransferError::File)?;
    if !facts.is_file() {
        return Err(TransferError::File(io::Error::other("this is not a file")).into());
    }
    let total = Some(facts.len());
    check_size(total, limits)?;
    target.begin(TransferOrigin { url: url.clone(), etag: None, last_modified: None, total }, TransferStart::Anew)?;
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => accept(target, &piece[..count], total, limits, watch)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(TransferError::File(error).into()),
        }
    }
}

fn download<T: TransferTarget>(
    url: &Url,
    target: &mut T,
    limits: &DownloadLimits,
    watch: &mut DownloadWatch<'_>,
) -> Result<(), AttemptError> {
    let there = target.origin().filter(|_| target.length() > 0).cloned();
    // The last byte has arrived, but the end could not be reported any more.
    if there.as_ref().is_some_and(|origin| origin.total == Some(target.length())) {
        return Ok(());
    }
    let rest = there.as_ref().map(|origin| ResumeRange { byte: target.length(), if_range: validator(origin, url) });
    let exchange = target.request(url, rest, limits)?;
    let HttpMessage::Head(head) = watch.receive(&exchange.messages)?.ok_or_else(broken_off)?? else {
        return Err(broken_off().into());
    };
    target.answered(&head);
    let how = place(url, target, there.as_ref(), &head, limits)?;
    let origin = origin(url, &head, how, there);
    let announced = origin.total;
    target.begin(origin, how)?;
    let mut clock = Clock::new(target.length());
    loop {
        let why = match watch.receive(&exchange.messages)?.ok_or_else(broken_off)? {
            Ok(HttpMessage::Piece(bytes)) => {
                accept(target, &bytes, announced, limits, watch)?;
                clock.check(target.length(), limits)?;
                continue;
            }
            Ok(_) => None,
            Err(problem) => Some(problem),
        };
        let got = target.length();
        return match (announced.filter(|announced| got < *announced), why) {
            (None, None) => Ok(()),
            (None, Some(problem)) => Err(problem.into()),
            (Some(announced), why) => {
                let why = why.map_or_else(|| "the server ended it".to_owned(), |problem| problem.to_string());
                Err(TransferError::Truncated { got, announced, why }.into())
            }
        };
    }
}

/// Returns the problem of an exchange whose thread has ended without a word.
pub(super) fn broken_off() -> TransferError {
    TransferError::Exchange("the exchange broke off".into())
}

/// Returns the validator by which the server at this place can detect that the file is still the same.
fn validator(origin: &TransferOrigin, url: &Url) -> Option<String> {
    let theirs = (origin.url == *url).then_some(origin)?;
    theirs.etag.clone().or_else(|| theirs.last_modified.clone())
}

/// Decides where the server's bytes belong.
fn place<T: TransferTarget>(
    url: &Url,
    target: &mut T,
    there: Option<&TransferOrigin>,
    head: &ResponseHead,
    limits: &DownloadLimits,
) -> Result<TransferStart, AttemptError> {
    let range = head.content_range.as_deref();
    match (head.status, there) {
        (200, _) => {
            check_size(head.length, limits)?;
            Ok(TransferStart::Anew)
        }
        (206, Some(there)) => {
            let expected = ContentRange { start: target.length(), total: there.total };
            let fits = range.and_then(ContentRange::parse).filter(|found| found.continues(&expected, head.length));
            // The same file has the same size at every place, and the same entity tag at one place.
            let is_same = there.url != *url || there.etag.is_none() || head.etag.is_none() || there.etag == head.etag;
            let Some(found) = fits.filter(|_| is_same) else {
                restart(url, target)?;
                return Err(other_range(range).into());
            };
            check_size(found.total, limits)?;
            Ok(TransferStart::Continue)
        }
        (416, Some(_)) => {
            restart(url, target)?;
            Err(TransferError::Stale.into())
        }
        (206, None) => Err(other_range(range).into()),
        (status, _) => Err(TransferError::Status(status).into()),
    }
}

fn other_range(range: Option<&str>) -> TransferError {
    TransferError::Range(range.unwrap_or("it does not say which").to_owned())
}

/// Makes the next attempt request the whole file.
fn restart<T: TransferTarget>(url: &Url, target: &mut T) -> Result<(), DownloadError> {
    target.begin(TransferOrigin { url: url.clone(), etag: None, last_modified: None, total: None }, TransferStart::Anew)
}

fn origin(url: &Url, head: &ResponseHead, how: TransferStart, there: Option<TransferOrigin>) -> TransferOrigin {
    let total = match how {
        TransferStart::Anew => head.length,
        TransferStart::Continue => {
            let range = head.content_range.as_deref().and_then(ContentRange::parse);
            range.and_then(|range| range.total).or_else(|| there.and_then(|there| there.total))
        }
    };
    TransferOrigin { url: url.clone(), etag: head.etag.clone(), last_modified: head.last_modified.clone(), total }
}

fn accept<T: TransferTarget>(
    target: &mut T,
    bytes: &[u8],
    total: Option<u64>,
    limits: &DownloadLimits,
    watch: &mut DownloadWatch<'_>,
) -> Result<(), AttemptError> {
    let length = target.length() + bytes.len() as u64;
    check_size(Some(length), limits)?;
    if total.is_some_and(|total| length > total) {
        return Err(TransferError::Exchange("more bytes came than were announced".into()).into());
    }
    target.accept(bytes)?;
    Ok(watch.came(target.length(), total)?)
}

fn check_size(bytes: Option<u64>, limits: &DownloadLimits) -> Result<(), TransferError> {
    match bytes {
        Some(bytes) if bytes > limits.download.bytes() => Err(TransferError::TooLarge(limits.download)),
        _ => Ok(()),
    }
}

/// The header `bytes START-END/TOTAL` (RFC 9110 14.4), up to the end of the file.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    start: u64,
    total: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (start, end) = range.split_once('-')?;
        let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
        let total = if total == "*" { end.checked_add(1)? } else { total.parse().ok()? };
        (start <= end && end.checked_add(1)? == total).then_some(Self { start, total: Some(total) })
    }

    /// Returns whether it is the requested rest.
    fn continues(&self, expected: &Self, length: Option<u64>) -> bool {
        let rest = self.total.map(|total| total - self.start);
        self.start == expected.start
            && (expected.total.is_none() || expected.total == self.total)
            && (length.is_none() || length == rest)
    }
}

/// Detects a server that sends a byte now and then.
struct Clock {
    since: Instant,
    from: u64,
}

impl Clock {
    fn new(from: u64) -> Self {
        Self { since: Instant::now(), from }
    }

    fn check(&mut self, now: u64, limits: &DownloadLimits) -> Result<(), TransferError> {
        let passed = self.since.elapsed();
        if passed < limits.pace.within {
            return Ok(());
        }
        let came = ByteSize(now - self.from);
        if came < limits.pace.least {
            return Err(TransferError::Slow(came, Duration::from_secs(passed.as_secs())));
        }
        *self = Self::new(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_reaches_to_the_end_of_the_file() {
        let range = |start, total| Some(ContentRange { start, total: Some(total) });
        assert_eq!(ContentRange::parse("bytes 5-9/10"), range(5, 10));
        assert_eq!(ContentRange::parse("bytes 5-9/*"), range(5, 10));
        for bad in ["", "bytes */10", "bytes 5-8/10", "bytes 9-5/10", "lines 5-9/10", "bytes 5-18446744073709551615/*"]
        {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(text in "bytes [0-9*/-]{0,45}", start: u64, total: Option<u64>, length: Option<u64>) {
            if let Some(found) = ContentRange::parse(&text) {
                let _ = found.continues(&ContentRange { start, total }, length);
            }
        }
    }
}
