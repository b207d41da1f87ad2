//! Configs with too much of something, or of two things that are harmless alone.

use super::Ends;
use super::configs::Cases;

pub fn all(cases: &mut Cases) {
    numbers(cases);
    keys(cases);
    texts(cases);
    products(cases);
    documents(cases);
}

const START: &str = "merge_method: linear\nparameters: {weight: 1}\n";
const WEIGHTS: &str = "merge_method: linear\nmodels: [{model: ../b}, {model: ../a}]\nparameters: {weight: [";
const ALL: &str = "models: [{model: ../b}, {model: ../a}]\n";

/// Another spelling of the same path: each bit of the number is one slash or two.
fn spelled(i: usize, name: &str) -> String {
    let bits = (0..16).map(|bit| if i >> bit & 1 == 1 { ".//" } else { "./" });
    format!("../{}{name}", bits.collect::<String>())
}

fn numbers(cases: &mut Cases) {
    cases.long(
        "39,000 models that are not there",
        Ends::Refused,
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n",
        || (0..39_000).map(|i| format!("- model: m{i}\n")),
        "",
    );
    cases.long(
        "39,000 times one model",
        Ends::Refused,
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n",
        || (0..39_000).map(|_| "- model: ../b\n".into()),
        "",
    );
    cases.long(
        "39,000 models that are there",
        Ends::Open,
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n",
        || (0..39_000).map(|i| format!("- model: {}\n", spelled(i, "b"))),
        "",
    );
    cases.long(
        "1000 models that are there",
        Ends::Open,
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n",
        || (0..1000).map(|i| format!("- model: {}\n", spelled(i, "b"))),
        "",
    );
    cases.long(
        "a gradient of 100,000 numbers",
        Ends::Open,
        WEIGHTS,
        || (0..100_000).map(|_| "0.5, ".into()),
        "1]}\n",
    );
    cases.long(
        "a gradient of 250,000 numbers",
        Ends::Refused,
        WEIGHTS,
        || (0..250_000).map(|_| "0.5, ".into()),
        "1]}\n",
    );
    cases.long(
        "a gradient of 100,000 texts",
        Ends::Refused,
        WEIGHTS,
        || (0..100_000).map(|_| "x, ".into()),
        "x]}\n",
    );
    cases.long(
        "20,000 filters",
        Ends::Open,
        WEIGHTS,
        || (0..20_000).map(|i| format!("{{filter: f{i}, value: 1}}, ")),
        "{value: 1}]}\n",
    );
    cases.long(
        "20,000 filters without values",
        Ends::Refused,
        WEIGHTS,
        || (0..20_000).map(|i| format!("{{filter: f{i}}}, ")),
        "{value: 1}]}\n",
    );
}

fn keys(cases: &mut Cases) {
    cases.long("30,000 unknown keys", Ends::Open, START, || (0..30_000).map(|i| format!("k{i}: 1\n")), ALL);
    cases.long(
        "30,000 unknown keys, and nothing to merge",
        Ends::Refused,
        START,
        || (0..30_000).map(|i| format!("k{i}: 1\n")),
        "",
    );
    cases.long(
        "30,000 keys that are nearly one",
        Ends::Open,
        START,
        || (0..30_000).map(|i| format!("model{i}: 1\n")),
        ALL,
    );
    cases.long(
        "30,000 parameters",
        Ends::Open,
        "merge_method: linear\nparameters:\n",
        || (0..30_000).map(|i| format!("  p{i}: 1\n")),
        "  weight: 1\nmodels: [{model: ../b}, {model: ../a}]\n",
    );
    cases.long("30,000 parameters of a model", Ends::Open, "merge_method: linear\nmodels:\n- model: ../a\n  parameters: {weight: 1}\n- model: ../b\n  parameters:\n    weight: 1\n", || (0..30_000).map(|i| format!("    p{i}: 1\n")), "");
    cases.long(
        "30,000 unknown keys of models",
        Ends::Open,
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- model: ../a\n- model: ../b\n",
        || (0..30_000).map(|i| format!("  k{i}: 1\n")),
        "",
    );
    cases.long("one key 50,000 times", Ends::Refused, START, || (0..50_000).map(|_| "k: 1\n".into()), ALL);
}

fn texts(cases: &mut Cases) {
    cases.long(
        "keys of 4 MB",
        Ends::Open,
        START,
        || (0..40).map(|i| format!("? {}{i}\n: 1\n", "k".repeat(100_000))),
        ALL,
    );
    cases.long(
        "a comment of 3 MB",
        Ends::Open,
        START,
        || (0..3000).map(|_| format!("#{}\n", "x".repeat(1000))),
        ALL,
    );
    cases.long(
        "a comment of 5 MB",
        Ends::Refused,
        START,
        || (0..5000).map(|_| format!("#{}\n", "x".repeat(1000))),
        ALL,
    );
    cases.long(
        "3 MB of spaces",
        Ends::Open,
        START,
        || (0..3000).map(|_| " ".repeat(1000)),
        "\nmodels: [{model: ../b}, {model: ../a}]\n",
    );
    cases.long("3 MB of empty lines", Ends::Open, START, || (0..3000).map(|_| "\n".repeat(1000)), ALL);
    cases.long("5 MB of models", Ends::Refused, START, || (0..5000).map(|_| "x".repeat(1000)), "");
    cases.long(
        "a method of 3 MB",
        Ends::Refused,
        "merge_method: ",
        || (0..3000).map(|_| "x".repeat(1000)),
        "\nmodels: [{model: ../b}]\n",
    );
    cases.long("a filter of 3 MB", Ends::Open, "merge_method: linear\nmodels: [{model: ../b}, {model: ../a}]\nparameters: {weight: [{value: 1, filter: ", || (0..3000).map(|_| "x".repeat(1000)), "}, {value: 1}]}\n");
    cases.long("100,000 anchors", Ends::Open, START, || (0..60_000).map(|i| format!("k{i}: &a{i} 1\n")), ALL);
    cases.long(
        "100,000 aliases",
        Ends::Open,
        "x: &x 1\nmerge_method: linear\nparameters: {weight: *x}\nunused: [",
        || (0..60_000).map(|_| "*x, ".into()),
        "1]\nmodels: [{model: ../b}, {model: ../a}]\n",
    );
}

const PASS: &str = "merge_method: passthrough\nslices:\n";

/// What is harmless alone, and too much together.
fn products(cases: &mut Cases) {
    let slices =
        |count: usize| move || (0..count).map(|_| "- sources: [{model: ../b, layer_range: [0, 1]}]\n".into());
    cases.long("12,000 slices", Ends::Open, PASS, slices(12_000), "");
    cases.long("100,000 slices", Ends::Refused, PASS, slices(100_000), "");
    cases.long(
        "12,000 slices without layers",
        Ends::Open,
        PASS,
        || (0..12_000).map(|_| "- sources: [{model: ../b}]\n".into()),
        "",
    );
    cases.long(
        "12,000 slices past the end",
        Ends::Refused,
        PASS,
        || (0..12_000).map(|i| format!("- sources: [{{model: ../b, layer_range: [{i}, {}]}}]\n", i + 3)),
        "",
    );
    cases.long(
        "5000 slices of 5000 models",
        Ends::Refused,
        PASS,
        || (0..5000).map(|i| format!("- sources: [{{model: m{i}, layer_range: [0, 1]}}]\n")),
        "",
    );
    cases.long(
        "slices under a long gradient",
        Ends::Open,
        "merge_method: passthrough\nparameters:\n  scale: [",
        || {
            (0..60_000)
                .map(|_| "1, ".into())
                .chain(["1]\nslices:\n".into()])
                .chain((0..8000).map(|_| "- sources: [{model: ../b, layer_range: [0, 1]}]\n".into()))
        },
        "",
    );
    cases.long(
        "slices under many filters",
        Ends::Open,
        "merge_method: passthrough\nparameters:\n  scale:\n",
        || {
            (0..15_000)
                .map(|i| format!("  - {{filter: f{i}, value: 1}}\n"))
                .chain(["  - {value: 1}\nslices:\n".into()])
                .chain((0..6000).map(|_| "- sources: [{model: ../b, layer_range: [0, 1]}]\n".into()))
        },
        "",
    );
    cases.long(
        "slices with a bad weight each",
        Ends::Refused,
        "merge_method: linear\nslices:\n",
        || {
            (0..6000).map(|i| {
                format!(
                    "- {{sources: [{{model: ../b, layer_range: [0, 1]}}], parameters: {{weight: x{i}}}}}\n"
                )
            })
        },
        "",
    );
    cases.long(
        "slices with an unknown key each",
        Ends::Open,
        PASS,
        || (0..6000).map(|i| format!("- {{k{i}: 1, sources: [{{model: ../b, layer_range: [0, 1]}}]}}\n")),
        "",
    );
}

/// Of a config with several: `name` reads these models.
fn document(name: &str, models: impl Iterator<Item = String>) -> String {
    let models: Vec<String> = models.map(|model| format!("{{model: {model}}}")).collect();
    format!(
        "---\nname: {name}\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels: [{}]\n",
        models.join(", ")
    )
}

fn documents(cases: &mut Cases) {
    fn named(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|i| format!("s{i}"))
    }
    cases.long(
        "900 documents whose models are not there",
        Ends::Refused,
        "",
        || {
            let broken = (0..900).map(|i| document(&format!("s{i}"), [format!("m{i}")].into_iter()));
            broken.chain([document("all", named(900))])
        },
        "",
    );
    cases.long(
        "a circle of 900 documents",
        Ends::Refused,
        "",
        || (0..900).map(|i| document(&format!("s{i}"), [format!("s{}", (i + 1) % 900)].into_iter())),
        "",
    );
    cases.long(
        "documents that each read all before them",
        Ends::Open,
        "",
        || {
            let models = |i: usize| named(i).chain(["../a".into(), "../b".into()]);
            (0..60).map(move |i| document(&format!("s{i}"), models(i)))
        },
        "",
    );
}
