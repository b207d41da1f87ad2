//! Models of the Hub: what is fetched of them, when, and what is said where that fails. The Hub is `hub_server`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use safetensors::Dtype;
use serde_json::{Value as Json, json};

use crate::adapters::write_adapter;
use crate::command::{Ended, config, mergeforge};
use crate::hub_server::{Access, Fault, Files, Host, Hub, Who};
use crate::models::{self, Form, PLAIN, Tensors, stored, weights};
use crate::torch_files::torch_file;

const EMBED: &str = "model.embed_tokens.weight";
const ROWS: usize = 1000;
const COLUMNS: usize = 512;

/// A network with a Hub, and a machine with an empty home.
struct Net {
    hub: Hub,
    home: tempfile::TempDir,
}

impl Net {
    fn new() -> Self {
        Self { hub: Hub::start(), home: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The program, as somebody with nothing but this Hub runs it.
    fn command(&self) -> Command {
        let mut command = mergeforge();
        command.env_remove("HF_HUB_OFFLINE").env_remove("HF_HUB_CACHE").current_dir(self.home.path());
        command.env("HF_HOME", self.path("hf")).env("HF_ENDPOINT", self.hub.endpoint());
        command.env("MERGEFORGE_CACHE", self.path("known"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        self.command().args(arguments).output().expect("the program starts").into()
    }

    /// Merges by the text of a config into `out`.
    fn merge(&self, text: &str, out: &str, more: &[&str]) -> Ended {
        let config = config(self.home.path(), text);
        self.command().arg("merge").args([&config, &self.path(out)]).args(more).output().unwrap().into()
    }

    /// The cache of a repository.
    fn repository(&self, name: &str) -> PathBuf {
        self.path("hf/hub").join(format!("models--{}", name.replace('/', "--")))
    }

    /// Bytes that went out of files of this name.
    fn sent(&self, file: &str) -> u64 {
        self.hub.sent().iter().filter(|(name, _)| name.ends_with(file)).map(|(_, bytes)| bytes).sum()
    }

    fn all_sent(&self) -> u64 {
        self.hub.sent().values().sum()
    }
}

/// A model's tensors: 12 MB in bf16.
fn tensors(seed: u64) -> Tensors {
    let tensor = |shape: &[usize], seed| stored(Dtype::BF16, shape, &weights(shape.iter().product(), seed));
    let mut tensors = Tensors::from([(EMBED.to_owned(), tensor(&[ROWS, COLUMNS], seed))]);
    for layer in 0..2 {
        for (place, module) in ["mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"].into_iter().enumerate() {
            let shape = if place == 1 { [COLUMNS, 1800] } else { [1800, COLUMNS] };
            let name = format!("model.layers.{layer}.{module}.weight");
            tensors.insert(name, tensor(&shape, seed + 10 * layer + place as u64));
        }
        tensors.insert(format!("model.layers.{layer}.input_layernorm.weight"), tensor(&[COLUMNS], seed + 7));
    }
    tensors.insert("model.norm.weight".into(), tensor(&[COLUMNS], seed + 9));
    tensors
}

const TOKENIZER: &str = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"},"added_tokens":[]}"#;

/// A model with a tokenizer, the same weights as torch saves them, and files that nobody needs.
fn model(folder: &Path, seed: u64, form: Form) -> Files {
    models::write(folder, &tensors(seed), form);
    fs::write(folder.join("tokenizer.json"), TOKENIZER).unwrap();
    fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    fs::write(folder.join("README.md"), "---\nlicense: mit\n---\n").unwrap();
    let files = Files::of(folder).unwrap();
    files.with("pytorch_model.bin", vec![1; 100_000]).with("onnx/model.onnx", vec![2; 100_000])
}

/// A Hub with `org/a`, `org/b` and `org/base`, which are in folders of these names too.
fn three_models(form: Form) -> Net {
    let net = Net::new();
    for (name, seed) in [("base", 1), ("a", 100), ("b", 200)] {
        let files = model(&net.path(name), seed, form);
        net.hub.publish(&format!("org/{name}"), "main", files);
    }
    net
}

/// A TIES merge of models whose names begin so.
fn ties(start: &str) -> String {
    format!(
        "merge_method: ties\nbase_model: {start}base\nmodels:\n- model: {start}a\n  parameters: {{weight: 0.5, density: 0.5}}\n\
         - model: {start}b\n  parameters: {{weight: 0.5, density: 0.6}}\ndtype: bfloat16\n"
    )
}

/// All tensors of an output.
fn output(net: &Net, out: &str) -> Tensors {
    models::read(&net.path(out))
}

fn manifest(net: &Net, out: &str) -> Json {
    serde_json::from_slice(&fs::read(net.path(out).join("mergeforge.json")).unwrap()).unwrap()
}

/// The weights of a model on the Hub, in bytes.
fn weight_bytes(net: &Net, model: &str) -> u64 {
    models::safetensors_files(&net.path(model)).iter().map(|file| fs::metadata(file).unwrap().len()).sum()
}

#[track_caller]
fn assert_same(net: &Net, one: &str, other: &str) {
    assert!(output(net, one) == output(net, other), "{one} and {other} differ");
}

#[test]
fn models_are_fetched_once_and_merged_as_from_folders() {
    let net = three_models(Form { shards: 3, ..PLAIN });
    net.merge(&ties("./"), "local", &[]).succeeded();
    assert_eq!(net.hub.requests().len(), 0, "folders need no network");
    let ended = net.merge(&ties("org/"), "out", &[]).succeeded();
    assert!(ended.stderr.contains("downloaded 9 files"), "{}", ended.stderr);
    assert_same(&net, "out", "local");
    // Each byte of weights came once, beside the windows in which headers were looked at; nothing that is not needed did.
    let weights: u64 = ["base", "a", "b"].iter().map(|model| weight_bytes(&net, model)).sum();
    let sent = net.sent(".safetensors");
    assert!((weights..weights + 9 * 65536 + 1).contains(&sent), "{sent} of {weights}");
    assert_eq!((net.sent(".bin"), net.sent(".onnx"), net.hub.tokens_at_cdn()), (0, 0, 0));
    // The cache is as the Hub's own client lays it out.
    let repository = net.repository("org/a");
    let commit = fs::read_to_string(repository.join("refs/main")).unwrap();
    let snapshot = repository.join("snapshots").join(&commit);
    for file in ["config.json", "tokenizer.json", "part-1.safetensors", "model.safetensors.index.json"] {
        let link = fs::read_link(snapshot.join(file)).unwrap();
        assert!(link.starts_with("../../blobs"), "{}", link.display());
        assert_eq!(
            fs::read(snapshot.join(file)).unwrap(),
            fs::read(net.path("a").join(file)).unwrap(),
            "{file}"
        );
    }
    let blobs = fs::read_dir(repository.join("blobs")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(blobs.into_iter().all(|name| !name.to_str().unwrap().contains("incomplete")));
    // What was seen is in the manifest: the hashes were computed.
    let identity = manifest(&net, "out")["inputs"][0]["files"][0].clone();
    let text = manifest(&net, "out").to_string();
    assert!(text.contains(&commit) && text.contains(r#""sha256_verified":true"#), "{identity} {text}");
    assert!(!text.contains(r#""sha256_verified":false"#), "{text}");
    // A second time nobody is asked, with and without a Hub.
    net.hub.forget();
    net.merge(&ties("org/"), "again", &[]).succeeded();
    net.merge(&ties("org/"), "offline", &["--offline"]).succeeded();
    assert_eq!(net.hub.requests().len(), 0);
    assert_same(&net, "again", "local");
    assert_same(&net, "offline", "local");
    assert!(identity["sha256"].is_string(), "{identity}");
    assert_eq!(manifest(&net, "again"), manifest(&net, "out"));
}

#[test]
fn what_is_wrong_is_reported_before_weights_are_fetched() {
    let net = three_models(PLAIN);
    // One that lacks a tensor, and one with other rows and no way to tell their tokens.
    let mut lacking = tensors(300);
    lacking.remove("model.layers.1.mlp.up_proj.weight");
    models::write(&net.path("lacking"), &lacking, PLAIN);
    net.hub.publish("org/lacking", "main", Files::of(&net.path("lacking")).unwrap());
    let mut other = tensors(400);
    other.insert(EMBED.into(), stored(Dtype::BF16, &[ROWS + 8, COLUMNS], &weights((ROWS + 8) * COLUMNS, 5)));
    models::write(&net.path("other"), &other, PLAIN);
    net.hub.publish("org/other", "main", Files::of(&net.path("other")).unwrap());
    let good = ties("org/");
    for (what, text, code, says) in [
        ("a typo", good.replace("density: 0.5", "densty: 0.5"), 0, "densty"),
        ("a wrong value", good.replace("density: 0.5", "density: dense"), 2, "density"),
        ("a missing tensor", good.replace("org/a", "org/lacking"), 3, "model.layers.1.mlp.up_proj.weight"),
        ("another vocabulary", good.replace("org/a", "org/other"), 2, "embed_tokens"),
        ("no such model", good.replace("org/a", "org/none"), 2, "org/none"),
    ] {
        // What is a warning stops nobody who has not asked for that.
        let (strict, code): (&[&str], _) = if code == 0 { (&["--strict"], 2) } else { (&[], code) };
        net.hub.forget();
        let ended = net.merge(&text, "out", strict);
        assert_eq!(ended.code, Some(code), "{what}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{what}: {}", ended.stderr);
        let all: u64 = ["base", "a", "b"].iter().map(|model| weight_bytes(&net, model)).sum();
        assert!(net.all_sent() * 100 < all, "{what}: {} of {all} bytes", net.all_sent());
    }
}

#[test]
fn a_plan_reads_headers_and_says_what_would_be_downloaded() {
    let net = three_models(PLAIN);
    let file = config(net.home.path(), &ties("org/"));
    let plan = |more: &[&str]| net.run(&[&["plan", file.to_str().unwrap()], more].concat()).succeeded();
    let shown = plan(&[]).stdout;
    assert!(shown.contains("downloads 1 file of org/a, "), "{shown}");
    assert!(net.all_sent() < 400_000, "{}", net.all_sent());
    let plan_json: Json = serde_json::from_str(&plan(&["--json"]).stdout).unwrap();
    let downloads = plan_json["downloads"].as_array().unwrap();
    assert_eq!(downloads.len(), 3);
    assert_eq!(
        downloads.iter().map(|file| file["bytes"].as_u64().unwrap()).max(),
        Some(weight_bytes(&net, "a"))
    );
    // The headers are kept: nobody is asked a second time.
    net.hub.forget();
    plan(&[]);
    plan(&["--offline"]);
    assert_eq!(net.hub.requests().len(), 0);
    net.merge(&ties("org/"), "out", &["--offline"])
        .failed(6, &["not all that is needed is in the cache", "--offline"]);
    let described = net.run(&["info", "org/a"]).succeeded().stdout;
    assert!(described.contains("parameters"), "{described}");
    assert_eq!(net.sent(".safetensors"), 0);
    net.merge(&ties("org/"), "out", &[]).succeeded();
    let shown = plan(&[]).stdout;
    assert!(!shown.contains("downloads"), "{shown}");
    net.run(&["diff", "org/a", "./a"]).succeeded();
}

#[test]
fn a_download_goes_on_where_it_was_killed() {
    let net = three_models(PLAIN);
    let text =
        "merge_method: linear\nmodels:\n- model: org/a\n  parameters: {weight: 1.0}\ndtype: bfloat16\n";
    net.hub.fault("GET cdn", 100, Fault::Slow(4 << 20));
    let file = config(net.home.path(), text);
    let mut child = net.command().arg("merge").args([&file, &net.path("out")]).spawn().unwrap();
    let begun = Instant::now();
    let incomplete = || {
        let blobs = fs::read_dir(net.repository("org/a").join("blobs")).into_iter().flatten().flatten();
        let mut begun =
            blobs.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.len() == 64 + 11));
        begun.next().map_or(0, |entry| entry.metadata().unwrap().len())
    };
    // A chunk of 8 MiB is written once it is whole.
    while incomplete() == 0 && begun.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let there = incomplete();
    assert!(there > 0, "something had come");
    assert!(!net.path("out").exists());
    net.hub.heal();
    // What was still being sent must not be counted.
    std::thread::sleep(Duration::from_millis(300));
    net.hub.forget();
    net.merge(text, "out", &[]).succeeded();
    assert_eq!(net.sent("model.safetensors"), weight_bytes(&net, "a") - there, "only what is missing");
    net.merge(&text.replace("org/", "./"), "local", &[]).succeeded();
    assert_same(&net, "out", "local");
}

#[test]
fn beginnings_of_other_clients_are_used_unless_they_are_wrong() {
    for (name, is_right) in [("right", true), ("wrong", false)] {
        let net = three_models(PLAIN);
        let bytes = fs::read(net.path("a/model.safetensors")).unwrap();
        let mut beginning = bytes[..5_000_001].to_vec();
        if !is_right {
            beginning[4_000_000] ^= 1;
        }
        let hash = sha256(&bytes);
        let blobs = net.repository("org/a").join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{hash}.incomplete")), &beginning).unwrap();
        net.run(&["diff", "org/a", "./a"]).succeeded();
        let sent = net.sent("org/a/model.safetensors");
        let (rest, all) = (bytes.len() as u64 - 5_000_001, bytes.len() as u64);
        let expected = if is_right { rest } else { rest + all };
        assert!((expected..=expected + 65536).contains(&sent), "{name}: {sent} of {all}");
    }
}

/// The SHA-256 of bytes, as the Hub has it.
fn sha256(bytes: &[u8]) -> String {
    let files = Files::new().with_lfs("x", bytes);
    files.0["x"].etag().to_owned()
}

#[test]
fn failures_that_pass_are_waited_out() {
    let net = three_models(PLAIN);
    net.run(&["diff", "org/a", "./a"]).succeeded();
    let usual = net.hub.requests().len();
    for (what, word, times, fault) in [
        ("cut connections", "GET cdn", 2, Fault::Cut(1_000_000)),
        ("too many requests", "hub /org/a/resolve", 1, Fault::retry_after(1)),
        ("a limit of the Hub", "hub /api/models/org/a/tree", 1, Fault::rate_limited(1)),
        ("a broken Hub", "hub /api/models/org/a/revision", 2, Fault::status(500)),
        ("a busy CDN", "GET cdn", 1, Fault::status(503)),
        ("less than was promised", "GET cdn", 2, Fault::Shorter(1000)),
    ] {
        let net = three_models(PLAIN);
        net.hub.fault(word, times, fault);
        let ended = net.run(&["diff", "org/a", "./a"]);
        assert_eq!(ended.code, Some(0), "{what}: {}", ended.stderr);
        let asked = net.hub.requests().len();
        assert!(asked >= usual + times, "{what}: each was tried again, {asked} of {usual}");
        assert_eq!(net.hub.tokens_at_cdn(), 0, "{what}");
    }
}

#[test]
fn addresses_that_expire_are_asked_for_again() {
    let net = three_models(Form { shards: 3, ..PLAIN });
    net.hub.link_uses(1);
    net.run(&["diff", "org/a", "./a"]).succeeded();
    let refused =
        net.hub.requests().into_iter().filter(|request| request.host == Host::Cdn && request.status == 403);
    assert!(refused.count() > 0, "addresses did expire");
}

#[test]
fn what_arrives_damaged_is_refused_and_fetched_anew() {
    let net = three_models(PLAIN);
    net.hub.fault("GET cdn", 1, Fault::FlippedByte(7_000_000));
    net.run(&["diff", "org/a", "./a"])
        .failed(6, &["org/a/model.safetensors arrived damaged", "run it again"]);
    let blob = net
        .repository("org/a")
        .join("blobs")
        .join(sha256(&fs::read(net.path("a/model.safetensors")).unwrap()));
    assert!(!blob.exists());
    net.run(&["diff", "org/a", "./a"]).succeeded();
    // A small file too.
    net.hub.fault("resolve-cache/models/org/b", 20, Fault::FlippedByte(1));
    net.run(&["info", "org/b"]).failed(6, &["org/b/", "arrived damaged"]);
    net.hub.heal();
    net.run(&["info", "org/b"]).succeeded();
}

#[test]
fn a_header_that_arrives_damaged_plans_nothing() {
    let net = three_models(PLAIN);
    let bytes = fs::read(net.path("a/model.safetensors")).unwrap();
    let name = bytes.windows(7).position(|window| window == b"up_proj").unwrap();
    net.hub.fault("GET cdn", 1, Fault::FlippedByte(name));
    let text =
        "merge_method: linear\nmodels:\n- model: org/a\n  parameters: {weight: 1.0}\ndtype: bfloat16\n";
    net.merge(text, "out", &[]).failed(6, &["the header of org/a/model.safetensors arrived damaged"]);
    assert!(!net.path("out").exists());
    net.merge(text, "out", &[]).succeeded();
    // One that was kept and is damaged is asked for again.
    net.run(&["info", "org/b"]).succeeded();
    let commit = fs::read_to_string(net.repository("org/b").join("refs/main")).unwrap();
    let kept = fs::read_dir(net.path("known/hub").join(commit)).unwrap().map(|entry| entry.unwrap().path());
    let head = kept.into_iter().find(|file| file.extension().is_some_and(|kind| kind == "head")).unwrap();
    let mut damaged = fs::read(&head).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&head, damaged).unwrap();
    net.run(&["diff", "org/b", "./b"]).succeeded();
}

#[test]
fn an_output_that_cannot_be_is_refused_before_weights_are_fetched() {
    let net = three_models(PLAIN);
    fs::create_dir(net.path("out")).unwrap();
    fs::write(net.path("out/mine"), "mine").unwrap();
    net.merge(&ties("org/"), "out", &[]).failed(2, &["out"]);
    assert!(net.all_sent() < 400_000, "{}", net.all_sent());
}

#[test]
fn files_beside_the_weights_come_before_them() {
    let net = Net::new();
    let files = model(&net.path("a"), 1, PLAIN)
        .with("vocab.txt", "word\n".repeat(2000))
        .with("code.py", "# x\n".repeat(900));
    net.hub.publish("org/a", "main", files);
    let text =
        "merge_method: linear\nmodels:\n- model: org/a\n  parameters: {weight: 1.0}\ndtype: bfloat16\n";
    net.merge(text, "out", &[]).succeeded();
    let requests = net.hub.requests();
    let last = |name: &str| requests.iter().rposition(|request| request.target.contains(name)).unwrap();
    for name in ["vocab.txt", "code.py"] {
        assert!(last(name) < last("model.safetensors"), "{name}");
        assert!(net.path("out").join(name).exists(), "{name}");
    }
}

#[test]
fn an_interrupted_download_keeps_what_has_come() {
    let net = three_models(PLAIN);
    net.hub.fault("GET cdn", 100, Fault::Slow(4 << 20));
    let child = net.command().args(["diff", "org/a", "./a"]).spawn().unwrap();
    let begun = Instant::now();
    while net.sent("org/a/model.safetensors") < 200_000 && begun.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let ended: Ended = child.wait_with_output().unwrap().into();
    ended.failed(130, &["interrupted", "the same command goes on from there"]);
    net.hub.heal();
    net.run(&["diff", "org/a", "./a"]).succeeded();
}

#[test]
fn a_file_that_changes_under_its_name_is_noticed() {
    let net = three_models(PLAIN);
    net.hub.fault("/org/a/resolve", 20, Fault::OtherTag);
    net.run(&["diff", "org/a", "./a"]).failed(6, &["org/a/model.safetensors on the Hub is not what it was"]);
    net.hub.heal();
    net.hub.fault("GET cdn", 20, Fault::NoRanges);
    net.run(&["info", "org/b"]).succeeded();
    net.run(&["diff", "org/b", "./b"]).failed(6, &["does not send parts of files"]);
}

#[test]
fn no_network_is_said_at_once() {
    let mut net = three_models(PLAIN);
    net.hub.close(Host::Hub);
    let begun = Instant::now();
    net.merge(&ties("org/"), "out", &[]).failed(6, &["cannot reach 127.0.0.1", "--offline"]);
    assert!(begun.elapsed() < Duration::from_secs(20));
    net.merge(&ties("org/"), "out", &["--offline"])
        .failed(2, &["model \"org/a\" not found", "the cache has no", "without --offline"]);
    net.hub.reopen(Host::Hub);
    net.run(&["info", "org/a"]).succeeded();
    let at = |endpoint: &str| -> Ended {
        net.command().env("HF_ENDPOINT", endpoint).args(["info", "org/b"]).output().unwrap().into()
    };
    let begun = Instant::now();
    at("http://no-such-host.invalid").failed(6, &["cannot reach no-such-host.invalid", "not in the cache"]);
    assert!(begun.elapsed() < Duration::from_secs(30));
    // What answers in plain text has no certificate.
    at(&net.hub.endpoint().replace("http:", "https:"))
        .failed(6, &["no secure connection to 127.0.0.1", "SSL_CERT_FILE"]);
    at("nowhere").failed(6, &["HF_ENDPOINT"]);
}

#[test]
fn a_cache_that_does_is_used_whatever_the_hub_says() {
    let net = three_models(PLAIN);
    net.run(&["diff", "org/a", "./a"]).succeeded();
    let repository = net.repository("org/a");
    let commit = fs::read_to_string(repository.join("refs/main")).unwrap();
    fs::remove_file(repository.join("snapshots").join(commit).join("tokenizer.json")).unwrap();
    fs::remove_dir_all(net.path("known")).unwrap();
    net.hub.limit("org/a", Access::Private);
    let ended = net.run(&["diff", "org/a", "./a"]).succeeded();
    assert!(ended.stderr.contains("not all of it seems to be in the cache"), "{}", ended.stderr);
}

#[test]
fn each_refusal_of_the_hub_has_its_own_way_out() {
    let net = three_models(PLAIN);
    net.hub.token("hf_right", Who::Member);
    let info = |name: &str, token: Option<&str>| {
        let mut command = net.command();
        token.iter().for_each(|token| {
            command.env("HF_TOKEN", token);
        });
        let ended: Ended = command.args(["info", name]).output().unwrap().into();
        ended
    };
    info("org/none", None)
        .failed(2, &["model \"org/none\" not found", "on the Hub no such model", "HF_TOKEN"]);
    info("org/a@v9", None).failed(2, &["has no revision \"v9\"", "tree/main"]);
    net.hub.limit("org/a", Access::Gated);
    info("org/a", None).failed(2, &["model \"org/a\" is gated", "ask for access"]);
    net.hub.limit("org/b", Access::Private);
    info("org/b", None).failed(2, &["model \"org/b\" not found", "it is private", "HF_TOKEN"]);
    info("org/b", Some("hf_wrong")).failed(2, &["does not know the token"]);
    net.hub.limit("org/base", Access::Disabled);
    info("org/base", None).failed(2, &["disabled"]);
    info("org/a", Some("hf_right")).succeeded();
    info("org/b", Some("hf_right")).succeeded();
    assert_eq!(net.hub.tokens_at_cdn(), 0);
    let requests = net.hub.requests();
    assert!(requests.iter().any(|request| request.is_authorised && request.host == Host::Hub));
}

#[test]
fn shards_that_no_slice_reads_are_not_fetched() {
    let net = three_models(Form { shards: 11, ..PLAIN });
    let slices = |start: &str| {
        format!(
            "merge_method: passthrough\nslices:\n- sources:\n  - model: {start}a\n    layer_range: [0, 1]\ndtype: bfloat16\n"
        )
    };
    net.merge(&slices("org/"), "out", &[]).succeeded();
    net.merge(&slices("./"), "local", &[]).succeeded();
    assert_same(&net, "out", "local");
    let fetched: u64 = models::safetensors_files(&net.path("out"))
        .iter()
        .map(|file| fs::metadata(file).unwrap().len())
        .sum();
    let sent = net.sent(".safetensors");
    assert!(sent < fetched + 12 * 65536, "{sent} for {fetched}");
    // The rest is known by its headers.
    net.hub.forget();
    net.merge(&slices("org/"), "offline", &["--offline"]).succeeded();
    assert_same(&net, "offline", "local");
    assert_eq!(net.hub.requests().len(), 0);
    // What is missing for another merge is fetched then.
    net.run(&["diff", "org/a", "./a"]).succeeded();
}

#[test]
fn streamed_models_leave_no_weights_behind() {
    let net = three_models(Form { shards: 2, ..PLAIN });
    net.merge(&ties("./"), "local", &[]).succeeded();
    net.merge(&ties("org/"), "out", &["--stream"]).succeeded();
    assert_same(&net, "out", "local");
    for name in ["org/a", "org/b", "org/base"] {
        let blobs = fs::read_dir(net.repository(name).join("blobs")).unwrap().map(|blob| blob.unwrap());
        let largest = blobs.into_iter().map(|blob| blob.metadata().unwrap().len()).max();
        assert!(largest.unwrap() < 100_000, "{name}: {largest:?}");
    }
    net.hub.fault("/org/a/resolve", 100, Fault::OtherTag);
    net.merge(&ties("org/"), "changed", &["--stream"]).failed(6, &["is not what it was"]);
    assert!(!net.path("changed").exists());
    net.run(&["merge", "x.yml", "y", "--stream", "--offline"]).failed(2, &["--stream", "--offline"]);
}

#[test]
fn names_pages_and_old_names_lead_to_the_same() {
    let net = three_models(PLAIN);
    net.hub.page_entries(2);
    // A folder of the name would be taken instead.
    net.hub.publish("gpt2", "main", model(&net.path("gpt2-here"), 500, PLAIN));
    net.run(&["diff", "gpt2", "./gpt2-here"]).succeeded();
    let pages = net.hub.requests().into_iter().filter(|request| request.target.contains("/tree/"));
    assert!(pages.count() > 2, "the list has pages");
    let commit = net.hub.publish("org/a", "refs/pr/7", model(&net.path("seventh"), 700, PLAIN));
    net.run(&["diff", "org/a@refs/pr/7", "./seventh"]).succeeded();
    net.run(&["diff", &format!("org/a@{commit}"), "./seventh"]).succeeded();
    net.run(&["diff", "org/a", "./a"]).succeeded();
    net.hub.rename("org/b", "other/b2");
    net.run(&["diff", "org/b", "./b"]).succeeded();
}

#[test]
fn weights_of_torch_are_planned_by_ranges_too() {
    let net = Net::new();
    let folder = net.path("torch");
    models::write(&folder, &tensors(1), PLAIN);
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("pytorch_model.bin"), torch_file(&tensors(1))).unwrap();
    net.hub.publish("org/torch", "main", Files::of(&folder).unwrap());
    net.run(&["info", "org/torch"]).succeeded();
    let (sent, all) = (net.sent(".bin"), fs::metadata(folder.join("pytorch_model.bin")).unwrap().len());
    assert!(sent > 0 && sent * 10 < all, "{sent} of {all}");
    // What was read of it is kept.
    net.hub.forget();
    net.run(&["info", "org/torch", "--offline"]).succeeded();
    assert_eq!(net.hub.requests().len(), 0);
    net.run(&["diff", "org/torch", "./torch"]).succeeded();
}

#[test]
fn adapters_come_from_the_hub() {
    let net = three_models(PLAIN);
    let name = "model.layers.0.mlp.up_proj";
    let (down, up) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
    let shapes: [(&str, &[usize]); 2] = [(&down, &[2, COLUMNS]), (&up, &[1800, 2])];
    write_adapter(&net.path("lora"), json!({ "target_modules": ["up_proj"] }), &shapes);
    net.hub.publish("org/lora", "main", Files::of(&net.path("lora")).unwrap());
    let text = |start: &str| {
        format!(
            "merge_method: linear\nmodels:\n- model: {start}a+{start}lora\n  parameters: {{weight: 1.0}}\ndtype: bfloat16\n"
        )
    };
    net.merge(&text("org/"), "out", &[]).succeeded();
    net.merge(&text("./"), "local", &[]).succeeded();
    assert_same(&net, "out", "local");
    net.run(&["info", "org/lora"]).succeeded();
}

#[test]
fn two_at_once_fetch_each_byte_once() {
    let net = three_models(Form { shards: 3, ..PLAIN });
    net.hub.fault("GET cdn", 100, Fault::Slow(16 << 20));
    let start = || {
        let mut command = net.command();
        command.args(["diff", "org/a", "./a"]).spawn().unwrap()
    };
    let both = [start(), start()];
    for child in both {
        let ended: Ended = child.wait_with_output().unwrap().into();
        ended.succeeded();
    }
    let (sent, all) = (net.sent("safetensors"), weight_bytes(&net, "a"));
    assert!(sent <= all + 6 * 65536, "{sent} of {all}");
}

#[test]
fn a_partial_snapshot_is_completed() {
    let net = three_models(PLAIN);
    // As transformers leaves one whose config alone was asked for.
    net.run(&["info", "org/a"]).succeeded();
    let repository = net.repository("org/a");
    let commit = fs::read_to_string(repository.join("refs/main")).unwrap();
    let snapshot = repository.join("snapshots").join(commit);
    fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    assert!(!snapshot.join("model.safetensors").exists());
    net.run(&["diff", "org/a", "./a"]).succeeded();
    assert!(snapshot.join("model.safetensors").exists() && snapshot.join("tokenizer.json").exists());
}
