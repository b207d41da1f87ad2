//! Plans of checkpoints and configs that want too much: of time, of memory, or of the reader.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value as Json, json};
use tempfile::TempDir;

use super::*;
use crate::checkpoint::{OutTensor, locate};

const CHOICES: Choices = Choices { seed: 0, shard_bytes: 5_000_000_000 };

/// A folder of checkpoints without data.
struct Models(TempDir);

impl Models {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A checkpoint of empty tensors with these names.
    fn add(&self, model: &str, names: impl IntoIterator<Item = String>) -> &Self {
        let folder = self.0.path().join(model);
        let entry = |name| (name, json!({ "dtype": "BF16", "shape": [0], "data_offsets": [0, 0] }));
        let header = Json::Object(names.into_iter().map(entry).collect::<Map<_, _>>()).to_string();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        fs::write(folder.join("model.safetensors"), bytes).unwrap();
        self
    }

    /// A plan, with `DIR` for the folder in the config and in what comes back.
    fn plan(&self, config: &str) -> Result<Plan> {
        let folder = self.0.path().to_str().unwrap();
        let plan = Config::parse("c.yaml", &config.replace("DIR", folder)).and_then(|config| {
            check_models(&config)?;
            let open = |model: Located<ModelRef>| {
                Source::open(&model.value.to_string(), &locate(&model.value.path, None)?)
            };
            let sources = references(&config).into_iter().map(open).collect::<Result<Vec<_>>>()?;
            Plan::new(&config, &sources, &CHOICES)
        });
        let here = |text: &str| text.replace(folder, "DIR");
        let error =
            |e: Error| Error { kind: e.kind, message: here(&e.message), hint: e.hint.as_deref().map(here) };
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
    let stands_in = |tensor: &&Tensor| tensor.input(1).tensor == 0;
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
    assert_eq!(plan.tensors.iter().map(|t| &t.name).collect::<Vec<_>>()[1..].last(), Some(&&last));
    assert_eq!(plan.config_edits.layers, Some(names::LAYERS_MAX));
    let error = at_once(|| models.refused(&slices(20_000)));
    assert_eq!(error.message, "the slices have more than 1048576 layers together");
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
        shape: vec![],
        dtype: Dtype::U8,
        elements: bytes,
        bytes,
        action: Action::Copy(Copy { holders: vec![], from: None, to: None }),
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
            format!("- {{model: DIR/m{i}, parameters: {{density: {i}0, lambda: 1, nothing: 1}}}}\n")
        });
        format!("merge_method: ties\nbase_model: DIR/m0\nparameters: {{weight: 1}}\nmodels:\n{list}")
    };
    let few = models.plan(&config(5)).unwrap().warnings;
    assert_eq!(few.len(), 12, "{few:?}");
    let many = models.plan(&config(6)).unwrap().warnings;
    let ends =
        messages(&many).iter().map(|message| message.ends_with(" (and 4 more like it)")).collect::<Vec<_>>();
    assert_eq!(ends, [true; 3], "{many:?}");
    assert_eq!(many[2].message, "c.yaml: density 10 of DIR/m1 is not from 0 to 1 (and 4 more like it)");
    let folders = text(0..7, |i| format!("- model: DIR{}/m0\n", "/.".repeat(i)));
    let config = format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n{folders}");
    let same = models.plan(&config).unwrap().warnings;
    assert_eq!(messages(&same), ["DIR/m0 and DIR/./m0 are the same folder (and 5 more like it)"]);
}

/// A gradient gives a model as many values as it has layers.
#[test]
fn a_senseless_value_is_told_once_a_model() {
    let models = Models::new();
    models.add("a", names(0..50, |i| format!("a.{i}.w"))).add("b", names(0..50, |i| format!("a.{i}.w")));
    let config = "merge_method: ties\nbase_model: DIR/a\nparameters: {weight: 1, density: [2, 3]}\nmodels: [{model: DIR/b}]";
    let warnings = models.plan(config).unwrap().warnings;
    assert_eq!(messages(&warnings), ["c.yaml: density 2 of DIR/b is not from 0 to 1"]);
}

#[test]
fn a_slip_is_told_with_what_is_missing_for_it_among_many_unknown_parameters() {
    let models = Models::new();
    models.add("a", names(0..2000, |i| format!("w{i}"))).add("b", names(0..2000, |i| format!("w{i}")));
    let unknown = text(0..20_000, |i| format!("  x{i}: 1\n"));
    let config = LINEAR.replace("parameters: {weight: 1}", &format!("parameters:\n{unknown}  wieght: 1"));
    let error = at_once(|| models.refused(&config));
    let begins = "c.yaml:1:15: linear needs `weight`, and DIR/a has none";
    assert!(error.message.starts_with(begins), "{error:?}");
    assert!(error.hint.unwrap().contains("c.yaml:20003:11: linear has no parameter `wieght`"));
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
    assert_eq!(error.message, "c.yaml:2:22: `weight` takes a finite number");
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
    assert_eq!(error.hint.unwrap(), "add `parameters: {t: …}` to the whole config: all models share it");
}
