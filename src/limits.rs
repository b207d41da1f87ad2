//! The most that is taken of what others wrote, so that none of it costs memory or time without bound. All of it lies far beyond what
//! is published or measured; what goes past it is refused, and called by its name. `docs/limits.md` has the same as a table: the first
//! sentence of each says what is limited.

/// `config.json` of a model, `adapter_config.json` of an adapter. Those of published models have some kilobytes; a list of quantised
/// modules makes some hundred.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// `model.safetensors.index.json`. A model of 140,000 tensors has 13 MB.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;

/// The header of a safetensors file. One file with 140,000 tensors has 16 MB.
pub const HEADER_BYTES_MAX: u64 = 32 << 20;

/// Keys and values of a header's `__metadata__`, together. Trainers that keep their settings there need some megabytes.
pub const METADATA_BYTES_MAX: usize = 16 << 20;

/// The tensors of a checkpoint. The largest mixtures of experts have some 210,000, with the scales of their quantised weights.
pub const TENSORS_MAX: usize = 1 << 18;

/// The dimensions of a tensor. `torch` ends at 64.
pub const RANK_MAX: usize = 64;

/// The bytes of a tensor's name. Long ones have some 120.
pub const NAME_BYTES_MAX: usize = 1024;

/// The bytes of a dtype's name. The longest has 11.
pub const DTYPE_BYTES_MAX: usize = 32;

/// The bytes of a shard's name in an index. It is what file systems take.
pub const FILE_NAME_BYTES_MAX: usize = 255;

/// The files of a model's folder. A model of 1000 shards has a hundredth.
pub const FILES_MAX: usize = 1 << 16;

/// The names that a pattern is compared with. Those of many runs are fewer.
pub const LOOKED_AT_MAX: usize = 1 << 17;

/// The models of a config. The largest averages of checkpoints have some hundred; the headers of all stay in memory.
pub const MODELS_MAX: usize = 1024;

/// A tokenizer or vocabulary that is copied. The largest have some 50 MB.
pub const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// A `tokenizer.json` that is taken apart, because vocabularies become one or texts become tokens. Those of 260,000 tokens have 35 MB.
pub const TOKENIZER_READ_BYTES_MAX: u64 = 64 << 20;

/// The tokens of a vocabulary, and so its ids. Those of models that write have some 260,000, the largest of all 900,000.
pub const TOKENS_MAX: usize = 1 << 20;

/// The bytes of a token. Long ones are a few hundred spaces.
pub const TOKEN_TEXT_BYTES_MAX: usize = 64 << 10;

/// The factor by which a tokenizer's normalizer may lengthen a text. Published ones stay below some thousand, by the most that their
/// steps could do.
pub const NORMALIZER_GROWTH_MAX: u64 = 1 << 16;

/// A model's own card, `README.md`. Those that list the results of many benchmarks have some hundred kilobytes.
pub const CARD_BYTES_MAX: u64 = 4 << 20;

/// Any other file that is copied beside the weights, or read there: templates, generation, tokenizer and processor configs, a model's
/// code. A tokenizer config with 65,000 tokens of speech has 12 MB.
pub const COMPANION_BYTES_MAX: u64 = 16 << 20;

/// The entries of an object or list in such a file that is taken apart. A tokenizer config with 65,000 tokens of speech has as many.
pub const COMPANION_ENTRIES_MAX: usize = 1 << 17;

/// The weights of a module that sentence-transformers puts behind a model. A wide `Dense` has some 100 MB.
pub const MODULE_BYTES_MAX: u64 = 4 << 30;

/// What Git LFS leaves in the place of a file that was not downloaded. It has some 130 bytes.
pub const POINTER_BYTES_MAX: u64 = 1024;

/// The files that are copied beside the weights. Models with much code have some dozen.
pub const COMPANIONS_MAX: usize = 1024;

/// The folders, one in the other, in which files are found that go beside the weights. Published models have one.
pub const FOLDERS_DEEP_MAX: usize = 3;

/// The pickle of a file of `torch.save`. A tensor takes some 200 bytes, and one file rarely has 10,000.
pub const PICKLE_BYTES_MAX: u64 = 32 << 20;

/// The values that a pickle keeps while it is read, each of 16 bytes. A tensor takes some 60.
pub const PICKLE_VALUES_MAX: usize = 4 << 20;

/// The values of a pickle that wait to be put into something. Python puts them there by the thousand.
pub const PICKLE_STACK_MAX: usize = 1 << 18;

/// The dicts, one in the other, in which a checkpoint of a trainer may have its weights. `{"state_dict": {"model": …}}` has two.
pub const NESTING_MAX: usize = 4;

/// The entries of a zip archive. Torch writes the storages of its tensors, and a handful beside them.
pub const ENTRIES_MAX: usize = TENSORS_MAX + 1024;

/// The directory of a zip archive. An entry takes some 70 bytes.
pub const ENTRY_DIRECTORY_BYTES_MAX: u64 = 24 << 20;

/// The rank of an adapter. No weight of published models has more rows or columns.
pub const ADAPTER_RANK_MAX: u64 = 1 << 16;

/// The patterns of an adapter's config that are more than names. PEFT itself writes names.
pub const PATTERNS_MAX: usize = 1 << 12;

/// The memory for these patterns. A pattern of a module's name takes some kilobytes.
pub const PATTERN_BYTES_MAX: usize = 32 << 20;

/// A chat template that is rendered. Long ones have some 50 kB.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 18;

/// The steps of a chat template that makes a turn. Long ones take some thousand.
pub const TEMPLATE_STEPS_MAX: u64 = 1 << 18;

/// What a chat template makes of a turn. It is a question and some words around it.
pub const TURN_BYTES_MAX: usize = 16 << 20;

/// The config of a merge. One with a long chat template has some 50 kB.
pub const YAML_BYTES_MAX: usize = 4 << 20;

/// The values of a config, those behind aliases counted as if written out. The largest in the wild have a few thousand.
pub const YAML_EVENTS_MAX: usize = 200_000;

/// The lists and mappings of a config, one in the other. The schema itself nests eight deep.
pub const YAML_DEPTH_MAX: usize = 32;

/// A file of texts. More would take days to read.
pub const TEXTS_BYTES_MAX: u64 = 1 << 30;

/// A line of a program that asks a sweep. A point has some hundred bytes.
pub const QUESTION_BYTES_MAX: u64 = 16 << 20;

/// The journal of a sweep. It is more than any sweep writes.
pub const JOURNAL_BYTES_MAX: u64 = 64 << 20;

/// The journal of a merge that was stopped. A tensor takes some 200 bytes.
pub const MERGE_JOURNAL_BYTES_MAX: u64 = 128 << 20;

/// The manifest of a merged folder, `mergeforge.json`. A tensor takes some 300 bytes.
pub const MANIFEST_BYTES_MAX: u64 = 128 << 20;

/// What a part of an output says of itself, `part.json`. A tensor takes some 400 bytes.
pub const PART_BYTES_MAX: u64 = 128 << 20;

/// The parts of an output. More tasks than this no scheduler gives.
pub const PARTS_MAX: usize = 100_000;

/// What the lock of an unfinished folder holds. A thousand names of the length that paths may have make as much.
pub const LOCK_BYTES_MAX: u64 = 4 << 20;

/// The thresholds that a merge keeps for the next one. Twelve thousand tensors with all their densities need half of this.
pub const THRESHOLDS_BYTES_MAX: u64 = 64 << 20;

/// What is hashed of a file in the cache of the Hub whose length nobody has listed. A tokenizer has 20 MB; a damaged one
/// may be a hole of any length.
pub const HASHED_BYTES_MAX: u64 = 64 << 20;

/// A reference in the cache of the Hub. A commit has 40 characters.
pub const REFERENCE_BYTES_MAX: u64 = 4096;

/// The file with the user's token for the Hub. A token has some 40 characters.
pub const TOKEN_BYTES_MAX: u64 = 4096;

/// A file of certificates. All that browsers trust take some 300 kB.
pub const CERTIFICATES_BYTES_MAX: u64 = 16 << 20;

/// An answer of the Hub in JSON. The list of a repository's files has at most a thousand on a page.
pub const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The files of a repository of the Hub. The largest have some thousand.
pub const REPOSITORY_FILES_MAX: usize = 1 << 16;

/// The pages on which the Hub lists them. A page has a thousand, or none that count.
pub const REPOSITORY_PAGES_MAX: usize = 1 << 12;

/// A list of files or a header that was kept of the Hub. A model of 140,000 tensors has 16 MB.
pub const KEPT_BYTES_MAX: u64 = 64 << 20;
