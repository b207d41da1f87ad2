//! Generalised task arithmetic: `out = base + λ · combine(wᵢ · sparsify(xᵢ − base))`.
//!
//! The family's common part. A member chooses how task vectors are thinned out (not at all, by magnitude,
//! at random) and whether a sign vote decides which of them are averaged, element by element. Here too is
//! `task_arithmetic` itself, the member that does neither.

use std::ops::Range;

use super::top_k::{self, COUNTING_SWEEPS_MAX, TopK};
use super::{Base, Method, Paper, Parameter, Scope, Settings, divisor, masks};
use crate::error::{About, Error, Result};
use crate::kernel::choice::{Choice, EVERYTHING, NOTHING};
use crate::kernel::elect::{self, Part, Rule};
use crate::kernel::thinning::{Keep, Mask, Model, Trim};
use crate::kernel::{
    Job, KEY_MAX, Kept, TILE, VOTERS_MAX, chosen_sums, consensus, masked_sums, tiles, weighted_sum,
};
use crate::recipe::{Foreseen, Machine, Making, Measured, Pass, Recipe, Segments, Threshold, everything};

pub(super) const TASK_ARITHMETIC: Method = Method {
    name: "task_arithmetic",
    summary: "the models' differences to the base, weighted and added to it",
    formula: "out = base + λ·Σ wᵢ·(xᵢ − base)   (normalize: divided by Σ wᵢ)",
    paper: Some(Paper {
        title: "Ilharco et al., Editing models with task arithmetic (ICLR 2023)",
        url: "https://arxiv.org/abs/2212.04089",
    }),
    evidence: Some("the most reliable method of a comparison on language models (arXiv 2511.21437)"),
    by_processor: None,
    base: Base::Required,
    models: 1..=usize::MAX,
    parameters: &const { parameters(false, false) },
    recipe: |settings| recipe(settings, Thinning::None, false),
};

/// The parameters that all members have, with the member's own defaults.
pub(super) const fn parameters(normalize: bool, rescale: bool) -> [Parameter; 9] {
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
        Parameter::or_null(
            "balance",
            "weights are divided by the task vectors' norms to this power, relative to the norms' mean: 1 is NAN (arXiv 2505.16148)",
        ),
        Parameter::or_null(
            "lines_alpha",
            "LiNeS (arXiv 2410.17146): lambda is multiplied by alpha + beta * depth, from alpha at the first layer on",
        ),
        Parameter::or_null(
            "lines_beta",
            "LiNeS: what the last layer has more than the first; 1 - alpha where it is null",
        ),
    ]
}

/// The parameters of a member with one of its own.
pub(super) const fn parameters_and(normalize: bool, rescale: bool, own: Parameter) -> [Parameter; 10] {
    let all = parameters(normalize, rescale);
    [all[0], all[1], own, all[2], all[3], all[4], all[5], all[6], all[7], all[8]]
}

/// How task vectors are thinned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thinning {
    /// Not at all, whatever the density says.
    None,
    /// The largest magnitudes stay.
    Magnitude,
    /// A band of magnitudes stays: the largest go too.
    Outliers,
    /// A random choice stays.
    Random,
    /// A random choice stays, which large magnitudes of a row are more likely to be in.
    Ranked,
}

/// The recipe of a member of the family.
pub(super) fn recipe(settings: &Settings, thinning: Thinning, vote: bool) -> Result<Recipe> {
    if thinning == Thinning::Ranked {
        check_probabilities(settings)?;
    }
    if settings.number_or_null("lines_beta").is_some() && settings.number_or_null("lines_alpha").is_none() {
        return Err(Error::config("lines_beta does nothing without lines_alpha")
            .hint("add `lines_alpha: …`, the factor of the first layer, or leave lines_beta away"));
    }
    let (merge, made) = FamilyMerge::of(settings, thinning, vote);
    if merge.models.is_empty()
        || (!vote && merge.balance.is_none() && !merge.models.iter().any(TaskVector::is_thinned))
    {
        let (reads, job) = merge.weighted_sum();
        return Ok(Recipe::combine(reads, job));
    }
    // Where magnitudes decide, a try may go before, and counting before and after it.
    let selecting = if merge.selects() { 1 + 2 * COUNTING_SWEEPS_MAX * merge.rounds() } else { 0 };
    let sweeps_most = 1 + u32::from(merge.rescale) + u32::from(merge.balance.is_some()) + selecting;
    Ok(Recipe::passes(sweeps_most, Segments::Whole, merge).reading(made))
}

/// Probabilities of being kept, from the smallest magnitude's to the largest's, are probabilities.
fn check_probabilities(settings: &Settings) -> Result<()> {
    for input in settings.non_base() {
        let (density, epsilon) = (settings.number_of(input, "density"), settings.number_of(input, "epsilon"));
        // These are thinned out wholly, or not at all.
        if density <= 0.0 || density >= 1.0 {
            continue;
        }
        let longest = settings.shape.iter().max().copied().unwrap_or(1);
        if u32::try_from(longest).is_err() {
            let problem = format!("a dimension of {longest} elements is too long to rank magnitudes in");
            return Err(Error::config(problem).hint("give this tensor a density of 1 with a filter"));
        }
        if epsilon < 0.0 {
            let problem = Error::config(format!("epsilon {epsilon} is below 0")).about(About::Input(input));
            return Err(problem.hint("0 keeps all magnitudes with the same probability"));
        }
        let (least, most) = (density - epsilon, density + epsilon);
        if least > 0.0 && most < 1.0 {
            continue;
        }
        let problem = format!(
            "density {density} with epsilon {epsilon} keeps elements with probabilities from {least:.4} to {most:.4}, which have to be above 0 and below 1"
        );
        let largest = density.min(1.0 - density);
        let mut hint = format!("with density {density}, epsilon can be from 0 to just below {largest:.4}");
        if epsilon < 0.5 {
            let highest = 1.0 - epsilon;
            hint += &format!(
                "; with epsilon {epsilon}, density has to be above {epsilon} and below {highest:.4}"
            );
        }
        return Err(Error::config(problem).about(About::Input(input)).hint(hint));
    }
    Ok(())
}

/// The merge of one tensor: balance weights, select thresholds, measure norms, combine; steps not needed are left out. Thresholds
/// are proven by what combining kept: guesses and those of an earlier merge may therefore be tried first. What a guess got right
/// of the output stays.
#[expect(clippy::struct_excessive_bools, reason = "each is a parameter of its own, but for the last two")]
#[derive(Clone)]
struct FamilyMerge {
    elements: u64,
    base: usize,
    models: Vec<TaskVector>,
    /// Inputs that are masks, behind the models.
    masks: Vec<usize>,
    /// λ, and the sum of all weights where it divides, those of models that are left out included.
    lambda: f64,
    divisor: f64,
    left_out: Vec<f64>,
    normalize: bool,
    vote: bool,
    rescale: bool,
    /// The power of norms that weights are divided by.
    balance: Option<f64>,
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
    Balancing,
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
    /// How many elements are kept, where magnitudes decide; and how many of the largest are then dropped.
    trimmed_to: Option<u64>,
    outliers: u64,
    /// The threshold above which elements are dropped.
    dropped: Option<Trim>,
    /// The mask that decides, by its place among those.
    mask: Option<usize>,
    /// What brings the thinned vector back to its L1 norm.
    rescale: f64,
}

impl FamilyMerge {
    /// The merge, and the masks that it reads.
    fn of(settings: &Settings, thinning: Thinning, vote: bool) -> (Self, Vec<Making>) {
        let weight = |input| settings.number_of(input, "weight");
        let base = settings.base_input();
        let (mut made, mut models, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for (position, input) in settings.non_base().enumerate() {
            let density = if thinning == Thinning::None { 1.0 } else { settings.number_of(input, "density") };
            let key = masks::mask_key(settings.seed, &settings.tensor, position);
            let mut member = TaskVector::whole(input, weight(input));
            match thinning {
                _ if density >= 1.0 => {}
                _ if density <= 0.0 => {
                    left_out.push(member.weight);
                    continue;
                }
                Thinning::None => {}
                Thinning::Magnitude => member.trimmed_to = Some(top_k::kept(density, settings.elements)),
                Thinning::Outliers => {
                    let (reaches, dropped) =
                        band(density, settings.number_of(input, "gamma"), settings.elements);
                    if reaches == dropped {
                        left_out.push(member.weight);
                        continue;
                    }
                    member.trimmed_to = Some(reaches).filter(|reaches| *reaches < settings.elements);
                    member.outliers = dropped;
                }
                Thinning::Random => {
                    member.keep = Keep::Random(Mask { keep: masks::probability(density), key });
                }
                Thinning::Ranked => {
                    let epsilon = settings.number_of(input, "epsilon");
                    member.mask = Some(made.len());
                    made.push(Making::Ranks { base, model: input, density, epsilon, key });
                }
            }
            models.push(member);
        }
        let thinned = models.iter().any(TaskVector::is_thinned);
        let normalize = settings.flag("normalize");
        let merge = Self {
            elements: settings.elements,
            base,
            masks: (settings.inputs..settings.inputs + made.len()).collect(),
            lambda: settings.number("lambda") * layer_factor(settings),
            divisor: if normalize { divisor(settings.non_base().map(weight)) } else { 1.0 },
            left_out,
            normalize,
            vote,
            rescale: thinned && settings.flag("rescale"),
            balance: settings.number_or_null("balance").filter(|power| *power != 0.0),
            stage: Step::Beginning,
            recalled: false,
            guesses: false,
            guessed: Vec::new(),
            models,
        };
        (merge, made)
    }

    fn reads(&self) -> Vec<usize> {
        std::iter::once(self.base)
            .chain(self.models.iter().map(|m| m.input))
            .chain(self.masks.iter().copied())
            .collect()
    }

    /// Without thinning and vote the merge is a weighted sum around the base.
    fn weighted_sum(&self) -> (Vec<usize>, Job) {
        let solved = |m: &TaskVector| (m.input, (self.lambda * m.weight / self.divisor) as f32);
        let used = self.models.iter().map(solved).filter(|(_, coefficient)| *coefficient != 0.0);
        let (reads, coefficients) = std::iter::once((self.base, 0.0)).chain(used).unzip();
        (reads, weighted_sum::Job { anchored: true, coefficients }.into())
    }

    /// The models that are trimmed, by their places among all that take part: how many elements each keeps, outliers included.
    fn trimmed(&self) -> impl Iterator<Item = (usize, &TaskVector, u64)> {
        let models = self.models.iter().enumerate();
        models.filter_map(|(place, member)| Some((place, member, member.trimmed_to?)))
    }

    /// The same of those whose outliers are dropped: how many.
    fn banded(&self) -> impl Iterator<Item = (usize, &TaskVector, u64)> {
        let models = self.models.iter().enumerate().filter(|(_, member)| member.outliers > 0);
        models.map(|(place, member)| (place, member, member.outliers))
    }

    fn selects(&self) -> bool {
        self.models.iter().any(TaskVector::is_selected)
    }

    /// Whether something else than magnitudes from above decides, which few kernels know.
    fn chooses(&self) -> bool {
        !self.masks.is_empty() || self.banded().next().is_some()
    }

    /// So many passes ask for all thresholds once.
    fn rounds(&self) -> u32 {
        (self.trimmed().count() + self.banded().count()).div_ceil(VOTERS_MAX) as u32
    }

    /// How many elements are to be kept of which inputs, then of which how many are outliers.
    fn selection(&self) -> TopK {
        let wanted: Vec<(usize, u64)> =
            self.trimmed().chain(self.banded()).map(|(_, m, kept)| (m.input, kept)).collect();
        TopK::new(self.elements, self.base, wanted.into_iter())
    }

    /// Goes on selecting.
    fn select(&mut self, mut selection: TopK, measured: Measured) -> Pass {
        if let Some(pass) = selection.next(measured) {
            self.stage = Step::Selecting(selection);
            return pass;
        }
        let mut trims = selection.trims();
        let trimmed = self.models.iter_mut().filter(|m| m.trimmed_to.is_some());
        trimmed.zip(&mut trims).for_each(|(member, trim)| member.keep = Keep::Trim(trim));
        let banded = self.models.iter_mut().filter(|m| m.outliers > 0);
        banded.zip(trims).for_each(|(member, trim)| member.dropped = Some(trim));
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

    /// The first pass that thins out, or the one that combines.
    fn begin(&mut self) -> Pass {
        if self.recalled || !self.selects() { self.measure_norms() } else { self.select_anew() }
    }

    /// Selects from the beginning.
    fn select_anew(&mut self) -> Pass {
        self.recalled = false;
        // Norms are measured with the true thresholds, and what a band keeps does not prove two of them.
        let guesses = self.guesses && !self.rescale && !self.chooses();
        let selection = self.selection();
        self.select(if guesses { selection.guessing() } else { selection }, Measured::Nothing)
    }

    /// Goes on with the norms, if they are needed.
    fn measure_norms(&mut self) -> Pass {
        if !self.rescale {
            return self.combine();
        }
        self.stage = Step::Norms;
        self.measure(self.norms())
    }

    /// Measures what is kept of the task vectors.
    fn norms(&self) -> Job {
        if self.chooses() {
            return self.chosen_sums(TaskVector::choice);
        }
        masked_sums::Job { models: self.models.iter().map(|m| m.keep).collect() }.into()
    }

    fn chosen_sums(&self, choice: impl Fn(&TaskVector) -> Choice) -> Job {
        let models = self.models.iter().map(choice).collect();
        chosen_sums::Job { models, selectors: self.masks.len() }.into()
    }

    fn measure(&self, job: Job) -> Pass {
        Pass::Measure { reads: self.reads(), job, by: Segments::Whole, over: everything(self.elements) }
    }

    /// The first input whose selection is not proven by what was kept, with what was kept and what should be.
    fn refuted(&self, kept: &Kept) -> Option<(usize, u64, u64)> {
        let refuted = |(place, member): (usize, &TaskVector)| {
            let k = member.trimmed_to.unwrap_or(self.elements) - member.outliers;
            // Where a threshold is 0, zeros are kept or not, and either is right.
            let is_proven = match member.dropped {
                None => top_k::proves(kept[place], k, member.trim()?),
                Some(dropped) => {
                    kept[place] == k
                        || dropped.threshold == 0
                        || member.trim().is_some_and(|t| t.threshold == 0)
                }
            };
            (!is_proven).then_some((member.input, kept[place], k))
        };
        self.models.iter().enumerate().take(kept.len()).find_map(refuted)
    }

    /// Divides weights by powers of the norms, which are given by their squares behind two other sums.
    fn take_balance(&mut self, sums: &[f64]) {
        let power = self.balance.expect("norms were measured for it");
        let factor = |sums: &[f64]| {
            // A task vector of 0 changes nothing, whatever its weight.
            (sums[2] > 0.0).then(|| libm::pow(sums[2].sqrt(), -power))
        };
        let factors: Vec<Option<f64>> = sums.chunks_exact(3).map(factor).collect();
        let known = || factors.iter().flatten();
        let mean = known().sum::<f64>() / known().count() as f64;
        for (member, factor) in self.models.iter_mut().zip(&factors) {
            member.weight *= factor.map_or(1.0, |factor| factor / mean);
        }
        if self.normalize {
            self.divisor = divisor(self.models.iter().map(|m| m.weight).chain(self.left_out.iter().copied()));
        }
    }

    fn take_norms(&mut self, sums: &[f64]) {
        /// A norm below this is too small to divide by.
        const SMALLEST_NORM: f64 = 1e-7;
        let words = sums.len() / self.models.len();
        for (member, norms) in self.models.iter_mut().zip(sums.chunks_exact(words)) {
            let [all, kept] = [norms[0], norms[1]];
            member.rescale = 1.0;
            if member.is_thinned() && !(all < SMALLEST_NORM || kept < SMALLEST_NORM) {
                member.rescale = all / kept;
            }
        }
    }

    fn combine(&mut self) -> Pass {
        self.stage = Step::Combining;
        Pass::Combine { reads: self.reads(), job: self.combination() }
    }

    fn combination(&self) -> Job {
        let factor = if self.vote { 1.0 } else { self.lambda / self.divisor };
        let coefficient = |m: &TaskVector| (m.weight * m.rescale * factor) as f32;
        let scale = if self.vote { self.scale() } else { Vec::new() };
        if self.chooses() {
            let part = |m: &TaskVector| Part { coefficient: coefficient(m), share: 1.0, choice: m.choice() };
            let models = self.models.iter().map(part).collect();
            let rule = if self.vote { Rule::Signs(scale) } else { Rule::Sum };
            return elect::Job { models, selectors: self.masks.len(), rule }.into();
        }
        let model = |m: &TaskVector| Model { coefficient: coefficient(m), keep: m.keep };
        consensus::Job { models: self.models.iter().map(model).collect(), scale }.into()
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
    /// All of an input's task vector.
    fn whole(input: usize, weight: f64) -> Self {
        Self {
            input,
            weight,
            keep: Keep::All,
            trimmed_to: None,
            outliers: 0,
            dropped: None,
            mask: None,
            rescale: 1.0,
        }
    }

    /// Whether magnitudes decide.
    fn is_selected(&self) -> bool {
        self.trimmed_to.is_some() || self.outliers > 0
    }

    /// Whether some elements do not take part.
    fn is_thinned(&self) -> bool {
        self.is_selected() || self.mask.is_some() || self.keep != Keep::All
    }

    /// What takes part, as far as it is known. Random choices without a mask are left to [`Keep`].
    fn choice(&self) -> Choice {
        match (self.mask, self.dropped, self.keep) {
            // What is not 0 is kept.
            (Some(selector), ..) => Choice::By { selector, trim: Trim::new(0, 0), dropped: NOTHING },
            (None, Some(dropped), keep) => {
                let kept = if let Keep::Trim(trim) = keep { trim } else { EVERYTHING };
                Choice::Band { kept, dropped }
            }
            (None, None, Keep::Trim(trim)) => Choice::Trim(trim),
            (None, None, _) => Choice::All,
        }
    }

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
        let selects = !self.recalled && self.selects();
        let mut foreseen = if selects { self.selection().foreseen() } else { Vec::new() };
        let reads = self.reads();
        if self.balance.is_some() {
            foreseen.push(Foreseen::new(&reads, self.chosen_sums(|_| Choice::All)));
        }
        if self.rescale {
            foreseen.push(Foreseen::new(&reads, self.norms()));
        }
        foreseen.push(Foreseen::new(&reads, self.combination()));
        foreseen
    }

    fn next(&mut self, measured: Measured) -> Result<Option<Pass>> {
        Ok(Some(match std::mem::replace(&mut self.stage, Step::Done) {
            Step::Beginning if self.balance.is_some() => {
                self.stage = Step::Balancing;
                self.measure(self.chosen_sums(|_| Choice::All))
            }
            Step::Beginning => self.begin(),
            Step::Balancing => {
                self.take_balance(&measured.sums());
                self.begin()
            }
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
        if self.chooses() {
            return;
        }
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
        if self.chooses() {
            return Vec::new();
        }
        let threshold = |(_, member, kept): (usize, &TaskVector, u64)| {
            Some(Threshold { input: member.input, kept, trim: member.trim()? })
        };
        self.trimmed().filter_map(threshold).collect()
    }
}

/// What λ is multiplied with in a tensor's layer: `alpha + beta · depth`, where it is configured (arXiv 2410.17146).
fn layer_factor(settings: &Settings) -> f64 {
    let Some(alpha) = settings.number_or_null("lines_alpha") else { return 1.0 };
    alpha + settings.number_or_null("lines_beta").unwrap_or(1.0 - alpha) * settings.depth
}

/// How many of the largest magnitudes a band reaches down to, and how many of these it leaves out, of so many: a share `density`
/// is kept and the share `gamma` of the largest dropped, or fewer where the two are more than all.
fn band(density: f64, gamma: f64, elements: u64) -> (u64, u64) {
    let share = |of: f64| (of * elements as f64) as u64;
    let kept = share(density).min(elements);
    let reaches = (kept + share(gamma)).min(elements);
    (reaches, reaches - kept)
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
