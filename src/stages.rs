//! Several documents in one file: merges whose results are the models of others, in the order in which they can be merged.
//!
//! A document's result has its `name`, and whoever names a model so means that. Every document is planned before any is merged:
//! one that cannot be read on the way stands as an outline, a checkpoint without data, until it is merged.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{self, Source};
use crate::config::{Config, Located, ModelRef, Position, TokenRow, TokenizerSource};
use crate::error::{Error, Result};
use crate::plan::{self, Choices, Fused, Place, Stage};
use crate::report::Intermediate;
use crate::{Prepared, prepare_among, report};

/// The documents of a file, each behind those whose results it reads.
#[derive(Debug)]
pub struct Stages {
    configs: Vec<Config>,
    /// Which of them nobody reads and goes to the output: the one without a name, or else the only one that no other reads.
    result: Option<usize>,
    /// Those with a name that no other reads.
    unread: Vec<usize>,
    /// All of the file.
    text: String,
}

/// What became of a document whose result others read.
#[derive(Debug, Clone)]
pub enum Way {
    /// A checkpoint in this folder.
    Folder(PathBuf),
    /// Nothing that is written: it is merged while it is read.
    Fused(Arc<FusedStage>),
}

/// The result of a document that others read.
#[derive(Debug)]
pub struct Outcome {
    /// What became of it.
    pub way: Way,
    /// What reports say of it.
    pub(crate) known: Arc<Intermediate>,
}

/// The results of documents by name, as far as they are known.
pub type Made = HashMap<String, Outcome>;

/// So many merges are carried out within each other while one is read. Each takes room on the stack and in memory, and work
/// that a folder saves from the second read on.
const DEPTH_MAX: usize = 8;

/// A stage that is merged while it is read.
#[derive(Debug)]
pub struct FusedStage {
    stage: Stage,
    /// What its plan was made with, and what each of these is.
    sources: Vec<Source>,
    pub(crate) opened: Vec<Place>,
    /// So many merges are carried out where it is read: itself and those on its way, of which the longest chain counts.
    depth: usize,
    /// The folder that gives its files, and its config.json as it would be written.
    donor: PathBuf,
    config_text: String,
}

impl Stages {
    /// Puts documents in order; `text` is that of their file.
    ///
    /// # Errors
    /// Names that are given twice, several documents without one, merges that are made of each other; each with its places.
    pub fn of(configs: Vec<Config>, text: &str) -> Result<Self> {
        if configs.len() == 1 {
            // Its name is nobody's business.
            return Ok(Self { configs, result: Some(0), unread: Vec::new(), text: text.into() });
        }
        let mut problems: Vec<Error> = configs.iter().filter_map(wrong_name).collect();
        problems.extend(repeated(&configs));
        problems.extend(nested(&configs));
        if !problems.is_empty() {
            return Err(Error::all(problems));
        }
        let reads: Vec<Vec<Use>> = configs.iter().map(|config| uses(config, &configs)).collect();
        let order = in_order(&configs, &reads)?;
        let is_read = |document: usize| reads.iter().flatten().any(|read| read.document == document);
        let unnamed = configs.iter().position(|config| config.name.is_none());
        let last: Vec<usize> = (0..configs.len()).filter(|document| !is_read(*document)).collect();
        let result = unnamed.or(if let [only] = last[..] { Some(only) } else { None });
        let place = |document: usize| order.iter().position(|other| *other == document);
        let unread = last.into_iter().filter(|last| Some(*last) != result).filter_map(place).collect();
        let result = result.and_then(place);
        let mut by_number: Vec<Option<Config>> = configs.into_iter().map(Some).collect();
        let configs = order.iter().filter_map(|document| by_number[*document].take()).collect();
        Ok(Self { configs, result, unread, text: text.into() })
    }

    /// The documents, each behind those whose results it reads.
    pub fn configs(&self) -> &[Config] {
        &self.configs
    }

    /// The only document.
    ///
    /// # Errors
    /// There are several: they come back.
    pub fn single(self) -> std::result::Result<Config, Self> {
        match <[Config; 1]>::try_from(self.configs) {
            Ok([config]) => Ok(config),
            Err(configs) => Err(Self { configs, ..self }),
        }
    }

    /// Whether there is a document whose result goes to the output.
    pub fn has_result(&self) -> bool {
        self.result.is_some()
    }

    /// Whether all documents have names.
    pub fn all_named(&self) -> bool {
        self.configs.iter().all(|config| config.name.is_some())
    }

    /// Has all results stay beside each other, and none go to the output.
    pub fn keep_all(&mut self) {
        self.result = None;
    }

    /// The documents that no other reads and that do not go to the output, by name.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.iter().filter_map(|document| name(&self.configs[*document]))
    }

    /// Refuses documents of which none is the one that goes to the output.
    ///
    /// # Errors
    /// There are several that could be.
    pub fn check_result(&self) -> Result<()> {
        if self.result.is_some() {
            return Ok(());
        }
        let places = self.unread.iter().map(|document| {
            let config = &self.configs[*document];
            config.name.as_ref().map(|name| format!("`{}` at {}", name.value, name.at)).unwrap_or_default()
        });
        let first = &self.configs[self.unread[0]];
        let message =
            format!("several merges are read by no other: {}", places.collect::<Vec<_>>().join(", "));
        Err(first.error_at(first.at, message).hint(
            "leave out the `name:` of the one that goes to the output; or make all of them with \
             `mergeforge multi CONFIG --intermediate-dir DIR`",
        ))
    }

    /// Goes through the documents in order: each is planned with what became of those before it. `kept` says whether all results
    /// stay; `folder` gives the folder of one that is not merged while it is read, after whatever it takes to have it there, and
    /// hears why; `fused` hears of the others, and `planned` of each document as soon as it is planned. Returns the plan of the document that goes to the output.
    ///
    /// # Errors
    /// Whatever is wrong with a plan, and those of `folder`.
    pub fn go(
        &self,
        choices: &Choices,
        kept: bool,
        mut folder: impl FnMut(&str, Prepared, Option<String>) -> Result<PathBuf>,
        mut fused: impl FnMut(&str, &Prepared),
        mut planned: impl FnMut(&Prepared),
    ) -> Result<Option<Prepared>> {
        let mut made = Made::new();
        let mut result = None;
        for (document, config) in self.configs.iter().enumerate() {
            if !kept && self.unread.contains(&document) {
                continue;
            }
            let mut prepared = prepare_among(config.clone(), &made, choices)?;
            planned(&prepared);
            if self.result == Some(document) {
                // What is kept beside the result is the whole recipe.
                self.text.clone_into(&mut prepared.config.source);
                result = Some(prepared);
                continue;
            }
            let name = name(config).expect("of all documents one at the most has no name");
            let why =
                if kept { Some("it is kept".into()) } else { self.why_not_fused(name, &prepared, &made) };
            let models = report::models_in_the_end(&prepared);
            let way = if why.is_none() {
                fused(name, &prepared);
                Way::Fused(Arc::new(FusedStage::new(prepared, &made)))
            } else {
                Way::Folder(folder(name, prepared, why)?)
            };
            let folder = if let Way::Folder(folder) = &way { Some(&**folder) } else { None };
            let known = Arc::new(Intermediate::new(models, folder));
            made.insert(name.into(), Outcome { way, known });
        }
        Ok(result)
    }

    /// Why a document is not merged while its result is read.
    fn why_not_fused(&self, name: &str, prepared: &Prepared, made: &Made) -> Option<String> {
        let config = &prepared.config;
        if config.tokenizer.is_some() || config.chat_template.is_some() {
            return Some("its tokenizer is its own".into());
        }
        if !(prepared.donor().is_folder() && prepared.donor().has_config()) {
            return Some("its models are no folders with a config.json".into());
        }
        let adapted = |config: &Config| {
            plan::references(config)
                .iter()
                .any(|model| model.value.path == name && model.value.lora.is_some())
        };
        if self.configs.iter().any(adapted) {
            return Some("an adapter is added to it".into());
        }
        let depth = depth(prepared, made);
        if depth > DEPTH_MAX {
            return Some(format!("{depth} merges would be carried out each within the next to read it"));
        }
        plan::why_not_fused(&prepared.plan, &prepared.sources)
    }
}

impl FusedStage {
    fn new(prepared: Prepared, made: &Made) -> Self {
        let depth = depth(&prepared, made);
        let config = report::model_config(&prepared).expect("what is fused has a config.json");
        let config_text = String::from_utf8(config).expect("JSON is text");
        let donor = prepared.donor().folder.path.clone();
        let Prepared { sources, plan, opened, .. } = prepared;
        Self { stage: Stage::new(plan), sources, opened, depth, donor, config_text }
    }

    /// What stands in for it among the sources of a plan that reads it: the folder that gives its files, with its own config.json.
    pub(crate) fn open(&self, name: &str) -> Result<Source> {
        Source::open(name, &self.donor)?.with_config(self.config_text.clone())
    }

    /// It among the models of a plan that was made with these sources.
    pub(crate) fn among<'a>(&'a self, name: &'a str, numbers: &'a [Option<usize>]) -> Fused<'a> {
        Fused { name, stage: &self.stage, sources: &self.sources, numbers }
    }
}

/// How many merges are carried out within each other where this one is read.
fn depth(prepared: &Prepared, made: &Made) -> usize {
    let of = |place: &Place| match &place.among(made)?.1.way {
        Way::Fused(stage) => Some(stage.depth),
        Way::Folder(_) => None,
    };
    1 + prepared.opened.iter().filter_map(of).max().unwrap_or(0)
}

/// Writes a checkpoint without data, for plans that read it.
///
/// # Errors
/// Those of [`checkpoint::outline`].
pub fn outline(prepared: &Prepared, folder: &Path) -> Result<()> {
    let files = report::model_files(prepared, true);
    checkpoint::outline(folder, &prepared.plan.layout, &files)
}

impl Place {
    /// The result of a document that it is, by name.
    pub(crate) fn among<'m>(&self, made: &'m Made) -> Option<(&'m String, &'m Outcome)> {
        match self {
            Self::Model(ModelRef { path, revision: None, .. }) => made.get_key_value(path),
            _ => None,
        }
    }
}

fn name(config: &Config) -> Option<&str> {
    config.name.as_ref().map(|name| name.value.as_str())
}

/// A name that no folder can have.
fn wrong_name(config: &Config) -> Option<Error> {
    let Located { value: name, at } = config.name.as_ref()?;
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    // Components leave out what changes nothing, and a name is compared as it is written.
    let is_short = name.split('/').all(|part| !part.is_empty() && part != ".");
    let is_usable = !name.trim().is_empty()
        && !name.contains(['@', '+', '\\'])
        && !name.contains(char::is_control)
        && is_short
        && Path::new(name).components().all(is_plain);
    (!is_usable).then(|| {
        config
            .error_at(*at, format_args!("{name:?} cannot be the name of a merge"))
            .hint("letters, digits, `-`, `_` and `.` do")
    })
}

/// Documents of one name, and several without one.
fn repeated(configs: &[Config]) -> Vec<Error> {
    let mut problems = Vec::new();
    let mut first: HashMap<Option<&str>, Position> = HashMap::new();
    for config in configs {
        let at = config.name.as_ref().map_or(config.at, |name| name.at);
        let known = *first.entry(name(config)).or_insert(at);
        if known == at {
            continue;
        }
        problems.push(match name(config) {
            Some(name) => config
                .error_at(at, format_args!("two merges are named `{name}`, at {known} and at {at}"))
                .hint("give one of them another name"),
            None => config
                .error_at(at, format_args!("two merges have no name, those at {known} and at {at}"))
                .hint("give each but the last a `name:`, by which others use it as a model"),
        });
    }
    problems
}

/// Names of which one is a folder in another: the results could not stand beside each other.
fn nested(configs: &[Config]) -> Vec<Error> {
    let known: HashMap<&str, Position> = configs
        .iter()
        .filter_map(|config| config.name.as_ref())
        .map(|name| (&*name.value, name.at))
        .collect();
    let inside = |config: &Config| {
        let Located { value: name, at } = config.name.as_ref()?;
        let mut outer = name.match_indices('/').map(|(end, _)| &name[..end]);
        let (outer, there) = outer.find_map(|outer| Some((outer, known.get(outer)?)))?;
        let message = format!("`{name}` would be a folder in `{outer}`, the merge at {there}");
        Some(config.error_at(*at, message).hint("give one of them another name"))
    };
    configs.iter().filter_map(inside).collect()
}

/// That a document reads the result of another.
struct Use {
    document: usize,
    at: Position,
}

/// The documents whose results a config names as models, and where.
fn uses(config: &Config, all: &[Config]) -> Vec<Use> {
    let mut named: Vec<(ModelRef, Position)> =
        plan::references(config).into_iter().map(|model| (model.value, model.at)).collect();
    if let Some(tokenizer) = &config.tokenizer {
        if let TokenizerSource::Model(model) = &tokenizer.source {
            named.push((model.clone(), tokenizer.at));
        }
        for Located { value: setting, at } in tokenizer.tokens.values() {
            if let Some(TokenRow::Model(model) | TokenRow::ModelToken { model, .. }) = &setting.source {
                named.push((model.clone(), *at));
            }
        }
    }
    let of = |(model, at): (ModelRef, Position)| {
        let is_it = |other: &Config| name(other) == Some(&model.path) && model.revision.is_none();
        all.iter().position(is_it).map(|document| Use { document, at })
    };
    named.into_iter().filter_map(of).collect()
}

/// The documents, each behind those that it reads, else as they are written.
fn in_order(configs: &[Config], reads: &[Vec<Use>]) -> Result<Vec<usize>> {
    let (mut order, mut path) = (Vec::new(), Vec::new());
    for document in 0..configs.len() {
        visit(document, configs, reads, &mut path, &mut order)?;
    }
    Ok(order)
}

/// Puts a document behind those that it reads; `path` are those that are being visited.
fn visit(
    document: usize,
    configs: &[Config],
    reads: &[Vec<Use>],
    path: &mut Vec<usize>,
    order: &mut Vec<usize>,
) -> Result<()> {
    if order.contains(&document) {
        return Ok(());
    }
    path.push(document);
    for Use { document: read, at } in &reads[document] {
        if let Some(begins) = path.iter().position(|other| other == read) {
            let circle = path[begins..].iter().chain([read]);
            let names: Vec<&str> = circle.map(|document| name(&configs[*document]).unwrap_or("")).collect();
            let message = match &names[..] {
                [name, _] => format!("`{name}` is made of itself"),
                names => format!("merges are made of each other: `{}`", names.join("` reads `")),
            };
            return Err(configs[document]
                .error_at(*at, message)
                .hint("one of them has to begin with models alone"));
        }
        visit(*read, configs, reads, path, order)?;
    }
    path.pop();
    order.push(document);
    Ok(())
}
