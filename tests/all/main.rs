//! Everything that is tested from outside, in one binary: it links once.

mod llama;
mod methods;
mod models;
mod oracle;
mod twins;
