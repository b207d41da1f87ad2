//! Everything that is tested from outside, in one binary: it links once.

mod allocation;
mod bench;
mod cli;
mod command;
mod cuda_driver;
mod fast;
mod faults;
mod geometry;
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

/// What takes minutes, or needs g++ or lavapipe: `cargo fast` leaves it out by this name, and CI runs it.
#[path = "."]
mod slow {
    mod cuda;
    mod cuda_engine;
    mod gpu_check;
    mod wgpu;
}
