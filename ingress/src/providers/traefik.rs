//! Traefik's dynamic configuration, as it stands in files and comes over HTTP -> contribution. Pure.
//!
//! TCP routers with `HostSNI` and TLS passthrough become SNI routes, those that take everything (``HostSNI(`*`)``) open a
//! port. HTTP routers are kept. Whatever cannot be served is named, router by router, and takes nothing else down; only a
//! document that is no dynamic configuration at all is refused as a whole.

mod router;
mod rule;
mod service;
mod sni;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::config::{EntryPoint, HealthConfig, OnDown};
use crate::route::{Contribution, Why};

pub use rule::RuleError;
pub use rule::parse as parse_rule;

/// What the configuration says about all that the document names.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Traefik's entry points in our words.
    pub entry_points: BTreeMap<String, EntryPoint>,
    /// Of services that name none.
    pub health: Option<HealthConfig>,
    pub on_down: OnDown,
}

/// One or several documents, their sections laid together.
#[derive(Clone, Debug, Default)]
pub struct Document {
    http: Protocol,
    tcp: Protocol,
    udp: Protocol,
    /// Names that stand twice.
    twice: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct Protocol {
    routers: Map<String, Value>,
    services: Map<String, Value>,
    middlewares: Map<String, Value>,
}

/// The text is no dynamic configuration; said so that its author can mend it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentError {
    #[error("expected a mapping with `http` or `tcp`, found {0}")]
    NoMapping(&'static str),
    #[error("it says nothing: there is neither `http` nor `tcp`")]
    Empty,
    #[error("unknown section {0:?}; a dynamic configuration has `http`, `tcp`, `udp` and `tls`")]
    UnknownSection(String),
    #[error("{0} must be a mapping")]
    NoSection(String),
}

impl Document {
    /// Adds one document. Names that are there already are not replaced.
    ///
    /// # Errors
    /// It is none; nothing was added.
    pub fn add(&mut self, document: Value) -> Result<(), DocumentError> {
        let sections = match document {
            Value::Object(sections) => sections,
            Value::Null => return Err(DocumentError::Empty),
            Value::Array(_) => return Err(DocumentError::NoMapping("a list")),
            Value::Bool(_) | Value::Number(_) | Value::String(_) => return Err(DocumentError::NoMapping("a value")),
        };
        if sections.is_empty() {
            return Err(DocumentError::Empty);
        }
        let mut read = Vec::new();
        for (name, section) in sections {
            let kind = match name.as_str() {
                "http" | "tcp" | "udp" => name,
                // Certificates and options of TLS that is terminated.
                "tls" => continue,
                _ => return Err(DocumentError::UnknownSection(name.chars().take(60).collect())),
            };
            read.push((Protocol::read(&kind, section)?, kind));
        }
        for (protocol, kind) in read {
            let into = match kind.as_str() {
                "http" => &mut self.http,
                "tcp" => &mut self.tcp,
                _ => &mut self.udp,
            };
            into.add(protocol, &kind, &mut self.twice);
        }
        Ok(())
    }

    /// Entry points whose TCP routers look at server names.
    pub fn entry_points_by_name(&self) -> BTreeSet<String> {
        self.tcp.routers.values().flat_map(router::entry_points_by_name).collect()
    }

    /// Fills `contribution` with all that can be served or kept, and the reasons for the rest.
    pub fn compile(&self, settings: &Settings, mut contribution: Contribution) -> Contribution {
        for item in &self.twice {
            contribution.unserved(item.clone(), Why::Unsupported("stands in two files; the first counts".to_owned()));
        }
        for (name, router) in &self.tcp.routers {
            if let Err(why) = router::tcp(name, router, &self.tcp, settings, &mut contribution) {
                contribution.unserved(format!("tcp router {name}"), Why::Unsupported(why));
            }
        }
        for (name, router) in &self.http.routers {
            if let Err(why) = router::http(name, router, &self.http, settings, &mut contribution) {
                contribution.unserved(format!("http router {name}"), Why::Unsupported(why));
            }
        }
        for name in self.udp.routers.keys() {
            contribution.unserved(format!("udp router {name}"), Why::Unsupported("UDP is not served".to_owned()));
        }
        contribution
    }
}

impl Protocol {
    fn read(kind: &str, section: Value) -> Result<Self, DocumentError> {
        let mut section = mapping(kind, section)?;
        let mut part = |name: &str| match section.remove(name) {
            Some(part) => mapping(&format!("{kind}.{name}"), part),
            None => Ok(Map::new()),
        };
        Ok(Self { routers: part("routers")?, services: part("services")?, middlewares: part("middlewares")? })
    }

    fn add(&mut self, more: Self, kind: &str, twice: &mut Vec<String>) {
        let Self { routers, services, middlewares } = more;
        let parts = [
            ("router", &mut self.routers, routers),
            ("service", &mut self.services, services),
            ("middleware", &mut self.middlewares, middlewares),
        ];
        for (what, into, from) in parts {
            for (name, value) in from {
                if into.contains_key(&name) {
                    twice.push(format!("{kind} {what} {name}"));
                } else {
                    into.insert(name, value);
                }
            }
        }
    }
}

/// `null` is an empty mapping, as Traefik reads it.
fn mapping(path: &str, value: Value) -> Result<Map<String, Value>, DocumentError> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err(DocumentError::NoSection(path.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests;
