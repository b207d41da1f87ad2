//! `mergeforge verify`: flags, what was found in words and as JSON, and the exit code.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value as Json, json};

use super::progress::Progress;
use super::values::{WorkArgs, count};
use super::{default_host_bytes, show};
use crate::backend::devices::processor;
use crate::checkpoint::MANIFEST;
use crate::error::{Error, Kind, Result};
use crate::report::{InputRecord, Manifest};
use crate::stream::Budget;
use crate::text::{bytes as size, few, one_line};
use crate::verify::{Findings, Output, Problem, inputs_changed, plan_again, recompute, sample};
use crate::{Prepared, hash_inputs, unhashed_bytes};

#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub(super) struct VerifyArgs {
    /// The folder that a merge made, with mergeforge.json in it
    out: PathBuf,
    /// Make so many of its tensors again on the CPU, from the inputs that the manifest names, and compare the bytes; or all
    #[arg(long, value_name = "N|all", value_parser = how_many)]
    recompute: Option<HowMany>,
    /// Which tensors are made again: the same ones for the same number
    #[arg(long, value_name = "N", default_value_t = 0, requires = "recompute")]
    sample_seed: u64,
    /// Read the inputs whole, and compare them with the SHA-256 that the manifest has of them
    #[arg(long, conflicts_with = "stream")]
    hash_inputs: bool,
    #[command(flatten)]
    work: WorkArgs,
}

const ABOUT: &str = "Exit codes: 0 where all is as mergeforge.json says, 3 where something is not, whatever else is wrong, others as for all commands. Compared are \
                     the files by their SHA-256 (but for README.md, which people go on writing), headers, index and tensors with each \
                     other, and every tensor by its BLAKE3 hash. A file of weights that is not listed is an error, another file a \
                     warning. That the manifest itself is the merge's, only a signature of it can say: docs/manifest.md. Inputs are \
                     looked up as in the merge: relative paths start in the current folder. Memory: 1 MiB for each thread; to \
                     make tensors again, as a merge.";

/// The exit code where something is not as the manifest says.
const DIFFERS: u8 = 3;

/// So many tensors.
#[derive(Debug, Clone, Copy)]
enum HowMany {
    All,
    Some(usize),
}

fn how_many(text: &str) -> std::result::Result<HowMany, String> {
    if text == "all" {
        return Ok(HowMany::All);
    }
    count(text).map(HowMany::Some).map_err(|expected| format!("{expected}, or all"))
}

/// What became of the inputs.
#[derive(Default)]
struct Inputs {
    /// How many files have the SHA-256 that the manifest says, where that was looked at.
    hashed: Option<usize>,
    /// The tensors that were made again.
    recomputed: Option<Vec<String>>,
}

/// Verifies, reports, and returns what is wrong as one error.
pub(super) fn run(args: &VerifyArgs) -> Result<()> {
    let progress = Progress::new(args.work.quiet)?;
    let output = Output::open(&args.out)?;
    progress.expect(output.bytes(), "verified");
    let findings = output.verify(args.work.threads(), &progress);
    progress.finish();
    let mut findings = findings.map_err(not_all)?;
    let files_ok = findings.problems.is_empty();
    let mut inputs = Inputs::default();
    if args.recompute.is_some() || args.hash_inputs {
        // Who cannot look at the inputs still hears of the output.
        if let Err(error) = look_at_inputs(args, &output, &mut findings, &mut inputs, &progress) {
            findings.problems.extend(output.of_inputs(not_all(error)));
        }
    }
    if !findings.unlisted.is_empty() {
        show::warning(&unlisted(&findings.unlisted));
    }
    if args.work.json {
        show::json(&as_json(args, &output, &findings, files_ok, &inputs));
    } else if findings.problems.is_empty() {
        lines(args, &output, &inputs).iter().for_each(|line| show::line(line));
    } else if files_ok {
        show::note(&whole(args, &output));
    }
    as_one(findings.problems.into_iter().map(|problem| problem.error).collect())
}

/// What differs counts more than what could not be looked at: the exit code is the first one's.
fn as_one(mut errors: Vec<Error>) -> Result<()> {
    errors.sort_by_key(|error| error.exit_code() != DIFFERS);
    if errors.is_empty() { Ok(()) } else { Err(Error::all(errors)) }
}

/// The wish to stop, as that of a command that makes no output.
fn not_all(error: Error) -> Error {
    match error.kind {
        Kind::Interrupted => Error { message: "interrupted: not all was compared".into(), ..error },
        _ => error,
    }
}

/// Plans the merge again, compares its inputs, and makes tensors again.
fn look_at_inputs(
    args: &VerifyArgs,
    output: &Output,
    findings: &mut Findings,
    inputs: &mut Inputs,
    progress: &Progress,
) -> Result<()> {
    let prepared = plan_again(output, args.work.hub.remote())?;
    args.work.hub.bring(&prepared, progress)?;
    if args.hash_inputs {
        let hashing = progress.another(unhashed_bytes(&prepared.sources), "hashed");
        let hashed = hash_inputs(&prepared.sources, args.work.threads(), &hashing);
        hashing.finish();
        hashed?;
        let (known, all) = known_hashes(output);
        if known < all {
            show::warning(&without_hashes(all - known, all));
        }
        inputs.hashed = Some(known);
    }
    let changed = inputs_changed(output, &prepared)?;
    if !changed.is_empty() {
        findings.problems.extend(changed);
        return Ok(());
    }
    if let Some(how_many) = args.recompute {
        let (problems, names) = make_again(args, output, findings, &prepared, how_many, progress)?;
        findings.problems.extend(problems);
        inputs.recomputed = Some(names);
    }
    Ok(())
}

fn make_again(
    args: &VerifyArgs,
    output: &Output,
    findings: &Findings,
    prepared: &Prepared,
    how_many: HowMany,
    progress: &Progress,
) -> Result<(Vec<Problem>, Vec<String>)> {
    let tensors = &prepared.plan.tensors;
    let count = if let HowMany::Some(count) = how_many { count } else { tensors.len() };
    let chosen = sample(tensors.iter().map(|tensor| &*tensor.name), count, args.sample_seed);
    let making = progress.another(chosen.iter().map(|tensor| tensors[*tensor].bytes).sum(), "made again");
    let host_bytes = default_host_bytes(&processor());
    let budget = Budget { threads: args.work.threads(), host_bytes, device_bytes: 0, chunk_tiles: None };
    let made = recompute(output, findings, prepared, &chosen, &budget, &making);
    making.finish();
    Ok((made?, chosen.iter().map(|tensor| tensors[*tensor].name.to_string()).collect()))
}

/// Of how many files of inputs the manifest has a SHA-256, and how many it has.
fn known_hashes(output: &Output) -> (usize, usize) {
    let inputs = output.manifest.inputs.iter().chain(&output.manifest.element_files);
    let files: Vec<_> = inputs.flat_map(InputRecord::all_files).collect();
    (files.iter().filter(|file| file.sha256.is_some()).count(), files.len())
}

fn without_hashes(unknown: usize, all: usize) -> Error {
    let warning = format!(
        "of {unknown} of {all} files of inputs {MANIFEST} has no SHA-256: they are compared by size and header alone"
    );
    Error::config(warning).hint("merge with --hash-inputs to have it written down")
}

fn unlisted(files: &[String]) -> Error {
    const NAMED_MAX: usize = 3;
    let named = few(files, NAMED_MAX);
    Error::config(format!("{named}: not of the merge, {MANIFEST} does not list it"))
}

/// That all files are as they should be.
fn whole(args: &VerifyArgs, output: &Output) -> String {
    let Manifest { tensors, files, .. } = &output.manifest;
    format!(
        "{}: {} tensors in {} files, {}, as {MANIFEST} says",
        args.out.display(),
        tensors.len(),
        files.len(),
        size(output.bytes())
    )
}

fn lines(args: &VerifyArgs, output: &Output, inputs: &Inputs) -> Vec<String> {
    let Output { manifest, sha256, .. } = output;
    let mut lines = vec![
        whole(args, output),
        format!(
            "{MANIFEST}: {} by mergeforge {}, seed {}; SHA-256 {sha256}",
            manifest.method, manifest.mergeforge, manifest.seed
        ),
    ];
    for (input, tensors) in manifest.inputs.iter().filter_map(|input| Some((input, input.tensors.as_ref()?)))
    {
        let mut line = format!("input {}: {} of {} tensors read", input.name(), tensors.read, tensors.all);
        let others = [
            (&tensors.left_out, "left out by the config"),
            (&tensors.unused, "without effect on the result"),
        ];
        for (names, what) in others.iter().filter(|(names, _)| !names.is_empty()) {
            line += &format!(", {} {what}", names.len());
        }
        lines.push(line);
    }
    lines.extend(
        manifest
            .left_out
            .iter()
            .map(|left| format!("left out of {}: {} ({} tensors)", left.model, left.what, left.tensors)),
    );
    if let Some(hashed) = inputs.hashed.filter(|hashed| *hashed > 0) {
        lines.push(format!("inputs: {hashed} files have the SHA-256 that {MANIFEST} says"));
    }
    if let Some(names) = &inputs.recomputed {
        lines.push(format!(
            "made again from the inputs: {} of {} tensors, with the same bytes",
            names.len(),
            manifest.tensors.len()
        ));
    }
    lines.iter().map(|line| one_line(line)).collect()
}

fn as_json(args: &VerifyArgs, output: &Output, findings: &Findings, files_ok: bool, inputs: &Inputs) -> Json {
    let Output { manifest, sha256, .. } = output;
    let problem = |problem: &Problem| json!({ "file": problem.file, "tensor": problem.tensor, "message": problem.error.message, "hint": problem.error.hint });
    json!({
        "out": args.out.display().to_string(), "ok": findings.problems.is_empty(), "files_ok": files_ok, "manifest_sha256": sha256,
        "mergeforge": manifest.mergeforge, "method": manifest.method,
        "tensors": manifest.tensors.len(), "files": manifest.files.len(), "bytes": output.bytes(),
        "problems": findings.problems.iter().map(problem).collect::<Vec<_>>(), "unlisted": findings.unlisted,
        "inputs": manifest.inputs, "left_out": manifest.left_out,
        "inputs_hashed": inputs.hashed, "recomputed": inputs.recomputed,
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;

    #[test]
    fn what_differs_decides_the_exit_code() {
        let of_the_disk = || Error::reading(Path::new("a"), &io::ErrorKind::TimedOut.into());
        let code = |errors: Vec<Error>| as_one(errors).map_err(|error| error.exit_code());
        assert_eq!(code(Vec::new()), Ok(()));
        assert_eq!(code(vec![of_the_disk(), Error::config("gone")]), Err(8));
        assert_eq!(code(vec![of_the_disk(), Error::input("damaged"), Error::interrupted()]), Err(DIFFERS));
    }
}
