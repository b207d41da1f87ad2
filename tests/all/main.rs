//! Everything that is tested from outside, in one binary: it links once.

mod cli;
mod command;
mod faults;
mod layers;
mod llama;
mod methods;
mod models;
mod oracle;
mod regressions;
mod same_bytes;
mod twins;
