//! Two models compared tensor by tensor: which tensors are equal, and how far apart the others are.
//!
//! Every tensor is read once, in parts that threads take in order, and as a merge reads it: with adapters, and quantised ones as
//! floats. A part's sums are added up in the order of its chunks, a tensor's in the order of its parts: they do not depend on the
//! threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::checkpoint::{Reads, Source};
use crate::dtype::{Dtype, Float, decode};
use crate::error::{Error, Result};
use crate::input;
use crate::instructions::for_each_instruction_set;
use crate::plan::{Compared, ComparedTensor};
use crate::stream::Watch;
use crate::threads;

/// Elements that are compared at a time, so that they stay near the processor.
const CHUNK: usize = 1 << 14;
/// Elements of a part, which one thread compares; whole chunks.
const PART: usize = 1 << 22;
const _: () = assert!(PART.is_multiple_of(CHUNK));

/// What two models have, and how it differs.
#[derive(Debug)]
pub struct Differences {
    /// Tensors that both have, in the order of the first.
    pub tensors: Vec<TensorPair>,
    /// Tensors that only the first has, and those that only the second has.
    pub lone: [Vec<Lone>; 2],
}

/// A tensor that one model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lone {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

/// A tensor that both have; of each pair of values the first is the first model's.
#[derive(Debug, Clone)]
pub struct TensorPair {
    /// Its name.
    pub name: String,
    /// Its types.
    pub dtypes: [Dtype; 2],
    /// Its dimensions.
    pub shapes: [Vec<usize>; 2],
    /// How far its elements are apart; none where shapes differ, or types that cannot be compared.
    pub values: Option<Values>,
}

/// The elements of two tensors of one shape.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// Floats.
    Floats(Sums),
    /// Others, of one type: so many of so many elements differ.
    Others {
        /// How many there are.
        elements: u64,
        /// How many differ.
        different: u64,
    },
}

/// What is added up of two tensors of floats. NaN that both have at one place is equal, as are infinities of one sign; an element that is
/// not finite in one of them counts in no sum.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// How many there are.
    pub elements: u64,
    /// How many differ, as numbers: −0 is 0.
    pub different: u64,
    /// At how many places one of them is not finite.
    pub not_finite: u64,
    /// The largest magnitude of a difference.
    pub largest: f64,
    magnitudes: f64,
    squares: f64,
    own_squares: [f64; 2],
    dot: f64,
}

impl Differences {
    /// Whether both models have the same tensors.
    pub fn are_equal(&self) -> bool {
        self.lone.iter().all(Vec::is_empty) && self.tensors.iter().all(TensorPair::is_equal)
    }
}

impl TensorPair {
    /// Whether types, shapes and all elements are equal.
    pub fn is_equal(&self) -> bool {
        self.dtypes[0] == self.dtypes[1] && self.shapes[0] == self.shapes[1] && self.values_are_equal()
    }

    /// Whether the elements are, of whatever type.
    pub fn values_are_equal(&self) -> bool {
        self.values.is_some_and(|values| values.different() == 0)
    }

    /// Its sums, where it has floats.
    pub fn sums(&self) -> Option<&Sums> {
        match &self.values {
            Some(Values::Floats(sums)) => Some(sums),
            _ => None,
        }
    }
}

impl Values {
    /// How many elements there are.
    pub fn elements(&self) -> u64 {
        match self {
            Self::Floats(sums) => sums.elements,
            Self::Others { elements, .. } => *elements,
        }
    }

    /// How many differ.
    pub fn different(&self) -> u64 {
        match self {
            Self::Floats(sums) => sums.different,
            Self::Others { different, .. } => *different,
        }
    }
}

impl Sums {
    /// The mean magnitude of a difference, over all elements that are finite in both; none where none is.
    pub fn mean(&self) -> Option<f64> {
        ratio(self.magnitudes, (self.elements - self.not_finite) as f64)
    }

    /// The cosine of the two tensors as vectors; none where one is 0.
    pub fn cosine(&self) -> Option<f64> {
        let cosine = ratio(self.dot, self.own_squares[0].sqrt() * self.own_squares[1].sqrt())?;
        Some(cosine.clamp(-1.0, 1.0))
    }

    /// The norm of the second over that of the first; none where that is 0.
    pub fn norm_ratio(&self) -> Option<f64> {
        ratio(self.own_squares[1].sqrt(), self.own_squares[0].sqrt())
    }

    /// The norm of the difference over that of the first; none where that is 0.
    pub fn relative(&self) -> Option<f64> {
        ratio(self.squares.sqrt(), self.own_squares[0].sqrt())
    }

    /// Adds what was added up of other elements.
    pub fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.different += other.different;
        self.not_finite += other.not_finite;
        self.largest = self.largest.max(other.largest);
        self.magnitudes += other.magnitudes;
        self.squares += other.squares;
        (0..2).for_each(|model| self.own_squares[model] += other.own_squares[model]);
        self.dot += other.dot;
    }
}

fn ratio(above: f64, below: f64) -> Option<f64> {
    Some(above / below).filter(|ratio| below > 0.0 && ratio.is_finite())
}

/// How two tensors of one shape are read.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Floats,
    /// As they are stored, an element of so many bytes.
    Stored(usize),
}

/// Two tensors that are read.
#[derive(Debug)]
struct Job<'a> {
    tensors: [&'a ComparedTensor; 2],
    kind: Kind,
    /// What is compared: elements, or bytes that hold several.
    count: usize,
    /// How many parts are still to be compared.
    left: AtomicUsize,
}

impl<'a> Job<'a> {
    /// None where the tensors cannot be compared.
    fn new(tensors: [&'a ComparedTensor; 2]) -> Option<Self> {
        let [first, second] = tensors;
        if first.shape != second.shape {
            return None;
        }
        let is_number =
            |tensor: &ComparedTensor| tensor.read_as == Dtype::F64 || Float::of(tensor.read_as).is_some();
        let (kind, count) = if is_number(first) && is_number(second) {
            (Kind::Floats, first.elements())
        } else if first.read_as == second.read_as {
            let bits = first.read_as.bitsize();
            (Kind::Stored(bits.div_ceil(8)), (first.elements() * bits).div_ceil(8 * bits.div_ceil(8)))
        } else {
            return None;
        };
        Some(Self { tensors, kind, count, left: AtomicUsize::new(count.div_ceil(PART)) })
    }

    /// The bytes of an element as it is read.
    fn element_bytes(&self, model: usize) -> usize {
        match self.kind {
            Kind::Floats => self.tensors[model].read_as.bitsize() / 8,
            Kind::Stored(bytes) => bytes,
        }
    }

    fn bytes(&self) -> u64 {
        (0..2).map(|model| (self.count * self.element_bytes(model)) as u64).sum()
    }
}

/// The jobs of two models by the names of the first, those that cannot be compared among them.
fn jobs(models: &Compared) -> Vec<(&String, [&ComparedTensor; 2], Option<Job<'_>>)> {
    let pair = |(name, first)| {
        let tensors = [first, models.tuned.tensors.get(name)?];
        Some((name, tensors, Job::new(tensors)))
    };
    models.base.tensors.iter().filter_map(pair).collect()
}

/// The bytes that [`diff`] compares.
pub fn compared_bytes(models: &Compared) -> u64 {
    jobs(models).iter().filter_map(|(_, _, job)| job.as_ref()).map(Job::bytes).sum()
}

/// Compares two models: the base is the first, the other one the second.
///
/// # Errors
/// An input cannot be read or changes, or the user wants to stop.
pub fn diff(models: &Compared, threads: usize, reads: Reads, watch: &dyn Watch) -> Result<Differences> {
    let jobs = jobs(models);
    let units: Vec<(usize, &Job<'_>, usize)> = jobs
        .iter()
        .enumerate()
        .filter_map(|(number, (_, _, job))| Some((number, job.as_ref()?)))
        .flat_map(|(number, job)| (0..job.count).step_by(PART).map(move |first| (number, job, first)))
        .collect();
    let failed = AtomicBool::new(false);
    let parts = threads::each(threads.max(1), units.len(), |unit| {
        // What one thread could not do ends the work of all.
        if failed.load(Ordering::Relaxed) {
            return Ok(Sums::default());
        }
        let (_, job, first) = units[unit];
        let part = Reader { models, reads, watch }.part(job, first);
        failed.fetch_or(part.is_err(), Ordering::Relaxed);
        if job.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            job.tensors.iter().for_each(|tensor| input::release(&models.inputs, tensor.input));
        }
        part
    });
    // Inputs that change are the error, whatever came of them.
    models.sources.iter().try_for_each(Source::verify_unchanged)?;
    let mut sums = vec![Sums::default(); jobs.len()];
    for ((number, _, _), part) in units.iter().zip(parts) {
        sums[*number].add(&part?);
    }
    let pair = |((name, tensors, job), sums): (&(&String, [&ComparedTensor; 2], Option<Job<'_>>), Sums)| {
        TensorPair {
            name: (*name).clone(),
            dtypes: tensors.map(|tensor| tensor.dtype),
            shapes: tensors.map(|tensor| tensor.shape.clone()),
            values: job.as_ref().map(|job| match job.kind {
                Kind::Floats => Values::Floats(sums),
                Kind::Stored(_) => Values::Others { elements: sums.elements, different: sums.different },
            }),
        }
    };
    let tensors = jobs.iter().zip(sums).map(pair).collect();
    let [first, second] = [&models.base.tensors, &models.tuned.tensors];
    let lone = [(first, second), (second, first)].map(|(own, other)| {
        let own = own.iter().filter(|(name, _)| !other.contains_key(*name));
        own.map(|(name, tensor)| Lone {
            name: name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        })
        .collect()
    });
    Ok(Differences { tensors, lone })
}

/// Reads both models.
struct Reader<'a> {
    models: &'a Compared,
    reads: Reads,
    watch: &'a dyn Watch,
}

impl Reader<'_> {
    /// The sums of the part that begins with element `first`.
    fn part(&self, job: &Job<'_>, first: usize) -> Result<Sums> {
        let (mut bytes, mut floats, mut values): ([Vec<u8>; 2], Vec<f32>, [Vec<f64>; 2]) = Default::default();
        let mut sums = Sums::default();
        let end = job.count.min(first + PART);
        for start in (first..end).step_by(CHUNK) {
            let count = CHUNK.min(end - start);
            for (model, bytes) in bytes.iter_mut().enumerate() {
                self.read(job, model, start..start + count, bytes)?;
            }
            match job.kind {
                Kind::Floats => {
                    for model in 0..2 {
                        decoded(job.tensors[model].read_as, &bytes[model], &mut floats, &mut values[model]);
                    }
                    let [one, other] = &values;
                    sums.add(&of_floats(one, other));
                }
                Kind::Stored(element_bytes) => {
                    let elements = |model: usize| bytes[model].chunks(element_bytes);
                    let different = elements(0).zip(elements(1)).filter(|(one, other)| one != other).count();
                    sums.add(&Sums {
                        elements: count as u64,
                        different: different as u64,
                        ..Sums::default()
                    });
                }
            }
        }
        Ok(sums)
    }

    fn read(
        &self,
        job: &Job<'_>,
        model: usize,
        elements: std::ops::Range<usize>,
        into: &mut Vec<u8>,
    ) -> Result<()> {
        if self.watch.stop() {
            return Err(Error::interrupted());
        }
        let element_bytes = job.element_bytes(model);
        into.resize(elements.len() * element_bytes, 0);
        let start = (elements.start * element_bytes) as u64;
        self.models.read(
            job.tensors[model],
            start,
            into,
            self.reads,
            &|read| self.watch.moved(read, 0),
            &|| self.watch.stop(),
        )?;
        self.watch.moved(0, into.len() as u64);
        Ok(())
    }
}

/// Floats as f64, exactly. `floats` is room that outlives the call.
fn decoded(dtype: Dtype, bytes: &[u8], floats: &mut Vec<f32>, into: &mut Vec<f64>) {
    into.clear();
    let Some(float) = Float::of(dtype) else {
        into.extend(bytes.as_chunks::<8>().0.iter().map(|value| f64::from_le_bytes(*value)));
        return;
    };
    floats.resize(bytes.len() / float.bytes(), 0.0);
    decode_all(float, bytes, floats);
    into.extend(floats.iter().map(|value| f64::from(*value)));
}

fn of_floats(one: &[f64], other: &[f64]) -> Sums {
    let sums = added(one, other);
    if sums.magnitudes.is_finite() && sums.own_squares.iter().all(|squares| squares.is_finite()) {
        return sums;
    }
    // What is not finite is counted by itself; in its place stands 0.
    let (mut one, mut other) = (one.to_vec(), other.to_vec());
    let (mut not_finite, mut different) = (0, 0);
    for (one, other) in one.iter_mut().zip(&mut other) {
        if !one.is_finite() || !other.is_finite() {
            not_finite += 1;
            different += u64::from(!(one == other || one.is_nan() && other.is_nan()));
            (*one, *other) = (0.0, 0.0);
        }
    }
    let mut sums = added(&one, &other);
    sums.not_finite = not_finite;
    sums.different += different;
    sums
}

/// Sums that go on side by side.
const LANES: usize = 8;

for_each_instruction_set! {
    fn decode_all(float: Float, bytes: &[u8], into: &mut [f32]) {
        decode(float, bytes, into);
    }

    fn added(one: &[f64], other: &[f64]) -> Sums {
        let ((ones, one_rest), (others, other_rest)) = (one.as_chunks::<LANES>(), other.as_chunks::<LANES>());
        let rest = |rest: &[f64]| {
            let mut lanes = [0.0; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            [lanes]
        };
        let rests = [rest(one_rest), rest(other_rest)];
        let (mut different, mut largest) = ([0u64; LANES], [0.0f64; LANES]);
        let [mut magnitudes, mut squares, mut first, mut second, mut dot] = [[0.0; LANES]; 5];
        for (ones, others) in [(ones, others), (&rests[0], &rests[1])] {
            for (one, other) in ones.iter().zip(others) {
                for lane in 0..LANES {
                    let (one, other) = (one[lane], other[lane]);
                    let difference = other - one;
                    let magnitude = difference.abs();
                    different[lane] += u64::from(one != other);
                    largest[lane] = if magnitude > largest[lane] { magnitude } else { largest[lane] };
                    magnitudes[lane] += magnitude;
                    squares[lane] += difference * difference;
                    first[lane] += one * one;
                    second[lane] += other * other;
                    dot[lane] += one * other;
                }
            }
        }
        let sum = |lanes: [f64; LANES]| lanes.into_iter().sum::<f64>();
        Sums {
            elements: one.len() as u64,
            different: different.into_iter().sum(),
            not_finite: 0,
            largest: largest.into_iter().fold(0.0, f64::max),
            magnitudes: sum(magnitudes),
            squares: sum(squares),
            own_squares: [sum(first), sum(second)],
            dot: sum(dot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_equal_to_itself_and_in_no_sum() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let one = [1.0, nan, nan, inf, inf, inf, 0.0, 2.0, 3.0];
        let other = [1.0, nan, 1.0, inf, -inf, 4.0, -0.0, 4.0, 3.0];
        let sums = of_floats(&one, &other);
        assert_eq!((sums.elements, sums.different, sums.not_finite), (9, 4, 5));
        assert_eq!((sums.largest, sums.mean()), (2.0, Some(0.5)));
        let (first, second) = (14f64.sqrt(), 26f64.sqrt());
        assert_eq!(sums.norm_ratio(), Some(second / first));
        assert_eq!(sums.relative(), Some(2.0 / first));
        assert_eq!(sums.cosine(), Some(18.0 / (first * second)));
        // Without a norm there is nothing to relate to.
        let nothing = of_floats(&[0.0, nan], &[1.0, nan]);
        assert_eq!((nothing.cosine(), nothing.norm_ratio(), nothing.relative()), (None, None, None));
        assert_eq!((of_floats(&[nan], &[nan]).mean(), Sums::default().mean()), (None, None));
    }
}
