//! What went wrong once, and must not again.

use std::path::Path;

use safetensors::Dtype;

use crate::command::{self, Ended, merge, mergeforge, plan, run};
use crate::layers::{File, LINES_MAX, sources};
use crate::models::{self, PLAIN, RUN, Tensors, stored, weights};

fn models_of(folder: &Path, name: &str, elements: usize) -> String {
    let tensors = |seed| {
        Tensors::from([(name.to_string(), stored(Dtype::BF16, &[elements], &weights(elements, seed)))])
    };
    models::write(&folder.join("a"), &tensors(1), PLAIN);
    models::write(&folder.join("b"), &tensors(2), PLAIN);
    let (a, b) = (folder.join("a").display().to_string(), folder.join("b").display().to_string());
    format!("merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: {a}}}, {{model: {b}}}]\n")
}

/// Exit code 3 is for checkpoints.
#[test]
fn a_config_that_cannot_be_read_is_an_error_of_the_command() {
    run(["plan", "no/such.yml"]).failed(2, &["cannot read no/such.yml: No such file"]);
    run(["plan", "examples"]).failed(2, &["cannot read examples: Is a directory"]);
}

/// `eprintln!` panics where nobody listens, as in `mergeforge merge … 2>&1 | head -1`.
#[test]
fn talk_that_nobody_hears_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let config = command::config(folder.path(), &models_of(folder.path(), "t", 10));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = mergeforge();
    command.arg("merge").args([config, folder.path().join("out")]).stderr(writer);
    Ended::from(command.output().unwrap()).succeeded();
    assert!(folder.path().join("out").is_dir());
}

/// Names come from headers, which anybody may have written.
#[test]
fn names_of_tensors_cannot_steer_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let config = models_of(folder.path(), "\x1b[2Jt\u{7}", 10);
    let reported = plan(folder.path(), &config, &["-v"]).succeeded();
    assert!(!reported.stdout.contains(['\x1b', '\x07']), "{:?}", reported.stdout);
    models::write(
        &folder.path().join("b"),
        &Tensors::from([("\x1b[2Jt\u{7}".into(), stored(Dtype::BF16, &[1], &[1.0]))]),
        PLAIN,
    );
    let reported = merge(folder.path(), &config, &[]).failed(2, &["it is [10] in "]);
    assert!(!reported.stderr.contains(['\x1b', '\x07']), "{:?}", reported.stderr);
}

/// The Hub refuses a model card that links to `name@revision`.
#[test]
fn a_model_card_links_to_repositories_without_their_revisions() {
    let folder = tempfile::tempdir().unwrap();
    let config = models_of(folder.path(), "t", 10)
        .replace(&folder.path().join("a").display().to_string(), "some/model@main");
    let cached = folder.path().join("hub/models--some--model");
    std::fs::create_dir_all(cached.join("refs")).unwrap();
    std::fs::write(cached.join("refs/main"), "0123abcd").unwrap();
    std::fs::create_dir_all(cached.join("snapshots")).unwrap();
    std::fs::rename(folder.path().join("a"), cached.join("snapshots/0123abcd")).unwrap();
    let (config, out) = (command::config(folder.path(), &config), folder.path().join("out"));
    let mut command = mergeforge();
    command.env("HF_HUB_CACHE", folder.path().join("hub")).arg("merge").args([&config, &out]);
    Ended::from(command.output().unwrap()).succeeded();
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    let header = card.split("---").nth(1).unwrap();
    assert!(header.contains("- \"some/model\"\n"), "{header}");
}

/// A chunk that is no power of two of tiles is no subtree of a digest.
#[test]
fn a_chunk_of_any_length_is_taken_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = models_of(folder.path(), "t", 20_000);
    for chunk_tiles in [3, 5] {
        let out = format!("out{chunk_tiles}");
        let mut run = RUN;
        run.budget.chunk_tiles = Some(chunk_tiles);
        let report = models::run(folder.path(), &config, &out, run).unwrap();
        let written = &models::read(&folder.path().join(&out))["t"];
        assert_eq!(report.merged[0].digest, blake3::hash(&written.bytes), "chunks of {chunk_tiles} tiles");
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    let long = |file: &File| {
        let lines = file.text.lines().count();
        (lines > LINES_MAX).then(|| format!("src/{}: {lines} lines", file.path))
    };
    let found: Vec<String> = sources().iter().filter_map(long).collect();
    assert!(found.is_empty(), "at most {LINES_MAX} lines: {}", found.join("\n"));
}

/// A frankenmerge of models of different widths loads nowhere: the plan warns, and strictly refuses.
#[test]
fn stacked_layers_of_different_widths_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    for (name, width) in [("a", 4), ("b", 6)] {
        let tensor = |i: usize| {
            let values = weights(width * width, i as u64);
            (format!("model.layers.{i}.w"), stored(Dtype::BF16, &[width, width], &values))
        };
        models::write(&folder.path().join(name), &(0..2).map(tensor).collect::<Tensors>(), PLAIN);
    }
    let model = |name| folder.path().join(name).display().to_string();
    let config = format!(
        "merge_method: passthrough\nslices:\n  - sources: [{{model: {}, layer_range: [0, 1]}}]\n  - sources: [{{model: {}, layer_range: [1, 2]}}]\n",
        model("a"),
        model("b")
    );
    let reported = plan(folder.path(), &config, &[]).succeeded();
    assert!(
        reported.stderr.contains("model.layers.0.w is [4, 4] and model.layers.1.w is [6, 6]"),
        "{}",
        reported.stderr
    );
    plan(folder.path(), &config, &["--strict"]).failed(2, &["layers of different models"]);
}

/// `density: 50` was meant as per cent; a base's own weight changes nothing; probabilities end at 1.
#[test]
fn what_makes_no_sense_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    models_of(folder.path(), "t", 10);
    let (a, b) =
        (folder.path().join("a").display().to_string(), folder.path().join("b").display().to_string());
    let config = format!(
        "merge_method: ties\nbase_model: {a}\nmodels:\n  - {{model: {a}, parameters: {{weight: 2}}}}\n  - {{model: {b}, parameters: {{weight: 1, density: 50}}}}\n"
    );
    let reported = merge(folder.path(), &config, &[]).succeeded().stderr;
    assert!(reported.contains("density 50 of ") && reported.contains("is not from 0 to 1"), "{reported}");
    assert!(
        reported.contains("note: weight of ") && reported.contains("is not read: it is the base"),
        "{reported}"
    );
    let sce = config.replace("ties", "sce") + "parameters: {select_topk: 30}\n";
    let reported = plan(folder.path(), &sce, &[]).succeeded().stderr;
    assert!(reported.contains("select_topk 30 is not from 0 to 1"), "{reported}");
    let della = config.replace("ties", "della").replace("density: 50", "density: 0.9");
    plan(folder.path(), &della, &[])
        .failed(2, &["from 0.7500 to 1.0500", "epsilon can be from 0 to just below 0.1000"]);
}

/// Without the anchor, weights that no binary fraction holds would move the last bits of equal f32 values.
#[test]
fn a_linear_merge_of_equal_models_is_exact_for_any_weights() {
    let folder = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (1..3000).map(|i| 1.0 / i as f32).collect();
    let tensors = Tensors::from([("t".to_string(), stored(Dtype::F32, &[2999], &values))]);
    let mut config = String::from("merge_method: linear\nmodels:\n");
    for (name, weight) in [("a", 0.1), ("b", 0.2), ("c", 0.4)] {
        models::write(&folder.path().join(name), &tensors, PLAIN);
        config += &format!(
            "  - {{model: {}, parameters: {{weight: {weight}}}}}\n",
            folder.path().join(name).display()
        );
    }
    models::run(folder.path(), &config, "out", RUN).unwrap();
    assert_eq!(models::read(&folder.path().join("out")), tensors);
}

/// The cut among equal magnitudes lies in one chunk that is longer than what is looked through at once.
#[test]
fn a_cut_is_found_in_chunks_of_any_length() {
    let folder = tempfile::tempdir().unwrap();
    let elements = 300 * 1024;
    let tuned: Vec<f32> = (0..elements).map(|i: usize| if i.is_multiple_of(2) { 1.0 } else { 0.5 }).collect();
    for (name, values) in [("a", vec![0.0; elements]), ("b", tuned)] {
        let tensors = Tensors::from([("t".to_string(), stored(Dtype::BF16, &[elements], &values))]);
        models::write(&folder.path().join(name), &tensors, PLAIN);
    }
    let model = |name| folder.path().join(name).display().to_string();
    let config = format!(
        "merge_method: ties\nbase_model: {}\nparameters: {{weight: 1, density: 0.75}}\nmodels: [{{model: {}}}]\n",
        model("a"),
        model("b")
    );
    let mut run = RUN;
    run.budget.chunk_tiles = Some(1 << 20);
    models::run(folder.path(), &config, "out", run).unwrap();
    let merged = models::values(&models::read(&folder.path().join("out"))["t"]);
    // Three quarters are kept: every 1, and the first half of the others.
    let expected = |i: usize| {
        if i.is_multiple_of(2) {
            1.0
        } else if i < elements / 2 {
            0.5
        } else {
            0.0
        }
    };
    assert!(merged.iter().enumerate().all(|(i, value)| *value == expected(i)));
}
