//! The server by itself, asked over plain sockets.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::hub_server::{Access, Fault, Files, Host, Hub, Who};

const ID: &str = "org/name";

/// What the files of these tests hold, in git and as LFS.
const TEXT: &[u8] = b"hello\n";

/// `git hash-object` and `sha256sum` of it.
const TEXT_OID: &str = "ce013625030ba8dba906f756967f9e9ca394464a";
const TEXT_SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

/// An answer, as it came.
struct Got {
    status: u16,
    /// By names in small letters.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    /// Whether the connection lasted to the end of the body.
    is_whole: bool,
}

impl Got {
    #[track_caller]
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).expect("the API answers in JSON")
    }
}

/// A connection that is kept.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// To the server of an address.
    fn new(address: &str) -> Self {
        let place = address.strip_prefix("http://").expect("no server here has TLS");
        let stream = TcpStream::connect(place.split('/').next().unwrap()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Got {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: hub.test\r\n");
        headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
        self.stream.get_mut().write_all((request + "\r\n").as_bytes()).unwrap();
        let status = self.line().split(' ').nth(1).expect("a status line").parse().unwrap();
        let mut got = Got { status, headers: BTreeMap::new(), body: Vec::new(), is_whole: true };
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else { break };
            got.headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        if method == "HEAD" || method == "CONNECT" {
            return got;
        }
        let Some(length) = got.headers.get("content-length") else {
            // Sizes of chunks, to one of 0.
            while let Ok(bytes) = usize::from_str_radix(&self.line(), 16) {
                got.is_whole &= self.read(&mut got.body, bytes);
                self.line();
                if bytes == 0 {
                    return got;
                }
            }
            got.is_whole = false;
            return got;
        };
        let length = length.parse().unwrap();
        got.is_whole = self.read(&mut got.body, length);
        got
    }

    /// Whether so many bytes came.
    fn read(&mut self, into: &mut Vec<u8>, bytes: usize) -> bool {
        (&mut self.stream).take(bytes as u64).read_to_end(into).unwrap() == bytes
    }
}

fn get(address: &str, headers: &[(&str, &str)]) -> Got {
    let path = address.match_indices('/').nth(2).expect("a path").0;
    Client::new(address).ask("GET", &address[path..], headers)
}

/// A Hub with a repository of three files.
fn hub() -> (Hub, String) {
    let hub = Hub::start();
    let files =
        Files::new().with("config.json", TEXT).with("model.safetensors", TEXT).with("a/b/c.txt", "deep");
    let commit = hub.publish(ID, "main", files);
    (hub, commit)
}

/// Where the Hub sends us for a file of LFS.
fn link(hub: &Hub) -> String {
    let got = get(&format!("{}/{ID}/resolve/main/model.safetensors", hub.endpoint()), &[]);
    assert_eq!(got.status, 302);
    got.header("location").to_owned()
}

#[test]
fn a_model_is_described_at_all_its_revisions() {
    let (hub, first) = hub();
    hub.tag(ID, "v1", "main").unwrap();
    hub.publish(ID, "refs/pr/7", Files::new().with("other.json", "{}"));
    let second = hub.publish(ID, "main", Files::new().with("config.json", "{}"));
    assert!(first.len() == 40 && first != second);
    hub.publish("gpt2", "main", Files::new().with("config.json", TEXT));
    let info = |path: &str| get(&format!("{}/api/models/{path}", hub.endpoint()), &[]).json();
    for (path, commit) in [
        (ID.to_owned(), &second),
        (format!("{ID}/revision/main"), &second),
        (format!("{ID}/revision/v1"), &first),
        (format!("{ID}/revision/{first}"), &first),
        (format!("{ID}/revision/{}", &first[..7]), &first),
    ] {
        assert_eq!(info(&path)["sha"], **commit, "{path}");
    }
    assert_eq!(info(&format!("{ID}/revision/refs%2Fpr%2F7"))["siblings"][0]["rfilename"], "other.json");
    assert_eq!(info("gpt2")["id"], "gpt2");
    let siblings = info(&format!("{ID}/revision/v1?blobs=true"))["siblings"].clone();
    assert_eq!(siblings[1]["blobId"], TEXT_OID);
    assert_eq!(siblings[2]["lfs"]["sha256"], TEXT_SHA256);
}

#[test]
fn a_tree_is_listed_page_by_page() {
    let (hub, _) = hub();
    hub.page_entries(2);
    let mut next = Some(format!("/api/models/{ID}/tree/main?recursive=true&expand=false"));
    let (mut client, mut pages) = (Client::new(&hub.endpoint()), Vec::new());
    while let Some(target) = next.take() {
        let got = client.ask("GET", &target, &[]);
        pages.push(got.json().as_array().unwrap().clone());
        let more = got.headers.get("link").map(|link| link.strip_suffix(">; rel=\"next\"").unwrap());
        next = more.map(|link| link.strip_prefix("<http://hub.test").unwrap().to_owned());
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    let entries: Vec<&Value> = pages.iter().flatten().collect();
    let paths: Vec<&str> = entries.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["a", "a/b", "a/b/c.txt", "config.json", "model.safetensors"]);
    assert_eq!((&entries[0]["type"], &entries[3]["type"]), (&"directory".into(), &"file".into()));
    assert_eq!((&entries[3]["oid"], &entries[3]["size"]), (&TEXT_OID.into(), &6.into()));
    let lfs = &entries[4]["lfs"];
    assert_eq!(
        (&lfs["oid"], &lfs["size"], &lfs["pointerSize"]),
        (&TEXT_SHA256.into(), &6.into(), &126.into())
    );
    assert!(entries[3]["lfs"].is_null());
    let top = client.ask("GET", &format!("/api/models/{ID}/tree/main?expand=true&limit=9"), &[]).json();
    assert_eq!(top.as_array().unwrap().len(), 2, "no more than a page");
    assert_eq!((&top[0]["path"], &top[1]["path"]), (&"a".into(), &"config.json".into()));
    assert!(top[1]["lastCommit"]["id"].is_string());
    let below = client.ask("GET", &format!("/api/models/{ID}/tree/main/a%2Fb"), &[]).json();
    assert_eq!(below[0]["path"], "a/b/c.txt");
}

#[test]
fn a_file_of_git_comes_from_the_hub() {
    let (hub, commit) = hub();
    let mut client = Client::new(&hub.endpoint());
    let target = format!("/{ID}/resolve/main/config.json");
    for method in ["HEAD", "GET"] {
        let got = client.ask(method, &target, &[]);
        assert_eq!(got.status, 307);
        assert_eq!(got.header("x-repo-commit"), commit);
        assert_eq!(got.header("x-linked-size"), "6");
        assert_eq!(got.header("x-linked-etag"), format!("\"{TEXT_OID}\""));
        let place = got.header("location").to_owned();
        assert!(place.starts_with("/api/resolve-cache/models/"), "{place}");
        let got = client.ask(method, &place, &[]);
        assert_eq!((got.status, got.header("content-length")), (200, "6"));
        assert_eq!(got.header("etag"), format!("\"{TEXT_OID}\""));
        assert_eq!(got.header("x-repo-commit"), commit);
        assert_eq!(got.body, if method == "GET" { TEXT } else { b"" });
    }
    let got = get(&format!("{}/{ID}/resolve/{commit}/a/b/c.txt", hub.endpoint()), &[]);
    assert_eq!(got.status, 307);
    assert_eq!(client.ask("GET", got.header("location"), &[]).body, b"deep");
}

#[test]
fn a_file_of_lfs_comes_from_another_host() {
    let (hub, commit) = hub();
    let got = get(&format!("{}/{ID}/resolve/main/model.safetensors", hub.endpoint()), &[]);
    assert_eq!(got.status, 302);
    assert_eq!(got.header("x-repo-commit"), commit);
    assert_eq!(got.header("x-linked-size"), "6");
    assert_eq!(got.header("x-linked-etag"), format!("\"{TEXT_SHA256}\""));
    let place = got.header("location");
    assert!(place.starts_with(&hub.cdn()) && place.contains("model.safetensors"), "{place}");
    let got = get(place, &[]);
    assert_eq!((got.status, got.body.as_slice()), (200, TEXT));
    assert_ne!(got.header("etag"), format!("\"{TEXT_SHA256}\""), "the CDN has hashes of its own");
    assert!(!got.headers.contains_key("x-repo-commit"));
    assert_eq!(get(&place.replace("Signature=", "Signature=0"), &[]).status, 403);
}

#[test]
fn parts_of_a_file_are_sent() {
    let (hub, _) = hub();
    let place = link(&hub);
    for (range, status, body, content_range) in [
        ("bytes=0-1", 206, "he", "bytes 0-1/6"),
        ("bytes=4-", 206, "o\n", "bytes 4-5/6"),
        ("bytes=4-99", 206, "o\n", "bytes 4-5/6"),
        ("bytes=-3", 206, "lo\n", "bytes 3-5/6"),
        ("bytes=-99", 206, "hello\n", "bytes 0-5/6"),
        ("bytes=6-", 416, "", "bytes */6"),
        ("bytes=3-1", 200, "hello\n", ""),
        ("bytes=0-1,3-4", 200, "hello\n", ""),
        ("lines=1-2", 200, "hello\n", ""),
    ] {
        let got = get(&place, &[("Range", range)]);
        let said = got.headers.get("content-range").map_or("", String::as_str);
        assert_eq!(
            (got.status, got.body.as_slice(), said),
            (status, body.as_bytes(), content_range),
            "{range}"
        );
    }
}

#[test]
fn who_may_not_read_is_refused_with_a_reason() {
    let (hub, commit) = hub();
    for (id, access) in
        [("org/private", Access::Private), ("org/gated", Access::Gated), ("org/disabled", Access::Disabled)]
    {
        hub.publish(id, "main", Files::new().with("config.json", TEXT));
        hub.limit(id, access);
    }
    hub.token("member", Who::Member);
    hub.token("stranger", Who::Stranger);
    let none = "";
    for (token, target, status, code, message) in [
        (none, "/api/models/org/none", 401, none, "Invalid username or password."),
        (none, "/api/models/org/private", 401, none, "Invalid username or password."),
        ("stranger", "/api/models/org/none", 404, "RepoNotFound", "Repository not found"),
        ("stranger", "/org/private/resolve/main/config.json", 404, "RepoNotFound", "Repository not found"),
        ("member", "/api/models/org/private", 200, none, none),
        ("member", "/org/private/resolve/main/config.json", 307, none, none),
        ("wrong", "/api/models/org/name", 401, none, "Invalid credentials in Authorization header"),
        (none, "/api/models/org/gated", 200, none, none),
        (
            none,
            "/org/gated/resolve/main/config.json",
            401,
            "GatedRepo",
            "Access to model org/gated is restricted.",
        ),
        ("wrong", "/org/gated/resolve/main/config.json", 401, "GatedRepo", "Please log in."),
        (none, "/api/models/org/gated/tree/main", 401, "GatedRepo", "Please log in."),
        (
            "stranger",
            "/org/gated/resolve/main/config.json",
            403,
            "GatedRepo",
            "you are not in the authorized list",
        ),
        ("member", "/org/gated/resolve/main/config.json", 307, none, none),
        (none, "/org/disabled/resolve/main/config.json", 403, none, "Access to this resource is disabled."),
        (none, "/api/models/org/name/revision/none", 404, "RevisionNotFound", "Invalid rev id: none"),
        (none, "/org/name/resolve/none/config.json", 404, "RevisionNotFound", "Invalid rev id: none"),
        (none, "/org/name/resolve/main/none", 404, "EntryNotFound", "Entry not found"),
        (none, "/api/models/org/name/tree/main/none", 404, "EntryNotFound", "none does not exist"),
    ] {
        let bearer = format!("Bearer {token}");
        let headers = if token.is_empty() { vec![] } else { vec![("Authorization", bearer.as_str())] };
        let got = get(&format!("{}{target}", hub.endpoint()), &headers);
        let said = |name: &str| got.headers.get(name).map_or("", String::as_str);
        assert_eq!((got.status, said("x-error-code")), (status, code), "{token} {target}");
        assert!(said("x-error-message").contains(message), "{token} {target}: {}", said("x-error-message"));
    }
    // What is not in a commit is remembered for that commit.
    let got = get(&format!("{}/{ID}/resolve/main/none", hub.endpoint()), &[]);
    assert_eq!(got.header("x-repo-commit"), commit);
    let info = get(&format!("{}/api/models/org/gated", hub.endpoint()), &[]).json();
    assert_eq!(info["gated"], "manual");
    assert_eq!(Client::new(&hub.endpoint()).ask("DELETE", "/org/name", &[]).status, 405);
}

#[test]
fn an_old_name_leads_to_the_new_one() {
    let (hub, _) = hub();
    hub.rename(ID, "other/new");
    hub.publish("gpt2", "main", Files::new());
    hub.rename("gpt2", "openai/gpt2");
    for (from, to) in [
        ("/api/models/org/name/tree/main?recursive=true", "/api/models/other/new/tree/main?recursive=true"),
        ("/org/name/resolve/main/config.json", "/other/new/resolve/main/config.json"),
        ("/api/models/gpt2", "/api/models/openai/gpt2"),
    ] {
        let got = get(&format!("{}{from}", hub.endpoint()), &[]);
        assert_eq!((got.status, got.header("location")), (307, to));
    }
}

#[test]
fn bodies_are_cut_changed_and_slowed() {
    let (hub, _) = hub();
    let place = link(&hub);
    let fault = |fault: Fault| hub.fault("GET cdn", 1, fault);
    let now = |start: Instant| start.elapsed().as_millis();
    let mut client = Client::new(&hub.cdn());
    let mut file = |headers: &[(&str, &str)]| {
        let got = client.ask("GET", &place[hub.cdn().len()..], headers);
        if !got.is_whole {
            client = Client::new(&hub.cdn());
        }
        (got.status, String::from_utf8(got.body).unwrap(), got.is_whole)
    };
    let whole = (200, "hello\n".to_owned(), true);

    hub.fault("cdn", 1, Fault::Cut(2));
    let head = Client::new(&hub.cdn()).ask("HEAD", &place[hub.cdn().len()..], &[]);
    assert_eq!((head.status, hub.faults_left()), (200, 1), "it has no body");
    assert_eq!(file(&[("Range", "bytes=0-1")]).1, "he", "there is nothing to cut");
    assert_eq!(file(&[]), (200, "he".to_owned(), false));
    fault(Fault::FlippedByte(3));
    assert_eq!(file(&[("Range", "bytes=0-2")]).1, "hel");
    assert_eq!(file(&[("Range", "bytes=2-4")]).1, "lmo");
    fault(Fault::Longer(5));
    assert_eq!(file(&[]), (200, "hello\n".to_owned(), false));
    fault(Fault::Shorter(2));
    assert_eq!(file(&[]), (200, "hell".to_owned(), true));
    fault(Fault::NoRanges);
    assert_eq!(file(&[]), whole);
    assert_eq!(file(&[("Range", "bytes=2-4")]), whole);
    assert_eq!(file(&[("Range", "bytes=2-4")]).0, 206, "once is once");

    let start = Instant::now();
    fault(Fault::Slow(30));
    assert_eq!(file(&[]), whole);
    assert!(now(start) >= 160, "six bytes at thirty a second: {} ms", now(start));
    let start = Instant::now();
    fault(Fault::Silence(Duration::from_millis(150)));
    assert_eq!(file(&[]), whole);
    assert!(now(start) >= 150);
    let start = Instant::now();
    fault(Fault::Pause(3, Duration::from_millis(150)));
    assert_eq!(file(&[]), whole);
    assert!(now(start) >= 150);
    assert_eq!(hub.faults_left(), 0, "all of them have happened");
}

#[test]
fn answers_are_replaced() {
    let (hub, _) = hub();
    let target = format!("/{ID}/resolve/main/model.safetensors");
    let mut client = Client::new(&hub.endpoint());
    hub.fault("HEAD hub /org/name/", 2, Fault::status(503));
    assert_eq!(client.ask("GET", &target, &[]).status, 302, "it is for HEAD");
    for status in [503, 503, 302] {
        assert_eq!(client.ask("HEAD", &target, &[]).status, status);
    }
    hub.fault("safetensors", 1, Fault::retry_after(2));
    let got = client.ask("GET", &target, &[]);
    assert_eq!((got.status, got.header("retry-after")), (429, "2"));
    hub.fault("safetensors", usize::MAX, Fault::rate_limited(3));
    for _ in 0..3 {
        let got = client.ask("GET", &target, &[]);
        assert_eq!((got.status, got.header("ratelimit")), (429, "\"resolvers\";r=0;t=3"));
    }
    hub.heal();
    assert_eq!(client.ask("GET", &target, &[]).header("ratelimit"), "\"api\";r=499;t=295");
    hub.fault("safetensors", 1, Fault::OtherTag);
    let other: String = TEXT_SHA256.chars().rev().collect();
    assert_eq!(client.ask("HEAD", &target, &[]).header("x-linked-etag"), format!("\"{other}\""));
    // The list of files can be cut as well.
    hub.fault("/tree/", 1, Fault::Cut(10));
    let got = client.ask("GET", &format!("/api/models/{ID}/tree/main"), &[]);
    assert_eq!((got.body.len(), got.is_whole), (10, false));
    assert!(client.line().is_empty(), "the connection is gone");
}

#[test]
fn nobody_can_connect_while_it_is_closed() {
    let (mut hub, _) = hub();
    let endpoint = hub.endpoint();
    let place = endpoint.strip_prefix("http://").unwrap().to_owned();
    let mut client = Client::new(&endpoint);
    assert_eq!(client.ask("GET", "/api/models/org/name", &[]).status, 200);
    hub.close(Host::Hub);
    assert!(client.line().is_empty(), "open connections are ended");
    assert!(TcpStream::connect(&place).is_err());
    assert_eq!(get(&format!("{}/x", hub.cdn()), &[]).status, 403, "the other one is open");
    hub.reopen(Host::Hub);
    assert_eq!(hub.endpoint(), endpoint);
    assert_eq!(Client::new(&endpoint).ask("GET", "/api/models/org/name", &[]).status, 200);
}

#[test]
fn an_address_of_the_cdn_is_good_for_so_many_requests() {
    let (hub, _) = hub();
    hub.link_uses(2);
    let place = link(&hub);
    let statuses: Vec<u16> = (0..3).map(|_| get(&place, &[]).status).collect();
    assert_eq!(statuses, [200, 200, 403]);
    assert_eq!(get(&link(&hub), &[]).status, 200);
}

#[test]
fn all_that_is_asked_is_counted() {
    let (hub, _) = hub();
    let place = link(&hub);
    get(&place, &[("Range", "bytes=1-3")]);
    hub.fault("cdn", 1, Fault::Cut(2));
    get(&place, &[("Authorization", "Bearer x")]);
    let records = hub.requests();
    let seen: Vec<_> = records.iter().map(|record| (record.host, record.status, record.sent_bytes)).collect();
    assert_eq!(seen, [(Host::Hub, 302, 11), (Host::Cdn, 206, 3), (Host::Cdn, 200, 2)]);
    assert_eq!(records[1].range.as_deref(), Some("bytes=1-3"));
    assert!(!records[1].is_authorised && records[2].is_authorised);
    assert_eq!(records[2].file.as_deref(), Some("org/name/model.safetensors"));
    assert_eq!(hub.tokens_at_cdn(), 1);
    assert_eq!(hub.counts()["files"]["org/name/model.safetensors"], 5);
    hub.forget();
    assert_eq!(hub.tokens_at_cdn(), 0);
    get(&place, &[]);
    assert_eq!(hub.sent().into_iter().collect::<Vec<_>>(), [("org/name/model.safetensors".to_owned(), 6)]);
    // What is still under way is not counted as a part of what comes later.
    hub.fault("cdn", 1, Fault::Pause(3, Duration::from_millis(300)));
    let refused = thread::scope(|scope| {
        scope.spawn(|| get(&place, &[]));
        while hub.faults_left() > 0 {
            thread::yield_now();
        }
        hub.forget();
        [(); 3].map(|()| get(&format!("{}/none", hub.cdn()), &[]).body.len() as u64)
    });
    let sent: Vec<u64> = hub.requests().iter().map(|record| record.sent_bytes).collect();
    assert_eq!(sent, refused);
}

#[test]
fn it_stands_in_for_a_proxy() {
    let (hub, _) = hub();
    let got = Client::new(&hub.endpoint()).ask("GET", "http://hub.test/api/models/org/name", &[]);
    assert_eq!(got.json()["id"], ID);
    let mut client = Client::new(&hub.endpoint());
    assert_eq!(client.ask("CONNECT", "hub.test:80", &[]).status, 200);
    assert_eq!(client.ask("GET", "/api/models/org/name", &[]).json()["id"], ID);
    // To the CDN as well.
    let place = link(&hub);
    let got = Client::new(&hub.endpoint()).ask("GET", &place, &[]);
    assert_eq!(got.body, TEXT);
    let proxied: Vec<bool> = hub.requests().iter().map(|record| record.is_proxied).collect();
    assert_eq!(proxied, [true, true, true, false, true]);
}

#[test]
fn what_is_no_request_is_refused() {
    let (hub, _) = hub();
    let mut client = Client::new(&hub.endpoint());
    client.stream.get_mut().write_all(b"GET /\r\n\r\n").unwrap();
    assert_eq!(client.line(), "HTTP/1.1 400 Bad Request");
    assert_eq!(get(&format!("{}/nothing/here", hub.endpoint()), &[]).status, 404);
}

#[test]
fn a_folder_is_published() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("a")).unwrap();
    std::fs::write(folder.path().join("a/x.bin"), TEXT).unwrap();
    std::fs::write(folder.path().join("config.json"), TEXT).unwrap();
    let files = Files::of(folder.path()).unwrap();
    assert_eq!(files.commit(), Files::new().with_lfs("a/x.bin", TEXT).with_git("config.json", TEXT).commit());
    assert_ne!(files.commit(), Files::new().with_git("a/x.bin", TEXT).with_git("config.json", TEXT).commit());
}
