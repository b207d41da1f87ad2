//! Models that call the same tensors by other names than the donor: below another prefix.
//!
//! A language model and one of several modalities that contains it have the same layers, here as `model.layers`, there as
//! `model.language_model.layers` or `language_model.model.layers`; and newer versions of transformers save the same model
//! under other prefixes than older ones. A stack of layers that the donor does not have by this name is compared with the
//! donor's, layer for layer: where exactly one has the same tensors in the same shapes, the two prefixes mean the same. What a
//! model holds is then known by the donor's names, and nothing behind this knows that it ever had others.

use std::borrow::Cow;

use indexmap::{IndexMap, IndexSet};

use super::names;
use super::parts::{Anatomy, Part};
use super::views::{Model, View, Views};

/// Models of more stacks of layers are not compared. Those of several modalities have some twenty.
const STACKS_MAX: usize = 256;

/// Renames tensors of models whose names are the donor's but for a prefix, and notes it.
pub(super) fn align(views: &mut Views<'_>) {
    let Some(donor) = views.models.get(views.donor()) else { return };
    let known = names::stacks(donor.names());
    let has_others =
        |model: &Model<'_>| names::stacks(model.names()).keys().any(|stack| !known.contains_key(stack));
    let others: Vec<usize> =
        (0..views.models.len()).filter(|place| has_others(&views.models[*place])).collect();
    if others.is_empty() {
        return;
    }
    let of_donor = Shape::of(donor);
    for place in others {
        let model = &mut views.models[place];
        let substitutions = substitutions(&Shape::of(model), &of_donor);
        let renamed = renamed(model, &of_donor.tensors, &substitutions);
        if renamed > 0 {
            let shown: Vec<String> = substitutions.iter().map(Substitution::shown).collect();
            views.notes.push(format!(
                "{}: {renamed} tensors are known by the names that they have in the donor ({})",
                model.name,
                shown.join(", ")
            ));
        }
    }
}

/// A model's names, and the stacks of its layers.
struct Shape {
    /// Each tensor's dimensions.
    tensors: IndexMap<String, Vec<usize>>,
    anatomy: Anatomy,
    /// The tensors of each stack's first layer: their names within it, and their dimensions.
    stacks: IndexMap<String, IndexMap<String, Vec<usize>>>,
}

impl Shape {
    fn of(model: &Model<'_>) -> Self {
        let mut stacks: IndexMap<String, (usize, IndexMap<String, Vec<usize>>)> = IndexMap::new();
        for (name, view) in &model.tensors {
            let Some(tensor) = names::layered(name) else { continue };
            let (first, layer) =
                stacks.entry(tensor.stack.into()).or_insert_with(|| (tensor.layer, IndexMap::new()));
            if tensor.layer < *first {
                (*first, *layer) = (tensor.layer, IndexMap::new());
            }
            if tensor.layer == *first {
                layer.insert(tensor.rest.into(), view.shape.to_vec());
            }
        }
        Self {
            tensors: model
                .tensors
                .iter()
                .map(|(name, view)| (name.to_string(), view.shape.to_vec()))
                .collect(),
            anatomy: Anatomy::of(model.names()),
            stacks: stacks.into_iter().map(|(stack, (_, layer))| (stack, layer)).collect(),
        }
    }

    fn part(&self, stack: &str) -> Part {
        // Of any layer: the stack alone decides.
        self.anatomy.part(&format!("{stack}.0."))
    }
}

/// Prefixes that mean the same: what a model calls `own`, the donor calls `donors`.
#[derive(Debug, PartialEq, Eq)]
struct Substitution {
    own: String,
    donors: String,
    /// The stacks that showed it.
    stacks: (String, String),
}

impl Substitution {
    /// Of two stacks: what stands before the words in which both end.
    fn of(own: &str, donors: &str) -> Self {
        let same =
            own.rsplit('.').zip(donors.rsplit('.')).take_while(|(a, b)| a == b).map(|(a, _)| a.len() + 1);
        let same: usize = same.sum();
        let before = |stack: &str| stack[..stack.len().saturating_sub(same)].to_owned();
        Self { own: before(own), donors: before(donors), stacks: (own.into(), donors.into()) }
    }

    fn shown(&self) -> String {
        format!("{} for {}", self.stacks.1, self.stacks.0)
    }

    /// The donor's name for a tensor that the model calls so, if its name has the prefix.
    fn apply(&self, name: &str) -> Option<String> {
        let rest = match self.own.as_str() {
            "" => name,
            own => name.strip_prefix(own)?.strip_prefix('.')?,
        };
        Some(if self.donors.is_empty() { rest.to_owned() } else { format!("{}.{rest}", self.donors) })
    }
}

/// What the prefixes of a model mean in the donor: the longest first.
fn substitutions(own: &Shape, donor: &Shape) -> Vec<Substitution> {
    let mut found = Vec::new();
    if own.stacks.len().max(donor.stacks.len()) > STACKS_MAX {
        return found;
    }
    for (stack, layer) in own.stacks.iter().filter(|(stack, _)| !donor.stacks.contains_key(*stack)) {
        let part = own.part(stack);
        let fits = |(other, there): &(&String, &IndexMap<String, Vec<usize>>)| {
            !own.stacks.contains_key(*other) && may_be(part, donor.part(other)) && are_alike(layer, there)
        };
        let fitting: Vec<&String> = donor.stacks.iter().filter(fits).map(|(other, _)| other).collect();
        if let [only] = fitting[..] {
            found.push(Substitution::of(stack, only));
        }
    }
    found.sort_by_key(|substitution| std::cmp::Reverse(substitution.own.len()));
    found
}

/// Whether a part of one model can be that part of another: a model without parts can be any of them.
fn may_be(part: Part, other: Part) -> bool {
    part == other || [part, other].contains(&Part::Whole)
}

/// Whether layers have the same tensors in the same shapes. A few may be missing, such as biases.
fn are_alike(one: &IndexMap<String, Vec<usize>>, other: &IndexMap<String, Vec<usize>>) -> bool {
    let in_both: Vec<(&Vec<usize>, &Vec<usize>)> =
        one.iter().filter_map(|(name, shape)| Some((shape, other.get(name)?))).collect();
    2 * in_both.len() > one.len().max(other.len()) && in_both.iter().all(|(a, b)| a == b)
}

/// Gives tensors the donor's names; returns how many.
fn renamed(
    model: &mut Model<'_>,
    donors: &IndexMap<String, Vec<usize>>,
    substitutions: &[Substitution],
) -> usize {
    if substitutions.is_empty() {
        return 0;
    }
    let stacks: IndexSet<&str> =
        donors.keys().filter_map(|name| names::layered(name)).map(|layered| layered.stack).collect();
    let is_donors = |name: &str| {
        // Of a stack that both have, the model may have more layers.
        donors.contains_key(name) || names::layered(name).is_some_and(|tensor| stacks.contains(tensor.stack))
    };
    let new_name = |name: &str, shape: &[usize]| -> Option<String> {
        if is_donors(name) {
            return None;
        }
        let applied = || substitutions.iter().filter_map(|substitution| substitution.apply(name));
        let found = applied().find(|new| is_donors(new)).or_else(|| only_ending(name, shape, donors));
        // A donor whose head is tied has none by any name, but then the model's goes where the donor's would.
        found.or_else(|| applied().next().filter(|_| names::is_head(name)))
    };
    let mut renamed = 0;
    let old = std::mem::take(&mut model.tensors);
    let mut tensors: IndexMap<Cow<'_, str>, View<'_>> = IndexMap::with_capacity(old.len());
    let taken: IndexSet<String> = old.keys().map(ToString::to_string).collect();
    for (name, view) in old {
        let new = new_name(&name, &view.shape)
            .filter(|new| !taken.contains(new) && !tensors.contains_key(new.as_str()));
        renamed += usize::from(new.is_some());
        tensors.insert(new.map_or(name, Cow::Owned), view);
    }
    model.tensors = tensors;
    renamed
}

/// The donor's only loose tensor of such a shape that is called the same below another prefix, or below none.
fn only_ending(name: &str, shape: &[usize], donors: &IndexMap<String, Vec<usize>>) -> Option<String> {
    if names::layered(name).is_some() {
        return None;
    }
    let ends = |long: &str, short: &str| long.strip_suffix(short).is_some_and(|before| before.ends_with('.'));
    let mut fitting = donors.iter().filter(|(other, there)| {
        // Vocabularies may have other numbers of rows.
        there.get(1..) == shape.get(1..)
            && there.len() == shape.len()
            && names::layered(other).is_none()
            && (ends(name, other) || ends(other, name))
    });
    let (only, _) = fitting.next()?;
    fitting.next().is_none().then(|| only.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(names: &[&str]) -> Shape {
        let mut stacks: IndexMap<String, IndexMap<String, Vec<usize>>> = IndexMap::new();
        for tensor in names.iter().filter_map(|name| names::layered(name)) {
            // Towers are of another width.
            let width = if tensor.stack.contains("vis") { 8 } else { 4 };
            stacks.entry(tensor.stack.into()).or_default().insert(tensor.rest.into(), vec![width, 4]);
        }
        let anatomy = Anatomy::of(names.iter().copied());
        Shape { tensors: names.iter().map(|name| ((*name).to_owned(), vec![4])).collect(), anatomy, stacks }
    }

    fn found(own: &[&str], donor: &[&str]) -> Vec<(String, String)> {
        let all = substitutions(&shape(own), &shape(donor));
        all.into_iter().map(|substitution| (substitution.own, substitution.donors)).collect()
    }

    fn pair(own: &str, donors: &str) -> (String, String) {
        (own.into(), donors.into())
    }

    const LLM: &[&str] = &["lm_head.weight", "model.layers.0.q", "model.layers.0.up", "model.norm.weight"];
    const OLD: &[&str] = &[
        "language_model.model.layers.0.q",
        "language_model.model.layers.0.up",
        "vision_tower.vision_model.layers.0.q",
        "vision_tower.vision_model.layers.0.up",
    ];
    const NEW: &[&str] = &[
        "model.language_model.layers.0.q",
        "model.language_model.layers.0.up",
        "model.vision_tower.layers.0.q",
        "model.vision_tower.layers.0.up",
    ];

    #[test]
    fn prefixes_that_mean_the_same_are_found() {
        assert_eq!(found(LLM, OLD), [pair("", "language_model")]);
        assert_eq!(found(LLM, NEW), [pair("model", "model.language_model")]);
        assert_eq!(found(OLD, LLM), [pair("language_model", "")]);
        let both = [
            pair("vision_tower.vision_model", "model.vision_tower"),
            pair("language_model.model", "model.language_model"),
        ];
        assert_eq!(found(OLD, NEW), both);
        assert_eq!(found(LLM, LLM), []);
    }

    #[test]
    fn what_fits_nothing_or_several_keeps_its_names() {
        // Other dimensions, other tensors, or two stacks that could be meant.
        assert_eq!(found(&["vision.layers.0.q", "vision.layers.0.up"], LLM), []);
        assert_eq!(found(&["h.0.c_attn", "h.0.up"], LLM), []);
        assert_eq!(found(LLM, &["a.0.q", "a.0.up", "b.0.q", "b.0.up"]), []);
        // The donor's stack is another one of the model's.
        assert_eq!(found(&["model.layers.0.q", "model.layers.0.up", "extra.0.q", "extra.0.up"], LLM), []);
    }

    #[test]
    fn a_loose_tensor_is_known_by_its_ending_if_there_is_only_one() {
        let donors: IndexMap<String, Vec<usize>> = [
            ("lm_head.weight", vec![9, 4]),
            ("model.line", vec![4]),
            ("a.norm", vec![4]),
            ("b.norm", vec![4]),
        ]
        .map(|(name, shape)| (name.to_owned(), shape))
        .into();
        let found = |name: &str, shape: &[usize]| only_ending(name, shape, &donors);
        assert_eq!(found("language_model.lm_head.weight", &[7, 4]).unwrap(), "lm_head.weight");
        assert_eq!(found("line", &[4]).unwrap(), "model.line");
        assert_eq!(found("x_lm_head.weight", &[9, 4]), None);
        assert_eq!(found("language_model.lm_head.weight", &[9, 5]), None);
        assert_eq!(found("norm", &[4]), None);
    }

    #[test]
    fn names_are_taken_apart_at_dots() {
        let of = |own: &str, donors: &str, name: &str| Substitution::of(own, donors).apply(name);
        assert_eq!(
            of("model.layers", "model.language_model.layers", "model.norm").unwrap(),
            "model.language_model.norm"
        );
        assert_eq!(of("model.layers", "model.language_model.layers", "models.norm"), None);
        assert_eq!(of("layers", "model.layers", "embed.weight").unwrap(), "model.embed.weight");
        assert_eq!(of("model.layers", "layers", "model.embed.weight").unwrap(), "embed.weight");
        // Words of which one ends like the other are not the same.
        assert_eq!(of("a.xlayers", "b.layers", "a.xlayers.w").unwrap(), "b.layers.w");
    }
}
