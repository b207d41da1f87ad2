//! What is read: files of texts, of questions with answers, and of texts with abstracts.

use std::fs::{File, FileType};
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};
use crate::limits::TEXTS_BYTES_MAX;
use crate::text::{escaped, quoted};

/// What a file's texts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Texts of which all counts: a file is one, or each of its lines.
    Text {
        /// Whether each line is a text of its own.
        by_line: bool,
    },
    /// Questions and answers, of which the answers count.
    Qa,
    /// Texts and their abstracts, of which the abstracts count.
    Abstract,
}

impl Form {
    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text { .. } => "text",
            Self::Qa => "qa",
            Self::Abstract => "abstract",
        }
    }

    /// What a row is made into where nothing else is asked for. A chat's turn holds what comes before the last field.
    fn usual_prompt(self, chat: bool) -> &'static str {
        match (self, chat) {
            (Self::Text { .. }, _) => "{text}",
            (Self::Qa, false) => "Question: {question}\nAnswer: {answer}",
            (Self::Qa, true) => "{question}{answer}",
            (Self::Abstract, false) => "{text}\n\nAbstract: {abstract}",
            (Self::Abstract, true) => "Write an abstract of this text.\n\n{text}{abstract}",
        }
    }
}

/// How the fields of a row become a text: `{field}` stands for one, and the last of them is what counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    written: String,
    /// What stands before each field, and its name.
    parts: Vec<(String, String)>,
}

impl Prompt {
    /// As it is written.
    ///
    /// # Errors
    /// It names no field, or something follows the last.
    pub fn parse(written: &str) -> Result<Self> {
        let refused = |why: &str| {
            Error::config(format!("prompt {}: {why}", quoted(written)))
                .hint("write fields of a row in braces, and the one that is to be predicted last: `Q: {question}\\nA: {answer}`")
        };
        let (mut parts, mut rest) = (Vec::new(), written);
        while let Some((before, after)) = rest.split_once('{') {
            let (field, next) = after.split_once('}').ok_or_else(|| refused("a brace is not closed"))?;
            if field.is_empty() {
                return Err(refused("braces name no field"));
            }
            parts.push((before.to_owned(), field.to_owned()));
            rest = next;
        }
        if parts.is_empty() {
            return Err(refused("it names no field"));
        }
        if !rest.is_empty() {
            return Err(refused("something follows the last field"));
        }
        Ok(Self { written: written.to_owned(), parts })
    }

    /// The usual one of a form.
    pub fn usual(form: Form, chat: bool) -> Self {
        Self::parse(form.usual_prompt(chat)).expect("it is well formed")
    }

    /// How many fields it has.
    pub fn fields(&self) -> usize {
        self.parts.len()
    }

    /// As it was written.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// What a row is made into: what comes before what counts, and that.
    fn fill(&self, row: &Map<String, Json>) -> std::result::Result<(String, String), String> {
        let (mut before, mut last) = (String::new(), String::new());
        for (number, (text, field)) in self.parts.iter().enumerate() {
            before += text;
            let value = match row.get(field) {
                Some(Json::String(value)) => value.clone(),
                Some(value @ (Json::Number(_) | Json::Bool(_))) => value.to_string(),
                Some(_) => return Err(format!("its field {} is no text", quoted(field))),
                None => {
                    let has: Vec<&str> = row.keys().map(String::as_str).collect();
                    return Err(format!(
                        "it has no field {}, but {}",
                        quoted(field),
                        escaped(&has.join(", "))
                    ));
                }
            };
            if number + 1 == self.parts.len() {
                last = value;
            } else {
                before += &value;
            }
        }
        if last.trim().is_empty() {
            let (_, field) = &self.parts[self.parts.len() - 1];
            return Err(format!("its field {} is empty", quoted(field)));
        }
        Ok((before, last))
    }
}

/// The texts of a file: what only leads to what counts (nothing of it in plain texts), and that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// The file's name, without its folder.
    pub name: String,
    /// The file.
    pub file: String,
    /// What they are.
    pub form: Form,
    /// Each of them.
    pub rows: Vec<(String, String)>,
}

impl Texts {
    /// Reads a file: UTF-8, where its name ends in `.jsonl` an object a line.
    ///
    /// # Errors
    /// It cannot be read, holds nothing, or a line is not what the prompt needs.
    pub fn read(path: &Path, form: Form, prompt: &Prompt) -> Result<Self> {
        let file = path.display().to_string();
        let text = read_text(path)?;
        let is_rows = path.extension().is_some_and(|extension| extension == "jsonl" || extension == "json");
        let name = path.file_name().map_or_else(|| file.clone(), |name| name.to_string_lossy().into_owned());
        let rows: Vec<(String, String)> = match form {
            Form::Text { by_line: false } if !is_rows => vec![(String::new(), text)],
            Form::Text { by_line: true } if !is_rows => {
                text.lines().map(|line| (String::new(), line.to_owned())).collect()
            }
            _ if !is_rows => {
                let message = format!("{}: its name does not end in .jsonl", escaped(&file));
                let hint = "give a file with a JSON object a line; plain texts are read by --text";
                return Err(Error::config(message).hint(hint));
            }
            _ => rows(&file, &text, form, prompt)?,
        };
        let rows: Vec<_> = rows.into_iter().filter(|(_, counts)| !counts.trim().is_empty()).collect();
        if rows.is_empty() {
            let message = format!("{}: there is no text in it", escaped(&file));
            return Err(Error::config(message).hint("give a file with texts to read"));
        }
        Ok(Self { name, file, form, rows })
    }
}

fn rows(file: &str, text: &str, form: Form, prompt: &Prompt) -> Result<Vec<(String, String)>> {
    let row = |(number, line): (usize, &str)| {
        let at = |why: String| {
            let hint = match form {
                Form::Text { .. } => {
                    "a line is an object with a field \"text\"; questions and answers are read by --qa, texts with abstracts by --abstract"
                }
                Form::Qa => {
                    "a line is an object with \"question\" and \"answer\"; --qa-prompt takes other fields"
                }
                Form::Abstract => {
                    "a line is an object with \"text\" and \"abstract\"; --abstract-prompt takes other fields"
                }
            };
            Error::config(format!("{}:{}: {why}", escaped(file), number + 1)).hint(hint)
        };
        let row: Json = serde_json::from_str(line).map_err(|cause| at(no_json(&cause)))?;
        let row = row.as_object().ok_or_else(|| at("it is no object".into()))?;
        prompt.fill(row).map_err(at)
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(row).collect()
}

/// What is wrong with a line: its own number stands before this, and the reader of JSON saw no other line.
fn no_json(cause: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", cause.line(), cause.column());
    let why = cause.to_string();
    let column = cause.column().max(1);
    format!("it is no JSON: {} at character {column}", why.strip_suffix(&place).unwrap_or(&why))
}

fn read_text(path: &Path) -> Result<String> {
    let failed = |cause: String| {
        Error::config(format!("cannot read {}: {cause}", escaped(&path.display().to_string())))
            .hint("give a file of text in UTF-8")
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|cause| failed(cause.to_string()))?;
    if !has_an_end(&file) {
        return Err(failed("it is neither a file nor a pipe".into()));
    }
    file.take(TEXTS_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|cause| failed(cause.to_string()))?;
    if bytes.len() as u64 > TEXTS_BYTES_MAX {
        return Err(failed("it has more than 1 GiB".into()));
    }
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).map(<[u8]>::to_vec).unwrap_or(bytes);
    String::from_utf8(text)
        .map_err(|cause| failed(format!("byte {} is not UTF-8", cause.utf8_error().valid_up_to())))
}

/// Whether it is a file, or a pipe such as a shell's `<(…)`: devices have no end.
fn has_an_end(file: &File) -> bool {
    #[cfg(unix)]
    let is_pipe = |kind: FileType| std::os::unix::fs::FileTypeExt::is_fifo(&kind);
    #[cfg(not(unix))]
    let is_pipe = |_: FileType| false;
    file.metadata().is_ok_and(|found| found.is_file() || is_pipe(found.file_type()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prompts_end_with_what_counts() {
        let prompt = Prompt::parse("<|user|>{question}<|assistant|>{answer}").unwrap();
        let row = json!({ "answer": "Four.", "question": "2 + 2?", "more": 1 });
        let filled = prompt.fill(row.as_object().unwrap());
        assert_eq!(filled, Ok(("<|user|>2 + 2?<|assistant|>".into(), "Four.".into())));
        let lacks = prompt.fill(json!({ "question": "2 + 2?" }).as_object().unwrap()).unwrap_err();
        assert_eq!(lacks, "it has no field \"answer\", but question");
        for (written, why) in [
            ("Question:", "names no field"),
            ("{a", "not closed"),
            ("{}", "name no field"),
            ("{a} and", "follows the last"),
        ] {
            assert!(Prompt::parse(written).unwrap_err().message.contains(why), "{written}");
        }
    }

    #[test]
    fn files_say_what_is_wrong_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &[u8], form: Form| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Texts::read(&path, form, &Prompt::usual(form, false))
        };
        let lines = Form::Text { by_line: true };
        assert_eq!(read("a.txt", b"\xef\xbb\xbfone\n\ntwo\n", lines).unwrap().rows.len(), 2);
        assert_eq!(read("a.txt", b"one\n\ntwo\n", Form::Text { by_line: false }).unwrap().rows.len(), 1);
        assert_eq!(read("a.jsonl", b"{\"text\": \"one\"}\n", lines).unwrap().rows.len(), 1);
        let endless = Texts::read(Path::new("/dev/zero"), lines, &Prompt::usual(lines, false)).unwrap_err();
        assert!(endless.message.contains("it is neither a file nor a pipe"), "{endless}");
        for (name, text, form, why) in [
            ("b.txt", &b" \n"[..], lines, "no text in it"),
            ("b.txt", b"a\xff", lines, "byte 1 is not UTF-8"),
            ("b.txt", b"a", Form::Qa, "does not end in .jsonl"),
            ("b.jsonl", b"{\"text\": 1}\n[]", lines, "b.jsonl:2: it is no object"),
            ("b.jsonl", b"{\"question\": \"q\"}", Form::Qa, "b.jsonl:1: it has no field \"answer\""),
            ("b.jsonl", b"{\"text\": \"q\", \"abstract\": \" \"}", Form::Abstract, "\"abstract\" is empty"),
            (
                "b.jsonl",
                b"{",
                Form::Qa,
                "b.jsonl:1: it is no JSON: EOF while parsing an object at character 1",
            ),
        ] {
            let refused = read(name, text, form).unwrap_err();
            assert!(refused.message.contains(why) && refused.hint.is_some(), "{}", refused.message);
        }
    }
}
