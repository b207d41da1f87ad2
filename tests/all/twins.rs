//! Every kernel on the CPU against its plain twin, bit for bit, by the check that users run on their devices.
//!
//! The CPU device is compiled for newer instruction sets as well, which must not change a bit. Devices that hold inputs
//! and devices that do not are checked; GPUs have tests of their own.

use mergeforge::backend::cpu::Cpu;
use mergeforge::check::{self, Case, CaseValues, Depth, Types, Use, jobs};
use mergeforge::dtype::Float;
use mergeforge::kernel::choice::Choice;
use mergeforge::kernel::elect::Rule;
use mergeforge::kernel::thinning::{Keep, Trim};
use mergeforge::kernel::{Job, KERNELS};

use crate::models::Random;

#[test]
fn every_kernel_gives_the_bits_of_its_twin() {
    for hold_bytes in [0, 64 << 20] {
        let rows = check::run(&Cpu::new(hold_bytes), Depth::All, None, |_| {}).unwrap();
        assert_eq!(rows.len(), (KERNELS.len() - 1) * Types::ALL.len(), "all kernels but `stream`");
        for row in &rows {
            assert!(row.launches >= 24, "{row:?}");
            assert_eq!(row.wrong, None, "holding {hold_bytes} bytes");
        }
        assert!(check::refusal("cpu", &rows).is_none());
    }
}

#[test]
fn a_kernel_alone_is_checked_as_often_as_among_all() {
    let device = Cpu::new(0);
    let all = check::run(&device, Depth::Quick, None, |_| {}).unwrap();
    assert_eq!(check::kernels().len() * Types::ALL.len(), all.len());
    for kernel in check::kernels() {
        let alone = check::run(&device, Depth::Quick, Some(kernel), |_| {}).unwrap();
        assert_eq!(alone.len(), Types::ALL.len(), "{kernel}");
        let among = all.iter().filter(|row| row.kernel == kernel.name);
        assert!(alone.iter().eq(among), "{kernel}: {alone:?}");
    }
}

/// What a wrong kernel would do, by way of a job that differs a little; `None` where there is nothing to change.
fn planted(job: &Job, fault: usize) -> Option<Job> {
    let next_up = |x: f32| f32::from_bits(x.to_bits() + 1);
    let mut wrong = job.clone();
    match (&mut wrong, fault) {
        (Job::WeightedSum(job), 0) => job.coefficients[1] = next_up(job.coefficients[1]),
        (Job::WeightedSum(job), 1) => job.anchored = !job.anchored,
        (Job::Consensus(job), 0) => {
            job.models.iter_mut().for_each(|model| model.coefficient = next_up(model.coefficient));
        }
        (Job::Consensus(job), 1) => job.scale.iter_mut().for_each(|scale| *scale = next_up(*scale)),
        (Job::Consensus(job), _) => {
            for model in &mut job.models {
                match &mut model.keep {
                    Keep::Trim(trim) if fault == 2 => trim.threshold += 1,
                    Keep::Trim(trim) if fault == 3 => trim.cut_lane += 100,
                    Keep::Random(mask) if fault == 4 => mask.key[0] += 1,
                    _ => {}
                }
            }
        }
        // A key that many have.
        (Job::Levels(job), 0) => {
            job.models[0].iter_mut().filter(|key| **key == 0.25f32.to_bits()).for_each(|key| *key += 1);
        }
        (Job::Magnitudes(job), 0) => job.models[0].shift += 1,
        (Job::MaskedSums(job), 0) => job.models.iter_mut().for_each(|keep| *keep = Keep::All),
        (Job::Elect(job), 0) => {
            job.models.iter_mut().for_each(|part| part.coefficient = next_up(part.coefficient));
        }
        (Job::Elect(job), 1) => match &mut job.rule {
            Rule::Sum => {}
            Rule::Signs(scale) | Rule::Kept(scale) => {
                scale.iter_mut().for_each(|scale| *scale = next_up(*scale));
            }
            Rule::Largest(scale) | Rule::Elected(scale) | Rule::Common { scale, .. } => {
                *scale = next_up(*scale);
            }
        },
        (Job::Elect(job), 2) => job.models.iter_mut().for_each(|part| shifted(&mut part.choice, 1, 0)),
        (Job::Elect(job), 3) => job.models.iter_mut().for_each(|part| shifted(&mut part.choice, 0, 100)),
        (Job::Elect(job), _) => match &mut job.rule {
            Rule::Signs(_) => job.models.iter_mut().for_each(|part| part.share = next_up(part.share)),
            Rule::Common { least, .. } => *least += 1,
            _ => {}
        },
        (Job::ChosenSums(job), 0) => job.models.iter_mut().for_each(|choice| *choice = Choice::All),
        (Job::ChosenSums(job), 1) => job.models.iter_mut().for_each(|choice| shifted(choice, 1, 0)),
        (Job::ChosenSums(job), 2) => job.models.iter_mut().for_each(|choice| shifted(choice, 0, 100)),
        (Job::Holders(job), 0) => {
            job.models.iter_mut().filter(|key| **key == 0.25f32.to_bits()).for_each(|key| *key -= 1);
        }
        (Job::Nearswap(job), 0) => job.t = next_up(job.t),
        // Few are nearer than the least distances.
        (Job::Nearswap(job), 1) if job.near >= 0.25 => job.factor = next_up(job.factor),
        _ => {}
    }
    (wrong != *job).then_some(wrong)
}

/// Moves a choice's thresholds and cuts.
fn shifted(choice: &mut Choice, key: u32, lane: u32) {
    let trims: &mut [&mut Trim] = match choice {
        Choice::All => &mut [],
        Choice::Trim(trim) | Choice::By { trim, .. } => &mut [trim],
        Choice::Band { kept, dropped } => &mut [kept, dropped],
    };
    for trim in trims {
        trim.threshold += key;
        trim.cut_lane += lane;
    }
}

#[test]
fn wrong_kernels_are_caught() {
    let mut random = Random(78);
    let models = 4;
    let mut caught = 0;
    for job in jobs(models, &mut random) {
        for fault in 0..5 {
            let Some(wrong) = planted(&job, fault) else { continue };
            // In numbers that are all tiny, some faults cannot show.
            let (floats, kinds) = (vec![Float::BF16; job.inputs()], [CaseValues::Ordinary]);
            let case = Case::new(&job, floats, Float::F32, &[5000, 777], &kinds, &mut random);
            let expected = case.of_twin();
            let found = case.with(&wrong).on(&Cpu::new(0), Use::Again).unwrap().bits;
            assert!(found != expected, "{}, fault {fault}", job.kernel());
            caught += 1;
        }
    }
    assert!(caught >= 80, "only {caught} faults were planted");
}
