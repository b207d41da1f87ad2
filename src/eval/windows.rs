//! Texts as windows of tokens, some of which count.

use super::chat::Chat;
use super::{Form, Texts};
use crate::error::{Error, Result};
use crate::text::escaped;
use crate::tokenizer::Runner;

/// How texts are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The most tokens that are read together.
    pub window: usize,
    /// The tokens from one window of a text to the next.
    pub stride: usize,
    /// Whether all texts of a set are read as one.
    pub packed: bool,
    /// Whether texts get the tokens that begin and end one, where the tokenizer does not put them there.
    pub framed: bool,
}

/// Tokens that are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Their numbers.
    pub tokens: Vec<u64>,
    /// The first that counts, at least 1: what comes before it is read only.
    pub counts_from: usize,
}

/// The windows of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Each of them.
    pub windows: Vec<Window>,
    /// How many texts they come from.
    pub texts: usize,
    /// Bytes of what counts.
    pub bytes: u64,
    /// Words that begin in what counts: what space separates.
    pub words: u64,
    /// Texts that are longer than a window and lost a part; plain texts lose nothing.
    pub shortened: usize,
}

/// Tokens at the end of a prompt that stay where it is too long: what asks for the answer.
const ASKING: usize = 32;

/// A token, and what of the text came with it.
#[derive(Debug, Clone, Copy, Default)]
struct Token {
    id: u64,
    bytes: u32,
    words: u32,
}

impl Windows {
    /// The windows of some texts.
    ///
    /// # Errors
    /// The tokenizer cannot take a text, or no token is left that counts.
    pub fn of(
        texts: &Texts,
        runner: &Runner,
        chat: Option<&Chat>,
        cut: Cut,
        vocabulary: usize,
    ) -> Result<Self> {
        let mut cutting = Cutting { runner, cut, windows: Vec::new(), bytes: 0, words: 0, shortened: 0 };
        if let Form::Text { .. } = texts.form {
            let mut packed = Vec::new();
            for (_, text) in &texts.rows {
                let tokens = cutting.framed(cutting.tokens(text, true)?)?;
                if cut.packed {
                    packed.extend(tokens);
                } else {
                    cutting.slide(&tokens);
                }
            }
            cutting.slide(&packed);
        } else {
            for (before, counts) in &texts.rows {
                cutting.pair(before, counts, chat)?;
            }
        }
        let Cutting { windows, bytes, words, shortened, .. } = cutting;
        let of = || format!("{}: ", escaped(&texts.file));
        if windows.is_empty() {
            let message = of() + "no token in it follows another";
            return Err(Error::config(message).hint("give longer texts"));
        }
        let beyond = windows.iter().flat_map(|window| &window.tokens).find(|id| **id >= vocabulary as u64);
        if let Some(id) = beyond {
            let message = of()
                + &format!("its tokenizer makes token {id} of it, and the embedding has {vocabulary} rows");
            return Err(Error::config(message).hint("give the model the tokenizer that belongs to it"));
        }
        Ok(Self { windows, texts: texts.rows.len(), bytes, words, shortened })
    }

    /// How many tokens there are, each as often as it is read.
    pub fn tokens(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).sum()
    }
}

struct Cutting<'r> {
    runner: &'r Runner,
    cut: Cut,
    windows: Vec<Window>,
    bytes: u64,
    words: u64,
    shortened: usize,
}

impl Cutting<'_> {
    fn tokens(&self, text: &str, whole: bool) -> Result<Vec<Token>> {
        let encoded = self.runner.encode(text, whole)?;
        let mut done = 0;
        let mut tokens: Vec<Token> = Vec::with_capacity(encoded.ids.len());
        for (id, end) in encoded.ids.into_iter().zip(encoded.ends) {
            let end = end.max(done);
            tokens.push(Token { id, bytes: (end - done) as u32, words: words(text, done, end) });
            done = end;
        }
        // What no token stands for belongs to the last.
        if let Some(last) = tokens.iter_mut().rev().find(|token| token.bytes > 0) {
            last.bytes += (text.len() - done) as u32;
            last.words += words(text, done, text.len());
        }
        Ok(tokens)
    }

    /// The same between the tokens that begin and end a text, if that is wanted.
    fn framed(&self, mut tokens: Vec<Token>) -> Result<Vec<Token>> {
        if !self.cut.framed {
            return Ok(tokens);
        }
        let id = |token: Option<&str>, does: &str| {
            let id = token.and_then(|token| self.runner.id(token));
            id.ok_or_else(|| {
                Error::config(format!("the tokenizer names no token that {does} a text"))
                    .hint("leave out --frame")
            })
        };
        let [begin, end] = self.runner.framing();
        let (begin, end) = (id(begin, "begins")?, id(end, "ends")?);
        if tokens.first().is_none_or(|token| token.id != begin) {
            tokens.insert(0, Token { id: begin, ..Token::default() });
        }
        if tokens.last().is_none_or(|token| token.id != end) {
            tokens.push(Token { id: end, ..Token::default() });
        }
        Ok(tokens)
    }

    /// Windows over tokens, each of which counts once, but for the first of all and, where windows do not overlap, of each.
    fn slide(&mut self, tokens: &[Token]) {
        let Cut { window, stride, .. } = self.cut;
        let mut done = 0;
        for first in (0..tokens.len()).step_by(stride) {
            let end = tokens.len().min(first + window);
            self.add(&tokens[first..end], done.max(first + 1) - first);
            done = end;
            if end == tokens.len() {
                break;
            }
        }
    }

    fn add(&mut self, tokens: &[Token], counts_from: usize) {
        if counts_from >= tokens.len() {
            return;
        }
        for token in &tokens[counts_from..] {
            self.bytes += u64::from(token.bytes);
            self.words += u64::from(token.words);
        }
        self.windows.push(Window { tokens: tokens.iter().map(|token| token.id).collect(), counts_from });
    }

    /// A window for a prompt and what follows it.
    fn pair(&mut self, before: &str, counts: &str, chat: Option<&Chat>) -> Result<()> {
        let before = match chat {
            Some(chat) => chat.turn(before)?,
            None => before.to_owned(),
        };
        let mut tokens = self.tokens(&format!("{before}{counts}"), chat.is_none())?;
        // A token that reaches into what counts belongs to it: the space before an answer's first word does.
        let mut end = 0;
        let of_before = tokens.iter().take_while(|token| {
            end += token.bytes as usize;
            end <= before.len()
        });
        let mut counts_from = of_before.count();
        let before_bytes: u64 = tokens[..counts_from].iter().map(|token| u64::from(token.bytes)).sum();
        if let Some(first) = tokens.get_mut(counts_from) {
            first.bytes -= (before.len() as u64 - before_bytes) as u32;
        }
        let window = self.cut.window;
        if tokens.len() > window {
            self.shortened += 1;
            let asking = ASKING.min(counts_from).min(window / 2);
            let counting = tokens.len() - counts_from;
            let head = (window - asking).saturating_sub(counting).min(counts_from - asking);
            tokens.drain(head..counts_from - asking);
            counts_from = head + asking;
            tokens.truncate(window);
        }
        self.add(&tokens, counts_from.max(1));
        Ok(())
    }
}

/// Words of a text that begin in a part of it.
fn words(text: &str, start: usize, end: usize) -> u32 {
    let mut inside = text[..start].chars().next_back().is_some_and(|before| !before.is_whitespace());
    let mut words = 0;
    for c in text[start..end].chars() {
        words += u32::from(!inside && !c.is_whitespace());
        inside = !c.is_whitespace();
    }
    words
}
