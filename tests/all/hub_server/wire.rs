//! HTTP/1.1 as it stands on the wire.

use std::io::{self, BufRead, Read, Write};
use std::ops::Range;
use std::sync::Arc;

/// A request's head is no longer than this.
const HEAD_BYTES_MAX: u64 = 1 << 16;

/// A request without its body, which none here needs.
pub struct Request {
    pub method: String,
    /// Path and query, as they were sent; the host and port of `CONNECT`.
    pub target: String,
    /// The server as it is written in the target, as to a proxy.
    pub authority: Option<String>,
    /// In their order, with names in small letters.
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether the client says that it asks nothing more on this connection.
    pub fn is_last(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The next request of a connection; `None` where the client has closed it.
    ///
    /// # Errors
    /// The connection is cut, or what comes is no request.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = from.by_ref().take(HEAD_BYTES_MAX);
        let mut line = || {
            let mut line = String::new();
            head.read_line(&mut line)?;
            Ok::<_, io::Error>(line)
        };
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let first = line()?;
        if first.is_empty() {
            return Ok(None);
        }
        let words: Vec<&str> = first.split_whitespace().collect();
        let &[method, target, "HTTP/1.1"] = words.as_slice() else { return Err(wrong(&first)) };
        let (authority, target) = match target.strip_prefix("http://") {
            Some(rest) => {
                let end = rest.find('/').ok_or_else(|| wrong(&first))?;
                (Some(rest[..end].to_owned()), &rest[end..])
            }
            None => (None, target),
        };
        let mut request =
            Self { method: method.into(), target: target.into(), authority, headers: Vec::new() };
        loop {
            let line = line()?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => {
                    request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                }
                None if line == "\r\n" => break,
                None => return Err(wrong(&line)),
            }
        }
        let length =
            request.header("content-length").map_or(Ok(0), str::parse).map_err(|_| wrong("length"))?;
        io::copy(&mut from.by_ref().take(length), &mut io::sink())?;
        Ok(Some(request))
    }
}

/// What is answered.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Arc<Vec<u8>>,
    /// The part of the body that is sent.
    pub part: Range<usize>,
    /// Whether the length is left open, and what is sent goes out in chunks.
    pub is_chunked: bool,
    /// The file that the body is of, as `org/name/file`.
    pub file: Option<String>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::of(status, Arc::new(body.into()))
    }

    /// With a body that others have too.
    pub fn of(status: u16, body: Arc<Vec<u8>>) -> Self {
        let part = 0..body.len();
        Self { status, headers: Vec::new(), body, part, is_chunked: false, file: None }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str())
    }

    pub fn header_mut(&mut self, name: &str) -> Option<&mut String> {
        self.headers.iter_mut().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// Whether the body is what was asked for.
    pub fn is_content(&self) -> bool {
        matches!(self.status, 200 | 206)
    }

    /// The part that a `Range` asks for. One that cannot be read, or asks for several parts, asks for all.
    #[must_use]
    pub fn cut_to(mut self, range: Option<&str>) -> Self {
        self = self.with("Accept-Ranges", "bytes");
        let total = self.body.len();
        match range.and_then(|range| parsed_range(range, total)) {
            None => self,
            Some(part) if part.is_empty() => {
                let refused = Self::new(416, "");
                refused.with("Content-Range", format!("bytes */{total}"))
            }
            Some(part) => {
                self.status = 206;
                let shown = format!("bytes {}-{}/{total}", part.start, part.end - 1);
                self.part = part;
                self.with("Content-Range", shown)
            }
        }
    }

    /// All of it, though a part was asked for.
    pub fn whole(&mut self) {
        self.status = 200;
        self.part = 0..self.body.len();
        self.headers.retain(|(name, _)| !["Content-Range", "Accept-Ranges"].contains(name));
    }

    /// Sends status line and headers, with a length that may be wrong.
    ///
    /// # Errors
    /// The connection is cut.
    pub fn send_head(&self, to: &mut impl Write, length: usize) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.is_chunked {
            head += "Transfer-Encoding: chunked\r\n\r\n";
        } else {
            head += &format!("Content-Length: {length}\r\n\r\n");
        }
        to.write_all(head.as_bytes())
    }
}

/// The bytes of `bytes=A-B`, `bytes=A-` or `bytes=-N`; none where it begins behind the end.
fn parsed_range(range: &str, total: usize) -> Option<Range<usize>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        return Some(total - last.parse::<usize>().ok()?.min(total)..total);
    }
    let first: usize = first.parse().ok()?;
    let last = if last.is_empty() { usize::MAX } else { last.parse().ok()? };
    if last < first {
        return None;
    }
    Some(first.min(total)..last.saturating_add(1).min(total))
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// A part of an address without its `%2F`s.
pub fn decoded(part: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = part.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code =
            after.get(..2).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        if let Some(byte) = code.filter(|_| *first == b'%') {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A part of an address with `%2F` for what may not stand in it.
pub fn encoded(part: &str) -> String {
    part.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(byte as char);
        } else {
            text += &format!("%{byte:02X}");
        }
        text
    })
}
