//! A model reference is a folder, or a name in the local Hugging Face cache.
//!
//! The cache keeps `models--ORG--NAME/refs/REVISION` (a file holding a commit) and
//! `models--ORG--NAME/snapshots/COMMIT/` (a folder of symlinks into `blobs/`). Nothing is downloaded here.

use std::fs;
use std::path::{Path, PathBuf};

use super::file::read_small;
use super::limits::REFERENCE_BYTES_MAX;
use crate::error::{Error, Result};
use crate::text::quoted;

/// A commit may be shortened to this many characters, as git does.
const COMMIT_PREFIX_MIN: usize = 7;

/// The folder that a model reference names.
///
/// An existing folder (relative to the current one, `~/` expanded) wins. Otherwise `org/name` or `name` is
/// looked up in the Hugging Face cache at `revision`: a branch, a tag or a commit, `main` when absent.
///
/// # Errors
/// Kind `Config`: there is no such folder nor cached model, or the revision is not in the cache.
pub fn locate(path: &str, revision: Option<&str>) -> Result<PathBuf> {
    Places::of_this_process().locate(path, revision)
}

/// The file, or the folder with files, that a path names: the tensors of one that belongs to a model. A leading `~/` is expanded.
///
/// # Errors
/// Kind `Config`: there is nothing of this name.
pub fn locate_tensors(path: &str) -> Result<PathBuf> {
    let place = Places::of_this_process().expand(Path::new(path));
    if place.exists() {
        return Ok(place);
    }
    Err(Error::config(format!("there is no file or folder {}", place.display())).hint(where_it_ends(&place)))
}

/// A path with a leading `~` replaced by the home folder.
pub(super) fn expanded(path: &Path) -> PathBuf {
    Places::of_this_process().expand(path)
}

/// What the environment says about where models lie. A value, so that tests need not change the process's.
#[derive(Debug, Default)]
struct Places {
    home: Option<PathBuf>,
    hf_hub_cache: Option<PathBuf>,
    hf_home: Option<PathBuf>,
    xdg_cache_home: Option<PathBuf>,
}

impl Places {
    fn of_this_process() -> Self {
        let path = |key| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            home: std::env::home_dir(),
            hf_hub_cache: path("HF_HUB_CACHE"),
            hf_home: path("HF_HOME"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
        }
    }

    /// The folder that holds `models--…`, in the order of the Hub's own client.
    fn hub_cache(&self) -> Option<PathBuf> {
        if let Some(cache) = &self.hf_hub_cache {
            return Some(self.expand(cache));
        }
        if let Some(home) = &self.hf_home {
            return Some(self.expand(home).join("hub"));
        }
        let cache = match (&self.xdg_cache_home, &self.home) {
            (Some(cache), _) => self.expand(cache),
            (None, Some(home)) => home.join(".cache"),
            (None, None) => return None,
        };
        Some(cache.join("huggingface").join("hub"))
    }

    /// Replaces a leading `~` by the home folder.
    fn expand(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path.to_path_buf(),
        }
    }

    fn locate(&self, path: &str, revision: Option<&str>) -> Result<PathBuf> {
        if path.is_empty() {
            return Err(Error::config("a model has an empty name"));
        }
        let folder = self.expand(Path::new(path));
        if folder.is_dir() {
            return match revision {
                None => Ok(folder),
                Some(revision) => Err(revision_of_folder(&folder, revision)),
            };
        }
        if folder.is_file() && revision.is_none() {
            return Ok(folder);
        }
        if folder.exists() {
            return Err(Error::config(format!("{} is a file, not a model folder", folder.display()))
                .hint("give the folder that holds config.json and the safetensors files"));
        }
        if !is_hub_name(path) {
            let (place, folder) = (&folder, quoted(&folder.display().to_string()));
            return Err(
                Error::config(format!("there is no model folder {folder}")).hint(meant_folder(path, place))
            );
        }
        self.in_cache(path, revision.unwrap_or("main"))
    }

    fn in_cache(&self, name: &str, revision: &str) -> Result<PathBuf> {
        let repository = format!("models--{}", name.replace('/', "--"));
        let Some(repository) = self.hub_cache().map(|cache| cache.join(repository)) else {
            return Err(not_found(name, "there is no home folder to look for the Hugging Face cache in"));
        };
        if !repository.is_dir() {
            return Err(not_found(name, &format!("the cache has no {}", repository.display())));
        }
        let commit = resolve_revision(&repository, name, revision)?;
        let snapshot = repository.join("snapshots").join(&commit);
        if !snapshot.is_dir() {
            return Err(not_found(name, &format!("the cache has no {}", snapshot.display())));
        }
        Ok(snapshot)
    }
}

/// What was probably meant by a path that leads nowhere and is no name on the Hub.
fn meant_folder(path: &str, place: &Path) -> String {
    const HUB: [&str; 3] = ["https://huggingface.co/", "http://huggingface.co/", "https://hf.co/"];
    if let Some(name) = HUB.iter().find_map(|hub| path.strip_prefix(hub)) {
        let name: Vec<&str> = name.split('/').take(2).collect();
        return format!("write the model's name on the Hub: {}", name.join("/"));
    }
    if path != path.trim() {
        return "a space at its beginning or end belongs to a name: remove it".into();
    }
    if path.contains(['“', '”', '„', '‘', '’', '«', '»']) {
        return "YAML knows no such quotes: write \" or ', or none".into();
    }
    if path.contains(['*', '?', '[']) {
        return format!("write `- glob: {path}` in place of `- model: …` for every folder that matches");
    }
    if path.contains('\\') && !cfg!(windows) {
        return "folders are separated by `/` on this system".into();
    }
    where_it_ends(place)
}

/// How to find out why there is nothing in this place.
fn where_it_ends(place: &Path) -> String {
    let holds_none = |folder: &Path| {
        let rest = place.strip_prefix(folder).ok()?;
        Some(format!(
            "the folder {} is there, and has no {} in it",
            folder.display(),
            quoted(&rest.iter().next()?.display().to_string())
        ))
    };
    let missing = place.is_absolute().then(|| place.ancestors().find(|above| above.is_dir())).flatten();
    missing
        .and_then(holds_none)
        .unwrap_or_else(|| "relative paths start at the current folder, not at the config".into())
}

fn not_found(name: &str, cache: &str) -> Error {
    Error::config(format!("model {name:?} not found: there is no folder of that name here, and {cache}"))
        .hint(format!("downloads come in a later version; run `hf download {name}` first, or give a folder"))
}

/// A folder wins over the cache, but it holds one state: taking it for the asked revision would be a guess.
fn revision_of_folder(folder: &Path, revision: &str) -> Error {
    Error::config(format!(
        "{} is a folder, so revision {revision:?} cannot be chosen from it",
        folder.display()
    ))
    .hint("leave the revision out, or run where no folder has the model's name")
}

/// The commit that a branch, tag, commit or shortened commit stands for.
fn resolve_revision(repository: &Path, name: &str, revision: &str) -> Result<String> {
    if !is_plain_revision(revision) {
        return Err(Error::config(format!("model {name:?}: {revision:?} is not a revision")));
    }
    let reference = read_small(&repository.join("refs").join(revision), REFERENCE_BYTES_MAX);
    if let Ok(commit) = reference {
        let commit = String::from_utf8_lossy(&commit);
        let commit = commit.trim();
        if is_hex(commit) {
            return Ok(commit.to_owned());
        }
        return Err(Error::config(format!("the cache entry of {name:?} for {revision:?} holds no commit"))
            .hint(format!("run `hf download {name} --revision {revision}` again")));
    }
    let snapshots = snapshots(repository);
    if snapshots.iter().any(|snapshot| snapshot == revision) {
        return Ok(revision.to_owned());
    }
    let long_enough = revision.len() >= COMMIT_PREFIX_MIN && is_hex(revision);
    let mut matches = snapshots.iter().filter(|snapshot| long_enough && snapshot.starts_with(revision));
    match (matches.next(), matches.next()) {
        (Some(commit), None) => Ok(commit.clone()),
        (Some(_), Some(_)) => Err(Error::config(format!(
            "model {name:?}: several snapshots in the cache start with {revision:?}"
        ))
        .hint("write more of the commit")),
        (None, _) => Err(Error::config(format!(
            "model {name:?} is in the cache ({}), but not revision {revision:?}; there: {}",
            repository.display(),
            if snapshots.is_empty() { "nothing".to_owned() } else { snapshots.join(", ") }
        ))
        .hint(format!("run `hf download {name} --revision {revision}` first, or give a folder"))),
    }
}

/// The commits in the cache, sorted. An unreadable folder holds none.
fn snapshots(repository: &Path) -> Vec<String> {
    let entries = fs::read_dir(repository.join("snapshots")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `org/name` or `name` as the Hub allows them. Keeps `..` and separators out of the cache path.
fn is_hub_name(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    text.split('/').count() <= 2 && text.split('/').all(part)
}

/// Whether `revision` stays inside `refs/`; a pull request's is `refs/pr/7`, so slashes are allowed.
fn is_plain_revision(revision: &str) -> bool {
    revision.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && !revision.contains(['\\', ':'])
        && !revision.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache with `org/name` at `COMMIT` as `main` and as pull request 7, seen from an empty home.
    fn cache() -> (tempfile::TempDir, Places, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let repository = home.path().join(".cache/huggingface/hub/models--org--name");
        let snapshot = repository.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
        fs::write(repository.join("refs/main"), COMMIT).unwrap();
        fs::write(repository.join("refs/refs/pr/7"), format!("{COMMIT}\n")).unwrap();
        let places = Places { home: Some(home.path().to_path_buf()), ..Places::default() };
        (home, places, snapshot)
    }

    fn refused(result: Result<PathBuf>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.kind, Kind::Config);
        format!("{} | {}", error.message, error.hint.unwrap_or_default())
    }

    #[test]
    fn a_name_is_found_in_the_cache_by_every_kind_of_revision() {
        let (_home, places, snapshot) = cache();
        for revision in [None, Some("main"), Some("refs/pr/7"), Some(COMMIT), Some(&COMMIT[..7])] {
            assert_eq!(places.locate("org/name", revision).unwrap(), snapshot, "{revision:?}");
        }
    }

    #[test]
    fn a_revision_that_is_not_there_is_refused_with_what_is() {
        let (_home, places, snapshot) = cache();
        assert!(refused(places.locate("org/name", Some("v2"))).contains(COMMIT));
        assert!(refused(places.locate("org/name", Some("012345"))).contains("not revision"));
        fs::create_dir(snapshot.with_file_name("0123456789ffff")).unwrap();
        assert!(refused(places.locate("org/name", Some("0123456"))).contains("several snapshots"));
        for hostile in ["../../../../etc", "/etc", "a\\b", "a//b", "a\0b", ""] {
            assert!(refused(places.locate("org/name", Some(hostile))).contains("not a revision"));
        }
    }

    #[test]
    fn a_reference_file_without_a_commit_or_snapshot_is_refused() {
        let (_home, places, snapshot) = cache();
        let main = snapshot.ancestors().nth(2).unwrap().join("refs/main");
        fs::write(&main, "../../elsewhere").unwrap();
        assert!(refused(places.locate("org/name", None)).contains("holds no commit"));
        fs::write(&main, "abcdef").unwrap();
        assert!(refused(places.locate("org/name", None)).contains("abcdef"));
    }

    #[test]
    fn a_missing_model_names_both_places_and_the_way_out() {
        let (home, places, _) = cache();
        let text = refused(places.locate("org/other", None));
        assert!(text.contains("no folder") && text.contains("models--org--other"), "{text}");
        assert!(text.contains("hf download org/other"), "{text}");
        assert!(text.contains(&home.path().display().to_string()));
        assert!(refused(places.locate("./org/other", None)).contains("no model folder"));
        assert!(refused(places.locate("..x/y", None)).contains("no model folder"));
        assert!(refused(places.locate("", None)).contains("empty"));
        for (path, hint) in [
            ("https://huggingface.co/org/other/tree/main", "on the Hub: org/other"),
            ("model ", "a space at its beginning or end"),
            ("“model”", "YAML knows no such quotes"),
            ("models/*", "`- glob: models/*`"),
            ("C:\\models", "separated by `/`"),
            ("./model", "start at the current folder"),
        ] {
            let text = refused(places.locate(path, None));
            assert!(text.contains(hint), "{text}");
        }
        assert!(refused(Places::default().locate("org/name", None)).contains("no home folder"));
    }

    #[test]
    fn a_folder_wins_and_home_is_expanded() {
        let (home, places, _) = cache();
        let folder = home.path().join("model");
        fs::create_dir(&folder).unwrap();
        assert_eq!(places.locate(folder.to_str().unwrap(), None).unwrap(), folder);
        assert_eq!(places.locate("~/model", None).unwrap(), folder);
        assert!(refused(places.locate("~/model", Some("main"))).contains("cannot be chosen"));
        fs::write(folder.join("model.safetensors"), "").unwrap();
        let file = places.locate("~/model/model.safetensors", None).unwrap();
        assert!(file.ends_with("model/model.safetensors"), "a file is a model by itself");
        assert!(refused(places.locate("~/model/model.safetensors", Some("main"))).contains("is a file"));
    }

    #[test]
    fn the_cache_folder_follows_the_variables_in_order() {
        let home = || Some(PathBuf::from("/home/me"));
        let mut places = Places { home: home(), ..Places::default() };
        assert_eq!(places.hub_cache(), Some("/home/me/.cache/huggingface/hub".into()));
        places.xdg_cache_home = Some("/xdg".into());
        assert_eq!(places.hub_cache(), Some("/xdg/huggingface/hub".into()));
        places.hf_home = Some("~/hf".into());
        assert_eq!(places.hub_cache(), Some("/home/me/hf/hub".into()));
        places.hf_hub_cache = Some("/hub".into());
        assert_eq!(places.hub_cache(), Some("/hub".into()));
    }
}
