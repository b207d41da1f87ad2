//! What an adapter cannot be made of, or not as it is asked for: refusals, and what is left out.

use super::*;

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const SHAPES: [(&str, &[usize]); 4] = [(EMBEDDING, &[12, 8]), (Q, &[8, 8]), (UP, &[16, 8]), (NORM, &[8])];

fn llama() -> Json {
    json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"] })
}

fn refused(folder: &Path, [tuned, base]: &[String; 2], flags: &[&str], says: &[&str]) {
    extract(folder, [tuned, base], "refused", flags).failed(2, says);
    assert!(!folder.join("refused").exists());
}

fn report(ended: &Ended) -> Json {
    serde_json::from_str(&ended.stdout).unwrap()
}

/// A sum is computed in float32, and saved as what its model is: in float64.
#[test]
fn sums_of_float64_are_saved_as_float64() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let doubles = |seed: u64| {
        let bytes = weights(64, seed).iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect();
        Stored { dtype: Dtype::F64, shape: vec![8, 8], bytes }
    };
    let base = Tensors::from([(Q.into(), doubles(1)), (DOWN.into(), doubles(2))]);
    write(&at("base"), &base, &llama());
    let parts = [Q, DOWN].map(|name| name.trim_end_matches(".weight"));
    let names: Vec<String> =
        parts.iter().flat_map(|part| ["A", "B"].map(|which| format!("{part}.lora_{which}.weight"))).collect();
    let shapes: [&[usize]; 4] = [&[2, 8], &[8, 2], &[2, 8], &[8, 2]];
    let tensors: Vec<_> = names.iter().map(String::as_str).zip(shapes).collect();
    write_adapter(&at("lora"), json!({}), &tensors);
    let (sum, base) = (format!("{0}/base+{0}/lora", folder.path().display()), at("base"));
    let flags = ["--save-module", "q_proj", "--rank", "2"];
    extract(folder.path(), [&sum, base.to_str().unwrap()], "out", &flags).succeeded();
    let text = format!("merge_method: passthrough\nmodels: [{{model: {sum}}}]\n");
    models::run(folder.path(), &text, "sum", RUN).unwrap();
    let found = weights_of(&at("out"));
    let found = safetensors::SafeTensors::deserialize(&found).unwrap();
    let found = found.tensor(&format!("base_model.model.{Q}")).unwrap();
    let expected = &models::read(&at("sum"))[Q];
    assert_eq!((found.dtype(), expected.dtype), (Dtype::F64, Dtype::F64));
    assert!(found.data() == expected.bytes);
}

/// Factors share what alpha leaves to them, and are refused where their type does not hold them.
#[test]
fn factors_beyond_their_type_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let pair = pair_of(folder.path(), &SHAPES, &llama(), |_| true);
    let flags = |alpha: &'static str, dtype: &'static str| {
        ["--rank", "4", "--alpha", alpha, "--dtype", dtype, "--json"]
    };
    let small = extract(folder.path(), [&pair[0], &pair[1]], "small", &flags("1e-7", "float16")).succeeded();
    for module in report(&small)["modules"].as_array().unwrap() {
        assert!(module["error"].as_f64().unwrap() < 1e-2, "{module}");
    }
    let says = ["model.layers.0.", "F16", "--alpha 1e-20", "a larger --alpha"];
    refused(folder.path(), &pair, &flags("1e-20", "float16"), &says);
    refused(folder.path(), &pair, &flags("1e-60", "float32"), &["alpha over rank", "leave out --alpha"]);
}

/// PEFT loads no adapter without a product: what changed is named, and why nothing of it gets one.
#[test]
fn adapters_without_a_product_are_refused_with_the_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let pair = pair_of(folder.path(), &SHAPES, &llama(), |_| true);
    let hint = "change these flags";
    for (flags, says) in [
        (&["--modules", "norm"][..], [Q, "not among --modules", NORM, "no matrix of a module"]),
        (&["--exclude", "."], [Q, "left out with --exclude", NORM, "no matrix of a module"]),
        (&["--modules", "embed_tokens"], [EMBEDDING, "--embeddings is not given", Q, hint]),
        (&["--save-module", "q_proj", "--exclude", "mlp"], [Q, "saved whole", UP, hint]),
    ] {
        refused(folder.path(), &pair, flags, &says);
    }
    let folder = tempfile::tempdir().unwrap();
    let pair = pair_of(folder.path(), &SHAPES, &llama(), |name| name == NORM);
    for flags in [&["--save-changed"][..], &[]] {
        refused(
            folder.path(),
            &pair,
            flags,
            &["no weight gets a product", NORM, "use the fine-tuned model itself"],
        );
    }
    let other = tempfile::tempdir().unwrap();
    let only_q = pair_of(other.path(), &SHAPES, &llama(), |name| name == Q);
    refused(
        other.path(),
        &only_q,
        &["--save-module", "q_proj"],
        &[Q, "no --save-module gives a product", hint],
    );
    let equal = [pair[1].clone(), pair[1].clone()];
    refused(folder.path(), &equal, &[], &["differ in nothing", "4 tensors are the same"]);
    // Models of two architectures.
    let other = ["transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"];
    let other = other.map(|name| (name.to_owned(), stored(Dtype::F32, &[8, 8], &weights(64, 1))));
    write(&folder.path().join("other"), &Tensors::from(other), &json!({ "model_type": "gpt2" }));
    let other = folder.path().join("other").to_str().unwrap().to_owned();
    let says = ["no tensor in common", "not in the base", "c_attn", "only in the base", "up_proj"];
    refused(folder.path(), &[other, pair[1].clone()], &[], &says);
}

/// NaN and infinity stop a product only, and only where both models do not have them alike.
#[test]
fn numbers_that_are_none_are_left_out_and_listed() {
    const MASK: &str = "model.layers.0.self_attn.mask";
    let folder = tempfile::tempdir().unwrap();
    let of = |seed: u64, q: f32, norm: f32| {
        let mut tensors: Tensors = SHAPES
            .into_iter()
            .map(|(name, shape)| {
                (name.to_owned(), stored(Dtype::F32, shape, &weights(shape.iter().product(), seed)))
            })
            .collect();
        let mut set = |name: &str, value: f32| {
            let tensor = tensors.get_mut(name).unwrap();
            tensor.bytes[..4].copy_from_slice(&value.to_le_bytes());
        };
        set(Q, q);
        set(NORM, norm);
        tensors.insert(MASK.into(), stored(Dtype::F32, &[4], &[f32::NEG_INFINITY, 0.0, f32::NAN, 1.0]));
        tensors
    };
    write(&folder.path().join("base"), &of(1, f32::INFINITY, 1.0), &llama());
    write(&folder.path().join("tuned"), &of(2, f32::INFINITY, f32::NAN), &llama());
    write(&folder.path().join("broken"), &of(2, f32::NAN, 1.0), &llama());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let found = extract(folder.path(), [&path("tuned"), &path("base")], "out", &["--json"]).succeeded();
    let found = report(&found);
    assert_eq!(found["unchanged"], 1, "{found}");
    let lost: Vec<_> = found["lost"].as_array().unwrap().iter().map(|lost| &lost["name"]).collect();
    assert_eq!(lost, [EMBEDDING, NORM]);
    assert_eq!(found["remarks"][0]["tensors"], json!([NORM]), "{found}");
    assert!(found["error"].as_f64().is_some_and(f64::is_finite), "{found}");
    assert!(card_of(&folder.path().join("out")).contains("NaN or infinity in one of the models"));
    // The hint of the refusal helps.
    let broken = [path("broken"), path("base")];
    let says = [Q, "NaN or infinity", "with --exclude"];
    extract(folder.path(), [&broken[0], &broken[1]], "no", &[]).failed(3, &says);
    extract(folder.path(), [&broken[0], &broken[1]], "mended", &["--exclude", "q_proj"]).succeeded();
}

/// The revision of a base is a key of its own.
#[test]
fn the_revision_of_the_base_is_no_part_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let [tuned, base] = pair_of(folder.path(), &SHAPES, &llama(), |_| true);
    let cached = folder.path().join("hub/models--org--b");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    for inner in ["refs", "snapshots"] {
        std::fs::create_dir_all(cached.join(inner)).unwrap();
    }
    std::fs::write(cached.join("refs/v1"), commit).unwrap();
    std::fs::rename(base, cached.join("snapshots").join(commit)).unwrap();
    let out = folder.path().join("out");
    let run = |arguments: &[&str]| {
        let mut started = command::mergeforge();
        started.env("HF_HUB_CACHE", folder.path().join("hub")).args(arguments);
        Ended::from(started.output().unwrap()).succeeded()
    };
    run(&["extract-lora", &tuned, "org/b@v1", out.to_str().unwrap(), "--quiet"]);
    let settings = out.join("adapter_config.json");
    let config: Json = serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&json!("org/b"), &json!("v1")));
    // Both forms are the model's own.
    let text = format!("merge_method: passthrough\nmodels: [{{model: org/b@v1+{}}}]\n", out.display());
    let merge = command::config(folder.path(), &text);
    for name in ["org/b", "org/b@v1", "org/c"] {
        let mut config = config.clone();
        config["base_model_name_or_path"] = json!(name);
        std::fs::write(&settings, config.to_string()).unwrap();
        let ended = run(&["plan", merge.to_str().unwrap()]);
        assert_eq!(ended.stderr.contains("was trained on"), name == "org/c", "{}", ended.stderr);
    }
}

/// What PEFT cannot put a product around is left out, and listed; what it passes over is a warning.
#[test]
fn modules_that_peft_does_not_load_are_left_out() {
    for (family, router) in [
        ("qwen2_moe", "model.layers.0.mlp.gate"),
        ("gpt_oss", "model.layers.0.mlp.router"),
        ("jamba", "model.layers.0.feed_forward.router"),
        ("mamba", "backbone.layers.0.mixer.out_proj"),
        ("opt", "model.decoder.embed_positions"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let weight = format!("{router}.weight");
        let convolution = "backbone.layers.0.mixer.conv1d.weight";
        let shapes: [(&str, &[usize]); 3] = [(Q, &[8, 8]), (&weight, &[8, 8]), (convolution, &[8, 1, 4])];
        let config = json!({ "model_type": family });
        let flags = ["--rank", "2", "--embeddings", "--save-changed"];
        let adapter = extracted(folder.path(), &shapes, &config, &flags);
        // Only the kernels of Mamba read a convolution past PEFT.
        let saved = usize::from(family != "mamba");
        assert_eq!(shapes_of(&adapter).len(), 2 + saved, "{family}");
        assert!(card_of(&adapter).contains(&format!("| `{weight}` | 1 |")), "{family}");
    }
    let expert = "model.layers.1.mlp.experts.0.up_proj.weight";
    for (family, passed_over) in
        [("deepseek_v3", Some(UP)), ("jamba", Some(expert)), ("qwen2_moe", Some(expert)), ("llama", None)]
    {
        let folder = tempfile::tempdir().unwrap();
        let shapes: [(&str, &[usize]); 3] = [(Q, &[8, 8]), (UP, &[8, 8]), (expert, &[8, 8])];
        let pair = pair_of(folder.path(), &shapes, &json!({ "model_type": family }), |_| true);
        let ended = extract(folder.path(), [&pair[0], &pair[1]], "out", &[]).succeeded();
        let line = ended.stderr.lines().find(|line| line.contains("PEFT 0.21 does not apply them"));
        assert_eq!(line.is_some(), passed_over.is_some(), "{family}: {}", ended.stderr);
        if let (Some(line), Some(name)) = (line, passed_over) {
            assert!(line.starts_with("warning: ") && line.ends_with(name), "{line}");
            assert!(card_of(&folder.path().join("out")).contains("PEFT 0.21 does not apply them"));
        }
    }
}

/// GPT-NeoX's head has another name once it is loaded, as a product and saved whole.
#[test]
fn the_head_of_gpt_neox_is_named_as_it_is_loaded() {
    const HEAD: &str = "embed_out.weight";
    let shapes: [(&str, &[usize]); 2] =
        [(HEAD, &[12, 8]), ("gpt_neox.layers.0.attention.dense.weight", &[8, 8])];
    let config = json!({ "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"] });
    for (flags, name, key) in [
        (&["--rank", "8"][..], "lm_head.lora_A.weight", "target_modules"),
        (&["--save-module", "embed_out"], "lm_head.weight", "modules_to_save"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let adapter = extracted(folder.path(), &shapes, &config, flags);
        assert!(shapes_of(&adapter).contains_key(name));
        let settings: Json =
            serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
        assert!(settings[key].as_array().unwrap().contains(&json!("lm_head")), "{settings}");
        let path = folder.path().display();
        let text = format!("merge_method: passthrough\nmodels: [{{model: {path}/base+{path}/adapter}}]\n");
        models::run(folder.path(), &text, "out", RUN).unwrap();
        let [found, tuned] = ["out", "tuned"].map(|name| models::read(&folder.path().join(name)));
        close(&found, HEAD, |i| f64::from(values(&tuned[HEAD])[i]));
    }
}

/// PEFT stacks the factors of a layer's experts: where one has a product, all of them have factors.
#[test]
fn experts_beside_one_that_changed_have_factors_of_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let name = |layer: usize, expert: usize, own: &str| {
        format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{own}.weight")
    };
    let names: Vec<String> = (0..12).map(|i| name(i / 6, i / 3 % 2, ["w1", "w2", "w3"][i % 3])).collect();
    let shapes: Vec<(&str, &[usize])> = names
        .iter()
        .map(|name| (name.as_str(), if name.contains("w2") { &[8, 6][..] } else { &[6, 8] }))
        .collect();
    let changed = name(1, 1, "w1");
    let config = json!({ "model_type": "mixtral", "architectures": ["MixtralForCausalLM"] });
    let pair = pair_of(folder.path(), &shapes, &config, |name| name == changed);
    let ended =
        extract(folder.path(), [&pair[0], &pair[1]], "adapter", &["--rank", "2", "--alpha", "2", "--json"])
            .succeeded();
    assert_eq!(report(&ended)["modules"].as_array().unwrap().len(), 1);
    let found = weights_of(&folder.path().join("adapter"));
    let found = safetensors::SafeTensors::deserialize(&found).unwrap();
    // Six modules with two factors, all of the rank.
    assert_eq!(found.len(), 12);
    for (name, tensor) in found.tensors() {
        assert!(name.contains("layers.1.") && tensor.shape().contains(&2), "{name} {:?}", tensor.shape());
        let is_zero = tensor.data().iter().all(|byte| *byte == 0);
        assert_eq!(is_zero, !name.contains("experts.1.w1"), "{name}");
    }
    let path = folder.path().display();
    let text = format!("merge_method: passthrough\nmodels: [{{model: {path}/base+{path}/adapter}}]\n");
    models::run(folder.path(), &text, "out", RUN).unwrap();
    let [found, tuned] = ["out", "tuned"].map(|name| models::read(&folder.path().join(name)));
    close(&found, &changed, |i| f64::from(values(&tuned[&changed])[i]));
}
