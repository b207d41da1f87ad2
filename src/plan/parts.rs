//! Parts of a model, by the names of its tensors: the language model of several modalities, its vision tower, an encoder.
//!
//! No architecture files here either: words in the names say which tensors belong together. A part has the name that mergekit's
//! configs use for it.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use super::names;
use crate::error::slip_of;

/// Tensors of a part that are listed by name.
const NAMED_MAX: usize = 3;

/// Among so many names of modules, and none longer, the one that was meant is looked for.
const KNOWN_MAX: usize = 1000;
const KNOWN_BYTES_MAX: usize = 64;

/// A part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Text,
    Vision,
    Audio,
    Projector,
    Encoder,
    Decoder,
    /// What encoder and decoder have in common.
    Shared,
    /// All of a model that has no such parts.
    Whole,
}

impl Part {
    /// As mergekit's configs call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Text => "text_decoder",
            Part::Vision => "vision_tower",
            Part::Audio => "audio_tower",
            Part::Projector => "multi_modal_projector",
            Part::Encoder => "encoder",
            Part::Decoder => "decoder",
            Part::Shared => "shared",
            Part::Whole => "default",
        }
    }

    /// The part that a config calls by this name.
    fn called(name: &str) -> Option<Self> {
        Some(match name {
            "text_decoder" | "text_model" | "language_model" | "llm" => Part::Text,
            "vision_tower" | "vision_model" | "vision_encoder" => Part::Vision,
            "audio_tower" | "audio_model" | "audio_encoder" => Part::Audio,
            "multi_modal_projector" | "mm_projector" | "projector" | "connector" => Part::Projector,
            "encoder" => Part::Encoder,
            "decoder" => Part::Decoder,
            "shared" => Part::Shared,
            _ => return None,
        })
    }
}

/// Parts of names, between dots, that say what stands below them. What a projector is called comes first: some lie in a tower.
const MARKS: [(Part, &[&str]); 3] = [
    (
        Part::Projector,
        &[
            "abstractor",
            "aligner",
            "connector",
            "deepstack_merger_list",
            "merger",
            "mm_projector",
            "modality_projection",
            "multi_modal_projector",
            "projector",
            "resampler",
        ],
    ),
    (
        Part::Vision,
        &[
            "image_encoder",
            "image_tower",
            "vision",
            "vision_backbone",
            "vision_encoder",
            "vision_model",
            "vision_tower",
            "visual",
            "vit",
            "vpm",
        ],
    ),
    (Part::Audio, &["apm", "audio_encoder", "audio_model", "audio_tower", "speech_encoder"]),
];

/// Into which parts names fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anatomy {
    /// Towers beside a language model.
    Modalities,
    /// An encoder and a decoder.
    EncoderDecoder,
    Single,
}

impl Anatomy {
    /// That of a model, or of models with the same names.
    pub(super) fn of<'n>(all: impl Iterator<Item = &'n str>) -> Self {
        let stacks: BTreeSet<&str> = all.filter_map(names::layered).map(|layered| layered.stack).collect();
        let (towers, others): (Vec<&str>, Vec<&str>) =
            stacks.into_iter().partition(|stack| marked(stack).is_some());
        let has = |half: Part| others.iter().any(|stack| half_of(stack) == Some(half));
        if has(Part::Encoder) && has(Part::Decoder) {
            Anatomy::EncoderDecoder
        } else if !towers.is_empty() && !others.is_empty() {
            Anatomy::Modalities
        } else {
            Anatomy::Single
        }
    }

    /// The part that a tensor belongs to.
    pub(super) fn part(self, name: &str) -> Part {
        match self {
            Anatomy::Modalities => marked(name).unwrap_or(Part::Text),
            Anatomy::EncoderDecoder => half_of(name).unwrap_or(Part::Shared),
            Anatomy::Single => Part::Whole,
        }
    }
}

/// What stands before a layer's number, or all of a loose tensor's name.
fn place(name: &str) -> &str {
    names::layered(name).map_or(name, |layered| layered.stack)
}

fn marked(name: &str) -> Option<Part> {
    let is_marked = |(_, marks): &&(Part, &[&str])| place(name).split('.').any(|part| marks.contains(&part));
    MARKS.iter().find(is_marked).map(|(part, _)| *part)
}

/// The encoder or the decoder, below the model's own name at the most.
fn half_of(name: &str) -> Option<Part> {
    let half = |part: &str| match part {
        "encoder" => Some(Part::Encoder),
        "decoder" => Some(Part::Decoder),
        _ => None,
    };
    name.split('.').take(2).find_map(half)
}

/// Which tensors a module of a config is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    Part(Part),
    /// Those whose names begin so, up to a dot.
    Prefix(String),
    /// Those of no other module.
    Rest,
}

impl Selector {
    /// What a config means by a module's name, for tensors of these names; `None` where nothing fits.
    pub(super) fn of<'n>(
        written: &str,
        anatomy: Anatomy,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Option<Self> {
        let written = written.trim_end_matches('.');
        if written == Part::Whole.name() {
            return Some(Selector::Rest);
        }
        if let Some(part) = Part::called(written) {
            if anatomy == Anatomy::Single && part == Part::Text {
                return Some(Selector::Rest);
            }
            if names.clone().any(|name| anatomy.part(name) == part) {
                return Some(Selector::Part(part));
            }
        }
        if names.clone().any(|name| begins(name, written)) {
            return Some(Selector::Prefix(written.into()));
        }
        // `visual` for `model.visual`, if there is only one.
        let inside: BTreeSet<&str> = names.filter_map(|name| up_to(name, written)).collect();
        match inside.into_iter().collect::<Vec<_>>()[..] {
            [only] => Some(Selector::Prefix(only.into())),
            _ => None,
        }
    }

    /// How closely a tensor is meant; `None` where it is not.
    pub(super) fn fit(&self, name: &str, anatomy: Anatomy) -> Option<usize> {
        match self {
            Selector::Rest => Some(0),
            Selector::Part(part) => (anatomy.part(name) == *part).then_some(1),
            Selector::Prefix(prefix) => begins(name, prefix).then_some(2 + prefix.len()),
        }
    }
}

/// The place in a list of modules of the one that a tensor belongs to: the one that means it most closely.
pub(super) fn module_of(selectors: &[Selector], anatomy: Anatomy, name: &str) -> Option<usize> {
    let fits =
        selectors.iter().enumerate().filter_map(|(i, selector)| Some((selector.fit(name, anatomy)?, i)));
    fits.max().map(|(_, module)| module)
}

fn begins(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The beginning of a name up to these words in its middle.
fn up_to<'n>(name: &'n str, words: &str) -> Option<&'n str> {
    let place = place(name);
    let found = place.match_indices(words).map(|(at, _)| at + words.len());
    let mut ends = found.filter(|end| {
        let start = end - words.len();
        place[..start].ends_with('.') && (*end == place.len() || place[*end..].starts_with('.'))
    });
    ends.next().map(|end| &name[..end])
}

/// The parts of a model and what each has, as a line.
pub(super) fn described<'n>(anatomy: Anatomy, names: impl Iterator<Item = &'n str>) -> String {
    let parts = by_part(anatomy, names);
    parts.iter().map(|(part, names)| counted(*part, names)).collect::<Vec<_>>().join(", ")
}

/// Some of a model's tensors, as a line: few by name, more by the parts that they belong to.
pub(super) fn listed(anatomy: Anatomy, names: &[&str]) -> String {
    let of_part = |(part, names): (Part, Vec<&str>)| match &names[..] {
        few if few.len() <= NAMED_MAX => few.join(", "),
        many if part == Part::Whole && prefix(many).is_empty() => {
            format!("{} and {} more tensors", many[0], many.len() - 1)
        }
        many => counted(part, many),
    };
    by_part(anatomy, names.iter().copied()).into_iter().map(of_part).collect::<Vec<_>>().join(", ")
}

fn by_part<'n>(anatomy: Anatomy, names: impl Iterator<Item = &'n str>) -> IndexMap<Part, Vec<&'n str>> {
    let mut parts: IndexMap<Part, Vec<&str>> = IndexMap::new();
    for name in names {
        parts.entry(anatomy.part(name)).or_default().push(name);
    }
    parts
}

/// A part, what the names of its tensors begin with if they have that in common, and how many these are.
fn counted(part: Part, names: &[&str]) -> String {
    let prefix = prefix(names);
    let below = if prefix.is_empty() { String::new() } else { format!("{prefix}.*, ") };
    let tensors = if names.len() == 1 { "tensor" } else { "tensors" };
    format!("{} ({below}{} {tensors})", part.name(), names.len())
}

/// What all of the names begin with, up to a dot that none ends before.
fn prefix<'n>(names: &[&'n str]) -> &'n str {
    let above = |name: &'n str| name.rsplit_once('.').map_or("", |(above, _)| above);
    let common = |a: &'n str, b: &'n str| {
        let mut ends = std::iter::once(a.len()).chain(a.rmatch_indices('.').map(|(dot, _)| dot));
        ends.find(|end| begins(b, &a[..*end])).map_or("", |end| &a[..end])
    };
    names.iter().map(|name| above(place(name))).reduce(common).unwrap_or("")
}

/// What was probably meant by the name of a module that there is not: a part, or what names begin with.
pub(super) fn near<'n>(
    written: &str,
    anatomy: Anatomy,
    names: impl Iterator<Item = &'n str> + Clone,
) -> Option<&'n str> {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for name in names.clone() {
        let place = place(name);
        let ends = place.match_indices('.').map(|(dot, _)| dot).chain([place.len()]);
        // `visual` is enough for `model.visual`.
        let prefixes = ends.map(|end| &place[..end]).filter(|prefix| prefix.len() <= KNOWN_BYTES_MAX);
        known.extend(prefixes.flat_map(|prefix| [prefix, prefix.rsplit('.').next().unwrap_or(prefix)]));
        known.insert(anatomy.part(name).name());
        if known.len() > KNOWN_MAX {
            break;
        }
    }
    let near = slip_of(written.trim_end_matches('.'), known)?;
    Selector::of(near, anatomy, names).map(|_| near)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: &[&str] = &[
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.visual.blocks.0.attn.qkv.weight",
        "model.visual.deepstack_merger_list.0.norm.weight",
        "model.visual.merger.norm.weight",
        "model.visual.pos_embed.weight",
    ];
    const T5: &[&str] = &[
        "decoder.block.0.layer.0.SelfAttention.q.weight",
        "decoder.final_layer_norm.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "lm_head.weight",
        "shared.weight",
    ];
    const LLAMA: &[&str] =
        &["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"];

    fn parts(names: &[&str]) -> Vec<&'static str> {
        let anatomy = Anatomy::of(names.iter().copied());
        names.iter().map(|name| anatomy.part(name).name()).collect()
    }

    fn meant<'n>(written: &str, names: &[&'n str]) -> Vec<&'n str> {
        let anatomy = Anatomy::of(names.iter().copied());
        let selector = Selector::of(written, anatomy, names.iter().copied());
        names
            .iter()
            .copied()
            .filter(|name| selector.as_ref().is_some_and(|s| s.fit(name, anatomy).is_some()))
            .collect()
    }

    #[test]
    fn names_fall_into_parts() {
        let (text, vision, between) = ("text_decoder", "vision_tower", "multi_modal_projector");
        assert_eq!(parts(QWEN), [text, text, text, vision, between, between, vision]);
        assert_eq!(parts(T5), ["decoder", "decoder", "encoder", "shared", "shared"]);
        assert_eq!(parts(LLAMA), ["default"; 3]);
        let whisper =
            ["model.decoder.layers.0.fc1.bias", "model.encoder.layers.0.fc1.bias", "proj_out.weight"];
        assert_eq!(parts(&whisper), ["decoder", "encoder", "shared"]);
        let old = ["language_model.model.layers.0.w", "vision_tower.vision_model.encoder.layers.0.w"];
        assert_eq!(parts(&old), [text, vision]);
        // An encoder alone is no half of anything, and a tower alone stands beside nothing.
        assert_eq!(parts(&["encoder.layer.0.w", "pooler.dense.weight"]), ["default"; 2]);
        assert_eq!(parts(&["vision_model.encoder.layers.0.w", "vision_model.w"]), ["default"; 2]);
    }

    #[test]
    fn modules_are_meant_by_parts_beginnings_and_words() {
        assert_eq!(meant("text_decoder", QWEN), QWEN[..3]);
        assert_eq!(meant("vision_tower", QWEN), [QWEN[3], QWEN[6]]);
        assert_eq!(meant("model.visual.", QWEN), QWEN[3..]);
        assert_eq!(meant("visual", QWEN), QWEN[3..]);
        assert_eq!(meant("model.language_model.layers", QWEN), [QWEN[2]]);
        assert_eq!(meant("default", QWEN), QWEN);
        assert_eq!(meant("shared", T5), T5[3..]);
        for whole in ["default", "text_decoder"] {
            assert_eq!(meant(whole, LLAMA), LLAMA);
        }
        // `block` stands in both halves.
        for nothing in ["vis", "visua", "block", "audio_tower", "up_proj"] {
            assert_eq!(meant(nothing, QWEN), [""; 0], "{nothing}");
            assert_eq!(meant(nothing, T5), [""; 0], "{nothing}");
        }
    }

    #[test]
    fn parts_are_described_by_prefix_and_few_tensors_by_name() {
        let of = |names: &[&str]| Anatomy::of(names.iter().copied());
        let line = described(of(QWEN), QWEN.iter().copied());
        let expected = "text_decoder (3 tensors), vision_tower (model.visual.*, 2 tensors), \
                        multi_modal_projector (model.visual.*, 2 tensors)";
        assert_eq!(line, expected);
        assert_eq!(described(of(LLAMA), LLAMA[..1].iter().copied()), "default (lm_head.*, 1 tensor)");
        assert_eq!(listed(of(LLAMA), LLAMA), LLAMA.join(", "));
        let tower = ["v.visual.a.w", "v.visual.b.w", "v.visual.blocks.0.w", "v.visual.blocks.1.w", QWEN[2]];
        let expected = format!("vision_tower (v.visual.*, 4 tensors), {}", QWEN[2]);
        assert_eq!(listed(of(&tower), &tower), expected);
        let loose = ["lm_head.weight", "norm.weight", "embed.weight", "model.layers.0.w"];
        assert_eq!(listed(of(&loose), &loose), "lm_head.weight and 3 more tensors");
        assert_eq!(prefix(&["model.visuals.w", "model.visual.w"]), "model");
        assert_eq!(prefix(&["model.visual.w", "model.visual.merger.w"]), "model.visual");
    }

    #[test]
    fn the_module_that_was_meant_is_found() {
        let meant = |written: &str| near(written, Anatomy::of(QWEN.iter().copied()), QWEN.iter().copied());
        assert_eq!(meant("model.visul"), Some("model.visual"));
        assert_eq!(meant("visul"), Some("visual"));
        assert_eq!(meant("text_decodr"), Some("text_decoder"));
        assert_eq!(meant("model.languagemodel."), Some("model.language_model"));
        assert_eq!(meant("talker"), None);
    }

    #[test]
    fn the_closest_module_has_a_tensor() {
        let anatomy = Anatomy::of(QWEN.iter().copied());
        let written = ["default", "model.visual.merger", "visual", "multi_modal_projector"];
        let selectors = written.map(|name| Selector::of(name, anatomy, QWEN.iter().copied()).unwrap());
        let of = |name: &str| module_of(&selectors, anatomy, name).map(|module| written[module]);
        assert_eq!(of(QWEN[0]), Some("default"));
        assert_eq!(of(QWEN[5]), Some("model.visual.merger"));
        assert_eq!(of(QWEN[4]), Some("visual"));
        assert_eq!(module_of(&selectors[1..2], anatomy, QWEN[0]), None);
    }
}
