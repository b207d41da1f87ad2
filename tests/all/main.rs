//! Everything that is tested from outside, in one binary: it links once.

mod allocation;
mod bench;
mod cli;
mod command;
mod cuda;
mod cuda_driver;
mod cuda_engine;
mod faults;
mod gpu_check;
mod hardening;
mod hostile;
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
mod trace;
mod twins;
mod wgpu;
