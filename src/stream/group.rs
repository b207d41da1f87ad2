//! Tensors that go through their passes together.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Stream;
use super::copies::units;
use super::cut::{Cut, Destination, Sizes, Unit, next_unit};
use super::fold::{Digest, Fold};
use serde::{Deserialize, Serialize};

use crate::backend::{OddValues, Output, SpanResult, Tally};
use crate::checkpoint::Finished;
use crate::error::{Error, Result};
use crate::kernel::thinning::Trim;
use crate::kernel::tiles;
use crate::plan::{Action, Plan, Tensor};
use crate::recipe::{Machine, Remark, Threshold};
use crate::timeline::{By, Stage};

/// The result of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// BLAKE3 of its bytes.
    pub digest: blake3::Hash,
    /// The odd values met on the way.
    pub odd: OddValues,
    /// Spans that the CPU computed, because the device makes no promises about some of their values.
    pub redone: u64,
    /// Chunks that were written once more, because a guess was wrong there.
    pub mended: u64,
    /// What a user should know about it.
    pub remark: Option<Remark>,
    /// Thresholds that were found for its inputs, or found right.
    pub thresholds: Vec<Threshold>,
}

/// What is found out about a tensor beside its digest, as it is noted.
#[derive(Serialize, Deserialize)]
struct Found {
    /// NaN read, infinities read, results that overflowed.
    odd: [u64; 3],
    redone: u64,
    mended: u64,
    remark: Option<String>,
    /// Input, elements kept, threshold, tile and lane of the cut.
    thresholds: Vec<(usize, u64, u32, u32, u32)>,
}

impl Merged {
    /// It as it is noted, for a merge that goes on.
    pub fn noted(&self, tensor: usize) -> Finished {
        let Self { digest, odd, redone, mended, remark, thresholds } = self;
        let OddValues { nan, infinite, overflowed } = *odd;
        let threshold =
            |of: &Threshold| (of.input, of.kept, of.trim.threshold, of.trim.cut_tile, of.trim.cut_lane);
        let found = Found {
            odd: [nan, infinite, overflowed],
            redone: *redone,
            mended: *mended,
            remark: remark.as_deref().map(str::to_owned),
            thresholds: thresholds.iter().map(threshold).collect(),
        };
        let found = serde_json::to_value(found).expect("it is plain JSON");
        Finished { tensor, digest: *digest, found }
    }

    /// What was noted; nothing, where that is not to be understood.
    pub fn from_noted(finished: &Finished) -> Option<Self> {
        let found: Found = Found::deserialize(&finished.found).ok()?;
        let Found { odd: [nan, infinite, overflowed], redone, mended, remark, thresholds } = found;
        let threshold = |(input, kept, threshold, cut_tile, cut_lane)| {
            let trim = Trim { threshold, cut_tile, cut_lane };
            Threshold { input, kept, trim }
        };
        Some(Self {
            digest: finished.digest,
            odd: OddValues { nan, infinite, overflowed },
            redone,
            mended,
            remark: remark.map(Remark::Owned),
            thresholds: thresholds.into_iter().map(threshold).collect(),
        })
    }
}

/// Tensors that go through their passes together.
pub(super) struct Group {
    /// The output's file that they go to.
    pub(super) shard: usize,
    /// Bytes of the inputs that are worth holding while the group is open.
    pub(super) held_bytes: u64,
    /// Bytes that inputs keep which are made for it.
    pub(super) kept_bytes: u64,
    state: Mutex<State>,
}

/// A group that is not open yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    /// Places of its tensors in the plan.
    pub(super) tensors: Range<usize>,
    /// As of the group.
    pub(super) shard: usize,
    /// As of the group; what a group of rows or columns keeps of its segments is more than fits beside another one's.
    pub(super) held_bytes: u64,
    /// As of the group: no more than of the tensor with the most.
    pub(super) kept_bytes: u64,
}

struct State {
    members: Vec<TensorWork>,
    /// What of the current pass no worker has taken yet.
    left: VecDeque<Cut>,
    /// Units of the current pass that are taken and not done.
    pending: usize,
}

/// One tensor on its way.
struct TensorWork {
    tensor: usize,
    way: Remaining,
    fold: Fold,
    digest: Digest,
    /// What combining each chunk has counted, with the numbers that it was combined with last.
    tallies: Vec<Tally>,
    redone: u64,
    mended: u64,
}

/// What is still to be done for a tensor.
enum Remaining {
    Copy,
    Merge(Box<dyn Machine>),
    Done(Vec<Threshold>, Option<Remark>),
}

/// Cuts the plan into groups: runs of small tensors that are merged alike and go to one file, and every other tensor alone.
///
/// Copies whose holders have to agree go first, so that a merge that must fail fails early. The others go through all files of the
/// output at the same pace, so that workers that take neighbours write to different files. Of those, groups that read the same
/// inputs are neighbours, so that what is held for the next one is held for a short time.
///
/// `chosen` are the places of the tensors that are wanted, ascending; none: all.
pub(super) fn plan_groups(plan: &Plan, chosen: Option<&[usize]>, chunk_tiles: u64) -> Vec<Planned> {
    let mut groups: Vec<Planned> = Vec::new();
    let mut group_tiles = 0;
    let uses = plan.uses();
    let kept_bytes: Vec<u64> = plan.tensors.iter().map(|tensor| tensor.kept_bytes(&plan.inputs)).collect();
    let most_kept_bytes = kept_bytes.iter().copied().max().unwrap_or(0);
    let all: Vec<usize>;
    let chosen = if let Some(chosen) = chosen {
        chosen
    } else {
        all = (0..plan.tensors.len()).collect();
        &all
    };
    for &i in chosen {
        let tensor = &plan.tensors[i];
        let own_tiles = tiles(tensor.elements);
        let (shard, held_bytes) = (plan.layout.places[i].shard, held_bytes(tensor, &uses));
        let joins = group_tiles + own_tiles <= chunk_tiles
            && groups.last().is_some_and(|group| {
                group.shard == shard
                    && group.tensors.end == i
                    && group.kept_bytes + kept_bytes[i] <= most_kept_bytes
                    && merged_alike(&plan.tensors[group.tensors.start], tensor)
            });
        match groups.last_mut() {
            Some(group) if joins => {
                group.tensors.end = i + 1;
                group.held_bytes = group.held_bytes.saturating_add(held_bytes);
                group.kept_bytes += kept_bytes[i];
            }
            _ => {
                groups.push(Planned { tensors: i..i + 1, shard, held_bytes, kept_bytes: kept_bytes[i] });
                group_tiles = 0;
            }
        }
        group_tiles += own_tiles;
    }
    // The first input, and whether holders need not agree.
    let reads = |group: &Planned| match &plan.tensors[group.tensors.start].action {
        Action::Copy(copy) => (copy.holders.len() < 2, copy.holders[0]),
        Action::Merge(merge) => (true, merge.inputs[0]),
    };
    let mut first_place = HashMap::new();
    for group in &groups {
        let place = plan.layout.places[group.tensors.start];
        let header_bytes = plan.layout.shards[place.shard].header.len() as u64;
        first_place.entry(reads(group).1).or_insert((place.offset - header_bytes, place.shard));
    }
    groups.sort_by_key(|group| {
        let (agreed, input) = reads(group);
        (agreed, first_place[&input], input)
    });
    groups
}

/// Bytes of the inputs that a tensor reads several times, or shares with others.
fn held_bytes(tensor: &Tensor, uses: &[u32]) -> u64 {
    let Action::Merge(merge) = &tensor.action else { return 0 };
    if merge.recipe.by.count(tensor.elements) > 1 {
        return u64::MAX;
    }
    let again = merge.recipe.sweeps_most > 1 || merge.inputs.iter().any(|input| uses[*input] > 1);
    let bytes = merge.floats.iter().map(|float| float.bytes_of(tensor.elements));
    if again { bytes.fold(0, u64::saturating_add) } else { 0 }
}

/// Whether two tensors can share launches.
fn merged_alike(a: &Tensor, b: &Tensor) -> bool {
    match (&a.action, &b.action) {
        (Action::Merge(a), Action::Merge(b)) => a.floats == b.floats && a.output == b.output,
        _ => false,
    }
}

impl Group {
    pub(super) fn new(stream: &Stream<'_>, planned: Planned) -> Self {
        let Planned { tensors, shard, held_bytes, kept_bytes } = planned;
        let members = tensors.map(|tensor| TensorWork::new(stream, tensor)).collect();
        let state = Mutex::new(State { members, left: VecDeque::new(), pending: 0 });
        Self { shard, held_bytes, kept_bytes, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the result of one span.
    pub(super) fn take(&self, to: &Destination, stream: &Stream<'_>, output: &Output<'_>, by: By) {
        let bytes = stream.plan.tensors[to.tensor].bytes;
        // Hashed before the lock is taken: this is the expensive part.
        let subtree = match output.result {
            SpanResult::Values(values) => Some(stream.timeline.time(
                Stage::Hash,
                by,
                values.len() as u64,
                || Digest::subtree(bytes, to.offset, values),
            )),
            _ => None,
        };
        let mut state = self.state();
        let member = &mut state.members[to.member];
        member.redone += u64::from(output.redone);
        member.fold.add(to, output);
        if let Some(subtree) = subtree {
            let chunk = (to.tiles.start / stream.sizes.chunk_tiles) as usize;
            member.tallies[chunk] = output.tally;
            member.mended += u64::from(member.digest.add(chunk, subtree));
        }
    }

    /// The next unit of the current pass, if one is left, and whether it is the last one.
    pub(super) fn next_unit(&self, sizes: Sizes) -> Option<(Unit, bool)> {
        let mut state = self.state();
        let unit = next_unit(&mut state.left, sizes)?;
        state.pending += 1;
        Some((unit, state.left.is_empty()))
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
    /// Tensors that the method refuses to merge, and a device that contradicts itself.
    pub(super) fn next_pass(&self, stream: &Stream<'_>) -> Result<bool> {
        let mut state = self.state();
        let State { members, left, .. } = &mut *state;
        for (index, member) in members.iter_mut().enumerate() {
            left.extend(member.next_pass(stream, index)?);
        }
        Ok(!left.is_empty())
    }

    /// The results of the group's tensors.
    pub(super) fn merged(&self) -> Vec<(usize, Merged)> {
        let mut state = self.state();
        let merged = |member: &mut TensorWork| {
            let Remaining::Done(thresholds, remark) = &mut member.way else {
                unreachable!("the group is done")
            };
            let (digest, thresholds, remark) =
                (member.digest.finish(), std::mem::take(thresholds), remark.take());
            let (odd, redone, mended) = (member.tally().odd, member.redone, member.mended);
            (member.tensor, Merged { digest, odd, redone, mended, remark, thresholds })
        };
        state.members.iter_mut().map(merged).collect()
    }
}

impl TensorWork {
    fn new(stream: &Stream<'_>, tensor: usize) -> Self {
        let planned = &stream.plan.tensors[tensor];
        let (way, elements) = match &planned.action {
            Action::Copy(copy) => (Remaining::Copy, units(planned, copy.from).0),
            Action::Merge(merge) => (Remaining::Merge(stream.work.machine(tensor, merge)), planned.elements),
        };
        let chunks = tiles(elements).div_ceil(stream.sizes.chunk_tiles) as usize;
        Self {
            tensor,
            way: if elements == 0 { Remaining::Done(Vec::new(), None) } else { way },
            fold: Fold::Nothing,
            digest: Digest::new(planned.bytes, chunks),
            tallies: vec![Tally::default(); chunks],
            redone: 0,
            mended: 0,
        }
    }

    /// What combining all of the tensor has counted.
    fn tally(&self) -> Tally {
        let mut all = Tally::default();
        self.tallies.iter().for_each(|tally| all += *tally);
        all
    }

    /// Starts the tensor's next pass, if there is one.
    fn next_pass(&mut self, stream: &Stream<'_>, index: usize) -> Result<Option<Cut>> {
        let tensor = &stream.plan.tensors[self.tensor];
        let measured = std::mem::replace(&mut self.fold, Fold::Nothing).finish(|| self.tally().kept);
        let cut = match (&tensor.action, &mut self.way) {
            (Action::Copy(copied), Remaining::Copy) => {
                self.way = Remaining::Done(Vec::new(), None);
                Cut::copy(index, self.tensor, tensor, copied)
            }
            (Action::Merge(merge), Remaining::Merge(machine)) => {
                let next = machine.next(measured).map_err(|error| Error {
                    message: format!("tensor {}: {}", tensor.name, error.message),
                    ..error
                })?;
                let Some(pass) = next else {
                    self.way = Remaining::Done(machine.thresholds(), machine.remark());
                    return Ok(None);
                };
                let shared = |input| stream.is_shared(input);
                Cut::merge(index, self.tensor, tensor, merge, pass, stream.sizes.chunk_tiles, shared)
            }
            _ => return Ok(None),
        };
        let (outcome, records, record_tiles) = cut.outcome(stream.sizes.chunk_tiles);
        self.fold = Fold::new(outcome, cut.segments(), records, record_tiles);
        Ok(Some(cut))
    }
}
