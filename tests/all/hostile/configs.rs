//! The malformed configs, beside the intact models `../a` and `../b`.

use std::fs;

use super::checkpoints::{long, mutated, sparse};
use super::{Case, Ends, floods};
use crate::models::Random;

pub const COUNT: usize = 454;

/// Two models in five words: what stands before and after is what is wrong.
const MODELS: &str = "models: [{model: ../b}, {model: ../a}]\n";

/// Every config: those written by hand, and as many mutations as are missing.
pub fn all() -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    types(&mut cases);
    texts(&mut cases);
    yaml(&mut cases);
    bombs(&mut cases);
    numbers(&mut cases);
    names(&mut cases);
    layers(&mut cases);
    floods::all(&mut cases);
    let written = cases.0.len();
    assert!((150..=COUNT - 60).contains(&written), "{written} configs are written by hand");
    mutations(&mut cases, COUNT - written);
    cases.0
}

pub struct Cases(Vec<Case>);

impl Cases {
    fn config(&mut self, name: String, ends: Ends, text: impl Into<Vec<u8>>) {
        let text = text.into();
        self.0
            .push(Case::new(name, ends, move |folder| fs::write(folder.join("config.yml"), &text).unwrap()));
    }

    /// A long config, made when it is needed.
    pub fn long<I: Iterator<Item = String>>(
        &mut self,
        name: &str,
        ends: Ends,
        start: &'static str,
        parts: impl Fn() -> I + Send + Sync + 'static,
        end: &'static str,
    ) {
        self.0.push(Case::new(format!("flood: {name}"), ends, move |folder| {
            long(&folder.join("config.yml"), start, parts(), end);
        }));
    }
}

/// Configs with a hole for a value: every key of the schema is one.
const HOLES: &[(&str, &str)] = &[
    ("merge_method", "merge_method: @\nmodels: [{model: ../b}, {model: ../a}]\n"),
    ("models", "merge_method: linear\nmodels: @\n"),
    ("an entry of models", "merge_method: linear\nmodels: [@]\n"),
    ("model", "merge_method: linear\nmodels: [{model: @}, {model: ../a}]\n"),
    ("path", "merge_method: linear\nmodels: [{model: {model: {path: @}}}, {model: ../a}]\n"),
    (
        "revision",
        "merge_method: linear\nmodels: [{model: {model: {path: ../b, revision: @}}}, {model: ../a}]\n",
    ),
    ("glob", "merge_method: average\nmodels: {glob: @}\n"),
    ("an entry's glob", "merge_method: average\nmodels: [{glob: @}, {model: ../a}]\n"),
    (
        "weights of average",
        "merge_method: average\nparameters: {weights: @, window: @}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    ("slices", "merge_method: passthrough\nslices: @\n"),
    ("sources", "merge_method: passthrough\nslices: [{sources: @}]\n"),
    ("an entry of sources", "merge_method: passthrough\nslices: [{sources: [@]}]\n"),
    ("layer_range", "merge_method: passthrough\nslices: [{sources: [{model: ../b, layer_range: @}]}]\n"),
    (
        "an end of layer_range",
        "merge_method: passthrough\nslices: [{sources: [{model: ../b, layer_range: [0, @]}]}]\n",
    ),
    ("base_model", "merge_method: linear\nbase_model: @\nmodels: [{model: ../b}, {model: ../a}]\n"),
    ("dtype", "merge_method: linear\ndtype: @\nmodels: [{model: ../b}, {model: ../a}]\n"),
    ("parameters", "merge_method: linear\nparameters: @\nmodels: [{model: ../b}, {model: ../a}]\n"),
    ("weight", "merge_method: linear\nparameters: {weight: @}\nmodels: [{model: ../b}, {model: ../a}]\n"),
    (
        "normalize",
        "merge_method: linear\nparameters: {weight: 1, normalize: @}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    (
        "filter",
        "merge_method: linear\nparameters: {weight: [{filter: @, value: 1}, {value: 1}]}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    (
        "a filter's value",
        "merge_method: linear\nparameters: {weight: [{filter: w, value: @}, {value: 1}]}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    (
        "a gradient's value",
        "merge_method: linear\nparameters: {weight: [1, @, 1]}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    (
        "tokenizer_source",
        "merge_method: linear\ntokenizer_source: @\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    ("tokenizer", "merge_method: linear\ntokenizer: @\nmodels: [{model: ../b}, {model: ../a}]\n"),
    ("chat_template", "merge_method: linear\nchat_template: @\nmodels: [{model: ../b}, {model: ../a}]\n"),
    (
        "t of slerp",
        "merge_method: slerp\nbase_model: ../b\nparameters: {t: @}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    (
        "density of ties",
        "merge_method: ties\nbase_model: ../b\nparameters: {weight: 1, density: @}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
];

/// Values of every kind; no key takes them all.
const VALUES: &[&str] = &["null", "-1", "\"x\\ny\\e[2J\\u202e\"", "[]", "{a: {b: [c]}}"];

fn types(cases: &mut Cases) {
    for (key, text) in HOLES {
        for value in VALUES {
            cases.config(format!("{key} is {value}"), Ends::Open, text.replace('@', value));
        }
    }
}

/// What is wrong, how it ends, and the config.
const TEXTS: &[(&str, Ends, &str)] = &[
    ("empty", Ends::Refused, ""),
    ("a comment", Ends::Refused, "# nothing\n"),
    ("a text", Ends::Refused, "linear"),
    ("a list", Ends::Refused, "- merge_method: linear\n"),
    (
        "JSON",
        Ends::Open,
        "{\"merge_method\":\"linear\",\"models\":[{\"model\":\"../b\"},{\"model\":\"../a\"}]}",
    ),
    ("no method", Ends::Refused, "models: [{model: ../b}]\n"),
    ("no models", Ends::Refused, "merge_method: linear\n"),
    (
        "models and slices",
        Ends::Refused,
        "merge_method: linear\nmodels: [{model: ../b}]\nslices: [{sources: [{model: ../b}]}]\n",
    ),
    ("no such method", Ends::Refused, "merge_method: della\nmodels: [{model: ../b}, {model: ../a}]\n"),
    (
        "a forged method",
        Ends::Refused,
        "merge_method: \"x\\nerror: forged\\e[2J\\u202e\"\nmodels: [{model: ../b}]\n",
    ),
    ("a method twice", Ends::Refused, "merge_method: linear\nmerge_method: ties\nmodels: [{model: ../b}]\n"),
    ("a forged key twice", Ends::Refused, "\"x\\ny\\e[2J\\u202e\": 1\n\"x\\ny\\e[2J\\u202e\": 2\n"),
    (
        "a forged key",
        Ends::Open,
        "\"x\\ny\\e[2J\\u202e\": 1\nmerge_method: linear\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    (
        "a forged parameter",
        Ends::Open,
        "merge_method: linear\nparameters: {weight: 1, \"x\\ny\\e[2J\\u202e\": 1}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    ("a key that is a list", Ends::Refused, "? [a, b]\n: 1\nmerge_method: linear\n"),
    (
        "a key that is null",
        Ends::Open,
        "~: 1\nmerge_method: linear\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    (
        "the same model twice",
        Ends::Refused,
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: ../b}, {model: ../b}]\n",
    ),
    (
        "the same model in other words",
        Ends::Open,
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: ../b}, {model: .././b}]\n",
    ),
    (
        "no base",
        Ends::Refused,
        "merge_method: ties\nparameters: {weight: 1, density: 0.5}\nmodels: [{model: ../b}, {model: ../a}]\n",
    ),
    (
        "too few models",
        Ends::Refused,
        "merge_method: slerp\nbase_model: ../b\nparameters: {t: 0.5}\nmodels: [{model: ../b}]\n",
    ),
    ("an adapter", Ends::Refused, "merge_method: linear\nmodels: [{model: ../b+../a}]\n"),
    ("modules", Ends::Refused, "merge_method: linear\nmodules: {a: {models: [{model: ../b}]}}\n"),
    ("two documents", Ends::Refused, "merge_method: linear\n---\nmerge_method: ties\n"),
    ("a hundred ends of documents", Ends::Refused, "...\n...\n...\n---\n---\n"),
];

fn texts(cases: &mut Cases) {
    for (what, ends, text) in TEXTS {
        cases.config(format!("config: {what}"), *ends, *text);
    }
    let good = format!("merge_method: linear\nparameters: {{weight: 0.5}}\n{MODELS}");
    cases.config("config: a byte order mark".into(), Ends::Open, format!("\u{feff}{good}"));
    cases.config("config: ends of lines from elsewhere".into(), Ends::Open, good.replace('\n', "\r\n"));
    cases.config("config: a carriage return alone".into(), Ends::Open, good.replace('\n', "\r"));
    cases.config("config: cut off".into(), Ends::Refused, &good[..good.len() - 5]);
    let wide = |order: fn(u16) -> [u8; 2]| {
        format!("\u{feff}{good}").encode_utf16().flat_map(order).collect::<Vec<u8>>()
    };
    cases.config("config: UTF-16, little end first".into(), Ends::Refused, wide(u16::to_le_bytes));
    cases.config("config: UTF-16, big end first".into(), Ends::Refused, wide(u16::to_be_bytes));
    cases.config("config: Latin-1".into(), Ends::Refused, [good.as_bytes(), b"# caf\xe9\n"].concat());
    for (what, byte) in
        [("NUL", 0_u8), ("an escape", 0x1b), ("a bell", 7), ("delete", 0x7f), ("a form feed", 12)]
    {
        let at = good.find("linear").unwrap() + 3;
        let ends = if byte == 0x7f { Ends::Open } else { Ends::Refused };
        cases.config(
            format!("config: {what} in the method"),
            ends,
            [&good.as_bytes()[..at], &[byte], &good.as_bytes()[at..]].concat(),
        );
    }
    for (what, text) in [
        ("next line", "\u{85}"),
        ("an override", "\u{202e}"),
        ("a line separator", "\u{2028}"),
        ("half a pair", "\\ud800"),
    ] {
        cases.config(
            format!("config: {what} as the method"),
            Ends::Refused,
            format!("merge_method: \"{text}\"\n{MODELS}"),
        );
    }
    cases.config("config: 3 MB of zeros".into(), Ends::Refused, vec![0; 3_000_000]);
    cases.config(
        "config: a page of HTML".into(),
        Ends::Refused,
        "<!DOCTYPE html><html><body>Not found: 404</body></html>",
    );
    for (what, bytes) in [("99 MB", 99_000_000), ("8 TB", 1_u64 << 43)] {
        cases.0.push(Case::new(format!("config: sparse, {what}"), Ends::Refused, move |folder| {
            sparse(&folder.join("config.yml"), b"merge_method: linear\n", bytes);
        }));
    }
    for target in ["/dev/zero", "/etc/passwd", "/proc/self/environ", ".", "config.yml", "nothing"] {
        cases.0.push(Case::new(format!("config: a link to {target}"), Ends::Refused, move |folder| {
            std::os::unix::fs::symlink(target, folder.join("config.yml")).unwrap();
        }));
    }
    // A pipe is no mistake: `<(…)` of a shell is one.
    cases.0.push(Case::new("config: a socket".into(), Ends::Refused, |folder| {
        std::os::unix::net::UnixListener::bind(folder.join("config.yml")).unwrap();
    }));
}

/// Values that only YAML knows; each stands where a weight should.
const ODD: &[(&str, Ends, &str)] = &[
    ("a tag of Python", Ends::Open, "!!python/object/apply:os.system [\"touch out\"]"),
    ("a tag of Python's names", Ends::Open, "!!python/name:os.system"),
    ("a tag of our own", Ends::Open, "!weight 1"),
    ("a tag that steers", Ends::Open, "!<tag:x,2000:%1B%0A> 1"),
    (
        "a tag of 1000 characters",
        Ends::Open,
        "!xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx 1",
    ),
    ("binary", Ends::Open, "!!binary aGVsbG8="),
    ("a set", Ends::Refused, "!!set {a, b}"),
    ("a date", Ends::Refused, "2001-12-14t21:59:43.10-05:00"),
    ("a number of base 60", Ends::Open, "190:20:30"),
    ("an alias of nothing", Ends::Refused, "*nothing"),
    ("an alias of itself", Ends::Refused, "&a [*a]"),
    ("an anchor alone", Ends::Open, "&a"),
    ("an open list", Ends::Refused, "[1, 2"),
    ("an open text", Ends::Refused, "\"1"),
    ("closed twice", Ends::Refused, "1}}"),
    ("a merge key", Ends::Open, "{<<: {value: 1}}"),
    ("a merge key of a number", Ends::Refused, "{<<: 1, value: 1}"),
    ("a merge key of itself", Ends::Refused, "&a {<<: *a, value: 1}"),
    ("a block in a flow", Ends::Refused, "|\n 1"),
    ("an unknown escape", Ends::Refused, "\"\\q\""),
    ("a reserved mark", Ends::Refused, "@1"),
    ("a tab", Ends::Open, "\t1"),
    ("a directive", Ends::Refused, "%YAML 9.9"),
];

fn yaml(cases: &mut Cases) {
    for (what, ends, value) in ODD {
        cases.config(
            format!("yaml: {what}"),
            *ends,
            format!("merge_method: linear\nparameters: {{weight: {value}}}\n{MODELS}"),
        );
    }
    let tabs = format!("merge_method: linear\nparameters:\n\tweight: 1\n{MODELS}");
    cases.config("yaml: tabs before a key".into(), Ends::Refused, tabs);
    cases.config(
        "yaml: a directive before all".into(),
        Ends::Open,
        format!("%YAML 9.9\n---\nmerge_method: linear\n{MODELS}"),
    );
    cases.config(
        "yaml: an anchor of 1 MB".into(),
        Ends::Open,
        format!("merge_method: &{} linear\n{MODELS}", "x".repeat(1_000_000)),
    );
    cases.config(
        "yaml: a tag of 1 MB".into(),
        Ends::Open,
        format!("merge_method: !{} linear\n{MODELS}", "x".repeat(1_000_000)),
    );
    cases.config(
        "yaml: an alias of 1 MB".into(),
        Ends::Refused,
        format!("merge_method: *{}\n", "x".repeat(1_000_000)),
    );
    cases.config(
        "yaml: 100,000 levels of indentation".into(),
        Ends::Refused,
        (0..2000).flat_map(|i| [&" ".repeat(i), "a:\n"].concat().into_bytes()).collect::<Vec<u8>>(),
    );
}

fn bombs(cases: &mut Cases) {
    let mut laughs = String::from("l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n");
    (1..30).for_each(|i| {
        laughs += &format!("l{i}: &l{i} [{}]\n", [format!("*l{}", i - 1).as_str(); 10].join(", "));
    });
    cases.config(
        "bomb: a billion laughs as models".into(),
        Ends::Refused,
        format!("{laughs}merge_method: linear\nmodels: *l29\n"),
    );
    cases.config(
        "bomb: a billion laughs that nobody needs".into(),
        Ends::Refused,
        format!("{laughs}merge_method: linear\n{MODELS}"),
    );
    let mut merges = String::from("m0: &m0 {a: 1, b: 2}\n");
    (1..40).for_each(|i| merges += &format!("m{i}: &m{i} {{<<: [*m{0}, *m{0}], k{i}: *m{0}}}\n", i - 1));
    cases.config("bomb: merge keys".into(), Ends::Refused, format!("{merges}merge_method: linear\n{MODELS}"));
    let texts = format!(
        "t: &t \"{}\"\nu: [{}]\nmerge_method: linear\n{MODELS}",
        "x".repeat(100_000),
        vec!["*t"; 50_000].join(", ")
    );
    cases.config("bomb: a long text 50,000 times".into(), Ends::Refused, texts);
    for (what, open, close) in [
        ("lists", "[", "]"),
        ("mappings", "{a: ", "}"),
        ("entries", "- ", ""),
        ("keys", "? ", ""),
        ("tags", "! [", "]"),
    ] {
        for depth in [30, 100, 10_000, 300_000] {
            let ends = if depth == 30 { Ends::Open } else { Ends::Refused };
            let text = format!(
                "merge_method: linear\n{MODELS}x:\n  {}1{}\n",
                open.repeat(depth),
                close.repeat(depth)
            );
            cases.config(format!("bomb: {depth} nested {what}"), ends, text);
        }
    }
}

fn numbers(cases: &mut Cases) {
    let weights = [
        ".inf",
        "-.inf",
        ".nan",
        "1e309",
        "-1e309",
        "1e39",
        "3.5e38",
        "1e-400",
        "-0.0",
        "0x7fffffffffffffffffff",
        "0o17",
        "0b101",
        "1_000",
        "99999999999999999999999999",
        "+1",
        "1.",
        ".5",
        "1e",
        "--1",
        "\"0.5\"",
        "'nan'",
        "yes",
        "0",
        "-1",
    ];
    for weight in weights {
        cases.config(
            format!("number: weight {weight}"),
            Ends::Open,
            format!("merge_method: linear\nparameters: {{weight: {weight}}}\n{MODELS}"),
        );
    }
    for digits in [1000, 1_000_000] {
        let weight = "9".repeat(digits);
        cases.config(
            format!("number: weight of {digits} digits"),
            Ends::Refused,
            format!("merge_method: linear\nparameters: {{weight: {weight}}}\n{MODELS}"),
        );
    }
    for density in ["-0.1", "1.1", "1e-300", ".nan", "0"] {
        let text = format!(
            "merge_method: ties\nbase_model: ../b\nparameters: {{weight: 1, density: {density}}}\n{MODELS}"
        );
        cases.config(format!("number: density {density}"), Ends::Open, text);
    }
}

fn names(cases: &mut Cases) {
    let long = "x".repeat(1_000_000);
    let (deep, part) = ("a/".repeat(5000), "x".repeat(300));
    let newlines = "\\n".repeat(100_000);
    let overrides = "\\u202e".repeat(900);
    let refused = [
        ("empty", ""),
        ("a space", " "),
        ("a dot", "."),
        ("the folder above", ".."),
        ("the root", "/"),
        ("NUL", "../b\\0"),
        ("a newline", "../b\\n"),
        ("a forged line", "x\\nerror: forged\\nhint: run rm -rf"),
        ("an escape sequence", "\\e[2J\\x9b31m"),
        ("an override", "\\u202egpj"),
        ("isolates", "\\u2066x\\u2069"),
        ("a line separator", "x\\u2028y"),
        ("a config", "config.yml"),
        ("a file as a folder", "../b/model.safetensors/x"),
        ("a device", "/dev/zero"),
        ("a folder of devices", "/dev"),
        ("a process", "/proc/self"),
        ("standard input", "-"),
        ("a flag", "--help"),
        ("a home", "~nobody"),
        ("an address", "https://huggingface.co/org/name"),
        ("a drive", "C:\\\\x"),
        ("a share", "\\\\\\\\server\\\\x"),
        ("of the hub", "org/name"),
        ("of the hub, at a commit", "org/name@0123456789"),
        ("of the hub, at a path", "org/name@../../../x"),
        ("of the hub, at NUL", "org/name@\\0"),
        ("of the hub, at an escape", "org/name@\\e[2J"),
        ("a folder at a revision", "../b@main"),
        ("no revision", "../b@"),
        ("two revisions", "../b@x@y"),
        ("only a revision", "@main"),
        ("an adapter", "../b+x"),
        ("two adapters", "../b+x+y"),
        ("three names", "a/b/c"),
        ("in the cache", "models--org--name"),
        ("1 MB", &long),
        ("5000 folders deep", &deep),
        ("a part of 300 bytes", &part),
        ("100,000 newlines", &newlines),
        ("900 overrides", &overrides),
    ];
    for (what, name) in refused {
        cases.config(format!("model name: {what}"), Ends::Refused, format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: ../a}}, {{model: \"{name}\"}}]\n"));
    }
    // A file of tensors is a model by itself.
    cases.config(
        "model name: a file of a model".into(),
        Ends::Merged,
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: ../a}, {model: ../b/model.safetensors}]\n",
    );
    for (key, value) in [
        ("tokenizer_source", "\"x\\e[2J\\n\""),
        ("chat_template", "\"{{ \\e[2J\\n }}\""),
        ("base_model", "\"\\u202e\\n\""),
        ("dtype", "\"\\e[2J\\nfloat\""),
    ] {
        // A tokenizer that nobody has is no matter where all have the same.
        let ends = if key == "tokenizer_source" { Ends::Open } else { Ends::Refused };
        cases.config(
            format!("text: a forged {key}"),
            ends,
            format!("merge_method: linear\nparameters: {{weight: 1}}\n{key}: {value}\n{MODELS}"),
        );
        let text = "\\u202e".repeat(100_000);
        cases.config(
            format!("text: {key} of 100,000 overrides"),
            ends,
            format!("merge_method: linear\n{key}: \"{text}\"\n{MODELS}"),
        );
    }
}

fn layers(cases: &mut Cases) {
    for range in [
        "[0, 3]",
        "[2, 3]",
        "[1, 0]",
        "[1, 1]",
        "[-1, 1]",
        "[0, -1]",
        "[0, 1000000]",
        "[0, 1000001]",
        "[999999, 1000000]",
        "[0, 1e300]",
        "[0, .inf]",
        "[.nan, .nan]",
        "[0, 18446744073709551616]",
        "[0.5, 1]",
        "[0, 1, 2]",
        "[0]",
        "[true, 2]",
        "\"[0, 1]\"",
        "[\"0\", \"x\"]",
        "{0: 1}",
    ] {
        cases.config(
            format!("layer_range {range}"),
            Ends::Refused,
            format!(
                "merge_method: passthrough\nslices: [{{sources: [{{model: ../b, layer_range: {range}}}]}}]\n"
            ),
        );
    }
    for (what, sources) in [
        ("of different lengths", "{model: ../b, layer_range: [0, 1]}, {model: ../a, layer_range: [0, 2]}"),
        ("of the same model twice", "{model: ../b, layer_range: [0, 1]}, {model: ../b, layer_range: [1, 2]}"),
    ] {
        cases.config(
            format!("sources {what}"),
            Ends::Refused,
            format!("merge_method: linear\nparameters: {{weight: 1}}\nslices: [{{sources: [{sources}]}}]\n"),
        );
    }
}

/// Good configs with a few bytes changed, each from a seed of its own.
fn mutations(cases: &mut Cases, count: usize) {
    let good = [
        format!("merge_method: linear\nparameters: {{weight: 0.5, normalize: true}}\n{MODELS}dtype: bfloat16\n"),
        "merge_method: ties\nbase_model: ../b\nmodels:\n  - model: ../b\n  - model: ../a\n    parameters:\n      weight: [0.2, 0.8]\n      density: 0.5\n".into(),
        "merge_method: passthrough\nslices:\n  - sources:\n      - {model: ../b, layer_range: [0, 2]}\n  - sources:\n      - {model: ../a, layer_range: [1, 2]}\n".into(),
        "x: &x {weight: 1.0}\nmerge_method: linear\nmodels:\n  - {model: ../b, parameters: *x}\n  - model: ../a\n    parameters: {<<: *x}\n".into(),
    ];
    for i in 0..count {
        let text = mutated(good[i % good.len()].as_bytes(), &mut Random(1000 + i as u64));
        cases.config(format!("mutation {i}"), Ends::Open, text);
    }
}
