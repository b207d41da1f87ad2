//! Configs of all kinds, read from files, from standard input, or from texts.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::config::moe::{self, MoeConfig};
use crate::config::{self, Config, Space};
use crate::error::{Error, Result};
use crate::limits::YAML_BYTES_MAX;
use crate::stages::Stages;

/// Reads a config. What is wrong with its values is reported by [`crate::prepare_config`], together with what is wrong beyond them.
///
/// # Errors
/// It cannot be read, or is no config.
pub fn read_config(file: &Path) -> Result<Config> {
    config::read(&called(file), &read_text(file)?)
}

/// Reads a config of one document or of several.
///
/// # Errors
/// It cannot be read, or is no config.
pub fn read_stages(file: &Path) -> Result<Stages> {
    Written::in_file(file)?.stages()
}

/// Reads a config with open values, for a sweep.
///
/// # Errors
/// It cannot be read, or leaves nothing open.
pub fn read_space(file: &Path) -> Result<Space> {
    Space::read(&called(file), &read_text(file)?)
}

/// Reads a config of experts, as [`read_config`] does.
///
/// # Errors
/// It cannot be read, or is no such config.
pub fn read_moe(file: &Path) -> Result<MoeConfig> {
    moe::read(&called(file), &read_text(file)?)
}

/// A config of either kind.
#[derive(Debug)]
pub enum AnyConfig {
    /// Of one merge or of several.
    Merges(Stages),
    /// Of experts.
    Mixture(Box<MoeConfig>),
}

/// Reads a config of either kind, once: it may come through a pipe.
///
/// # Errors
/// It cannot be read, or is no config.
pub fn read_any(file: &Path) -> Result<AnyConfig> {
    any(&called(file), &read_text(file)?)
}

/// The same where values may be left open: then the config is the one in the middle of them.
///
/// # Errors
/// It cannot be read, or is no config.
pub fn read_any_or_space(file: &Path) -> Result<(Option<Space>, AnyConfig)> {
    Written::in_file(file)?.any_or_space()
}

/// A config before it is read.
#[derive(Debug, Clone)]
pub struct Written {
    /// What messages call it; empty where places in it would mean nothing to a user.
    pub name: String,
    /// Its text: YAML.
    pub text: String,
}

impl Written {
    /// That of a file, or of standard input for `-`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn in_file(file: &Path) -> Result<Self> {
        Ok(Self { name: called(file), text: read_text(file)? })
    }

    /// As [`read_stages`].
    ///
    /// # Errors
    /// It is no config.
    pub fn stages(&self) -> Result<Stages> {
        Stages::of(config::read_all(&self.name, &self.text)?, &self.text)
    }

    /// As [`read_any_or_space`].
    ///
    /// # Errors
    /// It is no config.
    pub fn any_or_space(&self) -> Result<(Option<Space>, AnyConfig)> {
        let Self { name, text } = self;
        let space = if moe::is_moe(text) { None } else { Space::find(name, text)? };
        let filled = space.as_ref().map(|space| space.fill(&space.middle()));
        let config = any(name, filled.as_ref().unwrap_or(text))?;
        Ok((space, config))
    }
}

fn any(name: &str, text: &str) -> Result<AnyConfig> {
    Ok(if moe::is_moe(text) {
        AnyConfig::Mixture(Box::new(moe::read(name, text)?))
    } else {
        AnyConfig::Merges(Stages::of(config::read_all(name, text)?, text)?)
    })
}

/// What a config is called in messages: its file, or standard input for `-`.
fn called(file: &Path) -> String {
    if file == Path::new("-") { "<stdin>".into() } else { file.display().to_string() }
}

/// The text of a config.
fn read_text(file: &Path) -> Result<String> {
    let failed = |cause| {
        Error::config(format!("cannot read {}: {cause}", called(file)))
            .in_file(file)
            .hint("the first argument is a merge config in YAML, as mergekit takes it")
    };
    let mut source = Vec::new();
    // One byte more than a config may have is enough to refuse it.
    let limit = YAML_BYTES_MAX as u64 + 1;
    let from: Box<dyn Read> = match File::open(file) {
        _ if file == Path::new("-") => Box::new(io::stdin()),
        opened => Box::new(opened.map_err(failed)?),
    };
    from.take(limit).read_to_end(&mut source).map_err(failed)?;
    config::decoded(&called(file), source)
}
