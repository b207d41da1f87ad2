//! What is added up, of a tensor and of many, and the measures that follow from it.
//!
//! A column is a model of the merge; the base is one of them. Pairs of columns stand in the order (0, 1), (0, 2), (1, 2), (0, 3), …

use super::elements::Signs;

/// The place of a pair of columns, the first of which is the smaller one.
pub fn pair(first: usize, second: usize) -> usize {
    debug_assert!(first < second);
    second * (second - 1) / 2 + first
}

/// All pairs of so many columns, in the order of their places.
pub fn pairs(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..columns).flat_map(|second| (0..second).map(move |first| (first, second)))
}

/// A quotient; nothing over 0 is nothing.
fn over(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

/// A model, or its task vector, by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct One {
    /// Elements that it has.
    pub elements: u64,
    /// The sum of their squares.
    pub squares: f64,
    /// Of a model: elements that are NaN or infinite, which are left out of everything.
    pub not_finite: u64,
}

/// A task vector by itself, beyond that.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Task {
    /// Its elements and their squares.
    pub one: One,
    /// The sum of the squares of the base's elements.
    pub base_squares: f64,
    /// The sum of its magnitudes.
    pub mass: f64,
    /// Elements that are 0.
    pub zeros: u64,
    /// The largest magnitude.
    pub largest: f32,
    /// Its inner product with the weighted sum of all task vectors, times its weight.
    pub pull: f64,
    /// Elements that trimming keeps, as far as a sample shows.
    pub kept: f64,
}

/// Two models.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pair {
    /// Elements that both have.
    pub elements: u64,
    /// The sums of their squares.
    pub squares: [f64; 2],
    /// Their inner product.
    pub dot: f64,
    /// The square of the distance of their spherical interpolation from the linear one.
    pub apart_squares: f64,
    /// The square of the spherical interpolation.
    pub slerp_squares: f64,
}

/// Two task vectors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TaskPair {
    /// Elements that both have.
    pub elements: u64,
    /// The sums of their squares.
    pub squares: [f64; 2],
    /// Their inner product.
    pub dot: f64,
    /// How their signs go together.
    pub(super) signs: Signs,
    /// Elements that trimming keeps of each and of both, and that it would keep of both if it chose independently.
    pub kept: [f64; 2],
    /// Of both.
    pub kept_both: f64,
    /// Of both, by chance.
    pub by_chance: f64,
}

/// All task vectors of tensors together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Vote {
    /// Elements.
    pub elements: u64,
    /// Sides of the vote, of whole task vectors with equal weights.
    pub(super) signs: Signs,
    /// The mass of what trimming keeps, with the config's weights.
    pub kept_mass: f64,
    /// What of it is outvoted.
    pub kept_outvoted: f64,
    /// The square of the weighted sum of all task vectors.
    pub merged_squares: f64,
}

/// What is added up.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// Tensors.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Each column.
    pub models: Vec<One>,
    /// The task vector of each column; that of the base stays empty.
    pub tasks: Vec<Task>,
    /// Each pair of columns.
    pub pairs: Vec<Pair>,
    /// The task vectors of each pair.
    pub task_pairs: Vec<TaskPair>,
    /// All task vectors.
    pub vote: Vote,
}

impl Sums {
    pub(super) fn new(columns: usize) -> Self {
        let pairs = columns * columns.saturating_sub(1) / 2;
        Self {
            tensors: 0,
            elements: 0,
            models: vec![One::default(); columns],
            tasks: vec![Task::default(); columns],
            pairs: vec![Pair::default(); pairs],
            task_pairs: vec![TaskPair::default(); pairs],
            vote: Vote::default(),
        }
    }

    /// Adds those of other tensors.
    pub(super) fn add(&mut self, other: &Self) {
        self.tensors += other.tensors;
        self.elements += other.elements;
        self.models.iter_mut().zip(&other.models).for_each(|(sum, other)| sum.add(other));
        self.tasks.iter_mut().zip(&other.tasks).for_each(|(sum, other)| sum.add(other));
        self.pairs.iter_mut().zip(&other.pairs).for_each(|(sum, other)| sum.add(other));
        self.task_pairs.iter_mut().zip(&other.task_pairs).for_each(|(sum, other)| sum.add(other));
        self.vote.add(&other.vote);
    }

    /// The share of each task vector in the square of their weighted sum; where some work against it, less than 0.
    pub fn pull(&self, column: usize) -> Option<f64> {
        over(self.tasks[column].pull, self.vote.merged_squares)
    }
}

impl One {
    fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.squares += other.squares;
        self.not_finite += other.not_finite;
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.squares.sqrt()
    }
}

impl Task {
    fn add(&mut self, other: &Self) {
        self.one.add(&other.one);
        self.base_squares += other.base_squares;
        self.mass += other.mass;
        self.zeros += other.zeros;
        self.largest = self.largest.max(other.largest);
        self.pull += other.pull;
        self.kept += other.kept;
    }

    /// The norm over that of the base.
    pub fn relative(&self) -> Option<f64> {
        over(self.one.squares, self.base_squares).map(f64::sqrt)
    }

    /// The share of elements that are 0.
    pub fn zero_share(&self) -> Option<f64> {
        over(self.zeros as f64, self.one.elements as f64)
    }
}

/// The cosine of two vectors, from their inner products.
fn cosine(dot: f64, squares: [f64; 2]) -> Option<f64> {
    over(dot, (squares[0] * squares[1]).sqrt()).map(|cosine| cosine.clamp(-1.0, 1.0))
}

impl Pair {
    fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.squares = [0, 1].map(|i| self.squares[i] + other.squares[i]);
        self.dot += other.dot;
        self.apart_squares += other.apart_squares;
        self.slerp_squares += other.slerp_squares;
    }

    /// The cosine of the two models as vectors.
    pub fn cosine(&self) -> Option<f64> {
        cosine(self.dot, self.squares)
    }

    /// How far the spherical interpolation of each tensor is from the linear one, over its norm.
    pub fn slerp_from_lerp(&self) -> Option<f64> {
        over(self.apart_squares, self.slerp_squares).map(f64::sqrt)
    }
}

impl Signs {
    pub(super) fn add(&mut self, other: &Self) {
        self.both += other.both;
        self.disagree += other.disagree;
        self.mass += other.mass;
        self.mass_disagree += other.mass_disagree;
        self.outvoted += other.outvoted;
    }
}

impl TaskPair {
    fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.squares = [0, 1].map(|i| self.squares[i] + other.squares[i]);
        self.dot += other.dot;
        self.signs.add(&other.signs);
        self.kept = [0, 1].map(|i| self.kept[i] + other.kept[i]);
        self.kept_both += other.kept_both;
        self.by_chance += other.by_chance;
    }

    /// The cosine of the two task vectors.
    pub fn cosine(&self) -> Option<f64> {
        cosine(self.dot, self.squares)
    }

    /// The share of elements at which neither is 0.
    pub fn both_share(&self) -> Option<f64> {
        over(self.signs.both as f64, self.elements as f64)
    }

    /// The share of elements at which both are not 0 and their signs differ.
    pub fn disagree_share(&self) -> Option<f64> {
        over(self.signs.disagree as f64, self.elements as f64)
    }

    /// The share of their magnitudes that lies at those.
    pub fn mass_disagree_share(&self) -> Option<f64> {
        over(self.signs.mass_disagree, self.signs.mass)
    }

    /// What trimming keeps of both over what it keeps of either (Jaccard).
    pub fn overlap(&self) -> Option<f64> {
        over(self.kept_both, self.kept[0] + self.kept[1] - self.kept_both)
    }

    /// The same if it chose the elements of each independently of the other.
    pub fn overlap_by_chance(&self) -> Option<f64> {
        over(self.by_chance, self.kept[0] + self.kept[1] - self.by_chance)
    }

    /// The share of what trimming keeps of one that it keeps of the other too.
    pub fn kept_too(&self, which: usize) -> Option<f64> {
        over(self.kept_both, self.kept[which])
    }
}

impl Vote {
    fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.signs.add(&other.signs);
        self.kept_mass += other.kept_mass;
        self.kept_outvoted += other.kept_outvoted;
        self.merged_squares += other.merged_squares;
    }

    /// The share of elements at which two task vectors are not 0 and their signs differ.
    pub fn disagree_share(&self) -> Option<f64> {
        over(self.signs.disagree as f64, self.elements as f64)
    }

    /// The share of the magnitudes that lies at those.
    pub fn mass_disagree_share(&self) -> Option<f64> {
        over(self.signs.mass_disagree, self.signs.mass)
    }

    /// The share of the magnitudes that has the sign of the smaller side of its element.
    pub fn outvoted_share(&self) -> Option<f64> {
        over(self.signs.outvoted, self.signs.mass)
    }

    /// The same of what trimming keeps, with the config's weights.
    pub fn kept_outvoted_share(&self) -> Option<f64> {
        over(self.kept_outvoted, self.kept_mass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_have_the_places_of_their_order() {
        for columns in 0..6 {
            let places: Vec<usize> = pairs(columns).map(|(first, second)| pair(first, second)).collect();
            assert_eq!(places, (0..Sums::new(columns).pairs.len()).collect::<Vec<_>>());
        }
    }
}
