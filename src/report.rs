//! What a merge did: the manifest `mergeforge.json`, the other files beside the tensors, and words for people.

mod canonical;
pub(crate) mod inputs;
mod linear;
mod made;
mod making;
mod manifest;

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use made::{differences, manifest_in};
pub(crate) use making::{LAYOUT, layout_digest, making};
pub use manifest::{
    AdapterRecord, ConfigRecord, CoverageRecord, FORMAT, FileRecord, InputFileRecord, InputRecord,
    LeftOutRecord, Manifest, OddRecord, OptionsRecord, RemarkRecord, TensorRecord,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::backend::OddValues;
use crate::checkpoint::layout::INDEX;
use crate::checkpoint::{
    CARD, CardModel, Content, LINEAR_CONFIG, MANIFEST, MERGE_CONFIG, MODEL_CONFIG, MOE_CONFIG, ModelCard,
    Shard, Sidecar, Source, StoredTensor, config_json, licence, model_card, sha256_of,
};
use crate::error::{Error, Result};
use crate::files::{self, File, Metadata};
use crate::method::{MIXTURE, Scope};
use crate::plan::{LeftOut, PlannedModel, Tensor};
use crate::stream::Merged;
use crate::timeline::{Shares, Stage, StageShare, StageTimes, Timeline, Who};
use crate::{Options, Prepared};

/// What a merge did.
#[derive(Debug)]
pub struct Report {
    /// The device that computed.
    pub device: String,
    /// Of each tensor that was merged.
    pub merged: Vec<Merged>,
    /// Their places in the plan: all, but of a part of an output.
    pub places: Vec<usize>,
    /// What the stages took, and when.
    pub timeline: Timeline,
    /// How busy the stages were, from the first read to the last write.
    pub shares: Shares,
    /// How long it took after that to put everything on the disk and to write the files beside the tensors.
    pub finishing: Duration,
    /// Worker threads that were asked for and that the system did not start.
    pub threads_missing: usize,
    manifest: Manifest,
    /// What it is not in the manifest for: it differs from run to run.
    run: Value,
}

/// What is said of the result of another document, which a merge reads.
#[derive(Debug)]
pub(crate) struct Intermediate {
    /// The models that it is made of in the end, none of them such a result itself.
    models: Vec<CardModel>,
    /// Whether it is a checkpoint in a folder.
    pub(crate) is_in_folder: bool,
    /// What the manifest there says of the inputs: the folder may be gone when somebody asks.
    inputs: Vec<Value>,
    /// The same of the tensors, as the BLAKE3 digest of that.
    tensors: Option<String>,
}

impl Intermediate {
    /// One of these models, in this folder if it is in one.
    pub(crate) fn new(models: Vec<CardModel>, folder: Option<&Path>) -> Self {
        #[derive(Deserialize)]
        struct Recorded {
            inputs: Vec<Value>,
            tensors: Value,
        }
        // What somebody else put there has none.
        let manifest = folder.and_then(manifest_in::<Recorded>);
        let (inputs, tensors) = manifest.map(|manifest| (manifest.inputs, manifest.tensors)).unzip();
        let digest = |tensors: Value| blake3::hash(tensors.to_string().as_bytes()).to_hex().to_string();
        let (inputs, tensors) = (inputs.unwrap_or_default(), tensors.map(digest));
        Self { models, is_in_folder: folder.is_some(), inputs, tensors }
    }
}

impl Report {
    /// What is reported of tensors that were merged, by their places in the plan.
    ///
    /// # Errors
    /// Kind `Input`: what says which bytes an input is cannot be read.
    pub(crate) fn new(
        prepared: &Prepared,
        device: String,
        merged: BTreeMap<usize, Merged>,
        timeline: Timeline,
        shares: Shares,
    ) -> Result<Self> {
        let plan = &prepared.plan;
        let (places, merged): (Vec<usize>, Vec<Merged>) = merged.into_iter().unzip();
        let left_out = |left: &LeftOut| LeftOutRecord {
            model: left.model.clone(),
            what: left.what.clone(),
            tensors: left.tensors,
        };
        let config = ConfigRecord {
            file: config_name(prepared).into(),
            sha256: sha256_of(prepared.config.source.as_bytes()),
        };
        let mut manifest = Manifest {
            format: FORMAT,
            mergeforge: env!("CARGO_PKG_VERSION").into(),
            method: plan.method.name.into(),
            config,
            seed: plan.seed,
            options: made::options(prepared),
            inputs: records(inputs::covered_models(prepared)?),
            element_files: records(inputs::element_files(prepared)),
            left_out: plan.left_out.iter().map(left_out).collect(),
            // In the order of the inputs.
            weights: plan.weights.clone(),
            odd_values: BTreeMap::new(),
            remarks: Vec::new(),
            total_size: plan.layout.total_bytes,
            // Known once they are made.
            files: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        let tensors: Vec<&Tensor> = places.iter().map(|place| &plan.tensors[*place]).collect();
        let file = |place: &usize| &*plan.layout.shards[plan.layout.places[*place].shard].file;
        add_tensors(&mut manifest, &tensors, places.iter().map(file), &merged);
        let run = json!({
            "device": device,
            "seconds": rounded(shares.wall.as_secs_f64()),
            "threads": shares.threads,
            "stages": stages_json(&shares),
            "bottleneck": shares.bottleneck().stage().map(Stage::name),
            "chunks_by_cpu": merged.iter().map(|merged| merged.redone).sum::<u64>(),
            "chunks_mended": merged.iter().map(|merged| merged.mended).sum::<u64>(),
        });
        let finishing = Duration::ZERO;
        Ok(Self { device, merged, places, timeline, shares, finishing, threads_missing: 0, manifest, run })
    }

    /// The odd values of all tensors together, and how many tensors have some.
    pub fn odd(&self) -> (OddValues, usize) {
        let mut total = OddValues::default();
        self.merged.iter().for_each(|merged| total += merged.odd);
        (total, self.merged.iter().filter(|merged| merged.odd.any()).count())
    }

    /// What was found out about tensors, and of how many it is true.
    pub fn remarks(&self) -> Vec<(&str, usize)> {
        remarks(&self.merged)
    }

    /// Chunks that the CPU computed for a device that makes no promises about some of their values.
    pub fn redone(&self) -> u64 {
        self.merged.iter().map(|merged| merged.redone).sum()
    }

    /// The manifest: what `mergeforge.json` holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How the merge went, for programs: the device, seconds, threads, what the stages did, chunks that were made once more.
    pub fn run(&self) -> &Value {
        &self.run
    }

    /// Both: the manifest, and beside its keys `run`.
    pub fn json(&self) -> Value {
        let mut all = self.manifest.value();
        all["run"] = self.run.clone();
        all
    }

    /// Writes the timeline's single records as a trace, for Perfetto or `chrome://tracing`. A file that is there is
    /// replaced, but no file of the inputs.
    ///
    /// # Errors
    /// Kind `Output`: the file cannot be written. The merge itself is complete.
    pub fn write_trace(&self, file: &Path, prepared: &Prepared) -> Result<()> {
        let write = || {
            // What it is now may not be what it was when the merge began.
            let out = File::open_to_write(file)?;
            if let Some(input) = input_behind(&out.metadata()?, prepared) {
                return Err(io::Error::other(format!("{input}, and inputs are never written to")));
            }
            if out.metadata()?.is_file() {
                out.set_len(0)?;
            }
            let mut out = BufWriter::new(out);
            let written = self.timeline.write_trace(&self.device, &mut out).and_then(|()| out.flush());
            // Half a trace is of no use; what is no file, as a pipe, is not ours to remove.
            if written.is_err() && files::is_file(file) {
                let _ = files::remove_file(file);
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

    /// What was merged, each tensor by its place in the plan.
    pub fn placed(&self) -> impl Iterator<Item = (usize, &Merged)> + Clone {
        self.places.iter().copied().zip(&self.merged)
    }

    /// The files beside the tensors, the manifest among them, which from now on lists all files.
    pub(crate) fn sidecars(&mut self, prepared: &Prepared, options: &Options) -> Result<Vec<Sidecar>> {
        let mut files = self.beside(prepared, options)?;
        files.push(Sidecar {
            file: MANIFEST.into(),
            content: Content::Bytes(self.manifest.text().into_bytes()),
        });
        Ok(files)
    }

    /// The same without the manifest.
    pub(crate) fn beside(&mut self, prepared: &Prepared, options: &Options) -> Result<Vec<Sidecar>> {
        let config = &prepared.config;
        let file =
            |file: &str, content: Vec<u8>| Sidecar { file: file.into(), content: Content::Bytes(content) };
        let mut files = vec![file(config_name(prepared), config.source.clone().into_bytes())];
        files.extend(linear::linear_config(prepared).map(|text| file(LINEAR_CONFIG, text.into_bytes())));
        files.extend(model_files(prepared, options.copy_tokenizer));
        self.manifest.files = file_records(prepared, &files)?;
        if options.model_card {
            let title = options.out.file_name().map_or_else(|| "merge".into(), |name| name.to_string_lossy());
            files.push(file(CARD, card(prepared, &title).into_bytes()));
        }
        Ok(files)
    }
}

/// Completes a manifest with all that it says of tensors, which come in the order of the plan, each with its file and what came of it.
pub(crate) fn add_tensors<'a, T: StoredTensor>(
    manifest: &mut Manifest,
    tensors: &[&T],
    files: impl Iterator<Item = &'a str>,
    merged: &[Merged],
) {
    for ((tensor, file), merged) in tensors.iter().zip(files).zip(merged) {
        let record = TensorRecord {
            blake3: merged.digest.to_hex().as_str().into(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            file: file.into(),
        };
        manifest.tensors.insert(tensor.name().into(), record);
        if merged.odd.any() {
            manifest.odd_values.insert(tensor.name().into(), odd_record(merged.odd));
        }
    }
    let remark = |(remark, tensors): (&str, usize)| RemarkRecord { remark: remark.into(), tensors };
    manifest.remarks = remarks(merged).into_iter().map(remark).collect();
}

fn records(inputs: Vec<Value>) -> Vec<InputRecord> {
    let record = |input| serde_json::from_value(input).expect("every key of an input stands in its record");
    inputs.into_iter().map(record).collect()
}

/// The name of the config beside the weights.
fn config_name(prepared: &Prepared) -> &'static str {
    if prepared.plan.method.name == MIXTURE.name { MOE_CONFIG } else { MERGE_CONFIG }
}

/// What the manifest says of files: those with the weights, their index, and these. The model card, which people go on writing, and
/// which has the folder's name for a title, is in no manifest.
fn file_records(prepared: &Prepared, beside: &[Sidecar]) -> Result<BTreeMap<String, FileRecord>> {
    let layout = &prepared.plan.layout;
    let of_bytes = |bytes: &[u8]| FileRecord::Other { bytes: bytes.len() as u64, sha256: sha256_of(bytes) };
    let of_shard = |shard: &Shard| {
        let header_bytes = shard.header.len() as u64;
        let header_sha256 = sha256_of(&shard.header);
        (shard.file.clone(), FileRecord::Weights { bytes: shard.bytes, header_bytes, header_sha256 })
    };
    let mut records: BTreeMap<String, FileRecord> = layout.shards.iter().map(of_shard).collect();
    records.extend(layout.index.iter().map(|index| (INDEX.to_owned(), of_bytes(index))));
    for sidecar in beside.iter().filter(|sidecar| sidecar.file != CARD) {
        let record = match &sidecar.content {
            Content::Bytes(bytes) => of_bytes(bytes),
            Content::CopyOf(original) => {
                let (bytes, sha256) = original.sha256(&|_| Ok(()))?;
                FileRecord::Other { bytes, sha256 }
            }
        };
        records.insert(sidecar.file.clone(), record);
    }
    Ok(records)
}

/// The output's config.json; none where the models have none.
pub(crate) fn model_config(prepared: &Prepared) -> Option<Vec<u8>> {
    let (plan, donor) = (&prepared.plan, prepared.donor());
    let text = plan.tokenizer.config_text.as_ref().unwrap_or(&donor.config_text);
    donor.has_config().then(|| config_json(text, &plan.config_edits))
}

/// The names of the files that a merge writes, and perhaps of some more.
pub(crate) fn output_files(prepared: &Prepared) -> Vec<String> {
    let layout = &prepared.plan.layout;
    let weights = layout.shards.iter().map(|shard| &*shard.file).chain(layout.index.as_ref().map(|_| INDEX));
    let about_the_merge = [MERGE_CONFIG, MOE_CONFIG, MANIFEST, LINEAR_CONFIG, CARD];
    let files = weights.chain(about_the_merge).map(str::to_owned);
    files.chain(model_files(prepared, true).into_iter().map(|file| file.file)).collect()
}

/// What makes tensors a model: its config.json, and the files that come from the donor or are made for the vocabulary.
pub(crate) fn model_files(prepared: &Prepared, copied: bool) -> Vec<Sidecar> {
    let config = |text| Sidecar { file: MODEL_CONFIG.into(), content: Content::Bytes(text) };
    let mut files: Vec<Sidecar> = model_config(prepared).map(config).into_iter().collect();
    if copied {
        files.extend(prepared.companions.sidecars());
    }
    files.extend(prepared.companions.written());
    files
}

/// Each remark, and how many tensors it is about.
fn remarks(merged: &[Merged]) -> Vec<(&str, usize)> {
    let mut remarks: Vec<(&str, usize)> = Vec::new();
    for remark in merged.iter().filter_map(|merged| merged.remark.as_deref()) {
        match remarks.iter_mut().find(|(known, _)| *known == remark) {
            Some((_, tensors)) => *tensors += 1,
            None => remarks.push((remark, 1)),
        }
    }
    remarks
}

/// About what the files beside the tensors take that are not copied. The manifest has a line and a digest for each tensor.
pub(crate) fn other_bytes(prepared: &Prepared) -> u64 {
    const AROUND_EACH_TENSOR: usize = 220;
    const ALL_ELSE: usize = 16 << 10;
    let Prepared { plan, config, .. } = prepared;
    let of_tensors: usize = plan.tensors.iter().map(|tensor| tensor.name.len() + AROUND_EACH_TENSOR).sum();
    let index = plan.layout.index.as_ref().map_or(0, Vec::len);
    // The configs stand in the card too.
    let linear = linear::linear_config(prepared).map_or(0, |text| text.len());
    let texts = prepared.donor().config_text.len() + 2 * (config.source.len() + linear);
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
        licence: source.is_folder().then(|| licence(&source.folder)).flatten(),
        is_merged: false,
        adapter: None,
    }
}

/// The same with its adapter; the result of another document by its name alone, since its files are not what others can look up.
fn adapted_card_model(prepared: &Prepared, model: &PlannedModel) -> CardModel {
    let source = &prepared.sources[model.source];
    let named = if prepared.results.contains_key(&model.source) {
        CardModel { name: source.name.clone(), is_merged: true, ..CardModel::default() }
    } else {
        card_model(source)
    };
    let adapter = model.adapter.map(|adapter| Box::new(card_model(&prepared.sources[adapter])));
    CardModel { adapter, ..named }
}

/// The models of a document, and behind them those of which results among them are made.
fn card_models(prepared: &Prepared) -> Vec<CardModel> {
    let mut all: Vec<CardModel> =
        prepared.plan.models.iter().map(|model| adapted_card_model(prepared, model)).collect();
    for model in inputs::results(prepared).flat_map(|result| &result.models) {
        if !all.contains(model) {
            all.push(model.clone());
        }
    }
    all
}

/// The same without the results, of which nothing is left to name but their adapters.
pub(crate) fn models_in_the_end(prepared: &Prepared) -> Vec<CardModel> {
    let in_the_end =
        |model: CardModel| if model.is_merged { model.adapter.map(|adapter| *adapter) } else { Some(model) };
    card_models(prepared).into_iter().filter_map(in_the_end).collect()
}

fn card(prepared: &Prepared, title: &str) -> String {
    let Prepared { plan, config, .. } = prepared;
    let models = card_models(prepared);
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
        is_bare: !prepared.donor().has_config(),
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
    if files::is_folder(file) || file.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return refused("that is a folder");
    }
    let (Some(name), Some(folder)) =
        (file.file_name(), folder_of(file).filter(|folder| files::is_folder(folder)))
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
    if let Some(input) = files::metadata(file).ok().and_then(|found| input_behind(&found, prepared)) {
        return refused(&format!("{input}, and inputs are never written to"));
    }
    files::check_writable(if files::exists(file) { file } else { &folder })
        .or_else(|cause| refused(&cause.to_string()))
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
    files::real(std::path::absolute(file).ok()?.parent()?).ok()
}

/// A path without symlinks, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let resolved = |ancestor: &Path| {
        let rest = absolute.strip_prefix(ancestor).ok()?;
        // Components, since joining nothing would add a slash.
        Some(files::real(ancestor).ok()?.components().chain(rest.components()).collect())
    };
    absolute.ancestors().find_map(resolved).unwrap_or_else(|| absolute.clone())
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

fn odd_record(odd: OddValues) -> OddRecord {
    OddRecord { nan: odd.nan, infinite: odd.infinite, overflowed: odd.overflowed }
}
