//! float64 is read as f32, rounded once, and written with f32's precision; what is copied keeps its bits, or is rounded once.

use std::path::Path;

use mergeforge::stream::Budget;
use safetensors::Dtype;
use serde_json::Value as Json;

use crate::models::{self, PLAIN, RUN, Random, Stored, Tensors, stored, values, weights};

const SHAPES: [(&str, &[usize]); 5] = [
    ("model.embed_tokens.weight", &[31, 67]),
    ("model.layers.0.w.weight", &[41, 253]),
    ("model.layers.1.w.weight", &[130, 1027]),
    ("model.layers.1.b.bias", &[1]),
    ("model.norm.weight", &[1024]),
];

fn wide(shape: &[usize], values: &[f64]) -> Stored {
    assert_eq!(shape.iter().product::<usize>(), values.len());
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Stored { dtype: Dtype::F64, shape: shape.to_vec(), bytes }
}

fn wide_values(tensor: &Stored) -> Vec<f64> {
    match tensor.dtype {
        Dtype::F64 => tensor.bytes.as_chunks().0.iter().map(|raw| f64::from_le_bytes(*raw)).collect(),
        _ => values(tensor).into_iter().map(f64::from).collect(),
    }
}

/// A base and three models tuned from it: of float64, or with `mixed` some tensors of some of bfloat16.
fn checkpoints(mixed: bool) -> Vec<Tensors> {
    let mut random = Random(77);
    let mut models = vec![Tensors::new(); 4];
    for (place, (name, shape)) in SHAPES.iter().enumerate() {
        let base: Vec<f64> =
            weights(shape.iter().product(), 7 + place as u64).iter().map(|w| f64::from(*w)).collect();
        for (model, tensors) in models.iter_mut().enumerate() {
            // Bits that f32 has no room for, in the base too.
            let far = if model == 0 { 1e-6 } else { 0.02 };
            let own: Vec<f64> = base.iter().map(|b| b + far * random.normal()).collect();
            let narrow = mixed && (place + model).is_multiple_of(3);
            let narrowed = || own.iter().map(|value| *value as f32).collect::<Vec<_>>();
            let tensor = if narrow { stored(Dtype::BF16, shape, &narrowed()) } else { wide(shape, &own) };
            tensors.insert((*name).into(), tensor);
        }
    }
    models
}

/// The same, with float32 in place of float64: every element rounded to nearest.
fn rounded(models: &[Tensors]) -> Vec<Tensors> {
    let as_f32 = |tensor: &Stored| match tensor.dtype {
        Dtype::F64 => {
            let values: Vec<f32> = wide_values(tensor).iter().map(|value| *value as f32).collect();
            stored(Dtype::F32, &tensor.shape, &values)
        }
        _ => tensor.clone(),
    };
    models.iter().map(|tensors| tensors.iter().map(|(name, t)| (name.clone(), as_f32(t))).collect()).collect()
}

fn write(folder: &Path, models: &[Tensors], prefix: &str) {
    for (place, tensors) in models.iter().enumerate() {
        models::write(&folder.join(format!("{prefix}{place}")), tensors, PLAIN);
    }
}

/// Ways to merge, of all kinds of sweeps.
const WAYS: [(&str, bool, &str); 9] = [
    ("linear", false, "weight: 0.3"),
    ("average", false, "weights: linear"),
    ("ties", true, "weight: 0.7, density: 0.4"),
    ("dare_ties", true, "weight: 0.7, density: 0.4"),
    ("karcher", false, ""),
    ("model_stock", true, "filter_wise: true"),
    ("multislerp", false, "weight: 0.5"),
    // Those that read inputs made of these.
    ("della", true, "weight: 0.7, density: 0.4"),
    ("sce", true, "select_topk: 0.4"),
];

/// A config over the models of a prefix, 1 to 3 and perhaps the base.
fn config(
    folder: &Path,
    prefix: &str,
    (method, base, parameters): (&str, bool, &str),
    dtype: &str,
) -> String {
    let model = |place: usize| folder.join(format!("{prefix}{place}")).display().to_string();
    let mut config = format!("merge_method: {method}\nparameters: {{{parameters}}}\nmodels:\n");
    (1..4).for_each(|place| config += &format!("- model: {}\n", model(place)));
    if base {
        config += &format!("base_model: {}\n", model(0));
    }
    if dtype.is_empty() { config } else { format!("{config}dtype: {dtype}\n") }
}

fn merged(folder: &Path, config: &str, out: &str) -> Tensors {
    models::run(folder, config, out, RUN).unwrap_or_else(|error| panic!("{config}: {error}"));
    let merged = models::read(&folder.join(out));
    let manifest: Json =
        serde_json::from_slice(&std::fs::read(folder.join(out).join("mergeforge.json")).unwrap()).unwrap();
    for (name, tensor) in &merged {
        assert_eq!(manifest["tensors"][name]["blake3"], blake3::hash(&tensor.bytes).to_hex().as_str());
    }
    merged
}

#[test]
fn merges_of_float64_lie_within_the_bound_of_f64_arithmetic() {
    let folder = tempfile::tempdir().unwrap();
    let models = checkpoints(true);
    write(folder.path(), &models, "m");
    let weights = [0.55, 0.25, 0.35];
    // Half an ulp of a normal value, as a part of it, and half a unit of the least ones.
    let types = [
        ("bfloat16", 2f64.powi(-8), 2f64.powi(-134)),
        ("float16", 2f64.powi(-11), 2f64.powi(-25)),
        ("float32", 2f64.powi(-24), 2f64.powi(-150)),
        ("float64", 0.0, 0.0),
    ];
    for (dtype, half_ulp, least) in types {
        let mut config =
            format!("merge_method: linear\ndtype: {dtype}\nparameters: {{normalize: false}}\nmodels:\n");
        for (place, weight) in (1..4).zip(weights) {
            let model = folder.path().join(format!("m{place}"));
            config += &format!("- {{model: {}, parameters: {{weight: {weight}}}}}\n", model.display());
        }
        for (name, tensor) in merged(folder.path(), &config, dtype) {
            let inputs: Vec<Vec<f64>> = models[1..].iter().map(|model| wide_values(&model[&name])).collect();
            for (i, found) in wide_values(&tensor).into_iter().enumerate() {
                let terms = [0, 1, 2].map(|m| weights[m] * inputs[m][i]);
                let (exact, magnitude) =
                    (terms.iter().sum::<f64>(), terms.iter().map(|term| term.abs()).sum::<f64>());
                // The contract's bound, and a rounding of each input and of each weight.
                let slack = (3.0 + 4.0 + 2.0) * 2f64.powi(-24) * magnitude;
                let bound = slack + (half_ulp * (exact.abs() + slack)).max(least);
                let off = (found - exact).abs();
                assert!(off <= bound, "{dtype} {name} {i}: {found} for {exact}: {off} is more than {bound}");
            }
        }
    }
}

#[test]
fn float64_merges_as_the_same_models_of_float32_do() {
    for mixed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let models = checkpoints(mixed);
        write(folder.path(), &models, "m");
        write(folder.path(), &rounded(&models), "r");
        for (place, way) in WAYS.into_iter().enumerate() {
            let of = |prefix: &str, dtype: &str| {
                let out = format!("{prefix}-{place}-{dtype}-out");
                merged(folder.path(), &config(folder.path(), prefix, way, dtype), &out)
            };
            let expected = of("r", "float32");
            assert!(of("m", "float32") == expected, "{way:?}");
            assert!(of("m", "bfloat16") == of("r", "bfloat16"), "{way:?}");
            // Promoted, where nothing is asked for, to float64: f32 values, widened.
            for wide in [of("m", "float64"), of("m", "")] {
                for (name, tensor) in wide {
                    let widened: Vec<f64> = values(&expected[&name]).iter().map(|v| f64::from(*v)).collect();
                    let narrow = models[1..].iter().all(|model| model[&name].dtype == Dtype::BF16);
                    assert!(!narrow && tensor.dtype == Dtype::F64);
                    assert!(wide_values(&tensor) == widened, "{way:?} {name}");
                }
            }
        }
    }
}

#[test]
fn the_cut_changes_no_byte_of_float64() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &checkpoints(true), "m");
    for (place, way) in WAYS.into_iter().enumerate() {
        let config = config(folder.path(), "m", way, "float64");
        let expected = merged(folder.path(), &config, &format!("out{place}"));
        let cuts = [
            (1, 1 << 30, Some(1)),
            (3, 1 << 30, Some(16)),
            (2, 10 << 20, None),
            (8, 200 << 20, Some(1 << 20)),
        ];
        for (threads, host_bytes, chunk_tiles) in cuts {
            let budget = Budget { threads, host_bytes, device_bytes: 0, chunk_tiles };
            let (out, run) =
                (format!("out{place}-{threads}"), models::Run { budget, shard_bytes: 100_000, ..RUN });
            models::run(folder.path(), &config, &out, run).unwrap();
            assert!(models::read(&folder.path().join(out)) == expected, "{way:?}: {threads}");
        }
    }
}

/// Values whose way through f32 would round twice; NaN with a payload, −0, and what f32 has no room for.
fn odd() -> Vec<f64> {
    // Just above the middle between two values of bfloat16, or of float16: in f32 it would be the middle.
    let above = |bits: i32| 1.0 + 2f64.powi(-bits) + 2f64.powi(-40);
    vec![
        above(8),
        -above(11),
        f64::from_bits(0xfff4_0000_0000_0123),
        -0.0,
        1e300,
        -1e300,
        f64::INFINITY,
        1e-310,
    ]
}

fn copied(folder: &Path, model: &str, dtype: &str) -> (Stored, Json) {
    let (model, out) = (folder.join(model), format!("{model}-{dtype}-copied"));
    let config = format!("merge_method: passthrough\nmodels: [{{model: {}}}]\n", model.display());
    let config = if dtype.is_empty() { config } else { format!("{config}dtype: {dtype}\n") };
    let tensor = merged(folder, &config, &out)["w"].clone();
    let manifest: Json =
        serde_json::from_slice(&std::fs::read(folder.join(out).join("mergeforge.json")).unwrap()).unwrap();
    (tensor, manifest["odd_values"]["w"].clone())
}

#[test]
fn copies_of_float64_keep_their_bits_or_are_rounded_once() {
    let folder = tempfile::tempdir().unwrap();
    let original = wide(&[8], &odd());
    models::write(&folder.path().join("m"), &Tensors::from([("w".into(), original.clone())]), PLAIN);
    for dtype in ["", "float64"] {
        let (tensor, counted) = copied(folder.path(), "m", dtype);
        assert!(tensor == original, "not a bit changes");
        assert_eq!(counted, serde_json::json!({ "nan": 1, "infinite": 1, "overflowed": 0 }));
    }
    for (dtype, bits) in [("bfloat16", 8), ("float16", 11), ("float32", 24)] {
        let (tensor, counted) = copied(folder.path(), "m", dtype);
        let found = values(&tensor);
        let up = |value: f64| {
            let unit = 2f64.powi(1 - bits);
            ((value / unit).round() * unit) as f32
        };
        let once = if dtype == "float32" {
            odd()[..2].iter().map(|v| *v as f32).collect()
        } else {
            odd()[..2].iter().map(|v| up(*v)).collect::<Vec<_>>()
        };
        assert_eq!(found[..2], once, "{dtype}");
        assert!(found[2].is_nan() && found[3].to_bits() == 0, "{dtype}");
        assert_eq!(found[4..], [f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY, 0.0], "{dtype}");
        assert_eq!(counted, serde_json::json!({ "nan": 1, "infinite": 1, "overflowed": 2 }), "{dtype}");
    }
    let halves: Vec<f32> = (0..1 << 16).map(|bits| f32::from_bits(bits << 16)).collect();
    models::write(
        &folder.path().join("halves"),
        &Tensors::from([("w".into(), stored(Dtype::BF16, &[1 << 16], &halves))]),
        PLAIN,
    );
    let (tensor, _) = copied(folder.path(), "halves", "float64");
    let same = |(wide, half): (&f64, &f32)| *wide == f64::from(*half) || (wide.is_nan() && half.is_nan());
    assert!(wide_values(&tensor).iter().zip(&halves).all(same));
}

/// What f32 has no room for is never silent.
#[test]
fn float64_beyond_f32_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = |values: Vec<f64>| vec![Tensors::from([("w".into(), wide(&[8], &values))])];
    write(folder.path(), &tensors(odd()), "a");
    write(folder.path(), &tensors(vec![0.5; 8]), "b");
    let config = format!(
        "merge_method: linear\nparameters: {{weight: 0.5, normalize: false}}\nmodels: [{{model: {0}/a0}}, {{model: {0}/b0}}]\n",
        folder.path().display()
    );
    let ended = crate::command::merge(folder.path(), &config, &["--device", "cpu"]).succeeded();
    assert!(ended.stderr.contains("tensor w: 1 NaN read, 3 infinities read"), "{}", ended.stderr);
    assert!(ended.stderr.contains("float64 is rounded to float32"), "{}", ended.stderr);
    let found = wide_values(&models::read(&folder.path().join("out"))["w"]);
    assert_eq!(found[4..7], [f64::INFINITY, f64::NEG_INFINITY, f64::INFINITY]);
    assert!(
        found[2].is_nan()
            && found[3].to_bits() == 0.25f64.to_bits()
            && found[7].to_bits() == 0.25f64.to_bits()
    );
    let config = std::fs::read_to_string(folder.path().join("out/config.json")).unwrap();
    assert!(config.contains("\"torch_dtype\": \"float64\""), "{config}");
}

/// Configs of merges to compare between devices, in folders of their own.
pub fn cases() -> Vec<tempfile::TempDir> {
    let case = |(place, dtype): (usize, &str)| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &checkpoints(true), "m");
        crate::command::config(folder.path(), &config(folder.path(), "m", WAYS[place], dtype));
        folder
    };
    [(0, "float64"), (2, ""), (3, "bfloat16"), (5, "float64"), (7, "float64")].map(case).into()
}
