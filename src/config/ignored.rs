//! What a config says that is not read: the warnings.

use indexmap::IndexMap;

use super::{Config, Located, Warning, quoted};
use crate::error::did_you_mean;

/// Named in mergekit's README, but gone from its schema.
const LEGACY_KEYS: &[&str] = &["embed_slerp", "input_model_parameters"];
/// The parameters of mergekit's methods and of ours, which are often written beside `parameters` instead of under it.
const PARAMETERS: &[&str] = &[
    "agree",
    "alpha",
    "balance",
    "decay",
    "density",
    "eps",
    "epsilon",
    "filter_wise",
    "floor",
    "gamma",
    "int8_mask",
    "lambda",
    "lines_alpha",
    "lines_beta",
    "max_iter",
    "normalize",
    "normalize_weights",
    "nuslerp_flatten",
    "nuslerp_row_wise",
    "r",
    "rescale",
    "scale",
    "select_topk",
    "t",
    "tall",
    "tol",
    "weight",
    "weights",
    "window",
];
/// The keys of files that say something of a model's elements. Where they are not read, they stand in the wrong place.
pub(super) const ELEMENT_FILES: &[&str] = &["mask", "importance"];
/// So many unknown keys are looked at where one is missing.
const SLIPS_MAX: usize = 64;
/// So many unknown keys are named.
const NAMED_MAX: usize = 4;

/// Something that is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ignored {
    /// A key that is not read, with those that are read in its place.
    Unknown { key: String, known: &'static [&'static str] },
    /// A key of mergekit's that changes nothing here: what is said of it, and why.
    Needless { what: &'static str, why: &'static str },
}

impl Ignored {
    /// What is ignored for one reason is of a kind: all unknown keys, or one key of mergekit's at several places.
    fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Unknown { .. } => None,
            Self::Needless { what, .. } => Some(what),
        }
    }

    /// The key, and what was probably meant: in a list, `before` is what was said of the key before it.
    fn key(&self, before: &mut String) -> String {
        match self {
            Self::Unknown { key, known } => {
                let meant = meant(key, known);
                let is_said = !meant.is_empty() && meant == *before;
                before.clone_from(&meant);
                quoted(key) + if is_said { " (likewise)" } else { &meant }
            }
            Self::Needless { what, .. } => (*what).into(),
        }
    }
}

/// What was probably meant by an unknown key, in parentheses.
fn meant(key: &str, known: &[&str]) -> String {
    if LEGACY_KEYS.contains(&key) {
        return " (mergekit ignores it too)".into();
    }
    if ELEMENT_FILES.contains(&key) {
        return " (it belongs in a model's entry, beside `model:`)".into();
    }
    if known.contains(&"parameters") && PARAMETERS.contains(&key) {
        return " (it belongs under `parameters:`; mergekit ignores it here too)".into();
    }
    if known.contains(&"sources") && ["model", "layer_range"].contains(&key) {
        return " (it belongs in an entry of `sources:`)".into();
    }
    if known.contains(&"glob") && key == "layer_range" {
        return " (layers are taken with `slices:`, whose entries have `sources:` with models and ranges; mergekit \
                ignores it here too, and merges all layers)"
            .into();
    }
    if known.contains(&"model") && key == "revision" {
        return " (write `model: path@revision`; mergekit ignores it here too, and takes the newest)".into();
    }
    near(key, known).map_or(String::new(), |near| format!(" (did you mean `{near}`?)"))
}

/// One line for all that is ignored for one reason.
fn listed(all: &[&Located<Ignored>]) -> String {
    let (first, others) = (all[0], &all[1..]);
    match &first.value {
        Ignored::Needless { what, why } if others.is_empty() => format!("{what} ({why})"),
        Ignored::Needless { what, why } => format!("{what} ({why}; and {} more like it)", others.len()),
        Ignored::Unknown { .. } if others.is_empty() => {
            format!("unknown key {} is ignored", first.value.key(&mut String::new()))
        }
        Ignored::Unknown { .. } => {
            let mut said = String::new();
            let first = first.value.key(&mut said);
            let named = others.iter().take(NAMED_MAX - 1);
            let named = named.map(|key| format!(", at {} {}", key.at, key.value.key(&mut said)));
            let named: String = std::iter::once(first).chain(named).collect();
            let more = match all.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{} unknown keys are ignored: {named}{more}", all.len())
        }
    }
}

/// The warnings of what is ignored in a file. Aliases bring the same place up again: it is warned of once. All of a kind are one
/// warning, at the first place.
pub(super) fn warnings(file: &str, mut ignored: Vec<Located<Ignored>>) -> Vec<Warning> {
    ignored.sort_by_key(|ignored| ignored.at);
    ignored.dedup();
    let mut kinds: IndexMap<_, Vec<&Located<Ignored>>> = IndexMap::new();
    ignored.iter().for_each(|ignored| kinds.entry(ignored.value.kind()).or_default().push(ignored));
    let warning =
        |all: &Vec<&Located<Ignored>>| Warning { message: format!("{file}:{}: {}", all[0].at, listed(all)) };
    kinds.values().map(warning).collect()
}

/// The question whether one of these keys, which are not read, was meant to be this one.
pub(super) fn slip_among(unread: &[Located<String>], key: &str) -> Option<String> {
    let slip = unread.iter().take(SLIPS_MAX).find(|typed| near(&typed.value, &[key]).is_some())?;
    Some(format!("did you mean `{key}` by {}, at {}?", quoted(&slip.value), slip.at))
}

impl Config {
    /// The same of the keys at the top.
    pub(crate) fn slip_of(&self, key: &str) -> Option<String> {
        slip_among(&self.beside, key)
    }

    /// What to do with a parameter that is missing, where it stands in a wrong place: beside a model, or at the top, and not under
    /// `parameters`; or under a key that was meant to be that.
    pub(crate) fn misplaced(&self, parameter: &str, beside: &[Located<String>]) -> Option<String> {
        let is_it = |key: &&Located<String>| key.value == parameter;
        match beside.iter().chain(&self.beside).find(is_it) {
            Some(key) => Some(format!("{}:{}: move `{parameter}` under `parameters:`", self.file, key.at)),
            None => slip_among(beside, "parameters").or_else(|| self.slip_of("parameters")),
        }
    }
}

/// The nearest of the known words.
pub(super) fn near<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    did_you_mean(typed, known.iter().copied())
}
