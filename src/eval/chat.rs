//! Chat templates, rendered: a question as the model was taught to see it.

use minijinja::{Environment, ErrorKind, context};

use crate::checkpoint::Source;
use crate::error::{Error, Result};
use crate::text::one_line;
use crate::tokenizer::{Runner, template};

/// A model's template.
#[derive(Debug)]
pub struct Chat {
    model: String,
    template: String,
    begin: String,
    end: String,
}

impl Chat {
    /// That of a model.
    ///
    /// # Errors
    /// It has none.
    pub fn of(source: &Source, runner: &Runner) -> Result<Self> {
        let model = source.name.clone();
        let Some(template) = template::of_model(&source.folder)? else {
            return Err(Error::config(format!("{model} has no chat template"))
                .hint("leave out --chat: all models then get the same plain prompt"));
        };
        let [begin, end] = runner.framing().map(|token| token.unwrap_or_default().to_owned());
        Ok(Self { model, template, begin, end })
    }

    /// A user's turn, up to where the assistant's begins.
    ///
    /// # Errors
    /// The template cannot be rendered.
    pub fn turn(&self, content: &str) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // The same day every time: a perplexity that changes overnight helps nobody.
        environment.add_function("strftime_now", |_: String| "26 Jul 2024".to_owned());
        let rendered = (|| {
            environment.add_template("chat", &self.template)?;
            environment.get_template("chat")?.render(context! {
                messages => [context! { role => "user", content => content.trim() }],
                add_generation_prompt => true,
                bos_token => &self.begin,
                eos_token => &self.end,
            })
        })();
        rendered.map_err(|cause: minijinja::Error| {
            let why = one_line(&cause.to_string());
            Error::config(format!("the chat template of {} cannot be rendered: {why}", self.model))
                .hint("leave out --chat, or give --qa-prompt and --abstract-prompt as the template has them")
        })
    }
}
