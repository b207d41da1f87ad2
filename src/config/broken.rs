//! What is not YAML, in our words: the mistakes that people make, each with the place where it was made and the way out.
//!
//! A parser says where it could not go on, which is often behind the mistake, and says it in the words of YAML's grammar.

use super::{Position, quoted};

/// What is wrong with a text, and where.
pub struct Mistake {
    pub at: Position,
    pub message: String,
    pub hint: String,
}

/// What was probably done where the parser gave up, saying this.
pub fn explain(source: &str, at: Position, said: &str) -> Mistake {
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let text = Text { source, at };
    let mistake =
        |at: Position, message: &str, hint: &str| Mistake { at, message: message.into(), hint: hint.into() };
    if let Some(mistake) = odd_indentation(source) {
        return mistake;
    }
    if let Some(mistake) = odd_dash(source) {
        return mistake;
    }
    if let Some(mistake) = text.indented_separator() {
        return mistake;
    }
    if says(&["tab"]) {
        let hint = "YAML is indented by spaces: replace every tab by some";
        return mistake(text.tab().unwrap_or(at), "a tab stands where only spaces may", hint);
    }
    if says(&["unclosed quote"]) {
        let hint =
            "close it where the text ends; a text that has quotes in it goes into those of the other kind";
        return mistake(at, "the quotes that begin here are never closed", hint);
    }
    if says(&["bracket", "illegal placement of ':'", "',' or '}'", "',' or ']'"]) {
        return text.brackets();
    }
    if says(&["escape character", "hexadecimal"]) {
        let hint = "write a path of Windows in single quotes, or with `/`";
        let message =
            "in double quotes a `\\` begins an escape, like `\\n` for a new line, and there is none such";
        return mistake(at, message, hint);
    }
    if says(&["mapping values are not allowed"]) {
        return text.surplus_colon();
    }
    if says(&["expected key", "'-' indicator", "<document start>"]) {
        return text.indented_further().unwrap_or_else(|| text.out_of_line());
    }
    if says(&["key expected ':'"]) {
        return mistake(
            at,
            "there is no `: ` in this line",
            "a key and its value are written `key: value`, with a space behind the colon",
        );
    }
    if says(&["unexpected character", "alphabetic or numeric"]) {
        return text.reserved();
    }
    if says(&["trailing content"]) {
        let message = "something follows the closing quotes";
        return mistake(at, message, "put all of the text into the quotes, or none of it");
    }
    if says(&["block scalar"]) {
        let hint = "the text begins in the next line, indented further than its key";
        return mistake(at, "something follows the `|` or `>` that begins a text of several lines", hint);
    }
    if says(&["string scalar"]) {
        let hint = "put a key that begins with `[` or `{` into quotes";
        return mistake(at, "a key must be a text, and this one is a list or a mapping", hint);
    }
    if says(&["merge value"]) {
        return mistake(at, "`<<` takes the mapping of an alias", "for example `<<: *name`");
    }
    let hint = "look at the indentation, the quotes and the brackets of this line, and of the one before";
    mistake(at, "this cannot be read as YAML", hint)
}

/// A line that is indented by what looks like a space and is none: browsers copy such.
pub fn odd_indentation(source: &str) -> Option<Mistake> {
    source.lines().enumerate().find_map(|(line, text)| {
        let indented = text.chars().take_while(|c| c.is_whitespace() || *c == '\u{200b}');
        let (column, odd) = indented.enumerate().find(|(_, c)| !matches!(c, ' ' | '\t' | '\r'))?;
        (text.trim().len() > 1).then(|| Mistake {
            at: Position { line: line + 1, column: column + 1 },
            message: format!(
                "this line is indented by a character that only looks like a space, U+{:04X}",
                u32::from(odd)
            ),
            hint: "replace it by a plain space".into(),
        })
    })
}

/// Whether a character looks like the `-` that the entries of a list begin with, and is none.
pub fn is_odd_dash(c: char) -> bool {
    matches!(c, '–' | '—' | '•' | '‐' | '−')
}

/// An entry of a list that begins with such a character: word processors put them there.
fn odd_dash(source: &str) -> Option<Mistake> {
    source.lines().enumerate().find_map(|(line, text)| {
        let entry = text.trim_start();
        let dash =
            entry.chars().next().filter(|c| is_odd_dash(*c) && entry[c.len_utf8()..].starts_with(' '))?;
        Some(Mistake {
            at: Position { line: line + 1, column: text.len() - entry.len() + 1 },
            message: format!(
                "`{dash}` is another character than the `-` that each entry of a list begins with"
            ),
            hint: "write `- ` there".into(),
        })
    })
}

/// A text and the place where reading it ended.
struct Text<'s> {
    source: &'s str,
    at: Position,
}

impl Text<'_> {
    fn line(&self, number: usize) -> &str {
        self.source.lines().nth(number.wrapping_sub(1)).unwrap_or_default()
    }

    /// The last line before the one at hand that has something in it, and its number.
    fn before(&self) -> Option<(usize, &str)> {
        let lines = self.source.lines().enumerate().take(self.at.line - 1);
        let written = |line: &str| !line.trim().is_empty() && !line.trim().starts_with('#');
        lines.filter(|(_, line)| written(line)).last().map(|(line, text)| (line + 1, text))
    }

    /// A line `---` that is indented, at the place or before it: to YAML it is a text.
    fn indented_separator(&self) -> Option<Mistake> {
        let here = (self.at.line, self.line(self.at.line));
        let is_it = |(_, line): &(usize, &str)| line.trim() == "---" && line.starts_with(' ');
        let (number, line) = [Some(here), self.before()].into_iter().flatten().find(is_it)?;
        let spaces = indent(line.trim_end_matches('-'));
        Some(Mistake {
            at: Position { line: number, column: spaces + 1 },
            message: "this `---` is indented: documents are separated by a `---` at the left margin".into(),
            hint: format!("move the whole text to the left, by {spaces} spaces"),
        })
    }

    /// The first tab in a line's indentation, from the place on.
    fn tab(&self) -> Option<Position> {
        self.source.lines().enumerate().skip(self.at.line - 1).find_map(|(line, text)| {
            let tab = text.chars().take_while(char::is_ascii_whitespace).position(|c| c == '\t')?;
            Some(Position { line: line + 1, column: tab + 1 })
        })
    }

    /// The bracket that was open where reading ended, or the one that closes another.
    fn brackets(&self) -> Mistake {
        let open = open_brackets(self.source, self.at);
        let hint = |closing: char| {
            format!("close it with `{closing}`; a text that begins with a bracket goes into quotes")
        };
        match open.last() {
            Some((place, bracket)) => Mistake {
                at: *place,
                message: format!("the `{bracket}` here is not closed as it should be"),
                hint: hint(if *bracket == '[' { ']' } else { '}' }),
            },
            None => Mistake {
                at: self.at,
                message: "a bracket is closed here that was not opened".into(),
                hint: "remove it, or put the text into quotes".into(),
            },
        }
    }

    /// A `: ` where no key can be.
    fn surplus_colon(&self) -> Mistake {
        let line = self.line(self.at.line);
        let before: String = line.chars().take(self.at.column - 1).collect();
        if before.contains(": ") {
            return Mistake {
                at: self.at,
                message: "a second `: ` in one line".into(),
                hint: "a text that contains `: ` goes into quotes; a key below another has a line of its own"
                    .into(),
            };
        }
        match self.before() {
            Some((number, above)) if !above.contains(": ") && !above.trim_end().ends_with(':') => Mistake {
                at: Position { line: number, column: indent(above) + 1 },
                message: format!("{} is no key with a value", quoted(above.trim())),
                hint: if above.contains('：') {
                    "`：` is another character than the `:` that a key ends with".into()
                } else {
                    "they are written `key: value`, with a space behind the colon".into()
                },
            },
            _ => self.indented_further().unwrap_or_else(|| Mistake {
                at: self.at,
                message: "there cannot be a `: ` here".into(),
                hint: "a text that contains `: ` goes into quotes".into(),
            }),
        }
    }

    /// A line below a `key: value` that is indented as if it belonged to the value.
    fn indented_further(&self) -> Option<Mistake> {
        let line = self.line(self.at.line);
        let (_, above) = self.before()?;
        let has_value = above.contains(": ") || !above.trim_end().ends_with(':');
        (has_value && indent(line) > indent(above)).then(|| Mistake {
            at: Position { line: self.at.line, column: indent(line) + 1 },
            message: "this line is indented further than the one before, which has a value already".into(),
            hint: "keys of one mapping begin in the same column".into(),
        })
    }

    /// A line that is indented like none of those that it could belong to.
    fn out_of_line(&self) -> Mistake {
        let mut lines = self.source.lines().enumerate();
        let first = lines.find(|(_, line)| !matches!(line.trim().chars().next(), None | Some('#' | '-')));
        let (at, first) = (self.at, first.filter(|(_, line)| line.starts_with(' ')));
        match first {
            Some((line, text)) if at.column == 1 => Mistake {
                at,
                message: format!(
                    "this line begins at the left, and the first key, at {}:{}, does not",
                    line + 1,
                    indent(text) + 1
                ),
                hint: "keys of one mapping begin in the same column".into(),
            },
            _ => Mistake {
                at,
                message: "this line does not line up with those that it belongs to".into(),
                hint: "keys of one mapping begin in the same column, and so does the `- ` of all entries of a list"
                    .into(),
            },
        }
    }

    /// A character that no plain text begins with.
    fn reserved(&self) -> Mistake {
        let line = self.line(self.at.line);
        if line.trim_start().starts_with("```") {
            return Mistake {
                at: self.at,
                message: "this is the frame of a code block, not YAML".into(),
                hint: "remove the lines that begin with ```".into(),
            };
        }
        if line.trim_start().starts_with("* ") {
            return Mistake {
                at: self.at,
                message: "a text cannot begin with `*`".into(),
                hint: "put it into quotes; the entries of a list begin with `- `".into(),
            };
        }
        // Of an alias without a name, what follows the sign is reported.
        let columns = [self.at.column.wrapping_sub(2), self.at.column - 1];
        let found = columns.into_iter().filter_map(|column| line.chars().nth(column));
        let found = found.into_iter().find(|c| !(c.is_whitespace() || c.is_alphanumeric()) || c.is_control());
        let message = match found {
            None => "a name is missing here".into(),
            Some('`') => "a text cannot begin with a backtick".into(),
            Some(c) if c.is_control() => {
                format!("there is a character that no config has: U+{:04X}", u32::from(c))
            }
            Some(c) => format!("a text cannot begin with `{c}`"),
        };
        Mistake { at: self.at, message, hint: "put it into quotes".into() }
    }
}

/// How far what a line holds is from the left: `- ` counts as a part of that.
fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '-']).len()
}

/// The brackets that are open at a place, outermost first. What stands in quotes and comments does not count.
fn open_brackets(source: &str, end: Position) -> Vec<(Position, char)> {
    let mut open: Vec<(Position, char)> = Vec::new();
    for (number, line) in source.lines().enumerate().take(end.line) {
        let (mut quote, mut last) = (None, ' ');
        for (column, c) in line.chars().enumerate() {
            let at = Position { line: number + 1, column: column + 1 };
            if at >= end {
                return open;
            }
            let begins = matches!(last, ' ' | '[' | '{' | ',' | ':');
            match (quote, c) {
                (Some(other), _) => quote = Some(other).filter(|other| *other != c),
                (None, '"' | '\'') if begins => quote = Some(c),
                (None, '#') if last == ' ' => break,
                (None, '[' | '{') if begins || !open.is_empty() => open.push((at, c)),
                (None, ']' | '}') => drop(open.pop()),
                _ => {}
            }
            last = c;
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use crate::config::tests::assert_refused;

    /// What was written below `merge_method: a`, where it is refused, in which words, and with which way out.
    const BROKEN: &[(&str, &str, &str, &str)] = &[
        ("models:\n\t- model: b\n", "3:1", "a tab stands where only spaces may", "replace every tab"),
        (
            "models:\n  - model: b\n\t  parameters:\n",
            "4:1",
            "a tab stands where only spaces may",
            "every tab",
        ),
        ("models:\n\u{a0} - model: b\n", "3:1", "this line is indented by a character", "a plain space"),
        ("models:\n\u{a0} - a: [\n", "3:1", "this line is indented by a character", "a plain space"),
        ("t: [0, 1\ndtype: b\n", "2:4", "the `[` here is not closed as it should be", "close it with `]`"),
        ("p: {t: [0, 1\n", "2:4", "the `{` here is not closed as it should be", "close it with `}`"),
        ("p: {t: '}', u: [1]\nmodels:\n", "2:4", "the `{` here is not closed", "close it with `}`"),
        ("t: [0, 1]]\n", "2:10", "a bracket is closed here that was not opened", "remove it"),
        ("models:\n  - model: \"b\n", "3:12", "the quotes that begin here are never closed", "close it"),
        ("base_model: 'b\n", "2:13", "the quotes that begin here are never closed", "close it"),
        ("base_model: 'b' c\n", "2:17", "something follows the closing quotes", "all of the text"),
        ("base_model: b: c\n", "2:14", "a second `: ` in one line", "goes into quotes"),
        ("dtype:b\nmodels: c\n", "2:1", "there is no `: ` in this line", "with a space behind the colon"),
        ("models: b\n  parameters:\n", "3:3", "this line is indented further", "the same column"),
        ("models:\n- model: b\n    t: c\n", "4:5", "this line is indented further", "the same column"),
        ("models:\n  - a: b\n - a: c\n", "4:2", "this line does not line up with those", "of all entries"),
        ("p:\n    t: 1\n  u: 1\n", "4:3", "this line does not line up with those", "the same column"),
        ("base_model: @b\n", "2:13", "a text cannot begin with `@`", "put it into quotes"),
        ("base_model: `b`\n", "2:13", "a text cannot begin with a backtick", "put it into quotes"),
        ("filter: * \n", "2:9", "a text cannot begin with `*`", "put it into quotes"),
        ("```\n", "2:1", "this is the frame of a code block, not YAML", "remove the lines"),
        ("some text\nmodels: b\n", "2:1", "there is no `: ` in this line", "key: value"),
        (
            "base_model: \"C:\\models\\b\"\n",
            "2:13",
            "in double quotes a `\\` begins an escape",
            "single quotes",
        ),
        ("models: [{model: \"C:\\new\"}]\n", "2:18", "the path `C:\\new` has a character", "single quotes"),
        ("chat_template: |b\n", "2:16", "something follows the `|`", "the next line"),
        ("tokens: {[a]: b}\n", "2:10", "a key must be a text", "into quotes"),
        ("<<: 5\n", "2:5", "`<<` takes the mapping of an alias", "<<: *name"),
        ("a: *b\n", "2:4", "this alias (`*name`) has no anchor", "goes into quotes"),
    ];

    #[test]
    fn mistakes_are_named_in_our_words_where_they_were_made() {
        for (lines, at, message, hint) in BROKEN {
            assert_refused(&format!("merge_method: a\n{lines}"), &format!("c.yaml:{at}: {message}"), hint);
        }
        let says = "c.yaml:1:1: `merge_method:a` is no key with a value";
        assert_refused("merge_method:a\nmodels:\n", says, "with a space behind the colon");
        let first = " models: [{model: b}]\nmerge_method: a\n";
        let says = "c.yaml:2:1: this line begins at the left, and the first key, at 1:2, does not";
        assert_refused(first, says, "the same column");
        let indented = "  name: a\n  merge_method: b\n  models:\n  - model: c\n  ---\n  merge_method: d\n";
        let says =
            "c.yaml:5:3: this `---` is indented: documents are separated by a `---` at the left margin";
        assert_refused(indented, says, "to the left, by 2 spaces");
        assert_refused("a: &b [*b]", "c.yaml:1:8: this alias (`*name`) contains itself", "");
        assert_refused("a: \u{0}", "c.yaml:1:", "");
    }
}
