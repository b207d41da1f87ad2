//! What is said where the Hub refuses, or sends what it should not.

use super::cache::shown;
use super::client::{Client, Refusal, network};
use crate::error::Error;

/// What has come is not what the Hub lists.
pub(super) fn damaged(name: &str, file: &str, found: &str, expected: &str) -> Error {
    network(format!("{name}/{} arrived damaged: its hash is {found}, and should be {expected}", shown(file)))
        .hint("run it again; where that does not help, a proxy or mirror changes what it passes on")
}

/// What a refusal of the Hub means, and the way out.
pub(super) fn explained(client: &Client, name: &str, revision: &str, refused: &Refusal) -> Error {
    let Refusal { status, code, message } = refused;
    let hub = client.endpoint();
    let who = if client.has_token() {
        "the token in use (HF_TOKEN, or that of `hf auth login`) may not read it"
    } else {
        "no token is set: HF_TOKEN, or `hf auth login`"
    };
    match (code.as_str(), *status) {
        _ if message.contains("disabled") => {
            Error::config(format!("model {name:?} was disabled on the Hub: {message}")).hint(format!("see {hub}/{name}"))
        }
        ("GatedRepo", _) => {
            let said = if message.is_empty() { String::new() } else { format!(" ({message})") };
            Error::config(format!("model {name:?} is gated{said}: {who}"))
                .hint(format!("ask for access at {hub}/{name}, then run it again with the token of that account"))
        }
        ("RevisionNotFound", _) => Error::config(format!("model {name:?} on the Hub has no revision {revision:?}"))
            .hint(format!("its branches, tags and commits are listed at {hub}/{name}/tree/main")),
        (_, 401) if message.contains("Invalid credentials") => {
            Error::config(format!("the Hub does not know the token that was sent for model {name:?}"))
                .hint("make a new one at the Hub, and set HF_TOKEN or run `hf auth login`; without any, public models are read")
        }
        ("RepoNotFound", _) | (_, 401 | 404) => Error::config(format!(
            "model {name:?} not found: there is no folder of that name here, and on the Hub no such model, or it is private"
        ))
        .hint(format!("check the name at {hub}/{name}; of a private model: {who}")),
        (_, 403) => Error::config(format!("model {name:?} may not be read: {message}")).hint(who),
        _ => {
            let said = if message.is_empty() { code } else { message };
            network(format!("the Hub answers {status} for model {name:?}: {said}"))
        }
    }
}
