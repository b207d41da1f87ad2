//! Patterns among the models of a config → the models that they stand for.

use crate::checkpoint::globs::{Found, find};
use crate::config::{Config, ElementFiles, Inputs, ListedModel, Located, ModelRef};
use crate::error::Error;

use crate::limits::MODELS_MAX;

/// A config with a model for every folder that its patterns match, in their places in the list; and what should be said about
/// folders that match and are no checkpoints. A pattern that matches no checkpoint, or too many, is among the problems of the config.
pub fn with_found_models(mut config: Config) -> (Config, Vec<String>) {
    let globs = std::mem::take(&mut config.globs);
    let mut notes = Vec::new();
    let Inputs::Models(listed) = &mut config.inputs else { return (config, notes) };
    let mut models = Vec::with_capacity(listed.len());
    let mut listed = std::mem::take(listed).into_iter();
    let mut taken = 0;
    for glob in globs {
        models.extend(listed.by_ref().take(glob.before - taken));
        taken = glob.before;
        let Located { value: pattern, at } = glob.pattern;
        let found = find(&pattern).and_then(|found| match found.checkpoints.len() {
            count if models.len() + count > MODELS_MAX => {
                let message = format!(
                    "{pattern:?} matches {count} folders, and a merge has at most {MODELS_MAX} models"
                );
                Err(Error::config(message).hint("merge some of them first, and then the results"))
            }
            _ => Ok(found),
        });
        let Found { checkpoints, others } = match found {
            Ok(found) => found,
            Err(error) => {
                let problem = Error { hint: error.hint, ..config.error_at(at, error.message) };
                config.problems.push(problem);
                config.is_whole = false;
                continue;
            }
        };
        if let Some(first) = others.first() {
            let more =
                if others.len() > 1 { format!(" and {} more", others.len() - 1) } else { String::new() };
            notes.push(format!("{first}{more} matches {pattern:?}, but is no checkpoint: it is left out"));
        }
        models.extend(checkpoints.into_iter().map(|path| ListedModel {
            model: Located { value: ModelRef { path, revision: None, lora: None }, at },
            files: ElementFiles::default(),
            parameters: glob.parameters.clone(),
            beside: Vec::new(),
        }));
    }
    models.extend(listed);
    config.inputs = Inputs::Models(models);
    (config, notes)
}
