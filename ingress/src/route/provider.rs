//! How providers speak to control: one channel of [`ProviderUpdate`]s, and nothing else.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::oneshot;

use super::{Contribution, ListenerName, PoolName, ProviderName, RouteName, Unserved};
use crate::snapshot::Generation;

/// What one provider has to say. Updates of one provider are taken in the order in which they were sent.
#[derive(Debug)]
pub struct ProviderUpdate {
    pub provider: ProviderName,
    pub news: News,
    /// Told once the update holds for new connections.
    pub done: Option<oneshot::Sender<Applied>>,
}

#[derive(Clone, Debug)]
pub enum News {
    /// All that the provider says from now on: replaces its earlier contribution, and nobody else's.
    Contribution(Arc<Contribution>),
    /// The same, from disk: the source itself has not answered since the daemon started.
    LastGood {
        contribution: Arc<Contribution>,
        /// When the source said so.
        said: SystemTime,
    },
    /// The source was asked and says the same as before.
    Unchanged,
    /// The source could not be asked, or its answer is of no use. What it said before stays.
    Failed(String),
}

/// What became of an update.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The generation that holds it.
    pub generation: Generation,
    /// What of the contribution is not served because somebody else was first.
    pub refused: Arc<[Unserved]>,
}

impl ProviderName {
    /// What stands where a provider's name would, for what the configuration file says.
    pub const FILE: &'static str = "file";

    pub fn pool(&self, name: &str) -> PoolName {
        PoolName::new(self.qualified(name))
    }

    pub fn route(&self, name: &str) -> RouteName {
        RouteName::new(self.qualified(name))
    }

    pub fn listener(&self, name: &str) -> ListenerName {
        ListenerName::new(self.qualified(name))
    }

    /// `name@provider`: no two providers can collide, and none with the file, whose names hold no `@`. What would break a
    /// label or a log line is replaced.
    fn qualified(&self, name: &str) -> String {
        let plain = |c: char| if c.is_ascii_graphic() && !"@\"\\".contains(c) { c } else { '_' };
        let name = name.chars().take(LONGEST_NAME).map(plain);
        name.chain(['@']).chain(self.as_str().chars()).collect()
    }
}

/// The provider of something that is called `name@provider`; `None`: it stands in the file.
pub fn provider_of(qualified: &str) -> Option<&str> {
    qualified.split_once('@').map(|(_, provider)| provider)
}

impl ProviderUpdate {
    pub fn new(provider: &ProviderName, news: News) -> Self {
        Self { provider: provider.clone(), news, done: None }
    }
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.item, self.why)
    }
}

const LONGEST_NAME: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qualified_name_tells_its_provider_and_carries_nothing_that_breaks_a_label() {
        let provider = ProviderName::new("platform");
        assert_eq!(provider.pool("app").as_str(), "app@platform");
        assert_eq!(provider.pool("a@b \"c\"\n").as_str(), "a_b__c__@platform");
        assert_eq!(provider_of("a_b@platform"), Some("platform"));
        assert_eq!(provider_of("app"), None);
        assert!(provider.route(&"x".repeat(1000)).as_str().len() < 150);
    }
}
