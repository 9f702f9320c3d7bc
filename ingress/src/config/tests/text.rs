//! What a file can be as text: encodings, line ends, anchors, damage, and the examples.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::{SMALLEST, problems, with};
use crate::config::{load, parse};
use crate::route::PoolName;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

#[test]
fn anchors_and_merge_keys_save_writing() {
    let text = "
listeners: {https: {bind: ':443'}}
routes:
  - {sni: a.example.com, pool: a}
  - {sni: b.example.com, pool: b}
pools:
  a: &pool
    backends: [10.0.0.3:8443]
    health: &health {type: tcp, interval: 5s}
  b:
    <<: *pool
    backends: [10.0.0.4:8443]
    health:
      <<: *health
      fall: 7
";
    let config = parse(text, Path::new("f.yaml")).expect("this file is right");
    let b = &config.pools[&PoolName::new("b")];
    assert_eq!(b.backends[0].name, "10.0.0.4:8443");
    let health = b.health.as_ref().expect("b is checked");
    assert_eq!((health.interval, health.fall), (Duration::from_secs(5), 7));
}

#[test]
fn a_mistake_that_aliases_repeat_is_told_once() {
    let text = "
listeners: {https: {bind: ':443'}}
routes: [{sni: a.example.com, pool: a}, {sni: b.example.com, pool: b}]
pools:
  a: &pool {backends: [10.0.0.3:8443], balance: rr}
  b: *pool
  c: {<<: *pool}
";
    let expected = "5:49: error: pools.a.balance: unknown value \"rr\"; did you mean \"round_robin\"?";
    assert_eq!(problems(text), [expected]);
}

#[test]
fn line_ends_and_byte_order_marks_of_other_systems_are_accepted() {
    let expected = parse(SMALLEST, Path::new("f.yaml")).expect("the smallest file is right");
    for text in [SMALLEST.replace('\n', "\r\n"), format!("\u{feff}{SMALLEST}")] {
        assert_eq!(parse(&text, Path::new("f.yaml")), Ok(expected.clone()));
    }
    let expected = "7:19: error: pools.app.backends: expected a list, found \"x\"";
    assert_eq!(problems(&with("[10.0.0.3:8443]", "x").replace('\n', "\r\n")), [expected]);
}

#[test]
fn files_that_are_no_configuration_are_told_so() {
    for (text, expected) in [
        ("", "1:1: error: the file is empty"),
        ("hello\n", "1:1: error: expected a mapping with the keys `listeners`, `routes` and `pools`, found \"hello\""),
        ("{}\n", "1:1: error: there is no listener; write at least one under `listeners`"),
        ("listeners:\n", "1:1: error: listeners: this key has no value; write a mapping, or remove the key"),
    ] {
        assert_eq!(problems(text).first().map(String::as_str), Some(expected), "{text:?}");
    }
}

#[test]
fn files_that_cannot_be_read_are_told_so() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let missing = dir.path().join("missing.yaml");
    let message = load(&missing).expect_err("there is no file").to_string();
    assert!(message.starts_with("reading ") && message.contains("missing.yaml: No such file"), "{message}");
    let latin1 = dir.path().join("latin1.yaml");
    std::fs::write(&latin1, b"# f\xc3\xbcr\nname: \xfc\n").expect("a file is written");
    let message = load(&latin1).expect_err("this is not UTF-8").to_string();
    assert!(message.ends_with("latin1.yaml:2:7: error: this byte is not UTF-8; save the file as UTF-8"), "{message}");
    let large = dir.path().join("large.yaml");
    std::fs::write(&large, vec![b'#'; (16 << 20) + 1]).expect("a file is written");
    let message = load(&large).expect_err("this is too large").to_string();
    assert!(message.ends_with("1:1: error: the file is larger than 16 MiB"), "{message}");
}

#[test]
fn every_example_is_accepted() {
    let mut seen = 0;
    for entry in std::fs::read_dir(EXAMPLES).expect("the examples") {
        let path = entry.expect("an entry").path().join("ingress.yaml");
        if path.exists() {
            let loaded = load(&path).unwrap_or_else(|error| panic!("{error}"));
            let unexpected: Vec<_> = loaded
                .warnings
                .iter()
                .filter(|warning| !warning.message.starts_with("the environment has no"))
                .collect();
            assert!(unexpected.is_empty(), "{unexpected:?}");
            seen += 1;
        }
    }
    assert!(seen > 0, "no example was found");
}

fn example() -> String {
    std::fs::read_to_string(format!("{EXAMPLES}/sni-passthrough/ingress.yaml")).expect("the example")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}") {
        let _ = parse(&text, Path::new("f.yaml"));
    }

    #[test]
    fn no_yaml_like_text_makes_it_panic(text in "([a-c]|[-:?,{}\\[\\]&*!|>'\"%@`#<~ \t\n]){0,80}") {
        let _ = parse(&text, Path::new("f.yaml"));
    }

    /// Bytes exchanged, lines lost, the end cut off: whatever it says, it has a place within the file.
    #[test]
    fn no_damaged_example_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4), 1..6),
    ) {
        let mut text: Vec<char> = example().chars().collect();
        for (at, other, edit) in edits {
            let (at, other) = (at.index(text.len()), other.index(text.len()));
            match edit {
                0 => text[at] = text[other],
                1 => text.truncate(at.max(1)),
                2 => text.insert(at, text[other]),
                _ => { text.drain(at.min(other)..at.max(other).min(at.min(other) + 40)); }
            }
            if text.is_empty() {
                text.push(' ');
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(problems) = parse(&text, Path::new("f.yaml")) {
            prop_assert!(problems.has_errors());
            for problem in &problems {
                prop_assert!(problem.place.line <= text.lines().count() + 2, "{problem}");
            }
        }
    }
}
