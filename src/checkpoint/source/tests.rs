//! The tests of sources.

use super::*;
use crate::checkpoint::layout::{INDEX, SINGLE};
use crate::error::Kind;
use std::fs;
use tempfile::TempDir;

/// A safetensors file of U8 tensors.
fn shard(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    let mut end = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, data)| {
            let start = end;
            end += data.len();
            format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{start},{end}]}}"#, data.len())
        })
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(tensors.iter().flat_map(|(_, data)| *data));
    bytes
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG), r#"{"z":1,"a":2}"#).unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(folder: &TempDir) -> Result<Source> {
    Source::open("me/model", folder.path())
}

fn refused(folder: &TempDir) -> String {
    let error = open(folder).unwrap_err();
    assert_eq!(error.kind, Kind::Input);
    format!("{} | {}", error.message, error.hint.unwrap_or_default())
}

fn index(entries: &str) -> Vec<u8> {
    format!(r#"{{"metadata":{{"total_size":0}},"weight_map":{{{entries}}}}}"#).into_bytes()
}

fn two_shards(entries: &str) -> TempDir {
    folder(&[
        ("m-2.safetensors", &shard(&[("b", &[4, 5]), ("a", &[6])])),
        ("m-1.safetensors", &shard(&[("c", &[1, 2, 3])])),
        (INDEX, &index(entries)),
    ])
}

const GOOD_INDEX: &str = r#""a":"m-2.safetensors","b":"m-2.safetensors","c":"m-1.safetensors""#;

#[test]
fn shards_are_read_by_name_and_tensors_by_offset() {
    let folder = two_shards(GOOD_INDEX);
    let source = open(&folder).unwrap();
    let names: Vec<_> = source.tensors().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["c", "b", "a"]);
    assert_eq!(source.config.keys().collect::<Vec<_>>(), ["z", "a"]);
    assert!(source.warnings().is_empty());
    assert!(source.tensor("d").is_none());
    let mut into = [0; 2];
    source.read_at(source.tensor("c").unwrap(), 1, &mut into, Reads::Copied).unwrap();
    assert_eq!(into, [2, 3]);
    source.read_at(source.tensor("b").unwrap(), 0, &mut into, Reads::Copied).unwrap();
    assert_eq!(into, [4, 5]);
    source.verify_unchanged().unwrap();
}

#[test]
fn a_single_file_may_have_any_name() {
    let weights = shard(&[("a", &[1])]);
    assert_eq!(open(&folder(&[(SINGLE, &weights)])).unwrap().tensors().len(), 1);
    assert_eq!(open(&folder(&[("other.safetensors", &weights)])).unwrap().tensors().len(), 1);
    let two = folder(&[(SINGLE, &weights), ("consolidated.safetensors", &weights)]);
    assert!(open(&two).unwrap().warnings()[0].contains("consolidated.safetensors is no part"));
    let loose = folder(&[("x.safetensors", &weights), ("y.safetensors", &weights)]);
    assert!(refused(&loose).contains("index missing"));
}

#[test]
fn foreign_formats_are_named() {
    assert!(refused(&folder(&[("model.gguf", b"")])).contains("GGUF"));
    assert!(refused(&folder(&[(SINGLE, b"GGUF\x03\0\0\0")])).contains("is in GGUF"));
    assert!(refused(&folder(&[("tf_model.h5", b"")])).contains("from_tf"));
    let before_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80";
    assert!(refused(&folder(&[("pytorch_model.bin", before_1_6)])).contains("before 1.6"));
    assert!(refused(&folder(&[])).contains("no weights"));
    assert!(refused(&folder(&[("training_args.bin", b"")])).contains("no weights"));
}

#[test]
fn a_config_is_needed() {
    let folder = folder(&[(SINGLE, &shard(&[]))]);
    let config = folder.path().join(CONFIG);
    for (text, expected) in
        [("{", "not a JSON object"), ("[]", "not a JSON object"), (r#"{"a":Infinity}"#, "Python")]
    {
        fs::write(&config, text).unwrap();
        assert!(refused(&folder).contains(expected), "{text}");
    }
    fs::remove_file(&config).unwrap();
    assert!(!open(&folder).unwrap().has_config(), "tensors alone");
    fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    assert!(refused(&folder).contains("this is an adapter: write BASE+me/model for"));
    fs::create_dir(&config).unwrap();
    assert!(refused(&folder).contains("not a regular file"));
    // With a config.json it is no model either.
    fs::remove_dir(&config).unwrap();
    fs::write(&config, "{}").unwrap();
    assert!(open(&folder).is_ok(), "a model's weights");
    fs::rename(folder.path().join(SINGLE), folder.path().join("adapter_model.safetensors")).unwrap();
    assert!(refused(&folder).contains("this is an adapter: write BASE+"));
}

#[test]
fn an_index_entry_must_be_a_plain_name() {
    for hostile in [
        "/etc/x.safetensors",
        "../x.safetensors",
        "sub/x.safetensors",
        "..\\\\x.safetensors",
        "C:x.safetensors",
        "x\\u0000.safetensors",
        "model.bin",
        ".safetensors",
        "",
    ] {
        let folder = folder(&[(INDEX, &index(&format!(r#""a":"{hostile}""#)))]);
        assert!(refused(&folder).contains("no plain name"), "{hostile}");
    }
}

#[test]
fn an_index_must_agree_with_its_shards() {
    let wrong = |entries: &str, expected: &str| {
        let message = refused(&two_shards(entries));
        assert!(message.contains(expected), "{message}");
    };
    wrong(r#""a":"m-3.safetensors""#, "no m-3.safetensors");
    wrong(r#""a":"m-1.safetensors""#, "missing");
    wrong(r#""a":"m-1.safetensors","b":"m-2.safetensors""#, "should be in m-1.safetensors but is in m-2");
    wrong(r#""a":"m-2.safetensors","a":"m-2.safetensors""#, "\"a\" is listed twice");
    wrong(r#""a":1"#, "expected a string");
    wrong("", "lists no tensor");
    wrong(r#""a":"m-2.safetensors"},"weight_map":{"#, "duplicate field");
    let bare = folder(&[(INDEX, b"{}")]);
    assert!(refused(&bare).contains("missing field `weight_map`"));
}

#[test]
fn a_tensor_outside_the_index_is_read_and_noted() {
    let source = open(&two_shards(r#""b":"m-2.safetensors","c":"m-1.safetensors""#)).unwrap();
    assert!(source.tensor("a").is_some());
    assert!(source.warnings()[0].contains("omits tensor \"a\";"));
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = folder(&[
        ("m-1.safetensors", &shard(&[("a", &[1])])),
        ("m-2.safetensors", &shard(&[("a", &[1])])),
        (INDEX, &index(r#""a":"m-1.safetensors","b":"m-2.safetensors""#)),
    ]);
    assert!(refused(&folder).contains("\"a\" is in m-1.safetensors as well"));
}

#[test]
fn pointers_of_git_lfs_are_recognised_everywhere() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\n";
    assert!(refused(&folder(&[(SINGLE, pointer)])).contains("git lfs pull"));
    assert!(refused(&folder(&[(INDEX, pointer)])).contains("git lfs pull"));
    assert!(refused(&folder(&[(CONFIG, pointer)])).contains("git lfs pull"));
}

#[test]
fn a_file_that_changes_is_noticed() {
    let folder = two_shards(GOOD_INDEX);
    let (source, late) = (open(&folder).unwrap(), open(&folder).unwrap());
    let tensor = source.tensor("c").unwrap();
    let mut into = [0; 3];
    source.read_at(tensor, 0, &mut into, Reads::Copied).unwrap();
    let file = fs::OpenOptions::new().write(true).open(folder.path().join("m-1.safetensors")).unwrap();
    file.set_len(tensor.offset + 1).unwrap();
    let message = |result: Result<()>| result.unwrap_err().message;
    let truncated = message(source.read_at(tensor, 0, &mut into, Reads::Copied));
    assert!(truncated.contains("truncated while it was read (tensor \"c\")"), "{truncated}");
    assert!(message(source.verify_unchanged()).contains("changed while it was read"));
    assert!(message(late.read_at(tensor, 0, &mut into, Reads::Copied)).contains("changed while it was read"));
}

#[test]
fn a_file_rewritten_at_the_same_size_is_noticed() {
    let folder = two_shards(GOOD_INDEX);
    let source = open(&folder).unwrap();
    let file = fs::OpenOptions::new().write(true).open(folder.path().join("m-1.safetensors")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(source.verify_unchanged().is_err());
}

#[test]
fn a_file_that_is_exchanged_while_it_is_closed_is_noticed() {
    let folder = two_shards(GOOD_INDEX);
    let source = open(&folder).unwrap();
    let read = || source.read_at(source.tensor("c").unwrap(), 0, &mut [0; 3], Reads::Copied);
    let (path, new) = (folder.path().join("m-1.safetensors"), folder.path().join("new"));
    fs::copy(&path, &new).unwrap();
    read().unwrap();
    fs::rename(new, path).unwrap();
    crate::checkpoint::handles::make_room(1);
    assert!(read().unwrap_err().message.contains("changed while it was read"));
}

#[test]
fn a_folder_that_is_exchanged_is_noticed() {
    let folder = two_shards(GOOD_INDEX);
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_file() {
            fs::copy(&entry, inner.join(entry.file_name().unwrap())).unwrap();
        }
    }
    let source = Source::open("me/model", &inner).unwrap();
    fs::rename(&inner, folder.path().join("old")).unwrap();
    fs::create_dir(&inner).unwrap();
    for entry in fs::read_dir(folder.path().join("old")).unwrap().map(|entry| entry.unwrap().path()) {
        fs::rename(&entry, inner.join(entry.file_name().unwrap())).unwrap();
    }
    let read = source.read_at(source.tensor("c").unwrap(), 0, &mut [0; 3], Reads::Copied);
    assert!(read.unwrap_err().message.contains("was replaced while it was read"));
}

#[test]
#[should_panic(expected = "read inside the tensor c")]
fn reading_past_a_tensor_is_a_mistake() {
    let source = open(&two_shards(GOOD_INDEX)).unwrap();
    let _ = source.read_at(source.tensor("c").unwrap(), 2, &mut [0; 2], Reads::Copied);
}

#[test]
fn a_plain_folder_is_identified_by_time_and_header() {
    let folder = folder(&[(SINGLE, &shard(&[("a", &[1])]))]);
    let identity = open(&folder).unwrap().identity();
    let file = &identity["files"][0];
    assert_eq!(file["file"], SINGLE);
    assert_eq!(file["header_blake3"].as_str().unwrap().len(), 64);
    assert!(file["modified"].as_str().unwrap().contains('.'));
    assert!(identity.get("revision").is_none());
    assert!(!identity.to_string().contains(folder.path().to_str().unwrap()));
}

#[test]
fn tensors_of_a_model_are_a_file_or_a_folder_without_a_config() {
    let folder = folder(&[("mask.safetensors", &shard(&[("a", &[1])])), ("other.safetensors", b"")]);
    fs::remove_file(folder.path().join(CONFIG)).unwrap();
    let file = folder.path().join("mask.safetensors");
    let source = Source::open_tensors("the mask", &file).unwrap();
    assert_eq!((source.tensors().len(), source.place()), (1, file.clone()));
    assert!(source.warnings().is_empty());
    let behind = |name: &str| source.file_behind(&fs::metadata(folder.path().join(name)).unwrap());
    assert_eq!((behind("mask.safetensors"), behind("other.safetensors")), (Some(file.clone()), None));
    assert!(Source::open_tensors("both", folder.path()).unwrap_err().message.contains("index missing"));
    fs::remove_file(folder.path().join("other.safetensors")).unwrap();
    let source = Source::open_tensors("all", folder.path()).unwrap();
    assert_eq!((source.tensors().len(), source.place()), (1, folder.path().to_path_buf()));
    assert_eq!(source.file_behind(&fs::metadata(&file).unwrap()), Some(file));
}

#[cfg(unix)]
#[test]
fn a_file_of_tensors_may_be_a_link() {
    let (folder, elsewhere) = (folder(&[(SINGLE, &shard(&[("a", &[1])]))]), tempfile::tempdir().unwrap());
    let link = elsewhere.path().join("mask");
    std::os::unix::fs::symlink(folder.path().join(SINGLE), &link).unwrap();
    let source = Source::open_tensors("the mask", &link).unwrap();
    let mut byte = [0];
    source.read_at(source.tensor_at(0), 0, &mut byte, Reads::Copied).unwrap();
    assert_eq!(byte, [1]);
}

#[cfg(unix)]
#[test]
fn a_snapshot_of_the_cache_is_identified_by_its_hashes() {
    let cache = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (cache.path().join("blobs"), cache.path().join("snapshots/0123abcd"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let sha256 = "0f".repeat(32);
    fs::write(blobs.join(&sha256), shard(&[("a", &[1])])).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{sha256}"), snapshot.join(SINGLE)).unwrap();
    fs::write(snapshot.join(CONFIG), "{}").unwrap();
    let source = Source::open("org/name", &snapshot).unwrap();
    assert_eq!(source.identity()["revision"], "0123abcd");
    assert_eq!(source.identity()["files"][0]["sha256"], sha256);
    let mut into = [0];
    source.read_at(source.tensor("a").unwrap(), 0, &mut into, Reads::Copied).unwrap();
    assert_eq!(into, [1]);
}
