//! Providers: where further routes come from.

use super::{convert_on_remove, pool};
use crate::config::decode::{At, Located};
use crate::config::file::{FileLastGood, FileOnDown, FileProvider, FileRegistry, KeptFor, LastGoodWord};
use crate::config::report::Report;
use crate::config::{OnDown, ProviderConfig, ProviderSource, RegistryConfig};

pub(super) fn convert_provider(provider: Located<FileProvider>, report: &mut Report<'_>) -> ProviderConfig {
    let Located { node, value } = provider;
    let FileProvider { registry, priority, last_good, on_remove, on_down, health } = value;
    let sources = [registry.map(|registry| convert_registry(registry.value))];
    let mut sources = sources.into_iter().flatten();
    let source = sources.next();
    let written = ["registry"].into_iter().filter(|key| report.tree.child(node, key).is_some()).count();
    if written == 0 {
        report.error(At::Value(node), "this provider has no source; write `registry: {path: ...}`", None);
    } else if written > 1 {
        report.error(At::Value(node), "a provider has one source; write each under a name of its own", None);
    }
    ProviderConfig {
        // Stands in for one that was refused; nothing sees it then.
        source: source.unwrap_or_else(|| {
            ProviderSource::Registry(RegistryConfig { path: "/nonexistent".into(), bind: Vec::new() })
        }),
        priority: priority.0,
        last_good: match last_good {
            FileLastGood::Word(LastGoodWord::Off) => None,
            FileLastGood::Kept(KeptFor { max_age }) => Some(max_age.0),
        },
        on_remove: convert_on_remove(on_remove),
        on_down: match on_down {
            FileOnDown::Cut => OnDown::Cut,
            FileOnDown::Keep => OnDown::Keep,
        },
        health: health.map(|health| pool::convert_health(health, report)),
    }
}

fn convert_registry(registry: FileRegistry) -> ProviderSource {
    let FileRegistry { path, bind } = registry;
    ProviderSource::Registry(RegistryConfig { path: path.0, bind: bind.0.into_iter().map(|ip| ip.0).collect() })
}
