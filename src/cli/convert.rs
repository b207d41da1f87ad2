//! `mergeforge convert`: one model, copied with floats of another type, in other shards, as safetensors, or with its adapter added.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{Error as Refusal, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::mergekit::MergekitArgs;
use super::progress::Progress;
use super::{MergeFlags, checked, merge_on};
use crate::backend::devices::processor;
use crate::config::keys::DTYPES;
use crate::dtype::{Dtype, float_named};
use crate::error::Result;
use crate::prepare_conversion;

#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// The model, as in a config: a folder, a file of tensors, or a name on the Hugging Face Hub, perhaps with @revision and
    /// +ADAPTER, which is then added
    model: String,
    /// The folder to make; it must not exist, or be empty
    out: PathBuf,
    /// The type to store floats in [default: each tensor's own]
    #[arg(long, value_name = "TYPE", value_parser = floats())]
    dtype: Option<Dtype>,
    #[command(flatten)]
    flags: Flags,
}

/// The types that floats are stored in, by their names in a config.
fn floats() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(DTYPES).map(|name| float_named(&name).expect("DTYPES are names of floats"))
}

/// The flags of a merge, without those that mean nothing where nothing is merged.
#[derive(Debug)]
struct Flags(MergeFlags);

/// These. A copy is random nowhere and counts nothing, models have nothing to differ from, and the processor does it all.
const OF_MERGES: [&str; 10] = [
    "random-seed",
    "device",
    "device-memory",
    "allow-crimes",
    "no-allow-crimes",
    "unsafe-truncate-embeddings",
    "no-unsafe-truncate-embeddings",
    "tensor-intersection",
    "tensor-union",
    "no-cache",
];

impl Flags {
    /// The arguments of merges that are none here: those, and what people paste from mergekit's command lines.
    fn refused() -> Vec<Arg> {
        let mergekits = MergekitArgs::augment_args(Command::new("mergekit"));
        let is_mergekits = |arg: &Arg| mergekits.get_arguments().any(|other| other.get_id() == arg.get_id());
        let is_of_merges = |arg: &Arg| arg.get_long().is_some_and(|long| OF_MERGES.contains(&long));
        let all = MergeFlags::augment_args(Command::new("merge"));
        all.get_arguments().filter(|arg| is_of_merges(arg) || is_mergekits(arg)).cloned().collect()
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let hidden = |command: Command, arg: Arg| command.mut_arg(arg.get_id(), |arg| arg.hide(true));
        Self::refused().into_iter().fold(MergeFlags::augment_args(command), hidden)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, Refusal> {
        let is_given =
            |arg: &Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        if let Some(arg) = Self::refused().into_iter().find(is_given) {
            let flag = arg.get_long().unwrap_or_default();
            let problem = format!("--{flag} means nothing here: it is a flag of merges");
            return Err(Refusal::raw(ErrorKind::UnknownArgument, problem));
        }
        MergeFlags::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), Refusal> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Plans the copy, and carries it out as any merge.
pub(super) fn run(args: ConvertArgs) -> Result<()> {
    let ConvertArgs { model, out, dtype, flags: Flags(mut flags) } = args;
    let progress = Progress::new(flags.quiet)?;
    let (card, choices) = (!flags.no_write_model_card, flags.common.choices());
    let prepared =
        checked(&[], flags.common.fit.strict, || prepare_conversion(&model, dtype, card, &choices))?;
    // What is no merge has no card of one: the model's own says what it is.
    flags.no_write_model_card |= prepared.plan.models.iter().all(|model| model.adapter.is_none());
    flags.check_trace(&out, &prepared)?;
    let device = processor();
    let budget = flags.common.run.budget(&device)?;
    merge_on(&prepared, &out, &flags, &(device, budget), &progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_are_flags_of_merges() {
        let refused = Flags::refused();
        for name in OF_MERGES {
            assert!(refused.iter().any(|arg| arg.get_long() == Some(name)), "{name}");
        }
        assert!(refused.iter().any(|arg| arg.get_long() == Some("lazy-unpickle")));
        assert!(!refused.iter().any(|arg| arg.get_long() == Some("out-shard-size")));
    }
}
