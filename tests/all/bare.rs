//! Models without a config.json, tensors that only some models have, and embeddings that are cut.

use std::fs;
use std::path::Path;

use mergeforge::plan::Choices;
use mergeforge::{Prepared, prepare};
use safetensors::Dtype;
use serde_json::Value;

use crate::command;
use crate::models::{self, PLAIN, RUN, Stored, Tensors, stored, values, weights};
use crate::torch_files::{torch_file, torch_file_with};

fn tensor(shape: &[usize], seed: u64) -> Stored {
    stored(Dtype::F32, shape, &weights(shape.iter().product(), seed))
}

fn unet(seed: u64) -> Tensors {
    let shapes: [(&str, &[usize]); 3] =
        [("down.0.conv.weight", &[4, 2, 3, 3]), ("mid.norm.weight", &[4]), ("time_embed.0.weight", &[8, 4])];
    shapes
        .iter()
        .enumerate()
        .map(|(i, (name, shape))| ((*name).into(), tensor(shape, seed + i as u64)))
        .collect()
}

/// Writes tensors as a file of safetensors, without a folder around them.
fn safetensors_file(path: &Path, tensors: &Tensors) {
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

/// Runs `mergeforge merge` with these words behind config and output.
fn merge(dir: &Path, config: &str, more: &[&str]) -> command::Ended {
    fs::write(dir.join("config.yml"), config).unwrap();
    drop(fs::remove_dir_all(dir.join("out")));
    let mut command = command::mergeforge();
    command.current_dir(dir).args(["merge", "config.yml", "out", "--device", "cpu"]).args(more);
    command.output().unwrap().into()
}

const HALVES: &str = "merge_method: linear\nparameters: {weight: 0.5}\n";

#[test]
fn single_files_are_merged_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    safetensors_file(&at("a.safetensors"), &unet(1));
    fs::write(at("b.ckpt"), torch_file(&unet(20))).unwrap();
    // What lies beside a file is no part of it.
    fs::write(at("tokenizer.json"), "{}").unwrap();
    fs::write(at("README.md"), "---\nlicense: mit\n---\n").unwrap();
    let config = format!("{HALVES}models: [{{model: a.safetensors}}, {{model: b.ckpt}}]\n");
    let ended = merge(dir.path(), &config, &[]).succeeded();
    assert!(
        ended.stderr.contains("a.safetensors has no config.json, and so the output has none"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("tokenizer of"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("same folder"), "{}", ended.stderr);
    let expected: Tensors = unet(1)
        .into_iter()
        .map(|(name, one)| {
            let other = values(&unet(20)[&name]);
            let means: Vec<f32> = values(&one).iter().zip(&other).map(|(a, b)| 0.5 * a + 0.5 * b).collect();
            (name, stored(Dtype::F32, &one.shape, &means))
        })
        .collect();
    assert!(models::read(&at("out")) == expected);
    let mut files: Vec<_> = fs::read_dir(at("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["README.md", "mergeforge.json", "mergekit_config.yml", "model.safetensors"]);
    let card = fs::read_to_string(at("out/README.md")).unwrap();
    assert!(!card.contains("license") && !card.contains("library_name"), "{card}");
}

#[test]
fn folders_of_nothing_but_weights_are_merged_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, seed) in [("a", 1), ("b", 20)] {
        fs::create_dir(dir.path().join(name)).unwrap();
        safetensors_file(&dir.path().join(name).join("weights.safetensors"), &unet(seed));
    }
    let models = "models: [{model: ./a}, {model: ./b}]\n";
    merge(dir.path(), &format!("{HALVES}{models}"), &[]).succeeded();
    assert!(!dir.path().join("out/config.json").exists());
    let slices = "merge_method: passthrough\nslices: [{sources: [{model: ./a, layer_range: [0, 1]}]}]\n";
    merge(dir.path(), slices, &[]).failed(2, &["slices need models with a config.json"]);
    let tokenizer = format!("{HALVES}{models}tokenizer_source: base\n");
    merge(dir.path(), &tokenizer, &[]).failed(2, &["a tokenizer belongs to a model with a config.json"]);
    // Beside models with a config, one without is a download that was interrupted; a file is none.
    models::write(&dir.path().join("whole"), &unet(40), PLAIN);
    let mixed = format!("{HALVES}models: [{{model: ./whole}}, {{model: ./b}}]\n");
    merge(dir.path(), &mixed, &[]).failed(3, &["b has no config.json", "interrupted download"]);
    let file = format!("{HALVES}models: [{{model: ./whole}}, {{model: ./b/weights.safetensors}}]\n");
    merge(dir.path(), &file, &[]).succeeded();
    assert!(dir.path().join("out/config.json").exists());
}

#[test]
fn tensors_that_only_some_have_are_left_out_or_merged_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut all = [unet(1), unet(20), unet(40)];
    all[1].insert("extra".into(), tensor(&[4], 77));
    all[2].insert("extra".into(), tensor(&[4], 78));
    all[2].insert("alone".into(), tensor(&[4], 79));
    for (name, tensors) in ["a.safetensors", "b.safetensors", "c.safetensors"].iter().zip(&all) {
        safetensors_file(&at(name), tensors);
    }
    let config = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a.safetensors}, {model: b.safetensors}, {model: c.safetensors}]\n";
    merge(dir.path(), config, &[]).failed(2, &["tensor alone", "--tensor-union", "--tensor-intersection"]);
    for flag in ["-i", "--tensor-intersection", "--intersection"] {
        let ended = merge(dir.path(), config, &[flag]).succeeded();
        assert!(ended.stderr.contains("2 of 5 tensors are left out"), "{}", ended.stderr);
        assert!(models::read(&at("out")).keys().eq(all[0].keys()));
    }
    for flag in ["-u", "--tensor-union", "--union"] {
        let ended = merge(dir.path(), config, &[flag]).succeeded();
        assert!(
            ended.stderr.contains("1 tensors are merged of the models that have them"),
            "{}",
            ended.stderr
        );
        let out = models::read(&at("out"));
        assert_eq!(out["alone"], all[2]["alone"]);
        let (one, other) = (values(&all[1]["extra"]), values(&all[2]["extra"]));
        let mean = one.iter().zip(&other).map(|(a, b)| 0.5 * a + 0.5 * b);
        assert_eq!(values(&out["extra"]), mean.collect::<Vec<_>>());
    }
    merge(dir.path(), config, &["-i", "-u"]).failed(2, &["cannot be used with"]);
    // A base that lacks a tensor leaves nothing to take differences to.
    let ties = "merge_method: task_arithmetic\nbase_model: a.safetensors\nparameters: {weight: 1}\nmodels: [{model: b.safetensors}, {model: c.safetensors}]\n";
    merge(dir.path(), ties, &["-u"]).failed(3, &["extra"]);
    // With nothing in common there is nothing to merge.
    safetensors_file(&at("d.safetensors"), &Tensors::from([("d".into(), tensor(&[4], 1))]));
    let config = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a.safetensors}, {model: d.safetensors}]\n";
    merge(dir.path(), config, &["-i"]).failed(2, &["no tensor is in all models"]);
}

#[test]
fn buffers_that_models_compute_are_the_donors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let positions = |count: i64| Stored {
        dtype: Dtype::I64,
        shape: vec![1, count as usize],
        bytes: (0..count).flat_map(i64::to_le_bytes).collect(),
    };
    let (mut one, mut other) = (with_tokens(10, None, 1), with_tokens(10, None, 50));
    one.insert("embeddings.position_ids".into(), positions(4));
    other.insert("embeddings.position_ids".into(), positions(6));
    other.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), tensor(&[4], 3));
    models::write(&at("a"), &one, PLAIN);
    models::write(&at("b"), &other, PLAIN);
    let config = format!("{HALVES}models: [{{model: ./a}}, {{model: ./b}}]\n");
    let ended = merge(dir.path(), &config, &[]).succeeded();
    assert!(
        ended.stderr.contains("\"embeddings.position_ids\" and 1 more: the models do not have it alike"),
        "{}",
        ended.stderr
    );
    let out = models::read(&at("out"));
    assert!(out.keys().eq(one.keys()) && out["embeddings.position_ids"] == positions(4));
    // Of the same shape, integers have to be equal: nothing says which of them is right.
    one.insert("table".into(), positions(4));
    other.insert("table".into(), Stored { bytes: vec![7; 32], ..positions(4) });
    models::write(&at("a"), &one, PLAIN);
    models::write(&at("b"), &other, PLAIN);
    merge(dir.path(), &config, &[]).failed(3, &["table"]);
}

/// A model with this many tokens, and a head of so many of its own.
fn with_tokens(tokens: usize, head: Option<usize>, seed: u64) -> Tensors {
    let mut tensors = Tensors::from([
        ("model.embed_tokens.weight".into(), tensor(&[tokens, 4], seed)),
        ("model.layers.0.w".into(), tensor(&[3, 4], seed + 1)),
    ]);
    tensors.extend(head.map(|rows| ("lm_head.weight".to_owned(), tensor(&[rows, 4], seed + 2))));
    tensors
}

fn planned(dir: &Path, config: &str, truncate_embeddings: bool) -> mergeforge::error::Result<Prepared> {
    let file = dir.join("plan.yml");
    fs::write(&file, config).unwrap();
    prepare(&file, &Choices { truncate_embeddings, ..Choices::USUAL })
}

#[test]
fn embeddings_are_cut_to_the_fewest_rows_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (one, other) = (with_tokens(12, Some(12), 1), with_tokens(10, Some(10), 50));
    models::write(&at("a"), &one, PLAIN);
    models::write(&at("b"), &other, PLAIN);
    let path = at("a/config.json");
    let mut own: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    own["vocab_size"] = 12.into();
    fs::write(&path, own.to_string()).unwrap();
    let config = format!("{HALVES}models: [{{model: ./a}}, {{model: ./b}}]\n");
    merge(dir.path(), &config, &[]).failed(2, &["vocabularies differ", "--unsafe-truncate-embeddings"]);
    let ended = merge(dir.path(), &config, &["--unsafe-truncate-embeddings"]).succeeded();
    let said = "tensor \"model.embed_tokens.weight\" is cut to 10 rows: ./a 2 of 12 are lost";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    let out = models::read(&at("out"));
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let (a, b) = (values(&one[name]), values(&other[name]));
        let means: Vec<f32> = b.iter().zip(&a).map(|(b, a)| 0.5 * a + 0.5 * b).collect();
        assert_eq!(out[name], stored(Dtype::F32, &[10, 4], &means), "{name}");
    }
    let merged: Value = serde_json::from_slice(&fs::read(at("out/config.json")).unwrap()).unwrap();
    assert_eq!(merged["vocab_size"], 10);
    // What is equal is not cut.
    let same =
        planned(dir.path(), &format!("{HALVES}models: [{{model: {}}}]\n", at("a").display()), true).unwrap();
    assert!(same.plan.warnings.is_empty() && same.plan.config_edits.keys.is_empty());
}

#[test]
fn a_tied_embedding_is_cut_with_the_heads() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (one, tied) = (with_tokens(12, Some(12), 1), with_tokens(10, None, 50));
    models::write(&at("a"), &one, PLAIN);
    models::write(&at("b"), &tied, models::Form { tied: true, ..PLAIN });
    let config = format!("{HALVES}models: [{{model: ./a}}, {{model: ./b}}]\n");
    merge(dir.path(), &config, &["--unsafe-truncate-embeddings"]).succeeded();
    let head = &models::read(&at("out"))["lm_head.weight"];
    let (a, b) = (values(&one["lm_head.weight"]), values(&tied["model.embed_tokens.weight"]));
    let means: Vec<f32> = b.iter().zip(&a).map(|(b, a)| 0.5 * a + 0.5 * b).collect();
    assert_eq!(head, &stored(Dtype::F32, &[10, 4], &means));
}

#[test]
fn a_head_that_is_the_embedding_in_the_file_stays_tied() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, seed) in [("a", 1), ("b", 50)] {
        models::write(&at(name), &Tensors::new(), models::Form { tied: true, ..PLAIN });
        fs::remove_file(at(name).join("model.safetensors")).unwrap();
        let tensors = with_tokens(10, None, seed);
        let file = torch_file_with(&tensors, Some(("lm_head.weight", "model.embed_tokens.weight")));
        fs::write(at(name).join("pytorch_model.bin"), file).unwrap();
    }
    let config =
        format!("{HALVES}models: [{{model: {}}}, {{model: {}}}]\n", at("a").display(), at("b").display());
    models::run(dir.path(), &config, "out", RUN).unwrap();
    let names: Vec<String> = models::read(&at("out")).into_keys().collect();
    assert_eq!(names, ["model.embed_tokens.weight", "model.layers.0.w"]);
    let merged: Value = serde_json::from_slice(&fs::read(at("out/config.json")).unwrap()).unwrap();
    assert_eq!(merged["tie_word_embeddings"], true);
    // Who has read the embedding has read the head.
    let shown = command::plan(dir.path(), &config, &[]).succeeded().stdout;
    assert!(!shown.contains("left out"), "{shown}");
}
