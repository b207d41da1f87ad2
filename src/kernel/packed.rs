//! Launches as GPU kernels read them: words of 4 bytes, laid out by structs that are defined here once.
//!
//! [`super::cuda_header`] writes them in CUDA C++, as `kernels/params.cuh`, and [`super::wgsl_header`] in WGSL, as
//! `shaders/params.wgsl`; tests compare them with the files, so the languages cannot drift apart.

use std::ops::RangeInclusive;

use super::{TILE, VOTERS_MAX};
use crate::dtype::Float;

/// Threads of a block: one tile, eight elements a thread.
pub const THREADS: usize = TILE / 8;

/// Models whose counters a block keeps in shared memory at once: 32 KiB of it.
pub const GROUP_MODELS: usize = 4;

/// What a struct is made of, for other languages.
#[derive(Debug, Clone, Copy)]
pub struct Struct {
    /// Its name there.
    pub name: &'static str,
    /// Names and types of its fields, 4 bytes each.
    pub fields: &'static [(&'static str, &'static str)],
}

/// Structs of 4-byte fields, with their names in other languages.
macro_rules! packed {
    ($($(#[$about:meta])* pub struct $name:ident as $other:ident {
        $($(#[$what:meta])* $field:ident: $kind:ident,)*
    })*) => {
        $(
            $(#[$about])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
            pub struct $name { $($(#[$what])* pub $field: $kind,)* }

            impl $name {
                /// Words of 4 bytes.
                pub const WORDS: usize = size_of::<Self>() / 4;

                /// The same for other languages.
                pub const STRUCT: $crate::kernel::packed::Struct = $crate::kernel::packed::Struct {
                    name: stringify!($other),
                    fields: &[$((stringify!($field), stringify!($kind))),*],
                };
            }

            const _: () = assert!($name::WORDS == $name::STRUCT.fields.len(), "a struct has no gaps");
        )*
    };
}

pub(super) use packed;

packed! {
    /// The beginning of a launch's table. Places are counted in words from the table's start.
    pub struct TableHeader as Header {
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
    pub struct TableBlock as Block {
        /// Where the span is.
        span: u32,
        /// The first tile, counted from the span's start.
        first: u32,
        /// How many tiles.
        tiles: u32,
        /// Of a kernel that counts: which record of the span it adds to.
        record: u32,
    }

    /// A part of one tensor; after it come the places of its inputs in memory, in vectors of 16 bytes.
    pub struct TableSpan as Span {
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
}

/// The structs of every launch.
pub const LAUNCH_STRUCTS: [Struct; 3] = [TableHeader::STRUCT, TableBlock::STRUCT, TableSpan::STRUCT];

/// The number that stands for an element type.
pub const fn float_code(float: Float) -> u32 {
    match float {
        Float::F32 => 0,
        Float::F16 => 1,
        Float::BF16 => 2,
        Float::Bit => 4,
    }
}

/// The number that stands for inputs of several types.
pub const FLOAT_MIXED: u32 = 3;

/// Appends a struct's words.
pub fn append<T: bytemuck::Pod>(words: &mut Vec<u32>, value: &T) {
    words.extend_from_slice(bytemuck::cast_slice(std::slice::from_ref(value)));
}

/// Appends f32 values.
pub fn append_floats(words: &mut Vec<u32>, values: &[f32]) {
    words.extend_from_slice(bytemuck::cast_slice(values));
}

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
