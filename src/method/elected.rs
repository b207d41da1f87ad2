//! `magmax`, `emr` and `consensus`: element by element, which of the task vectors is taken, or whether their sum is.
//!
//! All three are beyond mergekit, and one sweep.

use super::{Base, Method, Paper, Parameter, RELIABLE, Scope, Settings};
use crate::error::{Error, Result};
use crate::kernel::choice::Choice;
use crate::kernel::elect::{self, Part, Rule};
use crate::recipe::Recipe;

const WEIGHT: Parameter = Parameter::number("weight", Scope::NonBase, 1.0, "the task vector's weight");
const LAMBDA: Parameter =
    Parameter::number("lambda", Scope::Shared, 1.0, "a factor for the merged task vector");

pub(super) const MAGMAX: Method = Method {
    name: "magmax",
    summary: "of each element the task vector with the largest magnitude (beyond mergekit)",
    formula: "vᵢ = wᵢ·(xᵢ − base); out = base + λ·vₖ, |vₖ| the largest of all, the first among equals",
    paper: Some(Paper {
        title: "Marczak et al., MagMax (ECCV 2024)",
        url: "https://arxiv.org/abs/2407.06322",
    }),
    evidence: RELIABLE,
    by_processor: None,
    base: Base::Required,
    models: 1..=usize::MAX,
    parameters: &[WEIGHT, LAMBDA],
    recipe: |settings| recipe(settings, |lambda, _| Rule::Largest(lambda)),
};

pub(super) const EMR: Method = Method {
    name: "emr",
    summary: "EMR's elected task vector: of each element the elected sign, and the largest magnitude that has it (beyond mergekit)",
    formula: "vᵢ = wᵢ·(xᵢ − base); s = sign Σ vᵢ; out = base + λ·s·max_{sign vᵢ = s} |vᵢ|",
    paper: Some(Paper {
        title: "Huang et al., EMR-Merging (NeurIPS 2024)",
        url: "https://arxiv.org/abs/2405.17461",
    }),
    evidence: Some(
        "the paper adds masks and scales for each task when the model runs, which one merged model cannot have; on language models plain task arithmetic was the most reliable method of a comparison (arXiv 2511.21437)",
    ),
    by_processor: None,
    base: Base::Required,
    models: 1..=usize::MAX,
    parameters: &[WEIGHT, LAMBDA],
    recipe: |settings| recipe(settings, |lambda, _| Rule::Elected(lambda)),
};

pub(super) const CONSENSUS: Method = Method {
    name: "consensus",
    summary: "the sum of the task vectors where enough of them matter by their TALL masks, the base elsewhere (beyond mergekit)",
    formula: "vᵢ = wᵢ·(xᵢ − base); s = Σ vᵢ; out = base + λ·s where |xᵢ − base| ≥ tallᵢ·|s − (xᵢ − base)| for at least `agree` models, else base",
    paper: Some(Paper {
        title: "Wang et al., Localizing task information: TALL masks and consensus merging (ICML 2024)",
        url: "https://arxiv.org/abs/2405.07813",
    }),
    evidence: RELIABLE,
    by_processor: None,
    base: Base::Required,
    models: 1..=usize::MAX,
    parameters: &[
        WEIGHT,
        LAMBDA,
        Parameter::number(
            "tall",
            Scope::NonBase,
            0.4,
            "how much of the others' sum a model's change has to match; the paper tries 0.2 to 0.6",
        ),
        Parameter {
            kind: super::ValueKind::Count,
            ..Parameter::number("agree", Scope::Shared, 2.0, "how many models an element has to matter to")
        },
    ],
    recipe: |settings| {
        let (agree, models) = (settings.number("agree"), settings.non_base().count());
        if agree > models as f64 || agree < 1.0 {
            let problem = format!("agree is {agree}, and the number of models besides the base is {models}");
            return Err(Error::config(problem).hint(format!("with 1 to {models}, something can be kept")));
        }
        recipe(settings, |lambda, settings| Rule::Common {
            scale: lambda,
            least: settings.number("agree") as u32,
            tolerances: settings.non_base().map(|input| settings.number_of(input, "tall") as f32).collect(),
        })
    },
};

#[expect(clippy::unnecessary_wraps, reason = "a method may refuse")]
fn recipe(settings: &Settings, rule: impl Fn(f32, &Settings) -> Rule) -> Result<Recipe> {
    let part = |input: usize| Part {
        coefficient: settings.number_of(input, "weight") as f32,
        share: 1.0,
        choice: Choice::All,
    };
    let models = settings.non_base().map(part).collect();
    let rule = rule(settings.number("lambda") as f32, settings);
    let reads = std::iter::once(settings.base_input()).chain(settings.non_base()).collect();
    Ok(Recipe::combine(reads, elect::Job { models, selectors: 0, rule }))
}
