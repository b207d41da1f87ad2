//! What was tried against the program, point by point, and that it holds: hostile checkpoints, other users of the machine,
//! signals and limits. The table names every test; those of one function alone stand beside it in `src/`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mergeforge::error::Kind;
use mergeforge::plan::Choices;
use mergeforge::prepare;
use rustix::process::{Pid, Signal, kill_process};
use safetensors::Dtype;
use serde_json::Value as Json;

use crate::cli::into_cache;
use crate::command::{self, Ended, assert_nothing_left, merge, mergeforge, run};
use crate::faults::{Case, Step, assert_unchanged, ends, fingerprint, large_case, merge_trapped, tensors};
use crate::models::{self, PLAIN, RUN, Stored};

/// What was tried, and the test that holds it.
const TRIED: &[(&str, &str)] = &[
    ("SIGHUP and SIGINT to a merge that was started with them ignored", "an_ignored_signal_stays_ignored"),
    (
        "links to local files in a model's folder: templates, code, vocabularies, config, weights",
        "a_checkpoint_carries_no_local_file_into_the_output",
    ),
    (
        "the same, seen by the folder alone, and links of the Hugging Face cache",
        "links_out_of_the_folder_are_refused_with_their_target",
    ),
    (
        "a snapshot of the cache that leads into other repositories",
        "a_snapshot_of_the_cache_leads_into_its_own_blobs_and_no_further",
    ),
    ("a model's card that leads out of its folder, or is vast", "a_card_that_may_not_be_read_states_none"),
    (
        "pipes, sockets, devices, folders, and windows into the system in place of files",
        "only_regular_files_are_opened_and_none_is_waited_for",
    ),
    ("a chat template that loops, or makes a text of gigabytes", "a_template_without_end_is_refused"),
    (
        "a chat template that looks for files and processes",
        "a_template_makes_a_turn_and_reaches_nothing_else",
    ),
    (
        "tokenizers that contradict themselves, and templates, where they are run",
        "malformed_tokenizers_and_templates_end_an_evaluation_with_few_words",
    ),
    ("what fuzzers made", "all_that_is_kept_is_read_or_refused"),
    ("no thread can be started, or few", "a_merge_goes_on_with_the_threads_that_can_be_started"),
    ("39,000 models", "models_are_counted_before_they_are_opened"),
    (
        "an OUT.partial of somebody else, or writable by others",
        "a_partial_folder_that_others_can_write_to_is_not_taken_over",
    ),
    (
        "a link put in the place of OUT.partial during the merge",
        "a_folder_put_in_the_place_of_the_partial_one_is_not_touched",
    ),
    (
        "an OUT.partial with files that no merge writes, or without our mark",
        "nothing_foreign_in_a_partial_folder_is_deleted",
    ),
    ("foreign files in the cache of thresholds", "only_files_of_our_own_naming_are_forgotten"),
    (
        "death just before and just after the rename",
        "a_merge_killed_before_or_after_the_rename_blocks_nothing",
    ),
    ("a parent folder that cannot be synced", "a_complete_output_is_called_complete"),
    ("an input that is changed and given its old time back", "an_input_given_its_old_time_back_is_noticed"),
    ("endless config.json, index, tokenizer and reference", "files_that_are_read_whole_have_a_largest_size"),
    (
        "headers of endless names, types, shapes, metadata and tensors",
        "a_header_beyond_a_cap_is_refused_and_named",
    ),
    ("a second Ctrl-C while the trace waits for a pipe", "a_second_signal_ends_the_program_at_once"),
    ("a full disk on standard output", "a_full_disk_on_standard_output_is_an_error"),
    ("ulimit -f", "a_limit_on_the_size_of_files_is_an_error"),
    ("ulimit -n", "a_limit_on_open_files_leaves_nothing"),
    ("line ends, escapes and directions in names", "names_forge_no_line"),
    ("hundreds of hostile checkpoints", "malformed_checkpoints_end_soon_in_little_memory_with_few_words"),
    ("hundreds of hostile configs", "malformed_configs_end_soon_in_little_memory_with_few_words"),
    ("an index of endless names and tensors", "an_index_may_reach_its_caps_and_not_go_beyond"),
    (
        "64,000 heads without an embedding of their own",
        "heads_find_the_embedding_that_stands_in_for_them_once",
    ),
    ("a sparse tensor of 2^59 elements as float32", "sizes_beyond_any_file_are_refused_and_not_wrapped"),
    ("notes and warnings for every tensor", "groups_of_tensors_are_few"),
    ("thousands of unknown keys", "warnings_of_a_kind_are_one"),
    ("0X10, 0o10 and other spellings of numbers", "plain_scalars_are_what_pyyaml_makes_of_them"),
    ("too little memory for buffers", "memory_that_cannot_be_had_is_an_error_that_leaves_nothing"),
    ("benches without threads", "a_bench_knows_how_many_threads_it_has"),
    ("a link in place of what a checked device leaves", "a_planted_link_is_not_followed"),
    ("preconditions of unsafe code", "unsafe_code_stands_in_few_files"),
    ("text of a million characters", "an_endless_line_keeps_its_beginning_and_its_end"),
    ("OUT that is a bind mount", "an_output_that_is_a_mount_point_is_refused_at_once"),
    (
        "a disk that has room for the weights and not for the tokenizer",
        "the_files_beside_the_weights_need_room_too",
    ),
    (
        "parents of the output of an interrupted merge",
        "parents_that_were_made_go_again_if_nothing_else_has_come",
    ),
    (
        "a model named by its path in the cache, a title with markup",
        "the_card_names_models_of_the_cache_as_the_hub_does",
    ),
    ("a SHA-256 that is only the name of a link", "models_are_found_in_the_cache_of_the_hub"),
    ("integers of config.json beyond 64 bits", "integers_beyond_64_bits_keep_their_digits"),
    ("inputs that only the user may read", "an_output_is_not_more_readable_than_its_inputs"),
    ("a trace that is a hard link to an input, or a link to a blob", "a_trace_does_not_replace_an_input"),
    (
        "a link in place of an unfinished file of the cache",
        "a_link_in_place_of_the_unfinished_file_is_not_followed",
    ),
];

/// Every test of the table is there.
#[test]
fn every_point_has_its_test() {
    let mut texts = String::new();
    for folder in ["src", "tests"] {
        read_sources(&Path::new(command::ROOT).join(folder), &mut texts);
    }
    for (tried, test) in TRIED {
        assert!(texts.contains(&format!("fn {test}() {{")), "{tried}: there is no test {test}");
    }
}

fn read_sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// A merge of this config, started by a shell line that ends in `"$@"`.
fn through_shell(shell: &str, config: &Path, out: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", shell, "sh", env!("CARGO_BIN_EXE_mergeforge"), "merge"]);
    command.args([config, out]).args(["--device", "cpu"]).args(flags);
    command.env("MERGEFORGE_CACHE", "").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command::hearing(&mut command);
    command
}

/// Whether a folder of mounts may be made here: tests that need one say so where they cannot have it.
fn can_mount() -> bool {
    Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|status| status.success())
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let case = large_case();
    let config = command::config(case.path(), &case.slow_config());
    let out = case.path().join("out");
    let flags = ["-q", "-j1", "--chunk-tiles", "1"];
    let start = |shell| through_shell(shell, &config, &out, &flags).spawn().unwrap();
    let mut ignoring = start("trap '' HUP INT; exec \"$@\"");
    case.wait_for(1 << 20, &mut ignoring);
    for signal in [Signal::HUP, Signal::INT] {
        kill_process(Pid::from_child(&ignoring), signal).unwrap();
    }
    Ended::from(ignoring.wait_with_output().unwrap()).succeeded();
    fs::remove_dir_all(&out).unwrap();
    // The one that is not ignored is still heard.
    let mut half = start("trap '' HUP; exec \"$@\"");
    case.wait_for(1 << 20, &mut half);
    kill_process(Pid::from_child(&half), Signal::HUP).unwrap();
    kill_process(Pid::from_child(&half), Signal::TERM).unwrap();
    Ended::from(half.wait_with_output().unwrap()).failed(130, &["interrupted: no output was made"]);
    assert_nothing_left(case.path());
}

#[test]
fn a_checkpoint_carries_no_local_file_into_the_output() {
    let case = Case::new();
    let donor = case.path().join("a");
    let secrets = case.path().join("secrets");
    fs::create_dir(&secrets).unwrap();
    fs::write(secrets.join("id_rsa.jinja"), "secret").unwrap();
    fs::copy(donor.join("config.json"), secrets.join("config.json")).unwrap();
    fs::copy(donor.join("model.safetensors"), secrets.join("model.safetensors")).unwrap();
    let outside = |name: &str| secrets.join(name).display().to_string();
    for (name, target) in [
        ("additional_chat_templates", outside("")),
        ("additional_chat_templates", "../secrets".into()),
        ("x.py", "/proc/self/environ".into()),
        ("vocab.txt", "/etc/passwd".into()),
        ("tokenizer.json", outside("id_rsa.jinja")),
        ("tokenizer.model", "/dev/zero".into()),
        ("merges.txt", "/etc".into()),
        ("config.json", outside("config.json")),
        ("model.safetensors", outside("model.safetensors")),
    ] {
        let (link, aside) = (donor.join(name), case.path().join("aside"));
        let had = fs::rename(&link, &aside).is_ok();
        symlink(&target, &link).unwrap();
        case.refused(
            3,
            &[&format!("a/{name} is a link to {target}, outside of the model's folder"), "hint: "],
        );
        fs::remove_file(&link).unwrap();
        if had {
            fs::rename(&aside, &link).unwrap();
        }
    }
    // Within the folder links are as good as files, and of the templates only templates are copied.
    fs::create_dir(donor.join("prompts")).unwrap();
    fs::write(donor.join("prompts/tool.jinja"), "tool").unwrap();
    fs::write(donor.join("prompts/id_rsa"), "secret").unwrap();
    symlink("prompts", donor.join("additional_chat_templates")).unwrap();
    merge(case.path(), &case.config(), &["-q"]).succeeded();
    let copied: Vec<PathBuf> = fs::read_dir(case.path().join("out/additional_chat_templates"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(copied, [case.path().join("out/additional_chat_templates/tool.jinja")]);
    assert_eq!(fs::read_to_string(&copied[0]).unwrap(), "tool");
}

#[test]
fn a_merge_goes_on_with_the_threads_that_can_be_started() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    let out = case.path().join("out");
    merge(case.path(), &case.config(), &["-q"]).succeeded();
    let expected = models::read(&out);
    // With stacks of which none fits, or three.
    let few = "ulimit -v 8000000; exec \"$@\"";
    for (shell, stack, missing) in
        [("exec \"$@\"", "100000000000000", "15 of 16 threads"), (few, "2000000000", " of 16 threads")]
    {
        fs::remove_dir_all(&out).unwrap();
        let mut command = through_shell(shell, &config, &out, &["-j16", "--chunk-tiles", "1"]);
        command.env("RUST_MIN_STACK", stack);
        let ended = ends(command).succeeded();
        let says = format!(
            "{missing} could not be started (a limit on processes or memory): the others did their work"
        );
        assert!(ended.stderr.contains(&says), "{}", ended.stderr);
        assert_eq!(models::read(&out), expected);
    }
}

#[test]
fn models_are_counted_before_they_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n".to_string();
    (0..39_000).for_each(|i| text += &format!("- model: m{i}\n"));
    let ended = command::plan(folder.path(), &text, &[])
        .failed(2, &["at most 1024 models, and this config names 39000", "hint: "]);
    assert!(ended.stderr.lines().count() <= 3, "{}", ended.stderr);
    assert!(!ended.stderr.contains("m0"), "none was looked for");
}

/// Gives a folder and all in it to this user, and the program a place that user can reach.
fn hand_over(folder: &Path, user: u32) -> PathBuf {
    let program = folder.join("mergeforge");
    fs::copy(env!("CARGO_BIN_EXE_mergeforge"), &program).unwrap();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        chown(&folder, Some(user), None).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                chown(&path, Some(user), None).unwrap();
            }
        }
    }
    program
}

/// The program for a user who may not open everything in a folder, as root may, and whose own that is.
pub fn as_nobody(folder: &Path) -> Command {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return Command::new(env!("CARGO_BIN_EXE_mergeforge"));
    }
    let mut command = Command::new(hand_over(folder, NOBODY));
    command.uid(NOBODY);
    command
}

#[test]
fn a_complete_output_is_called_complete() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    let parent = case.path().join("parent");
    fs::create_dir(&parent).unwrap();
    let mut command = as_nobody(case.path());
    // Files can be made there, but the folder cannot be opened, and so not be synced.
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o300)).unwrap();
    command
        .env("MERGEFORGE_CACHE", "")
        .current_dir(case.path())
        .arg("merge")
        .args([config, parent.join("out")])
        .arg("-q");
    let ended = ends(command);
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o700)).unwrap();
    ended.failed(
        4,
        &[
            "the merge is complete and ",
            "parent/out has all its files",
            "whether its name is there too is unknown",
            "hint: `sync`",
        ],
    );
    assert_eq!(models::read(&parent.join("out")).len(), 4);
    assert!(!parent.join("out/.lock").exists() && !parent.join("out.partial").exists());
}

#[test]
fn an_input_given_its_old_time_back_is_noticed() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    let file = case.path().join("b/model.safetensors");
    let change = || {
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let mut open = OpenOptions::new().write(true).open(&file).unwrap();
        open.write_all(&bytes).unwrap();
        open.set_modified(modified).unwrap();
    };
    let error = merge_trapped(&config, &case.path().join("out"), Step::Read, change);
    assert_eq!(error.kind, Kind::Input, "{error}");
    assert!(error.message.contains("b/model.safetensors changed while it was read"), "{error}");
    assert_nothing_left(case.path());
}

#[test]
fn files_that_are_read_whole_have_a_largest_size() {
    let case = Case::new();
    let vast = |name: &str| fs::File::create(case.path().join(name)).unwrap().set_len(1 << 40).unwrap();
    let says = ["has 1099.51 GB, and ", "are the most that is read of such a file"];
    for name in ["a/config.json", "b/model.safetensors.index.json"] {
        let (file, aside) = (case.path().join(name), case.path().join("aside"));
        let had = fs::rename(&file, &aside).is_ok();
        vast(name);
        case.refused(3, &[&[name], &says[..]].concat());
        fs::remove_file(&file).unwrap();
        if had {
            fs::rename(&aside, &file).unwrap();
        }
    }
    // One that is copied ends the merge before it begins; another model's is only another one.
    for name in ["tokenizer.json", "generation_config.json", "x.py"] {
        let name = format!("a/{name}");
        vast(&name);
        case.refused(3, &[&[name.as_str()], &says[..]].concat());
        fs::remove_file(case.path().join(name)).unwrap();
    }
    vast("b/tokenizer.json");
    // Where the donor has none, the output has none that others could differ from.
    let ended = merge(case.path(), &case.config(), &[]).succeeded();
    assert!(!ended.stderr.contains("the output has the tokenizer"), "{}", ended.stderr);
    fs::write(case.path().join("a/tokenizer.json"), "{}").unwrap();
    fs::remove_dir_all(case.path().join("out")).unwrap();
    let ended = merge(case.path(), &case.config(), &[]).succeeded();
    assert!(ended.stderr.contains("the output has the tokenizer of "), "{}", ended.stderr);
}

/// Waits until something holds, but not for ever.
fn wait_until(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_mins(1), "it never came to hold");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    for (signal, out) in [(Signal::INT, "first"), (Signal::TERM, "second")] {
        let out = case.path().join(out);
        let pipe = case.path().join(format!("{signal:?}.json"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut command = mergeforge();
        command.arg("merge").args([&config, &out]).args(["-q", "--device", "cpu"]).arg("--trace").arg(&pipe);
        let mut child: Child = command.spawn().unwrap();
        // The merge is done, and the trace waits for somebody to read it.
        wait_until(|| out.is_dir());
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "the first signal asks");
        assert_eq!(ends_by(signal, child), Some(130));
        assert_eq!(models::read(&out).len(), 4);
    }
}

/// The exit code of a process that this signal must end. It is sent again, since a busy system takes two for one.
fn ends_by(signal: Signal, mut child: Child) -> Option<i32> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_mins(1) {
        let _ = kill_process(Pid::from_child(&child), signal);
        std::thread::sleep(Duration::from_millis(100));
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
    }
    child.kill().unwrap();
    panic!("it did not end");
}

#[test]
fn a_full_disk_on_standard_output_is_an_error() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config()).display().to_string();
    for arguments in [
        &["plan", &config][..],
        &["plan", "--json", &config],
        &["methods"],
        &["methods", "ties"],
        &["--help"],
        &["--version"],
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = mergeforge().args(arguments).stdout(full).output().unwrap();
        Ended::from(output).failed(4, &["error", "cannot write to standard output: No space left"]);
    }
    // A reader that has seen enough is no error.
    let mut child = mergeforge().args(["methods", "--json"]).spawn().unwrap();
    drop(child.stdout.take());
    Ended::from(child.wait_with_output().unwrap()).succeeded();
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    let out = case.path().join("out");
    // In blocks of 512 or of 1024 bytes: less than the weights in any case.
    let ended = ends(through_shell("ulimit -f 8; exec \"$@\"", &config, &out, &["-q"]));
    ended.failed(4, &["out.partial/model.safetensors: File too large", "hint: write smaller shards"]);
    assert_nothing_left(case.path());
}

#[test]
fn a_limit_on_open_files_leaves_nothing() {
    let case = Case::new();
    let config = command::config(case.path(), &case.config());
    let out = case.path().join("out");
    for limit in 6..20 {
        let ended =
            ends(through_shell(&format!("ulimit -n {limit}; exec \"$@\""), &config, &out, &["-q", "-j1"]));
        if ended.code == Some(0) {
            fs::remove_dir_all(&out).unwrap();
        }
        assert_nothing_left(case.path());
    }
}

#[test]
fn names_forge_no_line() {
    let forged = "x\nerror: forged\u{1b}[2J\u{202e}\u{2028}";
    let mut odd = tensors(1);
    odd.insert(forged.into(), Stored { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] });
    odd.insert(format!("{forged}2"), Stored { dtype: Dtype::F8_E4M3FNUZ, shape: vec![4], bytes: vec![0; 4] });
    let case = Case::of(&odd, &odd, PLAIN);
    let shown = "x\\nerror: forged\\u{1b}[2J\\u{202e}\\u{2028}";
    // In an error, in a plan, in JSON, and in names of files.
    let refused = merge(case.path(), &case.config(), &[]).failed(2, &[&format!("tensor {shown}2: ")]);
    assert_plain(&refused.stderr);
    let passthrough =
        format!("merge_method: passthrough\nmodels: [{{model: {}}}]\n", case.path().join("a").display());
    let copy = case.path().join("a").join("forged\nerror: forged.py");
    symlink("/etc/passwd", &copy).unwrap();
    let refused = merge(case.path(), &passthrough, &[])
        .failed(3, &["a/forged\\nerror: forged.py is a link to /etc/passwd"]);
    assert_plain(&refused.stderr);
    fs::remove_file(copy).unwrap();
    let plan = command::plan(case.path(), &passthrough, &["--verbose"]).succeeded();
    assert!(plan.stdout.contains(shown));
    assert_plain(&plan.stdout);
    let plan = command::plan(case.path(), &passthrough, &["--json"]).succeeded();
    assert_plain(&plan.stdout);
    let parsed: Json = serde_json::from_str(&plan.stdout).unwrap();
    assert!(parsed["tensors"].as_array().unwrap().iter().any(|tensor| tensor["name"] == forged));
    let missing =
        "merge_method: linear\nmodels: [{model: \"no\\nerror: forged\\a\", parameters: {weight: 1}}]\n";
    assert_plain(&command::plan(case.path(), missing, &[]).failed(2, &["no\\nerror: forged\\u{7}"]).stderr);
}

/// That no line is forged, and nothing steers the terminal.
#[track_caller]
fn assert_plain(text: &str) {
    assert!(!text.lines().any(|line| line.starts_with("error: forged")), "{text}");
    let odd = |c: char| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c);
    assert!(!text.contains(odd), "{text:?}");
}

#[test]
fn an_output_that_is_a_mount_point_is_refused_at_once() {
    if !can_mount() {
        return eprintln!("not run: this system gives no mount namespace");
    }
    let case = Case::new();
    let out = case.path().join("mounted");
    fs::create_dir(&out).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["-rm", "sh", "-c", "mount --bind \"$0\" \"$0\" && exec \"$@\""])
        .arg(&out)
        .args([env!("CARGO_BIN_EXE_mergeforge"), "plan"])
        .arg(command::config(case.path(), &case.config()))
        .arg("--out")
        .arg(&out);
    ends(command).failed(2, &["mounted is a mount point", "hint: give a folder inside it"]);
}

#[test]
fn the_files_beside_the_weights_need_room_too() {
    if !can_mount() {
        return eprintln!("not run: this system gives no mount namespace");
    }
    let case = Case::new();
    fs::write(case.path().join("a/tokenizer.json"), vec![b' '; 2_000_000]).unwrap();
    let disk = tempfile::tempdir().unwrap();
    let with = |before: &str, flag: &str| {
        let mut command = Command::new("unshare");
        command
            .args([
                "-rm",
                "sh",
                "-c",
                &format!("mount -t tmpfs -o size=1m tmpfs \"$0\" && {before} && exec \"$@\""),
            ])
            .arg(disk.path())
            .args([env!("CARGO_BIN_EXE_mergeforge"), "merge", "-q", flag])
            .args([command::config(case.path(), &case.config()), disk.path().join("out")]);
        ends(command)
    };
    with("true", "--copy-tokenizer").failed(4, &["the output needs 2.1 MB, and only 1.0 MB are free"]);
    with("true", "--no-copy-tokenizer").succeeded();
    let left = "mkdir \"$0/out.partial\" && head -c 204800 /dev/zero > \"$0/out.partial/model.safetensors\"";
    let said = ["only 1.0 MB are free", "/out goes, with the 204.8 kB that a stopped merge has left there"];
    with(left, "--copy-tokenizer").failed(4, &said);
}

#[test]
fn the_card_names_models_of_the_cache_as_the_hub_does() {
    let case = Case::new();
    let cache = case.path().join("hub");
    let commit = "89abcdef".repeat(5);
    into_cache(&cache, "some/model", &commit, &case.path().join("a"));
    let snapshot = cache.join("models--some--model/snapshots").join(&commit);
    let text = case.config().replace(case.path().join("a").to_str().unwrap(), snapshot.to_str().unwrap());
    let config = command::config(case.path(), &text);
    let out = case.path().join("<b>my [model](x) `code`");
    run([&"merge".into(), &"-q".into(), &config, &out].map(|part: &PathBuf| part.clone())).succeeded();
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    let (before_config, _) = card.split_once("## Config").unwrap();
    assert!(card.starts_with("---\nbase_model:\n- \"some/model\"\nbase_model_relation"), "{card}");
    let link = format!("\n- [`some/model`](https://huggingface.co/some/model/tree/{commit})\n");
    assert!(before_config.contains(&link) && !before_config.contains("snapshots"), "{card}");
    assert!(card.contains("\n# \\<b\\>my \\[model\\](x) \\`code\\`\n"), "{card}");
}

#[test]
fn an_output_is_not_more_readable_than_its_inputs() {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let case = Case::new();
    fs::create_dir(case.path().join("a/additional_chat_templates")).unwrap();
    for name in ["tokenizer.json", "generation_config.json", "additional_chat_templates/x.jinja"] {
        fs::write(case.path().join("a").join(name), "{}").unwrap();
    }
    let out = case.path().join("out");
    let modes = |case: &Case| -> Vec<u32> {
        merge(case.path(), &case.config(), &["-q", "--out-shard-size", "20kB"]).succeeded();
        let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
        let modes = files.filter(|path| path.is_file()).map(|path| mode(&path)).collect();
        assert!(fs::read_dir(&out).unwrap().count() > 8);
        modes
    };
    // One file of one model is private: what is made of all models is.
    set(&case.path().join("b/model.safetensors"), 0o600);
    assert!(modes(&case).iter().all(|mode| *mode == 0o600));
    fs::remove_dir_all(&out).unwrap();
    set(&case.path().join("b/model.safetensors"), 0o644);
    set(&case.path().join("b"), 0o700);
    set(&case.path().join("a/tokenizer.json"), 0o400);
    assert!(modes(&case).iter().all(|mode| [0o600, 0o644].contains(mode)));
    assert_eq!((mode(&out), mode(&out.join("tokenizer.json"))), (0o700, 0o600));
    assert_eq!(mode(&out.join("additional_chat_templates")), 0o700);
    fs::remove_dir_all(&out).unwrap();
    // Who may write to it is the mask's affair: inputs are often for reading only.
    set(&case.path().join("b"), 0o755);
    set(&case.path().join("a/tokenizer.json"), 0o444);
    let config = command::config(case.path(), &case.config());
    ends(through_shell("umask 002; exec \"$@\"", &config, &out, &["-q"])).succeeded();
    assert_eq!((mode(&out), mode(&out.join("tokenizer.json"))), (0o775, 0o664));
}

#[test]
fn a_trace_does_not_replace_an_input() {
    let case = Case::new();
    let cache = case.path().join("hub");
    let commit = "89abcdef".repeat(5);
    let sha256 = into_cache(&cache, "some/model", &commit, &case.path().join("a"));
    let repository = cache.join("models--some--model");
    let text = case.config().replace(
        case.path().join("a").to_str().unwrap(),
        repository.join("snapshots").join(&commit).to_str().unwrap(),
    );
    let config = command::config(case.path(), &text);
    let at = |name: &str| case.path().join(name);
    fs::hard_link(case.path().join("b/model.safetensors"), at("hard.json")).unwrap();
    fs::hard_link(case.path().join("b/config.json"), at("config.hard.json")).unwrap();
    symlink(repository.join("blobs").join(&sha256), at("soft.json")).unwrap();
    let before = fingerprint(case.path());
    for trace in ["hard.json", "config.hard.json", "soft.json"] {
        let mut command = mergeforge();
        command.arg("merge").args([&config, &at("out")]).arg("--trace").arg(at(trace));
        ends(command).failed(2, &["the trace ", "it is a link to ", "inputs are never written to"]);
        assert_unchanged(&before, case.path());
        assert_nothing_left(case.path());
    }
    // One that becomes a link during the merge: what is opened at the end is looked at again.
    let config = command::config(case.path(), &case.config());
    let prepared =
        prepare(&config, &Choices { seed: 0, shard_bytes: Some(5_000_000_000), ..Choices::USUAL }).unwrap();
    let report = models::run(case.path(), &case.config(), "out", RUN).unwrap();
    let error = report.write_trace(&at("hard.json"), &prepared).unwrap_err();
    assert!(error.message.starts_with("the merge is complete, but cannot write the trace "), "{error}");
    report.write_trace(&at("late.json"), &prepared).unwrap();
    fs::remove_file(at("late.json")).unwrap();
    fs::remove_dir_all(at("out")).unwrap();
    fs::remove_file(at("out.yml")).unwrap();
    assert_unchanged(&before, case.path());
}
