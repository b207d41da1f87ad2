//! The plan as data: what a merge reads, and what happens to every tensor. It prints, it counts bytes, and the stream obeys it.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::checkpoint::layout::StoredTensor;
use crate::checkpoint::{ConfigEdits, Layout, Revision, Source};
use crate::dtype::{Dtype, F64_BYTES, Float};
use crate::error::Error;
use crate::input::{self, At, Input};
use crate::kernel::{Job, SEGMENT_SPANS_MAX, SPANS_MAX, Widest, tiles};
use crate::method::{Method, Settings};
use crate::recipe::{Foreseen, Passes, Segments};
use crate::tokenizer::Counts;

/// Everything that a merge will do.
#[derive(Debug)]
pub struct Plan {
    /// The method that the config names; each merged tensor has its own.
    pub method: &'static Method,
    /// The seed of random masks.
    pub seed: u64,
    /// The models, in the order in which the config refers to them.
    pub models: Vec<PlannedModel>,
    /// Which of the sources are files that say something of models' elements.
    pub element_files: Vec<usize>,
    /// Which of them is the base, if the config names one.
    pub base: Option<usize>,
    /// Of a method that weighs models by their places in the list: the weight of each, where it is the same in all tensors.
    pub weights: Option<Vec<f64>>,
    /// Which of them gives config.json and the tokenizer.
    pub donor: usize,
    /// What is read: actions refer to it by number.
    pub inputs: Vec<Input>,
    /// What happens to every tensor of the output, in the order of writing.
    pub tensors: Vec<Tensor>,
    /// Where the output's tensors go.
    pub layout: Layout,
    /// What becomes of the tokenizer.
    pub tokenizer: TokenizerPlan,
    /// What else changes in config.json.
    pub config_edits: ConfigEdits,
    /// Input tensors that the config's layer ranges leave out.
    pub left_out: Vec<LeftOut>,
    /// What a user should know but need not change.
    pub notes: Vec<String>,
    /// What a user probably did not mean.
    pub warnings: Vec<Error>,
}

/// What becomes of the donor's tokenizer, and of the files beside the weights with it.
#[derive(Debug, Default)]
pub struct TokenizerPlan {
    /// The vocabulary of the output, where the config asks for one.
    pub vocabulary: Option<Vocabulary>,
    /// What changes among the files beside the weights.
    pub revision: Revision,
    /// The source that gives the tokenizer's files, where the donor does not.
    pub source: Option<usize>,
    /// The donor's config.json, if another vocabulary changes what it says of tokens.
    pub config_text: Option<String>,
    /// Where the chat template comes from, if the config asks for one and there is one.
    pub chat_template: Option<ChatTemplate>,
}

/// Where the output's chat template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatTemplate {
    /// It is that of a model.
    Model(String),
    /// It is one of those that the program has, by its name.
    Packaged(String),
    /// It stands in the config.
    Literal,
}

impl fmt::Display for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Model(model) => write!(f, "of {model}"),
            Self::Packaged(name) => write!(f, "packaged: {name}"),
            Self::Literal => f.write_str("of the config"),
        }
    }
}

/// A model of the merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedModel {
    /// As the config has it.
    pub name: String,
    /// The source whose folder it is.
    pub source: usize,
    /// The source of the adapter that is added to it.
    pub adapter: Option<usize>,
}

/// A vocabulary that all models are aligned with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// The model whose tokenizer it comes from.
    pub leader: String,
    /// How many tokens it has.
    pub tokens: usize,
    /// How many rows the output has for them.
    pub rows: usize,
    /// Tokens that the leading tokenizer has not, or had no row for.
    pub added: usize,
    /// Tokens of it that its model has no row for.
    pub removed: usize,
    /// Where the rows of each tensor over the vocabulary come from, in each model that has it.
    pub tensors: Vec<RowCounts>,
}

/// Where the rows of a model's tensor come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowCounts {
    /// Its name.
    pub tensor: String,
    /// Which of the plan's models.
    pub model: usize,
    /// How many rows the model has itself.
    pub before: u64,
    /// How many rows come from where.
    pub rows: Counts,
}

/// One tensor of the output.
#[derive(Debug)]
pub struct Tensor {
    /// Its name in the output.
    pub name: Arc<str>,
    /// Its dimensions.
    pub shape: Arc<[usize]>,
    /// The stored type.
    pub dtype: Dtype,
    /// How many elements it has.
    pub elements: u64,
    /// How many bytes it has in the output.
    pub bytes: u64,
    /// Where it comes from.
    pub action: Action,
}

/// Where a tensor of the output comes from.
#[derive(Debug)]
pub enum Action {
    /// One input's values, all holders agreeing.
    Copy(Copied),
    /// The method's arithmetic. Copies, of which a checkpoint may have many, need not its room.
    Merge(Box<Merge>),
}

/// A tensor that is copied.
#[derive(Debug)]
pub struct Copied {
    /// The inputs that must all be equal; the first is copied.
    pub holders: Vec<usize>,
    /// Which of the plan's models each is of.
    pub models: Arc<Vec<usize>>,
    /// The type of floats it has, if it is one.
    pub from: Option<Dtype>,
    /// The type of floats it is stored in, if it is one.
    pub to: Option<Dtype>,
}

/// A tensor that is merged.
#[derive(Debug)]
pub struct Merge {
    /// The models' tensors among the plan's inputs, in the order that parameters and recipes count them.
    pub inputs: Vec<usize>,
    /// Which of the plan's models each of these is of; what is made for the method, behind them, is of none.
    pub models: Arc<Vec<usize>>,
    /// Their element types.
    pub floats: Vec<Float>,
    /// The stored type.
    pub output: Float,
    /// How it is merged.
    pub method: &'static Method,
    /// Every number of the merge.
    pub settings: Settings,
    /// What the method makes of them.
    pub recipe: Passes,
}

/// A part of a model that the config leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The model, as named in the config.
    pub model: String,
    /// Layers or tensors, in words.
    pub what: String,
    /// How many tensors that is.
    pub tensors: usize,
}

impl Tensor {
    /// The inputs that are read for it.
    pub fn inputs(&self) -> &[usize] {
        match &self.action {
            Action::Copy(copy) => &copy.holders,
            Action::Merge(merge) => &merge.inputs,
        }
    }

    /// The plan's models that it comes from, one for each input but those that are made for the method.
    pub fn models(&self) -> &[usize] {
        match &self.action {
            Action::Copy(copy) => &copy.models,
            Action::Merge(merge) => &merge.models,
        }
    }

    /// The most bytes that inputs keep which are made for it, until it is done.
    pub fn kept_bytes(&self, inputs: &[Input]) -> u64 {
        sum(self.inputs().iter().map(|input| input::kept_bytes(inputs, *input)))
    }
}

/// The weight of each of so many models, of a method that weighs them by their places in the list; none where it differs from
/// tensor to tensor.
pub(super) fn weights(method: &Method, tensors: &[Tensor], models: usize) -> Option<Vec<f64>> {
    let mut merges = tensors.iter().filter_map(|tensor| match &tensor.action {
        Action::Merge(merge) => Some(&merge.settings),
        Action::Copy(_) => None,
    });
    let first = merges.next().filter(|first| method.weighs_by_position() && first.inputs == models)?;
    let alike = |settings: &Settings| (settings.inputs, &*settings.shared) == (first.inputs, &*first.shared);
    if merges.all(alike) { method.weights_for_linear(first) } else { None }
}

impl Plan {
    /// Bytes read if every input is read once; and, but for samples and single tiles, if every recipe needs all of its sweeps and
    /// nothing is held between them.
    pub fn read_bytes(&self, sources: &[Source]) -> (u64, u64) {
        (self.read_bytes_of(sources, |_| 1), self.read_bytes_of(sources, |merge| merge.recipe.sweeps_most))
    }

    fn read_bytes_of(&self, sources: &[Source], sweeps: impl Fn(&Merge) -> u32) -> u64 {
        let stored = |at: At, elements: Option<u64>| {
            let info = sources[at.source].tensor_at(at.tensor);
            let part = |elements: u64| {
                u128::from(info.bytes) * u128::from(elements) / u128::from(info.elements().max(1))
            };
            elements.map_or(info.bytes, |elements| part(elements).try_into().unwrap_or(u64::MAX))
        };
        let bytes = |input: &usize| input::read_bytes(&self.inputs, *input, stored);
        let of = |tensor: &Tensor| match &tensor.action {
            Action::Copy(copy) => sum(copy.holders.iter().map(bytes)),
            Action::Merge(merge) => {
                // What the method's recipe leaves out is not read: models without a weight, or all that only made inputs read.
                let read = merge.recipe.reads();
                let once = sum(read.iter().filter_map(|place| merge.inputs.get(*place)).map(bytes));
                once.saturating_mul(u64::from(sweeps(merge)))
            }
        };
        sum(self.tensors.iter().map(of))
    }

    /// The tensors of sources that are read, whatever is made of them.
    pub fn stored(&self) -> HashSet<At> {
        let of = |tensor: &Tensor| -> Vec<At> {
            let stored = |input: &usize| input::stored(&self.inputs, *input);
            match &tensor.action {
                Action::Copy(copy) => copy.holders.iter().flat_map(stored).collect(),
                Action::Merge(merge) => {
                    let read = merge.recipe.reads();
                    read.iter().filter_map(|place| merge.inputs.get(*place)).flat_map(stored).collect()
                }
            }
        };
        self.tensors.iter().flat_map(of).collect()
    }

    /// How many merged tensors each input is read for.
    pub fn uses(&self) -> Vec<u32> {
        self.uses_by(&self.tensors)
    }

    /// For how many of these tensors each input is read.
    pub fn uses_by<'t>(&self, tensors: impl IntoIterator<Item = &'t Tensor>) -> Vec<u32> {
        let mut uses = vec![0; self.inputs.len()];
        for tensor in tensors {
            if let Action::Merge(merge) = &tensor.action {
                merge.inputs.iter().for_each(|input| uses[*input] += 1);
            }
        }
        uses
    }

    /// The most bytes that a worker needs while it reads so many elements of a made input.
    pub fn working_bytes(&self, elements: u64) -> u64 {
        let of_tensor = |tensor: &Tensor| {
            let elements = elements.min(tensor.elements);
            tensor.inputs().iter().map(|input| input::working_bytes(&self.inputs, *input, elements)).max()
        };
        self.tensors.iter().filter_map(of_tensor).max().unwrap_or(0)
    }

    /// The widest launches: of every number the largest that any tensor needs.
    pub fn widest(&self) -> Widest {
        let mut widest = Widest { inputs: 1, tiles: 1, spans: SPANS_MAX, ..Widest::default() };
        let uses = self.uses();
        for tensor in &self.tensors {
            widest.tiles = widest.tiles.max(tiles(tensor.elements));
            widest.kept_bytes = widest.kept_bytes.max(tensor.kept_bytes(&self.inputs));
            match &tensor.action {
                Action::Copy(copy) => {
                    widest.copied_bytes = 16;
                    if [copy.from, copy.to].contains(&Some(Dtype::F64)) {
                        // What is read, compared with it, and stored.
                        widest.wide_bytes = 3 * F64_BYTES;
                    }
                }
                Action::Merge(merge) => {
                    if tensor.dtype == Dtype::F64 {
                        widest.wide_bytes = widest.wide_bytes.max(F64_BYTES);
                    }
                    let bytes: usize = merge.floats.iter().map(|float| float.bytes()).sum();
                    let mut reads = merge.inputs.len();
                    widest.input_bytes = widest.input_bytes.max(bytes);
                    // A pass may read an input for each of several questions about it.
                    for Foreseen { reads: of_pass, job } in merge.recipe.begin().foreseen() {
                        reads = reads.max(of_pass.len());
                        let floats = of_pass.iter().filter_map(|input| merge.floats.get(*input));
                        widest.input_bytes = widest.input_bytes.max(floats.map(|float| float.bytes()).sum());
                        if matches!(job, Job::Keys(_) | Job::Levels(_) | Job::Magnitudes(_)) {
                            widest.questions = widest.questions.max(of_pass.len() - 1);
                        }
                    }
                    widest.inputs = widest.inputs.max(reads);
                    widest.output_bytes = widest.output_bytes.max(merge.output.bytes());
                    let measures = merge.recipe.sweeps_most > 1;
                    let segments = merge.recipe.by.count(tensor.elements);
                    if segments > 1 {
                        let inputs = merge.inputs.len() as u64;
                        // A sum of each pair in f64, and a coefficient of each input in f32.
                        let bytes = segments.saturating_mul(8 * (inputs * (inputs + 1) / 2) + 4 * inputs);
                        widest.segment_bytes = widest.segment_bytes.max(bytes);
                    }
                    match merge.recipe.by {
                        Segments::Whole => {}
                        Segments::Rows { columns } => {
                            let shortest = Some(widest.row_elements).filter(|row| *row > 0);
                            widest.row_elements = shortest.map_or(columns, |row| row.min(columns));
                            widest.spans = SEGMENT_SPANS_MAX;
                        }
                        Segments::Columns { columns } => {
                            widest.columns = widest.columns.max(columns);
                            widest.spans = SEGMENT_SPANS_MAX;
                        }
                    }
                    if measures {
                        widest.measured = widest.measured.max(reads);
                    }
                    if measures || merge.inputs.iter().any(|input| uses[*input] > 1) {
                        let inputs_bytes = tensor.elements.saturating_mul(bytes as u64);
                        widest.held_bytes = widest.held_bytes.saturating_add(inputs_bytes);
                    }
                }
            }
        }
        widest
    }
}

impl StoredTensor for Tensor {
    fn name(&self) -> &str {
        &self.name
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// A sum of bytes, of which no disk has so many; it stays at the largest number.
fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}
