//! Tensors that go through their passes together, and the units of work that a pass is cut into.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Stream;
use super::fold::{Digest, Fold};
use crate::backend::{Hold, Launch, OddValues, Output, Span, SpanResult};
use crate::dtype::{Float, decode, encode};
use crate::error::{Error, Result};
use crate::kernel::{Job, TILE, tiles};
use crate::plan::{Action, Plan, Tensor};
use crate::recipe::{Machine, Measured, Pass, everything};

/// What became of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// BLAKE3 of its bytes.
    pub digest: blake3::Hash,
    /// The odd values met on the way.
    pub odd: OddValues,
}

/// Work for one worker.
pub(super) struct Unit {
    pub(super) group: Arc<Group>,
    pub(super) task: Task,
}

/// What a unit does.
pub(super) enum Task {
    /// Copies a range of elements of the group's only tensor.
    Copy { range: Range<u64> },
    /// Runs a kernel; one place per span says where its result belongs.
    Launch { launch: Launch, places: Vec<Place> },
}

/// Where a span's result belongs.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The tensor's place in the plan.
    pub(super) tensor: usize,
    /// Where the span's bytes go in the output tensor.
    pub(super) offset: u64,
    member: usize,
    /// The span's number in the tensor's pass.
    ordinal: usize,
    tiles: Range<u64>,
    output_bytes: u64,
}

/// Tensors that go through their passes together.
pub(super) struct Group {
    state: Mutex<State>,
}

struct State {
    members: Vec<Member>,
    /// Units of the current pass that are not done.
    pending: usize,
    started: bool,
}

/// One tensor on its way.
struct Member {
    tensor: usize,
    /// `None` for a copy.
    machine: Option<Box<dyn Machine>>,
    fold: Fold,
    digest: Digest,
    odd: OddValues,
    done: bool,
}

/// Cuts the plan into groups: runs of small tensors that are merged alike, and every other tensor alone.
///
/// Copies whose holders have to agree go first, so that a merge that must fail fails early.
pub(super) fn plan_groups(plan: &Plan, chunk_tiles: u64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut group_tiles = 0;
    for (i, tensor) in plan.tensors.iter().enumerate() {
        let own_tiles = tiles(tensor.elements);
        let joins = group_tiles + own_tiles <= chunk_tiles
            && groups.last().is_some_and(|group| merged_alike(&plan.tensors[group.start], tensor));
        match groups.last_mut() {
            Some(group) if joins => group.end = i + 1,
            _ => {
                groups.push(i..i + 1);
                group_tiles = 0;
            }
        }
        group_tiles += own_tiles;
    }
    groups.sort_by_key(|group| match &plan.tensors[group.start].action {
        Action::Copy(copy) => copy.holders.len() < 2,
        Action::Merge(_) => true,
    });
    groups
}

/// Whether two tensors can share launches.
fn merged_alike(a: &Tensor, b: &Tensor) -> bool {
    match (&a.action, &b.action) {
        (Action::Merge(a), Action::Merge(b)) => a.floats == b.floats && a.output == b.output,
        _ => false,
    }
}

/// The elements of a copy: those of the type where it is a float, else bytes.
pub(super) fn copied_units(tensor: &Tensor, from: Option<Float>) -> (u64, usize) {
    match from {
        Some(float) => (tensor.elements, float.bytes()),
        None => (tensor.bytes, 1),
    }
}

impl Group {
    pub(super) fn new(plan: &Plan, tensors: Range<usize>, chunk_tiles: u64) -> Self {
        let member = |tensor: usize| {
            let planned = &plan.tensors[tensor];
            let (machine, units) = match &planned.action {
                Action::Copy(copy) => (None, copied_units(planned, copy.from).0),
                Action::Merge(merge) => (Some(merge.machine(plan)), planned.elements),
            };
            let chunks = tiles(units).div_ceil(chunk_tiles) as usize;
            Member {
                tensor,
                machine,
                fold: Fold::Nothing,
                digest: Digest::new(planned.bytes, chunks),
                odd: OddValues::default(),
                done: planned.elements == 0,
            }
        };
        let members = tensors.map(member).collect();
        Self { state: Mutex::new(State { members, pending: 0, started: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the result of one span.
    pub(super) fn take(&self, place: &Place, output: &Output<'_>) {
        // Hashed before the lock is taken: this is the expensive part.
        let subtree = match output.result {
            SpanResult::Values(bytes) => Some(Digest::subtree(place.output_bytes, place.offset, bytes)),
            _ => None,
        };
        let mut state = self.state();
        let member = &mut state.members[place.member];
        member.odd += output.odd;
        member.fold.add(place.ordinal, &place.tiles, &output.result);
        if let Some(subtree) = subtree {
            member.digest.add(place.ordinal, subtree);
        }
    }

    /// Notes that a unit is done; whether it was the last one of the pass.
    pub(super) fn finish_unit(&self) -> bool {
        let mut state = self.state();
        state.pending -= 1;
        state.pending == 0
    }

    /// The units of the next pass; none when every tensor of the group is done.
    pub(super) fn next_pass(&self, plan: &Plan, chunk_tiles: u64) -> Vec<Task> {
        let mut state = self.state();
        let mut tasks = Vec::new();
        let mut cutter = Cutter { chunk_tiles, launches: Vec::new() };
        let first = !std::mem::replace(&mut state.started, true);
        for (index, member) in state.members.iter_mut().enumerate() {
            if member.done {
                continue;
            }
            let planned = &plan.tensors[member.tensor];
            match (&planned.action, &mut member.machine) {
                (Action::Merge(merge), Some(machine)) => {
                    let measured = std::mem::replace(&mut member.fold, Fold::Nothing).finish();
                    // A finished combining pass measures nothing, like the beginning.
                    if !first && measured == Measured::Nothing {
                        member.done = true;
                        continue;
                    }
                    let pass = machine.next(measured);
                    member.fold =
                        cutter.cut(index, member.tensor, planned, &merge.floats, merge.output, pass);
                }
                (Action::Copy(copy), _) if first => tasks.extend(copy_tasks(planned, copy.from, chunk_tiles)),
                _ => member.done = true,
            }
        }
        tasks.extend(
            cutter.launches.into_iter().map(|cut| Task::Launch { launch: cut.launch, places: cut.places }),
        );
        state.pending = tasks.len();
        tasks
    }

    /// What became of the group's tensors.
    pub(super) fn merged(&self) -> Vec<(usize, Merged)> {
        let state = self.state();
        let merged = |m: &Member| (m.tensor, Merged { digest: m.digest.finish(), odd: m.odd });
        state.members.iter().map(merged).collect()
    }

    /// Copies a range of the group's only tensor, after comparing all who hold it.
    pub(super) fn copy(
        &self,
        stream: &Stream<'_>,
        range: Range<u64>,
        buffers: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        let index = self.state().members[0].tensor;
        let tensor = &stream.plan.tensors[index];
        let Action::Copy(copy) = &tensor.action else { unreachable!("only copies are copied") };
        let (_, unit_bytes) = copied_units(tensor, copy.from);
        let (offset, len) =
            (range.start * unit_bytes as u64, (range.end - range.start) as usize * unit_bytes);
        buffers.resize_with(3, Vec::new);
        let [first, other, encoded] = &mut buffers[..] else { unreachable!("three buffers") };
        first.resize(len, 0);
        other.resize(len, 0);
        for (holder, at) in copy.holders.iter().enumerate() {
            let source = &stream.sources[at.source];
            let into = if holder == 0 { &mut *first } else { &mut *other };
            source.read_at(source.tensor_at(at.tensor), offset, into)?;
            stream.watch.moved(len as u64, 0);
            if holder > 0 && first != other {
                return Err(differ(tensor, &stream.sources[copy.holders[0].source].name, &source.name));
            }
        }
        let mut odd = OddValues::default();
        let out = convert(copy.from, copy.to, first, encoded, &mut odd);
        let out_offset = offset / unit_bytes as u64 * (out.len() as u64 / (range.end - range.start));
        stream.sink.write_at(index, out_offset, out)?;
        stream.watch.moved(0, out.len() as u64);
        let subtree = Digest::subtree(tensor.bytes, out_offset, out);
        let mut state = self.state();
        let member = &mut state.members[0];
        member.odd += odd;
        member.digest.add((range.start / (stream.chunk_tiles * TILE as u64)) as usize, subtree);
        Ok(())
    }
}

/// The bytes to store: as they are when the type stays, else decoded and encoded.
fn convert<'a>(
    from: Option<Float>,
    to: Option<Float>,
    bytes: &'a [u8],
    encoded: &'a mut Vec<u8>,
    odd: &mut OddValues,
) -> &'a [u8] {
    let (Some(from), Some(to)) = (from, to) else { return bytes };
    let changes = from != to;
    let elements = bytes.len() / from.bytes();
    encoded.resize(elements * to.bytes(), 0);
    let mut values = [0.0; TILE];
    for first in (0..elements).step_by(TILE) {
        let len = TILE.min(elements - first);
        let values = &mut values[..len];
        decode(from, &bytes[first * from.bytes()..][..len * from.bytes()], values);
        odd.count(values);
        if changes {
            odd.overflowed += encode(to, values, &mut encoded[first * to.bytes()..][..len * to.bytes()]);
        }
    }
    if changes { encoded } else { bytes }
}

fn differ(tensor: &Tensor, first: &str, other: &str) -> Error {
    Error::input(format!(
        "tensor {}: {first} and {other} hold different values of a tensor that can only be copied",
        tensor.name
    ))
    .hint("such a tensor is copied when all models agree on it; leave out the model that does not")
}

fn copy_tasks(tensor: &Tensor, from: Option<Float>, chunk_tiles: u64) -> impl Iterator<Item = Task> {
    let (units, _) = copied_units(tensor, from);
    let chunk = chunk_tiles * TILE as u64;
    (0..units.div_ceil(chunk)).map(move |i| Task::Copy { range: i * chunk..units.min((i + 1) * chunk) })
}

/// Cuts passes into launches of at most a chunk of tiles; jobs of the same kernel share them.
struct Cutter {
    chunk_tiles: u64,
    launches: Vec<Cut>,
}

struct Cut {
    launch: Launch,
    places: Vec<Place>,
    tiles: u64,
}

impl Cutter {
    /// Cuts one tensor's pass, and returns the fold of its results.
    fn cut(
        &mut self,
        member: usize,
        index: usize,
        tensor: &Tensor,
        floats: &[Float],
        output: Float,
        pass: Pass,
    ) -> Fold {
        let (reads, job, over, hold) = match pass {
            Pass::Combine { reads, job } => (reads, job, everything(tensor.elements), Hold::Take),
            Pass::Measure { reads, job, over } => {
                let hold = if over == everything(tensor.elements) { Hold::Keep } else { Hold::Peek };
                (reads, job, over, hold)
            }
        };
        debug_assert_eq!(reads.len(), job.inputs(), "{} reads what it names", job.kernel());
        let shape = job.result();
        let job = Arc::new(job);
        let pieces: Vec<_> = over.into_iter().flat_map(|range| on_grid(range, self.chunk_tiles)).collect();
        for (ordinal, tiles) in pieces.iter().enumerate() {
            let elements = tensor.elements.min(tiles.end * TILE as u64) - tiles.start * TILE as u64;
            let launch = Launch {
                jobs: Vec::new(),
                spans: Vec::new(),
                floats: reads.iter().map(|input| floats[*input]).collect(),
                reads: reads.clone(),
                output,
                hold,
            };
            let cut = self.launch_for(launch, &job, tiles.end - tiles.start);
            cut.tiles += tiles.end - tiles.start;
            if !cut.launch.jobs.last().is_some_and(|last| Arc::ptr_eq(last, &job)) {
                cut.launch.jobs.push(Arc::clone(&job));
            }
            cut.launch.spans.push(Span {
                job: cut.launch.jobs.len() - 1,
                tensor: index,
                tiles: tiles.clone(),
                elements: elements as usize,
            });
            cut.places.push(Place {
                tensor: index,
                offset: tiles.start * (TILE * output.bytes()) as u64,
                member,
                ordinal,
                tiles: tiles.clone(),
                output_bytes: tensor.bytes,
            });
        }
        Fold::new(shape, pieces.len())
    }

    /// The launch under construction that the piece fits into, or a new one.
    fn launch_for(&mut self, launch: Launch, job: &Job, tiles: u64) -> &mut Cut {
        let fits = |cut: &Cut| {
            cut.tiles + tiles <= self.chunk_tiles
                && cut.launch.jobs[0].kernel() == job.kernel()
                && cut.launch.reads == launch.reads
                && cut.launch.hold == launch.hold
        };
        if !self.launches.last().is_some_and(fits) {
            self.launches.push(Cut { launch, places: Vec::new(), tiles: 0 });
        }
        self.launches.last_mut().expect("just made")
    }
}

/// Cuts a range of tiles where chunks of the tensor begin, so that every pass has the same chunks.
fn on_grid(range: Range<u64>, chunk_tiles: u64) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = range.end.min((start / chunk_tiles + 1) * chunk_tiles);
        let piece = start..end;
        start = end;
        (!piece.is_empty()).then_some(piece)
    })
}
