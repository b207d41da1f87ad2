//! Inputs that are made of others, in plans made here: no config reaches these kinds yet. A merge that reads them writes the bytes
//! of the same merge of a checkpoint that holds what they yield.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use mergeforge::backend::device::Device;
use mergeforge::backend::devices::processor;
use mergeforge::checkpoint::Reads;
use mergeforge::dtype::{Float, decode};
use mergeforge::input::{
    Adapted, Floats, Importance, Input, Made, Masked, Ranks, ReadElements, Row, Rows, Scaled, Spread, Vectors,
};
use mergeforge::plan::{Action, Choices, Plan};
use mergeforge::{Options, Prepared, Stopped, merge, prepare};
use safetensors::Dtype;

use crate::models::{self, PLAIN, Quiet, RUN, Stored, Tensors, stored, tuned, values, weights};

/// Larger than a tile, with rows that end within one; and a rank that is no power of two.
const ROWS: usize = 70;
const COLUMNS: usize = 333;
const RANK: usize = 5;
const BLOCK: [usize; 2] = [16, 32];

/// What the base has beside the weight that is merged: parts that other inputs are made of.
fn parts() -> Tensors {
    let blocks = ROWS.div_ceil(BLOCK[0]) * COLUMNS.div_ceil(BLOCK[1]);
    let codes = (0..ROWS * COLUMNS).map(|i| (i * 37 % 251) as u8).collect();
    Tensors::from([
        ("a".into(), stored(Dtype::BF16, &[RANK, COLUMNS], &weights(RANK * COLUMNS, 11))),
        ("b".into(), stored(Dtype::F32, &[ROWS, RANK], &weights(ROWS * RANK, 12))),
        ("codes".into(), Stored { dtype: Dtype::I8, shape: vec![ROWS, COLUMNS], bytes: codes }),
        ("scales".into(), stored(Dtype::F32, &[blocks], &weights(blocks, 13))),
        ("more".into(), stored(Dtype::F16, &[9, COLUMNS], &weights(9 * COLUMNS, 14))),
    ])
}

/// The number of a tensor that is copied among a plan's inputs.
fn number(plan: &Plan, name: &str) -> usize {
    let tensor = plan.tensors.iter().find(|tensor| &*tensor.name == name).unwrap();
    let Action::Copy(copied) = &tensor.action else { panic!("{name} is copied") };
    copied.holders[0]
}

/// The kinds of inputs that stand in for the first model's weight: what each is, and what it yields.
fn kinds(plan: &Plan, weight: usize, base: &Tensors, own: &[f32]) -> Vec<(Box<dyn Made>, Vec<f32>)> {
    let floats = |name: &str, float| Floats { input: number(plan, name), float };
    let of = |name: &str| values(&base[name]);
    let adapted = Adapted {
        weight: Floats { input: weight, float: Float::BF16 },
        a: floats("a", Float::BF16),
        b: floats("b", Float::F32),
        experts: 1,
        rows: ROWS as u64,
        columns: COLUMNS as u64,
        rank: RANK as u64,
        scale: 1.7,
        transposed: false,
    };
    let (a, b) = (of("a"), of("b"));
    let element = |i: usize| {
        let (row, column) = (i / COLUMNS, i % COLUMNS);
        let sum = (0..RANK).fold(0.0, |sum, k| sum + b[row * RANK + k] * a[k * COLUMNS + column]);
        own[i] + 1.7 * sum
    };
    let with_adapter = (0..ROWS * COLUMNS).map(element).collect();

    let scales = of("scales");
    let in_blocks = Scaled::new(
        number(plan, "codes"),
        Dtype::I8,
        floats("scales", Float::F32),
        COLUMNS as u64,
        BLOCK.map(|side| side as u64),
    )
    .unwrap();
    let dequantised = |i: usize| {
        let (row, column) = (i / COLUMNS, i % COLUMNS);
        let block = row / BLOCK[0] * COLUMNS.div_ceil(BLOCK[1]) + column / BLOCK[1];
        f32::from(base["codes"].bytes[i] as i8) * scales[block]
    };
    let dequantised = (0..ROWS * COLUMNS).map(dequantised).collect();

    // Reversed, with rows of another tensor between, averages, zeros, and rows that fill up.
    let row = |row: usize| match row % 7 {
        0 => Row::Zero,
        1 => Row::Picked { of: 1, row: (row % 9) as u64 },
        2 => Row::Mean(vec![(0, row as u64), (1, 3), (0, 1)]),
        3 => Row::Filler,
        _ => Row::Picked { of: 0, row: (ROWS - 1 - row) as u64 },
    };
    let more = of("more");
    let from = |of: usize, row: u64, column: usize| [own, &more][of][row as usize * COLUMNS + column];
    let elsewhere = |i: usize| match row(i / COLUMNS) {
        Row::Zero | Row::Filler => 0.0,
        Row::Picked { of, row } => from(of, row, i % COLUMNS),
        Row::Mean(holders) => {
            let sum = holders.iter().fold(0.0, |sum, (of, row)| sum + from(*of, *row, i % COLUMNS));
            sum / holders.len() as f32
        }
    };
    let real: Vec<usize> = (0..ROWS).filter(|place| row(*place) != Row::Filler).collect();
    let filler = |column: usize| {
        let sum: f64 = real.iter().map(|row| f64::from(elsewhere(row * COLUMNS + column))).sum();
        (sum / real.len() as f64) as f32
    };
    let fillers: Vec<f32> = (0..COLUMNS).map(filler).collect();
    let picked = |i: usize| if row(i / COLUMNS) == Row::Filler { fillers[i % COLUMNS] } else { elsewhere(i) };
    let of = vec![Floats { input: weight, float: Float::BF16 }, floats("more", Float::F16)];
    let rows = Rows::new(of, COLUMNS as u64, Float::F32, (0..ROWS).map(row));
    let rearranged = (0..ROWS * COLUMNS).map(picked).collect();
    vec![(Box::new(adapted), with_adapter), (Box::new(in_blocks), dequantised), (Box::new(rows), rearranged)]
}

/// Kinds that compare a model with the base: what each is, and what it yields when all of it is read at once. Their formulas are
/// tested where they are.
fn comparisons(plan: &Plan, base: usize, model: usize, stored: &Tensors) -> Vec<(Box<dyn Made>, Vec<f32>)> {
    let of = |input| Floats { input, float: Float::BF16 };
    let (base, model) = (of(base), of(model));
    let (columns, elements) = (COLUMNS as u64, (ROWS * COLUMNS) as u64);
    let vectors = Vectors { len: columns, stride: 1 };
    let crossing = Vectors { len: ROWS as u64, stride: columns };
    let made: Vec<Box<dyn Made>> = vec![
        Box::new(Importance::new(base, model, columns, elements)),
        Box::new(Spread::new(base, vec![model, base])),
        Box::new(Masked::new(base, model, number(plan, "codes"), Dtype::I8).unwrap()),
        Box::new(Ranks::new([base, model], vectors, elements, 0.5, 0.2, [1, 2])),
        Box::new(Ranks::new([base, model], crossing, elements, 0.5, 0.2, [1, 2])),
    ];
    let mut whole = Whole { base: base.input, model: model.input, codes: number(plan, "codes"), stored };
    let yields = |made: Box<dyn Made>| {
        let mut bytes = vec![0; made.float().bytes_of(elements) as usize];
        made.read(0..elements, &mut bytes, &mut whole).unwrap();
        made.release();
        let mut values = vec![0.0; elements as usize];
        decode(made.float(), &bytes, &mut values);
        (made, values)
    };
    made.into_iter().map(yields).collect()
}

/// Two weights and a mask in memory.
struct Whole<'a> {
    base: usize,
    model: usize,
    codes: usize,
    stored: &'a Tensors,
}

impl ReadElements for Whole<'_> {
    fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> mergeforge::error::Result<()> {
        let names = [(self.base, "w"), (self.model, "first"), (self.codes, "codes")];
        let name = names.into_iter().find(|(number, _)| *number == input).unwrap().1;
        into.copy_from_slice(&self.stored[name].bytes[start as usize..][..into.len()]);
        Ok(())
    }
}

fn config(folder: &Path, method: &str, first: &str) -> Prepared {
    let path = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "merge_method: {method}\nbase_model: {}\ndtype: float32\n\
         parameters: {{weight: 0.4, density: 0.6, filter_wise: true, nuslerp_flatten: false, nuslerp_row_wise: true}}\n\
         models:\n  - model: {}\n  - model: {}\n",
        path("base"),
        path(first),
        path("second")
    );
    let file = folder.join("config.yml");
    std::fs::write(&file, text).unwrap();
    prepare(&file, &Choices { seed: RUN.seed, shard_bytes: Some(RUN.shard_bytes), ..Choices::USUAL }).unwrap()
}

fn merged(folder: &Path, prepared: &Prepared, chunk_tiles: u64, threads: usize) -> Stored {
    merged_on(&processor(), folder, prepared, chunk_tiles, threads)
}

fn merged_on(
    device: &Device,
    folder: &Path,
    prepared: &Prepared,
    chunk_tiles: u64,
    threads: usize,
) -> Stored {
    let out = folder.join("out");
    let options = Options {
        out: out.clone(),
        device: device.clone(),
        budget: mergeforge::stream::Budget {
            chunk_tiles: Some(chunk_tiles),
            threads,
            device_bytes: 64 << 20,
            ..RUN.budget
        },
        copy_tokenizer: true,
        model_card: true,
        inputs_hashed: false,
        reads: Reads::Mapped,
        cache: None,
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    merge(prepared, &options, &Quiet).unwrap();
    let tensor = models::read(&out)["w"].clone();
    std::fs::remove_dir_all(&out).unwrap();
    tensor
}

#[test]
fn made_inputs_merge_as_the_tensors_they_stand_for() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, tensors: &Tensors| models::write(&folder.path().join(name), tensors, PLAIN);
    let weight = |x: &[f32], dtype| ("w".to_string(), stored(dtype, &[ROWS, COLUMNS], x));
    let of_base = weights(ROWS * COLUMNS, 1);
    let own = tuned(&of_base, 2);
    let mut base = parts();
    base.extend([weight(&of_base, Dtype::BF16)]);
    write("base", &base);
    write("first", &Tensors::from([weight(&own, Dtype::BF16)]));
    let mut all = base.clone();
    all.extend([("first".to_string(), stored(Dtype::BF16, &[ROWS, COLUMNS], &own))]);
    write("second", &Tensors::from([weight(&tuned(&of_base, 3), Dtype::BF16)]));
    // One sweep, several sweeps over what is held, and rows and columns by themselves.
    for method in ["task_arithmetic", "ties", "model_stock", "nuslerp"] {
        for kind in 0..8 {
            let mut prepared = config(folder.path(), method, "first");
            let plan = &mut prepared.plan;
            let place = plan.tensors.iter().position(|tensor| &*tensor.name == "w").unwrap();
            let Action::Merge(merge) = &plan.tensors[place].action else { panic!("w is merged") };
            let stands_for = merge.inputs[0];
            let of_base = merge.inputs[merge.settings.base.unwrap()];
            let mut made = kinds(plan, stands_for, &base, &own);
            made.extend(comparisons(plan, of_base, stands_for, &all));
            let (made, expected) = made.swap_remove(kind);
            // Rows and columns do not begin with whole bytes of bits.
            if made.float() == Float::Bit && ["model_stock", "nuslerp"].contains(&method) {
                continue;
            }
            let what = format!("{method}, {made}");
            assert!(made.of().iter().all(|of| *of < plan.inputs.len()));
            let float = made.float();
            plan.inputs.push(Input::Made(made));
            let number = plan.inputs.len() - 1;
            let Action::Merge(merge) = &mut plan.tensors[place].action else { unreachable!() };
            merge.inputs[0] = number;
            merge.floats[0] = float;

            write("explicit", &Tensors::from([weight(&expected, Dtype::F32)]));
            let explicit = config(folder.path(), method, "explicit");
            let expected = merged(folder.path(), &explicit, 128, 1);
            for (chunk_tiles, threads) in [(1, 2), (2, 1), (128, 2)] {
                let found = merged(folder.path(), &prepared, chunk_tiles, threads);
                assert!(found == expected, "{what}, chunks of {chunk_tiles} tiles");
            }
        }
    }
}

/// Two outputs of the same inputs: what one has read the other finds, and the bytes are those of a merge of each alone.
#[test]
fn outputs_of_the_same_inputs_share_what_is_held() {
    check_shared_inputs(&processor());
}

/// The same on any device.
pub fn check_shared_inputs(device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let base = weights(200_000, 1);
    for (name, seed) in [("base", None), ("first", Some(2)), ("second", Some(3))] {
        let x = seed.map_or_else(|| base.clone(), |seed| tuned(&base, seed));
        let tensors = Tensors::from([("w".into(), stored(Dtype::BF16, &[200, 1000], &x))]);
        models::write(&folder.path().join(name), &tensors, PLAIN);
    }
    for method in ["task_arithmetic", "ties"] {
        let expected = merged(folder.path(), &config(folder.path(), method, "first"), 16, 1);
        let mut twice = config(folder.path(), method, "first");
        // Another output with the same name would be another mask; the tensor's own is used by neither method.
        let mut other = config(folder.path(), method, "first").plan.tensors.remove(0);
        other.name = "w2".into();
        twice.plan.tensors.push(other);
        twice.plan.layout = mergeforge::checkpoint::layout(&twice.plan.tensors, RUN.shard_bytes);
        assert_eq!(twice.plan.uses(), [2, 2, 2]);
        for threads in [1, 2, 2, 2] {
            let found = merged_on(device, folder.path(), &twice, 16, threads);
            assert!(found == expected, "{method}, {}, {threads} threads", device.id());
        }
    }
}

/// An input of zeros that keeps memory while it is read, and counts how much all of them keep.
#[derive(Debug)]
struct Keeping {
    bytes: u64,
    keeps: AtomicBool,
    all: Arc<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    bytes: Mutex<u64>,
    most: AtomicU64,
    /// How often something was kept anew.
    made: AtomicU64,
}

impl Made for Keeping {
    fn of(&self) -> Vec<usize> {
        Vec::new()
    }

    fn float(&self) -> Float {
        Float::F32
    }

    fn read(
        &self,
        _: Range<u64>,
        into: &mut [u8],
        _: &mut dyn ReadElements,
    ) -> mergeforge::error::Result<()> {
        let mut bytes = self.all.bytes.lock().unwrap();
        if !self.keeps.swap(true, Ordering::Relaxed) {
            *bytes += self.bytes;
            self.all.most.fetch_max(*bytes, Ordering::Relaxed);
            self.all.made.fetch_add(1, Ordering::Relaxed);
        }
        drop(bytes);
        // Long enough for others to open what comes next.
        std::thread::sleep(std::time::Duration::from_millis(1));
        into.fill(0);
        Ok(())
    }

    fn working_bytes(&self, elements: u64) -> u64 {
        1000 * elements
    }

    fn kept_bytes(&self) -> u64 {
        self.bytes
    }

    fn release(&self) {
        let mut bytes = self.all.bytes.lock().unwrap();
        if self.keeps.swap(false, Ordering::Relaxed) {
            *bytes -= self.bytes;
        }
    }
}

impl fmt::Display for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zeros that keep {} bytes", self.bytes)
    }
}

/// A plan of small and large tensors whose first model's weights are made, and keep memory: at most 9,000,000 bytes each.
fn keeping(folder: &Path) -> (Prepared, Arc<Counted>) {
    let shape = |i: usize| if i.is_multiple_of(3) { vec![20 + i] } else { vec![30, 200 + i] };
    for (name, seed) in [("base", 1), ("first", 2), ("second", 3)] {
        let tensor = |i: usize| {
            (format!("w{i:02}"), stored(Dtype::BF16, &shape(i), &weights(shape(i).iter().product(), seed)))
        };
        models::write(&folder.join(name), &(0..40).map(tensor).collect(), PLAIN);
    }
    let mut prepared = config(folder, "ties", "first");
    let all = Arc::new(Counted::default());
    for (i, tensor) in prepared.plan.tensors.iter_mut().enumerate() {
        let Action::Merge(merge) = &mut tensor.action else { panic!("all are merged") };
        let bytes = (i as u64 * 7 % 9 + 1) * 1_000_000;
        let made = Keeping { bytes, keeps: AtomicBool::new(false), all: Arc::clone(&all) };
        merge.inputs[0] = prepared.plan.inputs.len();
        merge.floats[0] = Float::F32;
        prepared.plan.inputs.push(Input::Made(Box::new(made)));
    }
    (prepared, all)
}

/// Groups whose inputs keep memory wait for each other, and what they keep is freed with each.
#[test]
fn inputs_keep_no_more_than_was_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (prepared, all) = keeping(folder.path());
    let out = folder.path().join("out");
    let options = |threads| Options {
        out: out.clone(),
        device: processor(),
        budget: mergeforge::stream::Budget { threads, chunk_tiles: Some(2), ..RUN.budget },
        copy_tokenizer: true,
        model_card: true,
        inputs_hashed: false,
        reads: Reads::Mapped,
        cache: None,
        recall: false,
        stopped: Stopped::LeavesNothing,
    };
    for (threads, made) in [(1, 40), (8, 80)] {
        merge(&prepared, &options(threads), &Quiet).unwrap();
        std::fs::remove_dir_all(&out).unwrap();
        let most = all.most.load(Ordering::Relaxed);
        assert!((9_000_000..=18_000_000).contains(&most), "{most} bytes with {threads} threads");
        assert_eq!((*all.bytes.lock().unwrap(), all.made.load(Ordering::Relaxed)), (0, made));
    }
}

/// What inputs keep and what they are read in is counted in the memory that a merge may use.
#[test]
fn made_inputs_are_counted_in_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (prepared, _) = keeping(folder.path());
    let plain = config(folder.path(), "ties", "first");
    let limits = |prepared: &Prepared, host_bytes: u64| {
        let budget =
            mergeforge::stream::Budget { threads: 2, host_bytes, device_bytes: 0, chunk_tiles: Some(1) };
        budget.limits(&prepared.plan, &processor())
    };
    let held = |prepared: &Prepared| limits(prepared, 64 << 20).unwrap().hold_bytes;
    // What the refusal of a merge without memory says that it needs.
    let needed = |prepared: &Prepared| -> u64 {
        let refusal = limits(prepared, 0).unwrap_err().message;
        refusal.split(' ').rev().find_map(|word| word.parse().ok()).unwrap()
    };
    // Of f32 in place of bfloat16 a tile takes two bytes more for each element, in a lane's two buffers at the most.
    let assert_counted = |difference: u64, tensors: u64, threads: u64| {
        let counted = tensors * 9_000_000 + threads * 1000 * 1024;
        assert!((counted..=counted + 16 * 1024).contains(&difference), "{difference}, not {counted}");
    };
    // Those of two tensors are kept at a time, and where memory is short those of one.
    assert_counted(held(&plain) - held(&prepared), 2, 2);
    assert_counted(needed(&prepared) - needed(&plain), 1, 1);
}
