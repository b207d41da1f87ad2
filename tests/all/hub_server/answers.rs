//! What the Hub and its CDN answer to a request, before anything goes wrong.
//!
//! As the Hub was seen to answer in 2026. A file in git lies behind a redirect (307) to `/api/resolve-cache/…` on the Hub itself, a
//! file of LFS behind one (302) to an address on another host, which has its secret in it. What the Hub says of a file stands in its
//! own answers: the CDN's `ETag` is another hash. To somebody without a token, a repository that is private and one that is not
//! there are the same, and no `X-Error-Code` says so.

use std::sync::Arc;

use serde_json::{Value, json};

use super::repository::{Access, File, Files, Repository, hex_of};
use super::wire::{Answer, Request, decoded, encoded};
use super::{Host, State};

/// When everything on this Hub was made.
pub const DATE: &str = "2026-01-01T00:00:00.000Z";

/// How many entries a page of a tree has at most where more is told of each.
const EXPANDED_MAX: usize = 50;

/// Hexadecimal digits of a commit.
const COMMIT_DIGITS: usize = 40;

/// What is answered, or refused.
type Answered = Result<Answer, Answer>;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// They have no token.
    Nobody,
    /// The Hub does not know their token.
    Unknown,
    /// They may not read what is private or gated.
    Stranger,
    /// They may read everything.
    Member,
}

/// A file that the CDN gives to who knows the address.
pub struct Link {
    file: File,
    /// `org/name/file`.
    name: String,
    uses_left: usize,
}

/// The answer to a request, whatever it is.
pub fn answer(state: &mut State, host: Host, request: &Request) -> Answer {
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Answer::new(405, "only GET and HEAD are answered here");
    }
    match host {
        Host::Hub => on_hub(state, request)
            .unwrap_or_else(|refusal| refusal)
            .with("X-Request-Id", "Root=1-fixture")
            .with("RateLimit", "\"api\";r=499;t=295")
            .with("RateLimit-Policy", "\"fixed window\";\"api\";q=500;w=300"),
        Host::Cdn => on_cdn(state, request),
    }
}

fn on_hub(state: &mut State, request: &Request) -> Answered {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let parts: Vec<String> = path.split('/').skip(1).map(decoded).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["api", "models", rest @ ..] => {
            let asked = Asked { state, request, is_api: true };
            match rest {
                [name, "tree", revision, path @ ..] => asked.tree(name, revision, &path.join("/"), query),
                [org, name, "tree", revision, path @ ..] => {
                    asked.tree(&format!("{org}/{name}"), revision, &path.join("/"), query)
                }
                [name] => asked.info(name, "main", query),
                [name, "revision", revision] => asked.info(name, revision, query),
                [org, name] => asked.info(&format!("{org}/{name}"), "main", query),
                [org, name, "revision", revision] => asked.info(&format!("{org}/{name}"), revision, query),
                _ => Err(no_page()),
            }
        }
        ["api", "resolve-cache", "models", rest @ ..] => {
            let commit = rest.iter().position(|part| part.len() == COMMIT_DIGITS).ok_or_else(no_page)?;
            let (id, path) = (rest[..commit].join("/"), rest[commit + 1..].join("/"));
            Asked { state, request, is_api: false }.git_file(&id, rest[commit], &path)
        }
        [name, "resolve", revision, path @ ..] => resolved(state, request, name, revision, &path.join("/")),
        [org, name, "resolve", revision, path @ ..] => {
            resolved(state, request, &format!("{org}/{name}"), revision, &path.join("/"))
        }
        _ => Err(no_page()),
    }
}

/// A request to the Hub about a repository.
#[derive(Clone, Copy)]
struct Asked<'a> {
    state: &'a State,
    request: &'a Request,
    /// Whether its errors are JSON.
    is_api: bool,
}

impl<'a> Asked<'a> {
    /// `GET /api/models/ID[/revision/REVISION]`
    fn info(self, id: &str, revision: &str, query: &str) -> Answered {
        let repository = self.repository(id)?;
        let (commit, files) = self.at(repository, revision)?;
        let gated = if repository.access == Access::Gated { json!("manual") } else { json!(false) };
        Ok(json_answer(&json!({
            "_id": &hex_of(id)[..24],
            "id": id,
            "modelId": id,
            "author": id.split_once('/').map(|(author, _)| author),
            "sha": commit,
            "lastModified": DATE,
            "createdAt": DATE,
            "private": repository.access == Access::Private,
            "gated": gated,
            "disabled": repository.access == Access::Disabled,
            "downloads": 1,
            "likes": 0,
            "tags": ["safetensors"],
            "siblings": files.siblings(parameter(query, "blobs") == Some("true")),
        })))
    }

    /// `GET /api/models/ID/tree/REVISION[/FOLDER]?recursive=…&expand=…`
    fn tree(self, id: &str, revision: &str, folder: &str, query: &str) -> Answered {
        let (commit, files) = self.files(id, revision)?;
        let is_set = |name| matches!(parameter(query, name), Some("true" | "True" | "1"));
        let entries = files.tree(folder, is_set("recursive"), is_set("expand"));
        let entries = entries.ok_or_else(|| self.no_entry(commit, folder))?;
        let number = |name| parameter(query, name).and_then(|value| value.parse::<usize>().ok());
        let expanded_max = if is_set("expand") { EXPANDED_MAX } else { usize::MAX };
        let most =
            self.state.page_entries.min(expanded_max).min(number("limit").unwrap_or(usize::MAX)).max(1);
        let first = number("cursor").unwrap_or(0).min(entries.len());
        let end = entries.len().min(first + most);
        let page = json_answer(&Value::from(&entries[first..end]));
        if end == entries.len() {
            return Ok(page);
        }
        let others = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
        let query: Vec<String> = others.map(str::to_owned).chain([format!("cursor={end}")]).collect();
        let path = self.request.target.split('?').next().unwrap_or_default();
        let host = self.request.header("host").unwrap_or_default();
        Ok(page.with("Link", format!("<http://{host}{path}?{}>; rel=\"next\"", query.join("&"))))
    }

    /// `GET /api/resolve-cache/models/ID/COMMIT/FILE`
    fn git_file(self, id: &str, commit: &str, path: &str) -> Answered {
        let (commit, files) = self.files(id, commit)?;
        let file = files.0.get(path).filter(|file| file.lfs.is_none());
        let file = file.ok_or_else(|| self.no_entry(commit, path))?;
        Ok(contents(file, format!("{id}/{path}"), self.request)
            .with("ETag", quoted(file.etag()))
            .with("X-Repo-Commit", commit)
            .with("Content-Type", "text/plain; charset=utf-8"))
    }

    /// A repository that this caller may know of.
    fn repository(self, id: &str) -> Result<&'a Repository, Answer> {
        if let Some(to) = self.state.renamed.get(id) {
            let target = self.request.target.replacen(&format!("/{id}"), &format!("/{to}"), 1);
            return Err(Answer::new(307, "Temporary Redirect").with("Location", target));
        }
        let repository = self.state.repositories.get(id);
        let who = self.who();
        let is_gated = repository.is_some_and(|repository| repository.access == Access::Gated);
        if who == Who::Unknown && (self.is_api || !is_gated) {
            return Err(self.refusal(401, None, "Invalid credentials in Authorization header"));
        }
        let known = repository.filter(|found| found.access != Access::Private || who == Who::Member);
        known.ok_or_else(|| match who {
            Who::Nobody | Who::Unknown => self.refusal(401, None, "Invalid username or password."),
            Who::Stranger | Who::Member => self.refusal(404, Some("RepoNotFound"), "Repository not found"),
        })
    }

    /// A commit and its files, which this caller may read.
    fn files(self, id: &str, revision: &str) -> Result<(&'a str, &'a Files), Answer> {
        let repository = self.repository(id)?;
        if repository.access == Access::Disabled {
            return Err(self.refusal(403, None, "Access to this resource is disabled."));
        }
        if repository.access == Access::Gated {
            let start = format!("Access to model {id} is restricted");
            let (status, rest) = match self.who() {
                Who::Member => return self.at(repository, revision),
                Who::Nobody | Who::Unknown => (
                    401,
                    ". You must have access to it and be authenticated to access it. Please log in."
                        .to_owned(),
                ),
                Who::Stranger => (
                    403,
                    format!(
                        " and you are not in the authorized list. Visit https://huggingface.co/{id} to ask for access."
                    ),
                ),
            };
            return Err(self.refusal(status, Some("GatedRepo"), &(start + &rest)));
        }
        self.at(repository, revision)
    }

    fn at(self, repository: &'a Repository, revision: &str) -> Result<(&'a str, &'a Files), Answer> {
        let message = format!("Invalid rev id: {revision}");
        repository.at(revision).ok_or_else(|| self.refusal(404, Some("RevisionNotFound"), &message))
    }

    fn who(self) -> Who {
        let Some(header) = self.request.header("authorization") else { return Who::Nobody };
        let token = header.strip_prefix("Bearer ").unwrap_or_default();
        self.state.tokens.get(token).copied().unwrap_or(Who::Unknown)
    }

    fn no_entry(self, commit: &str, path: &str) -> Answer {
        let message = if self.is_api {
            format!("{path} does not exist on this revision")
        } else {
            "Entry not found".into()
        };
        self.refusal(404, Some("EntryNotFound"), &message).with("X-Repo-Commit", commit)
    }

    fn refusal(self, status: u16, code: Option<&str>, message: &str) -> Answer {
        let mut answer = if self.is_api {
            json_answer(&json!({"error": message}))
        } else {
            Answer::new(status, message).with("Content-Type", "text/plain; charset=utf-8")
        };
        answer.status = status;
        if let Some(code) = code {
            answer = answer.with("X-Error-Code", code);
        }
        answer.with("X-Error-Message", message)
    }
}

/// `HEAD` or `GET /ID/resolve/REVISION/FILE`: where the file is to be had.
fn resolved(state: &mut State, request: &Request, id: &str, revision: &str, path: &str) -> Answered {
    let asked = Asked { state, request, is_api: false };
    let (commit, files) = asked.files(id, revision)?;
    let file = files.0.get(path).ok_or_else(|| asked.no_entry(commit, path))?.clone();
    let answer = Answer::new(if file.lfs.is_some() { 302 } else { 307 }, "Redirecting")
        .with("X-Repo-Commit", commit)
        .with("X-Linked-Size", file.bytes.len().to_string())
        .with("X-Linked-ETag", quoted(file.etag()))
        .with("Accept-Ranges", "bytes")
        .with("Content-Type", "text/plain; charset=utf-8");
    let Some(lfs) = &file.lfs else {
        let at: Vec<String> = path.split('/').map(encoded).collect();
        let from = encoded(request.target.split('?').next().unwrap_or_default());
        let place = format!("/api/resolve-cache/models/{id}/{commit}/{}", at.join("/"));
        return Ok(answer.with("Location", format!("{place}?{from}=&etag=%22{}%22", file.oid)));
    };
    let last = encoded(path.rsplit('/').next().unwrap_or_default());
    let disposition = format!("inline%3B+filename*%3DUTF-8%27%27{last}%3B+filename%3D%22{last}%22%3B");
    let signature = hex_of(&format!("signature {}", state.links.len()));
    let target = format!(
        "/xet-bridge-us/{}/{}?response-content-disposition={disposition}&Expires=1800000000&Signature={signature}",
        &hex_of(id)[..24],
        lfs.cdn_tag
    );
    let answer = answer.with("Location", format!("{}{target}", state.cdn));
    let link = Link { file, name: format!("{id}/{path}"), uses_left: state.link_uses };
    state.links.insert(target, link);
    Ok(answer)
}

/// A file by the address that the Hub has given.
fn on_cdn(state: &mut State, request: &Request) -> Answer {
    let link = state.links.get_mut(&request.target).filter(|link| link.uses_left > 0);
    let Some(link) = link else {
        let error =
            "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access denied</Message></Error>";
        return Answer::new(403, error).with("Content-Type", "text/xml");
    };
    link.uses_left -= 1;
    let tag = link.file.lfs.as_ref().map_or("", |lfs| &lfs.cdn_tag);
    contents(&link.file, link.name.clone(), request)
        .with("ETag", quoted(tag))
        .with("Content-Type", "application/octet-stream")
}

/// What a file holds, or the part that is asked for.
fn contents(file: &File, name: String, request: &Request) -> Answer {
    let mut answer = Answer::of(200, Arc::clone(&file.bytes)).cut_to(request.header("range"));
    answer.file = answer.is_content().then_some(name);
    answer
}

fn json_answer(value: &Value) -> Answer {
    let mut answer =
        Answer::new(200, value.to_string()).with("Content-Type", "application/json; charset=utf-8");
    answer.is_chunked = true;
    answer
}

/// The value of a parameter of a query.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
}

fn no_page() -> Answer {
    let error = json!({"error": "Sorry, we can't find the page you are looking for."});
    let mut answer = json_answer(&error);
    answer.status = 404;
    answer
}

fn quoted(tag: &str) -> String {
    format!("\"{tag}\"")
}
