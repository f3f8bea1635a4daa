//! The properties over the corpus of `fuzz/`, and over random changes of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::PROPERTIES;
use crate::body::{self, Media};

/// How long changed inputs are tried, for each property.
const CHANGING: Duration = Duration::from_millis(350);
/// Words that changes put in: most bytes at random only make nonsense.
const WORDS: [&str; 16] = [
    "null",
    "\"a\"",
    "[]",
    "{}",
    "-0.0",
    "1e300",
    "\"$patch\":\"delete\",",
    "\"\\u0000\"",
    "=",
    "!=",
    " in (",
    "%00",
    "\n",
    ",",
    "é",
    "18446744073709551615",
];

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let folder = std::fs::read_dir(root.join(name)).expect("every property has a corpus");
    let files = folder.map(|entry| entry.expect("an entry").path());
    let read = files.map(|file| std::fs::read(file).expect("a file of the corpus"));
    read.collect()
}

#[test]
fn every_property_holds_for_the_corpus_and_near_it() {
    let seed = std::env::var("FUZZ_SEED")
        .ok()
        .map(|text| text.parse().expect("a number"));
    let seed = seed.unwrap_or_else(rand::random);
    let mut rng = StdRng::seed_from_u64(seed);
    for (name, property) in PROPERTIES {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        let check = |input: &[u8]| {
            if catch_unwind(AssertUnwindSafe(|| property(input))).is_err() {
                panic!(
                    "{name}, FUZZ_SEED={seed}: {:?}",
                    String::from_utf8_lossy(input)
                );
            }
        };
        corpus.iter().for_each(|input| check(input));
        let end = Instant::now() + CHANGING;
        while Instant::now() < end {
            let mut input = corpus[rng.random_range(0..corpus.len())].clone();
            for _ in 0..rng.random_range(1..6) {
                change(&mut input, &mut rng);
            }
            check(&input);
        }
    }
}

fn change(input: &mut Vec<u8>, rng: &mut StdRng) {
    let at = rng.random_range(0..=input.len());
    let end = rng.random_range(at..=input.len().min(at + 32));
    match rng.random_range(0..5) {
        0 => drop(input.drain(at..end)),
        1 => input.splice(at..at, input[at..end].to_vec()).for_each(drop),
        2 => {
            let word = WORDS[rng.random_range(0..WORDS.len())];
            input.splice(at..end, word.bytes()).for_each(drop);
        }
        3 => input.insert(at, rng.random()),
        _ => input
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte = rng.random()),
    }
}

/// What a body may have, in bytes, of things that are dear to read if one does it wrongly.
const LARGE: usize = 1 << 20;

/// Nothing takes much longer than its size says; a quadratic step would take minutes.
#[test]
fn large_bodies_are_read_in_time() {
    let long_key = format!(
        "{{\"{}\":[{}0]}}",
        "k".repeat(LARGE / 2),
        "0,".repeat(LARGE / 4)
    );
    let twice = format!("{{{}\"a\":0}}", "\"a\":0,".repeat(LARGE / 6));
    let cases: [(&str, Media, String); 11] = [
        ("a long key above many values", Media::Json, long_key),
        ("the same field again and again", Media::Json, twice),
        ("lists in lists", Media::Json, "[".repeat(LARGE)),
        ("maps in maps", Media::Json, "{\"a\":".repeat(LARGE / 5)),
        ("lists in lists in YAML", Media::Yaml, "[".repeat(LARGE)),
        (
            "maps in maps in YAML",
            Media::Yaml,
            "{a: ".repeat(LARGE / 4),
        ),
        ("dashes", Media::Yaml, "- ".repeat(LARGE / 2)),
        ("questions", Media::Yaml, "? ".repeat(LARGE / 2)),
        ("anchors", Media::Yaml, "&a ".repeat(LARGE / 3)),
        (
            "an open quote",
            Media::Yaml,
            format!("\"{}", " \n".repeat(LARGE / 2)),
        ),
        ("many keys", Media::Yaml, "a: a: ".repeat(LARGE / 6)),
    ];
    let slow = cases.iter().filter_map(|(name, media, text)| {
        let began = Instant::now();
        let read = body::decode(*media, text.as_bytes(), 127);
        assert!(read.is_err() || read.is_ok_and(|decoded| decoded.duplicates.len() <= 50));
        let took = began.elapsed();
        (took > Duration::from_secs(5)).then_some((*name, took))
    });
    let slow: Vec<_> = slow.collect();
    assert!(slow.is_empty(), "{slow:?}");
}
