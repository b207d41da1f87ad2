//! Experts in one layout: models that store theirs differently are read as the donor has them.
//!
//! ```text
//! mixtral   block_sparse_moe.experts.3.w1.weight (gate), w3 (up), w2 (down), each a matrix
//! single    mlp.experts.3.gate_proj.weight, up_proj, down_proj, each a matrix
//! fused     mlp.experts.gate_up_proj [experts, 2 · inner, hidden], the gate's rows first, and
//!           mlp.experts.down_proj [experts, hidden, inner]
//! ```
//!
//! All three have the same rows in another order, so each is made of another by [`Rows`], while it is read.

use std::borrow::Cow;
use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::views::{InputList, Model, Origin, View, Views};
use crate::checkpoint::layout::TENSORS_MAX;
use crate::dtype::{Dtype, Float, computed_as, promote};
use crate::error::{Error, Result};
use crate::input::{Floats, Row, Rows};

/// How the experts of a block are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Mixtral,
    Single,
    Fused,
}

/// The names of the fused tensors.
const FUSED: [&str; 2] = ["gate_up_proj", "down_proj"];

impl Layout {
    /// What a layer calls its block of experts.
    fn block(self) -> &'static str {
        if self == Self::Mixtral { "block_sparse_moe" } else { "mlp" }
    }

    /// What an expert's gate, up and down are called.
    fn matrices(self) -> [&'static str; 3] {
        if self == Self::Mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] }
    }

    /// As a note has it.
    fn words(self) -> &'static str {
        match self {
            Self::Mixtral => "one by one (`block_sparse_moe.experts.0.w1`)",
            Self::Single => "one by one (`mlp.experts.0.gate_proj`)",
            Self::Fused => "fused (`mlp.experts.gate_up_proj`)",
        }
    }
}

/// A tensor of experts, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Named<'n> {
    /// What stands before the block: the layer.
    layer: &'n str,
    layout: Layout,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Which expert, and which of its three matrices.
    Matrix(usize, usize),
    /// Which of the two fused tensors.
    Fused(usize),
    /// What some fused layouts have beside these, and what no other layout has a place for.
    Odd,
}

impl<'n> Named<'n> {
    fn of(name: &'n str) -> Option<Self> {
        let (before, rest) = name.split_once(".experts.")?;
        let (layer, block) = before.rsplit_once('.')?;
        if let Some(fused) = FUSED.iter().position(|fused| rest.starts_with(fused)).filter(|_| block == "mlp")
        {
            let part = if rest == FUSED[fused] { Part::Fused(fused) } else { Part::Odd };
            return Some(Self { layer, layout: Layout::Fused, part });
        }
        let layout = [Layout::Mixtral, Layout::Single].into_iter().find(|layout| layout.block() == block)?;
        let (expert, matrix) = rest.strip_suffix(".weight")?.split_once('.')?;
        let matrix = layout.matrices().iter().position(|known| *known == matrix)?;
        // A number that is written otherwise would be another expert of the same number.
        let number = expert.parse::<usize>().ok().filter(|number| number.to_string() == expert)?;
        Some(Self { layer, layout, part: Part::Matrix(number, matrix) })
    }
}

/// Gives all models the donor's layout, where they have experts in another.
pub(super) fn align(views: &mut Views<'_>) {
    let donor = &views.models[views.donor()];
    let Some((layout, odd)) = layout_of(donor) else { return };
    let donor = donor.name.clone();
    for model in &mut views.models {
        let other = model.names().filter_map(Named::of).map(|named| named.layout).find(|own| *own != layout);
        let Some(other) = other else { continue };
        let aligned = match &odd {
            Some(odd) => Err(mixed(&model.name, odd, &donor)),
            None => convert(model, layout, &mut views.inputs),
        };
        match aligned {
            Ok(()) => views.notes.push(format!(
                "{} stores its experts {}: they are read as {donor} has them, {}",
                model.name,
                other.words(),
                layout.words()
            )),
            Err(problem) => views.problems.add(problem),
        }
    }
}

/// The layout of a model's experts, and the name of a tensor that shows that it is a variant of it.
fn layout_of(model: &Model<'_>) -> Option<(Layout, Option<String>)> {
    let mut experts = model.names().filter_map(|name| Some((name, Named::of(name)?)));
    let (_, first) = experts.next()?;
    if first.layout != Layout::Fused {
        return Some((first.layout, None));
    }
    let odd = model.names().find(|name| Named::of(name).is_some_and(|named| named.part == Part::Odd));
    let [gate_up, down] = FUSED.map(|fused| format!("{}.mlp.experts.{fused}", first.layer));
    let shapes = [&gate_up, &down].map(|name| model.tensors.get(name.as_str()).map(|view| &*view.shape));
    let transposed = match shapes {
        [Some(gate_up), Some(down)] => fused_sides(gate_up, down).is_none(),
        _ => false,
    };
    Some((Layout::Fused, odd.map(str::to_owned).or(transposed.then_some(gate_up))))
}

fn mixed(model: &str, odd: &str, donor: &str) -> Error {
    let message = format!(
        "tensor {odd} of {donor}: its experts are fused in a form of their own, and those of {model} are not"
    );
    Error::config(message).hint(
        "forms with biases, transposed or interleaved (gpt-oss, Llama 4) are merged with each other only: \
         save both models in one layout",
    )
}

/// Experts, inner and hidden size of fused tensors of these shapes; none if they do not belong together.
fn fused_sides(gate_up: &[usize], down: &[usize]) -> Option<[usize; 3]> {
    match (gate_up, down) {
        ([experts, twice, hidden], [of_down, hidden_of_down, inner])
            if experts == of_down && hidden == hidden_of_down && *twice == inner.checked_mul(2)? =>
        {
            Some([*experts, *inner, *hidden])
        }
        _ => None,
    }
}

/// The experts of a layer that are in another layout than is wanted.
#[derive(Default)]
struct Block<'a> {
    matrices: BTreeMap<usize, [Option<View<'a>>; 3]>,
    fused: [Option<View<'a>>; 2],
}

/// Makes a model's table anew, with all experts in one layout.
fn convert(model: &mut Model<'_>, layout: Layout, inputs: &mut InputList) -> Result<()> {
    let mut blocks: IndexMap<String, Block<'_>> = IndexMap::new();
    let mut kept = IndexMap::with_capacity(model.tensors.len());
    for (name, view) in std::mem::take(&mut model.tensors) {
        let Some(named) = Named::of(&name).filter(|named| named.layout != layout) else {
            kept.insert(name, view);
            continue;
        };
        if !blocks.contains_key(named.layer) {
            blocks.insert(named.layer.to_owned(), Block::default());
        }
        let block = &mut blocks[named.layer];
        match named.part {
            Part::Matrix(expert, matrix) => block.matrices.entry(expert).or_default()[matrix] = Some(view),
            Part::Fused(tensor) => block.fused[tensor] = Some(view),
            Part::Odd => {
                let message = format!(
                    "tensor {name} of {}: the model that gives config.json stores its experts {}, where this has no place",
                    model.name,
                    layout.words()
                );
                return Err(Error::config(message).hint(
                    "forms with biases, transposed or interleaved (gpt-oss, Llama 4) are merged with each other only",
                ));
            }
        }
    }
    // Routers and the like are called by the block that they belong to.
    model.tensors = kept.into_iter().map(|(name, view)| (renamed(name, layout, &blocks), view)).collect();
    for (layer, block) in blocks {
        let broken = |what: &str| {
            let message = format!("{layer} of {}: its experts do not belong together: {what}", model.name);
            Error::config(message).hint("download the model again, whole")
        };
        let experts = match <[_; 2]>::try_from(block.fused.into_iter().flatten().collect::<Vec<_>>()) {
            Ok(fused) if block.matrices.is_empty() => Experts::of_fused(fused, inputs),
            Err(none) if none.is_empty() => Experts::of_matrices(block.matrices, inputs),
            _ => Err("some are fused and others are not, or a tensor is missing".into()),
        };
        let experts = experts.map_err(|what| broken(&what))?;
        if model.tensors.len() + 3 * experts.count > TENSORS_MAX {
            return Err(broken(&format!("there are {} of them", experts.count)));
        }
        model.tensors.extend(experts.views(&layer, layout, inputs));
    }
    Ok(())
}

/// The name of a tensor that is no expert, where the block that it belongs to is called otherwise in another layout.
fn renamed<'a>(name: Cow<'a, str>, layout: Layout, blocks: &IndexMap<String, Block<'_>>) -> Cow<'a, str> {
    let other = if layout == Layout::Mixtral { Layout::Single } else { Layout::Mixtral };
    for (at, _) in name.match_indices(&format!(".{}.", other.block())) {
        if blocks.contains_key(&name[..at]) {
            let rest = &name[at + other.block().len() + 2..];
            return format!("{}.{}.{rest}", &name[..at], layout.block()).into();
        }
    }
    name
}

/// The experts of a layer: where the rows of their matrices are.
struct Experts {
    count: usize,
    inner: usize,
    hidden: usize,
    /// What they are read from.
    of: Vec<Floats>,
    /// The type that they count as.
    dtype: Dtype,
    /// Of each expert its gate, up and down: the place in `of`, and the first row there.
    matrices: Vec<[(usize, u64); 3]>,
}

impl Experts {
    /// Experts that have matrices of their own.
    fn of_matrices(
        matrices: BTreeMap<usize, [Option<View<'_>>; 3]>,
        inputs: &mut InputList,
    ) -> std::result::Result<Self, String> {
        let mut experts: Option<Self> = None;
        for (place, (expert, views)) in matrices.into_iter().enumerate() {
            let [Some(gate), Some(up), Some(down)] = views else {
                return Err(format!("expert {expert} lacks a matrix"));
            };
            if place != expert {
                return Err(format!("expert {place} is missing"));
            }
            let [inner, hidden] = *gate.shape else { return Err(format!("expert {expert} has no matrices")) };
            let experts = experts.get_or_insert_with(|| Self {
                count: 0,
                inner,
                hidden,
                of: Vec::new(),
                dtype: gate.dtype,
                matrices: Vec::new(),
            });
            let wide = [experts.inner, experts.hidden];
            if *gate.shape != wide || *up.shape != wide || *down.shape != [wide[1], wide[0]] {
                return Err(format!("expert {expert} has matrices of other sizes"));
            }
            experts.count += 1;
            let first = experts.of.len();
            for view in [gate, up, down] {
                experts.dtype = promoted(experts.dtype, view.dtype)?;
                experts.of.push(floats(&view, inputs)?);
            }
            experts.matrices.push([0, 1, 2].map(|matrix| (first + matrix, 0)));
        }
        experts.ok_or_else(|| "there are none".into())
    }

    /// Experts that are fused.
    fn of_fused([gate_up, down]: [View<'_>; 2], inputs: &mut InputList) -> std::result::Result<Self, String> {
        let Some([count, inner, hidden]) = fused_sides(&gate_up.shape, &down.shape) else {
            return Err(format!(
                "{} is {:?} and {} {:?}, perhaps transposed",
                FUSED[0], gate_up.shape, FUSED[1], down.shape
            ));
        };
        if count > TENSORS_MAX {
            return Err(format!("there are {count} of them"));
        }
        let matrices = |expert: usize| {
            let (expert, inner, hidden) = (expert as u64, inner as u64, hidden as u64);
            [(0, 2 * expert * inner), (0, (2 * expert + 1) * inner), (1, expert * hidden)]
        };
        Ok(Self {
            count,
            inner,
            hidden,
            of: vec![floats(&gate_up, inputs)?, floats(&down, inputs)?],
            dtype: promoted(gate_up.dtype, down.dtype)?,
            matrices: (0..count).map(matrices).collect(),
        })
    }

    /// The experts in a layout, by their names there.
    fn views(
        &self,
        layer: &str,
        layout: Layout,
        inputs: &mut InputList,
    ) -> Vec<(Cow<'static, str>, View<'static>)> {
        let block = format!("{layer}.{}.experts", layout.block());
        let Self { count, inner, hidden, .. } = *self;
        if layout == Layout::Fused {
            let gate_up: Vec<_> = self.matrices.iter().flat_map(|[gate, up, _]| [*gate, *up]).collect();
            let down: Vec<_> = self.matrices.iter().map(|[_, _, down]| *down).collect();
            return vec![
                (
                    format!("{block}.{}", FUSED[0]).into(),
                    self.view(&gate_up, &[count, 2 * inner, hidden], inner, inputs),
                ),
                (
                    format!("{block}.{}", FUSED[1]).into(),
                    self.view(&down, &[count, hidden, inner], hidden, inputs),
                ),
            ];
        }
        let mut views = Vec::with_capacity(3 * count);
        for (expert, matrices) in self.matrices.iter().enumerate() {
            let shapes = [[inner, hidden], [inner, hidden], [hidden, inner]];
            for ((matrix, word), shape) in matrices.iter().zip(layout.matrices()).zip(shapes) {
                let name = format!("{block}.{expert}.{word}.weight");
                views.push((name.into(), self.view(&[*matrix], &shape, shape[0], inputs)));
            }
        }
        views
    }

    /// A tensor of several matrices, each of so many rows.
    fn view(
        &self,
        matrices: &[(usize, u64)],
        shape: &[usize],
        rows: usize,
        inputs: &mut InputList,
    ) -> View<'static> {
        // Only what it is made of: neighbours that come from one tensor share it.
        let (mut of, mut runs) = (Vec::<Floats>::new(), Vec::with_capacity(matrices.len()));
        for (input, row) in matrices {
            if of.last() != Some(&self.of[*input]) {
                of.push(self.of[*input]);
            }
            runs.push((Row::Picked { of: of.len() - 1, row: *row }, rows as u64));
        }
        let float = of.iter().map(|of| of.float.dtype()).reduce(promote).and_then(Float::of);
        let columns = shape.last().map_or(1, |columns| *columns as u64);
        let rows = Rows::of_runs(of, columns, float.expect("floats promote to floats"), runs);
        View { dtype: self.dtype, shape: shape.to_vec().into(), from: Origin::Made(inputs.make(rows)) }
    }
}

/// What a view is read from.
fn floats(view: &View<'_>, inputs: &mut InputList) -> std::result::Result<Floats, String> {
    match computed_as(inputs.read_as(view)) {
        Some(float) if view.elements() > 0 => Ok(Floats { input: inputs.as_floats(view), float }),
        _ => Err(format!("a tensor of {:?} is read as rows of floats only", view.dtype)),
    }
}

fn promoted(one: Dtype, other: Dtype) -> std::result::Result<Dtype, String> {
    match [one, other].map(computed_as) {
        [Some(_), Some(_)] => Ok(promote(one, other)),
        _ => Err(format!("they are stored as {one:?} and {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_known_by_their_names() {
        let named = |layer, layout, part| Some(Named { layer, layout, part });
        for (name, expected) in [
            (
                "m.layers.0.block_sparse_moe.experts.7.w3.weight",
                named("m.layers.0", Layout::Mixtral, Part::Matrix(7, 1)),
            ),
            (
                "m.layers.10.mlp.experts.12.down_proj.weight",
                named("m.layers.10", Layout::Single, Part::Matrix(12, 2)),
            ),
            ("m.layers.1.mlp.experts.gate_up_proj", named("m.layers.1", Layout::Fused, Part::Fused(0))),
            ("m.layers.1.mlp.experts.down_proj", named("m.layers.1", Layout::Fused, Part::Fused(1))),
            ("m.layers.1.mlp.experts.gate_up_proj_bias", named("m.layers.1", Layout::Fused, Part::Odd)),
            ("m.layers.0.mlp.experts.07.up_proj.weight", None),
            ("m.layers.0.mlp.experts.7.w1.weight", None),
            ("m.layers.0.mlp.experts.7.up_proj.bias", None),
            ("m.layers.0.mlp.shared_experts.up_proj.weight", None),
            ("m.layers.0.mlp.gate.weight", None),
            ("m.layers.0.other.experts.0.up_proj.weight", None),
        ] {
            assert_eq!(Named::of(name), expected, "{name}");
        }
    }

    #[test]
    fn fused_tensors_belong_together_or_not() {
        assert_eq!(fused_sides(&[4, 6, 5], &[4, 5, 3]), Some([4, 3, 5]));
        for (gate_up, down) in [
            (&[4, 5, 6][..], &[4, 3, 5][..]),
            (&[4, 6, 5], &[3, 5, 3]),
            (&[6, 5], &[5, 3]),
            (&[4, 6, 5], &[4, 3, 5]),
        ] {
            assert_eq!(fused_sides(gate_up, down), None, "{gate_up:?} {down:?}");
        }
    }
}
