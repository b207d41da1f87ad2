//! What `verify` says of an output where not all could be looked at.

use std::os::unix::fs::PermissionsExt;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::*;

impl Case {
    /// The object that it prints, and the last of its errors, which has the exit code.
    #[track_caller]
    fn json(&self, code: i32, more: &[&str]) -> (Json, Json) {
        let ended = self.verify(&[more, &["--json"]].concat());
        assert_eq!(ended.code, Some(code), "{}", ended.stderr);
        let errors: Vec<Json> =
            ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = errors.last().unwrap().clone();
        assert_eq!((&last["level"], &last["exit_code"]), (&json!("error"), &json!(code)), "{}", ended.stderr);
        (serde_json::from_str(&ended.stdout).unwrap(), last)
    }
}

/// Whatever is wrong with the inputs: the files of the output were read, and what they are is said.
#[test]
fn who_cannot_look_at_the_inputs_hears_of_the_output() {
    let case = Case::new();
    let ways: [&[&str]; 2] = [&["--recompute", "1"], &["--hash-inputs"]];
    let files = |found: &Json| -> Vec<String> {
        let problems = found["problems"].as_array().unwrap().iter();
        problems.map(|problem| problem["file"].as_str().unwrap().to_owned()).collect()
    };
    let (one, moved) = (case.at("one"), case.at("moved"));
    let shard = models::safetensors_files(&one)[0].clone();
    let (beside, aside) = (case.at("out/generation_config.json"), case.at("aside"));
    let config = "mergekit_config.yml";
    let look = |code: i32, says: &str| {
        for way in ways {
            let (found, _) = case.json(code, way);
            assert_eq!((&found["ok"], &found["files_ok"]), (&json!(false), &json!(true)));
            assert_eq!((files(&found), &found["tensors"]), (vec![config.to_owned()], &json!(6)));
            let message = found["problems"][0]["message"].as_str().unwrap();
            assert!(message.contains(&format!("{config}:4:")) && message.contains(says), "{message}");
            // A file of the output that is not as it was counts more.
            fs::rename(&beside, &aside).unwrap();
            let (found, last) = case.json(3, way);
            fs::rename(&aside, &beside).unwrap();
            assert_eq!(
                (files(&found), &found["files_ok"]),
                (vec!["generation_config.json".into(), config.into()], &json!(false))
            );
            assert!(last["message"].as_str().unwrap().contains(says), "{last}");
            let ended = case.verify(way).failed(code, &["note: ", "/out: 6 tensors in 8 files, ", says]);
            assert!(ended.stderr.starts_with("note: "), "{}", ended.stderr);
        }
    };
    fs::rename(&one, &moved).unwrap();
    look(2, "/one");
    fs::rename(&moved, &one).unwrap();
    with(&shard, |content| content.truncate(content.len() - 1), || look(3, "is cut short"));
    let edit = |content: &mut Vec<u8>| content.push(b'\n');
    with(&case.at("out").join(config), edit, || assert_eq!(files(&case.json(3, ways[0]).0), [config; 2]));
}

/// What may not be read is not damaged.
#[test]
fn what_may_not_be_read_is_not_called_damaged() {
    let case = Case::new();
    let (shard, ..) = case.place(Q);
    let out = case.at("out");
    let index = out.join("model.safetensors.index.json");
    let mut command = crate::hardening::as_nobody(case.folder.path());
    command.env("MERGEFORGE_CACHE", "").current_dir(case.folder.path()).args(["verify", "-q"]).arg(&out);
    for (path, mode) in [
        (&shard, 0o644),
        (&out.join("config.json"), 0o644),
        (&index, 0o644),
        (&out.join("mergeforge.json"), 0o644),
        (&out, 0o755),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
        let ended = Ended::from(command.output().unwrap());
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let ended =
            ended.failed(3, &["cannot read ", "Permission denied", "hint: this user may not read it"]);
        assert!(!ended.stderr.contains("damaged"), "{}", ended.stderr);
    }
    case.verify(&[]).succeeded();
}

/// At some moment of it, in words of its own: it makes no output.
pub fn ends_when_asked(out: &Path) {
    let interrupted = |after: u64| {
        let mut command = mergeforge();
        let child: Child =
            command.args(["verify", "-q", "-j1", "--recompute", "all"]).arg(out).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        let _ = kill_process(Pid::from_child(&child), Signal::INT);
        Ended::from(child.wait_with_output().unwrap())
    };
    let ended = (1..200).map(|moment| interrupted(5 * moment)).find(|ended| ended.code == Some(130));
    ended.expect("no signal came in time").failed(130, &["error: interrupted: not all was compared"]);
}
