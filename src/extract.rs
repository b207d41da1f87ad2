//! The way back from a fine-tuned model to an adapter: what of the difference from its base a low rank holds, in PEFT's layout.
//!
//! Each matrix is decomposed by itself, by one thread; the difference is read by rows as often as it is needed, and never whole in
//! memory. What the rank, and the rounding of the adapter's own numbers, lose of it is measured, not estimated.

mod difference;
mod layout;
mod peft;
mod products;
pub(crate) mod svd;
mod symmetric;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use indexmap::IndexMap;
use regex::Regex;

pub use layout::write;

use crate::checkpoint::names;
use crate::dtype::{Dtype, Float, decode, encode, float_bytes, is_float};
use crate::error::{Error, Result};
use crate::input;
use crate::plan::{Compared, ComparedTensor};
use crate::text::{escaped, quoted};
use crate::threads;
use difference::Difference;
use products::scale;
use svd::{ByRows, Svd, Wanted, decompose, transposed as transposed_of};

/// What an adapter is to hold of the difference.
#[derive(Debug, Clone)]
pub struct Request {
    /// The largest rank of a module.
    pub rank: usize,
    /// The share of the Frobenius norm that a module may lose, if that needs less than the rank; 0: the rank counts.
    pub error: f64,
    /// α of the adapter; without one it is its rank, so that products are added as they are.
    pub alpha: Option<f64>,
    /// The modules to take, by expressions that fit a part of their names; none: all.
    pub modules: Vec<Regex>,
    /// The modules to leave out.
    pub exclude: Vec<Regex>,
    /// Whether embeddings get a product too.
    pub embeddings: bool,
    /// Modules that are saved whole, by the last parts of their names.
    pub save_modules: Vec<String>,
    /// Whether embeddings of tokens and heads that changed are saved whole, and get no product.
    pub save_embeddings: bool,
    /// Whether all that changed and is no matrix is saved whole.
    pub save_changed: bool,
    /// The type of the adapter's numbers; without one that of the model's.
    pub dtype: Option<Float>,
    /// Threads.
    pub threads: usize,
}

/// Hears of the work, and can end it.
pub trait Listen: Sync {
    /// How many bytes of the model there are to compare with its base.
    fn expect(&self, bytes: u64);
    /// So many bytes more were read: most are read several times.
    fn read(&self, bytes: u64);
    /// So many bytes more of the model are done.
    fn done(&self, bytes: u64);
    /// Whether the work should stop. Every thread asks at least once a second.
    fn stop(&self) -> bool;
}

/// An adapter, and what it lacks.
#[derive(Debug)]
pub struct Extracted {
    /// Modules with a product, in the model's order.
    pub modules: Vec<Module>,
    /// Names of tensors that are saved whole.
    pub saved: Vec<String>,
    /// Tensors that differ and of which the adapter holds nothing; those with NaN or infinity have no norm and count as 0.
    pub lost: Vec<Lost>,
    /// How many tensors are as in the base.
    pub unchanged: usize,
    /// Tensors that the user should look at.
    pub remarks: Vec<Remark>,
}

/// What is to say of some tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// What it is.
    pub what: &'static str,
    /// Whether it is a warning: something that the user would not expect.
    pub warns: bool,
    /// Their names.
    pub names: Vec<String>,
}

/// A module with a product.
#[derive(Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Whether it is an embedding.
    pub embedding: bool,
    /// Whether its weight has a row for each of what goes in, though it is no embedding.
    pub transposed: bool,
    /// The type of its product's numbers.
    pub dtype: Dtype,
    /// `A`, as it is stored: its shape, of which the rank is the first side, and its bytes.
    pub a: (Vec<usize>, Vec<u8>),
    /// `B`, in the same way.
    pub b: (Vec<usize>, Vec<u8>),
    /// The square of the difference's Frobenius norm.
    pub squares: f64,
    /// The same of what the product lacks of it.
    pub lost: f64,
}

impl Module {
    /// What is lost, as a share of the Frobenius norm of the change.
    pub fn error(&self) -> f64 {
        share_of(self.lost, self.squares)
    }
}

/// Modules of one kind, by the last part of their names.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// How many.
    pub modules: usize,
    /// The smallest and the largest rank.
    pub ranks: (usize, usize),
    squares: f64,
    lost: f64,
}

impl Kind {
    /// The ranks in words.
    pub fn ranks(&self) -> String {
        let (least, most) = self.ranks;
        if least == most { most.to_string() } else { format!("{least} to {most}") }
    }

    /// What is lost, as a share of the Frobenius norm of the change.
    pub fn error(&self) -> f64 {
        share_of(self.lost, self.squares)
    }
}

impl Extracted {
    /// The modules with a product by kind, in the order of the model.
    pub fn kinds(&self) -> IndexMap<&str, Kind> {
        let mut kinds: IndexMap<&str, Kind> = IndexMap::new();
        for module in &self.modules {
            let rank = module.a.0[0];
            let none = Kind { modules: 0, ranks: (rank, rank), squares: 0.0, lost: 0.0 };
            let kind = kinds.entry(last(&module.name)).or_insert(none);
            kind.modules += 1;
            kind.ranks = (kind.ranks.0.min(rank), kind.ranks.1.max(rank));
            kind.squares += module.squares;
            kind.lost += module.lost;
        }
        kinds
    }

    /// What is lost of all changes together, those that no product stands for among them, but for tensors that are saved whole.
    pub fn error(&self) -> f64 {
        let lost: f64 = self.lost.iter().map(|lost| lost.squares).sum();
        share_of(self.modules.iter().fold(lost, |lost, module| lost + module.lost), self.squares())
    }

    /// The square of the norm of all changes together, but for those of tensors that are saved whole.
    fn squares(&self) -> f64 {
        let lost: f64 = self.lost.iter().map(|lost| lost.squares).sum();
        self.modules.iter().fold(lost, |all, module| all + module.squares)
    }

    /// What nothing is kept of, by kind: how many tensors, and the square of the norm of their changes.
    pub fn lost_kinds(&self) -> IndexMap<String, (usize, f64)> {
        let squares = |places: &Vec<usize>| places.iter().map(|place| self.lost[*place].squares).sum();
        let kinds = by_kind(self.lost.iter().map(|lost| lost.name.as_str()));
        kinds.into_iter().map(|(kind, places)| (kind, (places.len(), squares(&places)))).collect()
    }

    /// What to do with the adapter where its base has one too.
    pub fn of_adapted_base(&self, models: &Compared) -> Option<String> {
        let lora = models.base.reference.lora.as_ref()?;
        Some(format!(
            "merge the adapter {} into {} first, or load both beside each other",
            escaped(&lora.to_string()),
            escaped(&models.base.reference.base().to_string())
        ))
    }
}

fn share_of(lost: f64, squares: f64) -> f64 {
    if squares == 0.0 { 0.0 } else { (lost / squares).sqrt() }
}

/// A tensor that differs, and of which nothing is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Lost {
    /// Its name.
    pub name: String,
    /// Why no product stands for it.
    pub why: &'static str,
    /// The square of the difference's Frobenius norm.
    pub squares: f64,
}

/// Names by kind, in their order: those that differ in numbers alone are one, with `*` in their places, and the places that it has.
pub fn by_kind<'a>(names: impl IntoIterator<Item = &'a str>) -> IndexMap<String, Vec<usize>> {
    let mut kinds: IndexMap<Vec<&str>, Vec<(usize, &str)>> = IndexMap::new();
    for (place, name) in names.into_iter().enumerate() {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let kind = name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect();
        kinds.entry(kind).or_default().push((place, name));
    }
    let shown = |(kind, of): (Vec<&str>, Vec<(usize, &str)>)| {
        let name = if let [(_, only)] = of[..] { only.to_owned() } else { kind.join(".") };
        (name, of.into_iter().map(|(place, _)| place).collect())
    };
    kinds.into_iter().map(shown).collect()
}

/// Models whose layers have weights with a row for each of what goes in.
const TRANSPOSED: &[&str] = &["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];

/// Extracts the adapter that makes the model of its base, as far as the request lets it.
///
/// # Errors
/// The models do not belong together, a file cannot be read, or the user wants to stop.
pub fn extract(models: &Compared, request: &Request, listen: &dyn Listen) -> Result<Extracted> {
    let mut remarks = Vec::new();
    names_nothing(models, request)?;
    if !(request.scale() as f32).is_normal() {
        let what = format!("products would be multiplied with {:e} (alpha over rank)", request.scale());
        return Err(Error::config(format!("{what}, which float32 does not hold"))
            .hint("leave out --alpha: products are then added as they are"));
    }
    let pairs = pairs(models, request, &mut remarks)?;
    if pairs.is_empty() {
        return Err(nothing_in_common(models, &remarks));
    }
    listen.expect(pairs.iter().map(Pair::bytes).sum());
    let found = share(&pairs, request.threads, |pair| {
        let found = pair.look(request, listen);
        pair.release();
        found
    })?;
    // Of modules that are saved PEFT wants all that have the same last part of their names.
    let mut whole: Vec<&str> = request.save_modules.iter().map(String::as_str).collect();
    let changed = pairs.iter().zip(&found).filter(|(_, found)| found.is_change());
    let is_saved = |pair: &&Pair<'_>| {
        let no_matrix = request.save_changed && pair.of_tuned.shape.len() != 2 && !pair.is_bias();
        no_matrix || pair.left_out(request) == Some(SAVED_EMBEDDING)
    };
    whole.extend(changed.map(|(pair, _)| pair).filter(is_saved).map(|pair| last(pair.module())));
    let mut out =
        Extracted { modules: Vec::new(), saved: Vec::new(), lost: Vec::new(), unchanged: 0, remarks };
    let family = family(models);
    let is_whole =
        |pair: &Pair<'_>| whole.contains(&last(pair.module())) && !peft::is_in_kernel(family, pair.module());
    let mut no_numbers = Vec::new();
    for (pair, found) in pairs.iter().zip(found) {
        let name = || pair.name.to_owned();
        let bias = request.save_changed && pair.is_bias() && found.is_change();
        if matches!(found, Found::Change(squares) if !squares.is_finite()) {
            no_numbers.push(name());
        }
        match found {
            Found::Module(module) => out.modules.push(*module),
            Found::Change(_) if bias || is_whole(pair) => out.saved.push(name()),
            Found::Change(squares) if squares != 0.0 => {
                let why = pair.left_out(request).expect("all others have a product");
                let squares = if squares.is_finite() { squares } else { 0.0 };
                out.lost.push(Lost { name: name(), why, squares });
            }
            Found::Change(_) => out.unchanged += 1,
        }
    }
    remark(&mut out.remarks, no_numbers, "NaN or infinity in one of the models: no norm counts their change");
    if out.modules.is_empty() {
        return Err(without_products(models, &out));
    }
    let modules = out.modules.iter().map(|module| format!("{}.weight", module.name));
    let is_loaded_otherwise = |name: &String| names::is_loaded_otherwise(&models.base.config, name);
    let passed_over = out.modules.iter().filter(|module| peft::passes_over(family, &module.name));
    let passed_over: Vec<String> = passed_over.map(|module| format!("{}.weight", module.name)).collect();
    if !passed_over.is_empty() {
        let what = "in the adapter, but PEFT 0.21 does not apply them and says nothing: mergeforge's own BASE+ADAPTER does";
        out.remarks.push(Remark { what, warns: true, names: passed_over });
    }
    remark(
        &mut out.remarks,
        modules.chain(out.saved.iter().cloned()).filter(is_loaded_otherwise).collect(),
        "in the adapter under names that transformers may not know once it has loaded the model, and PEFT leaves out what it does not find: compare with model.named_modules()",
    );
    Ok(out)
}

/// The refusal of models of which no tensor can be compared.
fn nothing_in_common(models: &Compared, remarks: &[Remark]) -> Error {
    let (tuned, base) = (&models.tuned.name, &models.base.name);
    let mut what = format!("{tuned} and {base} have no tensor in common that could be compared");
    for remark in remarks {
        what += &format!("; {}: {}", remark.what, in_short(remark.names.iter().map(String::as_str)));
    }
    Error::config(what)
        .hint("the base must be the model that was fine-tuned, with the same architecture and names")
}

/// The refusal of an adapter without a product: PEFT loads none.
fn without_products(models: &Compared, found: &Extracted) -> Error {
    let (tuned, base) = (&models.tuned.name, &models.base.name);
    let mut reasons: IndexMap<&str, Vec<&str>> = IndexMap::new();
    for lost in &found.lost {
        reasons.entry(lost.why).or_default().push(&lost.name);
    }
    for name in &found.saved {
        let is_matrix = is_matrix(name, &models.tuned.tensors[name]);
        let why = if is_matrix {
            "saved whole, where --embeddings or no --save-module gives a product"
        } else {
            "saved whole"
        };
        reasons.entry(why).or_default().push(name);
    }
    if reasons.is_empty() {
        let equal = format!("{tuned} and {base} differ in nothing: {} tensors are the same", found.unchanged);
        let missing = found.remarks.iter().map(|remark| {
            format!("; {}: {}", remark.what, in_short(remark.names.iter().map(String::as_str)))
        });
        return Error::config(missing.fold(equal, |all, one| all + &one))
            .hint("the first model is the fine-tuned one, the second its base");
    }
    let hint = if reasons.keys().any(|why| why.contains("--")) {
        "change these flags, so that one of these weights at least gets a product"
    } else {
        "use the fine-tuned model itself: a merge takes its difference from the base as it is"
    };
    let reasons = reasons.into_iter().map(|(why, names)| format!("{} ({why})", in_short(names)));
    let what = format!(
        "no weight gets a product, and PEFT loads no adapter without one; between {tuned} and {base} these changed: {}",
        reasons.collect::<Vec<_>>().join("; ")
    );
    Error::config(what).hint(hint)
}

/// Kinds of tensors in an error: the first few.
fn in_short<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const KINDS_MAX: usize = 3;
    let kinds = by_kind(names);
    let more = kinds.len().saturating_sub(KINDS_MAX);
    let kinds = kinds.iter().take(KINDS_MAX).map(|(kind, of)| match of.len() {
        1 => escaped(kind),
        count => format!("{count} × {}", escaped(kind)),
    });
    let more = if more > 0 { format!(" and {more} more kinds") } else { String::new() };
    kinds.collect::<Vec<_>>().join(", ") + &more
}

fn remark(remarks: &mut Vec<Remark>, names: Vec<String>, what: &'static str) {
    if !names.is_empty() {
        remarks.push(Remark { what, warns: false, names });
    }
}

/// Refuses what the request names and the model does not have.
fn names_nothing(models: &Compared, request: &Request) -> Result<()> {
    let names = models.tuned.tensors.keys();
    let modules: Vec<&str> = names.filter_map(|name| Some(name.rsplit_once('.')?.0)).collect();
    let refused = |flag: &str, named: &str| {
        let what = format!("{flag} {} fits no module of {}", quoted(named), models.tuned.name);
        Err(Error::config(what)
            .hint("modules are called as tensors are, without the last part of their names"))
    };
    for pattern in &request.modules {
        if !modules.iter().any(|module| pattern.is_match(module)) {
            return refused("--modules", pattern.as_str());
        }
    }
    for saved in &request.save_modules {
        if !modules.iter().any(|module| last(module) == saved) {
            return refused("--save-module", saved);
        }
    }
    Ok(())
}

/// Why an embedding has no product where a command of mergekit asks for none.
const SAVED_EMBEDDING: &str = "an embedding or head, and --embed-lora is not given";

/// Whether a tensor is the weight of a module that a product can stand for.
fn is_matrix(name: &str, tensor: &ComparedTensor) -> bool {
    name.ends_with(".weight") && tensor.shape.len() == 2
}

/// What the base's config.json calls its architecture.
fn family(models: &Compared) -> &str {
    models.base.config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default()
}

/// A tensor that both models have in the same shape.
#[derive(Clone, Copy)]
struct Pair<'a> {
    models: &'a Compared,
    name: &'a str,
    of_tuned: &'a ComparedTensor,
    of_base: &'a ComparedTensor,
}

/// What was found of a tensor.
enum Found {
    /// A product that stands for its change.
    Module(Box<Module>),
    /// The square of its change's norm; not finite where NaN or infinity are in it.
    Change(f64),
}

impl Found {
    fn is_change(&self) -> bool {
        matches!(self, Self::Change(squares) if *squares != 0.0)
    }
}

/// The tensors that both models have.
fn pairs<'a>(models: &'a Compared, request: &Request, remarks: &mut Vec<Remark>) -> Result<Vec<Pair<'a>>> {
    let Compared { tuned, base, .. } = models;
    let (mut pairs, mut missing, mut no_floats, mut resized) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, of_tuned) in &tuned.tensors {
        let Some(of_base) = base.tensors.get(name) else {
            missing.push(name.clone());
            continue;
        };
        let pair = Pair { models, name, of_tuned, of_base };
        if of_base.shape != of_tuned.shape {
            if request.exclude.iter().any(|pattern| pattern.is_match(pair.module())) {
                resized.push(name.clone());
                continue;
            }
            let (name, shape, other) = (quoted(name), &of_tuned.shape, &of_base.shape);
            let what = format!("tensor {name} is {shape:?} in {} and {other:?} in {}", tuned.name, base.name);
            return Err(Error::config(what).hint(
                "an adapter belongs to a base of the same shapes: resize the base's embeddings first, give the model that was fine-tuned, or leave the tensor out with --exclude",
            ));
        }
        if !is_float(of_tuned.read_as) || !is_float(of_base.read_as) {
            no_floats.push(name.clone());
            continue;
        }
        pairs.push(pair);
    }
    let only_in_base = base.tensors.keys().filter(|name| !tuned.tensors.contains_key(*name));
    remark(remarks, missing, "not in the base, and so not in the adapter");
    remark(remarks, only_in_base.cloned().collect(), "only in the base, which keeps them");
    remark(remarks, resized, "of another shape in the base, and left out as --exclude says");
    remark(remarks, no_floats, "no floating point, and so not in the adapter");
    Ok(pairs)
}

/// Does the work for each pair, the largest first, in threads. The order of results is that of pairs.
fn share(
    pairs: &[Pair<'_>],
    threads: usize,
    work: impl Fn(&Pair<'_>) -> Result<Found> + Sync,
) -> Result<Vec<Found>> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|pair| std::cmp::Reverse(pairs[*pair].of_tuned.elements()));
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let done: Vec<OnceLock<Result<Found>>> = pairs.iter().map(|_| OnceLock::new()).collect();
    threads::share(threads.min(pairs.len()).max(1), |_| {
        while let Some(pair) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            // What one thread could not do ends the work of all.
            if failed.load(Ordering::Relaxed) {
                return;
            }
            let found = done[*pair].get_or_init(|| work(&pairs[*pair]));
            failed.fetch_or(found.is_err(), Ordering::Relaxed);
        }
    });
    let (done, failures): (Vec<_>, Vec<_>) =
        done.into_iter().filter_map(OnceLock::into_inner).partition(Result::is_ok);
    match failures.into_iter().next() {
        Some(failure) => Err(failure.err().expect("it failed")),
        None => done.into_iter().collect(),
    }
}

/// The last part of a module's name.
fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

impl Pair<'_> {
    /// The module that the tensor belongs to.
    fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }

    fn is_bias(&self) -> bool {
        self.name.rsplit_once('.').is_some_and(|(_, tensor)| tensor == "bias")
    }

    fn is_embedding(&self) -> bool {
        names::is_looked_up(self.name)
    }

    /// The bytes of the model's tensor, as it counts.
    fn bytes(&self) -> u64 {
        (self.of_tuned.elements() * float_bytes(self.of_tuned.dtype)) as u64
    }

    /// Frees what was kept to read it.
    fn release(&self) {
        for tensor in [self.of_tuned, self.of_base] {
            input::release(&self.models.inputs, tensor.input);
        }
    }

    /// Why no product is to stand for its change; `None` where one is.
    fn left_out(&self, request: &Request) -> Option<&'static str> {
        let module = self.module();
        let fits = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(module));
        if !is_matrix(self.name, self.of_tuned) {
            Some("no matrix of a module")
        } else if fits(&request.exclude) {
            Some("left out with --exclude")
        } else if request.save_embeddings && (self.is_embedding() || names::is_over_vocabulary(self.name)) {
            Some(SAVED_EMBEDDING)
        } else if !request.modules.is_empty() && !fits(&request.modules) {
            Some("not among --modules")
        } else if request.save_modules.iter().any(|saved| saved == last(module)) {
            Some("among --save-module")
        } else if peft::refuses(family(self.models), module) {
            Some("PEFT loads no adapter with a product of it")
        } else if self.is_embedding() && !request.embeddings {
            Some("an embedding, and --embeddings is not given")
        } else {
            None
        }
    }

    fn look(&self, request: &Request, listen: &dyn Listen) -> Result<Found> {
        let mut difference = Difference::new(*self, listen);
        let found = if self.of_tuned.elements() == 0 || self.of_tuned.input == self.of_base.input {
            Found::Change(0.0)
        } else if self.left_out(request).is_none() {
            let svd = decompose(&mut difference, Wanted { rank: request.rank, error: request.error })?;
            if svd.values.is_empty() {
                Found::Change(svd.squares)
            } else {
                Found::Module(Box::new(self.module_of(&svd, &mut difference, request)?))
            }
        } else {
            Found::Change(difference.squares()?)
        };
        difference.done(self.bytes());
        Ok(found)
    }

    /// The refusal of factors that the adapter's type does not hold.
    fn does_not_fit(&self, float: Float, request: &Request) -> Error {
        let (module, dtype) = (quoted(self.module()), format!("{float:?}"));
        let what = format!("the factors of module {module} are beyond the numbers of {dtype}");
        match request.alpha {
            Some(alpha) => Error::config(format!("{what} with --alpha {alpha:?} at rank {}", request.rank))
                .hint("give a larger --alpha or none, or --dtype float32"),
            None => {
                Error::config(what).hint("give --dtype float32 or bfloat16, or leave it out with --exclude")
            }
        }
    }

    /// A product as the adapter stores it, and what it lacks.
    fn module_of(&self, svd: &Svd, difference: &mut Difference<'_>, request: &Request) -> Result<Module> {
        let rank = svd.values.len();
        let float = request.dtype.or(Float::of(self.of_tuned.dtype)).unwrap_or(Float::F32);
        let (rows, columns) = (difference.rows(), difference.columns());
        let embedding = self.is_embedding();
        let transposed =
            embedding || TRANSPOSED.contains(&family(self.models)) && last(self.module()) != "lm_head";
        // Each vector takes the root of its singular value to either side.
        let (mut left, mut right) = (svd.left.clone(), svd.right.clone());
        for (number, value) in svd.values.iter().enumerate() {
            scale(&mut left[number * rows..][..rows], value.sqrt());
            scale(&mut right[number * columns..][..columns], 1.0 / value.sqrt());
        }
        for side in [&mut left, &mut right] {
            scale(side, 1.0 / request.scale().sqrt());
        }
        let (left, right) = (rounded(&left, float), rounded(&right, float));
        if !left.iter().chain(&right).all(|value| value.is_finite()) {
            return Err(self.does_not_fit(float, request));
        }
        let lost = difference.without(&left, &right, request.scale())?;
        let (a, (b, outward)) = if transposed { (&left, (&right, columns)) } else { (&right, (&left, rows)) };
        let stored = |values: &[f64]| encoded(values, float);
        Ok(Module {
            name: self.module().to_owned(),
            embedding,
            transposed: transposed && !embedding,
            dtype: float.dtype(),
            a: (vec![rank, a.len() / rank], stored(a)),
            b: (vec![outward, rank], stored(&transposed_of(b, rank, outward))),
            squares: svd.squares,
            lost,
        })
    }
}

impl Request {
    /// What products are multiplied with when they are added.
    fn scale(&self) -> f64 {
        self.alpha.map_or(1.0, |alpha| alpha / self.rank as f64)
    }
}

/// Numbers as a type stores them.
fn encoded(values: &[f64], float: Float) -> Vec<u8> {
    let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
    let mut bytes = vec![0; values.len() * float.bytes()];
    encode(float, &values, &mut bytes);
    bytes
}

/// Numbers as they are read again.
fn rounded(values: &[f64], float: Float) -> Vec<f64> {
    let mut read = vec![0.0; values.len()];
    decode(float, &encoded(values, float), &mut read);
    read.into_iter().map(f64::from).collect()
}
