//! Several documents in one file: merges whose results are the models of others, in the order in which they can be merged.
//!
//! A document's result has its `name`, and whoever names a model so means that. Every document is planned before any is merged:
//! one that cannot be read on the way stands as an outline, a checkpoint without data, until it is merged.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Source, locate};
use crate::config::{Config, Located, ModelRef, Position, TokenRow, TokenizerSource};
use crate::error::{Error, Kind, Result};
use crate::hub::Remote;
use crate::plan::{self, Choices, Fused, Place, Stage};
use crate::report::Intermediate;
use crate::text::bytes;
use crate::{Prepared, prepare_among, report};

/// The documents of a file, each behind those whose results it reads.
#[derive(Debug)]
pub struct Stages {
    configs: Vec<Config>,
    /// Of each document those whose results it reads.
    reads: Vec<Vec<usize>>,
    /// Which of them nobody reads and goes to the output: the one without a name, or else the only one that no other reads.
    result: Option<usize>,
    /// Those with a name that no other reads.
    unread: Vec<usize>,
    /// The names of those that an adapter is added to.
    adapted: HashSet<String>,
    /// All of the file.
    text: String,
}

/// What became of a document whose result others read.
#[derive(Debug, Clone)]
pub enum Way {
    /// A checkpoint in this folder.
    Folder(PathBuf),
    /// One that will be in a folder, as [`outline`] makes it, or that lies in memory.
    Planned(Arc<Source>),
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

/// The results of documents by name, as far as they are known and still needed.
pub type Outcomes = HashMap<String, Outcome>;

/// Checkpoints that are there already, as if they were results of documents: whoever names them as models means them.
pub(crate) fn given(sources: Vec<Source>) -> Outcomes {
    let known = Arc::new(Intermediate::new(Vec::new(), None));
    let outcome = |source: Source| {
        let name = source.name.clone();
        (name, Outcome { way: Way::Planned(Arc::new(source)), known: Arc::clone(&known) })
    };
    sources.into_iter().map(outcome).collect()
}

/// Who goes through the documents, and hears of each as soon as it is planned.
pub trait Visit {
    /// The one whose result goes to the output.
    ///
    /// # Errors
    /// What speaks against it.
    fn output(&mut self, _prepared: &Prepared) -> Result<()> {
        Ok(())
    }

    /// One that is merged while it is read.
    ///
    /// # Errors
    /// What speaks against it.
    fn fused(&mut self, _name: &str, _prepared: &Prepared) -> Result<()> {
        Ok(())
    }

    /// One that is not, and why: what stands for it from now on, [`Way::Folder`] or [`Way::Planned`].
    ///
    /// # Errors
    /// What speaks against it, or those of its merge.
    fn folder(&mut self, name: &str, prepared: &Prepared, why: &str) -> Result<Way>;
}

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
    /// Which of the sources gives its files, and its config.json as it would be written.
    donor: usize,
    config_text: String,
}

impl Stages {
    /// Puts documents in order; `text` is that of their file.
    ///
    /// # Errors
    /// Names that are given twice, several documents without one, merges that are made of each other; each with its places.
    pub fn of(mut configs: Vec<Config>, text: &str) -> Result<Self> {
        if configs.len() == 1 {
            // Its name is nobody's business.
            let (reads, adapted) = (vec![Vec::new()], HashSet::new());
            return Ok(Self {
                configs,
                reads,
                result: Some(0),
                unread: Vec::new(),
                adapted,
                text: text.into(),
            });
        }
        let names = configs.iter().filter_map(|config| name(config).map(String::from)).collect();
        let names: Arc<Vec<String>> = Arc::new(names);
        for config in &mut configs {
            config.documents = Arc::clone(&names);
            // Which model that is, and so how many are merged, is not known.
            config.is_whole &= !has_misspelled_base(config);
        }
        let mut problems: Vec<Error> = configs.iter().filter_map(wrong_name).collect();
        problems.extend(repeated(&configs));
        problems.extend(nested(&configs));
        if !problems.is_empty() {
            // Nothing is planned then, and these are all that can be known.
            problems.extend(configs.iter().flat_map(plan::problems_of));
            return Err(Error::all(problems));
        }
        let names: HashMap<&str, usize> = configs
            .iter()
            .zip(0..)
            .filter_map(|(config, document)| Some((name(config)?, document)))
            .collect();
        let uses: Vec<Vec<Use>> = configs.iter().map(|config| uses(config, &names)).collect();
        let order = in_order(&configs, &uses)?;
        let mut places = vec![0; configs.len()];
        order.iter().zip(0..).for_each(|(document, place)| places[*document] = place);
        let read = |document: &usize| {
            let mut read: Vec<usize> = uses[*document].iter().map(|read| places[read.document]).collect();
            read.sort_unstable();
            read.dedup();
            read
        };
        let reads: Vec<Vec<usize>> = order.iter().map(read).collect();
        let mut is_read = vec![false; configs.len()];
        reads.iter().flatten().for_each(|read| is_read[*read] = true);
        let adapted = configs.iter().flat_map(plan::references).filter(|model| model.value.lora.is_some());
        let adapted = adapted.map(|model| model.value.path).collect();
        let mut by_number: Vec<Option<Config>> = configs.into_iter().map(Some).collect();
        let configs: Vec<Config> = order.iter().filter_map(|document| by_number[*document].take()).collect();
        let unnamed = configs.iter().position(|config| config.name.is_none());
        let last: Vec<usize> = (0..configs.len()).filter(|document| !is_read[*document]).collect();
        let result = unnamed.or(if let [only] = last[..] { Some(only) } else { None });
        let unread = last.into_iter().filter(|last| Some(*last) != result).collect();
        Ok(Self { configs, reads, result, unread, adapted, text: text.into() })
    }

    /// The documents, each behind those whose results it reads.
    pub fn configs(&self) -> &[Config] {
        &self.configs
    }

    /// The only document.
    ///
    /// # Errors
    /// There are several: they come back.
    pub fn single(self) -> std::result::Result<Config, Box<Self>> {
        match <[Config; 1]>::try_from(self.configs) {
            Ok([config]) => Ok(config),
            Err(configs) => Err(Box::new(Self { configs, ..self })),
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

    /// The documents that are left out where not all results are kept, by name, and whether it is that no other reads them: else
    /// only such read them.
    pub fn left_out(&self) -> impl Iterator<Item = (&str, bool)> {
        let needed = self.needed(false);
        let left_out = (0..self.configs.len()).filter(move |document| !needed[*document]);
        left_out
            .filter_map(|document| Some((name(&self.configs[document])?, self.unread.contains(&document))))
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

    /// Plans all documents in order, each with what became of those before it. `kept` says whether all results stay. What is wrong
    /// with one hides nothing of the others, but for those that read it. Returns the plan of the document that goes to the output.
    ///
    /// # Errors
    /// All that is wrong with the plans, each with its place, and what the visitor says.
    pub fn survey(&self, choices: &Choices, kept: bool, visit: &mut dyn Visit) -> Result<Option<Prepared>> {
        let (mut broken, mut problems) = (vec![false; self.configs.len()], Vec::new());
        let mut walk = Walk::new(self, choices, kept);
        let mut result = None;
        for document in walk.documents() {
            if self.reads[document].iter().any(|read| broken[*read]) {
                broken[document] = true;
                problems.extend(plan::problems_of(&self.configs[document]));
                continue;
            }
            match walk.step(document, visit) {
                Ok(prepared) => result = prepared.or(result),
                Err(problem) => {
                    broken[document] = true;
                    problems.push(placed(&self.configs[document], problem));
                }
            }
        }
        if problems.is_empty() { Ok(result) } else { Err(Error::all(problems)) }
    }

    /// The same where the visitor merges what goes into folders: the first failure is the end.
    ///
    /// # Errors
    /// Whatever is wrong with a plan, and those of the visitor.
    pub fn carry_out(
        &self,
        choices: &Choices,
        kept: bool,
        visit: &mut dyn Visit,
    ) -> Result<Option<Prepared>> {
        let mut walk = Walk::new(self, choices, kept);
        let mut result = None;
        for document in walk.documents() {
            result = walk.step(document, visit)?.or(result);
        }
        Ok(result)
    }

    /// Which documents are carried out: all where all results stay, else those that the output needs.
    fn needed(&self, kept: bool) -> Vec<bool> {
        let mut needed = vec![kept; self.configs.len()];
        for document in (0..self.configs.len()).rev() {
            needed[document] |= self.result == Some(document);
            if needed[document] {
                self.reads[document].iter().for_each(|read| needed[*read] = true);
            }
        }
        needed
    }
}

/// A way through the documents.
struct Walk<'a> {
    stages: &'a Stages,
    choices: &'a Choices,
    kept: bool,
    needed: Vec<bool>,
    /// How many of the documents that are carried out read the result of each.
    readers: Vec<u64>,
    /// How many of these are still to come.
    readers_left: Vec<u64>,
    made: Outcomes,
}

impl<'a> Walk<'a> {
    fn new(stages: &'a Stages, choices: &'a Choices, kept: bool) -> Self {
        let needed = stages.needed(kept);
        let mut readers = vec![0; needed.len()];
        let carried_out = stages.reads.iter().zip(&needed).filter(|(_, needed)| **needed);
        carried_out.flat_map(|(reads, _)| reads).for_each(|read| readers[*read] += 1);
        Self { stages, choices, kept, needed, readers_left: readers.clone(), readers, made: Outcomes::new() }
    }

    fn documents(&self) -> Vec<usize> {
        (0..self.needed.len()).filter(|document| self.needed[*document]).collect()
    }

    /// Plans a document, and returns the plan if its result goes to the output.
    fn step(&mut self, document: usize, visit: &mut dyn Visit) -> Result<Option<Prepared>> {
        let config = &self.stages.configs[document];
        let mut prepared = prepare_among(config.clone(), &self.made, self.choices)?;
        if self.stages.result == Some(document) {
            // What is kept beside the result is the whole recipe.
            self.stages.text.clone_into(&mut prepared.config.source);
            visit.output(&prepared)?;
            return Ok(Some(prepared));
        }
        let name = name(config).expect("of all documents one at the most has no name");
        let why = if self.kept { Some("it is kept".into()) } else { self.why_not_fused(document, &prepared) };
        let models = report::models_in_the_end(&prepared);
        let way = if let Some(why) = why {
            visit.folder(name, &prepared, &why)?
        } else {
            visit.fused(name, &prepared)?;
            Way::Fused(Arc::new(FusedStage::new(prepared, &self.made)))
        };
        let folder = if let Way::Folder(folder) = &way { Some(&**folder) } else { None };
        let known = Arc::new(Intermediate::new(models, folder));
        let is_fused = matches!(way, Way::Fused(_));
        self.made.insert(name.into(), Outcome { way, known });
        if !is_fused {
            self.let_go_of_what_it_reads(document);
        }
        Ok(None)
    }

    /// What nobody reads any more need not be known any more: there may be a thousand. What is merged while it is read needs what
    /// it reads until then.
    fn let_go_of_what_it_reads(&mut self, document: usize) {
        let mut done = vec![document];
        while let Some(document) = done.pop() {
            for read in &self.stages.reads[document] {
                self.readers_left[*read] -= 1;
                if self.readers_left[*read] > 0 {
                    continue;
                }
                let made = name(&self.stages.configs[*read]).and_then(|name| self.made.remove(name));
                if matches!(made, Some(Outcome { way: Way::Fused(_), .. })) {
                    done.push(*read);
                }
            }
        }
    }

    /// Why a document is not merged while its result is read.
    fn why_not_fused(&self, document: usize, prepared: &Prepared) -> Option<String> {
        let Prepared { config, plan, sources, .. } = prepared;
        if config.tokenizer.is_some() || config.chat_template.is_some() {
            return Some("its tokenizer is its own".into());
        }
        if !(prepared.donor().is_folder() && prepared.donor().has_config()) {
            return Some("its models are no folders with a config.json".into());
        }
        if name(config).is_some_and(|name| self.stages.adapted.contains(name)) {
            return Some("an adapter is added to it".into());
        }
        let depth = depth(prepared, &self.made);
        if depth > DEPTH_MAX {
            return Some(format!("{depth} merges would be carried out each within the next to read it"));
        }
        // With a folder all is read once, and the result is written once and read by each.
        let (readers, (read, _), result) =
            (self.readers[document], plan.read_bytes(sources), plan.layout.total_bytes);
        let from_folder = read.saturating_add(result.saturating_mul(1 + readers));
        if read.saturating_mul(readers) > from_folder {
            let (read, result) = (bytes(read), bytes(result));
            return Some(format!(
                "{readers} documents read it, each of which would read {read} in place of {result}"
            ));
        }
        plan::why_not_fused(plan)
    }
}

impl Way {
    /// What stands for it among the sources of a plan that reads it.
    pub(crate) fn open(&self, name: &str) -> Result<Source> {
        match self {
            Self::Folder(folder) => Source::open(name, folder),
            Self::Planned(source) => Ok(source.called(name)),
            Self::Fused(stage) => stage.open(name),
        }
    }
}

/// A document's problems, each with a place: its own where they have none.
fn placed(config: &Config, problem: Error) -> Error {
    let start = format!("{}:", config.file);
    let (at, named) = match &config.name {
        Some(name) => (name.at, format!("in `{}`: ", name.value)),
        None => (config.at, String::new()),
    };
    let placed = |problem: Error| {
        if problem.message.starts_with(&start) || ![Kind::Config, Kind::Input].contains(&problem.kind) {
            return problem;
        }
        let Error { message, file, .. } = config.error_at(at, format!("{named}{}", problem.message));
        Error { message, file: file.or(problem.file), ..problem }
    };
    Error::all(problem.one_by_one().into_iter().map(placed).collect())
}

impl FusedStage {
    fn new(prepared: Prepared, made: &Outcomes) -> Self {
        let depth = depth(&prepared, made);
        let config = report::model_config(&prepared).expect("what is fused has a config.json");
        let config_text = String::from_utf8(config).expect("JSON is text");
        let donor = prepared.plan.models[prepared.plan.donor].source;
        let Prepared { sources, plan, opened, .. } = prepared;
        Self { stage: Stage::new(plan), sources, opened, depth, donor, config_text }
    }

    /// What stands in for it among the sources of a plan that reads it: what gives its files, with its own config.json.
    fn open(&self, name: &str) -> Result<Source> {
        self.sources[self.donor].called(name).with_config(self.config_text.clone())
    }

    /// It among the models of a plan that was made with these sources.
    pub(crate) fn among<'a>(&'a self, name: &'a str, numbers: &'a [Option<usize>]) -> Fused<'a> {
        Fused { name, stage: &self.stage, sources: &self.sources, numbers }
    }
}

/// How many merges are carried out within each other where this one is read.
fn depth(prepared: &Prepared, made: &Outcomes) -> usize {
    let of = |place: &Place| match &place.among(made)?.1.way {
        Way::Fused(stage) => Some(stage.depth),
        Way::Folder(_) | Way::Planned(_) => None,
    };
    1 + prepared.opened.iter().filter_map(of).max().unwrap_or(0)
}

/// What stands for the result of a document until it is merged into this folder; `copied` says whether the donor's files will be
/// there too.
///
/// # Errors
/// Those of [`Source::planned`].
pub fn outline(prepared: &Prepared, name: &str, folder: &Path, copied: bool) -> Result<Way> {
    let files = report::model_files(prepared, copied);
    Source::planned(name, folder, &prepared.plan.layout, files).map(|source| Way::Planned(Arc::new(source)))
}

impl Place {
    /// The result of a document that it is, by name.
    pub(crate) fn among<'m>(&self, made: &'m Outcomes) -> Option<(&'m String, &'m Outcome)> {
        match self {
            Self::Model(ModelRef { path, revision: None, .. }) => made.get_key_value(path),
            _ => None,
        }
    }
}

fn name(config: &Config) -> Option<&str> {
    config.name.as_ref().map(|name| name.value.as_str())
}

/// The longest part of a name: what is merged has a longer one until it is whole.
const NAME_BYTES_MAX: usize = 200;

/// Whether the base is nowhere, and its name probably a slip of a document's.
fn has_misspelled_base(config: &Config) -> bool {
    config.base_model.as_ref().is_some_and(|Located { value: base, .. }| {
        !config.documents.contains(&base.path)
            && config.meant_document(&base.path).is_some()
            && locate(&base.path, base.revision.as_deref(), Remote::Offline).is_err()
    })
}

/// A name that no folder can have.
fn wrong_name(config: &Config) -> Option<Error> {
    let Located { value: name, at } = config.name.as_ref()?;
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    // Components leave out what changes nothing, and a name is compared as it is written.
    let is_short = name.split('/').all(|part| !part.is_empty() && part != ".");
    let is_short = is_short && name.split('/').all(|part| part.len() <= NAME_BYTES_MAX);
    let is_usable = !name.trim().is_empty()
        && !name.contains(['@', '+', '\\'])
        && !name.contains(char::is_control)
        && is_short
        && Path::new(name).components().all(is_plain);
    (!is_usable).then(|| {
        config
            .error_at(*at, format_args!("{name:?} cannot be the name of a merge"))
            .hint(format!("letters, digits, `-`, `_` and `.` do, up to {NAME_BYTES_MAX} bytes"))
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
        // A merge is called so until it is whole.
        if let Some((outer, there)) =
            name.strip_suffix(".partial").and_then(|outer| Some((outer, known.get(outer)?)))
        {
            let message =
                format!("`{name}` is what `{outer}`, the merge at {there}, is called while it is made");
            return Some(config.error_at(*at, message).hint("give one of them another name"));
        }
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
fn uses(config: &Config, documents: &HashMap<&str, usize>) -> Vec<Use> {
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
        let document = documents.get(&*model.path).filter(|_| model.revision.is_none());
        document.map(|document| Use { document: *document, at })
    };
    named.into_iter().filter_map(of).collect()
}

/// Where the search for the order is with a document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Visited {
    No,
    /// It waits for one that it reads.
    Waits,
    Yes,
}

/// The documents, each behind those that it reads, else as they are written. A loop, since chains can be as long as a file.
fn in_order(configs: &[Config], reads: &[Vec<Use>]) -> Result<Vec<usize>> {
    let mut visited = vec![Visited::No; configs.len()];
    let mut order = Vec::with_capacity(configs.len());
    for first in 0..configs.len() {
        // Those that wait, and which of those that they read comes next.
        let mut path = Vec::new();
        if visited[first] == Visited::No {
            visited[first] = Visited::Waits;
            path.push((first, 0));
        }
        while let Some((document, next)) = path.last_mut() {
            let Some(Use { document: read, at }) = reads[*document].get(*next) else {
                visited[*document] = Visited::Yes;
                order.push(*document);
                path.pop();
                continue;
            };
            *next += 1;
            match visited[*read] {
                Visited::Yes => {}
                Visited::No => {
                    visited[*read] = Visited::Waits;
                    path.push((*read, 0));
                }
                Visited::Waits => {
                    let at = configs[*document].error_at(*at, made_of_each_other(configs, &path, *read));
                    return Err(at.hint("one of them has to begin with models alone"));
                }
            }
        }
    }
    Ok(order)
}

/// So many merges of a circle are named.
const CIRCLE_MAX: usize = 12;

/// That the last of those that wait reads one of them.
fn made_of_each_other(configs: &[Config], path: &[(usize, usize)], read: usize) -> String {
    let circle = path.iter().map(|(document, _)| *document).skip_while(|document| *document != read);
    let names: Vec<&str> =
        circle.chain([read]).map(|document| name(&configs[document]).unwrap_or("")).collect();
    match &names[..] {
        [name, _] => format!("`{name}` is made of itself"),
        names if names.len() > CIRCLE_MAX => {
            let (first, more) = (names[..CIRCLE_MAX].join("` reads `"), names.len() - CIRCLE_MAX);
            format!("merges are made of each other: `{first}` and so on, over {more} more")
        }
        names => format!("merges are made of each other: `{}`", names.join("` reads `")),
    }
}
