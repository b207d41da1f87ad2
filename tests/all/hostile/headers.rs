//! Headers that lie, are damaged, or have too much of something.

use std::fs::{self, File};
use std::io::Write;

use super::checkpoints::{CONFIG, Cases, SINGLE, entry, good, good_file, long_header, sparse, weights};
use super::{Ends, write_model};

pub fn all(cases: &mut Cases) {
    header_lengths(cases);
    truncations(cases);
    header_texts(cases);
    places(cases);
    shapes(cases);
    dtypes(cases);
    names(cases);
    metadata(cases);
    floods(cases);
}

fn header_lengths(cases: &mut Cases) {
    let file = good_file(SINGLE, 1);
    let (right, all) = (u64::from_le_bytes(file[..8].try_into().unwrap()), file.len() as u64);
    let around = [0, 1, 2, right - 1, right + 1, all - 8, all - 7, all];
    let powers = [20, 25, 32, 62, 63].map(|power| 1_u64 << power);
    let edges = [100_000_001, i64::MAX as u64, u64::MAX, u64::MAX - 7];
    for length in around.into_iter().chain(powers).chain(edges) {
        let mut file = file.clone();
        file[..8].copy_from_slice(&length.to_le_bytes());
        cases.file(format!("header length: {length} instead of {right}"), Ends::Damaged, SINGLE, file);
    }
    for (bytes, what) in [(30_000_000, "30 MB"), (99_999_992, "100 MB"), (1 << 40, "1 TB")] {
        let name = format!("header length: {what} of zeros that are there");
        cases.model(name, Ends::Damaged, move |b| {
            sparse(&b.join(SINGLE), &u64::to_le_bytes(bytes), bytes + 8);
        });
    }
}

fn truncations(cases: &mut Cases) {
    let file = good_file(SINGLE, 1);
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let ends = [0, 7, 8, start / 2, start - 1, start];
    for bytes in ends.into_iter().chain([file.len() - 1]) {
        cases.file(
            format!("truncated: {bytes} of {} bytes", file.len()),
            Ends::Damaged,
            SINGLE,
            &file[..bytes],
        );
    }
    for (more, what) in [(1, "one byte"), (1 << 20, "1 MB"), (1 << 42, "4 TB")] {
        let file = file.clone();
        cases.model(format!("too long by {what}"), Ends::Damaged, move |b| {
            sparse(&b.join(SINGLE), &file, file.len() as u64 + more);
        });
    }
}

/// What is wrong, and a header that shows it; one byte of data follows.
const HEADERS: &[(&str, &str)] = &[
    ("nothing", ""),
    ("null", "null"),
    ("a list", "[]"),
    ("open", "{"),
    ("a comma too many", r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}"#),
    ("single quotes", "{'t':{'dtype':'U8','shape':[1],'data_offsets':[0,1]}}"),
    ("a byte order mark", "\u{feff}{}"),
    ("an empty tensor", r#"{"t":{}}"#),
    ("no offsets", r#"{"t":{"dtype":"U8","shape":[1]}}"#),
    ("a dtype in a list", r#"{"t":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}}"#),
    ("a shape as an object", r#"{"t":{"dtype":"U8","shape":{"0":1},"data_offsets":[0,1]}}"#),
    ("three offsets", r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#),
    ("offsets as text", r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":["0","1"]}}"#),
    ("floats as offsets", r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0.0,1.0]}}"#),
    ("Infinity as an offset", r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,Infinity]}}"#),
    ("dtype twice", r#"{"t":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#),
    ("a raw newline in a name", "{\"t\nu\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}"),
    ("half a surrogate", r#"{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#),
    ("an unknown escape", r#"{"\x41":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#),
    (
        "a name twice",
        r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
    ),
    (
        "a name twice, once in escapes",
        r#"{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\u0074":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}"#,
    ),
];

fn header_texts(cases: &mut Cases) {
    for (name, header) in HEADERS {
        cases.header(name, Ends::Damaged, header, 1);
    }
    let invalid = [
        ("a lone byte", &b"{\"\xff\":1}"[..]),
        ("an overlong slash", b"{\"\xc0\xaf\":1}"),
        ("UTF-16", b"{\0}\0"),
    ];
    for (name, header) in invalid {
        cases.file(format!("header not in UTF-8: {name}"), Ends::Damaged, SINGLE, weights(header, 1));
    }
    for (what, open, close) in [("lists", "[", "]"), ("objects", "{\"a\":", "}")] {
        for depth in [200, 100_000] {
            let header = format!("{{\"t\":{}1{}}}", open.repeat(depth), close.repeat(depth));
            cases.header(&format!("{depth} nested {what}"), Ends::Damaged, &header, 1);
            let field = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let header = format!(r#"{{"t":{{"x":{field},"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
            cases.header(&format!("{depth} nested {what} in an unknown field"), Ends::Refused, &header, 1);
        }
    }
}

/// Name, type, shape, and where it starts and ends.
type Entry = (&'static str, &'static str, &'static str, u64, u64);

/// Tensors that lie where they cannot; so many bytes of data follow.
const PLACES: &[(&str, &[Entry], usize)] = &[
    ("the same place", &[("t", "U8", "[4]", 0, 4), ("u", "U8", "[4]", 0, 4)], 4),
    ("an overlap", &[("t", "U8", "[4]", 0, 4), ("u", "U8", "[4]", 2, 6)], 6),
    ("an empty one in the other", &[("t", "U8", "[8]", 0, 8), ("u", "U8", "[0]", 3, 3)], 8),
    ("a hole", &[("t", "U8", "[4]", 0, 4), ("u", "U8", "[4]", 6, 10)], 10),
    ("backwards", &[("t", "U8", "[4]", 4, 0)], 4),
    ("too few bytes", &[("t", "F32", "[4]", 0, 15)], 15),
    ("far beyond the end", &[("t", "U8", "[1099511627776]", 0, 1 << 40)], 8),
    ("at the end of numbers", &[("t", "U8", "[1]", u64::MAX - 1, u64::MAX)], 8),
    ("all numbers", &[("t", "U8", "[18446744073709551615]", 0, u64::MAX)], 8),
    ("an end that overflows with the header", &[("t", "U8", "[9223372036854775807]", 0, i64::MAX as u64)], 8),
    ("an empty one at the end of numbers", &[("t", "U8", "[0]", u64::MAX, u64::MAX)], 8),
    (
        "sizes that overflow together",
        &[("t", "U8", "[9223372036854775808]", 0, 1 << 63), ("u", "U8", "[9223372036854775808]", 1 << 63, 0)],
        8,
    ),
    ("nothing, and data", &[], 8),
];

fn places(cases: &mut Cases) {
    for (name, tensors, data_bytes) in PLACES {
        let entries: Vec<String> =
            tensors.iter().map(|(n, d, s, from, to)| entry(n, d, s, *from, *to)).collect();
        cases.header(name, Ends::Damaged, &format!("{{{}}}", entries.join(",")), *data_bytes);
    }
    for (what, number) in
        [("negative", "-1"), ("2^64", "18446744073709551616"), ("a number of 100 digits", &"9".repeat(100))]
    {
        let header = format!(r#"{{"t":{{"dtype":"U8","shape":[1],"data_offsets":[0,{number}]}}}}"#);
        cases.header(&format!("an offset that is {what}"), Ends::Damaged, &header, 1);
    }
}

fn shapes(cases: &mut Cases) {
    let data_start = good().1.len() as u64;
    let damaged = [
        "[-1]",
        "[1.0]",
        "[true]",
        "[\"1\"]",
        "[[1]]",
        "[18446744073709551616]",
        "[4294967296,4294967296]",
        "[18446744073709551615,0,18446744073709551615]",
        "[9223372036854775807,2,0]",
        "[1,1,2]",
    ];
    for shape in damaged {
        cases.more_tensors(
            &format!("shape {shape} of one byte"),
            Ends::Refused,
            &entry("t", "U8", shape, data_start, data_start + 1),
            1,
        );
    }
    for rank in [8, 64, 65, 1000, 1_000_000] {
        let shape = format!("[{}]", vec!["1"; rank].join(","));
        let ends = if rank > 1000 { Ends::Damaged } else { Ends::Open };
        cases.more_tensors(
            &format!("shape of {rank} ones"),
            ends,
            &entry("t", "U8", &shape, data_start, data_start + 1),
            1,
        );
    }
    cases.model("shape of 49 million ones".into(), Ends::Damaged, |b| {
        let parts = std::iter::repeat_n("1,".repeat(1000), 49_000);
        long_header(
            &b.join(SINGLE),
            r#"{"t":{"dtype":"U8","shape":["#,
            parts,
            r#"1],"data_offsets":[0,1]}}"#,
            1,
        );
    });
    for shape in ["[0]", "[18446744073709551615,0]", "[]", "[1099511627776,0]"] {
        let bytes = u64::from(shape == "[]");
        let entry = entry("t", "U8", shape, data_start, data_start + bytes);
        cases.more_tensors(&format!("shape {shape}"), Ends::Open, &entry, bytes as usize);
    }
}

fn dtypes(cases: &mut Cases) {
    let start = good().1.len() as u64;
    let known = [("F64", 8), ("I64", 8), ("BOOL", 1), ("F8_E4M3", 1), ("F8_E8M0", 1), ("C64", 8)];
    for (dtype, bytes) in known {
        let entry = entry("t", dtype, "[1]", start, start + bytes);
        cases.more_tensors(&format!("dtype {dtype}"), Ends::Open, &entry, bytes as usize);
    }
    let packed = entry("t", "F4", "[3]", start, start + 2);
    cases.more_tensors("dtype F4 of no whole byte", Ends::Damaged, &packed, 2);
    for (what, dtype) in [
        ("an unknown one", "BF17".to_string()),
        ("numpy's", "<f4".into()),
        ("empty", String::new()),
        ("a forged line", "\\nerror: the disk is full".into()),
        ("an escape sequence", "\\u001b[2J\\u009b31m".into()),
        ("right to left", "\\u202eF32\\u2066".into()),
    ] {
        cases.header(
            &format!("dtype: {what}"),
            Ends::Damaged,
            &format!("{{{}}}", entry("t", &dtype, "[1]", 0, 4)),
            4,
        );
    }
    for (what, part) in [("letters", "F"), ("quotes", "\\\""), ("newlines", "\\n")] {
        cases.model(format!("dtype: 10 MB of {what}"), Ends::Damaged, move |b| {
            let parts = std::iter::repeat_n(part.repeat(1000 / part.len()), 10_000);
            let end = r#"","shape":[1],"data_offsets":[0,4]}}"#;
            long_header(&b.join(SINGLE), r#"{"t":{"dtype":""#, parts, end, 4);
        });
    }
}

fn names(cases: &mut Cases) {
    let start = good().1.len() as u64;
    let open = [
        ("empty", String::new()),
        ("NUL", "\\u0000".into()),
        ("a forged line", "x\\nerror: forged\\r\\nhint: run rm -rf".into()),
        ("an escape sequence", "\\u001b]0;title\\u0007\\u001b[2J\\u009b31m".into()),
        ("delete and next line", "\\u007f\\u0085".into()),
        ("right to left", "\\u202egpj.exe".into()),
        ("300 right-to-left overrides", "\\u202e".repeat(300)),
        ("quotes and backslashes", "\\\"\\\\\\\"".into()),
        ("absolute", "/etc/passwd".into()),
        ("1000 numbers", "0.".repeat(500) + "w"),
        ("1024 bytes", "x".repeat(1024)),
        ("layer 2^20 − 1", "model.layers.1048575.w".into()),
        ("layer 2^20", "model.layers.1048576.w".into()),
        ("layer 2^64", "model.layers.18446744073709551616.w".into()),
        ("a layer of 1000 digits", format!("model.layers.{}.w", "9".repeat(1000))),
        ("layer 0 once more", "model.layers.00.w".into()),
        ("a layer without a stack", "0.w".into()),
        ("a head", "lm_head.weight".into()),
    ];
    for (what, name) in open {
        let entry = entry(&name, "BF16", "[1]", start, start + 2);
        cases.more_tensors(&format!("tensor name: {what}"), Ends::Open, &entry, 2);
    }
    // The base model has no such tensor, so that the name gets into a message.
    let lacked = "merge_method: linear\nparameters: {weight: 0.5}\nbase_model: ../a\nmodels: [{model: b}, {model: ../a}]\n";
    let shown = [
        "x\\nerror: forged",
        "\\u001b[2J\\u009b31m",
        "\\u202egpj\\u2066",
        "\\\"",
        "a\\u2028b\\u0085c",
        "\u{202e}",
    ];
    for (i, name) in shown
        .map(String::from)
        .into_iter()
        .chain(["\\u202e", "\\u001b"].map(|part| part.repeat(300)))
        .enumerate()
    {
        let entry = entry(&name, "F64", "[1]", start, start + 8);
        cases.merged(format!("tensor name in a message: {i}"), Ends::Refused, lacked, move |b| {
            let (header, data) = good();
            let header = format!("{},{entry}}}", header.strip_suffix('}').unwrap());
            fs::write(b.join(SINGLE), [weights(header.as_bytes(), 0), data, vec![0; 8]].concat()).unwrap();
        });
    }
    let long = [
        ("1 MB", "x".to_string()),
        ("1 MB of newlines", "\\n".into()),
        ("1 MB of overrides", "\\u202e".into()),
        ("1 MB of layers", "0.".into()),
    ];
    for (what, part) in long {
        let name = part.repeat((1 << 20) / part.len());
        let entry = entry(&name, "BF16", "[1]", start, start + 2);
        cases.more_tensors(&format!("tensor name: {what}"), Ends::Damaged, &entry, 2);
    }
    let stacked = "merge_method: passthrough\nslices:\n- sources: [{model: b, layer_range: [0, 2]}]\n- sources: [{model: b, layer_range: [0, 1]}]\n";
    for (what, layer) in [("million", 1_000_000), ("last one that counts", (1 << 20) - 1)] {
        cases.merged(format!("slices of a model with layer {what}"), Ends::Open, stacked, move |b| {
            let (header, data) = good();
            let header = header.replace("layers.1.", &format!("layers.{layer}."));
            fs::write(b.join(SINGLE), [weights(header.as_bytes(), 0), data].concat()).unwrap();
        });
    }
}

fn metadata(cases: &mut Cases) {
    for (what, ends, metadata) in [
        ("null", Ends::Open, "null".to_string()),
        ("a list", Ends::Damaged, "[]".into()),
        ("a number as a value", Ends::Damaged, r#"{"format":1}"#.into()),
        ("nested", Ends::Damaged, r#"{"format":{"a":"b"}}"#.into()),
        ("a tensor", Ends::Damaged, r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#.into()),
        ("a key twice", Ends::Open, r#"{"a":"b","a":"c"}"#.into()),
        ("steering", Ends::Open, r#"{"format":"\u001b[2J\nerror: forged\u202e"}"#.into()),
    ] {
        cases.model(format!("metadata: {what}"), ends, move |b| {
            let (header, data) = good();
            let header = format!(r#"{{"__metadata__":{metadata},{}"#, &header[1..]);
            fs::write(b.join(SINGLE), [weights(header.as_bytes(), 0), data].concat()).unwrap();
        });
    }
    cases.header("metadata twice", Ends::Damaged, r#"{"__metadata__":{},"__metadata__":{}}"#, 0);
    for (megabytes, ends) in [(10, Ends::Open), (30, Ends::Refused)] {
        cases.model(format!("metadata: {megabytes} MB of text"), ends, move |b| {
            let (header, data) = good();
            let parts = std::iter::repeat_n("x".repeat(1000), 1000 * megabytes);
            long_header(
                &b.join(SINGLE),
                r#"{"__metadata__":{"a":""#,
                parts,
                &format!(r#""}},{}"#, &header[1..]),
                0,
            );
            File::options().append(true).open(b.join(SINGLE)).unwrap().write_all(&data).unwrap();
        });
    }
    for (count, what) in [(100_000, "a hundred thousand"), (1_000_000, "a million")] {
        cases.model(format!("metadata: {what} keys"), Ends::Refused, move |b| {
            let parts = (0..count).map(|i| format!(r#""k{i}":"v","#));
            long_header(&b.join(SINGLE), r#"{"__metadata__":{"#, parts, r#""k":"v"}}"#, 0);
        });
    }
}

/// What is too many, and one of it.
type Flood = (&'static str, Ends, usize, fn(usize) -> String);

const FLOODS: &[Flood] = &[
    ("a hundred thousand empty tensors", Ends::Open, 100_000, |i| entry(&format!("t{i}"), "U8", "[0]", 0, 0)),
    ("250,000 empty tensors", Ends::Refused, 250_000, |i| entry(&format!("t{i}"), "U8", "[0]", 0, 0)),
    ("400,000 empty tensors", Ends::Damaged, 400_000, |i| entry(&format!("t{i}"), "U8", "[0]", 0, 0)),
    ("1.2 million empty tensors", Ends::Damaged, 1_200_000, |i| entry(&format!("t{i}"), "U8", "[0]", 0, 0)),
    ("a hundred thousand tensors in one place", Ends::Damaged, 100_000, |i| {
        entry(&format!("t{i}"), "U8", "[1]", 0, 1)
    }),
    ("a hundred thousand tensors, last one first", Ends::Refused, 100_000, |i| {
        entry(&format!("t{i}"), "U8", "[1]", 99_999 - i as u64, 100_000 - i as u64)
    }),
    ("the same name a hundred thousand times", Ends::Damaged, 100_000, |_| entry("t", "U8", "[0]", 0, 0)),
    ("64,000 heads", Ends::Refused, 64_000, |i| entry(&format!("m{i}.lm_head.weight"), "BF16", "[0]", 0, 0)),
    ("64,000 embeddings", Ends::Refused, 64_000, |i| entry(&format!("m{i}.wte.weight"), "BF16", "[0]", 0, 0)),
    ("a hundred thousand layers", Ends::Refused, 100_000, |i| {
        entry(&format!("model.layers.{i}.w"), "BF16", "[0]", 0, 0)
    }),
    ("a hundred thousand stacks", Ends::Refused, 100_000, |i| {
        entry(&format!("s{i}.0.w"), "BF16", "[0]", 0, 0)
    }),
    ("50,000 stacks of a million layers", Ends::Refused, 50_000, |i| {
        entry(&format!("s{i}.999999.w"), "BF16", "[0]", 0, 0)
    }),
    ("20,000 names of 1000 bytes", Ends::Refused, 20_000, |i| {
        entry(&format!("{}{i}", "x".repeat(1000)), "BF16", "[0]", 0, 0)
    }),
    ("50,000 shapes of 60 dimensions", Ends::Refused, 50_000, |i| {
        entry(&format!("t{i}"), "U8", &format!("[{}0]", "1,".repeat(59)), 0, 0)
    }),
    ("100,000 bad dtypes", Ends::Damaged, 100_000, |i| entry(&format!("t{i}"), "Q4", "[0]", 0, 0)),
];

fn floods(cases: &mut Cases) {
    for &(name, ends, count, one) in FLOODS {
        cases.model(format!("flood: {name}"), ends, move |b| {
            let parts = (0..count).map(|i| one(i) + if i + 1 < count { "," } else { "" });
            let data_bytes = if name.contains("last one first") { count as u64 } else { 0 };
            long_header(&b.join(SINGLE), "{", parts, "}", data_bytes);
        });
    }
    let alone = "merge_method: passthrough\nmodels: [{model: b}]\n";
    for &(name, _, count, one) in &FLOODS[7..12] {
        cases.merged(format!("flood, copied: {name}"), Ends::Open, alone, move |b| {
            let parts = (0..count).map(|i| one(i) + if i + 1 < count { "," } else { "" });
            long_header(&b.join(SINGLE), "{", parts, "}", 0);
        });
    }
    for (what, dtype, bytes) in [
        ("2 TB", "U8", 1_u64 << 41),
        ("8 TB", "BF16", 1 << 43),
        ("16 TB less a page", "F32", (1 << 44) - (1 << 14)),
    ] {
        cases.model(format!("sparse: a tensor of {what}"), Ends::Refused, move |b| {
            let elements = bytes
                / match dtype {
                    "U8" => 1,
                    "BF16" => 2,
                    _ => 4,
                };
            let header = format!("{{{}}}", entry("t", dtype, &format!("[{elements}]"), 0, bytes));
            sparse(&b.join(SINGLE), &weights(header.as_bytes(), 0), 8 + header.len() as u64 + bytes);
        });
    }
    let two = "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: b}, {model: c}]\n";
    cases.merged("flood: 64,000 heads beside 64,000 tensors".into(), Ends::Refused, two, |b| {
        let other = b.with_file_name("c");
        write_model(&other, 3, 1);
        // Neither says whether its head is tied.
        [b, &other].iter().for_each(|folder| fs::write(folder.join(CONFIG), "{}").unwrap());
        let embedding = entry("wte.weight", "BF16", "[0]", 0, 0);
        let heads = (0..64_000).map(|i| entry(&format!("m{i}.lm_head.weight"), "BF16", "[0]", 0, 0) + ",");
        long_header(&b.join(SINGLE), "{", heads, &format!("{embedding}}}"), 0);
        let tensors = (0..64_000).map(|i| entry(&format!("t{i}"), "BF16", "[0]", 0, 0) + ",");
        long_header(&other.join(SINGLE), "{", tensors, &format!("{embedding}}}"), 0);
    });
    cases.merged("values: integers that differ, found late".into(), Ends::Damaged, two, |b| {
        let other = b.with_file_name("c");
        write_model(&other, 3, 1);
        let header = format!("{{{}}}", entry("t", "I64", "[1]", 0, 8));
        fs::write(b.join(SINGLE), weights(header.as_bytes(), 8)).unwrap();
        let mut differing = weights(header.as_bytes(), 8);
        *differing.last_mut().unwrap() = 2;
        fs::write(other.join(SINGLE), differing).unwrap();
    });
    let single = "merge_method: passthrough\ndtype: float32\nmodels: [{model: b}]\n";
    cases.merged("sparse: a tensor of 8 TB, copied".into(), Ends::Refused, single, |b| {
        let header = format!("{{{}}}", entry("t", "BF16", "[4398046511104]", 0, 1 << 43));
        sparse(&b.join(SINGLE), &weights(header.as_bytes(), 0), 8 + header.len() as u64 + (1 << 43));
    });
}
