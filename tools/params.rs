//! Prints `kernels/params.cuh` or, asked for `wgsl`, `shaders/params.wgsl`: the structs and constants of the kernels, made
//! from the Rust definitions.

use mergeforge::kernel::{cuda_header, wgsl_header};

fn main() {
    let wgsl = std::env::args().nth(1).is_some_and(|language| language == "wgsl");
    print!("{}", if wgsl { wgsl_header() } else { cuda_header() });
}
