//! Requests to the Hub: who is asked, what is tried again, and what an answer means.

use std::io::{self, Read};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Body, Proxy, Timeout};

use super::environment::Environment;
use crate::cache::read_small;
use crate::error::{Error, Result};
use crate::limits::{ANSWER_BYTES_MAX, CERTIFICATES_BYTES_MAX};
use crate::text::{cut_to, one_line};

/// What is waited before the first repetition; before each further one twice as long.
const PAUSE: Duration = Duration::from_millis(500);

/// Attempts in a row that bring nothing.
const ATTEMPTS: u32 = 6;

/// Attempts to reach the Hub for what a repository has: who has no network learns it soon.
const FIRST_CONTACTS: u32 = 2;

/// The longest that the Hub may let us wait by its own word: its limits count requests in five minutes.
const WAIT_MAX: Duration = Duration::from_secs(330);

/// How long an answer may take, or bring nothing.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Redirections in a row.
const HOPS_MAX: usize = 8;

/// How a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may do better another time, which the server may have named.
    Passing(String, Option<Duration>),
    /// No connection came about.
    Unreachable(String),
    /// The server says no.
    Refused(Refusal),
    /// For good.
    Final(Error),
}

/// A server's no.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// The Hub's word for it.
    pub(super) code: String,
    /// The Hub's sentence.
    pub(super) message: String,
}

/// An answer, and what the Hub said of the file where it sent us to another server.
pub(super) struct Answer {
    response: Response<Body>,
    /// Who answered.
    pub(super) url: String,
    /// The commit that the Hub read it from.
    pub(super) commit: Option<String>,
    /// The hash that the Hub knows the file by.
    pub(super) etag: Option<String>,
    /// Whether another server than the Hub has sent it.
    pub(super) is_elsewhere: bool,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header(self.response.headers(), name)
    }

    /// The first byte of what was sent, and how many the file has, by `Content-Range`.
    pub(super) fn content_range(&self) -> Option<(u64, u64)> {
        let (range, total) = self.header("content-range")?.strip_prefix("bytes ")?.split_once('/')?;
        Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
    }

    pub(super) fn reader(self) -> impl Read {
        self.response.into_body().into_reader()
    }
}

/// Connections to the Hub and to the servers that it sends us to.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    environment: Environment,
    token: Option<String>,
    /// Whether no connection may be made.
    is_offline: bool,
}

impl Client {
    /// # Errors
    /// Kind `Config`: the environment names certificates that cannot be read.
    pub(super) fn new(environment: &Environment, is_offline: bool) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(file) = environment.certificates() {
            tls = tls.root_certs(certificates(&file)?);
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .proxy(environment.has_proxies().then(Proxy::try_from_env).flatten())
            .user_agent(concat!("mergeforge/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Each hop is looked at: what the Hub says of a file stands in its own answer, and the token is for it alone.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT_MAX))
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(SILENCE_MAX))
            .timeout_per_read(Some(SILENCE_MAX))
            .max_idle_connections_per_host(32)
            .max_idle_connections(64)
            .build();
        Ok(Self {
            agent: config.new_agent(),
            token: environment.token(),
            environment: environment.clone(),
            is_offline,
        })
    }

    /// Whether it is the one for this environment.
    pub(super) fn suits(&self, environment: &Environment, is_offline: bool) -> bool {
        self.is_offline == is_offline && self.environment == *environment && self.token == environment.token()
    }

    /// The address of a path on the Hub.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.environment.endpoint())
    }

    /// Whether no connection may be made.
    pub(super) fn is_offline(&self) -> bool {
        self.is_offline
    }

    /// Whether the user has said who they are.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The Hub's address, for messages: without what may be secret in it.
    pub(super) fn endpoint(&self) -> String {
        let endpoint = self.environment.endpoint();
        match endpoint.split_once("://") {
            Some((scheme, rest)) => format!("{scheme}://{}", rest.rsplit('@').next().unwrap_or_default()),
            None => endpoint.to_owned(),
        }
    }

    /// Whether an address is on the Hub itself.
    fn is_hub(&self, url: &str) -> bool {
        let rest = url.strip_prefix(self.environment.endpoint());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
    }

    /// Asks once for a file or a part of it.
    pub(super) fn get(&self, url: &str, range: Option<&Range<u64>>) -> std::result::Result<Answer, Failure> {
        if self.is_offline {
            return Err(Failure::Final(
                network("not all that is needed is in the cache, and no connection may be made")
                    .hint("run it once without --offline and HF_HUB_OFFLINE"),
            ));
        }
        let (mut url, mut commit, mut etag) = (url.to_owned(), None, None);
        for _ in 0..HOPS_MAX {
            let is_hub = self.is_hub(&url);
            let mut request = self.agent.get(&url).header("accept-encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(Range { start, end }) = range {
                request = request.header("range", format!("bytes={start}-{}", end - 1));
            }
            let response = request.call().map_err(|cause| failed(&url, cause))?;
            let headers = response.headers();
            if is_hub {
                let said = |name| header(headers, name).map(str::to_owned);
                // Of the last one: a repository may have been renamed, and the Hub sends us to itself.
                commit = said("x-repo-commit");
                etag = said("x-linked-etag").or_else(|| said("etag"));
            }
            let status = response.status().as_u16();
            if let (301 | 302 | 303 | 307 | 308, Some(location)) = (status, header(headers, "location")) {
                url = joined(&url, location);
                continue;
            }
            if (200..300).contains(&status) {
                let etag = etag.as_deref().map(plain_etag);
                return Ok(Answer { response, commit, etag, is_elsewhere: !is_hub, url });
            }
            return Err(refused(&url, status, headers, is_hub));
        }
        Err(Failure::Final(network(format!("{} redirects without an end", host(&url)))))
    }

    /// Asks for JSON, as often as it takes: the answer, and where the list goes on.
    pub(super) fn json<T: DeserializeOwned>(
        &self,
        url: &str,
        stop: &dyn Fn() -> bool,
        refusal: &dyn Fn(&Refusal) -> Error,
    ) -> Result<(T, Option<String>)> {
        let mut tries = Tries::new(stop);
        tries.unreachable_max = FIRST_CONTACTS;
        loop {
            let asked = self.get(url, None).and_then(|answer| {
                let next = answer.header("link").and_then(next_page).map(|next| joined(&answer.url, next));
                let mut text = Vec::new();
                let read = answer.reader().take(ANSWER_BYTES_MAX).read_to_end(&mut text);
                read.map_err(|cause| broken(url, &cause))?;
                Ok((text, next))
            });
            match asked {
                Ok((text, next)) => {
                    let parsed = serde_json::from_slice(&text).map_err(|cause| {
                        network(format!("{} did not answer as the Hub does: {cause}", host(url)))
                            .hint("HF_ENDPOINT names the Hub, or a mirror of it")
                    });
                    return Ok((parsed?, next));
                }
                Err(failure) => tries.after(failure, refusal)?,
            }
        }
    }
}

/// Attempts at one thing.
pub(super) struct Tries<'a> {
    stop: &'a dyn Fn() -> bool,
    failed: u32,
    /// Attempts in a row without a connection.
    unreachable_max: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(stop: &'a dyn Fn() -> bool) -> Self {
        Self { stop, failed: 0, unreachable_max: ATTEMPTS }
    }

    /// Something came: whatever fails next fails for the first time.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits after a failure, if it is one that passes.
    ///
    /// # Errors
    /// It does not, or came too often, or the user wants to stop.
    pub(super) fn after(&mut self, failure: Failure, refusal: &dyn Fn(&Refusal) -> Error) -> Result<()> {
        let (what, after, most) = match failure {
            Failure::Passing(what, after) => (what, after, ATTEMPTS),
            Failure::Unreachable(what) => (what, None, self.unreachable_max),
            Failure::Refused(refused) => return Err(refusal(&refused)),
            Failure::Final(error) => return Err(error),
        };
        self.failed += 1;
        if self.failed >= most || after.is_some_and(|after| after > WAIT_MAX) {
            let hint = match after.filter(|after| !after.is_zero()) {
                Some(after) => format!(
                    "run it again in {} s: what has come is kept; who sends a token (HF_TOKEN) may ask more often",
                    after.as_secs()
                ),
                None => "run it again when the connection is back: what has come is kept; --offline does with what is in the \
                         cache"
                    .into(),
            };
            return Err(network(what).hint(hint));
        }
        let until = Instant::now() + after.unwrap_or(PAUSE * 2_u32.pow(self.failed - 1));
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if (self.stop)() {
                return Err(Error::interrupted());
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }
}

/// The connection fails, or the Hub does.
pub(super) fn network(message: impl Into<String>) -> Error {
    Error::network(message)
}

/// What a request says that got no answer.
fn failed(url: &str, cause: ureq::Error) -> Failure {
    let host = host(url);
    match cause {
        ureq::Error::HostNotFound => {
            Failure::Unreachable(format!("cannot reach {host}: no server of this name is known"))
        }
        ureq::Error::ConnectionFailed => Failure::Unreachable(format!("cannot reach {host}")),
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            Failure::Unreachable(format!("cannot reach {host}: no answer in {} s", CONNECT_MAX.as_secs()))
        }
        ureq::Error::Io(cause) if is_unreachable(&cause) => {
            Failure::Unreachable(format!("cannot reach {host}: {cause}"))
        }
        // A certificate that is not trusted fails where bytes are read for the first time.
        ureq::Error::Io(cause) if cause.kind() == io::ErrorKind::InvalidData => insecure(&host, &cause),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Failure::Final(
            network(format!("{host} cannot be asked: its address or the token has signs that none may have"))
                .hint("HF_ENDPOINT is like https://huggingface.co, a token like hf_…"),
        ),
        ureq::Error::InvalidProxyUrl => Failure::Final(
            network("the proxy that HTTPS_PROXY or ALL_PROXY names is no address")
                .hint("it is like http://host:port"),
        ),
        ureq::Error::Rustls(cause) => insecure(&host, &cause),
        cause => Failure::Passing(format!("cannot reach {host}: {cause}"), None),
    }
}

/// Whether no connection came about: no such name, no route, nobody who listens.
fn is_unreachable(cause: &io::Error) -> bool {
    use io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable,
    };
    /// Windows knows no server of this name.
    const HOST_NOT_FOUND: i32 = 11001;
    let kinds = [AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable];
    kinds.contains(&cause.kind())
        || cause.raw_os_error() == Some(HOST_NOT_FOUND)
        // The standard library has no kind for a name that nobody knows.
        || cause.to_string().contains("failed to lookup address")
}

fn insecure(host: &str, cause: &dyn std::fmt::Display) -> Failure {
    Failure::Final(
        network(format!("no secure connection to {host}: {cause}"))
            .hint("where a company reads its own traffic, SSL_CERT_FILE names its certificates"),
    )
}

/// A connection that ends too early.
pub(super) fn broken(url: &str, cause: &io::Error) -> Failure {
    Failure::Passing(format!("the connection to {} broke off: {cause}", host(url)), None)
}

fn refused(url: &str, status: u16, headers: &HeaderMap, is_hub: bool) -> Failure {
    let said = |name| cut_to(&one_line(header(headers, name).unwrap_or_default()), 300);
    // Another server than the Hub knows nothing of repositories and accounts: its address may have expired.
    if !is_hub || matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504) {
        // The Hub says when its window ends: `RateLimit: "api";r=0;t=55`.
        let window =
            || header(headers, "ratelimit")?.split(';').find_map(|part| part.trim().strip_prefix("t="));
        let seconds = |text: &str| text.trim().parse().ok();
        let after = header(headers, "retry-after").and_then(seconds).or_else(|| window().and_then(seconds));
        let host = host(url);
        let what = match status {
            429 => format!("{host} answers 429: too many requests"),
            _ => format!("{host} answers {status}"),
        };
        return Failure::Passing(what, after.map(Duration::from_secs));
    }
    Failure::Refused(Refusal { status, code: said("x-error-code"), message: said("x-error-message") })
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// An entity tag as the hash that it is.
fn plain_etag(etag: &str) -> String {
    etag.trim().trim_start_matches("W/").trim_matches('"').to_owned()
}

/// Scheme and host of an address: what it is about, without what is secret in it.
pub(super) fn host(url: &str) -> String {
    let uri: Option<Uri> = url.parse().ok();
    let authority = uri.and_then(|uri| Some(uri.authority()?.as_str().to_owned()));
    let authority = authority.unwrap_or_else(|| "that address".into());
    authority.rsplit('@').next().unwrap_or_default().to_owned()
}

/// An address that stands in an answer, which may leave out what it shares with that of the question.
fn joined(base: &str, location: &str) -> String {
    let scheme_end = base.find("://").map_or(0, |at| at + 3);
    let host_end = base[scheme_end..].find('/').map_or(base.len(), |at| scheme_end + at);
    if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}{rest}", &base[..scheme_end])
    } else if location.starts_with('/') {
        format!("{}{location}", &base[..host_end])
    } else {
        let folder = base.split(['?', '#']).next().unwrap_or(base);
        let folder = folder.rfind('/').filter(|at| *at >= host_end).map_or(folder, |at| &folder[..at]);
        format!("{folder}/{location}")
    }
}

/// Where a list goes on, by `Link: <URL>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|part| {
        let (url, rest) = part.trim().strip_prefix('<')?.split_once('>')?;
        rest.contains("rel=\"next\"").then_some(url)
    })
}

fn certificates(file: &std::path::Path) -> Result<RootCerts> {
    let refused = |what: &dyn std::fmt::Display| {
        Error::config(format!("cannot read certificates from {}: {what}", file.display()))
            .hint("SSL_CERT_FILE, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE name a file of certificates in PEM")
    };
    let text = read_small(file, CERTIFICATES_BYTES_MAX).map_err(|cause| refused(&cause))?;
    let found: Vec<Certificate<'static>> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() { Err(refused(&"there are none")) } else { Ok(RootCerts::from(found)) }
}

/// A part of an address: what is no letter of it stands in hexadecimal.
pub(super) fn encoded(part: &str) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(byte as char);
        } else {
            write!(text, "%{byte:02X}").expect("a string takes all");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_as_browsers_do() {
        for (base, location, expected) in [
            ("https://h/a/b?c", "https://cdn/x?y", "https://cdn/x?y"),
            ("https://h/a/b", "/x/y", "https://h/x/y"),
            ("https://h:8/a/b?q=/z", "c", "https://h:8/a/c"),
            ("http://h", "/x", "http://h/x"),
            ("http://h/a", "//cdn/x", "http://cdn/x"),
        ] {
            assert_eq!(joined(base, location), expected);
        }
    }

    #[test]
    fn the_next_page_is_found() {
        let link = "<https://h/api?cursor=a%2Fb>; rel=\"next\", <https://h/api>; rel=\"first\"";
        assert_eq!(next_page(link), Some("https://h/api?cursor=a%2Fb"));
        assert_eq!(next_page("<https://h/api>; rel=\"prev\""), None);
    }

    #[test]
    fn only_the_hub_is_the_hub() {
        let environment = Environment::default().with("HF_ENDPOINT", "https://hub.example/base");
        let client = Client::new(&environment, false).unwrap();
        for (url, is_hub) in [
            ("https://hub.example/base/org/name", true),
            ("https://hub.example/base?x", true),
            ("https://hub.example/baseless", false),
            ("https://hub.example/other", false),
            ("http://hub.example/base/org", false),
            ("https://hub.example.evil/base/org", false),
        ] {
            assert_eq!(client.is_hub(url), is_hub, "{url}");
        }
    }

    #[test]
    fn parts_of_addresses_are_encoded() {
        assert_eq!(encoded("refs/pr/7"), "refs%2Fpr%2F7");
        assert_eq!(encoded("ä b+c-._~"), "%C3%A4%20b%2Bc-._~");
    }

    #[test]
    fn certificates_are_those_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, "nothing").unwrap();
        let environment = Environment::default().with("SSL_CERT_FILE", file.as_os_str());
        assert!(Client::new(&environment, false).unwrap_err().message.contains("there are none"));
        let missing = Environment::default().with("SSL_CERT_FILE", folder.path().join("none").as_os_str());
        assert!(Client::new(&missing, false).unwrap_err().message.contains("cannot read certificates"));
    }
}
