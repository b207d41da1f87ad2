//! What reads texts keeps to the memory that it is given, by what the system counts; and a plan states how much it takes.

use std::path::Path;

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::command::{self, run};

const TEXTS: [&str; 8] = [
    "--text",
    "examples/models/texts/medical_valid.txt",
    "--lines",
    "--packed",
    "--frame",
    "--window",
    "96",
    "--quiet",
];

/// What the program has resident beside what it is given memory for: its own pages, threads, the texts and their tokens.
#[cfg(target_os = "linux")]
const PROGRAM_BYTES: u64 = 16 << 20;

/// With so much memory each command stays within it; with as much as it likes it takes more than that.
#[cfg(target_os = "linux")]
fn keeps_to(memory_bytes: u64, command: &[&str], more: &[&str]) {
    let folder = TempDir::new().unwrap();
    let few = folder.path().join("few.txt");
    std::fs::write(&few, "A trinket.").unwrap();
    let (_, program) =
        command::run_watched(["eval", "examples/models/base", "--quiet", "--text", few.to_str().unwrap()]);
    let peak = |name: &str, memory: &str| {
        let out = folder.path().join(name);
        let command = command.iter().map(|word| if *word == "OUT" { out.to_str().unwrap() } else { word });
        let flags = TEXTS.iter().chain(more).copied().chain(["--host-memory", memory]);
        let (ended, peak) = command::run_watched(command.chain(flags));
        ended.succeeded();
        peak
    };
    let most = program + PROGRAM_BYTES + memory_bytes;
    let kept = peak("kept", &memory_bytes.to_string());
    assert!(kept <= most, "{command:?}: {kept} of {memory_bytes}, and {program} of the program");
    let free = peak("free", "2GiB");
    assert!(free > most, "{command:?}: {free} without a bound, which would be within {most}");
}

#[test]
#[cfg(target_os = "linux")]
fn eval_keeps_to_its_memory() {
    keeps_to(13_000_000, &["eval", "examples/models/base"], &["--threads", "1"]);
}

#[test]
#[cfg(target_os = "linux")]
fn predict_keeps_to_its_memory() {
    keeps_to(40_000_000, &["predict", "examples/task_arithmetic.yml"], &[]);
}

#[test]
#[cfg(target_os = "linux")]
fn sweep_keeps_to_its_memory() {
    let few = ["--device", "cpu", "--tries", "4", "--confirm", "1"];
    keeps_to(24_000_000, &["sweep", "examples/sweep/weights.yml", "OUT"], &few);
}

fn planned(config: &str) -> Json {
    serde_json::from_str(&run(["plan", config, "--json"]).succeeded().stdout).unwrap()
}

/// The least that a plan states is enough, and less is not.
#[test]
fn a_plan_states_what_reading_takes() {
    let folder = TempDir::new().unwrap();
    let window = ["--text", TEXTS[1], "--lines", "--packed", "--quiet", "--json"];
    let eval = |memory: u64| {
        let memory = memory.to_string();
        run(["eval", "examples/models/base", "--host-memory", &memory].iter().chain(&window))
    };
    let ties = planned("examples/ties.yml");
    let (reading, open) = (&ties["reading"], &ties["open"]);
    assert_eq!((reading["window"].as_u64(), open.is_null()), (Some(256), true), "{reading}");
    assert!(reading["predict"].is_null() && reading["sweep_memory_bytes_least"].is_null(), "{reading}");
    let least = reading["eval_memory_bytes_least"].as_u64().unwrap();
    eval(least).succeeded();
    eval(least - 1).failed(2, &["windows of 256 tokens take", "--host-memory"]);
    let linear = &planned("examples/linear.yml")["reading"]["predict"];
    let predict = run(["predict", "examples/linear.yml"].iter().chain(&window)).succeeded();
    let predict: Json = serde_json::from_str(&predict.stdout).unwrap();
    let tokens = predict["sets"][0]["counted_tokens"].as_u64().unwrap();
    assert_eq!(predict["kept_bytes"].as_u64().unwrap(), tokens * linear["bytes_per_token"].as_u64().unwrap());
    assert_eq!(predict["parents"].as_array().unwrap().len() as u64, linear["parents"].as_u64().unwrap());
    let space = "examples/sweep/weights.yml";
    let least = planned(space)["reading"]["sweep_memory_bytes_least"].as_u64().unwrap();
    let sweep = |name: &str, memory: u64| {
        let (out, memory) = (folder.path().join(name), memory.to_string());
        let few =
            ["--tries", "1", "--confirm", "1", "--together", "1", "--try-tokens", "0", "--device", "cpu"];
        let words = ["sweep", space, out.to_str().unwrap(), "--host-memory", &memory];
        run(words.iter().chain(&window).chain(&few))
    };
    // What predictions keep stays beside the candidates: of so little it is nothing.
    let ended = sweep("least", least).succeeded();
    assert!(ended.stderr.contains("no prediction"), "{}", ended.stderr);
    sweep("less", least - 8).failed(2, &["--host-memory"]);
    // Where half of the memory would leave too little, it is less than half.
    let ended = sweep("more", least + 12_000_000).succeeded();
    assert!(!ended.stderr.contains("no prediction"), "{}", ended.stderr);
    let found: Json = serde_json::from_str(&ended.stdout).unwrap();
    assert!(found["points"][0]["predicted"].is_number(), "{found}");
}

/// A config with open values has a plan: that of one in the middle, and what is open.
#[test]
fn a_plan_of_open_values_says_what_they_are() {
    let folder = TempDir::new().unwrap();
    let plan = |text: &str, more: &[&str]| command::plan(folder.path(), text, more);
    let models = "base_model: examples/models/base\nmodels:\n- model: examples/models/medical\n  parameters: {weight: OPEN, density: \
                  {choice: [0.2, 0.5, 1]}}\n- model: examples/models/chat\n  parameters: {weight: 0.5}\n";
    let text = format!("merge_method: [ties, dare_ties]\n{models}");
    let words = plan(&text.replace("OPEN", "{range: [0, 1.5]}"), &[]).succeeded().stdout;
    for part in [
        "open     merge_method: ties, dare_ties\n",
        "open     medical weight: from 0 to 1.5\n",
        "open     medical density: 0.2, 0.5, 1\n",
        "any number of points; this is the plan of one in the middle: ties, medical weight 0.75, medical density 0.2\n",
        "examples/models/medical: weight 0.75 density 0.2;",
        "\nsweep    on the CPU takes ",
    ] {
        assert!(words.contains(part), "no `{part}` in\n{words}");
    }
    let json = plan(&text.replace("OPEN", "{choice: [0.5, 1]}"), &["--json"]).succeeded().stdout;
    let open = &serde_json::from_str::<Json>(&json).unwrap()["open"];
    assert_eq!(open["points"], 2 * 2 * 3);
    assert_eq!(open["values"][0]["choice"], serde_json::json!(["ties", "dare_ties"]));
    assert_eq!(open["values"][1]["planned"], 0.5);
    plan(&text.replace("OPEN", "{range: [1, 0]}"), &[])
        .failed(2, &["config.yml:5:", "the smaller one first"]);
    // Candidates that a program can score are planned, though they cannot read texts here.
    let other =
        format!("{}tokenizer: {{source: examples/models/chat}}\n", text.replace("OPEN", "{range: [0, 1.5]}"));
    let words = plan(&other, &[]).succeeded().stdout;
    let why = "sweep    only with --objective-cmd: the merge has another tokenizer than its donor: examples/models/chat\n";
    assert!(words.contains(why), "no `{why}` in\n{words}");
    let json = plan(&other, &["--json"]).succeeded().stdout;
    let reading = &serde_json::from_str::<Json>(&json).unwrap()["reading"];
    assert!(reading["sweep_memory_bytes_least"].is_null(), "{reading}");
    assert!(reading["sweep_by_command_only"].as_str().unwrap().contains("another tokenizer"), "{reading}");
    // What has no forward pass is planned without.
    let bare = folder.path().join("bare");
    let copied =
        |from: &str| std::fs::copy(Path::new(command::ROOT).join(from), bare.join("model.safetensors"));
    std::fs::create_dir(&bare).unwrap();
    copied("examples/models/base/model.safetensors").unwrap();
    std::fs::write(bare.join("config.json"), "{\"model_type\": \"gemma2\"}").unwrap();
    let linear =
        format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {}}}]\n", bare.display());
    let words = plan(&linear, &[]).succeeded().stdout;
    assert!(!words.contains("\neval "), "{words}");
}
