//! The Hugging Face Hub for tests: a server that speaks its API, keeps what it was asked, and fails when it is told to.
//!
//! ```text
//! http://127.0.0.1:PORT  the Hub: /api/models/ID[/revision/R], /api/models/ID/tree/R[/FOLDER], /ID/resolve/R/FILE
//! http://localhost:PORT  its CDN, on another host: files of LFS, to which /resolve/ redirects
//! ```
//!
//! Written on sockets, since much of what goes wrong with a download goes wrong below HTTP. `tools/hub_server.rs` is the same as a
//! program, and `tools/hub_agreement.py` holds it to what the Hub's own client takes for the Hub.

mod answers;
mod faults;
mod repository;
mod serving;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use serde_json::{Value, json};

use answers::Link;
pub use answers::Who;
pub use faults::Fault;
use faults::Rule;
pub use repository::{Access, Files, Repository};
use serving::{Listener, Shared};

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    Hub,
    Cdn,
}

impl Host {
    /// As it stands in records and in the lines that faults look for words in.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hub => "hub",
            Self::Cdn => "cdn",
        }
    }
}

/// One request, and what became of it.
#[derive(Clone, Debug)]
pub struct Record {
    pub host: Host,
    pub method: String,
    /// Path and query, as they were sent.
    pub target: String,
    pub range: Option<String>,
    /// Whether a token came with it.
    pub is_authorised: bool,
    /// Whether it came as to a proxy.
    pub is_proxied: bool,
    pub status: u16,
    /// Bytes of the answer's body that went out.
    pub sent_bytes: u64,
    /// The file that they are of, as `org/name/file`.
    pub file: Option<String>,
}

impl Record {
    fn json(&self) -> Value {
        json!({
            "host": self.host.word(),
            "method": self.method,
            "target": self.target,
            "range": self.range,
            "authorised": self.is_authorised,
            "proxied": self.is_proxied,
            "status": self.status,
            "sent": self.sent_bytes,
            "file": self.file,
        })
    }
}

/// What the two servers know.
pub struct State {
    repositories: BTreeMap<String, Repository>,
    /// Old names, and what they lead to.
    renamed: BTreeMap<String, String>,
    tokens: BTreeMap<String, Who>,
    /// How many entries a page of a tree has.
    page_entries: usize,
    /// How often an address of the CDN is good.
    link_uses: usize,
    /// By their targets.
    links: BTreeMap<String, Link>,
    /// Where the CDN is.
    cdn: String,
    rules: Vec<Rule>,
    records: Vec<Record>,
    /// How many records there were before these.
    forgotten: usize,
}

impl State {
    /// Counts what goes out in answer to a request, unless it is forgotten.
    fn count(&mut self, number: usize, bytes: u64) {
        let record = number.checked_sub(self.forgotten).and_then(|at| self.records.get_mut(at));
        if let Some(record) = record {
            record.sent_bytes += bytes;
        }
    }
}

/// The Hub and its CDN, until they are dropped.
pub struct Hub {
    shared: Arc<Shared>,
    /// In the order of [`Host`].
    listeners: [Listener; 2],
}

impl Hub {
    /// Both, at ports that are free; with no repository.
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let listeners = [Host::Hub, Host::Cdn].map(|host| Listener::open(&shared, host));
        let started = Self { shared, listeners };
        started.state().cdn = started.cdn();
        started
    }

    /// For `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.listeners[Host::Hub as usize].port())
    }

    /// The CDN's host and port.
    pub fn cdn(&self) -> String {
        format!("http://localhost:{}", self.listeners[Host::Cdn as usize].port())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// Adds a commit to a repository, which need not be there: a branch, tag or pull request names it from now on.
    pub fn publish(&self, id: &str, revision: &str, files: Files) -> String {
        self.state().repositories.entry(id.into()).or_default().publish(revision, files)
    }

    /// Lets one more name stand for the commit of a revision.
    pub fn tag(&self, id: &str, name: &str, revision: &str) -> Option<String> {
        self.state().repositories.get_mut(id)?.tag(name, revision)
    }

    /// Says who may read a repository.
    pub fn limit(&self, id: &str, access: Access) {
        self.state().repositories.entry(id.into()).or_default().access = access;
    }

    /// Gives a repository another name, to which the old one redirects.
    pub fn rename(&self, from: &str, to: &str) {
        let mut state = self.state();
        if let Some(repository) = state.repositories.remove(from) {
            state.repositories.insert(to.into(), repository);
        }
        state.renamed.remove(to);
        state.renamed.insert(from.into(), to.into());
    }

    /// Gives somebody a token.
    pub fn token(&self, token: &str, who: Who) {
        self.state().tokens.insert(token.into(), who);
    }

    /// Pages of a tree have no more entries than this.
    pub fn page_entries(&self, most: usize) {
        self.state().page_entries = most;
    }

    /// An address of the CDN that is given out from now on is good for so many requests.
    pub fn link_uses(&self, most: usize) {
        self.state().link_uses = most;
    }

    /// Lets something go wrong with the next so many requests whose line has this word in it. The line is `GET hub /org/name/…` or
    /// `HEAD cdn /…`; an address of the CDN has the file's name in it. Requests that it would change nothing of do not count.
    pub fn fault(&self, word: &str, times: usize, fault: Fault) {
        self.state().rules.push(Rule { word: word.into(), fault, left: times });
    }

    /// Ends all faults that were to come.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Lets nobody connect any more, and ends the connections that there are.
    pub fn close(&mut self, host: Host) {
        self.listeners[host as usize].close();
    }

    /// Lets clients connect again, at the port of before.
    pub fn reopen(&mut self, host: Host) {
        self.listeners[host as usize].reopen();
    }

    /// All requests, in the order in which they came.
    pub fn requests(&self) -> Vec<Record> {
        self.state().records.clone()
    }

    /// How many bytes of each file went out, by `org/name/file`.
    pub fn sent(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for record in &self.state().records {
            if let Some(file) = &record.file {
                *sums.entry(file.clone()).or_default() += record.sent_bytes;
            }
        }
        sums
    }

    /// How many requests brought a token to the CDN, which none may.
    pub fn tokens_at_cdn(&self) -> usize {
        let has_token = |record: &&Record| record.host == Host::Cdn && record.is_authorised;
        self.state().records.iter().filter(has_token).count()
    }

    /// Begins to count anew. Requests that are still answered are counted no more.
    pub fn forget(&self) {
        let mut state = self.state();
        state.forgotten += state.records.len();
        state.records.clear();
    }

    /// Faults that are still to come, each as often as it is.
    pub fn faults_left(&self) -> usize {
        self.state().rules.iter().map(|rule| rule.left).fold(0, usize::saturating_add)
    }

    /// All that was counted: `requests`, `files` with the bytes that went out of each, `tokens_at_cdn`, `faults_left`.
    pub fn counts(&self) -> Value {
        let requests: Vec<Value> = self.requests().iter().map(Record::json).collect();
        let (tokens, faults) = (self.tokens_at_cdn(), self.faults_left());
        json!({"requests": requests, "files": self.sent(), "tokens_at_cdn": tokens, "faults_left": faults})
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.end();
        self.listeners.iter_mut().for_each(Listener::close);
    }
}
