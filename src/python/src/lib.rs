//! The Python module `mergeforge._mergeforge`: what `mergeforge`, the package around it, needs of the program. Configs and options are
//! texts here, tensors are addresses; the package makes them of what users have.

#![allow(clippy::needless_pass_by_value, reason = "what comes from Python comes by value")]

mod attended;
mod tensors;

use std::ffi::OsString;
use std::path::PathBuf;

use mergeforge::Written;
use mergeforge::cli::{self, call};
use pyo3::prelude::*;

use attended::{attended, raised};

#[pymodule]
mod _mergeforge {
    use mergeforge::cli::call;
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{flags, merge, methods, plan, read, run};
    #[pymodule_export]
    use crate::tensors::{PlannedTensors, plan_tensors};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        // By Python, which knows who else may be reading the environment.
        call::quiet_mesa().map_or(Ok(()), |(name, value)| {
            module.py().import("os")?.getattr("environ")?.set_item(name, value)
        })
    }
}

/// A config: what messages call it, and its text.
type Config = (String, String);

fn written((name, text): Config) -> Written {
    Written { name, text }
}

/// What messages call the config in a file, and its text.
#[pyfunction]
fn read(py: Python<'_>, file: PathBuf) -> PyResult<Config> {
    let read = py.detach(|| Written::in_file(&file));
    read.map(|Written { name, text }| (name, text)).map_err(|error| raised(py, error))
}

/// Merges into a folder. Returns the manifest, as JSON.
#[pyfunction]
fn merge(
    py: Python<'_>,
    config: Config,
    out: PathBuf,
    words: Vec<String>,
    said: &Bound<'_, PyAny>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<String> {
    let config = written(config);
    attended(py, said, progress, |host| call::merge(&config, &out, &words, host)).map(|((), found)| found)
}

/// Plans a merge. Returns the plan, as JSON.
#[pyfunction]
fn plan(py: Python<'_>, config: Config, words: Vec<String>, said: &Bound<'_, PyAny>) -> PyResult<String> {
    let config = written(config);
    attended(py, said, None, |host| call::plan(&config, &words, host)).map(|((), found)| found)
}

/// All methods, as JSON.
#[pyfunction]
fn methods(py: Python<'_>, said: &Bound<'_, PyAny>) -> PyResult<String> {
    attended(py, said, None, call::methods).map(|((), found)| found)
}

/// Of each function that takes options: these, and whether each takes a value.
#[pyfunction]
fn flags() -> Vec<(&'static str, Vec<(String, bool)>)> {
    let listed =
        |flags: Vec<call::Flag>| flags.into_iter().map(|flag| (flag.name, flag.takes_value)).collect();
    call::flags().into_iter().map(|(function, flags)| (function, listed(flags))).collect()
}

/// Runs a command line, and returns the exit code. `program` is what starts this program again.
#[pyfunction]
fn run(py: Python<'_>, words: Vec<OsString>, program: Vec<OsString>) -> u8 {
    py.detach(|| cli::run(words, program))
}
