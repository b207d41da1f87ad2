//! Flags of `mergekit-yaml` that people paste along: all of them are taken, and answered with a line where they mean nothing here.
//!
//! A flag is one entry of a table; clap's argument, the `--no-` form and the line follow from it.

use clap::error::Error as Refusal;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::error::Error;

/// A flag that is on or off in mergekit.
struct Switch {
    on: &'static str,
    off: &'static str,
    /// The answer to each form, where it could surprise that it changes nothing.
    notes: (Option<&'static str>, Option<&'static str>),
}

/// A flag that takes a value in mergekit.
struct Setting {
    name: &'static str,
    value: &'static str,
    note: &'static str,
}

const fn needless(on: &'static str, off: &'static str, note: &'static str) -> Switch {
    Switch { on, off, notes: (Some(note), None) }
}

const SWITCHES: &[Switch] = &[
    Switch {
        on: "cuda",
        off: "no-cuda",
        notes: (
            Some("not needed, --device auto takes a GPU where there is one"),
            Some("--device cpu is what keeps a merge off the GPU"),
        ),
    },
    needless("lazy-unpickle", "no-lazy-unpickle", "not needed, tensors are always read in chunks"),
    needless("low-cpu-memory", "no-low-cpu-memory", "not needed, memory is bounded by --host-memory"),
    needless("trust-remote-code", "no-trust-remote-code", "not needed, no code of a model is run"),
    needless("read-to-gpu", "no-read-to-gpu", "not needed, a GPU is fed as fast as it can be"),
    needless("multi-gpu", "no-multi-gpu", "not supported yet, one GPU is used"),
    needless("gpu-rich", "no-gpu-rich", "not needed, one GPU is used and fed as fast as it can be"),
    needless("async-write", "no-async-write", "not needed, every thread writes while others read"),
    Switch { on: "clone-tensors", off: "no-clone-tensors", notes: (None, None) },
    Switch {
        on: "safe-serialization",
        off: "no-safe-serialization",
        notes: (None, Some("the output is always safetensors")),
    },
];

const SETTINGS: &[Setting] = &[
    Setting {
        name: "write-threads",
        value: "N",
        note: "not needed, every thread writes while others read (--threads)",
    },
    Setting {
        name: "transformers-cache",
        value: "DIR",
        note: "set HF_HUB_CACHE instead; models are looked up there",
    },
    Setting {
        name: "lora-merge-cache",
        value: "DIR",
        note: "not needed, adapters are added while they are read",
    },
    Setting {
        name: "lora-merge-dtype",
        value: "TYPE",
        note: "not needed, adapters are added in float32 and rounded once, to the output's type",
    },
];

/// The answers to the flags that were given.
#[derive(Debug)]
pub(super) struct MergekitArgs {
    pub(super) notes: Vec<String>,
}

impl Args for MergekitArgs {
    fn augment_args(command: Command) -> Command {
        let flag = |name| Arg::new(name).long(name).hide(true);
        let switches = SWITCHES.iter().flat_map(|Switch { on, off, .. }| {
            [(*on, *off), (*off, *on)]
                .map(|(one, other)| flag(one).action(ArgAction::SetTrue).overrides_with(other))
        });
        let settings = SETTINGS.iter().map(|Setting { name, value, .. }| flag(name).value_name(value));
        let verbose = Arg::new("verbose").long("verbose").short('v').hide(true).action(ArgAction::Count);
        command.args(switches).args(settings).arg(verbose)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MergekitArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Refusal> {
        let noted = |name: &str, note: &str| format!("--{name}: {note}");
        let switches = SWITCHES.iter().flat_map(|switch| {
            let forms = [(switch.on, switch.notes.0), (switch.off, switch.notes.1)];
            forms
                .into_iter()
                .filter_map(|(name, note)| Some(noted(name, note.filter(|_| matches.get_flag(name))?)))
        });
        let settings = SETTINGS.iter().filter(|setting| matches.contains_id(setting.name));
        let settings = settings.map(|setting| noted(setting.name, setting.note));
        Ok(Self { notes: switches.chain(settings).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Refusal> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The refusal of a device that only mergekit has: torch's names for the GPUs of Apple and Intel.
pub(super) fn foreign_device(word: &str) -> Option<Error> {
    let maker = match word.split(':').next()? {
        "mps" => "Apple",
        "xpu" => "Intel",
        _ => return None,
    };
    let refusal = Error::config(format!("--device {word}: there is no such device"));
    Some(refusal.hint(format!("--device wgpu computes on GPUs of {maker}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(given: &[&str]) -> Vec<String> {
        let command = MergekitArgs::augment_args(Command::new("merge").no_binary_name(true));
        MergekitArgs::from_arg_matches(&command.try_get_matches_from(given).unwrap()).unwrap().notes
    }

    #[test]
    fn every_switch_has_its_other_form_and_the_last_one_counts() {
        for Switch { on, off, notes: (note, _) } in SWITCHES {
            assert_eq!(*off, format!("no-{on}"));
            let (on, off) = (format!("--{on}"), format!("--{off}"));
            let noted = |notes: &[String]| notes.iter().any(|noted| noted.starts_with(&format!("{on}: ")));
            assert_eq!(noted(&notes(&[&off, &on])), note.is_some());
            assert!(!noted(&notes(&[&on, &off])));
        }
    }

    #[test]
    fn settings_are_answered_whatever_their_value() {
        for Setting { name, note, .. } in SETTINGS {
            assert_eq!(notes(&[&format!("--{name}"), "x"]), [format!("--{name}: {note}")]);
        }
        assert_eq!(notes(&["-vv", "--clone-tensors", "--safe-serialization"]), [""; 0]);
    }

    #[test]
    fn the_page_for_those_who_come_from_mergekit_has_every_flag() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/coming-from-mergekit.md");
        let page = std::fs::read_to_string(page).unwrap();
        let names =
            SWITCHES.iter().map(|switch| switch.on).chain(SETTINGS.iter().map(|setting| setting.name));
        let missing: Vec<&str> = names.filter(|name| !page.contains(&format!("`--{name}`"))).collect();
        assert_eq!(missing, [""; 0]);
    }
}
