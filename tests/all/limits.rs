//! Limits: the table of `docs/limits.md` is that of `src/limits.rs`, and no file of others has a limit of its own elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::command::ROOT;
use crate::layers::{File, sources};

/// A limit as it stands in the code.
#[derive(Debug, PartialEq)]
struct Limit {
    name: String,
    /// Its comment, as one line.
    about: String,
    value: u64,
}

/// The constants of a file, each with its comment.
fn limits(text: &str) -> Vec<Limit> {
    let (mut found, mut about, mut values) = (Vec::new(), Vec::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("///") {
            about.push(comment.trim());
        } else if let Some((name, rest)) =
            line.strip_prefix("pub const ").and_then(|rest| rest.split_once(": "))
        {
            let written = rest.split_once(" = ").expect("a value").1.trim_end_matches(';');
            let value = evaluated(written, &values);
            values.insert(name.to_owned(), value);
            found.push(Limit { name: name.into(), about: std::mem::take(&mut about).join(" "), value });
        }
    }
    found
}

/// A number, a limit above, `1 << 20`, or a sum of such.
fn evaluated(written: &str, known: &BTreeMap<String, u64>) -> u64 {
    let one =
        |part: &str| known.get(part).copied().unwrap_or_else(|| part.replace('_', "").parse().expect(part));
    let sum = |part: &str| part.split(" + ").map(one).sum::<u64>();
    written.split(" << ").map(sum).reduce(|number, bits| number << bits).expect("a number")
}

/// As people read it: `16 MiB`, `131,072`.
fn shown(limit: &Limit) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB"];
    if limit.name.ends_with("_BYTES_MAX") {
        let unit =
            (0..units.len()).rev().find(|unit| limit.value.is_multiple_of(1 << (10 * unit))).unwrap_or(0);
        return format!("{} {}", limit.value >> (10 * unit), units[unit]);
    }
    let digits = limit.value.to_string();
    let thousands: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).unwrap()).collect();
    thousands.join(",")
}

fn table(limits: &[Limit]) -> String {
    let row = |limit: &Limit| {
        let (what, why) = limit.about.split_once(". ").expect("a sentence says what, the next ones why");
        format!("| {what} | {} | {why} |\n", shown(limit))
    };
    format!(
        "| what | at most | why so much |\n| --- | --- | --- |\n{}",
        limits.iter().map(row).collect::<String>()
    )
}

#[test]
fn the_page_of_limits_is_what_the_code_has() {
    let read = |file: &str| fs::read_to_string(Path::new(ROOT).join(file)).unwrap();
    let limits = limits(&read("src/limits.rs"));
    assert!(limits.len() > 40, "{}", limits.len());
    let (page, table) = (read("docs/limits.md"), table(&limits));
    assert!(page.contains(&table), "docs/limits.md should have this table:\n{table}");
}

#[test]
fn limits_are_read_and_shown() {
    let text = "/// A file. It has\n/// some kilobytes.\npub const A_BYTES_MAX: u64 = 64 << 20;\n\n\
        /// Things. Few.\npub const B_MAX: usize = 1 << 18;\n\n/// More. Few.\npub const C_MAX: usize = B_MAX + 1024;\n\
        /// Little. Few.\npub const D_BYTES_MAX: u64 = 1500;\n";
    assert_eq!(
        table(&limits(text)).lines().skip(2).collect::<Vec<_>>(),
        [
            "| A file | 64 MiB | It has some kilobytes. |",
            "| Things | 262,144 | Few. |",
            "| More | 263,168 | Few. |",
            "| Little | 1500 bytes | Few. |"
        ]
    );
}

/// Constants elsewhere that are called as limits of bytes are, and limit nothing that is read of others.
const OTHERS: &[(&str, &str)] = &[
    ("backend/wgpu/driver.rs", "BINDING_BYTES_MAX"),
    // Of what is written.
    ("checkpoint/layout.rs", "DATA_BYTES_MAX"),
    // Fixed by the formats.
    ("checkpoint/pickle.rs", "BYTES_MAX"),
    ("checkpoint/pickle/zip.rs", "COMMENT_BYTES_MAX"),
    // What goes through memory, of any size.
    ("hub.rs", "HELD_BYTES_MAX"),
    ("hub/file.rs", "WINDOWS_BYTES_MAX"),
    // What a message shows.
    ("plan/parts.rs", "KNOWN_BYTES_MAX"),
    // Of what is written.
    ("stages.rs", "NAME_BYTES_MAX"),
];

/// The constants of a file whose names end like this.
fn called<'t>(text: &'t str, end: &str) -> Vec<&'t str> {
    let constants = text.match_indices("const ").map(|(at, word)| &text[at + word.len()..]);
    constants
        .filter_map(|rest| rest.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| name.ends_with(end))
        .collect()
}

#[test]
fn no_file_has_a_limit_of_its_own() {
    let sources = sources();
    let of_file = |file: &File| {
        called(&file.text, "BYTES_MAX")
            .into_iter()
            .map(|name| (file.path.clone(), name.to_owned()))
            .collect::<Vec<_>>()
    };
    let mut found: Vec<_> =
        sources.iter().filter(|file| file.path != "limits.rs").flat_map(of_file).collect();
    found.sort();
    let others: Vec<_> = OTHERS.iter().map(|(file, name)| ((*file).to_owned(), (*name).to_owned())).collect();
    assert_eq!(found, others, "what limits files belongs into src/limits.rs");
    assert_eq!(called("  const A_BYTES_MAX: u64 = 1;\npub const B: u8 = 1;", "BYTES_MAX"), ["A_BYTES_MAX"]);
}
