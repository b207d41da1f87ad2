//! What the pages of `docs/` say of the program: messages that it has, and command lines that it takes. And that links between files
//! lead somewhere, as a forge follows them; those of the site are `mkdocs build --strict`'s to check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use tempfile::TempDir;

use crate::command::{Ended, ROOT};
use crate::layers::sources;

/// What `mistakes.rs` holds that the program prints, line by line.
const PRINTED: &str = include_str!("mistakes.txt");

/// Fewer bytes that are no placeholder would fit too many messages.
const SURE_BYTES: usize = 12;

fn read(page: &Path) -> String {
    fs::read_to_string(Path::new(ROOT).join(page)).unwrap_or_else(|e| panic!("{}: {e}", page.display()))
}

/// The texts of the source, with placeholders in braces as they are.
fn literals() -> Vec<String> {
    let continued = Regex::new(r"\\\n\s*").unwrap();
    let literal = Regex::new(r#""((?:[^"\\\n]|\\.)*)""#).unwrap();
    let texts = |text: &str| {
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let code = text.lines().filter(is_code).collect::<Vec<_>>().join("\n").replace("'\"'", "");
        let code = continued.replace_all(&code, "").into_owned();
        literal.captures_iter(&code).map(|found| found[1].replace("\\\"", "\"")).collect::<Vec<_>>()
    };
    sources().iter().flat_map(|file| texts(&file.text)).collect()
}

/// Messages as a page quotes them: `…` stands for what differs. Those of its headings, and code of four words or more that is no
/// command.
fn quoted(page: &str) -> Vec<String> {
    let code = Regex::new(r"``(.+?)``|`([^`]+)`").unwrap();
    let is_message = |text: &str| {
        text.split_whitespace().count() >= 4 && !text.starts_with("mergeforge ") && !text.starts_with("git ")
    };
    let quoted = |paragraph: &str| {
        let line = paragraph.replace('\n', " ");
        let spans = code.captures_iter(&line).map(|span| span.get(1).or(span.get(2)).unwrap().as_str());
        let is_heading = line.starts_with("### ");
        spans.filter(|span| is_heading || is_message(span)).map(str::to_string).collect::<Vec<_>>()
    };
    page.split("\n\n").flat_map(quoted).collect()
}

/// Whether a message of the program has all pieces of what is quoted, in order.
fn fits(quoted: &str, message: &str) -> bool {
    let mut rest = message;
    quoted.split('…').all(|piece| {
        let found = rest.find(piece).map(|at| at + piece.len());
        rest = &rest[found.unwrap_or(0)..];
        found.is_some()
    })
}

/// Quoted messages that nothing in the program says.
fn unsaid(page: &str) -> Vec<String> {
    let literals = literals();
    let said = |quoted: &str| {
        PRINTED.lines().chain(literals.iter().map(String::as_str)).any(|message| fits(quoted, message))
    };
    let sure = |quoted: &str| quoted.replace('…', "").len() >= SURE_BYTES;
    quoted(page).into_iter().filter(|quoted| !sure(quoted) || !said(quoted)).collect()
}

#[test]
fn the_messages_of_troubleshooting_are_those_of_the_program() {
    let page = read(Path::new("docs/troubleshooting.md"));
    assert!(quoted(&page).len() > 60, "{:?}", quoted(&page));
    assert_eq!(unsaid(&page), [""; 0]);
}

#[test]
fn messages_that_the_program_does_not_have_are_found() {
    let planted = "### `there is no merge methode …`\n\nSee `the disk is\nfull: cannot write …` and `git lfs pull in it`.\n\n### `… of …`\n";
    let expected = ["there is no merge methode …", "the disk is full: cannot write …", "… of …"];
    assert_eq!(unsaid(planted), expected);
}

/// Pages with command lines.
fn pages() -> Vec<PathBuf> {
    let of_docs = fs::read_dir(Path::new(ROOT).join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let pages = of_docs.filter(|name| Path::new(name).extension().is_some_and(|kind| kind == "md"));
    let others = ["README.md", "CONTRIBUTING.md", "examples/README.md", "examples/case-study/README.md"];
    others.into_iter().map(PathBuf::from).chain(pages.map(|name| Path::new("docs").join(name))).collect()
}

/// The command lines of a page that begin with the program's name, each as the shell reads it.
fn command_lines(page: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let (mut in_shell, mut is_open) = (false, false);
    for line in page.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            (in_shell, is_open) = (fence == "sh", false);
            continue;
        }
        if is_open {
            found.last_mut().unwrap().extend(["\n", line]);
        } else if in_shell && line.starts_with("mergeforge ") {
            found.push(line.to_string());
        } else {
            continue;
        }
        let goes_on = |line: &String| line.ends_with('\\') || line.matches('\'').count() % 2 == 1;
        is_open = found.last().is_some_and(goes_on);
    }
    found
}

/// Runs a command line with `--help` behind it: whatever the program does not take before that is refused.
fn refusal(line: &str) -> Option<String> {
    let folder = TempDir::new().unwrap();
    // Words that stand for one of a few.
    let line = line.replace(" METHOD", " ties").replace(" SHELL", " bash");
    let script = format!("mergeforge() {{ \"$PROGRAM\" \"$@\" --help; }}\n{line}\n");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(&folder).env("PROGRAM", env!("CARGO_BIN_EXE_mergeforge"));
    let ended = Ended::from(command.output().expect("bash starts"));
    (ended.code != Some(0)).then(|| format!("{line}\n{}", ended.stderr))
}

#[test]
fn the_program_takes_every_command_line_of_the_pages() {
    let lines: Vec<String> = pages().iter().flat_map(|page| command_lines(&read(page))).collect();
    assert!(lines.len() > 40, "{lines:#?}");
    let refused: Vec<String> = lines.iter().filter_map(|line| refusal(line)).collect();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn command_lines_that_the_program_does_not_take_are_found() {
    let page = "```sh\nmergeforge merge c.yml out --treads 2\nmergeforge sweep c.yml found --objective-cmd 'a &&\n    b'\n```\n\
                ```text\nmergeforge nothing\n```\n```sh\nmergeforge plan \\\n  c.yml --no-such\n```\n";
    let lines = command_lines(page);
    assert_eq!(lines.len(), 3, "{lines:?}");
    let refused: Vec<bool> = lines.iter().map(|line| refusal(line).is_some()).collect();
    assert_eq!(refused, [true, false, true]);
}

/// What a heading can be linked by.
fn anchor(heading: &str) -> String {
    let words = Regex::new(r"\[([^\]]*)\]\([^)]*\)").unwrap().replace_all(heading, "$1").to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The anchors of a page's headings.
fn anchors(page: &str) -> Vec<String> {
    let mut in_code = false;
    let headings = page.lines().filter(move |line| {
        in_code ^= line.trim_start().starts_with("```");
        !in_code && line.starts_with('#')
    });
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

/// The links of a page to files and anchors that are not there.
fn dead_links(page: &Path, text: &str) -> Vec<String> {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let folder = Path::new(ROOT).join(page.parent().unwrap());
    let is_dead = |target: &str| {
        let (path, place) = target.split_once('#').unwrap_or((target, ""));
        let file = if path.is_empty() { Path::new(ROOT).join(page) } else { folder.join(path) };
        let has_place = || match file.extension() {
            _ if path.is_empty() => anchors(text).iter().any(|known| known == place),
            Some(kind) if kind == "md" => anchors(&read(&file)).iter().any(|known| known == place),
            _ => false,
        };
        !file.exists() || !(place.is_empty() || has_place())
    };
    let targets = link.captures_iter(text).map(|found| found.get(1).unwrap().as_str());
    let here = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    here.filter(|target| is_dead(target)).map(|target| format!("{}: {target}", page.display())).collect()
}

#[test]
fn links_between_files_lead_somewhere() {
    let more =
        ["ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "benches/README.md", "examples/models/README.md"];
    let pages: Vec<PathBuf> = pages().into_iter().chain(more.map(PathBuf::from)).collect();
    let dead: Vec<String> = pages.iter().flat_map(|page| dead_links(page, &read(page))).collect();
    assert_eq!(dead, [""; 0]);
}

#[test]
fn dead_links_are_found() {
    let text = "# A heading, `code`\n[a](#a-heading-code) [b](#none) [c](docs/none.md) [d](docs/eval.md#on-an-nvidia-gpu)\n\
                [e](docs/eval.md#none) [f](docs/speed.svg) [g](https://example.org/none)\n```sh\n# no heading\n```\n[h](#no-heading)\n";
    let expected = ["#none", "docs/none.md", "docs/eval.md#none", "#no-heading"];
    assert_eq!(
        dead_links(Path::new("README.md"), text),
        expected.map(|target| format!("README.md: {target}"))
    );
}
