//! Commands for every day: `info`, `diff`, configs from standard input.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use crate::adapters::write_adapter;
use crate::command::{Ended, ROOT, mergeforge, run};
use crate::models::{self, Form, PLAIN, Stored, Tensors, stored, tuned, values, weights};

pub const EMBED: &str = "model.embed_tokens.weight";
pub const UP: &str = "model.layers.0.mlp.up_proj.weight";
const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const NORM: &str = "model.norm.weight";
const STEPS: &str = "model.steps";

/// A model with floats of three types, and integers.
pub fn base() -> Tensors {
    let float = |dtype, shape: &[usize], seed| stored(dtype, shape, &weights(shape.iter().product(), seed));
    Tensors::from([
        (EMBED.into(), float(Dtype::BF16, &[40, 6], 1)),
        (UP.into(), float(Dtype::F32, &[9, 6], 2)),
        (DOWN.into(), float(Dtype::F16, &[6, 9], 3)),
        (NORM.into(), float(Dtype::BF16, &[6], 4)),
        (STEPS.into(), integers(&[3, 1, 4])),
    ])
}

fn integers(of: &[i64]) -> Stored {
    let bytes = of.iter().flat_map(|number| number.to_le_bytes()).collect();
    Stored { dtype: Dtype::I64, shape: vec![of.len()], bytes }
}

fn data_of(ended: &Ended) -> Json {
    serde_json::from_str(&ended.stdout).unwrap()
}

pub fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_model_is_described_by_its_headers() {
    let folder = tempfile::tempdir().unwrap();
    let model = path(folder.path(), "model");
    models::write(Path::new(&model), &base(), Form { shards: 2, ..PLAIN });
    let shown = run(["info", &model]).succeeded().stdout;
    for line in [
        "type        llama (LlamaForCausalLM)",
        "tensors     5 in 2 file(s): 2 BF16, 1 F16, 1 F32, 1 I64",
        "parameters  357",
        "size        840 bytes",
        "layers      2 in model.layers",
        "embedding   40 rows",
        "tokenizer   none",
        "BF16",
        "     1 × model.embed_tokens.weight  [40, 6]",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "no `{line}` in\n{shown}");
    }
    let described = data_of(&run(["info", &model, "examples/models/base", "--json"]).succeeded());
    let (of_model, of_example) = (&described[0], &described[1]);
    assert_eq!(of_model["parameters"], 240 + 54 + 54 + 6 + 3);
    assert_eq!(of_model["bytes"], 480 + 216 + 108 + 12 + 24);
    assert_eq!(
        of_model["dtypes"][0],
        json!({ "dtype": "BF16", "tensors": 2, "parameters": 246, "bytes": 492 })
    );
    assert_eq!(of_model["layers"], json!([{ "stack": "model.layers", "layers": 2 }]));
    assert_eq!((&of_model["tokenizer"]["tokens"], &of_model["adapter"]), (&Json::Null, &Json::Null));
    let norm = json!({ "name": NORM, "dtype": "BF16", "shape": [6], "bytes": 12 });
    assert!(of_model["tensors"].as_array().unwrap().contains(&norm), "{}", of_model["tensors"]);
    let tokenizer =
        std::fs::read_to_string(Path::new(ROOT).join("examples/models/base/tokenizer.json")).unwrap();
    let tokenizer: Json = serde_json::from_str(&tokenizer).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap().len();
    assert_eq!(of_example["tokenizer"]["tokens"], vocabulary);
}

/// No byte of a tensor is read: of a file that is cut behind its header, and then made as long as it was, all is known but the data.
#[test]
fn info_reads_headers_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let large = stored(Dtype::F32, &[1, 1], &[1.0]);
    models::write(&model, &Tensors::from([("a.weight".into(), large)]), PLAIN);
    // A hole of 2 TB: whoever read it would not be done today.
    let elements = 500_000_000_000u64;
    let header =
        json!({ "a.weight": { "dtype": "F32", "shape": [elements, 1], "data_offsets": [0, 4 * elements] } })
            .to_string();
    let file = std::fs::File::create(model.join("model.safetensors")).unwrap();
    (&file).write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    (&file).write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + 4 * elements).unwrap();
    let shown = run(["info", model.to_str().unwrap()]).succeeded().stdout;
    assert!(
        shown.contains("parameters  500000000000 (500.00 billion)") && shown.contains("2000.00 GB"),
        "{shown}"
    );
}

#[test]
fn adapters_are_described_with_their_model_and_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let [model, adapter] = ["model", "adapter"].map(|name| path(folder.path(), name));
    models::write(Path::new(&model), &base(), PLAIN);
    let module = UP.strip_suffix(".weight").unwrap();
    let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    write_adapter(Path::new(&adapter), json!({}), &[(&a, &[2, 6]), (&b, &[9, 2])]);
    for name in [format!("{model}+{adapter}"), adapter.clone()] {
        let shown = run(["info", &name]).succeeded().stdout;
        assert!(shown.contains("products    1 modules, of rank 2"), "{shown}");
        assert!(shown.contains("trained on  base"), "{shown}");
        assert_eq!(shown.contains("embedding   40 rows"), name != adapter, "{shown}");
        let described = data_of(&run(["info", &name, "--json"]).succeeded());
        let of = &described[0]["adapter"];
        assert_eq!((&of["parameters"], &of["ranks"]), (&json!(12 + 18), &json!([2])));
    }
    run(["info", &path(folder.path(), "nowhere")]).failed(2, &["nowhere"]);
}

/// The measures as their definitions have them, in plain sums.
#[test]
fn two_models_are_compared_tensor_by_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| path(folder.path(), name));
    let (one, mut other) = (base(), base());
    let (dtype, shape) = (other[DOWN].dtype, other[DOWN].shape.clone());
    other.insert(DOWN.into(), stored(dtype, &shape, &tuned(&values(&one[DOWN]), 9)));
    models::write(Path::new(&a), &one, PLAIN);
    models::write(Path::new(&b), &other, Form { shards: 3, reversed: true, tied: false });
    let ended = run(["diff", &a, &b, "--json"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let found = data_of(&ended);
    assert_eq!((&found["equal"], &found["equal_tensors"]), (&json!(false), &json!(4)));
    let tensor = found["tensors"].as_array().unwrap().iter().find(|tensor| tensor["name"] == DOWN).unwrap();
    let pairs: Vec<(f64, f64)> = values(&one[DOWN])
        .into_iter()
        .zip(values(&other[DOWN]))
        .map(|(one, other)| (f64::from(one), f64::from(other)))
        .collect();
    let sum = |of: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|(one, other)| of(*one, *other)).sum::<f64>();
    let norms = (sum(&|one, _| one * one).sqrt(), sum(&|_, other| other * other).sqrt());
    for (measure, expected) in [
        ("different", sum(&|one, other| f64::from(u8::from(one != other)))),
        ("largest", pairs.iter().map(|(one, other)| (one - other).abs()).fold(0.0, f64::max)),
        ("mean", sum(&|one, other| (one - other).abs()) / pairs.len() as f64),
        ("relative", sum(&|one, other| (one - other).powi(2)).sqrt() / norms.0),
        ("cosine", sum(&|one, other| one * other) / (norms.0 * norms.1)),
        ("norm_ratio", norms.1 / norms.0),
    ] {
        let found = tensor[measure].as_f64().unwrap();
        assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{measure}: {found} for {expected}");
        assert!(expected != 0.0, "{measure} says nothing");
    }
    let shown = run(["diff", &a, &b]);
    assert_eq!(shown.code, Some(1));
    assert!(shown.stdout.contains(DOWN) && !shown.stdout.contains(UP), "{}", shown.stdout);
    assert!(
        shown.stdout.contains("differ: of 5 tensors in both 4 are equal; 0 are only in A, 0 only in B"),
        "{}",
        shown.stdout
    );
    // The files lie otherwise, the tensors are the same.
    std::fs::remove_dir_all(&b).unwrap();
    models::write(Path::new(&b), &one, Form { shards: 3, reversed: true, tied: false });
    let shown = run(["diff", &a, &b]).succeeded().stdout;
    assert!(shown.ends_with("are equal: 5 tensors\n"), "{shown}");
    run(["diff", &a, &path(folder.path(), "nowhere")]).failed(2, &["nowhere"]);
}

/// What one model lacks, what has another shape or type, integers, NaN.
#[test]
fn whatever_differs_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let a = path(folder.path(), "a");
    models::write(Path::new(&a), &base(), PLAIN);
    let against = |change: &dyn Fn(&mut Tensors), says: &str| {
        let b = path(folder.path(), "b");
        let mut other = base();
        change(&mut other);
        let _ = std::fs::remove_dir_all(&b);
        models::write(Path::new(&b), &other, PLAIN);
        let ended = run(["diff", &a, &b]);
        assert_eq!(ended.code, Some(1), "{}{}", ended.stdout, ended.stderr);
        assert!(ended.stdout.contains(says), "no `{says}` in\n{}", ended.stdout);
        data_of(&run(["diff", &a, &b, "--json"]))
    };
    let of = |found: &Json, name: &str| {
        let tensors = found["tensors"].as_array().unwrap();
        tensors.iter().find(|tensor| tensor["name"] == name).unwrap().clone()
    };
    let found =
        against(&|other| drop(other.remove(NORM)), "only in A\n     1 × model.norm.weight  BF16 [6]\n");
    assert_eq!(found["only_in_a"], json!([{ "name": NORM, "dtype": "BF16", "shape": [6] }]));
    let more = |other: &mut Tensors| drop(other.insert("model.bias".into(), integers(&[1])));
    let found = against(&more, "only in B\n     1 × model.bias  I64 [1]\n");
    assert_eq!((&found["equal_tensors"], &found["only_in_b"][0]["name"]), (&json!(5), &json!("model.bias")));
    let wider = |other: &mut Tensors| {
        other.insert(EMBED.into(), stored(Dtype::BF16, &[41, 6], &weights(246, 1)));
    };
    let found =
        against(&wider, "of another shape\n     1 × model.embed_tokens.weight  [40, 6] in A, [41, 6] in B\n");
    assert_eq!(of(&found, EMBED)["different"], Json::Null);
    let widened = |other: &mut Tensors| {
        let float32 = stored(Dtype::F32, &[6, 9], &values(&other[DOWN]));
        other.insert(DOWN.into(), float32);
    };
    let found = against(
        &widened,
        "of another type\n     1 × model.layers.*.mlp.down_proj.weight  F16 in A, F32 in B\n",
    );
    assert_eq!((&of(&found, DOWN)["different"], &of(&found, DOWN)["equal"]), (&json!(0), &json!(false)));
    let counted = |other: &mut Tensors| drop(other.insert(STEPS.into(), integers(&[3, 1, 5])));
    let found = against(&counted, "model.steps                                         33.3 %\n");
    assert_eq!((&of(&found, STEPS)["different"], &of(&found, STEPS)["cosine"]), (&json!(1), &Json::Null));
    let spoilt = |other: &mut Tensors| {
        let mut of = values(&other[UP]);
        (of[7], of[9]) = (f32::NAN, of[9] + 1.0);
        other.insert(UP.into(), stored(Dtype::F32, &[9, 6], &of));
    };
    let found = against(&spoilt, "1 elements are NaN or infinite in A or in B");
    let up = of(&found, UP);
    assert_eq!((&up["different"], &up["not_finite"]), (&json!(2), &json!(1)));
    assert!((up["largest"].as_f64().unwrap() - 1.0).abs() < 1e-6, "{up}");
}

/// Several parts and a rest: no number depends on the threads.
#[test]
fn a_comparison_does_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| path(folder.path(), name));
    let elements = (2 << 22) + 12_345;
    let values = weights(elements, 5);
    let model =
        |values: &[f32]| Tensors::from([(UP.to_owned(), stored(Dtype::BF16, &[elements, 1], values))]);
    models::write(Path::new(&a), &model(&values), PLAIN);
    models::write(Path::new(&b), &model(&tuned(&values, 6)), PLAIN);
    let found = ["1", "3"].map(|threads| {
        let ended = run(["diff", &a, &b, "--json", "--threads", threads]);
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        ended.stdout
    });
    assert_eq!(found[0], found[1]);
    assert_eq!(serde_json::from_str::<Json>(&found[0]).unwrap()["tensors"][0]["elements"], elements);
}

/// A model with an adapter is its sum, as a merge writes it.
#[test]
fn an_adapter_is_compared_as_it_is_merged() {
    let folder = tempfile::tempdir().unwrap();
    let [model, adapter, out] = ["model", "adapter", "out"].map(|name| path(folder.path(), name));
    let float32 = base().into_iter().map(|(name, tensor)| match tensor.dtype {
        Dtype::I64 => (name, tensor),
        _ => (name, stored(Dtype::F32, &tensor.shape, &values(&tensor))),
    });
    models::write(Path::new(&model), &float32.collect(), PLAIN);
    let module = UP.strip_suffix(".weight").unwrap();
    let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    write_adapter(Path::new(&adapter), json!({}), &[(&a, &[2, 6]), (&b, &[9, 2])]);
    let sum = format!("{model}+{adapter}");
    let config = format!("merge_method: passthrough\nmodels: [{{model: '{sum}'}}]\n");
    fed(&config, &["merge", "-", &out]).succeeded();
    run(["diff", &sum, &out]).succeeded();
    assert_eq!(run(["diff", &model, &out]).code, Some(1));
}

/// Codes with scales are the floats that they stand for.
#[test]
fn a_quantised_model_is_compared_as_floats() {
    let folder = tempfile::tempdir().unwrap();
    let [fp8, floats] = ["fp8", "floats"].map(|name| path(folder.path(), name));
    // 1, 2 and -1, each times a half.
    let codes = [0x38, 0x40, 0xb8].repeat(8);
    let halves: Vec<f32> = [0.5, 1.0, -0.5].repeat(8);
    let mut tensors = Tensors::from([
        (UP.into(), Stored { dtype: Dtype::F8_E4M3, shape: vec![4, 6], bytes: codes }),
        (format!("{UP}_scale"), stored(Dtype::F32, &[4, 1], &[0.5; 4])),
    ]);
    models::write(Path::new(&fp8), &tensors, PLAIN);
    let how =
        json!({ "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {} });
    let config = json!({ "model_type": "llama", "quantization_config": how });
    std::fs::write(Path::new(&fp8).join("config.json"), config.to_string()).unwrap();
    tensors.retain(|name, _| name == UP);
    tensors.insert(UP.into(), stored(Dtype::BF16, &[4, 6], &halves));
    models::write(Path::new(&floats), &tensors, PLAIN);
    let ended = run(["diff", &fp8, &floats]).succeeded();
    assert!(ended.stderr.contains("read as code times scale"), "{}", ended.stderr);
    let shown = run(["info", &fp8]).succeeded().stdout;
    assert!(shown.contains("llama, quantised (compressed-tensors): parameters count codes"), "{shown}");
}

/// Runs the program with something on its standard input.
fn fed(text: &str, arguments: &[&str]) -> Ended {
    let mut child = mergeforge().args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_config_comes_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let [piped, from_file] = ["piped", "from_file"].map(|name| path(folder.path(), name));
    let config = std::fs::read_to_string(Path::new(ROOT).join("examples/ties.yml")).unwrap();
    // Relative paths start in the current folder, as ever.
    fed(&config, &["merge", "-", &piped]).succeeded();
    run(["merge", "examples/ties.yml", &from_file]).succeeded();
    run(["diff", &piped, &from_file]).succeeded();
    let [one, other] =
        [&piped, &from_file].map(|out| std::fs::read(Path::new(out).join("model.safetensors")).unwrap());
    assert!(one == other);
    let planned = fed(&config, &["plan", "-"]).succeeded().stdout;
    assert_eq!(planned, run(["plan", "examples/ties.yml"]).succeeded().stdout);
    let slip = config.replace("merge_method", "merge_metod");
    fed(&slip, &["plan", "-"]).failed(2, &["<stdin>:", "`merge_method` is missing"]);
    fed("", &["plan", "-"]).failed(2, &["<stdin>:1:1: the config is empty"]);
}

/// Bash completes with the script, as far as flags of a command of a command.
#[test]
fn shells_complete_commands() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(["completions", shell]).succeeded().stdout;
        assert!(script.contains("extract-lora") && script.contains("random-seed"), "{shell}");
        // mergekit's flags are taken, not offered.
        assert!(!script.contains("no-quiet") && !script.contains("lazy-unpickle"), "{shell}");
        std::fs::write(folder.path().join(shell), script).unwrap();
    }
    let completed = |words: &[&str]| {
        let script = format!(
            "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _mergeforge mergeforge '{}' ''; echo \"${{COMPREPLY[*]}}\"",
            folder.path().join("bash").display(),
            words.join(" "),
            words.len() - 1,
            words.last().unwrap()
        );
        let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(completed(&["mergeforge", "an"]), "analyze");
    assert_eq!(completed(&["mergeforge", "diff", "--to"]), "--top");
    assert_eq!(completed(&["mergeforge", "bench", "fl"]), "floor");
    run(["completions", "tcsh"]).failed(2, &["tcsh", "possible values: bash"]);
}

/// Every command has its page, whose source `man` can set.
#[test]
fn every_command_has_a_page_of_the_manual() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man/man1");
    run(["man", pages.to_str().unwrap()]).succeeded();
    let help = run(["--help"]).succeeded().stdout;
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> = commands
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        let page = std::fs::read_to_string(pages.join(format!("mergeforge-{name}.1")))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
    }
    assert!(pages.join("mergeforge-bench-merge.1").exists());
    let first = run(["man"]).succeeded().stdout;
    assert_eq!(first.trim_end(), std::fs::read_to_string(pages.join("mergeforge.1")).unwrap().trim_end());
    assert!(first.contains(".TH mergeforge 1"), "{first}");
    run(["man", pages.join("mergeforge.1").to_str().unwrap()]).failed(4, &["cannot write", "mergeforge.1"]);
}

fn schema() -> jsonschema::Validator {
    let schema: Json = serde_json::from_str(
        &std::fs::read_to_string(Path::new(ROOT).join("docs/config.schema.json")).unwrap(),
    )
    .unwrap();
    jsonschema::draft202012::meta::validate(&schema).expect("it is a schema");
    jsonschema::draft202012::new(&schema).unwrap()
}

/// What a YAML text is to the schema.
fn read(text: &str) -> Json {
    serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e} in\n{text}"))
}

#[track_caller]
fn assert_accepted(schema: &jsonschema::Validator, text: &str) {
    let config = read(text);
    let problems: Vec<String> =
        schema.iter_errors(&config).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(problems.is_empty(), "{}\n{text}", problems.join("\n"));
}

#[test]
fn the_schema_in_the_repository_is_the_programs() {
    let file = Path::new(ROOT).join("docs/config.schema.json");
    let printed = run(["schema"]).succeeded().stdout;
    let kept = std::fs::read_to_string(file).unwrap_or_default();
    assert!(printed == kept, "write it anew: cargo run -- schema > docs/config.schema.json");
}

/// Configs that the program reads without a warning, with every key that it knows.
#[test]
fn the_schema_accepts_what_is_read() {
    let schema = schema();
    for folder in ["examples", "examples/sweep"] {
        let files =
            std::fs::read_dir(Path::new(ROOT).join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let configs: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|extension| extension == "yml")).collect();
        assert!(!configs.is_empty(), "{folder}");
        for config in configs {
            assert_accepted(&schema, &std::fs::read_to_string(config).unwrap());
        }
    }
    for config in [
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [0, 0.5]}}, {model: b@v1+c, parameters: {weight: 1}}]\n\
         out_dtype: torch.float16\ndtype: float32\nname: mine\nchat_template: auto\n",
        "merge_method: linear\nmodels: {glob: 'runs/*', parameters: {weight: 1}}\n",
        "merge_method: slerp\nslices: [{sources: [{model: a, layer_range: [0, 8]}, {model: b, layer_range: [0, 8]}], base_model: a, \
         parameters: {t: [{filter: mlp, value: [0, 0.5]}, {value: 1}]}}]\n",
        "merge_method: ties\nbase_model: {model: {path: b, revision: v1}, lora: {path: c}}\nparameters: {normalize: yes, lambda: '1e-1', \
         int8_mask: true}\nmodels: [{model: 123, mask: m.safetensors, parameters: {weight: 1, density: {value: 0.5}}}]\n\
         tokenizer: {source: union, pad_to_multiple_of: 64, tokens: {a: {source: {kind: zero}, force: true}, b: {source: {kind: \
         model_token, model: m, token_id: 1}}, c: {source: m}, d: }}\n",
        "merge_method: passthrough\nmodules: {text_decoder: {slices: [{sources: [{model: a, layer_range: [0, 2], parameters: {scale: \
         null}}]}]}, vision: {models: [{model: a}]}}\ntokenizer_source: base\n",
        "merge_method: average\nparameters: {weights: cosine, window: 4}\nmodels: [{model: a}, {model: b}]\n",
        "merge_method: fisher\nmodels: [{model: a, importance: a.safetensors}, {model: b, importance: b}]\n",
        "merge_method: [linear, slerp]\nmodels: [{model: a, parameters: {weight: {range: [0, 1.5]}}}]\n",
        "base_model: a\ngate_mode: hidden\nexperts_per_token: 2\narchitecture: mixtral\ndtype: bfloat16\nexperts: [{source_model: a, \
         positive_prompts: [x], negative_prompts: [y], noise_scale: 0.1, residual_scale: 2}]\nshared_experts: [{source_model: b}]\n",
    ] {
        assert_accepted(&schema, config);
    }
}

/// Mistakes that people make, and where the schema sees them.
#[test]
fn the_schema_rejects_mistakes() {
    let schema = schema();
    let right = "merge_method: ties\nbase_model: b\ndtype: bfloat16\nparameters: {normalize: true}\nmodels:\n- model: a\n  parameters: {weight: 0.5, density: 0.5}\n";
    assert_accepted(&schema, right);
    for (part, wrong, at) in [
        ("merge_method: ties", "merge_metod: ties", ""),
        ("merge_method: ties", "merge_method: tise", "/merge_method"),
        ("base_model: b\n", "", ""),
        ("bfloat16", "bf16", "/dtype"),
        ("models:", "model:", ""),
        ("density:", "densty:", "/models/0/parameters"),
        ("density:", "t:", "/models/0/parameters"),
        ("normalize: true", "normalize: 0.5", "/parameters/normalize"),
        ("normalize: true", "rescale_all: true", "/parameters"),
        ("weight: 0.5", "weight: a lot", "/models/0/parameters/weight"),
        ("weight: 0.5", "weight: [0, [1]]", "/models/0/parameters/weight"),
        ("weight: 0.5", "weight: {range: [0]}", "/models/0/parameters/weight"),
        ("weight: 0.5", "weight: {filter: mlp}", "/models/0/parameters/weight"),
        ("- model: a\n  parameters: {weight: 0.5, density: 0.5}", "- model: a\n  weight: 0.5", "/models/0"),
        ("- model: a\n", "- path: a\n", "/models/0"),
        ("dtype: bfloat16", "tokenizer: {source: union}\ntokenizer_source: base", ""),
        ("dtype: bfloat16", "tokenizer: {pad_to_multiple_of: 0}", "/tokenizer/pad_to_multiple_of"),
        ("dtype: bfloat16", "slices: [{sources: [{model: a}]}]", ""),
        ("dtype: bfloat16", "experts: [{source_model: a}]", ""),
    ] {
        assert!(right.contains(part), "{part}");
        let config = read(&right.replacen(part, wrong, 1));
        let places: Vec<String> =
            schema.iter_errors(&config).map(|e| e.instance_path().to_string()).collect();
        assert!(places.iter().any(|place| place == at), "{wrong}: {places:?}");
    }
    for wrong in [
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0]}]}]",
        "merge_method: passthrough\nslices: [{model: a}]",
        "merge_method: arcee_fusion\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]",
        "base_model: a\ngate_mode: hiden\nexperts: [{source_model: a}]",
        "base_model: a\nexperts: [{model: a}]",
        "merge_method: linear",
        "[]",
        "",
    ] {
        let config = read(wrong);
        assert!(!schema.is_valid(&config), "{wrong}");
    }
}

/// Of every method the config that is made is planned without an error or a warning, and its own schema accepts it.
#[test]
fn a_config_is_made_for_every_method() {
    let folder = tempfile::tempdir().unwrap();
    let [base, a, b] = ["base", "a", "b"].map(|name| path(folder.path(), name));
    for (model, seed) in [(&base, 0), (&a, 1), (&b, 2)] {
        let mut tensors = base_floats();
        tensors.values_mut().for_each(|tensor| {
            *tensor = stored(tensor.dtype, &tensor.shape, &tuned(&values(tensor), seed));
        });
        models::write(Path::new(model), &tensors, PLAIN);
    }
    let schema = schema();
    for method in mergeforge::method::METHODS {
        let has_base = method.base == mergeforge::method::Base::Required;
        let takes_two = method.models.contains(&(2 + usize::from(has_base)));
        let models: &[&str] = if takes_two { &[&a, &b] } else { &[&a] };
        let based = if has_base { vec!["--base", &base] } else { Vec::new() };
        let ended = run([&["init", method.name], models, &based].concat()).succeeded();
        let config = ended.stdout;
        assert_accepted(&schema, &config);
        assert!(config.contains(&format!("merge_method: {}\n", method.name)), "{config}");
        for parameter in method.parameters {
            assert!(config.contains(&format!("{}: ", parameter.name)), "{}\n{config}", parameter.name);
        }
        // What it says behind a `#` are the defaults, and can be written.
        let all: Vec<String> = config.lines().map(uncommented).collect();
        assert_accepted(&schema, &all.join("\n"));
        if method.reads_importance() {
            continue;
        }
        for text in [config, all.join("\n")] {
            let planned = fed(&text, &["plan", "-", "--json"]);
            assert_eq!(planned.code, Some(0), "{}\n{text}", planned.stderr);
            assert_eq!(data_of(&planned)["method"], method.name);
        }
    }
}

/// A line of a config with what stands behind its first `#`, if that is a parameter.
fn uncommented(line: &str) -> String {
    let rest = line.trim_start();
    let is_key = |rest: &str| {
        rest.split_once(':')
            .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
    };
    match rest.strip_prefix("# ") {
        Some(rest)
            if is_key(rest) && !rest.starts_with("tokenizer_source") && line.contains("  #")
                || rest == "parameters:" =>
        {
            format!("{}{rest}", &line[..line.len() - line.trim_start().len()])
        }
        _ => line.to_owned(),
    }
}

fn base_floats() -> Tensors {
    base().into_iter().filter(|(name, _)| name != STEPS).collect()
}

#[test]
fn a_config_is_written_with_the_place_of_its_schema() {
    let folder = tempfile::tempdir().unwrap();
    let (out, cache) = (path(folder.path(), "config.yml"), path(folder.path(), "a cache"));
    let init = |more: &[&str]| -> Ended {
        let arguments = [&["init", "slerp", "org/a", "org/b", "--base", "org/a"], more].concat();
        mergeforge().env("MERGEFORGE_CACHE", &cache).args(arguments).output().unwrap().into()
    };
    init(&["--out", &out]).succeeded();
    let text = std::fs::read_to_string(&out).unwrap();
    let place = format!(
        "# yaml-language-server: $schema=file://{}/a%20cache/config.schema.json\n",
        folder.path().display()
    );
    assert!(text.starts_with(&place), "{text}");
    let kept = std::fs::read_to_string(folder.path().join("a cache/config.schema.json")).unwrap();
    assert_eq!(kept, run(["schema"]).succeeded().stdout);
    init(&["--out", &out]).failed(4, &["config.yml exists", "hint: give a new file"]);
    let elsewhere = init(&["--schema", "https://example.org/s.json"]).succeeded().stdout;
    assert!(
        elsewhere.starts_with("# yaml-language-server: $schema=https://example.org/s.json\n"),
        "{elsewhere}"
    );
    assert!(elsewhere.contains("\n  t: 0.5  # 0 is the base"), "{elsewhere}");
    // Nowhere to keep a schema: no line, and a note.
    let without = run(["init", "linear", "a b", "c"]).succeeded();
    assert!(
        without.stdout.starts_with("# linear: ") && without.stderr.contains("--schema says where"),
        "{}",
        without.stdout
    );
    assert!(
        without.stdout.contains("  - model: \"a b\"\n    parameters:\n      weight: 0.5"),
        "{}",
        without.stdout
    );
    run(["init", "ties", "a"]).failed(2, &["ties needs a base model", "--base"]);
    run(["init", "tise", "a"]).failed(2, &["there is no merge method `tise`", "did you mean `ties`?"]);
    run(["init", "slerp", "a", "b", "--base", "c"])
        .failed(2, &["slerp merges 2 models, its base among them, and here are 3"]);
    run(["init", "linear", "a", "--base", "c"]).failed(2, &["linear treats all models alike"]);
}
