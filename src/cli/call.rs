//! Commands as functions, for programs that call them within their own process. Options are the flags of the command line, as words.

use std::path::Path;
use std::sync::Arc;

use clap::{Args, Command, CommandFactory, Parser};

use super::host::{self, Host};
use super::progress::Progress;
use super::{CommonArgs, MergeOptions, PlanOptions, run_merge, run_plan, show};
use crate::backend::device::Device;
pub use crate::backend::libraries::quiet_mesa;
use crate::cache;
use crate::check;
use crate::checkpoint::Source;
use crate::error::{Error, Result};
use crate::plan::Tensor;
use crate::stream::{Budget, Deposit};
use crate::{Prepared, Written, merge_tensors, prepare_given};

/// `mergeforge merge` of a config into the folder `out`. What the host finds is the manifest, as JSON.
///
/// # Errors
/// Those of the command.
pub fn merge(config: &Written, out: &Path, words: &[String], host: &Arc<dyn Host>) -> Result<()> {
    let mut options: MergeOptions = options(words)?;
    options.flags.json = true;
    host::with(host, || run_merge(|| Ok(config.clone()), out, &options))
}

/// `mergeforge plan` of a config. What the host finds is the plan, as JSON.
///
/// # Errors
/// Those of the command.
pub fn plan(config: &Written, words: &[String], host: &Arc<dyn Host>) -> Result<()> {
    let mut options: PlanOptions = options(words)?;
    options.json = true;
    host::with(host, || run_plan(config, &options))
}

/// `mergeforge methods`: what the host finds is all methods, as JSON.
///
/// # Errors
/// None.
pub fn methods(host: &Arc<dyn Host>) -> Result<()> {
    host::with(host, || show::methods(None, true))
}

/// A merge of tensors that lie in memory, planned.
#[derive(Debug)]
pub struct PlannedTensors {
    prepared: Prepared,
    on: (Device, Budget),
    common: CommonArgs,
}

/// Plans a merge of models some of which lie in memory: the config means these by their names.
///
/// # Errors
/// All that is wrong with the config and the models.
pub fn plan_tensors(
    config: &Written,
    models: Vec<Source>,
    words: &[String],
    host: &Arc<dyn Host>,
) -> Result<PlannedTensors> {
    let common: CommonArgs = options(words)?;
    host::with(host, || {
        let several = |_| {
            Error::config("a config with several documents cannot be merged in memory")
                .hint("merge one document after the other, each with the tensors of those before it")
        };
        let config = config.stages()?.single().map_err(several)?;
        let warnings = config.warnings.clone();
        let prepare = || prepare_given(config, models, &common.choices());
        let prepared = super::checked(&warnings, common.fit.strict, prepare)?;
        let cache = cache::folder();
        let usable = |device: &Device| check::before_first_use(device, cache.as_deref());
        let on = common.run.device(true, &usable)?;
        Ok(PlannedTensors { prepared, on, common })
    })
}

impl PlannedTensors {
    /// The tensors that the merge gives.
    pub fn tensors(&self) -> &[Tensor] {
        &self.prepared.plan.tensors
    }

    /// Merges into a deposit, which has room for all [`Self::tensors`].
    ///
    /// # Errors
    /// An input that cannot be read, a device that fails, or the user's wish to stop.
    pub fn merge(&self, deposit: &dyn Deposit, host: &Arc<dyn Host>) -> Result<()> {
        let Self { prepared, on: (device, budget), common } = self;
        host::with(host, || {
            check::before_first_use(device, cache::folder().as_deref())?;
            let progress = Progress::new(false)?;
            common.run.hub.bring(prepared, &progress)?;
            progress.expect(prepared.plan.layout.total_bytes, "written");
            let reads = common.run.reads(prepared);
            let merged = merge_tensors(prepared, (device, budget), reads, deposit, &progress)?;
            show::odd_values(&prepared.plan, merged.iter().enumerate(), None);
            Ok(())
        })
    }
}

/// An option that a function takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Its name, without the `--` before it.
    pub name: String,
    /// Whether it takes a value.
    pub takes_value: bool,
}

/// The options of [`merge`], of [`plan`] and of [`plan_tensors`].
pub fn flags() -> [(&'static str, Vec<Flag>); 3] {
    /// What says how a command answers, which here is always the same.
    const ANSWERS: [&str; 4] = ["quiet", "json", "verbose", "help"];
    let of = |command: Command, less: &[&str]| {
        let offered = command.get_arguments().filter(|argument| !argument.is_hide_set());
        let flag = |argument: &clap::Arg| {
            let name = argument.get_long()?;
            let is_taken = !ANSWERS.contains(&name) && !less.contains(&name);
            is_taken.then(|| Flag { name: name.into(), takes_value: argument.get_action().takes_values() })
        };
        offered.filter_map(flag).collect()
    };
    // In memory nothing is cut into files.
    let in_memory = of(Taken::<CommonArgs>::command(), &["out-shard-size"]);
    [
        // Parts are made by processes that know nothing of each other.
        ("merge", of(Taken::<MergeOptions>::command(), &["part"])),
        ("plan", of(Taken::<PlanOptions>::command(), &[])),
        ("merge_state_dicts", in_memory),
    ]
}

/// Options by themselves, without a program's name before them.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Taken<T: Args> {
    #[command(flatten)]
    options: T,
}

/// Options as the command line reads them.
fn options<T: Args>(words: &[String]) -> Result<T> {
    Taken::try_parse_from(words)
        .map(|taken: Taken<T>| taken.options)
        .map_err(|answer| show::wrong_usage(&answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_take_the_flags_that_mean_something_to_them() {
        let [merge, plan, in_memory] = flags().map(|(_, flags)| flags);
        let has = |flags: &[Flag], name: &str| flags.iter().any(|flag| flag.name == name);
        for (name, takes_value) in [("device", true), ("strict", false), ("random-seed", true)] {
            let flag = Flag { name: name.into(), takes_value };
            assert!([&merge, &plan, &in_memory].iter().all(|flags| flags.contains(&flag)), "{name}");
        }
        assert!(has(&merge, "trace") && !has(&plan, "trace") && !has(&in_memory, "trace"));
        assert!(!has(&merge, "part"));
        assert!(has(&merge, "out-shard-size") && !has(&in_memory, "out-shard-size"));
        for name in ["json", "quiet", "verbose", "help", "cuda", "lazy-unpickle", "chunk-tiles"] {
            assert!([&merge, &plan, &in_memory].iter().all(|flags| !has(flags, name)), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_option_is_an_error_of_the_command_line() {
        let wrong = options::<CommonArgs>(&["--threads=none".into()]).unwrap_err();
        assert_eq!(wrong.exit_code(), 2);
        assert!(wrong.message.contains("--threads") && wrong.message.contains("whole number"), "{wrong}");
        assert!(options::<CommonArgs>(&["--threads=3".into(), "--strict".into()]).unwrap().fit.strict);
    }
}
