//! Models with an adapter, against PEFT's definitions written out in f64.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use crate::command;
use crate::models::{self, Form, PLAIN, RUN, Tensors, stored, values, weights};
use crate::torch_files::torch_file_with;

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";
const EMBED: &str = "model.embed_tokens";

// The sizes of the model: what goes into `q_proj` and out of it, what goes into `down_proj`, and the vocabulary.
const HIDDEN: usize = 6;
const OUT: usize = 8;
const WIDE: usize = 11;
const VOCABULARY: usize = 40;

/// A base in bfloat16.
fn base() -> Tensors {
    let shapes: [(&str, &[usize]); 7] = [
        ("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]),
        ("model.layers.0.self_attn.q_proj.weight", &[OUT, HIDDEN]),
        ("model.layers.0.self_attn.q_proj.bias", &[OUT]),
        ("model.layers.0.mlp.down_proj.weight", &[HIDDEN, WIDE]),
        ("model.layers.0.mlp.experts.up", &[3, OUT, HIDDEN]),
        ("model.norm.weight", &[HIDDEN]),
        ("lm_head.weight", &[VOCABULARY, HIDDEN]),
    ];
    let tensor = |(seed, (name, shape)): (usize, (&str, &[usize]))| {
        let values = weights(shape.iter().product(), seed as u64);
        (name.to_string(), stored(Dtype::BF16, shape, &values))
    };
    shapes.into_iter().enumerate().map(tensor).collect()
}

/// Writes an adapter of float32, with PEFT's prefix before its names. Its numbers are those of their names.
pub fn write_adapter(
    folder: &Path,
    config: Json,
    tensors: &[(&str, &[usize])],
) -> BTreeMap<String, Vec<f32>> {
    let mut all = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 3, "base_model_name_or_path": "base" });
    let (Json::Object(all), Json::Object(config)) = (&mut all, config) else { panic!("objects") };
    all.extend(config);
    let numbers = |name: &str, shape: &[usize]| {
        let seed = name
            .replace(".modules_to_save.w", ".w")
            .bytes()
            .fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        weights(shape.iter().product(), seed).iter().map(|value| value * 10.0).collect::<Vec<f32>>()
    };
    let own: BTreeMap<String, Vec<f32>> =
        tensors.iter().map(|(name, shape)| ((*name).to_string(), numbers(name, shape))).collect();
    let prefixed = |(name, shape): &(&str, &[usize])| {
        (format!("base_model.model.{name}"), stored(Dtype::F32, shape, &own[*name]))
    };
    models::write(folder, &tensors.iter().map(prefixed).collect(), PLAIN);
    std::fs::rename(folder.join("model.safetensors"), folder.join("adapter_model.safetensors")).unwrap();
    std::fs::remove_file(folder.join("config.json")).unwrap();
    std::fs::write(folder.join("adapter_config.json"), Json::Object(all.clone()).to_string()).unwrap();
    own
}

fn config(folder: &Path, method: &str) -> String {
    let path = folder.display();
    format!("merge_method: {method}\nmodels:\n  - model: {path}/base+{path}/adapter\n")
}

/// What a merge of a base and an adapter writes, in float32, and what the adapter's tensors hold.
fn added(
    base: &Tensors,
    form: Form,
    settings: Json,
    tensors: &[(&str, &[usize])],
) -> (Tensors, BTreeMap<String, Vec<f32>>) {
    let folder = tempfile::tempdir().unwrap();
    models::write(&folder.path().join("base"), base, form);
    let own = write_adapter(&folder.path().join("adapter"), settings, tensors);
    let text = config(folder.path(), "passthrough") + "dtype: float32\n";
    models::run(folder.path(), &text, "out", RUN).unwrap();
    (models::read(&folder.path().join("out")), own)
}

pub fn close(found: &Tensors, name: &str, expected: impl Fn(usize) -> f64) {
    let found = values(&found[name]);
    for (i, found) in found.iter().enumerate() {
        let expected = expected(i);
        let near = (f64::from(*found) - expected).abs() <= 1e-5 * expected.abs().max(0.01);
        assert!(near, "{name}, element {i}: {found} in place of {expected}");
    }
}

/// That all tensors but these are the base's.
fn others_are_as_they_were(base: &Tensors, found: &Tensors, changed: &[&str]) {
    for (name, tensor) in found.iter().filter(|(name, _)| !changed.contains(&name.as_str())) {
        assert_eq!(values(tensor), values(&base[name]), "{name}");
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// `W + s · B · A` of a module: its weight's elements, in f64.
fn sum(
    base: &Tensors,
    own: &BTreeMap<String, Vec<f32>>,
    module: &str,
    [columns, rank]: [usize; 2],
    scale: f64,
) -> Vec<f64> {
    let weight = wide(&values(&base[&format!("{module}.weight")]));
    let [a, b] = ["A", "B"].map(|which| wide(&own[&format!("{module}.lora_{which}.weight")]));
    let element = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        weight[i] + scale * (0..rank).map(|k| b[row * rank + k] * a[k * columns + column]).sum::<f64>()
    };
    (0..weight.len()).map(element).collect()
}

const Q_A: (&str, &[usize]) = ("model.layers.0.self_attn.q_proj.lora_A.weight", &[2, HIDDEN]);
const Q_B: (&str, &[usize]) = ("model.layers.0.self_attn.q_proj.lora_B.weight", &[OUT, 2]);

#[test]
fn products_are_added_with_their_scales() {
    let base = base();
    for (settings, scale) in [
        (json!({}), 1.5),
        (json!({ "use_rslora": true }), 3.0 / 2.0f64.sqrt()),
        (json!({ "alpha_pattern": { "self_attn.q_proj": 8 } }), 4.0),
    ] {
        let (found, own) = added(&base, PLAIN, settings, &[Q_A, Q_B]);
        let expected = sum(&base, &own, Q, [HIDDEN, 2], scale);
        close(&found, "model.layers.0.self_attn.q_proj.weight", |i| expected[i]);
        others_are_as_they_were(&base, &found, &["model.layers.0.self_attn.q_proj.weight"]);
    }
}

#[test]
fn directions_keep_their_magnitudes() {
    let base = base();
    let (norms, bias) = (format!("{Q}.lora_magnitude_vector"), format!("{Q}.lora_B.bias"));
    let tensors = [Q_A, Q_B, (&norms, &[OUT][..]), (&bias, &[OUT])];
    let (found, own) = added(&base, PLAIN, json!({ "use_dora": true, "lora_bias": true }), &tensors);
    let direction = sum(&base, &own, Q, [HIDDEN, 2], 1.5);
    let norm = |row: usize| direction[row * HIDDEN..][..HIDDEN].iter().map(|x| x * x).sum::<f64>().sqrt();
    close(&found, "model.layers.0.self_attn.q_proj.weight", |i| {
        direction[i] * f64::from(own[&norms][i / HIDDEN]) / norm(i / HIDDEN)
    });
    let of_base = wide(&values(&base["model.layers.0.self_attn.q_proj.bias"]));
    close(&found, "model.layers.0.self_attn.q_proj.bias", |i| of_base[i] + 1.5 * f64::from(own[&bias][i]));
}

/// A model of GPT-2's kind has its weights the other way round, which their shapes say; square ones are as the others are.
#[test]
fn weights_may_lie_the_other_way_round() {
    let mut base = base();
    let square = stored(Dtype::BF16, &[OUT, OUT], &weights(OUT * OUT, 99));
    base.insert("model.layers.0.square.weight".into(), square);
    let (a, b) = (format!("{DOWN}.lora_A.weight"), format!("{DOWN}.lora_B.weight"));
    let norms = format!("{DOWN}.lora_magnitude_vector");
    let tensors: [(&str, &[usize]); 5] = [
        (&a, &[2, HIDDEN]),
        (&b, &[WIDE, 2]),
        (&norms, &[WIDE]),
        ("model.layers.0.square.lora_A.weight", &[2, OUT]),
        ("model.layers.0.square.lora_B.weight", &[OUT, 2]),
    ];
    let (found, own) = added(&base, PLAIN, json!({}), &tensors);
    let turned = |weight: &str, [rows, columns]: [usize; 2], a: &[f32], b: &[f32]| {
        let weight = wide(&values(&base[weight]));
        let element = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            let terms = (0..2).map(|k| f64::from(b[column * 2 + k]) * f64::from(a[k * rows + row]));
            weight[i] + 1.5 * terms.sum::<f64>()
        };
        (0..rows * columns).map(element).collect::<Vec<f64>>()
    };
    let down = turned("model.layers.0.mlp.down_proj.weight", [HIDDEN, WIDE], &own[&a], &own[&b]);
    let norm = |column: usize| (0..HIDDEN).map(|row| down[row * WIDE + column].powi(2)).sum::<f64>().sqrt();
    close(&found, "model.layers.0.mlp.down_proj.weight", |i| {
        down[i] * f64::from(own[&norms][i % WIDE]) / norm(i % WIDE)
    });
    let [a, b] = ["A", "B"].map(|which| &own[&format!("model.layers.0.square.lora_{which}.weight")]);
    let expected = turned("model.layers.0.square.weight", [OUT, OUT], a, b);
    close(&found, "model.layers.0.square.weight", |i| expected[i]);
}

#[test]
fn embeddings_tokens_and_saved_modules_are_changed() {
    let base = base();
    let (a, b) = (format!("{EMBED}.lora_embedding_A"), format!("{EMBED}.lora_embedding_B"));
    let tensors: [(&str, &[usize]); 4] = [
        (&a, &[2, VOCABULARY]),
        (&b, &[HIDDEN, 2]),
        ("model.norm.weight", &[HIDDEN]),
        ("lm_head.token_adapter.trainable_tokens_delta", &[3, HIDDEN]),
    ];
    let settings = json!({ "trainable_token_indices": { "lm_head": [5, 39, 0] } });
    let (found, own) = added(&base, PLAIN, settings, &tensors);
    let weight = wide(&values(&base["model.embed_tokens.weight"]));
    close(&found, "model.embed_tokens.weight", |i| {
        let (token, column) = (i / HIDDEN, i % HIDDEN);
        let terms =
            (0..2).map(|k| f64::from(own[&b][column * 2 + k]) * f64::from(own[&a][k * VOCABULARY + token]));
        weight[i] + 1.5 * terms.sum::<f64>()
    });
    assert_eq!(values(&found["model.norm.weight"]), own["model.norm.weight"]);
    let head = values(&base["lm_head.weight"]);
    let rows = &own["lm_head.token_adapter.trainable_tokens_delta"];
    close(&found, "lm_head.weight", |i| {
        let of = [5, 39, 0].iter().position(|row| *row == i / HIDDEN);
        f64::from(of.map_or(head[i], |of| rows[of * HIDDEN + i % HIDDEN]))
    });
}

#[test]
fn what_an_adapter_replaces_is_not_left_out() {
    let folder = tempfile::tempdir().unwrap();
    models::write(&folder.path().join("base"), &base(), PLAIN);
    write_adapter(&folder.path().join("adapter"), json!({}), &[("model.norm.weight", &[HIDDEN])]);
    let text = config(folder.path(), "passthrough");
    let shown = command::plan(folder.path(), &text, &[]).succeeded();
    assert!(!shown.stdout.contains("left out"), "{}", shown.stdout);
    // Of what no layer range takes the adapter's own tensor is left out, and the model's.
    let adapted = format!("{0}/base+{0}/adapter", folder.path().display());
    let other = format!("{}/base", folder.path().display());
    let modules = format!(
        "merge_method: passthrough\nslices:\n- sources: [{{model: {adapted}, layer_range: [0, 1]}}]\n\
         - sources: [{{model: {other}, layer_range: [0, 1]}}]\n"
    );
    let shown = command::plan(folder.path(), &modules, &[]).succeeded();
    assert!(
        shown.stdout.contains("left out") && shown.stdout.contains("model.norm.weight"),
        "{}",
        shown.stdout
    );
}

#[test]
fn experts_that_are_one_tensor_have_products_of_their_own() {
    let base = base();
    let (a, b) = ("model.layers.0.mlp.experts.lora_A.weight", "model.layers.0.mlp.experts.lora_B.weight");
    let settings = json!({ "target_parameters": ["mlp.experts.up"] });
    let (found, own) = added(&base, PLAIN, settings, &[(a, &[6, HIDDEN]), (b, &[OUT, 6])]);
    let weight = wide(&values(&base["model.layers.0.mlp.experts.up"]));
    close(&found, "model.layers.0.mlp.experts.up", |i| {
        let (expert, row, column) = (i / HIDDEN / OUT, i / HIDDEN % OUT, i % HIDDEN);
        let terms = (0..2).map(|k| {
            f64::from(own[b][row * 6 + k * 3 + expert])
                * f64::from(own[a][(expert * 2 + k) * HIDDEN + column])
        });
        weight[i] + 1.5 * terms.sum::<f64>()
    });
}

/// Of a model whose head is its embedding one of them changes: then the output has both, and says so.
#[test]
fn a_tied_head_becomes_a_tensor_of_its_own_where_only_one_changes() {
    let mut base = base();
    base.remove("lm_head.weight");
    let folder = tempfile::tempdir().unwrap();
    models::write(&folder.path().join("base"), &base, Form { tied: true, ..PLAIN });
    let tensors: [(&str, &[usize]); 2] =
        [("lm_head.lora_A.weight", &[2, HIDDEN]), ("lm_head.lora_B.weight", &[VOCABULARY, 2])];
    let own = write_adapter(&folder.path().join("adapter"), json!({}), &tensors);
    let text = config(folder.path(), "passthrough") + "dtype: float32\n";
    models::run(folder.path(), &text, "out", RUN).unwrap();
    let found = models::read(&folder.path().join("out"));
    let embedding = values(&base["model.embed_tokens.weight"]);
    assert_eq!(values(&found["model.embed_tokens.weight"]), embedding);
    let (a, b) = (&own["lm_head.lora_A.weight"], &own["lm_head.lora_B.weight"]);
    close(&found, "lm_head.weight", |i| {
        let (row, column) = (i / HIDDEN, i % HIDDEN);
        let terms = (0..2).map(|k| f64::from(b[row * 2 + k]) * f64::from(a[k * HIDDEN + column]));
        f64::from(embedding[i]) + 1.5 * terms.sum::<f64>()
    });
    let config = std::fs::read_to_string(folder.path().join("out/config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Json>(&config).unwrap()["tie_word_embeddings"], false);
    // Trained as one they stay one.
    let stays = json!({ "ensure_weight_tying": true });
    let tensors: [(&str, &[usize]); 2] =
        [("lm_head.weight", &[VOCABULARY, HIDDEN]), ("model.embed_tokens.weight", &[VOCABULARY, HIDDEN])];
    let (found, own) = added(&base, Form { tied: true, ..PLAIN }, stays, &tensors);
    assert!(!found.contains_key("lm_head.weight"));
    assert_eq!(values(&found["model.embed_tokens.weight"]), own["model.embed_tokens.weight"]);
}

/// In a file of torch a tied head is stored under its own name. Whatever the adapter changes, that is the embedding's, and nothing of
/// it is left out.
#[test]
fn a_tied_head_of_a_torch_file_is_the_embedding() {
    let mut base = base();
    base.remove("lm_head.weight");
    let of_head: [(&str, &[usize]); 2] =
        [("lm_head.lora_A.weight", &[2, HIDDEN]), ("lm_head.lora_B.weight", &[VOCABULARY, 2])];
    let of_embedding: [(&str, &[usize]); 2] = [
        ("model.embed_tokens.lora_embedding_A", &[2, VOCABULARY]),
        ("model.embed_tokens.lora_embedding_B", &[HIDDEN, 2]),
    ];
    let saved: [(&str, &[usize]); 2] =
        [("lm_head.weight", &[VOCABULARY, HIDDEN]), ("model.embed_tokens.weight", &[VOCABULARY, HIDDEN])];
    let one = json!({ "ensure_weight_tying": true });
    for (settings, tensors) in [
        (json!({}), &of_head),
        (json!({}), &of_embedding),
        (json!({}), &saved),
        (one, &saved),
        (json!({}), &[Q_A, Q_B]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let form = Form { tied: true, ..PLAIN };
        for name in ["base", "safe"] {
            models::write(&folder.path().join(name), &base, form);
        }
        let file = torch_file_with(&base, Some(("lm_head.weight", "model.embed_tokens.weight")));
        std::fs::remove_file(folder.path().join("base/model.safetensors")).unwrap();
        std::fs::write(folder.path().join("base/pytorch_model.bin"), file).unwrap();
        write_adapter(&folder.path().join("adapter"), settings, tensors);
        let text = config(folder.path(), "passthrough");
        let shown = command::plan(folder.path(), &text, &[]).succeeded().stdout;
        let left_out = |line: &str| line.starts_with("left out ") && line.contains("/base: ");
        assert!(!shown.lines().any(left_out), "{tensors:?}: {shown}");
        models::run(folder.path(), &text, "out", RUN).unwrap();
        models::run(folder.path(), &text.replace("/base+", "/safe+"), "expected", RUN).unwrap();
        let [found, expected] = ["out", "expected"].map(|out| models::read(&folder.path().join(out)));
        assert!(found == expected, "{tensors:?}");
    }
}

/// The head lies beside the model that has the embedding, or where the adapter has it; and the language model is no longer tied.
#[test]
fn a_tied_head_within_a_larger_model_gets_its_own_name() {
    for (before, of_head, saved) in [
        ("model.language_model", "lm_head.weight", None),
        ("language_model.model", "language_model.lm_head.weight", None),
        ("language_model.model", "lm_head.weight", Some("lm_head.weight")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let embedding = format!("{before}.embed_tokens.weight");
        let values_of = weights(VOCABULARY * HIDDEN, 1);
        let base = Tensors::from([
            (embedding.clone(), stored(Dtype::F32, &[VOCABULARY, HIDDEN], &values_of)),
            (format!("{before}.norm.weight"), stored(Dtype::F32, &[HIDDEN], &weights(HIDDEN, 2))),
        ]);
        models::write(&folder.path().join("base"), &base, PLAIN);
        let tied = json!({ "architectures": ["X"], "text_config": { "hidden_size": HIDDEN }, "tie_word_embeddings": true });
        std::fs::write(folder.path().join("base/config.json"), tied.to_string()).unwrap();
        let (a, b) = (
            format!("{before}.embed_tokens.lora_embedding_A"),
            format!("{before}.embed_tokens.lora_embedding_B"),
        );
        let mut tensors: Vec<(&str, &[usize])> = vec![(&a, &[2, VOCABULARY]), (&b, &[HIDDEN, 2])];
        tensors.extend(saved.map(|saved| (saved, &[VOCABULARY, HIDDEN][..])));
        let own = write_adapter(&folder.path().join("adapter"), json!({}), &tensors);
        models::run(folder.path(), &config(folder.path(), "passthrough"), "out", RUN).unwrap();
        let found = models::read(&folder.path().join("out"));
        assert_eq!(found.len(), 3, "{before}: {:?}", found.keys());
        assert_eq!(&values(&found[of_head]), saved.map_or(&values_of, |saved| &own[saved]), "{before}");
        assert_ne!(values(&found[&embedding]), values_of, "{before}");
        let written = std::fs::read_to_string(folder.path().join("out/config.json")).unwrap();
        let written: Json = serde_json::from_str(&written).unwrap();
        let says = [&written, &written["text_config"]].map(|config| &config["tie_word_embeddings"]);
        assert_eq!(says, [&json!(false); 2], "{written}");
    }
}

#[test]
fn adapters_of_quantised_models_are_refused_for_that() {
    let folder = tempfile::tempdir().unwrap();
    let mut base = base();
    let packed = models::Stored {
        dtype: Dtype::U8,
        shape: vec![OUT * HIDDEN / 2, 1],
        bytes: vec![7; OUT * HIDDEN / 2],
    };
    base.insert(format!("{Q}.weight"), packed);
    models::write(&folder.path().join("base"), &base, PLAIN);
    let how = json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_4bit": true } });
    std::fs::write(folder.path().join("base/config.json"), how.to_string()).unwrap();
    write_adapter(&folder.path().join("adapter"), json!({}), &[Q_A, Q_B]);
    let refused = models::run(folder.path(), &config(folder.path(), "passthrough"), "out", RUN).unwrap_err();
    assert!(refused.message.contains("is quantised (bitsandbytes, 4 bits)"), "{refused}");
}

/// An adapter is of experts as its base stores them, though they are merged as another model does.
#[test]
fn adapters_of_experts_are_added_before_their_layout_changes() {
    let folder = tempfile::tempdir().unwrap();
    let matrix = |shape: &[usize], seed| stored(Dtype::BF16, shape, &weights(shape.iter().product(), seed));
    let block = "model.layers.0.mlp.experts";
    let mut base = Tensors::new();
    for expert in 0..2 {
        for (seed, (word, shape)) in
            [("gate_proj", [WIDE, HIDDEN]), ("up_proj", [WIDE, HIDDEN]), ("down_proj", [HIDDEN, WIDE])]
                .into_iter()
                .enumerate()
        {
            base.insert(format!("{block}.{expert}.{word}.weight"), matrix(&shape, seed as u64 + 5 * expert));
        }
    }
    let fused = Tensors::from([
        (format!("{block}.gate_up_proj"), matrix(&[2, 2 * WIDE, HIDDEN], 20)),
        (format!("{block}.down_proj"), matrix(&[2, HIDDEN, WIDE], 21)),
    ]);
    models::write(&folder.path().join("base"), &base, PLAIN);
    models::write(&folder.path().join("fused"), &fused, PLAIN);
    let (a, b) = (format!("{block}.1.up_proj.lora_A.weight"), format!("{block}.1.up_proj.lora_B.weight"));
    write_adapter(&folder.path().join("adapter"), json!({}), &[(&a, &[2, HIDDEN]), (&b, &[WIDE, 2])]);
    models::run(folder.path(), &(config(folder.path(), "passthrough") + "dtype: float32\n"), "sum", RUN)
        .unwrap();
    let path = folder.path().display();
    let merged = |model: &str, out: &str| {
        let text = format!(
            "merge_method: linear\ndtype: bfloat16\nparameters: {{weight: 0.5}}\nmodels: [{{model: {path}/fused}}, {{model: {model}}}]\n"
        );
        models::run(folder.path(), &text, out, RUN).unwrap();
        models::read(&folder.path().join(out))
    };
    let expected = merged(&format!("{path}/sum"), "of_sum");
    assert!(merged(&format!("{path}/base+{path}/adapter"), "out") == expected);
    assert!(merged(&format!("{path}/base"), "without") != expected);
}

/// Without a type in the config the output has the base's, into which sums are rounded once.
#[test]
fn outputs_have_the_type_of_the_base() {
    let base = base();
    let folder = tempfile::tempdir().unwrap();
    models::write(&folder.path().join("base"), &base, PLAIN);
    write_adapter(&folder.path().join("adapter"), json!({}), &[Q_A, Q_B, ("model.norm.weight", &[HIDDEN])]);
    for (out, dtype) in [("wide", "dtype: float32\n"), ("out", "")] {
        models::run(folder.path(), &(config(folder.path(), "passthrough") + dtype), out, RUN).unwrap();
    }
    let [wide, out] = ["wide", "out"].map(|out| models::read(&folder.path().join(out)));
    for (name, tensor) in &out {
        assert_eq!(tensor, &stored(Dtype::BF16, &tensor.shape, &values(&wide[name])), "{name}");
    }
    assert_ne!(out["model.norm.weight"], base["model.norm.weight"]);
}

/// Writes a base, two adapters and a model, and a config that merges them by one method.
pub fn write_merge(folder: &Path, method: &str) -> String {
    let large = |seed| stored(Dtype::BF16, &[70, 130], &weights(70 * 130, seed));
    let names = ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"];
    let model =
        |seed: u64| names.iter().zip(seed..).map(|(name, seed)| ((*name).to_string(), large(seed))).collect();
    models::write(&folder.join("base"), &model(1), PLAIN);
    models::write(&folder.join("other"), &model(5), PLAIN);
    for (adapter, module) in [("one", "up_proj"), ("two", "gate_proj")] {
        let [a, b, norms] = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"]
            .map(|part| format!("model.layers.0.mlp.{module}.{part}"));
        let tensors: [(&str, &[usize]); 3] = [(&a, &[2, 130]), (&b, &[70, 2]), (&norms, &[70])];
        write_adapter(&folder.join(adapter), json!({}), &tensors);
    }
    let path = folder.display();
    format!(
        "merge_method: {method}\nbase_model: {path}/base\nparameters: {{weight: 0.5, density: 0.6}}\nmodels:\n\
         - model: {path}/base+{path}/one\n- model: {path}/base+{path}/two\n- model: {path}/other\n"
    )
}

/// A merge of models with adapters is that of checkpoints that hold the sums.
#[test]
fn models_with_adapters_merge_as_their_sums_do() {
    for method in ["linear", "ties", "dare_ties"] {
        let folder = tempfile::tempdir().unwrap();
        let text = write_merge(folder.path(), method);
        let path = folder.path().display();
        for adapter in ["one", "two"] {
            let sum = format!(
                "merge_method: passthrough\ndtype: float32\nmodels: [{{model: {path}/base+{path}/{adapter}}}]\n"
            );
            models::run(folder.path(), &sum, &format!("sum_{adapter}"), RUN).unwrap();
        }
        let sums = text.replace(&format!("{path}/base+{path}/"), &format!("{path}/sum_"));
        models::run(folder.path(), &(text + "dtype: bfloat16\n"), "out", RUN).unwrap();
        models::run(folder.path(), &(sums + "dtype: bfloat16\n"), "of_sums", RUN).unwrap();
        let [found, expected] = ["out", "of_sums"].map(|out| models::read(&folder.path().join(out)));
        assert!(found == expected, "{method}");
    }
}

#[test]
fn the_manifest_and_the_card_name_the_adapters() {
    let folder = tempfile::tempdir().unwrap();
    let text = write_merge(folder.path(), "linear");
    let report = models::run(folder.path(), &text, "out", RUN).unwrap();
    let path = folder.path().display().to_string();
    let manifest = report.manifest().value();
    let inputs = manifest["inputs"].as_array().unwrap();
    let named = |name: &str| inputs.iter().find(|input| input["model"] == name).unwrap();
    let adapted = named(&format!("{path}/base+{path}/one"));
    assert_eq!(adapted["adapter"]["adapter"], format!("{path}/one"));
    assert_eq!(adapted["adapter"]["files"][0]["file"], "adapter_model.safetensors");
    assert_eq!(adapted["files"], named(&format!("{path}/base"))["files"]);
    let card = std::fs::read_to_string(folder.path().join("out/README.md")).unwrap();
    assert!(card.contains(&format!("`{path}/base` with the adapter `{path}/two`")), "{card}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    models::write(&folder.path().join("base"), &base(), PLAIN);
    let refused = |tensors: &[(&str, &[usize])]| {
        write_adapter(&folder.path().join("adapter"), json!({ "trainable_token_indices": [40] }), tensors);
        let error =
            models::run(folder.path(), &config(folder.path(), "passthrough"), "out", RUN).unwrap_err();
        std::fs::remove_dir_all(folder.path().join("adapter")).unwrap();
        assert!(
            error.message.contains("passthrough.yml:")
                || error.message.contains("out.yml:3:12: the adapter "),
            "{error}"
        );
        format!("{} | {}", error.message, error.hint.unwrap_or_default())
    };
    let stranger =
        refused(&[("model.layers.7.q.lora_A.weight", &[2, 6]), ("model.layers.7.q.lora_B.weight", &[8, 2])]);
    assert!(
        stranger.contains("changes \"model.layers.7.q\", which ")
            && stranger.contains("trained on, \"base\""),
        "{stranger}"
    );
    let misfit = refused(&[("model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 5]), Q_B]);
    assert!(
        misfit.contains("lora_A.weight\" [2, 5]") && misfit.contains("q_proj.weight\" [8, 6]"),
        "{misfit}"
    );
    let vocabulary = refused(&[("lm_head.weight", &[42, 6])]);
    assert!(
        vocabulary.contains("[42, 6] cannot change \"lm_head.weight\" [40, 6]")
            && vocabulary.contains("changed the vocabulary"),
        "{vocabulary}"
    );
    // Plain PEFT saves such a head twice.
    let twice = refused(&[("lm_head.weight", &[42, 6]), ("lm_head.modules_to_save.weight", &[42, 6])]);
    assert!(twice.contains("changed the vocabulary"), "{twice}");
    let differing =
        refused(&[("lm_head.weight", &[42, 6]), ("lm_head.modules_to_save.default.weight", &[42, 6])]);
    assert!(differing.contains("the same part of it"), "{differing}");
    let norms = format!("{Q}.lora_magnitude_vector");
    assert!(refused(&[Q_A, Q_B, (&norms, &[7])]).contains("lora_magnitude_vector\" [7] cannot change"));
    let bias = format!("{DOWN}.lora_B.bias");
    let (a, b) = (format!("{DOWN}.lora_A.weight"), format!("{DOWN}.lora_B.weight"));
    assert!(
        refused(&[(&a, &[2, WIDE]), (&b, &[6, 2]), (&bias, &[6])])
            .contains("changes \"model.layers.0.mlp.down_proj.bias\"")
    );
    let tokens = "model.embed_tokens.token_adapter.trainable_tokens_delta";
    assert!(refused(&[(tokens, &[1, 6])]).contains("cannot change \"model.embed_tokens.weight\" [40, 6]"));
    assert!(refused(&[("model.norm.weight", &[7])]).contains("same architecture and size"));
}

/// A language model within a larger one has its names under another beginning.
#[test]
fn names_may_begin_otherwise() {
    let base = base();
    let (a, b) = ("layers.0.self_attn.q_proj.lora_A.weight", "layers.0.self_attn.q_proj.lora_B.weight");
    let (found, own) =
        added(&base, PLAIN, json!({}), &[(a, &[2, HIDDEN]), (b, &[OUT, 2]), ("norm.weight", &[HIDDEN])]);
    let own = own.into_iter().map(|(name, values)| (format!("model.{name}"), values)).collect();
    let expected = sum(&base, &own, Q, [HIDDEN, 2], 1.5);
    close(&found, "model.layers.0.self_attn.q_proj.weight", |i| expected[i]);
    assert_eq!(values(&found["model.norm.weight"]), own["model.norm.weight"]);
}
