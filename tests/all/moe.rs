//! Mixtures of experts from dense models: names, values and config of every architecture, routers, noise, refusals.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mergeforge::backend::devices::processor;
use mergeforge::checkpoint::Reads;
use mergeforge::error::Error;
use mergeforge::input::{Drawn, Law, Made, ReadElements, draw_key};
use mergeforge::plan::Choices;
use mergeforge::stream::Budget;
use mergeforge::{Options, Stopped, merge, prepare_moe, read_moe};
use safetensors::Dtype;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::command;
use crate::models::{self, PLAIN, Quiet, RUN, Stored, Tensors, stored, values, weights};

mod hidden;

const LAYERS: usize = 2;
const HIDDEN: usize = 24;
const INNER: usize = 40;
const VOCABULARY: usize = 1024;
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/base");

const MATRICES: [(&str, [usize; 2]); 3] =
    [("gate_proj", [INNER, HIDDEN]), ("up_proj", [INNER, HIDDEN]), ("down_proj", [HIDDEN, INNER])];

/// A dense model of a type, with the tokenizer of the example.
fn write_dense(folder: &Path, model_type: &str, seed: u64) -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let seed = 1000 * seed + tensors.len() as u64;
        tensors.insert(name, stored(Dtype::BF16, shape, &weights(shape.iter().product(), seed)));
    };
    add("model.embed_tokens.weight".into(), &[VOCABULARY, HIDDEN]);
    add("model.norm.weight".into(), &[HIDDEN]);
    add("lm_head.weight".into(), &[VOCABULARY, HIDDEN]);
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| add(format!("model.layers.{layer}.{name}"), shape);
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
        for (projection, rows) in [("q", HIDDEN), ("k", 8), ("v", 8), ("o", HIDDEN)] {
            add(&format!("self_attn.{projection}_proj.weight"), &[rows, HIDDEN]);
            if model_type == "qwen2" && projection != "o" {
                add(&format!("self_attn.{projection}_proj.bias"), &[rows]);
            }
        }
        if model_type == "qwen3" {
            add("self_attn.q_norm.weight", &[8]);
            add("self_attn.k_norm.weight", &[8]);
        }
        for (matrix, shape) in MATRICES {
            add(&format!("mlp.{matrix}.weight"), &shape);
        }
    }
    models::write(folder, &tensors, PLAIN);
    set_config(folder, &config_of(model_type));
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(EXAMPLE).join(file), folder.join(file)).unwrap();
    }
    tensors
}

fn config_of(model_type: &str) -> Value {
    json!({
        "architectures": ["X"], "model_type": model_type, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": VOCABULARY,
        "torch_dtype": "bfloat16", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    })
}

fn set_config(folder: &Path, config: &Value) {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

const CHOICES: Choices = Choices { seed: 7, ..Choices::USUAL };

/// Makes the mixture of a config, in which DIR stands for the folder.
fn mixed_by(
    folder: &Path,
    config: &str,
    choices: &Choices,
    budget: Budget,
) -> Result<(Tensors, Value), Error> {
    let (file, out) = (folder.join("moe.yml"), folder.join("out"));
    fs::write(&file, config.replace("DIR", &folder.display().to_string())).unwrap();
    let prepared = prepare_moe(&read_moe(&file)?, false, choices)?;
    let options = Options {
        out: out.clone(),
        device: processor(),
        budget,
        copy_tokenizer: true,
        model_card: true,
        inputs_hashed: false,
        reads: Reads::Mapped,
        cache: None,
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    merge(&prepared, &options, &Quiet)?;
    let (tensors, config) = (models::read(&out), fs::read(out.join("config.json")).unwrap());
    assert!(out.join("mergekit_moe_config.yml").is_file() && !out.join("mergekit_config.yml").exists());
    fs::remove_dir_all(out).unwrap();
    Ok((tensors, serde_json::from_slice(&config).unwrap()))
}

fn mixed(folder: &Path, config: &str) -> (Tensors, Value) {
    mixed_by(folder, config, &CHOICES, RUN.budget).unwrap_or_else(|error| panic!("{error}\n{config}"))
}

fn refused(folder: &Path, config: &str) -> (String, String) {
    let error = mixed_by(folder, config, &CHOICES, RUN.budget).expect_err(config);
    assert!(!folder.join("out").exists());
    let plain = |text: &str| text.replace(&format!("{}/", folder.display()), "");
    (plain(&error.message), plain(&error.hint.unwrap_or_default()))
}

/// What a mixture has of its base, and of each expert under which names; what is left are routers and biases.
fn check_copies(
    out: &Tensors,
    base: &Tensors,
    parts: &[(String, &Tensors, [&str; 3])],
) -> BTreeMap<String, Stored> {
    let mut rest = out.clone();
    let mut take =
        |name: &str, expected: &Stored| assert_eq!(rest.remove(name).as_ref(), Some(expected), "{name}");
    for (name, tensor) in base.iter().filter(|(name, _)| !name.contains(".mlp.")) {
        take(name, tensor);
    }
    for layer in (0..LAYERS).map(|layer| format!("model.layers.{layer}.")) {
        for (block, source, words) in parts {
            for ((matrix, _), word) in MATRICES.iter().zip(words) {
                let own = &source[&format!("{layer}mlp.{matrix}.weight")];
                take(&format!("{layer}{block}.{word}.weight"), own);
            }
        }
    }
    rest
}

const OF_MIXTRAL: [&str; 3] = ["w1", "w3", "w2"];
const OF_QWEN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

const RANDOM: &str = "base_model: DIR/base\ngate_mode: random\nexperts: [{source_model: DIR/one}, {source_model: DIR/base}, {source_model: DIR/two}]\n";

#[test]
fn llama_models_become_a_mixtral() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [base, one, two] = [("base", 1), ("one", 2), ("two", 3)]
        .map(|(name, seed)| write_dense(&folder.join(name), "llama", seed));
    let (out, config) = mixed(folder, RANDOM);
    let block = |expert: usize| format!("block_sparse_moe.experts.{expert}");
    let parts = [(block(0), &one, OF_MIXTRAL), (block(1), &base, OF_MIXTRAL), (block(2), &two, OF_MIXTRAL)];
    let routers = check_copies(&out, &base, &parts);
    assert_eq!(routers.len(), LAYERS);
    for (name, router) in &routers {
        let drawn = Drawn { key: draw_key(7, name), law: Law::Normal };
        assert_eq!(*router, stored(Dtype::BF16, &[3, HIDDEN], &drawn_values(drawn, 3 * HIDDEN)), "{name}");
    }
    let routers: Vec<&Stored> = routers.values().collect();
    assert_ne!(routers[0], routers[1]);
    let expected = json!({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 3, "num_key_value_heads": 1, "vocab_size": VOCABULARY,
        "torch_dtype": "bfloat16", "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "num_local_experts": 3, "num_experts_per_tok": 2,
        "sliding_window": null,
    });
    assert_eq!(config, expected);
    let other = Choices { seed: 8, ..CHOICES };
    let (again, _) = mixed_by(folder, RANDOM, &other, RUN.budget).unwrap();
    let differing: Vec<&String> = out.keys().filter(|name| out[*name] != again[*name]).collect();
    assert_eq!(differing.len(), LAYERS, "{differing:?}");
}

struct Nothing;

impl ReadElements for Nothing {
    fn bytes(&mut self, _: usize, _: u64, _: &mut [u8]) -> mergeforge::error::Result<()> {
        panic!("it is made of nothing")
    }
}

fn drawn_values(drawn: Drawn, elements: usize) -> Vec<f32> {
    let mut bytes = vec![0; 4 * elements];
    drawn.read(0..elements as u64, &mut bytes, &mut Nothing).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect()
}

#[test]
fn every_architecture_has_its_names_and_keys() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let write = |model_type: &str| {
        [("base", 1), ("one", 2), ("two", 3)]
            .map(|(name, seed)| write_dense(&folder.join(name), model_type, seed))
    };
    let shared = format!("{RANDOM}shared_experts: [{{source_model: DIR/two}}]\n");
    let expert = |expert: usize| format!("mlp.experts.{expert}");
    let router = |layer: usize| format!("model.layers.{layer}.mlp.gate.weight");

    let [base, one, two] = write("qwen3");
    let (out, config) = mixed(folder, RANDOM);
    let parts = [(expert(0), &one, OF_QWEN), (expert(1), &base, OF_QWEN), (expert(2), &two, OF_QWEN)];
    assert!(check_copies(&out, &base, &parts).into_keys().eq((0..LAYERS).map(router)));
    assert_eq!(config["architectures"], json!(["Qwen3MoeForCausalLM"]));
    assert_eq!([&config["num_experts"], &config["moe_intermediate_size"]], [&json!(3), &json!(INNER)]);
    assert_eq!([&config["norm_topk_prob"], &config["head_dim"]], [&json!(true), &json!(128)]);

    for (model_type, has_biases) in [("qwen2", true), ("llama", false)] {
        let [base, one, two] = write(model_type);
        let (out, config) = mixed(folder, &format!("{shared}architecture: qwen\n"));
        let mut parts =
            vec![(expert(0), &one, OF_QWEN), (expert(1), &base, OF_QWEN), (expert(2), &two, OF_QWEN)];
        parts.push(("mlp.shared_expert".into(), &two, OF_QWEN));
        let mut rest = check_copies(&out, &base, &parts);
        for layer in 0..LAYERS {
            assert_eq!(rest.remove(&router(layer)).unwrap().shape, [3, HIDDEN]);
            let gate = rest.remove(&format!("model.layers.{layer}.mlp.shared_expert_gate.weight")).unwrap();
            assert_eq!(gate.shape, [1, HIDDEN]);
            for (projection, rows) in [("q", HIDDEN), ("k", 8), ("v", 8)].into_iter().filter(|_| !has_biases)
            {
                let bias =
                    rest.remove(&format!("model.layers.{layer}.self_attn.{projection}_proj.bias")).unwrap();
                assert_eq!(bias, stored(Dtype::BF16, &[rows], &vec![0.0; rows]));
            }
        }
        assert!(rest.is_empty(), "{:?}", rest.keys());
        assert_eq!(config["model_type"], "qwen2_moe");
        let sizes = ["moe_intermediate_size", "shared_expert_intermediate_size"].map(|key| &config[key]);
        assert_eq!(sizes, [&json!(INNER); 2]);
    }

    let [base, one, two] = write("mistral");
    for (shared_experts, config) in [(1, shared), (0, format!("{RANDOM}architecture: deepseek\n"))] {
        let (out, config) = mixed(folder, &config);
        let mut parts =
            vec![(expert(0), &one, OF_QWEN), (expert(1), &base, OF_QWEN), (expert(2), &two, OF_QWEN)];
        parts.extend((shared_experts == 1).then(|| ("mlp.shared_experts".into(), &two, OF_QWEN)));
        assert!(check_copies(&out, &base, &parts).into_keys().eq((0..LAYERS).map(router)));
        assert_eq!(config["architectures"], json!(["DeepseekForCausalLM"]));
        assert_eq!(config["n_shared_experts"], if shared_experts == 1 { json!(1) } else { Value::Null });
        assert_eq!([&config["n_routed_experts"], &config["first_k_dense_replace"]], [&json!(3), &json!(0)]);
    }
}

/// A layer's MLP in f64.
fn mlp(x: &[f64], [gate, up, down]: [&Stored; 3]) -> Vec<f64> {
    let times = |matrix: &Stored, x: &[f64]| -> Vec<f64> {
        let rows = values(matrix);
        let row = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
        rows.chunks_exact(matrix.shape[1]).map(row).collect()
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let inner: Vec<f64> =
        times(gate, x).into_iter().zip(times(up, x)).map(|(gate, up)| silu(gate) * up).collect();
    times(down, &inner)
}

/// The shares of the two experts that Mixtral takes add up to 1: experts that are equal do what the dense model does.
#[test]
fn equal_experts_are_the_dense_model() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let dense = write_dense(&folder.join("base"), "llama", 1);
    let one = "{source_model: DIR/base}";
    let (out, _) = mixed(
        folder,
        &format!("base_model: DIR/base\ngate_mode: uniform_random\nexperts: [{one}, {one}, {one}, {one}]\n"),
    );
    for layer in (0..LAYERS).map(|layer| format!("model.layers.{layer}.")) {
        let router = &out[&format!("{layer}block_sparse_moe.gate.weight")];
        let bound = (1.0 / HIDDEN as f32).sqrt();
        assert!(values(router).iter().all(|weight| weight.abs() <= bound + 1e-3));
        for seed in 0..5 {
            let x: Vec<f64> = weights(HIDDEN, 77 + seed).iter().map(|x| 10.0 * f64::from(*x)).collect();
            let score = |row: &[f32]| row.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
            let scores: Vec<f64> = values(router).chunks_exact(HIDDEN).map(score).collect();
            let mut order: Vec<usize> = (0..4).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let all: f64 = order[..2].iter().map(|expert| scores[*expert].exp()).sum();
            let mut mixture = [0.0; HIDDEN];
            for expert in &order[..2] {
                let own = OF_MIXTRAL
                    .map(|word| &out[&format!("{layer}block_sparse_moe.experts.{expert}.{word}.weight")]);
                let share = scores[*expert].exp() / all;
                mixture.iter_mut().zip(mlp(&x, own)).for_each(|(sum, y)| *sum += share * y);
            }
            let expected =
                mlp(&x, MATRICES.map(|(matrix, _)| &dense[&format!("{layer}mlp.{matrix}.weight")]));
            for (found, expected) in mixture.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            }
        }
    }
}

const PROMPTED: &str = "base_model: DIR/base\ngate_mode: cheap_embed\nexperts:\n\
    - {source_model: DIR/one, positive_prompts: [a fever, 'the patient has a cold'], negative_prompts: [hello]}\n\
    - {source_model: DIR/two, positive_prompts: [hello there]}\n";

#[test]
fn prompts_make_the_routers_by_their_embeddings() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [base, ..] = [("base", 1), ("one", 2), ("two", 3)]
        .map(|(name, seed)| write_dense(&folder.join(name), "llama", seed));
    let (out, _) = mixed(folder, PROMPTED);
    let tokenizer = Tokenizer::from_file(Path::new(EXAMPLE).join("tokenizer.json")).unwrap();
    let embeddings = values(&base["model.embed_tokens.weight"]);
    let unit = |vector: Vec<f64>| -> Vec<f64> {
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        vector.into_iter().map(|x| x / length).collect()
    };
    let direction = |prompts: &[&str]| {
        let mut sum = vec![0.0; HIDDEN];
        for prompt in prompts {
            // Each begins with the token that texts begin with, which is one token.
            let tokens = tokenizer.encode(*prompt, false).unwrap();
            let begin = tokenizer.token_to_id("<s>").unwrap();
            for token in [&[begin], tokens.get_ids()].concat() {
                let row = &embeddings[token as usize * HIDDEN..][..HIDDEN];
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
        }
        unit(sum)
    };
    let positive = direction(&["a fever", "the patient has a cold"]);
    let first = unit(positive.iter().zip(direction(&["hello"])).map(|(p, n)| p - n).collect());
    let expected = [first, direction(&["hello there"])].concat();
    for layer in 0..LAYERS {
        let router = &out[&format!("model.layers.{layer}.block_sparse_moe.gate.weight")];
        assert_eq!((router.dtype, &router.shape[..]), (Dtype::BF16, &[2, HIDDEN][..]));
        for (found, expected) in values(router).iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() <= expected.abs() / 250.0, "{found} {expected}");
        }
    }
    // However it is cut.
    let budget = Budget { threads: 5, chunk_tiles: Some(1), ..RUN.budget };
    assert_eq!(mixed_by(folder, PROMPTED, &CHOICES, budget).unwrap().0, out);
}

#[test]
fn noise_and_factors_change_the_experts_that_ask_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let dense = write_dense(&folder.join("base"), "llama", 1);
    let config = "base_model: DIR/base\ngate_mode: random\ndtype: float32\nexperts:\n\
        - {source_model: DIR/base, noise_scale: 0.125}\n- {source_model: DIR/base, noise_scale: 0.125, residual_scale: 0.5}\n\
        - {source_model: DIR/base, residual_scale: 2}\n";
    let (out, config) = mixed(folder, config);
    assert_eq!(config["torch_dtype"], "float32");
    let (mut noise, mut last) = (Vec::new(), Vec::new());
    for layer in (0..LAYERS).map(|layer| format!("model.layers.{layer}.")) {
        for (place, (matrix, _)) in MATRICES.iter().enumerate() {
            let x = values(&dense[&format!("{layer}mlp.{matrix}.weight")]);
            let name = |expert: usize| {
                format!("{layer}block_sparse_moe.experts.{expert}.{}.weight", OF_MIXTRAL[place])
            };
            let factor = |factor: f32| if *matrix == "down_proj" { factor } else { 1.0 };
            let scaled: Vec<f32> = x.iter().map(|x| x * factor(2.0)).collect();
            assert_eq!(values(&out[&name(2)]), scaled);
            for (expert, factor) in [(0, 1.0), (1, factor(0.5))] {
                let drawn = Drawn { key: draw_key(7, &name(expert)), law: Law::Normal };
                let drawn = drawn_values(drawn, x.len());
                let expected: Vec<f32> =
                    x.iter().zip(&drawn).map(|(x, z)| (x + 0.125 * z) * factor).collect();
                assert_eq!(values(&out[&name(expert)]), expected);
                noise.extend(drawn.iter().map(|z| f64::from(*z)));
                assert_ne!(last, drawn);
                last = drawn;
            }
        }
    }
    let variance = noise.iter().map(|z| z * z).sum::<f64>() / noise.len() as f64;
    assert!((variance - 1.0).abs() < 5.0 * (2.0 / noise.len() as f64).sqrt(), "{variance}");
}

#[test]
fn what_makes_no_mixture_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [base, one, _] = [("base", 1), ("one", 2), ("two", 3)]
        .map(|(name, seed)| write_dense(&folder.join(name), "llama", seed));
    let check = |config: &str, says: &str, hint: &str| {
        let (message, hinted) = refused(folder, config);
        assert!(message.contains(says) && hinted.contains(hint), "{message}\nhint: {hinted}");
    };
    for mode in ["hidden", "hidden_avg", "hidden_last", "cheap_embed"] {
        check(&RANDOM.replace("random", mode), "one has no positive_prompts", "gate_mode: random");
    }
    check(&RANDOM.replace("gate_mode: random\n", ""), "one has no positive_prompts", "gate_mode: random");
    let same = PROMPTED
        .replace("hello there", "a fever, 'the patient has a cold'")
        .replace(", negative_prompts: [hello]", "");
    check(&same, "moe.yml:4:3: all experts have the same prompts", "gate_mode: random");
    let equal = PROMPTED.replace("DIR/two", "DIR/one");
    check(&equal, "all experts are the same model", "--i-understand-this-is-not-useful-without-training");
    check(
        &format!("{RANDOM}experts_per_token: 4\n"),
        "moe.yml:4:20: experts_per_token is 4, of 3 in all",
        "smaller",
    );
    let empty = PROMPTED.replace("[hello there]", "['']");
    fs::write(folder.join("base/tokenizer_config.json"), "{}").unwrap();
    check(&empty, "moe.yml:5:3: the tokenizer makes no tokens of these positive_prompts", "not empty");

    let broken = |change: &dyn Fn(&mut Tensors), of: (&str, &Tensors), says: &str, hint: &str| {
        let mut tensors = of.1.clone();
        change(&mut tensors);
        models::write(&folder.join(of.0), &tensors, PLAIN);
        set_config(&folder.join(of.0), &config_of("llama"));
        check(RANDOM, says, hint);
        models::write(&folder.join(of.0), of.1, PLAIN);
        set_config(&folder.join(of.0), &config_of("llama"));
    };
    let bias = |tensors: &mut Tensors, name: &str| {
        tensors.insert(name.into(), stored(Dtype::BF16, &[8], &weights(8, 9)));
    };
    let no_place = "Mixtral has no place for it";
    let attention = "model.layers.1.self_attn.k_proj.bias";
    broken(
        &|tensors| bias(tensors, attention),
        ("base", &base),
        &format!("tensor {attention} of base: {no_place}"),
        "architecture",
    );
    let of_mlp = "model.layers.0.mlp.up_proj.bias";
    broken(
        &|tensors| bias(tensors, of_mlp),
        ("one", &one),
        &format!("tensor {of_mlp} of one: {no_place}"),
        "architecture",
    );
    broken(
        &|tensors| bias(tensors, "extra"),
        ("base", &base),
        &format!("tensor extra of base: {no_place}"),
        "architecture",
    );
    let up = "model.layers.1.mlp.up_proj.weight";
    let gone = |tensors: &mut Tensors| drop(tensors.remove(up));
    broken(&gone, ("one", &one), &format!("tensor {up}: the expert one has none"), "layers of the base");
    let turned = |tensors: &mut Tensors| tensors.get_mut(up).unwrap().shape.reverse();
    broken(
        &turned,
        ("one", &one),
        &format!("tensor {up}: it is [24, 40] in one, and [40, 24] in base"),
        "sizes",
    );
    let shallow = |tensors: &mut Tensors| tensors.retain(|name, _| !name.contains("layers.1."));
    broken(&shallow, ("one", &one), "one has 1 layers in model.layers, base has 2", "as many layers");
    let quantised = |tensors: &mut Tensors| {
        tensors.insert(
            up.into(),
            Stored { dtype: Dtype::I8, shape: vec![INNER, HIDDEN], bytes: vec![1; INNER * HIDDEN] },
        );
    };
    broken(&quantised, ("one", &one), "w3.weight of one is I8, and a mixture is made of floats", "bfloat16");

    write_dense(&folder.join("one"), "mistral", 2);
    check(RANDOM, "Mixtral takes models of one type (--allow-crimes: of several)", "change the models");
    let allowed = Choices { allow_crimes: true, ..CHOICES };
    mixed_by(folder, RANDOM, &allowed, RUN.budget).unwrap();
    write_dense(&folder.join("one"), "phi3", 2);
    check(RANDOM, "these models (llama, phi3) cannot be experts of one model", "change the models");
}

/// A tokenizer that is not there, is none, or makes tokens that the embedding has not.
#[test]
fn tokenizers_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [base, ..] = [("base", 1), ("one", 2), ("two", 3)]
        .map(|(name, seed)| write_dense(&folder.join(name), "llama", seed));
    let tokenizer = folder.join("base/tokenizer.json");
    let own = fs::read_to_string(&tokenizer).unwrap();
    let mut small = base.clone();
    let rows = 5;
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        small.insert(name.into(), stored(Dtype::BF16, &[rows, HIDDEN], &weights(rows * HIDDEN, 5)));
    }
    models::write(&folder.join("base"), &small, PLAIN);
    set_config(&folder.join("base"), &config_of("llama"));
    let (message, _) = refused(folder, PROMPTED);
    assert!(
        message.contains("base: its tokenizer has the token") && message.contains("and its embedding 5 rows"),
        "{message}"
    );
    models::write(&folder.join("base"), &base, PLAIN);
    set_config(&folder.join("base"), &config_of("llama"));
    for text in [
        "",
        "{}",
        "[1]",
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": [[\"a\", \"b\"]]}}",
        &own[..own.len() / 2],
    ] {
        fs::write(&tokenizer, text).unwrap();
        let (message, hint) = refused(folder, PROMPTED);
        assert!(message.contains("tokenizer.json of base cannot be used"), "{message}");
        assert!(hint.contains("gate_mode: random"), "{hint}");
    }
    // Twice as long with every step.
    let mut doubling: Value = serde_json::from_str(&own).unwrap();
    let step = json!({ "type": "Replace", "pattern": { "String": "e" }, "content": "ee" });
    doubling["normalizer"] = json!({ "type": "Sequence", "normalizers": vec![step; 60] });
    fs::write(&tokenizer, doubling.to_string()).unwrap();
    assert!(refused(folder, PROMPTED).0.ends_with("its normalizer could make any text too long"));
    fs::remove_file(&tokenizer).unwrap();
    let (message, hint) = refused(folder, PROMPTED);
    assert!(message.contains("base has no tokenizer.json"), "{message}");
    assert!(hint.contains("AutoTokenizer"), "{hint}");
    mixed(folder, RANDOM);
}

#[test]
fn the_command_takes_what_is_typed_for_mergekit_moe() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        write_dense(&folder.join(name), "llama", seed);
    }
    let written = |text: &str| command::config(folder, &text.replace("DIR", &folder.display().to_string()));
    let out = folder.join("out");
    let equal = PROMPTED.replace("DIR/two", "DIR/one");
    let typed = [
        "--i-understand-this-is-not-useful-without-training",
        "--load-in-4bit",
        "--cuda",
        "--trust-remote-code",
    ];
    let config = written(&equal);
    let [config, out] = [&config, &out].map(|path| path.to_str().unwrap());
    command::run(["moe", config, out]).failed(2, &["all experts are the same model"]);
    for flag in ["-i", "-u"] {
        let ended = command::run([&["moe", config, out, flag][..], &typed[..1]].concat());
        ended.failed(2, &["a mixture merges no tensors", "leave them out"]);
    }
    let ended = command::run([&["moe", config, out][..], &typed].concat()).succeeded();
    for part in ["note: --load-in-4bit: not needed", "note: --cuda", "moe of ", "2 experts as Mixtral"] {
        assert!(ended.stderr.contains(part), "no `{part}` in\n{}", ended.stderr);
    }
    let manifest: Value =
        serde_json::from_slice(&fs::read(folder.join("out/mergeforge.json")).unwrap()).unwrap();
    assert_eq!(manifest["method"], "moe");
    let card = fs::read_to_string(folder.join("out/README.md")).unwrap();
    assert!(card.contains("Method: `moe`") && card.contains("positive_prompts"), "{card}");

    written(RANDOM);
    command::run(["merge", config, "/nowhere/out"])
        .failed(2, &["this is a config of mergekit-moe", "mergeforge moe"]);
    let plan = command::run(["plan", config]).succeeded().stdout;
    for part in [
        "random numbers, normally distributed",
        "block_sparse_moe.gate.weight",
        "note     3 experts as Mixtral",
    ] {
        assert!(plan.contains(part), "no `{part}` in\n{plan}");
    }
    let json: Value =
        serde_json::from_str(&command::run(["plan", config, "--json"]).succeeded().stdout).unwrap();
    let tensors = json["tensors"].as_array().unwrap();
    let router =
        tensors.iter().find(|tensor| tensor["name"].as_str().unwrap().ends_with("gate.weight")).unwrap();
    assert_eq!(router["action"], json!({ "made": ["random numbers, normally distributed"] }), "{router}");
}
