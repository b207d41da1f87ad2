//! Trimmed merges that guess: the output is written before thresholds are certain, and what the guess got wrong is mended.

use std::path::Path;

use mergeforge::backend::devices::processor;
use mergeforge::checkpoint::Reads;
use mergeforge::kernel::{Job, Kept, Outcome, TILE, Target};
use mergeforge::method::{self, Settings, Value};
use mergeforge::plan::Choices;
use mergeforge::recipe::{Measured, Pass, Recipe, TileCounts, everything};
use mergeforge::report::Report;
use mergeforge::stream::Budget;
use mergeforge::{Options, Stopped};
use mergeforge::{merge, prepare};
use proptest::prelude::*;
use proptest::sample::select;
use safetensors::Dtype;

use crate::models::{self, PLAIN, Quiet, RUN, Random, Tensors, stored, tuned, weights};

/// How a merge came to its output.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Course {
    /// Passes over the whole tensor, and how many inputs they read together.
    sweeps: usize,
    read: usize,
    /// Tiles that were combined once more.
    mended: usize,
}

/// Carries out a recipe on tensors in memory, with the plain twins: the bits of the output, and how it came about.
fn carried_out(settings: &Settings, guess: bool, inputs: &[Vec<f32>]) -> (Vec<u32>, Course) {
    let Ok(Recipe::Passes(passes)) = (method::find("ties").unwrap().recipe)(settings) else {
        panic!("passes")
    };
    let mut machine = passes.begin();
    if guess {
        machine.guess();
    }
    let all = settings.elements.div_ceil(TILE as u64);
    let mut out = vec![0.0; inputs[0].len()];
    let mut kept = vec![Kept::default(); all as usize];
    let (mut measured, mut course) = (Measured::Nothing, Course::default());
    while let Some(pass) = machine.next(measured).unwrap() {
        let (reads, job, over) = match pass {
            Pass::Measure { reads, job, over, .. } => (reads, job, over),
            Pass::Combine { reads, job } => (reads, job, everything(settings.elements)),
            Pass::Mend { reads, job, over } => {
                course.mended += over.iter().map(|tiles| tiles.end - tiles.start).sum::<u64>() as usize;
                (reads, job, over)
            }
        };
        assert!(over.windows(2).all(|pair| pair[0].end <= pair[1].start), "in order and apart: {over:?}");
        if over == everything(settings.elements) {
            course.sweeps += 1;
            course.read += reads.len();
        }
        let (mut records, mut words) = (Vec::new(), Vec::new());
        for tile in over.into_iter().flatten() {
            let part = tile as usize * TILE..out.len().min((tile as usize + 1) * TILE);
            let x: Vec<&[f32]> = reads.iter().map(|read| &inputs[*read][part.clone()]).collect();
            match job.outcome() {
                Outcome::Values => {
                    kept[tile as usize] = Kept::default();
                    job.plain(tile, &x, Target::Values(&mut out[part], &mut kept[tile as usize]));
                }
                Outcome::Counts { words } => {
                    let mut counts = vec![0; words];
                    job.plain(tile, &x, Target::Words(&mut counts));
                    records.push(TileCounts { tiles: tile..tile + 1, counts });
                }
                Outcome::Words { words: each } => {
                    let start = words.len();
                    words.resize(start + each * part.len(), 0);
                    job.plain(tile, &x, Target::Words(&mut words[start..]));
                }
                outcome => panic!("{outcome:?} is not asked for"),
            }
        }
        measured = match job {
            Job::Consensus(_) => {
                let mut total = Kept::default();
                kept.iter().for_each(|of| total.iter_mut().zip(of).for_each(|(sum, kept)| *sum += kept));
                Measured::Kept(total)
            }
            Job::Keys(_) => Measured::Words(words),
            _ => Measured::Counts(records),
        };
    }
    (out.iter().map(|value| value.to_bits()).collect(), course)
}

fn settings(elements: usize, densities: &[f64]) -> Settings {
    let own = |density: &f64| vec![("weight", Value::Number(0.7)), ("density", Value::Number(*density))];
    Settings {
        tensor: "t".into(),
        seed: 0,
        depth: 0.0,
        shape: [elements].into(),
        elements: elements as u64,
        inputs: 1 + densities.len(),
        base: Some(0),
        shared: vec![
            ("normalize", Value::Flag(true)),
            ("rescale", Value::Flag(false)),
            ("lambda", Value::Number(1.0)),
            ("int8_mask", Value::Flag(false)),
            ("balance", Value::Null),
            ("lines_alpha", Value::Null),
            ("lines_beta", Value::Null),
        ]
        .into(),
        per_input: std::iter::once(Vec::new()).chain(densities.iter().map(own)).collect::<Vec<_>>().into(),
    }
}

/// Task vectors that are easy, hard or hostile to a guess by sampled tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As fine-tunes are.
    Tuned,
    AllEqual,
    TwoValues,
    /// Few steps of one size, whose magnitudes rise or fall over the tensor.
    Rising,
    Falling,
    /// All magnitudes differ.
    Distinct,
    MostlyZero,
    /// Every so many tiles, where samples are likely to look, the values are others.
    Striped(usize),
    /// One half is all of one magnitude, the other of another.
    Halves,
}

const KINDS: [Kind; 10] = [
    Kind::Tuned,
    Kind::AllEqual,
    Kind::TwoValues,
    Kind::Rising,
    Kind::Falling,
    Kind::Distinct,
    Kind::MostlyZero,
    Kind::Striped(1),
    Kind::Striped(4),
    Kind::Halves,
];

/// A base and a model that differ so.
fn pair(kind: Kind, elements: usize, seed: u64) -> [Vec<f32>; 2] {
    let mut random = Random(seed);
    let base = weights(elements, seed);
    if kind == Kind::Tuned {
        let model = tuned(&base, seed + 1);
        return [base, model];
    }
    let tiles = elements.div_ceil(TILE);
    // So that sums with it are exact: powers of two near each other.
    let unit = 2f32.powi(-9);
    let mut step = |i: usize| match kind {
        Kind::AllEqual => 1.0,
        Kind::TwoValues => 1.0 + (random.next() % 2) as f32,
        Kind::Rising => 1.0 + (i * 40 / elements) as f32,
        Kind::Falling => 40.0 - (i * 40 / elements) as f32,
        Kind::Distinct => random.unit() as f32,
        Kind::MostlyZero => f32::from(random.next().is_multiple_of(20)),
        // The sample takes one tile in so many.
        Kind::Striped(every) => 1.0 + 7.0 * f32::from((i / TILE).is_multiple_of(every * tiles.div_ceil(32))),
        Kind::Halves | Kind::Tuned => 1.0 + f32::from(i > elements / 2),
    };
    let model = (0..elements).map(|i| unit * step(i) * if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
    [vec![0.0; elements], model]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_guess_changes_no_bit(
        kinds in prop::collection::vec(select(KINDS.to_vec()), 1..4),
        densities in prop::collection::vec(0.001..0.999f64, 3),
        elements in prop_oneof![40_000..60_000usize, 100_000..160_000usize],
        seed in 0..1000u64,
    ) {
        let [base, first] = pair(kinds[0], elements, seed);
        let mut inputs = vec![base.clone(), first];
        for (i, kind) in kinds.iter().enumerate().skip(1) {
            let [of, model] = pair(*kind, elements, seed + 10 * i as u64);
            // Around one base.
            inputs.push(model.iter().zip(&of).zip(&base).map(|((x, of), base)| base + (x - of)).collect());
        }
        let settings = settings(elements, &densities[..kinds.len()]);
        let (expected, sure) = carried_out(&settings, false, &inputs);
        let (found, guessed) = carried_out(&settings, true, &inputs);
        prop_assert!(found == expected, "{:?}", guessed);
        prop_assert_eq!(sure.mended, 0);
        // Of several models, one may be counted before a guess, and another one after it.
        let again = if kinds.len() == 1 { 1 } else { sure.sweeps };
        prop_assert!(guessed.sweeps <= sure.sweeps + again);
    }
}

/// Every way that a guess can go is gone.
#[test]
fn guesses_are_right_or_mended_or_given_up() {
    let course = |kind, density| {
        let inputs = pair(kind, 1 << 18, 3);
        let settings = settings(1 << 18, &[density]);
        let (expected, sure) = carried_out(&settings, false, &inputs);
        let (found, guessed) = carried_out(&settings, true, &inputs);
        assert!(found == expected, "{kind:?}");
        (guessed.sweeps, guessed.mended, sure.sweeps)
    };
    // One in twenty moved, and all of those are kept.
    assert_eq!(course(Kind::MostlyZero, 0.5), (1, 0, 2), "no zero is kept");
    let (sweeps, mended, _) = course(Kind::Tuned, 0.3);
    assert!(sweeps == 1 && (1..64).contains(&mended), "{sweeps} sweeps, {mended} of 256 tiles mended");
    let (sweeps, mended, _) = course(Kind::TwoValues, 0.3);
    assert!(sweeps == 1 && (1..64).contains(&mended), "{sweeps} sweeps, {mended} of 256 tiles mended");
    // Where the sample looks, everything is larger.
    assert_eq!(course(Kind::Striped(1), 0.3), (4, 0, 3), "the sample misleads");
    // No key is likely.
    let (sweeps, mended, sure) = course(Kind::Distinct, 0.3);
    assert!((sweeps, mended) == (sure, 0), "{sweeps} sweeps, not {sure}");
}

/// Of two models, the one with a likely key is guessed, and the other one alone is counted.
#[test]
fn only_what_cannot_be_guessed_is_counted() {
    const ELEMENTS: usize = 1 << 18;
    for kinds in [[Kind::TwoValues, Kind::Distinct], [Kind::Distinct, Kind::TwoValues]] {
        let inputs = kinds.map(|kind| pair(kind, ELEMENTS, 3));
        assert!(inputs[0][0] == inputs[1][0], "one base");
        let inputs = [&inputs[0][0], &inputs[0][1], &inputs[1][1]].map(Clone::clone);
        let settings = settings(ELEMENTS, &[0.3, 0.4]);
        let (expected, sure) = carried_out(&settings, false, &inputs);
        let (found, guessed) = carried_out(&settings, true, &inputs);
        assert!(found == expected, "{kinds:?}");
        assert_eq!(guessed.sweeps, sure.sweeps, "{kinds:?}");
        // The base and the counted model, sweep after sweep, then all.
        assert_eq!(guessed.read, 2 * (guessed.sweeps - 1) + 3, "{kinds:?}");
        assert!(guessed.read < sure.read, "{kinds:?}: {guessed:?}, {sure:?}");
        assert!((1..64).contains(&guessed.mended), "{kinds:?}: {} of 256 tiles mended", guessed.mended);
    }
}

/// A merge that mends and one that knows the thresholds write the same bytes, and count the same odd values.
#[test]
fn a_mended_merge_is_the_merge_of_known_thresholds() {
    const SHAPE: [usize; 2] = [2051, 1023];
    const ELEMENTS: usize = SHAPE[0] * SHAPE[1];
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let base = weights(ELEMENTS, 1);
    let mut models = [base.clone(), tuned(&base, 2), tuned(&base, 3)];
    // Odd values in every chunk, those that are mended included.
    models[1].iter_mut().step_by(10_000).for_each(|value| *value = f32::NAN);
    for (i, values) in models.iter().enumerate() {
        let tensors = Tensors::from([("t".to_string(), stored(Dtype::BF16, &SHAPE, values))]);
        models::write(&at(&format!("m{i}")), &tensors, PLAIN);
    }
    let model = |i: usize| {
        format!(
            "  - {{model: {}, parameters: {{weight: 0.5, density: 0.3}}}}\n",
            at(&format!("m{i}")).display()
        )
    };
    let config =
        format!("merge_method: ties\nbase_model: {}\nmodels:\n{}{}", at("m0").display(), model(1), model(2));
    std::fs::write(at("config.yml"), config).unwrap();
    let run = |out: &str, chunk_tiles: u64, threads: usize, recall: bool| {
        let choices = Choices { seed: 0, shard_bytes: Some(RUN.shard_bytes), ..Choices::USUAL };
        let prepared = prepare(&at("config.yml"), &choices).unwrap();
        let budget = Budget { chunk_tiles: Some(chunk_tiles), threads, ..RUN.budget };
        let options = Options {
            out: at(out),
            device: processor(),
            budget,
            copy_tokenizer: true,
            model_card: true,
            inputs_hashed: false,
            reads: Reads::Copied,
            cache: Some(at("cache")),
            recall,
            stopped: Stopped::LeavesNothing,
        };
        merge(&prepared, &options, &Quiet).unwrap()
    };
    let mended = |report: &Report| report.run()["chunks_mended"].as_u64().unwrap();
    let bytes = |out: &str| std::fs::read(at(out).join("model.safetensors")).unwrap();
    run("unknown", 16, 1, true);
    let known = run("known", 16, 1, true);
    assert_eq!(mended(&known), 0, "the thresholds are known");
    assert_eq!(known.odd().0.nan, ELEMENTS.div_ceil(10_000) as u64);
    assert_eq!(digest(&at("known")), known.manifest().tensors["t"].blake3);
    // Single tiles, chunks with a short one at the end, and the whole tensor as one chunk.
    for (chunk_tiles, threads) in [(1, 8), (16, 8), (128, 1), (128, 8), (1 << 20, 1)] {
        let name = format!("{chunk_tiles} {threads}");
        let guessed = run(&name, chunk_tiles, threads, false);
        let chunks = (ELEMENTS as u64).div_ceil(TILE as u64).div_ceil(chunk_tiles);
        assert!((1..=chunks.div_ceil(2)).contains(&mended(&guessed)), "{} of {chunks}", mended(&guessed));
        assert_eq!(guessed.odd(), known.odd());
        for of in ["tensors", "odd_values"] {
            assert_eq!(guessed.json()[of], known.json()[of], "{name}");
        }
        assert!(bytes(&name) == bytes("known"), "{name}");
    }
}

/// The digest of the only tensor of a checkpoint.
fn digest(folder: &Path) -> String {
    blake3::hash(&models::read(folder)["t"].bytes).to_hex().to_string()
}
