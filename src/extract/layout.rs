//! The folder of an adapter as PEFT reads it: its weights, its config and a card.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json, json};

use super::difference::read;
use super::{Extracted, Listen, Module, Request, by_kind, family, last, peft, share_of};
use crate::checkpoint::{
    ADAPTER_CONFIG, ADAPTER_PREFIX, ADAPTER_WEIGHTS, Access, AdapterPart, CARD, Content, OutTensor, Sidecar,
    Sink, Source, layout, names, peft_task,
};
use crate::dtype::{Dtype, Float, decode, encode, float_bytes};
use crate::error::{Error, Result};
use crate::plan::{Compared, ComparedTensor};
use crate::text::escaped;

/// Elements of a tensor that are copied at once.
const PIECE: usize = 1 << 18;

/// Writes the folder of an adapter. It appears whole, under its final name, or not at all.
///
/// # Errors
/// It cannot be written, the model's tensors can no longer be read, or the user wants to stop.
pub fn write(
    out: &Path,
    models: &Compared,
    request: &Request,
    extracted: &Extracted,
    listen: &dyn Listen,
) -> Result<()> {
    let twin = tied_twin(models, &extracted.modules);
    let idle = idle_experts(models, &extracted.modules);
    let modules: Vec<&Module> = extracted.modules.iter().chain(&twin).chain(&idle).collect();
    let saved = saved(models, extracted, &modules);
    let ranks = Ranks::of(models, request, &modules);
    let mut tensors = Vec::new();
    for module in &modules {
        let parts = if module.embedding {
            [AdapterPart::EmbeddingA, AdapterPart::EmbeddingB]
        } else {
            [AdapterPart::A, AdapterPart::B]
        };
        let (rank, loaded) = (ranks.stored(module), loaded(models, &module.name));
        let shapes = [vec![rank, module.a.0[1]], vec![module.b.0[0], rank]];
        tensors.extend(parts.into_iter().zip(shapes).map(|(part, shape)| OutTensor {
            name: part.of(&loaded),
            dtype: module.dtype,
            shape,
        }));
    }
    tensors.extend(saved.iter().map(|(name, tensor)| OutTensor {
        name: format!("{ADAPTER_PREFIX}{}", names::loaded(&models.base.config, name)),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
    }));
    let mut layout = layout(&tensors, u64::MAX);
    ADAPTER_WEIGHTS[0].clone_into(&mut layout.shards[0].file);
    let mut access = models.sources.iter().map(|source| source.access);
    let first = access.next().expect("there is a model");
    let (sink, _) = Sink::create(out, &layout, access.fold(first, Access::and), None)?;
    for (number, module) in modules.iter().enumerate() {
        let (a, b) = padded(module, ranks.stored(module));
        sink.write_at(2 * number, 0, &a)?;
        sink.write_at(2 * number + 1, 0, &b)?;
    }
    for (place, (_, tensor)) in (2 * modules.len()..).zip(&saved) {
        copy(models, tensor, &sink, place, listen)?;
    }
    models.sources.iter().try_for_each(Source::verify_unchanged)?;
    let config = config(models, request, &ranks, &modules, &saved);
    let mut config = serde_json::to_vec_pretty(&config).expect("it is plain JSON");
    config.push(b'\n');
    let files = [
        Sidecar { file: CARD.into(), content: Content::Bytes(card(models, extracted).into_bytes()) },
        Sidecar { file: ADAPTER_CONFIG.into(), content: Content::Bytes(config) },
    ];
    sink.finish(&files, &|| listen.stop())
}

/// Copies a tensor of the model, in the type that it counts as.
fn copy(
    models: &Compared,
    tensor: &ComparedTensor,
    sink: &Sink,
    place: usize,
    listen: &dyn Listen,
) -> Result<()> {
    let element_bytes = float_bytes(tensor.dtype);
    for first in (0..tensor.elements()).step_by(PIECE) {
        if listen.stop() {
            return Err(Error::interrupted());
        }
        let elements = PIECE.min(tensor.elements() - first);
        let mut bytes = vec![0; elements * float_bytes(tensor.read_as)];
        read(models, tensor, first, &mut bytes, listen)?;
        if tensor.read_as != tensor.dtype {
            bytes = converted(&bytes, tensor.read_as, tensor.dtype);
        }
        assert_eq!(bytes.len(), elements * element_bytes, "as many bytes as the header says");
        sink.write_at(place, (first * element_bytes) as u64, &bytes)?;
    }
    Ok(())
}

/// Floats in another type, rounded once.
fn converted(bytes: &[u8], from: Dtype, to: Dtype) -> Vec<u8> {
    let values = match Float::of(from) {
        Some(float) => {
            let mut values = vec![0.0; bytes.len() / float.bytes()];
            decode(float, bytes, &mut values);
            values
        }
        None => bytes.as_chunks().0.iter().map(|value| f64::from_le_bytes(*value) as f32).collect(),
    };
    let Some(float) = Float::of(to) else {
        return values.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect();
    };
    let mut bytes = vec![0; values.len() * float.bytes()];
    encode(float, &values, &mut bytes);
    bytes
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
    fn of(models: &Compared, request: &Request, modules: &[&Module]) -> Self {
        let most = match request.alpha {
            Some(_) => request.rank,
            None => modules.iter().map(|module| rank_of(module)).max().unwrap_or(1),
        };
        let is_mixture = models.tuned.tensors.keys().any(|name| name.contains(".experts."));
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
fn loaded(models: &Compared, module: &str) -> String {
    names::loaded(&models.base.config, &format!("{module}.")).trim_end_matches('.').to_owned()
}

/// The module of the input embedding that is the head as well, and that of the head.
fn tied(models: &Compared) -> Option<(&str, &str)> {
    let (embedding, head) = models.tied.as_ref()?;
    Some((embedding.strip_suffix(".weight")?, head.strip_suffix(".weight")?))
}

/// What changes a tied head as its embedding changes: under PEFT each of them has a product of its own.
fn tied_twin(models: &Compared, modules: &[Module]) -> Option<Module> {
    let (embedding, head) = tied(models)?;
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
        name: head.into(),
        embedding: false,
        transposed: false,
        dtype: of.dtype,
        a,
        b,
        squares: 0.0,
        lost: 0.0,
    })
}

/// Factors of zeros for experts beside those that have a product: PEFT stacks all of a layer.
fn idle_experts(models: &Compared, modules: &[Module]) -> Vec<Module> {
    let stack = |module| peft::stack(family(models), module);
    let stacks: BTreeMap<&str, Dtype> =
        modules.iter().filter_map(|module| Some((stack(&module.name)?, module.dtype))).collect();
    let adapted: BTreeSet<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    let idle = models.base.tensors.iter().filter_map(|(name, tensor)| {
        let module = name.strip_suffix(".weight").filter(|module| !adapted.contains(module))?;
        let dtype = *stacks.get(stack(module)?)?;
        let [rows, columns] = tensor.shape[..] else { return None };
        let zeros = |count: usize| vec![0; count * float_bytes(dtype)];
        Some(Module {
            name: module.into(),
            embedding: false,
            transposed: false,
            dtype,
            a: (vec![1, columns], zeros(columns)),
            b: (vec![rows, 1], zeros(rows)),
            squares: 0.0,
            lost: 0.0,
        })
    });
    idle.collect()
}

/// The tensors that are saved whole, by the names that PEFT gives them: it puts a layer around modules that have a product.
fn saved<'a>(
    models: &'a Compared,
    extracted: &Extracted,
    modules: &[&Module],
) -> Vec<(String, &'a ComparedTensor)> {
    let adapted: BTreeSet<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    let mut saved = Vec::new();
    for name in &extracted.saved {
        let tensor = &models.tuned.tensors[name];
        let (module, parameter) = name.rsplit_once('.').unwrap_or(("", name));
        let is_adapted = adapted.contains(module);
        let own = if is_adapted { format!("{module}.base_layer.{parameter}") } else { name.clone() };
        saved.push((own, tensor));
        if let Some((_, head)) = tied(models).filter(|(embedding, _)| *embedding == module) {
            saved.push((format!("{head}.{parameter}"), tensor));
        }
    }
    saved
}

/// `adapter_config.json`.
fn config(
    models: &Compared,
    request: &Request,
    ranks: &Ranks,
    modules: &[&Module],
    saved: &[(String, &ComparedTensor)],
) -> Json {
    let rank = ranks.most;
    let alpha_of = |rank: usize| number(request.scale() * rank as f64);
    let other = modules.iter().map(|module| (loaded(models, &module.name), ranks.stored(module)));
    let other: Vec<(String, usize)> = other.filter(|(_, stored)| *stored != rank).collect();
    let ranks: Map<String, Json> = other.iter().map(|(name, rank)| (name.clone(), (*rank).into())).collect();
    let alphas: Map<String, Json> =
        other.iter().map(|(name, rank)| (name.clone(), alpha_of(*rank))).collect();
    let whole: BTreeSet<String> = saved
        .iter()
        .filter_map(|(name, _)| name.strip_suffix(".weight"))
        .map(|module| last(&loaded(models, module)).to_owned())
        .collect();
    // The head stands beside an embedding that it is tied to.
    let is_tied = tied(models).is_some_and(|(_, head)| {
        let saved = saved.iter().filter_map(|(name, _)| name.strip_suffix(".weight"));
        modules.iter().map(|module| module.name.as_str()).chain(saved).any(|module| module == head)
    });
    let is_bias = |name: &str| {
        name.rsplit_once('.')
            .is_some_and(|(module, tensor)| tensor == "bias" && !whole.contains(last(module)))
    };
    let with_bias = saved.iter().any(|(name, _)| is_bias(name));
    json!({
        "peft_type": "LORA",
        "task_type": peft_task(&models.base.config),
        "base_model_name_or_path": models.base.reference.path,
        "revision": models.base.reference.revision,
        "r": rank,
        "lora_alpha": alpha_of(rank),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": 0.0,
        "bias": if with_bias { "all" } else { "none" },
        "fan_in_fan_out": modules.iter().any(|module| module.transposed),
        "target_modules": targets(models, modules),
        "modules_to_save": if whole.is_empty() { Json::Null } else { json!(whole) },
        "ensure_weight_tying": is_tied,
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
fn targets(models: &Compared, modules: &[&Module]) -> Vec<String> {
    let names: BTreeSet<&str> = modules.iter().map(|module| module.name.as_str()).collect();
    let lasts: BTreeSet<&str> = names.iter().map(|name| last(name)).collect();
    let all = models.tuned.tensors.keys().filter_map(|name| name.strip_suffix(".weight"));
    let mut others = all.filter(|module| lasts.contains(last(module)) && !names.contains(module));
    let exact = others.next().is_some();
    if exact {
        names.into_iter().map(|name| loaded(models, name)).collect()
    } else {
        names
            .into_iter()
            .map(|name| last(&loaded(models, name)).to_owned())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }
}

/// The model card.
fn card(models: &Compared, extracted: &Extracted) -> String {
    let code = |text: &str| format!("`{}`", escaped(text).replace('`', "'"));
    let Compared { tuned, base, .. } = models;
    let mut text = String::from("---\n");
    // A path of this machine means nothing to others.
    if base.reference.is_on_hub() {
        text += &format!("base_model: {}\n", Json::from(base.reference.path.as_str()));
    }
    let total = extracted.error();
    text += &format!(
        "library_name: peft\ntags:\n- lora\n- mergeforge\n---\n\n\
         # LoRA\n\nWhat {} has that {} has not, as an adapter of low rank, extracted by mergeforge {}.\n\n\
         The adapter lacks {total:.4} of the Frobenius norm of the change, all tensors together.\n",
        code(&tuned.name),
        code(&base.name),
        env!("CARGO_PKG_VERSION"),
    );
    if let Some(note) = extracted.of_adapted_base(models) {
        text += &format!("\nIt belongs to {}: {note}.\n", code(&base.name));
    }
    let mut table = |head: &str, rows: Vec<String>| {
        if !rows.is_empty() {
            text += &format!("\n{head}\n{}\n", rows.join("\n"));
        }
    };
    let products = extracted.kinds().into_iter().map(|(kind, of)| {
        format!("| {} | {} | {} | {:.4} |", code(kind), of.modules, of.ranks(), of.error())
    });
    table("| modules | number | rank | lost |\n|---|---|---|---|", products.collect());
    let number = |kinds: IndexMap<String, Vec<usize>>| {
        kinds.into_iter().map(|(kind, of)| format!("| {} | {} |", code(&kind), of.len())).collect()
    };
    let names = extracted.saved.iter().map(String::as_str);
    table("Saved whole:\n\n| tensors | number |\n|---|---|", number(by_kind(names)));
    let squares = extracted.squares();
    let lost = extracted.lost_kinds().into_iter().map(|(kind, (count, lost))| {
        format!("| {} | {count} | {:.4} |", code(&kind), share_of(lost, squares))
    });
    table(
        "Changed, and not in the adapter, with their share of the norm of all changes:\n\n\
         | tensors | number | share |\n|---|---|---|",
        lost.collect(),
    );
    for remark in &extracted.remarks {
        let head = format!("{}:\n\n| tensors | number |\n|---|---|", capitalised(remark.what));
        table(&head, number(by_kind(remark.names.iter().map(String::as_str))));
    }
    text
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
