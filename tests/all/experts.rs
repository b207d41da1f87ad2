//! Experts in one layout: models that store theirs differently merge as if all were stored as the donor's are.

use std::path::Path;

use safetensors::Dtype;

use crate::models::{self, PLAIN, RUN, Stored, Tensors, stored, tuned, values, weights};

const LAYERS: usize = 2;
const EXPERTS: usize = 3;
/// Matrices that end within a tile, as their rows do.
const INNER: usize = 24;
const HIDDEN: usize = 41;

/// How experts are stored, as published checkpoints have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Mixtral,
    Single,
    Fused,
}

const LAYOUTS: [Layout; 3] = [Layout::Mixtral, Layout::Single, Layout::Fused];

/// Of an expert gate, up and down.
type Matrices = [Vec<f32>; 3];

/// The values of a model: of each layer the router, and of each expert gate, up and down.
fn model_values(seed: u64) -> Vec<(Vec<f32>, Vec<Matrices>)> {
    let layer = |layer: u64| {
        let of = |count, place| tuned(&weights(count, 100 * layer + place), seed);
        let expert = |expert: u64| [0, 1, 2].map(|matrix| of(INNER * HIDDEN, 1 + 3 * expert + matrix));
        (of(EXPERTS * HIDDEN, 0), (0..EXPERTS as u64).map(expert).collect())
    };
    (0..LAYERS as u64).map(layer).collect()
}

/// The tensors of a model, in a layout.
fn model(seed: u64, layout: Layout, dtype: Dtype) -> Tensors {
    let mut tensors = Tensors::from([
        ("model.embed_tokens.weight".into(), stored(dtype, &[7, HIDDEN], &weights(7 * HIDDEN, seed))),
        ("model.norm.weight".into(), stored(dtype, &[HIDDEN], &weights(HIDDEN, seed + 1))),
    ]);
    for (layer, (router, experts)) in model_values(seed).into_iter().enumerate() {
        let block = if layout == Layout::Mixtral { "block_sparse_moe" } else { "mlp" };
        let block = format!("model.layers.{layer}.{block}");
        tensors.insert(format!("{block}.gate.weight"), stored(dtype, &[EXPERTS, HIDDEN], &router));
        if layout == Layout::Fused {
            let gate_up: Vec<f32> =
                experts.iter().flat_map(|[gate, up, _]| [&gate[..], up].concat()).collect();
            let down: Vec<f32> = experts.iter().flat_map(|[_, _, down]| down.clone()).collect();
            tensors.insert(
                format!("{block}.experts.gate_up_proj"),
                stored(dtype, &[EXPERTS, 2 * INNER, HIDDEN], &gate_up),
            );
            tensors.insert(
                format!("{block}.experts.down_proj"),
                stored(dtype, &[EXPERTS, HIDDEN, INNER], &down),
            );
            continue;
        }
        let words = if layout == Layout::Mixtral {
            ["w1", "w3", "w2"]
        } else {
            ["gate_proj", "up_proj", "down_proj"]
        };
        for (expert, matrices) in experts.iter().enumerate() {
            for ((word, matrix), shape) in
                words.iter().zip(matrices).zip([[INNER, HIDDEN], [INNER, HIDDEN], [HIDDEN, INNER]])
            {
                tensors
                    .insert(format!("{block}.experts.{expert}.{word}.weight"), stored(dtype, &shape, matrix));
            }
        }
    }
    tensors
}

/// The output of a config in which DIR stands for the folder.
fn merged(folder: &Path, config: &str, out: &str) -> Tensors {
    let config = config.replace("DIR", &folder.display().to_string());
    models::run(folder, &config, out, RUN).unwrap_or_else(|error| panic!("{error}\n{config}"));
    let tensors = models::read(&folder.join(out));
    std::fs::remove_dir_all(folder.join(out)).unwrap();
    tensors
}

#[test]
fn models_in_different_layouts_merge_as_the_donor_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for layout in LAYOUTS {
        for (name, seed) in [("base", 0), ("one", 1), ("two", 2)] {
            models::write(
                &folder.join(format!("{name}-{layout:?}")),
                &model(seed, layout, Dtype::BF16),
                PLAIN,
            );
        }
    }
    let methods = [
        "merge_method: linear\nparameters: {weight: 0.7}\nmodels:\n- {model: DIR/one, parameters: {weight: 0.3}}\n- {model: DIR/two}",
        "merge_method: ties\nparameters: {density: 0.4, weight: 1}\nmodels: [{model: DIR/one}, {model: DIR/two}]",
        "merge_method: dare_linear\nparameters: {density: 0.4, weight: 1}\nmodels: [{model: DIR/one}, {model: DIR/two}]",
        "merge_method: passthrough\nslices:\n- sources: [{model: DIR/base, layer_range: [0, 2]}]\n- sources: [{model: DIR/two, layer_range: [1, 2]}]",
    ];
    for donor in LAYOUTS {
        for other in LAYOUTS.into_iter().filter(|other| *other != donor) {
            for method in methods {
                let config = |of_two: Layout| {
                    let config = format!("{method}\nbase_model: DIR/base\n")
                        .replace("DIR/base", &format!("DIR/base-{donor:?}"));
                    config
                        .replace("DIR/one", &format!("DIR/one-{donor:?}"))
                        .replace("DIR/two", &format!("DIR/two-{of_two:?}"))
                };
                let (plain, mixed) =
                    (merged(folder, &config(donor), "plain"), merged(folder, &config(other), "mixed"));
                assert!(plain == mixed, "{donor:?} and {other:?} by\n{method}");
            }
        }
    }
}

#[test]
fn layouts_that_differ_are_noted_and_equal_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    models::write(&folder.join("single"), &model(0, Layout::Single, Dtype::BF16), PLAIN);
    models::write(&folder.join("mixtral"), &model(1, Layout::Mixtral, Dtype::BF16), PLAIN);
    models::write(&folder.join("fused"), &model(2, Layout::Fused, Dtype::BF16), PLAIN);
    let notes = |models: [&str; 2]| {
        let [one, other] = models.map(|model| format!("{{model: {}/{model}}}", folder.display()));
        let config = format!("merge_method: linear\nmodels: [{one}, {other}]\nparameters: {{weight: 1}}\n");
        let file = folder.join("c.yml");
        std::fs::write(&file, config).unwrap();
        let choices =
            mergeforge::plan::Choices { seed: 0, shard_bytes: None, ..mergeforge::plan::Choices::USUAL };
        let plan = mergeforge::prepare(&file, &choices).unwrap().plan;
        let dir = format!("{}/", folder.display());
        plan.notes.iter().map(|note| note.replace(&dir, "")).collect::<Vec<_>>()
    };
    assert_eq!(notes(["single", "fused"]).len(), 1);
    assert_eq!(
        notes(["fused", "mixtral"]),
        [
            "mixtral stores its experts one by one (`block_sparse_moe.experts.0.w1`): they are read as fused has them, fused \
             (`mlp.experts.gate_up_proj`)"
        ]
    );
    models::write(&folder.join("alike"), &model(3, Layout::Single, Dtype::BF16), PLAIN);
    assert_eq!(notes(["single", "alike"]), [""; 0]);
}

/// Values that are wider than the other experts' are not narrowed on the way.
#[test]
fn experts_of_several_types_become_the_wider_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    models::write(&folder.join("base"), &model(0, Layout::Fused, Dtype::BF16), PLAIN);
    let mut mixed = model(1, Layout::Single, Dtype::BF16);
    let wide = "model.layers.1.mlp.experts.2.up_proj.weight";
    mixed.insert(wide.into(), stored(Dtype::F32, &[INNER, HIDDEN], &model_values(1)[1].1[2][1]));
    models::write(&folder.join("mixed"), &mixed, PLAIN);
    let config = "merge_method: passthrough\nbase_model: DIR/base\nslices: [{sources: [{model: DIR/mixed, layer_range: [0, 2]}]}]";
    let out = merged(folder, config, "out");
    let [first, second] = [0, 1].map(|layer| &out[&format!("model.layers.{layer}.mlp.experts.gate_up_proj")]);
    assert_eq!((first.dtype, second.dtype), (Dtype::BF16, Dtype::F32));
    let from = (2 * 2 + 1) * INNER * HIDDEN;
    assert_eq!(values(second)[from..from + INNER * HIDDEN], model_values(1)[1].1[2][1]);
    let first_expert = values(&mixed["model.layers.1.mlp.experts.0.gate_proj.weight"]);
    assert_eq!(values(second)[..INNER * HIDDEN], first_expert);
}

#[test]
fn experts_that_fit_no_layout_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let refused = |base: &Tensors, other: &Tensors| {
        models::write(&folder.join("base"), base, PLAIN);
        models::write(&folder.join("other"), other, PLAIN);
        let dir = folder.display();
        let config = format!(
            "merge_method: linear\nbase_model: {dir}/base\nmodels: [{{model: {dir}/base}}, {{model: {dir}/other}}]\nparameters: {{weight: 1}}\n"
        );
        let error = models::run(folder, &config, "out", RUN).unwrap_err();
        (error.message.replace(&format!("{dir}/"), ""), error.hint.unwrap_or_default())
    };
    let (single, fused) = (model(0, Layout::Single, Dtype::BF16), model(1, Layout::Fused, Dtype::BF16));
    let layer = "model.layers.1.mlp.experts";
    let without = |name: &str| {
        let mut tensors = single.clone();
        tensors.remove(&format!("{layer}.{name}.weight")).unwrap();
        tensors
    };
    let (message, _) = refused(&fused, &without("1.up_proj"));
    assert_eq!(
        message,
        "model.layers.1 of other: its experts do not belong together: expert 1 lacks a matrix"
    );
    let gone = ["0.up_proj", "0.gate_proj", "0.down_proj"];
    let mut first_missing = single.clone();
    gone.iter().for_each(|name| drop(first_missing.remove(&format!("{layer}.{name}.weight"))));
    let (message, _) = refused(&fused, &first_missing);
    assert_eq!(message, "model.layers.1 of other: its experts do not belong together: expert 0 is missing");
    let mut turned = single.clone();
    turned.get_mut(&format!("{layer}.2.down_proj.weight")).unwrap().shape.reverse();
    let (message, _) = refused(&fused, &turned);
    assert!(message.ends_with("expert 2 has matrices of other sizes"), "{message}");
    // As gpt-oss has them: inputs first, gate and up in turns, with biases.
    let mut transposed = fused.clone();
    for tensor in ["gate_up_proj", "down_proj"] {
        transposed.get_mut(&format!("{layer}.{tensor}")).unwrap().shape[1..].reverse();
    }
    let (message, _) = refused(&single, &transposed);
    assert!(
        message.contains("gate_up_proj is [3, 41, 48] and down_proj [3, 24, 41], perhaps transposed"),
        "{message}"
    );
    let mut biased = fused.clone();
    let bias = stored(Dtype::BF16, &[EXPERTS, 2 * INNER], &weights(EXPERTS * 2 * INNER, 9));
    biased.insert(format!("{layer}.gate_up_proj_bias"), bias);
    for (base, other) in [(&single, &biased), (&biased, &single)] {
        let (message, hint) = refused(base, other);
        assert!(message.contains(&format!("tensor {layer}.gate_up_proj_bias of ")), "{message}");
        assert!(hint.contains("gpt-oss"), "{hint}");
    }
    let mut integers = single.clone();
    let codes = Stored { dtype: Dtype::I8, shape: vec![INNER, HIDDEN], bytes: vec![1; INNER * HIDDEN] };
    integers.insert(format!("{layer}.0.up_proj.weight"), codes);
    let (message, _) = refused(&fused, &integers);
    assert!(message.contains("do not belong together: they are stored as BF16 and I8"), "{message}");
}
