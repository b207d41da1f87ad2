//! Configs with several documents: `merge` with one result, and `multi`, which is mergekit-multi's command.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value as Json, json};

use super::progress::Progress;
use super::resources::limits_on;
use super::{CommonArgs, MergeFlags, PlanOptions, Warnings, merge_into, merge_on, show, show_plan};
use crate::backend::device::Device;
use crate::checkpoint::{Destination, MANIFEST, WorkFolder, check_destinations};
use crate::error::{Error, Kind, Result};
use crate::hub::{Remote, Wanted};
use crate::report::{differences, manifest_in, output_files};
use crate::stages::{Stages, Visit, Way, outline};
use crate::stream::Budget;
use crate::text::bytes;
use crate::timeline::Timeline;
use crate::{Prepared, Stopped, check_left, free_for, output_bytes, places_of_inputs, read_stages};

#[derive(Debug, Args)]
pub(super) struct MultiArgs {
    /// The config: several mergekit YAMLs in one file, separated by lines `---`
    config: PathBuf,
    /// Where the results of documents with a `name` go: each into a folder of that name
    #[arg(long, short = 'I', value_name = "DIR")]
    intermediate_dir: PathBuf,
    /// Where the result of the document without a `name` goes
    #[arg(long, value_name = "DIR")]
    out_path: Option<PathBuf>,
    /// Leave out what is there already
    #[arg(long, overrides_with = "no_lazy")]
    lazy: bool,
    /// Merge all again; what is there already has to be removed first
    #[arg(long)]
    no_lazy: bool,
    #[command(flatten)]
    flags: MergeFlags,
}

/// Where results go.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    /// The one that no other document reads; none where there is none.
    pub out: Option<&'a Path>,
    /// Those that others read, if they are kept.
    pub kept: Option<&'a Path>,
    /// Whether results that are kept are merged again where they are there already.
    pub again: bool,
    /// Whether the output stays as it is where it is there already.
    pub out_stays: bool,
}

impl Places<'_> {
    /// The folder beside the output in which results lie that are not kept.
    fn work_folder(&self) -> PathBuf {
        // `.` has no name that the folder could stand beside.
        let near = self.out.unwrap_or(Path::new(""));
        let near = match near.file_name() {
            Some(_) => near.to_path_buf(),
            None => near.canonicalize().unwrap_or_default(),
        };
        let mut name = near.file_name().unwrap_or_default().to_os_string();
        name.push(".stages");
        near.with_file_name(name)
    }

    /// Where the result of a document goes; its name where a plan does not say.
    fn folder(&self, name: &str) -> PathBuf {
        match (self.kept, self.out) {
            (Some(kept), _) => kept.join(name),
            (None, Some(_)) => self.work_folder().join(in_work_folder(name)),
            (None, None) => name.into(),
        }
    }
}

/// The place of a result beside what else lies in the work folder.
fn in_work_folder(name: &str) -> String {
    format!("merged/{name}")
}

pub(super) fn multi(args: &MultiArgs) -> Result<()> {
    let progress = Progress::new(args.flags.quiet)?;
    args.flags.mergekit.notes.iter().for_each(|note| show::note(note));
    if args.flags.part.is_some() {
        let refusal = Error::config("--part means nothing here: several outputs have no parts in common");
        return Err(refusal.hint("make parts of one output by `mergeforge merge CONFIG OUT --part I/N`"));
    }
    let mut stages = read_stages(&args.config)?;
    if stages.all_named() {
        stages.keep_all();
        if let Some(out) = &args.out_path {
            let out = out.display();
            show::note(&format!("--out-path {out}: nothing goes there, since all documents have names"));
        }
    } else if args.out_path.is_none() {
        let refusal = Error::config("a document of the config has no name, and --out-path is missing");
        return Err(refusal.hint("--out-path DIR says where its result goes"));
    }
    let out = args.out_path.as_deref().filter(|_| stages.has_result());
    let kept = Some(&*args.intermediate_dir);
    let places = Places { out, kept, again: args.no_lazy, out_stays: !args.no_lazy };
    merge(&stages, &places, &args.flags, &progress)
}

/// Plans every document, checks all that can be checked, and merges them one after the other.
pub(super) fn merge(
    stages: &Stages,
    places: &Places<'_>,
    flags: &MergeFlags,
    progress: &Progress,
) -> Result<()> {
    merge_all(stages, places, flags, progress).map_err(|error| match places.kept {
        Some(kept) if error.kind == Kind::Interrupted => {
            let message = format!("interrupted: results that were done by then stay in {}", kept.display());
            Error { message, ..error }
        }
        _ => error,
    })
}

fn merge_all(stages: &Stages, places: &Places<'_>, flags: &MergeFlags, progress: &Progress) -> Result<()> {
    let on = flags.device()?;
    let mut survey = Survey::new(places, Some(flags), &on);
    let mut planned = survey.of(stages, &flags.common)?;
    if flags.part.is_some() && survey.folders > 0 {
        let refusal = Error::config("--part: documents have to be merged first that every part reads");
        return Err(refusal.hint(
            "merge them once, into folders of their names (`mergeforge multi CONFIG -I DIR`); or name these in the config, in place of the documents",
        ));
    }
    if !flags.quiet {
        survey.stages.iter().filter(|stage| stage.is_fused).for_each(Stage::note);
    }
    let is_needed = survey.folders > 0 && places.kept.is_none();
    let work = if is_needed { Some(work_folder(places)?) } else { None };
    if survey.folders > 0 {
        let (there, work) = (&survey.there, work.as_ref());
        let mut merging = Merging { places, there, work, flags, on: &on, progress };
        planned = stages.carry_out(&flags.common.choices(), places.kept.is_some(), &mut merging)?;
    }
    match (planned, places.out) {
        (Some(prepared), Some(out)) if !survey.out_is_there => merge_on(&prepared, out, flags, &on, progress),
        (_, Some(out)) => {
            if let Some(file) = &flags.trace {
                show::note(&format!("--trace {}: there is no merge to trace", file.display()));
            }
            if let Some(manifest) = manifest_in::<Json>(out).filter(|_| flags.json) {
                show::json(&manifest);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The folder beside the output for results that are not kept.
fn work_folder(places: &Places<'_>) -> Result<WorkFolder> {
    let work = WorkFolder::create(&places.work_folder())?;
    if work.was_left() {
        let left = work.path().display();
        show::note(&format!("{left} was left by a merge that was ended: what it had merged is removed"));
    }
    Ok(work)
}

/// Shows the plans of all documents.
pub(super) fn plan(stages: &Stages, args: &PlanOptions) -> Result<()> {
    stages.check_result()?;
    let on = args.common.run.device(false, &|_| Ok(()))?;
    let places = Places { out: args.out.as_deref(), kept: None, again: false, out_stays: false };
    let mut survey = Survey::new(&places, None, &on);
    let result = survey.of(stages, &args.common)?;
    show_plan(&result.expect("one document goes to the output"), None, &survey.stages, args)
}

/// All that is to be known before the first merge begins.
struct Survey<'a> {
    places: &'a Places<'a>,
    /// None where nothing will be merged.
    flags: Option<&'a MergeFlags>,
    on: &'a (Device, Budget),
    /// The documents whose results others read.
    stages: Vec<Stage>,
    /// The warnings of plans, which follow those of configs.
    warnings: Warnings,
    /// Where what is read lies.
    inputs: BTreeSet<PathBuf>,
    /// What of them has to be fetched from the Hub.
    absent: Vec<Wanted>,
    /// The folders that are to be made, but for those that are removed.
    destinations: Vec<Destination>,
    /// What goes into those that are removed.
    on_the_way_bytes: u64,
    /// How many results are to be merged into folders, before that of the output.
    folders: usize,
    /// The names of results that are there already.
    there: HashSet<String>,
    out_is_there: bool,
}

impl<'a> Survey<'a> {
    fn new(places: &'a Places<'a>, flags: Option<&'a MergeFlags>, on: &'a (Device, Budget)) -> Self {
        Self {
            places,
            flags,
            on,
            stages: Vec::new(),
            warnings: Warnings::default(),
            inputs: BTreeSet::new(),
            absent: Vec::new(),
            destinations: Vec::new(),
            on_the_way_bytes: 0,
            folders: 0,
            there: HashSet::new(),
            out_is_there: false,
        }
    }

    /// Plans every document, reports or refuses all warnings, and checks the folders that are to be made. What is not there yet
    /// stands as an outline.
    fn of(&mut self, stages: &Stages, common: &CommonArgs) -> Result<Option<Prepared>> {
        stages.configs().iter().for_each(|config| self.warnings.of_config(&config.warnings));
        let kept = self.places.kept.is_some();
        let result = stages.survey(&common.choices(), kept, self)?;
        if !kept {
            for (name, is_unread) in stages.left_out() {
                let why = if is_unread {
                    "no other document reads it"
                } else {
                    "only documents that are left out read it"
                };
                show::note(&format!("{name}: {why}, and it is left out (--intermediate-dir keeps it)"));
            }
        }
        if self.flags.is_some() {
            self.warnings.of_memory(&self.on.1);
        }
        self.warnings.refuse(common.fit.strict)?;
        if self.places.out.is_some() || kept {
            if let Some(last) = self.destinations.last_mut() {
                last.on_the_way_bytes = self.on_the_way_bytes;
            }
            let inputs: Vec<PathBuf> = self.inputs.iter().cloned().collect();
            check_destinations(&self.destinations, &inputs)?;
            if common.run.hub.remote() != Remote::Streamed {
                let beside: Vec<(&Path, u64)> = self
                    .destinations
                    .iter()
                    .map(|of| (of.out.as_path(), of.bytes.saturating_add(of.on_the_way_bytes)))
                    .collect();
                free_for(&self.absent, &beside)?;
            }
        }
        Ok(result)
    }

    /// What is found out of every plan.
    fn planned(&mut self, prepared: &Prepared) {
        self.warnings.of_plan(prepared);
        self.inputs.extend(places_of_inputs(prepared));
        self.absent.extend(prepared.absent());
    }

    /// Refuses what a stopped merge of something else has left, before anything is merged.
    fn check_left(&self, prepared: &Prepared, out: &Path) -> Result<()> {
        let goes_on = self.flags.is_none_or(|flags| flags.stopped() == Stopped::GoesOn);
        if goes_on { check_left(prepared, out) } else { Ok(()) }
    }

    /// Checks all that a merge into a folder needs, but for the folder.
    fn check(&self, prepared: &Prepared, folder: &Path) -> Result<()> {
        let (device, budget) = self.on;
        limits_on(&prepared.plan, budget, device)?;
        self.flags.map_or(Ok(()), |flags| flags.check_trace(folder, prepared))
    }

    /// Whether a result is there already, and may stay so; then says what of it is not what would be merged.
    fn is_there(&mut self, folder: &Path, prepared: &Prepared) -> Result<bool> {
        // Ours appear whole or not at all.
        if !folder.join("config.json").is_file() && !folder.join(MANIFEST).is_file() {
            return Ok(false);
        }
        let (shown, others) = (folder.display(), differences(folder, prepared, self.copies())?);
        if others.is_empty() {
            show::note(&format!("{shown} is there already: it is taken as it is"));
        } else {
            let others = others.join("; ");
            let warning = format!("{shown} is there already, and is not what would be merged now: {others}");
            let hint = "it is taken as it is; remove it to have it merged again, or give another folder";
            self.warnings.of_result(Error::config(warning).hint(hint));
        }
        Ok(true)
    }

    /// Whether the donor's files go into folders that stay.
    fn copies(&self) -> bool {
        self.flags.is_none_or(|flags| !flags.no_copy_tokenizer)
    }
}

impl Visit for Survey<'_> {
    fn output(&mut self, prepared: &Prepared) -> Result<()> {
        self.planned(prepared);
        let Some(out) = self.places.out else { return Ok(()) };
        self.out_is_there = self.places.out_stays && self.is_there(out, prepared)?;
        if self.out_is_there {
            return Ok(());
        }
        // A part looks at its own places, and at the output's.
        if self.flags.is_none_or(|flags| flags.part.is_none()) {
            let bytes = output_bytes(prepared, self.copies());
            self.destinations.push(Destination { out: out.into(), bytes, on_the_way_bytes: 0 });
            self.check_left(prepared, out)?;
        }
        self.check(prepared, out)
    }

    fn fused(&mut self, name: &str, prepared: &Prepared) -> Result<()> {
        self.planned(prepared);
        let why = format!("{} takes every element by itself", prepared.plan.method.name);
        self.stages.push(Stage::new(name, prepared, true, &why));
        Ok(())
    }

    fn folder(&mut self, name: &str, prepared: &Prepared, why: &str) -> Result<Way> {
        self.planned(prepared);
        self.stages.push(Stage::new(name, prepared, false, why));
        let folder = self.places.folder(name);
        let is_kept = self.places.kept.is_some();
        if is_kept && !self.places.again && self.is_there(&folder, prepared)? {
            self.there.insert(name.into());
            return Ok(Way::Folder(folder));
        }
        self.folders += 1;
        // What is removed again has all that whoever reads it can ask for.
        let copied = !is_kept || self.copies();
        let bytes = output_bytes(prepared, copied);
        if is_kept {
            self.destinations.push(Destination { out: folder.clone(), bytes, on_the_way_bytes: 0 });
            self.check_left(prepared, &folder)?;
        } else {
            self.on_the_way_bytes = self.on_the_way_bytes.saturating_add(bytes);
        }
        self.check(prepared, &folder)?;
        outline(prepared, name, &folder, copied)
    }
}

/// The merges that go into folders, one after the other.
struct Merging<'a> {
    places: &'a Places<'a>,
    there: &'a HashSet<String>,
    work: Option<&'a WorkFolder>,
    flags: &'a MergeFlags,
    on: &'a (Device, Budget),
    progress: &'a Progress,
}

impl Visit for Merging<'_> {
    fn folder(&mut self, name: &str, prepared: &Prepared, why: &str) -> Result<Way> {
        let Self { places, there, work, flags, on, progress } = self;
        let folder = places.folder(name);
        if there.contains(name) {
            return Ok(Way::Folder(folder));
        }
        if !flags.quiet {
            show::note(&format!("{name}: merged into {} first, because {why}", folder.display()));
        }
        match work {
            Some(work) => work.expect(&in_work_folder(name), &output_files(prepared))?,
            None if !flags.quiet => show::folders_to_make(&folder),
            None => {}
        }
        let ends = match work {
            Some(_) => (true, Stopped::LeavesNothing, None),
            None => (!flags.no_copy_tokenizer, flags.stopped(), None),
        };
        merge_into(prepared, &folder, ends, flags, on, progress, Timeline::new())?;
        Ok(Way::Folder(folder))
    }
}

/// A document whose result others read, as a plan shows it.
pub(super) struct Stage {
    name: String,
    is_fused: bool,
    why: String,
    /// Its plan in a line, and what it notes.
    line: String,
    notes: Vec<String>,
    /// The same for programs.
    json: Json,
}

impl Stage {
    fn new(name: &str, prepared: &Prepared, is_fused: bool, why: &str) -> Self {
        let plan = &prepared.plan;
        let (notes, (read, most)) = (show::notes(prepared), plan.read_bytes(&prepared.sources));
        let result = bytes(plan.layout.file_bytes);
        let line = format!("{}, {result}; reads {}", show::tensors_of(prepared), show::reads(prepared));
        let json = json!({
            "name": name, "method": plan.method.name,
            "models": plan.models.iter().map(|model| &model.name).collect::<Vec<_>>(),
            "way": if is_fused { "fused" } else { "folder" }, "why": why, "tensors": plan.tensors.len(),
            "read_bytes": read, "read_bytes_most": most, "bytes": plan.layout.file_bytes, "notes": notes,
        });
        Self { name: name.into(), is_fused, why: why.into(), line, notes, json }
    }

    /// For programs.
    pub(super) fn json(&self) -> Json {
        self.json.clone()
    }

    /// As a paragraph of a plan.
    pub(super) fn show(&self) {
        show::line(&format!("stage    {}", self.way()));
        show::line(&format!("         {}", self.line));
        self.notes.iter().for_each(|note| show::line(&format!("         note: {note}")));
        show::line("");
    }

    /// Before a merge.
    fn note(&self) {
        show::note(&self.way());
        self.notes.iter().for_each(|note| show::note(&format!("{}: {note}", self.name)));
    }

    /// What becomes of it, and why.
    fn way(&self) -> String {
        let Self { name, is_fused, why, .. } = self;
        let way = if *is_fused {
            "merged while it is read, and written nowhere"
        } else {
            "merged into a folder of its own first"
        };
        format!("{name}: {way}, because {why}")
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
