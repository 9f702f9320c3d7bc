//! One zone: its records, what became of each, and when the provider may be asked again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::api::{Api, ApiError, Cloudflare, Hetzner, HttpNet, Record};
use super::client::Client;
use super::hook;
use super::memory::Memory;
use super::plan::{Kind, Step, plan};
use super::view::DnsRecordView;
use crate::config::{DdnsConfig, DdnsProvider, DdnsZone};

/// This node's addresses, or why one is not known.
pub(super) type Addresses = BTreeMap<Kind, Result<IpAddr, String>>;

pub(super) struct Zone {
    door: Door,
    verify: Duration,
    records: Vec<Kept>,
    patience: Patience,
}

/// After something failed.
#[derive(Default)]
struct Patience {
    /// In a row.
    failures: u32,
    /// Not asked before.
    until: Option<Instant>,
}

/// How the provider is reached.
enum Door {
    Api(Box<dyn Api>, Client),
    Program(PathBuf),
}

/// A record and what is known of it.
struct Kept {
    record: Record,
    /// What the provider had last, and when it said so.
    confirmed: Option<(IpAddr, Instant)>,
    /// With this record alone.
    patience: Patience,
    view: DnsRecordView,
}

/// What was done, or would be.
pub(super) enum Done {
    /// The record says so already.
    Nothing,
    Made,
    Replaced {
        old: String,
    },
    LeftAlone(String),
}

impl Zone {
    pub(super) fn new(name: &str, zone: &DdnsZone, config: &DdnsConfig) -> Self {
        let DdnsZone { provider, names, ttl } = zone;
        let door = match provider {
            DdnsProvider::Cloudflare { api, zone_id } => {
                Door::Api(Box::new(Cloudflare { zone_id: zone_id.clone() }), Client::new(api))
            }
            DdnsProvider::Hetzner(api) => Door::Api(Box::new(Hetzner), Client::new(api)),
            DdnsProvider::HttpNet(api) => Door::Api(Box::new(HttpNet), Client::new(api)),
            DdnsProvider::Exec { command } => Door::Program(command.clone()),
        };
        let sources = [(Kind::A, config.ipv4.is_some()), (Kind::Aaaa, config.ipv6.is_some())];
        let kinds: Vec<_> = sources.into_iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| kind).collect();
        let kept = |record: &String, kind: Kind| Kept {
            view: DnsRecordView {
                zone: name.to_owned(),
                provider: provider.as_str().to_owned(),
                name: record.clone(),
                kind: kind.to_string(),
                wanted: None,
                published: None,
                error: None,
                confirmed: None,
                changes_total: 0,
                failures_total: 0,
            },
            record: Record { zone: name.to_owned(), name: record.clone(), kind, ttl: *ttl },
            confirmed: None,
            patience: Patience::default(),
        };
        let records = names.iter().flat_map(|name| kinds.iter().map(move |kind| kept(name, *kind))).collect();
        Self { door, verify: config.verify, records, patience: Patience::default() }
    }

    pub(super) fn views(&self) -> impl Iterator<Item = DnsRecordView> {
        self.records.iter().map(|kept| kept.view.clone())
    }

    /// Brings what is due in order.
    pub(super) async fn tend(&mut self, addresses: &Addresses, memory: &Mutex<Memory>) {
        for n in 0..self.records.len() {
            let now = Instant::now();
            let kept = &mut self.records[n];
            let address = match addresses.get(&kept.record.kind) {
                Some(Ok(address)) => *address,
                Some(Err(error)) => {
                    // What is published stays: an address that is not known may still be the right one.
                    kept.view.wanted = None;
                    kept.view.error = Some(error.clone());
                    if kept.view.published.is_none() {
                        // Why it was left alone is asked again.
                        kept.confirmed = None;
                    }
                    continue;
                }
                None => continue,
            };
            kept.view.wanted = Some(address.to_string());
            let is_due = kept.confirmed.is_none_or(|(known, at)| known != address || now >= at + self.verify);
            if !is_due {
                // Perhaps the address was not known for a while.
                if kept.view.published == kept.view.wanted {
                    kept.view.error = None;
                }
                continue;
            }
            if self.patience.is_waiting(now) || kept.patience.is_waiting(now) {
                continue;
            }
            let done = reconcile(&mut self.door, &kept.record, address, memory, false).await;
            kept.note(address, &done);
            match done {
                Ok(_) => (self.patience, kept.patience) = Default::default(),
                // That is about this record; the others of the zone have their turn.
                Err(error @ (ApiError::Refused(_) | ApiError::NotUnderstood(_))) => kept.patience.failed(&error),
                Err(
                    error @ (ApiError::Transport(_)
                    | ApiError::RateLimited(_)
                    | ApiError::Denied(_)
                    | ApiError::Server(_)
                    | ApiError::Local(_)),
                ) => return self.patience.failed(&error),
            }
        }
    }

    /// What would be done, in words; changes nothing.
    pub(super) async fn preview(&mut self, addresses: &Addresses, memory: &Mutex<Memory>) -> Vec<(String, bool)> {
        let mut lines = Vec::new();
        for Kept { record, .. } in &self.records {
            let what = format!("{} {}", record.name, record.kind);
            let line = match addresses.get(&record.kind) {
                Some(Ok(address)) => match reconcile(&mut self.door, record, *address, memory, true).await {
                    Ok(Done::Nothing) => (format!("= {what} {address}"), true),
                    Ok(Done::Made) => (format!("+ {what} {address}, TTL {} s", record.ttl.as_secs()), true),
                    Ok(Done::Replaced { old }) => (format!("~ {what} {old}  =>  {address}"), true),
                    Ok(Done::LeftAlone(why)) => (format!("! {what}: left alone: {why}"), false),
                    Err(error) => (format!("! {what}: {error}"), false),
                },
                Some(Err(error)) => (format!("! {what}: {error}"), false),
                None => continue,
            };
            lines.push(line);
        }
        lines
    }
}

impl Patience {
    fn is_waiting(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn failed(&mut self, error: &ApiError) {
        self.failures = self.failures.saturating_add(1);
        self.until = Some(Instant::now() + wait(error, self.failures));
    }
}

impl Kept {
    fn note(&mut self, address: IpAddr, done: &Result<Done, ApiError>) {
        let Record { name, kind, .. } = &self.record;
        let published = match done {
            Ok(Done::Nothing) => address.to_string(),
            Ok(Done::Made) => {
                tracing::info!(name, %kind, %address, "DNS record made");
                self.view.changes_total += 1;
                address.to_string()
            }
            Ok(Done::Replaced { old }) => {
                tracing::info!(name, %kind, %address, old, "DNS record changed");
                self.view.changes_total += 1;
                address.to_string()
            }
            Ok(Done::LeftAlone(why)) => {
                if self.view.error.as_ref() != Some(why) {
                    tracing::warn!(name, %kind, %address, why, "DNS record left alone");
                }
                self.view.published = None;
                self.view.error = Some(why.clone());
                self.confirmed = Some((address, Instant::now()));
                return;
            }
            Err(error) => {
                tracing::warn!(name, %kind, %address, %error, "DNS record not kept");
                self.view.failures_total += 1;
                self.view.error = Some(error.to_string());
                return;
            }
        };
        self.view.published = Some(published);
        self.view.error = None;
        self.view.confirmed = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
        self.confirmed = Some((address, Instant::now()));
    }
}

async fn reconcile(
    door: &mut Door,
    record: &Record,
    address: IpAddr,
    memory: &Mutex<Memory>,
    dry: bool,
) -> Result<Done, ApiError> {
    let ours = memory.lock().wrote(&record.name, record.kind);
    let remember = || {
        let stored = memory.lock().write(&record.name, record.kind, address);
        stored.map_err(|error| ApiError::Local(format!("writing ddns.json in the state directory: {error}")))
    };
    let (api, client) = match door {
        Door::Api(api, client) => (api, client),
        Door::Program(_) if ours == Some(address) => return Ok(Done::Nothing),
        Door::Program(program) => {
            if !dry {
                hook::run(program, record, address).await?;
                remember()?;
            }
            return Ok(ours.map_or(Done::Made, |old| Done::Replaced { old: old.to_string() }));
        }
    };
    let found = client.send(api.find(record)).await?;
    let found = api.found(record, &found)?;
    let (request, done) = match plan(&found, address, ours) {
        Step::Nothing => {
            if !dry {
                remember()?;
            }
            return Ok(Done::Nothing);
        }
        Step::LeaveAlone(why) => return Ok(Done::LeftAlone(why)),
        Step::Create => (api.create(record, address), Done::Made),
        Step::Replace(n) => {
            let old = found.get(n).map(|found| found.address.clone()).unwrap_or_default();
            (api.replace(record, &found, n, address), Done::Replaced { old })
        }
    };
    if !dry {
        let reply = client.send(request).await?;
        api.changed(&reply)?;
        remember()?;
    }
    Ok(done)
}

/// Until the provider is asked again, by the number of failures in a row.
fn wait(error: &ApiError, failures: u32) -> Duration {
    let growing = FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_WAIT);
    match error {
        ApiError::RateLimited(Some(asked)) => growing.max(*asked),
        ApiError::RateLimited(None) => growing.max(RATE_LIMIT),
        ApiError::Transport(_) | ApiError::Server(_) | ApiError::Local(_) => growing,
        // Somebody has to mend this; asking more often does not.
        ApiError::Denied(_) | ApiError::Refused(_) | ApiError::NotUnderstood(_) => growing.max(REFUSED),
    }
}

const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(600);
const RATE_LIMIT: Duration = Duration::from_secs(60);
const REFUSED: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_end_and_are_never_shorter_than_the_provider_asks() {
        let server = ApiError::Server(String::new());
        let waits: Vec<_> = (1..12).map(|failures| wait(&server, failures).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        let limited = ApiError::RateLimited(Some(Duration::from_secs(300)));
        assert_eq!(wait(&limited, 1).as_secs(), 300);
        assert_eq!(wait(&limited, 11).as_secs(), 600);
        assert_eq!(wait(&ApiError::RateLimited(None), 1).as_secs(), 60);
        assert_eq!(wait(&ApiError::Denied(String::new()), 1).as_secs(), 60);
    }
}
