//! What is given to the program byte by byte, each as the file that it would be, through the functions that commands call.
//!
//! A target takes bytes and an own folder. It returns where the bytes were read or refused, and panics where that was done wrongly.
//! The fuzzers run targets on what they make up, and `tests/all/kept.rs` runs them on all that is kept in `kept/`.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use mergeforge::checkpoint::{Source, config_json};
use mergeforge::config::Config;
use mergeforge::error::{Error, Result};
use mergeforge::eval::Chat;
use mergeforge::plan::Choices;
use mergeforge::text::is_escaped;
use mergeforge::tokenizer::Runner;
use mergeforge::{Prepared, Written, prepare_config};

/// A target: reads the bytes in a folder that nothing else uses meanwhile.
pub type Target = fn(&[u8], &Path);

/// All of them by name, which is also that of their fuzzer and of their folder in `kept/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("header", header),
    ("archive", archive),
    ("pickle", pickle),
    ("index", index),
    ("config", config),
    ("companions", companions),
    ("tokenizer", tokenizer),
    ("runner", runner),
    ("template", template),
    ("adapter", adapter),
    ("yaml", yaml),
];

thread_local! {
    /// What this thread has read and not refused.
    pub static ACCEPTED: Cell<usize> = const { Cell::new(0) };
}

/// A file of safetensors.
pub fn header(bytes: &[u8], folder: &Path) {
    tensors(bytes, &folder.join("x.safetensors"));
}

/// A file of `torch.save`.
pub fn archive(bytes: &[u8], folder: &Path) {
    tensors(bytes, &folder.join("x.bin"));
}

/// The pickle of such a file, beside 64 bytes of a storage.
pub fn pickle(bytes: &[u8], folder: &Path) {
    tensors(&zip(&[("m/data.pkl", bytes), ("m/data/0", &[1; 64])]), &folder.join("x.bin"));
}

fn tensors(bytes: &[u8], path: &Path) {
    fs::write(path, bytes).expect("the folder can be written");
    if let Some(source) = checked(Source::open_tensors("x", path)) {
        let file_bytes = bytes.len() as u64;
        for tensor in source.tensors() {
            let end = tensor.offset.checked_add(tensor.bytes);
            assert!(end.is_some_and(|end| end <= file_bytes), "{tensor:?} of {file_bytes} bytes");
        }
    }
}

/// The index of two shards.
pub fn index(bytes: &[u8], folder: &Path) {
    fs::write(folder.join("config.json"), "{}").expect("the folder can be written");
    for (shard, name) in [("part-1.safetensors", "a"), ("part-2.safetensors", "b")] {
        write_tensors(&folder.join(shard), &[(name, &[2])]);
    }
    fs::write(folder.join("model.safetensors.index.json"), bytes).expect("the folder can be written");
    checked(Source::open("x", folder));
}

/// `config.json`.
pub fn config(bytes: &[u8], folder: &Path) {
    merged(bytes, folder, "config.json", "merge_method: linear\nparameters: {weight: 1}\n");
}

/// One of the small files beside the weights: the first byte says which.
pub fn companions(bytes: &[u8], folder: &Path) {
    const FILES: [&str; 5] = [
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.json",
    ];
    let Some((which, bytes)) = bytes.split_first() else { return };
    let file = FILES[usize::from(*which) % FILES.len()];
    FILES.iter().for_each(|file| drop(fs::remove_file(folder.join("b").join(file))));
    let led = format!("tokenizer_source: {}\n", folder.join("a").display());
    merged(bytes, folder, file, &format!("merge_method: linear\nparameters: {{weight: 1}}\n{led}"));
}

/// `tokenizer.json`, which is made one with another.
pub fn tokenizer(bytes: &[u8], folder: &Path) {
    merged(bytes, folder, "tokenizer.json", UNION);
}

const UNION: &str =
    "merge_method: linear\nparameters: {weight: 1}\ntokenizer_source: union\nchat_template: auto\n";

/// Two models, of which the first has these bytes as a file: their merge is planned.
fn merged(bytes: &[u8], folder: &Path, file: &str, config: &str) {
    for model in ["a", "b"] {
        write_model(&folder.join(model));
    }
    fs::write(folder.join("a/tokenizer.json"), TOKENIZER.replace(r#""it":2,"is":3"#, r#""is":2,"was":3"#))
        .expect("the folder can be written");
    fs::write(folder.join("b").join(file), bytes).expect("the folder can be written");
    let model = |name: &str| format!("- model: {}\n", folder.join(name).display());
    plan(&format!("{config}models:\n{}{}", model("b"), model("a")));
}

/// Plans a merge, and makes all of its output that needs no weights.
fn plan(text: &str) {
    let config = Config::parse("fuzz.yml", text).expect("the config is right");
    let Some(prepared) = checked(prepare_config(config, &Choices::USUAL)) else { return };
    let Prepared { plan, companions, .. } = &prepared;
    let donor = plan.tokenizer.config_text.as_ref().unwrap_or(&prepared.donor().config_text);
    drop(config_json(donor, &plan.config_edits));
    companions.written().for_each(drop);
    plan.warnings.iter().for_each(check_error);
}

/// `tokenizer.json`, which makes tokens of a text.
pub fn runner(bytes: &[u8], folder: &Path) {
    write_model(folder);
    fs::write(folder.join("tokenizer.json"), bytes).expect("the folder can be written");
    let source = Source::open("x", folder).expect("the model is right");
    if let Some(runner) = checked(Runner::open(&source)) {
        checked(runner.encode("It is 12 °C: don't\u{301} go out\n\n", true));
    }
}

/// A chat template, which makes a turn of a question.
pub fn template(bytes: &[u8], folder: &Path) {
    write_model(folder);
    fs::write(folder.join("chat_template.jinja"), bytes).expect("the folder can be written");
    let source = Source::open("x", folder).expect("the model is right");
    let runner = Runner::open(&source).expect("the tokenizer is right");
    if let Some(chat) = checked(Chat::of(&source, &runner)) {
        checked(chat.turn("How far is it to the moon?"));
    }
}

/// `adapter_config.json`, of an adapter that is added.
pub fn adapter(bytes: &[u8], folder: &Path) {
    let adapter = folder.join("adapter");
    write_model(&folder.join("b"));
    fs::create_dir_all(&adapter).expect("the folder can be written");
    let of_module = |part: &str| format!("base_model.model.model.layers.0.w.lora_{part}.weight");
    let (a, b) = (of_module("A"), of_module("B"));
    write_tensors(&adapter.join("adapter_model.safetensors"), &[(&a, &[2, 4]), (&b, &[4, 2])]);
    fs::write(adapter.join("adapter_config.json"), bytes).expect("the folder can be written");
    let model = format!("{}+{}", folder.join("b").display(), adapter.display());
    plan(&format!("merge_method: passthrough\nmodels: [{{model: {model:?}}}]\n"));
}

/// A config.
pub fn yaml(bytes: &[u8], _folder: &Path) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    checked(Written { name: "fuzz.yml".into(), text: text.into() }.any_or_space());
}

/// What there is if it was read; a refusal has to say in a line what is wrong.
fn checked<T>(read: Result<T>) -> Option<T> {
    match read {
        Ok(read) => {
            ACCEPTED.set(ACCEPTED.get() + 1);
            Some(read)
        }
        Err(error) => {
            error.one_by_one().iter().for_each(check_error);
            None
        }
    }
}

fn check_error(error: &Error) {
    check_line(&error.message);
    error.hint.iter().for_each(|hint| check_line(hint));
}

fn check_line(line: &str) {
    let chars = line.chars().count();
    assert!((1..=1100).contains(&chars), "{chars} characters: {line:?}");
    assert!(!line.contains(is_escaped), "{line:?}");
}

/// A tokenizer of four tokens.
const TOKENIZER: &str = r#"{"version":"1.0","added_tokens":[{"id":1,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"<unk>":0,"</s>":1,"it":2,"is":3},"unk_token":"<unk>"}}"#;

/// A small model of one layer, with a tokenizer.
fn write_model(folder: &Path) {
    const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","num_hidden_layers":1,"vocab_size":4,"eos_token_id":1}"#;
    fs::create_dir_all(folder).expect("the folder can be written");
    fs::write(folder.join("config.json"), CONFIG).expect("the folder can be written");
    fs::write(folder.join("tokenizer.json"), TOKENIZER).expect("the folder can be written");
    let tensors: [(&str, &[usize]); 3] = [
        ("model.embed_tokens.weight", &[4, 4]),
        ("model.layers.0.w.weight", &[4, 4]),
        ("model.norm.weight", &[4]),
    ];
    write_tensors(&folder.join("model.safetensors"), &tensors);
}

/// A file of safetensors of zeros in float32.
fn write_tensors(path: &Path, tensors: &[(&str, &[usize])]) {
    let mut start = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, shape)| {
            let end = start + 4 * shape.iter().product::<usize>();
            let entry =
                format!(r#"{name:?}:{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#);
            start = end;
            entry
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let mut file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    file.resize(file.len() + start, 0);
    fs::write(path, file).expect("the folder can be written");
}

/// An archive of these entries, as they are.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let (place, bytes) = ((file.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes());
        let name_bytes = (name.len() as u16).to_le_bytes();
        // Versions, flags, method, times and checksum are zeros: nothing of them is looked at but the method.
        file.extend(
            [b"PK\x03\x04", &[0; 14][..], &bytes, &bytes, &name_bytes, &[0; 2], name.as_bytes(), data]
                .concat(),
        );
        directory.extend(
            [b"PK\x01\x02", &[0; 16][..], &bytes, &bytes, &name_bytes, &[0; 12], &place, name.as_bytes()]
                .concat(),
        );
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (bytes, place) = ((directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes());
    [&file[..], &directory, b"PK\x05\x06", &[0; 4], &count, &count, &bytes, &place, &[0; 2]].concat()
}
