//! The licence that a model's own card states, in the header of its `README.md`.
//!
//! ```text
//! ---
//! license: other
//! license_name: llama3
//! ---
//! ```

use std::sync::Arc;

use super::CARD;
use super::folder::ModelFolder;
use crate::limits::CARD_BYTES_MAX;
use crate::text::cut_to;

/// Names of licences are short.
const LICENCE_CHARS_MAX: usize = 80;

/// The licence, if there is a card that states one. A card that cannot be read, or is larger than any, states none: a merge
/// does not need it.
pub fn licence(folder: &Arc<ModelFolder>) -> Option<String> {
    if !folder.has(CARD) {
        return None;
    }
    let card = folder.file(CARD).read(CARD_BYTES_MAX).ok()?;
    stated(&String::from_utf8_lossy(&card))
}

fn stated(card: &str) -> Option<String> {
    let mut lines = card.trim_start_matches('\u{feff}').lines();
    (lines.next()?.trim_end() == "---").then_some(())?;
    let header: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    let licence = value(&header, "license")?;
    let named = value(&header, "license_name").filter(|_| licence == "other");
    Some(cut_to(&named.unwrap_or(licence), LICENCE_CHARS_MAX))
}

/// The value of a key at the top of a header, which is simple YAML: a word, or a list of words.
fn value(header: &[&str], key: &str) -> Option<String> {
    let of_key = |line: &str| Some(word(line.strip_prefix(key)?.strip_prefix(':')?));
    let (place, written) =
        header.iter().enumerate().find_map(|(place, line)| Some((place, of_key(line)?)))?;
    let words: Vec<String> = if written.is_empty() {
        let item = |line: &&str| line.trim_start().strip_prefix("- ").map(word);
        header[place + 1..].iter().map_while(item).collect()
    } else {
        let listed = written.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
        listed.map_or_else(|| vec![written.clone()], |list| list.split(',').map(word).collect())
    };
    let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// A scalar without its comment and quotes.
fn word(written: &str) -> String {
    let plain = written.split(" #").next().unwrap_or_default().trim();
    let quoted = |quote: char| plain.strip_prefix(quote)?.strip_suffix(quote);
    quoted('"').or_else(|| quoted('\'')).unwrap_or(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_header_of_a_card_states_the_licence() {
        for (header, licence) in [
            ("license: mit", Some("mit")),
            ("language: en\nlicense: \"apache-2.0\" # free", Some("apache-2.0")),
            ("license: other\nlicense_name: llama3", Some("llama3")),
            ("license: other", Some("other")),
            ("license: mit\nlicense_name: mine", Some("mit")),
            ("license:\n- mit\n- cc-by-4.0\ntags: x", Some("mit, cc-by-4.0")),
            ("license: [mit, 'cc0-1.0']", Some("mit, cc0-1.0")),
            ("license:\ntags:\n- mit", None),
            ("  license: mit", None),
            ("licenses: mit", None),
        ] {
            assert_eq!(
                stated(&format!("---\n{header}\n---\n# license: no\n")).as_deref(),
                licence,
                "{header}"
            );
        }
        assert_eq!(stated("---\r\nlicense: mit\r\n---\r\n").as_deref(), Some("mit"));
        assert_eq!(stated("# A model\nlicense: mit\n"), None);
        assert_eq!(stated("---\ntags: x\n---\nlicense: mit\n"), None);
        assert_eq!(stated(""), None);
        assert_eq!(stated(&format!("---\nlicense: {}\n", "x".repeat(1000))).unwrap().chars().count(), 81);
    }

    #[cfg(unix)]
    #[test]
    fn a_card_that_may_not_be_read_states_none() {
        let dir = tempfile::tempdir().unwrap();
        let (model, card) = (dir.path().join("model"), dir.path().join("model/README.md"));
        fs::create_dir(&model).unwrap();
        let stated = || licence(&ModelFolder::open(&model).unwrap());
        let text = "---\nlicense: mit\n---\n";
        assert_eq!(stated(), None);
        fs::write(&card, text).unwrap();
        assert_eq!(stated().as_deref(), Some("mit"));
        fs::write(&card, format!("{text}{}", " ".repeat(CARD_BYTES_MAX as usize))).unwrap();
        assert_eq!(stated(), None, "larger than any card");
        fs::remove_file(&card).unwrap();
        fs::write(dir.path().join("secret"), text).unwrap();
        std::os::unix::fs::symlink("../secret", &card).unwrap();
        assert_eq!(stated(), None, "outside of the model");
    }
}
