//! Launches as GPU kernels read them: words of 4 bytes, laid out by the structs below.
//!
//! Structs and constants are defined here once. [`cuda_header`] writes them in CUDA C++, as `kernels/params.cuh`, and
//! [`wgsl_header`] in WGSL, as `shaders/params.wgsl`; tests compare them with the files, so the languages cannot drift apart.

use std::fmt::Write;
use std::ops::RangeInclusive;

use super::consensus::Keep;
use super::levels::LEVELS_MAX;
use super::{KEY_MAX, TILE, VOTERS_MAX, consensus, levels, magnitudes, philox};
use crate::dtype::{BF16_FINITE_MAX, F16_FINITE_MAX, Float, INFINITY_BITS};

/// Threads of a block: one tile, eight elements a thread.
pub const THREADS: usize = TILE / 8;

/// Models whose counters a block of `magnitudes` keeps in shared memory at once: 32 KiB of it.
pub const MAGNITUDES_MODELS: usize = 4;

/// A struct of 4-byte fields and, for other languages, what it is made of.
macro_rules! packed {
    ($($(#[$about:meta])* struct $name:ident { $($(#[$what:meta])* $field:ident: $kind:ident,)* })*) => {
        $(
            $(#[$about])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
            pub struct $name { $($(#[$what])* pub $field: $kind,)* }

            impl $name {
                /// Words of 4 bytes.
                pub const WORDS: usize = size_of::<Self>() / 4;
            }
        )*

        /// Every struct with the names and types of its fields.
        pub const STRUCTS: &[(&str, &[(&str, &str)])] =
            &[$((stringify!($name), &[$((stringify!($field), stringify!($kind))),*])),*];
    };
}

packed! {
    /// The beginning of a launch's table. Places are counted in words from the table's start.
    struct Header {
        /// Where the blocks are, at a multiple of four words.
        blocks: u32,
        /// Where the inputs' element types are, one word each.
        floats: u32,
        /// Input tensors per job.
        inputs: u32,
        /// The element type of merged values.
        output: u32,
    }

    /// What one block of threads works on: tiles of one span.
    struct Block {
        /// Where the span is.
        span: u32,
        /// The first tile, counted from the span's start.
        first: u32,
        /// How many tiles.
        tiles: u32,
        /// Of a kernel that counts: which record of the span it adds to.
        record: u32,
    }

    /// A piece of one tensor; after it come the places of its inputs in memory, in vectors of 16 bytes.
    struct Span {
        /// Where the job is.
        job: u32,
        /// The span's first tile, counted from the tensor's start.
        first_tile: u32,
        /// How many elements.
        elements: u32,
        /// Where its results go, in vectors of 16 bytes.
        results: u32,
        /// Where its tally is, in words of the results.
        tally: u32,
    }

    /// One model's part in a merge; see [`super::consensus::Model`].
    struct Model {
        /// The weight, with everything that scales the task vector folded in.
        coefficient: f32,
        /// `KEEP_TRIM` or `KEEP_DROP`.
        keep: u32,
        /// The threshold key (all ones: −1, below every key), or the probability in units of 2^-32.
        limit: u32,
        /// The tile of the cut, or the first word of the generator's key.
        first: u32,
        /// The cut's place in its tile, or the second word of the key.
        second: u32,
    }

    /// One model's bracket of bins.
    struct Bracket {
        /// The first key of the first bin, a multiple of 2^shift.
        lowest: u32,
        /// Each bin holds 2^shift keys.
        shift: u32,
    }
}

impl From<consensus::Model> for Model {
    fn from(consensus::Model { coefficient, keep }: consensus::Model) -> Self {
        let (keep, [limit, first, second]) = match keep {
            // Every key is above −1.
            Keep::All => (KEEP_TRIM, [u32::MAX, 0, 0]),
            Keep::Trim(trim) => (KEEP_TRIM, [trim.threshold, trim.cut_tile, trim.cut_lane]),
            Keep::Drop(drop) => (KEEP_DROP, [drop.keep, drop.key[0], drop.key[1]]),
        };
        Self { coefficient, keep, limit, first, second }
    }
}

/// The number that stands for an element type.
pub const fn float_code(float: Float) -> u32 {
    match float {
        Float::F32 => 0,
        Float::F16 => 1,
        Float::BF16 => 2,
    }
}

/// Appends a struct's words.
pub fn append<T: bytemuck::Pod>(words: &mut Vec<u32>, value: &T) {
    words.extend_from_slice(bytemuck::cast_slice(std::slice::from_ref(value)));
}

/// Appends f32 values.
pub fn append_floats(words: &mut Vec<u32>, values: &[f32]) {
    words.extend_from_slice(bytemuck::cast_slice(values));
}

/// A value of [`Model::keep`]: the largest magnitudes, or all.
pub const KEEP_TRIM: u32 = 0;

/// A value of [`Model::keep`]: a random choice.
pub const KEEP_DROP: u32 = 1;

/// In a span's tally: NaN in its inputs.
pub const TALLY_NAN: usize = 0;

/// In a span's tally: infinities in its inputs.
pub const TALLY_INFINITE: usize = 1;

/// In a span's tally: results that overflowed.
pub const TALLY_OVERFLOWED: usize = 2;

/// In a span's tally, on devices that promise nothing about odd values: whether there were any, so that the span has to be
/// computed elsewhere.
pub const TALLY_REDO: usize = 3;

/// In a span's tally: where the counts of what was kept begin, one per model.
pub const TALLY_KEPT: usize = 4;

/// What a kernel that merges counts per span, beside its results.
pub const TALLY_WORDS: usize = TALLY_KEPT + VOTERS_MAX;

/// The magnitudes that WebGPU's arithmetic is exact on, in all kernels: 2^-60 to 2^60, and 0. Differences of such numbers are
/// multiples of 2^-83; times a factor of [`FACTORS`] they are at least 2^-103, and sums of those are multiples of 2^-126, the
/// smallest normal number: nothing comes near what a device may flush, or near infinity.
pub const PLAIN: RangeInclusive<f32> = power_of_two(-60)..=power_of_two(60);

/// The same for what is multiplied with its like: products are multiples of 2^-123.
pub const PLAIN_IN_PRODUCTS: RangeInclusive<f32> = power_of_two(-50)..=power_of_two(50);

/// The factors that go with [`PLAIN`], and 0.
pub const FACTORS: RangeInclusive<f32> = power_of_two(-20)..=power_of_two(20);

const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

/// Constants for other languages.
const CONSTANTS: &[(&str, u32)] = &[
    ("TILE", TILE as u32),
    ("THREADS", THREADS as u32),
    ("VOTERS_MAX", VOTERS_MAX as u32),
    ("LEVELS_MAX", LEVELS_MAX as u32),
    ("LEVELS_WORDS", levels::WORDS as u32),
    ("BINS", magnitudes::BINS as u32),
    ("ABOVE", magnitudes::ABOVE as u32),
    ("UNEVEN", magnitudes::UNEVEN as u32),
    ("MAGNITUDES_WORDS", magnitudes::WORDS as u32),
    ("MAGNITUDES_MODELS", MAGNITUDES_MODELS as u32),
    ("KEEP_TRIM", KEEP_TRIM),
    ("KEEP_DROP", KEEP_DROP),
    ("TALLY_NAN", TALLY_NAN as u32),
    ("TALLY_INFINITE", TALLY_INFINITE as u32),
    ("TALLY_OVERFLOWED", TALLY_OVERFLOWED as u32),
    ("TALLY_KEPT", TALLY_KEPT as u32),
    ("FLOAT_F32", float_code(Float::F32)),
    ("FLOAT_F16", float_code(Float::F16)),
    ("FLOAT_BF16", float_code(Float::BF16)),
    ("FLOAT_MIXED", 3),
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

/// `shaders/params.wgsl`: the constants and structs in WGSL, and how each struct is read from a launch's table.
pub fn wgsl_header() -> String {
    let mut text = String::from(
        "// Made from src/kernel/packed.rs by `cargo run --example params wgsl > shaders/params.wgsl`: not to be edited.\n\n",
    );
    for (name, value) in CONSTANTS.iter().chain(WGSL_CONSTANTS) {
        let _ = writeln!(text, "const {name} = 0x{value:x}u;");
    }
    for (name, fields) in STRUCTS {
        let _ = writeln!(text, "\nstruct {name} {{");
        for (field, kind) in *fields {
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
        "// Made from src/kernel/packed.rs by `cargo run --example params > kernels/params.cuh`: not to be edited.\n\
         #pragma once\n\n",
    );
    for (name, value) in CONSTANTS {
        let _ = writeln!(text, "constexpr unsigned {name} = 0x{value:x}u;");
    }
    for (name, fields) in STRUCTS {
        let _ = writeln!(text, "\nstruct {name} {{");
        for (field, kind) in *fields {
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

    #[test]
    fn structs_have_no_gaps() {
        let words = [Header::WORDS, Block::WORDS, Span::WORDS, Model::WORDS, Bracket::WORDS];
        for ((name, fields), words) in STRUCTS.iter().zip(words) {
            assert_eq!(fields.len(), words, "{name}");
        }
    }
}
