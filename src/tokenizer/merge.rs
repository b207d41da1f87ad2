//! The vocabulary of a merge: the tokens of one model, or of all, and those that the config adds.
//!
//! One tokenizer leads: its file is edited, and its tokens keep their ids. Tokens that others have and it has not are added behind
//! it, as mergekit adds them: to those that are looked for in a text before the vocabulary is asked, because a merge of two
//! vocabularies has no one list of merges or scores that both would cut words by.

use std::collections::HashSet;
use std::ops::Range;

use indexmap::IndexMap;
use serde::Deserialize;

use super::json::{Items, Text, quoted, replaced, within};
use super::settings::DECODER;
use super::{Added, Flags, Kind, Tokenizer, damaged};
use crate::error::{Error, Result};
use crate::limits::TOKENS_MAX;

/// A model whose tokens count: what it calls them, and how many rows it has for them. A token without a row is none of its own.
#[derive(Debug, Clone, Copy)]
pub struct Party<'a> {
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The rows of its embedding.
    pub rows: u64,
}

impl Party<'_> {
    /// The row of a token.
    pub fn row(&self, token: &str) -> Option<u32> {
        self.tokenizer.id(token).filter(|id| self.has(*id))
    }

    fn has(&self, id: u32) -> bool {
        u64::from(id) < self.rows
    }

    /// Its tokens by id.
    fn in_order(&self) -> Vec<(&str, u32)> {
        let tokens = self.tokenizer.ids.iter().map(|(token, id)| (&**token, *id));
        let mut tokens: Vec<_> = tokens.filter(|(_, id)| self.has(*id)).collect();
        tokens.sort_by_key(|(_, id)| *id);
        tokens
    }
}

/// The vocabulary of a merge, and the files that say it.
#[derive(Debug)]
pub struct Merged {
    pub(super) ids: IndexMap<String, u32>,
    /// By id, which of the tokens above; of several with one id, an added one, as loading has it, or else the first.
    by_id: Vec<Option<usize>>,
    /// `tokenizer.json`, where it is not the one that it comes from.
    pub tokenizer: Option<String>,
    /// `tokenizer_config.json`, where it is not the one that it comes from.
    pub settings: Option<String>,
    /// Tokens that the leading tokenizer has not, or had no row for.
    pub added: usize,
    /// Tokens that it has and that its model has no row for.
    pub removed: usize,
    /// How many tokens a union adds that others have in their vocabularies, and not as added ones; by model, where there are any.
    pub ordinary: Vec<(usize, usize)>,
}

/// Merges the vocabularies of models. The tokenizer of `leader` leads; `union` adds the tokens of all others, in their order, and
/// `wanted` is added in any case.
///
/// # Errors
/// Kind `Input`: there are more tokens than any vocabulary has, or a file has none of the forms that are known.
pub fn merge(parties: &[Party], leader: usize, union: bool, wanted: &[&str]) -> Result<Merged> {
    let mut building = Building::new(parties[leader]);
    building.keep_special();
    if union {
        let others = parties.iter().enumerate().filter(|(place, _)| *place != leader);
        building.unite(&others.collect::<Vec<_>>());
    }
    for token in wanted {
        if !building.ids.contains_key(*token) {
            building.add_plain(token);
        }
    }
    building.finish()
}

/// A vocabulary under way.
struct Building<'a> {
    lead: Party<'a>,
    ids: IndexMap<String, u32>,
    next: u32,
    removed: Vec<&'a str>,
    /// What is to be listed as added beside what the leading file lists.
    listed: IndexMap<String, Flags>,
    /// Whether it is the leading vocabulary no more.
    changed: bool,
    added: usize,
    ordinary: Vec<(usize, usize)>,
}

impl<'a> Building<'a> {
    fn new(lead: Party<'a>) -> Self {
        let tokenizer = lead.tokenizer;
        let (kept, removed): (Vec<_>, Vec<_>) = tokenizer.ids.iter().partition(|(_, id)| lead.has(**id));
        let ids: IndexMap<String, u32> = kept.into_iter().map(|(token, id)| (token.clone(), *id)).collect();
        let unlisted =
            tokenizer.added.iter().filter(|(token, added)| !added.listed && ids.contains_key(*token));
        Self {
            lead,
            next: ids.values().max().map_or(0, |max| max + 1),
            changed: !removed.is_empty(),
            removed: removed.into_iter().map(|(token, _)| &**token).collect(),
            listed: unlisted.map(|(token, added)| (token.clone(), added.flags)).collect(),
            ids,
            added: 0,
            ordinary: Vec::new(),
        }
    }

    /// A token gets an id, if it has none, and is looked for in a text first.
    fn add(&mut self, token: &str, flags: Flags) {
        if token.is_empty() {
            return;
        }
        let known = self.ids.contains_key(token);
        if known && (self.listed.contains_key(token) || self.lead.tokenizer.added.contains_key(token)) {
            return;
        }
        if !known {
            self.ids.insert(token.into(), self.next);
            self.next += 1;
            self.added += 1;
        }
        self.listed.insert(token.into(), flags);
        self.changed = true;
    }

    /// The same for a token that is given as nothing but its text. Such are normalised; what a normaliser may leave nothing of is not,
    /// because looking for nothing does not end in releases of the `tokenizers` library.
    fn add_plain(&mut self, token: &str) {
        let stays = |c: char| c.is_alphanumeric() || c.is_ascii_punctuation() || c == '\u{2581}';
        let normalized = !self.lead.tokenizer.normalizes || token.chars().any(stays);
        self.add(token, Flags { normalized, ..Flags::PLAIN });
    }

    /// Special tokens that the files beside the tokenizer name get a row: loading would give them an id without one.
    fn keep_special(&mut self) {
        let tokenizer = self.lead.tokenizer;
        for token in tokenizer.settings.special.keys() {
            if !self.ids.contains_key(token) {
                self.add(token, tokenizer.added.get(token).map_or(Flags::SPECIAL, |added| added.flags));
            }
        }
    }

    /// Adds what others have: first the tokens of their vocabularies, then those that were added to them.
    fn unite(&mut self, others: &[(usize, &Party)]) {
        let in_order: Vec<Vec<(&str, u32)>> = others.iter().map(|(_, party)| party.in_order()).collect();
        let added = |party: &Party, token: &str| party.tokenizer.added.get(token).copied();
        let mut added_anywhere: IndexMap<&str, Flags> = IndexMap::new();
        for ((_, party), tokens) in others.iter().zip(&in_order) {
            for (token, _) in tokens {
                if let Some(Added { flags, .. }) = added(party, token) {
                    added_anywhere.entry(token).or_insert(flags);
                }
            }
        }
        for ((place, _), tokens) in others.iter().zip(&in_order) {
            let before = self.added;
            for (token, _) in tokens {
                if !self.ids.contains_key(*token) && !added_anywhere.contains_key(token) {
                    self.add_plain(token);
                }
            }
            if self.added > before {
                self.ordinary.push((*place, self.added - before));
            }
        }
        for (token, flags) in added_anywhere {
            self.add(token, flags);
        }
    }

    fn finish(self) -> Result<Merged> {
        if self.ids.len() > TOKENS_MAX {
            return Err(Error::input(format!("the merged vocabulary has {} tokens", self.ids.len()))
                .hint(format!("{TOKENS_MAX} are the most: use `tokenizer_source: base`")));
        }
        let mut by_id = vec![None; self.next as usize];
        for (place, (token, id)) in self.ids.iter().enumerate() {
            let owner = &mut by_id[*id as usize];
            if owner.is_none()
                || self.listed.contains_key(token)
                || self.lead.tokenizer.added.contains_key(token)
            {
                *owner = Some(place);
            }
        }
        let tokenizer = self.changed.then(|| self.tokenizer()).transpose()?;
        let settings = self.settings();
        Ok(Merged {
            tokenizer,
            settings,
            added: self.added,
            removed: self.removed.len(),
            ordinary: self.ordinary,
            ids: self.ids,
            by_id,
        })
    }

    /// The edited `tokenizer.json`.
    fn tokenizer(&self) -> Result<String> {
        let Tokenizer { place, text, .. } = self.lead.tokenizer;
        let parse = |part| {
            Items::parse_up_to(part, TOKENS_MAX)
                .map_err(|cause| damaged(place, &format!("is no tokenizer: {cause}")))
        };
        let top = parse(text)?;
        let model = parse(top.get("model").expect("it was read"))?;
        let style = Style::of(&top);
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();

        let removed: HashSet<&str> = self.removed.iter().copied().collect();
        let in_model = |token: &str| self.lead.tokenizer.in_model(token);
        let cut = removed.iter().any(|token| in_model(token));
        let pins = self.pins();
        if cut || !pins.is_empty() {
            let vocabulary = parse(model.get("vocab").expect("it was read"))?;
            let text = self.vocabulary(&vocabulary, &pins)?;
            edits.push((vocabulary.place(text_of(self.lead)), text));
        }
        if let Some(merges) = model.get("merges").filter(|_| cut && self.lead.tokenizer.kind == Kind::Bpe) {
            let prefix =
                model.get("continuing_subword_prefix").and_then(|text| serde_json::from_str(text).ok());
            let merges = parse(merges)?;
            let kept = merges.kept(|_, merge| !makes(merge, prefix.unwrap_or(""), &removed));
            edits.push((merges.place(text), kept));
        }

        let listed =
            self.listed.iter().map(|(token, flags)| style.added_token(self.ids[token], token, *flags));
        let written = top.get("added_tokens");
        let list = parse(written.filter(|list| list.starts_with('[')).unwrap_or("[]"))?;
        let kept =
            if removed.is_empty() { None } else { Some(list.kept(|_, token| !is_one_of(token, &removed))) };
        let kept = kept.as_deref().map(&parse).transpose()?;
        let edited = kept.as_ref().unwrap_or(&list).with(listed, style.of_list());
        let Some(written) = written else {
            return Ok(parse(&replaced(text, edits))?.with_value("added_tokens", &edited));
        };
        edits.push((within(text, written), edited));
        Ok(replaced(text, edits))
    }

    /// Added tokens that must stand in the vocabulary too, because loading would give them another id: it counts on from the size of
    /// the vocabulary, whatever ids that has.
    fn pins(&self) -> Vec<&str> {
        let tokenizer = self.lead.tokenizer;
        let in_model = |token: &str| tokenizer.in_model(token) && !self.removed_now(token);
        let listed_before =
            tokenizer.added.iter().filter(|(_, added)| added.listed).map(|(token, _)| &**token);
        let listed_before =
            listed_before.filter(|token| self.ids.contains_key(*token) && !self.listed.contains_key(*token));
        let free =
            listed_before.chain(self.listed.keys().map(|token| &**token)).filter(|token| !in_model(token));
        let free: Vec<&str> = free.collect();
        let size = tokenizer.model_size(self.lead.rows);
        let counted_on =
            size.is_some_and(|size| free.iter().zip(size..).all(|(token, id)| self.ids[*token] == id));
        if counted_on { Vec::new() } else { free }
    }

    fn removed_now(&self, token: &str) -> bool {
        self.lead.tokenizer.id(token).is_some_and(|id| !self.lead.has(id))
    }

    /// The edited vocabulary of the model.
    fn vocabulary(&self, vocabulary: &Items, pins: &[&str]) -> Result<String> {
        let tokenizer = self.lead.tokenizer;
        let mut place = 0;
        let kept = vocabulary.kept(|token, _| {
            place += 1;
            match tokenizer.kind {
                Kind::Unigram => place <= self.lead.rows,
                _ => !self.removed_now(token),
            }
        });
        if pins.is_empty() {
            return Ok(kept);
        }
        if tokenizer.kind == Kind::Unigram {
            return Err(damaged(&tokenizer.place, "gives added tokens ids within its vocabulary"));
        }
        let colon = if vocabulary.spaces().is_some() { ": " } else { ":" };
        let pins = pins.iter().map(|token| format!("{}{colon}{}", quoted(token), self.ids[*token]));
        Ok(Items::parse_up_to(&kept, TOKENS_MAX).expect("it was JSON").with(pins, None))
    }

    /// The edited `tokenizer_config.json`: loading adds what it lists, in the order of the ids there.
    fn settings(&self) -> Option<String> {
        let text = self.lead.tokenizer.settings.text.as_deref().filter(|_| !self.removed.is_empty())?;
        let file = Items::parse(text).ok()?;
        let decoder = Items::parse(file.get(DECODER)?).ok()?;
        let removed: HashSet<&str> = self.removed.iter().copied().collect();
        let kept = decoder.kept(|_, token| !is_one_of(token, &removed));
        Some(replaced(text, vec![(decoder.place(text), kept)])).filter(|edited| edited != text)
    }
}

fn text_of(party: Party<'_>) -> &str {
    &party.tokenizer.text
}

impl Tokenizer {
    /// Whether a token belongs to the vocabulary, added or not.
    fn in_model(&self, token: &str) -> bool {
        self.ids.get_index_of(token).is_some_and(|place| place < self.model_tokens)
    }

    /// The size of the vocabulary without the tokens that have no row, if no id below is left out.
    fn model_size(&self, rows: u64) -> Option<u32> {
        if self.kind == Kind::Unigram {
            return Some(self.listed_tokens.min(u32::try_from(rows).unwrap_or(u32::MAX)));
        }
        let ids = self.ids.values().take(self.model_tokens).filter(|id| u64::from(**id) < rows);
        let mut seen: Vec<u32> = ids.copied().collect();
        seen.sort_unstable();
        seen.iter().zip(0..).all(|(id, place)| *id == place).then_some(seen.len() as u32)
    }
}

/// Whether an added token, with its flags or as a text, is one of these.
fn is_one_of(token: &str, tokens: &HashSet<&str>) -> bool {
    #[derive(Deserialize)]
    struct Full<'a> {
        #[serde(borrow)]
        content: Text<'a>,
    }
    let full = serde_json::from_str::<Full>(token).map(|full| full.content);
    full.or_else(|_| serde_json::from_str(token)).is_ok_and(|text: Text| tokens.contains(&*text.0))
}

/// Whether a merge takes or makes one of these tokens.
fn makes(merge: &str, prefix: &str, tokens: &HashSet<&str>) -> bool {
    let pair = serde_json::from_str::<(Text, Text)>(merge)
        .map(|(left, right)| (left.0.into_owned(), right.0.into_owned()));
    let pair = pair.ok().or_else(|| {
        let Text(both) = serde_json::from_str(merge).ok()?;
        both.split_once(' ').map(|(left, right)| (left.into(), right.into()))
    });
    pair.is_some_and(|(left, right)| {
        let made = format!("{left}{}", right.strip_prefix(prefix).unwrap_or(&right));
        [left, right, made].iter().any(|token| tokens.contains(&**token))
    })
}

/// How a file is spaced.
struct Style {
    /// The spaces before a key at the top, where each has a line of its own.
    spaces: Option<usize>,
}

impl Style {
    fn of(top: &Items) -> Self {
        Self { spaces: top.spaces() }
    }

    /// The spaces before the items of a list at the top, and before its end.
    fn of_list(&self) -> Option<(usize, usize)> {
        self.spaces.map(|spaces| (2 * spaces, spaces))
    }

    /// A token as the file lists it.
    fn added_token(&self, id: u32, token: &str, flags: Flags) -> String {
        let Flags { single_word, lstrip, rstrip, normalized, special } = flags;
        let (token, flags) =
            (quoted(token), [single_word, lstrip, rstrip, normalized, special].map(|flag| flag.to_string()));
        let [single_word, lstrip, rstrip, normalized, special] = flags;
        let fields = [
            ("id", id.to_string()),
            ("content", token),
            ("single_word", single_word),
            ("lstrip", lstrip),
            ("rstrip", rstrip),
            ("normalized", normalized),
            ("special", special),
        ];
        match self.spaces {
            None => {
                let fields = fields.map(|(key, value)| format!("\"{key}\":{value}"));
                format!("{{{}}}", fields.join(","))
            }
            Some(spaces) => {
                let (inner, outer) = (" ".repeat(3 * spaces), " ".repeat(2 * spaces));
                let fields = fields.map(|(key, value)| format!("\n{inner}\"{key}\": {value}"));
                format!("{{{}\n{outer}}}", fields.join(","))
            }
        }
    }
}

impl Merged {
    /// How many ids there are, with those that no token has.
    pub fn ids(&self) -> usize {
        self.by_id.len()
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The token that has an id.
    pub fn token(&self, id: u32) -> Option<&str> {
        let place = (*self.by_id.get(id as usize)?)?;
        self.ids.get_index(place).map(|(token, _)| &**token)
    }

    /// By id, the row that a model has for the token.
    pub fn rows_of(&self, party: &Party) -> Vec<Option<u32>> {
        (0..self.ids() as u32).map(|id| party.row(self.token(id)?)).collect()
    }
}
