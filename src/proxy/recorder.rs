//! Finds the answer to each request: in the record of an earlier build, else from the server, which is asked once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio_util::sync::CancellationToken;

use crate::digest::Sha256Digest;
use crate::download::{
    AnswerHead, DownloadCache, DownloadError, DownloadLimits, DownloadWatch, GuestClient, GuestMethod, GuestRequest,
    IncomingAnswer,
};
use crate::error::{Fault, Kind};
use crate::network_record::{NetworkRecord, RecordedAnswer, RecordedRequest, RequestKind};
use crate::url::{Scheme, Url, UrlError};

use super::policy::HostPolicy;
use super::redaction::{is_redacted, redact, redact_links};
use super::request::RequestHead;

/// The most refusals of one step that are reported.
const MOST_REFUSALS: usize = 10;
/// The number of attempts without progress: the program in the guest tries again by itself, and waits meanwhile.
const ATTEMPTS: u32 = 3;

/// The reason why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The HTTP status for the client.
    pub(super) status: u16,
    /// A sentence for the one who wrote the step.
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn new(status: u16, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into() }
    }
}

/// What a build's requests may use.
pub(super) struct Recorder {
    pub(super) cache: DownloadCache,
    pub(super) client: GuestClient,
    pub(super) limits: DownloadLimits,
    pub(super) policy: HostPolicy,
    pub(super) cancel: CancellationToken,
    /// Whether only recorded answers are given.
    pub(super) is_strict: bool,
    /// Returns whether a text holds a secret of the spec.
    pub(super) holds_secret: Box<dyn Fn(&str) -> bool + Send + Sync>,
    pub(super) known: BTreeMap<RecordedRequest, RecordedAnswer>,
    pub(super) state: Mutex<RecorderState>,
}

#[derive(Default)]
pub(super) struct RecorderState {
    answers: HashMap<RecordedRequest, Arc<IncomingAnswer>>,
    /// The requests of the running step.
    asked: BTreeSet<RecordedRequest>,
    refusals: Vec<String>,
    /// The requests of the running step that were not in the lock, where nothing else is allowed.
    unrecorded: BTreeSet<String>,
    /// The URLs of requests of the running step that differ from another one in a credential alone.
    ambiguous: BTreeSet<String>,
    /// The URL with which each request with credentials was made first.
    urls: HashMap<RecordedRequest, Url>,
}

impl RecorderState {
    /// Returns whether an earlier request of the build differs from this one in a credential alone. One whose credentials
    /// were left out by an earlier recording asks for what was recorded.
    fn is_ambiguous(&mut self, request: &RecordedRequest, sent: &Url) -> bool {
        sent.as_str() != request.url && self.urls.entry(request.clone()).or_insert_with(|| sent.clone()) != sent
    }
}

/// What the proxy did for one step.
#[derive(Debug, Clone, Default)]
pub struct StepTraffic {
    /// The answers that the step got, sorted by their requests; without the names of steps.
    pub answers: Vec<RecordedAnswer>,
    /// Why requests were refused, a sentence each.
    pub refusals: Vec<String>,
    /// Requests without the answer that the lock promises.
    pub unanswered: Vec<UnansweredError>,
    /// Whether a request got no answer for a reason that may be another one the next time, such as a silent server.
    pub has_gaps: bool,
}

/// A request without the answer that the lock promises: the image would be another one, whatever the step makes of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UnansweredError {
    /// The recorded answer is not in the cache any more, and the server gives none, or another one.
    #[error("what kiln.lock has for {url} is to be had no more: {why}")]
    Recorded {
        /// The URL.
        url: String,
        /// The error of asking the server.
        why: Arc<DownloadError>,
    },
    /// There is no recorded answer, and no server may be asked.
    #[error("a step asks for {0}, which is not in kiln.lock")]
    Unrecorded(String),
    /// Another request has the same form in the lock, which has no credentials, and its answer may be another one.
    #[error(
        "{0} was requested with two values of a parameter that kiln.lock has as `-`, and only one answer can be recorded"
    )]
    Ambiguous(String),
}

impl Fault for UnansweredError {
    fn kind(&self) -> Kind {
        Kind::Base
    }

    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Recorded { .. } => {
                "`kiln lock --refresh` forgets what was recorded, so that the next build records what is there now"
            }
            Self::Unrecorded(_) => "a build without --offline and --locked records it",
            Self::Ambiguous(_) => "request it once, or download one of the files on the host and `copy` it",
        };
        vec![hint.into()]
    }
}

impl Recorder {
    /// Creates a recorder that answers from this record first.
    pub(super) fn new(
        cache: DownloadCache,
        client: GuestClient,
        policy: HostPolicy,
        record: Option<&NetworkRecord>,
    ) -> Self {
        let answers = record.into_iter().flat_map(|record| &record.answers);
        Self {
            cache,
            client,
            limits: DownloadLimits { download: super::LARGEST_BODY, attempts: ATTEMPTS, ..DownloadLimits::default() },
            policy,
            cancel: CancellationToken::new(),
            is_strict: false,
            holds_secret: Box::new(|_| false),
            known: answers.map(|answer| (answer.request.clone(), answer.clone())).collect(),
            state: Mutex::default(),
        }
    }

    /// Returns the answer to a request, whose body may still be to come. `body` is that of a fetch of git.
    pub(super) fn answer(
        self: &Arc<Self>,
        url: &str,
        head: &RequestHead,
        body: Option<Vec<u8>>,
    ) -> Result<Arc<IncomingAnswer>, Refusal> {
        let (request, sent) = self.judge(url, head, body)?;
        let mut state = self.lock();
        if state.is_ambiguous(&request, &sent.url) {
            let refusal = Refusal::new(409, UnansweredError::Ambiguous(request.url.clone()).to_string());
            state.ambiguous.insert(request.url);
            return Err(refusal);
        }
        state.asked.insert(request.clone());
        if let Some(answer) = state.answers.get(&request).filter(|answer| !answer.has_failed()) {
            return Ok(Arc::clone(answer));
        }
        let known = self.known.get(&request).cloned();
        if known.is_none() && self.is_strict {
            state.unrecorded.insert(request.url.clone());
            let why = "is not in kiln.lock, and --locked allows nothing else; `kiln build` without it records it";
            return Err(Refusal::new(403, format!("{} {why}", request.url)));
        }
        let answer = Arc::new(IncomingAnswer::default());
        state.answers.insert(request, Arc::clone(&answer));
        drop(state);
        let (recorder, incoming) = (Arc::clone(self), Arc::clone(&answer));
        let thread = thread::Builder::new().name("recording".into());
        match thread.spawn(move || recorder.fetch(known, &sent, &incoming)) {
            Ok(_) => Ok(answer),
            Err(error) => Err(Refusal::new(503, format!("kiln cannot start a thread: {error}"))),
        }
    }

    /// Checks a request. Returns it as it is recorded, and as it is sent.
    fn judge(
        &self,
        url: &str,
        head: &RequestHead,
        body: Option<Vec<u8>>,
    ) -> Result<(RecordedRequest, GuestRequest), Refusal> {
        let shown = redact(url);
        let method = match (head.method.as_str(), body) {
            ("POST", Some(body)) => GuestMethod::Post(body),
            ("GET" | "HEAD", _) if head.has_body() => {
                return Err(Refusal::new(400, format!("{shown} is refused: a GET with a body")));
            }
            ("GET", _) => GuestMethod::Get,
            ("HEAD", _) => GuestMethod::Head,
            (other, _) => {
                let why = "the locked network has GET, HEAD and git fetches alone, whose answers can be given again";
                return Err(Refusal::new(405, format!("{other} {shown} is refused: {why}")));
            }
        };
        let parsed = Url::of_resource(url.split('#').next().unwrap_or_default());
        let url = match parsed {
            Ok(url) if url.scheme() != Scheme::File && url.as_str().is_ascii() => url,
            Err(UrlError::Credentials) => {
                return Err(Refusal::new(403, "a URL with a user name is refused: its answer could not be recorded"));
            }
            _ => return Err(Refusal::new(403, format!("{shown} is refused: only http and https can be recorded"))),
        };
        if (self.holds_secret)(url.as_str()) {
            let why = "the URL holds a secret, which would be in kiln.lock; download it on the host and copy it";
            return Err(Refusal::new(403, format!("a request is refused: {why}")));
        }
        self.check_host(&url.host(), &shown)?;
        let accept = head.header("accept").filter(|accept| *accept != "*/*").map(str::to_owned);
        if accept.as_ref().is_some_and(|accept| (self.holds_secret)(accept)) {
            let why = "its `Accept` header holds a secret, which would be in kiln.lock";
            return Err(Refusal::new(403, format!("{shown} is refused: {why}")));
        }
        if head.has_credentials() {
            self.note_refusal(&format!("the login that a program sent with a request for {shown} is not passed on"));
        }
        let git_protocol = head.git_protocol().map(str::to_owned);
        let kind = match &method {
            GuestMethod::Get => RequestKind::Get,
            GuestMethod::Head => RequestKind::Head,
            GuestMethod::Post(body) => RequestKind::UploadPack(Sha256Digest::of(body)),
        };
        let request = RecordedRequest { url: shown, kind, accept, git_protocol };
        // These are as they are because the body is.
        let of_body =
            ["content-type", "content-encoding"].into_iter().filter(|_| matches!(method, GuestMethod::Post(_)));
        let of_body = of_body.filter_map(|name| Some((name, head.header(name)?)));
        // No other header is passed on: an answer that depends on it would be given to other requests as well.
        let headers = request.headers().chain(of_body);
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let checked = request.check().and_then(|()| Url::of_resource(&request.url).map_err(|_| "has no valid URL"));
        match checked {
            Ok(shown) => Ok((request, GuestRequest { url, shown, method, headers })),
            Err(why) => Err(Refusal::new(400, format!("{} is refused: the request {why}", request.url))),
        }
    }

    /// Refuses what is asked of a host that the spec does not allow.
    pub(super) fn check_host(&self, host: &str, shown: &str) -> Result<(), Refusal> {
        if self.policy.allows(host) {
            return Ok(());
        }
        let why = "`allow` of [network] in the spec does not list this host";
        Err(Refusal::new(403, format!("{shown} is refused: {why}")))
    }

    /// Fills an answer: from the cache if it is known, else from the server.
    fn fetch(&self, known: Option<RecordedAnswer>, sent: &GuestRequest, incoming: &IncomingAnswer) {
        let (mut progress, mut notice) = (|_| {}, |_| {});
        let mut watch = DownloadWatch::new(&self.cancel, &mut progress, &mut notice);
        let expected = match known {
            Some(known) => match self.give_again(&known, incoming, &mut watch) {
                Ok(true) => return,
                Ok(false) => Some(known.sha256),
                Err(error) => return incoming.fail(error),
            },
            None => None,
        };
        let renewed = self.renew(sent, &mut watch);
        let sent = renewed.as_ref().unwrap_or(sent);
        // The error is in the answer.
        let _ = self.cache.record((&self.client, sent), expected, &self.limits, (incoming, &mut watch));
    }

    /// Gives a recorded answer, if its body is in the cache.
    fn give_again(
        &self,
        known: &RecordedAnswer,
        incoming: &IncomingAnswer,
        watch: &mut DownloadWatch<'_>,
    ) -> Result<bool, DownloadError> {
        let RecordedAnswer { status, headers, bytes, sha256, .. } = known;
        let has_body = *sha256 != Sha256Digest::of("");
        let body = if has_body { self.cache.find_file(*sha256, watch)? } else { None };
        if has_body && body.is_none() {
            return Ok(false);
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(*bytes);
        let head = AnswerHead { status: *status, length: Some(length), headers: headers.clone() };
        incoming.complete(head, *sha256, body)?;
        Ok(true)
    }

    /// Notes why a request of the running step was refused.
    pub(super) fn note_refusal(&self, reason: &str) {
        let mut state = self.lock();
        if state.refusals.len() < MOST_REFUSALS && !state.refusals.iter().any(|other| other == reason) {
            state.refusals.push(reason.to_owned());
        }
    }

    /// Begins a step: what was asked before does not belong to it.
    pub(super) fn begin_step(&self) {
        let mut state = self.lock();
        state.asked.clear();
        state.refusals.clear();
        state.unrecorded.clear();
        state.ambiguous.clear();
    }

    /// Returns what the step got. Blocks until the bodies that it asked for are complete, whether it read them or not.
    pub(super) fn end_step(&self) -> StepTraffic {
        let mut state = self.lock();
        let asked = std::mem::take(&mut state.asked);
        let refusals = std::mem::take(&mut state.refusals);
        let unrecorded = std::mem::take(&mut state.unrecorded).into_iter().map(UnansweredError::Unrecorded);
        let ambiguous = std::mem::take(&mut state.ambiguous).into_iter().map(UnansweredError::Ambiguous);
        let unanswered = unrecorded.chain(ambiguous).collect();
        let answers: Vec<_> =
            asked.into_iter().filter_map(|request| Some((state.answers.get(&request)?.clone(), request))).collect();
        drop(state);
        let mut traffic = StepTraffic { refusals, unanswered, ..StepTraffic::default() };
        for (answer, request) in answers {
            match answer.finished() {
                Ok((head, ..)) if is_about_credential(head.status, &request.url) => traffic.has_gaps = true,
                Ok(finished) => traffic.answers.push(recorded(finished, request)),
                Err(why) if self.known.contains_key(&request) => {
                    traffic.unanswered.push(UnansweredError::Recorded { url: request.url, why });
                }
                Err(error) if error.is_offline() => {
                    traffic.unanswered.push(UnansweredError::Unrecorded(request.url));
                }
                Err(_) => traffic.has_gaps = true,
            }
        }
        traffic
    }

    fn lock(&self) -> MutexGuard<'_, RecorderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether an answer with this status may be about the credentials in the URL, which can have expired, rather than
/// about the resource.
fn is_about_credential(status: u16, url: &str) -> bool {
    matches!(status, 400 | 403) && is_redacted(url)
}

/// Returns the request that was recorded, as it can be sent again; `None` for one with a body.
pub(super) fn request_of(recorded: &RecordedRequest) -> Option<GuestRequest> {
    let method = match recorded.kind {
        RequestKind::Get => GuestMethod::Get,
        RequestKind::Head => GuestMethod::Head,
        RequestKind::UploadPack(_) => return None,
    };
    let headers = recorded.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let url = Url::of_resource(&recorded.url).ok()?;
    Some(GuestRequest { shown: url.clone(), url, method, headers })
}

/// Returns the form in which an answer is recorded: without credentials.
fn recorded(
    (AnswerHead { status, mut headers, .. }, sha256, bytes): (AnswerHead, Sha256Digest, u64),
    request: RecordedRequest,
) -> RecordedAnswer {
    for (name, redact) in [("location", redact as fn(&str) -> String), ("link", redact_links)] {
        if let Some(value) = headers.get_mut(name) {
            *value = redact(value);
        }
    }
    RecordedAnswer { request, status, sha256, bytes, headers, steps: BTreeSet::new() }
}
