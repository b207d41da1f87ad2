//! The malformed checkpoints. Each is the model `b`, which gives config.json, tokenizer and names, merged with one that is
//! intact; the weights, and so the refusals, are those of one file unless a case is about shards.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use super::{Case, Ends, write_model};
use super::{companions, files, headers, pickles};
use crate::models::Random;

pub const COUNT: usize = 620;

pub const CONFIG: &str = "config.json";
pub const INDEX: &str = "model.safetensors.index.json";
pub const SINGLE: &str = "model.safetensors";

const MERGE: &str = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: b}, {model: ../a}]\n";

/// Every checkpoint: those written by hand, and as many mutations as are missing.
pub fn all() -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    headers::all(&mut cases);
    index_texts(&mut cases);
    index_files(&mut cases);
    config_texts(&mut cases);
    config_types(&mut cases);
    files::all(&mut cases);
    companions::all(&mut cases);
    pickles::all(&mut cases);
    let written = cases.0.len();
    assert!((150..=COUNT - 60).contains(&written), "{written} checkpoints are written by hand");
    mutations(&mut cases, COUNT - written);
    cases.0
}

/// Cases in the making.
pub struct Cases(Vec<Case>);

impl Cases {
    /// A model whose folder gets damaged.
    pub fn model(&mut self, name: String, ends: Ends, damage: impl Fn(&Path) + Send + Sync + 'static) {
        self.merged(name, ends, MERGE, damage);
    }

    /// As `model`, merged as a config says.
    pub fn merged(
        &mut self,
        name: String,
        ends: Ends,
        config: &'static str,
        damage: impl Fn(&Path) + Send + Sync + 'static,
    ) {
        self.0.push(Case::new(name, ends, move |folder| {
            write_model(&folder.join("b"), 2, 1);
            fs::write(folder.join("config.yml"), config).unwrap();
            damage(&folder.join("b"));
        }));
    }

    /// A model of two shards whose folder gets damaged.
    fn sharded(&mut self, name: String, ends: Ends, damage: impl Fn(&Path) + Send + Sync + 'static) {
        self.model(name, ends, move |b| {
            fs::remove_file(b.join(SINGLE)).unwrap();
            write_model(b, 2, 2);
            damage(b);
        });
    }

    /// A file of the model with other contents.
    pub fn file(&mut self, name: String, ends: Ends, file: &'static str, contents: impl Into<Vec<u8>>) {
        let contents = contents.into();
        self.model(name, ends, move |b| fs::write(b.join(file), &contents).unwrap());
    }

    /// Weights with this header, and so many bytes of data.
    pub fn header(&mut self, name: &str, ends: Ends, header: &str, data_bytes: usize) {
        self.file(format!("header: {name}"), ends, SINGLE, weights(header.as_bytes(), data_bytes));
    }

    /// The good tensors and more of them: entries whose offsets start at the end of the good data, and their bytes.
    pub fn more_tensors(&mut self, name: &str, ends: Ends, entries: &str, data_bytes: usize) {
        let (header, mut data) = good();
        let header = format!("{},{entries}}}", header.strip_suffix('}').unwrap());
        data.resize(data.len() + data_bytes, 0);
        let mut file = weights(header.as_bytes(), 0);
        file.extend(data);
        self.file(name.into(), ends, SINGLE, file);
    }
}

/// A safetensors file.
pub fn weights(header: &[u8], data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + data_bytes, 1);
    file
}

/// The bytes of a file of a good model.
pub fn good_file(name: &str, shards: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path(), 2, shards);
    fs::read(folder.path().join(name)).unwrap()
}

/// The header and the data of good weights.
pub fn good() -> (String, Vec<u8>) {
    let file = good_file(SINGLE, 1);
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (String::from_utf8(file[8..start].to_vec()).unwrap(), file[start..].to_vec())
}

/// A file of this length that takes no room, or as long as the file system can have it.
pub fn sparse(path: &Path, start: &[u8], bytes: u64) {
    let mut file = File::create(path).unwrap();
    file.write_all(start).unwrap();
    let mut bytes = bytes;
    while file.set_len(bytes).is_err() {
        bytes /= 2;
    }
}

/// Writes a long file from parts, of which none has to be in memory with the others.
pub fn long(path: &Path, start: &str, parts: impl Iterator<Item = String>, end: &str) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(start.as_bytes()).unwrap();
    parts.for_each(|part| file.write_all(part.as_bytes()).unwrap());
    file.write_all(end.as_bytes()).unwrap();
    file.flush().unwrap();
}

/// Weights with a long header, made as `long` makes files; then data, which takes no room.
pub fn long_header(
    path: &Path,
    start: &str,
    parts: impl Iterator<Item = String>,
    end: &str,
    data_bytes: u64,
) {
    long(path, &format!("8 bytes.{start}"), parts, end);
    let header_bytes = path.metadata().unwrap().len() - 8;
    let file = File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &header_bytes.to_le_bytes(), 0).unwrap();
    file.set_len(8 + header_bytes + data_bytes).unwrap();
}

pub fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

/// What an index says of the only tensor that it lists: all of it is refused by its spelling, or because it is not there.
const SHARDS: &[&str] = &[
    "",
    ".",
    "../a/model.safetensors",
    "..\\\\a\\\\model.safetensors",
    "/etc/passwd.safetensors",
    "/proc/self/environ",
    "C:part-1.safetensors",
    "part-1.safetensors\\u0000",
    "part-1\\n.safetensors",
    "\\u001b[2Jpart-1.safetensors",
    "part-1\\u202e.safetensors",
    ".safetensors",
    "PART-1.SAFETENSORS",
    "part-7.safetensors",
];

fn index_texts(cases: &mut Cases) {
    let listing =
        |shard: &str| format!(r#"{{"metadata":{{}},"weight_map":{{"model.norm.weight":"{shard}"}}}}"#);
    let long = [255, 256, 1 << 20].map(|bytes| "x".repeat(bytes - 12) + ".safetensors");
    for (i, shard) in SHARDS.iter().map(ToString::to_string).chain(long).enumerate() {
        let name = format!("index: shard {i}, {shard:.40}");
        let index = listing(&shard);
        cases.sharded(name, Ends::Damaged, move |b| fs::write(b.join(INDEX), &index).unwrap());
    }
    for (what, text) in [
        ("null", "null"),
        ("a list", "[]"),
        ("no map", r#"{"metadata":{}}"#),
        ("an empty map", r#"{"weight_map":{}}"#),
        ("a list as a map", r#"{"weight_map":["part-1.safetensors"]}"#),
        ("a number as a shard", r#"{"weight_map":{"model.norm.weight":1}}"#),
        ("a list of shards", r#"{"weight_map":{"model.norm.weight":["part-1.safetensors"]}}"#),
        ("a tensor twice", r#"{"weight_map":{"a":"part-1.safetensors","a":"part-2.safetensors"}}"#),
        ("the map twice", r#"{"weight_map":{"a":"part-1.safetensors"},"weight_map":{}}"#),
        ("a byte order mark", "\u{feff}{\"weight_map\":{}}"),
        ("cut off", r#"{"weight_map":{"model.nor"#),
        ("a tensor that is not there", r#"{"weight_map":{"zzz":"part-1.safetensors"}}"#),
        ("a forged tensor", r#"{"weight_map":{"\nerror: forged\u001b[2J\u202e":"part-1.safetensors"}}"#),
        ("an LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
        ("a page of HTML", "<!DOCTYPE html><html><body>Not found</body></html>"),
    ] {
        cases.sharded(format!("index: {what}"), Ends::Damaged, move |b| {
            fs::write(b.join(INDEX), text).unwrap();
        });
    }
    for (what, total) in [("text", "\"x\""), ("huge", "1e999")] {
        cases.sharded(format!("index: total_size is {what}"), Ends::Open, move |b| {
            let text = fs::read_to_string(b.join(INDEX)).unwrap();
            fs::write(
                b.join(INDEX),
                text.replace("\"metadata\":{}", &format!("\"metadata\":{{\"total_size\":{total}}}")),
            )
            .unwrap();
        });
    }
}

fn index_files(cases: &mut Cases) {
    cases.sharded("index: shards swapped".into(), Ends::Damaged, |b| {
        let text = fs::read_to_string(b.join(INDEX)).unwrap();
        let text = text.replace("part-1", "part-x").replace("part-2", "part-1").replace("part-x", "part-2");
        fs::write(b.join(INDEX), text).unwrap();
    });
    cases.sharded("index: a shard is missing".into(), Ends::Damaged, |b| {
        fs::remove_file(b.join("part-2.safetensors")).unwrap();
    });
    cases.sharded("index: a shard is the other one".into(), Ends::Damaged, |b| {
        fs::copy(b.join("part-1.safetensors"), b.join("part-2.safetensors")).unwrap();
    });
    cases.sharded("index: a shard is empty".into(), Ends::Damaged, |b| {
        fs::write(b.join("part-2.safetensors"), "").unwrap();
    });
    cases.sharded("index: a shard is cut off".into(), Ends::Damaged, |b| {
        let bytes = fs::read(b.join("part-2.safetensors")).unwrap();
        fs::write(b.join("part-2.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    });
    cases.sharded("index: none, for two shards".into(), Ends::Damaged, |b| {
        fs::remove_file(b.join(INDEX)).unwrap();
    });
    cases.sharded("index: a whole model lies beside the shards".into(), Ends::Open, |b| {
        fs::copy(b.join("../../a").join(SINGLE), b.join(SINGLE)).unwrap();
    });
    let entries = |count: usize, shard: fn(usize) -> String| {
        move |b: &Path| {
            let parts = (0..count)
                .map(|i| format!("\"t{i}\":\"{}\"{}", shard(i), if i + 1 < count { "," } else { "" }));
            long(&b.join(INDEX), "{\"weight_map\":{", parts, "}}");
        }
    };
    let one = |_: usize| "part-1.safetensors".to_string();
    let each = |i: usize| format!("x{i}.safetensors");
    cases.sharded("index: 100,000 entries of one shard".into(), Ends::Damaged, entries(100_000, one));
    cases.sharded("index: 100,000 shards".into(), Ends::Damaged, entries(100_000, each));
    cases.sharded("index: 1,500,000 entries".into(), Ends::Damaged, entries(1_500_000, one));
    cases.sharded("index: 3,000,000 shards".into(), Ends::Damaged, entries(3_000_000, each));
    cases.sharded("index: 99 MB of zeros".into(), Ends::Damaged, |b| sparse(&b.join(INDEX), b"", 99_000_000));
    cases.sharded("index: 60 MB of metadata".into(), Ends::Open, |b| {
        let text = fs::read_to_string(b.join(INDEX)).unwrap();
        let parts = std::iter::repeat_n("0,".repeat(1000), 30_000);
        long(&b.join(INDEX), "{\"x\":[", parts, &format!("0],{}", &text[1..]));
    });
    cases.sharded("index: 3000 shards that are there".into(), Ends::Refused, |b| {
        for i in 0..3000 {
            let header = format!("{{{}}}", entry(&format!("t{i}"), "U8", "[0]", 0, 0));
            fs::write(b.join(format!("x{i}.safetensors")), weights(header.as_bytes(), 0)).unwrap();
        }
        let parts = (0..3000).map(|i| format!("\"t{i}\":\"x{i}.safetensors\","));
        long(&b.join(INDEX), "{\"weight_map\":{", parts, "\"model.norm.weight\":\"part-1.safetensors\"}}");
    });
}

/// What is wrong with config.json, and how that ends.
const CONFIGS: &[(&str, Ends, &str)] = &[
    ("empty", Ends::Damaged, ""),
    ("null", Ends::Damaged, "null"),
    ("a list", Ends::Damaged, "[]"),
    ("a number", Ends::Damaged, "1e400"),
    ("Infinity", Ends::Damaged, "{\"a\":Infinity}"),
    ("NaN", Ends::Damaged, "{\"a\":NaN}"),
    ("too large a float", Ends::Open, "{\"a\":1e999}"),
    ("a control character", Ends::Damaged, "{\"a\":\"\u{1}\"}"),
    ("a byte order mark", Ends::Open, "\u{feff}{}"),
    ("half a surrogate", Ends::Damaged, "{\"\\ud800\":1}"),
    ("a key twice", Ends::Open, "{\"num_hidden_layers\":2,\"num_hidden_layers\":3}"),
    ("an integer beyond 64 bits", Ends::Open, "{\"a\":340282366920938463463374607431768211456}"),
    (
        "steering keys and values",
        Ends::Open,
        "{\"\\nerror: x\\u001b[2J\":\"\\u202e\\u0000\",\"architectures\":[\"\\u001b[2J\"]}",
    ),
    ("a list for each layer", Ends::Open, "{\"\\u001b[2J\\nx\":[1,2],\"num_hidden_layers\":2}"),
];

fn config_texts(cases: &mut Cases) {
    for (what, ends, text) in CONFIGS {
        cases.file(format!("config.json: {what}"), *ends, CONFIG, *text);
    }
    let wide =
        |order: fn(u16) -> [u8; 2]| "\u{feff}{\"a\": 1}".encode_utf16().flat_map(order).collect::<Vec<u8>>();
    cases.file("config.json: UTF-16, little end first".into(), Ends::Damaged, CONFIG, wide(u16::to_le_bytes));
    cases.file("config.json: UTF-16, big end first".into(), Ends::Damaged, CONFIG, wide(u16::to_be_bytes));
    cases.file("config.json: Latin-1".into(), Ends::Damaged, CONFIG, *b"{\"a\":\"caf\xe9\"}");
    for (what, open, close) in [("lists", "[", "]"), ("objects", "{\"a\":", "}")] {
        for depth in [100, 200, 100_000] {
            let ends = if depth == 100 { Ends::Open } else { Ends::Refused };
            let text = format!("{{\"a\":{}1{}}}", open.repeat(depth), close.repeat(depth));
            cases.file(format!("config.json: {depth} nested {what}"), ends, CONFIG, text);
        }
    }
    let zeros = |kilobytes: usize| {
        move |b: &Path| {
            long(&b.join(CONFIG), "{\"a\":[", std::iter::repeat_n("0,".repeat(500), kilobytes), "0]}");
        }
    };
    cases.model("config.json: 1 MB of zeros in a list".into(), Ends::Open, zeros(1000));
    cases.model("config.json: 99 MB of zeros in a list".into(), Ends::Damaged, zeros(99_000));
    let lists =
        |b: &Path| long(&b.join(CONFIG), "{\"a\":[", std::iter::repeat_n("[],{},".repeat(100), 1700), "0]}");
    cases.model("config.json: 1 MB of empty lists and objects".into(), Ends::Open, lists);
    let keys = |b: &Path| long(&b.join(CONFIG), "{", (0..90_000).map(|i| format!("\"{i}\":0,")), "\"a\":0}");
    cases.model("config.json: 90,000 keys".into(), Ends::Open, keys);
    for (what, bytes) in
        [("1 MB and a byte", (1_u64 << 20) + 1), ("99 MB", 99_000_000), ("4 GB", 1 << 32), ("8 TB", 1 << 43)]
    {
        cases.model(format!("config.json: {what}, sparse"), Ends::Damaged, move |b| {
            sparse(&b.join(CONFIG), b"{}", bytes);
        });
    }
    for (what, digits) in
        [("an integer", "9".repeat(100_000)), ("a fraction", format!("0.{}", "9".repeat(100_000)))]
    {
        let text = format!("{{\"a\":{digits}}}");
        cases.file(format!("config.json: {what} of 100,000 digits"), Ends::Open, CONFIG, text);
    }
    cases.file(
        "config.json: a key of 1 MB".into(),
        Ends::Open,
        CONFIG,
        format!("{{\"{}\":[1,2]}}", "x".repeat(1_000_000)),
    );
}

/// Every key that is read, with every kind of value that it should not have.
fn config_types(cases: &mut Cases) {
    let keys = ["tie_word_embeddings", "num_hidden_layers", "text_config", "torch_dtype"];
    let values = ["null", "\"x\"", "18446744073709551616"];
    for key in keys {
        for value in values {
            cases.file(
                format!("config.json: {key} is {value}"),
                Ends::Open,
                CONFIG,
                format!("{{\"{key}\":{value}}}"),
            );
        }
    }
}

/// Good files with a few bytes changed, each from a seed of its own.
fn mutations(cases: &mut Cases, count: usize) {
    let weights = good_file(SINGLE, 1);
    let config = good_file(CONFIG, 1);
    let index = good_file(INDEX, 2);
    for i in 0..count {
        let mut random = Random(i as u64);
        match i % 8 {
            6 => cases.file(
                format!("mutation {i} of config.json"),
                Ends::Open,
                CONFIG,
                mutated(&config, &mut random),
            ),
            7 => {
                let index = mutated(&index, &mut random);
                cases.sharded(format!("mutation {i} of the index"), Ends::Open, move |b| {
                    fs::write(b.join(INDEX), &index).unwrap();
                });
            }
            _ => cases.file(
                format!("mutation {i} of the weights"),
                Ends::Open,
                SINGLE,
                mutated(&weights, &mut random),
            ),
        }
    }
}

/// One to four changes: bits and bytes, spans that are lost, doubled, moved or overwritten, and numbers.
pub fn mutated(good: &[u8], random: &mut Random) -> Vec<u8> {
    const INTERESTING: [u8; 16] = *b"\0\n\"\\{}[],:09-.e\xff";
    let mut bytes = good.to_vec();
    for _ in 0..=random.next() % 4 {
        let mut below = |end: usize| (random.next() % end.max(1) as u64) as usize;
        let (at, length) = (below(bytes.len()), 1 + below(12));
        let end = bytes.len().min(at + length);
        match below(8) {
            0 => bytes[at] ^= 1 << below(8),
            1 => bytes[at] = below(256) as u8,
            2 => bytes[at] = INTERESTING[below(16)],
            3 => drop(bytes.drain(at..end)),
            4 => bytes
                .splice(at..at, good[at.min(good.len() - 1)..good.len().min(end)].to_vec())
                .for_each(drop),
            5 => bytes[at..end].rotate_left(length.min(end - at) / 2),
            6 => bytes.splice(at..end, std::iter::repeat_n(b'9', length)).for_each(drop),
            _ => bytes.truncate(bytes.len().saturating_sub(below(4))),
        }
        if bytes.is_empty() {
            bytes.push(b'0');
        }
    }
    bytes
}
