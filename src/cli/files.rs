//! The files beside the weights, in few lines: what is copied, and what is left out and why.

use serde_json::{Value as Json, json};

use crate::Prepared;
use crate::checkpoint::{Companion, Companions};
use crate::plan::ChatTemplate;

/// So many are named in a line; the rest is counted.
const NAMED_MAX: usize = 6;

/// Names in a line.
fn named(files: &[&str]) -> String {
    let names = files.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    match files.len().saturating_sub(NAMED_MAX) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

/// The copies by the model whose they are, in the order of names.
fn copied(companions: &Companions) -> Vec<(&str, Vec<&str>)> {
    let mut by_model: Vec<(&str, Vec<&str>)> = Vec::new();
    for Companion { file, model, .. } in &companions.copied {
        match by_model.iter_mut().find(|(known, _)| known == model) {
            Some((_, files)) => files.push(file),
            None => by_model.push((model, vec![file])),
        }
    }
    by_model
}

/// What is written anew, in a line.
fn written(companions: &Companions) -> Option<String> {
    let files: Vec<&str> = companions.written.iter().map(|(file, _)| file.as_str()).collect();
    (!files.is_empty()).then(|| named(&files))
}

/// For a plan: lines for copies, for what is written and the template in it, and one for each reason to leave files out.
pub(super) fn lines(prepared: &Prepared) -> Vec<String> {
    let Prepared { plan, companions, .. } = prepared;
    let donor = &plan.models[plan.donor].name;
    let copies = copied(companions);
    let copies = copies
        .iter()
        .map(|(model, files)| format!("copied   {} file(s) of {model}: {}", files.len(), named(files)));
    let mut lines: Vec<String> = copies.collect();
    lines.extend(written(companions).map(|files| format!("written  {files}")));
    lines.extend(plan.tokenizer.chat_template.iter().map(|template| format!("template {template}")));
    lines.extend(unmerged(companions).map(|note| format!("note     {note}")));
    let mut by_reason: Vec<(&str, Vec<&str>)> = Vec::new();
    for left in &companions.left_out {
        match by_reason.iter_mut().find(|(reason, _)| *reason == left.reason) {
            Some((_, files)) => files.push(&left.file),
            None => by_reason.push((&left.reason, vec![&left.file])),
        }
    }
    // Reasons that quote a file are as many as there are files.
    for (reason, files) in by_reason.iter().take(NAMED_MAX) {
        lines.push(format!("left out {donor}: {} ({reason})", named(files)));
    }
    let rest: usize = by_reason.iter().skip(NAMED_MAX).map(|(_, files)| files.len()).sum();
    if rest > 0 {
        lines.push(format!("left out {donor}: {rest} more file(s), which `plan --json` lists"));
    }
    lines
}

/// Before a merge: what is left out, and which copies are weights.
pub(super) fn noted(prepared: &Prepared) -> Vec<String> {
    let Prepared { plan, companions, .. } = prepared;
    let left: Vec<&str> = companions.left_out.iter().map(|left| left.file.as_str()).collect();
    let mut notes: Vec<String> = unmerged(companions).collect();
    notes.extend(plan.tokenizer.chat_template.iter().map(|template| format!("chat template {template}")));
    notes.extend(written(companions).map(|files| format!("written beside the weights: {files}")));
    if !left.is_empty() {
        let donor = &plan.models[plan.donor].name;
        notes.push(format!(
            "files of {donor} that are left out: {} (`mergeforge plan` has the reasons)",
            named(&left)
        ));
    }
    notes
}

fn unmerged(companions: &Companions) -> impl Iterator<Item = String> {
    let weights: Vec<&str> = companions.weights().collect();
    let note =
        format!("{}: weights of modules of their own, copied as files and not merged", named(&weights));
    (!weights.is_empty()).then_some(note).into_iter()
}

/// For programs: all of them.
pub(super) fn json(companions: &Companions) -> Json {
    let copied = companions
        .copied
        .iter()
        .map(|file| json!({ "file": file.file, "model": file.model, "bytes": file.bytes }));
    let written = companions.written.iter().map(|(file, text)| json!({ "file": file, "bytes": text.len() }));
    let left = companions.left_out.iter().map(|left| json!({ "file": left.file, "reason": left.reason }));
    json!({
        "copied": copied.collect::<Vec<_>>(), "written": written.collect::<Vec<_>>(), "left_out": left.collect::<Vec<_>>(),
    })
}

/// Where the chat template comes from, for programs.
pub(super) fn template_json(template: &ChatTemplate) -> Json {
    match template {
        ChatTemplate::Model(model) => json!({ "from": "model", "name": model }),
        ChatTemplate::Packaged(name) => json!({ "from": "packaged", "name": name }),
        ChatTemplate::Literal => json!({ "from": "config" }),
    }
}
