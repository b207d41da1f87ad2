//! Words for people. Names and values come from files: none of them forges a line, steers a terminal or fills a screen.

use std::borrow::Cow;
use std::collections::BTreeSet;

/// The longest line of a message, in characters: a path and a name fit, a file's content does not.
const LINE_CHARS_MAX: usize = 1000;

/// What is kept of a line that is cut, at its end: the reason stands there.
const TAIL_CHARS: usize = 300;

/// Whether a character is shown escaped: it would begin a line, steer a terminal, or change the order in which others are read.
pub fn is_escaped(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text in which nothing forges a line: what [`is_escaped`] is written `\n` or `\u{1b}`.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Text as one line of a message: [`escaped`], and of a line that is too long the middle is left out.
pub fn one_line(text: &str) -> String {
    // First, since it may be a file's content, and again, since what is escaped is longer.
    cut(&escaped(&cut(text))).into_owned()
}

fn cut(text: &str) -> Cow<'_, str> {
    if text.char_indices().nth(LINE_CHARS_MAX).is_none() {
        return text.into();
    }
    let head = text.char_indices().nth(LINE_CHARS_MAX - TAIL_CHARS).map_or(0, |(at, _)| at);
    let tail = text.char_indices().nth_back(TAIL_CHARS - 1).map_or(0, |(at, _)| at);
    format!("{} … {}", &text[..head], &text[tail..]).into()
}

/// The first characters of a text, and a sign where there were more.
pub fn cut_to(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

/// A text as one word of the shell's.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@,%".contains(c);
    if text.chars().all(plain) && !text.is_empty() {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// What paths are called where they stand beside each other: by their last part, or by so many as no other of them ends with. Of a
/// model with an adapter both have as many.
pub fn labels<S: AsRef<str>>(paths: &[S]) -> Vec<String> {
    let ending = |path: &str, parts: usize| {
        let of = |path: &str| {
            let path = path.trim_end_matches('/');
            let start = path.rmatch_indices('/').nth(parts - 1).map_or(0, |(at, _)| at + 1);
            path[start..].to_owned()
        };
        path.split('+').map(of).collect::<Vec<_>>().join("+")
    };
    let label = |path: &S| {
        let path = path.as_ref();
        let is_alone = |parts: &usize| {
            let mut others = paths.iter().map(AsRef::as_ref).filter(|other| *other != path);
            !ending(path, *parts).is_empty()
                && others.all(|other| ending(other, *parts) != ending(path, *parts))
        };
        let parts = (1..=path.matches('/').count()).find(is_alone);
        parts.map_or_else(|| path.to_owned(), |parts| ending(path, parts))
    };
    paths.iter().map(label).collect()
}

/// The first of some names; the rest is counted.
pub fn few<S: AsRef<str>>(names: &[S], most: usize) -> String {
    let first = names.iter().take(most).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A name from a file, as it may stand in a message: quoted, escaped, and cut.
pub fn quoted(name: &str) -> String {
    const NAME_CHARS_MAX: usize = 200;
    let cut = name.char_indices().nth(NAME_CHARS_MAX).map(|(at, _)| at);
    let shown = escaped(&name[..cut.unwrap_or(name.len())]).replace('"', "\\\"");
    format!("\"{shown}\"{}", if cut.is_some() { "…" } else { "" })
}

/// A number of bytes in words: `2.20 GB`.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Ascending numbers as runs: `0–3, 7`.
pub fn runs(numbers: &BTreeSet<usize>) -> String {
    /// The rest is counted.
    const SHOWN_MAX: usize = 8;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |(start, end): &(usize, usize)| {
        if start == end { format!("{start}") } else { format!("{start}–{end}") }
    };
    let shown: Vec<String> = runs.iter().take(SHOWN_MAX).map(run).collect();
    let hidden: usize = runs.iter().skip(SHOWN_MAX).map(|(start, end)| end - start + 1).sum();
    let more = if hidden > 0 { format!(" and {hidden} more") } else { String::new() };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_each_word_for_one() {
        assert_eq!(shell_word("/tmp/a b'c"), "'/tmp/a b'\\''c'");
        assert_eq!((shell_word("--part=1/2"), shell_word("")), ("--part=1/2".into(), "''".into()));
    }

    #[test]
    fn nothing_forges_a_line_or_steers_a_terminal() {
        assert_eq!(one_line("a\nerror: b\r\u{1b}[2J\u{9b}"), "a\\nerror: b\\r\\u{1b}[2J\\u{9b}");
        assert_eq!(one_line("gpj\u{202e}exe\u{2066}\u{2028}"), "gpj\\u{202e}exe\\u{2066}\\u{2028}");
        assert_eq!(one_line("naïve 模型 “x” \\n"), "naïve 模型 “x” \\n");
        assert_eq!(quoted("a\"b\n"), "\"a\\\"b\\n\"");
    }

    #[test]
    fn an_endless_line_keeps_its_beginning_and_its_end() {
        let line = one_line(&format!("file: {} is no number", "é".repeat(1_000_000)));
        assert!(line.starts_with("file: éé") && line.ends_with("éé is no number"), "{line}");
        assert_eq!(line.chars().count(), LINE_CHARS_MAX + 3);
        assert_eq!(one_line(&"\u{202e}".repeat(999)).chars().count(), LINE_CHARS_MAX + 3);
        let longest = "x".repeat(LINE_CHARS_MAX);
        assert_eq!(one_line(&longest), longest);
        assert!(quoted(&longest).len() < 250);
    }

    #[test]
    fn labels_tell_paths_apart() {
        for (paths, expected) in [
            (&["a/base", "b/chat/"][..], &["base", "chat"][..]),
            (&["a/final", "b/final", "b/first"], &["a/final", "b/final", "first"]),
            (&["x/a/final", "y/a/final", "final"], &["x/a/final", "y/a/final", "final"]),
            (&["a/b", "a/b"], &["b", "b"]),
            (&["o/base+o/lora", "o/base"], &["base+lora", "base"]),
            (&["", "/"], &["", "/"]),
        ] {
            assert_eq!(labels(paths), expected);
        }
    }

    #[test]
    fn sizes_have_one_system_of_units() {
        let sizes = [999, 1_000, 30_400, 999_999, 5_000_000, 2_200_000_000];
        let words = ["999 bytes", "1.0 kB", "30.4 kB", "1000.0 kB", "5.0 MB", "2.20 GB"];
        assert_eq!(sizes.map(bytes), words);
    }

    #[test]
    fn numbers_are_runs() {
        let of = |numbers: &[usize]| runs(&numbers.iter().copied().collect());
        assert_eq!(of(&[7]), "7");
        assert_eq!(of(&[0, 1, 2, 3, 7, 9, 10]), "0–3, 7, 9–10");
        let even: Vec<usize> = (0..20).map(|i| 2 * i).collect();
        assert_eq!(of(&even), "0, 2, 4, 6, 8, 10, 12, 14 and 12 more");
    }
}
