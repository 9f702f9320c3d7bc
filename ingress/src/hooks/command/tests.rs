//! With real programs: what a hook gets, and what becomes of it.

use std::path::Path;

use super::*;
use crate::clock;

fn message() -> Message {
    Message::samples().into_iter().next().expect("a sample")
}

fn command(argv: &[&str], timeout: Duration) -> Command {
    Command::new(CommandConfig { argv: argv.iter().map(|word| (*word).to_owned()).collect(), timeout })
}

fn shell(script: &str) -> Command {
    command(&["/bin/sh", "-c", script], Duration::from_secs(20))
}

fn why(outcome: Outcome) -> String {
    match outcome {
        Outcome::Again { why, after: None } => why,
        other @ (Outcome::Again { .. } | Outcome::Delivered | Outcome::Refused { .. }) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_program_gets_the_message_on_stdin_and_in_its_environment_and_nothing_else_of_ours() {
    let dir = tempfile::tempdir().expect("a directory");
    let [json, env] = ["json", "env"].map(|name| dir.path().join(name).display().to_string());
    let script = format!("cat > {json}; env > {env}; ulimit -n >> {env}");
    assert_eq!(shell(&script).attempt(&message()).await, Outcome::Delivered);
    let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).expect("written")).expect("JSON");
    assert_eq!(read, serde_json::to_value(message()).expect("JSON"));
    let env = std::fs::read_to_string(&env).expect("written");
    for line in ["INGRESS_EVENT=backend_down", "INGRESS_POOL=app", "INGRESS_BACKEND=app-1", "INGRESS_COUNT=1", "1024"] {
        assert!(env.lines().any(|found| found == line), "{line} in {env}");
    }
    assert!(!env.contains("CARGO"), "{env}");
}

#[tokio::test]
async fn a_program_that_fails_is_tried_again_with_what_it_said() {
    let failed = why(shell("echo out; echo err >&2; exit 3").attempt(&message()).await);
    assert_eq!(failed, "/bin/sh ended with exit code 3: out\nerr");
    let killed = why(shell("kill -9 $$").attempt(&message()).await);
    assert_eq!(killed, "/bin/sh was killed by signal 9");
    let missing = why(command(&["/nonexistent/page"], Duration::from_secs(1)).attempt(&message()).await);
    assert!(missing.starts_with("cannot start /nonexistent/page: No such file"), "{missing}");
}

#[tokio::test]
async fn output_is_kept_to_its_beginning_and_blocks_nobody() {
    let failed = why(shell("head -c 300000 /dev/zero | tr '\\0' x; exit 1").attempt(&message()).await);
    assert!(failed.ends_with(&"x".repeat(OUTPUT)) && failed.len() < OUTPUT + 100, "{} bytes", failed.len());
}

#[tokio::test]
async fn who_does_not_end_in_time_is_killed_with_all_that_it_started() {
    let dir = tempfile::tempdir().expect("a directory");
    let pids = dir.path().join("pids");
    // A grandchild in the same group, and both ignore what can be ignored.
    let script = format!("trap '' TERM; sleep 1000 & echo $$ $! > {}; wait", pids.display());
    let slow = command(&["/bin/sh", "-c", &script], Duration::from_millis(500));
    let killed = why(slow.attempt(&message()).await);
    assert_eq!(killed, "/bin/sh was killed after 500ms");
    let pids = std::fs::read_to_string(pids).expect("written");
    for pid in pids.split_whitespace() {
        assert!(clock::comes_true(async || !is_running(pid)).await, "{pid} runs still");
    }
}

#[tokio::test]
async fn what_a_program_leaves_behind_does_not_hold_it_up() {
    let quick = shell("sleep 5 & exit 0");
    let outcome = timeout(Duration::from_secs(4), quick.attempt(&message())).await;
    assert_eq!(outcome.expect("at once"), Outcome::Delivered);
}

/// Zombies are not.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
