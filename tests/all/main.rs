//! Everything that is tested from outside, in one binary: it links once.

/// Kernels of GPUs, on the CPU: they take minutes, and need g++ or lavapipe. Tests begin in the order of the alphabet, and the
/// longest should be among the first. `cargo fast` leaves them out by this name.
#[path = "."]
mod accelerators {
    mod conflicts;
    mod cuda;
    mod cuda_engine;
    mod first_use;
    mod gpu_check;
    mod wgpu;
}

mod allocation;
mod averages;
mod bench;
mod choices;
mod choices_oracle;
mod cli;
mod command;
mod cuda_driver;
mod elements;
mod fast;
mod faults;
mod float64;
mod geometry;
mod guesses;
mod hardening;
mod hostile;
mod inputs;
mod kernel_files;
mod layers;
mod llama;
mod methods;
mod models;
mod oracle;
mod regressions;
mod same_bytes;
mod shader_files;
mod thresholds;
mod tools;
mod trace;
mod twins;
mod writes;
