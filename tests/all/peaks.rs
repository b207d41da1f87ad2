//! What a merge takes of memory and of open files stays within what is said before: for every method and every kind of input, by what
//! the system counts of the process.
//!
//! Tensors are several times as large as what is not accounted for (the program's own pages), so one that were held whole would show.

use std::path::Path;
use std::process::Command;

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use crate::command::{self, Ended, assert_nothing_left, each, mergeforge, run_watched, run_watched_alone};
use crate::models::{self, PLAIN, Random, Stored, Tensors};
use crate::{adapters, same_bytes, torch_files, vocabularies};

const ROWS: usize = 3072;
const COLUMNS: usize = 2048;
const LAYERS: usize = 1;
const TENSOR_BYTES: u64 = (2 * ROWS * COLUMNS) as u64;

/// What the program has resident beside what a plan counts: pages of its code that another merge has no use for, threads, headers.
const PROGRAM_BYTES: u64 = TENSOR_BYTES / 3;

/// Numbers of any bits but those of large ones, NaN and infinity.
fn tensor(dtype: Dtype, shape: &[usize], seed: u64) -> Stored {
    let (mut random, elements) = (Random(seed), shape.iter().product::<usize>());
    let (mask, bits) = match dtype {
        Dtype::BF16 | Dtype::F16 => (0xbfff_bfff_bfff_bfff, 16),
        Dtype::F32 => (0xbfff_ffff_bfff_ffff, 32),
        Dtype::F64 => (0xbfff_ffff_ffff_ffff, 64),
        // Codes of eight bits, of which 0x7f is none of a number.
        _ => (0xbfbf_bfbf_bfbf_bfbf, 8),
    };
    let words = (elements * bits).div_ceil(64);
    let mut bytes: Vec<u8> = (0..words).flat_map(|_| (random.next() & mask).to_le_bytes()).collect();
    bytes.truncate(elements * bits / 8);
    Stored { dtype, shape: shape.to_vec(), bytes }
}

fn name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.up_proj.weight")
}

fn model(dtype: Dtype, seed: u64) -> Tensors {
    let tensor = |layer| (name(layer), tensor(dtype, &[ROWS, COLUMNS], 10 * seed + layer as u64));
    (0..LAYERS).map(tensor).collect()
}

/// Adds keys to a model's config.json.
fn configure(folder: &Path, more: &Json) {
    let path = folder.join("config.json");
    let mut config: Json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    std::fs::write(path, config.to_string()).unwrap();
}

/// Models of every kind of input, and by a name for each the config that reads it, in which DIR stands for the folder.
fn kinds(folder: &Path) -> Vec<(&'static str, String)> {
    let at = |name: &str| folder.join(name);
    let linear = |model: &str, more: &str| {
        format!(
            "merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: DIR/m1}}, {{model: {model}}}]\ndtype: bfloat16\n{more}"
        )
    };
    let adapter = |out: &str, config: Json| {
        let factors = |layer| {
            let module = name(layer).replace(".weight", "");
            let magnitude = (format!("{module}.lora_magnitude_vector"), vec![ROWS]);
            let both = [
                (format!("{module}.lora_A.weight"), vec![2, COLUMNS]),
                (format!("{module}.lora_B.weight"), vec![ROWS, 2]),
            ];
            both.into_iter().chain(config.get("use_dora").map(|_| magnitude)).collect::<Vec<_>>()
        };
        let factors: Vec<_> = (0..LAYERS).flat_map(factors).collect();
        let factors: Vec<(&str, &[usize])> =
            factors.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
        adapters::write_adapter(&at(out), config.clone(), &factors);
    };
    adapter("lora", json!({}));
    adapter("dora", json!({ "use_dora": true }));
    for (name, dtype) in [("float64", Dtype::F64), ("float32", Dtype::F32), ("float16", Dtype::F16)] {
        models::write(&at(name), &model(dtype, 5), PLAIN);
    }
    models::write(&at("torch"), &model(Dtype::BF16, 6), PLAIN);
    std::fs::remove_file(at("torch/model.safetensors")).unwrap();
    let file = torch_files::torch_file(&model(Dtype::BF16, 6));
    std::fs::write(at("torch/pytorch_model.bin"), file).unwrap();
    let mut blocks = model(Dtype::F8_E4M3, 7);
    for layer in 0..LAYERS {
        let scales = tensor(Dtype::F32, &[ROWS / 128, COLUMNS / 128], 70);
        blocks.insert(name(layer).replace(".weight", ".weight_scale_inv"), scales);
    }
    models::write(&at("float8"), &blocks, PLAIN);
    let of_blocks = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    configure(&at("float8"), &json!({ "quantization_config": of_blocks }));
    let experts = "model.layers.0.mlp.experts.gate_up_proj";
    let parts = Tensors::from([
        (format!("{experts}_blocks"), tensor(Dtype::U8, &[4, ROWS, COLUMNS / 128, 16], 80)),
        (format!("{experts}_scales"), tensor(Dtype::U8, &[4, ROWS, COLUMNS / 128], 81)),
    ]);
    models::write(&at("microscaled"), &parts, PLAIN);
    configure(&at("microscaled"), &json!({ "quantization_config": { "quant_method": "mxfp4" } }));
    let whole = Tensors::from([(experts.to_owned(), tensor(Dtype::BF16, &[4, COLUMNS / 4, ROWS], 82))]);
    models::write(&at("experts"), &whole, PLAIN);
    let words: Vec<String> = (0..ROWS).map(|id| format!("w{id}")).collect();
    for (folder, first) in [("tokens", 0), ("others", ROWS / 2)] {
        let words: Vec<&str> = (0..ROWS).map(|id| &*words[(id + first) % ROWS]).collect();
        let rows =
            Tensors::from([("model.embed_tokens.weight".into(), tensor(Dtype::BF16, &[ROWS, COLUMNS], 90))]);
        vocabularies::write(&at(folder), &rows, &vocabularies::tokenizer(&words, &[]), &json!({}));
    }
    let two = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: DIR/A}, {model: DIR/B}]\ndtype: bfloat16\n";
    let of_two =
        |a: &str, b: &str| two.replace("DIR/A", &format!("DIR/{a}")).replace("DIR/B", &format!("DIR/{b}"));
    let shared = "base_model: DIR/m0\nparameters: {weight: 0.5, density: 0.5}\n";
    vec![
        ("an adapter", linear("DIR/m2+DIR/lora", "")),
        ("an adapter with magnitudes", linear("DIR/m2+DIR/dora", "")),
        ("float64", linear("DIR/float64", "")),
        ("float32", linear("DIR/float32", "")),
        ("float16", linear("DIR/float16", "")),
        ("float64, copied", "merge_method: passthrough\nmodels: [{model: DIR/float64}]\n".into()),
        ("float64, written", linear("DIR/float64", "").replace("bfloat16", "float64")),
        ("torch's file", linear("DIR/torch", "")),
        ("float8 in blocks", linear("DIR/float8", "")),
        ("microscaled", of_two("experts", "microscaled")),
        ("rows of tokens", format!("{}tokenizer: {{source: union}}\n", of_two("tokens", "others"))),
        (
            "a document within another",
            format!(
                "name: within\n{}---\nmerge_method: ties\n{shared}models: [{{model: within}}, {{model: DIR/m3}}]\n",
                of_two("m1", "m2")
            ),
        ),
        (
            "slices",
            "merge_method: passthrough\nslices:\n- sources: [{model: DIR/m1, layer_range: [0, 1]}]\n- sources: [{model: DIR/m2, \
             layer_range: [0, 1], parameters: {scale: 0.5}}]\n"
                .into(),
        ),
    ]
}

/// The least memory that a merge says it needs.
fn least(config: &Path, out: &Path) -> u64 {
    let ended = run(config, out, &["--host-memory", "1", "--device", "cpu"]);
    let found = ended.stderr.split("this merge needs at least ").nth(1);
    let number = found.and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{}: no least memory in {}", config.display(), ended.stderr))
}

fn run(config: &Path, out: &Path, more: &[&str]) -> Ended {
    mergeforge().arg("merge").args([config, out]).args(more).output().unwrap().into()
}

#[test]
fn every_method_and_kind_of_input_keeps_to_its_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for number in 0..4 {
        let at = |kind: &str| path.join(format!("{kind}{number}"));
        models::write(&at("m"), &model(Dtype::BF16, number), PLAIN);
        let mut importance = model(Dtype::BF16, 20 + number);
        // Bytes with the signs.
        importance
            .values_mut()
            .for_each(|of| of.bytes.iter_mut().skip(1).step_by(2).for_each(|byte| *byte &= 0x7f));
        models::write(&at("importance"), &importance, PLAIN);
        let mask = |layer| {
            let mut mask = tensor(Dtype::U8, &[ROWS, COLUMNS], 30 + layer as u64);
            mask.bytes.iter_mut().for_each(|byte| *byte &= 1);
            (name(layer), Stored { dtype: Dtype::BOOL, ..mask })
        };
        models::write(&at("mask"), &(0..LAYERS).map(mask).collect(), PLAIN);
    }
    let ways = same_bytes::all_ways().into_iter().map(|way| (way, same_bytes::config(path, way)));
    let cases: Vec<(&str, String)> = ways.chain(kinds(path)).collect();
    let config = |number: usize, text: &str| {
        let file = path.join(format!("{number}.yml"));
        std::fs::write(&file, text.replace("DIR", &path.display().to_string())).unwrap();
        file
    };
    let small = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: examples/models/base}]\n";
    let small = config(cases.len(), small);
    let watched = |config: &Path, out: &str, memory: u64, more: &[&str]| {
        let (out, memory) = (path.join(out), memory.to_string());
        let words = [&["--device", "cpu", "--quiet", "--host-memory", &memory], more].concat();
        let words = words.iter().map(AsRef::<std::ffi::OsStr>::as_ref);
        let words = [AsRef::as_ref("merge"), config.as_os_str(), out.as_os_str()].into_iter().chain(words);
        // What is mapped are pages of the system's.
        let (ended, peak) =
            if more.contains(&"mapped") { run_watched_alone(words) } else { run_watched(words) };
        let _ = std::fs::remove_dir_all(&out);
        (ended, peak)
    };
    let program = |reads: &str| {
        let (ended, program) = watched(&small, "small", 8 << 20, &["--reads", reads]);
        ended.succeeded();
        program
    };
    let (program, alone) = (program("copied"), program("mapped"));
    let of_case = |number: usize| {
        let (case, text) = &cases[number];
        let (config, out) = (config(number, text), format!("out{number}"));
        let least = least(&config, &path.join(&out));
        // Tensors held whole, which the least of some methods is for, do not say more of others.
        assert!(least < 4 * TENSOR_BYTES, "{case}: {least}");
        for (memory, more) in [
            (least, ["--reads", "copied", "--threads", "2"]),
            (least + TENSOR_BYTES / 2, ["--reads", "mapped", "--threads", "3"]),
        ] {
            let (ended, peak) = watched(&config, &out, memory, &more);
            assert_eq!(ended.code, Some(0), "{case}: {}", ended.stderr);
            let program = if more.contains(&"mapped") { alone } else { program };
            let most = program + PROGRAM_BYTES + memory;
            assert!(
                peak <= most,
                "{case} with {more:?}: {peak} of {most}, of which {program} are the program's"
            );
        }
    };
    let numbers: Vec<usize> = (0..cases.len()).collect();
    each(&numbers, |number| of_case(*number));
    // The bound is not met because nothing could pass it: with memory to hold inputs in, a merge does.
    let ties = cases.iter().position(|(case, _)| *case == "ties").unwrap();
    let (ended, peak) = watched(&config(ties, &cases[ties].1), "free", 1 << 30, &["--reads", "copied"]);
    ended.succeeded();
    assert!(
        peak > program + PROGRAM_BYTES + 2 * TENSOR_BYTES,
        "{peak}, of which {program} are the program's"
    );
}

/// So many open files as a plan says are enough, and with fewer nothing is begun.
#[test]
fn a_merge_opens_no_more_files_than_its_plan_says() {
    let folder = tempfile::tempdir().unwrap();
    let shards = ["--out-shard-size", "100KB", "--device", "cpu", "--threads", "2"];
    let config = "examples/ties.yml";
    let planned = command::run(["plan", config, "--json"].iter().chain(&shards)).succeeded().stdout;
    let planned: Json = serde_json::from_str(&planned).unwrap();
    let files = planned["needs"]["open_files"].as_u64().unwrap();
    let merge = |files: u64| -> Ended {
        let program = mergeforge();
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -n {files}; exec \"$@\""), "sh"]).arg(program.get_program());
        for (name, value) in program.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            limited.env(name, value);
        }
        limited
            .current_dir(command::ROOT)
            .args(["merge", config])
            .arg(folder.path().join("out"))
            .args(shards);
        limited.output().unwrap().into()
    };
    let words = [format!("opens {files} files at once"), format!("permits {}", files - 1)];
    merge(files - 1).failed(2, &[&words[0], &words[1], "ulimit -n", "--out-shard-size"]);
    assert_nothing_left(folder.path());
    merge(files).succeeded();
}

/// What holds for an output holds for a part of it, of which fewer files are open.
#[test]
fn a_part_is_refused_by_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(command::ROOT).join("examples/ties.yml");
    let part = ["--part", "1/2", "--device", "cpu"];
    let ended = run(&config, &folder.path().join("out"), &[&part[..], &["--host-memory", "4000TB"]].concat());
    ended.failed(2, &["--host-memory 4000000.00 GB", "leave it out"]);
    assert_nothing_left(folder.path());
}

/// More memory than there is cannot be promised: that is refused before anything is made.
#[test]
fn more_memory_than_the_machine_has_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = Path::new(command::ROOT).join("examples/ties.yml");
    let ended = run(&config, &folder.path().join("out"), &["--host-memory", "4000TB", "--device", "cpu"]);
    ended.failed(2, &["--host-memory 4000000.00 GB", "has ", "leave it out"]);
    assert_nothing_left(folder.path());
}
