//! What the numbers say, as sentences: each with its number and the threshold that it rests on, and the opposite where that is not
//! reached. Nothing here says that a merge will be good.

use super::sums::{Sums, Task};
use super::{Analysis, Group, predictions};
use crate::method::draws_masks;
use crate::page::digits;
use crate::text::escaped;

/// From this cosine on, models are called collinear. At 0.98 (11 degrees) the arc between them is 0.5 % longer than the chord at most.
pub const COLLINEAR: f64 = 0.98;
/// Below this |cosine|, task vectors are called orthogonal: less than 1 % of the square of one lies along the other.
pub const ORTHOGONAL: f64 = 0.1;
/// From this share of outvoted magnitudes on, an election of signs is called effective.
pub const OUTVOTED: f64 = 0.05;
/// From this factor on, the norms of task vectors are called unequal.
pub const UNEQUAL: f64 = 2.0;
/// From this share of exact zeros on, a task vector is called sparse.
pub const SPARSE: f64 = 0.1;
/// From this factor over chance on, trimming is said to keep the same elements of two task vectors.
pub const SAME_ELEMENTS: f64 = 1.5;
/// From this factor over the median on, a layer or a kind of module is said to stand out.
pub const STANDS_OUT: f64 = 2.0;
/// So many that stand out are named.
const NAMED_MAX: usize = 4;

/// A sentence and what it rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What it is about, in one word.
    pub about: &'static str,
    /// The number.
    pub value: f64,
    /// The threshold, where there is one.
    pub threshold: Option<f64>,
    /// Whether the number reaches it: from there on, or, of `orthogonal`, below.
    pub holds: bool,
    /// All of it in words.
    pub text: String,
}

/// A share in words.
pub fn percent(share: f64) -> String {
    format!("{} %", digits(100.0 * share))
}

/// A cosine, with the digits that tell it from 1.
pub fn cosine(value: f64) -> String {
    if (0.9995..1.0).contains(&value.abs()) { format!("{value:.6}") } else { format!("{value:.3}") }
}

/// A threshold that is a share, in words.
fn bound(share: f64) -> String {
    format!("{} %", (100.0 * share).round())
}

fn finding(about: &'static str, value: f64, threshold: f64, holds: bool, text: String) -> Finding {
    Finding { about, value, threshold: Some(threshold), holds, text }
}

/// What a finding on trimming has to add where the method drops elements at random.
fn at_random(analysis: &Analysis) -> String {
    let name = analysis.method.name;
    if !draws_masks(name) {
        return String::new();
    }
    let how =
        if name.starts_with("della") { "small ones more often than large ones" } else { "large or small" };
    format!(" That is trimming by magnitude; {name} drops elements at random, {how}.")
}

/// The findings, in the order of the questions that people ask.
pub fn findings(analysis: &Analysis) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(not_finite(analysis));
    found.extend(collinear(analysis));
    if analysis.columns.base.is_none() {
        found.push(Finding {
            about: "base",
            value: 0.0,
            threshold: None,
            holds: false,
            text: "The config has no base model whose tensors are merged: there are no task vectors to measure. They are where \
                   base_model names what the models were trained from, with a method that takes one, like `ties`."
                .into(),
        });
        found.extend(predictions::findings(analysis));
        return found;
    }
    found.extend(unchanged(analysis));
    found.extend(orthogonal(analysis));
    found.extend(conflict(analysis));
    found.extend(norms(analysis));
    found.extend(overlap(analysis));
    found.extend(sparse(analysis));
    found.extend(standing_out(analysis, "layers", "layer", &analysis.layers));
    found.extend(standing_out(analysis, "kinds", "kind of module", &analysis.kinds));
    found.extend(predictions::findings(analysis));
    found
}

fn name(analysis: &Analysis, column: usize) -> String {
    escaped(analysis.columns.short(column))
}

fn both(analysis: &Analysis, (a, b): (usize, usize)) -> String {
    format!("{} and {}", name(analysis, a), name(analysis, b))
}

fn not_finite(analysis: &Analysis) -> Option<Finding> {
    let bad: Vec<(usize, u64)> = analysis.not_finite().collect();
    let tensors = |column: usize| {
        let has = |tensor: &&super::Tensor| tensor.sums.models[column].not_finite > 0;
        let first = analysis.tensors.iter().find(has).map_or(String::new(), |tensor| escaped(&tensor.name));
        (analysis.tensors.iter().filter(has).count(), first)
    };
    let of = |(column, count): &(usize, u64)| {
        let (tensors, first) = tensors(*column);
        format!(
            "{} has {count} in {tensors} of its tensors, the first of them {first}",
            name(analysis, *column)
        )
    };
    (!bad.is_empty()).then(|| Finding {
        about: "not_finite",
        value: bad.iter().map(|(_, count)| *count as f64).sum(),
        threshold: None,
        holds: true,
        text: format!(
            "There are elements that are NaN or infinite: {}. They are left out of all numbers here.",
            bad.iter().map(of).collect::<Vec<_>>().join("; ")
        ),
    })
}

/// Where SLERP is LERP.
fn collinear(analysis: &Analysis) -> Option<Finding> {
    let sums = &analysis.whole.sums;
    let pairs = analysis.columns.pairs();
    let of = |&(a, b): &(usize, usize)| Some(((a, b), sums.pairs[super::pair(a, b)].cosine()?));
    let ((a, b), least) = pairs.iter().filter_map(of).min_by(|one, other| one.1.total_cmp(&other.1))?;
    let place = super::pair(a, b);
    let differ = sums.pairs[place].slerp_from_lerp()?;
    let most = analysis
        .tensors
        .iter()
        .filter_map(|tensor| Some((tensor, tensor.sums.pairs[place].slerp_from_lerp()?)));
    let most = most.max_by(|one, other| one.1.total_cmp(&other.1));
    let most = most.map_or(String::new(), |(tensor, share)| {
        format!(", and by {} in {}, where it is most", percent(share), escaped(&tensor.name))
    });
    let holds = least >= COLLINEAR;
    let (word, bound) = if holds { ("nearly collinear", "at least") } else { ("not collinear", "below") };
    let whose = match pairs.len() {
        1 => format!("The weights of {} are", both(analysis, (a, b))),
        count => format!(
            "Of {count} pairs of models, {} are the least alike: their weights are",
            both(analysis, (a, b))
        ),
    };
    let text = format!(
        "{whose} {word} (cosine {}, {bound} {COLLINEAR}). Their spherical interpolation (SLERP) differs from the linear one by {} of its norm \
         at {}{most}.",
        cosine(least),
        percent(differ),
        analysis.place_in_words(),
    );
    Some(finding("collinear", least, COLLINEAR, holds, text))
}

fn unchanged(analysis: &Analysis) -> Vec<Finding> {
    let base = analysis.columns.base.map_or(String::new(), |base| name(analysis, base));
    let of = |column: usize| {
        let task = &analysis.whole.sums.tasks[column];
        (task.one.elements > 0 && task.one.squares == 0.0).then(|| Finding {
            about: "unchanged",
            value: 0.0,
            threshold: None,
            holds: true,
            text: format!("{} is {base} in every element that is merged.", name(analysis, column)),
        })
    };
    analysis.columns.tasks().into_iter().filter_map(of).collect()
}

fn orthogonal(analysis: &Analysis) -> Option<Finding> {
    let pairs = analysis.columns.task_pairs();
    let of = |&(a, b): &(usize, usize)| {
        let cosine = analysis.whole.sums.task_pairs[super::pair(a, b)].cosine()?;
        Some(((a, b), cosine))
    };
    let (most, value) =
        pairs.iter().filter_map(of).max_by(|one, other| one.1.abs().total_cmp(&other.1.abs()))?;
    let holds = value.abs() < ORTHOGONAL;
    let whose = match pairs.len() {
        1 => format!("The task vectors of {} are", both(analysis, most)),
        count if holds => {
            format!("Of {count} pairs of task vectors even those of {} are", both(analysis, most))
        }
        count => format!(
            "Of {count} pairs of task vectors, those of {} are furthest from it: they are",
            both(analysis, most)
        ),
    };
    let of_kind = |kind: &Group| {
        let cosine = kind.sums.task_pairs[super::pair(most.0, most.1)].cosine()?;
        Some((escaped(&kind.name), cosine))
    };
    let mut kinds: Vec<(String, f64)> = analysis.kinds.iter().filter_map(of_kind).collect();
    kinds.sort_by(|one, other| one.1.total_cmp(&other.1));
    let range = match &kinds[..] {
        [(least, low), .., (most, high)] => {
            format!(" By kind of module the cosine goes from {low:.3} ({least}) to {high:.3} ({most}).")
        }
        _ => String::new(),
    };
    let text = if holds {
        format!(
            "{whose} nearly orthogonal (cosine {value:.3}, its magnitude below {ORTHOGONAL}): in sum over all elements neither adds to \
             the other nor takes from it. That says nothing of the signs of single elements.{range}"
        )
    } else {
        let way = if value > 0.0 { "in part the same change" } else { "in part opposite changes" };
        format!(
            "{whose} not orthogonal (cosine {value:.3}, its magnitude at least {ORTHOGONAL}): they are {way}.{range}"
        )
    };
    Some(finding("orthogonal", value.abs(), ORTHOGONAL, holds, text))
}

fn conflict(analysis: &Analysis) -> Option<Finding> {
    let vote = &analysis.whole.sums.vote;
    let value = vote.kept_outvoted_share().filter(|_| analysis.columns.tasks().len() > 1)?;
    let holds = value >= OUTVOTED;
    let (bound, so) = if holds {
        ("at least", "an election of signs, as in TIES, takes that much out")
    } else {
        ("below", "an election of signs, as in TIES, has little to resolve")
    };
    let text = format!(
        "Task vectors disagree in sign at {} of the elements, where {} of their magnitudes lie. Of what trimming keeps at {}, with the \
         config's weights, {} is outvoted ({bound} {}): {so}.{}",
        percent(vote.disagree_share()?),
        percent(vote.mass_disagree_share()?),
        analysis.density_in_words(),
        percent(value),
        self::bound(OUTVOTED),
        at_random(analysis),
    );
    Some(finding("conflict", value, OUTVOTED, holds, text))
}

fn norms(analysis: &Analysis) -> Option<Finding> {
    let sums = &analysis.whole.sums;
    let mut tasks: Vec<(usize, f64)> =
        analysis.columns.tasks().into_iter().map(|column| (column, sums.tasks[column].one.norm())).collect();
    tasks.sort_by(|one, other| other.1.total_cmp(&one.1));
    let (&(largest, most), &(smallest, least)) = (tasks.first()?, tasks.last()?);
    if tasks.len() < 2 || least == 0.0 {
        return None;
    }
    let factor = most / least;
    let holds = factor >= UNEQUAL;
    let share = sums.pull(largest).map_or(String::new(), |share| {
        format!(
            " With the config's weights {} makes {} of the square of their weighted sum, before anything is trimmed.",
            name(analysis, largest),
            percent(share)
        )
    });
    let text = format!(
        "The task vectors {} in norm: that of {} is {} times that of {} ({} {UNEQUAL}).{share}",
        if holds { "differ" } else { "are alike" },
        name(analysis, largest),
        digits(factor),
        name(analysis, smallest),
        if holds { "at least" } else { "below" },
    );
    Some(finding("norms", factor, UNEQUAL, holds, text))
}

fn overlap(analysis: &Analysis) -> Option<Finding> {
    let of = |pair: (usize, usize)| {
        let of = &analysis.whole.sums.task_pairs[super::pair(pair.0, pair.1)];
        let (found, chance) = (of.overlap()?, of.overlap_by_chance().filter(|chance| *chance > 0.0)?);
        Some((pair, found, chance, [of.kept_too(0)?, of.kept_too(1)?]))
    };
    let pairs = analysis.columns.task_pairs();
    let found = pairs.into_iter().filter_map(of);
    let (pair, jaccard, chance, [of_first, of_second]) =
        found.max_by(|one, other| (one.1 / one.2).total_cmp(&(other.1 / other.2)))?;
    let factor = jaccard / chance;
    let holds = factor >= SAME_ELEMENTS;
    let (bound, so) = if holds {
        ("at least", "large changes lie at the same places")
    } else {
        ("below", "large changes lie at the same places hardly more often than by chance")
    };
    let text = format!(
        "Of the elements that trimming keeps of {} or {} at {}, it keeps {} of both, {} times as many as by chance ({bound} \
         {SAME_ELEMENTS}): {so}. Of what it keeps of the first, it keeps {} of the second too, and {} the other way.{}",
        name(analysis, pair.0),
        name(analysis, pair.1),
        analysis.density_in_words(),
        percent(jaccard),
        digits(factor),
        percent(of_first),
        percent(of_second),
        at_random(analysis),
    );
    Some(finding("overlap", factor, SAME_ELEMENTS, holds, text))
}

fn sparse(analysis: &Analysis) -> Option<Finding> {
    let share = |column: usize| Some((column, analysis.whole.sums.tasks[column].zero_share()?));
    let shares: Vec<(usize, f64)> = analysis.columns.tasks().into_iter().filter_map(share).collect();
    let most = shares.iter().map(|(_, share)| *share).max_by(f64::total_cmp)?;
    let holds = most >= SPARSE;
    let list =
        shares.iter().map(|(column, share)| format!("{} of {}", percent(*share), name(analysis, *column)));
    let list = list.collect::<Vec<_>>().join(", ");
    let text = if holds {
        format!(
            "Elements that a model did not change, exact zeros of its task vector: {list} (at least {}). Trimming to a density above \
             what is left changes nothing there.{}",
            bound(SPARSE),
            at_random(analysis)
        )
    } else {
        format!("Few elements are unchanged, exact zeros of a task vector: {list} (below {}).", bound(SPARSE))
    };
    Some(finding("zeros", most, SPARSE, holds, text))
}

/// Groups of which some model changes much more than it changes most.
fn standing_out(
    analysis: &Analysis,
    about: &'static str,
    what: &'static str,
    groups: &[Group],
) -> Option<Finding> {
    let relative = |sums: &Sums, column: usize| Task::relative(&sums.tasks[column]);
    let mut found = Vec::new();
    for column in analysis.columns.tasks() {
        let changes: Vec<(&Group, f64)> =
            groups.iter().filter_map(|group| Some((group, relative(&group.sums, column)?))).collect();
        let mut sorted: Vec<f64> = changes.iter().map(|(_, change)| *change).collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().filter(|median| *median > 0.0);
        // Of two neither is usual.
        let Some(median) = median.filter(|_| changes.len() > 2) else { continue };
        found.extend(changes.into_iter().map(|(group, change)| (group, column, change / median)));
    }
    found.sort_by(|one, other| other.2.total_cmp(&one.2));
    let most = found.first()?.2;
    let holds = most >= STANDS_OUT;
    let named: Vec<String> = found
        .iter()
        .take_while(|(.., factor)| *factor >= STANDS_OUT)
        .map(|(group, column, factor)| {
            let group = escaped(&group.name);
            let group = if about == "layers" { format!("layer {group}") } else { group };
            format!("{group} by {} ({} times)", name(analysis, *column), digits(*factor))
        })
        .collect();
    let text = if holds {
        let more = named.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        format!(
            "Changed at least {STANDS_OUT} times as much, relative to the base, as the median {what} is: {}{more}.",
            named[..named.len().min(NAMED_MAX)].join(", ")
        )
    } else {
        format!(
            "No {what} is changed {STANDS_OUT} times as much, relative to the base, as the median one is (at most {} times).",
            digits(most)
        )
    };
    Some(finding(about, most, STANDS_OUT, holds, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::sums::{One, Pair, Task, TaskPair, Vote};
    use crate::analyze::{Column, Columns, Tensor};
    use crate::method;

    /// What a test plants of a merge of two models and their base.
    #[derive(Clone, Copy)]
    struct Planted {
        /// The cosines of models and of task vectors.
        cosines: [f64; 2],
        /// The norm of the second task vector; that of the first is 1.
        norm: f64,
        outvoted: f64,
        zeros: u64,
        /// Elements that trimming keeps of both; it keeps 200 of 1000 of each, and 40 of both by chance.
        kept_both: f64,
        /// How much the last of three layers is changed; the others are changed by 1.
        last: f64,
    }

    const USUAL: Planted =
        Planted { cosines: [0.99, 0.05], norm: 1.5, outvoted: 0.02, zeros: 10, kept_both: 40.0, last: 1.0 };

    fn analysis(planted: Planted) -> Analysis {
        let Planted { cosines: [weights, tasks], norm, outvoted, zeros, kept_both, last } = planted;
        let mut sums = Sums::new(3);
        let one = |squares: f64| One { elements: 1000, squares, not_finite: 0 };
        let task = |squares: f64, zeros| Task {
            one: one(squares),
            base_squares: 100.0,
            zeros,
            pull: squares,
            ..Task::default()
        };
        sums.models = vec![one(100.0); 3];
        sums.tasks = vec![task(1.0, 0), task(norm * norm, zeros), Task::default()];
        sums.pairs[0] = Pair {
            elements: 1000,
            squares: [100.0; 2],
            dot: 100.0 * weights,
            apart_squares: 1e-4,
            slerp_squares: 1.0,
        };
        sums.task_pairs[0] = TaskPair {
            elements: 1000,
            squares: [1.0, norm * norm],
            dot: tasks * norm,
            kept: [200.0; 2],
            kept_both,
            by_chance: 40.0,
            ..TaskPair::default()
        };
        let signs = crate::analyze::elements::Signs {
            both: 1000,
            disagree: 250,
            mass: 1.0,
            mass_disagree: 0.3,
            outvoted,
        };
        let (kept_mass, kept_outvoted, merged_squares) = (1.0, outvoted, 1.0 + norm * norm);
        sums.vote = Vote { elements: 1000, signs, kept_mass, kept_outvoted, merged_squares };
        let layer = |name: &str, change: f64| {
            let mut sums = sums.clone();
            sums.tasks[0].one.squares = change * change;
            Group { name: name.into(), sums, members: vec![0] }
        };
        let column = |name: &str| Column { name: name.into(), short: name.into() };
        let layers = vec![layer("0", 1.0), layer("1", 1.0), layer("2", last)];
        let tensor = Tensor {
            name: "w".into(),
            layer: Some(0),
            kind: 0,
            sums: sums.clone(),
            sample: 1000,
            points: vec![Vec::new(); 3],
        };
        Analysis {
            method: method::find("ties").unwrap(),
            columns: Columns { columns: ["a", "b", "base"].map(column).into(), base: Some(2) },
            tensors: vec![tensor],
            layers,
            kinds: vec![layer("w", 1.0)],
            whole: Group { name: "all".into(), sums, members: vec![0] },
            ranks: Vec::new(),
            densities: (0.2, 0.2, true),
            predictions: Vec::new(),
            places: (0.5, 0.5),
            not_compared: 0,
        }
    }

    type Change = fn(&mut Planted, f64);

    /// Each finding holds on one side of its threshold, and says the opposite on the other.
    #[test]
    fn findings_turn_at_their_thresholds() {
        let with = |change: &dyn Fn(&mut Planted)| {
            let mut planted = USUAL;
            change(&mut planted);
            findings(&analysis(planted))
        };
        let cases: [(&str, Change, [f64; 2], [&str; 2]); 7] = [
            (
                "collinear",
                |p, x| p.cosines[0] = x,
                [0.9799, 0.9801],
                ["not collinear (cosine 0.980, below", "nearly collinear"],
            ),
            (
                "orthogonal",
                |p, x| p.cosines[1] = -x,
                [0.101, 0.099],
                ["in part opposite changes", "nearly orthogonal (cosine -0.099"],
            ),
            (
                "conflict",
                |p, x| p.outvoted = x,
                [0.0499, 0.0501],
                ["has little to resolve", "takes that much out"],
            ),
            (
                "norms",
                |p, x| p.norm = x,
                [1.99, 2.01],
                ["are alike in norm", "differ in norm: that of b is 2.01 times that of a"],
            ),
            (
                "overlap",
                |p, x| p.kept_both = 400.0 * x / (1.0 + x),
                [0.1666, 0.1667],
                ["hardly more often", "at the same places."],
            ),
            (
                "zeros",
                |p, x| p.zeros = x as u64,
                [99.0, 100.0],
                ["Few elements", "10.0 % of b (at least 10 %)"],
            ),
            ("layers", |p, x| p.last = x, [1.99, 2.01], ["No layer is changed", "layer 2 by a (2.01 times)"]),
        ];
        for (about, change, values, words) in cases {
            for (value, (holds, word)) in values.into_iter().zip([false, true].into_iter().zip(words)) {
                let found = with(&|planted| change(planted, value));
                let finding = found.iter().find(|finding| finding.about == about).unwrap();
                assert_eq!(finding.holds, holds, "{finding:?}");
                assert!(finding.text.contains(word), "{}", finding.text);
                // Nothing else turns with it.
                for other in found.iter().filter(|other| other.about != about) {
                    let usual = with(&|_| ()).into_iter().find(|usual| usual.about == other.about).unwrap();
                    assert_eq!(other.holds, usual.holds, "{about}: {other:?}");
                }
            }
        }
    }

    #[test]
    fn a_model_that_is_its_base_is_named_and_compared_with_nothing() {
        let mut same = analysis(USUAL);
        same.whole.sums.tasks[0] =
            Task { one: One { squares: 0.0, elements: 1000, not_finite: 0 }, ..same.whole.sums.tasks[0] };
        same.whole.sums.task_pairs[0].squares[0] = 0.0;
        let found = findings(&same);
        let texts: Vec<&str> = found.iter().map(|finding| finding.text.as_str()).collect();
        assert!(texts.contains(&"a is base in every element that is merged."), "{texts:?}");
        assert!(found.iter().all(|finding| !["orthogonal", "norms"].contains(&finding.about)), "{texts:?}");
        assert!(!texts.concat().contains("NaN") && !texts.concat().contains("inf"));
    }

    #[test]
    fn cosines_near_one_have_the_digits_that_tell_them_from_it() {
        for (value, expected) in
            [(0.998, "0.998"), (0.999_912_3, "0.999912"), (-0.02, "-0.020"), (1.0, "1.000")]
        {
            assert_eq!(cosine(value), expected);
        }
    }
}
