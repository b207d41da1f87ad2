//! Exact selection of the k largest magnitudes of every task vector, by counting.
//!
//! `k = max(1, trunc(density · n))`, and of equal magnitudes at the end the lowest flat indices are kept.
//! A sample shows where each model's k-th magnitude is likely to be: among a few levels, where magnitudes are
//! often equal, or else in a bracket of bins. A counting sweep then finds the exact key there, or the narrower
//! stretch that holds it, and the next sweep goes on; after a guess that missed, a larger sample from other places
//! makes a better one. Of more searches than kernels count for at once, some wait. Samples decide how many sweeps it takes, never the result. Where equal keys have to be cut, only
//! the stretch with the cut is scanned again.
//!
//! Where the sample leaves little doubt about the key itself, the merge may be made with that key and a guessed cut, and only the
//! other models are counted before. How much it kept shows on which side of the guess the cut is, and how many equal keys away:
//! the stretch between the two is scanned, and merged once more. If there are too few equal keys, the key was wrong, and the
//! counting begins.

use std::ops::{Range, RangeInclusive};

use crate::error::{Error, Result};
use crate::kernel::levels::{self, LEVELS_MAX};
use crate::kernel::magnitudes::{self, ABOVE, BINS, Bracket, UNEVEN};
use crate::kernel::thinning::Trim;
use crate::kernel::{Job, KEY_MAX, RECORDS_MAX, TILE, VOTERS_MAX, WORDS_TILES_MAX, keys, tiles};
use crate::recipe::{Foreseen, Measured, Pass, Segments, TileCounts, everything};

/// A sample is one of so many tiles, spread over the tensor: the more there is to count, the better a guess pays. One that is
/// taken because the first was misleading is twice as large.
const SAMPLED_OF: u64 = 64;

/// Tiles of a first sample; tensors up to the least of them are selected from their keys directly.
const SAMPLE_TILES: RangeInclusive<u64> = 32..=128;

/// A key is likely the threshold if so many standard deviations to either side are the same key.
const LIKELY: f64 = 1.5;

/// Counting sweeps at most: two guesses that miss, then three of 2^11 bins for the 31 bits of a key.
pub(super) const COUNTING_SWEEPS_MAX: u32 = 5;

/// The selection for all models of a tensor that are trimmed.
#[derive(Debug, Clone)]
pub(super) struct TopK {
    elements: u64,
    base: usize,
    searches: Vec<Search>,
    /// The searches that the pass under way measures, in its order.
    measuring: Vec<usize>,
    asked: Asked,
    guess: Guess,
}

/// Whether thresholds may be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guess {
    No,
    Allowed,
    /// They are guessed, and what they keep is not known yet.
    Made,
}

/// What the pass under way measures.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// Keys of a sample.
    Sample,
    /// Counters.
    Counts,
    /// The keys of the stretch that holds a cut.
    TieCut,
}

/// How far the selection of one model has come.
#[derive(Debug, Clone)]
struct Search {
    input: usize,
    k: u64,
    /// The key is in here.
    interval: Range<u32>,
    /// How many keys are at or above the interval's start, and its end.
    from_start: u64,
    from_end: u64,
    /// How many samples were taken for it, and how often it was counted for.
    samples: u32,
    counted: u32,
    /// Whether a sweep has counted and not found it.
    missed: bool,
    bracket: Bracket,
    /// Keys of which one is likely to be the key, ascending; none: the bracket is to be counted.
    levels: Vec<u32>,
    /// The key and cut that a sample makes very likely.
    likely: Option<Likely>,
    /// Whether `found` is that guess.
    guessed: bool,
    found: Option<Selected>,
    /// Whether no key fits what was counted.
    lost: bool,
}

/// A guess by a sample.
#[derive(Debug, Clone, Copy)]
struct Likely {
    threshold: u32,
    /// The tile before which equal keys are kept.
    cut_tile: u64,
    /// The share of equal keys among all.
    share: f64,
}

/// A threshold, and where to cut among the keys equal to it.
#[derive(Debug, Clone)]
struct Selected {
    threshold: u32,
    cut: TieCut,
}

#[derive(Debug, Clone)]
enum TieCut {
    /// Keep equal keys at flat indices below this one.
    At(u64),
    /// The last key to keep is the `keep`-th equal one of these tiles.
    Within { tiles: Range<u64>, keep: u64 },
    /// So many equal keys more than the tiles before this one have are to be kept; less, where it is negative.
    Away { tile: u64, missing: i64 },
}

/// Where the k-th magnitude is 0, no zero is kept: weighted it would be 0 all the same, and what is kept is at most k.
const ZEROS_KEPT: u64 = 0;

/// Whether so many kept elements prove the threshold and the cut of a selection of `k`: they were then the k largest,
/// because whatever is kept is at least as large as what is not.
pub(super) fn proves(kept: u64, k: u64, trim: Trim) -> bool {
    kept == k || (trim == Trim::new(0, ZEROS_KEPT) && kept < k)
}

/// `max(1, trunc(density · n))`, for 0 < density < 1.
pub(super) fn kept(density: f64, elements: u64) -> u64 {
    ((density * elements as f64) as u64).clamp(1, elements.max(1))
}

impl TopK {
    /// A selection of the `k` largest of each of the given inputs' differences to the input `base`.
    pub(super) fn new(elements: u64, base: usize, inputs: impl Iterator<Item = (usize, u64)>) -> Self {
        let search = |(input, k)| Search {
            input,
            k,
            interval: 0..KEY_MAX + 1,
            from_start: elements,
            from_end: 0,
            samples: 0,
            counted: 0,
            missed: false,
            bracket: bracket(&(0..KEY_MAX + 1)),
            levels: Vec::new(),
            likely: None,
            guessed: false,
            found: None,
            lost: false,
        };
        Self {
            elements,
            base,
            searches: inputs.map(search).collect(),
            measuring: Vec::new(),
            asked: Asked::Sample,
            guess: Guess::No,
        }
    }

    /// The same selection, which may answer with guesses.
    pub(super) fn guessing(self) -> Self {
        Self { guess: Guess::Allowed, ..self }
    }

    /// Whether the thresholds are guesses, to be proven by what they keep.
    pub(super) fn is_guess(&self) -> bool {
        self.guess == Guess::Made
    }

    /// Takes in how much the thresholds keep, in the order of the inputs given. The selection then goes on from there.
    pub(super) fn prove(&mut self, kept: impl Iterator<Item = u64>) {
        self.guess = Guess::No;
        self.searches.iter_mut().for_each(|search| search.counted = 0);
        let all = tiles(self.elements);
        for (search, kept) in self.searches.iter_mut().zip(kept).filter(|(search, _)| search.guessed) {
            search.take_kept(kept, all);
        }
    }

    /// Takes in what the last pass measured; the next pass, or none when every threshold is known.
    pub(super) fn next(&mut self, measured: Measured) -> Option<Pass> {
        match (self.asked, measured) {
            (_, Measured::Nothing) => {}
            (Asked::Sample, measured) => self.take_sample(&measured.words()),
            (Asked::Counts, measured) => self.take_counts(&measured.counts()),
            (Asked::TieCut, measured) => self.take_cut(&measured.words()),
        }
        if self.searches.is_empty() || self.elements == 0 {
            return None;
        }
        let pass = self.sampling_pass().or_else(|| self.counting_pass()).or_else(|| self.cutting_pass());
        if pass.is_none() {
            self.take_likely();
        }
        pass
    }

    /// For a merge that is not proven by what it keeps: whether all thresholds fit what was counted.
    ///
    /// # Errors
    /// Kind `Device`: one does not.
    pub(super) fn check(&self) -> Result<()> {
        if self.searches.iter().any(|search| search.lost) {
            return Err(Error::device("counts of magnitudes contradict each other")
                .hint("`mergeforge check` tests the device; please report this"));
        }
        Ok(())
    }

    /// The passes that are likely: a sample, which settles small tensors, and a sweep that counts, in whichever way.
    pub(super) fn foreseen(&self) -> Vec<Foreseen> {
        let models = self.searches.len().min(VOTERS_MAX);
        let inputs = self.searches.iter().take(VOTERS_MAX).map(|search| search.input);
        let reads: Vec<usize> = std::iter::once(self.base).chain(inputs).collect();
        let mut foreseen = vec![Foreseen::new(&reads, keys::Job { models })];
        if tiles(self.elements) > *SAMPLE_TILES.start() {
            let brackets = self.searches.iter().take(VOTERS_MAX).map(|search| search.bracket).collect();
            // Of all models; and the cuts, of one after the other.
            for models in [models, 1] {
                let job = levels::Job { models: vec![Vec::new(); models] };
                foreseen.push(Foreseen::new(&reads[..=models], job));
            }
            foreseen.push(Foreseen::new(&reads, magnitudes::Job { models: brackets }));
        }
        foreseen
    }

    /// The thresholds, in the order of the inputs given.
    pub(super) fn trims(&self) -> impl Iterator<Item = Trim> + '_ {
        self.searches.iter().map(|search| match &search.found {
            Some(Selected { threshold, cut: TieCut::At(cut) }) => Trim::new(*threshold, *cut),
            // An empty tensor: there is nothing to keep.
            _ => Trim::new(0, ZEROS_KEPT),
        })
    }

    /// Whether a search is to go on, and not left to a guess.
    fn is_open(&self, search: &Search) -> bool {
        search.found.is_none() && (self.guess != Guess::Allowed || search.likely.is_none())
    }

    /// Takes what samples make likely for the truth where nothing else is known.
    fn take_likely(&mut self) {
        for search in self.searches.iter_mut().filter(|search| search.found.is_none()) {
            let Likely { threshold, cut_tile, .. } = search.likely.expect("it is not open");
            let cut = (cut_tile * TILE as u64).min(self.elements);
            search.found = Some(Selected { threshold, cut: TieCut::At(cut) });
            search.guessed = true;
            self.guess = Guess::Made;
        }
    }

    /// A first sample for every model, and a second one for those whose next sweep would miss again.
    fn sampling_pass(&mut self) -> Option<Pass> {
        let wants = |search: &Search| match search.samples {
            0 => true,
            1 => self.is_open(search) && search.missed && bracket(&search.interval).shift > 0,
            _ => false,
        };
        let wanting = || (0..self.searches.len()).filter(|search| wants(&self.searches[*search]));
        let taken = wanting().map(|search| self.searches[search].samples).min()?;
        let alike = |search: &usize| self.searches[*search].samples == taken;
        self.measuring = wanting().filter(alike).take(VOTERS_MAX).collect();
        self.asked = Asked::Sample;
        let all = tiles(self.elements);
        let first = (all / SAMPLED_OF).clamp(*SAMPLE_TILES.start(), *SAMPLE_TILES.end());
        let tile = |i: u64| match taken {
            0 => i * all / first,
            // Between those of the first.
            _ => (2 * i + 1) * all / (4 * first),
        };
        let count = if taken == 0 { first } else { 2 * first };
        let over = match all {
            all if all <= count => everything(self.elements),
            _ => (0..count).map(tile).map(|tile| tile..tile + 1).collect(),
        };
        self.measuring.iter().for_each(|search| self.searches[*search].samples += 1);
        Some(self.pass(Job::Keys(keys::Job { models: self.measuring.len() }), over))
    }

    fn pass(&self, job: Job, over: Vec<Range<u64>>) -> Pass {
        let models = self.measuring.iter().map(|search| self.searches[*search].input);
        let reads = std::iter::once(self.base).chain(models).collect();
        Pass::Measure { reads, job, by: Segments::Whole, over }
    }

    fn take_sample(&mut self, words: &[u32]) {
        let models = self.measuring.len();
        let whole = words.len() as u64 == self.elements * models as u64;
        for (place, search) in self.measuring.iter().enumerate() {
            let (keys, search) = (keys_of(words, place, models), &mut self.searches[*search]);
            if whole {
                search.found = Some(select(&keys, search.k));
            } else {
                search.guess(&keys, self.elements);
            }
        }
    }

    fn counting_pass(&mut self) -> Option<Pass> {
        let mut open: Vec<usize> =
            (0..self.searches.len()).filter(|search| self.is_open(&self.searches[*search])).collect();
        open.retain(|search| {
            let search = &mut self.searches[*search];
            // Only inputs that change under the merge come to this; what is kept in the end will show it.
            let is_lost = search.counted == COUNTING_SWEEPS_MAX || search.interval.is_empty();
            if is_lost {
                search.found = Some(Selected { threshold: KEY_MAX, cut: TieCut::At(0) });
                search.lost = true;
            }
            !is_lost
        });
        open.truncate(VOTERS_MAX);
        self.measuring = open;
        self.measuring.iter().for_each(|search| self.searches[*search].counted += 1);
        // All models are counted by the same kernel: one that needs bins gives them to all.
        let measuring = || self.measuring.iter().map(|search| &self.searches[*search]);
        let job = if measuring().all(|search| !search.levels.is_empty()) {
            Job::Levels(levels::Job { models: measuring().map(|search| search.levels.clone()).collect() })
        } else {
            let models = measuring().map(|search| search.bracket).collect();
            self.measuring.iter().for_each(|search| self.searches[*search].levels.clear());
            Job::Magnitudes(magnitudes::Job { models })
        };
        self.asked = Asked::Counts;
        (!self.measuring.is_empty()).then(|| self.pass(job, everything(self.elements)))
    }

    fn take_counts(&mut self, records: &[TileCounts]) {
        let elements = self.elements;
        for (place, search) in self.measuring.iter().enumerate() {
            let words = records[0].counts.len() / self.measuring.len();
            let counts = |record: &TileCounts| record.counts[place * words..][..words].to_vec();
            let records: Vec<_> =
                records.iter().map(|r| TileCounts { tiles: r.tiles.clone(), counts: counts(r) }).collect();
            self.searches[*search].narrow(&records, elements);
        }
    }

    /// A pass over the stretch that holds some model's cut: counted if it is long, else looked through.
    fn cutting_pass(&mut self) -> Option<Pass> {
        let all = tiles(self.elements);
        let (search, threshold, tiles, counted) =
            self.searches.iter().enumerate().find_map(|(i, search)| {
                let found = search.found.as_ref()?;
                let (tiles, counted) = match &found.cut {
                    TieCut::At(_) => return None,
                    TieCut::Within { tiles, .. } => (tiles.clone(), true),
                    TieCut::Away { tile, missing } => (search.stretch(*tile, *missing, all), false),
                };
                Some((i, found.threshold, tiles, counted))
            })?;
        self.measuring = vec![search];
        let length = tiles.end - tiles.start;
        if counted && length <= WORDS_TILES_MAX {
            self.asked = Asked::TieCut;
            return Some(self.pass(Job::Keys(keys::Job { models: 1 }), vec![tiles]));
        }
        self.asked = Asked::Counts;
        // In steps, so that the count says more than before however long the stream's own chunks are.
        let step = WORDS_TILES_MAX.max(length.div_ceil(RECORDS_MAX));
        let part = |start: u64| start..(start + step).min(tiles.end);
        let parts = tiles.clone().step_by(step as usize).map(part).collect();
        Some(self.pass(Job::Levels(levels::Job { models: vec![vec![threshold]] }), parts))
    }

    fn take_cut(&mut self, words: &[u32]) {
        let found = self.searches[self.measuring[0]].found.as_mut().expect("a cut follows a threshold");
        let TieCut::Within { tiles, keep } = &found.cut else {
            unreachable!("only open cuts are looked for")
        };
        let mut equal = (0u64..).zip(words).filter(|(_, key)| **key == found.threshold);
        // There are as many as were counted, or what is kept in the end will show that there are not.
        let before = equal.nth(*keep as usize - 1).map_or(words.len() as u64, |(last, _)| last + 1);
        found.cut = TieCut::At(tiles.start * TILE as u64 + before);
    }
}

impl Search {
    /// Takes in the counters of this model: of the cut where the key is found, else of the levels or bins asked for.
    fn narrow(&mut self, records: &[TileCounts], elements: u64) {
        if let Some(Selected { cut, threshold }) = &self.found {
            let threshold = *threshold;
            match *cut {
                TieCut::At(_) => unreachable!("a cut that is known is not looked for"),
                TieCut::Within { keep, .. } => {
                    self.found = Some(Selected { threshold, cut: cut_within(records, 1, keep) });
                }
                TieCut::Away { missing, .. } => self.approach(threshold, missing, records, tiles(elements)),
            }
        } else if self.levels.is_empty() {
            self.narrow_bins(records, elements);
        } else {
            self.narrow_levels(records, elements);
        }
    }

    fn narrow_levels(&mut self, records: &[TileCounts], elements: u64) {
        for (level, key) in std::mem::take(&mut self.levels).into_iter().enumerate().rev() {
            let (at_or_above, equal) = (total(records, 2 * level), total(records, 2 * level + 1));
            // Counts that contradict each other are noticed in the end.
            let above = at_or_above.saturating_sub(equal);
            if above >= self.k {
                (self.interval.start, self.from_start) = (key + 1, above);
                return self.miss();
            }
            if at_or_above >= self.k {
                return self.settle(key, above, records, 2 * level + 1, elements);
            }
            (self.interval.end, self.from_end) = (key, at_or_above);
        }
        self.miss();
    }

    fn narrow_bins(&mut self, records: &[TileCounts], elements: u64) {
        let Bracket { lowest, shift } = self.bracket;
        let mut above = total(records, ABOVE);
        if above >= self.k {
            (self.interval.start, self.from_start) = (lowest + ((BINS as u32) << shift), above);
            return self.miss();
        }
        for bin in (0..BINS).rev() {
            let in_bin = total(records, bin);
            if above + in_bin >= self.k {
                let key = lowest + ((bin as u32) << shift);
                if shift > 0 && total(records, UNEVEN) > 0 {
                    self.interval = key..key + (1 << shift);
                    (self.from_start, self.from_end) = (above + in_bin, above);
                    return self.miss();
                }
                return self.settle(key, above, records, bin, elements);
            }
            above += in_bin;
        }
        (self.interval.end, self.from_end) = (lowest, above);
        self.miss();
    }

    /// The key is found; `above` keys are larger, and the records' counter `word` counts those equal to it.
    fn settle(&mut self, threshold: u32, above: u64, records: &[TileCounts], word: usize, elements: u64) {
        let keep = self.k - above;
        let cut = match threshold {
            0 => TieCut::At(ZEROS_KEPT),
            _ if keep >= total(records, word) => TieCut::At(elements),
            _ => cut_within(records, word, keep),
        };
        self.found = Some(Selected { threshold, cut });
    }

    /// Takes in how much a guess has kept.
    fn take_kept(&mut self, kept: u64, all_tiles: u64) {
        let Some(Likely { threshold, cut_tile, .. }) = self.likely else { return };
        if !proves(kept, self.k, Trim::new(threshold, cut_tile * TILE as u64)) {
            self.turn_to(threshold, cut_tile, self.k as i64 - kept as i64, all_tiles);
        }
    }

    /// Goes on looking for the cut from a tile on, where so many equal keys are missing, or too many. Where no tile is left,
    /// the threshold was wrong.
    fn turn_to(&mut self, threshold: u32, tile: u64, missing: i64, all_tiles: u64) {
        let counted = (self.k as i64 - missing) as u64;
        match missing {
            // So many are at or above the threshold.
            1.. if tile == all_tiles => (self.interval.end, self.from_end) = (threshold, counted),
            // So many are above it.
            ..0 if tile == 0 => (self.interval.start, self.from_start) = (threshold + 1, counted),
            0 => unreachable!("nothing is looked for where nothing is missing"),
            _ => {
                self.found = Some(Selected { threshold, cut: TieCut::Away { tile, missing } });
                return;
            }
        }
        self.found = None;
    }

    /// The tiles that are likely to have the keys which are missing, after a tile or before it.
    fn stretch(&self, tile: u64, missing: i64, all_tiles: u64) -> Range<u64> {
        let in_a_tile = self.likely.map_or(1.0, |likely| likely.share) * TILE as f64;
        // A little further than on average: two short passes take longer than one.
        let length = (1.25 * missing.unsigned_abs() as f64 / in_a_tile) as u64 + 16;
        if missing > 0 { tile..(tile + length).min(all_tiles) } else { tile.saturating_sub(length)..tile }
    }

    /// Takes in the equal keys of a stretch beside a guessed cut.
    fn approach(&mut self, threshold: u32, missing: i64, records: &[TileCounts], all_tiles: u64) {
        let (start, end) = (records[0].tiles.start, records[records.len() - 1].tiles.end);
        let equal = total(records, 1);
        let cut = match missing {
            0.. if equal >= missing as u64 => cut_within(records, 1, missing as u64),
            0.. => return self.turn_to(threshold, end, missing - equal as i64, all_tiles),
            _ => match equal.checked_sub(missing.unsigned_abs()) {
                None => return self.turn_to(threshold, start, missing + equal as i64, all_tiles),
                Some(0) => TieCut::At(start * TILE as u64),
                Some(keep) => cut_within(records, 1, keep),
            },
        };
        self.found = Some(Selected { threshold, cut });
    }

    /// Chooses what to count from a sample of keys, and notes what is likely.
    fn guess(&mut self, keys: &[u32], elements: u64) {
        let mut sample = keys.to_vec();
        sample.retain(|key| self.interval.contains(key));
        if sample.is_empty() {
            return;
        }
        // Where the key stands among those of the interval.
        let density = (self.k - self.from_end) as f64 / (self.from_start - self.from_end) as f64;
        let count = sample.len() as f64;
        let rank = (1.0 - density) * count;
        let place = |rank: f64| rank.clamp(0.0, count - 1.0) as usize;
        // One guess in some hundred misses, which costs a sweep; a wider margin would cost every sweep more.
        let (_, likeliest, _) = sample.select_nth_unstable(place(rank));
        let (likeliest, deviation) = (*likeliest, self.deviation(keys, *likeliest, density));
        let margin = 3.0 * deviation + 8.0;
        let (first, last) = (place(rank - margin), place(rank + margin));
        // Only the keys between are put in order: they are few.
        sample.select_nth_unstable(first);
        let (below, rest) = sample.split_at_mut(first);
        rest.select_nth_unstable(last - first);
        let (likely, above) = rest.split_at_mut(last - first + 1);
        likely.sort_unstable();
        let near = |rank: f64| likely[place(rank) - first];
        let sure = LIKELY * deviation + 8.0;
        self.likely = (near(rank - sure) == near(rank + sure)).then(|| {
            let wanted =
                density * count - above.iter().chain(&*likely).filter(|key| **key > likeliest).count() as f64;
            likely_cut(keys, likeliest, wanted, tiles(elements))
        });
        self.levels = common_levels(likely);
        // The true key may be the next one that occurs, on either side.
        let (low, high) = (likely[0], likely[likely.len() - 1]);
        let next_low = below.iter().copied().filter(|key| *key < low).max().unwrap_or(low);
        let next_high = above.iter().copied().filter(|key| *key > high).min().unwrap_or(high);
        self.bracket = bracket(&(next_low..next_high.saturating_add(1).min(KEY_MAX + 1)));
    }

    /// The standard deviation of how many of a sample's keys are at or above one of them: at least that of a choice element
    /// by element. Neighbours resemble each other, and then whole tiles differ by more.
    fn deviation(&self, sample: &[u32], key: u32, density: f64) -> f64 {
        let inside = |tile: &[u32]| tile.iter().filter(|key| self.interval.contains(key)).count() as f64;
        let above = |tile: &[u32]| {
            let above = |of: &&u32| **of >= key && self.interval.contains(of);
            tile.iter().filter(above).count() as f64
        };
        let counts: Vec<(f64, f64)> = sample.chunks(TILE).map(|tile| (inside(tile), above(tile))).collect();
        let tiles = counts.len() as f64;
        let (all, kept) = counts.iter().fold((0.0, 0.0), |(all, kept), (a, b)| (all + a, kept + b));
        let share = kept / all;
        let squares: f64 = counts.iter().map(|(all, kept)| (kept - share * all).powi(2)).sum();
        let between_tiles = squares * tiles / (tiles - 1.0).max(1.0);
        between_tiles.max(all * density * (1.0 - density)).sqrt()
    }

    /// The next sweep covers the whole interval, unless a better guess comes up.
    fn miss(&mut self) {
        self.missed = true;
        self.bracket = bracket(&self.interval);
    }
}

/// A guess with the cut where as many of a sample's equal keys are before it as are wanted. The sample's tiles lie evenly
/// spread.
fn likely_cut(sample: &[u32], threshold: u32, wanted: f64, all_tiles: u64) -> Likely {
    let equal = |tile: &[u32]| tile.iter().filter(|key| **key == threshold).count() as f64;
    let counts: Vec<f64> = sample.chunks(TILE).map(equal).collect();
    let share = counts.iter().sum::<f64>() / sample.len() as f64;
    let (mut left, mut before) = (wanted, 0.0);
    for count in &counts {
        // A part of what the tile stands for.
        before += if left >= *count { 1.0 } else { (left / count).max(0.0) };
        left = (left - count).max(0.0);
        if left == 0.0 {
            break;
        }
    }
    let cut_tile = if threshold == 0 { 0 } else { (before / counts.len() as f64 * all_tiles as f64) as u64 };
    Likely { threshold, cut_tile: cut_tile.min(all_tiles), share }
}

/// The finest bracket that covers an interval of keys.
fn bracket(interval: &Range<u32>) -> Bracket {
    let covers = |bracket: &Bracket| {
        u64::from(interval.end) <= u64::from(bracket.lowest) + ((BINS as u64) << bracket.shift)
    };
    let at = |shift: u32| Bracket { lowest: interval.start >> shift << shift, shift };
    (0..32).map(at).find(covers).expect("2048 bins of 2^21 keys cover all keys")
}

/// The most frequent of some sorted keys, if they are most of them; else none.
fn common_levels(sorted: &[u32]) -> Vec<u32> {
    let mut runs: Vec<&[u32]> = sorted.chunk_by(|a, b| a == b).collect();
    runs.sort_by_key(|run| std::cmp::Reverse(run.len()));
    runs.truncate(LEVELS_MAX);
    let covered: usize = runs.iter().map(|run| run.len()).sum();
    let mut levels: Vec<u32> = runs.iter().map(|run| run[0]).collect();
    levels.sort_unstable();
    if covered * 4 >= sorted.len() * 3 { levels } else { Vec::new() }
}

/// One counter over all records.
fn total(records: &[TileCounts], word: usize) -> u64 {
    records.iter().map(|record| u64::from(record.counts[word])).sum()
}

/// The k-th largest of all keys, and the cut among its equals.
fn select(keys: &[u32], k: u64) -> Selected {
    let elements = keys.len() as u64;
    let mut sorted = keys.to_vec();
    let (_, threshold, _) = sorted.select_nth_unstable_by(k as usize - 1, |a, b| b.cmp(a));
    let threshold = *threshold;
    if threshold == 0 {
        return Selected { threshold, cut: TieCut::At(ZEROS_KEPT) };
    }
    let above = keys.iter().filter(|key| **key > threshold).count() as u64;
    let mut equal = (0u64..).zip(keys).filter(|(_, key)| **key == threshold);
    let cut = equal.nth((k - above) as usize).map_or(elements, |(first_dropped, _)| first_dropped);
    Selected { threshold, cut: TieCut::At(cut) }
}

/// The record that holds the `keep`-th of the keys that the counter `word` counts.
fn cut_within(records: &[TileCounts], word: usize, mut keep: u64) -> TieCut {
    for TileCounts { tiles, counts } in records {
        let count = u64::from(counts[word]);
        if keep <= count {
            return TieCut::Within { tiles: tiles.clone(), keep };
        }
        keep -= count;
    }
    // There are as many as were counted, or what is kept in the end will show that there are not.
    TieCut::At(records.last().map_or(0, |record| record.tiles.end) * TILE as u64)
}

/// One model's keys out of a pass that kept those of several: tile after tile, model after model.
fn keys_of(words: &[u32], model: usize, models: usize) -> Vec<u32> {
    let mut keys = Vec::with_capacity(words.len() / models);
    for tile in words.chunks(TILE * models) {
        let len = tile.len() / models;
        keys.extend_from_slice(&tile[model * len..][..len]);
    }
    keys
}

#[cfg(test)]
mod tests;
