//! Collects the problems of one file: whoever finds one says at which value or key, the report adds place and path.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use super::decode::{At, Located};
use super::problems::{Problem, Problems, Severity, closest, quoted};
use super::words::{Name, Time};
use super::yaml::{NodeId, Tree, Value};

/// Collects problems and knows where everything stands.
pub(super) struct Report<'t> {
    pub(super) tree: &'t Tree<'t>,
    pub(super) problems: Problems,
    /// The keys of top-level mappings, once they were asked for.
    sections: HashMap<&'static str, HashSet<&'t str>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(tree: &'t Tree<'t>, file: &Path) -> Self {
        Self { tree, problems: Problems::new(file), sections: HashMap::new() }
    }

    pub(super) fn error(&mut self, at: At, message: impl Into<String>, suggestion: Option<String>) {
        let problem = self.problem(Severity::Error, at, message.into()).suggest(suggestion);
        self.problems.push(problem);
    }

    pub(super) fn warning(&mut self, at: At, message: impl Into<String>) {
        let problem = self.problem(Severity::Warning, at, message.into());
        self.problems.push(problem);
    }

    fn problem(&self, severity: Severity, at: At, message: String) -> Problem {
        let (place, id) = match at {
            At::Value(id) => (self.tree.node(id).place, id),
            At::Key(id) => (self.tree.key_place(id), id),
        };
        Problem::new(severity, place, self.tree.path(id), message)
    }

    /// A key's value, or the mapping where the key is not written.
    pub(super) fn value_of(&self, mapping: NodeId, key: &str) -> At {
        At::Value(self.tree.child(mapping, key).unwrap_or(mapping))
    }

    /// Says that a key has no meaning beside the others.
    pub(super) fn refuse_key(&mut self, mapping: NodeId, key: &str, why: &str) {
        if let Some(child) = self.tree.child(mapping, key) {
            self.error(At::Key(child), why, None);
        }
    }

    pub(super) fn line(&self, id: NodeId) -> usize {
        self.tree.key_place(id).line
    }

    pub(super) fn refer_pool(&mut self, name: &Located<Name>) {
        self.refer("pool", "pools", name);
    }

    pub(super) fn refer_listener(&mut self, name: &Located<Name>) {
        self.refer("listener", "listeners", name);
    }

    /// `name` must be a key of the top-level mapping `section`; a key whose value has problems of its own counts too.
    fn refer(&mut self, what: &str, section: &'static str, name: &Located<Name>) {
        let tree = self.tree;
        let keys = || {
            let entries = tree.child(Tree::ROOT, section).map_or(&[][..], |section| tree.children(section));
            entries.iter().filter_map(|id| tree.key(*id))
        };
        let written = name.value.0.as_str();
        if self.sections.entry(section).or_insert_with(|| keys().collect()).contains(written) {
            return;
        }
        let suggestion = closest(written, keys()).map(str::to_owned);
        let mut message = format!("there is no {what} {}", quoted(written));
        if keys().next().is_none() {
            message.push_str(&format!("; `{section}` names none"));
        } else if suggestion.is_none() {
            message.push_str(&format!("; `{section}` names {}", keys().take(10).collect::<Vec<_>>().join(", ")));
        }
        self.error(At::Value(name.node), message, suggestion);
    }

    /// A list without an item. One whose items were all dropped for problems of their own is not empty.
    pub(super) fn refuse_empty(&mut self, mapping: NodeId, key: &str, what: &str) {
        let Some(list) = self.tree.child(mapping, key) else { return };
        if matches!(&self.tree.node(list).value, Value::Sequence(items) if items.is_empty()) {
            self.error(At::Value(list), format!("the list is empty; {what}"), None);
        }
    }

    pub(super) fn positive(&mut self, time: &Located<Time>) -> Duration {
        if time.value.0.is_zero() {
            self.error(At::Value(time.node), "must be longer than 0s", None);
        }
        time.value.0
    }
}
