//! The command line, from outside: what is printed where, exit codes, hints, flags pasted from mergekit, and the files
//! of an output folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use insta::assert_snapshot;
use mergeforge::method::METHODS;
use safetensors::Dtype;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::command::{Ended, ROOT, assert_nothing_left, config, merge, mergeforge, plan, run};
use crate::models::{self, Form, PLAIN, Tensors, stored, tuned, weights};

/// A folder of small checkpoints: `base`, and `a` and `b` tuned from it.
struct Models {
    folder: TempDir,
}

const SHAPES: [(&str, &[usize]); 5] = [
    ("model.embed_tokens.weight", &[8, 4]),
    ("model.layers.0.w.weight", &[4, 4]),
    ("model.layers.1.w.weight", &[4, 4]),
    ("model.norm.weight", &[4]),
    ("lm_head.weight", &[8, 4]),
];

fn tensors(seed: u64) -> Tensors {
    let tensor = |(i, (name, shape)): (u64, &(&str, &[usize]))| {
        let base = weights(shape.iter().product(), i + 1);
        let values = if seed == 0 { base } else { tuned(&base, 100 * seed + i) };
        ((*name).to_string(), stored(Dtype::BF16, shape, &values))
    };
    (0..).zip(&SHAPES).map(tensor).collect()
}

impl Models {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (seed, name) in (0..).zip(["base", "a", "b"]) {
            models::write(&folder.path().join(name), &tensors(seed), PLAIN);
        }
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A config, with `DIR` for the folder.
    fn text(&self, config: &str) -> String {
        config.replace("DIR", self.path().to_str().unwrap())
    }

    fn merge(&self, config: &str, more: &[&str]) -> Ended {
        merge(self.path(), &self.text(config), more)
    }

    fn plan(&self, config: &str, more: &[&str]) -> Ended {
        plan(self.path(), &self.text(config), more)
    }

    fn out(&self) -> PathBuf {
        self.path().join("out")
    }

    fn out_file(&self, name: &str) -> Vec<u8> {
        fs::read(self.out().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn out_config(&self) -> Json {
        serde_json::from_slice(&self.out_file("config.json")).unwrap()
    }

    /// Changes a model's config.json.
    fn edit_config(&self, model: &str, edit: impl Fn(&mut Json)) {
        let path = self.path().join(model).join("config.json");
        let mut config: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }
}

const LINEAR: &str = "merge_method: linear
models:
  - {model: DIR/a, parameters: {weight: 0.5}}
  - {model: DIR/b, parameters: {weight: 0.5}}
";

const DARE_TIES: &str = "merge_method: dare_ties
base_model: DIR/base
parameters: {weight: 0.5, density: 0.5}
models: [{model: DIR/a}, {model: DIR/b}]
";

#[test]
fn methods_are_listed() {
    assert_snapshot!(run(["methods"]).succeeded().stdout, @r"
    linear            weighted average of the models
    average           mean of checkpoints of one run, oldest first, weighted by position (beyond mergekit)
    fisher            average of the models, each element weighted by its importance to each model, which files say (beyond mergekit)
    slerp             spherical interpolation from the base to one other model
    nuslerp           spherical interpolation between two models, or between their differences to a base
    multislerp        spherical interpolation of several models, or of their differences to a base, in one step
    karcher           mean of the models' directions on the sphere, with their mean length
    model_stock       average of the models, drawn towards the base by the angle between their task vectors
    task_arithmetic   the models' differences to the base, weighted and added to it
    ties              task vectors trimmed to their largest magnitudes, a sign elected per element, the agreeing averaged
    dare_linear       task vectors thinned out at random, rescaled, weighted and added to the base
    dare_ties         task vectors thinned out at random and rescaled, a sign elected per element, the agreeing added
    breadcrumbs       task vectors without their largest and smallest magnitudes, weighted and added to the base
    breadcrumbs_ties  task vectors without their largest and smallest magnitudes, a sign elected per element, the agreeing added
    della             task vectors thinned out at random, small magnitudes more than large ones, a sign elected per element, the agreeing averaged
    della_linear      task vectors thinned out at random, small magnitudes more than large ones, rescaled, weighted and added to the base
    sce               the elements in which task vectors differ most, weighted by their squares, those of the minority's sign erased
    ram               changes that several models share averaged, those of one model taken whole
    ramplus_tl        as ram, with the changes of one model enlarged the more of its changes are shared
    nearswap          the base, drawn towards the other model where the two are near each other
    arcee_fusion      the other model's elements where their change matters most, the base elsewhere
    magmax            of each element the task vector with the largest magnitude (beyond mergekit)
    emr               EMR's elected task vector: of each element the elected sign, and the largest magnitude that has it (beyond mergekit)
    consensus         the sum of the task vectors where enough of them matter by their TALL masks, the base elsewhere (beyond mergekit)
    passthrough       one model's tensors as they are; with slices, layers stacked from several models
    ");
}

#[test]
fn a_method_is_explained() {
    assert_snapshot!(run(["methods", "ties"]).succeeded().stdout, @r"
    ties: task vectors trimmed to their largest magnitudes, a sign elected per element, the agreeing averaged

        vᵢ = wᵢ·top_k(xᵢ − base); s = sign Σ vᵢ; out = base + λ·Σ_{sign vᵢ = s} vᵢ / Σ_{sign vᵢ = s} wᵢ

    paper       Yadav et al., TIES-Merging (NeurIPS 2023) <https://arxiv.org/abs/2306.01708>
    evidence    on language models plain task arithmetic was the most reliable method of a comparison (arXiv 2511.21437): compare with it
    base_model  required
    models      1 to 13

    parameters
      weight       (per model but base, required) the task vector's weight
      density      (per model but base, default 1) the share of the task vector's elements that is kept
      normalize    (shared, default true)         divide by the sum of the weights (of the agreeing models, with a vote)
      rescale      (shared, default false)        scale what is kept so that the task vector's L1 norm stays
      lambda       (shared, default 1)            a factor for the merged task vector
      int8_mask    (shared, default false)        accepted for mergekit's sake; it never changed a result
      balance      (shared, default none)         weights are divided by the task vectors' norms to this power, relative to the norms' mean: 1 is NAN (arXiv 2505.16148)
      lines_alpha  (shared, default none)         LiNeS (arXiv 2410.17146): lambda is multiplied by alpha + beta * depth, from alpha at the first layer on
      lines_beta   (shared, default none)         LiNeS: what the last layer has more than the first; 1 - alpha where it is null
    ");
    run(["methods", "tied"])
        .failed(2, &["error: there is no merge method `tied`", "hint: did you mean `ties`?"]);
}

#[test]
fn methods_are_listed_as_json() {
    let all: Json = serde_json::from_str(&run(["methods", "--json"]).succeeded().stdout).unwrap();
    let names: Vec<&str> = all.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, METHODS.iter().map(|method| method.name).collect::<Vec<_>>());
    let one: Json = serde_json::from_str(&run(["methods", "slerp", "--json"]).succeeded().stdout).unwrap();
    assert_eq!(one[0]["parameters"][0]["name"], "t");
}

#[test]
fn a_plan_is_printed() {
    assert_snapshot!(run(["plan", "examples/ties.yml", "-j2", "--host-memory=64MiB"]).succeeded().stdout, @r"
    method   ties: task vectors trimmed to their largest magnitudes, a sign elected per element, the agreeing averaged
    model    examples/models/medical
    model    examples/models/chat
    model    examples/models/base  (base, gives config and tokenizer)
    tensors  39 merged, 0 copied
    read     3.6 MB of inputs, some of it again where it does not stay in memory
    write    1.2 MB in 1 file(s)
    memory   at most 67.1 MB beside the program: 2 threads, up to 3.6 MB of inputs held between sweeps
    eval     of the result on the CPU takes 9.4 MB of memory for a window of 256 tokens; for more at a time up to --host-memory
    copied   3 file(s) of examples/models/base: generation_config.json, tokenizer.json, tokenizer_config.json

    examples/models/medical: weight 0.5 density 0.5; examples/models/chat: weight 0.5 density 0.5; examples/models/base: base; normalize true; rescale false; lambda 1; int8_mask false
         1 × lm_head.weight  BF16 [1024, 96]
         1 × model.embed_tokens.weight  BF16 [1024, 96]
         4 × model.layers.*.input_layernorm.weight  BF16 [96]
         4 × model.layers.*.mlp.down_proj.weight  BF16 [96, 256]
         4 × model.layers.*.mlp.gate_proj.weight  BF16 [256, 96]
         4 × model.layers.*.mlp.up_proj.weight  BF16 [256, 96]
         4 × model.layers.*.post_attention_layernorm.weight  BF16 [96]
         4 × model.layers.*.self_attn.k_proj.weight  BF16 [48, 96]
         4 × model.layers.*.self_attn.o_proj.weight  BF16 [96, 96]
         4 × model.layers.*.self_attn.q_proj.weight  BF16 [96, 96]
         4 × model.layers.*.self_attn.v_proj.weight  BF16 [48, 96]
         1 × model.norm.weight  BF16 [96]
    ");
}

#[test]
fn a_plan_says_what_will_be_read() {
    let plan =
        |more: &[&str]| run(["plan", "examples/ties.yml", "-j1"].iter().chain(more)).succeeded().stdout;
    let again = "3.6 MB of inputs, some of it again where it does not stay in memory\n";
    assert!(plan(&[]).contains(&format!("read     {again}")));
    let models = Models::new();
    let once = models.plan(LINEAR, &[]).succeeded().stdout;
    assert!(once.contains("read     400 bytes of inputs\n") && !once.contains("again"), "{once}");
    let merged = run(["merge", "examples/ties.yml", models.out().to_str().unwrap()]).succeeded().stderr;
    assert!(merged.contains(&format!("reads {again}")), "{merged}");
    assert!(merged.contains(" read from inputs of 3.6 MB, 1.2 MB written)\n"), "{merged}");
}

#[test]
fn a_plan_is_printed_as_json() {
    let ended = run(["plan", "examples/ties.yml", "--json"]).succeeded();
    assert_eq!(ended.stderr, "");
    let plan: Json = serde_json::from_str(&ended.stdout).unwrap();
    let tensors = plan["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 39);
    let chosen = json!({
        "method": plan["method"], "seed": plan["seed"], "models": plan["models"], "donor": plan["donor"],
        "read_bytes": plan["read_bytes"], "write_bytes": plan["write_bytes"], "left_out": plan["left_out"],
        "a norm": tensors.iter().find(|tensor| tensor["name"] == "model.norm.weight"),
    });
    assert_snapshot!(format!("{chosen:#}"), @r#"
    {
      "method": "ties",
      "seed": 0,
      "models": [
        "examples/models/medical",
        "examples/models/chat",
        "examples/models/base"
      ],
      "donor": "examples/models/base",
      "read_bytes": 3617856,
      "write_bytes": 1210024,
      "left_out": [],
      "a norm": {
        "name": "model.norm.weight",
        "dtype": "BF16",
        "shape": [
          96
        ],
        "file": "model.safetensors",
        "action": {
          "merge": [
            {
              "model": "examples/models/medical",
              "tensor": "model.norm.weight",
              "base": false,
              "parameters": {
                "weight": 0.5,
                "density": 0.5
              }
            },
            {
              "model": "examples/models/chat",
              "tensor": "model.norm.weight",
              "base": false,
              "parameters": {
                "weight": 0.5,
                "density": 0.5
              }
            },
            {
              "model": "examples/models/base",
              "tensor": "model.norm.weight",
              "base": true,
              "parameters": {}
            }
          ],
          "parameters": {
            "normalize": true,
            "rescale": false,
            "lambda": 1.0,
            "int8_mask": false,
            "balance": null,
            "lines_alpha": null,
            "lines_beta": null
          },
          "sweeps_most": 12
        }
      }
    }
    "#);
}

#[test]
fn a_verbose_plan_names_every_tensor() {
    let models = Models::new();
    let reported = models.plan(LINEAR, &["-v"]).succeeded().stdout;
    SHAPES.iter().for_each(|(name, _)| assert!(reported.contains(&format!("{name}\n")), "{reported}"));
}

#[test]
fn help_lists_commands_and_flags() {
    let help = run(["--help"]).succeeded().stdout;
    for part in ["merge ", "plan ", "methods ", "devices ", "check ", "bench ", "130 interrupted", "NO_COLOR"]
    {
        assert!(help.contains(part), "{part}");
    }
    let help = run(["merge", "--help"]).succeeded().stdout;
    for part in [
        "<CONFIG>",
        "<OUT>",
        "--strict",
        "--allow-crimes",
        "--out-shard-size",
        "--random-seed",
        "--device",
        "--threads",
        "--host-memory",
        "--device-memory",
        "--copy-tokenizer",
        "--no-copy-tokenizer",
        "--write-model-card",
        "--no-write-model-card",
        "--quiet",
        "--json",
        "--trace",
    ] {
        assert!(help.contains(part), "{part}");
    }
    // mergekit's flags are taken, not offered.
    for part in ["--cuda", "--lazy-unpickle", "--multi-gpu", "--no-quiet", "--chunk-tiles"] {
        assert!(!help.contains(part), "{part}");
    }
    assert!(run(["--version"]).succeeded().stdout.starts_with("mergeforge "));
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(ROOT).join("examples")).unwrap().map(|entry| entry.unwrap().path());
    let configs: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "yml")).collect();
    assert!(configs.len() >= 6);
    configs
}

#[test]
fn every_example_merges() {
    let folder = tempfile::tempdir().unwrap();
    for example in examples() {
        let out = folder.path().join(example.file_stem().unwrap());
        let ended = mergeforge().arg("merge").args([&example, &out]).arg("-q").output().unwrap();
        let ended = Ended::from(ended).succeeded();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""), "{}", example.display());
        let merged = models::read(&out);
        assert_eq!(merged.len(), 39);
        assert!(merged.values().all(|tensor| tensor.dtype == Dtype::BF16));
        assert_eq!(fs::read(out.join("mergekit_config.yml")).unwrap(), fs::read(&example).unwrap());
        let donor = Path::new(ROOT).join("examples/models/base");
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert_eq!(fs::read(out.join(file)).unwrap(), fs::read(donor.join(file)).unwrap(), "{file}");
        }
    }
}

#[test]
fn exit_codes_tell_the_kinds_of_failure_apart() {
    let models = Models::new();
    models.plan(LINEAR, &[]).succeeded();
    models.merge("merge_method: nothing", &[]).failed(2, &["error: "]);
    fs::remove_file(models.path().join("a/model.safetensors")).unwrap();
    models.merge(LINEAR, &[]).failed(3, &["error: "]);
    assert_nothing_left(models.path());
    let models = Models::new();
    fs::create_dir(models.path().join("out.partial")).unwrap();
    fs::write(models.path().join("out.partial/mine"), "precious").unwrap();
    models.merge(LINEAR, &[]).failed(4, &["error: ", "out.partial is in the way", "hint: move or delete it"]);
    assert_eq!(fs::read(models.path().join("out.partial/mine")).unwrap(), b"precious");
    // The parser's own errors are errors of the command.
    run(["merge"]).failed(2, &["<CONFIG>"]);
    run(["marge"]).failed(2, &["merge"]);
}

/// Checkpoints that do not fit the others, for errors that need one.
fn misfits(models: &Models) {
    let mut wide = tensors(3);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        wide.insert(name.into(), stored(Dtype::BF16, &[9, 4], &weights(36, 5)));
    }
    models::write(&models.path().join("vocabulary"), &wide, PLAIN);
    let mut narrow = tensors(3);
    narrow.insert("model.layers.1.w.weight".into(), stored(Dtype::BF16, &[4, 2], &weights(8, 5)));
    models::write(&models.path().join("narrow"), &narrow, PLAIN);
    let mut more = tensors(3);
    more.insert("model.extra.weight".into(), stored(Dtype::BF16, &[2], &weights(2, 5)));
    models::write(&models.path().join("more"), &more, PLAIN);
    let mut less = tensors(3);
    less.remove("model.layers.1.w.weight");
    models::write(&models.path().join("less"), &less, PLAIN);
}

/// Errors in configs: what is wrong, and the config.
const WRONG: &[(&str, &str)] = &[
    ("unknown method", "merge_method: tise\nmodels: [{model: DIR/a}]\n"),
    ("method like none", "merge_method: averaging_of_everything\nmodels: [{model: DIR/a}]\n"),
    (
        "missing weight",
        "merge_method: linear\nmodels:\n  - {model: DIR/a, parameters: {weight: 1}}\n  - model: DIR/b\n",
    ),
    (
        "not a number",
        "merge_method: linear\nmodels:\n  - {model: DIR/a, parameters: {weight: much}}\n  - model: DIR/b\n",
    ),
    (
        "neither true nor false",
        "merge_method: linear\nparameters: {weight: 1, normalize: maybe}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n",
    ),
    (
        "a method under another key",
        "merge_methods: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n",
    ),
    (
        "a weight beside its model",
        "merge_method: linear\nmodels:\n  - model: DIR/a\n    weight: 1\n  - model: DIR/b\n    weight: 1\n",
    ),
    (
        "missing base_model",
        "merge_method: ties\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n",
    ),
    (
        "duplicate model",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/a}]\n",
    ),
    (
        "no such folder",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/nothing}]\n",
    ),
    (
        "not in the cache",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: some/model}]\n",
    ),
    (
        "several not there",
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n  - model: some/model\n  - model: DIR/nothing\n  - model: DIR/a\n  - model: DIR/neither\n",
    ),
    (
        "layers past the end",
        "merge_method: passthrough\nslices:\n  - sources: [{model: DIR/a, layer_range: [0, 2]}]\n  - sources: [{model: DIR/b, layer_range: [1, 9]}]\n",
    ),
    (
        "another vocabulary",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/vocabulary}]\n",
    ),
    (
        "another shape",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/narrow}]\n",
    ),
    (
        "a tensor in one model",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/more}]\n",
    ),
    (
        "fewer layers",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: DIR/a}, {model: DIR/less}]\n",
    ),
    (
        "too many models",
        "merge_method: slerp\nbase_model: DIR/base\nparameters: {t: 0.5}\nmodels: [{model: DIR/a}, {model: DIR/b}]\n",
    ),
    ("not YAML", "merge_method: [linear\nmodels: }"),
    ("nothing", ""),
    (
        "weights that cancel",
        "merge_method: linear\nmodels:\n  - {model: DIR/a, parameters: {weight: 1}}\n  - {model: DIR/b, parameters: {weight: -1}}\n",
    ),
];

#[test]
fn what_is_wrong_with_a_config_is_reported_with_the_way_out() {
    let models = Models::new();
    misfits(&models);
    let mut all = String::new();
    for (what, config) in WRONG {
        // The plan finds it, and the merge says the same before it makes anything.
        let planned = models.plan(config, &[]);
        let merged = models.merge(config, &[]).failed(2, &[]);
        assert_eq!((planned.code, &planned.stderr), (Some(2), &merged.stderr), "{what}");
        assert_nothing_left(models.path());
        all += &format!("-- {what}\n{}", merged.stderr);
    }
    let reported = all.replace(models.path().to_str().unwrap(), "DIR");
    assert_snapshot!(reported, @r#"
    -- unknown method
    error: DIR/config.yml:1:15: there is no merge method `tise`
    hint: did you mean `ties`?
    -- method like none
    error: DIR/config.yml:1:15: there is no merge method `averaging_of_everything`
    hint: the methods are linear, average, fisher, slerp, nuslerp, multislerp, karcher, model_stock, task_arithmetic, ties, dare_linear, dare_ties, breadcrumbs, breadcrumbs_ties, della, della_linear, sce, ram, ramplus_tl, nearswap, arcee_fusion, magmax, emr, consensus, passthrough
    -- missing weight
    error: DIR/config.yml:4:12: linear needs `weight`, and DIR/b has none
    hint: add `parameters: {weight: …}` to the model, or to the whole config for all models
    -- not a number
    error: DIR/config.yml:3:53: `weight` takes a finite number, not `much`
    hint: for example `weight: 0.5`
    error: DIR/config.yml:4:12: linear needs `weight`, and DIR/b has none
    hint: add `parameters: {weight: …}` to the model, or to the whole config for all models
    -- neither true nor false
    error: DIR/config.yml:2:36: `normalize` takes true or false, not `maybe`
    hint: for example `normalize: true`
    -- a method under another key
    error: DIR/config.yml:1:1: `merge_method` is missing
    hint: did you mean `merge_method` by `merge_methods`, at 1:1?
    -- a weight beside its model
    warning: DIR/config.yml:4:5: unknown key `weight` (twice; it belongs under `parameters:`; mergekit ignores it here too) is ignored
    error: DIR/config.yml:3:12: linear needs `weight`, and DIR/a has none
    hint: DIR/config.yml:4:5: move `weight` under `parameters:`
    error: DIR/config.yml:5:12: linear needs `weight`, and DIR/b has none
    hint: DIR/config.yml:6:5: move `weight` under `parameters:`
    -- missing base_model
    error: DIR/config.yml:1:15: ties needs a base_model
    hint: add `base_model:`, the checkpoint that the others were trained from
    -- duplicate model
    error: DIR/config.yml:3:46: DIR/a is listed twice
    hint: list each model once
    -- no such folder
    error: DIR/config.yml:3:46: there is no model folder "DIR/nothing"
    hint: the folder DIR is there, and has no "nothing" in it
    -- not in the cache
    error: DIR/config.yml:3:46: model "some/model" not found: there is no folder of that name here, and the cache has no /nowhere/models--some--model
    hint: run it where the Hub can be reached, without --offline and HF_HUB_OFFLINE, or give a folder
    -- several not there
    error: DIR/config.yml:4:12: model "some/model" not found: there is no folder of that name here, and the cache has no /nowhere/models--some--model
    hint: run it where the Hub can be reached, without --offline and HF_HUB_OFFLINE, or give a folder
    error: DIR/config.yml:5:12: there is no model folder "DIR/nothing"
    hint: the folder DIR is there, and has no "nothing" in it
    error: DIR/config.yml:7:12: there is no model folder "DIR/neither"
    hint: the folder DIR is there, and has no "neither" in it
    -- layers past the end
    error: DIR/config.yml:4:55: layer_range [1, 9] goes past the end: DIR/b has 2 layers
    hint: the last range can end at 2
    -- another vocabulary
    error: tensor lm_head.weight: it is [8, 4] in DIR/a and [9, 4] in DIR/vocabulary
    error: tensor model.embed_tokens.weight: it is [8, 4] in DIR/a and [9, 4] in DIR/vocabulary
    hint: the models' vocabularies differ: `tokenizer_source: union` aligns them by token, --unsafe-truncate-embeddings cuts them to the fewest rows
    -- another shape
    error: tensor model.layers.1.w.weight: it is [4, 4] in DIR/a and [4, 2] in DIR/narrow
    hint: only models of the same architecture and size can be merged
    -- a tensor in one model
    error: tensor model.extra.weight: DIR/more has it, DIR/a has not
    hint: a tensor that some models lack is copied if the base model has it, or if several have it and agree; --tensor-union copies it all the same, and --tensor-intersection leaves it out; check that the models have the same architecture
    -- fewer layers
    error: DIR/less has 1 layers in model.layers, DIR/a has 2
    hint: pick the layers to merge with `slices:` and `layer_range`
    -- too many models
    error: DIR/config.yml:1:15: slerp merges exactly 2 models (the base included), not 3
    hint: a base_model that is not listed counts as one more: name one of the models listed, or list one less
    -- not YAML
    error: DIR/config.yml:1:15: the `[` here is not closed as it should be
    hint: close it with `]`; a text that begins with a bracket goes into quotes
    -- nothing
    error: DIR/config.yml:1:1: the config is empty
    hint: the least is `merge_method: linear` and `models:` with a list of `- model: path`
    -- weights that cancel
    error: DIR/config.yml:1:15: linear: the weights add up to 0, and normalize divides by their sum
    hint: set normalize: false, or give weights with another sum
    "#);
}

#[test]
fn a_config_that_is_not_there_or_no_text_is_reported() {
    let models = Models::new();
    let ended = run(["plan", "no/such.yml"]);
    assert!(ended.stderr.contains("cannot read no/such.yml: No such file"), "{}", ended.stderr);
    let path = config(models.path(), "");
    fs::write(&path, [b'a', 0xff, 0]).unwrap();
    run([Path::new("plan"), &path]).failed(2, &["config.yml:1:2: from here on this is not text in UTF-8"]);
    let ended = run([Path::new("plan"), models.path()]);
    assert!(ended.stderr.contains("Is a directory"), "{}", ended.stderr);
}

#[test]
fn a_slip_of_a_key_is_a_warning_and_strictly_an_error() {
    let models = Models::new();
    let slip = format!("{LINEAR}dtpye: bfloat16\n");
    let reported = ["config.yml:5:1: ", "unknown key `dtpye` (did you mean `dtype`?) is ignored"];
    for more in [&[][..], &["-q"]] {
        let ended = models.merge(&slip, more).succeeded();
        assert!(ended.stderr.contains("warning: "), "{}", ended.stderr);
        reported.iter().for_each(|part| assert!(ended.stderr.contains(part), "{}", ended.stderr));
        fs::remove_dir_all(models.out()).unwrap();
    }
    models.merge(&slip, &["--strict"]).failed(2, &reported).failed(2, &["--strict makes them errors"]);
    assert_nothing_left(models.path());
    models.plan(&slip, &["--strict"]).failed(2, &reported);
    models.plan(LINEAR, &["--strict"]).succeeded();
}

#[test]
fn models_of_other_architectures_are_a_crime_that_can_be_allowed() {
    let models = Models::new();
    models.edit_config("b", |config| config["architectures"] = json!(["MistralForCausalLM"]));
    let reported = "the models have different architectures: LlamaForCausalLM in ";
    models.plan(LINEAR, &[]).failed(2, &["error: ", reported, "hint: ", "--allow-crimes"]);
    models.merge(LINEAR, &["--no-allow-crimes"]).failed(2, &["error: ", reported]);
    assert_nothing_left(models.path());
    let allowed = models.merge(LINEAR, &["--allow-crimes"]).succeeded();
    assert!(allowed.stderr.contains(&format!("warning: {reported}")), "{}", allowed.stderr);
    models.plan(LINEAR, &["--allow-crimes", "--strict"]).failed(2, &["--strict makes them errors"]);
}

#[test]
fn a_parameter_that_is_not_read_is_a_warning() {
    let models = Models::new();
    let unknown =
        LINEAR.replace("{weight: 0.5}}\n  - {model: DIR/b", "{weight: 0.5, wieght: 1}}\n  - {model: DIR/b");
    let ended = models.plan(&unknown, &[]).succeeded();
    for part in [
        "warning: ",
        "config.yml:3:",
        "linear has no parameter `wieght`: it is ignored",
        "did you mean `weight`?",
    ] {
        assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
    }
    models.plan(&unknown, &["--strict"]).failed(2, &["no parameter `wieght`"]);
    let misplaced = DARE_TIES.replace("{model: DIR/a}", "{model: DIR/a, parameters: {lambda: 2}}");
    models
        .plan(&misplaced, &["--strict"])
        .failed(2, &["`lambda` under a model's own parameters", "outer `parameters`"]);
}

#[test]
fn bad_flags_are_reported() {
    let models = Models::new();
    for size in ["5X", "0", "-1", "GB", "1e999"] {
        let flag = format!("--out-shard-size={size}");
        models.merge(LINEAR, &[&flag]).failed(2, &["--out-shard-size <SIZE>"]);
    }
    models
        .merge(LINEAR, &["--device", "foo"])
        .failed(2, &["--device foo: there is no such device", "hint: "]);
    models
        .merge(LINEAR, &["--host-memory", "1kB"])
        .failed(2, &["--host-memory 1000 bytes: this merge needs at least ", " bytes\nhint: "]);
    models.merge(LINEAR, &["--host-memory", "512B"]).failed(2, &["--host-memory 512 bytes: "]);
    for (device, maker) in [("mps", "Apple"), ("xpu", "Intel"), ("xpu:0", "Intel")] {
        let hint = format!("hint: --device wgpu computes on GPUs of {maker}");
        let reported = [&format!("--device {device}: there is no such device")[..], &hint];
        models.merge(LINEAR, &["--device", device]).failed(2, &reported);
        run(["check", "--device", device]).failed(2, &reported);
    }
    models.merge(LINEAR, &["--random-seed=-1"]).failed(2, &["--random-seed <N>"]);
    models.merge(LINEAR, &["--threads=many"]).failed(2, &["--threads <N>"]);
    assert_nothing_left(models.path());
}

#[test]
fn the_output_must_be_free_and_apart_from_the_inputs() {
    let models = Models::new();
    fs::create_dir(models.out()).unwrap();
    fs::write(models.out().join("kept"), "x").unwrap();
    models.merge(LINEAR, &[]).failed(2, &["exists and is not empty", "hint: "]);
    models.plan(LINEAR, &["--out", models.out().to_str().unwrap()]).failed(2, &["exists and is not empty"]);
    fs::remove_file(models.out().join("kept")).unwrap();
    // An empty folder is as good as none.
    models.plan(LINEAR, &["--out", models.out().to_str().unwrap()]).succeeded();
    models.merge(LINEAR, &[]).succeeded();
    let inside = models.path().join("a/inside");
    models.plan(LINEAR, &["--out", inside.to_str().unwrap()]).failed(2, &["overlap", "hint: "]);
}

#[test]
fn folders_that_are_made_on_the_way_to_the_output_are_noted() {
    let models = Models::new();
    let config = config(models.path(), &models.text(LINEAR));
    let merge = |out: &str, more: &str| {
        let out = models.path().join(out);
        run([Path::new("merge"), &config, &out, Path::new(more)]).succeeded().stderr
    };
    let reported = merge("new/deep/out", "--no-cache");
    let shown = models.path().display();
    assert!(
        reported.contains(&format!(
            "note: {shown}/new does not exist: {shown}/new/deep is made for the output\n"
        )),
        "{reported}"
    );
    assert!(!merge("new/deep/other", "--no-cache").contains("does not exist"));
    let reported = merge("other/out", "--no-cache");
    assert!(
        reported.contains(&format!("note: {shown}/other does not exist: it is made for the output\n")),
        "{reported}"
    );
    assert_eq!(merge("newer/out", "--quiet"), "");
}

#[test]
fn standard_output_carries_data_alone() {
    let models = Models::new();
    let ended = models.merge(LINEAR, &[]).succeeded();
    assert_eq!(ended.stdout, "");
    assert!(
        ended.stderr.contains("linear of ") && ended.stderr.contains("5 tensors written"),
        "{}",
        ended.stderr
    );
    fs::remove_dir_all(models.out()).unwrap();
    let ended = models.merge(LINEAR, &["--quiet"]).succeeded();
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    fs::remove_dir_all(models.out()).unwrap();
    let ended = models.merge(LINEAR, &["--json"]).succeeded();
    let mut manifest: Json = serde_json::from_str(&ended.stdout).unwrap();
    let run = manifest.as_object_mut().unwrap().shift_remove("run").unwrap();
    assert_eq!((run["device"].as_str(), run["threads"].is_u64()), (Some("cpu"), true), "{run}");
    assert_eq!(manifest, serde_json::from_slice::<Json>(&models.out_file("mergeforge.json")).unwrap());
}

/// Under `--json` standard error is for programs too: an object a line, the last one the error.
#[test]
fn messages_are_objects_under_json() {
    let models = Models::new();
    let lines = |ended: &Ended| -> Vec<Json> {
        ended
            .stderr
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    };
    let warned = models.merge(&format!("{LINEAR}dtpye: x\n"), &["--json", "--cuda"]).succeeded();
    let reported = lines(&warned);
    let levels: Vec<&str> = reported.iter().map(|line| line["level"].as_str().unwrap()).collect();
    let of = |level: &str| reported.iter().find(|line| line["level"] == level).unwrap();
    assert!(levels.contains(&"info") && !levels.contains(&"error"), "{levels:?}");
    assert!(of("warning")["message"].as_str().unwrap().contains("unknown key `dtpye`"));
    assert!(of("note")["message"].as_str().unwrap().starts_with("--cuda: "));
    serde_json::from_str::<Json>(&warned.stdout).unwrap();
    for (ended, kind, code) in [
        (models.plan("merge_method: tise\nmodels: [{model: DIR/a}]\n", &["--json"]), "config", 2),
        (models.merge(LINEAR, &["--json"]), "config", 2),
        (run(["methods", "tise", "--json"]), "config", 2),
        (models.merge(LINEAR, &["--json", "--threads=many"]), "config", 2),
        (models.merge(LINEAR, &["--json", "--device=cuda:99"]), "device", 5),
    ] {
        let ended = ended.failed(code, &[]);
        let reported = lines(&ended);
        let error = reported.last().unwrap();
        assert_eq!(
            (&error["level"], &error["kind"], &error["exit_code"]),
            (&json!("error"), &json!(kind), &json!(code))
        );
        assert!(!error["message"].as_str().unwrap().starts_with("error"), "{error}");
        assert_eq!(reported.iter().filter(|line| line["level"] == "error").count(), 1);
    }
    let missing = LINEAR.replace("DIR/a", "some/model").replace("DIR/b", "./nowhere");
    let hints: Vec<Json> =
        lines(&models.plan(&missing, &["--json"])).iter().map(|line| line["hint"].clone()).collect();
    assert!(hints.len() == 2 && hints[0] != hints[1] && hints.iter().all(Json::is_string), "{hints:?}");
    let usage = run(["merge", "x.yml", "--json"]).stderr;
    let message = r#""message":"the following required arguments were not provided: <OUT>""#;
    assert!(usage.contains(message), "{usage}");
    let hint = run(["methods", "tise", "--json"]).stderr;
    assert!(hint.contains(r#""hint":"did you mean `ties`?""#), "{hint}");
    run(["merge", "--help", "--json"]).succeeded();
}

/// Runs the program on a terminal, where one can be had.
fn on_a_terminal(arguments: &str, no_color: Option<&str>) -> Option<String> {
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_mergeforge"));
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .current_dir(ROOT)
        .env_remove("NO_COLOR")
        .stdin(std::process::Stdio::null());
    no_color.iter().for_each(|value| {
        script.env("NO_COLOR", value);
    });
    String::from_utf8(script.output().ok()?.stdout).ok()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let escape = '\x1b';
    let models = Models::new();
    for no_color in [None, Some("1"), Some("")] {
        let mut command = mergeforge();
        no_color.iter().for_each(|value| {
            command.env("NO_COLOR", value);
        });
        let ended = Ended::from(command.args(["methods", "nothing"]).output().unwrap());
        assert!(!ended.stderr.contains(escape), "{}", ended.stderr);
    }
    assert!(!models.merge(LINEAR, &[]).succeeded().stderr.contains(escape));
    let Some(coloured) = on_a_terminal("methods nothing", None) else {
        return eprintln!("not run: there is no `script` to make a terminal");
    };
    assert!(coloured.contains(escape), "{coloured}");
    assert!(
        on_a_terminal("methods nothing", Some("")).unwrap().contains(escape),
        "an empty NO_COLOR is none"
    );
    assert!(!on_a_terminal("methods nothing", Some("1")).unwrap().contains(escape));
}

#[test]
fn flags_of_mergekit_are_taken_with_a_note() {
    let models = Models::new();
    let flags = "--cuda --lazy-unpickle --copy-tokenizer --out-shard-size 5B --random-seed 3 --low-cpu-memory --allow-crimes --device cpu";
    let ended = models.merge(LINEAR, &flags.split(' ').collect::<Vec<_>>()).succeeded();
    for flag in ["--cuda", "--lazy-unpickle", "--low-cpu-memory"] {
        assert!(ended.stderr.contains(&format!("note: {flag}: ")), "{}", ended.stderr);
    }
    assert_eq!(ended.stderr.matches("note: ").count(), 3, "{}", ended.stderr);
    let manifest: Json = serde_json::from_slice(&models.out_file("mergeforge.json")).unwrap();
    assert_eq!(manifest["seed"], 3);
}

/// Whatever flags of mergekit's a command line has, in either form, it merges; each answer names one flag.
#[test]
fn every_flag_of_mergekit_is_taken_in_both_forms() {
    const SWITCHES: &[&str] = &[
        "allow-crimes",
        "unsafe-truncate-embeddings",
        "trust-remote-code",
        "quiet",
        "cuda",
        "low-cpu-memory",
        "lazy-unpickle",
        "read-to-gpu",
        "multi-gpu",
        "gpu-rich",
        "async-write",
        "copy-tokenizer",
        "clone-tensors",
        "write-model-card",
        "safe-serialization",
    ];
    let models = Models::new();
    let on: Vec<String> = SWITCHES.iter().map(|switch| format!("--{switch}")).collect();
    let off: Vec<String> = SWITCHES.iter().map(|switch| format!("--no-{switch}")).collect();
    let settings = "--write-threads 2 --transformers-cache x --lora-merge-cache x --lora-merge-dtype float16 -v -j 1 --random-seed 1 --out-shard-size 5B --device cpu";
    let merge = |flags: &[&[String]]| {
        let flags = flags.iter().copied().flatten().map(String::as_str).chain(settings.split(' '));
        let ended = models.merge(LINEAR, &flags.collect::<Vec<_>>()).succeeded();
        fs::remove_dir_all(models.out()).unwrap();
        ended.stderr
    };
    let reported = merge(&[&off, &on]);
    for flag in ["multi-gpu", "read-to-gpu", "lora-merge-dtype", "write-threads"] {
        assert_eq!(reported.matches(&format!("note: --{flag}: ")).count(), 1, "{flag} in {reported}");
    }
    assert!(!reported.contains(" written to"), "--quiet came last: {reported}");
    let reported = merge(&[&on, &off]);
    assert!(
        reported.contains("note: --no-cuda: ") && reported.contains("note: --no-safe-serialization: "),
        "{reported}"
    );
    assert!(!reported.contains("--multi-gpu") && reported.contains(" written to"), "{reported}");
}

#[test]
fn a_seed_decides_the_random_masks() {
    let models = Models::new();
    let with = |seed: &[&str]| {
        models.merge(DARE_TIES, seed).succeeded();
        let weights = models.out_file("model.safetensors");
        fs::remove_dir_all(models.out()).unwrap();
        weights
    };
    let one = with(&["--random-seed", "1"]);
    assert!(one == with(&["--seed", "1"]));
    assert!(one != with(&["--random-seed", "2"]));
    assert!(with(&[]) == with(&["--random-seed", "0"]));
}

#[test]
fn the_shard_size_decides_the_files() {
    let models = Models::new();
    models.merge(LINEAR, &["--out-shard-size", "1"]).succeeded();
    let files = models::safetensors_files(&models.out());
    assert_eq!(files.len(), SHAPES.len(), "a tensor is never split");
    let index: Json = serde_json::from_slice(&models.out_file("model.safetensors.index.json")).unwrap();
    let map: BTreeMap<String, String> = serde_json::from_value(index["weight_map"].clone()).unwrap();
    assert_eq!(map.len(), SHAPES.len());
    assert!(map.values().all(|file| models.out().join(file).is_file()));
    let bytes: usize = models::read(&models.out()).values().map(|tensor| tensor.bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes);
}

/// Files that go along with a model, and some that do not.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modeling_own.py",
    "own.tiktoken",
    "additional_chat_templates/tools.jinja",
];
const STRANGERS: &[&str] =
    &["pytorch_model.bin", "training_args.bin", ".gitattributes", "README.md", "notes.txt"];

#[test]
fn companion_files_are_copied_byte_for_byte_or_left_out() {
    let models = Models::new();
    let donor = models.path().join("base");
    fs::create_dir(donor.join("additional_chat_templates")).unwrap();
    for name in COMPANIONS.iter().chain(STRANGERS) {
        fs::write(donor.join(name), format!("{name}\r\n\0\u{fffd} of the donor")).unwrap();
        // Another model's files of the same names stay where they are.
        if !name.contains('/') {
            fs::write(models.path().join("a").join(name), "of another").unwrap();
        }
    }
    models.merge(DARE_TIES, &[]).succeeded();
    for name in COMPANIONS {
        assert_eq!(models.out_file(name), fs::read(donor.join(name)).unwrap(), "{name}");
    }
    let card = String::from_utf8(models.out_file("README.md")).unwrap();
    assert!(card.contains("dare_ties") && !card.contains("of the donor"));
    STRANGERS
        .iter()
        .filter(|name| **name != "README.md")
        .for_each(|name| assert!(!models.out().join(name).exists()));
    fs::remove_dir_all(models.out()).unwrap();
    models.merge(DARE_TIES, &["--no-copy-tokenizer", "--no-write-model-card"]).succeeded();
    let mut left: Vec<_> =
        fs::read_dir(models.out()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["config.json", "mergeforge.json", "mergekit_config.yml", "model.safetensors"]);
    assert_eq!(models.out_file("mergekit_config.yml"), models.text(DARE_TIES).into_bytes());
}

#[test]
fn the_config_names_the_stored_type_and_keeps_the_rest() {
    let models = Models::new();
    models.edit_config("base", |config| config["quirk"] = json!({"rope": [1, 2.5], "deep": null}));
    for (line, dtype) in [
        ("", "bfloat16"),
        ("dtype: float16\n", "float16"),
        ("dtype: float16\nout_dtype: float32\n", "float32"),
    ] {
        models.merge(&format!("{DARE_TIES}{line}"), &["-q"]).succeeded();
        let config = models.out_config();
        assert_eq!((&config["torch_dtype"], &config["num_hidden_layers"]), (&json!(dtype), &json!(2)));
        assert_eq!(config["quirk"], json!({"rope": [1, 2.5], "deep": null}));
        assert_eq!(config["tie_word_embeddings"], false);
        let keys: Vec<&String> = config.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "architectures",
                "model_type",
                "torch_dtype",
                "num_hidden_layers",
                "tie_word_embeddings",
                "quirk"
            ]
        );
        fs::remove_dir_all(models.out()).unwrap();
    }
}

#[test]
fn stacked_layers_are_counted_and_renumbered() {
    let models = Models::new();
    let stacked = "merge_method: passthrough
slices:
  - sources: [{model: DIR/a, layer_range: [0, 2]}]
  - sources: [{model: DIR/b, layer_range: [1, 2]}]
";
    models.merge(stacked, &[]).succeeded();
    assert_eq!(models.out_config()["num_hidden_layers"], 3);
    let (merged, a, b) = (models::read(&models.out()), tensors(1), tensors(2));
    let layer = |n: usize| format!("model.layers.{n}.w.weight");
    assert_eq!(merged[&layer(0)], a[&layer(0)]);
    assert_eq!(merged[&layer(1)], a[&layer(1)]);
    assert_eq!(merged[&layer(2)], b[&layer(1)]);
    assert_eq!(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"]);
    assert_eq!(merged["lm_head.weight"], b["lm_head.weight"]);
    assert_eq!(merged.len(), 6);
}

#[test]
fn layers_that_a_config_leaves_out_are_named() {
    let models = Models::new();
    let one = "merge_method: passthrough\nslices:\n  - sources: [{model: DIR/a, layer_range: [0, 1]}]\n";
    let reported = models.plan(one, &[]).succeeded().stdout;
    assert!(reported.contains("left out ") && reported.contains("a: layer 1\n"), "{reported}");
}

#[test]
fn a_tied_model_stays_tied() {
    let models = Models::new();
    for (seed, name) in (0..).zip(["base", "a", "b"]) {
        let mut tied = tensors(seed);
        tied.remove("lm_head.weight");
        models::write(&models.path().join(name), &tied, Form { tied: true, ..PLAIN });
    }
    models.merge(DARE_TIES, &[]).succeeded();
    assert_eq!(models.out_config()["tie_word_embeddings"], true);
    assert!(!models::read(&models.out()).contains_key("lm_head.weight"));
}

/// Puts a checkpoint where the Hub's client keeps downloads: blobs by hash, and a snapshot of links to them.
#[cfg(unix)]
pub fn into_cache(cache: &Path, name: &str, commit: &str, from: &Path) -> String {
    let repository = cache.join(format!("models--{}", name.replace('/', "--")));
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots").join(commit));
    let sha256 = "0123456789abcdef".repeat(4);
    for folder in [&blobs, &snapshot, &repository.join("refs")] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(repository.join("refs/main"), commit).unwrap();
    for (file, blob) in [("config.json", "c0ffee"), ("model.safetensors", &sha256)] {
        fs::copy(from.join(file), blobs.join(blob)).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), snapshot.join(file)).unwrap();
    }
    sha256
}

#[cfg(unix)]
#[test]
fn models_are_found_in_the_cache_of_the_hub() {
    let models = Models::new();
    let cache = models.path().join("hub");
    let commit = "89abcdef".repeat(5);
    let sha256 = into_cache(&cache, "some/model", &commit, &models.path().join("a"));
    let out = models.out();
    let merged = |reference: &str| {
        let config = config(
            models.path(),
            &models.text(LINEAR).replace(models.path().join("a").to_str().unwrap(), reference),
        );
        let ended =
            mergeforge().env("HF_HUB_CACHE", &cache).arg("merge").args([&config, &out]).output().unwrap();
        Ended::from(ended)
    };
    models.merge(LINEAR, &["-q"]).succeeded();
    let expected = models::read(&models.out());
    fs::remove_dir_all(models.out()).unwrap();
    for reference in ["some/model", "some/model@main", &format!("some/model@{commit}"), "some/model@89abcde"]
    {
        merged(reference).succeeded();
        assert_eq!(models::read(&models.out()), expected, "{reference}");
        let manifest: Json = serde_json::from_slice(&models.out_file("mergeforge.json")).unwrap();
        let input = &manifest["inputs"][0];
        assert_eq!((&input["model"], &input["revision"]), (&json!(reference), &json!(commit)));
        assert_eq!(input["files"][0]["sha256"], sha256.as_str());
        assert_eq!(input["files"][0]["sha256_verified"], false, "nobody has hashed the content");
        assert!(input["files"][0].get("modified").is_none(), "a hash says more than a time");
        assert!(String::from_utf8(models.out_file("README.md")).unwrap().contains("some/model"));
        fs::remove_dir_all(models.out()).unwrap();
    }
    merged("some/model@v2")
        .failed(2, &["config.yml:3:", "not revision \"v2\"", "hint: run it where the Hub can be reached"]);
    merged("some/other").failed(2, &["\"some/other\" not found", "hint: "]);
    assert_nothing_left(models.path());
}

#[cfg(unix)]
#[test]
fn a_card_names_a_repository_once_links_to_it_and_lists_licences_that_differ() {
    let models = Models::new();
    let (cache, commit) = (models.path().join("hub"), "89abcdef".repeat(5));
    into_cache(&cache, "some/model", &commit, &models.path().join("a"));
    let card = |licence: &str| format!("---\nlicense: {licence}\n---\n# A model\n");
    let snapshot = cache.join("models--some--model/snapshots").join(&commit);
    fs::write(snapshot.join("README.md"), card("llama3")).unwrap();
    let text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: some/model}, {model: some/model@main}, {model: DIR/b}]\n";
    let path = config(models.path(), &models.text(text));
    let merged = || {
        let mut command = mergeforge();
        command.env("HF_HUB_CACHE", &cache).arg("merge").args([&path, &models.out()]);
        Ended::from(command.output().unwrap()).succeeded();
        let card = String::from_utf8(models.out_file("README.md")).unwrap();
        fs::remove_dir_all(models.out()).unwrap();
        card
    };
    let alone = merged();
    let header =
        "---\nbase_model:\n- \"some/model\"\nbase_model_relation: merge\nlibrary_name: transformers\n";
    assert!(alone.starts_with(header), "{alone}");
    assert!(!alone.contains("icence"), "one licence is stated: {alone}");
    let url = "https://huggingface.co/some/model";
    let links = format!(
        "- [`some/model`]({url})\n- [`some/model@main`]({url}/tree/{commit})\n- `{}/b`\n",
        models.path().display()
    );
    assert!(alone.contains(&links), "{alone}");
    fs::write(models.path().join("b/README.md"), card("apache-2.0")).unwrap();
    let reported = merged();
    let licences = format!(
        "- `some/model`: `llama3`\n- `some/model@main`: `llama3`\n- `{}/b`: `apache-2.0`\n",
        models.path().display()
    );
    assert!(reported.contains("## Licences\n") && reported.contains(&licences), "{reported}");
}
