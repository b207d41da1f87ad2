//! Files of `torch.save` that lie, or have too much of something.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;

use super::Ends;
use super::checkpoints::{Cases, SINGLE, sparse};
use super::tensors;
use crate::models::stored;
use crate::torch_files::{Entry, archive, archived, dict_of, tensor_of, torch_file, view_of, zip};

const FILE: &str = "pytorch_model.bin";

pub fn all(cases: &mut Cases) {
    whole(cases);
    floods(cases);
    archives(cases);
}

/// The weights as this file instead of their own.
fn instead(cases: &mut Cases, what: &str, ends: Ends, file: impl Fn() -> Vec<u8> + Send + Sync + 'static) {
    cases.model(format!("pickle: {what}"), ends, move |b| {
        fs::remove_file(b.join(SINGLE)).unwrap();
        fs::write(b.join(FILE), file()).unwrap();
    });
}

fn whole(cases: &mut Cases) {
    instead(cases, "a good one", Ends::Merged, || torch_file(&tensors(2)));
    instead(cases, "the good ones, cut short", Ends::Damaged, || {
        let mut file = torch_file(&tensors(2));
        file.truncate(file.len() - 30);
        file
    });
    instead(cases, "os.system", Ends::Damaged, || archive(b"cos\nsystem\n(X\x05\x00\x00\x00touchtR.", &[]));
    instead(cases, "a tensor of 2^62 bytes", Ends::Damaged, || {
        archive(&dict_of(&view_of(0, Dtype::F32, 1 << 60, 0, &[1 << 60], &[1])), &[&[0; 4]])
    });
    instead(cases, "a tensor that is one element often", Ends::Damaged, || {
        archive(&dict_of(&view_of(0, Dtype::F32, 1, 0, &[1 << 40], &[0])), &[&[0; 4]])
    });
}

/// What repeats in a pickle, up to nearly all that is read of one.
const FLOODS: &[(&str, &[u8])] = &[
    ("nothing", b"N0"),
    ("values in hand", b"N"),
    ("marks", b"("),
    ("lists", b"]0"),
    ("lists in lists", b"]a"),
    ("tuples", b")0"),
    ("tuples of the tuple before", b"\x85"),
    ("pairs", b"NN\x860"),
    ("dicts", b"}0"),
    ("a list that grows", b"Na"),
    ("a dict that grows", b"NNs"),
    ("sets", b"\x8f0"),
    ("texts", b"X\x01\x00\x00\x00a0"),
    ("the memo", b"\x94"),
    ("the memo, over and over", b"q\x01"),
    ("what is remembered", b"h\x000"),
    ("names", b"ctorch\nfloat16\n0"),
    ("calls", b"ccollections\nOrderedDict\n)R0"),
    ("frames", b"\x95\x00\x00\x00\x00\x00\x00\x00\x00"),
    ("long numbers", b"\x8b\x03\x00\x00\x00abc0"),
];

/// Writes an archive of a pickle that is `one`, many times, behind a list or a dict. In pieces: what this process takes would count
/// as the child's.
fn write_flood(path: &Path, one: &[u8], bytes: usize) {
    let start = if one.starts_with(b"NNs") { &b"}q\x00"[..] } else { b"]q\x00" };
    let count = bytes / one.len();
    let pickle_bytes = (start.len() + count * one.len() + 1) as u32;
    let mut entry = Entry::new("m/data.pkl", "");
    entry.listed.0 = Some(pickle_bytes);
    let mut around = zip(&[entry], false);
    let directory = around.len() - 6;
    let place = u32::from_le_bytes(around[directory..directory + 4].try_into().unwrap());
    around[directory..directory + 4].copy_from_slice(&(place + pickle_bytes).to_le_bytes());
    let (before, behind) = around.split_at(place as usize);
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(before).unwrap();
    file.write_all(start).unwrap();
    (0..count).for_each(|_| file.write_all(one).unwrap());
    file.write_all(b".").unwrap();
    file.write_all(behind).unwrap();
}

fn floods(cases: &mut Cases) {
    let mut flood = |what: &str, one: &'static [u8], bytes: usize| {
        cases.model(format!("pickle: {what}"), Ends::Damaged, move |b| {
            fs::remove_file(b.join(SINGLE)).unwrap();
            write_flood(&b.join(FILE), one, bytes);
        });
    };
    for (what, one) in FLOODS {
        flood(&format!("30 MB of {what}"), one, 30_000_000);
    }
    flood("100 MB of a pickle", b"N0", 100_000_000);
    instead(cases, "a dict of a dict of a dict, each with 100,000 entries", Ends::Damaged, || {
        let entries = [b"}(".to_vec(), b"NN".repeat(100_000), b"u".to_vec()].concat();
        archive(
            &[
                entries,
                b"ccollections\nOrderedDict\nq\x010\x85".to_vec(),
                b"q\x02h\x01h\x02R0".repeat(10_000),
                b".".to_vec(),
            ]
            .concat(),
            &[],
        )
    });
    instead(cases, "a name of 2 MB", Ends::Damaged, || {
        let one = stored(Dtype::F32, &[1], &[1.0]);
        let mut pickle = b"\x80\x02}X".to_vec();
        pickle.extend(2_000_000_u32.to_le_bytes());
        pickle.extend(vec![b'x'; 2_000_000]);
        archive(&[pickle, tensor_of(0, &one), b"s.".to_vec()].concat(), &[&one.bytes])
    });
    instead(cases, "a function's name of 2 MB", Ends::Damaged, || {
        archive(&[&b"cos\n"[..], &vec![b'x'; 2_000_000], b"\n."].concat(), &[])
    });
    instead(cases, "270,000 tensors", Ends::Damaged, || {
        let one = stored(Dtype::F32, &[1], &[1.0]);
        let mut pickle = [&b"\x80\x02}q\x00"[..], &tensor_of(0, &one), b"q\x010"].concat();
        (0..270_000_u32).for_each(|i| {
            pickle.extend(b"X\x04\x00\x00\x00");
            pickle.extend(i.to_le_bytes().map(|byte| byte % 64 + b' '));
            pickle.extend(b"h\x01s");
        });
        pickle.push(b'.');
        archive(&pickle, &[&one.bytes])
    });
}

fn archives(cases: &mut Cases) {
    instead(cases, "70,000 entries", Ends::Damaged, || {
        zip((0..70_000).map(|i| Entry::new(&format!("m/data/{i}"), "")), true)
    });
    instead(cases, "270,000 entries", Ends::Damaged, || {
        zip((0..270_000).map(|i| Entry::new(&format!("m/data/{i}"), "")), true)
    });
    instead(cases, "20,000 entries with names of 1000 bytes", Ends::Damaged, || {
        zip((0..20_000).map(|i| Entry::new(&format!("m/{i:0>1000}"), "")), true)
    });
    for (what, claimed) in [("4 GB", u32::MAX - 1), ("2 GB", 1 << 31)] {
        instead(cases, &format!("a pickle that claims {what}"), Ends::Damaged, move || {
            let mut entries = archived(b"}.", &[]);
            entries[0].listed.0 = Some(claimed);
            zip(&entries, false)
        });
    }
    cases.model("pickle: a terabyte of zeros behind it".into(), Ends::Damaged, |b| {
        fs::remove_file(b.join(SINGLE)).unwrap();
        sparse(&b.join(FILE), &torch_file(&tensors(2)), 1 << 40);
    });
}
