//! What a config says that is not read: the warnings.

use indexmap::IndexMap;

use super::{Config, Located, Position, Warning, quoted};
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
/// Of so many is asked what was meant: a file full of others is none of a hand.
const ASKED_MAX: usize = 1024;

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
}

/// What was probably meant by an unknown key; what a user surely did not mean to write comes first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meant {
    /// A key that is known.
    Key(&'static str),
    /// What stands in another place or another form.
    Otherwise(&'static str),
    /// What mergekit once knew.
    Legacy,
    /// It is not known.
    Nothing,
}

impl Meant {
    fn by(key: &str, known: &[&'static str]) -> Self {
        if LEGACY_KEYS.contains(&key) {
            return Self::Legacy;
        }
        if ELEMENT_FILES.contains(&key) {
            return Self::Otherwise("it belongs in a model's entry, beside `model:`");
        }
        if known.contains(&"parameters") && PARAMETERS.contains(&key) {
            return Self::Otherwise("it belongs under `parameters:`; mergekit ignores it here too");
        }
        if known.contains(&"sources") && ["model", "layer_range"].contains(&key) {
            return Self::Otherwise("it belongs in an entry of `sources:`");
        }
        if known.contains(&"glob") && key == "layer_range" {
            return Self::Otherwise(
                "layers are taken with `slices:`, whose entries have `sources:` with models and ranges; mergekit \
                 ignores it here too, and merges all layers",
            );
        }
        if known.contains(&"model") && key == "revision" {
            return Self::Otherwise(
                "write `model: path@revision`; mergekit ignores it here too, and takes the newest",
            );
        }
        near(key, known).map_or(Self::Nothing, Self::Key)
    }

    fn rank(self) -> u8 {
        match self {
            Self::Key(_) => 0,
            Self::Otherwise(_) => 1,
            Self::Legacy | Self::Nothing => 2,
        }
    }

    fn words(self) -> Option<String> {
        match self {
            Self::Key(near) => Some(format!("did you mean `{near}`?")),
            Self::Otherwise(words) => Some(words.into()),
            Self::Legacy => Some("mergekit ignores it too".into()),
            Self::Nothing => None,
        }
    }
}

/// A key that is not known where it stands, in one place or in several.
struct Unknown<'a> {
    key: &'a str,
    meant: Meant,
    /// Where it stands first.
    at: Position,
    count: usize,
}

impl Unknown<'_> {
    /// The keys among what is ignored, first those that are probably slips.
    fn among<'a>(ignored: &[&'a Located<Ignored>]) -> Vec<Unknown<'a>> {
        let mut places: IndexMap<(&str, &'static [&'static str]), (Position, usize)> = IndexMap::new();
        for Located { value, at } in ignored {
            if let Ignored::Unknown { key, known } = value {
                places.entry((key, known)).or_insert((*at, 0)).1 += 1;
            }
        }
        let asked =
            |place: usize, key, known| if place < ASKED_MAX { Meant::by(key, known) } else { Meant::Nothing };
        let mut all: Vec<Unknown> = Vec::new();
        all.extend(places.into_iter().enumerate().map(|(place, ((key, known), (at, count)))| Unknown {
            key,
            meant: asked(place, key, known),
            at,
            count,
        }));
        all.sort_by_key(|unknown| unknown.meant.rank());
        all
    }

    /// The key, how often it is there, and what was probably meant; in a list, `before` is what was meant by the key before it.
    fn described(&self, before: Meant) -> String {
        let times = match self.count {
            1 => None,
            2 => Some("twice".into()),
            count => Some(format!("{count} times")),
        };
        let words = self.meant.words();
        let words = if self.meant == before { words.and(Some("likewise".into())) } else { words };
        let notes: Vec<String> = times.into_iter().chain(words).collect();
        if notes.is_empty() {
            quoted(self.key)
        } else {
            format!("{} ({})", quoted(self.key), notes.join("; "))
        }
    }

    fn warning(&self, file: &str) -> String {
        format!("{file}:{}: unknown key {} is ignored", self.at, self.described(Meant::Nothing))
    }
}

/// One warning of all unknown keys.
fn of_unknown(file: &str, all: &[Unknown]) -> Warning {
    let each: Vec<String> = all.iter().map(|unknown| unknown.warning(file)).collect();
    let [first, others @ ..] = all else { unreachable!("there is one at least") };
    if others.is_empty() {
        return Warning { message: each[0].clone(), each };
    }
    let mut named = first.described(Meant::Nothing);
    for (before, unknown) in all.iter().zip(others).take(NAMED_MAX - 1) {
        named += &format!(", at {} {}", unknown.at, unknown.described(before.meant));
    }
    if all.len() > NAMED_MAX {
        named += &format!(" and {} more", all.len() - NAMED_MAX);
    }
    let message = format!("{file}:{}: {} unknown keys are ignored: {named}", first.at, all.len());
    Warning { message, each }
}

/// One warning of a key that changes nothing, in one place or in several.
fn of_needless(file: &str, what: &str, why: &str, all: &[&Located<Ignored>]) -> Warning {
    let at = all[0].at;
    let message = match all.len() - 1 {
        0 => format!("{file}:{at}: {what} ({why})"),
        more => format!("{file}:{at}: {what} ({why}; and {more} more like it)"),
    };
    let each = all.iter().map(|ignored| format!("{file}:{}: {what} ({why})", ignored.at)).collect();
    Warning { message, each }
}

/// The warnings of what is ignored in a file. Aliases bring the same place up again: it is warned of once. All of a kind are one
/// warning.
pub(super) fn warnings(file: &str, mut ignored: Vec<Located<Ignored>>) -> Vec<Warning> {
    ignored.sort_by_key(|ignored| ignored.at);
    ignored.dedup();
    let mut kinds: IndexMap<_, Vec<&Located<Ignored>>> = IndexMap::new();
    ignored.iter().for_each(|ignored| kinds.entry(ignored.value.kind()).or_default().push(ignored));
    let warning = |all: &Vec<&Located<Ignored>>| match &all[0].value {
        Ignored::Unknown { .. } => of_unknown(file, &Unknown::among(all)),
        Ignored::Needless { what, why } => of_needless(file, what, why, all),
    };
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
