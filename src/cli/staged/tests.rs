use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::Written;
use crate::checkpoint::Reads;
use crate::cli::call;
use crate::cli::host::Host;
use crate::error::Error;
use crate::files::faulty::{files, in_time};
use crate::merging::tests::case::Case;
use crate::merging::tests::power::survives_cuts;

/// Who says nothing.
struct Quiet;

impl Host for Quiet {
    fn said(&self, _level: &str, _message: &Error) {}

    fn found(&self, _data: &str) {}

    fn advanced(&self, _done: u64, _total: u64) {}

    fn stop_sign(&self) -> Arc<AtomicBool> {
        Arc::default()
    }
}

/// A merge of a merge, which is not kept: SLERP of what TIES has made.
#[test]
fn results_that_are_not_kept_survive_a_power_cut() {
    let mut case = Case::new(1, Reads::Copied, false);
    let first = fs::read_to_string(case.root.join("config.yml")).unwrap();
    let base = case.root.join("models/base-model");
    let base = base.display();
    let text = format!(
        "name: first\n{first}---\nmerge_method: slerp\nbase_model: {base}\nparameters: {{t: 0.25}}\nmodels:\n- model: {base}\n- model: first\n"
    );
    let file = case.root.join("staged.yml");
    fs::write(&file, text).unwrap();
    let config = Written::in_file(&file).unwrap();
    let words: Vec<String> =
        ["--device", "cpu", "--out-shard-size", "10000", "--no-cache"].map(str::to_owned).into();
    let host: Arc<dyn Host> = Arc::new(Quiet);
    let out = case.out();
    let make = || {
        let (config, out, words, host) = (config.clone(), out.clone(), words.clone(), Arc::clone(&host));
        in_time(move || call::merge(&config, &out, &words, &host))
    };
    make().unwrap();
    case.expected = files(&out);
    case.clear();
    survives_cuts(&case, &make, false);
}
