//! Adapters made of a model and its base: what they hold, what is said of the rest, and their names.

mod edges;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use crate::adapters::{close, write_adapter};
use crate::command::{self, Ended, ROOT};
use crate::models::{self, PLAIN, RUN, Stored, Tensors, stored, values, weights};

/// An adapter made of an example and its base, and what is added again.
#[test]
fn an_extracted_adapter_gives_the_model_back() {
    let folder = tempfile::tempdir().unwrap();
    let example = |name: &str| format!("{ROOT}/examples/models/{name}");
    let (chat, base) = (example("chat"), example("base"));
    let extract = |out: &str, more: &[&str]| {
        let adapter = folder.path().join(out);
        let fixed = ["extract-lora", &chat, &base, adapter.to_str().unwrap(), "--quiet", "--json"];
        let ended = command::run(fixed.iter().chain(more)).succeeded();
        serde_json::from_str::<Json>(&ended.stdout).unwrap()
    };
    let distance = |out: &str| {
        let path = folder.path().display();
        let text =
            format!("merge_method: passthrough\ndtype: float32\nmodels: [{{model: {base}+{path}/{out}}}]\n");
        models::run(folder.path(), &text, &format!("{out}_added"), RUN).unwrap();
        let [found, tuned, of_base] =
            [folder.path().join(format!("{out}_added")), chat.clone().into(), base.clone().into()]
                .map(|folder| models::read(&folder));
        let squares = |one: &Tensors, other: &Tensors| -> f64 {
            let of = |name: &String| values(&one[name]).into_iter().zip(values(&other[name]));
            one.keys().flat_map(of).map(|(x, y)| (f64::from(x) - f64::from(y)).powi(2)).sum()
        };
        (squares(&found, &tuned) / squares(&of_base, &tuned)).sqrt()
    };
    // The rank of the smallest matrices, in full.
    let whole = extract("whole", &["--rank", "96", "--embeddings", "--save-changed", "--dtype", "float32"]);
    assert!(whole["error"].as_f64().unwrap() < 1e-6 && distance("whole") < 1e-6, "{whole}");
    let some = extract("some", &["--rank", "8", "--embeddings", "--save-changed"]);
    let (error, found) = (some["error"].as_f64().unwrap(), distance("some"));
    // What is saved whole counts as change only here.
    assert!((error - found).abs() < 5e-3 && (0.1..0.9).contains(&error), "{error}, {found}");
    // What is lost is said of tensors that the adapter has nothing of, too.
    let few = extract("few", &["--rank", "8", "--modules", "q_proj|k_proj"]);
    assert!(few["lost"].as_array().unwrap().iter().any(|lost| lost["name"] == "model.embed_tokens.weight"));
    assert!((few["error"].as_f64().unwrap() - distance("few")).abs() < 1e-3);
    // A module that is smaller than the rank has zeros behind its factors, and no pattern names it.
    let settings = std::fs::read(folder.path().join("whole/adapter_config.json")).unwrap();
    let settings: Json = serde_json::from_slice(&settings).unwrap();
    assert_eq!(settings["rank_pattern"], json!({}), "{settings}");
    let within = extract("within", &["--error", "0.3", "--modules", "mlp", "--dtype", "float32"]);
    for module in within["modules"].as_array().unwrap() {
        let (rank, error) = (module["rank"].as_u64().unwrap(), module["error"].as_f64().unwrap());
        assert!((1..96).contains(&rank) && (0.25..=0.3 + 1e-6).contains(&error), "{module}");
    }
}

/// The same bytes whatever the threads.
#[test]
fn extraction_does_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let [chat, base] = ["chat", "base"].map(|name| format!("{ROOT}/examples/models/{name}"));
    for wanted in [["--rank", "4"], ["--error", "0.5"]] {
        let bytes = [1, 2, 5].map(|threads| {
            let (out, threads) = (format!("out{}{threads}", wanted[1]), threads.to_string());
            let flags = [&wanted[..], &["--threads", &threads]].concat();
            extract(folder.path(), [&chat, &base], &out, &flags).succeeded();
            ["adapter_model.safetensors", "adapter_config.json"]
                .map(|file| std::fs::read(folder.path().join(&out).join(file)).unwrap())
        });
        assert!(bytes[0] == bytes[1] && bytes[1] == bytes[2], "{wanted:?}");
    }
}

#[test]
fn mergekits_command_extracts_too() {
    let folder = tempfile::tempdir().unwrap();
    let example = |name: &str| format!("{ROOT}/examples/models/{name}");
    let out = folder.path().join("out");
    let (model, base) = (example("chat"), example("base"));
    let arguments =
        ["extract-lora", "--model", &model, "--base-model", &base, "--out-path", out.to_str().unwrap()];
    let ended =
        command::run(arguments.into_iter().chain(["--max-rank", "4", "--cuda", "--exclude-regex", "mlp"]))
            .succeeded();
    assert!(
        ended.stdout.contains("saved whole: ") && ended.stdout.contains("changed, and not in the adapter: "),
        "{}",
        ended.stdout
    );
    let config = std::fs::read_to_string(out.join("adapter_config.json")).unwrap();
    let config: Json = serde_json::from_str(&config).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(4)));
    assert_eq!(
        config["modules_to_save"],
        json!(["embed_tokens", "input_layernorm", "lm_head", "norm", "post_attention_layernorm"])
    );
    // With products for embeddings only the norms are.
    let (lora, out) =
        (arguments.into_iter().chain(["--rank", "4", "--embed-lora", "--no-distribute-scale"]), "lora");
    let lora = lora.map(|word| {
        if word == arguments[6] {
            folder.path().join(out).to_str().unwrap().to_owned()
        } else {
            word.to_owned()
        }
    });
    command::run(lora).succeeded();
    let of_lora = std::fs::read_to_string(folder.path().join("lora/adapter_config.json")).unwrap();
    let of_lora: Json = serde_json::from_str(&of_lora).unwrap();
    assert_eq!(of_lora["modules_to_save"], json!(["input_layernorm", "norm", "post_attention_layernorm"]));
    assert_eq!(config["base_model_name_or_path"], base);
    command::run(["extract-lora", &base, &base, folder.path().join("x").to_str().unwrap()])
        .failed(2, &["differ in nothing"]);
    let out = folder.path().join("y");
    let named = |flag: &str| {
        command::run(["extract-lora", &model, &base, out.to_str().unwrap(), flag, "zzz"])
            .failed(2, &[flag, "zzz", "fits no module"]);
    };
    named("--modules");
    named("--save-module");
    command::run(["extract-lora", &base]).failed(2, &["BASE"]);
}

/// Writes a model and its base, of which the named tensors differ by a matrix of rank 1, extracts the adapter, and gives the
/// adapter's folder.
fn extracted(folder: &Path, shapes: &[(&str, &[usize])], config: &Json, more: &[&str]) -> PathBuf {
    let [tuned, base] = pair_of(folder, shapes, config, |_| true);
    let out = folder.join("adapter");
    let fixed = ["extract-lora", &tuned, &base, out.to_str().unwrap(), "--quiet", "--dtype", "float32"];
    command::run(fixed.iter().chain(more)).succeeded();
    out
}

/// Writes them, with the tensors that differ; gives their paths.
fn pair_of(
    folder: &Path,
    shapes: &[(&str, &[usize])],
    config: &Json,
    differs: impl Fn(&str) -> bool,
) -> [String; 2] {
    let write = |name: &str, tuned: bool| {
        let tensor = |(seed, (name, shape)): (usize, &(&str, &[usize]))| {
            let mut values = weights(shape.iter().product(), seed as u64);
            let columns = *shape.last().unwrap();
            for (i, value) in values.iter_mut().enumerate().filter(|_| tuned && differs(name)) {
                *value += 0.01 * (1.0 + (i / columns) as f32) * (1.0 - (i % columns) as f32);
            }
            (name.to_string(), stored(Dtype::F32, shape, &values))
        };
        models::write(&folder.join(name), &shapes.iter().enumerate().map(tensor).collect(), PLAIN);
        std::fs::write(folder.join(name).join("config.json"), config.to_string()).unwrap();
    };
    write("tuned", true);
    write("base", false);
    ["tuned", "base"].map(|name| folder.join(name).to_str().unwrap().to_owned())
}

/// The shapes of an adapter's tensors, without PEFT's prefix.
fn shapes_of(adapter: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, tensor): (String, safetensors::tensor::TensorView<'_>)| {
        (name.trim_start_matches("base_model.model.").to_owned(), tensor.shape().to_vec())
    };
    tensors.tensors().into_iter().map(own).collect()
}

/// What PEFT looks up by row is no linear module: T5 has embeddings without `embed` in their names.
#[test]
fn embeddings_are_known_whatever_they_are_called() {
    let folder = tempfile::tempdir().unwrap();
    let distances = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias";
    let (q, weight) = ("encoder.block.0.layer.0.SelfAttention.q", |module: &str| format!("{module}.weight"));
    let (of_q, of_distances) = (weight(q), weight(distances));
    let shapes: [(&str, &[usize]); 3] =
        [("shared.weight", &[20, 6]), (&of_q, &[6, 6]), (&of_distances, &[8, 3])];
    let config = json!({ "model_type": "t5", "tie_word_embeddings": false });
    let adapter = extracted(folder.path(), &shapes, &config, &["--rank", "2", "--embeddings"]);
    let found = shapes_of(&adapter);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let expected = [
        format!("{q}.lora_A.weight"),
        format!("{q}.lora_B.weight"),
        format!("{distances}.lora_embedding_A"),
        format!("{distances}.lora_embedding_B"),
        "shared.lora_embedding_A".into(),
        "shared.lora_embedding_B".into(),
    ];
    assert_eq!(names, expected);
    let folder = tempfile::tempdir().unwrap();
    let without = extracted(folder.path(), &shapes, &config, &["--rank", "2"]);
    assert_eq!(shapes_of(&without).len(), 2);
}

/// A gate has fewer rows than the rank, and PEFT may know it by another name: its factors are as large as all others.
#[test]
fn small_modules_are_stored_with_the_rank_of_all() {
    let folder = tempfile::tempdir().unwrap();
    let shapes: [(&str, &[usize]); 2] = [
        ("model.layers.0.block_sparse_moe.gate.weight", &[3, 16]),
        ("model.layers.0.self_attn.q_proj.weight", &[16, 16]),
    ];
    let adapter = extracted(folder.path(), &shapes, &json!({}), &["--rank", "8", "--alpha", "16"]);
    let found = shapes_of(&adapter);
    assert_eq!(found["model.layers.0.block_sparse_moe.gate.lora_A.weight"], [8, 16]);
    assert_eq!(found["model.layers.0.block_sparse_moe.gate.lora_B.weight"], [3, 8]);
    let path = folder.path().display();
    let text = format!("merge_method: passthrough\nmodels: [{{model: {path}/base+{path}/adapter}}]\n");
    models::run(folder.path(), &text, "out", RUN).unwrap();
    let [found, tuned] = ["out", "tuned"].map(|name| models::read(&folder.path().join(name)));
    for (name, tensor) in &tuned {
        close(&found, name, |i| f64::from(values(tensor)[i]));
    }
}

/// A model that is stored as if its text were alone is loaded otherwise, and its adapter names modules as loaded.
#[test]
fn modules_are_named_as_transformers_loads_them() {
    let folder = tempfile::tempdir().unwrap();
    let shapes: [(&str, &[usize]); 3] = [
        ("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("visual.blocks.0.attn.qkv.weight", &[8, 8]),
        ("visual.blocks.0.attn.proj.weight", &[8, 8]),
    ];
    let config = json!({ "model_type": "qwen2_vl", "vision_config": {} });
    let adapter = extracted(folder.path(), &shapes, &config, &["--rank", "2", "--exclude", "attn.proj"]);
    let names: Vec<String> = shapes_of(&adapter).into_keys().collect();
    let [q, qkv] = ["model.language_model.layers.0.self_attn.q_proj", "model.visual.blocks.0.attn.qkv"];
    let expected = [q, qkv].map(|module| ["A", "B"].map(|which| format!("{module}.lora_{which}.weight")));
    assert_eq!(names, expected.concat());
    assert!(!std::fs::read_to_string(adapter.join("README.md")).unwrap().contains("named_modules"));
    // Both parts are found again, each under its own beginning.
    let path = folder.path().display();
    let text = format!("merge_method: passthrough\nmodels: [{{model: {path}/base+{path}/adapter}}]\n");
    models::run(folder.path(), &text, "out", RUN).unwrap();
    let [found, tuned] = ["out", "tuned"].map(|name| models::read(&folder.path().join(name)));
    for name in [shapes[0].0, shapes[1].0] {
        close(&found, name, |i| f64::from(values(&tuned[name])[i]));
    }
    let folder = tempfile::tempdir().unwrap();
    let config = json!({ "model_type": "unheard_of", "vision_config": {} });
    let adapter = extracted(folder.path(), &shapes, &config, &["--rank", "2"]);
    assert!(std::fs::read_to_string(adapter.join("README.md")).unwrap().contains("named_modules"));
}

/// Writes a model of these tensors with this config.json.
fn write(folder: &Path, tensors: &Tensors, config: &Json) {
    models::write(folder, tensors, PLAIN);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// Extracts an adapter of two models, named as on the command line, into a folder; gives what was said.
fn extract(folder: &Path, [tuned, base]: [&str; 2], out: &str, more: &[&str]) -> Ended {
    let out = folder.join(out);
    command::run(["extract-lora", tuned, base, out.to_str().unwrap(), "--quiet"].iter().chain(more))
}

fn weights_of(adapter: &Path) -> Vec<u8> {
    std::fs::read(adapter.join("adapter_model.safetensors")).unwrap()
}

fn card_of(adapter: &Path) -> String {
    std::fs::read_to_string(adapter.join("README.md")).unwrap()
}

const UP: &str = "model.layers.0.mlp.up_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const NORM: &str = "model.layers.0.norm.weight";

/// A model in FP8, as which of the two ever, is the floats that its codes and scales stand for.
#[test]
fn quantised_models_are_compared_as_floats() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = |name: &str| at(name).to_str().unwrap().to_owned();
    let codes: Vec<u8> =
        (0..24 * 16).map(|i| (i * 37 % 0x7f) as u8 | if i % 3 == 0 { 0x80 } else { 0 }).collect();
    let value = |code: u8| {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let magnitude =
            if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    };
    let scales: Vec<f32> = (0..24).map(|row| 0.01 + row as f32 * 0.001).collect();
    let floats: Vec<f32> =
        codes.iter().zip(0..).map(|(code, i): (&u8, usize)| value(*code) * scales[i / 16]).collect();
    let norm = (NORM.to_owned(), stored(Dtype::BF16, &[4], &[1.0, 2.0, -3.0, 0.5]));
    let quantised = Tensors::from([
        norm.clone(),
        (UP.into(), Stored { dtype: Dtype::F8_E4M3, shape: vec![24, 16], bytes: codes }),
        (DOWN.into(), stored(Dtype::F32, &[16, 24], &weights(24 * 16, 7))),
        (format!("{UP}_scale"), stored(Dtype::F32, &[24, 1], &scales)),
    ]);
    let how =
        json!({ "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {} });
    write(&at("fp8"), &quantised, &json!({ "model_type": "llama", "quantization_config": how }));
    let plain = |values: &[f32], seed: u64| {
        let down = stored(Dtype::F32, &[16, 24], &weights(24 * 16, seed));
        Tensors::from([norm.clone(), (UP.into(), stored(Dtype::F32, &[24, 16], values)), (DOWN.into(), down)])
    };
    write(&at("floats"), &plain(&floats, 7), &json!({ "model_type": "llama" }));
    write(&at("other"), &plain(&weights(24 * 16, 5), 8), &json!({ "model_type": "llama" }));
    for (number, flags) in [&["--rank", "4"][..], &["--save-module", "up_proj"]].into_iter().enumerate() {
        let flags = [flags, &["--dtype", "float32"]].concat();
        for [tuned, base] in [["fp8", "other"], ["other", "fp8"]] {
            let out = format!("of-{tuned}-{number}");
            let ended = extract(folder.path(), [&path(tuned), &path(base)], &out, &flags).succeeded();
            assert!(ended.stderr.contains("read as code times scale"), "{}", ended.stderr);
            let [tuned, base] = [tuned, base].map(|name| path(&name.replace("fp8", "floats")));
            extract(folder.path(), [&tuned, &base], "expected", &flags).succeeded();
            let [found, expected] = [&out, "expected"].map(|out| weights_of(&at(out)));
            // What is saved whole has the type that the model computes in, and no more digits than that.
            if number == 0 {
                assert!(found == expected, "{out}");
            } else if out.starts_with("of-fp8") {
                let tensors = safetensors::SafeTensors::deserialize(&found).unwrap();
                let saved = tensors.tensor(&format!("base_model.model.{UP}")).unwrap();
                let saved = Stored { dtype: Dtype::BF16, shape: vec![24, 16], bytes: saved.data().to_vec() };
                assert_eq!(values(&saved), values(&stored(Dtype::BF16, &[24, 16], &floats)));
            }
            std::fs::remove_dir_all(at("expected")).unwrap();
        }
    }
    // What is packed cannot be compared, and is not passed over.
    let packed = Stored { dtype: Dtype::U8, shape: vec![24 * 16 / 2, 1], bytes: vec![7; 24 * 16 / 2] };
    let how = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true });
    write(
        &at("packed"),
        &Tensors::from([norm.clone(), (UP.into(), packed)]),
        &json!({ "quantization_config": how }),
    );
    for models in [["packed", "other"], ["other", "packed"]] {
        extract(folder.path(), models.map(path).each_ref().map(String::as_str), "no", &[])
            .failed(2, &["packed is quantised (bitsandbytes, 4 bits)", "convert it to bfloat16 first"]);
    }
    assert!(!at("no").exists());
}

/// A model or a base with an adapter is what a merge of both writes.
#[test]
fn models_with_an_adapter_are_compared_as_their_sums() {
    const Q: &str = "model.layers.0.self_attn.q_proj";
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = |name: &str| at(name).to_str().unwrap().to_owned();
    let of = |seed: u64| {
        let shapes: [(&str, &[usize]); 2] =
            [("model.layers.0.self_attn.q_proj.weight", &[20, 12]), (NORM, &[12])];
        let tensor = |(name, shape): (&str, &[usize])| {
            (name.to_owned(), stored(Dtype::F32, shape, &weights(shape.iter().product(), seed)))
        };
        shapes.map(tensor).into_iter().collect::<Tensors>()
    };
    let config = json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"] });
    write(&at("base"), &of(1), &config);
    write(&at("other"), &of(2), &config);
    let names = ["A", "B"].map(|which| format!("{Q}.lora_{which}.weight"));
    write_adapter(&at("adapter"), json!({}), &[(&names[0], &[2, 12]), (&names[1], &[20, 2])]);
    let text =
        format!("merge_method: passthrough\nmodels: [{{model: {}+{}}}]\n", path("base"), path("adapter"));
    models::run(folder.path(), &text, "sum", RUN).unwrap();
    let adapted = format!("{}+{}", path("base"), path("adapter"));
    for (number, (models, sums)) in [
        ([adapted.clone(), path("base")], [path("sum"), path("base")]),
        ([path("other"), adapted.clone()], [path("other"), path("sum")]),
    ]
    .into_iter()
    .enumerate()
    {
        let outs = [format!("a{number}"), format!("b{number}")];
        let [found, expected] = [(&models, &outs[0]), (&sums, &outs[1])].map(|(models, out)| {
            extract(folder.path(), models.each_ref().map(String::as_str), out, &["--rank", "4"]).succeeded();
            weights_of(&at(out))
        });
        assert!(found == expected, "{models:?}");
        let config = std::fs::read(at(&outs[0]).join("adapter_config.json")).unwrap();
        let config: Json = serde_json::from_slice(&config).unwrap();
        // PEFT loads a model by this name.
        assert_eq!(config["base_model_name_or_path"], path("base"));
        let says = card_of(&at(&outs[0])).contains("or load both beside each other");
        assert_eq!(says, models[1] == adapted, "{models:?}");
    }
    // A product of rank 2 is all that the adapter changes: it is found again.
    let again = format!("merge_method: passthrough\nmodels: [{{model: {}+{}}}]\n", path("base"), path("a0"));
    models::run(folder.path(), &again, "again", RUN).unwrap();
    let [found, sum] = ["again", "sum"].map(|name| models::read(&at(name)));
    close(&found, &format!("{Q}.weight"), |i| f64::from(values(&sum[&format!("{Q}.weight")])[i]));
    // A folder whose name has a plus in it is that folder.
    std::fs::rename(at("sum"), at("s+um")).unwrap();
    extract(folder.path(), [&path("s+um"), &path("base")], "plus", &[]).succeeded();
    extract(folder.path(), [&format!("{}+{}", path("base"), path("none")), &path("base")], "no", &[])
        .failed(2, &["none", "hint: "]);
    assert!(!at("no").exists());
}

/// All that the adapter cannot hold is named: tensors that differ in numbers alone as one kind, with how many there are.
#[test]
fn what_is_lost_is_listed_by_kind() {
    let folder = tempfile::tempdir().unwrap();
    let layer = |layer: usize, rest: &str| format!("model.layers.{layer}.{rest}");
    let [qs, norms, biases] =
        ["q_proj.weight", "norm.weight", "q_proj.bias"].map(|rest| [0, 1].map(|of| layer(of, rest)));
    let shapes: Vec<(&str, &[usize])> = [
        ("model.embed_tokens.weight", &[30, 8][..]),
        ("model.norm.weight", &[8]),
        ("model.rotary.inv_freq", &[4]),
        ("lm_head.weight", &[30, 8]),
    ]
    .into_iter()
    .chain(qs.iter().map(|name| (name.as_str(), &[8, 8][..])))
    .chain(norms.iter().chain(&biases).map(|name| (name.as_str(), &[8][..])))
    .collect();
    let adapter = extracted(
        folder.path(),
        &shapes,
        &json!({ "model_type": "llama" }),
        &["--rank", "2", "--exclude", "lm_head"],
    );
    let card = card_of(&adapter);
    for line in [
        "| `model.layers.*.norm.weight` | 2 |",
        "| `model.layers.*.q_proj.bias` | 2 |",
        "| `model.embed_tokens.weight` | 1 |",
        "| `model.norm.weight` | 1 |",
        "| `lm_head.weight` | 1 |",
        "| `model.rotary.inv_freq` | 1 |",
    ] {
        assert!(card.contains(line), "{line} in\n{card}");
    }
    let [tuned, base] = ["tuned", "base"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    let flags = ["--rank", "2", "--exclude", "lm_head"];
    let said = extract(folder.path(), [&tuned, &base], "again", &flags).succeeded().stdout;
    let line = said.lines().find(|line| line.starts_with("changed, and not in the adapter: ")).unwrap();
    assert!(
        line.contains("2 × model.layers.*.norm.weight")
            && line.ends_with("and 2 more kinds (all in README.md)"),
        "{line}"
    );
    // The shares add up to what is lost of all.
    let share = |line: &str| line.rsplit("| ").next()?.trim_end_matches(" |").parse::<f64>().ok();
    let lost: f64 =
        card.lines().skip_while(|line| !line.starts_with("Changed, ")).filter_map(share).map(|x| x * x).sum();
    let total = card.split("lacks ").nth(1).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap();
    assert!((lost.sqrt() - total).abs() < 1e-3 && total > 0.5, "{} of {total}", lost.sqrt());
}

/// A language model within a larger one has a prefix in the file that it has not once it is loaded, and its head another.
#[test]
fn modules_of_llava_are_named_as_transformers_loads_them() {
    let folder = tempfile::tempdir().unwrap();
    let shapes: [(&str, &[usize]); 6] = [
        ("language_model.lm_head.weight", &[10, 8]),
        ("language_model.model.embed_tokens.weight", &[10, 8]),
        ("language_model.model.layers.0.self_attn.q_proj.weight", &[8, 8]),
        ("multi_modal_projector.linear_1.weight", &[8, 6]),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", &[6, 6]),
        ("vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.weight", &[6, 6]),
    ];
    let config = json!({
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": {}, "vision_config": {}
    });
    let adapter = extracted(folder.path(), &shapes, &config, &["--rank", "2", "--embeddings"]);
    let names: Vec<String> = shapes_of(&adapter).into_keys().collect();
    let tower =
        |layer: usize| format!("model.vision_tower.vision_model.encoder.layers.{layer}.self_attn.q_proj");
    let expected: Vec<String> = [
        ("lm_head", "lora_", ".weight"),
        ("model.language_model.embed_tokens", "lora_embedding_", ""),
        ("model.language_model.layers.0.self_attn.q_proj", "lora_", ".weight"),
        ("model.multi_modal_projector.linear_1", "lora_", ".weight"),
        (&tower(0), "lora_", ".weight"),
        (&tower(1), "lora_", ".weight"),
    ]
    .into_iter()
    .flat_map(|(module, word, end)| ["A", "B"].map(|which| format!("{module}.{word}{which}{end}")))
    .collect();
    assert_eq!(names, expected);
    // Of the tower nobody knows the names: versions of transformers differ.
    let card = card_of(&adapter);
    let listed = card.split("named_modules").nth(1).unwrap();
    assert!(
        listed.contains("| `vision_tower.vision_model.encoder.layers.*.self_attn.q_proj.weight` | 2 |"),
        "{card}"
    );
    assert!(!listed.contains("projector") && !listed.contains("language_model"), "{card}");
    // Added again it gives the model, under the names of the file.
    let path = folder.path().display();
    let text = format!("merge_method: passthrough\nmodels: [{{model: {path}/base+{path}/adapter}}]\n");
    models::run(folder.path(), &text, "out", RUN).unwrap();
    let [found, tuned] = ["out", "tuned"].map(|name| models::read(&folder.path().join(name)));
    for (name, _) in shapes {
        close(&found, name, |i| f64::from(values(&tuned[name])[i]));
    }
}

/// A head that is the embedding in one of both is compared as a tensor of its own where the other has it.
#[test]
fn heads_that_were_untied_are_compared_with_the_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
    let at = |name: &str| folder.path().join(name);
    let path = |name: &str| at(name).to_str().unwrap().to_owned();
    let tensor = |seed: u64| stored(Dtype::F32, &[12, 6], &weights(72, seed));
    let config = |tied: bool| json!({ "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied });
    write(&at("base"), &Tensors::from([(embedding.into(), tensor(1))]), &config(true));
    let untied = Tensors::from([(embedding.into(), tensor(2)), (head.into(), tensor(3))]);
    write(&at("tuned"), &untied, &config(false));
    let flags = ["--rank", "6", "--embeddings", "--dtype", "float32"];
    extract(folder.path(), [&path("tuned"), &path("base")], "adapter", &flags).succeeded();
    let text =
        format!("merge_method: passthrough\nmodels: [{{model: {}+{}}}]\n", path("base"), path("adapter"));
    models::run(folder.path(), &text, "out", RUN).unwrap();
    let found = models::read(&at("out"));
    for name in [head, embedding] {
        close(&found, name, |i| f64::from(values(&untied[name])[i]));
    }
    // The other way round the model's head is its embedding.
    extract(folder.path(), [&path("base"), &path("tuned")], "back", &flags).succeeded();
    let text =
        format!("merge_method: passthrough\nmodels: [{{model: {}+{}}}]\n", path("tuned"), path("back"));
    models::run(folder.path(), &text, "again", RUN).unwrap();
    let (found, expected) = (models::read(&at("again")), values(&tensor(1)));
    for name in [head, embedding] {
        close(&found, name, |i| f64::from(expected[i]));
    }
}

/// A matrix of full rank takes its time, and Ctrl-C is heard within it.
#[test]
fn ctrl_c_is_heard_while_a_large_matrix_is_decomposed() {
    const SIDE: usize = 3000;
    let folder = tempfile::tempdir().unwrap();
    for (name, seed) in [("tuned", 1), ("base", 2)] {
        let tensor = stored(Dtype::BF16, &[SIDE, SIDE], &weights(SIDE * SIDE, seed));
        write(&folder.path().join(name), &Tensors::from([(UP.into(), tensor)]), &json!({}));
    }
    let mut started = command::mergeforge();
    command::hearing(&mut started);
    started.args(["extract-lora", "tuned", "base", "out", "--error", "0.001"]).current_dir(folder.path());
    started.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = started.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let asked = Instant::now();
    Ended::from(child.wait_with_output().unwrap()).failed(130, &["error: interrupted: no output was made"]);
    // It takes less than a second; other tests take the rest.
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert!(!folder.path().join("out").exists());
}
