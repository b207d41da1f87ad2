//! Quantised models, merged as the floats that their codes and scales stand for.

use std::fs;
use std::path::Path;

use mergeforge::plan::Choices;
use mergeforge::prepare;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::command;
use crate::models::{self, PLAIN, RUN, Stored, Tensors, stored, values, weights};

/// The value of a code in E4M3, from the format's definition: a sign, 4 bits of exponent with a bias of 7, 3 of mantissa.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = if exponent == 0 {
        mantissa / 8.0 * 2f32.powi(-6)
    } else {
        (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7)
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Codes that are numbers.
fn codes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| ((i * 37 + seed * 11) % 0x7f) as u8 | if i % 3 == 0 { 0x80 } else { 0 }).collect()
}

fn bytes(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Stored {
    Stored { dtype, shape: shape.to_vec(), bytes }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    weights(count, seed).iter().map(|x| x.abs() + 0.01).collect()
}

/// Writes a model whose config.json says this of its quantisation.
fn write(folder: &Path, tensors: &Tensors, quantisation: Option<&Value>) {
    models::write(folder, tensors, PLAIN);
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    if let Some(quantisation) = quantisation {
        config["quantization_config"] = quantisation.clone();
    }
    fs::write(path, config.to_string()).unwrap();
}

/// Merges the quantised model with a plain one, and in its place the floats that it stands for: the bytes must be the same.
fn merges_like(quantised: &Tensors, floats: &Tensors, quantisation: Option<&Value>) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let plain = |(i, (name, tensor)): (usize, (&String, &Stored))| {
        let values = weights(tensor.shape.iter().product(), 50 + i as u64);
        (name.clone(), stored(Dtype::BF16, &tensor.shape, &values))
    };
    let other: Tensors = floats.iter().enumerate().map(plain).collect();
    write(&at("quantised"), quantised, quantisation);
    write(&at("floats"), floats, None);
    write(&at("other"), &other, None);
    let merged = |model: &str, out: &str, dtype: &str| {
        let entry = |model: &str, weight: f32| {
            format!("{{model: {}, parameters: {{weight: {weight}}}}}", at(model).display())
        };
        let models = [entry(model, 0.75), entry("other", 0.5)].join(", ");
        let config =
            format!("merge_method: linear\nmodels: [{models}]\nparameters: {{normalize: false}}\n{dtype}");
        models::run(dir.path(), &config, out, RUN).unwrap_or_else(|e| panic!("{e}"));
        models::read(&at(out))
    };
    let expected = merged("floats", "a", "out_dtype: bfloat16\n");
    assert!(merged("quantised", "b", "out_dtype: bfloat16\n") == expected);
    // What it counts as is what its config says.
    assert!(merged("quantised", "c", "") == expected);
    let config: Value = serde_json::from_str(&fs::read_to_string(at("c/config.json")).unwrap()).unwrap();
    assert!(config.get("quantization_config").is_none(), "{config}");
    // Another type is asked for: nothing is rounded on the way.
    assert!(merged("quantised", "d", "dtype: float32\n") == merged("floats", "e", "dtype: float32\n"));
}

/// Names that layers have.
const UP: &str = "model.layers.0.mlp.up_proj.weight";
const NORM: &str = "model.layers.0.norm.weight";

/// A model of one matrix of codes, a norm, and its scales; and the floats that it stands for. `scale` gives the place of an
/// element's scale by row and column.
fn with_scales(
    codes_dtype: Dtype,
    [rows, columns]: [usize; 2],
    (name, shape): (&str, &[usize]),
    scale: impl Fn(usize, usize) -> usize,
) -> (Tensors, Tensors) {
    let codes = codes(rows * columns, 3);
    let scales = numbers(shape.iter().product(), 7);
    let value = |code: u8| if codes_dtype == Dtype::I8 { f32::from(code as i8) } else { e4m3(code) };
    let products: Vec<f32> = codes
        .iter()
        .enumerate()
        .map(|(i, code)| value(*code) * scales[scale(i / columns, i % columns)])
        .collect();
    let norm = (NORM.to_owned(), stored(Dtype::BF16, &[4], &[1.0, 2.0, -3.0, 0.5]));
    let quantised = Tensors::from([
        norm.clone(),
        (UP.into(), bytes(codes_dtype, &[rows, columns], codes)),
        (name.into(), stored(Dtype::F32, shape, &scales)),
        ("model.layers.0.mlp.up_proj.input_scale".into(), stored(Dtype::F32, &[], &[0.5])),
    ]);
    (quantised, Tensors::from([norm, (UP.into(), stored(Dtype::F32, &[rows, columns], &products))]))
}

#[test]
fn blocks_of_float8_merge_as_their_products() {
    let name = format!("{UP}_scale_inv");
    let config = json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]});
    let (quantised, floats) =
        with_scales(Dtype::F8_E4M3, [200, 130], (&name, &[2, 2]), |row, column| row / 128 * 2 + column / 128);
    merges_like(&quantised, &floats, Some(&config));
}

#[test]
fn scales_of_rows_and_of_all_merge_as_their_products() {
    let name = format!("{UP}_scale");
    let name = name.as_str();
    let compressed =
        |format: &str| json!({"quant_method": "compressed-tensors", "format": format, "config_groups": {}});
    let (quantised, floats) = with_scales(Dtype::F8_E4M3, [20, 8], (name, &[20, 1]), |row, _| row);
    merges_like(&quantised, &floats, Some(&compressed("float-quantized")));
    let (quantised, floats) = with_scales(Dtype::I8, [20, 8], (name, &[20, 1]), |row, _| row);
    merges_like(&quantised, &floats, Some(&compressed("int-quantized")));
    let (quantised, floats) =
        with_scales(Dtype::I8, [20, 8], (name, &[20, 2]), |row, column| 2 * row + column / 4);
    merges_like(&quantised, &floats, Some(&compressed("int-quantized")));
    let (quantised, floats) = with_scales(Dtype::F8_E4M3, [20, 8], (name, &[]), |_, _| 0);
    merges_like(&quantised, &floats, Some(&json!({"quant_method": "modelopt", "quant_algo": "FP8"})));
    let (quantised, floats) = with_scales(Dtype::F8_E4M3, [20, 8], (name, &[20, 1]), |row, _| row);
    merges_like(&quantised, &floats, Some(&json!({"quant_method": "fbgemm_fp8"})));
}

#[test]
fn float8_without_scales_is_what_it_is() {
    let codes = codes(32, 1);
    let values: Vec<f32> = codes.iter().map(|code| e4m3(*code)).collect();
    let quantised = Tensors::from([(UP.into(), bytes(Dtype::F8_E4M3, &[8, 4], codes))]);
    merges_like(&quantised, &Tensors::from([(UP.into(), stored(Dtype::F32, &[8, 4], &values))]), None);
}

#[test]
fn microscaled_experts_merge_transposed() {
    let (experts, rows, columns) = (2, 6, 64);
    let codes: Vec<u8> = (0..experts * rows * columns / 2).map(|i| (i * 31 + i / 5) as u8).collect();
    let exponents: Vec<u8> = (0..experts * rows * columns / 32).map(|i| 118 + (i % 7) as u8).collect();
    let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let mut values = Vec::new();
    for expert in 0..experts {
        for column in 0..columns {
            for row in 0..rows {
                let at = (expert * rows + row) * columns + column;
                let code = codes[at / 2] >> (at % 2 * 4) & 15;
                let sign = if code < 8 { 1.0 } else { -1.0 };
                values.push(
                    sign * magnitudes[usize::from(code & 7)] * 2f32.powi(i32::from(exponents[at / 32]) - 127),
                );
            }
        }
    }
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    let quantised = Tensors::from([
        (format!("{name}_blocks"), bytes(Dtype::U8, &[experts, rows, columns / 32, 16], codes)),
        (format!("{name}_scales"), bytes(Dtype::U8, &[experts, rows, columns / 32], exponents)),
    ]);
    let floats = Tensors::from([(name.to_owned(), stored(Dtype::F32, &[experts, columns, rows], &values))]);
    merges_like(&quantised, &floats, Some(&json!({"quant_method": "mxfp4"})));
}

/// What a merge of a model with another one is refused for.
fn refusal(tensors: &Tensors, quantisation: Option<&Value>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("a"), tensors, quantisation);
    write(&at("b"), &Tensors::from([(UP.into(), stored(Dtype::BF16, &[20, 8], &weights(160, 1)))]), None);
    let config = format!(
        "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {}}}, {{model: {}}}]\n",
        at("a").display(),
        at("b").display()
    );
    models::run(dir.path(), &config, "out", RUN).unwrap_err().message
}

#[test]
fn what_is_no_product_of_codes_and_scales_is_refused_by_name() {
    let packed = Tensors::from([
        (UP.replace("weight", "qweight"), bytes(Dtype::I32, &[1, 8], vec![7; 32])),
        (UP.replace("weight", "scales"), stored(Dtype::F16, &[1, 8], &[1.0; 8])),
    ]);
    for (quantisation, says) in [
        (json!({"quant_method": "gptq", "bits": 4}), "is quantised (gptq, 4 bits)"),
        (json!({"quant_method": "awq", "bits": 4}), "is quantised (awq, 4 bits)"),
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "is quantised (bitsandbytes, 4 bits)",
        ),
        (
            json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
            "is quantised (bitsandbytes, 8 bits)",
        ),
        (json!({"quant_method": "hqq"}), "is quantised (hqq)"),
        (json!({"quant_method": "eetq"}), "is quantised (eetq)"),
        (json!({"quant_method": "aqlm"}), "is quantised (aqlm)"),
        (json!({"quant_method": "torchao"}), "is quantised (torchao)"),
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "(compressed-tensors, pack-quantized)",
        ),
        (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "(modelopt, NVFP4)"),
    ] {
        let refusal = refusal(&packed, Some(&quantisation));
        assert!(refusal.contains(says) && refusal.contains("cannot be merged"), "{refusal}");
    }
    let config = json!({"quant_method": "compressed-tensors", "format": "int-quantized"});
    let name = format!("{UP}_scale");
    let (mut asymmetric, _) = with_scales(Dtype::I8, [20, 8], (&name, &[20, 1]), |row, _| row);
    asymmetric.insert(format!("{UP}_zero_point"), bytes(Dtype::I8, &[20, 1], vec![3; 20]));
    assert!(refusal(&asymmetric, Some(&config)).contains("weight_zero_point"));
    let (odd, _) = with_scales(Dtype::F8_E4M3, [20, 8], (&name, &[3, 3]), |_, _| 0);
    assert!(refusal(&odd, Some(&config)).contains("scales of [3, 3] do not fit"));
}

/// Codes are values only where nothing says that they have scales.
#[test]
fn codes_that_lack_their_scale_are_refused_by_name() {
    let weight = |dtype| (UP.to_owned(), bytes(dtype, &[20, 8], codes(160, 1)));
    let bare = Tensors::from([weight(Dtype::F8_E4M3)]);
    let integers = json!({"quant_method": "compressed-tensors", "format": "int-quantized"});
    for (tensors, config) in [
        (&bare, json!({"quant_method": "fp8"})),
        (&bare, json!({"quant_method": "modelopt", "quant_algo": "FP8"})),
        (&bare, integers.clone()),
        (&Tensors::from([weight(Dtype::I8)]), integers),
    ] {
        let says = refusal(tensors, Some(&config));
        assert!(says.contains(UP) && says.contains("quantised by config.json, and has no scale"), "{says}");
    }
    for scale in ["scale", "scale_weight", "weight.scale", "weight_scale_3", "input_scale"] {
        let name = UP.replace("weight", scale);
        let with = [weight(Dtype::F8_E4M3), (name.clone(), stored(Dtype::F32, &[1], &[0.5]))];
        let says = refusal(&Tensors::from(with), None);
        assert!(says.contains(UP) && says.contains(&format!("and \"{name}\" beside it")), "{says}");
    }
}

/// Without a word in the config some codes may have scales and others none: both are told apart.
#[test]
fn codes_without_scales_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut some, _) = with_scales(Dtype::F8_E4M3, [20, 8], (&format!("{UP}_scale"), &[]), |_, _| 0);
    let down = UP.replace("up_proj", "down_proj");
    some.insert(down, bytes(Dtype::F8_E4M3, &[20, 8], codes(160, 2)));
    write(&dir.path().join("a"), &some, None);
    let model = dir.path().join("a").display().to_string();
    let text = format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{{model: {model}}}]\n");
    let file = command::config(dir.path(), &text);
    let notes = prepare(&file, &Choices::USUAL).unwrap().plan.notes.join("\n");
    assert!(notes.contains("code times scale, and of 1 of them without scales the values"), "{notes}");
}

/// One model whose tensors are only copied stays as it is, codes, scales and config; where a type is asked for, it does not.
#[test]
fn a_model_that_is_only_copied_stays_quantised() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{UP}_scale_inv");
    let (quantised, floats) = with_scales(Dtype::F8_E4M3, [20, 8], (&name, &[1, 1]), |_, _| 0);
    let quantisation = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    write(&dir.path().join("a"), &quantised, Some(&quantisation));
    let merged = |more: &str, out: &str| {
        let slices = format!(
            "slices: [{{sources: [{{model: {}, layer_range: [0, 1]}}]}}]",
            dir.path().join("a").display()
        );
        models::run(dir.path(), &format!("merge_method: passthrough\n{slices}\n{more}"), out, RUN).unwrap();
        let config = fs::read_to_string(dir.path().join(out).join("config.json")).unwrap();
        (models::read(&dir.path().join(out)), config.contains("quantization_config"))
    };
    assert!(merged("", "copied") == (quantised.clone(), true));
    let (tensors, says_quantised) = merged("dtype: float32\n", "float");
    assert!(!says_quantised && values(&tensors[UP]) == values(&floats[UP]) && tensors.len() == 2);
    let (tensors, says_quantised) = merged("parameters: {scale: 2}\n", "scaled");
    assert!(!says_quantised && tensors[UP].dtype == Dtype::BF16);
}
