//! Generalised task arithmetic: `out = base + λ · combine(wᵢ · sparsify(xᵢ − base))`.
//!
//! The family's common part. A member chooses how task vectors are thinned out (not at all, by magnitude,
//! at random) and whether a sign vote decides which of them are averaged, element by element. Here too is
//! `task_arithmetic` itself, the member that does neither.

use std::ops::Range;

use super::top_k::{self, COUNTING_SWEEPS_MAX, TopK};
use super::{Base, Method, Paper, Parameter, Scope, Settings, divisor, masks};
use crate::error::{Error, Result};
use crate::kernel::consensus;
use crate::kernel::thinning::{Keep, Mask, Model, Trim};
use crate::kernel::{Job, KEY_MAX, Kept, TILE, masked_sums, tiles, weighted_sum};
use crate::recipe::{Foreseen, Machine, Measured, Pass, Recipe, Segments, Threshold, everything};

pub(super) const TASK_ARITHMETIC: Method = Method {
    name: "task_arithmetic",
    summary: "the models' differences to the base, weighted and added to it",
    formula: "out = base + λ·Σ wᵢ·(xᵢ − base)   (normalize: divided by Σ wᵢ)",
    paper: Some(Paper {
        title: "Ilharco et al., Editing models with task arithmetic (ICLR 2023)",
        url: "https://arxiv.org/abs/2212.04089",
    }),
    base: Base::Required,
    models: 1..=usize::MAX,
    parameters: &const { parameters(false, false) },
    recipe: |settings| recipe(settings, Thinning::None, false),
};

/// The parameters of the family, with the member's own defaults.
pub(super) const fn parameters(normalize: bool, rescale: bool) -> [Parameter; 6] {
    [
        Parameter::required("weight", Scope::NonBase, "the task vector's weight"),
        Parameter::share(
            "density",
            Scope::NonBase,
            1.0,
            "the share of the task vector's elements that is kept",
        ),
        Parameter::flag(
            "normalize",
            normalize,
            "divide by the sum of the weights (of the agreeing models, with a vote)",
        ),
        Parameter::flag("rescale", rescale, "scale what is kept so that the task vector's L1 norm stays"),
        Parameter::number("lambda", Scope::Shared, 1.0, "a factor for the merged task vector"),
        Parameter::flag("int8_mask", false, "accepted for mergekit's sake; it never changed a result"),
    ]
}

/// How task vectors are thinned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thinning {
    /// Not at all, whatever the density says.
    None,
    /// The largest magnitudes stay.
    Magnitude,
    /// A random choice stays.
    Random,
}

/// The recipe of a member of the family.
pub(super) fn recipe(settings: &Settings, thinning: Thinning, vote: bool) -> Result<Recipe> {
    let merge = FamilyMerge::of(settings, thinning, vote);
    if merge.models.is_empty()
        || (!vote && merge.models.iter().all(|model| model.keep == Keep::All && model.trimmed_to.is_none()))
    {
        let (reads, job) = merge.weighted_sum();
        return Ok(Recipe::combine(reads, job));
    }
    // Where magnitudes decide, a try may go before, and counting before and after it.
    let selecting = if merge.trimmed().next().is_some() { 1 + 2 * COUNTING_SWEEPS_MAX } else { 0 };
    let sweeps_most = 1 + u32::from(merge.rescale) + selecting;
    Ok(Recipe::passes(sweeps_most, Segments::Whole, merge))
}

/// The merge of one tensor: select thresholds, measure norms, combine; steps not needed are left out. Thresholds are
/// proven by what combining kept: guesses and those of an earlier merge may therefore be tried first. What a guess got right
/// of the output stays.
#[expect(clippy::struct_excessive_bools, reason = "each is a parameter of its own, but for the last two")]
#[derive(Clone)]
struct FamilyMerge {
    elements: u64,
    base: usize,
    models: Vec<TaskVector>,
    /// λ, and the sum of all weights where it divides.
    lambda: f64,
    divisor: f64,
    normalize: bool,
    vote: bool,
    rescale: bool,
    stage: Step,
    /// Whether the thresholds are those of an earlier merge.
    recalled: bool,
    /// Whether thresholds may be guessed.
    guesses: bool,
    /// What the output was made with, where the guess was wrong.
    guessed: Vec<Trim>,
}

/// What the pass under way is for.
#[derive(Clone)]
enum Step {
    Beginning,
    Selecting(TopK),
    Norms,
    Combining,
    /// Combining with thresholds that are guessed.
    Guessing(TopK),
    Done,
}

/// A task vector that takes part: one of density 0 does not.
#[derive(Clone)]
struct TaskVector {
    input: usize,
    weight: f64,
    keep: Keep,
    /// How many elements are kept, where magnitudes decide.
    trimmed_to: Option<u64>,
    /// What brings the thinned vector back to its L1 norm.
    rescale: f64,
}

impl FamilyMerge {
    fn of(settings: &Settings, thinning: Thinning, vote: bool) -> Self {
        let weight = |input| settings.number_of(input, "weight");
        let density =
            |input| if thinning == Thinning::None { 1.0 } else { settings.number_of(input, "density") };
        let member = |(position, input): (usize, usize)| {
            let density = density(input);
            let thinned = density < 1.0;
            let keep = match thinning {
                Thinning::Random if thinned => Keep::Random(Mask {
                    keep: masks::probability(density),
                    key: masks::mask_key(settings.seed, &settings.tensor, position),
                }),
                _ => Keep::All,
            };
            let trimmed_to =
                (thinned && thinning == Thinning::Magnitude).then(|| top_k::kept(density, settings.elements));
            (density > 0.0).then(|| TaskVector {
                input,
                weight: weight(input),
                keep,
                trimmed_to,
                rescale: 1.0,
            })
        };
        let models: Vec<TaskVector> = settings.non_base().enumerate().filter_map(member).collect();
        let thinned = models.iter().any(|m| m.trimmed_to.is_some() || m.keep != Keep::All);
        let normalize = settings.flag("normalize");
        Self {
            elements: settings.elements,
            base: settings.base_input(),
            lambda: settings.number("lambda"),
            divisor: if normalize { divisor(settings.non_base().map(weight)) } else { 1.0 },
            normalize,
            vote,
            rescale: thinned && settings.flag("rescale"),
            stage: Step::Beginning,
            recalled: false,
            guesses: false,
            guessed: Vec::new(),
            models,
        }
    }

    fn reads(&self) -> Vec<usize> {
        std::iter::once(self.base).chain(self.models.iter().map(|m| m.input)).collect()
    }

    /// Without thinning and vote the merge is a weighted sum around the base.
    fn weighted_sum(&self) -> (Vec<usize>, Job) {
        let solved = |m: &TaskVector| (m.input, (self.lambda * m.weight / self.divisor) as f32);
        let used = self.models.iter().map(solved).filter(|(_, coefficient)| *coefficient != 0.0);
        let (reads, coefficients) = std::iter::once((self.base, 0.0)).chain(used).unzip();
        (reads, weighted_sum::Job { anchored: true, coefficients }.into())
    }

    /// The models that are trimmed, by their places among all that take part: how many elements each keeps.
    fn trimmed(&self) -> impl Iterator<Item = (usize, &TaskVector, u64)> {
        let models = self.models.iter().enumerate();
        models.filter_map(|(place, member)| Some((place, member, member.trimmed_to?)))
    }

    /// How many elements are to be kept of which inputs.
    fn selection(&self) -> TopK {
        let wanted: Vec<(usize, u64)> = self.trimmed().map(|(_, m, kept)| (m.input, kept)).collect();
        TopK::new(self.elements, self.base, wanted.into_iter())
    }

    /// Goes on selecting.
    fn select(&mut self, mut selection: TopK, measured: Measured) -> Pass {
        if let Some(pass) = selection.next(measured) {
            self.stage = Step::Selecting(selection);
            return pass;
        }
        let trimmed = self.models.iter_mut().filter(|m| m.trimmed_to.is_some());
        for (member, trim) in trimmed.zip(selection.trims()) {
            member.keep = Keep::Trim(trim);
        }
        if selection.is_guess() {
            let pass = self.combine();
            self.stage = Step::Guessing(selection);
            return pass;
        }
        self.mend().unwrap_or_else(|| self.measure_norms())
    }

    /// The stretches between guessed cuts and true ones, if it is cuts alone that the guess got wrong.
    fn mend(&mut self) -> Option<Pass> {
        let guessed = std::mem::take(&mut self.guessed);
        let found = self.trimmed().filter_map(|(_, member, _)| member.trim());
        let over = stretches(guessed.into_iter().zip(found))?;
        let Pass::Combine { reads, job } = self.combine() else { unreachable!("that is what it is") };
        Some(Pass::Mend { reads, job, over })
    }

    /// Takes in what guessed thresholds kept.
    fn prove(&mut self, mut selection: TopK, kept: &Kept) -> Option<Pass> {
        self.refuted(kept)?;
        self.guessed = selection.trims().collect();
        selection.prove(self.trimmed().map(|(place, ..)| kept[place]));
        Some(self.select(selection, Measured::Nothing))
    }

    /// Selects from the beginning.
    fn select_anew(&mut self) -> Pass {
        self.recalled = false;
        // Norms are measured with the true thresholds.
        let guesses = self.guesses && !self.rescale;
        let selection = self.selection();
        self.select(if guesses { selection.guessing() } else { selection }, Measured::Nothing)
    }

    /// Goes on with the norms, if they are needed.
    fn measure_norms(&mut self) -> Pass {
        if !self.rescale {
            return self.combine();
        }
        self.stage = Step::Norms;
        let models = self.models.iter().map(|m| m.keep).collect();
        let job = Job::MaskedSums(masked_sums::Job { models });
        Pass::Measure { reads: self.reads(), job, by: Segments::Whole, over: everything(self.elements) }
    }

    /// The first input whose selection is not proven by what was kept, with what was kept and what should be.
    fn refuted(&self, kept: &Kept) -> Option<(usize, u64, u64)> {
        let refuted = |(place, member, k): (usize, &TaskVector, u64)| {
            (!top_k::proves(kept[place], k, member.trim()?)).then_some((member.input, kept[place], k))
        };
        self.trimmed().find_map(refuted)
    }

    fn take_norms(&mut self, sums: &[f64]) {
        /// A norm below this is too small to divide by.
        const SMALLEST_NORM: f64 = 1e-7;
        for (member, norms) in self.models.iter_mut().zip(sums.chunks_exact(2)) {
            let [all, kept] = [norms[0], norms[1]];
            let thinned = member.keep != Keep::All;
            member.rescale = 1.0;
            if thinned && !(all < SMALLEST_NORM || kept < SMALLEST_NORM) {
                member.rescale = all / kept;
            }
        }
    }

    fn combine(&mut self) -> Pass {
        self.stage = Step::Combining;
        let factor = if self.vote { 1.0 } else { self.lambda / self.divisor };
        let model =
            |m: &TaskVector| Model { coefficient: (m.weight * m.rescale * factor) as f32, keep: m.keep };
        let job = consensus::Job {
            models: self.models.iter().map(model).collect(),
            scale: if self.vote { self.scale() } else { Vec::new() },
        };
        Pass::Combine { reads: self.reads(), job: Job::Consensus(job) }
    }

    /// λ over the sum of the agreeing weights, for every set of agreeing models.
    fn scale(&self) -> Vec<f32> {
        // The contract's divisors add up the weights as they are used: in f32.
        let weights: Vec<f64> = self.models.iter().map(|m| f64::from(m.weight as f32)).collect();
        let of_set = |set: usize| {
            let agreeing =
                weights.iter().enumerate().filter(move |(i, _)| set >> i & 1 == 1).map(|(_, w)| *w);
            if self.normalize { self.lambda / divisor(agreeing) } else { self.lambda }
        };
        (0..1usize << weights.len()).map(|set| of_set(set) as f32).collect()
    }
}

impl TaskVector {
    fn trim(&self) -> Option<Trim> {
        match self.keep {
            Keep::Trim(trim) => Some(trim),
            _ => None,
        }
    }
}

impl Machine for FamilyMerge {
    fn fresh(&self) -> Box<dyn Machine> {
        Box::new(self.clone())
    }

    fn foreseen(&self) -> Vec<Foreseen> {
        let selects = !self.recalled && self.trimmed().next().is_some();
        let mut foreseen = if selects { self.selection().foreseen() } else { Vec::new() };
        let reads = self.reads();
        if self.rescale {
            let models = self.models.iter().map(|m| m.keep).collect();
            foreseen.push(Foreseen::new(&reads, masked_sums::Job { models }));
        }
        let model = |m: &TaskVector| Model { coefficient: 0.0, keep: m.keep };
        let models = self.models.iter().map(model).collect();
        foreseen.push(Foreseen::new(&reads, consensus::Job { models, scale: Vec::new() }));
        foreseen
    }

    fn next(&mut self, measured: Measured) -> Result<Option<Pass>> {
        Ok(Some(match std::mem::replace(&mut self.stage, Step::Done) {
            Step::Beginning if self.recalled || self.trimmed().next().is_none() => self.measure_norms(),
            Step::Beginning => self.select_anew(),
            Step::Selecting(selection) => self.select(selection, measured),
            Step::Norms => {
                self.take_norms(&measured.sums());
                self.combine()
            }
            Step::Guessing(selection) => return Ok(self.prove(selection, &measured.kept())),
            Step::Done => return Ok(None),
            Step::Combining => match self.refuted(&measured.kept()) {
                None => return Ok(None),
                Some(_) if self.recalled => self.select_anew(),
                Some((input, kept, k)) => return Err(contradiction(input, kept, k)),
            },
        }))
    }

    fn guess(&mut self) {
        self.guesses = true;
    }

    fn recall(&mut self, thresholds: &[Threshold]) {
        let elements = self.elements;
        let possible = |trim: &Trim| {
            // Zeros are not kept, see `top_k`.
            trim.threshold <= KEY_MAX && trim.cut() <= if trim.threshold == 0 { 0 } else { elements }
        };
        let of = |member: &TaskVector| {
            let known = |known: &&Threshold| {
                (known.input, Some(known.kept)) == (member.input, member.trimmed_to) && possible(&known.trim)
            };
            thresholds.iter().find(known).map(|known| known.trim)
        };
        let found: Option<Vec<Trim>> = self.trimmed().map(|(_, member, _)| of(member)).collect();
        let Some(found) = found.filter(|found| !found.is_empty()) else { return };
        for (member, trim) in self.models.iter_mut().filter(|m| m.trimmed_to.is_some()).zip(found) {
            member.keep = Keep::Trim(trim);
        }
        self.recalled = true;
    }

    fn thresholds(&self) -> Vec<Threshold> {
        let threshold = |(_, member, kept): (usize, &TaskVector, u64)| {
            Some(Threshold { input: member.input, kept, trim: member.trim()? })
        };
        self.trimmed().filter_map(threshold).collect()
    }
}

/// The tiles on which pairs of cuts differ; `None` where there are no pairs, or thresholds that differ.
fn stretches(pairs: impl Iterator<Item = (Trim, Trim)>) -> Option<Vec<Range<u64>>> {
    let between = |(a, b): (Trim, Trim)| {
        let (first, last) = (a.cut().min(b.cut()), a.cut().max(b.cut()));
        (a.threshold == b.threshold).then(|| first / TILE as u64..tiles(last))
    };
    let mut parts = pairs.map(between).collect::<Option<Vec<_>>>()?;
    parts.sort_unstable_by_key(|part| part.start);
    let mut apart: Vec<Range<u64>> = Vec::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        match apart.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ => apart.push(part),
        }
    }
    (!apart.is_empty()).then_some(apart)
}

/// What a device counted does not fit what it then kept.
fn contradiction(input: usize, kept: u64, k: u64) -> Error {
    Error::device(format!(
        "of model number {}, {kept} elements were kept and not the {k} largest: the device contradicts itself",
        input + 1
    ))
    .hint("`mergeforge check` tests the device; please report this")
}
