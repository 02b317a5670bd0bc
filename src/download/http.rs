//! One exchange over HTTP/1.1, in a thread of its own: its messages arrive over a channel, so that the receiver can be
//! stopped at any moment, whatever the server does.
//!
//! A redirection is followed ten times at most, and never from `https` to `http`. Connecting, sending the request and every
//! single read have a time limit; the whole exchange has none. Dropping the exchange closes its connection.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::thread;

use ureq::config::{Config, ConfigBuilder};
use ureq::http::{HeaderMap, Request, Response, Uri, header, request};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::typestate::AgentScope;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, AsSendBody, Body, Proxy};

use super::DownloadLimits;
use super::error::TransferError;
use crate::url::{Scheme, Url};

/// Size of reads, bytes.
const PIECE: usize = 256 << 10;
/// Number of pieces that may wait in the channel.
const WAITING: usize = 4;
const MOST_REDIRECTIONS: u32 = 10;
/// The longest header of an answer that is recorded, bytes.
const LONGEST_HEADER: usize = 4096;
/// Headers of answers that are recorded: those that clients act on.
const RECORDED_HEADERS: [&str; 11] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "docker-content-digest",
    "docker-distribution-api-version",
    "link",
    "location",
    "x-pypi-last-serial",
    "www-authenticate",
];

/// Head of a server's response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ResponseHead {
    pub(super) status: u16,
    /// Length of the body, if it is announced.
    pub(super) length: Option<u64>,
    pub(super) content_range: Option<String>,
    /// The strong entity tag, if there is one.
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
    /// The other headers that clients act on, by their names in lower case.
    pub(super) headers: BTreeMap<String, String>,
}

/// A message of the channel. It ends after [`HttpMessage::End`] or an error.
pub(super) enum HttpMessage {
    Head(ResponseHead),
    Piece(Vec<u8>),
    End,
}

/// A request for the rest of a file: the first byte, and the validator that must still match (RFC 9110 13.1.5).
pub(super) struct ResumeRange {
    pub(super) byte: u64,
    pub(super) if_range: Option<String>,
}

/// A running exchange.
pub(super) struct Exchange {
    pub(super) messages: Receiver<Result<HttpMessage, TransferError>>,
    /// The client, if it serves this exchange alone.
    agent: Option<Agent>,
}

/// A function that decides whether a connection may be opened to an address of a host.
pub(crate) type AddressGuard = dyn Fn(&str, IpAddr) -> bool + Send + Sync;

/// A client for requests on behalf of a guest. It follows no redirection, and keeps connections for further requests.
#[derive(Debug, Clone)]
pub(crate) struct GuestClient {
    http: Agent,
    https: Agent,
}

/// A request on behalf of a guest.
#[derive(Debug, Clone)]
pub(crate) struct GuestRequest {
    /// The URL.
    pub(crate) url: Url,
    /// The URL for messages, without credentials.
    pub(crate) shown: Url,
    /// The method.
    pub(crate) method: GuestMethod,
    /// Headers of the guest's request that are passed on.
    pub(crate) headers: Vec<(String, String)>,
}

/// The method of a request on behalf of a guest.
#[derive(Debug, Clone)]
pub(crate) enum GuestMethod {
    /// A `GET`.
    Get,
    /// A `HEAD`: only the head of the answer is asked for.
    Head,
    /// A `POST` that changes nothing, with its body. There is no request for the rest of its answer.
    Post(Vec<u8>),
}

impl GuestClient {
    /// Creates a client that connects only where `guard` allows it. Through a proxy of the host, the proxy decides.
    pub(crate) fn new(guard: &Arc<AddressGuard>, limits: &DownloadLimits) -> Result<Self, TransferError> {
        let client = |scheme| guarded_agent(scheme, limits, Arc::clone(guard));
        Ok(Self { http: client(Scheme::Http)?, https: client(Scheme::Https)? })
    }

    fn agent(&self, url: &Url) -> &Agent {
        if url.scheme() == Scheme::Https { &self.https } else { &self.http }
    }
}

/// Resolves names, and leaves out the addresses that the guard does not allow.
struct GuardedResolver {
    guard: Arc<AddressGuard>,
    resolver: Box<dyn Resolver>,
}

impl std::fmt::Debug for GuardedResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedResolver").finish_non_exhaustive()
    }
}

impl Resolver for GuardedResolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default();
        let resolved = self.resolver.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        for address in resolved.iter().filter(|address: &&SocketAddr| (self.guard)(host, address.ip())) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            let why = format!("{host} is at {}, which is no public address", resolved[0].ip());
            return Err(ureq::Error::Other(why.into()));
        }
        Ok(allowed)
    }
}

impl Exchange {
    /// Requests a file, or its rest.
    pub(super) fn start(url: &Url, rest: Option<ResumeRange>, limits: &DownloadLimits) -> Result<Self, TransferError> {
        let request = get(url, rest);
        let agent = agent(url, limits)?;
        let messages = begin(agent.clone(), with_body(request, ())?)?;
        Ok(Self { messages, agent: Some(agent) })
    }

    /// Requests a resource on behalf of a guest, or its rest.
    pub(super) fn start_for_guest(
        client: &GuestClient,
        request: &GuestRequest,
        rest: Option<ResumeRange>,
    ) -> Result<Self, TransferError> {
        let url = request.url.as_str();
        let builder = match &request.method {
            GuestMethod::Get => get(&request.url, rest),
            GuestMethod::Head => Request::head(url),
            GuestMethod::Post(_) => Request::post(url).header(header::ACCEPT_ENCODING, "identity"),
        };
        let headers = request.headers.iter();
        let builder = headers.fold(builder, |builder, (name, value)| builder.header(name, value));
        let agent = client.agent(&request.url).clone();
        let messages = match &request.method {
            GuestMethod::Get | GuestMethod::Head => begin(agent, with_body(builder, ())?),
            GuestMethod::Post(body) => begin(agent, with_body(builder, body.clone())?),
        };
        Ok(Self { messages: messages?, agent: None })
    }
}

fn with_body<B>(request: request::Builder, body: B) -> Result<Request<B>, TransferError> {
    request.body(body).map_err(|error| TransferError::Refused(error.to_string()))
}

/// Starts the thread of an exchange, and returns its messages.
fn begin<B: AsSendBody + Send + 'static>(
    agent: Agent,
    request: Request<B>,
) -> Result<Receiver<Result<HttpMessage, TransferError>>, TransferError> {
    let (sender, messages) = sync_channel(WAITING);
    let thread = thread::Builder::new().name("download".into());
    let started = thread.spawn(move || talk(&agent, request, &sender));
    started.map_err(|error| TransferError::Exchange(error.to_string()))?;
    Ok(messages)
}

/// Returns a request for a file, or its rest.
fn get(url: &Url, rest: Option<ResumeRange>) -> request::Builder {
    // A content coding would change the bytes that the digest is of.
    let mut request = Request::get(url.as_str()).header(header::ACCEPT_ENCODING, "identity");
    if let Some(rest) = rest {
        request = request.header(header::RANGE, format!("bytes={}-", rest.byte));
        if let Some(if_range) = rest.if_range {
            request = request.header(header::IF_RANGE, if_range);
        }
    }
    request
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // The thread may be waiting for data. If it is still connecting, its own time limit ends it.
        if let Some(agent) = &self.agent {
            agent.clone().shutdown();
        }
    }
}

/// Runs the exchange. If the receiver is gone, nothing is left to do.
fn talk(agent: &Agent, request: Request<impl AsSendBody>, sender: &SyncSender<Result<HttpMessage, TransferError>>) {
    let answer = agent.run(request);
    let response = match answer.map_err(|error| problem(&error)) {
        Ok(response) => response,
        Err(problem) => return drop(sender.send(Err(problem))),
    };
    if sender.send(Ok(HttpMessage::Head(head(&response)))).is_err() {
        return;
    }
    let mut body = response.into_body().into_reader();
    loop {
        let mut piece = vec![0; PIECE];
        let message = match body.read(&mut piece) {
            Ok(0) => Ok(HttpMessage::End),
            Ok(count) => {
                piece.truncate(count);
                Ok(HttpMessage::Piece(piece))
            }
            Err(error) => Err(problem(&ureq::Error::from(error))),
        };
        let is_last = !matches!(message, Ok(HttpMessage::Piece(_)));
        if sender.send(message).is_err() || is_last {
            return;
        }
    }
}

fn head(response: &Response<Body>) -> ResponseHead {
    let headers = response.headers();
    ResponseHead {
        status: response.status().as_u16(),
        length: response.body().content_length().or_else(|| announced_length(headers)),
        content_range: text(headers, &header::CONTENT_RANGE),
        // A weak entity tag does not identify bytes (RFC 9110 8.8.1).
        etag: text(headers, &header::ETAG).filter(|etag| etag.starts_with('"')),
        last_modified: text(headers, &header::LAST_MODIFIED),
        headers: recorded_headers(headers),
    }
}

/// Returns the length of the body that a `GET` would be answered with, for the answer to a `HEAD`.
fn announced_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    text(headers, &header::CONTENT_LENGTH)?.parse().ok()
}

fn recorded_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let present = RECORDED_HEADERS.iter().filter_map(|name| {
        let value = headers.get(*name)?.to_str().ok().filter(|value| value.len() <= LONGEST_HEADER)?;
        Some(((*name).to_owned(), value.to_owned()))
    });
    present.collect()
}

fn text(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Converts an error of the client into a problem, which decides whether a retry may succeed.
fn problem(error: &ureq::Error) -> TransferError {
    use ureq::Error::{BadUri, Http, InvalidProxyUrl, Io, Other, RequireHttpsOnly, Timeout, TooManyRedirects};
    match error {
        Io(error) => TransferError::Exchange(error.to_string()),
        Timeout(ureq::Timeout::PerRead | ureq::Timeout::RecvResponse) => {
            TransferError::Exchange("the server fell silent".into())
        }
        Timeout(what) => TransferError::Exchange(format!("it took too long to {what}")),
        TooManyRedirects => TransferError::Refused(format!("more than {MOST_REDIRECTIONS} redirections")),
        RequireHttpsOnly(to) => TransferError::Refused(format!("it redirects from https to {to}")),
        // The guard of a guest's client refuses an address.
        Other(why) => TransferError::Refused(why.to_string()),
        Http(_) | BadUri(_) | InvalidProxyUrl => TransferError::Refused(error.to_string()),
        other => TransferError::Exchange(other.to_string()),
    }
}

fn agent(url: &Url, limits: &DownloadLimits) -> Result<Agent, TransferError> {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    super::name_lookup::use_built_in_services();
    let is_https = url.scheme() == Scheme::Https;
    let config = config(url.scheme(), limits)?.https_only(is_https).max_redirects(MOST_REDIRECTIONS);
    Ok(config.build().into())
}

/// Returns a client for guests. The addresses of the host's own proxy are not judged: it is the host's way out.
fn guarded_agent(scheme: Scheme, limits: &DownloadLimits, guard: Arc<AddressGuard>) -> Result<Agent, TransferError> {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    super::name_lookup::use_built_in_services();
    let config = config(scheme, limits)?.max_redirects(0).max_idle_connections_per_host(8).build();
    if config.proxy().is_some() {
        return Ok(config.into());
    }
    Ok(resolving_agent(config, GuardedResolver { guard, resolver: Box::new(DefaultResolver::default()) }))
}

/// Returns a client that resolves a name once for each connection: it connects to the addresses that the guard has allowed,
/// whatever the name resolves to afterwards.
fn resolving_agent(config: Config, resolver: GuardedResolver) -> Agent {
    Agent::with_parts(config, DefaultConnector::new(), resolver)
}

/// Returns what all clients of kiln have in common.
fn config(scheme: Scheme, limits: &DownloadLimits) -> Result<ConfigBuilder<AgentScope>, TransferError> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .proxy(proxy(scheme, &|name| std::env::var(name).ok())?)
        .timeout_resolve(Some(limits.connect))
        .timeout_connect(Some(limits.connect))
        .timeout_send_request(Some(limits.silence))
        .timeout_recv_response(Some(limits.silence))
        .timeout_per_read(Some(limits.silence))
        .timeout_per_write(Some(limits.silence));
    if let Some(roots) = system_roots() {
        config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    Ok(config)
}

/// Returns the authorities that this host trusts, so that a company's own is among them; `SSL_CERT_FILE` and `SSL_CERT_DIR`
/// name others, as for OpenSSL. A host without any gets Mozilla's, which are built in.
fn system_roots() -> Option<RootCerts> {
    static ROOTS: LazyLock<Arc<Vec<Certificate<'static>>>> = LazyLock::new(|| {
        let found = rustls_native_certs::load_native_certs().certs;
        Arc::new(found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
    });
    (!ROOTS.is_empty()).then(|| RootCerts::Specific(ROOTS.clone()))
}

/// Returns the proxy that curl would use (curl(1), ENVIRONMENT): `HTTP_PROXY` in capitals is ignored, since a CGI script's
/// client can set it. The connection is a tunnel (CONNECT), for `http` as well.
fn proxy(scheme: Scheme, variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Proxy>, TransferError> {
    let names: &[&str] = match scheme {
        Scheme::Https => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        _ => &["http_proxy", "all_proxy", "ALL_PROXY"],
    };
    let Some((name, value)) = first_set(names, variable) else { return Ok(None) };
    let exceptions = first_set(&["no_proxy", "NO_PROXY"], variable).map(|(_, value)| value).unwrap_or_default();
    let proxy = build_proxy(&value, &exceptions);
    proxy.map(Some).map_err(|_| TransferError::Refused(format!("{name} names no HTTP proxy")))
}

/// Returns the first of these variables that is set and not empty, with its value.
fn first_set<'n>(names: &[&'n str], variable: &dyn Fn(&str) -> Option<String>) -> Option<(&'n str, String)> {
    let mut set = names.iter().filter_map(|name| Some((*name, variable(name)?)));
    set.find(|(_, value)| !value.is_empty())
}

/// Returns the proxy of a URL, which is not used for the hosts in the list `exceptions`.
fn build_proxy(url: &str, exceptions: &str) -> Result<Proxy, ureq::Error> {
    let named = Proxy::new(url)?;
    let mut proxy = Proxy::builder(named.protocol()).host(named.host()).port(named.port());
    if let Some(user) = named.username() {
        proxy = proxy.username(user);
    }
    if let Some(password) = named.password() {
        proxy = proxy.password(password);
    }
    for host in exceptions.split([',', ' ']).filter(|host| !host.is_empty()) {
        let host = host.strip_prefix('.').unwrap_or(host);
        proxy = proxy.no_proxy(host).no_proxy(&format!(".{host}"));
    }
    proxy.build()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Returns the chosen proxy as `host:port`, and whether it is bypassed for a host.
    fn taken(scheme: Scheme, variables: &[(&str, &str)], host: &str) -> Option<(String, bool)> {
        let variable =
            |wanted: &str| variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned());
        let proxy = proxy(scheme, &variable).unwrap()?;
        let uri = format!("http://{host}/a").parse().unwrap();
        Some((format!("{}:{}", proxy.host(), proxy.port()), proxy.is_no_proxy(&uri)))
    }

    #[test]
    fn the_proxy_is_the_one_that_curl_would_take() {
        let (https, http) = (("https_proxy", "http://one:3128"), ("http_proxy", "two:8080"));
        let all = ("ALL_PROXY", "http://user:word@three");
        for (scheme, variables, expected) in [
            (Scheme::Https, vec![https, http, all], Some("one:3128")),
            (Scheme::Http, vec![https, http, all], Some("two:8080")),
            (Scheme::Http, vec![https, all], Some("three:80")),
            (Scheme::Http, vec![("HTTP_PROXY", "http://evil")], None),
            (Scheme::Https, vec![("https_proxy", ""), ("HTTPS_PROXY", "http://one")], Some("one:80")),
            (Scheme::Https, vec![], None),
        ] {
            let taken = taken(scheme, &variables, "example.org").map(|(proxy, _)| proxy);
            assert_eq!(taken.as_deref(), expected, "{scheme:?} {variables:?}");
        }
        assert!(proxy(Scheme::Https, &|_| Some("::no proxy::".into())).is_err());
    }

    #[test]
    fn hosts_are_left_out_with_all_below_them() {
        let left_out = |exceptions, host| {
            let variables = [("https_proxy", "http://one"), ("no_proxy", exceptions)];
            taken(Scheme::Https, &variables, host).is_some_and(|(_, left_out)| left_out)
        };
        for exceptions in ["example.org", ".example.org", "other,example.org", "other, example.org", "*"] {
            assert!(left_out(exceptions, "example.org") && left_out(exceptions, "a.example.org"), "{exceptions}");
        }
        for exceptions in ["", "other", "ample.org", "org.example"] {
            assert!(!left_out(exceptions, "example.org"), "{exceptions}");
        }
    }

    /// A resolver that answers with the next of these lists of addresses each time.
    #[derive(Debug)]
    struct ChangingResolver {
        answers: Mutex<VecDeque<Vec<SocketAddr>>>,
    }

    impl Resolver for ChangingResolver {
        fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let mut resolved = self.empty();
            for address in self.answers.lock().unwrap().pop_front().expect("no more lookups than answers") {
                resolved.push(address);
            }
            Ok(resolved)
        }
    }

    /// Serves one answer for each connection to an address of this host, and counts the connections.
    fn serve(address: &str, body: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind(address).unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&count);
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]);
                let length = body.len();
                let _ =
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            }
        });
        (address, count)
    }

    #[test]
    fn n28_a_name_that_resolves_to_another_address_after_the_check_is_connected_at_the_checked_one() {
        let (outer, _) = serve("127.0.0.1:0", "outer");
        let (inner, entered) = serve("127.0.0.2:0", "inner");
        let answers = [vec![outer], vec![inner], vec![inner, outer], vec![outer]];
        let resolver = Box::new(ChangingResolver { answers: Mutex::new(answers.into()) });
        let guard: Arc<AddressGuard> = Arc::new(|_, address| address.to_string() == "127.0.0.1");
        let config = config(Scheme::Http, &DownloadLimits::default()).unwrap().proxy(None).build();
        let agent = resolving_agent(config, GuardedResolver { guard, resolver });
        let get = || agent.get("http://rebinding.example/a").call().map_err(|error| error.to_string());
        let read = |response: Result<Response<Body>, String>| response.unwrap().body_mut().read_to_string().unwrap();
        // A second lookup for the same connection would lead inside.
        assert_eq!(read(get()), "outer");
        let refused = get().unwrap_err();
        assert!(refused.contains("rebinding.example is at 127.0.0.2, which is no public address"), "{refused}");
        assert_eq!(read(get()), "outer");
        assert_eq!(read(get()), "outer");
        assert_eq!(entered.load(Ordering::SeqCst), 0);
    }
}
