#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| godwit_apimachinery::fuzzing::run("merge_patch", input));
