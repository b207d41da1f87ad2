//! The folder of an adapter as PEFT reads it: its weights, its config and a card.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{Extracted, Module, Request, last};
use crate::checkpoint::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, Content, OutTensor, Reads, Sidecar, Sink, Source, TensorInfo,
    layout, names,
};
use crate::error::Result;
use crate::text::escaped;

/// What PEFT puts before the names of a model's modules.
const PREFIX: &str = "base_model.model.";

/// Bytes of a tensor that are copied at once.
const PIECE: u64 = 1 << 20;

/// Writes the folder of an adapter. It appears whole, under its final name, or not at all.
///
/// # Errors
/// It cannot be written, or the model's tensors can no longer be read.
pub fn write(
    out: &Path,
    tuned: &Source,
    base: &Source,
    request: &Request,
    extracted: &Extracted,
) -> Result<()> {
    let twin = tied_twin(tuned, &extracted.modules);
    let modules: Vec<&Module> = extracted.modules.iter().chain(&twin).collect();
    let saved = saved(tuned, extracted, &modules);
    let ranks = Ranks::of(tuned, request, &modules);
    let mut tensors = Vec::new();
    for module in &modules {
        let (kind, end) = if module.embedding { ("lora_embedding", "") } else { ("lora", ".weight") };
        let (rank, loaded) = (ranks.stored(module), loaded(tuned, &module.name));
        let shapes = [vec![rank, module.a.0[1]], vec![module.b.0[0], rank]];
        for (which, shape) in ["A", "B"].into_iter().zip(shapes) {
            let name = format!("{PREFIX}{loaded}.{kind}_{which}{end}");
            tensors.push(OutTensor { name, dtype: module.dtype, shape });
        }
    }
    tensors.extend(saved.iter().map(|(name, info)| {
        let (name, dtype, shape) =
            (format!("{PREFIX}{}", names::loaded(&tuned.config, name)), info.dtype, info.shape.clone());
        OutTensor { name, dtype, shape }
    }));
    let mut layout = layout(&tensors, u64::MAX);
    ADAPTER_WEIGHTS[0].clone_into(&mut layout.shards[0].file);
    let sink = Sink::create(out, &layout, tuned.access.and(base.access))?;
    for (number, module) in modules.iter().enumerate() {
        let (a, b) = padded(module, ranks.stored(module));
        sink.write_at(2 * number, 0, &a)?;
        sink.write_at(2 * number + 1, 0, &b)?;
    }
    let mut piece = Vec::new();
    for (place, (_, info)) in (2 * modules.len()..).zip(&saved) {
        for first in (0..info.bytes).step_by(PIECE as usize) {
            piece.resize(PIECE.min(info.bytes - first) as usize, 0);
            tuned.read_at(info, first, &mut piece, Reads::Copied)?;
            sink.write_at(place, first, &piece)?;
        }
    }
    [tuned, base].into_iter().try_for_each(Source::verify_unchanged)?;
    let mut config = serde_json::to_vec_pretty(&config((tuned, base), request, &ranks, &modules, &saved))
        .expect("it is plain JSON");
    config.push(b'\n');
    let files = [
        Sidecar { file: CARD.into(), content: Content::Bytes(card(tuned, base, extracted).into_bytes()) },
        Sidecar { file: ADAPTER_CONFIG.into(), content: Content::Bytes(config) },
    ];
    sink.finish(&files, &|| false)
}

/// The rank of each module as it is stored.
struct Ranks {
    /// The adapter's own, and the largest.
    most: usize,
    /// Whether all modules have it, the smaller ones with zeros behind their factors. A pattern that names a module would have to
    /// name it as PEFT sees it, which for a mixture is not how the checkpoint does.
    equal: bool,
}

impl Ranks {
    fn of(tuned: &Source, request: &Request, modules: &[&Module]) -> Self {
        let most = match request.alpha {
            Some(_) => request.rank,
            None => modules.iter().map(|module| rank_of(module)).max().unwrap_or(1),
        };
        let is_mixture = tuned.tensors().any(|tensor| tensor.name.contains(".experts."));
        Self { most, equal: request.error == 0.0 || is_mixture }
    }

    fn stored(&self, module: &Module) -> usize {
        if self.equal { self.most } else { rank_of(module) }
    }
}

/// The rank of a module's product.
fn rank_of(module: &Module) -> usize {
    module.a.0[0]
}

/// The factors of a module with zeros up to a rank.
fn padded(module: &Module, rank: usize) -> (Cow<'_, [u8]>, Cow<'_, [u8]>) {
    let ((_, a), (_, b)) = (&module.a, &module.b);
    if rank == rank_of(module) {
        return (Cow::Borrowed(a), Cow::Borrowed(b));
    }
    let (row_of_a, row_of_b) = (a.len() / rank_of(module), b.len() / module.b.0[0]);
    let mut longer = a.clone();
    longer.resize(row_of_a * rank, 0);
    let mut wider = vec![0; b.len() / rank_of(module) * rank];
    let rows = wider.chunks_exact_mut(row_of_b / rank_of(module) * rank).zip(b.chunks_exact(row_of_b));
    rows.for_each(|(wider, row)| wider[..row_of_b].copy_from_slice(row));
    (Cow::Owned(longer), Cow::Owned(wider))
}

/// The name of a module as PEFT sees it.
fn loaded(tuned: &Source, module: &str) -> String {
    names::loaded(&tuned.config, &format!("{module}.")).trim_end_matches('.').to_owned()
}

/// The head of a model whose head is its embedding.
const HEAD: &str = "lm_head";

/// The input embedding of a model whose head is the same tensor.
fn tied_embedding(tuned: &Source) -> Option<&str> {
    let says = tuned.config.get("tie_word_embeddings").and_then(Json::as_bool);
    let is_tied = says.unwrap_or_else(|| task(tuned) == "CAUSAL_LM");
    let tensors = || tuned.tensors().map(|tensor| tensor.name.as_str());
    let has_head = tensors().any(names::is_head);
    let embedding = tensors().find(|name| names::is_embedding(name)).filter(|_| is_tied && !has_head)?;
    embedding.strip_suffix(".weight")
}

/// What changes a tied head as its embedding changes: under PEFT each of them has a product of its own.
fn tied_twin(tuned: &Source, modules: &[Module]) -> Option<Module> {
    let embedding = tied_embedding(tuned)?;
    let of = modules.iter().find(|module| module.name == embedding)?;
    let flipped = |(shape, bytes): &(Vec<usize>, Vec<u8>)| {
        let [rows, columns] = shape[..] else { unreachable!("factors are matrices") };
        let element = bytes.len() / (rows * columns);
        let place = |i: usize| (i % rows * columns + i / rows) * element;
        let bytes = (0..rows * columns).flat_map(|i| bytes[place(i)..][..element].to_vec()).collect();
        (vec![columns, rows], bytes)
    };
    let (a, b) = (flipped(&of.b), flipped(&of.a));
    Some(Module {
        name: HEAD.into(),
        embedding: false,
        transposed: false,
        dtype: of.dtype,
        a,
        b,
        squares: 0.0,
        lost: 0.0,
    })
}

/// The tensors that are saved whole, by the names that PEFT gives them: it puts a layer around modules that have a product.
fn saved<'a>(tuned: &'a Source, extracted: &Extracted, modules: &[&Module]) -> Vec<(String, &'a TensorInfo)> {
    let adapted: BTreeSet<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    let embedding = tied_embedding(tuned);
    let mut saved = Vec::new();
    for name in &extracted.saved {
        let info = tuned.tensor(name).expect("it is the model's");
        let (module, tensor) = name.rsplit_once('.').unwrap_or(("", name));
        saved.push((
            if adapted.contains(module) { format!("{module}.base_layer.{tensor}") } else { name.clone() },
            info,
        ));
        if Some(module) == embedding {
            saved.push((format!("{HEAD}.{tensor}"), info));
        }
    }
    saved
}

/// `adapter_config.json`.
fn config(
    (tuned, base): (&Source, &Source),
    request: &Request,
    ranks: &Ranks,
    modules: &[&Module],
    saved: &[(String, &TensorInfo)],
) -> Json {
    let rank = ranks.most;
    let alpha_of = |rank: usize| number(request.scale() * rank as f64);
    let other = modules.iter().map(|module| (loaded(tuned, &module.name), ranks.stored(module)));
    let other: Vec<(String, usize)> = other.filter(|(_, stored)| *stored != rank).collect();
    let ranks: Map<String, Json> = other.iter().map(|(name, rank)| (name.clone(), (*rank).into())).collect();
    let alphas: Map<String, Json> =
        other.iter().map(|(name, rank)| (name.clone(), alpha_of(*rank))).collect();
    let whole: BTreeSet<&str> =
        saved.iter().filter_map(|(name, _)| name.strip_suffix(".weight")).map(last).collect();
    // The head stands beside an embedding that it is tied to.
    let is_head = |name: &str| name.split('.').next() == Some(HEAD);
    let tied = tied_embedding(tuned).is_some()
        && (modules.iter().any(|module| is_head(&module.name))
            || saved.iter().any(|(name, _)| is_head(name)));
    let is_bias = |name: &str| {
        name.rsplit_once('.')
            .is_some_and(|(module, tensor)| tensor == "bias" && !whole.contains(last(module)))
    };
    let with_bias = saved.iter().any(|(name, _)| is_bias(name));
    json!({
        "peft_type": "LORA",
        "task_type": task(tuned),
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": alpha_of(rank),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "bias": if with_bias { "all" } else { "none" },
        "fan_in_fan_out": modules.iter().any(|module| module.transposed),
        "target_modules": targets(tuned, modules),
        "modules_to_save": if whole.is_empty() { Json::Null } else { json!(whole) },
        "ensure_weight_tying": tied,
        "use_rslora": false,
        "use_dora": false,
        "init_lora_weights": true,
        "inference_mode": true,
    })
}

/// A number without a fraction as an integer, as PEFT writes it.
fn number(value: f64) -> Json {
    if value.fract() == 0.0 && value.abs() < 1e9 { (value as i64).into() } else { value.into() }
}

/// The modules with a product: by the last parts of their names where these mean no other module, else by their names.
fn targets(tuned: &Source, modules: &[&Module]) -> Vec<String> {
    let names: BTreeSet<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    let lasts: BTreeSet<&str> = names.iter().map(|name| last(name)).collect();
    let all = tuned.tensors().filter_map(|tensor| tensor.name.strip_suffix(".weight"));
    let mut others = all.filter(|module| lasts.contains(last(module)) && !names.contains(module));
    let exact = others.next().is_some();
    if exact {
        names.into_iter().map(|name| loaded(tuned, name)).collect()
    } else {
        lasts.into_iter().map(str::to_owned).collect()
    }
}

/// PEFT's word for what the model does.
fn task(tuned: &Source) -> Json {
    let class = tuned
        .config
        .get("architectures")
        .and_then(|all| all.get(0))
        .and_then(Json::as_str)
        .unwrap_or_default();
    let tasks = [
        ("ForCausalLM", "CAUSAL_LM"),
        ("LMHeadModel", "CAUSAL_LM"),
        ("ForSequenceClassification", "SEQ_CLS"),
        ("ForTokenClassification", "TOKEN_CLS"),
    ];
    tasks.iter().find(|(end, _)| class.ends_with(end)).map_or(Json::Null, |(_, task)| (*task).into())
}

/// The model card.
fn card(tuned: &Source, base: &Source, extracted: &Extracted) -> String {
    let code = |text: &str| format!("`{}`", escaped(text).replace('`', "'"));
    let rows: Vec<String> = extracted
        .kinds()
        .iter()
        .map(|(kind, of)| format!("| {} | {} | {} | {:.4} |", code(kind), of.modules, of.ranks(), of.error()))
        .collect();
    // A path of this machine means nothing to others.
    let is_on_hub = base.name.split('/').count() == 2 && !base.name.starts_with(['.', '/', '~']);
    let of =
        if is_on_hub { format!("base_model: {}\n", Json::from(base.name.as_str())) } else { String::new() };
    let total = extracted.error();
    let notes: Vec<String> = extracted.notes.iter().map(|note| format!("\n- {}\n", code(note))).collect();
    let notes = notes.concat();
    format!(
        "---\n{of}library_name: peft\ntags:\n- lora\n- mergeforge\n---\n\n\
         # LoRA\n\nWhat {} has that {} has not, as an adapter of low rank, extracted by mergeforge {}.\n\n\
         The adapter lacks {total:.4} of the Frobenius norm of the change, all tensors together:\n\n\
         | modules | number | rank | lost |\n|---|---|---|---|\n{}\n{notes}",
        code(&tuned.name),
        code(&base.name),
        env!("CARGO_PKG_VERSION"),
        rows.join("\n"),
    )
}
