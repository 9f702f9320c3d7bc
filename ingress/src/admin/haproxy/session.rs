//! One connection to the socket: one line, an answer, the end; or, after `prompt`, many lines.
//!
//! Bounded in the length of a line, in the time between lines, and in the time that an answer may take to be read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::commands::{self, Answer};
use super::words;
use crate::admin::Admin;
use crate::admin::operator::Operator;
use crate::config::SocketLevel;

/// Serves until the peer has what it asked for.
///
/// # Errors
/// The peer is gone, too slow, or says more than a line may have.
pub(super) async fn serve(
    admin: Arc<Admin>,
    stream: UnixStream,
    operator: Operator,
    mut level: SocketLevel,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let (mut prompt, mut idle) = (false, IDLE);
    loop {
        let Some(line) = timeout(idle, read_line(&mut reader)).await?? else { return Ok(()) };
        for words in words::commands(&line) {
            let admin = admin.clone();
            let answer = spawn_blocking(move || commands::run(&words, admin, level, operator.name(None))).await?;
            let mut text = match answer {
                Answer::Text(text) => text,
                Answer::Quit => return Ok(()),
                Answer::TogglePrompt => {
                    prompt = !prompt;
                    String::new()
                }
                Answer::Level(lower) => {
                    level = lower;
                    String::new()
                }
                Answer::Timeout(wanted) => {
                    idle = wanted.min(LONGEST_IDLE);
                    String::new()
                }
            };
            text.push_str(if prompt { "\n> " } else { "\n" });
            timeout(READ_ANSWER, writer.write_all(text.as_bytes())).await??;
        }
        if !prompt {
            return timeout(READ_ANSWER, writer.shutdown()).await?;
        }
    }
}

/// Without its end. `None`: the peer has said all; half a line is nothing, as with HAProxy.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    match line.pop() {
        Some(b'\n') => Ok(Some(String::from_utf8_lossy(&line).into_owned())),
        Some(_) if line.len() as u64 + 1 >= MAX_LINE => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a line of more than 16 KiB"))
        }
        Some(_) | None => Ok(None),
    }
}

/// As HAProxy's buffer.
const MAX_LINE: u64 = 16 * 1024;
/// As HAProxy's `stats timeout`; `set timeout cli` changes it.
const IDLE: Duration = Duration::from_secs(10);
const LONGEST_IDLE: Duration = Duration::from_secs(3_600);
const READ_ANSWER: Duration = Duration::from_secs(30);
