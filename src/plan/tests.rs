//! Plans of checkpoints and configs that want too much: of time, of memory, or of the reader.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;

use super::*;
use crate::checkpoint::OutTensor;
use crate::input::{At, Input};

const CHOICES: Choices =
    Choices { seed: 0, shard_bytes: Some(5_000_000_000), remote: Remote::Offline, ..Choices::USUAL };

/// A folder of checkpoints without data.
struct Models(TempDir);

impl Models {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A checkpoint of empty tensors with these names.
    fn add(&self, model: &str, names: impl IntoIterator<Item = String>) -> &Self {
        self.add_typed(model, names.into_iter().map(|name| (name, "BF16")))
    }

    /// The same, of these types.
    fn add_typed<'a>(&self, model: &str, tensors: impl IntoIterator<Item = (String, &'a str)>) -> &Self {
        let folder = self.0.path().join(model);
        let entry = |(name, dtype)| (name, json!({ "dtype": dtype, "shape": [0], "data_offsets": [0, 0] }));
        let header = Json::Object(tensors.into_iter().map(entry).collect::<Map<_, _>>()).to_string();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
        self
    }

    /// A checkpoint of one tensor, with this config.json.
    fn add_config(&self, model: &str, config: &Json) -> &Self {
        self.add(model, ["w".to_string()]);
        fs::write(self.0.path().join(model).join("config.json"), config.to_string()).unwrap();
        self
    }

    /// A plan, with `DIR` for the folder in the config and in what comes back.
    fn plan(&self, config: &str) -> Result<Plan> {
        self.plan_as(config, &CHOICES)
    }

    fn plan_as(&self, config: &str, choices: &Choices) -> Result<Plan> {
        let folder = self.0.path().to_str().unwrap();
        let plan = Config::parse("c.yaml", &config.replace("DIR", folder))
            .and_then(|config| crate::prepare_config(config, choices).map(|prepared| prepared.plan));
        let here = |text: &str| text.replace(folder, "DIR");
        let one = |e: Error| Error { message: here(&e.message), hint: e.hint.as_deref().map(here), ..e };
        let error = |e: Error| Error::all(e.one_by_one().into_iter().map(one).collect());
        let mut plan = plan.map_err(error)?;
        plan.notes.iter_mut().for_each(|note| *note = here(note));
        plan.warnings = plan.warnings.into_iter().map(error).collect();
        plan.left_out.iter_mut().for_each(|left| left.model = here(&left.model));
        Ok(plan)
    }

    fn refused(&self, config: &str) -> Error {
        self.plan(config).expect_err(config)
    }
}

fn names(numbers: std::ops::Range<usize>, name: impl Fn(usize) -> String) -> Vec<String> {
    numbers.map(name).collect()
}

fn text(numbers: std::ops::Range<usize>, part: impl Fn(usize) -> String) -> String {
    names(numbers, part).concat()
}

fn messages(warnings: &[Error]) -> Vec<&str> {
    warnings.iter().map(|warning| warning.message.as_str()).collect()
}

/// The processor time of this thread, which other tests do not lengthen.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What is linear takes a tenth of this, and what is quadratic several times as long.
#[track_caller]
fn at_once<T>(work: impl FnOnce() -> T) -> T {
    let begun = processor_time();
    let result = work();
    let took = processor_time().saturating_sub(begun);
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    result
}

const LINEAR: &str =
    "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n";

#[test]
fn heads_find_the_embedding_that_stands_in_for_them_once() {
    let models = Models::new();
    let embedding = ["model.embed_tokens.weight".to_string()];
    let (heads, others) =
        (names(0..30_000, |i| format!("x.{i}.lm_head.weight")), names(0..30_000, |i| format!("x.{i}.w")));
    models.add("a", [&embedding, &heads[..], &others].concat()).add("b", [&embedding, &others[..]].concat());
    let plan = at_once(|| models.plan(LINEAR)).unwrap();
    assert_eq!(plan.tensors.len(), 60_001);
    let stands_in = |tensor: &&Tensor| {
        let Action::Merge(merge) = &tensor.action else { return false };
        matches!(plan.inputs[merge.inputs[1]], Input::Stored(At { tensor: 0, .. }))
    };
    assert_eq!(plan.tensors.iter().filter(stands_in).count(), 30_001);
}

/// Neither a number in a name nor a range in a config is a number of things to go through.
#[test]
fn layers_that_hold_nothing_cost_nothing() {
    let models = Models::new();
    models.add("a", names(0..2, |i| format!("a.{}.w", [0, names::LAYERS_MAX / 2 - 1][i])));
    let slices = |count| {
        format!("merge_method: passthrough\nslices:\n{}", "- sources: [{model: DIR/a}]\n".repeat(count))
    };
    let plan = at_once(|| models.plan(&slices(2))).unwrap();
    let last = format!("a.{}.w", names::LAYERS_MAX - 1);
    assert_eq!(plan.tensors.iter().map(|t| &*t.name).collect::<Vec<_>>()[1..].last(), Some(&&*last));
    assert_eq!(plan.config_edits.counts[0].to, names::LAYERS_MAX);
    let error = at_once(|| models.refused(&slices(20_000)));
    assert_eq!(error.message, "the slices have more than 1048576 layers together");
}

#[test]
fn a_list_for_every_layer_that_no_longer_fits_is_reported_once() {
    let models = Models::new();
    models.add("a", names(0..2, |i| format!("model.layers.{i}.w")));
    let config = json!({"num_hidden_layers": 2, "layer_types": ["full", "sliding"]});
    fs::write(models.0.path().join("a/config.json"), config.to_string()).unwrap();
    let slices =
        "merge_method: passthrough\nslices:\n".to_owned() + &"- sources: [{model: DIR/a}]\n".repeat(2);
    let warnings = models.plan(&slices).unwrap().warnings;
    let message = "config.json has one entry per layer in layer_types: they stay as in DIR/a";
    assert_eq!(messages(&warnings), [message]);
}

#[test]
fn an_output_has_no_more_tensors_than_an_input_may_have() {
    let models = Models::new();
    models.add("a", names(0..3000, |i| format!("a.0.w{i}")));
    let slices = |count| {
        format!("merge_method: passthrough\nslices:\n{}", "- sources: [{model: DIR/a}]\n".repeat(count))
    };
    assert_eq!(models.plan(&slices(3)).unwrap().tensors.len(), 9000);
    let error = at_once(|| models.refused(&slices(20_000)));
    assert_eq!(error.message, "the output would have more than 262144 tensors");
    let union = Models::new();
    union.add("a", names(0..140_000, |i| format!("a{i}"))).add("b", names(0..140_000, |i| format!("b{i}")));
    assert_eq!(union.refused(LINEAR).message, "the output would have more than 262144 tensors");
}

/// A hole in a file makes a tensor of any size.
#[test]
fn sizes_beyond_any_file_are_refused_and_not_wrapped() {
    let half = OutTensor { name: "t".into(), dtype: Dtype::F32, shape: vec![1 << 30, 1 << 29] };
    assert_eq!(half.bytes(), 1 << 61, "its bits are too many for 64 bits");
    assert_eq!(stored_bytes("t", 1 << 59, Dtype::F32), Ok(1 << 61));
    assert_eq!(stored_bytes("t", 1 << 60, Dtype::F32), Ok(1 << 62));
    let error = stored_bytes("t", 1 << 62, Dtype::F32).unwrap_err();
    let message = "tensor t: it takes 18446744073709551616 bytes as F32, more than any file can hold";
    assert_eq!(error.message, message);
    let tensor = |bytes| Tensor {
        name: "t".into(),
        shape: [].into(),
        dtype: Dtype::U8,
        elements: bytes,
        bytes,
        action: Action::Copy(Copied { holders: vec![], models: Arc::default(), from: None, to: None }),
    };
    check_total(&[tensor(1 << 61), tensor(1 << 61)]).unwrap();
    let many: Vec<Tensor> = (0..20).map(|_| tensor(1 << 61)).collect();
    let message = "the output would take 46116860184273879040 bytes, more than any disk can hold";
    assert_eq!(check_total(&many).unwrap_err().message, message);
}

#[test]
fn tensors_that_some_models_lack_are_noted_by_the_models_that_have_them() {
    let models = Models::new();
    let own = |model: &str| names(0..5000, |i| format!("{model}{i}"));
    models.add("a", [own("x"), own("y")].concat()).add("b", own("y")).add("c", own("z"));
    models.add("d", own("z"));
    let config = format!("{LINEAR}base_model: DIR/a\n").replace("}]", "}, {model: DIR/c}, {model: DIR/d}]");
    let plan = models.plan(&config).unwrap();
    let expected = [
        "x0 and 4999 more tensors: copied from DIR/a, because DIR/b, DIR/c, DIR/d has none",
        "y0 and 4999 more tensors: copied from DIR/a, DIR/b, because DIR/c, DIR/d has none",
        "z0 and 4999 more tensors: copied from DIR/c, DIR/d, because DIR/a, DIR/b has none",
    ];
    assert_eq!(plan.notes, expected);
}

/// Every tensor can be in other models than the one before.
#[test]
fn groups_of_tensors_are_few() {
    let models = Models::new();
    for bit in 0..6 {
        models.add(
            &format!("m{bit}"),
            names(1..64, |i| format!("w{i}")).into_iter().filter(|name| {
                let number: usize = name[1..].parse().unwrap();
                number >> bit & 1 == 1
            }),
        );
    }
    models.add("m6", names(1..64, |i| format!("w{i}")));
    let list = text(0..7, |i| format!("- model: DIR/m{i}\n"));
    let config =
        format!("merge_method: linear\nbase_model: DIR/m6\nparameters: {{weight: 1}}\nmodels:\n{list}");
    let notes = models.plan(&config).unwrap().notes;
    assert_eq!(notes.len(), 9, "{notes:?}");
    let rest = "54 more tensors are copied from the models that have them, because others have none";
    assert_eq!(notes[8], rest);
}

#[test]
fn what_is_left_out_of_a_model_has_a_few_lines() {
    let models = Models::new();
    let loose = names(0..9, |i| format!("loose{i}"));
    models.add("a", [names(0..1000, |i| format!("a.{}.w", 2 * i)), loose.clone()].concat());
    models.add("b", names(0..1, |i| format!("a.{i}.w")));
    let slices = |last: &str| {
        format!(
            "merge_method: passthrough\nslices:\n- sources: [{{model: DIR/a, layer_range: [0, 1]}}]\n- sources: [{{model: DIR/{last}}}]\n"
        )
    };
    let left = |plan: Plan| plan.left_out.into_iter().map(|l| (l.what, l.tensors)).collect::<Vec<_>>();
    let layers = "layers 2, 4, 6, 8, 10, 12, 14, 16 and 991 more".to_string();
    let found = left(models.plan(&slices("b")).unwrap());
    assert_eq!(found, [(layers.clone(), 999), ("loose0, loose1, loose2 and 6 more".into(), 9)]);
    models.add("c", [names(0..1000, |i| format!("a.{}.w", 2 * i)), loose[..8].to_vec()].concat());
    let found = left(models.plan(&slices("b").replace("DIR/a", "DIR/c")).unwrap());
    assert_eq!((&found[0].0, found.len()), (&layers, 9));
}

#[test]
fn many_warnings_of_one_kind_are_one() {
    let models = Models::new();
    let all = names(0..6, |i| format!("m{i}"));
    for model in &all {
        models.add(model, ["w".to_string()]);
    }
    let config = |count| {
        let list = text(1..count, |i| {
            format!("- model: DIR/m{i}\n  parameters: {{density: {i}0, lambda: 1, nothing: 1}}\n")
        });
        format!("merge_method: ties\nbase_model: DIR/m0\nparameters: {{weight: 1}}\nmodels:\n{list}")
    };
    let few = models.plan(&config(5)).unwrap().warnings;
    assert_eq!(few.len(), 12, "{few:?}");
    let many = models.plan(&config(6)).unwrap().warnings;
    let ends =
        messages(&many).iter().map(|message| message.ends_with(" (and 4 more like it)")).collect::<Vec<_>>();
    assert_eq!(ends, [true; 3], "{many:?}");
    let message = "c.yaml:6:25: density 10 of DIR/m1 is not from 0 to 1 (and 4 more like it)";
    assert_eq!(many[2].message, message);
    let folders = text(0..7, |i| format!("- model: DIR{}/m0\n", "/.".repeat(i)));
    let config = format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{folders}");
    let same = models.plan(&config).unwrap().warnings;
    assert_eq!(messages(&same), ["DIR/m0 and DIR/./m0 are the same folder (and 5 more like it)"]);
}

/// A gradient gives a model as many values as it has layers.
#[test]
fn a_senseless_value_is_reported_once_a_model() {
    let models = Models::new();
    models.add("a", names(0..50, |i| format!("a.{i}.w"))).add("b", names(0..50, |i| format!("a.{i}.w")));
    let config = "merge_method: ties\nbase_model: DIR/a\nparameters: {weight: 1, density: [2, 3]}\nmodels: [{model: DIR/b}]";
    let warnings = models.plan(config).unwrap().warnings;
    assert_eq!(messages(&warnings), ["c.yaml:3:34: density 2 of DIR/b is not from 0 to 1"]);
    let own = config.replace("[{model: DIR/b}]", "\n- model: DIR/b\n  parameters: {density: 7}");
    assert_eq!(
        messages(&models.plan(&own).unwrap().warnings),
        ["c.yaml:6:25: density 7 of DIR/b is not from 0 to 1"]
    );
    let slices = own.replace(
        "models:",
        "slices: [{parameters: {density: 8}, sources: [{model: DIR/a}, {model: DIR/b}]}]#",
    );
    let slices = slices.split('#').next().unwrap();
    assert_eq!(
        messages(&models.plan(slices).unwrap().warnings),
        ["c.yaml:4:33: density 8 of DIR/b is not from 0 to 1"]
    );
}

#[test]
fn a_slip_is_reported_with_what_is_missing_for_it_among_many_unknown_parameters() {
    let models = Models::new();
    models.add("a", names(0..2000, |i| format!("w{i}"))).add("b", names(0..2000, |i| format!("w{i}")));
    let unknown = text(0..20_000, |i| format!("  x{i}: 1\n"));
    let config = LINEAR.replace("parameters: {weight: 1}", &format!("parameters:\n{unknown}  wieght: 1"));
    let error = at_once(|| models.refused(&config));
    let begins = "c.yaml:20004:18: linear needs `weight`, and DIR/a has none";
    assert!(error.message.starts_with(begins), "{error:?}");
    let last = error.one_by_one().pop().and_then(|last| last.hint).unwrap();
    assert!(last.contains("c.yaml:20003:11: linear has no parameter `wieght`"), "{last}");
}

#[test]
fn a_long_gradient_is_read_once_and_not_for_every_tensor() {
    let models = Models::new();
    models
        .add("a", names(0..50_000, |i| format!("a.{i}.w")))
        .add("b", names(0..50_000, |i| format!("a.{i}.w")));
    let gradient =
        |value: &str| LINEAR.replace("weight: 1", &format!("weight: [{}{value}, 1]", "1, ".repeat(90_000)));
    at_once(|| models.plan(&gradient("2"))).unwrap();
    // No layer stands where this value counts alone, or there is none at all.
    let error = at_once(|| models.refused(&gradient("x")));
    assert_eq!(error.message, "c.yaml:2:22: `weight` takes a finite number, not `x`");
}

#[test]
fn filters_beyond_reason_are_refused_and_not_compared_for_minutes() {
    let models = Models::new();
    models
        .add("a", names(0..50_000, |i| format!("a.{i}.w")))
        .add("b", names(0..50_000, |i| format!("a.{i}.w")));
    let filters = |count| {
        let filters = text(0..count, |i| format!("{{filter: never{i}, value: 2}}, "));
        LINEAR.replace("weight: 1", &format!("weight: [{filters}{{value: 1}}]"))
    };
    at_once(|| models.plan(&filters(100))).unwrap();
    let error = at_once(|| models.refused(&filters(20_000)));
    assert_eq!(error.message, "c.yaml:2:22: `weight` and others have too many filters for so many tensors");
}

#[test]
fn what_all_models_share_is_asked_for_where_it_is_read() {
    let models = Models::new();
    models.add("a", names(0..1, |_| "a.0.w".into())).add("b", names(0..1, |_| "a.0.w".into()));
    let config = "merge_method: slerp\nbase_model: DIR/a\nmodels: [{model: DIR/b, parameters: {t: 0.5}}]\n";
    let error = models.refused(config);
    assert!(error.message.contains("slerp needs `t`"), "{error}");
    let hint = "c.yaml:3:53: move `t` out to the `parameters` of the whole config: all models share it";
    assert_eq!(error.hint.unwrap(), hint);
    let nowhere = models.refused(&config.replace("t: 0.5", "u: 0.5"));
    assert_eq!(nowhere.hint.unwrap(), "add `parameters: {t: …}` to the whole config: all models share it");
}

#[test]
fn configs_that_differ_from_the_one_that_the_output_gets_are_reported_with_keys_and_values() {
    let models = Models::new();
    let config = |changes: Json| {
        let mut config = json!({
            "model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 10000.0,
            "rope_scaling": null, "vocab_size": 32000, "tie_word_embeddings": false, "max_position_embeddings": 4096,
        });
        let all = config.as_object_mut().unwrap();
        all.extend(changes.as_object().unwrap().clone());
        all.retain(|_, value| value != "absent");
        config
    };
    let same = [
        json!({ "rope_theta": 10000, "max_position_embeddings": 8192, "transformers_version": "4.1" }),
        json!({ "rope_theta": "absent", "rope_scaling": "absent", "rope_parameters": { "rope_theta": 1e4, "rope_type": "default" } }),
        json!({ "vocab_size": "absent", "tie_word_embeddings": "absent", "text_config": { "vocab_size": 32000 } }),
    ];
    let yarn = json!({ "type": "yarn", "factor": 4.0 });
    let other = [
        json!({ "rope_theta": 5e5, "rope_scaling": yarn, "num_attention_heads": 64 }),
        json!({ "rope_theta": "absent", "rope_scaling": "absent", "num_attention_heads": 64,
                "rope_parameters": { "rope_theta": 500_000, "rope_type": "yarn", "factor": 4 } }),
        json!({ "model_type": "mistral", "tie_word_embeddings": true, "quantization_config": { "quant_method": "gptq", "bits": 4 } }),
    ];
    models.add_config("donor", &config(json!({})));
    for (i, changes) in same.iter().chain(&other).enumerate() {
        models.add_config(&format!("m{i}"), &config(changes.clone()));
    }
    let merged = |numbers: std::ops::Range<usize>| {
        let list = text(numbers, |i| format!("- model: DIR/m{i}\n"));
        let config = format!(
            "merge_method: linear\nbase_model: DIR/donor\nparameters: {{weight: 1}}\nmodels:\n{list}"
        );
        models.plan(&config).unwrap().warnings
    };
    assert_eq!(messages(&merged(0..3)), [""; 0]);
    let expected = [
        "config.json of DIR/m3, DIR/m4 differs from that of DIR/donor, which the output gets: num_attention_heads 64 (there 32), \
         rope_theta 500000 (there 10000), rope_scaling {\"factor\":4,\"rope_type\":\"yarn\"} (there none)",
        "config.json of DIR/m5 differs from that of DIR/donor, which the output gets: model_type mistral (there llama), \
         tie_word_embeddings true (there false), quantization_config gptq, 4 bits (there none)",
    ];
    assert_eq!(messages(&merged(0..6)), expected);
}

#[test]
fn many_configs_that_differ_are_few_lines() {
    let models = Models::new();
    for i in 0..40 {
        models
            .add_config(&format!("m{i}"), &json!({ "vocab_size": i, "rope_parameters": "x".repeat(10_000) }));
    }
    let list = text(0..40, |i| format!("- model: DIR/m{i}\n"));
    let config = format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{list}");
    let warnings = models.plan(&config).unwrap().warnings;
    let first = "config.json of DIR/m1 differs from that of DIR/m0, which the output gets: vocab_size 1 (there 0) (and 38 more like it)";
    assert_eq!(messages(&warnings), [first]);
}

#[test]
fn other_architectures_are_refused_unless_crimes_are_allowed() {
    let models = Models::new();
    let of = |architecture: &str| json!({ "architectures": [architecture] });
    models.add_config("a", &of("LlamaForCausalLM")).add_config("b", &of("MistralForCausalLM"));
    models.add_config("c", &of("LlamaForCausalLM")).add_config("d", &json!({}));
    let config = LINEAR.replace("}]", "}, {model: DIR/c}, {model: DIR/d}]");
    let error = models.refused(&config);
    let message = "the models have different architectures: LlamaForCausalLM in DIR/a, DIR/c; MistralForCausalLM in DIR/b";
    assert_eq!(error.message, message);
    assert!(error.hint.unwrap().contains("--allow-crimes"));
    let allowed = models.plan_as(&config, &Choices { allow_crimes: true, ..CHOICES }).unwrap();
    assert_eq!(messages(&allowed.warnings), [message]);
    models.plan(&config.replace("DIR/b", "DIR/c/.")).unwrap();
}

#[test]
fn quantised_weights_are_called_by_their_method() {
    let models = Models::new();
    models.add_typed(
        "a",
        [("w.qweight".to_string(), "I32"), ("w.scales".into(), "F16"), ("ids".into(), "I64")],
    );
    models.add_typed(
        "b",
        [("w.qweight".to_string(), "I32"), ("w.scales".into(), "F16"), ("ids".into(), "I64")],
    );
    let quantised = |quantisation: Json| {
        let config = json!({ "quantization_config": quantisation }).to_string();
        ["a", "b"]
            .iter()
            .for_each(|model| fs::write(models.0.path().join(model).join("config.json"), &config).unwrap());
    };
    for (config, reported) in [
        (json!({ "quant_method": "gptq", "bits": 4 }), "gptq, 4 bits"),
        (json!({ "quant_method": "awq", "w_bit": 4 }), "awq, 4 bits"),
        (json!({ "quant_method": "bitsandbytes", "load_in_8bit": true }), "bitsandbytes, 8 bits"),
        (json!({ "quant_method": "fp8" }), "fp8"),
        (json!({}), "quantization_config"),
    ] {
        quantised(config);
        let error = models.refused(LINEAR);
        let of = |model: &str| {
            format!("DIR/{model} is quantised ({reported}), and quantised weights cannot be merged")
        };
        assert_eq!(error.to_string(), format!("{}\n{}", of("a"), of("b")));
        let hint = error.one_by_one().pop().unwrap().hint.unwrap();
        assert!(hint.contains("the model that it was made from"));
        let scaled = "merge_method: passthrough\nparameters: {scale: 2}\nmodels: [{model: DIR/a}]\n";
        assert_eq!(models.refused(scaled).message, of("a"));
        models.plan("merge_method: passthrough\nmodels: [{model: DIR/a}]\n").unwrap();
    }
    // A config that says so of weights that are not.
    for model in ["a", "b"] {
        fs::remove_dir_all(models.0.path().join(model)).unwrap();
        models.add_typed(model, [("w".to_string(), "BF16"), ("ids".into(), "I64")]);
    }
    quantised(json!({ "quant_method": "fp8" }));
    models.plan(LINEAR).unwrap();
}

#[test]
fn types_that_cannot_be_merged_have_a_hint_of_their_own() {
    let models = Models::new();
    models.add("a", ["w".to_string()]);
    for dtype in ["F64", "F8_E4M3FNUZ", "F8_E8M0", "I8", "I64"] {
        models.add_typed(dtype, [("w".to_string(), dtype)]);
    }
    for (one, other, message, hint) in [
        ("F64", "I64", "the models store it as F64, I64", "integers are copied, never merged"),
        (
            "F8_E4M3FNUZ",
            "a",
            "DIR/F8_E4M3FNUZ stores it as F8_E4M3FNUZ, which cannot be merged",
            "to bfloat16 first, with the scales",
        ),
        (
            "a",
            "F8_E8M0",
            "DIR/F8_E8M0 stores it as F8_E8M0, which cannot be merged",
            "to bfloat16 first, with the scales",
        ),
        ("a", "I8", "the models store it as BF16, I8", "quantised weights have to be converted"),
        ("I64", "I8", "the models store it as I64, I8", "the type must be the same in all models"),
    ] {
        let error = models.refused(
            &LINEAR.replace("DIR/a", &format!("DIR/{one}")).replace("DIR/b", &format!("DIR/{other}")),
        );
        assert_eq!(error.message, format!("tensor w: {message}"));
        assert!(error.hint.as_ref().unwrap().contains(hint), "{error:?}");
    }
}

#[test]
fn values_without_effect_are_warned_of() {
    let models = Models::new();
    models.add("a", ["model.layers.0.mlp.weight", "model.norm.weight"].map(String::from));
    models.add("b", ["model.layers.0.mlp.weight", "model.norm.weight"].map(String::from));
    let list = "models: [{model: DIR/a}, {model: DIR/b}]\n";
    let warned = |config: &str| {
        let plan = models.plan(&format!("{config}\n{list}")).unwrap();
        let warning = |warning: &Error| {
            format!("{} -> {}", warning.message, warning.hint.as_deref().unwrap_or_default())
        };
        plan.warnings.iter().map(warning).collect::<Vec<_>>()
    };
    let filters = "merge_method: linear\nparameters: {weight: [{filter: MPL, value: 1}, {filter: mlp, value: 1}, \
                   {filter: lm_head, value: 1}, {filter: '*', value: 1}], bogus: [{filter: none, value: 1}]}";
    let [bogus, filter] = &warned(filters)[..] else { panic!("two warnings: {:?}", warned(filters)) };
    assert!(bogus.contains("no parameter `bogus`"));
    assert_eq!(
        filter,
        "c.yaml:2:22: the filter \"MPL\" fits no tensor, and changes nothing -> did you mean `mlp`?"
    );
    let far = "merge_method: linear\nparameters: {weight: [{filter: self_attention, value: 2}, {value: 1}]}";
    assert!(
        warned(far)[0]
            .ends_with("-> a filter is a part of tensors' names, such as `self_attn` or `layers.3.`")
    );
    let decay = "merge_method: average\nparameters: {decay: 0.9}";
    let says = "c.yaml:2:21: `decay` has no effect: the weights are not exponential -> add `weights: exponential` to \
                `parameters`";
    assert_eq!(warned(decay), [says]);
    assert_eq!(warned("merge_method: average\nparameters: {decay: 0.9, weights: exponential}"), [""; 0]);
    let gamma = "merge_method: breadcrumbs\nbase_model: DIR/a\nparameters: {weight: 1, gamma: 0.1}";
    let says = "c.yaml:3:32: `gamma` has no effect: density 1 keeps all elements -> give a `density` below 1, such as 0.9";
    assert_eq!(warned(gamma), [says]);
    assert_eq!(warned(&gamma.replace("0.1", "0.1, density: 0.9")), [""; 0]);
    assert_eq!(warned(&gamma.replace("0.1", "0")), [""; 0]);
}

#[test]
fn wrong_values_are_reported_together() {
    let models = Models::new();
    models.add("a", ["w".to_string()]);
    models.add("b", ["w".to_string()]);
    let config = "merge_method: ties\nbase_model: DIR/a\nparameters: {lambda: .inf, normalize: maybe}\nmodels:\n\
                  - model: DIR/b\n  weight: 1\n  parameters: {density: 0.5}\n";
    let problems: Vec<Error> = models.plan(config).unwrap_err().one_by_one();
    for begins in ["c.yaml:3:22: `lambda` takes", "c.yaml:3:39: `normalize` takes"] {
        assert!(problems.iter().any(|problem| problem.message.starts_with(begins)), "{begins}: {problems:?}");
    }
    // What stands beside the model is where the missing value was meant to be.
    let missing = problems.iter().find(|problem| problem.message.contains("needs `weight`")).unwrap();
    assert_eq!(missing.hint.as_deref(), Some("c.yaml:6:3: move `weight` under `parameters:`"));
}
