//! Callers of the registration API: curl, as a person would; and one kept connection, for those who call often.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::netns::Namespace;

/// Who calls, where, with which token.
#[derive(Clone, Debug)]
pub struct Caller {
    pub ns: Namespace,
    pub api: SocketAddr,
    pub token: Option<String>,
}

/// An answer: status and JSON body.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub body: Value,
}

impl Caller {
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.curl(path, &["--json", &body.to_string()])
    }

    pub fn get(&self, path: &str) -> Result<Answer> {
        self.curl(path, &[])
    }

    /// A request with any options of curl's.
    pub fn curl(&self, path: &str, options: &[&str]) -> Result<Answer> {
        let mut command = self.ns.command("curl");
        command.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*"]).args(options);
        command.args(["--write-out", "%{stderr}%{http_code} %{content_type}"]);
        if let Some(token) = &self.token {
            command.args(["--oauth2-bearer", token]);
        }
        let output = command.arg(format!("http://{}{path}", self.api)).output().context("starting curl")?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("curl {path}: {words}");
        }
        let (status, content_type) = words.split_once(' ').context("curl writes status and type")?;
        let body = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{path}: {:?} is not JSON", String::from_utf8_lossy(&output.stdout)))?;
        Ok(Answer { status: status.parse()?, content_type: content_type.to_owned(), body })
    }

    /// A connection for many calls.
    pub fn connect(&self) -> Result<Connection> {
        let stream = self.ns.connect(self.api).with_context(|| format!("connecting to {}", self.api))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        let token = self.token.clone().unwrap_or_default();
        Ok(Connection { stream: BufReader::new(stream), api: self.api, token })
    }
}

/// HTTP/1.1, one call after the other.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    api: SocketAddr,
    token: String,
}

impl Connection {
    /// An error means that nobody knows what became of the call.
    pub fn post(&mut self, path: &str, body: &Value) -> Result<Answer> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.api,
            self.token,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length, mut content_type) = (0, 0, String::new());
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("the connection ended before the answer did");
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.split(' ').next().unwrap_or_default().parse()?;
            } else if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse()?;
            } else if let Some(kind) = line.strip_prefix("content-type: ") {
                content_type = kind.to_owned();
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, content_type, body: serde_json::from_slice(&body)? })
    }
}
