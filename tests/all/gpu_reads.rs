//! Texts read on a GPU: the forward pass on a driver and a cuBLAS that compute on the CPU.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::command::{self, Ended, ROOT, mergeforge};
use crate::cuda_driver::{Driver, Sanitizer};
use crate::decoder::DEVICE;

fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| Driver::new().with_cublas())
}

/// The test that compares states with those of transformers, in a process of its own that computes them on a driver's device.
fn states_on(driver: &Driver, settings: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(std::env::current_exe().unwrap());
    driver.apply(&mut command).args(["decoder::states_are_those_of_transformers", "--exact"]);
    command.env(DEVICE, "cuda").env("RUST_BACKTRACE", "0");
    for (name, value) in settings {
        command.env(format!("FAKE_CUDA_{name}"), value);
    }
    let ended: Ended = command.output().unwrap().into();
    assert!(ended.stdout.contains("running 1 test"), "{}", ended.stdout);
    ended
}

/// All kinds of decoders, with streams that do their work as late and in as odd an order as they may.
#[test]
fn states_are_those_of_transformers_on_a_gpu() {
    for seed in ["1", "2", "3"] {
        states_on(driver(), &[("SEED", seed)]).succeeded();
    }
}

#[test]
fn kernels_of_the_forward_pass_stay_within_their_memory_and_have_no_races() {
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        states_on(&Driver::sanitized(sanitizer).with_cublas(), &[]).succeeded();
    }
}

#[test]
fn mistakes_in_the_forward_pass_are_caught() {
    for (right, wrong) in [
        ("rest = sub(rest, float_of_bf16(bits));", "rest = 0.0f;"),
        ("terms[term * count + i]", "terms[i]"),
        ("add(__fdiv_rn(squares, (float)width), epsilon)", "__fdiv_rn(squares, (float)width)"),
        ("i / half / heads * half + pair", "i / half * half + pair"),
        ("sub(mul(a, turn.x), mul(b, turn.y))", "add(mul(a, turn.x), mul(b, turn.y))"),
        ("last + blockIdx.x % tokens + 1", "last + blockIdx.x / tokens + 1"),
        ("end > window ? end - window : 0", "0"),
        ("i >= first && i < end ? mul(row[i], scale) : 0.0f", "mul(row[i], scale)"),
        ("y[i] = add(y[i], bias[i % width])", "y[i] = add(y[i], bias[0])"),
        ("exponential(-gate[i])", "exponential(gate[i])"),
        ("mul(whole, -2.1219444e-4f)", "0.0f"),
    ] {
        let folder = command::mistaken("kernels/forward", "decoder.cu", right, wrong);
        for header in ["prelude.cuh", "params.cuh"] {
            std::fs::copy(Path::new(ROOT).join("kernels").join(header), folder.path().join(header)).unwrap();
        }
        let driver = Driver::with_kernel(folder.path(), "decoder", None).with_cublas();
        let ended = states_on(&driver, &[]);
        assert!(ended.code != Some(0), "{wrong} is not found");
    }
}

fn example(name: &str) -> String {
    format!("{ROOT}/examples/models/{name}")
}

/// The program on a driver.
fn on(driver: &Driver, settings: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let mut command = mergeforge();
    driver.apply(&mut command).args(arguments);
    for (name, value) in settings {
        command.env(name, value);
    }
    command.output().unwrap().into()
}

fn json(ended: Ended) -> Value {
    serde_json::from_str(&ended.succeeded().stdout).unwrap()
}

/// Two sets that are quickly read.
fn texts(folder: &Path) -> [String; 2] {
    let general = folder.join("general.txt");
    std::fs::write(&general, "The heart pumps blood through the body.\nWater boils at a hundred degrees.\n")
        .unwrap();
    let asked = folder.join("asked.jsonl");
    std::fs::write(
        &asked,
        "{\"question\": \"What is fever?\", \"answer\": \"A high temperature of the body.\"}\n",
    )
    .unwrap();
    [general, asked].map(|file| file.to_str().unwrap().to_owned())
}

/// That two reports have the same numbers, but for what a device and its speed are.
fn assert_alike(one: &Value, other: &Value, place: &str) {
    const OTHERWISE: [&str; 9] = [
        "device",
        "device_memory_bytes",
        "memory_bytes",
        "passes",
        "seconds",
        "tokens_per_second",
        "measured_seconds",
        "seconds_per_merge",
        "kept_bytes",
    ];
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            assert!(one.keys().eq(other.keys()), "{place}");
            for (key, one) in one.iter().filter(|(key, _)| !OTHERWISE.contains(&key.as_str())) {
                assert_alike(one, &other[key], &format!("{place}.{key}"));
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            assert_eq!(one.len(), other.len(), "{place}");
            for (number, (one, other)) in one.iter().zip(other).enumerate() {
                assert_alike(one, other, &format!("{place}[{number}]"));
            }
        }
        (Value::Number(one), Value::Number(other)) => {
            let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
            assert!((one - other).abs() <= 2e-5 * one.abs().max(1.0), "{place}: {one} and {other}");
        }
        _ => assert_eq!(one, other, "{place}"),
    }
}

#[test]
fn eval_finds_on_a_gpu_what_it_finds_on_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    let [general, asked] = texts(folder.path());
    let base = example("base");
    let arguments =
        ["eval", &base, "--text", &general, "--qa", &asked, "--window", "16", "--stride", "8", "--json"];
    let read = |more: &[&str]| json(on(driver(), &[], &[&arguments[..], more].concat()));
    let (here, there) = (read(&["--device", "cpu"]), read(&["--device", "cuda"]));
    assert_eq!(
        (&here["models"][0]["device"], &there["models"][0]["device"]),
        (&"cpu".into(), &"cuda:0".into())
    );
    assert_alike(&here, &there, "eval");
    // A GPU that reads is what `auto` means.
    assert_alike(&there, &read(&[]), "auto");
    // With little memory it takes more passes, and finds the same.
    std::fs::write(
        &general,
        "The heart pumps blood through the body, and the lungs bring air to it.\n".repeat(20),
    )
    .unwrap();
    let of = |report: &Value, key: &str| report["models"][0][key].as_u64().unwrap();
    let much = read(&["--device", "cuda"]);
    let between = u64::midpoint(of(&there, "memory_bytes"), of(&much, "memory_bytes"));
    let little = read(&["--device", "cuda", "--device-memory", &between.to_string()]);
    assert_alike(&much, &little, "little memory");
    assert!(of(&little, "passes") > of(&much, "passes") && of(&little, "memory_bytes") <= between);
    let refused =
        on(driver(), &[], &[&arguments[..], &["--device", "cuda", "--device-memory", "1MB"]].concat());
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("more --device-memory"), "{}", refused.stderr);
}

/// The most memory that is in use, of bfloat16 and of others, of one model and of many parents.
#[test]
fn a_gpu_has_what_states_and_logits_take() {
    const OF_CUBLAS: u64 = 32 << 20;
    let folder = tempfile::tempdir().unwrap();
    let [general, _] = texts(folder.path());
    std::fs::write(
        &general,
        "The heart pumps blood through the body, and the lungs bring air to it.\n".repeat(20),
    )
    .unwrap();
    let config = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text.replace("EXAMPLES", &example(""))).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let models = "models: [{model: EXAMPLES/medical, parameters: {weight: 0.5}}, {model: EXAMPLES/chat, parameters: {weight: 0.5}}]";
    let exact = config("exact.yml", &format!("merge_method: linear\n{models}\ndtype: float32\n"));
    let wide = folder.path().join("wide");
    let wide = wide.to_str().unwrap();
    mergeforge().args(["merge", "--quiet", &exact, wide]).output().map(Ended::from).unwrap().succeeded();
    let sum =
        config("sum.yml", &format!("merge_method: task_arithmetic\nbase_model: EXAMPLES/base\n{models}\n"));
    let peak_file = folder.path().join("peak");
    let peak = |arguments: &[&str]| {
        let settings = [("FAKE_CUDA_PEAK_FILE", peak_file.to_str().unwrap())];
        let more = ["--text", &general, "--lines", "--window", "32", "--device", "cuda", "--json"];
        let report = json(on(driver(), &settings, &[arguments, &more].concat()));
        (std::fs::read_to_string(&peak_file).unwrap().trim().parse::<u64>().unwrap(), report)
    };
    for model in [&example("base"), wide] {
        let (peak, report) = peak(&["eval", model]);
        let stated = report["models"][0]["memory_bytes"].as_u64().unwrap() - OF_CUBLAS;
        assert!(peak <= stated && peak > stated / 2, "{model}: {peak} of {stated}");
    }
    for groups in ["1", "4"] {
        let (peak, report) = peak(&["predict", &sum, "--groups", groups]);
        let stated = find(&report, "device_memory_bytes").unwrap().as_u64().unwrap() - OF_CUBLAS;
        assert!(peak <= stated && peak > stated / 2, "{groups} groups: {peak} of {stated}");
    }
}

/// The first value of this key, wherever it is.
fn find<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    match value {
        Value::Object(map) => map.get(key).or_else(|| map.values().find_map(|value| find(value, key))),
        Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

#[test]
fn predictions_and_sweeps_find_on_a_gpu_what_they_find_on_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    let [general, asked] = texts(folder.path());
    let config = folder.path().join("c.yml");
    let text = format!(
        "merge_method: task_arithmetic\nbase_model: {}\nmodels:\n  - {{model: {}, parameters: {{weight: WEIGHT}}}}\n  \
         - {{model: {}, parameters: {{weight: 0.5}}}}\n",
        example("base"),
        example("medical"),
        example("chat")
    );
    std::fs::write(&config, text.replace("WEIGHT", "0.3")).unwrap();
    let config = config.to_str().unwrap();
    let sets = ["--text", &general, "--qa", &asked, "--window", "32", "--json"];
    for command in [&["predict", config][..], &["predict", config, "--groups", "2"], &["analyze", config]] {
        let on = |device| json(on(driver(), &[], &[command, &sets, &["--device", device]].concat()));
        assert_alike(&on("cpu"), &on("cuda"), command[0]);
    }
    std::fs::write(config, text.replace("WEIGHT", "{range: [0, 1]}")).unwrap();
    let sweep = |device: &str| {
        let out = folder.path().join(device);
        let command = ["sweep", config, out.to_str().unwrap(), "--tries", "2", "--confirm", "1"];
        json(on(driver(), &[], &[&command[..], &sets, &["--device", device]].concat()))
    };
    let (here, there) = (sweep("cpu"), sweep("cuda"));
    assert_alike(&here["best"], &there["best"], "sweep");
}

#[test]
fn what_is_missing_for_a_gpu_to_read_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let [general, _] = texts(folder.path());
    let base = example("base");
    let arguments = ["eval", &base, "--text", &general];
    let without = Driver::new();
    let read = |driver: &Driver, settings: &[(&str, &str)], device: &str| {
        on(driver, settings, &[&arguments[..], &["--device", device]].concat())
    };
    let refused = read(&without, &[("MERGEFORGE_CUBLAS", "/nowhere/libcublas.so")], "cuda");
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    for said in ["cuBLAS cannot be used", "/nowhere/libcublas.so", "MERGEFORGE_CUBLAS", "--device cpu"] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    let broken = read(driver(), &[("FAKE_CUBLAS_FAILS", "1")], "cuda");
    assert!(broken.stderr.contains("CUBLAS_STATUS_NOT_INITIALIZED"), "{}", broken.stderr);
    let old = read(driver(), &[("FAKE_CUDA_CAPABILITY", "75")], "cuda");
    assert!(old.stderr.contains("needs 8.0 (Ampere)"), "{}", old.stderr);
    // Where it is for the program to choose, that is said in a line, and the processor reads. So it is where a GPU is too small.
    for ended in [
        read(driver(), &[("FAKE_CUDA_MEMORY", "34000000")], "auto"),
        read(&without, &[("MERGEFORGE_CUBLAS", "/nowhere/libcublas.so")], "auto"),
        read(driver(), &[("FAKE_CUDA_CAPABILITY", "75")], "auto"),
    ] {
        let ended = ended.succeeded();
        assert!(ended.stderr.contains("reading texts on the CPU"), "{}", ended.stderr);
        assert!(ended.stdout.contains("on cpu"), "{}", ended.stdout);
    }
}

/// Each call of the driver fails once: the program says so, and ends.
#[test]
fn a_driver_that_fails_ends_with_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let [general, _] = texts(folder.path());
    let (base, count) = (example("base"), folder.path().join("count"));
    let arguments = ["eval", &base, "--text", &general, "--device", "cuda", "--window", "8"];
    on(driver(), &[("FAKE_CUDA_COUNT_FILE", count.to_str().unwrap())], &arguments).succeeded();
    let calls: usize = std::fs::read_to_string(&count).unwrap().trim().parse().unwrap();
    assert!(calls > 300, "{calls}");
    let step = calls / 40;
    for call in (1..calls - 30).step_by(step).chain(1..20) {
        let ended = on(driver(), &[("FAKE_CUDA_FAIL_CALL", &call.to_string())], &arguments);
        // What only gives memory back, or asks, is no loss.
        if ended.code != Some(0) {
            assert_eq!(ended.code, Some(5), "call {call}: {}", ended.stderr);
            assert!(
                ended.stderr.starts_with("error: ") || ended.stderr.contains("\nerror: "),
                "{}",
                ended.stderr
            );
        }
    }
}
