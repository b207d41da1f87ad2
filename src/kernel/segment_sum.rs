//! `out = x₀ + (c₀·x₀ + Σ cᵢ (xᵢ − x₀))`, with coefficients of their own for each row or column of the tensor.
//!
//! The sum is always taken around the first input: equal models give themselves exactly where `c₀` is 0, and up to its own
//! part where it is not.

use std::ops::Range;
use std::sync::Arc;

use super::packed::{FACTORS, append_floats};
use super::{CaseNumbers, Compiled, Kernel, Needs, Numbers, Outcome, SPANS_MAX, TILE, Target, TileInputs, Widest};
use crate::dtype::Element;

/// The numbers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// How many tensors.
    pub inputs: usize,
    /// Which coefficients an element has.
    pub by: Per,
    /// Those of the first input for all segments, then those of the second, …
    pub coefficients: Arc<[f32]>,
}

/// What has coefficients of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// The tensor: one set of coefficients.
    Whole,
    /// Rows of so many elements.
    Rows(u64),
    /// Columns: so many.
    Columns(u64),
}

impl Job {
    /// A job for some inputs.
    ///
    /// # Panics
    /// There is not one set of coefficients for each input, or a first coefficient is neither 0 nor at least [`SMALLEST`].
    pub fn new(inputs: usize, by: Per, coefficients: Arc<[f32]>) -> Self {
        assert!(coefficients.len().is_multiple_of(inputs), "as many coefficients for each input");
        let job = Self { inputs, by, coefficients };
        let fits = |c: &f32| *c == 0.0 || f64::from(c.abs()) >= SMALLEST || c.is_nan();
        assert!(job.coefficients[..job.segments()].iter().all(fits), "a first coefficient that counts");
        job
    }

    /// The segments that a part of the tensor touches.
    fn segments_of(&self, part: &Range<u64>) -> Range<usize> {
        match self.by {
            Per::Whole => 0..1,
            Per::Rows(_) => {
                let last = part.end.max(part.start + 1) - 1;
                self.segment(part.start)..self.segment(last) + 1
            }
            Per::Columns(columns) => 0..columns as usize,
        }
    }

    fn segments(&self) -> usize {
        self.coefficients.len() / self.inputs
    }

    /// The segment of an element of the tensor.
    fn segment(&self, element: u64) -> usize {
        match self.by {
            Per::Whole => 0,
            Per::Rows(columns) => (element / columns) as usize,
            Per::Columns(columns) => (element % columns) as usize,
        }
    }
}

/// The record.
pub(super) const KERNEL: Kernel = Kernel {
    name: "segment_sum",
    ptx: Compiled { text: include_str!("../../kernels/ptx/segment_sum.ptx"), models: 0 },
    wgsl: Compiled { text: include_str!("../../shaders/segment_sum.wgsl"), models: 0 },
    group_words: 0,
    needs,
    structs: &[],
    constants: &[("BY_ROWS", BY_ROWS), ("BY_COLUMNS", BY_COLUMNS)],
    cases,
    benches,
};

fn needs(widest: &Widest, chunk_tiles: u64) -> Needs {
    let (elements, spans) = (chunk_tiles * TILE as u64, chunk_tiles.min(SPANS_MAX as u64));
    // A part of a tensor may begin and end within a row, and touches every column; a whole tensor has one of each.
    let rows = elements.checked_div(widest.row_elements).map_or(0, |rows| rows + 2 * spans);
    let columns = (spans * widest.columns).min(elements.max(widest.columns));
    let coefficients = widest.inputs * (rows + columns + spans) as usize;
    Needs { job_words: 4 * spans as usize + coefficients, ..Needs::default() }
}

/// Rows as the kernels of GPUs know them; a whole tensor is a row without an end.
const BY_ROWS: u32 = 0;

/// Columns as the kernels of GPUs know them.
const BY_COLUMNS: u32 = 1;

/// Rows shorter than a thread's elements, of odd length, and longer than a tile. The check's tensors have up to 9000 elements.
fn cases(drawn: &CaseNumbers) -> Vec<super::Job> {
    let inputs = drawn.models + 1;
    let job = |by: Per, segments: usize| {
        let of = |i: usize| drawn.coefficients[(i * 7 + i / segments) % inputs] * (1.0 + (i % segments % 5) as f32);
        Job { inputs, by, coefficients: (0..inputs * segments).map(of).collect() }
    };
    let jobs = [
        job(Per::Whole, 1),
        job(Per::Rows(3), 3000),
        job(Per::Rows(125), 72),
        job(Per::Rows(2048), 5),
        job(Per::Columns(5), 5),
        job(Per::Columns(1500), 1500),
    ];
    jobs.map(Into::into).into()
}

fn benches(_: &[u32]) -> Vec<(&'static str, super::Job)> {
    let job = |by: Per, segments: usize| Job { inputs: 3, by, coefficients: vec![0.3; 3 * segments].into() }.into();
    vec![("model_stock, base + 2", job(Per::Whole, 1)), ("columns, base + 2", job(Per::Columns(4096), 4096))]
}

impl Numbers for Job {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outcome(&self) -> Outcome {
        Outcome::Values
    }

    /// Those that differences of inputs are multiplied with; and those of the first input itself, which is no smaller than
    /// [`super::packed::PLAIN`], so that its coefficients may be smaller, down to [`SMALLEST`].
    fn factors(&self, part: &Range<u64>) -> Vec<f32> {
        let segments = self.segments_of(part);
        let mut of_inputs = self.coefficients.chunks_exact(self.segments());
        let first = of_inputs.next().into_iter().flat_map(|of| &of[segments.clone()]);
        let raised = first.map(|c| if c.abs() < 1.0 { c.abs().max(*FACTORS.start()) } else { *c });
        let first: Vec<f32> = raised.collect();
        first.into_iter().chain(of_inputs.flat_map(|of| of[segments.clone()].iter().copied())).collect()
    }

    fn packs_parts(&self) -> bool {
        true
    }

    /// What has coefficients, elements of a row, where in its row the part begins, and how many segments it touches; then the
    /// coefficients of those, input after input.
    fn pack(&self, part: &Range<u64>, words: &mut Vec<u32>) {
        let (mode, columns) = match self.by {
            Per::Whole => (BY_ROWS, u32::MAX),
            Per::Rows(columns) => (BY_ROWS, columns as u32),
            Per::Columns(columns) => (BY_COLUMNS, columns as u32),
        };
        let segments = self.segments_of(part);
        let start = if self.by == Per::Whole { 0 } else { (part.start % u64::from(columns)) as u32 };
        words.extend([mode, columns, start, segments.len() as u32]);
        for coefficients in self.coefficients.chunks_exact(self.segments()) {
            append_floats(words, &coefficients[segments.clone()]);
        }
    }

    fn plain(&self, tile: u64, x: &[&[f32]], target: Target<'_>) {
        for (i, out) in target.values().0.iter_mut().enumerate() {
            let segment = self.segment(tile * TILE as u64 + i as u64);
            let c = |input: usize| self.coefficients[input * self.segments() + segment];
            let mut sum = c(0) * x[0][i];
            for input in 1..self.inputs {
                sum += c(input) * (x[input][i] - x[0][i]);
            }
            *out = sum + x[0][i];
        }
    }

    #[inline(always)]
    fn tile<E: Element>(&self, tile: u64, inputs: &TileInputs<'_, E>, _: &mut Vec<f32>, target: Target<'_>) {
        fast(self, tile, inputs, target.values().0);
    }
}

/// The smallest magnitude of a first coefficient that is not 0: it is far below what f32 can add to 1.
pub const SMALLEST: f64 = 1.0 / (1u64 << 30) as f64;

/// The fast path: row by row, or as much of one as the tile has.
#[inline(always)]
fn fast<E: Element>(job: &Job, tile: u64, inputs: &TileInputs<'_, E>, out: &mut [f32]) {
    let (first, segments) = (tile * TILE as u64, job.segments());
    let columns = match job.by {
        Per::Whole => u64::MAX,
        Per::Rows(columns) | Per::Columns(columns) => columns,
    };
    let mut start = 0;
    while start < inputs.len {
        let element = first + start as u64;
        let len = (columns - element % columns).min((inputs.len - start) as u64) as usize;
        let (segment, out) = (job.segment(element), &mut out[start..][..len]);
        let anchor = &inputs.of(0)[start..][..len];
        let by_column = matches!(job.by, Per::Columns(_));
        let of = |input: usize| &job.coefficients[input * segments + segment..];
        if by_column {
            let c = &of(0)[..len];
            for i in 0..len {
                out[i] = c[i] * anchor[i].value();
            }
        } else {
            let c = of(0)[0];
            for i in 0..len {
                out[i] = c * anchor[i].value();
            }
        }
        for input in 1..job.inputs {
            let x = &inputs.of(input)[start..][..len];
            if by_column {
                let c = &of(input)[..len];
                for i in 0..len {
                    out[i] += c[i] * (x[i].value() - anchor[i].value());
                }
            } else {
                let c = of(input)[0];
                for i in 0..len {
                    out[i] += c * (x[i].value() - anchor[i].value());
                }
            }
        }
        for i in 0..len {
            out[i] += anchor[i].value();
        }
        start += len;
    }
}
