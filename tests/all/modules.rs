//! `modules:` — parts of models that are merged by themselves, models that share a part only, and names below another prefix.
//! Nothing of the donor gets lost: each of its tensors is merged, or copied and listed.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::command::{self, merge};
use crate::models::{self, PLAIN, Tensors, stored, values};

const WIDTH: usize = 4;

/// A tensor whose values say whose it is and where it stands.
fn tensor(seed: u64, name: &str, shape: &[usize]) -> models::Stored {
    let place: u64 = name.bytes().fold(7, |place, byte| (place * 31 + u64::from(byte)) % 1009);
    let value = |i: usize| ((place + 3 * i as u64 + 101 * seed) % 257) as f32 / 16.0;
    stored(Dtype::F32, shape, &(0..shape.iter().product()).map(value).collect::<Vec<_>>())
}

fn tensors<'n>(seed: u64, names: impl IntoIterator<Item = &'n str>) -> Tensors {
    let shape = |name: &str| match name {
        _ if name.contains("embed_tokens") || name.contains("lm_head") || name == "shared.weight" => {
            vec![9, WIDTH]
        }
        // The tower is of another width.
        _ if name.contains("vis") && !name.contains("merger") => vec![3, WIDTH],
        _ if name.ends_with("norm.weight") => vec![WIDTH],
        _ => vec![WIDTH, WIDTH],
    };
    names.into_iter().map(|name| (name.to_owned(), tensor(seed, name, &shape(name)))).collect()
}

/// The language model's tensors below a prefix, with so many layers.
fn language(prefix: &str, layers: usize) -> Vec<String> {
    let layers =
        (0..layers).flat_map(|i| ["attn.q.weight", "mlp.up.weight"].map(|rest| format!("layers.{i}.{rest}")));
    let all = ["embed_tokens.weight".to_owned()].into_iter().chain(layers).chain(["norm.weight".to_owned()]);
    all.map(|name| format!("{prefix}{name}")).collect()
}

fn tower(prefix: &str) -> Vec<String> {
    [
        "blocks.0.qkv.weight",
        "blocks.1.qkv.weight",
        "patch_embed.weight",
        "merger.mlp.0.weight",
        "merger.norm.weight",
    ]
    .map(|name| format!("{prefix}{name}"))
    .into()
}

fn vlm(seed: u64) -> Tensors {
    let names = [language("model.language_model.", 3), tower("model.visual."), vec!["lm_head.weight".into()]]
        .concat();
    tensors(seed, names.iter().map(String::as_str))
}

fn llm(seed: u64) -> Tensors {
    let names = [language("model.", 3), vec!["lm_head.weight".into()]].concat();
    tensors(seed, names.iter().map(String::as_str))
}

fn encoder_decoder(seed: u64) -> Tensors {
    let half = |half: &str, layers: usize| {
        let layers = (0..layers).map(|i| format!("{half}.block.{i}.layer.0.q.weight"));
        layers.chain([format!("{half}.final_layer_norm.weight")]).collect::<Vec<_>>()
    };
    let names = [half("encoder", 2), half("decoder", 3), vec!["shared.weight".into()]].concat();
    tensors(seed, names.iter().map(String::as_str))
}

struct Case {
    folder: TempDir,
}

impl Case {
    fn of(models: &[(&str, &str, Tensors)]) -> Self {
        let case = Self { folder: tempfile::tempdir().unwrap() };
        for (name, architecture, tensors) in models {
            models::write(&case.at(name), tensors, PLAIN);
            let config = json!({
                "architectures": [architecture], "model_type": architecture.to_lowercase(), "torch_dtype": "float32",
                "tie_word_embeddings": false, "encoder_layers": 2, "decoder_layers": 3,
                "text_config": {"num_hidden_layers": 3, "layer_types": ["full", "full", "full"]},
                "vision_config": {"depth": 2},
            });
            fs::write(case.at(name).join("config.json"), config.to_string()).unwrap();
        }
        case
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A config in which models stand as `$a`.
    fn config(&self, text: &str) -> String {
        text.replace('$', &format!("{}/", self.folder.path().display()))
    }

    fn merged(&self, config: &str) -> Tensors {
        let _ = fs::remove_dir_all(self.at("out"));
        merge(self.folder.path(), &self.config(config), &["-q"]).succeeded();
        models::read(&self.at("out"))
    }

    fn plan(&self, config: &str) -> Json {
        let plan = command::plan(self.folder.path(), &self.config(config), &["--json"]).succeeded();
        serde_json::from_str(&plan.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, config: &str, says: &[&str]) {
        command::plan(self.folder.path(), &self.config(config), &[]).failed(2, says);
    }

    fn out_config(&self) -> Json {
        serde_json::from_slice(&fs::read(self.at("out/config.json")).unwrap()).unwrap()
    }
}

/// What a weighted average of two tensors is.
fn average(a: &models::Stored, b: &models::Stored, share: f32) -> Vec<f32> {
    values(a).iter().zip(values(b)).map(|(a, b)| (1.0 - share) * a + share * b).collect()
}

#[track_caller]
fn assert_near(name: &str, merged: &models::Stored, expected: &[f32]) {
    let merged = values(merged);
    let far = merged.iter().zip(expected).position(|(a, b)| (a - b).abs() > 1e-5);
    assert!(merged.len() == expected.len() && far.is_none(), "{name}: {merged:?}, not {expected:?}");
}

fn names(tensors: &Tensors) -> BTreeSet<&str> {
    tensors.keys().map(String::as_str).collect()
}

fn vlms() -> Case {
    Case::of(&[("a", "ToyVL", vlm(1)), ("b", "ToyVL", vlm(2)), ("c", "ToyLM", llm(3))])
}

#[test]
fn each_module_has_parameters_of_its_own_and_the_rest_is_copied() {
    let case = vlms();
    let config = "merge_method: linear\nbase_model: $a\nparameters: {weight: 1}\nmodules:\n  \
                  text_decoder:\n    models: [{model: $a}, {model: $b, parameters: {weight: 3}}]\n  \
                  multi_modal_projector:\n    parameters: {weight: [1, 5]}\n    models: [{model: $a, parameters: {weight: 1}}, {model: $b}]\n";
    let (a, b, out) = (vlm(1), vlm(2), case.merged(config));
    assert_eq!(names(&out), names(&a));
    for (name, merged) in &out {
        let expected = match name {
            // Loose tensors stand at 0, and the only layer of a stack at 1.
            _ if name.contains("merger.mlp") => average(&a[name], &b[name], 5.0 / 6.0),
            _ if name.contains("merger") => average(&a[name], &b[name], 0.5),
            _ if name.contains("visual") => values(&a[name]),
            _ => average(&a[name], &b[name], 0.75),
        };
        assert_near(name, merged, &expected);
    }
    let plan = case.plan(config);
    let notes: Vec<&str> = plan["notes"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
    let copied = notes.iter().find(|note| note.starts_with("copied from")).unwrap();
    let names = "model.visual.blocks.0.qkv.weight, model.visual.blocks.1.qkv.weight, ";
    assert!(copied.contains(&format!("since no module names it: {names}")), "{copied}");
    // What of the other model is not read is listed as well.
    let left: Vec<&str> =
        plan["left_out"].as_array().unwrap().iter().map(|left| left["what"].as_str().unwrap()).collect();
    assert_eq!(left, ["layers 0–1 of model.visual.blocks", "model.visual.patch_embed.weight"]);
}

#[test]
fn a_method_that_copies_takes_modules_from_different_models() {
    let case = vlms();
    let config = "merge_method: passthrough\nbase_model: $a\nmodules:\n  \
                  vision_tower: {slices: [{sources: [{model: $b}]}]}\n  \
                  model.visual.merger.norm: {models: [{model: $b}]}\n";
    let (a, b, out) = (vlm(1), vlm(2), case.merged(config));
    for (name, merged) in &out {
        let of_b = name.contains("visual") && !name.contains("mlp");
        assert_eq!(merged, if of_b { &b[name] } else { &a[name] }, "{name}");
    }
    assert_eq!(names(&out), names(&a));
}

#[test]
fn layers_are_stacked_within_a_module_and_counted_where_they_belong() {
    let case = vlms();
    let slices = |module: &str| {
        format!(
            "merge_method: passthrough\nbase_model: $a\nmodules:\n  {module}:\n    slices:\n    \
             - sources: [{{model: $a, layer_range: [0, 2]}}]\n    - sources: [{{model: $b, layer_range: [1, 2]}}]\n    \
             - sources: [{{model: $a, layer_range: [1, 2]}}]\n"
        )
    };
    let (a, b) = (vlm(1), vlm(2));
    let out = case.merged(
        &slices("text_decoder")
            .replace("[1, 2]}]\n    - sources: [{model: $a", "[1, 3]}]\n    - sources: [{model: $a"),
    );
    let layer = |i: usize| format!("model.language_model.layers.{i}.attn.q.weight");
    let layers: Vec<_> = (0..5).map(|i| &out[&layer(i)]).collect();
    assert_eq!(layers, [&a[&layer(0)], &a[&layer(1)], &b[&layer(1)], &b[&layer(2)], &a[&layer(1)]]);
    assert!(!out.contains_key(&layer(5)));
    assert!(a.keys().all(|name| out.contains_key(name)), "the tower and the head are there");
    let config = case.out_config();
    let five = ["full"; 5];
    assert_eq!(config["text_config"], json!({"num_hidden_layers": 5, "layer_types": five}));
    assert_eq!((&config["vision_config"]["depth"], &config["encoder_layers"]), (&json!(2), &json!(2)));

    let out = case.merged(&slices("vision_tower"));
    let block = |i: usize| format!("model.visual.blocks.{i}.qkv.weight");
    let blocks: Vec<_> = (0..4).map(|i| &out[&block(i)]).collect();
    assert_eq!(blocks, [&a[&block(0)], &a[&block(1)], &b[&block(1)], &a[&block(1)]]);
    let config = case.out_config();
    assert_eq!(
        (&config["vision_config"]["depth"], &config["text_config"]["num_hidden_layers"]),
        (&json!(4), &json!(3))
    );
}

#[test]
fn encoder_and_decoder_are_modules() {
    let case = Case::of(&[("a", "Toy5", encoder_decoder(1)), ("b", "Toy5", encoder_decoder(2))]);
    let config = "merge_method: passthrough\nbase_model: $a\nmodules:\n  \
                  decoder:\n    slices:\n    - sources: [{model: $b, layer_range: [0, 3]}]\n    \
                  - sources: [{model: $a, layer_range: [2, 3]}]\n  shared: {models: [{model: $b}]}\n";
    let (a, b, out) = (encoder_decoder(1), encoder_decoder(2), case.merged(config));
    for (name, merged) in out.iter().filter(|(name, _)| !name.starts_with("decoder.block.3")) {
        assert_eq!(
            merged,
            if name.starts_with("encoder") || name.contains("final") { &a[name] } else { &b[name] },
            "{name}"
        );
    }
    assert_eq!(out["decoder.block.3.layer.0.q.weight"], a["decoder.block.2.layer.0.q.weight"]);
    let config = case.out_config();
    assert_eq!((&config["encoder_layers"], &config["decoder_layers"]), (&json!(2), &json!(4)));
    // Without modules no layers can be picked: the hint has the way.
    case.refused(
        "merge_method: passthrough\nslices: [{sources: [{model: $a, layer_range: [0, 1]}]}]\n",
        &[
            "one stack of layers",
            "write `modules:`",
            "decoder (decoder.*, 4 tensors), encoder (encoder.*, 3 tensors), shared (shared.*, 1 tensor)",
        ],
    );
}

#[test]
fn a_language_model_is_merged_into_one_of_several_modalities() {
    let case = vlms();
    let config = "merge_method: linear\nbase_model: $a\nmodules:\n  text_decoder:\n    \
                  models: [{model: $a, parameters: {weight: 1}}, {model: $c, parameters: {weight: 1}}]\n";
    let (a, c, out) = (vlm(1), llm(3), case.merged(config));
    assert_eq!(names(&out), names(&a));
    let own_name = |name: &str| name.replace("model.language_model.", "model.");
    for (name, merged) in &out {
        let expected = c.get(&own_name(name)).map_or_else(|| values(&a[name]), |c| average(&a[name], c, 0.5));
        assert_near(name, merged, &expected);
    }
    let notes = case.plan(config)["notes"].to_string();
    assert!(notes.contains("8 tensors are known by the names that they have in the donor"), "{notes}");
    assert!(notes.contains("(model.language_model.layers for model.layers)"), "{notes}");
    // The other way round: the donor's names, and what it has not is left out.
    let reversed = config.replace("base_model: $a", "base_model: $c");
    let out = case.merged(&reversed);
    assert_eq!(names(&out), names(&c));
    let head = "lm_head.weight";
    assert_near(head, &out[head], &average(&a[head], &c[head], 0.5));
    assert!(case.plan(&reversed)["left_out"].to_string().contains("model.visual.blocks"));
}

#[test]
fn models_of_other_architectures_have_to_share_what_is_merged() {
    let mut short = llm(3);
    short.remove("model.norm.weight").unwrap();
    let case = Case::of(&[
        ("a", "ToyVL", vlm(1)),
        ("b", "ToyVL", vlm(2)),
        ("c", "ToyLM", llm(3)),
        ("d", "ToyLM", short),
    ]);
    let models = |module: &str, other: &str| {
        format!(
            "merge_method: linear\nbase_model: $a\nparameters: {{weight: 1}}\nmodules: {{{module}: {{models: [{{model: $a}}, {{model: ${other}}}]}}}}\n"
        )
    };
    case.plan(&models("text_decoder", "c"));
    case.refused(
        &models("text_decoder", "d"),
        &["different architectures: ToyVL", "lacks \"model.language_model.norm.weight\""],
    );
    case.refused(
        &models("vision_tower", "c"),
        &["different architectures", "list models only in modules that they have"],
    );
    let whole = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: $a}, {model: $c}]\n";
    case.refused(
        whole,
        &["different architectures", "under `modules: {text_decoder: {models: …}}`", "--allow-crimes"],
    );
    // A crime, but the names fit.
    command::plan(case.folder.path(), &case.config(whole), &["--allow-crimes"]).succeeded();
}

#[test]
fn names_of_other_versions_mean_the_same_tensors() {
    let older = |name: &str| match name {
        "lm_head.weight" => "language_model.lm_head.weight".to_owned(),
        _ => name
            .replace("model.language_model.", "language_model.model.")
            .replace("model.visual.", "visual_tower.visual."),
    };
    let old: Tensors = vlm(2).into_iter().map(|(name, tensor)| (older(&name), tensor)).collect();
    let case = Case::of(&[("new", "ToyVL", vlm(1)), ("old", "ToyVL", old)]);
    let linear = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: $new}, {model: $old}]\n";
    let (a, b) = (vlm(1), vlm(2));
    for (config, is_old) in [(linear.to_owned(), false), (linear.to_owned() + "base_model: $old\n", true)] {
        let out = case.merged(&config);
        for name in a.keys() {
            let written = if is_old { older(name) } else { name.clone() };
            assert_near(name, &out[&written], &average(&a[name], &b[name], 0.5));
        }
        assert_eq!(out.len(), a.len());
    }
}

#[test]
fn a_head_that_the_donor_has_not_goes_where_it_would_be() {
    let mut tied: Tensors = tensors(1, language("language_model.model.", 2).iter().map(String::as_str));
    tied.extend(tensors(1, tower("vision_tower.").iter().map(String::as_str)));
    let untied = [language("model.", 2), vec!["lm_head.weight".into()]].concat();
    let untied = tensors(2, untied.iter().map(String::as_str));
    let case = Case::of(&[("a", "ToyVL", tied.clone()), ("b", "ToyLM", untied.clone())]);
    let path = case.at("a/config.json");
    fs::write(
        &path,
        fs::read_to_string(&path)
            .unwrap()
            .replace("\"tie_word_embeddings\":false", "\"tie_word_embeddings\":true"),
    )
    .unwrap();
    let out = case.merged(
        "merge_method: linear\nbase_model: $a\nparameters: {weight: 1}\nmodules: {text_decoder: {models: [{model: $a}, {model: $b}]}}\n",
    );
    let head = "language_model.lm_head.weight";
    let expected = average(&tied["language_model.model.embed_tokens.weight"], &untied["lm_head.weight"], 0.5);
    assert_near(head, &out[head], &expected);
    assert_eq!(out.len(), tied.len() + 1);
    assert_eq!(case.out_config()["tie_word_embeddings"], false);
}

#[test]
fn what_is_wrong_with_modules_is_said_where_it_stands() {
    let case = vlms();
    let with = |modules: &str| {
        format!("merge_method: linear\nbase_model: $a\nparameters: {{weight: 1}}\nmodules:\n{modules}")
    };
    let models = "{models: [{model: $a}, {model: $b}]}";
    case.refused(
        &with(&format!("  talker: {models}\n")),
        &[
            "config.yml:5:3: no module `talker`",
            "it has text_decoder (9 tensors), vision_tower (model.visual.*, 3 tensors), multi_modal_projector (",
        ],
    );
    // Every wrong name is reported, and nothing that only follows from them.
    let wrong = with(&format!("  talker: {models}\n  visul: {models}\n  vision_tower: {models}\n"));
    let ended = command::plan(case.folder.path(), &case.config(&wrong.replace("$b", "$c")), &[]);
    assert!(!ended.stderr.contains("different architectures"), "{}", ended.stderr);
    ended.failed(2, &["no module `talker`", "config.yml:6:3: no module `visul`", "did you mean `visual`?"]);
    case.refused(
        &with(&format!("  vision_tower: {models}\n  vision_model: {models}\n")),
        &["config.yml:6:3: the modules `vision_tower` and `vision_model` are about the same tensors"],
    );
    let slices =
        "{slices: [{sources: [{model: $a, layer_range: [0, 1]}, {model: $b, layer_range: [0, 1]}]}]}";
    case.refused(
        &with(&format!("  model.visual: {slices}\n")),
        &["one stack of layers", "a module can be one stack of layers, by its name: ", "model.visual.blocks"],
    );
    let too_few = "merge_method: slerp\nbase_model: $a\nparameters: {t: 0.5}\nmodules:\n  \
                   text_decoder: {models: [{model: $a}, {model: $b}]}\n  vision_tower: {models: [{model: $a}]}\n";
    case.refused(too_few, &["slerp merges exactly 2 models (the base included), not 1"]);
    case.refused(&too_few.replace("base_model: $a\n", ""), &["slerp needs a base_model"]);
}
