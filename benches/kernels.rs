//! Kernels and conversions on one chunk, as the CPU runs them, beside plain copies: what a change of a loop does to its speed.
//!
//! A chunk stays in a core's caches from one call to the next, so what is timed is the arithmetic; `mergeforge bench kernels`
//! times the same jobs on tensors that come from memory. Rates count the bytes that are read and those that are written.

use std::fmt;
use std::sync::{Arc, LazyLock};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use mergeforge::backend::cpu::{CHUNK_TILES, Cpu};
use mergeforge::backend::spans::{decode_tile, encode_tile};
use mergeforge::backend::{Backend, Launch, Segment, Span, SpanInput, SpanResult};
use mergeforge::bench::{jobs, tensors};
use mergeforge::dtype::{self, Float};
use mergeforge::input::{Adapted, Floats, Importance, Made, Ranks, ReadElements, Spread, Vectors};
use mergeforge::kernel::{Job, TILE};
use mergeforge::timeline::Timeline;

const TILES: usize = CHUNK_TILES as usize;

/// Elements of a chunk.
const CHUNK: usize = TILES * TILE;

/// Bytes of a chunk of bfloat16.
const CHUNK_BYTES: usize = CHUNK * Float::BF16.bytes();

/// More than the caches of a processor.
const MEMORY_BYTES: usize = 256 << 20;

const FLOATS: [Float; 3] = [Float::BF16, Float::F16, Float::F32];

/// The inputs of all jobs, a chunk of each.
static TENSORS: LazyLock<Vec<Vec<u16>>> = LazyLock::new(|| tensors(CHUNK));

fn main() {
    divan::main();
}

#[divan::bench]
fn copy_in_cache(bencher: Bencher) {
    let from = vec![1_u8; CHUNK_BYTES];
    let mut into = from.clone();
    bencher
        .counter(BytesCount::new(2 * CHUNK_BYTES))
        .bench_local(|| black_box(&mut into).copy_from_slice(black_box(&from)));
}

/// Into a chunk that stays in cache, as inputs are read out of the page cache.
#[divan::bench]
fn copy_from_memory(bencher: Bencher) {
    let memory = vec![1_u8; MEMORY_BYTES];
    let mut from = memory.chunks_exact(CHUNK_BYTES).cycle();
    let mut into = vec![1_u8; CHUNK_BYTES];
    bencher.counter(BytesCount::new(2 * CHUNK_BYTES)).bench_local(|| {
        let from = from.next().expect("a cycle has no end");
        black_box(&mut into).copy_from_slice(from);
    });
}

#[divan::bench(args = FLOATS)]
fn decode(bencher: Bencher, float: Float) {
    let (mut tile, chunk) = weights(float);
    bencher.counter(converted_bytes(float)).bench_local(|| {
        for stored in chunk.chunks_exact(TILE * float.bytes()) {
            decode_tile(float, stored, black_box(&mut tile));
        }
    });
}

#[divan::bench(args = FLOATS)]
fn encode(bencher: Bencher, float: Float) {
    let (tile, mut chunk) = weights(float);
    bencher.counter(converted_bytes(float)).bench_local(|| {
        for stored in black_box(&mut chunk).chunks_exact_mut(TILE * float.bytes()) {
            encode_tile(float, black_box(&tile), stored);
        }
    });
}

/// A tile of weights, and a chunk that repeats it in this type.
fn weights(float: Float) -> (Vec<f32>, Vec<u8>) {
    let mut tile = vec![0.0; TILE];
    decode_tile(Float::BF16, bytemuck::cast_slice(&TENSORS[0][..TILE]), &mut tile);
    let mut stored = vec![0; TILE * float.bytes()];
    encode_tile(float, &tile, &mut stored);
    (tile, stored.repeat(TILES))
}

/// Of a chunk in this type and in f32.
fn converted_bytes(float: Float) -> BytesCount {
    BytesCount::new(CHUNK * (float.bytes() + Float::F32.bytes()))
}

/// Inputs of a merge that are made of a base and a model in rows of 4,096, while they are read: rates count the elements.
#[divan::bench(args = [Float::BF16, Float::F32])]
fn made_importance(bencher: Bencher, float: Float) {
    bench_made(bencher, float, &Importance::new(floats(0, float), floats(1, float), COLUMNS, CHUNK as u64));
}

#[divan::bench(args = [Float::BF16, Float::F32])]
fn made_ranks(bencher: Bencher, float: Float) {
    let vectors = Vectors { len: COLUMNS, stride: 1 };
    let both = [floats(0, float), floats(1, float)];
    bench_made(bencher, float, &Ranks::new(both, vectors, CHUNK as u64, 0.5, 0.15, [3, 4]));
}

#[divan::bench(args = [Float::BF16, Float::F32])]
fn made_spread(bencher: Bencher, float: Float) {
    bench_made(bencher, float, &Spread::new(floats(0, float), vec![floats(1, float), floats(2, float)]));
}

/// An adapter that is added: of 2 · rank operations for each element.
#[divan::bench(args = [8, 16, 64])]
fn made_adapted(bencher: Bencher, rank: u64) {
    let [weight, a, b] = [0, 1, 2].map(|input| floats(input, Float::BF16));
    let rows = CHUNK as u64 / COLUMNS;
    let (experts, columns, transposed) = (1, COLUMNS, false);
    let made = Adapted { weight, a, b, experts, rows, columns, rank, scale: 0.5, transposed };
    bench_made(bencher, Float::BF16, &made);
}

const COLUMNS: u64 = 4096;

fn floats(input: usize, float: Float) -> Floats {
    Floats { input, float }
}

/// Reads all of an input that forgets what it keeps.
fn bench_made(bencher: Bencher, float: Float, made: &dyn Made) {
    let stored = (0..3).map(|input| {
        let mut values = vec![0.0; CHUNK];
        dtype::decode(Float::BF16, bytemuck::cast_slice(&TENSORS[input]), &mut values);
        let mut stored = vec![0; CHUNK * float.bytes()];
        // A change of a type that is no multiple of a few units.
        if float == Float::F32 {
            values.iter_mut().enumerate().for_each(|(i, x)| *x += 1e-6 * ((i * 97 + input) % 1009) as f32);
        }
        dtype::encode(float, &values, &mut stored);
        stored
    });
    let mut stored = InMemory(stored.collect());
    let mut into = vec![0; made.float().bytes_of(CHUNK as u64) as usize];
    bencher.counter(ItemsCount::new(CHUNK)).bench_local(|| {
        made.read(0..CHUNK as u64, black_box(&mut into), &mut stored).unwrap();
        made.release();
    });
}

/// Inputs of a chunk each, repeated where one is read beyond it, as the wider factor of an adapter is.
struct InMemory(Vec<Vec<u8>>);

impl ReadElements for InMemory {
    fn bytes(&mut self, input: usize, start: u64, into: &mut [u8]) -> mergeforge::error::Result<()> {
        let stored = &self.0[input];
        into.copy_from_slice(&stored[start as usize % stored.len()..][..into.len()]);
        Ok(())
    }
}

/// A job, and what it does in a few words.
struct Case {
    what: &'static str,
    job: Arc<Job>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.job.kernel(), self.what)
    }
}

fn cases() -> impl Iterator<Item = Case> {
    jobs(&TENSORS).into_iter().map(|(what, job)| Case { what, job: Arc::new(job) })
}

/// From inputs that are held, so that none is copied, to results that are collected.
#[divan::bench(args = cases())]
fn kernel(bencher: Bencher, case: &Case) {
    let (cpu, timeline) = (Cpu::new(u64::MAX), Timeline::new());
    let mut lane = cpu.lane(0, &timeline).unwrap();
    let mut read = |_: usize, input: usize, into: &mut [u8]| {
        into.copy_from_slice(bytemuck::cast_slice(&TENSORS[input]));
        Ok(())
    };
    let mut written_bytes = |hold: bool| {
        let mut bytes = 0;
        lane.submit(launch(&case.job, hold), &mut read).unwrap();
        lane.collect(&mut |_, output| {
            bytes += result_bytes(&output.result);
            Ok(())
        })
        .unwrap();
        bytes
    };
    let bytes = case.job.inputs() * CHUNK_BYTES + written_bytes(true);
    bencher.counter(BytesCount::new(bytes)).bench_local(|| written_bytes(false));
}

fn launch(job: &Arc<Job>, hold: bool) -> Launch {
    let inputs = (0..job.inputs()).map(|input| SpanInput { input, again: true }).collect();
    Launch {
        jobs: vec![Arc::clone(job)],
        spans: vec![Span {
            job: 0,
            inputs,
            segment: Segment::WHOLE,
            tiles: 0..TILES as u64,
            elements: CHUNK,
        }],
        floats: vec![Float::BF16; job.inputs()],
        output: Float::BF16,
        hold,
        record_tiles: TILES as u64,
    }
}

fn result_bytes(result: &SpanResult<'_>) -> usize {
    match result {
        SpanResult::Values(bytes) => bytes.len(),
        SpanResult::Sums(sums) => size_of_val(*sums),
        SpanResult::Counts(words) | SpanResult::Words(words) => size_of_val(*words),
    }
}
