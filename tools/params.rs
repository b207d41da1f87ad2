//! Prints `kernels/params.cuh`: the structs and constants of the kernels, made from the Rust definitions.

fn main() {
    print!("{}", mergeforge::kernel::packed::cuda_header());
}
