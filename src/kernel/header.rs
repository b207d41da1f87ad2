//! Structs and constants of kernels in CUDA C++ and in WGSL, made from the Rust definitions.

use std::collections::HashSet;
use std::fmt::Write;

use super::packed::{
    FLOAT_MIXED, GROUP_MODELS, LAUNCH_STRUCTS, PLAIN, PLAIN_IN_PRODUCTS, Struct, TALLY_INFINITE, TALLY_KEPT,
    TALLY_NAN, TALLY_OVERFLOWED, TALLY_REDO, THREADS, float_code,
};
use super::thinning::{KEEP_DROP, KEEP_TRIM};
use super::{KERNELS, KEY_MAX, TILE, VOTERS_MAX, philox};
use crate::dtype::{BF16_FINITE_MAX, F16_FINITE_MAX, Float, INFINITY_BITS};

/// Constants that all kernels share.
const CONSTANTS: &[(&str, u32)] = &[
    ("TILE", TILE as u32),
    ("THREADS", THREADS as u32),
    ("VOTERS_MAX", VOTERS_MAX as u32),
    ("GROUP_MODELS", GROUP_MODELS as u32),
    ("KEEP_TRIM", KEEP_TRIM),
    ("KEEP_DROP", KEEP_DROP),
    ("TALLY_NAN", TALLY_NAN as u32),
    ("TALLY_INFINITE", TALLY_INFINITE as u32),
    ("TALLY_OVERFLOWED", TALLY_OVERFLOWED as u32),
    ("TALLY_KEPT", TALLY_KEPT as u32),
    ("FLOAT_F32", float_code(Float::F32)),
    ("FLOAT_F16", float_code(Float::F16)),
    ("FLOAT_BF16", float_code(Float::BF16)),
    ("FLOAT_MIXED", FLOAT_MIXED),
    ("FLOAT_BIT", float_code(Float::Bit)),
    ("INFINITY_BITS", INFINITY_BITS),
    ("KEY_MAX", KEY_MAX),
    ("F16_FINITE_MAX", F16_FINITE_MAX),
    ("BF16_FINITE_MAX", BF16_FINITE_MAX),
    ("PHILOX_MULTIPLIER_0", philox::MULTIPLIERS[0]),
    ("PHILOX_MULTIPLIER_1", philox::MULTIPLIERS[1]),
    ("PHILOX_WEYL_0", philox::WEYL[0]),
    ("PHILOX_WEYL_1", philox::WEYL[1]),
];

/// Constants that WGSL alone needs.
const WGSL_CONSTANTS: &[(&str, u32)] = &[
    ("TALLY_REDO", TALLY_REDO as u32),
    ("PLAIN_LEAST", PLAIN.start().to_bits()),
    ("PLAIN_GREATEST", PLAIN.end().to_bits()),
    ("PRODUCT_LEAST", PLAIN_IN_PRODUCTS.start().to_bits()),
    ("PRODUCT_GREATEST", PLAIN_IN_PRODUCTS.end().to_bits()),
];

/// The constants of all kernels together, then of each.
fn constants() -> impl Iterator<Item = &'static (&'static str, u32)> {
    CONSTANTS.iter().chain(KERNELS.iter().flat_map(|kernel| kernel.constants))
}

/// The structs of launches, then of each kernel, each once.
fn structs() -> impl Iterator<Item = Struct> {
    let mut seen = HashSet::new();
    let all =
        LAUNCH_STRUCTS.into_iter().chain(KERNELS.iter().flat_map(|kernel| kernel.structs.iter().copied()));
    all.filter(move |one| seen.insert(one.name))
}

/// `shaders/params.wgsl`: the constants and structs in WGSL, and how each struct is read from a launch's table.
pub fn wgsl_header() -> String {
    let mut text = String::from(
        "// Made from src/kernel/ by `cargo run --example params wgsl > shaders/params.wgsl`: not to be edited.\n\n",
    );
    for (name, value) in constants().chain(WGSL_CONSTANTS) {
        let _ = writeln!(text, "const {name} = 0x{value:x}u;");
    }
    for Struct { name, fields } in structs() {
        let _ = writeln!(text, "\nstruct {name} {{");
        for (field, kind) in fields {
            let _ = writeln!(text, "    {field}: {kind},");
        }
        let words = (0..fields.len()).map(|word| match (word, fields[word].1) {
            (0, "f32") => "bitcast<f32>(table[at])".into(),
            (0, _) => "table[at]".into(),
            (_, "f32") => format!("bitcast<f32>(table[at + {word}u])"),
            _ => format!("table[at + {word}u]"),
        });
        let (words, constant) = (words.collect::<Vec<String>>().join(", "), name.to_uppercase());
        let _ = writeln!(
            text,
            "}}\nconst {constant}_WORDS = {}u;\nfn load_{name}(at: u32) -> {name} {{\n    return {name}({words});\n}}",
            fields.len()
        );
    }
    text
}

/// `kernels/params.cuh`: the constants and structs in CUDA C++.
pub fn cuda_header() -> String {
    let mut text = String::from(
        "// Made from src/kernel/ by `cargo run --example params > kernels/params.cuh`: not to be edited.\n\
         #pragma once\n\n",
    );
    for (name, value) in constants() {
        let _ = writeln!(text, "constexpr unsigned {name} = 0x{value:x}u;");
    }
    for Struct { name, fields } in structs() {
        let _ = writeln!(text, "\nstruct {name} {{");
        for (field, kind) in fields {
            let kind = if *kind == "f32" { "float" } else { "unsigned" };
            let _ = writeln!(text, "    {kind} {field};");
        }
        let _ = writeln!(
            text,
            "}};\nstatic_assert(sizeof({name}) == {}, \"words of 4 bytes\");",
            4 * fields.len()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_in_the_repository_is_made_from_these_structs() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/params.cuh");
        let stored = std::fs::read_to_string(file).unwrap_or_default();
        assert!(stored == cuda_header(), "run `cargo run --example params > kernels/params.cuh`");
    }

    #[test]
    fn the_shaders_header_in_the_repository_is_made_from_these_structs() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/params.wgsl");
        let stored = std::fs::read_to_string(file).unwrap_or_default();
        assert!(stored == wgsl_header(), "run `cargo run --example params wgsl > shaders/params.wgsl`");
    }
}
