//! Chat templates, rendered: a question as the model was taught to see it.

use std::io::{self, Write};

use minijinja::{Environment, ErrorKind, context};

use crate::checkpoint::Source;
use crate::error::{Error, Result};
use crate::limits::{TEMPLATE_BYTES_MAX, TEMPLATE_STEPS_MAX, TURN_BYTES_MAX};
use crate::text::{bytes, one_line};
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
        if template.len() > TEMPLATE_BYTES_MAX {
            let (has, most) = (bytes(template.len() as u64), bytes(TEMPLATE_BYTES_MAX as u64));
            return Err(unusable(&model, &format!("it has {has}, and {most} are the most that is rendered")));
        }
        let [begin, end] = runner.framing().map(|token| token.unwrap_or_default().to_owned());
        Ok(Self { model, template, begin, end })
    }

    /// A user's turn, up to where the assistant's begins.
    ///
    /// # Errors
    /// The template cannot be rendered.
    pub fn turn(&self, content: &str) -> Result<String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(TEMPLATE_STEPS_MAX));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        // The same day every time: a perplexity that changes overnight helps nobody.
        environment.add_function("strftime_now", |_: String| "26 Jul 2024".to_owned());
        let mut turn = Turn(Vec::new());
        let rendered = (|| {
            environment.add_template("chat", &self.template)?;
            let given = context! {
                messages => [context! { role => "user", content => content.trim() }],
                add_generation_prompt => true,
                bos_token => &self.begin,
                eos_token => &self.end,
            };
            environment.get_template("chat")?.render_captured_to(given, &mut turn).map(drop)
        })();
        rendered.map_err(|cause: minijinja::Error| match cause.kind() {
            ErrorKind::OutOfFuel => {
                unusable(&self.model, &format!("it takes more than {TEMPLATE_STEPS_MAX} steps"))
            }
            ErrorKind::WriteFailure => {
                let most = bytes(TURN_BYTES_MAX as u64);
                unusable(&self.model, &format!("it makes more than {most} of a question"))
            }
            _ => unusable(&self.model, &cause.to_string()),
        })?;
        Ok(String::from_utf8(turn.0).expect("templates and contexts are texts"))
    }
}

fn unusable(model: &str, why: &str) -> Error {
    Error::config(format!("the chat template of {model} cannot be rendered: {}", one_line(why)))
        .hint("leave out --chat, or give --qa-prompt and --abstract-prompt as the template has them")
}

/// What a template makes, up to a limit.
struct Turn(Vec<u8>);

impl Write for Turn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TURN_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(template: &str) -> Result<String> {
        let [begin, end] = ["<s>", "</s>"].map(String::from);
        Chat { model: "m".into(), template: template.into(), begin, end }.turn(" Why? ")
    }

    #[test]
    fn a_template_makes_a_turn_and_reaches_nothing_else() {
        let written = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}";
        assert_eq!(turn(written).unwrap(), "<s>[user] Why?");
        for (template, why) in [
            ("{% include '/etc/passwd' %}", "template not found"),
            ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "undefined value"),
            ("{{ open('/etc/passwd').read() }}", "open is unknown"),
            ("{{ raise_exception('a\u{1b}[2J\nb') }}", "a\\u{1b}[2J\\nb"),
            ("{% for {{", "unexpected"),
        ] {
            let refused = turn(template).unwrap_err();
            assert!(refused.message.contains(why) && refused.hint.is_some(), "{template}: {refused}");
        }
    }

    #[test]
    fn a_template_without_end_is_refused() {
        const LOOPS: &str = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        const CALLS: &str = "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}";
        for (template, why) in [
            (LOOPS, "it takes more than 262144 steps"),
            (CALLS, "recursion limit"),
            ("{{ 'x' * 20000000 }}", "it makes more than 16.8 MB of a question"),
            ("{{ 'x' * 200000000 }}", "repeated string is too large"),
        ] {
            let refused = turn(template).unwrap_err();
            assert!(refused.message.contains(why), "{template}: {refused}");
        }
    }
}
