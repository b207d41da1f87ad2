//! How well models read texts: perplexity of texts, of answers to questions, and of abstracts, without another program.
//!
//! A [`Model`] is opened as a merge opens it. [`Texts`] are cut into [`Windows`] by its tokenizer. All windows go through the model
//! layer by layer, so that it is read once for as many tokens as fit in memory. What comes out is the negative log-likelihood of each
//! token that counts, in nats; a [`Score`] is made of them.

mod chat;
mod losses;
mod model;
mod score;
mod texts;
mod windows;

pub use chat::Chat;
pub use losses::{Listen, Losses, Plan, Running, losses, passes};
pub use model::{Model, Reader, fitting};
pub use score::{Mean, Score};
pub use texts::{Form, Prompt, Texts};
pub use windows::{Cut, Window, Windows};
