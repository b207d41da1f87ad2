//! Configs with several documents: `merge` with one result, and `multi`, which is mergekit-multi's command.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::Progress;
use super::{MergeFlags, PlanArgs, Warnings, merge_into, merge_one, show, show_plan};
use crate::checkpoint::MERGE_CONFIG;
use crate::error::{Error, Result};
use crate::stages::{Stages, outline};
use crate::timeline::Timeline;
use crate::{Prepared, read_stages};

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
pub(super) struct Places<'a> {
    /// The one that no other document reads; none where there is none.
    pub out: Option<&'a Path>,
    /// Those that others read, if they are kept.
    pub kept: Option<&'a Path>,
    /// Whether what is there already is merged again.
    pub again: bool,
}

pub(super) fn multi(args: &MultiArgs) -> Result<()> {
    let progress = Progress::new(args.flags.quiet)?;
    args.flags.mergekit.notes.iter().for_each(|note| show::note(note));
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
    let places = Places { out, kept: Some(&args.intermediate_dir), again: args.no_lazy };
    merge(&stages, &places, &args.flags, &progress)
}

/// Plans every document, and merges them one after the other.
pub(super) fn merge(
    stages: &Stages,
    places: &Places<'_>,
    flags: &MergeFlags,
    progress: &Progress,
) -> Result<()> {
    let work = WorkFolder::beside(places)?;
    let planned = check(stages, places.kept.is_some(), &work, flags)?;
    let mut planned = planned.filter(|_| !work.is_used());
    if planned.is_none() {
        let folder = |name: &str, prepared: Prepared, why: Option<String>| {
            let into = work.folder(places, name);
            if is_there(&into) && !places.again {
                note_present(&into, &prepared);
                return Ok(into);
            }
            if !flags.quiet {
                let why = why.unwrap_or_default();
                show::note(&format!("{name}: merged into {} first, because {why}", into.display()));
            }
            make_parent(&into)?;
            merge_into(&prepared, &into, flags, progress, Timeline::new())?;
            Ok(into)
        };
        planned = stages.go(&flags.common.choices(), places.kept.is_some(), folder, |_, _| {}, |_| {})?;
    }
    match (planned, places.out) {
        (Some(prepared), Some(out)) => merge_one(&prepared, out, flags, progress),
        _ => Ok(()),
    }
}

/// Plans every document, and reports all warnings and which way each takes. What cannot be read on the way stands as an outline
/// in the work folder.
fn check(stages: &Stages, kept: bool, work: &WorkFolder, flags: &MergeFlags) -> Result<Option<Prepared>> {
    let common = &flags.common;
    let mut warnings = Warnings::default();
    stages.configs().iter().for_each(|config| warnings.of_config(&config.warnings));
    let mut of_plans = Warnings::default();
    let outlined = |name: &str, prepared: Prepared, _: Option<String>| {
        let folder = work.outline(name)?;
        outline(&prepared, &folder)?;
        Ok(folder)
    };
    let fused = |name: &str, prepared: &Prepared| {
        if !flags.quiet {
            show::note(&fused_note(name, prepared));
            notes_of(name, prepared).for_each(|note| show::note(&note));
        }
    };
    let planned = |prepared: &Prepared| of_plans.of_plan(prepared);
    let result = stages.go(&common.choices(), kept, outlined, fused, planned)?;
    warnings.count += of_plans.count;
    if !kept {
        for name in stages.unread() {
            show::note(&format!(
                "{name}: no other document reads it, and it is left out (--intermediate-dir keeps it)"
            ));
        }
    }
    warnings.refuse(common.strict)?;
    Ok(result)
}

/// The notes of a document's plan that nothing else shows.
fn notes_of(name: &str, prepared: &Prepared) -> impl Iterator<Item = String> {
    prepared.plan.notes.iter().map(move |note| format!("{name}: {note}"))
}

fn fused_note(name: &str, prepared: &Prepared) -> String {
    let method = prepared.plan.method.name;
    format!(
        "{name}: merged while it is read, and written nowhere, because {method} takes every element by itself"
    )
}

/// Shows the plans of all documents, each below its name.
pub(super) fn plan(stages: &Stages, args: &PlanArgs) -> Result<()> {
    stages.check_result()?;
    let work = WorkFolder::temporary()?;
    let mut warnings = Warnings::default();
    stages.configs().iter().for_each(|config| warnings.of_config(&config.warnings));
    let mut of_plans = Warnings::default();
    let mut ways = Vec::new();
    let outlined = |name: &str, prepared: Prepared, why: Option<String>| {
        let folder = work.outline(name)?;
        outline(&prepared, &folder)?;
        ways.push(format!(
            "{name}: merged into a folder of its own first, because {}",
            why.unwrap_or_default()
        ));
        Ok(folder)
    };
    let mut fused = Vec::new();
    let read = |name: &str, prepared: &Prepared| {
        fused.push(fused_note(name, prepared));
        fused.extend(notes_of(name, prepared));
    };
    let planned = |prepared: &Prepared| of_plans.of_plan(prepared);
    let result = stages.go(&args.common.choices(), false, outlined, read, planned)?;
    fused.iter().chain(&ways).for_each(|way| show::note(way));
    let prepared = result.expect("one document goes to the output");
    warnings.count += of_plans.count;
    warnings.refuse(args.common.strict)?;
    show_plan(&prepared, args)
}

/// A folder for what is needed while several documents are merged. Dropped, it is gone.
struct WorkFolder {
    path: PathBuf,
    /// Whether it is one for plans alone.
    outlines: PathBuf,
}

impl WorkFolder {
    /// The one of a merge, beside its output.
    fn beside(places: &Places<'_>) -> Result<Self> {
        let near = places.out.or(places.kept).expect("something is made");
        let mut name = near.file_name().unwrap_or_default().to_os_string();
        name.push(".stages");
        let path = near.with_file_name(name);
        make_parent(&path)?;
        fs::create_dir(&path).map_err(|cause| {
            let refusal = Error::writing(&path, &cause);
            if cause.kind() == std::io::ErrorKind::AlreadyExists {
                let hint = "another merge works in it, or one that was ended left it: remove it then";
                return refusal.hint(hint);
            }
            refusal
        })?;
        Ok(Self { outlines: path.join("outlines"), path })
    }

    /// One that only plans need.
    fn temporary() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("mergeforge-plan-{}", std::process::id()));
        fs::create_dir(&path).map_err(|cause| Error::writing(&path, &cause))?;
        Ok(Self { outlines: path.join("outlines"), path })
    }

    /// Whether a document is not merged while it is read.
    fn is_used(&self) -> bool {
        self.outlines.is_dir()
    }

    fn outline(&self, name: &str) -> Result<PathBuf> {
        let folder = self.outlines.join(name);
        make_parent(&folder)?;
        Ok(folder)
    }

    /// Where the result of a document goes.
    fn folder(&self, places: &Places<'_>, name: &str) -> PathBuf {
        places.kept.unwrap_or(&self.path.join("merged")).join(name)
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // A failure here is not worth more than what it would hide.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn make_parent(folder: &Path) -> Result<()> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(|cause| Error::writing(parent, &cause)))
}

/// Whether a folder holds a checkpoint. Ours appear whole or not at all.
fn is_there(folder: &Path) -> bool {
    folder.join("config.json").is_file()
}

fn note_present(folder: &Path, prepared: &Prepared) {
    let shown = folder.display();
    match fs::read(folder.join(MERGE_CONFIG)) {
        Ok(recipe) if recipe == prepared.config.source.as_bytes() => {
            show::note(&format!("{shown} is there already: it is taken as it is"));
        }
        _ => show::warning(
            &Error::config(format!("{shown} is there already, made by another recipe: it is taken as it is"))
                .hint("remove it to have it merged again"),
        ),
    }
}
