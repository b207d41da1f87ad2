//! Models that do not belong together: what their config.json say of architecture, heads, rope, vocabulary, tied embeddings and
//! quantisation, compared with the one that the output gets.
//!
//! Names and shapes can fit although the models do not: heads of another number have the same matrices, and positions
//! turned by another angle show in no shape at all.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::parts::Anatomy;
use super::views::{Held, Model};
use super::warnings::few;
use super::{Plan, Planner};
use crate::checkpoint::Source;
use crate::dtype::{Dtype, is_float};
use crate::error::{Error, Result};
use crate::text::{cut_to, quoted};

/// What a config says under a name: nothing, or a value in one form, however it is written.
type Fact = (&'static str, Option<Json>);

/// The longest value that a warning shows, in characters.
const VALUE_CHARS_MAX: usize = 80;

impl Planner<'_> {
    /// Different architectures, and quantised weights where they would be merged, go to the problems.
    pub(super) fn check_compatible(&mut self) {
        if !self.choices.allow_crimes
            && let Some(different) = self.different_architectures()
        {
            let all_the_same = "--allow-crimes merges these all the same, where names and shapes fit";
            let hint = self.hint_of_parts().unwrap_or_else(|| "merge models of one architecture".into());
            self.problems.add(different.hint(format!("{hint}; {all_the_same}")));
        }
        // Of a single model tensors may be copied; those that are not are refused one by one.
        if *self.method.models.end() > 1 {
            self.models.iter().filter(|model| holds_quantised(model)).for_each(|model| {
                self.problems.add(quantised(model));
            });
        }
    }

    /// Where models differ from the one whose config.json the output gets: a warning for all that differ alike.
    pub(super) fn differing_configs(&self) -> Vec<Error> {
        let donor = &self.models[self.donor];
        let of_donor = facts(&donor.config);
        let mut groups: IndexMap<String, Vec<usize>> = IndexMap::new();
        for (place, model) in self.models.iter().enumerate() {
            let fits = self.fits_in_modules(place);
            // A part of a model has another type than the whole.
            let is_compared = |(fact, _): &(&Fact, &Fact)| !(fits && fact.0 == "model_type");
            let differences: Vec<String> = facts(&model.config)
                .iter()
                .zip(&of_donor)
                .filter(is_compared)
                .filter_map(difference)
                .collect();
            if !differences.is_empty() {
                groups.entry(differences.join(", ")).or_default().push(place);
            }
        }
        let warning = |(differences, sources): (String, Vec<usize>)| {
            let (names, donor) = (self.names_of(&sources), &donor.name);
            let message = format!(
                "config.json of {names} differs from that of {donor}, which the output gets: {differences}"
            );
            Error::config(message)
                .hint("a model that was trained with other settings may not work with these: merge models of one family")
        };
        let different = self.different_architectures().filter(|_| self.choices.allow_crimes);
        let hint = "--allow-crimes merges them where names and shapes fit, whether that makes sense or not";
        different
            .map(|error| error.hint(hint))
            .into_iter()
            .chain(few(groups.into_iter().map(warning).collect()))
            .collect()
    }

    /// The architectures and who has which, if there are several.
    fn different_architectures(&self) -> Option<Error> {
        const SHOWN_MAX: usize = 4;
        let mut groups: IndexMap<String, Vec<usize>> = IndexMap::new();
        for place in (0..self.models.len()).filter(|place| !self.fits_in_modules(*place)) {
            let names = architecture(&self.models[place]);
            if !names.is_empty() {
                groups.entry(names).or_default().push(place);
            }
        }
        if groups.len() < 2 {
            return None;
        }
        let has = |(architecture, sources): (&String, &Vec<usize>)| {
            format!("{} in {}", cut_to(architecture, VALUE_CHARS_MAX), self.names_of(sources))
        };
        let mut shown: Vec<String> = groups.iter().take(SHOWN_MAX).map(has).collect();
        if groups.len() > SHOWN_MAX {
            shown.push(format!("and {} more", groups.len() - SHOWN_MAX));
        }
        Some(Error::config(format!("the models have different architectures: {}", shown.join("; "))))
    }

    /// Whether a model of another architecture than the donor's has all that the modules which list it have there.
    fn fits_in_modules(&self, model: usize) -> bool {
        let differs = || architecture(&self.models[model]) != architecture(&self.models[self.donor]);
        self.modules.as_ref().is_some_and(|modules| differs() && self.lacks(modules, model).is_none())
    }

    /// What to do about models of different architectures that share a part, or that should.
    fn hint_of_parts(&self) -> Option<String> {
        let donor = &self.models[self.donor];
        let differs = |place: &usize| architecture(&self.models[*place]) != architecture(donor);
        let other = (0..self.models.len()).find(|place| differs(place) && !self.fits_in_modules(*place))?;
        if let Some(modules) = &self.modules {
            let lacks = self.lacks(modules, other)?;
            return Some(format!(
                "{} lacks {} of {}, or has it in another shape: list models only in modules that they have",
                self.models[other].name,
                quoted(&lacks),
                donor.name
            ));
        }
        let anatomies = [donor, &self.models[other]].map(|model| Anatomy::of(model.names()));
        anatomies.contains(&Anatomy::Modalities).then(|| {
            "to merge what they have in common, list them under `modules: {text_decoder: {models: …}}`".into()
        })
    }
}

/// The architectures that a model's config names.
fn architecture(model: &Model<'_>) -> String {
    let architectures = model.config.get("architectures").and_then(Json::as_array);
    let names: Vec<&str> = architectures.into_iter().flatten().filter_map(Json::as_str).collect();
    names.join("+")
}

/// Whether a model's weights are quantised, by its config and its tensors.
pub(super) fn holds_quantised(model: &Model<'_>) -> bool {
    quantisation(&model.config).is_some() && model.tensors.values().any(|tensor| may_be_packed(tensor.dtype))
}

/// Whether a tensor of a quantised model is one of its weights: not where it is of floats, or a buffer such as positions.
fn may_be_packed(dtype: Dtype) -> bool {
    !is_float(dtype) && ![Dtype::BOOL, Dtype::I64].contains(&dtype)
}

/// Refuses a model whose weights are quantised.
pub(super) fn quantised(model: &Model<'_>) -> Error {
    let how = quantisation(&model.config).map_or(String::new(), |how| format!(" ({how})"));
    Error::config(format!("{} is quantised{how}, and quantised weights cannot be merged", model.name))
        .hint("give the model that it was made from, or convert it to bfloat16 first")
}

/// Refuses a plan whose output would still have codes of quantised weights, though floats of some type were asked for.
///
/// # Errors
/// Kind `Config`: the model that has them.
pub fn check_without_codes(plan: &Plan, sources: &[Source]) -> Result<()> {
    // What became floats has nothing in its config any more that speaks of codes.
    let became_floats = plan.config_edits.keys.values().any(Option::is_none);
    let has_codes = !became_floats && plan.tensors.iter().any(|tensor| may_be_packed(tensor.dtype));
    for model in plan.models.iter().filter(|_| has_codes) {
        if let Some(how) = quantisation(&sources[model.source].config) {
            let refusal =
                format!("{} is quantised ({how}), and floats cannot be made of its codes", model.name);
            return Err(Error::config(refusal)
                .hint("give the model that it was made from; without --dtype it is copied as it is"));
        }
    }
    Ok(())
}

/// How a config says that its weights are quantised: `gptq, 4 bits`.
pub(super) fn quantisation(config: &Map<String, Json>) -> Option<String> {
    // The last is that of MLX.
    let keys = ["quantization_config", "compression_config", "quantization"];
    let (key, quantisation) = keys.iter().find_map(|key| Some((*key, entry(config, key)?.as_object()?)))?;
    let text = |key: &str| quantisation.get(key).and_then(Json::as_str);
    let method = text("quant_method").or((key == "quantization").then_some("mlx"));
    let loaded = |key: &str| quantisation.get(key).and_then(Json::as_bool) == Some(true);
    let bits = ["bits", "w_bit"].iter().find_map(|key| quantisation.get(*key)?.as_u64());
    let bits = bits.or(loaded("load_in_4bit").then_some(4)).or(loaded("load_in_8bit").then_some(8));
    let mut method = cut_to(method.unwrap_or("quantization_config"), VALUE_CHARS_MAX);
    if let Some(kind) = text("format").or(text("quant_algo")) {
        method += &format!(", {}", cut_to(kind, VALUE_CHARS_MAX));
    }
    Some(bits.map_or_else(|| method.clone(), |bits| format!("{method}, {bits} bits")))
}

/// Why a tensor that cannot be merged cannot be copied either.
pub(super) fn why_not_copied(
    models: &[Model<'_>],
    tensor: &str,
    holders: &[Held],
    dtypes: &[Dtype],
) -> Option<Error> {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    let integers = [BOOL, U8, I8, I16, U16, I32, U32, I64, U64];
    for (held, dtype) in holders.iter().zip(dtypes) {
        let model = &models[held.model];
        if may_be_packed(*dtype) && quantisation(&model.config).is_some() {
            return Some(quantised(model));
        }
        if !is_float(*dtype) && !integers.contains(dtype) {
            let message =
                format!("tensor {tensor}: {} stores it as {dtype:?}, which cannot be merged", model.name);
            return Some(Error::config(message).hint(
                "convert the checkpoint to bfloat16 first, with the scales that such types have beside them",
            ));
        }
    }
    let stored = |dtype: &Dtype| format!("{dtype:?}");
    dtypes.iter().any(|dtype| *dtype != dtypes[0]).then(|| {
        let all: Vec<String> = dtypes.iter().map(stored).collect();
        Error::config(format!("tensor {tensor}: the models store it as {}", all.join(", "))).hint(
            "integers are copied, never merged: the type must be the same in all models; quantised weights have to be \
             converted to bfloat16 first",
        )
    })
}

/// An entry of a config that is not null, or of the config of its language model.
pub(super) fn entry<'a>(config: &'a Map<String, Json>, key: &str) -> Option<&'a Json> {
    let written = |config: &'a Map<String, Json>| config.get(key).filter(|value| !value.is_null());
    written(config).or_else(|| written(config.get("text_config")?.as_object()?))
}

/// What must be alike for models to fit, in an order of its own.
fn facts(config: &Map<String, Json>) -> Vec<Fact> {
    let first = |keys: &[&str]| keys.iter().find_map(|key| entry(config, key)).map(plain);
    let (theta, scaling, by_layer) = rope(config);
    vec![
        ("model_type", first(&["model_type"])),
        ("num_attention_heads", first(&["num_attention_heads", "n_head", "num_heads"])),
        ("num_key_value_heads", first(&["num_key_value_heads"])),
        ("head_dim", first(&["head_dim"])),
        ("rope_theta", theta),
        ("rope_scaling", scaling),
        ("rope_parameters", by_layer),
        ("partial_rotary_factor", first(&["partial_rotary_factor", "rotary_pct"])),
        ("vocab_size", first(&["vocab_size"])),
        ("tie_word_embeddings", first(&["tie_word_embeddings"])),
        ("quantization_config", Some(quantisation(config).map_or(Json::Null, Json::from))),
    ]
}

/// The angle and the scaling of positions, in the older form (`rope_theta`, `rope_scaling`) and the newer one
/// (`rope_parameters`), and what differs from layer to layer.
fn rope(config: &Map<String, Json>) -> (Option<Json>, Option<Json>, Option<Json>) {
    let parameters = entry(config, "rope_parameters").and_then(Json::as_object);
    if let Some(parameters) = parameters.filter(|parameters| parameters.values().any(Json::is_object)) {
        return (None, None, Some(plain(&Json::Object(parameters.clone()))));
    }
    let mut scaling =
        parameters.or_else(|| entry(config, "rope_scaling")?.as_object()).cloned().unwrap_or_default();
    let theta = scaling.remove("rope_theta").or_else(|| entry(config, "rope_theta").cloned());
    // Newer files say both `type` and `rope_type`.
    if let Some(kind) = scaling.remove("type") {
        scaling.entry("rope_type").or_insert(kind);
    }
    scaling.retain(|key, value| !(value.is_null() || key == "rope_type" && value == "default"));
    let scaling = if scaling.is_empty() { Json::Null } else { plain(&Json::Object(scaling)) };
    (theta.as_ref().map(plain), Some(scaling), None)
}

/// A value in which 10000 and 10000.0 are the same.
fn plain(value: &Json) -> Json {
    match value {
        Json::Number(number) => number.as_f64().map_or(Json::Null, |number| {
            if number.fract() == 0.0 && number.abs() < 1e15 {
                Json::from(number as i64)
            } else {
                Json::from(number)
            }
        }),
        Json::Array(items) => items.iter().map(plain).collect(),
        Json::Object(entries) => {
            Json::Object(entries.iter().map(|(key, value)| (key.clone(), plain(value))).collect())
        }
        other => other.clone(),
    }
}

/// A key with both values, where both configs have one and they differ.
fn difference(((name, own), (_, of_donor)): (&Fact, &Fact)) -> Option<String> {
    let (own, of_donor) = (own.as_ref()?, of_donor.as_ref()?);
    (own != of_donor).then(|| format!("{name} {} (there {})", shown(own), shown(of_donor)))
}

fn shown(value: &Json) -> String {
    match value {
        Json::Null => "none".into(),
        Json::String(text) => cut_to(text, VALUE_CHARS_MAX),
        other => cut_to(&other.to_string(), VALUE_CHARS_MAX),
    }
}
