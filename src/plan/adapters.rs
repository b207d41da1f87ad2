//! Models with an adapter: `BASE+ADAPTER` is the base model, of whose tensors those are made that the adapter changes.
//!
//! Nothing is written on the way: the products are added while the weights are read. Models of one base share its reads.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value as Json;

use super::views::{InputList, Model, Origin, View, Views};
use super::{Place, compatible, names, places, references, wanted};
use crate::checkpoint::{Adapter, LowRank, Source, Tokens};
use crate::config::ModelRef;
use crate::dtype::computed_as;
use crate::error::{Error, Result};
use crate::input::{Adapted, At, Directed, Floats, Made, Row, Rows, Shifted};
use crate::text::{cut_to, one_line, quoted};

/// Families that store experts with a row for each of what goes in, where their shapes do not say.
const TRANSPOSED_EXPERTS: &[&str] = &["gpt_oss", "llama4", "llama4_text"];

/// Makes the models with an adapter of their bases. What is wrong with an adapter is a problem.
pub(super) fn add(views: &mut Views<'_>) {
    let opened = places(views.config);
    for (model, reference) in references(views.config).into_iter().enumerate() {
        let Some(lora) = &reference.value.lora else { continue };
        let source =
            opened.get_index_of(&Place::Adapter(lora.clone())).expect("what is referred to is opened");
        let added = Adapter::of(&views.sources[source]).and_then(|adapter| {
            let name = &views.sources[source].name;
            let another = trained_on_another(&adapter, name, &views.models[model], &reference.value);
            if reference.value.is_on_hub() {
                let warning =
                    |what| Error::config(what).hint("an adapter belongs to the model that it was trained on");
                views.warnings.extend(another.map(warning));
            } else {
                views.notes.extend(another);
            }
            let (model, inputs) = (&mut views.models[model], &mut views.inputs);
            model.adapter = Some(source);
            let (adapter, number, source) = (&adapter, source, &views.sources[source]);
            if compatible::holds_quantised(model) {
                return Err(compatible::quantised(model));
            }
            Adding { model, adapter, source, number, inputs, loaded: HashMap::new(), renamed: None }.all()
        });
        match added {
            Ok(notes) => views.notes.extend(notes),
            Err(problem) => {
                let Error { kind, hint, message, .. } = problem;
                views.problems.add(Error { kind, hint, ..views.config.error_at(reference.at, message) });
            }
        }
    }
}

/// What to say where an adapter was trained on another model than the one that it is added to. Folders are called anything.
fn trained_on_another(
    adapter: &Adapter,
    name: &str,
    model: &Model<'_>,
    reference: &ModelRef,
) -> Option<String> {
    let last = |name: &str| {
        let name = name.trim_end_matches(['/', '\\']);
        // The path of a snapshot in the cache says of which model it is.
        if let Some((_, name)) = name.split_once("/snapshots/").and_then(|(cache, _)| cache.rsplit_once("--"))
        {
            return name.to_lowercase();
        }
        name.rsplit(['/', '\\']).next().unwrap_or(name).to_lowercase()
    };
    let base = adapter.base.as_ref().filter(|base| !base.is_empty())?;
    let path = reference.path.to_lowercase();
    let own = model.config.get("_name_or_path").and_then(Json::as_str).unwrap_or_default();
    let base_name = quoted(&cut_to(&one_line(base), 120));
    // Some write the revision into the name.
    let names = [base.as_str(), base.rsplit_once('@').map_or(base, |(name, _)| name)];
    let is_same = names.iter().any(|base| [path.as_str(), own].map(last).contains(&last(base)));
    (!is_same)
        .then(|| format!("the adapter {name} was trained on {base_name}, and is added to {}", reference.path))
}

/// A model under change.
struct Adding<'m, 'a> {
    model: &'m mut Model<'a>,
    adapter: &'m Adapter,
    source: &'m Source,
    /// The number of that source.
    number: usize,
    inputs: &'m mut InputList,
    /// Places of tensors that have another name once transformers has loaded the model, by that name.
    loaded: HashMap<String, usize>,
    /// How names of the adapter begin, and the model's in place of that.
    renamed: Option<(String, String)>,
}

/// A weight of the model, and how it lies.
struct Weight {
    place: usize,
    experts: u64,
    rows: u64,
    columns: u64,
    transposed: bool,
}

impl Adding<'_, '_> {
    /// Changes every tensor that the adapter changes. Returns what the user should know of it.
    fn all(mut self) -> Result<Vec<String>> {
        let mut notes = self.adapter.notes.clone();
        notes.extend(self.untie());
        let loaded = |(place, name)| match names::loaded(&self.model.config, name) {
            Cow::Owned(loaded) => Some((loaded, place)),
            Cow::Borrowed(_) => None,
        };
        self.loaded = self.model.names().enumerate().filter_map(loaded).collect();
        self.renamed = self.renaming();
        if let Some((from, to)) = &self.renamed {
            let (from, to, model) = (quoted(from), quoted(to), &self.model.name);
            notes.push(format!(
                "the adapter {}: {from} in its names is {to} in those of {model}",
                self.source.name
            ));
        }
        let adapter = self.adapter;
        for (tensor, place) in &adapter.saved {
            self.save(tensor, *place)?;
        }
        let turned = self.says_turned().unwrap_or(adapter.fan_in_fan_out);
        for (module, products) in &adapter.low_rank {
            let tensor = format!("{module}.weight");
            match &products[..] {
                [product] if product.experts == 1 && self.find(&tensor).is_some() => {
                    self.add_to_weight(module, product, turned)?;
                }
                // A head that stays tied is what its embedding is.
                _ if adapter.stays_tied && names::is_head(&tensor) => {}
                _ if adapter.parameters.is_empty() => return Err(self.fits_nothing(module)),
                _ => self.add_to_parameters(module, products)?,
            }
        }
        for (module, tokens) in &adapter.tokens {
            self.replace_rows(module, tokens)?;
        }
        Ok(notes)
    }

    /// Gives a model whose head is its embedding a head of its own, where the adapter changes one of them and not the other. That is
    /// what the model computes under PEFT; merged by PEFT, the other would change as well.
    fn untie(&mut self) -> Option<String> {
        let embedding = wanted::embedding_as_head(self.model)?;
        let name = self.model.names().nth(embedding)?.to_owned();
        let head = self.named_head().unwrap_or_else(|| wanted::head_beside(&name));
        let changes = |tensor: &str| {
            let module = tensor.trim_end_matches(".weight");
            self.adapter.low_rank.contains_key(module) || self.adapter.saved.contains_key(tensor)
        };
        if self.adapter.stays_tied || ![&name, &head].into_iter().any(|of| changes(of)) {
            return None;
        }
        let view = self.model.tensors[embedding].clone();
        self.model.tensors.insert(Cow::Owned(head), view);
        // That it was tied, where only its architecture says so: the output's config has to say that it no longer is.
        self.model.config.to_mut().entry("tie_word_embeddings").or_insert(Json::Bool(true));
        Some(format!(
            "{}: its adapter changes the embedding or the head, which were one tensor and are two now",
            self.model.name
        ))
    }

    /// What the adapter calls the head.
    fn named_head(&self) -> Option<String> {
        let Adapter { low_rank, saved, tokens, .. } = self.adapter;
        let modules = low_rank.keys().chain(tokens.keys()).map(|module| format!("{module}.weight"));
        modules.chain(saved.keys().cloned()).find(|tensor| names::is_head(tensor))
    }

    /// How the names of a model differ that lie elsewhere than those of the adapter, as a language model in one of several parts
    /// does: found by the stack of layers, if only one fits.
    fn renaming(&self) -> Option<(String, String)> {
        let products = self.adapter.low_rank.keys().chain(self.adapter.tokens.keys());
        let tensors =
            products.map(|module| format!("{module}.weight")).chain(self.adapter.saved.keys().cloned());
        let is_unknown = |name: &String| self.find(name).is_none();
        let unknown = tensors.filter(is_unknown).find(|name| names::layered(name).is_some())?;
        let own = names::layered(&unknown)?;
        let alike = self.model.names().filter_map(names::layered).filter(|other| {
            let last = |stack: &str| stack.rsplit('.').next().map(str::to_owned);
            (other.layer, other.rest, last(other.stack)) == (own.layer, own.rest, last(own.stack))
        });
        let stacks: Vec<&str> = alike.map(|other| other.stack).collect();
        let [stack] = stacks[..] else { return None };
        let parts = |stack: &'_ str| stack.split('.').map(str::to_owned).rev().collect::<Vec<_>>();
        let (from, to) = (parts(own.stack), parts(stack));
        let same = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
        let beginning =
            |parts: &[String]| parts.iter().rev().fold(String::new(), |all, part| all + part + ".");
        Some((beginning(&from[same..]), beginning(&to[same..])))
    }

    /// The place of a tensor that the adapter names.
    fn find(&self, tensor: &str) -> Option<usize> {
        let renamed = || {
            let (from, to) = self.renamed.as_ref()?;
            self.model.tensors.get_index_of(format!("{to}{}", tensor.strip_prefix(from.as_str())?).as_str())
        };
        let loaded = || self.loaded.get(tensor).copied();
        self.model.tensors.get_index_of(tensor).or_else(loaded).or_else(renamed)
    }

    fn fits_nothing(&self, name: &str) -> Error {
        let (adapter, model) = (&self.source.name, &self.model.name);
        let refusal = Error::input(format!(
            "the adapter {adapter} changes {}, which {model} does not have",
            quoted(name)
        ));
        let base =
            self.adapter.base.as_ref().map(|base| format!(", {}", quoted(&cut_to(&one_line(base), 120))));
        refusal.hint(format!("add it to the model that it was trained on{}", base.unwrap_or_default()))
    }

    /// The refusal where a module has no such parameters, as where its experts are tensors of their own.
    fn has_no_parameters(&self, module: &str) -> Error {
        let refusal = self.fits_nothing(module);
        if self.model.names().any(|name| name.contains(".experts.0.")) {
            return refusal.hint(
                "the model stores its experts one by one, and the adapter's target_parameters are all of them as one tensor, as transformers loads them: merge it into its base model with PEFT (merge_and_unload, then save_pretrained), and give that folder",
            );
        }
        refusal
    }

    fn misfit(&self, tensors: &[usize], place: usize) -> Error {
        let own = |place: &usize| {
            let info = self.source.tensor_at(*place);
            format!("{} {:?}", quoted(&info.name), info.shape)
        };
        let parts: Vec<String> = tensors.iter().map(own).collect();
        let (name, view) = self.model.tensors.get_index(place).expect("it was found");
        let (adapter, parts, name) = (&self.source.name, parts.join(" and "), quoted(name));
        let what = format!(
            "the adapter {adapter}: {parts} cannot change {name} {:?} of {}",
            view.shape, self.model.name
        );
        let vocabulary =
            names::is_embedding(&name[1..name.len() - 1]) || names::is_head(&name[1..name.len() - 1]);
        Error::input(what).hint(if vocabulary {
            "its training changed the vocabulary. In Python: model.resize_token_embeddings(ROWS) with the adapter's number of rows, PeftModel.from_pretrained(model, ADAPTER).merge_and_unload(), save_pretrained(FOLDER); and give that folder"
        } else {
            "an adapter belongs to a model of the same architecture and size"
        })
    }

    fn shape(&self, tensor: usize) -> Vec<u64> {
        self.source.tensor_at(tensor).shape.iter().map(|side| *side as u64).collect()
    }

    /// A tensor of the adapter as an input.
    fn own(&mut self, tensor: usize) -> Floats {
        let (dtype, at) = (self.source.tensor_at(tensor).dtype, At { source: self.number, tensor });
        let float = computed_as(dtype).expect("an adapter's tensors are floats");
        Floats { input: self.inputs.floats_at(at, dtype), float }
    }

    /// A tensor of the model as an input.
    fn of_model(&mut self, place: usize) -> Result<Floats> {
        let (name, view) = self.model.tensors.get_index(place).expect("it was found");
        let dtype = self.inputs.read_as(view);
        let Some(float) = computed_as(dtype) else {
            let (name, model, adapter) = (quoted(name), &self.model.name, &self.source.name);
            let what = format!("the adapter {adapter} changes {name}, which is {dtype:?} in {model}");
            return Err(Error::input(what).hint("add it to the model in float16, bfloat16 or float32"));
        };
        Ok(Floats { input: self.inputs.as_floats(view), float })
    }

    /// Puts a made input in the place of a tensor, which counts as what it was.
    fn put(&mut self, place: usize, made: impl Made + 'static) {
        self.model.tensors[place].from = Origin::Made(self.inputs.make(made));
    }

    /// Replaces a tensor by one of the adapter.
    fn save(&mut self, tensor: &str, saved: usize) -> Result<()> {
        let Some(place) = self.find(tensor) else {
            return if self.adapter.stays_tied && names::is_head(tensor) {
                Ok(())
            } else {
                Err(self.fits_nothing(tensor))
            };
        };
        let (shape, info) = (&self.model.tensors[place].shape, self.source.tensor_at(saved));
        if **shape != info.shape[..] {
            return Err(self.misfit(&[saved], place));
        }
        let View { dtype, from, .. } = self.model.tensors[place];
        let own = At { source: self.number, tensor: saved };
        self.model.replaced.push((from, own));
        if info.dtype == dtype {
            self.model.tensors[place].from = Origin::Stored(own);
            return Ok(());
        }
        self.of_model(place)?;
        let of = self.own(saved);
        let columns = info.shape.last().map_or(1, |columns| *columns as u64).max(1);
        let rows = (0..info.elements() / columns).map(|row| Row::Picked { of: 0, row });
        self.put(place, Rows::new(vec![of], columns, of.float, rows));
        Ok(())
    }

    /// Whether the shapes of weights say that they have a row for each of what goes in; `None` where all are square.
    fn says_turned(&self) -> Option<bool> {
        self.adapter.low_rank.iter().find_map(|(module, products)| {
            let product = products.first().filter(|product| product.experts == 1 && !product.embedding)?;
            let view = &self.model.tensors[self.find(&format!("{module}.weight"))?];
            let (inward, outward) = (self.shape(product.a), self.shape(product.b));
            let [rows, columns] = view.shape[..] else { return None };
            let sides = [inward[1..].iter().product(), outward[0]];
            (rows != columns).then_some(sides == [rows as u64, columns as u64])
        })
    }

    /// Adds a product to the weight of a module.
    fn add_to_weight(&mut self, module: &str, product: &LowRank, turned: bool) -> Result<()> {
        let place = self.find(&format!("{module}.weight")).expect("it was found");
        let shape: Vec<u64> = self.model.tensors[place].shape.iter().map(|side| *side as u64).collect();
        let transposed = product.embedding || turned && shape.len() == 2;
        let (inward, outward) = (self.shape(product.a), self.shape(product.b));
        let fits = match &shape[..] {
            [rows, columns] if transposed => inward[1..] == [*rows] && outward[0] == *columns,
            // Of a convolution the weight has an area for each of what goes in, and so has A.
            [rows, rest @ ..] => inward[1..] == *rest && outward[0] == *rows && !rest.is_empty(),
            [] => false,
        };
        if !fits || outward[2..].iter().any(|side| *side != 1) || shape.contains(&0) {
            return Err(self.misfit(&[product.a, product.b], place));
        }
        let (rows, columns) = (shape[0], shape[1..].iter().product());
        self.add_product(product, &Weight { place, experts: 1, rows, columns, transposed })?;
        if let Some(bias) = product.bias {
            self.move_bias(module, bias, product.scale)?;
        }
        Ok(())
    }

    fn add_product(&mut self, product: &LowRank, weight: &Weight) -> Result<()> {
        let Weight { place, experts, rows, columns, transposed } = *weight;
        let made = Adapted {
            weight: self.of_model(place)?,
            a: self.own(product.a),
            b: self.own(product.b),
            experts,
            rows,
            columns,
            rank: product.rank,
            scale: product.scale,
            transposed,
        };
        self.put(place, made);
        let Some(magnitude) = product.magnitude else { return Ok(()) };
        // The norms are those of what comes out.
        let norms = if transposed { columns } else { rows };
        if self.source.tensor_at(magnitude).elements() != norms {
            return Err(self.misfit(&[magnitude], place));
        }
        let (direction, magnitude) = (self.of_model(place)?, self.own(magnitude));
        self.put(place, Directed::new(direction, magnitude, rows, columns, transposed));
        Ok(())
    }

    fn move_bias(&mut self, module: &str, by: usize, scale: f32) -> Result<()> {
        let tensor = format!("{module}.bias");
        let Some(place) = self.find(&tensor) else { return Err(self.fits_nothing(&tensor)) };
        if self.source.tensor_at(by).elements() != self.model.tensors[place].elements() {
            return Err(self.misfit(&[by], place));
        }
        let made = Shifted { of: self.of_model(place)?, by: self.own(by), scale };
        self.put(place, made);
        Ok(())
    }

    /// Adds products to parameters of a module that are no weights: which of them, their shapes say.
    fn add_to_parameters(&mut self, module: &str, products: &[LowRank]) -> Result<()> {
        let leaf = |name: &String| name.rsplit('.').next().map(|leaf| format!("{module}.{leaf}"));
        let parameters: Vec<usize> =
            self.adapter.parameters.iter().filter_map(leaf).filter_map(|name| self.find(&name)).collect();
        let family = self.model.config.get("model_type").and_then(Json::as_str).unwrap_or_default();
        let turned = TRANSPOSED_EXPERTS.contains(&family);
        for product in products {
            let fitting: Vec<Weight> =
                parameters.iter().filter_map(|place| self.as_experts(product, *place, turned)).collect();
            match &fitting[..] {
                [weight] => self.add_product(product, weight)?,
                [] => match parameters.first() {
                    Some(place) => return Err(self.misfit(&[product.a, product.b], *place)),
                    None => return Err(self.has_no_parameters(module)),
                },
                _ => {
                    let (adapter, module) = (&self.source.name, quoted(module));
                    let what = format!(
                        "the adapter {adapter}: several parameters of {module} have the same shape, and nothing says which it changes"
                    );
                    return Err(Error::input(what)
                        .hint("merge it into its base model with PEFT, and give that folder"));
                }
            }
        }
        Ok(())
    }

    /// How a parameter lies, if a product fits it.
    fn as_experts(&self, product: &LowRank, place: usize, turned: bool) -> Option<Weight> {
        let shape: Vec<u64> = self.model.tensors[place].shape.iter().map(|side| *side as u64).collect();
        let (experts, rows, columns) = match shape[..] {
            [experts, rows, columns] => (experts, rows, columns),
            [rows, columns] => (1, rows, columns),
            _ => return None,
        };
        let (inward, outward) = (self.shape(product.a), self.shape(product.b));
        let sides = (inward.get(1..)?, outward[0]);
        let plain = sides == (&[columns][..], rows);
        let transposed = sides == (&[rows][..], columns) && (turned || !plain);
        let fits = experts == product.experts && rows * columns > 0 && (plain || transposed);
        fits.then_some(Weight { place, experts, rows, columns, transposed })
    }

    /// Replaces some rows of a module's weight.
    fn replace_rows(&mut self, module: &str, tokens: &Tokens) -> Result<()> {
        let tensor = format!("{module}.weight");
        let Some(place) = self.find(&tensor) else { return Err(self.fits_nothing(&tensor)) };
        let (view, given) = (&self.model.tensors[place], self.shape(tokens.tensor));
        let [rows, columns] = view.shape[..] else { return Err(self.misfit(&[tokens.tensor], place)) };
        let beyond = tokens.rows.iter().any(|row| *row >= rows as u64);
        if given.get(1..) != Some(&[columns as u64]) || beyond || columns == 0 {
            return Err(self.misfit(&[tokens.tensor], place));
        }
        let of = [self.of_model(place)?, self.own(tokens.tensor)];
        let new: HashMap<u64, u64> = tokens.rows.iter().copied().zip(0..).collect();
        let picked = (0..rows as u64).map(|row| match new.get(&row) {
            Some(new) => Row::Picked { of: 1, row: *new },
            None => Row::Picked { of: 0, row },
        });
        let float = of[0].float.promote(of[1].float);
        self.put(place, Rows::new(of.into(), columns as u64, float, picked));
        Ok(())
    }
}
