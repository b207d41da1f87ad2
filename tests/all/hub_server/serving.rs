//! Connections: a thread for each, which answers one request after the other.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::answers::answer;
use super::faults::{Sending, strike};
use super::wire::{Answer, Request};
use super::{Host, Record, State};

/// What is written at a time.
const PIECE_BYTES: usize = 1 << 16;

/// How often a second something is sent where it is to be slow.
const PIECES_A_SECOND: usize = 20;

/// A page of a tree on the Hub.
const PAGE_ENTRIES: usize = 1000;

/// What all threads share.
pub struct Shared {
    state: Mutex<State>,
    /// Whether it is over, which ends what waits.
    over: Mutex<bool>,
    ended: Condvar,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    opened: u64,
    open: BTreeMap<u64, (Host, TcpStream)>,
}

impl Connections {
    fn add(&mut self, host: Host, stream: &TcpStream) -> u64 {
        self.opened += 1;
        if let Ok(stream) = stream.try_clone() {
            self.open.insert(self.opened, (host, stream));
        }
        self.opened
    }
}

impl Default for Shared {
    fn default() -> Self {
        let state = State {
            repositories: BTreeMap::new(),
            renamed: BTreeMap::new(),
            tokens: BTreeMap::new(),
            page_entries: PAGE_ENTRIES,
            link_uses: usize::MAX,
            links: BTreeMap::new(),
            cdn: String::new(),
            rules: Vec::new(),
            records: Vec::new(),
            forgotten: 0,
        };
        Self {
            state: Mutex::new(state),
            over: Mutex::default(),
            ended: Condvar::new(),
            connections: Mutex::default(),
        }
    }
}

impl Shared {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with it")
    }

    /// Ends whatever waits.
    pub fn end(&self) {
        *self.over.lock().expect("no thread panics with it") = true;
        self.ended.notify_all();
    }

    fn wait(&self, time: Duration) {
        let over = self.over.lock().expect("no thread panics with it");
        drop(self.ended.wait_timeout_while(over, time, |over| !*over));
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().expect("no thread panics with it")
    }
}

/// A port where clients connect.
pub struct Listener {
    shared: Arc<Shared>,
    host: Host,
    address: SocketAddr,
    accepting: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Listener {
    /// At a port that is free.
    pub fn open(shared: &Arc<Shared>, host: Host) -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = socket.local_addr().expect("it is bound");
        let mut listener = Self { shared: Arc::clone(shared), host, address, accepting: None };
        listener.accept(socket);
        listener
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn reopen(&mut self) {
        if self.accepting.is_none() {
            self.accept(TcpListener::bind(self.address).expect("nobody else has taken the port"));
        }
    }

    fn accept(&mut self, socket: TcpListener) {
        let closed = Arc::new(AtomicBool::new(false));
        let (shared, host, is_closed) = (Arc::clone(&self.shared), self.host, Arc::clone(&closed));
        let thread = thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                if is_closed.load(Ordering::SeqCst) {
                    break;
                }
                // Before the next is accepted: whoever closes the port finds all of them.
                let number = shared.connections().add(host, &stream);
                let shared = Arc::clone(&shared);
                thread::spawn(move || converse(&shared, host, &stream, number));
            }
        });
        self.accepting = Some((closed, thread));
    }

    pub fn close(&mut self) {
        let Some((closed, thread)) = self.accepting.take() else { return };
        closed.store(true, Ordering::SeqCst);
        // It waits for a connection.
        drop(TcpStream::connect(self.address));
        thread.join().expect("it only accepts");
        let connections = self.shared.connections();
        for (_, stream) in connections.open.values().filter(|(host, _)| *host == self.host) {
            // One that is closed already cannot be closed.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Answers requests until either side ends it.
fn converse(shared: &Shared, host: Host, stream: &TcpStream, number: u64) {
    // A client that goes away is none of the server's worry.
    let _ = answer_all(shared, host, stream);
    let _ = stream.shutdown(Shutdown::Both);
    shared.connections().open.remove(&number);
}

fn answer_all(shared: &Shared, mut host: Host, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    let mut is_tunnel = false;
    loop {
        let request = match Request::read(&mut reader) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                let wrong = Answer::new(400, error.to_string());
                wrong.send_head(&mut writer, wrong.body.len())?;
                return writer.write_all(&wrong.body);
            }
        };
        let is_connect = request.method == "CONNECT";
        let named = if is_connect { Some(&request.target) } else { request.authority.as_ref() };
        let is_cdn = |name: &String| shared.state().cdn.ends_with(&format!("//{name}"));
        if let Some(name) = named {
            host = if is_cdn(name) { Host::Cdn } else { Host::Hub };
        }
        is_tunnel |= is_connect;
        let taken = take(shared, host, &request, named.is_some() || is_tunnel);
        if is_connect {
            writer.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        } else if !send(shared, &request, &taken, &mut writer)? || request.is_last() {
            return Ok(());
        }
    }
}

/// A request that is recorded, and what is to be answered.
struct Taken {
    answer: Answer,
    sending: Sending,
    /// Its place among all requests that ever came.
    number: usize,
}

fn take(shared: &Shared, host: Host, request: &Request, is_proxied: bool) -> Taken {
    let mut state = shared.state();
    let (mut answer, mut sending) = (Answer::new(200, ""), Sending::default());
    if request.method != "CONNECT" {
        answer = self::answer(&mut state, host, request);
        let line = format!("{} {} {}", request.method, host.word(), request.target);
        let (is_head, is_ranged) = (request.method == "HEAD", request.header("range").is_some());
        sending = strike(&mut state.rules, &line, is_head, is_ranged, &mut answer);
    }
    let record = Record {
        host,
        method: request.method.clone(),
        target: request.target.clone(),
        range: request.header("range").map(str::to_owned),
        is_authorised: request.header("authorization").is_some(),
        is_proxied,
        status: answer.status,
        sent_bytes: 0,
        file: answer.file.clone(),
    };
    state.records.push(record);
    let number = state.forgotten + state.records.len() - 1;
    Taken { answer, sending, number }
}

/// Sends an answer as far as it is to come. Whether the connection goes on.
fn send(shared: &Shared, request: &Request, taken: &Taken, to: &mut impl Write) -> io::Result<bool> {
    let Taken { answer, sending, number } = taken;
    shared.wait(sending.silence);
    answer.send_head(to, answer.part.len() + sending.owed)?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let body = &answer.body[answer.part.clone()];
    let end = sending.cut.unwrap_or(body.len());
    let piece_bytes = sending.bytes_a_second.map_or(PIECE_BYTES, |bytes| (bytes / PIECES_A_SECOND).max(1));
    let mut pause = sending.pause;
    let mut at = 0;
    while at < end {
        let mut next = end.min(at + piece_bytes);
        if let Some((after, time)) = pause {
            if at == after {
                shared.wait(time);
                pause = None;
            } else {
                next = next.min(after);
            }
        }
        // First: who has received all of it finds all of it counted.
        shared.state().count(*number, (next - at) as u64);
        if answer.is_chunked {
            write!(to, "{:x}\r\n", next - at)?;
        }
        to.write_all(&body[at..next])?;
        if answer.is_chunked {
            to.write_all(b"\r\n")?;
        }
        if let Some(bytes) = sending.bytes_a_second {
            shared.wait(Duration::from_secs_f64((next - at) as f64 / bytes as f64));
        }
        at = next;
    }
    if sending.cut.is_none() && answer.is_chunked {
        to.write_all(b"0\r\n\r\n")?;
    }
    Ok(sending.cut.is_none())
}
