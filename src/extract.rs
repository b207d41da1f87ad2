//! The way back from a fine-tuned model to an adapter: what of the difference from its base a low rank holds, in PEFT's layout.
//!
//! Each matrix is decomposed by itself, by one thread; the difference is read by rows as often as it is needed, and never whole in
//! memory. What the rank, and the rounding of the adapter's own numbers, lose of it is measured, not estimated.

mod layout;
mod products;
mod svd;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use indexmap::IndexMap;
use regex::Regex;

pub use layout::write;

use crate::checkpoint::{Reads, Source, TensorInfo, names};
use crate::dtype::{Dtype, Float, decode, encode, float_bytes, is_float};
use crate::error::{Error, Result};
use crate::instructions::for_each_instruction_set;
use crate::text::quoted;
use crate::threads;
use products::{Panels, add_product, dot, scale};
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
    /// Whether all that changed and is no matrix is saved whole.
    pub save_changed: bool,
    /// The type of the adapter's numbers; without one that of the model's.
    pub dtype: Option<Float>,
    /// Threads.
    pub threads: usize,
}

/// Hears of the work, and can end it.
pub trait Listen: Sync {
    /// So many bytes more were read.
    fn read(&self, bytes: u64);
    /// Whether the work should stop.
    fn stop(&self) -> bool;
}

/// An adapter, and what it lacks.
#[derive(Debug)]
pub struct Extracted {
    /// Modules with a product, in the model's order.
    pub modules: Vec<Module>,
    /// Names of tensors that are saved whole.
    pub saved: Vec<String>,
    /// Tensors that differ and of which the adapter holds nothing.
    pub lost: Vec<Lost>,
    /// How many tensors are as in the base.
    pub unchanged: usize,
    /// What the user should know.
    pub notes: Vec<String>,
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
        let without: f64 = self.lost.iter().map(|lost| lost.squares).sum();
        let (squares, lost) = self.modules.iter().fold((without, without), |(squares, lost), module| {
            (squares + module.squares, lost + module.lost)
        });
        share_of(lost, squares)
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
    /// The square of the difference's Frobenius norm.
    pub squares: f64,
}

/// Models whose layers have weights with a row for each of what goes in.
const TRANSPOSED: &[&str] = &["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];

/// Extracts the adapter that makes `tuned` of `base`, as far as the request lets it.
///
/// # Errors
/// The models do not belong together, a file cannot be read, or the user wants to stop.
pub fn extract(tuned: &Source, base: &Source, request: &Request, listen: &dyn Listen) -> Result<Extracted> {
    let mut notes = Vec::new();
    names_nothing(tuned, request)?;
    let pairs = pairs(tuned, base, request, &mut notes)?;
    let found = share(&pairs, request.threads, |pair| pair.look(request, listen))?;
    // Of modules that are saved PEFT wants all that have the same last part of their names.
    let mut whole: Vec<&str> = request.save_modules.iter().map(String::as_str).collect();
    let changed = pairs.iter().zip(&found).filter(|(_, found)| found.is_change());
    let no_matrix =
        |pair: &&Pair<'_>| request.save_changed && pair.of_tuned.shape.len() != 2 && !pair.is_bias();
    whole.extend(changed.map(|(pair, _)| pair).filter(no_matrix).map(|pair| last(pair.module())));
    let mut out = Extracted { modules: Vec::new(), saved: Vec::new(), lost: Vec::new(), unchanged: 0, notes };
    for (pair, found) in pairs.iter().zip(found) {
        let name = || pair.of_tuned.name.clone();
        let bias = request.save_changed && pair.is_bias() && found.is_change();
        match found {
            Found::Module(module) => out.modules.push(*module),
            Found::Change(_) if bias || whole.contains(&last(pair.module())) => out.saved.push(name()),
            Found::Change(squares) if squares != 0.0 => out.lost.push(Lost { name: name(), squares }),
            Found::Change(_) => out.unchanged += 1,
        }
    }
    if out.modules.is_empty() && out.saved.is_empty() {
        let what = format!("{} and {} differ in nothing that an adapter would hold", tuned.name, base.name);
        return Err(Error::config(what).hint("the first folder is the fine-tuned model, the second its base"));
    }
    let names = out.modules.iter().map(|module| format!("{}.weight", module.name)).chain(out.saved.clone());
    let mut otherwise = names.filter(|name| names::is_loaded_otherwise(&tuned.config, name));
    if let Some(first) = otherwise.next() {
        let (first, more) = (quoted(&first), otherwise.count());
        out.notes.push(format!(
            "{first} and {more} more may have other names once transformers has loaded the model, and PEFT leaves out what it does not find: compare with model.named_modules()"
        ));
    }
    Ok(out)
}

/// Refuses what the request names and the model does not have.
fn names_nothing(tuned: &Source, request: &Request) -> Result<()> {
    let module = |tensor: &'_ TensorInfo| tensor.name.rsplit_once('.').map(|(module, _)| module.to_owned());
    let modules: Vec<String> = tuned.tensors().filter_map(module).collect();
    let refused = |flag: &str, named: &str| {
        let what = format!("{flag} {} fits no module of {}", quoted(named), tuned.name);
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

/// A tensor that both models have in the same shape.
#[derive(Clone, Copy)]
struct Pair<'a> {
    tuned: &'a Source,
    base: &'a Source,
    of_tuned: &'a TensorInfo,
    of_base: &'a TensorInfo,
}

/// What was found of a tensor.
enum Found {
    /// A product that stands for its change.
    Module(Box<Module>),
    /// The square of its change's norm.
    Change(f64),
}

impl Found {
    fn is_change(&self) -> bool {
        matches!(self, Self::Change(squares) if *squares != 0.0)
    }
}

/// The tensors that both models have.
fn pairs<'a>(
    tuned: &'a Source,
    base: &'a Source,
    request: &Request,
    notes: &mut Vec<String>,
) -> Result<Vec<Pair<'a>>> {
    let (mut pairs, mut missing, mut no_floats, mut resized) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for of_tuned in tuned.tensors() {
        let Some(of_base) = base.tensor(&of_tuned.name) else {
            missing.push(of_tuned.name.as_str());
            continue;
        };
        let pair = Pair { tuned, base, of_tuned, of_base };
        if of_base.shape != of_tuned.shape {
            if request.exclude.iter().any(|pattern| pattern.is_match(pair.module())) {
                resized.push(of_tuned.name.as_str());
                continue;
            }
            let (name, shape, other) = (quoted(&of_tuned.name), &of_tuned.shape, &of_base.shape);
            let what = format!("tensor {name} is {shape:?} in {} and {other:?} in {}", tuned.name, base.name);
            return Err(Error::config(what).hint(
                "an adapter belongs to a base of the same shapes: resize the base's embeddings first, give the model that was fine-tuned, or leave the tensor out with --exclude",
            ));
        }
        if !is_float(of_tuned.dtype) || !is_float(of_base.dtype) {
            no_floats.push(of_tuned.name.as_str());
            continue;
        }
        pairs.push(pair);
    }
    let mut note = |names: &[&str], what: &str| {
        if let Some(first) = names.first() {
            let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
            notes.push(format!("{}{more}: {what}", quoted(first)));
        }
    };
    note(&missing, "not in the base, and so not in the adapter");
    note(&resized, "of another shape in the base, and left out as --exclude says");
    note(&no_floats, "no floating point, and so not in the adapter");
    Ok(pairs)
}

/// Does the work for each pair, the largest first, in threads. The order of results is that of pairs.
fn share(
    pairs: &[Pair<'_>],
    threads: usize,
    work: impl Fn(&Pair<'_>) -> Result<Found> + Sync,
) -> Result<Vec<Found>> {
    let mut order: Vec<usize> = (0..pairs.len()).collect();
    order.sort_by_key(|pair| std::cmp::Reverse(pairs[*pair].of_tuned.bytes));
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
        self.of_tuned.name.rsplit_once('.').map_or("", |(module, _)| module)
    }

    fn is_bias(&self) -> bool {
        self.of_tuned.name.rsplit_once('.').is_some_and(|(_, tensor)| tensor == "bias")
    }

    fn is_embedding(&self) -> bool {
        names::is_looked_up(&self.of_tuned.name)
    }

    /// Whether a product is to stand for its change.
    fn is_wanted(&self, request: &Request) -> bool {
        let module = self.module();
        let is_matrix = self.of_tuned.name.ends_with(".weight") && self.of_tuned.shape.len() == 2;
        let fits = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(module));
        is_matrix
            && (request.embeddings || !self.is_embedding())
            && (request.modules.is_empty() || fits(&request.modules))
            && !fits(&request.exclude)
            && !request.save_modules.iter().any(|saved| saved == last(module))
    }

    fn look(&self, request: &Request, listen: &dyn Listen) -> Result<Found> {
        if self.of_tuned.bytes == 0 {
            return Ok(Found::Change(0.0));
        }
        if !self.is_wanted(request) {
            return self.squares(listen).map(Found::Change);
        }
        let wanted = Wanted { rank: request.rank, error: request.error };
        let mut difference = Difference::new(*self, listen);
        let svd = decompose(&mut difference, wanted)?;
        if svd.values.is_empty() {
            return Ok(Found::Change(svd.squares));
        }
        self.module_of(&svd, &mut difference, request).map(|module| Found::Module(Box::new(module)))
    }

    /// The square of the norm of a tensor's change.
    fn squares(&self, listen: &dyn Listen) -> Result<f64> {
        let elements = self.of_tuned.elements() as usize;
        let mut difference = Difference { columns: 1, rows: elements, ..Difference::new(*self, listen) };
        let (mut values, mut squares) = (vec![0.0; elements.min(PIECE)], 0.0);
        for first in (0..elements).step_by(PIECE) {
            let values = &mut values[..PIECE.min(elements - first)];
            difference.read(first, values)?;
            squares += dot(values, values);
        }
        Ok(squares)
    }

    /// A product as the adapter stores it, and what it lacks.
    fn module_of(&self, svd: &Svd, difference: &mut Difference<'_>, request: &Request) -> Result<Module> {
        let rank = svd.values.len();
        let float = request.dtype.or(Float::of(self.of_tuned.dtype)).unwrap_or(Float::F32);
        let (rows, columns) = (difference.rows, difference.columns);
        let embedding = self.is_embedding();
        let family =
            self.tuned.config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        let transposed = embedding || TRANSPOSED.contains(&family) && last(self.module()) != "lm_head";
        // Each vector takes the root of its singular value to either side.
        let (mut left, mut right) = (svd.left.clone(), svd.right.clone());
        for (number, value) in svd.values.iter().enumerate() {
            scale(&mut left[number * rows..][..rows], value.sqrt());
            scale(&mut right[number * columns..][..columns], 1.0 / value.sqrt());
        }
        scale(if transposed { &mut right } else { &mut left }, 1.0 / request.scale());
        let (left, right) = (rounded(&left, float), rounded(&right, float));
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

/// The elements of the difference that are read at once where nobody asks for whole rows.
const PIECE: usize = 1 << 18;

/// The difference of two tensors, by rows.
struct Difference<'a> {
    pair: Pair<'a>,
    rows: usize,
    columns: usize,
    listen: &'a dyn Listen,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl<'a> Difference<'a> {
    fn new(pair: Pair<'a>, listen: &'a dyn Listen) -> Self {
        let columns = pair.of_tuned.shape.last().copied().unwrap_or(1);
        let rows = pair.of_tuned.elements() as usize / columns.max(1);
        Self { pair, rows, columns, listen, bytes: Vec::new(), values: Vec::new() }
    }

    /// Adds elements of a tensor to `into`, with a sign.
    fn add(&mut self, of: (&Source, &TensorInfo), first: usize, sign: f64, into: &mut [f64]) -> Result<()> {
        let (source, tensor) = of;
        let element = float_bytes(tensor.dtype);
        self.bytes.resize(into.len() * element, 0);
        source.read_at(tensor, (first * element) as u64, &mut self.bytes, Reads::Copied)?;
        self.listen.read(self.bytes.len() as u64);
        let Some(float) = Float::of(tensor.dtype) else {
            let (values, _) = self.bytes.as_chunks::<8>();
            into.iter_mut().zip(values).for_each(|(into, value)| *into += sign * f64::from_le_bytes(*value));
            return Ok(());
        };
        self.values.resize(into.len(), 0.0);
        decode_all(float, &self.bytes, &mut self.values);
        into.iter_mut().zip(&self.values).for_each(|(into, value)| *into += sign * f64::from(*value));
        Ok(())
    }

    /// The square of the norm of what is left without `scale · leftᵀ · right`.
    fn without(&mut self, left: &[f64], right: &[f64], scale: f64) -> Result<f64> {
        let (rows, columns) = (self.rows, self.columns);
        let rank = left.len() / rows;
        let left: Vec<f64> = transposed_of(left, rank, rows).iter().map(|value| -scale * value).collect();
        let right = Panels::of(right, columns);
        let at_once = (PIECE / columns).clamp(1, rows);
        let (mut rest, mut squares) = (vec![0.0; at_once * columns], 0.0);
        for first in (0..rows).step_by(at_once) {
            let count = at_once.min(rows - first);
            let rest = &mut rest[..count * columns];
            self.read(first, rest)?;
            add_product(&left[first * rank..][..count * rank], &right, rest);
            squares += dot(rest, rest);
        }
        Ok(squares)
    }
}

impl ByRows for Difference<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn read(&mut self, first: usize, into: &mut [f64]) -> Result<()> {
        if self.listen.stop() {
            return Err(Error::interrupted());
        }
        let Pair { tuned, base, of_tuned, of_base } = self.pair;
        into.fill(0.0);
        self.add((tuned, of_tuned), first * self.columns, 1.0, into)?;
        self.add((base, of_base), first * self.columns, -1.0, into)?;
        if dot(into, into).is_finite() {
            return Ok(());
        }
        let (name, tuned, base) = (quoted(&of_tuned.name), &tuned.name, &base.name);
        Err(Error::input(format!("tensor {name} has NaN or infinity in {tuned} or {base}"))
            .hint("leave its module out with --exclude, or mend the model"))
    }
}

for_each_instruction_set! {
    fn decode_all(float: Float, bytes: &[u8], into: &mut [f32]) {
        decode(float, bytes, into);
    }
}
