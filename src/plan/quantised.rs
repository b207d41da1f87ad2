//! Quantised models as floats: weights of 8 bits, and of 4 bits with microscaling, times the scales that lie beside them.
//!
//! ```text
//! X.weight   F8_E4M3 [r, c]                     X.weight   BF16 [r, c], read as code · scale in f32
//! X.weight_scale_inv   F32 [r/128, c/128]   →   (gone, and with it quantization_config)
//! ```
//!
//! The products are made while they are read. They count as floats of the type that config.json names, which is what the model
//! computes in. All that has no plain product of codes and scales stays as it is, and is refused by name where it would be merged.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use super::compatible::{entry, quantisation};
use super::references;
use super::views::{InputList, Model, Origin, View, Views};
use crate::config::{Config, Inputs};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};
use crate::input::{Floats, Microscaled, Scaled, Scales};
use crate::method::Method;
use crate::text::quoted;

/// What the scale of `NAME` is called, the likeliest first: those of fine-grained FP8 (which multiply, whatever the name says),
/// and those of all others.
const SCALES: &[&str] = &["_scale_inv", "_scale"];

/// What lies beside codes whose values are more than code · scale.
const MORE_THAN_SCALES: &[&str] = &["_zero_point", "_g_idx", "_scale_2"];

/// The scales of activations and caches, which belong to running a quantised model.
const OF_ACTIVATIONS: &[&str] = &[
    ".input_scale",
    ".input_scale_ub",
    ".output_scale",
    ".activation_scale",
    ".input_zero_point",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
];

/// The keys under which config.json says how weights are quantised.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// How codes and scales lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// Codes of 8 bits, floats or with `integers` also I8; scales for blocks of this size, or as their shapes say. Where the config
    /// has `stated` it, codes without a scale are not whole.
    Bytes { block: Option<[u64; 2]>, integers: bool, stated: bool },
    /// `NAME_blocks` and `NAME_scales`.
    Microscaled,
}

impl Scheme {
    /// Whether a tensor may be codes.
    fn may_be_codes(self, name: &str, dtype: Dtype) -> bool {
        match self {
            Self::Microscaled => name.ends_with("_blocks"),
            Self::Bytes { integers, .. } => {
                [Dtype::F8_E4M3, Dtype::F8_E5M2].contains(&dtype) || integers && dtype == Dtype::I8
            }
        }
    }
}

/// Makes floats of the models' quantised weights, where they are merged.
pub(super) fn dequantise(views: &mut Views<'_>, method: &Method) {
    if is_plain_copy(views.config, method) {
        return;
    }
    for model in &mut views.models {
        let Some(scheme) = scheme(&model.config) else { continue };
        let dequantised = Dequantised::of(model, scheme, &mut views.inputs);
        match dequantised {
            Ok(Some(dequantised)) => views.notes.push(dequantised.put_into(model)),
            Ok(None) => {}
            Err(problem) => views.problems.add(problem),
        }
    }
}

/// Whether all that happens is that tensors of one model are copied: then codes, scales and config stay together.
fn is_plain_copy(config: &Config, method: &Method) -> bool {
    fn no_parameters(inputs: &Inputs) -> bool {
        match inputs {
            Inputs::Models(models) => models.iter().all(|listed| listed.parameters.is_empty()),
            Inputs::Slices(slices) => slices.iter().all(|slice| {
                slice.parameters.is_empty() && slice.sources.iter().all(|source| source.parameters.is_empty())
            }),
            Inputs::Modules(modules) => {
                modules.iter().all(|module| module.parameters.is_empty() && no_parameters(&module.inputs))
            }
        }
    }
    let no_parameters = config.parameters.is_empty() && no_parameters(&config.inputs);
    let as_stored = config.dtype.is_none() && config.out_dtype.is_none();
    let models = references(config);
    let one_as_it_is = models.len() == 1 && models.iter().all(|model| model.value.lora.is_none());
    method.name == "passthrough" && as_stored && no_parameters && one_as_it_is
}

/// How a model is quantised, if that is something that is read. Without a word in the config, floats of 8 bits are what they are.
fn scheme(config: &Map<String, Json>) -> Option<Scheme> {
    let bytes = |stated| Scheme::Bytes { block: None, integers: false, stated };
    let Some(quantisation) = KEYS.iter().find_map(|key| entry(config, key)?.as_object()) else {
        return config.get("quantization").is_none().then_some(bytes(false));
    };
    let text = |key: &str| quantisation.get(key).and_then(Json::as_str).unwrap_or_default();
    match text("quant_method") {
        "fp8" | "fbgemm_fp8" => {
            let block = block(quantisation.get("weight_block_size"));
            Some(Scheme::Bytes { block, integers: false, stated: true })
        }
        "modelopt" if text("quant_algo") == "FP8" => Some(bytes(true)),
        "mxfp4" => Some(Scheme::Microscaled),
        "compressed-tensors" | "sparseml" => match text("format") {
            "float-quantized" | "int-quantized" | "naive-quantized" => {
                let groups = quantisation.get("config_groups").and_then(Json::as_object);
                let structure = |group: &Json| block(group.get("weights")?.get("block_structure"));
                let block = groups.and_then(|groups| groups.values().find_map(structure));
                Some(Scheme::Bytes { block, integers: true, stated: true })
            }
            _ => None,
        },
        _ => None,
    }
}

fn block(written: Option<&Json>) -> Option<[u64; 2]> {
    let sides: Vec<u64> =
        written?.as_array()?.iter().map_while(Json::as_u64).filter(|side| *side > 0).collect();
    sides.try_into().ok()
}

/// A model's tensors once more, without codes and scales.
struct Dequantised<'a> {
    tensors: IndexMap<Cow<'a, str>, View<'a>>,
    /// What the products count as.
    dtype: Dtype,
    /// The first that was made, as it is stored, and how many there are.
    first: Option<(String, Dtype)>,
    count: usize,
    /// How many of them have no scale.
    bare: usize,
    /// What is called like a scale, by the module that it stands in.
    scale_like: HashMap<String, String>,
    dropped: HashSet<String>,
}

impl<'a> Dequantised<'a> {
    /// `None` where a model has no codes.
    fn of(model: &Model<'a>, scheme: Scheme, inputs: &mut InputList) -> Result<Option<Self>> {
        if !model.tensors.iter().any(|(name, view)| scheme.may_be_codes(name, view.dtype)) {
            return Ok(None);
        }
        let dtype = float_of(&model.config);
        let (first, count, bare) = (None, 0, 0);
        let scales =
            model.names().filter(|name| name.rsplit('.').next().is_some_and(|leaf| leaf.contains("scale")));
        let scale_like = scales.map(|name| (module_of(name).to_owned(), name.to_owned())).collect();
        let (tensors, dropped) = (IndexMap::new(), HashSet::new());
        let mut all = Self { tensors, dtype, first, count, bare, scale_like, dropped };
        for (name, view) in &model.tensors {
            let (name, view) = match all.made(model, name, view, scheme, inputs)? {
                Some((made_name, made)) => {
                    all.first.get_or_insert_with(|| (name.to_string(), view.dtype));
                    all.count += 1;
                    (made_name, made)
                }
                None => (name.clone(), view.clone()),
            };
            all.tensors.insert(name, view);
        }
        if all.count == 0 {
            return Ok(None);
        }
        let is_of_activations = |name: &str| OF_ACTIVATIONS.iter().any(|end| name.ends_with(end));
        all.dropped.extend(model.names().filter(|name| is_of_activations(name)).map(str::to_owned));
        let dropped = &all.dropped;
        all.tensors.retain(|name, _| !dropped.contains(&**name));
        Ok(Some(all))
    }

    /// The product of a tensor of codes and its scales, and its name; `None` for any other tensor.
    fn made(
        &mut self,
        model: &Model<'a>,
        name: &Cow<'a, str>,
        view: &View<'a>,
        scheme: Scheme,
        inputs: &mut InputList,
    ) -> Result<Option<(Cow<'a, str>, View<'a>)>> {
        if !scheme.may_be_codes(name, view.dtype) {
            return Ok(None);
        }
        match scheme {
            Scheme::Microscaled => self.microscaled(model, name, view, inputs),
            Scheme::Bytes { block, stated, .. } => {
                let scale =
                    SCALES.iter().find_map(|end| model.tensors.get_key_value(&*format!("{name}{end}")));
                // Other integers than weights are numbers.
                if view.dtype == Dtype::I8 && scale.is_none() && !name.ends_with(".weight") {
                    return Ok(None);
                }
                if scale.is_none() {
                    self.check_bare(model, name, stated)?;
                }
                let made = self.scaled(model, (name, view), scale, block, inputs)?;
                Ok(Some((name.clone(), made)))
            }
        }
    }

    /// Refuses codes without a scale that was found, where there has to be one.
    fn check_bare(&self, model: &Model<'a>, name: &str, stated: bool) -> Result<()> {
        let like_a_scale = [module_of(name), name].into_iter().find_map(|module| self.scale_like.get(module));
        let what = match like_a_scale {
            Some(other) => format!("has no scale that is known, and {} beside it", quoted(other)),
            None if stated => "is quantised by config.json, and has no scale".into(),
            None => return Ok(()),
        };
        Err(refused(model, name, &what))
    }

    /// Codes of 8 bits.
    fn scaled(
        &mut self,
        model: &Model<'a>,
        (name, view): (&str, &View<'a>),
        scale: Option<(&Cow<'a, str>, &View<'a>)>,
        block: Option<[u64; 2]>,
        inputs: &mut InputList,
    ) -> Result<View<'a>> {
        let more = MORE_THAN_SCALES.iter().map(|end| format!("{name}{end}"));
        if let Some(more) = more.into_iter().find(|more| model.tensors.contains_key(&**more)) {
            return Err(refused(model, name, &format!("has more than scales beside it ({})", quoted(&more))));
        }
        let (scales, block) = match scale {
            None => {
                self.bare += 1;
                (Scales::One, whole(&view.shape))
            }
            Some((scale_name, scale)) => {
                let (shape, of_scale) = (&view.shape, &scale.shape);
                let block = blocks(shape, of_scale, block).ok_or_else(|| {
                    let what =
                        format!("has the shape {shape:?}, which its scales of {of_scale:?} do not fit");
                    refused(model, name, &what)
                })?;
                let input = inputs.of(scale);
                let scales = match scale.dtype {
                    Dtype::F8_E8M0 | Dtype::U8 => Some(Scales::Exponents(input)),
                    other => Float::of(other).map(|float| Scales::Floats(Floats { input, float })),
                };
                let no_scales = || refused(model, name, &format!("has scales of type {:?}", scale.dtype));
                self.dropped.insert(scale_name.to_string());
                (scales.ok_or_else(no_scales)?, block)
            }
        };
        let [_, columns] = whole(&view.shape);
        let made = Scaled::new(inputs.of(view), view.dtype, scales, columns, block);
        let from = Origin::Made(inputs.make(made.expect("the type was looked at")));
        Ok(View { dtype: self.dtype, shape: view.shape.clone(), from })
    }

    /// Codes of 4 bits, which become the tensor that they are named after.
    fn microscaled(
        &mut self,
        model: &Model<'a>,
        name: &str,
        view: &View<'a>,
        inputs: &mut InputList,
    ) -> Result<Option<(Cow<'a, str>, View<'a>)>> {
        let Some(stem) = name.strip_suffix("_blocks") else { return Ok(None) };
        let Some((scale_name, scale)) = model.tensors.get_key_value(&*format!("{stem}_scales")) else {
            return Ok(None);
        };
        let fits = |groups: &[usize], bytes: usize| *scale.shape == *groups && bytes == 16;
        let (outer, rows, groups) = match &*view.shape {
            [outer @ .., rows, groups, bytes]
                if fits(&view.shape[..outer.len() + 2], *bytes)
                    && [view.dtype, scale.dtype] == [Dtype::U8; 2]
                    && rows * groups > 0 =>
            {
                (outer, *rows, *groups)
            }
            _ => {
                let what = "and its scales are not of 4 and 8 bits in blocks of 32";
                return Err(refused(model, name, what));
            }
        };
        let columns = groups * 32;
        let made = Microscaled::new(inputs.of(view), inputs.of(scale), rows as u64, columns as u64);
        self.dropped.insert(scale_name.to_string());
        let shape = Cow::Owned([outer, &[columns, rows]].concat());
        let from = Origin::Made(inputs.make(made));
        Ok(Some((Cow::Owned(stem.to_owned()), View { dtype: self.dtype, shape, from })))
    }

    /// Gives a model these tensors, and says so.
    fn put_into(self, model: &mut Model<'a>) -> String {
        let Self { tensors, dtype, first, count, bare, dropped, .. } = self;
        model.tensors = tensors;
        let how = quantisation(&model.config).map_or(String::new(), |how| format!(" ({how})"));
        let was_said = KEYS.iter().any(|key| entry(&model.config, key).is_some());
        for key in KEYS.into_iter().filter(|key| entry(&model.config, key).is_some()) {
            model.edits.insert(key.into(), None);
        }
        let config = model.config.to_mut();
        for key in KEYS {
            config.shift_remove(key);
            if let Some(text) = config.get_mut("text_config").and_then(Json::as_object_mut) {
                text.shift_remove(key);
            }
        }
        let (first, stored) = first.expect("a model with codes has a first one");
        let tensors =
            if count == 1 { quoted(&first) } else { format!("{count} tensors such as {}", quoted(&first)) };
        let how_read = if bare == count { "their values" } else { "code times scale" };
        let stored = if stored == Dtype::U8 { "MXFP4".into() } else { format!("{stored:?}") };
        let without = if bare > 0 && bare < count {
            format!(", and of {bare} of them without scales the values")
        } else {
            String::new()
        };
        let note = format!(
            "{}{how}: {tensors} in {stored}, read as {how_read}{without}, which counts as {dtype:?}",
            model.name
        );
        let gone = [(!dropped.is_empty()).then_some("scales"), was_said.then_some("quantization_config")];
        let gone: Vec<&str> = gone.into_iter().flatten().collect();
        note + &if gone.is_empty() { String::new() } else { format!("; left out: {}", gone.join(" and ")) }
    }
}

fn refused(model: &Model<'_>, tensor: &str, what: &str) -> Error {
    Error::config(format!("{}: tensor {} {what}", model.name, quoted(tensor)))
        .hint("give the model that it was made from, or convert it to bfloat16 first")
}

/// The module that a tensor belongs to: its name without the last part.
fn module_of(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(module, _)| module)
}

/// One block for all.
fn whole(shape: &[usize]) -> [u64; 2] {
    let columns = shape.last().map_or(1, |columns| (*columns).max(1) as u64);
    let elements: u64 = shape.iter().map(|side| *side as u64).product();
    [(elements / columns).max(1), columns]
}

/// The sides of the blocks that have a scale each: as configured, where that fits, else as many as there are scales.
fn blocks(shape: &[usize], scales: &[usize], configured: Option<[u64; 2]>) -> Option<[u64; 2]> {
    let all = whole(shape);
    let [rows_of_all, columns] = all;
    let rows = shape.len().checked_sub(2).map_or(1, |at| shape[at].max(1) as u64);
    let matrices = rows_of_all / rows;
    let one_by_one: Vec<u64> = scales.iter().map(|side| *side as u64).collect();
    if one_by_one.iter().product::<u64>() == 1 {
        return Some(all);
    }
    let (down, across) = match one_by_one[..] {
        // One for each row, or for each of several matrices.
        [count] if count == rows_of_all => return Some([1, columns]),
        [count] if count == matrices => return Some([rows, columns]),
        [.., down, across]
            if scales.len() == shape.len() && scales[..scales.len() - 2] == shape[..shape.len() - 2] =>
        {
            (down, across)
        }
        _ => return None,
    };
    if let Some(block @ [block_rows, block_columns]) = configured
        && [down, across] == [rows.div_ceil(block_rows), columns.div_ceil(block_columns)]
        && (matrices == 1 || rows.is_multiple_of(block_rows))
    {
        return Some(block);
    }
    let fits = down > 0 && across > 0 && rows.is_multiple_of(down) && columns.is_multiple_of(across);
    fits.then(|| [rows / down, columns / across])
}

/// The type that a model computes in, as its config says; bfloat16 where it does not.
fn float_of(config: &Map<String, Json>) -> Dtype {
    let written = ["dtype", "torch_dtype"].iter().find_map(|key| entry(config, key)?.as_str());
    match written.map(|name| name.trim_start_matches("torch.")) {
        Some("float16") => Dtype::F16,
        Some("float32") => Dtype::F32,
        _ => Dtype::BF16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_from_shapes() {
        let configured = Some([128, 128]);
        for (shape, scales, configured, expected) in [
            // DeepSeek, with a rest at the border.
            (&[300, 256][..], &[3, 2][..], configured, Some([128, 128])),
            (&[576, 7168], &[5, 56], configured, Some([128, 128])),
            // One, one for each row, one for each group of a row, one for each column.
            (&[300, 256], &[], configured, Some([300, 256])),
            (&[300, 256], &[1], None, Some([300, 256])),
            (&[300, 256], &[1, 1], None, Some([300, 256])),
            (&[300, 256], &[300, 1], configured, Some([1, 256])),
            (&[300, 256], &[300], None, Some([1, 256])),
            (&[300, 256], &[300, 2], None, Some([1, 128])),
            (&[300, 256], &[1, 256], None, Some([300, 1])),
            // Several matrices.
            (&[4, 256, 128], &[4, 2, 1], configured, Some([128, 128])),
            (&[4, 300, 128], &[4, 3, 1], configured, Some([100, 128])),
            (&[4, 256, 128], &[4], None, Some([256, 128])),
            (&[4, 256, 128], &[4, 1, 1], None, Some([256, 128])),
            (&[4, 256, 128], &[4, 1, 128], None, Some([256, 1])),
            (&[8], &[], None, Some([1, 8])),
            // What fits nothing.
            (&[4, 301, 128], &[4, 3, 1], configured, None),
            (&[300, 256], &[7, 2], configured, None),
            (&[300, 256], &[0, 2], None, None),
            (&[300, 256], &[2, 2, 2], None, None),
            (&[300, 256], &[5], None, None),
        ] {
            assert_eq!(blocks(shape, scales, configured), expected, "{shape:?} {scales:?} {configured:?}");
        }
    }
}
