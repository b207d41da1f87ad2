//! The tensors of a plan in few lines: below each way to make some of them these, the layers together.
//!
//! ```text
//! ./a: weight 0.2; ./b: weight 0.8; normalize true
//!      1 × lm_head.weight  BF16 [1024, 96]
//!     18 × model.layers.{0–1}.*
//! ./a: weight 0.4; ./b: weight 0.6; normalize true
//!      9 × model.layers.2.*
//! ```

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;

use crate::text::runs;

/// What tensors have in common that differ in nothing but numbers in their names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TensorKind {
    /// The name before the layer's number; nothing for a tensor of no layer.
    stack: Option<String>,
    /// The name behind it, with stars for further numbers.
    rest: String,
    shape: String,
}

/// The tensors of a kind by layers: of each the further numbers in its name.
type Members = BTreeMap<Option<usize>, BTreeSet<Vec<usize>>>;
type Kinds = IndexMap<TensorKind, Members>;

/// The lines about tensors, of which name, shape and the way to make them are given.
pub(super) fn lines<'a>(tensors: impl Iterator<Item = (&'a str, String, String)>) -> Vec<String> {
    let (mut all, mut ways) = (Kinds::new(), IndexMap::<String, Kinds>::new());
    for (name, shape, way) in tensors {
        let (kind, layer, further) = kind(name, shape);
        for kinds in [&mut all, ways.entry(way).or_default()] {
            kinds.entry(kind.clone()).or_default().entry(layer).or_default().insert(further.clone());
        }
    }
    let lines = |(way, kinds): (String, Kinds)| std::iter::once(way).chain(of_one_way(&all, &kinds));
    ways.into_iter().flat_map(lines).collect()
}

fn kind(name: &str, shape: String) -> (TensorKind, Option<usize>, Vec<usize>) {
    let number = |part: &str| part.parse::<u32>().ok().map(|number| number as usize);
    let parts: Vec<&str> = name.split('.').collect();
    let place = parts.iter().position(|part| number(part).is_some());
    let (stack, rest) = match place {
        Some(place) => (Some(parts[..place].join(".")), &parts[place + 1..]),
        None => (None, &parts[..]),
    };
    let further = rest.iter().filter_map(|part| number(part)).collect();
    let rest: Vec<&str> = rest.iter().map(|part| if number(part).is_some() { "*" } else { part }).collect();
    let layer = place.and_then(|place| number(parts[place]));
    (TensorKind { stack, rest: rest.join("."), shape }, layer, further)
}

fn count(members: &Members) -> usize {
    members.values().map(BTreeSet::len).sum()
}

/// Numbers in place of a star.
fn numbers(of: &BTreeSet<usize>) -> String {
    if of.len() == 1 { runs(of) } else { format!("{{{}}}", runs(of)) }
}

/// The end of a kind's names where only these are made in one way: a star stands for all numbers that there are, so numbers
/// that are only some stand there themselves.
fn rest_of(kind: &TensorKind, these: &Members, all: &Members) -> String {
    let at = |members: &Members, star: usize| -> BTreeSet<usize> {
        members.values().flatten().map(|further| further[star]).collect()
    };
    let mut stars = 0..;
    let shown = |part: &str| {
        if part != "*" {
            return part.to_owned();
        }
        let star = stars.next().expect("it has no end");
        let own = at(these, star);
        if own == at(all, star) { "*".into() } else { numbers(&own) }
    };
    kind.rest.split('.').map(shown).collect::<Vec<_>>().join(".")
}

/// The tensors made in one way: each kind of which all layers are, then the layers of the others.
fn of_one_way(all: &Kinds, kinds: &Kinds) -> Vec<String> {
    let mut lines = Vec::new();
    let mut parts: IndexMap<(&Option<String>, BTreeSet<usize>), Vec<&TensorKind>> = IndexMap::new();
    let shown = |kind: &TensorKind, layers: &str| {
        let these = &kinds[kind];
        line(count(these), &TensorKind { rest: rest_of(kind, these, &all[kind]), ..kind.clone() }, layers)
    };
    for (kind, members) in kinds {
        // Each layer has the same of them.
        let is_even = members.values().all(|further| Some(further) == members.values().next());
        if all[kind] == *members || is_even && all[kind].keys().eq(members.keys()) {
            lines.push(shown(kind, "*"));
        } else {
            let layers = members.keys().copied().flatten().collect();
            parts.entry((&kind.stack, layers)).or_default().push(kind);
        }
    }
    for ((stack, layers), of_these) in parts {
        let of_stack = |(kind, _): &(&TensorKind, &Members)| kind.stack == *stack;
        let has_all_of = |layer: &usize| {
            let count = |kinds: &Kinds| -> usize {
                let of_layer = |(_, members): (_, &Members)| members.get(&Some(*layer)).map(BTreeSet::len);
                kinds.iter().filter(of_stack).filter_map(of_layer).sum()
            };
            let here: usize = of_these.iter().map(|kind| kinds[*kind][&Some(*layer)].len()).sum();
            count(all) == here
        };
        if layers.iter().all(has_all_of) {
            let count = of_these.iter().map(|kind| count(&kinds[*kind])).sum();
            let whole = TensorKind { stack: stack.clone(), rest: "*".into(), shape: String::new() };
            lines.push(line(count, &whole, &numbers(&layers)));
        } else {
            lines.extend(of_these.into_iter().map(|kind| shown(kind, &numbers(&layers))));
        }
    }
    lines
}

fn line(count: usize, kind: &TensorKind, numbers: &str) -> String {
    let layers = kind.stack.iter().flat_map(|stack| [stack.as_str(), numbers]);
    let name: Vec<&str> = layers.chain([kind.rest.as_str()]).filter(|part| !part.is_empty()).collect();
    format!("{count:>6} × {}  {}", name.join("."), kind.shape).trim_end().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_lines(tensors: &[(&str, &str)], expected: &[&str]) {
        let tensors = tensors.iter().map(|(name, way)| (*name, "F32 [4]".to_string(), (*way).to_string()));
        assert_eq!(lines(tensors), expected);
    }

    #[test]
    fn what_is_made_in_one_way_stands_below_it_once() {
        let tensors = [("e", "w"), ("m.0.a", "w"), ("m.0.b.0.c", "w"), ("m.0.b.1.c", "w"), ("m.1.a", "w")];
        let below = ["w", "     1 × e  F32 [4]", "     2 × m.*.a  F32 [4]", "     2 × m.*.b.*.c  F32 [4]"];
        assert_lines(&tensors, &below);
    }

    #[test]
    fn layers_that_are_made_in_ways_of_their_own_are_named() {
        let gradient = [
            ("e", "w0"),
            ("m.0.a", "w0"),
            ("m.0.b", "w0"),
            ("m.1.a", "w1"),
            ("m.1.b", "w1"),
            ("m.2.a", "w1"),
        ];
        let below = ["w0", "     1 × e  F32 [4]", "     2 × m.0.*", "w1", "     2 × m.{1–2}.a  F32 [4]"];
        assert_lines(&gradient, &[&below[..], &["     1 × m.1.b  F32 [4]"]].concat());
        let whole = [("m.0.a", "w0"), ("m.1.a", "w1"), ("m.2.a", "w1"), ("n.1.a", "w0")];
        let below = ["w0", "     1 × n.*.a  F32 [4]", "     1 × m.0.*", "w1", "     2 × m.{1–2}.*"];
        assert_lines(&whole, &below);
    }

    #[test]
    fn a_star_stands_for_all_numbers_that_there_are() {
        let experts = [
            ("m.0.e.0.w", "a"),
            ("m.0.e.1.w", "b"),
            ("m.0.e.2.w", "b"),
            ("m.1.e.0.w", "a"),
            ("m.1.e.1.w", "b"),
            ("m.1.e.2.w", "b"),
        ];
        let below = ["a", "     2 × m.*.e.0.w  F32 [4]", "b", "     4 × m.*.e.{1–2}.w  F32 [4]"];
        assert_lines(&experts, &below);
        // Of one layer another expert: it is named with its layer.
        let uneven =
            [("m.0.e.0.w", "a"), ("m.0.e.1.w", "a"), ("m.1.e.0.w", "a"), ("m.1.e.1.w", "b"), ("m.1.n", "a")];
        let found =
            lines(uneven.iter().map(|(name, way)| (*name, "F32 [4]".to_string(), (*way).to_string())));
        assert!(found.ends_with(&["b".into(), "     1 × m.1.e.1.w  F32 [4]".into()]), "{found:?}");
    }

    #[test]
    fn tensors_that_a_filter_takes_are_named() {
        let filtered = [("m.0.a", "w0"), ("m.0.b", "f"), ("m.1.a", "w1"), ("m.1.b", "f"), ("3.w", "w0")];
        let below =
            ["w0", "     1 × *.w  F32 [4]", "     1 × m.0.a  F32 [4]", "f", "     2 × m.*.b  F32 [4]"];
        assert_lines(&filtered, &[&below[..], &["w1", "     1 × m.1.a  F32 [4]"]].concat());
    }
}
