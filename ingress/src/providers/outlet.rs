//! How a provider speaks: to control by its channel, and to its own next start by what it keeps on disk.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};

use crate::config::ProviderConfig;
use crate::control::last_good::{ConfigHash, LastGood, LastGoodError};
use crate::route::{Applied, Contribution, News, OnRemove, ProviderName, ProviderUpdate};

/// One provider's way out. Every call waits until control has room for it.
#[derive(Debug)]
pub struct Outlet {
    provider: ProviderName,
    on_remove: OnRemove,
    updates: mpsc::Sender<ProviderUpdate>,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    place: LastGood,
    max_age: Duration,
    /// What stands there, and when it was last confirmed.
    now: Option<(ConfigHash, SystemTime)>,
}

impl Outlet {
    pub fn new(
        provider: &ProviderName,
        config: &ProviderConfig,
        state_dir: &Path,
        updates: mpsc::Sender<ProviderUpdate>,
    ) -> Self {
        let place = LastGood::of_provider(state_dir, provider);
        let kept = config.last_good.map(|max_age| Kept { place: place.clone(), max_age, now: None });
        if kept.is_none()
            && let Err(error) = place.remove()
        {
            tracing::warn!(%provider, %error, "cannot remove the last good copy");
        }
        Self { provider: provider.clone(), on_remove: config.on_remove, updates, kept }
    }

    pub fn provider(&self) -> &ProviderName {
        &self.provider
    }

    /// An empty contribution of this provider, to be filled.
    pub fn contribution(&self) -> Contribution {
        Contribution::new(&self.provider, self.on_remove)
    }

    /// This is what the provider says from now on. `text` is what it was made from: it is kept for the next start.
    pub async fn says(&mut self, contribution: Contribution, text: &str) {
        self.keep(text).await;
        self.send(News::Contribution(Arc::new(contribution))).await;
    }

    /// As [`says`](Self::says), of a provider that keeps its own books; returns when it holds for new connections. `None`:
    /// the daemon stops.
    pub async fn applied(&self, contribution: Arc<Contribution>) -> Option<Applied> {
        let (done, applied) = oneshot::channel();
        let news = News::Contribution(contribution);
        let update = ProviderUpdate { provider: self.provider.clone(), news, done: Some(done) };
        self.updates.send(update).await.ok()?;
        applied.await.ok()
    }

    /// The source answered, and says what it said before.
    pub async fn unchanged(&mut self) {
        self.confirm().await;
        self.send(News::Unchanged).await;
    }

    /// The source could not be asked, or its answer is of no use. Say the place and what to do.
    pub async fn failed(&self, error: impl ToString) {
        self.send(News::Failed(error.to_string())).await;
    }

    /// Says what was kept on disk, if it is young enough: for a start at which the source does not answer. `parse` makes a
    /// contribution of the text that was given to [`says`](Self::says).
    pub async fn last_good(&self, parse: impl FnOnce(&str) -> Result<Contribution, String>) -> bool {
        let Some(kept) = &self.kept else { return false };
        let provider = &self.provider;
        let stored = match kept.place.load() {
            Ok(Some(stored)) => stored,
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(%provider, %error, "no last good copy");
                return false;
            }
        };
        let age = stored.accepted.elapsed().unwrap_or_default();
        if age > kept.max_age {
            tracing::warn!(%provider, age = age.as_secs(), "the last good copy is older than max_age");
            return false;
        }
        match parse(&stored.text) {
            Ok(contribution) => {
                tracing::warn!(%provider, age = age.as_secs(), "the source does not answer; serving the last good copy");
                let contribution = Arc::new(contribution);
                self.send(News::LastGood { contribution, said: stored.accepted }).await;
                true
            }
            // Written by an older or newer version, it may not be good any more.
            Err(error) => {
                tracing::warn!(%provider, error, "the last good copy is refused too");
                false
            }
        }
    }

    async fn send(&self, news: News) {
        // Control is gone when the daemon stops, and this task with it.
        let _ = self.updates.send(ProviderUpdate::new(&self.provider, news)).await;
    }

    async fn keep(&mut self, text: &str) {
        let Some(kept) = &mut self.kept else { return };
        let hash = ConfigHash::of(text);
        if kept.now.is_some_and(|(before, _)| before == hash) {
            return self.confirm().await;
        }
        let (now, text) = (SystemTime::now(), text.to_owned());
        kept.now = Some((hash, now));
        let place = kept.place.clone();
        self.write(move || place.store(&text, now).map(drop)).await;
    }

    /// Writes when the copy on disk has used up a tenth of its time.
    async fn confirm(&mut self) {
        let Some(Kept { place, max_age, now: Some((hash, confirmed)) }) = &mut self.kept else { return };
        let now = SystemTime::now();
        let young = now.duration_since(*confirmed).is_ok_and(|age| age < *max_age / 10);
        if young {
            return;
        }
        *confirmed = now;
        let (place, hash) = (place.clone(), *hash);
        self.write(move || match place.load()?.filter(|stored| stored.hash == hash) {
            Some(stored) => place.store(&stored.text, now).map(drop),
            None => Ok(()),
        })
        .await;
    }

    /// A host that cannot write its state still serves; only a start without the source would miss it.
    async fn write(&self, write: impl FnOnce() -> Result<(), LastGoodError> + Send + 'static) {
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(provider = %self.provider, %error, "cannot keep the last good copy");
        }
    }
}

#[cfg(test)]
mod tests;
