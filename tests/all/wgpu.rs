//! WebGPU without a GPU: the program, its shaders and its scheduler on lavapipe, Mesa's Vulkan driver for the CPU, which
//! must be there. What other devices are like is seen by what the program lets tests ask for in `MERGEFORGE_WGPU`.

use std::path::Path;
use std::sync::OnceLock;

use mergeforge::backend::devices::choose;
use mergeforge::kernel::KERNELS;
use safetensors::Dtype;
use serde_json::Value as Json;

use crate::averages;
use crate::command::{self, Ended, assert_nothing_left, mergeforge};
use crate::float64;
use crate::kills;
use crate::models::{self, PLAIN, Tensors, stored, tuned, weights};
use crate::same_bytes;

const DEVICE: &str = "wgpu:llvmpipe";

/// Limits of the device, and what goes wrong with it.
const WAYS: [&str; 4] = ["", "default-limits", "no-subgroups", "default-limits,no-subgroups"];

/// Where the program remembers that it checked the device: for all tests, since each is a program of its own.
fn cache() -> &'static Path {
    static CACHE: OnceLock<tempfile::TempDir> = OnceLock::new();
    CACHE.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

/// The program on a device with these ways, with no driver of CUDA.
fn on(ways: &str, arguments: &[&str]) -> Ended {
    let mut command = mergeforge();
    command.env("MERGEFORGE_WGPU", ways).env("MERGEFORGE_CACHE", cache()).args(arguments);
    command.output().expect("the program starts").into()
}

/// Merges `folder/config.yml` into `folder/out`.
fn merge(ways: &str, folder: &Path, more: &[&str]) -> Ended {
    let (config, out) = (folder.join("config.yml"), folder.join("out"));
    let paths = ["merge", config.to_str().unwrap(), out.to_str().unwrap(), "--no-cache"];
    on(ways, &[&paths[..], more].concat())
}

fn merge_on_device(ways: &str, folder: &Path, more: &[&str]) -> Ended {
    merge(ways, folder, &[&["--device", DEVICE], more].concat())
}

/// A merge's tensors; the output is taken away again.
#[track_caller]
fn merged(ended: Ended, folder: &Path) -> Tensors {
    ended.succeeded();
    let out = folder.join("out");
    let tensors = models::read(&out);
    std::fs::remove_dir_all(&out).unwrap();
    tensors
}

fn of_cpu(folder: &Path) -> Tensors {
    merged(merge("", folder, &["--device", "cpu"]), folder)
}

#[track_caller]
fn assert_same(expected: &Tensors, found: &Tensors, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (name, tensor) in expected {
        assert!(found[name] == *tensor, "{what}: {name} differs");
    }
}

#[test]
fn every_kernel_gives_the_bits_of_its_twin() {
    for ways in WAYS {
        let depth: &[&str] = if ways.is_empty() { &[] } else { &["--quick"] };
        let ended = on(ways, &[&["check", "--json", "--device", DEVICE], depth].concat()).succeeded();
        let checked: Json = serde_json::from_str(&ended.stdout).unwrap();
        let rows = checked[0]["kernels"].as_array().unwrap();
        assert_eq!(rows.len(), (KERNELS.len() - 1) * 4, "all kernels but `stream`, four kinds of inputs");
        for row in rows {
            assert_eq!(row["wrong"], Json::Null, "{ways}: {row}");
            // What the CPU computes says nothing about the device.
            let count = |key: &str| row[key].as_u64().unwrap();
            let (chunks, by_cpu) = (count("chunks"), count("by_cpu"));
            // A quick check has too few chunks for even shares.
            let most = if depth.is_empty() { chunks * 2 / 3 } else { chunks * 9 / 10 };
            assert!(chunks >= 14 && by_cpu <= most, "{ways}: {row}");
        }
        assert!(rows.iter().any(|row| row["by_cpu"] != 0), "{ways}: no odd values");
    }
}

/// The shaders with one mistake in a file: what stands there, and what takes its place. A mistake in `KERNEL/prelude.wgsl` is
/// made in the prelude of that kernel alone: the text of the others stays as it is, and their compiled form is in Mesa's cache.
fn mistaken(file: &str, right: &str, wrong: &str) -> tempfile::TempDir {
    let Some((kernel, prelude)) = file.split_once('/') else {
        return command::mistaken("shaders", file, right, wrong);
    };
    let folder = command::mistaken("shaders", prelude, right, wrong);
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let with_mistake = read(&folder.path().join(prelude));
    let without = read(&Path::new(command::ROOT).join("shaders").join(prelude));
    // The program puts the prelude before each kernel: here each brings its own.
    for known in KERNELS {
        let path = folder.path().join(format!("{}.wgsl", known.name));
        let prelude = if known.name == kernel { &with_mistake } else { &without };
        std::fs::write(&path, format!("{prelude}{}", read(&path))).unwrap();
    }
    std::fs::write(folder.path().join(prelude), "").unwrap();
    folder
}

#[test]
fn mistakes_in_shaders_are_caught() {
    let cases = [
        // Equal magnitudes cut a tile late; a vote's tie to the other side, for few models and for many.
        ("consensus.wgsl", "work.first_tile + tile", "work.first_tile + tile - 1u"),
        ("consensus.wgsl", "(sum.low >= none)", "(sum.low > none)"),
        ("consensus.wgsl", "vote(votes, 1u, sum, v1.v)", "vote(votes, 0u, sum, v1.v)"),
        ("segment_sum.wgsl", "elements % columns", "elements / columns"),
        // What is kept, counted past the end; of one subgroup alone.
        ("consensus/prelude.wgsl", "number_of(both(keep, exist))", "number_of(keep)"),
        ("consensus.wgsl", "speaks_for_neighbours(thread) &&", "thread == 0u &&"),
        // As compilers may: another order, a flush to zero, a wrong rounding.
        (
            "weighted_sum.wgsl",
            "sum = add(sum, scale(bitcast<f32>(table[coefficients + input]), x));",
            "sum = add(scale(bitcast<f32>(table[coefficients + input]), x), add(sum, add(first, scale(-1.0, first))));
            sum = add(sum, first); sum = sub(sum, first);",
        ),
        (
            "gram/prelude.wgsl",
            "fn mul(a: Eight, b: Eight) -> Eight { return Eight(pin(a.low * b.low), pin(a.high * b.high)); }",
            "fn mul(a: Eight, b: Eight) -> Eight {
                let low = a.low * b.low; let high = a.high * b.high; let least = vec4<f32>(1e-28);
                return Eight(select(low, vec4<f32>(0.0), abs(low) < least), select(high, vec4<f32>(0.0), abs(high) < least));
            }",
        ),
        ("segment_sum/prelude.wgsl", "vec4<u32>(0x7fffu) + even", "vec4<u32>(0x8000u)"),
        ("consensus/prelude.wgsl", "vec4<u32>(0xfffu) + even", "vec4<u32>(0x1000u)"),
        // Odd values that nobody looks at.
        ("weighted_sum/prelude.wgsl", "odd = odd || beyond(", "odd = false && beyond("),
        ("gram.wgsl", "let b = basis(work, j,", "let b = basis(work, i,"),
        ("masked_sums/prelude.wgsl", "let shift = 6u - step;", "let shift = 6u - step + step / 6u;"),
        ("levels.wgsl", "own.low >= key", "own.low > key"),
        ("magnitudes.wgsl", "(own.low & low_bits) != vec4<i32>(0)", "(own.low & low_bits) == vec4<i32>(0)"),
        ("masked_sums.wgsl", "group_sum(absolute(v))", "group_sum(v)"),
        ("consensus/prelude.wgsl", "again.low < lower", "again.low <= lower + vec4<u32>(30000u)"),
        ("keys.wgsl", "model * length", "model * TILE"),
        // Choices, elections and what is measured of a choice; bits.
        ("elect/prelude.wgsl", "low < dropped.low", "low <= dropped.low"),
        ("elect/prelude.wgsl", "TILE, tile < cut_tile", "TILE, tile <= cut_tile"),
        ("elect/prelude.wgsl", "1u + models + choice.selector", "models + choice.selector"),
        ("elect.wgsl", "(sum.low >= none)", "(sum.low > none)"),
        ("elect.wgsl", "own.low > others.low", "own.low >= others.low"),
        ("elect.wgsl", "both(terms.kept, holds)", "holds"),
        ("elect.wgsl", "made.holders.low >= least", "made.holders.low > least"),
        ("elect.wgsl", "number_of(both(terms.kept, exist))", "number_of(terms.kept)"),
        ("chosen_sums.wgsl", "group_sum(mul(kept, kept))", "group_sum(mul(delta, delta))"),
        ("holders.wgsl", "own.low > threshold", "own.low >= threshold"),
        ("holders.wgsl", "held_by.low == bit", "(held_by.low & bit) == bit"),
        ("nearswap.wgsl", "t | (signs.low & sign)", "t"),
        ("nearswap/prelude.wgsl", "select(y.low, x.low, chosen.low)", "select(x.low, y.low, chosen.low)"),
        ("keys/prelude.wgsl", "thread / 4u & 3u", "thread / 4u & 1u"),
        ("keys/prelude.wgsl", "(thread & 3u) * 8u", "(thread & 3u) * 4u"),
        ("keys/prelude.wgsl", "raw.high >> HIGH_LANES", "raw.high >> LOW_LANES"),
    ];
    // What users rely on is the check before the first use, of which this is the part that is about the kernel. It does more than a
    // quick one where kernels are compiled for numbers of models.
    let compiled_apart = ["consensus", "magnitudes"];
    command::each(&cases, |(file, right, wrong)| {
        let shaders = mistaken(file, right, wrong);
        let ways = format!("shaders={}", shaders.path().display());
        let kernel = file.trim_end_matches("/prelude.wgsl").trim_end_matches(".wgsl");
        let depth = if compiled_apart.contains(&kernel) { "--first" } else { "--quick" };
        let ended = on(&ways, &["check", depth, "--kernel", kernel, "--device", DEVICE]);
        assert_eq!(ended.code, Some(5), "{file}: {wrong}: {}", ended.stderr);
        let reported = ["checks differ from the CPU".to_string(), format!("{kernel} of ")];
        assert!(
            reported.iter().all(|reported| ended.stderr.contains(reported)),
            "{file}: {wrong}: {}",
            ended.stderr
        );
    });
}

/// Checkpoints of all types, forms and sizes, and a method's config over them.
fn case(method: &str, seed: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    same_bytes::checkpoints(folder.path(), seed);
    std::fs::write(folder.path().join("config.yml"), same_bytes::config(folder.path(), method)).unwrap();
    folder
}

#[test]
fn float64_gives_the_bytes_of_the_cpu() {
    for folder in float64::cases() {
        let expected = of_cpu(folder.path());
        for more in [&["--threads", "2"][..], &["--chunk-tiles", "1"]] {
            assert_same(
                &expected,
                &merged(merge_on_device("", folder.path(), more), folder.path()),
                &format!("{more:?}"),
            );
        }
    }
}

#[test]
fn merged_vocabularies_give_the_bytes_of_the_cpu() {
    for method in ["linear", "ties"] {
        let folder = crate::vocabularies::case(method);
        let expected = of_cpu(folder.path());
        for more in [&["--threads", "2"][..], &["--chunk-tiles", "1"]] {
            let found = merged(merge_on_device("", folder.path(), more), folder.path());
            assert_same(&expected, &found, &format!("{method}, {more:?}"));
        }
    }
}

#[test]
fn averages_of_many_checkpoints_give_the_bytes_of_the_cpu() {
    let folder = averages::many();
    crate::command::config(folder.path(), &averages::config_of_many(folder.path(), "average"));
    let expected = of_cpu(folder.path());
    for (ways, more) in [
        ("", &["--threads", "2"][..]),
        ("default-limits", &["--chunk-tiles", "1"]),
        ("", &["--device-memory", "8MB"]),
    ] {
        let found = merged(merge_on_device(ways, folder.path(), more), folder.path());
        assert_same(&expected, &found, &format!("{ways}, {more:?}"));
    }
}

#[test]
fn every_method_gives_the_bytes_of_the_cpu() {
    // A device is checked when it is first used in some way: here, and not by each of those that begin together.
    command::each(&["", "default-limits", "no-subgroups"], |ways| {
        let folder = one_tensor(Dtype::BF16, 10, "linear", "weight: 0.5", &|_| {});
        merged(merge_on_device(ways, folder.path(), &[]), folder.path());
    });
    command::each(&same_bytes::all_ways(), |way| {
        let folder = case(way, 40);
        let expected = of_cpu(folder.path());
        let ways: [(&str, &[&str]); 5] = [
            ("", &["--threads", "3"]),
            ("default-limits", &["--threads", "1", "--chunk-tiles", "1"]),
            // Small chunks that are held, and hardly any memory to hold them in.
            ("no-subgroups", &["--threads", "2", "--chunk-tiles", "16"]),
            ("", &["--threads", "2", "--chunk-tiles", "16", "--device-memory", "12MB"]),
            // Windows of large tensors.
            ("binding=65536", &["--threads", "2"]),
        ];
        for (ways, more) in ways {
            if (*way, ways) == ("breadcrumbs/many", "binding=65536") {
                // The counters of twelve searches need larger windows.
                merge_on_device(ways, folder.path(), more).failed(5, &["can use 65536 bytes at once"]);
                continue;
            }
            let found = merged(merge_on_device(ways, folder.path(), more), folder.path());
            assert_same(&expected, &found, &format!("{way}, {ways}, {more:?}"));
        }
    });
}

/// What one worker has read is used by another as soon as it is known to be held.
#[test]
fn outputs_of_the_same_inputs_share_what_is_held() {
    crate::inputs::check_shared_inputs(&choose(DEVICE).unwrap().0);
}

/// Adapters are added on the way to the device.
#[test]
fn models_with_adapters_give_the_bytes_of_the_cpu() {
    for method in ["linear", "ties"] {
        let folder = tempfile::tempdir().unwrap();
        let text = crate::adapters::write_merge(folder.path(), method);
        std::fs::write(folder.path().join("config.yml"), text).unwrap();
        let expected = of_cpu(folder.path());
        let found = merged(merge_on_device("", folder.path(), &[]), folder.path());
        assert_same(&expected, &found, method);
    }
}

/// Something done to the values of a model.
type Change<'a> = &'a dyn Fn(&mut [f32]);

/// A base and two models of one tensor each, merged as `parameters` say.
fn one_tensor(
    dtype: Dtype,
    elements: usize,
    method: &str,
    parameters: &str,
    change: Change<'_>,
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = weights(elements, 1);
    for model in 0..3 {
        let mut values = if model == 0 { base.clone() } else { tuned(&base, model) };
        change(&mut values);
        let tensors =
            Tensors::from([("model.layers.0.mlp.weight".into(), stored(dtype, &[1, elements], &values))]);
        models::write(&folder.path().join(format!("m{model}")), &tensors, PLAIN);
    }
    let path = |model: usize| folder.path().join(format!("m{model}")).display().to_string();
    let text = format!(
        "merge_method: {method}\nbase_model: {}\nmodels:\n- model: {}\n- model: {}\nparameters: {{{parameters}}}\n",
        path(0),
        path(1),
        path(2),
    );
    std::fs::write(folder.path().join("config.yml"), text).unwrap();
    folder
}

/// What WebGPU promises nothing about comes out as on the CPU.
#[test]
fn odd_values_give_the_bytes_of_the_cpu() {
    let odd: [(&str, Change<'_>); 4] = [
        ("nothing", &|_| {}),
        ("subnormals", &|values| values[100] = 1e-40),
        ("NaN", &|values| values[70_000] = f32::NAN),
        ("infinity and too much", &|values| (values[5], values[150_000]) = (f32::INFINITY, 3e38)),
    ];
    let merges = [
        ("ties", "weight: 0.5, density: 0.4"),
        ("dare_ties", "weight: 0.5, density: 0.4"),
        // Weights that leave the range where all devices agree.
        ("task_arithmetic", "weight: 1.0e-12"),
    ];
    for (what, change) in odd {
        for (method, parameters) in merges {
            let folder = one_tensor(Dtype::F32, 200_000, method, parameters, change);
            let expected = of_cpu(folder.path());
            let ended = merge_on_device("", folder.path(), &["--chunk-tiles", "64", "--json"]);
            let manifest: Json = serde_json::from_str(&ended.stdout).unwrap_or_default();
            let reported = ended.stderr.clone();
            assert_same(&expected, &merged(ended, folder.path()), &format!("{method} with {what}"));
            let by_cpu = manifest["run"]["chunks_by_cpu"].as_u64().unwrap();
            let odd = what != "nothing" || method == "task_arithmetic";
            assert_eq!(by_cpu > 0, odd, "{method} with {what}: {by_cpu} chunks by the CPU");
            assert_eq!(reported.contains("the CPU computed them"), odd, "{reported}");
        }
    }
}

#[test]
fn a_device_is_checked_before_its_first_use() {
    let folder = one_tensor(Dtype::BF16, 5000, "ties", "weight: 0.5, density: 0.4", &|_| {});
    let own = tempfile::tempdir().unwrap();
    let with = |ways: &str| -> Ended {
        let mut command = mergeforge();
        command.env("MERGEFORGE_WGPU", ways).env("MERGEFORGE_CACHE", own.path());
        command.args(["merge", "--no-cache", "--device", DEVICE]);
        command.args([folder.path().join("config.yml"), folder.path().join("out")]);
        command.output().expect("the program starts").into()
    };
    let known = || std::fs::read_dir(own.path().join("checked")).map_or(0, Iterator::count);
    // A kernel that this merge does not even use.
    let shaders = mistaken("gram.wgsl", "let b = basis(work, j,", "let b = basis(work, i,");
    let wrong = format!("shaders={}", shaders.path().display());
    let refused = || {
        with(&wrong).failed(5, &["gram of ", "differ", "merge on another device"]);
        assert_nothing_left(folder.path());
    };
    refused();
    assert_eq!(known(), 0);
    merged(with(""), folder.path());
    merged(with(""), folder.path());
    assert_eq!(known(), 1);
    // Who named no device gets the CPU.
    let with_auto = |ways: &str| -> Ended {
        let mut command = mergeforge();
        command
            .env("MERGEFORGE_WGPU", ways)
            .env("MERGEFORGE_CACHE", own.path())
            .args(["merge", "--no-cache"]);
        command.args([folder.path().join("config.yml"), folder.path().join("out")]);
        command.output().expect("the program starts").into()
    };
    let ended = with_auto(&format!("hardware,{wrong}"));
    assert!(
        ended.stderr.contains("differ") && ended.stderr.contains("merging on the CPU"),
        "{}",
        ended.stderr
    );
    merged(ended, folder.path());
    let ended = with_auto("hardware");
    assert!(ended.stderr.contains("merging on wgpu:0"), "{}", ended.stderr);
    merged(ended, folder.path());
    // Other shaders, other limits: what is known says nothing about them.
    refused();
    merged(with("default-limits"), folder.path());
    assert_eq!(known(), 2);
}

#[test]
fn a_lost_device_is_a_clear_error() {
    let folder = one_tensor(Dtype::BF16, 300_000, "ties", "weight: 0.5, density: 0.4", &|_| {});
    merged(merge_on_device("", folder.path(), &[]), folder.path());
    let mut lost = 0;
    for submission in 1..100 {
        let ways = format!("lose={submission}");
        let ended = merge_on_device(&ways, folder.path(), &["--threads", "2", "--chunk-tiles", "64"]);
        if ended.code == Some(0) {
            break;
        }
        ended.failed(5, &["wgpu:0", "lost", "--device cpu gives the same bytes"]);
        assert_nothing_left(folder.path());
        lost += 1;
    }
    assert!((10..99).contains(&lost), "{lost} submissions");
}

/// wgpu panics where a device is lost while it is waited for.
#[test]
fn a_panic_of_wgpu_is_a_clear_error() {
    let folder = one_tensor(Dtype::BF16, 300_000, "ties", "weight: 0.5, density: 0.4", &|_| {});
    merged(merge_on_device("", folder.path(), &[]), folder.path());
    for wait in 1..6 {
        let ended = merge_on_device(&format!("panic={wait}"), folder.path(), &["--chunk-tiles", "64"]);
        ended.failed(5, &["wgpu:0", "lost", "--device cpu gives the same bytes"]);
        assert_nothing_left(folder.path());
    }
}

#[test]
fn what_is_only_copied_needs_no_kernel() {
    let folder = tempfile::tempdir().unwrap();
    same_bytes::checkpoints(folder.path(), 41);
    let model = folder.path().join("m0").display().to_string();
    let text = format!("merge_method: passthrough\nmodels:\n- model: {model}\n");
    std::fs::write(folder.path().join("config.yml"), text).unwrap();
    let expected = of_cpu(folder.path());
    let ended = merge_on_device("", folder.path(), &[]);
    assert!(ended.stderr.contains(") is software on the processor: --device cpu gives"), "{}", ended.stderr);
    let found = merged(ended, folder.path());
    assert_same(&expected, &found, "passthrough");
    let ended = merge_on_device("hardware", folder.path(), &[]);
    assert!(!ended.stderr.contains("is software"), "{}", ended.stderr);
    merged(ended, folder.path());
}

#[test]
fn too_little_memory_is_reported_or_done_without() {
    let folder = one_tensor(Dtype::BF16, 300_000, "ties", "weight: 0.5, density: 0.4", &|_| {});
    let expected = of_cpu(folder.path());
    let more = ["--threads", "1", "--chunk-tiles", "64"];
    // The check of its first use takes memory too.
    merged(merge_on_device("", folder.path(), &more), folder.path());
    let (mut without, mut with_less) = (0, 0);
    for bytes in (0..16).map(|step| step * 1_000_000) {
        let ended = merge_on_device(&format!("memory={bytes}"), folder.path(), &more);
        if ended.code == Some(0) {
            without += 1;
            with_less += usize::from(ended.stderr.contains("of its memory at most, in place of "));
            assert_same(&expected, &merged(ended, folder.path()), &format!("{bytes} bytes"));
        } else {
            ended.failed(5, &["cannot get", "no room", "--device-memory"]);
            assert_nothing_left(folder.path());
        }
    }
    assert!(
        (2..16).contains(&without) && (1..without).contains(&with_less),
        "{without} merges, {with_less} with less"
    );
}

#[test]
fn what_is_not_there_is_reported() {
    let folder = one_tensor(Dtype::BF16, 5000, "ties", "weight: 0.5, density: 0.4", &|_| {});
    let path = folder.path();
    merge("", path, &["--device", "wgpu:7"]).failed(5, &["wgpu:7", "mergeforge devices"]);
    merge("", path, &["--device", "wgpu:radeon"]).failed(5, &["none of the", "mergeforge devices"]);
    merge("", path, &["--device", "gpu"]).failed(2, &["cuda, wgpu, cpu"]);
    merge_on_device("binding=1000", path, &[]).failed(5, &["1000 bytes at once", "--device cpu"]);
    merge_on_device("poor", path, &[]).failed(5, &["8192 bytes of workgroup memory", "--device cpu"]);
    let ended = merge("hardware,poor", path, &[]);
    assert!(ended.stderr.contains("merging on the CPU"), "{}", ended.stderr);
    merged(ended, path);
    merge_on_device("fly", path, &[]).failed(2, &["MERGEFORGE_WGPU", "fly is not known"]);
    let shaders = mistaken("consensus.wgsl", "fn vote(", "fn vote(,");
    merge_on_device(&format!("shaders={}", shaders.path().display()), path, &[])
        .failed(5, &["cannot compile the shader consensus"]);
    assert_nothing_left(path);
    let reported = on("", &["devices", "--json"]).succeeded();
    let devices: Json = serde_json::from_str(&reported.stdout).unwrap();
    // Software that looks like a GPU is not chosen by itself.
    assert_eq!(devices["auto"], "cpu");
    let ours = devices["devices"].as_array().unwrap().iter().find(|device| device["id"] == "wgpu:0").unwrap();
    assert_eq!((&ours["facts"]["kind"], &ours["facts"]["backend"]), (&"software".into(), &"vulkan".into()));
}

#[test]
fn a_merge_survives_kills_at_any_moment() {
    let program = || {
        let mut command = mergeforge();
        command.env("MERGEFORGE_WGPU", "").env("MERGEFORGE_CACHE", cache());
        command
    };
    kills::survives(DEVICE, 60_000, &program, &["--device", DEVICE]);
}
