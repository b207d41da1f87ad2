//! The small files beside the weights: which there are, and those that are copied from the donor.

use std::sync::Arc;

use super::folder::{InputFile, ModelFolder};
use super::limits::{COMPANION_BYTES_MAX, COMPANIONS_MAX, TOKENIZER_BYTES_MAX};
use crate::error::{Error, Result};

/// A file beside the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sidecar {
    /// Its name in the output folder; a `/` leads into a folder there.
    pub file: String,
    /// What it holds.
    pub content: Content,
}

/// What a sidecar holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The bytes of this file.
    CopyOf(InputFile),
}

/// Files of a tokenizer: they may be large.
const TOKENIZERS: &[&str] = &[
    "added_tokens.json",
    "merges.txt",
    "normalizer.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
];
/// Files of the tokenizer, the processor or generation that are small.
const SETTINGS: &[&str] = &[
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
];
/// Vocabularies of tiktoken.
const VOCABULARY: &str = ".tiktoken";
/// The code of a model that brings its own.
const CODE: &str = ".py";
/// A folder of further templates.
pub(super) const TEMPLATES: &str = "additional_chat_templates";
/// What transformers reads there.
const TEMPLATE: &str = ".jinja";

/// `mergeforge.json`.
pub const MANIFEST: &str = "mergeforge.json";
/// The config of the merge.
pub const MERGE_CONFIG: &str = "mergekit_config.yml";
/// The same merge as one of mergekit's `linear`, of a method that only gives the weights for it.
pub const LINEAR_CONFIG: &str = "mergekit_linear.yml";
/// The model card.
pub const CARD: &str = "README.md";
/// The config of the model.
pub const MODEL_CONFIG: &str = "config.json";

/// Whether a file of this name is one that a merge writes beside the weights, in its output folder itself.
pub(super) fn is_sidecar(name: &str) -> bool {
    [MANIFEST, MERGE_CONFIG, LINEAR_CONFIG, CARD, MODEL_CONFIG].contains(&name) || is_companion(name)
}

/// Whether a file of this name is one that a merge writes in [`TEMPLATES`].
pub(super) fn is_template(name: &str) -> bool {
    has_ending(name, TEMPLATE)
}

fn is_companion(name: &str) -> bool {
    TOKENIZERS.contains(&name)
        || SETTINGS.contains(&name)
        || has_ending(name, VOCABULARY)
        || has_ending(name, CODE)
}

fn has_ending(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some_and(|stem| !stem.is_empty())
}

/// The donor's tokenizer and generation files, to be copied byte for byte, sorted by name.
///
/// # Errors
/// Kind `Input`: the folder cannot be listed, the templates lie elsewhere, or there are too many.
pub fn companion_files(folder: &Arc<ModelFolder>) -> Result<Vec<Sidecar>> {
    let is_folder = |name: &str| folder.path.join(name).symlink_metadata().is_ok_and(|found| found.is_dir());
    let names = folder.names("")?;
    let mut files: Vec<String> =
        names.iter().filter(|name| is_companion(name) && !is_folder(name)).cloned().collect();
    // Through a link too, if it leads there.
    if names.contains(TEMPLATES) && folder.path.join(TEMPLATES).is_dir() {
        let templates = folder.names(TEMPLATES)?;
        files.extend(
            templates.iter().filter(|name| is_template(name)).map(|name| format!("{TEMPLATES}/{name}")),
        );
    }
    if files.len() > COMPANIONS_MAX {
        let refusal =
            format!("{} has {} files to be copied beside the weights", folder.path.display(), files.len());
        return Err(Error::input(refusal)
            .hint(format!("{COMPANIONS_MAX} are the most: remove what the model does not need")));
    }
    files.sort_unstable();
    let copy = |file: String| Sidecar { content: Content::CopyOf(folder.file(file.as_str())), file };
    Ok(files.into_iter().map(copy).collect())
}

/// Whether everything that [`companion_files`] names can be read; returns how many bytes that is.
///
/// # Errors
/// Kind `Input`: a file is missing behind its link, lies outside of the model, is no file, is too large, or may not be read.
pub fn check_companions(folder: &Arc<ModelFolder>) -> Result<u64> {
    let mut bytes = 0;
    for companion in companion_files(folder)? {
        if let Content::CopyOf(original) = &companion.content {
            let (_, metadata) = original.open()?;
            original.check_size(metadata.len(), companion_bytes_max(&companion.file))?;
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}

/// The most bytes of a companion.
pub(super) fn companion_bytes_max(name: &str) -> u64 {
    let large = TOKENIZERS.contains(&name) || has_ending(name, VOCABULARY);
    if large { TOKENIZER_BYTES_MAX } else { COMPANION_BYTES_MAX }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn companions_are_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join(TEMPLATES)).unwrap();
        fs::create_dir(folder.path().join("vocab.json")).unwrap();
        for name in [
            "tokenizer.json",
            "qwen.tiktoken",
            "modeling_x.py",
            "additional_chat_templates/tool.jinja",
            "additional_chat_templates/id_rsa",
            ".py",
            "config.json",
            "README.md",
            "model.safetensors",
        ] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let folder = ModelFolder::open(folder.path()).unwrap();
        let files = companion_files(&folder).unwrap();
        let names: Vec<&str> = files.iter().map(|sidecar| sidecar.file.as_str()).collect();
        assert_eq!(
            names,
            ["additional_chat_templates/tool.jinja", "modeling_x.py", "qwen.tiktoken", "tokenizer.json"]
        );
        let Content::CopyOf(file) = &files[0].content else { panic!("companions are copied") };
        assert_eq!(file.read(100).unwrap(), names[0].as_bytes());
    }
}
