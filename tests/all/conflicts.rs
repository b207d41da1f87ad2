//! How long the threads of a warp wait for each other at the counters of a counting sweep, on data of several kinds.
//!
//! The driver of `tests/cuda/` counts passes: an atomic instruction of a warp takes one for each lane that changes the same
//! word. A multiprocessor makes a pass in a clock at best.

use std::fs;

use safetensors::Dtype;

use super::cuda::{merge, mistaken};
use crate::command;
use crate::cuda_driver::Driver;
use crate::models::{self, PLAIN, Random, Tensors, stored, tuned, weights};

const ELEMENTS: usize = 1 << 19;

/// Of the atomic instructions that the launches of a kernel gave to warps.
#[derive(Debug, Default)]
struct Passes {
    instructions: f64,
    passes: f64,
}

impl Passes {
    /// Clocks of a multiprocessor for a tile: there is one sweep over the whole tensor.
    fn per_tile(&self) -> f64 {
        self.passes / (ELEMENTS / 1024) as f64
    }

    fn per_instruction(&self) -> f64 {
        self.passes / self.instructions
    }
}

/// What a kernel that counts did in a merge of two models.
fn passes(driver: &Driver, kernel: &str, base: &[f32], models: [&[f32]; 2]) -> Passes {
    let folder = tempfile::tempdir().unwrap();
    let mut config = format!("merge_method: ties\nbase_model: {0}/m0\nmodels:\n", folder.path().display());
    for (number, values) in std::iter::once(base).chain(models).enumerate() {
        let tensor = stored(Dtype::F32, &[ELEMENTS / 1024, 1024], values);
        let at = folder.path().join(format!("m{number}"));
        models::write(&at, &Tensors::from([("model.layers.0.mlp.weight".to_string(), tensor)]), PLAIN);
        if number > 0 {
            config +=
                &format!("  - {{model: {}, parameters: {{weight: 0.5, density: 0.5}}}}\n", at.display());
        }
    }
    command::config(folder.path(), &config);
    let log = folder.path().join("passes");
    let settings = [("CONFLICTS", log.to_str().unwrap())];
    merge(driver, &settings, folder.path(), &["--device", "cuda"]).succeeded();
    let mut found = Passes::default();
    for line in fs::read_to_string(&log).unwrap().lines().filter(|line| line.starts_with(kernel)) {
        let numbers: Vec<f64> = line.split(' ').skip(1).map(|number| number.parse().unwrap()).collect();
        found.instructions += numbers[0];
        found.passes += numbers[2];
    }
    assert!(found.instructions > 0.0, "{kernel} counted nothing");
    found
}

/// A model with so many magnitudes that no few of them are likely: it makes a sweep count in bins.
fn spread(base: &[f32]) -> Vec<f32> {
    base.iter().enumerate().map(|(i, value)| value * (1.0 + (i % 1009) as f32 / 1009.0)).collect()
}

/// Base and model of each kind, and the clocks that the passes for a tile may take, of two models: the memory moves a tile of
/// bfloat16 in 331. Where each thread adds to the bins whatever it finds, they may not be fewer than the last number.
#[test]
fn equal_magnitudes_seldom_wait_for_each_other() {
    let fine = weights(ELEMENTS, 5);
    // Where steps of a 512th are exact.
    let coarse: Vec<f32> = fine.iter().map(|value| (value * 512.0).round() / 512.0).collect();
    let mut random = Random(7);
    let mut moved = |steps: [u8; 4]| -> Vec<f32> {
        let step = |value: &f32| value + f32::from(steps[random.next() as usize % 4]) / 512.0;
        coarse.iter().map(step).collect()
    };
    // Two of three rows stay as they are, whatever the first tile of a block shows.
    let steps = moved([1, 9, 17, 25]);
    let in_rows = |(i, (stays, moves)): (usize, (&f32, &f32))| match i / 2048 % 3 {
        0 => moves + (i % 7) as f32 / 512.0,
        _ => *stays,
    };
    let rows = coarse.iter().zip(&steps).enumerate().map(in_rows).collect();
    let cases = [
        ("a fine-tune", &fine, tuned(&fine, 50), 60.0, 0.0),
        ("not trained", &coarse, coarse.clone(), 40.0, 900.0),
        ("three of four not trained", &coarse, moved([0, 0, 0, 1]), 331.0, 700.0),
        ("two of three rows not trained", &coarse, rows, 60.0, 600.0),
        ("all moved alike", &coarse, moved([1; 4]), 40.0, 900.0),
        ("two steps", &coarse, moved([1, 1, 2, 2]), 560.0, 570.0),
    ];
    let direct = Driver::with_kernels(
        mistaken("magnitudes.cu", "common_place(place, intervals[m])", "NO_PLACE").path(),
    );
    for (what, base, model, most, direct_least) in cases {
        let models = [&*model, &spread(base)];
        let found = passes(&Driver::new(), "magnitudes_2_", base, models);
        let without = passes(&direct, "magnitudes_2_", base, models);
        let (clocks, clocks_without) = (found.per_tile(), without.per_tile());
        println!(
            "magnitudes, {what}: {:.2} passes an instruction, {clocks:.0} a tile; without a common key {:.2}, {clocks_without:.0}",
            found.per_instruction(),
            without.per_instruction()
        );
        assert!(clocks <= most, "{what}: {clocks} clocks a tile");
        assert!(
            clocks_without >= direct_least,
            "{what}: {clocks_without} clocks a tile without a common key"
        );
    }
    let found = passes(&Driver::new(), "levels_2_", &fine, [&tuned(&fine, 50), &tuned(&fine, 51)]);
    println!(
        "levels, fine-tunes: {:.2} passes an instruction, {:.0} a tile",
        found.per_instruction(),
        found.per_tile()
    );
    assert!(found.per_tile() <= 60.0, "levels: {} clocks a tile", found.per_tile());
}
