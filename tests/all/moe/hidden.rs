//! Routers of hidden states.

use std::collections::HashMap;
use std::path::Path;

use mergeforge::decoder::{Decoder, Processor, States, Sums, Weights};
use mergeforge::error::Error;
use mergeforge::stream::Budget;
use mergeforge::{prepare_moe, read_moe};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::{
    CHOICES, EXAMPLE, HIDDEN, LAYERS, PROMPTED, config_of, mixed, mixed_by, refused, set_config, write_dense,
};
use crate::models::{RUN, values};

/// The tensors of a model, as a forward pass reads them.
struct InMemory(HashMap<String, Vec<f32>>);

impl Weights for InMemory {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn read(&mut self, name: &str, first: u64, into: &mut [f32]) -> Result<(), Error> {
        into.copy_from_slice(&self.0[name][first as usize..][..into.len()]);
        Ok(())
    }
}

#[test]
fn hidden_states_make_the_routers_of_their_layers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let tokenizer = Tokenizer::from_file(Path::new(EXAMPLE).join("tokenizer.json")).unwrap();
    let begin = u64::from(tokenizer.token_to_id("<s>").unwrap());
    let texts: Vec<Vec<u64>> = ["a fever", "the patient has a cold", "hello", "hello there"]
        .map(|prompt| {
            let tokens = tokenizer.encode(prompt, false).unwrap();
            std::iter::once(begin).chain(tokens.get_ids().iter().map(|token| u64::from(*token))).collect()
        })
        .to_vec();
    // Of each expert its prompts, and those that it is not meant for.
    let experts = [([0, 1].as_slice(), [2].as_slice()), (&[3], &[])];
    let architectures =
        [("llama", "block_sparse_moe"), ("mistral", "block_sparse_moe"), ("qwen2", "mlp"), ("qwen3", "mlp")];
    for (model_type, block) in architectures {
        let [base, ..] = [("base", 1), ("one", 2), ("two", 3)]
            .map(|(name, seed)| write_dense(&folder.join(name), model_type, seed));
        let mut own = config_of(model_type);
        // Qwen3 means 128 where it says nothing.
        own["head_dim"] = json!(8);
        set_config(&folder.join("base"), &own);
        let decoder = Decoder::of(own.as_object().unwrap()).unwrap();
        let mut weights =
            InMemory(base.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect());
        let mut config = PROMPTED.replace("gate_mode", "dtype: float32\ngate_mode");
        let shared = model_type == "qwen2";
        if shared {
            config += "shared_experts: [{source_model: DIR/two, positive_prompts: [hello]}]\n";
        }
        for mode in ["hidden", "hidden_last", "hidden_avg"] {
            let config = config.replace("cheap_embed", mode);
            let (out, _) = mixed(folder, &config);
            let machine = &mut Processor::new(Sums::Ordered, 1);
            let mut states = States::of(&decoder, &texts, &mut weights, machine).unwrap();
            for layer in 0..LAYERS {
                let mut of_texts: Vec<Vec<f64>> = Vec::new();
                let take = |text: &[f32]| {
                    let counts = if mode == "hidden_avg" { 0 } else { text.len() - HIDDEN };
                    let tokens = ((text.len() - counts) / HIDDEN) as f64;
                    let of = |column: usize| -> f64 {
                        text[counts..].iter().skip(column).step_by(HIDDEN).map(|x| f64::from(*x)).sum()
                    };
                    of_texts.push((0..HIDDEN).map(|column| of(column) / tokens).collect());
                };
                states.texts(machine, take).unwrap();
                let mean = |texts: &[usize], column: usize| {
                    texts.iter().map(|text| of_texts[*text][column]).sum::<f64>()
                        / (texts.len() as f64).max(1.0)
                };
                let row = |(positive, negative): (&[usize], &[usize])| -> Vec<f64> {
                    let row: Vec<f64> =
                        (0..HIDDEN).map(|column| mean(positive, column) - mean(negative, column)).collect();
                    let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                    row.into_iter().map(|x| x / length).collect()
                };
                let check = |name: String, expected: Vec<f64>| {
                    let found = values(&out[&name]);
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.into_iter().zip(expected) {
                        let apart = (f64::from(found) - expected).abs();
                        assert!(apart < 1e-6, "{model_type} {mode} {name}: {apart}");
                    }
                };
                check(
                    format!("model.layers.{layer}.{block}.gate.weight"),
                    experts.iter().flat_map(|expert| row(*expert)).collect(),
                );
                if shared {
                    check(format!("model.layers.{layer}.mlp.shared_expert_gate.weight"), row((&[2], &[])));
                }
                states.advance(layer, &mut weights, machine).unwrap();
            }
            // One pass over the base below its last layer, however many routers are made of it.
            let read = |config: &str| {
                let file = folder.join("moe.yml");
                std::fs::write(&file, config.replace("DIR", &folder.display().to_string())).unwrap();
                let prepared = prepare_moe(&read_moe(&file).unwrap(), false, &CHOICES).unwrap();
                prepared.plan.read_bytes(&prepared.sources).0
            };
            let below = |name: &&String| name.starts_with("model.layers.0.");
            let elements: usize =
                weights.0.iter().filter(|(name, _)| below(name)).map(|(_, own)| own.len()).sum();
            let tokens: usize = texts.iter().map(Vec::len).sum();
            let drawn = read(&config.replace(&format!("gate_mode: {mode}"), "gate_mode: random"));
            assert_eq!(read(&config) - drawn, 2 * (elements + tokens * HIDDEN) as u64, "{model_type} {mode}");
            let budget = Budget { threads: 1, ..RUN.budget };
            assert_eq!(mixed_by(folder, &config, &CHOICES, budget).unwrap().0, out);
        }
    }
}

#[test]
fn a_base_without_a_forward_pass_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, seed) in [("base", 1), ("one", 2), ("two", 3)] {
        write_dense(&folder.join(name), "llama", seed);
    }
    let check = |change: &dyn Fn(&mut Value), says: &str, hint: &str| {
        let mut config = config_of("llama");
        change(&mut config);
        set_config(&folder.join("base"), &config);
        let (message, hinted) = refused(folder, &PROMPTED.replace("cheap_embed", "hidden"));
        assert!(message.contains(says) && hinted.contains(hint), "{message}\nhint: {hinted}");
    };
    check(
        &|config| config["rope_scaling"] = json!({ "rope_type": "longrope" }),
        "moe.yml:2:12: gate_mode hidden needs hidden states of base: no forward pass with positions of type longrope",
        "`gate_mode: cheap_embed`",
    );
    check(
        &|config| config["hidden_size"] = json!(48),
        "moe.yml:2:12: gate_mode hidden needs hidden states of base: its config.json has a hidden_size of 48, its \
         embedding 24",
        "`gate_mode: cheap_embed`",
    );
    check(
        &|config| config["num_key_value_heads"] = json!(3),
        "tensor model.layers.0.self_attn.k_proj.weight: it is [8, 24] in base, whose config.json asks for [24, 24]",
        "correct that config.json",
    );
    check(
        &|config| config["num_hidden_layers"] = json!(1),
        "moe.yml:2:12: gate_mode hidden needs hidden states of base: its config.json has a num_hidden_layers of 1, and its \
         tensors are of 2",
        "`gate_mode: cheap_embed`",
    );
    check(
        &|config| {
            config["rope_scaling"] = json!({ "rope_type": "dynamic", "factor": 2 });
            config["max_position_embeddings"] = json!(4);
        },
        "moe.yml:2:12: gate_mode hidden: a prompt has ",
        "write shorter prompts",
    );
    set_config(&folder.join("base"), &config_of("llama"));
    let contradictory = PROMPTED.replace("[hello]", "['the patient has a cold', a fever]");
    let (message, _) = refused(folder, &contradictory);
    assert!(message.contains("one has the same prompts as negative_prompts"), "{message}");
    let notes = |config: &str| {
        let file = folder.join("moe.yml");
        std::fs::write(&file, config.replace("DIR", &folder.display().to_string())).unwrap();
        prepare_moe(&read_moe(&file).unwrap(), false, &CHOICES).unwrap().plan.notes.join("\n")
    };
    let alike = PROMPTED
        .replace("a fever, 'the patient has a cold'", "a fever.")
        .replace("[hello]", "[hello.]")
        .replace("[hello there]", "[hello there.]");
    for (mode, noted) in
        [("hidden", true), ("hidden_last", true), ("hidden_avg", false), ("cheap_embed", false)]
    {
        let found = notes(&alike.replace("cheap_embed", mode));
        assert_eq!(found.contains("all prompts end with the same token"), noted, "{mode}: {found}");
    }
    assert!(!notes(&PROMPTED.replace("cheap_embed", "hidden")).contains("end with the same token"));
}
