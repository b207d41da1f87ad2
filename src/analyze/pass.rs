//! The pass over the inputs: every tensor is read once, in parts that the threads take in order.
//!
//! A part's sums are added up in the order of its chunks, a tensor's in the order of its parts: they do not depend on the threads.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::chosen::{kept, points, run_elements, sampled, vote};
use super::elements::{
    Magnitudes, Signs, add_votes, all_finite, decode_all, dot, magnitudes, signs, subtract,
};
use super::sums::{One, Pair, Sums, Task, TaskPair, pair, pairs};
use super::{Columns, Settled};
use crate::checkpoint::{Reads, Source};
use crate::dtype::Float;
use crate::error::{Error, Result};
use crate::input::{self, At, Parts, ReadElements};
use crate::plan::Plan;
use crate::stream::Watch;
use crate::threads;

/// Elements that are computed at a time, so that they stay near the processor.
const CHUNK: u64 = 1 << 16;
/// Elements of a part, which one thread measures.
const PART: u64 = 1 << 22;

/// A tensor whose models are compared.
#[derive(Debug)]
pub(super) struct Job {
    /// Which of the plan's.
    pub(super) tensor: usize,
    /// The plan's inputs of its models, their types, and the columns that these are.
    pub(super) inputs: Vec<usize>,
    pub(super) floats: Vec<Float>,
    pub(super) columns: Vec<usize>,
    /// Which of them is the base.
    pub(super) base: Option<usize>,
    pub(super) settled: Settled,
}

impl Job {
    /// The models that have a task vector, of its own.
    pub(super) fn tasks(&self) -> Vec<usize> {
        (0..self.inputs.len()).filter(|model| self.base.is_some_and(|base| base != *model)).collect()
    }

    /// How many elements its sample has one of.
    fn run(&self, elements: u64) -> u64 {
        run_elements(elements, self.tasks().len())
    }
}

/// What was found of a tensor.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) sums: Sums,
    /// Of the task vector of each column, magnitudes that stand for all.
    pub(super) points: Vec<Vec<f32>>,
    /// How many elements were looked at one by one.
    pub(super) sample: u64,
}

/// The bytes of decoded inputs that the pass goes over.
pub(super) fn bytes(plan: &Plan, jobs: &[Job]) -> u64 {
    let of = |job: &Job| {
        let elements = plan.tensors[job.tensor].elements;
        job.floats.iter().map(|float| float.bytes_of(elements)).sum::<u64>()
    };
    jobs.iter().map(of).sum()
}

/// The sums of a part, by the tensor's own models; the task vectors are in the order of [`Job::tasks`].
#[derive(Debug, Clone, Default)]
struct Local {
    not_finite: Vec<u64>,
    left_out: u64,
    squares: Vec<f64>,
    dots: Vec<f64>,
    tasks: Vec<Magnitudes>,
    task_squares: Vec<f64>,
    task_dots: Vec<f64>,
    signs: Vec<Signs>,
    vote: Signs,
    sample: Vec<Vec<f32>>,
}

impl Local {
    fn new(models: usize, tasks: usize) -> Self {
        let (model_pairs, task_pairs) = (pairs(models).count(), pairs(tasks).count());
        Self {
            not_finite: vec![0; models],
            left_out: 0,
            squares: vec![0.0; models],
            dots: vec![0.0; model_pairs],
            tasks: vec![Magnitudes::default(); tasks],
            task_squares: vec![0.0; tasks],
            task_dots: vec![0.0; task_pairs],
            signs: vec![Signs::default(); task_pairs],
            vote: Signs::default(),
            sample: vec![Vec::new(); tasks],
        }
    }

    fn add(&mut self, other: Self) {
        fn sum(into: &mut [f64], other: &[f64]) {
            into.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
        }
        self.not_finite.iter_mut().zip(&other.not_finite).for_each(|(sum, other)| *sum += other);
        self.left_out += other.left_out;
        sum(&mut self.squares, &other.squares);
        sum(&mut self.dots, &other.dots);
        sum(&mut self.task_squares, &other.task_squares);
        sum(&mut self.task_dots, &other.task_dots);
        self.tasks.iter_mut().zip(&other.tasks).for_each(|(sum, other)| sum.add(other));
        self.signs.iter_mut().zip(&other.signs).for_each(|(sum, other)| sum.add(other));
        self.vote.add(&other.vote);
        self.sample.iter_mut().zip(other.sample).for_each(|(all, more)| all.extend(more));
    }
}

impl Magnitudes {
    fn add(&mut self, other: &Self) {
        self.mass += other.mass;
        self.zeros += other.zeros;
        self.largest = self.largest.max(other.largest);
    }
}

/// The buffers of a thread.
#[derive(Debug, Default)]
struct Room {
    bytes: Vec<u8>,
    values: Vec<Vec<f32>>,
    tasks: Vec<Vec<f32>>,
    sides: [Vec<f32>; 2],
}

/// A tensor of which some parts are measured.
#[derive(Debug)]
struct Pending {
    parts: Vec<Option<Local>>,
    left: usize,
}

/// Everything the threads share.
pub(super) struct Pass<'a> {
    pub(super) plan: &'a Plan,
    pub(super) sources: &'a [Source],
    pub(super) columns: &'a Columns,
    pub(super) jobs: &'a [Job],
    pub(super) reads: Reads,
    pub(super) watch: &'a dyn Watch,
}

impl Pass<'_> {
    /// Measures all tensors.
    ///
    /// # Errors
    /// An input cannot be read, or the user wants to stop.
    pub(super) fn run(&self, threads: usize) -> Result<Vec<Found>> {
        let elements = |job: &Job| self.plan.tensors[job.tensor].elements;
        let units: Vec<(usize, usize)> = (0..self.jobs.len())
            .flat_map(|job| {
                (0..elements(&self.jobs[job]).div_ceil(PART) as usize).map(move |part| (job, part))
            })
            .collect();
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let pending: Mutex<HashMap<usize, Pending>> = Mutex::default();
        let found: Mutex<Vec<Option<Found>>> = Mutex::new(self.jobs.iter().map(|_| None).collect());
        let take = |room: &mut Room, (number, part): (usize, usize)| -> Result<()> {
            let job = &self.jobs[number];
            let all = elements(job);
            let start = part as u64 * PART;
            let local = self.part(room, job, start..(start + PART).min(all))?;
            let whole = {
                let mut pending = pending.lock().expect("no thread panics with it");
                let parts = all.div_ceil(PART) as usize;
                let of = pending
                    .entry(number)
                    .or_insert_with(|| Pending { parts: vec![None; parts], left: parts });
                of.parts[part] = Some(local);
                of.left -= 1;
                if of.left == 0 { pending.remove(&number) } else { None }
            };
            if let Some(Pending { parts, .. }) = whole {
                let mut sum = Local::new(job.inputs.len(), job.tasks().len());
                parts.into_iter().flatten().for_each(|part| sum.add(part));
                let of = self.finish(job, &sum);
                found.lock().expect("no thread panics with it")[number] = Some(of);
                job.inputs.iter().for_each(|input| input::release(&self.plan.inputs, *input));
            }
            Ok(())
        };
        threads::share(threads.min(units.len()).max(1), |_| {
            let mut room = Room::default();
            while !failed.load(Ordering::Relaxed) {
                let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                if let Err(error) = take(&mut room, *unit) {
                    failed.store(true, Ordering::Relaxed);
                    failure.lock().expect("no thread panics with it").get_or_insert(error);
                }
            }
        });
        if let Some(error) = failure.into_inner().expect("no thread panics with it") {
            return Err(error);
        }
        let found = found.into_inner().expect("no thread panics with it");
        Ok(found.into_iter().map(|found| found.unwrap_or_else(|| self.nothing())).collect())
    }

    /// Of a tensor without elements.
    fn nothing(&self) -> Found {
        let columns = self.columns.len();
        Found { sums: Sums::new(columns), points: vec![Vec::new(); columns], sample: 0 }
    }

    /// Fills `into` with decoded elements of an input from number `first` on.
    pub(super) fn read(
        &self,
        (input, float): (usize, Float),
        first: u64,
        bytes: &mut Vec<u8>,
        into: &mut [f32],
    ) -> Result<()> {
        if self.watch.stop() {
            return Err(Error::interrupted());
        }
        let stored = |at: At, start: u64, into: &mut [u8]| {
            let source = &self.sources[at.source];
            source.read_at(source.tensor_at(at.tensor), start, into, self.reads)
        };
        bytes.resize(float.bytes_of(into.len() as u64) as usize, 0);
        let stop = &|| self.watch.stop();
        let mut parts = Parts { inputs: &self.plan.inputs, stored, threads: 1, stop };
        parts.bytes(input, float.bytes_of(first), bytes)?;
        decode_all(float, bytes, into);
        Ok(())
    }

    fn part(&self, room: &mut Room, job: &Job, range: Range<u64>) -> Result<Local> {
        let (models, tasks) = (job.inputs.len(), job.tasks());
        let mut local = Local::new(models, tasks.len());
        let run = job.run(self.plan.tensors[job.tensor].elements);
        room.values.resize_with(models.max(room.values.len()), Vec::new);
        room.tasks.resize_with(tasks.len().max(room.tasks.len()), Vec::new);
        let mut in_sample: Vec<usize> = Vec::new();
        for start in range.clone().step_by(CHUNK as usize) {
            let chunk = start..(start + CHUNK).min(range.end);
            let count = (chunk.end - chunk.start) as usize;
            let Room { bytes, values, tasks: differences, sides } = room;
            for (model, values) in values[..models].iter_mut().enumerate() {
                values.resize(count, 0.0);
                self.read((job.inputs[model], job.floats[model]), start, bytes, values)?;
                self.watch.moved(bytes.len() as u64, bytes.len() as u64);
            }
            let values = &mut values[..models];
            leave_out(values, &mut local);
            for (model, values) in values.iter().enumerate() {
                local.squares[model] += dot(values, values);
            }
            for ((first, second), sum) in pairs(models).zip(&mut local.dots) {
                *sum += dot(&values[first], &values[second]);
            }
            let Some(base) = job.base else { continue };
            in_sample.clear();
            if run > 1 {
                in_sample.extend(sampled(chunk, run).map(|element| (element - start) as usize));
            }
            for ((place, model), difference) in tasks.iter().enumerate().zip(differences.iter_mut()) {
                difference.resize(count, 0.0);
                subtract(&values[*model], &values[base], difference);
                local.tasks[place].add(&magnitudes(difference));
                local.task_squares[place] += dot(difference, difference);
                if run == 1 {
                    local.sample[place].extend_from_slice(difference);
                } else {
                    local.sample[place].extend(in_sample.iter().map(|element| difference[*element]));
                }
            }
            for ((place, (first, second)), sum) in pairs(tasks.len()).enumerate().zip(&mut local.task_dots) {
                *sum += dot(&differences[first], &differences[second]);
                local.signs[place].add(&signs(&differences[first], &differences[second]));
            }
            if tasks.len() > 2 {
                let [up, down] = sides;
                [&mut *up, &mut *down].into_iter().for_each(|side| {
                    side.clear();
                    side.resize(count, 0.0);
                });
                differences[..tasks.len()].iter().for_each(|task| add_votes(task, 1.0, up, down));
                local.vote.add(&signs(up, down));
            }
        }
        Ok(local)
    }

    /// The sums of a tensor, by columns.
    fn finish(&self, job: &Job, local: &Local) -> Found {
        let Settled { densities, weights, shares } = &job.settled;
        let (models, tasks) = (job.inputs.len(), job.tasks());
        let all = self.plan.tensors[job.tensor].elements;
        let elements = all - local.left_out;
        let Found { mut sums, mut points, .. } = self.nothing();
        (sums.tensors, sums.elements) = (1, all);
        for (model, column) in job.columns.iter().enumerate() {
            let (squares, not_finite) = (local.squares[model], local.not_finite[model]);
            sums.models[*column] = One { elements, squares, not_finite };
        }
        for ((first, second), dot) in pairs(models).zip(&local.dots) {
            let squares = [local.squares[first], local.squares[second]];
            let (place, turned) = place(job, first, second);
            let both = shares[first] + shares[second];
            let t = if both > 0.0 { shares[second] / both } else { 0.5 };
            let (apart_squares, slerp_squares) = spherical(squares, *dot, t);
            let squares = if turned { [squares[1], squares[0]] } else { squares };
            sums.pairs[place] = Pair { elements, squares, dot: *dot, apart_squares, slerp_squares };
        }
        let Some(base) = job.base else { return Found { sums, points, sample: 0 } };
        let kept: Vec<Vec<bool>> =
            local.sample.iter().zip(densities).map(|(task, density)| kept(task, *density)).collect();
        let sample = local.sample.first().map_or(0, Vec::len) as u64;
        let each = elements as f64 / sample.max(1) as f64;
        let count = |kept: &[bool]| each * kept.iter().filter(|kept| **kept).count() as f64;
        let task_dot = |one: usize, other: usize| match one.cmp(&other) {
            std::cmp::Ordering::Equal => local.task_squares[one],
            std::cmp::Ordering::Less => local.task_dots[pair(one, other)],
            std::cmp::Ordering::Greater => local.task_dots[pair(other, one)],
        };
        for (place, model) in tasks.iter().enumerate() {
            let Magnitudes { mass, zeros, largest } = local.tasks[place];
            let with_all = (0..tasks.len()).map(|other| weights[other] * task_dot(place, other)).sum::<f64>();
            let task = Task {
                one: One { elements, squares: local.task_squares[place], not_finite: 0 },
                base_squares: local.squares[base],
                mass,
                zeros: zeros - local.left_out,
                largest,
                pull: weights[place] * with_all,
                kept: count(&kept[place]),
            };
            sums.vote.merged_squares += task.pull;
            sums.tasks[job.columns[*model]] = task;
            points[job.columns[*model]] = self::points(&local.sample[place]);
        }
        for (number, (first, second)) in pairs(tasks.len()).enumerate() {
            let both: Vec<bool> = kept[first].iter().zip(&kept[second]).map(|(a, b)| *a && *b).collect();
            let (place, turned) = place(job, tasks[first], tasks[second]);
            let (first, second) = if turned { (second, first) } else { (first, second) };
            let of_each = [first, second].map(|task| count(&kept[task]));
            sums.task_pairs[place] = TaskPair {
                elements,
                squares: [first, second].map(|task| local.task_squares[task]),
                dot: local.task_dots[number],
                signs: local.signs[number],
                kept: of_each,
                kept_both: count(&both),
                by_chance: of_each[0] * of_each[1] / elements.max(1) as f64,
            };
        }
        sums.vote.elements = elements;
        // Of two task vectors the vote is what their signs say.
        sums.vote.signs = if tasks.len() == 2 { local.signs[0] } else { local.vote };
        let trimmed = vote(&local.sample, &kept, weights);
        (sums.vote.kept_mass, sums.vote.kept_outvoted) = (each * trimmed.mass, each * trimmed.outvoted);
        Found { sums, points, sample }
    }
}

/// The place of a pair of a tensor's models among those of columns, and whether the second one's column comes first.
fn place(job: &Job, first: usize, second: usize) -> (usize, bool) {
    let (first, second) = (job.columns[first], job.columns[second]);
    (pair(first.min(second), first.max(second)), first > second)
}

/// Elements that are not finite in some model become 0 in all, and are counted.
fn leave_out(values: &mut [Vec<f32>], local: &mut Local) {
    if values.iter().all(|values| all_finite(values)) {
        return;
    }
    for element in 0..values[0].len() {
        let mut left_out = false;
        for (values, not_finite) in values.iter().zip(&mut local.not_finite) {
            if !values[element].is_finite() {
                *not_finite += 1;
                left_out = true;
            }
        }
        if left_out {
            local.left_out += 1;
            values.iter_mut().for_each(|values| values[element] = 0.0);
        }
    }
}

/// The squares of the distance of the spherical interpolation of two vectors from the linear one, and of itself.
fn spherical(squares: [f64; 2], dot: f64, t: f64) -> (f64, f64) {
    /// Below this sine the two are the same in f64, or, where the vectors are opposite, not defined.
    const SINE_MIN: f64 = 1e-7;
    let linear = [1.0 - t, t];
    let norm = (squares[0] * squares[1]).sqrt();
    let theta = libm::acos(if norm > 0.0 { (dot / norm).clamp(-1.0, 1.0) } else { 1.0 });
    let sine = libm::sin(theta);
    let arc =
        if sine > SINE_MIN { [linear[0], t].map(|share| libm::sin(share * theta) / sine) } else { linear };
    let square = |[a, b]: [f64; 2]| (a * a * squares[0] + 2.0 * a * b * dot + b * b * squares[1]).max(0.0);
    (square([arc[0] - linear[0], arc[1] - linear[1]]), square(arc))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arc_is_as_far_from_the_chord_as_geometry_says() {
        // At a right angle and half-way the arc has length 1, the chord 1/√2.
        let (apart, arc) = spherical([1.0, 1.0], 0.0, 0.5);
        assert!((apart.sqrt() - (1.0 - 0.5f64.sqrt())).abs() < 1e-12 && (arc - 1.0).abs() < 1e-12);
        for (dot, squares) in [(4.0, [4.0, 4.0]), (-4.0, [4.0, 4.0]), (0.0, [0.0, 1.0])] {
            assert!(spherical(squares, dot, 0.3).0.abs() < 1e-12);
        }
        // Of the angle 60° at a fifth: sin 48° and sin 12° over sin 60°.
        let (apart, _) = spherical([1.0, 4.0], 1.0, 0.2);
        let (a, b) = (0.858_109_9 - 0.8, 0.240_075_7 - 0.2);
        assert!((apart - (a * a + 2.0 * a * b + 4.0 * b * b)).abs() < 1e-6, "{apart}");
    }
}
