//! Tensors that go through their passes together, and the units of work that a pass is cut into.
//!
//! Units are cut as workers ask for them, so that waiting work costs no memory.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Stream;
use super::fold::{Digest, Fold};
use crate::backend::{Hold, Launch, OddValues, Output, Span, SpanResult};
use crate::dtype::{Float, decode, encode};
use crate::error::{Error, Result};
use crate::kernel::{
    Job, RECORD_TILES_MIN, RECORDS_MAX, Result as Shape, SPANS_MAX, TILE, WORDS_TILES_MAX, tiles,
    weighted_sum,
};
use crate::plan::{Action, Merge, Plan, Tensor};
use crate::recipe::{Machine, Pass, Recipe, Threshold, everything};
use crate::timeline::{By, Stage, Timeline};

/// What became of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// BLAKE3 of its bytes.
    pub digest: blake3::Hash,
    /// The odd values met on the way.
    pub odd: OddValues,
    /// Pieces that the CPU computed, because the device makes no promises about some of their values.
    pub redone: u64,
    /// Thresholds that were found for its inputs, or found right.
    pub thresholds: Vec<Threshold>,
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
    /// The span's number in the tensor's pass, and that of its first record.
    ordinal: usize,
    first_record: usize,
    tiles: Range<u64>,
    output_bytes: u64,
}

/// Tensors that go through their passes together.
pub(super) struct Group {
    state: Mutex<State>,
}

struct State {
    members: Vec<Member>,
    /// What of the current pass no worker has taken yet. Cut when asked for: the units of a pass over a large
    /// tensor would take more memory than their chunks.
    left: VecDeque<Cut>,
    /// Units of the current pass that are taken and not done.
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
    redone: u64,
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
    /// Without kernels, every tensor is read once and written.
    pub(super) fn new(stream: &Stream<'_>, tensors: Range<usize>) -> Self {
        let Stream { plan, chunk_tiles, .. } = *stream;
        let member = |tensor: usize| {
            let planned = &plan.tensors[tensor];
            let (machine, units) = match &planned.action {
                Action::Copy(copy) => (None, copied_units(planned, copy.from).0),
                Action::Merge(merge) => {
                    let mut machine =
                        if stream.kernels { merge.machine(plan) } else { floor(merge.inputs.len()) };
                    machine.recall(stream.recalled.get(tensor).map_or(&[], Vec::as_slice));
                    (Some(machine), planned.elements)
                }
            };
            let chunks = tiles(units).div_ceil(chunk_tiles) as usize;
            Member {
                tensor,
                machine,
                fold: Fold::Nothing,
                digest: Digest::new(planned.bytes, chunks),
                odd: OddValues::default(),
                redone: 0,
                done: planned.elements == 0,
            }
        };
        let members = tensors.map(member).collect();
        Self { state: Mutex::new(State { members, left: VecDeque::new(), pending: 0, started: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the result of one span.
    pub(super) fn take(&self, place: &Place, output: &Output<'_>, timeline: &Timeline, by: By) {
        // Hashed before the lock is taken: this is the expensive part.
        let subtree = match output.result {
            SpanResult::Values(bytes) => Some(timeline.time(Stage::Hash, by, bytes.len() as u64, || {
                Digest::subtree(place.output_bytes, place.offset, bytes)
            })),
            _ => None,
        };
        let mut state = self.state();
        let member = &mut state.members[place.member];
        member.odd += output.tally.odd;
        member.redone += u64::from(output.redone);
        member.fold.add(place.ordinal, place.first_record, &place.tiles, output);
        if let Some(subtree) = subtree {
            member.digest.add(place.ordinal, subtree);
        }
    }

    /// The next unit of the current pass, if one is left.
    pub(super) fn next_task(&self, chunk_tiles: u64) -> Option<Task> {
        let mut state = self.state();
        let task = next_task(&mut state.left, chunk_tiles)?;
        state.pending += 1;
        Some(task)
    }

    /// Notes that a unit is done; whether it was the last one of the pass.
    pub(super) fn finish_unit(&self) -> bool {
        let mut state = self.state();
        state.pending -= 1;
        state.pending == 0 && state.left.is_empty()
    }

    /// Starts the next pass; false when every tensor of the group is done.
    ///
    /// # Errors
    /// A device that contradicts itself.
    pub(super) fn next_pass(&self, plan: &Plan, chunk_tiles: u64) -> Result<bool> {
        let mut state = self.state();
        let first = !std::mem::replace(&mut state.started, true);
        let State { members, left, .. } = &mut *state;
        for (index, member) in members.iter_mut().enumerate().filter(|(_, member)| !member.done) {
            let tensor = &plan.tensors[member.tensor];
            match (&tensor.action, &mut member.machine) {
                (Action::Merge(merge), Some(machine)) => {
                    let measured = std::mem::replace(&mut member.fold, Fold::Nothing).finish();
                    let next = machine.next(measured).map_err(|error| Error {
                        message: format!("tensor {}: {}", tensor.name, error.message),
                        ..error
                    })?;
                    let Some(pass) = next else {
                        member.done = true;
                        continue;
                    };
                    // A pass that turned out to be wrong is taken back by the next one.
                    member.odd = OddValues::default();
                    let cut = Launches::new(index, member.tensor, tensor, merge, pass);
                    member.fold = Fold::new(cut.job.result(), cut.records(chunk_tiles), cut.record_tiles);
                    left.push_back(Cut::Launches(cut));
                }
                (Action::Copy(copy), _) if first => {
                    left.push_back(Cut::Copies(0..copied_units(tensor, copy.from).0));
                }
                _ => member.done = true,
            }
        }
        Ok(!left.is_empty())
    }

    /// What became of the group's tensors.
    pub(super) fn merged(&self) -> Vec<(usize, Merged)> {
        let state = self.state();
        let merged = |m: &Member| {
            let thresholds = m.machine.as_ref().map_or_else(Vec::new, |machine| machine.thresholds());
            (m.tensor, Merged { digest: m.digest.finish(), odd: m.odd, redone: m.redone, thresholds })
        };
        state.members.iter().map(merged).collect()
    }

    /// Copies a range of the group's only tensor, after comparing all who hold it.
    pub(super) fn copy(
        &self,
        stream: &Stream<'_>,
        by: By,
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
            let read = || source.read_at(source.tensor_at(at.tensor), offset, into, stream.reads);
            stream.timeline.time(Stage::Read, by, len as u64, read)?;
            stream.watch.moved(len as u64, 0);
            if holder > 0 && first != other {
                return Err(differ(tensor, &stream.sources[copy.holders[0].source].name, &source.name));
            }
        }
        let mut odd = OddValues::default();
        let out = stream.timeline.time(Stage::Compute, by, len as u64, || {
            convert(copy.from, copy.to, first.as_slice(), encoded, &mut odd)
        });
        let out_offset = offset / unit_bytes as u64 * (out.len() as u64 / (range.end - range.start));
        let out_bytes = out.len() as u64;
        let write = || stream.sink.write_at(index, out_offset, out);
        stream.timeline.time(Stage::Write, by, out_bytes, write)?;
        stream.watch.moved(0, out_bytes);
        let hash = || Digest::subtree(tensor.bytes, out_offset, out);
        let subtree = stream.timeline.time(Stage::Hash, by, out_bytes, hash);
        let mut state = self.state();
        let member = &mut state.members[0];
        member.odd += odd;
        member.digest.add((range.start / (stream.chunk_tiles * TILE as u64)) as usize, subtree);
        Ok(())
    }
}

/// One pass that reads every input: what any merge of them has to do at least.
fn floor(inputs: usize) -> Box<dyn Machine> {
    let job = weighted_sum::Job { anchored: false, coefficients: vec![0.0; inputs] };
    let reads = (0..inputs).collect();
    match Recipe::combine(reads, Job::WeightedSum(job)) {
        Recipe::Passes { machine, .. } => machine,
        Recipe::Copy => unreachable!("a combining recipe has a pass"),
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

/// What is left of one tensor's pass.
enum Cut {
    /// Elements to copy.
    Copies(Range<u64>),
    /// Tiles to run a kernel over.
    Launches(Launches),
}

/// A pass of one tensor, and how far it is cut.
struct Launches {
    member: usize,
    tensor: usize,
    elements: u64,
    output_bytes: u64,
    job: Arc<Job>,
    reads: Vec<usize>,
    floats: Vec<Float>,
    output: Float,
    hold: Hold,
    record_tiles: u64,
    /// The tiles left, and the numbers of the next piece and its first record.
    over: VecDeque<Range<u64>>,
    ordinal: usize,
    first_record: usize,
}

impl Launches {
    fn new(member: usize, index: usize, tensor: &Tensor, merge: &Merge, pass: Pass) -> Self {
        let all = everything(tensor.elements);
        let (reads, job, over, hold) = match pass {
            Pass::Combine { reads, job } => (reads, job, all.clone(), Hold::Take),
            Pass::Measure { reads, job, over } => {
                let hold = if over == all { Hold::Keep } else { Hold::Peek };
                (reads, job, over, hold)
            }
        };
        // Parts of a tensor are counted one by one, as the recipe has cut them.
        let record_tiles = if over == all { record_tiles(tensor.elements) } else { u64::MAX };
        debug_assert_eq!(reads.len(), job.inputs(), "{} reads what it names", job.kernel());
        Self {
            member,
            tensor: index,
            elements: tensor.elements,
            output_bytes: tensor.bytes,
            job: Arc::new(job),
            floats: reads.iter().map(|input| merge.floats[*input]).collect(),
            reads,
            output: merge.output,
            hold,
            record_tiles,
            over: over.into(),
            ordinal: 0,
            first_record: 0,
        }
    }

    /// How many records the pieces of the pass have.
    fn records(&self, chunk_tiles: u64) -> usize {
        let of_piece = |tiles: Range<u64>| (tiles.end - tiles.start).div_ceil(self.record_tiles);
        let of_range = |range: &Range<u64>| {
            let chunks = range.start / chunk_tiles..range.end.div_ceil(chunk_tiles);
            let piece =
                |chunk: u64| range.start.max(chunk * chunk_tiles)..range.end.min((chunk + 1) * chunk_tiles);
            chunks.map(|chunk| of_piece(piece(chunk))).sum::<u64>()
        };
        self.over.iter().map(of_range).sum::<u64>() as usize
    }

    /// The next piece, if it has at most `most` tiles. Pieces end where chunks of the tensor end, so that every
    /// pass has the same ones.
    fn next_piece(&mut self, chunk_tiles: u64, most: u64) -> Option<Range<u64>> {
        let range = self.over.front_mut()?;
        let end = range.end.min((range.start / chunk_tiles + 1) * chunk_tiles);
        if end - range.start > most {
            return None;
        }
        let piece = range.start..end;
        range.start = end;
        if range.is_empty() {
            self.over.pop_front();
        }
        Some(piece)
    }

    fn launch(&self) -> Launch {
        Launch {
            jobs: Vec::new(),
            spans: Vec::with_capacity(1),
            reads: self.reads.clone(),
            floats: self.floats.clone(),
            output: self.output,
            hold: self.hold,
            record_tiles: self.record_tiles,
        }
    }

    /// The most tiles of a launch.
    fn room(&self, chunk_tiles: u64) -> u64 {
        match self.job.result() {
            Shape::Words { .. } => chunk_tiles.min(WORDS_TILES_MAX),
            _ => chunk_tiles,
        }
    }

    fn joins(&self, launch: &Launch) -> bool {
        launch.jobs[0].kernel() == self.job.kernel()
            && launch.reads == self.reads
            && launch.hold == self.hold
            && launch.record_tiles == self.record_tiles
    }

    /// Moves pieces into a launch while they fit; how many tiles that was.
    fn fill(&mut self, launch: &mut Launch, places: &mut Vec<Place>, chunk_tiles: u64, room: u64) -> u64 {
        let mut taken = 0;
        while launch.spans.len() < SPANS_MAX {
            let Some(tiles) = self.next_piece(chunk_tiles, room - taken) else { break };
            taken += tiles.end - tiles.start;
            if !launch.jobs.last().is_some_and(|last| Arc::ptr_eq(last, &self.job)) {
                launch.jobs.push(Arc::clone(&self.job));
            }
            let first = tiles.start * TILE as u64;
            places.push(Place {
                tensor: self.tensor,
                offset: first * self.output.bytes() as u64,
                member: self.member,
                ordinal: self.ordinal,
                first_record: self.first_record,
                tiles: tiles.clone(),
                output_bytes: self.output_bytes,
            });
            self.ordinal += 1;
            self.first_record += (tiles.end - tiles.start).div_ceil(self.record_tiles) as usize;
            launch.spans.push(Span {
                job: launch.jobs.len() - 1,
                tensor: self.tensor,
                elements: (self.elements.min(tiles.end * TILE as u64) - first) as usize,
                tiles,
            });
        }
        taken
    }
}

/// How many tiles share counters when a whole tensor is counted.
fn record_tiles(elements: u64) -> u64 {
    tiles(elements).div_ceil(RECORDS_MAX).max(RECORD_TILES_MIN)
}

/// The next unit: at most a chunk of tiles, of as many tensors as share the kernel.
fn next_task(left: &mut VecDeque<Cut>, chunk_tiles: u64) -> Option<Task> {
    let chunk = chunk_tiles * TILE as u64;
    match left.front_mut()? {
        Cut::Copies(units) => {
            let range = units.start..units.end.min(units.start + chunk);
            units.start = range.end;
            if units.is_empty() {
                left.pop_front();
            }
            Some(Task::Copy { range })
        }
        Cut::Launches(first) => {
            let (mut launch, mut places, mut room) =
                (first.launch(), Vec::with_capacity(1), first.room(chunk_tiles));
            while let Some(Cut::Launches(next)) = left.front_mut() {
                if !launch.jobs.is_empty() && !next.joins(&launch) {
                    break;
                }
                room -= next.fill(&mut launch, &mut places, chunk_tiles, room);
                if !next.over.is_empty() {
                    break;
                }
                left.pop_front();
            }
            Some(Task::Launch { launch, places })
        }
    }
}
