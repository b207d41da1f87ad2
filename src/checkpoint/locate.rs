//! A model reference is a folder, a name in the local Hugging Face cache, or one on the Hub.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::companions::{SETTINGS, is_of_tokenizer, is_vocabulary};
use super::folder::ModelFolder;
use super::layout::INDEX;
use super::located::Located;
use super::names::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use super::sidecars::{CARD, MODEL_CONFIG};
use super::weight_files::WeightFiles;
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::hub::{self, Environment, Remote, Snapshot, is_hub_name};
use crate::text::quoted;
use crate::threads;

/// The folder that a model reference names.
///
/// An existing folder (relative to the current one, `~/` expanded) wins. Otherwise `org/name` or `name` is looked up in the
/// Hugging Face cache at `revision`: a branch, a tag or a commit, `main` when absent. What is not there, or not whole, is looked up on
/// the Hub, if that may be asked.
///
/// # Errors
/// Kind `Config`: there is no such folder nor model, or no such revision of it. Kind `Network`: the Hub cannot be reached.
pub fn locate(path: &str, revision: Option<&str>, remote: Remote) -> Result<Located> {
    locate_in(&Environment::of_this_process(), path, revision, remote)
}

/// The file, or the folder with files, that a path names: the tensors of one that belongs to a model. A leading `~/` is expanded.
///
/// # Errors
/// Kind `Config`: there is nothing of this name.
pub fn locate_tensors(path: &str) -> Result<PathBuf> {
    let place = expanded(Path::new(path));
    if files::exists(&place) {
        return Ok(place);
    }
    Err(Error::config(format!("there is no file or folder {}", place.display())).hint(where_it_ends(&place)))
}

/// A path with a leading `~` replaced by the home folder.
pub(super) fn expanded(path: &Path) -> PathBuf {
    Environment::of_this_process().expand(path)
}

pub(crate) fn locate_in(
    environment: &Environment,
    path: &str,
    revision: Option<&str>,
    remote: Remote,
) -> Result<Located> {
    if path.is_empty() {
        return Err(Error::config("a model has an empty name"));
    }
    let folder = environment.expand(Path::new(path));
    match files::metadata(&folder) {
        Ok(found) if found.is_dir() => {
            return match revision {
                None => Ok(folder.into()),
                Some(revision) => Err(revision_of_folder(&folder, revision)),
            };
        }
        Ok(found) if found.is_file() && revision.is_none() => return Ok(folder.into()),
        Ok(_) => {
            return Err(Error::config(format!("{} is a file, not a model folder", folder.display()))
                .hint("give the folder that holds config.json and the safetensors files"));
        }
        Err(cause) => {
            let unread = Error::reading(&folder, &cause);
            if unread.may_be_read_again() {
                return Err(unread);
            }
        }
    }
    if !is_hub_name(path) {
        let (place, folder) = (&folder, quoted(&folder.display().to_string()));
        return Err(
            Error::config(format!("there is no model folder {folder}")).hint(meant_folder(path, place))
        );
    }
    in_cache_or_on_hub(environment, path, revision, remote)
}

fn in_cache_or_on_hub(
    environment: &Environment,
    name: &str,
    revision: Option<&str>,
    remote: Remote,
) -> Result<Located> {
    let is_offline = remote == Remote::Offline || environment.is_offline();
    let cached = in_cache(environment, name, revision.unwrap_or("main"));
    let suspect = cached.as_ref().ok().and_then(|folder| hub::suspect(environment, folder));
    let damaged = suspect.as_ref().filter(|suspect| suspect.is_damaged).map(|suspect| &suspect.file);
    if let Some(file) = damaged.filter(|_| is_offline) {
        return Err(damage(file));
    }
    match cached {
        // What is wrong with the words is wrong on the Hub too.
        Err(Missing::Wrong(error)) => Err(error),
        Ok(folder) if suspect.is_none() && is_whole(&folder) => Ok(folder.into()),
        Err(Missing::Absent(error)) if is_offline => Err(error),
        cached => match (hub::snapshot(environment, name, revision, is_offline), cached) {
            (Ok(snapshot), _) => {
                bring_small(&snapshot);
                Ok(Located { place: snapshot.folder(), snapshot: Some(snapshot), unreachable: None })
            }
            (Err(failure), Ok(folder)) => match damaged {
                Some(file) => {
                    let message =
                        format!("{} in the cache is damaged, and {}", file.display(), failure.message);
                    Err(Error { message, ..failure })
                }
                None if is_offline => Ok(folder.into()),
                // It may do as it is.
                None => Ok(Located { unreachable: Some(failure), ..folder.into() }),
            },
            (Err(failure), Err(_)) if failure.kind == Kind::Network => {
                let message = format!(
                    "model {name:?}: there is no folder of that name here, it is not in the cache, and {}",
                    failure.message
                );
                Err(Error { message, ..failure })
            }
            (Err(failure), Err(_)) => Err(failure),
        },
    }
}

/// What is said where a file of the cache is damaged, and nobody can be asked for it.
fn damage(file: &Path) -> Error {
    let what = "it has another length than the Hub lists, or begins with zeros";
    Error::input(format!("{} in the cache is damaged: {what}", file.display())).in_file(file).hint(
        "run it where the Hub can be reached, without --offline and HF_HUB_OFFLINE: the file is fetched anew",
    )
}

/// Fetches, side by side, the small files that a plan looks at in nearly every model. What cannot be had will say so when it is opened,
/// if it is.
fn bring_small(snapshot: &Arc<Snapshot>) {
    /// Files at once.
    const FETCHERS_MAX: usize = 4;
    let is_looked_at = |name: &String| {
        let name = name.as_str();
        [MODEL_CONFIG, ADAPTER_CONFIG, INDEX, CARD].contains(&name)
            || SETTINGS.contains(&name)
            || is_of_tokenizer(name)
    };
    let small: Vec<String> = snapshot.names("").into_iter().filter(is_looked_at).collect();
    threads::each(FETCHERS_MAX, small.len(), |file| drop(hub::bring(snapshot, &small[file])));
}

/// Whether a folder of the cache has what makes a model or an adapter, and a tokenizer: transformers fetches only what it is asked for.
fn is_whole(folder: &Path) -> bool {
    let has = |name: &&str| files::is_file(&folder.join(name));
    let Ok(opened) = ModelFolder::open(folder) else { return false };
    let Ok(present) = opened.names("") else { return false };
    // A link to a blob that was removed is nothing.
    let present: BTreeSet<String> =
        present.into_iter().filter(|name| files::exists(&folder.join(name))).collect();
    let weights = || WeightFiles::find(&opened, &present).is_ok();
    let is_adapter = has(&ADAPTER_CONFIG) && ADAPTER_WEIGHTS.iter().any(has);
    is_adapter || has(&MODEL_CONFIG) && weights() && present.iter().any(|name| is_vocabulary(name))
}

/// Why a model is not found in the cache.
enum Missing {
    /// The name or the revision cannot be that of any.
    Wrong(Error),
    /// It is not there.
    Absent(Error),
}

fn in_cache(environment: &Environment, name: &str, revision: &str) -> std::result::Result<PathBuf, Missing> {
    let Some(repository) = environment.repository(name) else {
        return Err(Missing::Absent(not_found(
            name,
            "there is no home folder to look for the Hugging Face cache in",
        )));
    };
    let folder = repository.folder.display();
    let absent =
        |what: &dyn std::fmt::Display| Missing::Absent(not_found(name, &format!("the cache has no {what}")));
    match repository.commit_of(revision).map_err(Missing::Wrong)? {
        Some(commit) if files::is_folder(&repository.snapshot(&commit)) => Ok(repository.snapshot(&commit)),
        Some(commit) => Err(absent(&repository.snapshot(&commit).display())),
        None if !repository.exists() => Err(absent(&folder)),
        None => {
            let commits = repository.commits();
            let commits = if commits.is_empty() { "nothing".to_owned() } else { commits.join(", ") };
            Err(Missing::Absent(
                Error::config(format!(
                    "model {name:?} is in the cache ({folder}), but not revision {revision:?}; there: {commits}"
                ))
                .hint(ONLINE),
            ))
        }
    }
}

/// The way out where a model is not in the cache, and the Hub may not be asked.
const ONLINE: &str =
    "run it where the Hub can be reached, without --offline and HF_HUB_OFFLINE, or give a folder";

fn not_found(name: &str, cache: &str) -> Error {
    Error::config(format!("model {name:?} not found: there is no folder of that name here, and {cache}"))
        .hint(ONLINE)
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
    let missing =
        place.is_absolute().then(|| place.ancestors().find(|above| files::is_folder(above))).flatten();
    missing
        .and_then(holds_none)
        .unwrap_or_else(|| "relative paths start at the current folder, those in a config too".into())
}

/// A folder wins over the cache, but it holds one state: taking it for the asked revision would be a guess.
fn revision_of_folder(folder: &Path, revision: &str) -> Error {
    Error::config(format!(
        "{} is a folder, so revision {revision:?} cannot be chosen from it",
        folder.display()
    ))
    .hint("leave the revision out, or run where no folder has the model's name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A cache with `org/name` at `COMMIT` as `main` and as pull request 7, seen from an empty home.
    fn cache() -> (tempfile::TempDir, Environment, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let repository = home.path().join(".cache/huggingface/hub/models--org--name");
        let snapshot = repository.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
        fs::write(repository.join("refs/main"), COMMIT).unwrap();
        fs::write(repository.join("refs/refs/pr/7"), format!("{COMMIT}\n")).unwrap();
        let places = Environment::at(home.path());
        (home, places, snapshot)
    }

    /// Nobody is asked.
    fn locate(places: &Environment, path: &str, revision: Option<&str>) -> Result<PathBuf> {
        locate_in(places, path, revision, Remote::Offline).map(|located| located.place)
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
            assert_eq!(locate(&places, "org/name", revision).unwrap(), snapshot, "{revision:?}");
        }
    }

    #[test]
    fn a_revision_that_is_not_there_is_refused_with_what_is() {
        let (_home, places, snapshot) = cache();
        assert!(refused(locate(&places, "org/name", Some("v2"))).contains(COMMIT));
        assert!(refused(locate(&places, "org/name", Some("012345"))).contains("not revision"));
        fs::create_dir(snapshot.with_file_name("0123456789ffff")).unwrap();
        assert!(refused(locate(&places, "org/name", Some("0123456"))).contains("several snapshots"));
        for hostile in ["../../../../etc", "/etc", "a\\b", "a//b", "a\0b", ""] {
            assert!(refused(locate(&places, "org/name", Some(hostile))).contains("not a revision"));
        }
    }

    #[test]
    fn what_is_whole_needs_nobody() {
        let (_home, places, snapshot) = cache();
        let is_whole = || is_whole(&snapshot);
        fs::create_dir_all(snapshot.join("../../blobs")).unwrap();
        for (file, content, whole) in [
            ("config.json", "{}", false),
            ("tokenizer.json", "{}", false),
            (
                "model.safetensors.index.json",
                r#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#,
                false,
            ),
            ("m-1.safetensors", "", false),
            ("m-2.safetensors", "", true),
        ] {
            fs::write(snapshot.join(file), content).unwrap();
            assert_eq!(is_whole(), whole, "{file}");
        }
        assert!(locate_in(&places, "org/name", None, Remote::Fetched).unwrap().snapshot.is_none());
        fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
        assert!(!is_whole(), "a merge may need a tokenizer");
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("../../blobs/removed", snapshot.join("tokenizer.json")).unwrap();
            assert!(!is_whole(), "a link to nothing");
        }
        for (file, whole) in [("adapter_config.json", false), ("adapter_model.safetensors", true)] {
            fs::write(snapshot.join(file), "{}").unwrap();
            assert_eq!(is_whole(), whole, "{file}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_damaged_in_the_cache_is_refused_where_nobody_can_be_asked() {
        let (_home, places, snapshot) = cache();
        let blobs = snapshot.join("../../blobs");
        fs::create_dir_all(&blobs).unwrap();
        let located = || locate(&places, "org/name", None);
        // Of "hello\n", as git and SHA-256 have it.
        for hash in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let (blob, file) = (blobs.join(hash), snapshot.join("LICENSE"));
            let _ = fs::remove_file(&file);
            std::os::unix::fs::symlink(format!("../../blobs/{hash}"), &file).unwrap();
            for (content, is_refused) in
                [(&b"hello\n"[..], false), (b"", true), (&[0; 6], true), (b"Hello\n", false)]
            {
                fs::write(&blob, content).unwrap();
                match located() {
                    // What others call so is taken for it: not everybody uses these hashes.
                    Ok(_) => assert!(!is_refused, "{content:?}"),
                    Err(error) => {
                        assert!(is_refused && error.exit_code() == 3, "{error}");
                        assert!(error.message.contains("LICENSE in the cache is damaged"), "{error}");
                    }
                }
            }
            fs::remove_file(&blob).unwrap();
            located().unwrap();
        }
    }

    #[test]
    fn a_reference_file_without_a_commit_or_snapshot_is_refused() {
        let (_home, places, snapshot) = cache();
        let main = snapshot.ancestors().nth(2).unwrap().join("refs/main");
        fs::write(&main, "../../elsewhere").unwrap();
        assert!(refused(locate(&places, "org/name", None)).contains("holds no commit"));
        fs::write(&main, "abcdef").unwrap();
        assert!(refused(locate(&places, "org/name", None)).contains("abcdef"));
    }

    #[test]
    fn a_missing_model_names_both_places_and_the_way_out() {
        let (home, places, _) = cache();
        let text = refused(locate(&places, "org/other", None));
        assert!(text.contains("no folder") && text.contains("models--org--other"), "{text}");
        assert!(text.contains("without --offline and HF_HUB_OFFLINE"), "{text}");
        assert!(text.contains(&home.path().display().to_string()));
        assert!(refused(locate(&places, "./org/other", None)).contains("no model folder"));
        assert!(refused(locate(&places, "..x/y", None)).contains("no model folder"));
        assert!(refused(locate(&places, "", None)).contains("empty"));
        for (path, hint) in [
            ("https://huggingface.co/org/other/tree/main", "on the Hub: org/other"),
            ("model ", "a space at its beginning or end"),
            ("“model”", "YAML knows no such quotes"),
            ("models/*", "`- glob: models/*`"),
            ("C:\\models", "separated by `/`"),
            ("./model", "start at the current folder"),
        ] {
            let text = refused(locate(&places, path, None));
            assert!(text.contains(hint), "{text}");
        }
        assert!(refused(locate(&Environment::default(), "org/name", None)).contains("no home folder"));
    }

    #[test]
    fn a_folder_wins_and_home_is_expanded() {
        let (home, places, _) = cache();
        let folder = home.path().join("model");
        fs::create_dir(&folder).unwrap();
        assert_eq!(locate(&places, folder.to_str().unwrap(), None).unwrap(), folder);
        assert_eq!(locate(&places, "~/model", None).unwrap(), folder);
        assert!(refused(locate(&places, "~/model", Some("main"))).contains("cannot be chosen"));
        fs::write(folder.join("model.safetensors"), "").unwrap();
        let file = locate(&places, "~/model/model.safetensors", None).unwrap();
        assert!(file.ends_with("model/model.safetensors"), "a file is a model by itself");
        assert!(refused(locate(&places, "~/model/model.safetensors", Some("main"))).contains("is a file"));
    }
}
