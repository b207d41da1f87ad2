//! `mergeforge moe`: mergekit-moe's command, with the flags that people paste along.

use std::path::PathBuf;

use clap::Args;

use super::progress::Progress;
use super::{CommonArgs, MergeFlags, checked, merge_one, show};
use crate::config::moe::MoeConfig;
use crate::error::Result;
use crate::{Prepared, prepare_moe, read_moe};

#[derive(Debug, Args)]
pub(super) struct MoeArgs {
    /// The config: a mergekit-moe YAML
    config: PathBuf,
    /// The folder to make; it must not exist, or be empty
    out: PathBuf,
    #[command(flatten)]
    flags: MergeFlags,
    #[command(flatten)]
    untrained: Untrained,
    #[arg(long, hide = true)]
    load_in_4bit: bool,
    #[arg(long, hide = true)]
    load_in_8bit: bool,
}

#[derive(Debug, Args)]
pub(super) struct Untrained {
    /// Of experts: make a mixture of equal ones too, to be trained afterwards
    #[arg(long = "i-understand-this-is-not-useful-without-training")]
    understood: bool,
}

pub(super) fn run(args: &MoeArgs) -> Result<()> {
    for (given, flag) in [(args.load_in_4bit, "load-in-4bit"), (args.load_in_8bit, "load-in-8bit")] {
        if given {
            show::note(&format!("--{flag}: not needed, no model is loaded whole"));
        }
    }
    let progress = Progress::new(args.flags.quiet)?;
    args.flags.mergekit.notes.iter().for_each(|note| show::note(note));
    let config = read_moe(&args.config)?;
    let prepared = prepared(&config, &args.flags.common, &args.untrained)?;
    merge_one(&prepared, &args.out, &args.flags, &progress)
}

/// Plans a mixture of experts, and reports the warnings or refuses them.
pub(super) fn prepared(config: &MoeConfig, common: &CommonArgs, untrained: &Untrained) -> Result<Prepared> {
    checked(&config.warnings, common.fit.strict, || {
        prepare_moe(config, untrained.understood, &common.choices())
    })
}
