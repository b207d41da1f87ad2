//! The models that a config refers to, and what is wrong with them before any is opened.

use std::collections::HashSet;

use indexmap::IndexMap;

use super::problems::Problems;
use super::{Base, Method, chat_template, elements, method_of, parameters};
use crate::config::{AdapterRef, Config, Inputs, Located, ModelRef, Position, Tokenizer, TokenizerSource};
use crate::error::{Error, Result, did_you_mean};
use crate::limits::MODELS_MAX;
use crate::method;

/// The models a config refers to, each once, in the order of appearance; a `base_model` not listed comes last.
pub fn references(config: &Config) -> Vec<Located<ModelRef>> {
    let (entries, slices) = (config.entries(), config.inputs.slices());
    let listed = entries.iter().map(|entry| entry.model);
    let bases = slices.iter().filter_map(|slice| slice.base_model.as_ref()).chain(&config.base_model);
    let mut seen = HashSet::new();
    listed.chain(bases).filter(|model| seen.insert(&model.value)).cloned().collect()
}

/// The model that is written in this place.
pub fn written_at(config: &Config, at: Position) -> Option<&ModelRef> {
    let listed = config.entries().into_iter().map(|entry| entry.model);
    let bases = config.inputs.slices().into_iter().filter_map(|slice| slice.base_model.as_ref());
    let model = listed.chain(bases).chain(&config.base_model).find(|model| model.at == at)?;
    Some(&model.value)
}

/// Something that a config names and that is opened for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A model's folder: of a model with an adapter that of its base.
    Model(ModelRef),
    /// The folder of an adapter.
    Adapter(AdapterRef),
    /// A file, or a folder, of tensors that say something of a model's.
    Tensors(String),
}

/// All that is to be opened for a config, each once, and where it is named first: the sources of its plan.
pub fn places(config: &Config) -> IndexMap<Place, Position> {
    let mut places = IndexMap::new();
    for model in references(config) {
        places.entry(Place::Model(model.value.base())).or_insert(model.at);
        if let Some(lora) = model.value.lora {
            places.entry(Place::Adapter(lora)).or_insert(model.at);
        }
    }
    if let Some(Tokenizer { at, source: TokenizerSource::Model(model), .. }) = &config.tokenizer {
        places.entry(Place::Model(model.base())).or_insert(*at);
    }
    for file in elements::element_files(config) {
        places.entry(Place::Tensors(file.value)).or_insert(file.at);
    }
    places
}

/// Refuses what names more models, or files for them, than could be opened.
///
/// # Errors
/// There are too many, at line and column.
pub fn check_counts(config: &Config) -> Result<()> {
    too_many(config).or_else(|| elements::too_many(config)).map_or(Ok(()), Err)
}

/// Refuses models that somebody has in memory, by these names, for a config that does not name one of them. What a config names that
/// could not be read whole is not known.
///
/// # Errors
/// Kind `Config`: one is named nowhere.
pub fn check_given<'a>(config: &Config, mut given: impl Iterator<Item = &'a str>) -> Result<()> {
    if !config.is_whole {
        return Ok(());
    }
    let named: Vec<String> =
        references(config).into_iter().map(|model| model.value.base().to_string()).collect();
    let Some(unnamed) = given.find(|given| !named.iter().any(|named| named == given)) else { return Ok(()) };
    let refusal = format!("tensors are given of a model {unnamed:?}, which the config does not name");
    Err(Error::config(refusal).hint(match did_you_mean(unnamed, named.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("the config names {}", named.join(", ")),
    }))
}

/// All that is wrong with a config and can be known without opening any model: what could not be read of it, a method that there is
/// not, a model that is listed twice, and so on; each at its line and column. What seems to be missing in a config that could not be
/// read whole is not among it.
pub fn problems_of(config: &Config) -> Vec<Error> {
    let mut problems = Problems::default();
    match method_of(config) {
        Ok(method) => {
            if config.is_whole && config.globs.is_empty() {
                check_base(config, method, &mut problems);
                check_counts_of(config, method, &config.inputs, None, &mut problems);
            }
            check_listed(config, method, &config.inputs, &mut problems);
            elements::check(config, method, &mut problems);
            parameters::check(config, method, &mut problems);
        }
        Err(problem) => {
            problems.add(problem);
            // Values are wrong by whatever the method is called.
            if let Some(meant) = method::meant(&config.merge_method.value) {
                parameters::check_values(config, meant, &mut problems);
            }
        }
    }
    chat_template::check(config).into_iter().for_each(|problem| problems.add(problem));
    config.problems.iter().cloned().chain(problems.take()).collect()
}

/// Refuses a config of which anything of that is wrong, or that names too many models.
///
/// # Errors
/// All of it.
pub fn check(config: &Config) -> Result<()> {
    check_counts(config)?;
    match problems_of(config) {
        problems if problems.is_empty() => Ok(()),
        problems => Err(Error::all(problems)),
    }
}

/// Whether there is a base where the method needs one.
fn check_base(config: &Config, method: &Method, problems: &mut Problems) {
    if method.base != Base::Required || config.base_model.is_some() || every_slice_has_a_base(&config.inputs)
    {
        return;
    }
    let problem = config.error_at(config.merge_method.at, format!("{} needs a base_model", method.name));
    problems.add(problem.hint(config.slip_of("base_model").unwrap_or_else(|| base_to_add(method).into())));
}

/// Refuses models that are listed twice, and a base without a place in a list where places count.
fn check_listed(config: &Config, method: &Method, inputs: &Inputs, problems: &mut Problems) {
    match inputs {
        Inputs::Models(models) => {
            let mut listed = HashSet::new();
            let twice = models.iter().map(|input| &input.model).filter(|model| !listed.insert(&model.value));
            for model in twice {
                let problem = config.error_at(model.at, format!("{} is listed twice", model.value));
                problems.add(problem.hint("list each model once"));
            }
            let unlisted = config.base_model.as_ref().filter(|base| !listed.contains(&base.value));
            if let Some(base) = unlisted.filter(|_| method.weighs_by_position() && config.is_whole) {
                let message = format!(
                    "{} weighs models by their places in the list, and {} has none",
                    method.name, base.value
                );
                let problem = config.error_at(base.at, message);
                problems.add(problem.hint("list it under `models:`, or remove `base_model:`"));
            }
        }
        Inputs::Slices(_) => {}
        Inputs::Modules(modules) => {
            modules.iter().for_each(|module| check_listed(config, method, &module.inputs, problems));
        }
    }
}

/// Whether the method takes so many models, of a config or of one of its modules, by the place of that.
fn check_counts_of(
    config: &Config,
    method: &Method,
    inputs: &Inputs,
    module: Option<Position>,
    problems: &mut Problems,
) {
    match inputs {
        Inputs::Models(models) => {
            let base = config.base_model.as_ref();
            let is_listed =
                |base: &Located<ModelRef>| models.iter().any(|input| input.model.value == base.value);
            let unlisted = base.is_some_and(|base| !is_listed(base));
            // A module that is copied is copied from one model, whichever gives the rest.
            let counted = unlisted && (module.is_none() || *method.models.end() > 1);
            let count = models.len() + usize::from(counted);
            let count = count - usize::from(method.base == Base::Optional && base.is_some());
            let wrong =
                wrong_count(config, method, count, models.len(), module.unwrap_or(config.merge_method.at));
            wrong.into_iter().for_each(|wrong| problems.add(wrong));
        }
        Inputs::Slices(slices) => {
            let wrong = |slice: &crate::config::Slice| {
                let base = slice.base_model.as_ref().or(config.base_model.as_ref());
                let is_base = |source: &&crate::config::SliceSource| {
                    base.is_some_and(|base| base.value == source.model.value)
                };
                let bases = slice.sources.iter().filter(is_base).count();
                let count = slice.sources.len() - if method.base == Base::Optional { bases } else { 0 };
                wrong_count(config, method, count, count, slice.at)
            };
            slices.iter().filter_map(wrong).for_each(|wrong| problems.add(wrong));
        }
        Inputs::Modules(modules) => {
            for module in modules {
                check_counts_of(config, method, &module.inputs, Some(module.at), problems);
            }
        }
    }
}

fn every_slice_has_a_base(inputs: &Inputs) -> bool {
    match inputs {
        Inputs::Models(_) => false,
        Inputs::Slices(slices) => slices.iter().all(|slice| slice.base_model.is_some()),
        Inputs::Modules(modules) => modules.iter().all(|module| every_slice_has_a_base(&module.inputs)),
    }
}

/// Which model to name as the base.
fn base_to_add(method: &Method) -> &'static str {
    if method.name == "nearswap" {
        "add `base_model:`, the model that is drawn towards the other"
    } else if method.parameters.iter().any(|parameter| parameter.name == "t") {
        "add `base_model:` with one of the two models: `t: 0` gives that one, `t: 1` the other"
    } else {
        "add `base_model:`, the checkpoint that the others were trained from"
    }
}

/// More or fewer models than the method takes, so many of them listed.
fn wrong_count(config: &Config, method: &Method, count: usize, listed: usize, at: Position) -> Option<Error> {
    let (low, high) = (*method.models.start(), *method.models.end());
    if (low..=high).contains(&count) {
        return None;
    }
    let takes = match (low, high) {
        (1, 1) => "exactly 1 model".into(),
        (low, high) if low == high => format!("exactly {low} models"),
        (low, usize::MAX) => format!("at least {low} models"),
        (low, high) => format!("{low} to {high} models"),
    };
    let with_base = match method.base {
        Base::Required => " (the base included)",
        Base::Optional => " beside the base",
        Base::Ignored => "",
    };
    let problem = config.error_at(at, format!("{} merges {takes}{with_base}, not {count}", method.name));
    let unlisted_is_too_many = listed < count && count == high + 1;
    Some(problem.hint(match (high, method.base) {
        (_, Base::Optional) if count < low => "list more models: base_model is none of them",
        _ if count < low => "list more models: a base_model that is not listed counts as one",
        (_, Base::Ignored) if unlisted_is_too_many => {
            "a base_model that is not listed counts as one more model: remove `base_model:`"
        }
        (1, _) => "to stack layers of several models, give them `slices:` of their own",
        (_, Base::Required) if unlisted_is_too_many => {
            "a base_model that is not listed counts as one more: name one of the models listed, or list one less"
        }
        (2, _) => "merge two of them first, and then the result with the next",
        _ => "merge some of them first, and then the results",
    }))
}

/// More models than any merge has.
fn too_many(config: &Config) -> Option<Error> {
    let models = references(config);
    let first_beyond = models.get(MODELS_MAX)?;
    let message = format!("a merge has at most {MODELS_MAX} models, and this config names {}", models.len());
    let hint = "merge some of them first, and then the results";
    Some(config.error_at(first_beyond.at, message).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Remote;
    use crate::plan::Choices;

    /// What a config whose models are nowhere is refused for.
    fn refusal(config: &str) -> Error {
        let config = Config::parse("c.yaml", config).unwrap();
        crate::prepare_config(
            config,
            &Choices { seed: 0, shard_bytes: Some(1), remote: Remote::Offline, ..Choices::USUAL },
        )
        .unwrap_err()
    }

    fn refused(config: &str) -> String {
        refusal(config).message
    }

    fn many(count: usize) -> String {
        let models: Vec<String> = (0..count).map(|i| format!("- model: no/such/{i}\n")).collect();
        format!("merge_method: linear\nmodels:\n{}", models.concat())
    }

    #[test]
    fn models_are_counted_before_any_is_opened() {
        let three =
            "merge_method: slerp\nmodels: [{model: x/a}, {model: x/b}, {model: x/c}]\nbase_model: x/a";
        assert_eq!(refused(three), "c.yaml:1:15: slerp merges exactly 2 models (the base included), not 3");
        let slice = "merge_method: passthrough\nslices:\n- sources: [{model: x/a}, {model: x/b}]";
        assert_eq!(refused(slice), "c.yaml:3:3: passthrough merges exactly 1 model, not 2");
        let twice = "merge_method: karcher\nmodels: [{model: x/a}, {model: x/a}]";
        let all = refusal(twice).one_by_one();
        assert_eq!(all[1].message, "c.yaml:2:32: x/a is listed twice");
        assert!(all[0].message.starts_with("c.yaml:2:18: model \"x/a\" not found"), "{all:?}");
        let message = "c.yaml:1027:10: a merge has at most 1024 models, and this config names 39000";
        assert_eq!(refused(&many(39_000)), message);
        assert!(refused(&many(2)).contains("no/such/0"), "so few are looked for");
    }

    #[test]
    fn hints_fit_the_method_and_the_models_listed() {
        let hint = |method: &str, models: &[&str], base: &str| {
            let models: Vec<String> = models.iter().map(|model| format!("{{model: {model}}}")).collect();
            let base = if base.is_empty() { String::new() } else { format!("\nbase_model: {base}") };
            refusal(&format!("merge_method: {method}\nmodels: [{}]{base}", models.join(", "))).hint.unwrap()
        };
        for (method, models, base, says) in [
            ("slerp", &["x/a", "x/b"][..], "", "with one of the two models: `t: 0` gives that one"),
            ("ties", &["x/a", "x/b"], "", "the checkpoint that the others were trained from"),
            ("slerp", &["x/a", "x/b"], "x/c", "name one of the models listed, or list one less"),
            ("slerp", &["x/a", "x/b", "x/c"], "x/a", "merge two of them first, and then the result"),
            ("slerp", &["x/a"], "x/a", "list more models"),
            ("passthrough", &["x/a"], "x/b", "remove `base_model:`"),
            ("passthrough", &["x/a", "x/b"], "", "give them `slices:` of their own"),
            ("passthrough", &["x/a", "x/b"], "x/a", "give them `slices:` of their own"),
        ] {
            let hint = hint(method, models, base);
            assert!(hint.contains(says), "{method} of {models:?} and {base}: {hint}");
        }
    }

    #[test]
    fn thousands_of_models_are_reported_apart_at_once() {
        let config = Config::parse("c.yaml", &many(39_000)).unwrap();
        let begun = std::time::Instant::now();
        assert_eq!([0; 20].map(|_| references(&config).len()), [39_000; 20]);
        assert!(begun.elapsed() < std::time::Duration::from_secs(10), "it took {:?}", begun.elapsed());
    }
}
