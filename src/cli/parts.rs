//! `--part` of a merge, which may come from what a cluster's scheduler says, and `mergeforge finish`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value as Json, json};

use super::progress::Progress;
use super::show::Moved;
use super::values::count;
use super::{STARTED, cores, show};
use crate::checkpoint::MANIFEST;
use crate::error::{Error, Result};
use crate::parts::{self, Done, Part, Whole};
use crate::text::bytes as size;
use crate::timeline::Timeline;
use crate::{Options, Prepared, check_room, merge_part, merge_recording, report::Report};

/// Which part `--part` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// This one.
    Given(Part),
    /// The one that the environment says.
    Auto,
}

/// The value of `--part`.
pub(super) fn asked(text: &str) -> std::result::Result<Asked, String> {
    let part = |(number, of): (&str, &str)| Part::new(number.parse().ok()?, of.parse().ok()?);
    match text {
        "auto" => Ok(Asked::Auto),
        _ => text
            .split_once('/')
            .and_then(part)
            .map(Asked::Given)
            .ok_or_else(|| "expected I/N, such as 1/4 or 4/4, or auto".into()),
    }
}

impl Asked {
    /// The part.
    ///
    /// # Errors
    /// Kind `Config`: the environment says none, or several.
    pub(super) fn part(self, quiet: bool) -> Result<Part> {
        match self {
            Self::Given(part) => Ok(part),
            Self::Auto => {
                let (part, by) = of_environment(&|name| std::env::var(name).ok())?;
                if !quiet {
                    show::note(&format!("part {part}, by {by}"));
                }
                Ok(part)
            }
        }
    }
}

/// The variables of a scheduler: what they are, what they say, and how many parts that makes.
type Scheduler = fn(&dyn Fn(&str) -> Option<String>) -> Option<Result<(Part, String)>>;

const SCHEDULERS: [Scheduler; 3] = [slurm, kubernetes, ranks];

const GIVE: &str = "say which part it is: --part I/N";

/// The part that the environment says, and by what.
fn of_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<(Part, String)> {
    let found = SCHEDULERS.iter().filter_map(|scheduler| scheduler(variable));
    let found: Vec<(Part, String)> = found.collect::<Result<_>>()?;
    match &found[..] {
        [] => Err(Error::config("--part auto: the environment says nothing of parts").hint(format!(
            "it takes SLURM_ARRAY_TASK_ID (Slurm's arrays), JOB_COMPLETION_INDEX with JOB_COMPLETIONS (Kubernetes' Indexed Jobs) or RANK \
             with WORLD_SIZE; or {GIVE}"
        ))),
        [(first, by), others @ ..] => match others.iter().find(|(other, _)| other != first) {
            None => Ok((*first, by.clone())),
            Some((other, also)) => Err(Error::config(format!(
                "--part auto: the environment contradicts itself: part {first} by {by}, part {other} by {also}"
            ))
            .hint(format!("unset what does not count, or {GIVE}"))),
        },
    }
}

/// The value of a variable, which has to be a whole number.
fn number(name: &str, value: &str) -> Result<usize> {
    value.trim().parse().map_err(|_| {
        Error::config(format!("--part auto: {name} is {value:?}, and no whole number")).hint(GIVE)
    })
}

/// The part `index`, from 0, of `of`, by variables.
fn part_of(index: usize, of: usize, by: String) -> Result<(Part, String)> {
    match Part::new(index.saturating_add(1), of) {
        Some(part) => Ok((part, by)),
        None => Err(Error::config(format!("--part auto: {by} is no part")).hint(GIVE)),
    }
}

/// An index from 0, and how many there are.
fn indexed(
    (index, count): (&str, &str),
    variable: &dyn Fn(&str) -> Option<String>,
    missing: &str,
) -> Option<Result<(Part, String)>> {
    let value = variable(index)?;
    let of = || {
        let all = variable(count).ok_or_else(|| {
            Error::config(format!("--part auto: {index} is {value:?}, and there is no {count}"))
                .hint(format!("{missing}, or {GIVE}"))
        })?;
        let by = format!("{index}={value} of {count}={all}");
        part_of(number(index, &value)?, number(count, &all)?, by)
    };
    Some(of())
}

fn kubernetes(variable: &dyn Fn(&str) -> Option<String>) -> Option<Result<(Part, String)>> {
    let missing = "give the pod's template JOB_COMPLETIONS in `env`, with the Job's `completions`";
    indexed(("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"), variable, missing)
}

fn ranks(variable: &dyn Fn(&str) -> Option<String>) -> Option<Result<(Part, String)>> {
    indexed(("RANK", "WORLD_SIZE"), variable, "set WORLD_SIZE")
}

/// The tasks of an array are numbered as its user likes, if all numbers are there.
fn slurm(variable: &dyn Fn(&str) -> Option<String>) -> Option<Result<(Part, String)>> {
    const OTHERS: [&str; 3] = ["SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT"];
    let id = variable("SLURM_ARRAY_TASK_ID")?;
    let part = || {
        let id = number("SLURM_ARRAY_TASK_ID", &id)?;
        let mut others = [0; 3];
        for (other, name) in others.iter_mut().zip(OTHERS) {
            let refusal = || {
                Error::config(format!("--part auto: SLURM_ARRAY_TASK_ID is {id}, and there is no {name}"))
                    .hint(format!("set {}, as Slurm does, or {GIVE}", OTHERS.join(", ")))
            };
            *other = number(name, &variable(name).ok_or_else(refusal)?)?;
        }
        let [first, last, count] = others;
        let by = format!("SLURM_ARRAY_TASK_ID={id} of {first} to {last}");
        // Whoever runs some of the tasks again would have them for all.
        if first > 1
            || last.checked_sub(first).map(|more| more + 1) != Some(count)
            || !(first..=last).contains(&id)
        {
            let refusal = format!("--part auto: {by}, {count} tasks: these are not all parts of an output");
            let hint = "give --array=1-N or 0-N, with every number; for some of the tasks say which part each is: --part $SLURM_ARRAY_TASK_ID/N";
            return Err(Error::config(refusal).hint(hint));
        }
        part_of(id - first, count, by)
    };
    Some(part())
}

/// The words that make any part of the output that this process makes a part of.
fn command(prepared: &Prepared, options: &Options) -> Vec<String> {
    const LEFT_OUT: [&str; 4] = ["--restart", "--json", "--quiet", "-q"];
    let Some(started) = STARTED.get() else {
        return vec!["merge".into(), prepared.config.file.clone(), options.out.display().to_string()];
    };
    let mut words: Vec<String> = Vec::new();
    let mut given = started.arguments.iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = given.next() {
        match word.as_str() {
            "--part" => _ = given.next(),
            word if word.starts_with("--part=") || LEFT_OUT.contains(&word) => {}
            _ => words.push(word),
        }
    }
    words
}

/// Refuses places that are not free. Says so where a part is there already, and returns whether there is something to be done.
pub(super) fn check(prepared: &Prepared, options: &Options, part: Option<Part>, quiet: bool) -> Result<bool> {
    let Some(part) = part else { return check_room(prepared, options).map(|()| true) };
    if let Some(place) = parts::made(prepared, options, part)? {
        if !quiet {
            show::note(&format!("part {part} is made already, and lies in {}", place.display()));
        }
        return Ok(false);
    }
    parts::check_room(prepared, options, part)?;
    let layout = &prepared.plan.layout;
    let shards = part.shards(layout);
    if !quiet {
        let (some, all) = (shards.len(), layout.shards.len());
        let bytes = size(layout.part(&shards).file_bytes);
        let few =
            if some == 0 { ": there are fewer files than parts (--out-shard-size makes more)" } else { "" };
        show::note(&format!("part {part}: {some} of {all} files, {bytes}{few}"));
    }
    Ok(true)
}

/// A part for programs, made now or before.
pub(super) fn json(prepared: &Prepared, out: &Path, part: Part, report: Option<&Report>) -> Result<Json> {
    let layout = &prepared.plan.layout;
    let shards = part.shards(layout);
    // Once all are put together it is in the output.
    let folder = if out.join(MANIFEST).is_file() { out.to_path_buf() } else { part.folder(out)? };
    let files: Map<String, Json> =
        layout.shards[shards.clone()].iter().map(|of| (of.file.clone(), of.bytes.into())).collect();
    let mut json = json!({
        "part": part.to_string(),
        "folder": folder,
        "made_before": report.is_none(), "files": files, "tensors": layout.tensors_in(&shards).len(),
    });
    if let Some(report) = report {
        json["run"] = report.run().clone();
    }
    Ok(json)
}

/// The tensors and the bytes of them that are merged.
pub(super) fn amount(prepared: &Prepared, part: Option<Part>) -> (usize, u64) {
    let layout = &prepared.plan.layout;
    match part.map(|part| part.shards(layout)) {
        Some(shards) => (layout.tensors_in(&shards).len(), layout.part(&shards).total_bytes),
        None => (layout.places.len(), layout.total_bytes),
    }
}

/// Merges all, or a part; nothing where another process has made that part meanwhile.
pub(super) fn merge(
    prepared: &Prepared,
    options: &Options,
    part: Option<Part>,
    progress: &Progress,
    timeline: Timeline,
) -> Result<Option<Report>> {
    let Some(part) = part else {
        return merge_recording(prepared, options, progress, timeline).map(Some);
    };
    let command = command(prepared, options);
    match merge_part(prepared, options, (part, &command), progress, timeline) {
        Err(_) if !check(prepared, options, Some(part), true).unwrap_or(true) => {
            check(prepared, options, Some(part), progress.is_quiet()).map(|_| None)
        }
        merged => merged.map(Some),
    }
}

/// The end of a merge, and what there is left to do after that of a part.
pub(super) fn done(
    out: &Path,
    prepared: &Prepared,
    part: Option<Part>,
    moved: Moved,
    elapsed: Duration,
) -> Result<()> {
    let into = part.map_or_else(|| Ok(out.to_path_buf()), |part| part.folder(out))?;
    show::done(&into, prepared, amount(prepared, part), moved, elapsed);
    if let Some(part) = part {
        let out = out.display();
        show::note(&format!(
            "part {part} is made: when all are, `mergeforge finish {out}` puts them together"
        ));
    }
    Ok(())
}

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub(super) struct FinishArgs {
    /// The folder to make, of the parts in OUT.parts
    out: PathBuf,
    /// Read all tensors of the parts again, and compare them with the digests that were noted when they were written
    #[arg(long)]
    verify: bool,
    /// Threads that read [default: one per core]
    #[arg(long, short = 'j', visible_alias = "num-threads", value_name = "N", value_parser = count)]
    threads: Option<usize>,
    /// Say nothing when all is well
    #[arg(long, short)]
    quiet: bool,
    /// Print the manifest as JSON when done
    #[arg(long)]
    json: bool,
}

const ABOUT: &str = "Exit codes: 0 where OUT is there, made now or before; 7 where parts are missing or not whole, others as for all commands. Neither models nor the \
                     config are needed. Shards are moved, so OUT has to be on the disk of its parts. OUT appears whole or not at all, with \
                     the bytes of a merge in one; whoever is stopped on the way runs this again.";

/// `mergeforge finish`.
pub(super) fn finish(args: &FinishArgs) -> Result<()> {
    let progress = Progress::new(args.quiet)?;
    let threads = args.threads.unwrap_or_else(cores);
    let done = parts::finish(&args.out, args.verify, threads, &progress)?;
    if !args.quiet {
        show_finished(args, &done);
    }
    if args.json {
        show::json(&parts::manifest(&args.out)?);
    }
    Ok(())
}

/// What was put together, or removed, and what is left of parts.
fn show_finished(args: &FinishArgs, done: &Done) {
    let (out, folder) = (args.out.display(), done.folder.display());
    match (&done.made, &done.removed) {
        (Some(Whole { parts, shards, tensors, bytes }), _) => {
            let bytes = size(*bytes);
            show::progress(&format!(
                "{tensors} tensors in {shards} file(s) of {out}, {bytes}, of {parts} part(s)"
            ));
        }
        (None, removed) => {
            let did = match removed {
                Some(removed) => format!("what was left of its parts is removed: {removed}"),
                None => "there is nothing left to do".into(),
            };
            let read = if args.verify {
                format!(" (`mergeforge verify {out}` reads it again)")
            } else {
                String::new()
            };
            show::note(&format!("{out} is there already: {did}{read}"));
        }
    }
    match (&done.left, &done.stays) {
        (Some(left), _) => {
            show::note(&format!("{out} is whole, but not all of its parts are removed: {}", left.message));
        }
        (None, Some(stays)) if done.made.is_some() => show::note(&format!(
            "{folder} stays, with {stays}: `mergeforge finish {out}` once more removes whole parts of it, the rest is yours to delete"
        )),
        (None, Some(stays)) => show::note(&format!(
            "{folder} stays, with {stays}, where no whole part of {out} is left: delete it if nothing in it is of use"
        )),
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `--part auto` says where these variables are set.
    fn auto(variables: &[(&str, &str)]) -> std::result::Result<(String, String), String> {
        let get = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        match of_environment(&get) {
            Ok((part, by)) => Ok((part.to_string(), by)),
            Err(error) => {
                assert_eq!(error.exit_code(), 2);
                let hint = error.hint.unwrap();
                assert!(!hint.starts_with("or ") && hint.contains("--part "), "{hint}");
                let lacks_others = error.message.contains("there is no SLURM_");
                assert_eq!(
                    lacks_others,
                    hint.starts_with("set SLURM_ARRAY_TASK_MIN, SLURM_ARRAY_TASK_MAX, "),
                    "{hint}"
                );
                Err(error.message)
            }
        }
    }

    fn array(
        id: &'static str,
        first: &'static str,
        last: &'static str,
        count: &'static str,
    ) -> [(&'static str, &'static str); 4] {
        [
            ("SLURM_ARRAY_TASK_ID", id),
            ("SLURM_ARRAY_TASK_MIN", first),
            ("SLURM_ARRAY_TASK_MAX", last),
            ("SLURM_ARRAY_TASK_COUNT", count),
        ]
    }

    #[test]
    fn parts_are_read_as_they_are_written() {
        let part = |number, of| Ok(Asked::Given(Part::new(number, of).unwrap()));
        assert_eq!((asked("1/1"), asked("4/7"), asked("auto")), (part(1, 1), part(4, 7), Ok(Asked::Auto)));
        for wrong in ["0/4", "5/4", "1/0", "1", "/", "1/", "-1/4", "1/4/4", "1/100001", "", "a/b"] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_environment_says_which_part_it_is() {
        let said = |part: &str, by: &str| Ok((part.to_owned(), by.to_owned()));
        assert_eq!(auto(&array("2", "1", "4", "4")), said("2/4", "SLURM_ARRAY_TASK_ID=2 of 1 to 4"));
        assert_eq!(auto(&array("0", "0", "3", "4")), said("1/4", "SLURM_ARRAY_TASK_ID=0 of 0 to 3"));
        assert_eq!(
            auto(&[("JOB_COMPLETION_INDEX", "3"), ("JOB_COMPLETIONS", "4")]),
            said("4/4", "JOB_COMPLETION_INDEX=3 of JOB_COMPLETIONS=4")
        );
        assert_eq!(auto(&[("RANK", "0"), ("WORLD_SIZE", "2")]), said("1/2", "RANK=0 of WORLD_SIZE=2"));
        // Two that say the same.
        let both = [&array("2", "1", "4", "4")[..], &[("RANK", "1"), ("WORLD_SIZE", "4")]].concat();
        assert_eq!(auto(&both).unwrap().0, "2/4");
        // How many there are is nothing by itself.
        assert_eq!(
            auto(&[("WORLD_SIZE", "2"), ("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "1")]).unwrap().0,
            "1/1"
        );
    }

    #[test]
    fn what_contradicts_or_is_not_all_is_refused() {
        let both = [&array("2", "1", "4", "4")[..], &[("RANK", "0"), ("WORLD_SIZE", "4")]].concat();
        let cases = [
            (&[][..], "the environment says nothing of parts"),
            (&[("WORLD_SIZE", "2")], "the environment says nothing of parts"),
            (&both, "part 2/4 by SLURM_ARRAY_TASK_ID=2 of 1 to 4, part 1/4 by RANK=0 of WORLD_SIZE=4"),
            // One task run again, and every other one.
            (&array("3", "3", "3", "1"), "these are not all parts"),
            (&array("3", "1", "7", "4"), "these are not all parts"),
            (&array("9", "1", "4", "4"), "these are not all parts"),
            (&array("x", "1", "4", "4"), "SLURM_ARRAY_TASK_ID is \"x\", and no whole number"),
            (&array("1", "1", "4", "4")[..2], "there is no SLURM_ARRAY_TASK_MAX"),
            (
                &[("JOB_COMPLETION_INDEX", "")],
                "JOB_COMPLETION_INDEX is \"\", and there is no JOB_COMPLETIONS",
            ),
            (&[("RANK", "2"), ("WORLD_SIZE", "2")], "RANK=2 of WORLD_SIZE=2 is no part"),
            (&[("RANK", "-1"), ("WORLD_SIZE", "2")], "RANK is \"-1\", and no whole number"),
        ];
        for (variables, says) in cases {
            let refusal = auto(variables).unwrap_err();
            assert!(refusal.contains(says), "{variables:?}: {refusal}");
        }
    }
}
