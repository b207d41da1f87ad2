//! `mergeforge convert`: one model with floats of another type, in other shards, as safetensors, or with its adapter added.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use crate::adapters::write_adapter;
use crate::command::{assert_nothing_left, config, run};
use crate::everyday::{EMBED, UP, base as model, path};
use crate::models::{self, Form, PLAIN, Stored, Tensors, stored, values};
use crate::torch_files::torch_file;

/// A folder with the model in `model`, and the paths of that and of `out`.
fn case(form: Form) -> (tempfile::TempDir, String, String) {
    let folder = tempfile::tempdir().unwrap();
    models::write(&folder.path().join("model"), &model(), form);
    let [model, out] = ["model", "out"].map(|name| path(folder.path(), name));
    (folder, model, out)
}

/// The file names of a folder.
fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every float is rounded once to the type that is asked for, and everything else stays.
#[test]
fn floats_get_the_type_that_is_asked_for() {
    let (folder, model_path, _) = case(Form { shards: 3, reversed: true, tied: false });
    let types = [("bfloat16", Dtype::BF16), ("float16", Dtype::F16), ("float32", Dtype::F32)];
    for (name, dtype) in types {
        let out = path(folder.path(), name);
        run(["convert", &model_path, &out, "--dtype", name]).succeeded();
        let found = models::read(Path::new(&out));
        assert_eq!(found.len(), model().len());
        for (tensor, original) in model() {
            let expected = match original.dtype {
                Dtype::I64 => original,
                _ => stored(dtype, &original.shape, &values(&original)),
            };
            assert_eq!(found[&tensor], expected, "{tensor} as {name}");
        }
        let config: Json =
            serde_json::from_str(&fs::read_to_string(Path::new(&out).join("config.json")).unwrap()).unwrap();
        assert_eq!(config["torch_dtype"], name);
        assert_eq!(config["model_type"], "llama");
    }
    // What is widened and narrowed again is what it was.
    let (wide, back) = (path(folder.path(), "float64"), path(folder.path(), "back"));
    run(["convert", &model_path, &wide, "--dtype", "float64"]).succeeded();
    assert!(
        models::read(Path::new(&wide))
            .values()
            .all(|tensor| [Dtype::F64, Dtype::I64].contains(&tensor.dtype))
    );
    run(["convert", &wide, &back, "--dtype", "float32"]).succeeded();
    assert!(models::read(Path::new(&back)) == models::read(&folder.path().join("float32")));
}

/// The weights, their index and `config.json` are those of a merge that only copies.
#[test]
fn a_conversion_is_a_merge_of_one_model() {
    let (folder, model_path, out) = case(PLAIN);
    let merged = path(folder.path(), "merged");
    for (dtype, in_config) in [(&["--dtype", "bfloat16"][..], "dtype: bfloat16\n"), (&[], "")] {
        let text = format!("merge_method: passthrough\nmodels: [{{model: {model_path}}}]\n{in_config}");
        let config = config(folder.path(), &text);
        let shards = ["--out-shard-size", "200", "--threads", "2"];
        run([&["merge", config.to_str().unwrap(), &merged][..], &shards].concat()).succeeded();
        let ended = run([&["convert", &model_path, &out, "--json"][..], dtype, &shards].concat()).succeeded();
        let written =
            names(&merged).into_iter().filter(|name| name.starts_with("model") || name == "config.json");
        let written: Vec<String> = written.collect();
        assert!(written.len() > 4, "several shards: {written:?}");
        for name in written {
            let [one, other] = [&merged, &out].map(|folder| fs::read(Path::new(folder).join(&name)).unwrap());
            assert!(one == other, "{name} with {dtype:?}");
        }
        // The manifest tells what it was made of, and how to make it again.
        let manifest: Json = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&manifest["method"], &manifest["run"]["device"]), (&json!("passthrough"), &json!("cpu")));
        let again = path(folder.path(), "again");
        let own = Path::new(&out).join("mergekit_config.yml");
        run([&["merge", own.to_str().unwrap(), &again][..], &shards].concat()).succeeded();
        run(["diff", &out, &again]).succeeded();
        for folder in [&merged, &out, &again] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
}

#[test]
fn without_a_type_all_tensors_stay_as_they_are() {
    let (folder, model_path, out) = case(Form { shards: 2, ..PLAIN });
    run(["convert", &model_path, &out]).succeeded();
    assert_eq!(names(&out).iter().filter(|name| name.ends_with(".safetensors")).count(), 1);
    assert!(models::read(Path::new(&out)) == model());
    let torch = folder.path().join("torch");
    fs::create_dir(&torch).unwrap();
    fs::write(torch.join("pytorch_model.bin"), torch_file(&model())).unwrap();
    fs::copy(Path::new(&model_path).join("config.json"), torch.join("config.json")).unwrap();
    let of_torch = path(folder.path(), "of_torch");
    run(["convert", torch.to_str().unwrap(), &of_torch]).succeeded();
    assert!(models::read(Path::new(&of_torch)) == model());
    let expected = ["config.json", "mergeforge.json", "mergekit_config.yml", "model.safetensors"];
    assert_eq!(names(&of_torch), expected);
    // A file by itself, whose name has signs that mean something else in a config.
    let alone = folder.path().join("a+b@c: 'x'.pt");
    fs::write(&alone, torch_file(&model())).unwrap();
    let of_file = path(folder.path(), "of_file");
    run(["convert", alone.to_str().unwrap(), &of_file, "--dtype", "float32"]).succeeded();
    let found = models::read(Path::new(&of_file));
    assert_eq!(found[UP], model()[UP]);
    assert_eq!(found[EMBED].dtype, Dtype::F32);
    assert!(!names(&of_file).contains(&"config.json".to_owned()));
}

#[test]
fn an_adapter_is_added() {
    let (folder, model_path, out) = case(PLAIN);
    let adapter = path(folder.path(), "adapter");
    let module = UP.strip_suffix(".weight").unwrap();
    let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    write_adapter(Path::new(&adapter), json!({}), &[(&a, &[2, 6]), (&b, &[9, 2])]);
    let sum = format!("{model_path}+{adapter}");
    run(["convert", &sum, &out]).succeeded();
    let text = format!("merge_method: passthrough\nmodels: [{{model: '{sum}'}}]\n");
    let (config, merged) = (config(folder.path(), &text), path(folder.path(), "merged"));
    run(["merge", config.to_str().unwrap(), &merged]).succeeded();
    let (found, original) = (models::read(Path::new(&out)), model());
    assert!(found == models::read(Path::new(&merged)));
    for (name, tensor) in &found {
        assert_eq!(tensor == &original[name], name != UP, "{name}");
    }
    assert!(!names(&out).iter().any(|name| name.starts_with("adapter")), "{:?}", names(&out));
}

/// A card stays true where nothing is changed but the type.
#[test]
fn files_beside_the_weights_come_along() {
    let (folder, model_path, _) = case(PLAIN);
    let beside =
        [("README.md", "# Mine\r\n"), ("generation_config.json", "{ \"x\": 1.0e3}"), ("LICENSE", "mine")];
    for (name, text) in beside {
        fs::write(Path::new(&model_path).join(name), text).unwrap();
    }
    let adapter = path(folder.path(), "adapter");
    let module = UP.strip_suffix(".weight").unwrap();
    let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    write_adapter(Path::new(&adapter), json!({}), &[(&a, &[2, 6]), (&b, &[9, 2])]);
    let sum = format!("{model_path}+{adapter}");
    let mut number = 0;
    let mut converted = |model: &str, more: &[&str]| {
        number += 1;
        let out = path(folder.path(), &format!("out{number}"));
        let ended = run([&["convert", model, &out][..], more].concat()).succeeded();
        let text = |name: &str| fs::read_to_string(Path::new(&out).join(name)).ok();
        (beside.map(|(name, _)| text(name)), ended.stderr)
    };
    let originals = beside.map(|(_, text)| Some(text.to_owned()));
    let (found, talk) = converted(&model_path, &["--dtype", "float16"]);
    assert_eq!(found, originals);
    assert!(!talk.contains("README.md"), "nothing is left out: {talk}");
    // Without it, with the files of others, and of what is another model.
    let (found, talk) = converted(&model_path, &["--no-write-model-card"]);
    assert_eq!((&found[0], &found[1..]), (&None, &originals[1..]));
    assert!(talk.contains("README.md"), "what is left out is listed: {talk}");
    let (found, _) = converted(&model_path, &["--no-copy-tokenizer"]);
    assert_eq!(found[1..], [None, None]);
    let (found, _) = converted(&sum, &[]);
    assert!(found[0].as_ref().unwrap().contains("with the adapter"), "{found:?}");
    assert_eq!(found[1..], originals[1..]);
}

/// Codes and scales are copied as they are, or become the floats that they stand for.
#[test]
fn quantised_models_are_copied_or_become_floats() {
    let folder = tempfile::tempdir().unwrap();
    let [fp8, copy, floats] = ["fp8", "copy", "floats"].map(|name| path(folder.path(), name));
    // 1, 2 and -1, each times a half.
    let codes = [0x38, 0x40, 0xb8].repeat(8);
    let tensors = Tensors::from([
        (UP.into(), Stored { dtype: Dtype::F8_E4M3, shape: vec![4, 6], bytes: codes }),
        (format!("{UP}_scale"), stored(Dtype::F32, &[4, 1], &[0.5; 4])),
    ]);
    models::write(Path::new(&fp8), &tensors, PLAIN);
    let how =
        json!({ "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {} });
    let config = json!({ "model_type": "llama", "quantization_config": how });
    fs::write(Path::new(&fp8).join("config.json"), config.to_string()).unwrap();
    run(["convert", &fp8, &copy]).succeeded();
    assert!(models::read(Path::new(&copy)) == tensors);
    run(["convert", &fp8, &floats, "--dtype", "float16"]).succeeded();
    let halves: Vec<f32> = [0.5, 1.0, -0.5].repeat(8);
    let expected = Tensors::from([(UP.into(), stored(Dtype::F16, &[4, 6], &halves))]);
    assert!(models::read(Path::new(&floats)) == expected);
    let text = |folder: &str| fs::read_to_string(Path::new(folder).join("config.json")).unwrap();
    assert!(text(&copy).contains("float-quantized") && !text(&floats).contains("quantization_config"));
}

/// Values that the type cannot hold are counted, and reported by the tensor.
#[test]
fn what_a_type_cannot_hold_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let [large, out] = ["large", "out"].map(|name| path(folder.path(), name));
    let tensors = Tensors::from([(UP.into(), stored(Dtype::BF16, &[2, 2], &[1.0, 7e4, -1e30, 2.0]))]);
    models::write(Path::new(&large), &tensors, PLAIN);
    let ended = run(["convert", &large, &out, "--dtype", "float16", "--json"]).succeeded();
    assert!(ended.stderr.contains(&format!("tensor {UP}: 2 results overflowed")), "{}", ended.stderr);
    let manifest: Json = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(manifest["odd_values"][UP]["overflowed"], 2);
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let (folder, model_path, out) = case(PLAIN);
    let convert = |model: &str, more: &[&str]| run([&["convert", model, &out][..], more].concat());
    convert(&path(folder.path(), "nowhere"), &[]).failed(2, &["nowhere", "hint: "]);
    convert(&model_path, &["--dtype", "bf16"]).failed(2, &["'bf16'", "bfloat16, float16, float32, float64"]);
    for (flag, value) in [("--random-seed", Some("1")), ("--device", Some("cpu")), ("--tensor-union", None)] {
        let given: Vec<&str> = std::iter::once(flag).chain(value).collect();
        let says = format!("{flag} means nothing here: it is a flag of merges");
        convert(&model_path, &given).failed(2, &[&says]);
    }
    convert(&model_path, &["--no-lazy-unpickle"]).failed(2, &["--no-lazy-unpickle means nothing here"]);
    let help = run(["convert", "--help"]).succeeded().stdout;
    for flag in ["--random-seed", "--device", "--allow-crimes", "--no-cache"] {
        assert!(!help.contains(flag), "{flag}");
    }
    for flag in ["--dtype", "--out-shard-size", "--threads", "--host-memory", "--trace", "--strict"] {
        assert!(help.contains(flag), "{flag}");
    }
    // An adapter is no model by itself.
    let adapter = path(folder.path(), "adapter");
    let module = UP.strip_suffix(".weight").unwrap();
    let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    write_adapter(Path::new(&adapter), json!({}), &[(&a, &[2, 6]), (&b, &[9, 2])]);
    convert(&adapter, &[]).failed(3, &["adapter", "hint: this is an adapter: write "]);
    // Codes that are no products with a scale.
    let packed = path(folder.path(), "packed");
    let codes = Stored { dtype: Dtype::I32, shape: vec![2, 2], bytes: vec![7; 16] };
    models::write(Path::new(&packed), &Tensors::from([(format!("{UP}.qweight"), codes)]), PLAIN);
    let config =
        json!({ "model_type": "llama", "quantization_config": { "quant_method": "gptq", "bits": 4 } });
    fs::write(Path::new(&packed).join("config.json"), config.to_string()).unwrap();
    convert(&packed, &["--dtype", "bfloat16"]).failed(2, &["gptq, 4 bits", "hint: "]);
    assert_nothing_left(folder.path());
    // A place that is taken, or an input.
    fs::create_dir(&out).unwrap();
    fs::write(Path::new(&out).join("mine"), "").unwrap();
    convert(&model_path, &[]).failed(2, &["out exists and is not empty", "hint: "]);
    run(["convert", &model_path, &model_path]).failed(2, &["overlap"]);
    assert_eq!(
        (names(&out), names(&model_path)),
        (vec!["mine".to_owned()], vec!["config.json".into(), "model.safetensors".into()])
    );
}
