//! What may lie in a model's folder instead of plain files of the format: links to anywhere, things that are no files, files
//! without end, foreign formats.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::checkpoints::{CONFIG, Cases, INDEX, SINGLE, sparse};
use super::{Ends, write_model};

const TOKENIZER: &str = "tokenizer.json";
const TEMPLATES: &str = "additional_chat_templates";

/// All that a merge reads or copies of a model's folder.
const READ: &[&str] = &[
    CONFIG,
    SINGLE,
    INDEX,
    TOKENIZER,
    "generation_config.json",
    "vocab.txt",
    "modeling_x.py",
    "additional_chat_templates/x.jinja",
];

pub fn all(cases: &mut Cases) {
    links(cases);
    linked_folders(cases);
    cache(cases);
    no_files(cases);
    companions(cases);
    foreign(cases);
}

/// A good model that has all of these files: what links outside of the malformed one may lead to.
pub fn write_elsewhere(folder: &Path) {
    write_model(folder, 3, 1);
    for file in READ.iter().filter(|file| ![CONFIG, SINGLE, INDEX, TOKENIZER].contains(file)) {
        fs::write(folder.join(Path::new(file).file_name().unwrap()), "{}").unwrap();
    }
}

/// Puts something else into the place of a file.
fn instead(b: &Path, file: &str, put: impl Fn(&Path)) {
    let path = b.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    drop(fs::remove_file(&path));
    put(&path);
}

fn link(target: impl AsRef<Path>) -> impl Fn(&Path) {
    move |path| symlink(&target, path).unwrap()
}

/// Where links lead that nobody may follow: what is there is no file, lies elsewhere, or is not there at all.
const TARGETS: &[&str] =
    &["/etc/passwd", "/proc/self/environ", "/dev/zero", "..", "nothing", "../../elsewhere/FILE", "FILE"];

fn links(cases: &mut Cases) {
    for file in [CONFIG, SINGLE, TOKENIZER, "modeling_x.py", "additional_chat_templates/x.jinja"] {
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        for target in TARGETS {
            // From a folder of templates one more step leads out.
            let up = if file.contains('/') && target.starts_with("..") { "../" } else { "" };
            let target = format!("{up}{}", target.replace("FILE", name));
            cases.model(format!("link: {file} to {target}"), Ends::Damaged, move |b| {
                instead(b, file, link(&target));
            });
        }
    }
    for file in [CONFIG, SINGLE, TOKENIZER] {
        cases.model(format!("link: {file} to a file of the same folder"), Ends::Merged, move |b| {
            fs::rename(b.join(file), b.join("the.blob")).unwrap();
            symlink("the.blob", b.join(file)).unwrap();
        });
        cases.model(format!("link: {file} in two steps out of the folder"), Ends::Damaged, move |b| {
            instead(b, "step", link("/etc/passwd"));
            instead(b, file, link("step"));
        });
    }
}

fn linked_folders(cases: &mut Cases) {
    for target in ["/etc", "/dev", "..", "../../elsewhere", TEMPLATES, "nothing", "/etc/passwd"] {
        // Where no folder is, there are no templates.
        let ends =
            if [TEMPLATES, "nothing", "/etc/passwd"].contains(&target) { Ends::Open } else { Ends::Damaged };
        cases.model(format!("link: the folder of templates to {target}"), ends, move |b| {
            instead(b, TEMPLATES, link(target));
        });
    }
    cases.model("link: the folder of templates to its own model".into(), Ends::Open, |b| {
        instead(b, TEMPLATES, link("."));
    });
    cases.model("link: the model's folder".into(), Ends::Open, |b| {
        fs::rename(b, b.with_file_name("c")).unwrap();
        symlink("c", b).unwrap();
    });
}

/// A snapshot of the Hugging Face cache, whose files are links into the blobs beside it.
fn cache(cases: &mut Cases) {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const MERGE: &str = "merge_method: linear\nparameters: {weight: 0.5}\nmodels:\n\
        - model: models--o--n/snapshots/0123456789abcdef0123456789abcdef01234567\n- model: ../a\n";
    let snapshot = |b: &Path| {
        let cached = b.with_file_name("models--o--n");
        let (blobs, snapshot) = (cached.join("blobs"), cached.join("snapshots").join(COMMIT));
        fs::create_dir_all(&snapshot).unwrap();
        fs::rename(b, &blobs).unwrap();
        for file in [CONFIG, SINGLE, TOKENIZER] {
            symlink(Path::new("../../blobs").join(file), snapshot.join(file)).unwrap();
        }
        (blobs, snapshot)
    };
    cases.merged("cache: links into the blobs".into(), Ends::Merged, MERGE, move |b| drop(snapshot(b)));
    for target in ["/etc/passwd", "../../elsewhere/config.json", "nothing"] {
        cases.merged(format!("cache: a blob is a link to {target}"), Ends::Damaged, MERGE, move |b| {
            let (blobs, _) = snapshot(b);
            instead(&blobs, CONFIG, link(target));
        });
    }
    for target in ["../../../../elsewhere/config.json", "../../blobs", "/etc/passwd"] {
        cases.merged(format!("cache: a snapshot's link to {target}"), Ends::Damaged, MERGE, move |b| {
            let (_, snapshot) = snapshot(b);
            instead(&snapshot, CONFIG, link(target));
        });
    }
}

fn no_files(cases: &mut Cases) {
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let folder = |path: &Path| fs::create_dir(path).unwrap();
    let socket = |path: &Path| {
        // Its path must be short: the address of a socket has some hundred bytes.
        let beside = tempfile::Builder::new().tempdir_in(path.ancestors().nth(3).unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(beside.path().join("s")).unwrap());
        fs::rename(beside.path().join("s"), path).unwrap();
    };
    for file in READ {
        cases.model(format!("no file: {file} is a pipe"), Ends::Damaged, move |b| instead(b, file, fifo));
        let copied = ![CONFIG, SINGLE, INDEX].contains(file);
        if copied && file != &TOKENIZER {
            continue;
        }
        let ends = if copied { Ends::Open } else { Ends::Damaged };
        cases.model(format!("no file: {file} is a folder"), ends, move |b| instead(b, file, folder));
        let ends = if copied { Ends::Merged } else { Ends::Damaged };
        cases.model(format!("no file: {file} is empty"), ends, move |b| {
            instead(b, file, |path| fs::write(path, "").unwrap());
        });
    }
    for file in [CONFIG, SINGLE, TOKENIZER] {
        cases.model(format!("no file: {file} is a socket"), Ends::Damaged, move |b| instead(b, file, socket));
        cases.model(format!("no file: {file} is a link to a pipe"), Ends::Damaged, move |b| {
            instead(b, "pipe", fifo);
            instead(b, file, link("pipe"));
        });
    }
}

fn companions(cases: &mut Cases) {
    let endless: [(&str, u64, &str); 6] = [
        (TOKENIZER, 1 << 32, "4 GB"),
        (TOKENIZER, 300_000_000, "300 MB"),
        ("vocab.txt", 1 << 40, "1 TB"),
        ("generation_config.json", 99_000_000, "99 MB"),
        ("modeling_x.py", 1 << 40, "1 TB"),
        ("additional_chat_templates/x.jinja", 1 << 32, "4 GB"),
    ];
    for (file, bytes, what) in endless {
        cases.model(format!("sparse: {file} of {what}"), Ends::Damaged, move |b| {
            instead(b, file, |path| sparse(path, b"{}", bytes));
        });
    }
    cases.model("sparse: a tokenizer of 60 MB".into(), Ends::Open, |b| {
        instead(b, TOKENIZER, |path| sparse(path, b"{}", 60_000_000));
    });
    for (what, folder, count) in [("code", "", 2000), ("templates", TEMPLATES, 2000), ("files", "", 70_000)] {
        cases.model(format!("folder: {count} {what}"), Ends::Open, move |b| {
            let extension = if what == "code" { "py" } else { "jinja" };
            fs::create_dir_all(b.join(folder)).unwrap();
            (0..count).for_each(|i| fs::write(b.join(folder).join(format!("{i}.{extension}")), "").unwrap());
        });
    }
    let long = "x".repeat(252) + ".py";
    for (what, name) in [
        ("a newline", "a\nerror: forged.py"),
        ("an escape sequence", "\u{1b}[2J.py"),
        ("an override", "\u{202e}gpj.py"),
        ("255 bytes", &long),
    ] {
        let name = name.to_string();
        cases.model(format!("folder: a file whose name has {what}"), Ends::Open, move |b| {
            fs::write(b.join(&name), "1").unwrap();
        });
    }
    cases.model("folder: a name that is not UTF-8".into(), Ends::Open, |b| {
        use std::os::unix::ffi::OsStrExt;
        // Some file systems have none.
        drop(fs::write(b.join(std::ffi::OsStr::from_bytes(b"\xff\xfe.py")), "1"));
    });
}

fn foreign(cases: &mut Cases) {
    for (what, start) in [
        ("zip, as of PyTorch", &b"PK\x03\x04\x14\0\0\0"[..]),
        ("a pickle", b"\x80\x02}q\0(X\x04\0\0\0"),
        ("GGUF", b"GGUF\x03\0\0\0\x10\0\0\0\0\0\0\0"),
        ("HDF5", b"\x89HDF\r\n\x1a\n\0\0\0\0"),
        ("a page of HTML", b"<!DOCTYPE html><html><body>Not found</body></html>"),
        ("a message of a server", b"{\"error\":\"Invalid credentials\"}"),
        ("an LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
        ("ones", &[0xff; 4096]),
    ] {
        cases.file(format!("foreign: the weights are {what}"), Ends::Damaged, SINGLE, start);
    }
    for (file, ends) in [
        // What a file is, its first bytes say.
        ("pytorch_model.bin", Ends::Merged),
        ("only.pth", Ends::Merged),
        ("optimizer.bin", Ends::Damaged),
        ("model.gguf", Ends::Damaged),
        ("tf_model.h5", Ends::Damaged),
        ("model.safetensors.part", Ends::Damaged),
        (".safetensors", Ends::Damaged),
    ] {
        cases.model(format!("foreign: {file} instead of the weights"), ends, move |b| {
            fs::rename(b.join(SINGLE), b.join(file)).unwrap();
        });
    }
    cases.model("folder: no config.json".into(), Ends::Damaged, |b| fs::remove_file(b.join(CONFIG)).unwrap());
    cases.model("folder: an adapter".into(), Ends::Damaged, |b| {
        fs::rename(b.join(CONFIG), b.join("adapter_config.json")).unwrap();
    });
    cases.model("folder: empty".into(), Ends::Damaged, |b| {
        [CONFIG, SINGLE, TOKENIZER].iter().for_each(|file| fs::remove_file(b.join(file)).unwrap());
    });
    cases.model("folder: two models".into(), Ends::Damaged, |b| {
        fs::copy(b.join(SINGLE), b.join("x.safetensors")).unwrap();
        fs::rename(b.join(SINGLE), b.join("y.safetensors")).unwrap();
    });
    cases.model("folder: a file in its place".into(), Ends::Refused, |b| {
        fs::remove_dir_all(b).unwrap();
        fs::write(b, "x").unwrap();
    });
}
