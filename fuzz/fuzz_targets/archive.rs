#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mergeforge_fuzz::run(mergeforge_fuzz::archive, bytes));
