//! `mergeforge completions`, `man` and `schema`: what shells, manuals and editors know of commands and configs.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, Command, CommandFactory, Id};
use clap_complete::Shell;

use super::{Cli, show};
use crate::error::{Error, Result};
use crate::schema::schema;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// A folder for the pages of all commands, in place of the first page on standard output
    folder: Option<PathBuf>,
}

/// Prints what a shell reads to complete commands.
pub(super) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut offered(&Cli::command()), "mergeforge", &mut script);
    show::text(&String::from_utf8_lossy(&script));
    Ok(())
}

/// What to say where an argument is missing that an option of several values may have taken.
pub(super) fn taken(answer: &clap::Error, words: &[OsString]) -> Option<String> {
    let Some(ContextValue::Strings(missing)) = answer.get(ContextKind::InvalidArg) else { return None };
    let is_argument = |name: &String| name.starts_with('<') && !name.starts_with("<-");
    if answer.kind() != ErrorKind::MissingRequiredArgument || !missing.iter().any(is_argument) {
        return None;
    }
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand(words.get(1)?)?;
    let takes_more = |argument: &&Arg| argument.get_num_args().is_some_and(|values| values.max_values() > 1);
    let mut options = command.get_arguments().filter(takes_more).filter_map(Arg::get_long);
    let given = options.find(|long| words.iter().any(|word| *word == *format!("--{long}")))?;
    Some(format!("--{given} takes all words up to the next option: options of several values come last"))
}

/// A command without what is taken and not offered: clap's generators offer hidden flags too.
fn offered(command: &Command) -> Command {
    // clap wants names that live as long as the program, which ends when these were printed.
    let lasting = |text: &str| -> &'static str { text.to_owned().leak() };
    let none = || Resettable::<Id>::Reset;
    let arguments =
        command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned().map(|argument| {
            // What it excludes or needs may be left out.
            argument
                .overrides_with(none())
                .conflicts_with(none())
                .requires(none())
                .required_unless_present(none())
        });
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set()).map(offered);
    let made = Command::new(lasting(command.get_name()))
        .about(command.get_about().cloned().unwrap_or_default())
        .visible_aliases(command.get_visible_aliases().map(lasting))
        .args(arguments)
        .subcommands(commands);
    match command.get_version() {
        Some(version) => made.version(lasting(version)),
        None => made,
    }
}

/// The commands that have a page.
fn commands() -> Command {
    Cli::command().disable_help_subcommand(true)
}

/// Prints the manual's first page, or writes all pages.
pub(super) fn man(args: &ManArgs) -> Result<()> {
    let failed = |place: &Path| {
        let place = place.to_path_buf();
        move |cause| Error::writing(&place, &cause)
    };
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(commands()).render(&mut page).map_err(failed(Path::new("the page")))?;
        show::text(&String::from_utf8_lossy(&page));
        return Ok(());
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    clap_mangen::generate_to(commands(), folder).map_err(failed(folder))?;
    show::note(&format!("pages of all commands written to {}", folder.display()));
    Ok(())
}

/// Prints the JSON Schema of configs.
pub(super) fn print_schema() {
    show::json(&schema());
}
