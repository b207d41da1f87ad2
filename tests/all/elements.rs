//! Masks and importance of a user's own: files that say something of every element of a model.

use std::fs;
use std::path::Path;

use mergeforge::method::{self, Base};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::command::{self, Ended, assert_nothing_left, mergeforge};
use crate::methods::{Case, check};
use crate::models::{self, Form, PLAIN, RUN, Random, Stored, Tensors, stored, tuned, values, weights};
use crate::oracle::{Expected, slack_of};
use crate::same_bytes;

/// Whether a mask's elements are 0, by integers alone.
fn bits(mask: &Stored) -> Vec<bool> {
    let size = mask.dtype.bitsize() / 8;
    let sign = if [Dtype::F16, Dtype::BF16, Dtype::F32].contains(&mask.dtype) { 0x7f } else { 0xff };
    let is_set =
        |bytes: &[u8]| bytes[..size - 1].iter().any(|byte| *byte != 0) || bytes[size - 1] & sign != 0;
    mask.bytes.chunks(size).map(is_set).collect()
}

/// The model that a masked one counts as.
fn held(base: &Tensors, model: &Tensors, masks: &Tensors) -> Tensors {
    let element = |(name, x): (&String, &Stored)| {
        let Some(mask) = masks.get(name) else { return (name.clone(), x.clone()) };
        let choose = |((x, base), bit): ((f32, f32), bool)| if bit { x } else { base };
        let all: Vec<f32> =
            values(x).into_iter().zip(values(&base[name])).zip(bits(mask)).map(choose).collect();
        let dtype = if x.dtype == base[name].dtype { x.dtype } else { Dtype::F32 };
        (name.clone(), stored(dtype, &x.shape, &all))
    };
    model.iter().map(element).collect()
}

/// With a mask on every model, every method that knows a base writes the bytes of the same merge of models that hold the masked
/// elements.
#[test]
fn masked_models_are_merged_as_models_that_hold_the_masked_elements() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    same_bytes::checkpoints(folder, 5);
    let read = |name: &str| models::read(&folder.join(name));
    let base = read("m0");
    for model in 1..4 {
        let held = held(&base, &read(&format!("m{model}")), &read(&format!("mask{model}")));
        models::write(&folder.join(format!("held{model}")), &held, PLAIN);
    }
    let mut tried = 0;
    for way in same_bytes::ways() {
        let config = same_bytes::config(folder, way);
        let method = way.split('/').next().unwrap();
        if method::find(method).unwrap().base == Base::Ignored
            || !config.contains("base_model")
            || way.contains("masked")
        {
            continue;
        }
        let (mut masked, mut holding) = (config.clone(), config);
        for model in 1..4 {
            let at = |name: &str| folder.join(format!("{name}{model}")).display().to_string();
            let entry = format!("- model: {}\n", at("m"));
            masked = masked.replace(&entry, &format!("{entry}    mask: {}\n", at("mask")));
            holding = holding.replace(&entry, &format!("- model: {}\n", at("held")));
        }
        let [masked, holding] = [("masked", masked), ("holding", holding)].map(|(out, config)| {
            models::run(folder, &config, out, RUN).unwrap();
            let tensors = read(out);
            fs::remove_dir_all(folder.join(out)).unwrap();
            tensors
        });
        for (name, tensor) in &holding {
            assert!(masked[name] == *tensor, "{way}: {name} differs");
        }
        let unmasked = same_bytes::config(folder, way);
        models::run(folder, &unmasked, "unmasked", RUN).unwrap();
        assert!(read("unmasked") != masked, "{way}: the masks change something");
        fs::remove_dir_all(folder.join("unmasked")).unwrap();
        tried += 1;
    }
    assert!(tried >= 18, "{tried} ways have a base");
}

/// A base and two models with a tied head, all of bfloat16, and masks for the first model.
struct Tied {
    folder: TempDir,
    models: [Tensors; 3],
}

const NAMES: [(&str, &[usize]); 4] = [
    ("model.embed_tokens.weight", &[40, 33]),
    ("model.layers.0.a.weight", &[70, 31]),
    ("model.layers.1.a.weight", &[70, 31]),
    ("model.norm.weight", &[33]),
];

impl Tied {
    fn new() -> Self {
        let of = |model: u64| -> Tensors {
            let tensor = |(i, (name, shape)): (u64, &(&str, &[usize]))| {
                let base = weights(shape.iter().product(), i);
                let own = if model == 0 { base } else { tuned(&base, 10 * model + i) };
                ((*name).into(), stored(Dtype::BF16, shape, &own))
            };
            (0..).zip(&NAMES).map(tensor).collect()
        };
        let tied = Self { folder: tempfile::tempdir().unwrap(), models: [of(0), of(1), of(2)] };
        for (model, tensors) in tied.models.iter().enumerate() {
            models::write(&tied.path().join(format!("m{model}")), tensors, Form { tied: true, ..PLAIN });
        }
        tied
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a mask of truth values as a single file: of these tensors, each by a rule.
    fn mask(&self, file: &str, names: &[&str], rule: impl Fn(usize) -> bool) -> Tensors {
        let shape =
            |name: &str| NAMES.iter().find(|(of, _)| *of == name).map_or(&[40, 33][..], |(_, shape)| shape);
        let tensor = |name: &&str| {
            let bytes = (0..shape(name).iter().product()).map(|i| u8::from(rule(i))).collect();
            ((*name).to_string(), Stored { dtype: Dtype::BOOL, shape: shape(name).into(), bytes })
        };
        let masks: Tensors = names.iter().map(tensor).collect();
        self.put(file, &masks);
        masks
    }

    /// Writes tensors as a single file, with no config beside it.
    fn put(&self, file: &str, tensors: &Tensors) {
        let folder = self.path().join("unnamed");
        models::write(&folder, tensors, PLAIN);
        fs::rename(folder.join("model.safetensors"), self.path().join(file)).unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    /// A config with more lines in the entry of the first model.
    fn config(&self, method: &str, beside: &str) -> String {
        let at = |name: &str| self.path().join(name).display().to_string();
        let beside = beside.replace("HERE", &at(""));
        format!(
            "merge_method: {method}\nparameters: {{weight: 0.6, density: 0.5}}\nbase_model: {}\nmodels:\n- model: {}\n{beside}- model: {}\n",
            at("m0"),
            at("m1"),
            at("m2")
        )
    }

    fn merged(&self, config: &str) -> (Tensors, Ended) {
        let ended = command::merge(self.path(), config, &[]).succeeded();
        let tensors = models::read(&self.path().join("out"));
        fs::remove_dir_all(self.path().join("out")).unwrap();
        (tensors, ended)
    }
}

const ALL: [&str; 4] = [NAMES[0].0, NAMES[1].0, NAMES[2].0, NAMES[3].0];

#[test]
fn a_mask_of_ones_takes_all_of_a_model_and_one_of_zeros_nothing() {
    let tied = Tied::new();
    tied.mask("ones.safetensors", &ALL, |_| true);
    tied.mask("zeros.safetensors", &ALL, |_| false);
    for method in
        ["task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della_linear", "sce", "ram", "magmax"]
    {
        let plain = tied.config(method, "");
        assert!(
            tied.merged(&tied.config(method, "  mask: HEREones.safetensors\n")).0 == tied.merged(&plain).0,
            "{method}"
        );
        let without = tied.merged(&tied.config(method, "  mask: HEREzeros.safetensors\n")).0;
        models::write(&tied.path().join("like the base"), &tied.models[0], PLAIN);
        let like_base = plain.replace("m1\n", "like the base\n");
        assert!(without == tied.merged(&like_base).0, "{method}");
        // Masks of random methods depend on the model's place.
        if ["task_arithmetic", "ties", "breadcrumbs", "magmax", "ram"].contains(&method) {
            let alone = plain.replace(&format!("- model: {}\n", tied.path().join("m1").display()), "");
            assert!(without == tied.merged(&alone).0, "{method}");
        }
    }
}

/// Files that are not there for some tensors, or say something of others.
#[test]
fn what_a_mask_lacks_counts_and_what_nothing_reads_is_reported() {
    let tied = Tied::new();
    let masks = tied.mask("some.safetensors", &ALL[..2], |i| i % 3 == 0);
    let (merged, ended) = tied.merged(&tied.config("ties", "  mask: HEREsome.safetensors\n"));
    let lacks = "note: model.layers.1.a.weight and 1 more tensors of ";
    assert!(
        ended.stderr.contains(lacks) && ended.stderr.contains("so all of their elements count"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("masks: the processor puts the base where they are 0"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    models::write(&tied.path().join("held"), &held(&tied.models[0], &tied.models[1], &masks), PLAIN);
    assert!(merged == tied.merged(&tied.config("ties", "").replace("m1\n", "held\n")).0);

    let slip = ["model.layers.0.b.weight", ALL[0], "lm_head.weight"];
    tied.mask("slip.safetensors", &slip, |_| true);
    let plan = |beside: &str, more: &[&str]| command::plan(tied.path(), &tied.config("ties", beside), more);
    let ended = plan("  mask: HEREslip.safetensors\n", &[]).succeeded();
    for says in ["warning: tensor lm_head.weight and 1 more of ", "m1 has this name", "hint: it is not read"]
    {
        assert!(ended.stderr.contains(says), "no `{says}` in {}", ended.stderr);
    }
    tied.mask("slip.safetensors", &slip[..2], |_| true);
    let ended = plan("  mask: HEREslip.safetensors\n", &[]).succeeded();
    assert!(ended.stderr.contains("did you mean `model.layers.0.a.weight`?"), "{}", ended.stderr);
    plan("  mask: HEREslip.safetensors\n", &["--strict"]).failed(2, &["model.layers.0.b.weight"]);
    // The plan names the file, once and with every model that it is of.
    assert!(
        ended.stdout.contains("file     ") && ended.stdout.contains("m1: weight 0.6 density 0.5 mask "),
        "{}",
        ended.stdout
    );
    let json = plan("  mask: HEREsome.safetensors\n", &["--json"]).succeeded();
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let tensor = |name: &str| {
        json["tensors"].as_array().unwrap().iter().find(|t| t["name"] == name).unwrap()["action"]["merge"][0]
            .clone()
    };
    assert!(tensor(ALL[1])["mask"].as_str().unwrap().ends_with("some.safetensors"));
    assert_eq!((&tensor(ALL[1])["tensor"], tensor(ALL[2]).get("mask")), (&ALL[1].into(), None));
}

/// The head of a tied model has the mask of its own name, and else the embedding's.
#[test]
fn a_tied_head_takes_its_own_mask_or_the_embeddings() {
    let tied = Tied::new();
    let head = "lm_head.weight";
    // The second model has a head, so that the others' embeddings stand in for theirs.
    let mut second = tied.models[2].clone();
    second.insert(head.into(), stored(Dtype::BF16, &[40, 33], &weights(40 * 33, 77)));
    models::write(&tied.path().join("m2"), &second, PLAIN);
    let embeddings = tied.mask("embeddings.safetensors", &ALL, |i| i % 2 == 0);
    let heads = tied.mask("heads.safetensors", &[ALL[0], ALL[1], ALL[2], ALL[3], head], |i| i % 5 == 0);
    let base = values(&tied.models[0][ALL[0]]);
    for (file, masks) in [("embeddings", &embeddings), ("heads", &heads)] {
        let (merged, ended) =
            tied.merged(&tied.config("task_arithmetic", &format!("  mask: HERE{file}.safetensors\n")));
        assert!(!ended.stderr.contains("so all of their elements count"), "{}", ended.stderr);
        let mask = bits(masks.get(head).unwrap_or(&masks[ALL[0]]));
        let (first, second) = (values(&tied.models[1][ALL[0]]), values(&second[head]));
        let element = |i: usize| {
            let first = if mask[i] { 0.6f32 * (first[i] - base[i]) } else { 0.0 };
            base[i] + (first + 0.6 * (second[i] - base[i]))
        };
        let expected: Vec<f32> = (0..base.len()).map(element).collect();
        assert_eq!(merged[head], stored(Dtype::BF16, &[40, 33], &expected), "{file}");
    }
}

/// Masks have the names of the model's own layers, whichever these become; layers that no slice takes are no slip.
#[test]
fn masks_of_slices_go_by_the_models_own_layers() {
    let tied = Tied::new();
    let masks = tied.mask("mask.safetensors", &ALL, |i| i % 7 < 3);
    // Merged are the model's layer 1 and the base's layer 0, which counts where the mask is 0.
    let mut base = tied.models[0].clone();
    base.insert(ALL[2].into(), base[ALL[1]].clone());
    models::write(&tied.path().join("held"), &held(&base, &tied.models[1], &masks), PLAIN);
    let config = |model: &str, mask: &str| {
        let at = |name: &str| tied.path().join(name).display().to_string();
        let slice = format!(
            "- sources: [{{model: {}, layer_range: [1, 2], {mask}}}, {{model: {}, layer_range: [0, 1]}}]\n",
            at(model),
            at("m0")
        );
        format!(
            "merge_method: ties\nbase_model: {}\nparameters: {{weight: 1, density: 0.4}}\nslices:\n{slice}{slice}",
            at("m0")
        )
    };
    let mask = format!("mask: {}", tied.path().join("mask.safetensors").display());
    let (merged, ended) = tied.merged(&config("m1", &mask));
    assert!(merged == tied.merged(&config("held", "parameters: {}")).0);
    let note = "tensor model.layers.0.a.weight of ";
    assert!(ended.stderr.contains(note) && !ended.stderr.contains("warning"), "{}", ended.stderr);
}

#[test]
fn what_cannot_be_masked_is_refused_before_anything_is_read() {
    let tied = Tied::new();
    let mut wrong = tied.mask("mask.safetensors", &ALL, |_| true);
    wrong.insert(ALL[3].into(), Stored { dtype: Dtype::BOOL, shape: vec![3, 11], bytes: vec![1; 33] });
    tied.put("shape.safetensors", &wrong);
    wrong.insert(ALL[3].into(), Stored { dtype: Dtype::C64, shape: vec![33], bytes: vec![1; 33 * 8] });
    tied.put("type.safetensors", &wrong);
    let prefixed = |(name, mask): (&String, &Stored)| (format!("module.{name}"), mask.clone());
    tied.put(
        "prefix.safetensors",
        &tied.mask("mask.safetensors", &ALL, |_| true).iter().map(prefixed).collect(),
    );
    let here = |file: &str| format!("  mask: HERE{file}.safetensors\n");
    let refused = |config: &str, code: i32, says: &[&str]| {
        drop(command::plan(tied.path(), config, &[]).failed(code, says));
    };
    refused(
        &tied.config("ties", &here("shape")),
        2,
        &["tensor model.norm.weight: it is [3, 11] in ", "shape.safetensors and [33] in ", "m1"],
    );
    refused(
        &tied.config("ties", &here("type")),
        2,
        &["tensor model.norm.weight: it is of C64 in ", "a mask is of truth values"],
    );
    refused(
        &tied.config("ties", &here("prefix")),
        2,
        &[
            "prefix.safetensors: none of its tensors has the name of one of the model's",
            "without a prefix such as `module.`",
        ],
    );
    refused(
        &tied.config("ties", &here("nothing")),
        2,
        &["config.yml:6:9: there is no file or folder ", "nothing.safetensors"],
    );
    fs::write(tied.path().join("broken.safetensors"), "no").unwrap();
    refused(&tied.config("ties", &here("broken")), 3, &["config.yml:6:9: ", "broken.safetensors: "]);
    for method in ["linear", "karcher"] {
        refused(
            &tied.config(method, &here("mask")),
            2,
            &[
                &format!("config.yml:6:9: {method} knows no base"),
                "hint: use a method that merges differences",
            ],
        );
    }
    let base = tied.path().join("m0").display().to_string();
    let no_base = tied.config("multislerp", &here("mask")).replace(&format!("base_model: {base}\n"), "");
    refused(&no_base, 2, &["multislerp has no base_model here", "hint: add `base_model:`"]);
    let of_base = tied.config("ties", &here("mask")).replace("m1\n", "m0\n");
    refused(
        &of_base,
        2,
        &["the base model has a mask", "hint: write the mask beside one of the other models"],
    );
    let among_parameters = tied.config("ties", "  parameters: {mask: a}\n");
    let ended = command::plan(tied.path(), &among_parameters, &[]).succeeded();
    assert!(
        ended.stderr.contains("`mask` is the path of a file, and stands beside `model:`"),
        "{}",
        ended.stderr
    );
    let unread = command::plan(tied.path(), &tied.config("ties", "  importance: nowhere\n"), &[]).succeeded();
    assert!(
        unread.stderr.contains("config.yml:6:15: ties does not read `importance`: it is ignored"),
        "{}",
        unread.stderr
    );
}

/// A file of importance for a model, some of it 0: of every tensor but those left out.
fn important(model: &Tensors, seed: u64, without: &[&str]) -> Tensors {
    let mut random = Random(seed);
    let mut tensor = |(name, x): (&String, &Stored)| {
        let mut value = || match random.next() % 4 {
            0 => 0.0,
            1 => 1e-7,
            _ => (random.normal() * 0.01).powi(2) as f32,
        };
        let dtype = [Dtype::F32, Dtype::BF16][name.len() % 2];
        let all: Vec<f32> = (0..x.shape.iter().product()).map(|_| value()).collect();
        (name.clone(), stored(dtype, &x.shape, &all))
    };
    model.iter().filter(|(name, _)| !without.contains(&name.as_str())).map(&mut tensor).collect()
}

#[test]
fn fisher_merges_as_its_formula_says() {
    let without = ["loose5"];
    for seed in 0..16 {
        let folder = tempfile::tempdir().unwrap();
        let mut case = Case::new(seed);
        case.weights.iter_mut().for_each(|weight| *weight = weight.abs());
        case.weights[0] = 0.4;
        case.write(folder.path(), seed);
        let floor = [1e-6, 1e-4][seed as usize % 2];
        let mut config = case.config(folder.path(), "fisher", &format!("floor: {floor}"), false);
        let mut files = Vec::new();
        for (m, model) in case.models.iter().enumerate() {
            files.push(important(model, 100 * seed + m as u64, &without));
            models::write(&folder.path().join(format!("f{m}")), &files[m], PLAIN);
            let entry = format!("- model: {}\n", folder.path().join(format!("m{m}")).display());
            let importance = folder.path().join(format!("f{m}"));
            config = config.replace(&entry, &format!("{entry}    importance: {}\n", importance.display()));
        }
        models::run(folder.path(), &config, "out", RUN).unwrap();
        for (name, tensor) in models::read(&folder.path().join("out")) {
            assert_eq!(tensor.dtype, case.stored_as(&name, false), "{name}");
            let x: Vec<Vec<f32>> = case.models.iter().map(|model| values(&model[&name])).collect();
            let f: Vec<Vec<f32>> =
                files.iter().map(|file| file.get(&name).map_or(vec![1.0; x[0].len()], values)).collect();
            let p =
                |m: usize, i: usize| f64::from(case.weights[m] as f32) * f64::from(f[m][i].max(floor as f32));
            let element = |i: usize| {
                let total: f64 = (0..x.len()).map(|m| p(m, i)).sum();
                let exact: f64 = (0..x.len()).map(|m| p(m, i) * f64::from(x[m][i])).sum::<f64>() / total;
                let around = |m: usize| p(m, i) * (f64::from(x[m][i]) - f64::from(x[0][i])).abs();
                let moved: f64 = (0..x.len()).map(around).sum::<f64>() / total;
                // Products, two sums of N and a quotient are rounded.
                (exact, slack_of(2 * x.len() + 1, f64::from(x[0][i]).abs() + moved))
            };
            let (exact, slack) = (0..x[0].len()).map(element).unzip();
            check(&format!("fisher seed {seed}: {name}"), &tensor, &Expected { exact, slack });
        }
    }
}

#[test]
fn a_model_averaged_with_itself_by_importance_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case::new(4);
    let mut config = "merge_method: fisher\nparameters: {weight: 0.3}\nmodels:\n".to_string();
    for m in 0..3 {
        let at = |name: &str| folder.path().join(format!("{name}{m}"));
        models::write(&at("m"), &case.base, PLAIN);
        models::write(&at("f"), &important(&case.base, m, &["loose4"]), PLAIN);
        config += &format!("  - {{model: {}, importance: {}}}\n", at("m").display(), at("f").display());
    }
    models::run(folder.path(), &config, "out", RUN).unwrap();
    assert_eq!(models::read(&folder.path().join("out")), case.base);
}

/// Files of importance for both models, and a merge by them.
fn by_importance(tied: &Tied, second: &Tensors) -> String {
    tied.put("f1.safetensors", &important(&tied.models[1], 1, &[ALL[3]]));
    tied.put("f2.safetensors", second);
    let at = |name: &str| tied.path().join(name).display().to_string();
    format!(
        "merge_method: fisher\nmodels:\n- model: {}\n  importance: {}\n- model: {}\n  importance: {}\n",
        at("m1"),
        at("f1.safetensors"),
        at("m2"),
        at("f2.safetensors")
    )
}

#[test]
fn importance_that_lacks_or_makes_no_sense_is_reported() {
    let tied = Tied::new();
    let fine = important(&tied.models[2], 2, &[ALL[3]]);
    let config = by_importance(&tied, &fine);
    let ended = command::plan(tied.path(), &config, &[]).succeeded();
    for says in [
        "fisher: 1 tensors are in no importance file, and are averaged by weight alone",
        "fisher: the processor computes the average",
    ] {
        assert!(ended.stdout.contains(says), "no `{says}` in {}", ended.stdout);
    }
    // Each input is read once: models and importance.
    let json: serde_json::Value =
        serde_json::from_str(&command::plan(tied.path(), &config, &["--json"]).succeeded().stdout).unwrap();
    let bytes = |tensors: &Tensors| tensors.values().map(|tensor| tensor.bytes.len() as u64).sum::<u64>();
    let once = bytes(&tied.models[1])
        + bytes(&tied.models[2])
        + bytes(&fine)
        + bytes(&important(&tied.models[1], 1, &[ALL[3]]));
    assert_eq!(json["read_bytes"], once);

    let refused = |config: &str, says: &[&str]| drop(command::plan(tied.path(), config, &[]).failed(2, says));
    let f2 = format!("  importance: {}\n", tied.path().join("f2.safetensors").display());
    refused(
        &config.replace(&f2, ""),
        &["config.yml:5:10: fisher needs the importance of ", "hint: add `importance: FILE` beside `model:`"],
    );
    let base = format!("base_model: {}\n", tied.path().join("m0").display());
    refused(
        &(config.clone() + &base),
        &[
            "fisher needs the importance of ",
            "m0",
            "hint: base_model is merged like the others: list it with its importance",
        ],
    );
    for (parameters, says) in [
        ("weight: -1", "the weight -1 is less than 0"),
        ("weight: 0", "all weights are 0"),
        ("floor: 0", "floor 0e0 is not more than 0"),
    ] {
        refused(&(config.clone() + &format!("parameters: {{{parameters}}}\n")), &[says]);
    }
    let lacking = by_importance(&tied, &important(&tied.models[2], 2, &[ALL[3], ALL[1]]));
    refused(
        &lacking,
        &["tensor model.layers.0.a.weight: ", "f2.safetensors has no importance of it, others have"],
    );
    let mut integers = fine.clone();
    integers.insert(ALL[1].into(), Stored { dtype: Dtype::U8, shape: vec![70, 31], bytes: vec![1; 70 * 31] });
    refused(&by_importance(&tied, &integers), &["it is of U8 in ", "hint: importance is stored as floats"]);
    for wrong in [-1.0, f32::NAN, f32::INFINITY] {
        let mut odd = fine.clone();
        let mut all = values(&odd[ALL[1]]);
        all[1500] = wrong;
        odd.insert(ALL[1].into(), stored(Dtype::F32, &[70, 31], &all));
        let ended = command::merge(tied.path(), &by_importance(&tied, &odd), &[]);
        ended.failed(
            3,
            &[
                "tensor model.layers.0.a.weight of ",
                "f2.safetensors: element 1500 is ",
                "importance is a number from 0 up",
            ],
        );
        assert_nothing_left(tied.path());
    }
}

/// Masks and importance are inputs: named in the manifest and not in the card, never written to, watched while they are read.
#[test]
fn files_of_elements_are_inputs_and_no_models() {
    let tied = Tied::new();
    tied.mask("mask.safetensors", &ALL, |i| i % 2 == 0);
    let (mask, trace) = (tied.path().join("mask.safetensors"), tied.path().join("trace.json"));
    let before = fs::read(&mask).unwrap();
    let config = tied.config("ties", "  mask: HEREmask.safetensors\n");
    let merge = |trace: &Path| command::merge(tied.path(), &config, &["--trace", trace.to_str().unwrap()]);
    // Beside the mask there is room for a trace and an output; in place of it there is not.
    fs::write(&trace, "of an earlier merge").unwrap();
    merge(&trace).succeeded();
    let out = tied.path().join("out");
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("mergeforge.json")).unwrap()).unwrap();
    let file = &manifest["element_files"][0];
    assert_eq!(
        (manifest["inputs"].as_array().unwrap().len(), &file["path"]),
        (3, &mask.to_str().unwrap().into())
    );
    assert_eq!(file["files"][0]["file"], "mask.safetensors");
    assert!(manifest["inputs"][0]["model"].as_str().unwrap().ends_with("m1"));
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert_eq!(card.matches("mask.safetensors").count(), 1, "in the config alone: {card}");
    fs::remove_dir_all(&out).unwrap();
    merge(&mask).failed(2, &["inputs are never written to"]);
    fs::remove_file(&trace).unwrap();
    fs::hard_link(&mask, &trace).unwrap();
    merge(&trace).failed(2, &["it is a link to ", "mask.safetensors, and inputs are never written to"]);
    assert_eq!(fs::read(&mask).unwrap(), before);
    assert_nothing_left(tied.path());
    // The output is no more readable than the mask.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&mask, fs::Permissions::from_mode(0o600)).unwrap();
        command::merge(tied.path(), &config, &[]).succeeded();
        let mode = fs::metadata(out.join("model.safetensors")).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
}

/// Thresholds are of the models as they are, not as a mask leaves them.
#[test]
fn thresholds_of_a_masked_model_are_not_those_of_the_model() {
    let (tied, cache) = (Tied::new(), tempfile::tempdir().unwrap());
    let large = |seed| {
        Tensors::from([(
            "w".to_string(),
            stored(
                Dtype::BF16,
                &[300_000],
                &if seed == 0 { weights(300_000, 3) } else { tuned(&weights(300_000, 3), seed) },
            ),
        )])
    };
    (0..3).for_each(|model| models::write(&tied.path().join(format!("m{model}")), &large(model), PLAIN));
    for (file, step) in [("thirds", 3), ("halves", 2)] {
        let bytes = (0..300_000).map(|i| u8::from(i % step == 0)).collect();
        tied.put(
            &format!("{file}.safetensors"),
            &Tensors::from([("w".into(), Stored { dtype: Dtype::U8, shape: vec![300_000], bytes })]),
        );
    }
    let merge = |config: &str, cache: &str| {
        let mut command = mergeforge();
        let out = tied.path().join("out");
        command
            .env("MERGEFORGE_CACHE", cache)
            .arg("merge")
            .arg(command::config(tied.path(), config))
            .arg(&out);
        Ended::from(command.output().unwrap()).succeeded();
        let tensors = models::read(&out);
        fs::remove_dir_all(out).unwrap();
        tensors
    };
    let mut seen: Vec<Tensors> = Vec::new();
    for beside in ["", "  mask: HEREthirds.safetensors\n", "  mask: HEREhalves.safetensors\n"] {
        let config = tied.config("ties", beside);
        let expected = merge(&config, "");
        for _ in 0..2 {
            assert!(merge(&config, cache.path().to_str().unwrap()) == expected, "{beside}");
        }
        assert!(!seen.contains(&expected), "{beside}");
        seen.push(expected);
    }
}

/// `plan` shows what a method reads beside the models too.
#[test]
fn every_way_can_be_planned() {
    let folder = tempfile::tempdir().unwrap();
    same_bytes::checkpoints(folder.path(), 3);
    for way in same_bytes::ways() {
        let config = same_bytes::config(folder.path(), way);
        for more in [&["--verbose"][..], &["--json"]] {
            let ended = command::plan(folder.path(), &config, more).succeeded();
            assert!(ended.stdout.contains("model.norm.weight"), "{way}: {}", ended.stdout);
        }
    }
}
