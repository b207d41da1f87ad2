//! One error for everything: what failed, on which file, tensor or key, and the way out.

use std::fmt;
use std::path::Path;

use crate::text::one_line;

/// What kind of thing went wrong; it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command, the config, or the plan made from it cannot be carried out. No tensor data was read.
    Config,
    /// An input checkpoint is missing, damaged, or changed while it was read.
    Input,
    /// The output could not be written.
    Output,
    /// The device, or its driver, is missing, too small, or failed.
    Device,
    /// The device has not the memory that was asked for. With less the work may still be done.
    DeviceMemory,
    /// The user asked to stop (Ctrl-C or SIGTERM).
    Interrupted,
}

impl Kind {
    /// The word for it in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Input => "input",
            Self::Output => "output",
            Self::Device | Self::DeviceMemory => "device",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A failure, shown to the user as `error: message`, then `hint: …` where there is a way out; and so on for what else is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure this is.
    pub kind: Kind,
    /// What failed and on what, in one line.
    pub message: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// What else is wrong, where several things are, each with its own hint. These have no others.
    pub others: Vec<Self>,
}

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whatever the message quotes, it is one line.
    fn new(kind: Kind, message: &str) -> Self {
        Self { kind, message: one_line(message), hint: None, others: Vec::new() }
    }

    /// The config, the command or the plan is wrong.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, &message.into())
    }

    /// An input is missing, damaged or changing.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, &message.into())
    }

    /// The output cannot be written.
    pub fn output(message: impl Into<String>) -> Self {
        Self::new(Kind::Output, &message.into())
    }

    /// The device cannot do it.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, &message.into())
    }

    /// An input file that the system would not let us read.
    pub fn reading(path: &Path, cause: &std::io::Error) -> Self {
        Self::input(format!("cannot read {}: {cause}", path.display()))
    }

    /// An output file that the system would not let us write.
    pub fn writing(path: &Path, cause: &std::io::Error) -> Self {
        Self::output(format!("cannot write {}: {cause}", path.display()))
    }

    /// The user asked to stop.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted: nothing was written")
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(one_line(&hint.into()));
        self
    }

    /// Several failures as one. A hint that helps against several of them in a row stands after the last. The kind of error is
    /// the first one's.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn all(errors: Vec<Self>) -> Self {
        /// The rest is counted.
        const SHOWN_MAX: usize = 8;
        let mut errors: Vec<Self> = errors.into_iter().flat_map(Self::one_by_one).collect();
        let more = errors.len().saturating_sub(SHOWN_MAX);
        errors.truncate(SHOWN_MAX);
        for place in 1..errors.len() {
            if errors[place - 1].hint == errors[place].hint {
                errors[place - 1].hint = None;
            }
        }
        let mut errors = errors.into_iter();
        let mut first = errors.next().expect("an error is made of errors");
        first.others.extend(errors);
        if more > 0 {
            first.others.push(Self::new(first.kind, &format!("… and {more} more")));
        }
        first
    }

    /// What is wrong, each by itself.
    pub fn one_by_one(mut self) -> Vec<Self> {
        let others = std::mem::take(&mut self.others);
        std::iter::once(self).chain(others).collect()
    }

    /// The process exit code: 2 for config, 3 for input, 4 for output, 5 for the device, 130 when interrupted.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Config => 2,
            Kind::Input => 3,
            Kind::Output => 4,
            Kind::Device | Kind::DeviceMemory => 5,
            Kind::Interrupted => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.others.iter().try_for_each(|other| write!(f, "\n{other}"))
    }
}

impl std::error::Error for Error {}

/// The candidate nearest to `typed`, when it is near enough to be what was meant.
pub fn did_you_mean<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Longer words are no slip of a key, and comparing them takes memory by the square of their length.
    const LONGEST: usize = 64;
    if typed.len() > LONGEST {
        return None;
    }
    let typed = typed.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&typed, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_errors_are_one_and_each_keeps_its_hint() {
        let missing = |i: usize| Error::config(format!("no m{i}")).hint(format!("run `get m{i}` first"));
        let damaged = || Error::input("damaged").hint("get it again");
        let all = Error::all(vec![missing(0), missing(1), damaged()]);
        assert_eq!((all.kind, all.to_string().as_str()), (Kind::Config, "no m0\nno m1\ndamaged"));
        assert_eq!(all.clone().one_by_one(), [missing(0), missing(1), damaged()]);
        let many = Error::all((0..100).map(missing).collect()).to_string();
        assert!(many.ends_with("no m7\n… and 92 more"), "{many}");
        assert_eq!(Error::all(vec![missing(7)]), missing(7));
        let nested = Error::all(vec![Error::all(vec![missing(0), missing(1)]), damaged()]);
        assert_eq!(nested, all);
        let alike = Error::all(vec![missing(0), damaged(), damaged(), missing(1)]).one_by_one();
        assert_eq!(
            alike.iter().map(|error| error.hint.is_some()).collect::<Vec<_>>(),
            [true, false, true, true]
        );
    }
}
