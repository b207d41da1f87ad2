//! The selection on keys in memory, whatever is guessed or counted.

use super::*;
use crate::kernel::{Outcome, Target};

/// Inputs that change under a merge can make counts contradict what was seen before. The selection then ends all the same,
/// with a threshold that what is kept will refute.
#[test]
fn counts_that_contradict_each_other_end_the_search() {
    let elements = 1 << 24;
    for count in [0, u32::MAX] {
        let mut selection = TopK::new(elements, 0, std::iter::once((1, elements / 2)));
        let mut measured = Measured::Nothing;
        let mut sweeps = 0;
        while let Some(Pass::Measure { job, over, .. }) = selection.next(measured) {
            let words: u64 = over.iter().map(|tiles| (tiles.end - tiles.start) * TILE as u64).sum();
            measured = match job {
                Job::Keys(_) => Measured::Words((0..words as u32).map(|i| 1 << 20 | i).collect()),
                _ => Measured::Counts(vec![TileCounts {
                    tiles: 0..tiles(elements),
                    counts: vec![count; magnitudes::WORDS],
                }]),
            };
            sweeps += 1;
            assert!(sweeps < 20, "count {count}: no end");
        }
        assert!(selection.check().is_err(), "count {count}: a merge without a proof has to notice");
    }
}

/// Carries out a pass on the keys of one model.
fn measured(pass: Pass, all: &[f32]) -> Measured {
    let Pass::Measure { job, over, .. } = pass else { panic!("a selection measures") };
    let zeros = vec![0.0; all.len()];
    let part = |tiles: &Range<u64>| tiles.start as usize * TILE..all.len().min(tiles.end as usize * TILE);
    let (mut records, mut words) = (Vec::new(), Vec::new());
    for tile in over.into_iter().flatten().map(|tile| tile..tile + 1) {
        let x = [&zeros[part(&tile)], &all[part(&tile)]];
        if let Outcome::Counts { words } = job.outcome() {
            let mut counts = vec![0; words];
            job.plain(tile.start, &x, Target::Words(&mut counts));
            records.push(TileCounts { tiles: tile, counts });
        } else {
            let start = words.len();
            words.resize(start + x[0].len(), 0);
            job.plain(tile.start, &x, Target::Words(&mut words[start..]));
        }
    }
    if words.is_empty() { Measured::Counts(records) } else { Measured::Words(words) }
}

/// Whatever threshold is guessed, and wherever the cut, the selection ends with the true ones.
#[test]
fn any_guess_ends_at_the_truth() {
    const TILES: usize = 40;
    // Neighbouring keys: one of each in all tiles, and one that only the last tiles have.
    let key = |i: usize| match i / TILE {
        tile @ 37.. => 1000 + tile as u32 % 37 + 3,
        _ => 1000 + (i as u32 + 2) % 3,
    };
    let keys: Vec<u32> = (0..TILES * TILE - 5).map(key).collect();
    let deltas: Vec<f32> = keys.iter().map(|key| f32::from_bits(*key)).collect();
    let elements = keys.len() as u64;
    let equal = |key: u32| keys.iter().filter(|other| **other == key).count() as u64;
    let above: u64 = (1003..1006).map(equal).sum();
    for k in [1, above - 1, above, above + 1, above + 500, above + equal(1002), elements - 7, elements] {
        let Selected { threshold, cut: TieCut::At(cut) } = select(&keys, k) else { panic!("it is known") };
        let truth = Trim::new(threshold, cut);
        for (threshold, cut_tile) in (998..1008).flat_map(|key| [0, 1, 16, 39, 40].map(|tile| (key, tile))) {
            let mut selection = TopK::new(elements, 0, std::iter::once((1, k))).guessing();
            let pass = selection.next(Measured::Nothing).unwrap();
            let Measured::Words(sample) = measured(pass, &deltas) else { panic!("a sample has keys") };
            selection.searches[0].guess(&sample, elements);
            selection.searches[0].likely = Some(Likely { threshold, cut_tile, share: 0.3 });
            assert!(selection.next(Measured::Nothing).is_none() && selection.is_guess());
            let before_cut = cut_tile as usize * TILE;
            let keeps =
                |(i, key): &(usize, &u32)| **key > threshold || (**key == threshold && *i < before_cut);
            let kept = keys.iter().enumerate().filter(keeps).count() as u64;
            selection.prove(std::iter::once(kept));
            let mut found = Measured::Nothing;
            while let Some(pass) = selection.next(found) {
                found = measured(pass, &deltas);
            }
            let trim = selection.trims().next().unwrap();
            assert!(!selection.is_guess());
            let keeps = |trim: Trim| {
                let keeps = |(i, key): (usize, &u32)| {
                    *key > trim.threshold || (*key == trim.threshold && (i as u64) < trim.cut())
                };
                keys.iter().enumerate().map(keeps).collect::<Vec<_>>()
            };
            assert!(
                keeps(trim) == keeps(truth),
                "{k} of {elements}, guessed {threshold} at {cut_tile}: {trim:?}, not {truth:?}"
            );
        }
    }
}

/// Where tiles differ as wholes, a sample of some of them says less than its number of elements suggests.
#[test]
fn tiles_that_differ_widen_a_guess() {
    let tile = |center: u32| (0..TILE as u32).map(move |i| center - TILE as u32 / 2 + i);
    let search = &TopK::new(1 << 30, 0, std::iter::once((1, 1 << 29))).searches[0];
    let deviation = |centers: [u32; 2]| {
        let sample: Vec<u32> = (0..64).flat_map(|i| tile(centers[i % 2])).collect();
        search.deviation(&sample, 10_000, 0.5)
    };
    // √(n/4); and half of all tiles have a quarter more than their share, half a quarter less: √64 · 256.
    assert!((deviation([10_000; 2]) - 128.0).abs() < 1e-9);
    assert!((deviation([9_744, 10_256]) - 2048.0 * (64.0f64 / 63.0).sqrt()).abs() < 1e-6);
    // Keys outside of what is searched do not count.
    let narrowed = Search {
        interval: 9_900..10_100,
        ..TopK::new(1 << 30, 0, std::iter::once((1, 1 << 29))).searches.remove(0)
    };
    let sample: Vec<u32> = (0..64).flat_map(|_| tile(10_000)).collect();
    assert!((narrowed.deviation(&sample, 10_000, 0.5) - (64.0f64 * 200.0 / 4.0).sqrt()).abs() < 1e-9);
}
