//! Records what servers answer to a guest: each body goes to the cache under its digest, and is passed on as it comes.
//!
//! ```text
//! server --> part/recording-PID-N/data --> sha256/HEX/data        the recording thread
//!                     `--> any number of readers, which wait for the bytes that are still to come
//! ```
//!
//! Where the digest is known before, the last bytes are held back until it was compared: a reader that gets a whole body
//! has the right one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::digest::Sha256Digest;
use crate::url::Url;

use super::cache::DATA;
use super::checksum::Checksum;
use super::error::{AttemptError, DownloadError, TransferError};
use super::http::{Exchange, GuestClient, GuestMethod, GuestRequest, HttpMessage, ResponseHead, ResumeRange};
use super::partial_file::{DownloadClaim, open};
use super::places::persist;
use super::transfer::{TransferOrigin, TransferStart, TransferTarget, broken_off};
use super::watch::DownloadWatch;
use super::{Download, DownloadCache, DownloadLimits, FILE_MODE, NetworkMode};

/// The number of bytes that are held back until the digest was compared.
const HELD_BACK: u64 = 64 << 10;

/// The head of a recorded answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnswerHead {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The size of the body, if it is known already.
    pub(crate) length: Option<u64>,
    /// The headers that clients act on, by their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

/// An answer of which a part may still be to come. Any number of threads may read it.
#[derive(Debug, Default)]
pub(crate) struct IncomingAnswer {
    state: Mutex<IncomingState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct IncomingState {
    head: Option<AnswerHead>,
    file: Option<Arc<File>>,
    /// The number of bytes that may be read.
    available: u64,
    end: Option<Result<Sha256Digest, Arc<DownloadError>>>,
    /// Keeps the file in the cache.
    used: Option<Download>,
}

impl IncomingAnswer {
    /// Completes an answer with a body of the cache; `None` for an empty body.
    ///
    /// # Errors
    /// When the body cannot be opened.
    pub(crate) fn complete(
        &self,
        head: AnswerHead,
        sha256: Sha256Digest,
        body: Option<Download>,
    ) -> Result<(), DownloadError> {
        let open = |body: &Download| File::open(&body.path).map_err(DownloadError::cache("read", &body.path));
        let file = body.as_ref().map(open).transpose()?.map(Arc::new);
        self.change(|state| {
            state.available = body.as_ref().map_or(0, |body| body.bytes);
            (state.head, state.file, state.used) = (Some(head), file, body);
            state.end = Some(Ok(sha256));
        });
        Ok(())
    }

    /// Waits for the head.
    ///
    /// # Errors
    /// When no server answers.
    pub(crate) fn head(&self) -> Result<AnswerHead, Arc<DownloadError>> {
        let state = self.wait(|state| state.head.is_some() || state.end.is_some());
        match (&state.head, &state.end) {
            (_, Some(Err(error))) => Err(Arc::clone(error)),
            (Some(head), _) => Ok(head.clone()),
            (None, _) => unreachable!("an answer ends after its head"),
        }
    }

    /// Reads bytes of the body, and waits for them if they are still to come; returns 0 at the end.
    ///
    /// # Errors
    /// When the rest does not come, or the file cannot be read.
    pub(crate) fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.wait(|state| state.available > at || state.end.is_some());
        let count = usize::try_from(state.available.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
        let (file, failed) = (state.file.clone(), matches!(state.end, Some(Err(_))));
        drop(state);
        match file {
            Some(file) if count > 0 => file.read_at(&mut buffer[..count], at),
            _ if failed => Err(io::ErrorKind::ConnectionAborted.into()),
            _ => Ok(0),
        }
    }

    /// Waits for the end of the body, and returns the head, and the digest and the size of the body.
    ///
    /// # Errors
    /// When the body did not come to its end.
    pub(crate) fn finished(&self) -> Result<(AnswerHead, Sha256Digest, u64), Arc<DownloadError>> {
        let state = self.wait(|state| state.end.is_some());
        let sha256 = state.end.clone().expect("the end was waited for")?;
        Ok((state.head.clone().expect("an answer ends after its head"), sha256, state.available))
    }

    /// Returns whether the answer has failed, so that only another request can succeed.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.lock().end, Some(Err(_)))
    }

    /// Ends the answer without a body.
    fn end_empty(&self, head: AnswerHead) {
        self.change(|state| {
            state.head = Some(head);
            state.end = Some(Ok(Sha256Digest::of("")));
        });
    }

    /// Ends the answer with an error, unless it has ended before.
    pub(crate) fn fail(&self, error: DownloadError) {
        self.change(|state| {
            state.end.get_or_insert_with(|| Err(Arc::new(error)));
        });
    }

    fn lock(&self) -> MutexGuard<'_, IncomingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, is_enough: impl Fn(&IncomingState) -> bool) -> MutexGuard<'_, IncomingState> {
        let waited = self.changed.wait_while(self.lock(), |state| !is_enough(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut IncomingState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl DownloadCache {
    /// Asks the server, and passes the answer on to `incoming` as it comes. The whole body is in the cache when this
    /// returns. Blocks the calling thread.
    ///
    /// # Errors
    /// When the server does not answer, the body breaks off or is not the `expected` one, or this host cannot store it.
    /// `incoming` has failed then.
    pub(crate) fn record(
        &self,
        (client, request): (&GuestClient, &GuestRequest),
        expected: Option<Sha256Digest>,
        limits: &DownloadLimits,
        (incoming, watch): (&IncomingAnswer, &mut DownloadWatch<'_>),
    ) -> Result<(), Arc<DownloadError>> {
        let recorded = if self.reach == NetworkMode::Offline {
            Err(DownloadError::Offline(request.shown.to_string()))
        } else if matches!(request.method, GuestMethod::Head) {
            record_head(client, request, (incoming, watch))
        } else {
            self.record_body((client, request), expected, limits, (incoming, watch))
        };
        if let Err(error) = recorded {
            incoming.fail(error);
        }
        incoming.finished().map(drop)
    }

    /// Asks the server, and returns the head of its answer, whatever the status is. Blocks the calling thread.
    ///
    /// # Errors
    /// When the server does not answer, or must not be asked.
    pub(crate) fn ask(
        &self,
        (client, request): (&GuestClient, &GuestRequest),
        watch: &mut DownloadWatch<'_>,
    ) -> Result<AnswerHead, DownloadError> {
        if self.reach == NetworkMode::Offline {
            return Err(DownloadError::Offline(request.shown.to_string()));
        }
        ask_head(client, request, watch).map(|head| answer_head(&head, head.length))
    }

    fn record_body(
        &self,
        (client, request): (&GuestClient, &GuestRequest),
        expected: Option<Sha256Digest>,
        limits: &DownloadLimits,
        (incoming, watch): (&IncomingAnswer, &mut DownloadWatch<'_>),
    ) -> Result<(), DownloadError> {
        static RECORDINGS: AtomicU64 = AtomicU64::new(0);
        let number = RECORDINGS.fetch_add(1, Ordering::Relaxed);
        let part = self.root.join("part").join(format!("recording-{}-{number}", std::process::id()));
        let Some(claim) = DownloadClaim::take(&part, &self.fs, watch)? else {
            return Err(DownloadError::cache("write", part)(io::ErrorKind::NotFound.into()));
        };
        let result = self.record_claimed(&claim, (client, request), expected, limits, (incoming, watch));
        claim.discard();
        result
    }

    fn record_claimed(
        &self,
        claim: &DownloadClaim,
        (client, request): (&GuestClient, &GuestRequest),
        expected: Option<Sha256Digest>,
        limits: &DownloadLimits,
        (incoming, watch): (&IncomingAnswer, &mut DownloadWatch<'_>),
    ) -> Result<(), DownloadError> {
        let path = claim.data();
        let file = open(&path).map_err(DownloadError::cache("open", &path))?;
        let file = Arc::new(file);
        incoming.change(|state| state.file = Some(Arc::clone(&file)));
        let mut target = RecordingTarget {
            client,
            request,
            expected,
            incoming,
            file,
            length: 0,
            hash: Sha256::new(),
            origin: None,
            head: None,
        };
        match persist(&request.shown, &mut target, limits, watch) {
            Ok(sha256) => {
                self.keep_recorded(claim, &target.file, sha256)?;
                incoming.change(|state| state.end = Some(Ok(sha256)));
                Ok(())
            }
            Err(AttemptError::Error(error)) => Err(error),
            Err(AttemptError::Problem(problem)) => target.settle(problem),
        }
    }

    /// Gives a recorded body its name in the cache.
    fn keep_recorded(&self, claim: &DownloadClaim, file: &File, sha256: Sha256Digest) -> Result<(), DownloadError> {
        let entry = self.enter(sha256)?;
        let path = entry.folder.join(DATA);
        if !path.exists() {
            let kept = self.fs.seal(file, FILE_MODE).and_then(|()| self.fs.rename(&claim.data(), &path));
            let kept = kept.and_then(|()| self.fs.sync_dir(&entry.folder));
            kept.map_err(DownloadError::cache("write", &entry.folder))?;
        }
        Ok(())
    }
}

/// Records the answer to a `HEAD`.
fn record_head(
    client: &GuestClient,
    request: &GuestRequest,
    (incoming, watch): (&IncomingAnswer, &mut DownloadWatch<'_>),
) -> Result<(), DownloadError> {
    let head = ask_head(client, request, watch)?;
    if !is_lasting(head.status) {
        return Err(DownloadError::of_place(&request.shown, TransferError::Status(head.status)));
    }
    let mut answered = answer_head(&head, head.length);
    if let Some(length) = head.length {
        answered.headers.insert("content-length".to_owned(), length.to_string());
    }
    incoming.end_empty(answered);
    Ok(())
}

/// Returns the head of a server's answer, whatever its status, and leaves the body.
fn ask_head(
    client: &GuestClient,
    request: &GuestRequest,
    watch: &mut DownloadWatch<'_>,
) -> Result<ResponseHead, DownloadError> {
    let failed = |problem| DownloadError::of_place(&request.shown, problem);
    let exchange = Exchange::start_for_guest(client, request, None).map_err(failed)?;
    match watch.receive(&exchange.messages)?.unwrap_or_else(|| Err(broken_off())).map_err(failed)? {
        HttpMessage::Head(head) => Ok(head),
        _ => Err(failed(broken_off())),
    }
}

/// Returns whether an answer with this status says something about the resource, rather than about the moment or the one
/// who asks.
fn is_lasting(status: u16) -> bool {
    matches!(status, 200 | 203 | 204 | 300..=308 | 400 | 403..=406 | 410 | 451)
}

fn answer_head(head: &ResponseHead, length: Option<u64>) -> AnswerHead {
    let mut headers = head.headers.clone();
    for (name, value) in [("etag", &head.etag), ("last-modified", &head.last_modified)] {
        if let Some(value) = value {
            headers.insert(name.to_owned(), value.clone());
        }
    }
    AnswerHead { status: head.status, length, headers }
}

/// Takes the body of an answer.
struct RecordingTarget<'a> {
    client: &'a GuestClient,
    request: &'a GuestRequest,
    expected: Option<Sha256Digest>,
    incoming: &'a IncomingAnswer,
    file: Arc<File>,
    length: u64,
    hash: Sha256,
    origin: Option<TransferOrigin>,
    head: Option<ResponseHead>,
}

impl RecordingTarget<'_> {
    /// Records an answer without a body, such as a redirection or "not found", unless a body is expected. Other problems
    /// remain.
    fn settle(&self, problem: TransferError) -> Result<(), DownloadError> {
        let head = self.head.as_ref().filter(|head| is_lasting(head.status) && self.expected.is_none());
        let Some(head) = head.filter(|_| matches!(problem, TransferError::Status(_)) && self.length == 0) else {
            return Err(DownloadError::of_place(&self.request.shown, problem));
        };
        self.incoming.end_empty(answer_head(head, Some(0)));
        Ok(())
    }
}

impl TransferTarget for RecordingTarget<'_> {
    type Whole = Sha256Digest;

    fn length(&self) -> u64 {
        self.length
    }

    fn origin(&self) -> Option<&TransferOrigin> {
        self.origin.as_ref()
    }

    fn request(&self, _: &Url, rest: Option<ResumeRange>, _: &DownloadLimits) -> Result<Exchange, TransferError> {
        Exchange::start_for_guest(self.client, self.request, rest)
    }

    fn answered(&mut self, head: &ResponseHead) {
        self.head = Some(head.clone());
    }

    fn begin(&mut self, origin: TransferOrigin, how: TransferStart) -> Result<(), DownloadError> {
        if how == TransferStart::Anew {
            if self.length > 0 {
                // The bytes before were passed on already.
                let changed = TransferError::Exchange("the server cannot continue what it has begun".into());
                return Err(DownloadError::of_place(&self.request.shown, changed));
            }
            let head = self.head.as_ref().map(|head| answer_head(head, origin.total));
            self.incoming.change(|state| state.head = head);
        }
        self.origin = Some(origin);
        Ok(())
    }

    fn accept(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        (&*self.file).write_all(bytes).map_err(DownloadError::cache("write", self.request.shown.file_name()))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        let held_back = if self.expected.is_some() { HELD_BACK } else { 0 };
        let available = self.length.saturating_sub(held_back);
        self.incoming.change(|state| state.available = available);
        Ok(())
    }

    fn finish(&mut self) -> Result<Sha256Digest, AttemptError> {
        let found: Sha256Digest = self.hash.clone().into();
        if let Some(expected) = self.expected.filter(|expected| *expected != found) {
            let (expected, found) = (Checksum::Sha256(expected), Checksum::Sha256(found));
            let wrong = TransferError::Digest { expected, found };
            return Err(AttemptError::Error(DownloadError::of_place(&self.request.shown, wrong)));
        }
        let length = self.length;
        self.incoming.change(|state| state.available = length);
        Ok(found)
    }
}
