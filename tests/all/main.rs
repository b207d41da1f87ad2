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
    mod gpu_reads;
    mod wgpu;
}

mod adapters;
mod allocation;
mod analyze;
mod averages;
mod bare;
mod bench;
mod choices;
mod choices_oracle;
mod cli;
mod command;
mod companions;
mod convert;
mod cuda_driver;
mod decoder;
mod elements;
mod eval;
mod everyday;
mod experts;
mod extract;
mod fast;
mod faults;
mod float64;
mod geometry;
mod guesses;
mod hardening;
mod hostile;
mod hub;
mod hub_server;
#[path = "hub_server/tests.rs"]
mod hub_server_tests;
mod inputs;
mod kept;
mod kernel_files;
mod kills;
mod layers;
mod limits;
mod memory;
mod methods;
mod mistakes;
mod models;
mod modules;
mod moe;
mod oracle;
mod pages;
mod parts;
#[cfg(target_os = "linux")]
mod peaks;
mod pickles;
mod predict;
mod quantised;
mod regressions;
mod resume;
mod same_bytes;
mod serve;
mod shader_files;
mod staged;
mod sweep;
mod thresholds;
mod tools;
mod torch_files;
mod trace;
mod twins;
mod verify;
mod vocabularies;
mod writes;
