//! What a merge did: the manifest `mergeforge.json`, the other files beside the tensors, and words for people.

mod linear;

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::backend::{Backend, OddValues};
use crate::checkpoint::{
    CARD, CardModel, Content, LINEAR_CONFIG, MANIFEST, MERGE_CONFIG, MODEL_CONFIG, ModelCard, Sidecar,
    Source, companion_files, config_json, licence, model_card,
};
use crate::error::{Error, Result};
use crate::method::Scope;
use crate::stream::Merged;
use crate::timeline::{Shares, Stage, StageShare, StageTimes, Timeline, Who};
use crate::{Options, Prepared};

/// What a merge did.
#[derive(Debug)]
pub struct Report {
    /// The device that computed.
    pub device: String,
    /// Per tensor of the plan.
    pub merged: Vec<Merged>,
    /// What the stages took, and when.
    pub timeline: Timeline,
    /// How busy the stages were, from the first read to the last write.
    pub shares: Shares,
    /// How long it took after that to put everything on the disk and to write the files beside the tensors.
    pub finishing: Duration,
    /// Worker threads that were asked for and that the system did not start.
    pub threads_missing: usize,
    manifest: Value,
}

impl Report {
    pub(crate) fn new(
        prepared: &Prepared,
        backend: &dyn Backend,
        merged: Vec<Merged>,
        timeline: Timeline,
        shares: Shares,
    ) -> Self {
        let plan = &prepared.plan;
        let tensors: Map<String, Value> = plan
            .tensors
            .iter()
            .zip(&merged)
            .map(|(tensor, merged)| {
                (tensor.name.to_string(), json!({ "blake3": merged.digest.to_hex().as_str() }))
            })
            .collect();
        let odd: Map<String, Value> = plan
            .tensors
            .iter()
            .zip(&merged)
            .filter(|(_, merged)| merged.odd.any())
            .map(|(tensor, merged)| (tensor.name.to_string(), odd_json(merged.odd)))
            .collect();
        let mut manifest = json!({
            "mergeforge": env!("CARGO_PKG_VERSION"),
            "method": plan.method.name,
            "seed": plan.seed,
            "device": backend.name(),
            "seconds": rounded(shares.wall.as_secs_f64()),
            "threads": shares.threads,
            "stages": stages_json(&shares),
            "bottleneck": shares.bottleneck().stage().map(Stage::name),
            "inputs": identities("model", prepared.models()),
            "element_files": identities("path", prepared.element_files()),
            "chunks_by_cpu": merged.iter().map(|merged| merged.redone).sum::<u64>(),
            "chunks_mended": merged.iter().map(|merged| merged.mended).sum::<u64>(),
            "odd_values": odd,
            "remarks": remarks(&merged).iter().map(|(remark, tensors)| json!({ "remark": remark, "tensors": tensors })).collect::<Vec<_>>(),
            "tensors": tensors,
        });
        if let Some(weights) = &plan.weights {
            // In the order of the inputs.
            manifest["weights"] = json!(weights);
        }
        let finishing = Duration::ZERO;
        Self { device: backend.name(), merged, timeline, shares, finishing, threads_missing: 0, manifest }
    }

    /// The odd values of all tensors together, and how many tensors have some.
    pub fn odd(&self) -> (OddValues, usize) {
        let mut total = OddValues::default();
        self.merged.iter().for_each(|merged| total += merged.odd);
        (total, self.merged.iter().filter(|merged| merged.odd.any()).count())
    }

    /// What was found out about tensors, and of how many it is true.
    pub fn remarks(&self) -> Vec<(&'static str, usize)> {
        remarks(&self.merged)
    }

    /// Chunks that the CPU computed for a device that makes no promises about some of their values.
    pub fn redone(&self) -> u64 {
        self.merged.iter().map(|merged| merged.redone).sum()
    }

    /// The manifest: what `mergeforge.json` holds.
    pub fn manifest(&self) -> &Value {
        &self.manifest
    }

    /// Writes the timeline's single records as a trace, for Perfetto or `chrome://tracing`. A file that is there is
    /// replaced, but no file of the inputs.
    ///
    /// # Errors
    /// Kind `Output`: the file cannot be written. The merge itself is complete.
    pub fn write_trace(&self, file: &Path, prepared: &Prepared) -> Result<()> {
        let write = || {
            // What it is now may not be what it was when the merge began.
            let out = File::options().write(true).create(true).truncate(false).open(file)?;
            if let Some(input) = input_behind(&out.metadata()?, prepared) {
                return Err(io::Error::other(format!("{input}, and inputs are never written to")));
            }
            if out.metadata()?.is_file() {
                out.set_len(0)?;
            }
            let mut out = BufWriter::new(out);
            let written = self.timeline.write_trace(&self.device, &mut out).and_then(|()| out.flush());
            // Half a trace is of no use; what is no file, as a pipe, is not ours to remove.
            if written.is_err() && file.is_file() {
                let _ = fs::remove_file(file);
            }
            written
        };
        write().map_err(|cause| {
            Error::output(format!(
                "the merge is complete, but cannot write the trace {}: {cause}",
                file.display()
            ))
        })
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
            file(MERGE_CONFIG, config.source.clone().into_bytes()),
            file(MANIFEST, manifest),
            file(MODEL_CONFIG, config_json(&donor.config_text, &plan.config_edits)),
        ];
        files.extend(linear::linear_config(prepared).map(|text| file(LINEAR_CONFIG, text.into_bytes())));
        if options.model_card {
            let title = options.out.file_name().map_or_else(|| "merge".into(), |name| name.to_string_lossy());
            files.push(file(CARD, card(prepared, &title).into_bytes()));
        }
        if options.copy_tokenizer {
            files.extend(companion_files(&donor.folder)?);
        }
        Ok(files)
    }
}

/// Which bytes inputs are, beside the names that the config calls them by.
fn identities(key: &str, sources: &[Source]) -> Vec<Value> {
    let identity = |source: &Source| {
        let mut identity = source.identity();
        identity[key] = source.name.as_str().into();
        identity
    };
    sources.iter().map(identity).collect()
}

/// Each remark, and how many tensors it is about.
fn remarks(merged: &[Merged]) -> Vec<(&'static str, usize)> {
    let mut remarks: Vec<(&str, usize)> = Vec::new();
    for remark in merged.iter().filter_map(|merged| merged.remark) {
        match remarks.iter_mut().find(|(known, _)| *known == remark) {
            Some((_, tensors)) => *tensors += 1,
            None => remarks.push((remark, 1)),
        }
    }
    remarks
}

/// About what the files beside the tensors take that are not copied. The manifest has a line and a digest for each tensor.
pub(crate) fn other_bytes(prepared: &Prepared) -> u64 {
    const AROUND_EACH_TENSOR: usize = 120;
    const ALL_ELSE: usize = 16 << 10;
    let Prepared { plan, config, sources } = prepared;
    let of_tensors: usize = plan.tensors.iter().map(|tensor| tensor.name.len() + AROUND_EACH_TENSOR).sum();
    let index = plan.layout.index.as_ref().map_or(0, Vec::len);
    // The configs stand in the card too.
    let linear = linear::linear_config(prepared).map_or(0, |text| text.len());
    let texts = sources[plan.donor].config_text.len() + 2 * (config.source.len() + linear);
    (of_tensors + index + texts + ALL_ELSE) as u64
}

/// A model as `org/name`, and the commit, if it lies in the Hugging Face cache.
fn on_hub(source: &Source) -> Option<(String, String)> {
    let real = source.folder.real();
    let repository = real.parent()?.parent()?.file_name()?.to_str()?;
    let name = repository.strip_prefix("models--")?.replacen("--", "/", 1);
    Some((name, real.file_name()?.to_str()?.into()))
}

/// A model as the card names it: as it was written, but where that is a path into the cache by its name on the Hub, which others
/// can look up.
fn card_model(source: &Source) -> CardModel {
    let (written, revision) = source.name.split_once('@').unwrap_or((&source.name, ""));
    let (hub, commit) = on_hub(source).unzip();
    let by_path = hub.as_deref().is_some_and(|hub| hub != written);
    let is_commit = |commit: &String| commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    CardModel {
        name: hub.clone().filter(|_| by_path).unwrap_or_else(|| source.name.clone()),
        commit: commit.filter(|commit| is_commit(commit) && (by_path || !revision.is_empty())),
        hub,
        licence: licence(&source.folder),
    }
}

fn card(prepared: &Prepared, title: &str) -> String {
    let Prepared { plan, config, .. } = prepared;
    let models: Vec<CardModel> = prepared.models().iter().map(card_model).collect();
    // Where parameters are for all models but the base, the base is what the others are compared with.
    let compared = plan.method.parameters.iter().any(|parameter| parameter.scope == Scope::NonBase);
    let linear = linear::linear_config(prepared);
    model_card(&ModelCard {
        title,
        method: plan.method.name,
        paper: plan.method.paper.map(|paper| paper.url),
        models: &models,
        base: plan.base,
        base_is_merged: !compared,
        seed: plan.seed,
        version: env!("CARGO_PKG_VERSION"),
        yaml: &config.source,
        linear: linear.as_deref(),
    })
}

/// Refuses a place for a trace that could not be written after the merge, or that the merge or its inputs need.
///
/// # Errors
/// Kind `Config`: what stands in the way.
pub fn check_trace(file: &Path, config: &Path, out: &Path, prepared: &Prepared) -> Result<()> {
    let refused = |what: &str| {
        Err(Error::config(format!("the trace {} cannot be written: {what}", file.display()))
            .hint("--trace takes a file beside the models and the output, in a folder that exists"))
    };
    if file.is_dir() || file.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return refused("that is a folder");
    }
    let (Some(name), Some(folder)) = (file.file_name(), folder_of(file).filter(|folder| folder.is_dir()))
    else {
        return refused("its folder does not exist");
    };
    // By its name, and where a symlink of that name leads.
    let places = [folder.join(name), real(file)];
    let out = real(out);
    let mut partial = out.clone().into_os_string();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let of_output = |place: &PathBuf| {
        [&out, &partial].iter().any(|folder| place.starts_with(folder) || folder.starts_with(place))
    };
    if places.iter().any(of_output) {
        return refused("the output goes there");
    }
    let inputs: Vec<PathBuf> = prepared.sources.iter().map(|source| real(&source.place())).collect();
    if places.iter().any(|place| inputs.iter().any(|input| place.starts_with(input))) {
        return refused("a model lies there, and inputs are never written to");
    }
    if places.contains(&real(config)) {
        return refused("that is the config");
    }
    // A link without a target of its own (`ln`), or to a blob of the cache.
    if let Some(input) = fs::metadata(file).ok().and_then(|found| input_behind(&found, prepared)) {
        return refused(&format!("{input}, and inputs are never written to"));
    }
    may_write(if file.exists() { file } else { &folder }).or_else(|cause| refused(&cause.to_string()))
}

/// Which input a file is too, if it is one.
fn input_behind(file: &Metadata, prepared: &Prepared) -> Option<String> {
    prepared
        .sources
        .iter()
        .find_map(|source| Some(format!("it is a link to {}", source.file_behind(file)?.display())))
}

/// The folder of a file, without symlinks, if it is there.
fn folder_of(file: &Path) -> Option<PathBuf> {
    std::path::absolute(file).ok()?.parent()?.canonicalize().ok()
}

/// A path without symlinks, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let resolved = |ancestor: &Path| {
        let rest = absolute.strip_prefix(ancestor).ok()?;
        // Components, since joining nothing would add a slash.
        Some(ancestor.canonicalize().ok()?.components().chain(rest.components()).collect())
    };
    absolute.ancestors().find_map(resolved).unwrap_or_else(|| absolute.clone())
}

#[cfg(unix)]
fn may_write(path: &Path) -> std::io::Result<()> {
    use rustix::fs::{Access, access};
    let needed = if path.is_dir() { Access::WRITE_OK | Access::EXEC_OK } else { Access::WRITE_OK };
    Ok(access(path, needed)?)
}

/// Elsewhere the end of the merge will show it.
#[cfg(not(unix))]
fn may_write(_path: &Path) -> std::io::Result<()> {
    Ok(())
}

/// What the stages did, for programs; no times where they were not measured.
pub fn stages_json(shares: &Shares) -> Value {
    shares.stages.iter().map(stage_json).collect()
}

fn stage_json(stage: &StageShare) -> Value {
    let who = match stage.who {
        Who::Workers => "threads",
        Who::Device => "device",
    };
    let time = |of: fn(&StageTimes) -> f64| stage.times.as_ref().map(|times| rounded(of(times)));
    json!({
        "stage": stage.stage.name(), "by": who, "busy_seconds": time(|times| times.busy.as_secs_f64()),
        "share": time(|times| times.share), "bytes": stage.bytes, "gb_per_s": time(|times| times.gb_per_s),
    })
}

/// Thousandths are what times are good for.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn odd_json(odd: OddValues) -> Value {
    json!({ "nan": odd.nan, "infinite": odd.infinite, "overflowed": odd.overflowed })
}
