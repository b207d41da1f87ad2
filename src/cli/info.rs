//! `mergeforge info`: what models have, by their headers.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use indexmap::IndexMap;
use serde_json::{Map, Value as Json, json};

use super::hub::HubArgs;
use super::{kinds, show};
use crate::checkpoint::names::is_token_embedding;
use crate::checkpoint::{Adapter, Source, TensorInfo};
use crate::error::{Error, Result};
use crate::plan::layered;
use crate::text::{bytes, escaped};
use crate::tokenizer;
use crate::{StoredModel, open_model};

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// The models, each as in a config: a folder, a file of tensors, or a name on the Hugging Face Hub, perhaps with
    /// @revision and +ADAPTER; or the folder of an adapter
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    hub: HubArgs,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// Reads the headers of all models, and then shows them.
pub(super) fn run(args: &InfoArgs) -> Result<()> {
    let described =
        args.models.iter().map(|name| Described::of(name, args.hub)).collect::<Result<Vec<_>>>()?;
    if args.json {
        show::json(&described.iter().map(Described::json).collect());
        return Ok(());
    }
    for (number, model) in described.iter().enumerate() {
        if number > 0 {
            show::line("");
        }
        model.show();
    }
    Ok(())
}

/// A model, and what of it takes more than a look at its headers.
struct Described {
    name: String,
    /// Its folder or file, unless an adapter was named by itself.
    model: Option<Source>,
    adapter: Option<(Source, Adapter)>,
    /// How many tokens its tokenizer has, if it has one that is read here.
    tokens: Result<Option<usize>>,
}

impl Described {
    fn of(name: &str, hub: HubArgs) -> Result<Self> {
        let StoredModel { model, adapter } = open_model(name, hub.remote())?;
        let adapter = adapter.map(|source| Adapter::of(&source).map(|of| (source, of))).transpose()?;
        let tokens = match model.as_ref().filter(|model| model.is_folder()) {
            Some(model) => tokenizer::read(&model.folder).map(|found| Some(found?.by_id().len())),
            None => Ok(None),
        };
        Ok(Self { name: name.to_owned(), model, adapter, tokens })
    }

    fn show(&self) {
        let line = |what: &str, value: String| show::line(&format!("{what:<11} {value}"));
        line("model", self.name.clone());
        if let Some(model) = &self.model {
            line("type", kind(model));
            line("place", model.place().display().to_string());
            contents(model).iter().for_each(|(what, value)| line(what, value.clone()));
            if let Some(rows) = embedding_rows(model) {
                line("embedding", format!("{rows} rows"));
            }
            match &self.tokens {
                Ok(Some(tokens)) => line("tokenizer", format!("{tokens} tokens")),
                Ok(None) => line("tokenizer", "none".into()),
                Err(Error { message, .. }) => line("tokenizer", format!("not read: {message}")),
            }
        }
        if let Some((source, adapter)) = &self.adapter {
            line("adapter", source.place().display().to_string());
            if let Some(base) = &adapter.base {
                line("trained on", base.clone());
            }
            contents(source).iter().for_each(|(what, value)| line(what, value.clone()));
            line("products", products(adapter));
        }
        for source in self.model.iter().chain(self.adapter.iter().map(|(source, _)| source)) {
            source.warnings().iter().for_each(|warning| show::note(warning));
        }
        // An adapter's tensors are those of its products.
        if let Some(model) = &self.model {
            show::line("");
            let described = model.tensors().map(|tensor| {
                (tensor.name.as_str(), format!("{:?}", tensor.shape), format!("{:?}", tensor.dtype))
            });
            kinds::lines(described).iter().for_each(|line| show::line(line));
        }
    }

    fn json(&self) -> Json {
        let model = self.model.as_ref();
        let (tokens, not_read) = match &self.tokens {
            Ok(tokens) => (*tokens, None),
            Err(error) => (None, Some(&error.message)),
        };
        let mut json = json!({
            "model": self.name, "place": model.map(Source::place),
            "model_type": model.and_then(|model| text(&model.config, "model_type")),
            "architecture": model.and_then(architecture), "quantisation": model.and_then(quantisation),
            "embedding_rows": model.and_then(embedding_rows),
            "tokenizer": { "tokens": tokens, "not_read": not_read },
            "adapter": null,
        });
        model.iter().for_each(|model| add(&mut json, model));
        if let Some((source, adapter)) = &self.adapter {
            let mut of = json!({
                "place": source.place(), "base_model": adapter.base, "modules": adapter.low_rank.len(),
                "ranks": ranks(adapter), "saved": adapter.saved.keys().collect::<Vec<_>>(),
            });
            add(&mut of, source);
            json["adapter"] = of;
        }
        json
    }
}

/// Adds what the headers say to an object.
fn add(json: &mut Json, source: &Source) {
    let dtype = |(dtype, of): (String, Amount)| json!({ "dtype": dtype, "tensors": of.tensors, "parameters": of.parameters, "bytes": of.bytes });
    let tensor = |tensor: &TensorInfo| json!({ "name": tensor.name, "dtype": format!("{:?}", tensor.dtype), "shape": tensor.shape, "bytes": tensor.bytes });
    let layers =
        layers(source).into_iter().map(|(stack, layers)| json!({ "stack": stack, "layers": layers }));
    let all = Amount::of(source.tensors());
    json["files"] = files(source).into();
    json["parameters"] = all.parameters.into();
    json["bytes"] = all.bytes.into();
    json["dtypes"] = dtypes(source).into_iter().map(dtype).collect();
    json["layers"] = layers.collect();
    json["tensors"] = source.tensors().map(tensor).collect();
}

/// How much some tensors are.
#[derive(Debug, Clone, Copy, Default)]
struct Amount {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

impl Amount {
    fn of<'a>(tensors: impl IntoIterator<Item = &'a TensorInfo>) -> Self {
        tensors.into_iter().fold(Self::default(), |all, tensor| Self {
            tensors: all.tensors + 1,
            parameters: all.parameters.saturating_add(tensor.elements()),
            bytes: all.bytes.saturating_add(tensor.bytes),
        })
    }
}

/// What the headers say, in few lines.
fn contents(source: &Source) -> Vec<(&'static str, String)> {
    let all = Amount::of(source.tensors());
    let of_types = dtypes(source);
    let of_type = |(dtype, of): &(String, Amount)| format!("{} {dtype}", of.tensors);
    let types = of_types.iter().map(of_type).collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        ("tensors", format!("{} in {} file(s): {types}", all.tensors, files(source))),
        ("parameters", format!("{}{}", all.parameters, in_words(all.parameters))),
        ("size", bytes(all.bytes)),
    ];
    let stacks = layers(source);
    if !stacks.is_empty() {
        let stacks = stacks.iter().map(|(stack, layers)| format!("{layers} in {}", escaped(stack)));
        lines.push(("layers", stacks.collect::<Vec<_>>().join(", ")));
    }
    lines
}

fn in_words(number: u64) -> String {
    match number {
        0..1_000_000 => String::new(),
        1_000_000..1_000_000_000 => format!(" ({:.1} million)", number as f64 / 1e6),
        _ => format!(" ({:.2} billion)", number as f64 / 1e9),
    }
}

/// The types, those with most tensors first.
fn dtypes(source: &Source) -> Vec<(String, Amount)> {
    let mut by_type: BTreeMap<String, Vec<&TensorInfo>> = BTreeMap::new();
    source
        .tensors()
        .for_each(|tensor| by_type.entry(format!("{:?}", tensor.dtype)).or_default().push(tensor));
    let mut found: Vec<(String, Amount)> =
        by_type.into_iter().map(|(dtype, tensors)| (dtype, Amount::of(tensors))).collect();
    found.sort_by_key(|(_, of)| std::cmp::Reverse(of.tensors));
    found
}

fn files(source: &Source) -> usize {
    source.tensors().map(|tensor| tensor.file).collect::<BTreeSet<_>>().len()
}

/// How many layers each stack has, by the names of tensors.
fn layers(source: &Source) -> Vec<(String, usize)> {
    let mut stacks: IndexMap<&str, BTreeSet<usize>> = IndexMap::new();
    for layered in source.tensors().filter_map(|tensor| layered(&tensor.name)) {
        stacks.entry(layered.stack).or_default().insert(layered.layer);
    }
    stacks.into_iter().map(|(stack, layers)| (stack.to_owned(), layers.len())).collect()
}

fn text<'a>(config: &'a Map<String, Json>, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Json::as_str)
}

fn architecture(model: &Source) -> Option<&str> {
    model.config.get("architectures")?.get(0)?.as_str()
}

fn quantisation(model: &Source) -> Option<&str> {
    model.config.get("quantization_config")?.get("quant_method")?.as_str()
}

/// What config.json says that it is.
fn kind(model: &Source) -> String {
    let kind = text(&model.config, "model_type").map_or_else(
        || if model.has_config() { "not in config.json" } else { "no config.json" }.to_owned(),
        str::to_owned,
    );
    let architecture =
        architecture(model).map(|architecture| format!(" ({architecture})")).unwrap_or_default();
    let quantised = quantisation(model)
        .map(|method| format!(", quantised ({method}): parameters count codes"))
        .unwrap_or_default();
    kind + &architecture + &quantised
}

fn embedding_rows(model: &Source) -> Option<usize> {
    model.tensors().find(|tensor| is_token_embedding(&tensor.name))?.shape.first().copied()
}

/// The ranks of its products, each once.
fn ranks(adapter: &Adapter) -> BTreeSet<u64> {
    adapter.low_rank.values().flatten().map(|product| product.rank).collect()
}

fn products(adapter: &Adapter) -> String {
    let ranks: Vec<String> = ranks(adapter).iter().map(u64::to_string).collect();
    let products = match adapter.low_rank.len() {
        0 => "none".to_owned(),
        modules => format!("{modules} modules, of rank {}", ranks.join(", ")),
    };
    match adapter.saved.len() + adapter.tokens.len() {
        0 => products,
        saved => format!("{products}; {saved} tensors replaced"),
    }
}
