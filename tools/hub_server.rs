//! The Hugging Face Hub of the tests as a program: serves a folder that holds `ORG/NAME/…`, on this machine alone.
//!
//! ```text
//! cargo run --example hub_server -- FOLDER
//! ```
//!
//! Prints its address, which `HF_ENDPOINT` takes, and then reads commands, a line each, and answers each with a line of JSON:
//!
//! ```text
//! publish ID REVISION FOLDER       a commit of these files, which the branch, tag or pull request names from now on
//! tag ID NAME REVISION             one more name for a commit
//! limit ID open|private|gated|disabled
//! rename ID ID
//! token TOKEN member|stranger      whether they may read what is private or gated
//! pages ENTRIES                    the most entries on a page of a list of files
//! links USES                       how often an address of the CDN is good
//! fault WORD TIMES FAULT           for requests whose line has the word in it: `GET hub /ORG/NAME/…`, `HEAD cdn /…`
//!                                  cut BYTES, status CODE, retry-after S, rate-limited S, flip AT, longer BYTES, shorter BYTES,
//!                                  other-tag, slow BYTES_A_SECOND, silence MS, pause BYTES MS, no-ranges
//! heal                             no more faults
//! close hub|cdn, reopen hub|cdn
//! forget                           counts anew
//! counts                           requests, bytes sent of each file, tokens that came to the CDN, faults to come
//! ```
//!
//! At the end of its input, or at a signal that asks it to end, it prints the counts.

// Tests use the rest of it.
#[allow(dead_code)]
#[path = "../tests/all/hub_server/mod.rs"]
mod hub_server;

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;
use std::{fs, str::FromStr};

use serde_json::{Value, json};

use hub_server::{Access, Fault, Files, Host, Hub, Who};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: hub_server FOLDER, which holds ORG/NAME/…");
        std::process::exit(2);
    };
    let mut hub = Hub::start();
    if let Err(error) = serve(&hub, Path::new(folder)) {
        eprintln!("error: {folder}: {error}");
        std::process::exit(2);
    }
    say(&hub.endpoint());
    let (sender, lines) = channel();
    read_lines(sender.clone());
    hear_signals(sender).expect("the system gives handlers");
    // `None` ends it.
    while let Ok(Some(line)) = lines.recv() {
        let done = obey(&mut hub, &line).unwrap_or_else(|error| json!({"error": error}));
        say(&done.to_string());
    }
    say(&hub.counts().to_string());
}

/// Publishes all folders in the folders of a folder.
fn serve(hub: &Hub, folder: &Path) -> io::Result<()> {
    for organisation in fs::read_dir(folder)? {
        let organisation = organisation?;
        for repository in fs::read_dir(organisation.path())? {
            let repository = repository?;
            let id = [organisation.file_name(), repository.file_name()];
            let id = id.map(|part| part.to_string_lossy().into_owned()).join("/");
            hub.publish(&id, "main", Files::of(&repository.path())?);
        }
    }
    Ok(())
}

/// A line on standard output. Whoever started it may be gone.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn read_lines(sender: Sender<Option<String>>) {
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if sender.send(Some(line)).is_err() {
                return;
            }
        }
        let _ = sender.send(None);
    });
}

/// Ends it at SIGTERM or SIGINT.
#[cfg(unix)]
fn hear_signals(sender: Sender<Option<String>>) -> io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let (mut heard, written) = std::os::unix::net::UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(signal, written.try_clone()?)?;
    }
    thread::spawn(move || {
        let _ = heard.read(&mut [0]);
        let _ = sender.send(None);
        // Or nobody else could write to it, and it would look closed.
        drop(written);
    });
    Ok(())
}

/// The end of standard input ends it.
#[cfg(not(unix))]
fn hear_signals(_sender: Sender<Option<String>>) -> io::Result<()> {
    Ok(())
}

/// Does what a line says.
fn obey(hub: &mut Hub, line: &str) -> Result<Value, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["publish", id, revision, folder] => {
            let files = Files::of(Path::new(folder)).map_err(|error| format!("{folder}: {error}"))?;
            return Ok(json!({"commit": hub.publish(id, revision, files)}));
        }
        ["tag", id, name, revision] => {
            let commit = hub.tag(id, name, revision).ok_or_else(|| format!("{id} has no {revision}"))?;
            return Ok(json!({"commit": commit}));
        }
        ["limit", id, access] => hub.limit(id, access_of(access)?),
        ["rename", from, to] => hub.rename(from, to),
        ["token", token, "member"] => hub.token(token, Who::Member),
        ["token", token, "stranger"] => hub.token(token, Who::Stranger),
        ["pages", entries] => hub.page_entries(number(entries)?),
        ["links", uses] => hub.link_uses(number(uses)?),
        ["fault", word, times, fault @ ..] => hub.fault(word, number(times)?, fault_of(fault)?),
        ["heal"] => hub.heal(),
        ["close", host] => hub.close(host_of(host)?),
        ["reopen", host] => hub.reopen(host_of(host)?),
        ["forget"] => hub.forget(),
        ["counts"] => return Ok(hub.counts()),
        _ => return Err(format!("no command: {line}")),
    }
    Ok(json!({}))
}

fn number<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("no number: {word}"))
}

fn access_of(word: &str) -> Result<Access, String> {
    Ok(match word {
        "open" => Access::Open,
        "private" => Access::Private,
        "gated" => Access::Gated,
        "disabled" => Access::Disabled,
        _ => return Err(format!("open, private, gated or disabled, not {word}")),
    })
}

fn host_of(word: &str) -> Result<Host, String> {
    [Host::Hub, Host::Cdn]
        .into_iter()
        .find(|host| host.word() == word)
        .ok_or_else(|| format!("hub or cdn, not {word}"))
}

fn fault_of(words: &[&str]) -> Result<Fault, String> {
    let milliseconds = |word| number(word).map(Duration::from_millis);
    Ok(match words {
        ["cut", bytes] => Fault::Cut(number(bytes)?),
        ["status", code] => Fault::status(number(code)?),
        ["retry-after", seconds] => Fault::retry_after(number(seconds)?),
        ["rate-limited", seconds] => Fault::rate_limited(number(seconds)?),
        ["flip", at] => Fault::FlippedByte(number(at)?),
        ["longer", bytes] => Fault::Longer(number(bytes)?),
        ["shorter", bytes] => Fault::Shorter(number(bytes)?),
        ["other-tag"] => Fault::OtherTag,
        ["slow", bytes] => Fault::Slow(number(bytes)?),
        ["silence", time] => Fault::Silence(milliseconds(time)?),
        ["pause", bytes, time] => Fault::Pause(number(bytes)?, milliseconds(time)?),
        ["no-ranges"] => Fault::NoRanges,
        _ => return Err(format!("no fault: {}", words.join(" "))),
    })
}
