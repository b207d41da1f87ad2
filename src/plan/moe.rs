//! A mixture of experts: a plan in which dense models become the experts of one model.
//!
//! ```text
//! base      attention, norms, embeddings       copied
//! experts   each one's MLP, layer by layer     copied under new names; with noise or a factor, made while it is read
//! routers   a row for each expert              drawn, or made of what the base makes of prompts
//! ```
//!
//! Nothing is computed on a device: all tensors are copies. The rest is as of any plan.

mod architecture;
mod routers;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::problems::Problems;
use super::views::{InputList, Model, View, Views};
use super::{Action, Choices, Copied, PartlyHeldPolicy, Plan, Tensor, check_total, names, stored_bytes};
use crate::checkpoint::{ConfigEdits, Source, layout};
use crate::config::moe::{Expert, MoeConfig};
use crate::config::{Config, Located};
use crate::dtype::{Dtype, Float, computed_as, float_named, is_float};
use crate::error::{Error, Result};
use crate::input::{Floats, Noisy, Row, Rows, draw_key};
use crate::method::MIXTURE;
use architecture::{Architecture, Counts, DENSE, ROUTER, no_place};
use routers::Routers;

/// Checks what can be known of a mixture of experts without opening a model. `untrained` is the user's word that experts that do
/// the same are wanted, because the mixture will be trained.
///
/// # Errors
/// All that is wrong, at its line and column.
pub fn check_moe(moe: &MoeConfig, untrained: bool) -> Result<()> {
    let mut problems = Problems::default();
    if !moe.gate_mode.value.reads_prompts() {
        return few_experts(moe, problems);
    }
    let lacking = moe.experts.iter().find(|expert| expert.positive_prompts.is_empty());
    if let Some(expert) = lacking {
        let message = format!("the expert {} has no positive_prompts", expert.source_model.value);
        let hint =
            "give each expert prompts that it is meant for; or set `gate_mode: random`, which needs none";
        problems.add(moe.error_at(expert.at, message).hint(hint));
    } else if alike(&moe.experts, |expert| {
        [&expert.positive_prompts, &expert.negative_prompts].map(|list| texts(list))
    }) {
        let message = "all experts have the same prompts, and so the same gate";
        let hint = "give each expert prompts that only it is meant for; or set `gate_mode: random`";
        problems.add(moe.error_at(moe.experts[0].at, message).hint(hint));
    }
    let contradicts = |expert: &&Expert| {
        let [mut meant, mut not] =
            [&expert.positive_prompts, &expert.negative_prompts].map(|list| texts(list));
        meant.sort_unstable();
        not.sort_unstable();
        meant == not && !meant.is_empty()
    };
    if let Some(expert) = moe.experts.iter().find(contradicts) {
        let message =
            format!("the expert {} has the same prompts as negative_prompts", expert.source_model.value);
        let hint = "nothing would be left of its router: give other negative_prompts, or none";
        problems.add(moe.error_at(expert.at, message).hint(hint));
    }
    if !untrained && alike(&moe.experts, |expert| &expert.source_model.value) {
        let message = "all experts are the same model, and the mixture would do what that model does";
        let hint = "to train it afterwards, merge with --i-understand-this-is-not-useful-without-training";
        problems.add(moe.error_at(moe.experts[0].at, message).hint(hint));
    }
    few_experts(moe, problems)
}

/// Whether there are several, and all have the same of something.
fn alike<'m, T: PartialEq>(experts: &'m [Expert], of: impl Fn(&'m Expert) -> T) -> bool {
    experts.len() > 1 && experts.iter().all(|expert| of(expert) == of(&experts[0]))
}

fn texts(prompts: &[Located<String>]) -> Vec<&str> {
    prompts.iter().map(|prompt| prompt.value.as_str()).collect()
}

/// More experts for each token than there are is one more problem.
fn few_experts(moe: &MoeConfig, mut problems: Problems) -> Result<()> {
    let (per_token, experts) = (&moe.experts_per_token, moe.experts.len());
    if per_token.value > experts {
        let message = format!("experts_per_token is {}, of {experts} in all", per_token.value);
        problems.add(
            moe.error_at(per_token.at, message).hint("list more experts, or set a smaller experts_per_token"),
        );
    }
    problems.stop()
}

impl Plan {
    /// Resolves a config of experts against the headers of its models; `listed` is [`MoeConfig::listed`], and `sources` are those
    /// of its [`super::places`].
    ///
    /// # Errors
    /// All that is wrong with the config and the models together.
    pub fn moe(moe: &MoeConfig, listed: &Config, sources: &[Source], choices: &Choices) -> Result<Self> {
        if choices.partly_held != PartlyHeldPolicy::Copied {
            let message =
                "--tensor-intersection and --tensor-union are about merges, and a mixture merges no tensors";
            return Err(Error::config(message)
                .hint("leave them out: a tensor of an expert that the others lack is refused"));
        }
        let (views, tokenizer) = super::views(listed, MIXTURE, sources, &[], choices)?;
        let base = views.donor();
        let part = |expert: &Expert| {
            let number = |number: &Option<Located<f64>>| number.as_ref().map(|number| number.value as f32);
            let [noise, factor] = [&expert.noise_scale, &expert.residual_scale].map(number);
            let model = views.place_of(&expert.source_model.value).expect("every model is listed");
            Part { model, noise: noise.filter(|noise| *noise != 0.0), factor }
        };
        let [experts, shared] =
            [&moe.experts, &moe.shared_experts].map(|experts| experts.iter().map(part).collect::<Vec<_>>());
        let Views { models, mut inputs, mut notes, warnings, .. } = views;
        let dense: BTreeSet<&str> = models.iter().map(model_type).collect();
        let architecture = architecture::choose(moe, &dense, &models[base].config, choices.allow_crimes)?;
        let gated = if architecture.shared_gate.is_some() { &moe.shared_experts[..] } else { &[] };
        let routers = Routers::of(moe, &models[base], sources, gated, &mut inputs, &mut notes)?;
        let mut assembly = Assembly {
            architecture,
            models: &models,
            alone: (0..models.len()).map(|model| Arc::new(vec![model])).collect(),
            base,
            experts,
            shared,
            dtype: moe.dtype.as_ref().map(|dtype| dtype.value).or_else(|| stated_dtype(&models[base])),
            seed: choices.seed,
            inputs,
            tensors: Vec::new(),
            problems: Problems::default(),
            routers,
        };
        let inner = assembly.assemble()?;
        let Assembly { inputs, tensors, .. } = assembly;
        check_total(&tensors)?;
        let counts = Counts {
            experts: moe.experts.len(),
            per_token: moe.experts_per_token.value,
            shared: moe.shared_experts.len(),
            inner,
        };
        let (added, gone) = architecture.config_keys(&models[base].config, &counts);
        let keys = models[base].edits.clone().into_iter().chain(gone).collect();
        let dtype = tensors.first().map(|tensor| tensor.dtype);
        let mut plan = Plan {
            weights: None,
            method: MIXTURE,
            seed: choices.seed,
            models: models.iter().map(Model::planned).collect(),
            element_files: Vec::new(),
            base: Some(base),
            donor: base,
            layout: layout(&tensors, choices.shard_bytes),
            inputs: inputs.inputs,
            tensors,
            tokenizer,
            config_edits: ConfigEdits { dtype, keys, added, ..ConfigEdits::default() },
            // That nothing else is taken of experts is what they are for.
            left_out: Vec::new(),
            notes,
            warnings,
        };
        plan.notes.splice(0..0, notes_of(moe, architecture, &models[base]));
        plan.notes.extend(sources.iter().flat_map(|source| source.warnings().iter().cloned()));
        plan.warnings.extend(other_activations(&models, base));
        Ok(plan)
    }
}

fn model_type<'m>(model: &'m Model<'_>) -> &'m str {
    model.config.get("model_type").and_then(serde_json::Value::as_str).unwrap_or("of no type")
}

/// The type that a model's config.json states.
fn stated_dtype(model: &Model<'_>) -> Option<Dtype> {
    let stated = ["dtype", "torch_dtype"].iter().find_map(|key| model.config.get(*key)?.as_str())?;
    float_named(stated.trim_start_matches("torch."))
}

fn notes_of(moe: &MoeConfig, architecture: &Architecture, base: &Model<'_>) -> Vec<String> {
    let (experts, base_name) = (moe.experts.len(), &base.name);
    let mut notes = vec![format!(
        "{experts} experts as {}: of each model its MLPs, all else from {base_name}, routers by {}",
        architecture.name,
        moe.gate_mode.value.name()
    )];
    let window = base.config.get("sliding_window").filter(|window| !window.is_null());
    let used = base.config.get("use_sliding_window") != Some(&serde_json::Value::Bool(false));
    if let Some(window) = window.filter(|_| used) {
        notes.push(format!(
            "the sliding window of {window} tokens that {base_name} has is taken away: {} attends to all",
            architecture.name
        ));
    }
    notes
}

/// Models whose MLPs were trained with another activation than they will have.
fn other_activations(models: &[Model<'_>], base: usize) -> Vec<Error> {
    let of = |model: &Model<'_>| {
        model.config.get("hidden_act").and_then(serde_json::Value::as_str).unwrap_or("silu").to_owned()
    };
    let own = of(&models[base]);
    let others = models.iter().filter(|model| of(model) != own);
    let warning = |model: &Model<'_>| {
        let (name, act, base) = (&model.name, of(model), &models[base].name);
        Error::config(format!("{name} computes with {act}, and in the mixture with {own}, as {base} does"))
            .hint("experts belong to one family of models")
    };
    others.map(warning).collect()
}

/// A model that gives its MLPs.
#[derive(Debug, Clone, Copy)]
struct Part {
    model: usize,
    /// The standard deviation of the noise that is added.
    noise: Option<f32>,
    /// What its output is multiplied with.
    factor: Option<f32>,
}

/// The plan under construction.
struct Assembly<'p, 'a> {
    architecture: &'static Architecture,
    models: &'p [Model<'a>],
    /// Of each model the list of it alone.
    alone: Vec<Arc<Vec<usize>>>,
    base: usize,
    experts: Vec<Part>,
    shared: Vec<Part>,
    /// The type that all is stored in; none: each tensor's own.
    dtype: Option<Dtype>,
    seed: u64,
    inputs: InputList,
    tensors: Vec<Tensor>,
    problems: Problems,
    routers: Routers,
}

impl<'p> Assembly<'p, '_> {
    fn name(&self, model: usize) -> &'p str {
        &self.models[model].name
    }

    /// All tensors, in the base's order; returns how many rows an expert's gate has.
    fn assemble(&mut self) -> Result<usize> {
        let base = &self.models[self.base];
        let gate_of_first =
            base.names().find_map(|name| names::layered(name).filter(|tensor| tensor.rest == DENSE[0]));
        let Some(first) = gate_of_first else {
            let message = format!("{} has no MLPs like model.layers.0.{}", base.name, DENSE[0]);
            return Err(Error::config(message).hint("a mixture of experts is made of dense models"));
        };
        let stack = first.stack;
        let shape = &base.tensors[first.named(first.layer).as_str()].shape;
        let &[inner, hidden] = &shape[..] else {
            return Err(Error::config(format!("{}: its MLPs are no matrices", base.name)));
        };
        let layers = names::stacks(base.names())[stack];
        for part in self.experts.iter().chain(&self.shared) {
            if let Some(problem) = self.unfit(*part, stack, layers) {
                self.problems.add(problem);
            }
        }
        for (name, view) in &base.tensors {
            match names::layered(name).filter(|tensor| tensor.stack == stack) {
                Some(tensor) => self.layer_tensor(name, view, &tensor, [inner, hidden]),
                None if Architecture::keeps_loose(name) => self.copy(name, self.base, view),
                None => self.problems.add(no_place(name, &base.name, self.architecture)),
            }
        }
        self.problems.stop()?;
        Ok(inner)
    }

    /// Why a model's MLPs cannot be experts, as far as names show.
    fn unfit(&self, part: Part, stack: &str, layers: usize) -> Option<Error> {
        let model = &self.models[part.model];
        let own = names::stacks(model.names()).get(stack).copied().unwrap_or(0);
        if own != layers {
            let message =
                format!("{} has {own} layers in {stack}, {} has {layers}", model.name, self.name(self.base));
            return Some(Error::config(message).hint("experts have as many layers as the base model"));
        }
        let further = |name: &&str| {
            names::layered(name)
                .is_some_and(|tensor| tensor.rest.starts_with("mlp.") && !DENSE.contains(&tensor.rest))
        };
        model.names().find(further).map(|name| no_place(name, &model.name, self.architecture))
    }

    /// What becomes of a tensor of a layer of the base.
    fn layer_tensor(
        &mut self,
        name: &str,
        view: &View<'_>,
        tensor: &names::Layered<'_>,
        [inner, hidden]: [usize; 2],
    ) {
        let layer = tensor.named(tensor.layer);
        let layer = layer.strip_suffix(tensor.rest).expect("a layer's name stands before the rest");
        if let Some(matrix) = DENSE.iter().position(|dense| *dense == tensor.rest) {
            let shape = if matrix == 2 { [hidden, inner] } else { [inner, hidden] };
            for place in 0..self.experts.len() {
                let out = format!("{layer}{}", self.architecture.expert(place, matrix));
                self.expert(self.experts[place], name, out, matrix, shape);
            }
            for part in self.shared.clone() {
                let out = format!("{layer}{}", self.architecture.of_shared(matrix));
                self.expert(part, name, out, matrix, shape);
            }
            if matrix == 0 {
                self.routers(tensor.layer, layer, hidden, view.dtype);
            }
        } else if self.architecture.keeps(tensor.rest) {
            self.copy(name, self.base, view);
            self.missing_bias(name, view);
        } else if !tensor.rest.starts_with("mlp.") && !tensor.rest.ends_with("rotary_emb.inv_freq") {
            self.problems.add(no_place(name, self.name(self.base), self.architecture));
        }
    }

    /// One matrix of an expert.
    fn expert(&mut self, part: Part, name: &str, out: String, matrix: usize, shape: [usize; 2]) {
        let (model, of) = (&self.models[part.model], self.name(part.model));
        let Some(view) = model.tensors.get(name) else {
            let message = format!("tensor {name}: the expert {of} has none");
            return self
                .problems
                .add(Error::config(message).hint("experts have the layers of the base model"));
        };
        if *view.shape != shape {
            let message = format!(
                "tensor {name}: it is {:?} in {of}, and {shape:?} in {}",
                view.shape,
                self.name(self.base)
            );
            return self
                .problems
                .add(Error::config(message).hint("experts have the sizes of the base model"));
        }
        let factor = part.factor.filter(|_| matrix == 2);
        if part.noise.is_none() && factor.is_none() {
            return self.put(out, part.model, view);
        }
        let Some(float) = computed_as(self.inputs.read_as(view)) else {
            return self.problems.add(not_floats(name, of, view));
        };
        let noisy = Noisy {
            of: Floats { input: self.inputs.as_floats(view), float },
            // Drawn by the name in the output: experts of one model differ.
            noise: part.noise.map(|noise| (noise, draw_key(self.seed, &out))),
            factor: factor.unwrap_or(1.0),
        };
        let input = self.inputs.make(noisy);
        self.tensor(out, &shape, [Dtype::F32, view.dtype], input, Arc::clone(&self.alone[part.model]));
    }

    /// The router of a layer, and the gate of its shared expert if that has one.
    fn routers(&mut self, number: usize, layer: &str, hidden: usize, counts_as: Dtype) {
        let router = format!("{layer}{}.{ROUTER}", self.architecture.block);
        let shared = self.architecture.shared_gate.map(|gate| (format!("{layer}{gate}"), self.shared.len()));
        let of_experts = (router, self.experts.len());
        for (which, (name, rows)) in [Some(of_experts), shared].into_iter().flatten().enumerate() {
            let input = self.routers.input(&mut self.inputs, self.seed, number, which, &name, hidden);
            self.tensor(name, &[rows, hidden], [Dtype::F32, counts_as], input, Arc::default());
        }
    }

    /// The bias of a projection, where the architecture has one and the base has not.
    fn missing_bias(&mut self, weight: &str, view: &View<'_>) {
        let bias = weight.strip_suffix("weight").map(|stem| format!("{stem}bias"));
        let Some(bias) = bias.filter(|bias| self.architecture.needs_biases && has_bias(bias)) else { return };
        if self.models[self.base].tensors.contains_key(bias.as_str()) {
            return;
        }
        let rows = view.shape.first().copied().unwrap_or(0);
        let zeros = Rows::of_runs(Vec::new(), rows.max(1) as u64, Float::F32, [(Row::Zero, 1)]);
        let input = self.inputs.make(zeros);
        self.tensor(bias, &[rows], [Dtype::F32, view.dtype], input, Arc::default());
    }

    /// A tensor of a model under its own name.
    fn copy(&mut self, name: &str, model: usize, view: &View<'_>) {
        self.put(name.to_owned(), model, view);
    }

    /// A tensor of a model under a new name.
    fn put(&mut self, name: String, model: usize, view: &View<'_>) {
        let read = self.inputs.read_as(view);
        if !is_float(read) {
            return self.problems.add(not_floats(&name, self.name(model), view));
        }
        let input = self.inputs.of(view);
        self.tensor(name, &view.shape, [read, view.dtype], input, Arc::clone(&self.alone[model]));
    }

    /// A tensor of the output, which is read as one type and counts as another.
    fn tensor(
        &mut self,
        name: String,
        shape: &[usize],
        [read, counts_as]: [Dtype; 2],
        input: usize,
        models: Arc<Vec<usize>>,
    ) {
        let dtype = self.dtype.unwrap_or(counts_as);
        let elements = shape.iter().map(|side| *side as u64).product();
        match stored_bytes(&name, elements, dtype) {
            Ok(bytes) => self.tensors.push(Tensor {
                name: name.into(),
                shape: shape.into(),
                dtype,
                elements,
                bytes,
                action: Action::Copy(Copied {
                    holders: vec![input],
                    models,
                    from: Some(read),
                    to: Some(dtype),
                }),
            }),
            Err(problem) => self.problems.add(problem),
        }
    }
}

fn has_bias(bias: &str) -> bool {
    ["q_proj.bias", "k_proj.bias", "v_proj.bias"].iter().any(|end| bias.ends_with(end))
}

fn not_floats(tensor: &str, model: &str, view: &View<'_>) -> Error {
    let message = format!("tensor {tensor} of {model} is {:?}, and a mixture is made of floats", view.dtype);
    Error::config(message).hint("give the model that it was made from, or convert it to bfloat16 first")
}
