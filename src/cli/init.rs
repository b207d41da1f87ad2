//! `mergeforge init`: a config to begin with, made of the table of methods.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value as Json;

use super::show;
use crate::cache::{self, make_private, read_small, replace};
use crate::error::{Error, Result};
use crate::method::{self, Base, Method, Parameter, Scope, Value, ValueKind};
use crate::schema::schema;
use crate::text::escaped;

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The method; `mergeforge methods` lists them
    method: String,
    /// The models, each a folder or a name on the Hugging Face Hub, perhaps with @revision and +ADAPTER
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// The base model
    #[arg(long, visible_alias = "base-model", value_name = "MODEL")]
    base: Option<String>,
    /// Write into this file, which must not exist, in place of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where editors find the schema, in place of a copy that is put into the cache folder: a path or an address
    #[arg(long, value_name = "WHERE")]
    schema: Option<String>,
}

/// Makes the config and prints or writes it.
pub(super) fn run(args: &InitArgs) -> Result<()> {
    let method = method::find(&args.method)?;
    check(method, args)?;
    let place = args.schema.clone().or_else(copy_of_schema);
    let text = config(method, args, place.as_deref());
    let Some(out) = &args.out else {
        show::text(&text);
        return Ok(());
    };
    let failed = |cause: std::io::Error| match cause.kind() {
        std::io::ErrorKind::AlreadyExists => Error::output(format!("{} exists", out.display()))
            .hint("give a new file, or leave --out away to see the config"),
        _ => Error::writing(out, &cause),
    };
    let mut file = File::create_new(out).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    show::note(&format!("config written to {}", out.display()));
    Ok(())
}

/// Refuses what no config of the method could be.
fn check(method: &Method, args: &InitArgs) -> Result<()> {
    let name = method.name;
    let is_listed = args.base.as_ref().is_none_or(|base| args.models.contains(base));
    if method.base == Base::Required && args.base.is_none() {
        let which = if *method.models.end() == 2 {
            "one of the two models"
        } else {
            "what the models were trained from"
        };
        return Err(
            Error::config(format!("{name} needs a base model")).hint(format!("give it with --base: {which}"))
        );
    }
    if method.base == Base::Ignored && !is_listed {
        return Err(Error::config(format!("{name} treats all models alike, and --base is not among them"))
            .hint("list it with the models, or leave --base away"));
    }
    let count = args.models.len() + usize::from(method.base == Base::Required && !is_listed);
    if !method.models.contains(&count) {
        let (least, most) = (method.models.start(), method.models.end());
        let takes = match most {
            most if least == most => format!("{least}"),
            &usize::MAX => format!("{least} or more"),
            most => format!("{least} to {most}"),
        };
        let base = if method.base == Base::Required { ", its base among them" } else { "" };
        return Err(Error::config(format!("{name} merges {takes} models{base}, and here are {count}")));
    }
    Ok(())
}

/// The address of a copy of the schema that editors find; none, with a note, where it cannot be kept.
fn copy_of_schema() -> Option<String> {
    let kept = |folder: PathBuf| -> std::io::Result<String> {
        let folder = std::path::absolute(folder)?;
        make_private(&folder)?;
        let (file, text) = (folder.join("config.schema.json"), format!("{:#}\n", schema()));
        if !read_small(&file, text.len() as u64).is_ok_and(|kept| kept == text.as_bytes()) {
            replace(&file, text.as_bytes())?;
        }
        Ok(address(&file))
    };
    match cache::folder().map(kept) {
        Some(Ok(place)) => Some(place),
        Some(Err(cause)) => {
            show::note(&format!("no copy of the schema for editors could be kept: {cause}"));
            None
        }
        None => {
            show::note(
                "there is no cache folder to keep the schema for editors in: --schema says where it is",
            );
            None
        }
    }
}

/// A file as an address in a comment.
fn address(file: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let path = file.to_string_lossy().replace('\\', "/");
    let encoded: String = path
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    // Paths of Windows begin with the letter of a drive.
    format!("file://{}{encoded}", if encoded.starts_with('/') { "" } else { "/" })
}

/// The config's text.
fn config(method: &Method, args: &InitArgs, schema: Option<&str>) -> String {
    let mut text = String::new();
    let mut line = |of: String| text += &(of + "\n");
    schema.iter().for_each(|place| line(format!("# yaml-language-server: $schema={}", escaped(place))));
    line(format!("# {}: {}", method.name, method.summary));
    method.formula.lines().for_each(|formula| line(format!("#   {formula}")));
    method.paper.iter().for_each(|paper| line(format!("#   {}", paper.url)));
    line(format!(
        "# `mergeforge methods {}` explains the parameters; those behind a # have the value that stands there.",
        method.name
    ));
    line(format!("merge_method: {}", method.name));
    if let Some(base) = &args.base {
        line(format!("base_model: {}", model(base)));
    }
    line("models:".into());
    let is_base = |model: &String| args.base.as_ref() == Some(model);
    let tasks = args.models.iter().filter(|model| method.base == Base::Ignored || !is_base(model)).count();
    let mut explained = false;
    for listed in &args.models {
        line(format!("  - model: {}", model(listed)));
        let has = |parameter: &&Parameter| match parameter.scope {
            Scope::Input => true,
            Scope::NonBase => !is_base(listed),
            Scope::Shared => false,
        };
        let own: Vec<&Parameter> = method.parameters.iter().filter(has).collect();
        for file in own.iter().filter(|parameter| parameter.kind == ValueKind::File) {
            line(format!("    {}: {}.safetensors  # {}", file.name, file.name, file.meaning));
        }
        parameters(&own, "    ", |parameter| start(method, parameter, tasks), !explained, &mut line);
        explained |= !own.is_empty();
    }
    let shared: Vec<&Parameter> =
        method.parameters.iter().filter(|parameter| parameter.scope == Scope::Shared).collect();
    parameters(&shared, "", |parameter| start(method, parameter, tasks), true, &mut line);
    line("# dtype: bfloat16  # without it, the type that holds the values of all models".into());
    line("# tokenizer_source: union  # without it, the base's tokens, or the first model's".into());
    text
}

/// A model as it is written: in short, or at length where its signs would mean something else.
fn model(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "._/-~@+".contains(c);
    let is_plain = name.chars().all(plain)
        && name.starts_with(|c: char| c.is_alphanumeric() || "./_".contains(c))
        && !["null", "Null", "NULL"].contains(&name);
    if name.contains(['@', '+']) && Path::new(name).exists() {
        return format!("{{model: {{path: {}}}}}", Json::from(name));
    }
    // A text in JSON is one in YAML.
    if is_plain { name.to_owned() } else { Json::from(name).to_string() }
}

/// What to begin with, for what has no default or does nothing by it.
fn start(method: &Method, parameter: &Parameter, models: usize) -> Option<String> {
    match (parameter.name, parameter.sensible) {
        // So many digits that the sum is 1 but for the last of them.
        ("weight", _) if parameter.default.is_none() => {
            Some(format!("{}", (1000.0 / models.max(1) as f64).round() / 1000.0))
        }
        // task_arithmetic takes task vectors whole.
        ("density", _) if method.name != "task_arithmetic" => Some("0.5".into()),
        (_, Some(sensible)) if parameter.default.is_none() => {
            Some(format!("{}", 0.5 * (sensible.least + sensible.most)))
        }
        _ if parameter.default.is_none() => Some("0.001".into()),
        _ => None,
    }
}

/// The lines of `parameters`, where there are some: those that have a value to begin with, and the others behind a `#`.
fn parameters(
    of: &[&Parameter],
    indent: &str,
    start: impl Fn(&Parameter) -> Option<String>,
    explained: bool,
    line: &mut dyn FnMut(String),
) {
    let of: Vec<(&Parameter, Option<String>)> = of
        .iter()
        .filter(|parameter| parameter.kind != ValueKind::File)
        .map(|parameter| (*parameter, start(parameter)))
        .collect();
    // What stands in one line for all models need not stand there for each.
    if of.is_empty() || !explained && of.iter().all(|(_, start)| start.is_none()) {
        return;
    }
    let mark = if of.iter().any(|(_, start)| start.is_some()) { "" } else { "# " };
    line(format!("{indent}{mark}parameters:"));
    for (parameter, start) in of {
        let (mark, value) = match start {
            Some(value) => ("", value),
            None if explained => ("# ", parameter.default.map_or_else(|| "null".into(), written)),
            None => continue,
        };
        let meaning = if explained { format!("  # {}", parameter.meaning) } else { String::new() };
        line(format!("{indent}  {mark}{}: {value}{meaning}", parameter.name));
    }
}

fn written(value: Value) -> String {
    match value {
        Value::Number(number) => format!("{number}"),
        Value::Flag(flag) => format!("{flag}"),
        Value::Word(word) => word.into(),
        Value::Null => "null".into(),
    }
}
