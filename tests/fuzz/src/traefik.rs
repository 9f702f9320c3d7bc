//! Rules and dynamic configurations as anybody may write them.

use ingress::config::OnDown;
use ingress::providers::traefik::{Document, Settings, parse_rule};
use ingress::route::{Contribution, OnRemove, ProviderName};

/// A rule that is understood is shown as the same rule; a document never panics, and loses no router without a word.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(rule) = parse_rule(text) {
        assert_eq!(parse_rule(&rule.to_string()), Ok(rule));
    }
    let Ok(value) = serde_json::from_str(text) else { return };
    let mut document = Document::default();
    if document.add(value).is_ok() {
        let settings = Settings { entry_points: Default::default(), health: None, on_down: OnDown::Keep };
        let empty = Contribution::new(&ProviderName::new("fuzz"), OnRemove::L4);
        drop(document.compile(&settings, empty));
    }
}
