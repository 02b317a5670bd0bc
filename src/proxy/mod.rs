//! The proxy of the locked network: what the steps of a guest without a network card ask for over HTTP, it answers from the
//! record in `kiln.lock`, or asks the servers and records what they answer.
//!
//! ```text
//! guest --port--> tunnel --Connection--> exchange --request--> recorder --> record + cache | servers
//!                                          |  TLS by the authority of this build
//! ```
//!
//! The guest is assumed to be hostile: every head, body, connection and wait has a limit, and it reaches no address that
//! the policy does not allow.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::download::{DownloadCache, TransferError};
use crate::error::{Fault, Kind};
use crate::network_record::NetworkRecord;
use crate::size::ByteSize;
use crate::specfile::HostPattern;
use crate::wire::network::{AUTHORITY, BUNDLE, PROXY, ProxyAccess};

mod authority;
mod exchange;
mod policy;
mod recorder;
mod redaction;
mod redirection;
mod request;
#[cfg(test)]
mod tests;
mod tunnel;
mod upstream;

use authority::{Authority, AuthorityError};
use policy::HostPolicy;
use recorder::Recorder;
pub use recorder::{StepTraffic, UnansweredError};
pub use upstream::{IndexState, UpstreamCheck};

/// The size limit of one body.
const LARGEST_BODY: ByteSize = ByteSize::gib(8);

/// What a proxy may use.
pub struct ProxyOptions<'a> {
    /// The cache of the bodies.
    pub cache: DownloadCache,
    /// The answers of an earlier build.
    pub record: Option<&'a NetworkRecord>,
    /// The hosts that the spec allows.
    pub allow: Vec<HostPattern>,
    /// Whether only recorded answers are given.
    pub is_strict: bool,
    /// Returns whether a text holds a secret of the spec.
    pub holds_secret: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// Ends all requests when it is cancelled.
    pub cancel: CancellationToken,
}

/// The proxy of one build.
#[derive(Clone)]
pub struct Proxy {
    core: Arc<ProxyCore>,
}

struct ProxyCore {
    authority: Authority,
    recorder: Arc<Recorder>,
}

/// The proxy cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The authority cannot be generated.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The client for servers cannot be set up.
    #[error("the locked network cannot reach servers: {0}")]
    Client(#[from] TransferError),
    /// A thread cannot be started.
    #[error("cannot serve the locked network")]
    Start(#[from] io::Error),
}

impl Fault for ProxyError {
    fn kind(&self) -> Kind {
        Kind::Host
    }
}

impl Proxy {
    /// Creates a proxy, which serves no guest yet.
    ///
    /// # Errors
    /// When no keys can be generated, or the host's own proxy has an invalid name.
    pub fn new(options: ProxyOptions<'_>) -> Result<Self, ProxyError> {
        let policy = HostPolicy::new(options.allow);
        let client = policy.client()?;
        let recorder = Recorder {
            is_strict: options.is_strict,
            holds_secret: options.holds_secret,
            cancel: options.cancel,
            ..Recorder::new(options.cache, client, policy, options.record)
        };
        Ok(Self { core: Arc::new(ProxyCore { authority: Authority::generate()?, recorder: Arc::new(recorder) }) })
    }

    /// Returns what a command in the guest needs to use the proxy.
    #[must_use]
    pub fn access(&self) -> ProxyAccess {
        ProxyAccess { authority: self.core.authority.pem().into() }
    }

    /// Serves a guest over the port of its network, until its machine is gone.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn serve(&self, port: UnixStream) -> Result<(), ProxyError> {
        let core = Arc::clone(&self.core);
        Ok(tunnel::start(port, move |connection| exchange::serve(connection, &core))?)
    }

    /// Begins a step: what was asked before does not belong to it.
    pub fn begin_step(&self) {
        self.core.recorder.begin_step();
    }

    /// Returns what the step got. Blocks until the bodies that it asked for are complete.
    #[must_use]
    pub fn end_step(&self) -> StepTraffic {
        self.core.recorder.end_step()
    }
}

/// Returns the environment variables by which programs find the proxy, and trust its certificates.
#[must_use]
pub fn environment() -> BTreeMap<String, String> {
    let proxy = format!("http://{PROXY}");
    let proxies = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"].map(|name| (name, proxy.as_str()));
    let direct = ["no_proxy", "NO_PROXY"].map(|name| (name, "localhost,127.0.0.1,::1"));
    // OpenSSL, Go and Ruby; curl; Python's requests; pip; git; cargo.
    let bundles =
        ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO"]
            .map(|name| (name, BUNDLE));
    // Node adds it to its own list.
    let added = [("NODE_EXTRA_CA_CERTS", AUTHORITY)];
    let all = proxies.into_iter().chain(direct).chain(bundles).chain(added);
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
