//! The files beside the donor's weights: what of its folder is copied, and what is left out and why.
//!
//! A file is copied if its name is that of a kind that models are loaded with: settings, tokenizers, templates, code, licences.
//! What loading is known to need is refused where it cannot be copied; any other file is then left out. All that is neither
//! copied nor made anew is listed, so that nothing gets lost without a word.

use std::collections::{BTreeMap, BTreeSet};

use super::folder::{InputFile, unless_unread};
use super::layout::INDEX;
use super::sidecars::{CARD, Content, MANIFEST, MODEL_CONFIG, Sidecar};
use super::source::Source;
use super::weight_files::is_safetensors;
use crate::error::{Error, Result};
use crate::limits::{
    COMPANION_BYTES_MAX, COMPANIONS_MAX, FILES_MAX, FOLDERS_DEEP_MAX, MODULE_BYTES_MAX, POINTER_BYTES_MAX,
    TOKENIZER_BYTES_MAX,
};
use crate::text::is_escaped;

/// The file that holds all of a tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// Files that hold a vocabulary, or a part of one, in other forms. The parts come last: who names a file for all names another one.
pub const OTHER_VOCABULARIES: &[&str] = &[
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
];
/// How a tokenizer rewrites texts, of some.
const NORMALIZER: &str = "normalizer.json";
/// Small files that loading needs where they are: settings of the tokenizer, the processor, generation, and of sentence-transformers.
pub(super) const SETTINGS: &[&str] = &[
    "chat_template.jinja",
    "chat_template.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
];
/// Vocabularies of tiktoken.
const VOCABULARY: &str = ".tiktoken";
/// The code of a model that brings its own.
const CODE: &str = ".py";
/// A folder of further templates.
const TEMPLATES: &str = "additional_chat_templates";
/// What transformers reads there.
const TEMPLATE: &str = ".jinja";

/// Endings of what models may be loaded with.
const USEFUL: &[&str] = &[
    ".bpe", ".cfg", ".codes", ".cpp", ".cu", ".cuh", ".h", ".ini", ".j2", ".jinja", ".json", ".model",
    ".spm", ".toml", ".vocab", ".yaml", ".yml",
];
/// Parts of the names of texts that tokenizers read.
const USEFUL_TEXTS: &[&str] = &["bpe", "dict", "merges", "requirements", "token", "vocab"];
/// Beginnings of the names of terms, which go where the weights go.
const TERMS: &[&str] =
    &["acceptable_use", "copying", "copyright", "licence", "license", "notice", "terms", "use_policy"];

/// Endings of weights, in whatever format.
const WEIGHTS: &[&str] = &[
    ".bin",
    ".ckpt",
    ".ggml",
    ".gguf",
    ".h5",
    ".mlmodel",
    ".mlpackage",
    ".msgpack",
    ".nemo",
    ".npy",
    ".npz",
    ".onnx",
    ".onnx.data",
    ".onnx_data",
    ".ot",
    ".pb",
    ".pkl",
    ".pt",
    ".pth",
    ".safetensors",
    ".tflite",
];
/// Names, or their beginnings where a `*` follows, of what trainers keep.
const TRAINING: &[&str] = &[
    "all_results.json",
    "checkpoint-*",
    "eval_results.json",
    "events.out.tfevents*",
    "global_step*",
    "latest",
    "logs",
    "optimizer*",
    "rng_state*",
    "runs",
    "scaler.pt",
    "scheduler*",
    "train_results.json",
    "trainer_log*",
    "trainer_state.json",
    "training_args*",
    "wandb",
    "zero_to_fp32.py",
];
/// The same of what says how weights are quantised, which those of the output are not.
const QUANTISED: &[&str] = &["hf_quant_config.json", "quant_config.json", "quantize_config.json"];

/// The files of a donor's folder that are no part of the checkpoint which is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Companions {
    /// Those that are copied byte for byte, sorted by name.
    pub copied: Vec<Companion>,
    /// Those that are written anew, sorted by name.
    pub written: Vec<(String, String)>,
    /// The others, in the order of the folder.
    pub left_out: Vec<LeftFile>,
}

/// What a merge changes among the files beside the weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revision {
    written: BTreeMap<String, String>,
    left_out: BTreeMap<String, &'static str>,
}

impl Revision {
    /// A file gets this text, whether or not it was there.
    pub fn write(&mut self, file: &str, text: String) {
        self.written.insert(file.into(), text);
    }

    /// The text that a file gets, if it is written anew.
    pub fn written(&self, file: &str) -> Option<&str> {
        self.written.get(file).map(String::as_str)
    }

    /// A file is not copied, for that reason.
    pub fn leave_out(&mut self, file: &str, reason: &'static str) {
        self.left_out.insert(file.into(), reason);
    }
}

/// A file that is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    /// Its name in both folders; a `/` leads into a folder there.
    pub file: String,
    /// The model whose it is, as its source is named.
    pub model: String,
    /// Where it is copied from.
    pub original: InputFile,
    /// How long it is now.
    pub bytes: u64,
}

/// A file, or a folder with all in it, that is not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftFile {
    /// Its name in the donor's folder; that of a folder ends in a `/`.
    pub file: String,
    /// Why.
    pub reason: String,
}

const CARD_OF_DONOR: &str = "describes the donor, not the merge";
const HIDDEN: &str = "hidden";
const INDEX_OF_WEIGHTS: &str = "lists weights: the output has its own index where it needs one";
const NOT_MERGED: &str = "weights that are not merged";
const OF_ADAPTER: &str = "an adapter, which is not merged";
const OF_EARLIER: &str = "of an earlier merge";
const OF_QUANTISED: &str = "says how weights are quantised";
const OF_TRAINING: &str = "state of a training";
const TOO_DEEP: &str = "a folder too deep";
const UNNEEDED: &str = "nothing that models are loaded with";

/// What is to become of a file, as far as its name says it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Copied, or the merge is refused.
    Needed,
    /// Copied if it can be.
    Useful,
    LeftOut(&'static str),
}

/// What becomes of the files of a donor's folder. Of a model that is a single file there are none.
///
/// # Errors
/// Kind `Input`: a folder cannot be listed; a file that loading needs is missing behind its link, lies outside of the model, is
/// no file, is too large, or may not be read; or there are too many.
pub fn companions(donor: &Source) -> Result<Companions> {
    let mut search = Search { donor, found: Companions::default(), listed: 0 };
    if donor.is_folder() {
        search.look_into("", &donor.folder.names("")?)?;
    }
    let mut found = search.found;
    found.copied.sort_unstable_by(|a, b| a.file.cmp(&b.file));
    Ok(found)
}

impl Companions {
    /// The copies, as files of the output.
    pub fn sidecars(&self) -> impl Iterator<Item = Sidecar> {
        let copy = |file: &Companion| Sidecar {
            file: file.file.clone(),
            content: Content::CopyOf(file.original.clone()),
        };
        self.copied.iter().map(copy)
    }

    /// What is written anew, as files of the output.
    pub fn written(&self) -> impl Iterator<Item = Sidecar> {
        let written = |(file, text): &(String, String)| Sidecar {
            file: file.clone(),
            content: Content::Bytes(text.clone().into_bytes()),
        };
        self.written.iter().map(written)
    }

    /// What the copies take, and what is written anew.
    pub fn bytes(&self) -> u64 {
        let written = self.written.iter().map(|(_, text)| text.len() as u64);
        self.copied.iter().map(|file| file.bytes).chain(written).sum()
    }

    /// Takes the files of a tokenizer from another folder.
    #[must_use]
    pub fn with_tokenizer_of(mut self, other: Self) -> Self {
        const ANOTHER: &str = "another model's tokenizer is taken";
        let (own, kept) = self.copied.into_iter().partition(|file| is_of_tokenizer(&file.file));
        self.copied = kept;
        self.copied.extend(other.copied.into_iter().filter(|file| is_of_tokenizer(&file.file)));
        self.copied.sort_unstable_by(|a, b| a.file.cmp(&b.file));
        let is_replaced = |file: &Companion| self.copied.iter().any(|copied| copied.file == file.file);
        let own: Vec<Companion> = own;
        let lost = own.into_iter().filter(|file| !is_replaced(file));
        self.left_out.extend(lost.map(|file| LeftFile { file: file.file, reason: ANOTHER.into() }));
        self
    }

    /// The same of a model that stays what its own card says, which is copied too.
    #[must_use]
    pub fn with_card_of(self, donor: &Source) -> Self {
        let is_card = |left: &LeftFile| left.reason == CARD_OF_DONOR;
        let Some(card) = self.left_out.iter().position(is_card) else { return self };
        let mut search = Search { donor, found: self, listed: 0 };
        let LeftFile { file, .. } = search.found.left_out.remove(card);
        if let Err(refusal) = search.copy(file.clone()) {
            search.leave(file, false, refusal.message);
        }
        search.found.copied.sort_unstable_by(|a, b| a.file.cmp(&b.file));
        search.found
    }

    /// Changes what a merge changes.
    #[must_use]
    pub fn revised(mut self, revision: &Revision) -> Self {
        let is_copied = |file: &Companion| !revision.written.contains_key(&file.file);
        self.copied.retain(is_copied);
        for file in std::mem::take(&mut self.copied) {
            match revision.left_out.get(&file.file) {
                Some(reason) => self.left_out.push(LeftFile { file: file.file, reason: (*reason).into() }),
                None => self.copied.push(file),
            }
        }
        self.written = revision.written.clone().into_iter().collect();
        self
    }

    /// The same of a result that is merged on the way: what its merge wrote about itself is nothing that is left out, for whoever
    /// reads the result writes the same of all.
    #[must_use]
    pub fn of_result(mut self) -> Self {
        self.left_out.retain(|left| ![OF_EARLIER, CARD_OF_DONOR].contains(&left.reason.as_str()));
        self
    }

    /// The copies that are weights of modules that sentence-transformers puts behind the model: nothing of them is merged.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.copied.iter().map(|file| file.file.as_str()).filter(|file| is_weights(file))
    }
}

/// The donor's folder while it is looked through.
struct Search<'a> {
    donor: &'a Source,
    found: Companions,
    /// Files seen in folders of the folder.
    listed: usize,
}

impl Search<'_> {
    /// Decides on all entries of a folder; `below` is empty, or ends in a `/`.
    fn look_into(&mut self, below: &str, names: &BTreeSet<String>) -> Result<()> {
        for name in names {
            let path = format!("{below}{name}");
            if path == MODEL_CONFIG || self.donor.reads_file(&path) {
                continue;
            }
            let is_folder = self.donor.folder.leads_to_folder(&path)?;
            match fate(&path, names) {
                Fate::LeftOut(reason) if !(is_folder && reason == UNNEEDED) => {
                    self.leave(path, is_folder, reason);
                }
                fate if is_folder => self.folder(path, fate == Fate::Needed)?,
                Fate::Needed => self.copy(path)?,
                _ => {
                    if let Err(refusal) = self.copy(path.clone()) {
                        self.leave(path, false, unless_unread(refusal)?.message);
                    }
                }
            }
        }
        Ok(())
    }

    /// Decides on a folder within the folder.
    fn folder(&mut self, path: String, is_needed: bool) -> Result<()> {
        let names = match self.donor.folder.names(&path) {
            Err(refusal) if is_needed || path == TEMPLATES || is_in_module(&path) => return Err(refusal),
            Err(refusal) => {
                self.leave(path, true, unless_unread(refusal)?.message);
                return Ok(());
            }
            Ok(names) => names,
        };
        self.listed += names.len();
        let refused = if !is_in_module(&path) && names.iter().any(|name| is_weights(name)) {
            Some(NOT_MERGED.into())
        } else if path.matches('/').count() >= FOLDERS_DEEP_MAX {
            Some(TOO_DEEP.into())
        } else {
            (self.listed > FILES_MAX).then(|| format!("more than {FILES_MAX} files in all folders"))
        };
        if let Some(reason) = refused {
            self.leave(path, true, reason);
            return Ok(());
        }
        let (copied, left) = (self.found.copied.len(), self.found.left_out.len());
        self.look_into(&format!("{path}/"), &names)?;
        // One line instead of one for each picture.
        if self.found.copied.len() == copied {
            let inside = self.found.left_out.split_off(left);
            let first = inside.first().map_or(UNNEEDED, |left| left.reason.as_str());
            let reason = if inside.iter().all(|left| left.reason == first) { first } else { UNNEEDED };
            self.leave(path, true, reason);
        }
        Ok(())
    }

    fn copy(&mut self, file: String) -> Result<()> {
        if self.found.copied.len() == COMPANIONS_MAX {
            let folder = self.donor.folder.path.display();
            return Err(Error::input(format!(
                "more than {COMPANIONS_MAX} files are to be copied from {folder}"
            ))
            .hint("remove what the model does not need"));
        }
        let original = self.donor.folder.file(file.as_str());
        let bytes = original.bytes()?;
        original.check_size(bytes, companion_bytes_max(&file))?;
        if file.chars().any(is_escaped) || file.contains('\\') {
            let refusal =
                format!("the name of {} has characters that none should have", original.path().display());
            return Err(Error::input(refusal).hint("give it another name, or remove it"));
        }
        if bytes <= POINTER_BYTES_MAX {
            // Refuses what stands for a file that was not downloaded.
            original.read(POINTER_BYTES_MAX)?;
        }
        self.found.copied.push(Companion { file, model: self.donor.name.clone(), original, bytes });
        Ok(())
    }

    fn leave(&mut self, mut file: String, is_folder: bool, reason: impl Into<String>) {
        if is_folder {
            file.push('/');
        }
        self.found.left_out.push(LeftFile { file, reason: reason.into() });
    }
}

/// Whether a file is a tokenizer, or a part of one: it may be large, and no model is of use without it.
fn is_tokenizer(name: &str) -> bool {
    [TOKENIZER, NORMALIZER].contains(&name) || OTHER_VOCABULARIES.contains(&name)
}

/// Whether a file holds a vocabulary, or a part of one.
pub(super) fn is_vocabulary(name: &str) -> bool {
    is_tokenizer(name) || has_ending(name, VOCABULARY)
}

/// Whether a file belongs to the tokenizer, with its templates.
pub(super) fn is_of_tokenizer(file: &str) -> bool {
    const SETTINGS: [&str; 4] =
        ["chat_template.jinja", "chat_template.json", "special_tokens_map.json", "tokenizer_config.json"];
    let in_templates = file.strip_prefix(TEMPLATES).is_some_and(|rest| rest.starts_with('/'));
    is_vocabulary(file) || SETTINGS.contains(&file) || in_templates
}

/// The fate of a file, or a folder, by its path in the donor's folder and the names beside it.
fn fate(path: &str, beside: &BTreeSet<String>) -> Fate {
    let (below, name) = path.rsplit_once('/').unwrap_or(("", path));
    let lower = name.to_ascii_lowercase();
    let is_one_of = |names: &[&str]| names.contains(&lower.as_str());
    if name.starts_with('.') {
        Fate::LeftOut(HIDDEN)
    } else if below.is_empty() && lower == CARD.to_ascii_lowercase() {
        Fate::LeftOut(CARD_OF_DONOR)
    } else if below.is_empty() && (lower == MANIFEST || lower.starts_with("mergekit_")) {
        Fate::LeftOut(OF_EARLIER)
    } else if is_index(&lower) {
        Fate::LeftOut(INDEX_OF_WEIGHTS)
    } else if matches_one(TRAINING, &lower) {
        Fate::LeftOut(OF_TRAINING)
    } else if lower.starts_with("adapter_model.") || lower == "adapter_config.json" {
        Fate::LeftOut(OF_ADAPTER)
    } else if is_weights(&lower) {
        if is_of_module(path, beside) { Fate::Needed } else { Fate::LeftOut(NOT_MERGED) }
    } else if is_one_of(QUANTISED) {
        Fate::LeftOut(OF_QUANTISED)
    } else if lower == "params.json" && beside.iter().any(|name| name.starts_with("consolidated")) {
        // It says how many layers those have.
        Fate::LeftOut(NOT_MERGED)
    } else if is_needed(path, name) {
        Fate::Needed
    } else if is_useful(&lower) {
        Fate::Useful
    } else {
        Fate::LeftOut(UNNEEDED)
    }
}

fn is_needed(path: &str, name: &str) -> bool {
    let in_root = path == name;
    let is_known = is_tokenizer(name)
        || SETTINGS.contains(&name)
        || has_ending(name, VOCABULARY)
        || has_ending(name, CODE);
    in_root && is_known
        || path.strip_prefix(TEMPLATES) == Some(&format!("/{name}")) && has_ending(name, TEMPLATE)
        || is_in_module(path) && !in_root && (is_tokenizer(name) || has_ending(name, ".json"))
}

fn is_useful(lower: &str) -> bool {
    let is_text = has_ending(lower, ".txt") && USEFUL_TEXTS.iter().any(|part| lower.contains(part));
    // Of `NOTICE` and `LICENSE-MODEL.md`, but of no picture of one.
    let is_plain = !lower.contains('.') || [".md", ".txt", ".rst"].iter().any(|end| lower.ends_with(end));
    let is_terms = is_plain && TERMS.iter().any(|term| lower.starts_with(term));
    let has_useful_ending = USEFUL.iter().chain([&CODE, &VOCABULARY]).any(|end| has_ending(lower, end));
    is_text || is_terms || has_useful_ending
}

fn is_weights(name: &str) -> bool {
    WEIGHTS.iter().any(|ending| has_ending(name, ending)) || name.starts_with("consolidated.")
}

fn is_index(lower: &str) -> bool {
    lower == INDEX || lower.strip_suffix(".index.json").is_some_and(is_weights)
}

/// Whether a path leads into a folder as sentence-transformers names those of its modules: `1_Pooling`, `2_Dense`.
fn is_in_module(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or(path);
    let numbered = first.split_once('_');
    numbered.is_some_and(|(number, name)| {
        !number.is_empty() && !name.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Whether weights are those that sentence-transformers loads for one of its modules.
fn is_of_module(path: &str, beside: &BTreeSet<String>) -> bool {
    let instead = beside.iter().any(|name| is_safetensors(name));
    path.contains('/')
        && is_in_module(path)
        && (is_safetensors(path) || path.ends_with("/pytorch_model.bin") && !instead)
}

fn matches_one(names: &[&str], name: &str) -> bool {
    names.iter().any(|known| match known.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == *known,
    })
}

fn has_ending(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some_and(|stem| !stem.is_empty())
}

/// The most bytes of a companion.
pub(super) fn companion_bytes_max(file: &str) -> u64 {
    let name = file.rsplit('/').next().unwrap_or(file);
    if is_weights(name) {
        MODULE_BYTES_MAX
    } else if is_tokenizer(name) || has_ending(name, VOCABULARY) {
        TOKENIZER_BYTES_MAX
    } else {
        COMPANION_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::layout::{OutTensor, layout};
    use crate::dtype::Dtype;
    use std::fs;
    use std::path::Path;

    /// A model with these files, each of which holds its name.
    fn model(files: &[&str]) -> (tempfile::TempDir, Source) {
        let folder = tempfile::tempdir().unwrap();
        let tensor = OutTensor { name: "x".into(), dtype: Dtype::U8, shape: vec![0] };
        fs::write(folder.path().join("model.safetensors"), &layout(&[tensor], 1).shards[0].header).unwrap();
        fs::write(folder.path().join(MODEL_CONFIG), "{}").unwrap();
        for name in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let source = Source::open("donor", folder.path()).unwrap();
        (folder, source)
    }

    fn copied(found: &Companions) -> Vec<&str> {
        found.copied.iter().map(|file| file.file.as_str()).collect()
    }

    fn left(found: &Companions) -> Vec<(&str, &str)> {
        found.left_out.iter().map(|left| (left.file.as_str(), left.reason.as_str())).collect()
    }

    #[test]
    fn every_file_is_copied_or_left_out_for_a_reason() {
        let copies = [
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "LICENSE",
            "USE_POLICY.md",
            "additional_chat_templates/tool.jinja",
            "code/kernels.cu",
            "config_sentence_transformers.json",
            "modeling_x.py",
            "modules.json",
            "params.json",
            "preprocessor_config.json",
            "qwen.tiktoken",
            "tokenizer.json",
        ];
        let others = [
            (".gitattributes", HIDDEN),
            ("2_Dense/pytorch_model.bin", NOT_MERGED),
            ("README.md", CARD_OF_DONOR),
            ("adapter_config.json", OF_ADAPTER),
            ("adapter_model.safetensors", OF_ADAPTER),
            ("additional_chat_templates/id_rsa", UNNEEDED),
            ("checkpoint-10/", OF_TRAINING),
            ("figures/", UNNEEDED),
            ("id_rsa", UNNEEDED),
            ("license.png", UNNEEDED),
            ("mergeforge.json", OF_EARLIER),
            ("mergekit_config.yml", OF_EARLIER),
            ("model.safetensors.index.json", INDEX_OF_WEIGHTS),
            ("onnx/", NOT_MERGED),
            ("optimizer.pt", OF_TRAINING),
            ("original/", NOT_MERGED),
            ("pytorch_model.bin", NOT_MERGED),
            ("quantize_config.json", OF_QUANTISED),
        ];
        let within = |folder: &str| match folder {
            "onnx/" => &["onnx/model_O4.onnx", "onnx/config.json"][..],
            "original/" => &["original/consolidated.00.pth", "original/params.json"],
            "figures/" => &["figures/deep/a.png", "figures/b.png"],
            "checkpoint-10/" => &["checkpoint-10/trainer_state.json"],
            _ => &[],
        };
        let index = (INDEX, r#"{"weight_map":{"x":"model.safetensors"}}"#);
        let files = others.iter().filter(|(name, _)| !name.ends_with('/') && *name != index.0);
        let mut files: Vec<&str> = files.map(|(name, _)| *name).chain(copies).collect();
        others.iter().for_each(|(name, _)| files.extend(within(name)));
        let (folder, source) = model(&files);
        fs::write(folder.path().join(index.0), index.1).unwrap();
        let found = companions(&source).unwrap();
        assert_eq!(copied(&found), copies);
        assert_eq!(left(&found), others);
        assert_eq!(found.weights().collect::<Vec<_>>(), ["2_Dense/model.safetensors"]);
        assert_eq!(found.bytes(), copies.iter().map(|name| name.len() as u64).sum::<u64>());
        let Content::CopyOf(file) = found.sidecars().next().unwrap().content else { panic!("a copy") };
        assert_eq!(file.read(100).unwrap(), copies[0].as_bytes());
    }

    #[test]
    fn the_config_of_other_weights_goes_with_them() {
        let (_folder, source) = model(&["consolidated.safetensors", "params.json", "tekken.json"]);
        let found = companions(&source).unwrap();
        assert_eq!(copied(&found), ["tekken.json"]);
        assert_eq!(left(&found), [("consolidated.safetensors", NOT_MERGED), ("params.json", NOT_MERGED)]);
    }

    /// A hole: no byte of it is written.
    fn vast(path: &Path, bytes: u64) {
        fs::File::create(path).unwrap().set_len(bytes).unwrap();
    }

    #[test]
    fn what_is_too_large_is_refused_where_it_is_needed_and_else_left_out() {
        let (folder, source) = model(&["a.json", "b.yaml"]);
        vast(&folder.path().join("a.json"), COMPANION_BYTES_MAX + 1);
        let found = companions(&source).unwrap();
        assert_eq!(copied(&found), ["b.yaml"]);
        assert!(left(&found)[0].1.contains("a.json has 16.8 MB, and 16.8 MB are the most"), "{found:?}");
        vast(&folder.path().join("tokenizer.json"), COMPANION_BYTES_MAX + 1);
        assert_eq!(copied(&companions(&source).unwrap()), ["b.yaml", "tokenizer.json"]);
        for (name, bytes) in
            [("tokenizer.json", TOKENIZER_BYTES_MAX + 1), ("modules.json", COMPANION_BYTES_MAX + 1)]
        {
            vast(&folder.path().join(name), bytes);
            assert!(companions(&source).unwrap_err().message.contains(name));
            fs::remove_file(folder.path().join(name)).unwrap();
        }
    }

    #[test]
    fn a_file_that_was_not_downloaded_is_not_copied() {
        let (folder, source) = model(&[]);
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0f\nsize 17082987\n";
        fs::write(folder.path().join("tokenizer.json"), pointer).unwrap();
        assert!(companions(&source).unwrap_err().message.contains("LFS"));
    }

    #[test]
    fn files_beyond_the_most_are_left_out_unless_they_are_needed() {
        let names: Vec<String> = (0..=COMPANIONS_MAX).map(|i| format!("a{i:04}.json")).collect();
        let (folder, source) = model(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let found = companions(&source).unwrap();
        assert_eq!((found.copied.len(), found.left_out.len()), (COMPANIONS_MAX, 1));
        assert!(found.left_out[0].reason.contains("more than 1024 files"), "{found:?}");
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        assert!(companions(&source).unwrap_err().message.contains("more than 1024 files"));
    }

    #[cfg(unix)]
    #[test]
    fn names_that_few_systems_take_are_not_copied() {
        let (folder, source) = model(&["a\nb.json", "c\\d.json", "e.json"]);
        let found = companions(&source).unwrap();
        assert_eq!(copied(&found), ["e.json"]);
        assert!(left(&found).iter().all(|(_, reason)| reason.contains("characters that none should have")));
        fs::write(folder.path().join("f\n.py"), "").unwrap();
        assert!(companions(&source).unwrap_err().message.contains("f\\n.py has characters"));
    }

    #[test]
    fn folders_are_followed_so_deep_and_no_deeper() {
        let (_folder, source) = model(&["a/b/c/fine.json", "a/b/c/d/deep.json", "a/b/x.json"]);
        let found = companions(&source).unwrap();
        assert_eq!(copied(&found), ["a/b/c/fine.json", "a/b/x.json"]);
        assert_eq!(left(&found), [("a/b/c/d/", TOO_DEEP)]);
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_nowhere_else() {
        use std::os::unix::fs::symlink;
        let (folder, source) = model(&["real.json"]);
        let at = |name: &str| folder.path().join(name);
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret.json"), "secret").unwrap();
        symlink("real.json", at("link.json")).unwrap();
        symlink(outside.path(), at("folder")).unwrap();
        symlink(outside.path().join("secret.json"), at("secret.json")).unwrap();
        symlink(".", at("round")).unwrap();
        let found = companions(&source).unwrap();
        assert_eq!(copied(&found), ["link.json", "real.json"]);
        let reasons = left(&found);
        assert!(["folder/", "secret.json"].iter().all(|name| {
            reasons.iter().any(|(file, reason)| file == name && reason.contains("outside of the model's"))
        }));
        assert!(reasons.contains(&("round/", NOT_MERGED)), "{reasons:?}");
        for needed in ["1_Pooling", TEMPLATES, "tokenizer.json"] {
            symlink(outside.path(), at(needed)).unwrap();
            assert!(companions(&source).unwrap_err().message.contains("outside of the model's"));
            fs::remove_file(at(needed)).unwrap();
        }
    }
}
