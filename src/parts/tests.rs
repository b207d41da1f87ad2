//! Records that another process writes while they are looked for.

use std::fs;

use super::record::{RECORD, Record, There};
use crate::error::Result;
use crate::files::Op;
use crate::files::hook::{Fault, Hooked, Planted};

#[test]
fn a_record_that_comes_while_it_is_looked_for_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let why = |read: Result<There>| match read.unwrap() {
        There::Unrecorded(why) => why,
        There::Nothing => "nothing".into(),
        There::Recorded(_) => "a record".into(),
    };
    assert_eq!(why(Record::read(&folder)), "nothing");
    fs::write(folder.join("model.safetensors"), "").unwrap();
    assert_eq!(why(Record::read(&folder)), "it has no part.json");
    fs::write(folder.join(RECORD), "{}").unwrap();
    let hooked = Hooked::on(&folder);
    let fault = Fault::Error(rustix::io::Errno::NOENT);
    hooked.plant(Some(Planted { op: Op::Open, call: 0, fault, lasts: false }));
    let read = why(Record::read(&folder));
    assert_eq!(hooked.hits(), [folder.join(RECORD)]);
    assert!(read.starts_with("part.json is no record of a part: missing field"), "{read}");
}
