//! The inputs that recipes want made of the models.

use super::data::Merge;
use crate::input::{Fisher, Floats, Importance, Input, Made, Ranks, Spread, Stated, Vectors, Weighed, Zeros};
use crate::recipe::Making;

/// Makes what a tensor's recipe wants, and adds it to the inputs of the plan and of the tensor. `importance` is that of the
/// models' elements, as far as files say it.
pub(super) fn make(merge: &mut Merge, importance: &[Option<Stated>], inputs: &mut Vec<Input>) {
    // Nothing is read of a tensor without elements, whose rows may have no columns.
    if merge.settings.elements == 0 {
        return;
    }
    for making in std::mem::take(&mut merge.recipe.made) {
        let made = made(&making, merge, importance);
        merge.floats.push(made.float());
        merge.inputs.push(inputs.len());
        inputs.push(Input::Made(made));
        merge.recipe.made.push(making);
    }
}

fn made(making: &Making, merge: &Merge, importance: &[Option<Stated>]) -> Box<dyn Made> {
    let of = |place: usize| Floats { input: merge.inputs[place], float: merge.floats[place] };
    let (shape, elements) = (&merge.settings.shape, merge.settings.elements);
    match making {
        Making::Zeros => Box::new(Zeros),
        Making::Spread { base, models } => {
            Box::new(Spread::new(of(*base), models.iter().map(|model| of(*model)).collect()))
        }
        Making::Importance { base, model } => {
            let columns = shape.last().map_or(1, |columns| *columns as u64);
            Box::new(Importance::new(of(*base), of(*model), columns, elements))
        }
        Making::Fisher { models, floor } => {
            let weighed = |(model, weight): &(usize, f32)| Weighed {
                model: of(*model),
                weight: *weight,
                importance: importance[*model].clone(),
            };
            Box::new(Fisher::new(models.iter().map(weighed).collect(), *floor))
        }
        Making::Ranks { base, model, density, epsilon, key } => Box::new(Ranks::new(
            [of(*base), of(*model)],
            Vectors::of(shape),
            elements,
            *density,
            *epsilon,
            *key,
        )),
    }
}
