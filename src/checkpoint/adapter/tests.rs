//! Every name and setting that PEFT writes, and what is refused.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::names::ADAPTER_CONFIG;
use serde_json::Value;

/// An adapter's folder: its config over the usual one, and tensors of F32 zeros.
fn folder(config: Value, tensors: &[(&str, &[usize])]) -> TempDir {
    let mut all =
        json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "me/base" });
    let (Value::Object(all), Value::Object(config)) = (&mut all, config) else { panic!("objects") };
    all.extend(config);
    let mut end = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, shape)| {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + end, 0);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(ADAPTER_CONFIG), Value::Object(all.clone()).to_string()).unwrap();
    fs::write(folder.path().join("adapter_model.safetensors"), bytes).unwrap();
    folder
}

fn adapter(folder: &TempDir) -> Result<Adapter> {
    Adapter::of(&Source::open_adapter("me/adapter", folder.path())?)
}

/// A plain product on one module, with a config.
fn plain(config: Value) -> TempDir {
    folder(
        config,
        &[("base_model.model.m.q.lora_A.weight", &[2, 4]), ("base_model.model.m.q.lora_B.weight", &[3, 2])],
    )
}

fn refused(folder: &TempDir) -> String {
    let error = adapter(folder).unwrap_err();
    assert!(error.message.contains("the adapter me/adapter: "), "{error}");
    format!("{} | {}", error.message, error.hint.unwrap_or_default())
}

#[test]
fn names_are_taken_apart_in_all_their_spellings() {
    let part = |module: &str, depth, part| Some(Named::Part(module.into(), depth, part));
    let saved = |name: &str| Some(Named::Saved(name.into()));
    for (name, expected) in [
        ("base_model.model.model.layers.0.q.lora_A.weight", part("model.layers.0.q", 0, Part::A)),
        ("model.layers.0.q.lora_B.default.weight", part("model.layers.0.q", 0, Part::B)),
        ("base_model.model.q.lora_A", part("q", 0, Part::A)),
        ("base_model.model.q.lora_B.bias", part("q", 0, Part::Bias)),
        ("base_model.model.q.lora_B.default.bias", part("q", 0, Part::Bias)),
        ("base_model.model.wte.lora_embedding_A", part("wte", 0, Part::EmbeddingA)),
        ("base_model.model.wte.lora_embedding_B.default", part("wte", 0, Part::EmbeddingB)),
        ("base_model.model.q.lora_magnitude_vector", part("q", 0, Part::Magnitude)),
        ("base_model.model.q.lora_magnitude_vector.weight", part("q", 0, Part::Magnitude)),
        ("base_model.model.q.lora_magnitude_vector.default.weight", part("q", 0, Part::Magnitude)),
        ("base_model.model.m.experts.base_layer.lora_A.weight", part("m.experts", 1, Part::A)),
        ("base_model.model.lm_head.weight", saved("lm_head.weight")),
        ("base_model.model.lm_head.modules_to_save.weight", saved("lm_head.weight")),
        ("base_model.model.lm_head.modules_to_save.default.weight", saved("lm_head.weight")),
        ("base_model.model.q.base_layer.bias", saved("q.bias")),
        ("base_model.model.m.e.token_adapter.trainable_tokens_delta", Some(Named::Tokens("m.e".into()))),
        ("base_model.model.m.e.token_adapter.base_layer.weight", Some(Named::Original)),
        ("base_model.model.lm_head.original_module.weight", Some(Named::Original)),
        ("base_model.model.q.lora_E", None),
        ("base_model.model.q.lora_A.x.y.weight", None),
        ("base_model.model.q.lora_A.bias", None),
        ("base_model.model.m.e.token_adapter.other", None),
    ] {
        assert_eq!(named(name), expected, "{name}");
    }
}

#[test]
fn products_have_their_scales() {
    let scale = |config| {
        let adapter = adapter(&plain(config)).unwrap();
        let [product] = &adapter.low_rank["m.q"][..] else { panic!("one") };
        assert_eq!((product.a, product.b, product.experts), (0, 1, 1));
        (product.rank, product.scale)
    };
    assert_eq!(scale(json!({})), (2, 3.0));
    assert_eq!(scale(json!({ "use_rslora": true })), (2, (6.0 / 2.0f64.sqrt()) as f32));
    assert_eq!(scale(json!({ "alpha_pattern": { "q": 1, "m.q": 9 } })), (2, 0.5));
    // Of several the first counts, names and patterns alike.
    assert_eq!(scale(json!({ "alpha_pattern": { "m": 1, "m.q": 9, "[q]": 4, "q": 1 } })), (2, 4.5));
    assert_eq!(scale(json!({ "alpha_pattern": { "x.q": 1, "[q]": 4, "m.q": 9 } })), (2, 2.0));
    // As PEFT does: the end of a name, behind a dot or all of it.
    assert_eq!(scale(json!({ "alpha_pattern": { "m": 1, ".q": 1, "^m": 1, "(k|q)": 8 } })), (2, 4.0));
    assert_eq!(scale(json!({ "alpha_pattern": { "^m.q": 10 } })), (2, 5.0));
    assert_eq!(scale(json!({ "r": 64, "rank_pattern": { "m\\.[qkv]": 2 } })), (2, 3.0));
    assert_eq!(scale(json!({ "lora_alpha": 2.5, "alpha_pattern": null })), (2, 1.25));
}

#[test]
fn what_an_adapter_has_is_found() {
    let folder = folder(
        json!({ "trainable_token_indices": { "embed": [5, 1] }, "fan_in_fan_out": true, "use_dora": true, "r": 1 }),
        &[
            ("base_model.model.m.embed.token_adapter.trainable_tokens_delta", &[2, 4]),
            ("base_model.model.m.q.lora_A.weight", &[1, 4]),
            ("base_model.model.m.q.lora_B.weight", &[3, 1]),
            ("base_model.model.m.q.lora_B.bias", &[3]),
            ("base_model.model.m.q.lora_magnitude_vector", &[3]),
            ("base_model.model.head.weight", &[6, 4]),
        ],
    );
    let adapter = adapter(&folder).unwrap();
    assert_eq!(adapter.base.as_deref(), Some("me/base"));
    assert!(adapter.fan_in_fan_out && adapter.notes.is_empty());
    let product = LowRank {
        a: 1,
        b: 2,
        rank: 1,
        experts: 1,
        scale: 6.0,
        embedding: false,
        magnitude: Some(4),
        bias: Some(3),
    };
    assert_eq!(adapter.low_rank["m.q"], [product]);
    assert_eq!(adapter.saved["head.weight"], 5);
    assert_eq!(adapter.tokens["m.embed"], Tokens { rows: vec![5, 1], tensor: 0 });
}

#[test]
fn experts_that_are_one_parameter_have_their_ranks_behind_one_another() {
    let folder = folder(
        json!({ "target_parameters": ["experts.up", "experts.down"] }),
        &[
            ("base_model.model.m.experts.base_layer.lora_A.weight", &[8, 4]),
            ("base_model.model.m.experts.base_layer.lora_B.weight", &[6, 8]),
            ("base_model.model.m.experts.lora_A.weight", &[8, 3]),
            ("base_model.model.m.experts.lora_B.weight", &[4, 8]),
        ],
    );
    let adapter = adapter(&folder).unwrap();
    let products = &adapter.low_rank["m.experts"];
    assert_eq!(products.iter().map(|p| (p.a, p.experts, p.rank)).collect::<Vec<_>>(), [(2, 4, 2), (0, 4, 2)]);
}

#[test]
fn other_kinds_are_refused_by_name() {
    for (config, expected) in [
        (json!({ "peft_type": "IA3" }), "PEFT's kind \"IA3\""),
        (json!({ "peft_type": "PREFIX_TUNING" }), "PREFIX_TUNING"),
        (json!({ "peft_type": null }), "nothing"),
        (json!({ "layer_replication": [[0, 1]] }), "layer_replication"),
        (json!({ "use_qalora": true }), "use_qalora"),
        (json!({ "alora_invocation_tokens": [1] }), "alora_invocation_tokens"),
        (
            json!({ "init_lora_weights": "pissa_niter_4" }),
            "changes the base model as well | save it with PEFT's path_initial",
        ),
        (json!({ "init_lora_weights": "newest" }), "not known whether"),
        (json!({ "r": 3 }), "do not have the rank 3"),
        (json!({ "r": 0 }), "rank 0"),
        (json!({ "r": 1.5 }), "rank 1.5"),
        (json!({ "r": "2" }), "no numbers"),
        (json!({ "rank_pattern": { "q": "2" } }), "rank_pattern gives no number to \"q\""),
        (json!({ "alpha_pattern": { "(?=q)": 2 } }), "alpha_pattern: "),
    ] {
        let message = refused(&plain(config.clone()));
        assert!(message.contains(expected), "{config}: {message}");
    }
    for fine in ["eva", "gaussian", "mica"] {
        assert!(
            adapter(&plain(
                json!({ "init_lora_weights": fine, "layer_replication": [], "use_qalora": false })
            ))
            .is_ok()
        );
    }
}

#[test]
fn tensors_that_fit_no_adapter_are_refused() {
    const A: &str = "base_model.model.q.lora_A.weight";
    const B: &str = "base_model.model.q.lora_B.weight";
    let refused = |tensors: &[(&str, &[usize])]| refused(&folder(json!({}), tensors));
    assert!(refused(&[(A, &[2, 4])]).contains("module \"q\" has only one of lora_A and lora_B"));
    assert!(refused(&[(A, &[2, 4]), (B, &[3, 4])]).contains("do not have the rank 2"));
    assert!(refused(&[(A, &[4, 2]), (B, &[3, 4])]).contains("do not have the rank 2"));
    assert!(refused(&[(A, &[]), (B, &[3, 2])]).contains("do not have the rank 2"));
    assert!(refused(&[("base_model.model.q.lora_E", &[2, 1])]).contains("nothing that a LoRA adapter has"));
    let second = "base_model.model.q.lora_A.other.weight";
    assert!(refused(&[(A, &[2, 4]), (B, &[3, 2]), (second, &[2, 4])]).contains("the same part of it"));
    let tokens = "base_model.model.e.token_adapter.trainable_tokens_delta";
    assert!(
        refused(&[(tokens, &[2, 4])]).contains("trainable_token_indices does not say which rows of \"e\"")
    );
    let listed = folder(json!({ "trainable_token_indices": [1, 2, 3] }), &[(tokens, &[2, 4])]);
    assert!(super::tests::refused(&listed).contains("has other rows than the 3"));
    assert!(refused(&[("base_model.model.e.original_module.weight", &[2, 4])]).contains("no tensor of it"));
}

#[test]
fn settings_that_are_not_known_are_noted() {
    let adapter =
        adapter(&plain(json!({ "use_magic": true, "use_spells": false, "task_type": "CAUSAL_LM" }))).unwrap();
    let [note] = &adapter.notes[..] else { panic!("{:?}", adapter.notes) };
    assert!(note.contains("\"use_magic\"") && note.contains("not known"));
}

#[test]
fn an_adapter_given_as_a_model_says_what_to_write() {
    let folder = plain(json!({}));
    let error = Source::open("me/adapter", folder.path()).unwrap_err();
    assert!(error.hint.unwrap().contains("write me/base+me/adapter for"));
    fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    assert!(Source::open_adapter("a", folder.path()).unwrap_err().message.contains("but no adapter_model"));
    fs::remove_file(folder.path().join(ADAPTER_CONFIG)).unwrap();
    assert!(
        Source::open_adapter("a", folder.path()).unwrap_err().message.contains("has no adapter_config.json")
    );
}
