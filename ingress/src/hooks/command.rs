//! One run of a hook's program: without a shell, in a process group of its own, bounded in time and output.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command as Process};
use tokio::time::{Instant, timeout, timeout_at};

use super::queue::Outcome;
use crate::config::CommandConfig;
use crate::events::Message;

#[derive(Debug)]
pub(super) struct Command {
    config: CommandConfig,
}

/// Kills the group, unless its leader has ended by itself.
struct Group(Option<Pid>);

impl Command {
    pub(super) fn new(config: CommandConfig) -> Self {
        Self { config }
    }

    /// Success is exit code 0. Whatever else happens is tried again: a page that comes twice is better than none.
    pub(super) async fn attempt(&self, message: &Message) -> Outcome {
        let again = |why| Outcome::Again { why, after: None };
        let child = match self.start(message) {
            Ok(child) => child,
            Err(error) => return again(format!("cannot start {}: {error}", self.program())),
        };
        let input = serde_json::to_string(message).unwrap_or_default() + "\n";
        let (status, output) = self.finish(child, input).await;
        match status {
            Some(Ok(status)) if status.success() => {
                tracing::info!(program = self.program(), output, "hook ran");
                Outcome::Delivered
            }
            Some(Ok(status)) => again(format!("{} {}{}", self.program(), words(status), said(&output))),
            Some(Err(error)) => again(format!("waiting for {}: {error}", self.program())),
            None => {
                let Self { config: CommandConfig { timeout, .. } } = self;
                again(format!("{} was killed after {timeout:?}{}", self.program(), said(&output)))
            }
        }
    }

    fn program(&self) -> &str {
        self.config.argv.first().map_or("", String::as_str)
    }

    fn start(&self, message: &Message) -> io::Result<Child> {
        let mut process = Process::new(self.program());
        process.args(self.config.argv.iter().skip(1));
        // Our environment holds passwords of ours.
        process.env_clear().env("PATH", PATH).envs(environment(message)).current_dir("/");
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process.process_group(0).kill_on_drop(true);
        // SAFETY: between fork and exec it makes two system calls, and touches no lock and no allocator.
        unsafe { process.pre_exec(usual_open_files) };
        process.spawn()
    }

    /// How it ended, and what it wrote. `None`: its time was up.
    async fn finish(&self, mut child: Child, input: String) -> (Option<io::Result<ExitStatus>>, String) {
        let deadline = Instant::now() + self.config.timeout;
        let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut output = Vec::new();
        let mut errors = Vec::new();
        let status = {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A program that does not read is none the worse for it.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let talk = async { tokio::join!(feed, keep_first(stdout, &mut output), keep_first(stderr, &mut errors)) };
            tokio::pin!(talk);
            let ended = async {
                tokio::select! {
                    status = child.wait() => {
                        // What it left behind may hold the pipes open for ever.
                        let _ = timeout(LAST_WORDS, &mut talk).await;
                        status
                    }
                    // It closed them all; it need not have ended.
                    _ = &mut talk => child.wait().await,
                }
            };
            timeout_at(deadline, ended).await.ok()
        };
        match &status {
            Some(_) => group.0 = None,
            // Its zombie still holds the group's number.
            None => group.kill(),
        }
        output.append(&mut errors);
        (status, String::from_utf8_lossy(&output).trim().to_owned())
    }
}

impl Group {
    fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            // All of it may be gone.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All that a script needs without reading JSON. Of several items, the first one's.
fn environment(message: &Message) -> Vec<(String, String)> {
    let plain = |text: &str| text.replace('\0', " ");
    let mut variables = Vec::new();
    let item = message.items.first().and_then(|item| serde_json::to_value(item).ok());
    for (key, value) in item.as_ref().and_then(|item| item.as_object()).into_iter().flatten() {
        let value = match value {
            Value::String(text) => plain(text),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => continue,
        };
        variables.push((format!("INGRESS_{}", key.to_ascii_uppercase()), value));
    }
    let Message { id, kind, node, count, text, .. } = message;
    variables.extend([
        ("INGRESS_ID".to_owned(), id.clone()),
        ("INGRESS_EVENT".to_owned(), kind.to_string()),
        ("INGRESS_NODE".to_owned(), plain(node)),
        ("INGRESS_COUNT".to_owned(), count.to_string()),
        ("INGRESS_TEXT".to_owned(), plain(text)),
    ]);
    variables
}

/// The daemon's limit is far above what programs expect: some close every descriptor up to it, one by one.
fn usual_open_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard)?)
}

/// Reads to the end, so that nobody blocks, and keeps the beginning.
async fn keep_first(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        let room = OUTPUT - kept.len();
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn said(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of stdout, and of stderr.
const OUTPUT: usize = 4096;
const LAST_WORDS: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
