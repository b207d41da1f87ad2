//! What goes wrong when a test wants it to.

use std::sync::Arc;
use std::time::Duration;

use super::wire::Answer;

/// One thing that goes wrong. What befalls a body befalls those of contents and of JSON, not of redirects and refusals.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is cut after so many bytes of the body.
    Cut(usize),
    /// Another answer, with these headers: 429, 500, 503 …
    Status(u16, Vec<(&'static str, String)>),
    /// The byte at this place of the file is another.
    FlippedByte(usize),
    /// `Content-Length` promises so many bytes more than come before the connection ends.
    Longer(usize),
    /// So many bytes less, in the body and in `Content-Length`.
    Shorter(usize),
    /// Another `ETag` and `X-Linked-ETag` than before.
    OtherTag,
    /// No more than so many bytes of the body a second.
    Slow(usize),
    /// Nothing for so long, not even a status.
    Silence(Duration),
    /// Nothing for so long after so many bytes of the body.
    Pause(usize, Duration),
    /// All of a file where a part was asked for, with status 200.
    NoRanges,
}

impl Fault {
    /// A status and nothing else.
    pub fn status(status: u16) -> Self {
        Self::Status(status, Vec::new())
    }

    /// 429, as a proxy says it.
    pub fn retry_after(seconds: u64) -> Self {
        Self::Status(429, vec![("Retry-After", seconds.to_string())])
    }

    /// 429, as the Hub says it: no request is left in this window, which ends so soon.
    pub fn rate_limited(seconds: u64) -> Self {
        let left = format!("\"resolvers\";r=0;t={seconds}");
        let policy = "\"fixed window\";\"resolvers\";q=3000;w=300".to_owned();
        Self::Status(429, vec![("RateLimit", left), ("RateLimit-Policy", policy)])
    }

    /// Whether an answer would be another with it.
    fn befalls(&self, answer: &Answer, is_ranged: bool) -> bool {
        let has_body = answer.is_content() && !answer.part.is_empty();
        match self {
            Self::Status(..) | Self::Silence(_) => true,
            Self::OtherTag => answer.header("ETag").or(answer.header("X-Linked-ETag")).is_some(),
            Self::NoRanges => answer.is_content() && is_ranged,
            Self::Cut(bytes) | Self::Pause(bytes, _) => answer.is_content() && *bytes < answer.part.len(),
            Self::FlippedByte(at) => answer.is_content() && answer.part.contains(at),
            Self::Longer(_) | Self::Slow(_) => has_body,
            Self::Shorter(bytes) => has_body && *bytes <= answer.part.len(),
        }
    }
}

/// A fault that waits for its requests.
pub struct Rule {
    /// What a request's line has in it, which is `GET hub /org/name/…` or `GET cdn /…`.
    pub word: String,
    pub fault: Fault,
    /// How many times it is still to come.
    pub left: usize,
}

/// How an answer is sent.
#[derive(Default)]
pub struct Sending {
    pub silence: Duration,
    pub pause: Option<(usize, Duration)>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
    pub bytes_a_second: Option<usize>,
    /// Bytes that are promised and never come.
    pub owed: usize,
}

/// Lets all that waits for this request happen to its answer.
pub fn strike(
    rules: &mut Vec<Rule>,
    line: &str,
    is_head: bool,
    is_ranged: bool,
    answer: &mut Answer,
) -> Sending {
    let mut sending = Sending::default();
    for rule in rules.iter_mut().filter(|rule| line.contains(&rule.word)) {
        let is_of_body = !matches!(rule.fault, Fault::Status(..) | Fault::Silence(_) | Fault::OtherTag);
        if (is_head && is_of_body) || !rule.fault.befalls(answer, is_ranged) {
            continue;
        }
        rule.left -= 1;
        happen(&rule.fault, answer, &mut sending);
    }
    rules.retain(|rule| rule.left > 0);
    sending
}

fn happen(fault: &Fault, answer: &mut Answer, sending: &mut Sending) {
    match fault {
        Fault::Cut(bytes) => sending.cut = Some(*bytes),
        Fault::Status(status, headers) => {
            *answer = Answer::new(*status, format!("status {status}"));
            answer.headers.clone_from(headers);
        }
        Fault::FlippedByte(at) => Arc::make_mut(&mut answer.body)[*at] ^= 1,
        Fault::Longer(bytes) => {
            sending.owed = *bytes;
            sending.cut = Some(answer.part.len());
        }
        Fault::Shorter(bytes) => answer.part.end -= bytes,
        Fault::OtherTag => {
            for name in ["ETag", "X-Linked-ETag"] {
                if let Some(tag) = answer.header_mut(name) {
                    *tag = tag.chars().rev().collect();
                }
            }
        }
        Fault::Slow(bytes) => sending.bytes_a_second = Some(*bytes),
        Fault::Silence(time) => sending.silence = *time,
        Fault::Pause(bytes, time) => sending.pause = Some((*bytes, *time)),
        Fault::NoRanges => answer.whole(),
    }
}
