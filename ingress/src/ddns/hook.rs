//! Providers that are a program: it is told in its environment what a record should say.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::api::{ApiError, Record};

/// Exit status 0 means that the record says so now.
pub(super) async fn run(program: &Path, record: &Record, address: std::net::IpAddr) -> Result<(), ApiError> {
    let mut command = Command::new(program);
    command
        .env("INGRESS_DDNS_ZONE", &record.zone)
        .env("INGRESS_DDNS_NAME", &record.name)
        .env("INGRESS_DDNS_TYPE", record.kind.as_str())
        .env("INGRESS_DDNS_ADDRESS", address.to_string())
        .env("INGRESS_DDNS_TTL", record.ttl.as_secs().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let program = program.display();
    let ran = tokio::time::timeout(PATIENCE, command.status()).await;
    let ran = ran.map_err(|_| ApiError::Transport(format!("{program} did not end within {PATIENCE:?}")))?;
    let status = ran.map_err(|error| ApiError::Local(format!("{program}: {error}")))?;
    if status.success() { Ok(()) } else { Err(ApiError::Server(format!("{program} ended with {status}"))) }
}

const PATIENCE: Duration = Duration::from_secs(60);
