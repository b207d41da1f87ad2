//! Who may use whom, and a few things that no file may do. The table is the architecture: a layer that reaches up or
//! sideways fails here, by file and line, before anyone depends on it.
//!
//! The source is read as text without comments and strings; `crate::x` and `super::` paths are resolved from
//! where a file lies. Unit tests at a file's end may use what they like.

use std::path::{Path, PathBuf};

/// A layer and the layers below it that it may use. `error`, `limits` and `text` are open to all. `lib` are the items of the crate's
/// root: what `lib.rs` makes of all layers together.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", ALL),
    // A crate of its own, which sees the program from outside.
    ("python", &["lib", "cli", "plan", "stream", "checkpoint", "dtype"]),
    ("cli", ALL),
    ("lib", ALL),
    (
        "bench",
        &[
            "lib",
            "report",
            "check",
            "method",
            "stream",
            "checkpoint",
            "backend",
            "kernel",
            "dtype",
            "timeline",
            "threads",
            "machine",
            "page",
            "files",
        ],
    ),
    (
        "analyze",
        &[
            "lib",
            "extract",
            "stream",
            "plan",
            "method",
            "input",
            "kernel",
            "checkpoint",
            "dtype",
            "threads",
            "instructions",
            "page",
        ],
    ),
    ("preflight", &["lib", "stream", "checkpoint", "backend", "machine"]),
    (
        "merging",
        &[
            "lib",
            "parts",
            "report",
            "check",
            "thresholds",
            "stream",
            "plan",
            "backend",
            "checkpoint",
            "timeline",
            "threads",
        ],
    ),
    ("parts", &["lib", "preflight", "report", "stream", "checkpoint", "hub", "dtype", "cache", "files"]),
    ("written", &["stages", "config"]),
    ("diff", &["stream", "plan", "input", "checkpoint", "dtype", "threads", "instructions"]),
    ("schema", &["config", "method"]),
    ("check", &["backend", "kernel", "dtype", "timeline", "cache", "files"]),
    ("extract", &["plan", "input", "products", "checkpoint", "kernel", "dtype", "threads", "instructions"]),
    ("thresholds", &["plan", "input", "recipe", "checkpoint", "kernel", "stream", "cache", "files"]),
    ("stages", &["lib", "plan", "report", "checkpoint", "hub", "config"]),
    (
        "verify",
        &[
            "lib",
            "report",
            "stages",
            "stream",
            "plan",
            "backend",
            "checkpoint",
            "hub",
            "config",
            "timeline",
            "threads",
            "files",
        ],
    ),
    (
        "report",
        &[
            "lib",
            "plan",
            "input",
            "method",
            "checkpoint",
            "backend",
            "stream",
            "config",
            "dtype",
            "timeline",
            "cache",
            "files",
        ],
    ),
    (
        "stream",
        &["plan", "input", "recipe", "checkpoint", "backend", "kernel", "dtype", "timeline", "threads"],
    ),
    (
        "plan",
        &[
            "config",
            "input",
            "decoder",
            "method",
            "recipe",
            "tokenizer",
            "checkpoint",
            "hub",
            "kernel",
            "dtype",
        ],
    ),
    ("tokenizer", &["checkpoint"]),
    ("backend", &["kernel", "dtype", "timeline", "threads", "instructions"]),
    ("method", &["recipe", "kernel"]),
    ("recipe", &["kernel"]),
    ("input", &["decoder", "products", "kernel", "dtype", "instructions"]),
    (
        "sweep",
        &[
            "lib",
            "report",
            "eval",
            "predict",
            "decoder",
            "stream",
            "plan",
            "method",
            "input",
            "recipe",
            "backend",
            "checkpoint",
            "config",
            "dtype",
            "timeline",
            "threads",
            "page",
        ],
    ),
    ("eval", &["plan", "input", "decoder", "tokenizer", "checkpoint", "dtype"]),
    ("predict", &["eval", "plan", "input", "decoder", "checkpoint", "kernel", "threads", "instructions"]),
    ("decoder", &["backend", "products", "threads", "instructions"]),
    ("products", &["instructions"]),
    ("kernel", &["dtype"]),
    ("checkpoint", &["hub", "dtype", "threads", "files"]),
    ("hub", &["cache", "threads", "files"]),
    ("config", &["dtype"]),
    ("dtype", &[]),
    ("timeline", &[]),
    ("threads", &[]),
    ("machine", &[]),
    ("cache", &["files"]),
    ("files", &[]),
    ("instructions", &[]),
    ("page", &[]),
    ("error", &[]),
    ("limits", &[]),
    ("text", &[]),
];

const ALL: &[&str] = &[
    "lib",
    "cli",
    "stages",
    "bench",
    "analyze",
    "merging",
    "preflight",
    "machine",
    "parts",
    "written",
    "diff",
    "schema",
    "check",
    "extract",
    "verify",
    "sweep",
    "predict",
    "eval",
    "report",
    "thresholds",
    "stream",
    "plan",
    "backend",
    "method",
    "recipe",
    "input",
    "decoder",
    "products",
    "kernel",
    "tokenizer",
    "checkpoint",
    "hub",
    "config",
    "dtype",
    "timeline",
    "threads",
    "cache",
    "files",
    "instructions",
    "page",
];

/// Words that only these layers may say; an empty list: nobody.
const RESERVED: &[(&str, &[&str])] = &[
    // Data and talk go out in one place.
    ("println!", &["cli"]),
    ("eprintln!", &["cli"]),
    ("print!", &["cli"]),
    ("eprint!", &["cli"]),
    ("stdout()", &["cli"]),
    ("stderr()", &["cli"]),
    // What may be a pipe without an end, or vast. Models' files are opened by `checkpoint::InputFile`, small ones of our own by
    // `cache::read_small`; here are the user's own words, what this program wrote a moment ago, and the system's.
    ("File::open(", &["bench", "cache", "eval", "sweep", "written"]),
    ("fs::read(", &["bench", "sweep"]),
    ("fs::read_to_string(", &["backend", "bench", "machine", "threads"]),
    // All that a merge does with files goes through one place. Beside it: benches, a sweep's own commands, what commands write beside a
    // merge, the user's own words, and the system's.
    ("std::fs", &["backend", "bench", "cli", "eval", "files", "machine", "sweep", "threads", "written"]),
    ("rustix::fs", &["bench", "cli", "files"]),
    ("cap_std", &["files"]),
    ("cap_fs_ext", &["files"]),
    ("memmap2", &["files"]),
    ("canonicalize()", &["cli", "files"]),
    ("symlink_metadata()", &[]),
    ("is_symlink()", &["files"]),
    ("read_dir()", &[]),
    ("read_link()", &[]),
    // One place knows YAML.
    ("serde_saphyr", &["config"]),
    // A fused operation rounds once where the contract rounds twice.
    ("mul_add", &[]),
    ("todo!", &[]),
    ("unimplemented!", &[]),
    ("dbg!", &[]),
];

/// Files under `src/` that may have `unsafe` code, in tests too.
const UNSAFE: &[&str] = &[
    "backend/cuda/algebra.rs",
    "backend/cuda/blas.rs",
    "backend/cuda/driver.rs",
    "backend/cuda.rs",
    "backend/libraries.rs",
    "backend/wgpu/driver.rs",
    "cli/signals.rs",
    "files/mapped.rs",
    "python/src/tensors.rs",
];

pub const LINES_MAX: usize = 700;

/// A source file: where it lies under `src/`, and its text.
pub struct File {
    pub path: String,
    pub text: String,
}

impl File {
    /// The layer is the first part of the path: `plan/wanted.rs` belongs to `plan`.
    fn layer(&self) -> &str {
        self.path.split(['/', '.']).next().expect("a path has a first part")
    }

    /// Whether it is of the crate that makes the program a Python module.
    fn is_python(&self) -> bool {
        self.path.starts_with("python/src/")
    }

    /// The module that is its crate's root.
    fn root(&self) -> Vec<String> {
        if self.is_python() { vec!["python".into(), "src".into()] } else { Vec::new() }
    }

    /// How many modules the file lies below the crate's root.
    fn depth(&self) -> usize {
        if self.path == "lib.rs" || self.path == "main.rs" { 0 } else { self.path.split('/').count() }
    }

    /// Without comments, the contents of strings, and the unit tests at the end; nothing of a file of unit tests, or of one beside it.
    fn code(&self) -> String {
        if self.path.ends_with("/tests.rs") || self.path.contains("/tests/") {
            return String::new();
        }
        let code = blank_out(&self.text);
        let tests = ["#[cfg(test)]\nmod tests", "#[cfg(all(test, unix))]\nmod tests"];
        let tests = tests.iter().filter_map(|start| code.find(start)).min().unwrap_or(code.len());
        code[..tests].to_string()
    }

    fn line(&self, at: usize) -> String {
        format!("src/{}:{}", self.path, self.text[..at].matches('\n').count() + 1)
    }
}

/// Comments and what stands between quotes become spaces, byte for byte, so that places stay.
fn blank_out(text: &str) -> String {
    let mut out = text.as_bytes().to_vec();
    let mut at = 0;
    while at < out.len() {
        let rest = &text.as_bytes()[at..];
        let len = if rest.starts_with(b"//") {
            find(rest, b"\n", 2)
        } else if rest.starts_with(b"/*") {
            find(rest, b"*/", 2) + 2
        } else if rest.starts_with(b"r\"") || rest.starts_with(b"r#") {
            raw_string(rest)
        } else if rest[0] == b'"' {
            quoted(rest, b'"')
        } else if rest.starts_with(b"'\\") || (rest[0] == b'\'' && char_ends(&text[at..])) {
            quoted(rest, b'\'')
        } else {
            at += 1;
            continue;
        };
        let end = out.len().min(at + len.max(1));
        out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end;
    }
    String::from_utf8(out).expect("whole characters were replaced")
}

fn find(text: &[u8], what: &[u8], from: usize) -> usize {
    (from..text.len()).find(|at| text[*at..].starts_with(what)).unwrap_or(text.len())
}

/// `'x'` is a character, `'x` a lifetime.
fn char_ends(text: &str) -> bool {
    text.chars().nth(2) == Some('\'')
}

fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// `r"…"` or `r#"…"#`; a raw identifier (`r#type`) is left alone but for its `r`.
fn raw_string(text: &[u8]) -> usize {
    let hashes = text[1..].iter().take_while(|byte| **byte == b'#').count();
    if text.get(1 + hashes) != Some(&b'"') {
        return 1;
    }
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    find(text, &end, 2 + hashes) + end.len()
}

/// Where a word stands by itself, not as the end of a longer one.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).map(|(at, _)| at).filter(move |at| !code[..*at].ends_with(part_of_name))
}

/// The names that follow a path's `::`: one, or the first of each branch of `{a::b, c}`.
fn heads(after: &str) -> Vec<String> {
    let mut found: Vec<String> =
        tree(after.trim_start()).into_iter().map(|mut path| path.swap_remove(0)).collect();
    found.dedup();
    found
}

/// What a file uses from the crate's root: layers or root items, and where.
fn uses(file: &File) -> Vec<(usize, String)> {
    let code = file.code();
    let mut found = Vec::new();
    let program = if file.is_python() { "mergeforge::" } else { "crate::" };
    for at in words(&code, program) {
        found.extend(heads(&code[at + program.len()..]).into_iter().map(|head| (at, head)));
    }
    if file.is_python() {
        return found;
    }
    for at in words(&code, "super::").filter(|at| !code[..*at].ends_with("super::")) {
        let path = &code[at..];
        let rest = path.trim_start_matches("super::");
        let levels = (path.len() - rest.len()) / "super::".len();
        // As many levels as the file is deep lead to the root; fewer stay inside the layer.
        if levels == file.depth() {
            found.extend(heads(rest).into_iter().map(|head| (at, head)));
        }
    }
    found
}

/// What a file does that its layer may not.
fn violations(file: &File) -> Vec<String> {
    let layer = file.layer();
    let Some((_, below)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
        return vec![format!("src/{}: the layer {layer} is not in the table", file.path)];
    };
    let known = |head: &str| LAYERS.iter().any(|(name, _)| *name == head);
    let mut found = Vec::new();
    for (at, head) in uses(file) {
        let used = if known(&head) { head.as_str() } else { "lib" };
        if used != layer && !["error", "limits", "text"].contains(&used) && !below.contains(&used) {
            found.push(format!("{}: {layer} uses {head}", file.line(at)));
        }
    }
    let code = file.code();
    for (word, allowed) in RESERVED {
        if !allowed.contains(&layer) {
            found.extend(words(&code, word).map(|at| format!("{}: {layer} says {word}", file.line(at))));
        }
    }
    found
}

pub fn sources() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    rust_files(&root, &mut paths);
    assert!(paths.len() > 20, "the sources are somewhere else");
    let file = |path: PathBuf| File {
        path: path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/"),
        text: std::fs::read_to_string(&path).unwrap(),
    };
    paths.into_iter().map(file).collect()
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

#[test]
fn no_layer_reaches_beyond_those_below_it() {
    let sources = sources();
    // A checker that no longer sees the paths would pass everything.
    let seen: usize = sources.iter().map(|file| uses(file).len()).sum();
    assert!(seen > 50, "only {seen} paths seen");
    let found: Vec<String> = sources.iter().flat_map(violations).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Everything in the table is used: a row for what is no more would allow what nobody checked.
#[test]
fn the_table_names_layers_that_exist() {
    let sources = sources();
    for (layer, below) in LAYERS {
        assert!(sources.iter().any(|file| file.layer() == *layer), "there is no layer {layer}");
        for used in *below {
            assert!(LAYERS.iter().any(|(name, _)| name == used), "{layer} uses {used}, which has no row");
        }
    }
}

/// Names between backticks, without what stands in brackets.
fn names(cell: &str) -> Vec<&str> {
    let mut depth = 0;
    let quoted = cell.split('`').enumerate().filter(|(at, text)| {
        let is_open = depth > 0;
        depth += text.matches('(').count();
        depth -= text.matches(')').count();
        at % 2 == 1 && !is_open
    });
    quoted.map(|(_, name)| name).collect()
}

/// The rows of a page's table of layers: each layer, and those that it may use, in order of their names.
fn rows_of_page(page: &str) -> Vec<(&str, Vec<&str>)> {
    let table = page.split_once("| layer | may use |\n").expect("the page has the table").1;
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.trim_matches(['|', ' ']).split_once(" | ").expect("a row has two cells"));
    let mut rows: Vec<(&str, Vec<&str>)> = cells
        .flat_map(|(layers, below)| {
            let root = below.contains("the root").then_some("lib");
            let is_layer = |name: &&str| LAYERS.iter().any(|(layer, _)| layer == name);
            let mut below: Vec<&str> = if below == "everything" {
                ALL.to_vec()
            } else {
                names(below).into_iter().filter(is_layer).chain(root).collect()
            };
            below.sort_unstable();
            names(layers).into_iter().map(move |layer| (layer, below.clone()))
        })
        .collect();
    rows.sort_unstable();
    rows
}

#[test]
fn the_page_has_the_same_table() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let sorted = |below: &[&'static str]| {
        let mut below = below.to_vec();
        below.sort_unstable();
        below
    };
    let mut table: Vec<(&str, Vec<&str>)> =
        LAYERS.iter().map(|(layer, below)| (*layer, sorted(below))).collect();
    table.sort_unstable();
    let rows = rows_of_page(&page);
    let differing: Vec<_> = rows
        .iter()
        .filter(|row| !table.contains(row))
        .map(|row| format!("the page has {row:?}"))
        .chain(table.iter().filter(|row| !rows.contains(row)).map(|row| format!("the test has {row:?}")))
        .collect();
    assert!(differing.is_empty() && rows.len() == table.len(), "{}", differing.join("\n"));
}

/// Where a file has `unsafe` code that may not, and whether one has none that may.
fn unsafe_violations(file: &File) -> Vec<String> {
    let code = blank_out(&file.text);
    let mut found = words(&code, "unsafe").map(|at| format!("{}: unsafe code", file.line(at))).peekable();
    if !UNSAFE.contains(&file.path.as_str()) {
        return found.collect();
    }
    let unused = found.peek().is_none();
    unused.then(|| format!("src/{}: no unsafe code, which it may have", file.path)).into_iter().collect()
}

#[test]
fn unsafe_code_stands_in_few_files() {
    let found: Vec<String> = sources().iter().flat_map(unsafe_violations).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn planted_unsafe_code_is_found() {
    let cases: [(&str, &str, &[&str]); 5] = [
        ("kernel.rs", "fn f() {\n    unsafe { g() };\n}", &["src/kernel.rs:2: unsafe code"]),
        ("cli.rs", "#[cfg(test)]\nmod tests {\n    unsafe fn f() {}\n}", &["src/cli.rs:3: unsafe code"]),
        ("plan.rs", "// unsafe\n/* unsafe */ let x = (\"unsafe\", r#\"\"unsafe\"#); not_unsafe();", &[]),
        ("files/mapped.rs", "unsafe fn f() {}", &[]),
        ("files/mapped.rs", "fn f() {}", &["src/files/mapped.rs: no unsafe code, which it may have"]),
    ];
    for (path, text, expected) in cases {
        assert_eq!(
            unsafe_violations(&File { path: path.into(), text: text.into() }),
            expected,
            "{path}: {text}"
        );
    }
}

/// What the checker says of a file with this text.
fn reported(path: &str, text: &str) -> Vec<String> {
    violations(&File { path: path.into(), text: text.into() })
}

#[test]
fn planted_violations_are_found() {
    let cases = [
        ("kernel/gram.rs", "use crate::method::Method;", "src/kernel/gram.rs:1: kernel uses method"),
        ("kernel.rs", "\nuse super::stream;", "src/kernel.rs:2: kernel uses stream"),
        ("plan/wanted.rs", "use super::super::stream::Budget;", "src/plan/wanted.rs:1: plan uses stream"),
        ("backend/cpu.rs", "fn f(p: &crate::plan::Plan) {}", "src/backend/cpu.rs:1: backend uses plan"),
        (
            "dtype.rs",
            "use crate::{error::Error, kernel::{TILE, tiles}};",
            "src/dtype.rs:1: dtype uses kernel",
        ),
        ("recipe.rs", "use crate::{\n    kernel::Job, plan,\n};", "src/recipe.rs:1: recipe uses plan"),
        ("stream.rs", "use crate::Prepared;", "src/stream.rs:1: stream uses Prepared"),
        ("plan.rs", "let quote = '\"'; println!(\"{quote}\");", "src/plan.rs:1: plan says println!"),
        ("report.rs", "writeln!(std::io::stderr(), \"x\");", "src/report.rs:1: report says stderr()"),
        ("plan.rs", "serde_saphyr::from_str(x)", "src/plan.rs:1: plan says serde_saphyr"),
        ("kernel.rs", "a.mul_add(b, c)", "src/kernel.rs:1: kernel says mul_add"),
        // In two parts: whoever looks for unfinished code looks here too.
        ("cli.rs", concat!("todo", "!()"), "src/cli.rs:1: cli says todo!"),
        ("plan/models.rs", "let text = fs::read(file);", "src/plan/models.rs:1: plan says fs::read("),
        ("plan/models.rs", "std::fs::rename(a, b)", "src/plan/models.rs:1: plan says std::fs"),
        ("thresholds.rs", "use rustix::fs::fsync;", "src/thresholds.rs:1: thresholds says rustix::fs"),
        (
            "checkpoint/own.rs",
            "use cap_std::ambient_authority;",
            "src/checkpoint/own.rs:1: checkpoint says cap_std",
        ),
        ("checkpoint/own.rs", "memmap2::Mmap", "src/checkpoint/own.rs:1: checkpoint says memmap2"),
        ("hub.rs", "place.canonicalize()?", "src/hub.rs:1: hub says canonicalize()"),
        (
            "checkpoint/file.rs",
            "use crate::files::File;\nFile::open(path)?",
            "src/checkpoint/file.rs:2: checkpoint says File::open(",
        ),
        ("extra.rs", "", "src/extra.rs: the layer extra is not in the table"),
        (
            "python/src/a.rs",
            "use mergeforge::{cli::call, kernel::Kernel};",
            "src/python/src/a.rs:1: python uses kernel",
        ),
        ("python/src/a.rs", "println!(\"x\");", "src/python/src/a.rs:1: python says println!"),
        ("cli/call.rs", "use crate::python::a;", "src/cli/call.rs:1: cli uses python"),
    ];
    for (path, text, expected) in cases {
        assert_eq!(reported(path, text), [expected], "{path}: {text}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    let cases = [
        ("kernel/gram.rs", "use crate::dtype::Float;\nuse super::{Inputs, TILE};\nuse crate::error::Result;"),
        ("plan/wanted.rs", "use super::{At, names};\nuse crate::config::{Inputs, Slice};"),
        ("config/walk.rs", "use serde_saphyr::Options;"),
        ("cli/show.rs", "eprintln!(\"x\"); let _ = std::io::stdout();"),
        ("kernel.rs", "/// See [`crate::plan::Plan`].\n// println!\n/* dbg!(x) */ let x = \"todo!\";"),
        (
            "kernel.rs",
            "let x = r#\"a \"crate::plan\" b\"#; let y: &'static str = \"\\\"mul_add\"; let z = '\\'';",
        ),
        ("kernel.rs", "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::plan::Plan;\n    dbg!(1);\n}"),
        ("merging/tests/case.rs", "println!(\"x\"); use crate::plan::Plan;"),
        ("error.rs", "pub fn eprintln_less() { mycrate::plan(); }"),
        ("python/src/a.rs", "use mergeforge::{Written, cli::call};\nuse crate::kernel::{_mergeforge::x};"),
    ];
    for (path, text) in cases {
        assert_eq!(reported(path, text), [""; 0], "{path}: {text}");
    }
}

/// Folders of families of devices, inside of which files may import each other.
const FAMILIES: &[&str] = &["backend/cuda/", "backend/wgpu/"];

/// A file's module: `plan/wanted.rs` is `plan`, `wanted`.
fn module(path: &str) -> Vec<String> {
    let path = path.strip_suffix(".rs").expect("a source file");
    let path = path.strip_suffix("/lib").unwrap_or(path);
    if path == "lib" || path == "main" { Vec::new() } else { path.split('/').map(str::to_string).collect() }
}

/// All paths of a tree of imports, `a::{b, c::d}` or `a::b`, up to its end.
fn tree(text: &str) -> Vec<Vec<String>> {
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let rest = text[name.len()..].trim_start();
    if let Some(inside) = rest.strip_prefix('{').filter(|_| name.is_empty()) {
        let (mut depth, mut start, mut found) = (0, 0, Vec::new());
        for (at, c) in inside.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    found.extend(tree(inside[start..at].trim_start()));
                    start = at + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
        return found;
    }
    match rest.strip_prefix("::") {
        _ if name.is_empty() => Vec::new(),
        None => vec![vec![name]],
        Some(after) => {
            let below = tree(after.trim_start());
            let below = if below.is_empty() { vec![Vec::new()] } else { below };
            below.into_iter().map(|path| std::iter::once(name.clone()).chain(path).collect()).collect()
        }
    }
}

/// What a file's module gives out that is of a module below it: the item, and that module.
fn given_out(file: &File) -> Vec<(String, Vec<String>)> {
    let code = file.code();
    let uses = words(&code, "use ").filter(|at| {
        let before = code[..*at].trim_end();
        before.ends_with("pub") || before.ends_with(')')
    });
    let paths = uses.flat_map(|at| tree(code[at + "use ".len()..].trim_start()));
    paths
        .filter_map(|path| {
            let (item, below) = path.split_last()?;
            Some((item.clone(), [&module(&file.path)[..], below].concat()))
        })
        .collect()
}

/// Which files each file imports from: those above it in its own folder are what all below them share, and not counted.
fn imports(files: &[File]) -> Vec<Vec<usize>> {
    let modules: Vec<Vec<String>> = files.iter().map(|file| module(&file.path)).collect();
    let given: Vec<_> = files.iter().map(given_out).collect();
    let place = |path: &[String]| modules.iter().position(|module| !module.is_empty() && module == path);
    // The longest part of a path that is a file, and on to where that has the item from.
    let resolve = |path: Vec<String>| {
        let (len, found) = (1..=path.len()).rev().find_map(|len| Some((len, place(&path[..len])?)))?;
        let item = path.get(len)?;
        let from = given[found].iter().find(|(name, _)| name == item).and_then(|(_, below)| place(below));
        Some(from.unwrap_or(found))
    };
    let of_file = |file: &File| {
        let (code, own, root) = (file.code(), module(&file.path), file.root());
        let crates = words(&code, "crate::").flat_map(|at| tree(&code[at + "crate::".len()..]));
        let mut paths: Vec<Vec<String>> = crates.map(|path| [&root[..], &path].concat()).collect();
        for at in words(&code, "super::").filter(|at| !code[..*at].ends_with("super::")) {
            let rest = code[at..].trim_start_matches("super::");
            let levels = (code[at..].len() - rest.len()) / "super::".len();
            let above = &own[..own.len().saturating_sub(levels)];
            paths.extend(tree(rest).into_iter().map(|path| [above, &path].concat()));
        }
        let mut found: Vec<usize> = paths.into_iter().filter_map(resolve).collect();
        found.retain(|found| !own.starts_with(&modules[*found]));
        found.sort_unstable();
        found.dedup();
        found
    };
    files.iter().map(of_file).collect()
}

/// Files that import each other, around one or more corners, but for those of one family of devices.
fn circles(files: &[File]) -> Vec<String> {
    let imports = imports(files);
    let reachable = |from: usize| {
        let (mut seen, mut next) = (vec![false; files.len()], imports[from].clone());
        while let Some(file) = next.pop() {
            if !std::mem::replace(&mut seen[file], true) {
                next.extend(&imports[file]);
            }
        }
        seen
    };
    let reachable: Vec<Vec<bool>> = (0..files.len()).map(reachable).collect();
    let in_one_family = |a: &File, b: &File| {
        FAMILIES.iter().any(|family| a.path.starts_with(family) && b.path.starts_with(family))
    };
    let mut found = Vec::new();
    for a in 0..files.len() {
        for b in a + 1..files.len() {
            if reachable[a][b] && reachable[b][a] && !in_one_family(&files[a], &files[b]) {
                found.push(format!("src/{} and src/{} import each other", files[a].path, files[b].path));
            }
        }
    }
    found
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let sources = sources();
    // A reader that no longer sees imports would find no circle.
    let seen: usize = imports(&sources).iter().map(Vec::len).sum();
    assert!(seen > 300, "only {seen} imports seen");
    let found = circles(&sources);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn planted_circles_are_found() {
    let files = |texts: &[(&str, &str)]| -> Vec<File> {
        texts.iter().map(|(path, text)| File { path: (*path).into(), text: (*text).into() }).collect()
    };
    let reported = |texts: &[(&str, &str)]| circles(&files(texts));
    let both = "src/a/b.rs and src/a/c.rs import each other";
    assert_eq!(
        reported(&[("a/b.rs", "use super::c::C;"), ("a/c.rs", "use crate::a::{b::{B, D}, x};")]),
        [both]
    );
    let both = "src/python/src/a.rs and src/python/src/b.rs import each other";
    let python = ("python/src/a.rs", "use crate::b::B;");
    assert_eq!(reported(&[python, ("python/src/b.rs", "use crate::a::A;")]), [both]);
    assert_eq!(
        reported(&[python, ("b.rs", "use crate::python::src::a::A;")]),
        [""; 0],
        "b is another crate's"
    );
    // Around a corner, and by a name that the folder's file gives out.
    let corner = [
        ("a.rs", "mod b;\npub use b::{Deep, B};"),
        ("a/b.rs", "use crate::e::E;"),
        ("e.rs", "use crate::a::B;"),
    ];
    assert_eq!(reported(&corner), ["src/a/b.rs and src/e.rs import each other"]);
    for fine in [
        &[("a/b.rs", "use super::c::C;"), ("a/c.rs", "use super::Shared;"), ("a.rs", "use b::B;")][..],
        &[("backend/cuda/x.rs", "use super::y::Y;"), ("backend/cuda/y.rs", "use super::x::X;")],
        &[("a/b.rs", "use super::c::C;"), ("a/c.rs", "// use super::b::B;\nlet x = \"super::b::B\";")],
    ] {
        assert_eq!(reported(fine), [""; 0]);
    }
}
