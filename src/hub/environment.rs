//! What the environment says of the Hub and its cache: the variables of the Hub's own clients.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::cache::Repository;
use crate::cache::{self, read_small};
use crate::limits::TOKEN_BYTES_MAX;

/// The variables that are read.
const NAMES: &[&str] = &[
    "CURL_CA_BUNDLE",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "HUGGINGFACE_HUB_CACHE",
    "HUGGING_FACE_HUB_TOKEN",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "TRANSFORMERS_OFFLINE",
    "XDG_CACHE_HOME",
];

/// The variables and the home folder. A value, so that tests need not change the process's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    home: Option<PathBuf>,
    values: BTreeMap<&'static str, OsString>,
    /// Where lists of files and headers are kept.
    known: Option<PathBuf>,
    /// Whether the proxies count that the process's own variables name.
    has_proxies: bool,
}

impl Environment {
    /// That of this process.
    pub fn of_this_process() -> Self {
        let value =
            |name: &&'static str| Some((*name, std::env::var_os(name).filter(|value| !value.is_empty())?));
        Self {
            home: std::env::home_dir(),
            values: NAMES.iter().filter_map(value).collect(),
            known: cache::folder().map(|folder| folder.join("hub")),
            has_proxies: true,
        }
    }

    /// One with nothing but this home folder.
    #[cfg(test)]
    pub fn at(home: &Path) -> Self {
        Self { home: Some(home.to_path_buf()), ..Self::default() }
    }

    /// The same with another value of a variable.
    #[cfg(test)]
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        assert!(NAMES.contains(&name), "{name} is read");
        self.values.insert(name, value.into());
        self
    }

    /// The same with a folder for lists of files and headers.
    #[cfg(test)]
    #[must_use]
    pub fn knowing(self, known: &Path) -> Self {
        Self { known: Some(known.to_path_buf()), ..self }
    }

    /// Replaces a leading `~` by the home folder.
    pub fn expand(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path.to_path_buf(),
        }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.values.get(name).map(|value| self.expand(Path::new(value)))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name)?.to_str()
    }

    /// As the Hub's own client reads switches.
    fn is_on(&self, name: &str) -> bool {
        self.text(name)
            .is_some_and(|value| ["1", "on", "yes", "true"].iter().any(|on| value.eq_ignore_ascii_case(on)))
    }

    /// The folder of the Hub's clients.
    fn hf_home(&self) -> Option<PathBuf> {
        let in_cache = || {
            let cache = self.path("XDG_CACHE_HOME").or_else(|| Some(self.home.as_ref()?.join(".cache")))?;
            Some(cache.join("huggingface"))
        };
        self.path("HF_HOME").or_else(in_cache)
    }

    /// The folder that holds `models--…`, in the order of the Hub's own client.
    pub fn cache(&self) -> Option<PathBuf> {
        let named = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        named.or_else(|| Some(self.hf_home()?.join("hub")))
    }

    /// The cache of one repository.
    pub fn repository(&self, name: &str) -> Option<Repository> {
        self.cache().map(|cache| Repository::new(name, &cache))
    }

    /// Where lists of files and headers are kept, if anywhere.
    pub(super) fn known(&self) -> Option<&Path> {
        self.known.as_deref()
    }

    /// Whether requests go by the proxies that are named in the environment of the process; not in tests, whose Hub is near.
    pub(super) fn has_proxies(&self) -> bool {
        self.has_proxies
    }

    /// Whether no connection may be made.
    pub fn is_offline(&self) -> bool {
        self.is_on("HF_HUB_OFFLINE") || self.is_on("TRANSFORMERS_OFFLINE")
    }

    /// Where the Hub is, without a slash at its end.
    pub fn endpoint(&self) -> &str {
        self.text("HF_ENDPOINT").unwrap_or("https://huggingface.co").trim_end_matches('/')
    }

    /// Who the user is, for the Hub. It goes to no other server.
    pub(super) fn token(&self) -> Option<String> {
        if self.is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        let clean = |token: &str| Some(token.trim().to_owned()).filter(|token| !token.is_empty());
        let named = self.text("HF_TOKEN").and_then(clean);
        named.or_else(|| self.text("HUGGING_FACE_HUB_TOKEN").and_then(clean)).or_else(|| {
            let file = self.path("HF_TOKEN_PATH").or_else(|| Some(self.hf_home()?.join("token")))?;
            clean(&String::from_utf8(read_small(&file, TOKEN_BYTES_MAX).ok()?).ok()?)
        })
    }

    /// A file of certificates to trust in place of those that are built in: companies that read their own traffic have one.
    pub(super) fn certificates(&self) -> Option<PathBuf> {
        ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"].iter().find_map(|name| self.path(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_hubs_own_client_has_it() {
        let alone = Environment::at(Path::new("/home/me"));
        let cache = |environment: Environment| environment.cache().unwrap().display().to_string();
        assert_eq!(cache(alone.clone()), "/home/me/.cache/huggingface/hub");
        assert_eq!(cache(alone.clone().with("XDG_CACHE_HOME", "/x")), "/x/huggingface/hub");
        assert_eq!(
            cache(alone.clone().with("XDG_CACHE_HOME", "/x").with("HF_HOME", "~/hf")),
            "/home/me/hf/hub"
        );
        let both = alone.clone().with("HF_HOME", "/hf").with("HUGGINGFACE_HUB_CACHE", "/old");
        assert_eq!(cache(both.clone()), "/old");
        assert_eq!(cache(both.with("HF_HUB_CACHE", "/new")), "/new");
        assert!(Environment::default().cache().is_none());
    }

    #[test]
    fn the_token_is_named_or_in_a_file() {
        let home = tempfile::tempdir().unwrap();
        let alone = Environment::at(home.path());
        assert_eq!(alone.token(), None);
        std::fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
        std::fs::write(home.path().join(".cache/huggingface/token"), "hf_file\n").unwrap();
        std::fs::write(home.path().join("other"), " hf_other ").unwrap();
        assert_eq!(alone.token().unwrap(), "hf_file");
        assert_eq!(alone.clone().with("HF_TOKEN_PATH", "~/other").token().unwrap(), "hf_other");
        assert_eq!(alone.clone().with("HUGGING_FACE_HUB_TOKEN", "hf_old").token().unwrap(), "hf_old");
        let named = alone.clone().with("HUGGING_FACE_HUB_TOKEN", "hf_old").with("HF_TOKEN", "hf_new");
        assert_eq!(named.clone().token().unwrap(), "hf_new");
        assert_eq!(named.with("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1").token(), None);
    }

    #[test]
    fn switches_are_read_as_the_hubs_own_client_does() {
        let alone = Environment::default();
        assert!(!alone.is_offline());
        for (value, on) in
            [("1", true), ("ON", true), ("Yes", true), ("true", true), ("0", false), ("off", false)]
        {
            assert_eq!(alone.clone().with("HF_HUB_OFFLINE", value).is_offline(), on, "{value}");
            assert_eq!(alone.clone().with("TRANSFORMERS_OFFLINE", value).is_offline(), on, "{value}");
        }
        assert_eq!(alone.endpoint(), "https://huggingface.co");
        assert_eq!(alone.with("HF_ENDPOINT", "http://mirror/hub/").endpoint(), "http://mirror/hub");
    }
}
