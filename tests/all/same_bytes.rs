//! The same config, seed and inputs give the same bytes, however the work is cut and spread.
//!
//! Every method merges made checkpoints under many budgets: threads, chunk sizes and memory decide who computes
//! what when, and none of it may show in a byte. Shard sizes decide where a tensor lies, never what it holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use mergeforge::backend::cpu;
use mergeforge::backend::devices::processor;
use mergeforge::checkpoint::Reads;
use mergeforge::method::METHODS;
use mergeforge::plan::Choices;
use mergeforge::stream::Budget;
use mergeforge::{Options, Prepared, Stopped, merge, prepare};
use proptest::prelude::*;
use proptest::sample::select;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::command;
use crate::models::{self, Form, PLAIN, Quiet, Random, Stored, Tensors, stored, tuned, weights};

const THREADS: [usize; 3] = [1, 2, 8];
const CHUNK_TILES: [u64; 5] = [1, 2, 16, 128, 1 << 20];
/// A shard per tensor but for the tiniest, and one for all.
const SHARD_BYTES: [u64; 2] = [6000, 5_000_000_000];

/// How much memory a merge gets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Memory {
    /// The least that the plan accepts: chunks of one tile, nothing held between sweeps.
    Least,
    /// The least that lets so many threads work, for budgets that are short where many threads compete.
    LeastFor(usize),
    Bytes(u64),
}

const MEMORY: [Memory; 3] = [Memory::Least, Memory::Bytes(8 << 20), Memory::Bytes(256 << 20)];

/// One way to cut and spread the work.
#[derive(Debug, Clone, Copy)]
struct Cut {
    threads: usize,
    chunk_tiles: u64,
    memory: Memory,
    shard_bytes: u64,
}

/// What all others are compared with: nothing happens at the same time, in chunks of the usual size.
const REFERENCE: Cut = Cut {
    threads: 1,
    chunk_tiles: cpu::CHUNK_TILES,
    memory: Memory::Bytes(256 << 20),
    shard_bytes: SHARD_BYTES[1],
};

impl Cut {
    fn budget(&self, prepared: &Prepared) -> Budget {
        let with = |host_bytes| Budget {
            threads: self.threads,
            host_bytes,
            device_bytes: 0,
            chunk_tiles: Some(self.chunk_tiles),
        };
        match self.memory {
            // What is made by the processor may need more.
            Memory::Bytes(bytes) => with(bytes.max(least_bytes(prepared, 1))),
            Memory::Least => with(least_bytes(prepared, 1)),
            Memory::LeastFor(threads) => with(least_bytes(prepared, threads)),
        }
    }
}

/// The least memory that gives a merge so many threads, found by asking.
fn least_bytes(prepared: &Prepared, threads: usize) -> u64 {
    let enough = |host_bytes: u64| {
        let limits = Budget { threads, host_bytes, device_bytes: 0, chunk_tiles: Some(1) }
            .limits(&prepared.plan, &processor());
        limits.is_ok_and(|limits| limits.threads == threads)
    };
    let (mut low, mut high) = (0, 1 << 30);
    while low + 1 < high {
        let middle = u64::midpoint(low, high);
        if enough(middle) { high = middle } else { low = middle }
    }
    high
}

/// Shapes on both sides of every border: tiles, groups of eight, chunks; the large one is sampled and counted.
const SHAPES: [(&str, &[usize]); 12] = [
    ("model.embed_tokens.weight", &[41, 61]),
    ("model.layers.0.a.weight", &[163, 139]),
    ("model.layers.0.b.bias", &[1]),
    ("model.layers.0.c.weight", &[]),
    ("model.layers.0.d.weight", &[0, 5]),
    ("model.layers.1.a.weight", &[32, 32]),
    ("model.layers.1.b.bias", &[1025]),
    ("model.layers.1.c.weight", &[7]),
    ("model.layers.1.d.weight", &[3, 1024]),
    ("model.layers.1.e.weight", &[1100, 7]),
    // More tiles than are looked through at once for a cut among equal magnitudes, in whole chunks too.
    ("model.layers.2.a.weight", &[300, 1031]),
    ("model.norm.weight", &[96]),
];

const FLOATS: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

/// Checkpoints of mixed types, every one sharded and ordered in its own way, and masks and importance for them.
pub fn checkpoints(folder: &Path, seed: u64) {
    let mut random = Random(seed);
    let base: Vec<Vec<f32>> =
        (0..).zip(SHAPES).map(|(i, (_, shape))| weights(shape.iter().product(), seed ^ (i << 32))).collect();
    for model in 0..4 {
        let mut tensors = Tensors::new();
        for ((name, shape), base) in SHAPES.iter().zip(&base) {
            let values = if model == 0 { base.clone() } else { tuned(base, random.next()) };
            // Most tensors have one type, so that groups form; the others break them.
            let dtype = if random.next().is_multiple_of(4) {
                FLOATS[random.next() as usize % 3]
            } else {
                Dtype::BF16
            };
            tensors.insert((*name).into(), stored(dtype, shape, &values));
        }
        // Integers are copied: three tiles of bytes and a half.
        let bytes = (0..3584u32).map(|i| (i % 251) as u8).collect();
        tensors.insert("rope.table".into(), Stored { dtype: Dtype::I64, shape: vec![448], bytes });
        let form = Form { shards: 1 + model, reversed: (seed + model as u64).is_multiple_of(2), tied: false };
        models::write(&folder.join(format!("m{model}")), &tensors, form);
        said_of_elements(folder, model, seed);
    }
}

/// A mask and the importance of a model's elements. One tensor is in no mask, one in no file of importance.
fn said_of_elements(folder: &Path, model: usize, seed: u64) {
    let mut random = Random(!seed ^ model as u64);
    let (mut masks, mut importance) = (Tensors::new(), Tensors::new());
    for (i, (name, shape)) in SHAPES.iter().enumerate() {
        let elements = shape.iter().product();
        let bits: Vec<u8> = (0..elements).map(|_| (random.next() % 2) as u8).collect();
        let mask = match (i + model) % 3 {
            0 => Stored { dtype: Dtype::BOOL, shape: shape.to_vec(), bytes: bits },
            1 => Stored {
                dtype: Dtype::I64,
                shape: shape.to_vec(),
                bytes: bits.iter().flat_map(|bit| (u64::from(*bit) << 40).to_le_bytes()).collect(),
            },
            _ => {
                stored(Dtype::F16, shape, &bits.iter().map(|bit| -0.5 * f32::from(*bit)).collect::<Vec<_>>())
            }
        };
        masks.insert((*name).into(), mask);
        // Squares, of which many are below the floor.
        let squares: Vec<f32> =
            (0..elements).map(|_| (random.normal() * random.normal() * 1e-3).powi(2) as f32).collect();
        importance.insert((*name).into(), stored(FLOATS[(i + 2 * model) % 3], shape, &squares));
    }
    masks.remove("model.layers.1.a.weight");
    importance.remove("model.layers.1.d.weight");
    models::write(&folder.join(format!("mask{model}")), &masks, Form { shards: 2, ..PLAIN });
    models::write(&folder.join(format!("importance{model}")), &importance, PLAIN);
}

/// Every method, and what some do otherwise: behind a stroke.
pub fn ways() -> Vec<&'static str> {
    let others = [
        "nuslerp/rows",
        "nuslerp/columns",
        "model_stock/rows",
        "multislerp/base",
        "ties/masked",
        "della/masked",
        "task_arithmetic/balanced",
        "breadcrumbs/balanced",
    ];
    METHODS.iter().map(|method| method.name).chain(others).collect()
}

/// The same, and a way that needs more memory.
pub fn all_ways() -> Vec<&'static str> {
    [ways(), vec!["breadcrumbs/many"]].concat()
}

/// A config for a way to merge, with what it needs: the parameters that measure and draw are on.
pub fn config(folder: &Path, way: &str) -> String {
    let method = way.split('/').next().expect("a way begins with a method");
    // Beyond the third, models are the first ones once more, by other names.
    let model = |i: usize| {
        format!(
            "{}/{}m{}",
            folder.display(),
            "./".repeat(i.saturating_sub(1) / 3),
            if i > 3 { (i - 1) % 3 + 1 } else { i }
        )
    };
    let (base, models, parameters): (_, &[usize], _) = match way {
        "passthrough" => (None, &[1], "scale: [{filter: layers.0, value: 0.7}, {value: null}]"),
        "slerp" => (Some(0), &[1, 0], "t: 0.3"),
        "nuslerp" => (None, &[1, 2], "weight: 0.3"),
        "nuslerp/rows" => (Some(0), &[1, 2], "weight: [0.2, 0.6], nuslerp_flatten: false"),
        "nuslerp/columns" => (None, &[2, 1], "weight: 0.3, nuslerp_flatten: false, nuslerp_row_wise: true"),
        "nearswap" => (Some(0), &[2], "t: 0.002"),
        "arcee_fusion" => (Some(0), &[2], ""),
        "sce" => (Some(0), &[1, 2, 3], "select_topk: 0.4"),
        "linear" | "karcher" | "fisher" => (None, &[1, 2, 3], "weight: 0.3"),
        "average" => (None, &[0, 1, 2, 3], "weights: 1-sqrt, window: 3"),
        "multislerp" => (None, &[1, 2, 3], ""),
        "model_stock" | "multislerp/base" => (Some(0), &[1, 2, 3], ""),
        "model_stock/rows" => (Some(0), &[1, 2], "filter_wise: true"),
        "task_arithmetic/balanced" => {
            (Some(0), &[1, 2, 3], "weight: 0.4, balance: 1, lines_alpha: 0.3, normalize: true")
        }
        "breadcrumbs/balanced" => {
            (Some(0), &[1, 2, 3], "weight: 0.4, balance: 0.5, lines_alpha: 0.3, density: 0.37, gamma: 0.1")
        }
        // Two questions about each model: more than any vote has models.
        "breadcrumbs/many" => (Some(0), &[1, 2, 3, 4, 5, 6, 7, 8], "weight: 0.1, density: 0.37, gamma: 0.1"),
        _ => (Some(0), &[1, 2, 3], "weight: [0.4, 0.9], density: 0.37, rescale: true, gamma: 0.1"),
    };
    let mut config = format!("merge_method: {method}\nparameters: {{{parameters}}}\nmodels:\n");
    for i in models {
        // Weights of which no sums and differences are 0: in a tensor of one element, directions are signs.
        let own = if method == "multislerp" {
            format!("{{weight: {}}}", [0.3, 0.55, 0.9][i - 1])
        } else {
            "{}".into()
        };
        let beside = match way.split('/').next_back() {
            Some("masked") if *i != 2 => format!("    mask: {}\n", folder.join(format!("mask{i}")).display()),
            Some("fisher") => {
                format!("    importance: {}\n", folder.join(format!("importance{i}")).display())
            }
            _ => String::new(),
        };
        config += &format!("  - model: {}\n{beside}    parameters: {own}\n", model(*i));
    }
    base.iter().for_each(|i| config += &format!("base_model: {}\n", model(*i)));
    config
}

/// A merge of one case, ready to be run in many ways.
struct Case {
    folder: TempDir,
    /// By shard size.
    prepared: BTreeMap<u64, Prepared>,
}

/// A folder's files by name.
type Files = BTreeMap<String, Vec<u8>>;

impl Case {
    fn new(method: &str, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        checkpoints(folder.path(), seed);
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config(folder.path(), method)).unwrap();
        let plan = |shard_bytes| {
            (
                shard_bytes,
                prepare(&file, &Choices { seed, shard_bytes: Some(shard_bytes), ..Choices::USUAL }).unwrap(),
            )
        };
        Self { prepared: SHARD_BYTES.map(plan).into(), folder }
    }

    /// Merges, checks what the manifest says of the tensors, and returns them with all files.
    fn run(&self, cut: &Cut) -> (Tensors, Files) {
        let prepared = &self.prepared[&cut.shard_bytes];
        let out = self.folder.path().join("out");
        let options = Options {
            out: out.clone(),
            device: processor(),
            budget: cut.budget(prepared),
            copy_tokenizer: true,
            model_card: true,
            inputs_hashed: false,
            reads: Reads::Copied,
            cache: None,
            recall: false,
            stopped: Stopped::LeavesNothing,
        };
        merge(prepared, &options, &Quiet).unwrap_or_else(|error| panic!("{cut:?}: {error}"));
        let (tensors, mut files) = (models::read(&out), files_of(&out));
        std::fs::remove_dir_all(&out).unwrap();
        check_digests(&tensors, &files["mergeforge.json"]);
        // Its title is the folder's name.
        files.remove("README.md").expect("there is a card");
        (tensors, files)
    }
}

fn files_of(folder: &Path) -> Files {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = |path: PathBuf| {
        (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap())
    };
    entries.map(file).collect()
}

/// Chunks are hashed apart, so the digests depend on the cut if anything does.
fn check_digests(tensors: &Tensors, manifest: &[u8]) {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    let reported = manifest["tensors"].as_object().unwrap();
    assert_eq!(reported.len(), tensors.len());
    for (name, tensor) in tensors {
        let digest = blake3::hash(&tensor.bytes).to_hex();
        assert_eq!(reported[name]["blake3"], digest.as_str(), "{name}");
    }
}

/// Runs all cuts of a case and compares each with the reference, and with the first of the same shard size.
fn check(method: &str, seed: u64, cuts: &[Cut]) {
    let case = Case::new(method, seed);
    let (expected, _) = case.run(&REFERENCE);
    assert_eq!(expected.len(), SHAPES.len() + 1);
    let mut firsts: BTreeMap<u64, Files> = BTreeMap::new();
    for cut in cuts {
        let (tensors, files) = case.run(cut);
        for (name, tensor) in &expected {
            assert!(tensors[name] == *tensor, "{method}, seed {seed}, {cut:?}: {name} differs");
        }
        assert_eq!(tensors.len(), expected.len());
        let first = firsts.entry(cut.shard_bytes).or_insert_with(|| files.clone());
        assert!(files.keys().eq(first.keys()), "{method}, seed {seed}, {cut:?}: {:?}", files.keys());
        for (name, bytes) in &files {
            assert!(first[name] == *bytes, "{method}, seed {seed}, {cut:?}: {name} differs");
        }
    }
}

/// Every combination of what a user can choose, in three shares. Each share has every pair of choices.
fn grid() -> Vec<(usize, Cut)> {
    let mut cuts = Vec::new();
    for (i, shard_bytes) in SHARD_BYTES.into_iter().enumerate() {
        for (j, memory) in MEMORY.into_iter().enumerate() {
            for (k, chunk_tiles) in CHUNK_TILES.into_iter().enumerate() {
                for (l, threads) in THREADS.into_iter().enumerate() {
                    cuts.push(((i + j + k + l) % 3, Cut { threads, chunk_tiles, memory, shard_bytes }));
                }
            }
        }
    }
    cuts
}

/// All cuts for the method that counts, holds and samples; for each of the others a share, in turn.
#[test]
fn every_cut_of_one_case_gives_the_same_bytes() {
    for (number, way) in ways().into_iter().enumerate() {
        let cuts = grid().into_iter().filter(|(share, _)| way == "ties" || *share == number % 3);
        check(way, 20, &cuts.map(|(_, cut)| cut).collect::<Vec<_>>());
    }
}

fn cut() -> impl Strategy<Value = Cut> {
    let memory = prop_oneof![select(MEMORY.to_vec()), select(THREADS.to_vec()).prop_map(Memory::LeastFor)];
    (select(THREADS.to_vec()), select(CHUNK_TILES.to_vec()), memory, select(SHARD_BYTES.to_vec())).prop_map(
        |(threads, chunk_tiles, memory, shard_bytes)| Cut { threads, chunk_tiles, memory, shard_bytes },
    )
}

proptest! {
    // A failing case prints its seed and cuts, which is all it takes to run it again.
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_cut_of_any_case_gives_the_same_bytes(
        method in select(ways()),
        seed in any::<u64>(),
        cuts in prop::collection::vec(cut(), 4),
    ) {
        check(method, seed, &cuts);
    }
}

/// Three models in opposite orders and different shards: whoever waits for a window of one while holding
/// a window of another would wait for ever.
#[test]
fn opposite_orders_under_the_least_memory_do_not_deadlock() {
    let (done, finished) = mpsc::channel();
    let work = move || {
        for (seed, method) in (0..).zip(["linear", "ties", "dare_ties"]) {
            let threads = THREADS.map(|threads| Cut {
                threads,
                chunk_tiles: cpu::CHUNK_TILES,
                memory: Memory::LeastFor(threads),
                shard_bytes: SHARD_BYTES[0],
            });
            check(method, seed, &threads);
        }
        done.send(()).unwrap();
    };
    std::thread::spawn(work);
    finished.recv_timeout(Duration::from_mins(1)).expect("the merges end, and well");
}

/// Reads past the page cache go in whole blocks, and files are mapped in whole pages; tensors begin and end anywhere. Mapped
/// parts take turns with copied ones where there is little memory.
#[test]
fn however_inputs_are_read_the_bytes_are_the_same() {
    // Beside the program, since temporary files may lie in memory, which has no blocks.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    checkpoints(folder.path(), 9);
    let merged = |how: &str, memory: &str| {
        let text = config(folder.path(), "ties");
        command::merge(folder.path(), &text, &["--reads", how, "--host-memory", memory]).succeeded();
        let tensors = models::read(&folder.path().join("out"));
        std::fs::remove_dir_all(folder.path().join("out")).unwrap();
        tensors
    };
    let expected = merged("copied", "8MB");
    for how in ["mapped", "direct"] {
        for memory in ["8MB", "6MB", "100MB"] {
            assert!(merged(how, memory) == expected, "{how}, {memory}");
        }
    }
}
