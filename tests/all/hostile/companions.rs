//! The small files beside the weights, where a merge takes them apart: tokenizers that become one, their configs, adapters.

use std::fs;
use std::path::Path;

use super::checkpoints::{CONFIG, Cases, long, sparse};
use super::{Ends, write_model};
use crate::models::{PLAIN, stored, write};

/// One vocabulary of `b` and `c`, which has another token.
const UNION: &str = "merge_method: linear\nparameters: {weight: 0.5}\ntokenizer_source: union\n\
    models: [{model: b}, {model: c}]\n";
/// That of `c`, so that the ids of `b` have to follow its tokens.
const LED: &str = "merge_method: linear\nparameters: {weight: 0.5}\ntokenizer_source: c\n\
    models: [{model: b}, {model: c}]\n";
const ADAPTER: &str = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: b+adapter}]\n";

const TOKENIZER: &str = "tokenizer.json";
const SETTINGS: &str = "tokenizer_config.json";
const GENERATION: &str = "generation_config.json";

pub fn all(cases: &mut Cases) {
    tokenizers(cases);
    vocabularies(cases);
    settings(cases);
    ids(cases);
    templates(cases);
    adapters(cases);
}

/// Eight tokens, as many as the models have rows.
fn tokenizer(vocabulary: &str, more: &str) -> String {
    format!(
        r#"{{"version":"1.0","added_tokens":[],"model":{{"type":"BPE","vocab":{{{vocabulary}}},"merges":[]}}{more}}}"#
    )
}

fn eight() -> String {
    (0..8).map(|i| format!("\"t{i}\":{i}")).collect::<Vec<_>>().join(",")
}

impl Cases {
    /// Two models whose vocabularies become one, of which the first gets damaged.
    fn union(&mut self, name: String, ends: Ends, damage: impl Fn(&Path) + Send + Sync + 'static) {
        self.of_two(name, ends, UNION, damage);
    }

    fn of_two(
        &mut self,
        name: String,
        ends: Ends,
        config: &'static str,
        damage: impl Fn(&Path) + Send + Sync + 'static,
    ) {
        self.merged(name, ends, config, move |b| {
            let c = b.with_file_name("c");
            write_model(&c, 4, 1);
            fs::write(b.join(TOKENIZER), tokenizer(&eight(), "")).unwrap();
            fs::write(c.join(TOKENIZER), tokenizer(&eight().replace("t7", "u7"), "")).unwrap();
            damage(b);
        });
    }

    fn union_with(&mut self, name: &str, ends: Ends, file: &'static str, text: String) {
        self.union(format!("{file}: {name}"), ends, move |b| fs::write(b.join(file), &text).unwrap());
    }

    /// A file of many parts.
    fn union_of<I: Iterator<Item = String>>(
        &mut self,
        name: &str,
        ends: Ends,
        file: &'static str,
        [start, end]: [&'static str; 2],
        parts: impl Fn() -> I + Send + Sync + 'static,
    ) {
        self.union(format!("{file}: {name}"), ends, move |b| long(&b.join(file), start, parts(), end));
    }
}

fn tokenizers(cases: &mut Cases) {
    cases.union("tokenizer.json: a good one".into(), Ends::Merged, |_| {});
    let nested = |depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    for (what, text) in [
        ("empty", String::new()),
        ("null", "null".into()),
        ("a list", "[]".into()),
        ("no model", "{}".into()),
        ("a model that is a number", r#"{"model":1}"#.into()),
        ("an unknown model", r#"{"model":{"type":"\u001b[2J\nX","vocab":{}}}"#.into()),
        ("two models", r#"{"model":{"vocab":{}},"model":{"vocab":{}}}"#.into()),
        ("a vocabulary of texts", tokenizer(r#""a":"b""#, "")),
        ("a negative id", tokenizer(r#""a":-1"#, "")),
        ("an id beyond 32 bits", tokenizer(r#""a":4294967296"#, "")),
        ("an id of four milliards", tokenizer(r#""a":4294967295"#, "")),
        ("half a surrogate", tokenizer(r#""\ud800":0"#, "")),
        ("cut off", tokenizer(&eight(), "")[..60].into()),
        (
            "an added token of no text",
            r#"{"model":{"type":"BPE","vocab":{},"merges":[]},"added_tokens":[{"id":0}]}"#.into(),
        ),
        ("a page of HTML", "<!DOCTYPE html><html></html>".into()),
    ] {
        cases.union_with(what, Ends::Damaged, TOKENIZER, text);
    }
    for depth in [100, 200, 100_000] {
        let more = format!(r#","normalizer":{}"#, nested(depth));
        cases.union_with(&format!("{depth} nested lists"), Ends::Open, TOKENIZER, tokenizer(&eight(), &more));
        let vocabulary = format!(r#""a":{}"#, nested(depth));
        cases.union_with(
            &format!("{depth} nested lists as an id"),
            Ends::Damaged,
            TOKENIZER,
            tokenizer(&vocabulary, ""),
        );
    }
    cases.union("tokenizer.json: 120 MB, sparse".into(), Ends::Damaged, |b| {
        sparse(&b.join(TOKENIZER), b"{}", 120_000_000);
    });
    cases.union("tokenizer.json: 4 GB, sparse".into(), Ends::Damaged, |b| {
        sparse(&b.join(TOKENIZER), b"{}", 1 << 32);
    });
}

const VOCABULARY: [&str; 2] =
    [r#"{"model":{"type":"BPE","merges":[],"vocab":{"#, r#""x":0}},"added_tokens":[]}"#];

/// A thousand of these, one behind the other.
fn thousand(one: impl Fn(usize) -> String) -> String {
    (0..1000).fold(String::new(), |text, i| text + &one(i))
}

fn vocabularies(cases: &mut Cases) {
    cases.union_of("10,000,000 tokens", Ends::Damaged, TOKENIZER, VOCABULARY, || {
        (0..10_000).map(|i| thousand(|j| format!("\"{i:x}.{j}\":0,")))
    });
    cases.union_of("one token 15,000,000 times", Ends::Open, TOKENIZER, VOCABULARY, || {
        (0..15_000).map(|_| "\"\":0,".repeat(1000))
    });
    cases.union_of(
        "10,000,000 keys beside the model",
        Ends::Damaged,
        TOKENIZER,
        ["{", r#""model":1}"#],
        || (0..10_000).map(|_| "\"\":0,".repeat(1000)),
    );
    cases.union_of(
        "10,000,000 merges",
        Ends::Open,
        TOKENIZER,
        [r#"{"model":{"type":"BPE","vocab":{"x":0},"merges":["#, r#"[]]},"added_tokens":[]}"#],
        || (0..10_000).map(|_| "[],".repeat(1000)),
    );
    cases.union_of(
        "500,000 added tokens",
        Ends::Open,
        TOKENIZER,
        [
            r#"{"model":{"type":"BPE","vocab":{"x":0},"merges":[]},"added_tokens":["#,
            r#"{"id":1,"content":"y"}]}"#,
        ],
        || (0..500).map(|i| thousand(|j| format!(r#"{{"id":{j},"content":"{i}.{j}"}},"#))),
    );
    cases.union("tokenizer.json: a token of 60 MB".into(), Ends::Damaged, |b| {
        let parts = std::iter::repeat_n("x".repeat(1_000_000), 60);
        long(
            &b.join(TOKENIZER),
            r#"{"added_tokens":[],"model":{"type":"BPE","merges":[],"vocab":{""#,
            parts,
            r#"":0}}}"#,
        );
    });
}

fn settings(cases: &mut Cases) {
    for file in [SETTINGS, "special_tokens_map.json", "added_tokens.json"] {
        for (what, text) in [
            ("null", "null"),
            ("a list", "[]"),
            ("cut off", "{\"a\":"),
            ("an id that is no number", r#"{"added_tokens_decoder":{"\u001b[2J":{"content":"x"}},"x":"y"}"#),
        ] {
            cases.union_with(what, Ends::Open, file, text.into());
        }
        cases.union_of("3,000,000 keys", Ends::Open, file, ["{", "\"x\":0}"], || {
            (0..3000).map(|_| "\"\":0,".repeat(1000))
        });
        cases.union_of("a million tokens", Ends::Open, file, ["{", "\"x\":0}"], || {
            (0..1000).map(|i| thousand(|j| format!("\"{i:x}.{j:x}\":9,")))
        });
    }
    cases.union_of(
        "150,000 added tokens",
        Ends::Open,
        SETTINGS,
        [r#"{"added_tokens_decoder":{"#, r#""7":{"content":"t7"}}}"#],
        || (0..150).map(|i| thousand(|j| format!(r#""{}":{{"content":"{i}.{j}"}},"#, 1000 * i + j))),
    );
    cases.union_of(
        "1,000,000 special tokens",
        Ends::Open,
        SETTINGS,
        [r#"{"additional_special_tokens":["#, r#""x"]}"#],
        || (0..1000).map(|i| thousand(|j| format!("\"{i:x}.{j:x}\","))),
    );
}

/// Keys that are ids of tokens, in both models, so that each is looked for among those of the other.
fn ids(cases: &mut Cases) {
    for (file, count) in [(CONFIG, 50_000), (GENERATION, 130_000), (GENERATION, 800_000)] {
        let keys = move |model: &Path, from: usize| {
            let parts = (from..from + count).map(|i| format!("\"{i:x}_token_id\":0,"));
            long(&model.join(file), "{", parts, "\"a\":0}");
        };
        cases.of_two(format!("{file}: {count} ids of tokens"), Ends::Open, LED, move |b| {
            keys(b, 0);
            keys(&b.with_file_name("c"), 0);
        });
        cases.of_two(
            format!("{file}: {count} ids of tokens that the other has not"),
            Ends::Open,
            LED,
            move |b| {
                keys(b, 0);
                keys(&b.with_file_name("c"), count);
            },
        );
    }
    for (what, thousands) in [("7,000,000", 7000), ("130,000", 130)] {
        cases.of_two(format!("{GENERATION}: {what} suppressed tokens"), Ends::Open, LED, move |b| {
            let parts = std::iter::repeat_n("0,".repeat(1000), thousands);
            long(&b.join(GENERATION), r#"{"suppress_tokens":["#, parts, "0]}");
        });
    }
    for depth in [3, 100, 100_000] {
        let text = format!(r#"{{"bad_words_ids":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth));
        cases.of_two(format!("{GENERATION}: {depth} nested lists of ids"), Ends::Open, LED, move |b| {
            fs::write(b.join(GENERATION), &text).unwrap();
        });
    }
}

/// Templates are bytes: none is rendered, whatever it would do.
fn templates(cases: &mut Cases) {
    const LOOPS: &str =
        "{% for a in range(10**9) %}{% for b in range(10**9) %}{{ a }}{% endfor %}{% endfor %}";
    const RUNS: &str = "{{ ''.__class__.__mro__[1].__subclasses__()[0]('touch ran', shell=True) }}";
    for (what, text) in [("loops", LOOPS), ("runs a shell", RUNS), ("is not closed", "{% for {{ {# ")] {
        for (file, is_json) in
            [("chat_template.jinja", false), (SETTINGS, true), ("additional_chat_templates/x.jinja", false)]
        {
            let text =
                if is_json { serde_json::json!({ "chat_template": text }).to_string() } else { text.into() };
            cases.union(format!("template: {file} {what}"), Ends::Merged, move |b| {
                fs::create_dir_all(b.join(file).parent().unwrap()).unwrap();
                fs::write(b.join(file), &text).unwrap();
            });
        }
    }
}

fn adapters(cases: &mut Cases) {
    let mut adapter = |what: &str, ends: Ends, config: String| {
        cases.merged(format!("adapter: {what}"), ends, ADAPTER, move |b| {
            let folder = b.with_file_name("adapter");
            let name = |part: &str| format!("base_model.model.model.layers.0.w.lora_{part}.weight");
            let zeros = |shape: &[usize; 2]| stored(safetensors::Dtype::F32, shape, &[0.0; 8]);
            let tensors = [(name("A"), zeros(&[2, 4])), (name("B"), zeros(&[4, 2]))];
            // Names as PEFT has them end in the module's own `weight`, which this one's tensor does not.
            write(&folder, &tensors.into_iter().collect(), PLAIN);
            fs::rename(folder.join("model.safetensors"), folder.join("adapter_model.safetensors")).unwrap();
            fs::remove_file(folder.join(CONFIG)).unwrap();
            fs::write(folder.join("adapter_config.json"), &config).unwrap();
        });
    };
    let with = |more: &str| format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":2{more}}}"#);
    let patterns = |all: String| with(&format!(r#","rank_pattern":{{{all}}}"#));
    adapter("a plain one", Ends::Open, with(""));
    for (what, text) in [
        ("null", "null".into()),
        ("nothing", "{}".into()),
        ("of another kind", r#"{"peft_type":"\u001b[2J\n"}"#.into()),
        ("rank 0", with("").replace("\"r\":2", "\"r\":0")),
        ("a negative rank", with("").replace("\"r\":2", "\"r\":-1")),
        ("rank 1e308", with("").replace("\"r\":2", "\"r\":1e308")),
        ("a rank of text", with("").replace("\"r\":2", "\"r\":\"2\"")),
        ("200 nested lists", with(&format!(r#","x":{}1{}"#, "[".repeat(200), "]".repeat(200)))),
        ("2 MB", with(&format!(r#","x":"{}""#, "x".repeat(2_000_000)))),
    ] {
        adapter(what, Ends::Refused, text);
    }
    for (what, text) in [
        ("a pattern that repeats itself", patterns(r#""((a{500}){500}){500}":2"#.into())),
        (
            "a pattern of 100,000 parentheses",
            patterns(format!("\"{}x{}\":2", "(".repeat(100_000), ")".repeat(100_000))),
        ),
        ("a pattern that is none", patterns(r#""(":2"#.into())),
        ("a pattern that goes back", patterns(r#""(a*)*b\\1":2"#.into())),
    ] {
        adapter(what, Ends::Refused, text);
    }
    let many = |one: &str, count: usize| {
        (0..count)
            .map(|i| format!("\"{}\":2", one.replace('#', &i.to_string())))
            .collect::<Vec<_>>()
            .join(",")
    };
    adapter("70,000 patterns", Ends::Open, patterns(many("m#", 70_000)));
    adapter("20,000 patterns of anything", Ends::Open, patterns(many(".*a.*#.*w", 20_000)));
    adapter("5,000 classes of Unicode", Ends::Open, patterns(many(r"(\\\\w+#)+", 5_000)));
    adapter(
        "60,000 unknown keys",
        Ends::Open,
        with(&(0..60).fold(String::new(), |all, i| all + &thousand(|j| format!(",\"{i}.{j}\":1")))),
    );
}
