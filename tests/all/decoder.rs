//! Hidden states of our forward pass against those that transformers makes of the same models, which
//! `tools/decoder_states.py` has recorded.

use std::collections::HashMap;

use mergeforge::backend::devices::choose;
use mergeforge::decoder::{Cuda, Decoder, EMBEDDING, Machine, Processor, States, Sums, Weights};
use mergeforge::error::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What the order of sums in float32 leaves of values near 1, with some room.
const CLOSE: f64 = 2e-5;

#[derive(Deserialize)]
struct Recorded {
    texts: Vec<Vec<u64>>,
    kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "kind")]
    name: String,
    config: Map<String, Value>,
    /// Of each text, before the second and the third layer, the last state and the mean.
    states: Vec<Vec<[Vec<f64>; 2]>>,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("decoder_states.json")).unwrap()
}

/// The elements of a tensor, as `value` of the tool has them.
fn values(name: &str, count: usize) -> Vec<f32> {
    let seed: u64 = (1..).zip(name.bytes()).map(|(place, byte)| place * u64::from(byte)).sum();
    let around = if name.contains("norm") { 1.0 } else { 0.0 };
    let step = |i: u64| (i * 7919 + seed * 104_729) % 2003;
    (0..count as u64).map(|i| (around + (step(i) as f64 - 1001.0) / 2500.0) as f32).collect()
}

/// A model in memory, and the elements that were read of it.
struct Stored {
    tensors: HashMap<String, Vec<f32>>,
    read: usize,
}

impl Stored {
    fn of(decoder: &Decoder, with_biases: impl Fn(&str) -> bool) -> Self {
        let embedding = (EMBEDDING.to_owned(), vec![decoder.vocabulary, decoder.hidden]);
        let biases = decoder.biases(decoder.layers).into_iter().filter(|(name, _)| with_biases(name));
        let all = decoder.tensors(decoder.layers).into_iter().chain(biases).chain([embedding]);
        let tensors = all.map(|(name, shape)| {
            let elements = values(&name, shape.iter().product());
            (name, elements)
        });
        Self { tensors: tensors.collect(), read: 0 }
    }
}

impl Weights for Stored {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn read(&mut self, name: &str, first: u64, into: &mut [f32]) -> Result<()> {
        self.read += into.len();
        into.copy_from_slice(&self.tensors[name][first as usize..][..into.len()]);
        Ok(())
    }
}

/// The model of a kind, with the biases that its family has.
fn stored(kind: &Kind, decoder: &Decoder) -> Stored {
    let is_set = |key: &str| kind.config.get(key) == Some(&json!(true));
    let attention = is_set("attention_bias");
    let of_qwen = kind.config["model_type"] == "qwen2";
    Stored::of(decoder, |name| {
        let attends = name.contains("self_attn");
        (attends && attention)
            || (attends && of_qwen && !name.contains("o_proj"))
            || (!attends && is_set("mlp_bias"))
    })
}

fn texts_of(states: &States<'_>, machine: &mut dyn Machine) -> Vec<Vec<f32>> {
    let mut found = Vec::new();
    states.texts(machine, |text| found.push(text.to_vec())).unwrap();
    found
}

/// Names a device that states are to be computed on beside the processor, by `--device`'s names: a process that finds a driver for
/// it says so.
pub const DEVICE: &str = "MERGEFORGE_TEST_DEVICE";

#[test]
fn states_are_those_of_transformers() {
    let Recorded { texts, kinds } = recorded();
    assert!(kinds.len() >= 10);
    let mut machines: Vec<Box<dyn Machine>> =
        vec![Box::new(Processor::new(Sums::Ordered, 2)), Box::new(Processor::new(Sums::Fastest, 2))];
    if let Ok(word) = std::env::var(DEVICE) {
        let (device, _) = choose(&word).unwrap();
        machines = vec![Box::new(Cuda::open(&device, 2, None, 0).unwrap())];
    }
    for (kind, machine) in kinds.iter().flat_map(|kind| (0..2).map(move |machine| (kind, machine))) {
        let Some(machine) = machines.get_mut(machine).map(|machine| &mut **machine) else { continue };
        let decoder = Decoder::of(&kind.config).unwrap();
        let mut weights = stored(kind, &decoder);
        let mut states = States::of(&decoder, &texts, &mut weights, machine).unwrap();
        for layer in 0..2 {
            states.advance(layer, &mut weights, machine).unwrap();
            for (number, own) in texts_of(&states, machine).into_iter().enumerate() {
                let [last, mean] = &kind.states[number][layer];
                let tokens = own.len() / decoder.hidden;
                for (column, (last, mean)) in last.iter().zip(mean).enumerate() {
                    let of = |token: usize| f64::from(own[token * decoder.hidden + column]);
                    let found = [of(tokens - 1), (0..tokens).map(of).sum::<f64>() / tokens as f64];
                    for (found, recorded) in found.into_iter().zip([last, mean]) {
                        let apart = (found - recorded).abs();
                        assert!(
                            apart < CLOSE,
                            "{} {machine:?}, text {number}, layer {layer}: {apart}",
                            kind.name
                        );
                    }
                }
            }
        }
    }
}

/// The states of a text do not depend on those beside it, on threads, or on how many tokens there are.
#[test]
fn states_have_the_same_bits_in_any_company() {
    let Recorded { texts, kinds } = recorded();
    let kind = &kinds[0];
    let decoder = Decoder::of(&kind.config).unwrap();
    let long: Vec<u64> = (0..90).map(|token| token * token % 13).collect();
    let many: Vec<&[u64]> = texts.iter().chain([&long]).cycle().take(11).map(Vec::as_slice).collect();
    let of = |texts: &[&[u64]], threads: usize| -> Vec<Vec<u32>> {
        let mut weights = stored(kind, &decoder);
        let machine = &mut Processor::new(Sums::Ordered, threads);
        let mut states = States::of(&decoder, texts, &mut weights, machine).unwrap();
        (0..3).for_each(|layer| states.advance(layer, &mut weights, machine).unwrap());
        texts_of(&states, machine).iter().map(|text| text.iter().map(|x| x.to_bits()).collect()).collect()
    };
    let together = of(&many, 3);
    assert_eq!(together, of(&many, 1));
    for (text, together) in many.iter().zip(&together) {
        assert_eq!(&of(&[text], 1)[0], together);
    }
    // Earlier tokens do not see later ones.
    assert_eq!(of(&[&long[..70]], 1)[0], together[2][..70 * decoder.hidden]);
}

#[test]
fn what_has_no_forward_pass_is_refused_by_name() {
    let Recorded { kinds, .. } = recorded();
    let qwen = kinds.iter().find(|kind| kind.config["model_type"] == "qwen3").unwrap();
    let refused = |key: &str, value: Value| {
        let mut config = qwen.config.clone();
        config.insert(key.into(), value);
        Decoder::of(&config).unwrap_err()
    };
    for (key, value, says) in [
        (
            "model_type",
            json!("gemma"),
            "no forward pass for models of type gemma, only llama, mistral, qwen2, qwen3",
        ),
        ("model_type", json!(null), "its config.json has no model_type"),
        ("hidden_act", json!("gelu"), "no forward pass with the activation \"gelu\""),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor of 0.5"),
        ("rope_scaling", json!({ "rope_type": "longrope" }), "positions of type longrope"),
        ("rope_scaling", json!({ "rope_type": "linear" }), "no number above 0 for factor of linear rope"),
        (
            "rope_scaling",
            json!({ "rope_type": "llama3", "factor": 0 }),
            "no number above 0 for factor of llama3 rope",
        ),
        ("rope_theta", json!(-1.0), "rope_theta of -1"),
        ("num_key_value_heads", json!(3), "its 4 heads cannot share 3 of keys and values"),
        ("head_dim", json!(7), "its heads have 7 elements, which are no pairs"),
        ("hidden_size", json!("24"), "config.json has \"24\" for hidden_size"),
        ("num_hidden_layers", json!(0), "config.json has 0 for num_hidden_layers"),
        ("layer_types", json!(["full_attention"]), "1 layer_types for 3 layers"),
        (
            "layer_types",
            json!(["full_attention", "linear_attention", "x"]),
            "a layer of type \"linear_attention\"",
        ),
    ] {
        let found = refused(key, value);
        assert!(found.contains(says), "{key}: {found}");
    }
}
