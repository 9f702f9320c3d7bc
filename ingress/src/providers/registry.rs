//! The registry file: a list of hosts and ports with their backends, the same on every node.
//!
//! It arrives by git, rsync or Syncthing, in one step or in many. A registry that cannot be whole is refused whole, and what
//! it said before stays: one with a fault anywhere, one that ends in the middle of a line, one that lists nothing and does
//! not say that this is meant. One that takes something away has to lie still for a moment first.

mod compile;
mod document;
mod files;
pub(super) mod local;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{ProviderConfig, RegistryConfig};
use crate::route::Contribution;
use crate::watch::{FileWatch, Signature};

use super::outlet::Outlet;
use compile::{Settings, compile};
use files::Files;
use local::LocalAddresses;

/// What was read last.
struct Seen {
    signature: Signature,
    local: LocalAddresses,
    /// What it came to, if it was good.
    contribution: Option<Contribution>,
}

/// Reads the registry now and whenever one of its files changes.
pub(super) async fn run(config: ProviderConfig, registry: RegistryConfig, mut outlet: Outlet) {
    let RegistryConfig { path, bind, checks } = registry;
    let settings = Settings { bind, checks, health: config.health, on_down: config.on_down };
    let mut watch = FileWatch::start([path.as_path()]);
    let mut seen: Option<Seen> = None;
    loop {
        if let Some(next) = look(&path, &settings, &mut outlet, &mut watch, seen.as_ref()).await {
            seen = Some(next);
        }
        watch.settled().await;
    }
}

/// What the registry at `path` would say.
pub(super) fn preview(
    config: &ProviderConfig,
    registry: &RegistryConfig,
    path: &Path,
    contribution: Contribution,
) -> Result<Contribution, String> {
    let RegistryConfig { path: _, bind, checks } = registry.clone();
    let settings = Settings { bind, checks, health: config.health.clone(), on_down: config.on_down };
    compile(&files::read(path).texts?, &LocalAddresses::of_this_host(), &settings, contribution)
}

/// One look at the files; `None`: nothing that counts is other than before.
async fn look(
    path: &Path,
    settings: &Settings,
    outlet: &mut Outlet,
    watch: &mut FileWatch,
    seen: Option<&Seen>,
) -> Option<Seen> {
    let local = LocalAddresses::of_this_host();
    let files = Files::read(path.to_owned()).await;
    watch.follow(files.watched.iter().map(PathBuf::as_path));
    let signature = files.signature;
    let is_news = seen.is_none_or(|seen| seen.signature != signature || seen.local != local);
    let before = seen.and_then(|seen| seen.contribution.clone());
    if !is_news {
        if before.is_some() {
            outlet.unchanged().await;
        }
        return None;
    }
    let read = files.texts.and_then(|texts| {
        let contribution = compile(&texts, &local, settings, outlet.contribution())?;
        Ok((contribution, texts))
    });
    let (contribution, texts) = match read {
        Ok(good) => good,
        Err(error) => {
            outlet.failed(error).await;
            if seen.is_none() {
                let parse = |text: &str| compile(&files::parse_kept(text)?, &local, settings, outlet.contribution());
                outlet.last_good(parse).await;
            }
            return Some(Seen { signature, local, contribution: before });
        }
    };
    // Whoever writes in place may be half through: what is missing may still come.
    if before.as_ref().is_some_and(|before| contribution.lacks_some_of(before)) {
        tokio::time::sleep(STILL).await;
        if Files::read(path.to_owned()).await.signature != signature {
            return None;
        }
    }
    outlet.says(contribution.clone(), &files::to_keep(&texts)).await;
    Some(Seen { signature, local, contribution: Some(contribution) })
}

/// How long a registry that takes something away must not change.
const STILL: Duration = Duration::from_secs(1);
