//! Providers: where further routes come from.

use std::collections::BTreeMap;

use super::registration::convert_registration;
use super::{BoundAt, convert_on_remove, pool};
use crate::config::decode::{At, Located};
use crate::config::file::{
    FileEntryPoint, FileHttpPoll, FileLastGood, FileOnDown, FileProvider, FileRegistry, FileTraefik, KeptFor,
    LastGoodWord, OpenPort,
};
use crate::config::report::Report;
use crate::config::words::Name;
use crate::config::{
    EntryPoint, HttpPollConfig, OnDown, ProviderConfig, ProviderSource, RegistryConfig, TraefikConfig,
};
use crate::route::{ListenerName, ProviderName};

pub(super) fn convert_provider(
    name: &ProviderName,
    provider: Located<FileProvider>,
    binds: &mut Vec<BoundAt>,
    report: &mut Report<'_>,
) -> ProviderConfig {
    let Located { node, value } = provider;
    if name.as_str() == ProviderName::FILE {
        report.error(At::Key(node), "this name stands for the configuration file itself; choose another", None);
    }
    let FileProvider {
        registry,
        file,
        http_poll,
        registration,
        priority,
        last_good,
        stale_after,
        on_remove,
        on_down,
        health,
    } = value;
    let sources = [
        registry.map(|registry| convert_registry(registry.value, report)),
        file.map(|file| convert_file(file.value, report)),
        http_poll.map(|poll| convert_http_poll(poll.value, report)),
        registration.map(|api| ProviderSource::Registration(convert_registration(name, api, binds, report))),
    ];
    let written: Vec<_> = SOURCES.into_iter().filter(|key| report.tree.child(node, key).is_some()).collect();
    match written.as_slice() {
        [_] => {}
        [] => {
            let message = format!("this provider has no source; write one of {}", SOURCES.join(", "));
            report.error(At::Value(node), message, None);
        }
        [_, second, ..] => {
            report.refuse_key(node, second, "a provider has one source; write each under a name of its own");
        }
    }
    if written.contains(&"registration") {
        report.refuse_key(node, "last_good", "registrations are kept until they end; this key has no meaning here");
    }
    ProviderConfig {
        // Stands in for one that was refused; nothing sees it then.
        source: sources.into_iter().flatten().next().unwrap_or_else(|| {
            ProviderSource::Registry(RegistryConfig {
                path: "/nonexistent".into(),
                bind: Vec::new(),
                checks: BTreeMap::new(),
            })
        }),
        priority: priority.0,
        last_good: match last_good {
            FileLastGood::Word(LastGoodWord::Off) => None,
            FileLastGood::Kept(KeptFor { max_age }) => Some(max_age.0),
        },
        stale_after: stale_after.0,
        on_remove: convert_on_remove(on_remove),
        on_down: match on_down {
            FileOnDown::Cut => OnDown::Cut,
            FileOnDown::Keep => OnDown::Keep,
        },
        health: health.map(|health| pool::convert_health(health, report)),
    }
}

fn convert_registry(registry: FileRegistry, report: &mut Report<'_>) -> ProviderSource {
    let FileRegistry { path, bind, checks } = registry;
    let check = |(name, health): (Name, _)| (name.0, pool::convert_health(health, report));
    ProviderSource::Registry(RegistryConfig {
        path: path.0,
        bind: bind.0.into_iter().map(|ip| ip.0).collect(),
        checks: checks.into_iter().map(check).collect(),
    })
}

fn convert_file(file: FileTraefik, report: &mut Report<'_>) -> ProviderSource {
    let FileTraefik { path, entry_points } = file;
    let entry_points = convert_entry_points(entry_points, report);
    ProviderSource::File(TraefikConfig { path: path.0, entry_points })
}

fn convert_http_poll(poll: FileHttpPoll, report: &mut Report<'_>) -> ProviderSource {
    let FileHttpPoll { url, interval, timeout, token_file, ca_file, entry_points } = poll;
    if ca_file.is_some() && url.value.0.starts_with("http://") {
        report.error(At::Value(url.node), "`ca_file` has no meaning without https://", None);
    }
    ProviderSource::HttpPoll(HttpPollConfig {
        url: url.value.0,
        interval: report.positive(&interval),
        timeout: report.positive(&timeout),
        token_file: token_file.map(|file| file.0),
        ca_file: ca_file.map(|file| file.0),
        entry_points: convert_entry_points(entry_points, report),
    })
}

fn convert_entry_points(
    entry_points: BTreeMap<Name, Located<FileEntryPoint>>,
    report: &mut Report<'_>,
) -> BTreeMap<String, EntryPoint> {
    let convert = |(name, Located { node, value }): (Name, Located<FileEntryPoint>)| {
        let entry_point = match value {
            FileEntryPoint::Listener(listener) => {
                let listener = Located { node, value: listener };
                report.refer_listener(&listener);
                EntryPoint::Listener(ListenerName::new(listener.value.0))
            }
            FileEntryPoint::Open(OpenPort { bind }) => {
                EntryPoint::Open(bind.0.into_iter().flat_map(|bind| bind.value.0).collect())
            }
        };
        (name.0, entry_point)
    };
    entry_points.into_iter().map(convert).collect()
}

const SOURCES: [&str; 4] = ["registry", "file", "http_poll", "registration"];
