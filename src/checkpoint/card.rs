//! The model card, `README.md`: what was merged, how, and the config to do it again.

use indexmap::IndexSet;
use serde_json::Value;

use crate::text::escaped;

/// What the model card says.
#[derive(Debug, Clone, Copy, Default)]
pub struct ModelCard<'a> {
    /// The name of the output.
    pub title: &'a str,
    /// The merge method, as in the config.
    pub method: &'a str,
    /// A link to the paper that describes it.
    pub paper: Option<&'a str>,
    /// All the models.
    pub models: &'a [CardModel],
    /// Which of them is the base.
    pub base: Option<usize>,
    /// Whether the base is one of the models merged, or only what the others are compared with.
    pub base_is_merged: bool,
    /// The version of mergeforge.
    pub version: &'a str,
    /// The seed of random masks.
    pub seed: u64,
    /// Whether the output has no config.json, so that nothing says which library it is for.
    pub is_bare: bool,
    /// The config, as written.
    pub yaml: &'a str,
    /// The same merge as a config of mergekit's `linear`, where the method is none of mergekit's.
    pub linear: Option<&'a str>,
}

/// A model on the card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardModel {
    /// As it is called.
    pub name: String,
    /// `org/name`, where it comes from the Hub.
    pub hub: Option<String>,
    /// The commit, where the config chooses a revision.
    pub commit: Option<String>,
    /// The licence that its own card states.
    pub licence: Option<String>,
    /// Whether it is the result of another document of the config, which nobody can look up and which states no licence.
    pub is_merged: bool,
    /// The adapter that is added to it.
    pub adapter: Option<Box<Self>>,
}

impl CardModel {
    /// The model, and its adapter: what can be looked up, and has a licence.
    fn parts(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.adapter.as_deref())
    }
}

/// The text of a card.
pub fn model_card(card: &ModelCard<'_>) -> String {
    let title = heading(card.title);
    let method = match card.paper {
        Some(paper) => format!("{} ([paper]({}))", code(card.method), one_line(paper)),
        None => code(card.method),
    };
    let base =
        card.base.map_or(String::new(), |base| format!("Base model: {}\n\n", linked(&card.models[base])));
    let is_merged = |place: &usize| card.base_is_merged || Some(*place) != card.base;
    let merged = (0..card.models.len()).filter(is_merged).map(|place| linked(&card.models[place]));
    let models = list(merged);
    let licences = licences(card.models);
    let (version, seed, yaml) = (card.version, card.seed, fenced(card.yaml));
    let linear = card.linear.map_or(String::new(), |linear| {
        let config = fenced(linear);
        format!("\nIts weights written out, as a config of `linear`, which mergekit has too:\n\n{config}\n")
    });
    format!(
        "{}\
# {title}

This model was put together from the weights of other models, without training. It was written by
mergeforge from a mergekit config.

## How

Method: {method}

{base}Merged models:

{models}

{licences}## Config

Running mergeforge {version} on this config with `--random-seed {seed}` and the same inputs gives the
same weights, byte for byte.

{yaml}
{linear}",
        front_matter(card)
    )
}

/// A config as a block of code.
fn fenced(yaml: &str) -> String {
    let fence = "`".repeat(longest_run_of_backticks(yaml).max(2) + 1);
    format!("{fence}yaml\n{}\n{fence}", yaml.trim_end())
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.map(|item| format!("- {item}")).collect::<Vec<_>>().join("\n")
}

/// The header that the Hub reads. A repository is named once, whichever of its revisions were merged.
fn front_matter(card: &ModelCard<'_>) -> String {
    let mut text = String::from("---\n");
    let repositories: IndexSet<&str> =
        card.models.iter().flat_map(CardModel::parts).filter_map(|model| model.hub.as_deref()).collect();
    if !repositories.is_empty() {
        text.push_str("base_model:\n");
        // A JSON string is a YAML string, whatever it holds.
        text.extend(repositories.iter().map(|model| format!("- {}\n", Value::from(*model))));
        text.push_str("base_model_relation: merge\n");
    }
    text.push_str(if card.is_bare { "" } else { "library_name: transformers\n" });
    text.push_str("tags:\n- mergeforge\n- mergekit\n- merge\n---\n\n");
    text
}

/// A model's name, and where it can be looked up, with its adapter.
fn linked(model: &CardModel) -> String {
    model.parts().map(link).collect::<Vec<_>>().join(" with the adapter ")
}

fn link(model: &CardModel) -> String {
    let name = code(&model.name);
    let plain =
        |hub: &&String| hub.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    match (model.hub.as_ref().filter(plain), &model.commit) {
        (Some(hub), Some(commit)) => format!("[{name}](https://huggingface.co/{hub}/tree/{commit})"),
        (Some(hub), None) => format!("[{name}](https://huggingface.co/{hub})"),
        (None, _) if model.is_merged => format!("{name}, merged on the way"),
        (None, _) => name,
    }
}

/// What each model's licence is, if they are not all the same.
fn licences(models: &[CardModel]) -> String {
    // Models of one base share it.
    let parts = models.iter().flat_map(CardModel::parts).filter(|part| !part.is_merged);
    let parts: IndexSet<(&str, Option<&str>)> =
        parts.map(|part| (&*part.name, part.licence.as_deref())).collect();
    let different: IndexSet<String> =
        parts.iter().filter_map(|(_, licence)| licence.map(str::to_lowercase)).collect();
    if different.len() < 2 {
        return String::new();
    }
    let of = |(name, licence): (&str, Option<&str>)| {
        format!("{}: {}", code(name), licence.map_or("not stated".into(), code))
    };
    format!(
        "## Licences

The models come with different licences. Whoever uses or publishes this model has to keep to all of them:

{}

",
        list(parts.into_iter().map(of))
    )
}

/// Inline code that may hold backticks itself.
fn code(text: &str) -> String {
    let text = one_line(text);
    match longest_run_of_backticks(&text) {
        0 => format!("`{text}`"),
        run => {
            let fence = "`".repeat(run + 1);
            format!("{fence} {text} {fence}")
        }
    }
}

/// Text that is no markup in a heading.
fn heading(text: &str) -> String {
    let mut out = String::new();
    for c in one_line(text).chars() {
        if "\\`*_{}[]<>#|&!~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn one_line(text: &str) -> String {
    escaped(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn longest_run_of_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, hub: Option<&str>, licence: Option<&str>) -> CardModel {
        let text = |text: Option<&str>| text.map(str::to_owned);
        CardModel { name: name.into(), hub: text(hub), licence: text(licence), ..CardModel::default() }
    }

    #[test]
    fn adapters_stand_beside_their_models() {
        let base = model("org/base", Some("org/base"), Some("mit"));
        let adapted = CardModel {
            adapter: Some(Box::new(model("me/lora", Some("me/lora"), Some("gpl-3.0")))),
            ..base.clone()
        };
        let card = model_card(&ModelCard { title: "x", models: &[base, adapted], ..ModelCard::default() });
        let line = "- [`org/base`](https://huggingface.co/org/base) with the adapter [`me/lora`](https://huggingface.co/me/lora)\n";
        assert!(card.contains(line), "{card}");
        assert!(card.contains("base_model:\n- \"org/base\"\n- \"me/lora\"\n"), "{card}");
        assert!(card.contains("- `org/base`: `mit`\n- `me/lora`: `gpl-3.0`\n"), "{card}");
        assert_eq!(card.matches("`mit`").count(), 1);
    }

    #[test]
    fn a_card_tells_what_was_merged() {
        let models = [
            model("org/a", Some("org/a"), None),
            model("./local", None, None),
            model("org/base", None, None),
        ];
        let card = ModelCard {
            version: "1.2.3",
            seed: 7,
            title: "my\nmerge",
            method: "ties",
            paper: Some("https://arxiv.org/abs/2306.01708"),
            base: Some(2),
            base_is_merged: false,
            models: &models,
            is_bare: false,
            yaml: "a: |\n  ````\n\n",
            linear: None,
        };
        let text = model_card(&card);
        let header =
            "---\nbase_model:\n- \"org/a\"\nbase_model_relation: merge\nlibrary_name: transformers\n";
        assert!(text.starts_with(header), "{text}");
        assert!(text.contains("# my merge\n"));
        assert!(text.contains("`--random-seed 7`"));
        assert!(text.contains("Method: `ties` ([paper](https://arxiv.org/abs/2306.01708))\n"));
        let listed = "Merged models:\n\n- [`org/a`](https://huggingface.co/org/a)\n- `./local`\n";
        assert!(text.contains(&format!("Base model: `org/base`\n\n{listed}\n## Config")), "{text}");
        assert!(text.ends_with("`````yaml\na: |\n  ````\n`````\n"));
        let text = model_card(&ModelCard { linear: Some("models: []\n"), ..card });
        let both = "`````\n\nIts weights written out, as a config of `linear`, which mergekit has too:\n\n```yaml\nmodels: []\n```\n";
        assert!(text.ends_with(both), "{text}");
        let text = model_card(&ModelCard { base_is_merged: true, ..card });
        assert!(text.contains(&format!("{listed}- `org/base`\n")), "{text}");
    }

    #[test]
    fn a_card_without_hub_models_has_a_valid_header() {
        let card = model_card(&ModelCard { title: "t", method: "we`ird", ..ModelCard::default() });
        assert!(card.starts_with("---\nlibrary_name: transformers\ntags:\n"));
        assert!(card.contains("Method: `` we`ird ``\n"));
    }

    #[test]
    fn revisions_of_a_repository_are_one_entry_with_links_of_their_own() {
        let commit = Some("89abcdef".into());
        let models = [
            model("org/x", Some("org/x"), None),
            CardModel { commit, ..model("org/x@v1", Some("org/x"), None) },
            model("odd", Some("org/a) b"), None),
        ];
        let text = model_card(&ModelCard { models: &models, base_is_merged: true, ..ModelCard::default() });
        assert!(
            text.starts_with("---\nbase_model:\n- \"org/x\"\n- \"org/a) b\"\nbase_model_relation"),
            "{text}"
        );
        let listed = "- [`org/x`](https://huggingface.co/org/x)
- [`org/x@v1`](https://huggingface.co/org/x/tree/89abcdef)
- `odd`
";
        assert!(text.contains(listed), "{text}");
    }

    #[test]
    fn different_licences_are_listed() {
        let card = |licences: &[Option<&str>]| {
            let models: Vec<CardModel> = licences.iter().map(|licence| model("m", None, *licence)).collect();
            model_card(&ModelCard { models: &models, base_is_merged: true, ..ModelCard::default() })
        };
        for same in [&[None, None][..], &[Some("mit"), Some("MIT"), None]] {
            assert!(!card(same).contains("icence"), "{same:?}");
        }
        let text = card(&[Some("mit"), None, Some("llama3`")]);
        assert!(text.contains("## Licences\n"));
        assert!(
            text.contains("\n\n- `m`: `mit`\n- `m`: not stated\n- `m`: `` llama3` ``\n\n## Config"),
            "{text}"
        );
    }
}
