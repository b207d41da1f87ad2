//! The rules of `elect`, beside `consensus` and by themselves.

use super::*;
use crate::check::data::Random;
use crate::kernel::consensus;
use crate::kernel::thinning::{Keep, Model};

const LEN: usize = 300;

/// Numbers with many ties, for a base and so many models.
fn inputs(models: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let mut number = || ((random.normal() * 8.0).round() / 16.0) as f32;
    (0..=models).map(|_| (0..LEN).map(|_| number()).collect()).collect()
}

fn merged(job: &impl Numbers, x: &[Vec<f32>]) -> (Vec<f32>, Kept) {
    let x: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
    let (mut out, mut kept) = (vec![0.0; LEN], Kept::default());
    job.plain(3, &x, Target::Values(&mut out, &mut kept));
    (out, kept)
}

fn trim(m: usize) -> Trim {
    Trim { threshold: [0.25f32, 0.5][m % 2].to_bits(), cut_tile: 3, cut_lane: 40 * m as u32 }
}

#[test]
fn votes_and_sums_are_those_of_consensus() {
    let mut random = Random(5);
    for models in 1..=6 {
        let mut x = inputs(models, &mut random);
        x[models][7] = f32::NAN;
        x[0][8] = f32::INFINITY;
        let scale: Vec<f32> = (0..1 << models).map(|set| 1.5 / (1.0 + set as f32)).collect();
        let coefficient = |m: usize| [0.5, 0.5, -0.7, 1.3][m % 4];
        let keep = |m: usize| if m == 2 { Keep::All } else { Keep::Trim(trim(m)) };
        let choice = |m: usize| if m == 2 { Choice::All } else { Choice::Trim(trim(m)) };
        let model = |m: usize| Model { coefficient: coefficient(m), keep: keep(m) };
        let part = |m: usize| Part { coefficient: coefficient(m), share: 1.0, choice: choice(m) };
        for (scale, rule) in [(scale.clone(), Rule::Signs(scale)), (Vec::new(), Rule::Sum)] {
            let other = consensus::Job { models: (0..models).map(model).collect(), scale };
            let own = Job { models: (0..models).map(part).collect(), selectors: 0, rule };
            let ((expected, expected_kept), (found, kept)) = (merged(&other, &x), merged(&own, &x));
            assert_eq!(kept, expected_kept);
            let bits = |values: &[f32]| values.iter().map(|v| if v.is_nan() { 0 } else { v.to_bits() }).collect();
            let [expected, found]: [Vec<u32>; 2] = [bits(&expected), bits(&found)];
            assert_eq!(found, expected, "{own:?}");
        }
    }
}

fn rules(models: usize) -> [Rule; 6] {
    let scale = || (0..1 << models).map(|set| set as f32).collect();
    let tolerances = vec![0.4; models];
    let common = Rule::Common { scale: 1.0, least: 2, tolerances };
    [Rule::Sum, Rule::Signs(scale()), Rule::Kept(scale()), Rule::Largest(0.5), Rule::Elected(0.5), common]
}

#[test]
fn odd_values_spread_whatever_the_rule() {
    let (mut random, models) = (Random(6), 3);
    let choice = |m: usize| match m {
        0 => Choice::Trim(trim(0)),
        1 => Choice::Band { kept: trim(0), dropped: trim(1) },
        _ => Choice::By { selector: 0, trim: trim(1), dropped: NOTHING },
    };
    for rule in rules(models) {
        let part = |m: usize| Part { coefficient: 0.5 - m as f32, share: 1.0, choice: choice(m) };
        let job = Job { models: (0..models).map(part).collect(), selectors: 1, rule };
        for input in 0..job.merged() {
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = inputs(models + 1, &mut random);
                x[input].iter_mut().step_by(2).for_each(|x| *x = odd);
                let (out, _) = merged(&job, &x);
                for (i, out) in out.iter().enumerate() {
                    assert_eq!(out.is_finite(), i % 2 == 1, "{:?}: {odd} in input {input} gives {out}", job.rule);
                }
            }
        }
    }
}

#[test]
fn the_first_of_equal_magnitudes_wins() {
    let x = [[1.0], [1.5], [0.5], [1.5]].map(|x| vec![x[0]; LEN]);
    let of = |coefficients: [f32; 3], rule: Rule| {
        let part = |coefficient: f32| Part { coefficient, share: 1.0, choice: Choice::All };
        let job = Job { models: coefficients.map(part).to_vec(), selectors: 0, rule };
        merged(&job, &x).0[0]
    };
    assert_eq!(of([1.0, 1.0, 1.0], Rule::Largest(1.0)), 1.5);
    assert_eq!(of([-1.0, 1.0, 1.0], Rule::Largest(1.0)), 0.5);
    // Of the signs, that of the sum; none agrees with a sum of 0 that is negative.
    assert_eq!(of([1.0, 4.0, 1.0], Rule::Elected(0.5)), 0.0);
    assert_eq!(of([1.0, 1.0, 2.0], Rule::Elected(0.5)), 1.5);
    assert_eq!(of([0.0, 0.0, 0.0], Rule::Elected(0.5)), 1.0);
    let common = |least: u32| Rule::Common { scale: 2.0, least, tolerances: vec![1.0; 3] };
    // The sum is 0.5: both of the first kind are as large as what is left of it, and the other one is not.
    assert_eq!(of([1.0, 1.0, 1.0], common(2)), 2.0);
    assert_eq!(of([1.0, 1.0, 1.0], common(3)), 1.0);
}
