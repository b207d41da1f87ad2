//! The most that is taken of a checkpoint, so that no file of it costs memory or time without bound. All of it lies far beyond
//! published models; what goes past it is refused by name.

/// `config.json`. Those of published models have some kilobytes; a list of quantised modules makes some hundred.
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

/// The bytes of a shard's name in an index: what file systems take.
pub const FILE_NAME_BYTES_MAX: usize = 255;

/// The files of a model's folder.
pub const FILES_MAX: usize = 1 << 16;

/// The names that a pattern is compared with: those of many runs.
pub const LOOKED_AT_MAX: usize = 1 << 17;

/// A tokenizer or vocabulary. The largest have some 50 MB.
pub const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// A model's own card, `README.md`. Those that list the results of many benchmarks have some hundred kilobytes.
pub const CARD_BYTES_MAX: u64 = 4 << 20;

/// Any other file that is copied beside the weights: templates, generation and processor configs, a model's code.
pub const COMPANION_BYTES_MAX: u64 = 16 << 20;

/// The weights of a module that sentence-transformers puts behind a model. A wide `Dense` has some 100 MB.
pub const MODULE_BYTES_MAX: u64 = 4 << 30;

/// What Git LFS leaves in the place of a file that was not downloaded has some 130 bytes.
pub const POINTER_BYTES_MAX: u64 = 1024;

/// The files that are copied beside the weights.
pub const COMPANIONS_MAX: usize = 1024;

/// The folders, one in the other, in which files are found that go beside the weights.
pub const FOLDERS_DEEP_MAX: usize = 3;

/// The pickle of a file of `torch.save`. A tensor takes some 200 bytes, and one file rarely has 10,000.
pub const PICKLE_BYTES_MAX: u64 = 32 << 20;

/// What a pickle may keep while it is read, in values of 16 bytes. A tensor takes some 60.
pub const PICKLE_VALUES_MAX: usize = 4 << 20;

/// The values of a pickle that wait to be put into something. Python puts them there by the thousand.
pub const PICKLE_STACK_MAX: usize = 1 << 18;

/// The entries of a zip archive: the storages of its tensors, and a handful beside them.
pub const ENTRIES_MAX: usize = TENSORS_MAX + 1024;

/// The directory of a zip archive. An entry takes some 70 bytes.
pub const ENTRY_DIRECTORY_BYTES_MAX: u64 = 24 << 20;

/// How deep the weights may lie in a checkpoint of a trainer: `{"state_dict": {"model": …}}` is two deep.
pub const NESTING_MAX: usize = 4;
/// The tokens of a vocabulary, and so its ids. The largest have some million.
pub const TOKENS_MAX: usize = 1 << 22;
