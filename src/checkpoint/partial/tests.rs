//! The tests of `OUT.partial`.

use super::*;
use crate::checkpoint::check_out;
use crate::error::Kind;
use std::fs;

fn is_empty(folder: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(folder)?.next().is_none())
}

#[test]
fn a_partial_folder_belongs_to_one_merge() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let first = Partial::create(&out, Access::ANY, None).unwrap();
    let error = Partial::create(&out, Access::ANY, None).unwrap_err();
    assert!(error.message.contains("another process") && error.kind == Kind::Output);
    assert!(first.path().is_dir());
    drop(first);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A folder with `out.partial` as a killed merge leaves it, with these files besides the lock.
fn leftover(lock: &[u8], files: &[&str]) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
    fs::create_dir_all(partial.join("2_Dense")).unwrap();
    fs::write(partial.join(LOCK), lock).unwrap();
    files.iter().for_each(|name| fs::write(partial.join(name), "x").unwrap());
    (dir, out, partial)
}

/// The lock of a merge that wrote these files.
fn lock_of(files: &[&str]) -> Vec<u8> {
    [MARK, (files.join("\n") + "\n").as_bytes()].concat()
}

const WRITTEN: &[&str] = &["model-00001-of-00002.safetensors", "config.json", "2_Dense/model.safetensors"];

#[test]
fn what_a_killed_merge_left_is_cleared() {
    // Noted, but not made.
    let noted = lock_of(&[WRITTEN, &["1_Pooling/deep/config.json"]].concat());
    let (dir, out, partial) = leftover(&noted, WRITTEN);
    let taken = Partial::create(&out, Access::ANY, None).unwrap();
    assert_eq!(fs::read_dir(&partial).unwrap().count(), 1);
    assert_eq!(fs::read(partial.join(LOCK)).unwrap(), MARK);
    taken.publish().unwrap();
    assert!(is_empty(&out).unwrap() && !partial.exists());
    // Killed before it had a lock, and before that was marked.
    fs::create_dir(&partial).unwrap();
    drop(Partial::create(&dir.path().join("out"), Access::ANY, None).unwrap());
    assert!(!partial.exists());
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join(LOCK), "").unwrap();
    drop(Partial::create(&dir.path().join("out"), Access::ANY, None).unwrap());
    assert!(!partial.exists());
}

#[test]
fn nothing_foreign_in_a_partial_folder_is_deleted() {
    let ours = lock_of(WRITTEN);
    let cut_off = [&ours[..], b"notes.txt"].concat();
    let not_text = [&ours[..], b"\xff\n"].concat();
    let foreign: [(&[u8], &str); 7] = [
        (b"", "model.safetensors"),
        (b"lock of another program", "model.safetensors"),
        (&not_text, "model.safetensors"),
        (&ours, "thesis.tex"),
        (&ours, "tokenizer.json"),
        (&ours, "2_Dense/id_rsa"),
        (&cut_off, "notes.txt"),
    ];
    for (lock, name) in foreign {
        let (_dir, out, partial) = leftover(lock, &[&[name], WRITTEN].concat());
        let error = Partial::create(&out, Access::ANY, None).unwrap_err();
        assert!(error.message.contains("is in the way") && error.hint.is_some(), "{error}");
        assert!(WRITTEN.iter().chain([&name]).all(|name| partial.join(name).exists()), "{name}");
    }
    let (_dir, out, partial) = leftover(&lock_of(&["2_Dense/x", "model.safetensors"]), &[]);
    fs::create_dir(partial.join("model.safetensors")).unwrap();
    Partial::create(&out, Access::ANY, None).unwrap_err();
    assert!(partial.join("model.safetensors").is_dir());
}

/// What is left when the process dies at this moment: nothing is cleaned up, and the lock is free.
fn kill(mut partial: Partial) {
    partial.keep = true;
}

#[test]
fn a_merge_killed_before_or_after_the_rename_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let write = || {
        let partial = Partial::create(&out, Access::ANY, None).unwrap();
        partial.create_file("config.json", Access::ANY).unwrap();
        partial.create_file("1_Pooling/deep/config.json", Access::ANY).unwrap();
        partial
    };
    kill(write());
    // A whole merge that was not renamed is a leftover.
    write().publish().unwrap();
    assert!(out.join("config.json").exists() && !out.join(LOCK).exists());
    fs::remove_dir_all(&out).unwrap();
    let partial = write();
    partial.rename().unwrap();
    kill(partial);
    // One that was is an output, and is treated as one.
    assert!(out.join("config.json").exists());
    assert!(check_out(&out, &[]).unwrap_err().message.contains("is not empty"));
    fs::remove_dir_all(&out).unwrap();
    write().publish().unwrap();
}

#[test]
fn parents_that_were_made_go_again_if_nothing_else_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b/out");
    drop(Partial::create(&out, Access::ANY, None).unwrap());
    assert!(is_empty(dir.path()).unwrap());
    let partial = Partial::create(&out, Access::ANY, None).unwrap();
    fs::write(dir.path().join("a/mine"), "").unwrap();
    drop(partial);
    assert!(dir.path().join("a/mine").exists() && !dir.path().join("a/b").exists());
    // Nor does one that could not begin leave any.
    let (_dir, out, partial) = leftover(b"", WRITTEN);
    fs::rename(&partial, out.with_file_name("c.partial")).unwrap();
    Partial::create(&out.with_file_name("c"), Access::ANY, None).unwrap_err();
    Partial::create(&out, Access::ANY, None).unwrap().publish().unwrap();
    assert!(out.is_dir());
}

#[cfg(unix)]
#[test]
fn a_folder_put_in_the_place_of_the_partial_one_is_not_touched() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("precious")).unwrap();
    fs::write(at("precious/model.safetensors"), "mine").unwrap();
    for publish in [false, true] {
        let partial = Partial::create(&at("out"), Access::ANY, None).unwrap();
        fs::rename(at("out.partial"), at("moved")).unwrap();
        symlink(at("precious"), at("out.partial")).unwrap();
        partial.create_file("model.safetensors", Access::ANY).unwrap();
        if publish {
            assert!(partial.publish().unwrap_err().message.contains("put in its place"));
        } else {
            drop(partial);
        }
        assert_eq!(fs::read_to_string(at("precious/model.safetensors")).unwrap(), "mine");
        assert!(!at("out").exists() && is_empty(&at("moved")).unwrap());
        fs::remove_file(at("out.partial")).unwrap();
        fs::remove_dir(at("moved")).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_partial_folder_that_others_can_write_to_is_not_taken_over() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for shared in [0o777, 0o775, 0o702] {
        let (_dir, out, partial) = leftover(&lock_of(WRITTEN), WRITTEN);
        mode(&partial, shared);
        let error = Partial::create(&out, Access::ANY, None).unwrap_err();
        assert!(error.message.contains("others may write to it"), "{error}");
        assert!(partial.join("config.json").exists());
        mode(&partial, 0o755);
        drop(Partial::create(&out, Access::ANY, None).unwrap());
    }
    // Only root can give a folder away.
    if rustix::process::geteuid().is_root() {
        let (_dir, out, partial) = leftover(&lock_of(WRITTEN), WRITTEN);
        chown(&partial, Some(12_345), None).unwrap();
        let error = Partial::create(&out, Access::ANY, None).unwrap_err();
        assert!(error.message.contains("belongs to another user"), "{error}");
        assert!(partial.join("config.json").exists());
    }
}

#[cfg(unix)]
#[test]
fn only_the_user_looks_into_a_partial_folder_and_who_may_read_the_inputs_into_the_output() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let umask = 0o777
        & !{
            fs::create_dir(&out).unwrap();
            mode(&out)
        };
    for (file, folder) in [(0o600, 0o700), (0o640, 0o750), (0o666, 0o777)] {
        let access = Access { file, folder };
        let partial_folder = Partial::create(&out, access, None).unwrap();
        assert_eq!(mode(&partial), 0o700);
        partial_folder.create_file("1_Router/2_Dense/config.json", access).unwrap();
        partial_folder.publish().unwrap();
        assert_eq!(mode(&out), folder & !umask);
        assert_eq!(mode(&out.join("1_Router")), folder & !umask);
        assert_eq!(mode(&out.join("1_Router/2_Dense")), folder & !umask);
        assert_eq!(mode(&out.join("1_Router/2_Dense/config.json")), file & !umask);
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_partial_folder_of_someone_else_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("thesis.tex"), "x").unwrap();
    let error = Partial::create(&out, Access::ANY, None).unwrap_err();
    assert!(error.message.contains("in the way") && error.hint.is_some());
    assert!(partial.join("thesis.tex").exists());
}

#[cfg(unix)]
#[test]
fn a_symlink_named_partial_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join(LOCK), "").unwrap();
    std::os::unix::fs::symlink(&elsewhere, dir.path().join("out.partial")).unwrap();
    let error = Partial::create(&dir.path().join("out"), Access::ANY, None).unwrap_err();
    assert!(error.message.contains("no folder"));
    assert!(elsewhere.join(LOCK).exists());
}

#[test]
fn a_rename_that_fails_leaves_the_finished_files() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let partial = Partial::create(&out, Access::ANY, None).unwrap();
    fs::write(partial.path().join("config.json"), "{}").unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(out.join("appeared"), "").unwrap();
    let error = partial.publish().unwrap_err();
    assert!(error.message.contains("complete") && error.hint.unwrap().contains("out.partial"));
    assert!(dir.path().join("out.partial/config.json").exists());
    assert!(Partial::create(&out, Access::ANY, None).is_err(), "finished files are not taken for leftovers");
}

#[cfg(unix)]
#[test]
fn a_symlink_to_an_empty_folder_is_replaced_where_it_leads() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
    let partial = Partial::create(&dir.path().join("link"), Access::ANY, None).unwrap();
    fs::write(partial.path().join("x"), "").unwrap();
    partial.publish().unwrap();
    assert!(dir.path().join("real/x").exists() && dir.path().join("link").is_symlink());
}

/// As of an output, with results whose files have any name.
#[test]
fn a_work_folder_goes_with_what_was_expected_in_it_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/out.stages");
    let result = |work: &WorkFolder, name: &str| {
        let files = ["model.safetensors", "tokenizer.json", "deep/er/x.json"].map(String::from);
        work.expect(name, &files).unwrap();
        for file in files {
            let file = work.path().join(name).join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "x").unwrap();
        }
    };
    let work = WorkFolder::create(&path).unwrap();
    assert!(
        !work.was_left()
            && WorkFolder::create(&path).unwrap_err().message.contains("another process is writing")
    );
    result(&work, "merged/a/b");
    result(&work, "merged/c.partial");
    drop(work);
    assert!(!dir.path().join("new").exists());
    // Killed: what it left is cleared.
    let leave = || {
        let work = WorkFolder::create(&path).unwrap();
        result(&work, "merged/a");
        // Killed in the middle of the next one.
        work.expect("merged/b", &["x.json".into()]).unwrap();
        fs::create_dir(path.join("merged/b.partial")).unwrap();
        [LOCK, "x.json"]
            .iter()
            .for_each(|file| fs::write(path.join("merged/b.partial").join(file), "x").unwrap());
        fs::write(dir.path().join("lock"), fs::read(path.join(LOCK)).unwrap()).unwrap();
        let kept = dir.path().join("kept");
        fs::rename(path.join("merged"), &kept).unwrap();
        drop(work);
        fs::create_dir_all(&path).unwrap();
        fs::rename(dir.path().join("lock"), path.join(LOCK)).unwrap();
        fs::rename(kept, path.join("merged")).unwrap();
    };
    leave();
    let work = WorkFolder::create(&path).unwrap();
    assert!(work.was_left() && !path.join("merged").exists());
    drop(work);
    assert!(!path.exists());
    // What somebody else put there stays.
    leave();
    fs::write(path.join("merged/a/mine"), "x").unwrap();
    let refusal = WorkFolder::create(&path).unwrap_err();
    assert!(refusal.message.contains("it holds \"merged/a/mine\", which no merge wrote"), "{refusal}");
    assert!(path.join("merged/a/tokenizer.json").exists());
    fs::remove_file(path.join("merged/a/mine")).unwrap();
    let work = WorkFolder::create(&path).unwrap();
    result(&work, "merged/a");
    fs::write(path.join("merged/a/mine"), "x").unwrap();
    drop(work);
    assert!(path.join("merged/a/mine").exists() && !path.join("merged/a/tokenizer.json").exists());
}

/// Two merges saw the place free, and this one got the lock after the other was done.
#[test]
fn a_place_that_was_taken_meanwhile_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("config.json"), "{}").unwrap();
    let refused = Partial::create(&out, Access::ANY, None).unwrap_err();
    assert!(refused.message.contains("exists and is not empty"), "{}", refused.message);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no OUT.partial is left");
}

#[cfg(target_os = "linux")]
#[test]
fn a_partial_folder_that_cannot_be_made_leaves_nothing_nor_do_its_parents() {
    use crate::files::Op;
    use crate::files::hook::{Fault, Hooked, Planted};
    use rustix::io::Errno;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let out = root.join("a/b/out");
    let hooked = Hooked::on(&root);
    let mut failed = 0;
    for op in [Op::Open, Op::Make, Op::MakeFolder, Op::Write, Op::Sync, Op::SyncFolder, Op::Lock, Op::Look] {
        for call in 0.. {
            hooked.plant(Some(Planted { op, call, fault: Fault::Error(Errno::NOSPC), lasts: false }));
            let begun = Partial::create(&out, Access::ANY, None);
            let is_hit = !hooked.hits().is_empty();
            hooked.plant(None);
            failed += usize::from(begun.is_err());
            drop(begun);
            assert!(is_empty(&root).unwrap(), "{op:?} {call}");
            if !is_hit {
                break;
            }
        }
    }
    assert!(failed > 8, "{failed}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_removed_after_the_rename_is_named() {
    use crate::files::Op;
    use crate::files::hook::{Fault, Hooked, Planted};
    use rustix::io::Errno;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let out = root.join("out");
    let hooked = Hooked::on(&root);
    let layout = crate::checkpoint::layout::layout::<crate::checkpoint::layout::OutTensor>(&[], 1 << 30);
    let published = |op, call, fault| {
        let _ = fs::remove_dir_all(&out);
        let what = serde_json::json!({});
        let mut partial =
            Partial::create(&out, Access::ANY, Some(Making { what: &what, anew: false })).unwrap();
        drop(partial.journal(&what, &layout).unwrap().0.expect("it is locked"));
        hooked.plant(Some(Planted { op, call, fault: Fault::Error(fault), lasts: false }));
        let error = partial.publish().unwrap_err();
        assert_eq!(hooked.hits().len(), 1);
        hooked.plant(None);
        assert!(out.is_dir());
        (error.message, error.hint.unwrap())
    };
    for (call, left) in [(0, ".journal and .lock"), (1, ".lock")] {
        let (message, hint) = published(Op::Remove, call, Errno::ACCESS);
        assert!(message.contains(&format!("but {left} could not be removed")), "{message}");
        assert!(hint.starts_with(&format!("remove {left}:")), "{hint}");
    }
    // The folder, its parent, and the folder once more.
    let (message, hint) = published(Op::SyncFolder, 2, Errno::IO);
    assert!(message.contains("gone from there for good is unknown"), "{message}");
    assert!(hint.contains("if they are there"), "{hint}");
    assert!(published(Op::SyncFolder, 1, Errno::IO).0.contains("whether its name is there too is unknown"));
}
