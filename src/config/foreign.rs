//! What is no config at all, though perhaps it has one in it: model cards, web pages, files in other formats. A text that is YAML with
//! the keys of a config is none of these.

use super::Position;
use super::broken::Mistake;

/// Keys of the front matter of a model card.
const OF_CARDS: &[&str] =
    &["license", "library_name", "tags", "language", "pipeline_tag", "datasets", "model_name"];

/// What a text is, if it is known and no config.
pub fn explain(source: &str) -> Option<Mistake> {
    let mistake = |line: usize, message: &str, hint: &str| {
        Some(Mistake { at: Position { line, column: 1 }, message: message.into(), hint: hint.into() })
    };
    let first = source.lines().map(str::trim).find(|line| !line.is_empty())?.to_lowercase();
    if ["<!doctype", "<html", "<?xml"].iter().any(|begins| first.starts_with(begins)) {
        let hint = "download the file itself: on the Hub its address has `/resolve/` in place of `/blob/`";
        return mistake(1, "this is a web page", hint);
    }
    if let Some(line) = source.lines().position(|line| line.starts_with("<<<<<<< ")) {
        let hint =
            "keep one of the two versions, and remove the lines that begin with <<<<<<<, ======= and >>>>>>>";
        return mistake(line + 1, "git left a conflict here", hint);
    }
    if let Some(line) = fenced_config(source) {
        if source.lines().take(line - 1).all(|line| line.trim().is_empty()) {
            return mistake(
                line,
                "this is the frame of a code block, not YAML",
                "remove the lines that begin with ```",
            );
        }
        let hint = "give mergekit_config.yml beside it, or copy the block into a file";
        return mistake(
            line,
            "this is a model card, and its config is the block of code that begins here",
            hint,
        );
    }
    let has = |key: &str| source.lines().any(|line| is_key(line, key));
    if source.starts_with("---")
        && !has("merge_method")
        && !has("experts")
        && OF_CARDS.iter().any(|key| has(key))
    {
        let hint = "give mergekit_config.yml, which mergekit puts beside it";
        return mistake(1, "this is a model card without a config in it", hint);
    }
    if !has("merge_method") && source.lines().any(|line| line.trim_start().starts_with("merge_method =")) {
        let hint = "configs are YAML: `merge_method: linear`, and `models:` with a list of `- model: path`";
        return mistake(1, "this looks like TOML", hint);
    }
    None
}

/// The line at which a block of code begins that has a config in it, or is said to be YAML. Below a `merge_method:` it is a part of
/// some text in a config.
fn fenced_config(source: &str) -> Option<usize> {
    let fence = |line: &str| line.starts_with("```") || line.starts_with("~~~");
    let before_config = source.lines().enumerate().take_while(|(_, line)| !is_key(line, "merge_method"));
    let mut fences = before_config.filter(|(_, line)| fence(line));
    fences.find_map(|(number, line)| {
        let language = line.trim_start_matches(['`', '~']).trim().to_lowercase();
        let block = source.lines().skip(number + 1).take_while(|line| !fence(line));
        let is_it = match language.as_str() {
            "yaml" | "yml" => true,
            "" => block.clone().any(|line| is_key(line, "merge_method") || is_key(line, "experts")),
            _ => false,
        };
        (is_it && block.count() > 0).then_some(number + 1)
    })
}

/// Whether a line begins with this key, at the left, perhaps in quotes.
fn is_key(line: &str, key: &str) -> bool {
    let quotes = ['\'', '"'];
    let rest = line.trim_start_matches(quotes).strip_prefix(key);
    rest.is_some_and(|rest| rest.trim_start_matches(quotes).starts_with(':'))
}

#[cfg(test)]
mod tests {
    use crate::config::tests::assert_refused;

    #[test]
    fn what_is_no_config_is_named() {
        let front = "---\nlicense: mit\ntags:\n- merge\n---\n";
        let config = "merge_method: linear\nmodels:\n- model: a\n";
        for (source, at, message, hint) in [
            (
                format!("{front}# m\n\n```yaml\n{config}```\n"),
                "8:1",
                "this is a model card, and its config",
                "copy",
            ),
            (
                format!("# m: n\n\n```yml\n{config}```\n"),
                "3:1",
                "this is a model card, and its config",
                "copy",
            ),
            (
                format!("# m: n\n```sh\nls\n```\n\n```\n{config}```\n"),
                "6:1",
                "this is a model card, and",
                "copy",
            ),
            (
                format!("{front}# m\n\nA merge: of models.\n"),
                "1:1",
                "this is a model card without",
                "beside it",
            ),
            (
                format!("```yaml\n{config}```\n"),
                "1:1",
                "this is the frame of a code block",
                "remove the lines",
            ),
            ("\n<!DOCTYPE html>\n<html>\n".into(), "1:1", "this is a web page", "/resolve/"),
            (format!("{config}<<<<<<< HEAD\na: b\n=======\n"), "4:1", "git left a conflict here", "keep one"),
            ("merge_method = \"linear\"\n[[models]]\n".into(), "1:1", "this looks like TOML", "YAML"),
        ] {
            assert_refused(&source, &format!("c.yaml:{at}: {message}"), hint);
        }
    }

    #[test]
    fn a_config_may_have_keys_of_a_card() {
        let source = "---\nmerge_method: linear\nmodels:\n- model: a\ntags: [b]\n";
        assert_eq!(crate::config::tests::parse(source).merge_method.value, "linear");
        let models = "models:\n- model: a\n";
        for source in [
            format!("---\ntags: [b]\n'merge_method': linear\n{models}"),
            format!("merge_method: linear\n{models}chat_template: |\n  merge_method = 1\n"),
            format!("chat_template: \"a\n```yaml\nb: c\n```\n\"\nmerge_method: linear\n{models}"),
        ] {
            assert_eq!(crate::config::tests::parse(&source).merge_method.value, "linear", "{source}");
        }
        for broken in [
            format!("---\ntags: [b]\n'merge_method': linear\n{models}dtype: @c\n"),
            format!("merge_method: linear\n{models}chat_template: |\n  merge_method = 1\ndtype: @c\n"),
        ] {
            let said = crate::config::tests::refused(&broken).message;
            assert!(said.contains("a text cannot begin with"), "{said}");
        }
    }
}
