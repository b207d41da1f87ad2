//! What a merge did: the manifest `mergeforge.json`, the other files beside the tensors, and words for people.

use serde_json::{Map, Value, json};

use crate::backend::{Backend, OddValues};
use crate::checkpoint::{Content, ModelCard, Sidecar, Source, companion_files, config_json, model_card};
use crate::error::Result;
use crate::method::Scope;
use crate::stream::Merged;
use crate::{Options, Prepared};

/// What a merge did.
#[derive(Debug)]
pub struct Report {
    /// The device that computed.
    pub device: String,
    /// Per tensor of the plan.
    pub merged: Vec<Merged>,
    manifest: Value,
}

impl Report {
    pub(crate) fn new(prepared: &Prepared, backend: &dyn Backend, merged: Vec<Merged>) -> Self {
        let plan = &prepared.plan;
        let tensors: Map<String, Value> = plan
            .tensors
            .iter()
            .zip(&merged)
            .map(|(tensor, merged)| {
                (tensor.name.clone(), json!({ "blake3": merged.digest.to_hex().as_str() }))
            })
            .collect();
        let odd: Map<String, Value> = plan
            .tensors
            .iter()
            .zip(&merged)
            .filter(|(_, merged)| merged.odd.any())
            .map(|(tensor, merged)| (tensor.name.clone(), odd_json(merged.odd)))
            .collect();
        let manifest = json!({
            "mergeforge": env!("CARGO_PKG_VERSION"),
            "method": plan.method.name,
            "seed": plan.seed,
            "device": backend.name(),
            "inputs": prepared.sources.iter().map(Source::identity).collect::<Vec<_>>(),
            "odd_values": odd,
            "tensors": tensors,
        });
        Self { device: backend.name(), merged, manifest }
    }

    /// The odd values of all tensors together, and how many tensors have some.
    pub fn odd(&self) -> (OddValues, usize) {
        let mut total = OddValues::default();
        self.merged.iter().for_each(|merged| total += merged.odd);
        (total, self.merged.iter().filter(|merged| merged.odd.any()).count())
    }

    /// The manifest: what `mergeforge.json` holds.
    pub fn manifest(&self) -> &Value {
        &self.manifest
    }

    /// The files beside the tensors.
    pub(crate) fn sidecars(&self, prepared: &Prepared, options: &Options) -> Result<Vec<Sidecar>> {
        let (plan, config) = (&prepared.plan, &prepared.config);
        let donor = &prepared.sources[plan.donor];
        let file =
            |file: &str, content: Vec<u8>| Sidecar { file: file.into(), content: Content::Bytes(content) };
        let mut manifest = serde_json::to_vec_pretty(&self.manifest).expect("the manifest is plain JSON");
        manifest.push(b'\n');
        let mut files = vec![
            file("mergekit_config.yml", config.source.clone().into_bytes()),
            file("mergeforge.json", manifest),
            file("config.json", config_json(&donor.config, &plan.config_edits)),
        ];
        if options.model_card {
            let title = options.out.file_name().map_or_else(|| "merge".into(), |name| name.to_string_lossy());
            files.push(file("README.md", card(prepared, &title).into_bytes()));
        }
        if options.copy_tokenizer {
            files.extend(companion_files(&donor.folder)?);
        }
        Ok(files)
    }
}

fn card(prepared: &Prepared, title: &str) -> String {
    let (plan, config) = (&prepared.plan, &prepared.config);
    let from_cache =
        |part: std::path::Component<'_>| part.as_os_str().to_string_lossy().starts_with("models--");
    let on_hub = |source: &&Source| source.folder.components().any(from_cache) && source.name.contains('/');
    // The Hub knows repositories, not their revisions.
    let repository = |source: &Source| source.name.split('@').next().unwrap_or_default().to_string();
    let hub_models: Vec<String> = prepared.sources.iter().filter(on_hub).map(repository).collect();
    // Where parameters are for all models but the base, the base is what the others are compared with.
    let compared = plan.method.parameters.iter().any(|parameter| parameter.scope == Scope::NonBase);
    let is_base = |i: usize| compared && plan.base == Some(i);
    let merged: Vec<String> = plan
        .models
        .iter()
        .enumerate()
        .filter(|(i, _)| !is_base(*i))
        .map(|(_, model)| model.clone())
        .collect();
    model_card(&ModelCard {
        title,
        method: plan.method.name,
        paper: plan.method.paper.map(|paper| paper.url),
        base: plan.base.map(|base| plan.models[base].as_str()),
        models: &merged,
        seed: plan.seed,
        hub_models: &hub_models,
        version: env!("CARGO_PKG_VERSION"),
        yaml: &config.source,
    })
}

fn odd_json(odd: OddValues) -> Value {
    json!({ "nan": odd.nan, "infinite": odd.infinite, "overflowed": odd.overflowed })
}

/// A number of bytes in words: `2.20 GB`.
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
