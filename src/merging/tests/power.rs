//! The power is cut at every moment.

use super::case::{Case, Watching};
use crate::checkpoint::Reads;
use crate::error::Result;
use crate::files::disk::{Disk, Random};
use crate::files::faulty::all;
use crate::files::hook::{Event, Hooked};
use crate::parts;

/// What happened on the disk while something made an output, and what was there before.
fn recorded(case: &Case, hooked: &Hooked, make: &dyn Fn() -> Result<()>) -> (Disk, Vec<Event>) {
    let (before, numbers) = Disk::read(&case.disk());
    hooked.record(numbers);
    make().unwrap();
    (before, hooked.recorded())
}

/// Cuts the power at every moment while something makes an output of what is on the disk, and has it go on. `may_repeat` says whether
/// it may be asked once more where the output is there already.
pub(crate) fn survives_cuts(case: &Case, make: &dyn Fn() -> Result<()>, may_repeat: bool) {
    let hooked = Hooked::on(&case.root);
    let (before, events) = recorded(case, &hooked, make);
    assert_eq!(case.whole(), Ok(true));
    let at_each = if all() { 50 } else { (300 / events.len()).max(1) };
    let (mut tried, mut whole, mut equal) = (0, 0, 0);
    for end in 0..=events.len() {
        // Once all is done nothing may be lost any more.
        let seeds = if end < events.len() { at_each } else { 10 * at_each };
        for seed in 0..seeds {
            tried += 1;
            let mut random = Random::new((end * 1000 + seed) as u64);
            let mut disk = before.cut(&events[..end], &mut random);
            // Every other time what goes on meets a cut as well.
            for again in 0..=end % 2 {
                disk.write(&case.disk());
                let shown = format!("after {end} of {} events, seed {seed}, cut {again}", events.len());
                let is_there = case.whole().unwrap_or_else(|what| panic!("{shown}: {what}"));
                whole += usize::from(is_there);
                assert!(is_there || end < events.len() || again > 0, "{shown}: the output is gone");
                if is_there || again == end % 2 {
                    if may_repeat || !is_there {
                        case.ends_well(make).unwrap_or_else(|what| panic!("{shown}: {what}"));
                    }
                    equal += 1;
                    break;
                }
                let (before, events) = recorded(case, &hooked, make);
                disk = before.cut(&events[..random.below(events.len())], &mut random);
            }
        }
    }
    println!(
        "{} events, {equal} cuts after which the bytes are equal, {whole} with a whole output",
        events.len()
    );
    assert!(whole > 0 && equal == tried);
}

#[test]
fn a_merge_survives_a_power_cut_at_any_moment() {
    let case = Case::new(2, Reads::Copied, false);
    survives_cuts(&case, &|| case.merge(), false);
}

#[test]
fn parts_survive_a_power_cut_while_they_are_put_together() {
    let case = Case::new(1, Reads::Copied, false);
    (1..=2).for_each(|number| case.part(number).unwrap());
    survives_cuts(&case, &|| parts::finish(&case.out(), false, 1, &Watching::default()).map(drop), true);
}

/// A disk that only says that it has put something there is found out.
#[test]
fn the_model_of_power_cuts_finds_what_was_not_synced() {
    let case = Case::new(1, Reads::Copied, false);
    let hooked = Hooked::on(&case.root);
    let (before, events) = recorded(&case, &hooked, &|| case.merge());
    let damages = |events: Vec<Event>| {
        let mut random = Random::new(7);
        let mut damaged = |_| {
            let end = events.len() - random.below(events.len() / 2);
            before.cut(&events[..end], &mut random).write(&case.disk());
            case.whole().is_err()
        };
        (0..1000).map(&mut damaged).filter(|is_damaged| *is_damaged).count()
    };
    assert_eq!(damages(events.clone()), 0);
    let (files, folders) = (damages(before.lie(&events, false)), damages(before.lie(&events, true)));
    println!(
        "of 1000 cuts each, {files} damage where files are not synced, and {folders} where folders are not"
    );
    assert!(files > 20 && folders > 2, "{files}, {folders}");
}
