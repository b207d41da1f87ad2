//! The PTX that goes into the binary belongs to the sources beside it, and is text that the drivers of users take
//! and round as the CPU does. No compiler is needed to know it: `tools/build_kernels.py` writes into each file the
//! hash of what it was built from, and here the hash is made again from the present sources.

use std::path::{Path, PathBuf};

const WAY_OUT: &str = "run python3 tools/build_kernels.py";

/// A kernel's sources, in the order in which they are hashed.
#[derive(Clone)]
struct Sources {
    name: String,
    prelude: Vec<u8>,
    params: Vec<u8>,
    counting: Vec<u8>,
    choice: Vec<u8>,
    kernel: Vec<u8>,
}

impl Sources {
    fn parts(&self) -> [(String, &[u8]); 5] {
        [
            ("prelude.cuh".into(), &self.prelude),
            ("params.cuh".into(), &self.params),
            ("counting.cuh".into(), &self.counting),
            ("choice.cuh".into(), &self.choice),
            (format!("{}.cu", self.name), &self.kernel),
        ]
    }

    /// Each part is hashed as the length of its name (8 bytes, little endian), its name, the length of its content,
    /// its content. The recipe is a part too, though no file: the flags of the build are not known here.
    fn hash(&self, recipe: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, content) in self.parts().into_iter().chain([("recipe".into(), recipe.as_bytes())]) {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&(content.len() as u64).to_le_bytes()).update(content);
        }
        hasher.finalize().to_hex().to_string()
    }

    /// What the sources include and the hash does not know.
    fn strangers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (file, content) in self.parts() {
            let text = String::from_utf8_lossy(content);
            for line in text.lines().filter_map(|line| line.trim_start().strip_prefix('#')) {
                let Some(header) = line.trim_start().strip_prefix("include").map(str::trim) else { continue };
                let known = ["\"prelude.cuh\"", "\"params.cuh\"", "\"counting.cuh\"", "\"choice.cuh\""];
                if !known.iter().any(|known| header.starts_with(known)) {
                    found.push(format!("kernels/{file} includes {header}, which the hash does not know"));
                }
            }
        }
        found
    }
}

/// What is wrong with a kernel's PTX.
fn problems(sources: &Sources, ptx: &str) -> Vec<String> {
    let name = &sources.name;
    let mut lines = ptx.lines();
    let (first, second) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let recipe = second.strip_prefix("// recipe: ").unwrap_or("");
    let mut found = sources.strangers();
    if first != format!("// mergeforge kernel {name}, source blake3:{}", sources.hash(recipe)) {
        found.push(format!("kernels/ptx/{name}.ptx was built from other sources: {WAY_OUT}"));
    }
    let value = |directive| ptx.lines().find_map(|line| line.strip_prefix(directive));
    // PTX 8.0 is what drivers of CUDA 12.0 read.
    let version = value(".version ").and_then(|version| version.split_once('.'));
    let version = version.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    if version.is_none_or(|version: (u32, u32)| version > (8, 0)) {
        found.push(format!("kernels/ptx/{name}.ptx is not PTX of at most version 8.0: {WAY_OUT}"));
    }
    if value(".target ") != Some("sm_75") {
        found.push(format!("kernels/ptx/{name}.ptx is not for sm_75: {WAY_OUT}"));
    }
    let rounds = ptx.lines().map(opcode).filter(|opcode| rounds_otherwise(opcode));
    found.extend(
        rounds.map(|opcode| format!("kernels/ptx/{name}.ptx rounds otherwise than the CPU: {opcode}")),
    );
    found
}

/// The first word of an instruction, behind its predicate.
fn opcode(line: &str) -> &str {
    let mut words = line.split_whitespace().skip_while(|word| word.starts_with(['@', '{']));
    words.next().unwrap_or("").trim_end_matches(';')
}

/// Fused, approximate, or flushing subnormals. Without `.rn` an assembler may fuse what stands apart.
fn rounds_otherwise(opcode: &str) -> bool {
    let mut parts = opcode.split('.');
    let operation = parts.next().unwrap_or("");
    let parts: Vec<&str> = parts.collect();
    let float =
        parts.iter().any(|part| ["f16", "bf16", "f32", "f64"].iter().any(|float| part.starts_with(float)));
    let has = |modifier| parts.contains(&modifier);
    match operation {
        _ if !float => false,
        "fma" | "mad" => true,
        "add" | "sub" | "mul" | "div" | "sqrt" | "rcp" if !has("rn") => true,
        _ => has("ftz") || has("approx"),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(folder().join(file)).unwrap_or_else(|error| panic!("kernels/{file}: {error}"))
}

/// The stems of a folder's files with this extension, sorted; a file with another one is a failure where
/// nothing else may lie.
fn stems(folder: &Path, extension: &str, alone: bool) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path.file_stem().unwrap().to_str().unwrap().to_string());
        } else {
            assert!(!alone, "{} is no .{extension} file", path.display());
        }
    }
    found.sort();
    found
}

/// The folder of what a forward pass needs, and no merge.
const FORWARD: &str = "forward";

/// The file of a kernel below `kernels/`.
fn source_of(name: &str) -> String {
    let file = format!("{name}.cu");
    if folder().join(&file).is_file() { file } else { format!("{FORWARD}/{file}") }
}

fn all_sources() -> Vec<Sources> {
    let sources = |name: String| Sources {
        prelude: read("prelude.cuh"),
        params: read("params.cuh"),
        counting: read("counting.cuh"),
        choice: read("choice.cuh"),
        kernel: read(&source_of(&name)),
        name,
    };
    let mut names = [stems(&folder(), "cu", false), stems(&folder().join(FORWARD), "cu", true)].concat();
    names.sort();
    names.into_iter().map(sources).collect()
}

#[test]
fn every_ptx_was_built_from_the_present_sources() {
    let sources = all_sources();
    assert!(!sources.is_empty(), "kernels/ holds no .cu files");
    let names: Vec<&str> = sources.iter().map(|sources| sources.name.as_str()).collect();
    assert_eq!(
        stems(&folder().join("ptx"), "ptx", true),
        names,
        "kernels/ptx beside kernels/*.cu: {WAY_OUT}"
    );
    let ptx = |sources: &Sources| String::from_utf8(read(&format!("ptx/{}.ptx", sources.name))).unwrap();
    let found: Vec<String> = sources.iter().flat_map(|sources| problems(sources, &ptx(sources))).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A kernel without faults, and PTX that was built from it by `recipe`.
fn planted() -> (Sources, String) {
    let sources = Sources {
        name: "copy".into(),
        prelude: b"#include \"params.cuh\"\n".to_vec(),
        params: b"#define TILE 1024\n".to_vec(),
        counting: b"#include \"prelude.cuh\"\n".to_vec(),
        choice: b"#include \"prelude.cuh\"\n".to_vec(),
        kernel: b"#include \"prelude.cuh\"  // all there is\n".to_vec(),
    };
    let hash = sources.hash("nvcc");
    let body =
        "\tmad.lo.s32 %r2, %r8, %r7, %r1;\n\t@%p1 mul.rn.f32 %f1, %f2, %f3;\n\tcvt.rn.f32.u32 %f1, %r1;\n";
    let head = format!("// mergeforge kernel copy, source blake3:{hash}\n// recipe: nvcc\n");
    (sources, format!("{head}.version 7.0\n.target sm_75\n.address_size 64\n{body}"))
}

#[test]
fn altered_sources_are_found() {
    let (sources, ptx) = planted();
    assert_eq!(problems(&sources, &ptx), [""; 0]);
    let altered = [
        Sources { name: "keys".into(), ..sources.clone() },
        Sources { prelude: b"#include \"params.cuh\"\n\n".to_vec(), ..sources.clone() },
        Sources { params: b"#define TILE 1025\n".to_vec(), ..sources.clone() },
        Sources { counting: b"\n#include \"prelude.cuh\"\n".to_vec(), ..sources.clone() },
        Sources { choice: b"\n#include \"prelude.cuh\"\n".to_vec(), ..sources.clone() },
        Sources { kernel: b"#include \"prelude.cuh\"".to_vec(), ..sources.clone() },
        // The same bytes in a row, cut elsewhere.
        Sources {
            prelude: b"#include \"params.cuh\"\n#define".to_vec(),
            params: b" TILE 1024\n".to_vec(),
            ..sources.clone()
        },
    ];
    for altered in altered {
        let reported = problems(&altered, &ptx);
        let expected = format!("kernels/ptx/{}.ptx was built from other sources: {WAY_OUT}", altered.name);
        assert_eq!(reported, [expected]);
    }
    let reported = problems(&sources, &ptx.replace("// recipe: nvcc", "// recipe: nvcc --use_fast_math"));
    assert_eq!(reported, [format!("kernels/ptx/copy.ptx was built from other sources: {WAY_OUT}")]);
}

#[test]
fn planted_faults_of_the_text_are_found() {
    let (sources, ptx) = planted();
    let rounds = "kernels/ptx/copy.ptx rounds otherwise than the CPU:";
    let cases = [
        (".version 7.0", ".version 8.1", "kernels/ptx/copy.ptx is not PTX of at most version 8.0"),
        (".version 7.0", ".version 10.0", "kernels/ptx/copy.ptx is not PTX of at most version 8.0"),
        (".version 7.0", "", "kernels/ptx/copy.ptx is not PTX of at most version 8.0"),
        (".target sm_75", ".target sm_80", "kernels/ptx/copy.ptx is not for sm_75"),
        ("mul.rn.f32 %f1", "fma.rn.f32 %f1, %f2", &format!("{rounds} fma.rn.f32")),
        ("mul.rn.f32 %f1", "mad.f32 %f1, %f2", &format!("{rounds} mad.f32")),
        ("mul.rn.f32", "mul.f32", &format!("{rounds} mul.f32")),
        ("mul.rn.f32", "add.rn.ftz.f32", &format!("{rounds} add.rn.ftz.f32")),
        ("mul.rn.f32", "add.rz.f64", &format!("{rounds} add.rz.f64")),
        ("mul.rn.f32", "div.full.f32", &format!("{rounds} div.full.f32")),
        ("mul.rn.f32", "ex2.approx.f32", &format!("{rounds} ex2.approx.f32")),
    ];
    for (from, to, expected) in cases {
        let reported = problems(&sources, &ptx.replace(from, to));
        assert!(reported.len() == 1 && reported[0].starts_with(expected), "{from} made {to}: {reported:?}");
    }
}

#[test]
fn headers_that_the_hash_does_not_know_are_found() {
    let (sources, _) = planted();
    for line in ["#include <cuda_fp16.h>", "  # include \"more.cuh\"", "#include MORE"] {
        let sources = Sources { kernel: line.into(), ..sources.clone() };
        assert_eq!(sources.strangers().len(), 1, "{line}");
    }
}
