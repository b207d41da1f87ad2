//! The checkpoints whose folders match a pattern such as `run/checkpoint-*`, in their natural order.
//!
//! `*` stands for any characters of a name, `?` for one, `[a-c]` for one of these, `[!a-c]` for any other; none of them for a
//! `/`, nor for the `.` that a hidden name begins with. Numbers are compared as numbers: checkpoint-900 comes before
//! checkpoint-1000.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use super::locate::expanded;
use super::sidecars::MODEL_CONFIG;
use super::weight_files::is_weights;
use crate::error::{Error, Result};
use crate::files;
use crate::limits::LOOKED_AT_MAX;

/// What a pattern matches.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Folders that hold a checkpoint, or a part of one, as the pattern spells them, in natural order.
    pub checkpoints: Vec<String>,
    /// Folders with neither config nor weights, as those of logs.
    pub others: Vec<String>,
}

/// The folders that match a pattern. A relative one begins at the current folder, `~/` is the user's.
///
/// # Errors
/// Kind `Config`: there is no checkpoint among them, or a folder on the way cannot be listed.
pub fn find(pattern: &str) -> Result<Found> {
    let root = if pattern.starts_with('/') { "/" } else { "" };
    let mut places = vec![root.to_string()];
    let mut left = LOOKED_AT_MAX;
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        places = if has_wildcard(part) { matching(&places, part, &mut left)? } else { joined(&places, part) };
    }
    places.retain(|place| !place.is_empty() && files::is_folder(&real(place)));
    places.sort_by(|a, b| natural_order(a, b));
    let mut found = Found::default();
    for place in places {
        let holds_one = looks_like_one(&real(&place), &mut left).ok_or_else(|| too_many(pattern))?;
        if holds_one { &mut found.checkpoints } else { &mut found.others }.push(place);
    }
    if found.checkpoints.is_empty() {
        return Err(nothing(pattern, &found.others));
    }
    Ok(found)
}

fn nothing(pattern: &str, others: &[String]) -> Error {
    let error = match others {
        [] => Error::config(format!("no folder matches {pattern:?}")),
        [first, ..] => Error::config(format!(
            "no checkpoint matches {pattern:?}: {first} has neither {MODEL_CONFIG} nor files of weights{}",
            if others.len() > 1 { format!(", as {} others", others.len() - 1) } else { String::new() }
        )),
    };
    let begins = pattern.split('/').take_while(|part| !has_wildcard(part)).collect::<Vec<_>>().join("/");
    let is_missing = !begins.is_empty() && !files::exists(&real(&begins));
    error.hint(if is_missing {
        format!("there is no {begins}: relative patterns start at the current folder, not at the config")
    } else {
        "`*` and `?` stand for characters of one name, and not for a `/`".into()
    })
}

/// A place as the system has it.
fn real(place: &str) -> PathBuf {
    expanded(Path::new(if place.is_empty() { "." } else { place }))
}

fn joined(places: &[String], name: &str) -> Vec<String> {
    places.iter().map(|place| below(place, name)).collect()
}

fn below(place: &str, name: &str) -> String {
    let separator = if place.is_empty() || place.ends_with('/') { "" } else { "/" };
    format!("{place}{separator}{name}")
}

/// The names in these folders that match. Names that are not UTF-8 cannot be written into a config, and match nothing.
fn matching(places: &[String], pattern: &str, left: &mut usize) -> Result<Vec<String>> {
    let parts = parts(pattern);
    let mut matching = Vec::new();
    for place in places {
        let folder = real(place);
        if !files::is_folder(&folder) {
            continue;
        }
        let failed = |cause| Error::config(format!("cannot list {}: {cause}", folder.display()));
        for entry in files::list(&folder).map_err(failed)? {
            *left = left.checked_sub(1).ok_or_else(|| too_many(pattern))?;
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
            let hides = name.starts_with('.') && !pattern.starts_with('.');
            if !hides && matches(&parts, &name.chars().collect::<Vec<_>>()) {
                matching.push(below(place, &name));
            }
        }
    }
    Ok(matching)
}

fn too_many(pattern: &str) -> Error {
    Error::config(format!("more than {LOOKED_AT_MAX} names would have to be looked at for {pattern:?}"))
        .hint("write more of the path, so that fewer folders are looked through")
}

/// Whether a folder holds a model, or what is left of one: what is missing in that is for whoever opens it to say. `None` where it
/// has more names than are left to look at.
fn looks_like_one(folder: &Path, left: &mut usize) -> Option<bool> {
    if files::metadata_of_link(&folder.join(MODEL_CONFIG)).is_ok() {
        return Some(true);
    }
    for entry in files::list(folder).into_iter().flatten().flatten() {
        *left = left.checked_sub(1)?;
        if entry.file_name().to_str().is_some_and(is_weights) {
            return Some(true);
        }
    }
    Some(false)
}

/// A part of a pattern for one name.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    /// This character.
    One(char),
    /// Any character.
    Any,
    /// A character of these ranges, or with `not` of none of them.
    Of { not: bool, ranges: Vec<(char, char)> },
    /// Any number of characters.
    Many,
}

fn has_wildcard(pattern: &str) -> bool {
    pattern.contains(['*', '?', '['])
}

/// A bracket that is not closed stands for itself.
fn parts(pattern: &str) -> Vec<Part> {
    let characters: Vec<char> = pattern.chars().collect();
    let mut parts = Vec::with_capacity(characters.len());
    let mut next = 0;
    while let Some(character) = characters.get(next) {
        let set = if *character == '[' { set(&characters[next + 1..]) } else { None };
        let (part, taken) = match (character, set) {
            (_, Some((part, taken))) => (part, 1 + taken),
            ('*', None) => (Part::Many, 1),
            ('?', None) => (Part::Any, 1),
            (other, None) => (Part::One(*other), 1),
        };
        parts.push(part);
        next += taken;
    }
    parts
}

/// The set that begins behind a bracket, and how many characters it has with the bracket that closes it. A bracket in the first
/// place is one of the set.
fn set(characters: &[char]) -> Option<(Part, usize)> {
    let not = matches!(characters.first(), Some('!' | '^'));
    let first = usize::from(not);
    let last = first + 1 + characters.get(first + 1..)?.iter().position(|c| *c == ']')?;
    let mut members = &characters[first..last];
    let mut ranges = Vec::new();
    while let Some(low) = members.first() {
        let (high, taken) = match members {
            [_, '-', high, ..] => (high, 3),
            _ => (low, 1),
        };
        ranges.push((*low, *high));
        members = &members[taken..];
    }
    Some((Part::Of { not, ranges }, last + 1))
}

/// Whether a name matches. Only the last `*` is ever tried again, so it takes no more steps than parts times characters.
fn matches(parts: &[Part], name: &[char]) -> bool {
    let (mut part, mut place) = (0, 0);
    let mut again: Option<(usize, usize)> = None;
    loop {
        match (parts.get(part), name.get(place)) {
            (None, None) => return true,
            (Some(Part::Many), _) => {
                again = Some((part, place));
                part += 1;
                continue;
            }
            (Some(expected), Some(character)) if expected.takes(*character) => {
                part += 1;
                place += 1;
                continue;
            }
            _ => {}
        }
        // The last `*` takes one character more.
        match again {
            Some((many, from)) if from < name.len() => {
                again = Some((many, from + 1));
                (part, place) = (many + 1, from + 1);
            }
            _ => return false,
        }
    }
}

impl Part {
    fn takes(&self, character: char) -> bool {
        match self {
            Self::One(own) => *own == character,
            Self::Any | Self::Many => true,
            Self::Of { not, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&character)) != *not
            }
        }
    }
}

/// Folder by folder, numbers by their values.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(one), Some(other)) = (left.first(), right.first()) else {
            return left.len().cmp(&right.len()).then_with(|| a.cmp(b));
        };
        if one.is_ascii_digit() && other.is_ascii_digit() {
            let (mine, rest) = number(left);
            let (theirs, other_rest) = number(right);
            match mine.len().cmp(&theirs.len()).then_with(|| mine.cmp(theirs)) {
                Ordering::Equal => (left, right) = (rest, other_rest),
                unequal => return unequal,
            }
            continue;
        }
        // The end of a folder's name comes before all that it could go on with.
        let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
        match rank(*one).cmp(&rank(*other)) {
            Ordering::Equal => (left, right) = (&left[1..], &right[1..]),
            unequal => return unequal,
        }
    }
}

/// The digits that a text begins with, without the zeros in front, and what follows.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let zeros = text[..end].iter().take_while(|byte| **byte == b'0').count();
    (&text[zeros..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn matched(pattern: &str, name: &str) -> bool {
        matches(&parts(pattern), &name.chars().collect::<Vec<_>>())
    }

    #[test]
    fn patterns_match_as_a_shell_has_it() {
        for (pattern, name) in [
            ("*", ""),
            ("checkpoint-*", "checkpoint-100"),
            ("*-?00", "checkpoint-900"),
            ("*a*b*c", "xaybzbc"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]-]", "]"),
            ("[]-]", "-"),
            ("[ä-ü]", "ö"),
            ("[a", "[a"),
            ("a**b", "ab"),
        ] {
            assert!(matched(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("?", ""),
            ("checkpoint-*", "checkpoint"),
            ("*-?00", "checkpoint-1900x"),
            ("[a-c]x", "dx"),
            ("[!a-c]x", "bx"),
            ("a*b", "abc"),
            ("", "a"),
        ] {
            assert!(!matched(pattern, name), "{pattern} {name}");
        }
        let (pattern, name) = ("*a".repeat(5000) + "b", "a".repeat(5000));
        assert!(!matched(&pattern, &name), "and in no time");
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let sorted = [
            "run/checkpoint-9",
            "run/checkpoint-90",
            "run/checkpoint-900",
            "run/checkpoint-0900",
            "run/checkpoint-1000",
            "run/checkpoint-99999999999999999999999",
            "run/checkpoint-a",
            "run-2/checkpoint-1",
            "run-10/checkpoint-1",
        ];
        for (place, one) in sorted.iter().enumerate() {
            for (other_place, other) in sorted.iter().enumerate() {
                let order = natural_order(one, other);
                // A zero in front changes no number; the text decides then.
                let same = one.replace("-0", "-") == other.replace("-0", "-");
                assert!(order == place.cmp(&other_place) || same, "{one} {other}: {order:?}");
                assert_eq!(order == Ordering::Equal, one == other);
            }
        }
    }

    #[test]
    fn checkpoints_are_found_in_order_and_other_folders_apart() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for step in ["1000", "900", "1100", "50"] {
            fs::create_dir_all(at(&format!("run/checkpoint-{step}"))).unwrap();
            fs::write(at(&format!("run/checkpoint-{step}/config.json")), "{}").unwrap();
        }
        // Without a config, it is a broken one; with nothing it is none; hidden ones and files are not meant.
        fs::create_dir_all(at("run/checkpoint-1200")).unwrap();
        fs::write(at("run/checkpoint-1200/model.safetensors"), "").unwrap();
        fs::create_dir_all(at("run/checkpoint-logs")).unwrap();
        fs::write(at("run/checkpoint-2"), "a file").unwrap();
        fs::create_dir_all(at("run/.hidden")).unwrap();
        let found = |pattern: &str| {
            let root = format!("{}/", root.path().display());
            let found = find(&format!("{root}{pattern}"))?;
            let names = |names: Vec<String>| {
                names.iter().map(|name| name.strip_prefix(&root).unwrap().to_string()).collect::<Vec<_>>()
            };
            Ok::<_, Error>((names(found.checkpoints), names(found.others)))
        };
        let all = ["50", "900", "1000", "1100", "1200"].map(|step| format!("run/checkpoint-{step}"));
        assert_eq!(found("run/checkpoint-*").unwrap(), (all.to_vec(), vec!["run/checkpoint-logs".into()]));
        assert_eq!(found("r?n/*-1[01]00").unwrap().0, all[2..4]);
        assert_eq!(found("run/checkpoint-900/").unwrap().0, all[1..2]);
        let refused = |pattern: &str| {
            let error = found(pattern).unwrap_err();
            format!("{} | {}", error.message, error.hint.unwrap())
        };
        assert!(refused("run/step-*").contains("no folder matches"), "{}", refused("run/step-*"));
        assert!(
            refused("walk/checkpoint-*").contains("walk: relative patterns"),
            "{}",
            refused("walk/checkpoint-*")
        );
        assert!(
            refused("run/*logs").contains("checkpoint-logs has neither config.json"),
            "{}",
            refused("run/*logs")
        );
        assert!(refused("run/checkpoint-2").contains("no folder matches"));
    }
}
