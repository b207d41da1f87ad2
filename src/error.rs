//! One error for everything: what failed, on which file, tensor or key, and the way out.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::panic;
use std::path::Path;
use std::sync::Once;

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
    /// The Hub cannot be reached, or does not do as it should.
    Network,
    /// Something that is needed is not made yet: parts of an output. Later it may be.
    Unready,
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
            Self::Network => "network",
            Self::Unready => "unready",
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
    /// What it is about, where that is known apart from the message.
    pub about: About,
    /// The file that is wrong, as the user reaches it, where it is one: the config, whose place `about` is, or a file of a checkpoint.
    pub file: Option<Box<str>>,
    /// What the system said, where that is why an input could not be read.
    pub cause: Option<io::ErrorKind>,
    /// What else is wrong, where several things are, each with its own hint. These have no others.
    pub others: Vec<Self>,
}

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// No single place.
    All,
    /// A place in the config: line and column, from 1.
    Place(usize, usize),
    /// The values of one of the inputs that a method merges, from 0: whoever knows the models names it.
    Input(usize),
}

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whatever the message quotes, it is one line.
    fn new(kind: Kind, message: &str) -> Self {
        let (hint, about, file, cause, others) = (None, About::All, None, None, Vec::new());
        Self { kind, message: one_line(message), hint, about, file, cause, others }
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

    /// The Hub cannot be reached, or does not do as it should.
    pub fn network(message: impl Into<String>) -> Self {
        Self::new(Kind::Network, &message.into())
    }

    /// Something that is needed is not made yet.
    pub fn unready(message: impl Into<String>) -> Self {
        Self::new(Kind::Unready, &message.into())
    }

    /// An input file that the system would not let us read.
    pub fn reading(path: &Path, cause: &io::Error) -> Self {
        let error = Self::input(format!("cannot read {}: {cause}", path.display())).in_file(path);
        error.caused_by(cause)
    }

    /// Says why an input could not be read, as the system says it.
    #[must_use]
    pub fn caused_by(self, cause: &io::Error) -> Self {
        Self { cause: Some(cause.kind()), ..self }
    }

    /// An output file that the system would not let us write.
    pub fn writing(path: &Path, cause: &io::Error) -> Self {
        Self::output(format!("cannot write {}: {cause}", path.display())).in_file(path)
    }

    /// The user asked to stop.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted: no output was made")
    }

    /// Adds the way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(one_line(&hint.into()));
        self
    }

    /// Says what it is about.
    #[must_use]
    pub fn about(mut self, about: About) -> Self {
        self.about = about;
        self
    }

    /// Says which file is wrong.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        self.file = Some(file.display().to_string().into());
        self
    }

    /// Several failures as one: those with a place in the config in the order of their places, then the others as they come. A hint
    /// that helps against several of them in a row stands after the last. The kind of error is the first one's.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn all(errors: Vec<Self>) -> Self {
        /// The rest is counted.
        const SHOWN_MAX: usize = 8;
        let mut errors: Vec<Self> = errors.into_iter().flat_map(Self::one_by_one).collect();
        let more = errors.len().saturating_sub(SHOWN_MAX);
        errors.sort_by_key(|error| match error.about {
            About::Place(line, column) => (line, column),
            About::All | About::Input(_) => (usize::MAX, 0),
        });
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

    /// Whether the system failed to read an input, which may go well another time.
    pub fn may_be_read_again(&self) -> bool {
        self.cause.is_some_and(is_of_the_moment)
    }

    /// The process exit code: 2 for config, 3 for input, 4 for output, 5 for the device, 6 for the Hub, 7 for what is not made yet, 8 for
    /// an input that the system failed to read, 130 when interrupted. After 2 and 3 the same command ends in the same way; after the
    /// others it may succeed another time.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Config => 2,
            Kind::Input if self.may_be_read_again() => 8,
            Kind::Input => 3,
            Kind::Output => 4,
            Kind::Device | Kind::DeviceMemory => 5,
            Kind::Network => 6,
            Kind::Unready => 7,
            Kind::Interrupted => 130,
        }
    }
}

/// Whether this is the system's failure, as of a disk or of a network, and nothing that is wrong with the file.
fn is_of_the_moment(cause: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        InvalidData, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied,
        UnexpectedEof, Unsupported,
    };
    // A loop of links, too, is a mistake in a folder; its kind has no name yet.
    let is_loop = cfg!(unix) && cause == io::Error::from_raw_os_error(libc::ELOOP).kind();
    // An error of the disk has no name among these.
    !is_loop
        && !matches!(
            cause,
            InvalidData
                | InvalidFilename
                | InvalidInput
                | IsADirectory
                | NotADirectory
                | NotFound
                | PermissionDenied
                | UnexpectedEof
                | Unsupported
        )
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.others.iter().try_for_each(|other| write!(f, "\n{other}"))
    }
}

impl std::error::Error for Error {}

/// Longer words are no slip of a key, and comparing them takes memory by the square of their length.
const LONGEST_SLIP: usize = 64;

/// The candidate that `typed` is a slip of, when it is near enough. Case and what separates words do not count, the order of words
/// neither; of letters, the fewer there are the fewer may be wrong.
pub fn slip_of<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if typed.len() > LONGEST_SLIP {
        return None;
    }
    let (words, typed) = (sorted_words(typed), letters(typed));
    let wrong_max = match typed.chars().count() {
        0..=2 => 0,
        3..=5 => 1,
        6..=8 => 2,
        _ => 3,
    };
    let distance = |candidate: &str| match letters(candidate) {
        other if other == typed => 0,
        _ if words.len() > 1 && sorted_words(candidate) == words => 1,
        other => strsim::damerau_levenshtein(&typed, &other),
    };
    let rank = |candidate: &str| {
        let starts_otherwise = letters(candidate).chars().next() != typed.chars().next();
        (distance(candidate), starts_otherwise)
    };
    candidates
        .into_iter()
        .map(|candidate| (rank(candidate), candidate))
        .filter(|((distance, _), candidate)| *distance <= wrong_max.min(candidate.chars().count() / 2))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, candidate)| candidate)
}

/// The candidate that was probably meant: the one that `typed` is a slip of, or else the only one of which it has all words and more,
/// or some of them and no others.
pub fn did_you_mean<'a>(
    typed: &str,
    candidates: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    if let Some(meant) = slip_of(typed, candidates.clone()) {
        return Some(meant);
    }
    let typed = sorted_words(typed.get(..LONGEST_SLIP).unwrap_or(typed));
    let shared = |candidate: &str| {
        let words = sorted_words(candidate);
        let (fewer, more) = if words.len() < typed.len() { (&words, &typed) } else { (&typed, &words) };
        // A single letter is no word that anything could be known by.
        let known = fewer.iter().any(|word| word.len() > 1) && fewer.iter().all(|word| more.contains(word));
        if known { fewer.len() } else { 0 }
    };
    let shared: Vec<(usize, &str)> =
        candidates.into_iter().map(|candidate| (shared(candidate), candidate)).collect();
    let most = shared.iter().map(|(count, _)| *count).max().filter(|most| *most > 0)?;
    let mut best = shared.into_iter().filter(|(count, _)| *count == most);
    let (_, only) = best.next()?;
    best.next().is_none().then_some(only)
}

/// What tells words apart but for case and separators.
fn letters(word: &str) -> String {
    word.to_lowercase().chars().filter(|c| !is_separator(*c)).collect()
}

/// The words of a name, such as `dare` and `ties`, in alphabetical order.
fn sorted_words(name: &str) -> Vec<String> {
    let mut words: Vec<String> =
        name.to_lowercase().split(is_separator).filter(|word| !word.is_empty()).map(str::to_string).collect();
    words.sort_unstable();
    words
}

fn is_separator(c: char) -> bool {
    matches!(c, '_' | '-' | ' ' | '.')
}

/// The result of code that others wrote, or nothing if it panics, which stays silent: they may take for granted what a file or a device
/// does not keep to.
pub fn without_panic<T>(run: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static SILENT: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !SILENT.get() {
                report(panic);
            }
        }));
    });
    let before = SILENT.replace(true);
    let result = panic::catch_unwind(panic::AssertUnwindSafe(run));
    SILENT.set(before);
    result.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_failed_to_read_may_be_tried_again() {
        let of = |cause: io::Error| Error::reading(Path::new("a"), &cause).exit_code();
        // EIO, ESTALE and EMFILE of Linux.
        #[cfg(target_os = "linux")]
        assert_eq!([5, 116, 24].map(|code| of(io::Error::from_raw_os_error(code))), [8; 3]);
        assert_eq!(of(io::ErrorKind::TimedOut.into()), 8);
        for of_the_file in
            [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::UnexpectedEof]
        {
            assert_eq!(of(of_the_file.into()), 3, "{of_the_file}");
        }
        #[cfg(unix)]
        assert_eq!(of(io::Error::from_raw_os_error(libc::ELOOP)), 3);
        assert_eq!(Error::input("damaged").exit_code(), 3);
    }

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

    #[test]
    fn errors_stand_in_the_order_of_their_places() {
        let at = |line, column| Error::config(format!("{line}:{column}")).about(About::Place(line, column));
        let whole = |message: &str| Error::config(message);
        let errors = vec![at(10, 1), whole("x"), at(2, 30), at(2, 4), whole("b").about(About::Input(0))];
        assert_eq!(Error::all(errors).to_string(), "2:4\n2:30\n10:1\nx\nb");
        let many = (0..20).rev().map(|line| at(line, 1)).collect();
        assert!(Error::all(many).to_string().starts_with("0:1\n1:1\n"), "the first are shown, not any");
    }

    const METHODS: &[&str] = &[
        "linear",
        "average",
        "fisher",
        "slerp",
        "nuslerp",
        "multislerp",
        "karcher",
        "model_stock",
        "task_arithmetic",
        "ties",
        "dare_linear",
        "dare_ties",
        "breadcrumbs",
        "breadcrumbs_ties",
        "della",
        "della_linear",
        "sce",
        "ram",
        "ramplus_tl",
        "nearswap",
        "arcee_fusion",
        "magmax",
        "emr",
        "consensus",
        "passthrough",
    ];
    const KEYS: &[&str] = &[
        "merge_method",
        "models",
        "slices",
        "modules",
        "base_model",
        "dtype",
        "out_dtype",
        "parameters",
        "tokenizer_source",
        "tokenizer",
        "chat_template",
        "name",
    ];
    const PARAMETERS: &[&str] = &["weight", "density", "normalize", "rescale", "lambda", "int8_mask", "t"];

    /// What people typed, and what they meant: nothing where that cannot be known.
    const TYPED: &[(&[&str], &str, Option<&str>)] = &[
        (METHODS, "tise", Some("ties")),
        (METHODS, "TIES", Some("ties")),
        (METHODS, "tie", Some("ties")),
        (METHODS, "ties_merging", Some("ties")),
        (METHODS, "liner", Some("linear")),
        (METHODS, "Linear", Some("linear")),
        (METHODS, "slrep", Some("slerp")),
        (METHODS, "SLERP", Some("slerp")),
        (METHODS, "slurp", Some("slerp")),
        (METHODS, "lerp", Some("slerp")),
        (METHODS, "nu_slerp", Some("nuslerp")),
        (METHODS, "multi-slerp", Some("multislerp")),
        (METHODS, "dare-ties", Some("dare_ties")),
        (METHODS, "dareties", Some("dare_ties")),
        (METHODS, "ties_dare", Some("dare_ties")),
        (METHODS, "dare_tie", Some("dare_ties")),
        (METHODS, "dare linear", Some("dare_linear")),
        (METHODS, "task_arithmatic", Some("task_arithmetic")),
        (METHODS, "task-arithmetic", Some("task_arithmetic")),
        (METHODS, "task_vector", None),
        (METHODS, "arithmetic", Some("task_arithmetic")),
        (METHODS, "passthru", None),
        (METHODS, "passthough", Some("passthrough")),
        (METHODS, "pass_through", Some("passthrough")),
        (METHODS, "modelstock", Some("model_stock")),
        (METHODS, "stock", Some("model_stock")),
        (METHODS, "model_breadcrumbs", Some("breadcrumbs")),
        (METHODS, "breadcrums", Some("breadcrumbs")),
        (METHODS, "dela", Some("della")),
        (METHODS, "dela_linear", Some("della_linear")),
        (METHODS, "arcee-fusion", Some("arcee_fusion")),
        (METHODS, "fusion", Some("arcee_fusion")),
        (METHODS, "karchar", Some("karcher")),
        (METHODS, "avg", None),
        (METHODS, "mean", None),
        (METHODS, "lrp", None),
        (METHODS, "dare", None),
        (METHODS, "scn", Some("sce")),
        (METHODS, "x", None),
        (METHODS, "", None),
        (METHODS, "franken", None),
        (METHODS, "moe", None),
        (KEYS, "model", Some("models")),
        (KEYS, "Models", Some("models")),
        (KEYS, "method", Some("merge_method")),
        (KEYS, "merge-method", Some("merge_method")),
        (KEYS, "mergeMethod", Some("merge_method")),
        (KEYS, "base", Some("base_model")),
        (KEYS, "basemodel", Some("base_model")),
        (KEYS, "slice", Some("slices")),
        (KEYS, "layers", None),
        (KEYS, "d_type", Some("dtype")),
        (KEYS, "type", Some("dtype")),
        (KEYS, "torch_dtype", Some("dtype")),
        (KEYS, "params", None),
        (KEYS, "paramters", Some("parameters")),
        (KEYS, "parametres", Some("parameters")),
        (KEYS, "tokeniser", Some("tokenizer")),
        (KEYS, "tokeniser_source", Some("tokenizer_source")),
        (KEYS, "seed", None),
        (PARAMETERS, "weights", Some("weight")),
        (PARAMETERS, "wieght", Some("weight")),
        (PARAMETERS, "wheight", Some("weight")),
        (PARAMETERS, "densty", Some("density")),
        (PARAMETERS, "normalise", Some("normalize")),
        (PARAMETERS, "int8mask", Some("int8_mask")),
        (PARAMETERS, "lamda", Some("lambda")),
        (PARAMETERS, "T", Some("t")),
        (PARAMETERS, "p", None),
        (PARAMETERS, "alpha", None),
        (&["union", "base"], "unoin", Some("union")),
        (&["self_attn", "mlp"], "*attn*", None),
        (&["self_attn", "mlp"], "attn", Some("self_attn")),
        (&["self_attn", "mlp"], "self_atn", Some("self_attn")),
    ];

    #[test]
    fn what_was_meant_is_found_and_nothing_is_made_up() {
        for (known, typed, meant) in TYPED {
            assert_eq!(did_you_mean(typed, known.iter().copied()), *meant, "{typed}");
        }
        let models = ["union", "base"];
        assert_eq!(slip_of("org/my-base", models), None, "words of a name are no slips");
        assert_eq!(slip_of(&"union".repeat(100), models), None);
        assert_eq!(did_you_mean(&"ü".repeat(100), models), None);
    }
}
