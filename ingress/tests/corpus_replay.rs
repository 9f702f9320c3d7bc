//! Every input that the fuzzer once found worth keeping, through the same checks: a crash that was fixed stays fixed.

#[path = "../../tests/fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets, another crate, reach it")]
mod fuzz;

use std::fs;
use std::path::Path;

/// Feeds each file of `tests/fuzz/corpus/<target>` to `check`, which panics where something does not hold.
fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
    let mut files = 0;
    for entry in fs::read_dir(&corpus).unwrap_or_else(|e| panic!("{}: {e}", corpus.display())) {
        let path = entry.expect("a readable directory").path();
        let data = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // Shown only where the check fails.
        eprintln!("{}", path.display());
        check(&data);
        files += 1;
    }
    assert!(files > 0, "{} is empty", corpus.display());
}

#[test]
fn client_hello_corpus_holds() {
    replay("client_hello", fuzz::client_hello::check);
}

#[test]
fn config_corpus_holds() {
    replay("config", fuzz::config::check);
}

#[test]
fn proxy_header_corpus_holds() {
    replay("proxy_header", fuzz::proxy_header::check);
}

#[test]
fn traefik_corpus_holds() {
    replay("traefik", fuzz::traefik::check);
}

#[test]
fn rewrite_corpus_holds() {
    replay("rewrite", fuzz::rewrite::check);
}
