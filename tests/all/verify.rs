//! `mergeforge verify`: every kind of damage to an output is found, by file and tensor, in few lines; and a manifest is the same for the
//! same merge.

use std::fs;
use std::path::{Path, PathBuf};

use mergeforge::error::{Error, Kind};
use mergeforge::report::{FileRecord, Manifest};
use mergeforge::stream::Watch;
use mergeforge::verify::Output;
use safetensors::Dtype;
use serde_json::{Value as Json, json};

use crate::command::{Ended, ROOT, mergeforge, run};
use crate::models::{self, Form, PLAIN, Tensors, stored};

mod inputs;

/// Three models in shards, merged to five, with small files beside them.
struct Case {
    folder: tempfile::TempDir,
}

const TIES: &str = "\
merge_method: ties
base_model: DIR/base
models:
- model: DIR/one
  parameters: {weight: 1, density: 0.5}
- model: DIR/two
  parameters: {weight: 0.5, density: 0.5}
";

/// Tensors of one size, of another, and one that is no float.
fn tensors(seed: u32) -> Tensors {
    let mut random = 1 + seed;
    let mut values = |count: usize| -> Vec<f32> {
        let next = |_| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(next).collect()
    };
    let mut tensors = Tensors::new();
    for layer in 0..2 {
        for name in ["q_proj", "k_proj"] {
            let name = format!("model.layers.{layer}.self_attn.{name}.weight");
            tensors.insert(name, stored(Dtype::BF16, &[40, 30], &values(1200)));
        }
    }
    tensors.insert("model.norm.weight".into(), stored(Dtype::BF16, &[40], &values(40)));
    tensors.insert("lm_head.weight".into(), stored(Dtype::F32, &[50, 40], &values(2000)));
    tensors
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const K: &str = "model.layers.0.self_attn.k_proj.weight";

impl Case {
    fn new() -> Self {
        let case = Self { folder: tempfile::tempdir().unwrap() };
        for (seed, name) in ["base", "one", "two"].into_iter().enumerate() {
            models::write(&case.at(name), &tensors(seed as u32), Form { shards: 2, ..PLAIN });
            fs::write(case.at(name).join("generation_config.json"), "{}").unwrap();
            fs::create_dir(case.at(name).join("additional_chat_templates")).unwrap();
            fs::write(case.at(name).join("additional_chat_templates/tool.jinja"), "{{ tools }}").unwrap();
        }
        case.merge("out", &[]);
        case
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn merge(&self, out: &str, more: &[&str]) {
        let config = self.at("config.yml");
        fs::write(&config, TIES.replace("DIR", self.folder.path().to_str().unwrap())).unwrap();
        let mut command = mergeforge();
        command.args(["merge", "-q", "--device", "cpu", "--out-shard-size", "5kB"]).args(more);
        Ended::from(command.arg(config).arg(self.at(out)).output().unwrap()).succeeded();
    }

    fn verify(&self, more: &[&str]) -> Ended {
        let mut command = mergeforge();
        command.args(["verify", "-q"]).arg(self.at("out")).args(more).output().unwrap().into()
    }

    /// That it says all of this, of one problem, in three lines at most.
    #[track_caller]
    fn finds(&self, says: &[&str], more: &[&str]) {
        let ended = self.verify(more).failed(3, says);
        assert!(ended.stderr.lines().count() <= 3, "{}", ended.stderr);
        assert!(ended.stderr.contains("\nhint: "), "{}", ended.stderr);
        // The same for programs, of which the first is that one.
        let told = self.verify(&[more, &["--json"]].concat());
        let found: Json = serde_json::from_str(&told.stdout).unwrap();
        assert_eq!((told.code, &found["ok"]), (Some(3), &json!(false)));
        let message = found["problems"][0]["message"].as_str().unwrap();
        assert!(ended.stderr.contains(message), "{message} in\n{}", ended.stderr);
    }

    fn manifest(&self) -> Manifest {
        serde_json::from_slice(&fs::read(self.at("out/mergeforge.json")).unwrap()).unwrap()
    }

    fn write_manifest(&self, manifest: &Manifest) {
        fs::write(self.at("out/mergeforge.json"), manifest.text()).unwrap();
    }

    /// The file that holds a tensor, and where its data is in it.
    fn place(&self, tensor: &str) -> (PathBuf, usize, usize) {
        let file = self.at("out").join(&self.manifest().tensors[tensor].file);
        let content = fs::read(&file).unwrap();
        let header = u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
        let records: Json = serde_json::from_slice(&content[8..8 + header]).unwrap();
        let offsets = &records[tensor]["data_offsets"];
        let at = |end: usize| 8 + header + offsets[end].as_u64().unwrap() as usize;
        (file, at(0), at(1))
    }
}

/// Changes a file's bytes for as long as `look` looks.
fn with(file: &Path, change: impl FnOnce(&mut Vec<u8>), look: impl FnOnce()) {
    let before = fs::read(file).unwrap();
    let mut content = before.clone();
    change(&mut content);
    assert!(content != before, "a change that changes nothing");
    fs::write(file, content).unwrap();
    look();
    fs::write(file, before).unwrap();
}

#[test]
fn what_was_merged_is_verified() {
    let case = Case::new();
    let ended = case.verify(&["--recompute", "all"]).succeeded();
    assert_eq!(ended.stderr, "");
    for says in [
        "/out: 6 tensors in 8 files, ",
        "mergeforge.json: ties by mergeforge ",
        "/one: 6 of 6 tensors read\n",
        "made again from the inputs: 6 of 6 tensors, with the same bytes",
    ] {
        assert!(ended.stdout.contains(says), "no `{says}` in\n{}", ended.stdout);
    }
    // One bit of every file, at its beginning, in its middle and at its end, but in the card, which people go on writing.
    let manifest = case.manifest();
    assert!(manifest.files.contains_key("additional_chat_templates/tool.jinja"));
    let shards = manifest.files.values().filter(|file| matches!(file, FileRecord::Weights { .. })).count();
    assert_eq!(shards, 3);
    for (name, record) in &manifest.files {
        for place in [0, record.bytes() / 2, record.bytes() - 1] {
            with(
                &case.at("out").join(name),
                |content| content[place as usize] ^= 4,
                || {
                    let ended = case.verify(&[]).failed(3, &[&format!("out/{name}: "), "hint: "]);
                    assert!(ended.stderr.lines().count() <= 3, "{}", ended.stderr);
                },
            );
        }
    }
    fs::write(case.at("out/README.md"), "mine").unwrap();
    fs::remove_file(case.at("out/README.md")).unwrap();
    // Every byte of what the manifest says of the output matters. (Of inputs it is what --recompute and --hash-inputs look at.)
    let file = case.at("out/mergeforge.json");
    let text = fs::read_to_string(&file).unwrap();
    let at = |part: &str| text.find(part).unwrap();
    let (of_files, of_tensors) =
        (at("\"files\":{\"")..at(",\"format\""), at("\"tensors\":{\"lm_head")..text.len());
    for place in of_files.chain(of_tensors).step_by(61) {
        let flip = |content: &mut Vec<u8>| content[place] ^= 1;
        with(&file, flip, || drop(case.verify(&[]).failed(3, &["/out/", "hint: "])));
    }
    case.verify(&[]).succeeded();
}

#[test]
fn every_kind_of_damage_is_named() {
    let case = Case::new();
    let (file, start, end) = case.place(Q);
    let named = file.file_name().unwrap().to_str().unwrap().to_owned();
    let about = |tensor: &str, says: &str| format!("out/{named}: tensor \"{tensor}\": {says}");
    with(
        &file,
        |content| content[usize::midpoint(start, end)] ^= 1,
        || case.finds(&[&about(Q, "its data has the BLAKE3 hash ")], &[]),
    );
    // Two tensors of one size, one in the place of the other.
    let (other, from, to) = case.place(K);
    assert_eq!(other, file, "both are in one file");
    let swap = |content: &mut Vec<u8>| {
        let data = content[start..end].to_vec();
        content.copy_within(from..to, start);
        content[from..to].copy_from_slice(&data);
    };
    with(&file, swap, || {
        let holds = |tensor, other| about(tensor, &format!("it holds what tensor \"{other}\" should hold"));
        drop(case.verify(&[]).failed(3, &[&holds(Q, K), &holds(K, Q)]));
    });
    // The same by exchanging their names in the header; then another type of the same size, another shape, another name.
    let exchanged = |text: String| text.replace(Q, "?").replace(K, Q).replace('?', K);
    let edits: [(&dyn Fn(String) -> String, String); 4] = [
        (&exchanged, about(Q, "it holds what tensor ")),
        (
            // JSON may have spaces behind a value.
            &|text| text.replacen("\"BF16\"", "\"F16\" ", 1),
            about(K, "it is F16 [40, 30], and BF16 [40, 30] by mergeforge.json"),
        ),
        (
            &|text| text.replacen("[40,30]", "[30,40]", 1),
            about(K, "it is BF16 [30, 40], and BF16 [40, 30] by mergeforge.json"),
        ),
        (&|text| text.replacen("q_proj", "o_proj", 1), about(Q, "it is missing there")),
    ];
    for (edit, says) in edits {
        let change = |content: &mut Vec<u8>| {
            let header = 8..8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
            let edited = edit(String::from_utf8(content[header.clone()].to_vec()).unwrap());
            assert_eq!(edited.len(), header.len());
            content.splice(header, edited.into_bytes());
        };
        with(&file, change, || drop(case.verify(&[]).failed(3, &[&says])));
    }
    // Cut short, longer, empty, gone.
    with(
        &file,
        |content| content.truncate(end - 1),
        || case.finds(&[&format!("out/{named}: "), "is cut short"], &[]),
    );
    with(
        &file,
        |content| content.push(0),
        || case.finds(&[&format!("out/{named}: "), "bytes after its end"], &[]),
    );
    with(&file, Vec::clear, || case.finds(&[&format!("out/{named}: "), "is empty"], &[]));
    let aside = case.at("aside");
    fs::rename(&file, &aside).unwrap();
    case.finds(&[&format!("out/{named}: it is missing, and mergeforge.json lists it")], &[]);
    fs::rename(&aside, &file).unwrap();
    // More weights than were merged, and files of anybody's.
    for extra in [
        "model-00004-of-00004.safetensors",
        "pytorch_model.bin",
        ".hidden.safetensors",
        "sub/extra.safetensors",
    ] {
        let extra_file = case.at("out").join(extra);
        fs::create_dir_all(extra_file.parent().unwrap()).unwrap();
        fs::copy(&file, &extra_file).unwrap();
        case.finds(
            &[
                &format!("out/{extra}: a file of weights that mergeforge.json does not list"),
                "hint: remove it",
            ],
            &[],
        );
        fs::remove_file(extra_file).unwrap();
    }
    fs::write(case.at("out/notes.txt"), "mine").unwrap();
    fs::create_dir(case.at("out/.git")).unwrap();
    // A signature belongs there.
    fs::write(case.at("out/mergeforge.json.sig"), "mine").unwrap();
    let ended = case.verify(&[]).succeeded();
    assert!(ended.stderr.starts_with("warning: .git/, notes.txt: not of the merge"), "{}", ended.stderr);
    // A link that leads out of the folder is not followed.
    #[cfg(unix)]
    {
        fs::rename(&file, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &file).unwrap();
        drop(case.verify(&[]).failed(3, &[&named, "outside of the model's folder"]));
        fs::remove_file(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
    }
    case.verify(&[]).succeeded();
}

#[test]
fn index_and_manifest_are_held_against_the_files() {
    let case = Case::new();
    let index = case.at("out/model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    let places: Json = serde_json::from_str(&text).unwrap();
    let shard = places["weight_map"][Q].as_str().unwrap().to_owned();
    // Whoever edits the index may edit the manifest too: the files say otherwise.
    let agreeing = |text: &str| {
        fs::write(&index, text).unwrap();
        let mut manifest = case.manifest();
        let bytes = text.len() as u64;
        let sha256 = sha256(text.as_bytes());
        manifest.files.insert("model.safetensors.index.json".into(), FileRecord::Other { bytes, sha256 });
        case.write_manifest(&manifest);
    };
    let elsewhere = "model-00001-of-00003.safetensors";
    assert_ne!(shard, elsewhere);
    let about = |says: &str| format!("out/model.safetensors.index.json: {says}");
    for (from, to, says) in [
        (
            format!("\"{Q}\": \"{shard}\""),
            format!("\"{Q}\": \"{elsewhere}\""),
            about(&format!("tensor \"{Q}\": it should be in {shard}, and the index says {elsewhere}")),
        ),
        (
            format!("\"{Q}\""),
            "\"other\"".into(),
            about(&format!("tensor \"{Q}\": the index does not list it")),
        ),
        (format!("\"{Q}\""), "\"other\"".into(), about("tensor \"other\": mergeforge.json does not list it")),
        ("\"total_size\": ".into(), "\"total_size\": 1".into(), about("its total_size is 1")),
        ("weight_map".into(), "weights".into(), about("not the index of a checkpoint")),
    ] {
        agreeing(&text.replacen(&from, &to, 1));
        drop(case.verify(&[]).failed(3, &[&says]));
    }
    agreeing(&text);
    case.verify(&[]).succeeded();
    // What the manifest says is held against the files, and itself.
    let whole = case.manifest();
    let edited = |edit: &dyn Fn(&mut Manifest), says: &[&str]| {
        let mut manifest = whole.clone();
        edit(&mut manifest);
        case.write_manifest(&manifest);
        drop(case.verify(&[]).failed(3, says));
    };
    edited(&|m| m.total_size += 1, &["total_size is "]);
    edited(&|m| m.config.sha256 = "0".repeat(64), &["what it says of its config"]);
    edited(&|m| drop(m.tensors.remove(Q)), &[&format!("tensor \"{Q}\": mergeforge.json does not list it")]);
    edited(
        &|m| drop(m.files.remove(&shard)),
        &[&format!("out/{shard}: a file of weights that mergeforge.json does not list")],
    );
    edited(
        &|m| m.tensors.get_mut(Q).unwrap().file = elsewhere.into(),
        &[&format!("mergeforge.json has it in {elsewhere}")],
    );
    edited(&|m| m.tensors.get_mut(Q).unwrap().file = "../x".into(), &["not listed as a file of weights"]);
    edited(
        &|m| {
            m.files.extend([("../config.yml".into(), FileRecord::Other { bytes: 1, sha256: String::new() })]);
        },
        &["out/../config.yml: it is missing"],
    );
    edited(&|m| m.format = 2, &["its format is 2", "verify it with the version that made it"]);
    fs::write(case.at("out/mergeforge.json"), format!("{}\n", whole.text())).unwrap();
    case.verify(&[]).failed(3, &["not as a merge writes it, in canonical JSON", "hint: it was edited"]);
    fs::write(case.at("out/mergeforge.json"), "{\"mergeforge\":\"0.1.0\"}").unwrap();
    case.verify(&[]).failed(3, &["its format is 0"]);
    // None at all, and no folder.
    fs::remove_file(case.at("out/mergeforge.json")).unwrap();
    case.verify(&[])
        .failed(3, &["has no mergeforge.json", "hint: merge, multi, moe and convert write one; adapters"]);
    fs::remove_dir_all(case.at("out")).unwrap();
    case.verify(&[]).failed(2, &["out is not there"]);
}

fn sha256(bytes: &[u8]) -> String {
    mergeforge::checkpoint::sha256_of(bytes)
}

/// Writes a tensor and all that is said of it, as somebody who forges an output.
fn forge(case: &Case, tensor: &str) {
    let (file, start, end) = case.place(tensor);
    let mut content = fs::read(&file).unwrap();
    content[start] ^= 1;
    fs::write(&file, &content).unwrap();
    let mut manifest = case.manifest();
    manifest.tensors.get_mut(tensor).unwrap().blake3 =
        blake3::hash(&content[start..end]).to_hex().as_str().into();
    case.write_manifest(&manifest);
}

#[test]
fn tensors_are_made_again_from_the_inputs() {
    let case = Case::new();
    forge(&case, Q);
    case.verify(&[]).succeeded();
    let says = format!("tensor \"{Q}\": made again from the inputs its BLAKE3 hash is ");
    case.finds(&[&says, "hint: it is not what these inputs merge to"], &["--recompute", "all"]);
    // Samples: the same for a seed, more with a larger number; those with the tensor in them find it.
    let recomputed = |more: &[&str]| -> (Option<i32>, Vec<String>) {
        let ended = case.verify(&[&["--json", "--recompute"], more].concat());
        let found: Json = serde_json::from_str(&ended.stdout).unwrap();
        let names = found["recomputed"].as_array().unwrap().iter();
        (ended.code, names.map(|name| name.as_str().unwrap().to_owned()).collect())
    };
    let mut drawn = std::collections::BTreeSet::new();
    for seed in 0..12 {
        let (code, names) = recomputed(&["2", "--sample-seed", &seed.to_string()]);
        assert_eq!((names.len(), code), (2, Some(if names.iter().any(|name| name == Q) { 3 } else { 0 })));
        assert_eq!(recomputed(&["2", "--sample-seed", &seed.to_string()]).1, names);
        drawn.insert(names);
    }
    assert!(drawn.len() > 1 && drawn.iter().any(|names| names.iter().any(|name| name == Q)));
    assert_eq!(recomputed(&["2"]), recomputed(&["2", "--sample-seed", "0"]));
    case.verify(&["--recompute", "0"]).failed(2, &["expected a whole number from 1 to 4096, or all"]);
    case.verify(&["--sample-seed", "1"]).failed(2, &["--recompute"]);
}

#[test]
fn inputs_that_are_gone_or_changed_are_named() {
    let case = Case::new();
    fs::remove_dir_all(case.at("out")).unwrap();
    case.merge("out", &["--hash-inputs"]);
    let ended = case.verify(&["--hash-inputs"]).succeeded();
    assert!(
        ended.stdout.contains("inputs: 6 files have the SHA-256 that mergeforge.json says"),
        "{}",
        ended.stdout
    );
    assert_eq!(ended.stderr, "");
    let one = case.at("one");
    let named = format!("input {}: ", one.display());
    let shard = models::safetensors_files(&one)[0].clone();
    let name = shard.file_name().unwrap().to_str().unwrap().to_owned();
    // One bit of the data: the header and the size are the same.
    with(
        &shard,
        |content| *content.last_mut().unwrap() ^= 1,
        || {
            case.verify(&["--recompute", "all"]).failed(3, &["made again from the inputs"]);
            case.finds(
                &[&named, &format!("{name} is another file: its SHA-256 differs")],
                &["--hash-inputs"],
            );
        },
    );
    with(
        &shard,
        |content| {
            content.push(0);
            let json = u64::from_le_bytes(content[..8].try_into().unwrap());
            content[..8].copy_from_slice(&(json + 1).to_le_bytes());
            content.insert(8 + json as usize, b' ');
            content.pop();
        },
        || case.finds(&[&named, &format!("{name} has "), " bytes, and had "], &["--recompute", "1"]),
    );
    with(
        &one.join("config.json"),
        |content| content.push(b'\n'),
        || case.finds(&[&named, "its config.json was changed"], &["--recompute", "1"]),
    );
    fs::rename(&one, case.at("moved")).unwrap();
    let ended = case.verify(&["--recompute", "1"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("/one") && ended.stderr.contains("hint: "), "{}", ended.stderr);
    assert!(ended.stderr.lines().count() <= 3, "{}", ended.stderr);
    assert!(ended.stderr.contains("/out: 6 tensors in 8 files, "), "{}", ended.stderr);
    fs::rename(case.at("moved"), &one).unwrap();
    // The config of the merge decides what is made again.
    with(
        &case.at("out/mergekit_config.yml"),
        |content| content.push(b'\n'),
        || {
            drop(
                case.verify(&["--recompute", "1"])
                    .failed(3, &["mergekit_config.yml", "it is not the config of the merge"]),
            );
        },
    );
    case.verify(&["--recompute", "all", "--hash-inputs"]).succeeded();
    // Of what was not hashed that is said.
    fs::remove_dir_all(case.at("out")).unwrap();
    case.merge("out", &[]);
    let ended = case.verify(&["--hash-inputs"]).succeeded();
    assert!(
        ended.stderr.contains("warning: of 6 of 6 files of inputs mergeforge.json has no SHA-256"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stdout.contains("files have the SHA-256"), "{}", ended.stdout);
    case.verify(&["--hash-inputs", "--stream"]).failed(2, &["cannot be used with"]);
}

/// The Hugging Face cache calls files by their SHA-256, which may be wrong.
#[cfg(unix)]
#[test]
fn what_the_cache_calls_a_file_is_held_against_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    models::write(&at("model"), &tensors(0), PLAIN);
    let commit = "89abcdef".repeat(5);
    let named = crate::cli::into_cache(&at("hub"), "some/model", &commit, &at("model"));
    let config =
        crate::command::config(folder.path(), "merge_method: passthrough\nmodels:\n- model: some/model\n");
    let command = |words: &[&str]| -> Ended {
        mergeforge().env("HF_HUB_CACHE", at("hub")).args(words).arg("-q").output().unwrap().into()
    };
    let (config, out) = (config.to_str().unwrap(), at("out"));
    let out = out.to_str().unwrap();
    let merge = |more: &[&str]| command(&[&["merge", config, out][..], more].concat());
    let found = sha256(&fs::read(at("model/model.safetensors")).unwrap());
    merge(&["--hash-inputs"])
        .failed(3, &["model.safetensors has the SHA-256 ", &found, &named, "hint: the download is damaged"]);
    crate::command::assert_nothing_left(folder.path());
    // Where nobody looks it is taken at its word, and said to be no more than that.
    let of_input = || -> Json {
        let manifest: Json = serde_json::from_slice(&fs::read(at("out/mergeforge.json")).unwrap()).unwrap();
        manifest["inputs"][0]["files"][0].clone()
    };
    merge(&[]).succeeded();
    assert_eq!((&of_input()["sha256"], &of_input()["sha256_verified"]), (&json!(named), &json!(false)));
    command(&["verify", out, "--hash-inputs"]).failed(3, &["the cache calls it"]);
    fs::remove_dir_all(out).unwrap();
    let link = at("hub/models--some--model/snapshots").join(&commit).join("model.safetensors");
    fs::rename(
        at("hub/models--some--model/blobs").join(&named),
        at("hub/models--some--model/blobs").join(&found),
    )
    .unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{found}"), &link).unwrap();
    merge(&["--hash-inputs"]).succeeded();
    assert_eq!((&of_input()["sha256"], &of_input()["sha256_verified"]), (&json!(found), &json!(true)));
    command(&["verify", out, "--hash-inputs", "--recompute", "all"]).succeeded();
}

/// What every output of every command says of itself holds, and can be made again.
#[test]
fn outputs_of_all_commands_are_verified_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let schema = fs::read_to_string(Path::new(ROOT).join("docs/manifest.schema.json")).unwrap();
    let schema = jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap();
    let verified = |out: &str| {
        let mut manifest: Json =
            serde_json::from_slice(&fs::read(Path::new(out).join("mergeforge.json")).unwrap()).unwrap();
        assert_eq!(schema.validate(&manifest).map_err(|e| e.to_string()), Ok(()), "{out}");
        manifest["seconds"] = json!(1);
        assert!(!schema.is_valid(&manifest));
        let ended = run(["verify", "--recompute", "all", "-q", out]).succeeded();
        assert!(ended.stdout.contains(", with the same bytes"), "{}", ended.stdout);
    };
    for example in ["ties", "dare_ties", "slerp", "linear", "task_arithmetic"] {
        let file = format!("examples/{example}.yml");
        run(["merge", &file, &at(example), "-q", "--seed", "5", "--device", "cpu"]).succeeded();
        verified(&at(example));
    }
    run(["convert", "examples/models/chat", &at("converted"), "--dtype", "float16", "-q"]).succeeded();
    verified(&at("converted"));
    let moe = "base_model: examples/models/base\ngate_mode: random\nexperts:\n- source_model: examples/models/chat\n- source_model: examples/models/medical\n";
    fs::write(at("moe.yml"), moe).unwrap();
    run(["moe", &at("moe.yml"), &at("moe"), "-q", "--seed", "9", "--device", "cpu"]).succeeded();
    verified(&at("moe"));
    // Of several documents one that is merged while it is read, and one that needs a folder.
    let linear = |name: &str, models: &[&str]| {
        let model = |model: &&str| format!("- {{model: {model}, parameters: {{weight: 0.5}}}}\n");
        let models: Vec<String> = models.iter().map(model).collect();
        let models = models.concat();
        format!("{name}merge_method: linear\nmodels:\n{models}")
    };
    let first = linear("name: first\n", &["examples/models/chat", "examples/models/medical"]);
    let second = linear("", &["first", "examples/models/base"]);
    fs::write(at("staged.yml"), format!("{first}---\n{second}")).unwrap();
    run(["merge", &at("staged.yml"), &at("staged"), "-q", "--device", "cpu"]).succeeded();
    verified(&at("staged"));
    let kept =
        ["multi", &at("staged.yml"), "-I", &at("kept"), "--out-path", &at("multi"), "-q", "--device", "cpu"];
    run(kept).succeeded();
    verified(&at("kept/first"));
    verified(&at("multi"));
    let ties = "name: first\nmerge_method: ties\nbase_model: examples/models/base\nmodels:\n- {model: examples/models/chat, parameters: {weight: 1, density: 0.5}}\n";
    fs::write(at("measured.yml"), format!("{ties}---\n{second}")).unwrap();
    run(["merge", &at("measured.yml"), &at("measured"), "-q", "--device", "cpu"]).succeeded();
    run(["verify", &at("measured")]).succeeded();
    run(["verify", "--recompute", "1", &at("measured")])
        .failed(2, &["`first` was merged into a folder first", "hint: merge the config again"]);
    // Adapters have none, nor have models of others.
    run([
        "extract-lora",
        "examples/models/chat",
        "examples/models/base",
        &at("adapter"),
        "--rank",
        "4",
        "-q",
    ])
    .succeeded();
    for other in [at("adapter"), "examples/models/base".into()] {
        run(["verify", &other]).failed(3, &["has no mergeforge.json", "adapters of extract-lora have none"]);
    }
}

/// Threads, chunks, times and the output's name are nowhere in it; it is canonical, and what others compute of it is the same.
#[test]
fn a_manifest_is_the_same_for_the_same_merge() {
    let case = Case::new();
    let first = fs::read(case.at("out/mergeforge.json")).unwrap();
    for (out, more) in [
        ("other", &["--threads", "1"][..]),
        ("third", &["--reads", "copied", "--chunk-tiles", "16", "--no-cache"]),
    ] {
        std::thread::sleep(std::time::Duration::from_millis(20));
        case.merge(out, more);
        assert!(fs::read(case.at(out).join("mergeforge.json")).unwrap() == first, "{out}");
    }
    // An input that was only touched is the same input.
    let shard = &models::safetensors_files(&case.at("one"))[0];
    fs::write(shard, fs::read(shard).unwrap()).unwrap();
    case.merge("touched", &[]);
    assert!(fs::read(case.at("touched/mergeforge.json")).unwrap() == first);
    // Canonical as Python has it: these keys are ASCII, and the numbers integers.
    let program = "import json,sys; f=open(sys.argv[1],'rb').read(); m=json.loads(f); \
                   t=json.dumps(m,sort_keys=True,separators=(',',':'),ensure_ascii=False).encode(); sys.exit(t!=f)";
    let mut python = std::process::Command::new("python3");
    python.args(["-c", program]).arg(case.at("out/mergeforge.json"));
    assert!(python.status().unwrap().success(), "Python writes another text");
    // Every key stands in the page about it.
    let page = fs::read_to_string(Path::new(ROOT).join("docs/manifest.md")).unwrap();
    let manifest: Json = serde_json::from_slice(&first).unwrap();
    for key in manifest.as_object().unwrap().keys() {
        assert!(page.contains(&format!("| `{key}` |")), "docs/manifest.md has no `{key}`");
    }
    let text = String::from_utf8(first).unwrap();
    for never in ["seconds", "threads", "modified", "/out", "mergeforge.json", "README.md"] {
        assert!(!text.contains(never), "{never}");
    }
}

/// Whatever somebody puts in its place: a message of few lines, soon, and little memory.
#[cfg(target_os = "linux")]
#[test]
fn hostile_manifests_are_refused() {
    let case = Case::new();
    let whole = case.manifest().text();
    let with = |from: &str, to: &str| {
        assert!(whole.contains(from), "no {from}");
        whole.replacen(from, to, 1).into_bytes()
    };
    let elements = |element: &str| vec![element; 2_000_000].join(",");
    let hostile: [(&str, Vec<u8>); 15] = [
        ("nothing", Vec::new()),
        ("another value", b"null".to_vec()),
        ("no text", vec![0xff; 1000]),
        ("no end", whole.as_bytes()[..whole.len() / 2].to_vec()),
        ("two values", format!("{whole}{whole}").into_bytes()),
        ("depth", "[".repeat(1_000_000).into_bytes()),
        ("depth within", with("\"inputs\":[", &format!("\"inputs\":[{}", "[".repeat(1_000_000)))),
        ("many inputs", with("\"inputs\":[", &format!("\"inputs\":[{},", elements("0")))),
        ("many dimensions", with("\"shape\":[", &format!("\"shape\":[{},", elements("1")))),
        ("an unknown key", with("\"seed\":", "\"secret\":1,\"seed\":")),
        ("a key twice", with("\"seed\":0", "\"seed\":1,\"seed\":0")),
        ("a negative size", with("\"bytes\":", "\"bytes\":-")),
        ("a size beyond 64 bits", with("\"bytes\":", "\"bytes\":99999999999999999999")),
        ("a type that there is not", with("\"BF16\"", "\"BF17\"")),
        ("a path as a name", with("\"config.json\":{", "\"../../../../../../etc/passwd\":{")),
    ];
    for (what, text) in hostile {
        fs::write(case.at("out/mergeforge.json"), text).unwrap();
        let begun = std::time::Instant::now();
        let (ended, peak_bytes) = crate::command::run_watched([
            "verify",
            "-q",
            "--recompute",
            "1",
            case.at("out").to_str().unwrap(),
        ]);
        let ended = ended.failed(3, &["/out/", "hint: "]);
        assert!(ended.stderr.lines().count() <= 3 && ended.stderr.len() < 1500, "{what}: {}", ended.stderr);
        assert!(peak_bytes < 200 << 20 && begun.elapsed().as_secs() < 20, "{what}: {peak_bytes} bytes");
    }
}

struct Stopped;

impl Watch for Stopped {
    fn moved(&self, _: u64, _: u64) {}
    fn stop(&self) -> bool {
        true
    }
    fn compiling(&self) {}
    fn less_memory(&self, _: &Error, _: u64, _: u64) {}
}

/// Whatever the size of a tensor; and whoever wants to stop is heard within it.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_and_the_user_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (folder.path().join("model"), folder.path().join("out"));
    let elements = 48 << 20;
    let large = models::Stored { dtype: Dtype::BF16, shape: vec![elements], bytes: vec![0x3f; 2 * elements] };
    models::write(&model, &Tensors::from([("t".into(), large)]), PLAIN);
    run(["convert", model.to_str().unwrap(), out.to_str().unwrap(), "-q"]).succeeded();
    let (ended, peak_bytes) = crate::command::run_watched(["verify", "-q", "-j", "4", out.to_str().unwrap()]);
    ended.succeeded();
    assert!((1 << 20..40 << 20).contains(&peak_bytes), "{peak_bytes} bytes for a tensor of {}", 2 * elements);
    let stopped = Output::open(&out).unwrap().verify(2, &Stopped).unwrap_err();
    assert_eq!(stopped.kind, Kind::Interrupted);
    inputs::ends_when_asked(&out);
}

/// Layers that a config leaves out, and a model without a weight.
#[test]
fn what_was_not_read_is_in_the_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let config = "merge_method: linear\nslices:\n- sources:\n  - {model: examples/models/chat, layer_range: [0, 1], parameters: {weight: 1}}\n  \
                  - {model: examples/models/base, layer_range: [0, 1], parameters: {weight: 0}}\n";
    let file = crate::command::config(folder.path(), config);
    let mut command = mergeforge();
    Ended::from(command.args(["merge", "-q"]).arg(&file).arg(&out).output().unwrap()).succeeded();
    let manifest: Json = serde_json::from_slice(&fs::read(out.join("mergeforge.json")).unwrap()).unwrap();
    for (input, unused) in manifest["inputs"].as_array().unwrap().iter().zip([false, true]) {
        let tensors = &input["tensors"];
        let names = |key: &str| tensors[key].as_array().unwrap().len();
        assert_eq!(
            tensors["all"].as_u64().unwrap() as usize,
            tensors["read"].as_u64().unwrap() as usize + names("left_out") + names("unused")
        );
        assert!(names("left_out") > 0 && (names("unused") > 0) == unused, "{tensors}");
        let first = tensors["left_out"][0].as_str().unwrap();
        assert!(first.starts_with("model.layers."), "{first}");
    }
    assert!(manifest["left_out"][0]["what"].as_str().unwrap().contains("layer"), "{}", manifest["left_out"]);
    let told = run(["verify", out.to_str().unwrap(), "--recompute", "all", "-q"]).succeeded().stdout;
    assert!(
        told.contains(" left out by the config") && told.contains(" without effect on the result"),
        "{told}"
    );
}
