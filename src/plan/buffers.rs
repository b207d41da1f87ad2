//! Buffers that a model computes anew when it is loaded: some versions of its code stored them, and others did not.

use std::collections::BTreeSet;

use super::views::Views;
use crate::config::Inputs;
use crate::text::quoted;

/// How their names end: frequencies of rotary positions, positions, and what masks are filled with.
const COMPUTED: &[&str] =
    &["rotary_emb.inv_freq", "position_ids", "attn.masked_bias", "attention.masked_bias"];

/// Of such a buffer that the models do not all have alike, the donor's counts; one that the donor lacks is left out.
pub(super) fn settle(views: &mut Views<'_>) {
    // The layers of slices have their own donors.
    if matches!(views.config.inputs, Inputs::Slices(_)) {
        return;
    }
    let donor = views.donor();
    let mut settled = BTreeSet::new();
    for model in (0..views.models.len()).filter(|model| *model != donor) {
        let of_donor = &views.models[donor].tensors;
        let is_other = |name: &str| {
            let own = &views.models[model].tensors[name];
            of_donor.get(name).is_none_or(|donor| (donor.dtype, &donor.shape) != (own.dtype, &own.shape))
        };
        let computed =
            views.models[model].names().filter(|name| COMPUTED.iter().any(|end| name.ends_with(end)));
        let others: BTreeSet<String> = computed.filter(|name| is_other(name)).map(str::to_owned).collect();
        views.models[model].tensors.retain(|name, _| !others.contains(&**name));
        settled.extend(others);
    }
    if let Some(first) = settled.first() {
        let more =
            if settled.len() == 1 { String::new() } else { format!(" and {} more", settled.len() - 1) };
        let donor = &views.models[donor].name;
        views.notes.push(format!(
            "{}{more}: the models do not have it alike, and compute it when they are loaded; what {donor} has counts",
            quoted(first)
        ));
    }
}
