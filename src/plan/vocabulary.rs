//! One vocabulary for all models: `tokenizer_source` and `tokenizer`, and the chat template.
//!
//! Where the config asks for a tokenizer, the tensors that have a row for each token are made of rows of the models', in the
//! order of the output's vocabulary, while they are read. Without it they stay as they are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexSet;
use serde_json::{Map, Value as Json};

use super::chat_template;
use super::data::{RowCounts, TokenizerPlan, Vocabulary};
use super::views::{InputList, Model, Origin, View, Views};
use super::{Place, names, places, references, wanted};
use crate::checkpoint::{OTHER_VOCABULARIES, Revision};
use crate::config::{Config, Located, ModelRef, Position, Token, TokenRow, TokenizerSource};
use crate::dtype::{computed_as, promote};
use crate::error::{Error, Result};
use crate::input::{Floats, Row, Rows};
use crate::limits::TOKENIZER_BYTES_MAX;
use crate::text::quoted;
use crate::tokenizer::{self, Aligned, Chosen, Counts, Merged, Party, RowFrom, Tokenizer};

const GENERATION_CONFIG: &str = "generation_config.json";

/// Why files with a vocabulary in another form are left out.
const STALE: &str = "has the vocabulary before it was merged: tokenizer.json holds all of it";

/// The largest `pad_to_multiple_of`: no device is faster with more.
const MULTIPLE_MAX: u64 = 1 << 16;

/// The models whose rows have a note each.
const MODELS_NAMED_MAX: usize = 8;

/// Aligns the models with the vocabulary that the config asks for, and settles the chat template. What is wrong with tokenizers is a
/// problem.
pub(super) fn align(views: &mut Views<'_>) -> TokenizerPlan {
    let (mut planned, merged) = match &views.config.tokenizer {
        None => {
            note_other_tokenizers(views);
            (TokenizerPlan::default(), None)
        }
        Some(wish) => match Wish::of(views, wish).and_then(|wish| wish.plan(views)) {
            Ok((planned, merged)) => (planned, Some(merged)),
            Err(problem) => {
                views.problems.add(problem);
                return TokenizerPlan::default();
            }
        },
    };
    if let Some(written) = &views.config.chat_template {
        let from = planned.source.unwrap_or(views.models[views.donor()].source);
        match chat_template::set(views, written, from, merged.as_ref(), &mut planned.revision) {
            Ok(chosen) => planned.chat_template = chosen,
            Err(problem) => views.problems.add(problem),
        }
    }
    planned
}

/// Which of the models a reference is, or is but for an adapter.
fn model_but_for_adapter(config: &Config, model: &ModelRef) -> Option<usize> {
    let known = references(config);
    let is = |of: &dyn Fn(&ModelRef) -> bool| known.iter().position(|known| of(&known.value));
    is(&|known| known == model).or_else(|| is(&|known| known.base() == model.base()))
}

/// Says which model has another tokenizer than the output. Where the donor has none, the output has none either, and beside a
/// single file nothing is copied.
fn note_other_tokenizers(views: &mut Views<'_>) {
    let donor = &views.models[views.donor()];
    let of = |model: &Model<'_>| {
        let source = &views.sources[model.source];
        (source.is_folder() && source.folder.has(tokenizer::FILE))
            .then(|| source.folder.file(tokenizer::FILE))
    };
    let Some(own) = of(donor) else { return };
    // One that cannot be read is another one.
    let differs = |other| own != other && !own.same_content(&other, TOKENIZER_BYTES_MAX).unwrap_or(false);
    if let Some(other) = views.models.iter().find(|model| of(model).is_some_and(differs)) {
        let note = format!("the output has the tokenizer of {}; that of {} differs", donor.name, other.name);
        views.notes.push(note);
    }
}

/// What a config asks for, with what it refers to.
struct Wish<'a> {
    config: &'a Config,
    written: &'a crate::config::Tokenizer,
    /// The models, and the one whose tokenizer leads where it is none of them.
    parties: Vec<Reads>,
    leader: usize,
    models: usize,
    base: Option<usize>,
    donor: usize,
    notes: Vec<String>,
}

/// A model's tokenizer, and the rows that it has for tokens.
struct Reads {
    name: String,
    source: usize,
    tokenizer: Arc<Tokenizer>,
    rows: Option<u64>,
}

impl Reads {
    fn party(&self) -> Party<'_> {
        // A model without an embedding has no row too few.
        Party { tokenizer: &self.tokenizer, rows: self.rows.unwrap_or(u64::MAX) }
    }
}

impl<'a> Wish<'a> {
    /// Reads the tokenizers.
    ///
    /// # Errors
    /// What is wrong with the wish.
    fn of(views: &Views<'a>, written: &'a crate::config::Tokenizer) -> Result<Self> {
        let (config, donor) = (views.config, views.donor());
        let opened = places(config);
        let mut named: Vec<(&str, usize, Option<u64>)> =
            views.models.iter().map(|model| (&*model.name, model.source, rows_of(model))).collect();
        let leader = match &written.source {
            TokenizerSource::Union | TokenizerSource::Base => donor,
            TokenizerSource::Model(model) => model_but_for_adapter(config, model).unwrap_or_else(|| {
                let source =
                    opened.get_index_of(&Place::Model(model.base())).expect("what is referred to is opened");
                let other = &views.sources[source];
                named.push((
                    &other.name,
                    source,
                    rows_of(&Model::of(other.name.clone(), source, views.sources)),
                ));
                named.len() - 1
            }),
        };
        let mut notes = Vec::new();
        let parties = read_all(views, &named, leader, donor, &mut notes)?;
        let (models, base) = (views.models.len(), views.base());
        Ok(Self { config, written, parties, leader, models, base, donor, notes })
    }

    fn error(&self, at: Position, message: impl std::fmt::Display) -> Error {
        self.config.error_at(at, message)
    }

    /// Merges the vocabularies, and makes what has a row for each token of rows. Returns the merged vocabulary too.
    fn plan(self, views: &mut Views<'a>) -> Result<(TokenizerPlan, Merged)> {
        let parties: Vec<Party> = self.parties.iter().map(Reads::party).collect();
        let wanted: Vec<&str> = self.written.tokens.keys().map(String::as_str).collect();
        let union = self.written.source == TokenizerSource::Union;
        // The leading tokenizer's own model may be none of the merge, but has no tokens that others lack.
        let merged = tokenizer::merge(&parties, self.leader, union, &wanted)?;
        let multiple = self.multiple()?;
        let aligned = Aligned::new(&merged, &parties, self.base, self.chosen(&merged)?, multiple as usize);
        let counts = self.align_tensors(views, &aligned)?;
        let vocabulary = Vocabulary {
            leader: self.parties[self.leader].name.clone(),
            tokens: merged.tokens(),
            rows: aligned.height(),
            added: merged.added,
            removed: merged.removed,
            tensors: counts,
        };
        let (revision, config_text, lost) = self.files(views, &merged, &aligned)?;
        views.warnings.extend(self.cut_otherwise(&merged.ordinary));
        views.notes.extend(self.notes);
        views.notes.extend(notes(&vocabulary, &self.parties));
        for model in &mut views.models {
            set_size(model, aligned.height());
        }
        if !lost.is_empty() {
            let (keys, leader) = (lost.join(", "), &vocabulary.leader);
            let warning =
                format!("the vocabulary of {leader} has no token for {keys} of the output's configs");
            views.warnings.push(Error::config(warning).hint("set them in the output by hand"));
        }
        let leading = self.parties[self.leader].source;
        let source = (leading != self.parties[self.donor].source).then_some(leading);
        let vocabulary = Some(vocabulary);
        Ok((TokenizerPlan { vocabulary, revision, source, config_text, chat_template: None }, merged))
    }

    /// A warning where a union adds what is no special token of other models: so many tokens of which.
    fn cut_otherwise(&self, ordinary: &[(usize, usize)]) -> Option<Error> {
        let sum = ordinary.iter().map(|(_, count)| count).sum::<usize>();
        let first = &self.parties[ordinary.first()?.0].name;
        let models = match ordinary.len() {
            1 => first.clone(),
            many => format!("{first} and {} more", many - 1),
        };
        let leader = &self.parties[self.leader].name;
        let warning = format!(
            "the union adds {sum} ordinary tokens of {models}, which are found in a text before {leader}'s own: \
             texts are cut as by no model's tokenizer"
        );
        let hint = "a union suits vocabularies that differ in special tokens; `tokenizer_source: base`, or a model, keeps one as it is";
        Some(Error::config(warning).hint(hint))
    }

    fn multiple(&self) -> Result<u64> {
        let Some(Located { value, at }) = &self.written.pad_to_multiple_of else { return Ok(1) };
        if *value > MULTIPLE_MAX {
            let message = format!("pad_to_multiple_of is {value}, and {MULTIPLE_MAX} is the most");
            return Err(self.error(*at, message).hint("64 or 128 are usual"));
        }
        Ok(*value)
    }

    /// What the config says of single tokens, by their ids.
    fn chosen(&self, merged: &Merged) -> Result<HashMap<u32, Chosen>> {
        let mut chosen = HashMap::new();
        for (token, Located { value: setting, at }) in &self.written.tokens {
            let Some(id) = merged.id(token) else {
                return Err(self
                    .error(*at, format!("{} cannot be a token", quoted(token)))
                    .hint("leave it out"));
            };
            let from = setting.source.as_ref().map(|row| self.row(token, row, *at)).transpose()?;
            chosen.insert(id, Chosen { from, force: setting.force });
        }
        Ok(chosen)
    }

    /// The row that the config names.
    fn row(&self, token: &str, row: &TokenRow, at: Position) -> Result<RowFrom> {
        let (model, other) = match row {
            TokenRow::Zero => return Ok(RowFrom::Zero),
            TokenRow::Model(model) => (model, None),
            TokenRow::ModelToken { model, token } => (model, Some(token)),
        };
        let Some(place) = model_but_for_adapter(self.config, model) else {
            let message =
                format!("the row of {} is to come from {model}, which is not merged", quoted(token));
            return Err(self.error(at, message).hint("name one of the models of this config"));
        };
        let party = self.parties[place].party();
        let (row, what) = match other {
            None => (party.row(token), quoted(token)),
            Some(Token::Text(other)) => (party.row(other), quoted(other)),
            Some(Token::Id(id)) => {
                (u32::try_from(*id).ok().filter(|id| u64::from(*id) < party.rows), format!("the id {id}"))
            }
        };
        row.map(|row| RowFrom::Model { model: place, row }).ok_or_else(|| {
            let message =
                format!("the row of {} is to come from {model}, which has no row for {what}", quoted(token));
            self.error(at, message).hint("check the spelling, or use {kind: zero}")
        })
    }

    /// Makes every tensor over the vocabulary of rows, where any model's are not already as they should be.
    fn align_tensors(&self, views: &mut Views<'a>, aligned: &Aligned) -> Result<Vec<RowCounts>> {
        let rows = |model: usize| self.parties[model].rows;
        let stays = |model: usize| rows(model).is_none_or(|rows| aligned.is_identity(model, rows));
        let models = views.models.iter().zip(&self.parties).enumerate();
        let over_vocabulary = models.flat_map(|(place, (model, of))| {
            let is_over = move |name: &str, view: &View<'_>| axis(name, view, of.rows).is_some();
            let names = model.tensors.iter().filter(move |(name, view)| is_over(name, view));
            names.map(move |(name, _)| (name.to_string(), place))
        });
        if (0..self.models).all(stays) {
            let whole = |(tensor, model): (String, usize)| {
                let before = rows(model).unwrap_or_default();
                RowCounts {
                    tensor,
                    model,
                    before,
                    rows: Counts { own: before as usize, ..Counts::default() },
                }
            };
            return Ok(over_vocabulary.map(whole).collect());
        }
        let in_place = views.models.iter().zip(&self.parties).enumerate().filter(|(place, _)| !stays(*place));
        let in_place =
            in_place.filter_map(|(_, (model, of))| left_in_place(model, of.rows)).collect::<Vec<_>>();
        let names: IndexSet<String> = over_vocabulary.map(|(name, _)| name).collect();
        let mut counts = Vec::new();
        let before: Vec<(String, Vec<Over<'a>>)> = names
            .into_iter()
            .map(|name| self.holders(views, &name).map(|over| (name, over)))
            .collect::<Result<_>>()?;
        views.warnings.extend(in_place);
        for (name, holders) in before {
            let among: Vec<usize> = holders.iter().map(|over| over.model).collect();
            for over in &holders {
                let count = aligned.counts(over.model, &among);
                let own = views.models[over.model].tensors.contains_key(&*name);
                if own {
                    let before = over.view.shape[over.axis] as u64;
                    counts.push(RowCounts { tensor: name.clone(), model: over.model, before, rows: count });
                }
                // Of a tied head nothing has to be made that its embedding is not already.
                let is_needed = own || count.others + count.averaged > 0;
                let is_changed = !stays(over.model) || count.fillers > 0;
                if is_changed && is_needed {
                    self.check_sources(aligned, over.model, &among, &name)?;
                    let view = made(&mut views.inputs, aligned, over, &holders);
                    views.models[over.model].tensors.insert(name.clone().into(), view);
                }
            }
        }
        Ok(counts)
    }

    /// The models that have a tensor over the vocabulary; a tied embedding stands in for a head.
    fn holders(&self, views: &Views<'a>, name: &str) -> Result<Vec<Over<'a>>> {
        let mut holders: Vec<Over<'a>> = Vec::new();
        for (place, model) in views.models.iter().enumerate() {
            let embedding = || wanted::tied_embedding(model).filter(|_| names::is_head(name));
            let Some(view) =
                model.tensors.get_index_of(name).or_else(embedding).map(|place| &model.tensors[place])
            else {
                continue;
            };
            let rows = self.parties[place].rows;
            let refuse = |what: String| {
                let problem = format!("tensor {name}: {what} in {}", model.name);
                Error::config(problem)
                    .hint("its rows cannot be matched with tokens: leave `tokenizer_source` out")
            };
            let Some(axis) = axis(name, view, rows) else {
                let rows = rows.unwrap_or(0);
                return Err(refuse(format!("it is {:?}, where the embedding has {rows} rows,", view.shape)));
            };
            if computed_as(views.inputs.read_as(view)).is_none() {
                return Err(refuse(format!("it is {:?}", view.dtype)));
            }
            holders.push(Over { model: place, view: view.clone(), axis });
        }
        let columns = |over: &Over<'a>| over.view.shape.iter().skip(over.axis + 1).product::<usize>();
        if let Some(other) = holders.iter().find(|over| columns(over) != columns(&holders[0])) {
            let (first, other) = (&holders[0], other);
            let problem = format!(
                "tensor {name}: it is {:?} in {} and {:?} in {}",
                first.view.shape,
                views.models[first.model].name,
                other.view.shape,
                views.models[other.model].name
            );
            return Err(Error::config(problem).hint("only models of the same width can be merged"));
        }
        Ok(holders)
    }

    /// Refuses rows of a model that lacks the tensor.
    fn check_sources(&self, aligned: &Aligned, model: usize, among: &[usize], name: &str) -> Result<()> {
        let lacks = aligned.rows(model, among).find_map(|from| match from {
            RowFrom::Model { model, .. } if !among.contains(&model) => Some(model),
            _ => None,
        });
        let Some(model) = lacks else { return Ok(()) };
        let problem =
            format!("rows of {name} are to come from {}, which has no such tensor", self.parties[model].name);
        Err(self.error(self.written.at, problem).hint("take the row of another model under `tokens`"))
    }

    /// What becomes of the files beside the weights, and of the donor's config.json; and the keys whose tokens are lost.
    fn files(
        &self,
        views: &Views<'a>,
        merged: &Merged,
        aligned: &Aligned,
    ) -> Result<(Revision, Option<String>, Vec<String>)> {
        let source = |party: usize| &views.sources[self.parties[party].source];
        let (lead, donor) = (source(self.leader), source(self.donor));
        let mut revision = Revision::default();
        if let Some(text) = &merged.tokenizer {
            revision.write(tokenizer::FILE, text.clone());
            OTHER_VOCABULARIES.iter().for_each(|name| revision.leave_out(name, STALE));
        }
        if let Some(text) = &merged.settings {
            revision.write(tokenizer::TOKENIZER_CONFIG, text.clone());
        }
        let mut text = donor.config_text.clone();
        let mut lost = IndexSet::new();
        if self.parties[self.leader].source != self.parties[self.donor].source {
            let own = &*self.parties[self.donor].tokenizer;
            let followed = tokenizer::follow_ids(&text, Some(own), merged, Some(&lead.config_text));
            text = followed.0;
            lost.extend(followed.1);
            if let Some(generation) = tokenizer::read_text(&donor.folder, GENERATION_CONFIG)? {
                let leading = tokenizer::read_text(&lead.folder, GENERATION_CONFIG)?;
                let (edited, lost_too) =
                    tokenizer::follow_ids(&generation, Some(own), merged, leading.as_deref());
                lost.extend(lost_too);
                if edited != generation {
                    revision.write(GENERATION_CONFIG, edited);
                }
            }
        }
        if self.parties[self.donor].rows.is_some_and(|rows| rows != aligned.height() as u64) {
            text = tokenizer::resized(&text, aligned.height());
        }
        let config_text = (text != donor.config_text).then_some(text);
        Ok((revision, config_text, lost.into_iter().collect()))
    }
}

/// A model's config.json, as far as it is compared with others', says how many rows there are now.
fn set_size(model: &mut Model<'_>, rows: usize) {
    const SIZE: &str = "vocab_size";
    let stands = |config: &Map<String, Json>| config.contains_key(SIZE);
    let in_text =
        |config: &Map<String, Json>| config.get("text_config").and_then(Json::as_object).is_some_and(stands);
    if stands(&model.config) {
        model.config.to_mut().insert(SIZE.into(), rows.into());
    }
    if in_text(&model.config) {
        model.config.to_mut()["text_config"][SIZE] = rows.into();
    }
}

/// What becomes of the vocabulary, in a few lines.
fn notes(vocabulary: &Vocabulary, parties: &[Reads]) -> Vec<String> {
    let Vocabulary { leader, tokens, rows, added, removed, tensors } = vocabulary;
    let mut says = format!("vocabulary: {tokens} tokens, those of {leader}");
    if *removed > 0 {
        says += &format!(" but for {removed} without a row");
    }
    if *added > 0 {
        says += &format!(" and {added} more");
    }
    says += &format!("; {rows} rows");
    let mut notes = vec![says];
    // Every model has its embedding, and not every one a head of its own.
    let of_embedding: Vec<&RowCounts> =
        tensors.iter().filter(|of| names::is_token_embedding(&of.tensor)).collect();
    for of in of_embedding.iter().take(MODELS_NAMED_MAX) {
        let Counts { own, others, averaged, zeros, fillers } = of.rows;
        let parts = [
            (own, "its own"),
            (others, "another model's"),
            (averaged, "averages of several models"),
            (zeros, "zeros, for tokens that no model has"),
            (fillers, "averages of all rows, to fill up"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let cut = of.before.saturating_sub(own as u64);
        let cut = if cut > 0 { format!("; {cut} of its {} are left out", of.before) } else { String::new() };
        notes.push(format!("rows of {}: {}{cut}", parties[of.model].name, parts.join(", ")));
    }
    let more = of_embedding.len().saturating_sub(MODELS_NAMED_MAX);
    if more > 0 {
        notes.push(format!("rows of {more} more models: see `plan --json`"));
    }
    notes
}

/// A tensor over the vocabulary, as a model has it.
struct Over<'a> {
    model: usize,
    view: View<'a>,
    /// Which of its dimensions goes over the tokens; all before it are 1.
    axis: usize,
}

/// The tokenizers of models, each read once where several have the same files.
fn read_all(
    views: &Views<'_>,
    named: &[(&str, usize, Option<u64>)],
    leader: usize,
    donor: usize,
    notes: &mut Vec<String>,
) -> Result<Vec<Reads>> {
    let folder = |place: usize| &views.sources[named[place].1].folder;
    let mut read: Vec<Option<Arc<Tokenizer>>> = Vec::new();
    for place in 0..named.len() {
        let same = (0..place).find(|other| tokenizer::same_files(folder(place), folder(*other)));
        let own = match same {
            Some(same) => read[same].clone(),
            None => tokenizer::read(folder(place))?.map(Arc::new),
        };
        read.push(own);
    }
    let missing = |place: usize| {
        let message = format!("{} has no tokenizer", named[place].0);
        Error::input(message).hint("name a model that has one: `tokenizer_source: MODEL`")
    };
    let lead = read[leader].clone().ok_or_else(|| missing(leader))?;
    let standing_in = read[donor].clone().unwrap_or(lead);
    let own = |place: usize| {
        let (name, source, rows) = named[place];
        let tokenizer = match &read[place] {
            Some(tokenizer) => Arc::clone(tokenizer),
            None if rows == named[donor].2 || place == donor => {
                notes
                    .push(format!("{name} has no tokenizer: it is taken to have that of {}", named[donor].0));
                Arc::clone(&standing_in)
            }
            None => return Err(missing(place)),
        };
        Ok(Reads { name: name.into(), source, tokenizer, rows })
    };
    (0..named.len()).map(own).collect()
}

/// The rows that a model has for tokens: those of its input embedding.
fn rows_of(model: &Model<'_>) -> Option<u64> {
    let embedding = model.tensors.iter().find(|(name, _)| names::is_token_embedding(name))?.1;
    embedding.shape.first().map(|rows| *rows as u64)
}

/// Which dimension of a tensor goes over the vocabulary, if one does.
fn axis(name: &str, view: &View<'_>, rows: Option<u64>) -> Option<usize> {
    let axis = view.shape.iter().take_while(|side| **side == 1).count().min(view.shape.len().checked_sub(1)?);
    let axis = if view.shape[0] as u64 == rows? { 0 } else { axis };
    (names::is_over_vocabulary(name) && view.shape[axis] as u64 == rows?).then_some(axis)
}

/// A warning of what may have a row for each token and is not among what is aligned: by its name of another height, or by its height of
/// an unknown name.
fn left_in_place(model: &Model<'_>, rows: Option<u64>) -> Option<Error> {
    let may_be_over = |(name, view): &(&Cow<'_, str>, &View<'_>)| {
        let known = names::is_over_vocabulary(name);
        let alike = view.shape.len() > 1 && view.shape[0] as u64 == rows.unwrap_or_default();
        let is_loose_weight = names::layered(name).is_none() && name.ends_with(".weight");
        axis(name, view, rows).is_none() && (known || is_loose_weight && alike)
    };
    let all: Vec<_> = model.tensors.iter().filter(may_be_over).collect();
    let (name, view) = all.first()?;
    let more = if all.len() > 1 { format!(" and {} more", all.len() - 1) } else { String::new() };
    let what = format!(
        "{}: tensor {}{more} may have a row for each token, and stays as it is, {:?}: the embedding has {} rows",
        model.name,
        quoted(name),
        view.shape,
        rows?
    );
    Some(Error::config(what).hint("if it does, its rows no longer fit the output's vocabulary"))
}

/// The view of a tensor whose rows are those of the merged vocabulary.
fn made<'a>(inputs: &mut InputList, aligned: &Aligned, over: &Over<'a>, holders: &[Over<'a>]) -> View<'a> {
    let among: Vec<usize> = holders.iter().map(|over| over.model).collect();
    // Inputs are counted as they are needed: most often there are the model's own, and one other.
    let mut of: IndexSet<usize> = IndexSet::new();
    let mut place = |model: usize| of.insert_full(model).0;
    let rows: Vec<Row> = aligned
        .rows(over.model, &among)
        .map(|from| match from {
            RowFrom::Model { model, row } => Row::Picked { of: place(model), row: row.into() },
            RowFrom::Mean(rows) => {
                Row::Mean(rows.into_iter().map(|(model, row)| (place(model), row.into())).collect())
            }
            RowFrom::Zero => Row::Zero,
            RowFrom::Filler => Row::Filler,
        })
        .collect();
    let mut floats = |over: &Over<'a>| {
        let input = inputs.as_floats(&over.view);
        let float = computed_as(inputs.read_as(&over.view)).expect("it was checked to be of floats");
        Floats { input, float }
    };
    let own = over;
    let of: Vec<Floats> = of
        .into_iter()
        .map(|model| floats(holders.iter().find(|over| over.model == model).expect("rows come from holders")))
        .collect();
    // As all other models have it: rows may come from any of them.
    let dtype = holders.iter().map(|over| over.view.dtype).reduce(promote).expect("there is one at least");
    let read = holders.iter().map(|over| inputs.read_as(&over.view)).reduce(promote);
    let float = read.and_then(computed_as).expect("they were checked to be of floats");
    let mut shape = own.view.shape.to_vec();
    shape[own.axis] = rows.len();
    let columns = shape[own.axis + 1..].iter().product::<usize>() as u64;
    View { dtype, shape: shape.into(), from: Origin::Made(inputs.make(Rows::new(of, columns, float, rows))) }
}
