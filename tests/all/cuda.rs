//! CUDA without a GPU: the program, its kernels and its scheduler on a driver that runs kernels on the CPU.
//!
//! The driver (`tests/cuda/`) executes each stream's work late and in a random order that honours only events and
//! synchronisation, so a missing wait shows. Every case is a process of its own that finds this driver instead of the
//! machine's.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mergeforge::kernel::KERNELS;
use safetensors::Dtype;
use tempfile::TempDir;

use super::first_use;
use crate::averages;
use crate::command::{self, Ended, ROOT, assert_nothing_left, mergeforge};
use crate::cuda_driver::{Driver, Sanitizer};
use crate::float64;
use crate::kills;
use crate::models::{self, PLAIN, Tensors, stored, tuned, weights};
use crate::same_bytes;

fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(Driver::new)
}

/// The program on the driver, with settings of the driver (without their prefix) and arguments.
fn on(driver: &Driver, settings: &[(&str, &str)], arguments: &[&str]) -> Ended {
    command_on(driver, settings, arguments).output().expect("the program starts").into()
}

fn command_on(driver: &Driver, settings: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = mergeforge();
    driver.apply(&mut command).args(arguments);
    for (name, value) in settings {
        command.env(format!("FAKE_CUDA_{name}"), value);
    }
    command
}

/// Merges `folder/config.yml` into `folder/out`.
pub fn merge(driver: &Driver, settings: &[(&str, &str)], folder: &Path, more: &[&str]) -> Ended {
    let (config, out) = (folder.join("config.yml"), folder.join("out"));
    let paths = ["merge", config.to_str().unwrap(), out.to_str().unwrap()];
    on(driver, settings, &[&paths[..], more].concat())
}

/// A merge's tensors; the output is taken away again.
fn merged(ended: Ended, folder: &Path) -> Tensors {
    ended.succeeded();
    let out = folder.join("out");
    let tensors = models::read(&out);
    std::fs::remove_dir_all(&out).unwrap();
    tensors
}

/// Adapters are added on the way to the device.
#[test]
fn models_with_adapters_give_the_bytes_of_the_cpu() {
    for method in ["linear", "ties"] {
        let folder = tempfile::tempdir().unwrap();
        let text = crate::adapters::write_merge(folder.path(), method);
        std::fs::write(folder.path().join("config.yml"), text).unwrap();
        let on = |device: &str| {
            merged(merge(driver(), &[], folder.path(), &["--no-cache", "--device", device]), folder.path())
        };
        assert!(on("cpu") == on("cuda"), "{method}");
    }
}

/// Each has its share of the tensors. One that fails ends the merge for all, and so does a signal.
#[test]
fn all_devices_together_give_the_bytes_of_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    for (seed, name) in (1..).zip(["base", "a", "b"]) {
        let tensor = |i: u64| {
            (
                format!("model.layers.{i}.w.weight"),
                stored(Dtype::BF16, &[30, 700], &weights(21_000, 10 * seed + i)),
            )
        };
        models::write(&folder.path().join(name), &(0..9).map(tensor).collect(), PLAIN);
    }
    let path = folder.path().display();
    let models = ["a", "b"]
        .map(|name| format!("- {{model: {path}/{name}, parameters: {{weight: 0.5, density: 0.5}}}}\n"));
    let config = format!("merge_method: dare_ties\nbase_model: {path}/base\nmodels:\n{}", models.concat());
    std::fs::write(folder.path().join("config.yml"), config).unwrap();
    let on = |devices: &str, more: &[&str]| {
        let flags = [&["--no-cache", "--out-shard-size", "50kB", "--json", "--quiet"], more].concat();
        let ended = merge(driver(), &[("DEVICES", devices)], folder.path(), &flags).succeeded();
        let device: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        (device["run"]["device"].as_str().unwrap().to_owned(), {
            let out = folder.path().join("out");
            let files = ["mergeforge.json", "model-00001-of-00008.safetensors"]
                .map(|file| std::fs::read(out.join(file)).ok());
            let tensors = models::read(&out);
            std::fs::remove_dir_all(&out).unwrap();
            (tensors, files)
        })
    };
    let (_, cpu) = on("1", &["--device", "cpu"]);
    let mut names = Vec::new();
    for devices in ["1", "2", "3"] {
        let (name, together) = on(devices, &["--device", "cuda:all"]);
        assert!(together == cpu, "{devices} devices");
        names.push(name.matches(", ").count() + 1);
    }
    assert_eq!(names, [1, 2, 3]);
    // More devices than tensors are left, and few threads.
    let (_, together) = on("12", &["--device", "cuda:all", "-j2"]);
    assert!(together == cpu, "12 devices");
    let flags = ["--no-cache", "--device", "cuda:all"];
    let none = ["no CUDA-capable device is detected"];
    merge(driver(), &[("DEVICES", "0")], folder.path(), &flags).failed(5, &none);
    let count = folder.path().join("count");
    let counted = [("DEVICES", "2"), ("COUNT_FILE", count.to_str().unwrap())];
    merged(merge(driver(), &counted, folder.path(), &flags), folder.path());
    let calls: u64 = std::fs::read_to_string(&count).unwrap().trim().parse().unwrap();
    for call in [calls / 4, calls / 2, calls * 3 / 4] {
        let call = call.to_string();
        let settings = [("DEVICES", "2"), ("LOST_AFTER", call.as_str())];
        merge(driver(), &settings, folder.path(), &flags).failed(5, &["error: CUDA"]);
        assert_nothing_left(folder.path());
    }
}

#[test]
fn every_kernel_gives_the_bits_of_its_twin() {
    // Another seed is another order of threads and streams, which fewer cases show as well.
    for (seed, depth) in [("1", &[][..]), ("2", &["--quick"])] {
        let arguments = [&["check", "--device", "cuda"], depth].concat();
        let ended = on(driver(), &[("SEED", seed)], &arguments).succeeded();
        assert!(!ended.stdout.contains("DIFFERS") && !ended.stdout.contains("not run"), "{}", ended.stdout);
        for kernel in KERNELS.iter().filter(|kernel| kernel.name != "stream") {
            assert!(ended.stdout.contains(&format!("  {kernel} ")), "no {kernel} in {}", ended.stdout);
        }
    }
}

#[test]
fn kernels_stay_within_their_memory_and_have_no_races() {
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        on(&Driver::sanitized(sanitizer), &[], &["check", "--quick", "--device", "cuda"]).succeeded();
    }
}

/// The kernel that is compiled for a mistake in a file. One in a header is made in a kernel that uses all of it, or the one that
/// stands before the header's name, into which the header is written: the others need not be compiled again.
fn kernel_of(file: &str) -> &str {
    match file {
        "prelude.cuh" => "consensus",
        "counting.cuh" => "magnitudes",
        "choice.cuh" => "elect",
        kernel => kernel.split('/').next().expect("a first part").trim_end_matches(".cu"),
    }
}

/// The kernels with one mistake in a file: what stands there, and what takes its place. Entries of `consensus` which a quick
/// check does not ask for are left out.
pub fn mistaken(file: &str, right: &str, wrong: &str) -> tempfile::TempDir {
    let kernel = kernel_of(file);
    let file = file.split('/').next_back().expect("a last part");
    let folder = command::mistaken("kernels", file, right, wrong);
    let is_consensus = kernel == "consensus";
    let kernel = folder.path().join(format!("{kernel}.cu"));
    let mut source = std::fs::read_to_string(&kernel).unwrap();
    if Path::new(file).extension().is_some_and(|kind| kind == "cuh") {
        let header = folder.path().join(file);
        let text = std::fs::read_to_string(&header).unwrap().replace("#pragma once\n", "");
        std::fs::copy(Path::new(ROOT).join("kernels").join(file), header).unwrap();
        let include = format!("#include \"{file}\"\n");
        assert!(source.contains(&include), "{} includes {file}", kernel.display());
        source = source.replacen(&include, &text, 1);
    }
    if is_consensus {
        let asked_for = |line: &&str| !["_1_##", "_3_##", "_4_##"].iter().any(|entry| line.contains(entry));
        source = source.lines().filter(asked_for).flat_map(|line| [line, "\n"]).collect();
    }
    std::fs::write(&kernel, source).unwrap();
    folder
}

/// A quick check of the kernel with a mistake in a file, and how it ended.
fn checked<'a>(file: &'a str, right: &str, wrong: &str, sanitizer: Option<Sanitizer>) -> (&'a str, Ended) {
    let (kernel, kernels) = (kernel_of(file), mistaken(file, right, wrong));
    let driver = Driver::with_kernel(kernels.path(), kernel, sanitizer);
    (kernel, on(&driver, &[], &["check", "--quick", "--kernel", kernel, "--device", "cuda"]))
}

/// That a quick check finds a mistake in a file.
#[track_caller]
fn assert_caught(file: &str, right: &str, wrong: &str) {
    let (kernel, ended) = checked(file, right, wrong, None);
    assert_eq!(ended.code, Some(5), "{file}: {wrong}: {}{}", ended.stdout, ended.stderr);
    let reported = [format!("{kernel} of "), "wrote behind its results".into()];
    assert!(reported.iter().any(|reported| ended.stderr.contains(reported)), "{file}: {}", ended.stderr);
}

#[test]
fn mistakes_in_kernels_are_caught() {
    let cases = [
        // Equal magnitudes cut a tile late; a vote's tie to the other side; a fused multiply-add; another order of a sum.
        (
            "consensus.cu",
            "weighted_delta(models[m], work.span->first_tile + tile, lanes",
            "weighted_delta(models[m], work.span->first_tile + tile - 1, lanes",
        ),
        ("consensus.cu", "sum >= 0.0f ? v > 0.0f", "sum > 0.0f ? v > 0.0f"),
        // The same for more models than registers hold.
        (
            "consensus.cu",
            "read<FLOAT>(work, m + 1, tile, x);\n            weighted_delta(models[m], tile_of_tensor, lanes",
            "read<FLOAT>(work, m + 1, tile, x);\n            weighted_delta(models[m], tile_of_tensor - 1, lanes",
        ),
        (
            "consensus.cu",
            "const bool agree = agrees(sum[i], v[i]);",
            "const bool agree = agrees(-sum[i], -v[i]);",
        ),
        // What is kept, counted past the end, and of the first warp alone.
        ("prelude.cuh", "keep && i < lanes", "keep"),
        ("prelude.cuh", "threadIdx.x % 32 == 0 && count", "threadIdx.x == 0 && count"),
        (
            "weighted_sum.cu",
            "sum[i] = add(sum[i], mul(c, anchored ? sub(x[i], first[i]) : x[i]));",
            "sum[i] = __builtin_fmaf(c, anchored ? sub(x[i], first[i]) : x[i], sum[i]);",
        ),
        (
            "gram.cu",
            "return group_sum(terms);",
            "return add(add(add(terms[0], terms[1]), terms[2]), terms[3]);",
        ),
        ("segment_sum.cu", "by_columns ? element % columns", "by_columns ? element / columns"),
        // Tiles and intervals of every kind, on the way of whole tiles and beside it; and which of them takes which way.
        ("levels.cu", "own[i] >= key", "own[i] > key"),
        ("levels.cu", "LEVEL_WORDS) <= place", "LEVEL_WORDS) < place"),
        ("levels.cu", "last < KEY_MAX", "last <= KEY_MAX"),
        ("magnitudes.cu", "(own[i] & low_bits) != 0", "(own[i] & low_bits) == 0"),
        ("magnitudes.cu", "(place & low_bits) != 0", "(place & low_bits) == 0"),
        ("magnitudes.cu", "lowest + (BINS << shift) <= KEY_MAX", "lowest + ((BINS - 1) << shift) <= KEY_MAX"),
        ("magnitudes.cu", "work.span->elements / TILE", "(work.span->elements + TILE - 1) / TILE"),
        ("magnitudes.cu", "if (common & binned[m].low_bits)", "if (false)"),
        ("counting.cuh", "place == interval.common", "place <= interval.common"),
        ("counting.cuh", "sub(fabsf(delta), interval", "sub(delta, interval"),
        ("masked_sums.cu", "v[i] = i < lanes ? absolute(v[i]) : 0.0f;", "v[i] = absolute(v[i]);"),
        ("keys.cu", "model * length", "model * TILE"),
    ];
    for (file, right, wrong) in cases {
        assert_caught(file, right, wrong);
    }
}

/// Choices of elements, the rules of elections, what is measured of a choice, and bits, which all kernels read.
#[test]
fn mistakes_in_choices_and_elections_are_caught() {
    let cases = [
        // Cuts; the upper end of a band; which input decides; tiles of the tensor.
        ("choice.cuh", "lane < cut_lane", "lane <= cut_lane"),
        ("choice.cuh", "tile < cut_tile", "tile <= cut_tile"),
        ("choice.cuh", "above && !beyond", "above"),
        ("choice.cuh", "1 + models + choice.selector", "models + choice.selector"),
        ("choice.cuh", "work.span->first_tile + tile, deciding", "tile, deciding"),
        // Ties of votes and magnitudes; who counts; odd values that do not spread; what is kept, counted past the end.
        ("elect.cu", "sum >= 0.0f ? v > 0.0f", "sum > 0.0f ? v > 0.0f"),
        ("elect.cu", "key_of(terms.v[i]) > key_of", "key_of(terms.v[i]) >= key_of"),
        ("elect.cu", "agree && key_of(v) > key_of", "key_of(v) > key_of"),
        ("elect.cu", "absolute(terms.delta[i]) >= mul", "absolute(terms.delta[i]) > mul"),
        ("elect.cu", "terms.kept >> i & (unsigned)holds", "(unsigned)holds"),
        ("elect.cu", "made.holders[i] >= election.least", "made.holders[i] > election.least"),
        ("elect.cu", "agree ? part.share : 0.0f", "agree ? 1.0f : 0.0f"),
        ("elect.cu", "agree ? 0.0f : mul(0.0f, v)", "0.0f"),
        ("elect.cu", "terms.kept & exist", "terms.kept"),
        ("elect.cu", "finish<FLOAT, true>", "finish<FLOAT, false>"),
        ("chosen_sums.cu", "mul(is_kept >> i & 1 ? 1.0f : 0.0f, x[i])", "is_kept >> i & 1 ? x[i] : 0.0f"),
        ("chosen_sums.cu", "i < lanes ? mul(own, own) : 0.0f", "mul(own, own)"),
        ("holders.cu", "own[i] > threshold", "own[i] >= threshold"),
        ("holders.cu", "held_by[i] == 1u << m", "held_by[i] >> m == 1"),
        ("nearswap.cu", "d > 0.0f ? nearness.t : -nearness.t", "nearness.t"),
        ("nearswap.cu", "absolute(d) < nearness.near", "absolute(d) < nearness.t"),
        ("nearswap.cu", "add(swapped, mul(0.0f, d))", "swapped"),
        // Where a thread's bits are.
        ("keys/prelude.cuh", "threadIdx.x / 4 % 4", "threadIdx.x / 4 % 2"),
        ("keys/prelude.cuh", "threadIdx.x % 4 * 8", "threadIdx.x % 4 * 4"),
        ("keys/prelude.cuh", "threadIdx.x / 16 :", "threadIdx.x / 32 :"),
        ("keys/prelude.cuh", "TILE / 128", "TILE / 64"),
    ];
    for (file, right, wrong) in cases {
        assert_caught(file, right, wrong);
    }
}

/// The conditions under which blocks take the fast paths, and what happens there alone.
#[test]
fn mistakes_in_fast_paths_are_caught() {
    let cases = [
        // A cut inside of a block; at its beginning; a threshold that no float has; kinds of models that differ; counters of
        // more than 32 bits.
        (
            "consensus.cu",
            "model.first < begin || model.first >= end || starts_with_cut",
            "model.first < begin || model.first >= begin",
        ),
        ("consensus.cu", "tile < model.first ? 0 : 1", "tile <= model.first ? 0 : 1"),
        ("consensus.cu", "smallest_key(model, begin) <= INFINITY_BITS", "true"),
        ("consensus.cu", "ordinary &= (model.keep == KEEP_DROP) == drops;", ""),
        ("consensus.cu", "!drops || end <= SCHEDULED_TILES", "!drops || begin <= SCHEDULED_TILES"),
        // Odd values: not seen; seen, and what was kept counted twice; seen too late for float16's arithmetic.
        ("consensus.cu", "return magnitudes <= ordinary_max(output);", "return true;"),
        (
            "consensus.cu",
            "if (!__syncthreads_or(!done)) {",
            "const bool again = __syncthreads_or(!done);
            for (unsigned m = 0; m < MODELS; m++) add_up(kept_of_block + m, again ? (unsigned)kept[m] : 0);
            if (!again) {",
        ),
        ("prelude.cuh", "bfloat16_max = 0x7b800000u", "bfloat16_max = BF16_FINITE_MAX"),
        // Undecided draws; the elected sign; rounding and signs of zeros.
        ("consensus.cu", "if (undecided) {", "if (false) {"),
        ("prelude.cuh", "undecided |= upper(draws) == odd;", ""),
        ("prelude.cuh", "undecided |= lower(draws) == even;", ""),
        ("consensus.cu", "(__float_as_uint(sum[i]) & 0x80000000u) | infinity", "infinity"),
        ("prelude.cuh", "b + 0x7fffu + (b >> 16 & 1u)", "b + 0x8000u"),
        (
            "prelude.cuh",
            "without_signed_zeros(bf16_pair(values[2 * i], values[2 * i + 1]))",
            "bf16_pair(values[2 * i], values[2 * i + 1])",
        ),
        (
            "prelude.cuh",
            "without_signed_zeros(f16_pair(values[2 * i], values[2 * i + 1]))",
            "f16_pair(values[2 * i], values[2 * i + 1])",
        ),
        ("prelude.cuh", "__float_as_uint(add(values[i], 0.0f))", "__float_as_uint(values[i])"),
        // The same of sums, whose blocks have no counts.
        ("masked_sums.cu", "whole(work) && ", ""),
        ("masked_sums.cu", "work.span->first_tile + work.end <= SCHEDULED_TILES", "true"),
        ("masked_sums.cu", "ordinary &= models[m].keep == KEEP_DROP;", ""),
        ("masked_sums.cu", "undecided | !(of_all", "!(of_all"),
        ("masked_sums.cu", "undecided | !(of_all < __uint_as_float(INFINITY_BITS))", "undecided"),
    ];
    for (file, right, wrong) in cases {
        assert_caught(file, right, wrong);
    }
}

/// A store behind the results, by address checking; a missing barrier, by race checking.
#[test]
fn mistakes_that_results_may_hide_are_caught() {
    let cases = [
        (
            "keys.cu",
            "if (i < lanes) at[i] = own[i];",
            "if (i < lanes) at[i + (1 << 28)] = own[i];",
            Sanitizer::Address,
        ),
        ("levels.cu", "    __syncthreads();\n    count_tiles", "    count_tiles", Sanitizer::Thread),
    ];
    for (file, right, wrong, sanitizer) in cases {
        let (_, ended) = checked(file, right, wrong, Some(sanitizer));
        assert_eq!(ended.code, Some(134), "{file}: {}{}", ended.stdout, ended.stderr);
    }
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
        let expected = merged(merge(driver(), &[], folder.path(), &["--device", "cpu"]), folder.path());
        for more in [&["--threads", "2"][..], &["--threads", "1", "--chunk-tiles", "1"]] {
            let more = [&["--device", "cuda"], more].concat();
            let found = merged(merge(driver(), &[("SEED", "6")], folder.path(), &more), folder.path());
            assert!(found == expected, "{more:?}");
        }
    }
}

#[test]
fn merged_vocabularies_give_the_bytes_of_the_cpu() {
    for method in ["linear", "ties"] {
        let folder = crate::vocabularies::case(method);
        let expected = merged(merge(driver(), &[], folder.path(), &["--device", "cpu"]), folder.path());
        for more in [&["--threads", "2"][..], &["--chunk-tiles", "1"]] {
            let more = [&["--device", "cuda"], more].concat();
            let found = merged(merge(driver(), &[], folder.path(), &more), folder.path());
            assert!(found == expected, "{method}, {more:?}");
        }
    }
}

#[test]
fn averages_of_many_checkpoints_give_the_bytes_of_the_cpu() {
    let folder = averages::many();
    crate::command::config(folder.path(), &averages::config_of_many(folder.path(), "average"));
    let expected = merged(merge(driver(), &[], folder.path(), &["--device", "cpu"]), folder.path());
    for more in
        [&["--threads", "2"][..], &["--threads", "1", "--chunk-tiles", "1"], &["--device-memory", "8MB"]]
    {
        let more = [&["--device", "cuda"], more].concat();
        let found = merged(merge(driver(), &[("SEED", "5")], folder.path(), &more), folder.path());
        assert!(found == expected, "{more:?}");
    }
}

#[test]
fn every_method_gives_the_bytes_of_the_cpu() {
    for way in same_bytes::all_ways() {
        let folder = case(way, 30);
        let expected = merged(merge(driver(), &[], folder.path(), &["--device", "cpu"]), folder.path());
        let ways: [&[&str]; 4] = [
            &["--threads", "3"],
            &["--threads", "1", "--chunk-tiles", "1"],
            // Small chunks that are held, and hardly any memory to hold them in.
            &["--threads", "2", "--chunk-tiles", "16"],
            &["--threads", "2", "--chunk-tiles", "16", "--device-memory", "12MB"],
        ];
        let peak_file = folder.path().join("peak");
        for (seed, more) in ways.iter().enumerate() {
            let more = [&["--device", "cuda"], *more].concat();
            let settings = [("SEED", &*seed.to_string()), ("PEAK_FILE", peak_file.to_str().unwrap())];
            let found = merged(merge(driver(), &settings, folder.path(), &more), folder.path());
            if more.contains(&"--device-memory") {
                let peak: u64 = std::fs::read_to_string(&peak_file).unwrap().trim().parse().unwrap();
                assert!((1_000_000..=12_000_000).contains(&peak), "{way}: {peak} bytes of the device");
            }
            for (name, tensor) in &expected {
                assert!(found[name] == *tensor, "{way}, {more:?}, seed {seed}: {name} differs");
            }
        }
    }
}

/// Without its waits for launches the program must fail: else the tests above would prove nothing about them.
#[test]
fn missing_waits_are_caught() {
    let folder = case("ties", 31);
    let expected = merged(merge(driver(), &[], folder.path(), &["--device", "cpu"]), folder.path());
    let wrong = (0..8).filter(|seed| goes_wrong(&folder, &expected, *seed)).count();
    assert!(wrong >= 4, "{wrong} of 8 seeds show it");
}

/// Whether a merge that waits for nothing is noticed: by its bytes, by counts that contradict them, or by results that are not
/// there yet. Any other failure fails the test.
fn goes_wrong(folder: &TempDir, expected: &Tensors, seed: u32) -> bool {
    let settings = [("SEED", &*seed.to_string()), ("IGNORE_WAITS", "4")];
    let ended = merge(driver(), &settings, folder.path(), &["--device", "cuda", "--threads", "1"]);
    if ended.code == Some(0) {
        return merged(ended, folder.path()) != *expected;
    }
    let ways = ["contradicts itself", "wrote behind its results"];
    assert!(
        ended.code == Some(5) && ways.iter().any(|says| ended.stderr.contains(says)),
        "{seed}: {ended:?}"
    );
    true
}

/// Several outputs of the same inputs: what one launch copies in is held for others, which must not find it before it is there.
#[test]
fn what_is_held_for_other_outputs_is_there() {
    let folder = bfloat16_case(1, 2 << 10, "ties");
    let source = |model: &str| format!("{{model: {}/{model}, layer_range: [0, 1]}}", folder.path().display());
    let slice = format!("  - sources: [{}, {}]\n", source("m0"), source("m1"));
    let config = format!("merge_method: linear\nparameters: {{weight: 0.3}}\nslices:\n{}", slice.repeat(12));
    command::config(folder.path(), &config);
    let expected = merged(merge(driver(), &[], folder.path(), &["--device", "cpu"]), folder.path());
    for seed in 0..12 {
        let settings = [("SEED", &*seed.to_string())];
        let arguments = ["--device", "cuda", "--threads", "3", "--chunk-tiles", "1", "--json"];
        let ended = merge(driver(), &settings, folder.path(), &arguments).succeeded();
        let manifest: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let twelve_times = 12 * 2 * 2 * (2 << 10);
        let copied = stage_bytes(&manifest, "copy in");
        assert!(copied < twelve_times, "seed {seed}: nothing was held: {copied} bytes");
        assert!(merged(ended, folder.path()) == expected, "seed {seed}");
    }
}

/// What a run asks the driver for, call by call: the number of a thread, and the function.
fn calls(run: impl FnOnce(&(&str, &str))) -> Vec<(usize, String)> {
    let log = tempfile::NamedTempFile::new().unwrap();
    run(&("CALL_LOG", log.path().to_str().unwrap()));
    let text = std::fs::read_to_string(log.path()).unwrap();
    let call = |line: &str| {
        let (thread, function) = line.split_once(' ').unwrap();
        (thread.parse().unwrap(), function.to_string())
    };
    text.lines().map(call).collect()
}

/// Memory is pinned by a thread that has nothing else to do, from when the device is open; not for a plan, nor for a merge that
/// is refused.
#[test]
fn memory_is_pinned_beside_what_comes_before_the_first_launch() {
    const THREADS: usize = 3;
    let folder = bfloat16_case(2, 1 << 18, "ties");
    let arguments = ["--device", "cuda", "--threads", &THREADS.to_string(), "--chunk-tiles", "128"];
    let merged = calls(|log| {
        merge(driver(), &[*log, ("LOAD_MS", "1000")], folder.path(), &arguments).succeeded();
    });
    let by_function = |name: &str| {
        let of = merged.iter().enumerate().filter(|(_, (_, function))| function == name);
        of.map(|(at, (thread, _))| (at, *thread)).collect::<Vec<_>>()
    };
    let (pinned, launched) = (by_function("cuMemHostAlloc"), by_function("cuLaunchKernel"));
    // Two flights a worker, each with inputs and results.
    assert_eq!(pinned.len(), 4 * THREADS);
    assert!(pinned.iter().all(|(_, thread)| *thread == pinned[0].1), "{pinned:?}");
    assert!(launched.iter().all(|(_, thread)| *thread != pinned[0].1), "{pinned:?}, {launched:?}");
    // The kernels are found when they have been compiled, which takes long here.
    let compiled = by_function("cuModuleGetFunction");
    assert!(pinned.iter().all(|(at, _)| *at < compiled[0].0), "{pinned:?}, {compiled:?}");

    let pins =
        |calls: Vec<(usize, String)>| calls.iter().filter(|(_, name)| name == "cuMemHostAlloc").count();
    let config = folder.path().join("config.yml");
    let planned = calls(|log| {
        on(driver(), &[*log], &["plan", config.to_str().unwrap(), "--device", "cuda"]).succeeded();
    });
    assert_eq!(pins(planned), 0);
    // The output is there already.
    let refused = calls(|log| {
        merge(driver(), &[*log], folder.path(), &arguments).failed(2, &["out", "not empty"]);
    });
    assert_eq!(pins(refused), 0);
}

/// All calls of the driver that grow with the number of launches: copies, fills, the launch, and how its end is waited for.
#[test]
fn a_launch_takes_few_driver_calls() {
    const CALLS_MAX: f64 = 8.0;
    // Every chunk is held after the first sweep and found in the second.
    for (method, trace) in [("ties", false), ("dare_ties", false), ("linear", false), ("ties", true)] {
        let [few, many] = [1 << 17, 1 << 19].map(|elements| {
            let folder = bfloat16_case(2, elements, "ties");
            first_use::method_config(folder.path(), method);
            let [count, launches, trace_file] =
                ["count", "launches", "trace"].map(|name| folder.path().join(name));
            let settings = [("COUNT_FILE", &count), ("LAUNCH_LOG", &launches)];
            let settings = settings.map(|(name, path)| (name, path.to_str().unwrap()));
            let mut arguments = vec!["--device", "cuda", "--threads", "1", "--chunk-tiles", "8"];
            if trace {
                arguments.extend(["--trace", trace_file.to_str().unwrap()]);
            }
            merge(driver(), &settings, folder.path(), &arguments).succeeded();
            let read = |file: &Path| std::fs::read_to_string(file).unwrap();
            (read(&count).trim().parse::<f64>().unwrap(), read(&launches).lines().count() as f64)
        });
        assert!(many.1 > few.1 + 30.0, "{method}: {few:?}, {many:?}");
        let calls = (many.0 - few.0) / (many.1 - few.1);
        // A trace needs the device's clock, which shows that calls are counted.
        assert_eq!((calls > 0.0 && calls <= CALLS_MAX), !trace, "{method}: {calls:.2} calls a launch");
    }
}

/// A device that counts wrongly contradicts what it then keeps.
#[test]
fn wrong_counts_are_found_out_by_the_merge() {
    let folder = bfloat16_case(2, 1 << 16, "ties");
    let kernels = mistaken("prelude.cuh", "threadIdx.x % 32 == 0 && count", "threadIdx.x == 0 && count");
    let ended = merge(&Driver::with_kernels(kernels.path()), &[], folder.path(), &["--device", "cuda"]);
    ended.failed(5, &["tensor model.layers.0.mlp.weight", "contradicts itself", "hint: "]);
    assert_nothing_left(folder.path());
}

/// A base and models whose deltas take few values, as bfloat16 weights have them.
pub fn bfloat16_case(models: usize, elements: usize, method: &str) -> tempfile::TempDir {
    bfloat16_case_with(models, elements, method, &|_| {})
}

/// What is done to the values of every model but the base.
pub type Change<'a> = &'a dyn Fn(&mut [f32]);

/// The same, with something done to the models.
pub fn bfloat16_case_with(
    models: usize,
    elements: usize,
    method: &str,
    change: Change<'_>,
) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let base = weights(elements, 5);
    let mut config =
        format!("merge_method: {method}\nbase_model: {0}/m0\nmodels:\n", folder.path().display());
    for model in 0..=models {
        let mut values = if model == 0 { base.clone() } else { tuned(&base, 50 + model as u64) };
        if model > 0 {
            change(&mut values);
        }
        let tensor = stored(Dtype::BF16, &[elements / 1024, 1024], &values);
        let tensors = Tensors::from([("model.layers.0.mlp.weight".to_string(), tensor)]);
        models::write(&folder.path().join(format!("m{model}")), &tensors, PLAIN);
        if model > 0 {
            config += &format!(
                "  - model: {}/m{model}\n    parameters: {{weight: 0.5, density: 0.3}}\n",
                folder.path().display()
            );
        }
    }
    command::config(folder.path(), &config);
    folder
}

/// Bytes of a stage, as a merge with `--json` says them.
fn stage_bytes(manifest: &serde_json::Value, stage: &str) -> u64 {
    let stages = manifest["run"]["stages"].as_array().unwrap();
    let of_device = |found: &&serde_json::Value| found["stage"] == stage && found["by"] == "device";
    stages.iter().find(of_device).unwrap_or_else(|| panic!("no {stage} in {stages:?}"))["bytes"]
        .as_u64()
        .unwrap()
}

/// Counted in the launches: one counting sweep and the fused pass, or two where the sample misleads, or none where the
/// thresholds are known from another merge; and every input crosses to the device once.
#[test]
fn a_trimmed_merge_stays_within_its_bytes() {
    const ELEMENTS: usize = 1 << 21;
    let tiles = ELEMENTS / 1024;
    // Where the first sample looks, everything has moved a lot.
    let misleading = |values: &mut [f32]| {
        for tile in (0..tiles).step_by(tiles / 32) {
            values[tile * 1024..][..1024].iter_mut().for_each(|value| *value += 0.5);
        }
    };
    for models in [2, 4] {
        let inputs = 2 * models + 2;
        let per_parameter = |folder: &Path, stages: [&str; 2]| {
            let cache = folder.join("cache");
            let (config, out) = (folder.join("config.yml"), folder.join("out"));
            let mut command = command_on(driver(), &[], &["merge", "--device", "cuda", "--json"]);
            let command = command.args([config, out]).env("MERGEFORGE_CACHE", cache);
            let ended = Ended::from(command.output().unwrap()).succeeded();
            let manifest: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
            (
                stages.map(|stage| stage_bytes(&manifest, stage) as f64 / ELEMENTS as f64),
                merged(ended, folder),
            )
        };
        // A sample's keys are written as 4 bytes; so are those of the 64th of the tensor in which a model's cut is.
        let sample = |tiles: usize| tiles * (inputs + 4 * models);
        let cuts = tiles / 64 * models * (2 * 2 + 4);
        let cases: [(&str, Change<'_>, usize, usize); 2] = [
            ("usual", &|_| {}, 2 * inputs + 2, sample(32)),
            ("misleading", &misleading, 3 * inputs + 2, sample(32 + 64)),
        ];
        for (data, change, budget, samples) in cases {
            let folder = bfloat16_case_with(models, ELEMENTS, "ties", change);
            let (first, expected) = per_parameter(folder.path(), ["compute", "copy in"]);
            // A tenth for the tables and counters of launches.
            let around = 1.1 * (samples + cuts) as f64 / tiles as f64;
            for (moved, budget) in first.into_iter().zip([budget, inputs]) {
                let budget = budget as f64;
                assert!((budget..budget + around).contains(&moved), "{models} models, {data}: {moved}");
            }
            let (second, found) = per_parameter(folder.path(), ["compute", "copy in"]);
            assert_eq!(second[0], (inputs + 2) as f64, "{models} models, {data}, again");
            assert!(
                second[1] < inputs as f64 + 0.1,
                "{models} models, {data}, again: {} copied in",
                second[1]
            );
            assert!(found == expected, "{models} models, {data}: another merge, other bytes");
        }
    }
}

/// Inputs that are cut off, and outputs that cannot be written, while launches are under way.
#[test]
fn failing_files_under_launches_are_clear_errors() {
    let arguments = ["--device", "cuda", "--threads", "2", "--chunk-tiles", "16"];
    let folder = bfloat16_case(2, 1 << 19, "ties");
    let (input, out) = (folder.path().join("m1/model.safetensors"), folder.path().join("out"));
    let count_file = folder.path().join("count");
    let count = [("COUNT_FILE", count_file.to_str().unwrap())];
    merged(merge(driver(), &count, folder.path(), &arguments), folder.path());
    let calls: u32 = std::fs::read_to_string(&count_file).unwrap().trim().parse().unwrap();
    // Writing begins with the last of three sweeps.
    let disturbed = |part: u32, line: &str| {
        let mut command = Command::new("sh");
        // A write beyond a limit raises a signal, unless that is ignored.
        command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_mergeforge"), "merge"]);
        command.arg(folder.path().join("config.yml")).arg(&out).args(arguments).current_dir(ROOT);
        driver().apply(&mut command);
        command.env("MERGEFORGE_CACHE", "").env("FAKE_CUDA_COMMAND", line);
        command.env("FAKE_CUDA_AT_CALL", (calls * part / 100).to_string());
        let started = Instant::now();
        let ended = Ended::from(command.output().unwrap());
        assert!(started.elapsed() < Duration::from_mins(1), "{line}");
        assert_nothing_left(folder.path());
        ended
    };
    for part in [70, 85] {
        disturbed(part, "prlimit --pid $PPID --fsize=4096:4096")
            .failed(4, &["out.partial/model.safetensors", "File too large", "hint: "]);
    }
    let whole = std::fs::read(&input).unwrap();
    for part in [20, 35] {
        let ended =
            disturbed(part, &format!("truncate -s 3000 '{}'", input.display())).failed(3, &["hint: "]);
        assert!(ended.stderr.contains("while it was read"), "{}", ended.stderr);
        std::fs::write(&input, &whole).unwrap();
    }
}

/// The same on a disk of its own, which fills up.
#[test]
fn a_disk_that_fills_under_launches_is_a_clear_error() {
    if !Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success()) {
        return eprintln!("not run: this system gives no mount namespace");
    }
    let folder = bfloat16_case(2, 1 << 19, "ties");
    let disk = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    let line = "mount -t tmpfs -o size=2m tmpfs \"$0\" && \"$@\"; code=$?; rm -f \"$0/fill\"; ls -A \"$0\"; exit $code";
    command.args(["-rm", "sh", "-c", line]).arg(disk.path()).current_dir(ROOT);
    command.args([env!("CARGO_BIN_EXE_mergeforge"), "merge", "--device", "cuda", "--chunk-tiles", "16"]);
    command.arg(folder.path().join("config.yml")).arg(disk.path().join("out"));
    driver().apply(&mut command);
    let fill =
        format!("dd if=/dev/zero of='{}' bs=4096 2>/dev/null; true", disk.path().join("fill").display());
    command.env("MERGEFORGE_CACHE", "").env("FAKE_CUDA_COMMAND", fill).env("FAKE_CUDA_AT_CALL", "120");
    Ended::from(command.output().unwrap()).failed(4, &["disk full: cannot write ", "out.partial", "hint: "]);
}

/// Of every driver call that a merge makes, each one fails once: an error that says so, nothing left, no hang.
#[test]
fn every_failing_driver_call_is_a_clear_error() {
    let folder = bfloat16_case(2, 1 << 16, "ties");
    let count_file = folder.path().join("count");
    let arguments = ["--device", "cuda", "--threads", "2", "--chunk-tiles", "16"];
    let count = [("COUNT_FILE", count_file.to_str().unwrap())];
    let expected = merged(merge(driver(), &count, folder.path(), &arguments), folder.path());
    let calls: u32 = std::fs::read_to_string(&count_file).unwrap().trim().parse().unwrap();
    assert!(calls > 100, "{calls} calls");
    let mut failures = 0;
    for call in 1..=calls {
        let started = Instant::now();
        let ended = merge(driver(), &[("FAIL_CALL", &call.to_string())], folder.path(), &arguments);
        assert!(started.elapsed() < Duration::from_mins(1), "call {call}");
        if ended.code == Some(0) {
            // Handles that cannot be closed any more when all is written.
            assert_eq!(merged(ended, folder.path()), expected, "call {call}");
            continue;
        }
        ended.failed(5, &["error: ", "CUDA", "hint: "]);
        assert_nothing_left(folder.path());
        failures += 1;
    }
    assert!(failures > calls / 2, "{failures} of {calls} calls");
}

#[test]
fn a_lost_device_is_a_clear_error() {
    let folder = case("dare_ties", 32);
    let count_file = folder.path().join("count");
    let count = [("COUNT_FILE", count_file.to_str().unwrap())];
    merged(merge(driver(), &count, folder.path(), &["--device", "cuda"]), folder.path());
    let calls: u32 = std::fs::read_to_string(&count_file).unwrap().trim().parse().unwrap();
    for quarter in 1..4 {
        let lost = [("LOST_AFTER", &*(calls * quarter / 5).to_string())];
        merge(driver(), &lost, folder.path(), &["--device", "cuda"]).failed(5, &["CUDA", "hint: "]);
        assert_nothing_left(folder.path());
    }
}

#[test]
fn too_little_memory_is_a_clear_error() {
    let folder = bfloat16_case(2, 1 << 20, "ties");
    let arguments = ["--device", "cuda", "--device-memory", "200MB"];
    let of_device = ["cannot get", "of the device's memory", "hint: ", "--device-memory"];
    let of_host = ["cannot pin", "of host memory", "hint: ", "--host-memory"];
    for (memory, says) in [("MEMORY", of_device), ("HOST_MEMORY", of_host)] {
        let ended = merge(driver(), &[(memory, "20000")], folder.path(), &arguments);
        ended.failed(5, &says);
        assert_nothing_left(folder.path());
    }
    // Where the device has less than it may be asked for, the merge goes on with a half of that, or a half of the half.
    let expected = merged(merge(driver(), &[], folder.path(), &["--device", "cpu"]), folder.path());
    for (memory, used) in [("60000000", "50.0 MB"), ("10000000", "6.2 MB"), ("500000", "390.6 kB")] {
        let ended = merge(driver(), &[("MEMORY", memory)], folder.path(), &arguments).succeeded();
        let note = format!(": merging with {used} of its memory at most, in place of 200.0 MB");
        assert!(ended.stderr.contains("note: CUDA: cannot get "), "{}", ended.stderr);
        assert!(ended.stderr.contains(&note), "{memory}: {}", ended.stderr);
        assert!(merged(ended, folder.path()) == expected, "{memory}");
    }
    let ended = merge(driver(), &[("MEMORY", "300000000")], folder.path(), &arguments);
    assert!(!ended.stderr.contains("note: "), "{}", ended.stderr);
    merged(ended, folder.path());
    // Less than one chunk of one tile is refused before anything is read.
    let ended = merge(driver(), &[], folder.path(), &["--device", "cuda", "--device-memory", "10kB"]);
    ended.failed(2, &["--device-memory", "needs at least"]);
    assert_nothing_left(folder.path());
}

#[test]
fn what_is_not_there_is_reported() {
    let folder = bfloat16_case(2, 1 << 12, "task_arithmetic");
    let cases: [(&str, &str, &str); 3] =
        [("DEVICES", "0", "use --device cpu"), ("VERSION", "11040", "too old"), ("CAPABILITY", "61", "7.5")];
    for (setting, value, says) in cases {
        let settings = [(setting, value)];
        merge(driver(), &settings, folder.path(), &["--device", "cuda"]).failed(5, &[says, "hint: "]);
        assert_nothing_left(folder.path());
    }
    merge(driver(), &[], folder.path(), &["--device", "cuda:1"]).failed(5, &["cuda:1", "mergeforge devices"]);
    merge(driver(), &[], folder.path(), &["--device", "tpu"]).failed(2, &["tpu", "auto, cuda, wgpu, cpu"]);
    // Files of the driver's names that are no libraries: the search for a driver ends there.
    let none = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::write(none.path().join(name), "no library").unwrap();
    }
    let broken = Driver { folder: none.path().to_path_buf() };
    merge(&broken, &[], folder.path(), &["--device", "cuda"])
        .failed(5, &["no NVIDIA driver", "--device cpu"]);
    let too_old = [("CAPABILITY", "61")];
    let ended = merge(driver(), &too_old, folder.path(), &["--device", "auto"]);
    assert!(ended.stderr.contains("7.5 (Turing) is the oldest supported"), "{}", ended.stderr);
    merged(ended, folder.path());
    let ended = merge(&broken, &[], folder.path(), &["--device", "auto"]);
    assert!(ended.stderr.contains("no NVIDIA driver"), "{}", ended.stderr);
    merged(ended, folder.path());
}

#[test]
fn auto_takes_the_gpu() {
    let ended = on(driver(), &[], &["devices", "--json"]).succeeded();
    let devices: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(devices["auto"], "cuda:0");
    assert_eq!(devices["devices"][0]["facts"]["compute_capability"], "9.0");
    assert_eq!(devices["devices"][0]["memory_bytes"], 1 << 30);
    let folder = bfloat16_case(2, 1 << 12, "task_arithmetic");
    let ended = merge(driver(), &[], folder.path(), &["--json"]).succeeded();
    assert!(ended.stdout.contains("\"device\": \"cuda:0 "), "{}", ended.stdout);
}

/// Of three devices: one that does not answer, and one that cannot be opened, as a GPU that another process has for itself.
#[test]
fn a_device_that_fails_hides_no_other() {
    // Settings, what the note says, and the device that merges.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    let three = ("DEVICES", "3");
    for word in [&["devices"][..], &["devices", "--json"]] {
        let listed = calls(|log| {
            let ended = on(driver(), &[*log, three, ("SILENT", "0"), ("CLOSED", "1")], word).succeeded();
            let (list, count) = (&ended.stdout, |what: &str| ended.stdout.matches(what).count());
            assert_eq!((count("CPU as a CUDA device"), count("an NVIDIA GPU")), (2, 1), "{list}");
            assert_eq!(count("cannot ask for the device's name: unknown error"), 1, "{list}");
            assert!(list.contains("--device cpu gives the same bytes") && list.contains("cuda:1"), "{list}");
        });
        // A context takes memory of a device that is only listed.
        assert!(
            !listed.is_empty()
                && listed.iter().all(|(_, name)| name.starts_with("cuInit")
                    || name.starts_with("cuDriverGet")
                    || name.starts_with("cuDeviceGet")
                    || name.starts_with("cuDeviceTotal")),
            "{listed:?}"
        );
    }

    let folder = bfloat16_case(2, 1 << 12, "task_arithmetic");
    let expected = merged(merge(driver(), &[], folder.path(), &["--device", "cpu"]), folder.path());
    let cases: [Case<'_>; 4] = [
        (
            &[("SILENT", "0")],
            &["cuda:0: CUDA: cannot ask for the device's name", ": merging on cuda:1"],
            "cuda:1",
        ),
        (&[("CLOSED", "0")], &["cuda:0: CUDA: cannot open the device", ": merging on cuda:1"], "cuda:1"),
        (
            &[("SILENT", "1"), ("CLOSED", "0")],
            &["cuda:0: CUDA: cannot open", ": merging on cuda:2"],
            "cuda:2",
        ),
        (&[("CLOSED", "2")], &[], "cuda:0"),
    ];
    for (settings, notes, device) in cases {
        let settings = [settings, &[three]].concat();
        let ended = merge(driver(), &settings, folder.path(), &["--json"]).succeeded();
        let talk = ended.stderr.matches("\"level\":\"note\"").count();
        assert_eq!(talk, notes.len().min(1), "{}", ended.stderr);
        assert!(notes.iter().all(|note| ended.stderr.contains(note)), "{}", ended.stderr);
        let found: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let on = found["run"]["device"].as_str().unwrap();
        assert!(on.starts_with(&format!("{device} ")), "{on}");
        assert_eq!(merged(ended, folder.path()), expected);
    }
    // All of them fail.
    let ended = merge(driver(), &[("CLOSED", "0")], folder.path(), &[]);
    assert!(ended.stderr.contains("cuda:0: CUDA: cannot open the device"), "{}", ended.stderr);
    assert!(ended.stderr.contains(": merging on the CPU"), "{}", ended.stderr);
    merged(ended, folder.path());
    // Who names a family gets the first of it that can be opened; who names one gets that one.
    let ended = merge(driver(), &[three, ("CLOSED", "0")], folder.path(), &["--device", "cuda"]).succeeded();
    assert!(ended.stderr.contains(": merging on cuda:1"), "{}", ended.stderr);
    merged(ended, folder.path());
    merge(driver(), &[("CLOSED", "0")], folder.path(), &["--device", "cuda"])
        .failed(5, &["cuda:0: ", "UNAVAILABLE", "hint: "]);
    let closed = [three, ("CLOSED", "1")];
    merge(driver(), &closed, folder.path(), &["--device", "cuda:1"])
        .failed(5, &["cuda:1: ", "UNAVAILABLE", "hint: "]);
    let checked = on(driver(), &[("DEVICES", "2"), ("CLOSED", "0")], &["check", "--quick"]);
    assert!(checked.code == Some(5) && checked.stderr.contains("cuda:0: CUDA: cannot open"), "{checked:?}");
    let rows = "cuda:0: CPU as a CUDA device: not checked\ncuda:1: CPU as a CUDA device\n  kernel ";
    assert!(checked.stdout.starts_with(rows), "{}", checked.stdout);
}

#[test]
fn benches_time_every_kernel() {
    let arguments =
        ["bench", "kernels", "--device", "cuda", "--mebi-elements", "1", "--repeat", "1", "--json"];
    let log_file = tempfile::NamedTempFile::new().unwrap();
    let mut said = String::new();
    let asked = calls(|log| {
        let settings = [*log, ("LAUNCH_LOG", log_file.path().to_str().unwrap())];
        said = on(driver(), &settings, &arguments).succeeded().stdout;
    });
    // A kernel's time begins behind the fills, and ends before anything else.
    let timed = ["cuMemsetD8Async", "cuMemsetD8Async", "cuEventRecord", "cuLaunchKernel", "cuEventRecord"];
    let found = asked.windows(timed.len()).filter(|calls| calls.iter().map(|(_, name)| name).eq(&timed));
    let entries = std::fs::read_to_string(log_file.path()).unwrap();
    assert_eq!(found.count(), entries.lines().count());
    // After the launch that brings all tensors to the device: each of the five is copied.
    let copies = entries.lines().skip(1).take_while(|line| line.starts_with("stream_1_bfloat16 "));
    assert_eq!(copies.count(), 5);
    let bench: serde_json::Value = serde_json::from_str(&said).unwrap();
    let rows = bench["kernels"].as_array().unwrap();
    let fused =
        |what: &str| rows.iter().find(|row| row["what"] == what).unwrap()["bytes_per_parameter"].as_f64();
    assert_eq!(fused("ties, base + 2"), Some(8.0));
    assert_eq!(fused("ties, base + 4"), Some(12.0));
    for row in rows {
        assert!(row["seconds"].as_f64().unwrap() > 0.0 && row["gb_per_s"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn a_merge_survives_kills_at_any_moment() {
    kills::survives("cuda", 20_000, &|| command_on(driver(), &[], &[]), &["--device", "cuda"]);
}
